"""Searches against enumeration, and what must not change their answers."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch

from ellzero.core.result import Status
from ellzero.errors import InvalidParameterError
from ellzero.subset import tables
from ellzero.subset.effort import Effort
from ellzero.subset.gram import gram_of
from ellzero.subset.search import search


def table(seed, n=25, p=8, q=1, noise=1.0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + generator.standard_normal((n, 1))
    coef = generator.standard_normal((p, q)) * (generator.random((p, 1)) < 0.5)
    return X, X @ coef + noise * generator.standard_normal((n, q))


def value_of(X, Y, support, ridge=0.0, weight=None, fit_intercept=True):
    """Return the least objective on a support, from the normal equations by eigenvalues."""
    weight = np.ones(len(X)) if weight is None else weight
    total = weight.sum()
    X = X[:, list(support)]
    if fit_intercept:
        X, Y = X - weight @ X / total, Y - weight @ Y / total
    lift = np.diag(np.broadcast_to(total * np.asarray(ridge), (X.shape[1],)))
    coef = np.linalg.pinv((X.T * weight) @ X + lift, hermitian=True, rcond=1e-11)
    coef = coef @ (X.T * weight) @ Y
    shrunk = np.sum(np.diagonal(lift)[:, None] * coef**2)
    return float(np.sum(weight @ (Y - X @ coef) ** 2) + shrunk) / (2 * total)


def least(X, Y, budget, **settings):
    p = X.shape[1]
    ridge = np.broadcast_to(np.asarray(settings.pop("ridge", 0.0)), (p,))
    return min(
        value_of(X, Y, S, ridge=ridge[list(S)], **settings)
        for k in range(budget + 1)
        for S in itertools.combinations(range(p), k)
    )


@pytest.mark.parametrize("seed", range(30))
def test_every_budget_reaches_the_enumerated_optimum(seed):
    generator = np.random.default_rng(seed)
    n, p, q = int(generator.integers(3, 20)), int(generator.integers(1, 8)), 1 + seed % 2
    X, Y = table(seed, n, p, q)
    if seed % 3 == 0 and p > 2:
        X[:, 1] = 2 * X[:, 0]
        X[:, -1] = 3.0
    settings = {
        "weight": generator.integers(1, 4, n).astype(float) if seed % 2 else None,
        "fit_intercept": seed % 4 > 0,
    }
    ridge = generator.random(p) if seed % 5 == 1 else 0.0
    gram = gram_of(X, Y, sample_weight=settings["weight"], fit_intercept=settings["fit_intercept"])
    path = search(gram, range(p + 3), ridge=ridge)
    assert path.status is Status.CONVERGED
    scale = float(np.mean(Y**2))
    for k, subset in zip(range(p + 3), path.subsets, strict=True):
        best = least(X, Y, min(k, p), ridge=ridge, **settings)
        # A Gram matrix has half the digits where all is explained.
        np.testing.assert_allclose(subset.value, best, rtol=1e-9, atol=1e-10 * scale)
        assert subset.n_nonzero <= k
        assert (np.diff(subset.support) > 0).all()
        assert np.any(subset.coef != 0, axis=1).all()
        # The coefficients attain the value.
        weight = np.ones(n) if settings["weight"] is None else settings["weight"]
        residual = Y - X[:, subset.support] @ subset.coef - subset.intercept
        lift = np.broadcast_to(ridge, (p,))[subset.support]
        attained = np.sum(weight @ residual**2) / (2 * weight.sum())
        attained += np.sum(lift[:, None] * subset.coef**2) / 2
        np.testing.assert_allclose(attained, subset.value, rtol=1e-9, atol=1e-12 * scale)


@pytest.mark.parametrize("seed", range(5))
def test_always_and_forbidden(seed):
    X, Y = table(seed)
    path = search(gram_of(X, Y), [2, 3, 4], always=[6, 1], forbidden=[0, 2])
    for k in (2, 3, 4):
        allowed = itertools.combinations([3, 4, 5, 7], k - 2)
        best = min(value_of(X, Y, (1, 6, *S)) for S in allowed)
        np.testing.assert_allclose(path[k].value, best, rtol=1e-10)
        assert {1, 6} <= set(path[k].support.tolist())
        assert not {0, 2} & set(path[k].support.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_more_features_than_samples(seed):
    X, Y = table(seed, n=6, p=12)
    path = search(gram_of(X, Y), range(13))
    for k in (1, 2, 3):
        np.testing.assert_allclose(path[k].value, least(X, Y, k), rtol=1e-9)
    # Five features and the intercept fit six samples: no more are of use.
    assert [s.n_nonzero for s in path.subsets] == [min(k, 5) for k in range(13)]
    assert path[12].value <= 1e-14 * np.mean(Y**2)


def test_weights_are_repeated_rows():
    X, Y = table(3)
    weight = np.random.default_rng(0).integers(0, 4, 25)
    rows = np.repeat(np.arange(25), weight)
    a = search(gram_of(X, Y, sample_weight=weight), [1, 3])
    b = search(gram_of(X[rows], Y[rows]), [1, 3])
    for one, other in zip(a.subsets, b.subsets, strict=True):
        np.testing.assert_array_equal(one.support, other.support)
        np.testing.assert_allclose(one.coef, other.coef, rtol=1e-9)
        np.testing.assert_allclose(one.value, other.value, rtol=1e-11)


def large(seed=0, n=80, p=400, k=6):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + generator.standard_normal((n, 1))
    y = X[:, :: p // k][:, :k] @ generator.choice([-1.0, 1.0], k) + generator.standard_normal(n)
    return X, y


@pytest.mark.parametrize("p", [40, 400])
@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e12])
def test_scales_change_nothing(p, factor):
    X, y = large(p=p)
    plain = search(gram_of(X, y), [3, 6])
    scaled = search(gram_of(X, factor * y), [3, 6])
    columns = search(gram_of(X * np.geomspace(1e-12, 1e12, p), y), [3, 6])
    for a, b, c in zip(plain.subsets, scaled.subsets, columns.subsets, strict=True):
        np.testing.assert_array_equal(a.support, b.support)
        np.testing.assert_array_equal(a.support, c.support)
        np.testing.assert_allclose(b.value, factor**2 * a.value, rtol=1e-9)
        np.testing.assert_allclose(c.value, a.value, rtol=1e-9)


@pytest.mark.parametrize("p", [40, 400])
def test_permuted_columns_give_permuted_answers(p):
    X, y = large(p=p)
    order = np.random.default_rng(1).permutation(p)
    a, b = search(gram_of(X, y), [3, 6, 9]), search(gram_of(X[:, order], y), [3, 6, 9])
    for one, other in zip(a.subsets, b.subsets, strict=True):
        np.testing.assert_array_equal(one.support, np.sort(order[other.support]))
        np.testing.assert_allclose(one.value, other.value, rtol=1e-12)


def test_the_same_bits_twice():
    X, y = large()
    a, b = (search(gram_of(X, y), [4, 8]) for _ in range(2))
    for one, other in zip(a.subsets, b.subsets, strict=True):
        assert one.coef.tobytes() == other.coef.tobytes()
        assert one.value == other.value
    assert a.measures == b.measures


def test_every_kind_of_table_gives_the_same_subsets():
    X, y = large()
    X[np.random.default_rng(0).random(X.shape) < 0.7] = 0.0
    expected = search(gram_of(X, y), [3, 6])
    for made in (scipy.sparse.csr_array(X), torch.tensor(X), np.asfortranarray(X)):
        target = torch.tensor(y) if isinstance(made, torch.Tensor) else y
        found = search(gram_of(made, target), [3, 6])
        for a, b in zip(found.subsets, expected.subsets, strict=True):
            np.testing.assert_array_equal(a.support, b.support)
            np.testing.assert_allclose(a.coef, b.coef, rtol=1e-9)
            np.testing.assert_allclose(a.value, b.value, rtol=1e-11)


def test_a_small_cache_gives_the_same_subsets(monkeypatch):
    X, y = large(p=600)
    sizes, fast = range(1, 31), Effort.of("fast")
    expected = search(gram_of(X, y), sizes, effort=fast)
    monkeypatch.setattr("ellzero.subset.columns.CACHE_BYTES", 0)
    found = search(gram_of(X, y), sizes, effort=fast)
    assert found.measures["n_columns"] > expected.measures["n_columns"]
    for a, b in zip(found.subsets, expected.subsets, strict=True):
        np.testing.assert_array_equal(a.support, b.support)


def test_values_never_rise_and_noiseless_data_are_explained_by_what_made_them():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 300))
    y = X[:, [5, 50, 250]] @ [1e-3, 1.0, -30.0]
    path = search(gram_of(X, y), range(8))
    values = [s.value for s in path.subsets]
    assert all(a >= b for a, b in itertools.pairwise(values))
    for k in range(3, 8):
        assert path[k].support.tolist() == [5, 50, 250]
        np.testing.assert_allclose(path[k].coef.ravel(), [1e-3, 1.0, -30.0], rtol=1e-9)


def test_one_budget_alone_and_in_a_path():
    for seed in range(5):
        X, y = large(seed)
        path = search(gram_of(X, y), range(1, 9))
        for k in (2, 6):
            alone = search(gram_of(X, y), [k])
            np.testing.assert_array_equal(alone[k].support, path[k].support)


def test_no_exchange_improves_a_subset():
    X, y = large(3, n=50, p=300)
    path = search(gram_of(X, y), [5])
    S = path[5].support.tolist()
    for i, j in itertools.product(range(5), range(300)):
        if j not in S:
            assert value_of(X, y[:, None], [*S[:i], *S[i + 1 :], j]) >= path[5].value * (1 - 1e-9)


def hidden_pairs(seed, n, p, n_pairs):
    """Return features of which neighbors correlate by .9, and pairs that nearly cancel."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = 0.9 * X[:, j - 1] + np.sqrt(0.19) * X[:, j]
    at = 2 * generator.choice(p // 2, n_pairs, replace=False)
    signal = X[:, at].sum(axis=1) - X[:, at + 1].sum(axis=1)
    y = signal + 0.4 * signal.std() * generator.standard_normal(n)
    return X, y, np.sort(np.concatenate([at, at + 1]))


# Exchanges of single features miss these.
@pytest.mark.parametrize(
    ("seed", "n", "n_pairs"), [(6, 100, 2), (7, 100, 2), (11, 100, 2), (32, 150, 3), (38, 150, 3)]
)
def test_pairs_that_hide_each_other_are_found(seed, n, n_pairs):
    X, y, truth = hidden_pairs(seed, n, 600, n_pairs)
    found = search(gram_of(X, y), [truth.size])[truth.size]
    assert found.value <= value_of(X, y[:, None], truth) * (1 + 1e-9)


def test_a_lone_pair_among_independent_features_is_found():
    n_found = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        X = generator.standard_normal((150, 600))
        X[:, 101] = -X[:, 100] + 0.2 * X[:, 101]
        truth = [1, 5, 9, 100, 101]
        coef = np.array([0.7, 0.7, 0.7, 4.0, 4.0])
        y = X[:, truth] @ coef + 0.5 * generator.standard_normal(150)
        found = search(gram_of(X, y), [5])[5]
        n_found += found.value <= value_of(X, y[:, None], truth) * (1 + 1e-9)
    assert n_found >= 9


def test_nothing_to_explain():
    X, _ = table(0)
    path = search(gram_of(X, np.ones(25)), [0, 3])
    assert [s.n_nonzero for s in path.subsets] == [0, 0]
    assert path[3].value == 0.0
    assert path[3].intercept.tolist() == [1.0]
    flat = search(gram_of(np.ones((25, 3)), X[:, 0]), [2])
    assert flat[2].n_nonzero == 0


def test_budgets_come_back_ascending_and_once():
    X, Y = table(0)
    path = search(gram_of(X, Y), [3, 1, 3])
    assert path.budgets.tolist() == [1, 3]
    assert len(search(gram_of(X, Y), [])) == 0


def test_callback_reports_and_ends():
    X, y = large()
    seen = []

    def watch(step, info):
        seen.append((step, info["phase"], info["size"]))
        return len(seen) == 3

    path = search(gram_of(X, y), [5], callback=watch)
    assert path.status is Status.INTERRUPTED
    assert seen == [(1, "path", 1), (2, "path", 2), (3, "path", 3)]
    assert path[5].n_nonzero == 3
    search(gram_of(X, y), [5], callback=lambda step, info: seen.append((step, info["phase"], 0)))
    assert "kicks" in {phase for _, phase, _ in seen}


def test_keyboard_interrupt_returns_the_best_so_far():
    X, y = large()

    def interrupt(step, info):
        if step == 4:
            raise KeyboardInterrupt

    path = search(gram_of(X, y), [5], callback=interrupt)
    assert path.status is Status.INTERRUPTED
    assert path[5].n_nonzero == 4


def test_time_limit_returns_the_best_so_far():
    X, y = large()
    path = search(gram_of(X, y), [5], time_limit=0.0)
    assert path.status is Status.TIME_LIMIT
    assert path[5].n_nonzero == 1


def test_products_are_few(monkeypatch):
    calls = []
    columns = tables.DenseGram.columns
    monkeypatch.setattr(
        tables.DenseGram,
        "columns",
        lambda self, index: calls.append(len(index)) or columns(self, index),
    )
    generator = np.random.default_rng(0)
    X = generator.standard_normal((200, 2000))
    y = X[:, ::250] @ np.full(8, 2.0) + generator.standard_normal(200)
    path = search(gram_of(X, y), [8])
    assert path[8].support.tolist() == list(range(0, 2000, 250))
    assert sum(calls) == path.measures["n_columns"] <= 100
    assert path.measures["n_kicks"] == Effort().agree


WRONG = [
    (
        {"always": [9]},
        "`always` must hold features between 0 and 7, got 9.",
    ),
    ({"forbidden": [-1]}, "`forbidden` must hold features between 0 and 7, got -1."),
    (
        {"always": [2], "forbidden": [2]},
        "Feature 2 is in `always` and in `forbidden`; it can be in one of them.",
    ),
    (
        {"always": [1, 2, 3]},
        "`budgets` must be at least 3, the number of features in `always`, got 2.",
    ),
    (
        {"ridge": np.ones(3)},
        "`ridge` must be a number or one number for each of the 8 features, got shape (3,).",
    ),
    ({"ridge": -1.0}, "`ridge` must be finite and not negative."),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_input(settings, message):
    X, Y = table(0)
    with pytest.raises(InvalidParameterError) as error:
        search(gram_of(X, Y), [2], **settings)
    assert error.value.message == message


def test_negative_budgets():
    X, Y = table(0)
    with pytest.raises(InvalidParameterError) as error:
        search(gram_of(X, Y), [-1, 2])
    assert error.value.message == "`budgets` must not be negative, got -1."
