"""Poisson loss with a logarithmic link."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_length, keep_weighted, to_matrix
from ellzero.objectives.labels import separates
from ellzero.objectives.linear import AbstractLinearLoss
from ellzero.tensors import named
from ellzero.typing import Params


@final
class Poisson(AbstractLinearLoss):
    r"""Half the mean deviance of counts whose mean is the exponential of a linear predictor.

    .. math:: f(\theta) = \frac1N \sum_i w_i \left( e^{u_i} - y_i u_i - y_i + y_i \log y_i \right)
        + \tfrac{\lambda}{2} \|\theta\|^2, \quad u_i = x_i^T \theta

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Counts, or other numbers that are not negative.
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
        If shapes do not fit, a number is not finite, a count is negative, or all are zero.

    Notes
    -----
    The value is the negative log-likelihood per sample less its minimum over u, so that it is 0
    for a perfect fit. The curvature grows without bound, so there is no `smoothness` constant:
    solvers with a fixed step refuse this loss. On a level set there is one, see
    `smoothness_below`. Without ridge there is no minimizer when zero counts can be told from the
    others (`has_minimizer_on`).

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Poisson(torch.eye(2), torch.tensor([1.0, 3.0]))
    >>> round(f.value(f.init_params()).item(), 4)  # (3 log 3 - 2) / 2
    0.6479
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
        y = check_length(y, X.shape[0]).to(X)
        if y.ndim != 1:
            raise InvalidParameterError(
                f"`y` must have one count for each sample, got shape {tuple(y.shape)}."
            )
        if not named.all_true(torch.isfinite(y)):
            raise InvalidParameterError(
                "`y` must be finite, got NaN or infinity.", "Drop these samples first."
            )
        if named.any_true(y < 0):
            raise InvalidParameterError(
                f"`y` must hold counts, got {named.to_float(y.min()):g}.",
                "Use `LeastSquares` or `Huber` for numbers that can be negative.",
            )
        X, y, share = keep_weighted(X, y, sample_weight)
        if not named.any_true(y > 0):
            raise InvalidParameterError(
                "`y` must hold a positive count, got zeros only.",
                "Check the counts; a constant target needs no model.",
            )
        self._y = y.unsqueeze(-1)
        self._set_up(X, share, 1, True, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        positive = self._y > 0
        y = torch.where(positive, self._y, torch.ones_like(self._y))
        d = u - y.log()
        # Near the minimum over u the terms of the formula would cancel.
        terms = torch.where(positive, y * (torch.expm1(d) - d), torch.exp(u))
        return self._mean(terms)

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return self._weighted(torch.exp(u) - self._y)

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return self._weighted(torch.exp(u)) * v

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._weighted(torch.exp(u)), None

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        rate = self._over_shares(dual) + self._y
        # The sum of a difference may miss zero by the rounding of the count.
        slack = 8 * torch.finfo(rate.dtype).eps * (1 + self._y)
        inside = (rate >= -slack).all(-1).all(-1)
        rate = rate.clamp_min(0)
        terms = torch.special.xlogy(rate, rate) - rate
        terms = terms - torch.special.xlogy(self._y, self._y) + self._y
        value = self._mean(terms)
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the mean count of every sample, shape (n,)."""
        return torch.exp(self.predict_scores(params, X))

    def smoothness_below(self, value: float) -> float:
        """Return an upper bound on the curvature over all points of at most this value.

        Parameters
        ----------
        value : float
            Level of the objective.

        Returns
        -------
        float
            Largest possible eigenvalue of a Hessian on the level set; 0.0 when it is empty.

        Notes
        -----
        No sample can contribute more to the value than the value itself, which bounds its rate.
        """
        if value < 0:
            return 0.0
        y = self._y.double()
        share = self._weighted(torch.ones_like(y))
        # rate - y log(rate) - y + y log(y) <= level has its largest solution below the start,
        # and Newton steps from above stay above it: the left side is convex.
        level = value / share
        rate = y + level + (2 * y * level).sqrt() + 1e-300
        for _ in range(50):
            excess = rate - y - torch.special.xlogy(y, rate / y.clamp_min(1e-300)) - level
            slope = 1 - y / rate
            step = torch.where(slope > 0, excess / slope.clamp_min(1e-300), 0.0).clamp_min(0)
            rate = rate - step
        return named.to_float(rate.max()) * self._largest_eigenvalue() * (1 + 1e-9) + max(
            self._ridge.values()
        )

    @override
    def _recedes(self, entries: Tensor) -> bool:
        _, column = self._entries(entries)
        X = self._gather_columns(column, torch.float64).T
        zero = (self._y == 0).squeeze(1)
        # Scores of zero counts may fall for ever where those of the others stay.
        return separates(torch.cat([-X[zero], X[~zero], -X[~zero]]))
