"""Many chains against every support and against the program by every last zero; mostly slow."""

import numpy as np
import pytest

from ellzero.kernels.chain_check import best_by_counts, best_by_zeros
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from tests.signal.enumeration import by_budget, chain_values, masks, random_case

CLOSE = 1e-11


def compare(rng, most):
    """Compare one chain, penalized and with every budget; return how many budgets there were."""
    case = random_case(rng, most=most)
    n = case.y.size
    scale = max((case.w * case.y**2).sum(), 1e-3)
    values, count = chain_values(case), masks(n).sum(axis=1)
    price = float(rng.choice([0.0, 0.1, 0.5, 1.0]))
    found = solve_penalized(Chain(*case), price)
    assert abs(found.value - (values + price * count).min()) <= CLOSE * scale
    lines = []
    for k, best in enumerate(by_budget(values)):
        found = solve_budgeted(Chain(*case), k, lines=lines)
        assert abs(found.value - best) <= CLOSE * scale
        assert found.value - found.lower_bound <= CLOSE * scale
        assert np.count_nonzero(found.signal) <= k
    return n + 1


@pytest.mark.parametrize("most", [10, pytest.param(14, marks=pytest.mark.slow)])
def test_chains_against_enumeration(most):
    rng = np.random.default_rng(most)
    cases = sum(compare(rng, most) for _ in range(1000 if most > 10 else 40))
    assert cases >= (5000 if most > 10 else 150)


def long_case(rng, most):
    n = int(rng.integers(50, most + 1))
    high = np.repeat(rng.random(n // 20 + 1) < 0.2, 20)[:n]
    y = rng.standard_normal(n) * 0.5 + high * 2.0 * rng.choice([1.0, -1.0], n)
    w = rng.uniform(0.2, 2.0, n) * (rng.random(n) > 0.1)
    edges = rng.uniform(0.1, 1.0, n - 1) * 10.0 ** rng.integers(-1, 6)
    edges[rng.random(n - 1) < 0.01] = 0.0
    return Chain(y, w, edges)


@pytest.mark.parametrize("most", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_long_chains_against_every_last_zero(most):
    rng = np.random.default_rng(most)
    for _ in range(200 if most > 200 else 30):
        chain = long_case(rng, most)
        price = 10.0 ** rng.integers(-3, 1)
        found = solve_penalized(chain, price)
        cost = np.full(chain.size, price)
        exact = best_by_zeros(chain.y, chain.weights, chain.edges, cost, 0.0)
        assert found.value == pytest.approx(exact, rel=CLOSE)
        k = int(rng.integers(0, min(chain.size, 100)))
        exact = best_by_counts(chain.y, chain.weights, chain.edges, k)
        assert solve_budgeted(chain, k).value == pytest.approx(exact, rel=CLOSE)
