"""Closed forms against programs over all patterns, brute force and enumeration."""

import builtins

import numpy as np
import pytest

from ellzero.core.result import Claim
from ellzero.errors import DataError, IncompatibleError, InvalidParameterError
from ellzero.relu import (
    TwoLayerReLU,
    check_l0_l1,
    fit_spike_free,
    fit_whitened,
    is_spike_free,
    prune,
    relaxed_cutting_planes,
    spike_free_excess,
    spike_free_violation,
)
from ellzero.relu.closed_forms import spike_free_supremum
from tests.relu.exact import program, supremum


def whitened(n, d, seed):
    rng = np.random.default_rng(seed)
    rows = np.linalg.svd(rng.standard_normal((n, d)), full_matrices=False)[2]
    return rows, rng.standard_normal(n)


def brute_excess(A):
    """Return max |A^+ s_+| over |A^+ s| = 1 by random vectors near every face of the orthants."""
    G = np.linalg.inv(A @ A.T)
    rng = np.random.default_rng(0)
    s = rng.standard_normal((20_000, len(A)))
    s *= 10.0 ** rng.uniform(-4, 0, s.shape)
    p = np.maximum(s, 0)
    top, bottom = np.einsum("ij,jk,ik->i", p, G, p), np.einsum("ij,jk,ik->i", s, G, s)
    return (top / bottom).max()


@pytest.mark.parametrize("seed", range(3))
def test_whitened_formula_equals_the_program_over_all_patterns(seed):
    X, y = whitened(3, 3, seed)
    for penalty in (0.02, 0.1):
        found = fit_whitened(X, y, penalty)
        exact = program(X, y, penalty, logistic=False, intercept=False)
        # The interior point of the program stops 1e-9 above.
        assert found.value == pytest.approx(exact, rel=1e-7)
        assert found.gap <= 1e-12


def test_whitened_weights_are_those_of_the_theorem():
    X, y = whitened(5, 9, 3)
    up, down = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))
    both = fit_whitened(X, y, 0.9 * min(up, down) / 5)
    one = fit_whitened(X, y, (up + down) / 2 / 5)
    none = fit_whitened(X, y, 1.01 * max(up, down) / 5)
    assert [f.network.n_neurons for f in (both, one, none)] == [2, 1, 0]
    level = 0.9 * min(up, down)
    assert both.network.norm == pytest.approx(up + down - 2 * level, rel=1e-12)
    assert none.value == pytest.approx(0.5 * np.mean(y**2), rel=1e-12)
    assert max(f.gap for f in (both, one, none)) <= 1e-12


def test_whitened_equals_the_two_neuron_program():
    X, y = whitened(6, 8, 4)
    one, two = fit_whitened(X, y, 0.03), fit_spike_free(X, y, 0.03)
    assert two.value == pytest.approx(one.value, rel=1e-9)
    assert two.gap <= 1e-6
    np.testing.assert_allclose(two.network.predict(X), one.network.predict(X), atol=1e-5)


def test_spike_free_test_agrees_with_brute_force():
    rng = np.random.default_rng(5)
    verdicts = []
    for k in range(60):
        n = 2 + k % 2
        A = rng.standard_normal((n, n + k % 3))
        excess = brute_excess(A)
        assert is_spike_free(A) == (excess <= 1 + 1e-9), (A, excess)
        verdicts.append(is_spike_free(A))
        if is_spike_free(A):
            assert spike_free_excess(A) <= 1 + 1e-12
    assert 10 <= sum(verdicts) <= 40


@pytest.mark.parametrize(
    ("A", "free"),
    [
        ([[1.0], [-1.0]], False),
        ([[1.0], [2.0], [0.0]], True),
        (np.eye(3), True),
        (np.diag([1.0, 5.0]), True),
        (np.outer([1.0, 0.0, 2.0], [3.0, 4.0]), True),
        (np.outer([1.0, -2.0], [3.0, 4.0]), False),
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]], True),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], False),
        (np.zeros((2, 2)), True),
    ],
)
def test_spike_free_by_hand(A, free):
    assert is_spike_free(A) is free
    assert (spike_free_violation(A) == 0) is free


