"""The gated program: gaps recomputed by hand, values from a conic solver, both solvers alike."""

import itertools
import warnings

import numpy as np
import pytest
from scipy.special import xlogy

from ellzero.core.result import Status
from ellzero.errors import DataError, InvalidParameterError
from ellzero.relu import (
    GatedProgram,
    certify_gated,
    gated_path,
    memory_needed,
    read_gates,
    sample_gates,
    solve_gated,
)
from ellzero.relu.gated_factor import Factor
from ellzero.relu.gated_newton import _Lagrangian
from ellzero.relu.losses import loss_of

cp = pytest.importorskip("cvxpy")
CASES = list(
    itertools.product(("squared", "logistic"), (1, 3), (False, True), ("newton", "proximal"))
)


def problem(loss="squared", n_outputs=1, intercept=False, n=40, d=4, n_gates=25, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, d))
    y = np.maximum(A @ rng.standard_normal((d, n_outputs)), 0) + 0.3
    y += 0.3 * rng.standard_normal(y.shape)
    if loss == "logistic":
        y = np.where(y > np.median(y, axis=0), 1.0, -1.0)
    gates = read_gates(A, sample_gates(n_gates, d, rng))
    return GatedProgram(A, gates.patterns, y, loss_of(loss), intercept)


def explicit(program):
    """Return the matrix [D_1 A, ..., D_p A], which the library never forms."""
    return [program.A * program.patterns[:, [i]] for i in range(program.n_gates)]


def by_hand(program, penalty, solution):
    """Return value and lower bound from the formulas, with explicit matrices."""
    n, k = program.y.shape
    blocks = explicit(program)
    outputs = np.tile(solution.constant, (n, 1))
    norm = 0.0
    for i, U in zip(solution.support, solution.weights, strict=True):
        outputs = outputs + blocks[i] @ U
        norm += np.linalg.norm(U)
    y, V = program.y, solution.point
    if type(program.loss).__name__ == "SquaredLoss":
        value = 0.5 * np.mean((outputs - y) ** 2)
        V = V - V.mean(axis=0) if program.fit_intercept else V
        top = max(np.linalg.norm(block.T @ V) for block in blocks)
        t = min(penalty / top, np.sum(V * y) / (n * k * np.sum(V * V)))
        bound = t * np.sum(V * y) - n * k * t**2 / 2 * np.sum(V * V)
    else:
        value = np.mean(np.log1p(np.exp(-y * outputs)))
        if program.fit_intercept:
            for column in V.T:
                up, down = column[column > 0].sum(), -column[column < 0].sum()
                column[column > 0] *= min(up, down) / up
                column[column < 0] *= min(up, down) / down
        top = max(np.linalg.norm(block.T @ V) for block in blocks)
        bound = 0.0
        for t in penalty / top * np.linspace(0.9, 1, 101):
            s = n * k * y * V * t
            if s.max() < 1:
                bound = max(bound, -np.mean(xlogy(s, s) + xlogy(1 - s, 1 - s)))
    return value + penalty * norm, bound


def by_clarabel(program, penalty):
    """Return the optimal value and the norms of the weights."""
    n, k = program.y.shape
    parts = [cp.Variable((program.A.shape[1], k)) for _ in range(program.n_gates)]
    c = cp.Variable((1, k))
    outputs = sum(block @ U for block, U in zip(explicit(program), parts, strict=True))
    if program.fit_intercept:
        outputs = outputs + np.ones((n, 1)) @ c
    if type(program.loss).__name__ == "SquaredLoss":
        fit = cp.sum_squares(outputs - program.y) / (2 * n * k)
    else:
        fit = cp.sum(cp.logistic(cp.multiply(-program.y, outputs))) / (n * k)
    norm = sum(cp.norm(U, "fro") for U in parts)
    model = cp.Problem(cp.Minimize(fit + penalty * norm))
    with warnings.catch_warnings():
        # It warns where it stops a little above these tolerances.
        warnings.simplefilter("ignore")
        model.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return model.value, np.array([np.linalg.norm(U.value) for U in parts])


@pytest.mark.parametrize(("loss", "n_outputs", "intercept", "solver"), CASES)
def test_gap_holds_by_hand_and_value_is_clarabels(loss, n_outputs, intercept, solver):
    program = problem(loss, n_outputs, intercept)
    penalty = 0.05 * program.largest_penalty()
    solution = solve_gated(program, penalty, tol=1e-7, solver=solver)
    assert solution.status is Status.CONVERGED
    value, bound = by_hand(program, penalty, solution)
    assert value == pytest.approx(solution.value, rel=1e-12)
    # On a grid of t for the logistic loss, hence a little lower.
    assert bound <= solution.certificate.lower_bound * (1 + 1e-12)
    assert (value - bound) / value <= (1.1e-7 if loss == "squared" else 1e-5)
    best, norms = by_clarabel(program, penalty)
    assert solution.certificate.lower_bound <= best * (1 + 2e-8)
    assert best <= value * (1 + 2e-8)
    used = norms > 1e-4 * norms.max()
    assert set(np.flatnonzero(used)) <= set(solution.support)


