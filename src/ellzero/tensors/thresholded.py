"""What training under a budget does to tensors: choose, show, check; compiled on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.tensors import named
from ellzero.tensors.selection import SMALL, _by_bracket, _flat_incumbents, _order, _Piece, _select

# A kept entry is shown no smaller than this share of its latent value, so that it is counted.
LEAST_SHARE = 2.0**-10
_SUBNORMAL = torch.tensor(2.0**-140)
# Above this density a pass over all entries is faster than one over the support.
DENSE = 1 / 3


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a `DTensor`."""
    return hasattr(tensor, "placements")


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, sharing its memory."""
    tensor = tensor.detach()
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


def share_like(part: Tensor, template: Tensor) -> Tensor:
    """Return a local part as a tensor sharded like `template`; as it is when that is not."""
    if not is_sharded(template):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(template, DTensor)
    return DTensor.from_local(
        part,
        template.device_mesh,
        template.placements,
        run_check=False,
        shape=template.shape,
        stride=template.stride(),
    )


def zeros_wide(tensor: Tensor) -> Tensor:
    """Return zeros shaped like the local part, in a type that sums can be kept in."""
    part = local(tensor)
    return torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))


def tiny(dtype: torch.dtype) -> float:
    """Return the smallest number that kept entries are raised to."""
    info = torch.finfo(dtype)
    # The range of float16 is so narrow that its subnormal numbers are in use.
    return info.tiny * info.eps if dtype == torch.float16 else info.tiny


@contextmanager
def flushed() -> Iterator[None]:
    """Round numbers too small for their exponent to zero, on the CPU, in this thread.

    The averages of an optimizer decay towards zero where a gradient stays zero, as it does behind
    a pruned unit, and arithmetic on such numbers is tens of times slower.
    """
    change = bool(_SUBNORMAL != 0) and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if change:
            torch.set_flush_denormal(False)


def count_true(mask: Tensor) -> int:
    """Return the number of True entries, over all shards."""
    if not is_sharded(mask) and mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))
    return named.to_int(mask.sum())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no entry is NaN or infinite, on any process that shares a tensor."""
    meshes: list[Any] = []
    ok = True
    sums = []
    for tensor in tensors:
        part = tensor
        if is_sharded(tensor):
            part = local(tensor)
            mesh = tensor.device_mesh  # type: ignore[attr-defined]
            meshes += [] if mesh in meshes else [mesh]
        elif tensor.is_sparse:
            part = tensor._values()
        if part.is_cpu and part.dtype == torch.float32 and part.is_contiguous():
            from ellzero.kernels.thresholded import has_only_finite

            bits = part.detach().numpy().reshape(-1).view(np.int32)
            ok = ok and has_only_finite(bits)
        elif part.numel():
            sums.append((part, part.sum()))
    # A sum may overflow where no entry does.
    ok = ok and all(
        named.all_true(torch.isfinite(s)) or named.all_true(torch.isfinite(t)) for t, s in sums
    )
    for mesh in meshes:
        import torch.distributed as dist

        flag = torch.tensor(int(ok), device=mesh.device_type)
        for axis in range(mesh.ndim):
            dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=mesh.get_group(axis))
        ok = bool(named.to_int(flag))
    return ok


def top_k(
    scores: Mapping[str, Tensor],
    count: int,
    incumbents: Mapping[str, Tensor],
    near: tuple[float, float] | None = None,
) -> tuple[dict[str, Tensor], float]:
    """Return masks of the largest magnitudes and the smallest of them.

    Parameters
    ----------
    scores : mapping of str to Tensor
        A point; dense, or sharded by rows.
    count : int
        Entries to select.
    incumbents : mapping of str to Tensor of bool
        Entries that win ties.
    near : tuple of float or None, default=None
        A guess of two magnitudes that hold the threshold between them. It changes the time, never
        the result.

    Returns
    -------
    tuple of (dict of str to Tensor of bool, float)
        Exactly `count` entries, by `ellzero.tensors.selection`, and the threshold; 0 when all
        entries are selected.
    """
    tensors = list(scores.values())
    size = sum(t.numel() for t in tensors)
    if count >= size:
        return {n: torch.ones_like(t, dtype=torch.bool) for n, t in scores.items()}, 0.0
    plain = all(t.device.type == "cpu" and not is_sharded(t) for t in tensors)
    if near is not None and plain and size > SMALL and count > 0:
        order = _order(tensors, magnitude=True)
        pieces = [
            _Piece(n, order.bits(t), _flat_incumbents(incumbents.get(n)))
            for n, t in scores.items()
        ]
        ends = order.bits(torch.tensor([max(near[0], 0.0), near[1]], dtype=order.dtype)).numpy()
        found = _by_bracket(pieces, count, order, True, (ends[0], ends[1]))
        if found is not None:
            level = order.number(torch.tensor(found[0]))
            shaped = {
                n: m.reshape(t.shape) for (n, t), m in zip(scores.items(), found[1], strict=True)
            }
            return shaped, named.to_float(level)
    masks, level = _select(scores, count, incumbents, magnitude=True)
    return masks, named.to_float(level)