def test_wide_gaussian_data_are_spike_free_with_the_probability_of_signs_only():
    rng = np.random.default_rng(6)
    for n, expected in ((2, 0.5), (3, 0.125)):
        share = np.mean([is_spike_free(rng.standard_normal((n, 200))) for _ in range(400)])
        assert share == pytest.approx(expected, abs=4 * (expected / 400) ** 0.5)
    excess = [spike_free_excess(rng.standard_normal((10, d))) for d in (20, 200, 2000)]
    assert excess[0] > excess[1] > excess[2] > 1
    assert excess[2] < 1.01


def test_two_neurons_are_optimal_for_spike_free_data():
    A = np.array([[1.0, 0.0, 0.0], [0.4, 1.0, 0.0], [0.1, 0.2, 1.0]])
    A = A @ np.linalg.qr(np.random.default_rng(7).standard_normal((3, 3)))[0]
    assert is_spike_free(A)
    y = np.array([2.0, -1.0, 0.5])
    found = fit_spike_free(A, y, 0.05)
    assert found.network.n_neurons <= 2
    assert found.value == pytest.approx(
        program(A, y, 0.05, logistic=False, intercept=False), rel=1e-7
    )
    assert found.gap <= 1e-6
    v = y - found.network.predict(A)
    assert spike_free_supremum(A, v) == pytest.approx(supremum(A, v), rel=1e-9)


def test_fewest_neurons_have_the_least_norm_for_whitened_data_only():
    X, y = whitened(5, 8, 8)
    good = check_l0_l1(X, y)
    assert good.claim is Claim.OPTIMAL
    up, down = np.linalg.norm(np.maximum(y, 0)), np.linalg.norm(np.minimum(y, 0))
    assert good.measures["norm"] == pytest.approx(up + down, rel=1e-12)
    rng = np.random.default_rng(9)
    A, y = rng.standard_normal((3, 3)), np.array([1.0, -1.0, 2.0])
    bad = check_l0_l1(A, y)
    # The least norm by the program over all patterns with a penalty that goes to zero.
    least = program(A, y, 1e-5, logistic=False, intercept=False) / 1e-5
    assert bad.measures["norm"] > least * 1.001
    assert bad.claim is Claim.GAP
    assert bad.lower_bound <= least * 1.0001
    assert bad.measures["supremum_at_least"] > 1 + 1e-6


def test_algorithm_1_gives_zero_for_centered_data_and_the_optimum_for_spike_free_ones():
    rng = np.random.default_rng(10)
    X = rng.standard_normal((8, 2))
    X -= X.mean(axis=0)
    y = np.abs(X[:, 0]) + 0.1 * rng.standard_normal(8)
    found = relaxed_cutting_planes(X, y, 0.01)
    assert found.stopped
    assert found.network.n_neurons == 0
    assert found.value == pytest.approx(0.5 * np.mean(y**2), rel=1e-14)
    best = program(X, y, 0.01, logistic=False, intercept=False)
    assert found.value > 3 * best
    free, target = whitened(5, 6, 11)
    right = relaxed_cutting_planes(free, target, 0.02)
    assert right.stopped
    assert right.value == pytest.approx(fit_whitened(free, target, 0.02).value, rel=1e-7)
    assert list(right.history) == sorted(right.history, reverse=True)


def test_algorithm_1_is_linear_on_the_samples_elsewhere():
    rng = np.random.default_rng(12)
    X = rng.standard_normal((9, 2)) + 1.5
    y = np.abs(X[:, 0] - 1.5)
    found = relaxed_cutting_planes(X, y, 0.01)
    outputs = found.network.predict(X)
    linear = X @ np.linalg.lstsq(X, outputs, rcond=None)[0]
    np.testing.assert_allclose(outputs, linear, atol=1e-9)
    assert found.network.n_neurons > 0
    assert found.value > 1.05 * program(X, y, 0.01, logistic=False, intercept=False)


