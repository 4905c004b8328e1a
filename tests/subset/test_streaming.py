"""Rows in chunks and on several ranks, against all rows at once."""

import numpy as np
import pytest
import torch.distributed as dist

from ellzero.errors import InvalidParameterError
from ellzero.subset.gram import gram_of
from ellzero.subset.search import search
from ellzero.subset.streaming import Moments, gram_of_chunks, moments_of_chunks, reduce_moments
from tests.ranks import run_ranks


def table(n=60, p=7, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + np.linspace(0, 50, n)[:, None]
    return X, X[:, [1, 4]] + generator.standard_normal((n, 2)), generator.random(n)


def assert_same(a, b):
    scale = np.abs(b.matrix).max()
    np.testing.assert_allclose(a.matrix, b.matrix, atol=1e-13 * scale)
    np.testing.assert_allclose(a.cross, b.cross, atol=1e-13 * scale)
    np.testing.assert_allclose(a.energy, b.energy, rtol=1e-13)
    np.testing.assert_allclose(a.x_mean, b.x_mean, rtol=1e-13)
    np.testing.assert_allclose(a.n_samples, b.n_samples, rtol=1e-14)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_give_what_all_rows_give(fit_intercept, weighted):
    X, Y, weight = table()
    cuts = [slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 60)]
    chunks = ((X[c], Y[c], *((weight[c],) if weighted else ())) for c in cuts)
    whole = gram_of(X, Y, sample_weight=weight if weighted else None, fit_intercept=fit_intercept)
    assert_same(gram_of_chunks(chunks, fit_intercept=fit_intercept), whole)


def test_a_memory_map_is_read_in_chunks(tmp_path):
    X, Y, _ = table()
    held = np.memmap(tmp_path / "X", np.float64, "w+", shape=X.shape)
    held[:] = X
    gram = gram_of_chunks((held[i : i + 20], Y[i : i + 20]) for i in range(0, 60, 20))
    assert_same(gram, gram_of(X, Y))


def test_merging_is_sound_when_chunks_are_far_apart():
    # The mean of squares minus the square of the mean would lose all digits.
    X = np.array([[1e9], [1e9 + 1], [1e9 + 2], [-1e9], [-1e9 - 1], [-1e9 - 2]])
    y = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    moments = Moments(1, 1)
    moments.add(X[:3], y[:3, None])
    inside = moments.gram()
    assert inside.diagonal[0] == 2.0
    assert inside.cross[0, 0] == 2.0
    other = Moments(1, 1)
    other.add(X[3:], y[3:, None])
    moments.merge(other)
    np.testing.assert_allclose(moments.gram().diagonal, 6 * (1e9 + 1) ** 2 + 4, rtol=1e-15)


def _check_rank(rank):
    X, Y, weight = table()
    mine = slice(0, 25) if rank == 0 else slice(25, 60)
    moments = moments_of_chunks([(X[mine], Y[mine], weight[mine])])
    gram = reduce_moments(moments).gram()
    whole = gram_of(X, Y, sample_weight=weight)
    assert_same(gram, whole)
    found, expected = search(gram, [2, 3]), search(whole, [2, 3])
    for a, b in zip(found.subsets, expected.subsets, strict=True):
        np.testing.assert_array_equal(a.support, b.support)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-10)
    values = [None, None]
    dist.all_gather_object(values, found[3].value)
    assert values[0] == values[1]


def test_two_ranks_give_what_one_gives(tmp_path):
    run_ranks(_check_rank, 2, tmp_path)


WRONG = [
    (lambda X, Y: gram_of_chunks([]), "`chunks` must hold at least one chunk, got none."),
    (
        lambda X, Y: gram_of_chunks([(X, Y[1:])]),
        "`X` and `y` must have the same number of samples, got 60 and 59.",
    ),
    (
        lambda X, Y: gram_of_chunks([(X, Y), (X[:, 1:], Y)]),
        "All chunks must have the same number of features, got 7 and 6.",
    ),
    (
        lambda X, Y: gram_of_chunks([(X, Y, np.zeros(60))]),
        "At least one sample must have a positive weight.",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_wrong_input(call, message):
    X, Y, _ = table()
    with pytest.raises(InvalidParameterError) as error:
        call(X, Y)
    assert error.value.message == message
