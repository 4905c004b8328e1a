"""Pruning-aware training of torchao: hard top-k maps of latent weights, then a fixed mask."""

from __future__ import annotations

import importlib

from benchmarks.rivals.task import Task

TITLE = "torchao PAT"
SOURCE = "torchao.prototype.pat: PruneOptimizer with GlobalMinSparsityConstraint, cubic ramp"
CHOICES = {"healing": (0.75, 0.5)}


def train(task: Task, *, healing: float = 0.75) -> None:
    """The mask is fixed from the share `healing` of the steps on.

    Elements as groups give a budget of entries over all tensors. It is a share that is rounded up
    to a number of zeros; half an entry less than wanted makes that number exact. The map is
    applied after every step: with a larger `prox_freq` most gradients are those of the dense
    weights.
    """
    pat = importlib.import_module("torchao.prototype.pat.optim")
    counted = set(map(id, task.weights.values()))
    free = [p for p in task.model.parameters() if id(p) not in counted]
    zeros = task.n_entries - task.n_nonzero
    pruned = {
        "params": list(task.weights.values()),
        "prox_type": "GlobalMinSparsityConstraint",
        "group_type": "ElemGrouper",
        "min_sparsity": (zeros - 0.5) / task.n_entries,
        "min_sparsity_schedule": True,
        "prox_freq": 1,
    }
    base = task.adam_of([pruned, {"params": free}])
    optimizer = pat.PruneOptimizer(base, healing_start_step=round(healing * task.n_steps))
    for _ in task.steps(optimizer):
        optimizer.step()
