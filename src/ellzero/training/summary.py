"""A run as plain values: the input of every report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ellzero._version import __version__
from ellzero.core.problem import AbstractSmoothObjective
from ellzero.core.solver import SolverState, iterate
from ellzero.smoothness import SmoothnessEstimate, restricted_smoothness
from ellzero.solvers import IHT, random_starts
from ellzero.solving import PROOF_ENTRIES
from ellzero.tensors import named
from ellzero.training.experiment import Experiment
from ellzero.training.large import LargeExperiment
from ellzero.training.layers import layer_rows
from ellzero.training.outcomes import Outcome
from ellzero.training.run import TrainRun
from ellzero.training.settings import NETWORK_OPTIONS

# Iterations of the demonstration run that the report draws, and parameters that can be drawn.
SHOWN_ITERATIONS = 300
SHOWN_PARAMETERS = 2000
SHOWN_NOTE = (
    "Plain iterative hard thresholding from one random start, to show how it moves; the chosen "
    "model is the best of all starts after exchanges of support entries."
)
# Pairs of points drawn for the Monte Carlo estimate: of small models, others and networks.
SAMPLES, SAMPLES_LARGE, SAMPLES_NETWORK = 2000, 200, 50


def smoothness_estimates(experiment: Experiment, outcome: Outcome) -> list[dict[str, Any]]:
    """Return the estimates of L_2s by every method that applies, for the report."""
    objective, k = experiment.objective, min(2 * outcome.budget, experiment.n_parameters)
    samples = SAMPLES if experiment.n_parameters <= PROOF_ENTRIES else SAMPLES_LARGE
    network = not isinstance(objective, AbstractSmoothObjective)
    samples = SAMPLES_NETWORK if network else samples
    generator = torch.Generator().manual_seed(0)
    drawn = restricted_smoothness(
        objective, k, method="monte-carlo", n_samples=samples, generator=generator
    )
    rows = [_estimate_row("monte-carlo", drawn)]
    measures = outcome.certificate.get("measures", {})
    if network and measures.get("smoothness_n_nonzero") == k:
        rows.append(_power_row(measures))
        return rows
    at = restricted_smoothness(objective, k, method="power", params=outcome.params)
    rows.append(_estimate_row("power at the model", at))
    if not network:
        zero = restricted_smoothness(objective, k, method="power")
        bound = restricted_smoothness(objective, k, method="bound")
        rows += [_estimate_row("power at zero", zero), _estimate_row("bound", bound)]
    return rows


def _power_row(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimate of a certificate; of a network it takes long to make another."""
    k = measures["smoothness_n_nonzero"]
    return {
        "method": "power at the model",
        "kind": measures["smoothness_kind"],
        "n_nonzero": k,
        "value": measures["smoothness"],
        "note": "Largest curvature found at the model along directions with at most "
        f"{k} nonzeros; other points may be steeper.",
    }


def _estimate_row(method: str, estimate: SmoothnessEstimate) -> dict[str, Any]:
    return {
        "method": method,
        "kind": estimate.kind,
        "n_nonzero": estimate.n_nonzero,
        "value": estimate.value,
        "note": str(estimate.details.get("statement", "")),
    }


