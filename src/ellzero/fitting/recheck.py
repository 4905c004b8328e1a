"""Recompute every claim of a model that `ellzero fit` saved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from ellzero.core.result import TreeProof
from ellzero.errors import ModelFileError
from ellzero.fitting.run import make_estimator, read_fit_data
from ellzero.fitting.settings import FitSettings
from ellzero.models import Recheck, SavedModel, claim_rows


def is_fit(model: SavedModel) -> bool:
    """Return whether a model comes from `ellzero fit`."""
    return isinstance(model.settings.get("fit"), Mapping)


def recertify_fit(
    model: SavedModel, path: str, data: str, *, target: str | None = None
) -> Recheck:
    """Recompute every claim of a best-subset model from the file and the data alone.

    Parameters
    ----------
    model : SavedModel
        The model.
    path : str
        Its file, for messages.
    data : str
        The data it was fitted on: a bundled name or a file.
    target : str or None, default=None
        Column to predict; None means the one that the model names.

    Returns
    -------
    Recheck
        Claim by claim, what the file says and what was found.

    Raises
    ------
    ModelFileError
        If the model was fitted on other data, or its settings cannot be read.
    DataError
        If the data cannot be read.
    """
    try:
        settings = FitSettings.from_dict(dict(model.settings["fit"]))
        said, stored = float(model.claims["value"]), dict(model.claims)
        budget = int((settings.n_nonzero or (0,))[0])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its settings cannot be read.",
            "Copy the file again, or fit the model again.",
        ) from error
    settings = replace(settings, data=data, target=target or settings.target)
    found = read_fit_data(settings)
    if found.table.fingerprint != model.data.get("fingerprint"):
        raise ModelFileError(
            f"The model was fitted on other data than '{data}': the fingerprints differ.",
            f"It was fitted on {model.data.get('name')!r} "
            f"({model.data.get('n_samples')} samples); give that data.",
        )
    rows, table = found.train_rows, found.table
    estimator = make_estimator(
        settings, found, n_nonzero_coefs=budget,
        ridge=settings.ridge[0], solver="exact" if settings.exact else "auto",
    )  # fmt: skip
    certificate, value = estimator.certify_model(
        table.X[rows].numpy(),
        table.y[rows].numpy(),
        model.params["coef"].numpy(),
        model.params["intercept"].numpy(),
        sample_weight=None if found.weights is None else found.weights[rows].numpy(),
        proof=model.proof if isinstance(model.proof, TreeProof) else None,
    )
    same = math.isclose(value, said, rel_tol=1e-8)
    first = ("value", f"{said:.10g}", f"{value:.10g}", same)
    return Recheck(certificate, (first, *claim_rows(stored, certificate)))
