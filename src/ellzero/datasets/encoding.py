"""Columns of a file as features and a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.datasets.columns import Column
from ellzero.datasets.words import is_number, listed, plural, quoted, short
from ellzero.errors import DataError

MAX_CATEGORIES = 100
MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column of a file, and how it becomes features.

    Parameters
    ----------
    name : str
        Name of the column.
    kind : {"number", "boolean", "text"}
        What it holds.
    levels : tuple of str, default=()
        Categories of a text; the first has no feature of its own.
    """

    name: str
    kind: str = "number"
    levels: tuple[str, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the column becomes."""
        if self.kind != "text" or len(self.levels) == 1:
            return (self.name,)
        return tuple(f"{self.name}={level}" for level in self.levels[1:])

    def encode(self, file: str, values: Column) -> list[NDArray[Any]]:
        """Return the features, each of shape (n_samples,).

        Raises
        ------
        DataError
            If the values are of another kind, or of a category that is not known.
        """
        if self.kind == "text":
            # Texts that look like numbers were read as numbers where all of a column do.
            texts = [v if isinstance(v, str) else _class_name(v) for v in values.values.tolist()]
            unknown = sorted(set(texts) - set(self.levels))
            if unknown:
                raise DataError(
                    f"Column {self.name!r} of '{file}' holds {quoted(unknown)}, unknown to the "
                    f"model.",
                    f"It knows {quoted(self.levels)}; drop these rows, or fit the model again.",
                )
            if len(self.levels) == 1:
                return [np.zeros(len(texts))]
            place = {level: code for code, level in enumerate(self.levels)}
            codes = np.array([place[t] for t in texts])
            return [(codes == i).astype(np.float64) for i in range(1, len(self.levels))]
        if values.kind == "text":
            texts = values.values.tolist()
            row = next((i for i, t in enumerate(texts) if not is_number(t)), 0)
            raise DataError(
                f"Column {self.name!r} of '{file}' must hold numbers, sample {row + 1} holds "
                f"{short(texts[row])}.",
                "Replace the text by numbers.",
            )
        return [values.values.astype(np.float64)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {"name": self.name, "kind": self.kind, "levels": list(self.levels)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SourceColumn:
        """Return the column that `to_dict` wrote."""
        return cls(str(values["name"]), str(values["kind"]), tuple(map(str, values["levels"])))


def source_column(name: str, column: str, values: Column, messages: list[str]) -> SourceColumn:
    """Return how a column becomes features, and add to `messages` what is worth knowing."""
    if values.kind == "boolean":
        messages.append(f"Encoded {column!r} (false, true) as 0 and 1.")
        return SourceColumn(column, "boolean")
    if values.kind != "text":
        return SourceColumn(column)
    texts = values.values.tolist()
    levels = sorted(set(texts))
    numeric = sum(is_number(t) for t in texts)
    if len(levels) > 10 and 2 * numeric >= len(texts):
        row = next(i for i, t in enumerate(texts) if not is_number(t))
        raise DataError(
            f"Column {column!r} of '{name}' mixes numbers and text: sample {row + 1} holds "
            f"{short(texts[row])}.",
            "Replace the text by numbers, or drop the column.",
        )
    if len(levels) > MAX_CATEGORIES or (len(levels) > 10 and len(levels) > 0.9 * len(texts)):
        raise DataError(
            f"Column {column!r} of '{name}' holds {len(levels)} different texts in "
            f"{len(texts)} samples, too many for categories.",
            "Drop the column; it looks like an identifier or free text.",
        )
    if len(levels) > 1:
        made = plural(len(levels) - 1, "column", "columns")
        messages.append(f"Encoded {column!r} ({len(levels)} categories) as {made}.")
    return SourceColumn(column, "text", tuple(levels))


def encode_target(
    name: str, column: str, values: Column, task: str | None, messages: list[str]
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
    """Return the target, and the names of its classes or None."""
    array = values.values
    n = len(array)
    if values.kind == "text":
        distinct: list[Any] = sorted(set(array.tolist()))
    else:
        distinct = np.unique(array).tolist()
    count = len(distinct)
    if task == "regression" and values.kind == "text":
        raise DataError(
            f"The target {column!r} of '{name}' is text, so `task` cannot be 'regression'.",
            "Leave `task` out, or turn the target into numbers.",
        )
    inferred = task is None
    if task is None:
        few = count <= MAX_INTEGER_CLASSES and n > 2 * count
        classes = values.kind in ("text", "boolean") or (values.kind == "integer" and few)
        task = "classification" if classes else "regression"
    if count == 1:
        what = "class" if task == "classification" else "value"
        raise DataError(
            f"The target {column!r} of '{name}' has a single {what}, {short(distinct[0])}.",
            "Give data in which the target varies.",
        )
    if task == "regression":
        if inferred:
            messages.append(f"Took the target {column!r} as a number (regression).")
        return array.astype(np.float64) + 0.0, None
    if count > 2 and 2 * count > n:
        raise DataError(
            f"The target {column!r} of '{name}' has {count} classes in {n} samples, too many.",
            "Name another target, or take numbers as a regression by `task='regression'`.",
        )
    if inferred:
        other = "; `task='regression'` takes them as numbers" if values.kind == "integer" else ""
        messages.append(f"Took the target {column!r} as {count} classes{other}.")
    if values.kind == "text":
        place = {value: code for code, value in enumerate(distinct)}
        codes = np.array([place[v] for v in array.tolist()], dtype=np.int64)
    else:
        codes = np.searchsorted(np.array(distinct), array).astype(np.int64)
    return codes, tuple(_class_name(v) for v in distinct)


def _class_name(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def drop_constant(
    name: str, X: NDArray[Any], names: list[str], messages: list[str]
) -> tuple[NDArray[Any], list[str]]:
    """Return the features that vary, with their names."""
    constant = X.min(axis=0) == X.max(axis=0) if X.shape[1] else np.zeros(0, dtype=bool)
    if constant.all():
        raise DataError(
            f"Every feature of '{name}' is constant.", "Give features that vary over the samples."
        )
    if not constant.any():
        return X, names
    dropped = [n for n, c in zip(names, constant, strict=True) if c]
    messages.append(f"Dropped {listed(dropped, 'constant column', 'constant columns')}.")
    return X[:, ~constant], [n for n, c in zip(names, constant, strict=True) if not c]
