"""What the estimators know of each loss: search, value on data, deviance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from ellzero.estimators import inputs
from ellzero.estimators.criteria import gaussian_deviance
from ellzero.estimators.inputs import Floats, Integers
from ellzero.estimators.options import Shape
from ellzero.subset.inner import AbstractGram
from ellzero.subset.reading import column_moments
from ellzero.subset.results import Subset, SubsetPath


@dataclass(frozen=True, slots=True)
class Found:
    """Outcome of a search.

    Parameters
    ----------
    path : SubsetPath
        The models.
    ridge : float or ndarray of shape (n_columns,)
        The lambda that every coefficient had.
    gram : AbstractGram or None
        Inner products that the search used, for least squares.
    """

    path: SubsetPath
    ridge: float | Floats
    gram: AbstractGram | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A search, ready to run.

    Parameters
    ----------
    loss : {"squared", "logistic", "softmax", "poisson", "huber"}
        Loss of one sample.
    X : ndarray, sparse matrix or Tensor of shape (n_samples, n_columns)
        Features, all samples with positive weight.
    y : ndarray
        Targets (n_samples, n_outputs) for least squares, codes of classes, or numbers.
    weight : ndarray of shape (n_samples,) or None
        Sample weights.
    shape : Shape
        Models that are allowed.
    fit_intercept : bool
        Whether there is an intercept.
    ridge : float
        Lambda of the ridge.
    standardize : bool
        Whether the ridge is on coefficients of columns with unit variance.
    effort : str
        Name of an `Effort`.
    time_limit : float or None
        Seconds.
    options : mapping
        More arguments of the loss.
    n_classes : int, default=0
        Number of classes, for classifiers.
    """

    loss: str
    X: Any
    y: Any
    weight: Floats | None
    shape: Shape
    fit_intercept: bool
    ridge: float
    standardize: bool
    effort: str
    time_limit: float | None
    options: dict[str, Any]
    n_classes: int = 0

    @property
    def n_samples(self) -> float:
        """Number of samples, or the sum of their weights."""
        return float(self.X.shape[0] if self.weight is None else self.weight.sum())

    @property
    def n_outputs(self) -> int:
        """Number of linear predictors."""
        if self.loss == "squared":
            return int(self.y.shape[1])
        return self.n_classes if self.loss == "softmax" else 1

    @property
    def n_free(self) -> int:
        """Free coefficients that one chosen column brings."""
        return self.n_outputs - 1 if self.loss == "softmax" else self.n_outputs

    def take(self, rows: Integers) -> Job:
        """Return the search on some of the samples."""
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, X=inputs.take_rows(self.X, rows), y=self.y[rows], weight=weight)

    def limits(self) -> dict[str, Any]:
        """Return the arguments that all searches share."""
        from ellzero.subset.effort import Effort

        return {
            "always": self.shape.always,
            "forbidden": self.shape.forbidden,
            "groups": self.shape.groups,
            "lower": self.shape.lower,
            "upper": self.shape.upper,
            "effort": Effort.of(self.effort),
            "time_limit": self.time_limit,
        }

    def run(self, budgets: Integers) -> Found:
        """Search for the best model of every budget."""
        if self.loss == "squared":
            return self.run_on(self.gram(), budgets)
        from ellzero.subset.glm import search_glm

        ridge = self.ridge_per_column(None)
        path = search_glm(
            self.X,
            self.y,
            self.loss,
            budgets.tolist(),
            sample_weight=self.weight,
            ridge=ridge,
            fit_intercept=self.fit_intercept,
            **self.limits(),
            **self.options,
        )
        if self.loss == "softmax":
            subsets = tuple(_centered(s, coef=not self.shape.bounded) for s in path.subsets)
            path = replace(path, subsets=subsets)
        return Found(path, ridge)

    def gram(self) -> AbstractGram:
        """Return the inner products of least squares."""
        from ellzero.subset.gram import gram_of

        return gram_of(self.X, self.y, sample_weight=self.weight, fit_intercept=self.fit_intercept)

    def run_on(self, gram: AbstractGram, budgets: Integers) -> Found:
        """Search on a Gram matrix that is there already."""
        from ellzero.subset.search import search

        ridge = self.ridge_per_column(gram)
        path = search(gram, budgets.tolist(), ridge=ridge, **self.limits())
        return Found(path, ridge, gram)

    def ridge_per_column(self, gram: AbstractGram | None) -> float | Floats:
        """Return the ridge of every coefficient in the units of the columns."""
        if self.ridge == 0.0 or not self.standardize:
            return self.ridge
        if gram is not None:
            return np.asarray(self.ridge * gram.diagonal / gram.n_samples)
        n = int(self.X.shape[0])
        weight = np.ones(n) if self.weight is None else self.weight
        _, squares = column_moments(self.X, weight, center=self.fit_intercept)
        return np.asarray(self.ridge * squares / self.n_samples)

    def scores(self, subset: Subset) -> Floats:
        """Return the linear predictor of a model, (n_samples, n_outputs)."""
        used = inputs.take_columns(self.X, subset.support)
        used = inputs.to_numpy(used)
        return np.asarray(used @ subset.coef) + subset.intercept

    def deviance(self, found: Found) -> Floats:
        """Return minus twice the log-likelihood of every model, up to a constant."""
        losses = self.losses_of(found)
        n = self.n_samples
        if self.loss == "squared":
            target = np.asarray(self.y, dtype=np.float64)
            weight = np.ones(target.shape[0]) if self.weight is None else self.weight
            center = np.average(target, axis=0, weights=weight) if self.fit_intercept else 0.0
            total = float((weight[:, None] * (target - center) ** 2).sum())
            return gaussian_deviance(2 * n * losses, total, n, self.n_outputs)
        if self.loss == "huber":
            # The scale is estimated as that of least squares is; Machado (1993), section 3.
            floor = max(float(losses.max()), np.finfo(np.float64).tiny) * 1e-20
            return np.asarray(n * np.log(np.maximum(losses, floor)))
        return 2 * n * losses

    def losses_of(self, found: Found) -> Floats:
        """Return the mean loss of every model, the ridge taken out."""
        path, ridge = found.path, found.ridge
        out = []
        for subset in path.subsets:
            part = ridge if np.ndim(ridge) == 0 else np.asarray(ridge)[subset.support, None]
            out.append(subset.value - 0.5 * float((part * subset.coef**2).sum()))
        losses = np.array(out)
        if self.loss == "squared":
            # What Gram matrices leave of a small residual is rounding: compute it from the data.
            small = losses <= 1e-9 * max(float(losses.max()), np.finfo(np.float64).tiny)
            for i in np.flatnonzero(small):
                losses[i] = self.mean_loss(self.scores(path.subsets[i]))
        return losses

    def mean_loss(self, scores: Floats) -> float:
        """Return the mean loss of linear predictors."""
        return float(np.average(sample_losses(self, scores), weights=self.weight))


