"""The claim of stability, against what it means."""

import numpy as np
import pytest
import torch

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
    assert model.certificate_.claim is Claim.STATIONARY
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


@pytest.mark.parametrize("kind", ["poisson", "nonnegative"])
def test_where_stability_is_not_checked_nothing_is_claimed(kind):
    rng, X, eta = data(1)
    if kind == "poisson":
        model = L0PoissonRegressor(2).fit(X, rng.poisson(np.exp(0.5 * eta)))
    else:
        model = L0Regressor(2, nonnegative=True).fit(X, eta + rng.standard_normal(len(eta)))
    assert model.certificate_.claim is Claim.FEASIBLE
    assert all(check.passed for check in model.certificate_.checks)
    said = " ".join(model.certificate_.assumptions)
    assert "nothing is claimed beyond it" in said
