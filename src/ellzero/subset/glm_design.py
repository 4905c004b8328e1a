"""Columns of a table in one scale, dense or sparse, for searches with changing weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ellzero.subset.results import Floats, Integers

# Numbers of a block that is converted at a time; 2**16 in float64 are half a MiB.
BLOCK = 2**16


class AbstractDesign(ABC):
    """Columns divided by their sizes, and centered where an intercept is fitted."""

    weight: Floats
    """Weights of the samples, which add up to 1, shape (n_samples,)."""
    mean: Floats
    """What is taken out of the columns, shape (n_features,); zeros without intercept."""
    scale: Floats
    """What the columns are divided by, shape (n_features,); 1 where a column is constant."""
    usable: NDArray[np.bool_]
    """Columns that are not constant (with an intercept) or zero, shape (n_features,)."""

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return int(self.weight.shape[0])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return int(self.scale.shape[0])

    @abstractmethod
    def rows(self, index: Integers) -> Floats:
        """Return columns as rows in float64: shape (len(index), n_samples)."""

    @abstractmethod
    def products(self, vectors: Floats) -> NDArray[Any]:
        """Return inner products of all columns with vectors (q, n_samples): (n_features, q).

        Good to a few digits less than float32 has: for rankings.
        """

    @abstractmethod
    def squares(self, weight: Floats) -> NDArray[Any]:
        """Return weighted sums of squares of all columns, (n_features,), perhaps estimated."""

    def _set_scale(self, variance: Floats, largest: Floats, precision: float) -> None:
        size = np.sqrt(variance)
        self.usable = size > 64 * precision * largest
        self.scale = np.where(self.usable, size, 1.0)


@final
class DenseDesign(AbstractDesign):
    """Columns of a matrix; keeps them once more, in float32.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Finite numbers.
    weight : ndarray of shape (n_samples,)
        Weights that add up to 1.
    center : bool
        Whether means are taken out.
    """

    def __init__(self, X: NDArray[Any], weight: Floats, center: bool) -> None:
        n, p = X.shape
        self._X = X
        self.weight = weight
        self.mean = np.zeros(p)
        variance, largest = np.empty(p), np.empty(p)
        self._rows = np.empty((p, n), np.float32)
        step = max(1, BLOCK // n)
        for start in range(0, p, step):
            here = slice(start, start + step)
            block = np.array(X[:, here].T, np.float64, order="C")
            largest[here] = np.abs(block).max(axis=1)
            # A power of two changes no digit, and keeps squares away from overflow.
            unit = _power_of_two(largest[here])
            block /= unit[:, None]
            if center:
                mean = block @ weight
                block -= mean[:, None]
                self.mean[here] = mean * unit
            variance[here] = np.square(block) @ weight
            size = np.sqrt(variance[here])
            block *= (1 / np.where(size > 0, size, 1.0))[:, None]
            self._rows[here] = block
            variance[here] *= unit
            variance[here] *= unit
        self._set_scale(variance, largest, float(np.finfo(X.dtype).eps))

    @override
    def rows(self, index: Integers) -> Floats:
        out = np.array(self._X[:, index].T, np.float64, order="C")
        out -= self.mean[index, None]
        out /= self.scale[index, None]
        return out

    @override
    def products(self, vectors: Floats) -> NDArray[Any]:
        # Small numbers would underflow in float32.
        size = np.abs(vectors).max(axis=1)
        size[size == 0] = 1.0
        out = self._rows @ (vectors / size[:, None]).T.astype(np.float32)
        return np.asarray(out * size.astype(np.float64))

    @override
    def squares(self, weight: Floats) -> NDArray[Any]:
        # Squares are 1 on average; columns that matter are measured again.
        return np.full(self.n_features, weight.sum())


def _power_of_two(size: Floats) -> Floats:
    return np.exp2(np.floor(np.log2(np.where(size > 0, size, 1.0))))
