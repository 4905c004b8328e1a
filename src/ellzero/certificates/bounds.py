"""Lower bounds on the optimum over sparse points, valid at every base point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ellzero.certificates.flat import FlatObjective, moduli
from ellzero.certificates.relaxation import decrement_on, settle, solve_working, to_array, working
from ellzero.core.problem import (
    AbstractConvexObjective,
    AbstractLinearObjective,
    AbstractObjective,
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractSparseSet,
)
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sets import L0Ball
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Params

# Up to this many entries the relaxation is solved by Newton steps, beyond by gradient steps.
NEWTON_ENTRIES = 500
# Entries that the relaxation of a quadratic objective starts with, at least.
FIRST_ENTRIES = 100
# Accuracy of a relaxation that misses more than half of the value.
VACUOUS = 0.05
# Cubes of entries, added up, that may be spent on one.
VACUOUS_WORK = 10**9
# Steps without progress after which the relaxation is given up.
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class LowerBound:
    """Proven lower bound on the optimum over a constraint.

    Parameters
    ----------
    value : float
        The bound; minus infinity when there is none.
    method : str
        Where the base point comes from.
    point : Tensor of shape (n,)
        The base point: `box_bound` there gives the bound again.
    """

    value: float
    method: str
    point: Tensor


def box_bound(
    objective: AbstractConvexObjective,
    points: Tensor,
    budget: int,
    included: Tensor | None = None,
    excluded: Tensor | None = None,
    *,
    counted: Tensor | None = None,
) -> Tensor:
    r"""Return a lower bound on the optimum over every box of supports, from a point for each.

    .. math:: \min_{\theta \in \mathrm{box}} \; f(\theta_0) + \langle g, \theta - \theta_0 \rangle
        + \tfrac12 \sum_j m_j (\theta_j - \theta_{0,j})^2

    Parameters
    ----------
    objective : AbstractConvexObjective
        Strongly convex objective.
    points : Tensor of shape (K, n)
        Base points, dense or sparse, in the order of `named.flatten`.
    budget : int
        Most nonzero entries among those that count.
    included, excluded : Tensor of shape (K, n), bool, or None, default=None
        Entries fixed inside and outside the support; None fixes nothing.
    counted : Tensor of shape (n,), bool, or None, default=None
        Entries that share the budget; the others are free. None means all.

    Returns
    -------
    Tensor of shape (K,)
        Lower bounds; minus infinity where the objective is not strongly convex.

    Notes
    -----
    Costs one gradient and one sort for each box. Holds at every base point; with m the ridge it
    is the dual bound -F*(a) - top_s((X^T a)^2) / (2 m) at a = grad F(X theta_0), with m the
    smallest curvature of a least squares loss it is the fast bound of [1]_. What rounding can do
    is subtracted.

    References
    ----------
    .. [1] J. Liu, S. Rosen, C. Zhong and C. Rudin, "OKRidge: scalable optimal k-sparse ridge
       regression", arXiv:2304.06686.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import box_bound
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> dense = torch.tensor([[3.0, 1.0, 2.0]], dtype=torch.float64)
    >>> round(float(box_bound(objective, dense, 2)), 6)  # 1^2 / (2 * 3)
    0.166667
    """
    flat = FlatObjective.of(objective)
    require_box_arguments(flat, points)
    points = points.to(next(iter(flat.template.values())))
    nothing = torch.zeros_like(points, dtype=torch.bool)
    included = nothing if included is None else included
    excluded = nothing if excluded is None else excluded
    must, choice, room = _boxes(flat, budget, included, excluded, counted)
    free = torch.zeros_like(nothing[0]) if counted is None else ~counted
    keep = partial(_keep_largest, must=must, choice=choice, room=room)
    return _best_over_moduli(flat, points, keep, free)


def point_bound(
    objective: AbstractConvexObjective, constraint: AbstractSparseSet | None, params: Params
) -> Tensor:
    """Return the lower bound over the whole constraint that each point gives.

    Parameters
    ----------
    objective : AbstractConvexObjective
        Strongly convex objective.
    constraint : AbstractSparseSet or None
        Set of allowed supports; None allows all. Bounds on entries are ignored, which keeps the
        bound valid.
    params : mapping of str to Tensor
        A base point, or a `Batch` of them.

    Returns
    -------
    Tensor of shape () or (size,)
        Lower bounds; minus infinity where the objective is not strongly convex.

    Notes
    -----
    Costs one gradient and one selection for each point.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import point_bound
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> point = {"coef": torch.tensor([3.0, 0.0, 2.0], dtype=torch.float64)}
    >>> round(float(point_bound(objective, ellzero.L0Ball(2), point)), 6)
    0.166667
    """
    flat = FlatObjective.of(objective)
    bounds = _point_bounds(flat, constraint, flat.flatten(params))
    return bounds if named.is_batch(params) else bounds[0]


def dual_bound(objective: AbstractLinearObjective, constraint: L0Ball, params: Params) -> Tensor:
    r"""Return the dual bound at the dual point of each point: a second way to the same number.

    .. math:: -F^*(a) - \sum_j \frac{(X^T a)_j^2}{2 \lambda_j}

    over the free entries j and the `n_nonzero` largest terms of the others, at
    :math:`a = \nabla F(X \theta)`.

    Parameters
    ----------
    objective : AbstractLinearObjective
        Loss of a linear predictor plus ridge.
    constraint : L0Ball
        Budget.
    params : mapping of str to Tensor
        A point, or a `Batch` of them.

    Returns
    -------
    Tensor of shape () or (size,)
        Lower bounds; minus infinity where an entry that matters has no ridge.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import dual_bound
    >>> X, y = torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]).double()
    >>> objective = ellzero.LeastSquares(X, y, ridge=1.0)
    >>> float(dual_bound(objective, ellzero.L0Ball(3), objective.init_params())) <= 14 / 6
    True
    """
    flat = FlatObjective.of(objective)
    points = flat.unflatten(flat.flatten(params))
    assert isinstance(flat.objective, AbstractLinearObjective)
    objective = flat.objective
    dual = objective.dual_point(points)
    adjoint = objective.adjoint(dual)
    slope = named.flatten(Batch({n: adjoint[n] for n in flat.template}))
    ridge = named.flatten(objective.ridge_weights())
    cost = torch.where(slope == 0, torch.zeros_like(slope), slope.square() / (2 * ridge))
    counted = supports.covered(constraint.names, flat.template)
    free = torch.where(counted, torch.zeros_like(cost), cost).sum(1)
    top = cost[:, counted].sort(1, descending=True).values[:, : constraint.n_nonzero].sum(1)
    out = -objective.conjugate(dual) - free - top
    return out if named.is_batch(params) else out[0]


def perspective_bound(
    objective: AbstractConvexObjective,
    constraint: L0Ball,
    start: Params | None = None,
    *,
    max_iter: int = 100,
    tol: float = 1e-7,
    target: float = float("-inf"),
) -> LowerBound:
    r"""Maximize the lower bound over its base point.

    The largest value is that of the perspective relaxation

    .. math:: \min_{\theta, z} \; h(\theta) + \tfrac12 \sum_j m_j \theta_j^2 / z_j
        \quad \text{with} \quad 0 \le z \le 1,\ \sum_j z_j \le s

    where h is the objective without its strongly convex part; it is solved by exact steps in z
    and Newton or accelerated gradient steps in theta, and every iterate gives a valid bound.

    Parameters
    ----------
    objective : AbstractConvexObjective
        Strongly convex objective.
    constraint : L0Ball
        Budget.
    start : mapping of str to Tensor or None, default=None
        First base point; None means zero.
    max_iter : int, default=100
        Largest number of steps.
    tol : float, default=1e-7
        Relative distance to the value of the relaxation at which to stop.
    target : float, default=-inf
        Bound that is hoped for: once it is out of reach, a distance of 1e-4 is enough.

    Returns
    -------
    LowerBound
        The best bound and its base point.

    Notes
    -----
    For quadratic objectives the relaxation is solved on a few entries, by
    proximal steps and exact solutions for the partition of z into ones, fractions and zeros, and
    entries that pull harder than the fractional ones are added until none is missing: a gradient
    and a system of the entries at hand for each solution. For others costs one Newton system of n
    entries a step for n up to 500, one gradient and one sort beyond. Even the largest bound can be
    below the optimum: branching closes what is left.

    References
    ----------
    .. [1] W. Xie and X. Deng, "Scalable algorithms for the sparse ridge regression",
       arXiv:1806.03756.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import perspective_bound
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> bound = perspective_bound(objective, ellzero.L0Ball(2))
    >>> round(bound.value, 6)
    0.166667
    """
    flat = FlatObjective.of(objective)
    counted = supports.covered(constraint.names, flat.template)
    origin = named.flatten(flat.template).unsqueeze(0)
    theta = origin if start is None else flat.flatten(start)[:1]
    best = LowerBound(float("-inf"), "perspective relaxation", theta[0])
    for modulus in moduli(flat):
        if named.any_true(modulus[counted] <= 0):
            continue
        quadratic = isinstance(flat.objective, AbstractQuadraticObjective)
        relax = _relax_few if quadratic and constraint.n_nonzero else _relax
        found = relax(flat, modulus, counted, constraint.n_nonzero, theta, max_iter, tol, target)
        best = max(best, found, key=lambda bound: bound.value)
    return best


def lower_bound(
    objective: AbstractObjective,
    constraint: AbstractSparseSet | None,
    candidates: dict[str, Params],
    *,
    tol: float = 1e-7,
    target: float = float("inf"),
) -> LowerBound | None:
    """Return the best bound over candidate base points and the perspective relaxation.

    Parameters
    ----------
    objective : AbstractObjective
        What is minimized.
    constraint : AbstractSparseSet or None
        Allowed supports; None allows all.
    candidates : dict of str to mapping of str to Tensor
        Base points by what they are, tried first.
    tol : float, default=1e-7
        Accuracy of the relaxation.
    target : float, default=inf
        Bound that is enough.

    Returns
    -------
    LowerBound or None
        The bound; None when the objective is not convex with a positive modulus.
    """
    if not isinstance(objective, AbstractConvexObjective):
        return None
    flat = FlatObjective.of(objective)
    best: LowerBound | None = None
    for name, params in candidates.items():
        point = flat.flatten(params)
        value = named.to_float(_point_bounds(flat, constraint, point)[0])
        if best is None or value > best.value:
            best = LowerBound(value, name, point[0])
    if isinstance(constraint, L0Ball) and (best is None or best.value < target):
        start = None if best is None else named.row(flat.unflatten(best.point.unsqueeze(0)), 0)
        found = perspective_bound(objective, constraint, start, tol=tol, target=target)
        if best is None or found.value > best.value:
            best = found
    return None if best is None or best.value == float("-inf") else best


def require_box_arguments(flat: FlatObjective, points: Tensor) -> None:
    """Raise when points do not have the size of the objective.

    Raises
    ------
    InvalidParameterError
        If the number of columns is not the number of entries.
    IncompatibleError
        If the objective is not convex.
    """
    if not isinstance(flat.objective, AbstractConvexObjective):
        raise IncompatibleError(
            f"Bounds need a convex objective, got `{type(flat.objective).__name__}`.",
            "Use `LeastSquares` or another loss of a linear predictor.",
        )
    if points.ndim != 2 or points.shape[1] != flat.size:
        raise InvalidParameterError(
            f"`points` must have shape (K, {flat.size}), got {tuple(points.shape)}.",
            "Pass one flattened point for each box.",
        )


def _boxes(
    flat: FlatObjective,
    budget: int,
    included: Tensor,
    excluded: Tensor,
    counted: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return entries always in, entries to choose from, and how many of those fit."""
    if counted is None:
        counted = torch.ones(flat.size, dtype=torch.bool, device=included.device)
    must = (included & ~excluded) | ~counted
    choice = counted & ~included & ~excluded
    room = (budget - (included & counted).sum(1)).clamp_min(0)
    return must, choice, room


