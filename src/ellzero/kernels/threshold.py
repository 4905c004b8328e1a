r"""Counting kernels of the selection of the largest entries.

A float is read as the integer of the same bits. Without its sign bit that integer grows with the
magnitude; with the sign given back it grows with the number, and -0.0 and 0.0 are both 0. This
integer is called the *key*. Arrays come in as int16, int32 or int64 views (`bits`); `sign` is -1
to order as signed numbers and 0 to order by magnitude, in the type of the view.

Every kernel is plain Python: it runs compiled (about a second for the first call of each, then
from the cache on disk) and interpreted (`kernel.py_func`) with the same result. One thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

BLOCK = 64
DIGIT = 16


@njit(cache=True)
def scan(
    bits: Any,
    low: Any,
    sign: Any,
    lo: Any,
    hi: Any,
    above: Any,
    write: bool,
    offset: int,
    keys: Any,
    places: Any,
    filled: int,
) -> tuple[int, int, int, int]:
    """Count keys against a bracket in one pass and gather those inside.

    Parameters
    ----------
    bits : array of shape (n,)
        Integer view of the numbers.
    low : integer of the type of `bits`
        All bits but the sign.
    sign : integer of the type of `bits`
        -1 for signed order, 0 for magnitudes.
    lo, hi : integer of the type of `bits`
        The bracket, both ends inside.
    above : array of shape (n,), bool
        Set to key > hi where `write`; may be empty otherwise.
    write : bool
        Whether to fill `above`.
    offset : int
        Added to the positions that are stored.
    keys, places : array of shape (capacity,)
        Receive keys inside the bracket, with their positions, from index `filled` on.
    filled : int
        Entries of `keys` in use.

    Returns
    -------
    tuple of int
        Number of keys >= lo; number of keys > hi; entries of `keys` in use, or -1 when they did
        not fit; the largest magnitude key, which tells of NaN.
    """
    cast = bits.dtype.type
    zero = cast(0)
    n = bits.size
    n_from = 0
    n_above = 0
    worst = cast(0)
    capacity = keys.size
    doubtful = np.zeros(BLOCK, np.uint8)
    words = doubtful.view(np.uint64)
    whole = n - n % BLOCK
    for start in range(0, whole, BLOCK):
        block = bits[start : start + BLOCK]
        # Counters as wide as the keys and a fixed length let the compiler count in full vectors.
        c_from = cast(0)
        c_above = cast(0)
        for i in range(BLOCK):
            bare = cast(block[i] & low)
            s = sign if block[i] < 0 else zero
            key = cast(cast(bare ^ s) - s)
            c_from = cast(c_from + cast(key >= lo))
            c_above = cast(c_above + cast(key > hi))
            worst = max(worst, bare)
        if write:
            out = above[start : start + BLOCK]
            for i in range(BLOCK):
                s = sign if block[i] < 0 else zero
                key = cast(cast(cast(block[i] & low) ^ s) - s)
                out[i] = key > hi
        n_from += c_from
        n_above += c_above
        inside = c_from - c_above
        if inside == 0 or filled < 0:
            continue
        if filled + inside > capacity:
            filled = -1
            continue
        for i in range(BLOCK):
            s = sign if block[i] < 0 else zero
            key = cast(cast(cast(block[i] & low) ^ s) - s)
            doubtful[i] = (key >= lo) & (key <= hi)
        # Few flags are set: eight are passed over at a time.
        for w in range(BLOCK // 8):
            if words[w] == 0:
                continue
            for i in range(8 * w, 8 * w + 8):
                if doubtful[i]:
                    s = sign if block[i] < 0 else zero
                    keys[filled] = cast(cast(cast(block[i] & low) ^ s) - s)
                    places[filled] = offset + start + i
                    filled += 1
    for i in range(whole, n):
        bare = cast(bits[i] & low)
        s = sign if bits[i] < 0 else zero
        key = cast(cast(bare ^ s) - s)
        worst = max(worst, bare)
        n_from += key >= lo
        n_above += key > hi
        if write:
            above[i] = key > hi
        if lo <= key <= hi and filled >= 0:
            if filled == capacity:
                filled = -1
            else:
                keys[filled] = key
                places[filled] = offset + i
                filled += 1
    return n_from, n_above, filled, worst


@njit(cache=True)
def histogram(bits: Any, low: Any, sign: Any, shift: int, prefix: int, counts: Any) -> None:
    """Add to `counts` the 16-bit digit at `shift` of keys whose higher bits equal `prefix`.

    Parameters
    ----------
    bits, low, sign : as in `scan`
        As for `scan`.
    shift : int
        Bits below the digit.
    prefix : int
        Value of ``key >> (shift + 16)`` that counts. At the top digit, where no higher bit is left
        but the sign, every key counts and the digit is stored from -32768 on.
    counts : array of shape (65536,), int64
        Changed in place.
    """
    top = shift + DIGIT == bits.itemsize * 8
    for i in range(bits.size):
        s = np.int64(sign) if bits[i] < 0 else np.int64(0)
        key = (np.int64(bits[i] & low) ^ s) - s
        if top:
            counts[(key >> shift) + 32768] += 1
        elif (key >> (shift + DIGIT)) == prefix:
            counts[(key >> shift) & 65535] += 1


@njit(cache=True)
def count_ties(bits: Any, low: Any, sign: Any, target: Any, incumbents: Any) -> tuple[int, int]:
    """Return how many keys equal `target`, among incumbents and elsewhere.

    Parameters
    ----------
    bits, low, sign : as in `scan`
        As for `scan`.
    target : integer of the type of `bits`
        The key.
    incumbents : array of shape (n,) or (0,), bool
        Entries counted apart; empty means none.

    Returns
    -------
    tuple of int
        Ties that are incumbents; ties that are not.
    """
    held = 0
    others = 0
    for i in range(bits.size):
        s = np.int64(sign) if bits[i] < 0 else np.int64(0)
        if (np.int64(bits[i] & low) ^ s) - s == target:
            if incumbents.size > 0 and incumbents[i]:
                held += 1
            else:
                others += 1
    return held, others


@njit(cache=True)
def fill(
    bits: Any,
    low: Any,
    sign: Any,
    target: Any,
    incumbents: Any,
    take_held: int,
    take_others: int,
    out: Any,
) -> None:
    """Write the mask of keys above `target` and of the first ties.

    Parameters
    ----------
    bits, low, sign, target, incumbents : as in `count_ties`
        As for `count_ties`.
    take_held, take_others : int
        Ties to take among incumbents and elsewhere, in order of position.
    out : array of shape (n,), bool
        Receives the mask.
    """
    for i in range(bits.size):
        s = np.int64(sign) if bits[i] < 0 else np.int64(0)
        key = (np.int64(bits[i] & low) ^ s) - s
        chosen = key > target
        if key == target:
            if incumbents.size > 0 and incumbents[i]:
                chosen = take_held > 0
                take_held -= 1
            else:
                chosen = take_others > 0
                take_others -= 1
        out[i] = chosen


@njit(cache=True)
def select_rows(
    bits: Any, low: Any, sign: Any, count: int, incumbents: Any, out: Any, targets: Any
) -> Any:
    """Select the largest keys of every row by bisection on counts.

    Parameters
    ----------
    bits : array of shape (size, n)
        Integer view of the numbers, int32 or int64; n is at least 1 and below 2**31.
    low, sign : integer of the type of `bits`
        As for `scan`.
    count : int
        Entries to select, in [1, n].
    incumbents : array of shape (size, n) or (0, 0), bool
        Entries that win ties; empty means none.
    out : array of shape (size, n), bool
        Receives the masks.
    targets : array of shape (size,)
        Receives the `count`-th largest key of each row.

    Returns
    -------
    int
        The largest magnitude key, which tells of NaN.

    Notes
    -----
    A row costs one counting pass for each halving of the range of its keys and stops early when
    a count hits `count`: about log2(n) passes for spread numbers, 31 or 63 at the most.
    """
    cast = bits.dtype.type
    zero = cast(0)
    size, n = bits.shape
    keys = np.empty(n, bits.dtype)
    worst = cast(0)
    for r in range(size):
        first = low
        last = cast(-low)
        for i in range(n):
            bare = cast(bits[r, i] & low)
            s = sign if bits[r, i] < 0 else zero
            key = cast(cast(bare ^ s) - s)
            keys[i] = key
            worst = max(worst, bare)
            first = min(first, key)
            last = max(last, key)
        # Invariant: at least `count` keys are >= floor, fewer than `count` are > ceiling.
        floor = first
        ceiling = last
        n_floor = n
        while floor < ceiling and n_floor != count:
            # The upper middle, without overflow for keys of both signs.
            middle = cast((floor >> 1) + (ceiling >> 1) + (((floor & 1) + (ceiling & 1) + 1) >> 1))
            c = cast(0)
            for i in range(n):
                c = cast(c + cast(keys[i] >= middle))
            if c >= count:
                floor = middle
                n_floor = c
            else:
                ceiling = cast(middle - 1)
        target = low
        if n_floor == count:
            for i in range(n):
                out[r, i] = keys[i] >= floor
                if keys[i] >= floor:
                    target = min(target, keys[i])
        else:
            target = floor
            places = count
            for i in range(n):
                out[r, i] = keys[i] > target
                places -= keys[i] > target
            if incumbents.size > 0:
                for i in range(n):
                    if places > 0 and keys[i] == target and incumbents[r, i]:
                        out[r, i] = True
                        places -= 1
            for i in range(n):
                if places <= 0:
                    break
                if keys[i] == target and not out[r, i]:
                    out[r, i] = True
                    places -= 1
        targets[r] = target
    return worst
