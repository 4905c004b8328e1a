"""Best states for several sizes: growth, sweeps, kicks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ellzero.subset.glm_search import LEAST, Search, Separated, State
from ellzero.subset.results import Integers

# Numbers that a scan among the units that looked best goes through.
WORK = 2**16
# Exchanges that are solved before a search ends.
CHECKED = 40
# What a perturbation that leads back to the best counts, against one that leads elsewhere; half
# of it among few units.
HOME = 16


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
        self._sweep()
        moved = [self._perturb(size) for size in self.sizes]
        if any(moved):
            # What one budget learned helps its neighbors.
            self._sweep()
        for size in self.sizes:
            self._compare(size)

    def _sweep(self) -> None:
        """Shrink and grow through all sizes until nothing changes."""
        if len(self.sizes) > 1:
            for _ in range(3):
                if not (self._down() | self._up(self.best[min(self.best)])):
                    break

    def at(self, size: int) -> State:
        """Return the best state of at most a size."""
        return min((s for n, s in self.best.items() if n <= size), key=lambda s: s.value)

    def _record(self, size: int, state: State) -> bool:
        """Keep a state that is better than the best of its size; return whether it is."""
        known = self.best.get(size)
        if known is not None and not state.value < known.value - LEAST * abs(known.value):
            return False
        self.best[size] = state
        if size in self.sizes:
            self.report(size, state)
        return True

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

    def _perturb(self, size: int) -> bool:
        """Kick the best states of a size until nothing new comes; return whether that helped."""
        search, plan = self.search, self.plan
        free = size - len(search.rules.always)
        if size not in self.best or free < 1 or len(self.best[size].units) < size:
            return False
        before = self.best[size]
        generator = np.random.default_rng(size)
        inner, numbers = self._narrow(size)
        pool = [self._enter(inner, numbers, self.best[size])]
        idle = 0
        # Among few units perturbations cost little.
        patience = plan.patience * (1 if inner is not search else 2)
        home = HOME if inner is not search else HOME // 2
        for n in range(plan.kicks):
            if idle >= patience:
                break
            base = pool[n % len(pool)]
            amount = 2 + n % max(1, min(4, (free + 1) // 2))
            amount = min(amount, len(base.units) - len(search.rules.always))
            # The first ones are greedy.
            found = inner.kick(base, amount, min(3, n // 2), generator)
            # Coming home again and again is the sign of an easy problem.
            idle += home if found.key == pool[0].key else 1
            if all(found.key != s.key for s in pool):
                pool = sorted([*pool, found], key=lambda s: s.value)[: plan.population]
            if len(found.units) < size or not found.value < self.best[size].value:
                continue
            whole = found
            if inner is not search:
                search.learn(inner, numbers)
                whole = search.adopt(found, numbers)
            whole = search.descend(whole)
            if self._record(size, whole):
                idle = 0
                if inner is not search:
                    inner, numbers = self._narrow(size)
                    pool = [self._enter(inner, numbers, self.best[size])]
        if inner is not search:
            search.learn(inner, numbers)
        # Prices are not exact: the last word has more of them solved.
        self._record(size, search.descend(self.best[size], CHECKED))
        return self.best[size] is not before

    def _compare(self, size: int) -> None:
        """Raise `Separated` when the loss falls lower where it has no minimizer."""
        if size not in self.best:
            return
        value = self.best[size].value
        lower = [
            (infimum, sorted(units))
            for units, infimum in self.search.receding.items()
            if len(units) <= size and infimum < value - LEAST * abs(value)
        ]
        if lower:
            raise Separated(tuple(min(lower)[1]))

    def _narrow(self, size: int) -> tuple[Search, Integers]:
        """Return the search among the units that looked best so far, and which these are."""
        search = self.search
        # Few samples make a scan cheap.
        count = max(100, 8 * size, min(1000, WORK // search.design.n_samples))
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
