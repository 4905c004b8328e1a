r"""Products of a sparse matrix of small integers: :math:`y_r = s_r\, c_r \cdot x + b_r`.

The layout is the sliced one of `sparse_product`, its values int8 or int16: half or less of the
memory that floats and their columns take. Kernels are plain Python in numba's subset, release the
interpreter lock, and work on the windows of 128 rows ``begin .. end - 1``. Sums may be reordered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

from ellzero.kernels.sparse_product import (
    _SUM,
    LANES,
    WINDOW,
    _from_tile,
    _row_of_8,
    _row_of_16,
    _row_of_32,
)


@njit(cache=True, nogil=True, fastmath=_SUM)
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
    kind = x.dtype.type
    zero = kind(0)
    sums = np.zeros(LANES, x.dtype)
    for i in range(x.shape[0]):
        sample = x[i]
        last = min(end * WINDOW // LANES, starts.size - 1)
        for s in range(begin * WINDOW // LANES, last):
            a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero
            for k in range(starts[s], starts[s + 1]):
                v = codes[k]
                c = cols[k]
                a0 += kind(v[0]) * sample[c[0]]
                a1 += kind(v[1]) * sample[c[1]]
                a2 += kind(v[2]) * sample[c[2]]
                a3 += kind(v[3]) * sample[c[3]]
                a4 += kind(v[4]) * sample[c[4]]
                a5 += kind(v[5]) * sample[c[5]]
                a6 += kind(v[6]) * sample[c[6]]
                a7 += kind(v[7]) * sample[c[7]]
            sums[0], sums[1], sums[2], sums[3] = a0, a1, a2, a3
            sums[4], sums[5], sums[6], sums[7] = a4, a5, a6, a7
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
