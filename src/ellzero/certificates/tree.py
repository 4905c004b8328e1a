"""Checking of a tree of boxes: its lower bound, recomputed from the problem and the evidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import TreeProof

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

EPS = float(np.finfo(np.float64).eps)
# Share of a column's square outside the span of those inside without which projecting it out is
# inaccurate.
SPAN = 1e-5
# Shares of the weights that are tried where rounding asks for less than all.
SHARES = (1.0, 1.0 - 1e-12, 1.0 - 1e-10, 1.0 - 1e-8, 1.0 - 1e-6, 0.999)


@dataclass(frozen=True, slots=True)
class SquaresProblem:
    """What a tree is about: energy - 2 <c, b> + <b, H b> over sparse b.

    Parameters
    ----------
    matrix : ndarray of shape (p, p)
        H, symmetric, positive semidefinite.
    linear : ndarray of shape (p,) or (p, m)
        c; with several targets b has a column for each, and rows count.
    energy : float
        The constant.
    budget : int
        Most nonzeros; most groups where `units` is given.
    always, forbidden : tuple of int, default=()
        Features that take up budget in every support, and features that are in none.
    useless : tuple of int, default=()
        Features that change nothing, whatever their coefficient.
    least : float, default=-inf
        A lower bound on the function that is known; 0 where it is a sum of squares.
    units : ndarray of shape (p,), int64, or None, default=None
        Label of the group of every feature; None means that every feature is one.
    lower, upper : ndarray of shape (p,) or None, default=None
        Bounds on b, with 0 inside; None means none.
    """

    matrix: Floats
    linear: Floats
    energy: float
    budget: int
    always: tuple[int, ...] = ()
    forbidden: tuple[int, ...] = ()
    useless: tuple[int, ...] = ()
    least: float = -math.inf
    units: Integers | None = None
    lower: Floats | None = None
    upper: Floats | None = None

    @property
    def is_plain(self) -> bool:
        """Whether features are chosen one by one, with one target and without bounds."""
        free = self.lower is None and self.upper is None
        return self.units is None and free and self.linear.ndim == 1


@dataclass(frozen=True, slots=True)
class TreeCheck:
    """What a tree shows.

    Parameters
    ----------
    lower_bound : float
        The smallest bound of its leaves; minus infinity where the tree makes no sense.
    n_steps : int
        Steps recomputed.
    reason : str or None
        What is wrong with the tree; None when nothing is.
    """

    lower_bound: float
    n_steps: int
    reason: str | None


@dataclass(slots=True)
class _Box:
    """Features inside and free, by their places among those of the tree, and the bound known."""

    inside: Integers
    free: Integers
    room: int
    low: float


def check_tree(problem: SquaresProblem, proof: TreeProof) -> TreeCheck:
    r"""Recompute the lower bound that a tree of boxes proves.

    Parameters
    ----------
    problem : SquaresProblem
        The function, computed from the data and not taken from a solver.
    proof : TreeProof
        The tree.

    Returns
    -------
    TreeCheck
        The bound.

    Notes
    -----
    A model is a matrix Q and weights d with :math:`b^T H b \ge b^T Q b + \sum_j d_j b_j^2` for
    all sparse b; that Q is positive semidefinite is shown by a Cholesky factorization with a
    margin for rounding. Every base point :math:`\theta` then bounds a box by weak duality of its
    perspective relaxation [1]_: with :math:`v = c - Q \theta`,

    .. math:: e - \theta^T Q \theta - \sum_{\mathrm{inside}} v_j^2 / d_j
        - \sum_{\text{largest that fit}} v_j^2 / d_j.

    With groups, several targets or bounds the terms are those of units, in coordinates in which
    the columns of a group are orthonormal, and the largest within the bounds; a support within
    bounds is settled by the tangent at its minimizer and the least curvature.

    Boxes are derived here from the first one, so nothing is left out: what no later step takes
    over counts with the bound it has. Costs O(p^3) for a model, O(p) for a nonzero of a base
    point, and O(p^2) for a box that is enumerated.

    References
    ----------
    .. [1] J. Liu, S. Rosen, C. Zhong and C. Rudin, "OKRidge: scalable optimal k-sparse ridge
       regression", arXiv:2304.06686.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.certificates import SquaresProblem, check_tree
    >>> from ellzero.subset.exact import prove
    >>> from ellzero.subset.gram import gram_of
    >>> X = np.random.default_rng(0).standard_normal((40, 8))
    >>> y = X[:, 2] - X[:, 5] + 0.1 * X[:, 0]
    >>> result = prove(gram_of(X, y, fit_intercept=False), 2, ridge=0.01)
    >>> matrix = X.T @ X + 0.4 * np.eye(8)
    >>> problem = SquaresProblem(matrix, X.T @ y, float(y @ y), budget=2)
    >>> bound = check_tree(problem, result.proof).lower_bound / 80
    >>> bool(abs(bound - result.subset.value) < 1e-6 * bound)
    True
    """
    if not problem.is_plain:
        from ellzero.certificates.tree_units import check_unit_tree

        lowest, reason = check_unit_tree(problem, proof)
        steps = 0 if reason is not None else len(proof)
        return TreeCheck(lowest, steps, reason)
    reason = _malformed(problem, proof)
    if reason is not None:
        return TreeCheck(-math.inf, 0, reason)
    if not len(proof) and problem.least > -math.inf and not _chosen(problem, proof).all():
        # The tree never began: what is known anyway is all that it shows.
        return TreeCheck(problem.least, 0, None)
    names = proof.features
    h = np.array(problem.matrix[np.ix_(names, names)], dtype=np.float64)
    scale = np.sqrt(h.diagonal())
    if not np.all(scale > 0):
        return TreeCheck(-math.inf, 0, "A feature of the proof has no curvature.")
    h = h / scale / scale[:, None]
    h = np.ascontiguousarray(0.5 * (h + h.T))
    np.fill_diagonal(h, 1.0)
    c = problem.linear[names] / scale
    always = _chosen(problem, proof)
    room = problem.budget - len(problem.always)
    inside, free = np.flatnonzero(always), np.flatnonzero(~always)
    root = _Box(inside, free, min(room, free.size), problem.least)
    if free.size == 0:
        from ellzero.kernels.branch_check import least_in_box

        lowest = least_in_box(h, c, problem.energy, always.astype(np.int8), 0)
    else:
        lowest = _Checker(proof, h, c, problem.energy).run(root)
    if math.isnan(lowest):
        return TreeCheck(-math.inf, 0, "The steps of the proof do not follow from one another.")
    return TreeCheck(max(lowest, problem.least), len(proof), None)


def _malformed(problem: SquaresProblem, proof: TreeProof) -> str | None:
    """Return what is wrong with the form of a proof, or with the features it leaves out."""
    names, p = proof.features, problem.linear.size
    if names.size and (names[0] < 0 or names[-1] >= p or np.any(np.diff(names) <= 0)):
        return f"The proof names features that are not among the {p}."
    left_out = np.setdiff1d(np.arange(p), names)
    missing = np.setdiff1d(left_out, union(problem.forbidden, problem.useless))
    if missing.size:
        return f"The proof leaves out features: {[int(j) for j in missing[:10]]}."
    if len(problem.always) > problem.budget:
        return "More features are always in than the budget allows."
    if _chosen(problem, proof).all() or (not len(proof) and problem.least > -math.inf):
        # Nothing to choose from, or nothing to read.
        return None
    return misfit(proof)


def misfit(proof: TreeProof) -> str | None:
    """Return whether the parts of a proof do not fit together."""
    n, m = len(proof), proof.model_starts.size
    good = n > 0 and m > 0 and proof.places.shape == proof.values.shape
    good = good and proof.steps.shape == (n, 4) and proof.model_starts[0] == 0
    good = good and proof.projected.size == proof.thresholds.size == m
    good = good and all(
        part.shape == (count,) and part[-1] == size and np.all(np.diff(part, prepend=0) >= 0)
        for part, count, size in (
            (proof.point_ends, n, proof.places.size),
            (proof.decision_ends, n, proof.decisions.size),
            (proof.weight_ends, m, proof.weights.size),
        )
    )
    good = good and bool(
        np.all(np.diff(proof.model_starts, append=n) >= 0)
        and np.all(np.isin(proof.steps[:, 1], (-1, 0, 1)))
        and np.all(proof.steps[:, 0] < np.arange(n))
        and np.all(proof.steps[1:, 0] >= 0)
        and np.isfinite(proof.values).all()
        and np.isfinite(proof.weights).all()
        and np.isfinite(proof.thresholds).all()
        and np.all(proof.thresholds >= 0)
    )
    return None if good else "The parts of the proof do not fit together."


def _chosen(problem: SquaresProblem, proof: TreeProof) -> NDArray[np.bool_]:
    """Return which features of the proof are always in."""
    return np.isin(proof.features, problem.always)


def union(*parts: Iterable[int]) -> Integers:
    """Return the features of several collections, ascending."""
    return np.array(sorted({int(j) for part in parts for j in part}), dtype=np.int64)


class _Checker:
    """The steps of a proof on a problem with a unit diagonal."""

    def __init__(self, proof: TreeProof, h: Floats, c: Floats, energy: float) -> None:
        self._proof, self._h, self._c, self._energy = proof, h, c, energy
        sides = proof.steps[:, 1]
        self._followed = np.zeros(len(proof), np.int8)
        for bit, side in ((1, 0), (2, 1), (4, -1)):
            parents = proof.steps[1:][sides[1:] == side, 0]
            self._followed[parents] |= bit
        # A side needs a split to be a part of.
        unsplit = proof.steps[:, 3] < 0
        self._followed[unsplit] &= 1

    def run(self, root: _Box) -> float:
        """Return the smallest bound of a leaf; NaN where the steps make no sense."""
        proof = self._proof
        starts = [*map(int, proof.model_starts), len(proof)]
        wanted = {int(proof.steps[s, 0]) for s in starts[1:-1] if s < len(proof)}
        boxes: dict[int, _Box] = {}
        lowest = math.inf
        for model, (first, last) in enumerate(itertools.pairwise(starts)):
            if first == last:
                continue
            parent = int(proof.steps[first, 0])
            box = root if first == 0 else boxes.get(parent)
            if box is None or (first > 0 and proof.steps[first, 1] != 0):
                return math.nan
            found = self._check(model, first, last, box, wanted, boxes)
            if math.isnan(found):
                return math.nan
            lowest = min(lowest, found)
        return lowest

    def _check(
        self,
        model: int,
        first: int,
        last: int,
        box: _Box,
        wanted: set[int],
        boxes: dict[int, _Box],
    ) -> float:
        from ellzero.kernels.branch_check import check_steps

        proof = self._proof
        part = self._project(box) if proof.projected[model] else self._keep(box)
        if part is None:
            return math.nan
        h, c, energy, slack, names, outside, start = part
        p = names.size
        begin = int(proof.weight_ends[model - 1]) if model else 0
        weights = proof.weights[begin : int(proof.weight_ends[model])]
        most = box.room + int((start > 0).sum())
        q, d = self._model(h, weights, float(proof.thresholds[model]), most)
        states = np.zeros((last - first, p), np.int8)
        rooms, lows = np.zeros(last - first, np.int64), np.zeros(last - first)
        lowest = check_steps(
            h, q, c, d, energy, slack, start, box.room, box.low, first, last, proof.steps,
            proof.point_ends, proof.places, proof.values, proof.decision_ends, proof.decisions,
            self._followed, states, rooms, lows,
        )  # fmt: skip
        for step in wanted.intersection(range(first, last)):
            state = states[step - first]
            inside = np.sort(np.concatenate([outside, names[state > 0]]))
            boxes[step] = _Box(
                inside, names[state == 0], int(rooms[step - first]), float(lows[step - first])
            )
        return float(lowest)

    def _project(
        self, box: _Box
    ) -> tuple[Floats, Floats, float, float, Integers, Integers, NDArray[np.int8]] | None:
        """Return the problem of a box with the features inside minimized out."""
        inside, free = box.inside, box.free
        h, c, energy = self._h[np.ix_(free, free)], self._c[free], self._energy
        square = np.ones(free.size)
        if inside.size:
            try:
                factor = np.linalg.cholesky(self._h[np.ix_(inside, inside)])
            except np.linalg.LinAlgError:
                return None
            inverse = np.linalg.inv(factor)
            tilt = inverse @ self._h[np.ix_(inside, free)]
            half = inverse @ self._c[inside]
            h, c = h - tilt.T @ tilt, c - half @ tilt
            energy -= float(half @ half)
            square = h.diagonal().copy()
            if factor.diagonal().min() ** 2 < SPAN or square.min(initial=1.0) < SPAN:
                return None
        scale = np.sqrt(square)
        h = h / scale / scale[:, None]
        np.fill_diagonal(h, 1.0)
        slack = 64 * EPS / float(square.min(initial=1.0)) * self._energy
        start = np.zeros(free.size, np.int8)
        return np.ascontiguousarray(h), c / scale, energy, slack, free, inside, start

    def _keep(
        self, box: _Box
    ) -> tuple[Floats, Floats, float, float, Integers, Integers, NDArray[np.int8]]:
        """Return the problem of a box with the features inside left in it."""
        names = np.concatenate([box.inside, box.free])
        start = np.zeros(names.size, np.int8)
        start[: box.inside.size] = 1
        h = np.ascontiguousarray(self._h[np.ix_(names, names)])
        return h, self._c[names], self._energy, 0.0, names, box.inside[:0], start

    def _model(
        self, h: Floats, weights: Floats, threshold: float, most: int
    ) -> tuple[Floats, Floats]:
        """Return Q and d, made smaller where rounding asks for it; no d where they fail."""
        return model_of(h, weights, threshold, most)


def model_of(h: Floats, weights: Floats, threshold: float, most: int) -> tuple[Floats, Floats]:
    """Return Q and d, made smaller where rounding asks for it; no d where they fail.

    Parameters
    ----------
    h : ndarray of shape (p, p)
        The matrix.
    weights : ndarray of shape (p,)
        The weights d; for a threshold all the same.
    threshold : float
        By how much entries beside the diagonal are reduced.
    most : int
        Most nonzeros of b.
    """
    p = h.shape[0]
    none = np.empty(0)
    if weights.size != p or p == 0 or weights.min() <= 0:
        return h, none
    soft = h
    if threshold > 0:
        if np.ptp(weights) > 0:
            return h, none
        soft = np.sign(h) * np.maximum(np.abs(h) - threshold, 0.0)
        np.fill_diagonal(soft, h.diagonal())
    for share in SHARES:
        d = share * weights
        q = soft.copy()
        q[np.diag_indices(p)] -= d + max(most - 1, 0) * threshold
        if _is_semidefinite(q):
            return q, d
    return h, none


def _is_semidefinite(matrix: Floats) -> bool:
    """Return whether a symmetric matrix has no negative eigenvalue for sure."""
    p = matrix.shape[0]
    shifted = matrix.copy()
    # Rump (2006): a factorization that runs through proves more than the shift; four times that.
    shifted[np.diag_indices(p)] -= 2 * (p + 2) * EPS * max(float(np.trace(matrix)), 0.0)
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True
