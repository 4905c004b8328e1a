r"""Networks on a line for the hinge loss and for several outputs.

As for squared loss and one output, kinks at samples suffice, so that training is a program in the
values z at the samples: a linear program for the hinge loss (the support vector machine of l1
norm on the kernel-like matrix of kinks), a cone program for several outputs (Ergen and Pilanci,
arXiv 2002.11219, Theorems 11 and 14, Corollary 11).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog  # type: ignore[attr-defined]
from scipy.sparse import csr_array, eye_array, hstack, vstack

from ellzero.core.result import Certificate, Measure
from ellzero.errors import DataError
from ellzero.relu.certificate import read_samples
from ellzero.relu.conclusion import bound_in, conclude, gap_in
from ellzero.relu.outputs import VectorReLU
from ellzero.relu.relaxation import conic
from ellzero.relu.splines import (
    Line,
    ReLUSpline,
    evaluate,
    interpolate,
    least_norm,
    line_supremum,
)
from ellzero.validation import check_real

Floats = NDArray[np.float64]


def fit_spline_hinge(X: ArrayLike, y: ArrayLike, penalty: float) -> ReLUSpline:
    r"""Train a network of the hinge loss on data on a line to the optimum over every width.

    .. math:: \min \frac{1}{n} \sum_i \max(1 - y_i f(x_i), 0) + \lambda \sum_j |w_j| \|u_j\|,
        \quad f(x) = \sum_j w_j \max(u_j^\top x + b_j, 0) + c

    Parameters
    ----------
    X : array-like of shape (n_samples,) or (n_samples, n_features)
        Samples on a line (rank-one data lie on one through the origin).
    y : array-like of shape (n_samples,)
        Two classes; the larger one counts as 1, the other as -1.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    ReLUSpline
        A network with at most as many neurons as samples, its value and its proven bound.

    Raises
    ------
    DataError
        If X or y is malformed, there are not two classes, or rows do not lie on a line.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    A linear program with about 3 n variables and 4 n constraints of at most six entries. Its
    multipliers are the dual point, whose supremum over all neurons is computed exactly, in O(n).

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_spline_hinge
    >>> t = np.linspace(-1, 1, 30)
    >>> spline = fit_spline_hinge(t, np.abs(t) < 0.5, penalty=1e-3)
    >>> bool(((spline.predict(t) > 0) == (np.abs(t) < 0.5)).all()), spline.gap < 1e-9
    (True, True)
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    rows, labels = read_samples(_as_rows(X), y, logistic=True)
    line = Line.through(rows)
    at = line.positions(rows)
    knots, place = np.unique(at, return_inverse=True)
    span = float(np.ptp(knots)) or 1.0
    n = len(labels)
    values, multipliers = _solve_hinge((knots - knots[0]) / span, place, labels, penalty / span)
    parts = interpolate(knots, _straightened(knots, values))
    norm = float(np.abs(parts[2]).sum())
    loss = float(np.mean(np.maximum(1.0 - labels * evaluate(*parts, at), 0.0)))
    value = loss + penalty * norm
    # In [0, 1 / n] and with sum zero, whatever the solver's tolerance.
    shares = np.clip(multipliers, 0.0, 1.0 / n)
    up, down = float(shares[labels > 0].sum()), float(shares[labels < 0].sum())
    least = min(up, down)
    factors = np.where(
        labels > 0, least / up if up > 0 else 0.0, least / down if down > 0 else 0.0
    )
    point = labels * shares * factors
    order = np.argsort(at, kind="stable")
    supremum = line_supremum(at[order], point[order])
    supremum += 1e-15 * float(np.abs(point).sum()) * span
    scale = min(1.0, penalty / supremum) if supremum > 0 else 1.0
    measures: dict[str, Measure] = {
        "n_neurons": len(parts[0]),
        "norm": norm,
        "loss": loss,
        "bound_method": "exact supremum on a line, biases free",
        "supremum_over_penalty": supremum / penalty,
    }
    bound = scale * float(np.abs(point).sum())
    proven = conclude(value, bound, measures, scale=1.0)
    return ReLUSpline(line, *parts, penalty, value, proven, scale * point, 1)


