"""Exact suprema and exact programs by enumeration, for tests."""

from itertools import combinations, product

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]


def patterns(A: Floats) -> NDArray[np.bool_]:
    """Return every activation pattern, with a cell of full dimension, in general position."""
    n, d = A.shape
    if d == 1:
        return np.unique(np.array([A[:, 0] > 0, A[:, 0] < 0]), axis=0)
    found = set()
    for rows in combinations(range(n), d - 1):
        ray = np.linalg.svd(A[list(rows)])[2][-1]
        values = A @ ray
        for sign in (1.0, -1.0):
            pattern = sign * values > 0
            for choice in product([False, True], repeat=d - 1):
                pattern[list(rows)] = choice
                found.add(tuple(pattern))
    return np.array(sorted(found))


def supremum(A: Floats, v: Floats) -> float:
    """Return sup v'(Au)_+ over the unit ball: the projection of a gradient on each cell's cone."""
    best = 0.0
    for pattern in patterns(A):
        pull = A.T @ (pattern * v)
        cone = np.where(pattern, 1.0, -1.0)[:, None] * A
        # The projection on {u: cone u >= 0} is pull + cone' z with the least-squares z >= 0.
        z, _ = nnls(cone.T, -pull, maxiter=10_000)
        best = max(best, float(np.linalg.norm(pull + cone.T @ z)))
    return best


def program(A: Floats, y: Floats, penalty: float, *, logistic: bool, intercept: bool) -> float:
    """Return the optimum over every width by the convex program with every pattern."""
    n, d = A.shape
    everything = patterns(A)
    outputs: object = cp.Variable() if intercept else 0.0
    norm, conditions = 0.0, []
    for pattern in everything:
        rows = pattern[:, None] * A
        cone = np.where(pattern, 1.0, -1.0)[:, None] * A
        for sign in (1.0, -1.0):
            part = cp.Variable(d)
            outputs = outputs + sign * rows @ part
            norm = norm + cp.norm(part, 2)
            conditions.append(cone @ part >= 0)
    if logistic:
        fit = cp.sum(cp.logistic(cp.multiply(-y, outputs))) / n
    else:
        fit = cp.sum_squares(outputs - y) / (2 * n)
    solved = cp.Problem(cp.Minimize(fit + penalty * norm), conditions)
    return float(solved.solve(solver=cp.CLARABEL, tol_gap_rel=1e-10, tol_gap_abs=1e-11))
