r"""The count-indexed program on a chain: at most `budget` nonzeros, exactly.

Costs are tilted by `price` for every nonzero. A state (node, count, zero or not) is given up when
its cost so far plus the least cost of everything after it, whatever its count, is above `limit`;
what is left is short. The least costs after a node are the messages of the reversed chain.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit  # noqa: TID253

from ellzero.kernels.chain import (
    COST,
    CURVATURE,
    START,
    VERTEX,
    at_zero,
    copy_rows,
    domains,
    envelope_step,
    node_step,
    smallest_of,
)


@njit(cache=True)
def least_joint(pieces, count, end, rest, first, last, low):  # type: ignore[no-untyped-def]
    """Return the least value of a cost plus the message from the other side.

    The message of the reversed chain is in `rest[first:last]`, over the same interval.
    """
    best = math.inf
    j = first
    for k in range(count):
        left = max(pieces[k, START], low)
        right = pieces[k + 1, START] if k + 1 < count else end
        while j + 1 < last and rest[j + 1, START] <= left:
            j += 1
        t = j
        while True:
            stop = right
            if t + 1 < last and rest[t + 1, START] < right:
                stop = rest[t + 1, START]
            a1, m1, c1 = pieces[k, CURVATURE], pieces[k, VERTEX], pieces[k, COST]
            a2, m2, c2 = rest[t, CURVATURE], rest[t, VERTEX], rest[t, COST]
            total = a1 + a2
            x = (a1 * m1 + a2 * m2) / total if total > 0.0 else left
            x = min(max(x, left), stop)
            value = a1 * (x - m1) ** 2 + c1 + a2 * (x - m2) ** 2 + c2
            best = min(best, value)
            if stop >= right:
                break
            left = stop
            t += 1
        j = t
    return best


@njit(cache=True)
def _value_at_zero(rest, first, last):  # type: ignore[no-untyped-def]
    k = last - 1
    while k > first and rest[k, START] > 0.0:
        k -= 1
    return rest[k, CURVATURE] * rest[k, VERTEX] ** 2 + rest[k, COST]


@njit(cache=True)
def chain_counted(  # type: ignore[no-untyped-def]
    y, w, edges, kinds, price, budget, nonnegative, limit, rest, rest_first, rest_bases
):
    """Return the best support with at most `budget` nonzeros whose tilted cost is within `limit`.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    kinds : array of shape (n,), int8
        1 where a nonzero counts, 0 where it does not, -1 where it is not allowed.
    price : float
        Tilt, the cost of every nonzero that counts, above 0.
    budget : int
        Most nonzeros that count.
    nonnegative : bool
        Whether values must not be negative.
    limit : float
        Tilted cost above which states are given up.
    rest, rest_first, rest_bases : array
        Messages of the reversed chain at the same price, as `sweep` keeps them.

    Returns
    -------
    value : float
        Least of tilted cost plus the price of unused nonzeros; infinity when nothing is left.
    on : array of shape (n,), bool
        The support.
    n_states : int
        Pairs of node and count that were looked at.
    """
    n = y.shape[0]
    low, high = domains(y, w, edges, nonnegative)
    n_counts, capacity = 8, 32
    now = np.empty((n_counts, 2 * capacity + 1, 4))
    now_labels = np.empty((n_counts, 2 * capacity + 1), dtype=np.int64)
    sizes = np.zeros(n_counts, dtype=np.int64)
    costs = np.empty((n_counts + 1, 2 * capacity + 1, 4))
    costs_labels = np.empty((n_counts + 1, 2 * capacity + 1), dtype=np.int64)
    costs_sizes = np.zeros(n_counts + 1, dtype=np.int64)
    zeros = np.full(n_counts + 1, math.inf)
    zero_labels = np.zeros(n_counts + 1, dtype=np.int64)
    work = np.empty((4 * capacity + 3, 6))
    # The window of live counts begins at `least`; `before` has a row of it for every node.
    least, width = 0, 1
    now[0, 0, 0], now[0, 0, 1], now[0, 0, 2], now[0, 0, 3] = 0.0, 0.0, 0.0, low[0]
    now_labels[0, 0] = -1
    sizes[0] = 1
    before = np.empty(4 * n + 64, dtype=np.int32)
    starts, leasts = np.zeros(n + 1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    base = 0.0
    n_states = 0
    nothing = np.ones(n, dtype=np.bool_)
    for i in range(n):
        # Room for one more count, and for pieces that an edge may double.
        largest = 0
        for c in range(width):
            largest = max(largest, sizes[c])
        if width + 1 > n_counts or largest > capacity:
            more_counts = n_counts if width + 1 <= n_counts else 2 * n_counts
            more_capacity = capacity
            while more_capacity < largest:
                more_capacity *= 2
            grown = np.empty((more_counts, 2 * more_capacity + 1, 4))
            grown_labels = np.empty((more_counts, 2 * more_capacity + 1), dtype=np.int64)
            grown_sizes = np.zeros(more_counts, dtype=np.int64)
            for c in range(width):
                copy_rows(now[c], 0, sizes[c], grown[c], 0)
                for k in range(sizes[c]):
                    grown_labels[c, k] = now_labels[c, k]
                grown_sizes[c] = sizes[c]
            now, now_labels, sizes = grown, grown_labels, grown_sizes
            n_counts, capacity = more_counts, more_capacity
            costs = np.empty((n_counts + 1, 2 * capacity + 1, 4))
            costs_labels = np.empty((n_counts + 1, 2 * capacity + 1), dtype=np.int64)
            costs_sizes = np.zeros(n_counts + 1, dtype=np.int64)
            zeros = np.full(n_counts + 1, math.inf)
            zero_labels = np.zeros(n_counts + 1, dtype=np.int64)
            work = np.empty((4 * capacity + 3, 6))
        leasts[i] = least
        starts[i + 1] = starts[i] + width
        if starts[i + 1] > before.shape[0]:
            longer = np.empty(2 * before.shape[0] + width, dtype=np.int32)
            for k in range(starts[i]):
                longer[k] = before[k]
            before = longer
        r = n - 1 - i
        begin, stop = rest_first[r], rest_first[r + 1]
        others = rest_bases[r]
        at = _value_at_zero(rest, begin, stop)
        for c in range(width + 1):
            zeros[c] = math.inf
            costs_sizes[c] = 0
        smallest = math.inf
        for c in range(width):
            before[starts[i] + c] = -1
            if sizes[c] == 0:
                continue
            n_states += 1
            k = at_zero(now[c], sizes[c])
            a, m = now[c, k, CURVATURE], now[c, k, VERTEX]
            zero = a * m * m + now[c, k, COST] + w[i] * y[i] ** 2
            before[starts[i] + c] = now_labels[c, k]
            if base + zero + at + others <= limit and zero <= zeros[c]:
                zeros[c] = zero
                zero_labels[c] = i
            if zeros[c] < math.inf:
                smallest = min(smallest, zeros[c])
            kind = kinds[i]
            to = c + kind
            if kind >= 0 and least + to <= budget:
                found = node_step(
                    now[c], now_labels[c], sizes[c], y[i], w[i], price * kind,
                    costs[to], costs_labels[to],
                )  # fmt: skip
                joint = least_joint(costs[to], sizes[c], high[i], rest, begin, stop, low[i])
                if base + joint + others <= limit:
                    costs_sizes[to] = sizes[c]
                    smallest = min(smallest, found)
                    if nonnegative and kind == 1:
                        # Where its argument is cut at zero the state counts without being on.
                        zeros[c + 1] = zero + price
                        zero_labels[c + 1] = n + i
        if smallest == math.inf:
            return math.inf, nothing, n_states
        head = 0
        while zeros[head] == math.inf and costs_sizes[head] == 0:
            head += 1
        tail = width
        while zeros[tail] == math.inf and costs_sizes[tail] == 0:
            tail -= 1
        base += smallest
        if i + 1 < n:
            for c in range(head, tail + 1):
                for k in range(costs_sizes[c]):
                    costs[c, k, COST] -= smallest
                if zeros[c] == math.inf and costs_sizes[c] == 0:
                    sizes[c - head] = 0
                    continue
                sizes[c - head] = envelope_step(
                    costs[c], costs_labels[c], costs_sizes[c], high[i], zeros[c] - smallest,
                    zero_labels[c], edges[i], low[i + 1], high[i + 1],
                    now[c - head], now_labels[c - head], work,
                )  # fmt: skip
            least += head
            width = tail - head + 1
    best, count, last = math.inf, -1, -1
    for c in range(width + 1):
        unused = price * (budget - least - c)
        if unused < 0.0:
            continue
        if zeros[c] - smallest + unused < best:
            best, count, last = zeros[c] - smallest + unused, least + c, zero_labels[c]
        if costs_sizes[c]:
            value, piece = smallest_of(costs[c], costs_sizes[c], high[n - 1])
            value += unused - smallest
            if value < best:
                best, count, last = value, least + c, costs_labels[c, piece]
    if count < 0:
        return math.inf, nothing, n_states
    on = np.ones(n, dtype=np.bool_)
    # How many of the first nodes count.
    counted = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        on[i] = kinds[i] >= 0
        counted[i + 1] = counted[i] + max(kinds[i], 0)
    node = n
    while last >= 0:
        if last >= n:
            last -= n
            count -= 1
        # Every node between two zeros is on.
        count -= counted[node] - counted[last + 1]
        on[last] = False
        node = last
        last = before[starts[node] + count - leasts[node]]
    return base + best, on, n_states
