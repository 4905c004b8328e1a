"""Logistic and softmax classification with a budget on features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special
from sklearn.base import ClassifierMixin  # noqa: TID253
from sklearn.utils.multiclass import type_of_target  # noqa: TID253
from sklearn.utils.validation import column_or_1d  # noqa: TID253

from ellzero.errors import DataError, InvalidParameterError
from ellzero.estimators import inputs
from ellzero.estimators.base import AbstractL0Estimator
from ellzero.estimators.documents import document
from ellzero.estimators.inputs import Floats
from ellzero.validation import check_real


class AbstractClassifier(ClassifierMixin, AbstractL0Estimator):
    """What classifiers with and without cross-validation share."""

    classes_: Any
    class_weight: Any

    def _loss(self) -> str:
        return "logistic" if len(self.classes_) == 2 else "softmax"

    def _read_target(self, y: Any, n_samples: int) -> Any:
        return read_labels(y)

    def _prepare(self, y: Any) -> Any:
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                "`y` must have at least two classes, got one class: "
                f"{self.classes_.tolist()[0]!r}.",
                "Check the labels; a constant target needs no model.",
            )
        return codes.reshape(-1)

    def _reweight(self, y: Any, weight: Floats | None) -> Floats | None:
        return class_weights(self.class_weight, self.classes_, y, weight)

    def _shape_coef(self, coef: Any) -> Any:
        return coef

    def _shape_intercept(self, intercept: Any) -> Any:
        return intercept

    def decision_function(self, X: Any) -> Any:
        """Return the scores of new samples.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples,) or (n_samples, n_classes)
            With two classes the log-odds of the second, else one score for each class.
        """
        scores = self._scores(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Any:
        """Return the most probable class of new samples.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels; a tensor on the device of X where X is one and labels are numbers.
        """
        scores = self.decision_function(X)
        codes = (scores > 0) * 1 if scores.ndim == 1 else scores.argmax(1)
        if inputs.is_tensor(codes) and self.classes_.dtype.kind in "biuf":
            import torch

            return torch.as_tensor(self.classes_).to(codes.device)[codes]
        return self.classes_[inputs.to_numpy(codes)]

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            Logarithms, in the order of `classes_`; finite for every finite score.
        """
        scores = self.decision_function(X)
        if inputs.is_tensor(scores):
            import torch

            if scores.ndim == 1:
                log = torch.nn.functional.logsigmoid
                return torch.stack([log(-scores), log(scores)], 1)
            return torch.log_softmax(scores, 1)
        if scores.ndim == 1:
            return -np.logaddexp(0.0, np.column_stack([scores, -scores]))
        return special.log_softmax(scores, axis=1)

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array, sparse matrix, data frame or Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_classes)
            Probabilities, in the order of `classes_`; each row sums to 1.
        """
        scores = self.decision_function(X)
        if inputs.is_tensor(scores):
            import torch

            if scores.ndim == 1:
                return torch.stack([torch.sigmoid(-scores), torch.sigmoid(scores)], 1)
            return torch.softmax(scores, 1)
        if scores.ndim == 1:
            return np.column_stack([special.expit(-scores), special.expit(scores)])
        return special.softmax(scores, axis=1)


@document
class L0Classifier(AbstractClassifier):
    r"""Logistic or softmax classification with a budget on features.

    .. math:: \min_{B, b_0} -\frac1N \sum_i w_i \log p_{i, y_i}
        + \frac\lambda2 \sum_j s_j^2 \|b_j\|^2 \quad \text{with at most } k
        \text{ features with } b_j \ne 0

    where p are the probabilities, by the logistic function for two classes and by the softmax for
    more, k is `n_nonzero_coefs`, :math:`\lambda` is `ridge` and :math:`s_j` the standard deviation
    of feature j (1 without `standardize`). A feature counts once, for all classes together.

    [parameters]

    [attributes]

    See Also
    --------
    L0ClassifierCV : The same with cross-validation of size and ridge.

    Notes
    -----
    A little ridge is the default because without it classes that some features separate have no
    best coefficients: the loss falls for ever as they grow. With `ridge=0` such data raise
    `SeparableError`, which names the features.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero import L0Classifier
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((300, 20))
    >>> y = np.where(X[:, 3] - X[:, 8] + 0.5 * rng.logistic(size=300) > 0, "yes", "no")
    >>> model = L0Classifier().fit(X, y)
    >>> model.support_.tolist(), model.predict(X[:3]).tolist()
    ([3, 8], ['yes', 'yes', 'no'])
    """

    def __init__(
        self,
        n_nonzero_coefs: Any = "auto",
        *,
        class_weight: Any = None,
        criterion: str = "ebic",
        ebic_gamma: float = 1.0,
        ridge: Any = 1e-3,
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
        self.class_weight = class_weight


def read_labels(y: Any) -> Any:
    """Return labels, one for each sample, or raise."""
    if hasattr(y, "to_numpy"):
        y = y.to_numpy()
    if np.asarray(y).dtype.kind == "c":
        raise DataError("Complex data not supported: `y` must hold labels.")
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        bad = int((~np.isfinite(labels)).sum())
        raise DataError(
            f"`y` must hold labels, got NaN or infinity (inf) in {bad} entries.",
            "Drop these samples first.",
        )
    if labels.dtype.kind == "O":
        missing = sum(inputs.is_missing(v) for v in labels)
        if missing:
            raise DataError(
                f"`y` must hold labels, got {missing} missing ones.", "Drop these samples first."
            )
    kind = type_of_target(labels, input_name="y", raise_unknown=True)
    if kind not in ("binary", "multiclass"):
        distinct = len(np.unique(labels))
        raise DataError(
            f"Unknown label type: {kind}. `y` must hold class labels, got {distinct} different "
            "numbers that are not integers.",
            "Use `L0Regressor` for numbers, or cut `y` into classes first.",
        )
    return labels


def class_weights(given: Any, classes: Any, codes: Any, weight: Floats | None) -> Floats | None:
    """Return the sample weights times those of their classes."""
    if given is None:
        return weight
    base = np.ones(codes.shape[0]) if weight is None else weight
    if isinstance(given, str):
        if given != "balanced":
            raise InvalidParameterError(
                f"`class_weight` must be a mapping of classes to weights, 'balanced' or None, "
                f"got {given!r}."
            )
        totals = np.bincount(codes, weights=base, minlength=len(classes))
        return np.asarray(base * (base.sum() / (len(classes) * totals))[codes])
    if not isinstance(given, Mapping):
        raise InvalidParameterError(
            f"`class_weight` must be a mapping of classes to weights, 'balanced' or None, "
            f"got {given!r}."
        )
    known = classes.tolist()
    factors = np.ones(len(known))
    for label, factor in given.items():
        if label not in known:
            raise InvalidParameterError(
                f"`class_weight` has a weight for {label!r}, which is not a class.",
                f"Classes: {', '.join(repr(c) for c in known[:10])}.",
            )
        factors[known.index(label)] = check_real("class_weight", factor, 0.0, open_low=True)
    return np.asarray(base * factors[codes])
