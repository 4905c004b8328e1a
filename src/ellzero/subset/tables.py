"""Inner products of tables in memory, computed a block of columns at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from ellzero.subset.inner import AbstractGram, check_finite, is_constant
from ellzero.subset.results import Floats, Integers, Subset

# Numbers that are centered at once, to stay within the cache of the processor.
AT_ONCE = 2**17
# Squared ratio of mean and deviation above which a centered copy of the table is made.
FAR = 1e6
# The same of a guess of the mean and the deviation, up to which the guess will do.
NEARBY = 10.0


class DenseGram(AbstractGram):
    """Inner products of a dense table, computed when asked for.

    Only the columns asked for are centered: their products with the plain columns are the same.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        float64 or float32; not copied unless its means are far from zero.
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.
    fit_intercept : bool
        Whether means are taken out.
    """

    def __init__(
        self, X: Any, Y: Floats, sample_weight: Floats | None, fit_intercept: bool
    ) -> None:
        n, p = X.shape
        self._w = sample_weight
        total = float(n if sample_weight is None else sample_weight.sum())
        self.n_samples = total
        mean, self.y_mean = np.zeros(p), np.zeros(Y.shape[1])
        w = np.ones(n) if sample_weight is None else sample_weight
        if fit_intercept:
            self.y_mean = w @ Y / total
        centered = Y - self.y_mean
        self.energy = w @ centered**2
        weighted = centered * w[:, None]
        if fit_intercept:
            # Some rows tell about where the means are, so that one pass is enough.
            mean = np.asarray(X[: max(AT_ONCE // (2 * max(p, 1)), 1)].mean(axis=0), np.float64)
        diagonal, cross, moved = self._moments(X, w, weighted, mean)
        if fit_intercept:
            moved /= total
            if not np.all(total * moved**2 <= NEARBY * diagonal):
                # These rows were unlike the others.
                mean = mean + moved
                diagonal, cross, moved = self._moments(X, w, weighted, mean)
                moved /= total
            mean = mean + moved
            cross -= weighted.sum(axis=0)[:, None] * moved
            diagonal = np.maximum(diagonal - total * moved**2, 0.0)
        check_finite(diagonal, self.energy)
        dead = is_constant(diagonal, mean, total)
        diagonal[dead] = 0.0
        cross[:, dead] = 0.0
        self.x_mean = mean
        self.diagonal = diagonal
        self.cross = np.ascontiguousarray(cross.T)
        self._dead = np.flatnonzero(dead)
        alive = ~dead
        if np.any(total * mean[alive] ** 2 > FAR * diagonal[alive]):
            X, mean = X - mean, np.zeros(p)
        self._X = X
        self._mean = mean

    @staticmethod
    def _moments(
        X: Any, w: Floats, weighted: Floats, origin: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return sums of squares, of products with targets, and plain ones, about an origin."""
        n, p = X.shape
        rows = max(AT_ONCE // max(p, 1), 1)
        left = np.ascontiguousarray(np.column_stack([weighted, w]).T)
        squares, sums = np.zeros(p), np.zeros((left.shape[0], p))
        for start in range(0, n, rows):
            part = X[start : start + rows] - origin
            sums += left[:, start : start + rows] @ part
            np.multiply(part, part, out=part)
            squares += w[start : start + rows] @ part
        return squares, sums[:-1], sums[-1]

    @staticmethod
    def _sums(X: Any, weighted: Floats) -> Floats:
        """Return ``weighted.T @ X`` in float64, without a float64 copy of the table."""
        if X.dtype == np.float64:
            return np.asarray(weighted.T @ X)
        out = np.zeros((weighted.shape[1], X.shape[1]))
        rows = max(8 * AT_ONCE // max(X.shape[1], 1), 1)
        for start in range(0, X.shape[0], rows):
            out += weighted[start : start + rows].T @ X[start : start + rows].astype(np.float64)
        return out

    def _picked(self, index: Integers) -> tuple[Floats, Floats]:
        """Return the centered columns, plain and weighted."""
        plain = self._X[:, index].astype(np.float64, copy=False) - self._mean[index]
        return plain, plain if self._w is None else plain * self._w[:, None]

    @property
    def n_rows(self) -> int:
        """Rows that a product goes through."""
        return int(self._X.shape[0])

    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""
        _, weighted = self._picked(index)
        out = self._sums(self._X, weighted)
        if self._mean.any():
            out -= weighted.sum(axis=0)[:, None] * self._mean
        out[:, self._dead] = 0.0
        out[np.isin(index, self._dead)] = 0.0
        return out

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        plain, weighted = self._picked(index)
        return np.asarray(plain.T @ weighted)

    def blocks(self, index: Integers) -> Floats:
        """Return the squares of G on every row of `index`: (n, size) to (n, size, size)."""
        n, size = index.shape
        out = np.empty((n, size, size))
        step = max(AT_ONCE // (size * self.n_rows), 1)
        for start in range(0, n, step):
            part = index[start : start + step]
            plain, weighted = self._picked(part.ravel())
            left = np.ascontiguousarray(plain.T).reshape(*part.shape, -1)
            right = left
            if weighted is not plain:
                right = np.ascontiguousarray(weighted.T).reshape(left.shape)
            np.matmul(left, right.transpose(0, 2, 1), out=out[start : start + step])
        return out


class SparseGram(AbstractGram):
    """Inner products of a sparse table; centering is implicit, nothing is densified.

    Parameters
    ----------
    X : scipy.sparse matrix or array of shape (n_samples, n_features)
        Any format.
    Y : ndarray of shape (n_samples, n_outputs)
        Targets.
    sample_weight : ndarray of shape (n_samples,) or None
        Weights.
    fit_intercept : bool
        Whether means are taken out.
    """

    def __init__(
        self, X: Any, Y: Floats, sample_weight: Floats | None, fit_intercept: bool
    ) -> None:
        from ellzero.kernels import subset_sparse as kernels  # numba takes a second to import

        n, p = X.shape
        w = np.ones(n) if sample_weight is None else sample_weight
        total = float(w.sum())
        by_column = X.tocsc()
        if not by_column.has_canonical_format:
            by_column = by_column.copy()
            by_column.sum_duplicates()
        self._by_row: Any = X if X.format == "csr" else None
        self._columns = by_column
        self._w = sample_weight
        self.n_samples = total
        mean, self.y_mean = np.zeros(p), np.zeros(Y.shape[1])
        if fit_intercept:
            mean = np.asarray(by_column.T @ w).ravel() / total
            self.y_mean = w @ Y / total
        centered = Y - self.y_mean
        self.energy = w @ centered**2
        weighted = centered * w[:, None]
        cross = np.asarray(by_column.T @ weighted)
        cross -= mean[:, None] * weighted.sum(axis=0)
        diagonal = np.empty(p)
        values, rows, ends = by_column.data, by_column.indices, by_column.indptr
        kernels.center_squares(values, rows, ends, w, total, mean, diagonal)
        check_finite(diagonal, self.energy)
        # A column without zeros may be constant; rounding of `total - filled` is a share of eps.
        dead = diagonal <= 1e-14 * total * mean**2
        diagonal[dead] = 0.0
        cross[dead] = 0.0
        self.x_mean = mean
        self.diagonal = diagonal
        self.cross = cross
        self._dead = np.flatnonzero(dead)

    @property
    def n_rows(self) -> int:
        """Rows that a product goes through."""
        return int(self._columns.shape[0])

    @property
    def _rows(self) -> Any:
        if self._by_row is None:
            self._by_row = self._columns.tocsr()
        return self._by_row

    def pick(self, features: Integers) -> SparseGram:
        """Return the inner products of some of the features."""
        out = copy.copy(self)
        out._columns = self._columns[:, features]
        out._by_row = None
        out.x_mean = self.x_mean[features]
        out.diagonal = self.diagonal[features]
        out.cross = self.cross[features]
        out._dead = np.flatnonzero(out.diagonal == 0)
        return out

    def price(
        self, subset: Subset, ridge: Floats, may_enter: np.ndarray, fixed: Integers
    ) -> tuple[Floats, Floats]:
        """Return what all features would gain by insertions and by exchanges, (n_features,) each.

        Takes time for the nonzeros times the size of the subset, and for its square times the
        features that are not constant.

        Parameters
        ----------
        subset : Subset
            The minimizer on a support.
        ridge : ndarray of shape (n_features,)
            Ridge of every feature.
        may_enter : ndarray of shape (n_features,), bool
            Features that may enter.
        fixed : ndarray of int64
            Members that stay.
        """
        from ellzero.kernels import subset_sparse as kernels

        stays = np.isin(subset.support, fixed)
        order = np.argsort(~stays, kind="stable")
        support, coef = subset.support[order], np.ascontiguousarray(subset.coef[order])
        held = self._columns[:, support].toarray().astype(np.float64, order="C", copy=False)
        held -= self.x_mean[support]
        penalty = self.n_samples * ridge
        weighted = held if self._w is None else held * self._w[:, None]
        square = weighted.T @ held
        square.flat[:: support.size + 1] += penalty[support]
        unit = 1.0 / np.sqrt(square.diagonal())
        inverse = np.linalg.inv(square * unit * unit[:, None]) * unit * unit[:, None]
        may_enter = may_enter & (self.diagonal > 0)
        may_enter[support] = False
        add_gain, swap_gain = np.empty(self.n_features), np.empty(self.n_features)
        table = self._columns
        kernels.price_exchanges(
            table.data,
            table.indices,
            table.indptr,
            weighted,
            inverse,
            coef,
            self.cross,
            self.diagonal + penalty,
            may_enter,
            int(stays.sum()),
            1e-10,
            add_gain,
            swap_gain,
        )
        return add_gain, swap_gain

    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""
        picked = self._columns[:, index].T.tocsr()
        if self._w is not None:
            picked = picked.multiply(self._w[None, :]).tocsr()
        out = np.ascontiguousarray((picked @ self._rows).toarray(), dtype=np.float64)
        if self.x_mean.any():
            out -= self.n_samples * self.x_mean[index][:, None] * self.x_mean
        out[:, self._dead] = 0.0
        out[np.isin(index, self._dead)] = 0.0
        return out

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        picked = self._columns[:, index]
        left = picked if self._w is None else picked.multiply(self._w[:, None]).tocsr()
        out = np.asarray((left.T @ picked).toarray(), np.float64)
        return out - self.n_samples * self.x_mean[index][:, None] * self.x_mean[index]


class TensorGram(AbstractGram):
    """Inner products of a torch tensor, multiplied in float64 where the tensor lives.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        On any device with float64.
    Y : Tensor of shape (n_samples, n_outputs)
        Targets, float64, on the same device.
    sample_weight : Tensor of shape (n_samples,) or None
        Weights, float64, on the same device.
    fit_intercept : bool
        Whether means are taken out.
    """

    def __init__(self, X: Any, Y: Any, sample_weight: Any, fit_intercept: bool) -> None:
        import torch

        n, p = X.shape
        self._X = X
        self._w = torch.ones(n, dtype=torch.float64, device=X.device)
        if sample_weight is not None:
            self._w = sample_weight
        total = float(self._w.sum())
        self.n_samples = total
        self._mean = torch.zeros(p, dtype=torch.float64, device=X.device)
        y_mean = torch.zeros(Y.shape[1], dtype=torch.float64, device=X.device)
        if fit_intercept:
            self._mean = self._sums(self._w[:, None])[0] / total
            y_mean = self._w @ Y / total
        centered = Y - y_mean
        weighted = centered * self._w[:, None]
        cross = torch.zeros(Y.shape[1], p, dtype=torch.float64, device=X.device)
        diagonal = torch.zeros(p, dtype=torch.float64, device=X.device)
        for at in self._slices():
            part = X[at].double() - self._mean
            cross += weighted[at].T @ part
            diagonal += self._w[at] @ part**2
        self.energy = (self._w @ centered**2).cpu().numpy()
        self.y_mean = y_mean.cpu().numpy()
        self.x_mean = self._mean.cpu().numpy()
        self.diagonal = diagonal.cpu().numpy()
        self.cross = np.ascontiguousarray(cross.T.cpu().numpy())
        check_finite(self.diagonal, self.energy)
        dead = is_constant(self.diagonal, self.x_mean, total)
        self.diagonal[dead] = 0.0
        self.cross[dead] = 0.0
        self._dead = np.flatnonzero(dead)

    def _slices(self) -> list[slice]:
        n, p = self._X.shape
        rows = max(64 * AT_ONCE // max(p, 1), 1)
        return [slice(start, start + rows) for start in range(0, n, rows)]

    def _sums(self, weighted: Any) -> Any:
        """Return the products of the centered table with weighted columns, transposed."""
        out = 0.0
        for at in self._slices():
            out = out + weighted[at].T @ (self._X[at].double() - self._mean)
        return out

    def _picked(self, index: Integers) -> Any:
        import torch

        at = torch.from_numpy(np.asarray(index, np.int64)).to(self._X.device)
        return self._X.index_select(1, at).double() - self._mean[at]

    @property
    def n_rows(self) -> int:
        """Rows that a product goes through."""
        return int(self._X.shape[0])

    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""
        out = np.ascontiguousarray(
            self._sums(self._picked(index) * self._w[:, None]).cpu().numpy()
        )
        out[:, self._dead] = 0.0
        out[np.isin(index, self._dead)] = 0.0
        return out

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        picked = self._picked(index)
        return np.asarray((picked.T @ (picked * self._w[:, None])).cpu().numpy())
