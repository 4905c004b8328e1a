"""Chains: the exact program, penalized or with a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
    kinds : ndarray of shape (n,), int8, or None, default=None
        1 where a nonzero counts and costs, 0 where it is free, -1 where it is not allowed; None
        means 1 everywhere.
    bump : float, default=0.0
        Cost of every run of nonzeros, at least 0.
    """

    y: Floats
    weights: Floats
    edges: Floats
    nonnegative: bool = False
    kinds: NDArray[np.int8] | None = None
    bump: float = 0.0

    @property
    def size(self) -> int:
        """Number of samples."""
        return int(self.y.shape[0])

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


def count_bumps(support: Bools) -> int:
    """Return the number of runs of a support."""
    return int(np.count_nonzero(support[1:] & ~support[:-1]) + np.count_nonzero(support[:1]))


def solve_penalized(chain: Chain, price: float) -> Solution:
    """Return an optimal signal of the penalized form.

    Parameters
    ----------
    chain : Chain
        Data.
    price : float
        Cost of a nonzero that counts.

    Returns
    -------
    Solution
        Optimal, up to rounding of about 1e-11 of the value.

    Notes
    -----
    Time proportional to the pieces of all messages: a few times n, more for smoothness far above
    the weights.
    """
    value, support, n_pieces, most, held, *_ = sweep(
        chain.y, chain.weights, chain.edges, chain.costs(price), chain.bump, chain.nonnegative,
        False,
    )  # fmt: skip
    signal = chain.refit(support & ~held)
    found = chain.value(signal, price)
    if chain.bump > 0.0:
        found += chain.bump * count_bumps(support) + price * chain.count(support & (signal == 0.0))
    return Solution(
        signal,
        support,
        found,
        # The program is exact: what it has above the recomputed value is rounding.
        min(float(value), found),
        price,
        measures={"n_programs": 1, "n_pieces": int(n_pieces), "most_pieces": int(most)},
    )


class Line(NamedTuple):
    """A penalized program that has been solved: a line below the optimal value over budgets."""

    price: float
    tilted: float
    n_counted: int
    value: float
    support: Bools


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
    Multipliers first: every penalized program gives a line below the optimal value as a function
    of the budget, and their envelope is found with a handful of programs. Where it does not touch
    the budget, the count-indexed program closes the gap, in a window around the envelope that is
    widened until it proves optimality.
    """
    began = time.perf_counter()
    search = _Envelope(chain, budget, [] if lines is None else lines)
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
        chain.costs(price)[::-1].copy(), 0.0, chain.nonnegative, True,
    )  # fmt: skip
    kinds = np.ones(chain.size, dtype=np.int8) if chain.kinds is None else chain.kinds
    tilted, margin, n_states = search.bound + price * budget, FIRST_MARGIN * price, 0
    while True:
        limit = tilted + margin
        best, support, states = chain_counted(
            chain.y, chain.weights, chain.edges, kinds, price, budget, chain.nonnegative,
            limit + SAME * abs(limit), flipped[5], flipped[6], flipped[7],
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

    def __init__(self, chain: Chain, budget: int, lines: list[Line]) -> None:
        self.chain = chain
        self.budget = budget
        self.lines = lines
        self.n_programs = 0
        self.n_pieces = 0
        self.price = 0.0
        self.is_exact = False
        self.done = False
        # Counts and values on both sides of the budget: all off that counts, and all on that pays.
        self._low: tuple[int, float] | None = None
        self._high: tuple[int, float] | None = None
        self.support: Bools = np.zeros(chain.size, dtype=np.bool_)
        self.signal: Floats = np.zeros(chain.size)
        self.value = chain.value(self.signal, 0.0)
        self.bound = -math.inf
        for line in lines:
            self._take(line)
            if self.done:
                return

    def offer(self, support: Bools) -> float:
        """Take a support when it is within the budget and better; return its value."""
        signal = self.chain.refit(support)
        value = self.chain.value(signal, 0.0)
        if self.chain.count(signal != 0.0) <= self.budget and value < self.value:
            self.signal, self.support, self.value = signal, support, value
        return value

    def step(self) -> None:
        """Solve one penalized program."""
        chain = self.chain
        if self._high is None:
            price = 0.0
        elif self._low is None:
            price = math.inf
        else:
            (low, f_low), (high, f_high) = self._low, self._high
            price = (f_low - f_high) / (high - low)
        costs = chain.costs(price)
        tilted, support, n_pieces, *_ = sweep(
            chain.y, chain.weights, chain.edges, costs, 0.0, chain.nonnegative, False
        )
        self.n_programs += 1
        self.n_pieces += int(n_pieces)
        value = chain.value(chain.refit(support), 0.0)
        line = Line(price, float(tilted), chain.count(support), value, support)
        self.lines.append(line)
        self._take(line)

    def _take(self, line: Line) -> None:
        """Learn from a solved program; done where it closes the gap or no line drops."""
        price, tilted, count, value, support = line
        if count <= self.budget and value < self.value:
            self.offer(support)
        bound = tilted - (price * self.budget if self.budget else 0.0)
        if math.isinf(price):
            bound = value if self.budget == 0 else -math.inf
        if bound > self.bound:
            self.bound, self.price = bound, price
        settled = self.value - self.bound <= SAME * abs(self.value)
        at_budget = count == self.budget and math.isfinite(price)
        if settled or at_budget or (price == 0.0 and count <= self.budget):
            if not settled:
                self.bound = max(self.bound, min(bound, value))
            if not settled or math.isinf(self.price):
                self.price = price if math.isfinite(price) else 0.0
            self.is_exact = self.done = True
            return
        low, high = self._low, self._high
        if low is not None and high is not None:
            slope = (low[1] - high[1]) / (high[0] - low[0])
            chord = low[1] + slope * low[0]
            inside = low[0] < count < high[0]
            if slope == price and (not inside or tilted >= chord - SAME * abs(chord)):
                self.done = True
                return
        if count < self.budget:
            if low is None or count > low[0]:
                self._low = (count, value)
        elif count > self.budget and (high is None or count < high[0]):
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
