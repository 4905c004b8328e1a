"""Exchanges of one support entry: bounds first, exact minima for what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.certificates.exchanges import best_exchange
from ellzero.certificates.flat import ROUNDING, FlatObjective, moduli
from ellzero.certificates.minimize import minimize_on_supports
from ellzero.certificates.relaxation import decrement_on
from ellzero.core.problem import AbstractQuadraticObjective, AbstractSmoothObjective
from ellzero.errors import IncompatibleError
from ellzero.sets import L0Ball
from ellzero.tensors import named, supports
from ellzero.typing import Params

# Beyond this many restricted minimizations the check is left out unless it is asked for.
SOLVE_LIMIT = 20_000
# Rows solved together; the next ones are not needed once an improvement has been found.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class SwapCheck:
    """What the exchanges of one support entry show.

    Parameters
    ----------
    n_checked : int
        Exchanges (additions, when the support is smaller than the budget) looked at.
    n_solved : int
        Those that needed a minimization; the others were excluded by a bound or solved in closed
        form.
    best_decrease : float
        Largest possible decrease of the value; where `is_complete` is False, one that was found.
    best_swap : tuple of (int or None, int) or None
        Flattened entries that leave and enter for it; None when there is no exchange.
    is_complete : bool
        Whether every exchange was treated.
    reason : str or None
        Why the check was left out.
    """

    n_checked: int
    n_solved: int
    best_decrease: float
    best_swap: tuple[int | None, int] | None
    is_complete: bool
    reason: str | None = None


def check_swaps(
    objective: AbstractSmoothObjective,
    constraint: L0Ball,
    params: Params,
    *,
    tol: float = 1e-6,
    limit: int | None = SOLVE_LIMIT,
) -> SwapCheck:
    r"""Look for an exchange of one support entry that lowers the value.

    For every i in the support and j outside, the minimum over the support without i and with j is
    compared with the value. From the minimizer without i, of value v and gradient g,

    .. math:: v - \frac{g_j^2}{2 m_j} \le \min \le v - \frac{g_j^2}{2 L_{jj}}

    so most pairs need no minimization; for quadratic objectives all minima are known in closed
    form (`ellzero.certificates.exchanges`).

    Parameters
    ----------
    objective : AbstractSmoothObjective
        Smooth convex objective.
    constraint : L0Ball
        Budget, without bounds on entries.
    params : mapping of str to Tensor
        A point within the budget.
    tol : float, default=1e-6
        Decrease that does not count, relative to the magnitude of the value.
    limit : int or None, default=20000
        Most minimizations; None means no limit.

    Returns
    -------
    SwapCheck
        The largest decrease and what it took to know it.

    Raises
    ------
    IncompatibleError
        If the objective is not smooth and convex, or the set is not an `L0Ball` without bounds.

    Notes
    -----
    For quadratic objectives costs the products of the s columns of the support with all others,
    and s^2 n operations more, in float64 and in chunks. For others s minimizations with s - 1
    entries, then at most s (n - s) with s entries, in batches; ends at the first batch with an
    improvement.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import check_swaps
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> point = {"coef": torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)}
    >>> check_swaps(objective, ellzero.L0Ball(2), point).best_swap
    (1, 2)
    """
    if not isinstance(objective, AbstractSmoothObjective):
        raise IncompatibleError(
            "Exchanges are checked for convex objectives with bounded curvature, "
            f"got `{type(objective).__name__}`."
        )
    if (
        not isinstance(constraint, L0Ball)
        or constraint.lower is not None
        or constraint.upper is not None
    ):
        raise IncompatibleError(
            f"Exchanges are checked for an `L0Ball` without bounds, got {constraint!r}."
        )
    flat = FlatObjective.of(objective)
    theta = flat.flatten(params)[0]
    counted = supports.covered(constraint.names, flat.template)
    inside = ((theta != 0) & counted).nonzero().flatten()
    outside = ((theta == 0) & counted).nonzero().flatten()
    free = (~counted).nonzero().flatten()
    short = inside.shape[0] < constraint.n_nonzero
    n_pairs = outside.shape[0] * (1 if short else inside.shape[0])
    if n_pairs == 0:
        return SwapCheck(0, 0, 0.0, None, True)
    value = named.to_float(flat.value(theta.unsqueeze(0))[0])
    floor = ROUNDING * abs(flat.value_at_zero())
    threshold = value - max(tol * abs(value), floor)
    if isinstance(objective, AbstractQuadraticObjective):
        best = best_exchange(flat, theta, inside, free, outside, short)
        leaving = None if short else named.to_int(inside[best.row])
        exchange = leaving, named.to_int(outside[best.column])
        return SwapCheck(n_pairs, 0, value - best.value, exchange, True)
    bases = _bases(inside, free, short)
    found = minimize_on_supports(flat, bases, theta.expand(bases.shape[0], -1))
    base_value, grad = flat.value_and_grad(found.points)
    slope = grad[:, outside]
    lower, upper = _pair_bounds(
        flat, objective, found.points, bases, free, outside, base_value, slope
    )
    open_pairs = (lower < threshold) & (upper > lower)
    n_open = named.to_int(open_pairs.sum())

    def swap(row: int, column: int) -> tuple[int | None, int]:
        leaving = None if short else named.to_int(inside[row])
        return leaving, named.to_int(outside[column])

    place = named.to_int(upper.flatten().argmin())
    row, column = divmod(place, outside.shape[0])
    improvement = value - named.to_float(upper[row, column])
    if n_open and value - improvement < threshold:
        # An improvement is certain without solving anything.
        return SwapCheck(n_pairs, 0, improvement, swap(row, column), False)
    if limit is not None and n_open > limit:
        reason = f"{n_open} of {n_pairs} exchanges need a minimization, above the limit of {limit}"
        return SwapCheck(n_pairs, 0, float("nan"), None, False, reason)
    solved, n_solved = _solve_pairs(
        flat, found.points, bases, outside, open_pairs, upper, threshold, lower
    )
    place = named.to_int(solved.flatten().argmin())
    row, column = divmod(place, outside.shape[0])
    return SwapCheck(
        n_pairs,
        n_solved,
        value - named.to_float(solved[row, column]),
        swap(row, column),
        n_solved == n_open,
    )


def _bases(inside: Tensor, free: Tensor, short: bool) -> Tensor:
    """Return the supports that a new entry joins, a row for each: shape (rows, k)."""
    if short:
        return torch.cat([inside, free]).unsqueeze(0)
    count = inside.shape[0]
    stays = ~torch.eye(count, dtype=torch.bool, device=inside.device)
    rest = inside.expand(count, -1)[stays].reshape(count, count - 1)
    return torch.cat([rest, free.expand(count, -1)], dim=1)


def _pair_bounds(
    flat: FlatObjective,
    objective: AbstractSmoothObjective,
    points: Tensor,
    bases: Tensor,
    free: Tensor,
    outside: Tensor,
    value: Tensor,
    slope: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds on the minimum of every pair; equal where it is known."""
    modulus = moduli(flat)[-1]
    safe = torch.where(modulus > 0, modulus, torch.ones_like(modulus))
    _, grad = flat.value_and_grad(points)
    # Free entries without modulus are at their minimizers, up to rounding.
    loose = free[modulus[free] <= 0]
    firm = modulus[bases] > 0
    rest = torch.where(firm, grad.gather(1, bases).square() / (2 * safe[bases]), 0.0).sum(1)
    terms = rest.unsqueeze(1) + slope.square() / (2 * safe[outside])
    lower = value.unsqueeze(1) - terms
    if loose.shape[0]:
        doubt = decrement_on(flat, points, grad, loose).unsqueeze(1)
        lower = lower - 4 * (doubt * (value.abs().unsqueeze(1) + terms)).sqrt()
    known = modulus[outside] > 0
    if not named.all_true(firm | torch.isin(bases, loose)):
        known = torch.zeros_like(known)
    lower = torch.where(known, lower, -torch.inf)
    bound = objective.curvature_diagonal().to(torch.float64)[outside]
    gain = torch.where(bound > 0, slope.square() / (2 * bound.clamp_min(1e-300)), 0.0)
    return lower, value.unsqueeze(1) - gain


def _solve_pairs(
    flat: FlatObjective,
    points: Tensor,
    bases: Tensor,
    outside: Tensor,
    open_pairs: Tensor,
    upper: Tensor,
    threshold: float,
    lower: Tensor,
) -> tuple[Tensor, int]:
    """Minimize on the open pairs, the most promising first; return minima and their number."""
    out = lower.clone()
    pairs = open_pairs.nonzero()
    pairs = pairs[upper[open_pairs].argsort()]
    done = 0
    for block in torch.split(pairs, BLOCK):
        rows, columns = block.unbind(1)
        index = torch.cat([bases[rows], outside[columns].unsqueeze(1)], dim=1)
        minima = minimize_on_supports(flat, index, points[rows], threshold=threshold)
        found = torch.where(minima.value < threshold, minima.value, minima.lower)
        out[rows, columns] = found
        done += block.shape[0]
        if named.any_true(found < threshold):
            # What has not been solved can be anything: only what was found is reported.
            rest = pairs[done:]
            out[rest[:, 0], rest[:, 1]] = torch.inf
            break
    return out, done
