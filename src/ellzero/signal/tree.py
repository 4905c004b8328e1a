"""Trees and forests: the exact program, penalized or with a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.kernels.tree import forest_objective, solve_forest, tree_l0
from ellzero.kernels.tree_budget import tree_counted
from ellzero.signal.budget import Callback, Close, Line, search_budget
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
        """Return the best signal on a support, nonnegative where it must be."""
        signal = np.asarray(solve_forest(self.y, self.weights, self.parent, self.edges, support))
        if not self.nonnegative or (signal >= 0).all():
            return signal
        # Ties left nodes on that turn negative: nodes enter where the slope at zero pulls them up.
        inside, inner = np.zeros(self.size, dtype=np.bool_), self.parent >= 0
        while True:
            signal = np.asarray(
                solve_forest(self.y, self.weights, self.parent, self.edges, inside)
            )
            pull = self.weights * (self.y - signal)
            steps = self.edges[inner] * (signal[self.parent[inner]] - signal[inner])
            pull[inner] += steps
            np.subtract.at(pull, self.parent[inner], steps)
            enter = support & ~inside & (pull > 0)
            if not enter.any():
                return signal
            inside |= enter

    def value(self, signal: Floats, price: float) -> float:
        """Return the objective, with the price of every nonzero that counts."""
        cost = self.costs(price)
        return float(forest_objective(signal, self.y, self.weights, self.parent, self.edges, cost))

    def count(self, support: Bools) -> int:
        """Return how many nodes of a support count."""
        return int(np.count_nonzero(support if self.kinds is None else support & (self.kinds > 0)))

    def program(self, price: float) -> tuple[float, Bools, int]:
        """Return the value and support of the penalized program, and its pieces."""
        value, support, n_pieces, *_ = tree_l0(
            self.y, self.weights, self.parent, self.edges, self.costs(price), self.nonnegative
        )
        return float(value), support, int(n_pieces)

    def joined(self) -> Forest:
        """Return a tree: one more node, off, is the parent of all roots by edges of weight 0."""
        kinds = np.ones(self.size, dtype=np.int8) if self.kinds is None else self.kinds
        parent = np.where(self.parent < 0, self.size, self.parent)
        edges = np.where(self.parent < 0, 0.0, self.edges)
        return Forest(
            np.append(self.y, 0.0),
            np.append(self.weights, 0.0),
            np.append(parent, -1),
            np.append(edges, 0.0),
            self.nonnegative,
            np.append(kinds, np.int8(-1)),
        )


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
    value, support, n_pieces, most, *_ = tree_l0(
        forest.y, forest.weights, forest.parent, forest.edges, forest.costs(price),
        forest.nonnegative,
    )  # fmt: skip
    signal = forest.refit(support)
    found = forest.value(signal, price)
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
    lines: list[Line] | None = None,
) -> Solution:
    """Return an optimal signal with at most `budget` nonzeros on a forest.

    Parameters
    ----------
    forest : Forest
        Data.
    budget : int
        Most nonzeros that count.
    time_limit : float or None, default=None
        Seconds after which no further program begins; the best signal so far is returned with the
        bound of the envelope.
    callback : callable or None, default=None
        Called as ``callback(n_programs, value, lower_bound)``; a true return value stops.
    lines : list of Line or None, default=None
        Programs solved for other budgets of the same data, used and added to.

    Returns
    -------
    Solution
        Optimal when its status is CONVERGED.

    Notes
    -----
    See `ellzero.signal.budget.search_budget`; the count-indexed program splits the count at every
    node over its children, `ellzero.kernels.tree_budget`.
    """
    tree = forest.joined()

    def prepare(price: float) -> Close:
        tilted, _, _, _, rows, first, bases = tree_l0(
            tree.y, tree.weights, tree.parent, tree.edges, tree.costs(price), tree.nonnegative
        )

        def close(limit: float) -> tuple[float, Bools, int]:
            best, support, states = tree_counted(
                tree.y, tree.weights, tree.parent, tree.edges, tree.kinds, price, budget,
                tree.nonnegative, limit - tilted, rows, first, bases,
            )  # fmt: skip
            return float(best), support[:-1], int(states)

        return close

    return search_budget(
        forest, budget, prepare, time_limit=time_limit, callback=callback, lines=lines
    )
