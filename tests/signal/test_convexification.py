"""Convexifications: enumeration, closed forms, disjunctive points, other programs."""

import builtins
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.core.result import Status
from ellzero.errors import IncompatibleError, InvalidParameterError, NotConvergedError
from ellzero.signal import SparseSmooth, relax
from ellzero.signal.convexification import METHODS, relax_network
from ellzero.signal.hull_bounds import Shares, bound_of_boxes, bound_of_shares
from ellzero.signal.lasso import Network, solve_l1
from tests.signal.enumeration import by_budget, costs_of, laplacian, smooth_values

cp = pytest.importorskip("cvxpy")
pytest.importorskip("clarabel")


def random_network(rng, kind, *, most=7, missing=True):
    n = int(rng.integers(2, most + 1))
    if kind == "chain":
        first, second = np.arange(n - 1), np.arange(1, n)
    elif kind == "tree":
        second = np.arange(1, n)
        first = np.array([rng.integers(0, k) for k in second])
    else:
        pairs = [(i, j) for i in range(n) for j in range(i) if rng.random() < 0.6]
        first, second = np.array([*pairs, (1, 0)]).T
    y = rng.standard_normal(n) * 2
    w = rng.uniform(0.2, 2.0, n)
    if missing and rng.random() < 0.3:
        w[rng.random(n) < 0.3] = 0.0
    if rng.random() < 0.3:
        y = np.abs(y)
    edges = rng.uniform(0.1, 1.0, first.size) * rng.choice([0.1, 1.0, 30.0])
    if rng.random() < 0.2:
        edges[rng.random(first.size) < 0.3] = 0.0
    return Network(y, w, first, second, edges, bool(rng.random() < 0.5))


def every_value(network):
    matrix = laplacian(network.size, network.first, network.second, network.edges)
    return smooth_values(network.y, network.weights, matrix, network.nonnegative)