def _solve_hinge(
    t: Floats, place: NDArray[np.int64], labels: Floats, penalty: float
) -> tuple[Floats, Floats]:
    """Return values at the knots t in [0, 1] and the multipliers of the samples."""
    m, n = len(t), len(labels)
    kinks = max(m - 2, 0)
    # Variables: values z, slacks of samples, sizes of kinks, and the norm.
    zeros = csr_array
    slopes = _slopes(t)
    bends = slopes[1:] - slopes[:-1] if m > 2 else csr_array((0, m))
    samples = csr_array((labels, (np.arange(n), place)), shape=(n, m))
    one = csr_array(np.ones((1, kinks)))
    blocks = [
        # 1 - y z <= slack
        [-samples, -eye_array(n), zeros((n, kinks)), zeros((n, 1))],
        # +-kink <= size
        [bends, zeros((kinks, n)), -eye_array(kinks), zeros((kinks, 1))],
        [-bends, zeros((kinks, n)), -eye_array(kinks), zeros((kinks, 1))],
        # The least norm: T, and (T +- (first + last slope)) / 2.
        [zeros((1, m)), zeros((1, n)), one, csr_array([[-1.0]])],
    ]
    if m > 1:
        ends = slopes[[0]] + slopes[[m - 2]]
        blocks += [
            [sign * ends, zeros((1, n)), 0.5 * one, csr_array([[-1.0]])] for sign in (0.5, -0.5)
        ]
    matrix = vstack([hstack(row) for row in blocks]).tocsr()
    right = np.zeros(matrix.shape[0])
    right[:n] = -1.0
    costs = np.concatenate([np.zeros(m), np.full(n, 1.0 / n), np.zeros(kinks), [penalty]])
    bounds = [(None, None)] * m + [(0, None)] * (n + kinks + 1)
    found = linprog(costs, A_ub=matrix, b_ub=right, bounds=bounds, method="highs")
    return np.asarray(found.x[:m]), -np.asarray(found.ineqlin.marginals[:n])


def _slopes(t: Floats) -> Any:
    """Return the matrix that maps values to slopes between neighbors."""
    m = len(t)
    if m < 2:
        return csr_array((0, m))
    pulls = 1.0 / np.diff(t)
    index = np.arange(m - 1)
    rows, columns = np.concatenate([index, index]), np.concatenate([index, index + 1])
    return csr_array((np.concatenate([-pulls, pulls]), (rows, columns)), shape=(m - 1, m))


def _straightened(knots: Floats, values: Floats) -> Floats:
    """Return the values without kinks that are rounding, where that costs no norm."""
    if len(knots) < 3:
        return values
    bends = np.abs(np.diff(np.diff(values) / np.diff(knots)))
    kept = np.concatenate([[0], 1 + np.flatnonzero(bends > 1e-9 * bends.max()), [len(knots) - 1]])
    straight = np.interp(knots, knots[kept], values[kept])
    if least_norm(knots, straight) <= least_norm(knots, values) * (1 + 1e-12):
        return np.asarray(straight)
    return values


@dataclass(frozen=True, slots=True)
class VectorSpline:
    """A network on a line with several outputs, its value and what proves it.

    Parameters
    ----------
    network : VectorReLU
        Unit neurons with their output weights, on the features.
    value : float
        Half the squared error over n plus penalty times the norm.
    certificate : Certificate
        Of the value and the bound.
    dual : ndarray of shape (n_samples, n_outputs)
        The dual point that proves it.
    """

    network: VectorReLU
    value: float
    certificate: Certificate
    dual: Floats

    @property
    def lower_bound(self) -> float:
        """Proven bound below which no network of any width is."""
        return bound_in(self.certificate)

    @property
    def gap(self) -> float:
        """Relative distance of value and bound."""
        return gap_in(self.certificate)