def _keep_largest(gain: Tensor, *, must: Tensor, choice: Tensor, room: Tensor) -> Tensor:
    """Return the support of every box that loses least by its zeros."""
    ranked = torch.where(choice, gain, -1.0).argsort(dim=1, descending=True)
    inside = torch.arange(gain.shape[1], device=gain.device) < room.unsqueeze(1)
    return must | (choice & torch.zeros_like(choice).scatter(1, ranked, inside))


def _point_bounds(
    flat: FlatObjective, constraint: AbstractSparseSet | None, points: Tensor
) -> Tensor:
    def keep(gain: Tensor) -> Tensor:
        if constraint is None:
            return torch.ones_like(gain, dtype=torch.bool)
        # The one oracle of every sparse set; an infinite gain must still be comparable.
        scores = gain.clamp(max=torch.finfo(gain.dtype).max / (gain.shape[1] + 1))
        return named.flatten(constraint.select(flat.unflatten(scores)))

    names = None if constraint is None else constraint.names
    free = ~supports.covered(names, flat.template)
    return _best_over_moduli(flat, points, keep, free)


def _best_over_moduli(
    flat: FlatObjective, points: Tensor, keep: Callable[[Tensor], Tensor], free: Tensor
) -> Tensor:
    """Return the best bounds that points give; free entries without modulus are settled first."""
    best = torch.full_like(points[:, 0], -torch.inf)
    for modulus in moduli(flat):
        loose = (free & (modulus <= 0)).nonzero().flatten()
        if named.any_true(modulus[~free] <= 0):
            loose = loose[:0]
        here = settle(flat, points, loose) if loose.shape[0] else points
        value, grad = flat.value_and_grad(here)
        best = torch.maximum(best, _bound_at(flat, here, value, grad, keep, modulus, loose))
    return best


