"""Names of data sets and paths of files, checked before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ellzero.errors import DataError, did_you_mean

BUNDLED = {
    "iris": "species",
    "digits": "digit",
    "breast_cancer": "diagnosis",
    "wine": "cultivar",
}
"""Bundled data sets and the names of their targets."""

EXTENSIONS = (".csv", ".tsv", ".parquet", ".pq", ".npz")
"""Extensions of the files that `load_table` reads."""


def check_file(source: str | os.PathLike[str], path: Path) -> None:
    """Raise where `path` is not a file that can be read as data."""
    hint = f"Data sets: {', '.join(BUNDLED)}, mnist; files: {', '.join(EXTENSIONS)}."
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise DataError(f"'{source}' is not a path.", hint) from error
    suffix = path.suffix.lower()
    if is_folder:
        raise DataError(f"'{source}' is a folder, not a file.", hint)
    if not exists:
        if not suffix and len(path.parts) == 1:
            near = nearest(str(source).replace("-", "_"), [*BUNDLED, "mnist"])
            raise DataError(f"Unknown data set '{source}'.{near}", hint)
        if not path.parent.is_dir():
            raise DataError(
                f"No file '{source}': the folder '{path.parent}' does not exist.",
                "Check the path.",
            )
        try:
            siblings = [p.name for p in path.parent.iterdir() if p.suffix.lower() in EXTENSIONS]
        except OSError:
            siblings = []
        raise DataError(f"No file '{source}'.{nearest(path.name, siblings)}", "Check the path.")
    if suffix not in EXTENSIONS:
        known = ", ".join(EXTENSIONS)
        what = f"the extension '{suffix}'" if suffix else "no extension"
        raise DataError(
            f"'{path.name}' has {what}; known extensions are {known}.",
            "Save the data as CSV or Parquet.",
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"'{path.name}' is empty.", "Give a file with a header and rows.")


def nearest(given: str, known: Iterable[str]) -> str:
    """Return `did_you_mean` with letter case ignored."""
    lower = {name.lower(): name for name in known}
    near = did_you_mean(given.lower(), lower)
    for low, name in lower.items():
        if near == did_you_mean(low, [low]):
            return f" Did you mean {name!r}?"
    return ""
