"""Sweeps up and down over the sizes of a subset, until no size improves."""

from __future__ import annotations

import numpy as np

from ellzero.subset.results import Integers
from ellzero.subset.stopping import Stopper
from ellzero.subset.walker import Walker

# Relative gain below which two supports count as equally good.
SAME = 1e-11


class Frontier:
    """The best subset known of every size, and the sizes whose neighbors have not seen it.

    Parameters
    ----------
    low, high : int
        Smallest and largest size.
    """

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.explained = np.full(high + 1, -1.0)
        self.members: list[Integers] = [np.zeros(0, np.int64)] * (high + 1)
        self.stood: Integers | None = None
        self.rising: set[int] = set()
        self.falling: set[int] = set()

    def offer(self, members: Integers, explained: float) -> bool:
        """Keep a subset if it is the best of its size; return whether it is."""
        k = members.size
        if explained <= self.explained[k] * (1 + SAME):
            return False
        self.explained[k] = explained
        self.members[k] = members
        self.rising.add(k)
        self.falling.add(k)
        return True

    def best_within(self, budget: int) -> Integers:
        """Return the best members of at most `budget`."""
        known = self.explained[: min(budget, self.high) + 1]
        return self.members[int(np.argmax(known))]


def visit(frontier: Frontier, walker: Walker, stopper: Stopper) -> None:
    """Descend from where the walker is, and offer what is found."""
    walker.descend()
    explained, members = walker.explained, walker.members
    if frontier.offer(members, explained):
        frontier.stood = members
    stopper.report("path", members.size, explained)


def sweep(frontier: Frontier, walker: Walker, stopper: Stopper) -> None:
    """Spread every improvement to the sizes above and below, until nothing improves.

    Parameters
    ----------
    frontier : Frontier
        Best subsets, updated.
    walker : Walker
        Moved.
    stopper : Stopper
        Raises when time is over.
    """
    while frontier.rising or frontier.falling:
        while frontier.rising:
            k = min(frontier.rising)
            frontier.rising.discard(k)
            if k >= frontier.high:
                continue
            _stand_on(frontier, walker, k)
            if walker.grow():
                visit(frontier, walker, stopper)
        while frontier.falling:
            k = max(frontier.falling)
            frontier.falling.discard(k)
            if k <= frontier.low:
                continue
            _stand_on(frontier, walker, k)
            if walker.shrink():
                visit(frontier, walker, stopper)


def pursue(frontier: Frontier, walker: Walker, stopper: Stopper) -> None:
    """Offer the supports of a matching pursuit, and what its last one shrinks back to.

    A path of local optima need not lead past all that are better.
    """
    walker.move_to(frontier.members[frontier.low])
    while walker.size < frontier.high and walker.follow():
        _offer(frontier, walker, stopper)
    while walker.size > frontier.low and walker.shrink():
        _offer(frontier, walker, stopper)


def _offer(frontier: Frontier, walker: Walker, stopper: Stopper) -> None:
    frontier.offer(walker.members, walker.explained)
    stopper.report("path", walker.size, walker.explained)


def _stand_on(frontier: Frontier, walker: Walker, size: int) -> None:
    wanted = frontier.members[size]
    stood, frontier.stood = frontier.stood, None
    if stood is wanted:
        return
    if walker.size != size or set(walker.members.tolist()) != set(wanted.tolist()):
        walker.move_to(wanted)
