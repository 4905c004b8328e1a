"""Train dense, keep the largest weights of all layers together, fine-tune them."""

from benchmarks.rivals.task import Task

TITLE = "one-shot magnitude + fine-tune"
SOURCE = "S. Han et al., arXiv:1506.02626, one round; global ranking"
CHOICES = {"dense_share": (0.5, 0.25)}


def train(task: Task, *, dense_share: float = 0.5) -> None:
    optimizer = task.adam()
    for _ in task.steps(optimizer, round(dense_share * task.n_steps)):
        optimizer.step()
    task.train_masked(optimizer, task.largest(task.n_nonzero))
