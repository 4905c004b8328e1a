"""A population of perturbed supports, kicked until they agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels import subset_exchange as kernels
from ellzero.subset.columns import ScaledColumns
from ellzero.subset.effort import Effort
from ellzero.subset.results import Floats, Integers
from ellzero.subset.stopping import Stopper
from ellzero.subset.walker import FLOOR, make_state

SEED = 0x9E3779B97F4A7C15
# Local optima told apart.
OPTIMA = 256


class Arena:
    """Some features with all their inner products, where supports are kicked.

    Parameters
    ----------
    columns : ScaledColumns
        Columns computed so far.
    size : int
        Most members.
    n_fixed : int
        Members that stay.
    """

    def __init__(self, columns: ScaledColumns, size: int, n_fixed: int) -> None:
        if columns.full:
            self.features = np.arange(columns.n_usable)
            self.rows: Floats = columns.rows
            self.start: Floats = columns.start
        else:
            self.features = columns.cached
            self.rows = np.ascontiguousarray(
                columns.rows[columns.slots[self.features]][:, self.features]
            )
            self.start = np.ascontiguousarray(columns.start[:, self.features])
        self.slots = np.arange(self.features.size)
        self.place = np.full(columns.n_usable, -1)
        self.place[self.features] = self.slots
        self.state: tuple[Any, ...] = make_state(self.start, 2 * size, n_fixed)

    def kick(
        self, members: Integers, explained: float, effort: Effort, most: int, stopper: Stopper
    ) -> tuple[Integers, int]:
        """Return the best members found from perturbations of `members`, and the kicks made.

        Kicks go on while they find new local optima: with w of them after N kicks, about
        w (N - 1) / (N - w - 2) exist.
        """
        k = members.size
        fixed = int(self.state[1][kernels.FIXED])
        if k - fixed == 0 or self.features.size <= k or most == 0:
            return members, 0
        pool = np.zeros((effort.population, k), np.int64)
        values = np.zeros(effort.population)
        seen = np.zeros(OPTIMA)
        pool[0] = self.place[members]
        values[0] = seen[0] = explained
        tally = np.array([1, 1, 0, 0])
        seeds = np.array([SEED + 2 * k], np.uint64)
        count = effort.agree
        while True:
            kernels.kick(
                self.rows,
                self.slots,
                self.start,
                self.state,
                FLOOR,
                pool,
                values,
                seen,
                seeds,
                tally,
                min(count, most - int(tally[2])),
            )
            best = int(np.argmax(values[: tally[0]]))
            stopper.report("kicks", k, float(values[best]))
            w, n = int(tally[1]), int(tally[2])
            settled = n > w + 2 and w * (n - 1) < (w + 0.5) * (n - w - 2)
            if settled or n >= most:
                return self.features[pool[best]], n
            count = max(effort.agree, min(n // 2, 512))
