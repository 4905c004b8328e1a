"""Minima of a quadratic objective after every exchange of one support entry, from k products."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from ellzero.certificates.flat import FlatObjective
from ellzero.certificates.relaxation import to_array
from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.tensors import named

# Curvature left of an entry, relative to its own, up to which the support spans it.
SPANNED = 1e-11
# Pivot of a support of unit columns below which its entries are taken one by one.
THIN = 1e-4
# Added to the diagonal of unit columns that are dependent.
JITTER = 1e-12

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Products:
    r"""A quadratic seen from the minimizer on a support, by inner products alone.

    With L the Cholesky factor of the matrix on the support, column j has
    :math:`s_j = L^{-1} H_{Sj}` along the support and :math:`d_j = H_{jj} - \|s_j\|^2` beside it.
    When the columns R of the support leave, with Q an orthonormal basis of the columns R of
    :math:`L^{-1}`, column j gains :math:`f_j = Q^T s_j`, the quadratic rises by
    :math:`\|Q^T L^T \beta\|^2`, and j lowers it by

    .. math:: \|c_j + f_j^T Q^T L^T \beta\|^2 / (d_j + \|f_j\|^2)

    with c the products with the residual; a group of columns by the same with matrices.

    Parameters
    ----------
    block : ndarray of shape (k, k)
        The matrix on the support.
    cross : ndarray of shape (p, k)
        Its rows: products of every column with the support.
    slope : ndarray of shape (p, m)
        Minus half of the gradient at the minimizer.
    beta : ndarray of shape (k, m)
        The minimizer.
    diagonal : ndarray of shape (p,)
        The matrix's diagonal.
    lower, upper : ndarray of shape (p,) or None, default=None
        Bounds on the coefficient of a column that enters; for one target.
    spanned : float, default=1e-11
        Share of a column beside the support up to which it adds nothing.

    Notes
    -----
    Costs p k^2 operations, and p for every exchange of a leaving column.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.certificates.exchanges import Products
    >>> H, c = np.eye(3), np.array([[3.0], [1.0], [2.0]])
    >>> at = Products(H[:1, :1], H[:, :1], np.array([[0.0], [1.0], [2.0]]), c[:1], np.ones(3))
    >>> at.exchanges([0], np.array([False, True, True])).tolist()
    [-inf, -8.0, -5.0]
    """

    def __init__(
        self,
        block: Floats,
        cross: Floats,
        slope: Floats,
        beta: Floats,
        diagonal: Floats,
        *,
        lower: Floats | None = None,
        upper: Floats | None = None,
        spanned: float = SPANNED,
    ) -> None:
        scale = np.sqrt(np.maximum(block.diagonal(), np.finfo(np.float64).tiny))
        unit = block / scale / scale[:, None]
        try:
            factor = np.linalg.cholesky(unit)
        except np.linalg.LinAlgError:
            factor = np.linalg.cholesky(unit + JITTER * np.eye(len(scale)))
        solve: Any = linalg.solve_triangular
        self._spent = np.zeros((0, cross.shape[0]))
        if scale.size:
            self._spent = solve(factor, (cross / scale).T, lower=True, check_finite=False)
        self._inverse = np.zeros((0, 0))
        if scale.size:
            self._inverse = solve(factor, np.eye(scale.size), lower=True, check_finite=False)
        self._moment = factor.T @ (beta * scale[:, None])
        self._slope, self._diagonal = slope, diagonal
        self._left = diagonal - np.square(self._spent).sum(axis=0)
        self._low, self._high, self._spanned = lower, upper, spanned

    def additions(self, allowed: Bools) -> Floats:
        """Return what every column takes off the quadratic, (p,); minus infinity where barred."""
        gain = self._gain(self._slope, self._left)
        return np.where(allowed, gain, -np.inf)

    def exchanges(self, rows: Iterable[int], allowed: Bools) -> Floats:
        """Return what every column takes off when columns of the support leave, (p,)."""
        lent, freed = self._leave(rows)
        slope = self._slope + freed.T @ lent
        gain = self._gain(slope, self._left + np.square(freed).sum(axis=0))
        return np.where(allowed, gain - float(np.square(lent).sum()), -np.inf)

    def group_additions(self, members: Integers, blocks: Floats) -> Floats:
        """Return what groups of one size take off: members (u, q), blocks (u, q, q)."""
        return self._group_gain(self._slope, np.zeros((0, self._slope.shape[0])), members, blocks)

    def group_exchanges(self, rows: Iterable[int], members: Integers, blocks: Floats) -> Floats:
        """Return what groups of one size take off when columns of the support leave."""
        lent, freed = self._leave(rows)
        gain = self._group_gain(self._slope + freed.T @ lent, freed, members, blocks)
        return gain - float(np.square(lent).sum())

    def _leave(self, rows: Iterable[int]) -> tuple[Floats, Floats]:
        """Return what columns that leave have lent, (r, m), and what they free, (r, p)."""
        basis = np.linalg.qr(self._inverse[:, list(rows)])[0]
        return basis.T @ self._moment, basis.T @ self._spent

    def _gain(self, slope: Floats, left: Floats) -> Floats:
        usable = left > self._spanned * self._diagonal
        safe = np.where(usable, left, 1.0)
        if self._low is None and self._high is None:
            return np.where(usable, np.square(slope).sum(axis=1) / safe, 0.0)
        step = slope[:, 0] / safe
        if self._low is not None:
            step = np.maximum(step, self._low)
        if self._high is not None:
            step = np.minimum(step, self._high)
        return np.where(usable, step * (2 * slope[:, 0] - safe * step), 0.0)

    def _group_gain(
        self, slope: Floats, freed: Floats, members: Integers, blocks: Floats
    ) -> Floats:
        spent, free = self._spent[:, members], freed[:, members]
        left = blocks - np.einsum("kua,kub->uab", spent, spent)
        left += np.einsum("kua,kub->uab", free, free)
        scale = np.sqrt(np.maximum(np.diagonal(blocks, axis1=1, axis2=2), 1e-300))
        values, vectors = np.linalg.eigh(left / scale[:, :, None] / scale[:, None, :])
        good = values > self._spanned
        turned = np.einsum("uab,uam->ubm", vectors, slope[members] / scale[:, :, None])
        share = np.square(turned).sum(axis=2) / np.where(good, values, 1.0)
        return np.asarray(np.where(good, share, 0.0).sum(axis=1))


@dataclass(frozen=True, slots=True)
class BestExchange:
    """The best exchange, or addition, of all.

    Parameters
    ----------
    value : float
        The minimum after it.
    row : int
        Place in the support of the entry that leaves; 0 for an addition.
    column : int
        Place outside of the entry that enters.
    """

    value: float
    row: int
    column: int


def best_exchange(
    flat: FlatObjective, theta: Tensor, inside: Tensor, free: Tensor, outside: Tensor, short: bool
) -> BestExchange:
    r"""Return the exchange of one entry, everything refitted, with the least value.

    With the minimizer :math:`\beta` on the support, its value v and gradient g, B the inverse of
    the Hessian on the support and H its rows, dropping i and adding j gives

    .. math:: v + \frac{\beta_i^2}{2 B_{ii}} - \frac{(g_j - \beta_i (H B)_{ji} / B_{ii})^2}
        {2 (d_j + (H B)_{ji}^2 / B_{ii})}

    where d is what the support leaves of the curvature of j.

    Parameters
    ----------
    flat : FlatObjective
        A quadratic objective.
    theta : Tensor of shape (n,)
        A point on the support.
    inside, free, outside : Tensor of int64
        Entries of the support that may leave, that must stay, and that may enter.
    short : bool
        Whether an entry enters without another one leaving.

    Returns
    -------
    BestExchange
        The best one.

    Notes
    -----
    Costs the products of the k columns of the support with all others, O(n_samples n k) for a
    linear predictor, and k^2 n operations more; no matrix of n by n is formed. A support of
    dependent entries takes k^3 n operations.
    """
    objective = flat.objective
    assert isinstance(objective, AbstractQuadraticObjective)
    base = torch.cat([inside, free])
    rows = objective.curvature_rows(base).to(theta)
    diagonal = objective.curvature_diagonal().to(theta)[outside]
    block = rows[:, base]
    scale = block.diagonal().clamp_min(0.0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    unit = block / scale.unsqueeze(1) / scale
    factor, info = torch.linalg.cholesky_ex(unit)
    thin = named.any_true(info != 0) or named.any_true(factor.diagonal() < THIN)
    rows = rows / scale.unsqueeze(1)
    if thin:
        return _one_by_one(flat, theta, unit, scale, rows, base, inside, outside, diagonal, short)
    beta, value, grad = _refit(flat, theta, base, factor, scale)
    slope = grad[outside]
    products = Products(
        to_array(block), to_array(rows[:, outside] * scale.unsqueeze(1)).T,
        -to_array(slope)[:, None], to_array(beta)[:, None], to_array(diagonal),
    )  # fmt: skip
    known, everything = named.to_float(value), np.ones(outside.shape[0], dtype=bool)
    if short:
        gains = products.additions(everything)
        column = int(gains.argmax())
        return BestExchange(known - float(gains[column]) / 2, 0, column)
    best = BestExchange(float("inf"), 0, 0)
    for row in range(inside.shape[0]):
        gains = products.exchanges([row], everything)
        column = int(gains.argmax())
        found = BestExchange(known - float(gains[column]) / 2, row, column)
        best = min(best, found, key=lambda exchange: exchange.value)
    return best


def _least(
    value: Tensor, slope: Tensor, left: Tensor, diagonal: Tensor, first: int
) -> BestExchange:
    """Return the least value after an entry has entered, over rows and columns."""
    # An entry that the support spans has no curvature left, and no gradient either.
    usable = left > SPANNED * diagonal
    drop = torch.where(usable, slope.square() / (2 * left.clamp_min(1e-300)), 0.0)
    minima = value.reshape(-1, 1) - drop
    place = named.to_int(minima.flatten().argmin())
    row, column = divmod(place, minima.shape[1])
    return BestExchange(named.to_float(minima[row, column]), first + row, column)


def _refit(
    flat: FlatObjective, theta: Tensor, base: Tensor, factor: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the minimizer on the support, its value and its gradient."""
    point = torch.zeros_like(theta)
    point[base] = theta[base]
    for _ in range(2):
        # The first step solves, the second refines.
        _, grad = flat.value_and_grad(point.unsqueeze(0))
        step = torch.cholesky_solve((grad[0, base] / scale).unsqueeze(1), factor).squeeze(1)
        point[base] -= step / scale
    value, grad = flat.value_and_grad(point.unsqueeze(0))
    return point[base], value[0], grad[0]


