"""Kernels that write thresholded values, for float32 on the CPU and the power 3.

The cube root is taken by three Newton steps from a guess made of the bits of the number, which
the compiler turns into full vectors. One thread. Plain Python: a kernel runs compiled, and
interpreted (`kernel.py_func`) with the same result up to rounding.

Kernels over several tensors take a *table*: an int64 array with one row for each tensor, whose
columns are named below; the addresses are those of contiguous memory that the caller keeps alive.
"""
# ruff: noqa: FURB136 - min and max stop the compiler from using vectors.

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from llvmlite.binding import llvm_version_info  # type: ignore[import-untyped]
from numba import njit, types  # noqa: TID253
from numba.core import cgutils  # noqa: TID253
from numba.extending import intrinsic, overload  # noqa: TID253

from ellzero.kernels.memory import at
from ellzero.kernels.threshold import _exceed, _lowest, _ones, _reach

# Columns of a table. A number of positions of -1 means that there is a mask instead.
LATENT, SHOWN, SIZE, INDEX, COUNT, MASK, OLD, OLD_COUNT = range(8)

BLOCK = 64
# A kept entry is shown no smaller than this share of its latent value, nor than TINY.
LEAST_SHARE = np.float32(2.0**-10)
TINY = np.float32(2.0**-126)
# From this multiple of the threshold on, shrinking is below rounding.
FAR = np.float32(512.0)
GUESS = np.int32(0x54A2FA8C)
THIRD = np.float32(1 / 3)
FOUR_THIRDS = np.float32(4 / 3)
ZERO = np.float32(0)
ONE = np.float32(1)
INFINITY = np.float32(np.inf)
# NaN must come out as NaN and infinities are used. Products are not fused into sums, so that all
# kernels write the same bits, whichever way the compiler takes.
FAST = {"nsz"}


def _bits_of(value: Any) -> Any:
    """Return the bits of a float32."""
    return value.view(np.int32)


def _float_of(bits: Any) -> Any:
    """Return the float32 of bits."""
    return bits.view(np.float32)


