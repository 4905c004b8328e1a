"""Search for the best subset with exchanges at exact prices and kicks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractQuadraticObjective, Problem
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.sets import L0Ball
from ellzero.solvers.refit import refit
from ellzero.subset.effort import Effort
from ellzero.subset.objectives import gram_of_objective
from ellzero.subset.search import search
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.validation import check_integer


@dataclass(frozen=True, slots=True)
class SubsetState(SolverState):
    """State of `SubsetSearch`.

    Parameters
    ----------
    code : Tensor of shape (size,), int64
        Code of the status.
    """

    code: Tensor


@dataclass(frozen=True, slots=True)
class SubsetSearch(AbstractSolver[SubsetState]):
    """Sweeps over all sizes with exchanges at exact prices, then perturbations of the supports.

    Parameters
    ----------
    kicks : int, default=8000
        Most perturbations; easy problems stop after a few.

    Raises
    ------
    InvalidParameterError
        If `kicks` is negative.

    See Also
    --------
    LocalSearch : Exchanges from many starts, for every smooth convex objective.
    BranchAndBound : Proves or improves what this finds.

    Notes
    -----
    All k(p - k) exchanges of one entry are priced with everything refitted in O(k p) [1]_, and at
    the end none of them lowers the value. The answer does not depend on the start, on scales, or
    on the order of the entries. Rows of a batch are all the same point; there are no steps.

    References
    ----------
    .. [1] A. Miller, "Subset Selection in Regression", Chapman and Hall, 2002.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import SubsetSearch
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, SubsetSearch()).support
    {'coef': [0, 2]}
    """

    kicks: int = 8000

    def __post_init__(self) -> None:
        check_integer("kicks", self.kicks, 0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractQuadraticObjective):
            return f"it needs a quadratic objective, got `{type(problem.objective).__name__}`"
        ball = problem.constraint
        if not isinstance(ball, L0Ball):
            return "it needs an `L0Ball`: it exchanges one entry for one"
        if ball.lower is not None or ball.upper is not None:
            return "it refits without the side constraints of the set"
        if problem.penalty is not None:
            return "it does not take penalties"
        return None

    @override
    def init(self, problem: Problem, params: Batch) -> SubsetState:
        objective, ball = problem.objective, problem.constraint
        assert isinstance(objective, AbstractQuadraticObjective)
        assert isinstance(ball, L0Ball)
        counted = supports.covered(ball.names, params)
        free = named.to_list((~counted).nonzero().flatten())
        budget = ball.n_nonzero + len(free)
        path = search(
            gram_of_objective(objective), [budget], always=free, effort=Effort(kicks=self.kicks)
        )
        chosen = torch.from_numpy(path[budget].support).to(counted.device)
        mask = torch.zeros_like(counted).index_fill(0, chosen, True)
        flat = mask.unsqueeze(0).expand(params.size, -1)
        masks = Batch(named.unflatten(flat, named.row(params, 0)))
        point = refit(objective, masks, params)
        code = torch.full((params.size,), path.status.code, device=counted.device)
        return SubsetState(point, objective.value(point), code)

    @override
    def step(self, problem: Problem, state: SubsetState) -> SubsetState:
        return state

    @override
    def terminate(self, problem: Problem, state: SubsetState) -> Tensor:
        return state.code
