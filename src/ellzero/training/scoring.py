"""What a point is worth: scores, the line of the table, the model to save."""

from __future__ import annotations

import math
from typing import Any

from ellzero.core.result import Claim, Result
from ellzero.models import SavedModel, predict
from ellzero.tensors import named
from ellzero.training.experiment import Experiment
from ellzero.training.outcomes import Outcome
from ellzero.typing import Params


def saved_model(experiment: Experiment, outcome: Outcome) -> SavedModel:
    """Return the model of an outcome with everything that is needed to check it again."""
    table, settings = experiment.table, experiment.settings
    stored = {**settings.to_dict(), "n_nonzero": [outcome.budget], "device": "cpu"}
    return SavedModel(
        kind=experiment.kind,
        params={n: t.detach().cpu() for n, t in outcome.params.items()},
        task=table.task,
        feature_names=table.feature_names,
        class_names=table.class_names,
        target_name=table.target_name,
        architecture={"hidden": list(settings.hidden), "activation": settings.activation},
        settings=stored,
        data={
            "name": table.name,
            "fingerprint": table.fingerprint,
            "n_samples": table.n_samples,
            "columns": [source.to_dict() for source in table.sources],
        },
        claims={**outcome.certificate, "value": outcome.row["value"]},
        mean=experiment.parts.mean,
        scale=experiment.parts.scale,
        proof=outcome.proof,
    )


def scores(experiment: Experiment, params: Params) -> dict[str, float | None]:
    """Return accuracies (or R^2) on the training and the test rows."""
    table, parts = experiment.table, experiment.parts
    empty = Outcome(0, params, {"value": 0.0}, {})
    model = saved_model(experiment, empty)
    out: dict[str, float | None] = {}
    for name, rows in (("train", parts.train_rows), ("test", parts.test_rows)):
        if rows.numel() == 0:
            out[f"accuracy_{name}"] = None
            continue
        y, guess = table.y[rows], predict(model, table.X[rows])
        if table.task == "classification":
            score = (guess == y).double().mean()
        else:
            score = 1 - (guess - y).square().sum() / (y - y.mean()).square().sum()
        value = named.to_float(score)
        out[f"accuracy_{name}"] = value if math.isfinite(value) else None
    return out


def _row(experiment: Experiment, result: Result, budget: int, dense: float) -> dict[str, Any]:
    certificate = result.certificate
    claim = None if certificate is None else certificate.claim
    measures = {} if certificate is None else certificate.measures
    epsilon = result.value - dense
    return {
        "n_nonzero": result.n_nonzero,
        "budget": budget,
        "value": result.value,
        "epsilon": epsilon,
        **scores(experiment, result.params),
        "status": result.status.name.lower(),
        "claim": None if claim is None else claim.name.lower(),
        "claim_sentence": None if claim is None else claim.sentence,
        "gap": result.gap,
        "lower_bound": result.lower_bound,
        "n_starts": result.measures.get("starts"),
        "hit_rate": result.measures.get("hit_rate"),
        "median_value": result.measures.get("median_value"),
        "worst_value": result.measures.get("worst_value"),
        "stable": certificate is not None and certificate.supports(Claim.STATIONARY),
        "largest_stable_step": measures.get("largest_stable_step"),
        "swap_level": int(certificate is not None and certificate.supports(Claim.COORDINATEWISE)),
        "seconds": result.seconds,
        "selected": False,
    }


def make_outcome(
    experiment: Experiment,
    result: Result,
    budget: int,
    dense: float,
    curves: dict[str, Any] | None = None,
) -> Outcome:
    """Return the outcome of a result; `dense` is the value of the dense reference."""
    return Outcome(
        budget,
        result.params,
        _row(experiment, result, budget, dense),
        {} if result.certificate is None else result.certificate.to_dict(),
        result.proof,
        curves=curves or {},
    )
