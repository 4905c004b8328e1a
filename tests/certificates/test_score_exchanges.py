"""Exchanges of models of linear scores, against a general minimizer on every pair."""

import numpy as np
import pytest
from scipy import sparse, special
from scipy.optimize import minimize

from ellzero import L0Classifier, L0HuberRegressor, L0PoissonRegressor
from ellzero.certificates import score_exchanges
from ellzero.core.result import Claim

KINDS = ("logistic", "poisson", "huber", "softmax")
EXCHANGE = "decrease by the best exchange of one feature"


def problem(seed, kind, n=60, p=7):
    """Return data and an estimator of two features."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) * rng.uniform(0.5, 2, p)
    X[:, 1] = X[:, 0] + 0.7 * X[:, 1]
    eta = X[:, 0] - 0.8 * X[:, 3] + 0.3 * X[:, 5]
    settings = {"ridge": float(rng.choice([0.02, 0.2])), "standardize": False}
    if kind == "logistic":
        return X, (eta + rng.logistic(size=n) > 0).astype(int), L0Classifier(2, **settings)
    if kind == "softmax":
        scores = np.column_stack([eta, X[:, 4], np.zeros(n)]) + rng.gumbel(size=(n, 3))
        return X, scores.argmax(1), L0Classifier(2, **settings)
    if kind == "poisson":
        return X, rng.poisson(np.exp(0.4 * eta)), L0PoissonRegressor(2, **settings)
    y = eta + 0.5 * rng.standard_normal(n)
    y[::9] += 8
    return X, y, L0HuberRegressor(2, **settings)


def least(X, y, kind, support, ridge, weight, delta):
    """Return the least objective on a support."""
    Z = np.column_stack([X[:, support], np.ones(len(X))])
    m = 3 if kind == "softmax" else 1
    penalty = np.append(np.full(len(support), ridge), 0.0)[:, None]
    w = (weight / weight.sum())[:, None]

    def both(flat):
        B = flat.reshape(-1, m)
        U = Z @ B
        if kind == "logistic":
            loss, slope = np.logaddexp(0, U) - y[:, None] * U, special.expit(U) - y[:, None]
        elif kind == "poisson":
            t = y[:, None]
            loss = np.exp(U) - t * U - t + special.xlogy(t, t)
            slope = np.exp(U) - t
        elif kind == "softmax":
            hot = np.eye(3)[y]
            loss = special.logsumexp(U, axis=1, keepdims=True) - (U * hot).sum(1, keepdims=True)
            slope = special.softmax(U, axis=1) - hot
        else:
            r = U - y[:, None]
            loss = np.where(abs(r) <= delta, r**2 / 2, delta * (abs(r) - delta / 2))
            slope = np.clip(r, -delta, delta)
        value = (w * loss).sum() + 0.5 * (penalty * B**2).sum()
        return value, (Z.T @ (w * slope) + penalty * B).ravel()

    start = np.zeros(Z.shape[1] * m)
    out = minimize(both, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 500})
    return float(out.fun)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_the_claim_is_what_minima_of_all_exchanges_say(seed, kind):
    X, y, model = problem(seed, kind)
    weight = np.random.default_rng(seed).uniform(0.5, 2, len(X)) if seed % 2 else np.ones(len(X))
    verdicts = []
    for forbidden in ([], [0], [3]):
        fitted = type(model)(**{**model.get_params(), "forbidden": forbidden})
        fitted.fit(X, y, sample_weight=weight)
        # The scale of Huber is that of the fit.
        fitted.set_params(forbidden=None)
        certificate, value = fitted.certify_model(
            X, y, fitted.coef_, fitted.intercept_, sample_weight=weight
        )
        delta = 1.35 * getattr(fitted, "scale_", 1.0)
        S = fitted.support_.tolist()
        best = min(
            least(X, y, kind, [*(j for j in S if j != i), o], model.ridge, weight, delta)
            for i in S
            for o in range(X.shape[1])
            if o not in S
        )
        helps = best < value * (1 - 1e-6)
        checks = [c for c in certificate.checks if c.claim is Claim.COORDINATEWISE]
        if not certificate.supports(Claim.STATIONARY):
            # Not even stable: there is nothing to ask of exchanges.
            assert not checks
            continue
        assert [c.name for c in checks] == [EXCHANGE]
        assert checks[0].passed is not helps
        assert certificate.supports(Claim.COORDINATEWISE) is not helps
        # A decrease that is stated is one that is there.
        assert not helps or checks[0].value <= (value - best) * (1 + 1e-6)
        verdicts.append(helps)
    assert False in verdicts


def test_wrong_supports_are_refused():
    refused = 0
    for seed in range(20):
        X, y, model = problem(seed, "logistic", n=400)
        wrong = L0Classifier(2, ridge=model.ridge, standardize=False, forbidden=[0, 1])
        wrong.fit(X, y)
        certificate, _ = model.certify_model(X, y, wrong.coef_, wrong.intercept_)
        assert not certificate.supports(Claim.COORDINATEWISE)
        refused += any(not c.passed for c in certificate.checks if c.name == EXCHANGE)
    assert refused > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_is_below_the_minimum_of_its_pair(kind):
    finite = 0
    for seed in range(4):
        X, y, model = problem(seed, kind)
        fitted = model.fit(X, y)
        delta = 1.35 * getattr(fitted, "scale_", 1.0)
        loss = {
            "logistic": lambda y=y: score_exchanges.ScalarLoss("logistic", y.astype(float)),
            "poisson": lambda y=y: score_exchanges.ScalarLoss("poisson", y.astype(float)),
            "huber": lambda y=y, d=delta: score_exchanges.HuberLoss(y, d),
            "softmax": lambda y=y: score_exchanges.SoftmaxLoss(y, 3),
        }[kind]()
        S = fitted.support_
        coef, shift = np.atleast_2d(fitted.coef_)[:, S].T, np.atleast_1d(fitted.intercept_)
        if kind == "softmax":
            coef, shift = coef @ loss.basis, shift @ loss.basis
        n = len(X)
        other = np.setdiff1d(np.arange(X.shape[1]), S)
        weight, ridge = np.full(n, 1 / n), np.full(X.shape[1], model.ridge)
        # A base that is no minimizer gives bounds as well.
        Z = np.column_stack([X[:, S[:1]], np.ones(n)])
        beta = np.vstack([0.98 * coef[:1], shift])
        base = score_exchanges._Base(loss, weight, Z, np.append(ridge[S[0]], 0.0), beta)
        entering = score_exchanges._Entering.of(X[:, other], ridge[other])
        lower, value = score_exchanges._screen(base, entering, np.inf)
        for j, low, found in zip(other, lower, value, strict=True):
            best = least(X, y, kind, [S[0], j], model.ridge, np.ones(n), delta)
            assert low <= best + 1e-9
            assert found >= best - 1e-9
            finite += np.isfinite(low)
    assert finite > 0


def test_sparse_tables_and_chunks_do_not_matter(monkeypatch):
    X, y, model = problem(1, "logistic", n=80, p=30)
    X[np.abs(X) < 0.5] = 0.0
    whole = model.fit(X, y).certificate_
    monkeypatch.setattr(score_exchanges, "CHUNK", 200)
    parts = model.fit(sparse.csr_matrix(X), y).certificate_
    assert whole.claim is parts.claim is Claim.COORDINATEWISE
    assert whole.measures["swaps_checked"] == parts.measures["swaps_checked"] == 2 * 28
    first, second = (
        next(c.value for c in certificate.checks if c.name == EXCHANGE)
        for certificate in (whole, parts)
    )
    assert first == pytest.approx(second, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", ["logistic", "huber"])
def test_one_feature_without_intercept_leaves_nothing(kind):
    X, y, model = problem(4, kind)
    model.set_params(n_nonzero_coefs=1, fit_intercept=False)
    certificate = model.fit(X, y).certificate_
    assert certificate.claim is Claim.COORDINATEWISE
    assert certificate.measures["swaps_checked"] == 6
    # Nothing chosen at all: no exchange, nothing wrong.
    none = model.set_params(n_nonzero_coefs=0, fit_intercept=True).fit(X, y).certificate_
    assert none.supports(Claim.STATIONARY)


def test_what_is_not_checked_is_said(monkeypatch):
    X, y, model = problem(2, "logistic")
    grouped = L0Classifier(2, ridge=0.1, groups=[0, 0, 1, 1, 2, 2, 3]).fit(X, y)
    assert (
        "Exchanges are not checked: for this loss they are not priced with groups."
        in grouped.certificate_.assumptions
    )
    held = L0Classifier(2, ridge=0.1, nonnegative=True).fit(X, y)
    assert (
        "Exchanges are not checked: for this loss they are not priced with bounds on coefficients."
        in held.certificate_.assumptions
    )
    monkeypatch.setattr(score_exchanges, "CHORDS", 0)
    monkeypatch.setattr(score_exchanges, "SOLVES", 0)
    certificate = model.fit(X, y).certificate_
    n_open = next(a for a in certificate.assumptions if a.startswith("Exchanges are not checked"))
    assert n_open.endswith(
        "neither excluded by a bound nor known to help; `certify='full'` minimizes on each."
    )
    assert certificate.claim is Claim.STATIONARY
    monkeypatch.setattr(score_exchanges, "WORK", 0.0)
    certificate = model.fit(X, y).certificate_
    assert (
        "Exchanges are not checked: they would take too long for this loss; `certify='full'` "
        "minimizes on each." in certificate.assumptions
    )
    assert certificate.claim is Claim.STATIONARY
