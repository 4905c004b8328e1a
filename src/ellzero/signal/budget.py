"""Budgets by multipliers: the envelope of penalized programs, on chains and on forests alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from ellzero.core.result import Status
from ellzero.signal.solution import Bools, Floats, Solution

# Two tilted values closer than this, relatively, are the same.
SAME = 1e-12
# Share of the multiplier by which the first count-indexed program looks beyond the envelope, and
# the factor by which the next one looks farther.
FIRST_MARGIN, WIDEN = 0.05, 4.0

Callback = Callable[[int, float, float], object]


class Data(Protocol):
    """What the envelope needs of a problem."""

    @property
    def size(self) -> int:
        """Number of samples."""

    def count(self, support: Bools) -> int:
        """Return how many nodes of a support count."""

    def refit(self, support: Bools) -> Floats:
        """Return the best signal on a support."""

    def value(self, signal: Floats, price: float) -> float:
        """Return the objective, with the price of every nonzero that counts."""

    def program(self, price: float) -> tuple[float, Bools, int]:
        """Return the value and support of the penalized program, and its pieces."""


class Line(NamedTuple):
    """A penalized program that has been solved: a line below the optimal value over budgets."""

    price: float
    tilted: float
    n_counted: int
    value: float
    support: Bools


class Envelope:
    """Lower envelope of the optimal value over budgets, around one of them.

    Parameters
    ----------
    data : Chain or Forest
        Data.
    budget : int
        Most nonzeros that count.
    lines : list of Line
        Programs solved for other budgets of the same data, used and added to.
    """

    def __init__(self, data: Data, budget: int, lines: list[Line]) -> None:
        self.data = data
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
        self.support: Bools = np.zeros(data.size, dtype=np.bool_)
        self.signal: Floats = np.zeros(data.size)
        self.value = data.value(self.signal, 0.0)
        self.bound = -math.inf
        for line in lines:
            self._take(line)
            if self.done:
                return

    def offer(self, support: Bools) -> float:
        """Take a support when it is within the budget and better; return its value."""
        signal = self.data.refit(support)
        value = self.data.value(signal, 0.0)
        if self.data.count(signal != 0.0) <= self.budget and value < self.value:
            self.signal, self.support, self.value = signal, support, value
        return value

    def step(self) -> None:
        """Solve one penalized program."""
        data = self.data
        if self._high is None:
            price = 0.0
        elif self._low is None:
            price = math.inf
        else:
            (low, f_low), (high, f_high) = self._low, self._high
            price = (f_low - f_high) / (high - low)
        tilted, support, n_pieces = data.program(price)
        self.n_programs += 1
        self.n_pieces += n_pieces
        value = data.value(data.refit(support), 0.0)
        line = Line(price, float(tilted), data.count(support), value, support)
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


# Takes a limit on the tilted cost; returns the best value within it, its support, and the states.
Close = Callable[[float], tuple[float, Bools, int]]


def search_budget(
    data: Data,
    budget: int,
    prepare: Callable[[float], Close],
    *,
    time_limit: float | None = None,
    callback: Callback | None = None,
    lines: list[Line] | None = None,
) -> Solution:
    """Return an optimal signal with at most `budget` nonzeros.

    Parameters
    ----------
    data : Chain or Forest
        Data.
    budget : int
        Most nonzeros that count.
    prepare : callable
        Takes a multiplier; returns the count-indexed program tilted by it, which takes a limit
        on tilted costs.
    time_limit : float or None, default=None
        Seconds after which no further program begins.
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
    search = Envelope(data, budget, [] if lines is None else lines)

    def stop() -> Status | None:
        if callback is not None and callback(search.n_programs, search.value, search.bound):
            return Status.INTERRUPTED
        if time_limit is not None and time.perf_counter() - began > time_limit:
            return Status.TIME_LIMIT
        return None

    stopped: Status | None = None
    while not search.done:
        search.step()
        stopped = stop()
        if stopped is not None and not search.done:
            return search.solution(stopped)
    if search.is_exact or stopped is not None:
        return search.solution(Status.CONVERGED if search.is_exact else stopped)
    price = search.price
    close = prepare(price)
    tilted, n_states = search.bound + price * budget, 0
    # Rounding alone must be within reach where the multiplier is zero.
    margin = max(FIRST_MARGIN * price, SAME * abs(tilted))
    while True:
        limit = tilted + margin
        best, support, states = close(limit + SAME * abs(limit))
        n_states += states
        search.n_programs += 1
        if math.isfinite(best):
            search.offer(support)
        if best <= limit:
            search.bound = max(search.bound, min(search.value, float(best) - price * budget))
            search.is_exact = True
            break
        # Everything within the window has been looked at: nothing is better than its edge.
        search.bound = max(search.bound, min(search.value, limit - price * budget))
        stopped = stop()
        if stopped is not None:
            break
        margin *= WIDEN
    return search.solution(stopped or Status.CONVERGED, n_states=n_states)
