"""RigL: a fixed number in each layer; drop the smallest weights, grow by the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.rivals.task import Task
from ellzero.nn import make_balls

TITLE = "RigL, ERK"
SOURCE = "U. Evci et al., arXiv:1911.11134"
CHOICES: dict[str, tuple[object, ...]] = {}

DROP = 0.3
LAST = 0.75
# Steps between exchanges, as a share of the training; about 100 steps on LeNet, as in the paper.
EVERY = 0.027


def erdos_renyi(task: Task) -> dict[str, Tensor]:
    """Return random masks with densities proportional to (sum of sides) / (product of sides)."""
    balls = make_balls(task.model, task.n_nonzero, names=list(task.weights), allocation="erk")
    masks = {}
    for ball in balls:
        (name,) = ball.names or ()
        param = task.weights[name]
        order = torch.randperm(param.numel(), generator=task.generator)
        mask = torch.zeros(param.numel(), dtype=torch.bool)
        mask[order[: ball.n_nonzero]] = True
        masks[name] = mask.view_as(param)
    return masks


def drop_fraction(step: int, end: float) -> float:
    """Return the share of a layer's weights that is exchanged: a cosine from 0.3 to 0."""
    return DROP / 2 * (1 + math.cos(math.pi * step / end))


@torch.no_grad()
def exchange(param: Tensor, mask: Tensor, scores: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the new mask and where it grew: smallest |weights| go, largest scores come.

    No more are exchanged than have a score above zero: a weight without a gradient stays zero.
    """
    k = min(int(share * int(mask.sum())), int((scores.gt(0) & ~mask).sum()))
    kept = mask.clone().view(-1)
    size = torch.where(kept, param.abs().view(-1), math.inf)
    kept[size.argsort(stable=True)[:k]] = False
    # Entries that were just dropped may come back, as in the paper.
    rank = torch.where(kept, -math.inf, scores.view(-1)).argsort(descending=True, stable=True)
    grown = torch.zeros_like(kept)
    grown[rank[:k]] = True
    return (kept | grown).view_as(mask), (grown & ~mask.view(-1)).view_as(mask)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer, param: Tensor, mask: Tensor) -> None:
    """Clear the moments where a weight is new or gone."""
    for value in optimizer.state[param].values():
        if value.shape == param.shape:
            value.mul_(mask)


def train(task: Task) -> None:
    """A step that exchanges takes no step of the optimizer, as in the paper's algorithm."""
    optimizer = task.adam()
    masks = erdos_renyi(task)
    task.apply(masks)
    end, every = LAST * task.n_steps, max(1, round(EVERY * task.n_steps))
    for step in task.steps(optimizer):
        if step % every == 0 and 0 < step < end:
            for name, param in task.weights.items():
                scores = param.grad.abs()
                masks[name], grown = exchange(param, masks[name], scores, drop_fraction(step, end))
                param.data.mul_(masks[name] & ~grown)
                forget(optimizer, param, masks[name] & ~grown)
            continue
        task.apply_to_gradients(masks)
        optimizer.step()
        task.apply(masks)
