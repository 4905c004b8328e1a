"""Minimization of a loss on a few columns: what the search solves over and over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ellzero.kernels import glm_newton
from ellzero.subset.results import Floats, Integers

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
    residual : ndarray of shape (m, n_samples)
        Weighted negative gradient of the loss in the scores.
    curvature : ndarray of shape (n_samples,)
        Weighted curvature of the loss in the scores, the same for all m.
    inverse : ndarray of shape (k, k)
        Inverse of the Hessian in the coefficients, the same for all m.
    status : int
        As `kernels.glm_newton.minimize` returns it.
    """

    value: float
    beta: Floats
    residual: Floats
    curvature: Floats
    inverse: Floats
    status: int

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
    """Free scores of a sample, m."""
    floor: float
    """Decrease of the value that is below rounding."""

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

    @abstractmethod
    def constant(self) -> Floats:
        """Return scores near the best constant ones, shape (m,)."""

    @abstractmethod
    def directions(self, rows: Floats) -> Floats:
        """Return rows A such that the loss falls for ever along d where A d >= 0 and not all 0.

        The entries of d are those of the coefficients as `expand` gives them, flattened.
        """

    def expand(self, beta: Floats) -> Floats:
        """Return coefficients of shape (k, m) as the user sees them, (k, n_outputs)."""
        return beta


