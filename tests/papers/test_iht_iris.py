"""Reference figures: measured by independent code on the same split, or printed by the author."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch

from ellzero.core.problem import Problem
from ellzero.core.result import Claim
from ellzero.datasets import iris_reference
from ellzero.objectives import Softmax
from ellzero.papers import find_experiment
from ellzero.papers.iht_iris import (
    DIGITS,
    LOGIT_TOL,
    N_SEARCHES,
    OPTIMUM_TOL,
    PRINTED_NETWORKS,
    RIDGE,
    SMOOTHNESS,
    best_agrees,
    enumerate_optimum,
    enumerate_smoothness,
    iht_runs,
    median_agrees,
    printed_checks,
    prove,
    search_hits,
    smoothness_table,
)
from ellzero.report.schema import to_json
from ellzero.sets import L0Ball

STEP = 1 / 1.4572958236


@pytest.fixture(scope="module")
def data():
    return iris_reference()


def test_certified_constants_to_four_decimals(data):
    rows = smoothness_table(Softmax(data.X, data.y))
    assert [row["s"] for row in rows] == list(range(1, 16))
    for row in rows:
        bound, at_zero = SMOOTHNESS[min(row["s"], 4)]
        assert round(row["bound"], 4) == bound
        assert round(row["at_zero"], 4) == at_zero


@pytest.mark.parametrize("k", [2, 4, 6])
def test_certified_constants_match_enumeration_in_numpy(data, k):
    X = data.X.numpy()
    A = np.kron((np.eye(3) - 1 / 3) / 2, X.T @ X / 120)
    largest = max(
        np.linalg.eigvalsh(A[np.ix_(S, S)])[-1] for S in itertools.combinations(range(15), k)
    )
    assert enumerate_smoothness(Softmax(data.X, data.y), k) == pytest.approx(largest, rel=1e-12)
    assert round(largest, 4) == SMOOTHNESS[k // 2][0]


def test_five_nonzeros_reach_the_reference(data):
    entry = iht_runs(data, 5, STEP)
    assert entry.run.value.shape == (100,)
    assert float(entry.run.value.min()) <= 0.051
    assert float(entry.test_accuracy.median()) >= 0.96
    assert int(entry.run.n_increases.sum()) == 0
    assert int(entry.run.n_iter.max()) == 5000
    assert median_agrees(entry.run.value, 0.1084, 1e-4)
    # The limits keep the magnitude part of stability, though gradients only decay like 1/t.
    assert entry.magnitude == 1.0


def test_accuracies_and_values_are_those_of_the_points(data):
    entry = iht_runs(data, 5, STEP, starts=3, max_iter=200, seed=1)
    for i in range(3):
        W = entry.run.params["coef"][i].numpy()
        assert np.count_nonzero(W) <= 5
        u = data.X.numpy() @ W.T
        loss = np.mean(np.log(np.exp(u).sum(1)) - u[np.arange(120), data.y.numpy()])
        assert float(entry.run.value[i]) == pytest.approx(loss, rel=1e-12)
        right = np.mean((data.X_test.numpy() @ W.T).argmax(1) == data.y_test.numpy())
        assert float(entry.test_accuracy[i]) == pytest.approx(right)


@pytest.mark.parametrize(("ridge", "s"), list(RIDGE))
def test_ridge_optimum_is_found_from_every_start_and_proved(data, ridge, s):
    problem = Problem(Softmax(data.X, data.y, ridge=ridge), L0Ball(s))
    result = prove(problem)
    assert abs(result.value - RIDGE[ridge, s][0]) <= OPTIMUM_TOL
    assert result.certificate.supports(Claim.OPTIMAL)
    assert result.gap <= 1e-6
    assert search_hits(problem, result.value, seed=0) == N_SEARCHES


def test_three_nonzeros_agree_with_enumeration_in_scipy(data):
    ridge = 0.1
    X, y = data.X.numpy(), data.y.numpy()

    def loss(values, S):
        W = np.zeros(15)
        W[list(S)] = values
        u = X @ W.reshape(3, 5).T
        p = np.exp(u - u.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        g = (p - np.eye(3)[y]).T @ X / 120
        f = -np.mean(np.log(p[np.arange(120), y])) + ridge / 2 * values @ values
        return f, g.ravel()[list(S)] + ridge * values

    values = [
        scipy.optimize.minimize(loss, np.zeros(3), args=(S,), jac=True, tol=1e-10).fun
        for S in itertools.combinations(range(15), 3)
    ]
    lowest, ours, _ = enumerate_optimum(Softmax(data.X, data.y, ridge=ridge), 3)
    np.testing.assert_allclose(ours.numpy(), values, rtol=1e-8)
    assert abs(lowest - RIDGE[ridge, 3][0]) <= OPTIMUM_TOL


@pytest.mark.slow
@pytest.mark.parametrize("ridge", [0.01, 0.1])
def test_every_budget_is_proved_and_agrees_with_enumeration(data, ridge):
    for s in range(1, 16):
        objective = Softmax(data.X, data.y, ridge=ridge)
        result = prove(Problem(objective, L0Ball(s)))
        assert result.certificate.supports(Claim.OPTIMAL), s
        assert result.gap <= 1e-6
        assert result.value == pytest.approx(enumerate_optimum(objective, s)[0], rel=1e-6)


@pytest.mark.parametrize("network", PRINTED_NETWORKS, ids=lambda n: n.name)
def test_printed_networks(network):
    ours = printed_checks(network)
    assert ours["n_nonzero"] == 5
    for key, theirs in network.measured.items():
        assert abs(ours[key] - theirs) <= DIGITS[key] * (1 + 1e-9), key
    assert ours["logits"] == pytest.approx(network.logits, abs=LOGIT_TOL)
    # The held-out sample is a versicolor.
    assert int(np.argmax(ours["logits"])) == 1


def test_agreement_refuses_other_distributions():
    values = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    assert median_agrees(values, 0.5, 1e-4)
    assert not median_agrees(values, 0.8, 1e-4)
    assert not median_agrees(values, 0.2, 1e-4)
    assert best_agrees(values + 1, 1.0, 1e-4)
    assert not best_agrees(values + 1, 1.3, 1e-4)
    assert not best_agrees(values + 1, 0.9, 1e-4)


@pytest.mark.slow
def test_full_run_agrees_in_every_row():
    summary = find_experiment("iht-iris").run()
    differs = [row for row in summary["reference"]["rows"] if row[-1] is False]
    assert differs == []
    assert len(summary["path"]) == 11
    assert '"path"' in to_json(summary)


@pytest.mark.slow
def test_quick_run_agrees_in_every_row():
    done = []
    summary = find_experiment("iht-iris").run(
        quick=True, progress=lambda what, done_, total: done.append((what, done_, total))
    )
    differs = [row for row in summary["reference"]["rows"] if row[-1] is False]
    assert differs == []
    assert len(summary["reference"]["rows"]) > 40
    assert done[-1][1] == done[-1][2]
