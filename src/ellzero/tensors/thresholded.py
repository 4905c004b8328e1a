"""What training under a budget does to tensors: choose, show, check; compiled on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.tensors import named
from ellzero.tensors.selection import SMALL, _bracket, _order, _select

# A kept entry is shown no smaller than this share of its latent value, so that it is counted.
LEAST_SHARE = 2.0**-10
_SUBNORMAL = 2.0**-1070
# Above this density a pass over all entries is faster than one over the support.
DENSE = 1 / 3
# And up to this one choosing by lists of positions is, with what is shown by them afterwards.
FULL = 0.6


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
    # Where numbers are flushed already, a subnormal one compares as zero.
    change = _SUBNORMAL != 0 and torch.set_flush_denormal(True)
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


def any_process(flag: bool, tensors: Iterable[Tensor]) -> bool:
    """Return whether `flag` is set on any process that shares a sharded tensor with this one."""
    import torch.distributed as dist

    meshes: list[Any] = []
    for tensor in tensors:
        mesh = getattr(tensor, "device_mesh", None)
        if mesh is not None and mesh not in meshes:
            meshes.append(mesh)
    for mesh in meshes:
        one = torch.tensor(int(flag), device=mesh.device_type)
        for axis in range(mesh.ndim):
            dist.all_reduce(one, op=dist.ReduceOp.MAX, group=mesh.get_group(axis))
        flag = bool(named.to_int(one))
    return flag


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether no entry is NaN or infinite, on any process that shares a tensor."""
    ok = True
    sums = []
    places = []
    sharded = []
    for tensor in tensors:
        part = tensor
        if type(tensor) is not Tensor and is_sharded(tensor):
            part = local(tensor)
            sharded.append(tensor)
        elif tensor.is_sparse:
            part = tensor._values()
        if part.is_cpu and part.dtype == torch.float32 and part.is_contiguous():
            places.append((part.data_ptr(), part.numel()))
        elif part.numel():
            sums.append((part, part.sum()))
    if places:
        from ellzero.kernels.thresholded import are_finite

        ok = are_finite(np.array(places, np.int64))
    # A sum may overflow where no entry does.
    ok = ok and all(
        named.all_true(torch.isfinite(s)) or named.all_true(torch.isfinite(t)) for t, s in sums
    )
    return not any_process(not ok, sharded)


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
    masks, level = _select(scores, count, incumbents, magnitude=True, near=near)
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


class _Row:
    """One tensor of a table, and what its addresses belong to."""

    __slots__ = ("_array", "_level", "index", "latent", "mask", "power", "shown")

    def __init__(
        self, array: Any, level: Any, latent: Tensor, shown: Tensor, power: float | None
    ) -> None:
        self._array, self._level, self.power = array, level, power
        self.latent, self.shown = latent, shown
        self.index: Tensor | None = None
        self.mask: Tensor | None = None
        array[:3] = latent.data_ptr(), shown.data_ptr(), latent.numel()

    def place(self, index: Tensor | None, mask: Tensor | None, level: float) -> None:
        """Say what the support is, an int32 index or a mask, and the threshold."""
        self.index, self.mask = index, mask
        self._level[0] = 0.0 if self.power is None else level
        if index is not None:
            self._array[3:6] = index.data_ptr(), index.numel(), 0
        else:
            assert mask is not None
            assert mask.is_contiguous()
            self._array[3:6] = 0, -1, mask.data_ptr()


