"""Data: bundled sets, files of a user, arrays of images, problems with a planted answer."""

from ellzero.datasets.arrays import Arrays, load_arrays, make_arrays
from ellzero.datasets.files import BUNDLED, EXTENSIONS
from ellzero.datasets.mnist import data_folder, load_mnist
from ellzero.datasets.tables import (
    IrisReference,
    Planted,
    Split,
    Table,
    iris_reference,
    load_table,
    make_sparse_classification,
    make_sparse_regression,
    split,
    to_table,
)

__all__ = [
    "BUNDLED",
    "EXTENSIONS",
    "Arrays",
    "IrisReference",
    "Planted",
    "Split",
    "Table",
    "data_folder",
    "iris_reference",
    "load_arrays",
    "load_mnist",
    "load_table",
    "make_arrays",
    "make_sparse_classification",
    "make_sparse_regression",
    "split",
    "to_table",
]
