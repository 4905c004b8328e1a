r"""Products of a sparse matrix of small integers: :math:`y_r = s_r\, c_r \cdot x + b_r`.

The layout is the sliced one of `sparse_product`, its values int8 or int16: half or less of the
memory that floats and their columns take. Kernels are plain Python in numba's subset, release the
interpreter lock, and work on the windows of 128 rows ``begin .. end - 1``. Sums may be reordered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types  # noqa: TID253
from numba.core import cgutils  # noqa: TID253
from numba.extending import intrinsic, overload  # noqa: TID253

from ellzero.kernels.sparse_product import (
    _FUSE,
    LANES,
    WINDOW,
    _from_tile,
    _row_of_8,
    _row_of_16,
    _row_of_32,
)

# The compiler converts codes one at a time, which takes longer than the products; here eight are
# converted at once.


def _slice(codes: Any, cols: Any, x: Any, sums: Any, at: int, count: int) -> None:
    """Write the sums over k below `count` of eight codes times eight entries of `x`."""
    total = np.zeros(LANES, x.dtype)
    for k in range(at, at + LANES * count, LANES):
        total += codes[k : k + LANES] * x[cols[k : k + LANES]]
    sums[:] = total


@intrinsic
def _emit_slice(typing: Any, codes: Any, cols: Any, x: Any, sums: Any, at: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, cols, x, sums = (
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
        )
        at, count = arguments[4:]
        kinds = [context.get_value_type(kind.dtype) for kind in signature.args[:4]]
        sizes = [kind.dtype.bitwidth // 8 for kind in signature.args[:4]]
        long, int32 = ir.IntType(64), ir.IntType(32)
        vectors = [ir.VectorType(kind, LANES) for kind in kinds]
        floats = vectors[2]

        def lanes(pointer: Any, place: Any, i: int) -> Any:
            where = builder.bitcast(builder.gep(pointer, [place]), vectors[i].as_pointer())
            return builder.load(where, align=sizes[i])

        def add(step: Any, total: Any) -> None:
            place = builder.add(at, builder.mul(step, ir.Constant(long, LANES)))
            values = builder.sitofp(lanes(codes, place, 0), floats)
            columns = lanes(cols, place, 1)
            picked = ir.Constant(floats, ir.Undefined)
            for lane in range(LANES):
                lane_index = ir.Constant(int32, lane)
                column = builder.zext(builder.extract_element(columns, lane_index), long)
                entry = builder.load(builder.gep(x, [column]))
                picked = builder.insert_element(picked, entry, lane_index)
            product = builder.fmul(values, picked, flags=_FUSE)
            builder.store(builder.fadd(builder.load(total), product, flags=_FUSE), total)

        totals = [cgutils.alloca_once(builder, floats) for _ in range(2)]  # type: ignore[no-untyped-call]
        for total in totals:
            builder.store(ir.Constant(floats, [0.0] * LANES), total)
        two = ir.Constant(long, 2)
        half = builder.sdiv(count, two)
        with cgutils.for_range(builder, half, intp=long) as loop:
            start = builder.mul(loop.index, two)
            add(start, totals[0])
            add(builder.add(start, ir.Constant(long, 1)), totals[1])
        done = builder.mul(half, two)
        with cgutils.for_range(builder, builder.sub(count, done), intp=long) as loop:
            add(builder.add(done, loop.index), totals[0])
        whole = builder.fadd(builder.load(totals[0]), builder.load(totals[1]), flags=_FUSE)
        builder.store(whole, builder.bitcast(sums, floats.as_pointer()), align=sizes[3])
        return context.get_dummy_value()

    return types.void(codes, cols, x, sums, types.int64, types.int64), generate


@overload(_slice)
def _choose_slice(codes: Any, cols: Any, x: Any, sums: Any, at: Any, count: Any) -> Any:
    def compiled(codes: Any, cols: Any, x: Any, sums: Any, at: Any, count: Any) -> Any:
        _emit_slice(codes, cols, x, sums, types.int64(at), types.int64(count))  # type: ignore[call-arg]

    return compiled


@njit(cache=True, nogil=True)
def coded_vectors(
    codes: Any,
    cols: Any,
    starts: Any,
    order: Any,
    scales: Any,
    bias: Any,
    x: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Multiply by samples, one after the other.

    Parameters
    ----------
    codes, cols : array of shape (n_steps, 8)
        Integers and columns.
    starts : array of shape (n_slices + 1,)
        First step of every slice.
    order : array of shape (8 * n_slices,)
        Row of every lane.
    scales, bias : array of shape (8 * n_slices,)
        Of every row.
    x : array of shape (batch, n_columns)
        Samples.
    out : array of shape (batch, n_rows)
        Receives the result.
    begin, end : int
        Windows of 128 rows to work on.
    """
    flat_codes, flat_cols = codes.reshape(-1), cols.reshape(-1)
    sums = np.zeros(LANES, x.dtype)
    for i in range(x.shape[0]):
        sample = x[i]
        last = min(end * WINDOW // LANES, starts.size - 1)
        for s in range(begin * WINDOW // LANES, last):
            first = LANES * starts[s]
            _slice(flat_codes, flat_cols, sample, sums, first, starts[s + 1] - starts[s])
            for lane in range(LANES):
                row = order[LANES * s + lane]
                if row < out.shape[1]:
                    out[i, row] = sums[lane] * scales[row] + bias[row]


@njit(cache=True, nogil=True)
def coded_tiles(
    codes: Any,
    cols: Any,
    starts: Any,
    order: Any,
    scales: Any,
    bias: Any,
    none: Any,
    tiles: Any,
    out: Any,
    begin: int,
    end: int,
) -> None:
    """Multiply by a batch in tiles.

    Parameters
    ----------
    codes, cols, starts, order, scales, bias : arrays
        As in `coded_vectors`.
    none : array of shape (8 * n_slices,)
        Zeros.
    tiles : array of shape (n_tiles, n_columns, width)
        What `sparse_product.to_tiles` wrote; `width` is 8, 16 or 32.
    out : array of shape (batch, n_rows)
        Receives the result; `batch` is at most ``n_tiles * width``.
    begin, end : int
        Windows of 128 rows to work on.
    """
    n_tiles, _, width = tiles.shape
    flat_codes, flat_cols = codes.reshape(-1), cols.reshape(-1)
    window = np.empty(WINDOW * width, tiles.dtype)
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
                            flat_codes, flat_cols, none, x, window, at, 0, at, 8, count, r, place
                        )
                    elif width == 16:
                        _row_of_16(
                            flat_codes, flat_cols, none, x, window, at, 0, at, 8, count, r, place
                        )
                    else:
                        _row_of_8(
                            flat_codes, flat_cols, none, x, window, at, 0, at, 8, count, r, place
                        )
                    scale, shift = scales[r], bias[r]
                    for i in range(place, place + width):
                        window[i] = window[i] * scale + shift
            _from_tile(window, width, out, t * width, row, WINDOW)
