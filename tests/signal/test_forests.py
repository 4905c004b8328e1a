"""Budgets on trees and forests: exact against every support, hubs included; certificates."""

from dataclasses import replace

import numpy as np
import pytest

from ellzero.core.result import Claim, Status
from ellzero.kernels.tree import forest_leverages, solve_forest, tree_l0
from ellzero.kernels.tree_check import bound_of_forest
from ellzero.signal import SparseSmooth
from ellzero.signal.certificate import INTERVAL, MULTIPLIER, certify_forest
from ellzero.signal.chain import Chain, solve_budgeted
from ellzero.signal.tree import Forest, solve_forest_budgeted, solve_forest_penalized
from tests.signal.enumeration import laplacian, masks, random_case, smooth_values

CLOSE = 1e-11


def parents(rng, n):
    """Return a random tree, star or forest, in which a parent comes after its children."""
    if rng.random() < 0.2:
        return np.array([n - 1] * (n - 1) + [-1], dtype=np.int64)
    keep = rng.choice([0.8, 1.0])
    return np.array(
        [rng.integers(v + 1, n) if v + 1 < n and rng.random() < keep else -1 for v in range(n)],
        dtype=np.int64,
    )


def values_of(forest):
    inner = np.flatnonzero(forest.parent >= 0)
    matrix = laplacian(forest.size, inner, forest.parent[inner], forest.edges[inner])
    return smooth_values(forest.y, forest.weights, matrix, forest.nonnegative)


def check_tree(rng, most):
    """Compare every budget of a random forest with all supports; return how many there were."""
    case = random_case(rng, n_edges=lambda n: n, most=most)
    n = case.y.size
    kinds = np.ones(n, dtype=np.int8)
    if rng.random() < 0.3:
        kinds = rng.choice([-1, 0, 1, 1, 1, 1], n).astype(np.int8)
    forest = Forest(case.y, case.w, parents(rng, n), case.edges, case.nonnegative, kinds)
    values, on = values_of(forest), masks(n)
    values[(on & (kinds < 0)).any(axis=1)] = np.inf
    counted = (on & (kinds > 0)).sum(axis=1)
    scale = max((case.w * case.y**2).sum(), 1e-3)
    lines, closed = [], 0
    for k in range(n + 1):
        best = values[counted <= k].min()
        for found in (
            solve_forest_budgeted(forest, k),
            solve_forest_budgeted(forest, k, lines=lines),
        ):
            assert found.status is Status.CONVERGED
            assert abs(found.value - best) <= CLOSE * scale
            assert found.lower_bound <= found.value
            assert found.value - found.lower_bound <= CLOSE * scale
            assert forest.count(found.signal != 0) <= k
            assert not found.signal[kinds < 0].any()
            assert not case.nonnegative or (found.signal >= 0).all()
        proof = certify_forest(forest, found, budget=k, penalty=None)
        assert proof.supports(Claim.GAP)
        assert proof.lower_bound <= best + CLOSE * scale
        assert proof.claim is Claim.OPTIMAL or MULTIPLIER in proof.assumptions
        closed += found.measures["n_states"] > 0
    price = float(rng.choice([0.0, 0.2, 0.7]))
    found = solve_forest_penalized(forest, price)
    proof = certify_forest(forest, found, budget=None, penalty=price)
    assert proof.claim is Claim.OPTIMAL
    assert proof.assumptions == (INTERVAL,)
    assert abs(proof.lower_bound - (values + price * counted).min()) <= CLOSE * scale
    return closed


def test_trees_with_budgets_against_enumeration():
    rng = np.random.default_rng(0)
    # The envelope alone settles most budgets: the count-indexed program must have had its share.
    assert sum(check_tree(rng, 9) for _ in range(50)) >= 20


@pytest.mark.slow
def test_300_trees_with_budgets_against_enumeration():
    rng = np.random.default_rng(1)
    assert sum(check_tree(rng, 12) for _ in range(300)) >= 100


