"""Inner products from every kind of table, against plain formulas."""

import numpy as np
import pytest
import scipy.sparse
import torch

from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.subset.gram import DenseGram, FullGram, SparseGram, TensorGram, gram_of
from ellzero.subset.inner import FULL


def table(n=40, p=20, q=2, seed=0, offset=1.0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + offset
    X[generator.random((n, p)) < 0.6] = 0.0
    Y = generator.standard_normal((n, q)) + 3
    return X, Y, generator.integers(0, 4, n).astype(float)


def expected(X, Y, weight, fit_intercept):
    """Repeat the rows as often as their weights say, then multiply."""
    rows = np.repeat(np.arange(len(X)), 1 if weight is None else weight.astype(int))
    X, Y = X[rows], Y[rows]
    x_mean, y_mean = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if fit_intercept:
        x_mean, y_mean = X.mean(axis=0), Y.mean(axis=0)
    X, Y = X - x_mean, Y - y_mean
    return X.T @ X, X.T @ Y, np.sum(Y**2, axis=0), len(X), x_mean, y_mean


def wide(make):
    def build(X, Y, weight, fit_intercept):
        # Columns of zeros make the table wide enough to be computed lazily.
        more = np.zeros((X.shape[0], FULL))
        return gram_of(
            make(np.hstack([X, more])), Y, sample_weight=weight, fit_intercept=fit_intercept
        )

    return build


def narrow(make):
    return lambda X, Y, weight, fit_intercept: gram_of(
        make(X), Y, sample_weight=weight, fit_intercept=fit_intercept
    )


KINDS = {
    "full": (narrow(np.asarray), FullGram),
    "full sparse": (narrow(scipy.sparse.coo_array), FullGram),
    "dense": (wide(np.asarray), DenseGram),
    "columns first": (wide(np.asfortranarray), DenseGram),
    "sparse": (wide(scipy.sparse.csr_array), SparseGram),
    "sparse matrix": (wide(scipy.sparse.csc_matrix), SparseGram),
    "tensor": (narrow(torch.tensor), TensorGram),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_inner_products(kind, weighted, fit_intercept):
    X, Y, weight = table()
    weight = weight if weighted else None
    build, cls = KINDS[kind]
    gram = build(X, Y, weight, fit_intercept)
    assert type(gram) is cls
    G, C, energy, n, x_mean, y_mean = expected(X, Y, weight, fit_intercept)
    index = np.array([7, 2, 11])
    assert gram.n_samples == n
    assert gram.n_outputs == 2
    np.testing.assert_allclose(gram.columns(index)[:, :20], G[index], atol=1e-11)
    assert gram.columns(index).flags.c_contiguous
    np.testing.assert_allclose(gram.block(index), G[np.ix_(index, index)], atol=1e-11)
    np.testing.assert_allclose(gram.diagonal[:20], np.diagonal(G), atol=1e-11)
    np.testing.assert_allclose(gram.cross[:20], C, atol=1e-11)
    np.testing.assert_allclose(gram.energy, energy, rtol=1e-12)
    np.testing.assert_allclose(gram.x_mean[:20], x_mean, atol=1e-13)
    np.testing.assert_allclose(gram.y_mean, y_mean, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_squared_error_of_any_model(kind):
    X, Y, weight = table()
    gram = KINDS[kind][0](X, Y, weight, True)
    support, coef = np.array([1, 5]), np.array([[0.5, 1.0], [-2.0, 0.0]])
    intercept = np.array([0.3, -0.1])
    direct = weight @ (Y - X[:, support] @ coef - intercept) ** 2
    np.testing.assert_allclose(gram.squared_error(support, coef, intercept), direct, rtol=1e-11)


@pytest.mark.parametrize("kind", ["full", "dense", "sparse", "tensor"])
def test_constant_columns_are_of_no_use(kind):
    X, Y, _ = table(offset=0.0)
    X[:, 3] = 0.1
    gram = KINDS[kind][0](X, Y, None, True)
    assert gram.diagonal[3] == 0
    assert (gram.cross[3] == 0).all()
    assert (gram.columns(np.array([3, 4]))[0] == 0).all()
    assert (gram.columns(np.array([3, 4]))[:, 3] == 0).all()
    assert KINDS[kind][0](X, Y, None, False).diagonal[3] > 0


@pytest.mark.parametrize("kind", ["full", "dense", "columns first", "tensor"])
def test_means_far_from_zero_cancel_nothing(kind):
    generator = np.random.default_rng(0)
    # Multiples of 2**-10 around 2**20: the means are taken out of exact numbers.
    X = generator.integers(-2000, 2000, (64, 20)) / 1024
    Y = generator.standard_normal((64, 1))
    plain = KINDS[kind][0](X, Y, None, True)
    moved = KINDS[kind][0](X + 2.0**20, Y, None, True)
    index = np.arange(20)
    scale = plain.diagonal.max()
    np.testing.assert_allclose(moved.diagonal, plain.diagonal, rtol=1e-9)
    np.testing.assert_allclose(moved.columns(index), plain.columns(index), atol=1e-8 * scale)


@pytest.mark.parametrize("cls", [np.asarray, torch.tensor])
def test_float32_is_multiplied_in_float64(cls):
    X, Y, _ = table(p=FULL + 4)
    X = X.astype(np.float32)
    gram = gram_of(cls(X), Y)
    G = expected(X.astype(np.float64), Y, None, True)[0]
    np.testing.assert_allclose(gram.columns(np.arange(5)), G[:5], atol=1e-11)


def test_the_table_is_not_copied():
    X, Y, _ = table(n=30, p=FULL + 4)
    assert gram_of(X, Y)._X is X


WRONG = [
    (lambda X, Y: gram_of(X[0], Y), "`X` must have two dimensions, got shape (20,)."),
    (
        lambda X, Y: gram_of(X, Y[1:]),
        "`X` and `y` must have the same number of samples, got 40 and 39.",
    ),
    (
        lambda X, Y: gram_of(X, Y, sample_weight=np.ones(3)),
        "`sample_weight` must have shape (40,), got (3,).",
    ),
    (
        lambda X, Y: gram_of(X, Y, sample_weight=-np.ones(40)),
        "`sample_weight` must not be negative.",
    ),
    (
        lambda X, Y: gram_of(X, Y, sample_weight=np.zeros(40)),
        "At least one sample must have a positive weight.",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
@pytest.mark.parametrize("cls", [np.asarray, torch.tensor])
def test_wrong_input(call, message, cls):
    X, Y, _ = table()
    with pytest.raises(InvalidParameterError) as error:
        call(cls(X), cls(Y))
    assert error.value.message == message


@pytest.mark.parametrize("kind", ["full", "dense", "sparse", "tensor"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numbers_that_are_not_finite(kind):
    X, Y, _ = table()
    X[4, 6] = np.nan
    with pytest.raises(NonFiniteError) as error:
        KINDS[kind][0](X, Y, None, True)
    assert error.value.message == "`X` must be finite, got NaN or infinity in column 6."
    X[4, 6] = 0.0
    Y[2, 1] = np.inf
    with pytest.raises(NonFiniteError) as error:
        KINDS[kind][0](X, Y, None, True)
    assert error.value.message == "`y` must be finite, got NaN or infinity."


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("jump", [0.0, 1e5])
def test_moments_do_not_depend_on_what_the_first_rows_are_like(jump, weighted):
    generator = np.random.default_rng(0)
    X = generator.standard_normal((1500, 300)) + 3
    X[:100] += jump
    y = generator.standard_normal(1500)
    w = generator.random(1500) if weighted else np.ones(1500)
    gram = gram_of(X, y, sample_weight=w if weighted else None)
    mean = w @ X / w.sum()
    centered, target = X - mean, y - w @ y / w.sum()
    np.testing.assert_allclose(gram.x_mean, mean, rtol=1e-13)
    np.testing.assert_allclose(gram.diagonal, w @ centered**2, rtol=1e-12)
    cross = centered.T @ (w * target)
    np.testing.assert_allclose(gram.cross[:, 0], cross, rtol=1e-9, atol=1e-9 * (1 + jump))
