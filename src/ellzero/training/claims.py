"""Large networks on disk: a compressed model file, and its claims in a JSON file beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ellzero._version import __version__
from ellzero.errors import ModelFileError
from ellzero.nn import export
from ellzero.storage import from_json, read_model_file, to_json, write_atomic
from ellzero.tensors import named
from ellzero.training.large import LargeExperiment
from ellzero.training.outcomes import Outcome

FORMAT = "ellzero-claims"
SCHEMA_VERSION = 1
_AGAIN = "Copy the file again, or train the model again."
_FIELDS: dict[str, type] = {
    "model_sha256": str,
    "settings": dict,
    "data": dict,
    "inputs": dict,
    "n_nonzero": int,
    "claims": dict,
}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a file says about a large network.

    Parameters
    ----------
    state : mapping of str to Tensor
        State of the network.
    settings : dict
        What rebuilds the experiment.
    data : dict
        Name, fingerprint and number of samples of the data.
    n_nonzero : int
        Nonzeros of the counted weights.
    claims : dict
        The certificate, and the training loss.
    """

    state: Mapping[str, Tensor]
    settings: dict[str, Any]
    data: dict[str, Any]
    n_nonzero: int
    claims: dict[str, Any]


def claims_path(path: str | os.PathLike[str]) -> Path:
    """Return where the claims of a model file are."""
    return Path(path).with_suffix(".json")


def save_large(
    path: str | os.PathLike[str], experiment: LargeExperiment, outcome: Outcome
) -> dict[str, int]:
    """Write a large network by `ellzero.nn.export.save`, and its claims beside it.

    Parameters
    ----------
    path : str or path
        The model file; the claims go into a file of the same name that ends in ``.json``.
    experiment : LargeExperiment
        What was trained.
    outcome : Outcome
        What came out.

    Returns
    -------
    dict
        ``bytes`` of the file and ``dense_bytes`` of the tensors in it.

    Raises
    ------
    InvalidParameterError
        If a file cannot be written.
    """
    size = export.save(outcome.state, path)
    arrays, samples = experiment.arrays, experiment.samples
    stored = {**experiment.settings.to_dict(), "n_nonzero": [outcome.budget], "device": "cpu"}
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "ellzero_version": __version__,
        "model_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "settings": stored,
        "data": {
            "name": arrays.name,
            "fingerprint": arrays.fingerprint,
            "n_samples": arrays.n_train + arrays.n_test,
        },
        # What a user of the file does to an input before the network sees it.
        "inputs": {
            "shape": list(arrays.sample_shape),
            "mean": named.to_list(samples.mean),
            "scale": named.to_list(samples.scale),
            "classes": None if arrays.class_names is None else list(arrays.class_names),
        },
        "n_nonzero": outcome.row["n_nonzero"],
        "claims": {**outcome.certificate, "value": outcome.row["value"]},
    }
    write_atomic(claims_path(path), to_json(content) + "\n")
    tensors = {t.data_ptr(): t for t in outcome.state.values()}.values()
    return {"bytes": size, "dense_bytes": sum(t.numel() * t.element_size() for t in tensors)}


def read_claims(path: str | os.PathLike[str]) -> Claims:
    """Return a large network and what its files say of it.

    Parameters
    ----------
    path : str or path
        The model file.

    Returns
    -------
    Claims
        State, settings and claims.

    Raises
    ------
    ModelFileError
        If a file is missing or damaged, or the claims are about another model file.
    """
    beside = claims_path(path)
    damaged = ModelFileError(f"'{beside}' does not hold the claims of a model.", _AGAIN)
    blob = read_model_file(path)
    try:
        content = from_json(beside.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelFileError(
            f"The claims of '{path}' are missing: there is no '{beside.name}' beside it.",
            "Keep the two files together.",
        ) from error
    except (OSError, ValueError) as error:
        raise damaged from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise damaged
    if content.get("schema_version") != SCHEMA_VERSION:
        raise ModelFileError(
            f"'{beside}' has the format version {content.get('schema_version')!r}; this ellzero "
            f"({__version__}) reads version {SCHEMA_VERSION}.",
            "Install the ellzero that wrote it, or train the model again.",
        )
    if any(not isinstance(content.get(n), kind) for n, kind in _FIELDS.items()):
        raise damaged
    if hashlib.sha256(blob).hexdigest() != content["model_sha256"]:
        raise ModelFileError(
            f"'{beside}' is about another file than '{path}': the checksums differ.",
            "Copy both files again, or train the model again.",
        )
    return Claims(
        export.load(path),
        content["settings"],
        content["data"],
        content["n_nonzero"],
        content["claims"],
    )


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Return whether a model file was written by `ellzero.nn.export.save`."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 22)
    except (OSError, ValueError):
        return False
    length = int.from_bytes(head[:8], "little")
    return b"ellzero-network" in head[8 : 8 + length]
