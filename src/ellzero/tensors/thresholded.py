"""What training under a budget does to tensors: choose, show, check; compiled on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
# Up to this one the kernels that choose write lists of positions, above it masks.
FULL = 0.36


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
    places: list[int] = []
    sharded = []
    for tensor in tensors:
        part = tensor
        if type(tensor) is not Tensor and is_sharded(tensor):
            part = local(tensor)
            sharded.append(tensor)
        elif tensor.is_sparse:
            part = tensor._values()
        if part.dtype is torch.float32 and part.is_cpu and part.is_contiguous():
            places += part.data_ptr(), part.numel()
        elif part.numel():
            sums.append((part, part.sum()))
    if places:
        from ellzero.kernels.thresholded import are_finite

        ok = are_finite(np.array(places, np.int64).reshape(-1, 2))
    if not sums and not sharded:
        return bool(ok)
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

    __slots__ = ("_array", "_level", "_masks", "index", "latent", "mask", "power", "shown")

    def __init__(
        self, array: Any, level: Any, latent: Tensor, shown: Tensor, power: float | None
    ) -> None:
        self._array, self._level, self.power = array, level, power
        self.latent, self.shown = latent, shown
        self.index: Tensor | None = None
        self.mask: Tensor | None = None
        self._masks: list[Tensor] = []
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

    def spare_mask(self) -> Tensor:
        """Return a mask to write to, which is not the present one."""
        for mask in self._masks:
            if mask is not self.mask:
                return mask
        # From numpy, which asks the system for large pages.
        mask = torch.from_numpy(np.empty(self.latent.shape, np.bool_))
        self._masks.append(mask)
        return mask


@dataclass(frozen=True, slots=True)
class Choice:
    """New supports of tensors that share a budget.

    Parameters
    ----------
    supports : list of Tensor
        Of each tensor the positions, int32 and in order, or a mask where they are many.
    levels : list of float
        The smallest magnitude in each support, over all tensors that share what is left by `poor`.
    poor : frozenset of int
        Tensors that were given what they have to keep.
    """

    supports: list[Tensor]
    levels: list[float]
    poor: frozenset[int]


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

    __slots__ = ("_array", "_buffers", "_levels", "_scratch", "_sizes", "latents", "rows")

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
        self._sizes = [t.numel() for t in latents]
        n = max(SMALL, sum(self._sizes) // 32)
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
        near: Sequence[tuple[float, float] | None] | None = None,
        poor: frozenset[int] = frozenset(),
    ) -> Choice | None:
        """Choose the support of some of the tensors anew and write its values.

        Parameters
        ----------
        part : slice
            The tensors, which share the budget.
        count : int
            Entries to select; fewer than there are.
        least : sequence of int
            What each tensor has to keep; the others share what is left.
        near : sequence of (tuple of float or None) or None, default=None
            For each tensor a guess of two magnitudes that hold its threshold between them. It
            changes the time, never the result.
        poor : frozenset of int, default=frozenset()
            A guess of the tensors, counted from the first of `part`, that the budget alone would
            leave less than they have to keep. It changes the time, never the result.

        Returns
        -------
        Choice or None
            Exactly `count` entries, by `top_k` with the present support as incumbents. None when
            what has to be kept takes the budget, when too many entries are equal, or when a number
            is NaN: then nothing is changed.
        """
        from ellzero.kernels.thresholded import choose_near, renew_all

        rows = self._array[part]
        guesses = [None] * len(rows) if near is None else list(near)
        if count > FULL * sum(self._sizes[part]):
            return self._choose_masks(part, count, least, guesses[0])
        room = count + max(SMALL, count // 4)
        spare, live = self._buffers.pop(part.start, (None, None))
        if spare is None or not room <= spare.numel() <= 4 * room:
            spare = torch.empty(room, dtype=torch.int32)
        self._buffers[part.start] = spare, live
        if guesses[0] is not None and not poor:
            cuts = np.empty(len(rows) + 1, np.int64)
            target = choose_near(
                rows,
                self._levels[part],
                count,
                np.array(least, np.int64),
                guesses[0],
                self.rows[part.start].power is not None,
                cuts,
                spare.numpy(),
                *self._scratch,
            )
            if target >= 0:
                self._buffers[part.start] = live, spare
                ends = cuts.tolist()
                supports = [spare[a:b] for a, b in itertools.pairwise(ends)]
                for row, index in zip(self.rows[part], supports, strict=True):
                    row.index, row.mask = index, None
                return Choice(supports, [_magnitude(target)] * len(supports), poor)
            if target == -1:
                guesses[0] = None
        found = self._select(part, count, least, guesses, spare.numpy(), poor)
        if found is None:
            return None
        starts, counts, levels, poor = found
        supports = [spare[a : a + n] for a, n in zip(starts, counts, strict=True)]
        rows[:, 6:8] = rows[:, 3:5]
        for row, index, level in zip(self.rows[part], supports, levels, strict=True):
            row.place(index, None, level)
        renew_all(rows, self._levels[part])
        # What is read now; the other one is written next.
        self._buffers[part.start] = live, spare
        return Choice(supports, levels, poor)

    def _select(
        self,
        part: slice,
        count: int,
        least: Sequence[int],
        near: Sequence[tuple[float, float] | None],
        out: Any,
        poor: frozenset[int],
    ) -> tuple[list[int], list[int], list[float], frozenset[int]] | None:
        """Write the new supports to `out`; return where each begins, its size and threshold."""
        n, sizes = len(least), self._sizes[part]
        starts, counts, levels = [0] * n, [0] * n, [0.0] * n
        is_guess = bool(poor)
        while True:
            rich = [i for i in range(n) if i not in poor]
            left = count - sum(least[i] for i in poor)
            if not 0 < left <= sum(sizes[i] for i in rich):
                if not is_guess:
                    return None
                poor, is_guess = frozenset(), False
                continue
            found = self._pick(part, rich, left, near[rich[0]], out)
            if found is None:
                return None
            cuts, level, next_level = found
            for k, i in enumerate(rich):
                starts[i], counts[i], levels[i] = cuts[k], cuts[k + 1] - cuts[k], level
            below = frozenset(i for i in rich if counts[i] < least[i])
            if below:
                poor |= below
                continue
            filled = left
            is_sure = True
            for i in sorted(poor):
                found = self._pick(part, [i], least[i], near[i], out[filled:])
                if found is None:
                    return None
                starts[i], counts[i], levels[i] = filled, least[i], found[1]
                filled += least[i]
                # With the others it would have had no more than it has to keep.
                is_sure &= levels[i] < next_level
            if is_sure or not is_guess:
                return starts, counts, levels, poor
            poor, is_guess = frozenset(), False

    def _pick(
        self,
        part: slice,
        chosen: Sequence[int],
        count: int,
        near: tuple[float, float] | None,
        out: Any,
    ) -> tuple[list[int], float, float] | None:
        """Write the positions of the largest entries of some tensors of a part, in order.

        Return where those of each begin, the smallest magnitude among them, and a bound from below
        on the largest one that is not.
        """
        from ellzero.kernels.thresholded import remove, settle, survey

        rows = self._array[part]
        rows = rows if len(chosen) == len(rows) else rows[chosen]
        cuts = np.zeros(len(rows) + 1, np.int64)
        keys, spots = self._scratch
        for lo, hi in self._brackets(part, chosen, count, near):
            inside = survey(rows, lo, hi, cuts, out, keys, spots)
            if inside >= 0 and cuts[-1] - inside < count <= cuts[-1]:
                keys, spots = keys[:inside], spots[:inside]
                above = cuts[-1] - inside
                target, left, gone = settle(rows, count - above, lo, hi, cuts, out, keys, spots)
                remove(out, spots[:gone], cuts)
                return cuts.tolist(), _magnitude(target), _magnitude(left)
        return None

    def _choose_masks(
        self, part: slice, count: int, least: Sequence[int], near: tuple[float, float] | None
    ) -> Choice | None:
        """Choose supports of many entries, as masks; None also where a tensor is left too few."""
        from ellzero.kernels.thresholded import renew_masks, settle, tally

        rows = self._array[part]
        cuts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self._sizes[part], out=cuts[1:])
        counts = np.zeros(len(rows), np.int64)
        keys, spots = self._scratch
        for lo, hi in self._brackets(part, range(len(rows)), count, near):
            inside = tally(rows, lo, hi, counts, keys, spots)
            reached = int(counts.sum())
            if inside >= 0 and reached - inside < count <= reached:
                break
        else:
            return None
        wanted = count - (reached - inside)
        keys, spots = keys[:inside], spots[:inside]
        target, _, gone = settle(rows, wanted, lo, hi, cuts, _NOWHERE, keys, spots)
        lost = np.diff(np.searchsorted(spots[:gone], cuts))
        if (counts - lost < least).any():
            return None
        level = _magnitude(target)
        supports = []
        for row in self.rows[part]:
            mask = row.spare_mask()
            row.place(None, mask, level)
            supports.append(mask)
        renew_masks(rows, self._levels[part], np.int32(target), spots[:gone])
        return Choice(supports, [level] * len(rows), frozenset())

    def _brackets(
        self,
        part: slice,
        chosen: Sequence[int],
        count: int,
        near: tuple[float, float] | None,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield keys that hold a threshold between them: by a guess, then by a sample."""
        if near is not None:
            # As `order.ends`, for float32 alone: this runs in every choice of a training.
            lo, hi = np.array([max(near[0], 0.0), near[1]], np.float32).view(np.int32)
            yield lo, hi
        order = _order(self.latents[:1], magnitude=True)
        latents = self.latents[part]
        arrays = [order.bits(latents[i]).numpy() for i in chosen]
        starts = np.cumsum([0] + [a.size for a in arrays])
        lo, hi = _bracket(arrays, starts, count, order)
        yield np.int32(max(lo, 0)), np.int32(min(hi, _LARGEST))


_NOWHERE = np.empty(0, np.int32)
_LARGEST = 0x7F800000


def _magnitude(key: int) -> float:
    """Return the magnitude of a key; that of -1, which stands for none, is -1."""
    return -1.0 if key < 0 else float(np.array([key], np.int32).view(np.float32)[0])


def mark(index: Tensor, like: Tensor) -> Tensor:
    """Return the mask of the positions `index` of a tensor."""
    mask = torch.zeros_like(like, dtype=torch.bool, memory_format=torch.contiguous_format)
    mask.view(-1)[index.long()] = True
    return mask
