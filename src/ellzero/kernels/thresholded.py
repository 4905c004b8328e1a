"""Kernels that write thresholded values, for float32 on the CPU and the power 3.

The cube root is taken by three Newton steps from a guess made of the bits of the number, which
the compiler turns into full vectors. One thread. Plain Python: a kernel runs compiled, and
interpreted (`kernel.py_func`) with the same result up to rounding.
"""
# ruff: noqa: FURB136 - min and max stop the compiler from using vectors.

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

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
# NaN must come out as NaN and infinities are used.
FAST = {"nsz", "contract"}


@njit(inline="always")
def _shrink_block(values: Any, level: Any, inverse: Any, cubes: Any, roots: Any) -> None:
    """Replace 64 values by what is shown of them; `cubes` and `roots` are int32 scratch."""
    cast = np.int32
    v = cubes.view(np.float32)
    w = roots.view(np.float32)
    for k in range(BLOCK):
        ratio = abs(values[k]) * inverse
        ratio = ratio if ratio < FAR else FAR
        cube = ratio * ratio * ratio - ONE
        v[k] = cube if cube > ZERO else ZERO
    for k in range(BLOCK):
        # Bits over three, as the sum of 1/4, 1/16, ...
        q = cast(cast(cubes[k] >> 2) + cast(cubes[k] >> 4))
        q = cast(q + cast(q >> 4))
        q = cast(q + cast(q >> 8))
        roots[k] = cast(GUESS - q)
    for k in range(BLOCK):
        third = v[k] * THIRD
        root = w[k]
        root = root * (FOUR_THIRDS - third * root * root * root)
        root = root * (FOUR_THIRDS - third * root * root * root)
        root = root * (FOUR_THIRDS - third * root * root * root)
        w[k] = level * (v[k] * root * root)
    for k in range(BLOCK):
        size = abs(values[k])
        shown = w[k] if size * inverse < FAR else size
        least = size * LEAST_SHARE
        shown = least if shown < least else shown
        shown = TINY if shown < TINY else shown
        values[k] = -shown if values[k] < ZERO else shown


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
    level = level if level > ZERO else ZERO
    inverse = ONE / level if level > ZERO else INFINITY
    values = np.ones(BLOCK, np.float32)
    cubes = np.empty(BLOCK, np.int32)
    roots = np.empty(BLOCK, np.int32)
    n = latent.size
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        block = latent[start:stop]
        for k in range(block.size):
            values[k] = block[k]
        _shrink_block(values, level, inverse, cubes, roots)
        kept = mask[start:stop]
        shown = out[start:stop]
        for k in range(shown.size):
            shown[k] = values[k] if kept[k] else ZERO


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
    cubes = np.empty(BLOCK, np.int32)
    roots = np.empty(BLOCK, np.int32)
    for start in range(0, index.size, BLOCK):
        places = index[start : start + BLOCK]
        for k in range(places.size):
            values[k] = latent[places[k]]
        _shrink_block(values, level, inverse, cubes, roots)
        for k in range(places.size):
            out[places[k]] = values[k]


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
