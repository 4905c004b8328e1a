"""Masks with exact counts: the largest, random ones, and the stops of iterative pruning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ellzero.tensors.selection import top_k_masks
from ellzero.typing import Masks, Params


def levels(n_entries: int, counts: Sequence[int], pruned: float = 0.2) -> list[int]:
    """Return the survivors after each round of pruning that passes through given counts.

    Parameters
    ----------
    n_entries : int
        Entries before the first round.
    counts : sequence of int
        Numbers of survivors to be met exactly, falling, each below `n_entries` or equal to it.
    pruned : float, default=0.2
        Share of the survivors that a round takes away at most, up to the rounding of counts.

    Returns
    -------
    list of int
        Falling numbers that contain `counts`: between two of them equal shares are taken away, in
        as few rounds as `pruned` allows. A count equal to `n_entries` is left out.

    Notes
    -----
    A round from n keeps ``round(n * share)`` and so prunes exactly as many as it says.

    Examples
    --------
    >>> from ellzero.nn.tickets import levels
    >>> levels(1000, [640, 410])
    [800, 640, 512, 410]
    """
    out: list[int] = []
    high = n_entries
    for count in counts:
        if count >= high:
            continue
        # A count was rounded down to an entry; that is no reason for another round.
        nearly = min(1.0, (count + 1) / high)
        rounds = max(1, math.ceil(math.log(nearly) / math.log(1 - pruned) - 1e-9))
        share = (count / high) ** (1 / rounds)
        for k in range(1, rounds):
            middle = round(high * share**k)
            if count < middle < (out[-1] if out else n_entries):
                out.append(middle)
        out.append(count)
        high = count
    return out


def largest(values: Params, count: int, incumbents: Masks | None = None) -> dict[str, Tensor]:
    """Return masks of the `count` largest magnitudes over all tensors; ties keep incumbents."""
    return dict(top_k_masks(values, count, incumbents=incumbents, magnitude=True))


def random_masks(
    shapes: Mapping[str, torch.Size], count: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return masks of `count` entries drawn from all tensors together."""
    sizes = [shape.numel() for shape in shapes.values()]
    flat = torch.zeros(sum(sizes), dtype=torch.bool)
    flat[torch.randperm(len(flat), generator=generator)[:count]] = True
    parts = torch.split(flat, sizes)
    return {n: p.reshape(s).clone() for (n, s), p in zip(shapes.items(), parts, strict=True)}


def shuffle_layers(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Return masks permuted inside each tensor, so that every tensor keeps its count.

    Parameters
    ----------
    masks : mapping of str to Tensor of bool
        The masks.
    generator : torch.Generator
        Draws the permutations, on the CPU.

    Returns
    -------
    dict of str to Tensor of bool
        New masks.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.tickets import shuffle_layers
    >>> masks = {"weight": torch.tensor([[True, False], [False, False]])}
    >>> int(shuffle_layers(masks, torch.Generator().manual_seed(0))["weight"].sum())
    1
    """
    out = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        out[name] = mask.reshape(-1)[order].reshape(mask.shape)
    return out


def shuffle_values(values: Params, masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Return tensors with the entries on the masks permuted in each tensor; zeros elsewhere."""
    out = {}
    for name, mask in masks.items():
        kept = values[name][mask]
        order = torch.randperm(len(kept), generator=generator).to(kept.device)
        out[name] = torch.zeros_like(values[name]).masked_scatter(mask, kept[order])
    return out


def signs(values: Params, masks: Masks) -> dict[str, Tensor]:
    """Return the signs of the entries on the masks times their mean magnitude in each tensor."""
    out = {}
    for name, mask in masks.items():
        kept = values[name][mask].abs()
        scale = kept.mean() if len(kept) else kept.sum()
        out[name] = values[name].sign() * scale * mask
    return out


def overlap(a: Masks, b: Masks) -> tuple[float, float, float]:
    """Return the Jaccard overlap of two masks and what chance gives.

    Chance is that of random masks with the same counts in all, and with the same counts in each
    tensor: the expected intersection over the union that goes with it.
    """
    pairs = [(a[n], b[n]) for n in a]
    in_a = [int(x.sum()) for x, _ in pairs]
    in_b = [int(y.sum()) for _, y in pairs]
    sizes = [x.numel() for x, _ in pairs]
    total = sum(in_a) + sum(in_b)

    def jaccard(common: float) -> float:
        return common / (total - common) if total > common else 1.0

    common = sum(int((x & y).sum()) for x, y in pairs)
    by_layer = sum(p * q / n for p, q, n in zip(in_a, in_b, sizes, strict=True))
    return jaccard(common), jaccard(sum(in_a) * sum(in_b) / sum(sizes)), jaccard(by_layer)
