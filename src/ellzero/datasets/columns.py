"""Columns of a CSV, TSV or Parquet file, as NumPy values."""

from __future__ import annotations

import codecs
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ellzero.datasets.words import counted, first_line, is_number, plural, quoted
from ellzero.errors import DataError

MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "null", "NULL", "None", "#N/A")


def _check_text(path: Path) -> bytes:
    """Return the first line of a file; raise unless the whole file is UTF-8 text."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = b""
    line = 1
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                if line == 1 and b"\n" not in first:
                    if not first and chunk[:2] in (b"\xff\xfe", b"\xfe\xff"):
                        raise DataError(
                            f"'{path.name}' is UTF-16 text; UTF-8 is needed.",
                            "Save the file as UTF-8.",
                        )
                    first += chunk
                if b"\0" in chunk:
                    raise DataError(
                        f"'{path.name}' is not a text file: it holds zero bytes.",
                        "Check the extension; for Parquet it is '.parquet'.",
                    )
                try:
                    decoder.decode(chunk)
                except UnicodeDecodeError as error:
                    line += chunk.count(b"\n", 0, error.start)
                    raise DataError(
                        f"'{path.name}' is not UTF-8 text: line {line} cannot be decoded.",
                        "Save the file as UTF-8.",
                    ) from error
                line += chunk.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise DataError(
                f"'{path.name}' is not UTF-8 text: line {line} cannot be decoded.",
                "Save the file as UTF-8.",
            ) from error
    except OSError as error:
        raise DataError(
            f"'{path.name}' cannot be read: {(error.strerror or str(error)).lower()}.",
            "Check the path and its permissions.",
        ) from error
    lines = first.removeprefix(codecs.BOM_UTF8).strip().splitlines()
    if not lines:
        raise DataError(f"'{path.name}' is empty.", "Give a file with a header and rows.")
    return lines[0]


def _empty_lines_at_the_end(path: Path) -> int:
    """Return how many lines after the last text are empty."""
    with open(path, "rb") as file:
        end = file.read()
    rest = end[len(end.rstrip(b"\r\n")) :]
    return max(rest.count(b"\n") - 1, 0)


def _read_csv(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """Return the columns of a text file, and what is worth knowing."""
    pa, csv = arrow(), arrow(".csv")

    header = _check_text(path)
    messages: list[str] = []
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if separator == "," and b"," not in header:
        for other, word in ((";", "semicolons"), ("\t", "tabs")):
            if other.encode() in header:
                separator = other
                messages.append(f"Read '{path.name}' as separated by {word}.")
                break
    # In a file with one column an empty line is a missing value, unless none follows it.
    with open(path, "rb") as file:
        alone = separator.encode() not in header and file.read(1) not in (b"\n", b"\r")
    bad: list[Any] = []

    def note(row: Any) -> str:
        bad.append(row)
        return "skip"

    # One block: types are inferred from the whole file, not from its beginning.
    block = min(max(path.stat().st_size + 1, 1 << 16), 2**31 - 1)
    try:
        read = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False, block_size=block),
            parse_options=csv.ParseOptions(
                delimiter=separator,
                newlines_in_values=True,
                invalid_row_handler=note,
                ignore_empty_lines=not alone,
            ),
            convert_options=csv.ConvertOptions(
                null_values=list(MISSING),
                strings_can_be_null=True,
                true_values=["true", "True", "TRUE"],
                false_values=["false", "False", "FALSE"],
            ),
        )
        names = [str(n).strip() for n in read.column_names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"'{path.name}' cannot be read as CSV: {first_line(error)}.",
            "Check the separators and the quotes.",
        ) from error
    if alone:
        read = read.slice(0, max(read.num_rows - _empty_lines_at_the_end(path), 0))
    if bad:
        row = bad[0]
        place = "A row" if row.number is None else f"Row {row.number}"
        raise DataError(
            f"{place} of '{path.name}' has {plural(row.actual_columns, 'value', 'values')}, "
            f"the header has {plural(row.expected_columns, 'column', 'columns')}.",
            "Check its separators and quotes.",
        )
    last = read.column(read.num_columns - 1)[-1].as_py() if read.num_rows else None
    if isinstance(last, str) and "\n" in last and path.read_bytes().count(b'"') % 2:
        raise DataError(
            f"'{path.name}' has a quote that is never closed.", "Close it, or drop it."
        )
    if names and all(is_number(n) for n in names):
        raise DataError(
            f"The first line of '{path.name}' holds numbers, not column names.",
            "Put a line with the column names on top.",
        )
    for i, name in enumerate(names):
        if not name:
            raise DataError(
                f"Column {i + 1} of '{path.name}' has no name.",
                "Name it, or drop it when it is a row number.",
            )
    return list(zip(names, read.columns, strict=True)), messages


def _read_parquet(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """Return the columns of a Parquet file, and what is worth knowing."""
    pa, parquet = arrow(), arrow(".parquet")

    try:
        with parquet.ParquetFile(path) as file:
            read = file.read()
        names = [str(n) for n in read.column_names]
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(
            f"'{path.name}' cannot be read as Parquet: the file is damaged or of another kind.",
            "Write it again, or check the extension.",
        ) from error
    messages: list[str] = []
    columns: list[tuple[str, Any]] = []
    for name, column in zip(names, read.columns, strict=True):
        if name.startswith("__index_level_"):
            messages.append(f"Left out {name!r}, a stored row index.")
        else:
            columns.append((name, column))
    return columns, messages


def arrow(module: str = "") -> Any:
    """Return a module of pyarrow, on demand; as Any, for its types are not exported."""
    return importlib.import_module(f"pyarrow{module}")


class Column(NamedTuple):
    """Values of one column: numbers, booleans, or texts with None where missing."""

    kind: str
    values: NDArray[Any]
    missing: NDArray[Any]


def _clean(column: Any) -> Column:
    """Return a column of a file as NumPy values."""
    pa, pc = arrow(), arrow(".compute")

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    missing = np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
    if pa.types.is_null(kind):
        return Column("real", np.zeros(len(column)), np.ones(len(column), dtype=bool))
    if pa.types.is_boolean(kind):
        filled = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
        return Column("boolean", np.asarray(filled, dtype=bool), missing)
    if pa.types.is_integer(kind):
        filled = pc.fill_null(column, pa.scalar(0, kind)).to_numpy(zero_copy_only=False)
        return Column("integer", np.asarray(filled), missing)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        real = column.cast(pa.float64(), safe=False)
        return Column("real", np.asarray(real.to_numpy(zero_copy_only=False)), missing)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _clean_text(column.to_pylist())
    if pa.types.is_temporal(kind):
        return Column("date", np.zeros(len(column)), missing)
    return Column(str(kind), np.zeros(len(column)), missing)


def _clean_text(texts: list[str | None]) -> Column:
    values = np.array([None if t is None else t.strip() for t in texts], dtype=object)
    distinct = {v for v in values.tolist() if v is not None}
    absent = {v for v in distinct if v in MISSING}
    missing = np.array([v is None or v in absent for v in values.tolist()], dtype=bool)
    rest = distinct - absent
    if rest and all(is_number(v) for v in rest):
        numbers = [0.0 if m else float(v) for v, m in zip(values.tolist(), missing, strict=True)]
        return Column("real", np.array(numbers), missing)
    return Column("text", values, missing)


def check_types(name: str, data: Sequence[tuple[str, Column]]) -> None:
    """Raise where a column of a file is not of numbers, texts or booleans."""
    for column, values in data:
        if values.kind == "date":
            raise DataError(
                f"Column {column!r} of '{name}' holds dates or times.",
                "Turn it into numbers, such as days since a fixed date, or drop it.",
            )
        if values.kind not in ("boolean", "integer", "real", "text"):
            raise DataError(
                f"Column {column!r} of '{name}' has the type {values.kind}, which is not a "
                f"number, text or boolean.",
                "Turn it into numbers, or drop it.",
            )


def check_finite(name: str, data: Sequence[tuple[str, Column]]) -> None:
    """Raise where a column of a file has missing or infinite values."""
    missing = {c: int(v.missing.sum()) for c, v in data if v.missing.any()}
    if missing:
        total = plural(sum(missing.values()), "missing value", "missing values")
        raise DataError(
            f"'{name}' has {total}: {counted(missing)}.", "Drop these rows, or fill them first."
        )
    infinite = {
        c: int(np.isinf(v.values).sum())
        for c, v in data
        if v.kind == "real" and np.isinf(v.values).any()
    }
    if infinite:
        total = plural(sum(infinite.values()), "infinite value", "infinite values")
        raise DataError(
            f"'{name}' has {total}: {counted(infinite)}.",
            "Drop these rows, or replace the values first.",
        )


def read_columns(path: Path) -> tuple[list[tuple[str, Column]], list[str]]:
    """Return the columns of a file as NumPy values, checked, and what is worth knowing."""
    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    columns, messages = _read_parquet(path) if is_parquet else _read_csv(path)
    names = [n for n, _ in columns]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise DataError(
            f"'{path.name}' has columns of the same name: {quoted(repeated)}.", "Rename them."
        )
    if not columns or len(columns[0][1]) == 0:
        raise DataError(
            f"'{path.name}' has column names but no rows.", "Give a file with at least two rows."
        )
    try:
        return [(c, _clean(column)) for c, column in columns], messages
    except (arrow().ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"'{path.name}' holds values that cannot be converted: {first_line(error)}.",
            "Check the types of its columns.",
        ) from error
