"""Checking of the steps of a tree of boxes of supports; shares nothing with what made the tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

EPS = float(np.finfo(np.float64).eps)
# Share of a column's square outside the span of others below which it adds nothing, and below
# which rounding forbids to say.
NONE, UNSURE = 1e-13, 1e-9


@njit(cache=True, error_model="numpy")
def least_in_box(h: Any, c: Any, energy: float, state: Any, room: int) -> float:
    """Return the least value over a box by trying every support.

    Parameters
    ----------
    h : array of shape (p, p)
        Matrix with a unit diagonal.
    c : array of shape (p,)
        Linear term.
    energy : float
        Constant.
    state : array of shape (p,), int8
        1 inside, -1 outside, 0 to choose from.
    room : int
        How many more fit; at most 2, unless all do.

    Returns
    -------
    float
        The value, less what rounding can do; minus infinity where rounding forbids to say, or
        there is too much to try.
    """
    p = c.size
    n = 0
    m = 0
    for j in range(p):
        if state[j] > 0:
            n += 1
        elif state[j] == 0:
            m += 1
    everything = m <= room
    if everything:
        n, m = n + m, 0
    if room == 0:
        m = 0
    if m > 0 and room > 2:
        return -np.inf
    rows = np.empty(n + m, np.int64)
    a = 0
    b = n
    for j in range(p):
        if state[j] > 0 or (everything and state[j] == 0):
            rows[a] = j
            a += 1
        elif state[j] == 0 and m > 0:
            rows[b] = j
            b += 1
    # One elimination: rows of `low` are coordinates along the columns inside.
    low = np.zeros((n + m, n))
    rest = np.empty(n + m)
    slope = np.empty(n + m)
    for i in range(n + m):
        rest[i] = h[rows[i], rows[i]]
        slope[i] = c[rows[i]]
    value = energy
    for k in range(n):
        if rest[k] <= NONE:
            continue
        if rest[k] <= UNSURE:
            return -np.inf
        pivot = np.sqrt(rest[k])
        share = slope[k] / pivot
        value -= share * share
        for i in range(k + 1, n + m):
            s = h[rows[i], rows[k]]
            for t in range(k):
                s -= low[i, t] * low[k, t]
            s /= pivot
            low[i, k] = s
            rest[i] -= s * s
            slope[i] -= s * share
    best = 0.0
    for i in range(n, n + m):
        if rest[i] <= NONE:
            continue
        if rest[i] <= UNSURE:
            return -np.inf
        best = max(best, slope[i] * slope[i] / rest[i])
    if room >= 2:
        for i in range(n, n + m):
            if rest[i] <= NONE:
                continue
            row = h[rows[i]]
            for k in range(n, i):
                if rest[k] <= NONE:
                    continue
                s = row[rows[k]]
                for t in range(n):
                    s -= low[i, t] * low[k, t]
                whole = rest[i] * rest[k]
                left = whole - s * s
                if left <= NONE * whole:
                    continue
                if left <= UNSURE * whole:
                    return -np.inf
                a2 = slope[i] * slope[i] * rest[k] + slope[k] * slope[k] * rest[i]
                best = max(best, (a2 - 2.0 * s * slope[i] * slope[k]) / left)
    return float(value - best - 1e-12 * energy)


@njit(cache=True, error_model="numpy")
def check_steps(
    h: Any,
    q: Any,
    c: Any,
    d: Any,
    energy: float,
    slack: float,
    start: Any,
    room: int,
    low: float,
    first: int,
    last: int,
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
    """Bound the boxes of all steps of one model; return the smallest bound that nothing improves.

    Parameters
    ----------
    h, q : array of shape (p, p)
        The problem's matrix and the model's.
    c : array of shape (p,)
        Linear term.
    d : array of shape (p,) or (0,)
        Weights of the model; none where it gives no bound.
    energy, slack : float
        Constant, and what rounding can have done to it.
    start : array of shape (p,), int8
        The box of the first step.
    room : int
        Its room.
    low : float
        A bound that holds for it.
    first, last : int
        The steps.
    steps, point_ends, places, values, decision_ends, decisions : array
        See `ellzero.core.result.TreeProof`.
    followed : array of shape (E,), int8
        Bits: 1 a step takes the whole box that is left, 2 the side inside, 4 the side outside.
    states : array of shape (last - first, p), int8
        Receives the box that every step leaves.
    rooms, lows : array of shape (last - first,)
        Receive its room and its bound.

    Returns
    -------
    float
        The bound; NaN where the steps make no sense.
    """
    p = c.size
    lowest = np.inf
    v = np.empty(p)
    gain = np.empty(p)
    order = np.empty(p, np.int64)
    for step in range(first, last):
        at = step - first
        state = states[at]
        if step == first:
            for j in range(p):
                state[j] = start[j]
            fits = room
            bound = low
        else:
            parent = steps[step, 0] - first
            if parent < 0 or parent >= at:
                return np.nan
            for j in range(p):
                state[j] = states[parent, j]
            fits = rooms[parent]
            bound = lows[parent]
            side = steps[step, 1]
            if side != 0:
                j = steps[steps[step, 0], 3]
                if j < 0 or j >= p or state[j] != 0:
                    return np.nan
                state[j] = side
                if side > 0:
                    fits -= 1
        begin = 0 if step == 0 else point_ends[step - 1]
        end = point_ends[step]
        opened = 0 if step == 0 else decision_ends[step - 1]
        closed = decision_ends[step]
        if fits < 0:
            # No support has so many features.
            rooms[at] = fits
            lows[at] = np.inf
            if opened != closed:
                return np.nan
            continue
        base = -np.inf
        edge_out = 0.0
        edge_in = 0.0
        n = 0
        if d.size == p:
            # v = c - Q theta, and the square theta^T Q theta.
            top = 0.0
            size = 0.0
            for j in range(p):
                v[j] = c[j]
                top = max(top, abs(c[j]))
            for i in range(begin, end):
                k = places[i]
                if k < 0 or k >= p:
                    return np.nan
                t = values[i]
                size += abs(t)
                row = q[k]
                for j in range(p):
                    v[j] -= t * row[j]
            error = 2.0 * EPS * (end - begin + 4) * (top + 2.0 * size)
            total = 0.0
            square = 0.0
            scale = energy
            for i in range(begin, end):
                k = places[i]
                square += values[i] * (c[k] - v[k])
                scale += abs(values[i]) * (abs(c[k]) + abs(v[k]) + error)
            for j in range(p):
                a = abs(v[j]) + error
                gain[j] = a * a / d[j]
                if state[j] > 0:
                    total += gain[j]
                elif state[j] == 0:
                    order[n] = j
                    n += 1
            # The gains of the features that fit, and the two at the edge.
            if n > 0:
                ranked = np.sort(gain[order[:n]])
                for i in range(max(n - fits, 0), n):
                    total += ranked[i]
                edge_in = ranked[n - fits] if 0 < fits <= n else np.inf
                edge_out = ranked[n - fits - 1] if fits < n else 0.0
            wrong = 8.0 * EPS * (scale + total) + size * error
            base = energy - square - total - wrong - slack
        bound = max(bound, base)
        for i in range(opened, closed):
            number = decisions[i]
            j = abs(number) - 1
            if number == 0 or j >= p or state[j] != 0 or d.size != p:
                return np.nan
            # The box on the other side of the decision, at the same base point.
            other = base
            if number > 0:
                if gain[j] >= edge_in:
                    other = base + (gain[j] - edge_out)
            elif fits == 0:
                other = np.inf
            elif gain[j] < edge_in:
                other = base + (edge_in - gain[j])
            lowest = min(lowest, max(bound, other))
        # A decision changes the box of the next step only.
        for i in range(opened, closed):
            number = decisions[i]
            j = abs(number) - 1
            if state[j] != 0:
                return np.nan
            state[j] = 1 if number > 0 else -1
            if number > 0:
                fits -= 1
        rooms[at] = fits
        lows[at] = bound
        if fits < 0:
            continue
        if steps[step, 2] != 0:
            lowest = min(lowest, max(bound, least_in_box(h, c, energy, state, fits) - slack))
        elif followed[step] & 1 == 0 and followed[step] & 6 != 6:
            lowest = min(lowest, bound)
    return float(lowest)
