r"""Counting kernels of the selection of the largest entries.

A float is read as the integer of the same bits. Without its sign bit that integer grows with the
magnitude; with the sign given back it grows with the number, and -0.0 and 0.0 are both 0. This
integer is called the *key*. Arrays come in as int16, int32 or int64 views (`bits`); `sign` is -1
to order as signed numbers and 0 to order by magnitude, in the type of the view.

Every kernel is plain Python: it runs compiled (about a second for the first call of each, then
from the cache on disk) and interpreted (`kernel.py_func`) with the same result. One thread.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types  # noqa: TID253
from numba.extending import intrinsic, overload  # noqa: TID253

BLOCK = 64
DIGIT = 16


# Sixty-four entries at once, one bit for each ----------------------------------------------------


def _emit_keys(context: Any, builder: Any, kinds: Any, arguments: Any) -> tuple[Any, Any]:
    """Return the keys of 64 entries as a vector, and a function that spreads a number."""
    bits, at, low, sign = arguments
    word = context.get_value_type(kinds[0].dtype)
    size = kinds[0].dtype.bitwidth
    vector = ir.VectorType(word, BLOCK)

    def spread(number: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        lanes = ir.VectorType(ir.IntType(32), BLOCK)
        return builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * BLOCK))

    data = context.make_array(kinds[0])(context, builder, bits).data
    start = builder.bitcast(builder.gep(data, [at]), vector.as_pointer())
    numbers = builder.load(start, align=size // 8)
    signs = builder.ashr(numbers, ir.Constant(vector, [size - 1] * BLOCK))
    signs = builder.and_(signs, spread(sign))
    bare = builder.and_(numbers, spread(low))
    return builder.sub(builder.xor(bare, signs), signs), spread


def _make_test(name: str, symbol: str, compare: Any) -> Any:
    """Return a function that tells which of 64 keys from `at` compare so with a bound."""

    def plain(bits: Any, at: int, low: Any, sign: Any, bound: Any) -> int:
        flags = 0
        for i in range(BLOCK):
            bare = int(bits[at + i]) & int(low)
            key = -bare if sign and bits[at + i] < 0 else bare
            flags |= int(compare(key, int(bound))) << i
        return flags

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        keys, spread = _emit_keys(context, builder, signature.args, arguments[:4])
        flags = builder.icmp_signed(symbol, keys, spread(arguments[4]))
        return builder.bitcast(flags, ir.IntType(BLOCK))

    @intrinsic
    def emit(typing: Any, bits: Any, at: Any, low: Any, sign: Any, bound: Any) -> Any:
        kind = bits.dtype
        return types.uint64(bits, types.int64, kind, kind, kind), generate

    plain.__name__ = plain.__qualname__ = name

    @overload(plain)
    def choose(bits: Any, at: Any, low: Any, sign: Any, bound: Any) -> Any:
        def compiled(bits: Any, at: Any, low: Any, sign: Any, bound: Any) -> Any:
            return emit(bits, at, low, sign, bound)  # type: ignore[call-arg]

        return compiled

    return plain


_reach = _make_test("_reach", ">=", operator.ge)
_exceed = _make_test("_exceed", ">", operator.gt)


def _mark(bits: Any, at: int, low: Any, sign: Any, bound: Any, out: Any) -> None:
    """Write which of 64 keys from `at` exceed a bound, a byte for each, to ``out[at:]``."""
    flags = _exceed(bits, at, low, sign, bound)
    for i in range(BLOCK):
        out[at + i] = flags >> i & 1


@intrinsic
def _emit_mark(typing: Any, bits: Any, at: Any, low: Any, sign: Any, bound: Any, out: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        keys, spread = _emit_keys(context, builder, signature.args, arguments[:4])
        flags = builder.icmp_signed(">", keys, spread(arguments[4]))
        vector = ir.VectorType(ir.IntType(8), BLOCK)
        out = context.make_array(signature.args[5])(context, builder, arguments[5]).data
        start = builder.bitcast(builder.gep(out, [arguments[1]]), vector.as_pointer())
        builder.store(builder.zext(flags, vector), start, align=1)
        return context.get_dummy_value()

    kind = bits.dtype
    return types.void(bits, types.int64, kind, kind, kind, out), generate


@overload(_mark)
def _choose_mark(bits: Any, at: Any, low: Any, sign: Any, bound: Any, out: Any) -> Any:
    def compiled(bits: Any, at: Any, low: Any, sign: Any, bound: Any, out: Any) -> Any:
        _emit_mark(bits, at, low, sign, bound, out)  # type: ignore[call-arg]

    return compiled


def _ones(flags: Any) -> int:
    """Return the number of bits that are set."""
    return int(flags).bit_count()


def _lowest(flags: Any) -> int:
    """Return the place of the lowest bit that is set."""
    return (int(flags) & -int(flags)).bit_length() - 1


@intrinsic
def _emit_ones(typing: Any, flags: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@intrinsic
def _emit_lowest(typing: Any, flags: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


@overload(_ones)
def _choose_ones(flags: Any) -> Any:
    def compiled(flags: Any) -> Any:
        return _emit_ones(flags)  # type: ignore[call-arg]

    return compiled


@overload(_lowest)
def _choose_lowest(flags: Any) -> Any:
    def compiled(flags: Any) -> Any:
        return _emit_lowest(flags)  # type: ignore[call-arg]

    return compiled


# Kernels -----------------------------------------------------------------------------------------


@njit(cache=True)
def scan(
    bits: Any,
    low: Any,
    sign: Any,
    infinity: Any,
    lo: Any,
    hi: Any,
    above: Any,
    write: bool,
    offset: int,
    keys: Any,
    places: Any,
    filled: int,
) -> tuple[int, int, int, bool]:
    """Count keys against a bracket in one pass and gather those inside.

    Parameters
    ----------
    bits : array of shape (n,)
        Integer view of the numbers.
    low : integer of the type of `bits`
        All bits but the sign.
    sign : integer of the type of `bits`
        -1 for signed order, 0 for magnitudes.
    infinity : integer of the type of `bits`
        Largest magnitude key that is no NaN.
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
    tuple of (int, int, int, bool)
        Number of keys >= lo; number of keys > hi; entries of `keys` in use, or -1 when they did
        not fit; whether a number is NaN.
    """
    cast = bits.dtype.type
    zero = cast(0)
    n = bits.size
    n_from = 0
    n_above = 0
    wrong = np.uint64(0)
    capacity = keys.size
    whole = n - n % BLOCK
    for start in range(0, whole, BLOCK):
        reach = _reach(bits, start, low, sign, lo)
        exceed = _exceed(bits, start, low, sign, hi)
        wrong |= np.uint64(_exceed(bits, start, low, zero, infinity))
        if write:
            _mark(bits, start, low, sign, hi, above)
        n_from += _ones(reach)
        n_above += _ones(exceed)
        doubtful = np.uint64(reach ^ exceed)
        if doubtful == 0 or filled < 0:
            continue
        if filled + _ones(doubtful) > capacity:
            filled = -1
            continue
        while doubtful != 0:
            i = start + _lowest(doubtful)
            doubtful &= doubtful - np.uint64(1)
            s = sign if bits[i] < 0 else zero
            keys[filled] = cast(cast(cast(bits[i] & low) ^ s) - s)
            places[filled] = offset + i
            filled += 1
    for i in range(whole, n):
        bare = cast(bits[i] & low)
        s = sign if bits[i] < 0 else zero
        key = cast(cast(bare ^ s) - s)
        wrong |= np.uint64(bare > infinity)
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
    return n_from, n_above, filled, wrong != 0


@njit(cache=True)
def sample(bits: Any, low: Any, sign: Any, offset: int, stretch: float, out: Any) -> int:
    """Write the keys of those of a tensor that are drawn, one of each stretch of all entries.

    Parameters
    ----------
    bits, low, sign : as in `scan`
        As for `scan`.
    offset : int
        Entries before this tensor.
    stretch : float
        Entries for each one that is drawn; at least 1.
    out : array of shape (m,)
        Receives the keys.

    Returns
    -------
    int
        How many were written.
    """
    cast = bits.dtype.type
    zero = cast(0)
    filled = 0
    last = int((offset + bits.size) / stretch) + 2
    for k in range(max(int(offset / stretch) - 2, 0), last):
        # At a place that avoids any period of the data.
        i = int((k + (k * 0.6180339887498949) % 1.0) * stretch) - offset
        if 0 <= i < bits.size and filled < out.size:
            s = sign if bits[i] < 0 else zero
            out[filled] = cast(cast(cast(bits[i] & low) ^ s) - s)
            filled += 1
    return filled


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
