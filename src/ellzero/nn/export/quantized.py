"""A weight on few levels: its codes, and the steps and zeros of its rows or groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import IncompatibleError

BITS = (2, 8)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    r"""Matrix on few levels.

    .. math:: V_{ij} = s_{ig} (q_{ij} - z_{ig}), \quad g = \lfloor j / \text{group\_size} \rfloor

    where q are `codes`, s `scales` and z `zero_points`. An entry is zero where its code is the
    zero point, so that zeros are exact.

    Parameters
    ----------
    codes : Tensor of shape (n_outputs, n_inputs)
        uint8, below ``2 ** n_bits``.
    scales : Tensor of shape (n_outputs, n_groups)
        float32, positive, with the 8 significant bits of bfloat16: then every product with a code
        is exact in float32.
    zero_points : Tensor of shape (n_outputs, n_groups)
        uint8, below ``2 ** n_bits``.
    n_bits : int
        Bits of a code. Must be in [2, 8].
    group_size : int
        Inputs that share a scale; the last group of a row may be shorter.
    dtype : torch.dtype, default=torch.float32
        Dtype of the matrix.
    transposed : bool, default=False
        Whether the model holds the matrix as (n_inputs, n_outputs).

    Raises
    ------
    IncompatibleError
        If the parts do not describe a matrix.

    See Also
    --------
    ellzero.language.quantize_layer : Finds the codes of a layer.
    ellzero.nn.export.save : Writes them.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export import QuantizedWeight
    >>> codes = torch.tensor([[8, 15, 1]], dtype=torch.uint8)
    >>> zero_points = torch.tensor([[8]], dtype=torch.uint8)
    >>> QuantizedWeight(codes, torch.tensor([[0.5]]), zero_points, 4, 3).dequantize().tolist()
    [[0.0, 3.5, -3.5]]
    """

    codes: Tensor
    scales: Tensor
    zero_points: Tensor
    n_bits: int
    group_size: int
    dtype: torch.dtype = torch.float32
    transposed: bool = False

    def __post_init__(self) -> None:
        """Check the parts."""
        if (why := _wrong(self)) is not None:
            raise IncompatibleError(
                f"The parts of a quantized weight do not fit: {why}.",
                "Take them from `quantize_layer`, or from a file that is whole.",
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the parameter in the model."""
        shape = tuple(self.codes.shape)
        return shape[::-1] if self.transposed else shape

    @property
    def support(self) -> Tensor:
        """Mask of shape (n_outputs, n_inputs) of the codes that are not the zero point."""
        return self.codes != spread(self.zero_points, self.group_size, self.codes.shape[1])

    def differences(self) -> Tensor:
        """Return ``codes - zero_points``, int16 of shape (n_outputs, n_inputs)."""
        zeros = spread(self.zero_points, self.group_size, self.codes.shape[1])
        return self.codes.to(torch.int16) - zeros.to(torch.int16)

    def dequantize(self) -> Tensor:
        """Return the matrix as the model holds it.

        Notes
        -----
        Exact in float32 and float64; float16 and bfloat16 round to nearest and never overflow.
        """
        scales = spread(self.scales, self.group_size, self.codes.shape[1])
        wide = self.differences().to(torch.float32) * scales
        if self.dtype not in (torch.float32, torch.float64):
            most = torch.finfo(self.dtype).max
            wide = wide.clamp(-most, most)
        out = wide.to(self.dtype)
        return out.T.contiguous() if self.transposed else out


def spread(parts: Tensor, group_size: int, n_inputs: int) -> Tensor:
    """Return one column for each input from one for each group.

    Parameters
    ----------
    parts : Tensor of shape (n_outputs, n_groups)
        A number for each group.
    group_size, n_inputs : int
        Inputs of a group, and of all.

    Returns
    -------
    Tensor of shape (n_outputs, n_inputs)
        The same numbers.
    """
    return parts.repeat_interleave(group_size, dim=1)[:, :n_inputs]


def _wrong(weight: QuantizedWeight) -> str | None:
    """Return what is wrong with the parts, or None."""
    codes, scales, zeros = weight.codes, weight.scales, weight.zero_points
    if any(type(n) is not int for n in (weight.n_bits, weight.group_size)):
        return "`n_bits` and `group_size` must be integers"
    if not BITS[0] <= weight.n_bits <= BITS[1] or weight.group_size < 1:
        return f"{weight.n_bits} bits in groups of {weight.group_size}"
    if codes.dim() != 2 or codes.dtype != torch.uint8 or zeros.dtype != torch.uint8:
        return f"codes of shape {tuple(codes.shape)} and dtype {codes.dtype}"
    groups = (codes.shape[0], -(-codes.shape[1] // weight.group_size))
    if tuple(scales.shape) != groups or tuple(zeros.shape) != groups:
        return f"scales of shape {tuple(scales.shape)} for {groups[0]} x {groups[1]} groups"
    if scales.dtype != torch.float32 or weight.dtype not in DTYPES:
        return f"scales of {scales.dtype} for a weight of {weight.dtype}"
    if not bool((torch.isfinite(scales) & (scales > 0)).all()):
        return "a scale is not a positive number"
    if bool((scales.view(torch.int32) & 0xFFFF).any()):
        return "a scale has more bits than bfloat16"
    if any(t.numel() and int(t.max()) >= 2**weight.n_bits for t in (codes, zeros)):
        return f"a code needs more than {weight.n_bits} bits"
    return None


def round_up(scales: Tensor) -> Tensor:
    """Return the next numbers with the significant bits of bfloat16, as float32.

    Parameters
    ----------
    scales : Tensor
        Positive numbers in double precision.

    Returns
    -------
    Tensor
        Not below `scales`, so that what was in range stays there.
    """
    near = scales.to(torch.float32)
    up = torch.nextafter(near, torch.full_like(near, torch.inf))
    bits = torch.where(near.to(torch.float64) < scales, up, near).view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32)


def round_near(scales: Tensor) -> Tensor:
    """Return the nearest numbers with the significant bits of bfloat16, as float32."""
    near: Any = scales.to(torch.bfloat16).to(torch.float32)
    least = torch.full_like(near, 2.0**-126)
    return torch.maximum(near, least)
