"""Columns of a table in one scale, dense or sparse, for searches with changing weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch
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
        """Return inner products of vectors (q, n_samples) with all columns: (q, n_features).

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
        largest = np.maximum(X.max(axis=0), -X.min(axis=0)).astype(np.float64)
        # A power of two changes no digit, and keeps squares away from overflow.
        unit = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
        self.mean = np.zeros(p)
        variance = np.zeros(p)
        step = BLOCK // p + 1
        blocks = [slice(start, start + step) for start in range(0, n, step)]
        if center:
            for here in blocks:
                self.mean += weight[here] @ X[here].astype(np.float64, copy=False)
        for here in blocks:
            block = (X[here] - self.mean) / unit
            variance += weight[here] @ np.square(block, out=block)
        self._set_scale(variance * unit * unit, largest, float(np.finfo(X.dtype).eps))
        self.scale = np.where(self.usable, np.sqrt(variance) * unit, 1.0)
        inverse = 1 / self.scale
        self._scaled = np.empty((n, p), np.float32)
        for here in blocks:
            block = X[here] - self.mean
            np.multiply(block, inverse, out=self._scaled[here], casting="same_kind")

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
        out = (vectors / size[:, None]).astype(np.float32) @ self._scaled
        return np.asarray(out * size[:, None])

    @override
    def squares(self, weight: Floats) -> NDArray[Any]:
        # Squares are 1 on average; columns that matter are measured again.
        return np.full(self.n_features, weight.sum())


@final
class RowsDesign(AbstractDesign):
    """A few columns of another design, kept as rows in float64.

    Parameters
    ----------
    design : AbstractDesign
        The other design.
    index : ndarray of shape (q,), int64
        Its columns.
    """

    def __init__(self, design: AbstractDesign, index: Integers) -> None:
        self.all = design.rows(index)
        self.weight = design.weight
        self.mean = design.mean[index]
        self.scale = design.scale[index]
        self.usable = design.usable[index]

    @override
    def rows(self, index: Integers) -> Floats:
        return self.all[index]

    @override
    def products(self, vectors: Floats) -> NDArray[Any]:
        return np.asarray(vectors @ self.all.T)

    @override
    def squares(self, weight: Floats) -> NDArray[Any]:
        return np.square(self.all) @ weight


@final
class SparseDesign(AbstractDesign):
    """Columns of a sparse matrix, never made dense but for the few in use.

    Parameters
    ----------
    X : scipy.sparse.csc_array of shape (n_samples, n_features)
        Finite numbers.
    weight : ndarray of shape (n_samples,)
        Weights that add up to 1.
    center : bool
        Whether means are taken out.
    """

    def __init__(self, X: Any, weight: Floats, center: bool) -> None:
        p = X.shape[1]
        self._X = X
        self._rows = X.T
        self.weight = weight
        values = X.data.astype(np.float64)
        column = np.repeat(np.arange(p), np.diff(X.indptr))
        share = weight[X.indices]
        largest = np.zeros(p)
        np.maximum.at(largest, column, np.abs(values))
        unit = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
        values /= unit[column]
        mean = np.zeros(p)
        if center:
            mean = np.bincount(column, share * values, p)
        filled = np.bincount(column, share, p)
        variance = np.bincount(column, share * np.square(values - mean[column]), p)
        variance += np.square(mean) * np.maximum(1 - filled, 0)
        self.mean = mean * unit
        self._set_scale(
            np.asarray(variance * unit * unit, np.float64), largest, float(np.finfo(X.dtype).eps)
        )
        self.scale = np.where(self.usable, np.sqrt(variance) * unit, 1.0)
        squares = np.square(X.data.astype(np.float64) / self.scale[column])
        self._squares = type(self._rows)((squares, X.indices, X.indptr), self._rows.shape)

    @override
    def rows(self, index: Integers) -> Floats:
        out = np.array(self._X[:, index].toarray().T, np.float64, order="C")
        out -= self.mean[index, None]
        out /= self.scale[index, None]
        return out

    @override
    def products(self, vectors: Floats) -> NDArray[Any]:
        out = np.asarray(self._rows @ np.ascontiguousarray(vectors.T))
        out -= np.outer(self.mean, vectors.sum(axis=1))
        out /= self.scale[:, None]
        return np.ascontiguousarray(out.T)

    @override
    def squares(self, weight: Floats) -> NDArray[Any]:
        out = np.asarray(self._squares @ weight)
        if self.mean.any():
            shift = self.mean / self.scale
            out += shift * (shift * weight.sum() - 2 * (self._rows @ weight) / self.scale)
        return np.asarray(np.maximum(out, 1e-12 * weight.sum()))


@final
class DeviceDesign(AbstractDesign):
    """Columns of a tensor on an accelerator, where all products with them are made.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Finite numbers.
    weight : ndarray of shape (n_samples,)
        Weights that add up to 1.
    center : bool
        Whether means are taken out.
    """

    def __init__(self, X: torch.Tensor, weight: Floats, center: bool) -> None:
        self._X = X
        self.weight = weight
        share = torch.as_tensor(weight, device=X.device)
        largest = X.abs().amax(0).double()
        unit = torch.exp2(torch.where(largest > 0, largest, 1.0).log2().floor())
        mean = share @ X.double() if center else torch.zeros_like(largest)
        variance = share @ ((X - mean) / unit).square()
        self.mean = mean.cpu().numpy()
        root = (variance.sqrt() * unit).cpu().numpy()
        self._set_scale(np.square(root), largest.cpu().numpy(), float(torch.finfo(X.dtype).eps))
        self.scale = np.where(self.usable, root, 1.0)
        scale = torch.as_tensor(self.scale, device=X.device)
        self._scaled = ((X - mean) / scale).float()

    @override
    def rows(self, index: Integers) -> Floats:
        picked = self._X[:, torch.as_tensor(index, device=self._X.device)]
        out = np.ascontiguousarray(picked.T.double().cpu().numpy())
        out -= self.mean[index, None]
        out /= self.scale[index, None]
        return out

    @override
    def products(self, vectors: Floats) -> NDArray[Any]:
        size = np.abs(vectors).max(axis=1)
        size[size == 0] = 1.0
        small = torch.as_tensor((vectors / size[:, None]).astype(np.float32))
        out = (small.to(self._X.device) @ self._scaled).cpu().numpy()
        return np.asarray(out * size[:, None])

    @override
    def squares(self, weight: Floats) -> NDArray[Any]:
        return np.full(self.n_features, weight.sum())
