"""Splines behind scikit-learn's conventions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin  # noqa: TID253
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: TID253

from ellzero.relu.inputs import check_magnitudes
from ellzero.relu.splines import fit_spline, largest_penalty
from ellzero.validation import check_real

Floats = NDArray[np.float64]


class SplineReLURegressor(RegressorMixin, BaseEstimator):
    r"""Two-layer ReLU regression on a line, optimal over every width.

    .. math:: \min \frac{1}{2n} \sum_i (y_i - f(x_i))^2 + \lambda \sum_j |w_j| \|u_j\|,
        \quad f(x) = \sum_j w_j \max(u_j^\top x + b_j, 0) + c

    with free biases b and c. Rows of X must lie on a line: one feature, or data of rank one.

    Parameters
    ----------
    penalty : float or None, default=None
        Weight of the norm. None takes a hundredth of the largest useful one, at which the network
        becomes constant; 0 the network of least norm that interpolates. Must not be negative.
    project : bool, default=False
        Whether rows that are off a line are moved to the line of largest spread. What is proven
        then is of networks on the moved rows.

    Attributes
    ----------
    penalty_ : float
        The penalty that was used.
    largest_penalty_ : float
        Largest useful one, exactly.
    certificate_ : Certificate
        How the bound is proven.
    spline_ : ReLUSpline
        Knots, weights, value, bound and dual point.
    value_ : float
        The objective; the norm alone when `penalty` is 0.
    lower_bound_ : float
        Proven bound below which no network of any width is.
    gap_ : float
        Relative distance of the two.
    n_iter_ : int
        Convex programs solved; 0 for interpolation.
    n_features_in_ : int
        Features seen.

    See Also
    --------
    ConvexReLURegressor : Any number of features; there, biases are penalized.
    fit_spline : The function that does the work.

    Notes
    -----
    See `fit_spline`. It is a class of its own, not a setting of `ConvexReLURegressor`, because
    free biases are another problem with other optima, and one that has no minimum norm of
    interpolation in more dimensions that could be computed.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import SplineReLURegressor
    >>> t = np.linspace(-1, 1, 100)[:, None]
    >>> model = SplineReLURegressor(penalty=1e-3).fit(t, np.abs(t[:, 0]))
    >>> model.spline_.n_neurons <= 4, model.gap_ < 1e-9
    (True, True)
    """

    def __init__(self, penalty: float | None = None, *, project: bool = False) -> None:
        self.penalty = penalty
        self.project = project

    def __sklearn_tags__(self) -> Any:
        """Say that a line is not enough for targets of several features."""
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> SplineReLURegressor:
        """Train to the optimum.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples on a line.
        y : array-like of shape (n_samples,)
            Targets.

        Returns
        -------
        SplineReLURegressor
            The fitted estimator.

        Raises
        ------
        InvalidParameterError
            If `penalty` is negative.
        DataError
            If the samples do not lie on a line, or equal ones have different targets while
            `penalty` is 0.
        """
        if self.penalty is not None:
            check_real("penalty", self.penalty, low=0.0)
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
        rows, targets = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        check_magnitudes(X=rows, y=targets)
        rows = _projected(rows) if self.project else rows
        self.largest_penalty_ = largest_penalty(rows, targets)
        # All targets alike: no neuron helps at any penalty.
        chosen = 0.01 * self.largest_penalty_ or 1.0
        self.penalty_ = chosen if self.penalty is None else float(self.penalty)
        self.spline_ = fit_spline(rows, targets, self.penalty_)
        self.certificate_ = self.spline_.certificate
        self.value_, self.lower_bound_ = self.spline_.value, self.spline_.lower_bound
        self.gap_, self.n_iter_ = self.spline_.gap, self.spline_.n_rounds
        return self

    def predict(self, X: ArrayLike) -> Floats:
        """Return the outputs.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            The outputs.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(self.spline_.predict(np.asarray(rows, dtype=np.float64)))

    def to_module(self) -> Any:
        """Return the network as Linear, ReLU, Linear in float64.

        Returns
        -------
        torch.nn.Sequential
            Computes what `predict` does, to rounding.
        """
        check_is_fitted(self)
        return self.spline_.to_module()


def _projected(X: Floats) -> Floats:
    """Return the projections of the rows on the line of largest spread."""
    center = X.mean(axis=0)
    _, _, directions = np.linalg.svd(X - center, full_matrices=False)
    direction = directions[0]
    # The sign is that of the largest entry, whatever the decomposition gives.
    direction = direction * np.sign(direction[np.argmax(np.abs(direction))])
    return np.asarray(center + np.outer((X - center) @ direction, direction))
