"""Criteria that choose a budget."""

from __future__ import annotations

import math

import numpy as np

from ellzero.kernels.chain import leverages
from ellzero.kernels.tree import forest_leverages
from ellzero.signal.chain import Chain, count_bumps
from ellzero.signal.solution import Floats
from ellzero.signal.tree import Forest


def ebic(data: Chain | Forest, signal: Floats) -> float:
    """Return the extended Bayesian information criterion of a signal on a chain or a forest.

    Parameters
    ----------
    data : Chain or Forest
        Data.
    signal : ndarray of shape (n,)
        Signal.

    Returns
    -------
    float
        ``n log(error / n) + freedom log n`` plus twice the logarithm of the number of supports
        with as many bumps, on a forest with as many edges between a nonzero and a zero; smaller
        is better.
    """
    on = signal != 0
    weights = data.weights
    n = int(np.count_nonzero(weights))
    error = float(weights @ (data.y - signal) ** 2)
    # Below rounding an exact fit is as good as another.
    error = max(error, 1e-28 * float(weights @ data.y**2), 1e-300)
    if isinstance(data, Chain):
        each = leverages(weights, data.edges, on)
        many = _log_binomial(on.size + 1, 2 * count_bumps(on))
    else:
        each = forest_leverages(weights, data.parent, data.edges, on)
        inner = np.flatnonzero(data.parent >= 0)
        # Every set of edges is the boundary of as many supports: two for each tree.
        cut = int(np.count_nonzero(on[inner] != on[data.parent[inner]]))
        many = _log_binomial(inner.size, cut)
    return n * math.log(error / n) + float(each.sum()) * math.log(n) + 2 * many


def _log_binomial(m: int, k: int) -> float:
    return math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1)
