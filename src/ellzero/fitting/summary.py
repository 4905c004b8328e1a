"""A run as plain values: the input of every report."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero._version import __version__
from ellzero.fitting.run import FitRun

# Features whose coefficients the report draws over the budgets.
DRAWN_FEATURES = 12
SCORES = {"classification": "accuracy", "regression": "R2"}


def headline(run: FitRun) -> str:
    """Return the sentence that answers what was found and how sure that is."""
    row, data = run.chosen.row, run.data
    claim = row["claim_sentence"] or "no claim"
    gap = row["gap"]
    sure = claim if gap is None else f"{claim} (gap {max(gap, 0.0):.1e})"
    name = "explained deviance" if data.loss == "poisson" else SCORES[data.table.task]
    part = "test" if row["accuracy_test"] is not None else "train"
    score = row[f"accuracy_{part}"]
    fitted = "" if score is None else f", {part} {name} {score:.1%}"
    count = len(row["support"])
    chosen = f"{count} of {data.n_units} {data.unit}"
    how = "the largest budget" if run.settings.select == "largest" else run.settings.select.upper()
    return f"{chosen} by {how}, loss {row['value']:.4g}{fitted}, {sure}"


def summarize_fit(run: FitRun, *, command: str = "") -> dict[str, Any]:
    """Return the run as plain values.

    Parameters
    ----------
    run : FitRun
        What `fit_table` returned.
    command : str, default=""
        The command that repeats the run.

    Returns
    -------
    dict
        See `ellzero.report.schema`.
    """
    data, chosen = run.data, run.chosen
    table = data.table
    outputs = list(table.class_names or ()) if data.loss == "softmax" else [table.target_name]
    messages = list(table.messages)
    if data.groups is not None:
        messages.append("The features of a text column enter together and count once.")
    if data.weights is not None:
        messages.append(f"Samples are weighted by {run.settings.weights!r}.")
    return {
        "schema_version": 1,
        "title": f"Best subsets for {table.target_name} of {table.name}",
        "headline": headline(run),
        "command": command,
        "settings": {**run.settings.to_dict(), "loss": data.loss, "ridge": run.ridge},
        "versions": {"ellzero": __version__, "numpy": np.__version__},
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
            "n_train": int(data.train_rows.numel()),
            "n_test": int(data.test_rows.numel()),
            "messages": messages,
        },
        "dense": {"n_parameters": data.n_units},
        "counted": data.unit,
        "path": [fit.row for fit in run.fits],
        "support": _support(run, outputs),
        "certificate": chosen.certificate.to_dict(),
        "criteria": run.criteria,
        "seconds": run.seconds,
        "figures": _coefficient_figure(run),
    }


def _support(run: FitRun, outputs: list[str]) -> list[dict[str, Any]]:
    """Return the coefficients and intercepts of the chosen model by their names."""
    names, subset = run.data.table.feature_names, run.chosen.subset
    out = []
    for o, output in enumerate(outputs):
        of = f" ({output})" if len(outputs) > 1 else ""
        out += [
            {"name": f"{names[j]}{of}", "value": float(subset.coef[i, o])}
            for i, j in enumerate(subset.support)
        ]
        out.append({"name": f"intercept{of}", "value": float(subset.intercept[o])})
    return out


def _coefficient_figure(run: FitRun) -> list[dict[str, Any]]:
    """Return the chart of the coefficients over the budgets, of models with one output."""
    if run.data.loss == "softmax" or len(run.fits) < 2:
        return []
    table = run.data.table
    scale = table.X[run.data.train_rows].std(0).numpy()
    dense = np.stack([fit.subset.dense(table.n_features)[0] for fit in run.fits]) * scale
    # Those drawn are the largest on the way, in units of one standard deviation of the feature.
    order = np.argsort(-np.abs(dense).max(axis=0), kind="stable")
    drawn = [int(j) for j in order if dense[:, j].any()][:DRAWN_FEATURES]
    left = int((dense != 0).any(axis=0).sum()) - len(drawn)
    budgets = [fit.budget for fit in run.fits]
    return [
        {
            "kind": "line_chart",
            "options": {
                "title": f"Coefficients by number of {run.data.unit}",
                "series": [
                    {"name": table.feature_names[j], "x": budgets, "y": dense[:, j].tolist()}
                    for j in drawn
                ],
                "x_label": f"number of {run.data.unit}",
                "y_label": "coefficient of one standard deviation",
                "integer_x": True,
                "selected_x": run.chosen.budget,
                "note": f"{left} with smaller coefficients are not drawn." if left > 0 else "",
            },
        }
    ]