@intrinsic
def _emit_bits_of(typing: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _emit_float_of(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@overload(_bits_of)
def _choose_bits_of(value: Any) -> Any:
    def compiled(value: Any) -> Any:
        return _emit_bits_of(value)  # type: ignore[call-arg]

    return compiled


@overload(_float_of)
def _choose_float_of(bits: Any) -> Any:
    def compiled(bits: Any) -> Any:
        return _emit_float_of(bits)  # type: ignore[call-arg]

    return compiled


@njit(inline="always")
def _shrunk(value: Any, level: Any, inverse: Any) -> Any:
    """Return what is shown of a value of the support, for a level above zero."""
    size = abs(value)
    ratio = size * inverse
    near = ratio if ratio < FAR else FAR
    cube = near * near * near - ONE
    v = cube if cube > ZERO else ZERO
    # The bits of a cube root are about a third of those of the number.
    root = _float_of(np.int32(GUESS - np.int32(np.float32(_bits_of(v)) * THIRD)))
    third = v * THIRD
    root = root * (FOUR_THIRDS - third * root * root * root)
    root = root * (FOUR_THIRDS - third * root * root * root)
    root = root * (FOUR_THIRDS - third * root * root * root)
    shown = level * (v * root * root) if ratio < FAR else size
    least = size * LEAST_SHARE
    shown = least if shown < least else shown
    shown = TINY if shown < TINY else shown
    return -shown if value < ZERO else shown


@njit(inline="always")
def _raised(value: Any) -> Any:
    """Return what is shown of a value of the support, for a level of zero."""
    size = abs(value)
    size = TINY if size < TINY else size
    return -size if value < ZERO else size


@njit(cache=True, fastmath=FAST)
def shrink(latent: Any, mask: Any, level: Any, out: Any) -> None:
    """Write all thresholded values: shrunk ones where the mask holds, else zeros.

    Parameters
    ----------
    latent : array of shape (n,), float32
        Dense values.
    mask : array of shape (n,), bool
        The support.
    level : float32
        The threshold tau. With 0 the values are kept as they are.
    out : array of shape (n,), float32
        Receives ``sign(x) (|x|**3 - tau**3)**(1/3)`` or 0; may be `latent`.
    """
    if level > ZERO:
        inverse = ONE / level
        for i in range(latent.size):
            shown = _shrunk(latent[i], level, inverse)
            out[i] = shown if mask[i] else ZERO
    else:
        for i in range(latent.size):
            shown = _raised(latent[i])
            out[i] = shown if mask[i] else ZERO


@njit(cache=True, fastmath=FAST)
def shrink_at(latent: Any, index: Any, level: Any, out: Any) -> None:
    """Write the thresholded values at the positions of the support, and nothing elsewhere.

    Parameters
    ----------
    latent : array of shape (n,), float32
        Dense values.
    index : array of shape (s,), int32
        Positions of the support.
    level : float32
        As for `shrink`.
    out : array of shape (n,), float32
        Changed at `index` only.
    """
    level = level if level > ZERO else ZERO
    inverse = ONE / level if level > ZERO else INFINITY
    values = np.ones(BLOCK, np.float32)
    # Gathered first, so that the arithmetic is done in full vectors.
    for start in range(0, index.size, BLOCK):
        places = index[start : start + BLOCK]
        # Unsigned, or the compiler would look for negative positions.
        for k in range(places.size):
            values[k] = latent[np.uint32(places[k])]
        if level > ZERO:
            for k in range(BLOCK):
                values[k] = _shrunk(values[k], level, inverse)
        else:
            for k in range(BLOCK):
                values[k] = _raised(values[k])
        for k in range(places.size):
            out[np.uint32(places[k])] = values[k]


@njit(cache=True)
def keep(tensor: Any, mask: Any) -> None:
    """Write zeros off the support; kept entries become no smaller than the smallest number.

    Parameters
    ----------
    tensor : array of shape (n,), float32
        Changed in place.
    mask : array of shape (n,), bool
        The support.
    """
    for i in range(tensor.size):
        value = tensor[i]
        if abs(value) < TINY:
            value = -TINY if value < ZERO else TINY
        tensor[i] = value if mask[i] else ZERO


@njit(cache=True)
def clear_at(out: Any, index: Any) -> None:
    """Write zeros at the positions `index`."""
    for k in range(index.size):
        out[index[k]] = 0


@njit(cache=True)
def positions(mask: Any, out: Any) -> None:
    """Write the positions where the mask holds, in order.

    Parameters
    ----------
    mask : array of shape (n,), uint8
        0 or 1.
    out : array of shape (s + 1,), int32
        One place more than the mask has ones.
    """
    filled = 0
    n = mask.size
    whole = n - n % 8
    words = mask[:whole].view(np.uint64)
    for w in range(words.size):
        if words[w] != 0:
            for i in range(8 * w, 8 * w + 8):
                # Written always, counted when it holds: no branch to mispredict.
                out[filled] = i
                filled += mask[i]
    for i in range(whole, n):
        if mask[i] != 0:
            out[filled] = i
            filled += 1


@njit(cache=True)
def has_only_finite(bits: Any) -> bool:
    """Return whether no float32 of these bits is NaN or infinite.

    Parameters
    ----------
    bits : array of shape (n,), int32
        View of the numbers.
    """
    worst = np.int32(0)
    for i in range(bits.size):
        worst = max(worst, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    return bool(worst < np.int32(0x7F800000))


# Several tensors in one call ---------------------------------------------------------------------


LANES = 16
BARE = np.int32(0x7FFFFFFF)
NONE = np.int32(0)
LARGEST = np.int32(0x7F800000)
DIGITS = 1 << 11


def _compress(bits: Any, at: int, lo: int, base: int, out: Any, filled: int) -> int:
    """Append ``base + i`` for 16 entries i from `at` whose magnitude key is `lo` or more.

    Return the new number of entries of `out`; the 16 places from `filled` on may be written.
    """
    for i in range(at, at + LANES):
        if bits[i] & BARE >= lo:
            out[filled] = base + i
            filled += 1
    return filled


@intrinsic
def _emit_compress(
    typing: Any, bits: Any, at: Any, lo: Any, base: Any, out: Any, filled: Any
) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, at, lo, base, out, filled = arguments
        bits = context.make_array(signature.args[0])(context, builder, bits).data
        out = context.make_array(signature.args[4])(context, builder, out).data
        word, long = ir.IntType(32), ir.IntType(64)
        vector, flags = ir.VectorType(word, LANES), ir.VectorType(ir.IntType(1), LANES)

        def spread(number: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(undefined, number, ir.Constant(word, 0))
            return builder.shuffle_vector(one, undefined, ir.Constant(vector, [0] * LANES))

        start = builder.bitcast(builder.gep(bits, [at]), vector.as_pointer())
        keys = builder.and_(builder.load(start, align=4), ir.Constant(vector, [int(BARE)] * LANES))
        taken = builder.icmp_signed(">=", keys, spread(lo))
        first = builder.trunc(builder.add(base, at), word)
        places = builder.add(spread(first), ir.Constant(vector, list(range(LANES))))
        compress = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module,
            ir.FunctionType(vector, [vector, flags, vector]),
            f"llvm.experimental.vector.compress.v{LANES}i32",
        )
        packed = builder.call(compress, [places, taken, ir.Constant(vector, ir.Undefined)])
        end = builder.bitcast(builder.gep(out, [filled]), vector.as_pointer())
        builder.store(packed, end, align=4)
        ones = builder.ctpop(builder.bitcast(taken, ir.IntType(LANES)))
        return builder.add(filled, builder.zext(ones, long))

    kinds = types.int64(bits, types.int64, types.int32, types.int64, out, types.int64)
    return kinds, generate


@overload(_compress)
def _choose_compress(bits: Any, at: Any, lo: Any, base: Any, out: Any, filled: Any) -> Any:
    def compiled(bits: Any, at: Any, lo: Any, base: Any, out: Any, filled: Any) -> Any:
        return _emit_compress(bits, at, lo, base, out, filled)  # type: ignore[call-arg]

    def plain(bits: Any, at: Any, lo: Any, base: Any, out: Any, filled: Any) -> Any:
        for i in range(at, at + LANES):
            out[filled] = base + i
            filled += (bits[i] & BARE) >= lo
        return filled

    # The instruction is younger than the oldest numba that is supported.
    return compiled if llvm_version_info >= (19,) else plain


@njit(cache=True)
def are_finite(places: Any) -> bool:
    """Return whether no float32 of several tensors is NaN or infinite.

    Parameters
    ----------
    places : array of shape (n_tensors, 2), int64
        Address and number of entries of every tensor.
    """
    for t in range(places.shape[0]):
        if not has_only_finite(at(places[t, 0], places[t, 1], np.int32)):
            return False
    return True


@njit(cache=True)
def survey(table: Any, lo: Any, hi: Any, cuts: Any, out: Any, keys: Any, spots: Any) -> Any:
    """List where magnitudes reach a bracket or lie above it, in one pass over all tensors.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Of its columns LATENT and SIZE are used.
    lo, hi : int32
        The bracket of magnitude keys, both ends inside.
    cuts : array of shape (n_tensors + 1,), int64
        Receives where the list of every tensor begins in `out`.
    out : array of shape (room,), int32
        Receives the positions of keys >= lo, tensor by tensor.
    keys, spots : array of shape (capacity,), int32 and int64
        Receive the keys inside the bracket, and their places in `out`.

    Returns
    -------
    int
        Number of keys inside the bracket; -1 when something did not fit, or a number is NaN.
    """
    room = out.size - LANES
    filled = 0
    inside = 0
    wrong = np.uint64(0)
    for t in range(table.shape[0]):
        bits = at(table[t, LATENT], table[t, SIZE], np.int32)
        cuts[t] = filled
        whole = bits.size - bits.size % BLOCK
        for start in range(0, whole, BLOCK):
            reach = _reach(bits, start, BARE, NONE, lo)
            wrong |= np.uint64(_exceed(bits, start, BARE, NONE, LARGEST))
            if reach == 0:
                continue
            doubtful = np.uint64(reach ^ _exceed(bits, start, BARE, NONE, hi))
            if filled + _ones(reach) > room or inside + _ones(doubtful) > keys.size:
                return -1
            while doubtful != 0:
                i = _lowest(doubtful)
                keys[inside] = bits[start + i] & BARE
                # Those before it come first.
                before = reach & ((np.uint64(1) << np.uint64(i)) - np.uint64(1))
                spots[inside] = filled + _ones(before)
                inside += 1
                doubtful &= doubtful - np.uint64(1)
            for i in range(start, start + BLOCK, LANES):
                filled = _compress(bits, i, lo, 0, out, filled)
        for i in range(whole, bits.size):
            bare = np.int32(bits[i] & BARE)
            wrong |= np.uint64(bare > LARGEST)
            if bare >= lo:
                if filled == room:
                    return -1
                if bare <= hi:
                    if inside == keys.size:
                        return -1
                    keys[inside] = bare
                    spots[inside] = filled
                    inside += 1
                out[filled] = i
                filled += 1
    cuts[table.shape[0]] = filled
    return inside if wrong == 0 else -1


@njit
def _nth(keys: Any, n: Any, lo: Any, hi: Any) -> Any:
    """Return the n-th largest of keys between `lo` and `hi`, by histograms of their digits."""
    counts = np.empty(DIGITS, np.int64)
    lo, hi = np.int64(lo), np.int64(hi)
    while lo < hi:
        shift = 0
        while (hi - lo) >> shift >= DIGITS:
            shift += 1
        counts[:] = 0
        for j in range(keys.size):
            key = np.int64(keys[j])
            if lo <= key <= hi:
                counts[(key - lo) >> shift] += 1
        digit = (hi - lo) >> shift
        while counts[digit] < n:
            n -= counts[digit]
            digit -= 1
        lo += digit << shift
        hi = min(hi, lo + (1 << shift) - 1)
    return lo


@njit
def _holds(table: Any, t: int, i: int) -> bool:
    """Return whether entry i of tensor t is in the present support."""
    if table[t, COUNT] >= 0:
        index = at(table[t, INDEX], table[t, COUNT], np.int32)
        place = np.searchsorted(index, i)
        return bool(place < index.size and index[place] == i)
    if table[t, MASK] == 0:
        return False
    return bool(at(table[t, MASK], table[t, SIZE], np.uint8)[i] != 0)


@njit(cache=True)
def settle(
    table: Any, wanted: Any, lo: Any, hi: Any, cuts: Any, out: Any, keys: Any, spots: Any
) -> Any:
    """Take the largest of the keys in a bracket, incumbents first among equal ones.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Its columns INDEX, COUNT and MASK say what the present support is.
    wanted : int
        How many to take, one or more.
    lo, hi : int32
        The bracket.
    cuts : array of shape (n_tensors + 1,), int64
        Where the spots of every tensor begin.
    out : array of shape (room,), int32
        Positions at the spots; with a room of 0 a spot counts entries from the first tensor on.
    keys, spots : array of shape (n,), int32 and int64
        The keys, and their spots in order; those that are not taken are moved to the front.

    Returns
    -------
    tuple of three int
        The smallest key taken, the largest one not taken (-1 without one), and how many are not.
    """
    target = _nth(keys, wanted, lo, hi)
    equal = 0
    left = np.int64(-1)
    for j in range(keys.size):
        wanted -= keys[j] > target
        equal += keys[j] == target
        if keys[j] < target:
            left = max(left, np.int64(keys[j]))
    incumbents = others = wanted
    if wanted < equal:
        left = target
        held = 0
        t = 0
        for j in range(keys.size):
            if keys[j] == target:
                while spots[j] >= cuts[t + 1]:
                    t += 1
                held += _holds(table, t, out[spots[j]] if out.size else spots[j] - cuts[t])
        incumbents = min(held, wanted)
        others = wanted - incumbents
    gone = 0
    t = 0
    for j in range(keys.size):
        taken = keys[j] > target or (keys[j] == target and wanted == equal)
        if keys[j] == target and wanted < equal:
            while spots[j] >= cuts[t + 1]:
                t += 1
            if _holds(table, t, out[spots[j]] if out.size else spots[j] - cuts[t]):
                taken = incumbents > 0
                incumbents -= 1
            else:
                taken = others > 0
                others -= 1
        if not taken:
            spots[gone] = spots[j]
            gone += 1
    return target, left, gone


@njit(cache=True)
def tally(table: Any, lo: Any, hi: Any, counts: Any, keys: Any, spots: Any) -> Any:
    """Count the magnitudes that reach a bracket, and list those inside it.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Of its columns LATENT and SIZE are used.
    lo, hi : int32
        The bracket of magnitude keys, both ends inside.
    counts : array of shape (n_tensors,), int64
        Receives how many keys of every tensor are >= lo.
    keys, spots : array of shape (capacity,), int32 and int64
        Receive the keys inside the bracket, and where they are: entries counted from the first
        tensor on.

    Returns
    -------
    int
        Number of keys inside the bracket; -1 when they do not fit, or a number is NaN.
    """
    inside = 0
    before = 0
    wrong = np.uint64(0)
    for t in range(table.shape[0]):
        bits = at(table[t, LATENT], table[t, SIZE], np.int32)
        reached = 0
        whole = bits.size - bits.size % BLOCK
        for start in range(0, whole, BLOCK):
            reach = _reach(bits, start, BARE, NONE, lo)
            wrong |= np.uint64(_exceed(bits, start, BARE, NONE, LARGEST))
            reached += _ones(reach)
            doubtful = np.uint64(reach ^ _exceed(bits, start, BARE, NONE, hi))
            if inside + _ones(doubtful) > keys.size:
                return -1
            while doubtful != 0:
                i = start + _lowest(doubtful)
                keys[inside] = bits[i] & BARE
                spots[inside] = before + i
                inside += 1
                doubtful &= doubtful - np.uint64(1)
        for i in range(whole, bits.size):
            bare = np.int32(bits[i] & BARE)
            wrong |= np.uint64(bare > LARGEST)
            if bare >= lo:
                reached += 1
                if bare <= hi:
                    if inside == keys.size:
                        return -1
                    keys[inside] = bare
                    spots[inside] = before + i
                    inside += 1
        counts[t] = reached
        before += bits.size
    return inside if wrong == 0 else -1


@njit(cache=True)
def remove(out: Any, spots: Any, cuts: Any) -> None:
    """Take entries out of consecutive lists, and move the others together.

    Parameters
    ----------
    out : array of shape (room,), int32
        The lists, changed in place.
    spots : array of int64
        Places in `out` of what goes, in order.
    cuts : array of shape (n_tensors + 1,), int64
        Where every list begins, changed in place.
    """
    kept = spots[0] if spots.size else cuts[-1]
    for j in range(spots.size):
        stop = spots[j + 1] if j + 1 < spots.size else cuts[-1]
        for k in range(spots[j] + 1, stop):
            out[kept] = out[k]
            kept += 1
    gone = 0
    for t in range(cuts.size):
        while gone < spots.size and spots[gone] < cuts[t]:
            gone += 1
        cuts[t] -= gone


@njit(cache=True)
def show_all(table: Any, levels: Any) -> None:
    """Write the thresholded values of several tensors, by `shrink_at` or `shrink`.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Without OLD and OLD_COUNT.
    levels : array of shape (n_tensors,), float32
        The thresholds.
    """
    for t in range(table.shape[0]):
        latent = at(table[t, LATENT], table[t, SIZE], np.float32)
        shown = at(table[t, SHOWN], table[t, SIZE], np.float32)
        if table[t, COUNT] >= 0:
            index = at(table[t, INDEX], table[t, COUNT], np.int32)
            shrink_at(latent, index, levels[t], shown)
        else:
            shrink(latent, at(table[t, MASK], table[t, SIZE], np.uint8), levels[t], shown)


# Entries between a clearing and a writing, so that both find them in a near cache.
SPAN = 1 << 15


@njit(cache=True)
def renew_all(table: Any, levels: Any) -> None:
    """Write the thresholded values of new supports over those of old ones.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        OLD and OLD_COUNT say where a tensor may hold something else than zero; an OLD_COUNT of -1
        means everywhere.
    levels : array of shape (n_tensors,), float32
        The thresholds.
    """
    for t in range(table.shape[0]):
        n = table[t, SIZE]
        latent = at(table[t, LATENT], n, np.float32)
        shown = at(table[t, SHOWN], n, np.float32)
        index = at(table[t, INDEX], table[t, COUNT], np.int32)
        old = at(table[t, OLD], max(table[t, OLD_COUNT], 0), np.int32)
        a = b = 0
        for start in range(0, n, SPAN):
            stop = min(start + SPAN, n)
            if table[t, OLD_COUNT] < 0:
                shown[start:stop] = ZERO
            while a < old.size and old[a] < stop:
                shown[np.uint32(old[a])] = ZERO
                a += 1
            first = b
            b += np.searchsorted(index[b:], stop)
            shrink_at(latent, index[first:b], levels[t], shown)


@njit(cache=True)
def choose_near(
    table: Any,
    levels: Any,
    wanted: Any,
    least: Any,
    near: Any,
    shrinks: Any,
    cuts: Any,
    out: Any,
    keys: Any,
    spots: Any,
) -> Any:
    """Choose supports that share a budget by a guess of the threshold, and write their values.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Its INDEX, COUNT and MASK become the new supports, OLD and OLD_COUNT the present ones.
    levels : array of shape (n_tensors,), float32
        Receives the threshold of what is shown.
    wanted : int
        How many to take, one or more.
    least : array of shape (n_tensors,), int64
        What every tensor has to keep.
    near : tuple of two float
        Magnitudes that hold the threshold between them, perhaps.
    shrinks : bool
        Whether values are shrunk by the threshold.
    cuts : array of shape (n_tensors + 1,), int64
        Receives where the list of every tensor begins in `out`.
    out : array of shape (room,), int32
        Receives the lists.
    keys, spots : array of shape (capacity,), int32 and int64
        Scratch.

    Returns
    -------
    int
        The smallest key taken. With table, levels and values as they were: -1 when the guess was
        wrong, something did not fit, or a number is NaN; -2 when a tensor is left too few.
    """
    lo = _bits_of(np.float32(max(near[0], 0.0)))
    hi = _bits_of(np.float32(near[1]))
    inside = survey(table, lo, hi, cuts, out, keys, spots)
    above = cuts[-1] - inside
    if inside < 0 or not above < wanted <= cuts[-1]:
        return np.int64(-1)
    some = spots[:inside]
    target, _, gone = settle(table, wanted - above, lo, hi, cuts, out, keys[:inside], some)
    remove(out, some[:gone], cuts)
    for t in range(table.shape[0]):
        if cuts[t + 1] - cuts[t] < least[t]:
            return np.int64(-2)
    for t in range(table.shape[0]):
        table[t, OLD], table[t, OLD_COUNT] = table[t, INDEX], table[t, COUNT]
        table[t, INDEX], table[t, COUNT] = out[cuts[t] :].ctypes.data, cuts[t + 1] - cuts[t]
        table[t, MASK] = 0
        levels[t] = _float_of(np.int32(target)) if shrinks else ZERO
    renew_all(table, levels)
    return np.int64(target)


@njit(cache=True, fastmath=FAST)
def renew_masks(table: Any, levels: Any, target: Any, left: Any) -> None:
    """Write new supports as masks, and their thresholded values, over those of old ones.

    Parameters
    ----------
    table : array of shape (n_tensors, 8), int64
        Without INDEX, OLD and OLD_COUNT.
    levels : array of shape (n_tensors,), float32
        The thresholds of what is shown.
    target : int32
        Magnitude keys from this on are in the support.
    left : array of int64
        But for these, entries counted from the first tensor on, in order.
    """
    before = 0
    gone = 0
    for t in range(table.shape[0]):
        n = table[t, SIZE]
        latent = at(table[t, LATENT], n, np.float32)
        kept = at(table[t, MASK], n, np.uint8)
        out = at(table[t, SHOWN], n, np.float32)
        level = levels[t]
        if level > ZERO:
            inverse = ONE / level
            for i in range(n):
                shown = _shrunk(latent[i], level, inverse)
                taken = np.int32(_bits_of(latent[i]) & BARE) >= target
                kept[i] = taken
                out[i] = shown if taken else ZERO
        else:
            for i in range(n):
                shown = _raised(latent[i])
                taken = np.int32(_bits_of(latent[i]) & BARE) >= target
                kept[i] = taken
                out[i] = shown if taken else ZERO
        while gone < left.size and left[gone] < before + n:
            kept[left[gone] - before] = 0
            out[left[gone] - before] = ZERO
            gone += 1
        before += n