@pytest.mark.parametrize(("loss", "n_outputs"), [("squared", 1), ("squared", 3), ("logistic", 1),
                                                 ("logistic", 2)])  # fmt: skip
def test_newton_by_conjugate_gradients(loss, n_outputs, monkeypatch):
    monkeypatch.setattr("ellzero.relu.gated_newton.DENSE_SAMPLES", 10)
    program = problem(loss, n_outputs, intercept=True)
    penalty = 0.02 * program.largest_penalty()
    solution = solve_gated(program, penalty, solver="newton")
    assert solution.gap <= 1e-7
    best, _ = by_clarabel(program, penalty)
    assert solution.value == pytest.approx(best, rel=2e-7)


@pytest.mark.parametrize(("loss", "n_outputs"), [("squared", 1), ("squared", 3), ("logistic", 1)])
def test_newton_steps_with_a_factor_in_single_precision(loss, n_outputs, monkeypatch):
    # Without the factor, these need many products; it is made anew only where it has aged.
    counts = {}
    plain, build = _Lagrangian._conjugate, Factor.build

    def counted(self, apply, step, rest, goal, limit):
        def once(v):
            counts["products"] = counts.get("products", 0) + 1
            return apply(v)

        return plain(self, once, step, rest, goal, limit)

    def built(self, *arguments):
        counts["factors"] = counts.get("factors", 0) + 1
        build(self, *arguments)

    monkeypatch.setattr(_Lagrangian, "_conjugate", counted)
    monkeypatch.setattr(Factor, "build", built)
    monkeypatch.setattr("ellzero.relu.gated_newton.DENSE_SAMPLES", 10)
    monkeypatch.setattr("ellzero.relu.gated_newton.PATIENCE", 4)
    program = problem(loss, n_outputs, intercept=True, n=90, d=6, n_gates=60)
    penalty = 0.01 * program.largest_penalty()
    solution = solve_gated(program, penalty, solver="newton", tol=1e-8)
    assert solution.gap <= 1e-8
    assert counts["factors"] > 3
    with_factor = counts["products"]
    monkeypatch.setattr("ellzero.relu.gated_newton.FACTOR_SAMPLES", 20)
    counts.clear()
    other = solve_gated(program, penalty, solver="newton", tol=1e-8)
    assert "factors" not in counts
    assert counts["products"] > with_factor
    monkeypatch.setattr("ellzero.relu.gated_newton.DENSE_SAMPLES", 1000)
    dense = solve_gated(program, penalty, solver="newton", tol=1e-8)
    assert dense.value == pytest.approx(solution.value, rel=2e-8)
    assert other.value == pytest.approx(solution.value, rel=1e-6)


@pytest.mark.parametrize("n", [5, 1500])
def test_factor_solves_its_system(n):
    rng = np.random.default_rng(0)
    A, seen = rng.standard_normal((n, 3)), rng.random((n, 4)) < 0.5
    shares, columns, root = rng.random(4), rng.standard_normal((n, 2)), rng.random(n) + 0.5
    system = (A @ A.T) * ((seen * shares) @ seen.T) + 0.3 + columns @ columns.T
    system = np.eye(n) + system * np.outer(root, root)
    factor = Factor()
    v = rng.standard_normal((n, 2))
    assert not factor.ready
    assert factor.solve(v) is v
    factor.build(A, seen, shares, columns, root, 0.3)
    # The jitter and single precision leave about this much.
    np.testing.assert_allclose(system @ factor.solve(v), v, atol=2e-3)
    factor.build(A, seen, 0 * shares, 0 * columns, root, 0.0)
    np.testing.assert_allclose(factor.solve(v), v, rtol=1e-4)
    assert factor.n_factors == 2


@pytest.mark.parametrize("penalty", [0.1, 0.01, 0.001])
def test_support_is_clarabels(penalty):
    program = problem(n=60, d=5, n_gates=60, seed=3)
    level = penalty * program.largest_penalty()
    solution = solve_gated(program, level, tol=1e-10)
    assert solution.gap <= 1e-10
    _, norms = by_clarabel(program, level)
    assert list(solution.support) == list(np.flatnonzero(norms > 1e-5 * norms.max()))


@pytest.mark.parametrize("loss", ["squared", "logistic"])
@pytest.mark.parametrize("intercept", [False, True])
def test_largest_penalty_is_exact(loss, intercept):
    program = problem(loss, intercept=intercept)
    top = program.largest_penalty()
    above, below = solve_gated(program, 1.0001 * top), solve_gated(program, 0.999 * top)
    assert len(above.support) == 0
    assert above.gap < 1e-10
    assert above.n_iter == 0
    assert 1 <= len(below.support) <= 3


