"""Best subsets with a proof: branch and bound on the Gram matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ellzero.core.result import Measure, Status
from ellzero.errors import InvalidParameterError
from ellzero.subset.curvature import weights
from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Floats, Integers, Subset
from ellzero.validation import check_integer, check_real

# What rounding can do to a sum of squares, relative to that of the targets.
ROUNDING = 1e-13
# Open boxes that are kept; beyond, the search goes deep first.
CAPACITY = 200_000
# Features of which a relaxation may keep nonzero.
WIDTH = 400
# Random restarts of the search for a first incumbent.
KICKS = 30
# Seconds between two looks at the clock.
PAUSE = 0.03


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a proof stands.

    Parameters
    ----------
    value : float
        Objective of the best subset so far.
    lower_bound : float
        Proven lower bound so far.
    n_nodes : int
        Boxes bounded so far.
    n_open : int
        Boxes that are open.
    seconds : float
        Time so far.
    """

    value: float
    lower_bound: float
    n_nodes: int
    n_open: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ExactResult:
    """A subset, and how far from the best it can be.

    Parameters
    ----------
    subset : Subset
        The best subset found.
    lower_bound : float
        Proven lower bound on the objective of every subset, in the units of `subset.value`.
    status : Status
        CONVERGED when the gap is at most `tol`; else the limit that ended the search, or STALLED
        when rounding did.
    n_nodes : int
        Boxes of subsets that were bounded.
    seconds : float
        Wall time.
    root_bound : float
        Lower bound before any branching.
    measures : mapping of str to number or str
        Work done: relaxations, enumerations, features fixed, features left at the root.
    """

    subset: Subset
    lower_bound: float
    status: Status
    n_nodes: int
    seconds: float
    root_bound: float
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Relative gap (value - lower_bound) / value; 0 for a value of 0."""
        value = self.subset.value
        return 0.0 if value == self.lower_bound else (value - self.lower_bound) / abs(value)


def prove(
    gram: AbstractGram,
    budget: int,
    *,
    ridge: float = 0.0,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    start: Subset | None = None,
    time_limit: float | None = None,
    max_nodes: int | None = None,
    tol: float = 1e-6,
    callback: Callable[[Progress], bool | None] | None = None,
) -> ExactResult:
    r"""Find the best subset of at most `budget` features and prove it.

    .. math:: \min_b \; \tfrac{1}{2N} \|y - X b\|^2 + \tfrac{\lambda}{2} \|b\|^2
        \quad \text{with at most } k \text{ nonzero entries}

    where k is `budget` and :math:`\lambda` is `ridge`.

    Parameters
    ----------
    gram : AbstractGram
        Inner products, of one target.
    budget : int
        Most features. Must be in [0, n_features].
    ridge : float, default=0.0
        The lambda. Must not be negative; the bounds need it where columns are collinear.
    always, forbidden : iterable of int, default=()
        Features that are in every subset, and in none. The former count.
    start : Subset or None, default=None
        A subset to start from; None searches one.
    time_limit : float or None, default=None
        Wall time in seconds; None means no limit.
    max_nodes : int or None, default=None
        Most boxes to bound; None means no limit.
    tol : float, default=1e-6
        Relative gap at which the proof is complete. Must be positive.
    callback : callable or None, default=None
        Called with a `Progress` some times a second; a true return value stops the search.

    Returns
    -------
    ExactResult
        The subset and the lower bound. A run that is stopped, also by the keyboard, returns what
        it has: its bound holds.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, or the features that are always in exceed the budget.

    Notes
    -----
    A box of subsets is bounded by its perspective relaxation, with curvature moved from the loss
    to the penalty as far as the smallest eigenvalues allow [1]_ [2]_. Every point gives a bound
    that holds, less what rounding can do; it also decides features whose change would cost more
    than the incumbent allows. Boxes with room for two features are enumerated. Time and memory:
    O(p^2) for the matrix, O(p) for an open box. The number of boxes can grow like the number of
    subsets when there are more features than samples and little ridge.

    References
    ----------
    .. [1] J. Liu, S. Rosen, C. Zhong and C. Rudin, "OKRidge: scalable optimal k-sparse ridge
       regression", arXiv:2304.06686.
    .. [2] H. Hazimeh, R. Mazumder and A. Saab, "Sparse regression at scale: branch-and-bound
       rooted in first-order optimization", arXiv:2004.06152.
    """
    began = time.perf_counter()
    p = gram.n_features
    check_integer("budget", budget, 0, p, meaning="the number of features")
    check_real("ridge", ridge, 0.0)
    check_real("tol", tol, 0.0, open_low=True)
    if time_limit is not None:
        check_real("time_limit", time_limit, 0.0)
    if max_nodes is not None:
        check_integer("max_nodes", max_nodes, 0)
    kept = _features("always", always, p)
    banned = _features("forbidden", forbidden, p)
    both = np.intersect1d(kept, banned)
    if both.size:
        raise InvalidParameterError(
            f"`always` and `forbidden` must not share features, got {both.tolist()} in both."
        )
    if kept.size > budget:
        raise InvalidParameterError(
            f"`always` must name at most `budget={budget}` features, got {kept.size}.",
            "Raise `budget`.",
        )
    if gram.n_outputs != 1:
        raise InvalidParameterError(
            f"`gram` must have one target, got {gram.n_outputs}.",
            "Use `search` for several targets.",
        )
    search = _Search(gram, budget, float(ridge), kept, banned, tol, began, time_limit, max_nodes)
    return search.run(start, callback)


def _features(name: str, given: Iterable[int], p: int) -> Integers:
    """Return features ascending, each once, after checking them."""
    numbers = [
        check_integer(name, j, 0, p - 1, meaning="the positions of features") for j in given
    ]
    return np.unique(np.asarray(numbers, dtype=np.int64))


class _Search:
    """One proof under way: the problem scaled to a unit diagonal, the incumbent, the tree."""

    def __init__(
        self,
        gram: AbstractGram,
        budget: int,
        ridge: float,
        always: Integers,
        forbidden: Integers,
        tol: float,
        began: float,
        time_limit: float | None,
        max_nodes: int | None,
    ) -> None:
        self.gram, self.budget, self.ridge, self.tol = gram, budget, ridge, tol
        self.always = always
        self.began, self.time_limit, self.max_nodes = began, time_limit, max_nodes
        self.shrinkage = ridge * gram.n_samples
        self.energy = float(gram.energy[0])
        # A column without spread around its mean explains nothing.
        moment = gram.diagonal + gram.n_samples * np.square(gram.x_mean)
        usable = gram.diagonal > 1e-13 * moment
        usable[forbidden] = False
        self.names = np.flatnonzero(usable)
        self.fixed_names = always[usable[always]]
        self.budget -= always.size - self.fixed_names.size
        columns = gram.columns(self.names)[:, self.names]
        h = np.array(columns, dtype=np.float64)
        h[np.diag_indices_from(h)] += self.shrinkage
        scale = np.sqrt(h.diagonal())
        h /= scale
        h /= scale[:, None]
        h = 0.5 * (h + h.T)
        np.fill_diagonal(h, 1.0)
        self.h = np.ascontiguousarray(h)
        self.c = np.ascontiguousarray(gram.cross[self.names, 0] / scale)
        self.fixed = np.isin(self.names, self.fixed_names).astype(np.int8)
        self.floor = ROUNDING * self.energy
        self.budget = min(self.budget, self.names.size)
        self.best = np.array([self.energy])
        self.support = np.full(self.budget, -1, dtype=np.int64)
        self.count = np.zeros(4, dtype=np.int64)
        self.closed = np.array([math.inf])
        self.root_bound = 0.0
        self.left = self.names.size

    # The incumbent -------------------------------------------------------------------------------

    def _consider(self, support: Integers) -> None:
        """Improve a support by exchanges and keep it when it is the best."""
        from ellzero.kernels.branch_tree import exchange

        support = support.copy()
        total = exchange(self.h, self.c, support, self.fixed, self.names.size)
        if self.energy - total < self.best[0]:
            self.best[0] = self.energy - total
            self.support[: support.size] = support
            self.support[support.size :] = -1

    def _first_incumbent(self, start: Subset | None) -> None:
        """Search a first incumbent: forward, from the start given, and after kicks."""
        p, k = self.names.size, self.budget
        if k == 0:
            return
        if start is not None:
            place = np.full(self.gram.n_features, -1, dtype=np.int64)
            place[self.names] = np.arange(p)
            given = place[np.union1d(start.support, self.fixed_names)]
            given = given[given >= 0]
            if given.size <= k:
                self._consider(given)
        self._consider(self._forward())
        generator = np.random.default_rng(0)
        movable = np.flatnonzero(self.fixed == 0)
        for _ in range(KICKS if start is None else KICKS // 3):
            now = self.support[self.support >= 0]
            loose = np.setdiff1d(now, np.flatnonzero(self.fixed))
            others = np.setdiff1d(movable, now)
            n = min(loose.size, others.size, max(2, k // 4))
            if n == 0 or self._late():
                break
            stay = np.setdiff1d(now, generator.choice(loose, n, replace=False))
            self._consider(np.concatenate([stay, generator.choice(others, n, replace=False)]))

    def _forward(self) -> Integers:
        """Return the support that grows by the feature that lowers the objective most."""
        chosen = np.flatnonzero(self.fixed)
        while chosen.size < self.budget:
            rest, depth = self.c.copy(), np.ones(self.names.size)
            if chosen.size:
                square = self.h[np.ix_(chosen, chosen)]
                spread = np.linalg.lstsq(square, self.h[chosen], rcond=None)[0]
                rest -= self.c[chosen] @ spread
                depth -= (spread * self.h[chosen]).sum(0)
            gain = np.where(depth > 1e-10, np.square(rest) / np.maximum(depth, 1e-10), -1.0)
            gain[chosen] = -1.0
            feature = int(gain.argmax())
            if gain[feature] < 0:
                break
            chosen = np.append(chosen, feature)
        return chosen

    # The tree ------------------------------------------------------------------------------------

    def _late(self) -> bool:
        limit = self.time_limit
        return limit is not None and time.perf_counter() - self.began >= limit

    def _level(self) -> float:
        best = float(self.best[0])
        return best - max(0.5 * self.tol * abs(best), self.floor)

    def run(
        self, start: Subset | None, callback: Callable[[Progress], bool | None] | None
    ) -> ExactResult:
        status = Status.INTERRUPTED
        lowest = 0.0
        try:
            self._first_incumbent(start)
            status, lowest = self._root()
            if status is Status.CONVERGED and lowest < self._level():
                status = Status.MAX_ITER
                self._plant(lowest)
                status = self._grow(callback)
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
        if hasattr(self, "ends"):
            lowest = max(lowest, self._lowest())
        return self._result(status, lowest)

    def _root(self) -> tuple[Status, float]:
        """Bound the root and drop features that its bound excludes, while that goes on."""
        from ellzero.kernels.branch_tree import examine

        p = self.names.size
        self.state = self.fixed.copy()
        self.room = self.budget - int(self.fixed.sum())
        self.theta, self.split = np.zeros(p), -1
        lowest = 0.0
        if p == 0:
            return Status.CONVERGED, self.energy * (1 - 1e-12)
        while True:
            if self._late():
                return Status.TIME_LIMIT, lowest
            p = self.c.size
            self._model()
            if self.d is None:
                return Status.STALLED, lowest
            bound, left, self.split = examine(
                self.h, self.q, self.c, self.d, self.roots, self.energy, self.floor, self.tol,
                self.state, self.room, self.theta, np.empty(p), 60, self.best, self.support,
                self.fixed, self.count, self.work,
            )  # fmt: skip
            lowest = max(lowest, min(bound, self.best[0]))
            self.root_bound = lowest
            if left < 0:
                self.left = 0
                return Status.CONVERGED if lowest >= self._level() else Status.STALLED, lowest
            self.room = left
            keep = self.state >= 0
            keep[self.support[self.support >= 0]] = True
            self.left = int(keep.sum())
            if self.left > 0.9 * p:
                return Status.CONVERGED, lowest
            self._compress(keep)

    def _model(self) -> None:
        self.d = weights(self.h)
        width = min(self.c.size, WIDTH)
        self.work = np.empty((2, width, width))
        if self.d is not None:
            self.q = self.h - np.diag(self.d)
            self.roots = np.sqrt(self.d)

    def _compress(self, keep: Floats) -> None:
        """Leave out features that no better subset has."""
        back = np.cumsum(keep) - 1
        self.h = np.ascontiguousarray(self.h[np.ix_(keep, keep)])
        self.c, self.theta = self.c[keep].copy(), self.theta[keep].copy()
        self.state, self.fixed = self.state[keep].copy(), self.fixed[keep].copy()
        self.names = self.names[keep]
        self.support = np.where(self.support >= 0, back[self.support], -1)
        self.split = int(back[self.split])

    def _plant(self, bound: float) -> None:
        from ellzero.kernels.branch_tree import WIDTH as REMEMBERED
        from ellzero.kernels.branch_tree import store

        p = self.c.size
        n = CAPACITY
        self.pool = (
            np.empty((n, p), np.int8), np.empty((n, REMEMBERED), np.int32),
            np.empty((n, REMEMBERED)), np.empty(n, np.int32), np.empty(n, np.int32),
            np.empty(n), np.empty(n, np.int32),
        )  # fmt: skip
        self.heap = np.zeros(n, np.int64)
        self.free = np.arange(n)[::-1].copy()
        self.ends = np.array([1, n - 1])
        store(0, self.state, self.theta, self.room, bound, self.split, *self.pool)

    def _grow(self, callback: Callable[[Progress], bool | None] | None) -> Status:
        """Split boxes until all are closed or a limit is reached."""
        from ellzero.kernels.branch_tree import DONE, FULL, explore

        most = 8
        while True:
            if self._late():
                return Status.TIME_LIMIT
            if self.max_nodes is not None:
                room = (self.max_nodes - int(self.count[3])) // 2
                if room <= 0:
                    return Status.MAX_ITER
                most = min(most, room)
            now = time.perf_counter()
            code = explore(
                self.h, self.q, self.c, self.d, self.roots, self.energy, self.floor, self.tol, 8,
                *self.pool, self.heap, self.free, self.ends, self.best, self.support, self.fixed,
                self.closed, self.count, self.work, most,
            )  # fmt: skip
            took = time.perf_counter() - now
            if code == DONE:
                done = self._lowest() >= self._level()
                return Status.CONVERGED if done else Status.STALLED
            if code == FULL:
                return Status.STALLED
            most = max(1, min(10000, int(most * min(4.0, PAUSE / max(took, 1e-9)))))
            if callback is not None:
                n_open = int(self.ends[0])
                seconds = time.perf_counter() - self.began
                unit = 2.0 * self.gram.n_samples
                if callback(
                    Progress(
                        float(self.best[0]) / unit, self._lowest() / unit,
                        int(self.count[3]), n_open, seconds,
                    )
                ):  # fmt: skip
                    return Status.INTERRUPTED

    def _lowest(self) -> float:
        """Return the smallest bound of all boxes, open and closed."""
        low = min(float(self.closed[0]), float(self.best[0]))
        if self.ends[0]:
            low = min(low, float(self.pool[5][self.heap[0]]))
        return low

    def _result(self, status: Status, lowest: float) -> ExactResult:
        subset = self._subset()
        unit = 2.0 * self.gram.n_samples
        bound = min(max(lowest, 0.0) / unit * (1 - 1e-15), subset.value)
        return ExactResult(
            subset,
            bound,
            status,
            n_nodes=int(self.count[3]) + 1,
            seconds=time.perf_counter() - self.began,
            root_bound=min(self.root_bound / unit, subset.value),
            measures={
                "relaxations": int(self.count[0]),
                "enumerations": int(self.count[1]),
                "features fixed": int(self.count[2]),
                "features left at the root": self.left,
            },
        )

    def _subset(self) -> Subset:
        """Refit the incumbent in the units of the data."""
        support = np.sort(self.names[self.support[self.support >= 0]])
        coef = np.zeros((support.size, 1))
        value = self.energy
        if support.size:
            block = self.gram.block(support) + self.shrinkage * np.eye(support.size)
            scale = np.sqrt(block.diagonal())
            target = self.gram.cross[support] / scale[:, None]
            coef = np.linalg.solve(block / scale / scale[:, None], target)
            value = max(self.energy - float((coef * target).sum()), 0.0)
            coef = coef / scale[:, None]
            there = coef[:, 0] != 0
            support, coef = support[there], coef[there]
        return Subset(
            support,
            coef,
            self.gram.intercept(support, coef),
            value / (2.0 * self.gram.n_samples),
        )
