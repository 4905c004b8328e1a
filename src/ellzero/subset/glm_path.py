"""Best states for several sizes: growth, sweeps, kicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ellzero.subset.glm_search import LEAST, Search, State
from ellzero.subset.results import Integers


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work a search may do for each size.

    Parameters
    ----------
    kicks : int
        Most perturbations.
    patience : int
        Perturbations without progress after which it ends.
    population : int
        Local optima that are perturbed in turn.
    """

    kicks: int
    patience: int
    population: int


class Path:
    """Best states by size.

    Parameters
    ----------
    search : Search
        The search.
    sizes : list of int
        Sizes asked for, ascending.
    plan : Plan
        How much work.
    report : callable
        Called with the size and the state whenever a state is the best so far.
    """

    def __init__(
        self,
        search: Search,
        sizes: list[int],
        plan: Plan,
        report: Callable[[int, State], None],
    ) -> None:
        self.search = search
        self.sizes = sizes
        self.plan = plan
        self.report = report
        self.best: dict[int, State] = {}

    def run(self) -> None:
        """Search; what was found before a stop stays in `best`."""
        state = self.search.null()
        self._record(len(state.units), state)
        self._up(state)
        if len(self.sizes) > 1:
            for _ in range(3):
                if not (self._down() | self._up(self.best[min(self.best)])):
                    break
        for size in self.sizes:
            self._perturb(size)

    def at(self, size: int) -> State:
        """Return the best state of at most a size."""
        return min((s for n, s in self.best.items() if n <= size), key=lambda s: s.value)

    def _record(self, size: int, state: State) -> bool:
        """Keep a state that is the best of its size; return whether it is by more than rounding."""
        known = self.best.get(size)
        if known is not None and not state.value < known.value:
            return False
        self.best[size] = state
        if size in self.sizes:
            self.report(size, state)
        return known is None or state.value < known.value - LEAST * abs(known.value)

    def _up(self, state: State) -> bool:
        """Grow to the largest size; return whether a state became better."""
        better = False
        wanted = set(self.sizes)
        for size in range(len(self.search.rules.always) + 1, self.sizes[-1] + 1):
            state = self.search.fill(state, size)
            if size in wanted:
                state = self._settle(state, size)
            better |= self._record(size, state)
            if self.best[size].value < state.value:
                state = self.best[size]
            if len(state.units) < size:
                # No unit helps any more; the sizes ahead are the same.
                for ahead in self.sizes:
                    if ahead > size:
                        self._record(ahead, state)
                break
        return better

    def _settle(self, state: State, size: int) -> State:
        """Return the local optimum of a size."""
        state = self.search.descend(state)
        while len(state.units) < size:
            filled = self.search.fill(state, size)
            if filled is state:
                break
            state = self.search.descend(filled)
        return state

    def _down(self) -> bool:
        """Shrink from the largest size; return whether a state became better."""
        better = False
        state = self.best[max(self.best)]
        wanted = set(self.sizes)
        while len(state.units) > len(self.search.rules.always) + 1:
            smaller = self.search.shrink(state)
            if smaller is None:
                break
            size = len(smaller.units)
            if size in wanted:
                smaller = self._settle(smaller, size)
            better |= self._record(size, smaller)
            state = self.best[size]
        return better

    def _perturb(self, size: int) -> None:
        """Kick the best states of a size until nothing new comes."""
        search, plan = self.search, self.plan
        free = size - len(search.rules.always)
        if size not in self.best or free < 1 or len(self.best[size].units) < size:
            return
        generator = np.random.default_rng(size)
        inner, numbers = self._narrow(size)
        pool = [self._enter(inner, numbers, self.best[size])]
        idle = 0
        for n in range(plan.kicks):
            if idle >= plan.patience:
                break
            base = pool[n % len(pool)]
            amount = min(free, 2 + n % max(1, min(4, free // 2)))
            found = inner.kick(base, amount, generator)
            idle += 1
            if all(found.key != s.key for s in pool):
                pool = sorted([*pool, found], key=lambda s: s.value)[: plan.population]
            if len(found.units) < size or not found.value < self.best[size].value:
                continue
            whole = found if inner is search else search.adopt(found, numbers)
            whole = search.descend(whole)
            if self._record(size, whole):
                idle = 0
                if inner is not search:
                    inner, numbers = self._narrow(size)
                    pool = [self._enter(inner, numbers, self.best[size])]

    def _narrow(self, size: int) -> tuple[Search, Integers]:
        """Return the search among the units that looked best so far, and which these are."""
        search = self.search
        count = max(100, 8 * size)
        everything = np.arange(search.units.count)
        if search.units.count <= 2 * count:
            return search, everything
        interest = np.where(search.rules.open, search.interest, -1.0)
        interest[list(self.best[size].units)] = np.inf
        interest[list(search.rules.always)] = np.inf
        numbers = np.sort(np.argsort(-interest, kind="stable")[:count])
        return search.restrict(numbers), numbers

    def _enter(self, inner: Search, numbers: Integers, state: State) -> State:
        """Return a state of the whole search as one of a narrow search."""
        if inner is self.search:
            return state
        return State(
            tuple(np.searchsorted(numbers, state.units).tolist()),
            state.rows,
            state.fit,
            state.inverse,
        )
