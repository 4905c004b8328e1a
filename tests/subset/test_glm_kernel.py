"""Newton's method on a few columns: compiled and interpreted, against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from ellzero.kernels import glm_newton
from tests.subset.glm_reference import DELTA, mean_loss, problem

KINDS = {
    "logistic": glm_newton.LOGISTIC,
    "poisson": glm_newton.POISSON,
    "huber": glm_newton.HUBER,
}


def solve(loss, X, y, *, ridge=0.0, lower=-np.inf, upper=np.inf, start=0.0, stop=np.inf):
    """Return value, status, coefficients, residual and inverse."""
    Z = np.ascontiguousarray(X.T)
    k, n = Z.shape
    beta, r, h, inverse = np.full(k, start), np.empty(n), np.empty(n), np.empty((k, k))
    full = [np.full(k, float(v)) for v in (ridge, lower, upper)]
    weight = np.full(n, 1 / n)
    value, status, n_iter = glm_newton.minimize(
        KINDS[loss], Z, y, weight, *full, DELTA, stop, 0.0, 200, beta, r, h, inverse
    )
    return value, status, n_iter, beta, r, inverse, h


def reference(loss, X, y, ridge, lower, upper):
    def objective(beta):
        value, grad = mean_loss(loss, X @ beta[:, None], y, np.ones(len(y)))
        return value + ridge / 2 * beta @ beta, X.T @ grad[:, 0] + ridge * beta

    bounds = [(lower, upper)] * X.shape[1]
    options = {"ftol": 1e-16, "gtol": 1e-10, "maxiter": 2000}
    zero = np.zeros(X.shape[1])
    return minimize(objective, zero, jac=True, method="L-BFGS-B", bounds=bounds, options=options)


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (-0.2, 0.3)])
@pytest.mark.parametrize("start", [0.0, 5.0])
def test_minimum_is_that_of_scipy(loss, ridge, bounds, start):
    for seed in range(3):
        X, y = problem(loss, seed, n=60, p=5)
        value, status, _, beta, r, inverse, h = solve(
            loss, X, y, ridge=ridge, lower=bounds[0], upper=bounds[1], start=start
        )
        found = reference(loss, X, y, ridge, *bounds)
        assert status == glm_newton.CONVERGED
        assert value == pytest.approx(found.fun, rel=1e-9)
        np.testing.assert_allclose(beta, found.x, atol=1e-4)
        assert ((beta >= bounds[0]) & (beta <= bounds[1])).all()
        inside = (beta > bounds[0]) & (beta < bounds[1])
        assert abs(X.T @ r - ridge * beta)[inside].max(initial=0) < 1e-7
        hessian = (X.T * h) @ X + ridge * np.eye(5)
        # The inverse may be that of the point before the last step.
        np.testing.assert_allclose(inverse @ hessian, np.eye(5), atol=1e-3)


def test_scores_far_off_come_back():
    X, _ = problem("poisson", 1, n=60, p=3)
    y = np.round(1000 * np.exp(X[:, 0]))
    near = solve("poisson", X, y)
    for start in (30.0, 1e4, -1e4):
        far = solve("poisson", X, y, start=start)
        assert far[0] == pytest.approx(near[0], rel=1e-9)
        assert far[2] < 120


def test_separation_and_limits_are_told():
    X, y = problem("logistic", 0, n=60, p=3)
    ideal = (X[:, 0] > 0).astype(float)
    assert solve("logistic", X, ideal)[1] == glm_newton.SEPARATED
    assert solve("logistic", X, ideal, ridge=1e-6)[1] == glm_newton.CONVERGED
    assert solve("logistic", X, ideal, lower=-5.0, upper=5.0)[1] == glm_newton.CONVERGED
    rare = np.c_[X, np.zeros(60)]
    rare[4, 3] = 1.0
    assert solve("logistic", rare, y)[1] == glm_newton.FAR
    value = solve("logistic", X, y)[0]
    assert solve("logistic", X, y, stop=0.9 * value)[1] == glm_newton.ABORTED
    assert solve("logistic", X, y, stop=1.1 * value)[1] == glm_newton.CONVERGED


def test_dependent_columns_do_no_harm():
    X, y = problem("poisson", 2, n=60, p=3)
    twice = np.c_[X, X[:, 0] + X[:, 1]]
    value, status, _, beta, *_ = solve("poisson", twice, y)
    assert status == glm_newton.CONVERGED
    assert value == pytest.approx(solve("poisson", X, y)[0], rel=1e-12)
    assert np.isfinite(beta).all()


@pytest.mark.parametrize("loss", KINDS)
def test_interpreted_and_compiled_agree(loss, monkeypatch):
    X, y = problem(loss, 4, n=30, p=3)
    compiled = solve(loss, X, y, lower=0.0)
    inner = "_loss _scores _total _value _derivatives _products _solve _invert _separates minimize"
    for name in inner.split():
        monkeypatch.setattr(glm_newton, name, getattr(glm_newton, name).py_func)
    interpreted = solve(loss, X, y, lower=0.0)
    assert interpreted[1:3] == compiled[1:3]
    np.testing.assert_allclose(interpreted[0], compiled[0], rtol=1e-13)
    for a, b in zip(interpreted[3:], compiled[3:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
