"""Inner products of the columns of a table: all that least squares on subsets needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from ellzero.subset.results import Floats, Integers


class AbstractGram(ABC):
    r"""Inner products of weighted, centered columns and targets.

    With weights w, and with means taken out where an intercept is fitted,
    :math:`G = X^T W X` and :math:`C = X^T W Y`; everything is a sum over samples, not a mean.
    """

    n_samples: float
    """Sum of the weights; the number of samples without weights."""
    diagonal: Floats
    """Diagonal of G, shape (n_features,)."""
    cross: Floats
    """C, shape (n_features, n_outputs)."""
    energy: Floats
    """Squares of the targets, shape (n_outputs,)."""
    x_mean: Floats
    """Means taken out of the features, shape (n_features,); zeros without intercept."""
    y_mean: Floats
    """Means taken out of the targets, shape (n_outputs,); zeros without intercept."""

    @property
    def n_features(self) -> int:
        """Number of features."""
        return int(self.diagonal.shape[0])

    @property
    def n_outputs(self) -> int:
        """Number of targets."""
        return int(self.energy.shape[0])

    @abstractmethod
    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        return np.ascontiguousarray(self.columns(index)[:, index])

    def intercept(self, support: Integers, coef: Floats) -> Floats:
        """Return the intercepts that go with coefficients of shape (k, n_outputs)."""
        return np.asarray(self.y_mean - self.x_mean[support] @ coef)


class FullGram(AbstractGram):
    """All inner products, held in memory.

    Parameters
    ----------
    matrix : ndarray of shape (n_features, n_features)
        Inner products of the features.
    cross : ndarray of shape (n_features, n_outputs)
        Inner products of features and targets.
    energy : ndarray of shape (n_outputs,)
        Squares of the targets.
    n_samples : float
        Sum of the weights.
    x_mean, y_mean : ndarray
        Means taken out; zeros without intercept.
    """

    def __init__(
        self,
        matrix: Floats,
        cross: Floats,
        energy: Floats,
        n_samples: float,
        x_mean: Floats,
        y_mean: Floats,
    ) -> None:
        self.matrix = matrix
        self.diagonal = np.diagonal(matrix).copy()
        self.cross = cross
        self.energy = energy
        self.n_samples = n_samples
        self.x_mean = x_mean
        self.y_mean = y_mean

    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""
        return np.ascontiguousarray(self.matrix[index])

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        return np.ascontiguousarray(self.matrix[np.ix_(index, index)])


def gram_of(
    X: Any, y: Any, *, sample_weight: Any = None, fit_intercept: bool = True
) -> AbstractGram:
    """Return the inner products of a table and its targets."""
    X = np.asarray(X, float)
    Y = np.asarray(y, float).reshape(X.shape[0], -1)
    w = np.ones(X.shape[0]) if sample_weight is None else np.asarray(sample_weight, float)
    total = float(w.sum())
    x_mean, y_mean = np.zeros(X.shape[1]), np.zeros(Y.shape[1])
    if fit_intercept:
        x_mean, y_mean = w @ X / total, w @ Y / total
    Xc, Yc = X - x_mean, Y - y_mean
    raw = w @ X**2
    matrix = (Xc.T * w) @ Xc
    dead = np.diagonal(matrix) <= 1e-13 * raw
    matrix[dead] = 0.0
    matrix[:, dead] = 0.0
    cross = (Xc.T * w) @ Yc
    cross[dead] = 0.0
    return FullGram(matrix, cross, w @ Yc**2, total, x_mean, y_mean)
