"""A population of perturbed supports, kicked until they agree."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from ellzero.kernels import subset_exchange as kernels
from ellzero.subset.columns import ScaledColumns
from ellzero.subset.effort import Effort
from ellzero.subset.path import Frontier
from ellzero.subset.results import Floats, Integers
from ellzero.subset.stopping import Stopper
from ellzero.subset.walker import FLOOR, make_state

SEED = 0x9E3779B97F4A7C15
# Local optima told apart.
OPTIMA = 256
# A population gives up after so many kicks without a better support, and after a multiple of what
# it took to find the best one.
PATIENCE, FACTOR = 1500, 4
# Features of the first arena: at least, at most, and for each member; operations that the wider
# one may cost.
NARROW, EACH, WIDE_COST = (160, 256), 12, 1e9
# Neighbors of a feature that may enter along with it; correlation above which a feature and its
# neighbor can hide each other, and columns that are looked at.
NEAR, HIDING, LOOKS = 4, 0.7, 32
# Features of the first arena where features hide each other.
HIDDEN = 512


@dataclass(frozen=True, slots=True)
class Kicked:
    """What kicks found.

    Parameters
    ----------
    members : ndarray of int64
        The best support.
    n_kicks : int
        Kicks made.
    n_optima : int
        Local optima met.
    """

    members: Integers
    n_kicks: int
    n_optima: int

    @property
    def settled(self) -> bool:
        """Whether kicks have shown all local optima that are likely to exist."""
        return _settled(self.n_kicks, self.n_optima)


def _settled(n: int, w: int) -> bool:
    """Return whether w local optima after n kicks are likely to be all."""
    return n > w + 2 and w * (n - 1) < (w + 0.5) * (n - w - 2)


class Arena:
    """Some features with all their inner products, where supports are kicked.

    Parameters
    ----------
    columns : ScaledColumns
        Where inner products come from.
    features : ndarray of int64
        Features, ascending.
    size : int
        Most members.
    n_fixed : int
        Members that stay.
    """

    def __init__(
        self, columns: ScaledColumns, features: Integers, size: int, n_fixed: int
    ) -> None:
        self.features = features
        self.rows = columns.square(features)
        self.start = np.ascontiguousarray(columns.start[:, features])
        self.slots = np.arange(features.size)
        self.place = np.full(columns.n_usable, -1)
        self.place[features] = self.slots
        self.state: tuple[Any, ...] = make_state(self.start, 2 * size, n_fixed)
        self.near = np.zeros((features.size, min(NEAR, features.size - 1)), np.int64)
        if self.near.size:
            kernels.neighbors(self.rows, self.near)

    def kick(self, members: Integers, effort: Effort, most: int, stopper: Stopper) -> Kicked:
        """Return the best members found by exchanges of pairs and perturbations of `members`.

        Kicks go on while they find new local optima: with w of them after N kicks, about
        w (N - 1) / (N - w - 2) exist.
        """
        k = members.size
        fixed = int(self.state[1][kernels.FIXED])
        if k - fixed == 0 or self.features.size <= k or most == 0:
            return Kicked(members, 0, 1)
        pool = np.zeros((effort.population, k), np.int64)
        values = np.zeros(effort.population)
        seen = np.zeros(OPTIMA)
        pool[0] = self.place[members]
        tally = np.array([1, 1, 0, 0])
        seeds = np.array([SEED + 2 * k], np.uint64)
        count = effort.agree
        while True:
            kernels.kick(
                self.rows,
                self.slots,
                self.start,
                self.near,
                self.state,
                FLOOR,
                pool,
                values,
                seen,
                seeds,
                tally,
                tally[2] == 0,
                min(count, most - int(tally[2])),
            )
            best = int(np.argmax(values[: tally[0]]))
            stopper.report("kicks", k, float(values[best]))
            w, n, idle = int(tally[1]), int(tally[2]), int(tally[3])
            if _settled(n, w) or n >= most or idle > max(PATIENCE, FACTOR * (n - idle)):
                return Kicked(self.features[pool[best]], n, w)
            count = max(effort.agree, min(n // 2, 512))


class Arenas:
    """A narrow arena for every support, and a wide one for those that do not settle.

    Parameters
    ----------
    columns : ScaledColumns
        Where inner products come from.
    frontier : Frontier
        Supports known.
    residual : ndarray of shape (p,)
        What every feature would gain beside the largest support.
    n_fixed : int
        Members that stay.
    """

    def __init__(
        self, columns: ScaledColumns, frontier: Frontier, residual: Floats, n_fixed: int
    ) -> None:
        self.columns = columns
        self.frontier = frontier
        self.residual = residual
        self.n_fixed = n_fixed
        self._kept: dict[int, Arena] = {}
        self.hiding = columns.closest(LOOKS) > HIDING
        self.twins = np.zeros(0, np.int64)
        if not (self.hiding or columns.full):
            self.twins = columns.twins()

    def _arena(self, wanted: int, members: Integers) -> Arena:
        """Return an arena of about `wanted` features that holds `members`."""
        p = self.columns.n_usable
        arena = self._kept.get(wanted)
        if arena is None or np.any(arena.place[members] < 0):
            features = np.arange(p)
            if wanted < p and not self.columns.full:
                # Features come in the order of their strength.
                known = [np.arange(wanted // 2), members, self.twins, *self.frontier.members]
                promising = np.argpartition(-self.residual, wanted // 2)[: wanted // 2]
                features = np.unique(np.concatenate([*known, promising]))
            arena = Arena(self.columns, features, self.frontier.high, self.n_fixed)
            self._kept[wanted] = arena
        return arena

    def kick(self, members: Integers, effort: Effort, most: int, stopper: Stopper) -> Kicked:
        """Return the best members found from perturbations of `members`."""
        # Where the subsets can be counted on fingers, as many kicks as subsets are enough.
        most = min(most, comb(self.columns.n_usable - self.n_fixed, members.size - self.n_fixed))
        if most == 0 or members.size == self.n_fixed:
            return Kicked(members, 0, 1)
        first = min(max(NARROW[0], EACH * self.frontier.high), NARROW[1])
        # With few samples local optima abound: the first arena will not be the last.
        trusted = self.columns.gram.n_rows > NARROW[1]
        if self.hiding:
            first = HIDDEN if trusted else NARROW[1]
        narrow = self._arena(first, members)
        out = narrow.kick(members, effort, min(most, 2 * effort.agree), stopper)
        if narrow.features.size == self.columns.n_usable and out.n_optima == 1:
            return out
        enough = out.settled and trusted if self.hiding else out.n_optima == 1
        if enough or out.n_kicks >= most:
            return out
        wide = int(np.sqrt(WIDE_COST / (2 * self.columns.gram.n_rows)))
        arena = self._arena(max(NARROW[1] + 1, min(wide, 4096)), out.members)
        more = arena.kick(out.members, effort, most - out.n_kicks, stopper)
        return Kicked(more.members, out.n_kicks + more.n_kicks, more.n_optima)
