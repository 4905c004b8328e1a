"""Best subsets with a proof: branch and bound on the Gram matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ellzero.core.result import Measure, Status, TreeProof
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.subset.evidence import LIMIT, Evidence
from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Floats, Integers, Subset
from ellzero.subset.tree import Box, States, Tree
from ellzero.validation import check_integer, check_real

if TYPE_CHECKING:
    from ellzero.subset.exact_units import UnitProblem

# What rounding can do to a sum of squares, relative to that of the targets.
ROUNDING = 1e-13
# Random restarts of the search for a first incumbent.
KICKS = 30


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
        Work done: relaxations, enumerations, features fixed, features left at the root, models.
    proof : TreeProof or None, default=None
        Evidence of the lower bound, which `ellzero.certificates.check_tree` checks; None where it
        was not asked for or outgrew its limit.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.exact import prove
    >>> from ellzero.subset.gram import gram_of
    >>> result = prove(gram_of(np.eye(4), np.array([4.0, 1.0, 3.0, 0.0])), 1)
    >>> bool(result.lower_bound <= result.subset.value)
    True
    """

    subset: Subset
    lower_bound: float
    status: Status
    n_nodes: int
    seconds: float
    root_bound: float
    measures: Mapping[str, Measure] = field(default_factory=dict)
    proof: TreeProof | None = None

    @property
    def gap(self) -> float:
        """Relative gap (value - lower_bound) / value; 0 for a value of 0."""
        value = self.subset.value
        return 0.0 if value == self.lower_bound else (value - self.lower_bound) / abs(value)


