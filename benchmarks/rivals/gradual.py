"""Gradual magnitude pruning: the budget falls along a cubic, pruned weights stay pruned."""

from benchmarks.rivals.task import Task, cubic

TITLE = "gradual magnitude (cubic)"
SOURCE = "M. Zhu and S. Gupta, arXiv:1710.01878; global ranking"
CHOICES = {"end": (0.75, 0.5)}

EVERY = 10


def train(task: Task, *, end: float = 0.75) -> None:
    """The final budget is in force from the share `end` of the steps on."""
    optimizer = task.adam()
    masks = task.largest(task.n_entries)
    final = round(end * task.n_steps)
    for step in task.steps(optimizer):
        task.apply_to_gradients(masks)
        optimizer.step()
        task.apply(masks)
        done = step + 1
        if done <= final and (done % EVERY == 0 or done == final):
            masks = task.largest(cubic(done, final, task.n_nonzero, task.n_entries))
            task.apply(masks)
