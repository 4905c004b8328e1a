"""The claim of stability, against what it means."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

from ellzero import (
    Huber,
    L0Ball,
    L0Classifier,
    L0HuberRegressor,
    L0PoissonRegressor,
    L0Regressor,
    Logistic,
)
from ellzero.core.result import Claim


def data(seed, n=120, p=12):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * rng.uniform(0.5, 2, p)
    return rng, X, X[:, 3] - X[:, 8]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["logistic", "huber"])
def test_a_stable_model_comes_back_from_gradient_step_and_thresholding(seed, kind):
    rng, X, eta = data(seed)
    if kind == "logistic":
        y = (eta + rng.logistic(size=len(eta)) > 0).astype(int)
        model = L0Classifier(3, ridge=0.1, standardize=False, tol=1e-10).fit(X, y)
        coef = model.coef_[0]
        f = Logistic(
            torch.tensor(X), torch.tensor(y), {"coef": 0.1, "intercept": 0.0}, fit_intercept=True
        )
    else:
        y = eta + rng.standard_normal(len(eta))
        model = L0HuberRegressor(3, ridge=0.1, standardize=False, tol=1e-10).fit(X, y)
        coef = model.coef_
        f = Huber(
            torch.tensor(X),
            torch.tensor(y),
            delta=1.35 * model.scale_,
            ridge={"coef": 0.1, "intercept": 0.0},
            fit_intercept=True,
        )
    assert model.certificate_.supports(Claim.STATIONARY)
    shift = torch.tensor(float(np.ravel(model.intercept_)[0]), dtype=torch.float64)
    point = {"coef": torch.tensor(coef), "intercept": shift}
    _, grad = f.value_and_grad(point)
    step = 1 / model.certificate_.measures["smoothness"]
    moved = {"coef": point["coef"] - step * grad["coef"], "intercept": shift}
    back = L0Ball(3, names=("coef",)).project(moved)
    torch.testing.assert_close(back["coef"], point["coef"], rtol=1e-4, atol=1e-6)


def test_a_model_that_thresholding_would_leave_is_not_called_stable():
    # Feature 1 is the target up to a small unit; the model holds the weak feature 0 instead.
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 2))
    y = (X[:, 1] > 0).astype(int)
    X[:, 0] *= 100
    poor = L0Classifier(1, ridge=1.0, standardize=False, forbidden=[1]).fit(X, y)
    X[:, 0] /= 100
    model = L0Classifier(1, ridge=1.0, standardize=False)
    fitted = L0Classifier(1, ridge=1.0, standardize=False, forbidden=[1]).fit(X, y)
    certificate, _ = model.certify_model(X, y, fitted.coef_, fitted.intercept_)
    assert [c.name for c in certificate.checks if not c.passed] == [
        "largest slope off the support"
    ]
    assert certificate.claim is Claim.FEASIBLE
    assert poor.support_.tolist() == [0]


def test_counts_are_stable_for_the_curvature_at_the_model():
    rng, X, eta = data(1)
    certificate = L0PoissonRegressor(2).fit(X, rng.poisson(np.exp(0.5 * eta))).certificate_
    assert certificate.supports(Claim.STATIONARY)
    assert "The curvature is that at the model: the loss has no bound on it." in (
        certificate.assumptions
    )


def least_within(X, y, support, low, high):
    """Return the least mean squared error over two with coefficients within bounds."""
    if not support:
        return float(y @ y) / (2 * len(y))
    return float(lsq_linear(X[:, support], y, (low, high)).cost) / len(y)


@pytest.mark.parametrize("seed", range(24))
def test_exchanges_within_bounds_are_what_refits_say(seed):
    rng = np.random.default_rng(seed)
    n, p, k = 30, 8, int(rng.integers(1, 6))
    X = rng.standard_normal((n, p))
    X[:, 1] = X[:, 0] + 0.3 * X[:, 1]
    y = X @ rng.integers(-2, 3, p) + rng.standard_normal(n)
    low, high = [(0.0, np.inf), (-0.5, 1.0), (-0.5, np.inf)][seed % 3]
    model = L0Regressor(k, fit_intercept=False, lower=low, upper=high)
    good = model.fit(X, y)
    poor = L0Regressor(k, fit_intercept=False, lower=low, upper=high, forbidden=[2, 3]).fit(X, y)
    for fitted in (good, poor):
        certificate, value = model.certify_model(X, y, fitted.coef_, 0.0)
        S = fitted.support_.tolist()
        others = [j for j in range(p) if j not in S]
        leaving = S if len(S) == k else [None]
        best = min(
            least_within(X, y, sorted({*S, j} - {i}), low, high) for i in leaving for j in others
        )
        exchanged = best >= value * (1 - 1e-6)
        assert exchanged or not certificate.supports(Claim.COORDINATEWISE)
        assert [c.passed for c in certificate.checks if c.claim is Claim.COORDINATEWISE] == [
            exchanged
        ]


def test_a_held_coefficient_is_not_called_unstable():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 6))
    y = 5 * X[:, 0] + X[:, 1] + 0.1 * rng.standard_normal(60)
    certificate = L0Regressor(2, upper=1.0).fit(X, y).certificate_
    assert certificate.supports(Claim.COORDINATEWISE)
    assert certificate.measures["n_nonzero"] == 2


@pytest.mark.parametrize("seed", range(6))
def test_exchanges_of_groups_are_what_refits_say(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((40, 12))
    X[:, 3:6] = X[:, :3] + 0.5 * X[:, 3:6]
    y = X[:, 0] + X[:, 4] - X[:, 8] + rng.standard_normal(40)
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4, 4])
    w = rng.uniform(0.5, 2.0, 40)
    model = L0Regressor(2, groups=groups, ridge=0.1, standardize=False, solver="search")

    def least(chosen):
        S = np.flatnonzero(np.isin(groups, chosen))
        share = w / w.sum()
        C, t = X[:, S] - share @ X[:, S], y - share @ y
        b = np.linalg.solve(C.T @ (share[:, None] * C) + 0.1 * np.eye(S.size), C.T @ (share * t))
        return float(share @ (t - C @ b) ** 2 + 0.1 * b @ b) / 2

    for forbidden in ([], [0], [3]):
        model.set_params(forbidden=forbidden)
        fitted = model.fit(X, y, sample_weight=w)
        model.set_params(forbidden=None)
        certificate, value = model.certify_model(X, y, fitted.coef_, fitted.intercept_, w)
        now = np.unique(groups[fitted.support_]).tolist()
        others = [g for g in range(5) if g not in now]
        best = min(least([*(h for h in now if h != i), g]) for i in now for g in others)
        check = next(c for c in certificate.checks if c.claim is Claim.COORDINATEWISE)
        assert check.name == "decrease by the best exchange of one group"
        assert check.value == pytest.approx(max(value - best, 0.0), rel=1e-7, abs=1e-12)
        assert check.passed is (best >= value * (1 - 1e-6))
        assert certificate.measures["swaps_checked"] == 6
