"""MNIST: from a cache folder, or from public mirrors of the original files."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.datasets.arrays import Arrays, read_npz
from ellzero.errors import DataError
from ellzero.storage import write_atomic

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
"""Addresses that serve the four original files, gzipped."""

# SHA-256 of the files after decompression: mirrors may compress them anew.
FILES = {
    "x_train": (
        "train-images-idx3-ubyte.gz",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "y_train": (
        "train-labels-idx1-ubyte.gz",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "x_test": (
        "t10k-images-idx3-ubyte.gz",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "y_test": (
        "t10k-labels-idx1-ubyte.gz",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}

TIMEOUT = 30.0
"""Seconds without an answer after which a mirror is given up."""

# No original file is larger than 48 MB: what answers with more is not a mirror.
_LARGEST = 64 << 20


def data_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which downloaded data sets are kept.

    Parameters
    ----------
    folder : str or path or None, default=None
        The folder itself. None means the environment variable ``ELLZERO_DATA``, else ``ellzero``
        in ``XDG_CACHE_HOME``, else ``~/.cache/ellzero``.

    Returns
    -------
    Path
        The folder, which may not exist yet.

    Examples
    --------
    >>> from ellzero.datasets import data_folder
    >>> data_folder("mine").name
    'mine'
    """
    if folder is not None:
        return Path(folder)
    if named := os.environ.get("ELLZERO_DATA"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ellzero"


def load_mnist(
    folder: str | os.PathLike[str] | None = None, *, mirrors: Sequence[str] | None = None
) -> Arrays:
    """Return MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Parameters
    ----------
    folder : str or path or None, default=None
        Where ``mnist.npz`` lies or will be kept; see `data_folder`. The path of an ``.npz`` file
        is that file.
    mirrors : sequence of str or None, default=None
        Addresses to download from, tried in order; None means `MIRRORS`.

    Returns
    -------
    Arrays
        Images of shape (1, 28, 28) in unsigned bytes, and the digits.

    Raises
    ------
    DataError
        If the file is neither there nor can be downloaded, or is damaged.
    InvalidParameterError
        If the downloaded data cannot be written to the folder.

    Notes
    -----
    A download is verified by the SHA-256 of the original files and written in one move, so a
    folder holds the whole data set or none of it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from ellzero.datasets import load_mnist
    >>> x, y = np.zeros((20, 28, 28), dtype=np.uint8), np.arange(20) % 10
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mnist.npz")
    ...     np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    ...     load_mnist(folder).sample_shape
    (1, 28, 28)
    """
    place = data_folder(folder)
    if place.suffix.lower() == ".npz":
        if not place.is_file():
            raise DataError(f"No file '{place}' for MNIST.", "Check the path.")
        return read_npz("mnist", place)
    path = place / "mnist.npz"
    messages: tuple[str, ...] = ()
    if not path.is_file():
        blob, mirror = _download(place, MIRRORS if mirrors is None else mirrors)
        messages = (f"Downloaded MNIST from {_host(mirror)} to '{path}'.",)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"MNIST cannot be kept in '{place}': {(error.strerror or str(error)).lower()}.",
                "Name a folder that you can write by `--data-dir` or `ELLZERO_DATA`.",
            ) from error
        write_atomic(path, blob)
    return replace(read_npz("mnist", path), messages=messages)


def _host(mirror: str) -> str:
    return mirror.rsplit("//", maxsplit=1)[-1].split("/", maxsplit=1)[0]


def _download(place: Path, mirrors: Sequence[str]) -> tuple[bytes, str]:
    """Return an npz file made from the original files of the first good mirror, and that."""
    reasons: list[str] = []
    for mirror in mirrors:
        try:
            parts = {n: _fetch(mirror + file, digest) for n, (file, digest) in FILES.items()}
        except (OSError, HTTPException, EOFError, zlib.error, ValueError) as error:
            reasons.append(f"{_host(mirror)}: {_reason(error)}")
            continue
        out = io.BytesIO()
        arrays: dict[str, Any] = parts
        np.savez_compressed(out, **arrays)
        return out.getvalue(), mirror
    raise DataError(
        f"MNIST is not in '{place}' and cannot be downloaded ({'; '.join(reasons)}).",
        "Give the path of an `mnist.npz` in place of `mnist`, or put it into that folder; "
        "`--data-dir` and `ELLZERO_DATA` name another folder.",
    )


def _fetch(address: str, digest: str) -> NDArray[np.uint8]:
    """Return the array of one original file."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
        blob = answer.read(_LARGEST + 1)
    if len(blob) > _LARGEST:
        raise ValueError("the file is too large")
    with gzip.GzipFile(fileobj=io.BytesIO(blob)) as file:
        raw = file.read(_LARGEST + 1)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError("the file differs from the original")
    return parse_idx(raw)


def parse_idx(raw: bytes) -> NDArray[np.uint8]:
    """Return the array of an idx file of unsigned bytes.

    Raises
    ------
    ValueError
        If it is another kind of file, or cut short.
    """
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or not 1 <= raw[3] <= 4:
        raise ValueError("not an idx file of unsigned bytes")
    n_axes = raw[3]
    start = 4 + 4 * n_axes
    if len(raw) < start:
        raise ValueError("the idx file is cut short")
    shape = struct.unpack(f">{n_axes}I", raw[4:start])
    size = 1
    for side in shape:
        size *= side
    if len(raw) != start + size:
        raise ValueError("the idx file is cut short")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape).copy()


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    text = str(inner if inner is not None and str(inner) else error) or type(error).__name__
    text = text.splitlines()[0].rstrip(". ")
    return text if len(text) <= 100 else text[:97] + "..."
