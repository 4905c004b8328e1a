"""Exploration of a tree of boxes of supports, on matrices scaled to a unit diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

from ellzero.kernels.branch_relax import relax, solve_definite

# A column with at most the share NOTHING of its square outside the span of others lies in it; up
# to the share DOUBT rounding forbids to say.
NOTHING, DOUBT = 1e-13, 1e-9
# Features that are compared before a box is split, and what the better side of a split counts
# against the worse.
CANDIDATES, LEAN = 16, 0.6
# Reasons to come back from `explore`.
DONE, PAUSED, FULL = 0, 1, 2


@njit(cache=True, error_model="numpy")
def refit(h: Any, c: Any, support: Any, n: int, coef: Any) -> float:
    """Solve on a support; return c^T b, or minus infinity where it is collinear."""
    factor = np.empty((n, n))
    for j in range(n):
        for i in range(j + 1):
            s = h[support[j], support[i]]
            for t in range(i):
                s -= factor[j, t] * factor[i, t]
            if i < j:
                factor[j, i] = s / factor[i, i]
            elif s > 1e-12 * h[support[j], support[j]]:
                factor[j, j] = np.sqrt(s)
            else:
                return -np.inf
    for j in range(n):
        s = c[support[j]]
        for t in range(j):
            s -= factor[j, t] * coef[t]
        coef[j] = s / factor[j, j]
    total = 0.0
    for j in range(n):
        total += coef[j] * coef[j]
    for j in range(n - 1, -1, -1):
        s = coef[j]
        for t in range(j + 1, n):
            s -= factor[t, j] * coef[t]
        coef[j] = s / factor[j, j]
    return total


@njit(cache=True, error_model="numpy")
def _invert(h: Any, support: Any, k: int, inverse: Any) -> bool:
    """Write the inverse of the square of `h` on a support; tell whether it is definite."""
    lower = np.zeros((k, k))
    for j in range(k):
        for i in range(j + 1):
            s = h[support[j], support[i]]
            for t in range(i):
                s -= lower[j, t] * lower[i, t]
            if i < j:
                lower[j, i] = s / lower[i, i]
            elif s > 1e-12 * h[support[j], support[j]]:
                lower[j, j] = np.sqrt(s)
            else:
                return False
    # The inverse of the factor, then its square.
    for j in range(k):
        lower[j, j] = 1.0 / lower[j, j]
        for i in range(j):
            s = 0.0
            for t in range(i, j):
                s -= lower[j, t] * lower[t, i]
            lower[j, i] = s * lower[j, j]
    for i in range(k):
        for j in range(i + 1):
            s = 0.0
            for t in range(i, k):
                s += lower[t, i] * lower[t, j]
            inverse[i, j] = s
            inverse[j, i] = s
    return True


@njit(cache=True, error_model="numpy")
def exchange(h: Any, c: Any, support: Any, fixed: Any, most: int) -> float:
    """Exchange features while the objective falls; every exchange has its exact price.

    Parameters
    ----------
    h : array of shape (p, p)
        The matrix, unit diagonal.
    c : array of shape (p,)
        Linear term.
    support : array of shape (k,), int64
        Where to start; replaced by what is found.
    fixed : array of shape (p,), int8
        1 where a feature must stay, -1 where it must not come in.
    most : int
        Most exchanges.

    Returns
    -------
    float
        Value of c^T b at the end; minus infinity where the support is collinear.
    """
    p = c.size
    k = support.size
    coef = np.empty(k)
    total = refit(h, c, support, k, coef)
    if total == -np.inf or k == 0:
        return total
    taken = np.zeros(p, np.int8)
    for i in range(k):
        taken[support[i]] = 1
    inverse = np.empty((k, k))
    spread = np.empty((k, p))
    rest = np.empty(p)
    depth = np.empty(p)
    for _ in range(most):
        if not _invert(h, support, k, inverse):
            break
        for j in range(p):
            rest[j] = c[j]
            depth[j] = h[j, j]
        for a in range(k):
            for j in range(p):
                spread[a, j] = 0.0
            for b in range(k):
                w = inverse[a, b]
                row = h[support[b]]
                for j in range(p):
                    spread[a, j] += w * row[j]
            row = h[support[a]]
            t = coef[a]
            for j in range(p):
                rest[j] -= t * row[j]
                depth[j] -= spread[a, j] * row[j]
        best = 1e-10 * total
        out = -1
        into = -1
        for a in range(k):
            if fixed[support[a]] > 0:
                continue
            g = inverse[a, a]
            loss = coef[a] * coef[a] / g
            ratio = coef[a] / g
            for j in range(p):
                if taken[j] == 1 or fixed[j] < 0:
                    continue
                s = spread[a, j]
                below = depth[j] + s * s / g
                if below <= 1e-10:
                    continue
                above = rest[j] + s * ratio
                gain = above * above / below - loss
                if gain > best:
                    best = gain
                    out = a
                    into = j
        if out < 0:
            break
        old = support[out]
        support[out] = into
        new = refit(h, c, support, k, coef)
        if not new > total:
            support[out] = old
            refit(h, c, support, k, coef)
            break
        taken[old] = 0
        taken[into] = 1
        total = new
    return total


@njit(cache=True, error_model="numpy")
def _sift_down(heap: Any, keys: Any, n: int, at: int) -> None:
    item = heap[at]
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and keys[heap[child + 1]] < keys[heap[child]]:
            child += 1
        if keys[heap[child]] >= keys[item]:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = item


@njit(cache=True, error_model="numpy")
def push(heap: Any, keys: Any, n: int, item: int) -> None:
    """Add an item to a heap of n items."""
    at = n
    while at > 0:
        parent = (at - 1) >> 1
        if keys[heap[parent]] <= keys[item]:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item


@njit(cache=True, error_model="numpy")
def pop(heap: Any, keys: Any, n: int) -> int:
    """Remove the item with the smallest key from a heap of n items."""
    first = heap[0]
    heap[0] = heap[n - 1]
    _sift_down(heap, keys, n - 1, 0)
    return int(first)


@njit(cache=True, error_model="numpy")
def leaf(h: Any, c: Any, energy: float, state: Any, room: int, found: Any) -> float:
    """Return the best value over a box with room for at most two, by trying all.

    `found` receives the best support; minus infinity comes back where a support is too near to
    collinear to be judged.
    """
    p = c.size
    inside = np.empty(p, np.int64)
    free = np.empty(p, np.int64)
    n = 0
    m = 0
    for j in range(p):
        if state[j] > 0:
            inside[n] = j
            n += 1
        elif state[j] == 0:
            free[m] = j
            m += 1
    for i in range(n):
        found[i] = inside[i]
    factor = np.empty((n, n))
    half = np.empty(n)
    base = energy
    for j in range(n):
        for i in range(j + 1):
            s = h[inside[j], inside[i]]
            for t in range(i):
                s -= factor[j, t] * factor[i, t]
            if i < j:
                factor[j, i] = s / factor[i, i]
            elif s > DOUBT:
                factor[j, j] = np.sqrt(s)
            elif s > NOTHING:
                return -np.inf
            else:
                # Collinear with those before: adds nothing.
                factor[j, j] = np.inf
        s = c[inside[j]]
        for t in range(j):
            s -= factor[j, t] * half[t]
        half[j] = s / factor[j, j]
        base -= half[j] * half[j]
    if room == 0 or m == 0:
        for i in range(n, found.size):
            found[i] = -1
        return base
    tilt = np.empty((m, n))
    score = np.empty(m)
    scale = np.empty(m)
    for a in range(m):
        j = free[a]
        s = c[j]
        depth = h[j, j]
        for i in range(n):
            w = h[j, inside[i]]
            for t in range(i):
                w -= factor[i, t] * tilt[a, t]
            w /= factor[i, i]
            tilt[a, i] = w
            s -= w * half[i]
            depth -= w * w
        if depth > DOUBT:
            scale[a] = 1.0 / np.sqrt(depth)
        elif depth > NOTHING:
            return -np.inf
        else:
            scale[a] = 0.0
        score[a] = s * scale[a]
    for i in range(n, found.size):
        found[i] = -1
    best = -1.0
    for a in range(m):
        if score[a] * score[a] > best:
            best = score[a] * score[a]
            found[n] = free[a]
    if room == 1 or m == 1:
        return base - best
    for a in range(m):
        sa = score[a]
        row = h[free[a]]
        for b in range(a):
            s = row[free[b]]
            for i in range(n):
                s -= tilt[a, i] * tilt[b, i]
            s *= scale[a] * scale[b]
            below = 1.0 - s * s
            if below <= NOTHING:
                continue
            if below <= DOUBT:
                return -np.inf
            gain = (sa * sa + score[b] * score[b] - 2.0 * s * sa * score[b]) / below
            if gain > best:
                best = gain
                found[n] = free[a]
                found[n + 1] = free[b]
    return base - best


@njit(cache=True, error_model="numpy")
def _choose(
    q: Any, d: Any, root: Any, state: Any, theta: Any, v: Any, edge: float, work: Any
) -> int:
    """Return the open feature whose two sides raise the bound most, to second order.

    With z its share and m its curvature once the other coefficients adjust, leaving it out costs
    m theta^2 and putting it in whole costs (edge (1 - z))^2 m / (m + d).
    """
    p = theta.size
    width = work.shape[1]
    system = work[1]
    active = np.empty(width, np.int64)
    picked = np.full(CANDIDATES, -1, np.int64)
    best = np.full(CANDIDATES, -1.0)
    n = 0
    fallback = -1
    most = -1.0
    for j in range(p):
        if state[j] < 0:
            continue
        if theta[j] != 0.0 and n < width:
            active[n] = j
            n += 1
        if state[j] > 0:
            continue
        z = min(1.0, abs(theta[j]) * root[j] / edge) if edge > 0.0 else 0.0
        score = min(z, 1.0 - z)
        other = score + 1e-3 * z + 1e-9 * abs(v[j])
        if other > most:
            most = other
            fallback = j
        if score > best[0]:
            # Ascending, by insertion.
            i = 1
            while i < CANDIDATES and best[i] < score:
                best[i - 1] = best[i]
                picked[i - 1] = picked[i]
                i += 1
            best[i - 1] = score
            picked[i - 1] = n - 1 if theta[j] != 0.0 else -1
    if best[CANDIDATES - 1] <= 1e-6:
        return fallback
    for a in range(n):
        j = active[a]
        row = q[j]
        for e in range(a + 1):
            system[a, e] = row[active[e]]
        z = abs(theta[j]) * root[j] / edge
        system[a, a] += d[j] if state[j] > 0 or z >= 1.0 - 1e-9 else 1e-12
    right = np.zeros((2, width))
    if not solve_definite(system, right, n):
        return fallback
    split = fallback
    most = -1.0
    for i in range(CANDIDATES):
        a = picked[i]
        if a < 0 or best[i] <= 1e-6:
            continue
        # The last row of the inverse factor gives the diagonal of the inverse.
        for e in range(n):
            right[0, e] = 0.0
        right[0, a] = 1.0
        total = 0.0
        for e in range(a, n):
            s = right[0, e]
            for t in range(a, e):
                s -= system[e, t] * right[0, t]
            s /= system[e, e]
            right[0, e] = s
            total += s * s
        m = 1.0 / total
        j = active[a]
        z = min(1.0, abs(theta[j]) * root[j] / edge)
        out = m * theta[j] * theta[j]
        into = (edge * (1.0 - z)) ** 2 * m / (m + d[j])
        low, high = min(out, into), max(out, into)
        score = low + LEAN * high
        if score > most:
            most = score
            split = j
    return int(split)


@njit(cache=True, error_model="numpy")
def note(log: Any, parent: int, side: int, theta: Any) -> int:
    """Write a step of the evidence: where its box comes from and a base point; return its number.

    `log` holds steps (parent, side, enumerated, split), ends of base points, their places and
    values, ends of decisions, decisions (feature + 1, negative: left out), and the three lengths;
    a negative length of steps means that nothing is written.
    """
    steps, point_ends, places, values, decision_ends, _, ends = log
    step = int(ends[0])
    if step < 0:
        return -1
    steps[step, 0] = parent
    steps[step, 1] = side
    steps[step, 2] = 0
    steps[step, 3] = -1
    for j in range(theta.size):
        if theta[j] != 0.0:
            places[ends[1]] = j
            values[ends[1]] = theta[j]
            ends[1] += 1
    point_ends[step] = ends[1]
    decision_ends[step] = ends[2]
    ends[0] = step + 1
    return step


@njit(cache=True, error_model="numpy")
def _decide(log: Any, step: int, feature: int, sign: int) -> None:
    """Write that a step decides a feature."""
    if step >= 0:
        ends = log[6]
        log[5][ends[2]] = sign * (feature + 1)
        ends[2] += 1
        log[4][step] = ends[2]


@njit(cache=True, error_model="numpy")
def _mark(log: Any, step: int, column: int, value: int) -> None:
    """Write that a step enumerates its box (column 2), or the feature it splits on (3)."""
    if step >= 0:
        log[0][step, column] = value


@njit(cache=True, error_model="numpy")
def examine(
    h: Any,
    q: Any,
    c: Any,
    d: Any,
    root: Any,
    energy: float,
    floor: float,
    tol: float,
    state: Any,
    room: int,
    theta: Any,
    v: Any,
    rounds: int,
    patience: float,
    best: Any,
    support: Any,
    fixed: Any,
    count: Any,
    work: Any,
    parent: int,
    side: int,
    log: Any,
) -> tuple[float, int, int, int]:
    """Bound one box, fix what its bound decides, and round it to a support.

    Parameters
    ----------
    h, q : array of shape (p, p)
        The problem's matrix and the model's.
    c, d, root : array of shape (p,)
        Linear term; weights of the model and their roots.
    energy, floor, tol : float
        Constant of the objective; what counts as zero; relative gap.
    state : array of shape (p,), int8
        The box; features that are decided are written to it.
    room : int
        How many open features fit.
    theta, v : array of shape (p,)
        Start of the relaxation; its base point and residual on return.
    rounds : int
        Most rounds of the relaxation.
    patience : float
        Share of what is missing that a round of it has to gain.
    best : array of shape (1,)
        Value of the incumbent, updated.
    support : array of shape (k,), int64
        The incumbent, updated; ends with -1 where it is smaller.
    fixed : array of shape (p,), int8
        1 for features that every support must have.
    count : array of shape (4,), int64
        Adds to: relaxations, enumerations, features fixed.
    work : array of shape (2, width, width)
        Memory of the relaxation, which keeps at most `width` features nonzero.
    parent, side : int
        Step of the evidence that the box comes from, and the side of its split.
    log : tuple of arrays
        The evidence, see `note`.

    Returns
    -------
    tuple of (float, int, int, int)
        The bound; the room that is left, -1 where the box is closed; the feature to split on; the
        last step of the evidence.
    """
    p = c.size
    k = support.size
    step = -1
    nothing = np.zeros(0)
    found = np.empty(k, np.int64)
    coef = np.empty(k)
    bound = -np.inf
    edge = 0.0
    n_open = 0
    for _turn in range(4):
        level = best[0] - max(0.5 * tol * abs(best[0]), floor)
        n_open = 0
        for j in range(p):
            if state[j] == 0:
                n_open += 1
        if n_open <= room:
            for j in range(p):
                if state[j] == 0:
                    state[j] = 1
            room = 0
        if room == 0:
            for j in range(p):
                if state[j] == 0:
                    state[j] = -1
            exact = leaf(h, c, energy, state, room, found)
            count[1] += 1
            if _turn == 0:
                step = note(log, parent, side, nothing)
            _mark(log, step, 2, 1)
            if exact > -np.inf:
                if exact < best[0]:
                    best[0] = exact
                    for i in range(k):
                        support[i] = found[i]
                return max(bound, exact - 1e-12 * energy), -1, -1, step
            return max(bound, 0.0), -2, -1, step
        if d[0] == 0.0:
            if _turn == 0:
                step = note(log, parent, side, nothing)
            # No curvature: nothing but the enumeration at the end bounds this box.
            bound = max(bound, 0.0)
            for j in range(p):
                v[j] = c[j]
            break
        new, edge, error = relax(
            q, c, d, root, energy, state, room, theta, v, level, rounds, patience, work
        )
        count[0] += 1
        bound = max(bound, new)
        step = note(log, parent if _turn == 0 else step, side if _turn == 0 else 0, theta)
        if bound >= level:
            return bound, -1, -1, step
        # Round: the features with the largest gains.
        top = np.empty(room + 1)
        at = np.empty(room + 1, np.int64)
        for i in range(room + 1):
            top[i] = -1.0
            at[i] = -1
        n = 0
        for j in range(p):
            if state[j] > 0:
                found[n] = j
                n += 1
            elif state[j] == 0:
                a = abs(v[j]) + error
                gain = a * a / d[j]
                if gain > top[0]:
                    i = 1
                    while i <= room and top[i] < gain:
                        top[i - 1] = top[i]
                        at[i - 1] = at[i]
                        i += 1
                    top[i - 1] = gain
                    at[i - 1] = j
        for i in range(1, room + 1):
            found[n] = at[i]
            n += 1
        total = refit(h, c, found, n, coef)
        if energy - total < best[0] - 1e-12 * energy:
            # The search may leave the box: any support is a candidate.
            picked = np.empty(n, np.int64)
            for i in range(n):
                picked[i] = found[i]
            total = exchange(h, c, picked, fixed, p)
            best[0] = energy - total
            for i in range(k):
                support[i] = picked[i] if i < n else -1
            level = best[0] - max(0.5 * tol * abs(best[0]), floor)
            if bound >= level:
                return bound, -1, -1, step
        n_in = 0
        n_out = 0
        for j in range(p):
            if state[j] != 0:
                continue
            a = abs(v[j]) + error
            gain = a * a / d[j]
            if gain >= top[1]:
                if new + (gain - top[0]) >= level:
                    state[j] = 1
                    n_in += 1
                    _decide(log, step, j, 1)
            elif new + (top[1] - gain) >= level:
                state[j] = -1
                n_out += 1
                _decide(log, step, j, -1)
        room -= n_in
        count[2] += n_in + n_out
        if n_in == 0 and 5 * n_out < n_open - n_out:
            break
    if room <= 2:
        exact = leaf(h, c, energy, state, room, found)
        count[1] += 1
        if exact > -np.inf:
            if exact < best[0]:
                best[0] = exact
                for i in range(k):
                    support[i] = found[i]
            _mark(log, step, 2, 1)
            return max(bound, exact - 1e-12 * energy), -1, -1, step
    split = _choose(q, d, root, state, theta, v, edge, work)
    _mark(log, step, 3, split)
    return bound, room, split, step


@njit(cache=True, error_model="numpy")
def store(
    slot: int,
    state: Any,
    theta: Any,
    room: int,
    bound: float,
    split: int,
    states: Any,
    places: Any,
    values: Any,
    sizes: Any,
    rooms: Any,
    keys: Any,
    splits: Any,
    made: Any,
    step: int,
) -> None:
    """Write a box to a slot of the pool."""
    n = 0
    for j in range(state.size):
        states[slot, j] = state[j]
        if theta[j] != 0.0 and n < places.shape[1]:
            places[slot, n] = j
            values[slot, n] = theta[j]
            n += 1
    sizes[slot] = n
    rooms[slot] = room
    keys[slot] = bound
    splits[slot] = split
    made[slot] = step


@njit(cache=True, error_model="numpy")
def explore(
    h: Any,
    q: Any,
    c: Any,
    d: Any,
    root: Any,
    energy: float,
    floor: float,
    tol: float,
    rounds: int,
    patience: float,
    states: Any,
    places: Any,
    values: Any,
    sizes: Any,
    rooms: Any,
    keys: Any,
    splits: Any,
    made: Any,
    heap: Any,
    free: Any,
    ends: Any,
    best: Any,
    support: Any,
    fixed: Any,
    closed: Any,
    count: Any,
    work: Any,
    log: Any,
    most: int,
) -> int:
    """Split the boxes with the lowest bounds, up to `most` of them.

    Parameters
    ----------
    h, q : array of shape (p, p)
        See `examine`.
    c, d, root : array of shape (p,)
        See `examine`.
    energy, floor, tol : float
        See `examine`.
    rounds : int
        See `examine`.
    patience : float
        See `examine`.
    states : array of shape (capacity, p), int8
        The pool of open boxes: their states.
    places, values : array of shape (capacity, width)
        Their base points: where they differ from zero, and what they are there.
    sizes, rooms, keys, splits, made : array of shape (capacity,)
        Lengths of the base points; rooms; bounds; features to split on; steps of the evidence.
    heap, free : array of shape (capacity,), int64
        Open boxes as a heap; slots that are free, as a stack.
    ends : array of shape (2,), int64
        Numbers of open boxes and of free slots.
    best : array of shape (1,)
        Value of the incumbent, updated.
    support : array of shape (k,), int64
        The incumbent, updated.
    fixed : array of shape (p,), int8
        See `examine`.
    closed : array of shape (1,)
        Smallest bound of a closed box, updated.
    count : array of shape (4,), int64
        See `examine`; ``count[3]`` adds the boxes.
    work : array of shape (2, width, width)
        See `examine`.
    log : tuple of arrays
        See `examine`.
    most : int
        Most boxes to split in this call.

    Returns
    -------
    int
        `DONE` when no open box is left, `PAUSED`, or `FULL` when the pool is.
    """
    p = c.size
    state = np.empty(p, np.int8)
    theta = np.empty(p)
    v = np.empty(p)
    for _ in range(most):
        if ends[0] == 0:
            return DONE
        if ends[1] < 2:
            return FULL
        slot = heap[0]
        level = best[0] - max(0.5 * tol * abs(best[0]), floor)
        if keys[slot] >= level:
            closed[0] = min(closed[0], keys[slot])
            while ends[0] > 0:
                ends[0] -= 1
                free[ends[1]] = heap[ends[0]]
                ends[1] += 1
            return DONE
        pop(heap, keys, ends[0])
        ends[0] -= 1
        for side in range(2):
            for j in range(p):
                state[j] = states[slot, j]
                theta[j] = 0.0
            for i in range(sizes[slot]):
                theta[places[slot, i]] = values[slot, i]
            split = splits[slot]
            room = rooms[slot]
            if side == 0:
                state[split] = 1
                room -= 1
            else:
                state[split] = -1
            bound, left, feature, step = examine(
                h, q, c, d, root, energy, floor, tol, state, room, theta, v, rounds, patience,
                best, support, fixed, count, work, made[slot], 1 - 2 * side, log,
            )  # fmt: skip
            count[3] += 1
            bound = max(bound, keys[slot])
            if left < 0:
                closed[0] = min(closed[0], bound)
                continue
            ends[1] -= 1
            target = free[ends[1]]
            store(
                target, state, theta, left, bound, feature,
                states, places, values, sizes, rooms, keys, splits, made, step,
            )  # fmt: skip
            push(heap, keys, ends[0], target)
            ends[0] += 1
        free[ends[1]] = slot
        ends[1] += 1
    return PAUSED
