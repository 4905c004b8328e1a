r"""Exact l0 programs on a tree: the messages of the chain, added where branches meet.

.. math:: \min_x \sum_v w_v (x_v - y_v)^2 + \sum_{v} \lambda_v (x_v - x_{\pi(v)})^2
    + \sum_v \mu_v 1[x_v \ne 0]

with the parent :math:`\pi(v)` of every node but the roots. Nodes are numbered so that a parent
comes after its children. The messages of many children are added in pairs, so that a hub costs
its pieces times the logarithm of its degree.
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
    envelope_step,
    grown,
    node_step,
    smallest_of,
)


@njit(cache=True)
def solve_forest(y, w, parent, edges, on):  # type: ignore[no-untyped-def]
    """Return the minimizer of the smooth part over the nodes that are on, zero elsewhere.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    parent : array of shape (n,), int64
        Parent of every node, a larger number; -1 for roots.
    edges : array of shape (n,)
        Smoothness weight of the edge to the parent; of no meaning for roots.
    on : array of shape (n,), bool
        Nodes that may differ from zero.

    Returns
    -------
    array of shape (n,)
        The minimizer; zero on parts without any weight or zero neighbor.
    """
    n = y.shape[0]
    # What a node weighs besides its edge upward, and the pull on it: no cancellation.
    weight, pull = w.copy(), w * y
    for v in range(n):
        p = parent[v]
        if p < 0:
            continue
        if on[v] and on[p]:
            total = weight[v] + edges[v]
            if total > 0.0:
                weight[p] += weight[v] * edges[v] / total
                pull[p] += pull[v] * edges[v] / total
        elif on[v]:
            weight[v] += edges[v]
        elif on[p]:
            weight[p] += edges[v]
    x = np.zeros(n)
    for v in range(n - 1, -1, -1):
        if not on[v]:
            continue
        p = parent[v]
        if p >= 0 and on[p]:
            total = weight[v] + edges[v]
            if total > 0.0:
                x[v] = (pull[v] + edges[v] * x[p]) / total
        elif weight[v] > 0.0:
            x[v] = pull[v] / weight[v]
    return x


@njit(cache=True)
def forest_domains(y, w, parent, edges, nonnegative):  # type: ignore[no-untyped-def]
    """Return the bounds between which every candidate lies, by monotonicity."""
    n = y.shape[0]
    every = np.ones(n, dtype=np.bool_)
    part = np.empty(n)
    for v in range(n):
        part[v] = max(y[v], 0.0)
    high = solve_forest(part, w, parent, edges, every)
    low = np.zeros(n)
    if not nonnegative:
        for v in range(n):
            part[v] = min(y[v], 0.0)
        low = solve_forest(part, w, parent, edges, every)
    return low, high


@njit(cache=True)
def children_of(parent):  # type: ignore[no-untyped-def]
    """Return where the children of every node begin, and all children in that order."""
    n = parent.shape[0]
    degree = np.zeros(n + 1, dtype=np.int64)
    for v in range(n):
        if parent[v] >= 0:
            degree[parent[v] + 1] += 1
    child_first = np.cumsum(degree)
    filled = child_first[:n].copy()
    children = np.empty(n, dtype=np.int64)
    for v in range(n):
        if parent[v] >= 0:
            children[filled[parent[v]]] = v
            filled[parent[v]] += 1
    return child_first, children


@njit(cache=True)
def forest_leverages(w, parent, edges, on):  # type: ignore[no-untyped-def]
    """Return how much every node that is on follows its own data; zero elsewhere.

    Parameters
    ----------
    w : array of shape (n,)
        Weights.
    parent : array of shape (n,), int64
        Parent of every node, a larger number; -1 for roots.
    edges : array of shape (n,)
        Smoothness weight of the edge to the parent; of no meaning for roots.
    on : array of shape (n,), bool
        Nodes that may differ from zero.

    Returns
    -------
    array of shape (n,)
        Diagonal of the inverse of the system over the support, times the weights.
    """
    n = w.shape[0]
    below = w.copy()
    for v in range(n):
        p = parent[v]
        if p < 0:
            continue
        if on[v] and on[p]:
            total = below[v] + edges[v]
            if total > 0.0:
                below[p] += below[v] * edges[v] / total
        elif on[v]:
            below[v] += edges[v]
        elif on[p]:
            below[p] += edges[v]
    spread, out = np.zeros(n), np.zeros(n)
    for v in range(n - 1, -1, -1):
        if not on[v]:
            continue
        p = parent[v]
        total = below[v] + (edges[v] if p >= 0 and on[p] else 0.0)
        if total > 0.0:
            spread[v] = 1.0 / total
            if p >= 0 and on[p]:
                spread[v] += (edges[v] / total) ** 2 * spread[p]
        out[v] = w[v] * spread[v]
    return out


@njit(cache=True)
def forest_objective(x, y, w, parent, edges, cost):  # type: ignore[no-untyped-def]
    """Return the objective at a point, with the cost of every nonzero."""
    total = 0.0
    for v in range(x.shape[0]):
        total += w[v] * (x[v] - y[v]) ** 2
        if x[v] != 0.0:
            total += cost[v]
        if parent[v] >= 0:
            total += edges[v] * (x[v] - x[parent[v]]) ** 2
    return total


@njit(cache=True)
def _add(sums, i, middle, stop, out, count):  # type: ignore[no-untyped-def]
    """Add two piecewise quadratics over the same interval, which lie one after the other.

    They are rows `i` to `middle` and `middle` to `stop` of `sums`; the sum is written to `out`
    from row `count` on. Returns the row after it.
    """
    j = middle
    start = sums[i, START]
    while True:
        a1, m1, c1 = sums[i, CURVATURE], sums[i, VERTEX], sums[i, COST]
        a2, m2, c2 = sums[j, CURVATURE], sums[j, VERTEX], sums[j, COST]
        total = a1 + a2
        out[count, CURVATURE] = total
        if total > 0.0:
            out[count, VERTEX] = (a1 * m1 + a2 * m2) / total
            out[count, COST] = c1 + c2 + a1 * a2 / total * (m1 - m2) ** 2
        else:
            out[count, VERTEX] = 0.0
            out[count, COST] = c1 + c2
        out[count, START] = start
        count += 1
        next_one = sums[i + 1, START] if i + 1 < middle else math.inf
        next_two = sums[j + 1, START] if j + 1 < stop else math.inf
        start = min(next_one, next_two)
        if start == math.inf:
            return count
        if next_one == start:
            i += 1
        if next_two == start:
            j += 1


@njit(cache=True)
def tree_l0(y, w, parent, edges, cost, nonnegative):  # type: ignore[no-untyped-def]
    """Solve the penalized program on a forest.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data, and weights of at least 0.
    parent : array of shape (n,), int64
        Parent of every node, a larger number; -1 for roots.
    edges : array of shape (n,)
        Smoothness weight of the edge to the parent, at least 0.
    cost : array of shape (n,)
        Cost of every nonzero; minus infinity makes a node free of cost, infinity keeps it off.
    nonnegative : bool
        Whether values must not be negative.

    Returns
    -------
    value : float
        The optimal value as the program has it.
    on : array of shape (n,), bool
        An optimal support.
    n_pieces, most : int
        Pieces of all messages together, and of the largest sum of messages.
    message : array of shape (n_rows, 4)
        The message of every node to its parent, one after the other.
    first : array of shape (n + 1,), int64
        Where the message of every node begins.
    bases : array of shape (n,)
        What has been taken out of the costs of every message.

    Notes
    -----
    Memory and time proportional to the pieces of all messages.
    """
    n = y.shape[0]
    low, high = forest_domains(y, w, parent, edges, nonnegative)
    child_first, children = children_of(parent)
    # The message of every node to its parent, and what makes each piece: curvature and vertex
    # at the node, and whether the node is zero.
    message = np.empty((4 * n + 64, 4))
    origin = np.empty((4 * n + 64, 2))
    is_zero = np.empty(4 * n + 64, dtype=np.bool_)
    first = np.zeros(n + 1, dtype=np.int64)
    bases = np.zeros(n)
    root_zero = np.zeros(n, dtype=np.bool_)
    root_at = np.zeros(n)
    capacity = 64
    sums, spare = np.empty((capacity, 4)), np.empty((capacity, 4))
    labels = np.empty(capacity, dtype=np.int64)
    out = np.empty((2 * capacity + 1, 4))
    out_labels = np.empty(2 * capacity + 1, dtype=np.int64)
    work = np.empty((2 * capacity + 1, 6))
    value = 0.0
    n_pieces, most = 0, 0
    for v in range(n):
        begin, stop = child_first[v], child_first[v + 1]
        number = 1
        base = 0.0
        for t in range(begin, stop):
            number += first[children[t] + 1] - first[children[t]]
            base += bases[children[t]]
        if number > capacity:
            while capacity < number:
                capacity *= 2
            sums, spare = np.empty((capacity, 4)), np.empty((capacity, 4))
            labels = np.empty(capacity, dtype=np.int64)
            out = np.empty((2 * capacity + 1, 4))
            out_labels = np.empty(2 * capacity + 1, dtype=np.int64)
            work = np.empty((2 * capacity + 1, 6))
        # The messages one after the other, then added in pairs until one is left.
        parts = stop - begin
        bounds = np.zeros(parts + 1, dtype=np.int64)
        for t in range(parts):
            u = children[begin + t]
            size = first[u + 1] - first[u]
            copy_rows(message, first[u], first[u + 1], sums, bounds[t])
            bounds[t + 1] = bounds[t] + size
        while parts > 1:
            place = 0
            kept = 0
            for t in range(0, parts, 2):
                start = place
                if t + 1 < parts:
                    place = _add(sums, bounds[t], bounds[t + 1], bounds[t + 2], spare, place)
                else:
                    copy_rows(sums, bounds[t], bounds[t + 1], spare, place)
                    place += bounds[t + 1] - bounds[t]
                bounds[kept] = start
                kept += 1
            bounds[kept] = place
            parts = kept
            sums, spare = spare, sums
        if parts == 1:
            count = bounds[1]
        else:
            sums[0, CURVATURE], sums[0, VERTEX], sums[0, COST] = 0.0, 0.0, 0.0
            sums[0, START] = low[v]
            count = 1
        k = at_zero(sums, count)
        zero = sums[k, CURVATURE] * sums[k, VERTEX] ** 2 + sums[k, COST] + w[v] * y[v] ** 2
        never = cost[v] == math.inf
        price = 0.0 if math.isinf(cost[v]) else cost[v]
        if price < 0.0:
            zero += price
        number = 0 if never else count
        for k in range(number):
            labels[k] = k
        smallest = node_step(sums, labels, number, y[v], w[v], price, sums, labels)
        smallest = min(smallest, zero)
        base += smallest
        zero -= smallest
        for k in range(number):
            sums[k, COST] -= smallest
        n_pieces += number
        most = max(most, number)
        bases[v] = base
        first[v + 1] = first[v]
        p = parent[v]
        if p < 0:
            best, k = smallest_of(sums, number, high[v])
            root_zero[v] = zero <= best
            if not root_zero[v]:
                right = sums[k + 1, START] if k + 1 < number else high[v]
                root_at[v] = min(max(sums[k, VERTEX], sums[k, START]), right)
            value += base + min(best, zero)
            continue
        # The step may move the start of a piece to zero; curvature and vertex stay.
        count = envelope_step(
            sums, labels, number, high[v], zero, -1, edges[v], low[p], high[p],
            out, out_labels, work,
        )  # fmt: skip
        if first[v] + count > message.shape[0]:
            room = 2 * message.shape[0] + count
            message, origin = grown(message, first[v], room), grown(origin, first[v], room)
            flags = np.empty(room, dtype=np.bool_)
            for k in range(first[v]):
                flags[k] = is_zero[k]
            is_zero = flags
        copy_rows(out, 0, count, message, first[v])
        for k in range(count):
            place = first[v] + k
            label = out_labels[k]
            is_zero[place] = label < 0
            if label >= 0:
                origin[place, 0] = sums[label, CURVATURE]
                origin[place, 1] = sums[label, VERTEX]
                if edges[v] == 0.0:
                    # Nothing is carried over: the node sits at the least of its own cost.
                    right = sums[label + 1, START] if label + 1 < number else high[v]
                    origin[place, 0] = 1.0
                    origin[place, 1] = min(max(sums[label, VERTEX], sums[label, START]), right)
            else:
                origin[place, 0] = origin[place, 1] = 0.0
        first[v + 1] += count
    on = np.zeros(n, dtype=np.bool_)
    at = np.zeros(n)
    for v in range(n - 1, -1, -1):
        p = parent[v]
        if p < 0:
            on[v], at[v] = not root_zero[v], root_at[v]
            continue
        k = first[v + 1] - 1
        while k > first[v] and message[k, START] > at[p]:
            k -= 1
        on[v] = not is_zero[k]
        if on[v]:
            a, m = origin[k, 0], origin[k, 1]
            total = a + edges[v]
            x = (a * m + edges[v] * at[p]) / total if total > 0.0 else m
            at[v] = min(max(x, low[v]), high[v])
    return value, on, n_pieces, most, message[: first[n]], first, bases
