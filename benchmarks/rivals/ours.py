"""`ellzero.nn.HardThresholding`, the lazy recipe with its defaults."""

from __future__ import annotations

from benchmarks.rivals.task import Task
from ellzero.nn import HardThresholding, schedules

TITLE = "ellzero lazy"
SOURCE = "HardThresholding(recipe='lazy'), schedules.ramp"
CHOICES: dict[str, tuple[object, ...]] = {}


def train(task: Task) -> None:
    optimizer = HardThresholding(
        task.adam(),
        task.model,
        n_nonzero=task.n_nonzero,
        names=list(task.weights),
        schedule=schedules.ramp(start=0.0, end=0.5, total_steps=task.n_steps),
    )
    for _ in task.steps(optimizer):
        optimizer.step()
    optimizer.finalize()
