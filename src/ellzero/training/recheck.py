"""Recompute every claim of a saved model."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace

import torch

from ellzero.certificates import verify
from ellzero.core.result import Certificate, Claim
from ellzero.datasets import load_table
from ellzero.errors import IncompatibleError, InvalidParameterError, ModelFileError
from ellzero.models import Recheck, SavedModel, check_claims, claim_rows, load_model
from ellzero.tensors import named
from ellzero.training.claims import claims_path, is_exported, read_claims
from ellzero.training.experiment import build_small, read_data, swap_option
from ellzero.training.large import build_large, certify_large, close, restored, score
from ellzero.training.settings import TrainSettings


def recertify(
    path: str,
    data: str,
    *,
    target: str | None = None,
    task: str | None = None,
    data_dir: str | None = None,
    network: str | None = None,
) -> Recheck:
    """Recompute every claim of a saved model from the file and the data alone.

    Parameters
    ----------
    path : str
        The model file.
    data : str
        The data it was trained on: a bundled name or a file.
    target : str or None, default=None
        Column to predict; None means the one that the model names.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means what the model says.
    data_dir : str or None, default=None
        Where downloaded data are kept; see `ellzero.datasets.data_folder`.
    network : str or None, default=None
        ``FILE.py:NAME``, the function that builds the network, where the model was trained with
        one. The model file names it, but a file is data: what it names is not run unasked.

    Returns
    -------
    Recheck
        Claim by claim, what the file says and what was found.

    Raises
    ------
    ModelFileError
        If the model cannot be read, or was trained on other data.
    DataError
        If the data cannot be read.
    InvalidParameterError
        If the Python file that builds the network of a user is not given or cannot be run.

    Notes
    -----
    Of a large network the training loss is compared to four digits, for its precision is that of
    the network; the certificate is computed on the same sample of the training data as before.
    """
    if is_exported(path):
        return _recertify_large(path, data, target, data_dir, network)
    model = load_model(path)
    try:
        settings = TrainSettings.from_dict(dict(model.settings))
        budget = (settings.budgets or (model.n_nonzero,))[0]
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: its settings cannot be read.",
            "Copy the file again, or train the model again.",
        ) from error
    bundled = settings.target is None
    wanted = target if target is not None or bundled else model.target_name
    table = load_table(
        data, target=wanted, task=task or (None if bundled else model.task), folder=data_dir
    )
    if table.fingerprint != model.data.get("fingerprint"):
        raise ModelFileError(
            f"The model was trained on other data than '{data}': the fingerprints differ.",
            f"It was trained on {model.data.get('name')!r} "
            f"({model.data.get('n_samples')} samples); give that data.",
        )
    experiment = build_small(replace(settings, device="cpu"), table, torch.device("cpu"))
    problem = experiment.problem(budget)
    try:
        swaps = swap_option(experiment, budget)
        certificate = verify(problem, model.params, proof=model.proof, swaps=swaps)
        value = named.to_float(problem.value(model.params))
    except (KeyError, RuntimeError) as error:
        raise IncompatibleError(
            f"The parameters of '{path}' do not fit the model it describes.",
            "Train the model again.",
        ) from error
    return Recheck(certificate, _compare(model, certificate, value, budget))


def _recertify_large(
    path: str, data: str, target: str | None, data_dir: str | None, network: str | None
) -> Recheck:
    """Recompute the claims of a network that was trained by minibatches alone."""
    saved = read_claims(path)
    try:
        settings = TrainSettings.from_dict(saved.settings)
        budget = (settings.budgets or ())[0]
        check_claims(saved.claims)
        said = float(saved.claims["value"])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelFileError(
            f"'{claims_path(path)}' does not hold the claims of a model.",
            "Copy the file again, or train the model again.",
        ) from error
    if settings.model is not None and network is None:
        raise InvalidParameterError(
            f"'{path}' holds a network that a Python file builds, '{settings.model}', which is "
            "not run unasked.",
            f"If you trust that file, pass `--model {shlex.quote(settings.model)}`.",
        )
    settings = replace(
        settings,
        data=data,
        target=target or settings.target,
        data_dir=data_dir,
        device="cpu",
        model=None if settings.model is None else network,
    )
    experiment = build_large(settings, read_data(settings), torch.device("cpu"))
    if experiment.fingerprint != saved.data.get("fingerprint"):
        raise ModelFileError(
            f"The model was trained on other data than '{data}': the fingerprints differ.",
            f"It was trained on {saved.data.get('name')!r} "
            f"({saved.data.get('n_samples')} samples); give that data.",
        )
    try:
        model = restored(experiment, saved.state)
    except RuntimeError as error:
        raise IncompatibleError(
            f"The parameters of '{path}' do not fit the network that the settings describe.",
            "Give back the Python file of `--model` as it was, or train the model again.",
        ) from error
    value = score(experiment, model)["value"]
    assert value is not None
    certificate = certify_large(experiment, model, budget, None)
    n_nonzero = experiment.count(model)
    claim, now = saved.claims.get("claim"), certificate.claim
    level = None if claim is None else Claim[str(claim).upper()]
    return Recheck(
        certificate,
        (
            (
                f"{settings.unit} within the budget",
                f"at most {budget}",
                str(n_nonzero),
                n_nonzero <= budget,
            ),
            ("value", f"{said:.6g}", f"{value:.6g}", close(value, said)),
            (
                "claim",
                str(claim),
                "none" if now is None else now.name.lower(),
                level is None or certificate.supports(level),
            ),
        ),
    )


def _compare(
    model: SavedModel, certificate: Certificate, value: float, budget: int
) -> tuple[tuple[str, str, str, bool], ...]:
    """Return every claim of the file beside what was recomputed."""
    said = float(model.claims.get("value", math.nan))
    return (
        (
            "nonzeros within the budget",
            f"at most {budget}",
            str(model.n_nonzero),
            model.n_nonzero <= budget,
        ),
        (
            "value",
            f"{said:.10g}",
            f"{value:.10g}",
            math.isclose(value, said, rel_tol=1e-9, abs_tol=1e-12),
        ),
        *claim_rows(model.claims, certificate),
    )
