"""Data: bundled sets, files of a user, arrays of images, problems with a planted answer."""

from ellzero.datasets.arrays import Arrays, load_arrays, make_arrays
from ellzero.datasets.encoding import SourceColumn
from ellzero.datasets.files import BUNDLED, EXTENSIONS
from ellzero.datasets.mnist import data_folder, load_mnist
from ellzero.datasets.planted import (
    Planted,
    PlantedSignal,
    make_sparse_classification,
    make_sparse_regression,
    make_sparse_signal,
)
from ellzero.datasets.tables import (
    IrisReference,
    Split,
    Table,
    iris_reference,
    load_rows,
    load_table,
    split,
    to_table,
)
from ellzero.datasets.writing import check_format, write_columns

__all__ = [
    "BUNDLED",
    "EXTENSIONS",
    "Arrays",
    "IrisReference",
    "Planted",
    "PlantedSignal",
    "SourceColumn",
    "Split",
    "Table",
    "check_format",
    "data_folder",
    "iris_reference",
    "load_arrays",
    "load_mnist",
    "load_rows",
    "load_table",
    "make_arrays",
    "make_sparse_classification",
    "make_sparse_regression",
    "make_sparse_signal",
    "split",
    "to_table",
    "write_columns",
]
