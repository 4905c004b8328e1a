"""Folds that share their products, against every training set on its own."""

import numpy as np
import pytest
import scipy.sparse

from ellzero.errors import InvalidParameterError
from ellzero.subset.folds import whole_gram
from ellzero.subset.gram import fold_grams, gram_of
from ellzero.subset.search import search


def table(n=45, p=12, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + 2.0
    X[generator.random((n, p)) < 0.5] = 0.0
    y = X[:, [1, 4]] @ [1.0, -2.0] + generator.standard_normal(n) + 5
    return X, y, generator.random(n) + 0.1


FOLDS = {
    "thirds": [np.arange(0, 15), np.arange(15, 30), np.arange(30, 45)],
    "uneven": [np.arange(0, 3), np.arange(3, 40)],
}


@pytest.mark.parametrize("folds", FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_training_and_test_sets(folds, make, weighted, fit_intercept):
    X, y, weight = table()
    weight = weight if weighted else np.ones(45)
    made = fold_grams(
        make(X),
        y,
        folds,
        sample_weight=weight if weighted else None,
        fit_intercept=fit_intercept,
    )
    every = np.arange(12)
    for fold, test in zip(made, folds, strict=True):
        train = np.setdiff1d(np.arange(45), test)
        for gram, rows in ((fold.train, train), (fold.test, test)):
            alone = gram_of(
                X[rows], y[rows], sample_weight=weight[rows], fit_intercept=fit_intercept
            )
            np.testing.assert_allclose(gram.columns(every), alone.matrix, atol=1e-11)
            np.testing.assert_allclose(gram.block(every[3:7]), alone.matrix[3:7, 3:7], atol=1e-11)
            np.testing.assert_allclose(gram.diagonal, alone.diagonal, atol=1e-11)
            np.testing.assert_allclose(gram.cross, alone.cross, atol=1e-11)
            np.testing.assert_allclose(gram.energy, alone.energy, rtol=1e-11)
            np.testing.assert_allclose(gram.x_mean, alone.x_mean, atol=1e-13)
            np.testing.assert_allclose(gram.y_mean, alone.y_mean, atol=1e-13)
        best = search(fold.train, [3])[3]
        error = weight[test] @ (y[test] - X[test][:, best.support] @ best.coef[:, 0]) ** 2
        if fit_intercept:
            residual = y[test] - X[test][:, best.support] @ best.coef[:, 0] - best.intercept[0]
            error = weight[test] @ residual**2
        judged = fold.test.squared_error(best.support, best.coef, best.intercept)
        np.testing.assert_allclose(judged, [error], rtol=1e-10)


def test_products_are_computed_once_for_all_folds(monkeypatch):
    X, y, _ = table()
    made = fold_grams(X, y, FOLDS["thirds"])
    shared = made[0].train._parts
    for fold in made:
        fold.train.columns(np.array([2, 5]))
        fold.test.columns(np.array([5]))
    assert sorted(shared._cache) == [2, 5]
    held = dict(shared._cache)
    made[1].train.columns(np.array([5, 2]))
    assert all(shared._cache[j] is held[j] for j in held)


def test_a_column_constant_in_training_is_of_no_use_there():
    X, y, _ = table()
    X[:, 3] = 0.0
    X[2, 3] = 1.0
    first, second, _ = fold_grams(X, y, FOLDS["thirds"])
    assert first.train.diagonal[3] == 0
    assert second.train.diagonal[3] > 0
    assert 3 not in search(first.train, [11])[11].support


def test_samples_in_two_test_sets():
    X, y, _ = table()
    with pytest.raises(InvalidParameterError) as error:
        fold_grams(X, y, [np.arange(3), np.arange(2, 6)])
    assert error.value.message == (
        "`folds` must be disjoint, got a sample that is in two test sets."
    )
    assert error.value.hint == "Compute the Gram matrices of every split on its own."


def test_sets_without_weight():
    X, y, _ = table()
    with pytest.raises(InvalidParameterError) as error:
        fold_grams(X, y, FOLDS["thirds"], sample_weight=np.r_[np.zeros(15), np.ones(30)])
    assert error.value.message == "Every training and test set must have a positive weight."


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [np.asarray, scipy.sparse.csr_array])
def test_all_samples_from_the_products_of_the_folds(make, dtype):
    X, y, weight = table()
    X = X.astype(dtype)
    made = fold_grams(make(X), y, FOLDS["uneven"], sample_weight=weight)
    whole = whole_gram(made)
    alone = gram_of(X.astype(np.float64), y, sample_weight=weight)
    every = np.arange(12)
    # Products of columns that are kept, and of others straight from the table.
    np.testing.assert_allclose(whole.block(every[2:5]), alone.matrix[2:5, 2:5], atol=1e-5)
    assert not whole.ready.any()
    tolerance = 1e-11 if dtype is np.float64 or make is np.asarray else 1e-4
    np.testing.assert_allclose(whole.columns(every), alone.matrix, atol=tolerance)
    assert whole.ready.all()
    np.testing.assert_allclose(whole.block(every[3:7]), alone.matrix[3:7, 3:7], atol=tolerance)


def test_a_search_takes_what_other_folds_have_computed():
    generator = np.random.default_rng(1)
    X = generator.standard_normal((60, 300))
    y = X[:, :3].sum(axis=1) + generator.standard_normal(60)
    made = fold_grams(X, y, [np.arange(0, 30), np.arange(30, 60)])
    search(whole_gram(made), [3])
    kept = int(made[0].train.ready.sum())
    assert kept < 300
    path = search(made[0].train, [2])
    # The strong features were there; nothing was computed for them.
    assert path.measures["n_columns"] < 32
    alone = search(gram_of(X[30:], y[30:]), [2])
    assert path[2].support.tolist() == alone[2].support.tolist()