def _by_kernel(tensor: Tensor, power: float | None) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        and tensor.numel() < 2**31
        and power in (None, 3.0)
    )


def positions(mask: Tensor, values: Tensor, power: float | None) -> Tensor | None:
    """Return where a local mask holds, or None where a pass over all entries is to be made."""
    if not values.is_contiguous():
        return None
    if not _by_kernel(values, power):
        index = mask.reshape(-1).nonzero().reshape(-1)
        return index if index.numel() <= DENSE * mask.numel() else None
    count = count_true(mask)
    if count > DENSE * mask.numel():
        return None
    from ellzero.kernels.thresholded import positions as write

    out = torch.empty(count + 1, dtype=torch.int32)
    write(mask.view(torch.uint8).reshape(-1).numpy(), out.numpy())
    return out[:count]


def show(
    latent: Tensor,
    mask: Tensor,
    index: Tensor | None,
    level: float,
    power: float | None,
    out: Tensor,
) -> None:
    r"""Write the thresholded values of a local tensor.

    Parameters
    ----------
    latent : Tensor
        Dense values.
    mask : Tensor of bool
        The support.
    index : Tensor or None
        What `positions` returned. With an index, entries elsewhere are left as they are.
    level : float
        The threshold tau.
    power : float or None
        The exponent p of :math:`\theta (1 - (\tau/|\theta|)^p)^{1/p}`; None keeps the values.
    out : Tensor
        Receives the values; an entry of the support never becomes zero.
    """
    if power is None:
        level = 0.0
    if _by_kernel(latent, power) and out.is_contiguous():
        from ellzero.kernels.thresholded import shrink, shrink_at

        source, target = latent.view(-1).numpy(), out.view(-1).numpy()
        tau = np.float32(level)
        if index is None:
            shrink(source, mask.view(-1).numpy(), tau, target)
        else:
            shrink_at(source, index.numpy(), tau, target)
        return
    if index is None:
        out.copy_(torch.where(mask, _shrink(latent, level, power), 0.0))
    else:
        out.view(-1)[index] = _shrink(latent.reshape(-1)[index], level, power)


def _shrink(values: Tensor, level: float, power: float | None) -> Tensor:
    # Half-width types have too few digits for the power of a ratio.
    wide = values if values.dtype == torch.float64 else values.float()
    size = wide.abs()
    if power is not None and level > 0:
        ratio = level / size.clamp_min(level)
        share = (1 - ratio**power) ** (1 / power)
        size = size * share.clamp_min(LEAST_SHARE)
    least = tiny(values.dtype)
    return torch.copysign(size.clamp_min(least), wide).to(values.dtype)


def clear(out: Tensor, index: Tensor) -> None:
    """Write zeros at the positions of the support that was."""
    if index.dtype == torch.int32:
        from ellzero.kernels.thresholded import clear_at

        clear_at(out.view(-1).numpy(), index.numpy())
        return
    out.view(-1)[index] = 0


def keep(tensor: Tensor, mask: Tensor) -> None:
    """Write zeros off the support of a local tensor; kept entries never become zero."""
    if _by_kernel(tensor, None):
        from ellzero.kernels.thresholded import keep as write

        write(tensor.view(-1).numpy(), mask.view(-1).numpy())
        return
    least = tiny(tensor.dtype)
    raised = torch.where(tensor < 0, tensor.clamp_max(-least), tensor.clamp_min(least))
    tensor.copy_(torch.where(mask, raised, 0.0))


def fit_to(tensor: Tensor, mask: Tensor, dtype: torch.dtype) -> None:
    """Raise kept entries that a narrower type would round to zero to its smallest number."""
    lost = mask & (tensor.to(dtype) == 0)
    least = torch.copysign(torch.full_like(tensor, tiny(dtype)), tensor)
    tensor.copy_(torch.where(lost, least, tensor))
