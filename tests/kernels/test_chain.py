"""Exact programs on chains and trees against every support of small problems."""

import numpy as np
import pytest

from ellzero.kernels.chain import domains, objective, solve_runs, sweep
from ellzero.kernels.chain_check import best_by_counts, best_by_zeros, bound_of_messages
from ellzero.kernels.tree import forest_objective, solve_forest, tree_l0
from tests.signal.enumeration import (
    by_budget,
    chain_values,
    costs_of,
    laplacian,
    masks,
    random_case,
    random_cost,
    smooth_values,
)

# Dense solves of ill-conditioned small systems keep 11 digits.
CLOSE = 1e-11


def scale_of(case):
    return max((case.w * case.y**2).sum(), 1e-3)


def row_of(on):
    return int((1 << np.flatnonzero(on)).sum())


def bumps(rng, n):
    """Return data with bumps for larger tests."""
    high = np.repeat(rng.random(n // 20 + 1) < 0.2, 20)[:n]
    return rng.standard_normal(n) * 0.5 + high * 2.0


@pytest.mark.parametrize("seed", range(4))
def test_1200_chains_with_every_switch_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    for _ in range(300):
        case = random_case(rng)
        n = case.y.size
        cost = random_cost(rng, n)
        value, on, *_ = sweep(*case[:3], cost, 0.0, case.nonnegative, False)
        values = chain_values(case)
        best = (values + costs_of(cost)).min()
        assert abs(value - best) <= CLOSE * scale_of(case)
        # A node whose cost is negative may be counted as on wherever its value is zero.
        free = np.where(~on & (cost < 0), cost, 0.0).sum()
        reached = values[row_of(on)] + cost[on].sum() + free
        assert abs(reached - best) <= CLOSE * scale_of(case)


def test_nodes_without_a_cost_and_nodes_that_stay_off():
    rng = np.random.default_rng(5)
    for _ in range(200):
        case = random_case(rng)
        n = case.y.size
        cost = random_cost(rng, n, negative=False)
        cost[rng.integers(n)] = -np.inf
        value, on, *_ = sweep(*case[:3], cost, 0.0, case.nonnegative, False)
        known = np.where(np.isneginf(cost), 0.0, cost)
        assert abs(value - (chain_values(case) + costs_of(known)).min()) <= CLOSE * scale_of(case)
        assert not on[np.isposinf(cost)].any()


@pytest.mark.parametrize("seed", range(2))
def test_500_chains_where_every_bump_costs_against_enumeration(seed):
    rng = np.random.default_rng(10 + seed)
    for _ in range(250):
        case = random_case(rng)
        n = case.y.size
        cost = random_cost(rng, n, negative=False)
        bump = float(rng.choice([0.05, 0.3, 1.0, 4.0]))
        value, on, _, _, held, *_ = sweep(*case[:3], cost, bump, case.nonnegative, False)
        values = chain_values(case)
        paid = costs_of(cost, bump)
        best = (values + paid).min()
        assert abs(value - best) <= CLOSE * scale_of(case)
        assert not (held & ~on).any()
        reached = values[row_of(on & ~held)] + paid[row_of(on)]
        assert abs(reached - best) <= CLOSE * scale_of(case)


def test_independent_programs_agree_with_enumeration():
    rng = np.random.default_rng(7)
    for _ in range(150):
        case = random_case(rng)._replace(nonnegative=False)
        cost = random_cost(rng, case.y.size, negative=False)
        bump = float(rng.choice([0.0, 0.5]))
        values = chain_values(case)
        best = (values + costs_of(cost, bump)).min()
        assert abs(best_by_zeros(*case[:3], cost, bump) - best) <= CLOSE * scale_of(case)
        for k, least in enumerate(by_budget(values)):
            assert abs(best_by_counts(*case[:3], k) - least) <= CLOSE * scale_of(case)


def test_200_longer_chains_against_every_last_zero():
    rng = np.random.default_rng(3)
    for trial in range(200):
        n = int(rng.integers(50, 300 if trial else 2001))
        y = bumps(rng, n) * rng.choice([1.0, -1.0], n if trial % 2 else 1)
        w = rng.uniform(0.2, 2.0, n) * (rng.random(n) > 0.1)
        edges = rng.uniform(0.1, 1.0, n - 1) * 10.0 ** rng.integers(-1, 6)
        cost = np.full(n, 10.0 ** rng.integers(-3, 1))
        bump = float(rng.choice([0.0, 1.0]))
        value = sweep(y, w, edges, cost, bump, False, False)[0]
        assert value == pytest.approx(best_by_zeros(y, w, edges, cost, bump), rel=1e-11)


def test_the_reversed_chain_has_the_same_optimum_and_values_stay_within_their_bounds():
    rng = np.random.default_rng(4)
    for trial in range(20):
        n = 400
        y = bumps(rng, n) - (trial % 2)
        w, edges, cost = rng.uniform(0.5, 2, n), rng.uniform(0.1, 20, n - 1), np.full(n, 0.3)
        value, on, *_ = sweep(y, w, edges, cost, 0.0, False, False)
        back = sweep(y[::-1].copy(), w[::-1].copy(), edges[::-1].copy(), cost, 0.0, False, False)
        assert value == pytest.approx(back[0], rel=1e-12)
        assert (on == back[1][::-1]).all()
        low, high = domains(y, w, edges, False)
        x = solve_runs(y, w, edges, on)
        assert (low <= x + 1e-12).all()
        assert (x <= high + 1e-12).all()
        assert objective(x, y, w, edges, cost) == pytest.approx(value, rel=1e-12)


def test_runs_are_solved_as_dense_systems_are():
    rng = np.random.default_rng(6)
    for _ in range(50):
        case = random_case(rng)
        n = case.y.size
        on = rng.random(n) < 0.7
        here = np.arange(n - 1)
        matrix = np.diag(case.w) + laplacian(n, here, here + 1, case.edges)
        x = solve_runs(case.y, case.w, case.edges, on)
        assert (x[~on] == 0).all()
        slope = (matrix @ x - case.w * case.y)[on]
        assert np.abs(slope).max(initial=0) <= 1e-12 * max(1.0, np.abs(matrix).max())


def test_messages_prove_a_bound_that_is_never_above_the_optimum():
    rng = np.random.default_rng(8)
    for _ in range(200):
        case = random_case(rng)
        y, w, edges, nonnegative = case
        cost = random_cost(rng, y.size, negative=False)
        bump = float(rng.choice([0.0, 0.3, 2.0]))
        *_, kept, first, bases = sweep(y, w, edges, cost, bump, nonnegative, True)
        low, high = domains(y, w, edges, nonnegative)
        best = (chain_values(case) + costs_of(cost, bump)).min()
        bound, violation = bound_of_messages(
            y, w, edges, cost, bump, low, high, kept, first, bases
        )
        assert bound <= best + 1e-12 * scale_of(case)
        assert bound >= best - CLOSE * scale_of(case)
        assert violation <= 1e-12 * scale_of(case)
        # Whatever is done to the messages, what they prove stays true.
        for _ in range(3):
            spoiled = kept.copy()
            row = rng.integers(spoiled.shape[0])
            column = rng.integers(3)
            spoiled[row, column] = abs(spoiled[row, column]) * 2 + rng.uniform(0.1, 1.0)
            bound, _ = bound_of_messages(y, w, edges, cost, bump, low, high, spoiled, first, bases)
            assert bound <= best + 1e-12 * scale_of(case)


def test_raised_messages_are_detected():
    rng = np.random.default_rng(9)
    n = 200
    y, w, edges, cost = bumps(rng, n), np.ones(n), np.full(n - 1, 3.0), np.full(n, 0.2)
    value, *_, kept, first, bases = sweep(y, w, edges, cost, 0.0, False, True)
    low, high = domains(y, w, edges, False)
    bound, _ = bound_of_messages(y, w, edges, cost, 0.0, low, high, kept, first, bases)
    assert bound == pytest.approx(value, rel=1e-12)
    for i in range(0, n, 20):
        spoiled = kept.copy()
        spoiled[first[i] : first[i + 1], 2] += 1.0
        bound, violation = bound_of_messages(
            y, w, edges, cost, 0.0, low, high, spoiled, first, bases
        )
        assert violation > 0.5
        assert bound <= value


@pytest.mark.parametrize(
    ("smoothness", "cost", "mean", "most"), [(1, 1, 1.1, 6), (10, 0.1, 3, 14)]
)
def test_pieces_of_a_message_do_not_grow_with_the_chain(smoothness, cost, mean, most):
    for n in (1000, 10_000, 100_000):
        y = bumps(np.random.default_rng(0), n)
        edges, costs = np.full(n - 1, float(smoothness)), np.full(n, float(cost))
        _, _, n_pieces, largest, *_ = sweep(y, np.ones(n), edges, costs, 0.0, False, False)
        assert n_pieces <= mean * n
        assert largest <= most


def random_parents(rng, n):
    parent = np.array([rng.integers(v + 1, n) if v < n - 1 else -1 for v in range(n)])
    if rng.random() < 0.3:
        parent[rng.integers(n)] = -1
    if rng.random() < 0.2:
        parent[:] = n - 1
        parent[n - 1] = -1
    return parent


def test_400_forests_with_hubs_against_enumeration():
    rng = np.random.default_rng(11)
    for _ in range(400):
        case = random_case(rng, n_edges=lambda n: n)
        y, w, edges, nonnegative = case
        n = y.size
        parent = random_parents(rng, n)
        cost = random_cost(rng, n)
        inner = np.flatnonzero(parent >= 0)
        matrix = laplacian(n, inner, parent[inner], edges[inner])
        values = smooth_values(y, w, matrix, nonnegative)
        best = (values + costs_of(cost)).min()
        value, on, *_ = tree_l0(y, w, parent, edges, cost, nonnegative)
        assert abs(value - best) <= CLOSE * scale_of(case)
        free = np.where(~on & (cost < 0), cost, 0.0).sum()
        assert abs(values[row_of(on)] + cost[on].sum() + free - best) <= CLOSE * scale_of(case)


def test_a_path_as_a_tree_is_a_chain():
    rng = np.random.default_rng(12)
    for nonnegative in (False, True):
        n = 2000
        y, w = bumps(rng, n), rng.uniform(0.5, 2, n)
        edges, cost = rng.uniform(0, 20, n), np.full(n, 0.3)
        parent = np.append(np.arange(1, n), -1)
        value, on, *_ = tree_l0(y, w, parent, edges, cost, nonnegative)
        other = sweep(y, w, edges[:-1].copy(), cost, 0.0, nonnegative, False)
        assert value == pytest.approx(other[0], rel=1e-12)
        assert (on == other[1]).all()


def test_hubs_cost_their_pieces_and_the_value_is_that_of_the_signal():
    rng = np.random.default_rng(13)
    n = 20_000
    parent = np.append(rng.integers(n - 21, n - 1, n - 21), np.full(20, n - 1))
    parent = np.append(parent, -1)
    y, w, edges, cost = rng.standard_normal(n), np.ones(n), np.ones(n), np.full(n, 0.5)
    value, on, n_pieces, *_ = tree_l0(y, w, parent, edges, cost, False)
    assert n_pieces <= 2 * n
    x = solve_forest(y, w, parent, edges, on)
    assert forest_objective(x, y, w, parent, edges, cost) == pytest.approx(value, rel=1e-12)


def test_supports_are_numbered_by_their_bits():
    assert masks(2).tolist() == [[False, False], [True, False], [False, True], [True, True]]
