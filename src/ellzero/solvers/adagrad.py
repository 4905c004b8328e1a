"""AdaGrad: a step size for every coordinate, from the gradients seen there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractCoordinateSmoothObjective,
    AbstractSmoothObjective,
    Problem,
)
from ellzero.core.solver import AbstractSolver
from ellzero.errors import InvalidParameterError
from ellzero.geometry import smoothness_vector
from ellzero.solvers.gradient_descent import (
    DescentState,
    StepSize,
    check_step_size,
    evaluate,
    l1_norm,
    refuse,
    row_steps,
    stopped,
)
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.validation import check_real


@dataclass(frozen=True, slots=True)
class AdaGradState(DescentState):
    """State of AdaGrad.

    Parameters
    ----------
    squares : Batch
        Floor squared plus the sum of squared gradients, the present one included.
    """

    squares: Batch


def has_coordinate_bound(problem: Problem) -> bool:
    """Return whether a refined smoothness vector is known for the objective."""
    known = AbstractCoordinateSmoothObjective | AbstractSmoothObjective
    return isinstance(problem.objective, known)


@dataclass(frozen=True, slots=True)
class AdaGrad(AbstractSolver[AdaGradState]):
    r"""Adaptive gradient method with a diagonal of step sizes.

    .. math:: v_{t,i} = v_{t-1,i} + g_{t,i}^2, \quad
        x_{t+1,i} = x_{t,i} - \eta g_{t,i} / \sqrt{v_{t,i}}

    where :math:`g_t` is the gradient or an unbiased sample of it and :math:`v_0` the square of
    `floor` times its largest entry at the start.

    Parameters
    ----------
    step_size : float, sequence of float or None, default=None
        The number eta, in the units of the parameters: one, or one for each start. None means
        :math:`\sqrt{\Delta / \|L\|_1}` with :math:`\Delta` the value at the start minus
        `lower_bound` and L the refined smoothness vector, where the objective has one.
    floor : float, default=1e-8
        See above; any number that is small against 1 gives nearly the same steps.
    lower_bound : float, default=0.0
        A number below all values, for the default step; 0 suits losses.
    tol : float, default=1e-6
        Stop when the l1-norm of the gradient is at most `tol` times that at the start.
    generator : torch.Generator or None, default=None
        Source of sampled gradients; None means exact ones.

    Raises
    ------
    InvalidParameterError
        If a step size or `floor` is not positive, `tol` is negative, or the value at the start is
        below `lower_bound`.

    See Also
    --------
    GradientDescent : One step size for all coordinates.
    ellzero.certificates.adagrad_bound : Recomputes the inequalities below for a run.

    Notes
    -----
    One gradient a step; with a `generator`, one sampled gradient and one exact value, and `tol` is
    not looked at. The value may rise. After T steps with exact gradients, and with
    :math:`b_i = \sqrt{v_{T,i}}`, floor :math:`b_0` and
    :math:`-\mathrm{diag}(L) \preceq \nabla^2 f \preceq \mathrm{diag}(L)`,

    .. math:: \frac1T \sum_t \|\nabla f(x_t)\|_1 \le \frac{1}{\sqrt T} \sum_i b_i, \quad
        \sum_i b_i \le n b_0 + \frac{\Delta}{\eta} + \eta \sum_i L_i \log(b_i / b_0),

    convex or not: up to the logarithm :math:`\Delta \|L\|_1 / \epsilon^2` steps to an l1-norm of
    :math:`\epsilon` at the default step. Where curvature sits in a few coordinates that is up to
    n times fewer than any constant step of `GradientDescent` [1]_; where it is flat, or in rotated
    axes, nothing is gained.

    References
    ----------
    .. [1] R. Jiang, D. Maladkar, A. Mokhtari, "Provable complexity improvement of AdaGrad over
       SGD", arXiv:2406.04592.

    Examples
    --------
    >>> import ellzero
    >>> from ellzero.objectives import StiffRamps
    >>> from ellzero.solvers import AdaGrad, GradientDescent
    >>> f = StiffRamps(64)
    >>> problem, start = ellzero.Problem(f), f.start()
    >>> ellzero.solve(problem, AdaGrad(tol=0.1), start, certify=False).n_iter
    12
    >>> method = GradientDescent(tol=0.1)
    >>> ellzero.solve(problem, method, start, max_iter=5000, certify=False).n_iter
    1583
    """

    step_size: StepSize = None
    floor: float = 1e-8
    lower_bound: float = 0.0
    tol: float = 1e-6
    generator: torch.Generator | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_step_size(self.step_size)
        check_real("floor", self.floor, 0.0, open_low=True)
        check_real("lower_bound", self.lower_bound)
        check_real("tol", self.tol, 0.0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        reason = refuse(problem, self.generator)
        if reason is None and self.step_size is None and not has_coordinate_bound(problem):
            return "it needs `step_size` where the objective has no curvature bound"
        return reason

    @override
    def init(self, problem: Problem, params: Batch) -> AdaGradState:
        value, grad = evaluate(problem, params, self.generator)
        if self.step_size is None:
            total = named.to_float(smoothness_vector(problem.objective).sum())
            decrease = value - self.lower_bound
            if named.any_true(decrease < 0):
                lowest = named.to_float(value.min())
                raise InvalidParameterError(
                    f"`lower_bound` must be below the value at the start, got "
                    f"{self.lower_bound:g} and a value of {lowest:g}.",
                    "Give a number below all values, or a `step_size`.",
                )
            # At the lower bound itself the gradient is zero and no step matters.
            step = (decrease / max(total, 1e-300)).sqrt()
        else:
            step = row_steps(self.step_size, value)
        size = l1_norm(grad)
        first = (self.floor * named.max_abs(grad)).square()
        squares = named.map_tensors(lambda g: g.square() + named.expand_scalar(first, g), grad)
        return AdaGradState(
            params,
            value,
            grad,
            size,
            size,
            step,
            torch.zeros(value.shape, dtype=torch.int64, device=value.device),
            Batch(squares),
        )

    @override
    def step(self, problem: Problem, state: AdaGradState) -> AdaGradState:
        # Where no gradient was ever seen, there is nothing to follow.
        move = named.map_tensors(
            lambda g, v: torch.where(v > 0, g / v.sqrt(), torch.zeros_like(g)),
            state.grad,
            state.squares,
        )
        params = Batch(named.axpy(-state.step_size, move, state.params))
        value, grad = evaluate(problem, params, self.generator)
        squares = named.map_tensors(lambda v, g: v + g.square(), state.squares, grad)
        return AdaGradState(
            params,
            value,
            grad,
            l1_norm(grad),
            state.first_l1,
            state.step_size,
            state.n_steps + 1,
            Batch(squares),
        )

    @override
    def terminate(self, problem: Problem, state: AdaGradState) -> Tensor:
        return stopped(state, self.tol, self.generator)