def test_pruning_keeps_outputs_and_the_objective_of_an_optimum():
    X, y = whitened(6, 7, 13)
    best = fit_whitened(X, y, 0.02)
    # Split both neurons of the optimum into many with the same pattern: still optimal.
    rng = np.random.default_rng(14)
    shares = rng.dirichlet(np.ones(10), 2)
    network = best.network
    wide = TwoLayerReLU(
        np.repeat(network.hidden, 10, axis=0),
        None,
        (network.outputs[:, None] * shares).ravel(),
        None,
    )
    small = prune(wide, X)
    assert wide.norm == pytest.approx(network.norm, rel=1e-12)
    assert small.n_neurons == 2
    assert small.norm == pytest.approx(network.norm, rel=1e-10)
    np.testing.assert_allclose(small.predict(X), wide.predict(X), atol=1e-10)


@pytest.mark.parametrize("biased", [False, True])
def test_pruning_any_network_leaves_at_most_n_neurons(biased):
    rng = np.random.default_rng(15)
    X = rng.standard_normal((12, 2))
    biases = rng.standard_normal(60) if biased else None
    wide = TwoLayerReLU(rng.standard_normal((60, 2)), biases, rng.standard_normal(60), 0.7)
    small = prune(wide, X)
    assert small.n_neurons <= 12
    assert small.norm <= wide.norm * (1 + 1e-10)
    assert small.intercept == 0.7
    np.testing.assert_allclose(small.predict(X), wide.predict(X), atol=1e-8 * wide.norm)
    silent = TwoLayerReLU(-np.ones((2, 2)), None, np.ones(2), None)
    assert prune(silent, np.ones((3, 2))).n_neurons == 0


def test_messages(monkeypatch):
    X, y = whitened(3, 4, 16)
    with pytest.raises(DataError, match=r"orthogonal and of length one, got XX' that is 3 away"):
        fit_whitened(2 * X, y, 0.1)
    with pytest.raises(DataError, match=r"X must be spike-free, got a violation of inf"):
        fit_spike_free([[1.0], [-1.0]], [1.0, 2.0], 0.1)
    with pytest.raises(DataError, match="X must have full row rank, got rank 1 with 2 rows"):
        check_l0_l1([[1.0], [-1.0]], [1.0, -2.0])
    with pytest.raises(DataError, match="y must have both signs, got one"):
        check_l0_l1(X, np.abs(y))
    with pytest.raises(DataError, match="A must have full row rank, got 2 rows of rank 1"):
        spike_free_excess([[1.0], [-1.0]])
    with pytest.raises(DataError, match="A must have two dimensions, got 1"):
        is_spike_free([1.0])
    with pytest.raises(DataError, match="A contains NaN or infinite values"):
        is_spike_free([[np.nan]])
    for fit in (fit_whitened, fit_spike_free, relaxed_cutting_planes):
        with pytest.raises(InvalidParameterError, match="penalty"):
            fit(X, y, 0.0)
    network = TwoLayerReLU(np.ones((1, 2)), None, np.ones(1), None)
    with pytest.raises(IncompatibleError, match="The network has 2 inputs and X has 3 columns"):
        prune(network, np.ones((2, 3)))
    with pytest.raises(DataError, match="X must have two dimensions, got 1"):
        prune(network, np.ones(2))
    with pytest.raises(DataError, match="X contains NaN or infinite values"):
        prune(network, [[np.inf, 1.0]])
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cvxpy":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(IncompatibleError, match="needs cvxpy, which is not installed"):
        fit_spike_free(np.eye(2), [1.0, 2.0], 0.1)
