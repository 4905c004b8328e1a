"""Convex networks from a table: trained, certified, saved, checked again."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ellzero._version import __version__
from ellzero.core.result import Certificate
from ellzero.datasets import Split, Table, load_table, split
from ellzero.errors import DataError, IncompatibleError, ModelFileError
from ellzero.models import Recheck, SavedModel, claim_rows
from ellzero.relu.certificate import certify
from ellzero.relu.estimators import ConvexReLUClassifier, ConvexReLURegressor
from ellzero.relu.gated import certify_gated
from ellzero.relu.gated_estimators import GatedReLUClassifier, GatedReLURegressor
from ellzero.relu.gated_network import GatedReLU
from ellzero.relu.gated_program import GatedProgram
from ellzero.relu.gates import read_gates
from ellzero.relu.losses import loss_of
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.settings import check_penalty, draw_gates, with_bias
from ellzero.validation import check_choice, check_integer, check_real

Floats = NDArray[np.float64]

ACTIVATIONS = ("relu", "gated")
N_GATES = 500
# Rounding of a value that is computed again, and of a bound that a conic solver finds again.
SAME_VALUE, SAME_BOUND = 1e-9, 1e-6
SHOWN_NEURONS = 20
# Share of the norm below which a neuron is a trace of the search, not of the network.
TRACE = 1e-6


@dataclass(frozen=True, slots=True)
class ConvexSettings:
    """What `ellzero train --convex` was asked for.

    Parameters
    ----------
    data : str
        A bundled name or a file.
    target : str or None, default=None
        Column to predict, for files.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means as the data say.
    activation : {"relu", "gated"}, default="relu"
        ReLU neurons, certified over every width; or fixed gates, certified for these gates.
    penalty : float or None, default=None
        Weight of the norm; None means a hundredth of the largest useful one. Must be positive.
    neurons : int or None, default=None
        Most ReLU neurons, or gates that are sampled (default 500). Must be at least 1.
    seed : int, default=0
        Of the split and the search.
    test_size : float, default=0.2
        Share of the rows held out.
    time_limit : float or None, default=None
        Seconds after which no further neurons are inserted.

    Raises
    ------
    InvalidParameterError
        If a value is out of range.
    """

    data: str
    target: str | None = None
    task: str | None = None
    activation: str = "relu"
    penalty: float | None = None
    neurons: int | None = None
    seed: int = 0
    test_size: float = 0.2
    time_limit: float | None = None

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ACTIVATIONS)
        if self.task is not None:
            check_choice("task", self.task, ("classification", "regression"))
        check_penalty(self.penalty)
        if self.neurons is not None:
            check_integer("neurons", self.neurons, low=1)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, low=0.0, open_low=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True)
class ConvexRun:
    """A trained network with its data and its certificate.

    Parameters
    ----------
    settings : ConvexSettings
        What was asked for; the penalty is the one that was used.
    table : Table
        The data.
    parts : Split
        Training and test rows, standardized.
    estimator : object
        The fitted estimator.
    value : float
        Objective on the training rows.
    certificate : Certificate
        Computed from the weights and the data alone.
    scores : dict of str to float
        Accuracy or R^2 on training and test rows.
    seconds : float
        Wall time of training and certificate.
    """

    settings: ConvexSettings
    table: Table
    parts: Split
    estimator: Any
    value: float
    certificate: Certificate
    scores: dict[str, float | None]
    seconds: float

    @property
    def is_gated(self) -> bool:
        """Whether gates are fixed."""
        return self.settings.activation == "gated"


def read_table(settings: ConvexSettings, *, data_dir: str | None = None) -> Table:
    """Read the data of a convex network.

    Parameters
    ----------
    settings : ConvexSettings
        Which.
    data_dir : str or None, default=None
        Where downloaded data are kept.

    Returns
    -------
    Table
        The data.

    Raises
    ------
    DataError
        If the data cannot be read, or have more than two classes while neurons are ReLU.
    """
    table = load_table(settings.data, target=settings.target, task=settings.task, folder=data_dir)
    classes = len(table.class_names or ())
    if classes > 2 and settings.activation == "relu":
        raise DataError(
            f"Certified ReLU networks are for two classes or numbers, got {classes} classes.",
            "Pass `--activation gated`, which takes any number of classes.",
        )
    return table


def train_table(settings: ConvexSettings, table: Table | None = None) -> ConvexRun:
    """Train a two-layer network by convex programs and certify it.

    Parameters
    ----------
    settings : ConvexSettings
        What to train.
    table : Table or None, default=None
        The data, when they have been read already.

    Returns
    -------
    ConvexRun
        The network, its certificate and its scores.

    Raises
    ------
    DataError
        If the data cannot be used.
    InvalidParameterError
        If more memory is needed than there is.

    Examples
    --------
    >>> from ellzero.relu.tables import ConvexSettings, train_table
    >>> run = train_table(ConvexSettings("breast_cancer", activation="gated", neurons=20))
    >>> run.certificate.gap < 1e-4, run.scores["test"] > 0.9
    (True, True)
    """
    began = time.perf_counter()
    table = read_table(settings) if table is None else table
    parts = split(table, test_size=settings.test_size, seed=settings.seed)
    X, y = _rows(parts.X_train), _rows(parts.y_train)
    estimator = _estimator(settings, table.task).fit(X, y)
    settings = replace(settings, penalty=float(estimator.penalty_))
    if isinstance(estimator.network_, TwoLayerReLU):
        estimator.network_ = _without_traces(estimator.network_)
    certificate, value = _certify(settings, estimator.network_, X, y, table)
    scores: dict[str, float | None] = {"train": float(estimator.score(X, y)), "test": None}
    if parts.n_test > (1 if table.task == "regression" else 0):
        scores["test"] = float(estimator.score(_rows(parts.X_test), _rows(parts.y_test)))
    seconds = time.perf_counter() - began
    return ConvexRun(settings, table, parts, estimator, value, certificate, scores, seconds)


def _without_traces(network: TwoLayerReLU) -> TwoLayerReLU:
    """Return a network without neurons of a millionth of its norm, all that descent leaves."""
    costs = np.abs(network.outputs) * np.linalg.norm(network.directions, axis=1)
    kept = costs > TRACE * costs.sum()
    return TwoLayerReLU(
        network.hidden[kept],
        None if network.biases is None else network.biases[kept],
        network.outputs[kept],
        network.intercept,
    )


def saved_model(run: ConvexRun) -> SavedModel:
    """Return the network with what is needed to use it and to check its claims again.

    Parameters
    ----------
    run : ConvexRun
        What `train_table` returned.

    Returns
    -------
    SavedModel
        Of the kind "module-mlp", or "gated-relu" for fixed gates.
    """
    network, table = run.estimator.network_, run.table
    if isinstance(network, GatedReLU):
        kind = "gated-relu"
        architecture: dict[str, Any] = {"biased": network.biased}
        shift = np.zeros(network.weights.shape[2])
        params = {"gates": network.vectors, "weights": network.weights}
        params["intercept"] = shift if network.intercept is None else network.intercept
        tensors = {name: torch.from_numpy(np.array(value)) for name, value in params.items()}
    else:
        kind = "module-mlp"
        tensors = {n: t.detach() for n, t in network.to_module().state_dict().items()}
        width = int(tensors["0.weight"].shape[0])
        architecture = {"hidden": [width], "activation": "relu"}
    return SavedModel(
        kind=kind,
        params=tensors,
        task=table.task,
        feature_names=table.feature_names,
        class_names=table.class_names,
        target_name=table.target_name,
        architecture=architecture,
        settings={"convex": run.settings.to_dict()},
        data={
            "name": table.name,
            "fingerprint": table.fingerprint,
            "n_samples": table.n_samples,
            "columns": [source.to_dict() for source in table.sources],
        },
        claims={**run.certificate.to_dict(), "value": run.value},
        mean=run.parts.mean,
        scale=run.parts.scale,
    )


def is_convex(model: SavedModel) -> bool:
    """Return whether a model comes from `ellzero train --convex`."""
    return isinstance(model.settings.get("convex"), Mapping)


def recertify_convex(
    model: SavedModel,
    path: str,
    data: str,
    *,
    target: str | None = None,
    data_dir: str | None = None,
) -> Recheck:
    """Recompute every claim of a convex network from the file and the data alone.

    Parameters
    ----------
    model : SavedModel
        The model.
    path : str
        Its file, for messages.
    data : str
        The data it was trained on: a bundled name or a file.
    target : str or None, default=None
        Column to predict; None means the one that the model names.
    data_dir : str or None, default=None
        Where downloaded data are kept.

    Returns
    -------
    Recheck
        Claim by claim, what the file says and what was found.

    Raises
    ------
    ModelFileError
        If the model was trained on other data, or its settings cannot be read.
    IncompatibleError
        If its parameters are not those of a two-layer network.
    DataError
        If the data cannot be read.
    """
    try:
        settings = ConvexSettings(**dict(model.settings["convex"]))
        said, stored = float(model.claims["value"]), dict(model.claims)
        said_bound = float(stored.pop("lower_bound"))
        if settings.penalty is None:
            raise ValueError("penalty")
    except (TypeError, KeyError, ValueError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its settings cannot be read.",
            "Copy the file again, or train the model again.",
        ) from error
    settings = replace(settings, data=data, target=target or settings.target)
    table = read_table(settings, data_dir=data_dir)
    if table.fingerprint != model.data.get("fingerprint"):
        raise ModelFileError(
            f"The model was trained on other data than '{data}': the fingerprints differ.",
            f"It was trained on {model.data.get('name')!r} "
            f"({model.data.get('n_samples')} samples); give that data.",
        )
    parts = split(table, test_size=settings.test_size, seed=settings.seed)
    network = _network(model, path)
    try:
        certificate, value = _certify(
            settings, network, _rows(parts.X_train), _rows(parts.y_train), table
        )
    except (ValueError, IndexError) as error:
        if isinstance(error, DataError):
            raise
        raise _misfit(path) from error
    bound = -math.inf if certificate.lower_bound is None else certificate.lower_bound
    rows = (
        (
            "value",
            f"{said:.10g}",
            f"{value:.10g}",
            math.isclose(value, said, rel_tol=SAME_VALUE, abs_tol=1e-14),
        ),
        (
            "proven lower bound",
            f"{said_bound:.10g}",
            f"{bound:.10g}",
            bound >= said_bound - SAME_BOUND * abs(said_bound),
        ),
        *claim_rows(stored, certificate),
    )
    return Recheck(certificate, rows)


def _network(model: SavedModel, path: str) -> TwoLayerReLU | GatedReLU:
    """Return the network of a saved model, or raise."""
    numbers = {name: _rows(tensor) for name, tensor in model.params.items()}
    try:
        if model.kind == "gated-relu":
            gated = GatedReLU(
                numbers["gates"],
                numbers["weights"],
                numbers["intercept"],
                bool(model.architecture["biased"]),
            )
            if gated.weights.shape[:2] != gated.vectors.shape:
                raise IndexError("weights")
            return gated
        network = TwoLayerReLU(
            numbers["0.weight"],
            numbers["0.bias"],
            numbers["2.weight"][0],
            float(numbers["2.bias"][0]),
        )
        if len(network.hidden) != len(network.outputs):
            raise IndexError("outputs")
    except (KeyError, IndexError) as error:
        raise _misfit(path) from error
    return network


def _misfit(path: str) -> IncompatibleError:
    return IncompatibleError(
        f"The parameters of '{path}' do not fit the model it describes.", "Train the model again."
    )


def _rows(tensor: torch.Tensor) -> Floats:
    """Return a tensor of a table as float64."""
    return np.asarray(tensor.detach().numpy(), dtype=np.float64)


def _estimator(settings: ConvexSettings, task: str) -> Any:
    """Return the estimator of the settings, not fitted."""
    gated, classes = settings.activation == "gated", task == "classification"
    if gated:
        kind: Any = GatedReLUClassifier if classes else GatedReLURegressor
        return kind(
            settings.penalty, n_gates=settings.neurons or N_GATES, random_state=settings.seed
        )
    kind = ConvexReLUClassifier if classes else ConvexReLURegressor
    # The certificate is computed once, from the network alone.
    return kind(
        settings.penalty,
        max_neurons=settings.neurons,
        time_limit=settings.time_limit,
        certify=False,
        random_state=settings.seed,
    )


def _certify(
    settings: ConvexSettings,
    network: TwoLayerReLU | GatedReLU,
    X: Floats,
    y: Floats,
    table: Table,
) -> tuple[Certificate, float]:
    """Return certificate and objective of a network from its weights and the data alone."""
    assert settings.penalty is not None
    classes = len(table.class_names or ())
    loss = loss_of("logistic" if classes else "squared")
    if isinstance(network, TwoLayerReLU):
        targets = np.where(y > 0, 1.0, -1.0) if classes else y
        found, _ = certify(network, X, targets, loss, settings.penalty)
        value = loss.value(network.predict(X), targets) + settings.penalty * network.norm
        return found, value
    wanted = np.arange(1, 2) if classes == 2 else np.arange(classes)
    Y = np.where(y[:, None] == wanted, 1.0, -1.0) if classes else y[:, None]
    A = with_bias(X, network.biased)
    sampled = draw_gates(settings.seed, settings.neurons or N_GATES, A.shape[1])
    # The gates in use come first: their patterns must be in the program whatever is sampled.
    gates = read_gates(A, np.vstack([network.vectors, sampled]))
    shift = np.zeros(Y.shape[1]) if classes else Y.mean(axis=0)
    constant = np.zeros(Y.shape[1]) if network.intercept is None else network.intercept
    program = GatedProgram(A, gates.patterns, Y - shift, loss, network.intercept is not None)
    support = np.arange(len(network.vectors))
    found, value, _, _ = certify_gated(
        program, settings.penalty, support, network.weights, constant - shift
    )
    return found, float(value)


# The report ----------------------------------------------------------------------------------


def headline(run: ConvexRun) -> str:
    """Return the sentence that answers what was found and how sure that is."""
    network, certificate = run.estimator.network_, run.certificate
    name = "R^2" if run.table.task == "regression" else "accuracy"
    part = "train" if run.scores["test"] is None else "test"
    score = run.scores[part]
    fitted = f"{part} {name} {score:.1%}" if score is not None else ""
    what = "gated units" if run.is_gated else "ReLU neurons"
    other = "of these gates" if run.is_gated else "of any width"
    if certificate.claim is None or certificate.gap is None:
        sure = "nothing is proven"
    elif certificate.gap <= 1e-6:
        sure = f"proven best network {other} (gap {max(certificate.gap, 0.0):.1e})"
    else:
        sure = f"proven within {100 * certificate.gap:.3g} % of the best network {other}"
    return f"{network.n_neurons} {what}, loss {run.value:.4g}, {fitted}, {sure}"


def summarize_convex(run: ConvexRun, *, command: str = "") -> dict[str, Any]:
    """Return the run as plain values.

    Parameters
    ----------
    run : ConvexRun
        What `train_table` returned.
    command : str, default=""
        The command that repeats the run.

    Returns
    -------
    dict
        See `ellzero.report.schema`.
    """
    table, certificate = run.table, run.certificate
    largest = float(run.estimator.largest_penalty_)
    scores = {f"{part} score": score for part, score in run.scores.items()}
    what = "these gates" if run.is_gated else "every width"
    network_rows = [
        ["objective", run.value],
        ["proven lower bound, " + what, certificate.lower_bound],
        ["relative gap", certificate.gap],
        ["penalty over the largest useful one", (run.settings.penalty or 0.0) / (largest or 1.0)],
        ["norm", float(run.estimator.network_.norm)],
        ["neurons", run.estimator.network_.n_neurons],
        *[[name, score] for name, score in scores.items() if score is not None],
    ]
    return {
        "schema_version": 1,
        "title": f"Convex two-layer network on {table.name}",
        "headline": headline(run),
        "command": command,
        "settings": {**run.settings.to_dict(), "largest useful penalty": largest},
        "versions": {"ellzero": __version__, "numpy": np.__version__, "torch": torch.__version__},
        "data": {
            "name": table.name,
            "n_samples": table.n_samples,
            "n_features": table.n_features,
            "n_classes": len(table.class_names) if table.class_names else None,
            "classes": list(table.class_names) if table.class_names else None,
            "features": list(table.feature_names),
            "target": table.target_name,
            "task": table.task,
            "fingerprint": table.fingerprint,
            "n_train": run.parts.n_train,
            "n_test": run.parts.n_test,
            "messages": list(table.messages),
        },
        "tables": [
            {"title": "Network", "columns": ["what", "number"], "rows": network_rows},
            _neuron_table(run),
        ],
        "certificate": certificate.to_dict(),
        "seconds": run.seconds,
    }


def _neuron_table(run: ConvexRun) -> dict[str, Any]:
    """Return the neurons by what they cost, with the features that they weigh most."""
    network, names = run.estimator.network_, run.table.feature_names
    effects: Floats | None = None
    if isinstance(network, GatedReLU):
        directions = np.sqrt((network.weights**2).sum(axis=2))
        costs = np.sqrt((network.weights**2).sum(axis=(1, 2)))
    else:
        directions = network.directions
        costs = np.abs(network.outputs) * np.linalg.norm(directions, axis=1)
        effects = np.sign(network.outputs)
    labels = [*names, "bias"][: directions.shape[1]]
    rows: list[list[Any]] = []
    for j in np.argsort(-costs, kind="stable")[:SHOWN_NEURONS]:
        top = np.argsort(-np.abs(directions[j]), kind="stable")[:3]
        length = float(np.linalg.norm(directions[j])) or 1.0
        said = ", ".join(f"{labels[i]} {directions[j][i] / length:+.2f}" for i in top)
        sign = "" if effects is None else ("up" if effects[j] > 0 else "down")
        rows.append([len(rows) + 1, float(costs[j]), *([] if effects is None else [sign]), said])
    more = network.n_neurons - len(rows)
    return {
        "title": "Neurons",
        "columns": [
            "neuron",
            "norm",
            *([] if effects is None else ["effect"]),
            "largest weights of its direction",
        ],
        "rows": rows,
        "note": (f"And {more} more. " if more > 0 else "") + "Features are standardized.",
    }
