"""Gradient descent with one step size for all coordinates, exact or on sampled gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractSmoothObjective,
    AbstractStochasticObjective,
    Problem,
)
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_choice, check_real

StepSize = float | Sequence[float] | None


@dataclass(frozen=True, slots=True)
class DescentState(SolverState):
    """State of the methods that follow the gradient.

    Parameters
    ----------
    grad : Batch
        What the next step uses: the gradient at `params`, or a sample of it.
    grad_l1 : Tensor of shape (size,)
        The l1-norm of `grad`.
    first_l1 : Tensor of shape (size,)
        The same at the start.
    step_size : Tensor of shape (size,)
        Step length of each row.
    n_steps : Tensor of shape (size,), int64
        Steps taken.
    """

    grad: Batch
    grad_l1: Tensor
    first_l1: Tensor
    step_size: Tensor
    n_steps: Tensor


def check_step_size(step_size: StepSize) -> None:
    """Raise when step sizes are not positive numbers."""
    if step_size is None:
        return
    if isinstance(step_size, Sequence) and not isinstance(step_size, str):
        if not step_size:
            raise InvalidParameterError("`step_size` must hold at least one number, got none.")
        for one in step_size:
            check_real("step_size", one, 0.0, open_low=True)
        return
    check_real("step_size", step_size, 0.0, open_low=True)


def refuse(problem: Problem, generator: torch.Generator | None) -> str | None:
    """Return why plain descent cannot treat a problem."""
    if problem.constraint is not None:
        return "it does not take constraints"
    if problem.penalty is not None:
        return "it does not take penalties"
    if generator is not None and not isinstance(problem.objective, AbstractStochasticObjective):
        return (
            "it was given a `generator`, but the objective has no sampled gradients, as "
            "`FiniteSum` and `NoisyGradient` have"
        )
    return None


def evaluate(
    problem: Problem, params: Batch, generator: torch.Generator | None
) -> tuple[Tensor, Batch]:
    """Return the exact value and the gradient, sampled where a generator is given."""
    objective = problem.objective
    if generator is None:
        value, grad = objective.value_and_grad(params)
        return value, Batch(grad)
    assert isinstance(objective, AbstractStochasticObjective)
    return objective.value(params), Batch(objective.sampled_grad(params, generator))


def l1_norm(grad: Params) -> Tensor:
    """Return the sum of magnitudes, accumulated in float64."""
    return named.dot(grad, named.map_tensors(torch.sign, grad))


def row_steps(step_size: float | Sequence[float], value: Tensor) -> Tensor:
    """Return one step size for each row.

    Raises
    ------
    InvalidParameterError
        If there are as many step sizes as neither one nor the rows.
    """
    steps = torch.as_tensor(step_size, dtype=value.dtype, device=value.device)
    if steps.ndim and steps.shape[0] not in (1, value.shape[0]):
        raise InvalidParameterError(
            f"`step_size` must hold one number or one for each of {value.shape[0]} starts, got "
            f"{steps.shape[0]}."
        )
    return steps.expand_as(value).clone()


def stopped(state: DescentState, tol: float, generator: torch.Generator | None) -> Tensor:
    """Return the codes of rows whose gradient is small; sampled gradients prove nothing."""
    if generator is not None:
        return torch.zeros_like(state.n_steps)
    small = state.grad_l1 <= tol * state.first_l1
    return small.to(torch.int64) * Status.CONVERGED.code


@dataclass(frozen=True, slots=True)
class GradientDescent(AbstractSolver[DescentState]):
    r"""Gradient descent, stochastic when given a source of randomness.

    .. math:: x_{t+1} = x_t - \eta_t g_t, \quad \eta_t = \eta \text{ or } \eta / \sqrt{t}

    where :math:`g_t` is the gradient, or an unbiased sample of it.

    Parameters
    ----------
    step_size : float, sequence of float or None, default=None
        The number eta: one, or one for each start. None means 1 / L for an upper bound L on the
        largest curvature, where the objective has one.
    schedule : {"constant", "sqrt"}, default="constant"
        Whether the step stays, or falls as 1 / sqrt(t).
    tol : float, default=1e-6
        Stop when the l1-norm of the gradient is at most `tol` times that at the start.
    generator : torch.Generator or None, default=None
        Source of sampled gradients; None means exact ones. Going on with the same generator
        continues its stream.

    Raises
    ------
    InvalidParameterError
        If a step size is not positive, `tol` is negative, or the schedule is unknown.

    See Also
    --------
    AdaGrad : A step size for every coordinate.

    Notes
    -----
    One gradient a step; with a `generator`, one sampled gradient and one exact value (for the
    best point), and `tol` is not looked at. With exact gradients and a constant
    ``step_size <= 1 / L`` the value never rises and

    .. math:: \min_{t < T} \|\nabla f(x_t)\|_2^2 \le \frac{2 \Delta}{\eta T}, \quad
        \Delta = f(x_0) - \inf f,

    so the l1-norm falls below :math:`\epsilon` within :math:`2 n \Delta L / \epsilon^2` steps at
    :math:`\eta = 1 / L`. With noise of variances :math:`\sigma_i^2` the mean of
    :math:`\|\nabla f\|_2^2` is at most
    :math:`2 \Delta / (\eta T) + \eta \sum_i L_i \sigma_i^2`, with the refined smoothness L of
    [1]_. The factor n in the l1-norm is not an artifact: see `ellzero reproduce adagrad`.

    References
    ----------
    .. [1] R. Jiang, D. Maladkar, A. Mokhtari, "Provable complexity improvement of AdaGrad over
       SGD", arXiv:2406.04592.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import GradientDescent
    >>> f = ellzero.Quadratic(torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([2.0, 3.0]))
    >>> result = ellzero.solve(ellzero.Problem(f), GradientDescent())
    >>> result.status.name, result.params["coef"].round(decimals=4).tolist()
    ('CONVERGED', [1.0, 3.0])
    """

    step_size: StepSize = None
    schedule: Literal["constant", "sqrt"] = "constant"
    tol: float = 1e-6
    generator: torch.Generator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_choice("schedule", self.schedule, ["constant", "sqrt"])
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        reason = refuse(problem, self.generator)
        known = isinstance(problem.objective, AbstractSmoothObjective)
        if reason is None and self.step_size is None and not known:
            return "it needs `step_size` where the objective has no curvature bound"
        return reason

    @override
    def init(self, problem: Problem, params: Batch) -> DescentState:
        value, grad = evaluate(problem, params, self.generator)
        step = self.step_size
        if step is None:
            assert isinstance(problem.objective, AbstractSmoothObjective)
            curvature = problem.objective.smoothness()
            step = 1.0 / curvature if curvature > 0 else 1.0
        size = l1_norm(grad)
        return DescentState(
            params,
            value,
            grad,
            size,
            size,
            row_steps(step, value),
            torch.zeros(value.shape, dtype=torch.int64, device=value.device),
        )

    @override
    def step(self, problem: Problem, state: DescentState) -> DescentState:
        length = state.step_size
        if self.schedule == "sqrt":
            length = length / (state.n_steps + 1).to(length.dtype).sqrt()
        params = Batch(named.axpy(-length, state.grad, state.params))
        value, grad = evaluate(problem, params, self.generator)
        return DescentState(
            params,
            value,
            grad,
            l1_norm(grad),
            state.first_l1,
            state.step_size,
            state.n_steps + 1,
        )

    @override
    def terminate(self, problem: Problem, state: DescentState) -> Tensor:
        return stopped(state, self.tol, self.generator)
