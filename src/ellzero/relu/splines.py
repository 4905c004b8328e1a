r"""Networks on a line: linear splines, trained to the global optimum over every width.

When the rows of X lie on a line and neurons have biases that cost nothing, a two-layer ReLU
network is a linear spline whose kinks are at samples (Ergen and Pilanci, arXiv 2002.11219, Lemma 6
and Corollaries 3 to 6). The least norm of a network that equals given values z at the samples is

.. math:: R(z) = \max\{T, (T + |s_1 + s_{n-1}|) / 2\}, \qquad T = \sum_k |s_{k+1} - s_k|

with the slopes s between neighbors, so that training needs no network at all: interpolation is a
formula, and the penalized problem is a quadratic program with bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ellzero.core.result import Certificate, Measure
from ellzero.errors import DataError, IncompatibleError
from ellzero.relu.banded import HatProgram, solve_restricted
from ellzero.relu.certificate import read_samples
from ellzero.relu.conclusion import bound_in, conclude, gap_in
from ellzero.relu.network import TwoLayerReLU
from ellzero.validation import check_real

Floats = NDArray[np.float64]

# How far from a line rows may be, relative to their spread.
STRAIGHT = 1e-9
MAX_ROUNDS = 80


@dataclass(frozen=True, slots=True)
class Line:
    """The line that samples lie on, and where on it they are.

    Parameters
    ----------
    origin : ndarray of shape (n_features,)
        A point of the line.
    direction : ndarray of shape (n_features,)
        Unit vector.
    """

    origin: Floats
    direction: Floats

    def positions(self, X: Floats) -> Floats:
        """Return where the projections of the rows are on the line."""
        return np.asarray((X - self.origin) @ self.direction)

    @staticmethod
    def through(X: Floats) -> Line:
        """Return the line through the rows.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Rows.

        Returns
        -------
        Line
            Its origin is 0 for a single feature, else the first row.

        Raises
        ------
        DataError
            If the rows do not lie on a line, to 1e-9 of their spread.
        """
        if X.shape[1] == 1:
            return Line(np.zeros(1), np.ones(1))
        moved = X - X[0]
        far = int(np.argmax(np.einsum("ij,ij->i", moved, moved)))
        length = float(np.linalg.norm(moved[far]))
        if length == 0:
            return Line(X[0].copy(), np.eye(X.shape[1])[0])
        direction = moved[far] / length
        direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
        off = moved - np.outer(moved @ direction, direction)
        distance = float(np.sqrt(np.einsum("ij,ij->i", off, off).max()))
        if distance > STRAIGHT * max(length, float(np.abs(X).max()) * 1e-3):
            raise DataError(
                f"The rows of X must lie on a line, got one that is {distance / length:.2g} of "
                "their spread away from it.",
                "Use ConvexReLURegressor for data in more dimensions.",
            )
        return Line(X[0].copy(), direction)


@dataclass(frozen=True, slots=True)
class ReLUSpline:
    r"""Network f(t) = sum_j w_j max(s_j (t - k_j), 0) + c on a line, with what proves it.

    Parameters
    ----------
    line : Line
        Where t is measured.
    knots : ndarray of shape (n_neurons,)
        The k_j, all of them samples.
    sides : ndarray of shape (n_neurons,)
        The s_j: 1 for neurons that are active to the right of their knot, -1 to the left.
    weights : ndarray of shape (n_neurons,)
        The w_j.
    intercept : float
        The c, free.
    penalty : float
        Weight of the norm; 0 for interpolation.
    value : float
        The norm where `penalty` is 0, else half the mean square (or the mean hinge loss) plus
        penalty times the norm.
    certificate : Certificate
        Of the value and the bound; `lower_bound` and `gap` are its own.
    dual : ndarray of shape (n_samples,)
        The dual point v that proves it, in the order of the samples.
    n_rounds : int
        Convex programs solved.

    Examples
    --------
    >>> from ellzero.relu import fit_spline
    >>> spline = fit_spline([-2, -1, 0, 1, 2], [1, -1, 1, 1, -1])
    >>> spline.norm, spline.lower_bound, spline.dual.tolist()
    (8.0, 8.0, [1.0, -3.0, 2.0, 1.0, -1.0])
    """

    line: Line
    knots: Floats
    sides: Floats
    weights: Floats
    intercept: float
    penalty: float
    value: float
    certificate: Certificate
    dual: Floats
    n_rounds: int

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return len(self.weights)

    @property
    def norm(self) -> float:
        """Sum of |w_j|: of |w_j| times the norm of u_j, biases left out."""
        return float(np.abs(self.weights).sum())

    @property
    def lower_bound(self) -> float:
        """Proven bound below which no network of any width is."""
        return bound_in(self.certificate)

    @property
    def gap(self) -> float:
        """Relative distance of the value to the bound."""
        return gap_in(self.certificate)

    def predict(self, X: ArrayLike) -> Floats:
        """Return the outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples,)
            Samples; those off the line are projected on it, as the network does.

        Returns
        -------
        ndarray of shape (n_samples,)
            The outputs, in O((n_samples + n_neurons) log n_neurons).
        """
        rows = np.asarray(X, dtype=np.float64)
        at = self.line.positions(rows.reshape(-1, 1) if rows.ndim == 1 else rows)
        return evaluate(self.knots, self.sides, self.weights, self.intercept, at)

    def to_network(self) -> TwoLayerReLU:
        """Return the network on the features, with |w_j| equal to the norm of u_j.

        Returns
        -------
        TwoLayerReLU
            Its `norm` counts biases, which are free here.
        """
        roots = np.sqrt(np.abs(self.weights))
        hidden = (roots * self.sides)[:, None] * self.line.direction
        shift = float(self.line.origin @ self.line.direction)
        biases = -roots * self.sides * (shift + self.knots)
        return TwoLayerReLU(hidden, biases, np.sign(self.weights) * roots, self.intercept)

    def to_module(self) -> Any:
        """Return the network as Linear, ReLU, Linear in float64.

        Returns
        -------
        torch.nn.Sequential
            Computes what `predict` does, to rounding.
        """
        return self.to_network().to_module()


def fit_spline(X: ArrayLike, y: ArrayLike, penalty: float = 0.0) -> ReLUSpline:
    r"""Train a two-layer ReLU network on data of one dimension, or on a line, to the optimum.

    .. math:: \min \frac{1}{2n} \sum_i (y_i - f(x_i))^2 + \lambda \sum_j |w_j| \|u_j\|,
        \quad f(x) = \sum_j w_j \max(u_j^\top x + b_j, 0) + c

    over networks of every width; biases and c are free. With `penalty` 0 the least norm of all
    networks with f(x_i) = y_i.

    Parameters
    ----------
    X : array-like of shape (n_samples,) or (n_samples, n_features)
        Samples on a line (rank-one data lie on one through the origin).
    y : array-like of shape (n_samples,)
        Targets.
    penalty : float, default=0.0
        Weight of the norm, the lambda. Must not be negative.

    Returns
    -------
    ReLUSpline
        The network with at most as many neurons as samples, its value and its proven bound.

    Raises
    ------
    DataError
        If X or y has NaN, infinite values or wrong shapes, if rows do not lie on a line, or if
        equal rows have different targets while `penalty` is 0.
    InvalidParameterError
        If `penalty` is negative.

    Notes
    -----
    Interpolation is a formula with its dual point and costs O(n log n) [1]_. The penalized
    problem is min |z - y|^2 / 2n + penalty R(z) over the values at the samples, R as in the
    module's first lines. It is solved for splines with knots at few samples by an interior-point
    method on a matrix with 7 diagonals; the exact supremum over all neurons,
    max_k |sum_{i >= k} v_i (t_i - t_k)| and its mirror image for v = (y - z) / n, then says where
    knots are missing, in O(n), and bounds the distance to the optimum. Solutions need not be
    unique (Proposition 1 of [1]_): compare values, not functions.

    References
    ----------
    .. [1] T. Ergen and M. Pilanci, "Convex Geometry and Duality of Over-parameterized Neural
       Networks", JMLR 22, 2021, arXiv:2002.11219. The closed form is derived from its Lemma 6.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_spline
    >>> t = np.linspace(-1, 1, 200)
    >>> spline = fit_spline(t, np.abs(t), penalty=1e-3)
    >>> spline.n_neurons <= 4, spline.gap < 1e-9
    (True, True)
    """
    check_real("penalty", penalty, low=0.0)
    rows, targets = _read(X, y)
    line = Line.through(rows)
    at = line.positions(rows)
    order = np.argsort(at, kind="stable")
    knots, first, groups = np.unique(at[order], return_index=True, return_inverse=True)
    counts = np.bincount(groups).astype(np.float64)
    means = np.bincount(groups, weights=targets[order]) / counts
    spread = targets[order] - means[groups]
    if penalty == 0:
        if np.abs(spread).max(initial=0.0) > 1e-12 * max(float(np.abs(targets).max()), 1e-300):
            raise DataError(
                "Equal rows of X have different targets, which no network interpolates.",
                "Give a positive penalty.",
            )
        means = targets[order][first]
        parts = interpolate(knots, means)
        norm = float(np.abs(parts[2]).sum())
        dual_knots, bound = interpolation_dual(knots, means)
        dual = np.zeros(len(at))
        dual[order[first]] = dual_knots
        proven = conclude(norm, bound, {"n_neurons": len(parts[0]), "norm": norm})
        return ReLUSpline(line, *parts, 0.0, norm, proven, dual, 0)
    found, values, n_rounds = _penalized(knots, counts, means, len(at) * penalty)
    parts = interpolate(knots[found], values)
    outputs = evaluate(*parts, at)
    norm = float(np.abs(parts[2]).sum())
    loss = 0.5 * float(np.mean((outputs - targets) ** 2))
    value = loss + penalty * norm
    # Any point bounds; the values of the spline have less rounding than the network's sums.
    bound, dual, supremum = _bound(at, targets, np.interp(at, knots[found], values), penalty)
    measures: dict[str, Measure] = {
        "n_neurons": len(parts[0]),
        "norm": norm,
        "loss": loss,
        "bound_method": "exact supremum on a line, biases free",
        "supremum_over_penalty": supremum / penalty,
    }
    proven = conclude(value, bound, measures, scale=0.5 * float(np.mean(targets**2)))
    return ReLUSpline(line, *parts, penalty, value, proven, dual, n_rounds)


def largest_penalty(X: ArrayLike, y: ArrayLike) -> float:
    """Return the least penalty at which the constant network is optimal, exactly.

    Parameters
    ----------
    X : array-like of shape (n_samples,) or (n_samples, n_features)
        Samples on a line.
    y : array-like of shape (n_samples,)
        Targets.

    Returns
    -------
    float
        The supremum at the centered targets over n; 0.0 when targets do not differ.

    Raises
    ------
    DataError
        If X or y is malformed, or rows do not lie on a line.

    Examples
    --------
    >>> from ellzero.relu.splines import fit_spline, largest_penalty
    >>> top = largest_penalty([-1.0, 0.0, 2.0], [1.0, 0.0, 2.0])
    >>> [fit_spline([-1.0, 0.0, 2.0], [1.0, 0.0, 2.0], f * top).n_neurons for f in (0.99, 1.01)]
    [2, 0]
    """
    rows, targets = _read(X, y)
    at = Line.through(rows).positions(rows)
    order = np.argsort(at, kind="stable")
    return line_supremum(at[order], (targets - targets.mean())[order] / len(at))


def certify_spline(network: Any, X: ArrayLike, y: ArrayLike, penalty: float) -> Certificate:
    r"""Say how far a network on a line, with free biases, is from the best one of any width.

    Parameters
    ----------
    network : torch.nn.Module, TwoLayerReLU or ReLUSpline
        Linear, ReLU, Linear with one output and biases in both, trained by anybody in any way.
    X : array-like of shape (n_samples,) or (n_samples, n_features)
        Samples on a line.
    y : array-like of shape (n_samples,)
        Targets.
    penalty : float
        Weight of sum_j \|w_j\| \|u_j\|; biases are free. Must be positive.

    Returns
    -------
    Certificate
        `lower_bound` holds for networks of every width; the claim is OPTIMAL below a relative gap
        of 1e-6.

    Raises
    ------
    IncompatibleError
        If the network is of another kind, has no biases, or does not fit X.
    DataError
        If the samples do not lie on a line, or X or y is malformed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    The dual point is the centered residual, scaled; the supremum over neurons is exact, so the
    gap is the fault of the network or of its residual, never of a relaxation. O(n log n). It
    behaves like the square root of the suboptimality: a network that is 1e-8 above the optimum
    may show a gap of 1e-4. `fit_spline` knows the optimum itself.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import certify_spline, fit_spline
    >>> t = np.linspace(-1, 1, 50)
    >>> module = fit_spline(t, np.sin(3 * t), 1e-3).to_module()
    >>> certify_spline(module, t, np.sin(3 * t), 1e-3).gap < 1e-8
    True
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    rows, targets = _read(X, y)
    if isinstance(network, ReLUSpline):
        network = network.to_network()
    numbers = network if isinstance(network, TwoLayerReLU) else TwoLayerReLU.from_module(network)
    if numbers.biases is None or numbers.intercept is None:
        raise IncompatibleError(
            "Networks on a line need biases in both layers, got one without.",
            "Use certify_network, which counts what there is.",
        )
    if rows.shape[1] != numbers.hidden.shape[1]:
        raise IncompatibleError(
            f"The network has {numbers.hidden.shape[1]} inputs and X has {rows.shape[1]} columns.",
            "Pass the X that the network was trained on.",
        )
    at = Line.through(rows).positions(rows)
    outputs = numbers.predict(rows)
    norm = float(np.abs(numbers.outputs) @ np.linalg.norm(numbers.hidden, axis=1))
    loss = 0.5 * float(np.mean((outputs - targets) ** 2))
    value = loss + penalty * norm
    bound, _, supremum = _bound(at, targets, outputs, penalty)
    measures: dict[str, Measure] = {
        "n_neurons": numbers.n_neurons,
        "norm": norm,
        "loss": loss,
        "bound_method": "exact supremum on a line, biases free",
        "supremum_over_penalty": supremum / penalty,
    }
    return conclude(value, bound, measures, scale=0.5 * float(np.mean(targets**2)))


