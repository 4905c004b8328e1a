"""From settings and a table to the problem that is solved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ellzero.core.problem import AbstractObjective, Problem
from ellzero.datasets import (
    Arrays,
    Split,
    Table,
    load_arrays,
    load_mnist,
    load_table,
    split,
    to_table,
)
from ellzero.datasets.arrays import check_no_target
from ellzero.errors import InvalidParameterError
from ellzero.nn.budgets import to_count
from ellzero.objectives import LeastSquares, Logistic, ModuleLoss, Softmax
from ellzero.sets import L0Ball
from ellzero.solving import PROOF_ENTRIES, PROOF_SECONDS
from ellzero.tensors import named
from ellzero.training.large import LargeExperiment, build_large, is_large
from ellzero.training.minibatch import seeded
from ellzero.training.modules import is_function, load_data
from ellzero.training.settings import (
    DEFAULT_STARTS,
    DEFAULT_STARTS_LARGE,
    NETWORK_BATCH,
    NETWORK_EPOCHS,
    NETWORK_SECONDS,
    RIDGE,
    SEARCH_SECONDS,
    TrainSettings,
    make_layers,
    squeezed_mse,
    with_network_defaults,
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
    def data(self) -> Table:
        """The data."""
        return self.table

    @property
    def fingerprint(self) -> str:
        """Hash of the data."""
        return self.table.fingerprint

    @property
    def task(self) -> str:
        """What is predicted."""
        return self.table.task

    @property
    def n_parameters(self) -> int:
        """Number of parameters, biases included."""
        return named.size(self.objective.init_params())

    @property
    def largest_budget(self) -> int:
        """What a budget of everything is."""
        return self.n_parameters

    @property
    def least_budget(self) -> int:
        """The smallest budget that can be asked for."""
        return 1

    def problem(self, budget: int) -> Problem:
        """Return the problem with a budget over all parameters."""
        return Problem(self.objective, L0Ball(budget))


def build_network(settings: TrainSettings, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return a fully connected network in float64 with seeded weights."""
    with seeded(settings.seed, torch.device("cpu")):
        return make_layers(settings, n_inputs, n_outputs).double().eval()


def read_data(settings: TrainSettings) -> Table | Arrays:
    """Return the data that the settings name: a table, or arrays with a test part."""
    source = settings.data
    if is_function(source):
        check_no_target(source, settings.target)
        return load_data(source, settings.task)
    if source == "mnist":
        check_no_target(source, settings.target)
        return load_mnist(settings.data_dir)
    if source.lower().endswith(".npz"):
        check_no_target(source, settings.target)
        return load_arrays(source, task=settings.task)
    return load_table(source, target=settings.target, task=settings.task)


def build_experiment(
    settings: TrainSettings, table: Table | None = None
) -> Experiment | LargeExperiment:
    """Load the data and build the training loss.

    Parameters
    ----------
    settings : TrainSettings
        What to train.
    table : Table or None, default=None
        The data, when it has been read already.

    Returns
    -------
    Experiment or LargeExperiment
        Everything that the training needs; the second for networks of a user, and for those with
        more than 20 million parameters times training samples.

    Raises
    ------
    DataError, InvalidParameterError
        If the data or a setting cannot be used.
    """
    device = check_device(settings.device)
    data = read_data(settings) if table is None else table
    if is_large(settings, data):
        return build_large(settings, data, device)
    return build_small(settings, data if isinstance(data, Table) else to_table(data), device)


def build_small(settings: TrainSettings, table: Table, device: torch.device) -> Experiment:
    """Return the training loss over all samples, in double precision."""
    parts = split(table, test_size=settings.test_size, seed=settings.seed)
    X, y = parts.X_train.to(device), parts.y_train.to(device)
    n_classes = len(table.class_names or ())
    objective: AbstractObjective
    ridge = RIDGE if settings.ridge is None else settings.ridge
    settings = replace(settings, ridge=ridge)
    if settings.hidden:
        settings = with_network_defaults(settings, NETWORK_EPOCHS, NETWORK_BATCH, ridge)
        model = build_network(settings, X.shape[1], max(n_classes, 1))
        loss = nn.functional.cross_entropy if n_classes else squeezed_mse
        objective = ModuleLoss(model.to(device), loss, X, y, ridge=ridge)
        kind = "module-mlp"
    elif table.task == "regression":
        objective = LeastSquares(X, y, ridge=ridge, fit_intercept=True)
        kind = "least-squares"
    elif n_classes == 2:
        objective, kind = Logistic(X, y, ridge=ridge, fit_intercept=True), "logistic"
    else:
        objective = Softmax(X, y, ridge=ridge, fit_intercept=True)
        kind = "linear-softmax"
    n = named.size(objective.init_params())
    return Experiment(table, parts, objective, kind, _with_defaults(settings, n))


def _budget(value: int | float, n_parameters: int) -> int:
    """Return a number of entries from a number or a density."""
    if isinstance(value, float):
        return to_count("n_nonzero", value, n_parameters)
    return check_integer(
        "n_nonzero",
        value,
        1,
        n_parameters,
        meaning="the number of parameters",
        hint=f"Pass `--n-nonzero {n_parameters}` to keep every parameter.",
    )


def _with_defaults(settings: TrainSettings, n_parameters: int) -> TrainSettings:
    """Return the settings with what was left to the size of the model."""
    starts, limit = settings.starts, settings.time_limit
    if starts is None:
        few = next((k for n, k in DEFAULT_STARTS if n_parameters <= n), DEFAULT_STARTS_LARGE)
        starts = 0 if settings.hidden else few
    if limit is None:
        small = PROOF_SECONDS if n_parameters <= PROOF_ENTRIES else SEARCH_SECONDS
        limit = NETWORK_SECONDS if settings.hidden else small
    budgets = settings.n_nonzero
    if budgets is not None:
        budgets = tuple(dict.fromkeys(_budget(b, n_parameters) for b in budgets))
    return replace(settings, starts=starts, time_limit=limit, n_nonzero=budgets)


def swap_option(experiment: Experiment, budget: int) -> str:
    """Return whether exchanges are certified: beyond some thousands that takes minutes."""
    n = experiment.n_parameters
    few = n <= PROOF_ENTRIES or budget * (n - budget) <= CERTIFIED_EXCHANGES
    return "auto" if few else "none"
