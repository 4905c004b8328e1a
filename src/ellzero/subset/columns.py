"""Inner products scaled to a unit diagonal, computed a block at a time."""

from __future__ import annotations

import numpy as np

from ellzero.subset.inner import AbstractGram, FullGram
from ellzero.subset.results import Floats, Integers

# Bytes of columns kept at once.
CACHE_BYTES = 2**29
# Columns computed at once: the first time; later, at most, and as a share of those computed.
FIRST_BLOCK, BLOCK, SHARE = 32, 16, 4
# Pairs of features that are compared at once.
PAIRS = 2**13
# Twins share all bits in one of the tables, and have sketches that are alike; for at most so many
# features, and at most so many pairs.
TABLES, MIN_BITS, LOOK_AHEAD, ALIKE, MOST_TWINS, AT_MOST = 8, 10, 3, 0.85, 10**5, 64


def _count_bits(x: np.ndarray) -> np.ndarray:
    """Return how many bits of unsigned 64-bit integers are set."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(x))
    for shift, mask in ((1, 0x5555555555555555), (2, 0x3333333333333333), (4, 0x0F0F0F0F0F0F0F0F)):
        low = np.uint64(mask)
        x = (x & low) + (x >> np.uint64(shift) & low)
    return ((x * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


class ScaledColumns:
    """Columns of G + ridge, scaled to a unit diagonal, features in the order of their strength.

    The order makes a search independent of the order of the columns, except for exact ties.

    Parameters
    ----------
    gram : AbstractGram
        Inner products.
    ridge : ndarray of shape (n_features,)
        Ridge, in the units of the objective.
    usable : ndarray of shape (n_features,), bool
        Features that may be chosen.
    room : int
        Columns that must fit in the cache at once.
    """

    def __init__(self, gram: AbstractGram, ridge: Floats, usable: Integers, room: int) -> None:
        diagonal = gram.diagonal + gram.n_samples * ridge
        usable = usable & (gram.diagonal > 0)
        scale = np.where(usable, 1.0 / np.sqrt(np.where(usable, diagonal, 1.0)), 0.0)
        energy = float(gram.energy.sum())
        unit = 1.0 / np.sqrt(energy) if energy > 0 else 0.0
        start = (gram.cross * scale[:, None]) * unit
        strength = np.einsum("jo,jo->j", start, start)
        self.gram = gram
        self.order = np.argsort(-np.where(usable, strength, -1.0), kind="stable")
        self.n_usable = int(usable.sum())
        # Features that may not be chosen come last and are left out altogether.
        self.order = self.order[: self.n_usable]
        self.place = np.full(gram.n_features, -1)
        self.place[self.order] = np.arange(self.n_usable)
        self.scale = scale[self.order]
        self.start = np.ascontiguousarray(start[self.order].T)
        self.n_computed = 0
        p = self.n_usable
        if isinstance(gram, FullGram):
            self.full = True
            self.rows = gram.matrix[np.ix_(self.order, self.order)]
            self.rows *= self.scale
            self.rows *= self.scale[:, None]
            np.fill_diagonal(self.rows, 1.0)
            self.slots = np.arange(p)
        else:
            self.full = False
            capacity = min(p, max(CACHE_BYTES // (8 * max(p, 1)), room + FIRST_BLOCK))
            self.rows = np.empty((capacity, p))
            self.slots = np.full(p, -1)
            self._holder = np.full(capacity, -1)
            self._used = 0

    @property
    def cached(self) -> Integers:
        """Features whose columns are there, ascending."""
        return np.flatnonzero(self.slots >= 0)

    def closest(self, n_columns: int) -> float:
        """Return the largest correlation of one of the first columns with another feature."""
        n = self.n_usable if self.full else self._used
        rows = self.rows[: min(n_columns, n)]
        names = np.arange(n) if self.full else self._holder
        owner = names[: rows.shape[0]]
        largest = np.abs(rows)
        largest[np.arange(owner.size), owner] = 0.0
        return float(largest.max(initial=0.0))

    def twins(self) -> Integers:
        """Return features that correlate strongly with another one, as far as columns tell.

        The inner products with the columns that are there are a sketch of every feature; twins
        agree in their signs.
        """
        n_bits = min(self._used, 64)
        # About as many keys as features.
        width = min(max(MIN_BITS, self.n_usable.bit_length()), 15)
        if self.n_usable > MOST_TWINS or n_bits < 2 * width:
            return np.zeros(0, np.int64)
        sketch = self.rows[:n_bits]
        signs = sketch > 0
        p = self.n_usable
        codes = np.zeros((8, p), np.uint8)
        packed = np.packbits(signs, axis=0)
        codes[: packed.shape[0]] = packed
        code = np.ascontiguousarray(codes.T).view(np.uint64).ravel()
        # Strides differ, so that tables share few bits. Sums of powers of two are exact.
        weight = np.zeros((TABLES, n_bits), np.float32)
        for table in range(TABLES):
            for bit in range(width):
                weight[table, (table * width + bit * (2 * table + 1)) % n_bits] += 2.0**bit
        key = (weight @ signs.astype(np.float32)).astype(np.int16)
        # A feature and its negative are the same.
        key = np.minimum(key, 2**width - 1 - key)
        order = np.argsort(key, axis=1, kind="stable")
        code = code[order]
        # Pairs are numbered, so that those of several tables are looked at once.
        found = []
        for ahead in range(1, LOOK_AHEAD + 1):
            differ = _count_bits(code[:, ahead:] ^ code[:, :-ahead])
            at = np.flatnonzero(np.minimum(differ, n_bits - differ) <= n_bits // 5)
            first, second = order[:, :-ahead].ravel()[at], order[:, ahead:].ravel()[at]
            found.append(first * p + second)
        seen = np.unique(np.concatenate(found))
        alike = np.empty(seen.size)
        for start in range(0, seen.size, PAIRS):
            few = seen[start : start + PAIRS]
            a, b = sketch[:, few // p], sketch[:, few % p]
            inner = np.einsum("ij,ij->j", a, b)
            alike[start : start + PAIRS] = inner**2 / (
                np.einsum("ij,ij->j", a, a) * np.einsum("ij,ij->j", b, b)
            )
        best = np.argsort(-alike, kind="stable")
        best = best[alike[best] > ALIKE**2][:AT_MOST]
        return np.unique(np.concatenate([seen[best] // p, seen[best] % p]))

    def square(self, features: Integers) -> Floats:
        """Return the inner products among `features`."""
        if self.full and features.size == self.n_usable:
            return self.rows
        at = self.slots[features]
        if np.all(at >= 0):
            return np.ascontiguousarray(self.rows[np.ix_(at, features)])
        out = self.gram.block(self.order[features])
        out *= self.scale[features]
        out *= self.scale[features, None]
        np.fill_diagonal(out, 1.0)
        return out

    def fetch(self, needed: Integers, scores: Floats, kept: Integers) -> None:
        """Compute columns of `needed` and of the most promising others.

        Parameters
        ----------
        needed : ndarray of int64
            Features.
        scores : ndarray of shape (p,)
            How promising every feature is.
        kept : ndarray of int64
            Features whose columns must stay.
        """
        missing = needed[self.slots[needed] < 0]
        if missing.size == 0:
            return
        capacity = self.rows.shape[0]
        block = FIRST_BLOCK if self.n_computed == 0 else min(BLOCK, self.n_computed // SHARE)
        closed = self.slots >= 0
        ready = self.gram.ready
        if ready is not None:
            # What is there already is taken one by one, the rest in blocks.
            ready = ready[self.order]
            block = 0 if np.all(ready[missing]) else max(block, BLOCK)
            closed |= ready
        more = min(block, capacity) - missing.size
        if more > 0:
            scores = np.where(closed, -1.0, scores)
            scores[missing] = -1.0
            best = np.argpartition(-scores, min(more, scores.size - 1))[:more]
            missing = np.concatenate([missing, np.sort(best[scores[best] > 0])])
        if self._used + missing.size > capacity:
            self._evict(np.concatenate([kept, needed]), missing.size)
        at = slice(self._used, self._used + missing.size)
        block_rows = self.gram.columns(self.order[missing])
        np.take(block_rows, self.order, axis=1, out=self.rows[at])
        self.rows[at] *= self.scale
        self.rows[at] *= self.scale[missing, None]
        self.rows[np.arange(at.start, at.stop), missing] = 1.0
        self.slots[missing] = np.arange(at.start, at.stop)
        self._holder[at] = missing
        self._used += missing.size
        self.n_computed += missing.size

    def _evict(self, kept: Integers, n_new: int) -> None:
        """Keep the columns that must stay, and the newest that fit besides `n_new`."""
        held = self._holder[: self._used]
        must = np.isin(held, kept)
        spare = max(self.rows.shape[0] - n_new - int(must.sum()), 0) // 2
        others = np.flatnonzero(~must)
        stay = np.sort(np.concatenate([np.flatnonzero(must), others[others.size - spare :]]))
        self.rows[: stay.size] = self.rows[stay]
        self._holder[: stay.size] = held[stay]
        self.slots[:] = -1
        self.slots[self._holder[: stay.size]] = np.arange(stay.size)
        self._used = int(stay.size)
