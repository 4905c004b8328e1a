r"""Least squares on a subset of features, under insertions, removals and exchanges.

Features are scaled so that their inner products A have a unit diagonal. A *state* is the tuple
``(members, sizes, H, B, beta, c, d)`` for a subset S of k features:

====== ============ ===========================================================================
S      (K,)         members, in the order of their insertion; the first `sizes[FIXED]` stay
sizes  (4,)         k, fixed members, scans so far, insertions so far
H      (K, p)       ``inv(A[S, S]) @ A[S]``
B      (K, K)       ``inv(A[S, S])``
beta   (K, q)       coefficients
c      (q, p)       inner products of features and residuals
d      (p,)         squared lengths of what S leaves of each feature; `CLOSED` for members and
                    for features that may not enter
====== ============ ===========================================================================

Columns of A come as rows of `columns`, column j in row `slots[j]`; a kernel that meets a column
with a negative slot stops and returns j, and is called again once the column is there.

Every kernel is plain Python: it runs compiled and interpreted (`kernel.py_func`). One thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

CLOSED = 1e300
CHUNK = 512
SIZE, FIXED, SCANS, INSERTIONS = 0, 1, 2, 3
# Gains below this share of the loss, or of the energy of the targets (which is 1), are rounding.
SLACK = 1e-11
TINY = 1e-26
# Insertions after which kicks compute everything anew, and the diagonal of the inverse beyond
# which removals lose digits.
LASTING, STEEP = 100, 1e4

# No infinities are promised away: only that sums may be reordered.
_fast = {"reassoc", "contract", "nsz", "nnan", "arcp"}
compiled = njit(cache=True, fastmath=_fast, error_model="numpy", nogil=True)
# For a kernel with one caller, which would otherwise be compiled on its own and again with it.
inlined = njit(inline="always", fastmath=_fast, error_model="numpy", nogil=True)


@compiled
def insert(columns: Any, row: int, j: int, state: Any) -> None:
    """Let feature j enter; its column is ``columns[row]``."""
    members, sizes, H, B, beta, c, d = state
    k = sizes[SIZE]
    q, p = c.shape
    left = d[j]
    inverse = 1.0 / left
    for a in range(k):
        h = H[a, j]
        for b in range(k):
            B[a, b] += h * H[b, j] * inverse
        B[a, k] = -h * inverse
        B[k, a] = -h * inverse
    B[k, k] = inverse
    for o in range(q):
        beta[k, o] = c[o, j] * inverse
        for a in range(k):
            beta[a, o] -= H[a, j] * beta[k, o]
    weight = np.empty(k)
    share = np.empty(k)
    for a in range(k):
        weight[a] = columns[row, members[a]]
        share[a] = H[a, j]
    for start in range(0, p, CHUNK):
        stop = min(p, start + CHUNK)
        m = stop - start
        column = columns[row, start:stop]
        free = d[start:stop]
        part = H[k, start:stop]
        for t in range(m):
            part[t] = column[t]
        for a in range(k):
            w = weight[a]
            other = H[a, start:stop]
            for t in range(m):
                part[t] -= w * other[t]
        for t in range(m):
            part[t] *= inverse
            free[t] -= part[t] * part[t] * left
        for a in range(k):
            h = share[a]
            other = H[a, start:stop]
            for t in range(m):
                other[t] -= h * part[t]
        for o in range(q):
            x = beta[k, o] * left
            rest = c[o, start:stop]
            for t in range(m):
                rest[t] -= x * part[t]
    members[k] = j
    for a in range(k + 1):
        d[members[a]] = CLOSED
    sizes[SIZE] = k + 1
    sizes[INSERTIONS] += 1


@compiled
def remove(i: int, state: Any) -> None:
    """Let the member in place i leave; the last member takes its place."""
    members, sizes, H, B, beta, c, d = state
    k = sizes[SIZE] - 1
    q, p = c.shape
    g = B[i, i]
    inverse = 1.0 / g
    share = np.empty(k + 1)
    for a in range(k + 1):
        share[a] = B[a, i] * inverse
    for start in range(0, p, CHUNK):
        stop = min(p, start + CHUNK)
        m = stop - start
        part = H[i, start:stop]
        last = H[k, start:stop]
        free = d[start:stop]
        for t in range(m):
            free[t] += part[t] * part[t] * inverse
        for o in range(q):
            x = beta[i, o] * inverse
            rest = c[o, start:stop]
            for t in range(m):
                rest[t] += x * part[t]
        for a in range(k):
            if a != i:
                h = share[a]
                other = H[a, start:stop]
                for t in range(m):
                    other[t] -= h * part[t]
        if i != k:
            h = share[k]
            for t in range(m):
                part[t] = last[t] - h * part[t]
    for a in range(k + 1):
        if a != i:
            for o in range(q):
                beta[a, o] -= share[a] * beta[i, o]
    for a in range(k + 1):
        if a != i:
            for b in range(k + 1):
                if b != i:
                    B[a, b] -= share[a] * B[b, i]
    d[members[i]] = inverse
    if i != k:
        members[i] = members[k]
        for o in range(q):
            beta[i, o] = beta[k, o]
        for a in range(k + 1):
            B[i, a] = B[k, a]
        for a in range(k + 1):
            B[a, i] = B[a, k]
    sizes[SIZE] = k
    for a in range(k):
        d[members[a]] = CLOSED


@compiled
def cheapest(state: Any) -> tuple[int, float]:
    """Return the place of the member whose removal costs least, and the cost; -1 if none may."""
    _, sizes, _, B, beta, c, _ = state
    place, least = -1, np.inf
    for i in range(sizes[FIXED], sizes[SIZE]):
        cost = 0.0
        for o in range(c.shape[0]):
            cost += beta[i, o] * beta[i, o]
        cost /= B[i, i]
        if cost < least:
            place, least = i, cost
    return place, least


@compiled
def dearest(state: Any, floor: float, seed: int) -> tuple[int, float]:
    """Return the feature whose insertion gains most, and the gain; -1 if none may enter.

    A nonzero `seed` leaves out about half of the features.
    """
    _, _, _, _, _, c, d = state
    q, p = c.shape
    place, most = -1, TINY
    for j in range(p):
        left = d[j]
        if left > floor and left < CLOSED * 0.5:
            gain = 0.0
            for o in range(q):
                gain += c[o, j] * c[o, j]
            if gain > most * left:
                if seed:
                    mixed = np.uint64(j + 1) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
                    mixed ^= mixed >> np.uint64(29)
                    mixed *= np.uint64(0xBF58476D1CE4E5B9)
                    if (mixed >> np.uint64(60)) & np.uint64(1):
                        continue
                place, most = j, gain / left
    return place, most


@inlined
def scan(state: Any, floor: float) -> tuple[Any, Any, float]:
    """Return the exchange (place of the leaving member, entering feature) that gains most.

    Every exchange is priced with all coefficients fitted anew. The place is -1 where none gains
    more than rounding.
    """
    _, sizes, H, B, beta, c, d = state
    k = sizes[SIZE]
    q, p = c.shape
    sizes[SCANS] += 1
    best = 0.0
    leaves: Any = np.int64(-1)
    enters: Any = np.int64(-1)
    total = np.empty(CHUNK)
    ratio = np.empty((k, q))
    loss = np.empty(k)
    for i in range(sizes[FIXED], k):
        loss[i] = 0.0
        for o in range(q):
            ratio[i, o] = beta[i, o] / B[i, i]
            loss[i] += ratio[i, o] * beta[i, o]
    for start in range(0, p, CHUNK):
        stop = min(p, start + CHUNK)
        free = d[start:stop]
        first = c[0, start:stop]
        for i in range(sizes[FIXED], k):
            row = H[i, start:stop]
            inverse = 1.0 / B[i, i]
            bar = loss[i] + max(best, SLACK * loss[i] + TINY)
            above = False
            if q == 1:
                b = ratio[i, 0]
                for t in range(stop - start):
                    h = row[t]
                    x = first[t] + b * h
                    above |= x * x - bar * (free[t] + h * h * inverse) > 0.0
            else:
                for t in range(stop - start):
                    total[t] = 0.0
                for o in range(q):
                    b = ratio[i, o]
                    for t in range(stop - start):
                        x = c[o, start + t] + b * row[t]
                        total[t] += x * x
                for t in range(stop - start):
                    h = row[t]
                    above |= total[t] - bar * (free[t] + h * h * inverse) > 0.0
            if above:
                for t in range(stop - start):
                    h = row[t]
                    left = free[t] + h * h * inverse
                    gain = total[t]
                    if q == 1:
                        x = first[t] + ratio[i, 0] * h
                        gain = x * x
                    if left > floor and gain > bar * left:
                        best = gain / left - loss[i]
                        bar = loss[i] + best
                        leaves, enters = i, start + t
    return leaves, enters, best


@compiled
def descend(columns: Any, slots: Any, state: Any, floor: float, limit: int) -> Any:
    """Make the best exchange until none gains.

    Returns a missing column; -1 at the end; -2 after `limit` exchanges.
    """
    for _ in range(limit):
        leaves, enters, _ = scan(state, floor)
        if leaves < 0:
            return -1
        if slots[enters] < 0:
            return enters
        remove(leaves, state)
        insert(columns, slots[enters], enters, state)
    return -2


@compiled
def rebuild(columns: Any, slots: Any, start: Any, wanted: Any, state: Any, floor: float) -> Any:
    """Set the state to the members `wanted` from nothing; return a missing column, or -1.

    `start` is the inner products with the targets, `sizes[FIXED]` is kept; features that depend
    on the members before them are left out.
    """
    _, sizes, _, _, _, c, d = state
    for j in wanted:
        if slots[j] < 0:
            return j
    q, p = c.shape
    members = state[0]
    for a in range(sizes[SIZE]):
        d[members[a]] = 1.0
    for j in range(p):
        d[j] = 1.0 if d[j] < CLOSED * 0.5 else CLOSED
        for o in range(q):
            c[o, j] = start[o, j]
    sizes[SIZE] = 0
    for j in wanted:
        d[j] = min(d[j], 1.0)
        if d[j] > floor:
            insert(columns, slots[j], j, state)
    return -1


@compiled
def move(
    columns: Any, slots: Any, start: Any, wanted: Any, state: Any, floor: float, built: Any
) -> None:
    """Set the state to the members `wanted`, by insertions and removals where that is less work.

    All columns are there. `built` has the insertions when everything was computed anew last.
    """
    members, sizes, _, B, _, _, d = state
    k = sizes[SIZE]
    n = wanted.size
    # Places of members that leave, and features that enter.
    out = np.empty(k, np.int64)
    into = np.empty(n, np.int64)
    leaving = entering = 0
    steep = sizes[INSERTIONS] - built[0] > LASTING
    for a in range(k):
        stays = a < sizes[FIXED]
        for b in range(n):
            stays |= wanted[b] == members[a]
        if not stays:
            out[leaving] = a
            leaving += 1
        steep |= B[a, a] > STEEP
    for b in range(n):
        new = True
        for a in range(k):
            new &= wanted[b] != members[a]
        if new:
            into[entering] = wanted[b]
            entering += 1
    if steep or 2 * (leaving + entering) > n:
        rebuild(columns, slots, start, wanted, state, floor)
        built[0] = sizes[INSERTIONS]
        return
    for a in range(leaving):
        remove(out[leaving - 1 - a], state)
    for b in range(entering):
        if d[into[b]] > floor:
            insert(columns, slots[into[b]], into[b], state)


@compiled
def explained(start: Any, state: Any) -> float:
    """Return the energy of the targets that the subset explains."""
    members, sizes, _, _, beta, c, _ = state
    total = 0.0
    for a in range(sizes[SIZE]):
        for o in range(c.shape[0]):
            total += beta[a, o] * start[o, members[a]]
    return total


@compiled
def neighbors(columns: Any, near: Any) -> None:
    """Set ``near[j]`` to the features that correlate most with feature j, from all columns."""
    p = columns.shape[0]
    most = near.shape[1]
    best = np.empty(most)
    if most == 0:
        return
    for j in range(p):
        best[:] = -1.0
        row = columns[j]
        for i in range(p):
            x = abs(row[i])
            if x > best[most - 1] and i != j:
                a = most - 1
                while a > 0 and x > best[a - 1]:
                    best[a] = best[a - 1]
                    near[j, a] = near[j, a - 1]
                    a -= 1
                best[a] = x
                near[j, a] = i


@compiled
def dearest_pair(
    columns: Any, slots: Any, near: Any, state: Any, floor: float
) -> tuple[int, int, float]:
    """Return the pair of neighbors whose insertion gains most, and the gain; -1 if none may."""
    members, sizes, H, _, _, c, d = state
    q, p = c.shape
    first, second, most = -1, -1, TINY
    for i in range(p):
        if not floor < d[i] < CLOSED * 0.5:
            continue
        for b in range(near.shape[1]):
            j = near[i, b]
            if not floor < d[j] < CLOSED * 0.5:
                continue
            inner = columns[slots[i], j]
            for a in range(sizes[SIZE]):
                inner -= H[a, i] * columns[slots[members[a]], j]
            left = d[i] * d[j] - inner * inner
            if left <= floor * max(d[i], d[j]):
                continue
            gain = 0.0
            for o in range(q):
                x, y = c[o, i], c[o, j]
                gain += x * x * d[j] - 2.0 * x * y * inner + y * y * d[i]
            if gain > most * left:
                first, second, most = i, j, gain / left
    return first, second, most


@inlined
def exchange_pairs(
    columns: Any, slots: Any, start: Any, near: Any, support: Any, state: Any, floor: float
) -> float:
    """Exchange pairs of neighbors and descend until that gains no more.

    Two features that hide each other from every single exchange enter together.

    Parameters
    ----------
    columns, slots, start, state, floor : object
        As in `kick`.
    near : ndarray of shape (p, m), int64
        Neighbors of every feature.
    support : ndarray of shape (k,), int64
        Replaced by the best support found.

    Returns
    -------
    float
        What it explains.
    """
    members, sizes, H, _, _, _, _ = state
    k = support.size
    rebuild(columns, slots, start, support, state, floor)
    best = explained(start, state)
    if near.shape[1] == 0 or sizes[SIZE] < k or k - sizes[FIXED] < 2:
        return best
    better = True
    while better:
        better = False
        for ahead in range(2):
            # Leave first and enter then, and the other way around.
            rebuild(columns, slots, start, support, state, floor)
            if ahead and k + 2 > H.shape[0]:
                break
            if not ahead:
                for _ in range(2):
                    place, _ = cheapest(state)
                    remove(place, state)
            i, j, _ = dearest_pair(columns, slots, near, state, floor)
            if i < 0:
                continue
            insert(columns, slots[i], i, state)
            insert(columns, slots[j], j, state)
            while sizes[SIZE] > k:
                place, _ = cheapest(state)
                remove(place, state)
            if sizes[SIZE] < k or descend(columns, slots, state, floor, 20 * k + 100) >= 0:
                continue
            value = explained(start, state)
            if value > best * (1 + 1e-10):
                best = value
                better = True
                for a in range(k):
                    support[a] = members[a]
    return best


@compiled
def _draw(seeds: Any, below: Any) -> Any:
    """Return a number from 0 to `below` - 1 and move the generator on.

    Literals would be compiled one by one: `below` has to have a type.
    """
    x = seeds[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    seeds[0] = x
    return np.int64((x >> np.uint64(11)) % np.uint64(below))


@compiled
def kick(
    columns: Any,
    slots: Any,
    start: Any,
    near: Any,
    state: Any,
    floor: float,
    pool: Any,
    values: Any,
    seen: Any,
    seeds: Any,
    tally: Any,
    pairs: bool,
    count: int,
) -> None:
    """Perturb supports of a population and descend again, `count` times.

    Parameters
    ----------
    columns, slots : ndarray
        Columns of A; all that may be needed are there.
    start : ndarray of shape (q, p)
        Inner products with the targets.
    near : ndarray of shape (p, m), int64
        Neighbors of every feature, which may enter as pairs.
    state : tuple of ndarray
        Working space; its content is overwritten.
    floor : float
        Squared length below which a feature counts as dependent.
    pool : ndarray of shape (m, k), int64
        Supports, the first `tally[0]` of them set.
    values : ndarray of shape (m,)
        What each of them explains.
    seen : ndarray
        Values of the local optima found, the first `tally[1]` of them set.
    seeds : ndarray of shape (1,), uint64
        State of the generator.
    tally : ndarray of shape (4,), int64
        Supports in the pool, local optima seen, kicks so far, kicks since the best one changed.
    pairs : bool
        Whether to begin with exchanges of pairs in the first support, whose value is set.
    count : int
        Number of kicks.
    """
    members, sizes, H, _, _, _, d = state
    k = pool.shape[1]
    fixed = sizes[FIXED]
    free = k - fixed
    gone = np.empty(k, np.int64)
    both = np.empty(2 * k, np.int64)
    built = np.zeros(1, np.int64)
    built[0] = -1 - LASTING
    if pairs:
        values[0] = exchange_pairs(columns, slots, start, near, pool[0], state, floor)
        seen[0] = values[0]
    for _ in range(count):
        tally[2] += 1
        tally[3] += 1
        parent = _draw(seeds, tally[0])
        n_gone = 0
        if tally[0] > 1 and _draw(seeds, np.int64(4)) == 0:
            other = (parent + 1 + _draw(seeds, tally[0] - 1)) % tally[0]
            n = k
            for a in range(k):
                both[a] = pool[parent, a]
            for a in range(k):
                new = True
                for b in range(k):
                    new &= pool[parent, b] != pool[other, a]
                if new and n < H.shape[0]:
                    both[n] = pool[other, a]
                    n += 1
            move(columns, slots, start, both[:n], state, floor, built)
            while sizes[SIZE] > k:
                place = fixed + _draw(seeds, sizes[SIZE] - fixed)
                if _draw(seeds, np.int64(2)):
                    place, _ = cheapest(state)
                remove(place, state)
        else:
            for a in range(k):
                both[a] = pool[parent, a]
            size = 1 + _draw(seeds, free)
            if size > 3 and _draw(seeds, np.int64(2)):
                size = 1 + _draw(seeds, np.int64(3))
            for a in range(size):
                b = fixed + a + _draw(seeds, free - a)
                both[fixed + a], both[b] = both[b], both[fixed + a]
                gone[a] = both[fixed + a]
            n_gone = size
            for a in range(size, free):
                both[fixed + a - size] = both[fixed + a]
            move(columns, slots, start, both[: k - size], state, floor, built)
        for a in range(n_gone):
            d[gone[a]] += CLOSED * 0.75
        if near.shape[1] and k - sizes[SIZE] >= 2 and _draw(seeds, np.int64(2)):
            i, j, _ = dearest_pair(columns, slots, near, state, floor)
            if i >= 0:
                insert(columns, slots[i], i, state)
                insert(columns, slots[j], j, state)
        mask = _draw(seeds, np.int64(2**40)) + 1 if _draw(seeds, np.int64(2)) else 0
        while sizes[SIZE] < k:
            j, _ = dearest(state, floor, mask)
            if j < 0:
                if mask == 0:
                    break
                mask = 0
                continue
            insert(columns, slots[j], j, state)
        for a in range(n_gone):
            j = gone[a]
            left = 1.0
            for b in range(sizes[SIZE]):
                left -= H[b, j] * columns[slots[j], members[b]]
            d[j] = left
        if descend(columns, slots, state, floor, 20 * k + 100) >= 0 or sizes[SIZE] < k:
            continue
        value = explained(start, state)
        known = False
        for a in range(tally[1]):
            known |= abs(seen[a] - value) <= 1e-10 * value
        if not known and tally[1] < seen.shape[0]:
            seen[tally[1]] = value
            tally[1] += 1
        worst = 0
        best = 0
        inside = False
        for a in range(tally[0]):
            inside |= abs(values[a] - value) <= 1e-10 * value
            worst = a if values[a] < values[worst] else worst
            best = a if values[a] > values[best] else best
        if inside:
            continue
        if value > values[best]:
            tally[3] = 0
        if tally[0] < pool.shape[0]:
            worst = tally[0]
            tally[0] += 1
        elif value <= values[worst]:
            continue
        values[worst] = value
        for a in range(k):
            pool[worst, a] = members[a]
