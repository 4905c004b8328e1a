"""One tensor as bytes: where its nonzeros are, and what they are.

The support is a bitmap (one bit for each entry, row by row, first entry in the highest bit) or the
gaps between nonzeros (position minus the position before, minus one, from -1 on, as LEB128
integers), whichever is shorter once zlib has had its turn. Values follow in the same order, their
bytes regrouped: all first bytes, then all second bytes, and so on. A part is kept compressed only
where that is shorter. Everything is little-endian.

A quantized weight has "levels" as its values: the codes of the nonzeros, `n_bits` bits each, first
bit the highest, row by row of the matrix of outputs by inputs; its scales as the upper 16 bits of
float32, its zero points as bytes, where they are not all the same.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError
from ellzero.nn.export.quantized import QuantizedWeight

BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""Dtypes whose zeros are packed, with the integers of the same width."""

VALUES = ("exact", "float16", "int8")
LEVELS = "levels"
SUPPORTS = ("bitmap", "gaps", "all")

# Above this density a gap, of one byte at least, costs twice the bit of a bitmap.
_NO_GAPS = 0.25
_ARRAYS = {2: "<i2", 4: "<i4", 8: "<i8"}


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes of one tensor.

    Parameters
    ----------
    support : {"bitmap", "gaps", "all"}
        How the positions are told; "all" means that every entry has a value.
    values : {"exact", "float16", "int8", "levels"}
        How the values are told.
    n_nonzero : int
        Number of values.
    parts : mapping of str to bytes
        "support", "values" and, for "int8" and "levels", "scale"; for "levels" also "zero".
    compressed : tuple of str
        Parts that went through zlib.
    """

    support: str
    values: str
    n_nonzero: int
    parts: Mapping[str, bytes]
    compressed: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Size of all parts."""
        return sum(map(len, self.parts.values()))


def pack(name: str, tensor: Tensor, values: str = "exact") -> Packed | None:
    """Return the bytes of a tensor, or None where they would not be fewer than as it is.

    Parameters
    ----------
    name : str
        Name of the tensor, for messages.
    tensor : Tensor
        Of any shape; dtypes other than those of `BITS` are never packed.
    values : {"exact", "float16", "int8"}, default="exact"
        How to keep the values. Tensors of fewer than two axes are always kept exactly.

    Returns
    -------
    Packed or None
        The bytes.

    Raises
    ------
    InvalidParameterError
        If a value does not fit float16, or is not finite where int8 is asked for.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export.packing import pack, unpack
    >>> x = torch.zeros(40, 50)
    >>> x[3, 4] = 1.5
    >>> packed = pack("x", x)
    >>> packed.support, packed.n_nonzero, packed.n_bytes
    ('gaps', 1, 6)
    >>> torch.equal(unpack(packed, x.shape, x.dtype), x)
    True
    """
    if tensor.dtype not in BITS:
        return None
    tensor = tensor.detach().cpu().contiguous()
    n_bytes = tensor.numel() * tensor.element_size()
    if tensor.ndim < 2:
        values = "exact"
    flat = tensor.reshape(-1)
    places = (flat != 0).numpy().nonzero()[0]
    if places.size == flat.numel() and values == "exact":
        return None
    kept = flat[torch.from_numpy(places)]
    parts: dict[str, bytes] = {}
    if values == "exact":
        raw = kept.view(BITS[tensor.dtype]).numpy()
    elif values == "float16":
        half = kept.to(torch.float16)
        if bool((half.isinf() & ~kept.isinf()).any()):
            raise InvalidParameterError(
                f"'{name}' has values beyond 65504, the largest number of float16.",
                'Pass `values="exact"`.',
            )
        raw = half.view(torch.int16).numpy()
    else:
        raw, scale = _to_int8(name, kept, places, tensor.shape)
        parts["scale"] = scale.tobytes()
    parts["values"] = _planes(raw)
    packed = _deflated((flat != 0).numpy(), places, values, parts)
    return packed if packed.n_bytes < n_bytes else None


def pack_levels(weight: QuantizedWeight) -> Packed:
    """Return the bytes of a quantized weight.

    Parameters
    ----------
    weight : QuantizedWeight
        The weight.

    Returns
    -------
    Packed
        The bytes, whose values are "levels".

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export import QuantizedWeight
    >>> from ellzero.nn.export.packing import pack_levels
    >>> codes = torch.full((8, 8), 9, dtype=torch.uint8)
    >>> codes[:, 1:] = 8
    >>> zeros = torch.full((8, 1), 8, dtype=torch.uint8)
    >>> pack_levels(QuantizedWeight(codes, torch.ones(8, 1), zeros, 4, 8)).n_nonzero
    8
    """
    inside = weight.support.cpu().numpy().reshape(-1)
    places = inside.nonzero()[0]
    kept = weight.codes.cpu().numpy().reshape(-1)[places]
    bits = np.unpackbits(kept[:, None], axis=1)[:, 8 - weight.n_bits :]
    zeros = weight.zero_points.cpu().numpy().reshape(-1)
    scales = weight.scales.cpu().contiguous().numpy().reshape(-1).view(np.uint32) >> 16
    parts = {
        "scale": _planes(scales.astype("<u2")),
        "zero": zeros[:1].tobytes() if (zeros == zeros[:1]).all() else zeros.tobytes(),
        "values": np.packbits(bits).tobytes(),
    }
    return _deflated(inside, places, LEVELS, parts)


