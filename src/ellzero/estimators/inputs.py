"""From what a user passes as X, y and weights to a matrix, with messages that name columns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.errors import DataError
from ellzero.subset.reading import bad_counts, is_tensor, take_columns, take_rows, to_numpy

__all__ = ["is_tensor", "take_columns", "take_rows", "to_numpy"]

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
# Columns that a message lists by name.
LISTED = 10


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the columns of a table become the columns of a matrix.

    Parameters
    ----------
    names : tuple of str or None
        Names of the columns of the table; None when it has none.
    levels : tuple of (tuple of object) or None
        For each column of the table its levels when it is categorical, else None; None when no
        column is.
    drop_first : bool
        Whether the first level has no column of its own, being what all others are compared with.
    n_columns : int
        Number of columns of the table.
    """

    names: tuple[str, ...] | None
    levels: tuple[tuple[Any, ...] | None, ...] | None
    drop_first: bool
    n_columns: int

    def shown(self, column: int) -> tuple[Any, ...]:
        """Return the levels of a categorical column that have a column of their own."""
        assert self.levels is not None
        levels = self.levels[column]
        assert levels is not None
        return levels[1:] if self.drop_first else levels

    @property
    def sources(self) -> Integers:
        """Column of the table behind each column of the matrix."""
        if self.levels is None:
            return np.arange(self.n_columns, dtype=np.int64)
        widths = [
            1 if level is None else len(self.shown(j)) for j, level in enumerate(self.levels)
        ]
        return np.repeat(np.arange(self.n_columns, dtype=np.int64), widths)

    @property
    def expanded_names(self) -> tuple[str, ...] | None:
        """Names of the columns of the matrix, such as ``city=Paris``; None without names."""
        if self.names is None or self.levels is None:
            return self.names
        out: list[str] = []
        for j, name in enumerate(self.names):
            if self.levels[j] is None:
                out.append(name)
            else:
                out += [f"{name}={level}" for level in self.shown(j)]
        return tuple(out)


def is_table(value: Any) -> bool:
    """Return whether `value` is a data frame with named columns."""
    return hasattr(value, "columns") and hasattr(value, "__getitem__") and hasattr(value, "shape")


def quote(name: Any) -> str:
    """Return a column as a message shows it."""
    return f"{name!r}" if isinstance(name, str) else f"{name}"


def list_columns(columns: Sequence[Any], counts: Sequence[int] | None = None) -> str:
    """Return ``'a' (3), 'b' (1) and 2 more columns``."""
    shown = [quote(c) for c in columns[:LISTED]]
    if counts is not None:
        shown = [f"{c} ({n})" for c, n in zip(shown, counts[:LISTED], strict=True)]
    more = len(columns) - LISTED
    text = ", ".join(shown)
    return f"{text} and {more} more columns" if more > 0 else text


def _dtype_name(column: Any) -> str:
    return str(column.dtype)


def _levels_of(column: Any) -> tuple[Any, ...] | None:
    """Return the levels of a categorical column of pandas or polars, else None."""
    kind = type(column.dtype).__name__
    if kind == "CategoricalDtype":
        return tuple(column.dtype.categories.tolist())
    if kind in ("Categorical", "Enum"):
        # The order of first appearance depends on the rows; the sorted one does not.
        if kind == "Enum":
            return tuple(column.dtype.categories.to_list())
        return tuple(sorted(v for v in column.unique().to_list() if v is not None))
    return None


def _values_of(column: Any) -> list[Any]:
    """Return the values of a categorical column as Python objects, None where missing."""
    if hasattr(column, "to_list") and type(column).__module__.startswith("polars"):
        return list(column.to_list())
    codes = column.cat.codes.to_numpy()
    categories = column.dtype.categories.tolist()
    return [None if c < 0 else categories[c] for c in codes]