def shown_run(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Run IHT once from the first random start and record supports and values.

    Of models with too many parameters for a picture nothing is run and nothing returned.
    """
    if experiment.n_parameters > SHOWN_PARAMETERS:
        return {}
    problem = experiment.problem(outcome.budget)
    iterations: list[int] = []
    masks: list[list[int]] = []

    def record(iteration: int, state: SolverState) -> None:
        flat = named.to_list(named.flatten(named.nonzero_masks(state.params))[0].to(torch.int8))
        if not masks or masks[-1] != flat:
            iterations.append(iteration)
            masks.append(flat)

    generator = torch.Generator().manual_seed(experiment.settings.seed)
    start = random_starts(problem, 1, generator=generator)
    run = iterate(problem, IHT(), start, max_iter=SHOWN_ITERATIONS, callback=record)
    trace = list(run.trace(0))
    return {
        "supports": {
            "iterations": iterations,
            "masks": masks,
            "labels": entry_labels(experiment),
            "n_iter": len(trace) - 1,
            "note": SHOWN_NOTE,
        },
        "trace": {
            "iterations": list(range(len(trace))),
            "values": trace,
            "note": SHOWN_NOTE,
        },
    }


def entry_labels(experiment: Experiment) -> list[str]:
    """Return a readable name for every parameter, in flattened order."""
    table = experiment.table
    classes = table.class_names or ()
    outputs = list(classes) if len(classes) > 2 else [table.target_name]
    labels: list[str] = []
    for name, tensor in experiment.objective.init_params().items():
        if name == "coef":
            labels += [
                f"{o}: {f}" if len(outputs) > 1 else f
                for o in outputs
                for f in table.feature_names
            ]
        elif name == "intercept":
            labels += [f"{o}: bias" if len(outputs) > 1 else "bias" for o in outputs]
        else:
            labels += [f"{name}[{i}]" for i in range(tensor.numel())]
    return labels


def _weights(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    table = experiment.table
    classes = table.class_names or ()
    outputs = list(classes) if len(classes) > 2 else [table.target_name]
    tensors: list[dict[str, Any]] = []
    if "coef" in outcome.params:
        coef = outcome.params["coef"].reshape(len(outputs), -1)
        bias = outcome.params["intercept"].reshape(-1, 1)
        tensors.append(
            {
                "name": "weights and bias",
                "shape": [len(outputs), coef.shape[1] + 1],
                "values": named.to_list(torch.cat([coef, bias], 1)),
                "row_labels": outputs,
                "column_labels": [*table.feature_names, "bias"],
            }
        )
    else:
        tensors += [
            {
                "name": name,
                "shape": list(tensor.shape),
                "values": named.to_list(tensor),
                "row_labels": None,
                "column_labels": None,
            }
            for name, tensor in outcome.params.items()
        ]
    return {"tensors": tensors}


def headline(run: TrainRun) -> str:
    """Return the sentence that answers what was found and how sure that is."""
    row, n = run.chosen.row, run.experiment.n_parameters
    large = isinstance(run.experiment, LargeExperiment)
    claim = row["claim_sentence"] or "no claim"
    gap = row["gap"]
    sure = claim if gap is None else f"{claim} (gap {max(gap, 0.0):.1e})"
    score, dense = row["accuracy_test"], run.dense.get("accuracy_test")
    name = "test accuracy" if run.experiment.task == "classification" else "test R2"
    beside = f" (dense {dense:.1%})" if large and dense is not None else ""
    tested = "" if score is None else f", {name} {score:.1%}{beside}"
    what = f"{n:,} weights" if large else f"{n} parameters"
    count = f"{row['n_nonzero']:,}" if large else row["n_nonzero"]
    return f"{count} of {what}, train loss {row['value']:.4f}{tested}, {sure}"


def summarize(
    run: TrainRun, *, command: str = "", sizes: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the run as plain values: the input of every report.

    Parameters
    ----------
    run : TrainRun
        What `train` returned.
    command : str, default=""
        The command that repeats the run.
    sizes : mapping of str to int or None, default=None
        ``bytes`` and ``dense_bytes`` of the model file, see `save_large`.

    Returns
    -------
    dict
        See `ellzero.report.schema`.
    """
    experiment, outcome = run.experiment, run.chosen
    settings = experiment.settings
    kind = "network" if settings.is_network else "model"
    unused = () if settings.is_network else (*NETWORK_OPTIONS, "model", "dense")
    curves = {"dense": run.dense.get("curves")} if run.dense.get("curves") else {}
    common = {
        "schema_version": 1,
        "title": f"Sparse {kind} on {experiment.data.name}",
        "headline": headline(run),
        "command": command,
        "interrupted": run.interrupted,
        "settings": {k: v for k, v in settings.to_dict().items() if k not in unused},
        "versions": {"ellzero": __version__, "torch": torch.__version__},
        "data": _data(experiment),
        "dense": {k: v for k, v in run.dense.items() if k != "curves"},
        "path": [o.row for o in run.outcomes],
        "certificate": outcome.certificate,
        "seconds": run.seconds,
    }
    if settings.is_network:
        counted = experiment.n_parameters
        common["training"] = _training(outcome, curves, counted)
        shape = experiment.sample_shape if isinstance(experiment, LargeExperiment) else ()
        common["layers"] = layer_rows(outcome.params, shape)
    if sizes:
        common["file"] = dict(sizes)
    if isinstance(experiment, LargeExperiment):
        return {**common, "counted": "weights", "smoothness": _smoothness_known(outcome)}
    return {
        **common,
        "weights": _weights(experiment, outcome),
        "support": [
            {"name": label, "value": value}
            for label, value in zip(
                entry_labels(experiment),
                named.to_list(named.flatten(outcome.params)),
                strict=True,
            )
            if value != 0
        ],
        "smoothness": smoothness_estimates(experiment, outcome),
        **shown_run(experiment, outcome),
    }


def _data(experiment: Experiment | LargeExperiment) -> dict[str, Any]:
    data = experiment.data
    out = {
        "name": data.name,
        "n_features": data.n_features,
        "n_classes": len(data.class_names) if data.class_names else None,
        "classes": list(data.class_names) if data.class_names else None,
        "task": data.task,
        "fingerprint": data.fingerprint,
    }
    if isinstance(experiment, LargeExperiment):
        arrays = experiment.arrays
        return {
            **out,
            "n_samples": arrays.n_train + arrays.n_test,
            "sample_shape": list(experiment.sample_shape),
            "n_train": arrays.n_train,
            "n_test": arrays.n_test,
            "messages": list(arrays.messages),
        }
    table, parts = experiment.table, experiment.parts
    return {
        **out,
        "n_samples": table.n_samples,
        "features": list(table.feature_names),
        "target": table.target_name,
        "n_train": parts.n_train,
        "n_test": parts.n_test,
        "messages": [*table.messages, *parts.messages],
    }


def _training(outcome: Outcome, others: Mapping[str, Any], n_entries: int) -> dict[str, Any]:
    """Return the curves of the chosen run, and those of the dense one where there was one."""
    runs = {"sparse": outcome.curves, **others}
    return {
        "n_entries": n_entries,
        "runs": [{"name": name, **curves} for name, curves in runs.items() if curves],
    }


def _smoothness_known(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the estimate that the certificate made."""
    measures = outcome.certificate.get("measures", {})
    if "smoothness" not in measures:
        return []
    return [_power_row(measures)]
