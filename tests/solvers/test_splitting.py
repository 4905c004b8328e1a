"""Relaxed variable splitting: anchors of the fact sheet, descent, limits, budgets, collapse."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch

from ellzero import (
    L0,
    L1,
    BinaryPatchNetworkLoss,
    GroupL0,
    GroupL1,
    GroupTransformedL1,
    L0Ball,
    PatchNetworkLoss,
    Problem,
    TransformedL1,
    iterate,
    solve,
)
from ellzero.certificates import check_splitting, lagrangian_descent, limit_relation
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.papers.rvsm import sparse_teachers
from ellzero.solvers import RVSCGD, RVSM
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from tests.registry import module

K, D, S = 20, 50, 10
TEACHER = sparse_teachers(1, D, S)[0]


def same_support(found, teacher):
    return ((found != 0) == (teacher != 0)).all(-1)


def objective(teacher=TEACHER, k=K):
    return PatchNetworkLoss(teacher, k)


def at_limit(problem, solver, params=None, max_iter=5000):
    start = problem.objective.random_params() if params is None else params
    return iterate(problem, solver, start, max_iter=max_iter).final


def follow(problem, solver, start, steps):
    """Return all states of all rows: in the loop, rows that have settled leave."""
    states = [solver.init(problem, named.to_batch(start))]
    for _ in range(steps):
        states.append(solver.step(problem, states[-1]))
    return states


# Anchors: measured by other code with the same teacher, printed to three digits.
ANCHORS = [
    (4e-3, lambda b: L1(0.02 * b), 1.36e-3, 1.52e-3, 6.43e-2),
    (4e-3, lambda b: TransformedL1(0.01 * b), 1.22e-3, 1.29e-3, 3.96e-2),
    (4e-3, lambda b: L1(0.05 * b), 3.42e-3, 3.83e-3, 1.61e-1),
    (4e-3, lambda b: TransformedL1(0.025 * b), 3.24e-3, 3.40e-3, 1.02e-1),
    (1e-3, lambda b: L1(0.05 * b), 8.46e-4, 9.50e-4, 1.59e-1),
]


@pytest.mark.parametrize(("beta", "make", "angle", "error", "sparse_error"), ANCHORS)
def test_anchors(beta, make, angle, error, sparse_error):
    problem = Problem(objective(), penalty=make(beta))
    state = at_limit(problem, RVSM(beta, step_size=0.5, tol=1e-15))
    found = limit_relation(problem.objective, state.dense, state.params, beta=beta)
    # Half a unit of the third digit.
    assert found.angle.item() == pytest.approx(angle, rel=5e-3)
    assert found.error.item() == pytest.approx(error, rel=5e-3)
    assert found.sparse_error.item() == pytest.approx(sparse_error, rel=5e-3)
    assert same_support(state.params["filter"][0], TEACHER)
    assert found.remainder.item() < 1e-12
    assert abs(found.constant - found.predicted).item() < 1e-12


def test_l0_recovers_a_sparse_teacher_exactly():
    problem = Problem(objective(), penalty=L0(4e-3 * 8e-4))
    state = at_limit(problem, RVSM(4e-3, step_size=0.5, tol=1e-17), max_iter=3000)
    assert (state.dense["filter"][0] - TEACHER).norm() < 1e-14
    assert torch.equal(state.params["filter"][0] != 0, TEACHER != 0)


def test_error_is_proportional_to_beta():
    ratios = []
    for beta in (8e-3, 4e-3, 2e-3, 1e-3):
        problem = Problem(objective(), penalty=L1(0.05 * beta))
        state = at_limit(problem, RVSM(beta, tol=1e-14))
        ratios.append((state.dense["filter"][0] - TEACHER).norm().item() / beta)
    assert ratios == pytest.approx([0.967, 0.957, 0.953, 0.950], abs=5e-4)


def test_reading_of_the_limit_by_coordinates():
    beta, mu = 4e-3, 0.05
    problem = Problem(objective(), penalty=L1(mu * beta))
    state = at_limit(problem, RVSM(beta, tol=1e-15))
    w, u = state.dense["filter"][0], state.params["filter"][0]
    found = limit_relation(problem.objective, state.dense, state.params, beta=beta)
    C, kappa = found.constant.item(), found.kappa.item()
    kept = u != 0
    assert torch.allclose((C * w)[kept], (TEACHER - kappa * mu * w.sign())[kept], atol=1e-12)
    assert torch.allclose(((C + kappa) * w)[~kept], TEACHER[~kept], atol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: L1(2e-4), lambda: L0(8e-6), lambda: TransformedL1(1e-4), lambda: None],
    ids=["l1", "l0", "tl1", "top-s"],
)
def test_limit_relation_holds_with_and_without_normalization(make, normalize):
    constraint = L0Ball(S) if make() is None else None
    problem = Problem(objective(), constraint, make())
    state = at_limit(problem, RVSM(4e-3, normalize=normalize, tol=1e-15), max_iter=3000)
    found = limit_relation(problem.objective, state.dense, state.params, beta=4e-3)
    assert found.remainder.item() < 1e-12
    # And the check can fail: away from the limit.
    moved = Batch({"filter": state.dense["filter"] + 1e-6 * torch.eye(D)[:1]})
    wrong = limit_relation(problem.objective, moved, state.params, beta=4e-3)
    assert wrong.remainder.item() > 1e-9


def test_groups_and_exact_budgets():
    labels = torch.arange(D) // 5
    teacher = TEACHER.clone()
    teacher[10:] = 0
    teacher[:10] = sparse_teachers(1, 10, 10)[0]
    for penalty in (
        GroupL0(2e-5, labels),
        GroupL1(2e-4, labels),
        GroupTransformedL1(1e-4, labels),
    ):
        state = at_limit(Problem(objective(teacher), penalty=penalty), RVSM(4e-3))
        u = state.params["filter"][0].reshape(10, 5)
        assert (u != 0).all(1).tolist() == [True, True] + [False] * 8
    state = at_limit(Problem(objective(), L0Ball(S)), RVSM(4e-3, tol=1e-16))
    assert torch.allclose(state.params["filter"][0], TEACHER, atol=1e-13)


def test_jacobi_order_lags_and_has_the_same_limit():
    problem = Problem(objective(), penalty=L1(2e-4))
    seen = []
    solver = RVSM(4e-3, order="jacobi", step_size=0.5, tol=1e-14)
    run = iterate(
        problem, solver, problem.objective.random_params(), max_iter=5000,
        callback=lambda i, state: seen.append(state),
    )  # fmt: skip
    for before, after in itertools.pairwise(seen[:6]):
        prox = problem.penalty.prox(before.dense, 1 / 4e-3)
        assert torch.equal(after.params["filter"], prox["filter"])
        _, grad = problem.objective.value_and_grad(before.dense)
        w, u = before.dense["filter"], before.params["filter"]
        expected = w - 0.5 * (grad["filter"] + 4e-3 * (w - u))
        assert torch.equal(after.dense["filter"], expected)
    state = at_limit(problem, RVSM(4e-3, step_size=0.5, tol=1e-14))
    assert torch.allclose(run.final.dense["filter"], state.dense["filter"], atol=1e-11)


def test_gauss_seidel_follows_the_new_point():
    problem = Problem(objective(), penalty=L1(2e-4))
    solver = RVSM(4e-3, step_size=0.5)
    state = solver.init(problem, Batch(named.to_batch(problem.objective.random_params())))
    after = solver.step(problem, state)
    expected = problem.penalty.prox(after.dense, 1 / 4e-3)["filter"]
    assert torch.equal(after.params["filter"], expected)


# Descent -----------------------------------------------------------------------------------------


def descent(k, beta, step_size, penalty, steps=150, starts=20):
    problem = Problem(objective(k=k), penalty=penalty)
    solver = RVSM(beta, step_size=step_size)
    states = follow(problem, solver, problem.objective.random_params(size=starts), steps)
    path = [state.dense for state in states]
    return lagrangian_descent(problem, path, beta=beta, step_size=step_size)


@pytest.mark.parametrize("penalty", [L1(2e-3), L0(1e-3), TransformedL1(1e-3)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_lagrangian_descends_at_its_rate(penalty, share, k):
    beta = 0.05
    limit = 2 / (beta + objective(k=k).upper_curvature())
    found = descent(k, beta, share * limit, penalty)
    assert found.holds.all()
    rises = found.values[1:] - found.values[:-1]
    assert (rises <= 1e-13 * found.values[0]).all()
    assert (found.least_grad <= found.bound * (1 + 1e-9) + 1e-25).all()


def test_certificate_is_refused_for_wrong_paths():
    found = descent(2, 0.05, 0.1, L1(2e-3), steps=20)
    problem = Problem(objective(k=2), penalty=L1(2e-3))
    start = problem.objective.random_params(size=20)
    path = [state.dense for state in follow(problem, RVSM(0.05, step_size=0.1), start, 20)]
    assert found.holds.all()
    # Steps in reverse, and steps shorter than claimed.
    assert not lagrangian_descent(problem, path[::-1], beta=0.05, step_size=0.1).holds.any()
    assert not lagrangian_descent(problem, path, beta=0.05, step_size=1.0).holds.any()


def test_step_size_condition_is_sharp_at_two_patches():
    # 2 / (beta + L) = 3.0: two patches settle at 2 and never at 4; five settle at 4.
    beta = 4e-3
    settled = {}
    for k, step_size in ((2, 2.0), (2, 4.0), (5, 4.0)):
        problem = Problem(objective(k=k), penalty=L1(0.02 * beta))
        start = problem.objective.random_params()
        run = iterate(problem, RVSM(beta, step_size=step_size), start, max_iter=600)
        check = check_splitting(problem, run.final.dense, beta=beta, step_size=step_size)
        settled[k, step_size] = check.grad_norm.item() < 1e-8
        if k == 2:
            assert round(check.step_limit, 1) == 3.0
            assert (check.rate is None) == (step_size == 4.0)
    assert settled == {(2, 2.0): True, (2, 4.0): False, (5, 4.0): True}
    assert not descent(2, beta, 4.0, L1(0.02 * beta), steps=50).holds.any()
    # A long start grows without bound.
    problem = Problem(objective(k=2), penalty=L1(0.02 * beta))
    run = iterate(problem, RVSM(beta, step_size=4.0), {"filter": 3 * TEACHER}, max_iter=100)
    assert run.final.dense["filter"].norm() > 1e6


# Batches -----------------------------------------------------------------------------------------


def counting(teachers):
    counted = PatchNetworkLoss(teachers, K)
    calls = []
    inner = counted.value_and_grad

    def call(params):
        calls.append(params.size)
        return inner(params)

    counted.value_and_grad = call
    return counted, calls


def test_a_thousand_teachers_cost_the_calls_of_one():
    teachers = sparse_teachers(1000, D, S, seed=1)
    counted, calls = counting(teachers)
    counted.take = lambda index: pytest.fail("no row finishes")
    problem = Problem(counted, penalty=L1(2e-4))
    run = iterate(problem, RVSM(4e-3, tol=0.0), counted.random_params(), max_iter=30)
    # One gradient for the start and one a step, each for all rows.
    assert calls == [1000] * 31
    assert run.n_iter.tolist() == [30] * 1000
    for row in (0, 500, 999):
        alone, single = counting(teachers[row])
        start = named.row(counted.random_params(), row)
        found = iterate(Problem(alone, penalty=L1(2e-4)), RVSM(4e-3, tol=0.0), start, max_iter=30)
        assert single == [1] * 31
        w = found.final.dense["filter"][0]
        assert torch.allclose(w, run.final.dense["filter"][row], rtol=1e-12, atol=1e-15)


def test_rows_finish_with_their_own_teachers():
    teachers = sparse_teachers(12, D, S, seed=2)
    problem = Problem(PatchNetworkLoss(teachers, K), penalty=L0(4e-3 * 8e-4))
    run = iterate(problem, RVSM(4e-3, tol=1e-9), problem.objective.random_params(), max_iter=5000)
    assert len(set(run.n_iter.tolist())) > 1
    assert torch.allclose(run.final.dense["filter"], teachers, atol=1e-6)
    assert same_support(run.params["filter"], teachers).all()
    # The final state is that of each row's own last step.
    assert (run.final.residual <= 1e-9).all()
    again = limit_relation(problem.objective, run.final.dense, run.final.params, beta=4e-3)
    assert (again.remainder < 1e-6).all()


# Bad input and cautions --------------------------------------------------------------------------


def test_zero_start_is_refused():
    problem = Problem(objective(), penalty=L1(1e-4))
    with pytest.raises(NonFiniteError) as error:
        solve(problem, RVSM(4e-3), problem.objective.init_params())
    assert str(error.value) == (
        "`params` must be points with a finite gradient, got one without in row 0.\n"
        "hint: Start elsewhere: a zero filter, for example, has no gradient."
    )
    # The default start of `solve` is not zero.
    assert solve(problem, RVSM(4e-3), max_iter=2000).status.is_success


def texts(problem, dense=TEACHER, **options):
    return check_splitting(problem, {"filter": dense}, **options).cautions


def test_cautions():
    fine = Problem(objective(), penalty=L1(0.02 * 4e-3))
    assert texts(fine, beta=4e-3, step_size=0.5) == ()
    assert texts(fine, beta=4e-3, step_size=6.0) == (
        "`step_size` 6 is not below 2 / (beta + L) = 5.61: the Lagrangian may rise, and the "
        "iteration diverge.",
    )
    assert texts(Problem(objective(), penalty=L1(0.004)), beta=0.2) == (
        "`beta` 0.2 is above 1 / k = 0.05: the sparse point may hold the dense one back, and the "
        "support be lost.",
    )
    assert texts(Problem(objective(), penalty=L0(4e-3 * 0.15**2 / 2)), beta=4e-3) == (
        "The threshold 0.15 is not below the typical entry, |w| / sqrt(d) = 0.141: entries that "
        "matter may be set to zero; lower the weight of the penalty, or raise `beta`.",
    )
    assert texts(Problem(objective(), penalty=L1(1.0)), beta=0.01)[-1] == (
        "The sparse point is zero: the penalty outweighs the objective."
    )
    binary = Problem(BinaryPatchNetworkLoss(TEACHER, K), penalty=L1(0.02))
    assert texts(binary, beta=0.4, step_size=0.3) == (
        "`step_size` 0.3 is above 1 / (beta + c) = 0.228: the surrogate may rise.",
        "Without normalization the penalty shrinks the dense point until the sparse one is zero, "
        "since the loss does not see its length; set `normalize=True`.",
    )
    assert texts(binary, beta=5.0, normalize=True) == (
        "`beta` 5 is above c = 3.99: the sparse point may hold the dense one back, and the "
        "support be lost.",
    )


def test_solve_logs_cautions_and_measures(caplog):
    problem = Problem(objective(), penalty=L1(0.004))
    with caplog.at_level(logging.WARNING, logger="ellzero"):
        result = solve(problem, RVSM(0.2), certify=False)
    assert [r.getMessage() for r in caplog.records] == [
        "RVSM: `beta` 0.2 is above 1 / k = 0.05: the sparse point may hold the dense one back, "
        "and the support be lost."
    ]
    assert result.measures["cautions"] in caplog.records[0].getMessage()
    assert result.measures["splitting_gap"] > 0
    assert result.measures["lagrangian_grad_norm"] < 1e-8


def test_messages_of_the_certificates():
    with pytest.raises(IncompatibleError) as error:
        check_splitting(Problem(objective()), {"filter": TEACHER}, beta=0.1)
    assert str(error.value) == (
        "`problem` must have a penalty or a constraint, got neither.\n"
        "hint: Pass `ellzero.Problem(objective, penalty=ellzero.L1(0.01))`."
    )
    problem = Problem(objective(), penalty=L1(0.1))
    with pytest.raises(InvalidParameterError) as error:
        lagrangian_descent(problem, [{"filter": TEACHER}], beta=0.1, step_size=1.0)
    assert str(error.value) == (
        "`path` must hold two points or more, got 1.\n"
        "hint: Record `state.dense` by a `callback` of `ellzero.iterate`."
    )
    ragged = [Batch({"filter": TEACHER.expand(n, D)}) for n in (3, 2)]
    with pytest.raises(InvalidParameterError) as error:
        lagrangian_descent(problem, ragged, beta=0.1, step_size=1.0)
    assert str(error.value) == (
        "`path` must hold the same rows in every batch, got batches of several sizes.\n"
        "hint: Rows that finish leave the loop: record one start, or call `solver.step` yourself."
    )
    with pytest.raises(InvalidParameterError, match="`beta` must be positive, got 0"):
        check_splitting(problem, {"filter": TEACHER}, beta=0.0)
    net = Problem(module(), penalty=L1(0.1))
    point = net.objective.current_params()
    with pytest.raises(IncompatibleError) as error:
        lagrangian_descent(net, [point, point], beta=0.1, step_size=1.0)
    assert str(error.value) == (
        "`ModuleLoss` has no upper curvature: no rate is proven.\n"
        "hint: Look at `check_splitting` for stationarity instead."
    )
    with pytest.raises(IncompatibleError) as error:
        limit_relation(net.objective, point, point, beta=0.1)
    assert str(error.value) == (
        "`objective` must be a patch network with a teacher, got `ModuleLoss`.\n"
        "hint: Use `check_splitting` for other objectives."
    )


def test_any_objective_is_taken():
    # On a network with a step size: the Lagrangian falls, the sparse point has what was asked.
    problem = Problem(module(), L0Ball(8))
    path = []
    run = iterate(
        problem, RVSM(0.1, step_size=0.05), problem.objective.current_params(), max_iter=60,
        callback=lambda i, state: path.append(state.lagrangian.item()),
    )  # fmt: skip
    assert named.to_int(named.count_nonzero(run.params)[0]) == 8
    assert np.diff(path).max() <= 1e-13
    assert path[-1] < 0.5 * path[0]


# Binary activations ------------------------------------------------------------------------------

BINARY_ANCHORS = [
    (0.4, lambda b: L1(0.05 * b), 4.29e-3, 5.48e-2),
    (0.4, lambda b: TransformedL1(0.025 * b), 4.06e-3, 4.86e-2),
    (0.1, lambda b: L1(0.05 * b), 1.06e-3, 5.10e-2),
    (0.1, lambda b: TransformedL1(0.025 * b), 1.00e-3, 4.51e-2),
]


@pytest.mark.parametrize(("beta", "make", "angle", "sparse_angle"), BINARY_ANCHORS)
def test_binary_anchors(beta, make, angle, sparse_angle):
    problem = Problem(BinaryPatchNetworkLoss(TEACHER, K), penalty=make(beta))
    state = at_limit(problem, RVSCGD(beta, step_size=0.05, tol=1e-15), max_iter=1000)
    found = limit_relation(problem.objective, state.dense, state.params, beta=beta)
    assert found.angle.item() == pytest.approx(angle, rel=5e-3)
    assert found.sparse_angle.item() == pytest.approx(sparse_angle, rel=5e-3)
    assert same_support(state.params["filter"][0], TEACHER)
    assert found.remainder.item() < 1e-12
    assert found.constant.item() > 0


def test_binary_l0_is_exact():
    problem = Problem(BinaryPatchNetworkLoss(TEACHER, K), penalty=L0(0.4 * 1.25e-3))
    state = at_limit(problem, RVSCGD(0.4, step_size=0.05, tol=1e-17), max_iter=1000)
    assert (state.params["filter"][0] - TEACHER).norm() < 1e-14


@pytest.mark.parametrize("estimator", ["relu", "identity"])
@pytest.mark.parametrize("step_size", [0.05, None])
@pytest.mark.parametrize("penalty", [L1(0.02), L0(5e-4), TransformedL1(0.01)])
def test_surrogate_never_rises_with_normalization(penalty, step_size, estimator):
    problem = Problem(BinaryPatchNetworkLoss(TEACHER, K, estimator), penalty=penalty)
    start = problem.objective.random_params(size=30)
    states = follow(problem, RVSCGD(0.4, step_size=step_size), start, 150)
    values = [state.lagrangian for state in states]
    values = torch.stack(values)
    assert (values[1:] - values[:-1]).max() <= 1e-13 * values[0].max()
    assert (values[-1] < values[0]).all()


def test_default_step_minimizes_the_surrogate_over_the_sphere():
    problem = Problem(BinaryPatchNetworkLoss(TEACHER, K), penalty=L1(0.02))
    solver = RVSCGD(0.4)
    c = problem.objective.coarse_curvature()
    state = solver.init(problem, named.to_batch(problem.objective.random_params()))
    after = solver.step(problem, state)
    best = c * TEACHER + 0.4 * state.params["filter"][0]
    assert torch.allclose(after.dense["filter"][0], best / best.norm(), atol=1e-14)


def test_collapse_without_normalization(caplog):
    problem = Problem(BinaryPatchNetworkLoss(TEACHER, K), penalty=L1(0.4 * 0.1))
    solver = RVSCGD(0.4, step_size=0.05, normalize=False)
    with caplog.at_level(logging.WARNING, logger="ellzero"):
        result = solve(problem, solver, max_iter=800, certify=False)
    assert "set `normalize=True`" in caplog.text
    state = at_limit(problem, solver, max_iter=800)
    # The length falls to about the threshold and the sparse point to zero.
    assert state.dense["filter"].norm().item() == pytest.approx(0.1, rel=0.05)
    assert (state.params["filter"] == 0).all()
    assert "splitting_gap" in result.measures
    # Keeping the length keeps the support; l0 survives without.
    kept = at_limit(problem, RVSCGD(0.4, step_size=0.05), max_iter=800)
    assert same_support(kept.params["filter"][0], TEACHER)
    free = Problem(problem.objective, penalty=L0(0.4 * 1.25e-3))
    survived = at_limit(free, RVSCGD(0.4, step_size=0.05, normalize=False), max_iter=800)
    assert same_support(survived.params["filter"][0], TEACHER)
    assert math.isclose(survived.dense["filter"].norm().item(), 1, rel_tol=0.5)
