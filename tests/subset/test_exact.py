"""Proofs of best subsets: bounds against enumeration, limits, invariances, messages."""

import itertools
import math

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import perspective_bound
from ellzero.core.result import Status
from ellzero.errors import InvalidParameterError
from ellzero.kernels import branch_relax, branch_tree
from ellzero.kernels.branch_curvature import raise_weights
from ellzero.subset.curvature import (
    is_definite,
    own_weights,
    plain_model,
    soften,
    thresholded_model,
)
from ellzero.subset.exact import prove
from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Subset


class Whole(AbstractGram):
    """The whole Gram matrix."""

    def __init__(self, X, y, fit_intercept=True):
        X, y = np.asarray(X, float), np.asarray(y, float).reshape(len(X), -1)
        self.n_samples = float(len(X))
        self.x_mean = X.mean(0) * fit_intercept
        self.y_mean = y.mean(0) * fit_intercept
        X, y = X - self.x_mean, y - self.y_mean
        self.matrix = X.T @ X
        self.diagonal = self.matrix.diagonal().copy()
        self.cross, self.energy = X.T @ y, np.square(y).sum(0)

    def columns(self, index):
        return np.ascontiguousarray(self.matrix[index])


def enumerate_all(gram, budget, ridge, always=(), forbidden=()):
    """Return the smallest objective by trying every support."""
    free = [j for j in range(gram.n_features) if j not in always and j not in forbidden]
    best = math.inf
    for chosen in itertools.combinations(free, min(budget - len(always), len(free))):
        support = np.array(sorted([*always, *chosen]), dtype=int)
        block = gram.matrix[np.ix_(support, support)]
        block = block + ridge * gram.n_samples * np.eye(len(support))
        moment = block.diagonal() + gram.n_samples * gram.x_mean[support] ** 2
        good = block.diagonal() > 1e-13 * moment
        block, target = block[np.ix_(good, good)], gram.cross[support[good], 0]
        scale = np.sqrt(block.diagonal())
        target = target / scale
        coef = np.linalg.lstsq(block / np.outer(scale, scale), target, rcond=1e-12)[0]
        square = coef @ (block / np.outer(scale, scale)) @ coef
        best = min(best, (gram.energy[0] - 2 * coef @ target + square) / (2 * gram.n_samples))
    # Rounding can take an exact fit below zero.
    return max(best, 0.0)


