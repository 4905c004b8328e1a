"""Problems with known answers: value, support, and where the answer comes from."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import minimize

from ellzero import L0Ball, LeastSquares, Logistic, Problem, Quadratic, Softmax

# Enumerated minima come from BFGS: relative accuracy of their values.
ENUMERATED = 1e-8


def loss_of(kind, X, y, ridge, intercept_ridge=None):
    """Return value and gradient of flat entries, written out in numpy.

    With `intercept_ridge` the last entry of every output is an intercept with that ridge. Flat
    order is coef row by row, then the intercepts.
    """
    n, p = X.shape
    outputs = len(set(y.tolist())) if kind == "softmax" else 1
    A = X if intercept_ridge is None else np.hstack([X, np.ones((n, 1))])

    def split(flat):
        coef = flat[: outputs * p].reshape(outputs, p)
        if intercept_ridge is None:
            return coef
        return np.hstack([coef, flat[outputs * p :].reshape(outputs, 1)])

    weights = np.full(outputs * p, ridge)
    if intercept_ridge is not None:
        weights = np.concatenate([weights, np.full(outputs, intercept_ridge)])

    def function(flat):
        u = A @ split(flat).T
        if kind == "least squares":
            r = u[:, 0] - y
            value, slope = (r @ r) / (2 * n), r[:, None] / n
        elif kind == "logistic":
            sign = np.where(y == y.max(), 1.0, -1.0)
            m = sign * u[:, 0]
            value = np.logaddexp(0, -m).mean()
            slope = (-sign * 0.5 * (1 - np.tanh(m / 2)) / n)[:, None]
        else:
            logs = u - np.logaddexp.reduce(u, axis=1, keepdims=True)
            value = -logs[np.arange(n), y].mean()
            slope = (np.exp(logs) - np.eye(outputs)[y]) / n
        full = slope.T @ A
        grad = full[:, :p].reshape(-1)
        if intercept_ridge is not None:
            grad = np.concatenate([grad, full[:, p]])
        return value + 0.5 * (weights * flat**2).sum(), grad + weights * flat

    return function, outputs * A.shape[1]


def enumerate_supports(function, size, budget, counted=None):
    """Return the best value and support over all supports of `budget` counted entries."""
    counted = range(size) if counted is None else counted
    free = [i for i in range(size) if i not in set(counted)]
    best = (np.inf, ())
    for chosen in itertools.combinations(counted, budget):
        index = np.array([*chosen, *free], dtype=int)

        def inside(entries, index=index):
            flat = np.zeros(size)
            flat[index] = entries
            value, grad = function(flat)
            return value, grad[index]

        if len(index):
            found = minimize(inside, np.zeros(len(index)), jac=True, options={"gtol": 1e-9}).fun
        else:
            found = function(np.zeros(size))[0]
        if found < best[0]:
            best = (found, chosen)
    return best


@dataclass(frozen=True)
class Known:
    """A problem, its optimal value and support (flat entries), and the source of both."""

    name: str
    problem: Problem
    value: float
    support: tuple[int, ...]
    source: str


def random_data(seed, n, p, kind, noise=0.5):
    """Return numpy X and y: a linear model of two features plus noise, correlated columns."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, p)) + 0.7 * generator.normal(size=(n, 1))
    score = X[:, 0] - 2 * X[:, -1] + noise * generator.normal(size=n)
    if kind == "least squares":
        return X, score
    if kind == "logistic":
        return X, (score > 0).astype(int)
    return X, np.digitize(score, np.quantile(score, [0.33, 0.67]))


MAKERS = {"least squares": LeastSquares, "logistic": Logistic, "softmax": Softmax}


def random_problem(seed, kind, *, n=24, p=6, budget=2, ridge=0.1, intercept=False):
    """Return a random problem and what enumeration in numpy finds: value and support."""
    p = 3 if kind == "softmax" else p
    X, y = random_data(seed, n, p, kind)
    weights = {"coef": ridge, "intercept": ridge} if intercept else ridge
    objective = MAKERS[kind](
        torch.tensor(X), torch.tensor(y), ridge=weights, fit_intercept=intercept
    )
    names = ("coef",) if intercept else None
    function, size = loss_of(kind, X, y, ridge, ridge if intercept else None)
    counted = range(p * (3 if kind == "softmax" else 1))
    value, support = enumerate_supports(function, size, budget, counted)
    return Problem(objective, L0Ball(budget, names)), value, support


def planted(seed=0, n=100, p=200, s=5, scale=1.0):
    """Return a noiseless Gaussian least-squares problem and its only 5-sparse solution."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, p))
    support = np.sort(generator.permutation(p)[:s])
    coef = np.zeros(p)
    coef[support] = generator.choice([-1.0, 1.0], s) * (1 + generator.random(s))
    objective = LeastSquares(scale * torch.tensor(X), scale * torch.tensor(X @ coef))
    return Problem(objective, L0Ball(s)), coef


@cache
def known_problems() -> tuple[Known, ...]:
    """Return the table."""
    out = []
    for s, value, support in ((0, 7.0, ()), (1, 2.5, (0,)), (2, 0.5, (0, 2)), (3, 0.0, (0, 1, 2))):
        objective = Quadratic(
            torch.eye(3).double(), torch.tensor([3.0, 1.0, -2.0]).double(), constant=7.0
        )
        out.append(
            Known(
                f"separable-{s}",
                Problem(objective, L0Ball(s)),
                value,
                support,
                "closed form: 7 minus half the sum of the s largest squares of (3, 1, -2)",
            )
        )
    # Greedy takes the shared direction first and is stuck with it.
    X = torch.tensor([[1.0, 0.0, 0.8], [0.0, 1.0, 0.8], [0.0, 0.0, 0.1]]).double()
    out.append(
        Known(
            "greedy-trap",
            Problem(LeastSquares(X, torch.tensor([1.0, 1.0, 0.0]).double()), L0Ball(2)),
            0.0,
            (0, 1),
            "closed form: y is the sum of the first two columns",
        )
    )
    for kind in MAKERS:
        for intercept in (False, True):
            problem, value, support = random_problem(7, kind, intercept=intercept)
            name = f"{kind.replace(' ', '-')}{'-intercept' if intercept else ''}"
            out.append(Known(name, problem, value, support, "enumeration in numpy and scipy"))
    # Orthonormal columns: n f = (||y||^2 - sum of kept squares of X^T y) / 2.
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    objective = LeastSquares(torch.tensor(signs), torch.tensor(signs @ [4.0, -3.0, 2.0, 1.0]))
    out.append(
        Known(
            "orthonormal",
            Problem(objective, L0Ball(2)),
            5 / 8,
            (0, 1),
            "closed form: half the mean of the dropped squares 4 and 1",
        )
    )
    return tuple(out)
