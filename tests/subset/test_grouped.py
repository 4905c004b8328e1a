"""Groups of columns against trying all sets of groups."""

import numpy as np
import pytest

from ellzero.core.result import Status
from ellzero.errors import InvalidParameterError
from ellzero.subset.shaped import search_shaped
from ellzero.subset.walk import Kicks
from tests.subset.tables import TableGram, minimum, subsets, table, value_of


def best_groups(X, y, labels, size, **kwargs):
    """Return the least value over all sets of groups."""
    ridge = np.broadcast_to(kwargs.pop("ridge", 0.0), X.shape[1])
    names = np.unique(labels)
    return min(
        minimum(X[:, on], y, ridge=ridge[on], **kwargs)
        for on in (np.isin(labels, c) for c in subsets(names, size))
    )


def minimum_check(X, y, path, labels, **kwargs):
    ridge = kwargs.get("ridge", 0.0)
    for size, found in zip(path.budgets, path.subsets, strict=True):
        best = best_groups(X, y, labels, size, **kwargs)
        assert found.value == pytest.approx(best, rel=1e-9)
        parts = np.broadcast_to(ridge, X.shape[1])[found.support]
        again = value_of(X, y, found, ridge=parts, weight=kwargs.get("weight"))
        assert again == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_the_best_groups_of_interleaved_labels_and_different_sizes(seed):
    X, y = table(seed, p=11, outputs=(None, 3)[seed % 2])
    labels = np.random.default_rng(seed).permutation([0, 0, 0, 0, 7, 7, 7, -3, -3, 2, 5])
    path = search_shaped(TableGram(X, y), range(1, 6), groups=labels)
    minimum_check(X, y, path, labels)
    for size in range(1, 6):
        chosen = path[size].support
        assert np.array_equal(chosen, np.flatnonzero(np.isin(labels, labels[chosen])))
        assert len(np.unique(labels[chosen])) == size
