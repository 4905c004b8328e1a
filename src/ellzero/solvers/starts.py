"""Starting points: zero, the thresholded dense minimizer, random sparse points."""

from __future__ import annotations

import torch

from ellzero.core.problem import AbstractSmoothObjective, AbstractSparseSet, Problem
from ellzero.solvers.refit import NEWTON_LIMIT, refit
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params


def dense_minimizer(problem: Problem, start: Params | None = None) -> Params:
    """Return the minimizer of the objective without its constraint, as a point.

    Without a minimizer (separable classes, no ridge) this is where Newton's method was after its
    iterations.
    """
    zero = problem.objective.init_params()
    masks = Batch({n: torch.ones_like(t, dtype=torch.bool) for n, t in zero.items()})
    point = zero if start is None else start
    everywhere = Batch({n: m.unsqueeze(0) for n, m in masks.items()})
    return named.row(refit(problem.objective, everywhere, named.to_batch(point)), 0)


def random_starts(
    problem: Problem, count: int, *, generator: torch.Generator | None = None, scale: float = 1.0
) -> Batch:
    """Return points of the constraint with normal entries on uniformly drawn supports.

    Parameters
    ----------
    problem : Problem
        Gives the shapes and the constraint.
    count : int
        Number of points.
    generator : torch.Generator or None, default=None
        Source of randomness; None means one seeded with 0.
    scale : float, default=1.0
        Standard deviation of the entries.

    Returns
    -------
    Batch
        The points.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    zero = problem.objective.init_params()
    scores: dict[str, torch.Tensor] = {}
    values: dict[str, torch.Tensor] = {}
    for name, tensor in zero.items():
        shape = (count, *tensor.shape)
        scores[name] = torch.rand(shape, generator=generator, dtype=torch.float64).to(tensor)
        values[name] = scale * torch.randn(shape, generator=generator, dtype=torch.float64).to(
            tensor
        )
    if isinstance(problem.constraint, AbstractSparseSet):
        masks = problem.constraint.select(Batch(scores))
        return Batch(problem.constraint.clip(named.mask(Batch(values), masks)))
    if problem.constraint is not None:
        return Batch(problem.constraint.project(Batch(values)))
    return Batch(values)


def make_starts(
    problem: Problem, count: int, *, generator: torch.Generator | None = None
) -> Batch:
    """Return zero, the dense minimizer (smooth convex objectives) and `count` random points."""
    zero = problem.objective.init_params()
    points = [named.to_batch(zero)]
    smooth = isinstance(problem.objective, AbstractSmoothObjective)
    if smooth and named.size(zero) <= NEWTON_LIMIT:
        points.append(named.to_batch(dense_minimizer(problem)))
    if count:
        points.append(random_starts(problem, count, generator=generator))
    return named.concatenate(points)
