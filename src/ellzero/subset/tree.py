"""A tree of boxes of supports; each is a smaller problem of the same kind with its own model."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.subset.curvature import (
    Model,
    own_weights,
    plain_model,
    thresholded_model,
)
from ellzero.subset.evidence import Evidence
from ellzero.subset.results import Floats, Integers

States = NDArray[np.int8]
# Features of which a relaxation may keep nonzero.
WIDTH = 400
# A feature with less than this share of its square outside the span of those included makes the
# projected problem inaccurate.
SPAN = 1e-4
# Share of the first weights that none falls below: other boxes need them.
FLOOR = 0.5
# How many times longer than usual a model that does well is used.
LONGER = 8
# Typical weight below which thresholds are tried.
SCARCE = 0.02
# Thresholds that are tried, in standard deviations of the entries beside the diagonal.
THRESHOLDS = (1.5, 2.0, 2.5, 3.0)


@dataclass(frozen=True, slots=True)
class Box:
    """Supports that contain some features and take the rest from others.

    Parameters
    ----------
    inside, free : ndarray of int64
        Features that are in, and features to choose from.
    bound : float
        Lower bound.
    weights : ndarray of shape (len(free),) or None
        Weights of a model of a larger box.
    threshold : float
        Threshold of that model.
    theta : ndarray of shape (len(free),)
        Base point of the bound.
    step : int, default=-1
        Step of the evidence that leaves this box.
    """

    inside: Integers
    free: Integers
    bound: float
    weights: Floats | None
    threshold: float
    theta: Floats
    step: int = -1


@dataclass(slots=True)
class Part:
    """The problem of one box, projected on what the features inside leave.

    Parameters
    ----------
    h, c : ndarray of shape (p, p) and (p,)
        Matrix with a unit diagonal, linear term.
    energy : float
        Constant.
    scale : ndarray of shape (p,)
        What columns were divided by.
    names : ndarray of shape (p,)
        Features.
    inside : ndarray of int64
        Features projected out.
    state : ndarray of shape (p,), int8
        1 for features that are in but could not be projected out.
    room : int
        How many more features fit.
    slack : float
        What rounding can have done to the energy.
    """

    h: Floats
    c: Floats
    energy: float
    scale: Floats
    names: Integers
    inside: Integers
    state: States
    room: int
    slack: float


class Tree:
    """Branch and bound over boxes.

    Parameters
    ----------
    h, c : ndarray of shape (p, p) and (p,)
        The problem, scaled to a unit diagonal.
    energy, floor, tol : float
        Constant; what counts as zero; relative gap.
    budget : int
        Most features.
    late : callable
        Tells whether time is up, between the steps of building a model.
    evidence : Evidence
        Receives the steps.
    """

    def __init__(
        self,
        h: Floats,
        c: Floats,
        energy: float,
        floor: float,
        tol: float,
        budget: int,
        late: Callable[[], bool],
        evidence: Evidence,
    ) -> None:
        self.h, self.c, self.energy, self.floor, self.tol = h, c, energy, floor, tol
        self.budget, self.late, self.evidence = budget, late, evidence
        self.value = energy
        self.support = np.empty(0, np.int64)
        self.count = np.zeros(4, np.int64)
        self.queue: list[tuple[float, int, Box]] = []
        self.made = 0
        self.current = math.inf
        self.closed = math.inf
        self.models = 0
        self.left = c.size
        self.root_bound = 0.0

    @property
    def level(self) -> float:
        """Bound at which a box is settled."""
        return self.value - max(0.5 * self.tol * abs(self.value), self.floor)

    @property
    def is_settled(self) -> bool:
        """Whether the gap is at most `tol`, or what rounding leaves of it."""
        value = self.value
        return self.lower_bound >= value - max(self.tol * abs(value), 2.0 * self.floor)

    @property
    def lower_bound(self) -> float:
        """Smallest bound of all boxes."""
        first = self.queue[0][0] if self.queue else math.inf
        return min(first, self.current, self.closed, self.value)

    @property
    def n_open(self) -> int:
        """Number of boxes that wait."""
        return len(self.queue)

    def add(self, box: Box) -> None:
        """Add an open box."""
        heapq.heappush(self.queue, (box.bound, self.made, box))
        self.made += 1

    def improve(self, support: Integers, fixed: States | None = None) -> None:
        """Improve a support by exchanges and keep it when it is the best."""
        from ellzero.kernels.branch_tree import exchange

        support = np.array(support, dtype=np.int64)
        fixed = np.zeros(self.c.size, np.int8) if fixed is None else fixed
        total = exchange(self.h, self.c, support, fixed, self.c.size)
        if self.energy - total < self.value:
            self.value, self.support = self.energy - total, support

    def run(self, fixed: States, most: int | None) -> Iterator[None]:
        """Work on boxes until none is open; yields now and then, to look at the clock."""
        while self.queue:
            bound, _, box = heapq.heappop(self.queue)
            self.current = bound
            if bound >= self.level:
                self.closed = min(self.closed, bound)
                self.queue.clear()
                break
            yield from self._split(box, fixed, most)
            self.current = math.inf
            yield

    # One box -------------------------------------------------------------------------------------

    def _project(self, box: Box) -> Part:
        """Return the problem of a box."""
        inside, free = box.inside, box.free
        room = self.budget - inside.size
        if inside.size:
            try:
                factor = np.linalg.cholesky(self.h[np.ix_(inside, inside)])
            except np.linalg.LinAlgError:
                return self._keep(box)
            if factor.diagonal().min() ** 2 < SPAN:
                return self._keep(box)
            tilt = np.linalg.solve(factor, self.h[np.ix_(inside, free)])
            half = np.linalg.solve(factor, self.c[inside])
            h = self.h[np.ix_(free, free)] - tilt.T @ tilt
            square = h.diagonal().copy()
            if square.size and square.min() < SPAN:
                return self._keep(box)
            c = self.c[free] - half @ tilt
            energy = self.energy - float(half @ half)
        else:
            h, c = self.h[np.ix_(free, free)], self.c[free]
            square, energy = np.ones(free.size), self.energy
        scale = np.sqrt(square)
        h = h / scale / scale[:, None]
        np.fill_diagonal(h, 1.0)
        slack = 64 * 2.2e-16 / float(square.min(initial=1.0)) * self.energy
        return Part(
            np.ascontiguousarray(h), c / scale, energy, scale, free, inside,
            np.zeros(free.size, np.int8), room, slack,
        )  # fmt: skip

    def _keep(self, box: Box) -> Part:
        """Return the problem of a box with the features inside left in it."""
        names = np.concatenate([box.inside, box.free])
        state = np.zeros(names.size, np.int8)
        state[: box.inside.size] = 1
        return Part(
            np.ascontiguousarray(self.h[np.ix_(names, names)]), self.c[names], self.energy,
            np.ones(names.size), names, np.empty(0, np.int64), state,
            self.budget - box.inside.size, 0.0,
        )  # fmt: skip

    def _model(self, part: Part, box: Box, refine: int) -> Model | None:
        """Return a model of a part: weights that are raised, or thresholded entries."""
        p = part.names.size
        self.models += 1
        inherited = None
        if box.weights is not None and box.weights.size == p and box.threshold == 0.0:
            inherited = plain_model(part.h, box.weights / np.square(part.scale))
        plain = inherited
        if plain is None and box.threshold == 0.0:
            weights = own_weights(part.h)
            plain = None if weights is None else plain_model(part.h, weights)
        typical = 0.0 if plain is None else float(np.median(plain.weights))
        likely = box.weights is None or box.threshold > 0.0 or typical < 0.01
        if likely and typical < SCARCE and p > part.room > 1:
            best = self._thresholded(part, box)
            if best is not None and best.weights[0] > 3.0 * typical:
                if box.weights is None and plain is not None and not part.state.any():
                    self.root_bound = self._plain_bound(part, plain)
                return best
        if plain is None:
            return None
        if not 0 < part.room < p - int(part.state.sum()):
            return plain
        return self._raise(part, plain, box, refine)

    def _plain_bound(self, part: Part, plain: Model) -> float:
        """Return the bound of the plain model: thresholds pay in the tree, not at its root."""
        from ellzero.kernels.branch_relax import relax

        width = min(part.names.size, WIDTH)
        bound, _, _ = relax(
            plain.matrix, part.c, plain.weights, np.sqrt(plain.weights), part.energy, part.state,
            part.room, np.zeros(part.names.size), np.empty(part.names.size),
            math.inf, 40, 0.0, np.empty((2, width, width)),
        )  # fmt: skip
        return max(bound - part.slack, 0.0)

    def _thresholded(self, part: Part, box: Box) -> Model | None:
        """Return the thresholded model that leaves most curvature."""
        p = part.names.size
        beside = np.abs(part.h[np.triu_indices(p, 1)])
        spread = float(np.median(beside)) / 0.6745
        tried: tuple[float, ...] = THRESHOLDS
        if box.threshold > 0.0:
            tried = (box.threshold / spread, 1.15 * box.threshold / spread)
        best = None
        most = part.room + int(part.state.sum())
        for factor in tried:
            if self.late():
                break
            model = thresholded_model(part.h, most, factor * spread)
            if model is not None and (best is None or model.weights[0] > best.weights[0]):
                best = model
        return best

    def _raise(self, part: Part, plain: Model, box: Box, rounds: int) -> Model:
        """Raise the weights where the relaxation of the part gains by it."""
        from ellzero.kernels.branch_curvature import raise_weights
        from ellzero.kernels.branch_relax import relax

        p = part.names.size
        width = min(p, WIDTH)
        work = np.empty((2, width, width))
        best, best_bound = plain, -math.inf
        base = 0.98 * plain.weights
        d = base.copy()
        inverse = None
        theta, v, column = part.c * 0.0, np.empty(p), np.empty(p)
        barriers = (1.0, 0.3, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03)
        for turn in range(rounds):
            model = None if self.late() else plain_model(part.h, d)
            if model is None:
                break
            bound, edge, _ = relax(
                model.matrix, part.c, model.weights, np.sqrt(model.weights), part.energy,
                part.state, part.room, theta, v, math.inf, 40, 0.0, work,
            )  # fmt: skip
            if bound > best_bound:
                best, best_bound = model, bound
            if bound - part.slack >= self.level or turn + 1 == rounds or edge <= 0.0:
                break
            d = model.weights.copy()
            if inverse is None or turn % 4 == 3:
                inverse = np.linalg.inv(model.matrix)
            z = np.minimum(1.0, np.abs(theta) * np.sqrt(d) / edge)
            used = z > 0
            slope = np.where(used, np.square(theta) * (1.0 / np.maximum(z, 1e-9) - 1.0), 0.0)
            if not slope.any():
                break
            slope = np.maximum(slope, 3e-3 * slope[slope > 0].mean())
            low = np.maximum(FLOOR * base, np.where(used, 0.2 * d, 1.05 * np.square(v / edge)))
            barrier = barriers[min(turn, len(barriers) - 1)] * float(slope @ d) / p
            raise_weights(inverse, d, slope, np.minimum(low, d), barrier, column)
        return best

    def _split(self, box: Box, fixed: States, most: int | None) -> Iterator[None]:
        """Bound a box, explore it for a while, and add what stays open."""
        from ellzero.kernels import branch_tree as kernels

        first = self.models == 0
        refine = 8 if first else 3
        lowest = box.bound
        while True:
            part = self._project(box)
            p = part.names.size
            best = np.array([self.value])
            support = np.full(part.room + int(part.state.sum()), -1, np.int64)
            anchor = part.state.copy()
            model = None if p == 0 else self._model(part, box, refine)
            d = np.zeros(p) if model is None else model.weights
            q = part.h if model is None else model.matrix
            roots = np.sqrt(d)
            state, theta = part.state.copy(), np.zeros(p)
            if box.theta.size == p:
                theta[:] = box.theta * part.scale
            width = max(min(p, WIDTH), 1)
            work = np.empty((2, width, width))
            numbers = (part.energy, self.floor + part.slack, self.tol)
            evidence = self.evidence
            evidence.add_model(model, projected=not part.state.any())
            evidence.reserve(1, width, p)
            if p == 0:
                self.closed = min(self.closed, max(lowest, part.energy - part.slack))
                self._found(part, support[:0], part.energy)
                return
            bound, left, split, step = kernels.examine(
                part.h, q, part.c, d, roots, *numbers, state, part.room, theta, np.empty(p),
                40, 0.0, best, support, anchor, self.count, work, box.step, 0, evidence.log,
            )  # fmt: skip
            lowest = max(lowest, bound - part.slack)
            if first:
                lowest = max(lowest, self.root_bound)
            self.current = min(lowest, self.value)
            self._found(part, support, float(best[0]), fixed)
            self._count_fixed(part)
            if first:
                self.root_bound = max(self.root_bound, min(lowest, self.value))
            if left < 0:
                self.closed = min(self.closed, lowest)
                self.left = 0 if first else self.left
                return
            keep = state >= 0
            if first:
                self.left = int(keep.sum())
            yield
            if keep.sum() > 0.85 * p and (state[keep] - part.state[keep]).sum() == 0:
                break
            box = self._box(part, model, state, theta, lowest, step)
            if not box.free.size:
                break
        yield from self._explore(
            part, model, state, theta, left, split, bound, lowest, numbers, best, work, fixed,
            most, step,
        )  # fmt: skip

    def _explore(
        self, part: Part, model: Model | None, state: States, theta: Floats, left: int,
        split: int, first: float, lowest: float, numbers: tuple[float, float, float], best: Floats,
        work: Floats, fixed: States, most: int | None, made: int,
    ) -> Iterator[None]:  # fmt: skip
        """Explore a box under one model; what is open at the end becomes boxes of their own."""
        from ellzero.kernels import branch_tree as kernels

        p = part.names.size
        d = np.zeros(p) if model is None else model.weights
        q = part.h if model is None else model.matrix
        patience = 60 + p
        size, width = 2 * LONGER * patience + 4, min(p, WIDTH)
        pool = (
            np.empty((size, p), np.int8), np.empty((size, width), np.int32),
            np.empty((size, width)), np.empty(size, np.int32), np.empty(size, np.int32),
            np.empty(size), np.empty(size, np.int32), np.empty(size, np.int64),
        )  # fmt: skip
        heap, free = np.zeros(size, np.int64), np.arange(size)[::-1].copy()
        ends, closed = np.array([1, size - 1]), np.array([math.inf])
        kernels.store(0, state, theta, left, first, split, *pool, made)
        done, slice_ = 0, max(1, 6000 // (p + 20))
        support = np.full(left + int((state > 0).sum()), -1, np.int64)
        try:
            while done < patience:
                best[0] = min(best[0], self.value)
                step = slice_ if most is None else min(slice_, (most - int(self.count[3])) // 2)
                if step <= 0:
                    yield
                    continue
                self.evidence.reserve(2 * step, width, p)
                code = kernels.explore(
                    part.h, q, part.c, d, np.sqrt(d), *numbers, 8, 0.05, *pool, heap, free, ends,
                    best, support, part.state, closed, self.count, work, self.evidence.log, step,
                )  # fmt: skip
                done += step
                self._found(part, support, float(best[0]), fixed)
                self._count_fixed(part)
                low = min(closed[0], pool[5][heap[0]] if ends[0] else math.inf) - part.slack
                self.current = min(max(low, lowest), self.value)
                if code != kernels.PAUSED:
                    break
                # A model that has come half the way up is not replaced yet.
                if done >= patience and low - first > 0.5 * (self.level - first):
                    patience = min(2 * patience, LONGER * (60 + p))
                yield
        finally:
            self.closed = min(self.closed, max(float(closed[0]) - part.slack, lowest))
            for slot in heap[: ends[0]]:
                point = np.zeros(p)
                n = pool[2 + 1][slot]
                point[pool[1][slot, :n]] = pool[2][slot, :n]
                bound = max(float(pool[5][slot]) - part.slack, lowest)
                self.add(self._box(part, model, pool[0][slot], point, bound, int(pool[7][slot])))
            self.current = math.inf

    def _box(
        self,
        part: Part,
        model: Model | None,
        state: States,
        theta: Floats,
        bound: float,
        step: int,
    ) -> Box:
        """Return a box of the whole problem for a state of a part."""
        open_ = state == 0
        inside = np.concatenate([part.inside, part.names[state > 0]])
        weights = None
        threshold = 0.0
        if model is not None:
            threshold = model.threshold
            weights = (model.weights * np.square(part.scale))[open_]
        return Box(
            np.sort(inside), part.names[open_], bound, weights, threshold,
            (theta / part.scale)[open_], step,
        )  # fmt: skip

    def _count_fixed(self, part: Part) -> None:
        """Count the boxes closed by deciding features: their bounds reach the level, no more."""
        if self.count[2]:
            margin = max(0.5 * self.tol * abs(self.value), self.floor + part.slack)
            self.closed = min(self.closed, self.value - margin - part.slack)

    def _found(
        self, part: Part, support: Integers, value: float, fixed: States | None = None
    ) -> None:
        """Take over a support that is better than the best so far."""
        if value < self.value:
            chosen = part.names[support[support >= 0]]
            self.improve(np.concatenate([part.inside, chosen]), fixed)
