"""Small problems for generalized linear models, and their optima by enumeration and L-BFGS."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.optimize import minimize

DELTA = 1.35
LOSSES = ("logistic", "softmax", "poisson", "huber")


def problem(loss, seed, n=40, p=6, noise=1.0):
    """Return correlated columns and a target that three of them explain in part."""
    rng = np.random.default_rng([seed, len(loss)])
    X = rng.normal(size=(n, p)) @ (np.eye(p) + 0.5 * rng.normal(size=(p, p)))
    coef = np.zeros(p)
    coef[rng.choice(p, 3, replace=False)] = rng.choice([-1, 1], 3)
    u = X @ coef
    u /= u.std()
    if loss == "logistic":
        y = (u + noise * rng.logistic(size=n) > 0).astype(float)
    elif loss == "poisson":
        y = rng.poisson(np.exp(u + 0.5)).astype(float)
    elif loss == "huber":
        y = u + noise * rng.standard_t(2, size=n)
    else:
        scores = np.c_[u, -u, 0.3 * X[:, 0]] + noise * rng.gumbel(size=(n, 3))
        y = np.argmax(scores, 1).astype(float)
    return X, y


def mean_loss(loss, U, y, w):
    """Return the weighted mean loss by its definition, and its gradient in the scores."""
    w = w / w.sum()
    u = U[:, 0]
    if loss == "logistic":
        value = w @ np.logaddexp(0, np.where(y > 0, -u, u))
        return value, (w * (1 / (1 + np.exp(-u)) - y))[:, None]
    if loss == "poisson":
        log = y * np.log(np.where(y > 0, y, 1))
        return w @ (np.exp(u) - y * u - y + log), (w * (np.exp(u) - y))[:, None]
    if loss == "huber":
        r = u - y
        small = np.minimum(abs(r), DELTA)
        return w @ (small * (abs(r) - small / 2)), (w * np.clip(r, -DELTA, DELTA))[:, None]
    top = U.max(1, keepdims=True)
    log = U - top - np.log(np.exp(U - top).sum(1, keepdims=True))
    own = np.arange(len(y)), y.astype(int)
    grad = np.exp(log)
    grad[own] -= 1
    return -w @ log[own], w[:, None] * grad


def best_on(loss, X, y, support, w=None, ridge=0.0, intercept=True, lower=None, upper=None):
    """Return the smallest value on a support."""
    n, k = len(y), len(support)
    A = X[:, list(support)]
    A = np.c_[A, np.ones(n)] if intercept else A
    w = np.ones(n) if w is None else w
    m = int(y.max()) + 1 if loss == "softmax" else 1

    def objective(flat):
        B = flat.reshape(A.shape[1], m)
        value, slope = mean_loss(loss, A @ B, y, w)
        grad = A.T @ slope
        grad[:k] += ridge * B[:k]
        return value + ridge / 2 * (B[:k] ** 2).sum(), grad.ravel()

    zero = np.zeros(A.shape[1] * m)
    if zero.size == 0:
        return objective(zero)[0]
    free = [(None, None)] * m * int(intercept)
    found = minimize(
        objective,
        zero,
        jac=True,
        method="L-BFGS-B",
        bounds=[(lower, upper)] * k * m + free,
        options={"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9},
    )
    return found.fun


def optimum(loss, X, y, budget, units=None, **options):
    """Return the smallest value over all choices of units."""
    units = [[j] for j in range(X.shape[1])] if units is None else units
    return min(
        best_on(loss, X, y, [j for u in chosen for j in units[u]], **options)
        for chosen in itertools.combinations(range(len(units)), budget)
    )


def value_at(loss, X, y, subset, w=None, ridge=0.0):
    """Return the value of a subset from its coefficients alone."""
    U = X[:, subset.support] @ subset.coef + subset.intercept
    w = np.ones(len(y)) if w is None else w
    return mean_loss(loss, U, y, w)[0] + ridge / 2 * (subset.coef**2).sum()