def _one_hot(column: Any, name: str, levels: tuple[Any, ...], drop_first: bool) -> Floats:
    """Return the columns of a categorical one."""
    values = _values_of(column)
    place = {level: i for i, level in enumerate(levels)}
    missing = sum(v is None for v in values)
    if missing:
        raise DataError(
            f"`X` must have no missing values, got {missing} in the categorical column {name!r}.",
            "Fill them, for example with a level of their own.",
        )
    unseen = sorted({str(v) for v in values if v not in place})
    if unseen:
        listed = ", ".join(repr(v) for v in unseen[:LISTED])
        raise DataError(
            f"Column {name!r} holds levels that were not there in `fit`: {listed}.",
            f"Levels in `fit`: {', '.join(repr(str(v)) for v in levels[:LISTED])}.",
        )
    out = np.zeros((len(values), len(levels)))
    out[np.arange(len(values)), [place[v] for v in values]] = 1.0
    return out[:, 1:] if drop_first else out


def _numbers_of(column: Any, name: str) -> Floats:
    """Return a column of a table as numbers, or raise and name it."""
    dtype = _dtype_name(column)
    raw: Any = None
    try:
        if "datetime" not in dtype.lower() and "timedelta" not in dtype.lower():
            raw = column.to_numpy()
            if raw.dtype.kind in "biuf":
                return np.asarray(raw, dtype=np.float64)
            if raw.dtype.kind == "O":
                values = [np.nan if is_missing(v) else v for v in raw]
                if not any(isinstance(v, str | bytes) for v in values):
                    return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        pass
    text = None
    if raw is not None and raw.dtype.kind in "OUST":
        text = next((v for v in raw if isinstance(v, str)), None)
    if text is not None:
        raise DataError(
            f"`X` must hold numbers, got text such as {text!r} in column {name!r}.",
            "Make the column categorical to have its levels expanded and kept together "
            "(`astype('category')` in pandas, `cast(pl.Categorical)` in polars), or turn it into "
            "numbers.",
        )
    raise DataError(
        f"`X` must hold numbers, got column {name!r} of type {dtype}.",
        "Turn the column into numbers, or drop it.",
    )


