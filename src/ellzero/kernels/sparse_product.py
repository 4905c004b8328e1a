r"""Products of a sparse matrix with dense vectors: :math:`y = W x + b`.

Two layouts, both in slices of eight rows, so that eight sums run side by side.

*Sliced* (any zeros): each window of 128 rows is sorted by the number of nonzeros; slice ``s``
holds the rows ``order[8 s : 8 s + 8]``, and each of its steps ``k`` from ``starts[s]`` to
``starts[s + 1] - 1`` has eight values and eight columns, one for each row. Shorter rows are filled
up with zeros.

*Blocks* (zeros in 8x1 blocks): slice ``s`` holds the rows ``8 s .. 8 s + 7``, which share their
columns ``cols[starts[s] : starts[s + 1]]``; its values are eight rows of that length, one after
the other.

Columns are uint16 up to 65536 of them and uint32 beyond: half the memory traffic of the indices.

Every kernel is plain Python: it runs compiled (a second or two for the first call of each, then
from the cache on disk) and interpreted (`kernel.py_func`). Sums may be reordered and products
fused into them, so results agree up to rounding: each entry within
``(n + 1) * eps * (abs(W) @ abs(x) + abs(b))`` of the exact one for n nonzeros in the row. Kernels
work on the windows of 128 rows ``begin .. end - 1`` and release the interpreter lock, so that a
caller may give parts to threads. Biases have an entry for every lane, zeros beyond the last row.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types  # noqa: TID253
from numba.core import cgutils  # noqa: TID253
from numba.extending import intrinsic, overload  # noqa: TID253

from ellzero.kernels.memory import at

LANES = 8
WINDOW = 128

_SUM = {"contract", "reassoc", "nsz"}
_FUSE = ("contract",)


def index_type(n_columns: int) -> type[np.unsignedinteger[Any]]:
    """Return the narrowest type of column indices that the kernels know."""
    return np.uint16 if n_columns <= 1 << 16 else np.uint32


def pack_sliced(
    weight: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return values, columns, starts and order of the sliced layout of a matrix.

    Parameters
    ----------
    weight : array of shape (n_rows, n_columns)
        The matrix.

    Returns
    -------
    tuple of array
        Values and columns of shape (n_steps, 8), starts of shape (n_slices + 1,), order of
        shape (8 * n_slices,); rows beyond the last are empty.
    """
    n_rows, n_columns = weight.shape
    rows, columns = np.nonzero(weight)
    n_slices = -(-n_rows // LANES)
    n_rows = LANES * n_slices
    counts = np.bincount(rows, minlength=n_rows)
    # Sorted in windows, so that the results of a window fit the nearest cache.
    order = np.lexsort((-counts, np.arange(n_rows) // WINDOW))
    starts = np.zeros(n_slices + 1, np.int64)
    # Sorted, so the first row of a slice is its longest.
    np.cumsum(counts[order[::LANES]], out=starts[1:])
    rank = np.empty(n_rows, np.int64)
    rank[order] = np.arange(n_rows)
    step = np.arange(rows.size) - np.repeat(np.cumsum(counts) - counts, counts)
    place = (starts[rank[rows] // LANES] + step) * LANES + rank[rows] % LANES
    values = np.zeros(LANES * starts[-1], weight.dtype)
    cols = np.zeros(LANES * starts[-1], index_type(n_columns))
    values[place] = weight[rows, columns]
    cols[place] = columns
    return values.reshape(-1, LANES), cols.reshape(-1, LANES), starts, order


def pack_blocks(
    weight: np.ndarray[Any, Any],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return values, columns and starts of the layout in 8x1 blocks of a matrix.

    Parameters
    ----------
    weight : array of shape (n_rows, n_columns)
        The matrix; a last slice of fewer than eight rows is filled up with zeros.

    Returns
    -------
    tuple of array
        Values of shape (8 * n_blocks,), columns of shape (n_blocks,), starts of shape
        (n_slices + 1,).
    """
    n_rows, n_columns = weight.shape
    n_slices = -(-n_rows // LANES)
    full = np.zeros((n_slices * LANES, n_columns), weight.dtype)
    full[:n_rows] = weight
    full = full.reshape(n_slices, LANES, n_columns)
    slices, columns = np.nonzero((full != 0).any(axis=1))
    starts = np.zeros(n_slices + 1, np.int64)
    np.cumsum(np.bincount(slices, minlength=n_slices), out=starts[1:])
    values = np.concatenate(
        [full[s][:, columns[starts[s] : starts[s + 1]]].ravel() for s in range(n_slices)]
        or [np.zeros(0, weight.dtype)]
    )
    return values, columns.astype(index_type(n_columns)), starts


# One pass over the entries of a slice, with the sums in vector registers ------------------------
#
# Where the batch is the inner loop, the compiler would keep the sums in memory, at two to five
# times the time; so this one loop is written out as vector instructions.


def _make_pass(name: str, n_sums: int, width: int, unroll: int) -> Any:
    """Return a function that sums products of values and rows of `x`.

    Sum i starts from ``bias[row + i]`` and adds ``values[first + i * jump + k * step]`` times row
    ``cols[at + k * step]`` of `x`, a flat array with rows of `width` entries, for k below `count`;
    it is stored to ``out[place + i * width]`` and on. Values may be integers.
    """

    def plain(
        values: Any,
        cols: Any,
        bias: Any,
        x: Any,
        out: Any,
        first: int,
        jump: int,
        at: int,
        step: int,
        count: int,
        row: int,
        place: int,
    ) -> None:
        for i in range(n_sums):
            total = np.full(width, bias[row + i], x.dtype)
            for k in range(count):
                start = int(cols[at + k * step]) * width
                total += values[first + i * jump + k * step] * x[start : start + width]
            out[place + i * width : place + (i + 1) * width] = total

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, cols, bias, x, out = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:5], arguments[:5], strict=True)
        )
        first, jump, at, step, count, row, place = arguments[5:]
        long = ir.IntType(64)
        number = context.get_value_type(signature.args[3].dtype)
        vector = ir.VectorType(number, width)
        size = signature.args[3].dtype.bitwidth // 8
        undefined = ir.Constant(vector, ir.Undefined)
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)

        def entry(pointer: Any, *terms: Any) -> Any:
            return builder.gep(pointer, [functools.reduce(builder.add, terms)])

        def spread(pointer: Any) -> Any:
            first = ir.Constant(ir.IntType(32), 0)
            single = builder.load(pointer)
            if isinstance(single.type, ir.IntType):  # a code
                single = builder.sitofp(single, number)
            one = builder.insert_element(undefined, single, first)
            return builder.shuffle_vector(one, undefined, lanes)

        def add(k: Any, sums: list[Any]) -> None:
            move = builder.mul(k, step)
            column = builder.zext(builder.load(entry(cols, at, move)), long)
            start = entry(x, builder.mul(column, ir.Constant(long, width)))
            samples = builder.load(builder.bitcast(start, vector.as_pointer()), align=size)
            for i, total in enumerate(sums):
                lane = builder.mul(jump, ir.Constant(long, i))
                value = spread(entry(values, first, lane, move))
                product = builder.fmul(value, samples, flags=_FUSE)
                builder.store(builder.fadd(builder.load(total), product, flags=_FUSE), total)

        # Slots on the stack, which the compiler turns into registers.
        sums = [
            [cgutils.alloca_once(builder, vector) for _ in range(n_sums)]  # type: ignore[no-untyped-call]
            for _ in range(unroll)
        ]
        for u, group in enumerate(sums):
            for i, total in enumerate(group):
                begin = spread(entry(bias, row, ir.Constant(long, i)))
                builder.store(ir.Constant(vector, [0.0] * width) if u else begin, total)
        several = ir.Constant(long, unroll)
        whole = builder.sdiv(count, several)
        with cgutils.for_range(builder, whole, intp=long) as loop:
            start = builder.mul(loop.index, several)
            for u, group in enumerate(sums):
                add(builder.add(start, ir.Constant(long, u)), group)
        done = builder.mul(whole, several)
        with cgutils.for_range(builder, builder.sub(count, done), intp=long) as loop:
            add(builder.add(done, loop.index), sums[0])
        for i in range(n_sums):
            total = functools.reduce(
                functools.partial(builder.fadd, flags=_FUSE),
                [builder.load(group[i]) for group in sums],
            )
            where = entry(out, place, ir.Constant(long, i * width))
            builder.store(total, builder.bitcast(where, vector.as_pointer()), align=size)
        return context.get_dummy_value()

    @intrinsic
    def emit(
        typing: Any,
        values: Any,
        cols: Any,
        bias: Any,
        x: Any,
        out: Any,
        first: Any,
        jump: Any,
        at: Any,
        step: Any,
        count: Any,
        row: Any,
        place: Any,
    ) -> Any:
        return types.void(values, cols, bias, x, out, *[types.int64] * 7), generate

    plain.__name__ = plain.__qualname__ = name

    @overload(plain)
    def choose(
        values: Any,
        cols: Any,
        bias: Any,
        x: Any,
        out: Any,
        first: Any,
        jump: Any,
        at: Any,
        step: Any,
        count: Any,
        row: Any,
        place: Any,
    ) -> Any:
        def compiled(
            values: Any,
            cols: Any,
            bias: Any,
            x: Any,
            out: Any,
            first: Any,
            jump: Any,
            at: Any,
            step: Any,
            count: Any,
            row: Any,
            place: Any,
        ) -> Any:
            emit(  # type: ignore[call-arg]
                values, cols, bias, x, out, first, jump, at, step, count, row, place
            )

        return compiled

    return plain


def _turn(source: Any, at: int, step: int, out: Any, place: int, jump: int) -> None:
    """Write eight rows of eight entries transposed: ``out[place + i * jump + j]``."""
    for i in range(LANES):
        for j in range(LANES):
            out[place + i * jump + j] = source[at + j * step + i]


@intrinsic
def _emit_turn(
    typing: Any, source: Any, at: Any, step: Any, out: Any, place: Any, jump: Any
) -> Any:
    """Exchange halves, then quarters, then single entries between rows in registers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, at, step, out, place, jump = arguments
        kinds = signature.args
        source = context.make_array(kinds[0])(context, builder, source).data
        out = context.make_array(kinds[3])(context, builder, out).data
        long = ir.IntType(64)
        vector = ir.VectorType(context.get_value_type(kinds[0].dtype), LANES)
        size = kinds[0].dtype.bitwidth // 8

        def row(pointer: Any, first: Any, step: Any, i: int) -> Any:
            where = builder.add(first, builder.mul(step, ir.Constant(long, i)))
            return builder.bitcast(builder.gep(pointer, [where]), vector.as_pointer())

        rows = [builder.load(row(source, at, step, i), align=size) for i in range(LANES)]
        for half in (4, 2, 1):
            for i in range(LANES):
                if i & half:
                    continue
                low, high = rows[i], rows[i + half]
                first = [j if not j & half else LANES + j - half for j in range(LANES)]
                second = [j + half if not j & half else LANES + j for j in range(LANES)]
                mask = ir.VectorType(ir.IntType(32), LANES)
                rows[i] = builder.shuffle_vector(low, high, ir.Constant(mask, first))
                rows[i + half] = builder.shuffle_vector(low, high, ir.Constant(mask, second))
        for i in range(LANES):
            builder.store(rows[i], row(out, place, jump, i), align=size)
        return context.get_dummy_value()

    return types.void(source, at, step, out, place, jump), generate


@overload(_turn)
def _choose_turn(source: Any, at: Any, step: Any, out: Any, place: Any, jump: Any) -> Any:
    def compiled(source: Any, at: Any, step: Any, out: Any, place: Any, jump: Any) -> Any:
        _emit_turn(  # type: ignore[call-arg]
            source, types.int64(at), types.int64(step), out, types.int64(place), types.int64(jump)
        )

    return compiled


_row_of_8 = _make_pass("_row_of_8", 1, 8, 4)
_row_of_16 = _make_pass("_row_of_16", 1, 16, 4)
_row_of_32 = _make_pass("_row_of_32", 1, 32, 2)
_block_of_8 = _make_pass("_block_of_8", LANES, 8, 1)


@njit(cache=True, nogil=True)
def to_tiles(x: Any, tiles: Any) -> None:
    """Write a batch transposed, in tiles of a fixed width, so that the batch is contiguous.

    Parameters
    ----------
    x : array of shape (batch, n_columns)
        The batch, contiguous.
    tiles : array of shape (n_tiles, n_columns, width)
        Receives sample ``t * width + i`` at ``tiles[t, :, i]``, zeros beyond the last sample;
        `width` is a multiple of 8.
    """
    n_samples, n_columns = x.shape
    n_tiles, _, width = tiles.shape
    source, out = x.reshape(-1), tiles.reshape(-1)
    for t in range(n_tiles):
        # Sixteen columns are a cache line, which is read whole before it is left.
        for start in range(0, n_columns, 16):
            stop = min(start + 16, n_columns)
            for i in range(0, width, LANES):
                sample = t * width + i
                base = t * n_columns * width + i
                c = start
                while c + LANES <= stop and sample + LANES <= n_samples:
                    _turn(source, sample * n_columns + c, n_columns, out, base + c * width, width)
                    c += LANES
                while c < stop:
                    for j in range(LANES):
                        inside = sample + j < n_samples
                        out[base + c * width + j] = x[sample + j, c] if inside else 0
                    c += 1


@njit(cache=True, nogil=True)
def _from_tile(tile: Any, width: int, out: Any, sample: int, row: int, n_rows: int) -> None:
    """Write `n_rows` rows of a transposed tile to ``out[sample:, row:]``."""
    n_samples, n_outputs = out.shape
    flat = out.reshape(-1)
    n_rows = min(n_rows, n_outputs - row)
    for i in range(0, min(width, n_samples - sample), LANES):
        whole = n_rows - n_rows % LANES if sample + i + LANES <= n_samples else 0
        for r in range(0, whole, LANES):
            place = (sample + i) * n_outputs + row + r
            _turn(tile, r * width + i, width, flat, place, n_outputs)
        for j in range(i, min(i + LANES, n_samples - sample)):
            for r in range(whole, n_rows):
                out[sample + j, row + r] = tile[r * width + j]


@njit(cache=True, nogil=True, fastmath=_SUM)
def sliced_vectors(
    values: Any,
    cols: Any,
    starts: Any,
    order: Any,
    bias: Any,
    x: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Multiply the sliced layout by samples, one after the other.

    Parameters
    ----------
    values, cols : array of shape (n_steps, 8)
        Values and columns.
    starts : array of shape (n_slices + 1,)
        First step of every slice.
    order : array of shape (8 * n_slices,)
        Row of every lane.
    bias : array of shape (8 * n_slices,)
        Added to every sample.
    x : array of shape (batch, n_columns)
        Samples.
    out : array of shape (batch, n_rows)
        Receives the result.
    begin, end : int
        Windows of 128 rows to work on.
    """
    zero = values.dtype.type(0)
    sums = np.zeros(LANES, values.dtype)
    for i in range(x.shape[0]):
        sample = x[i]
        last = min(end * WINDOW // LANES, starts.size - 1)
        for s in range(begin * WINDOW // LANES, last):
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero
            for k in range(starts[s], starts[s + 1]):
                v = values[k]
                c = cols[k]
                a0 += v[0] * sample[c[0]]
                a1 += v[1] * sample[c[1]]
                a2 += v[2] * sample[c[2]]
                a3 += v[3] * sample[c[3]]
                a4 += v[4] * sample[c[4]]
                a5 += v[5] * sample[c[5]]
                a6 += v[6] * sample[c[6]]
                a7 += v[7] * sample[c[7]]
            sums[0], sums[1], sums[2], sums[3] = a0, a1, a2, a3
            sums[4], sums[5], sums[6], sums[7] = a4, a5, a6, a7
            for lane in range(LANES):
                row = order[LANES * s + lane]
                if row < out.shape[1]:
                    out[i, row] = sums[lane] + bias[row]


@njit(cache=True, nogil=True)
def sliced_tiles(
    values: Any,
    cols: Any,
    starts: Any,
    order: Any,
    bias: Any,
    tiles: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Multiply the sliced layout by a batch in tiles.

    Parameters
    ----------
    values, cols : array of shape (n_steps, 8)
        Values and columns.
    starts : array of shape (n_slices + 1,)
        First step of every slice.
    order : array of shape (8 * n_slices,)
        Row of every lane.
    bias : array of shape (8 * n_slices,)
        Added to every sample.
    tiles : array of shape (n_tiles, n_columns, width)
        What `to_tiles` wrote; `width` is 8, 16 or 32.
    out : array of shape (batch, n_rows)
        Receives the result; `batch` is at most ``n_tiles * width``.
    begin, end : int
        Windows of 128 rows to work on.
    """
    n_tiles, _, width = tiles.shape
    flat_values, flat_cols = values.reshape(-1), cols.reshape(-1)
    window = np.empty(WINDOW * width, values.dtype)
    for t in range(n_tiles):
        x = tiles[t].reshape(-1)
        for w in range(begin, end):
            row = WINDOW * w
            for s in range(row // LANES, min((row + WINDOW) // LANES, starts.size - 1)):
                count = starts[s + 1] - starts[s]
                for lane in range(LANES):
                    at = LANES * starts[s] + lane
                    r = order[LANES * s + lane]
                    place = (r - row) * width
                    if width == 32:
                        _row_of_32(
                            flat_values, flat_cols, bias, x, window, at, 0, at, 8, count, r, place
                        )
                    elif width == 16:
                        _row_of_16(
                            flat_values, flat_cols, bias, x, window, at, 0, at, 8, count, r, place
                        )
                    else:
                        _row_of_8(
                            flat_values, flat_cols, bias, x, window, at, 0, at, 8, count, r, place
                        )
            _from_tile(window, width, out, t * width, row, WINDOW)


@njit(cache=True, nogil=True, fastmath=_SUM)
def block_vectors(
    values: Any, cols: Any, starts: Any, bias: Any, x: Any, out: Any, begin: int, end: int
) -> None:
    """Multiply the layout in blocks by samples, one after the other.

    Parameters
    ----------
    values : array of shape (8 * n_blocks,)
        Values of the blocks.
    cols : array of shape (n_blocks,)
        Columns of the blocks.
    starts : array of shape (n_slices + 1,)
        First block of every slice.
    bias : array of shape (8 * n_slices,)
        Added to every sample.
    x : array of shape (batch, n_columns)
        Samples.
    out : array of shape (batch, n_rows)
        Receives the result.
    begin, end : int
        Windows of 128 rows to work on.
    """
    zero = values.dtype.type(0)
    sums = np.zeros(LANES, values.dtype)
    for i in range(x.shape[0]):
        sample = x[i]
        last = min(end * WINDOW // LANES, starts.size - 1)
        for s in range(begin * WINDOW // LANES, last):
            first, n = starts[s], starts[s + 1] - starts[s]
            places = cols[first : first + n]
            at = LANES * first
            v0, v1 = values[at : at + n], values[at + n : at + 2 * n]
            v2, v3 = values[at + 2 * n : at + 3 * n], values[at + 3 * n : at + 4 * n]
            v4, v5 = values[at + 4 * n : at + 5 * n], values[at + 5 * n : at + 6 * n]
            v6, v7 = values[at + 6 * n : at + 7 * n], values[at + 7 * n : at + 8 * n]
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero
            for j in range(n):
                entry = sample[places[j]]
                a0 += v0[j] * entry
                a1 += v1[j] * entry
                a2 += v2[j] * entry
                a3 += v3[j] * entry
                a4 += v4[j] * entry
                a5 += v5[j] * entry
                a6 += v6[j] * entry
                a7 += v7[j] * entry
            sums[0], sums[1], sums[2], sums[3] = a0, a1, a2, a3
            sums[4], sums[5], sums[6], sums[7] = a4, a5, a6, a7
            for lane in range(min(LANES, out.shape[1] - LANES * s)):
                out[i, LANES * s + lane] = sums[lane] + bias[LANES * s + lane]


@njit(cache=True, nogil=True)
def block_tiles(
    values: Any, cols: Any, starts: Any, bias: Any, tiles: Any, out: Any, begin: int, end: int
) -> None:
    """Multiply the layout in blocks by a batch in tiles.

    Parameters
    ----------
    values : array of shape (8 * n_blocks,)
        Values of the blocks.
    cols : array of shape (n_blocks,)
        Columns of the blocks.
    starts : array of shape (n_slices + 1,)
        First block of every slice.
    bias : array of shape (8 * n_slices,)
        Added to every sample.
    tiles : array of shape (n_tiles, n_columns, 8)
        What `to_tiles` wrote.
    out : array of shape (batch, n_rows)
        Receives the result; `batch` is at most ``8 * n_tiles``.
    begin, end : int
        Windows of 128 rows to work on.
    """
    sums = np.empty(LANES * LANES, values.dtype)
    for t in range(tiles.shape[0]):
        x = tiles[t].reshape(-1)
        last = min(end * WINDOW // LANES, starts.size - 1)
        for s in range(begin * WINDOW // LANES, last):
            at, n = starts[s], starts[s + 1] - starts[s]
            row = LANES * s
            _block_of_8(values, cols, bias, x, sums, LANES * at, n, at, 1, n, row, 0)
            _from_tile(sums, LANES, out, t * LANES, row, LANES)


@njit(cache=True, nogil=True)
def sliced_at(values: Any, cols: Any, places: Any, x: int, out: int, n_samples: int) -> None:
    """Multiply the sliced layout by samples, as `sliced_vectors`: a call costs half as much.

    Parameters
    ----------
    values, cols : array of shape (n_steps, 8)
        Values and columns.
    places : array of shape (5,), int64
        Addresses of starts, order and bias; numbers of rows and of columns.
    x, out : int
        Addresses of the samples and of the result.
    n_samples : int
        Number of samples.
    """
    n_rows, n_columns = places[3], places[4]
    n_slices = (n_rows + LANES - 1) // LANES
    kind = values.dtype.type
    sliced_vectors(
        values,
        cols,
        at(places[0], n_slices + 1, np.int64),
        at(places[1], LANES * n_slices, np.int64),
        at(places[2], LANES * n_slices, kind),
        at(x, n_samples * n_columns, kind).reshape(n_samples, n_columns),
        at(out, n_samples * n_rows, kind).reshape(n_samples, n_rows),
        0,
        n_rows // WINDOW + 1,
    )


@njit(cache=True, nogil=True)
def block_at(values: Any, cols: Any, places: Any, x: int, out: int, n_samples: int) -> None:
    """Multiply the layout in blocks by samples, as `block_vectors`: a call costs half as much.

    Parameters
    ----------
    values : array of shape (8 * n_blocks,)
        Values of the blocks.
    cols : array of shape (n_blocks,)
        Columns of the blocks.
    places, x, out, n_samples : as in `sliced_at`
        As for `sliced_at`; there is no order.
    """
    n_rows, n_columns = places[3], places[4]
    n_slices = (n_rows + LANES - 1) // LANES
    kind = values.dtype.type
    block_vectors(
        values,
        cols,
        at(places[0], n_slices + 1, np.int64),
        at(places[2], LANES * n_slices, kind),
        at(x, n_samples * n_columns, kind).reshape(n_samples, n_columns),
        at(out, n_samples * n_rows, kind).reshape(n_samples, n_rows),
        0,
        n_rows // WINDOW + 1,
    )
