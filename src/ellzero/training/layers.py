"""Where a network keeps its weights, layer by layer, in plain values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ellzero.tensors import named
from ellzero.typing import Params

# Most cells of the picture of one matrix.
PICTURE_CELLS = 6000


def layer_rows(params: Params, sample_shape: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Return a row for each tensor of two axes or more, with a picture of its nonzeros.

    Parameters
    ----------
    params : mapping of str to Tensor
        Parameters of a network, in order.
    sample_shape : tuple of int, default=()
        Shape of one input; a first layer on flattened images gets a picture of its inputs.

    Returns
    -------
    list of dict
        ``name``, ``shape``, ``n_entries``, ``n_nonzero``, ``density``, ``n_outputs``,
        ``dead_outputs`` (first indices without a nonzero), ``n_inputs``, ``dead_inputs`` and
        ``picture``; perhaps ``inputs_picture``.
    """
    rows: list[dict[str, Any]] = []
    for name, tensor in params.items():
        if tensor.ndim < 2:
            continue
        mask = (tensor != 0).flatten(2) if tensor.ndim > 2 else tensor != 0
        by_pair = mask.sum(2) if tensor.ndim > 2 else mask.to(torch.int64)
        n_nonzero = named.to_int(by_pair.sum())
        row: dict[str, Any] = {
            "name": name,
            "shape": list(tensor.shape),
            "n_entries": tensor.numel(),
            "n_nonzero": n_nonzero,
            "density": n_nonzero / tensor.numel(),
            "n_outputs": by_pair.shape[0],
            "dead_outputs": named.to_int((by_pair.sum(1) == 0).sum()),
            "n_inputs": by_pair.shape[1],
            "dead_inputs": named.to_int((by_pair.sum(0) == 0).sum()),
            "picture": _picture(tensor != 0),
        }
        sides = [s for s in sample_shape if s > 1]
        if not rows and len(sides) == 2 and math.prod(sides) == by_pair.shape[1]:
            counts = by_pair.sum(0).reshape(sides)
            row["inputs_picture"] = {
                "block": [1, 1],
                "most": by_pair.shape[0],
                "shape": sides,
                "counts": named.to_list(counts),
            }
        rows.append(row)
    return rows


def _picture(mask: Tensor) -> dict[str, Any]:
    """Return how many nonzeros every block of a matrix has."""
    flat = mask.reshape(mask.shape[0], -1)
    n_rows, n_columns = flat.shape
    side = max(1, math.ceil(math.sqrt(n_rows * n_columns / PICTURE_CELLS)))
    high, wide = min(side, n_rows), min(side, n_columns)
    padded = functional.pad(flat.double(), (0, -n_columns % wide, 0, -n_rows % high))
    blocks = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    counts = blocks.sum((1, 3)).to(torch.int64)
    return {
        "block": [high, wide],
        "most": high * wide,
        "shape": [n_rows, n_columns],
        "counts": named.to_list(counts),
    }
