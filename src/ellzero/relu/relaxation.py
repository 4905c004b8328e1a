r"""Upper bounds on sup v'(Au)_+ over the unit ball, and the dual problem over such bounds.

Write t = Au and v'(Au)_+ = v'Au / 2 + sum_i v_i |t_i| / 2. Where v_i > 0, |t_i| is at most
(alpha_i t_i^2 + 1 / alpha_i) / 2 for every alpha_i > 0; where v_i < 0, -|t_i| is at most
-theta_i t_i^2 / \|a_i\| + r_i t_i for theta_i >= 0 and theta_i + |r_i| <= 1. What is left is a
quadratic on the ball, whose maximum an eigendecomposition gives. Every choice of the numbers is
valid, so nothing that chose them needs to be trusted. With kappa = v alpha, and with theta and r
times |v|, bound and v together are jointly convex: one small semidefinite program maximizes the
dual over both.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.errors import IncompatibleError
from ellzero.relu.losses import AbstractLoss, LogisticLoss

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Multipliers:
    """Numbers of the quadratic bound for one dual point v.

    Parameters
    ----------
    curvature : ndarray of shape (n_samples,)
        |v_i| alpha_i, used where v_i > 0. Must be positive where v_i is not 0.
    share : ndarray of shape (n_samples,)
        |v_i| theta_i, used where v_i < 0.
    slope : ndarray of shape (n_samples,)
        |v_i| r_i, used where v_i < 0.
    """

    curvature: Floats
    share: Floats
    slope: Floats


def bound_of(A: Floats, point: Floats, multipliers: Multipliers) -> float:
    """Return an upper bound on sup of v'(Au)_+ over the unit ball.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.
    multipliers : Multipliers
        Any numbers; what breaks their conditions is clipped.

    Returns
    -------
    float
        The bound, valid for any multipliers, with a margin of 1e-12 for rounding.
    """
    quadratic, linear, constant = _quadratic(A, point, multipliers)
    most, _ = _largest_on_ball(quadratic, linear)
    scale = float(np.abs(point) @ np.linalg.norm(A, axis=1))
    return most + constant + 1e-12 * scale


def relax(
    A: Floats, point: Floats, starts: Floats, *, n_iter: int = 400, tol: float = 1e-4
) -> tuple[float, Multipliers]:
    """Return a good upper bound on sup of v'(Au)_+, without a conic solver.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.
    starts : ndarray of shape (n, n_inputs)
        Good neurons, best first; the first one gives the first multipliers.
    n_iter : int, default=400
        Most steps; each costs n_samples n_inputs^2 operations.
    tol : float, default=1e-4
        Stop when bound and moment value are this close, relatively.

    Returns
    -------
    bound : float
        The least bound seen.
    multipliers : Multipliers
        Its evidence.

    Notes
    -----
    The dual of the bound is a concave maximization over moments (X, x) with X - xx' positive
    semidefinite and tr X <= 1. Steps of Frank and Wolfe: the linear problem over moments is the
    quadratic on the ball of `bound_of`, so that every step yields a valid bound.
    """
    moment = np.outer(starts[0], starts[0])
    mean = starts[0].copy()
    sizes = np.maximum(np.linalg.norm(A, axis=1), 1e-300)
    weights = np.abs(point)
    best, best_multipliers = np.inf, None
    for step in range(n_iter):
        squares = np.maximum(np.einsum("ij,ij->i", A @ moment, A), 0.0)
        products = A @ mean
        floor = 1e-8 * sizes
        inverse = 1.0 / np.maximum(np.sqrt(squares), floor)
        # Smooth choice between the two lower bounds of |t|: the larger one, softly near ties.
        chord, line = squares / sizes, np.abs(products)
        sharpness = 20.0 * (1.0 + 0.1 * step)
        pull = np.clip(sharpness * (chord - line) / sizes, -40.0, 40.0)
        theta = 1.0 / (1.0 + np.exp(-pull))
        multipliers = Multipliers(
            weights * inverse, weights * theta, -weights * (1.0 - theta) * np.sign(products)
        )
        quadratic, linear, constant = _quadratic(A, point, multipliers)
        most, at = _largest_on_ball(quadratic, linear)
        bound = most + constant + 1e-12 * float(weights @ sizes)
        if bound < best:
            best, best_multipliers = bound, multipliers
        here = 0.5 * float(point @ products)
        here += 0.5 * float(np.where(point > 0, weights * np.sqrt(squares), 0.0).sum())
        here -= 0.5 * float(np.where(point < 0, weights * np.maximum(chord, line), 0.0).sum())
        if best - here <= tol * abs(best):
            break
        rate = 2.0 / (step + 3.0)
        moment = (1 - rate) * moment + rate * np.outer(at, at)
        mean = (1 - rate) * mean + rate * at
    assert best_multipliers is not None
    return best, best_multipliers


def conic() -> Any:
    """Return the package cvxpy.

    Raises
    ------
    IncompatibleError
        If it is not installed.
    """
    try:
        import cvxpy
    except ImportError:
        raise IncompatibleError(
            "The convex program of a ReLU network needs cvxpy, which is not installed.",
            "Install the extra: pip install 'ellzero[convex]'.",
        ) from None
    return cvxpy


def solve_dual(
    A: Floats,
    y: Floats,
    loss: AbstractLoss,
    penalty: float,
    start: Floats,
    *,
    balanced: bool,
) -> tuple[Floats, Multipliers, Multipliers] | None:
    """Return a dual point with its multipliers, by one semidefinite program over both.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    y : ndarray of shape (n_samples,)
        Targets.
    loss : AbstractLoss
        The loss.
    penalty : float
        Weight of the norm of the network.
    start : ndarray of shape (n_samples,)
        A dual point whose signs are kept.
    balanced : bool
        Whether the entries of the point must add up to zero (a free intercept).

    Returns
    -------
    tuple of (point, multipliers of it, multipliers of minus it), or None
        None when the solver failed. Nothing of it needs to be trusted: see `bound_of`.

    Raises
    ------
    IncompatibleError
        If cvxpy is not installed.

    Notes
    -----
    Four numbers for each sample and two matrix inequalities of size n_inputs + 1; SCS solves it
    to about five digits.
    """
    cp = conic()
    n_samples, n_inputs = A.shape
    row_size = float(np.sqrt(np.mean(np.sum(A * A, axis=1)))) or 1.0
    rows = A / row_size
    unit = 1.0 if isinstance(loss, LogisticLoss) else float(np.sqrt(np.mean(y**2))) or 1.0
    y = y if unit == 1.0 else y / unit
    level = penalty / row_size * n_samples / unit
    sizes = np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    signs = np.where(start >= 0, 1.0, -1.0)
    size = cp.Variable(n_samples, nonneg=True)
    point = cp.multiply(signs, size)
    conditions = [cp.sum(point) == 0] if balanced else []
    found = []
    for sign in (1.0, -1.0):
        up = np.flatnonzero(signs == sign)
        down = np.flatnonzero(signs != sign)
        curvature, square = cp.Variable(len(up), nonneg=True), cp.Variable(len(up))
        share, slope = cp.Variable(len(down), nonneg=True), cp.Variable(len(down))
        radius = cp.Variable(nonneg=True)
        quadratic = np.zeros((n_inputs, n_inputs))
        linear = 0.5 * sign * (rows.T @ point)
        if len(up):
            quadratic = quadratic + rows[up].T @ cp.diag(curvature / 4) @ rows[up]
            # |v|^2 <= 4 curvature square
            conditions.append(
                cp.SOC(square + curvature, cp.vstack([size[up], square - curvature]), axis=0)
            )
        if len(down):
            weights = cp.multiply(share, 1 / (2 * sizes[down]))
            quadratic = quadratic - rows[down].T @ cp.diag(weights) @ rows[down]
            linear = linear + 0.5 * (rows[down].T @ slope)
            conditions.append(cp.abs(slope) + share <= size[down])
        corner = level - radius - cp.sum(square)
        side = cp.reshape(-linear / 2, (n_inputs, 1), order="F")
        block = cp.bmat(
            [
                [radius * np.eye(n_inputs) - quadratic, side],
                [side.T, cp.reshape(corner, (1, 1), order="F")],
            ]
        )
        conditions.append((block + block.T) / 2 >> 0)
        found.append((up, down, curvature, share, slope))
    # In units of n v, the dual of either loss is a mean.
    if isinstance(loss, LogisticLoss):
        shares = cp.multiply(y * signs, size)
        conditions += [shares >= 0, shares <= 1]
        dual = cp.sum(cp.entr(shares) + cp.entr(1 - shares)) / n_samples
    else:
        dual = (point @ y - 0.5 * cp.sum_squares(size)) / n_samples
    program = cp.Problem(cp.Maximize(dual), conditions)
    try:
        with warnings.catch_warnings():
            # The bound is computed anew from whatever comes out.
            warnings.simplefilter("ignore")
            program.solve(solver=cp.SCS, eps_abs=1e-4, eps_rel=1e-4, max_iters=4000)
    except cp.SolverError:
        return None
    if size.value is None or not np.isfinite(size.value).all():
        return None
    back = unit / n_samples
    values = signs * np.maximum(size.value, 0.0) * back
    sides = []
    for up, down, curvature, share, slope in found:
        full = [np.zeros(n_samples) for _ in range(3)]
        if len(up):
            full[0][up] = curvature.value * back / row_size
        if len(down):
            full[1][down], full[2][down] = share.value * back, slope.value * back
        sides.append(Multipliers(*full))
    return values, sides[0], sides[1]


def _quadratic(A: Floats, point: Floats, multipliers: Multipliers) -> tuple[Floats, Floats, float]:
    """Return Q, c and k with v'(Au)_+ <= u'Qu + c'u + k on the unit ball."""
    sizes = np.maximum(np.linalg.norm(A, axis=1), 1e-300)
    weights = np.abs(point)
    up, down = point > 0, point < 0
    # |t_i| is at most |a_i|, so that no alpha below 1 / |a_i| is of use.
    curvature = np.where(up, np.maximum(multipliers.curvature, weights / sizes), 1.0)
    share = np.clip(np.where(down, multipliers.share, 0.0), 0.0, weights)
    room = weights - share
    slope = np.clip(np.where(down, multipliers.slope, 0.0), -room, room)
    bend = np.where(up, curvature / 4, -share / (2 * sizes))
    quadratic = (A.T * bend) @ A
    linear = 0.5 * (A.T @ (point + slope))
    constant = float(np.where(up, weights**2 / (4 * curvature), 0.0).sum())
    return 0.5 * (quadratic + quadratic.T), linear, constant


def _largest_on_ball(quadratic: Floats, linear: Floats) -> tuple[float, Floats]:
    """Return an upper bound on max u'Qu + c'u over the unit ball, tight, and a maximizer."""
    values, vectors = np.linalg.eigh(quadratic)
    parts = vectors.T @ linear
    floor = max(float(values[-1]), 0.0)
    scale = max(float(np.abs(values).max()), float(np.linalg.norm(linear)), 1e-300)
    low, high = floor + 1e-13 * scale, floor + float(np.linalg.norm(linear)) + 1e-12 * scale
    for _ in range(120):
        mid = 0.5 * (low + high)
        if float(np.sum((0.5 * parts / (mid - values)) ** 2)) > 1.0:
            low = mid
        else:
            high = mid
    # Any radius above the largest eigenvalue gives a valid bound.
    weights = 0.5 * parts / (high - values)
    bound = high + 0.5 * float(parts @ weights)
    at = vectors @ weights
    lacking = 1.0 - float(at @ at)
    if lacking > 0 and values[-1] > 0:
        top = vectors[:, -1]
        inner = float(at @ top)
        at = at + top * (-inner + np.sign(inner or 1.0) * np.sqrt(inner**2 + lacking))
    return bound, at
