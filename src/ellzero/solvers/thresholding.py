"""Iterative hard thresholding and its relatives: gradient step, then projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractQuadraticObjective,
    AbstractSparseSet,
    AbstractTwiceDifferentiable,
    Problem,
)
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState, rounding
from ellzero.solvers.steps import (
    certified_step_size,
    has_certified_step_size,
    initial_step_size,
    quadratic_model_holds,
)
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_choice, check_real

# Halvings of the step before a row is declared stuck.
MAX_HALVINGS = 60


@dataclass(frozen=True, slots=True)
class ThresholdingState(SolverState):
    """State of the thresholding methods.

    Parameters
    ----------
    grad : Batch
        Gradient at `params`.
    previous : Batch
        The point before, for momentum and over-relaxation.
    step_size : Tensor of shape (size,)
        Step length of each row.
    residual : Tensor of shape (size,)
        Length of the last move over the length of the point; infinity before the first step.
    stuck : Tensor of shape (size,), bool
        Rows in which no step length was accepted.
    """

    grad: Batch
    previous: Batch
    step_size: Tensor
    residual: Tensor
    stuck: Tensor


def _threshold(problem: Problem, point: Params, incumbents: Params) -> Batch:
    assert problem.constraint is not None
    return Batch(problem.constraint.project(point, incumbents=named.nonzero_masks(incumbents)))


def _relative_move(old: Params, new: Params) -> Tensor:
    length = named.norm(named.sub(new, old))
    return torch.where(length == 0, length, length / named.norm(new).clamp_min(1e-300))


def _start(problem: Problem, params: Batch, step_size: Tensor | float | None) -> ThresholdingState:
    assert problem.constraint is not None
    params = Batch(problem.constraint.project(params))
    value, grad = problem.objective.value_and_grad(params)
    if step_size is None:
        step = initial_step_size(problem, params, grad)
    else:
        step = torch.as_tensor(step_size, dtype=value.dtype, device=value.device).expand_as(value)
    return ThresholdingState(
        params,
        value,
        Batch(grad),
        params,
        step.clone(),
        torch.full_like(value, torch.inf),
        torch.zeros_like(value, dtype=torch.bool),
    )


def _finish(
    state: ThresholdingState, params: Batch, value: Tensor, grad: Params, step: Tensor
) -> ThresholdingState:
    return ThresholdingState(
        params,
        value,
        Batch(grad),
        state.params,
        step,
        _relative_move(state.params, params),
        torch.zeros_like(state.stuck),
    )


def _terminate(state: ThresholdingState, tol: float) -> Tensor:
    code = (state.residual <= tol).to(torch.int64) * Status.CONVERGED.code
    return torch.where(state.stuck, Status.STALLED.code, code)


def _backtrack(
    problem: Problem, state: ThresholdingState, step: Tensor
) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Halve the steps whose quadratic model fails; return point, value, step, stuck rows."""
    trial = _threshold(problem, named.axpy(-step, state.grad, state.params), state.params)
    trial_value = problem.objective.value(trial)
    for _ in range(MAX_HALVINGS):
        move = named.sub(trial, state.params)
        holds = quadratic_model_holds(state.value, state.grad, move, trial_value, step)
        if named.all_true(holds):
            break
        step = torch.where(holds, step, step / 2)
        again = _threshold(problem, named.axpy(-step, state.grad, state.params), state.params)
        trial = Batch(named.where(holds, trial, again))
        trial_value = torch.where(holds, trial_value, problem.objective.value(again))
    move = named.sub(trial, state.params)
    holds = quadratic_model_holds(state.value, state.grad, move, trial_value, step)
    trial = Batch(named.where(holds, trial, state.params))
    return trial, torch.where(holds, trial_value, state.value), step, ~holds


def _needs_set(problem: Problem) -> str | None:
    if problem.constraint is None:
        return "it needs a constraint, such as `L0Ball`"
    if problem.penalty is not None:
        return "it does not take penalties"
    return None


def _needs_sparse_set(problem: Problem) -> str | None:
    if not isinstance(problem.constraint, AbstractSparseSet):
        return "it needs a sparse constraint, such as `L0Ball`"
    return _needs_set(problem)


