"""Prices of additions, drops and exchanges by the quadratic model at a minimizer.

With H the products of a column with the support times the inverse Hessian there, d its curvature
outside the span of the support and c its product with the residual, adding it lowers the model by
c^2 / (2 d), and exchanging it for a unit that leaves by another closed form of the same numbers.
A group of columns is treated in coordinates in which its curvature is near the identity.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.subset.glm_design import AbstractDesign
from ellzero.subset.glm_losses import Fit
from ellzero.subset.results import Floats, Integers

# Units whose prices are computed again in float64.
SHORTLIST = 32
# Share of the curvature of a column that must lie outside the span of the support.
PIVOT = 1e-9


def rank(score: NDArray[Any], allowed: NDArray[np.bool_]) -> Integers:
    """Return where the largest scores of allowed units are, the largest first."""
    score = np.where(allowed, score, -np.inf)
    places = np.arange(score.size)
    if score.size > 4 * SHORTLIST:
        level = np.partition(score, score.size - SHORTLIST)[score.size - SHORTLIST]
        places = np.flatnonzero(score >= level)
    # Ties go to the first position.
    places = places[np.argsort(-score[places], kind="stable")][:SHORTLIST]
    return np.asarray(places[np.isfinite(score[places])])


class Units:
    """What is chosen: columns, or groups of columns.

    Parameters
    ----------
    members : list of ndarray of int64, or None
        Columns of every group; None means that every column is a unit.
    design : AbstractDesign
        Columns.
    """

    def __init__(self, members: list[Integers] | None, design: AbstractDesign) -> None:
        self.members = members
        p = design.n_features
        self.sizes = (
            np.ones(p, np.int64)
            if members is None
            else np.array([m.size for m in members], np.int64)
        )
        self.single = members is None or bool((self.sizes == 1).all())
        if members is not None:
            width = int(self.sizes.max())
            # Columns of every group side by side, padded with -1.
            self._table = np.full((len(members), width), -1)
            self._white = np.zeros((len(members), width, width))
            for u, columns in enumerate(members):
                self._table[u, : columns.size] = columns
                rows = design.rows(columns)
                gram = (rows * design.weight) @ rows.T
                values, vectors = np.linalg.eigh(gram)
                good = values > 1e-9 * values[-1]
                root = vectors[:, good] / np.sqrt(values[good])
                self._white[u, : root.shape[1], : columns.size] = root.T

    @property
    def count(self) -> int:
        """Number of units."""
        return int(self.sizes.shape[0])

    def restrict(self, units: Integers, design: AbstractDesign) -> Units:
        """Return some of the units, for a design that has their columns in this order."""
        if self.members is None:
            return Units(None, design)
        ends = np.cumsum(self.sizes[units])
        return Units(np.split(np.arange(ends[-1]), ends[:-1]), design)

    def any(self, columns: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the units that have one of some columns."""
        if self.members is None:
            return columns
        return np.asarray(np.append(columns, False)[self._table].any(axis=1))

    def columns(self, unit: int) -> Integers:
        """Return the columns of a unit."""
        return np.array([unit]) if self.members is None else self.members[unit]

    def join(self, units: Sequence[int] | Integers) -> Integers:
        """Return the columns of several units, one after the other."""
        if self.members is None:
            return np.asarray(units, np.int64)
        if len(units) == 0:
            return np.zeros(0, np.int64)
        return np.concatenate([self.members[int(u)] for u in units])

    def _parts(self, numbers: NDArray[Any]) -> list[NDArray[Any]]:
        """Return numbers of columns, (q, n_features), in the coordinates of the units.

        One array (q, n_units) for each coordinate.
        """
        if self.members is None:
            return [numbers]
        padded = np.concatenate([numbers, np.zeros((numbers.shape[0], 1))], axis=1)
        out = np.einsum("uab,qub->qua", self._white, padded[:, self._table])
        return [out[:, :, a] for a in range(out.shape[2])]

    def _curvatures(self, curvature: Floats) -> Floats:
        if self.members is None:
            return curvature
        padded = np.append(curvature, 0.0)[self._table]
        return np.asarray(padded.sum(axis=1) / self.sizes)

    def gains(self, slope: NDArray[Any], curvature: Floats) -> NDArray[Any]:
        """Return twice the decrease by adding each unit alone, with estimated curvature."""
        total = sum(np.square(part).sum(axis=0) for part in self._parts(slope))
        return np.asarray(total / self._curvatures(curvature))

    def swap_gains(
        self,
        cross: NDArray[Any],
        slope: NDArray[Any],
        curvature: Floats,
        inverse: Floats,
        leaving: Leaving,
    ) -> NDArray[Any]:
        """Return twice the gain of every exchange, (n_units, leaving), before the cost of leaving.

        Parameters
        ----------
        cross : ndarray of shape (k, n_features)
            Products of the columns with the support.
        slope : ndarray of shape (m, n_features)
            Products with the residual.
        curvature : ndarray of shape (n_features,)
            Curvature of the columns.
        inverse : ndarray of shape (k, k)
            Inverse of the Hessian on the support.
        leaving : Leaving
            The units of the support.
        """
        k = cross.shape[0]
        total: Any = 0.0
        whole = self._curvatures(curvature)
        for part in self._parts(np.concatenate([cross, slope])):
            H = inverse @ part[:k]
            d = np.maximum(whole - np.einsum("kj,kj->j", part[:k], H), 1e-5 * whole)
            T = leaving.root.T @ H
            gain = 0.0
            for m in range(slope.shape[0]):
                gain = gain + np.square(part[k + m] + leaving.add(T * leaving.lean[:, m, None]))
            total = total + gain / (d + leaving.add(np.square(T)))
        return np.asarray(total.T)


