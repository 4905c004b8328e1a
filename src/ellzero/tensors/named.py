r"""Arithmetic on named tensors, one point or a batch of points.

A point is a mapping of names to tensors. A `Batch` is such a mapping in which every tensor has one
more leading axis: `size` points of the same shapes. Every function here takes either, keeps the
kind, and returns scalars as 0-d tensors for a point and as tensors of shape (size,) for a batch.
Sums are accumulated in float64. Only this module turns tensors into Python numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ellzero.typing import Masks, Params

T = TypeVar("T")


class Batch(dict[str, Tensor]):
    """Named tensors that all share one leading batch axis."""

    @property
    def size(self) -> int:
        """Number of points."""
        return int(next(iter(self.values())).shape[0])


def is_batch(params: Params) -> bool:
    """Return whether the tensors carry a leading batch axis."""
    return isinstance(params, Batch)


def like(params: Params, tensors: Mapping[str, Tensor]) -> Params:
    """Return `tensors` as the kind (point or batch) of `params`."""
    return Batch(tensors) if is_batch(params) else dict(tensors)


def to_batch(params: Params) -> Batch:
    """Return a batch of one from a point; a batch comes back as it is."""
    if isinstance(params, Batch):
        return params
    return Batch({name: tensor.unsqueeze(0) for name, tensor in params.items()})


def stack(points: Sequence[Params]) -> Batch:
    """Return the batch of the given points."""
    return Batch({name: torch.stack([point[name] for point in points]) for name in points[0]})


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return one batch of all points of several batches."""
    return Batch({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]})


def row(batch: Params, index: int) -> dict[str, Tensor]:
    """Return one point of a batch."""
    return {name: tensor[index] for name, tensor in batch.items()}


def take(batch: Params, index: Tensor | slice) -> Batch:
    """Return the rows of a batch that `index` (int64, bool or slice) names."""
    return Batch({name: tensor[index] for name, tensor in batch.items()})


def expand(params: Params, size: int) -> Batch:
    """Return a batch of `size` copies of a point, without copying memory."""
    return Batch({name: t.unsqueeze(0).expand(size, *t.shape) for name, t in params.items()})


def map_tensors(function: Callable[..., Tensor], first: Params, *others: Params) -> Params:
    """Apply a function name by name and keep the kind of the first argument."""
    return like(first, {n: function(t, *(o[n] for o in others)) for n, t in first.items()})


def expand_scalar(scalar: Tensor | float, tensor: Tensor) -> Tensor | float:
    """Return a per-row scalar of shape (size,) shaped to multiply a batched tensor."""
    if isinstance(scalar, Tensor) and scalar.ndim == 1:
        return scalar.reshape(-1, *([1] * (tensor.ndim - 1))).to(tensor.dtype)
    return scalar


def add(a: Params, b: Params) -> Params:
    """Return a + b."""
    return map_tensors(torch.add, a, b)


def sub(a: Params, b: Params) -> Params:
    """Return a - b."""
    return map_tensors(torch.sub, a, b)


def scale(a: Params, factor: Tensor | float) -> Params:
    """Return factor * a, with one factor or one for each row."""
    return map_tensors(lambda t: t * expand_scalar(factor, t), a)


def axpy(factor: Tensor | float, x: Params, y: Params) -> Params:
    """Return factor * x + y, with one factor or one for each row."""
    return map_tensors(lambda u, v: u * expand_scalar(factor, u) + v, x, y)


def mask(a: Params, masks: Masks) -> Params:
    """Return `a` with exact zeros where `masks` is False, whatever the entry was."""
    return map_tensors(lambda t, m: torch.where(m, t, torch.zeros_like(t)), a, masks)


