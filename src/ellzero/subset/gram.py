"""Inner products of the columns of a table: all that least squares on subsets needs."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