def prove(
    gram: AbstractGram,
    budget: int,
    *,
    ridge: float | ArrayLike = 0.0,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: ArrayLike | None = None,
    lower: float | ArrayLike | None = None,
    upper: float | ArrayLike | None = None,
    start: Subset | None = None,
    time_limit: float | None = None,
    max_nodes: int | None = None,
    tol: float = 1e-6,
    callback: Callable[[Progress], bool | None] | None = None,
    evidence: int = LIMIT,
) -> ExactResult:
    r"""Find the best subset of at most `budget` features, or groups of them, and prove it.

    .. math:: \min_B \; \tfrac{1}{2N} \|Y - X B\|_F^2 + \tfrac12 \sum_j \lambda_j \|B_j\|^2
        \quad \text{with at most } k \text{ nonzero rows, or groups of rows, } B_j

    where k is `budget` and :math:`\lambda` is `ridge`; coefficients may have bounds.

    Parameters
    ----------
    gram : AbstractGram
        Inner products. With several targets a feature has a coefficient for each of them, and
        counts once.
    budget : int
        Most features; most groups where `groups` is given. Must be in [0, n_features], or up to
        the number of groups.
    ridge : float or array_like of shape (n_features,), default=0.0
        The lambda. Must not be negative; the bounds need it where columns are collinear.
    always, forbidden : iterable of int, default=()
        Features that are in every subset, and in none; with their whole groups. The former count.
    groups : array_like of shape (n_features,), int, or None, default=None
        Label of the group of every feature. A group enters or leaves as a whole.
    lower, upper : float or array_like of shape (n_features,) or None, default=None
        Bounds on the coefficients, with ``lower <= 0 <= upper``; None means none.
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
    evidence : int, default=1000000
        Numbers up to which evidence is kept; 0 keeps none.

    Returns
    -------
    ExactResult
        The subset and the lower bound. A run that is stopped, also by the keyboard, returns what
        it has: its bound holds.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, or the features that are always in exceed the budget.
    IncompatibleError
        If bounds come with groups or with several targets.

    Notes
    -----
    A box of subsets is bounded by its perspective relaxation, with curvature moved from the loss
    to the penalty: feature by feature, as much as helps the relaxation most, which is a
    semidefinite program [1]_ [2]_ [3]_. Where there are more columns than samples, entries beside
    the diagonal are thresholded first, at a price that the budget bounds. Every point gives a
    bound that holds, less what rounding can do; it also decides features whose change would cost
    more than the incumbent allows. Boxes with room for two features are enumerated, and boxes that
    stay open become smaller problems with models of their own. Time and memory: O(p^3) and O(p^2)
    for a model, O(p) for an open box. The number of boxes can grow like the number of subsets when
    the signal is weak and the columns are collinear. Decisions depend on counts only: the same
    input gives the same bits.

    Groups, several targets and bounds have a tree of their own, which keeps the model of its root:
    the gain of a unit is the sum over its columns and targets, in coordinates in which the columns
    of a group are orthonormal, and is taken within the bounds. Without ridge and with more columns
    than samples that model often bounds nothing; then only what is enumerated does.

    References
    ----------
    .. [1] J. Liu, S. Rosen, C. Zhong and C. Rudin, "OKRidge: scalable optimal k-sparse ridge
       regression", arXiv:2304.06686.
    .. [2] H. Hazimeh, R. Mazumder and A. Saab, "Sparse regression at scale: branch-and-bound
       rooted in first-order optimization", arXiv:2004.06152.
    .. [3] H. Dong, K. Chen and J. Linderoth, "Regularization vs. relaxation: a conic optimization
       perspective of statistical variable selection", arXiv:1510.06083.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.exact import prove
    >>> from ellzero.subset.gram import gram_of
    >>> X = np.random.default_rng(0).standard_normal((40, 8))
    >>> result = prove(gram_of(X, X[:, 2] - X[:, 5] + 0.1 * X[:, 0]), 2, ridge=0.01)
    >>> result.subset.support.tolist(), result.status.name, result.gap < 1e-6
    ([2, 5], 'CONVERGED', True)
    """
    began = time.perf_counter()
    p = gram.n_features
    from ellzero.subset.shaped import check_bounds, check_groups, check_ridge

    names, units = check_groups(groups, p)
    what = "features" if groups is None else "groups"
    check_integer("budget", budget, 0, len(names), meaning=f"the number of {what}")
    lambdas = check_ridge(ridge, p)
    bounds = check_bounds(lower, upper, gram)
    if bounds is not None and groups is not None:
        raise IncompatibleError(
            "Bounds on coefficients cannot be combined with `groups`.", "Drop one of them."
        )
    check_real("tol", tol, 0.0, open_low=True)
    if time_limit is not None:
        check_real("time_limit", time_limit, 0.0)
    if max_nodes is not None:
        check_integer("max_nodes", max_nodes, 0)
    check_integer("evidence", evidence, 0)
    kept = _features("always", always, p)
    banned = _features("forbidden", forbidden, p)
    must, never = np.unique(units[kept]), np.unique(units[banned])
    both = np.intersect1d(must, never)
    if both.size:
        shared = np.intersect1d(kept, banned) if groups is None else names[both]
        raise InvalidParameterError(
            f"`always` and `forbidden` must not share {what}, got {shared.tolist()} in both."
        )
    if must.size > budget:
        raise InvalidParameterError(
            f"`always` must name at most `budget={budget}` {what}, got {must.size}.",
            "Raise `budget`.",
        )

    def late() -> bool:
        return time_limit is not None and time.perf_counter() - began >= time_limit

    run = _Run(began, late, max_nodes, callback)
    if groups is None and bounds is None and gram.n_outputs == 1:
        problem = _Problem.of(gram, budget, lambdas, kept, banned)
        tree = Tree(
            problem.h, problem.c, problem.energy, ROUNDING * problem.energy, tol, problem.budget,
            late, Evidence(problem.names, evidence),
        )  # fmt: skip
        return _prove_features(run, problem, tree, start)
    return _prove_units(
        run, gram, budget, lambdas, units, must, np.isin(units, never), bounds, start, tol,
        evidence,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Run:
    """Limits of a proof."""

    began: float
    late: Callable[[], bool]
    most: int | None
    callback: Callable[[Progress], bool | None] | None

    def stop(self, n_nodes: int, progress: Callable[[float], Progress]) -> Status | None:
        """Return why to stop, if so."""
        if self.late():
            return Status.TIME_LIMIT
        if self.most is not None and n_nodes + 2 > self.most:
            return Status.MAX_ITER
        seconds = time.perf_counter() - self.began
        if self.callback is not None and self.callback(progress(seconds)):
            return Status.INTERRUPTED
        return None


def _prove_features(run: _Run, problem: _Problem, tree: Tree, start: Subset | None) -> ExactResult:
    """Prove the best subset of features with one target, without bounds."""
    status = None
    try:
        _first_incumbent(problem, tree, start)
        tree.add(problem.root())
        for _ in tree.run(problem.fixed, run.most):
            status = run.stop(int(tree.count[3]), lambda s: problem.progress(tree, s))
            if status is not None:
                break
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    if tree.made == 0:
        tree.closed = 0.0
    if tree.is_settled:
        status = Status.CONVERGED
    return problem.result(tree, status or Status.STALLED, run.began)


def _prove_units(
    run: _Run,
    gram: AbstractGram,
    budget: int,
    ridge: Floats,
    units: Integers,
    always: Integers,
    banned: NDArray[np.bool_],
    bounds: tuple[Floats, Floats] | None,
    start: Subset | None,
    tol: float,
    evidence: int,
) -> ExactResult:
    """Prove the best subset of groups, of several targets or within bounds."""
    from ellzero.subset.exact_units import UnitProblem, UnitTree

    usable = _usable(gram)
    usable[banned] = False
    shrinkage = gram.n_samples * ridge
    problem = UnitProblem.of(gram, shrinkage, units, budget, always, usable, bounds)
    tree = UnitTree(problem, tol, ROUNDING * problem.energy, run.late, evidence)
    unit = 2.0 * gram.n_samples

    def progress(seconds: float) -> Progress:
        value, bound = tree.value / unit, max(tree.lower_bound, 0.0) / unit
        return Progress(value, min(bound, value), tree.n_nodes, tree.n_open, seconds)

    status = None
    try:
        for chosen in _first_units(problem, gram, budget, ridge, units, banned, bounds, start):
            tree.improve(chosen)
        for _ in tree.run(run.most):
            status = run.stop(tree.n_nodes, progress)
            if status is not None:
                break
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    if tree.is_settled:
        status = Status.CONVERGED
    subset = problem.subset(gram, ridge, tree.support, bounds)
    if start is not None and start.value <= subset.value:
        subset = start
    measures: dict[str, Measure] = dict(tree.count)
    measures["features left at the root"] = tree.left
    measures["models"] = int(tree.has_model)
    measures["boxes open"] = tree.n_open
    bound = max(tree.lower_bound, 0.0) / unit * (1 - 1e-15)
    return ExactResult(
        subset,
        min(bound, subset.value),
        status or Status.STALLED,
        n_nodes=tree.n_nodes,
        seconds=time.perf_counter() - run.began,
        root_bound=min(max(tree.root_bound, 0.0) / unit, subset.value),
        measures=measures,
        proof=tree.proof(),
    )


def _first_units(
    problem: UnitProblem,
    gram: AbstractGram,
    budget: int,
    ridge: Floats,
    units: Integers,
    banned: NDArray[np.bool_],
    bounds: tuple[Floats, Floats] | None,
    start: Subset | None,
) -> list[Integers]:
    """Return supports to begin with: those always in, and the one given or found by a search."""
    from ellzero.subset.effort import Effort
    from ellzero.subset.shaped import search_shaped

    must = np.flatnonzero(problem.inside)
    if start is None:
        grouped = problem.n_units < problem.order.size or np.ptp(np.bincount(units)) > 0
        start = search_shaped(
            gram,
            [budget],
            ridge=ridge,
            always=np.flatnonzero(np.isin(units, problem.labels[must])).tolist(),
            forbidden=np.flatnonzero(banned).tolist(),
            groups=units if grouped else None,
            lower=None if bounds is None else bounds[0],
            upper=None if bounds is None else bounds[1],
            effort=Effort.of("fast"),
        )[budget]
    chosen = np.flatnonzero(np.isin(problem.labels, units[start.support]))
    both = np.union1d(must, chosen)
    return [must, both] if both.size <= problem.budget else [must]


def _usable(gram: AbstractGram) -> NDArray[np.bool_]:
    """Return which columns have spread around their mean: others explain nothing."""
    moment = gram.diagonal + gram.n_samples * np.square(gram.x_mean)
    return np.asarray(gram.diagonal > 1e-13 * moment)


def _features(name: str, given: Iterable[int], p: int) -> Integers:
    """Return features ascending, each once, after checking them."""
    numbers = [
        check_integer(name, j, 0, p - 1, meaning="the positions of features") for j in given
    ]
    return np.unique(np.asarray(numbers, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class _Problem:
    """The problem scaled to a unit diagonal, without columns that are constant or forbidden."""

    gram: AbstractGram
    shrinkage: Floats
    budget: int
    names: Integers
    fixed: States
    h: Floats
    c: Floats
    energy: float

    @classmethod
    def of(
        cls, gram: AbstractGram, budget: int, ridge: Floats, always: Integers, forbidden: Integers
    ) -> _Problem:
        shrinkage = ridge * gram.n_samples
        usable = _usable(gram)
        usable[forbidden] = False
        names = np.flatnonzero(usable)
        fixed = np.isin(names, always).astype(np.int8)
        budget = min(budget - always.size + int(fixed.sum()), names.size)
        h = np.array(gram.columns(names)[:, names], dtype=np.float64)
        h[np.diag_indices_from(h)] += shrinkage[names]
        scale = np.sqrt(h.diagonal())
        h = h / scale / scale[:, None]
        h = np.ascontiguousarray(0.5 * (h + h.T))
        np.fill_diagonal(h, 1.0)
        c = np.ascontiguousarray(gram.cross[names, 0] / scale)
        return cls(gram, shrinkage, budget, names, fixed, h, c, float(gram.energy[0]))

    def root(self) -> Box:
        """Return the box of all supports."""
        inside, free = np.flatnonzero(self.fixed), np.flatnonzero(self.fixed == 0)
        return Box(inside, free, 0.0, None, 0.0, np.zeros(free.size))

    def progress(self, tree: Tree, seconds: float) -> Progress:
        """Return where the tree stands."""
        value = tree.value / (2.0 * self.gram.n_samples)
        bound = min(self._bound(tree), value)
        return Progress(value, bound, int(tree.count[3]), tree.n_open, seconds)

    def _bound(self, tree: Tree) -> float:
        """Return the lower bound in units of the objective, rounded down."""
        return max(tree.lower_bound, 0.0) / (2.0 * self.gram.n_samples) * (1 - 1e-15)

    def result(self, tree: Tree, status: Status, began: float) -> ExactResult:
        """Return what the tree has proven."""
        subset = self._subset(tree.support)
        unit = 2.0 * self.gram.n_samples
        return ExactResult(
            subset,
            min(self._bound(tree), subset.value),
            status,
            n_nodes=int(tree.count[3]) + 1,
            seconds=time.perf_counter() - began,
            root_bound=min(tree.root_bound / unit, subset.value),
            measures={
                "relaxations": int(tree.count[0]),
                "enumerations": int(tree.count[1]),
                "features fixed": int(tree.count[2]),
                "features left at the root": tree.left,
                "models": tree.models,
                "boxes open": tree.n_open,
            },
            proof=tree.evidence.proof(),
        )

    def _subset(self, chosen: Integers) -> Subset:
        """Refit a support in the units of the data."""
        support = np.sort(self.names[chosen])
        coef: Floats = np.zeros((support.size, 1))
        value = self.energy
        if support.size:
            block = self.gram.block(support) + np.diag(self.shrinkage[support])
            scale = np.sqrt(block.diagonal())
            target = self.gram.cross[support] / scale[:, None]
            unit = block / scale / scale[:, None]
            coef = np.asarray(np.linalg.solve(unit, target), dtype=np.float64)
            # Errors of the coefficients enter by their squares.
            value = self.energy - float((coef * (2.0 * target - unit @ coef)).sum())
            value = max(value, 0.0)
            coef = coef / scale[:, None]
            there = coef[:, 0] != 0
            support, coef = support[there], coef[there]
        return Subset(
            support,
            coef,
            self.gram.intercept(support, coef),
            value / (2.0 * self.gram.n_samples),
        )


def _first_incumbent(problem: _Problem, tree: Tree, start: Subset | None) -> None:
    """Search a first incumbent: forward, from the start given, and after kicks."""
    p, k, fixed = problem.names.size, problem.budget, problem.fixed
    if k == 0:
        return
    if start is not None:
        place = np.full(problem.gram.n_features, -1, dtype=np.int64)
        place[problem.names] = np.arange(p)
        given = np.union1d(place[start.support], np.flatnonzero(fixed))
        given = given[given >= 0]
        if given.size <= k:
            tree.improve(given, fixed)
    tree.improve(_forward(problem), fixed)
    generator = np.random.default_rng(0)
    movable = np.flatnonzero(fixed == 0)
    for _ in range(KICKS if start is None else KICKS // 3):
        now = tree.support
        loose = np.setdiff1d(now, np.flatnonzero(fixed))
        others = np.setdiff1d(movable, now)
        n = min(loose.size, others.size, max(2, k // 4))
        if n == 0 or tree.late():
            break
        stay = np.setdiff1d(now, generator.choice(loose, n, replace=False))
        tree.improve(np.concatenate([stay, generator.choice(others, n, replace=False)]), fixed)


def _forward(problem: _Problem) -> Integers:
    """Return the support that grows by the feature that lowers the objective most."""
    h, c = problem.h, problem.c
    chosen = np.flatnonzero(problem.fixed)
    while chosen.size < problem.budget:
        rest, depth = c.copy(), np.ones(c.size)
        if chosen.size:
            spread = np.linalg.lstsq(h[np.ix_(chosen, chosen)], h[chosen], rcond=None)[0]
            rest -= c[chosen] @ spread
            depth -= (spread * h[chosen]).sum(0)
        gain = np.where(depth > 1e-10, np.square(rest) / np.maximum(depth, 1e-10), -1.0)
        gain[chosen] = -1.0
        feature = int(gain.argmax())
        if gain[feature] < 0:
            break
        chosen = np.append(chosen, feature)
    return chosen
