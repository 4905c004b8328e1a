"""Minimization on many supports at once, with a lower bound on each minimum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.certificates.flat import FlatObjective, moduli
from ellzero.core.problem import AbstractConvexObjective, AbstractLinearObjective
from ellzero.tensors import named
from ellzero.typing import Params

# Above this many entries the dense minimizer is not computed.
DENSE_ENTRIES = 2000


@dataclass(frozen=True, slots=True)
class Minima:
    """Minima on supports, a row for each.

    Parameters
    ----------
    points : Tensor of shape (K, n)
        The points found.
    value : Tensor of shape (K,)
        Their values: upper bounds on the minima.
    lower : Tensor of shape (K,)
        Lower bounds on the minima, proven when the objective is strongly convex; otherwise the
        value less the decrease that the Newton model still predicts.
    """

    points: Tensor
    value: Tensor
    lower: Tensor


def minimize_on_supports(
    flat: FlatObjective,
    index: Tensor,
    start: Tensor,
    *,
    threshold: float | None = None,
    max_iter: int = 100,
) -> Minima:
    """Minimize a smooth convex objective on given supports.

    Parameters
    ----------
    flat : FlatObjective
        The objective.
    index : Tensor of shape (K, k), int64
        Support of every row, without repetition.
    start : Tensor of shape (K, n)
        Starts; entries outside the supports are ignored.
    threshold : float or None, default=None
        A row stops early once its minimum is known to lie above or below; None means never.
    max_iter : int, default=100
        Largest number of damped Newton steps.

    Returns
    -------
    Minima
        The minima.
    """
    inside = torch.zeros_like(start, dtype=torch.bool).scatter(1, index, True)
    points = torch.where(inside, start, torch.zeros_like(start))
    modulus = moduli(flat)[-1]
    strong = named.all_true(modulus > 0)
    safe = torch.where(modulus > 0, modulus, torch.ones_like(modulus))
    out_value = torch.full_like(start[:, 0], torch.nan)
    out_lower = torch.full_like(out_value, -torch.inf)
    out = points.clone()
    active = torch.arange(index.shape[0], device=start.device)
    for iteration in range(max_iter + 1):
        if active.numel() == 0:
            break
        here, where = out[active], index[active]
        value, grad = flat.value_and_grad(here)
        slope = grad.gather(1, where)
        direction, decrement = _direction(flat, here, where, slope)
        if strong:
            lower = value - (slope.square() / (2 * safe[where])).sum(1)
        else:
            lower = value - 2 * decrement
        out_value[active] = value
        out_lower[active] = torch.maximum(out_lower[active], lower)
        done = decrement <= 1e-17 * value.abs()
        if threshold is not None:
            done = done | (lower >= threshold) | (value < threshold)
        if iteration == max_iter:
            break
        trial, moved = _line_search(flat, here, where, direction, value, decrement)
        out[active] = torch.where((done | ~moved).unsqueeze(1), here, trial)
        active = active[~done & moved]
    return Minima(out, out_value, out_lower)


def dense_minimizer(flat: FlatObjective) -> Params | None:
    """Return the unconstrained minimizer of a convex objective.

    None when there is none, when the objective is not known to be convex, or when it has more than
    `DENSE_ENTRIES` entries.
    """
    objective = flat.objective
    if not isinstance(objective, AbstractConvexObjective) or flat.size > DENSE_ENTRIES:
        return None
    convex_enough = named.all_true(moduli(flat)[0] > 0)
    if not convex_enough and has_minimizer(flat, None) is False:
        return None
    index = torch.arange(flat.size, device=flat.device).unsqueeze(0)
    start = named.flatten(flat.template).unsqueeze(0)
    found = minimize_on_supports(flat, index, start)
    if not named.all_true(torch.isfinite(found.points)):
        return None
    return named.row(flat.unflatten(found.points), 0)


def has_minimizer(flat: FlatObjective, inside: Tensor | None) -> bool | None:
    """Return whether the objective attains its infimum on a support; None when unknown.

    `inside` has shape (n,) and dtype bool; None means every entry.
    """
    objective = flat.objective
    if not isinstance(objective, AbstractConvexObjective):
        return None
    if named.all_true(moduli(flat)[0] > 0):
        return True
    if not isinstance(objective, AbstractLinearObjective):
        return None
    if inside is None:
        inside = torch.ones(flat.size, dtype=torch.bool, device=flat.device)
    return objective.has_minimizer_on(named.unflatten(inside, flat.template))


def _direction(
    flat: FlatObjective, points: Tensor, index: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the Newton direction on the supports and half the squared decrement."""
    if index.shape[1] == 0:
        return slope, slope.new_zeros(slope.shape[0])
    hessian = flat.hessian_on(points, index)
    level = hessian.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-300)
    identity = torch.eye(index.shape[1], dtype=slope.dtype, device=slope.device)
    # A flat direction gets a curvature far below the others, so that the system has a solution.
    factor, info = torch.linalg.cholesky_ex(hessian + 1e-14 * level.reshape(-1, 1, 1) * identity)
    for lift in (1e-10, 1e-6, 1.0):
        if not named.any_true(info != 0):
            break
        bad = (info != 0).reshape(-1, 1, 1)
        again, info_again = torch.linalg.cholesky_ex(
            hessian + lift * level.reshape(-1, 1, 1) * identity
        )
        factor = torch.where(bad, again, factor)
        info = torch.where(info != 0, info_again, info)
    direction = -torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    return direction, -(slope * direction).sum(1) / 2


def _line_search(
    flat: FlatObjective,
    points: Tensor,
    index: Tensor,
    direction: Tensor,
    value: Tensor,
    decrement: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the points after the longest of the lengths 1, 1/2, 1/4, ... that is good enough."""
    move = torch.zeros_like(points).scatter(1, index, direction)
    out = points
    waiting = torch.ones_like(value, dtype=torch.bool)
    length = 1.0
    for _ in range(40):
        trial = points + length * move
        after = flat.value(trial)
        good = after <= value - 2e-4 * length * decrement + 1e-15 * value.abs()
        take = waiting & good
        out = torch.where(take.unsqueeze(1), trial, out)
        waiting = waiting & ~good
        if not named.any_true(waiting):
            break
        length /= 2
    return out, ~waiting
