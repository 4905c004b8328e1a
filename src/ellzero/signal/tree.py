"""Trees and forests: the exact program, penalized; budgets by the envelope of multipliers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Status
from ellzero.kernels.tree import forest_objective, solve_forest, tree_l0
from ellzero.signal.budget import SAME, Callback
from ellzero.signal.solution import Bools, Floats, Integers, Solution


@dataclass(frozen=True, slots=True)
class Forest:
    """Data of a forest, numbered so that a parent comes after its children.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Samples; finite everywhere, also where the weight is 0.
    weights : ndarray of shape (n,)
        Weights, at least 0; 0 for missing samples.
    parent : ndarray of shape (n,), int64
        Parent of every node; -1 for roots.
    edges : ndarray of shape (n,)
        Smoothness weight of the edge to the parent.
    nonnegative : bool
        Whether the signal must not be negative.
    kinds : ndarray of shape (n,), int8, or None, default=None
        1 where a nonzero costs, 0 where it is free, -1 where it is not allowed.
    """

    y: Floats
    weights: Floats
    parent: Integers
    edges: Floats
    nonnegative: bool = False
    kinds: NDArray[np.int8] | None = None

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.y.shape[0])

    def costs(self, price: float) -> Floats:
        """Return the cost of a nonzero at every node; infinity where it is not allowed."""
        if self.kinds is None:
            return np.full(self.size, price)
        return np.where(self.kinds < 0, np.inf, np.where(self.kinds > 0, price, 0.0))

    def refit(self, support: Bools) -> Floats:
        """Return the best signal on a support."""
        return np.asarray(solve_forest(self.y, self.weights, self.parent, self.edges, support))

    def value(self, signal: Floats, cost: Floats) -> float:
        """Return the objective, with the cost of every nonzero."""
        return float(forest_objective(signal, self.y, self.weights, self.parent, self.edges, cost))


def solve_forest_penalized(forest: Forest, price: float) -> Solution:
    """Return an optimal signal of the penalized form on a forest.

    Parameters
    ----------
    forest : Forest
        Data.
    price : float
        Cost of a nonzero.

    Returns
    -------
    Solution
        Optimal, up to rounding of about 1e-11 of the value.

    Notes
    -----
    Time and memory proportional to the pieces of all messages: a few times n.
    """
    cost = forest.costs(price)
    value, support, n_pieces, most = tree_l0(
        forest.y, forest.weights, forest.parent, forest.edges, cost, forest.nonnegative
    )
    signal = forest.refit(support)
    found = forest.value(signal, cost)
    return Solution(
        signal,
        support,
        found,
        min(float(value), found),
        price,
        measures={"n_programs": 1, "n_pieces": int(n_pieces), "most_pieces": int(most)},
    )


def solve_forest_budgeted(
    forest: Forest,
    budget: int,
    *,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return a signal with at most `budget` nonzeros on a forest, and a bound.

    Parameters
    ----------
    forest : Forest
        Data.
    budget : int
        Most nonzeros.
    time_limit : float or None, default=None
        Seconds after which no further program begins.
    callback : callable or None, default=None
        Called as ``callback(n_programs, value, lower_bound)``; a true return value stops.

    Returns
    -------
    Solution
        Optimal when the envelope of the penalized programs touches the budget; else the best
        signal seen, filled up to the budget, with the bound of the envelope.
    """
    began = time.perf_counter()
    n = forest.size
    free = np.zeros(n)
    best = free
    value = forest.value(free, free)
    low, high = (0, value), None
    bound, price, n_programs, n_pieces = 0.0, 0.0, 0, 0
    status = Status.CONVERGED
    support: Bools = np.zeros(n, dtype=np.bool_)
    while budget > 0:
        price = 0.0 if high is None else (low[1] - high[1]) / (high[0] - low[0])
        found = solve_forest_penalized(forest, price)
        n_programs += 1
        n_pieces += int(found.measures["n_pieces"] or 0)
        count = int(np.count_nonzero(found.support))
        fit = found.value - price * found.n_nonzero
        bound = max(bound, found.lower_bound - price * budget)
        trimmed = _fill(forest, found, budget)
        inside = forest.value(trimmed, free)
        if inside < value:
            best, value, support = trimmed, inside, trimmed != 0
        if callback is not None and callback(n_programs, value, bound):
            status = Status.INTERRUPTED
            break
        if value - bound <= SAME * abs(value) or count == budget:
            break
        if high is None:
            if count <= budget:
                break
            high = (count, fit)
            continue
        line = low[1] + price * low[0]
        if count in (low[0], high[0]) or found.lower_bound >= line - SAME * abs(line):
            break
        if count < budget:
            low = (count, fit)
        else:
            high = (count, fit)
        if time_limit is not None and time.perf_counter() - began > time_limit:
            status = Status.TIME_LIMIT
            break
    if budget == 0:
        bound = value
    measures = {"n_programs": n_programs, "n_pieces": n_pieces}
    return Solution(best, support, value, min(bound, value), price, status, measures)


def _fill(forest: Forest, found: Solution, budget: int) -> Floats:
    """Return the signal on the support, cut to the budget where it is too large."""
    count = found.n_nonzero
    if count <= budget:
        return found.signal
    # The nodes whose fit gains most by being on are kept.
    gain = forest.weights * (forest.y**2 - (found.signal - forest.y) ** 2)
    gain = np.where(found.signal != 0, gain, -np.inf)
    keep = np.zeros(forest.size, dtype=np.bool_)
    keep[np.argsort(-gain, kind="stable")[:budget]] = True
    signal = forest.refit(keep)
    if forest.nonnegative and (signal < 0).any():
        signal = forest.refit(keep & (signal > 0))
        return np.maximum(signal, 0.0)
    return signal
