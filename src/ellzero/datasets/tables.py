"""Tables: bundled sets, files of a user, seeded problems with a planted answer."""

from __future__ import annotations

import codecs
import hashlib
import importlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ellzero.datasets.arrays import Arrays, check_no_target, read_npz
from ellzero.datasets.files import BUNDLED, check_file, nearest
from ellzero.datasets.mnist import load_mnist
from ellzero.errors import DataError, InvalidParameterError
from ellzero.validation import check_choice, check_integer, check_real

_MISSING = ("", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "null", "NULL", "None", "#N/A")
_MAX_CATEGORIES = 100
_MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True, slots=True)
class Table:
    """Features and a target, ready for an objective.

    Parameters
    ----------
    name : str
        Name of the data set, or the file's name.
    X : Tensor of shape (n_samples, n_features)
        Features, float64, finite, no constant column.
    y : Tensor of shape (n_samples,)
        int64 codes of `class_names` for classification, float64 for regression.
    task : {"classification", "regression"}
        What `y` is.
    feature_names : tuple of str
        Name of every column of `X`.
    target_name : str
        Name of the target.
    class_names : tuple of str or None
        Name of every class; None for regression.
    messages : tuple of str
        What was done to the data, one sentence each.
    fingerprint : str
        SHA-256 of `X`, `y` and the names: equal for equal data, wherever it was read from.
    n_train : int or None, default=None
        The first `n_train` rows train and the others test; None means that `split` divides them.
    """

    name: str
    X: Tensor
    y: Tensor
    task: str
    feature_names: tuple[str, ...]
    target_name: str
    class_names: tuple[str, ...] | None
    messages: tuple[str, ...]
    fingerprint: str
    n_train: int | None = None

    @property
    def n_samples(self) -> int:
        """Number of rows."""
        return int(self.X.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns of `X`."""
        return int(self.X.shape[1])


@dataclass(frozen=True, slots=True)
class Split:
    """Training and test rows of a table, standardized by the training rows.

    Parameters
    ----------
    X_train, X_test : Tensor of shape (n_train, n_features), (n_test, n_features)
        ``(X - mean) / scale``; the test part has no rows when there is no test set.
    y_train, y_test : Tensor of shape (n_train,), (n_test,)
        Targets, as they are in the table.
    mean, scale : Tensor of shape (n_features,)
        Mean and population standard deviation of the training rows; a scale of 1 where a column
        is constant there.
    names : tuple of str
        Name of every column.
    train_rows, test_rows : Tensor of int64
        Rows of the table.
    messages : tuple of str
        What is worth knowing, one sentence each.
    """

    X_train: Tensor
    y_train: Tensor
    X_test: Tensor
    y_test: Tensor
    mean: Tensor
    scale: Tensor
    names: tuple[str, ...]
    train_rows: Tensor
    test_rows: Tensor
    messages: tuple[str, ...]

    @property
    def n_train(self) -> int:
        """Number of training rows."""
        return int(self.y_train.shape[0])

    @property
    def n_test(self) -> int:
        """Number of test rows."""
        return int(self.y_test.shape[0])


class Planted(NamedTuple):
    """Problem with a known answer.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, float64.
    y : Tensor of shape (n_samples,)
        Target: float64, or int64 in {0, 1}.
    coef : Tensor of shape (n_features,)
        Coefficients that made the target.
    support : Tensor of shape (n_nonzero,)
        Positions of the nonzeros of `coef`, sorted, int64.
    """

    X: Tensor
    y: Tensor
    coef: Tensor
    support: Tensor


class IrisReference(NamedTuple):
    """Iris as the reference experiment uses it.

    Parameters
    ----------
    X : Tensor of shape (120, 5)
        Standardized features and a constant column, float64.
    y : Tensor of shape (120,)
        Classes 0, 1, 2, int64.
    X_test : Tensor of shape (30, 5)
        The same for the test rows.
    y_test : Tensor of shape (30,)
        The same for the test rows.
    """

    X: Tensor
    y: Tensor
    X_test: Tensor
    y_test: Tensor


def load_table(
    source: str | os.PathLike[str],
    *,
    target: str | None = None,
    task: str | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Table:
    """Read a bundled data set or a file.

    Parameters
    ----------
    source : str or path
        ``"iris"``, ``"digits"``, ``"breast_cancer"``, ``"wine"``, ``"mnist"``, a CSV, TSV or
        Parquet file whose first line (or schema) names the columns, or an ``.npz`` file as
        `load_arrays` reads it. A name wins over a file of that name; write ``./iris`` for the
        file.
    target : str or None, default=None
        Column to predict. Required for a file with columns.
    task : {"classification", "regression"} or None, default=None
        What the target is. None means: text and booleans are classes, and so are integers with at
        most 20 different values and more than twice as many rows; other numbers are a regression.
    folder : str or path or None, default=None
        Where MNIST is kept; see `data_folder`.

    Returns
    -------
    Table
        The data. Text features become one column for each category but the first, booleans become
        0 and 1, constant columns are dropped; `messages` says so.

    Raises
    ------
    DataError
        If the data cannot be read, or holds missing or infinite values, dates, identifiers, one
        sample, one class, or no column that varies.
    InvalidParameterError
        If a parameter is of a wrong type or value.

    Examples
    --------
    >>> from ellzero.datasets import load_table
    >>> table = load_table("iris")
    >>> tuple(table.X.shape), table.class_names
    ((150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidParameterError(
            f"`source` must be the name of a data set or a path, got {type(source).__name__}.",
            f"Bundled data sets: {', '.join(BUNDLED)}.",
        )
    if target is not None and not isinstance(target, str):
        raise InvalidParameterError(
            f"`target` must be the name of a column, got {target!r}.", "Pass a string."
        )
    if task is not None:
        check_choice("task", task, ("classification", "regression"))
    if isinstance(source, str) and source in BUNDLED:
        return _load_bundled(source, target, task)
    if isinstance(source, str) and source == "mnist":
        check_no_target(source, target)
        return to_table(load_mnist(folder))
    path = Path(source)
    check_file(source, path)
    if path.suffix.lower() == ".npz":
        check_no_target(path.name, target)
        return to_table(read_npz(path.name, path, task))
    if target is None:
        raise InvalidParameterError(
            f"`target` must name the column of '{path.name}' to predict, got nothing.",
            "Pass `target`, on the command line `--target COLUMN`.",
        )
    if path.suffix.lower() in (".parquet", ".pq"):
        columns, messages = _read_parquet(path)
    else:
        columns, messages = _read_csv(path)
    return _build(path.name, columns, target, task, messages)


def to_table(arrays: Arrays) -> Table:
    """Return arrays as one table: samples flattened, the training rows first.

    Parameters
    ----------
    arrays : Arrays
        The samples.

    Returns
    -------
    Table
        One column for each entry of a sample that varies, and `n_train` set.

    Raises
    ------
    DataError
        If every entry is constant.

    Examples
    --------
    >>> import torch
    >>> from ellzero.datasets import make_arrays, to_table
    >>> x, y = torch.eye(4).reshape(4, 2, 2), torch.tensor([0, 1, 0, 1])
    >>> parts = {"x_train": x, "y_train": y, "x_test": x[:1], "y_test": y[:1]}
    >>> to_table(make_arrays("tiny", parts)).feature_names
    ('x[0,0]', 'x[0,1]', 'x[1,0]', 'x[1,1]')
    """
    shape = arrays.sample_shape
    axes = shape[1:] if len(shape) == 3 and shape[0] == 1 else shape
    names = [f"x[{','.join(map(str, at))}]" for at in np.ndindex(*axes)]
    X = np.concatenate(
        [t.reshape(len(t), -1).to(torch.float64) for t in (arrays.X_train, arrays.X_test)]
    )
    y = torch.cat([arrays.y_train, arrays.y_test]).numpy()
    messages = list(arrays.messages)
    X, names = _drop_constant(arrays.name, X, names, messages)
    table = _table(
        arrays.name,
        X,
        y,
        features=names,
        target="y",
        classes=arrays.class_names,
        messages=messages,
    )
    return replace(table, n_train=arrays.n_train)


def split(table: Table, *, test_size: float = 0.2, seed: int = 0, stratify: bool = False) -> Split:
    """Divide a table into training and test rows and standardize both by the training rows.

    Parameters
    ----------
    table : Table
        The data.
    test_size : float, default=0.2
        Share of rows to test on. Must be in [0, 1); 0 means no test set.
    seed : int, default=0
        Seed of the permutation. Must be at least 0.
    stratify : bool, default=False
        Whether every class is divided by the same share.

    Returns
    -------
    Split
        The two parts.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value.
    DataError
        If fewer than two rows, or a single class or target value, is left to train on.

    Notes
    -----
    The rows are those of ``numpy.random.default_rng(seed).permutation(n_samples)``: the first
    ``round((1 - test_size) * n_samples)`` train, the others test. A table with a test part of its
    own keeps it, whatever `test_size` and `seed` are.

    Examples
    --------
    >>> from ellzero.datasets import load_table, split
    >>> parts = split(load_table("iris"))
    >>> parts.n_train, parts.n_test
    (120, 30)
    """
    share = check_real("test_size", test_size, 0.0, 1.0)
    if share == 1.0:
        raise InvalidParameterError(
            "`test_size` must be below 1, got 1.", "Leave rows to train on, such as 0.2."
        )
    check_integer("seed", seed, 0)
    order = np.random.default_rng(seed).permutation(table.n_samples)
    if table.n_train is not None:
        order = np.arange(table.n_samples)
    X, y = table.X.numpy(), table.y.numpy()
    if table.n_train is not None:
        train, test = order[: table.n_train], order[table.n_train :]
    elif stratify:
        if table.task != "classification":
            raise InvalidParameterError(
                f"`stratify` must be False for a regression, got {stratify!r}.",
                "Leave it out.",
            )
        in_train = np.zeros(table.n_samples, dtype=bool)
        for code in np.unique(y):
            rows = order[y[order] == code]
            in_train[rows[: round((1 - share) * len(rows))]] = True
        train, test = order[in_train[order]], order[~in_train[order]]
    else:
        n_train = round((1 - share) * table.n_samples)
        train, test = order[:n_train], order[n_train:]
    _check_training_rows(table, y[train], share)
    messages: list[str] = []
    if share > 0 and len(test) == 0:
        messages.append(f"No row is left to test on: {table.n_samples} samples are too few.")
    if table.class_names is not None:
        present = set(np.unique(y[train]).tolist())
        absent = [n for code, n in enumerate(table.class_names) if code not in present]
        if absent:
            messages.append(f"No training row for {_listed(absent, 'class', 'classes')}.")
    with np.errstate(all="ignore"):
        mean, scale = X[train].mean(axis=0), X[train].std(axis=0)
        constant = X[train].min(axis=0) == X[train].max(axis=0)
        mean = np.where(constant, X[train[0]], mean)
        scale = np.where(constant, 1.0, scale)
        standard = (X - mean) / scale
    bad = ~(np.isfinite(standard).all(axis=0) & np.isfinite(scale) & (scale > 0))
    if bad.any():
        column = table.feature_names[int(bad.argmax())]
        raise DataError(
            f"Column {column!r} cannot be standardized: its values are too large or too close.",
            "Change its unit, or drop it.",
        )
    if constant.any():
        fixed = [n for n, c in zip(table.feature_names, constant, strict=True) if c]
        messages.append(
            f"Constant in the training rows, so not scaled: {_listed(fixed, 'column', 'columns')}."
        )
    return Split(
        X_train=torch.from_numpy(standard[train]),
        y_train=table.y[torch.from_numpy(train)],
        X_test=torch.from_numpy(standard[test]),
        y_test=table.y[torch.from_numpy(test)],
        mean=torch.from_numpy(mean),
        scale=torch.from_numpy(scale),
        names=table.feature_names,
        train_rows=torch.from_numpy(train),
        test_rows=torch.from_numpy(test),
        messages=tuple(messages),
    )


def iris_reference() -> IrisReference:
    """Return Iris as the reference experiment uses it: 120 and 30 rows, a constant column.

    Returns
    -------
    IrisReference
        The parts of ``split(load_table("iris"))`` with a column of ones appended.

    Examples
    --------
    >>> from ellzero.datasets import iris_reference
    >>> X, y, X_test, y_test = iris_reference()
    >>> tuple(X.shape), tuple(X_test.shape)
    ((120, 5), (30, 5))
    """
    parts = split(load_table("iris"))

    def with_ones(X: Tensor) -> Tensor:
        return torch.cat([X, torch.ones(X.shape[0], 1, dtype=X.dtype)], dim=1)

    return IrisReference(
        with_ones(parts.X_train), parts.y_train, with_ones(parts.X_test), parts.y_test
    )


def make_sparse_regression(
    n_samples: int,
    n_features: int,
    n_nonzero: int,
    *,
    noise: float = 0.1,
    correlation: float = 0.0,
    seed: int = 0,
) -> Planted:
    r"""Return a regression whose target depends on few features.

    .. math:: y = X \theta + \sigma z

    where :math:`\theta` is `coef`, :math:`\sigma` is `noise` and :math:`z` is standard normal.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of `X`. Must be at least 1.
    n_nonzero : int
        Number of features that matter. Must be in [0, n_features].
    noise : float, default=0.1
        Standard deviation of the noise. Must be at least 0.
    correlation : float, default=0.0
        Columns i and j have correlation ``correlation ** |i - j|``. Must be in [-0.999, 0.999].
    seed : int, default=0
        Seed of ``numpy.random.default_rng``. Must be at least 0.

    Returns
    -------
    Planted
        The problem and its answer. Nonzero coefficients have magnitudes in [1, 2] and random
        signs, at random positions.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value.

    Examples
    --------
    >>> from ellzero.datasets import make_sparse_regression
    >>> problem = make_sparse_regression(50, 20, 3, noise=0.0)
    >>> bool((problem.X @ problem.coef - problem.y).abs().max() < 1e-12)
    True
    """
    X, coef, support, rng = _plant(
        n_samples, n_features, n_nonzero, noise=noise, correlation=correlation, seed=seed
    )
    y = X @ coef + noise * rng.standard_normal(n_samples)
    return Planted(*map(torch.from_numpy, (X, y, coef, support)))


def make_sparse_classification(
    n_samples: int,
    n_features: int,
    n_nonzero: int,
    *,
    noise: float = 1.0,
    correlation: float = 0.0,
    seed: int = 0,
) -> Planted:
    r"""Return a problem of two classes that depend on few features.

    .. math:: y = 1 \text{ if } X \theta + \sigma z > 0 \text{ else } 0

    where :math:`\theta` is `coef`, :math:`\sigma` is `noise` and :math:`z` is standard logistic.
    With ``noise=1`` this is the logistic model with coefficients `coef`.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of `X`. Must be at least 1.
    n_nonzero : int
        Number of features that matter. Must be in [0, n_features].
    noise : float, default=1.0
        Scale of the noise. Must be at least 0; 0 gives linearly separable classes.
    correlation : float, default=0.0
        Columns i and j have correlation ``correlation ** |i - j|``. Must be in [-0.999, 0.999].
    seed : int, default=0
        Seed of ``numpy.random.default_rng``. Must be at least 0.

    Returns
    -------
    Planted
        The problem and its answer, drawn as in `make_sparse_regression`.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value.

    Examples
    --------
    >>> from ellzero.datasets import make_sparse_classification
    >>> problem = make_sparse_classification(50, 20, 3)
    >>> problem.y.unique().tolist(), len(problem.support)
    ([0, 1], 3)
    """
    X, coef, support, rng = _plant(
        n_samples, n_features, n_nonzero, noise=noise, correlation=correlation, seed=seed
    )
    y = (X @ coef + noise * rng.logistic(size=n_samples) > 0).astype(np.int64)
    return Planted(*map(torch.from_numpy, (X, y, coef, support)))


def _plant(
    n_samples: int, n_features: int, n_nonzero: int, *, noise: float, correlation: float, seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], np.random.Generator]:
    check_integer("n_samples", n_samples, 1)
    check_integer("n_features", n_features, 1)
    check_integer("n_nonzero", n_nonzero, 0, n_features, meaning="the number of features")
    check_real("noise", noise, 0.0)
    check_real("correlation", correlation, -0.999, 0.999)
    check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    for j in range(1, n_features if correlation else 0):
        X[:, j] = correlation * X[:, j - 1] + np.sqrt(1 - correlation**2) * X[:, j]
    support = np.sort(rng.choice(n_features, n_nonzero, replace=False)).astype(np.int64)
    coef = np.zeros(n_features)
    coef[support] = rng.choice([-1.0, 1.0], n_nonzero) * rng.uniform(1.0, 2.0, n_nonzero)
    return X, coef, support, rng


def _check_training_rows(table: Table, y: NDArray[Any], share: float) -> None:
    hint = "Give a smaller `test_size`, another `seed`, or more data."
    if len(y) < 2:
        raise DataError(
            f"`test_size={share:g}` leaves {_plural(len(y), 'row', 'rows')} of "
            f"{table.n_samples} to train on; at least 2 are needed.",
            hint,
        )
    if len(np.unique(y)) < 2:
        what = "class" if table.class_names is not None else "target value"
        raise DataError(f"The {len(y)} training rows hold a single {what}.", hint)


def _load_bundled(name: str, target: str | None, task: str | None) -> Table:
    import sklearn.datasets

    known = BUNDLED[name]
    if target is not None and target != known:
        raise DataError(
            f"The target of '{name}' is {known!r}, got {target!r}.",
            "Leave `target` out for a bundled data set.",
        )
    if task == "regression":
        raise DataError(
            f"The target of '{name}' is a class, so `task` cannot be 'regression'.",
            "Leave `task` out for a bundled data set.",
        )
    bunch = getattr(sklearn.datasets, f"load_{name}")()
    X = np.asarray(bunch.data, dtype=np.float64)
    names = [str(n) for n in bunch.feature_names]
    messages: list[str] = []
    X, names = _drop_constant(name, X, names, messages)
    y = np.asarray(bunch.target, dtype=np.int64)
    classes = tuple(str(n) for n in bunch.target_names)
    return _table(name, X, y, features=names, target=known, classes=classes, messages=messages)


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


def _read_csv(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    pa, csv = _arrow(), _arrow(".csv")

    header = _check_text(path)
    messages: list[str] = []
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if separator == "," and b"," not in header:
        for other, word in ((";", "semicolons"), ("\t", "tabs")):
            if other.encode() in header:
                separator = other
                messages.append(f"Read '{path.name}' as separated by {word}.")
                break
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
                delimiter=separator, newlines_in_values=True, invalid_row_handler=note
            ),
            convert_options=csv.ConvertOptions(
                null_values=list(_MISSING),
                strings_can_be_null=True,
                true_values=["true", "True", "TRUE"],
                false_values=["false", "False", "FALSE"],
            ),
        )
        names = [str(n).strip() for n in read.column_names]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"'{path.name}' cannot be read as CSV: {_first_line(error)}.",
            "Check the separators and the quotes.",
        ) from error
    if bad:
        row = bad[0]
        place = "A row" if row.number is None else f"Row {row.number}"
        raise DataError(
            f"{place} of '{path.name}' has {_plural(row.actual_columns, 'value', 'values')}, "
            f"the header has {_plural(row.expected_columns, 'column', 'columns')}.",
            "Check its separators and quotes.",
        )
    last = read.column(read.num_columns - 1)[-1].as_py() if read.num_rows else None
    if isinstance(last, str) and "\n" in last and path.read_bytes().count(b'"') % 2:
        raise DataError(
            f"'{path.name}' has a quote that is never closed.", "Close it, or drop it."
        )
    if names and all(_is_number(n) for n in names):
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
    pa, parquet = _arrow(), _arrow(".parquet")

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


