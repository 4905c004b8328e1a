"""Iterative hard thresholding: a step of the optimizer, then the s largest weights."""

from __future__ import annotations

import torch

from benchmarks.rivals.task import Task

TITLE = "IHT every step"
SOURCE = "S. Damadi et al., arXiv:2404.18414; the budget is constant"
CHOICES = {"sgd": (False, True)}

# SGD with momentum takes this many times the learning rate of Adam.
SGD_SCALE = 50.0


def train(task: Task, *, sgd: bool = False) -> None:
    optimizer = task.adam()
    if sgd:
        optimizer = torch.optim.SGD(task.model.parameters(), lr=SGD_SCALE * task.lr, momentum=0.9)
        optimizer.param_groups[0]["peak"] = SGD_SCALE * task.lr
    task.apply(task.largest(task.n_nonzero))
    for _ in task.steps(optimizer):
        optimizer.step()
        task.apply(task.largest(task.n_nonzero))
