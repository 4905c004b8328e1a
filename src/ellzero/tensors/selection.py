r"""Exact selection of the largest entries, the only code that knows ties and shards.

Entries are ordered by number; equal entries by whether they are incumbents (entries of the
support at hand), then by position: first tensor first, row by row. -0.0 and 0.0 are equal. The
search is for a threshold, by counting the integers that have the bits of the numbers, so it takes
linear time and nothing is sorted. On the CPU compiled kernels count; elsewhere, torch. On sharded
tensors every process counts its own part and only counts are summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import (
    IncompatibleError,
    InvalidParameterError,
    NonFiniteError,
    did_you_mean,
)
from ellzero.tensors import named
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer

BINS = 65536
# Up to here one kernel call on all entries is faster than sampling a bracket.
SMALL = 32768
# Entries turned into keys at a time by torch, which needs temporary memory for them.
CHUNK = 1 << 24
# Up to this length comparing all pairs of a group is faster than searching a threshold.
PAIRS = 16

_VIEWS = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Order:
    """How numbers become keys: the type compared in, and whether the sign counts."""

    dtype: torch.dtype
    signed: bool

    @property
    def view(self) -> torch.dtype:
        return _VIEWS[self.dtype][0] if self.dtype in _VIEWS else torch.int64

    @property
    def low(self) -> int:
        return torch.iinfo(self.view).max

    @property
    def infinity(self) -> int:
        """Largest magnitude key that is no NaN."""
        return _VIEWS[self.dtype][1] if self.dtype in _VIEWS else self.low

    def bits(self, tensor: Tensor) -> Tensor:
        """Return the integer view, flattened; a view of the memory where that is possible."""
        tensor = tensor.detach()
        if self.dtype in _VIEWS:
            return tensor.to(self.dtype).contiguous().reshape(-1).view(self.view)
        whole = tensor.to(torch.int64).reshape(-1).clamp(min=-self.low)
        return torch.where(whole < 0, -whole | ~self.low, whole)

    def keys(self, bits: Tensor) -> Tensor:
        bare = bits & self.low
        return torch.where(bits < 0, -bare, bare) if self.signed else bare

    def ends(self, near: tuple[float, float]) -> tuple[Any, Any]:
        """Return the keys of two numbers."""
        low = near[0] if self.signed else max(near[0], 0.0)
        keys = self.keys(self.bits(torch.tensor([low, near[1]], dtype=self.dtype))).numpy()
        return keys[0], keys[1]

    def scalars(self) -> tuple[Any, Any]:
        """Return the kernels' `low` and `sign`."""
        kind = _numpy_type(self.view)
        return kind(self.low), kind(-1 if self.signed else 0)

    def number(self, key: Tensor) -> Tensor:
        """Return the numbers of keys."""
        key = key.to(self.view)
        if self.dtype not in _VIEWS:
            return key
        return torch.where(key < 0, -key | ~self.low, key).view(self.dtype)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Entries of one tensor that this process holds.

    `counts` is False for a copy that another process counts; `slot` is the place of the piece in
    its tensor, in row-major order.
    """

    name: str
    bits: Tensor
    incumbents: Tensor | None
    counts: bool = True
    slot: int = 0


def _numpy_type(view: torch.dtype) -> Any:
    return {torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64}[view]


def _order(tensors: Sequence[Tensor], magnitude: bool) -> _Order:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    if dtype.is_complex:
        raise IncompatibleError(
            f"Only real numbers can be ordered, got {dtype}.", "Pass the magnitudes."
        )
    if dtype.is_floating_point and dtype not in _VIEWS:
        dtype = torch.float32
    return _Order(dtype, not magnitude)


def _refuse_nan(name: str) -> NonFiniteError:
    return NonFiniteError(
        f"Entries are selected by size, got NaN in {name!r}.",
        "Reduce the step size or look for missing values in the data.",
    )


def _check_nan(scores: Mapping[str, Tensor]) -> None:
    for name, tensor in scores.items():
        if named.any_true(torch.isnan(tensor)):
            raise _refuse_nan(name)


def _covered(scores: Params, names: tuple[str, ...] | None) -> dict[str, Tensor]:
    if names is None:
        return dict(scores)
    for name in names:
        if name not in scores:
            listed = ", ".join(repr(known) for known in scores)
            raise InvalidParameterError(
                f"`names` must name tensors of the point, {listed}, got {name!r}."
                f"{did_you_mean(name, scores)}"
            )
    return {name: tensor for name, tensor in scores.items() if name in names}


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def top_k_masks(
    scores: Params,
    n_nonzero: int,
    *,
    incumbents: Masks | None = None,
    names: tuple[str, ...] | None = None,
    magnitude: bool = False,
    near: tuple[float, float] | None = None,
) -> Masks:
    """Return where the largest entries of all tensors together are.

    Parameters
    ----------
    scores : mapping of str to Tensor
        Numbers to compare: a point, or a `Batch` whose rows are treated one by one. Floats of any
        width, or integers; infinities are allowed.
    n_nonzero : int
        Number of entries to select. Must be at least 0; a number above the number of entries
        selects all of them.
    incumbents : mapping of str to Tensor of bool or None, default=None
        Entries that win ties. None, or a name that is not there, means none.
    names : tuple of str or None, default=None
        Tensors that share the budget; the others come back True everywhere. None means all.
    magnitude : bool, default=False
        Whether magnitudes are compared instead of numbers. No copy of the magnitudes is made.
    near : tuple of float or None, default=None
        A guess of two numbers, or magnitudes, that hold the threshold between them, such as those
        around the threshold of a moment ago. It changes the time, never the result.

    Returns
    -------
    mapping of str to Tensor of bool
        Masks of the kind, names, shapes, devices and placements of `scores`, with exactly
        ``min(n_nonzero, number of entries)`` True entries over the tensors in `names`, for each
        row of a batch.

    Raises
    ------
    InvalidParameterError
        If `n_nonzero` is negative or not an integer, or if `names` holds an unknown name.
    NonFiniteError
        If a score is NaN.
    IncompatibleError
        If a sharded tensor is split other than by rows, if shards and incumbents are placed
        differently, or if a batch is sharded.

    See Also
    --------
    threshold : The smallest number that is selected.
    top_k_along_last : The same within groups of equal length.

    Notes
    -----
    Linear time and no sort. On the CPU a sample brackets the threshold and one pass counts, writes
    the mask and gathers the few entries in doubt; two to four passes of histograms follow only
    when the sample misleads or when too many entries are equal. With a good guess in `near` that
    pass is all: as long as reading the entries once, and writing the masks. Equal entries are
    selected incumbents first, then first tensor first and row by row. On sharded tensors
    histograms of 65,536 counts are summed over the processes, two of them for float32, and then
    the numbers of ties; no tensor is gathered.

    Examples
    --------
    >>> import torch
    >>> from ellzero.tensors.selection import top_k_masks
    >>> scores = {"coef": torch.tensor([3.0, 1.0, 2.0, 2.0])}
    >>> top_k_masks(scores, 2)["coef"].tolist()
    [True, False, True, False]
    >>> incumbents = {"coef": torch.tensor([False, False, False, True])}
    >>> top_k_masks(scores, 2, incumbents=incumbents)["coef"].tolist()
    [True, False, False, True]
    """
    n_nonzero = check_integer("n_nonzero", n_nonzero, 0)
    covered = named.like(scores, _covered(scores, names))
    held = {} if incumbents is None else {n: incumbents[n] for n in covered if n in incumbents}
    masks = _select(covered, n_nonzero, held, magnitude, near=near)[0] if covered else {}
    return named.like(
        scores,
        {
            name: masks[name] if name in masks else torch.ones_like(tensor, dtype=torch.bool)
            for name, tensor in scores.items()
        },
    )


def threshold(
    scores: Params,
    n_nonzero: int,
    *,
    magnitude: bool = False,
    near: tuple[float, float] | None = None,
) -> Tensor:
    """Return the smallest of the `n_nonzero` largest entries of all tensors together.

    Parameters
    ----------
    scores : mapping of str to Tensor
        Numbers to compare, a point or a `Batch`, as for `top_k_masks`.
    n_nonzero : int
        Number of entries. Must be at least 0; a number above the number of entries means all.
    magnitude : bool, default=False
        Whether magnitudes are compared instead of numbers.
    near : tuple of float or None, default=None
        A guess of two numbers, or magnitudes, that hold the threshold between them, such as those
        around the threshold of a moment ago. It changes the time, never the result.

    Returns
    -------
    Tensor of shape () or (size,)
        An entry of `scores`, or its magnitude, in their type; zero comes as 0.0. Infinity, or
        the largest integer, when no entry is asked for or there is none.

    Raises
    ------
    InvalidParameterError
        If `n_nonzero` is negative or not an integer.
    NonFiniteError
        If a score is NaN.

    Notes
    -----
    The cost is that of `top_k_masks` without the writing of masks.

    Examples
    --------
    >>> import torch
    >>> from ellzero.tensors.selection import threshold
    >>> threshold({"coef": torch.tensor([3.0, -1.0, -2.0])}, 2, magnitude=True)
    tensor(2.)
    """
    n_nonzero = check_integer("n_nonzero", n_nonzero, 0)
    return _select(scores, n_nonzero, {}, magnitude, write=False, near=near)[1]


def top_k_along_last(scores: Tensor, n: int, incumbents: Tensor | None = None) -> Tensor:
    """Return where the `n` largest entries of every group along the last axis are.

    Parameters
    ----------
    scores : Tensor of shape (..., m)
        Groups of m numbers.
    n : int
        Entries to select in each group. Must be at least 0; above m it selects all.
    incumbents : Tensor of shape (..., m), bool, or None, default=None
        Entries that win ties; the lowest position comes next.

    Returns
    -------
    Tensor of shape (..., m), bool
        Masks with exactly ``min(n, m)`` True entries in each group.

    Raises
    ------
    InvalidParameterError
        If `n` is negative or not an integer.
    NonFiniteError
        If a score is NaN.

    Notes
    -----
    Groups of up to 16 entries take m (m - 1) / 2 comparisons, longer ones a threshold search.

    Examples
    --------
    >>> import torch
    >>> from ellzero.tensors.selection import top_k_along_last
    >>> top_k_along_last(torch.tensor([[1.0, 4.0, 2.0, 2.0]]), 2).tolist()
    [[False, True, True, False]]
    """
    n = check_integer("n", n, 0)
    scores = scores.detach()
    _check_nan({"scores": scores})
    m = scores.shape[-1]
    if n == 0 or n >= m or scores.numel() == 0:
        return torch.full_like(scores, n > 0, dtype=torch.bool)
    if m > PAIRS:
        rows = named.Batch({"scores": scores.reshape(-1, m)})
        held = {} if incumbents is None else {"scores": incumbents.reshape(-1, m)}
        return _select(rows, n, held, magnitude=False)[0]["scores"].reshape(scores.shape)
    columns = scores.unbind(-1)
    held_columns = None if incumbents is None else incumbents.unbind(-1)
    losses = [torch.zeros(scores.shape[:-1], dtype=torch.int8, device=scores.device)] * m
    for j in range(1, m):
        for i in range(j):
            first = columns[i] >= columns[j]
            if held_columns is not None:
                later = held_columns[j] & ~held_columns[i]
                first = first & ~(later & (columns[i] == columns[j]))
            losses[j] = losses[j] + first
            losses[i] = losses[i] + ~first
    return torch.stack([loss < n for loss in losses], dim=-1)


def _select(
    scores: Params,
    count: int,
    incumbents: Mapping[str, Tensor],
    magnitude: bool,
    *,
    write: bool = True,
    kernels: bool = True,
    near: tuple[float, float] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the masks (empty unless `write`) and the threshold."""
    tensors = list(scores.values())
    order = _order(tensors, magnitude)
    # Kernels count on the CPU only; `kernels` lets tests run the torch path there too.
    kernels = kernels and all(t.device.type == "cpu" for t in tensors)
    if any(_is_sharded(t) for t in tensors):
        if named.is_batch(scores):
            raise IncompatibleError(
                "A batch of points must not be sharded, got DTensors.",
                "Select for one point at a time.",
            )
        return _select_sharded(
            dict(scores), count, incumbents, order, write=write, kernels=kernels
        )
    if named.is_batch(scores):
        return _select_batch(scores, count, incumbents, order, write=write, kernels=kernels)
    n = named.size(scores)
    if n == 0 or count == 0:
        _check_nan(scores)
        masks = {m: torch.zeros_like(t, dtype=torch.bool) for m, t in scores.items()}
        return masks, _nothing(order, (), tensors[0].device)
    if kernels and n <= SMALL:
        rows = named.to_batch(scores)
        held = {name: mask.unsqueeze(0) for name, mask in incumbents.items()}
        batch, targets = _select_batch(rows, count, held, order, write=write, kernels=kernels)
        return {name: mask.squeeze(0) for name, mask in batch.items()}, targets[0]
    pieces = [
        _Piece(name, order.bits(t), _flat_incumbents(incumbents.get(name)))
        for name, t in scores.items()
    ]
    count = min(count, n)
    found = None
    if kernels and near is not None:
        found = _by_bracket(pieces, count, order, write, order.ends(near))
    if kernels and found is None:
        found = _by_bracket(pieces, count, order, write)
    target, flat = found or _by_histograms(pieces, count, order, write=write, kernels=kernels)
    shaped = {name: m.reshape(t.shape) for (name, t), m in zip(scores.items(), flat, strict=write)}
    return shaped, order.number(torch.tensor(target, device=tensors[0].device))


