"""Columns into a CSV or Parquet file."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ellzero.datasets.columns import arrow
from ellzero.errors import DataError
from ellzero.storage import write_atomic


def write_columns(path: str | os.PathLike[str], columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as one file; an existing file is replaced in one move.

    Parameters
    ----------
    path : str or path
        Where; the extension ``.csv`` or ``.parquet`` tells the format.
    columns : mapping of str to sequence
        Columns of the same length by their names.

    Raises
    ------
    DataError
        If the extension is another one.
    InvalidParameterError
        If the file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from ellzero.datasets import write_columns
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "out.csv")
    ...     write_columns(path, {"prediction": [1.5, 2.0]})
    ...     path.read_text().split()
    ['"prediction"', '1.5', '2']
    """
    check_format(path)
    table = arrow().table({name: list(values) for name, values in columns.items()})
    out = io.BytesIO()
    if Path(path).suffix.lower() == ".csv":
        arrow(".csv").write_csv(table, out)
    else:
        arrow(".parquet").write_table(table, out)
    write_atomic(path, out.getvalue())


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise unless `write_columns` knows the extension of a file."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        what = f"the extension '{suffix}'" if suffix else "no extension"
        raise DataError(
            f"'{Path(path).name}' has {what}; rows are written as .csv or .parquet.",
            "Give the file one of these extensions.",
        )