def where(condition: Tensor, a: Params, b: Params) -> Params:
    """Return, row by row of two batches, `a` where the condition holds, else `b`."""

    def choose(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(condition.reshape(-1, *([1] * (x.ndim - 1))), x, y)

    return map_tensors(choose, a, b)


def zeros_like(a: Params) -> Params:
    """Return zeros of the same names, shapes and kind."""
    return map_tensors(torch.zeros_like, a)


def nonzero_masks(a: Params) -> Masks:
    """Return where entries differ from zero."""
    return map_tensors(lambda t: t != 0, a)


def _whole(tensor: Tensor) -> Tensor:
    """Return a local tensor: reductions of sharded tensors are gathered (scalars only)."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _reduce(
    params: Params, reduction: Callable[[Tensor, tuple[int, ...]], Tensor]
) -> list[Tensor]:
    start = 1 if is_batch(params) else 0
    out = []
    for tensor in params.values():
        axes = tuple(range(start, tensor.ndim))
        out.append(
            _whole(reduction(tensor, axes) if axes else reduction(tensor.unsqueeze(-1), (-1,)))
        )
    return out


def total(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of scalars of several tensors."""
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out


def dot(a: Params, b: Params) -> Tensor:
    """Return the inner product, accumulated in float64."""
    products = map_tensors(lambda x, y: x.to(_accumulator(x)) * y.to(_accumulator(y)), a, b)
    return total(_reduce(products, lambda t, axes: t.sum(axes)))


def norm_squared(a: Params) -> Tensor:
    """Return the squared Euclidean norm, accumulated in float64."""
    return dot(a, a)


def norm(a: Params) -> Tensor:
    """Return the Euclidean norm."""
    return norm_squared(a).sqrt()


def _extreme(
    params: Params, pick: Callable[[Tensor, Tensor], Tensor], empty: float, sign: int
) -> Tensor:
    def reduction(t: Tensor, axes: tuple[int, ...]) -> Tensor:
        if t.numel() == 0:
            shape = [n for i, n in enumerate(t.shape) if i not in {a % t.ndim for a in axes}]
            return torch.full(shape, empty, dtype=t.dtype, device=t.device)
        return t.amax(axes) if sign > 0 else t.amin(axes)

    parts = _reduce(params, reduction)
    out = parts[0]
    for part in parts[1:]:
        out = pick(out, part)
    return out


def max_abs(a: Params) -> Tensor:
    """Return the largest magnitude; zero when there is no entry."""
    return _extreme(map_tensors(torch.abs, a), torch.maximum, 0.0, 1)


def min_abs_on(a: Params, masks: Masks) -> Tensor:
    """Return the smallest magnitude where `masks` holds; infinity when nowhere."""
    inside = map_tensors(
        lambda t, m: torch.where(m, t.abs(), torch.full_like(t, torch.inf)), a, masks
    )
    return _extreme(inside, torch.minimum, float("inf"), -1)


def count_nonzero(a: Params) -> Tensor:
    """Return the number of entries that differ from zero, as int64; NaN counts."""
    return total(_reduce(a, lambda t, axes: (t != 0).sum(axes)))


def is_finite(a: Params) -> Tensor:
    """Return whether every entry is finite."""
    return total(_reduce(a, lambda t, axes: (~torch.isfinite(t)).sum(axes))) == 0


def flatten(a: Params) -> Tensor:
    """Return all entries in order: shape (n,) for a point, (size, n) for a batch."""
    if is_batch(a):
        return torch.cat([t.reshape(t.shape[0], -1) for t in a.values()], dim=1)
    return torch.cat([t.reshape(-1) for t in a.values()])


def unflatten(flat: Tensor, template: Params) -> Params:
    """Return named tensors from their flattened entries.

    Parameters
    ----------
    flat : Tensor of shape (n,) or (size, n)
        Entries in the order of `flatten`; a second axis makes a batch.
    template : mapping of str to Tensor
        A point (never a batch) with the names and shapes wanted.

    Returns
    -------
    mapping of str to Tensor
        A point, or a `Batch` when `flat` has two axes.
    """
    out: dict[str, Tensor] = {}
    start = 0
    for name, tensor in template.items():
        stop = start + tensor.numel()
        out[name] = flat[..., start:stop].reshape((*flat.shape[:-1], *tensor.shape))
        start = stop
    return Batch(out) if flat.ndim == 2 else out


def size(a: Params) -> int:
    """Return the number of entries of a point, or of one point of a batch."""
    count = sum(t.numel() for t in a.values())
    return count // a.size if isinstance(a, Batch) else count


def to_float(scalar: Tensor | float) -> float:
    """Return a Python float from a 0-d tensor, sharded or not."""
    return float(_whole(scalar)) if isinstance(scalar, Tensor) else float(scalar)


def to_int(scalar: Tensor | int) -> int:
    """Return a Python int from a 0-d tensor, sharded or not."""
    return int(_whole(scalar)) if isinstance(scalar, Tensor) else int(scalar)


def to_list(tensor: Tensor) -> list[Any]:
    """Return nested Python numbers."""
    return _whole(tensor.detach()).tolist()


def any_true(condition: Tensor) -> bool:
    """Return whether any entry holds, as a Python bool."""
    return bool(_whole(condition).any())


def all_true(condition: Tensor) -> bool:
    """Return whether every entry holds, as a Python bool."""
    return bool(_whole(condition).all())


def to_double(a: Params) -> Params:
    """Return float64 copies, on the same device."""
    return map_tensors(lambda t: t.detach().to(_accumulator(t)), a)


def take_rows(state: T, index: Tensor) -> T:
    """Return a dataclass of batches and per-row tensors with only the rows of `index`."""
    assert is_dataclass(state)
    assert not isinstance(state, type)
    changes = {
        f.name: (take(v, index) if isinstance(v, Batch) else v[index])
        for f in fields(state)
        if isinstance(v := getattr(state, f.name), (Batch, Tensor))
    }
    return replace(state, **changes)


def put_rows(state: T, index: Tensor, rows: T) -> T:
    """Return `state` with the rows of `index` replaced by those of `rows`."""
    assert is_dataclass(state)
    assert not isinstance(state, type)
    changes: dict[str, Any] = {}
    for f in fields(state):
        old, new = getattr(state, f.name), getattr(rows, f.name)
        if isinstance(old, Batch):
            changes[f.name] = Batch({n: t.index_copy(0, index, new[n]) for n, t in old.items()})
        elif isinstance(old, Tensor):
            changes[f.name] = old.index_copy(0, index, new)
    return replace(state, **changes)
