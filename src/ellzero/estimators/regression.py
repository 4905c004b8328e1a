"""Least squares with a budget on coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import MultiOutputMixin, RegressorMixin  # noqa: TID253

from ellzero.errors import DataError
from ellzero.estimators import inputs
from ellzero.estimators.base import AbstractL0Estimator


class L0Regressor(MultiOutputMixin, RegressorMixin, AbstractL0Estimator):
    """Least squares with a budget on coefficients."""

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
