"""From settings and a table to the problem that is solved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ellzero.core.problem import AbstractObjective, Problem
from ellzero.datasets import Split, Table, load_table, split
from ellzero.errors import InvalidParameterError
from ellzero.objectives import LeastSquares, Logistic, ModuleLoss, Softmax
from ellzero.sets import L0Ball
from ellzero.solving import PROOF_ENTRIES, PROOF_SECONDS
from ellzero.tensors import named
from ellzero.training.settings import (
    ACTIVATIONS,
    DEFAULT_STARTS,
    DEFAULT_STARTS_LARGE,
    NETWORK_SECONDS,
    SEARCH_SECONDS,
    TrainSettings,
)
from ellzero.validation import check_integer

# Exchanges up to which those of larger models are certified.
CERTIFIED_EXCHANGES = 10_000


def check_device(device: str) -> torch.device:
    """Return a device that exists and computes.

    Raises
    ------
    InvalidParameterError
        If the device is unknown or not there.
    """
    hint = "Pass `--device cpu`."
    try:
        found = torch.device(device)
        torch.zeros(1, device=found, dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        raise InvalidParameterError(
            f"`device` must be a device of this machine, got {device!r}.", hint
        ) from error
    return found


@dataclass(frozen=True, slots=True)
class Experiment:
    """A table, its split, and the problem they make.

    Parameters
    ----------
    table : Table
        The data.
    parts : Split
        Its training and test rows.
    objective : AbstractObjective
        Training loss with ridge.
    kind : str
        Kind of model, as in `SavedModel`.
    settings : TrainSettings
        What was asked for.
    """

    table: Table
    parts: Split
    objective: AbstractObjective
    kind: str
    settings: TrainSettings

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        return named.size(self.objective.init_params())

    def problem(self, budget: int) -> Problem:
        """Return the problem with a budget over all parameters."""
        return Problem(self.objective, L0Ball(budget))


def build_network(settings: TrainSettings, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return a fully connected network in float64 with seeded weights."""
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        for size in settings.hidden:
            layers += [nn.Linear(n_inputs, size), ACTIVATIONS[settings.activation]()]
            n_inputs = size
        layers.append(nn.Linear(n_inputs, n_outputs))
    return nn.Sequential(*layers).double().eval()


def squeezed_mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Return half the mean squared error of an output of shape (n, 1)."""
    return (prediction.squeeze(-1) - y).square().mean() / 2


def build_experiment(settings: TrainSettings, table: Table | None = None) -> Experiment:
    """Load the data and build the training loss.

    Parameters
    ----------
    settings : TrainSettings
        What to train.
    table : Table or None, default=None
        The data, when it has been read already.

    Returns
    -------
    Experiment
        Everything that the training needs.

    Raises
    ------
    DataError, InvalidParameterError
        If the data or a setting cannot be used.
    """
    device = check_device(settings.device)
    if table is None:
        table = load_table(settings.data, target=settings.target, task=settings.task)
    parts = split(table, test_size=settings.test_size, seed=settings.seed)
    X, y = parts.X_train.to(device), parts.y_train.to(device)
    n_classes = len(table.class_names or ())
    objective: AbstractObjective
    if settings.hidden:
        model = build_network(settings, X.shape[1], max(n_classes, 1))
        loss = nn.functional.cross_entropy if n_classes else squeezed_mse
        objective = ModuleLoss(model.to(device), loss, X, y, ridge=settings.ridge)
        kind = "module-mlp"
    elif table.task == "regression":
        objective = LeastSquares(X, y, ridge=settings.ridge, fit_intercept=True)
        kind = "least-squares"
    elif n_classes == 2:
        objective, kind = Logistic(X, y, ridge=settings.ridge, fit_intercept=True), "logistic"
    else:
        objective = Softmax(X, y, ridge=settings.ridge, fit_intercept=True)
        kind = "linear-softmax"
    n = named.size(objective.init_params())
    experiment = Experiment(table, parts, objective, kind, _with_defaults(settings, n))
    for budget in settings.n_nonzero or ():
        check_integer(
            "n_nonzero",
            budget,
            1,
            n,
            meaning="the number of parameters",
            hint=f"Pass `--n-nonzero {n}` to keep every parameter.",
        )
    return experiment


def _with_defaults(settings: TrainSettings, n_parameters: int) -> TrainSettings:
    """Return the settings with what was left to the size of the model."""
    starts, limit = settings.starts, settings.time_limit
    if starts is None:
        few = next((k for n, k in DEFAULT_STARTS if n_parameters <= n), DEFAULT_STARTS_LARGE)
        starts = 0 if settings.hidden else few
    if limit is None:
        small = PROOF_SECONDS if n_parameters <= PROOF_ENTRIES else SEARCH_SECONDS
        limit = NETWORK_SECONDS if settings.hidden else small
    return replace(settings, starts=starts, time_limit=limit)


def swap_option(experiment: Experiment, budget: int) -> str:
    """Return whether exchanges are certified: beyond some thousands that takes minutes."""
    n = experiment.n_parameters
    few = n <= PROOF_ENTRIES or budget * (n - budget) <= CERTIFIED_EXCHANGES
    return "auto" if few else "none"
