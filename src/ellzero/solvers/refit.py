"""Minimization on a fixed support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractObjective,
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
    Problem,
)
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks
from ellzero.validation import check_real

# Above this many entries in a support a dense Newton system costs more than it saves.
NEWTON_LIMIT = 1500


def newton_step(
    objective: AbstractTwiceDifferentiable, params: Batch, masks: Masks
) -> tuple[Batch, Tensor, Tensor]:
    """Take one damped Newton step on the support of every row.

    Parameters
    ----------
    objective : AbstractTwiceDifferentiable
        Convex on the supports.
    params : Batch
        Points supported in `masks`.
    masks : Batch of bool
        Supports.

    Returns
    -------
    params : Batch
        The new points; rows that no step length improves come back unchanged.
    value : Tensor of shape (size,)
        Their values.
    decrement : Tensor of shape (size,)
        Predicted decrease, half the squared Newton decrement, before the step.
    """
    index, valid = supports.support_index(masks)
    value, grad = objective.value_and_grad(params)
    if index.shape[1] == 0:
        return params, value, torch.zeros_like(value)
    g = supports.gather(grad, index, valid)
    hessian = objective.hessian_on(params, index)
    both = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    hessian = torch.where(both, hessian, torch.zeros_like(hessian))
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    level = diagonal.amax(-1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    # A flat direction gets a curvature far below the others, so that the system has a solution.
    lift = torch.where(valid, 1e-13 * level, torch.ones_like(diagonal))
    hessian = hessian + torch.diag_embed(lift)
    factor, info = torch.linalg.cholesky_ex(hessian)
    if named.any_true(info != 0):
        bad = (info != 0).reshape(-1, 1, 1)
        safe = torch.diag_embed(torch.where(valid, level.expand_as(diagonal), 1.0))
        hessian = torch.where(bad, hessian + 1e-6 * safe, hessian)
        factor, info = torch.linalg.cholesky_ex(hessian)
        factor = torch.where((info != 0).reshape(-1, 1, 1), safe.sqrt(), factor)
    direction = -torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)
    decrement = -0.5 * (g * direction).sum(-1)
    move = supports.scatter(direction, index, valid, params)
    length = torch.ones_like(value)
    best_params: Batch = params
    best_value = value
    waiting = torch.ones_like(value, dtype=torch.bool)
    noise = 16 * torch.finfo(value.dtype).eps * value.abs()
    for _ in range(30):
        trial = named.axpy(length, move, params)
        trial_value = objective.value(trial)
        accept = waiting & (trial_value <= value - 1e-4 * 2 * length * decrement)
        best_params = Batch(named.where(accept, trial, best_params))
        best_value = torch.where(accept, trial_value, best_value)
        waiting = waiting & ~accept
        # Below rounding no length can be seen to help.
        waiting = waiting & (decrement > noise)
        if not named.any_true(waiting):
            break
        length = torch.where(waiting, length / 2, length)
    tiny = (decrement <= noise) & torch.isfinite(decrement)
    if named.any_true(tiny):
        # The quadratic model is exact here: the last digits come from the full step.
        full = named.axpy(1.0, move, params)
        full_value = objective.value(full)
        take = tiny & (full_value <= value + noise)
        best_params = Batch(named.where(take, full, best_params))
        best_value = torch.where(take, full_value, best_value)
    return best_params, best_value, decrement


def _newton(
    objective: AbstractTwiceDifferentiable, masks: Masks, start: Batch, max_iter: int
) -> Batch:
    params = Batch(named.mask(start, masks))
    out = params
    active = torch.arange(params.size, device=next(iter(params.values())).device)
    before = torch.full((params.size,), torch.inf, device=active.device)
    for _ in range(max_iter):
        rows = Batch(masks) if active.numel() == out.size else named.take(masks, active)
        params, value, decrement = newton_step(objective, params, rows)
        out = Batch({n: t.index_copy(0, active, params[n]) for n, t in out.items()})
        # A value that no longer falls is at rounding, even when it is close to zero.
        going = (decrement > 1e-16 * value.abs()) & (value < before)
        if not named.any_true(going):
            break
        before = value
        if not named.all_true(going):
            active = active[going]
            before = value[going]
            params = named.take(params, going)
    return out


def _lbfgs(objective: AbstractObjective, masks: Masks, start: Batch, max_iter: int) -> Batch:
    rows = []
    for i in range(start.size):
        support = named.row(masks, i)
        point = named.mask(named.row(start, i), support)
        leaves = [t.detach().clone().requires_grad_() for t in point.values()]
        optimizer = torch.optim.LBFGS(
            leaves,
            max_iter=max_iter,
            tolerance_grad=1e-12,
            tolerance_change=1e-16,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(leaves: list[Tensor] = leaves, support: Masks = support) -> float:
            here = {n: t.detach() for n, t in zip(support, leaves, strict=True)}
            value, grad = objective.value_and_grad(here)
            for leaf, g in zip(leaves, named.mask(grad, support).values(), strict=True):
                leaf.grad = g
            return named.to_float(value)

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        after = {n: t.detach() for n, t in zip(support, leaves, strict=True)}
        better = objective.value(after) <= objective.value(point)
        rows.append(named.mask(after, support) if named.any_true(better) else point)
    return named.stack(rows)


def refit(
    objective: AbstractObjective, masks: Masks, start: Batch, *, max_iter: int = 100
) -> Batch:
    """Minimize on given supports, a row for each.

    Quadratic objectives are solved in closed form, other convex ones by Newton's method on the
    support, everything else by L-BFGS.

    Parameters
    ----------
    objective : AbstractObjective
        What to minimize.
    masks : Batch of bool
        Supports, `size` of them.
    start : Batch
        Points to start from; entries outside the supports are ignored.
    max_iter : int, default=100
        Largest number of Newton or L-BFGS iterations.

    Returns
    -------
    Batch
        The minimizers; local ones when the objective is not convex on the support.

    Notes
    -----
    A Newton iteration costs one Hessian block and a factorization, k^3 for k entries in the
    support. Without a minimizer (separable classes, no ridge) the iterations end at `max_iter`.
    """
    if isinstance(objective, AbstractQuadraticObjective):
        return Batch(objective.minimize_on(masks))
    largest = named.to_int(named.count_nonzero(masks).max())
    if isinstance(objective, AbstractSmoothObjective) and largest <= NEWTON_LIMIT:
        return _newton(objective, masks, start, max_iter)
    return _lbfgs(objective, masks, start, max_iter)


@dataclass(frozen=True, slots=True)
class NewtonState(SolverState):
    """State of `Newton`: its supports, the predicted decrease, and where no step helps."""

    masks: Batch
    decrement: Tensor
    stuck: Tensor


@dataclass(frozen=True, slots=True)
class Newton(AbstractSolver[NewtonState]):
    r"""Newton's method on the support of the start.

    .. math:: \theta_S \leftarrow \theta_S - t\, [\nabla^2 f(\theta)]_{SS}^{-1} \nabla_S f(\theta)

    The polish after a support has been found: the start is projected on the constraint and its
    support S stays fixed. Without a constraint every entry is free.

    Parameters
    ----------
    tol : float, default=1e-16
        Stop when the predicted decrease is below `tol` times the magnitude of the value.

    Notes
    -----
    Costs one Hessian block and k^3 operations an iteration for k entries in the support. For
    strongly convex objectives convergence is quadratic near the minimizer on the support.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import Newton
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
    >>> objective = ellzero.Logistic(X, torch.tensor([0, 1, 1]), ridge=0.1)
    >>> ellzero.solve(ellzero.Problem(objective), Newton()).status.name
    'CONVERGED'
    """

    tol: float = 1e-16

    def __post_init__(self) -> None:
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractSmoothObjective):
            kind = type(problem.objective).__name__
            return f"it needs a convex objective with bounded curvature, got `{kind}`"
        if problem.penalty is not None:
            return "it does not take penalties"
        return None

    @override
    def init(self, problem: Problem, params: Batch) -> NewtonState:
        if problem.constraint is None:
            masks = Batch({n: torch.ones_like(t, dtype=torch.bool) for n, t in params.items()})
        else:
            params = Batch(problem.constraint.project(params))
            masks = Batch(named.nonzero_masks(params))
        value = problem.objective.value(params)
        infinite = torch.full_like(value, torch.inf)
        return NewtonState(params, value, masks, infinite, infinite < value)

    @override
    def step(self, problem: Problem, state: NewtonState) -> NewtonState:
        assert isinstance(problem.objective, AbstractTwiceDifferentiable)
        params, value, decrement = newton_step(problem.objective, state.params, state.masks)
        return NewtonState(params, value, state.masks, decrement, value >= state.value)

    @override
    def terminate(self, problem: Problem, state: NewtonState) -> Tensor:
        done = state.decrement <= self.tol * state.value.abs()
        code = state.stuck.to(torch.int64) * Status.STALLED.code
        return torch.where(done, Status.CONVERGED.code, code)
