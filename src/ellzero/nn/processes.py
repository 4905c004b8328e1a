"""What several processes that train one model have to agree on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import IncompatibleError
from ellzero.tensors import named, thresholded

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio
_MIXERS = ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1))


@torch.no_grad()
def support_hash(model: nn.Module) -> str:
    r"""Return sixteen digits that tell supports apart, however the model is sharded.

    .. math:: h = \sum_{w_{k,i} \ne 0} \mathrm{mix}(i + k \varphi) \mod 2^{64}

    over entry i, row by row, of weight k (from 1), with the mixing function of SplitMix64 [1]_.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights of two axes or more are looked at; names do not matter. Plain, replicated or
        sharded; with sharded parameters every process must call this function.

    Returns
    -------
    str
        In base 16. Different supports have the same digits with a chance of about 5e-20.

    Raises
    ------
    IncompatibleError
        If a parameter is split twice along one axis.

    See Also
    --------
    check_same_support : Compares the processes.

    Notes
    -----
    One pass over the weights, and one integer for each weight is summed over the shards.

    References
    ----------
    .. [1] G. Steele, D. Lea and C. Flood, "Fast splittable pseudorandom number generators",
       OOPSLA, 2014.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import support_hash
    >>> model = torch.nn.Linear(3, 2)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 2]]))
    >>> support_hash(model)
    'f40d68f92c8c201b'
    """
    weights = [p.detach() for p in model.parameters() if p.ndim >= 2]
    sums = [_sum_of(k, weight) for k, weight in enumerate(weights)]
    sharded: dict[Any, list[int]] = {}
    for k, weight in enumerate(weights):
        if thresholded.is_sharded(weight):
            place = (weight.device_mesh, weight.placements)  # type: ignore[attr-defined]
            sharded.setdefault(place, []).append(k)
    for (mesh, placements), members in sharded.items():
        import torch.distributed as dist

        part = torch.stack([sums[k] for k in members])
        for axis, placement in enumerate(placements):
            if not placement.is_replicate():
                dist.all_reduce(part, group=mesh.get_group(axis))
        for k, total in zip(members, part, strict=True):
            sums[k] = total
    digits = sum(named.to_int(total) for total in sums) % 2**64
    return f"{digits:016x}"


def check_same_support(model: nn.Module, group: Any = None) -> str:
    """Raise unless every process holds the same support.

    Parameters
    ----------
    model : torch.nn.Module
        The model of this process.
    group : torch.distributed.ProcessGroup or None, default=None
        Processes that train copies or shards of one model. None means all.

    Returns
    -------
    str
        The `support_hash`, which is the same everywhere.

    Raises
    ------
    IncompatibleError
        If a process holds another support than the first. It is raised on all of them.

    See Also
    --------
    support_hash : What is compared.

    Notes
    -----
    Every process of the group must call this function; without a process group there is nothing to
    compare. Replicas differ when their gradients do: the model was not wrapped, or it started from
    other weights.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import check_same_support, support_hash
    >>> model = torch.nn.Linear(3, 2)
    >>> check_same_support(model) == support_hash(model)
    True
    """
    import torch.distributed as dist

    digits = support_hash(model)
    if not (dist.is_available() and dist.is_initialized()):
        return digits
    device = next(model.parameters()).device
    halves = [int(digits[:8], 16), int(digits[8:], 16)]
    mine = torch.tensor(halves, device=device)
    found = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, mine, group=group)
    others = [str(i) for i, t in enumerate(found) if not torch.equal(t, found[0])]
    if others:
        raise IncompatibleError(
            f"Every process must hold the same support, got another one than that of process 0 "
            f"on {len(others)} of {len(found)}: {', '.join(others)}.",
            "Wrap the model (DDP, FSDP2) before it is given to `HardThresholding`, and train it "
            "through the wrapper.",
        )
    return digits


def _sum_of(k: int, weight: Tensor) -> Tensor:
    """Return the sum of the mixed positions of the nonzeros that this process holds."""
    place = torch.zeros((), dtype=torch.int64, device=weight.device)
    starts = _starts(weight)
    for axis, index in enumerate((thresholded.local(weight) != 0).nonzero(as_tuple=True)):
        place = place * weight.shape[axis] + (index + starts[axis])
    return _mix(place + _signed((k + 1) * _GOLDEN)).sum()


def _starts(weight: Tensor) -> list[int]:
    """Return the first index, along every axis, of what this process holds."""
    starts = [0] * weight.ndim
    if not thresholded.is_sharded(weight):
        return starts
    from torch.distributed.tensor import Shard

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    split = [(axis, p) for axis, p in enumerate(placements) if not p.is_replicate()]
    if len({getattr(p, "dim", None) for _, p in split}) < len(split) or not all(
        type(p) is Shard for _, p in split
    ):
        raise IncompatibleError(
            f"Every axis of a parameter must be split by one axis of the mesh, got {placements}.",
            "Redistribute the parameter first.",
        )
    for axis, p in split:
        # As `torch.chunk`: equal parts, rounded up, the last ones short or empty.
        part = -(-weight.shape[p.dim] // mesh.size(axis))
        starts[p.dim] = min(part * mesh.get_local_rank(axis), weight.shape[p.dim])
    return starts


def _mix(x: Tensor) -> Tensor:
    for shift, factor in _MIXERS:
        x = x ^ ((x >> shift) & (2 ** (64 - shift) - 1))  # a shift without the sign
        x = x * factor
    return x


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
