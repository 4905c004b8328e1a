"""Searches among the promising features of wide sparse tables, against searches among all."""

import numpy as np
import pytest
import scipy.sparse

from ellzero.core.result import Status
from ellzero.subset import search as searching
from ellzero.subset import wide
from ellzero.subset.gram import SparseGram, gram_of
from ellzero.subset.search import search


def hidden(seed=0, n=80, p=400):
    """Return a table where two features hide each other: neither correlates with the target."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p))
    X[generator.random((n, p)) < 0.7] = 0.0
    X[:, 7] = X[:, 300] + 0.3 * generator.standard_normal(n)
    y = X[:, 300] - X[:, 7] + 0.05 * X[:, 20] + 0.01 * generator.standard_normal(n) + 3.0
    return X, y, generator.random(n) + 0.5


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(searching, "WIDE", 300)
    monkeypatch.setattr(wide, "FIRST", 3)
    monkeypatch.setattr(wide, "MORE", 5)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_what_the_strongest_features_hide_is_found(weighted, ridge):
    X, y, weight = hidden()
    weight = weight if weighted else None
    among_some = search(
        gram_of(scipy.sparse.csc_array(X), y, sample_weight=weight), [1, 2, 3], ridge=ridge
    )
    among_all = search(gram_of(X, y, sample_weight=weight), [1, 2, 3], ridge=ridge)
    assert among_some.measures["n_rounds"] > 1
    assert among_some.measures["n_searched"] < 400
    for one, other in zip(among_some.subsets, among_all.subsets, strict=True):
        assert one.support.tolist() == other.support.tolist()
        np.testing.assert_allclose(one.coef, other.coef, rtol=1e-7)
        np.testing.assert_allclose(one.intercept, other.intercept, rtol=1e-7)
        np.testing.assert_allclose(one.value, other.value, rtol=1e-8)


@pytest.mark.usefixtures("narrow")
def test_kept_and_forbidden_features():
    X, y, _ = hidden()
    gram = gram_of(scipy.sparse.csr_array(X), y)
    path = search(gram, [2, 3], always=[399], forbidden=[300])
    for subset in path.subsets:
        assert 399 in subset.support
        assert 300 not in subset.support


@pytest.mark.usefixtures("narrow")
def test_callback_and_time_limit_end_a_wide_search():
    X, y, _ = hidden()
    gram = gram_of(scipy.sparse.csc_array(X), y)
    steps = []

    def stop(step, info):
        steps.append((step, info["size"]))
        return len(steps) == 4

    assert search(gram, [3], callback=stop).status is Status.INTERRUPTED
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert search(gram, [3], time_limit=0.0).status is Status.TIME_LIMIT


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_prices_of_all_exchanges(outputs, fit_intercept):
    X, y, weight = hidden()
    X = X[:, 280:310]
    X[:, 4] = 0.0
    Y = np.column_stack([y, X[:, 3]])[:, :outputs]
    ridge = np.linspace(0.0, 0.1, 30)
    gram = SparseGram(scipy.sparse.csc_array(X), Y, weight, fit_intercept)
    kept, support = [5], np.array([2, 5, 21])
    n = gram.n_samples

    def value(index):
        return searching.refit(gram, np.array(index), ridge).value

    subset = searching.refit(gram, support, ridge)
    may_enter = np.ones(30, bool)
    may_enter[10] = False
    add, swap = gram.price(subset, ridge, may_enter, np.array(kept))
    for j in range(30):
        if j in support or j in (4, 10):
            assert add[j] == swap[j] == 0
            continue
        np.testing.assert_allclose(
            subset.value - add[j] / (2 * n), value([*support, j]), rtol=1e-9
        )
        best = min(value([i for i in support if i != out] + [j]) for out in (2, 21))
        np.testing.assert_allclose(
            subset.value - swap[j] / (2 * n), min(best, subset.value), rtol=1e-9
        )


def test_the_table_of_the_user_stays_as_it_is():
    X, y, _ = hidden()
    table = scipy.sparse.coo_array(X).tocsc()
    doubled = scipy.sparse.csc_array(
        (
            np.repeat(table.data / 2, 2),
            np.repeat(table.indices, 2),
            2 * table.indptr,
        ),
        shape=table.shape,
    )
    gram = gram_of(doubled, y)
    assert doubled.nnz == 2 * table.nnz
    np.testing.assert_allclose(gram.diagonal, gram_of(X, y).diagonal, rtol=1e-12)
