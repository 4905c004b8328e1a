"""Chains: the exact program, penalized or with a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ellzero.core.result import Status
from ellzero.kernels.chain import objective, solve_runs, sweep
from ellzero.kernels.chain_budget import chain_counted
from ellzero.signal.solution import Bools, Floats, Solution

# Two tilted values closer than this, relatively, are the same.
SAME = 1e-12
# Share of the multiplier by which the first count-indexed program looks beyond the envelope, and
# the factor by which the next one looks farther.
FIRST_MARGIN, WIDEN = 0.05, 4.0

Callback = Callable[[int, float, float], object]


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
    """

    y: Floats
    weights: Floats
    edges: Floats
    nonnegative: bool = False

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.y.shape[0])

    def refit(self, support: Bools) -> Floats:
        """Return the best signal on a support."""
        return np.asarray(solve_runs(self.y, self.weights, self.edges, support))

    def value(self, signal: Floats, cost: Floats) -> float:
        """Return the objective, with the cost of every nonzero."""
        return float(objective(signal, self.y, self.weights, self.edges, cost))


def solve_penalized(chain: Chain, cost: Floats) -> Solution:
    """Return an optimal signal of the penalized form.

    Parameters
    ----------
    chain : Chain
        Data.
    cost : ndarray of shape (n,)
        Cost of a nonzero at every node; infinity keeps a node at zero.

    Returns
    -------
    Solution
        Optimal, up to rounding of about 1e-11 of the value.

    Notes
    -----
    Time proportional to the pieces of all messages: a few times n, more for smoothness far above
    the weights.
    """
    value, support, n_pieces, most, *_ = sweep(
        chain.y, chain.weights, chain.edges, cost, chain.nonnegative, False
    )
    signal = chain.refit(support)
    found = chain.value(signal, cost)
    return Solution(
        signal,
        support,
        found,
        # The program is exact: what it has above the recomputed value is rounding.
        min(float(value), found),
        float(cost[0]) if cost.size and (cost == cost[0]).all() else math.nan,
        measures={"n_programs": 1, "n_pieces": int(n_pieces), "most_pieces": int(most)},
    )


def solve_budgeted(
    chain: Chain,
    budget: int,
    *,
    time_limit: float | None = None,
    callback: Callback | None = None,
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

    Returns
    -------
    Solution
        Optimal when its status is CONVERGED.

    Notes
    -----
    Multipliers first: every penalized program gives a line below the optimal value as a function
    of the budget, and their envelope is found with a handful of programs. Where it does not touch
    the budget, the count-indexed program closes the gap, in a window around the envelope that is
    widened until it proves optimality.
    """
    began = time.perf_counter()
    search = _Envelope(chain, budget)
    stopped: Status | None = None
    while not search.done:
        search.step()
        if callback is not None and callback(search.n_programs, search.value, search.bound):
            stopped = Status.INTERRUPTED
        elif time_limit is not None and time.perf_counter() - began > time_limit:
            stopped = Status.TIME_LIMIT
        if stopped is not None and not search.done:
            return search.solution(stopped)
    if search.is_exact or stopped is not None:
        return search.solution(Status.CONVERGED if search.is_exact else stopped)
    price = search.price
    flipped = sweep(
        chain.y[::-1].copy(), chain.weights[::-1].copy(), chain.edges[::-1].copy(),
        np.full(chain.size, price), chain.nonnegative, True,
    )  # fmt: skip
    tilted, margin, n_states = search.bound + price * budget, FIRST_MARGIN * price, 0
    while True:
        limit = tilted + margin
        best, support, states = chain_counted(
            chain.y, chain.weights, chain.edges, price, budget, chain.nonnegative,
            limit + SAME * abs(limit), flipped[4], flipped[5], flipped[6],
        )  # fmt: skip
        n_states += int(states)
        search.n_programs += 1
        if math.isfinite(best):
            search.offer(support)
        if best <= limit:
            search.bound = max(search.bound, min(search.value, float(best) - price * budget))
            search.is_exact = True
            break
        # Everything within the window has been looked at: nothing is better than its edge.
        search.bound = max(search.bound, min(search.value, limit - price * budget))
        if callback is not None and callback(search.n_programs, search.value, search.bound):
            stopped = Status.INTERRUPTED
            break
        if time_limit is not None and time.perf_counter() - began > time_limit:
            stopped = Status.TIME_LIMIT
            break
        margin *= WIDEN
    return search.solution(stopped or Status.CONVERGED, n_states=n_states)


class _Envelope:
    """Lower envelope of the optimal value over budgets, around one of them."""

    def __init__(self, chain: Chain, budget: int) -> None:
        self.chain = chain
        self.budget = budget
        self.n_programs = 0
        self.n_pieces = 0
        self.price = 0.0
        self.is_exact = False
        self.done = False
        self._free = np.zeros(chain.size)
        # Counts and values on both sides of the budget; all off, and all on that pays.
        nothing = np.zeros(chain.size, dtype=np.bool_)
        self._low = (0, chain.value(self._free, self._free))
        self._high: tuple[int, float] | None = None
        self.support: Bools = nothing
        self.signal: Floats = self._free
        self.value = self._low[1]
        self.bound = 0.0
        if budget == 0:
            self.bound, self.is_exact, self.done = self.value, True, True

    def offer(self, support: Bools) -> float:
        """Take a support when it is within the budget and better; return its value."""
        signal = self.chain.refit(support)
        value = self.chain.value(signal, self._free)
        if np.count_nonzero(signal) <= self.budget and value < self.value:
            self.signal, self.support, self.value = signal, support, value
        return value

    def step(self) -> None:
        """Solve one penalized program."""
        chain = self.chain
        if self._high is None:
            price = 0.0
        else:
            (low, f_low), (high, f_high) = self._low, self._high
            price = (f_low - f_high) / (high - low)
        tilted, support, n_pieces, *_ = sweep(
            chain.y, chain.weights, chain.edges, np.full(chain.size, price), chain.nonnegative,
            False,
        )  # fmt: skip
        self.n_programs += 1
        self.n_pieces += int(n_pieces)
        count = int(np.count_nonzero(support))
        value = self.offer(support)
        bound = float(tilted) - price * self.budget
        if bound > self.bound or self._high is None:
            self.bound, self.price = bound, price
        settled = self.value - self.bound <= SAME * abs(self.value)
        if settled or count == self.budget or (self._high is None and count <= self.budget):
            if not settled:
                self.bound = max(self.bound, min(bound, value))
            self.is_exact = self.done = True
            return
        if self._high is None:
            self._high = (count, value)
            return
        (low, f_low), (high, f_high) = self._low, self._high
        line = f_low + price * low
        if count in (low, high) or float(tilted) >= line - SAME * abs(line):
            self.done = True
        elif count < self.budget:
            self._low = (count, value)
        else:
            self._high = (count, value)

    def solution(self, status: Status | None, *, n_states: int = 0) -> Solution:
        """Return the best signal so far with its bound."""
        return Solution(
            self.signal,
            self.support,
            self.value,
            min(self.bound, self.value),
            self.price,
            status or Status.CONVERGED,
            {
                "n_programs": self.n_programs,
                "n_pieces": self.n_pieces,
                "n_states": n_states,
            },
        )
