"""Features whose coefficients have bounds."""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from typing_extensions import override

from ellzero.kernels.subset_bounded import fit_entries, fit_one, fit_without
from ellzero.subset.gram import AbstractGram
from ellzero.subset.grouped import EPS, TINY, TOL, Whitened, is_usable
from ellzero.subset.refits import refit_shortest, to_subset
from ellzero.subset.results import Floats, Integers, Subset
from ellzero.subset.walk import AbstractNeighborhood, AbstractNode, Items

UNIT = 1.0 + EPS


class BoundedNode(AbstractNode):
    """Features with the minimizer within the bounds, and without each of them."""

    __slots__ = ("block", "without", "x")

    def __init__(self, items: Items, value: float, block: Floats, x: Floats) -> None:
        super().__init__(items, value)
        self.block = block
        self.x = x
        self.without: tuple[Floats, Floats] | None = None


@final
class BoundedHood(AbstractNeighborhood[BoundedNode]):
    """Moves of one feature, with the others refitted within the bounds.

    Moves are ordered by a lower bound on what they reach, from the multipliers of the bounds that
    are active before the feature enters, and minimized exactly until no bound is below the best.

    Parameters
    ----------
    gram : AbstractGram
        Inner products with one target.
    ridge : ndarray of shape (n_features,)
        The ridge of every feature.
    bounds : tuple of ndarray of shape (n_features,)
        Lower and upper bounds on the coefficients.
    fixed : tuple of int
        Features of every set, ascending.
    allowed : ndarray of shape (n_features,), bool
        Features that may be chosen.
    label : ndarray of shape (n_features,), int64, or None, default=None
        Features of one label share places.
    room : int, default=1
        Places of every label.
    """

    def __init__(
        self,
        gram: AbstractGram,
        ridge: Floats,
        bounds: tuple[Floats, Floats],
        fixed: Items,
        allowed: NDArray[np.bool_],
        label: Integers | None = None,
        room: int = 1,
    ) -> None:
        p = gram.n_features
        self._gram = gram
        self._ridge = ridge
        self._bounds = bounds
        penalty = gram.n_samples * ridge
        self._white = Whitened(gram, penalty, [np.array([j]) for j in range(p)])
        usable = is_usable(gram)
        self._scale = np.zeros(p)
        root = np.sqrt((gram.diagonal + penalty)[usable] / self._white.energy)
        self._scale[usable] = root
        self._low, self._high = np.zeros(p), np.zeros(p)
        self._low[usable] = bounds[0][usable] * root
        self._high[usable] = bounds[1][usable] * root
        self._slope = np.ascontiguousarray(self._white.cross[:, 0])
        self.fixed = fixed
        self._allowed = allowed & (self._low < self._high)
        self._shares = label is not None
        self._label = np.arange(p) if label is None else label
        self._room = room
        self._n_labels = int(self._label.max(initial=-1)) + 1
        self.n_refits = 0

    @override
    def may_unite(self) -> bool:
        return not self._shares

    @override
    def node(self, items: Items) -> BoundedNode:
        index = np.array(items, np.int64)
        block = np.ascontiguousarray(self._white.rows(items)[:, index])
        block.flat[:: block.shape[0] + 1] = UNIT
        x = np.zeros(index.size)
        low, high = self._low[index], self._high[index]
        value = 1.0 + fit_one(block, self._slope[index], low, high, x)
        self.n_refits += 1
        return BoundedNode(items, value, block, x)

    def _without(self, node: BoundedNode) -> tuple[Floats, Floats]:
        """Return the minimizers and the minima without each feature."""
        if node.without is None:
            index = np.array(node.items, np.int64)
            k = index.size
            bases, minima = np.empty((k, k)), np.empty(k)
            low, high = self._low[index], self._high[index]
            fit_without(node.block, self._slope[index], low, high, node.x, bases, minima)
            self.n_refits += k
            node.without = bases, 1.0 + minima
        return node.without

    def _count(self, items: Items) -> Integers:
        return np.bincount(self._label[list(items)], minlength=self._n_labels)

    @override
    def candidates(self, node: BoundedNode) -> Integers:
        return np.flatnonzero(self._free(node) & self._has_room(node))

    def _free(self, node: BoundedNode) -> NDArray[np.bool_]:
        free = self._allowed.copy()
        free[list(node.items)] = False
        return free

    def _has_room(self, node: BoundedNode) -> NDArray[np.bool_]:
        return np.asarray(self._count(node.items)[self._label] < self._room)

    def _reach(self, slope: Floats, left: Floats) -> Floats:
        """Return an upper bound on the decrease by columns of given slopes and squares."""
        step = np.clip(slope / left, self._low, self._high)
        return np.asarray(step * (2 * slope - left * step))

    def _best(
        self,
        node: BoundedNode,
        bases: Floats,
        value: Floats,
        gain: Floats,
        enough: float,
        leaves: bool,
    ) -> tuple[int, int] | None:
        """Return the places of the pair of base and column with the least exact minimum."""
        bound = value[:, None] - gain
        rows, columns = np.nonzero(bound < enough)
        if not rows.size:
            return None
        bound = bound[rows, columns]
        order = np.argsort(bound, kind="stable")
        rows, columns, bound = rows[order], columns[order], bound[order]
        index = np.array(node.items, np.int64)
        leaving = rows if leaves else np.full_like(rows, -1)
        best, _, solved = fit_entries(
            node.block,
            self._slope[index],
            self._low[index],
            self._high[index],
            bases,
            self._white.rows(node.items),
            leaving,
            columns,
            self._slope,
            self._low,
            self._high,
            bound - 1.0,
            UNIT,
            enough - 1.0,
        )
        self.n_refits += solved
        return None if best < 0 else (int(rows[best]), int(columns[best]))

    @override
    def grow(self, node: BoundedNode) -> BoundedNode | None:
        open_ = self._free(node) & self._has_room(node)
        if self._white.is_flat or not open_.any():
            return None
        spent, _ = self._spent(node)
        left = np.maximum(UNIT - np.square(spent).sum(0), EPS)
        slope = self._slope - node.x @ self._white.rows(node.items)
        gain = np.where(open_, self._reach(slope, left), 0.0)
        if not gain.max() > 0:
            return None
        pair = self._best(
            node, node.x[None], np.array([node.value]), gain[None], node.value, False
        )
        if pair is None:
            return None
        return self.node(tuple(sorted((*node.items, pair[1]))))

    def _spent(self, node: BoundedNode) -> tuple[Floats, Floats]:
        """Return what the features explain of every column, and what each gives back."""
        rows = self._white.rows(node.items)
        k = rows.shape[0]
        if not k:
            return rows, rows
        factor = np.linalg.cholesky(node.block)
        spent = solve_triangular(factor, rows, lower=True, check_finite=False)
        inverse = solve_triangular(factor, np.eye(k), lower=True, check_finite=False)
        basis = inverse / np.sqrt(np.square(inverse).sum(0))
        return spent, basis.T @ spent

    @override
    def shrink(self, node: BoundedNode) -> BoundedNode | None:
        _, minima = self._without(node)
        loose = ~np.isin(node.items, np.array(self.fixed, np.int64))
        if not loose.any():
            return None
        least = int(np.where(loose, minima, np.inf).argmin())
        return self.node(node.items[:least] + node.items[least + 1 :])

    @override
    def exchange(self, node: BoundedNode) -> BoundedNode | None:
        if not node.items:
            return None
        bases, minima = self._without(node)
        loose = ~np.isin(node.items, np.array(self.fixed, np.int64))
        if not loose.any():
            return None
        spent, freed = self._spent(node)
        left = np.maximum(UNIT - np.square(spent).sum(0) + np.square(freed), EPS)
        slope = self._slope - bases @ self._white.rows(node.items)
        gain = self._reach(slope, left)
        own = self._label[list(node.items)][:, None] == self._label
        room = self._count(node.items)[self._label] - own < self._room
        gain[~(room & self._free(node) & loose[:, None])] = -np.inf
        enough = node.value - TOL * abs(node.value) - TINY
        pair = self._best(node, bases, minima, gain, enough, True)
        if pair is None:
            return None
        i, j = pair
        return self.node(tuple(sorted((*node.items[:i], *node.items[i + 1 :], j))))

    def subset(self, node: BoundedNode) -> Subset:
        """Return the features of a node with their coefficients in the units of the data."""
        index = np.array(node.items, np.int64)
        low, high = self._bounds[0][index], self._bounds[1][index]
        at_low, at_high = node.x <= self._low[index], node.x >= self._high[index]
        safe = np.where(self._scale[index] > 0, self._scale[index], 1.0)
        coef = np.clip(node.x / safe, low, high)
        coef[at_low], coef[at_high] = low[at_low], high[at_high]
        coef[self._scale[index] == 0] = 0.0
        found = to_subset(self._gram, index, coef[:, None], self._ridge)
        if not (at_low | at_high)[coef != 0].any():
            # No bound is active: without the guard against dependent columns it is more accurate.
            exact = refit_shortest(self._gram, found.support, self._ridge)
            inside = (exact.coef[:, 0] >= self._bounds[0][exact.support]) & (
                exact.coef[:, 0] <= self._bounds[1][exact.support]
            )
            if inside.all() and exact.value <= found.value:
                return exact
        return found
