"""Two-layer ReLU networks behind scikit-learn's conventions, with a gap over every width."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # noqa: TID253
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: TID253

from ellzero.errors import DataError
from ellzero.relu.certificate import certify
from ellzero.relu.inputs import check_magnitudes
from ellzero.relu.losses import AbstractLoss, loss_of
from ellzero.relu.settings import (
    check_effort,
    check_penalty,
    generator_of,
    read_classes,
    with_bias,
)
from ellzero.relu.training import Training, largest_penalty, to_network, train
from ellzero.validation import check_integer, check_real

Floats = NDArray[np.float64]


class _ConvexReLU(BaseEstimator):
    """What the regressor and the classifier share."""

    def __init__(
        self,
        penalty: float | None = None,
        *,
        fit_intercept: bool = True,
        fit_bias: bool = True,
        max_neurons: int | None = None,
        max_iter: int = 60,
        tol: float = 1e-8,
        time_limit: float | None = None,
        certify: bool = True,
        random_state: Any = None,
    ) -> None:
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.fit_bias = fit_bias
        self.max_neurons = max_neurons
        self.max_iter = max_iter
        self.tol = tol
        self.time_limit = time_limit
        self.certify = certify
        self.random_state = random_state

    def _check_settings(self) -> None:
        """Raise when a setting is out of range."""
        check_penalty(self.penalty)
        if self.max_neurons is not None:
            check_integer("max_neurons", self.max_neurons, low=1)
        check_effort(self.max_iter, self.tol, open_tol=False)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, low=0.0, open_low=True)

    def _train(self, X: Floats, y: Floats, loss: AbstractLoss, unit: float) -> None:
        """Train in units in which rows and targets are of size one; store what is found."""
        generator = generator_of(self.random_state)
        A = with_bias(X, self.fit_bias)
        row_size = float(np.sqrt(np.mean(np.sum(A * A, axis=1)))) or 1.0
        scaled = Training(A / row_size, y / unit, loss, 1.0, self.fit_intercept)
        largest = largest_penalty(scaled, generator)
        level = 0.01 * largest if self.penalty is None else self.penalty / (row_size * unit)
        # All targets alike: no neuron helps at any penalty.
        level = level if level > 0 else 1.0
        problem = Training(scaled.A, scaled.y, loss, level, self.fit_intercept)
        neurons, weights, intercept, rounds = train(
            problem,
            generator,
            max_rounds=self.max_iter,
            max_neurons=self.max_neurons,
            tol=self.tol,
            time_limit=self.time_limit,
        )
        factor = np.sqrt(unit / row_size)
        self.network_ = to_network(
            neurons * factor,
            weights * factor,
            intercept * unit,
            biased=self.fit_bias,
            fit_intercept=self.fit_intercept,
        )
        self.n_iter_ = max(rounds, 1)
        self.penalty_ = level * row_size * unit
        self.largest_penalty_ = largest * row_size * unit
        outputs = self.network_.predict(X)
        self.value_ = loss.value(outputs, y) + self.penalty_ * self.network_.norm
        self.certificate_ = self.lower_bound_ = self.gap_ = None
        if self.certify:
            found, _ = certify(self.network_, X, y, loss, self.penalty_)
            self.certificate_ = found
            self.lower_bound_, self.gap_ = found.lower_bound, found.gap

    def _read(self, X: ArrayLike) -> Floats:
        """Return samples to predict for, in float64."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return np.asarray(rows, dtype=np.float64)

    def to_module(self) -> torch.nn.Sequential:
        """Return the network as Linear, ReLU, Linear in float64.

        Returns
        -------
        torch.nn.Sequential
            Computes what `predict` (or `decision_function`) does, to rounding.
        """
        check_is_fitted(self)
        module: torch.nn.Sequential = self.network_.to_module()
        return module


