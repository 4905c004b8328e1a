r"""Exact l0 programs on a chain: messages that are lower envelopes of quadratics.

.. math:: \min_x \sum_i w_i (x_i - y_i)^2 + \sum_i \lambda_i (x_{i+1} - x_i)^2
    + \sum_i \mu_i 1[x_i \ne 0]

The message to a node is the least cost of everything before it as a function of its value: a
minimum of quadratics ``a (x - m)^2 + c``, one for each position of the last zero that can still
win. Pieces are kept by interval; between two of them the crossing is unique, so an envelope takes
one pass with a stack. A message needs to be known only between the solutions for the positive and
for the negative part of the data, which bound every candidate.

Everything is float64; costs are sums of nonnegative terms, the smallest one is taken out of each
message and summed apart.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit  # noqa: TID253

# Columns of a buffer of pieces.
CURVATURE, VERTEX, COST, START = 0, 1, 2, 3
# Rounds of the bisection that stands in where the closed form of a crossing fails.
BISECTIONS = 80


@njit(cache=True)
def solve_runs(y, w, edges, on):  # type: ignore[no-untyped-def]
    """Return the minimizer of the smooth part over the nodes that are on, zero elsewhere.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    on : array of shape (n,), bool
        Nodes that may differ from zero.

    Returns
    -------
    array of shape (n,)
        The minimizer; zero on runs without any weight or zero neighbor.
    """
    n = y.shape[0]
    x = np.zeros(n)
    upper = np.empty(n)
    i = 0
    while i < n:
        if not on[i]:
            i += 1
            continue
        first = i
        while i < n and on[i]:
            left = edges[i - 1] if i > 0 else 0.0
            right = edges[i] if i + 1 < n else 0.0
            # The pivot by its excess over the edge to the right: no cancellation.
            excess = w[i]
            if i == first:
                excess += left
                before = 0.0
            else:
                excess += upper[i - 1]
                before = left * x[i - 1]
            pivot = excess + right
            if pivot > 0.0:
                x[i] = (w[i] * y[i] + before) / pivot
                # What is left of the edge after this node has been taken out.
                upper[i] = right * excess / pivot
            else:
                x[i] = 0.0
                upper[i] = 0.0
            i += 1
        last = i - 1
        for j in range(last - 1, first - 1, -1):
            right = edges[j]
            left = edges[j - 1] if j > 0 else 0.0
            excess = w[j] + (left if j == first else upper[j - 1])
            pivot = excess + right
            if pivot > 0.0:
                x[j] += right / pivot * x[j + 1]
    return x


@njit(cache=True)
def leverages(w, edges, on):  # type: ignore[no-untyped-def]
    """Return how much every fitted value follows its own sample on a support.

    Their sum is the number of degrees of freedom of the fit.
    """
    n = w.shape[0]
    left, right, out = np.zeros(n), np.zeros(n), np.zeros(n)
    # What a node weighs by itself and by everything on one side of it.
    for i in range(1, n):
        before = w[i - 1] + left[i - 1]
        if not on[i - 1]:
            left[i] = edges[i - 1]
        elif before + edges[i - 1] > 0.0:
            left[i] = before * edges[i - 1] / (before + edges[i - 1])
    for i in range(n - 2, -1, -1):
        after = w[i + 1] + right[i + 1]
        if not on[i + 1]:
            right[i] = edges[i]
        elif after + edges[i] > 0.0:
            right[i] = after * edges[i] / (after + edges[i])
    for i in range(n):
        total = w[i] + left[i] + right[i]
        if on[i] and total > 0.0:
            out[i] = w[i] / total
    return out


@njit(cache=True)
def objective(x, y, w, edges, cost):  # type: ignore[no-untyped-def]
    """Return the objective at a point, with the cost of every nonzero."""
    total = 0.0
    for i in range(x.shape[0]):
        total += w[i] * (x[i] - y[i]) ** 2
        if x[i] != 0.0:
            total += cost[i]
        if i > 0:
            total += edges[i - 1] * (x[i] - x[i - 1]) ** 2
    return total


@njit(cache=True)
def domains(y, w, edges, nonnegative):  # type: ignore[no-untyped-def]
    """Return lower and upper bounds on the minimizer over every support."""
    n = y.shape[0]
    every = np.ones(n, dtype=np.bool_)
    part = np.empty(n)
    for i in range(n):
        part[i] = max(y[i], 0.0)
    high = solve_runs(part, w, edges, every)
    if nonnegative:
        return np.zeros(n), high
    for i in range(n):
        part[i] = min(y[i], 0.0)
    return solve_runs(part, w, edges, every), high


@njit(cache=True)
def restricted_value(a, m, c, low, high, edge, x):  # type: ignore[no-untyped-def]
    """Return min over x' in [low, high] of a (x' - m)^2 + c + edge (x - x')^2."""
    total = a + edge
    best = (a * m + edge * x) / total if total > 0.0 else m
    best = min(max(best, low), high)
    return a * (best - m) ** 2 + c + edge * (x - best) ** 2


@njit(cache=True)
def _is_left(a, m, low, edge, x):  # type: ignore[no-untyped-def]
    """Return whether the restricted argument is at the left end of its interval."""
    return a * m + edge * x <= (a + edge) * low


@njit(cache=True)
def _after_edge(a, edge):  # type: ignore[no-untyped-def]
    total = a + edge
    return a * edge / total if total > 0.0 else 0.0


@njit(cache=True)
def _crossing(one, two, edge, low, high):  # type: ignore[no-untyped-def]
    """Return where the restricted envelope of `one` rises above that of `two`."""
    a1, m1, c1, l1, h1 = one[0], one[1], one[2], one[3], one[4]
    a2, m2, c2, l2, h2 = two[0], two[1], two[2], two[3], two[4]
    fixed1, fixed2 = l1 == h1, l2 == h2
    # An argument that cannot move, such as that of the zero state, keeps the edge whole.
    if fixed1:
        b1, c1, m1 = edge, c1 + a1 * (l1 - m1) ** 2, l1
    else:
        b1 = _after_edge(a1, edge)
    if fixed2:
        b2, c2, m2 = edge, c2 + a2 * (l2 - m2) ** 2, l2
    else:
        b2 = _after_edge(a2, edge)
    # The difference b1 (x - m1)^2 + c1 - b2 (x - m2)^2 - c2, around the middle of the vertices.
    middle = 0.5 * (m1 + m2)
    half = 0.5 * (m2 - m1)
    A = b1 - b2
    B = 2.0 * (b1 + b2) * half
    C = A * half * half + (c1 - c2)
    root = math.nan
    inside = B * B - 4.0 * A * C
    if inside >= 0.0:
        s = math.sqrt(inside)
        if B >= 0.0:
            if B + s > 0.0:
                root = middle - 2.0 * C / (B + s)
        elif A != 0.0:
            root = middle + (s - B) / (2.0 * A)
    if low < root <= high:
        t1, t2 = a1 + edge, a2 + edge
        x1 = (a1 * m1 + edge * root) / t1 if t1 > 0.0 else m1
        x2 = (a2 * m2 + edge * root) / t2 if t2 > 0.0 else m2
        if (fixed1 or l1 <= x1 <= h1) and (fixed2 or l2 <= x2 <= h2):
            return root
    # Back to what was given.
    m1, c1, m2, c2 = one[1], one[2], two[1], two[2]
    left, right = low, high
    for _ in range(BISECTIONS):
        x = 0.5 * (left + right)
        if x <= left or x >= right:
            break
        # Where the second one is clipped at its left end the first is at least as good.
        clipped = a2 > 0.0 and _is_left(a2, m2, l2, edge, x)
        mine = restricted_value(a1, m1, c1, l1, h1, edge, x)
        if clipped or mine < restricted_value(a2, m2, c2, l2, h2, edge, x):
            left = x
        else:
            right = x
    return right


@njit(cache=True)
def smallest_of(pieces, count, end):  # type: ignore[no-untyped-def]
    """Return the least value of a piecewise quadratic, and the piece that has it.

    A piece whose argument is cut at zero, or at the piece before it, is left out: the zero state
    or that piece is at least as good, and a tie, or rounding beside zero, must not put a node on
    that would turn negative.
    """
    best, piece = math.inf, -1
    for k in range(count):
        is_cut = pieces[k, VERTEX] <= pieces[k, START]
        if is_cut and (k > 0 or pieces[k, START] == 0.0):
            continue
        right = pieces[k + 1, START] if k + 1 < count else end
        x = min(max(pieces[k, VERTEX], pieces[k, START]), right)
        value = pieces[k, CURVATURE] * (x - pieces[k, VERTEX]) ** 2 + pieces[k, COST]
        if value < best:
            best, piece = value, k
    return best, piece


@njit(cache=True)
def envelope_step(  # type: ignore[no-untyped-def]
    pieces, labels, count, end, zero, zero_label, edge, low, high, out, out_labels, work
):
    """Carry a message over an edge: the lower envelope of all continuations.

    Parameters
    ----------
    pieces : array of shape (capacity, 4)
        Pieces of the costs at the node: curvature, vertex, cost, left end; sorted.
    labels : array of shape (capacity,), int64
        Position of the last zero of every piece.
    count : int
        Number of pieces; may be 0.
    end : float
        Right end of the last piece.
    zero : float
        Cost when the node is zero and the next one is not; infinity when it must not be.
    zero_label : int
        Label of that continuation.
    edge : float
        Smoothness weight of the edge.
    low, high : float
        Interval on which the message is needed; it holds 0.
    out, out_labels : array of shape (2 * capacity + 1, 4) and (2 * capacity + 1,)
        Pieces of the message, written.
    work : array of shape (2 * capacity + 1, 6)
        Scratch.

    Returns
    -------
    int
        Number of pieces of the message.
    """
    if edge == 0.0:
        # Nothing is carried over: the message is the smallest cost.
        best, k = smallest_of(pieces, count, end)
        label = labels[k] if best < zero else zero_label
        best = min(best, zero)
        out[0, CURVATURE] = 0.0
        out[0, VERTEX] = 0.0
        out[0, COST] = best
        out[0, START] = low
        out_labels[0] = label
        return 1
    # work: curvature, vertex, cost, left end, right end of the interval, start of the reign.
    size = 0
    k = 0
    zero_waits = zero < math.inf
    while k < count or zero_waits:
        is_zero = False
        if k < count:
            left = pieces[k, START]
            right = pieces[k + 1, START] if k + 1 < count else end
        if zero_waits and (k >= count or left >= 0.0):
            is_zero = True
            zero_waits = False
            a, m, c, left, right, label = 0.0, 0.0, zero, 0.0, 0.0, zero_label
        else:
            a, m, c = pieces[k, CURVATURE], pieces[k, VERTEX], pieces[k, COST]
            label = labels[k]
            if zero_waits and right > 0.0:
                # A piece on both sides of zero is used twice.
                right = 0.0
                pieces[k, START] = 0.0
            else:
                k += 1
        start = low
        dropped = False
        while size > 0:
            top = work[size - 1]
            at = top[5]
            mine = restricted_value(a, m, c, left, right, edge, at)
            theirs = restricted_value(top[0], top[1], top[2], top[3], top[4], edge, at)
            if (is_zero or not _is_left(a, m, left, edge, at)) and mine <= theirs:
                size -= 1
                continue
            mine = restricted_value(a, m, c, left, right, edge, high)
            theirs = restricted_value(top[0], top[1], top[2], top[3], top[4], edge, high)
            if (not is_zero and _is_left(a, m, left, edge, high)) or mine >= theirs:
                dropped = True
                break
            work[size, 0], work[size, 1], work[size, 2] = a, m, c
            work[size, 3], work[size, 4] = left, right
            start = _crossing(top, work[size], edge, at, high)
            if start >= high:
                dropped = True
            break
        if dropped:
            continue
        work[size, 0], work[size, 1], work[size, 2] = a, m, c
        work[size, 3], work[size, 4], work[size, 5] = left, right, start
        out_labels[size] = label
        size += 1
    kept = 0
    for k in range(size):
        is_zero = work[k, 3] == 0.0 and work[k, 4] == 0.0 and work[k, 0] == 0.0
        a = edge if is_zero else _after_edge(work[k, 0], edge)
        label = out_labels[k]
        if kept > 0 and label == out_labels[kept - 1]:
            previous = out[kept - 1]
            # The two halves of one piece.
            if previous[0] == a and previous[1] == work[k, 1] and previous[2] == work[k, 2]:
                continue
        out[kept, CURVATURE] = a
        out[kept, VERTEX] = work[k, 1]
        out[kept, COST] = work[k, 2]
        out[kept, START] = work[k, 5]
        out_labels[kept] = label
        kept += 1
    return kept


@njit(cache=True)
def node_step(message, labels, count, y, w, price, out, out_labels):  # type: ignore[no-untyped-def]
    """Add a node to every piece of a message; return the smallest cost of a vertex."""
    smallest = math.inf
    for k in range(count):
        a, m, c = message[k, CURVATURE], message[k, VERTEX], message[k, COST]
        total = a + w
        if total > 0.0:
            c += a * w / total * (m - y) ** 2
            m = (a * m + w * y) / total
        c += price
        out[k, CURVATURE], out[k, VERTEX], out[k, COST] = total, m, c
        out[k, START] = message[k, START]
        out_labels[k] = labels[k]
        smallest = min(smallest, c)
    return smallest


@njit(cache=True)
def at_zero(pieces, count):  # type: ignore[no-untyped-def]
    """Return the piece whose interval holds zero."""
    k = count - 1
    while k > 0 and pieces[k, START] > 0.0:
        k -= 1
    return k


@njit(cache=True)
def copy_rows(source, first, last, target, place):  # type: ignore[no-untyped-def]
    """Copy rows `first` to `last` of a matrix to `place` of another; slices compile slowly."""
    for k in range(first, last):
        for j in range(source.shape[1]):
            target[place + k - first, j] = source[k, j]


@njit(cache=True)
def grown(rows, count, capacity):  # type: ignore[no-untyped-def]
    """Return the first rows of a matrix in one with room for more."""
    more = np.empty((capacity, rows.shape[1]))
    copy_rows(rows, 0, count, more, 0)
    return more


@njit(cache=True)
def grown_labels(labels, count, capacity):  # type: ignore[no-untyped-def]
    """Return the first labels in an array with room for more."""
    more = np.empty(capacity, dtype=np.int64)
    for k in range(count):
        more[k] = labels[k]
    return more


@njit(cache=True)
def sweep(y, w, edges, cost, bump, nonnegative, keep):  # type: ignore[no-untyped-def]
    """Solve the penalized program on a chain; keep every message where `keep` asks for it.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data, and weights of at least 0.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge, at least 0; 0 cuts the chain.
    cost : array of shape (n,)
        Cost of every nonzero; minus infinity makes a node free of cost, infinity keeps it off.
    bump : float
        Cost of every run of nonzeros, at least 0.
    nonnegative : bool
        Whether values must not be negative.
    keep : bool
        Whether to return the messages.

    Returns
    -------
    value : float
        The optimal value as the program has it.
    on : array of shape (n,), bool
        An optimal support.
    n_pieces, most : int
        Pieces of all messages together, and of the largest.
    held : array of shape (n,), bool
        Nodes that are zero but do not end their run, for that would cost more.
    kept : array of shape (n_pieces, 4)
        The message to every node, one after the other; nothing without `keep`.
    first : array of shape (n + 1,), int64
        Where the message of every node begins in `kept`.
    bases : array of shape (n,)
        What has been taken out of the costs of every message.

    Notes
    -----
    Memory for n numbers and the pieces of one message (of all with `keep`); time proportional to
    all pieces, at most n^2 and mostly a few times n.
    """
    n = y.shape[0]
    low, high = domains(y, w, edges, nonnegative)
    before, held_before = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    capacity = 64
    pieces, labels = np.empty((capacity, 4)), np.empty(capacity, dtype=np.int64)
    out = np.empty((2 * capacity + 1, 4))
    out_labels = np.empty(2 * capacity + 1, dtype=np.int64)
    work = np.empty((2 * capacity + 1, 6))
    kept = np.empty((2 * n + 64 if keep else 0, 4))
    first = np.zeros(n + 1, dtype=np.int64)
    bases = np.empty(n)
    # The message to the first node is the cost of a run that begins there.
    out[0, 0], out[0, 1], out[0, 2], out[0, 3] = 0.0, 0.0, bump, low[0]
    out_labels[0] = -1
    count = 1
    base = 0.0
    n_pieces, most = 0, 0
    # The least cost with the node before at zero, as if one stood before the first.
    zero, zero_label = 0.0, -1
    entry, entry_label = math.inf, -1
    for i in range(n):
        if count > capacity:
            while capacity < count:
                capacity *= 2
            pieces, labels = np.empty((capacity, 4)), np.empty(capacity, dtype=np.int64)
            out = grown(out, count, 2 * capacity + 1)
            out_labels = grown_labels(out_labels, count, 2 * capacity + 1)
            work = np.empty((2 * capacity + 1, 6))
        bases[i] = base
        first[i + 1] = first[i]
        if keep:
            if first[i] + count > kept.shape[0]:
                kept = grown(kept, first[i], 2 * kept.shape[0] + count)
            copy_rows(out, 0, count, kept, first[i])
            first[i + 1] += count
        # The zero continuation of this node, then the nonzero ones.
        k = at_zero(out, count)
        reached = out[k, CURVATURE] * out[k, VERTEX] ** 2 + out[k, COST]
        label = out_labels[k]
        fit = w[i] * y[i] ** 2
        never = cost[i] == math.inf
        price = 0.0 if math.isinf(cost[i]) else cost[i]
        # At zero within a run, which goes on: of use where a new run costs more.
        holding = reached + fit + price if bump > 0.0 and not never else math.inf
        before[i], held_before[i] = label, label
        if zero < reached:
            reached, before[i] = zero, zero_label
        zero = reached + fit
        zero_label = i
        if price < 0.0:
            # Switching on for nothing is allowed.
            zero += price
        number = 0 if never else count
        smallest = node_step(out, out_labels, number, y[i], w[i], price, pieces, labels)
        smallest = min(smallest, zero)
        base += smallest
        zero -= smallest
        entry, entry_label = zero + bump, zero_label
        if holding - smallest < entry:
            entry, entry_label = holding - smallest, n + i
        for k in range(number):
            pieces[k, COST] -= smallest
        n_pieces += number
        most = max(most, number)
        if i + 1 < n:
            count = envelope_step(
                pieces, labels, number, high[i], entry, entry_label, edges[i],
                low[i + 1], high[i + 1], out, out_labels, work,
            )  # fmt: skip
        else:
            count = number
    best, piece = smallest_of(pieces, count, high[n - 1])
    last = labels[piece] if best < zero else zero_label
    best = min(best, zero)
    on, held = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    while last >= 0:
        if last >= n:
            last -= n
            held[last] = True
            last = held_before[last]
        else:
            on[last] = False
            last = before[last]
    return base + best, on, n_pieces, most, held, kept[: first[n]], first, bases
