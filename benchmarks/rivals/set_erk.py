"""SET: as RigL, but new connections are drawn at random, with fresh values."""

from __future__ import annotations

import torch

from benchmarks.rivals.rigl import EVERY, LAST, drop_fraction, erdos_renyi, exchange, forget
from benchmarks.rivals.task import Task

TITLE = "SET, ERK"
SOURCE = "D. Mocanu et al., arXiv:1707.04780, with the drop schedule of arXiv:1911.11134"
CHOICES: dict[str, tuple[object, ...]] = {}


def train(task: Task) -> None:
    """New connections start from values of the initialization."""
    optimizer = task.adam()
    fresh = {n: p.detach().clone() for n, p in task.weights.items()}
    masks = erdos_renyi(task)
    task.apply(masks)
    end, every = LAST * task.n_steps, max(1, round(EVERY * task.n_steps))
    for step in task.steps(optimizer):
        task.apply_to_gradients(masks)
        optimizer.step()
        task.apply(masks)
        if step % every == 0 and 0 < step < end:
            for name, param in task.weights.items():
                scores = torch.rand(param.shape, generator=task.generator)
                old = masks[name]
                masks[name], grown = exchange(param, old, scores, drop_fraction(step, end))
                param.data.mul_(masks[name]).add_(fresh[name] * grown)
                forget(optimizer, param, masks[name] & ~grown)
