"""`ellzero.nn.HardThresholding`, the lazy recipe with a ramp over the first three quarters."""

from __future__ import annotations

from benchmarks.rivals import ours
from benchmarks.rivals.task import Task

TITLE = "ellzero lazy, longer ramp"
SOURCE = "HardThresholding(recipe='lazy'), schedules.ramp over the first three quarters"
CHOICES = {"every": (5, 1)}


def train(task: Task, *, every: int = 5) -> None:
    """Every fifth step is the default; every step costs more and is sometimes better."""
    ours.train(task, end=0.75, every=every)