def _build(
    name: str,
    columns: list[tuple[str, Any]],
    target: str,
    task: str | None,
    messages: list[str],
) -> Table:
    pa = _arrow()

    names = [n for n, _ in columns]
    repeated = sorted({n for n in names if names.count(n) > 1})
    if repeated:
        raise DataError(
            f"'{name}' has columns of the same name: {_quoted(repeated)}.", "Rename them."
        )
    if target not in names:
        raise DataError(
            f"'{name}' has no column {target!r}.{nearest(target, names)}",
            f"Its columns are {_quoted(names)}.",
        )
    n = len(columns[0][1])
    if n == 0:
        raise DataError(
            f"'{name}' has column names but no rows.", "Give a file with at least two rows."
        )
    if n == 1:
        raise DataError(f"'{name}' has a single sample.", "Give at least two samples.")
    if len(columns) == 1:
        raise DataError(
            f"'{name}' has no column besides the target {target!r}.", "Add columns of features."
        )
    try:
        data = [(c, _clean(column)) for c, column in columns]
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DataError(
            f"'{name}' holds values that cannot be converted: {_first_line(error)}.",
            "Check the types of its columns.",
        ) from error
    _check_types(name, data)
    _check_finite(name, data)
    arrays: list[NDArray[Any]] = []
    features: list[str] = []
    y, classes = np.zeros(0), None
    for column, values in data:
        if column == target:
            y, classes = _encode_target(name, column, values, task, messages)
        else:
            for feature, array in _encode_feature(name, column, values, messages):
                features.append(feature)
                arrays.append(array)
    X = np.column_stack(arrays) if arrays else np.zeros((n, 0))
    X, features = _drop_constant(name, X, features, messages)
    twice = sorted({f for f in features if features.count(f) > 1})
    if twice:
        raise DataError(
            f"Encoding '{name}' gives columns of the same name: {_quoted(twice)}.",
            "Rename the columns.",
        )
    return _table(name, X, y, features=features, target=target, classes=classes, messages=messages)


