"""Checking of a tree over units, on its own arithmetic: shares nothing with what made the tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

EPS = float(np.finfo(np.float64).eps)
# Share of a column's square outside the span of others below which it adds nothing, and below
# which rounding forbids to say.
NONE, UNSURE = 1e-13, 1e-9


@njit(cache=True, error_model="numpy")
def _eliminate(matrix: Any, right: Any, n: int, rows: int) -> float:
    """Eliminate the first n columns from all rows; return what they take off, or NaN."""
    taken = 0.0
    for k in range(n):
        pivot = matrix[k, k]
        if pivot <= NONE:
            # Spanned by those before: nothing is left of it.
            for i in range(k + 1, rows):
                matrix[i, k] = 0.0
            continue
        if pivot <= UNSURE:
            return np.nan
        for o in range(right.shape[1]):
            taken += right[k, o] * right[k, o] / pivot
        for i in range(k + 1, rows):
            share = matrix[i, k] / pivot
            if share != 0.0:
                for j in range(k + 1, i + 1):
                    matrix[i, j] -= share * matrix[j, k]
                for o in range(right.shape[1]):
                    right[i, o] -= share * right[k, o]
    return taken


@njit(cache=True, error_model="numpy")
def least_in_units(h: Any, c: Any, offsets: Any, energy: float, state: Any, room: int) -> float:
    """Return the least value over a box of units by trying every support.

    Parameters
    ----------
    h : array of shape (p, p)
        Matrix with a unit diagonal.
    c : array of shape (p, m)
        Linear term.
    offsets : array of shape (n_units + 1,), int64
        Where the columns of every unit begin and end.
    energy : float
        Constant.
    state : array of shape (n_units,), int8
        1 inside, -1 outside, 0 to choose from.
    room : int
        How many more fit; at most 2, unless all do.

    Returns
    -------
    float
        The value, less what rounding can do; minus infinity where rounding forbids to say, or
        there is too much to try.
    """
    p, m = c.shape
    n_open = 0
    for u in range(state.size):
        if state[u] == 0:
            n_open += 1
    everything = n_open <= room
    if not everything and room > 2:
        return -np.inf
    order = np.empty(p, np.int64)
    n = 0
    for u in range(state.size):
        if state[u] > 0 or (everything and state[u] == 0):
            for j in range(offsets[u], offsets[u + 1]):
                order[n] = j
                n += 1
    rows = n
    begins = np.empty(state.size, np.int64)
    sizes = np.empty(state.size, np.int64)
    free = 0
    if not everything and room > 0:
        for u in range(state.size):
            if state[u] == 0:
                begins[free] = rows
                sizes[free] = offsets[u + 1] - offsets[u]
                free += 1
                for j in range(offsets[u], offsets[u + 1]):
                    order[rows] = j
                    rows += 1
    matrix = np.zeros((rows, rows))
    right = np.zeros((rows, m))
    for i in range(rows):
        for j in range(i + 1):
            matrix[i, j] = h[order[i], order[j]]
        for o in range(m):
            right[i, o] = c[order[i], o]
    value = energy - _eliminate(matrix, right, n, rows)
    if np.isnan(value):
        return -np.inf
    best = 0.0
    for a in range(free):
        for b in range(a, free if room >= 2 else a + 1):
            # b == a stands for the unit alone.
            k = sizes[a] + (sizes[b] if b > a else 0)
            small = np.zeros((k, k))
            side = np.zeros((k, m))
            for i in range(k):
                r = begins[a] + i if i < sizes[a] else begins[b] + i - sizes[a]
                for j in range(i + 1):
                    t = begins[a] + j if j < sizes[a] else begins[b] + j - sizes[a]
                    small[i, j] = matrix[max(r, t), min(r, t)]
                for o in range(m):
                    side[i, o] = right[r, o]
            gain = _eliminate(small, side, k, k)
            if np.isnan(gain):
                return -np.inf
            best = max(best, gain)
    return float(value - best - 1e-12 * energy)


@njit(cache=True, error_model="numpy")
def least_within(
    h: Any, c: Any, energy: float, state: Any, low: Any, high: Any, point: Any
) -> float:
    """Return a lower bound on the least value on one support within bounds.

    At any point the function lies above its tangent plus the least curvature times the square of
    the distance, which separates into columns.

    Parameters
    ----------
    h : array of shape (p, p)
        Matrix with a unit diagonal.
    c : array of shape (p,)
        Linear term.
    energy : float
        Constant.
    state : array of shape (p,), int8
        -1 for columns that are not in the support.
    low, high : array of shape (p,)
        Bounds of the coefficients.
    point : array of shape (p,)
        Where the function is bounded from.

    Returns
    -------
    float
        The bound, less what rounding can do; minus infinity where the columns are dependent and
        some bound is infinite.
    """
    rows = np.flatnonzero(state >= 0)
    k = rows.size
    if k == 0:
        return energy
    factor = np.zeros((k, k))
    dependent = False
    for i in range(k):
        for j in range(i + 1):
            s = h[rows[i], rows[j]]
            for t in range(j):
                s -= factor[i, t] * factor[j, t]
            if j < i:
                factor[i, j] = s / factor[j, j]
            elif s > UNSURE:
                factor[i, i] = np.sqrt(s)
            else:
                dependent = True
                factor[i, i] = 1.0
    # The Frobenius norm of the inverse bounds its largest eigenvalue; half of it is for rounding.
    inverse = np.zeros((k, k))
    for i in range(k):
        inverse[i, i] = 1.0 / factor[i, i]
        for j in range(i):
            s = 0.0
            for t in range(j, i):
                s -= factor[i, t] * inverse[t, j]
            inverse[i, j] = s / factor[i, i]
    # Without curvature the tangent alone bounds a box.
    curvature = 0.0 if dependent else 0.5 / max(np.sum(inverse * inverse), 1.0)
    value = energy
    size = energy
    for i in range(k):
        x = min(max(point[rows[i]], low[rows[i]]), high[rows[i]])
        slope = -c[rows[i]]
        error = abs(c[rows[i]])
        for j in range(k):
            y = min(max(point[rows[j]], low[rows[j]]), high[rows[j]])
            slope += h[rows[i], rows[j]] * y
            error += abs(y)
        error *= 4.0 * EPS * (k + 4)
        value += x * (slope - c[rows[i]])
        size += abs(x) * (abs(slope) + abs(c[rows[i]]) + error)
        least = 0.0
        for side in range(2):
            g = 2.0 * (slope + (error if side else -error))
            shift = -np.inf if g > 0.0 else np.inf
            if curvature > 0.0:
                shift = -g / (2.0 * curvature)
            t = min(max(shift, low[rows[i]] - x), high[rows[i]] - x)
            if np.isinf(t):
                return -np.inf
            least = min(least, t * (g + curvature * t))
        value += least
    return value - 16.0 * EPS * (k + 4) * size


@njit(cache=True, error_model="numpy")
def check_unit_steps(
    h: Any,
    q: Any,
    c: Any,
    d: Any,
    offsets: Any,
    energy: float,
    slack: float,
    low: Any,
    high: Any,
    bounded: bool,
    start: Any,
    room: int,
    least: float,
    steps: Any,
    point_ends: Any,
    places: Any,
    values: Any,
    decision_ends: Any,
    decisions: Any,
    followed: Any,
    states: Any,
    rooms: Any,
    lows: Any,
) -> float:
    """Bound the boxes of all steps; return the smallest bound that nothing improves.

    Parameters
    ----------
    h, q : array of shape (p, p)
        The problem's matrix and the model's.
    c : array of shape (p, m)
        Linear term.
    d : array of shape (p,) or (0,)
        Weights of the model; none where it gives no bound.
    offsets : array of shape (n_units + 1,), int64
        Where the columns of every unit begin and end.
    energy, slack : float
        Constant, and what rounding can have done to it.
    low, high : array of shape (p,)
        Bounds of the coefficients.
    bounded : bool
        Whether there are any.
    start : array of shape (n_units,), int8
        The box of the first step.
    room : int
        Its room.
    least : float
        A bound that holds for it.
    steps, point_ends, places, values, decision_ends, decisions : array
        See `ellzero.core.result.TreeProof`; features to split on and decisions are units, places
        are columns times m plus targets.
    followed : array of shape (E,), int8
        Bits: 1 a step takes the whole box that is left, 2 the side inside, 4 the side outside.
    states : array of shape (E, n_units), int8
        Receives the box that every step leaves.
    rooms, lows : array of shape (E,)
        Receive its room and its bound.

    Returns
    -------
    float
        The bound; NaN where the steps make no sense.
    """
    p, m = c.shape
    units = start.size
    lowest = np.inf
    v = np.empty((p, m))
    gain = np.empty(units)
    point = np.zeros(p)
    for step in range(steps.shape[0]):
        state = states[step]
        if step == 0:
            for u in range(units):
                state[u] = start[u]
            fits = room
            bound = least
        else:
            parent = steps[step, 0]
            if parent < 0 or parent >= step:
                return np.nan
            for u in range(units):
                state[u] = states[parent, u]
            fits = rooms[parent]
            bound = lows[parent]
            side = steps[step, 1]
            if side != 0:
                u = steps[parent, 3]
                if u < 0 or u >= units or state[u] != 0:
                    return np.nan
                state[u] = side
                if side > 0:
                    fits -= 1
        begin = 0 if step == 0 else point_ends[step - 1]
        end = point_ends[step]
        opened = 0 if step == 0 else decision_ends[step - 1]
        closed = decision_ends[step]
        if fits < 0:
            # No support has so many units.
            rooms[step] = fits
            lows[step] = np.inf
            if opened != closed:
                return np.nan
            continue
        for i in range(begin, end):
            if places[i] < 0 or places[i] >= p * m:
                return np.nan
        base = -np.inf
        edge_out = 0.0
        edge_in = 0.0
        if d.size == p:
            top = 0.0
            for j in range(p):
                for o in range(m):
                    v[j, o] = c[j, o]
                    top = max(top, abs(c[j, o]))
            size = 0.0
            for i in range(begin, end):
                k = places[i] // m
                o = places[i] % m
                size += abs(values[i])
                row = q[k]
                for j in range(p):
                    v[j, o] -= values[i] * row[j]
            error = 2.0 * EPS * (end - begin + 4) * (top + 2.0 * size)
            square = 0.0
            scale = energy
            for i in range(begin, end):
                k = places[i] // m
                o = places[i] % m
                square += values[i] * (c[k, o] - v[k, o])
                scale += abs(values[i]) * (abs(c[k, o]) + abs(v[k, o]) + error)
            total = 0.0
            n = 0
            ranked = np.empty(units)
            for u in range(units):
                gain[u] = 0.0
                for j in range(offsets[u], offsets[u + 1]):
                    for o in range(m):
                        most = 0.0
                        for sign in range(2):
                            a = v[j, o] + (error if sign else -error)
                            t = min(max(a / d[j], low[j]), high[j])
                            most = max(most, t * (2.0 * a - d[j] * t))
                        gain[u] += most
                if state[u] > 0:
                    total += gain[u]
                elif state[u] == 0:
                    ranked[n] = gain[u]
                    n += 1
            if n > 0:
                best = np.sort(ranked[:n])
                for i in range(max(n - fits, 0), n):
                    total += best[i]
                edge_in = best[n - fits] if 0 < fits <= n else np.inf
                edge_out = best[n - fits - 1] if fits < n else 0.0
            wrong = 8.0 * EPS * (scale + total) + size * error
            base = energy - square - total - wrong - slack
        bound = max(bound, base)
        for i in range(opened, closed):
            number = decisions[i]
            u = abs(number) - 1
            if number == 0 or u >= units or state[u] != 0 or d.size != p:
                return np.nan
            # The box on the other side of the decision, at the same base point.
            other = base
            if number > 0:
                if gain[u] >= edge_in:
                    other = base + (gain[u] - edge_out)
            elif fits == 0:
                other = np.inf
            elif gain[u] < edge_in:
                other = base + (edge_in - gain[u])
            lowest = min(lowest, max(bound, other))
        # A decision changes the box of the next step only.
        for i in range(opened, closed):
            number = decisions[i]
            u = abs(number) - 1
            if state[u] != 0:
                return np.nan
            state[u] = 1 if number > 0 else -1
            if number > 0:
                fits -= 1
        rooms[step] = fits
        lows[step] = bound
        if fits < 0:
            continue
        if steps[step, 2] != 0:
            leaf = -np.inf
            n = 0
            for u in range(units):
                if state[u] == 0:
                    n += 1
            if bounded and (fits == 0 or n <= fits):
                taken = state.copy()
                if fits == 0:
                    for u in range(units):
                        if taken[u] == 0:
                            taken[u] = -1
                for j in range(p):
                    point[j] = 0.0
                for i in range(begin, end):
                    point[places[i]] = values[i]
                leaf = least_within(h, c[:, 0], energy, taken, low, high, point)
            # Without bounds the least value is at most the one within them.
            if not bounded or leaf == -np.inf:
                leaf = least_in_units(h, c, offsets, energy, state, fits)
            lowest = min(lowest, max(bound, leaf - slack))
        elif followed[step] & 1 == 0 and followed[step] & 6 != 6:
            lowest = min(lowest, bound)
    return float(lowest)