def planted(n, p, k, rho, snr, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = rho * X[:, j - 1] + np.sqrt(1 - rho**2) * X[:, j]
    signal = X[:, np.linspace(0, p - 1, k).astype(int)].sum(1)
    return X, signal + rng.standard_normal(n) * np.sqrt(signal.var() / snr)


def small_case(seed):
    """Return a Gram matrix, settings and limits of a random small problem, some of them nasty."""
    rng = np.random.default_rng(seed)
    p, n = int(rng.integers(1, 10)), int(rng.integers(3, 25))
    k = int(rng.integers(0, p + 1))
    X = rng.standard_normal((n, p))
    X = X @ (np.eye(p) + rng.choice([0, 0.5, 2]) * rng.standard_normal((p, p)))
    if rng.random() < 0.2:
        X[:, rng.integers(p)] = 1.5
    if rng.random() < 0.2:
        X[:, rng.integers(p)] = X[:, rng.integers(p)]
    if rng.random() < 0.2:
        X *= np.exp(rng.normal(0, 5, p))
    y = X[:, 0] * rng.choice([0, 1]) + rng.standard_normal(n) * rng.choice([1e-3, 1, 10])
    if rng.random() < 0.1:
        y = X @ rng.standard_normal(p)
    y = y * np.exp(rng.normal(0, 4))
    order = rng.permutation(p)
    always, forbidden = (), ()
    if rng.random() < 0.3 and p > 3:
        always = tuple(order[: min(k, rng.integers(0, 3))].tolist())
        forbidden = tuple(order[3 : 3 + rng.integers(0, 2)].tolist())
    gram = Whole(X, y, bool(rng.integers(2)))
    settings = {
        "ridge": float(rng.choice([0, 1e-6, 1e-2, 0.3, 3])),
        "always": always,
        "forbidden": forbidden,
    }
    return gram, k, settings, int(rng.choice([0, 4, 1000]))


def check_against_enumeration(seed):
    gram, k, settings, limit = small_case(seed)
    result = prove(gram, k, **settings, max_nodes=limit)
    best = enumerate_all(gram, k, *settings.values())
    value, bound = result.subset.value, result.lower_bound
    slack = 1e-11 * gram.energy[0] / (2 * gram.n_samples)
    assert bound <= best + slack
    # Where columns are nearly dependent, rounding of the Gram matrix meets large coefficients.
    support = result.subset.support
    weight = gram.diagonal[support] + settings["ridge"] * gram.n_samples
    size = float(weight @ result.subset.coef[:, 0] ** 2)
    slack += 4e-16 * max(k, 1) * size / (2 * gram.n_samples)
    assert bound <= value
    assert best <= value + slack
    assert result.subset.n_nonzero <= k
    assert not set(settings["forbidden"]) & set(result.subset.support.tolist())
    if result.status is Status.CONVERGED:
        assert value == pytest.approx(best, rel=1e-6, abs=slack)
        assert bound == pytest.approx(value, rel=1.01e-6, abs=slack)
    return result.status


def test_bounds_hold_on_small_problems_and_proofs_are_right() -> None:
    statuses = [check_against_enumeration(seed) for seed in range(600)]
    assert statuses.count(Status.CONVERGED) > 500


@pytest.mark.slow
def test_bounds_hold_on_ten_thousand_small_problems() -> None:
    for seed in range(600, 10_600):
        check_against_enumeration(seed)


@pytest.mark.parametrize(
    ("n", "p", "k", "rho", "ridge"),
    [
        (30, 14, 4, 0.5, 0.01),
        (12, 16, 3, 0.0, 0.05),
        (25, 13, 5, 0.9, 1e-4),
        (10, 14, 4, 0.3, 0.0),
    ],
)
def test_optimum_of_wide_and_correlated_tables(n, p, k, rho, ridge) -> None:
    for seed in range(4):
        gram = Whole(*planted(n, p, k, rho, 1.0, seed))
        result = prove(gram, k, ridge=ridge)
        assert result.status is Status.CONVERGED
        assert result.subset.value == pytest.approx(enumerate_all(gram, k, ridge), rel=1e-7)


def test_proves_with_twice_as_many_columns_as_samples_and_hardly_any_ridge() -> None:
    # The perspective relaxation alone says nothing here: its root bound is negative.
    gram = Whole(*planted(150, 300, 3, 0.2, 5.0, 0))
    result = prove(gram, 3, ridge=1e-6)
    assert result.status is Status.CONVERGED
    assert result.subset.support.tolist() == [0, 149, 299]
    assert result.n_nodes < 1000


def test_work_at_the_root_and_in_the_tree_stays_small() -> None:
    easy = prove(Whole(*planted(300, 100, 5, 0.5, 3.0, 0)), 5, ridge=1 / 300)
    assert easy.n_nodes == 1
    assert easy.measures["features left at the root"] == 0
    hard = prove(Whole(*planted(300, 100, 10, 0.5, 1.0, 0)), 10, ridge=1 / 300)
    assert hard.status is Status.CONVERGED
    assert hard.n_nodes < 120
    # Features are decided as soon as their change would come within half the tolerance.
    assert 0 < hard.gap <= 1e-6
    loose = prove(Whole(*planted(300, 100, 10, 0.5, 1.0, 0)), 10, ridge=1 / 300, tol=0.01)
    assert 1e-6 < loose.gap <= 0.01
    assert loose.n_nodes < hard.n_nodes


def test_root_bound_is_the_perspective_relaxation_of_an_independent_solver() -> None:
    X, y = planted(60, 20, 3, 0.5, 1.0, 1)
    X, y = X - X.mean(0), y - y.mean()
    X /= np.linalg.norm(X, axis=0) / np.sqrt(60)
    objective = ellzero.LeastSquares(torch.tensor(X), torch.tensor(y), ridge=0.1)
    other = perspective_bound(objective, ellzero.L0Ball(3), max_iter=500, tol=1e-10)
    h = X.T @ X / 6 / 11 + np.eye(20) / 11  # unit diagonal
    c, energy = X.T @ y / np.sqrt(66), float(y @ y)
    h = (X.T @ X + 6 * np.eye(20)) / 66
    weight = np.linalg.eigvalsh(h)[0]
    d = np.full(20, weight)
    theta, v = np.zeros(20), np.empty(20)
    bound, _, _ = branch_relax.relax(
        h - np.diag(d), c, d, np.sqrt(d), energy, np.zeros(20, np.int8), 3, theta, v,
        math.inf, 100, 0.0, np.empty((2, 20, 20)),
    )  # fmt: skip
    assert bound / 120 == pytest.approx(other.value, rel=1e-7)


def test_every_base_point_gives_a_bound() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gram = Whole(*planted(20, 8, 2, 0.5, 1.0, seed))
        scale = np.sqrt(gram.diagonal)
        h, c = gram.matrix / np.outer(scale, scale), gram.cross[:, 0] / scale
        model = thresholded_model(h, 2, 0.05) if seed % 2 else plain_model(h, own_weights(h))
        if model is None:
            continue
        energy = float(gram.energy[0])
        best = enumerate_all(gram, 2, 0.0) * 2 * gram.n_samples
        theta, v = rng.standard_normal(8) * rng.choice([0.1, 1, 10]) * np.sqrt(energy), np.empty(8)
        error = branch_relax.residual(model.matrix, c, theta, v)
        bound = branch_relax.bound_at(
            c, model.weights, energy, np.zeros(8, np.int8), 2, theta, v, error, np.empty(4)
        )
        assert bound <= best * (1 + 1e-12)


def test_models_bound_the_quadratic_on_sparse_vectors() -> None:
    rng = np.random.default_rng(0)
    compared = 0
    for seed in range(30):
        p, r = 12, 3
        X = np.random.default_rng(seed).standard_normal((40 if seed % 2 else 10, p))
        X /= np.linalg.norm(X, axis=0)
        h = X.T @ X
        weights = own_weights(h)
        models = [None if weights is None else plain_model(h, weights)]
        models += [thresholded_model(h, r, t) for t in (0.02, 0.1, 0.3)]
        assert weights is None or seed % 2  # ten samples leave no curvature for twelve columns
        for model in models:
            if model is None:
                continue
            compared += 1
            assert np.linalg.eigvalsh(model.matrix)[0] >= 0
            assert (model.weights > 0).all()
            for _ in range(50):
                b = np.zeros(p)
                b[rng.choice(p, r, replace=False)] = rng.standard_normal(r)
                assert b @ h @ b >= b @ model.matrix @ b + model.weights @ b**2 - 1e-12
    assert compared > 20


def test_raised_weights_leave_a_definite_matrix_and_an_exact_inverse() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 15))
    h = X.T @ X / 60
    d = 0.5 * np.full(15, np.linalg.eigvalsh(h)[0])
    inverse = np.linalg.inv(h - np.diag(d))
    slope = rng.random(15) + 0.1
    before = slope @ d
    raise_weights(inverse, d, slope, 0.5 * d, 1e-3, np.empty(15))
    assert slope @ d > 1.1 * before
    assert np.linalg.eigvalsh(h - np.diag(d))[0] > 0
    np.testing.assert_allclose(inverse, np.linalg.inv(h - np.diag(d)), rtol=1e-8)


