"""One subset and all that is known of its neighbors, moved by insertions and exchanges."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels import subset_exchange as kernels
from ellzero.subset.columns import ScaledColumns
from ellzero.subset.results import Floats, Integers

# Squared length, of one, that a feature keeps beside those it does not depend on.
FLOOR = 1e-10
# Exchanges and insertions after which everything is computed anew.
REFRESH = 200
# Diagonal of the inverse beyond which removals lose digits.
STEEP = 1e4


def make_state(start: Floats, size: int, n_fixed: int) -> tuple[Any, ...]:
    """Return the state of the empty subset, with room for `size` members."""
    q, p = start.shape
    return (
        np.zeros(size, np.int64),
        np.array([0, n_fixed, 0, 0]),
        np.empty((size, p)),
        np.empty((size, size)),
        np.empty((size, q)),
        start.copy(),
        np.ones(p),
    )


class Walker:
    """A subset with the prices of all insertions, removals and exchanges.

    Parameters
    ----------
    columns : ScaledColumns
        Where columns come from.
    size : int
        Most members.
    fixed : ndarray of int64
        Members that stay.
    """

    def __init__(self, columns: ScaledColumns, size: int, fixed: Integers) -> None:
        self.columns = columns
        self.state = make_state(columns.start, size, fixed.size)
        self.n_swaps = 0
        self._built = 0
        self.move_to(fixed)

    @property
    def size(self) -> int:
        """Number of members."""
        return int(self.state[1][kernels.SIZE])

    @property
    def members(self) -> Integers:
        """Members, the fixed ones first."""
        return np.asarray(self.state[0][: self.size].copy())

    @property
    def explained(self) -> float:
        """Share of the energy of the targets that the subset explains."""
        return float(kernels.explained(self.columns.start, self.state))

    @property
    def gains(self) -> Floats:
        """What every feature would gain."""
        c, d = self.state[5], self.state[6]
        return np.asarray(np.einsum("oj,oj->j", c, c) / np.maximum(d, FLOOR))

    def _fetch(self, needed: Integers) -> None:
        columns = self.columns
        if not columns.full and np.any(columns.slots[needed] < 0):
            columns.fetch(needed, self.gains, self.members)

    def move_to(self, members: Integers) -> None:
        """Take other members; those that depend on earlier ones are left out."""
        self._fetch(members)
        if not self._exchange(members):
            self._rebuild(members)

    def _exchange(self, members: Integers) -> bool:
        """Move by a few exchanges; return whether that was possible and took less work."""
        now = self.state[0][: self.size]
        leaving = np.flatnonzero(~np.isin(now, members))[::-1]
        entering = members[~np.isin(members, now)]
        done = int(self.state[1][kernels.INSERTIONS]) - self._built
        if 2 * (leaving.size + entering.size) > members.size or done > REFRESH // 2:
            return False
        if leaving.size and self.state[3].diagonal()[: self.size].max() > STEEP:
            return False
        columns = self.columns
        for place in leaving.tolist():
            kernels.remove(place, self.state)
        for j in entering.tolist():
            if self.state[6][j] > FLOOR:
                kernels.insert(columns.rows, columns.slots[j], j, self.state)
        return True

    def _rebuild(self, members: Integers) -> None:
        """Take members, everything computed anew."""
        columns = self.columns
        kernels.rebuild(columns.rows, columns.slots, columns.start, members, self.state, FLOOR)
        self._built = int(self.state[1][kernels.INSERTIONS])

    def grow(self) -> bool:
        """Let the feature enter that gains most; return whether there is one."""
        if self.size == self.state[0].size:
            return False
        j, _ = kernels.dearest(self.state, FLOOR, 0)
        if j >= 0:
            self._enter(j)
        return bool(j >= 0)

    def follow(self) -> bool:
        """Let the feature enter that correlates most with the residual; return whether one did."""
        c, d = self.state[5], self.state[6]
        slope = np.einsum("oj,oj->j", c, c)
        slope[(d <= FLOOR) | (d > kernels.CLOSED / 2)] = -1.0
        j = int(slope.argmax())
        if self.size == self.state[0].size or slope[j] <= kernels.TINY:
            return False
        self._enter(j)
        return True

    def _enter(self, j: int) -> None:
        if self.columns.slots[j] < 0:
            self._fetch(np.array([j]))
        kernels.insert(self.columns.rows, self.columns.slots[j], j, self.state)

    def shrink(self) -> bool:
        """Let the member leave that costs least; return whether one may."""
        place, _ = kernels.cheapest(self.state)
        if place >= 0:
            kernels.remove(place, self.state)
        return place >= 0

    def descend(self) -> None:
        """Make the best exchange until none gains."""
        columns = self.columns
        before = int(self.state[1][kernels.INSERTIONS])
        while True:
            missing = kernels.descend(columns.rows, columns.slots, self.state, FLOOR, 50)
            if missing == -1:
                break
            if missing >= 0:
                self._fetch(np.array([missing]))
            else:
                self._rebuild(self.members)
                if self.state[1][kernels.INSERTIONS] - before > 100 * self.size + 1000:
                    break
        self.n_swaps += int(self.state[1][kernels.INSERTIONS]) - before
        if self.state[1][kernels.INSERTIONS] - self._built > REFRESH:
            self._rebuild(self.members)