def unpack_levels(
    packed: Packed,
    shape: tuple[int, int],
    n_bits: int,
    group_size: int,
    dtype: torch.dtype,
    transposed: bool,
) -> QuantizedWeight:
    """Return the quantized weight that `pack_levels` took.

    Parameters
    ----------
    packed : Packed
        The bytes.
    shape : tuple of int
        Outputs and inputs.
    n_bits, group_size, dtype, transposed : as in `QuantizedWeight`
        What the bytes do not tell.

    Returns
    -------
    QuantizedWeight
        The weight.

    Raises
    ------
    ValueError
        If the bytes do not describe such a weight.
    """
    n_rows, n_inputs = shape
    if not 1 <= group_size <= max(n_inputs, 1) or not 1 <= n_bits <= 8:
        raise ValueError("levels")
    n_groups = -(-n_inputs // group_size)
    n_scales = n_rows * n_groups
    places = _places(packed, n_rows * n_inputs)
    n_bytes = -(-n_bits * places.size // 8)
    raw = np.frombuffer(_expand(packed, "values", n_bytes), np.uint8)
    scales = _expand(packed, "scale", 2 * n_scales)
    zeros = np.frombuffer(_expand(packed, "zero", n_scales), np.uint8)
    sizes = (n_scales,) if n_scales == 0 else (1, n_scales)
    if raw.size != n_bytes or len(scales) != 2 * n_scales or zeros.size not in sizes:
        raise ValueError("levels")
    bits = np.zeros((places.size, 8), np.uint8)
    bits[:, 8 - n_bits :] = np.unpackbits(raw, count=n_bits * places.size).reshape(-1, n_bits)
    zeros = np.broadcast_to(zeros, (n_scales,)).reshape(n_rows, n_groups)
    codes = np.repeat(zeros, group_size, axis=1)[:, :n_inputs].reshape(-1).copy()
    codes[places] = np.packbits(bits, axis=1).reshape(-1)
    halves = np.frombuffer(scales, np.uint8).reshape(2, n_scales).T.copy().reshape(-1)
    wide = (halves.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return QuantizedWeight(
        torch.from_numpy(codes.reshape(n_rows, n_inputs)),
        torch.from_numpy(wide.reshape(n_rows, n_groups)),
        torch.from_numpy(zeros.copy()),
        n_bits,
        group_size,
        dtype,
        transposed,
    )


def _deflated(
    inside: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    values: str,
    parts: dict[str, bytes],
) -> Packed:
    """Return the bytes of a support and of other parts, each through zlib where that helps."""
    size = inside.size
    if places.size == size:
        options = {"all": b""}
    else:
        options = {"bitmap": np.packbits(inside).tobytes()}
        if places.size <= _NO_GAPS * size:
            options["gaps"] = _to_gaps(places)
    short = {kind: _shorter(data) for kind, data in options.items()}
    support = min(short, key=lambda kind: len(short[kind][0]))
    compressed = []
    data, deflated = short[support]
    if deflated:
        compressed.append("support")
    out = {"support": data}
    for part, raw in parts.items():
        out[part], deflated = _shorter(raw)
        if deflated:
            compressed.append(part)
    return Packed(support, values, int(places.size), out, tuple(compressed))


def unpack(packed: Packed, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the tensor that `pack` took.

    Parameters
    ----------
    packed : Packed
        The bytes.
    shape : tuple of int
        Shape of the tensor.
    dtype : torch.dtype
        Dtype of the tensor.

    Returns
    -------
    Tensor
        On the CPU. With exact values, every bit as it was, but that -0.0 is 0.0.

    Raises
    ------
    ValueError
        If the bytes do not describe such a tensor.
    """
    n_entries = math.prod(shape)
    if n_entries >= 2**62:
        raise ValueError("shape")
    count = packed.n_nonzero
    places = _places(packed, n_entries)
    widths = {"exact": dtype.itemsize, "float16": 2, "int8": 1}
    width = widths[packed.values]
    raw = _expand(packed, "values", width * count)
    if len(raw) != width * count:
        raise ValueError("values")
    rows = np.frombuffer(raw, np.uint8).reshape(width, count).T.copy()
    if packed.values == "exact":
        kept = torch.from_numpy(rows.reshape(-1).view(_ARRAYS[width])).view(dtype)
    elif packed.values == "float16":
        kept = torch.from_numpy(rows.reshape(-1).view("<i2")).view(torch.float16).to(dtype)
    else:
        scale = np.frombuffer(_expand(packed, "scale", 4 * shape[0]), "<f4")
        if scale.size != shape[0]:
            raise ValueError("scale")
        per_row = n_entries // max(shape[0], 1)
        wide = rows.reshape(-1).view(np.int8) * scale[places // max(per_row, 1)]
        kept = torch.from_numpy(wide).to(dtype)
    out = torch.zeros(n_entries, dtype=dtype)
    out[torch.from_numpy(places)] = kept
    return out.reshape(shape)


def _places(packed: Packed, n_entries: int) -> np.ndarray[Any, Any]:
    """Return the positions of the values."""
    count = packed.n_nonzero
    if not 0 <= count <= n_entries:
        raise ValueError("count")
    limits = {"bitmap": -(-n_entries // 8), "gaps": 10 * count, "all": 0}
    support = _expand(packed, "support", limits[packed.support])
    if packed.support == "bitmap":
        bits = np.frombuffer(support, np.uint8)
        if bits.size != limits["bitmap"]:
            raise ValueError("bitmap")
        places = np.unpackbits(bits, count=n_entries).nonzero()[0]
    elif packed.support == "gaps":
        places = _from_gaps(support, count)
    else:
        places = np.arange(n_entries)
    if places.size != count or (count and places[-1] >= n_entries):
        raise ValueError("places")
    return places


def _to_int8(
    name: str, kept: Tensor, places: np.ndarray[Any, Any], shape: torch.Size
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return int8 values and one float32 scale for each row; zero stays zero."""
    wide = kept.to(torch.float64).numpy()
    if not np.isfinite(wide).all():
        raise InvalidParameterError(
            f"'{name}' has values that are not finite, which int8 cannot hold.",
            'Pass `values="exact"`.',
        )
    rows = places // max(int(np.prod(shape[1:], dtype=np.int64)), 1)
    largest = np.zeros(shape[0])
    np.maximum.at(largest, rows, np.abs(wide))
    # A scale of at least the least positive float32, so that nothing is divided by zero.
    scale = np.maximum(largest / 127, np.finfo(np.float32).smallest_subnormal).astype("<f4")
    if not np.isfinite(scale).all():
        raise InvalidParameterError(
            f"'{name}' has values too large for int8 with a float32 scale.",
            'Pass `values="exact"`.',
        )
    return np.clip(np.rint(wide / scale[rows]), -127, 127).astype(np.int8), scale


def _planes(values: np.ndarray[Any, Any]) -> bytes:
    """Return all first bytes, then all second bytes: exponents compress, once together."""
    width = values.dtype.itemsize
    flat = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return flat.view(np.uint8).reshape(-1, width).T.tobytes()


def _to_gaps(places: np.ndarray[Any, Any]) -> bytes:
    """Return the gaps between positions, seven bits to a byte, low bits first."""
    gaps = np.diff(places, prepend=-1) - 1
    lengths = np.ones(gaps.size, np.int64)
    rest = gaps >> 7
    while rest.any():
        lengths += rest > 0
        rest >>= 7
    starts = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), np.uint8)
    for k in range(int(lengths.max(initial=0))):
        has = lengths > k
        more = (lengths[has] > k + 1).astype(np.uint8) << 7
        out[starts[has] + k] = ((gaps[has] >> (7 * k)) & 127).astype(np.uint8) | more
    return out.tobytes()


def _from_gaps(data: bytes, count: int) -> np.ndarray[Any, Any]:
    """Return the positions whose gaps `_to_gaps` wrote."""
    read = np.frombuffer(data, np.uint8)
    ends = (read < 128).nonzero()[0]
    if ends.size != count or (read.size and read[-1] >= 128):
        raise ValueError("gaps")
    if not count:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 9:
        raise ValueError("gaps")
    shifts = 7 * (np.arange(read.size) - np.repeat(starts, lengths))
    gaps = np.add.reduceat((read & 127).astype(np.int64) << shifts, starts)
    # As floats, since the sum of wrong gaps may pass the largest integer.
    if float(gaps.astype(np.float64).sum()) + count > 2**62:
        raise ValueError("gaps")
    return np.cumsum(gaps + 1) - 1


def _shorter(data: bytes) -> tuple[bytes, bool]:
    """Return `data` through zlib where that is shorter, and whether it is."""
    deflated = zlib.compress(data, 9) if len(data) > 16 else data
    return (deflated, True) if len(deflated) < len(data) else (data, False)


def _expand(packed: Packed, part: str, limit: int) -> bytes:
    """Return a part as it was before zlib; never more than `limit` bytes."""
    data = packed.parts[part]
    if part not in packed.compressed:
        return data
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError("zlib") from error
    if len(out) > limit or not stream.eof or stream.unused_data:
        raise ValueError("length")
    return out
