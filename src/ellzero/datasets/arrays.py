"""Data as arrays with a given test part: images and other samples of any shape."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ellzero.datasets.files import check_file
from ellzero.errors import DataError, InvalidParameterError
from ellzero.validation import check_choice

NAMES = ("x_train", "y_train", "x_test", "y_test")
"""Arrays that an ``.npz`` file holds."""

_LAYOUT = "The layout is x_train, y_train, x_test, y_test, one sample for each first index."


@dataclass(frozen=True, slots=True)
class Arrays:
    """Training and test samples of any shape, as they were given.

    Parameters
    ----------
    name : str
        Name of the data set, or the file's name.
    X_train, X_test : Tensor of shape (n_train, ...), (n_test, ...)
        Samples: uint8 for images, else a floating-point type; finite, not standardized.
    y_train, y_test : Tensor of shape (n_train,), (n_test,)
        int64 codes of `class_names` for classification, float64 for regression.
    task : {"classification", "regression"}
        What `y_train` is.
    class_names : tuple of str or None
        Name of every class; None for regression.
    messages : tuple of str
        What was done to the data, one sentence each.
    fingerprint : str
        SHA-256 of the four arrays and the names of the classes.
    """

    name: str
    X_train: Tensor
    y_train: Tensor
    X_test: Tensor
    y_test: Tensor
    task: str
    class_names: tuple[str, ...] | None
    messages: tuple[str, ...]
    fingerprint: str

    @property
    def n_train(self) -> int:
        """Number of training samples."""
        return int(self.X_train.shape[0])

    @property
    def n_test(self) -> int:
        """Number of test samples."""
        return int(self.X_test.shape[0])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.X_train.shape[1:])

    @property
    def n_features(self) -> int:
        """Number of entries of one sample."""
        return int(np.prod(self.sample_shape, dtype=np.int64))


def load_arrays(source: str | os.PathLike[str], *, task: str | None = None) -> Arrays:
    """Read an ``.npz`` file that holds ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

    Parameters
    ----------
    source : str or path
        The file, in the layout of the well-known ``mnist.npz``.
    task : {"classification", "regression"} or None, default=None
        What the targets are. None means: integers and booleans are classes, others numbers.

    Returns
    -------
    Arrays
        The samples. Images of unsigned bytes get their channels in front: (n, height, width)
        becomes (n, 1, height, width), and (n, height, width, 3) becomes (n, 3, height, width).

    Raises
    ------
    DataError
        If the file cannot be read, lacks an array, or its arrays do not fit together.
    InvalidParameterError
        If `task` has a wrong value.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from ellzero.datasets import load_arrays
    >>> x, y = np.zeros((4, 8, 8), dtype=np.uint8), np.array([0, 1, 0, 1])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "tiny.npz")
    ...     np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    ...     arrays = load_arrays(path)
    >>> arrays.sample_shape, arrays.class_names, arrays.n_test
    ((1, 8, 8), ('0', '1'), 2)
    """
    path = Path(source)
    check_file(source, path)
    if path.suffix.lower() != ".npz":
        raise DataError(
            f"'{path.name}' is not an .npz file.", "Read tables by `ellzero.datasets.load_table`."
        )
    return read_npz(path.name, path, task)


def read_npz(name: str, file: str | os.PathLike[str] | bytes, task: str | None = None) -> Arrays:
    """Return the arrays of a file, or of its bytes, with the channels of images in front."""
    damaged = "Write it again by `numpy.savez`."
    try:
        with (
            io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as handle,
            _no_advice(),
        ):
            stored = np.load(handle, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise DataError(f"'{name}' is not an archive of arrays.", damaged)
            missing = [n for n in NAMES if n not in stored.files]
            if missing:
                held = ", ".join(map(repr, stored.files)) or "nothing"
                raise DataError(f"'{name}' has no array '{missing[0]}'; it holds {held}.", _LAYOUT)
            parts = {n: stored[n] for n in NAMES}
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"'{name}' says that its arrays are larger than the memory of this machine.", damaged
        ) from error
    except Exception as error:  # whatever numpy, the archive and its compression raise
        what = "holds Python objects" if "Object arrays" in str(error) else "cannot be read"
        raise DataError(f"'{name}' {what}; arrays of numbers are needed.", damaged) from error
    arrays = make_arrays(name, parts, task=task)
    return replace(
        arrays,
        X_train=_channels_first(arrays.X_train),
        X_test=_channels_first(arrays.X_test),
    )


def read_npy(name: str, file: str | os.PathLike[str], hint: str) -> NDArray[Any]:
    """Return the array of a ``.npy`` file.

    Parameters
    ----------
    name : str
        What to call it.
    file : str or path
        The file.
    hint : str
        What to do where it is no such file.

    Returns
    -------
    ndarray
        The array, of any shape and type but Python objects.

    Raises
    ------
    DataError
        If the file is damaged or of another kind, or its array does not fit into memory.
    """
    try:
        with open(file, "rb") as handle, _no_advice():
            values = np.load(handle, allow_pickle=False)
            if isinstance(values, np.ndarray):
                return values
    except MemoryError as error:
        raise DataError(
            f"'{name}' says that its array is larger than the memory of this machine.", hint
        ) from error
    except Exception as error:
        raise DataError(f"'{name}' is not a .npy file.", hint) from error
    raise DataError(f"'{name}' is not a .npy file.", hint)


@contextlib.contextmanager
def _no_advice() -> Iterator[None]:
    """Leave out what numpy advises about old files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def make_arrays(name: str, parts: Mapping[str, Any], *, task: str | None = None) -> Arrays:
    """Return arrays as they are used for training, after checking them.

    Parameters
    ----------
    name : str
        What to call them.
    parts : mapping of str to Tensor or array
        ``x_train``, ``y_train``, ``x_test`` and ``y_test``.
    task : {"classification", "regression"} or None, default=None
        What the targets are. None means: integers and booleans are classes, others numbers.

    Returns
    -------
    Arrays
        The samples: unsigned bytes and floating-point numbers stay, others become float32.

    Raises
    ------
    DataError
        If the arrays do not fit together, or hold missing or infinite values.
    InvalidParameterError
        If `task` has a wrong value.

    Examples
    --------
    >>> import torch
    >>> from ellzero.datasets import make_arrays
    >>> x, y = torch.zeros(4, 3), torch.tensor([0.5, 1.0, 2.0, 0.0])
    >>> arrays = make_arrays("mine", {"x_train": x, "y_train": y, "x_test": x, "y_test": y})
    >>> arrays.task, arrays.n_features
    ('regression', 3)
    """
    if task is not None:
        check_choice("task", task, ("classification", "regression"))
    given = {n: _array(name, n, parts[n]) for n in NAMES}
    for part in ("train", "test"):
        x, y = given[f"x_{part}"], given[f"y_{part}"]
        if y.ndim == 2 and y.shape[1] == 1:
            y = given[f"y_{part}"] = y[:, 0]
        if y.ndim != 1 or x.ndim < 2:
            raise DataError(
                f"'x_{part}' of '{name}' must have two axes or more and 'y_{part}' one, "
                f"got shapes {x.shape} and {y.shape}.",
                _LAYOUT,
            )
        if len(x) != len(y):
            raise DataError(
                f"'x_{part}' and 'y_{part}' of '{name}' must have the same number of samples, "
                f"got {len(x)} and {len(y)}.",
                _LAYOUT,
            )
    train, test = given["x_train"], given["x_test"]
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"The samples of '{name}' must have one shape, got {train.shape[1:]} for training and "
            f"{test.shape[1:]} for testing.",
            _LAYOUT,
        )
    if len(train) < 2 or train[0].size == 0:
        raise DataError(
            f"'{name}' must have at least two training samples with an entry, got shape "
            f"{train.shape}.",
            _LAYOUT,
        )
    messages: list[str] = []
    y_train, y_test, classes = _targets(name, given["y_train"], given["y_test"], task, messages)
    digest = hashlib.sha256(f"ellzero-arrays-1\n{classes}\n".encode())
    for array in (train, y_train, test, y_test):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{little.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(little).data)
    return Arrays(
        name=name,
        X_train=torch.from_numpy(train),
        y_train=torch.from_numpy(y_train),
        X_test=torch.from_numpy(test),
        y_test=torch.from_numpy(y_test),
        task="regression" if classes is None else "classification",
        class_names=classes,
        messages=tuple(messages),
        fingerprint=digest.hexdigest(),
    )


