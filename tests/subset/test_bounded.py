"""Bounds on coefficients against trying all supports with a bounded solver."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear, nnls

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.kernels import subset_bounded
from ellzero.subset.effort import Effort
from ellzero.subset.shaped import search_shaped
from tests.subset.tables import TableGram, minimum, subsets, table, value_of


def least(X, y, supports, low, high, *, ridge=0.0, **kwargs):
    """Return the least value over supports."""
    p = X.shape[1]
    low = np.broadcast_to(-np.inf if low is None else low, p)
    high = np.broadcast_to(np.inf if high is None else high, p)
    ridge = np.broadcast_to(ridge, p)
    return min(
        minimum(X[:, c], y, low=low[c], high=high[c], ridge=ridge[c], **kwargs) for c in supports
    )


@pytest.mark.parametrize("seed", range(12))
def test_the_best_nonnegative_features(seed):
    X, y = table(seed, p=8)
    path = search_shaped(TableGram(X, y), range(1, 5), lower=0.0)
    for size in range(1, 5):
        found = path[size]
        assert (found.coef > 0).all()
        assert found.n_nonzero <= size
        centered = X - X.mean(0)
        best = min(nnls(centered[:, c], y - y.mean())[1] for c in subsets(range(8), size))
        assert found.value == pytest.approx(best**2 / (2 * len(y)), rel=1e-8)
        assert value_of(X, y, found) == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_the_best_features_within_arrays_of_bounds(seed):
    X, y = table(seed, p=8)
    rng = np.random.default_rng(seed)
    low, high = -rng.exponential(0.7, 8), rng.exponential(0.7, 8)
    low[rng.integers(8)] = -np.inf
    high[rng.integers(8)] = 0.0
    if seed % 3 == 0:
        low[0] = high[0] = 0.0
    weight = rng.uniform(0.1, 3.0, 30) if seed % 2 else None
    ridge = (0.0, 0.4)[seed % 2]
    intercept = seed % 4 > 0
    gram = TableGram(X, y, weight, fit_intercept=intercept)
    path = search_shaped(gram, range(1, 5), lower=low, upper=high, ridge=ridge)
    for size in range(1, 5):
        found = path[size]
        coef = found.coef[:, 0]
        assert (low[found.support] <= coef).all()
        assert (coef <= high[found.support]).all()
        best = least(
            X,
            y,
            subsets(range(8), size),
            low,
            high,
            ridge=ridge,
            weight=weight,
            intercept=intercept,
        )
        assert found.value == pytest.approx(best, rel=1e-8)
        again = value_of(X, y, found, ridge=ridge, weight=weight)
        assert again == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_always_forbidden_and_at_most_one_of_a_group(seed):
    X, y = table(seed, p=8)
    labels = np.random.default_rng(seed).permutation([0, 0, 0, 1, 1, 2, 2, 2])
    path = search_shaped(
        TableGram(X, y),
        [2, 3],
        lower=0.0,
        groups=labels,
        max_per_group=1,
        always=[1],
        forbidden=[4],
    )
    for size in (2, 3):
        allowed = [
            c
            for c in subsets(range(8), size)
            if 1 in c and 4 not in c and np.bincount(labels[c]).max() == 1
        ]
        assert path[size].value == pytest.approx(least(X, y, allowed, 0.0, None), rel=1e-8)
        assert 4 not in path[size].support


@pytest.mark.parametrize("seed", range(6))
def test_no_exchange_improves(seed):
    # Without kicks: what is returned must still be optimal among its neighbors.
    X, y = table(seed, n=40, p=25, mix=1.0)
    low, high = -0.3, 0.8
    gram = TableGram(X, y)
    found = search_shaped(gram, [5], lower=low, upper=high, effort=Effort(kicks=0))[5]
    inside = found.support.tolist()
    assert len(inside) == 5
    near = [sorted({*inside, j} - {i}) for i in inside for j in range(25) if j not in inside]
    assert least(X, y, near, low, high) >= found.value * (1 - 1e-8)


@pytest.mark.parametrize("compiled", [True, False])
def test_fit_box_against_scipy(compiled, monkeypatch):
    fit = subset_bounded.fit_one
    if not compiled:
        monkeypatch.setattr(subset_bounded, "fit_box", subset_bounded.fit_box.py_func)
        monkeypatch.setattr(subset_bounded, "_value", subset_bounded._value.py_func)
        fit = fit.py_func
    rng = np.random.default_rng(0)
    for trial in range(300 if compiled else 20):
        k = int(rng.integers(1, 9))
        A = rng.standard_normal((k + int(rng.integers(8)), k)) @ (
            np.eye(k) + rng.standard_normal((k, k))
        )
        b = rng.standard_normal(len(A))
        low, high = -rng.exponential(0.5, k), rng.exponential(0.5, k)
        low[rng.random(k) < 0.3] = -np.inf
        high[rng.random(k) < 0.3] = np.inf
        low[rng.random(k) < 0.3] = 0.0
        x = rng.uniform(-1, 1, k) if trial % 2 else np.zeros(k)
        x = np.clip(x, low, high)
        value = fit(A.T @ A, A.T @ b, low, high, x)
        best = lsq_linear(A, b, (low, high), method="bvls", tol=1e-15)
        assert (x >= low).all()
        assert (x <= high).all()
        assert value + b @ b == pytest.approx(2 * best.cost, rel=1e-6, abs=1e-9)


def test_opposite_and_equal_columns():
    # Without bounds each copy is useless; with them the opposite one is the only way to a
    # negative effect.
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((2, 50))
    y = -2 * x + z
    X = np.column_stack([x, x, -x, z, z])
    path = search_shaped(TableGram(X, y), [1, 2, 4], lower=0.0)
    assert path[1].support.tolist() == [2]
    assert path[2].support.tolist() == [2, 3]
    assert path[4].value == pytest.approx(0.0, abs=1e-12)
    assert (path[4].coef > 1e-8).all()
    assert path[1].value == pytest.approx(least(X, y, [[2]], 0.0, None), rel=1e-9)


def test_equal_columns_share_what_one_may_not_carry():
    rng = np.random.default_rng(1)
    x = rng.standard_normal(50)
    X = np.column_stack([x, x, rng.standard_normal(50)])
    path = search_shaped(TableGram(X, 1.5 * x), [1, 2], upper=1.0)
    assert path[1].coef.tolist() == [[1.0]]
    assert path[2].support.tolist() == [0, 1]
    assert path[2].coef.sum() == pytest.approx(1.5)
    assert path[2].value < 1e-9 * path[1].value


def test_a_bound_is_met_exactly():
    X, y = table(3, p=6, noise=0.1)
    found = search_shaped(TableGram(X, y), [3], lower=-0.1, upper=0.1)[3]
    assert np.isin(0.1, np.abs(found.coef))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scales_do_not_matter(scale):
    X, y = table(7, p=8)
    sizes = np.where(np.arange(8) % 3 == 0, scale, 1.0)
    a = search_shaped(TableGram(X, y), [2, 4], lower=-0.5, upper=1.0)
    b = search_shaped(
        TableGram(X * sizes, y / scale),
        [2, 4],
        lower=-0.5 / sizes / scale,
        upper=1.0 / sizes / scale,
    )
    for size in (2, 4):
        np.testing.assert_array_equal(b[size].support, a[size].support)
        expected = a[size].dense(8) / sizes / scale
        np.testing.assert_allclose(b[size].dense(8), expected, rtol=1e-7)


def test_permuted_columns_give_permuted_features():
    X, y = table(6, p=12)
    order = np.random.default_rng(1).permutation(12)
    a = search_shaped(TableGram(X, y), [2, 4], lower=0.0)
    b = search_shaped(TableGram(X[:, order], y), [2, 4], lower=0.0)
    for size in (2, 4):
        np.testing.assert_array_equal(np.sort(order[b[size].support]), a[size].support)
        np.testing.assert_allclose(b[size].dense(12), a[size].dense(12)[:, order], rtol=1e-7)


def test_few_minimizations_are_needed():
    # Bounds on what a pair reaches leave a few of 5 x 195 pairs to be minimized.
    X, y = table(2, n=100, p=200, mix=0.1)
    path = search_shaped(TableGram(X, y), [5], lower=0.0, effort=Effort(kicks=0))
    assert path.measures["refits"] < 400


def test_nothing_helps():
    X, _ = table(0, p=3, noise=0.0)
    found = search_shaped(TableGram(np.abs(X[:, :1]), -np.abs(X[:, 0])), [1], lower=0.0)[1]
    assert found.n_nonzero == 0
    assert found.value == pytest.approx(np.var(np.abs(X[:, 0])) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": 0.5}, "`lower` must be at most 0, got 0.5."),
        ({"upper": [1.0, -0.25, 1.0]}, "`upper` must be at least 0, got -0.25."),
        ({"lower": np.nan}, "`lower` must be at most 0, got nan."),
        (
            {"upper": [1.0, 1.0]},
            "`upper` must be a number or have shape (3,), got shape (2,).",
        ),
    ],
)
def test_messages(options, message):
    X, y = table(0, p=3)
    with pytest.raises(InvalidParameterError) as error:
        search_shaped(TableGram(X, y), [1], **options)
    assert error.value.message == message


def test_bounds_need_one_output():
    X, y = table(0, p=3, outputs=2)
    with pytest.raises(IncompatibleError) as error:
        search_shaped(TableGram(X, y), [1], lower=0.0)
    assert error.value.message == "Bounds on coefficients need one output, got 2."
