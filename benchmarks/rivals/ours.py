"""`ellzero.nn.HardThresholding`, the lazy recipe with its defaults, a ramp over the first half."""

from __future__ import annotations

from benchmarks.rivals.task import Task
from ellzero.nn import HardThresholding, schedules

TITLE = "ellzero lazy"
SOURCE = "HardThresholding(recipe='lazy'), schedules.ramp over the first half"
CHOICES: dict[str, tuple[object, ...]] = {}


def train(task: Task, *, end: float = 0.5, every: int = 5) -> None:
    optimizer = HardThresholding(
        task.adam(),
        task.model,
        n_nonzero=task.n_nonzero,
        names=list(task.weights),
        schedule=schedules.ramp(start=0.0, end=end, total_steps=task.n_steps),
        every=every,
    )
    for _ in task.steps(optimizer):
        optimizer.step()
    optimizer.finalize()
