"""Groups of columns that enter and leave a model together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs
from typing_extensions import override

from ellzero.kernels.subset_grouped import price_groups
from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Floats, Integers
from ellzero.subset.walk import AbstractNeighborhood, AbstractNode, Items

# Added to the diagonal of unit columns, so that dependent ones do no harm.
EPS = 1e-10
# Squared length up to which what is left of a unit column counts as spanned by others.
FLOOR = 1e-9
# Decrease, relative to the value and to the targets, that counts as one.
TOL = 1e-9
TINY = 1e-13
# Features up to which the whole Gram matrix is kept.
WHOLE = 400
# Columns that are computed together at first.
AHEAD = 32
# Numbers that kept columns may hold.
ROOM = 2**26
# Without the checks of `solve_triangular`, which take longer than small solves.
(TRTRS,) = get_lapack_funcs(("trtrs",), (np.zeros(0),))


class Prices(NamedTuple):
    """What every move from a node takes off its value."""

    outside: Integers
    add_gain: Floats
    swap_gain: Floats
    swap_leaver: Integers
    loss: Floats
    exchanges: bool


class GroupNode(AbstractNode):
    """Groups with the factor of their block."""

    __slots__ = ("columns", "factor", "moment", "prices")

    def __init__(
        self, items: Items, value: float, columns: Integers, factor: Floats, moment: Floats
    ) -> None:
        super().__init__(items, value)
        self.columns = columns
        self.factor = factor
        self.moment = moment
        self.prices: Prices | None = None


class Whitened:
    """A Gram matrix in coordinates in which the columns of every group are orthonormal.

    Directions of a group that its columns do not span become columns of their own that meet
    nothing.

    Parameters
    ----------
    gram : AbstractGram
        Inner products.
    penalty : ndarray of shape (n_features,)
        Added to the diagonal of the Gram matrix.
    members : sequence of ndarray
        Features of every group.
    """

    def __init__(self, gram: AbstractGram, penalty: Floats, members: Sequence[Integers]) -> None:
        self._gram = gram
        self._penalty = penalty
        self.members = members
        sizes = np.array([len(m) for m in members], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._order = np.concatenate([*members, np.zeros(0, np.int64)]).astype(np.int64)
        diagonal = gram.diagonal + penalty
        usable = is_usable(gram)
        self._unit = np.zeros(gram.n_features)
        self._unit[usable] = 1 / np.sqrt(diagonal[usable])
        whole = None
        if gram.n_features <= WHOLE:
            whole = gram.columns(np.arange(gram.n_features))
        self._turn_of: dict[int, Floats] = {}
        # Groups of one size are turned together.
        self._turns: list[tuple[Integers, Integers, Floats]] = []
        for size in np.unique(sizes).tolist():
            of_size = np.flatnonzero(sizes == size)
            features = np.array([members[g] for g in of_size.tolist()]).reshape(-1, size)
            turn = self._turn(features, whole)
            self._turn_of.update(zip(of_size.tolist(), turn, strict=True))
            places = self.offsets[of_size][:, None] + np.arange(size)
            self._turns.append((places, features, turn))
        energy = float(gram.energy.sum())
        self.energy = energy if energy > 0 else 1.0
        self.is_flat = not energy > 0
        scaled = gram.cross / np.sqrt(self.energy)
        self.cross = np.ascontiguousarray(self._across(scaled.T).T)
        self._rows: dict[int, Floats] = {}
        self._held = 0
        self._matrix = None
        if whole is not None:
            self._matrix = self._across(np.ascontiguousarray(self._across(whole).T))
            for places, _, _ in self._turns:
                size = places.shape[1]
                self._matrix[places[:, :, None], places[:, None, :]] = np.eye(size)

    def _turn(self, features: Integers, whole: Floats | None) -> Floats:
        """Return the matrices that make the columns of groups orthonormal."""
        size = features.shape[1]
        if size == 1:
            return self._unit[features][:, :, None]
        if whole is None:
            blocks = self._gram.blocks(features)
        else:
            blocks = whole[features[:, :, None], features[:, None, :]]
        blocks += self._penalty[features][:, :, None] * np.eye(size)
        unit = self._unit[features]
        blocks *= unit[:, :, None] * unit[:, None, :]
        spectrum, vectors = np.linalg.eigh(blocks)
        kept = spectrum > FLOOR
        root = np.where(kept, 1 / np.sqrt(np.where(kept, spectrum, 1.0)), 0.0)
        out: Floats = unit[:, :, None] * vectors * root[:, None, :]
        return out

    def _across(self, rows: Floats) -> Floats:
        """Return rows over features in the coordinates of the groups."""
        out = np.empty((rows.shape[0], self._order.shape[0]))
        for places, features, turn in self._turns:
            if features.shape[1] == 1:
                out[:, places[:, 0]] = rows[:, features[:, 0]] * turn[:, 0, 0]
            else:
                turned = rows[:, features].transpose(1, 0, 2) @ turn
                out[:, places] = turned.transpose(1, 0, 2)
        return out

    def _hold(self, group: int, raw: Floats) -> None:
        first, last = self.offsets[group], self.offsets[group + 1]
        rows = self._across(self._turn_of[group].T @ raw)
        rows[:, first:last] = np.eye(last - first)
        self._rows[group] = rows
        self._held += rows.size

    def rows(self, groups: Items) -> Floats:
        """Return the turned columns of groups as rows."""
        if self._matrix is not None:
            return self._matrix[self.columns(groups)]
        missing = [g for g in groups if g not in self._rows]
        if missing:
            if self._held > ROOM:
                self._rows = {g: self._rows[g] for g in groups if g in self._rows}
                self._held = sum(rows.size for rows in self._rows.values())
            if not self._rows:
                missing += self._strongest(missing)
            raw = self._gram.columns(np.concatenate([self.members[g] for g in missing]))
            at = 0
            for g in missing:
                self._hold(g, raw[at : at + len(self.members[g])])
                at += len(self.members[g])
        if not groups:
            return np.zeros((0, self._order.shape[0]))
        return np.concatenate([self._rows[g] for g in groups])

    def _strongest(self, without: Sequence[int]) -> list[int]:
        """Return the groups that explain most alone: a block of columns costs little more."""
        share = np.add.reduceat(np.square(self.cross).sum(axis=1), self.offsets[:-1])
        share[list(without)] = -1.0
        # More than are likely to be of use are not worth it.
        best = np.argsort(-share, kind="stable")[: AHEAD * share.size // self._order.size]
        return [g for g in best.tolist() if share[g] > 0]

    def columns(self, groups: Items) -> Integers:
        """Return where the columns of groups are."""
        spans = [np.arange(self.offsets[g], self.offsets[g + 1]) for g in groups]
        return np.concatenate([*spans, np.zeros(0, np.int64)]).astype(np.int64)


@final
class GroupHood(AbstractNeighborhood[GroupNode]):
    """Exact prices of all moves of one group, everything refitted.

    Parameters
    ----------
    whitened : Whitened
        Inner products.
    fixed : tuple of int
        Groups of every set, ascending.
    allowed : ndarray of shape (n_groups,), bool
        Groups that may be chosen.
    label : ndarray of shape (n_groups,), int64
        Groups of one label share places.
    room : int
        Places of every label.
    """

    def __init__(
        self,
        whitened: Whitened,
        fixed: Items,
        allowed: NDArray[np.bool_],
        label: Integers | None = None,
        room: int = 1,
    ) -> None:
        self._white = whitened
        self.fixed = fixed
        self._allowed = allowed
        self._shares = label is not None
        self._label = np.arange(len(whitened.members)) if label is None else label
        self._room = room
        self._n_labels = int(self._label.max(initial=-1)) + 1

    @override
    def may_unite(self) -> bool:
        return not self._shares

    @override
    def node(self, items: Items) -> GroupNode:
        columns = self._white.columns(items)
        block = self._white.rows(items)[:, columns]
        block.flat[:: block.shape[0] + 1] += EPS
        factor: Floats = np.linalg.cholesky(block).astype(np.float64, copy=False)
        moment = self._white.cross[columns]
        if columns.size:
            moment = TRTRS(factor, moment, lower=1)[0]
        taken = 0.0 if self._white.is_flat else float(np.square(moment).sum())
        return GroupNode(items, 1.0 - taken, columns, factor, moment)

    def _count(self, items: Items) -> Integers:
        return np.bincount(self._label[list(items)], minlength=self._n_labels)

    @override
    def candidates(self, node: GroupNode) -> Integers:
        free = self._allowed.copy()
        free[list(node.items)] = False
        free &= self._count(node.items)[self._label] < self._room
        return np.flatnonzero(free)

    def prices(self, node: GroupNode, exchanges: bool = True) -> Prices:
        """Return the exact decrease by every addition and, unless left out, every exchange."""
        if node.prices is not None and (node.prices.exchanges or not exchanges):
            return node.prices
        white = self._white
        inside = np.array(node.items, np.int64)
        rows = white.rows(node.items)
        k = rows.shape[0]
        if k:
            spent = TRTRS(node.factor, rows, lower=1)[0]
            inverse = TRTRS(node.factor, np.eye(k), lower=1)[0]
        else:
            spent, inverse = rows, np.zeros((0, 0))
        sizes = white.offsets[inside + 1] - white.offsets[inside]
        cuts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        basis = np.empty((k, k))
        for size in np.unique(sizes).tolist():
            spans = cuts[:-1][sizes == size][:, None] + np.arange(size)
            parts = np.linalg.qr(inverse[:, spans].transpose(1, 0, 2))[0]
            basis[:, spans] = parts.transpose(1, 0, 2)
        lent = basis.T @ node.moment
        slope = white.cross - spent.T @ node.moment
        allowed = self._allowed.copy()
        allowed[inside] = False
        outside = np.flatnonzero(allowed)
        locked = np.isin(inside, np.array(self.fixed, np.int64))
        freed = basis.T @ spent if exchanges else spent
        add_gain = np.empty(outside.size)
        swap_gain = np.empty(outside.size)
        swap_leaver = np.empty(outside.size, np.int64)
        price_groups(
            np.ascontiguousarray(spent.T),
            np.ascontiguousarray(freed.T),
            np.ascontiguousarray(slope),
            lent,
            white.offsets,
            cuts,
            # Where all must stay, no exchange is priced.
            locked if exchanges else np.ones_like(locked),
            inside,
            outside,
            self._label,
            self._count(node.items),
            self._room,
            1.0 + EPS,
            FLOOR,
            add_gain,
            swap_gain,
            swap_leaver,
        )
        loss = np.add.reduceat(np.square(lent).sum(1), cuts[:-1]) if k else np.zeros(0)
        loss[locked] = np.inf
        node.prices = Prices(outside, add_gain, swap_gain, swap_leaver, loss, exchanges)
        return node.prices

    @override
    def grow(self, node: GroupNode) -> GroupNode | None:
        prices = self.prices(node, exchanges=False)
        if not prices.outside.size or self._white.is_flat:
            return None
        best = int(prices.add_gain.argmax())
        if not prices.add_gain[best] > 0:
            return None
        return self.node(tuple(sorted((*node.items, int(prices.outside[best])))))

    @override
    def shrink(self, node: GroupNode) -> GroupNode | None:
        prices = self.prices(node, exchanges=False)
        if not prices.loss.size or not np.isfinite(prices.loss.min()):
            return None
        least = int(prices.loss.argmin())
        return self.node(node.items[:least] + node.items[least + 1 :])

    @override
    def exchange(self, node: GroupNode) -> GroupNode | None:
        prices = self.prices(node)
        if not prices.outside.size:
            return None
        best = int(prices.swap_gain.argmax())
        enough = TOL * abs(node.value) + TINY
        if not prices.swap_gain[best] > enough:
            return None
        leaver = int(prices.swap_leaver[best])
        rest = node.items[:leaver] + node.items[leaver + 1 :]
        better = self.node(tuple(sorted((*rest, int(prices.outside[best])))))
        return better if better.value < node.value - enough / 2 else None


def is_usable(gram: AbstractGram) -> NDArray[np.bool_]:
    """Return which columns are more than rounding around their mean."""
    floor = 1e-26 * gram.n_samples * np.square(gram.x_mean)
    return np.asarray(gram.diagonal > floor)
