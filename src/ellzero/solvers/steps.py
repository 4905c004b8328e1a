"""Step sizes: where a solver's gradient step length comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.core.problem import AbstractSmoothObjective, AbstractSparseSet, Problem
from ellzero.smoothness import SmoothnessEstimate, restricted_smoothness
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params


def certified_smoothness(problem: Problem) -> SmoothnessEstimate | None:
    """Return an upper bound on the curvature that a step meets; None when there is none.

    With a sparse constraint the bound is restricted to differences of two members.
    """
    objective = problem.objective
    if not isinstance(objective, AbstractSmoothObjective):
        return None
    n = named.size(objective.init_params())
    k = n
    if isinstance(problem.constraint, AbstractSparseSet):
        k = min(n, 2 * problem.constraint.max_nonzero(objective.init_params()))
    return restricted_smoothness(objective, max(k, 1), method="bound")


def certified_step_size(problem: Problem) -> float | None:
    """Return 1 / L for the bound L of `certified_smoothness`; None when there is none."""
    estimate = certified_smoothness(problem)
    if estimate is None:
        return None
    return 1.0 / estimate.value if estimate.value > 0 else 1.0


def has_certified_step_size(problem: Problem) -> bool:
    """Return whether the objective has a curvature bound to take the step from."""
    return isinstance(problem.objective, AbstractSmoothObjective)


def quadratic_model_holds(
    value: Tensor, grad: Params, move: Params, new_value: Tensor, step_size: Tensor
) -> Tensor:
    r"""Return, by rows, whether f(y) <= f(x) + <g, y - x> + ||y - x||^2 / (2 step_size).

    When y is a nearest sparse point to x - step_size * g this alone proves f(y) <= f(x): y
    minimizes the right side over the constraint and x attains f(x) there.
    """
    model = value + named.dot(grad, move) + named.norm_squared(move) / (2 * step_size)
    return new_value <= model + 1e-14 * value.abs()


def initial_step_size(problem: Problem, params: Batch, grad: Params) -> Tensor:
    """Return a first guess for backtracking, from the curvature along the gradient; (size,)."""
    squared = named.norm_squared(grad)
    small = 1e-4 * (1 + named.norm(params)) / squared.sqrt().clamp_min(1e-300)
    probe = named.axpy(-small, grad, params)
    _, probe_grad = problem.objective.value_and_grad(probe)
    change = named.norm(named.sub(probe_grad, grad))
    curvature = change / (small * squared.sqrt()).clamp_min(1e-300)
    usable = torch.isfinite(curvature) & (curvature > 0)
    return torch.where(usable, 1.0 / curvature.clamp_min(1e-300), torch.ones_like(curvature))
