"""Logistic loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_length, keep_weighted, to_matrix
from ellzero.objectives.labels import find_classes, separates
from ellzero.objectives.linear import AbstractBoundedLinearLoss
from ellzero.typing import Params


@final
class Logistic(AbstractBoundedLinearLoss):
    r"""Logistic loss for two classes.

    .. math:: f(\theta) = \frac1N \sum_i w_i \log(1 + e^{-y_i x_i^T \theta})
        + \tfrac{\lambda}{2} \|\theta\|^2

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Labels with exactly two values; the larger is the positive class, y_i = +1.
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
        If shapes do not fit, a number is not finite, or there are not exactly two classes.

    Notes
    -----
    The parameter tensors are ``coef`` of shape (n_features,) and perhaps ``intercept`` of shape
    (). Without ridge there is no minimizer when the classes are separable (`has_minimizer_on`).

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Logistic(torch.eye(2), torch.tensor([0, 1]))
    >>> round(f.value(f.init_params()).item(), 4)
    0.6931
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        ridge: float | Mapping[str, float] = 0.0,
        fit_intercept: bool = False,
        sample_weight: Tensor | None = None,
    ) -> None:
        X = to_matrix("X", X)
        X, y, share = keep_weighted(X, check_length(y, X.shape[0]), sample_weight)
        self.classes, codes = find_classes(y, X.shape[0])
        if self.classes.shape[0] != 2:
            raise InvalidParameterError(
                f"`y` must have exactly two classes, got {self.classes.shape[0]}.",
                "Use `Softmax` for more classes.",
            )
        self._sign = (2 * codes - 1).to(X).unsqueeze(-1)
        self._set_up(X, share, 1, True, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        return self._mean(torch.nn.functional.softplus(-self._sign * u, threshold=60.0))

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return self._weighted(-self._sign * torch.sigmoid(-self._sign * u))

    def _variance(self, u: Tensor) -> Tensor:
        return self._weighted(torch.sigmoid(u) * torch.sigmoid(-u))

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return self._variance(u) * v

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._variance(u), None

    @override
    def _output_bound(self) -> Tensor:
        return torch.full((1, 1), 0.25, dtype=torch.float64, device=self._X.device)

    @override
    def _bound_is_attained(self) -> bool:
        return True

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        q = -self._sign * self._over_shares(dual)
        # The product of a quotient may miss the ends by an ulp.
        slack = 8 * torch.finfo(q.dtype).eps
        inside = ((q >= -slack) & (q <= 1 + slack)).all(-1).all(-1)
        q = q.clamp(0, 1)
        entropy = torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)
        value = self._mean(entropy)
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the label of every sample, shape (n,)."""
        return self.classes[(self.predict_scores(params, X) > 0).to(torch.int64)]

    @override
    def _recedes(self, entries: Tensor) -> bool:
        _, column = self._entries(entries)
        return separates(self._gather_columns(column, torch.float64).T * self._sign)
