r"""Lower bounds, minima and enumeration for supports of units: groups, several targets, bounds.

Everything is in coordinates in which the columns of a unit are orthonormal, so the matrix H has
identity blocks. With weights d > 0 that leave Q = H - diag(d) positive semidefinite, every base
point :math:`\theta` bounds a box of supports: with :math:`V = C - Q \theta`,

.. math:: \mathrm{energy} - \langle\theta, Q \theta\rangle - \sum_{\mathrm{inside}} g_u
    - \sum_{\text{room largest}} g_u, \qquad
    g_u = \max_{b_u} \sum_{j \in u, o} \left(2 V_{jo} b_{jo} - d_j b_{jo}^2\right)

with b within its bounds. The largest such bound is the perspective relaxation; for the right
threshold (*edge*) between units in and out it is the fixed point of descent over units.

States of units are int8: 1 inside, -1 outside, 0 open. Everything runs on one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

EPS = float(np.finfo(np.float64).eps)
# Share of a column outside the span of others up to which it adds nothing, and up to which
# rounding forbids to say.
NOTHING, DOUBT = 1e-13, 1e-9


@njit(cache=True, error_model="numpy")
def spread(q: Any, c: Any, theta: Any, v: Any) -> float:
    """Set v = c - q theta and return a bound on the rounding error of its entries."""
    p, m = c.shape
    worst = 0.0
    for o in range(m):
        top = 0.0
        size = 0.0
        n = 0
        for j in range(p):
            v[j, o] = c[j, o]
            top = max(top, abs(c[j, o]))
        for i in range(p):
            t = theta[i, o]
            if t != 0.0:
                n += 1
                size += abs(t)
                row = q[i]
                for j in range(p):
                    v[j, o] -= t * row[j]
        worst = max(worst, 2.0 * EPS * (n + 4) * (top + 2.0 * size))
    return worst


@njit(cache=True, error_model="numpy")
def _gain(v: float, d: float, low: float, high: float) -> float:
    t = v / d
    t = min(max(t, low), high)
    return t * (2.0 * v - d * t)


@njit(cache=True, error_model="numpy")
def bound_units(
    c: Any,
    d: Any,
    offsets: Any,
    energy: float,
    state: Any,
    room: int,
    low: Any,
    high: Any,
    theta: Any,
    v: Any,
    error: float,
    gains: Any,
    top: Any,
) -> float:
    """Return the lower bound of a base point, less what rounding can do.

    Parameters
    ----------
    c : array of shape (p, m)
        Linear term.
    d : array of shape (p,)
        Weights.
    offsets : array of shape (n_units + 1,), int64
        Where the columns of every unit begin and end.
    energy : float
        Constant of the objective.
    state : array of shape (n_units,), int8
        Which units are inside, outside, open.
    room : int
        How many open units fit.
    low, high : array of shape (p,)
        Bounds of the coefficients.
    theta, v : array of shape (p, m)
        Base point and its residual.
    error : float
        Bound on the error of `v`.
    gains : array of shape (n_units,)
        Receives the gains, rounded up.
    top : array of shape (room + 1,)
        Receives the largest gains of open units, ascending, -1 where there are fewer.

    Returns
    -------
    float
        The bound.
    """
    m = c.shape[1]
    quadratic = 0.0
    size = 0.0
    total = 0.0
    drift = 0.0
    for i in range(room + 1):
        top[i] = -1.0
    for u in range(state.size):
        s = state[u]
        gain = 0.0
        for j in range(offsets[u], offsets[u + 1]):
            for o in range(m):
                t = theta[j, o]
                if t != 0.0:
                    quadratic += t * (c[j, o] - v[j, o])
                    size += abs(t) * (abs(c[j, o]) + abs(v[j, o]) + error)
                    drift += abs(t) * error
                if s >= 0:
                    # Convex in v: the largest gain is at an end of its interval.
                    up = _gain(v[j, o] + error, d[j], low[j], high[j])
                    down = _gain(v[j, o] - error, d[j], low[j], high[j])
                    gain += max(up, down)
        gains[u] = gain
        if s > 0:
            total += gain
        elif s == 0 and gain > top[0]:
            i = 1
            while i <= room and top[i] < gain:
                top[i - 1] = top[i]
                i += 1
            top[i - 1] = gain
    for i in range(1, room + 1):
        if top[i] > 0.0:
            total += top[i]
    return energy - quadratic - total - 8.0 * EPS * (energy + size + total) - drift


@njit(cache=True, error_model="numpy")
def _size_at(w: Any, d: Any, begin: int, end: int, edge: float) -> float:
    """Return N with N^2 = sum d b^2 for b = w N / ((1 - d) N + edge d), between 0 and the edge.

    The root of the inverse of the sum over N^2 is concave in N and rises to one: Newton's method
    comes from the left and does not overshoot.
    """
    n = 0.0
    for _ in range(30):
        total = 0.0
        change = 0.0
        for j in range(begin, end):
            below = (1.0 - d[j]) * n + edge * d[j]
            for o in range(w.shape[1]):
                part = d[j] * (w[j, o] / below) ** 2
                total += part
                change += part * (1.0 - d[j]) / below
        if not change > 0.0:
            return edge
        root = 1.0 / np.sqrt(total)
        step = (1.0 - root) / (root * root * root * change)
        n = min(n + step, edge)
        if step <= 1e-13 * edge:
            break
    return n


@njit(cache=True, error_model="numpy")
def _held(w: float, d: float, low: float, high: float, edge: float) -> tuple[float, float]:
    """Return the coefficient of an open unit of one column within bounds, and its share."""
    side = 1.0
    most = high
    if w < 0.0:
        side = -1.0
        most = -low
        w = -w
    if most <= 0.0:
        return 0.0, 0.0
    root = np.sqrt(d)
    knee = edge / root
    slope = edge * root
    free = knee <= most
    if not free:
        knee = most
        slope = 0.5 * (d * most + edge * edge / most)
    if w <= slope:
        return 0.0, 0.0
    q = 1.0 - d
    b = knee
    if (w - slope) < q * knee:
        b = (w - slope) / q
    elif free:
        b = min(max(w, knee), most)
    return side * b, min(1.0, b / knee)


@njit(cache=True, error_model="numpy")
def sweep(
    q: Any,
    d: Any,
    offsets: Any,
    state: Any,
    low: Any,
    high: Any,
    bounded: bool,
    edge: float,
    theta: Any,
    v: Any,
    w: Any,
) -> tuple[float, float]:
    """Minimize over one unit after the other at an edge; return largest change and shares."""
    p, m = theta.shape
    largest = 0.0
    shares = 0.0
    for u in range(state.size):
        s = state[u]
        if s < 0:
            continue
        begin = offsets[u]
        end = offsets[u + 1]
        square = 0.0
        reach = 0.0
        for j in range(begin, end):
            for o in range(m):
                x = v[j, o] + (1.0 - d[j]) * theta[j, o]
                w[j, o] = x
                square += d[j] * x * x
                reach += x * x / d[j]
        if bounded:
            if s > 0:
                w[begin, 0] = min(max(w[begin, 0], low[begin]), high[begin])
            else:
                b, share = _held(w[begin, 0], d[begin], low[begin], high[begin], edge)
                w[begin, 0] = b
                shares += share
        elif s == 0:
            if reach <= edge * edge:
                for j in range(begin, end):
                    for o in range(m):
                        w[j, o] = 0.0
            elif square < edge * edge:
                size = 0.0
                if end == begin + 1:
                    if d[begin] < 1.0:
                        size = (np.sqrt(square) - edge * d[begin]) / (1.0 - d[begin])
                        size = min(max(size, 0.0), edge)
                    else:
                        size = edge
                else:
                    size = _size_at(w, d, begin, end, edge)
                shares += size / edge
                for j in range(begin, end):
                    below = (1.0 - d[j]) * size + edge * d[j]
                    for o in range(m):
                        w[j, o] *= size / below
            else:
                shares += 1.0
        for j in range(begin, end):
            row = q[j]
            for o in range(m):
                step = w[j, o] - theta[j, o]
                if step != 0.0:
                    largest = max(largest, abs(step))
                    theta[j, o] = w[j, o]
                    for i in range(p):
                        v[i, o] -= step * row[i]
    return largest, shares


@njit(cache=True, error_model="numpy")
def relax_units(
    q: Any,
    c: Any,
    d: Any,
    offsets: Any,
    energy: float,
    state: Any,
    room: int,
    low: Any,
    high: Any,
    bounded: bool,
    edge: float,
    level: float,
    rounds: int,
    sweeps: int,
    patience: float,
    theta: Any,
    v: Any,
    gains: Any,
    top: Any,
) -> tuple[float, float, float]:
    """Maximize the lower bound of one box over base points.

    Parameters
    ----------
    q : array of shape (p, p)
        Q.
    c, d, offsets, energy, state, room, low, high : see `bound_units`
        The problem and the box.
    bounded : bool
        Whether there are bounds; then units have one column and there is one target.
    edge : float
        Where to start; 0 for nowhere.
    level : float
        Bound that is enough.
    rounds, sweeps : int
        Most edges, and most sweeps at each.
    patience : float
        Share of what is missing to `level` that one of two edges has to gain.
    theta, v : array of shape (p, m)
        Start; the base point of the bound and its residual on return.
    gains, top : array
        See `bound_units`.

    Returns
    -------
    tuple of (float, float, float)
        The bound; the edge; the error of `v`.
    """
    p, m = c.shape
    for u in range(state.size):
        if state[u] < 0:
            for j in range(offsets[u], offsets[u + 1]):
                for o in range(m):
                    theta[j, o] = 0.0
    error = spread(q, c, theta, v)
    best = bound_units(c, d, offsets, energy, state, room, low, high, theta, v, error, gains, top)
    if best >= level:
        return best, edge, error
    if edge <= 0.0:
        edge = 0.5 * (np.sqrt(max(top[0], 0.0)) + np.sqrt(max(top[1] if room else 0.0, 0.0)))
    if edge <= 0.0:
        edge = 1e-12 * np.sqrt(energy)
    point = theta.copy()
    slope = v.copy()
    w = np.empty((p, m))
    below = 0.0
    above = np.inf
    used = edge
    stalls = 0
    for _ in range(rounds):
        shares = 0.0
        for _turn in range(sweeps):
            change, shares = sweep(q, d, offsets, state, low, high, bounded, edge, point, slope, w)
            if change * change <= 1e-18 * energy:
                break
        wrong = spread(q, c, point, slope)
        bound = bound_units(
            c, d, offsets, energy, state, room, low, high, point, slope, wrong, gains, top
        )
        enough = max(1e-8 * energy, patience * (level - best))
        stalls = 0 if bound > best + enough else stalls + 1
        if bound > best:
            best = bound
            error = wrong
            used = edge
            for j in range(p):
                for o in range(m):
                    theta[j, o] = point[j, o]
                    v[j, o] = slope[j, o]
        if best >= level or stalls > (1 if patience > 0.0 else 4):
            break
        if shares > room:
            below = edge
        else:
            above = edge
        if abs(shares - room) <= 1e-9 * (room + 1):
            break
        guess = edge * min(max(shares / max(room, 0.5), 0.3), 3.0)
        if below > 0.0 and above < np.inf:
            if not below < guess < above:
                guess = np.sqrt(below * above)
            if above <= below * (1.0 + 1e-12):
                break
        edge = guess
        if edge <= 1e-14 * np.sqrt(energy):
            break
    best = bound_units(c, d, offsets, energy, state, room, low, high, theta, v, error, gains, top)
    return best, used, error


@njit(cache=True, error_model="numpy")
def least_of_units(
    h: Any, c: Any, offsets: Any, energy: float, state: Any, room: int, found: Any
) -> float:
    """Return the least value over a box with room for at most two units, by trying all.

    Parameters
    ----------
    h : array of shape (p, p)
        The matrix.
    c : array of shape (p, m)
        Linear term.
    offsets, energy, state : see `bound_units`
        The problem and the box.
    room : int
        How many open units fit.
    found : array of shape (2,), int64
        Receives the units that enter, -1 for none.

    Returns
    -------
    float
        The value; minus infinity where a support is too near to collinear to be judged.
    """
    m = c.shape[1]
    n = 0
    n_open = 0
    widest = 0
    for u in range(state.size):
        size = offsets[u + 1] - offsets[u]
        if state[u] > 0:
            n += size
        elif state[u] == 0:
            n_open += 1
            widest = max(widest, size)
    found[0] = -1
    found[1] = -1
    inside = np.empty(n, np.int64)
    open_ = np.empty(n_open, np.int64)
    a = 0
    b = 0
    for u in range(state.size):
        if state[u] > 0:
            for j in range(offsets[u], offsets[u + 1]):
                inside[a] = j
                a += 1
        elif state[u] == 0:
            open_[b] = u
            b += 1
    # Gram-Schmidt of the columns inside: `basis` has their coordinates.
    factor = np.zeros((n, n))
    half = np.zeros((n, m))
    dead = np.zeros(n, np.bool_)
    base = energy
    for j in range(n):
        for i in range(j + 1):
            s = h[inside[j], inside[i]]
            for t in range(i):
                s -= factor[j, t] * factor[i, t]
            if i < j:
                factor[j, i] = 0.0 if dead[i] else s / factor[i, i]
            elif s > DOUBT:
                factor[j, j] = np.sqrt(s)
            elif s > NOTHING:
                return -np.inf
            else:
                dead[j] = True
        if dead[j]:
            continue
        for o in range(m):
            s = c[inside[j], o]
            for t in range(j):
                s -= factor[j, t] * half[t, o]
            half[j, o] = s / factor[j, j]
            base -= half[j, o] * half[j, o]
    if room == 0 or n_open == 0:
        return base
    total = n_open * widest
    tilt = np.zeros((total, n))
    rest = np.zeros((total, m))
    column = np.full(total, -1, np.int64)
    for a in range(n_open):
        u = open_[a]
        for x in range(offsets[u + 1] - offsets[u]):
            r = a * widest + x
            j = offsets[u] + x
            column[r] = j
            for i in range(n):
                if dead[i]:
                    continue
                s = h[j, inside[i]]
                for t in range(i):
                    s -= factor[i, t] * tilt[r, t]
                tilt[r, i] = s / factor[i, i]
            for o in range(m):
                s = c[j, o]
                for i in range(n):
                    s -= tilt[r, i] * half[i, o]
                rest[r, o] = s
    best = -1.0
    rows = np.empty(2 * widest, np.int64)
    low = np.zeros((2 * widest, 2 * widest))
    part = np.zeros((2 * widest, m))
    pairs = room >= 2 and n_open >= 2
    for a in range(n_open):
        for b in range(a + 1):
            # b == a stands for the unit alone.
            if b < a and not pairs:
                continue
            k = 0
            for x in range(widest):
                if column[a * widest + x] >= 0:
                    rows[k] = a * widest + x
                    k += 1
            if b < a:
                for x in range(widest):
                    if column[b * widest + x] >= 0:
                        rows[k] = b * widest + x
                        k += 1
            gain = 0.0
            for i in range(k):
                for e in range(i + 1):
                    s = h[column[rows[i]], column[rows[e]]]
                    for t in range(n):
                        s -= tilt[rows[i], t] * tilt[rows[e], t]
                    for t in range(e):
                        s -= low[i, t] * low[e, t]
                    if e < i:
                        low[i, e] = 0.0 if low[e, e] == 0.0 else s / low[e, e]
                    elif s > DOUBT:
                        low[i, i] = np.sqrt(s)
                    elif s > NOTHING:
                        return -np.inf
                    else:
                        low[i, i] = 0.0
                for o in range(m):
                    s = rest[rows[i], o]
                    for t in range(i):
                        s -= low[i, t] * part[t, o]
                    part[i, o] = 0.0 if low[i, i] == 0.0 else s / low[i, i]
                    gain += part[i, o] * part[i, o]
            if gain > best:
                best = gain
                found[0] = open_[a]
                found[1] = open_[b] if b < a else -1
    return base - best


@njit(cache=True, error_model="numpy")
def fit_within(h: Any, c: Any, low: Any, high: Any, x: Any) -> float:
    """Minimize x^T h x - 2 c^T x within bounds, in place; return the value.

    Descent over coordinates finds which bounds are active, a Cholesky factorization solves for
    the others, until no multiplier has the wrong sign.
    """
    k = c.size
    g = np.empty(k)
    for j in range(k):
        x[j] = min(max(x[j], low[j]), high[j])
    for i in range(k):
        s = c[i]
        for j in range(k):
            s -= h[i, j] * x[j]
        g[i] = s
    free = np.empty(k, np.int64)
    factor = np.empty((k, k))
    y = np.empty(k)
    for _outer in range(60):
        for _ in range(20):
            change = 0.0
            for j in range(k):
                new = min(max(x[j] + g[j] / h[j, j], low[j]), high[j])
                step = new - x[j]
                if step != 0.0:
                    x[j] = new
                    change = max(change, abs(step))
                    for i in range(k):
                        g[i] -= step * h[i, j]
            if change == 0.0:
                break
        n = 0
        for j in range(k):
            if low[j] < x[j] < high[j]:
                free[n] = j
                n += 1
        solved = n > 0
        for a in range(n):
            for b in range(a + 1):
                s = h[free[a], free[b]]
                for t in range(b):
                    s -= factor[a, t] * factor[b, t]
                if b < a:
                    factor[a, b] = s / factor[b, b]
                elif s > NOTHING:
                    factor[a, a] = np.sqrt(s)
                else:
                    solved = False
                    factor[a, a] = 1.0
        if not solved:
            break
        for a in range(n):
            s = g[free[a]]
            for t in range(a):
                s -= factor[a, t] * y[t]
            y[a] = s / factor[a, a]
        for a in range(n - 1, -1, -1):
            s = y[a]
            for t in range(a + 1, n):
                s -= factor[t, a] * y[t]
            y[a] = s / factor[a, a]
        length = 1.0
        for a in range(n):
            j = free[a]
            if x[j] + y[a] < low[j]:
                length = min(length, (low[j] - x[j]) / y[a])
            elif x[j] + y[a] > high[j]:
                length = min(length, (high[j] - x[j]) / y[a])
        for a in range(n):
            j = free[a]
            x[j] = min(max(x[j] + length * y[a], low[j]), high[j])
        for i in range(k):
            s = c[i]
            for j in range(k):
                s -= h[i, j] * x[j]
            g[i] = s
        if length == 1.0:
            right = True
            for j in range(k):
                if (x[j] == low[j] and g[j] > 0.0 and low[j] < high[j]) or (
                    x[j] == high[j] and g[j] < 0.0 and low[j] < high[j]
                ):
                    right = False
                    break
            if right:
                break
    value = 0.0
    for j in range(k):
        value -= x[j] * (c[j] + g[j])
    return value
