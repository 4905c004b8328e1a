"""Proofs with groups, several targets and bounds, against enumeration of every support."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from ellzero.certificates import SquaresProblem, check_tree
from ellzero.core.result import Status
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.kernels import branch_units
from ellzero.subset.exact import prove
from ellzero.subset.gram import gram_of

KINDS = ("groups", "targets", "groups and targets", "nonnegative", "box")


def least_on(X, Y, weight, ridge, support, low, high):
    """Return the least objective on a support, by factorizations of the data."""
    total = weight.sum()
    root = np.sqrt(weight)[:, None]
    A = np.vstack([root * X[:, support], np.diag(np.sqrt(total * ridge[support]))])
    B = np.vstack([root * Y, np.zeros((len(support), Y.shape[1]))])
    if not support:
        return float((B**2).sum()) / (2 * total)
    size = np.linalg.norm(A, axis=0)
    size[size == 0] = 1.0
    if low is None:
        b = np.linalg.lstsq(A / size, B, rcond=1e-10)[0]
        return float(((B - A / size @ b) ** 2).sum()) / (2 * total)
    span = (low[support] * size, high[support] * size)
    out = lsq_linear(A / size, B[:, 0], span, method="bvls", tol=1e-14)
    return float(out.cost) / total


def least_of_all(case):
    """Return the smallest objective by trying every support."""
    units, k = case["units"], case["budget"]
    must = set(units[list(case["always"])].tolist())
    barred = set(units[list(case["forbidden"])].tolist())
    free = [u for u in np.unique(units).tolist() if u not in must and u not in barred]
    best = math.inf
    for chosen in itertools.combinations(free, min(k - len(must), len(free))):
        support = np.flatnonzero(np.isin(units, [*must, *chosen])).tolist()
        best = min(
            best,
            least_on(
                case["X"], case["Y"], case["weight"], case["ridge"], support, case["low"],
                case["high"],
            ),
        )  # fmt: skip
    return best


def small_case(seed, kind):
    """Return data and settings of a random small problem, some of them nasty."""
    rng = np.random.default_rng(seed)
    p, n = int(rng.integers(2, 9)), int(rng.integers(4, 24))
    X = rng.standard_normal((n, p)) @ (
        np.eye(p) + rng.choice([0, 1]) * rng.standard_normal((p, p))
    )
    if rng.random() < 0.15:
        X[:, rng.integers(p)] = 1.5
    if rng.random() < 0.15:
        X[:, rng.integers(p)] = X[:, rng.integers(p)]
    X = X * np.exp(rng.normal(0, 1, p))
    m = int(rng.integers(2, 4)) if "targets" in kind else 1
    Y = X @ rng.integers(-1, 2, (p, m)) + rng.choice([0.1, 3]) * rng.standard_normal((n, m))
    weight = rng.uniform(0.2, 2.0, n) if rng.random() < 0.4 else np.ones(n)
    units = rng.integers(0, max(2, p // 2 + 1), p) if "groups" in kind else np.arange(p)
    names = rng.permutation(np.unique(units))
    k = int(rng.integers(0, names.size + 1))
    always, forbidden = [], []
    if rng.random() < 0.4 and names.size > 2 and k > 0:
        always = np.flatnonzero(units == names[0])[:1].tolist()
        forbidden = np.flatnonzero(units == names[1])[:1].tolist()
    low = high = None
    if kind == "nonnegative":
        low, high = np.zeros(p), np.full(p, np.inf)
    elif kind == "box":
        low, high = -rng.exponential(0.5, p), rng.exponential(0.5, p)
        low[rng.random(p) < 0.3], high[rng.random(p) < 0.3] = -np.inf, np.inf
    ridge = np.full(p, rng.choice([0.0, 0.0, 1e-3, 0.2]))
    if rng.random() < 0.3:
        ridge = ridge * rng.uniform(0.5, 2.0, p)
    X, Y = X - weight @ X / weight.sum(), Y - weight @ Y / weight.sum()
    X[:, np.abs(X).max(0) < 1e-12] = 0.0
    return {
        "X": X, "Y": Y, "weight": weight, "units": units, "budget": k, "always": always,
        "forbidden": forbidden, "low": low, "high": high, "ridge": ridge,
        "grouped": "groups" in kind,
    }  # fmt: skip


def run(case, **limits):
    gram = gram_of(case["X"], case["Y"], sample_weight=case["weight"], fit_intercept=False)
    return prove(
        gram, case["budget"], ridge=case["ridge"], always=case["always"],
        forbidden=case["forbidden"], groups=case["units"] if case["grouped"] else None,
        lower=case["low"], upper=case["high"], **limits,
    )  # fmt: skip


def squares(case):
    """Return the problem of a checker, from the data alone."""
    X, Y, w = case["X"], case["Y"], case["weight"]
    total = w.sum()
    units = case["units"]
    firsts = [int(np.flatnonzero(units == units[j])[0]) for j in case["always"]]
    matrix = X.T @ (w[:, None] * X)
    useless = np.flatnonzero(matrix.diagonal() <= 1e-13)
    matrix = matrix + np.diag(total * case["ridge"])
    linear = X.T @ (w[:, None] * Y)
    plain = Y.shape[1] == 1
    return SquaresProblem(
        matrix, linear[:, 0] if plain else linear, float((w[:, None] * Y**2).sum()),
        case["budget"], always=tuple(firsts), forbidden=tuple(case["forbidden"]),
        useless=tuple(useless.tolist()), least=0.0, units=units if case["grouped"] else None,
        lower=case["low"], upper=case["high"],
    )  # fmt: skip


def check(seed, kind, limit):
    case = small_case(seed, kind)
    result = run(case, max_nodes=limit)
    best = least_of_all(case)
    energy = float((case["weight"][:, None] * case["Y"] ** 2).sum()) / (2 * case["weight"].sum())
    slack = 1e-10 * energy
    value, bound = result.subset.value, result.lower_bound
    assert bound <= best + slack, (seed, kind)
    assert best <= value + slack, (seed, kind)
    support = result.subset.support.tolist()
    assert len(set(case["units"][support].tolist())) <= case["budget"]
    assert not set(case["units"][support].tolist()) & set(
        case["units"][case["forbidden"]].tolist()
    )
    if case["low"] is not None:
        coef = result.subset.coef[:, 0]
        assert (coef >= case["low"][support]).all()
        assert (coef <= case["high"][support]).all()
    value_again = least_on(
        case["X"], case["Y"], case["weight"], case["ridge"], support, case["low"], case["high"]
    )
    assert value_again == pytest.approx(value, rel=1e-7, abs=slack), (seed, kind)
    checked = check_tree(squares(case), result.proof)
    assert checked.reason is None, (seed, kind)
    proven = checked.lower_bound / (2 * case["weight"].sum())
    assert proven <= best + slack, (seed, kind)
    if result.status is Status.CONVERGED:
        assert value == pytest.approx(best, rel=1e-6, abs=slack), (seed, kind)
        assert bound == pytest.approx(value, rel=1.01e-6, abs=slack), (seed, kind)
        assert proven == pytest.approx(value, rel=1.1e-6, abs=slack), (seed, kind)
    return result.status


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_proofs_are_right(kind):
    limits = (0, 4, 500, 500)
    statuses = [check(seed, kind, limits[seed % 4]) for seed in range(160)]
    # Dependent columns without ridge, under a bound on one side only, stay open.
    stalled = statuses.count(Status.STALLED)
    assert stalled == 0 if kind != "box" else stalled < 5
    assert statuses.count(Status.CONVERGED) > 120


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_on_two_thousand_problems(kind):
    for seed in range(1000, 3000):
        check(seed, kind, (0, 4, 500, 500)[seed % 4])


def planted(seed=0, n=120, p=40, k=4, m=1, noise=2.0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    X[:, 1:] = 0.5 * X[:, :-1] + X[:, 1:]
    Y = X[:, np.linspace(0, p - 1, k).astype(int)].sum(1)[:, None] + np.zeros((1, m))
    return X, Y + noise * rng.standard_normal((n, m))


def test_one_target_without_shape_is_the_same_either_way():
    # A feature bounded far away, a group of one, a target that is zero: nothing changes.
    X, Y = planted()
    gram = gram_of(X, Y)
    plain = prove(gram, 4, ridge=0.01)
    others = [
        prove(gram, 4, ridge=0.01, lower=-1e6),
        prove(gram, 4, ridge=0.01, groups=np.arange(40)[::-1]),
        prove(gram_of(X, np.column_stack([Y, np.zeros(120)])), 4, ridge=0.01),
    ]
    for other in others:
        assert other.status is Status.CONVERGED
        assert other.subset.support.tolist() == plain.subset.support.tolist()
        assert other.subset.value == pytest.approx(plain.subset.value, rel=1e-9)
        assert other.n_nodes < 40


def test_work_stays_small():
    X, Y = planted(m=3)
    assert prove(gram_of(X, Y), 4, ridge=0.01).n_nodes < 20
    X, Y = planted()
    grouped = prove(gram_of(X, Y), 3, ridge=0.01, groups=np.arange(40) // 4)
    assert grouped.status is Status.CONVERGED
    assert grouped.n_nodes < 60
    held = prove(gram_of(X, Y), 4, ridge=0.01, lower=0.0)
    assert held.status is Status.CONVERGED
    assert held.n_nodes < 40


def test_stopped_runs_state_a_true_and_rising_bound():
    X, Y = planted(n=60, k=6, noise=6.0)
    gram, groups = gram_of(X, Y), np.arange(40) // 2
    best = prove(gram, 5, ridge=0.001, groups=groups)
    assert best.status is Status.CONVERGED
    bounds = []
    for limit in (0, 8, 20):
        result = prove(gram, 5, ridge=0.001, groups=groups, max_nodes=limit)
        assert result.status is Status.MAX_ITER
        assert result.lower_bound <= best.subset.value
        bounds.append(result.lower_bound)
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1]
    stopped = prove(gram, 5, ridge=0.001, groups=groups, time_limit=0.0)
    assert stopped.status is Status.TIME_LIMIT
    assert stopped.lower_bound <= best.subset.value
    seen = []
    run_ = prove(gram, 5, ridge=0.001, groups=groups, callback=seen.append)
    assert run_.subset.value == best.subset.value
    assert [p.n_nodes for p in seen] == sorted(p.n_nodes for p in seen)


def test_a_vacuous_bound_is_zero_and_no_proof():
    # More columns than samples, no ridge, room for three: nothing has curvature to give.
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((8, 30)), rng.standard_normal(8)
    result = prove(gram_of(X, y), 4, lower=0.0, max_nodes=50)
    assert result.status is Status.MAX_ITER
    assert result.lower_bound == 0.0
    assert result.gap == 1.0


def test_altered_evidence_proves_less_or_nothing():
    case = next(
        c for c in (small_case(s, "groups") for s in range(50))
        if 1 < c["budget"] < np.unique(c["units"]).size and c["ridge"][0] > 0 and not c["always"]
    )  # fmt: skip
    proof = run(case).proof
    whole = check_tree(squares(case), proof).lower_bound
    half = check_tree(squares(case), dataclasses.replace(proof, values=0.5 * proof.values))
    assert half.lower_bound <= whole * (1 + 1e-12)
    broken = dataclasses.replace(proof, weights=2.0 * proof.weights)
    assert check_tree(squares(case), broken).lower_bound <= whole * (1 + 1e-12)
    for wrong in (
        dataclasses.replace(proof, features=proof.features[:-1]),
        dataclasses.replace(proof, weight_ends=proof.weight_ends + 1),
        dataclasses.replace(proof, places=proof.places + 10_000),
    ):
        refused = check_tree(squares(case), wrong)
        assert refused.lower_bound == -math.inf
        assert refused.reason is not None


def test_the_search_for_two_is_exact():
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((30, 12)), rng.standard_normal((30, 2))
    H, C = X.T @ X, X.T @ Y
    size = np.sqrt(H.diagonal())
    h, c = H / size / size[:, None], C / size[:, None]
    offsets = np.array([0, 2, 3, 6, 8, 12])
    state = np.array([1, 0, 0, -1, 0], np.int8)
    found = np.empty(2, np.int64)
    energy = float((Y**2).sum())
    value = branch_units.least_of_units(h, c, offsets, energy, state, 2, found)
    values = {}
    for pair in itertools.combinations((1, 2, 4), 2):
        S = np.concatenate([np.arange(offsets[u], offsets[u + 1]) for u in (0, *pair)])
        b = np.linalg.lstsq(X[:, S], Y, rcond=None)[0]
        values[pair] = float(((Y - X[:, S] @ b) ** 2).sum())
    assert value == pytest.approx(min(values.values()), rel=1e-10)
    assert tuple(sorted(found.tolist())) == min(values, key=values.get)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"budget": 3, "groups": [0, 0, 1, 1, 1]}, InvalidParameterError,
         "`budget` must be an integer between 0 and 2, the number of groups, got 3."),
        ({"groups": [0, 0, 1, 1, 1], "always": [0], "forbidden": [1]}, InvalidParameterError,
         "`always` and `forbidden` must not share groups, got [0] in both."),
        ({"budget": 1, "groups": [0, 0, 1, 1, 2], "always": [0, 4]}, InvalidParameterError,
         "`always` must name at most `budget=1` groups, got 2.\nhint: Raise `budget`."),
        ({"groups": [0, 0, 1, 1, 2], "lower": 0.0}, IncompatibleError,
         "Bounds on coefficients cannot be combined with `groups`.\nhint: Drop one of them."),
        ({"lower": 1.0}, InvalidParameterError,
         "`lower` must be at most 0, got 1.\nhint: A coefficient off the support is 0, which must "
         "lie within the bounds."),
    ],
)  # fmt: skip
def test_messages(settings, kind, message):
    gram = gram_of(np.eye(7)[:, :5], np.arange(7.0))
    with pytest.raises(kind) as caught:
        prove(gram, **({"budget": 2} | settings))
    assert str(caught.value) == message