@final
class ScalarLoss(AbstractLoss):
    """Logistic, Poisson or Huber loss.

    Parameters
    ----------
    kind : int
        As in `kernels.glm_newton`.
    y, weight : ndarray of shape (n_samples,)
        Target, and weights that add up to 1.
    delta : float, default=1.35
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
        residual, curvature, inverse = np.empty(n), np.empty(n), np.empty((k, k))
        value, status, _ = glm_newton.minimize(
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
            inverse,
        )
        return Fit(value, beta[:, None], residual[None], curvature, inverse, int(status))

    @override
    def constant(self) -> Floats:
        mean = float(self.weight @ self.y)
        if self.kind == glm_newton.LOGISTIC:
            return np.array([np.log(mean) - np.log1p(-mean)])
        if self.kind == glm_newton.POISSON:
            return np.array([np.log(mean)])
        order = np.argsort(self.y, kind="stable")
        half = np.searchsorted(np.cumsum(self.weight[order]), 0.5)
        return self.y[order[min(int(half), order.size - 1)], None]

    @override
    def directions(self, rows: Floats) -> Floats:
        X = rows.T
        if self.kind == glm_newton.LOGISTIC:
            return np.where(self.y[:, None] > 0.5, X, -X)
        if self.kind == glm_newton.POISSON:
            # Scores of zero counts may fall for ever where those of the others stay.
            zero = self.y == 0
            return np.concatenate([-X[zero], X[~zero], -X[~zero]])
        return np.zeros((0, rows.shape[0]))


@final
class SoftmaxLoss(AbstractLoss):
    """Cross-entropy of a softmax, in coordinates in which the scores of all classes add up to 0.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,), int64
        Class of every sample, in [0, n_classes).
    weight : ndarray of shape (n_samples,)
        Weights that add up to 1.
    n_classes : int
        Number of classes.
    """

    def __init__(self, codes: Integers, weight: Floats, n_classes: int) -> None:
        self.codes = codes
        self.weight = weight
        self.n_outputs = n_classes - 1
        self.floor = 0.0
        # Orthonormal columns that add up to 0: the ridge is the same in both coordinates.
        basis = np.zeros((n_classes, n_classes - 1))
        for c in range(1, n_classes):
            basis[:c, c - 1] = 1
            basis[c, c - 1] = -c
            basis[:, c - 1] /= np.sqrt(c * (c + 1))
        self._basis = basis
        self._own = basis[codes]

    @override
    def expand(self, beta: Floats) -> Floats:
        return beta @ self._basis.T

    @override
    def constant(self) -> Floats:
        share = np.bincount(self.codes, self.weight, self._basis.shape[0])
        return np.asarray(np.log(share) @ self._basis)

    def _losses(self, U: Floats) -> tuple[float, Floats, NDArray[np.bool_]]:
        """Return the mean loss, the probabilities and which samples have the largest score."""
        scores = U @ self._basis.T
        own = np.take_along_axis(scores, self.codes[:, None], 1)
        scores -= own
        top = scores.max(axis=1, keepdims=True)
        P = np.exp(scores - top)
        total = P.sum(axis=1, keepdims=True)
        P /= total
        # The own score is 0 here, so that nothing cancels where it is the largest.
        value = float(self.weight @ (top + np.log(total))[:, 0])
        right = np.count_nonzero(scores >= 0, axis=1) == 1
        return value, P, right

    @override
    def minimize(self, rows: Floats, terms: Terms, start: Floats, stop: float = np.inf) -> Fit:
        k, m = start.shape
        ridge = terms.ridge[:, None]
        beta = np.array(start)
        loss, P, right = self._losses(rows.T @ beta)
        value = loss + 0.5 * float((ridge * np.square(beta)).sum())
        status = glm_newton.LIMIT
        step = np.zeros_like(beta)
        before = 0.0
        for _ in range(MAX_ITER + 1):
            residual = (self._own - P @ self._basis) * self.weight[:, None]
            gradient = ridge * beta - rows @ residual
            hessian = self._hessian(rows, P, terms.ridge)
            step = -_solve(hessian, gradient.ravel()).reshape(k, m)
            decrement = -0.5 * float((gradient * step).sum())
            if right.all() and not terms.ridge.any():
                status = glm_newton.SEPARATED
                break
            if not decrement > self.floor + 1e-15 * abs(value):
                status = glm_newton.CONVERGED
                break
            near = decrement < 0.1 * before
            if value - (glm_newton.NEAR if near else glm_newton.WIDE) * decrement > stop:
                status = glm_newton.ABORTED
                break
            before = decrement
            length = 1.0
            for _ in range(60):
                trial = beta + length * step
                there, P_there, right_there = self._losses(rows.T @ trial)
                there += 0.5 * float((ridge * np.square(trial)).sum())
                if there <= value - 2e-4 * length * decrement:
                    break
                length /= 2
            else:
                status = glm_newton.CONVERGED
                break
            beta, value, P, right = trial, there, P_there, right_there
        change = np.abs(rows.T @ step).max(initial=0.0)
        if status in (glm_newton.CONVERGED, glm_newton.LIMIT) and change > glm_newton.FAR_STEP:
            status = glm_newton.FAR
        residual = (self._own - P @ self._basis) * self.weight[:, None]
        # The mean over the m directions of the curvature of a sample.
        curvature = self.weight * (1 - np.square(P).sum(axis=1)) / m
        curvature = np.maximum(curvature, 1e-12 * self.weight)
        shared = (rows * curvature) @ rows.T + np.diag(terms.ridge)
        inverse = _inverse(shared)
        return Fit(value, beta, np.ascontiguousarray(residual.T), curvature, inverse, status)

    def _hessian(self, rows: Floats, P: Floats, ridge: Floats) -> Floats:
        """Return the Hessian in the flattened coefficients, (k m, k m)."""
        k, m = rows.shape[0], self.n_outputs
        blocks = np.stack([(rows * (self.weight * P[:, c])) @ rows.T for c in range(m + 1)])
        out = np.einsum("ci,cj,cab->aibj", self._basis, self._basis, blocks, optimize=True)
        mixed = (P @ self._basis) * np.sqrt(self.weight)[:, None]
        M = (rows.T[:, :, None] * mixed[:, None, :]).reshape(rows.shape[1], k * m)
        hessian = out.reshape(k * m, k * m) - M.T @ M
        hessian[np.diag_indices(k * m)] += np.repeat(ridge, m)
        return np.asarray(hessian)

    @override
    def directions(self, rows: Floats) -> Floats:
        C, k = self._basis.shape[0], rows.shape[0]
        parts = []
        for c in range(C):
            # Own score less that of class c, for the samples of other classes.
            other = self.codes != c
            hot = np.eye(C)[self.codes[other]] - np.eye(C)[c]
            parts.append((rows.T[other][:, :, None] * hot[:, None, :]).reshape(-1, k * C))
        return np.concatenate(parts)


def _solve(hessian: Floats, gradient: Floats) -> Floats:
    """Return the solution of a positive system; dependent directions get the shortest one."""
    if gradient.size == 0:
        return gradient
    size = np.sqrt(np.maximum(hessian.diagonal(), 0))
    size = np.where(size > 0, size, 1.0)
    unit = hessian / np.outer(size, size)
    unit[np.diag_indices_from(unit)] += 1e-14
    try:
        factor = np.linalg.cholesky(unit)
        if factor.diagonal().min() > 1e-6:
            return np.asarray(np.linalg.solve(unit, gradient / size) / size)
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(unit)
    inverse = np.where(values > 1e-12 * values[-1], 1 / np.maximum(values, 1e-300), 0.0)
    return np.asarray(vectors @ (inverse * (vectors.T @ (gradient / size))) / size)


def _inverse(hessian: Floats) -> Floats:
    """Return the inverse of a positive matrix; directions without curvature count for little."""
    size = np.sqrt(np.maximum(hessian.diagonal(), 0))
    size = np.where(size > 0, size, 1.0)
    unit = hessian / np.outer(size, size)
    unit[np.diag_indices_from(unit)] += 1e-12
    out = np.linalg.inv(unit)
    if not (np.isfinite(out).all() and (out.diagonal() > 0).all()):
        out = np.linalg.pinv(unit, hermitian=True) + 1e-12 * np.eye(unit.shape[0])
    return np.asarray(out / np.outer(size, size))


def separates(loss: AbstractLoss, rows: Floats, terms: Terms, loose: NDArray[Any]) -> Any:
    """Return whether the loss falls for ever along coefficients that may go to infinity.

    Parameters
    ----------
    loss : AbstractLoss
        The loss.
    rows : ndarray of shape (k, n_samples)
        Columns.
    terms : Terms
        Bounds of the coefficients.
    loose : ndarray of shape (k,), bool
        Coefficients without ridge.

    Returns
    -------
    bool
        True also when rounding leaves it open.
    """
    from ellzero.objectives.labels import separates as program

    A = loss.directions(rows)
    each = A.shape[1] // rows.shape[0]
    low = np.where(np.isinf(terms.lower) & loose, -np.inf, 0.0)
    high = np.where(np.isinf(terms.upper) & loose, np.inf, 0.0)
    return program(A, np.repeat(low, each), np.repeat(high, each))
