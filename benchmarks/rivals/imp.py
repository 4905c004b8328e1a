"""Iterative magnitude pruning: train, prune, rewind the weights to an early step, repeat."""

from benchmarks.rivals.task import Task

TITLE = "IMP with rewinding"
SOURCE = "J. Frankle et al., arXiv:1912.05671; four rounds within the same budget"
CHOICES: dict[str, tuple[object, ...]] = {}

ROUNDS = 4
REWIND = 0.1


def train(task: Task) -> None:
    """Every round but the first starts at the share `REWIND` of a round's steps.

    A round prunes to density^(1/3), density^(2/3), density; the last trains on. The learning rate
    goes through its whole course in each round.
    """
    per_round = int(task.n_steps / (ROUNDS - (ROUNDS - 1) * REWIND))
    early = max(1, round(REWIND * per_round))
    density = task.n_nonzero / task.n_entries
    optimizer = task.adam()
    start: dict[str, object] = {}
    for i, _ in enumerate(task.steps(optimizer, per_round, restart=True)):
        optimizer.step()
        if i + 1 == early:
            start = {k: v.clone() for k, v in task.model.state_dict().items()}
    for k in range(1, ROUNDS):
        final = k == ROUNDS - 1
        count = task.n_nonzero if final else round(density ** (k / (ROUNDS - 1)) * task.n_entries)
        masks = task.largest(count)
        task.model.load_state_dict(start)
        steps = task.n_steps - task.n_gradients if final else per_round - early
        task.train_masked(task.adam(), masks, steps, restart=True)
