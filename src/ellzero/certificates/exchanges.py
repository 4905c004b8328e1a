"""Minima of a quadratic objective after every exchange of one support entry, from k products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.certificates.flat import CHUNK, FlatObjective
from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.tensors import named

# Curvature left of an entry, relative to its own, up to which the support spans it.
SPANNED = 1e-11
# Pivot of a support of unit columns below which its entries are taken one by one.
THIN = 1e-4


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
    spent = torch.linalg.solve_triangular(factor, rows[:, outside], upper=False)
    left = diagonal - spent.square().sum(0)
    if short:
        return _least(value, slope.unsqueeze(0), left.unsqueeze(0), diagonal, 0)
    identity = torch.eye(base.shape[0], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)[:, : inside.shape[0]]
    length = inverse.norm(dim=0)
    lent = beta[: inside.shape[0]] * scale[: inside.shape[0]] / length
    best = BestExchange(float("inf"), 0, 0)
    step = max(1, CHUNK // (4 * max(1, outside.shape[0])))
    for start in range(0, inside.shape[0], step):
        part = slice(start, start + step)
        freed = (inverse[:, part] / length[part]).T @ spent
        slopes = slope - lent[part].unsqueeze(1) * freed
        base_values = value + lent[part].square() / 2
        found = _least(base_values, slopes, left + freed.square(), diagonal, start)
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
