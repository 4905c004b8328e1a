"""What every solver owes, over the registry."""

import numpy as np
import pytest
import torch

from ellzero import Batch, L0Ball, LeastSquares, Problem, Quadratic, Status, iterate, solve
from ellzero.errors import IncompatibleError
from ellzero.solvers import (
    OMP,
    BranchAndBound,
    ExactSubset,
    GraHTP,
    LocalSearch,
    Newton,
    SubsetSearch,
    random_starts,
)
from ellzero.tensors import named
from tests.problems import planted, random_data
from tests.registry import CONVEX, PROBLEMS, SOLVERS

# Rounding of a mean over at most 200 terms, relative to the value at zero.
ROUNDING = 1e-12
LINEAR = {
    "IHT", "AcceleratedIHT", "NIHT", "DORE", "ProximalGradient", "GradientDescent", "AdaGrad",
    "RVSM", "RVSCGD",
}  # fmt: skip

TAKES = [
    pytest.param(make, entry, name, id=f"{entry.kind.__name__}-{case}-{name}")
    for entry in SOLVERS
    for case, make in entry.cases.items()
    for name in entry.takes
]
REFUSES = [
    pytest.param(entry, name, reason, id=f"{entry.kind.__name__}-{name}")
    for entry in SOLVERS
    for name, reason in entry.refuses.items()
]
every_case = pytest.mark.parametrize(("make", "entry", "name"), TAKES)
sparse_solvers = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=f"{entry.kind.__name__}-{case}")
        for entry in SOLVERS
        for case, make in entry.cases.items()
        if "least-squares" in entry.takes and entry.kind is not Newton
    ],
)


def starts(problem, count=4, seed=0):
    return random_starts(problem, count, generator=torch.Generator().manual_seed(seed))


def assert_feasible(problem, batch):
    if problem.constraint is not None:
        assert (problem.constraint.violation(batch) == 0).all()


@pytest.mark.parametrize(("entry", "name", "reason"), REFUSES)
def test_refusal_quotes_its_reason(entry, name, reason):
    problem = PROBLEMS[name]()
    solver = entry.kind()
    assert solver.refusal(problem) == reason
    with pytest.raises(IncompatibleError) as error:
        solve(problem, solver)
    assert error.value.message == (f"`{entry.kind.__name__}` cannot treat this problem: {reason}.")
    if error.value.hint is not None:
        assert error.value.hint.endswith((" accept it.", " accepts it."))


@every_case
def test_run_is_feasible_and_never_rises(make, entry, name):
    problem = PROBLEMS[name]()
    assert make().refusal(problem) is None
    batch = starts(problem, 1 if entry.kind is BranchAndBound else 4)
    limit = 30 if "module" in name else 300
    run = iterate(problem, make(), batch, max_iter=limit)
    assert_feasible(problem, run.params)
    np.testing.assert_allclose(run.value, problem.value(run.params), rtol=1e-10, atol=1e-12)
    if entry.monotone:
        values = torch.stack(run.values)
        rises = values[1:] - values[:-1]
        assert (rises <= ROUNDING * values[0].abs()).all()
        assert (run.n_increases == 0).all()
    allowed = {Status.CONVERGED, Status.STALLED}
    if limit == 30 or entry.kind.__name__ in LINEAR:
        allowed.add(Status.MAX_ITER)  # linear rates: these need not be done by then
    assert {run.status(i) for i in range(run.params.size)} <= allowed


@every_case
def test_no_steps_return_the_start_made_feasible(make, entry, name):
    problem = PROBLEMS[name]()
    run = iterate(problem, make(), starts(problem, 1), max_iter=0)
    assert len(run.values) == 1
    assert run.n_iter.tolist() == [0]
    assert_feasible(problem, run.params)
    done_at_once = entry.kind in {OMP, BranchAndBound, LocalSearch, SubsetSearch, ExactSubset}
    assert run.status(0) is Status.MAX_ITER or (done_at_once and run.status(0) is Status.CONVERGED)


@every_case
def test_exhausted_time_is_reported(make, entry, name):
    problem = PROBLEMS[name]()
    run = iterate(problem, make(), starts(problem, 1), time_limit=0.0)
    assert run.status(0) in {Status.TIME_LIMIT, Status.CONVERGED}
    assert run.n_iter.tolist() == [0]
    assert_feasible(problem, run.params)


@pytest.mark.parametrize(
    ("make", "entry", "name"), [case for case in TAKES if case.values[2] in CONVEX]
)
def test_start_at_the_answer_ends_in_one_step(make, entry, name):
    if entry.kind in {OMP, BranchAndBound}:
        pytest.skip("builds its support, or its proof, whatever the start")
    problem = PROBLEMS[name]()
    answer = solve(problem, LocalSearch(), starts=10, certify=False)
    run = iterate(problem, make(), answer.params)
    # A search that cannot price exchanges exactly minimizes at most 18 of them, 8 in a step.
    exact = isinstance(problem.objective, LeastSquares | Quadratic)
    limit = 3 if entry.kind is LocalSearch and not exact else 1
    assert run.n_iter.tolist() <= [limit]
    assert run.status(0).is_success
    np.testing.assert_allclose(run.value, [answer.value], rtol=1e-12)
    moved = named.flatten(named.row(run.params, 0)) - named.flatten(answer.params)
    # A refit on the same support differs by rounding.
    assert moved.abs().max() <= 1e-8