def _nothing(order: _Order, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the threshold that no entry reaches."""
    if order.dtype.is_floating_point:
        return torch.full(shape, torch.inf, dtype=order.dtype, device=device)
    return torch.full(shape, order.low, dtype=torch.int64, device=device)


def _flat_incumbents(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.detach().to(torch.bool).contiguous().reshape(-1)


def _array(incumbents: Tensor | None) -> Any:
    return np.empty(0, np.bool_) if incumbents is None else incumbents.numpy()


# One point on the CPU --------------------------------------------------------------------------


def _by_bracket(
    pieces: Sequence[_Piece],
    count: int,
    order: _Order,
    write: bool,
    bracket: tuple[Any, Any] | None = None,
) -> tuple[int, list[Tensor]] | None:
    """Search with one pass around a bracket, sampled or given; None when it does not hold."""
    from ellzero.kernels.threshold import scan

    low, sign = order.scalars()
    arrays = [piece.bits.numpy() for piece in pieces]
    starts = np.cumsum([0] + [a.size for a in arrays])
    n = int(starts[-1])
    lo, hi = bracket or _bracket(arrays, starts, count, order)
    # From numpy, which asks the system for large pages: the first touch of small ones costs more
    # than all the rest.
    masks = [torch.from_numpy(np.empty(a.size, np.bool_)) for a in arrays] if write else []
    capacity = max(SMALL, n // 32)
    keys = np.empty(capacity, low.dtype)
    places = np.empty(capacity, np.int64)
    n_from = n_above = filled = 0
    for i, (piece, bits) in enumerate(zip(pieces, arrays, strict=True)):
        above = masks[i].numpy() if write else np.empty(0, np.bool_)
        c_from, c_above, filled, wrong = scan(
            bits,
            low,
            sign,
            type(low)(order.infinity),
            lo,
            hi,
            above,
            write,
            int(starts[i]),
            keys,
            places,
            filled,
        )
        if wrong:
            raise _refuse_nan(piece.name)
        n_from += c_from
        n_above += c_above
    if not n_above < count <= n_from or filled < 0:
        return None
    keys, places = keys[:filled], places[:filled]
    # The `wanted`-th largest of the entries in doubt is the threshold.
    wanted = count - n_above
    target = np.partition(keys, filled - wanted)[filled - wanted]
    if write:
        flags = keys > target
        ties = np.flatnonzero(keys == target)
        wanted -= int(np.count_nonzero(flags))
        if wanted < ties.size:
            held = np.zeros(ties.size, np.bool_)
            for i, piece in enumerate(pieces):
                if piece.incumbents is not None:
                    a, b = np.searchsorted(places[ties], starts[i : i + 2])
                    held[a:b] = piece.incumbents.numpy()[places[ties[a:b]] - starts[i]]
            ties = np.concatenate([ties[held], ties[~held]])[:wanted]
        flags[ties] = True
        # Places ascend, so each tensor has one stretch of them.
        cuts = np.searchsorted(places, starts)
        for i, mask in enumerate(masks):
            part = slice(cuts[i], cuts[i + 1])
            mask.numpy()[places[part][flags[part]] - starts[i]] = True
    return int(target), masks


def _bracket(arrays: Sequence[Any], starts: Any, count: int, order: _Order) -> tuple[Any, Any]:
    """Return two keys that hold the threshold between them, most likely."""
    from ellzero.kernels.threshold import sample

    n = int(starts[-1])
    m = min(1 << (14 if n < 1 << 22 else 16 if n < 1 << 25 else 18), n)
    low, sign = order.scalars()
    keys = np.empty(m, low.dtype)
    filled = 0
    for bits, start in zip(arrays, starts, strict=False):
        filled += sample(bits, low, sign, int(start), n / m, keys[filled:])
    keys = keys[:filled]
    m = filled
    share = count / n
    # Four standard deviations of the rank.
    slack = 4.0 * math.sqrt(m * share * (1.0 - share)) + 2.0
    upper = m - math.floor(share * m - slack)
    lower = m - 1 - math.ceil(share * m + slack)
    kind = keys.dtype.type
    ends = [min(max(lower, 0), m - 1), min(max(upper, 0), m - 1)]
    keys.partition(ends)
    lo = keys[ends[0]] if lower >= 0 else kind(-order.low)
    hi = keys[ends[1]] if upper < m else kind(order.low)
    return lo, hi


# Histograms: other devices, shards, and brackets that did not hold ------------------------------


def _add_digits(
    total: Tensor, piece: _Piece, order: _Order, shift: int, prefix: int, *, kernels: bool
) -> None:
    """Add to `total` how often each 16-bit digit at `shift` occurs below `prefix`."""
    if kernels:
        from ellzero.kernels.threshold import histogram

        histogram(piece.bits.numpy(), *order.scalars(), shift, prefix, total.numpy())
        return
    top = shift + 16 >= 8 * piece.bits.element_size()
    for part in torch.split(piece.bits, CHUNK):
        keys = order.keys(part)
        if top:
            digit = (keys >> shift).to(torch.int32) + BINS // 2
        else:
            digit = (keys[(keys >> (shift + 16)) == prefix] >> shift) & (BINS - 1)
        total += torch.bincount(digit, minlength=BINS).to(total.device)


def _has_nan(piece: _Piece, order: _Order) -> Tensor:
    """Return 1 or 0, as a 0-d tensor."""
    out = torch.zeros((), dtype=torch.int64, device=piece.bits.device)
    for part in torch.split(piece.bits, CHUNK):
        if part.numel():
            out |= ((part & order.low).amax() > order.infinity).to(torch.int64)
    return out


def _by_histograms(
    pieces: Sequence[_Piece],
    count: int,
    order: _Order,
    *,
    write: bool,
    kernels: bool,
    reduce: Reduce = lambda counts: counts,
    slots: int = 1,
    device: torch.device | None = None,
) -> tuple[int, list[Tensor]]:
    """Search with one histogram for each 16 bits; `reduce` sums over processes."""
    device = device or pieces[0].bits.device
    shift = torch.iinfo(order.view).bits - 16
    prefix = 0
    wanted = count
    first = True
    while True:
        # NaN anywhere must stop every process, so its flags travel with the first message.
        n_flags = len(pieces) if first else 0
        message = torch.zeros(BINS + n_flags, dtype=torch.int64, device=device)
        for i, piece in enumerate(pieces):
            if piece.counts:
                _add_digits(message[:BINS], piece, order, shift, prefix, kernels=kernels)
            if first:
                message[BINS + i] = _has_nan(piece, order)
        message = reduce(message)
        if first:
            for piece, flag in zip(pieces, named.to_list(message[BINS:]), strict=True):
                if flag:
                    raise _refuse_nan(piece.name)
        from_top = message[:BINS].flip(0).cumsum_(0).cpu()
        place = named.to_int(torch.searchsorted(from_top, max(wanted, 1)))
        place = min(place, BINS - 1)
        digit = BINS - 1 - place
        wanted -= named.to_int(from_top[place - 1]) if place else 0
        prefix = digit - BINS // 2 if first else (prefix << 16) | digit
        first = False
        if shift == 0:
            break
        shift -= 16
    ties = named.to_int(from_top[place]) - (named.to_int(from_top[place - 1]) if place else 0)
    if not write:
        return prefix, []
    return prefix, _write_masks(
        pieces,
        prefix,
        wanted,
        ties,
        order,
        kernels=kernels,
        reduce=reduce,
        slots=slots,
        device=device,
    )


def _write_masks(
    pieces: Sequence[_Piece],
    target: int,
    wanted: int,
    ties: int,
    order: _Order,
    *,
    kernels: bool,
    reduce: Reduce,
    slots: int,
    device: torch.device,
) -> list[Tensor]:
    """Return masks of the keys above the target and of the `wanted` first ties."""
    if wanted == ties:
        return [
            _fill(p, target, p.bits.numel(), p.bits.numel(), order, kernels=kernels)
            for p in pieces
        ]
    counts = torch.zeros(len(pieces), slots, 2, dtype=torch.int64, device=device)
    for i, piece in enumerate(pieces):
        if piece.counts:
            counts[i, piece.slot] = _count_ties(piece, target, order, kernels).to(device)
    flat = reduce(counts).reshape(-1, 2)
    before = (flat.cumsum(0) - flat).reshape(counts.shape)
    held = named.to_int(flat[:, 0].sum())
    takes = torch.tensor([min(wanted, held), max(wanted - held, 0)], device=device)
    out = []
    for i, piece in enumerate(pieces):
        take = named.to_list((takes - before[i, piece.slot]).clamp(min=0))
        out.append(_fill(piece, target, take[0], take[1], order, kernels=kernels))
    return out


def _count_ties(piece: _Piece, target: int, order: _Order, kernels: bool) -> Tensor:
    if kernels:
        from ellzero.kernels.threshold import count_ties

        low, sign = order.scalars()
        kind = type(low)
        pair = count_ties(piece.bits.numpy(), low, sign, kind(target), _array(piece.incumbents))
        return torch.tensor(pair)
    ties = order.keys(piece.bits) == target
    held = ties.new_zeros(()) if piece.incumbents is None else ties & piece.incumbents
    held = held.sum()
    return torch.stack([held, ties.sum() - held])


def _fill(
    piece: _Piece, target: int, take_held: int, take_others: int, order: _Order, *, kernels: bool
) -> Tensor:
    """Return the mask of one piece, with the first `take_held` and `take_others` ties."""
    if kernels:
        from ellzero.kernels.threshold import fill

        out = torch.empty(piece.bits.shape, dtype=torch.bool)
        low, sign = order.scalars()
        kind = type(low)
        held = _array(piece.incumbents)
        fill(
            piece.bits.numpy(),
            low,
            sign,
            kind(target),
            held,
            take_held,
            take_others,
            out.numpy(),
        )
        return out
    keys = order.keys(piece.bits)
    ties = keys == target
    held = torch.zeros_like(ties) if piece.incumbents is None else ties & piece.incumbents
    others = ties & ~held
    return (
        (keys > target)
        | (held & (held.cumsum(0) <= take_held))
        | (others & (others.cumsum(0) <= take_others))
    )


# Rows of a batch --------------------------------------------------------------------------------


def _select_batch(
    scores: Params,
    count: int,
    incumbents: Mapping[str, Tensor],
    order: _Order,
    *,
    write: bool,
    kernels: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    if order.view == torch.int16:
        # Exact and order preserving; one compiled kernel less.
        out, targets = _select_batch(
            scores,
            count,
            incumbents,
            _Order(torch.float32, order.signed),
            write=write,
            kernels=kernels,
        )
        return out, targets.to(order.dtype)
    size = next(iter(scores.values())).shape[0]
    device = next(iter(scores.values())).device
    parts = [order.bits(t).reshape(size, math.prod(t.shape[1:])) for t in scores.values()]
    bits = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    n = bits.shape[1]
    if n == 0 or size == 0 or count == 0:
        _check_nan(scores)
        masks = {m: torch.zeros_like(t, dtype=torch.bool) for m, t in scores.items()}
        return masks, _nothing(order, (size,), device)
    count = min(count, n)
    held = _batch_incumbents(scores, incumbents) if incumbents and write else None
    if not kernels:
        flat, targets = _rows_by_torch(scores, bits, count, held, order)
    elif n <= SMALL:
        flat, targets = _rows_by_kernel(scores, bits, count, held, order)
    else:
        flat, targets = _rows_one_by_one(scores, count, incumbents, order)
    point = named.row(scores, 0)
    return dict(named.unflatten(flat, point)), order.number(targets)


def _batch_incumbents(scores: Params, incumbents: Mapping[str, Tensor]) -> Tensor:
    parts = {
        name: incumbents[name].to(torch.bool)
        if name in incumbents
        else torch.zeros_like(tensor, dtype=torch.bool)
        for name, tensor in scores.items()
    }
    return named.flatten(named.Batch(parts)).contiguous()


def _rows_by_kernel(
    scores: Params, bits: Tensor, count: int, held: Tensor | None, order: _Order
) -> tuple[Tensor, Tensor]:
    from ellzero.kernels.threshold import select_rows

    flat = torch.empty(bits.shape, dtype=torch.bool)
    targets = torch.empty(bits.shape[0], dtype=order.view)
    low, sign = order.scalars()
    first = np.empty((0, 0), np.bool_) if held is None else held.numpy()
    array = bits.contiguous().numpy()
    worst = select_rows(array, low, sign, count, first, flat.numpy(), targets.numpy())
    if worst > order.infinity:
        _check_nan(scores)
    return flat, targets


def _rows_one_by_one(
    scores: Params, count: int, incumbents: Mapping[str, Tensor], order: _Order
) -> tuple[Tensor, Tensor]:
    masks, targets = [], []
    for i in range(next(iter(scores.values())).shape[0]):
        pieces = [
            _Piece(
                name,
                order.bits(t[i]),
                _flat_incumbents(incumbents[name][i] if name in incumbents else None),
            )
            for name, t in scores.items()
        ]
        found = _by_bracket(pieces, count, order, write=True)
        target, flat = found or _by_histograms(pieces, count, order, write=True, kernels=True)
        masks.append(torch.cat(flat))
        targets.append(target)
    return torch.stack(masks), torch.tensor(targets)


def _rows_by_torch(
    scores: Params, bits: Tensor, count: int, held: Tensor | None, order: _Order
) -> tuple[Tensor, Tensor]:
    """Search all rows at once by bisection on counts."""
    _check_nan(scores)
    keys = order.keys(bits)
    floor, ceiling = keys.amin(1, keepdim=True), keys.amax(1, keepdim=True)
    # One halving for each bit of the range, signs included.
    for _ in range(8 * keys.element_size()):
        middle = (floor >> 1) + (ceiling >> 1) + (((floor & 1) + (ceiling & 1) + 1) >> 1)
        enough = (keys >= middle).sum(1, keepdim=True) >= count
        floor = torch.where(enough, middle, floor)
        ceiling = torch.where(enough, ceiling, torch.maximum(middle - 1, floor))
    ties = keys == floor
    above = keys > floor
    places = count - above.sum(1, keepdim=True)
    first = torch.zeros_like(ties) if held is None else ties & held
    taken = first & (first.cumsum(1) <= places)
    places = places - taken.sum(1, keepdim=True)
    others = ties & ~first
    return above | taken | (others & (others.cumsum(1) <= places)), floor.squeeze(1)


# Shards -----------------------------------------------------------------------------------------


def _select_sharded(
    scores: dict[str, Tensor],
    count: int,
    incumbents: Mapping[str, Tensor],
    order: _Order,
    *,
    write: bool,
    kernels: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    first = next(t for t in scores.values() if isinstance(t, DTensor))
    mesh = first.device_mesh
    device = first.to_local().device
    pieces = []
    slots = 1
    for name, tensor in scores.items():
        piece, parts = _shard(name, tensor, incumbents.get(name), mesh, order)
        pieces.append(piece)
        slots = max(slots, parts)

    def reduce(counts: Tensor) -> Tensor:
        for axis in range(mesh.ndim):
            dist.all_reduce(counts, group=mesh.get_group(axis))
        return counts

    n = sum(t.numel() for t in scores.values())
    target, masks = _by_histograms(
        pieces,
        min(count, n),
        order,
        write=write,
        kernels=kernels,
        reduce=reduce,
        slots=slots,
        device=device,
    )
    out: dict[str, Tensor] = {}
    for (name, tensor), mask in zip(scores.items(), masks, strict=write):
        if not isinstance(tensor, DTensor):
            out[name] = mask.reshape(tensor.shape)
            continue
        out[name] = DTensor.from_local(
            mask.reshape(tensor.to_local().shape),
            mesh,
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    if n == 0 or count == 0:
        return out, _nothing(order, (), device)
    return out, order.number(torch.tensor(target, device=device))


def _shard(
    name: str, tensor: Tensor, incumbents: Tensor | None, mesh: Any, order: _Order
) -> tuple[_Piece, int]:
    """Return what this process holds of a tensor and how many parts the tensor has."""
    from torch.distributed.tensor import DTensor, Shard

    here = mesh.get_coordinate()
    placements: Sequence[Any] = ()
    if isinstance(tensor, DTensor):
        placements = tensor.placements
        if tensor.device_mesh != mesh:
            raise IncompatibleError(
                f"Sharded tensors must share one device mesh, got another one for {name!r}.",
                "Redistribute the tensor to the mesh of the first one.",
            )
    split = [axis for axis, p in enumerate(placements) if not p.is_replicate()]
    by_rows = all(type(placements[a]) is Shard and placements[a].dim == 0 for a in split)
    if len(split) > 1 or not by_rows:
        raise IncompatibleError(
            f"Sharded tensors must be replicated or split by rows along one axis of the mesh, got "
            f"{tuple(placements)} for {name!r}.",
            "Redistribute the tensor to `Shard(0)` or `Replicate()`.",
        )
    if incumbents is not None and tuple(getattr(incumbents, "placements", ())) != placements:
        raise IncompatibleError(
            f"Scores and incumbents must be placed alike, got another placement for {name!r}.",
            "Distribute the incumbents like the scores.",
        )
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    held = incumbents.to_local() if isinstance(incumbents, DTensor) else incumbents
    piece = _Piece(
        name,
        order.bits(local),
        _flat_incumbents(held),
        # Of copies, the first process along every axis counts.
        counts=all(c == 0 for axis, c in enumerate(here) if axis not in split),
        slot=here[split[0]] if split else 0,
    )
    return piece, mesh.size(split[0]) if split else 1
