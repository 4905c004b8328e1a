"""Small tables: their inner products, and the best subset by trying all."""

import itertools

import numpy as np
from scipy.optimize import lsq_linear

from ellzero.subset.gram import AbstractGram


class TableGram(AbstractGram):
    """Inner products of a table, all of them."""

    def __init__(self, X, y, sample_weight=None, fit_intercept=True):
        X = np.asarray(X, float)
        Y = np.asarray(y, float).reshape(len(X), -1)
        w = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, float)
        self.n_samples = float(w.sum())
        self.x_mean = (w @ X) / w.sum() * fit_intercept
        self.y_mean = (w @ Y) / w.sum() * fit_intercept
        X, Y = X - self.x_mean, Y - self.y_mean
        # What is left of a constant column is rounding.
        X[:, np.abs(X).max(0) <= 1e-14 * np.abs(self.x_mean)] = 0.0
        self.G = (X.T * w) @ X
        self.diagonal = self.G.diagonal().copy()
        self.cross = (X.T * w) @ Y
        self.energy = (np.square(Y) * w[:, None]).sum(0)
        self.n_columns = 0

    def columns(self, index):
        self.n_columns += len(index)
        return self.G[index]


def table(seed, n=30, p=8, outputs=None, noise=1.0, mix=0.6):
    """Return correlated features and a target that depends on all of them a bit."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ (np.eye(p) + mix * rng.standard_normal((p, p)))
    shape = (p,) if outputs is None else (p, outputs)
    signal = X @ rng.standard_normal(shape)
    return X, signal + noise * np.std(signal) * rng.standard_normal(signal.shape)


def minimum(X, y, *, ridge=0.0, weight=None, intercept=True, low=None, high=None):
    """Return the least (1/2N)||y - X b - b0||^2 + ridge/2 ||b||^2 by a solver for least squares.

    The intercept is a column of its own, ridge rows are appended: nothing is centered.
    """
    n, p = X.shape
    Y = np.asarray(y, float).reshape(n, -1)
    w = np.ones(n) if weight is None else weight
    root = np.sqrt(w)[:, None]
    A = np.column_stack([X, np.ones(n)] if intercept else [X])
    A = np.vstack(
        [A * root, np.sqrt(w.sum() * np.broadcast_to(ridge, p))[:, None] * np.eye(p, A.shape[1])]
    )
    B = np.vstack([Y * root, np.zeros((p, Y.shape[1]))])
    if not A.shape[1]:
        return np.square(B).sum() / (2 * w.sum())
    if low is None and high is None:
        b = np.linalg.lstsq(A, B, rcond=None)[0]
        return np.square(B - A @ b).sum() / (2 * w.sum())
    lows = np.append(np.broadcast_to(-np.inf if low is None else low, p), [-np.inf] * intercept)
    highs = np.append(np.broadcast_to(np.inf if high is None else high, p), [np.inf] * intercept)
    # A bound of zero on both sides is no interval for the solver.
    open_ = lows < highs
    if not open_.any():
        return np.square(B).sum() / (2 * w.sum())
    fit = lsq_linear(A[:, open_], B[:, 0], (lows[open_], highs[open_]), method="bvls", tol=1e-14)
    return np.square(B[:, 0] - A[:, open_] @ fit.x).sum() / (2 * w.sum())


def subsets(items, size):
    """Return all subsets of a size."""
    return [list(c) for c in itertools.combinations(items, size)]


def value_of(X, y, subset, *, ridge=0.0, weight=None):
    """Return the objective of a subset with its own coefficients and intercept, from the data."""
    Y = np.asarray(y, float).reshape(len(X), -1)
    w = np.ones(len(X)) if weight is None else weight
    residual = Y - X[:, subset.support] @ subset.coef - subset.intercept
    loss = (np.square(residual) * w[:, None]).sum() / (2 * w.sum())
    return loss + np.sum(ridge * np.square(subset.coef).T) / 2
