"""Bounds on coefficients against trying all supports with a bounded solver."""

import numpy as np
import pytest

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.subset.shaped import search_shaped
from tests.subset.tables import TableGram, minimum, subsets, table, value_of


def best_bounded(X, y, size, low, high, **kwargs):
    """Return the least value over all supports."""
    p = X.shape[1]
    low = np.broadcast_to(-np.inf if low is None else low, p)
    high = np.broadcast_to(np.inf if high is None else high, p)
    return min(
        minimum(X[:, c], y, low=low[c], high=high[c], **kwargs) for c in subsets(range(p), size)
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_best_nonnegative_features(seed):
    X, y = table(seed, p=8)
    path = search_shaped(TableGram(X, y), range(1, 6), lower=0.0)
    for size in range(1, 6):
        found = path[size]
        assert (found.coef > 0).all()
        assert found.n_nonzero <= size
        assert found.value == pytest.approx(best_bounded(X, y, size, 0.0, None), rel=1e-8)
        assert value_of(X, y, found) == pytest.approx(found.value, rel=1e-9)