def test_definite_is_judged_on_the_safe_side() -> None:
    assert is_definite(np.eye(3))
    assert not is_definite(np.ones((3, 3)))
    assert not is_definite(np.diag([1.0, -1e-3]))
    np.testing.assert_allclose(
        soften(np.array([[1.0, 0.3], [-0.05, 1.0]]), 0.1), [[1.0, 0.2], [0.0, 1.0]]
    )


def test_exchanges_reach_the_best_of_all_single_exchanges() -> None:
    for seed in range(20):
        gram = Whole(*planted(30, 10, 3, 0.7, 1.0, seed))
        scale = np.sqrt(gram.diagonal)
        h, c = gram.matrix / np.outer(scale, scale), gram.cross[:, 0] / scale
        support = np.array([0, 1, 2])
        total = branch_tree.exchange(h, c, support, np.zeros(10, np.int8), 50)

        def explained(chosen, h=h, c=c):
            index = np.array(chosen)
            return c[index] @ np.linalg.solve(h[np.ix_(index, index)], c[index])

        assert total == pytest.approx(explained(support))
        for i, j in itertools.product(range(3), range(10)):
            if j not in support:
                other = support.copy()
                other[i] = j
                assert explained(other) <= total * (1 + 1e-9)


def test_enumeration_of_two_is_exact() -> None:
    gram = Whole(*planted(30, 9, 3, 0.7, 1.0, 3))
    scale = np.sqrt(gram.diagonal)
    h, c = gram.matrix / np.outer(scale, scale), gram.cross[:, 0] / scale
    state = np.zeros(9, np.int8)
    state[4], state[7] = 1, -1
    found = np.empty(3, np.int64)
    value = branch_tree.leaf(h, c, float(gram.energy[0]), state, 2, found)
    best = enumerate_all(gram, 3, 0.0, always=(4,), forbidden=(7,)) * 2 * gram.n_samples
    assert value == pytest.approx(best, rel=1e-10)
    assert 4 in found
    assert 7 not in found


