"""Feather: straight-through training with a threshold between hard and soft."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.rivals.task import Task, cubic

TITLE = "Feather"
SOURCE = "A. Glandorf et al., arXiv:2310.02448; global threshold, p = 3"
CHOICES: dict[str, tuple[object, ...]] = {}

END = 0.5


def operator(values: Tensor, mask: Tensor, level: float) -> Tensor:
    """Return sign(w) (|w|^3 - level^3)^(1/3) on the mask, where |w| > level, and zeros."""
    size = values.abs()
    # The factored difference of cubes does not round to zero for |w| just above the level.
    cubed = (size - level).clamp(min=0) * (size * size + size * level + level * level)
    return torch.where(mask, values.sign() * cubed.pow(1 / 3), 0.0)


@torch.no_grad()
def show(task: Task, latent: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Write the thresholded latent values into the network and return the masks."""
    for name, param in task.weights.items():
        param.copy_(latent[name])
    masks = task.largest(count)
    # The level is the largest magnitude that is pruned, so that no kept entry becomes zero.
    level = max(float(torch.where(m, 0.0, latent[n].abs()).max()) for n, m in masks.items())
    for name, param in task.weights.items():
        param.copy_(operator(latent[name], masks[name], level))
    return masks


def train(task: Task) -> None:
    """Gradients of pruned weights count half above 95 % zeros, and fully up to there."""
    optimizer = task.adam()
    scale = 0.5 if task.n_nonzero < 0.05 * task.n_entries - 1 else 1.0
    latent = {n: p.detach().clone() for n, p in task.weights.items()}
    masks = show(task, latent, task.n_entries)
    for step in task.steps(optimizer):
        for name, param in task.weights.items():
            if scale != 1.0:
                param.grad.mul_(torch.where(masks[name], 1.0, scale))
            param.data.copy_(latent[name])
        optimizer.step()
        for name, param in task.weights.items():
            latent[name].copy_(param.detach())
        masks = show(
            task, latent, cubic(step + 1, END * task.n_steps, task.n_nonzero, task.n_entries)
        )