def fit_spline_outputs(X: ArrayLike, Y: ArrayLike, penalty: float) -> VectorSpline:
    r"""Train a network with several outputs on data on a line to the optimum over every width.

    .. math:: \min \frac{1}{2n} \|F - Y\|_F^2 + \lambda \sum_j \|w_j\| \|u_j\|, \quad
        f(x) = \sum_j w_j \max(u_j^\top x + b_j, 0) + c

    with vectors w_j and c; biases and c are free.

    Parameters
    ----------
    X : array-like of shape (n_samples,) or (n_samples, n_features)
        Samples on a line (rank-one data lie on one through the origin).
    Y : array-like of shape (n_samples, n_outputs)
        Targets.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    VectorSpline
        The network, its value and its proven bound.

    Raises
    ------
    DataError
        If X or Y is malformed, or rows do not lie on a line.
    IncompatibleError
        If Clarabel or cvxpy is not installed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    A kink may face right or left or both: with D_k the change of slope at sample k, L_k the part
    that faces left and q a neuron that is linear on the data, the norm is the least
    :math:`\sum_k (\|L_k\| + \|D_k - L_k\|) + \|q\|` with :math:`s_1 = q - \sum_k L_k`. This is a
    cone program of O(n k) numbers. The supremum of the dual, over neurons of either side and any
    kink, is attained at a sample, because the norm of a linear function is convex between them;
    it is computed exactly in O(n k).

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_spline_outputs
    >>> t = np.linspace(-1, 1, 15)
    >>> found = fit_spline_outputs(t, np.column_stack([np.abs(t), t]), penalty=1e-2)
    >>> found.gap < 1e-6, found.network.predict(t[:, None]).shape
    (True, (15, 2))
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    targets = np.asarray(Y, dtype=np.float64)
    if targets.ndim != 2 or not targets.shape[1]:
        raise DataError(
            f"Y must have two dimensions, got the shape {targets.shape}.",
            "Use fit_spline for a single output.",
        )
    columns = [read_samples(_as_rows(X), column, logistic=False) for column in targets.T]
    rows = columns[0][0]
    line = Line.through(rows)
    at = line.positions(rows)
    knots, place = np.unique(at, return_inverse=True)
    n = len(targets)
    mean = targets.mean(axis=0)
    size = float(np.sqrt(np.mean((targets - mean) ** 2))) or 1.0
    span = float(np.ptp(knots)) or 1.0
    network_parts = _solve_outputs(
        (knots - knots[0]) / span, place, (targets - mean) / size, penalty / (size * span)
    )
    kinks, sides, weights, intercept = network_parts
    hidden = sides[:, None] * line.direction
    shift = float(line.origin @ line.direction)
    where = knots[0] + span * kinks
    network = VectorReLU(
        hidden, -sides * (shift + where), weights * (size / span), mean + size * intercept
    )
    residual = (targets - network.predict(rows)) / n
    residual = residual - residual.mean(axis=0)
    loss = 0.5 * float(((network.predict(rows) - targets) ** 2).sum()) / n
    value = loss + penalty * network.norm
    order = np.argsort(at, kind="stable")
    supremum = _line_supremum(at[order], residual[order])
    supremum += 1e-15 * float(np.abs(residual).sum()) * span
    square, top = n * float((residual**2).sum()), float((residual * (targets - mean)).sum())
    scale = top / square if square > 0 else 0.0
    scale = float(np.clip(scale, 0.0, penalty / supremum if supremum > 0 else np.inf))
    bound = max(scale * top - 0.5 * scale**2 * square, 0.0)
    measures: dict[str, Measure] = {
        "n_neurons": network.n_neurons,
        "norm": network.norm,
        "loss": loss,
        "bound_method": "exact supremum on a line, biases free",
        "supremum_over_penalty": supremum / penalty,
    }
    zero = 0.5 * float((targets**2).sum()) / n
    proven = conclude(value, bound, measures, scale=zero)
    return VectorSpline(network, value, proven, scale * residual)


def _solve_outputs(
    t: Floats, place: NDArray[np.int64], Y: Floats, penalty: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return kinks, sides, output weights and intercept of the optimal network on [0, 1]."""
    m, (n, k) = len(t), Y.shape
    nothing = np.zeros(0), np.zeros(0), np.zeros((0, k)), Y.mean(axis=0)
    if m < 2:
        return nothing
    cp = conic()
    slopes = _slopes(t)
    values, linear = cp.Variable((m, k)), cp.Variable(k)
    picked = csr_array((np.ones(n), (np.arange(n), place)), shape=(n, m))
    slope = slopes @ values
    norm, start = cp.norm(linear, 2), linear
    left = cp.Variable((m - 2, k)) if m > 2 else None
    if left is not None:
        right = slope[1:] - slope[:-1] - left
        norm = norm + cp.sum(cp.norm(left, 2, axis=1)) + cp.sum(cp.norm(right, 2, axis=1))
        start = linear - cp.sum(left, axis=0)
    fit = cp.sum_squares(picked @ values - Y) / (2 * n)
    program = cp.Problem(cp.Minimize(fit + penalty * norm), [slope[0] == start])
    with warnings.catch_warnings():
        # The bound says how accurate the answer is.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    z = np.asarray(values.value)
    kinks, sides, weights = [t[0]], [1.0], [np.asarray(linear.value)]
    if left is not None:
        facing = np.asarray(left.value)
        bends = np.diff(np.diff(z, axis=0) / np.diff(t)[:, None], axis=0)
        for side, part in ((-1.0, facing), (1.0, bends - facing)):
            kinks += t[1:-1].tolist()
            sides += [side] * (m - 2)
            weights += list(part)
    at, sided, weighted = np.array(kinks), np.array(sides), np.array(weights)
    lengths = np.linalg.norm(weighted, axis=1)
    kept = lengths > 1e-7 * max(float(lengths.max()), 1e-3)
    at, sided, weighted = at[kept], sided[kept], weighted[kept]
    reach = np.maximum(sided * (t[:, None] - at), 0.0) @ weighted
    # The best constant for these neurons.
    return at, sided, weighted, np.asarray((Y - reach[place]).mean(axis=0))


def _line_supremum(at: Floats, dual: Floats) -> float:
    """Return the supremum of the norm of V'(s (t - k))_+ over both sides and every knot."""
    if len(at) < 2:
        return 0.0
    steps = np.diff(at)[:, None]
    right = np.cumsum(np.cumsum(dual[::-1], axis=0)[:-1] * steps[::-1], axis=0)
    left = np.cumsum(np.cumsum(dual, axis=0)[:-1] * steps, axis=0)
    return float(max(np.linalg.norm(part, axis=1).max() for part in (right, left)))


def _as_rows(X: Any) -> Any:
    """Return positions in one dimension as a column."""
    rows = np.asarray(X, dtype=np.float64)
    return rows.reshape(-1, 1) if rows.ndim == 1 else rows
