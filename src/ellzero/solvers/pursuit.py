"""Pursuits: choose a support, then minimize on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractSparseSet,
    Problem,
)
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.solvers.refit import refit
from ellzero.solvers.steps import certified_step_size, initial_step_size
from ellzero.tensors import coverage, named, selection
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params
from ellzero.validation import check_real


@dataclass(frozen=True, slots=True)
class PursuitState(SolverState):
    """State of the pursuits.

    Parameters
    ----------
    grad : Batch
        Gradient at `params`.
    masks : Batch of bool
        The support that `params` is the minimizer on.
    code : Tensor of shape (size,), int64
        Code of the status that the last step found; 0 while running.
    step_size : Tensor of shape (size,)
        Length of the gradient step; NaN where there is none, or no bound to take it from.
    """

    grad: Batch
    masks: Batch
    code: Tensor
    step_size: Tensor


def _refusal(problem: Problem) -> str | None:
    if not isinstance(problem.constraint, AbstractSparseSet):
        return "it needs a sparse constraint, such as `L0Ball`"
    if problem.penalty is not None:
        return "it does not take penalties"
    if getattr(problem.constraint, "lower", None) is not None:
        return "it refits without the side constraints of the set"
    if getattr(problem.constraint, "upper", None) is not None:
        return "it refits without the side constraints of the set"
    return None


def _needs_quadratic(problem: Problem) -> str | None:
    if not isinstance(problem.objective, AbstractQuadraticObjective):
        return f"it needs a quadratic objective, got `{type(problem.objective).__name__}`"
    return _refusal(problem)


def _needs_convex(problem: Problem) -> str | None:
    if not isinstance(problem.objective, AbstractSmoothObjective):
        return f"it needs a smooth convex objective, got `{type(problem.objective).__name__}`"
    return _refusal(problem)


def _same(a: Masks, b: Masks) -> Tensor:
    return (named.flatten(a) == named.flatten(b)).all(1)


def _union(a: Masks, b: Masks) -> Masks:
    return named.map_tensors(torch.logical_or, a, b)


def _begin(problem: Problem, params: Batch, step_size: float | None = None) -> PursuitState:
    """Project the start and refit on its support; a start at zero stays there."""
    constraint = problem.constraint
    assert isinstance(constraint, AbstractSparseSet)
    params = Batch(constraint.project(params))
    masks = Batch(named.nonzero_masks(params))
    refitted = refit(problem.objective, masks, params)
    value, grad = problem.objective.value_and_grad(refitted)
    code = torch.zeros_like(value, dtype=torch.int64)
    step = torch.full_like(value, math.nan if step_size is None else step_size)
    return PursuitState(refitted, value, Batch(grad), masks, code, step)


def _advance(problem: Problem, state: PursuitState, params: Batch, masks: Masks) -> PursuitState:
    """Accept a new support where it lowers the value; stop where it repeats or does not."""
    value, grad = problem.objective.value_and_grad(params)
    repeated = _same(masks, state.masks)
    # A support that does not lower the value would start a cycle.
    worse = ~repeated & (value >= state.value)
    stop = repeated | worse | ~torch.isfinite(value)
    code = torch.where(worse, Status.STALLED.code, Status.CONVERGED.code)
    return PursuitState(
        Batch(named.where(stop, state.params, params)),
        torch.where(stop, state.value, value),
        Batch(named.where(stop, state.grad, grad)),
        Batch(named.where(stop, state.masks, masks)),
        torch.where(stop, code, torch.zeros_like(code)),
        state.step_size,
    )


def _largest_squares(problem: Problem, point: Params, incumbents: Masks) -> Masks:
    assert isinstance(problem.constraint, AbstractSparseSet)
    scores = problem.constraint.gains(point)
    return problem.constraint.select(scores, incumbents=incumbents)


class _PursuitLoop(AbstractSolver[PursuitState]):
    """What the pursuits share: where they begin and when they end."""

    @override
    def init(self, problem: Problem, params: Batch) -> PursuitState:
        return _begin(problem, params)

    @override
    def terminate(self, problem: Problem, state: PursuitState) -> Tensor:
        return state.code


def _threshold_then_refit(problem: Problem, state: PursuitState) -> PursuitState:
    step = state.step_size
    if named.any_true(torch.isnan(step)):
        step = initial_step_size(problem, state.params, state.grad)
    point = named.axpy(-step, state.grad, state.params)
    masks = _largest_squares(problem, point, state.masks)
    params = refit(problem.objective, masks, Batch(named.mask(point, masks)))
    return _advance(problem, state, params, masks)


@dataclass(frozen=True, slots=True)
class HTP(_PursuitLoop):
    r"""Hard thresholding pursuit for quadratic objectives.

    .. math:: S^+ = \text{top-}s(\theta - \eta \nabla f(\theta)), \quad
        \theta^+ = \arg\min \{ f(z) : \mathrm{supp}(z) \subseteq S^+ \}

    Parameters
    ----------
    step_size : float or None, default=None
        Step length; None means ``1 / L``.

    See Also
    --------
    GraHTP : The same for other smooth convex losses.

    Notes
    -----
    One gradient and one least-squares solve on s entries an iteration. Ends when the support
    repeats, or (status STALLED) when the next support does not lower the value. Recovers an
    s-sparse signal when the restricted isometry constant delta_3s is below 1/sqrt(3) [1]_.

    References
    ----------
    .. [1] S. Foucart, "Hard thresholding pursuit: an algorithm for compressive sensing",
       SIAM J. Numer. Anal., 2011.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import HTP
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, HTP()).support
    {'coef': [0, 2]}
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None:
            check_real("step_size", self.step_size, 0.0, open_low=True)

    @override
    def refusal(self, problem: Problem) -> str | None:
        return _needs_quadratic(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> PursuitState:
        return _begin(problem, params, self.step_size or certified_step_size(problem))

    @override
    def step(self, problem: Problem, state: PursuitState) -> PursuitState:
        return _threshold_then_refit(problem, state)


@dataclass(frozen=True, slots=True)
class GraHTP(_PursuitLoop):
    r"""Gradient hard thresholding pursuit.

    .. math:: S^+ = \text{top-}s(\theta - \eta \nabla f(\theta)), \quad
        \theta^+ = \arg\min \{ f(z) : \mathrm{supp}(z) \subseteq S^+ \}

    Parameters
    ----------
    step_size : float or None, default=None
        Step length; None means ``1 / L`` where the objective has an upper bound L, else one over
        the curvature along the gradient.

    Notes
    -----
    One gradient and one minimization on s entries (Newton for smooth convex objectives, L-BFGS
    for others) an iteration. Ends when the support repeats, or (status STALLED) when the next
    support does not lower the value. Converges linearly to the sparse optimum when the objective
    is convex on sparse points with a small restricted condition number [1]_.

    References
    ----------
    .. [1] X.-T. Yuan, P. Li and T. Zhang, "Gradient hard thresholding pursuit for
       sparsity-constrained optimization", arXiv:1311.5750.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import GraHTP
    >>> X = torch.tensor([[2.0, 0.0], [1.0, 0.1], [-1.0, 0.2], [-2.0, 0.0]])
    >>> objective = ellzero.Logistic(X, torch.tensor([1, 0, 1, 0]), ridge=0.1)
    >>> ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(1)), GraHTP()).support
    {'coef': [0]}
    """

    step_size: float | None = None

    def __post_init__(self) -> None:
        if self.step_size is not None:
            check_real("step_size", self.step_size, 0.0, open_low=True)

    @override
    def refusal(self, problem: Problem) -> str | None:
        return _refusal(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> PursuitState:
        return _begin(problem, params, self.step_size or certified_step_size(problem))

    @override
    def step(self, problem: Problem, state: PursuitState) -> PursuitState:
        return _threshold_then_refit(problem, state)


def _merge_and_refit(problem: Problem, state: PursuitState, factor: int) -> tuple[Batch, Masks]:
    """Refit on the support and the largest gradient entries, then keep the largest squares."""
    assert isinstance(problem.constraint, AbstractSparseSet)
    scores = named.map_tensors(torch.square, state.grad)
    candidates = problem.constraint.select(scores, factor=factor)
    merged = _union(candidates, state.masks)
    wide = refit(problem.objective, merged, state.params)
    masks = _largest_squares(problem, wide, state.masks)
    return Batch(named.mask(wide, masks)), masks


@dataclass(frozen=True, slots=True)
class CoSaMP(_PursuitLoop):
    r"""Compressive sampling matching pursuit.

    Merges the support with the 2s largest gradient entries, minimizes on the union, and keeps the
    s largest entries; then minimizes on those. On losses other than least squares this is GraSP.

    Notes
    -----
    One gradient and two minimizations, on 3s and s entries, an iteration. Ends when the support
    repeats or the value does not fall. For least squares the error halves in every iteration when
    the restricted isometry constant delta_4s is at most 0.1 [1]_; for losses with a stable
    restricted Hessian see [2]_.

    References
    ----------
    .. [1] D. Needell and J. A. Tropp, "CoSaMP", arXiv:0803.2392.
    .. [2] S. Bahmani, B. Raj and P. T. Boufounos, "Greedy sparsity-constrained optimization",
       arXiv:1203.5483.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import CoSaMP
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, CoSaMP()).support
    {'coef': [0, 2]}
    """

    @override
    def refusal(self, problem: Problem) -> str | None:
        return _needs_convex(problem)

    @override
    def step(self, problem: Problem, state: PursuitState) -> PursuitState:
        point, masks = _merge_and_refit(problem, state, 2)
        return _advance(problem, state, refit(problem.objective, masks, point), masks)


@dataclass(frozen=True, slots=True)
class SubspacePursuit(_PursuitLoop):
    r"""Subspace pursuit.

    As `CoSaMP`, with the s largest gradient entries instead of 2s.

    Notes
    -----
    One gradient and two minimizations, on 2s and s entries, an iteration. Ends when the support
    repeats or the value does not fall [1]_.

    References
    ----------
    .. [1] W. Dai and O. Milenkovic, "Subspace pursuit for compressive sensing signal
       reconstruction", arXiv:0803.0811.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import SubspacePursuit
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, SubspacePursuit()).support
    {'coef': [0, 2]}
    """

    @override
    def refusal(self, problem: Problem) -> str | None:
        return _needs_convex(problem)

    @override
    def step(self, problem: Problem, state: PursuitState) -> PursuitState:
        point, masks = _merge_and_refit(problem, state, 1)
        return _advance(problem, state, refit(problem.objective, masks, point), masks)


@dataclass(frozen=True, slots=True)
class OMP(AbstractSolver[PursuitState]):
    r"""Orthogonal matching pursuit.

    Starts from zero and, s times, adds the entry with the largest gradient magnitude and minimizes
    on the support.

    Notes
    -----
    One gradient and one minimization an iteration, s iterations. On losses other than least
    squares this is greedy forward selection by gradients. The start is ignored.

    References
    ----------
    .. [1] Y. C. Pati, R. Rezaiifar and P. S. Krishnaprasad, "Orthogonal matching pursuit",
       Asilomar Conf. Signals Syst. Comput., 1993.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import OMP
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, OMP()).support
    {'coef': [0, 2]}
    """

    @override
    def refusal(self, problem: Problem) -> str | None:
        from ellzero.sets import L0Ball

        if not isinstance(problem.constraint, L0Ball):
            return "it needs an `L0Ball`: it adds one entry at a time"
        return _needs_convex(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> PursuitState:
        names = problem.constraint.names if problem.constraint is not None else None
        masks = {
            n: torch.full_like(t, names is not None and n not in names, dtype=torch.bool)
            for n, t in params.items()
        }
        point = refit(problem.objective, Batch(masks), Batch(named.zeros_like(params)))
        value, grad = problem.objective.value_and_grad(point)
        code = self._code(problem, Batch(masks), grad)
        no_step = torch.full_like(value, math.nan)
        return PursuitState(point, value, Batch(grad), Batch(masks), code, no_step)

    @staticmethod
    def _counted(problem: Problem, params: Params) -> Params:
        assert problem.constraint is not None
        return coverage.restrict(params, problem.constraint.names)

    def _code(self, problem: Problem, masks: Masks, grad: Params) -> Tensor:
        from ellzero.sets import L0Ball

        assert isinstance(problem.constraint, L0Ball)
        counted = self._counted(problem, masks)
        budget = min(problem.constraint.n_nonzero, named.size(counted))
        full = named.count_nonzero(counted) >= budget
        off = named.map_tensors(lambda g, m: torch.where(m, 0.0, g), grad, masks)
        flat = named.max_abs(off) == 0
        return (full | flat).to(torch.int64) * Status.CONVERGED.code

    @override
    def step(self, problem: Problem, state: PursuitState) -> PursuitState:
        outside = named.map_tensors(
            lambda g, m: torch.where(m, torch.zeros_like(g), g.abs()), state.grad, state.masks
        )
        one = selection.top_k_masks(self._counted(problem, outside), 1)
        masks = named.like(
            state.masks, {n: m | one[n] if n in one else m for n, m in state.masks.items()}
        )
        params = refit(problem.objective, masks, state.params)
        value, grad = problem.objective.value_and_grad(params)
        code = self._code(problem, masks, grad)
        return PursuitState(params, value, Batch(grad), Batch(masks), code, state.step_size)

    @override
    def terminate(self, problem: Problem, state: PursuitState) -> Tensor:
        return state.code
