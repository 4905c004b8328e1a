"""Hinge loss and several outputs, whitened or on a line, against cone programs written out."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from ellzero.core.result import Claim
from ellzero.errors import DataError, InvalidParameterError
from ellzero.relu import (
    VectorReLU,
    fit_spline,
    fit_spline_hinge,
    fit_spline_outputs,
    fit_whitened_classes,
    fit_whitened_hinge,
)
from tests.relu.exact import patterns

# What the reference is worth is seen in the comparisons.
pytestmark = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")


def whitened(n, d, rng):
    return np.linalg.qr(rng.standard_normal((d, n)))[0].T


def solve(objective, conditions=()):
    problem = cp.Problem(cp.Minimize(objective), list(conditions))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    return float(problem.value)


def hinge_program(A, y, penalty):
    """Return the optimum over every width by the program with every pattern, without biases."""
    outputs, norm, conditions = 0.0, 0.0, []
    for pattern in patterns(A):
        cone = np.where(pattern, 1.0, -1.0)[:, None] * A
        for sign in (1.0, -1.0):
            part = cp.Variable(A.shape[1])
            outputs = outputs + sign * (pattern[:, None] * A) @ part
            norm = norm + cp.norm(part, 2)
            conditions.append(cone @ part >= 0)
    loss = cp.sum(cp.pos(1 - cp.multiply(y, outputs))) / len(y)
    return solve(loss + penalty * norm, conditions)


def columns(t):
    return np.column_stack([np.maximum(t[:, None] - t, 0.0), np.maximum(t - t[:, None], 0.0)])


def line_program(t, Y, penalty, *, hinge):
    """Return the optimum over all neurons with kinks at samples, free output constants."""
    G, k = columns(t), Y.shape[1]
    W, c = cp.Variable((G.shape[1], k)), cp.Variable(k)
    F = G @ W + np.ones((len(t), 1)) @ cp.reshape(c, (1, k), order="C")
    if hinge:
        loss = cp.sum(cp.pos(1 - cp.multiply(Y, F))) / len(t)
    else:
        loss = cp.sum_squares(F - Y) / (2 * len(t))
    return solve(loss + penalty * cp.sum(cp.norm(W, 2, axis=1)))


@pytest.mark.parametrize("seed", range(6))
def test_whitened_hinge_equals_the_program_over_all_patterns(seed):
    rng = np.random.default_rng(seed)
    X = whitened(4, 4, rng)
    y = np.array([1.0, 1.0, 1.0, -1.0])[rng.permutation(4)]
    for penalty in (0.1, 0.3, 0.6):
        # n lambda is 0.4, 1.2 and 2.4: both classes, the larger one, none.
        found = fit_whitened_hinge(X, y, penalty)
        assert found.network.n_neurons == {0.1: 2, 0.3: 1, 0.6: 0}[penalty]
        assert found.value == pytest.approx(hinge_program(X, y, penalty), abs=1e-8)
        assert found.certificate.claim is Claim.OPTIMAL
        assert found.gap < 1e-12


def test_whitened_hinge_weights_are_those_of_the_theorem():
    X = whitened(9, 12, np.random.default_rng(1))
    labels = np.array(list("aabbbbbbb"))
    network = fit_whitened_hinge(X, labels, 0.01).network
    sizes = np.abs(network.outputs) * np.linalg.norm(network.hidden, axis=1)
    np.testing.assert_allclose(sizes, np.sqrt([7.0, 2.0]))
    np.testing.assert_allclose(network.predict(X), np.where(labels == "b", 1.0, -1.0))


@pytest.mark.parametrize("seed", range(4))
def test_whitened_classes_equal_the_program_over_all_patterns(seed):
    rng = np.random.default_rng(seed)
    X = whitened(4, 4, rng)
    y = np.array([0, 0, 1, 2])[rng.permutation(4)]
    Y = np.where(y[:, None] == np.arange(3), 1.0, 0.0)
    for penalty, width in ((0.05, 3), (0.3, 1), (0.5, 0)):
        found = fit_whitened_classes(X, y, penalty)
        assert found.network.n_neurons == width
        assert found.gap < 1e-12
        assert found.certificate.claim is Claim.OPTIMAL
        # Every w_j u_j' of pattern D is a matrix in the convex hull of rank-one ones with Du >= 0:
        # relaxed to the nuclear norm, the value can only fall.
        F, norm = 0.0, 0.0
        for pattern in patterns(X):
            part = cp.Variable((4, 3))
            F = F + (pattern[:, None] * X) @ part
            norm = norm + cp.normNuc(part)
        relaxed = solve(cp.sum_squares(F - Y) / 8 + penalty * norm)
        # And with one output for each neuron it can only rise: neurons (X u)_+ e_j.
        F, norm, conditions = [], 0.0, []
        for j in range(3):
            total = 0.0
            for pattern in patterns(X):
                cone = np.where(pattern, 1.0, -1.0)[:, None] * X
                for sign in (1.0, -1.0):
                    u = cp.Variable(4)
                    total = total + sign * (pattern[:, None] * X) @ u
                    norm = norm + cp.norm(u, 2)
                    conditions.append(cone @ u >= 0)
            F.append(cp.sum_squares(total - Y[:, j]))
        above = solve(sum(F) / 8 + penalty * norm, conditions)
        assert relaxed - 1e-7 <= found.value
        assert found.value == pytest.approx(above, abs=1e-7)


def test_no_trained_network_is_below_the_bound_for_classes():
    rng = np.random.default_rng(3)
    X = whitened(6, 8, rng)
    y = np.array([0, 0, 0, 1, 1, 2])
    Y = torch.as_tensor(np.where(y[:, None] == np.arange(3), 1.0, 0.0))
    found = fit_whitened_classes(X, y, 0.1)
    A = torch.as_tensor(X)
    torch.manual_seed(0)
    best = np.inf
    for _ in range(2):
        u = torch.randn(8, 20, dtype=torch.float64).mul_(0.3).requires_grad_()
        w = torch.randn(20, 3, dtype=torch.float64).mul_(0.3).requires_grad_()
        optimizer = torch.optim.Adam([u, w], lr=1e-2)
        for _ in range(500):
            optimizer.zero_grad()
            fit = (torch.relu(A @ u) @ w - Y).square().sum() / 12
            value = fit + 0.1 * (w.norm(dim=1) * u.norm(dim=0)).sum()
            value.backward()
            optimizer.step()
        best = min(best, float(value.detach()))
    assert found.lower_bound <= best * (1 + 1e-12)
    assert best < 1.01 * found.value


@pytest.mark.parametrize("seed", range(12))
def test_hinge_on_a_line_equals_the_program_of_all_kinks(seed):
    rng = np.random.default_rng(seed)
    t = np.sort(rng.standard_normal(14))
    if seed % 3 == 0:
        t[4] = t[5]
    y = np.where(rng.random(14) < 0.5, 1.0, -1.0)
    y[:2] = 1.0, -1.0
    penalty = (1e-3, 1e-2, 0.1, 1.0)[seed % 4]
    found = fit_spline_hinge(t, y, penalty)
    expected = line_program(t, y[:, None], penalty, hinge=True)
    assert found.value == pytest.approx(expected, abs=1e-8)
    assert found.certificate.claim is Claim.OPTIMAL
    assert found.gap < 1e-8
    assert found.n_neurons < len(t)
    # Weak duality by the definition: feasible, and its value is the bound.
    v = found.dual
    assert abs(v.sum()) < 1e-14
    assert (y * v >= 0).all()
    assert (y * v <= 1 / 14 + 1e-15).all()
    assert np.abs(columns(t).T @ v).max() <= penalty * (1 + 1e-12)
    assert found.lower_bound == pytest.approx(y @ v, rel=1e-12)


def test_hinge_on_rank_one_rows_and_its_network():
    rng = np.random.default_rng(0)
    t = rng.standard_normal(25)
    a = np.array([1.0, -2.0, 2.0])
    labels = np.where(np.abs(t) < 0.6, "in", "out")
    one = fit_spline_hinge(np.outer(t, a), labels, 0.01)
    other = fit_spline_hinge(3 * t, labels, 0.01)
    assert one.value == pytest.approx(other.value, rel=1e-9)
    with torch.no_grad():
        outputs = one.to_module()(torch.as_tensor(np.outer(t, a)))[:, 0].numpy()
    np.testing.assert_allclose(outputs, one.predict(np.outer(t, a)), atol=1e-10)


@pytest.mark.parametrize("seed", range(8))
def test_outputs_on_a_line_equal_the_program_of_all_kinks(seed):
    rng = np.random.default_rng(seed)
    n, k = 12, 2 + seed % 2
    t = np.sort(rng.standard_normal(n))
    if seed % 3 == 0:
        t[4] = t[5]
    Y = rng.standard_normal((n, k)) + np.abs(t)[:, None]
    penalty = (1e-3, 1e-2, 0.1, 10.0)[seed % 4]
    found = fit_spline_outputs(t, Y, penalty)
    assert found.value == pytest.approx(line_program(t, Y, penalty, hinge=False), rel=1e-6)
    assert found.certificate.claim is not None
    assert found.gap < 1e-5
    neurons = np.linalg.norm(columns(t).T @ found.dual, axis=1)
    assert neurons.max() <= penalty * (1 + 1e-12)
    np.testing.assert_allclose(found.dual.sum(axis=0), 0, atol=1e-12)


def test_one_output_is_the_spline_and_rank_one_rows_are_a_line():
    rng = np.random.default_rng(2)
    t = np.sort(rng.standard_normal(30))
    y = np.abs(t) + 0.1 * rng.standard_normal(30)
    one = fit_spline_outputs(t, y[:, None], 1e-2)
    assert one.value == pytest.approx(fit_spline(t, y, 1e-2).value, rel=1e-7)
    a = np.array([0.6, 0.8])
    Y = np.column_stack([y, -t])
    rank_one = fit_spline_outputs(np.outer(t, a), Y, 1e-2)
    assert rank_one.value == pytest.approx(fit_spline_outputs(t, Y, 1e-2).value, rel=1e-7)
    fresh = rng.standard_normal((9, 2))
    with torch.no_grad():
        outputs = rank_one.network.to_module()(torch.as_tensor(fresh)).numpy()
    np.testing.assert_allclose(outputs, rank_one.network.predict(fresh), atol=1e-12)


def test_nothing_to_learn():
    flat = fit_spline_outputs([1.0, 1.0, 1.0], [[1.0, 2.0], [3.0, 2.0], [2.0, 2.0]], 0.1)
    assert flat.network.n_neurons == 0
    np.testing.assert_allclose(flat.network.predict(np.ones((1, 1))), [[2.0, 2.0]])
    assert flat.value == pytest.approx(1 / 3)
    assert flat.gap < 1e-12
    same = fit_spline_hinge([1.0, 1.0, 1.0], [1, 1, -1], 0.1)
    assert same.n_neurons == 0
    assert same.value == pytest.approx(2 / 3)
    module = VectorReLU(np.zeros((0, 2)), None, np.zeros((0, 3)), None).to_module()
    assert module(torch.ones(4, 2, dtype=torch.float64)).abs().max() == 0


def test_messages():
    eye = np.eye(3)
    for function in (fit_whitened_hinge, fit_whitened_classes):
        with pytest.raises(DataError) as caught:
            function(2 * eye, [0, 1, 1], 0.1)
        assert caught.value.message == (
            "Rows of X must be orthogonal and of length one, got XX' that is 3 away from the "
            "identity."
        )
        with pytest.raises(InvalidParameterError, match="`penalty` must be positive, got 0"):
            function(eye, [0, 1, 1], 0)
    with pytest.raises(DataError) as caught:
        fit_whitened_classes(eye, eye, 0.1)
    assert str(caught.value) == (
        "y must hold one class for each sample, got the shape (3, 3).\n"
        "hint: Pass `Y.argmax(axis=1)` for one-hot rows."
    )
    with pytest.raises(DataError, match="The logistic loss needs two classes, got 1"):
        fit_spline_hinge([1.0, 2.0], [1, 1], 0.1)
    with pytest.raises(DataError) as caught:
        fit_spline_outputs([1.0, 2.0], [1.0, 2.0], 0.1)
    assert str(caught.value) == (
        "Y must have two dimensions, got the shape (2,).\n"
        "hint: Use fit_spline for a single output."
    )
    with pytest.raises(DataError, match="The rows of X must lie on a line"):
        fit_spline_outputs(np.eye(3), np.ones((3, 2)), 0.1)