# Limits ------------------------------------------------------------------------------------------

HARD = planted(100, 60, 6, 0.8, 0.5, 0)


def test_stopped_runs_state_a_true_and_rising_bound() -> None:
    gram = Whole(*HARD)
    best = prove(gram, 6, ridge=0.01)
    assert best.status is Status.CONVERGED
    bounds = []
    for limit in (0, 50, 200, 700):
        result = prove(gram, 6, ridge=0.01, max_nodes=limit)
        assert result.status is Status.MAX_ITER
        assert result.n_nodes <= limit + 1
        assert result.lower_bound <= best.subset.value
        assert result.gap == pytest.approx(1 - result.lower_bound / result.subset.value)
        bounds.append(result.lower_bound)
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]


def test_no_time_at_all_still_gives_a_subset_and_a_bound() -> None:
    result = prove(Whole(*HARD), 6, ridge=0.01, time_limit=0.0)
    assert result.status is Status.TIME_LIMIT
    assert result.subset.n_nonzero == 6
    assert 0 <= result.lower_bound < result.subset.value


def test_callback_sees_progress_and_stops() -> None:
    seen = []

    def callback(progress):
        seen.append(progress)
        return len(seen) == 5

    result = prove(Whole(*HARD), 6, ridge=0.01, callback=callback)
    assert result.status is Status.INTERRUPTED
    assert len(seen) == 5
    assert [s.n_nodes for s in seen] == sorted(s.n_nodes for s in seen)
    assert all(s.lower_bound <= s.value for s in seen)
    assert result.lower_bound >= seen[-1].lower_bound


def test_keyboard_interrupt_returns_what_there_is() -> None:
    def callback(progress):
        if progress.n_nodes > 100:
            raise KeyboardInterrupt
        return False

    result = prove(Whole(*HARD), 6, ridge=0.01, callback=callback)
    assert result.status is Status.INTERRUPTED
    assert 0 < result.lower_bound <= result.subset.value


# Invariances -------------------------------------------------------------------------------------


def test_same_bits_on_every_run() -> None:
    first, second = (prove(Whole(*HARD), 6, ridge=0.01, max_nodes=500) for _ in range(2))
    assert first.lower_bound == second.lower_bound
    assert first.subset.value == second.subset.value
    assert first.measures == second.measures


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scale_changes_nothing(factor) -> None:
    X, y = planted(60, 25, 4, 0.5, 1.0, 2)
    plain = prove(Whole(X, y), 4)
    scaled = prove(Whole(X * factor, y), 4)
    louder = prove(Whole(X, y * factor), 4)
    mixed = prove(Whole(X * np.where(np.arange(25) % 2, factor, 1.0), y), 4)
    for other in (scaled, louder, mixed):
        assert other.status is Status.CONVERGED
        assert other.subset.support.tolist() == plain.subset.support.tolist()
    assert scaled.subset.value == pytest.approx(plain.subset.value, rel=1e-9)
    assert louder.subset.value == pytest.approx(plain.subset.value * factor**2, rel=1e-9)