@dataclass(frozen=True, slots=True)
class IHT(AbstractSolver[ThresholdingState]):
    r"""Iterative hard thresholding.

    .. math:: \theta^{k+1} \in H_s(\theta^k - \eta \nabla f(\theta^k))

    where :math:`\eta` is `step_size` and :math:`H_s` the projection on the constraint.

    Parameters
    ----------
    step_size : float, "backtracking" or None, default=None
        Step length. None means ``1 / L`` for an upper bound L on the restricted smoothness
        constant where the objective has one, else backtracking. "backtracking" halves the step
        until the quadratic upper model holds between the two points.
    tol : float, default=1e-10
        Stop when a step moves the point by less than `tol` times its length.

    Raises
    ------
    InvalidParameterError
        If `step_size` or `tol` is not positive (`tol` may be 0).

    See Also
    --------
    HTP : Refits on the support in every step.
    LocalSearch : IHT from many starts, then exchanges of support entries.

    Notes
    -----
    One gradient and one selection an iteration; backtracking adds one value for each halving.
    With ``step_size <= 1 / L`` the value never increases, the end point included [2]_; every limit
    point is stable under hard thresholding when ``step_size < 1 / L``. With backtracking every
    accepted step carries its own proof of descent. Ties keep the entries of the current support,
    so the fixed points are exactly the HT-stable points.

    References
    ----------
    .. [1] T. Blumensath and M. Davies, "Iterative thresholding for sparse approximations",
       J. Fourier Anal. Appl., 2008.
    .. [2] S. Damadi and J. Shen, "Gradient Properties of Hard Thresholding Operator",
       arXiv:2209.08247.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import IHT
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, IHT()).params["coef"].tolist()
    [3.0, 0.0, 2.0]
    """

    step_size: float | Literal["backtracking"] | None = None
    tol: float = 1e-10

    def __post_init__(self) -> None:
        if isinstance(self.step_size, str):
            check_choice("step_size", self.step_size, ["backtracking"])
        elif self.step_size is not None:
            check_real("step_size", self.step_size, 0.0, open_low=True)
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        return _needs_set(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> ThresholdingState:
        step = self.step_size
        if step is None:
            step = certified_step_size(problem)
        return _start(problem, params, None if isinstance(step, str) else step)

    @override
    def step(self, problem: Problem, state: ThresholdingState) -> ThresholdingState:
        fixed = isinstance(self.step_size, float | int) or (
            self.step_size is None and has_certified_step_size(problem)
        )
        if fixed:
            point = named.axpy(-state.step_size, state.grad, state.params)
            params = _threshold(problem, point, state.params)
            value, grad = problem.objective.value_and_grad(params)
            return _finish(state, params, value, grad, state.step_size)
        # Growing first lets the step recover from a bend that it met once. After a move that the
        # value cannot resolve, the model would hold for any step: it stays.
        move = named.norm_squared(named.sub(state.params, state.previous))
        seen = move / (2 * state.step_size) > 1e3 * rounding(state.value)
        growth = torch.where(seen, 1.5, 1.0).to(state.step_size.dtype)
        params, value, step, stuck = _backtrack(problem, state, state.step_size * growth)
        value, grad = problem.objective.value_and_grad(params)
        out = _finish(state, params, value, grad, step)
        return ThresholdingState(
            out.params, out.value, out.grad, out.previous, step, out.residual, stuck
        )

    @override
    def terminate(self, problem: Problem, state: ThresholdingState) -> Tensor:
        return _terminate(state, self.tol)


@dataclass(frozen=True, slots=True)
class NIHT(AbstractSolver[ThresholdingState]):
    r"""Normalized iterative hard thresholding.

    .. math:: \eta = \|g_S\|^2 / (g_S^T H g_S)

    where g is the gradient, H the Hessian at the point and S its support (at zero, the support
    that the gradient selects): the exact line search while the support stays. When the support
    changes the step is halved until the quadratic upper model holds.

    Parameters
    ----------
    tol : float, default=1e-10
        Stop when a step moves the point by less than `tol` times its length.

    Notes
    -----
    One gradient, one Hessian-vector product and one selection an iteration. The value never
    increases on quadratics, and never without the quadratic model holding on other losses; no
    smoothness constant is needed [1]_.

    References
    ----------
    .. [1] T. Blumensath and M. Davies, "Normalized iterative hard thresholding: guaranteed
       stability and performance", IEEE J. Sel. Top. Signal Process., 2010.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import NIHT
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, NIHT()).params["coef"].tolist()
    [3.0, 0.0, 2.0]
    """

    tol: float = 1e-10

    def __post_init__(self) -> None:
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractTwiceDifferentiable):
            return "it needs second derivatives"
        return _needs_sparse_set(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> ThresholdingState:
        return _start(problem, params, 1.0)

    @override
    def step(self, problem: Problem, state: ThresholdingState) -> ThresholdingState:
        objective, constraint = problem.objective, problem.constraint
        assert isinstance(objective, AbstractTwiceDifferentiable)
        assert isinstance(constraint, AbstractSparseSet)
        support = named.nonzero_masks(state.params)
        empty = named.count_nonzero(state.params) == 0
        if named.any_true(empty):
            from_grad = constraint.select(named.map_tensors(torch.square, state.grad))
            support = named.where(empty, from_grad, support)
        restricted = named.mask(state.grad, support)
        curvature = named.dot(restricted, objective.hessian_vector(state.params, restricted))
        squared = named.norm_squared(restricted)
        usable = (curvature > 0) & (squared > 0)
        length = torch.where(usable, squared / curvature.clamp_min(1e-300), state.step_size)
        length = length.to(state.value.dtype)
        params, value, length, stuck = _backtrack(problem, state, length)
        value, grad = objective.value_and_grad(params)
        out = _finish(state, params, value, grad, length)
        return ThresholdingState(
            out.params, out.value, out.grad, out.previous, length, out.residual, stuck
        )

    @override
    def terminate(self, problem: Problem, state: ThresholdingState) -> Tensor:
        return _terminate(state, self.tol)


@dataclass(frozen=True, slots=True)
class AcceleratedIHT(AbstractSolver[ThresholdingState]):
    r"""Iterative hard thresholding with momentum and a monotone safeguard.

    .. math:: u = \theta^k + \tau(\theta^k - \theta^{k-1}), \quad
        \theta^{k+1} \in H_s(u - \eta \nabla f(u))

    A row in which the value would rise takes the plain step from :math:`\theta^k` instead.

    Parameters
    ----------
    momentum : float, default=0.8
        The factor tau. Must be in [0, 1].
    step_size : float or None, default=None
        Step length; None means ``1 / L`` where the objective has an upper bound L.
    tol : float, default=1e-10
        Stop when a step moves the point by less than `tol` times its length.

    Notes
    -----
    Two gradients and one or two selections an iteration. The value never increases when
    ``step_size <= 1 / L``; faster than `IHT` once the support has settled [1]_.

    References
    ----------
    .. [1] R. Khanna and A. Kyrillidis, "IHT dies hard: provable accelerated iterative hard
       thresholding", arXiv:1712.09379.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import AcceleratedIHT
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, AcceleratedIHT()).support
    {'coef': [0, 2]}
    """

    momentum: float = 0.8
    step_size: float | None = None
    tol: float = 1e-10

    def __post_init__(self) -> None:
        check_real("momentum", self.momentum, 0.0, 1.0)
        if self.step_size is not None:
            check_real("step_size", self.step_size, 0.0, open_low=True)
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if self.step_size is None and not has_certified_step_size(problem):
            return "it needs `step_size` where the objective has no curvature bound"
        return _needs_set(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> ThresholdingState:
        return _start(problem, params, self.step_size or certified_step_size(problem))

    @override
    def step(self, problem: Problem, state: ThresholdingState) -> ThresholdingState:
        objective = problem.objective
        ahead = named.axpy(self.momentum, named.sub(state.params, state.previous), state.params)
        _, ahead_grad = objective.value_and_grad(ahead)
        point = named.axpy(-state.step_size, ahead_grad, ahead)
        params = _threshold(problem, point, state.params)
        value, grad = objective.value_and_grad(params)
        still = _relative_move(state.params, params) <= self.tol
        retry = (value > state.value) | ~torch.isfinite(value) | still
        if named.any_true(retry):
            plain = _threshold(
                problem, named.axpy(-state.step_size, state.grad, state.params), state.params
            )
            plain_value, plain_grad = objective.value_and_grad(plain)
            params = Batch(named.where(retry, plain, params))
            value = torch.where(retry, plain_value, value)
            grad = named.where(retry, plain_grad, grad)
        return _finish(state, params, value, grad, state.step_size)

    @override
    def terminate(self, problem: Problem, state: ThresholdingState) -> Tensor:
        return _terminate(state, self.tol)


@dataclass(frozen=True, slots=True)
class DORE(AbstractSolver[ThresholdingState]):
    r"""Double over-relaxation thresholding, an accelerated IHT for quadratics.

    .. math:: z_1 = \tilde\theta + a_1(\tilde\theta - \theta^k), \quad
        z_2 = z_1 + a_2(z_1 - \theta^{k-1}), \quad z_3 = H_s(z_2)

    where :math:`\tilde\theta` is an `IHT` step and both lengths are exact line searches; z_3 is
    kept when its value is not above that of the IHT step.

    Parameters
    ----------
    tol : float, default=1e-10
        Stop when a step moves the point by less than `tol` times its length.

    Notes
    -----
    Four gradients or products and two selections an iteration. Keeps every guarantee of `IHT`
    since it never does worse than its step [1]_.

    References
    ----------
    .. [1] T. Blumensath, "Accelerated iterative hard thresholding", Signal Process., 2012.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import DORE
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, DORE()).support
    {'coef': [0, 2]}
    """

    tol: float = 1e-10

    def __post_init__(self) -> None:
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractQuadraticObjective):
            return f"it needs a quadratic objective, got `{type(problem.objective).__name__}`"
        return _needs_set(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> ThresholdingState:
        return _start(problem, params, certified_step_size(problem))

    @override
    def step(self, problem: Problem, state: ThresholdingState) -> ThresholdingState:
        objective = problem.objective
        plain = _threshold(
            problem, named.axpy(-state.step_size, state.grad, state.params), state.params
        )
        plain_value, plain_grad = objective.value_and_grad(plain)
        first = self._relax(problem, plain, named.sub(plain, state.params))
        second = self._relax(problem, first, named.sub(first, state.previous))
        bold = _threshold(problem, second, plain)
        bold_value, bold_grad = objective.value_and_grad(bold)
        better = bold_value < plain_value
        params = Batch(named.where(better, bold, plain))
        value = torch.where(better, bold_value, plain_value)
        grad = named.where(better, bold_grad, plain_grad)
        return _finish(state, params, value, grad, state.step_size)

    @staticmethod
    def _relax(problem: Problem, point: Params, direction: Params) -> Params:
        """Return the minimizer of the quadratic along a line."""
        objective = problem.objective
        assert isinstance(objective, AbstractQuadraticObjective)
        _, grad = objective.value_and_grad(point)
        slope = named.dot(grad, direction)
        curvature = named.dot(direction, objective.hessian_vector(point, direction))
        length = torch.where(
            curvature > 0, -slope / curvature.clamp_min(1e-300), torch.zeros_like(slope)
        )
        return named.axpy(length, direction, point)

    @override
    def terminate(self, problem: Problem, state: ThresholdingState) -> Tensor:
        return _terminate(state, self.tol)


@dataclass(frozen=True, slots=True)
class ProximalGradient(AbstractSolver[ThresholdingState]):
    r"""Proximal gradient descent on objective plus penalty.

    .. math:: \theta^{k+1} = \mathrm{prox}_{\eta r}(\theta^k - \eta \nabla f(\theta^k))

    Parameters
    ----------
    step_size : float or None, default=None
        Step length; None means ``1 / L``.
    tol : float, default=1e-10
        Stop when a step moves the point by less than `tol` times its length.

    Notes
    -----
    One gradient and one prox an iteration. The objective plus penalty never increases when
    ``step_size <= 1 / L``, for convex and nonconvex penalties alike; with `L0` this is iterative
    hard thresholding at a fixed level.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import ProximalGradient
    >>> objective = ellzero.Quadratic(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, penalty=ellzero.L1(1.5))
    >>> ellzero.solve(problem, ProximalGradient()).params["coef"].tolist()
    [1.5, 0.0, 0.5]
    """

    step_size: float | None = None
    tol: float = 1e-10

    def __post_init__(self) -> None:
        if self.step_size is not None:
            check_real("step_size", self.step_size, 0.0, open_low=True)
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if problem.penalty is None:
            return "it needs a penalty, such as `L1`"
        if problem.constraint is not None:
            return "it does not take constraints"
        if self.step_size is None and not has_certified_step_size(problem):
            return "it needs `step_size` where the objective has no curvature bound"
        return None

    def _length(self, problem: Problem) -> float:
        return self.step_size or certified_step_size(problem) or 1.0

    @override
    def init(self, problem: Problem, params: Batch) -> ThresholdingState:
        assert problem.penalty is not None
        value, grad = problem.objective.value_and_grad(params)
        value = value + problem.penalty.value(params)
        step = torch.full_like(value, self._length(problem))
        still = torch.zeros_like(value, dtype=torch.bool)
        infinite = torch.full_like(value, torch.inf)
        return ThresholdingState(params, value, Batch(grad), params, step, infinite, still)

    @override
    def step(self, problem: Problem, state: ThresholdingState) -> ThresholdingState:
        assert problem.penalty is not None
        length = named.to_float(state.step_size[0])
        point = named.axpy(-length, state.grad, state.params)
        params = Batch(problem.penalty.prox(point, length))
        value, grad = problem.objective.value_and_grad(params)
        value = value + problem.penalty.value(params)
        return _finish(state, params, value, grad, state.step_size)

    @override
    def terminate(self, problem: Problem, state: ThresholdingState) -> Tensor:
        return _terminate(state, self.tol)