def bumps(n, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    high = np.repeat(rng.random(n // 20 + 1) < 0.3, 20)[:n]
    return rng.standard_normal(n) * noise + 2.0 * high


@pytest.mark.parametrize("kind", ["chain", "tree", "general"])
def test_bounds_are_ordered_and_below_every_support(kind):
    rng = np.random.default_rng(len(kind))
    gains = dict.fromkeys(METHODS, 0)
    for case in range(8):
        network = random_network(rng, kind)
        n, values = network.size, every_value(network)
        if case % 2:
            asked = {"budget": int(rng.integers(0, n + 1))}
            exact = by_budget(values)[asked["budget"]]
        else:
            asked = {"price": float(rng.choice([0.0, 0.1, 1.0]))}
            exact = (values + costs_of(np.full(n, asked["price"]))).min()
        energy = float(network.weights @ network.y**2)
        before = 0.0
        for method in METHODS:
            found = relax_network(network, method, max_rounds=3, **asked)
            # Below the optimum to rounding, whatever the accuracy of the solver.
            assert found.lower_bound <= exact + 1e-13 * energy
            assert found.value >= exact - 1e-12 * energy
            assert found.n_nonzero <= asked.get("budget", n)
            assert found.lower_bound >= before - 1e-6 * energy
            # The closed form is as good as what the conic solver reports.
            reported = found.measures.get("conic_value", found.value)
            assert found.lower_bound == pytest.approx(
                min(reported, found.value), abs=1e-5 * energy
            )
            gains[method] += found.lower_bound > before + 1e-4 * energy
            before = max(before, found.lower_bound)
    assert gains["perspective"] > 0
    assert gains["rank-one"] > 0
    assert gains["pair"] > 0


@given(st.integers(0, 10**6))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_shares_give_a_bound(seed):
    rng = np.random.default_rng(seed)
    network = random_network(rng, rng.choice(["chain", "tree", "general"]), most=5)
    kept = network.edges > 0
    network = Network(
        network.y, network.weights, network.first[kept], network.second[kept],
        network.edges[kept], network.nonnegative,
    )  # fmt: skip
    n, m = network.size, network.edges.size
    degree = np.bincount(network.first, minlength=n) + np.bincount(network.second, minlength=n)
    part = network.weights / np.maximum(degree, 1) * rng.choice([0.0, 0.5, 1.0])
    shares = Shares(
        np.stack([part[network.first], part[network.second]]),
        rng.standard_normal((2, m)),
        rng.standard_normal((2, m)) * rng.choice([0.0, 1.0]),
    )
    values, price = every_value(network), float(rng.uniform(0, 2))
    low, high = network.domains()
    exact = (values + costs_of(np.full(n, price))).min()
    assert bound_of_shares(network, shares, price, None, low, high) <= exact + 1e-12
    steps = rng.standard_normal(m)
    assert bound_of_boxes(network, steps, price, None, low, high) <= exact + 1e-12
    for budget, value in enumerate(by_budget(values)):
        assert bound_of_shares(network, shares, price, budget, low, high) <= value + 1e-12
        assert bound_of_boxes(network, steps, price, budget, low, high) <= value + 1e-12


def test_shares_that_are_too_large_are_not_a_bound():
    # The same sum with twice the weight at the ends is above the optimum: the check can fail.
    network = Network(np.full(2, 2.0), np.ones(2), np.array([0]), np.array([1]), np.ones(1))
    pulls = np.full((2, 1), 4.0)
    low, high = network.domains()
    right = Shares(np.full((2, 1), 1.0), pulls, np.full((2, 1), 1.0))
    assert bound_of_shares(network, right, 1.0, None, low, high) == pytest.approx(2.0)
    wrong = Shares(np.full((2, 1), 2.0), pulls, np.full((2, 1), 1.0))
    assert bound_of_shares(network, wrong, 1.0, None, low, high) > 2.1


def test_without_smoothness_the_perspective_is_exact():
    y = np.array([0.1, 2.0, -1.5, 0.4, 1.0])
    for asked in ({"n_nonzero": 2}, {"penalty": 0.5}):
        found = relax(y, 0.0, method="perspective", **asked)
        kept = np.abs(y) > 1.2 if "n_nonzero" in asked else y**2 > 0.5
        exact = (y[~kept] ** 2).sum() + asked.get("penalty", 0.0) * kept.sum()
        assert found.lower_bound == pytest.approx(exact, rel=1e-7)
        assert found.value == pytest.approx(exact, rel=1e-14)
        assert found.signal == pytest.approx(np.where(kept, y, 0.0))


@pytest.mark.parametrize("nonnegative", [False, True])
def test_one_pair_is_solved_by_its_hull(nonnegative):
    rng = np.random.default_rng(5)
    here = np.array([0])
    for _ in range(8):
        y, w = rng.standard_normal(2) * 2, rng.uniform(0.2, 2, 2)
        network = Network(y, w, here, here + 1, rng.uniform(0.1, 3, 1), nonnegative)
        price = float(rng.uniform(0.1, 2))
        exact = (every_value(network) + costs_of(np.full(2, price))).min()
        found = relax_network(network, "pair", price=price)
        assert found.lower_bound == pytest.approx(exact, rel=1e-6)
        assert found.value == pytest.approx(exact, rel=1e-12)


def disjunctive(z, x, form, nonnegative):
    """Return the hull at a point as the least mixture of the four states."""
    weights = cp.Variable(4, nonneg=True)
    part = cp.Variable((4, 2))
    root = np.linalg.cholesky(form + 1e-12 * np.eye(2)).T
    states = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
    cons = [cp.sum(weights) == 1, states.T @ weights == z, cp.sum(part, axis=0) == x]
    cons += [part[s, i] == 0 for s in range(4) for i in range(2) if not states[s, i]]
    if nonnegative:
        cons.append(part >= 0)
    height = cp.Variable(4)
    for s in range(1, 4):
        inside = cp.hstack([2 * (root @ part[s]), height[s] - weights[s]])
        cons.append(cp.SOC(height[s] + weights[s], inside))
    cons.append(height[0] == 0)
    return cp.Problem(cp.Minimize(cp.sum(height)), cons).solve(solver="CLARABEL")


@pytest.mark.parametrize("nonnegative", [False, True])
def test_hulls_equal_their_disjunctive_form(nonnegative):
    """Pin the relaxed point and compare what the program charges for it."""
    rng = np.random.default_rng(int(nonnegative))
    for _ in range(5):
        z, x, edge = rng.uniform(0.05, 0.95, 2), rng.uniform(-1, 1, 2), float(rng.uniform(0.3, 3))
        if nonnegative:
            x = np.abs(x)
        d = x[0] - x[1]
        form = edge * np.array([[1.0, -1.0], [-1.0, 1.0]])
        if nonnegative:
            closed = edge * (max(d, 0) ** 2 / z[0] + max(-d, 0) ** 2 / z[1])
        else:
            closed = edge * d**2 / min(1.0, z.sum())
        assert disjunctive(z, x, form, nonnegative) == pytest.approx(closed, rel=1e-4, abs=1e-7)
        split = rng.uniform(0.2, 2.0, 2)
        charged = charge_of_pair(z, x, edge, split, nonnegative)
        hull = disjunctive(z, x, form + np.diag(split), nonnegative)
        assert charged == pytest.approx(hull, rel=1e-5)


def charge_of_pair(z, x, edge, split, nonnegative):
    """Return what the pair program charges for an edge at a point."""
    from ellzero.signal.convexification import _Model

    here = np.array([0])
    network = Network(np.zeros(2), split, here, here + 1, np.array([edge]), nonnegative)
    model = _Model(network, None, 0.0, None, 0.0)
    cons = []
    cost, *_ = model._pair(0.0, cons, cp.Constant(x), cp.Constant(z), split[:, None], False)
    return cp.Problem(cp.Minimize(cost), cons).solve(solver="CLARABEL")


def test_iterated_splits_never_lower_the_bound_and_stay_below_the_best_split():
    y = bumps(60)
    exact = SparseSmooth(5.0, n_nonzero=9).fit(y).value_
    bounds = [
        relax(y, 5.0, n_nonzero=9, method="iterated", max_rounds=k).lower_bound for k in range(5)
    ]
    assert bounds[0] == relax(y, 5.0, n_nonzero=9, method="pair").lower_bound
    assert np.all(np.diff(bounds) >= 0)
    assert bounds[-1] > bounds[0] * (1 + 1e-4)
    joint = relax(y, 5.0, n_nonzero=9, method="joint").lower_bound
    assert bounds[-1] <= joint * (1 + 1e-7)
    assert joint <= exact


def test_units_weights_and_missing_samples():
    y, w = bumps(40), np.linspace(0.5, 1.5, 40)
    y[[3, 25]] = np.nan
    one = relax(y, 2.0, penalty=0.7, sample_weight=w)
    exact = SparseSmooth(2.0, penalty=0.7).fit(y, w).value_
    assert one.lower_bound <= exact <= one.value * (1 + 1e-12)
    assert one.lower_bound > 0.97 * exact
    other = relax(1e6 * y, 2.0, penalty=0.7e12, sample_weight=w)
    assert other.lower_bound == pytest.approx(1e12 * one.lower_bound, rel=1e-6)
    assert other.value == pytest.approx(1e12 * one.value, rel=1e-12)
    x = one.signal
    known = ~np.isnan(y)
    written = (w[known] * (y - x)[known] ** 2).sum() + 2.0 * (np.diff(x) ** 2).sum()
    assert one.value == pytest.approx(written + 0.7 * np.count_nonzero(x), rel=1e-12)


def test_grids_have_the_shape_of_the_image():
    image = np.zeros((5, 6))
    image[1:4, 2:5] = 2.0
    image += 0.2 * np.random.default_rng(0).standard_normal((5, 6))
    found = relax(image, 1.0, n_nonzero=9, graph="grid")
    assert found.x.shape == found.z.shape == found.signal.shape == (5, 6)
    assert (found.signal != 0).sum() == 9
    assert (found.signal[1:4, 2:5] != 0).all()
    assert found.gap < 0.02


def test_a_budget_of_zero_all_and_a_stopped_run():
    y = bumps(30)
    none = relax(y, 1.0, n_nonzero=0)
    assert none.lower_bound == none.value == pytest.approx((y**2).sum())
    every = relax(y, 1.0, n_nonzero=30)
    assert every.gap < 1e-6
    stopped = relax(y, 1.0, n_nonzero=5, time_limit=0.0)
    assert stopped.status is Status.TIME_LIMIT
    assert 0.0 <= stopped.lower_bound <= SparseSmooth(1.0, n_nonzero=5).fit(y).value_
    assert stopped.n_nonzero <= 5


def test_messages(monkeypatch):
    y = [1.0, 2.0]
    with pytest.raises(InvalidParameterError) as error:
        relax(y)
    assert error.value.message == (
        "Exactly one of `n_nonzero` and `penalty` must be given, got neither."
    )
    with pytest.raises(InvalidParameterError) as error:
        relax(y, n_nonzero=1, penalty=1.0)
    assert error.value.message.endswith("got both.")
    with pytest.raises(InvalidParameterError) as error:
        relax(y, n_nonzero=3)
    assert error.value.message == ("`n_nonzero` must be at most 2, the number of samples, got 3.")
    with pytest.raises(InvalidParameterError) as error:
        relax(y, n_nonzero=1, method="hull")
    assert error.value.message.startswith("`method` must be one of ")
    find = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "cvxpy":
            raise ImportError(name)
        return find(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(IncompatibleError) as error:
        relax(y, n_nonzero=1)
    assert str(error.value) == (
        "Convexifications need the packages cvxpy and clarabel, which are not installed."
        "\nhint: Install them with `pip install 'ellzero[convex]'`."
    )


def test_an_l1_estimate_that_does_not_end_says_so(monkeypatch):
    monkeypatch.setattr("ellzero.signal.lasso.ROUNDS", 0)
    network = Network(np.ones(2), np.ones(2), np.array([0]), np.array([1]), np.ones(1))
    with pytest.raises(NotConvergedError) as error:
        solve_l1(network, 0.1)
    assert str(error.value) == (
        "The l1 estimate did not settle within 0 systems."
        "\nhint: Use weights and smoothness that are closer together."
    )


@cache
def l1_by_cvxpy(seed, penalty):
    network = random_network(np.random.default_rng(seed), "general", most=20)
    x = cp.Variable(network.size)
    steps = x[network.first] - x[network.second]
    cost = network.weights @ cp.square(x - network.y) + network.edges @ cp.square(steps)
    cons = [x >= 0] if network.nonnegative else []
    return network, cp.Problem(cp.Minimize(cost + penalty * cp.norm1(x)), cons).solve(
        solver="CLARABEL"
    )


@pytest.mark.parametrize("penalty", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(8))
def test_the_l1_estimate_equals_a_conic_program(seed, penalty):
    network, expected = l1_by_cvxpy(seed, penalty)
    x = solve_l1(network, penalty)
    energy = float(network.weights @ network.y**2)
    assert network.value(x) + penalty * np.abs(x).sum() == pytest.approx(
        expected, rel=1e-6, abs=1e-7 * energy
    )
    if network.nonnegative:
        assert (x >= 0).all()


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_l1_estimate_has_no_slope_on_stiff_chains(nonnegative):
    y, here = bumps(500), np.arange(499)
    for smoothness in (0.1, 10.0, 1000.0):
        network = Network(y, np.ones(500), here, here + 1, np.full(499, smoothness), nonnegative)
        for penalty in (0.1, 1.0):
            x = solve_l1(network, penalty)
            pull = np.diff(x) * smoothness
            slope = x - y
            slope[1:] += pull
            slope[:-1] -= pull
            on = x != 0
            assert np.abs(slope[on] + penalty / 2 * np.sign(x[on])).max() < 1e-9
            wrong = -slope[~on] if nonnegative else np.abs(slope[~on])
            assert wrong.max(initial=0.0) <= penalty / 2 + 1e-9
            again = solve_l1(network, penalty, start=x)
            assert again == pytest.approx(x, abs=1e-10)
