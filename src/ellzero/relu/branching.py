r"""Tighter bounds on sup v'(Au)_+ : the ball cut into pieces, a quadratic bound on each.

The quadratic bound of `ellzero.relu.relaxation` is loose where several neurons reach the supremum:
one quadratic has to lie above all of them. Half-spaces separate them. On a piece
{u : \|u\| = 1, g_k'u >= b_k} the range [l_i, h_i] of t_i = a_i'u is known, and these are valid for
all nonnegative multipliers: (t_i - l_i)(h_i - t_i) >= 0, (g_k'u - b_k)(1 - g_k'u) >= 0 and
(g_k'u - b_k)(g_j'u - b_j) >= 0; where the range does not contain zero, (t_i)_+ is linear. The
multipliers are found by an interior-point method and checked without it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

Floats = NDArray[np.float64]
# Barrier weights at which an interior-point run begins and ends, and the factor between two.
FIRST, LAST, FACTOR = 30.0, 4e6, 8.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Multipliers of the quadratic bound on a piece of the sphere.

    Parameters
    ----------
    curvature : ndarray of shape (n_samples,)
        Coefficients of t_i^2 where v_i > 0; |v_i t_i| / 2 is at most this times t_i^2 plus
        v_i^2 / 16 over it.
    ranges : ndarray of shape (n_samples,)
        Multipliers of (t_i - l_i)(h_i - t_i) where v_i > 0.
    share : ndarray of shape (n_samples,)
        Coefficients of -t_i^2 where v_i < 0.
    slope : ndarray of shape (n_samples,)
        Coefficients of t_i where v_i < 0.
    cuts : ndarray of shape (n_cuts, n_cuts)
        Multipliers of products of the cuts, lower triangle; (g_k'u - b_k)(1 - g_k'u) on the
        diagonal.
    """

    curvature: Floats
    ranges: Floats
    share: Floats
    slope: Floats
    cuts: Floats


@dataclass(frozen=True, slots=True)
class Split:
    """A piece cut in two: direction'u <= level, and direction'u >= level.

    Parameters
    ----------
    direction : ndarray of shape (n_inputs,)
        Normal of the cut; made a unit vector where it is used.
    level : float
        Its level.
    below, above : Split or Piece
        The two parts.
    """

    direction: Floats
    level: float
    below: Split | Piece
    above: Split | Piece


Cuts = list[tuple[Floats, float]]


def bound_of_pieces(A: Floats, point: Floats, tree: Split | Piece) -> float:
    """Return an upper bound on sup of v'(Au)_+ over the unit ball, from a tree of pieces.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.
    tree : Split or Piece
        Any cuts with any multipliers; what breaks their conditions is clipped. The two parts of
        a split cover what was split, whatever the cut.

    Returns
    -------
    float
        The bound, at least zero, with a margin of 1e-12 for rounding.
    """
    scale = float(np.abs(point) @ np.linalg.norm(A, axis=1))

    def largest(part: Split | Piece, cuts: Cuts) -> float:
        if isinstance(part, Piece):
            return _Region(A, point, cuts).bound(part)
        unit = part.direction / max(float(np.linalg.norm(part.direction)), 1e-300)
        return max(
            largest(part.below, [*cuts, (-unit, -part.level)]),
            largest(part.above, [*cuts, (unit, part.level)]),
        )

    return max(largest(tree, []), 0.0) + 1e-12 * scale