def least_norm(knots: Floats, values: Floats) -> float:
    """Return the least norm of a network with given values at increasing knots.

    Parameters
    ----------
    knots : ndarray of shape (n,)
        Increasing.
    values : ndarray of shape (n,)
        Values there.

    Returns
    -------
    float
        The number max(T, (T + |s_1 + s_last|) / 2), T the total variation of the slopes.
    """
    if len(knots) < 2:
        return 0.0
    slopes = np.diff(values) / np.diff(knots)
    total = float(np.abs(np.diff(slopes)).sum())
    return max(total, 0.5 * (total + abs(float(slopes[0] + slopes[-1]))))


def interpolate(knots: Floats, values: Floats) -> tuple[Floats, Floats, Floats, float]:
    """Return a network of least norm with given values at increasing knots.

    Parameters
    ----------
    knots : ndarray of shape (n,)
        Increasing.
    values : ndarray of shape (n,)
        Values there.

    Returns
    -------
    tuple of (knots, sides, weights, intercept)
        At most max(n - 1, 0) neurons, as in `ReLUSpline`.

    Notes
    -----
    Every kink may face right or left, at the same cost. Left-facing ones shift the first slope
    down by their sum; the sum is chosen to make the first slope right for free, as far as kinks
    allow, and one neuron that is linear on the data does the rest.
    """
    n = len(knots)
    none = np.zeros(0)
    if n < 2:
        return none, none, none, float(values[0]) if n else 0.0
    slopes = np.diff(values) / np.diff(knots)
    kinks = np.diff(slopes)
    up, down = np.maximum(kinks, 0.0), np.maximum(-kinks, 0.0)
    left = float(np.clip(-slopes[0], -down.sum(), up.sum()))
    pool, sign = (up, 1.0) if left > 0 else (down, -1.0)
    before = np.concatenate([[0.0], np.cumsum(pool)])
    # At most one kink is split; rounding of sums splits none.
    shares = np.clip(abs(left) - before[:-1], 0.0, pool)
    tiny = 1e-14 * max(float(before[-1]), 1e-300)
    shares = np.where(pool - shares <= tiny, pool, np.where(shares <= tiny, 0.0, shares))
    shares = sign * shares
    rest = kinks - shares
    inner = knots[1:-1]
    facing_left, facing_right = shares != 0, rest != 0
    where = [inner[facing_right], inner[facing_left]]
    weights = [rest[facing_right], shares[facing_left]]
    sides = [np.ones(int(facing_right.sum())), -np.ones(int(facing_left.sum()))]
    more = float(slopes[0]) + left
    if abs(more) > 1e-14 * float(np.abs(slopes).max()):
        side = 1.0 if more > 0 else -1.0
        where.append(knots[:1] if more > 0 else knots[-1:])
        weights.append(np.array([abs(more)]))
        sides.append(np.array([side]))
    at, sided, weighted = np.concatenate(where), np.concatenate(sides), np.concatenate(weights)
    order = np.argsort(at, kind="stable")
    at, sided, weighted = at[order], sided[order], weighted[order]
    reach = np.maximum(sided * (knots[0] - at), 0.0)
    return at, sided, weighted, float(values[0] - weighted @ reach)