def test_all_gates_count_in_the_gap():
    program = problem(n_gates=60)
    penalty = 0.02 * program.largest_penalty()
    few = np.arange(10)
    part = program.restricted(few)
    solution = solve_gated(part, penalty)
    assert solution.gap <= 1e-7
    found = certify_gated(
        program, penalty, few[solution.support], solution.weights, solution.constant
    )[0]
    assert found.gap > 1e-3
    # Any change of the weights is seen as well.
    best = solve_gated(program, penalty)
    for change in (1.001, 0.999):
        worse = certify_gated(
            program, penalty, best.support, change * best.weights, best.constant, [best.point]
        )[0]
        assert worse.gap > 1e-7


def test_path_is_what_single_penalties_give_with_fewer_steps():
    program = problem(n=80, d=6, n_gates=150)
    top = program.largest_penalty()
    penalties = top * np.geomspace(1.0, 1e-3, 8)
    path = gated_path(program, penalties[::-1], tol=1e-8)
    alone = [solve_gated(program, penalty, tol=1e-8) for penalty in penalties]
    assert [s.penalty for s in path] == list(penalties)
    np.testing.assert_allclose([s.value for s in path], [s.value for s in alone], rtol=2e-8)
    assert all(s.gap <= 1e-8 for s in path)
    assert sum(s.n_iter for s in path) <= sum(s.n_iter for s in alone)
    assert len(gated_path(program, n_penalties=3)) == 3
    with pytest.raises(DataError) as raised:
        gated_path(program, [])
    assert str(raised.value) == "`penalties` is empty.\nhint: Pass at least one penalty."
    with pytest.raises(InvalidParameterError):
        gated_path(program, [0.1, -1.0])


def test_few_newton_steps_at_weak_penalties():
    program = problem(n=200, d=10, n_gates=1000)
    solution = solve_gated(program, 1e-3 * program.largest_penalty(), tol=1e-8)
    assert solution.gap <= 1e-8
    assert solution.n_iter < 500
    assert solution.n_rounds < 20


def test_duplicates_and_empty_gates_change_no_value():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 3))
    A[4] = 0
    y = np.abs(A[:, :1])
    vectors = sample_gates(40, 3, rng)
    once = read_gates(A, vectors)
    again = read_gates(A, np.vstack([vectors, 2 * vectors[:7], np.zeros((1, 3))]))
    n_once = len({(A @ v > 0).tobytes() for v in vectors if (A @ v > 0).any()})
    assert len(once) == len(again) == n_once
    assert again.message.startswith(f"Kept {n_once} of 48 gates: dropped ")
    assert " and 1 empty." in again.message
    raw = A @ np.vstack([vectors, vectors[:7]]).T > 0
    values = [
        solve_gated(GatedProgram(A, patterns, y, loss_of("squared")), 0.01).value
        for patterns in (once.patterns, raw)
    ]
    assert values[0] == pytest.approx(values[1], rel=2e-7)
    all_active = read_gates(np.abs(A) + 0.1, np.abs(vectors[:5]))
    assert all_active.message == (
        "Kept 1 of 5 gates: dropped 4 duplicate; 1 sees every sample (a linear neuron)."
    )


def test_targets_that_a_constant_fits():
    A = np.random.default_rng(0).standard_normal((20, 2))
    patterns = read_gates(A, sample_gates(10, 2, np.random.default_rng(1))).patterns
    for y, intercept in ((np.zeros((20, 1)), False), (np.full((20, 1), 5.3), True)):
        program = GatedProgram(A, patterns, y, loss_of("squared"), intercept)
        assert program.largest_penalty() == pytest.approx(0, abs=1e-12)
        solution = solve_gated(program, 0.1)
        assert solution.value == pytest.approx(0, abs=1e-12)
        assert solution.gap <= 1e-7
        assert len(solution.support) == 0


def test_memory_is_told_and_newton_needs_more():
    small = memory_needed(1000, 50, 500, solver="proximal")
    large = memory_needed(1000, 50, 500, solver="newton")
    assert large - small == 8 * 1000 * 1000 * 5
    assert memory_needed(10**5, 50, 500) == memory_needed(10**5, 50, 500, solver="proximal")
    # One matrix in single precision, and blocks of it.
    middle = [memory_needed(12000, 700, 1000, solver=name) for name in ("auto", "proximal")]
    assert 4 * 12000**2 < middle[0] - middle[1] < 7 * 12000**2


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"penalty": 0.0}, "`penalty` must be positive, got 0."),
        ({"tol": -1.0}, "`tol` must be positive, got -1."),
        ({"max_iter": 0}, "`max_iter` must be an integer of at least 1, got 0."),
        ({"solver": "x"}, "`solver` must be one of 'auto', 'newton', 'proximal', got 'x'."),
    ],
)
def test_bad_settings_are_said(settings, text):
    with pytest.raises(InvalidParameterError) as raised:
        solve_gated(problem(), **{"penalty": 0.1, **settings})
    assert str(raised.value) == text