def branch(
    A: Floats, point: Floats, *, goal: float, max_pieces: int = 40
) -> tuple[float, Split | Piece, int]:
    r"""Return a bound on sup of v'(Au)_+ over the unit ball, by cutting the ball.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.
    goal : float
        Stop when the bound is at most this.
    max_pieces : int, default=40
        Most pieces.

    Returns
    -------
    bound : float
        The bound.
    tree : Split or Piece
        Its evidence for `bound_of_pieces`.
    n_pieces : int
        Pieces it has.

    Notes
    -----
    The piece with the largest bound is cut through the mean of its moments, across their
    direction of largest variance: where one quadratic must serve two neurons, this is the line
    between them. A piece costs some 40 Newton steps of O(n^3 + n^2 d) operations.
    """
    # The method works in units of the supremum, which no neuron exceeds.
    sizes = np.linalg.norm(A, axis=1)
    neurons = np.vstack([A[sizes > 0] / sizes[sizes > 0, None], (A.T @ point)[None]])
    neurons[-1] /= max(float(np.linalg.norm(neurons[-1])), 1e-300)
    products = neurons @ A.T
    reached = max(float((np.maximum(sign * products, 0.0) @ point).max()) for sign in (1.0, -1.0))
    unit = max(goal, reached, 1e-4 * float(np.abs(point) @ sizes), 1e-300)
    wanted = goal / unit
    rows = float(np.sqrt(np.mean(np.sum(A * A, axis=1)))) or 1.0
    scaled, target = A / rows, point * (rows / unit)
    nodes: list[_Node] = []
    counter = 0

    def add(cuts: Cuts) -> _Node:
        nonlocal counter
        region = _Region(scaled, target, cuts)
        piece, mean, spread = region.solve(wanted)
        node = _Node(region.bound(piece), counter, cuts, piece, mean, spread)
        counter += 1
        nodes.append(node)
        return node

    heap = [(-add([]).bound, 0)]
    leaves = 1
    while leaves < max_pieces and -heap[0][0] > wanted:
        node = nodes[heap[0][1]]
        values, vectors = np.linalg.eigh(node.spread)
        if values[-1] <= 1e-9:
            break
        heapq.heappop(heap)
        direction = vectors[:, -1]
        level = float(direction @ node.mean)
        below, above = (
            add([*node.cuts, cut]).index for cut in ((-direction, -level), (direction, level))
        )
        node.split = (direction, level, below, above)
        for child in (below, above):
            # What holds on the whole holds on its parts.
            heapq.heappush(heap, (-min(nodes[child].bound, node.bound), child))
        leaves += 1

    def tree(index: int) -> Split | Piece:
        node = nodes[index]
        if node.split is None:
            return _to_units(node.piece, rows, unit)
        direction, level, below, above = node.split
        return Split(direction, level, tree(below), tree(above))

    found = tree(0)
    return bound_of_pieces(A, point, found), found, leaves


def blend(tree: Split | Piece, other: Piece, share: float) -> Split | Piece:
    """Return (1 - share) times the multipliers of a tree plus share times those of one piece.

    The bound is jointly convex in v and its multipliers as long as v keeps its signs, so that
    blended multipliers suit the point blended alike.
    """
    if isinstance(tree, Split):
        return Split(
            tree.direction, tree.level, blend(tree.below, other, share),
            blend(tree.above, other, share),
        )  # fmt: skip
    rest = 1.0 - share
    return Piece(
        rest * tree.curvature + share * other.curvature, rest * tree.ranges + share * other.ranges,
        rest * tree.share + share * other.share, rest * tree.slope + share * other.slope,
        rest * tree.cuts,
    )  # fmt: skip


@dataclass(slots=True)
class _Node:
    """A piece of the search, with the moments of its worst measure."""

    bound: float
    index: int
    cuts: Cuts
    piece: Piece
    mean: Floats
    spread: Floats
    split: tuple[Floats, float, int, int] | None = None


def _to_units(piece: Piece, rows: float, unit: float) -> Piece:
    """Return the multipliers for the data as they were given."""
    square = unit / (rows * rows)
    return Piece(
        piece.curvature * square, piece.ranges * square, piece.share * square,
        piece.slope * (unit / rows), piece.cuts * unit,
    )  # fmt: skip