def interpolation_dual(knots: Floats, values: Floats) -> tuple[Floats, float]:
    """Return the dual point that proves the norm of `interpolate` least.

    Parameters
    ----------
    knots : ndarray of shape (n,)
        Increasing.
    values : ndarray of shape (n,)
        Values there.

    Returns
    -------
    dual : ndarray of shape (n,)
        The v, with sum 0 and supremum at most 1, to rounding.
    bound : float
        The product v'values, which no network with these values is below.

    Notes
    -----
    v is the second difference of a potential phi with phi_k = sum_{i >= k} v_i (t_i - t_k), so
    that |phi_k| <= 1 and |phi_k - phi_1| <= 1 make it feasible. The bound is summed over the
    potential and the kinks, which is exact where samples are so close that v is huge.
    """
    if len(knots) < 2:
        return np.zeros(len(knots)), 0.0
    slopes = np.diff(values) / np.diff(knots)
    kinks = np.diff(slopes)
    ends = float(slopes[0] + slopes[-1])
    potential = np.zeros(len(knots))
    if abs(ends) <= float(np.abs(kinks).sum()):
        potential[1:-1] = np.sign(kinks)
    elif ends > 0:
        potential[0], potential[1:-1] = 1.0, kinks > 0
    else:
        potential[0], potential[1:-1] = -1.0, -1.0 * (kinks < 0)
    pulls = np.diff(potential) / np.diff(knots)
    bound = float(potential[0] * slopes[0] + potential[1:-1] @ kinks)
    return np.diff(pulls, prepend=0.0, append=0.0), bound


