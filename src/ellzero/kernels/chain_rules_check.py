"""Checks of programs on a chain under rules that share no code with them.

Two ways to a lower bound, as in `kernels.chain_check`: every run by its first and last node,
without pruning; and the message inequalities of every state of the automaton.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit  # noqa: TID253

from ellzero.kernels.chain_check import lowest


@njit(cache=True)
def _nonnegative_run(y, w, edges, start, stop, last):  # type: ignore[no-untyped-def]
    """Return the least cost of nodes `start` to `stop`, at least zero, between two zeros.

    Nodes enter where the slope at zero is negative and never leave, for more of them raise the
    others; `last` is whether the chain ends after them.
    """
    m = stop - start
    inside = np.zeros(m, dtype=np.bool_)
    x = np.zeros(m)
    factor = np.zeros(m)
    while True:
        entered = False
        for j in range(m):
            if inside[j]:
                continue
            i = start + j
            pull = w[i] * y[i]
            if j > 0:
                pull += edges[i - 1] * x[j - 1]
            if j + 1 < m:
                pull += edges[i] * x[j + 1]
            if pull > 0.0:
                inside[j] = True
                entered = True
        if not entered:
            break
        # Elimination on the nodes inside; the others are zero.
        for j in range(m):
            i = start + j
            x[j], factor[j] = 0.0, 0.0
            if not inside[j]:
                continue
            pivot = w[i]
            if i > 0:
                pivot += edges[i - 1]
            if i + 1 < y.shape[0]:
                pivot += edges[i]
            right = w[i] * y[i]
            if j > 0 and inside[j - 1]:
                pivot -= edges[i - 1] * factor[j - 1]
                right += edges[i - 1] * x[j - 1]
            if pivot > 0.0:
                x[j] = right / pivot
                factor[j] = (edges[i] if i + 1 < y.shape[0] else 0.0) / pivot
        for j in range(m - 2, -1, -1):
            if inside[j] and inside[j + 1]:
                x[j] += factor[j] * x[j + 1]
    total = 0.0
    for j in range(m):
        i = start + j
        total += w[i] * (x[j] - y[i]) ** 2
        if i > 0:
            before = x[j - 1] if j > 0 else 0.0
            total += edges[i - 1] * (x[j] - before) ** 2
    if not last:
        total += edges[stop - 1] * x[m - 1] ** 2
    return total


@njit(cache=True)
def best_by_runs(  # type: ignore[no-untyped-def]
    y, w, edges, kinds, price, bump, budget, most_bumps, length, distance, nonnegative
):
    """Return the optimal value under rules, by the first and last node of every run.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    kinds : array of shape (n,), int8
        1 where a node that is on costs and counts, 0 where it is on, -1 where it is off.
    price, bump : float
        Cost of a node that is on and counts, and of a run.
    budget, most_bumps : int
        Most nodes that count and most runs; -1 for no limit.
    length, distance : int
        Fewest nodes of a run, and fewest zeros between two.
    nonnegative : bool
        Whether values must not be negative.

    Returns
    -------
    float
        The optimal value; infinity where no support keeps to the rules.

    Notes
    -----
    Costs n^2 / 2 runs times the pairs of counts; a nonnegative run costs its nodes a few times.
    """
    n = y.shape[0]
    C, R = max(budget, 0) + 1, max(most_bumps, 0) + 1
    # May begin: cost of the first i nodes when a run may begin at node i; ended: when node i - 1
    # is the last of a run, with its edge to a zero.
    begin, ended = np.full((n + 1, C, R), math.inf), np.full((n + 1, C, R), math.inf)
    begin[0, 0, 0] = 0.0
    for start in range(n + 1):
        if start > 0 and kinds[start - 1] != 0:
            fit = w[start - 1] * y[start - 1] ** 2
            for c in range(C):
                for r in range(R):
                    begin[start, c, r] = min(begin[start, c, r], begin[start - 1, c, r] + fit)
        fits, free = 0.0, start >= distance
        for d in range(min(distance, start)):
            free = free and kinds[start - 1 - d] != 0
            fits += w[start - 1 - d] * y[start - 1 - d] ** 2
        if free:
            for c in range(C):
                for r in range(R):
                    value = ended[start - distance, c, r] + fits
                    begin[start, c, r] = min(begin[start, c, r], value)
        if start == n or begin[start].min() == math.inf:
            continue
        a = edges[start - 1] if start > 0 else 0.0
        m, value, count = 0.0, 0.0, 0
        for i in range(start, n):
            if kinds[i] < 0:
                break
            total = a + w[i]
            if total > 0.0:
                value += a * w[i] / total * (m - y[i]) ** 2
                m = (a * m + w[i] * y[i]) / total
            a = total
            count += kinds[i]
            edge = edges[i] if i + 1 < n else 0.0
            after = a * edge / (a + edge) if a + edge > 0.0 else 0.0
            if i + 1 - start >= length:
                cost = value + after * m * m
                if nonnegative:
                    cost = _nonnegative_run(y, w, edges, start, i + 1, i + 1 == n)
                cost += price * count + bump
                dc = count if budget >= 0 else 0
                dr = 1 if most_bumps >= 0 else 0
                for c in range(C - dc):
                    for r in range(R - dr):
                        new = begin[start, c, r] + cost
                        ended[i + 1, c + dc, r + dr] = min(ended[i + 1, c + dc, r + dr], new)
            a = after
    best = min(begin[n].min(), ended[n].min())
    fits, free = 0.0, True
    for d in range(1, min(distance, n + 1)):
        free = free and kinds[n - d] != 0
        fits += w[n - d] * y[n - d] ** 2
        if free:
            best = min(best, ended[n - d].min() + fits)
    return best


@njit(cache=True)
def least_difference(kept, begin, stop, base, low, high, a, m, c, left, right, edge):  # type: ignore[no-untyped-def]
    """Return the least of a piece carried over an edge minus a message; negative if violated.

    The piece is a (x' - m)^2 + c over [left, right]; the message is rows `begin` to `stop`.
    """
    if begin == stop:
        return -math.inf
    worst = 0.0
    at_left, at_right = a * (left - m) ** 2 + c, a * (right - m) ** 2 + c
    after = a * edge / (a + edge) if a + edge > 0.0 else 0.0
    if edge > 0.0:
        # Where the best argument is inside the piece, and where it is at an end.
        inner_low = ((a + edge) * left - a * m) / edge
        inner_high = ((a + edge) * right - a * m) / edge
    else:
        inner_low, inner_high = -math.inf, math.inf
        x = min(max(m, left), right)
        m, c = x, a * (x - m) ** 2 + c
    for t in range(begin, stop):
        b, k, d = kept[t, 0], kept[t, 1], kept[t, 2] + base
        s = max(kept[t, 3], low)
        e = kept[t + 1, 3] if t + 1 < stop else high
        worst = min(worst, lowest(edge, left, at_left, b, k, d, s, min(e, inner_low)))
        worst = min(worst, lowest(after, m, c, b, k, d, max(s, inner_low), min(e, inner_high)))
        worst = min(worst, lowest(edge, right, at_right, b, k, d, max(s, inner_high), e))
    return worst


@njit(cache=True)
def bound_of_rules(  # type: ignore[no-untyped-def]
    y, w, edges, kinds, price, bump, length, distance, low, high, kept, first, bases
):
    """Return the lower bound that messages prove under rules, over signals in an interval.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    kinds : array of shape (n,), int8
        1 where a node that is on costs, 0 where it is on, -1 where it is off.
    price, bump : float
        Cost of a node that is on and counts, and of a run.
    length, distance : int
        Fewest nodes of a run, and fewest zeros between two.
    low, high : array of shape (n,)
        Bounds on the signal, around 0.
    kept : array of shape (n_pieces, 4)
        Pieces of the messages of every state that is on.
    first : array of shape (n * length + 1,), int64
        Where the message of every node and state begins.
    bases : array of shape (n,)
        Added to the messages of every node.

    Returns
    -------
    bound : float
        What is proven: every violation of an inequality is taken off.
    violation : float
        Sum of what was taken off.
    """
    n = y.shape[0]
    violation = 0.0
    if first[1] > first[0]:
        for k in range(first[0], first[1]):
            end = kept[k + 1, 3] if k + 1 < first[1] else high[0]
            s, d = max(kept[k, 3], low[0]), kept[k, 2] + bases[0]
            worst = lowest(0.0, 0.0, bump, kept[k, 0], kept[k, 1], d, s, end)
            violation = max(violation, -worst)
    else:
        violation = math.inf
    zeros, before = np.full(distance, math.inf), np.full(distance, math.inf)
    before[distance - 1] = 0.0
    # Least cost with a run that has just ended and the next node at zero.
    gone = math.inf
    bound = math.inf
    for i in range(n):
        edge = edges[i] if i + 1 < n else 0.0
        fit = w[i] * y[i] ** 2
        for d in range(distance):
            value = gone if d == 0 else before[d - 1]
            if d == distance - 1:
                value = min(value, before[d])
            zeros[d] = value + fit if kinds[i] != 0 else math.inf
        gone, worst = math.inf, 0.0
        if i + 1 < n and zeros[distance - 1] < math.inf:
            to = (i + 1) * length
            worst = least_difference(
                kept, first[to], first[to + 1], bases[i + 1], low[i + 1], high[i + 1],
                0.0, 0.0, zeros[distance - 1] + bump, 0.0, 0.0, edge,
            )  # fmt: skip
        for a in range(length):
            here = i * length + a
            if kinds[i] < 0:
                continue
            to = (i + 1) * length + min(a + 1, length - 1)
            for k in range(first[here], first[here + 1]):
                left = max(kept[k, 3], low[i])
                right = kept[k + 1, 3] if k + 1 < first[here + 1] else high[i]
                if right < left:
                    continue
                q, m, c = kept[k, 0], kept[k, 1], kept[k, 2] + bases[i]
                total = q + w[i]
                if total > 0.0:
                    c += q * w[i] / total * (m - y[i]) ** 2
                    m = (q * m + w[i] * y[i]) / total
                q = total
                c += price * kinds[i]
                if a == length - 1:
                    x = q * m / (q + edge) if q + edge > 0.0 else m
                    x = min(max(x, left), right)
                    gone = min(gone, q * (x - m) ** 2 + c + edge * x * x)
                if i + 1 < n:
                    worst = min(
                        worst,
                        least_difference(
                            kept, first[to], first[to + 1], bases[i + 1], low[i + 1],
                            high[i + 1], q, m, c, left, right, edge,
                        ),
                    )  # fmt: skip
        violation += -worst
        for d in range(distance):
            before[d] = zeros[d]
    bound = min(gone, before.min())
    return bound - violation, violation