def _array(name: str, part: str, value: Any) -> NDArray[Any]:
    """Return a finite array of a type that is kept."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    try:
        array = np.array(value, order="C")
    except ValueError as error:
        raise DataError(
            f"'{part}' of '{name}' is not an array: its rows differ in length.", _LAYOUT
        ) from error
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"'{part}' of '{name}' must hold numbers, got the type {array.dtype}.",
            "Turn it into numbers, such as one code for each class.",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(
            f"'{part}' of '{name}' has {int((~np.isfinite(array)).sum())} missing or infinite "
            "values.",
            "Drop these samples, or fill them first.",
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if part.startswith("x") and array.dtype not in (np.uint8, np.float32, np.float64):
        array = array.astype(np.float32)
    return array


def _targets(
    name: str,
    train: NDArray[Any],
    test: NDArray[Any],
    task: str | None,
    messages: list[str],
) -> tuple[NDArray[Any], NDArray[Any], tuple[str, ...] | None]:
    """Return codes and names of the classes, or numbers and None."""
    if task is None:
        task = "regression" if train.dtype.kind == "f" else "classification"
    distinct = np.unique(train)
    if len(distinct) < 2:
        what = "class" if task == "classification" else "value"
        raise DataError(
            f"'y_train' of '{name}' has a single {what}.", "Give data in which the target varies."
        )
    if task == "regression":
        return train.astype(np.float64), test.astype(np.float64), None
    if 2 * len(distinct) > len(train) and len(distinct) > 2:
        raise DataError(
            f"'y_train' of '{name}' has {len(distinct)} classes in {len(train)} samples, too "
            "many.",
            "Give numbers to predict as floating-point numbers.",
        )
    absent = np.setdiff1d(test, distinct)
    if len(absent):
        raise DataError(
            f"'y_test' of '{name}' has a class that 'y_train' lacks: {absent[0]!s}.",
            "Leave its samples out, or put some into the training part.",
        )
    codes = [np.searchsorted(distinct, y).astype(np.int64) for y in (train, test)]
    return codes[0], codes[1], tuple(str(v) for v in distinct.tolist())


def _channels_first(X: Tensor) -> Tensor:
    if X.dtype is not torch.uint8:
        return X
    if X.ndim == 3:
        return X.unsqueeze(1)
    if X.ndim == 4 and X.shape[3] in (1, 3, 4) and X.shape[1] not in (1, 3, 4):
        return X.permute(0, 3, 1, 2).contiguous()
    return X


def check_no_target(name: str, target: str | None) -> None:
    """Raise where a column was named for data whose targets are arrays of their own."""
    if target is not None:
        raise InvalidParameterError(
            f"`target` cannot name a column of '{name}', got {target!r}.",
            "Leave it out: the targets are y_train and y_test.",
        )
