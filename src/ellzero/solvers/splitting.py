"""Relaxed variable splitting: descent on a dense point that a thresholded copy attracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractCoarseObjective, Problem, upper_curvature
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.errors import NonFiniteError
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_choice, check_real

ORDERS = ("gauss-seidel", "jacobi")

Oracle = Callable[[Params], tuple[Tensor, Params]]


@dataclass(frozen=True, slots=True)
class SplittingState(SolverState):
    """State of the splitting methods; `params` is the thresholded point u.

    Parameters
    ----------
    dense : Batch
        The dense point w.
    grad : Batch
        The gradient that moves w, without the attraction; coarse for `RVSCGD`.
    lagrangian : Tensor of shape (size,)
        Smooth part at w, plus penalty at u, plus ``beta / 2 * |w - u|^2``.
    grad_norm : Tensor of shape (size,)
        Norm of the gradient of the Lagrangian in w.
    residual : Tensor of shape (size,)
        Longer of the last moves of w and u over the length of w; infinity before the first step.
    """

    dense: Batch
    grad: Batch
    lagrangian: Tensor
    grad_norm: Tensor
    residual: Tensor


def _sparsify(problem: Problem, dense: Batch, incumbents: Params | None, beta: float) -> Batch:
    """Return the minimizer of the Lagrangian over the sparse point."""
    if problem.constraint is not None:
        masks = None if incumbents is None else named.nonzero_masks(incumbents)
        return Batch(problem.constraint.project(dense, incumbents=masks))
    assert problem.penalty is not None
    return Batch(problem.penalty.prox(dense, 1.0 / beta))


def _normalized(dense: Params) -> Batch:
    return Batch(named.scale(dense, 1.0 / named.norm(dense)))


def _state(
    problem: Problem,
    oracle: Oracle,
    dense: Batch,
    sparse: Batch,
    beta: float,
    residual: Tensor | None,
) -> SplittingState:
    smooth, grad = oracle(dense)
    value = problem.objective.value(sparse)
    apart = named.sub(dense, sparse)
    lagrangian = smooth + beta / 2 * named.norm_squared(apart)
    if problem.penalty is not None:
        price = problem.penalty.value(sparse)
        value, lagrangian = value + price, lagrangian + price
    return SplittingState(
        sparse,
        value,
        dense,
        Batch(grad),
        lagrangian,
        named.norm(named.axpy(beta, apart, grad)),
        torch.full_like(lagrangian, torch.inf) if residual is None else residual,
    )


def _start(
    problem: Problem, oracle: Oracle, params: Batch, beta: float, normalize: bool
) -> SplittingState:
    dense = _normalized(params) if normalize else params
    state = _state(problem, oracle, dense, _sparsify(problem, dense, None, beta), beta, None)
    if not named.all_true(torch.isfinite(state.grad_norm)):
        row = named.to_int((~torch.isfinite(state.grad_norm)).to(torch.int64).argmax())
        raise NonFiniteError(
            f"`params` must be points with a finite gradient, got one without in row {row}.",
            "Start elsewhere: a zero filter, for example, has no gradient.",
        )
    return state


def _advance(
    problem: Problem,
    oracle: Oracle,
    state: SplittingState,
    beta: float,
    step_size: float,
    order: str,
    normalize: bool,
) -> SplittingState:
    apart = named.sub(state.dense, state.params)
    dense = Batch(
        named.map_tensors(
            lambda w, g, v: w - step_size * (g + beta * v).to(w.dtype),
            state.dense,
            state.grad,
            apart,
        )
    )
    if normalize:
        dense = _normalized(dense)
    seen = dense if order == "gauss-seidel" else state.dense
    sparse = _sparsify(problem, seen, state.params, beta)
    moves = [
        named.norm(named.sub(new, old))
        for new, old in ((dense, state.dense), (sparse, state.params))
    ]
    moved = torch.maximum(*moves)
    residual = torch.where(moved == 0, moved, moved / named.norm(dense).clamp_min(1e-300))
    return _state(problem, oracle, dense, sparse, beta, residual)


def _check(beta: float, step_size: float | None, order: str, tol: float) -> None:
    check_real("beta", beta, 0.0, open_low=True, hint="It couples the dense and the sparse point.")
    if step_size is not None:
        check_real("step_size", step_size, 0.0, open_low=True)
    check_choice("order", order, ORDERS)
    check_real("tol", tol, 0.0)


def _refusal(problem: Problem) -> str | None:
    if problem.penalty is None and problem.constraint is None:
        return "it needs a penalty, such as `L1`, or a constraint, such as `L0Ball`"
    if problem.penalty is not None and problem.constraint is not None:
        return "it takes a penalty or a constraint, not both"
    return None


def _terminate(state: SplittingState, tol: float) -> Tensor:
    return (state.residual <= tol).to(torch.int64) * Status.CONVERGED.code


@dataclass(frozen=True, slots=True)
class RVSM(AbstractSolver[SplittingState]):
    r"""Relaxed variable splitting method.

    Alternates on the Lagrangian of a dense point w and a sparse one u, without multipliers,

    .. math:: L_\beta(w, u) = f(w) + r(u) + \tfrac\beta2 \|w - u\|^2

    .. math:: u \leftarrow \mathrm{prox}_{r / \beta}(w), \quad
        w \leftarrow w - \eta \, (\nabla f(w) + \beta (w - u))

    where r is the penalty of the problem, or the indicator of its constraint: u is then the
    projection of w, such as its s largest entries.

    Parameters
    ----------
    beta : float, default=0.1
        The coupling. Must be positive; small beta leaves w close to a minimizer of f.
    step_size : float or None, default=None
        The eta. None means ``1 / (beta + L)`` for an upper curvature L of the objective.
    order : {"gauss-seidel", "jacobi"}, default="gauss-seidel"
        Whether u follows the new w, or the one before (u then lags a step).
    normalize : bool, default=False
        Whether w is scaled to length 1 after each step.
    tol : float, default=1e-10
        Stop when a step moves w and u by less than `tol` times the length of w.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.
    NonFiniteError
        If a start has no finite gradient, such as a zero filter.

    See Also
    --------
    RVSCGD : The same for coarse gradients.
    ProximalGradient : Minimizes objective plus penalty itself, without a dense point.
    ellzero.certificates.check_splitting : Step-size condition, residuals and cautions at a point.
    ellzero.certificates.lagrangian_descent : The rate, checked along a run.
    ellzero.nn.RVSM : The same around a torch optimizer.

    Notes
    -----
    One gradient, one value (of f at u) and one prox or projection an iteration. The point of the
    problem is u; `value` is that of the problem at u and may rise. What never rises, for
    ``step_size < 2 / (beta + L)`` and the order "gauss-seidel", is the `lagrangian` of the state:
    with w and u of each iteration it falls by at least ``step_size * (1 - step_size * (L + beta)
    / 2)`` times the squared gradient of the Lagrangian in w [2]_. The penalty may be nonconvex.
    The gap between w and u does not close unless the gradient of f vanishes: u is biased by the
    penalty as `L1` is, or free of bias as `L0` is. ``iterate(...).final`` has w beside u.

    References
    ----------
    .. [1] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting method for learning
       sparse neural networks via l1, l0, and transformed-l1 penalties", arXiv:1812.05719.
    .. [2] T. Dinh et al., "Sparsity meets robustness: channel pruning for the Feynman-Kac
       formalism principled robust deep neural nets", arXiv:2003.00631 (Theorem 1).

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import RVSM
    >>> teacher = torch.tensor([0.6, 0.0, 0.0, -0.8], dtype=torch.float64)
    >>> objective = ellzero.PatchNetworkLoss(teacher, n_patches=4)
    >>> beta, threshold = 0.02, 0.1
    >>> problem = ellzero.Problem(objective, penalty=ellzero.L0(beta * threshold**2 / 2))
    >>> found = ellzero.solve(problem, RVSM(beta), max_iter=2000)
    >>> found.support, round(found.value, 8)
    ({'filter': [0, 3]}, 0.0002)
    """

    beta: float = 0.1
    step_size: float | None = None
    order: str = "gauss-seidel"
    normalize: bool = False
    tol: float = 1e-10

    def __post_init__(self) -> None:
        _check(self.beta, self.step_size, self.order, self.tol)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if self.step_size is None and upper_curvature(problem.objective) is None:
            return "it needs `step_size` where the objective has no curvature bound"
        return _refusal(problem)

    def length(self, problem: Problem) -> float:
        """Return the step size that a problem gets."""
        if self.step_size is not None:
            return self.step_size
        bound = upper_curvature(problem.objective)
        assert bound is not None
        return 1.0 / (self.beta + bound)

    @override
    def init(self, problem: Problem, params: Batch) -> SplittingState:
        oracle = problem.objective.value_and_grad
        return _start(problem, oracle, params, self.beta, self.normalize)

    @override
    def step(self, problem: Problem, state: SplittingState) -> SplittingState:
        length = self.length(problem)
        oracle = problem.objective.value_and_grad
        return _advance(problem, oracle, state, self.beta, length, self.order, self.normalize)

    @override
    def terminate(self, problem: Problem, state: SplittingState) -> Tensor:
        return _terminate(state, self.tol)


@dataclass(frozen=True, slots=True)
class RVSCGD(AbstractSolver[SplittingState]):
    r"""Relaxed variable splitting with a coarse gradient, for binary activations.

    .. math:: u \leftarrow \mathrm{prox}_{r / \beta}(w), \quad
        w \leftarrow w - \eta \, (g(w) + \beta (w - u)), \quad w \leftarrow w / |w|

    where g is the coarse gradient that a straight-through estimator gives.

    Parameters
    ----------
    beta : float, default=0.1
        The coupling. Must be positive; the angle between w and the teacher is O(beta / c).
    step_size : float or None, default=None
        The eta. None means ``1 / (beta + c)``, with which each step minimizes the surrogate over
        the sphere.
    order : {"gauss-seidel", "jacobi"}, default="gauss-seidel"
        Whether u follows the new w, or the one before.
    normalize : bool, default=True
        Whether w is scaled to length 1 after each step. Without it convex penalties shrink w to
        about their threshold and u to zero: the loss does not see the length of w.
    tol : float, default=1e-10
        Stop when a step moves w and u by less than `tol` times the length of w.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.
    NonFiniteError
        If a start has no finite gradient, such as a zero filter.

    See Also
    --------
    RVSM : The same for objectives with a gradient.
    ellzero.certificates.limit_relation : How the limit depends on the teacher.

    Notes
    -----
    One coarse gradient, one value and one prox or projection an iteration. With normalization,
    the order "gauss-seidel" and ``step_size <= 1 / (beta + c)`` the surrogate
    :math:`c (1 - \langle w, w_* \rangle) + r(u) + (\beta/2) \|w - u\|^2`, which is the
    `lagrangian` of the state, never rises: w moves towards its minimizer on the sphere. The same
    with the true loss may rise near the end, since that has a kink at the teacher.

    References
    ----------
    .. [1] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting coarse gradient descent
       method for learning sparse weight binarized activation neural networks", arXiv:1901.09731.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import RVSCGD
    >>> teacher = torch.tensor([0.6, 0.0, 0.0, -0.8], dtype=torch.float64)
    >>> objective = ellzero.BinaryPatchNetworkLoss(teacher, n_patches=20)
    >>> problem = ellzero.Problem(objective, penalty=ellzero.L1(0.01))
    >>> ellzero.solve(problem, RVSCGD(0.1), certify=False).support
    {'filter': [0, 3]}
    """

    beta: float = 0.1
    step_size: float | None = None
    order: str = "gauss-seidel"
    normalize: bool = True
    tol: float = 1e-10

    def __post_init__(self) -> None:
        _check(self.beta, self.step_size, self.order, self.tol)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractCoarseObjective):
            return f"it needs a coarse gradient, got `{type(problem.objective).__name__}`"
        return _refusal(problem)

    def length(self, problem: Problem) -> float:
        """Return the step size that a problem gets."""
        if self.step_size is not None:
            return self.step_size
        assert isinstance(problem.objective, AbstractCoarseObjective)
        return 1.0 / (self.beta + problem.objective.coarse_curvature())

    @override
    def init(self, problem: Problem, params: Batch) -> SplittingState:
        assert isinstance(problem.objective, AbstractCoarseObjective)
        oracle = problem.objective.coarse_value_and_grad
        return _start(problem, oracle, params, self.beta, self.normalize)

    @override
    def step(self, problem: Problem, state: SplittingState) -> SplittingState:
        assert isinstance(problem.objective, AbstractCoarseObjective)
        length, oracle = self.length(problem), problem.objective.coarse_value_and_grad
        return _advance(problem, oracle, state, self.beta, length, self.order, self.normalize)

    @override
    def terminate(self, problem: Problem, state: SplittingState) -> Tensor:
        return _terminate(state, self.tol)
