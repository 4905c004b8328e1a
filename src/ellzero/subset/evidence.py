"""What a tree of boxes leaves behind, so that its bound can be checked without it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.core.result import TreeProof
from ellzero.subset.curvature import Model
from ellzero.subset.results import Integers

# Numbers beyond which evidence is given up: about 10 MB.
LIMIT = 1_000_000


class Evidence:
    """Steps of a tree, written by the kernels.

    Parameters
    ----------
    features : ndarray of int64
        Features that the tree chooses from.
    limit : int, default=LIMIT
        Most numbers to keep; 0 keeps nothing.
    """

    def __init__(self, features: Integers, limit: int = LIMIT) -> None:
        self._features, self._limit = features, limit
        self._starts: list[int] = []
        self._projected: list[bool] = []
        self._thresholds: list[float] = []
        self._weights: list[Any] = []
        self._kept = 0
        first = 256 if limit else 1
        self.log: tuple[Any, ...] = (
            np.empty((first, 4), np.int32), np.empty(first, np.int64),
            np.empty(first, np.int32), np.empty(first), np.empty(first, np.int64),
            np.empty(first, np.int32), np.array([0 if limit else -1, 0, 0]),
        )  # fmt: skip

    @property
    def complete(self) -> bool:
        """Whether every step is there."""
        return bool(self.log[6][0] >= 0)

    def add_model(self, model: Model | None, *, projected: bool) -> None:
        """Note that the next steps use a model; None bounds nothing."""
        if not self.complete:
            return
        self._starts.append(int(self.log[6][0]))
        self._projected.append(projected)
        self._thresholds.append(0.0 if model is None else model.threshold)
        self._weights.append(np.empty(0) if model is None else model.weights)
        self._kept += self._weights[-1].size

    def reserve(self, boxes: int, width: int, size: int) -> None:
        """Make room for some boxes of `size` features, or give up."""
        if not self.complete:
            return
        steps, points, decided = (int(i) for i in self.log[6])
        if 4 * steps + points + decided + self._kept > self._limit:
            self.log[6][0] = -1
            return
        # A box takes up to four relaxations and decides every feature once.
        more = (4 * boxes, 4 * boxes, 4 * boxes * width, 4 * boxes * width, 4 * boxes,
                boxes * size)  # fmt: skip
        used = (steps, steps, points, points, steps, decided)
        arrays = [_grow(a, u, u + m) for a, u, m in zip(self.log[:6], used, more, strict=True)]
        self.log = (*arrays, self.log[6])

    def proof(self) -> TreeProof | None:
        """Return the evidence, or None where it was given up."""
        if not self.complete:
            return None
        steps, points, decided = (int(i) for i in self.log[6])
        ends = np.cumsum([0, *(w.size for w in self._weights)], dtype=np.int64)
        return TreeProof(
            features=self._features.copy(),
            steps=self.log[0][:steps].copy(),
            point_ends=self.log[1][:steps].copy(),
            places=self.log[2][:points].copy(),
            values=self.log[3][:points].copy(),
            decision_ends=self.log[4][:steps].copy(),
            decisions=self.log[5][:decided].copy(),
            model_starts=np.array(self._starts, dtype=np.int64),
            projected=np.array(self._projected, dtype=np.int8),
            thresholds=np.array(self._thresholds, dtype=np.float64),
            weight_ends=ends[1:],
            weights=np.concatenate([np.empty(0), *self._weights]),
        )


def _grow(array: Any, used: int, needed: int) -> Any:
    """Return the array, or a copy with room for more."""
    if array.shape[0] >= needed:
        return array
    out = np.empty((max(needed, 2 * used), *array.shape[1:]), array.dtype)
    out[:used] = array[:used]
    return out
