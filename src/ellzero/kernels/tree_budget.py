r"""The count-indexed program on a tree: at most `budget` nonzeros, exactly.

Costs are tilted by `price` for every nonzero. The message of a subtree with c nonzeros is a
minimum of quadratics, as in `kernels.tree`; those of children are combined over all splits of c,
two groups of children at a time. Where the penalized program has the message U, everything
outside the subtree costs at least its optimal value less U(x). So a count is given up when its
message is above U by more than `slack` everywhere; what is left is short.
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
    copy_rows,
    envelope_step,
    grown,
    grown_labels,
    node_step,
)
from ellzero.kernels.chain_rules import lower_of
from ellzero.kernels.tree import children_of, forest_domains


@njit(cache=True)
def _value(rows, first, last, x):  # type: ignore[no-untyped-def]
    """Return a piecewise quadratic at a point."""
    k = last - 1
    while k > first and rows[k, START] > x:
        k -= 1
    return rows[k, CURVATURE] * (x - rows[k, VERTEX]) ** 2 + rows[k, COST]


@njit(cache=True)
def _sum(one, i, i_stop, two, j, j_stop, out):  # type: ignore[no-untyped-def]
    """Write the sum of two piecewise quadratics over one interval; return its pieces."""
    count = 0
    start = one[i, START]
    while True:
        a1, m1, c1 = one[i, CURVATURE], one[i, VERTEX], one[i, COST]
        a2, m2, c2 = two[j, CURVATURE], two[j, VERTEX], two[j, COST]
        total = a1 + a2
        out[count, CURVATURE], out[count, START] = total, start
        if total > 0.0:
            out[count, VERTEX] = (a1 * m1 + a2 * m2) / total
            out[count, COST] = c1 + c2 + a1 * a2 / total * (m1 - m2) ** 2
        else:
            out[count, VERTEX] = 0.0
            out[count, COST] = c1 + c2
        count += 1
        next_one = one[i + 1, START] if i + 1 < i_stop else math.inf
        next_two = two[j + 1, START] if j + 1 < j_stop else math.inf
        start = min(next_one, next_two)
        if start == math.inf:
            return count
        if next_one == start:
            i += 1
        if next_two == start:
            j += 1


@njit(cache=True)
def _excess(one, i, i_stop, two, j, j_stop, end):  # type: ignore[no-untyped-def]
    """Return the least difference of two piecewise quadratics over one interval."""
    best = math.inf
    left = one[i, START]
    while True:
        next_one = one[i + 1, START] if i + 1 < i_stop else end
        next_two = two[j + 1, START] if j + 1 < j_stop else end
        right = min(next_one, next_two)
        a1, m1, c1 = one[i, CURVATURE], one[i, VERTEX], one[i, COST]
        a2, m2, c2 = two[j, CURVATURE], two[j, VERTEX], two[j, COST]
        best = min(best, a1 * (left - m1) ** 2 + c1 - a2 * (left - m2) ** 2 - c2)
        best = min(best, a1 * (right - m1) ** 2 + c1 - a2 * (right - m2) ** 2 - c2)
        if a1 > a2:
            x = (a1 * m1 - a2 * m2) / (a1 - a2)
            if left < x < right:
                best = min(best, a1 * (x - m1) ** 2 + c1 - a2 * (x - m2) ** 2 - c2)
        if i + 1 >= i_stop and j + 1 >= j_stop:
            return best
        if i + 1 < i_stop and next_one == right:
            i += 1
        elif j + 1 < j_stop:
            j += 1
        else:
            i += 1
        left = right


@njit(cache=True)
def _split(  # type: ignore[no-untyped-def]
    total, x, kids, rows, first, node_first, leasts, widths, u_rows, u_first, slack, counts
):
    """Write the counts of children whose messages at x add up to the least, for a total count."""
    d = kids.shape[0]
    # Groups of children by levels: pairs, pairs of pairs, ...
    n_groups = 2 * d + 64
    least, width = np.zeros(n_groups, dtype=np.int64), np.zeros(n_groups, dtype=np.int64)
    at, left, right = (
        np.zeros(n_groups + 1, dtype=np.int64),
        np.full(n_groups, -1, dtype=np.int64),
        np.full(n_groups, -1, dtype=np.int64),
    )
    values = np.empty((64, 1))
    used = 0
    for g in range(d):
        u = kids[g]
        floor = _value(u_rows, u_first[u], u_first[u + 1], x)
        least[g], width[g] = leasts[u], widths[u]
        at[g] = used
        if used + width[g] > values.shape[0]:
            values = grown(values, used, 2 * (used + width[g]))
        for c in range(width[g]):
            f = node_first[u] + c
            value = math.inf
            if first[f + 1] > first[f]:
                value = max(_value(rows, first[f], first[f + 1], x) - floor, 0.0)
            values[used + c, 0] = value if value <= slack else math.inf
        used += width[g]
    begin, stop = 0, d
    while stop - begin > 1:
        place = stop
        for g in range(begin, stop, 2):
            if g + 1 == stop:
                # An odd one goes up alone.
                least[place], width[place], at[place] = least[g], width[g], at[g]
                left[place], right[place] = g, -1
                place += 1
                continue
            h = g + 1
            size = width[g] + width[h] - 1
            if used + size > values.shape[0]:
                values = grown(values, used, 2 * (used + size))
            for c in range(size):
                values[used + c, 0] = math.inf
            for c in range(width[g]):
                if values[at[g] + c, 0] == math.inf:
                    continue
                for e in range(width[h]):
                    value = values[at[g] + c, 0] + values[at[h] + e, 0]
                    if value <= slack and value < values[used + c + e, 0]:
                        values[used + c + e, 0] = value
            head, tail = 0, size
            while head < tail - 1 and values[used + head, 0] == math.inf:
                head += 1
            while tail > head + 1 and values[used + tail - 1, 0] == math.inf:
                tail -= 1
            least[place], width[place] = least[g] + least[h] + head, tail - head
            at[place] = used + head
            left[place], right[place] = g, h
            used += size
            place += 1
        begin, stop = stop, place
    if d == 0:
        return
    want = np.zeros(stop, dtype=np.int64)
    want[stop - 1] = total
    for g in range(stop - 1, d - 1, -1):
        one, two = left[g], right[g]
        if two < 0:
            want[one] = want[g]
            continue
        best, chosen = math.inf, least[one]
        for c in range(width[one]):
            e = want[g] - least[one] - c - least[two]
            if e < 0 or e >= width[two]:
                continue
            value = values[at[one] + c, 0] + values[at[two] + e, 0]
            if value < best:
                best, chosen = value, least[one] + c
        want[one], want[two] = chosen, want[g] - chosen
    for g in range(d):
        counts[kids[g]] = want[g]


@njit(cache=True)
def tree_counted(  # type: ignore[no-untyped-def]
    y, w, parent, edges, kinds, price, budget, nonnegative, slack, u_rows, u_first, u_bases
):
    """Return the best support with at most `budget` nonzeros within `slack` of the tilted optimum.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights; the last node is the only root, and off.
    parent : array of shape (n,), int64
        Parent of every node, a larger number; -1 for the last.
    edges : array of shape (n,)
        Smoothness weight of the edge to the parent.
    kinds : array of shape (n,), int8
        1 where a nonzero counts, 0 where it does not, -1 where it is not allowed.
    price : float
        Tilt, the cost of every nonzero that counts.
    budget : int
        Most nonzeros that count.
    nonnegative : bool
        Whether values must not be negative.
    slack : float
        Distance to the tilted optimum beyond which counts are given up.
    u_rows, u_first, u_bases : array
        Messages of the penalized program at the same price, as `tree_l0` returns them.

    Returns
    -------
    value : float
        Least of tilted cost plus the price of unused nonzeros; infinity when nothing is left.
    on : array of shape (n,), bool
        The support.
    n_states : int
        Pairs of node and count whose messages were built.
    """
    n = y.shape[0]
    low, high = forest_domains(y, w, parent, edges, nonnegative)
    child_first, children = children_of(parent)
    # Messages by node and count: pieces, what made them, and whether the node is zero (1), or
    # zero and counted (2).
    rows, origin = np.empty((4 * n + 64, 4)), np.empty((4 * n + 64, 3))
    first = np.zeros(4 * n + 64, dtype=np.int64)
    node_first = np.zeros(n + 1, dtype=np.int64)
    leasts, widths = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    n_functions, n_rows = 0, 0
    n_states = 0
    # Functions of groups of children, before and after a level of pairs; the last of every group
    # is the sum of the penalized messages.
    here, there = np.empty((64, 4)), np.empty((64, 4))
    here_first, there_first = np.zeros(65, dtype=np.int64), np.zeros(65, dtype=np.int64)
    sums, lower, spare = np.empty((64, 4)), np.empty((64, 4)), np.empty((64, 4))
    labels, more_labels = np.zeros(64, dtype=np.int64), np.zeros(64, dtype=np.int64)
    spare_labels = np.zeros(64, dtype=np.int64)
    out, out_labels = np.empty((129, 4)), np.empty(129, dtype=np.int64)
    work = np.empty((129, 6))
    nothing = np.zeros(n, dtype=np.bool_)
    best, best_count = math.inf, -1
    for v in range(n):
        begin, stop = child_first[v], child_first[v + 1]
        parts = max(stop - begin, 1)
        g_function = np.zeros(parts, dtype=np.int64)
        g_least, g_width = np.zeros(parts, dtype=np.int64), np.zeros(parts, dtype=np.int64)
        used, functions = 0, 0
        below = 0.0
        if stop == begin:
            # A leaf: nothing below, with count 0, and nothing of the penalized program.
            for k in range(2):
                here[k, 0], here[k, 1], here[k, 2], here[k, 3] = 0.0, 0.0, 0.0, low[v]
                here_first[k + 1] = k + 1
            g_width[0] = 1
            used, functions = 2, 2
        for t in range(stop - begin):
            u = children[begin + t]
            below += u_bases[u]
            g_function[t], g_least[t], g_width[t] = functions, leasts[u], widths[u]
            need = functions + widths[u] + 2
            if need > here_first.shape[0]:
                here_first = grown_labels(here_first, functions + 1, 2 * need)
            f0 = node_first[u]
            size = first[f0 + widths[u]] - first[f0]
            size_u = u_first[u + 1] - u_first[u]
            if used + size + size_u > here.shape[0]:
                here = grown(here, used, 2 * (used + size + size_u))
            for c in range(widths[u]):
                copy_rows(rows, first[f0 + c], first[f0 + c + 1], here, used)
                used += first[f0 + c + 1] - first[f0 + c]
                functions += 1
                here_first[functions] = used
            copy_rows(u_rows, u_first[u], u_first[u + 1], here, used)
            used += size_u
            functions += 1
            here_first[functions] = used
        while parts > 1:
            used, functions, kept = 0, 0, 0
            there_first[0] = 0
            for t in range(0, parts, 2):
                alone = t + 1 == parts
                one = g_function[t]
                u_one = one + g_width[t]
                if alone:
                    size = g_width[t]
                    total_least = g_least[t]
                else:
                    two = g_function[t + 1]
                    u_two = two + g_width[t + 1]
                    size = g_width[t] + g_width[t + 1] - 1
                    total_least = g_least[t] + g_least[t + 1]
                    size = min(size, budget - total_least + 1)
                need = functions + max(size, 0) + 2
                if need > there_first.shape[0]:
                    there_first = grown_labels(there_first, functions + 1, 2 * need)
                if alone:
                    a, b = here_first[one], here_first[u_one + 1]
                    if used + b - a > there.shape[0]:
                        there = grown(there, used, 2 * (used + b - a))
                    copy_rows(here, a, b, there, used)
                    g_function[kept] = functions
                    for f in range(one, u_one + 1):
                        functions += 1
                        there_first[functions] = used + here_first[f + 1] - a
                    used += b - a
                    g_least[kept], g_width[kept] = g_least[t], size
                    kept += 1
                    continue
                ua, ub = here_first[u_one], here_first[u_one + 1]
                va, vb = here_first[u_two], here_first[u_two + 1]
                u_sum = np.empty((ub - ua + vb - va, 4))
                u_count = _sum(here, ua, ub, here, va, vb, u_sum)
                head, found_any, last_alive = 0, False, -1
                start_function = functions
                for c in range(size):
                    count = 0
                    low_one = max(0, c - g_width[t + 1] + 1)
                    for e in range(low_one, min(c + 1, g_width[t])):
                        a, b = here_first[one + e], here_first[one + e + 1]
                        p, q = here_first[two + c - e], here_first[two + c - e + 1]
                        if a == b or p == q:
                            continue
                        need = b - a + q - p
                        if need > sums.shape[0]:
                            sums = np.empty((2 * need, 4))
                            more_labels = np.zeros(2 * need, dtype=np.int64)
                        added = _sum(here, a, b, here, p, q, sums)
                        over = _excess(sums, 0, added, u_sum, 0, u_count, high[v])
                        if over > slack:
                            continue
                        need = 3 * (count + added)
                        if need > spare.shape[0]:
                            lower = grown(lower, count, 2 * need)
                            spare = np.empty((2 * need, 4))
                            labels = np.zeros(2 * need, dtype=np.int64)
                            spare_labels = np.zeros(2 * need, dtype=np.int64)
                        count = lower_of(
                            lower, labels, count, sums, more_labels, added, high[v],
                            spare, spare_labels,
                        )  # fmt: skip
                        lower, spare = spare, lower
                        labels, spare_labels = spare_labels, labels
                    if count == 0 and not found_any:
                        head += 1
                        continue
                    if count > 0:
                        found_any = True
                        last_alive = functions
                    if used + count > there.shape[0]:
                        there = grown(there, used, 2 * (used + count))
                    copy_rows(lower, 0, count, there, used)
                    used += count
                    functions += 1
                    there_first[functions] = used
                if not found_any:
                    return math.inf, nothing, n_states
                functions = last_alive + 1
                used = there_first[functions]
                if used + u_count > there.shape[0]:
                    there = grown(there, used, 2 * (used + u_count))
                copy_rows(u_sum, 0, u_count, there, used)
                used += u_count
                g_function[kept] = start_function
                g_least[kept] = total_least + head
                g_width[kept] = functions - start_function
                functions += 1
                if functions + 1 > there_first.shape[0]:
                    there_first = grown_labels(there_first, functions, 2 * functions + 2)
                there_first[functions] = used
                kept += 1
            here, there = there, here
            here_first, there_first = there_first, here_first
            parts = kept
        least, width = g_least[0], g_width[0]
        kind = kinds[v]
        fit = w[v] * y[v] ** 2
        zeros = np.full(width + 2, math.inf)
        for c in range(width):
            a, b = here_first[c], here_first[c + 1]
            if b > a:
                zeros[c] = _value(here, a, b, 0.0) + fit
        if v == n - 1:
            for c in range(width):
                value = zeros[c] + price * (budget - least - c)
                if least + c <= budget and value < best:
                    best, best_count = value, least + c
            best += below
            break
        p = parent[v]
        shift = u_bases[v] - below
        step = 1 if kind == 1 else 0
        leasts[v], node_first[v] = least, n_functions
        ua, ub = u_first[v], u_first[v + 1]
        head, found_any, last_alive = 0, False, -1
        for c in range(width + step):
            if least + c > budget:
                break
            zero, flag = zeros[c] - shift, 1
            if nonnegative and kind == 1 and c > 0 and zeros[c - 1] + price - shift < zero:
                # Where its argument is cut at zero the state counts without being on.
                zero, flag = zeros[c - 1] + price - shift, 2
            count = 0
            source = c - step
            if kind >= 0 and 0 <= source < width:
                a, b = here_first[source], here_first[source + 1]
                count = b - a
                if count > sums.shape[0]:
                    sums = np.empty((2 * count, 4))
                    more_labels = np.zeros(2 * count, dtype=np.int64)
                if 2 * count + 1 > out.shape[0]:
                    out = np.empty((4 * count + 1, 4))
                    out_labels = np.empty(4 * count + 1, dtype=np.int64)
                    work = np.empty((4 * count + 1, 6))
                copy_rows(here, a, b, sums, 0)
                for k in range(count):
                    more_labels[k] = k
                node_step(sums, more_labels, count, y[v], w[v], price * kind, sums, more_labels)
                for k in range(count):
                    sums[k, COST] -= shift
            made = 0
            if count > 0 or zero < math.inf:
                n_states += 1
                made = envelope_step(
                    sums, more_labels, count, high[v], zero, -1, edges[v], low[p], high[p],
                    out, out_labels, work,
                )  # fmt: skip
                if _excess(out, 0, made, u_rows, ua, ub, high[p]) > slack:
                    made = 0
            if made == 0 and not found_any:
                head += 1
                continue
            if n_rows + made > rows.shape[0]:
                room = 2 * (n_rows + made)
                rows, origin = grown(rows, n_rows, room), grown(origin, n_rows, room)
            if n_functions + 2 > first.shape[0]:
                first = grown_labels(first, n_functions + 1, 2 * n_functions + 4)
            copy_rows(out, 0, made, rows, n_rows)
            for k in range(made):
                label = out_labels[k]
                if label < 0:
                    origin[n_rows + k, 0], origin[n_rows + k, 1] = 0.0, 0.0
                    origin[n_rows + k, 2] = flag
                    continue
                origin[n_rows + k, 0] = sums[label, CURVATURE]
                origin[n_rows + k, 1] = sums[label, VERTEX]
                origin[n_rows + k, 2] = 0.0
                if edges[v] == 0.0:
                    # Nothing is carried over: the node sits at the least of its own cost.
                    right = sums[label + 1, START] if label + 1 < count else high[v]
                    origin[n_rows + k, 0] = 1.0
                    origin[n_rows + k, 1] = min(
                        max(sums[label, VERTEX], sums[label, START]), right
                    )
            n_rows += made
            if made > 0:
                found_any = True
                last_alive = n_functions
            n_functions += 1
            first[n_functions] = n_rows
        if not found_any:
            return math.inf, nothing, n_states
        # What is empty at the end is cut off.
        n_functions = last_alive + 1
        leasts[v] += head
        widths[v] = n_functions - node_first[v]
    if best_count < 0 or best == math.inf:
        return math.inf, nothing, n_states
    on = np.zeros(n, dtype=np.bool_)
    at = np.zeros(n)
    counts = np.zeros(n, dtype=np.int64)
    counts[n - 1] = best_count
    wide = 2.0 * slack + 1e-12 * abs(best)
    for v in range(n - 1, -1, -1):
        p = parent[v]
        inside = counts[v]
        if p >= 0:
            f = node_first[v] + counts[v] - leasts[v]
            k = first[f + 1] - 1
            while k > first[f] and rows[k, START] > at[p]:
                k -= 1
            if origin[k, 2] == 0.0:
                on[v] = True
                a, m = origin[k, 0], origin[k, 1]
                total = a + edges[v]
                x = (a * m + edges[v] * at[p]) / total if total > 0.0 else m
                at[v] = min(max(x, low[v]), high[v])
                inside -= 1 if kinds[v] == 1 else 0
            elif origin[k, 2] == 2.0:
                inside -= 1
        kids = children[child_first[v] : child_first[v + 1]]
        if kids.shape[0] > 0:
            _split(
                inside, at[v], kids, rows, first, node_first, leasts, widths, u_rows, u_first,
                wide, counts,
            )  # fmt: skip
    return best, on, n_states
