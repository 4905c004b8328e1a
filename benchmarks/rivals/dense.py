"""All weights: what the sparse networks are held against."""

from benchmarks.rivals.task import Task

TITLE = "dense"
SOURCE = "plain training, no zeros asked for"
CHOICES: dict[str, tuple[object, ...]] = {}


def train(task: Task) -> None:
    optimizer = task.adam()
    for _ in task.steps(optimizer):
        optimizer.step()
