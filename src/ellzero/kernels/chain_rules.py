r"""Exact l0 programs on a chain under rules on the support.

A support is a word of zeros and ones; rules are a small automaton that reads it. A state is
whether the node is on, for how many nodes the run has lasted (up to `min_length`), or how many
zeros have passed since the last run (up to `min_distance`), with the nonzeros and the runs so far
where these are limited. States that are on carry a message, a minimum of quadratics as in
`kernels.chain`; states that are off carry a number. With a `limit` a state is given up when its
cost plus the least cost of everything after it is above.
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
    grown,
    node_step,
    restricted_value,
)
from ellzero.kernels.chain_budget import least_joint

# What `rules_program` keeps of its messages.
NOTHING, LEAST, EVERY = 0, 1, 2


@njit(cache=True)
def lower_of(one, one_labels, n_one, two, two_labels, n_two, end, out, out_labels):  # type: ignore[no-untyped-def]
    """Write the smaller of two piecewise quadratics over the same interval.

    Parameters
    ----------
    one, two : array of shape (capacity, 4)
        Pieces: curvature, vertex, cost, left end.
    one_labels, two_labels : array of shape (capacity,), int64
        Labels of the pieces.
    n_one, n_two : int
        How many there are; 0 means infinity.
    end : float
        Right end of both.
    out, out_labels : array of shape (3 * (n_one + n_two), 4) and as many labels
        Written.

    Returns
    -------
    int
        Number of pieces.
    """
    if n_one == 0 or n_two == 0:
        source, labels = (one, one_labels) if n_two == 0 else (two, two_labels)
        count = max(n_one, n_two)
        copy_rows(source, 0, count, out, 0)
        for k in range(count):
            out_labels[k] = labels[k]
        return count
    count, i, j = 0, 0, 0
    # Which piece was written last.
    from_one, from_piece = False, -1
    left = one[0, START]
    while True:
        right_one = one[i + 1, START] if i + 1 < n_one else end
        right_two = two[j + 1, START] if j + 1 < n_two else end
        right = min(right_one, right_two)
        a1, m1, c1 = one[i, CURVATURE], one[i, VERTEX], one[i, COST]
        a2, m2, c2 = two[j, CURVATURE], two[j, VERTEX], two[j, COST]
        # Roots of the difference, around the middle of the vertices.
        middle, half = 0.5 * (m1 + m2), 0.5 * (m2 - m1)
        A = a1 - a2
        B = 2.0 * (a1 + a2) * half
        C = A * half * half + (c1 - c2)
        cut_one, cut_two = right, right
        inside = B * B - 4.0 * A * C
        if inside > 0.0:
            q = -0.5 * (B + math.copysign(math.sqrt(inside), B))
            r1 = middle + q / A if A != 0.0 else right
            r2 = middle + C / q if q != 0.0 else right
            cut_one = min(max(min(r1, r2), left), right)
            cut_two = min(max(r1, r2, left), right)
        begin = left
        for part in range(3):
            stop = cut_one if part == 0 else (cut_two if part == 1 else right)
            if stop <= begin and not (part == 2 and left == right and left == one[0, START]):
                continue
            x = 0.5 * (begin + stop)
            first = a1 * (x - m1) ** 2 + c1 <= a2 * (x - m2) ** 2 + c2
            piece = i if first else j
            if count == 0 or first != from_one or piece != from_piece:
                if first:
                    copy_rows(one, i, i + 1, out, count)
                    out_labels[count] = one_labels[i]
                else:
                    copy_rows(two, j, j + 1, out, count)
                    out_labels[count] = two_labels[j]
                out[count, START] = begin
                from_one, from_piece = first, piece
                count += 1
            begin = stop
        if right >= end and i + 1 >= n_one and j + 1 >= n_two:
            return count
        if i + 1 < n_one and right_one == right:
            i += 1
        elif j + 1 < n_two and right_two == right:
            j += 1
        elif i + 1 < n_one:
            i += 1
        else:
            j += 1
        left = right


@njit(cache=True)
def _least_at(pieces, labels, count, end, edge):  # type: ignore[no-untyped-def]
    """Return the least cost with the next node at zero, beyond an edge, and its label."""
    best, label = math.inf, -1
    for k in range(count):
        right = pieces[k + 1, START] if k + 1 < count else end
        value = restricted_value(
            pieces[k, CURVATURE], pieces[k, VERTEX], pieces[k, COST], pieces[k, START], right,
            edge, 0.0,
        )  # fmt: skip
        if value < best:
            best, label = value, labels[k]
    return best, label


@njit(cache=True)
def rules_program(  # type: ignore[no-untyped-def]
    y, w, edges, kinds, price, bump, spare, at_exit, budget, most_bumps, length, distance,
    nonnegative, limit, rest, rest_first, rest_bases, rest_zero, keep,
):  # fmt: skip
    """Solve a program on a chain whose support keeps to rules.

    Parameters
    ----------
    y, w : array of shape (n,)
        Data and weights.
    edges : array of shape (n - 1,)
        Smoothness weight of every edge.
    kinds : array of shape (n,), int8
        1 where a node that is on costs and counts, 0 where it is on, -1 where it is off.
    price, bump : float
        Cost of every node that is on and counts, and of every run; at least 0.
    spare : float
        Cost of every run that `most_bumps` would still allow; 0 without it.
    at_exit : bool
        Whether runs are paid when they end, for messages of the reversed chain.
    budget, most_bumps : int
        Most nodes that count, and most runs; -1 means that they are not counted.
    length, distance : int
        Fewest nodes of a run, and fewest zeros between two; at least 1.
    nonnegative : bool
        Whether values must not be negative.
    limit : float
        Cost above which states are given up; infinity keeps all.
    rest, rest_first, rest_bases, rest_zero : array
        Messages of the reversed chain at the same costs, as `keep = LEAST` returns them; of no
        meaning where `limit` is infinite.
    keep : int
        Which messages are returned: NOTHING, the LEAST over all states that are on, or EVERY
        state's; the latter two only where nothing is counted.

    Returns
    -------
    value : float
        Least cost, with `price` for every node and `spare` for every run that limits leave unused;
        infinity where nothing is left.
    on : array of shape (n,), bool
        The support.
    n_states : int
        Pairs of node and counts that were looked at.
    n_pieces : int
        Pieces of all messages.
    kept : array of shape (n_pieces, 4)
        Messages, one after the other.
    first : array, int64
        Where each begins: (n + 1,) entries, or ``n * length + 1`` with EVERY.
    bases : array of shape (n,)
        What was taken out of the costs at every node.
    at_zero : array of shape (n,)
        Least cost of everything before a node that is off, its base taken out.

    Notes
    -----
    Time proportional to nodes, live counts and `length`, times pieces.
    """
    n = y.shape[0]
    low, high = domains(y, w, edges, nonnegative)
    by_count, by_bump = 1 if budget >= 0 else 0, 1 if most_bumps >= 0 else 0
    at_entry, at_end = (0.0, bump) if at_exit else (bump, 0.0)
    room = 16
    nc, nb = 1, 1 + by_bump
    lc, lb = 0, 0
    now = np.empty((nc * nb * length, room, 4))
    now_labels = np.empty((nc * nb * length, room), dtype=np.int64)
    sizes = np.zeros(nc * nb * length, dtype=np.int64)
    zeros = np.full(nc * nb * distance, math.inf)
    exits = np.full(nc * nb, math.inf)
    exit_labels = np.full(nc * nb, -1, dtype=np.int64)
    # Before the first node stands a zero after which a run may begin.
    zeros[distance - 1] = 0.0
    if most_bumps != 0:
        slot = by_bump * length
        now[slot, 0, 0], now[slot, 0, 1], now[slot, 0, 2] = 0.0, 0.0, at_entry
        now[slot, 0, 3] = low[0]
        now_labels[slot, 0] = -1
        sizes[slot] = 1
    before, stays = np.empty(4 * n + 64, dtype=np.int32), np.empty(4 * n + 64, dtype=np.bool_)
    starts = np.zeros(n + 1, dtype=np.int64)
    leasts = np.zeros((n, 3), dtype=np.int64)
    kept = np.empty((2 * n * length + 64 if keep != NOTHING else 0, 4))
    first = np.zeros(n * length + 1 if keep == EVERY else n + 1, dtype=np.int64)
    bases, zero_kept = np.zeros(n), np.full(n, math.inf)
    merged, other = np.empty((64, 4)), np.empty((64, 4))
    merged_labels, other_labels = np.empty(64, dtype=np.int64), np.empty(64, dtype=np.int64)
    out, out_labels = np.empty((129, 4)), np.empty(129, dtype=np.int64)
    work = np.empty((129, 6))
    nothing = np.zeros(n, dtype=np.bool_)
    base = 0.0
    n_states, n_pieces = 0, 0
    for i in range(n):
        leasts[i, 0], leasts[i, 1], leasts[i, 2] = lc, lb, nb
        starts[i + 1] = starts[i] + nc * nb
        if starts[i + 1] > before.shape[0]:
            longer = np.empty(2 * before.shape[0] + nc * nb, dtype=np.int32)
            longer_stays = np.empty(longer.shape[0], dtype=np.bool_)
            for k in range(starts[i]):
                longer[k], longer_stays[k] = before[k], stays[k]
            before, stays = longer, longer_stays
        bases[i] = base
        if keep != NOTHING:
            # Nothing is counted: the only counts are the first.
            for d in range(distance):
                zero_kept[i] = min(zero_kept[i], zeros[d])
            zero_kept[i] = min(zero_kept[i], exits[0] + at_end)
        if keep == EVERY:
            for a in range(length):
                here = i * length + a
                if first[here] + sizes[a] > kept.shape[0]:
                    kept = grown(kept, first[here], 2 * kept.shape[0] + sizes[a])
                copy_rows(now[a], 0, sizes[a], kept, first[here])
                first[here + 1] = first[here] + sizes[a]
        elif keep == LEAST:
            count = 0
            for a in range(length):
                if sizes[a] == 0:
                    continue
                need = 3 * (count + sizes[a])
                if need > other.shape[0]:
                    merged, other = grown(merged, count, 2 * need), np.empty((2 * need, 4))
                    more = np.empty(2 * need, dtype=np.int64)
                    for k in range(count):
                        more[k] = merged_labels[k]
                    merged_labels, other_labels = more, np.empty(2 * need, dtype=np.int64)
                count = lower_of(
                    merged, merged_labels, count, now[a], now_labels[a], sizes[a], high[i],
                    other, other_labels,
                )  # fmt: skip
                merged, other = other, merged
                merged_labels, other_labels = other_labels, merged_labels
            if first[i] + count > kept.shape[0]:
                kept = grown(kept, first[i], 2 * kept.shape[0] + count)
            copy_rows(merged, 0, count, kept, first[i])
            first[i + 1] = first[i] + count
        kind = kinds[i]
        step = by_count if kind == 1 else 0
        nc2 = nc + step
        fit = w[i] * y[i] ** 2
        paid = price if kind == 1 else 0.0
        zeros2 = np.full(nc2 * nb * distance, math.inf)
        costs = np.empty((nc2 * nb * length, now.shape[1], 4))
        costs_labels = np.empty((nc2 * nb * length, now.shape[1]), dtype=np.int64)
        costs_sizes = np.zeros(nc2 * nb * length, dtype=np.int64)
        pruned = limit < math.inf
        r = n - 1 - i
        others, rest_begin, rest_stop, at = 0.0, 0, 0, 0.0
        if pruned:
            others, rest_begin, rest_stop = rest_bases[r], rest_first[r], rest_first[r + 1]
            at = rest_zero[r]
        smallest = math.inf
        for c in range(nc):
            for b in range(nb):
                place = c * nb + b
                n_states += 1
                here = starts[i] + place
                before[here], stays[here] = -1, False
                if kind != 0:
                    gone = exits[place] + at_end
                    before[here] = exit_labels[place]
                    for d in range(distance):
                        value = gone if d == 0 else zeros[place * distance + d - 1]
                        if d == distance - 1 and zeros[place * distance + d] <= value:
                            value = zeros[place * distance + d]
                            stays[here] = value < math.inf
                        value += fit
                        if value < math.inf and (
                            not pruned or base + value + at + others <= limit
                        ):
                            zeros2[place * distance + d] = value
                            smallest = min(smallest, value)
                if kind < 0 or (by_count and lc + c + step > budget):
                    continue
                for a in range(length):
                    slot = place * length + a
                    if sizes[slot] == 0:
                        continue
                    to = ((c + step) * nb + b) * length + a
                    found = node_step(
                        now[slot], now_labels[slot], sizes[slot], y[i], w[i], paid,
                        costs[to], costs_labels[to],
                    )  # fmt: skip
                    if pruned:
                        joint = math.inf
                        if rest_stop > rest_begin:
                            joint = least_joint(
                                costs[to], sizes[slot], high[i], rest, rest_begin, rest_stop,
                                low[i],
                            )  # fmt: skip
                        if base + joint + others > limit:
                            continue
                    costs_sizes[to] = sizes[slot]
                    n_pieces += sizes[slot]
                    smallest = min(smallest, found)
        if smallest == math.inf:
            return (
                math.inf, nothing, n_states, n_pieces, kept, first, bases, zero_kept,
            )  # fmt: skip
        base += smallest
        for k in range(zeros2.shape[0]):
            zeros2[k] -= smallest
        for slot in range(costs_sizes.shape[0]):
            for k in range(costs_sizes[slot]):
                costs[slot, k, COST] -= smallest
        # The window of what is alive, with the runs that begin at the next node.
        edge = edges[i] if i + 1 < n else 0.0
        c_low, c_high, b_low, b_high = nc2, -1, nb + 1, -1
        for c in range(nc2):
            for b in range(nb):
                place = c * nb + b
                alive, enters = False, False
                for d in range(distance):
                    alive = alive or zeros2[place * distance + d] < math.inf
                if i + 1 < n and zeros2[place * distance + distance - 1] < math.inf:
                    enters = not by_bump or lb + b < most_bumps
                for a in range(length):
                    alive = alive or costs_sizes[place * length + a] > 0
                if alive:
                    c_low, c_high = min(c_low, c), max(c_high, c)
                    b_low, b_high = min(b_low, b), max(b_high, b + (by_bump if enters else 0))
        nc3, nb3 = c_high - c_low + 1, b_high - b_low + 1
        next_rows = np.empty((nc3 * nb3 * length, room, 4))
        next_labels = np.empty((nc3 * nb3 * length, room), dtype=np.int64)
        next_sizes = np.zeros(nc3 * nb3 * length, dtype=np.int64)
        next_zeros = np.full(nc3 * nb3 * distance, math.inf)
        exits = np.full(nc3 * nb3, math.inf)
        exit_labels = np.full(nc3 * nb3, -1, dtype=np.int64)
        holds = low[i] == 0.0 or high[i] == 0.0
        for c in range(c_low, c_high + 1):
            for b in range(b_low, b_high + 1):
                to = (c - c_low) * nb3 + b - b_low
                old = c * nb + b
                if b < nb:
                    for d in range(distance):
                        next_zeros[to * distance + d] = zeros2[old * distance + d]
                    slot = old * length + length - 1
                    exits[to], exit_labels[to] = _least_at(
                        costs[slot], costs_labels[slot], costs_sizes[slot], high[i], edge
                    )
                if i + 1 == n:
                    continue
                # What begins a run at the next node.
                entry = math.inf
                source = b - by_bump
                if 0 <= source < nb and (not by_bump or lb + b <= most_bumps):
                    entry = zeros2[(c * nb + source) * distance + distance - 1] + at_entry
                for a in range(length):
                    count = 0
                    if b < nb:
                        # Age a at the next node comes from age a - 1; the last also from itself.
                        come = old * length + a - 1
                        last = old * length + a
                        n_one = costs_sizes[come] if a > 0 else 0
                        n_two = costs_sizes[last] if a == length - 1 else 0
                        need = 3 * (n_one + n_two)
                        if need > merged.shape[0]:
                            merged, other = np.empty((2 * need, 4)), np.empty((2 * need, 4))
                            merged_labels = np.empty(2 * need, dtype=np.int64)
                            other_labels = np.empty(2 * need, dtype=np.int64)
                        if n_one + n_two > 0:
                            count = lower_of(
                                costs[max(come, 0)], costs_labels[max(come, 0)], n_one,
                                costs[last], costs_labels[last], n_two, high[i],
                                merged, merged_labels,
                            )  # fmt: skip
                    zero, label = math.inf, i
                    if a == 0:
                        zero = entry
                    if holds and count > 0:
                        # At zero within a run that goes on.
                        k = at_zero(merged, count)
                        held = merged[k, CURVATURE] * merged[k, VERTEX] ** 2 + merged[k, COST]
                        if held < zero:
                            zero, label = held, merged_labels[k]
                    if count == 0 and zero == math.inf:
                        continue
                    need = 2 * count + 1
                    if need > out.shape[0]:
                        out, out_labels = np.empty((2 * need, 4)), np.empty(2 * need, np.int64)
                        work = np.empty((2 * need, 6))
                    count = envelope_step(
                        merged, merged_labels, count, high[i], zero, label, edge,
                        low[i + 1], high[i + 1], out, out_labels, work,
                    )  # fmt: skip
                    if count > room:
                        while room < count:
                            room *= 2
                        wider = np.empty((next_sizes.shape[0], room, 4))
                        wider_labels = np.empty((next_sizes.shape[0], room), dtype=np.int64)
                        for k in range(next_sizes.shape[0]):
                            copy_rows(next_rows[k], 0, next_sizes[k], wider[k], 0)
                            for t in range(next_sizes[k]):
                                wider_labels[k, t] = next_labels[k, t]
                        next_rows, next_labels = wider, wider_labels
                    slot = to * length + a
                    copy_rows(out, 0, count, next_rows[slot], 0)
                    for k in range(count):
                        next_labels[slot, k] = out_labels[k]
                    next_sizes[slot] = count
        now, now_labels, sizes, zeros = next_rows, next_labels, next_sizes, next_zeros
        lc, lb, nc, nb = lc + c_low, lb + b_low, nc3, nb3
    best, at_c, at_b, last, tail = math.inf, -1, -1, -1, 0
    for c in range(nc):
        for b in range(nb):
            place = c * nb + b
            unused = 0.0
            if by_count:
                unused += price * (budget - lc - c)
            if by_bump:
                unused += spare * (most_bumps - lb - b)
            if exits[place] + at_end + unused < best:
                best = exits[place] + at_end + unused
                at_c, at_b, last, tail = lc + c, lb + b, exit_labels[place], 0
            for d in range(distance):
                value = zeros[place * distance + d] + unused
                if value < best:
                    best, at_c, at_b, tail = value, lc + c, lb + b, d + 1
    on = np.zeros(n, dtype=np.bool_)
    if best == math.inf:
        return math.inf, on, n_states, n_pieces, kept, first, bases, zero_kept
    counted = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        counted[i + 1] = counted[i] + (by_count if kinds[i] == 1 else 0)
    node = n
    if tail > 0:
        # The last nodes are zero: back to the first zero after the last run.
        j = n - 1
        if tail == distance:
            while j >= 0:
                here = starts[j] + (at_c - leasts[j, 0]) * leasts[j, 2] + at_b - leasts[j, 1]
                if not stays[here]:
                    break
                j -= 1
        node = j - tail + 1 if j >= 0 else -1
        if node >= 0:
            here = starts[node] + (at_c - leasts[node, 0]) * leasts[node, 2] + at_b
            last = before[here - leasts[node, 1]]
    while node > 0:
        for i in range(last + 1, node):
            on[i] = True
        if last < 0:
            break
        at_c -= counted[node] - counted[last + 1]
        at_b -= by_bump
        j = last
        while j >= 0:
            here = starts[j] + (at_c - leasts[j, 0]) * leasts[j, 2] + at_b - leasts[j, 1]
            if not stays[here]:
                break
            j -= 1
        if j < 0:
            break
        node = j - distance + 1
        here = starts[node] + (at_c - leasts[node, 0]) * leasts[node, 2] + at_b
        last = before[here - leasts[node, 1]]
    return base + best, on, n_states, n_pieces, kept, first, bases, zero_kept