def is_missing(value: Any) -> bool:
    """Return whether a value of a table stands for a missing one."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def read_table(X: Any, encoding: Encoding | None, *, drop_first: bool) -> tuple[Any, Encoding]:
    """Return a data frame as a matrix, with categorical columns expanded."""
    columns = list(X.columns)
    names = tuple(columns) if all(isinstance(c, str) for c in columns) else None
    if len(set(columns)) < len(columns):
        twice = sorted({str(c) for c in columns if columns.count(c) > 1})
        raise DataError(
            f"The columns of `X` must have different names, got {list_columns(twice)} twice.",
            "Rename or drop one of them.",
        )
    series = [X[c] for c in columns]
    if encoding is None:
        found = tuple(_levels_of(s) for s in series)
        levels = found if any(level is not None for level in found) else None
        encoding = Encoding(names, levels, drop_first, len(columns))
    pieces: list[Floats] = []
    for j, (column, name) in enumerate(zip(series, columns, strict=True)):
        known = None if encoding.levels is None else encoding.levels[j]
        if known is not None:
            values = column if _levels_of(column) is not None else _as_categorical(column)
            pieces.append(_one_hot(values, str(name), known, encoding.drop_first))
        elif _levels_of(column) is not None and encoding.levels is not None:
            raise DataError(
                f"Column {name!r} is categorical but held numbers in `fit`.",
                "Pass the column as numbers.",
            )
        else:
            pieces.append(_numbers_of(column, str(name)).reshape(-1, 1))
    kinds = {_dtype_name(s).lower() for s in series}
    dtype = np.float32 if kinds == {"float32"} else np.float64
    if not pieces:
        return np.zeros((X.shape[0], 0)), encoding
    out = np.empty((X.shape[0], sum(p.shape[1] for p in pieces)), dtype=dtype, order="F")
    start = 0
    for piece in pieces:
        out[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    return out, encoding


def _as_categorical(column: Any) -> Any:
    """Return a column as categorical, so that its values can be looked up."""
    if type(column).__module__.startswith("polars"):
        return column
    return column.astype("category")


def check_finite(X: Any, names: Sequence[str] | None) -> None:
    """Raise when a matrix holds NaN or infinity, and say in which columns."""
    counts = bad_counts(X)
    where = np.flatnonzero(counts)
    if where.size == 0:
        return
    columns = [names[j] if names is not None else j for j in where.tolist()]
    shown = list_columns(columns, counts[where].tolist())
    word = "column" if len(columns) == 1 else "columns"
    raise DataError(
        f"`X` must be finite, got NaN or infinity (inf) in {word} {shown}.",
        "Drop or fill these values first, for example with sklearn.impute.SimpleImputer.",
    )


def check_tensor(X: Any, name: str) -> Any:
    """Return a tensor of samples as floating-point numbers on its own device."""
    torch = sys.modules["torch"]
    X = X.detach()
    _check_axes(X)
    if X.is_complex():
        raise DataError("Complex data not supported: `X` must hold real numbers.")
    if X.layout is not torch.strided:
        raise DataError(
            f"`X` must be a dense tensor, got layout {X.layout}.",
            "Pass a scipy.sparse matrix for sparse data.",
        )
    if X.shape[0] == 0 or X.shape[1] == 0:
        what = "sample" if X.shape[0] == 0 else "feature"
        raise DataError(
            f"Found 0 {what}(s) (shape={tuple(X.shape)}) while a minimum of 1 is required by "
            f"{name}."
        )
    return X if X.dtype in (torch.float32, torch.float64) else X.double()


def read_matrix(X: Any, name: str, *, min_samples: int = 1) -> Any:
    """Return an array, a sparse matrix or a tensor as a float32 or float64 matrix."""
    from sklearn.utils.validation import check_array

    if is_tensor(X):
        X = check_tensor(X, name)
        if X.shape[0] < min_samples:
            raise DataError(
                f"Found array with {X.shape[0]} sample(s) (shape={tuple(X.shape)}) while a "
                f"minimum of {min_samples} is required by {name}."
            )
        return X
    if X is not None and isinstance(X, list | tuple | np.ndarray):
        _refuse_text(X)
    _check_axes(X)
    return check_array(
        X,
        accept_sparse=("csr", "csc"),
        dtype=[np.float64, np.float32],
        ensure_all_finite=False,
        ensure_min_samples=min_samples,
        estimator=name,
        input_name="X",
    )


def _check_axes(X: Any) -> None:
    """Raise unless samples are rows and features columns."""
    shape = getattr(X, "shape", None)
    if shape is None and isinstance(X, list | tuple):
        try:
            shape = np.shape(X)
        except ValueError:
            # Rows of different lengths have a message of their own.
            return
    if shape is not None and len(shape) != 2:
        # scikit-learn's checks ask for the first three words of the hint.
        raise DataError(
            f"`X` must have 2 axes, got shape {tuple(shape)}.",
            "Reshape your data: `X.reshape(-1, 1)` for one feature, `X.reshape(1, -1)` for one "
            "sample.",
        )


def _refuse_text(X: Any) -> None:
    """Raise and name the column when an array without names holds text that is no number."""
    array = np.asarray(X, dtype=object) if not isinstance(X, np.ndarray) else X
    if array.dtype.kind not in "OUS" or array.ndim != 2:
        return
    for j in range(array.shape[1]):
        for value in array[:, j]:
            if isinstance(value, str | bytes):
                try:
                    float(value)
                except ValueError:
                    raise DataError(
                        f"`X` must hold numbers, got text such as {value!r} in column {j}.",
                        "Encode the column as numbers, or pass a data frame in which it is "
                        "categorical.",
                    ) from None


def n_samples_of(X: Any) -> int:
    """Return the number of rows."""
    return int(X.shape[0])


def scores_of(X: Any, coef: Any, intercept: Any) -> Any:
    """Return X coef^T + intercept, (n_samples, n_outputs), on the device of X."""
    support = np.flatnonzero((coef != 0).any(axis=0)).astype(np.int64)
    few = support.size < 0.5 * coef.shape[1]
    if is_tensor(X):
        torch = sys.modules["torch"]
        used = take_columns(X, support) if few else X
        weights = torch.as_tensor(np.ascontiguousarray(coef[:, support] if few else coef))
        shift = torch.as_tensor(np.asarray(intercept))
        return used @ weights.to(X).T + shift.to(X)
    used, weights = (take_columns(X, support), coef[:, support]) if few else (X, coef)
    return np.asarray(used @ weights.T) + np.asarray(intercept)
