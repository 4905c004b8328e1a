"""Least squares with a budget on coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin  # noqa: TID253

from ellzero.errors import DataError
from ellzero.estimators.base import AbstractL0Estimator
from ellzero.estimators.documents import document


class AbstractRegression(MultiOutputMixin, RegressorMixin, AbstractL0Estimator):
    """What least squares with and without cross-validation share."""

    def _loss(self) -> str:
        return "squared"

    def _read_target(self, y: Any, n_samples: int) -> Any:
        target = read_numbers(y)
        if target.ndim not in (1, 2):
            raise DataError(f"`y` must have 1 or 2 axes, got shape {target.shape}.")
        return target

    def _prepare(self, y: Any) -> Any:
        self._flat = y.ndim == 1
        return y.reshape(-1, 1) if self._flat else y

    def _shape_coef(self, coef: Any) -> Any:
        return coef[0] if self._flat else coef

    def _shape_intercept(self, intercept: Any) -> Any:
        return intercept[0] if self._flat else intercept

    def predict(self, X: Any) -> Any:
        """Return the predictions of new samples.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,) or (n_samples, n_outputs)
            Predictions; a tensor on the same device where X is one.
        """
        scores = self._scores(X)
        return scores[:, 0] if self._flat else scores


@document
class L0Regressor(AbstractRegression):
    r"""Least squares with a budget on coefficients.

    .. math:: \min_{b, b_0} \frac{1}{2N} \sum_i w_i (y_i - x_i^T b - b_0)^2
        + \frac\lambda2 \sum_j s_j^2 b_j^2 \quad \text{with } \|b\|_0 \le k

    where k is `n_nonzero_coefs`, :math:`\lambda` is `ridge`, :math:`s_j` the standard deviation of
    feature j (1 without `standardize`), :math:`w_i` the weights and N their sum. A target with
    several columns gets a model whose columns share the chosen features.

    [parameters]

    [attributes]

    See Also
    --------
    L0RegressorCV : The same with cross-validation of size and ridge.
    L0HuberRegressor : A loss that outliers hardly move.

    Notes
    -----
    The best subset is the better model where the signal is strong. Where it is weak the lasso
    predicts better than the best subset alone, because shrinkage lowers variance: then give some
    `ridge`, or let `L0RegressorCV` choose it. For more features than samples without ridge the
    certificate says that no exchange of one feature improves the model; a lower bound on all
    models then says nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0Regressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((100, 20))
    >>> y = 3 * X[:, 4] - 2 * X[:, 7] + rng.standard_normal(100)
    >>> model = L0Regressor().fit(X, y)
    >>> model.support_.tolist(), model.certificate_.claim.name
    ([4, 7], 'OPTIMAL')
    >>> L0Regressor(3).fit(X, y).support_.size
    3
    """


def read_column(y: Any) -> Any:
    """Return one number for each sample in float64, or raise."""
    from sklearn.utils.validation import column_or_1d

    out = read_numbers(y)
    if out.ndim == 2 and out.shape[1] > 1:
        raise DataError(
            f"y should be a 1d array, got an array of shape {out.shape} instead.",
            "Fit one model for each target; `L0Regressor` takes several.",
        )
    return column_or_1d(out, warn=True)


def read_numbers(y: Any) -> Any:
    """Return a target of numbers in float64, or raise."""
    if hasattr(y, "to_numpy"):
        y = y.to_numpy()
    if hasattr(y, "toarray"):
        raise DataError("`y` must be dense, got a sparse matrix.", "Pass `y.toarray()`.")
    array = np.asarray(y)
    if array.dtype.kind == "c":
        raise DataError("Complex data not supported: `y` must hold real numbers.")
    try:
        out = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            "`y` must hold numbers, got labels or text.", "Use `L0Classifier` for labels."
        ) from None
    bad = int((~np.isfinite(out)).sum())
    if bad:
        raise DataError(
            f"`y` must be finite, got NaN or infinity (inf) in {bad} entries.",
            "Drop these samples first.",
        )
    return out
