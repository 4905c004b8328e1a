"""Predictions of a saved model for the rows of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ellzero.datasets import SourceColumn, load_rows
from ellzero.errors import ModelFileError
from ellzero.models import NETWORKS, SavedModel, load_model, predict, predict_proba
from ellzero.tensors import named


@dataclass(frozen=True, slots=True)
class Predictions:
    """Outcome of `predict_file`.

    Parameters
    ----------
    model : SavedModel
        The model that was read.
    columns : mapping of str to list
        ``prediction``, and for classes ``probability of NAME`` of each class.
    messages : tuple of str
        What is worth knowing about the file, one sentence each.
    """

    model: SavedModel
    columns: Mapping[str, list[Any]]
    messages: tuple[str, ...]

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return len(self.columns["prediction"])


def predict_file(
    path: str | os.PathLike[str], data: str | os.PathLike[str], *, proba: bool = False
) -> Predictions:
    """Apply a saved model to the rows of a file.

    Parameters
    ----------
    path : str or path
        The model file.
    data : str or path
        A CSV, TSV or Parquet file with the columns that the model uses, in any order; of linear
        models these are the columns with a nonzero coefficient. Other columns are ignored.
    proba : bool, default=False
        Whether to add the probability of every class.

    Returns
    -------
    Predictions
        A prediction for each row, in the order of the file.

    Raises
    ------
    ModelFileError
        If the model cannot be read.
    DataError
        If the file cannot be read, lacks a column, or holds a category that the model does not
        know.
    IncompatibleError
        If probabilities are asked of a model without classes, or its parameters do not fit
        together.
    """
    model = load_model(path)
    predict(model, torch.zeros(0, len(model.feature_names), dtype=torch.float64))  # does it fit?
    used = used_features(model)
    names = [model.feature_names[j] for j in used]
    rows, messages = load_rows(data, source_columns(model, str(path)), names)
    X = rows.new_zeros(rows.shape[0], len(model.feature_names))
    X[:, used] = rows
    guess = named.to_list(predict(model, X))
    if model.class_names is not None:
        guess = [model.class_names[code] for code in guess]
    columns = {"prediction": guess}
    if proba:
        chances = predict_proba(model, X)
        for j, name in enumerate(model.class_names or ()):
            columns[f"probability of {name}"] = named.to_list(chances[:, j])
    return Predictions(model, columns, messages)


def used_features(model: SavedModel) -> list[int]:
    """Return the features that the predictions depend on."""
    if model.kind in NETWORKS:
        return list(range(len(model.feature_names)))
    coef = model.params["coef"]
    nonzero = coef.reshape(-1, len(model.feature_names)).abs().sum(0).nonzero().flatten()
    return named.to_list(nonzero) or [0]


def source_columns(model: SavedModel, path: str) -> tuple[SourceColumn, ...]:
    """Return the columns that a model was fitted on; features of bundled data are columns."""
    stored = model.data.get("columns") or []
    try:
        sources = tuple(SourceColumn.from_dict(column) for column in stored)
    except (KeyError, TypeError) as error:
        raise ModelFileError(
            f"'{path}' is damaged: the columns of its data cannot be read.",
            "Copy the file again, or fit the model again.",
        ) from error
    if not sources:
        return tuple(SourceColumn(name) for name in model.feature_names)
    known = {feature for source in sources for feature in source.features}
    if not known.issuperset(model.feature_names):
        raise ModelFileError(
            f"'{path}' is damaged: the columns of its data do not give its features.",
            "Copy the file again, or fit the model again.",
        )
    return sources