class ConvexReLURegressor(RegressorMixin, _ConvexReLU):
    r"""Two-layer ReLU regression with a proven gap to the best network of any width.

    .. math:: \min \frac{1}{2n} \sum_i (y_i - f(x_i))^2 + \lambda \sum_j |w_j| \|(u_j, b_j)\|,
        \quad f(x) = \sum_j w_j \max(u_j^\top x + b_j, 0) + c

    Parameters
    ----------
    penalty : float or None, default=None
        Weight of sum_j |w_j| |(u_j, b_j)|. None takes a hundredth of the largest useful one, at
        which the network becomes zero. Must be positive.
    fit_intercept : bool, default=True
        Whether a constant, never penalized, is added to the output.
    fit_bias : bool, default=True
        Whether neurons have biases, penalized like their weights.
    max_neurons : int or None, default=None
        Most neurons; None means as many as help.
    max_iter : int, default=60
        Most insertions of neurons.
    tol : float, default=1e-8
        How far a neuron may violate the dual, relative to `penalty`, and not be inserted.
    time_limit : float or None, default=None
        Seconds after which no further insertion begins.
    certify : bool, default=True
        Whether to compute the gap; needs the extra `convex` for the tight bound.
    random_state : int, RandomState or None, default=None
        Source of the starts of the search for neurons.

    Attributes
    ----------
    network_ : TwoLayerReLU
        The network.
    penalty_ : float
        The penalty that was used.
    largest_penalty_ : float
        Largest useful one, as found by search (exact for at most two inputs).
    value_ : float
        The objective.
    lower_bound_ : float or None
        Proven bound below which no network of any width is.
    gap_ : float or None
        Relative distance of the two.
    certificate_ : Certificate or None
        How the bound was proven.
    n_iter_ : int
        Insertions done.
    n_features_in_ : int
        Features seen.

    Notes
    -----
    Neurons that violate the dual are inserted, the network descends by L-BFGS, and the convex
    program on its own activation patterns polishes it (Pilanci and Ergen, arXiv 2002.10553). What
    is proven is the gap: see `certify_network`. Rows should be scaled: the penalty is not
    invariant under the scale of single features.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import ConvexReLURegressor
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> model = ConvexReLURegressor(penalty=1e-3).fit(X, np.abs(X[:, 0]))
    >>> model.network_.n_neurons <= 4, model.gap_ < 1e-4
    (True, True)
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConvexReLURegressor:
        """Train and certify.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Targets.

        Returns
        -------
        ConvexReLURegressor
            The fitted estimator.

        Raises
        ------
        InvalidParameterError
            If a setting is out of range.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], y_numeric=True)
        targets = np.asarray(y, dtype=np.float64)
        check_magnitudes(X=X, y=targets)
        center = targets - targets.mean() if self.fit_intercept else targets
        unit = float(np.sqrt(np.mean(center**2))) or 1.0
        self._train(np.asarray(X, dtype=np.float64), targets, loss_of("squared"), unit)
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
        rows = self._read(X)
        return np.asarray(self.network_.predict(rows))


class ConvexReLUClassifier(ClassifierMixin, _ConvexReLU):
    r"""Two-layer ReLU classification of two classes with a proven gap over every width.

    The mean logistic loss of f with :math:`\lambda \sum_j |w_j| \|(u_j, b_j)\|`.

    Parameters
    ----------
    penalty : float or None, default=None
        Weight of sum_j |w_j| |(u_j, b_j)|. None takes a hundredth of the largest useful one, at
        which the network becomes zero. Must be positive.
    fit_intercept : bool, default=True
        Whether a constant, never penalized, is added to the output.
    fit_bias : bool, default=True
        Whether neurons have biases, penalized like their weights.
    max_neurons : int or None, default=None
        Most neurons; None means as many as help.
    max_iter : int, default=60
        Most insertions of neurons.
    tol : float, default=1e-8
        How far a neuron may violate the dual, relative to `penalty`, and not be inserted.
    time_limit : float or None, default=None
        Seconds after which no further insertion begins.
    certify : bool, default=True
        Whether to compute the gap; needs the extra `convex` for the tight bound.
    random_state : int, RandomState or None, default=None
        Source of the starts of the search for neurons.

    Attributes
    ----------
    network_ : TwoLayerReLU
        The network.
    penalty_ : float
        The penalty that was used.
    largest_penalty_ : float
        Largest useful one, as found by search (exact for at most two inputs).
    value_ : float
        The objective.
    lower_bound_ : float or None
        Proven bound below which no network of any width is.
    gap_ : float or None
        Relative distance of the two.
    certificate_ : Certificate or None
        How the bound was proven.
    n_iter_ : int
        Insertions done.
    n_features_in_ : int
        Features seen.
    classes_ : ndarray of shape (2,)
        The two classes.

    Notes
    -----
    See `ConvexReLURegressor`.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import ConvexReLUClassifier
    >>> X = np.linspace(-1, 1, 30)[:, None]
    >>> inside = np.abs(X[:, 0]) < 0.5
    >>> model = ConvexReLUClassifier(penalty=1e-3).fit(X, inside)
    >>> model.score(X, inside), model.gap_ < 1e-4
    (1.0, True)
    """

    def __sklearn_tags__(self) -> Any:
        """Say that there are two classes only."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> ConvexReLUClassifier:
        """Train and certify.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,)
            Two classes.

        Returns
        -------
        ConvexReLUClassifier
            The fitted estimator.

        Raises
        ------
        InvalidParameterError
            If a setting is out of range.
        DataError
            If there are not two classes.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_magnitudes(X=X)
        self.classes_, codes = read_classes(y)
        if len(self.classes_) != 2:
            raise DataError(
                "Only binary classification is supported. The type of the target is "
                f"{'multiclass' if len(self.classes_) > 2 else 'one class'}: y has "
                f"{len(self.classes_)} class{'es' if len(self.classes_) > 1 else ''}.",
                "Use scikit-learn's OneVsRestClassifier for more than two.",
            )
        self._train(
            np.asarray(X, dtype=np.float64),
            np.asarray(2.0 * codes - 1.0, dtype=np.float64),
            loss_of("logistic"),
            1.0,
        )
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the log-odds of the second class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            The outputs of the network.
        """
        rows = self._read(X)
        return np.asarray(self.network_.predict(rows))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the probabilities of the two classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, 2)
            They add up to one.
        """
        second = expit(self.decision_function(X))
        return np.column_stack([1.0 - second, second])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the more likely class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Classes.
        """
        above = self.decision_function(X) > 0
        return np.asarray(self.classes_[above.astype(int)])