def test_permuted_columns_permute_the_answer() -> None:
    X, y = planted(60, 25, 4, 0.5, 1.0, 2)
    order = np.random.default_rng(0).permutation(25)
    plain, permuted = prove(Whole(X, y), 4), prove(Whole(X[:, order], y), 4)
    assert sorted(order[permuted.subset.support].tolist()) == plain.subset.support.tolist()


def test_start_and_prior_knowledge_are_used() -> None:
    X, y = planted(60, 25, 4, 0.5, 1.0, 2)
    gram = Whole(X, y)
    plain = prove(gram, 4, ridge=0.1)
    start = Subset(np.array([1, 2, 3]), np.ones((3, 1)), np.zeros(1), 1.0)
    assert prove(gram, 4, ridge=0.1, start=start).subset.value == pytest.approx(plain.subset.value)
    result = prove(gram, 4, ridge=0.1, always=(3, 5), forbidden=(0, 24))
    assert {3, 5} <= set(result.subset.support.tolist())
    assert not {0, 24} & set(result.subset.support.tolist())
    assert result.subset.value > plain.subset.value


def test_coefficients_and_intercept_are_those_of_ridge_regression() -> None:
    X, y = planted(60, 25, 4, 0.5, 1.0, 2)
    X, y = X + 3.0, y - 7.0
    subset = prove(Whole(X, y), 4, ridge=0.2).subset
    Z = X[:, subset.support]
    residual = y - Z @ subset.coef[:, 0] - subset.intercept[0]
    assert residual.mean() == pytest.approx(0, abs=1e-10)
    np.testing.assert_allclose(Z.T @ residual / 60, 0.2 * subset.coef[:, 0], atol=1e-10)
    value = np.square(residual).mean() / 2 + 0.1 * np.square(subset.coef).sum()
    assert subset.value == pytest.approx(value, rel=1e-12)


def test_nothing_to_choose() -> None:
    gram = Whole(*planted(20, 5, 2, 0.0, 1.0, 0))
    for result in (prove(gram, 0), prove(gram, 3, forbidden=range(5))):
        assert result.status is Status.CONVERGED
        assert result.subset.n_nonzero == 0
        assert result.subset.value == pytest.approx(gram.energy[0] / 40)
    full = prove(gram, 5)
    assert full.status is Status.CONVERGED
    assert full.subset.n_nonzero == 5
    constant = prove(Whole(np.ones((6, 3)), np.arange(6.0)), 2)
    assert constant.status is Status.CONVERGED
    assert constant.subset.n_nonzero == 0


# Messages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 6}, "`budget` must be an integer between 0 and 5, the number of features, "
         "got 6."),
        ({"ridge": -1.0}, "`ridge` must be a number of at least 0, got -1."),
        ({"tol": 0.0}, "`tol` must be positive, got 0."),
        ({"time_limit": -1.0}, "`time_limit` must be a number of at least 0, got -1."),
        ({"max_nodes": -1}, "`max_nodes` must be an integer of at least 0, got -1."),
        ({"always": [7]}, "`always` must be an integer between 0 and 4, the positions of "
         "features, got 7."),
        ({"forbidden": [0.5]}, "`forbidden` must be an integer between 0 and 4, the positions of "
         "features, got 0.5."),
        ({"always": [1, 2], "forbidden": [2]}, "`always` and `forbidden` must not share "
         "features, got [2] in both."),
        ({"always": [0, 1, 2]}, "`always` must name at most `budget=2` features, got 3.\n"
         "hint: Raise `budget`."),
    ],
)  # fmt: skip
def test_messages(settings, message) -> None:
    gram = Whole(*planted(20, 5, 2, 0.0, 1.0, 0))
    with pytest.raises(InvalidParameterError) as caught:
        prove(gram, **({"budget": 2} | settings))
    assert str(caught.value) == message
