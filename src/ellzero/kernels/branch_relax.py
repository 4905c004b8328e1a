r"""Lower bounds on the best sparse point of a quadratic, from any base point.

A *model* of the problem is a matrix Q, positive semidefinite, and weights d > 0 such that

.. math:: b^T H b \ge b^T Q b + \sum_j d_j b_j^2

for every b with at most r nonzeros. Over the supports that contain `inside` and have room for
`room` more, every base point :math:`\theta` then gives, with :math:`v = c - Q \theta`,

.. math:: b^T H b - 2 c^T b \ge -\theta^T Q \theta - \sum_{\mathrm{inside}} v_j^2 / d_j
    - \sum_{\text{room largest}} v_j^2 / d_j.

The largest such bound is the perspective relaxation. At its solution the open features fall into
three groups: whole (their share z is 1), split (0 < z < 1, all with the same |v| / sqrt(d), the
*edge*) and out; given the groups, the solution is one linear system with two right sides. Steps of
coordinate descent find the groups.

States of features are int8: 1 inside, -1 outside, 0 open. Everything runs on one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

EPS = float(np.finfo(np.float64).eps)
# Most features with a nonzero coefficient while a relaxation is solved.
ACTIVE = 512


@njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
def solve_definite(matrix: Any, right: Any, n: int) -> bool:
    """Solve for two right sides with the leading square of a definite matrix, in place.

    Parameters
    ----------
    matrix : array of shape (m, m)
        The matrix, its lower half; replaced by its Cholesky factor.
    right : array of shape (2, m)
        The right sides; replaced by the solutions.
    n : int
        Size of the system.

    Returns
    -------
    bool
        Whether the matrix is definite.
    """
    for j in range(n):
        for i in range(j):
            s = matrix[j, i]
            for t in range(i):
                s -= matrix[j, t] * matrix[i, t]
            matrix[j, i] = s / matrix[i, i]
        s = matrix[j, j]
        whole = s
        for t in range(j):
            s -= matrix[j, t] * matrix[j, t]
        if not s > 1e-13 * whole:
            return False
        matrix[j, j] = np.sqrt(s)
    for k in range(2):
        for j in range(n):
            s = right[k, j]
            for t in range(j):
                s -= matrix[j, t] * right[k, t]
            right[k, j] = s / matrix[j, j]
        for j in range(n - 1, -1, -1):
            s = right[k, j]
            for t in range(j + 1, n):
                s -= matrix[t, j] * right[k, t]
            right[k, j] = s / matrix[j, j]
    return True


@njit(cache=True, error_model="numpy")
def residual(q: Any, c: Any, theta: Any, v: Any) -> float:
    """Set v = c - Q theta and return a bound on the rounding error of its entries."""
    p = c.size
    for j in range(p):
        v[j] = c[j]
    n = 0
    size = 0.0
    top = 0.0
    for i in range(p):
        t = theta[i]
        top = max(top, abs(c[i]))
        if t != 0.0:
            n += 1
            size += abs(t)
            row = q[i]
            for j in range(p):
                v[j] -= t * row[j]
    # Entries of Q are at most its largest diagonal entry, which is at most 2 here.
    return 2.0 * EPS * (n + 4) * (top + 2.0 * size)


@njit(cache=True, error_model="numpy")
def bound_at(
    c: Any,
    d: Any,
    energy: float,
    state: Any,
    room: int,
    theta: Any,
    v: Any,
    error: float,
    top: Any,
) -> float:
    """Return the lower bound of a base point, less what rounding can do.

    Parameters
    ----------
    c, d : array of shape (p,)
        Linear term and weights of the model.
    energy : float
        Constant of the objective.
    state : array of shape (p,), int8
        Which features are inside, outside, open.
    room : int
        How many open features fit.
    theta, v : array of shape (p,)
        Base point and its residual.
    error : float
        Bound on the error of `v`.
    top : array of shape (room + 1,) or longer
        Receives the largest gains of open features, ascending, -1 where there are fewer.

    Returns
    -------
    float
        The bound.
    """
    p = c.size
    quadratic = 0.0
    size = 0.0
    total = 0.0
    for i in range(room + 1):
        top[i] = -1.0
    for j in range(p):
        s = state[j]
        if s < 0:
            continue
        if theta[j] != 0.0:
            quadratic += theta[j] * (c[j] - v[j])
            size += abs(theta[j]) * (abs(c[j]) + abs(v[j]) + error)
        a = abs(v[j]) + error
        gain = a * a / d[j]
        if s > 0:
            total += gain
        elif gain > top[0]:
            i = 1
            while i <= room and top[i] < gain:
                top[i - 1] = top[i]
                i += 1
            top[i - 1] = gain
    for i in range(1, room + 1):
        if top[i] > 0.0:
            total += top[i]
    slack = 8.0 * EPS * (energy + size + total)
    for j in range(p):
        if theta[j] != 0.0:
            slack += abs(theta[j]) * error
    return energy - quadratic - total - slack


@njit(cache=True, error_model="numpy")
def relax(
    q: Any,
    c: Any,
    d: Any,
    root: Any,
    energy: float,
    state: Any,
    room: int,
    theta: Any,
    v: Any,
    level: float,
    rounds: int,
    patience: float,
    work: Any,
) -> tuple[float, float, float]:
    """Maximize the lower bound of one box over base points.

    Parameters
    ----------
    q : array of shape (p, p)
        Matrix of the model.
    c, d, root : array of shape (p,)
        Linear term, weights, and the roots of the weights.
    energy : float
        Constant of the objective.
    state : array of shape (p,), int8
        Which features are inside, outside, open.
    room : int
        How many open features fit; at least 1 and at most their number.
    theta : array of shape (p,)
        Start, and the base point of the bound on return.
    v : array of shape (p,)
        Receives the residual at `theta`.
    level : float
        Bound that is enough.
    rounds : int
        Most rounds of coordinate descent and a linear system.
    patience : float
        Share of what is missing to `level` that a round has to gain, or else it is the last.
    work : array of shape (2, width, width)
        Memory; at most `width` features are nonzero at a time.

    Returns
    -------
    tuple of (float, float, float)
        The bound; the edge: the root of the gain that splits features in from out; the error of
        `v`.
    """
    p = c.size
    top = np.empty(room + 2)
    point = np.empty(p)
    slope = np.empty(p)
    width = work.shape[1]
    block = work[0]
    system = work[1]
    active = np.empty(width, np.int64)
    b = np.empty(width)
    local = np.empty(width)
    right = np.empty((2, width))
    place = np.empty(width, np.int64)
    kind = np.empty(width, np.int8)

    for j in range(p):
        if state[j] < 0:
            theta[j] = 0.0
    best_error = residual(q, c, theta, v)
    best = bound_at(c, d, energy, state, room, theta, v, best_error, top)
    best_edge = np.sqrt(max(top[1], 0.0))
    if best >= level:
        return best, best_edge, best_error
    edge = 0.5 * (np.sqrt(max(top[1], 0.0)) + np.sqrt(max(top[0], 0.0)))
    for j in range(p):
        point[j] = theta[j]
        slope[j] = v[j]
    stalls = 0
    for _ in range(rounds):
        # Active: inside, nonzero, or beyond the edge.
        n = 0
        limit = edge
        for _attempt in range(60):
            n = 0
            over = False
            for j in range(p):
                if state[j] < 0:
                    continue
                if state[j] > 0 or point[j] != 0.0 or abs(slope[j]) > limit * root[j]:
                    if n == width:
                        over = True
                        break
                    active[n] = j
                    n += 1
            if not over:
                break
            # Too many: only the largest come in.
            limit = max(2.0 * limit, edge)
        for a in range(n):
            row = q[active[a]]
            b[a] = point[active[a]]
            for e in range(n):
                block[a, e] = row[active[e]]
        for a in range(n):
            s = c[active[a]]
            for e in range(n):
                s -= block[a, e] * b[e]
            local[a] = s
        # Coordinate descent at this edge.
        for _sweep in range(4 if stalls == 0 else 40):
            largest = 0.0
            for a in range(n):
                j = active[a]
                h = block[a, a]
                u = local[a] + h * b[a]
                if state[j] > 0:
                    new = u / (h + d[j])
                else:
                    new = u / (h + d[j])
                    if abs(new) * root[j] < edge:
                        t = abs(u) - edge * root[j]
                        if t <= 0.0:
                            new = 0.0
                        else:
                            step = edge / root[j]
                            if h > 0.0:
                                step = min(step, t / h)
                            new = step if u > 0.0 else -step
                step = new - b[a]
                if step != 0.0:
                    b[a] = new
                    largest = max(largest, abs(step))
                    for e in range(n):
                        local[e] -= step * block[a, e]
            if largest == 0.0:
                break
        # Groups, and the linear system that they give.
        m = 0
        n_whole = 0
        n_split = 0
        for a in range(n):
            j = active[a]
            if state[j] > 0:
                kind[m] = 2
            elif b[a] == 0.0:
                continue
            elif abs(b[a]) * root[j] >= edge * (1.0 - 1e-12):
                kind[m] = 1
                n_whole += 1
            else:
                kind[m] = 0
                n_split += 1
            place[m] = a
            m += 1
        while n_whole > room or (n_whole == room and n_split > 0):
            # More whole ones than fit: the smallest is split.
            low = np.inf
            at = -1
            for i in range(m):
                if kind[i] == 1:
                    size = abs(b[place[i]]) * root[active[place[i]]]
                    if size < low:
                        low = size
                        at = i
            kind[at] = 0
            n_whole -= 1
            n_split += 1
        for i in range(m):
            j = active[place[i]]
            for e in range(i + 1):
                system[i, e] = block[place[i], place[e]]
            right[0, i] = c[j]
            right[1, i] = 0.0
            if kind[i] == 0:
                right[1, i] = root[j] if b[place[i]] > 0.0 else -root[j]
                system[i, i] += 1e-12
            else:
                system[i, i] += d[j]
        settled = solve_definite(system, right, m)
        if settled:
            up = 0.0
            down = float(room - n_whole)
            share = float(n_whole)
            for i in range(m):
                if kind[i] == 0:
                    r = root[active[place[i]]]
                    sign = r if b[place[i]] > 0.0 else -r
                    up += sign * right[0, i]
                    down += sign * right[1, i]
                    share += sign * b[place[i]] / edge
            new_edge = edge
            if n_split > 0:
                new_edge = up / down if down > 0.0 else 0.0
            if not new_edge > 0.0 or stalls > 1:
                # The groups are wrong: the edge moves to where the shares add up.
                settled = False
                edge *= np.sqrt(min(max(share / room, 0.25), 4.0))
            else:
                # As far towards the solution as the groups hold.
                step = 1.0
                first = -1
                for i in range(m):
                    j = active[place[i]]
                    old = b[place[i]]
                    new = right[0, i] - new_edge * right[1, i]
                    right[0, i] = new
                    t = 2.0
                    if kind[i] == 0:
                        sign = 1.0 if old > 0.0 else -1.0
                        if sign * new <= 0.0:
                            t = old / (old - new)
                        elif sign * new * root[j] > new_edge * (1.0 + 1e-9):
                            over_new = sign * new * root[j] - new_edge
                            t = (edge - sign * old * root[j]) / (
                                edge - sign * old * root[j] + over_new
                            )
                    elif kind[i] == 1 and n_split > 0:
                        below = new_edge - abs(new) * root[j]
                        if below > 1e-9 * new_edge:
                            above = max(abs(old) * root[j] - edge, 0.0)
                            t = above / (above + below)
                    if t < step:
                        step = t
                        first = i
                if step < 1.0:
                    settled = False
                    # The whole step, without those that change sign, when that is better.
                    for j in range(p):
                        point[j] = 0.0
                    for i in range(m):
                        if kind[i] != 0 or right[0, i] * b[place[i]] > 0.0:
                            point[active[place[i]]] = right[0, i]
                    error = residual(q, c, point, slope)
                    bound = bound_at(c, d, energy, state, room, point, slope, error, top)
                    step = 1.0 if bound > best else max(step, 0.05)
                for i in range(m):
                    a = place[i]
                    old = b[a]
                    b[a] = old + step * (right[0, i] - old)
                    if kind[i] == 0 and (
                        b[a] * old <= 0.0 or (i == first and b[a] * right[0, i] <= 0.0)
                    ):
                        b[a] = 0.0
                edge += step * (new_edge - edge)
        for j in range(p):
            point[j] = 0.0
        for a in range(n):
            point[active[a]] = b[a]
        error = residual(q, c, point, slope)
        bound = bound_at(c, d, energy, state, room, point, slope, error, top)
        if n_split == 0:
            edge = 0.5 * (np.sqrt(max(top[1], 0.0)) + np.sqrt(max(top[0], 0.0)))
        gained = bound - best
        stalls = 0 if gained > 1e-6 * energy else stalls + 1
        if bound <= best:
            # Between the two points: the bound is concave there.
            for j in range(p):
                point[j] = 0.5 * (point[j] + theta[j])
            error = residual(q, c, point, slope)
            bound = bound_at(c, d, energy, state, room, point, slope, error, top)
        if bound > best:
            best = bound
            best_error = error
            best_edge = np.sqrt(max(top[1], 0.0))
            for j in range(p):
                theta[j] = point[j]
                v[j] = slope[j]
            if best >= level:
                break
        if 0.0 < gained < patience * (level - best):
            break
        if settled:
            beyond = False
            for j in range(p):
                far = abs(slope[j]) > edge * root[j] * (1.0 + 1e-9)
                if far and state[j] == 0 and point[j] == 0.0:
                    beyond = True
                    break
            if not beyond or abs(gained) <= 1e-9 * energy:
                break
        elif stalls > 8:
            break
    return best, best_edge, best_error
