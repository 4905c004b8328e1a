"""The perspective relaxation of a quadratic objective with many entries, on a growing few."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from ellzero.certificates.flat import FlatObjective
from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.tensors import named

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Proximal steps between two attempts to solve for a partition.
STEPS = 5
# Squared decrement, relative to the value, up to which free entries count as settled.
SETTLED = 1e-24
# Attempts at one working set.
ROUNDS = 60


class Working(NamedTuple):
    """A quadratic function on some entries, in units in which the modulus is one.

    Parameters
    ----------
    matrix : ndarray of shape (w, w)
        Hessian less the modulus; positive semidefinite.
    linear : ndarray of shape (w,)
        Slope at zero, with its sign turned.
    budget : int
        Most nonzeros.
    """

    matrix: Floats
    linear: Floats
    budget: int

    def value(self, t: Floats) -> float:
        """Return the relaxed value, up to the constant."""
        return float(t @ (self.matrix @ t) / 2 - self.linear @ t) + squared_norm(t, self.budget)

    def slope(self, t: Floats) -> Floats:
        """Return what the smooth part pulls with."""
        return np.asarray(self.linear - self.matrix @ t)


def squared_norm(t: Floats, budget: int) -> float:
    r"""Return the least of sum t^2 / (2 z) over 0 <= z <= 1 with sum z <= budget."""
    size = -np.sort(-np.abs(t))
    if size.size <= budget:
        return float(size @ size) / 2
    # With the `count` largest at one, the others share what is left in proportion to their size.
    tail = np.cumsum(size[::-1])[::-1]
    level = tail[:budget] / (budget - np.arange(budget))
    count = int(np.argmax(size[:budget] <= level * (1 + 1e-15)))
    top = float(size[:count] @ size[:count])
    return (top + float(tail[count]) ** 2 / (budget - count)) / 2


def shrink(v: Floats, weight: float, budget: int) -> tuple[Floats, Bools, Bools]:
    """Return the proximal point of `weight` times that, and which z are one and between.

    t = v z / (z + weight) with z = clip(|v| k - weight, 0, 1), and k such that z uses up the
    budget: a root of a piecewise linear function.
    """
    size = np.abs(v)
    if np.count_nonzero(size) <= budget:
        return v / (1 + weight), size > 0, np.zeros(v.shape, bool)
    some = size[size > 0]
    breaks = np.concatenate([weight / some, (1 + weight) / some])
    turns = np.concatenate([some, -some])
    order = np.argsort(breaks, kind="stable")
    breaks, turns = breaks[order], turns[order]
    slopes = np.cumsum(turns)
    used = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(breaks))])
    place = int(np.searchsorted(used, budget, "left")) - 1
    factor = breaks[place] + (budget - used[place]) / slopes[place]
    z = np.clip(size * factor - weight, 0.0, 1.0)
    return v * z / (z + weight), z >= 1.0, (z > 0) & (z < 1)


def solve_working(problem: Working, t: Floats, tol: float) -> Floats:
    """Minimize the relaxed value: proximal steps, and exact solutions for the partition found.

    Parameters
    ----------
    problem : Working
        The function.
    t : ndarray of shape (w,)
        Start.
    tol : float
        Decrease of the value, relative to what was gained from zero, at which to stop.

    Returns
    -------
    ndarray of shape (w,)
        The minimizer.
    """
    step = 1.0 / max(_norm(problem.matrix), 1e-300)
    value = problem.value(t)
    ahead, momentum = t, 1.0
    for _ in range(ROUNDS):
        before = value
        for _ in range(STEPS):
            new, _, _ = shrink(ahead + step * problem.slope(ahead), step, problem.budget)
            growth = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = new + (momentum - 1) / growth * (new - t)
            t, momentum = new, growth
        after = problem.value(t)
        if after > value:
            ahead, momentum = t, 1.0
        value = after
        while True:
            solved = _solve_partition(problem, t, step)
            if solved is None or not problem.value(solved) < value:
                break
            gained = value - problem.value(solved)
            t, value = solved, value - gained
            ahead, momentum = t, 1.0
            if gained <= tol * abs(value):
                break
        if before - value <= tol * abs(value):
            break
    return t


def _norm(matrix: Floats) -> float:
    """Return a bound on the largest eigenvalue."""
    return float(np.abs(matrix).sum(1).max(initial=0.0))


def _solve_partition(problem: Working, t: Floats, step: float) -> Floats | None:
    """Return the minimizer if z at one, between and at zero stay where they are."""
    v = t + step * problem.slope(t)
    _, ones, between = shrink(v, step, problem.budget)
    room = problem.budget - np.count_nonzero(ones)
    inside = np.flatnonzero(ones | between)
    if not inside.size:
        return None
    sign = np.where(between, np.sign(v), 0.0)[inside]
    matrix = problem.matrix[np.ix_(inside, inside)]
    matrix[np.diag_indices_from(matrix)] += ones[inside]
    if room > 0:
        matrix += np.outer(sign, sign) / room
    # Fractional entries may leave the function flat.
    matrix[np.diag_indices_from(matrix)] += 1e-12 * matrix.diagonal().max()
    try:
        factor = cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None
    out = np.zeros_like(t)
    solve: Any = cho_solve
    out[inside] = solve(factor, problem.linear[inside], check_finite=False)
    return out


def working(
    flat: FlatObjective, point: Tensor, index: Tensor, free: Tensor, modulus: Tensor, budget: int
) -> tuple[Working, Tensor]:
    """Return the quadratic on some entries with the free ones minimized out, and its units.

    Parameters
    ----------
    flat : FlatObjective
        A quadratic objective.
    point : Tensor of shape (1, n)
        Zero at all entries but the free ones, which minimize there.
    index, free : Tensor of int64
        Entries, and those that are free.
    modulus : Tensor of shape (n,)
        Strong convexity that the relaxation uses, positive on `index`.
    budget : int
        Most nonzeros.

    Returns
    -------
    tuple of Working and Tensor of shape (w,)
        The function, and square roots of the modulus: entries are units times smaller.
    """
    both = torch.cat([index, free])
    hessian = flat.hessian_on(point, both.unsqueeze(0))[0]
    _, grad = flat.value_and_grad(point)
    w = index.shape[0]
    block, slope = hessian[:w, :w], grad[0, index]
    if free.shape[0]:
        cross = hessian[:w, w:]
        block = block - cross @ torch.linalg.pinv(hessian[w:, w:], hermitian=True) @ cross.T
    root = modulus[index].sqrt()
    matrix = block / root.unsqueeze(1) / root - torch.eye(w).to(block)
    return Working(to_array(matrix), -to_array(slope / root), budget), root


def to_array(tensor: Tensor) -> Floats:
    """Return a float64 array of a few numbers."""
    return np.asarray(tensor.detach().to("cpu", torch.float64))


def settle(flat: FlatObjective, points: Tensor, loose: Tensor) -> Tensor:
    """Return points with entries without modulus moved to their minimizers.

    Parameters
    ----------
    flat : FlatObjective
        A convex objective.
    points : Tensor of shape (K, n)
        Points.
    loose : Tensor of int64
        Entries that move.

    Returns
    -------
    Tensor of shape (K, n)
        The points.
    """
    index = loose.expand(points.shape[0], -1)
    if isinstance(flat.objective, AbstractQuadraticObjective):
        hessian = flat.hessian_on(points[:1], index[:1])[0]
        inverse = torch.linalg.pinv(hessian, hermitian=True, rtol=1e-12)
        for _ in range(2):
            # The first step solves, the second refines.
            _, grad = flat.value_and_grad(points)
            points = points.scatter_add(1, index, -grad[:, loose] @ inverse)
        return points
    for _ in range(30):
        value, grad = flat.value_and_grad(points)
        slope = grad[:, loose]
        inverse = torch.linalg.pinv(flat.hessian_on(points, index), hermitian=True, rtol=1e-12)
        move = -(inverse @ slope.unsqueeze(-1)).squeeze(-1)
        decrement = -(slope * move).sum(1)
        done = decrement <= SETTLED * value.abs()
        if named.all_true(done):
            break
        trial = points.scatter_add(1, index, move)
        # So near to the minimizer a step needs no check.
        good = decrement <= 1e-6 * value.abs()
        if not named.all_true(good):
            good = good | (flat.value(trial) <= value + 1e-15 * value.abs())
        points = torch.where((good & ~done).unsqueeze(1), trial, points)
        if not named.any_true(good & ~done):
            break
    return points


def decrement_on(flat: FlatObjective, points: Tensor, grad: Tensor, loose: Tensor) -> Tensor:
    """Return g^T H^-1 g on a few entries: what rounding has left of a gradient that vanishes.

    The square root of it times the size of the value tells how far the dual point at hand is from
    one that is feasible.
    """
    index = loose.expand(points.shape[0], -1)
    inverse = torch.linalg.pinv(flat.hessian_on(points, index), hermitian=True, rtol=1e-12)
    left = grad[:, loose]
    out: Tensor = (left.unsqueeze(1) @ inverse @ left.unsqueeze(2)).reshape(-1)
    return out.clamp_min(0.0)
