"""Criteria that choose a budget."""

from __future__ import annotations

import math

import numpy as np

from ellzero.kernels.chain import leverages
from ellzero.signal.chain import Chain, count_bumps
from ellzero.signal.solution import Bools, Solution


def ebic(chain: Chain, found: Solution) -> float:
    """Return the extended Bayesian information criterion of a signal on a chain.

    Parameters
    ----------
    chain : Chain
        Data.
    found : Solution
        Signal.

    Returns
    -------
    float
        ``n log(error / n) + freedom log n`` plus twice the logarithm of the number of supports
        with as many bumps; smaller is better.
    """
    on = found.signal != 0
    weights = chain.weights
    n = int(np.count_nonzero(weights))
    error = float(weights @ (chain.y - found.signal) ** 2)
    # Below rounding an exact fit is as good as another.
    error = max(error, 1e-28 * float(weights @ chain.y**2), 1e-300)
    freedom = float(leverages(weights, chain.edges, on).sum())
    return n * math.log(error / n) + freedom * math.log(n) + 2 * _supports(on)


def _supports(on: Bools) -> float:
    """Return the logarithm of the number of supports with as many bumps."""
    m, k = on.size + 1, 2 * count_bumps(on)
    return math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1)