def _centered(subset: Subset, *, coef: bool) -> Subset:
    """Return the same softmax model with scores that sum to zero over the classes.

    A constant added to all classes changes no probability; taking it out makes models comparable.
    """
    intercept = subset.intercept - subset.intercept.mean()
    if not coef:
        return replace(subset, intercept=intercept)
    return replace(
        subset, intercept=intercept, coef=subset.coef - subset.coef.mean(axis=1, keepdims=True)
    )


def sample_losses(job: Job, scores: Floats) -> Floats:
    """Return the loss of every sample."""
    y = job.y
    if job.loss == "squared":
        return np.asarray(0.5 * ((scores - y) ** 2).sum(axis=1))
    u = scores[:, 0]
    if job.loss == "logistic":
        return np.asarray(np.logaddexp(0.0, np.where(y > 0, -u, u)))
    if job.loss == "softmax":
        logs = special.log_softmax(scores, axis=1)
        return np.asarray(-logs[np.arange(y.shape[0]), y])
    if job.loss == "poisson":
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(u) - y * u - y + special.xlogy(y, y))
    delta = float(job.options["delta"])
    residual = np.abs(u - y)
    inside = residual <= delta
    return np.asarray(np.where(inside, 0.5 * residual**2, delta * (residual - 0.5 * delta)))
