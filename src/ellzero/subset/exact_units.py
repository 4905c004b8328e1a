"""Best subsets of groups, of several targets and within bounds, with a proof."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import TreeProof
from ellzero.subset.curvature import Model, own_weights, plain_model, thresholded_model
from ellzero.subset.gram import AbstractGram
from ellzero.subset.refits import refit_shortest, to_subset
from ellzero.subset.results import Floats, Integers, Subset

States = NDArray[np.int8]
# Share of a column of a group outside the span of those before it up to which it is left out.
SPANNED = 1e-12
# Typical weight below which thresholds are tried, and those, in deviations of the entries.
SCARCE, THRESHOLDS = 0.02, (1.5, 2.0, 2.5, 3.0)
# Share of the first weights that none falls below: other boxes need them.
FLOOR = 0.5
# What the better side of a split counts against the worse.
LEAN = 0.6
# Edges, sweeps at each, and the share of what is missing that they must gain: at the root, later.
FIRST, LATER = (30, 60, 0.0), (12, 12, 0.03)
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class UnitProblem:
    """A problem over units in coordinates in which the columns of a unit are orthonormal.

    Parameters
    ----------
    features : ndarray of int64
        Features that are used, ascending.
    order : ndarray of int64
        The same, unit by unit.
    offsets : ndarray of shape (n_units + 1,), int64
        Where the columns of every unit begin and end.
    labels : ndarray of shape (n_units,), int64
        Units in the numbers of the user.
    h, c : ndarray of shape (p, p) and (p, m)
        Matrix and linear term.
    energy, slack : float
        Constant, and what rounding can have done to it.
    low, high, scale : ndarray of shape (p,)
        Bounds, and what columns were divided by; the latter for units of one column.
    bounded : bool
        Whether there are bounds.
    inside : ndarray of shape (n_units,), int8
        1 for units that are always in.
    budget : int
        Most units.
    """

    features: Integers
    order: Integers
    offsets: Integers
    labels: Integers
    h: Floats
    c: Floats
    energy: float
    slack: float
    low: Floats
    high: Floats
    scale: Floats
    bounded: bool
    inside: States
    budget: int

    @classmethod
    def of(
        cls,
        gram: AbstractGram,
        shrinkage: Floats,
        units: Integers,
        budget: int,
        always: Integers,
        usable: NDArray[np.bool_],
        bounds: tuple[Floats, Floats] | None,
    ) -> UnitProblem:
        """Return the problem of a Gram matrix, `always` in units."""
        names = np.flatnonzero(usable)
        h: Floats = np.array(gram.columns(names)[:, names], dtype=np.float64)
        h[np.diag_indices_from(h)] += shrinkage[names]
        scale: Floats = np.sqrt(h.diagonal())
        h = np.asarray(h / scale / scale[:, None])
        h = 0.5 * (h + h.T)
        np.fill_diagonal(h, 1.0)
        places, turns, thinnest = [], [], 1.0
        labels = units[names]
        first = np.sort(np.unique(labels, return_index=True)[1])
        for label in labels[first].tolist():
            of_unit = np.flatnonzero(labels == label)
            kept, turn, share = orthonormal(h, of_unit)
            places.append(kept)
            turns.append(turn)
            thinnest = min(thinnest, share)
        index = np.concatenate([*places, np.zeros(0, np.int64)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in places])]).astype(np.int64)
        h, c = h[np.ix_(index, index)], gram.cross[names] / scale[:, None]
        c = np.array(c[index])
        for (a, b), turn in zip(itertools.pairwise(offsets), turns, strict=True):
            if b - a > 1:
                h[a:b] = turn @ h[a:b]
                h[:, a:b] = h[:, a:b] @ turn.T
                h[a:b, a:b] = np.eye(b - a)
                c[a:b] = turn @ c[a:b]
        h = np.ascontiguousarray(0.5 * (h + h.T))
        energy = float(gram.energy.sum())
        low, high = np.full(index.size, -np.inf), np.full(index.size, np.inf)
        if bounds is not None:
            low = bounds[0][names[index]] * scale[index]
            high = bounds[1][names[index]] * scale[index]
        order = names[index]
        in_order = units[order[offsets[:-1]]]
        inside = np.isin(in_order, always).astype(np.int8)
        # Units that have no use still take up budget when they are always in.
        budget = min(budget - len(always) + int(inside.sum()), in_order.size)
        slack = 0.0 if thinnest == 1.0 else 64 * EPS / thinnest * energy
        return cls(
            np.sort(order), order, offsets, in_order, h, np.ascontiguousarray(c), energy, slack,
            low, high, scale[index], bounds is not None, inside, budget,
        )  # fmt: skip

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.labels.size)

    def columns(self, units: Integers) -> Integers:
        """Return where the columns of units are."""
        spans = [np.arange(self.offsets[u], self.offsets[u + 1]) for u in units.tolist()]
        return np.concatenate([*spans, np.zeros(0, np.int64)]).astype(np.int64)

    def fit(self, units: Integers) -> tuple[float, Floats]:
        """Return the least value on some units and the coefficients, (k, m)."""
        from ellzero.kernels.branch_units import fit_within

        at = self.columns(units)
        if not at.size:
            return self.energy, np.zeros((0, self.c.shape[1]))
        block, target = np.ascontiguousarray(self.h[np.ix_(at, at)]), self.c[at]
        if self.bounded:
            point: Floats = np.zeros(at.size)
            value = fit_within(block, target[:, 0].copy(), self.low[at], self.high[at], point)
            return self.energy + value, point[:, None]
        x: Floats = np.linalg.lstsq(block, target, rcond=1e-12)[0].astype(np.float64)
        return self.energy - float((x * (2 * target - block @ x)).sum()), x

    def subset(
        self,
        gram: AbstractGram,
        ridge: Floats,
        units: Integers,
        bounds: tuple[Floats, Floats] | None,
    ) -> Subset:
        """Return the minimizer on some units in the units of the data."""
        at = self.columns(units)
        if bounds is None:
            return refit_shortest(gram, np.sort(self.order[at]), ridge)
        _, x = self.fit(units)
        names = self.order[at]
        low, high = bounds[0][names], bounds[1][names]
        coef = np.clip(x[:, 0] / self.scale[at], low, high)
        # Rounding of the scale must not leave a bound.
        coef = np.where(
            x[:, 0] <= self.low[at], low, np.where(x[:, 0] >= self.high[at], high, coef)
        )
        by_name = np.argsort(names)
        return to_subset(gram, names[by_name], coef[by_name][:, None], ridge)


def orthonormal(h: Floats, members: Integers) -> tuple[Integers, Floats, float]:
    """Return independent members, what makes them orthonormal, and the smallest pivot.

    The inverse of the Cholesky factor of their block, in their order, so that others find the
    same coordinates.
    """
    kept: list[int] = []
    factor: Floats = np.zeros((0, 0))
    thinnest = 1.0
    for j in members.tolist():
        row = np.linalg.solve(factor, h[kept, j]) if kept else np.zeros(0)
        left = h[j, j] - float(row @ row)
        if left <= SPANNED:
            continue
        thinnest = min(thinnest, left)
        k = len(kept)
        grown = np.zeros((k + 1, k + 1))
        grown[:k, :k], grown[k, :k], grown[k, k] = factor, row, math.sqrt(left)
        factor = grown
        kept.append(j)
    turn: Floats = np.linalg.inv(factor).astype(np.float64)
    return np.array(kept, np.int64), turn, thinnest


@dataclass(slots=True)
class _Box:
    """A box of supports: states of units, room, base point, edge, step of the evidence."""

    state: States
    room: int
    theta: Floats
    edge: float
    split: int
    step: int


class UnitTree:
    """Branch and bound over units under one model of the curvature.

    Parameters
    ----------
    problem : UnitProblem
        The problem.
    tol, floor : float
        Relative gap; what counts as zero.
    late : callable
        Tells whether time is up, between the steps of building a model.
    limit : int
        Numbers up to which evidence is kept.
    """

    def __init__(
        self,
        problem: UnitProblem,
        tol: float,
        floor: float,
        late: Callable[[], bool],
        limit: int,
    ) -> None:
        self.problem, self.tol, self.late = problem, tol, late
        self.floor = floor + problem.slack
        self.value = problem.energy
        self.support: Integers = np.empty(0, np.int64)
        self.closed = math.inf
        self.queue: list[tuple[float, int, _Box]] = []
        self.made = 0
        self.current = 0.0
        self.root_bound = 0.0
        self.count = {"relaxations": 0, "enumerations": 0, "features fixed": 0}
        self.n_nodes = 0
        self.left = problem.n_units
        self._limit = limit
        self._steps: list[tuple[int, int, int, int]] = []
        self._places: list[Integers] = []
        self._values: list[Floats] = []
        self._decisions: list[list[int]] = []
        self._kept = 0
        self._model: Model | None = None

    @property
    def has_model(self) -> bool:
        """Whether a model bounds boxes."""
        return self._model is not None

    # What is known -------------------------------------------------------------------------------

    @property
    def level(self) -> float:
        """Bound at which a box is settled."""
        return self.value - max(0.5 * self.tol * abs(self.value), self.floor)

    @property
    def lower_bound(self) -> float:
        """Smallest bound of all boxes."""
        first = self.queue[0][0] if self.queue else math.inf
        return min(first, self.current, self.closed, self.value)

    @property
    def is_settled(self) -> bool:
        """Whether the gap is at most `tol`, or what rounding leaves of it."""
        return self.lower_bound >= self.value - max(self.tol * abs(self.value), 2.0 * self.floor)

    @property
    def n_open(self) -> int:
        """Number of boxes that wait."""
        return len(self.queue)

    def improve(self, units: Integers) -> None:
        """Keep a support when it is the best."""
        value, _ = self.problem.fit(units)
        if value < self.value:
            self.value, self.support = value, np.sort(units)

    def proof(self) -> TreeProof | None:
        """Return the evidence, or None where it was given up."""
        if self._limit == 0 or self._kept > self._limit:
            return None
        weights = np.empty(0) if self._model is None else self._model.weights
        none: Integers = np.zeros(0, np.int64)
        decided = [len(d) for d in self._decisions]
        return TreeProof(
            features=self.problem.features.copy(),
            steps=np.array(self._steps, np.int32).reshape(-1, 4),
            point_ends=np.cumsum([a.size for a in self._places], dtype=np.int64),
            places=np.concatenate([none, *self._places]).astype(np.int32),
            values=np.concatenate([np.empty(0), *self._values]),
            decision_ends=np.cumsum(decided, dtype=np.int64),
            decisions=np.array([d for ds in self._decisions for d in ds], np.int32),
            model_starts=np.zeros(1, np.int64),
            projected=np.zeros(1, np.int8),
            thresholds=np.array([0.0 if self._model is None else self._model.threshold]),
            weight_ends=np.array([weights.size]),
            weights=weights.copy(),
        )

    def _note(self, parent: int, side: int, point: Floats) -> int:
        """Write a step of the evidence and return its number."""
        if self._kept > self._limit or self._limit == 0:
            return -1
        flat = point.ravel()
        places = np.flatnonzero(flat)
        self._steps.append((parent, side, 0, -1))
        self._places.append(places)
        self._values.append(flat[places].copy())
        self._decisions.append([])
        self._kept += 4 + places.size
        return len(self._steps) - 1

    def _mark(self, step: int, enumerated: int, split: int) -> None:
        if step >= 0:
            parent, side, _, _ = self._steps[step]
            self._steps[step] = (parent, side, enumerated, split)

    # The model -----------------------------------------------------------------------------------

    def _make_model(self) -> None:
        problem = self.problem
        p = problem.order.size
        weights = own_weights(problem.h)
        plain = None if weights is None else plain_model(problem.h, weights)
        typical = 0.0 if plain is None else float(np.median(plain.weights))
        sizes = np.sort(np.diff(problem.offsets))[::-1]
        most = int(sizes[: problem.budget].sum())
        if typical < SCARCE and p > most > 1:
            beside = np.abs(problem.h[np.triu_indices(p, 1)])
            spread = float(np.median(beside)) / 0.6745
            for factor in THRESHOLDS:
                if self.late():
                    break
                model = thresholded_model(problem.h, most, factor * spread)
                held = self._model.weights[0] if self._model is not None else 3.0 * typical
                if model is not None and model.weights[0] > held:
                    self._model = model
        if self._model is None and plain is not None:
            self._model = self._raise(plain)

    def _raise(self, plain: Model) -> Model:
        """Raise the weights where the relaxation of the root gains by it."""
        from ellzero.kernels.branch_curvature import raise_weights

        problem = self.problem
        p, u = problem.order.size, problem.n_units
        of_column = np.repeat(np.arange(u), np.diff(problem.offsets))
        best, best_bound = plain, -math.inf
        base = 0.98 * plain.weights
        d = base.copy()
        box = self._root()
        barriers = (1.0, 0.3, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03)
        for turn, barrier in enumerate(barriers):
            model = None if self.late() else plain_model(problem.h, d)
            if model is None:
                break
            bound, edge, v, _, _ = self._relax(box, model)
            box.edge = edge
            if bound > best_bound:
                best, best_bound = model, bound
            if bound - problem.slack >= self.level or turn + 1 == len(barriers) or edge <= 0.0:
                break
            d = model.weights.copy()
            inverse = np.linalg.inv(model.matrix)
            square = np.square(box.theta).sum(1)
            size = np.sqrt(np.bincount(of_column, d * square, u))
            z = np.minimum(1.0, size / edge)[of_column]
            used = z > 0
            slope = np.where(used, square * (1.0 / np.maximum(z, 1e-9) - 1.0), 0.0)
            if not slope.any():
                break
            slope = np.maximum(slope, 3e-3 * slope[slope > 0].mean())
            reach = np.bincount(of_column, np.square(v).sum(1), u)[of_column] / edge**2
            low = np.maximum(FLOOR * base, np.where(used, 0.2 * d, 1.05 * reach))
            price = barrier * float(slope @ d) / p
            raise_weights(inverse, d, slope, np.minimum(low, d), price, np.empty(p))
        return best

    def _root(self) -> _Box:
        problem = self.problem
        room = problem.budget - int(problem.inside.sum())
        return _Box(problem.inside.copy(), room, np.zeros_like(problem.c), 0.0, -1, -1)

    def _relax(self, box: _Box, model: Model) -> tuple[float, float, Floats, Floats, Floats]:
        """Return bound, edge, residual, gains and largest gains; the box gets the base point."""
        from ellzero.kernels.branch_units import relax_units

        problem = self.problem
        v, gains = np.empty_like(problem.c), np.empty(problem.n_units)
        top = np.empty(box.room + 1)
        effort = LATER if self.made else FIRST
        bound, edge, _ = relax_units(
            model.matrix, problem.c, model.weights, problem.offsets, problem.energy, box.state,
            box.room, problem.low, problem.high, problem.bounded, box.edge,
            self.level + problem.slack, *effort, box.theta, v, gains, top,
        )  # fmt: skip
        self.count["relaxations"] += 1
        return float(bound), float(edge), v, gains, top

    # The tree ------------------------------------------------------------------------------------

    def run(self, most: int | None) -> Iterator[None]:
        """Work on boxes until none is open; yields to look at the clock."""
        if not self.problem.n_units or self.problem.budget == 0:
            self.closed = self.problem.energy
            self.current = math.inf
            if self.problem.n_units:
                self._leaf(self._root(), self._note(-1, 0, np.zeros(0)))
            return
        self._make_model()
        self.n_nodes = 1
        self._examine(self._root(), -1, 0, 0.0)
        self.current = math.inf
        self.root_bound = min(self.lower_bound, self.value)
        self.left = 0
        if self.queue:
            self.left = int((self.queue[0][2].state == 0).sum())
        yield
        while self.queue:
            bound, _, box = heapq.heappop(self.queue)
            if bound >= self.level:
                self.closed = min(self.closed, bound)
                self.queue.clear()
                break
            self.current = bound
            if most is not None and self.n_nodes + 2 > most:
                heapq.heappush(self.queue, (bound, 0, box))
                self.current = math.inf
                yield
                continue
            for side in (1, -1):
                state = box.state.copy()
                state[box.split] = side
                child = _Box(state, box.room - (side > 0), box.theta.copy(), box.edge, -1, -1)
                self._examine(child, box.step, side, bound)
                self.n_nodes += 1
            self.current = math.inf
            yield

    def _examine(self, box: _Box, parent: int, side: int, known: float) -> None:
        """Bound a box; close it, enumerate it, or add it to the queue with a unit to split on."""
        problem, model = self.problem, self._model
        bound = known
        score = None
        for _ in range(3):
            n_open = int((box.state == 0).sum())
            if box.room == 0 or n_open <= box.room:
                box.step = self._note(parent, side, np.zeros(0))
                self._leaf(box, box.step)
                return
            if model is None:
                box.step = self._note(parent, side, np.zeros(0))
                break
            new, box.edge, _, gains, top = self._relax(box, model)
            new -= problem.slack
            bound = max(bound, new)
            box.step = self._note(parent, side, box.theta)
            parent, side = box.step, 0
            if bound >= self.level:
                self.closed = min(self.closed, bound)
                return
            open_ = np.flatnonzero(box.state == 0)
            largest = open_[np.argsort(-gains[open_], kind="stable")[: box.room]]
            self.improve(np.concatenate([np.flatnonzero(box.state > 0), largest]))
            # What deciding a unit the other way would cost.
            into = gains[open_] >= top[1]
            other = new + np.where(into, gains[open_] - max(top[0], 0.0), top[1] - gains[open_])
            decided = other >= self.level
            if bound >= self.level:
                self.closed = min(self.closed, bound)
                return
            z = np.minimum(1.0, self._sizes(box, model, open_) / max(box.edge, 1e-300))
            score = (open_, z, gains)
            if not decided.any():
                break
            self.closed = min(self.closed, float(np.maximum(other[decided], bound).min()))
            signs = np.where(into[decided], 1, -1)
            box.state[open_[decided]] = signs
            box.room -= int((signs > 0).sum())
            self.count["features fixed"] += int(decided.sum())
            if box.step >= 0:
                numbers = (open_[decided] + 1) * signs
                self._decisions[box.step] += numbers.tolist()
                self._kept += int(decided.sum())
            score = None
        open_ = np.flatnonzero(box.state == 0)
        if box.room == 0 or open_.size <= box.room or (box.room <= 2 and not problem.bounded):
            if box.step >= 0 and self._decisions[box.step] and problem.bounded:
                box.step = self._note(box.step, 0, np.zeros(0))
            if self._leaf(box, box.step, bound):
                return
        box.split = self._choose(box, open_, score)
        self._mark(box.step, 0, box.split)
        self.made += 1
        heapq.heappush(self.queue, (bound, self.made, box))

    def _sizes(self, box: _Box, model: Model, units: Integers) -> Floats:
        of_column = np.repeat(np.arange(self.problem.n_units), np.diff(self.problem.offsets))
        weight = model.weights * np.square(box.theta).sum(1)
        return np.asarray(np.sqrt(np.bincount(of_column, weight, self.problem.n_units)[units]))

    def _choose(
        self, box: _Box, open_: Integers, score: tuple[Integers, Floats, Floats] | None
    ) -> int:
        """Return the open unit whose two sides raise the bound most, by a rough estimate."""
        problem, model = self.problem, self._model
        if model is None:
            slope = np.square(problem.c).sum(1)
            gains = np.add.reduceat(slope, problem.offsets[:-1])[open_]
            return int(open_[gains.argmax()])
        if score is None:
            z = np.minimum(1.0, self._sizes(box, model, open_) / max(box.edge, 1e-300))
        else:
            z = score[1]
        square = np.add.reduceat(np.square(box.theta).sum(1), problem.offsets[:-1])[open_]
        d = np.add.reduceat(model.weights, problem.offsets[:-1])[open_]
        d /= np.diff(problem.offsets)[open_]
        into = np.square(box.edge * (1.0 - z)) / (1.0 + d)
        low, high = np.minimum(square, into), np.maximum(square, into)
        return int(open_[(np.where(z > 0, low + LEAN * high, 0.0) + 1e-9 * z).argmax()])

    def _leaf(self, box: _Box, step: int, known: float = 0.0) -> bool:
        """Enumerate a box; tell whether that settles it."""
        from ellzero.kernels.branch_units import least_of_units

        problem = self.problem
        inside, open_ = np.flatnonzero(box.state > 0), np.flatnonzero(box.state == 0)
        self.count["enumerations"] += 1
        if open_.size <= box.room:
            inside, room = np.sort(np.concatenate([inside, open_])), 0
        else:
            room = box.room
        if problem.bounded:
            # One support: its minimizer is what proves its value.
            value, x = problem.fit(inside)
            if step >= 0:
                at = problem.columns(inside)
                self._places[step], self._values[step] = at, x[:, 0].copy()
                self._kept += at.size
            self.improve(inside)
            value = self._least_within(inside, value, x[:, 0])
            found = inside
        else:
            state = box.state.copy()
            if room == 0:
                state[open_] = 1 if open_.size <= box.room else -1
            pair = np.full(2, -1, np.int64)
            value = least_of_units(
                problem.h, problem.c, problem.offsets, problem.energy, state, room, pair
            )
            if value == -math.inf:
                if room == 0:
                    # Too near to collinear to be judged: the box keeps the bound it has.
                    self._mark(step, 1, -1)
                    self.closed = min(self.closed, known)
                    self.improve(inside)
                    return True
                return False
            found = np.concatenate([inside, pair[pair >= 0]])
        self._mark(step, 1, -1)
        if not problem.bounded and value < self.value:
            self.value, self.support = float(value), np.sort(found)
        rounding = 1e-12 * problem.energy + problem.slack
        self.closed = min(self.closed, max(known, float(value) - rounding))
        return True

    def _least_within(self, inside: Integers, value: float, x: Floats) -> float:
        """Return what the minimizer within bounds proves of its support."""
        problem = self.problem
        at = problem.columns(inside)
        block, target = problem.h[np.ix_(at, at)], problem.c[at, 0]
        if not at.size:
            return value
        curvature = float(np.linalg.eigvalsh(block)[0])
        slope = 2.0 * (block @ x - target)
        low, high = problem.low[at] - x, problem.high[at] - x
        if curvature >= SPANNED:
            step = np.clip(-slope / curvature, low, high)
            return value + float((step * (slope + 0.5 * curvature * step)).clip(max=0.0).sum())
        # What is spanned by others has no curvature: the tangent alone bounds a box.
        rounding = 4e-16 * (at.size + 4) * (np.abs(target) + np.abs(block) @ np.abs(x))
        least = np.minimum(low * (slope + 2 * rounding), high * (slope - 2 * rounding))
        tangent = value + float(least.clip(max=0.0).sum())
        # The least value without bounds is not above the one within them.
        free = np.linalg.lstsq(block, target, rcond=1e-12)[0]
        loose = problem.energy - float(free @ (2 * target - block @ free))
        return max(tangent, loose)