def _arrow(module: str = "") -> Any:
    """Return a module of pyarrow, on demand; as Any, for its types are not exported."""
    return importlib.import_module(f"pyarrow{module}")


class _Column(NamedTuple):
    """Values of one column: numbers, booleans, or texts with None where missing."""

    kind: str
    values: NDArray[Any]
    missing: NDArray[Any]


def _clean(column: Any) -> _Column:
    """Return a column of a file as NumPy values."""
    pa, pc = _arrow(), _arrow(".compute")

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    missing = np.asarray(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
    if pa.types.is_null(kind):
        return _Column("real", np.zeros(len(column)), np.ones(len(column), dtype=bool))
    if pa.types.is_boolean(kind):
        filled = pc.fill_null(column, False).to_numpy(zero_copy_only=False)
        return _Column("boolean", np.asarray(filled, dtype=bool), missing)
    if pa.types.is_integer(kind):
        filled = pc.fill_null(column, pa.scalar(0, kind)).to_numpy(zero_copy_only=False)
        return _Column("integer", np.asarray(filled), missing)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        real = column.cast(pa.float64(), safe=False)
        return _Column("real", np.asarray(real.to_numpy(zero_copy_only=False)), missing)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _clean_text(column.to_pylist())
    if pa.types.is_temporal(kind):
        return _Column("date", np.zeros(len(column)), missing)
    return _Column(str(kind), np.zeros(len(column)), missing)


def _clean_text(texts: list[str | None]) -> _Column:
    values = np.array([None if t is None else t.strip() for t in texts], dtype=object)
    distinct = {v for v in values.tolist() if v is not None}
    absent = {v for v in distinct if v in _MISSING}
    missing = np.array([v is None or v in absent for v in values.tolist()], dtype=bool)
    rest = distinct - absent
    if rest and all(_is_number(v) for v in rest):
        numbers = [0.0 if m else float(v) for v, m in zip(values.tolist(), missing, strict=True)]
        return _Column("real", np.array(numbers), missing)
    return _Column("text", values, missing)


def _check_types(name: str, data: Sequence[tuple[str, _Column]]) -> None:
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


def _check_finite(name: str, data: Sequence[tuple[str, _Column]]) -> None:
    missing = {c: int(v.missing.sum()) for c, v in data if v.missing.any()}
    if missing:
        total = _plural(sum(missing.values()), "missing value", "missing values")
        raise DataError(
            f"'{name}' has {total}: {_counted(missing)}.", "Drop these rows, or fill them first."
        )
    infinite = {
        c: int(np.isinf(v.values).sum())
        for c, v in data
        if v.kind == "real" and np.isinf(v.values).any()
    }
    if infinite:
        total = _plural(sum(infinite.values()), "infinite value", "infinite values")
        raise DataError(
            f"'{name}' has {total}: {_counted(infinite)}.",
            "Drop these rows, or replace the values first.",
        )


def _encode_feature(
    name: str, column: str, values: _Column, messages: list[str]
) -> list[tuple[str, NDArray[Any]]]:
    if values.kind == "boolean":
        messages.append(f"Encoded {column!r} (false, true) as 0 and 1.")
        return [(column, values.values.astype(np.float64))]
    if values.kind != "text":
        return [(column, values.values.astype(np.float64))]
    texts = values.values.tolist()
    levels = sorted(set(texts))
    numeric = sum(_is_number(t) for t in texts)
    if len(levels) > 10 and 2 * numeric >= len(texts):
        row = next(i for i, t in enumerate(texts) if not _is_number(t))
        raise DataError(
            f"Column {column!r} of '{name}' mixes numbers and text: sample {row + 1} holds "
            f"{_short(texts[row])}.",
            "Replace the text by numbers, or drop the column.",
        )
    if len(levels) > _MAX_CATEGORIES or (len(levels) > 10 and len(levels) > 0.9 * len(texts)):
        raise DataError(
            f"Column {column!r} of '{name}' holds {len(levels)} different texts in "
            f"{len(texts)} samples, too many for categories.",
            "Drop the column; it looks like an identifier or free text.",
        )
    if len(levels) == 1:
        return [(column, np.zeros(len(texts)))]
    made = _plural(len(levels) - 1, "column", "columns")
    messages.append(f"Encoded {column!r} ({len(levels)} categories) as {made}.")
    place = {level: code for code, level in enumerate(levels)}
    codes = np.array([place[t] for t in texts])
    return [
        (f"{column}={level}", (codes == i).astype(np.float64))
        for i, level in enumerate(levels)
        if i > 0
    ]


def _encode_target(
    name: str, column: str, values: _Column, task: str | None, messages: list[str]
) -> tuple[NDArray[Any], tuple[str, ...] | None]:
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
        few = count <= _MAX_INTEGER_CLASSES and n > 2 * count
        classes = values.kind in ("text", "boolean") or (values.kind == "integer" and few)
        task = "classification" if classes else "regression"
    if count == 1:
        what = "class" if task == "classification" else "value"
        raise DataError(
            f"The target {column!r} of '{name}' has a single {what}, {_short(distinct[0])}.",
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


def _drop_constant(
    name: str, X: NDArray[Any], names: list[str], messages: list[str]
) -> tuple[NDArray[Any], list[str]]:
    constant = X.min(axis=0) == X.max(axis=0) if X.shape[1] else np.zeros(0, dtype=bool)
    if constant.all():
        raise DataError(
            f"Every feature of '{name}' is constant.", "Give features that vary over the samples."
        )
    if not constant.any():
        return X, names
    dropped = [n for n, c in zip(names, constant, strict=True) if c]
    messages.append(f"Dropped {_listed(dropped, 'constant column', 'constant columns')}.")
    return X[:, ~constant], [n for n, c in zip(names, constant, strict=True) if not c]


def _table(
    name: str,
    X: NDArray[Any],
    y: NDArray[Any],
    *,
    features: Sequence[str],
    target: str,
    classes: tuple[str, ...] | None,
    messages: Iterable[str],
) -> Table:
    X = np.ascontiguousarray(X) + 0.0  # -0.0 becomes 0.0: equal numbers, equal fingerprint
    names = json.dumps([list(features), target, None if classes is None else list(classes)])
    digest = hashlib.sha256(f"ellzero-table-1\n{names}\n{X.shape}\n".encode())
    digest.update(X.astype("<f8", copy=False).tobytes())
    digest.update(y.astype("<f8" if classes is None else "<i8", copy=False).tobytes())
    return Table(
        name=name,
        X=torch.from_numpy(X),
        y=torch.from_numpy(y),
        task="regression" if classes is None else "classification",
        feature_names=tuple(features),
        target_name=target,
        class_names=classes,
        messages=tuple(messages),
        fingerprint=digest.hexdigest(),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


def _quoted(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(_short(n) for n in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _listed(names: Sequence[str], one: str, many: str) -> str:
    return f"{_plural(len(names), one, many)}: {_quoted(names)}"


def _counted(counts: dict[str, int], limit: int = 10) -> str:
    shown = ", ".join(f"{_short(c)} ({k})" for c, k in list(counts.items())[:limit])
    rest = len(counts) - limit
    return shown if rest <= 0 else f"{shown} and {_plural(rest, 'more column', 'more columns')}"


def _first_line(error: Exception) -> str:
    text = (str(error).splitlines() or ["unknown reason"])[0].rstrip(". ")
    return text if len(text) <= 120 else text[:117] + "..."