class _Region:
    """A piece {u : |u| = 1, g_k'u >= b_k} with the ranges of the samples on it."""

    def __init__(self, A: Floats, point: Floats, cuts: Cuts) -> None:
        self.A, self.point, self.cuts = A, point, cuts
        sizes = np.linalg.norm(A, axis=1)
        high, low = sizes.copy(), -sizes
        for normal, level in cuts:
            along = A @ normal
            across = np.sqrt(np.maximum(sizes**2 - along**2, 0.0))
            for sign in (1.0, -1.0):
                best = np.clip(sign * along / np.maximum(sizes, 1e-300), level, 1.0)
                top = sign * along * best + across * np.sqrt(np.maximum(1.0 - best**2, 0.0))
                # Rounding must not cut anything off.
                top = top + 1e-12 * sizes
                if sign > 0:
                    high = np.minimum(high, top)
                else:
                    low = np.maximum(low, -top)
        self.empty = any(level > 1.0 for _, level in cuts) or bool((low > high).any())
        self.low, self.high = low, high
        on, off = low >= 0, (high <= 0) & (low < 0)
        free = ~on & ~off
        self.on = on
        self.up = np.flatnonzero(free & (point > 0))
        self.down = np.flatnonzero(free & (point < 0))
        # u'Qu + c'u + k of the samples whose part is known.
        self.linear = A.T @ np.where(on, point, np.where(free, 0.5 * point, 0.0))

    def bound(self, piece: Piece) -> float:
        """Return the bound that multipliers prove."""
        if self.empty:
            return -np.inf
        A, up, down = self.A, self.up, self.down
        weights = np.abs(self.point)
        sizes = np.maximum(np.linalg.norm(A, axis=1), 1e-300)
        curvature = np.maximum(piece.curvature[up], weights[up] / (4e6 * sizes[up]))
        ranges = np.maximum(piece.ranges[up], 0.0)
        half, low, high = 0.5 * weights[down], self.low[down], self.high[down]
        share = np.clip(piece.share[down], 0.0, 2 * half / (high - low))
        slope = np.clip(piece.slope[down], share * high - half, half + share * low)
        quadratic = (A[up].T * (curvature - ranges)) @ A[up] - (A[down].T * share) @ A[down]
        linear = self.linear + A[up].T @ (ranges * (self.low[up] + self.high[up]))
        linear = linear + A[down].T @ slope
        constant = float((weights[up] ** 2 / (16 * curvature)).sum())
        constant -= float((ranges * self.low[up] * self.high[up]).sum())
        for k, (normal, level) in enumerate(self.cuts):
            for j in range(k + 1):
                factor = max(float(piece.cuts[k, j]), 0.0)
                other, edge = self.cuts[j] if j < k else (-normal, -1.0)
                outer = np.outer(normal, other)
                quadratic = quadratic + 0.5 * factor * (outer + outer.T)
                linear = linear - factor * (edge * normal + level * other)
                constant += factor * level * edge
        return _largest_on_sphere(0.5 * (quadratic + quadratic.T), linear) + constant

    def pairs(self) -> tuple[Floats, Floats]:
        """Return vectors x_j, y_j of the terms z_j sym(x_j y_j') of the quadratic in (u, 1)."""
        A = self.A

        def with_last(rows: Floats, last: Floats) -> Floats:
            return np.column_stack([rows, last])

        U, D = A[self.up], A[self.down]
        zeros_up, zeros_down = np.zeros(len(U)), np.zeros(len(D))
        first = [with_last(U, zeros_up), with_last(D, zeros_down), with_last(D, zeros_down)]
        second = [
            with_last(U, zeros_up), with_last(-D, zeros_down), with_last(0 * D, zeros_down + 1),
        ]  # fmt: skip
        if self.cuts:
            first.append(with_last(U, -self.low[self.up]))
            second.append(with_last(-U, self.high[self.up]))
            edges = np.array([np.append(normal, -level) for normal, level in self.cuts])
            rest = np.array([np.append(-normal, 1.0) for normal, _ in self.cuts])
            for k in range(len(edges)):
                for j in range(k + 1):
                    first.append(edges[[k]])
                    second.append(edges[[j]] if j < k else rest[[k]])
        return np.vstack(first), np.vstack(second)

    def solve(self, goal: float) -> tuple[Piece, Floats, Floats]:
        """Return multipliers, and mean and covariance of the moments that resist them."""
        n_inputs = self.A.shape[1]
        if self.empty:
            return self.piece(np.zeros(0)), np.zeros(n_inputs), np.zeros((n_inputs, n_inputs))
        n_up, n_down = len(self.up), len(self.down)
        X, Y = self.pairs()
        size = len(X)
        weights = np.abs(self.point)
        w_up, half = weights[self.up], 0.5 * weights[self.down]
        low, high = self.low[self.down], self.high[self.down]
        is_up = slice(0, n_up)
        is_share, is_slope = slice(n_up, n_up + n_down), slice(n_up + n_down, n_up + 2 * n_down)
        is_rest = slice(n_up + 2 * n_down, size)
        eye = np.diag(np.append(np.ones(n_inputs), 0.0))
        corner = np.zeros((n_inputs + 1, n_inputs + 1))
        corner[-1, -1] = 1.0
        fixed = np.zeros((n_inputs + 1, n_inputs + 1))
        fixed[-1, :-1] = fixed[:-1, -1] = 0.5 * self.linear
        sizes = np.maximum(np.linalg.norm(self.A, axis=1), 1e-12)
        z = np.empty(size)
        z[is_up] = (w_up + 1e-3) / sizes[self.up]
        z[is_share] = 0.5 * half / (high - low)
        z[is_slope] = 0.5 * z[is_share] * (high + low)
        z[is_rest] = 1e-2
        if self.cuts:
            width = np.abs(self.low[self.up] * self.high[self.up])
            z[is_rest][:n_up] = 1e-2 / np.maximum(width, 1e-3)
        everything = np.append(z, [0.0, 0.0])

        def slack(at: Floats) -> Floats:
            share, slope = at[is_share], at[is_slope]
            return np.concatenate(
                [at[is_up], share, slope + half - share * high, half + share * low - slope,
                 at[is_rest]]
            )  # fmt: skip

        def matrix(at: Floats) -> Floats:
            product = X.T @ (at[:size, None] * Y)
            return np.asarray(at[-2] * eye + at[-1] * corner - fixed - 0.5 * (product + product.T))

        everything[-2:] = max(-float(np.linalg.eigvalsh(matrix(everything))[0]), 0.0) + 1.0

        def value(at: Floats, weight: float) -> float:
            slacks = slack(at)
            if not (slacks > 0).all():
                return np.inf
            try:
                root = np.linalg.cholesky(matrix(at))
            except np.linalg.LinAlgError:
                return np.inf
            cost = at[-2] + at[-1] + float((w_up**2 / (16 * at[is_up])).sum())
            logs = 2 * float(np.log(np.diag(root)).sum()) + float(np.log(slacks).sum())
            return float(weight * cost - logs)

        inverse = np.eye(n_inputs + 1)
        best = np.inf, self.piece(z)
        weight = FIRST
        while True:
            for _ in range(30):
                try:
                    inverse = np.asarray(np.linalg.inv(matrix(everything)), dtype=np.float64)
                except np.linalg.LinAlgError:
                    break
                step, decrement = self._newton(
                    X, Y, inverse, everything, weight, slack(everything), w_up, low, high,
                    (is_up, is_share, is_slope, is_rest),
                )  # fmt: skip
                now, length = value(everything, weight), 1.0
                while value(everything + length * step, weight) > now - 0.1 * length * decrement:
                    length *= 0.6
                    if length < 1e-8:
                        break
                if length < 1e-8:
                    break
                everything = everything + length * step
                if decrement < 0.3:
                    break
            piece = self.piece(everything[:size])
            bound = self.bound(piece)
            if bound < best[0]:
                best = bound, piece
            if bound <= goal or weight >= LAST or not np.isfinite(bound):
                break
            weight *= FACTOR
        moments = inverse
        moments = moments / moments[-1, -1]
        mean = moments[:-1, -1]
        return best[1], mean, moments[:-1, :-1] - np.outer(mean, mean)

    @staticmethod
    def _newton(
        X: Floats, Y: Floats, inverse: Floats, at: Floats, weight: float, slacks: Floats,
        w_up: Floats, low: Floats, high: Floats, parts: tuple[slice, slice, slice, slice],
    ) -> tuple[Floats, float]:  # fmt: skip
        """Return the Newton step of the barrier problem and its decrement."""
        is_up, is_share, is_slope, is_rest = parts
        size = len(X)
        XS, YS = X @ inverse, Y @ inverse
        # The slack matrix falls with z and grows with the last two variables.
        gradient = np.empty(size + 2)
        gradient[:size] = np.einsum("ij,ij->i", XS, Y)
        gradient[-2] = weight - float(np.trace(inverse[:-1, :-1]))
        gradient[-1] = weight - float(inverse[-1, -1])
        hessian = np.empty((size + 2, size + 2))
        cross = XS @ Y.T
        hessian[:size, :size] = 0.5 * ((XS @ X.T) * (YS @ Y.T) + cross * cross.T)
        hessian[:size, -2] = -np.einsum("ij,ij->i", XS[:, :-1], YS[:, :-1])
        hessian[:size, -1] = -XS[:, -1] * YS[:, -1]
        hessian[-2, -2] = float((inverse[:-1, :-1] ** 2).sum())
        hessian[-1, -1] = float(inverse[-1, -1] ** 2)
        hessian[-2, -1] = hessian[-1, -2] = float((inverse[:-1, -1] ** 2).sum())
        hessian[-2:, :size] = hessian[:size, -2:].T
        diagonal = np.zeros(size + 2)
        n_up, n_down = len(w_up), len(low)
        a, share = slacks[:n_up], slacks[n_up : n_up + n_down]
        left = slacks[n_up + n_down : n_up + 2 * n_down]
        right = slacks[n_up + 2 * n_down : n_up + 3 * n_down]
        rest = slacks[n_up + 3 * n_down :]
        gradient[is_up] -= weight * w_up**2 / (16 * a**2) + 1 / a
        diagonal[is_up] = weight * w_up**2 / (8 * a**3) + 1 / a**2
        gradient[is_rest] -= 1 / rest
        diagonal[is_rest] = 1 / rest**2
        gradient[is_share] += -1 / share + high / left - low / right
        gradient[is_slope] += -1 / left + 1 / right
        diagonal[is_share] = 1 / share**2 + (high / left) ** 2 + (low / right) ** 2
        diagonal[is_slope] = 1 / left**2 + 1 / right**2
        hessian[np.diag_indices(size + 2)] += diagonal
        mixed = -high / left**2 - low / right**2
        i, j = np.arange(size)[is_share], np.arange(size)[is_slope]
        hessian[i, j] += mixed
        hessian[j, i] += mixed
        scale = 1.0 / np.sqrt(np.diag(hessian))
        scaled = hessian * np.outer(scale, scale)
        extra = 1e-14
        while True:
            try:
                factor = cho_factor(
                    scaled + extra * np.eye(size + 2), lower=True, overwrite_a=True,
                    check_finite=False,
                )  # fmt: skip
                break
            except LinAlgError:
                extra *= 100.0
                if extra > 1.0:
                    return np.zeros_like(at), 0.0
        step = -scale * cho_solve(factor, scale * gradient, check_finite=False)
        return step, max(-float(step @ gradient), 0.0)

    def piece(self, z: Floats) -> Piece:
        """Return variables as multipliers."""
        n, n_up, n_down, n_cuts = len(self.A), len(self.up), len(self.down), len(self.cuts)
        full = [np.zeros(n) for _ in range(4)]
        cuts = np.zeros((n_cuts, n_cuts))
        if len(z):
            full[0][self.up] = z[:n_up]
            full[2][self.down] = z[n_up : n_up + n_down]
            full[3][self.down] = z[n_up + n_down : n_up + 2 * n_down]
            rest = z[n_up + 2 * n_down :]
            if n_cuts:
                full[1][self.up] = rest[:n_up]
                cuts[np.tril_indices(n_cuts)] = rest[n_up:]
        return Piece(full[0], full[1], full[2], full[3], cuts)


def _largest_on_sphere(quadratic: Floats, linear: Floats) -> float:
    """Return an upper bound on max u'Qu + c'u over the unit sphere, tight."""
    values, vectors = np.linalg.eigh(quadratic)
    parts = vectors.T @ linear
    top, norm = float(values[-1]), float(np.linalg.norm(linear))
    scale = max(float(np.abs(values).max()), norm, 1e-300)
    low, high = top + 1e-13 * scale, top + norm + 1e-12 * scale
    for _ in range(120):
        mid = 0.5 * (low + high)
        if float(np.sum((0.5 * parts / (mid - values)) ** 2)) > 1.0:
            low = mid
        else:
            high = mid
    # Any radius above the largest eigenvalue gives a valid bound.
    return high + 0.25 * float(np.sum(parts**2 / (high - values)))
