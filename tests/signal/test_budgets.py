"""Budgets on chains: exact against every support, monotone, nested, and truthful when stopped."""

import numpy as np
import pytest

from ellzero.core.result import Status
from ellzero.kernels.chain_check import best_by_counts
from ellzero.signal.chain import Chain, count_bumps, solve_budgeted, solve_penalized
from tests.signal.enumeration import by_budget, chain_values, masks, random_case

CLOSE = 1e-11


def scale_of(case):
    return max((case.w * case.y**2).sum(), 1e-3)


def bumps(n, seed=0):
    rng = np.random.default_rng(seed)
    high = np.repeat(rng.random(n // 20 + 1) < 0.2, 20)[:n]
    return rng.standard_normal(n) * 0.5 + high * 2.0


@pytest.mark.parametrize("seed", range(2))
def test_more_than_1000_budgets_against_enumeration(seed):
    rng = np.random.default_rng(seed)
    cases = 0
    while cases < 550:
        case = random_case(rng)
        chain = Chain(*case)
        shared = []
        for k, best in enumerate(by_budget(chain_values(case))):
            alone = solve_budgeted(chain, k)
            after = solve_budgeted(chain, k, lines=shared)
            for found in (alone, after):
                assert found.status is Status.CONVERGED
                assert abs(found.value - best) <= CLOSE * scale_of(case)
                assert found.n_nonzero <= k
                assert found.lower_bound <= found.value
                assert found.value - found.lower_bound <= CLOSE * scale_of(case)
                assert not case.nonnegative or (found.signal >= 0).all()
            cases += 1


def test_budgets_with_known_zeros_and_ones_against_enumeration():
    rng = np.random.default_rng(2)
    for _ in range(120):
        case = random_case(rng, most=8)
        n = case.y.size
        kinds = rng.choice([-1, 0, 1, 1, 1], n).astype(np.int8)
        chain = Chain(*case, kinds)
        values, on = chain_values(case), masks(n)
        counted = (on & (kinds > 0)).sum(axis=1)
        allowed = ~(on & (kinds < 0)).any(axis=1)
        shared = []
        for k in range(n + 1):
            best = values[allowed & (counted <= k)].min()
            found = solve_budgeted(chain, k, lines=shared)
            assert abs(found.value - best) <= CLOSE * scale_of(case)
            assert found.value - found.lower_bound <= CLOSE * scale_of(case)
            assert (found.signal[kinds < 0] == 0).all()
            assert chain.count(found.signal != 0) <= k


def test_longer_chains_against_every_last_zero_and_count():
    for seed in range(12):
        y = bumps(150, seed)
        chain = Chain(y, np.ones(150), np.full(149, 10.0))
        for k in (3, 17, 40, 90):
            found = solve_budgeted(chain, k)
            exact = best_by_counts(y, chain.weights, chain.edges, k)
            assert found.value == pytest.approx(exact, rel=1e-11)
            assert found.gap <= 1e-11


def test_values_fall_with_the_budget_and_positive_data_have_nested_penalized_supports():
    y = np.abs(bumps(300))
    chain = Chain(y, np.ones(300), np.full(299, 5.0))
    values = [solve_budgeted(chain, k).value for k in range(0, 301, 10)]
    assert (np.diff(values) <= 0).all()
    assert values[0] == pytest.approx((y**2).sum(), rel=1e-14)
    before = np.ones(300, dtype=bool)
    for price in np.geomspace(1e-3, 10, 40):
        support = solve_penalized(chain, price).signal != 0
        assert not (support & ~before).any()
        before = support


def test_a_path_of_budgets_solves_fewer_programs_than_its_budgets_alone():
    y = bumps(2000)
    chain = Chain(y, np.ones(2000), np.full(1999, 1.0))
    budgets = list(range(100, 500, 20))
    lines = []
    together = [solve_budgeted(chain, k, lines=lines) for k in budgets]
    alone = [solve_budgeted(chain, k) for k in budgets]
    for one, two in zip(together, alone, strict=True):
        assert one.value == pytest.approx(two.value, rel=1e-12)
    programs = [sum(int(f.measures["n_programs"]) for f in fs) for fs in (together, alone)]
    assert programs[0] <= 0.6 * programs[1]


def test_the_window_of_counts_stays_short():
    y = bumps(5000)
    chain = Chain(y, np.ones(5000), np.full(4999, 10.0))
    found = solve_budgeted(chain, 1003)
    assert found.gap == 0.0
    assert found.measures["n_programs"] <= 30
    assert found.measures["n_states"] <= 100 * 5000


def test_a_stopped_search_says_so_and_its_bound_is_true():
    y = bumps(400)
    chain = Chain(y, np.ones(400), np.full(399, 10.0))
    exact = solve_budgeted(chain, 43)
    for stop in range(1, 8):
        found = solve_budgeted(chain, 43, callback=lambda n, *_: n >= stop)  # noqa: B023
        assert found.n_nonzero <= 43
        assert found.lower_bound <= exact.value * (1 + 1e-12)
        assert found.value >= exact.value * (1 - 1e-12)
        if found.status is Status.CONVERGED:
            break
        assert found.status is Status.INTERRUPTED
    limited = solve_budgeted(chain, 43, time_limit=0.0)
    assert limited.status is Status.TIME_LIMIT
    assert limited.gap > 0


def test_every_bump_counts_once():
    assert count_bumps(np.array([], dtype=bool)) == 0
    assert count_bumps(np.array([True, True, False, True, False, True])) == 3
    y = np.array([1.0, 1.0, 0.0, 1.0, 1.0])
    two, one = (
        solve_penalized(Chain(y, np.ones(5), np.full(4, 1e-3), bump=bump), 0.1)
        for bump in (0.05, 0.4)
    )
    assert count_bumps(two.support) == 2
    assert count_bumps(one.support) == 1
