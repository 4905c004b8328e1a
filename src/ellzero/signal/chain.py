"""Chains: the exact program, penalized or with a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.kernels.chain import objective, solve_runs, sweep
from ellzero.kernels.chain_budget import chain_counted
from ellzero.signal.budget import Callback, Close, Line, search_budget
from ellzero.signal.rules import solve_ruled
from ellzero.signal.solution import Bools, Floats, Solution


@dataclass(frozen=True, slots=True)
class Chain:
    """Data of a chain.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Samples; finite everywhere, also where the weight is 0.
    weights : ndarray of shape (n,)
        Weights, at least 0; 0 for missing samples.
    edges : ndarray of shape (n - 1,)
        Smoothness weight between neighbors, at least 0; 0 cuts the chain.
    nonnegative : bool
        Whether the signal must not be negative.
    kinds : ndarray of shape (n,), int8, or None, default=None
        1 where a nonzero counts and costs, 0 where it is free, -1 where it is not allowed; None
        means 1 everywhere. With rules a free node belongs to the support.
    bump : float, default=0.0
        Cost of every run of the support, at least 0.
    most_bumps : int or None, default=None
        Most runs.
    length, distance : int, default=1
        Fewest nodes of a run, and fewest zeros between two.
    """

    y: Floats
    weights: Floats
    edges: Floats
    nonnegative: bool = False
    kinds: NDArray[np.int8] | None = None
    bump: float = 0.0
    most_bumps: int | None = None
    length: int = 1
    distance: int = 1

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.y.shape[0])

    @property
    def has_rules(self) -> bool:
        """Whether runs are priced or restricted, so that the support is more than its nonzeros."""
        limited = self.most_bumps is not None or self.length > 1 or self.distance > 1
        return self.bump > 0 or limited

    def costs(self, price: float) -> Floats:
        """Return the cost of a nonzero at every node; infinity where it is not allowed."""
        if self.kinds is None:
            return np.full(self.size, price)
        return np.where(self.kinds < 0, np.inf, np.where(self.kinds > 0, price, 0.0))

    def count(self, support: Bools) -> int:
        """Return how many nodes of a support count."""
        return int(np.count_nonzero(support if self.kinds is None else support & (self.kinds > 0)))

    def refit(self, support: Bools) -> Floats:
        """Return the best signal on a support."""
        return np.asarray(solve_runs(self.y, self.weights, self.edges, support))

    def value(self, signal: Floats, price: float) -> float:
        """Return the objective, with the price of every nonzero that counts."""
        cost = self.costs(price)
        return float(objective(signal, self.y, self.weights, self.edges, cost))

    def program(self, price: float) -> tuple[float, Bools, int]:
        """Return the value and support of the penalized program without rules, and its pieces."""
        value, support, n_pieces, *_ = sweep(
            self.y, self.weights, self.edges, self.costs(price), 0.0, self.nonnegative, False
        )
        return float(value), support, int(n_pieces)


def count_bumps(support: Bools) -> int:
    """Return the number of runs of a support."""
    return int(np.count_nonzero(support[1:] & ~support[:-1]) + np.count_nonzero(support[:1]))


def solve_penalized(
    chain: Chain,
    price: float,
    *,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return an optimal signal of the penalized form.

    Parameters
    ----------
    chain : Chain
        Data.
    price : float
        Cost of a nonzero that counts.
    time_limit : float or None, default=None
        Seconds after which no further program begins, where the number of runs is limited.
    callback : callable or None, default=None
        Called as ``callback(n_programs, value, lower_bound)`` there; a true return value stops.

    Returns
    -------
    Solution
        Optimal, up to rounding of about 1e-11 of the value.

    Notes
    -----
    Time proportional to the pieces of all messages: a few times n, more for smoothness far above
    the weights.
    """
    if chain.has_rules:
        return solve_ruled(chain, price=price, time_limit=time_limit, callback=callback)
    value, support, n_pieces, most, *_ = sweep(
        chain.y, chain.weights, chain.edges, chain.costs(price), 0.0, chain.nonnegative, False
    )
    signal = chain.refit(support)
    found = chain.value(signal, price)
    return Solution(
        signal,
        support,
        found,
        # The program is exact: what it has above the recomputed value is rounding.
        min(float(value), found),
        price,
        measures={"n_programs": 1, "n_pieces": int(n_pieces), "most_pieces": int(most)},
    )


def solve_budgeted(
    chain: Chain,
    budget: int,
    *,
    time_limit: float | None = None,
    callback: Callback | None = None,
    lines: list[Line] | None = None,
) -> Solution:
    """Return an optimal signal with at most `budget` nonzeros.

    Parameters
    ----------
    chain : Chain
        Data.
    budget : int
        Most nonzeros.
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
    See `ellzero.signal.budget.search_budget`; with rules on the support,
    `ellzero.signal.rules.solve_ruled`.
    """
    if chain.has_rules:
        return solve_ruled(chain, budget=budget, time_limit=time_limit, callback=callback)
    kinds = np.ones(chain.size, dtype=np.int8) if chain.kinds is None else chain.kinds

    def prepare(price: float) -> Close:
        flipped = sweep(
            chain.y[::-1].copy(), chain.weights[::-1].copy(), chain.edges[::-1].copy(),
            chain.costs(price)[::-1].copy(), 0.0, chain.nonnegative, True,
        )  # fmt: skip

        def close(limit: float) -> tuple[float, Bools, int]:
            best, support, states = chain_counted(
                chain.y, chain.weights, chain.edges, kinds, price, budget, chain.nonnegative,
                limit, flipped[5], flipped[6], flipped[7],
            )  # fmt: skip
            return float(best), support, int(states)

        return close

    return search_budget(
        chain, budget, prepare, time_limit=time_limit, callback=callback, lines=lines
    )
