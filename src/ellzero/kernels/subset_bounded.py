"""Least squares within bounds on small blocks: one after the other, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253


@njit(cache=True)
def fit_box(
    H: Any, c: Any, low: Any, high: Any, x: Any, k: int, side: Any, factor: Any, z: Any
) -> None:
    """Minimize x^T H x - 2 c^T x within bounds, by exchanges of bounds (an active-set method).

    Parameters
    ----------
    H : array of shape (m, m)
        Positive definite.
    c, low, high : array of shape (m,)
        Linear part and bounds, ``low <= 0 <= high``.
    x : array of shape (m,)
        A start within the bounds; receives the minimizer.
    k : int
        The first k entries are used, so that one compiled form serves blocks of all sizes.
    side : array of shape (m,), int64
        Scratch; receives -1 at the lower bound, 1 at the upper, 0 between.
    factor, z : array of shape (m, m) and (m,)
        Scratch.
    """
    free = np.empty(k, np.int64)
    for a in range(k):
        side[a] = 0
        if x[a] <= low[a]:
            x[a] = low[a]
            side[a] = -1
        elif x[a] >= high[a]:
            x[a] = high[a]
            side[a] = 1
    entered = -1
    for _ in range(20 * k + 20):
        # Move to the minimizer of the free entries, or to the first bound on the way.
        while True:
            n = 0
            for a in range(k):
                if side[a] == 0:
                    free[n] = a
                    n += 1
            for r in range(n):
                a = free[r]
                total = c[a]
                for b in range(k):
                    if side[b] != 0:
                        total -= H[a, b] * x[b]
                for s in range(r + 1):
                    entry = H[a, free[s]]
                    for t in range(s):
                        entry -= factor[r, t] * factor[s, t]
                    if s < r:
                        factor[r, s] = entry / factor[s, s]
                        total -= factor[r, s] * z[s]
                    else:
                        factor[r, r] = np.sqrt(max(entry, 1e-14))
                        z[r] = total / factor[r, r]
            for r in range(n - 1, -1, -1):
                for t in range(r + 1, n):
                    z[r] -= factor[t, r] * z[t]
                z[r] /= factor[r, r]
            step = 1.0
            stop = -1
            for r in range(n):
                a = free[r]
                limit = step
                if z[r] < low[a]:
                    limit = (low[a] - x[a]) / (z[r] - x[a])
                elif z[r] > high[a]:
                    limit = (high[a] - x[a]) / (z[r] - x[a])
                if limit < step or (stop < 0 and (z[r] < low[a] or z[r] > high[a])):
                    step = min(step, limit)
                    stop = r
            for r in range(n):
                a = free[r]
                x[a] = z[r] if stop < 0 else x[a] + step * (z[r] - x[a])
            if stop < 0:
                break
            a = free[stop]
            side[a] = -1 if z[stop] < low[a] else 1
            x[a] = low[a] if side[a] < 0 else high[a]
            if a == entered and step == 0.0:
                # Rounding let it in: what is left of its slope is noise.
                return
        steepest = 0.0
        entered = -1
        for a in range(k):
            if side[a] == 0 or low[a] == high[a]:
                continue
            slope = c[a]
            size = abs(c[a])
            for b in range(k):
                slope -= H[a, b] * x[b]
                size += abs(H[a, b] * x[b])
            slope *= -side[a]
            if slope > 1e-14 * size and slope > steepest:
                steepest = slope
                entered = a
        if entered < 0:
            return
        side[entered] = 0


@njit(cache=True)
def _value(H: Any, c: Any, x: Any, k: int) -> float:
    total = 0.0
    for a in range(k):
        inner = -2.0 * c[a]
        for b in range(k):
            inner += H[a, b] * x[b]
        total += x[a] * inner
    return total


@njit(cache=True)
def fit_one(H: Any, c: Any, low: Any, high: Any, x: Any) -> float:
    """Minimize as `fit_box` does, from x, which receives the minimizer; return the minimum."""
    k = c.size
    fit_box(H, c, low, high, x, k, np.empty(k, np.int64), np.empty((k, k)), np.empty(k))
    return _value(H, c, x, k)


@njit(cache=True)
def fit_without(H: Any, c: Any, low: Any, high: Any, x: Any, bases: Any, values: Any) -> None:
    """Minimize without each of the entries.

    Parameters
    ----------
    H, c, low, high : array
        As for `fit_box`.
    x : array of shape (k,)
        The minimizer with all entries, a warm start.
    bases : array of shape (k, k)
        Receives in row i the minimizer without entry i.
    values : array of shape (k,)
        Receives the minima.
    """
    k = c.size
    for i in range(k):
        if x[i] == 0.0:
            bases[i] = x
            values[i] = _value(H, c, x, k)
            continue
        keep_low, keep_high = low[i], high[i]
        low[i] = high[i] = 0.0
        bases[i] = x
        bases[i, i] = 0.0
        values[i] = fit_one(H, c, low, high, bases[i])
        low[i], high[i] = keep_low, keep_high


@njit(cache=True)
def fit_entries(
    H: Any,
    c: Any,
    low: Any,
    high: Any,
    bases: Any,
    cross: Any,
    leaving: Any,
    entering: Any,
    slope: Any,
    entry_low: Any,
    entry_high: Any,
    bound: Any,
    unit: float,
    enough: float,
) -> Any:
    """Minimize with one entry more, or one for another, the most promising first.

    Parameters
    ----------
    H, c, low, high : array
        The block of the support.
    bases : array of shape (rows, k)
        Minimizers to start from.
    cross : array of shape (k, p)
        Products of the support with all columns.
    leaving, entering : array of shape (m,), int64
        Entry of the support that leaves (-1: none, with its base in row 0), and column that
        enters.
    slope, entry_low, entry_high : array of shape (p,)
        Linear part and bounds of all columns.
    bound : array of shape (m,)
        Lower bounds on the minima, ascending.
    unit : float
        The square of a column.
    enough : float
        Only minima below it are of interest.

    Returns
    -------
    tuple of int, float, int
        The pair with the least minimum (-1: none below `enough`), its minimum, minimizations.
    """
    k = c.size
    size = k + 1
    block = np.empty((size, size))
    moment = np.empty(size)
    floor = np.empty(size)
    roof = np.empty(size)
    x = np.empty(size)
    side = np.empty(size, np.int64)
    factor = np.empty((size, size))
    z = np.empty(size)
    best = -1
    least = enough
    solved = 0
    for m in range(bound.size):
        if bound[m] >= least:
            break
        i, j = leaving[m], entering[m]
        n = 0
        for a in range(k):
            if a == i:
                continue
            s = 0
            for b in range(a):
                if b != i:
                    block[n, s] = block[s, n] = H[a, b]
                    s += 1
            block[n, n] = H[a, a]
            moment[n], floor[n], roof[n] = c[a], low[a], high[a]
            x[n] = bases[max(i, 0), a]
            block[k if i < 0 else k - 1, n] = block[n, k if i < 0 else k - 1] = cross[a, j]
            n += 1
        block[n, n] = unit
        moment[n], floor[n], roof[n] = slope[j], entry_low[j], entry_high[j]
        x[n] = 0.0
        n += 1
        fit_box(block, moment, floor, roof, x, n, side, factor, z)
        solved += 1
        value = _value(block, moment, x, n)
        if value < least:
            least = value
            best = m
    return best, least, solved
