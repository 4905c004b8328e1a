"""AC/DC: phases that train all weights and phases that train the largest ones, in turn."""

from benchmarks.rivals.task import Task

TITLE = "AC/DC"
SOURCE = "A. Peste et al., arXiv:2106.12379"
CHOICES = {"last_sparse": (0.15, 0.3)}

# Of the training, as on ImageNet: dense to 10 %, phases of 5 %, dense again before the last.
WARM, PHASE, LAST_DENSE = 0.1, 0.05, 0.1


def boundaries(n_steps: int, last_sparse: float) -> list[int]:
    """Return the steps at which the phase changes; the first change is to sparse."""
    shares, share = [], WARM
    last = 1 - last_sparse
    while share + 3 * PHASE <= last - LAST_DENSE + 1e-9:
        shares += [share, share + PHASE]
        share += 2 * PHASE
    return [round(s * n_steps) for s in [*shares, share, last - LAST_DENSE, last]]


def train(task: Task, *, last_sparse: float = 0.15) -> None:
    """The optimizer starts anew at every decompression, as the momentum does in the paper."""
    optimizer = task.adam()
    ends = [*boundaries(task.n_steps, last_sparse), task.n_steps]
    start = 0
    for k, end in enumerate(ends):
        if k % 2:
            task.train_masked(optimizer, task.largest(task.n_nonzero), end - start)
            optimizer = task.adam()
        else:
            for _ in task.steps(optimizer, end - start):
                optimizer.step()
        start = end
