"""Feather: straight-through training with a threshold between hard and soft."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.rivals.task import Task, cubic

TITLE = "Feather"
SOURCE = "Feather, arXiv:2310.02448; global threshold, p = 3"
CHOICES: dict[str, tuple[object, ...]] = {}

END = 0.5


def operator(values: Tensor, level: float) -> Tensor:
    """Return sign(w) (|w|^3 - level^3)^(1/3) where |w| is above the level, else 0."""
    size = values.abs()
    # The factored difference of cubes does not round to zero for |w| just above the level.
    cubed = (size - level).clamp(min=0) * (size * size + size * level + level * level)
    return values.sign() * cubed.pow(1 / 3)


@torch.no_grad()
def show(task: Task, latent: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Write the thresholded latent values into the network and return the masks."""
    masks = task.largest(count, latent)
    # The level is the largest magnitude that is pruned, so that no kept entry becomes zero.
    level = max(float(latent[n].abs().masked_fill_(m, 0.0).max()) for n, m in masks.items())
    for name, param in task.weights.items():
        index = masks[name].view(-1).nonzero().view(-1)
        param.zero_()
        param.view(-1)[index] = operator(latent[name].view(-1)[index], level)
    return masks


def train(task: Task) -> None:
    """Gradients of pruned weights count half above 95 % zeros, and fully up to there."""
    optimizer = task.adam()
    scale = 0.5 if task.n_nonzero < round(0.05 * task.n_entries) else 1.0
    latent = {n: p.detach().clone() for n, p in task.weights.items()}
    masks = show(task, latent, task.n_entries)
    for step in task.steps(optimizer):
        shown = {n: p.data for n, p in task.weights.items()}
        for name, param in task.weights.items():
            if scale != 1.0:
                param.grad.mul_(masks[name].float().mul_(1 - scale).add_(scale))
            param.data = latent[name]
        optimizer.step()
        for name, param in task.weights.items():
            param.data = shown[name]
        count = cubic(step + 1, END * task.n_steps, task.n_nonzero, task.n_entries)
        masks = show(task, latent, count)