def data(n, parent, edge, seed=0):
    rng = np.random.default_rng(seed)
    y = 0.5 * rng.standard_normal(n) + 2.0 * np.repeat(rng.random(n // 10 + 1) < 0.2, 10)[:n]
    return Forest(y, np.ones(n), parent, np.full(n, edge))


def test_a_path_is_a_chain():
    forest = data(400, np.append(np.arange(1, 400), -1), 10.0)
    chain = Chain(forest.y, forest.weights, forest.edges[:-1])
    for k in (3, 43, 77, 150):
        found = solve_forest_budgeted(forest, k)
        assert found.value == pytest.approx(solve_budgeted(chain, k).value, rel=CLOSE)
        assert found.gap == 0.0


@pytest.mark.parametrize("kind", ["star", "hubs", "isolated", "deep"])
def test_hubs_keep_few_states(kind):
    rng = np.random.default_rng(2)
    n = 3000
    if kind == "star":
        parent = np.append(np.full(n - 1, n - 1), -1)
    elif kind == "hubs":
        parent = np.append(rng.integers(n - 5, n, n - 5), [n - 4, n - 3, n - 2, n - 1, -1])
    elif kind == "isolated":
        parent = np.full(n, -1)
    else:
        parent = np.array([min(n - 1, v + 1 + rng.integers(5)) for v in range(n - 1)] + [-1])
    forest = data(n, parent.astype(np.int64), 3.0)
    found = solve_forest_budgeted(forest, n // 9 + 1)
    assert found.gap == 0.0
    assert found.measures["n_programs"] <= 30
    assert found.measures["n_states"] <= 60 * n
    if kind == "isolated":
        kept = np.sort(forest.y**2)[::-1][: n // 9 + 1]
        assert found.value == pytest.approx((forest.y**2).sum() - kept.sum(), rel=1e-12)


def test_a_stopped_search_says_so_and_its_bound_is_true():
    rng = np.random.default_rng(3)
    parent = np.array([min(399, v + 1 + rng.integers(3)) for v in range(399)] + [-1])
    forest = data(400, parent.astype(np.int64), 10.0)
    exact = solve_forest_budgeted(forest, 43)
    for stop in range(1, 8):
        found = solve_forest_budgeted(forest, 43, callback=lambda n, *_: n >= stop)  # noqa: B023
        assert found.n_nonzero <= 43
        assert found.lower_bound <= exact.value * (1 + 1e-12)
        assert found.value >= exact.value * (1 - 1e-12)
    assert solve_forest_budgeted(forest, 43, time_limit=0.0).status is Status.TIME_LIMIT


def test_certificates_refuse_other_signals_and_raised_messages():
    rng = np.random.default_rng(4)
    parent = np.array([min(199, v + 1 + rng.integers(4)) for v in range(199)] + [-1])
    forest = data(200, parent.astype(np.int64), 2.0)
    found = solve_forest_penalized(forest, 0.5)
    right = certify_forest(forest, found, budget=None, penalty=0.5)
    assert right.claim is Claim.OPTIMAL
    swapped, more = found.support.copy(), found.support.copy()
    swapped[np.flatnonzero(swapped)[0]] = False
    more[np.flatnonzero(~more)[:3]] = True
    for signal in (found.signal * 1.01, forest.refit(swapped), forest.refit(more)):
        wrong = certify_forest(forest, replace(found, signal=signal), budget=None, penalty=0.5)
        assert not wrong.supports(Claim.OPTIMAL)
        assert wrong.lower_bound == pytest.approx(right.lower_bound, rel=1e-9)
    cost = forest.costs(0.5)
    *_, rows, first, bases = tree_l0(
        forest.y, forest.weights, forest.parent, forest.edges, cost, False
    )
    every = np.ones(200, dtype=bool)
    low, high = (
        solve_forest(part, forest.weights, forest.parent, forest.edges, every)
        for part in (forest.y.clip(max=0), forest.y.clip(0))
    )
    raised = rows.copy()
    raised[first[100] : first[101], 2] += 0.1
    bound, violation = bound_of_forest(
        forest.y,
        forest.weights,
        forest.parent,
        forest.edges,
        cost,
        low,
        high,
        raised,
        first,
        bases,
    )
    assert violation == pytest.approx(0.1, rel=1e-6)
    assert bound <= found.value + 1e-9


def random_tree(rng, n):
    parent = np.array([rng.integers(0, v) for v in range(1, n)])
    return np.column_stack([parent, np.arange(1, n)])


def test_leverages_on_a_forest_are_those_of_the_dense_inverse():
    rng = np.random.default_rng(8)
    for _ in range(30):
        n = int(rng.integers(1, 12))
        parent = np.array([rng.choice([-1, rng.integers(v + 1, n)]) for v in range(n - 1)] + [-1])
        edges, w = rng.uniform(0.1, 3.0, n), rng.uniform(0.2, 2.0, n)
        on = rng.random(n) < 0.6
        inner = np.flatnonzero(parent >= 0)
        system = np.diag(w) + laplacian(n, inner, parent[inner], edges[inner])
        wanted = np.zeros(n)
        if on.any():
            wanted[on] = w[on] * np.diag(np.linalg.inv(system[np.ix_(on, on)]))
        got = forest_leverages(w, parent.astype(np.int64), edges, on)
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("criterion", ["ebic", "cv"])
def test_select_finds_a_planted_branch(criterion):
    rng = np.random.default_rng(5)
    edges = random_tree(rng, 120)
    below = np.zeros(120, dtype=bool)
    below[30] = True
    for parent, child in edges:
        below[child] |= below[parent]
    low = np.flatnonzero(below)
    y = 0.3 * rng.standard_normal(120)
    y[low] += 4.0
    est = SparseSmooth(0.5, graph=("tree", edges)).select(
        y, [0, low.size // 2, low.size, 60], criterion=criterion
    )
    if criterion == "ebic":
        assert est.budget_ == low.size
        assert est.support_.tolist() == low.tolist()
    else:
        assert est.budget_ >= low.size
    scores = est.criterion_[criterion]
    assert est.criterion_["n_nonzero"][int(np.argmin(scores))] == est.budget_
    if criterion == "cv":
        total = 0.0
        for fold in range(5):
            out = np.arange(120) % 5 == fold
            part = SparseSmooth(0.5, graph=edges, n_nonzero=60).fit(np.where(out, np.nan, y))
            total += ((y - part.signal_)[out] ** 2).sum()
        assert scores[-1] == pytest.approx(total, rel=1e-9)
