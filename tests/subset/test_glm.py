"""Best subsets of generalized linear models against enumeration, scikit-learn and themselves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from ellzero import objectives
from ellzero.core.result import Status
from ellzero.errors import InvalidParameterError, SeparableError
from ellzero.subset.glm import search_glm
from tests.subset.glm_reference import LOSSES, optimum, problem, value_at

every_loss = pytest.mark.parametrize("loss", LOSSES)
N_PROBLEMS = 20
# Relative distance to an optimum that L-BFGS found.
CLOSE = 1e-7


def variant(seed, loss, n=40, p=6):
    """Return options of the search, the same for the enumeration, and groups."""
    rng = np.random.default_rng(seed)
    kind = seed % 7
    if kind == 1:
        return {"fit_intercept": False}, {"intercept": False}, None
    if kind == 2:
        w = rng.integers(0, 4, n).astype(float)
        return {"sample_weight": w}, {"w": w}, None
    if kind == 3:
        return {"ridge": 0.05}, {"ridge": 0.05}, None
    if kind == 4:
        # Labels interleave.
        labels = np.arange(p) % 3
        return {"groups": labels}, {}, [np.flatnonzero(labels == u) for u in range(3)]
    if kind == 5 and loss != "softmax":
        return {"lower": 0.0}, {"lower": 0.0}, None
    if kind == 6 and loss != "softmax":
        return {"lower": -0.3, "upper": 0.4}, {"lower": -0.3, "upper": 0.4}, None
    return {}, {}, None


@every_loss
@pytest.mark.parametrize("seed", range(N_PROBLEMS))
def test_small_problems_are_solved_to_the_enumerated_optimum(loss, seed):
    X, y = problem(loss, seed)
    options, same, units = variant(seed, loss)
    budget = 2 + (seed % 2 if units is None else 0)
    path = search_glm(X, y, loss, [1, budget], **options)
    for k in (1, budget):
        subset = path[k]
        best = optimum(loss, X, y, k, units, **same)
        assert subset.value <= best * (1 + CLOSE)
        assert subset.value >= best * (1 - CLOSE)
        here = value_at(loss, X, y, subset, same.get("w"), same.get("ridge", 0.0))
        assert here == pytest.approx(subset.value, rel=1e-10)
        if units is None:
            assert subset.n_nonzero <= k
        else:
            chosen = {int(options["groups"][j]) for j in subset.support}
            assert len(chosen) <= k
            assert set(subset.support) == {j for u in chosen for j in units[u]}
        if "lower" in same:
            assert (subset.coef >= same["lower"]).all()
            assert (subset.coef <= same.get("upper", np.inf)).all()
        if not options.get("fit_intercept", True):
            assert (subset.intercept == 0).all()


@every_loss
def test_value_is_that_of_the_objective(loss):
    X, y = problem(loss, 3)
    w = np.random.default_rng(1).uniform(0.1, 2, len(y))
    subset = search_glm(X, y, loss, [3], sample_weight=w, ridge=0.1)[3]
    kind = {
        "logistic": objectives.Logistic,
        "softmax": objectives.Softmax,
        "poisson": objectives.Poisson,
        "huber": objectives.Huber,
    }[loss]
    objective = kind(
        torch.tensor(X),
        torch.tensor(y),
        ridge={"coef": 0.1},
        fit_intercept=True,
        sample_weight=torch.tensor(w),
    )
    zero = objective.init_params()
    params = {
        "coef": torch.tensor(subset.dense(6)).reshape(zero["coef"].shape),
        "intercept": torch.tensor(subset.intercept).reshape(zero["intercept"].shape),
    }
    value, grad = objective.value_and_grad(params)
    assert float(value) == pytest.approx(subset.value, rel=1e-12)
    assert grad["coef"].reshape(-1, 6)[:, subset.support].abs().max() < 1e-9
    assert grad["intercept"].abs().max() < 1e-9
    if loss == "softmax":
        # Of all minimizers the one whose classes add up to zero.
        np.testing.assert_allclose(subset.coef.sum(1), 0, atol=1e-12)


def test_coefficients_are_those_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression, PoissonRegressor

    X, y = problem("logistic", 2, n=200)
    subset = search_glm(X, y, "logistic", [3], ridge=0.02)[3]
    model = LogisticRegression(C=1 / (200 * 0.02), tol=1e-12, max_iter=10_000)
    model.fit(X[:, subset.support], y)
    np.testing.assert_allclose(subset.coef[:, 0], model.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(subset.intercept, model.intercept_, rtol=1e-5)
    X, y = problem("softmax", 2, n=200)
    subset = search_glm(X, y, "softmax", [3], ridge=0.02)[3]
    model.fit(X[:, subset.support], y)
    np.testing.assert_allclose(subset.coef, model.coef_.T, atol=1e-5)
    X, y = problem("poisson", 2, n=200)
    subset = search_glm(X, y, "poisson", [3], ridge=0.02)[3]
    counts = PoissonRegressor(alpha=0.02, tol=1e-12, max_iter=10_000, solver="newton-cholesky")
    counts.fit(X[:, subset.support], y)
    np.testing.assert_allclose(subset.coef[:, 0], counts.coef_, rtol=1e-6)
    np.testing.assert_allclose(subset.intercept[0], counts.intercept_, rtol=1e-6)


def breast_cancer():
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y.astype(float)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_breast_cancer_reaches_the_known_optima(seed):
    X, y = breast_cancer()
    order = np.arange(30) if seed is None else np.random.default_rng(seed).permutation(30)
    for budget, total, support in (
        (4, 41.1456, [10, 21, 23, 27]),
        (5, 36.0584, [10, 21, 23, 24, 27]),
    ):
        path = search_glm(X[:, order], y, "logistic", [budget])
        assert path[budget].value * 569 == pytest.approx(total, abs=1e-3)
        assert sorted(order[path[budget].support]) == support
        # Newton fits: a search by brute force would take 142506.
        assert path.measures["refits"] < 400


def planted(n=500, p=2000, k=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, p))
    for j in range(1, p):
        X[:, j] = 0.5 * X[:, j - 1] + np.sqrt(0.75) * X[:, j]
    support = np.sort(rng.choice(p, k, replace=False))
    coef = rng.choice([-1.0, 1.0], k)
    y = (rng.random(n) < 1 / (1 + np.exp(-X[:, support] @ coef))).astype(float)
    return X, y, support


def test_wide_data_take_few_passes():
    X, y, support = planted()
    path = search_glm(X, y, "logistic", [10])
    # Chance of this: one in 2000 over 10, 3e26.
    assert path[10].support.tolist() == support.tolist()
    assert path.measures["scans"] < 100
    assert path.measures["kicks"] < 20


def supports(path):
    return [s.support.tolist() for s in path.subsets]


def values(path):
    return [s.value for s in path.subsets]


@every_loss
def test_units_order_and_storage_of_columns_do_not_matter(loss):
    X, y = problem(loss, 11, n=100, p=12)
    base = search_glm(X, y, loss, [1, 2, 4])
    again = search_glm(X, y, loss, [1, 2, 4])
    for a, b in zip(base.subsets, again.subsets, strict=True):
        assert (a.coef == b.coef).all()
        assert a.value == b.value
    rng = np.random.default_rng(0)
    for scale in (1e-12, 1e12, 10.0 ** rng.integers(-12, 12, 12)):
        path = search_glm(X * scale, y, loss, [1, 2, 4])
        assert supports(path) == supports(base)
        np.testing.assert_allclose(values(path), values(base), rtol=1e-10)
        factor = np.broadcast_to(scale, 12)[base[4].support, None]
        np.testing.assert_allclose(path[4].coef * factor, base[4].coef, rtol=1e-6)
    order = rng.permutation(12)
    path = search_glm(X[:, order], y, loss, [1, 2, 4])
    assert [sorted(order[s]) for s in supports(path)] == supports(base)
    forms = (
        np.asfortranarray(X),
        X[::1, :].tolist(),
        sp.csc_matrix(X),
        sp.csr_array(X),
        torch.tensor(X),
    )
    for form in forms:
        path = search_glm(form, y, loss, [1, 2, 4])
        assert supports(path) == supports(base)
        np.testing.assert_allclose(values(path), values(base), rtol=1e-12)
    single = search_glm(X.astype(np.float32), y, loss, [1, 2, 4])
    assert supports(single) == supports(base)
    np.testing.assert_allclose(values(single), values(base), rtol=1e-6)


@every_loss
def test_sparse_tables_with_many_zeros(loss):
    rng = np.random.default_rng(3)
    X, y = problem(loss, 5, n=120, p=200)
    X *= rng.random(X.shape) < 0.3
    dense = search_glm(X, y, loss, [1, 3], ridge=1e-3)
    sparse = search_glm(sp.csc_array(X), y, loss, [1, 3], ridge=1e-3)
    assert supports(sparse) == supports(dense)
    np.testing.assert_allclose(values(sparse), values(dense), rtol=1e-12)


@every_loss
def test_weights_are_repetitions(loss):
    X, y = problem(loss, 4, n=60, p=8)
    w = np.random.default_rng(2).integers(0, 4, 60)
    weighted = search_glm(X, y, loss, [1, 2, 3], sample_weight=w, ridge=0.01)
    repeated = search_glm(np.repeat(X, w, 0), np.repeat(y, w), loss, [1, 2, 3], ridge=0.01)
    assert supports(weighted) == supports(repeated)
    for a, b in zip(weighted.subsets, repeated.subsets, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-12)
        np.testing.assert_allclose(a.coef, b.coef, rtol=1e-7, atol=1e-9)


@every_loss
def test_the_same_alone_and_in_a_path(loss):
    X, y = problem(loss, 8, n=100, p=20)
    path = search_glm(X, y, loss, range(7), ridge=1e-3)
    assert path.budgets.tolist() == list(range(7))
    assert all(a >= b for a, b in zip(values(path), values(path)[1:], strict=False))
    for k in range(7):
        alone = search_glm(X, y, loss, [k], ridge=1e-3)
        assert alone[k].value == pytest.approx(path[k].value, rel=1e-9)


def test_rules_are_kept():
    X, y = problem("logistic", 6, n=100, p=10)
    free = search_glm(X, y, "logistic", [3])[3].support
    worst = [j for j in range(10) if j not in free][:2]
    path = search_glm(X, y, "logistic", [3], always=worst, forbidden=free[:2])
    assert set(worst) <= set(path[3].support)
    assert not set(free[:2]) & set(path[3].support)
    rest = [j for j in range(10) if j not in {*free[:2], *worst}]
    best = min(optimum("logistic", X[:, [*worst, j]], y, 3, [[0], [1], [2]]) for j in rest)
    assert path[3].value == pytest.approx(best, rel=CLOSE)
    each = np.where(np.arange(10) == free[0], 100.0, 0.0)
    assert free[0] not in search_glm(X, y, "logistic", [3], ridge=each)[3].support


@every_loss
def test_copies_and_constants_are_no_features(loss):
    X, y = problem(loss, 7, n=60, p=4)
    wide = np.c_[X, X[:, :2], np.ones(60), np.zeros(60), X[:, 0] + X[:, 1]]
    path = search_glm(wide, y, loss, [4, 9], ridge=0.0)
    base = search_glm(X, y, loss, [4])
    assert path[4].value == pytest.approx(base[4].value, rel=1e-9)
    # Four dimensions are all there is.
    assert path[9].n_nonzero == 4
    assert (path[9].coef != 0).any(axis=1).all()


def test_one_hot_columns_of_a_group():
    rng = np.random.default_rng(9)
    level = rng.integers(0, 4, 150)
    other = rng.integers(0, 3, 150)
    X = np.c_[np.eye(4)[level], np.eye(3)[other], rng.normal(size=(150, 3))]
    y = rng.poisson(np.exp(np.array([0.0, 1.0, -1.0, 0.5])[level])).astype(float)
    labels = [0] * 4 + [1] * 3 + [2, 3, 4]
    subset = search_glm(X, y, "poisson", [1], groups=labels)[1]
    assert set(subset.support) <= {0, 1, 2, 3}
    # Closed form: the mean of every level.
    means = np.array([y[level == a].mean() for a in range(4)])
    rate = np.exp(X[:, subset.support] @ subset.coef[:, 0] + subset.intercept[0])
    np.testing.assert_allclose(rate, means[level], rtol=1e-7)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("size", [1e3, 1e9])
def test_counts_far_from_one(size, intercept):
    X, _ = problem("poisson", 1, n=100, p=10)
    X = X / X.std(0)
    y = np.round(size * np.exp(1.5 * X[:, 2]))
    X = np.c_[X, np.full(100, 1.0)] if not intercept else X
    k = 1 if intercept else 2
    subset = search_glm(X, y, "poisson", [k], fit_intercept=intercept)[k]
    assert 2 in subset.support
    at = subset.support.tolist().index(2)
    # Rounding of the counts.
    assert subset.coef[at, 0] == pytest.approx(1.5, abs=10 / size)


def test_far_columns_and_saturated_scores():
    rng = np.random.default_rng(0)
    X = np.c_[rng.normal(size=200), rng.normal(size=200)]
    X[:5] *= 1e6
    y = (rng.random(200) < 0.5).astype(float)
    subset = search_glm(X, y, "logistic", [2])[2]
    assert np.isfinite(subset.value)
    assert subset.value <= np.log(2)
    flipped = (X[:, 0] > 0).astype(float)
    flipped[:3] = 1 - flipped[:3]
    subset = search_glm(X, flipped, "logistic", [2], ridge=1e-12)[2]
    scores = X[:, subset.support] @ subset.coef[:, 0] + subset.intercept[0]
    assert np.isfinite(scores).all()


def separable():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 20))
    y = (X[:, 3] + X[:, 8] > 0.1).astype(float)
    return X, y


def test_separated_classes_are_named_with_the_remedy():
    X, y = separable()
    # One feature does not separate them: that budget works.
    assert search_glm(X, y, "logistic", [1])[1].n_nonzero == 1
    with pytest.raises(SeparableError) as error:
        search_glm(X, y, "logistic", [1, 2])
    assert error.value.features == [3, 8]
    assert str(error.value) == (
        "The classes are separated by features [3, 8], so that the logistic loss has no "
        "minimizer there.\n"
        "hint: Pass a positive `ridge`, such as `ridge=1e-3`, or budgets below 2."
    )
    with pytest.raises(SeparableError, match="separated by features"):
        search_glm(X, y, "softmax", [2])
    subset = search_glm(X, y, "logistic", [2], ridge=1e-3)[2]
    assert subset.support.tolist() == [3, 8]
    assert np.isfinite(subset.coef).all()
    one = (X[:, 3] > 0).astype(float)
    with pytest.raises(SeparableError) as error:
        search_glm(X, one, "logistic", [1])
    assert str(error.value) == (
        "The classes are separated by feature 3, so that the logistic loss has no minimizer "
        "there.\nhint: Pass a positive `ridge`, such as `ridge=1e-3`."
    )


def test_separation_that_is_not_worth_it_is_left_alone():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(80, 6))
    y = (X[:, 0] + rng.logistic(size=80) > 0).astype(float)
    # Not zero for one sample only: its coefficient would grow for ever, to little effect.
    X[:, 5] = 0.0
    X[7, 5] = 1.0
    assert search_glm(X, y, "logistic", [1])[1].support.tolist() == [0]
    counts = rng.poisson(np.exp(X[:, 0] + 1)).astype(float)
    counts[7] = 0.0
    with pytest.raises(SeparableError) as error:
        search_glm(X, counts, "poisson", [1, 2, 3, 4, 5, 6])
    assert 5 in error.value.features
    assert error.value.message.startswith("Zero counts are separated by features [")


def test_bounds_can_forbid_what_would_separate():
    X, y = separable()
    subset = search_glm(X, y, "logistic", [2], lower=-2.0, upper=2.0)[2]
    assert subset.support.tolist() == [3, 8]
    np.testing.assert_allclose(subset.coef, 2.0)


@every_loss
def test_limits_of_work(loss):
    X, y = problem(loss, 9, n=60, p=30)
    seen = []

    def stop(budget, info):
        seen.append((budget, info["value"], info["support"].tolist()))
        return len(seen) == 2

    path = search_glm(X, y, loss, [2, 3], callback=stop, ridge=0.01)
    assert path.status is Status.INTERRUPTED
    assert len(seen) == 2
    assert len(path) == 2
    late = search_glm(X, y, loss, [2, 3], time_limit=0.0, ridge=0.01)
    assert late.status is Status.TIME_LIMIT
    assert [s.n_nonzero for s in late.subsets] == [0, 0]
    fast = search_glm(X, y, loss, [3], effort=SimpleNamespace(kicks=0, population=1), ridge=0.01)
    assert fast.measures["kicks"] == 0
    assert fast.status is Status.CONVERGED
    assert fast[3].value >= search_glm(X, y, loss, [3], ridge=0.01)[3].value * (1 - 1e-9)


def test_a_budget_of_nothing_is_the_constant_model():
    X, y = problem("poisson", 1)
    none = search_glm(X, y, "poisson", [0])[0]
    assert none.n_nonzero == 0
    assert none.intercept[0] == pytest.approx(np.log(y.mean()), rel=1e-12)
    X, y = problem("softmax", 1)
    none = search_glm(X, y, "softmax", [0])[0]
    share = np.bincount(y.astype(int)) / 40
    assert none.value == pytest.approx(-(share * np.log(share)).sum(), rel=1e-12)


X2 = np.arange(6.0).reshape(3, 2) ** 2
Y2 = np.array([0.0, 1.0, 1.0])


def call(X=X2, y=Y2, loss="logistic", budgets=(1,), **options):
    return lambda: search_glm(X, y, loss, budgets, **options)


BAD = [
    (
        call(loss="logit"),
        "`loss` must be one of 'logistic', 'softmax', 'poisson', 'huber', got 'logit'. "
        "Did you mean 'logistic'?",
    ),
    (
        call(X=np.ones(3)),
        "`X` must have 2 axes, got shape (3,).\n"
        "hint: Pass `X.reshape(-1, 1)` for a single column.",
    ),
    (call(X=np.ones((0, 2))), "`X` must have at least one row and one column, got shape (0, 2)."),
    (call(X=np.array([["a", "b"]])), "`X` must hold numbers, got dtype <U1."),
    (
        call(X=np.array([[1.0, np.nan], [np.inf, np.nan], [1.0, 2.0]])),
        "`X` must be finite, got NaN or infinity in column 0 (1), column 1 (2).\n"
        "hint: Drop or fill these values first.",
    ),
    (
        call(X=sp.csc_array(np.array([[1.0, np.nan], [0.0, 1.0], [1.0, 2.0]]))),
        "`X` must be finite, got NaN or infinity in column 1 (1).\n"
        "hint: Drop or fill these values first.",
    ),
    (call(y=np.ones(2)), "`y` must have one number for each of 3 samples, got shape (2,)."),
    (call(y=["a", "b", "c"]), "`y` must hold numbers, got ['a', 'b', 'c']."),
    (
        call(y=[0.0, np.nan, 1.0]),
        "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
    ),
    (
        call(y=np.ones(3)),
        "`y` must have at least two classes, got only 1.\n"
        "hint: Check the labels; a constant target needs no model.",
    ),
    (
        call(y=np.arange(3)),
        '`y` must have two classes, got 3.\nhint: Use `loss="softmax"`.',
    ),
    (call(y=[1, 2, 2]), "`y` must be coded as 0 and 1, got 1 and 2."),
    (
        call(y=[0, 2, 3], loss="softmax"),
        "`y` must hold the codes 0 to 2 of 3 classes, got 0, 2, 3.",
    ),
    (call(y=[1, -2, 2], loss="poisson"), "`y` must hold counts, got -2."),
    (
        call(y=np.zeros(3), loss="poisson"),
        "`y` must hold a positive count, got zeros only.\n"
        "hint: Check the counts; a constant target needs no model.",
    ),
    (call(sample_weight=[1, -1, 1]), "`sample_weight` must not be negative, got -1."),
    (call(sample_weight=np.zeros(3)), "`sample_weight` must have a positive sum, got zeros only."),
    (call(ridge=-1.0), "`ridge` must be a number of at least 0, got -1."),
    (
        call(ridge=np.ones(3)),
        "`ridge` must be one number or one for each of 2 features, got shape (3,).",
    ),
    (
        call(lower=[0.0, 1.0]),
        "`lower` and `upper` must have 0 between them, got 1 and inf for feature 1.",
    ),
    (
        call(loss="softmax", lower=0.0),
        "`lower` and `upper` must be None for a softmax, where a feature has a coefficient for "
        "each class.",
    ),
    (
        call(groups=[0.5, 1.0]),
        "`groups` must hold one integer label for each of 2 features, got shape (2,) and dtype "
        "float64.",
    ),
    (
        call(always=[2]),
        "`always[0]` must be an integer between 0 and 1, the last feature, got 2.",
    ),
    (
        call(always=[1], forbidden=[0, 1]),
        "`always` and `forbidden` must not share features, got 1 in both.",
    ),
    (
        call(always=[1], forbidden=[0], groups=[4, 4]),
        "`forbidden` must not hold features of a group that is in `always`, got 0.",
    ),
    (
        call(always=[0, 1]),
        "`budgets[0]` must be an integer of at least 2, got 1.\n"
        "hint: `always` takes 2 of every budget.",
    ),
    (call(budgets=[1.5]), "`budgets[0]` must be an integer of at least 0, got 1.5."),
    (call(budgets=[]), "`budgets` must hold at least one budget, got none."),
    (call(delta=0.0), "`delta` must be positive, got 0."),
    (call(time_limit=-1.0), "`time_limit` must be a number of at least 0, got -1."),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_input_is_named(bad, message):
    with pytest.raises(InvalidParameterError) as error:
        bad()
    assert str(error.value) == message
