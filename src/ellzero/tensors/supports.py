"""Supports of batches as index tensors, so that work costs the support and not the whole."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.tensors import named
from ellzero.typing import Masks, Params


def support_index(masks: Masks) -> tuple[Tensor, Tensor]:
    """Return the flattened positions of the True entries of every row, padded.

    Parameters
    ----------
    masks : Batch of bool
        Supports, `size` of them.

    Returns
    -------
    index : Tensor of shape (size, k), int64
        Positions in ascending order; k is the largest support. Padding is 0.
    valid : Tensor of shape (size, k), bool
        False for padding.
    """
    flat = named.flatten(masks)
    counts = flat.sum(1)
    width = named.to_int(counts.max()) if flat.shape[0] else 0
    rows, columns = flat.nonzero(as_tuple=True)
    starts = torch.cumsum(counts, 0) - counts
    slot = torch.arange(rows.shape[0], device=flat.device) - starts[rows]
    index = torch.zeros(flat.shape[0], width, dtype=torch.int64, device=flat.device)
    index[rows, slot] = columns
    valid = torch.arange(width, device=flat.device) < counts.unsqueeze(1)
    return index, valid


def gather(params: Params, index: Tensor, valid: Tensor) -> Tensor:
    """Return entries of a batch at `index`, zero at padding: shape (size, k)."""
    values = named.flatten(params).gather(1, index)
    return torch.where(valid, values, torch.zeros_like(values))


def scatter(values: Tensor, index: Tensor, valid: Tensor, template: Params) -> Params:
    """Return the batch that holds `values` at `index` and exact zeros elsewhere.

    `template` is a point or a batch with the wanted names and shapes.
    """
    point = named.row(template, 0) if named.is_batch(template) else template
    flat = values.new_zeros(values.shape[0], named.size(point) + 1)
    # Padding goes to one extra slot that is cut off.
    place = torch.where(valid, index, flat.shape[1] - 1)
    flat = flat.scatter(1, place, torch.where(valid, values, torch.zeros_like(values)))
    return named.unflatten(flat[:, :-1], point)


def covered(names: tuple[str, ...] | None, template: Params) -> Tensor:
    """Return which flattened entries a set restricts: bool of shape (n,)."""
    point = named.row(template, 0) if named.is_batch(template) else template
    return torch.cat(
        [
            torch.full((t.numel(),), names is None or name in names, device=t.device)
            for name, t in point.items()
        ]
    )