def line_supremum(at: Floats, dual: Floats) -> float:
    """Return the supremum of |v'(s (t - k))_+| over both sides s and every knot k.

    Parameters
    ----------
    at : ndarray of shape (n,)
        Increasing positions t, equal ones allowed.
    dual : ndarray of shape (n,)
        The v, with sum zero.

    Returns
    -------
    float
        The supremum, which a sample attains as its knot; O(n).
    """
    if len(at) < 2:
        return 0.0
    steps = np.diff(at)
    right = np.cumsum(np.cumsum(dual[::-1])[:-1] * steps[::-1])
    left = np.cumsum(np.cumsum(dual)[:-1] * steps)
    return float(max(np.abs(right).max(), np.abs(left).max()))


def _bound(at: Floats, y: Floats, outputs: Floats, penalty: float) -> tuple[float, Floats, float]:
    """Return the bound that the residual of outputs proves, its dual point and its supremum."""
    n = len(at)
    point = (y - outputs) / n
    point = point - point.mean()
    order = np.argsort(at, kind="stable")
    supremum = line_supremum(at[order], point[order])
    supremum += 1e-15 * float(np.abs(point).sum()) * float(np.ptp(at))
    square = n * float(point @ point)
    centered = y - y.mean()
    scale = float(point @ centered) / square if square > 0 else 0.0
    scale = float(np.clip(scale, 0.0, penalty / supremum if supremum > 0 else np.inf))
    bound = scale * float(point @ centered) - 0.5 * scale**2 * square
    return max(bound, 0.0), scale * point, supremum


