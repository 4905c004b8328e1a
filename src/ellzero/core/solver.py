"""The one loop: solvers say how to step, `iterate` runs them over a batch of starts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ellzero.core.problem import Problem
from ellzero.core.result import Proof, Status, TreeProof
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params

# A step that changes the value by less than this share of it is rounding, not a rise.
ROUNDING = 1e-12


def rounding(value: Tensor) -> Tensor:
    """Return the change of each value that its dtype cannot tell from rounding."""
    return max(ROUNDING, 8 * torch.finfo(value.dtype).eps) * value.abs()


@dataclass(frozen=True, slots=True)
class SolverState:
    """What a solver carries from step to step.

    Every field is a `Batch` or a tensor whose first axis is the batch, so that rows that have
    finished can be taken out.

    Parameters
    ----------
    params : Batch
        Feasible points.
    value : Tensor of shape (size,)
        Objective plus penalty at `params`.
    """

    params: Batch
    value: Tensor


S = TypeVar("S", bound=SolverState)
Callback = Callable[[int, SolverState], object]


class AbstractSolver(ABC, Generic[S]):
    """Iterative method on a batch of points; rows never influence one another."""

    @abstractmethod
    def refusal(self, problem: Problem) -> str | None:
        """Return why the solver cannot treat the problem; None when it can."""

    @abstractmethod
    def init(self, problem: Problem, params: Batch) -> S:
        """Return the first state; `params` may lie outside the constraint."""

    @abstractmethod
    def step(self, problem: Problem, state: S) -> S:
        """Return the next state."""

    @abstractmethod
    def terminate(self, problem: Problem, state: S) -> Tensor:
        """Return, for each row, 0 to go on or the `code` of a `Status`; shape (size,)."""

    def proof(self, state: S) -> Proof | TreeProof | None:
        """Return the evidence of optimality that the solver has gathered, if it gathers any."""
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """Outcome of `iterate`, a row for each start.

    Parameters
    ----------
    params : Batch
        The best point of each row.
    value : Tensor of shape (size,)
        Its value.
    codes : Tensor of shape (size,), int64
        `Status.code` of each row.
    n_iter : Tensor of shape (size,), int64
        Steps that each row took.
    n_increases : Tensor of shape (size,), int64
        Steps in which the value rose by more than rounding.
    values : list of Tensor of shape (size,)
        Value of every row at the start and after each step; finished rows keep their last value.
    seconds : float
        Wall time.
    proof : Proof, TreeProof or None
        Evidence of optimality, when the solver gathers it.
    final : SolverState
        The state in which each row stopped; its point may differ from the best one.
    """

    params: Batch
    value: Tensor
    codes: Tensor
    n_iter: Tensor
    n_increases: Tensor
    values: list[Tensor]
    seconds: float
    proof: Proof | TreeProof | None
    final: SolverState

    def status(self, row: int) -> Status:
        """Return why one row stopped."""
        return Status.from_code(named.to_int(self.codes[row]))

    @property
    def best(self) -> int:
        """Row with the smallest value; the first of equals. Rows that are NaN come last."""
        return named.to_int(self.value.nan_to_num(nan=torch.inf).argmin())

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt or the callback ended the run before some row was done."""
        return named.any_true(self.codes == Status.INTERRUPTED.code)

    def trace(self, row: int) -> tuple[float, ...]:
        """Return the values of one row over its steps."""
        steps = named.to_int(self.n_iter[row]) + 1
        return tuple(named.to_float(v[row]) for v in self.values[:steps])


def iterate(
    problem: Problem,
    solver: AbstractSolver[S],
    params: Params,
    *,
    max_iter: int = 1000,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> Run:
    """Run a solver from one start or from a batch of starts.

    Parameters
    ----------
    problem : Problem
        What to minimize.
    solver : AbstractSolver
        How.
    params : mapping of str to Tensor
        A start, or a `Batch` of them.
    max_iter : int, default=1000
        Largest number of steps.
    time_limit : float or None, default=None
        Wall time in seconds after which no further step begins; None means no limit.
    callback : callable or None, default=None
        Called as ``callback(iteration, state)`` with the rows still running; a true return value
        stops the run.

    Returns
    -------
    Run
        The best point of every row. A keyboard interrupt ends the run and returns what it has.
    """
    began = time.perf_counter()
    state = solver.init(problem, named.to_batch(params))
    size = state.params.size
    device = state.value.device
    best_params, best_value = state.params, state.value.detach()
    latest = best_value
    values = [latest]
    active = torch.arange(size, device=device)
    codes = torch.zeros(size, dtype=torch.int64, device=device)
    n_iter = torch.zeros_like(codes)
    n_increases = torch.zeros_like(codes)
    limit = Status.MAX_ITER
    iteration = 0
    last = final = state
    try:
        while True:
            code = solver.terminate(problem, state)
            code = torch.where(torch.isfinite(state.value), code, Status.NON_FINITE.code)
            last = state
            if named.any_true(code != 0):
                codes[active[code != 0]] = code[code != 0]
                keep = code == 0
                final = state if active.numel() == size else named.put_rows(final, active, state)
                active = active[keep]
                if active.numel() == 0:
                    break
                state = named.take_rows(state, keep)
                problem = problem.take(keep)
            if callback is not None and callback(iteration, state):
                limit = Status.INTERRUPTED
                break
            if iteration >= max_iter:
                break
            if time_limit is not None and time.perf_counter() - began >= time_limit:
                limit = Status.TIME_LIMIT
                break
            before = state.value
            state = solver.step(problem, state)
            iteration += 1
            n_iter[active] += 1
            n_increases[active] += (state.value > before + rounding(before)).to(torch.int64)
            latest = latest.index_copy(0, active, state.value.detach())
            values.append(latest)
            # A later point wins ties up to rounding: it is the one closer to stationarity.
            held = best_value[active]
            better = state.value <= held + rounding(held)
            if named.all_true(better) and active.numel() == size:
                best_params, best_value = state.params, torch.minimum(state.value, held)
            elif named.any_true(better):
                rows = active[better]
                best_value = best_value.index_copy(0, rows, state.value[better])
                improved = named.take(state.params, better)
                best_params = Batch(
                    {n: t.index_copy(0, rows, improved[n]) for n, t in best_params.items()}
                )
    except KeyboardInterrupt:
        limit = Status.INTERRUPTED
    if active.numel() > 0:
        final = state if active.numel() == size else named.put_rows(final, active, state)
    codes[codes == 0] = limit.code
    return Run(
        params=best_params,
        value=best_value,
        codes=codes,
        n_iter=n_iter,
        n_increases=n_increases,
        values=values,
        seconds=time.perf_counter() - began,
        proof=solver.proof(last),
        final=final,
    )
