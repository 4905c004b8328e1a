"""Tables: bundled sets, files of a user, seeded problems with a planted answer."""

from __future__ import annotations

import hashlib
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
from ellzero.datasets.columns import Column, check_finite, check_types, read_columns
from ellzero.datasets.encoding import SourceColumn, drop_constant, encode_target, source_column
from ellzero.datasets.files import BUNDLED, check_file, nearest
from ellzero.datasets.mnist import load_mnist
from ellzero.datasets.words import listed, plural, quoted
from ellzero.errors import DataError, InvalidParameterError
from ellzero.validation import check_choice, check_integer, check_real


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
    sources : tuple of SourceColumn, default=()
        Columns of the file and how they became features; none for bundled sets and arrays.
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
    sources: tuple[SourceColumn, ...] = ()

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
    columns, messages = read_columns(path)
    return _build(path.name, columns, target, task, messages)


def load_rows(
    source: str | os.PathLike[str], sources: Sequence[SourceColumn], features: Sequence[str]
) -> tuple[Tensor, tuple[str, ...]]:
    r"""Read the features of a model from a file, whatever the order of its columns.

    Parameters
    ----------
    source : str or path
        A CSV, TSV or Parquet file.
    sources : sequence of SourceColumn
        Columns that the model was fitted on, `Table.sources`.
    features : sequence of str
        Features to return, `Table.feature_names`.

    Returns
    -------
    X : Tensor of shape (n_samples, len(features))
        Features, float64.
    messages : tuple of str
        What is worth knowing, one sentence each.

    Raises
    ------
    DataError
        If the file cannot be read, lacks a column, or holds a category that is not known.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from ellzero.datasets import SourceColumn, load_rows
    >>> sources = [SourceColumn("size"), SourceColumn("color", "text", ("blue", "red"))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "new.csv")
    ...     _ = path.write_text("color,size\nred,2\nblue,3\n")
    ...     load_rows(path, sources, ["size", "color=red"])[0].tolist()
    [[2.0, 1.0], [3.0, 0.0]]
    """
    path = Path(source)
    check_file(source, path)
    if path.suffix.lower() == ".npz":
        raise DataError(
            f"'{path.name}' holds arrays, the model needs columns with names.",
            "Save the rows as CSV or Parquet.",
        )
    columns, messages = read_columns(path)
    given = dict(columns)
    wanted = set(features)
    needed = [s for s in sources if wanted.intersection(s.features)]
    absent = [s.name for s in needed if s.name not in given]
    if absent:
        raise DataError(
            f"'{path.name}' lacks {listed(absent, 'column', 'columns')}, which the model uses.",
            f"Its columns are {quoted(list(given))}.",
        )
    data = [(s.name, given[s.name]) for s in needed]
    check_types(path.name, data)
    check_finite(path.name, data)
    found: dict[str, NDArray[Any]] = {}
    for column in needed:
        arrays = column.encode(path.name, given[column.name])
        found |= dict(zip(column.features, arrays, strict=True))
    X = np.column_stack([found[name] for name in features]) + 0.0
    return torch.from_numpy(X), tuple(messages)


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
    X, names = drop_constant(arrays.name, X, names, messages)
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
            messages.append(f"No training row for {listed(absent, 'class', 'classes')}.")
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
            f"Constant in the training rows, so not scaled: {listed(fixed, 'column', 'columns')}."
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


def _check_training_rows(table: Table, y: NDArray[Any], share: float) -> None:
    hint = "Give a smaller `test_size`, another `seed`, or more data."
    if len(y) < 2:
        raise DataError(
            f"`test_size={share:g}` leaves {plural(len(y), 'row', 'rows')} of "
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
    X, names = drop_constant(name, X, names, messages)
    y = np.asarray(bunch.target, dtype=np.int64)
    classes = tuple(str(n) for n in bunch.target_names)
    return _table(name, X, y, features=names, target=known, classes=classes, messages=messages)


def _build(
    name: str,
    data: list[tuple[str, Column]],
    target: str,
    task: str | None,
    messages: list[str],
) -> Table:
    names = [n for n, _ in data]
    if target not in names:
        raise DataError(
            f"'{name}' has no column {target!r}.{nearest(target, names)}",
            f"Its columns are {quoted(names)}.",
        )
    if len(data[0][1].values) == 1:
        raise DataError(f"'{name}' has a single sample.", "Give at least two samples.")
    if len(data) == 1:
        raise DataError(
            f"'{name}' has no column besides the target {target!r}.", "Add columns of features."
        )
    check_types(name, data)
    check_finite(name, data)
    arrays: list[NDArray[Any]] = []
    features: list[str] = []
    sources: list[SourceColumn] = []
    y, classes = np.zeros(0), None
    for column, values in data:
        if column == target:
            y, classes = encode_target(name, column, values, task, messages)
        else:
            source = source_column(name, column, values, messages)
            sources.append(source)
            features += source.features
            arrays += source.encode(name, values)
    X = np.column_stack(arrays)
    X, features = drop_constant(name, X, features, messages)
    twice = sorted({f for f in features if features.count(f) > 1})
    if twice:
        raise DataError(
            f"Encoding '{name}' gives columns of the same name: {quoted(twice)}.",
            "Rename the columns.",
        )
    table = _table(
        name, X, y, features=features, target=target, classes=classes, messages=messages
    )
    return replace(table, sources=tuple(sources))


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
