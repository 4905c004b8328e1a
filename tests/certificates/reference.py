"""Optima by enumeration, in NumPy, and the problems that the tests share."""

from itertools import combinations

import numpy as np
import torch


def all_supports(n, size, always=()):
    """Return all supports of `size` entries out of those not in `always`, plus `always`."""
    rest = [i for i in range(n) if i not in set(always)]
    return np.array([[*c, *always] for c in combinations(rest, size)], dtype=int)


def least_squares_optimum(X, y, ridge, size, always=()):
    """Return the best value of mean((X w - y)^2) / 2 + ridge |w|^2 / 2, and its point."""
    best, point = np.inf, None
    n_samples, n = X.shape
    for support in all_supports(n, size, always):
        A = X[:, support]
        G = A.T @ A / n_samples + ridge * np.eye(len(support))
        w = np.linalg.lstsq(G, A.T @ y / n_samples, rcond=None)[0]
        value = np.mean((A @ w - y) ** 2) / 2 + ridge * (w @ w) / 2
        if value < best:
            best, point = value, np.zeros(n)
            point[support] = w
    return best, point


def softmax_design(X, n_classes):
    """Return Z of shape (n_samples, n_classes, n_classes * p) with logits Z theta."""
    n_samples, p = X.shape
    Z = np.zeros((n_samples, n_classes, n_classes * p))
    for c in range(n_classes):
        Z[:, c, c * p : (c + 1) * p] = X
    return Z


def logistic_design(X):
    """Return the same for two classes of which the first has logit zero."""
    return np.stack([np.zeros_like(X), X], axis=1)


def classifier_minima(Z, y, ridge, supports):
    """Return the minimal cross-entropy plus ridge on every support, and the points on it."""
    B = Z[:, :, supports].transpose(2, 0, 1, 3)  # (K, N, C, k)
    n_samples, k = Z.shape[0], supports.shape[1]
    target = np.zeros(Z.shape[:2])
    target[np.arange(n_samples), y] = 1.0

    def value_of(w):
        logits = np.einsum("knci,ki->knc", B, w)
        top = logits.max(2, keepdims=True)
        log_sum = np.log(np.exp(logits - top).sum(2)) + top[..., 0]
        loss = (log_sum - (logits * target).sum(2)).mean(1)
        return loss + ridge * (w**2).sum(1) / 2, np.exp(logits - log_sum[..., None])

    w = np.zeros((len(supports), k))
    value, prob = value_of(w)
    for _ in range(60):
        slope = np.einsum("knci,knc->ki", B, prob - target) / n_samples + ridge * w
        weighted = prob[..., None] * B
        mean = weighted.sum(2)
        hessian = (
            np.einsum("knci,kncj->kij", B, weighted) - np.einsum("kni,knj->kij", mean, mean)
        ) / n_samples + ridge * np.eye(k)
        step = -np.linalg.solve(hessian, slope[..., None])[..., 0]
        length = np.ones(len(supports))
        for _ in range(30):
            trial, trial_prob = value_of(w + length[:, None] * step)
            bad = trial > value + 1e-15
            if not bad.any():
                break
            length[bad] /= 2
        ok = ~bad
        w[ok] += length[ok, None] * step[ok]
        value[ok], prob[ok] = trial[ok], trial_prob[ok]
        if np.abs(slope).max() < 1e-12:
            break
    return value, w


def classifier_optimum(Z, y, ridge, size):
    """Return the best value over supports of one size, and its point."""
    supports = all_supports(Z.shape[2], size)
    value, w = classifier_minima(Z, y, ridge, supports)
    best = value.argmin()
    point = np.zeros(Z.shape[2])
    point[supports[best]] = w[best]
    return value[best], point


def iris_recipe():
    """Return 120 standardized samples with a constant column, and their classes."""
    from sklearn.datasets import load_iris

    data = load_iris()
    train = np.random.default_rng(0).permutation(150)[:120]
    X, y = data.data[train], data.target[train]
    X = (X - X.mean(0)) / X.std(0)
    return np.hstack([X, np.ones((120, 1))]), y


def tensor(array):
    """Return a float64 tensor."""
    return torch.as_tensor(np.asarray(array), dtype=torch.float64)


def regression(seed, n_samples=30, n=8, noise=0.5, correlation=0.5):
    """Return a random least squares problem with correlated columns."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((n_samples, 1))
    X = rng.standard_normal((n_samples, n)) + correlation * 2 * common
    w = rng.standard_normal(n) * (rng.random(n) < 0.5)
    return X, X @ w + noise * rng.standard_normal(n_samples)


def classes(seed, n_samples=40, n=6, n_classes=2):
    """Return a random classification problem in which every class appears."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n))
    score = X @ rng.standard_normal((n, n_classes)) + rng.gumbel(size=(n_samples, n_classes))
    y = score.argmax(1)
    y[:n_classes] = np.arange(n_classes)
    return X, y