@every_case
def test_batch_rows_equal_single_runs(make, entry, name):
    if entry.kind is BranchAndBound:
        pytest.skip("keeps one tree")
    if entry.kind is GraHTP and name == "module":
        pytest.skip("L-BFGS on a network magnifies rounding")
    problem = PROBLEMS[name]()
    batch = starts(problem, 3, seed=1)
    limit = 5 if "module" in name else 50
    together = iterate(problem, make(), batch, max_iter=limit)
    for i in range(3):
        alone = iterate(problem, make(), named.row(batch, i), max_iter=limit)
        np.testing.assert_allclose(together.value[i], alone.value[0], rtol=1e-9, atol=1e-12)
        got = named.flatten(named.row(together.params, i))
        expected = named.flatten(named.row(alone.params, 0))
        assert torch.equal(got != 0, expected != 0)
        # Rounding differs by processor, and adaptive steps magnify it.
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


@every_case
def test_dtype_is_kept(make, entry, name):
    problem = PROBLEMS[name](torch.float32)
    run = iterate(problem, make(), starts(problem, 2), max_iter=5)
    assert {t.dtype for t in run.params.values()} == {torch.float32}
    assert_feasible(problem, run.params)
    assert (run.value - run.values[0] <= 1e-5 * run.values[0].abs()).all()
    exact = PROBLEMS[name]().value(named.to_double(run.params))
    # Rounding of data and of a mean of 30 terms in float32.
    np.testing.assert_allclose(run.value, exact, rtol=1e-4, atol=1e-5)


def count_calls(objective, names=("value_and_grad", "hessian_vector")):
    """Make an objective count calls of its methods."""
    counts = dict.fromkeys(names, 0)

    def counted(name, method):
        def call(*args):
            counts[name] += 1
            return method(*args)

        return call

    for name in names:
        setattr(objective, name, counted(name, getattr(objective, name)))
    return counts


@pytest.mark.parametrize(
    ("entry", "case"),
    [
        pytest.param(entry, case, id=f"{entry.kind.__name__}-{case}")
        for entry in SOLVERS
        if entry.gradients is not None
        for case in entry.cases
    ],
)
def test_work_of_a_step(entry, case):
    names = ("least-squares", "l1", "patches-l1", "free")
    name = next(n for n in names if n in entry.takes)
    problem = PROBLEMS[name]()
    solver = entry.cases[case]()
    state = solver.init(problem, starts(problem, 2))
    for _ in range(3):
        counts = count_calls(problem.objective)
        state = solver.step(problem, state)
        assert counts == {"value_and_grad": entry.gradients, "hessian_vector": entry.products}


@pytest.mark.parametrize(
    "entry", [e for e in SOLVERS if e.recovers], ids=lambda entry: entry.kind.__name__
)
@pytest.mark.parametrize("seed", range(3))
def test_planted_support_is_found(entry, seed):
    # Chance would need one of C(200, 5) = 2.5e9 supports. n >> 2 s log(p): theory promises it.
    problem, coef = planted(seed)
    result = solve(problem, entry.kind(), starts=0, certify=False)
    assert result.support == {"coef": np.flatnonzero(coef).tolist()}
    np.testing.assert_allclose(result.params["coef"], coef, atol=1e-7)


def supports_of(problem, solver, batch):
    run = iterate(problem, solver, batch, max_iter=3000)
    return named.flatten(named.nonzero_masks(run.params))


def correlated(seed=0, n=40, p=15):
    X, y = random_data(seed, n, p, "least squares", noise=2.0)
    return torch.tensor(X), torch.tensor(y)


@sparse_solvers
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_rescaled_loss_keeps_the_support(make, factor):
    X, y = correlated()
    Q, c = X.T @ X / 40 + 0.1 * torch.eye(15), X.T @ y / 40
    zero = {"coef": torch.zeros(15).double()}
    plain = supports_of(Problem(Quadratic(Q, c), L0Ball(4)), make(), zero)
    scaled = supports_of(Problem(Quadratic(factor * Q, factor * c), L0Ball(4)), make(), zero)
    assert plain.sum() == 4
    assert torch.equal(plain, scaled)


@sparse_solvers
def test_permuted_features_and_duplicated_samples_keep_the_support(make):
    X, y = correlated(1)
    order = torch.tensor(np.random.default_rng(0).permutation(15))
    zero = {"coef": torch.zeros(15).double()}

    def run(X, y):
        problem = Problem(LeastSquares(X, y, ridge=0.1), L0Ball(4))
        return supports_of(problem, make(), zero)[0]

    plain = run(X, y)
    assert torch.equal(run(X[:, order], y), plain[order])
    assert torch.equal(run(torch.cat([X, X]), torch.cat([y, y])), plain)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=f"{entry.kind.__name__}-{case}")
        for entry in SOLVERS
        for case, make in entry.cases.items()
        if entry.monotone and "least-squares" in entry.takes and entry.kind is not BranchAndBound
    ],
)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_value_never_rises_on_random_problems(make, ridge):
    for seed in range(4):
        X, y = correlated(seed, n=12, p=20)  # more features than samples, columns correlated
        problem = Problem(LeastSquares(X, y, ridge=ridge), L0Ball(4))
        run = iterate(problem, make(), starts(problem, 8, seed), max_iter=80)
        values = torch.stack(run.values)
        assert (values[1:] - values[:-1] <= ROUNDING * values[0]).all()


def test_starts_outside_the_set_are_projected():
    problem = PROBLEMS["least-squares"]()
    outside = Batch({"coef": torch.ones(1, 6).double()})
    for entry in SOLVERS:
        if "least-squares" in entry.takes:
            run = iterate(problem, entry.kind(), outside, max_iter=1)
            assert_feasible(problem, run.params)
