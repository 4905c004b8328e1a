r"""Checks of exact programs on a chain that share no code with them.

Two ways to a lower bound: every support by the position of its zeros, without pruning (n^2 runs);
and messages as a dual solution, whatever produced them: functions :math:`P_i` with

.. math:: P_{i+1}(x) \le
    \min\bigl(C_i(x') + \lambda_i (x - x')^2,\ V_i + \kappa + \lambda_i x^2\bigr)

for all x and x', where :math:`C_i` adds node i, :math:`V_i` is the smaller of
:math:`P_i(0)` and :math:`V_{i-1}` plus the fit at zero, and :math:`\kappa` is the cost of a run,
prove :math:`\min(\min C_n, V_n)`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit  # noqa: TID253


@njit(cache=True)
def best_by_zeros(y, w, edges, cost, bump):  # type: ignore[no-untyped-def]
    """Return the optimal value of the free-sign penalized form, by the last zero of every prefix.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    cost : array of shape (n,)
        Cost of every nonzero; infinity keeps a node off.
    bump : float
        Cost of every run of nonzeros.

    Returns
    -------
    float
        The optimal value.

    Notes
    -----
    Costs n^2 / 2 updates of a quadratic.
    """
    n = y.shape[0]
    # best[i]: least cost of the first i nodes when node i (from 0) is zero, its own fit left out.
    best = np.full(n + 1, math.inf)
    best[0] = 0.0
    for start in range(n + 1):
        # Nodes start, start + 1, ... are on, after a zero at start - 1.
        paid = 0.0 if start == 0 else best[start - 1] + w[start - 1] * y[start - 1] ** 2
        if start > 0:
            best[start] = min(best[start], paid)
        if paid == math.inf:
            continue
        a = edges[start - 1] if 0 < start < n else 0.0
        m, c = 0.0, paid + bump
        for i in range(start, n):
            if cost[i] == math.inf:
                break
            total = a + w[i]
            if total > 0.0:
                c += a * w[i] / total * (m - y[i]) ** 2
                m = (a * m + w[i] * y[i]) / total
            a = total
            c += cost[i]
            if i + 1 == n:
                best[n] = min(best[n], c)
                break
            edge = edges[i]
            after = a * edge / (a + edge) if a + edge > 0.0 else 0.0
            best[i + 1] = min(best[i + 1], c + after * m * m)
            a = after
    return best[n]


@njit(cache=True)
def best_by_counts(y, w, edges, budget):  # type: ignore[no-untyped-def]
    """Return the optimal value of the free-sign budgeted form, by last zero and count.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    budget : int
        Most nonzeros.

    Returns
    -------
    float
        The optimal value.

    Notes
    -----
    Costs n * min(n, budget)^2 operations or fewer.
    """
    n = y.shape[0]
    best = np.full((n + 1, budget + 1), math.inf)
    best[0, 0] = 0.0
    for start in range(n + 1):
        if start > 0:
            fit = w[start - 1] * y[start - 1] ** 2
            for c in range(budget + 1):
                best[start, c] = min(best[start, c], best[start - 1, c] + fit)
        a = edges[start - 1] if 0 < start < n else 0.0
        m, value = 0.0, 0.0
        for i in range(start, n):
            length = i - start + 1
            if length > budget:
                break
            total = a + w[i]
            if total > 0.0:
                value += a * w[i] / total * (m - y[i]) ** 2
                m = (a * m + w[i] * y[i]) / total
            a = total
            after = 0.0
            if i + 1 < n and a + edges[i] > 0.0:
                after = a * edges[i] / (a + edges[i])
            run = value + after * m * m
            for c in range(budget + 1 - length):
                if start == 0:
                    paid = 0.0 if c == 0 else math.inf
                else:
                    paid = best[start - 1, c] + w[start - 1] * y[start - 1] ** 2
                best[i + 1, c + length] = min(best[i + 1, c + length], paid + run)
            a = after
    return best[n].min()


@njit(cache=True)
def lowest(a, m, c, b, k, d, low, high):  # type: ignore[no-untyped-def]
    """Return min over [low, high] of (a (x - m)^2 + c) - (b (x - k)^2 + d)."""
    if high < low:
        return math.inf
    one = a * (low - m) ** 2 + c - b * (low - k) ** 2 - d
    two = a * (high - m) ** 2 + c - b * (high - k) ** 2 - d
    out = min(one, two)
    if a > b:
        x = (a * m - b * k) / (a - b)
        if low < x < high:
            out = min(out, a * (x - m) ** 2 + c - b * (x - k) ** 2 - d)
    return out


@njit(cache=True)
def bound_of_messages(  # type: ignore[no-untyped-def]
    y, w, edges, cost, bump, low, high, kept, first, bases
):
    """Return the lower bound that messages prove, over signals between `low` and `high`.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    cost : array of shape (n,)
        Cost of every nonzero, at least 0; infinity keeps a node off.
    bump : float
        Cost of every run of nonzeros.
    low, high : array of shape (n,)
        Bounds on the signal, around 0.
    kept : array of shape (n_pieces, 4)
        Pieces of the messages: curvature, vertex, cost, left end.
    first : array of shape (n + 1,), int64
        Where the message of every node begins.
    bases : array of shape (n,)
        Added to every message.

    Returns
    -------
    bound : float
        What is proven: every violation of an inequality is taken off.
    violation : float
        Sum of what was taken off.

    Notes
    -----
    Costs the products of the pieces of neighboring messages.
    """
    n = y.shape[0]
    violation = 0.0
    # The first message must not be above the cost of a run.
    for k in range(first[0], first[1]):
        end = kept[k + 1, 3] if k + 1 < first[1] else high[0]
        start = max(kept[k, 3], low[0])
        worst = lowest(0.0, 0.0, bump, kept[k, 0], kept[k, 1], kept[k, 2] + bases[0], start, end)
        violation = max(violation, -worst)
    bound, zero = math.inf, 0.0
    for i in range(n):
        one, two = first[i], first[i + 1]
        zero_fit = w[i] * y[i] ** 2
        # The zero state: the message at zero, or the node before at zero as well.
        for k in range(one, two):
            end = kept[k + 1, 3] if k + 1 < two else high[i]
            if max(kept[k, 3], low[i]) <= 0.0 <= end:
                zero = min(zero, kept[k, 0] * kept[k, 1] ** 2 + kept[k, 2] + bases[i])
        zero += zero_fit
        if i + 1 < n:
            edge = edges[i]
            worst = 0.0
            begin, stop = first[i + 1], first[i + 2]
            for t in range(begin, stop):
                b, k2, d = kept[t, 0], kept[t, 1], kept[t, 2] + bases[i + 1]
                s = max(kept[t, 3], low[i + 1])
                e = kept[t + 1, 3] if t + 1 < stop else high[i + 1]
                worst = min(worst, lowest(edge, 0.0, zero + bump, b, k2, d, s, e))
        else:
            bound = min(bound, zero)
        if cost[i] == math.inf:
            if i + 1 < n:
                violation += -worst
            continue
        for k in range(one, two):
            left = max(kept[k, 3], low[i])
            right = kept[k + 1, 3] if k + 1 < two else high[i]
            if right < left:
                continue
            a, m, c = kept[k, 0], kept[k, 1], kept[k, 2] + bases[i]
            total = a + w[i]
            if total > 0.0:
                c += a * w[i] / total * (m - y[i]) ** 2
                m = (a * m + w[i] * y[i]) / total
            a = total
            c += cost[i]
            at_left, at_right = a * (left - m) ** 2 + c, a * (right - m) ** 2 + c
            if i + 1 == n:
                x = min(max(m, left), right)
                bound = min(bound, a * (x - m) ** 2 + c)
                continue
            # Where the best argument is inside the piece, and where it is at an end.
            after = a * edge / (a + edge) if a + edge > 0.0 else 0.0
            if edge > 0.0:
                inner_low = ((a + edge) * left - a * m) / edge
                inner_high = ((a + edge) * right - a * m) / edge
            else:
                inner_low, inner_high = -math.inf, math.inf
                x = min(max(m, left), right)
                m, c = x, a * (x - m) ** 2 + c
            for t in range(begin, stop):
                b, k2, d = kept[t, 0], kept[t, 1], kept[t, 2] + bases[i + 1]
                s = max(kept[t, 3], low[i + 1])
                e = kept[t + 1, 3] if t + 1 < stop else high[i + 1]
                worst = min(worst, lowest(edge, left, at_left, b, k2, d, s, min(e, inner_low)))
                worst = min(
                    worst,
                    lowest(after, m, c, b, k2, d, max(s, inner_low), min(e, inner_high)),
                )
                worst = min(
                    worst,
                    lowest(edge, right, at_right, b, k2, d, max(s, inner_high), e),
                )
        if i + 1 < n:
            violation += -worst
    return bound - violation, violation
