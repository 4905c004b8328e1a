"""Walks over sets of items: growing, shrinking, exchanging, and kicks out of local optima."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from ellzero.core.result import Status
from ellzero.subset.effort import Effort
from ellzero.subset.results import Integers

Items = tuple[int, ...]
Callback = Callable[[int, Mapping[str, Any]], bool | None]

# Kicks without progress after which to stop, for every hundred allowed: at least as many as it
# took to find the last improvement.
IDLE = 3
# Items beyond which a search ends as soon as its local optima repeat.
MANY = 64


def _settled(n_kicks: int, n_optima: int, effort: Effort) -> bool:
    """Return whether perturbations have shown all local optima that are likely to exist.

    With w of them after N, about w (N - 1) / (N - w - 2) exist.
    """
    if n_optima == 1:
        # All of them led back to the start.
        return n_kicks >= max(effort.agree // 3, 1)
    left = n_kicks - n_optima - 2
    enough = n_kicks >= effort.agree and left > 0
    return enough and n_optima * (n_kicks - 1) < (n_optima + 0.5) * left


class AbstractNode:
    """A set of items and what it costs.

    Parameters
    ----------
    items : tuple of int
        Chosen items, ascending.
    value : float
        What is minimized.
    """

    __slots__ = ("items", "value")

    def __init__(self, items: Items, value: float) -> None:
        self.items = items
        self.value = value


Node = TypeVar("Node", bound=AbstractNode)


class AbstractNeighborhood(ABC, Generic[Node]):
    """Prices the moves from one set of items to the next."""

    fixed: Items
    """Items of every set."""

    @abstractmethod
    def node(self, items: Items) -> Node:
        """Return the node of ascending items."""

    @abstractmethod
    def candidates(self, node: Node) -> Integers:
        """Return the items that may join."""

    @abstractmethod
    def grow(self, node: Node) -> Node | None:
        """Return the node after the best addition; None when nothing can be added."""

    @abstractmethod
    def shrink(self, node: Node) -> Node | None:
        """Return the node after the cheapest removal; None when all items are fixed."""

    @abstractmethod
    def exchange(self, node: Node) -> Node | None:
        """Return a better node one exchange away; None when there is none."""

    def may_unite(self) -> bool:
        """Return whether the union of two sets is a set that may be shrunk."""
        return True


class _OutOfTime(Exception):
    """The time limit has passed, or the callback asks to stop."""


@dataclass(slots=True)
class Walk(Generic[Node]):
    """A search over sets of several sizes at once.

    Parameters
    ----------
    hood : AbstractNeighborhood
        Prices the moves.
    sizes : sequence of int
        Sizes asked for.
    effort : Effort
        How hard to try.
    time_limit : float or None
        Seconds; None means no limit.
    callback : callable or None
        Called as ``callback(improvement, {"budget": size, "value": value})`` after every
        improvement; a true return value ends the search.
    unit : float
        What the values are multiplied by for the callback.
    """

    hood: AbstractNeighborhood[Node]
    sizes: Sequence[int]
    effort: Effort
    time_limit: float | None = None
    callback: Callback | None = None
    unit: float = 1.0
    best: dict[int, Node] = field(default_factory=dict)
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("improvements", "exchanges", "kicks", "sweeps"), 0)
    )
    status: Status = Status.CONVERGED
    _end: float = float("inf")

    def run(self) -> None:
        """Search; `best` then has the best node of every size that was reached."""
        if self.time_limit is not None:
            self._end = time.monotonic() + self.time_limit
        try:
            self._sweep_up()
            self._sweep(self.sizes)
            for size in self.sizes:
                if size in self.best and self._kick(size):
                    self._sweep(self.sizes)
        except _OutOfTime:
            pass
        except KeyboardInterrupt:
            self.status = Status.INTERRUPTED
            if not self.best:
                raise

    def nodes(self) -> list[Node]:
        """Return the best node of every size asked for, never worse than that of a smaller one."""
        out: list[Node] = []
        for size in self.sizes:
            fitting = [node for key, node in self.best.items() if key <= size]
            out.append(min(fitting, key=lambda node: (node.value, len(node.items))))
        return out

    def _keep(self, node: Node) -> bool:
        size = len(node.items)
        known = self.best.get(size)
        if known is None or node.value < known.value:
            self.best[size] = node
            self.counts["improvements"] += 1
            if self.callback is not None:
                news = {"budget": size, "value": node.value * self.unit}
                if self.callback(self.counts["improvements"], news):
                    self.status = Status.INTERRUPTED
                    raise _OutOfTime
            return True
        return False

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            self.status = Status.TIME_LIMIT
            raise _OutOfTime

    def _improve(self, node: Node) -> Node:
        while True:
            self._check_time()
            better = self.hood.exchange(node)
            if better is None:
                return node
            self.counts["exchanges"] += 1
            node = better
            self._keep(node)

    def _sweep_up(self) -> None:
        """Grow past the largest size and shrink back to it."""
        node: Node | None = self.hood.node(self.hood.fixed)
        assert node is not None
        self._keep(node)
        wanted, largest = set(self.sizes), max(self.sizes)
        top = largest + max(2, largest // 4)
        while node is not None and len(node.items) < top:
            node = self.hood.grow(node)
            if node is not None:
                self._keep(node)
                if len(node.items) in wanted:
                    node = self._improve(node)
        last = max(self.best)
        back: Node | None = self.best[last]
        while back is not None and len(back.items) > largest:
            back = self.hood.shrink(back)
            if back is not None and self._keep(back) and len(back.items) in wanted:
                self._improve(back)

    def _sweep(self, sizes: Sequence[int]) -> None:
        """Carry what is good at one size down and up to the others, until nothing changes."""
        for _ in range(4):
            self.counts["sweeps"] += 1
            changed = False
            for size in sorted(self.best, reverse=True):
                changed |= self._arrive(self.hood.shrink(self.best[size]), sizes)
            for size in sorted(self.best):
                if size < max(sizes):
                    changed |= self._arrive(self.hood.grow(self.best[size]), sizes)
            if not changed:
                break

    def _arrive(self, node: Node | None, sizes: Sequence[int]) -> bool:
        if node is None or not self._keep(node):
            return False
        if len(node.items) in sizes:
            self._improve(node)
        return True

    def _kick(self, size: int) -> bool:
        """Leave local optima of one size; return whether a better one was found."""
        generator = np.random.default_rng(size)
        population = [self.best[size]]
        seen = {self.best[size].items}
        loose = size - len(self.hood.fixed)
        if loose == 0:
            return False
        # Neighboring sizes learn from each other and share the kicks.
        # A kick costs about as much as eight of the compiled ones that an effort counts.
        kicks = self.effort.kicks // 8
        patience = -(-IDLE * kicks // (25 * (len(self.sizes) + 3)))
        last, optima = -1, {self.best[size].items}
        # Among few items kicks cost little, and more of them are worth it.
        many = self.hood.candidates(self.best[size]).size > MANY
        for turn in range(kicks):
            if turn - last > max(patience, last):
                break
            if many and _settled(turn, len(optima), self.effort):
                break
            self.counts["kicks"] += 1
            parent = population[int(generator.integers(len(population)))]
            if turn % 3 == 2 and len(population) > 1 and self.hood.may_unite():
                child = self._unite(parent, population, generator)
            else:
                child = self._shake(parent, loose, generator)
            if child is None or child.items in seen:
                continue
            seen.add(child.items)
            child = self._improve(child)
            seen.add(child.items)
            optima.add(child.items)
            if child.value < min(node.value for node in population):
                last = turn
            if all(child.items != node.items for node in population):
                population.append(child)
                population.sort(key=lambda node: (node.value, node.items))
                del population[self.effort.population :]
        return last >= 0

    def _shake(self, parent: Node, loose: int, generator: np.random.Generator) -> Node | None:
        """Exchange some items at random, then fill up with the best ones."""
        size = len(parent.items)
        free = [item for item in parent.items if item not in set(self.hood.fixed)]
        n_out = int(generator.integers(1, max(2, -(-loose // 2) + 1)))
        gone = {free[i] for i in generator.permutation(len(free))[:n_out].tolist()}
        node = self.hood.node(tuple(item for item in parent.items if item not in gone))
        candidates = [i for i in self.hood.candidates(node).tolist() if i not in gone]
        if candidates:
            entering = candidates[int(generator.integers(len(candidates)))]
            node = self.hood.node(tuple(sorted((*node.items, entering))))
        while len(node.items) < size:
            grown = self.hood.grow(node)
            if grown is None:
                return None
            node = grown
        return node

    def _unite(
        self, parent: Node, population: list[Node], generator: np.random.Generator
    ) -> Node | None:
        """Shrink the union of two local optima."""
        other = population[int(generator.integers(len(population)))]
        size = len(parent.items)
        node: Node | None = self.hood.node(tuple(sorted(set(parent.items) | set(other.items))))
        while node is not None and len(node.items) > size:
            node = self.hood.shrink(node)
        return node
