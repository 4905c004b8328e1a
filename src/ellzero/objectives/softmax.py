"""Softmax cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.objectives.inputs import check_length, keep_weighted, to_matrix
from ellzero.objectives.labels import find_classes, separates
from ellzero.objectives.linear import AbstractBoundedLinearLoss
from ellzero.typing import Params


@final
class Softmax(AbstractBoundedLinearLoss):
    r"""Mean cross-entropy of a linear softmax model.

    .. math:: f(\theta) = -\frac1N \sum_i w_i \log p_{i, y_i} + \tfrac{\lambda}{2} \|\theta\|^2,
        \quad p_i = \mathrm{softmax}(\theta x_i)

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Labels; their sorted values are the classes.
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
        If shapes do not fit, a number is not finite, or there is only one class.

    Notes
    -----
    The parameter tensors are ``coef`` of shape (n_classes, n_features) and perhaps ``intercept``
    of shape (n_classes,). The curvature is bounded by (1/2)(I - 11^T/C) (x) X^T W X/N [1]_.
    Without ridge there is no minimizer when the classes are separable (`has_minimizer_on`).

    References
    ----------
    .. [1] D. Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math., 1992.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Softmax(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> round(f.value(f.init_params()).item(), 4)
    1.0986
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
        self.classes, self._codes = find_classes(y, X.shape[0])
        n_classes = int(self.classes.shape[0])
        hot = torch.nn.functional.one_hot(self._codes, n_classes).to(X)
        self._hot = hot.T.contiguous().T
        self._set_up(X, share, n_classes, False, fit_intercept, ridge)

    # The few classes are reduced along the first of the two axes in memory: a softmax along a
    # last axis of length 3 is seven times slower.

    @override
    def _loss(self, u: Tensor) -> Tensor:
        logs = torch.log_softmax(u.transpose(-1, -2), -2)
        return -self._mean((logs * self._hot.T).transpose(-1, -2))

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        p = torch.softmax(u.transpose(-1, -2), -2).transpose(-1, -2)
        return self._weighted(p - self._hot)

    @override
    def _value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        # One pass over the logits for both, instead of one for each.
        u = self._predictor(params)
        logs = torch.log_softmax(u.transpose(-1, -2), -2)
        value = -self._mean((logs * self._hot.T).transpose(-1, -2)) + self._ridge_value(params)
        dual = self._weighted(logs.exp_().sub_(self._hot.T).transpose(-1, -2))
        return value, self._add_ridge(self._transpose(dual, params), params)

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        p = torch.softmax(u.transpose(-1, -2), -2).transpose(-1, -2)
        return self._weighted(p * (v - (p * v).sum(-1, keepdim=True)))

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        p = torch.softmax(u, -1)
        if self._share is None:
            return p / self.n_samples, p / math.sqrt(self.n_samples)
        return self._weighted(p), p * self._share.sqrt().to(p.dtype)

    @override
    def _output_bound(self) -> Tensor:
        c = self._n_outputs
        return (torch.eye(c, dtype=torch.float64, device=self._X.device) - 1.0 / c) / 2

    @override
    def _bound_is_attained(self) -> bool:
        return False

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        p = self._over_shares(dual) + self._hot
        slack = 1e3 * torch.finfo(p.dtype).eps
        inside = (p >= -slack).all(-1).all(-1) & ((p.sum(-1) - 1).abs() <= slack).all(-1)
        p = p.clamp_min(0)
        value = self._mean(torch.special.xlogy(p, p))
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the label of every sample, shape (n,)."""
        return self.classes[self.predict_scores(params, X).argmax(-1)]

    @override
    def _recedes(self, entries: Tensor) -> bool:
        output, column = self._entries(entries)
        X = self._gather_columns(column, torch.float64).T
        own = (self._codes.unsqueeze(1) == output).to(X.dtype)
        rows = []
        for c in range(self._n_outputs):
            margin = X * (own - (output == c).to(X.dtype))
            rows.append(margin[self._codes != c])
        return separates(torch.cat(rows))