class Table:
    """Local tensors that one kernel call thresholds, and their supports as lists of positions.

    Parameters
    ----------
    latents, shown : sequence of Tensor
        Dense values, and where the thresholded ones are written; float32 on the CPU, contiguous.
    power : float or None
        As for `show`; 3 or None.

    Notes
    -----
    Kernels get addresses, so the table holds on to every tensor that it has written down.
    """

    __slots__ = ("_array", "_buffers", "_levels", "_scratch", "latents", "rows")

    def __init__(
        self, latents: Sequence[Tensor], shown: Sequence[Tensor], power: float | None
    ) -> None:
        self.latents = list(latents)
        self._array = np.zeros((len(latents), 8), np.int64)
        self._levels = np.zeros(len(latents), np.float32)
        self.rows = [
            _Row(self._array[i], self._levels[i : i + 1], *pair, power)
            for i, pair in enumerate(zip(latents, shown, strict=True))
        ]
        # For each budget a list to write next and the one in use.
        self._buffers: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        n = max(SMALL, int(self._array[:, 2].sum()) // 32)
        self._scratch = np.empty(n, np.int32), np.empty(n, np.int64)

    @staticmethod
    def fits(latents: Sequence[Tensor], shown: Sequence[Tensor], power: float | None) -> bool:
        """Return whether the kernels know what to do with such tensors."""
        return all(
            _by_kernel(a, power) and _by_kernel(b, power) and a.numel() == b.numel()
            for a, b in zip(latents, shown, strict=True)
        )

    def show(self) -> None:
        """Write the thresholded values of all tensors, as `show` does for one."""
        from ellzero.kernels.thresholded import show_all

        show_all(self._array, self._levels)

    def choose(
        self,
        part: slice,
        count: int,
        least: Sequence[int],
        near: tuple[float, float] | None = None,
    ) -> tuple[list[Tensor], float] | None:
        """Choose the support of some of the tensors anew and write its values.

        Parameters
        ----------
        part : slice
            The tensors, which share the budget.
        count : int
            Entries to select; fewer than there are.
        least : sequence of int
            What each tensor has to keep, one or more.
        near : tuple of float or None, default=None
            A guess of two magnitudes that hold the threshold between them. It changes the time,
            never the result.

        Returns
        -------
        tuple of (list of Tensor, float) or None
            The positions of exactly `count` entries, by `top_k` with the present support as
            incumbents, and the threshold. None when a tensor would keep fewer than it has to, when
            too many entries are equal, or when a number is NaN: then nothing is changed.
        """
        from ellzero.kernels.thresholded import remove, renew_all

        rows = self._array[part]
        room = count + max(SMALL, count // 4)
        spare, live = self._buffers.pop(part.start, (None, None))
        if spare is None or not room <= spare.numel() <= 4 * room:
            spare = torch.empty(room, dtype=torch.int32)
        self._buffers[part.start] = spare, live
        found = self._survey(part, count, spare.numpy(), near)
        if found is None:
            return None
        cuts, keys, spots = found
        wanted = int(count - (cuts[-1] - keys.size))
        target = np.partition(keys, keys.size - wanted)[keys.size - wanted]
        taken = keys > target
        ties = np.flatnonzero(keys == target)
        wanted -= int(np.count_nonzero(taken))
        if wanted < ties.size:
            held = self._are_held(part, spare.numpy(), cuts, spots[ties])
            ties = np.concatenate([ties[held], ties[~held]])[:wanted]
        taken[ties] = True
        remove(spare.numpy(), spots[~taken], cuts)
        if (np.diff(cuts) < least).any():
            return None
        level = float(np.array([target]).view(np.float32)[0])
        rows[:, 6:8] = rows[:, 3:5]
        lists = [spare[a:b] for a, b in itertools.pairwise(cuts.tolist())]
        for row, index in zip(self.rows[part], lists, strict=True):
            row.place(index, None, level)
        renew_all(rows, self._levels[part])
        # What is read now; the other one is written next.
        self._buffers[part.start] = live, spare
        return lists, level

    def _survey(
        self, part: slice, count: int, out: Any, near: tuple[float, float] | None
    ) -> tuple[Any, Any, Any] | None:
        """List the positions that reach a bracket around the threshold: a guess, else a sample."""
        from ellzero.kernels.thresholded import survey

        rows = self._array[part]
        cuts = np.empty(len(rows) + 1, np.int64)
        keys, spots = self._scratch
        if near is not None:
            # As `order.ends`, for float32 alone: this runs in every choice of a training.
            lo, hi = np.array([max(near[0], 0.0), near[1]], np.float32).view(np.int32)
            inside = survey(rows, lo, hi, cuts, out, keys, spots)
            if inside >= 0 and cuts[-1] - inside < count <= cuts[-1]:
                return cuts, keys[:inside], spots[:inside]
        order = _order(self.latents[:1], magnitude=True)
        arrays = [order.bits(t).numpy() for t in self.latents[part]]
        starts = np.cumsum([0] + [a.size for a in arrays])
        lo, hi = _bracket(arrays, starts, count, order)
        inside = survey(rows, lo, hi, cuts, out, keys, spots)
        if inside >= 0 and cuts[-1] - inside < count <= cuts[-1]:
            return cuts, keys[:inside], spots[:inside]
        return None

    def _are_held(self, part: slice, out: Any, cuts: Any, spots: Any) -> Any:
        """Return which places of the list of positions are in the present support."""
        held = np.zeros(spots.size, np.bool_)
        for i, row in enumerate(self.rows[part]):
            a, b = np.searchsorted(spots, cuts[i : i + 2])
            places = out[spots[a:b]]
            if row.index is not None:
                known = row.index.numpy()
                at = np.searchsorted(known, places)
                inside = at < known.size
                held[a:b][inside] = known[at[inside]] == places[inside]
            elif row.mask is not None:
                held[a:b] = row.mask.view(-1).numpy()[places]
        return held


def mark(index: Tensor, like: Tensor) -> Tensor:
    """Return the mask of the positions `index` of a tensor."""
    mask = torch.zeros_like(like, dtype=torch.bool, memory_format=torch.contiguous_format)
    mask.view(-1)[index.long()] = True
    return mask
