"""Epsilon-optimality: what sparsity costs against a dense reference."""

from __future__ import annotations

from dataclasses import dataclass

from ellzero.certificates.flat import FlatObjective
from ellzero.core.problem import AbstractSmoothObjective, Problem
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params


@dataclass(frozen=True, slots=True)
class EpsilonOptimality:
    """What the sparse point loses against the dense one.

    Parameters
    ----------
    value, dense_value : float
        Objective plus penalty at the two points.
    epsilon : float
        Their difference; negative when the dense point is not a minimizer.
    relative : float
        The difference over the magnitude of `dense_value`; infinity when that is zero.
    dense_residual : float
        Largest move of an entry by a gradient step at the dense point, relative to its largest
        entry: how far the reference is from a minimizer. NaN when the smoothness is not known.
    """

    value: float
    dense_value: float
    epsilon: float
    relative: float
    dense_residual: float


def epsilon_optimality(problem: Problem, params: Params, dense: Params) -> EpsilonOptimality:
    """Compare a sparse point with a dense reference.

    Parameters
    ----------
    problem : Problem
        What is minimized; its constraint is not looked at.
    params, dense : mapping of str to Tensor
        The point and the reference, which should be a converged minimizer without the budget.

    Returns
    -------
    EpsilonOptimality
        The differences, computed in float64.

    Notes
    -----
    Costs two values and a gradient. A point is epsilon-optimal when its value is within epsilon of
    the dense one. The published text [1]_ names the notion; this formula is ours.

    References
    ----------
    .. [1] S. Damadi, S. Zolfaghari, M. Rezaie and J. Shen, "Learning a sparse neural network
       using IHT", arXiv:2404.18414.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import epsilon_optimality
    >>> objective = ellzero.LeastSquares(torch.eye(2).double(), torch.tensor([3.0, 1.0]))
    >>> sparse = {"coef": torch.tensor([3.0, 0.0], dtype=torch.float64)}
    >>> dense = {"coef": torch.tensor([3.0, 1.0], dtype=torch.float64)}
    >>> epsilon_optimality(ellzero.Problem(objective), sparse, dense).epsilon
    0.25
    """
    flat = FlatObjective.of(problem.objective)
    here, there = (flat.unflatten(flat.flatten(p)) for p in (params, dense))
    value, dense_value = _value(flat, problem, here), _value(flat, problem, there)
    epsilon = value - dense_value
    relative = 0.0 if epsilon == 0 else float("inf")
    if dense_value:
        relative = epsilon / abs(dense_value)
    return EpsilonOptimality(value, dense_value, epsilon, relative, _residual(flat, there))


def _value(flat: FlatObjective, problem: Problem, point: Batch) -> float:
    value = named.to_float(flat.value(named.flatten(point))[0])
    if problem.penalty is None:
        return value
    return value + named.to_float(problem.penalty.value(point)[0])


def _residual(flat: FlatObjective, dense: Params) -> float:
    if not isinstance(flat.objective, AbstractSmoothObjective):
        return float("nan")
    point = named.flatten(dense)
    _, grad = flat.value_and_grad(point)
    largest = named.to_float(point.abs().max())
    smoothness = flat.objective.smoothness()
    move = named.to_float(grad.abs().max()) / smoothness if smoothness > 0 else 0.0
    if largest:
        return move / largest
    return 0.0 if move == 0 else float("inf")
