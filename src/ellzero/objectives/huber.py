"""Huber loss: least squares that outliers do not pull."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_length, keep_weighted, to_matrix
from ellzero.objectives.linear import AbstractBoundedLinearLoss
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_real


@final
class Huber(AbstractBoundedLinearLoss):
    r"""Huber loss: quadratic for small residuals, linear for large ones.

    .. math:: f(\theta) = \frac1N \sum_i w_i\, h(x_i^T \theta - y_i)
        + \tfrac{\lambda}{2} \|\theta\|^2, \quad
        h(r) = \begin{cases} r^2 / 2 & |r| \le \delta \\
        \delta (|r| - \delta / 2) & \text{otherwise} \end{cases}

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Target.
    delta : float, default=1.35
        Residual, in the unit of `y`, beyond which the loss is linear. Must be positive.
    ridge : float or mapping of str to float, default=0.0
        The lambda of every entry; a mapping gives one for ``coef`` and one for ``intercept``.
    fit_intercept : bool, default=False
        Whether there is an ``intercept`` tensor; it counts and is ridged like any entry.
    sample_weight : Tensor of shape (n_samples,) or None, default=None
        Weights of the samples, as if each sample appeared so often. Must not be negative; N is
        their sum.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, or `delta` is not positive.

    Notes
    -----
    A minimizer always exists. The curvature is at most that of least squares, and drops to zero
    for residuals beyond `delta` [1]_.

    References
    ----------
    .. [1] P. J. Huber, "Robust estimation of a location parameter", Ann. Math. Stat., 1964.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Huber(torch.eye(2), torch.tensor([1.0, 3.0]), delta=2.0)
    >>> f.value(f.init_params()).item()  # (1 / 2 + 2 * (3 - 1)) / 2
    2.25
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        delta: float = 1.35,
        ridge: float | Mapping[str, float] = 0.0,
        fit_intercept: bool = False,
        sample_weight: Tensor | None = None,
    ) -> None:
        X = to_matrix("X", X)
        self.delta = check_real("delta", delta, 0.0, open_low=True)
        y = check_length(y, X.shape[0]).to(X)
        if y.ndim != 1:
            raise InvalidParameterError(
                f"`y` must have one number for each sample, got shape {tuple(y.shape)}."
            )
        if not named.all_true(torch.isfinite(y)):
            raise InvalidParameterError(
                "`y` must be finite, got NaN or infinity.", "Drop these samples first."
            )
        X, y, share = keep_weighted(X, y, sample_weight)
        self._y = y.unsqueeze(-1)
        self._set_up(X, share, 1, True, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        size = (u - self._y).abs()
        inner = size.clamp_max(self.delta)
        return self._mean(inner * (size - inner / 2))

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return self._weighted((u - self._y).clamp(-self.delta, self.delta))

    def _inside(self, u: Tensor) -> Tensor:
        return self._weighted(((u - self._y).abs() <= self.delta).to(u.dtype))

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return self._inside(u) * v

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._inside(u), None

    @override
    def _output_bound(self) -> Tensor:
        return torch.ones((1, 1), dtype=torch.float64, device=self._X.device)

    @override
    def _bound_is_attained(self) -> bool:
        # Only where all residuals are small together, which may be nowhere.
        return False

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        slope = self._over_shares(dual)
        # The product of a quotient may miss the ends by an ulp.
        slack = 8 * torch.finfo(slope.dtype).eps * self.delta
        inside = (slope.abs() <= self.delta + slack).all(-1).all(-1)
        value = self._mean(slope * (slope / 2 + self._y))
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the prediction for every sample, shape (n,)."""
        return self.predict_scores(params, X)

    @override
    def _recedes(self, entries: Tensor) -> bool:
        return False