def evaluate(
    knots: Floats, sides: Floats, weights: Floats, intercept: float, at: Floats
) -> Floats:
    """Return the values of a network on a line, piece by piece instead of neuron by neuron.

    Parameters
    ----------
    knots, sides, weights : ndarray of shape (n_neurons,)
        Its neurons, as in `ReLUSpline`, knots increasing.
    intercept : float
        The c.
    at : ndarray of shape (n_samples,)
        Positions.

    Returns
    -------
    ndarray of shape (n_samples,)
        The values.
    """
    if not len(knots):
        return np.full(at.shape, intercept)
    right, left = np.where(sides > 0, weights, 0.0), np.where(sides < 0, weights, 0.0)
    # Slopes to the left of the first knot, between knots, and to the right of the last.
    slopes = np.concatenate([[0.0], np.cumsum(right)])
    slopes[:-1] -= np.cumsum(left[::-1])[::-1]
    first = intercept + float(left @ (knots - knots[0]))
    values = first + np.concatenate([[0.0], np.cumsum(slopes[1:-1] * np.diff(knots))])
    piece = np.searchsorted(knots, at, side="right")
    base = np.maximum(piece - 1, 0)
    return np.asarray(values[base] + slopes[piece] * (at - knots[base]))


def _read(X: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    """Return rows and targets in float64; one dimension is one feature."""
    shaped: Any = X.reshape(-1, 1) if getattr(X, "ndim", 0) == 1 else X  # type: ignore[union-attr]
    if not hasattr(shaped, "ndim"):
        shaped = np.asarray(X, dtype=np.float64)
        shaped = shaped.reshape(-1, 1) if shaped.ndim == 1 else shaped
    rows, targets = read_samples(shaped, y, logistic=False)
    if not len(rows) or not rows.shape[1]:
        raise DataError(f"X must have samples and features, got the shape {rows.shape}.")
    return rows, targets


def _penalized(
    at: Floats, counts: Floats, y: Floats, level: float
) -> tuple[NDArray[np.int64], Floats, int]:
    """Return knots (indices) and values there that minimize half the squares + level R.

    Parameters
    ----------
    at : ndarray of shape (n,)
        Distinct positions.
    counts : ndarray of shape (n,)
        Weights of the samples.
    y : ndarray of shape (n,)
        Targets.
    level : float
        Penalty of the sum of squares.

    Returns
    -------
    tuple of (indices, values, rounds)
        Knots of the spline, ends among them, and its values there.
    """
    n = len(at)
    mean = float(counts @ y / counts.sum())
    size = float(np.sqrt(counts @ (y - mean) ** 2 / counts.sum()))
    if n < 2 or size <= 1e-15 * abs(mean):
        return np.arange(min(n, 1)), np.full(min(n, 1), mean), 0
    span = float(at[-1] - at[0])
    t, target, lam = (at - at[0]) / span, (y - mean) / size, level / (size * span)
    # From here on slopes are in these units; the answer does not depend on them.
    if line_supremum(t, counts * target) <= lam:
        return np.arange(1), np.full(1, mean), 0
    picked = np.unique(np.linspace(0, n - 1, min(n, 65)).astype(np.int64))
    best = (np.inf, picked, np.zeros(len(picked)))
    least = np.inf
    idle = rounds = 0
    ending = False
    total = float(counts.sum())
    while rounds < MAX_ROUNDS:
        rounds += 1
        diagonal, beside, right = _hat_gram(t, counts, target, picked)
        x = solve_restricted(HatProgram(t[picked], diagonal, beside, right, lam))
        outputs = np.interp(t, t[picked], x)
        residual = counts * (target - outputs)
        residual = residual - counts * (residual.sum() / total)
        # Potential of the dual point: phi_k = sum_{i >= k} v_i (t_i - t_k).
        tails = np.cumsum(residual[::-1])[::-1]
        potential = np.zeros(n)
        potential[:-1] = np.cumsum((tails[1:] * np.diff(t))[::-1])[::-1]
        moment = float(potential[0])
        over = potential - min(lam, moment + lam)
        under = max(-lam, moment - lam) - potential
        worst = max(float(over.max()), float(under.max()), abs(moment) - lam)
        value = 0.5 * float(counts @ (target - outputs) ** 2)
        value += lam * least_norm(t[picked], x)
        scale = lam / max(lam + worst, lam)
        square = float(residual @ (residual / counts))
        gap = value - (scale * float(residual @ target) - 0.5 * scale**2 * square)
        if ending:
            # The last round only dropped knots without a kink, at the price of rounding.
            if gap <= 2 * best[0] + 1e-11 * value:
                best = (gap, picked, x)
            break
        idle = 0 if gap < 0.5 * best[0] or value < least * (1 - 1e-9) else idle + 1
        least = min(least, value)
        if gap < best[0]:
            best = (gap, picked, x)
        if worst <= 1e-11 * lam or gap <= 1e-12 * value or idle >= 4:
            ending, picked, x = True, best[1], best[2]
        # Keep kinks, add the worst place of every interval on either side.
        slopes = np.diff(x) / np.diff(t[picked])
        bends = np.abs(np.diff(slopes))
        bent = bends > 1e-7 * max(float(bends.max(initial=0.0)), 1e-300)
        kept = picked[1:-1][bent]
        fresh = [] if ending else [_worst_places(e, picked, 1e-12 * lam) for e in (over, under)]
        wider = np.unique(np.concatenate([kept, *fresh, [0, n - 1]]))
        if len(wider) == len(picked) and (wider == picked).all():
            break
        picked = wider
    _, picked, x = best
    return picked, mean + size * x, rounds


def _worst_places(
    excess: Floats, picked: NDArray[np.int64], tolerance: float
) -> NDArray[np.int64]:
    """Return the place of the largest excess in every interval between knots, where positive."""
    tops = np.maximum.reduceat(excess, picked[:-1])
    wanted = np.repeat(tops, np.diff(picked))
    return np.flatnonzero((excess[: picked[-1]] >= wanted) & (wanted > tolerance))


def _hat_gram(
    t: Floats, counts: Floats, y: Floats, picked: NDArray[np.int64]
) -> tuple[Floats, Floats, Floats]:
    """Return diagonal, off-diagonal and right-hand side of least squares in hats on the knots."""
    m = len(picked)
    piece = np.clip(np.searchsorted(picked, np.arange(len(t)), side="right") - 1, 0, m - 2)
    knots = t[picked]
    share = (t - knots[piece]) / np.diff(knots)[piece]
    rest = (knots[piece + 1] - t) / np.diff(knots)[piece]
    diagonal = np.asarray(np.bincount(piece, counts * rest * rest, m), dtype=np.float64)
    diagonal += np.bincount(piece + 1, counts * share * share, m)
    beside = np.asarray(np.bincount(piece, counts * share * rest, m), dtype=np.float64)[: m - 1]
    right = np.asarray(np.bincount(piece, counts * y * rest, m), dtype=np.float64)
    right += np.bincount(piece + 1, counts * y * share, m)
    return diagonal, beside, right
