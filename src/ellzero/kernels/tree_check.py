r"""A check of exact programs on a tree that shares no code with them: message inequalities.

Whatever produced them, functions :math:`P_v` with

.. math:: P_v(x) \le \min\bigl(C_v(x') + \lambda_v (x - x')^2,\ V_v + \lambda_v x^2\bigr)

for all x and x', where :math:`C_v` adds node v and the functions of its children, and
:math:`V_v` is their sum at zero with the fit there, prove the sum of
:math:`\min(\min C_r, V_r)` over roots r.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit  # noqa: TID253

from ellzero.kernels.chain_rules_check import least_difference


@njit(cache=True)
def _plus(one, n_one, two, n_two):  # type: ignore[no-untyped-def]
    """Return the sum of two piecewise quadratics over the same interval."""
    out = np.empty((n_one + n_two, 4))
    i, j, count = 0, 0, 0
    while i < n_one or j < n_two:
        # The piece that begins next is joined with the one of the other that reigns there.
        if j >= n_two or (i < n_one and one[i, 3] < two[j, 3]):
            at = one[i, 3]
            i += 1
        elif i >= n_one or two[j, 3] < one[i, 3]:
            at = two[j, 3]
            j += 1
        else:
            at = one[i, 3]
            i += 1
            j += 1
        p, q = max(i - 1, 0), max(j - 1, 0)
        a, b = one[p, 0], two[q, 0]
        out[count, 0] = a + b
        center = one[p, 1] if b == 0.0 else two[q, 1]
        if a > 0.0 and b > 0.0:
            center = one[p, 1] + b / (a + b) * (two[q, 1] - one[p, 1])
        out[count, 1] = center
        out[count, 2] = one[p, 2] + two[q, 2]
        out[count, 2] += a * (center - one[p, 1]) ** 2 + b * (center - two[q, 1]) ** 2
        out[count, 3] = at
        count += 1
    return out[:count]


@njit(cache=True)
def bound_of_forest(  # type: ignore[no-untyped-def]
    y, w, parent, edges, cost, low, high, rows, first, bases
):
    """Return the lower bound that messages prove, over signals between `low` and `high`.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    parent : array of shape (n,), int64
        Parent of every node, a larger number; -1 for roots.
    edges : array of shape (n,)
        Smoothness weight of the edge to the parent.
    cost : array of shape (n,)
        Cost of every nonzero, at least 0; infinity keeps a node off.
    low, high : array of shape (n,)
        Bounds on the signal, around 0.
    rows : array of shape (n_rows, 4)
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
    Costs the products of the pieces of neighboring messages; the messages of children are added
    in pairs of equal height.
    """
    n = y.shape[0]
    last_child, sibling = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    bound, violation = 0.0, 0.0
    height = np.zeros(70, dtype=np.int64)
    for v in range(n):
        stack = [np.zeros((1, 4))]
        stack[0][0, 3] = low[v]
        size = 1
        height[0] = 0
        below = 0.0
        u = last_child[v]
        while u >= 0:
            below += bases[u]
            stack.append(rows[first[u] : first[u + 1]].copy())
            height[size] = 0
            size += 1
            while size > 2 and height[size - 1] == height[size - 2]:
                two = stack.pop()
                one = stack.pop()
                stack.append(_plus(one, one.shape[0], two, two.shape[0]))
                size -= 1
                height[size - 1] += 1
            u = sibling[u]
        while size > 1:
            two = stack.pop()
            one = stack.pop()
            stack.append(_plus(one, one.shape[0], two, two.shape[0]))
            size -= 1
        sums = stack[0]
        count = sums.shape[0]
        p = parent[v]
        edge = edges[v] if p >= 0 else 0.0
        base, to_low, to_high = 0.0, 0.0, 0.0
        if p >= 0:
            sibling[v] = last_child[p]
            last_child[p] = v
            base, to_low, to_high = bases[v] - below, low[p], high[p]
        least, worst = math.inf, 0.0
        for k in range(count):
            left = max(sums[k, 3], low[v])
            right = sums[k + 1, 3] if k + 1 < count else high[v]
            if right < left:
                continue
            a, m, c = sums[k, 0], sums[k, 1], sums[k, 2]
            if left <= 0.0 <= right:
                # At zero: the edge is all that a parent adds.
                zero = a * m * m + c + w[v] * y[v] ** 2
                least = min(least, zero)
                if p >= 0:
                    worst = min(
                        worst,
                        least_difference(
                            rows, first[v], first[v + 1], base, to_low, to_high, 0.0, 0.0, zero,
                            0.0, 0.0, edge,
                        ),
                    )  # fmt: skip
            if cost[v] == math.inf:
                continue
            total = a + w[v]
            if total > 0.0:
                c += a * w[v] / total * (m - y[v]) ** 2
                m = (a * m + w[v] * y[v]) / total
            c += cost[v]
            x = min(max(m, left), right)
            least = min(least, total * (x - m) ** 2 + c)
            if p >= 0:
                worst = min(
                    worst,
                    least_difference(
                        rows, first[v], first[v + 1], base, to_low, to_high, total, m, c, left,
                        right, edge,
                    ),
                )  # fmt: skip
        violation += -worst
        if p < 0:
            bound += least + below
    return bound - violation, violation
