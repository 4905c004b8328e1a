"""Bounds on an optimal signal from below and above, tightened until they meet.

The penalized objective is submodular on R^n for every graph and every sign of the data. With
everything but some nodes fixed below a minimizer, their best values are below a minimizer too;
with the rest fixed above, they are above. Rows and columns of a grid, or sets of nodes that induce
forests, are solved exactly; for nonnegative signals so are windows that have cycles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ellzero.signal.graph import Lines, Mesh, blocks_of, parts_of
from ellzero.signal.proof import Fixing, Narrowing, Sweep, Window, split
from ellzero.signal.solution import Bools, Floats, Integers
from ellzero.signal.submodular import minimize

# Rounds of sweeps, widths of windows, undecided nodes that one window may have, and orders of it.
MOST_SWEEPS, WIDTHS, MOST_OPEN, MOST_ORDERS = 100, (8, 16, 32), 1200, 400
# Undecided nodes of the last components, and their orders.
MOST_LAST, MOST_LAST_ORDERS = 2500, 1500

Stop = Callable[[], bool]


class Bracket:
    """Nodes known to be on or off in an optimal nonnegative signal.

    Parameters
    ----------
    mesh : Mesh
        Data whose solutions are all at or above zero.
    price : float
        Cost of a nonzero that counts.
    stop : callable
        Asked between steps; true stops.

    Notes
    -----
    `on` and `off` grow; a minimizer with every node of `on` on and every node of `off` at zero
    always exists. `low` and `high` are the best signals on `on`, and on all but `off`.
    """

    def __init__(self, mesh: Mesh, price: float, stop: Stop) -> None:
        self.mesh = mesh
        self.price = price
        self.stop = stop
        self.given = mesh.costs(price)
        self.on: Bools = self.given <= 0
        self.off: Bools = (self.given == np.inf) | mesh.dead
        self.on &= ~self.off
        self.low: Floats = mesh.refit(self.on)
        self.high: Floats = mesh.refit(~self.off)
        self.fixings: list[Fixing] = []
        self.closings: list[Window] = []
        self.margin = 0.0
        self.lines = parts_of(mesh) if mesh.shape is not None else blocks_of(mesh, paths=True)
        self.n_windows = 0
        self.n_sweeps = 0

    @property
    def open(self) -> Bools:
        """Nodes that are not known."""
        return ~(self.on | self.off)

    @property
    def proof(self) -> Narrowing:
        """Everything that was done, for others to check."""
        left = int(np.count_nonzero(self.open))
        return Narrowing(self.price, self.fixings, self.closings, self.low, left)

    def cost(self) -> Floats:
        """Return the cost of every node that is not known; 0 where on, infinity where off."""
        return np.where(self.off, np.inf, np.where(self.on, 0.0, self.given))

    def narrow(self) -> None:
        """Fix as many nodes as sweeps and windows can; stop when asked."""
        self.sweep_until_stable()
        for width in WIDTHS:
            for shift in (0, width // 2):
                for is_low in (True, False):
                    if self.stop() or not self.open.any():
                        return
                    self._windows(width, shift, is_low)
            self.sweep_until_stable()
        self._close()

    def sweep_until_stable(self) -> None:
        """Solve lines from both sides while that decides more than a few nodes."""
        for _ in range(MOST_SWEEPS):
            before = int(np.count_nonzero(self.open))
            for is_low in (True, False):
                if before == 0 or self.stop():
                    return
                self._sweep(is_low)
            after = int(np.count_nonzero(self.open))
            # A few nodes more are cheaper to find by windows.
            if before - after <= 1e-3 * before:
                return

    def _sweep(self, is_low: bool) -> None:
        """Solve all lines with the rest fixed, and keep what turns on, or off."""
        level, steps = (self.low if is_low else self.high), []
        current = level.copy()
        for lines in self.lines:
            if self.stop():
                break
            y, weights = lines.given(self.mesh, level)
            _, support = lines.solve(y, weights, self.cost()[lines.nodes], self.mesh.nonnegative)
            found = lines.refit(y, weights, support)
            support = support & (found > 0)
            steps.append(Sweep(lines, support))
            self.n_sweeps += 1
            if is_low:
                self.on[lines.nodes[support]] = True
                current[lines.nodes] = np.maximum(current[lines.nodes], found)
            else:
                leaving = lines.nodes[~support]
                self.off[leaving[~self.on[leaving]]] = True
                current[lines.nodes] = np.minimum(current[lines.nodes], found)
        self._settle(is_low, level, list(steps), np.maximum(current, 0.0))

    def _settle(
        self, is_low: bool, level: Floats, steps: list[Sweep | Window], guess: Floats
    ) -> None:
        """Record steps, and move the level to the best signal on what is known."""
        if not steps:
            return
        self.fixings.append(Fixing(is_low, level, self.low, steps))
        if is_low:
            self.low = self.mesh.refit(self.on, guess)
        else:
            self.high = self.mesh.refit(~self.off, guess)

    def _windows(self, width: int, shift: int, is_low: bool) -> None:
        """Solve windows with the rest fixed, and keep what their bases prove."""
        level, steps = (self.low if is_low else self.high), []
        for nodes in self._pieces(width, shift):
            if self.stop():
                break
            if np.count_nonzero(self.open[nodes]) > MOST_OPEN:
                continue
            part = split(self.mesh, nodes, self.cost(), self.low, level)
            found = minimize(part.pairwise, most=MOST_ORDERS, stop=self.stop)
            self.n_windows += 1
            decided = (found.always if is_low else found.never) & self.open[part.nodes]
            if decided.any():
                (self.on if is_low else self.off)[part.nodes[decided]] = True
                steps.append(Window(nodes, found.orders, found.shares, found.chosen, decided))
        self._settle(is_low, level, list(steps), level)

    def _pieces(self, width: int, shift: int) -> Iterator[Integers]:
        """Return the connected parts of windows, without nodes that are off."""
        for nodes in windows_of(self.mesh, width, shift):
            if self.open[nodes].any():
                yield from self._components(nodes[~self.off[nodes]])

    def _components(self, nodes: Integers) -> Iterator[Integers]:
        """Return the connected parts of some nodes that hold an undecided one."""
        from scipy.sparse.csgraph import connected_components

        inside = self.mesh.matrix[nodes][:, nodes]
        count, labels = connected_components(inside, directed=False)
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=count))
        for piece in np.split(nodes[order], ends[:-1]):
            if self.open[piece].any():
                yield piece

    def _close(self) -> None:
        """Solve what is left, component by component; a gap that stays is added to the margin."""
        level = np.zeros(self.mesh.size)
        for nodes in list(self._components(np.flatnonzero(~self.off))):
            if self.stop():
                return
            count = int(np.count_nonzero(self.open[nodes]))
            if count > MOST_LAST or nodes.size > 4 * MOST_LAST:
                continue
            part = split(self.mesh, nodes, self.cost(), self.low, level)
            found = minimize(part.pairwise, most=MOST_LAST_ORDERS, stop=self.stop)
            self.n_windows += 1
            every = np.ones(part.nodes.size, dtype=np.bool_)
            self.closings.append(Window(nodes, found.orders, found.shares, found.chosen, every))
            self.margin += found.margin
            self.on[part.nodes[found.chosen]] = True
            rest = part.nodes[~found.chosen]
            self.off[rest[~self.on[rest]]] = True


def windows_of(mesh: Mesh, width: int, shift: int) -> Iterator[Integers]:
    """Return windows that cover a graph.

    Notes
    -----
    Squares of a grid; else runs of as many nodes in an order that keeps neighbors close.
    """
    if mesh.shape is not None:
        number = np.arange(mesh.size, dtype=np.int64).reshape(mesh.shape)
        rows, columns = mesh.shape
        for i in range(-shift, rows, width):
            for j in range(-shift, columns, width):
                window = number[max(i, 0) : i + width, max(j, 0) : j + width]
                if window.size:
                    yield window.ravel()
        return
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    order = reverse_cuthill_mckee(mesh.matrix, symmetric_mode=True).astype(np.int64)
    length = width * width
    for i in range(-(shift * width), mesh.size, length):
        piece = order[max(i, 0) : i + length]
        if piece.size:
            yield piece


class SignedBracket:
    """Bounds on an optimal signal of any sign, value by value.

    Parameters
    ----------
    mesh : Mesh
        Data.
    price : float
        Cost of a nonzero that counts.
    stop : callable
        Asked between steps; true stops.

    Notes
    -----
    Both bounds come from sequences of their own. With z the least minimizer, the larger of `low`
    and z is a minimizer, at most the larger of `low` and `high`: ties do no harm.
    """

    def __init__(self, mesh: Mesh, price: float, stop: Stop) -> None:
        from dataclasses import replace

        self.mesh = mesh
        self.price = price
        self.stop = stop
        self.cost = np.where(mesh.dead, np.inf, mesh.costs(price))
        every = ~mesh.dead
        self.high: Floats = replace(mesh, y=np.maximum(mesh.y, 0.0)).refit(every)
        self.low: Floats = -replace(mesh, y=np.maximum(-mesh.y, 0.0)).refit(every)
        self.lines: list[Lines] = (
            parts_of(mesh) if mesh.shape is not None else blocks_of(mesh, paths=True)
        )
        self.fixings: list[Fixing] = []

    @property
    def on(self) -> Bools:
        """Nodes that are on in a minimizer."""
        return np.asarray((self.low > 0) | (np.maximum(self.high, self.low) < 0))

    @property
    def off(self) -> Bools:
        """Nodes that are zero in a minimizer."""
        return np.asarray((self.low == 0) & (np.maximum(self.high, self.low) == 0))

    @property
    def proof(self) -> Narrowing:
        """Everything that was done, for others to check."""
        left = int(np.count_nonzero(~(self.on | self.off)))
        return Narrowing(self.price, self.fixings, [], None, left)

    def narrow(self, most: int = MOST_SWEEPS) -> None:
        """Sweep from both sides until nothing more is decided."""
        for _ in range(most):
            before = int(np.count_nonzero(self.on | self.off))
            moved = 0.0
            for is_low in (True, False):
                if self.stop():
                    return
                moved = max(moved, self._sweep(is_low))
            known = int(np.count_nonzero(self.on | self.off))
            if known == self.mesh.size or (known == before and moved <= 1e-3):
                return

    def _sweep(self, is_low: bool) -> float:
        level = self.low if is_low else self.high
        current, steps = level.copy(), []
        for lines in self.lines:
            y, weights = lines.given(self.mesh, level)
            _, support = lines.solve(y, weights, self.cost[lines.nodes], False)
            found = lines.refit(y, weights, support)
            steps.append(Sweep(lines, support))
            near = current[lines.nodes]
            current[lines.nodes] = np.maximum(near, found) if is_low else np.minimum(near, found)
        self.fixings.append(Fixing(is_low, level, self.low, list(steps)))
        if is_low:
            self.low = current
        else:
            self.high = current
        return float(np.abs(current - level).max())
