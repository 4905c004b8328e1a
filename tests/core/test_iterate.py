"""The one loop: budgets, callbacks, interrupts, failures, compaction."""

from dataclasses import dataclass

import pytest
import torch

from ellzero import Batch, L0Ball, LeastSquares, Problem, Status, iterate, solve
from ellzero.core.solver import AbstractSolver, SolverState
from ellzero.solvers import HTP, IHT, BranchAndBound, LocalSearch
from tests.problems import random_problem


@dataclass(frozen=True, slots=True)
class Script(AbstractSolver[SolverState]):
    """Replays values given for every row; row i converges at step `stops[i]`."""

    rows: tuple[tuple[float, ...], ...]
    stops: tuple[int, ...]

    def refusal(self, problem):
        return None

    def _state(self, numbers, step):
        values = [self.rows[i][step] for i in numbers]
        params = Batch({"coef": torch.tensor([[float(i), float(step)] for i in numbers])})
        return SolverState(params, torch.tensor(values, dtype=torch.float64))

    def init(self, problem, params):
        return self._state(range(params.size), 0)

    def step(self, problem, state):
        numbers = [int(i) for i in state.params["coef"][:, 0]]
        return self._state(numbers, int(state.params["coef"][0, 1]) + 1)

    def terminate(self, problem, state):
        codes = [
            Status.CONVERGED.code * (self.stops[int(row)] <= step)
            for row, step in state.params["coef"].tolist()
        ]
        return torch.tensor(codes)


PROBLEM = Problem(LeastSquares(torch.eye(2), torch.ones(2)), L0Ball(1))
NAN, INF = float("nan"), float("inf")
ROWS = (
    (5.0, 4.0, 3.0, 2.0, 1.0),  # falls to the end
    (5.0, 6.0, 3.0, 4.0, 4.5),  # rises at steps 1, 3 and 4; the best is at 2
    (2.0, 1.0, NAN, NAN, NAN),
    (7.0, 7.0, 7.0, 7.0, 7.0),
)


def run_script(stops=(9, 9, 9, 1), **options):
    zeros = Batch({"coef": torch.zeros(4, 2)})
    return iterate(PROBLEM, Script(ROWS, stops), zeros, **{"max_iter": 4, **options})


def test_every_row_has_its_own_end_best_point_and_trace():
    run = run_script()
    expected = [Status.MAX_ITER, Status.MAX_ITER, Status.NON_FINITE, Status.CONVERGED]
    assert [run.status(i) for i in range(4)] == expected
    assert run.n_iter.tolist() == [4, 4, 2, 1]
    assert run.n_increases.tolist() == [0, 3, 0, 0]
    assert run.value.tolist() == [1.0, 3.0, 1.0, 7.0]
    # Of equal values the later point is kept.
    assert run.params["coef"].tolist() == [[0, 4], [1, 2], [2, 1], [3, 1]]
    assert run.trace(0) == ROWS[0]
    assert run.trace(1) == ROWS[1]
    assert run.trace(2)[:2] == (2.0, 1.0)
    assert run.trace(3) == (7.0, 7.0)
    assert run.best == 0
    assert not run.interrupted


def test_rounding_is_not_a_rise():
    rows = ((1.0, 1.0 + 1e-13, 1.0 + 1e-11),)
    zeros = Batch({"coef": torch.zeros(1, 2)})
    run = iterate(PROBLEM, Script(rows, (9,)), zeros, max_iter=2)
    assert run.n_increases.tolist() == [1]


def test_a_row_that_is_never_finite_is_not_the_best():
    rows = ((NAN, NAN), (5.0, 4.0), (INF, INF))
    zeros = Batch({"coef": torch.zeros(3, 2)})
    run = iterate(PROBLEM, Script(rows, (9, 9, 9)), zeros, max_iter=1)
    assert run.best == 1
    assert [run.status(i) for i in (0, 1, 2)] == [
        Status.NON_FINITE,
        Status.MAX_ITER,
        Status.NON_FINITE,
    ]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_max_iter(limit):
    run = run_script(max_iter=limit)
    assert run.n_iter[0] == limit
    assert len(run.values) == limit + 1


def test_time_limit_zero_takes_no_step():
    run = run_script(time_limit=0.0)
    assert run.n_iter.tolist() == [0, 0, 0, 0]
    assert {run.status(i) for i in range(4)} == {Status.TIME_LIMIT}


def test_callback_sees_running_rows_and_stops():
    seen = []

    def callback(iteration, state):
        seen.append((iteration, state.params["coef"][:, 0].tolist()))
        return iteration == 2

    run = run_script(callback=callback)
    assert seen == [(0, [0, 1, 2, 3]), (1, [0, 1, 2]), (2, [0, 1])]
    assert run.status(0) is Status.INTERRUPTED
    assert run.status(3) is Status.CONVERGED
    assert run.interrupted
    assert run.n_iter.tolist() == [2, 2, 2, 1]


def test_interrupt_in_the_callback_keeps_the_best():
    def callback(iteration, state):
        if iteration == 3:
            raise KeyboardInterrupt

    run = run_script(callback=callback)
    assert run.value.tolist() == [2.0, 3.0, 1.0, 7.0]
    assert run.status(1) is Status.INTERRUPTED
    assert run.trace(1) == ROWS[1][:4]


