"""Rules on the support of chains: exact against every support, and certified by other code."""

from dataclasses import replace

import numpy as np
import pytest

from ellzero.core.result import Claim, Status
from ellzero.errors import InvalidParameterError
from ellzero.kernels.chain import domains
from ellzero.kernels.chain_rules import EVERY, lower_of
from ellzero.kernels.chain_rules_check import best_by_runs, bound_of_rules
from ellzero.signal import SparseSmooth, certificate, certificate_rules, rules
from ellzero.signal.certificate_rules import certify_ruled
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from ellzero.signal.rules import least_sizes, run_program
from tests.signal.enumeration import chain_values, keeps_to, masks, random_case, random_rules

CLOSE = 1e-11


def scale_of(case):
    return max((case.w * case.y**2).sum(), 1e-3)


def bumps(n, seed=0):
    rng = np.random.default_rng(seed)
    high = np.repeat(rng.random(n // 20 + 1) < 0.2, 20)[:n]
    return rng.standard_normal(n) * 0.5 + high * 2.0


def check_case(rng, most):
    """Compare one random problem with all supports; return whether one keeps to the rules."""
    case = random_case(rng, most=most)
    n = case.y.size
    given = random_rules(rng, n)
    budget = int(rng.integers(0, n + 1)) if rng.random() < 0.5 else None
    price = None if budget is not None else float(rng.choice([0.0, 0.1, 0.5]))
    chain = Chain(*case, *given)
    if not chain.has_rules:
        return False
    good, count, runs = keeps_to(given, n)
    within = good if given.most_bumps is None else good & (runs <= given.most_bumps)
    assert least_sizes(chain) == (
        runs[good].min(initial=10**6) if good.any() else np.inf,
        count[within].min(initial=10**6) if within.any() else np.inf,
    )
    if budget is not None:
        within = within & (count <= budget)
    if not within.any():
        return False
    values = chain_values(case) + (price or 0.0) * count + given.bump * runs
    values[~within] = np.inf
    best, scale = values.min(), scale_of(case)
    found = solve_penalized(chain, price) if budget is None else solve_budgeted(chain, budget)
    assert found.status is Status.CONVERGED
    assert abs(found.value - best) <= CLOSE * scale
    assert abs(values[int((1 << np.flatnonzero(found.support)).sum())] - best) <= CLOSE * scale
    assert not found.signal[~found.support].any()
    assert found.lower_bound <= found.value
    assert found.value - found.lower_bound <= CLOSE * scale
    assert not case.nonnegative or (found.signal >= 0).all()
    proof = certify_ruled(chain, found, budget=budget, penalty=price)
    assert proof.claim is Claim.OPTIMAL
    assert abs(proof.lower_bound - best) <= CLOSE * scale
    return True


# With no states solved outright, multipliers and pruned counting do the work.
@pytest.mark.parametrize("outright", [rules.OUTRIGHT, 0])
def test_rules_against_enumeration(outright, monkeypatch):
    monkeypatch.setattr(rules, "OUTRIGHT", outright)
    rng = np.random.default_rng(0)
    assert sum(check_case(rng, 9) for _ in range(150)) >= 110


@pytest.mark.slow
@pytest.mark.parametrize("outright", [rules.OUTRIGHT, 0])
def test_1000_rules_against_enumeration(outright, monkeypatch):
    monkeypatch.setattr(rules, "OUTRIGHT", outright)
    rng = np.random.default_rng(1)
    assert sum(check_case(rng, 12) for _ in range(650)) >= 500


def chains_of(n, seed):
    """Return a chain of n samples with rules, free or nonnegative, with missing ones and cuts."""
    rng = np.random.default_rng(seed)
    w, edges = np.ones(n), np.full(n - 1, float(rng.choice([0.5, 10.0, 1000.0])))
    w[rng.random(n) < 0.1] = 0.0
    edges[rng.random(n - 1) < 0.01] = 0.0
    kinds = np.ones(n, dtype=np.int8)
    kinds[rng.random(n) < 0.02] = -1
    return Chain(
        bumps(n, seed), w, edges, False, kinds,
        bump=float(rng.choice([0.0, 1.0])), length=int(rng.integers(1, 9)),
        distance=int(rng.integers(2, 9)),
    )  # fmt: skip


def compare_with_runs(n, seed):
    chain = chains_of(n, seed)
    rng = np.random.default_rng(seed)
    limits = (-1, -1)
    price = 0.3
    if seed % 3 == 1:
        limits, price = (int(rng.integers(1, n // 4)), -1), 0.0
    elif seed % 3 == 2:
        limits = (-1, int(rng.integers(1, 12)))
    exact = best_by_runs(
        chain.y, chain.weights, chain.edges, chain.kinds, price, chain.bump, *limits,
        chain.length, chain.distance, False,
    )  # fmt: skip
    chain = replace(chain, most_bumps=limits[1] if limits[1] >= 0 else None)
    penalized = limits[0] < 0
    found = solve_penalized(chain, price) if penalized else solve_budgeted(chain, limits[0])
    assert found.status is Status.CONVERGED
    assert found.value == pytest.approx(exact, rel=CLOSE)
    assert found.gap <= CLOSE


def test_longer_chains_against_every_run():
    for seed in range(9):
        compare_with_runs(150, seed)


@pytest.mark.slow
def test_60_long_chains_against_every_run():
    for seed in range(60):
        compare_with_runs(int(np.random.default_rng(seed).integers(50, 500)), 100 + seed)


def test_nonnegative_runs_are_solved_by_no_code_of_the_program():
    rng = np.random.default_rng(3)
    for _ in range(60):
        case = random_case(rng, most=9)._replace(nonnegative=True)
        n = case.y.size
        kinds = np.ones(n, dtype=np.int8)
        values = chain_values(case) + 0.2 * masks(n).sum(axis=1)
        got = best_by_runs(*case[:3], kinds, 0.2, 0.0, -1, -1, 1, 1, True)
        assert abs(got - values.min()) <= CLOSE * scale_of(case)


def test_messages_prove_a_bound_and_lose_it_when_raised(monkeypatch):
    monkeypatch.setattr(certificate_rules, "ALL_COUNTS", 0)
    for seed in range(6):
        chain = replace(chains_of(200, seed), nonnegative=bool(seed % 2))
        found = solve_penalized(chain, 0.3)
        proof = certify_ruled(chain, found, budget=None, penalty=0.3)
        assert proof.measures["bound_method"] == "message inequalities"
        assert proof.claim is Claim.OPTIMAL
        assert certificate.INTERVAL in proof.assumptions
        messages = run_program(chain, 0.3, chain.bump, keep=EVERY).messages
        low, high = domains(chain.y, chain.weights, chain.edges, chain.nonnegative)
        given = (
            chain.y, chain.weights, chain.edges, chain.kinds, 0.3, chain.bump, chain.length,
            chain.distance, low, high,
        )  # fmt: skip
        raised = messages.kept.copy()
        raised[messages.first[100 * chain.length] :, 2] += 0.1
        bound, violation = bound_of_rules(*given, raised, messages.first, messages.bases)
        assert violation >= 0.1 * (1 - 1e-9)
        assert bound <= found.value + 1e-9
        lost = messages.first.copy()
        lost[100 * chain.length :] = lost[100 * chain.length]
        assert bound_of_rules(*given, raised, lost, messages.bases)[1] == np.inf


def test_limits_beyond_recomputation_say_what_they_rest_on(monkeypatch):
    monkeypatch.setattr(certificate_rules, "ALL_COUNTS", 0)
    chain = Chain(bumps(400), np.ones(400), np.full(399, 10.0), length=4, most_bumps=3)
    found = solve_budgeted(chain, 43)
    proof = certify_ruled(chain, found, budget=43, penalty=None)
    assert found.gap == 0.0
    assert proof.claim is Claim.GAP
    assert proof.lower_bound <= found.value
    assert proof.assumptions == (certificate.INTERVAL, certificate.MULTIPLIER)


def test_certificates_refuse_supports_that_break_a_rule():
    chain = Chain(
        bumps(400), np.ones(400), np.full(399, 2.0), length=3, distance=4, most_bumps=9
    )  # fmt: skip
    found = solve_penalized(chain, 0.5)
    right = certify_ruled(chain, found, budget=None, penalty=0.5)
    assert right.claim is Claim.OPTIMAL
    runs = np.flatnonzero(np.diff(found.support.astype(int)) == 1) + 1
    shorter, closer, more = (found.support.copy() for _ in range(3))
    shorter[runs[0] : runs[0] + chain.length] = False
    shorter[runs[0]] = True
    closer[runs[1] - 2] = True
    more[:] = False
    more[::10] = True
    for support in (shorter, closer, more):
        signal = chain.refit(support)
        wrong = certify_ruled(
            chain, replace(found, support=support, signal=signal), budget=None, penalty=0.5
        )
        assert wrong.claim is None
    worse = replace(found, signal=found.signal * 1.01)
    assert certify_ruled(chain, worse, budget=None, penalty=0.5).claim is not Claim.OPTIMAL


def test_the_smaller_of_two_functions_crosses_twice():
    one, two = np.array([[2.0, 0.0, 0.0, -3.0]]), np.array([[0.5, 0.5, 1.0, -3.0]])
    labels = np.array([7]), np.array([8])
    out, out_labels = np.empty((6, 4)), np.empty(6, dtype=np.int64)
    count = lower_of(one, labels[0], 1, two, labels[1], 1, 3.0, out, out_labels)
    assert out_labels[:count].tolist() == [8, 7, 8]
    # 2 x^2 = (x - 1/2)^2 / 2 + 1.
    roots = np.sort(np.roots([1.5, 0.5, -1.125]))
    assert out[1:3, 3] == pytest.approx(roots, rel=1e-14)


def test_a_stopped_search_says_so_and_its_bound_is_true():
    chain = Chain(bumps(2000), np.ones(2000), np.full(1999, 10.0), length=4, most_bumps=20)
    exact = solve_budgeted(chain, 203)
    for stop in (2, 5, 8):
        found = solve_budgeted(chain, 203, callback=lambda n, *_: n >= stop)  # noqa: B023
        assert found.lower_bound <= exact.value * (1 + 1e-12)
        assert found.value >= exact.value * (1 - 1e-12)
        assert found.status in (Status.INTERRUPTED, Status.CONVERGED)
    assert solve_budgeted(chain, 203, time_limit=0.0).gap > 0


def test_states_are_few_where_limits_are_large():
    chain = Chain(bumps(5000), np.ones(5000), np.full(4999, 10.0), length=8)
    found = solve_budgeted(chain, 503)
    assert found.gap == 0.0
    assert found.measures["n_programs"] <= 30
    assert found.measures["n_states"] <= 200 * 5000


def test_the_estimator_takes_all_rules_together():
    y = bumps(400)
    est = SparseSmooth(
        5.0, n_nonzero=60, n_bumps=3, min_length=15, min_distance=30, bump_penalty=0.5,
        known_zeros=[0, 1], known_ones=[200],
    ).fit(y)  # fmt: skip
    assert est.certificate_.claim is Claim.OPTIMAL
    on = est.support_
    starts = on[np.diff(on, prepend=-9) > 1]
    ends = on[np.diff(on, append=999) > 1]
    assert 200 in on
    assert starts.size <= 3
    assert (ends - starts + 1).min() >= 15
    assert (starts[1:] - ends[:-1] - 1).min() >= 30
    assert on.size <= 60
    looser = SparseSmooth(5.0, n_nonzero=60, bump_penalty=0.5, known_ones=[200]).fit(y)
    assert looser.value_ < est.value_
    chosen = SparseSmooth(5.0, n_nonzero=1, min_length=10).select(y, [0, 20, 40, 60])
    assert chosen.budget_ in (20, 40, 60)


ONES = {"known_ones": [0, 5]}
TOO_CLOSE = {**ONES, "min_distance": 3, "min_length": 2, "known_zeros": [2, 4, 6]}
INFEASIBLE = [
    (
        {"penalty": 1.0, **TOO_CLOSE},
        "No support has `known_zeros` and `known_ones` as given with bumps of at least 2 samples "
        "and at least 3 zeros between them.",
    ),
    (
        {"penalty": 1.0, "n_bumps": 1, "known_zeros": [3], **ONES},
        "`n_bumps` must be at least 2 to hold the `known_ones`, got 1.",
    ),
    (
        {"n_nonzero": 3, "min_length": 2, "known_zeros": [3], **ONES},
        "`n_nonzero` must be at least 4 to hold the `known_ones` in bumps that keep to the rules, "
        "got 3.",
    ),
    (
        {"n_nonzero": 3, "n_bumps": 1, **ONES},
        "`n_nonzero` must be at least 6 to hold the `known_ones` in bumps that keep to the rules, "
        "got 3.",
    ),
    (
        {"penalty": 1.0, "n_bumps": -1},
        "`n_bumps` must be an integer of at least 0, got -1.",
    ),
    (
        {"penalty": 1.0, "min_length": 0},
        "`min_length` must be an integer of at least 1, got 0.",
    ),
    (
        {"penalty": 1.0, "min_distance": 0},
        "`min_distance` must be an integer of at least 1, got 0.",
    ),
]


@pytest.mark.parametrize(("given", "message"), INFEASIBLE)
def test_rules_that_nothing_keeps_to_are_one_sentence(given, message):
    with pytest.raises(InvalidParameterError) as error:
        SparseSmooth(1.0, **given).fit(np.arange(8.0))
    assert error.value.message == message


def test_bumps_longer_than_the_signal_leave_zero():
    est = SparseSmooth(1.0, n_nonzero=3, min_length=9).fit(np.arange(8.0))
    assert not est.signal_.any()
    assert est.certificate_.claim is Claim.OPTIMAL
