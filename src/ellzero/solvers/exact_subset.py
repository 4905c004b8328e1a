"""Best subsets of quadratic objectives, proven by branch and bound on the curvature matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractQuadraticObjective, Problem
from ellzero.core.result import TreeProof
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.objectives import LeastSquares
from ellzero.sets import GroupL0Ball, L0Ball
from ellzero.solvers.refit import refit
from ellzero.subset.exact import prove
from ellzero.subset.inner import FullGram
from ellzero.subset.objectives import ObjectiveGram
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.validation import check_integer, check_real


@dataclass(frozen=True, slots=True)
class ExactState(SolverState):
    """State of `ExactSubset`.

    Parameters
    ----------
    code : Tensor of shape (size,), int64
        Code of the status.
    evidence : TreeProof or None
        Evidence of the lower bound.
    """

    code: Tensor
    evidence: TreeProof | None


@dataclass(frozen=True, slots=True)
class ExactSubset(AbstractSolver[ExactState]):
    """Branch and bound with models of the curvature: the best subset, and a proof of it.

    Parameters
    ----------
    time_limit : float or None, default=None
        Seconds after which the best so far is returned, with the bound that is proven; None means
        that of `solve`, if it has one.
    max_nodes : int or None, default=None
        Most boxes; None means no limit.
    tol : float, default=1e-6
        Relative gap, to what the objective is above zero or its least value without the budget,
        at which the proof is complete. Must be positive.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.

    See Also
    --------
    SubsetSearch : Finds the same without a proof, in less time.
    BranchAndBound : Proofs for every smooth convex objective.

    Notes
    -----
    Runs `ellzero.subset.exact.prove`, see there for the method, its sources and its cost: O(n^3)
    for a model of n entries and O(n^2) memory. `verify` recomputes the bound from the evidence
    alone; evidence beyond ten megabytes is given up, and then nothing but the bound of the root
    is verified. Takes an `L0Ball`, also with bounds, or a `GroupL0Ball`. Rows of a batch are all
    the same point; there are no steps.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import ExactSubset
    >>> X = torch.randn(60, 100, generator=torch.Generator().manual_seed(0)).double()
    >>> objective = ellzero.LeastSquares(X, X[:, 3] - X[:, 70] + 0.5 * X[:, 8], ridge=0.01)
    >>> result = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(3)), ExactSubset())
    >>> result.support, result.certificate.claim.name
    ({'coef': [3, 8, 70]}, 'OPTIMAL')
    """

    time_limit: float | None = None
    max_nodes: int | None = None
    tol: float = 1e-6

    def __post_init__(self) -> None:
        check_real("tol", self.tol, 0.0, open_low=True)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0)
        if self.max_nodes is not None:
            check_integer("max_nodes", self.max_nodes, 0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        objective, ball = problem.objective, problem.constraint
        if not isinstance(objective, AbstractQuadraticObjective):
            return f"it needs a quadratic objective, got `{type(objective).__name__}`"
        if not isinstance(ball, L0Ball | GroupL0Ball):
            return "it needs an `L0Ball` or a `GroupL0Ball`"
        bounded = ball.lower is not None or ball.upper is not None
        if bounded and isinstance(ball, GroupL0Ball):
            return "it does not treat groups together with bounds"
        if problem.penalty is not None:
            return "it does not take penalties"
        if not isinstance(objective, LeastSquares) and objective.strong_convexity() <= 0:
            return "it needs a strongly convex objective; give some `ridge`"
        return None

    @override
    def init(self, problem: Problem, params: Batch) -> ExactState:
        objective, ball = problem.objective, problem.constraint
        assert isinstance(objective, AbstractQuadraticObjective)
        assert isinstance(ball, L0Ball | GroupL0Ball)
        row = named.row(params, 0)
        counted = supports.covered(ball.names, params)
        free = named.to_list((~counted).nonzero().flatten())
        gram = _whole(objective)
        p = gram.n_features
        if isinstance(ball, GroupL0Ball):
            groups = np.array(named.to_list(ball.unit_labels(row)))
            # A free entry is a group of its own, which is always in.
            groups[free] = groups.max(initial=-1) + 1 + np.arange(len(free))
            budget, n_units = ball.n_groups, int(np.unique(groups).size)
        else:
            groups, budget, n_units = None, ball.n_nonzero, p
        inside = np.array(named.to_list(counted))
        low = None if ball.lower is None else np.where(inside, ball.lower, -np.inf)
        high = None if ball.upper is None else np.where(inside, ball.upper, np.inf)
        result = prove(
            gram,
            min(budget + len(free), n_units),
            always=free,
            groups=groups,
            lower=low,
            upper=high,
            time_limit=self.time_limit,
            max_nodes=self.max_nodes,
            # Half is left to rounding of the data and to the verifier.
            tol=0.5 * self.tol,
        )
        chosen = torch.from_numpy(result.subset.support).to(counted.device)
        if low is None and high is None:
            mask = torch.zeros_like(counted).index_fill(0, chosen, True) | ~counted
            flat = mask.unsqueeze(0).expand(params.size, -1)
            point = refit(objective, Batch(named.unflatten(flat, row)), params)
        else:
            # The minimizer within the bounds, as the proof has it.
            theta = named.flatten(row).new_zeros(p)
            theta[chosen] = torch.from_numpy(result.subset.coef[:, 0]).to(theta)
            rows = theta.unsqueeze(0).expand(params.size, -1)
            point = Batch(named.unflatten(rows, row))
        code = torch.full((params.size,), result.status.code, device=counted.device)
        return ExactState(point, objective.value(point), code, result.proof)

    @override
    def step(self, problem: Problem, state: ExactState) -> ExactState:
        return state

    @override
    def terminate(self, problem: Problem, state: ExactState) -> Tensor:
        return state.code

    @override
    def proof(self, state: SolverState) -> TreeProof | None:
        assert isinstance(state, ExactState)
        return state.evidence


def _whole(objective: AbstractQuadraticObjective) -> FullGram:
    """Return the curvature matrix with a constant that makes twice the objective nonnegative."""
    gram = ObjectiveGram(objective)
    matrix = gram.columns(np.arange(gram.n_features))
    value = named.to_float(objective.value(objective.init_params()))
    energy = 2.0 * value
    if not isinstance(objective, LeastSquares):
        # Above the least value without a budget; the margin covers rounding.
        energy = float(gram.cross[:, 0] @ np.linalg.solve(matrix, gram.cross[:, 0]))
        energy *= 1 + 1e-9
    return FullGram(
        matrix, gram.cross, np.array([energy]), 1.0, gram.x_mean, gram.y_mean
    )  # fmt: skip
