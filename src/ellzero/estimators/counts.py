"""Poisson regression with a budget on coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin  # noqa: TID253

from ellzero.errors import DataError
from ellzero.estimators import inputs
from ellzero.estimators.base import AbstractL0Estimator
from ellzero.estimators.documents import document
from ellzero.estimators.regression import read_column


class AbstractPoisson(RegressorMixin, AbstractL0Estimator):
    """What Poisson models with and without cross-validation share."""

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn may expect."""
        tags = super().__sklearn_tags__()
        tags.target_tags.positive_only = True
        return tags

    def _loss(self) -> str:
        return "poisson"

    def _read_target(self, y: Any, n_samples: int) -> Any:
        target = read_column(y)
        if (target < 0).any():
            raise DataError(
                f"`y` must hold counts, which are not negative, got {target.min():g}.",
                "Use `L0Regressor` for numbers of either sign.",
            )
        if target.size and target.max() > 2**53:
            raise DataError(
                f"`y` must hold counts of at most 2^53, got {target.max():g}.",
                "Count in larger units.",
            )
        return target

    def _prepare(self, y: Any) -> Any:
        if not y.any():
            raise DataError("`y` must hold a positive count, got zeros only.")
        return y

    def predict(self, X: Any) -> Any:
        """Return the expected counts of new samples.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            The exponentials of the linear predictor.
        """
        scores = self._scores(X)[:, 0]
        if inputs.is_tensor(scores):
            return scores.exp()
        with np.errstate(over="ignore"):
            return np.exp(scores)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of the Poisson deviance that is explained.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.
        y : array of shape (n_samples,)
            Counts.
        sample_weight : array of shape (n_samples,) or None, default=None
            Weights.

        Returns
        -------
        float
            1 for a perfect model, 0 for the mean, perhaps negative.
        """
        from sklearn.metrics import d2_tweedie_score

        mean, counts = inputs.to_numpy(self.predict(X)), inputs.to_numpy(y)
        if counts.size and (counts == counts.flat[0]).all():
            # Nothing to explain: as R^2 has it in scikit-learn.
            return 1.0 if np.allclose(mean, counts, rtol=1e-6, atol=1e-12) else 0.0
        return float(d2_tweedie_score(counts, mean, sample_weight=sample_weight, power=1))


@document
class L0PoissonRegressor(AbstractPoisson):
    r"""Poisson regression of counts with a budget on coefficients.

    .. math:: \min_{b, b_0} \frac1N \sum_i w_i \left( e^{u_i} - y_i u_i - y_i
        + y_i \log y_i \right) + \frac\lambda2 \sum_j s_j^2 b_j^2
        \quad \text{with } u_i = x_i^T b + b_0 \text{ and } \|b\|_0 \le k

    where k is `n_nonzero_coefs`, :math:`\lambda` is `ridge` and :math:`s_j` the standard deviation
    of feature j (1 without `standardize`).

    [parameters]

    [attributes]

    See Also
    --------
    L0PoissonRegressorCV : The same with cross-validation.
    L0Regressor : Least squares.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0PoissonRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((300, 20))
    >>> y = rng.poisson(np.exp(1 + 0.5 * X[:, 3] - 0.5 * X[:, 8]))
    >>> L0PoissonRegressor().fit(X, y).support_.tolist()
    [3, 8]
    """
