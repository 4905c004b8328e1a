"""Inner products of the columns of a table: all that least squares on subsets needs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ellzero.errors import NonFiniteError
from ellzero.subset.results import Floats, Integers

# A feature whose centered square is below this share of the plain one is constant.
CONSTANT = 1e-22
# Features up to which all inner products are computed at once.
FULL = 256


class AbstractGram(ABC):
    r"""Inner products of weighted, centered columns and targets.

    With weights w, and with means taken out where an intercept is fitted,
    :math:`G = X^T W X` and :math:`C = X^T W Y`; everything is a sum over samples, not a mean.
    """

    n_samples: float
    """Sum of the weights; the number of samples without weights."""
    diagonal: Floats
    """Diagonal of G, shape (n_features,); exactly 0 for features of no use."""
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
    def n_rows(self) -> int:
        """Rows that a product goes through, where they are kept."""
        return max(int(self.n_samples), 1)

    @property
    def n_outputs(self) -> int:
        """Number of targets."""
        return int(self.energy.shape[0])

    @property
    def ready(self) -> np.ndarray | None:
        """Features whose columns cost next to nothing, (n_features,) bool; None: all alike."""
        return None

    @abstractmethod
    def columns(self, index: Integers) -> Floats:
        """Return columns of G as rows, C-contiguous: shape (len(index), n_features)."""

    def block(self, index: Integers) -> Floats:
        """Return the square of G on `index`."""
        return np.ascontiguousarray(self.columns(index)[:, index])

    def blocks(self, index: Integers) -> Floats:
        """Return the squares of G on every row of `index`: (n, size) to (n, size, size)."""
        return np.array([self.block(row) for row in index])

    def intercept(self, support: Integers, coef: Floats) -> Floats:
        """Return the intercepts that go with coefficients of shape (k, n_outputs)."""
        return np.asarray(self.y_mean - self.x_mean[support] @ coef)

    def squared_error(self, support: Integers, coef: Floats, intercept: Floats) -> Floats:
        """Return the sum of squared errors of a model, fitted here or elsewhere.

        Parameters
        ----------
        support : ndarray of shape (k,), int64
            Features of the model.
        coef : ndarray of shape (k, n_outputs)
            Coefficients.
        intercept : ndarray of shape (n_outputs,)
            Intercepts.

        Returns
        -------
        ndarray of shape (n_outputs,)
            Weighted sums over the samples.
        """
        block = self.block(support)
        inner = np.einsum("ko,ko->o", coef, block @ coef - 2 * self.cross[support])
        shift = self.y_mean - self.x_mean[support] @ coef - intercept
        return np.asarray(np.maximum(self.energy + inner, 0.0) + self.n_samples * shift**2)


class FullGram(AbstractGram):
    """All inner products, held in memory.

    Parameters
    ----------
    matrix : ndarray of shape (n_features, n_features)
        Inner products of the features; its rows and columns of constant features are set to 0.
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
        diagonal = np.diagonal(matrix).copy()
        check_finite(diagonal, energy)
        dead = is_constant(diagonal, x_mean, n_samples)
        if dead.any():
            matrix, cross, diagonal = matrix.copy(), cross.copy(), diagonal.copy()
            matrix[dead] = 0.0
            matrix[:, dead] = 0.0
            cross[dead] = 0.0
            diagonal[dead] = 0.0
        self.matrix = matrix
        self.diagonal = diagonal
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


def is_constant(diagonal: Floats, mean: Floats, n_samples: float) -> np.ndarray:
    """Return which features are constant up to rounding."""
    return np.asarray(diagonal <= CONSTANT * n_samples * mean**2)


def check_finite(diagonal: Floats, energy: Floats) -> None:
    """Raise when squares of features or of targets are NaN or infinite."""
    if not np.all(np.isfinite(energy)):
        raise NonFiniteError("`y` must be finite, got NaN or infinity.")
    if not np.all(np.isfinite(diagonal)):
        wrong = int(np.flatnonzero(~np.isfinite(diagonal))[0])
        raise NonFiniteError(f"`X` must be finite, got NaN or infinity in column {wrong}.")