def _one_by_one(
    flat: FlatObjective,
    theta: Tensor,
    unit: Tensor,
    scale: Tensor,
    rows: Tensor,
    base: Tensor,
    inside: Tensor,
    outside: Tensor,
    diagonal: Tensor,
    short: bool,
) -> BestExchange:
    """Return the best exchange on a support with dependent entries."""
    point = torch.zeros_like(theta)
    point[base] = theta[base]
    value, grad = flat.value_and_grad(point.unsqueeze(0))
    here = point[base] * scale
    best = BestExchange(float("inf"), 0, 0)
    for row in range(1 if short else inside.shape[0]):
        stays = torch.ones_like(base, dtype=torch.bool)
        target = torch.zeros_like(here)
        if not short:
            stays[row] = False
            target[row] = -here[row]
        # To the minimizer without the entry, as a move inside of the support.
        slope = grad[0, base] / scale + unit @ target
        inverse = torch.linalg.pinv(unit[stays][:, stays], hermitian=True, rtol=1e-12)
        move = target.clone()
        move[stays] -= inverse @ slope[stays]
        after = value[0] + (grad[0, base] / scale) @ move + (move @ (unit @ move)) / 2
        slopes = grad[0, outside] + move @ rows[:, outside]
        cross = rows[stays][:, outside]
        left = diagonal - (cross * (inverse @ cross)).sum(0)
        found = _least(after, slopes.unsqueeze(0), left.unsqueeze(0), diagonal, row)
        best = min(best, found, key=lambda exchange: exchange.value)
    return best
