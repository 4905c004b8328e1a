"""Ascent of diagonal weights that leave a matrix positive definite."""

from __future__ import annotations

from typing import Any

from numba import njit  # noqa: TID253


@njit(cache=True, error_model="numpy")
def raise_weights(
    inverse: Any, weights: Any, slope: Any, low: Any, barrier: float, column: Any
) -> None:
    r"""Maximize slope^T w + barrier * log det(H - diag(w)) over one weight after the other.

    Parameters
    ----------
    inverse : array of shape (p, p)
        Inverse of H - diag(w), updated.
    weights, slope, low : array of shape (p,)
        The weights w, updated; what a unit of each is worth; what each is at least.
    barrier : float
        Price of coming near to a singular matrix.
    column : array of shape (p,)
        Memory.
    """
    p = weights.size
    for j in range(p):
        m = inverse[j, j]
        step = 1.0 / m - barrier / slope[j]
        step = max(min(step, 0.95 / m), low[j] - weights[j])
        # Small steps are not worth their p^2.
        if abs(step) * m < 1e-2:
            continue
        factor = step / (1.0 - step * m)
        weights[j] += step
        for a in range(p):
            column[a] = inverse[j, a]
        for a in range(p):
            t = factor * column[a]
            if t != 0.0:
                row = inverse[a]
                for b in range(p):
                    row[b] += t * column[b]
