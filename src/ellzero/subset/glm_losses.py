"""Minimization of a loss on a few columns: what the search solves over and over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from typing_extensions import override

from ellzero.kernels import glm_newton
from ellzero.subset.results import Floats

MAX_ITER = 100


@dataclass(frozen=True, slots=True)
class Fit:
    """Minimizer on some columns, and the quadratic model there.

    Parameters
    ----------
    value : float
        Mean loss plus ridge.
    beta : ndarray of shape (k, m)
        Coefficients.
    residual : ndarray of shape (n_samples, m)
        Weighted negative gradient of the loss in the scores.
    curvature : ndarray of shape (n_samples,)
        Weighted curvature of the loss in the scores, the same for all m.
    hessian : ndarray of shape (k, k)
        Hessian in the coefficients, one for all m.
    status : int
        As `kernels.glm_newton.minimize` returns it.
    n_iter : int
        Newton steps.
    """

    value: float
    beta: Floats
    residual: Floats
    curvature: Floats
    hessian: Floats
    status: int
    n_iter: int

    @property
    def is_far(self) -> bool:
        """Whether the minimizer may lie at infinity."""
        return self.status in (glm_newton.SEPARATED, glm_newton.FAR)


@dataclass(frozen=True, slots=True)
class Terms:
    """Ridge and bounds of the columns of a fit, in their scale; shape (k,) each."""

    ridge: Floats
    lower: Floats
    upper: Floats


class AbstractLoss(ABC):
    """A loss with its target and weights."""

    n_outputs: int
    """Scores of a sample, m."""

    @abstractmethod
    def minimize(self, rows: Floats, terms: Terms, start: Floats, stop: float = np.inf) -> Fit:
        """Minimize over the coefficients of some columns.

        Parameters
        ----------
        rows : ndarray of shape (k, n_samples)
            Columns, a constant one among them where there is an intercept.
        terms : Terms
            Ridge and bounds.
        start : ndarray of shape (k, m)
            First coefficients.
        stop : float, default=inf
            Give up once the minimum is sure to be above.
        """


@final
class ScalarLoss(AbstractLoss):
    """Logistic, Poisson or Huber loss.

    Parameters
    ----------
    kind : int
        As in `kernels.glm_newton`.
    y, weight : ndarray of shape (n_samples,)
        Target, and weights that add up to 1.
    delta : float
        Where the Huber loss turns linear.
    """

    n_outputs = 1

    def __init__(self, kind: int, y: Floats, weight: Floats, delta: float = 1.35) -> None:
        self.kind = kind
        self.y = y
        self.weight = weight
        self.delta = delta
        self.floor = 0.0

    @override
    def minimize(self, rows: Floats, terms: Terms, start: Floats, stop: float = np.inf) -> Fit:
        k, n = rows.shape
        beta = np.array(start[:, 0])
        residual, curvature, hessian = np.empty(n), np.empty(n), np.empty((k, k))
        value, status, n_iter = glm_newton.minimize(
            self.kind,
            rows,
            self.y,
            self.weight,
            terms.ridge,
            terms.lower,
            terms.upper,
            self.delta,
            stop,
            self.floor,
            MAX_ITER,
            beta,
            residual,
            curvature,
            hessian,
        )
        return Fit(
            value, beta[:, None], residual[:, None], curvature, hessian, int(status), int(n_iter)
        )
