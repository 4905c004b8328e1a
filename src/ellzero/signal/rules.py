"""Rules on the support of a chain: exact, penalized or with limits on nonzeros and runs."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Status
from ellzero.kernels.chain import sweep
from ellzero.kernels.chain_rules import LEAST, NOTHING, rules_program
from ellzero.signal.budget import FIRST_MARGIN, SAME, WIDEN, Callback
from ellzero.signal.solution import Bools, Floats, Integers, Solution

if TYPE_CHECKING:
    from ellzero.signal.chain import Chain

# States (node, nonzeros, runs, age) up to which a program with limits is solved outright.
OUTRIGHT = 300_000
# Programs after which the search for multipliers is content with the best it has.
MOST_PROGRAMS = 60


class Messages(NamedTuple):
    """Messages of a program, as `rules_program` keeps them."""

    kept: Floats
    first: Integers
    bases: Floats
    zero: Floats


NONE = Messages(np.empty((0, 4)), np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1))


class Ruled(NamedTuple):
    """What one program returned."""

    value: float
    support: Bools
    n_states: int
    n_pieces: int
    messages: Messages


def run_program(
    chain: Chain,
    price: float,
    bump: float,
    *,
    spare: float = 0.0,
    budget: int = -1,
    most_bumps: int = -1,
    limit: float = math.inf,
    rest: Messages = NONE,
    keep: int = NOTHING,
    flipped: bool = False,
) -> Ruled:
    """Run the program of `ellzero.kernels.chain_rules` on a chain.

    Parameters
    ----------
    chain : Chain
        Data.
    price, bump : float
        Cost of a node of the support that counts, and of a run.
    spare : float, default=0.0
        Cost of a run that a limit would still allow.
    budget, most_bumps : int, default=-1
        Limits; -1 for none.
    limit : float, default=inf
        Cost above which states are given up.
    rest : Messages, default=NONE
        Messages of the flipped chain, with a limit.
    keep : int, default=NOTHING
        Which messages to keep.
    flipped : bool, default=False
        Whether to run from the last node to the first, and pay runs where they begin there.

    Returns
    -------
    Ruled
        Value, support, work and messages.
    """
    step = -1 if flipped else 1
    value, on, n_states, n_pieces, *messages = rules_program(
        np.ascontiguousarray(chain.y[::step]), np.ascontiguousarray(chain.weights[::step]),
        np.ascontiguousarray(chain.edges[::step]), _kinds(chain)[::step].copy(), float(price),
        float(bump), float(spare), flipped, budget, most_bumps, chain.length, chain.distance,
        chain.nonnegative, float(limit), *rest, keep,
    )  # fmt: skip
    return Ruled(float(value), on, int(n_states), int(n_pieces), Messages(*messages))


def _kinds(chain: Chain) -> NDArray[np.int8]:
    return np.ones(chain.size, dtype=np.int8) if chain.kinds is None else chain.kinds


def least_sizes(chain: Chain) -> tuple[float, float]:
    """Return the fewest runs that rules allow, and the fewest nodes that count.

    Parameters
    ----------
    chain : Chain
        Data; the limit on runs holds for the count of nodes.

    Returns
    -------
    n_bumps, n_nonzero : float
        Infinity where no support keeps to the rules.
    """
    from dataclasses import replace

    empty = replace(
        chain,
        y=np.zeros(chain.size),
        weights=np.zeros(chain.size),
        edges=np.zeros(max(chain.size - 1, 0)),
    )
    runs = run_program(empty, 0.0, 1.0).value
    most = -1 if chain.most_bumps is None else chain.most_bumps
    return runs, run_program(empty, 1.0, 0.0, most_bumps=most).value


class _Plane(NamedTuple):
    """A program at some multipliers: a plane below the optimal value over limits."""

    value: float
    # How far nonzeros and runs are above their limits.
    over: tuple[int, int]


class _Search:
    """Best point so far under limits, and the multipliers with the best bound."""

    def __init__(self, chain: Chain, price: float, budget: int | None) -> None:
        self.chain = chain
        self.price = price
        self.budget = budget
        self.support: Bools = np.zeros(chain.size, dtype=np.bool_)
        self.signal: Floats = np.zeros(chain.size)
        self.value = math.inf
        self.bound = -math.inf
        self.multipliers = (0.0, 0.0)
        self.planes: list[_Plane] = []
        self.n_programs = 0
        self.n_pieces = 0
        self.n_states = 0

    def take(self, found: Ruled) -> _Plane:
        """Learn from what a program returned."""
        chain, support = self.chain, found.support
        self.n_programs += 1
        self.n_pieces += found.n_pieces
        signal = refit_within(chain, support)
        value, count, runs = ruled_value(chain, signal, support, self.price)
        over_count = 0 if self.budget is None else count - self.budget
        over_runs = 0 if chain.most_bumps is None else runs - chain.most_bumps
        if over_count <= 0 and over_runs <= 0 and value < self.value:
            self.signal, self.support, self.value = signal, support, value
        return _Plane(value, (over_count, over_runs))

    @property
    def is_exact(self) -> bool:
        """Whether the bound has met the value."""
        return math.isfinite(self.value) and self.value - self.bound <= SAME * abs(self.value)

    def step(self, most: float) -> bool:
        """Solve a program at the multipliers that look best; return whether it was of use."""
        multipliers, reached = self._ascend(most)
        if self.planes and reached <= self.bound + SAME * abs(reached):
            return False
        count_price, run_price = multipliers
        found = run_program(self.chain, self.price + count_price, self.chain.bump + run_price)
        plane = self.take(found)
        self.planes.append(plane)
        bound = found.value - count_price * (self.budget or 0)
        bound -= run_price * (self.chain.most_bumps or 0)
        if bound > self.bound:
            self.bound, self.multipliers = bound, multipliers
        return True

    def _ascend(self, most: float) -> tuple[tuple[float, float], float]:
        """Return the multipliers at which the planes so far are highest, and that height."""
        from scipy.optimize import linprog  # type: ignore[attr-defined]

        if not self.planes:
            return (0.0, 0.0), math.inf
        # Heights relative to the lowest plane, in units of the largest multiplier.
        least = min(plane.value for plane in self.planes)
        rows = [[-plane.over[0], -plane.over[1], 1.0] for plane in self.planes]
        right = [(plane.value - least) / most for plane in self.planes]
        both = (self.budget is not None, self.chain.most_bumps is not None)
        bounds = [(0.0, 1.0 if given else 0.0) for given in both]
        answer = linprog([0.0, 0.0, -1.0], rows, right, bounds=[*bounds, (None, None)])
        if answer.x is None:
            return (0.0, 0.0), -math.inf
        count_price, run_price, height = (float(v) * most for v in answer.x)
        return (max(count_price, 0.0), max(run_price, 0.0)), height + least

    def solution(self, status: Status) -> Solution:
        """Return the best signal so far with its bound."""
        return Solution(
            self.signal,
            self.support,
            self.value,
            min(self.bound, self.value),
            self.price if self.budget is None else self.multipliers[0],
            status,
            {
                "n_programs": self.n_programs,
                "n_pieces": self.n_pieces,
                "n_states": self.n_states,
                "bump_multiplier": self.multipliers[1],
            },
        )


def refit_within(chain: Chain, support: Bools) -> Floats:
    """Return the best signal that is zero off a support, nonnegative where it must be."""
    if chain.nonnegative:
        cost = np.where(support, 0.0, np.inf)
        _, support, *_ = sweep(chain.y, chain.weights, chain.edges, cost, 0.0, True, False)
    return chain.refit(support)


def ruled_value(
    chain: Chain, signal: Floats, support: Bools, price: float
) -> tuple[float, int, int]:
    """Return the objective with the costs of a support, its nodes that count and its runs."""
    count = chain.count(support)
    runs = int(np.count_nonzero(np.diff(support, prepend=False) & support))
    return chain.value(signal, 0.0) + price * count + chain.bump * runs, count, runs


def solve_ruled(
    chain: Chain,
    *,
    price: float | None = None,
    budget: int | None = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return an optimal signal whose support keeps to the rules of a chain.

    Parameters
    ----------
    chain : Chain
        Data and rules; some support must keep to them, see `least_sizes`.
    price : float or None, default=None
        Cost of a node of the support that counts.
    budget : int or None, default=None
        Most nodes of the support that count; exactly one of the two is given.
    time_limit : float or None, default=None
        Seconds after which no further program begins; the best signal so far is returned with
        the bound of the multipliers.
    callback : callable or None, default=None
        Called as ``callback(n_programs, value, lower_bound)``; a true return value stops.

    Returns
    -------
    Solution
        Optimal when its status is CONVERGED.

    Notes
    -----
    Without limits one program. Limits on nonzeros and runs: small cases by the program that
    counts them, unpruned; others by multipliers (cutting planes on the concave dual function)
    and the counting program in a window around their bound, as for budgets without rules.
    """
    began = time.perf_counter()
    search = _Search(chain, price or 0.0, budget)
    limited = (
        (-1 if budget is None else budget),
        (-1 if chain.most_bumps is None else chain.most_bumps),
    )
    if max(limited) < 0:
        return _solve_unlimited(chain, search)
    states = chain.size * chain.length * (limited[0] + 2.0) * (limited[1] + 2.0)
    if states <= OUTRIGHT:
        found = run_program(
            chain, search.price, chain.bump, budget=limited[0], most_bumps=limited[1]
        )
        search.take(found)
        search.n_states = found.n_states
        search.bound = min(found.value, search.value)
        return search.solution(Status.CONVERGED)

    def stop() -> Status | None:
        if callback is not None and callback(search.n_programs, search.value, search.bound):
            return Status.INTERRUPTED
        if time_limit is not None and time.perf_counter() - began > time_limit:
            return Status.TIME_LIMIT
        return None

    # At this price no node and no run is kept that the rules can do without.
    most = 1.01 * (
        float(chain.weights @ chain.y**2) + chain.size * (search.price + chain.bump)
    ) + math.ulp(1.0)
    stopped: Status | None = None
    while search.n_programs < MOST_PROGRAMS and not search.is_exact and search.step(most):
        stopped = stop()
        if stopped is not None and math.isfinite(search.value):
            break
    if search.is_exact or (stopped is not None and math.isfinite(search.value)):
        return search.solution(Status.CONVERGED if search.is_exact else stopped or Status.STALLED)
    count_price, run_price = search.multipliers
    paid = (search.price + count_price, chain.bump + run_price)
    rest = run_program(chain, *paid, keep=LEAST, flipped=True).messages
    shift = count_price * max(limited[0], 0) + run_price * max(limited[1], 0)
    tilted = search.bound + shift
    margin = FIRST_MARGIN * max(count_price, run_price, SAME * abs(tilted))
    while True:
        limit = tilted + margin
        found = run_program(
            chain, *paid, spare=run_price, budget=limited[0], most_bumps=limited[1],
            limit=limit + SAME * abs(limit), rest=rest,
        )  # fmt: skip
        search.n_states += found.n_states
        if math.isfinite(found.value):
            search.take(found)
        if found.value <= limit:
            search.bound = max(search.bound, min(search.value, found.value - shift))
            return search.solution(Status.CONVERGED)
        search.bound = max(search.bound, min(search.value, limit - shift))
        stopped = stop()
        if stopped is not None and math.isfinite(search.value):
            return search.solution(stopped)
        margin *= WIDEN


def _solve_unlimited(chain: Chain, search: _Search) -> Solution:
    """Solve the program with costs alone."""
    plain = chain.length == chain.distance == 1
    if plain and (chain.kinds is None or not (chain.kinds == 0).any()):
        # One message instead of an automaton.
        value, support, n_pieces, *_ = sweep(
            chain.y, chain.weights, chain.edges, chain.costs(search.price), chain.bump,
            chain.nonnegative, False,
        )  # fmt: skip
        found = Ruled(float(value), support, 0, int(n_pieces), NONE)
    else:
        found = run_program(chain, search.price, chain.bump)
    search.take(found)
    search.n_states = found.n_states
    search.bound = min(found.value, search.value)
    return search.solution(Status.CONVERGED)