class Bomb:
    """Raises at a chosen call of a method of an objective, or poisons its value."""

    def __init__(self, objective, name, at, poison=None):
        self.method, self.left, self.poison = getattr(objective, name), at, poison
        setattr(objective, name, self)

    def __call__(self, *args):
        self.left -= 1
        if self.left == 0 and self.poison is None:
            raise KeyboardInterrupt
        out = self.method(*args)
        if self.left < 0 and self.poison is not None:
            return out[0] + self.poison, out[1]
        return out


def test_interrupt_in_the_objective_keeps_the_best():
    problem, _, _ = random_problem(0, "logistic")
    plain = iterate(problem, IHT(), problem.objective.init_params(), max_iter=4)
    Bomb(problem.objective, "value_and_grad", 6)
    result = solve(problem, IHT(), certify=False)
    assert result.status is Status.INTERRUPTED
    assert result.n_iter == 4
    assert result.value == plain.value[0]
    assert result.trace == plain.trace(0)


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 20, 40])
@pytest.mark.parametrize("solver", [None, LocalSearch()], ids=["default", "search"])
def test_one_interrupt_ends_a_whole_search(solver, at):
    problem, best, _ = random_problem(3, "logistic", p=9, budget=4, ridge=0.01)
    start = problem.objective.init_params()
    bomb = Bomb(problem.objective, "value_and_grad", at)
    try:
        result = solve(problem, solver, start, certify=False)
    except KeyboardInterrupt:
        return  # nothing had been computed yet: it reaches the caller
    if bomb.left > 0:
        assert result.status.is_success
    else:
        assert result.status is Status.INTERRUPTED
        assert problem.constraint.violation(result.params) == 0
        assert result.value >= best * (1 - 1e-8)


def test_an_interrupted_proof_still_bounds():
    problem, best, _ = random_problem(5, "logistic", p=10, budget=3, ridge=0.01)
    solver = BranchAndBound(width=2, rounds=3)

    def interrupt(iteration, state):
        if hasattr(state, "tree") and iteration == 2:
            Bomb(problem.objective, "hessian_on", 2)

    result = solve(problem, solver, callback=interrupt, certify=False)
    assert result.status is Status.INTERRUPTED
    fresh, _, _ = random_problem(5, "logistic", p=10, budget=3, ridge=0.01)
    from ellzero import verify

    certificate = verify(fresh, result.params, proof=result.proof)
    missing = [c for c in certificate.checks if c.name.startswith("boxes")]
    assert [c.passed for c in missing] == [True]
    assert certificate.lower_bound <= best


@pytest.mark.parametrize("solver", [IHT(), HTP()], ids=["IHT", "HTP"])
def test_objective_that_becomes_nan(solver):
    problem, _, _ = random_problem(0, "least squares")
    Bomb(problem.objective, "value_and_grad", 2, poison=NAN)
    result = solve(problem, solver)
    if isinstance(solver, IHT):
        assert result.status is Status.NON_FINITE
        assert result.certificate is None
    assert torch.isfinite(result.params["coef"]).all()
    assert result.value == result.value


def test_a_step_that_is_too_long_is_reported():
    problem, _, _ = random_problem(0, "least squares")
    result = solve(problem, IHT(step_size=1e200), max_iter=1000)
    assert result.status is Status.NON_FINITE
    assert result.value <= result.trace[0]


def test_compaction_leaves_the_other_rows_alone():
    problem, _, _ = random_problem(1, "least squares")
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    together = iterate(problem, IHT(tol=1e-6), Batch({"coef": points}))
    assert len(set(together.n_iter.tolist())) > 1
    for i in range(6):
        alone = iterate(problem, IHT(tol=1e-6), {"coef": points[i]})
        assert alone.n_iter[0] == together.n_iter[i]
        torch.testing.assert_close(alone.params["coef"][0], together.params["coef"][i])
        assert alone.trace(0) == pytest.approx(together.trace(i), rel=1e-12)


@pytest.mark.parametrize(("max_iter", "steps"), [(9, [3, 0, 5, 3]), (4, [3, 0, 4, 3])])
@pytest.mark.parametrize("stop_at", [None, 2])
def test_final_has_the_last_state_of_every_row(max_iter, steps, stop_at):
    # The best values come early; the final state is where each row stopped all the same.
    rows = ((1.0, 0.0, *range(2, 12)), (5.0,) * 12, tuple(range(12)), (2.0, 1.0, *range(3, 13)))
    problem, _, _ = random_problem(0, "least squares")
    solver = Script(rows, (3, 0, 5, 3))
    start = Batch({"coef": torch.zeros(4, 2)})
    callback = None if stop_at is None else lambda iteration, state: iteration == stop_at
    run = iterate(problem, solver, start, max_iter=max_iter, callback=callback)
    if stop_at is not None:
        steps = [min(step, stop_at) for step in steps]
    assert run.final.params["coef"].tolist() == [[i, step] for i, step in enumerate(steps)]
    assert run.final.value.tolist() == [rows[i][step] for i, step in enumerate(steps)]
    assert run.value[0] == 0.0
