"""Huber regression with a budget on coefficients."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin  # noqa: TID253

from ellzero.errors import DataError
from ellzero.estimators.base import AbstractL0Estimator, Choice, Training
from ellzero.estimators.crossvalidation import AbstractL0CV
from ellzero.estimators.documents import document
from ellzero.estimators.inputs import Floats, Integers
from ellzero.estimators.regression import read_column
from ellzero.validation import check_real

# Makes the median absolute deviation of normal numbers their standard deviation.
NORMAL = 1.4826


# Magnitude of which squares, and sums of many, are in the range of float64.
LARGEST = 1e150


class AbstractHuber(RegressorMixin, AbstractL0Estimator):
    """What Huber regression with and without cross-validation share."""

    epsilon: float
    scale_: float

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_real("epsilon", self.epsilon, 0.0, open_low=True)

    def _loss(self) -> str:
        return "huber"

    def _options(self) -> dict[str, Any]:
        return {"delta": float(self.epsilon) * self.scale_}

    def _read_target(self, y: Any, n_samples: int) -> Any:
        target = read_column(y)
        largest = float(abs(target).max(initial=0.0))
        if largest > LARGEST:
            raise DataError(
                f"`y` must have its largest magnitude up to {LARGEST:g}, got {largest:g}.",
                "Divide it by that: the loss is made of squares.",
            )
        return target

    def predict(self, X: Any) -> Any:
        """Return the predictions of new samples.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,)
            Predictions.
        """
        return self._scores(X)[:, 0]


@document
class L0HuberRegressor(AbstractHuber):
    r"""Regression with a budget on coefficients that outliers hardly move.

    .. math:: \min_{b, b_0} \frac1N \sum_i w_i\, h_\delta(y_i - x_i^T b - b_0)
        + \frac\lambda2 \sum_j s_j^2 b_j^2 \quad \text{with } \|b\|_0 \le k

    where :math:`h_\delta(r) = r^2/2` up to :math:`\delta` and :math:`\delta |r| - \delta^2/2`
    beyond, k is `n_nonzero_coefs`, :math:`\lambda` is `ridge` and :math:`s_j` the standard
    deviation of feature j (1 without `standardize`). The threshold :math:`\delta` is `epsilon`
    times a scale, `scale_`, which is that of the residuals: it starts at the median absolute
    deviation of y and is estimated again at the model found, twice.

    [parameters]

    [attributes]
    scale_ : float
        Estimated scale of the residuals; beyond `epsilon` times it the loss is linear.

    See Also
    --------
    L0HuberRegressorCV : The same with cross-validation.
    L0Regressor : Least squares.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0HuberRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 20))
    >>> y = 2 * X[:, 3] - X[:, 8] + 0.1 * rng.standard_normal(200)
    >>> y[:20] += 50
    >>> model = L0HuberRegressor(2).fit(X, y)
    >>> model.support_.tolist(), model.coef_[[3, 8]].round(1).tolist()
    ([3, 8], [2.0, -1.0])
    """

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        epsilon: float = 1.35,
        criterion: str = "ebic",
        ebic_gamma: float = 1.0,
        ridge: Any = 0.0,
        standardize: bool = True,
        fit_intercept: bool = True,
        always: Any = None,
        forbidden: Any = None,
        groups: Any = None,
        nonnegative: bool = False,
        lower: Any = None,
        upper: Any = None,
        solver: str = "auto",
        effort: str = "normal",
        max_iter: int = 1_000_000,
        tol: float = 1e-6,
        time_limit: float | None = None,
        certify: Any = True,
    ) -> None:
        super().__init__(
            n_nonzero_coefs,
            criterion=criterion,
            ebic_gamma=ebic_gamma,
            ridge=ridge,
            standardize=standardize,
            fit_intercept=fit_intercept,
            always=always,
            forbidden=forbidden,
            groups=groups,
            nonnegative=nonnegative,
            lower=lower,
            upper=upper,
            solver=solver,
            effort=effort,
            max_iter=max_iter,
            tol=tol,
            time_limit=time_limit,
            certify=certify,
        )
        self.epsilon = epsilon

    def _choose(self, data: Training) -> Choice:
        y = data.y
        self.scale_ = spread(y, data.weight)
        choice = super()._choose(data)
        for _ in range(2):
            residual = y - choice.job.scores(choice.subset)[:, 0]
            # Residuals below rounding are an exact fit: any threshold does.
            scale = max(spread(residual, data.weight), 1e-9 * self.scale_)
            if abs(scale - self.scale_) <= 1e-3 * self.scale_:
                break
            self.scale_ = scale
            choice = super()._choose(data)
        return choice


@document
class L0HuberRegressorCV(AbstractL0CV, AbstractHuber):
    r"""Huber regression with a budget; size and ridge by cross-validation.

    The problem is that of `L0HuberRegressor`, which first finds the scale of the residuals; all
    folds, all scores and the final model then use the same threshold.

    [parameters]

    [attributes]
    scale_ : float
        Estimated scale of the residuals; beyond `epsilon` times it the loss is linear.

    See Also
    --------
    L0HuberRegressor : The same with an information criterion.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0HuberRegressorCV
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((200, 10))
    >>> y = 2 * X[:, 3] - X[:, 8] + 0.1 * rng.standard_normal(200)
    >>> y[:20] += 50
    >>> L0HuberRegressorCV(range(1, 5), ridge=0.0).fit(X, y).support_.tolist()
    [3, 8]
    """

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        epsilon: float = 1.35,
        ridge: Any = "auto",
        cv: Any = 5,
        scoring: Any = None,
        rule: str = "best",
        n_jobs: int | None = None,
        standardize: bool = True,
        fit_intercept: bool = True,
        always: Any = None,
        forbidden: Any = None,
        groups: Any = None,
        nonnegative: bool = False,
        lower: Any = None,
        upper: Any = None,
        solver: str = "auto",
        effort: str = "normal",
        max_iter: int = 1_000_000,
        tol: float = 1e-6,
        time_limit: float | None = None,
        certify: Any = True,
    ) -> None:
        super().__init__(
            n_nonzero_coefs,
            ridge=ridge,
            cv=cv,
            scoring=scoring,
            rule=rule,
            n_jobs=n_jobs,
            standardize=standardize,
            fit_intercept=fit_intercept,
            always=always,
            forbidden=forbidden,
            groups=groups,
            nonnegative=nonnegative,
            lower=lower,
            upper=upper,
            solver=solver,
            effort=effort,
            max_iter=max_iter,
            tol=tol,
            time_limit=time_limit,
            certify=certify,
        )
        self.epsilon = epsilon

    def _cross_validate(self, data: Training, splits: list[tuple[Integers, Integers]]) -> Choice:
        plain = L0HuberRegressor(
            self.n_nonzero_coefs,
            epsilon=self.epsilon,
            ridge=self._ridges()[0],
            standardize=self.standardize,
            fit_intercept=self.fit_intercept,
            always=self.always,
            forbidden=self.forbidden,
            groups=self.groups,
            nonnegative=self.nonnegative,
            lower=self.lower,
            upper=self.upper,
            effort="fast",
            time_limit=self.time_limit,
        )
        plain._choose(data)
        self.scale_ = plain.scale_
        return super()._cross_validate(data, splits)


def spread(values: Floats, weight: Floats | None) -> float:
    """Return the median absolute deviation, in units of a standard deviation."""
    w = np.ones(values.size) if weight is None else weight
    middle = weighted_median(values, w)
    out = NORMAL * weighted_median(np.abs(values - middle), w)
    if out > 0:
        return out
    # More than half of the values are equal.
    out = float(np.sqrt(np.average((values - middle) ** 2, weights=w)))
    return out if out > 0 else 1.0


def weighted_median(values: Floats, weight: Floats) -> float:
    """Return the middle of values that appear as often as their weights say."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weight[order])
    half = 0.5 * total[-1]
    low = int(np.searchsorted(total, half * (1 - 1e-12)))
    high = int(np.searchsorted(total, half * (1 + 1e-12)))
    high = min(high, values.size - 1)
    return float(0.5 * (values[order[low]] + values[order[high]]))
