"""Inner products of every training set and test set of a cross-validation, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InvalidParameterError
from ellzero.subset.inner import CONSTANT, AbstractGram, check_finite
from ellzero.subset.results import Floats, Integers

# Bytes of products kept for all folds together.
CACHE_BYTES = 2**29


@dataclass(frozen=True, slots=True)
class Fold:
    """A training set and a test set.

    Parameters
    ----------
    train : AbstractGram
        Inner products of the training set.
    test : AbstractGram
        Inner products of the test set; ``test.squared_error(...)`` judges a model.
    """

    train: AbstractGram
    test: AbstractGram


class _Parts:
    """Products of the columns within disjoint sets of rows, about the means of all rows."""

    def __init__(
        self, X: Any, Y: Floats, weight: Floats, parts: Sequence[Integers], fit_intercept: bool
    ) -> None:
        self.sparse = hasattr(X, "tocsr")
        rows = X.tocsr() if self.sparse else X
        total = float(weight.sum())
        self.fit_intercept = fit_intercept
        p = X.shape[1]
        self.x_shift, self.y_shift = np.zeros(p), np.zeros(Y.shape[1])
        if fit_intercept:
            self.x_shift = np.asarray(rows.T @ weight).ravel() / total
            self.y_shift = weight @ Y / total
        self.tables = [rows[part] for part in parts]
        # Copies in double precision are centered once, in place.
        self.centered = not self.sparse and rows.dtype == np.float64
        if self.centered and fit_intercept:
            for table in self.tables:
                np.subtract(table, self.x_shift, out=table)
        self.even = bool(np.all(weight == 1.0))
        self.weights = [weight[part] for part in parts]
        self.targets = [Y[part] - self.y_shift for part in parts]
        self.weight = np.array([w.sum() for w in self.weights])
        self.x_sum = np.zeros((len(parts), p))
        self.y_sum = np.array([w @ y for w, y in zip(self.weights, self.targets, strict=True)])
        self.energy = np.array([w @ y**2 for w, y in zip(self.weights, self.targets, strict=True)])
        self.cross = np.zeros((len(parts), p, Y.shape[1]))
        self.diagonal = np.zeros((len(parts), p))
        for f, (table, w, y) in enumerate(
            zip(self.tables, self.weights, self.targets, strict=True)
        ):
            if self.sparse:
                self.x_sum[f] = table.T @ w - w.sum() * self.x_shift
                self.cross[f] = table.T @ (y * w[:, None])
                self.cross[f] -= self.x_shift[:, None] * (w @ y)
                self.diagonal[f] = table.multiply(table).T @ w
                self.diagonal[f] -= self.x_shift * (2 * (table.T @ w) - w.sum() * self.x_shift)
                continue
            size = max(2**17 // max(p, 1), 1)
            for start in range(0, table.shape[0], size):
                at = slice(start, start + size)
                part = table[at] if self.centered else table[at] - self.x_shift
                self.x_sum[f] += w[at] @ part
                self.cross[f] += part.T @ (y[at] * w[at][:, None])
                self.diagonal[f] += w[at] @ (part * part)
        check_finite(self.diagonal.sum(axis=0), self.energy.sum(axis=0))
        self.ready = np.zeros(p, bool)
        self._cache: dict[int, Floats] = {}
        self._total: dict[int, Floats] = {}
        self._square: tuple[bytes, Floats] = b"", np.zeros((len(parts), 0, 0))

    def _load(self, index: Integers) -> None:
        """Compute the products of those columns that are not kept."""
        missing = np.array([j for j in index.tolist() if j not in self._cache], np.int64)
        if missing.size:
            n_parts, p = self.diagonal.shape
            if (len(self._cache) + missing.size) * n_parts * p * 8 > CACHE_BYTES:
                self._cache.clear()
                self._total.clear()
                self.ready[:] = False
                missing = index
            self.ready[missing] = True
            fresh = np.empty((n_parts, missing.size, p))
            for f, (table, w) in enumerate(zip(self.tables, self.weights, strict=True)):
                if self.sparse:
                    picked = table[:, missing].multiply(w[:, None]).tocsr()
                    fresh[f] = (picked.T @ table).toarray()
                    sums = np.asarray(picked.sum(axis=0)).ravel()
                    other = self.x_sum[f] + self.weight[f] * self.x_shift
                    fresh[f] -= sums[:, None] * self.x_shift
                    fresh[f] -= self.x_shift[missing][:, None] * other
                    fresh[f] += (self.weight[f] * self.x_shift[missing])[:, None] * self.x_shift
                    continue
                picked = table[:, missing].T.astype(np.float64, order="C")
                if not self.centered:
                    picked -= self.x_shift[missing][:, None]
                if not self.even:
                    picked *= w
                if self.centered:
                    np.matmul(picked, table, out=fresh[f])
                    continue
                fresh[f] = picked @ table.astype(np.float64)
                fresh[f] -= picked.sum(axis=1)[:, None] * self.x_shift
            total = fresh.sum(axis=0)
            for a, j in enumerate(missing.tolist()):
                self._cache[j] = fresh[:, a]
                self._total[j] = total[a]

    def add_up(self, index: Integers, chosen: Integers, others: Integers) -> Floats:
        """Return products of columns within the chosen parts, shape (len(index), n_features)."""
        self._load(index)
        out = np.empty((index.size, self.diagonal.shape[1]))
        for row, j in zip(out, index.tolist(), strict=True):
            parts = self._cache[j]
            if others.size < chosen.size:
                np.subtract(self._total[j], parts[others[0]] if others.size else 0.0, out=row)
                for f in others[1:]:
                    np.subtract(row, parts[f], out=row)
            else:
                np.sum(parts[chosen], axis=0, out=row)
        return out

    def square(self, index: Integers, chosen: Integers) -> Floats:
        """Return products among columns within the chosen parts."""
        key = index.tobytes()
        if self._square[0] != key:
            if index.size and np.all(self.ready[index]):
                rows = [self._cache[j][:, index] for j in index.tolist()]
                square = np.ascontiguousarray(np.array(rows).transpose(1, 0, 2))
            else:
                square = np.array([self._multiply(f, index) for f in range(len(self.tables))])
            self._square = key, square
        return np.asarray(self._square[1][chosen].sum(axis=0))

    def _multiply(self, f: int, index: Integers) -> Floats:
        """Return products among columns within one part."""
        table, w, shift = self.tables[f][:, index], self.weights[f], self.x_shift[index]
        if self.sparse:
            out = np.asarray((table.multiply(w[:, None]).T @ table).toarray(), np.float64)
            sums = self.x_sum[f][index]
            out -= sums[:, None] * shift + shift[:, None] * sums
            return np.asarray(out - self.weight[f] * shift[:, None] * shift)
        picked = table.astype(np.float64, copy=False)
        if not self.centered:
            picked = picked - shift
        return np.asarray(picked.T @ (picked * w[:, None]))


class PartGram(AbstractGram):
    """Inner products of some of the parts of a table.

    Parameters
    ----------
    parts : _Parts
        Products within every part.
    chosen : ndarray of shape (n_parts,), bool
        Parts that belong.
    """

    def __init__(self, parts: _Parts, chosen: Any) -> None:
        self._parts = parts
        self._chosen = np.flatnonzero(chosen)
        self._others = np.flatnonzero(~chosen)
        weight = float(parts.weight[chosen].sum())
        if weight <= 0:
            raise InvalidParameterError("Every training and test set must have a positive weight.")
        self.n_samples = weight
        p, q = parts.cross.shape[1:]
        self._shift, y_off = np.zeros(p), np.zeros(q)
        self.x_mean, self.y_mean = np.zeros(p), np.zeros(q)
        if parts.fit_intercept:
            self._shift = parts.x_sum[chosen].sum(axis=0) / weight
            y_off = parts.y_sum[chosen].sum(axis=0) / weight
            self.x_mean = parts.x_shift + self._shift
            self.y_mean = parts.y_shift + y_off
        self.energy = np.maximum(parts.energy[chosen].sum(axis=0) - weight * y_off**2, 0.0)
        raw = parts.diagonal[chosen].sum(axis=0)
        diagonal = raw - weight * self._shift**2
        dead = diagonal <= 1e-13 * raw
        dead |= diagonal <= CONSTANT * weight * self.x_mean**2
        if parts.sparse:
            dead |= diagonal <= 1e-13 * weight * self.x_mean**2
        cross = parts.cross[chosen].sum(axis=0) - weight * self._shift[:, None] * y_off
        diagonal[dead] = 0.0
        cross[dead] = 0.0
        self.diagonal = diagonal
        self.cross = cross
        self._dead = np.flatnonzero(dead)

    @property
    def ready(self) -> np.ndarray:
        """Features whose products are kept."""
        return self._parts.ready

    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""
        index = np.asarray(index, np.int64)
        out = self._parts.add_up(index, self._chosen, self._others)
        if self._parts.fit_intercept:
            out -= (self.n_samples * self._shift[index])[:, None] * self._shift
        if self._dead.size:
            out[:, self._dead] = 0.0
            out[np.isin(index, self._dead)] = 0.0
        return out

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        index = np.asarray(index, np.int64)
        out = self._parts.square(index, self._chosen)
        out -= (self.n_samples * self._shift[index])[:, None] * self._shift[index]
        dead = np.isin(index, self._dead)
        out[dead] = 0.0
        out[:, dead] = 0.0
        return out


def whole_gram(folds: Sequence[Fold]) -> AbstractGram:
    """Return the inner products of all samples, from those that the folds share.

    Parameters
    ----------
    folds : sequence of Fold
        What `fold_grams` returned.

    Returns
    -------
    AbstractGram
        A search on it computes products for the folds, and the other way around.
    """
    train = folds[0].train
    assert isinstance(train, PartGram)
    parts = train._parts
    return PartGram(parts, np.ones(len(parts.tables), bool))


def fold_grams(
    X: Any,
    y: Any,
    folds: Sequence[Integers],
    *,
    sample_weight: Any = None,
    fit_intercept: bool = True,
) -> list[Fold]:
    """Return the inner products of the training and test set of every fold.

    Products are computed once for every fold; a training set is the sum of the others, centered
    by its own means.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        numpy or scipy.sparse.
    y : array of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    folds : sequence of ndarray of int64
        Samples of every test set; no sample is in two of them. The training set is all others.
    sample_weight : array of shape (n_samples,) or None, default=None
        Weights.
    fit_intercept : bool, default=True
        Whether every set has its means taken out.

    Returns
    -------
    list of Fold
        One for each test set.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(12.0).reshape(6, 2) ** 2
    >>> fold, _ = fold_grams(X, X[:, 0], [np.arange(3), np.arange(3, 6)])
    >>> bool(np.allclose(fold.train.columns(np.arange(2)), np.cov(X[3:].T, bias=True) * 3))
    True
    """
    n = X.shape[0]
    Y = np.asarray(y, np.float64)
    Y = Y[:, None] if Y.ndim == 1 else Y
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    owner = np.full(n, -1)
    for f, test in enumerate(folds):
        if np.any(owner[test] >= 0):
            raise InvalidParameterError(
                "`folds` must be disjoint, got a sample that is in two test sets.",
                "Compute the Gram matrices of every split on its own.",
            )
        owner[test] = f
    parts = [np.flatnonzero(owner == f) for f in range(len(folds))]
    rest = np.flatnonzero(owner < 0)
    if rest.size:
        parts.append(rest)
    if not hasattr(X, "tocsr"):
        X = np.asarray(X)
        X = X if X.dtype in (np.float64, np.float32) else X.astype(np.float64)
    shared = _Parts(X, Y, weight, parts, fit_intercept)
    number = np.arange(len(parts))
    return [
        Fold(PartGram(shared, number != f), PartGram(shared, number == f))
        for f in range(len(folds))
    ]
