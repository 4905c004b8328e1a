"""Images for `ellzero denoise`: what is read, and what the report shows of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ellzero.errors import DataError

# Pixels along the longer side of a picture in the report.
MOST_PIXELS = 140


def read_image(path: Path) -> tuple[Any, list[str]]:
    """Return the numbers of an image, NaN where missing, and what is worth knowing.

    Parameters
    ----------
    path : Path
        A .npy file with two axes, or a text file of rows of numbers without names.

    Raises
    ------
    DataError
        If there is no such file, or it does not hold rows of numbers.
    """
    import numpy as np

    from ellzero.datasets.arrays import read_npy

    if not path.is_file():
        raise DataError(f"No file '{path}'.", "Check the path.")
    hint = "An image is a .npy file with two axes, or a .csv file of rows of numbers."
    if path.suffix.lower() == ".npy":
        values = read_npy(path.name, path, hint)
        if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "biuf":
            raise DataError(
                f"'{path.name}' must hold numbers with two axes, got shape {values.shape} of "
                f"{values.dtype}.",
                hint,
            )
        values = values.astype(np.float64)
    else:
        values = _rows(path, hint)
    missing = int(np.isnan(values).sum())
    note = f"{missing} of {values.size} pixels are missing and were filled in."
    return values, [note] if missing else []


def _rows(path: Path, hint: str) -> Any:
    import csv
    import io
    import math

    import numpy as np

    rows: list[list[float]] = []
    try:
        text = path.read_text(encoding="utf-8")
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"'{path.name}' is not a text file of numbers.", hint) from error
    for k, words in enumerate(lines):
        try:
            rows.append([float(w) if w.strip() else math.nan for w in words])
        except ValueError as error:
            raise DataError(f"Line {k + 1} of '{path.name}' is not numbers.", hint) from error
        if len(rows[-1]) != len(rows[0]):
            raise DataError(
                f"Line {k + 1} of '{path.name}' has {len(rows[-1])} numbers, the first has "
                f"{len(rows[0])}.",
                hint,
            )
    if not rows or not rows[0]:
        raise DataError(f"'{path.name}' is empty.", hint)
    return np.array(rows)


def summarize(name: str, values: Any, estimator: Any, messages: list[str]) -> dict[str, Any]:
    """Return what the report shows: data, estimate and support as images."""
    import numpy as np

    from ellzero._version import __version__
    from ellzero.report import SCHEMA_VERSION

    signal = estimator.signal_
    rows, columns = signal.shape
    certificate = estimator.certificate_
    claim = "no claim holds" if certificate.claim is None else certificate.claim.sentence
    headline = (
        f"{estimator.support_.size} of {signal.size} pixels are on; value {estimator.value_:.6g}, "
        f"gap {estimator.gap_:.1g}; {claim}"
    )
    pictures = (
        ("Data", values),
        ("Estimate", signal),
        ("Support", (signal != 0).astype(np.float64)),
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "title": f"Sparse and smooth image of {name}",
        "headline": headline,
        "data": {"name": name, "n_samples": rows * columns, "messages": messages},
        "certificate": certificate.to_dict(),
        "figures": [_picture(title, picture) for title, picture in pictures],
        "versions": {"ellzero": __version__, "numpy": np.__version__},
    }


def _picture(title: str, values: Any) -> dict[str, Any]:
    """Return a heat map, of every few rows and columns where there are many."""
    import math

    step = max(math.ceil(max(values.shape) / MOST_PIXELS), 1)
    shown = values[::step, ::step]
    note = "" if step == 1 else f"Every {step} rows and columns one is drawn."
    cells = [[None if math.isnan(v) else v for v in row] for row in shown.tolist()]
    return {"kind": "heat_map", "options": {"title": title, "values": cells, "note": note}}
