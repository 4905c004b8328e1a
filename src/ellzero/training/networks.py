"""Small networks: training with a falling budget, then a polish to stationarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ellzero.core.result import Result
from ellzero.core.solver import SolverState
from ellzero.sets import L0Ball
from ellzero.solvers import polish
from ellzero.solvers.polish import SOLVER
from ellzero.solving import solve
from ellzero.storage import Checkpoint
from ellzero.tensors import named
from ellzero.training.experiment import Experiment, build_network
from ellzero.training.minibatch import Samples, fit
from ellzero.training.settings import Between, Watch, squeezed_mse
from ellzero.typing import Params

# Polish of networks: rounds, and in each steps of hard thresholding and pieces of a minimization.
# A step of a large network takes long: it gets fewer.
NETWORK_ROUNDS, NETWORK_ROUNDS_LARGE = 5, 8
NETWORK_STEPS, NETWORK_STEPS_LARGE = 300, 60
NETWORK_PIECES, NETWORK_PIECES_LARGE = 10, 4
LARGE_NETWORK = 10_000
NETWORK_REFIT_TOL = 1e-9
NETWORK_REFIT_TOL_LARGE = 1e-7


def solve_network(
    experiment: Experiment,
    budget: int,
    between: Between,
    *,
    checkpoint: Checkpoint | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Train with a budget, polish, and certify; return the curves of the training as well."""
    problem = experiment.problem(budget)

    def callback(iteration: int, state: SolverState) -> bool:
        return between(iteration)

    point, curves = train_network(
        experiment, budget, checkpoint=checkpoint, watch=watch, stop=stop
    )
    rounds, steps, pieces, tol = _effort(named.size(point))
    point = polish(
        problem, point, rounds=rounds, steps=steps, pieces=pieces, tol=tol, stop=between
    )
    # Of a large network the support may still move: then the last refit is what is certified.
    steps = 0 if named.size(point) > LARGE_NETWORK else NETWORK_STEPS
    result = solve(problem, SOLVER, point, max_iter=steps, callback=callback)
    return result, curves


def _effort(n_entries: int) -> tuple[int, int, int, float]:
    """Return the rounds, steps, pieces and tolerance of the polish that a network can afford."""
    if n_entries > LARGE_NETWORK:
        return (
            NETWORK_ROUNDS_LARGE,
            NETWORK_STEPS_LARGE,
            NETWORK_PIECES_LARGE,
            NETWORK_REFIT_TOL_LARGE,
        )
    return NETWORK_ROUNDS, NETWORK_STEPS, NETWORK_PIECES, NETWORK_REFIT_TOL


def train_network(
    experiment: Experiment,
    budget: int,
    *,
    checkpoint: Checkpoint | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Train a network with a budget that falls to the one asked for; biases count too.

    Returns the point, inside the budget also after an interrupt, and the curves.
    """
    settings, parts = experiment.settings, experiment.parts
    n_classes = len(experiment.table.class_names or ())
    loss_fn = nn.functional.cross_entropy if n_classes else squeezed_mse
    device = torch.device(settings.device)
    X, y, X_test, y_test = (
        t.to(device) for t in (parts.X_train, parts.y_train, parts.X_test, parts.y_test)
    )
    model = build_network(settings, X.shape[1], max(n_classes, 1)).to(X)
    names = tuple(name for name, _ in model.named_parameters())
    zero, one = X.new_zeros(()), X.new_ones(())
    fitted = fit(
        model,
        Samples(X, y, X_test, y_test, zero, one, X.dtype),
        loss_fn,
        settings,
        budget,
        names=names,
        floor=0.0,
        checkpoint=checkpoint,
        watch=watch,
        stop=stop,
    )
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    return L0Ball(budget).project(trained), fitted.curves.to_dict()