@dataclass(frozen=True, slots=True)
class Leaving:
    """What happens to the model when a unit of the support leaves.

    Parameters
    ----------
    starts : ndarray of shape (n_units,), int64
        First row of every unit in the coordinates of the units.
    offset : int
        Rows before those of the units.
    inverse : ndarray of shape (k, k)
        Inverse of the Hessian on the support.
    root : ndarray of shape (k, r)
        Block diagonal: C with ``C @ C.T`` the inverse of the diagonal block of every unit.
    lean : ndarray of shape (r, m)
        Coefficients in these coordinates.
    cost : ndarray of shape (n_units,)
        Twice the increase by leaving.
    ends : ndarray of shape (n_units + 1,), int64
        Where the rows of every unit begin and end.
    """

    starts: Integers
    offset: int
    inverse: Floats
    root: Floats
    lean: Floats
    cost: Floats
    ends: Integers

    @classmethod
    def of(cls, inverse: Floats, beta: Floats, sizes: Integers | None, offset: int) -> Leaving:
        """Return it for a support, whose units have one column each where `sizes` is None."""
        k = inverse.shape[0]
        root = np.zeros((k, k - offset))
        if sizes is None:
            ends = np.arange(offset, k + 1)
            root.flat[offset * (k - offset) :: k - offset + 1] = 1 / np.sqrt(
                inverse.diagonal()[offset:]
            )
        else:
            ends = offset + np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            for a, b in itertools.pairwise(ends):
                values, vectors = np.linalg.eigh(inverse[a:b, a:b])
                values = np.maximum(values, 1e-12 * values[-1])
                root[a:b, a - offset : b - offset] = vectors / np.sqrt(values)
        lean = root.T @ beta
        each = np.square(lean).sum(axis=1)
        starts = ends[:-1] - offset
        cost = each if sizes is None or not sizes.size else np.add.reduceat(each, starts)
        return cls(starts, offset, inverse, root, lean, cost, ends)

    def add(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Return sums over the coordinates of every unit, along the first axis."""
        if self.starts.size == numbers.shape[0]:
            return numbers
        return np.add.reduceat(numbers, self.starts, axis=0)

    def kept(self, positions: list[int]) -> NDArray[np.bool_]:
        """Return the rows that stay when some units leave."""
        keep = np.ones(self.inverse.shape[0], np.bool_)
        for a in positions:
            keep[self.ends[a] : self.ends[a + 1]] = False
        return keep

    def _pull(self, position: int) -> tuple[slice, Floats]:
        """Return the rows of a unit, and inverse[:, rows] @ inv(inverse[rows, rows])."""
        rows = slice(int(self.ends[position]), int(self.ends[position + 1]))
        block = self.root[rows, rows.start - self.offset : rows.stop - self.offset]
        return rows, self.inverse[:, rows] @ (block @ block.T)

    def without(self, positions: list[int], beta: Floats) -> Floats:
        """Return the minimizer of the model when some units have left."""
        if len(positions) == 1:
            rows, pull = self._pull(positions[0])
            return beta - pull @ beta[rows]
        out = ~self.kept(positions)
        block = self.inverse[np.ix_(out, out)]
        return np.asarray(beta - self.inverse[:, out] @ _solve(block, beta[out]))

    def corrected(self, position: int, H: Floats) -> Floats:
        """Return H, (q, k), of entering columns once a unit has left."""
        rows, pull = self._pull(position)
        return H - H[:, rows] @ pull.T


@dataclass(frozen=True, slots=True)
class Moves:
    """Exact prices of a few entering units.

    Parameters
    ----------
    rows : ndarray of shape (r, n_samples)
        Their columns.
    ends : ndarray of shape (n_units + 1,), int64
        Where the rows of every unit begin and end.
    slope : ndarray of shape (r, m)
        Products with the residual.
    H : ndarray of shape (r, k)
        Products with the support times the inverse there.
    d : ndarray of shape (r,)
        Curvature outside the span of the support, for units of one column; infinite for those
        inside it.
    blocks : list of ndarray of shape (q, q), or None
        The same for groups.
    limits : tuple of two ndarray of shape (r,), or None
        Bounds.
    """

    rows: Floats
    ends: Integers
    slope: Floats
    H: Floats
    d: Floats
    blocks: list[Floats] | None
    limits: tuple[Floats, Floats] | None

    def additions(self) -> Floats:
        """Return the decrease by adding each unit."""
        if self.blocks is None:
            return self._gain(self.slope[:, None, :], self.d[:, None])[:, 0] / 2
        return np.array(
            [
                0.5 * float((self.slope[a:b] * _solve(block, self.slope[a:b])).sum())
                for a, b, block in self._pieces()
            ]
        )

    def swaps(self, leaving: Leaving) -> Floats:
        """Return twice the gain of every exchange, before the cost of leaving."""
        T = self.H @ leaving.root
        if self.blocks is None:
            pulled = np.stack(
                [leaving.add((T * leaving.lean[:, m]).T).T for m in range(self.slope.shape[1])],
                axis=2,
            )
            curvature = self.d[:, None] + leaving.add(np.square(T).T).T
            return self._gain(self.slope[:, None, :] + pulled, curvature)
        n = leaving.starts.size
        edges = np.append(leaving.starts, T.shape[1])
        out = np.empty((self.ends.size - 1, n))
        for u, (a, b, block) in enumerate(self._pieces()):
            for i in range(n):
                here = slice(edges[i], edges[i + 1])
                slope = self.slope[a:b] + T[a:b, here] @ leaving.lean[here]
                whole = block + T[a:b, here] @ T[a:b, here].T
                out[u, i] = (slope * _solve(whole, slope)).sum()
        return out

    def added(self, place: int) -> tuple[Floats, Floats, Floats]:
        """Return rows, coefficients and H of a unit that is added."""
        a, b = int(self.ends[place]), int(self.ends[place + 1])
        block = self._block(place)
        return self.rows[a:b], _solve(block, self.slope[a:b]), self.H[a:b]

    def swapped(self, place: int, position: int, leaving: Leaving) -> Any:
        """Return rows, coefficients and corrected H of a unit that replaces another."""
        a, b = int(self.ends[place]), int(self.ends[place + 1])
        T = self.H[a:b] @ leaving.root
        edges = np.append(leaving.starts, T.shape[1])
        here = slice(edges[position], edges[position + 1])
        slope = self.slope[a:b] + T[:, here] @ leaving.lean[here]
        block = self._block(place) + T[:, here] @ T[:, here].T
        return self.rows[a:b], _solve(block, slope), leaving.corrected(position, self.H[a:b])

    def _block(self, place: int) -> Floats:
        if self.blocks is not None:
            return self.blocks[place]
        d = self.d[place]
        return np.array([[d if np.isfinite(d) else 0.0]])

    def _pieces(self) -> Any:
        assert self.blocks is not None
        return zip(self.ends[:-1], self.ends[1:], self.blocks, strict=True)

    def _gain(self, slope: Floats, curvature: Floats) -> Floats:
        """Return twice the decrease along each column, (r, ...), within its bounds."""
        if self.limits is None:
            return np.asarray(np.square(slope).sum(axis=2) / curvature)
        shape = (-1, 1)
        move = np.clip(
            slope[:, :, 0] / curvature,
            self.limits[0].reshape(shape),
            self.limits[1].reshape(shape),
        )
        finite = np.where(np.isfinite(curvature), curvature, 0.0)
        return np.asarray(2 * slope[:, :, 0] * move - finite * np.square(move))


def measure(
    rows: Floats,
    sizes: Integers | None,
    ridge: Floats,
    limits: tuple[Floats, Floats] | None,
    support: Floats,
    fit: Fit,
    inverse: Floats,
) -> Moves:
    """Return the exact prices of entering units.

    Parameters
    ----------
    rows : ndarray of shape (r, n_samples)
        Columns of the units, one unit after the other.
    sizes : ndarray of shape (n_units,), int64, or None
        Columns of every unit; None means one each.
    ridge : ndarray of shape (r,)
        Ridge of the columns.
    limits : tuple of two ndarray of shape (r,), or None
        Bounds of the columns.
    support : ndarray of shape (k, n_samples)
        Columns of the support.
    fit : Fit
        Minimizer on the support.
    inverse : ndarray of shape (k, k)
        Inverse of its Hessian.
    """
    weighted = rows * fit.curvature
    cross = weighted @ support.T
    H = cross @ inverse
    ends = np.arange(rows.shape[0] + 1)
    diagonal = np.einsum("jn,jn->j", weighted, rows) + ridge
    d = diagonal - np.einsum("jk,jk->j", cross, H)
    blocks = None
    if sizes is not None:
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        blocks = [
            weighted[a:b] @ rows[a:b].T + np.diag(ridge[a:b]) - cross[a:b] @ H[a:b].T
            for a, b in itertools.pairwise(ends)
        ]
        limits = None
    d[d <= PIVOT * diagonal] = np.inf
    return Moves(rows, ends, rows @ fit.residual.T, H, d, blocks, limits)


def _solve(block: Floats, slope: Floats) -> Floats:
    """Return the solution of a small positive system; flat directions are left alone."""
    if block.shape[0] == 1:
        return slope / block[0, 0] if block[0, 0] > 0 else np.zeros_like(slope)
    values, vectors = np.linalg.eigh(block)
    good = values > PIVOT * max(values[-1], 1e-300)
    inverse = np.where(good, 1 / np.where(good, values, 1.0), 0.0)
    return np.asarray(vectors @ (inverse[:, None] * (vectors.T @ slope)))