def _bound_at(
    flat: FlatObjective,
    points: Tensor,
    value: Tensor,
    grad: Tensor,
    keep: Callable[[Tensor], Tensor],
    modulus: Tensor,
    loose: Tensor,
) -> Tensor:
    """Return the bounds at points where the gradient vanishes on `loose`, up to rounding."""
    doubt = torch.zeros_like(value)
    if loose.shape[0]:
        doubt = decrement_on(flat, points, grad, loose)
        grad = grad.index_fill(1, loose, 0.0)
    zero, inside, gain = _terms(points, grad, modulus)
    terms = torch.where(keep(gain), inside, zero)
    # Rounding of the value, the products and the sum.
    size = value.abs() + terms.abs().sum(1)
    slack = 32 * torch.finfo(value.dtype).eps * size + 4 * (doubt * size).sqrt()
    bound = value + terms.sum(1) - slack
    return bound.nan_to_num(-torch.inf, neginf=-torch.inf)


def _terms(points: Tensor, grad: Tensor, modulus: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each entry adds to the bound at zero and in the support, and the difference."""
    safe = torch.where(modulus > 0, modulus, torch.ones_like(modulus))
    flat_slope = torch.where(grad == 0, 0.0, torch.inf).to(grad.dtype)
    inside = -torch.where(modulus > 0, grad.square() / (2 * safe), flat_slope)
    zero = -grad * points + modulus / 2 * points.square()
    gain = torch.where(modulus > 0, modulus / 2 * (points - grad / safe).square(), zero - inside)
    return zero, inside, gain


def _allot(size: Tensor, choice: Tensor, room: Tensor) -> Tensor:
    """Return z in [0, 1], zero off `choice`, of sum `room`, that minimizes sum size^2 / z."""
    size = torch.where(choice, size, torch.zeros_like(size))
    ordered = size.sort(1, descending=True).values
    tail = ordered.flip(1).cumsum(1).flip(1)
    count = torch.arange(size.shape[1], device=size.device)
    left = (room.unsqueeze(1) - count).to(size.dtype)
    # With the `count` largest at one, the others share what is left in proportion to their size.
    level = tail / left.clamp_min(1.0)
    fits = (ordered <= level * (1 + 1e-15)) & (left > 0)
    first = torch.where(fits.any(1), fits.int().argmax(1), 0)
    scale = level.gather(1, first.unsqueeze(1))
    spread = room.unsqueeze(1) / choice.sum(1, keepdim=True).clamp_min(1)
    z = torch.where(scale > 0, size / scale.clamp_min(1e-300), spread.to(size.dtype))
    z = z.clamp(max=1.0)
    return torch.where(choice & (room > 0).unsqueeze(1), z, torch.zeros_like(z))


def _relax(
    flat: FlatObjective,
    modulus: Tensor,
    counted: Tensor,
    budget: int,
    start: Tensor,
    max_iter: int,
    tol: float,
    target: float,
) -> LowerBound:
    """Solve the perspective relaxation and return the best bound on the way."""
    nothing = torch.zeros(1, flat.size, dtype=torch.bool, device=start.device)
    must, choice, room = _boxes(flat, budget, nothing, nothing, counted)
    if budget >= named.to_int(counted.sum()):
        must, choice, room = must | choice, nothing, torch.zeros_like(room)

    keep = partial(_keep_largest, must=must, choice=choice, room=room)
    newton = flat.size <= NEWTON_ENTRIES
    # No room at all is the same as no choice: such entries stay at zero.
    allowed = must | (choice & (room > 0).unsqueeze(1))
    start = torch.where(allowed, start, torch.zeros_like(start))
    best_value, best_point, progress = -torch.inf, start[0], 0
    theta, ahead, momentum, before = start, start, 1.0, torch.inf
    everything = torch.arange(flat.size, device=start.device).unsqueeze(0)
    step = 0.0
    if isinstance(flat.objective, AbstractSmoothObjective):
        step = 1.0 / max(flat.objective.smoothness(), 1e-300)
    elif not newton:
        # No step size is known: the start has to do.
        max_iter = 0
    root = modulus.sqrt()
    loose = (~counted & (modulus <= 0)).nonzero().flatten()
    for iteration in range(max_iter + 1):
        if loose.shape[0]:
            theta = settle(flat, theta, loose)
        value, grad = flat.value_and_grad(theta)
        bound = named.to_float(_bound_at(flat, theta, value, grad, keep, modulus, loose)[0])
        gained = bound - best_value
        if gained > 0:
            best_value, best_point = bound, theta[0]
        z = torch.where(must, 1.0, _allot(root * theta.abs(), choice, room)).to(theta.dtype)
        share = torch.where(theta == 0, 0.0, theta.square() / z.clamp_min(1e-300))
        excess = (modulus * (share - theta.square())).sum(1) / 2
        relaxed = named.to_float((value + excess)[0])
        enough = max(tol, 1e-4) if relaxed < target else tol
        if gained > enough / 10 * abs(bound):
            progress = iteration
        if iteration == max_iter or relaxed - best_value <= enough * max(abs(relaxed), 1e-300):
            break
        if best_value >= target > -torch.inf or iteration - progress > PATIENCE:
            break
        if newton:
            # The floor keeps entries alive that may come back; it vanishes with the iterations.
            floor = max(1e-9, 1e-2 * 0.5**iteration)
            weight = modulus / z.clamp_min(floor) - modulus
            theta = _newton(flat, theta, value, grad, weight, allowed, everything)
        else:
            if relaxed > before:
                momentum = 1.0
            before = relaxed
            value, grad = flat.value_and_grad(ahead)
            pulled = ahead - step * (grad - modulus * ahead)
            new = _shrink(pulled, step * modulus, must, choice, room)
            growth = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / growth * (new - theta)
            theta, momentum = new, growth
    return LowerBound(best_value, "perspective relaxation", best_point)


def _relax_few(
    flat: FlatObjective,
    modulus: Tensor,
    counted: Tensor,
    budget: int,
    start: Tensor,
    max_iter: int,
    tol: float,
    target: float,
) -> LowerBound:
    """Solve the relaxation of a quadratic objective on a few entries, and add what they miss."""
    nothing = torch.zeros(1, flat.size, dtype=torch.bool, device=start.device)
    must, choice, room = _boxes(flat, budget, nothing, nothing, counted)
    keep = partial(_keep_largest, must=must, choice=choice, room=room)
    free = (~counted).nonzero().flatten()
    loose = free[modulus[free] <= 0]
    origin = torch.zeros_like(start)
    if free.shape[0]:
        origin = settle(flat, origin, free)
    _, grad = flat.value_and_grad(origin)
    root = modulus.clamp_min(1e-300).sqrt()
    pull = torch.where(counted, grad[0].abs() / root, -1.0)
    chosen = (start[0] != 0) & counted
    count = min(named.to_int(counted.sum()), max(FIRST_ENTRIES, 3 * budget))
    chosen[pull.topk(count).indices] = True
    theta = torch.where(chosen, start, origin)
    best = LowerBound(-torch.inf, "perspective relaxation", start[0])
    inner, work = 1e-6, 0
    for _ in range(max_iter + 1):
        index = (chosen & counted).nonzero().flatten()
        work += index.shape[0] ** 3
        problem, units = working(flat, origin, index, free, modulus, budget)
        t = solve_working(problem, to_array(theta[0, index] * units), inner)
        theta = origin.clone()
        theta[0, index] = torch.as_tensor(t).to(units) / units
        if free.shape[0]:
            theta = settle(flat, theta, free)
        value, grad = flat.value_and_grad(theta)
        bound = named.to_float(_bound_at(flat, theta, value, grad, keep, modulus, loose)[0])
        if bound > best.value:
            best = LowerBound(bound, best.method, theta[0])
        size = root * theta.abs()
        z = _allot(size, choice, room)
        share = torch.where(theta == 0, 0.0, theta.square() / z.clamp_min(1e-300))
        excess = (torch.where(counted, modulus, 0.0) * (share - theta.square())).sum(1) / 2
        relaxed = named.to_float((value + excess)[0])
        enough = max(tol, 1e-4) if relaxed < target else tol
        if relaxed < target / 2:
            # More than half is missing, whatever the digits.
            enough = max(tol, VACUOUS)
            if work > VACUOUS_WORK:
                break
        if relaxed - best.value <= enough * max(abs(relaxed), 1e-300):
            break
        if best.value >= target > -torch.inf:
            break
        # Entries that pull harder than the fractional ones want a share of the budget.
        level = _level(size[0, index], budget)
        pull = torch.where(counted, grad[0].abs() / root, -1.0)
        # Zeros that pull clearly less are not likely to come back.
        chosen &= (theta[0] != 0) | (pull > 0.9 * level)
        pull = torch.where(chosen, -1.0, pull)
        missing = pull > level
        count = min(named.to_int(missing.sum()), max(FIRST_ENTRIES, index.shape[0] // 2))
        if count == 0:
            # Nothing is missing: what is left is the accuracy of the solution.
            if inner < 1e-13:
                break
            inner /= 100
            continue
        chosen[pull.topk(count).indices] = True
    return best


def _level(size: Tensor, budget: int) -> float:
    """Return what fractional entries pull with: their sum over the budget left for them."""
    ordered = size.sort(descending=True).values
    if ordered.shape[0] <= budget:
        return 0.0
    tail = ordered.flip(0).cumsum(0).flip(0)[:budget]
    level = tail / (budget - torch.arange(budget, device=size.device))
    fits = ordered[:budget] <= level * (1 + 1e-15)
    return named.to_float(level[named.to_int(fits.int().argmax())])


def _shrink(target: Tensor, weight: Tensor, must: Tensor, choice: Tensor, room: Tensor) -> Tensor:
    """Return the proximal point of sum weight theta^2 / (2 z), minimized over z."""
    # theta = target z / (z + weight); z + weight is proportional to sqrt(weight) |target| wherever
    # z is inside [0, 1], and bisection finds the factor that uses up the budget.
    scale = torch.where(choice, weight.sqrt() * target.abs(), 0.0)
    low = torch.zeros_like(scale[:, :1])
    high = (scale / weight.clamp_min(1e-300)).amax(1, keepdim=True).clamp_min(1e-300)
    for _ in range(60):
        level = (low + high) / 2
        z = (scale / level.clamp_min(1e-300) - weight).clamp(0.0, 1.0)
        over = torch.where(choice, z, 0.0).sum(1, keepdim=True) > room.unsqueeze(1)
        low, high = torch.where(over, level, low), torch.where(over, high, level)
    z = (scale / high - weight).clamp(0.0, 1.0)
    z = torch.where(must, 1.0, torch.where(choice, z, 0.0))
    return target * z / (z + weight)


def _newton(
    flat: FlatObjective,
    theta: Tensor,
    value: Tensor,
    grad: Tensor,
    weight: Tensor,
    allowed: Tensor,
    index: Tensor,
) -> Tensor:
    """Take one guarded Newton step on f + sum weight theta^2 / 2 over the allowed entries."""
    weight = torch.where(allowed, weight, torch.zeros_like(weight))
    slope = torch.where(allowed, grad + weight * theta, torch.zeros_like(theta))
    hessian = flat.hessian_on(theta, index)
    both = allowed.unsqueeze(-1) & allowed.unsqueeze(-2)
    hessian = torch.where(both, hessian, torch.zeros_like(hessian))
    hessian = hessian + torch.diag_embed(torch.where(allowed, weight, torch.ones_like(weight)))
    factor, info = torch.linalg.cholesky_ex(hessian)
    if named.any_true(info != 0):
        return theta
    direction = -torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1)
    before = value + (weight * theta.square()).sum(1) / 2
    length = 1.0
    for _ in range(30):
        trial = theta + length * direction
        after = flat.value(trial) + (weight * trial.square()).sum(1) / 2
        if named.all_true(after <= before + 1e-12 * before.abs()):
            return trial
        length /= 2
    return theta
