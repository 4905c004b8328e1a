"""The judge: refit a proposed support, and say what it is worth."""

import numpy as np
import scipy.special


class Rejected(ValueError):
    """A support that is not an answer to what was asked."""


def columns(instance, support):
    """Return the chosen columns as a dense array, after checking the support."""
    support = np.asarray(support, dtype=int)
    if support.size and (support.min() < 0 or support.max() >= instance.X.shape[1]):
        raise Rejected(f"features out of range: {support}")
    if np.unique(support).size != support.size:
        raise Rejected(f"a feature is repeated: {support}")
    chosen = instance.X[:, support]
    return np.asarray(chosen.todense() if hasattr(chosen, "todense") else chosen, dtype=float)


def count(instance, support):
    """Return the number of chosen features, or of groups where groups are counted."""
    if instance.groups is None:
        return len(support)
    return len(np.unique(instance.groups[np.asarray(support, dtype=int)]))


def value(instance, support, budget):
    """Return the refitted objective: residual sum of squares, or minus log-likelihood, summed.

    The ridge, where there is one, adds `ridge * n_samples / 2` times the squares, twice that for
    least squares, so that it is the same lambda everywhere.
    """
    used = count(instance, support)
    if used > budget:
        raise Rejected(f"{used} chosen, {budget} asked for")
    X = columns(instance, support)
    n = X.shape[0]
    w = np.ones(n) if instance.weight is None else instance.weight
    if instance.loss == "squares":
        mean = w @ X / w.sum()
        y = instance.y - w @ instance.y / w.sum()
        root = np.sqrt(w)
        rows = [(X - mean) * root[:, None], np.sqrt(instance.ridge * w.sum()) * np.eye(X.shape[1])]
        target = np.concatenate([y * root, np.zeros(X.shape[1])])
        A = np.concatenate(rows)
        beta = np.linalg.lstsq(A, target, rcond=None)[0]
        return float(np.sum((target - A @ beta) ** 2))
    design = np.column_stack([np.ones(n), X])
    least = newton(design, instance.y, w, instance.loss, instance.ridge)
    if instance.loss == "poisson":
        least += float(w @ scipy.special.gammaln(instance.y + 1))
    return least


def newton(A, y, w, loss, ridge):
    """Return the least minus log-likelihood (Poisson: up to a constant), by damped Newton."""

    def loss_at(beta):
        z = A @ beta
        if loss == "logistic":
            each = np.logaddexp(0.0, z) - y * z
        else:
            each = np.exp(np.minimum(z, 500)) - y * z
        return float(w @ each) + 0.5 * penalty @ beta**2

    penalty = np.full(A.shape[1], ridge * w.sum())
    penalty[0] = 0.0
    beta = np.zeros(A.shape[1])
    mean = w @ y / w.sum()
    beta[0] = np.log(mean / (1 - mean)) if loss == "logistic" else np.log(mean)
    best = loss_at(beta)
    for _ in range(200):
        z = A @ beta
        mu = scipy.special.expit(z) if loss == "logistic" else np.exp(np.minimum(z, 500))
        curve = mu * (1 - mu) if loss == "logistic" else mu
        slope = A.T @ (w * (mu - y)) + penalty * beta
        hessian = (A * (w * curve)[:, None]).T @ A + np.diag(penalty)
        step = np.linalg.lstsq(hessian, -slope, rcond=1e-13)[0]
        size = 1.0
        while size > 1e-10 and loss_at(beta + size * step) > best:
            size /= 2
        now = loss_at(beta + size * step)
        if size <= 1e-10 or best - now <= 1e-13 * max(abs(best), 1.0):
            return min(now, best)
        beta, best = beta + size * step, now
    return best


def risk(instance, support, ridge=0.0):
    """Return the error of the refitted model against the truth, relative to the signal.

    Over the rows of the design, which is what the data was drawn on.
    """
    X = columns(instance, support)
    signal = instance.X @ instance.truth
    signal = signal - signal.mean()
    X = X - X.mean(0)
    y = instance.y - instance.y.mean()
    G = X.T @ X + ridge * len(y) * np.eye(X.shape[1])
    beta = np.linalg.solve(G, X.T @ y) if X.shape[1] else np.zeros(0)
    return float(np.sum((X @ beta - signal) ** 2) / np.sum(signal**2))


def excess_risk(instance, coef, rho=0.5):
    """Return the error of coefficients on new rows, relative to the variance of the signal."""
    far = np.abs(np.subtract.outer(np.arange(len(coef)), np.arange(len(coef))))
    covariance = rho**far
    off = np.asarray(coef) - instance.truth
    return float(off @ covariance @ off / (instance.truth @ covariance @ instance.truth))
