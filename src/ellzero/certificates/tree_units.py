"""Checking of a tree of boxes over groups, several targets and bounded coefficients."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ellzero.certificates.tree import EPS, SquaresProblem, misfit, model_of
from ellzero.core.result import TreeProof

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Share of a column outside the span of its group up to which it may be left out.
SPANNED = 2e-12


@dataclass(frozen=True, slots=True)
class _Units:
    """The problem in coordinates in which the columns of a unit are orthonormal."""

    matrix: Floats
    linear: Floats
    offsets: Integers
    labels: Integers
    low: Floats
    high: Floats
    slack: float


def check_unit_tree(problem: SquaresProblem, proof: TreeProof) -> tuple[float, str | None]:
    """Return the lower bound that a tree over units proves, and what is wrong with it, if so.

    Parameters
    ----------
    problem : SquaresProblem
        The function, with `units`, several targets or bounds.
    proof : TreeProof
        The tree; one model, whose decisions and splits are units in the order of their first
        feature, and whose places are columns, unit by unit, times m plus targets.

    Returns
    -------
    bound : float
        The bound; minus infinity where the tree makes no sense.
    reason : str or None
        What is wrong with it.
    """
    p = problem.linear.shape[0]
    names = proof.features
    if names.size and (names[0] < 0 or names[-1] >= p or np.any(np.diff(names) <= 0)):
        return -math.inf, f"The proof names features that are not among the {p}."
    units = np.arange(p) if problem.units is None else problem.units
    barred = np.isin(units, units[list(problem.forbidden)])
    found = _whiten(problem, units, names)
    if found is None:
        return -math.inf, "A feature of the proof has no curvature of its own."
    unused = np.flatnonzero(barred | np.isin(np.arange(p), problem.useless))
    missing = np.setdiff1d(np.arange(p), np.union1d(names, unused))
    missing = np.array([j for j in missing if not _spanned(problem, units, names, int(j))])
    if missing.size:
        return -math.inf, f"The proof leaves out features: {[int(j) for j in missing[:10]]}."
    always = np.unique(units[list(problem.always)])
    if always.size > problem.budget:
        return -math.inf, "More groups are always in than the budget allows."
    start = np.isin(found.labels, always).astype(np.int8)
    room = min(problem.budget - always.size, int((start == 0).sum()))
    if not len(proof):
        # The tree never began: what is known anyway is all that it shows.
        return problem.least, None
    reason = misfit(proof)
    if reason is not None or proof.model_starts.size != 1:
        return -math.inf, reason or "The parts of the proof do not fit together."
    lowest = _bound(problem, proof, found, start, room)
    if math.isnan(lowest):
        return -math.inf, "The steps of the proof do not follow from one another."
    return max(lowest, problem.least), None


def _bound(
    problem: SquaresProblem, proof: TreeProof, units: _Units, start: NDArray[np.int8], room: int
) -> float:
    """Return the smallest bound of a leaf; NaN where the steps make no sense."""
    from ellzero.kernels.branch_units_check import check_unit_steps

    n = len(proof)
    sides = proof.steps[:, 1]
    followed = np.zeros(n, np.int8)
    for bit, side in ((1, 0), (2, 1), (4, -1)):
        followed[proof.steps[1:][sides[1:] == side, 0]] |= bit
    # A side needs a split to be a part of.
    followed[proof.steps[:, 3] < 0] &= 1
    sizes = np.sort(np.diff(units.offsets))[::-1]
    most = int(sizes[: room + int(start.sum())].sum())
    q, d = model_of(units.matrix, proof.weights, float(proof.thresholds[0]), most)
    bounded = problem.lower is not None or problem.upper is not None
    lowest = check_unit_steps(
        units.matrix, q, units.linear, d, units.offsets, problem.energy, units.slack, units.low,
        units.high, bounded, start, room, problem.least, proof.steps, proof.point_ends,
        proof.places, proof.values, proof.decision_ends, proof.decisions, followed,
        np.zeros((n, start.size), np.int8), np.zeros(n, np.int64), np.zeros(n),
    )  # fmt: skip
    return float(lowest)


def _whiten(problem: SquaresProblem, units: Integers, names: Integers) -> _Units | None:
    """Return the problem of the features of a proof; None where one has nothing of its own."""
    labels = units[names]
    first = np.sort(np.unique(labels, return_index=True)[1])
    order = np.concatenate(
        [*(names[labels == label] for label in labels[first]), np.zeros(0, np.int64)]
    ).astype(np.int64)
    matrix = np.array(problem.matrix[np.ix_(order, order)], dtype=np.float64)
    diagonal = matrix.diagonal()
    if not np.all(diagonal > 0):
        return None
    scale = np.sqrt(diagonal)
    matrix = matrix / scale / scale[:, None]
    matrix = 0.5 * (matrix + matrix.T)
    np.fill_diagonal(matrix, 1.0)
    linear = problem.linear.reshape(problem.linear.shape[0], -1)[order] / scale[:, None]
    low, high = np.full(order.size, -np.inf), np.full(order.size, np.inf)
    low = low if problem.lower is None else problem.lower[order] * scale
    high = high if problem.upper is None else problem.upper[order] * scale
    counts = [int((labels == label).sum()) for label in labels[first]]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    thinnest = 1.0
    for a, b in itertools.pairwise(offsets):
        if b - a == 1:
            continue
        try:
            factor = np.linalg.cholesky(matrix[a:b, a:b])
        except np.linalg.LinAlgError:
            return None
        thinnest = min(thinnest, float(factor.diagonal().min()) ** 2)
        matrix[a:b] = np.linalg.solve(factor, matrix[a:b])
        matrix[:, a:b] = np.linalg.solve(factor, matrix[:, a:b].T).T
        matrix[a:b, a:b] = np.eye(b - a)
        linear[a:b] = np.linalg.solve(factor, linear[a:b])
    if thinnest < 0.25 * SPANNED:
        return None
    slack = 0.0 if thinnest == 1.0 else 64 * EPS / thinnest * problem.energy
    matrix = np.ascontiguousarray(0.5 * (matrix + matrix.T))
    return _Units(matrix, np.ascontiguousarray(linear), offsets, labels[first], low, high, slack)


def _spanned(problem: SquaresProblem, units: Integers, names: Integers, feature: int) -> bool:
    """Return whether the features of a proof that share a group with one span it."""
    if problem.lower is not None or problem.upper is not None:
        return False
    own = names[units[names] == units[feature]]
    whole = problem.matrix[feature, feature]
    if not own.size or whole <= 0:
        return bool(whole <= 0)
    scale = np.sqrt(problem.matrix[own, own])
    block = problem.matrix[np.ix_(own, own)] / scale / scale[:, None]
    across = problem.matrix[own, feature] / scale / math.sqrt(whole)
    left = 1.0 - float(across @ np.linalg.solve(block, across))
    return left <= SPANNED
