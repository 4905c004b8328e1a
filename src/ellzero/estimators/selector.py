"""Feature selection in pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone  # noqa: TID253
from sklearn.exceptions import NotFittedError  # noqa: TID253
from sklearn.feature_selection import SelectorMixin  # noqa: TID253
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: TID253

from ellzero.errors import DataError, IncompatibleError
from ellzero.estimators import inputs
from ellzero.estimators.base import AbstractL0Estimator
from ellzero.estimators.classification import L0Classifier
from ellzero.estimators.regression import L0Regressor


class L0Selector(SelectorMixin, MetaEstimatorMixin, BaseEstimator):
    """Selection of the features that a model with a budget chooses.

    Parameters
    ----------
    estimator : estimator of this package or None, default=None
        The model. None takes `L0Classifier` where y holds text, booleans or categories, and
        `L0Regressor` otherwise.
    n_nonzero_coefs : int, float, sequence of these, "auto" or None, default=None
        Budget, in place of that of `estimator`; None keeps it.
    prefit : bool, default=False
        Whether `estimator` is fitted already; then `fit` looks at nothing but its features.

    Attributes
    ----------
    estimator_ : estimator
        The fitted model.
    n_features_in_ : int
        Number of features in `fit`.
    feature_names_in_ : ndarray of str
        Their names, where X has names.

    See Also
    --------
    L0Regressor, L0Classifier, L0RegressorCV : Models to choose with.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from ellzero import L0Selector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> y = 3 * X[:, 4] - 2 * X[:, 7] + rng.standard_normal(100)
    >>> pipeline = make_pipeline(L0Selector(n_nonzero_coefs=2), LinearRegression()).fit(X, y)
    >>> pipeline[0].get_support(indices=True).tolist()
    [4, 7]
    """

    def __init__(
        self, estimator: Any = None, *, n_nonzero_coefs: Any = None, prefit: bool = False
    ) -> None:
        self.estimator = estimator
        self.n_nonzero_coefs = n_nonzero_coefs
        self.prefit = prefit

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.target_tags.required = not self.prefit
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Fit the model, or look at the one that is fitted already.

        Parameters
        ----------
        X : array, sparse matrix or data frame of shape (n_samples, n_features)
            Features.
        y : array of shape (n_samples,) or None, default=None
            Target; needed unless `prefit`.
        sample_weight : array of shape (n_samples,) or None, default=None
            Weight of every sample.

        Returns
        -------
        self
            The fitted selector.

        Raises
        ------
        DataError
            If the data cannot be used.
        IncompatibleError
            If `estimator` is not one of this package.
        """
        if self.estimator is not None and not isinstance(self.estimator, AbstractL0Estimator):
            raise IncompatibleError(
                f"`estimator` must be an estimator of ellzero, got "
                f"{type(self.estimator).__name__}.",
                "Use sklearn.feature_selection.SelectFromModel for others.",
            )
        if self.prefit:
            self._take_fitted(X)
            return self
        if y is None:
            raise DataError(
                f"This {type(self).__name__} estimator requires y to be passed, but the target y "
                "is None."
            )
        model = self._default(y) if self.estimator is None else clone(self.estimator)
        if self.n_nonzero_coefs is not None:
            model.set_params(n_nonzero_coefs=self.n_nonzero_coefs)
        self.estimator_ = model.fit(X, y, sample_weight=sample_weight)
        self._copy_features()
        return self

    def _take_fitted(self, X: Any) -> None:
        """Check the fitted estimator against the features."""
        if self.estimator is None:
            raise IncompatibleError("`prefit=True` needs a fitted `estimator`, got None.")
        try:
            check_is_fitted(self.estimator)
        except NotFittedError:
            raise NotFittedError(
                f"`prefit=True` needs a fitted `estimator`, got {type(self.estimator).__name__} "
                "that is not fitted."
            ) from None
        validate_data(self.estimator, X, reset=False, skip_check_array=True)
        self.estimator_ = self.estimator
        self._copy_features()

    def _copy_features(self) -> None:
        """Take number and names of the features from the model."""
        self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    @staticmethod
    def _default(y: Any) -> Any:
        """Return the model for a target."""
        if inputs.is_tensor(y):
            return L0Classifier() if "bool" in str(y.dtype) else L0Regressor()
        kind = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y).dtype.kind
        if kind == "O":
            first = next(iter(np.asarray(y, dtype=object).ravel()), None)
            kind = "U" if isinstance(first, str | bytes | bool) else "f"
        return L0Classifier() if kind in "USb" else L0Regressor()

    def _get_support_mask(self) -> Any:
        """Return which features are chosen."""
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[self.estimator_.selected_features_] = True
        return mask
