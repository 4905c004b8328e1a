"""Lower bounds of estimators: rechecked, stored in model files, refused when altered."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import ellzero
from ellzero import Claim, L0HuberRegressorCV, L0Regressor
from ellzero.core.result import TreeProof
from ellzero.errors import IncompatibleError, ModelFileError
from ellzero.models import SavedModel, load_model, save_model
from ellzero.solvers import ExactSubset
from tests.subset.test_exact import Whole, enumerate_all

RECHECKED = "The lower bound is recomputed from the data and the evidence of branch and bound."


def data(seed=0, n=60, p=14):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) + 2
    X[:, 5] = X[:, 2] + 0.2 * X[:, 5]
    return X, X[:, :5].sum(1) + 3 * rng.standard_normal(n), rng.uniform(0.5, 2.0, n)


@pytest.mark.parametrize("more", [{}, {"ridge": 0.1}, {"always": [9], "forbidden": [1, 3]}])
def test_the_bound_is_rechecked_and_reaches_the_optimum(more):
    X, y, weight = data()
    model = L0Regressor(4, solver="exact", standardize=False, **more).fit(X, y)
    certificate = model.certificate_
    assert certificate.claim is Claim.OPTIMAL
    assert RECHECKED in certificate.assumptions
    assert isinstance(model.result_.proof, TreeProof)
    best = enumerate_all(
        Whole(X, y), 4, more.get("ridge", 0.0), more.get("always", ()), more.get("forbidden", ())
    )
    assert model.lower_bound_ == pytest.approx(best, rel=1e-6)
    assert model.lower_bound_ <= best * (1 + 1e-12)
    # Weights and units of the ridge are those of the search.
    weighted = L0Regressor(4, solver="exact", ridge=0.1).fit(X, y, sample_weight=weight)
    assert weighted.certificate_.claim is Claim.OPTIMAL


def least_of_groups(X, y, units, k, ridge, weight):
    """Return the least objective over k groups of columns, by lstsq; ridge in unit variance."""
    w = weight / weight.sum()
    C, t = X - w @ X, y - w @ y
    lam = ridge * (w @ C**2)
    best = np.inf
    for chosen in itertools.combinations(np.unique(units), k):
        S = np.flatnonzero(np.isin(units, chosen))
        A = np.vstack([np.sqrt(w)[:, None] * C[:, S], np.diag(np.sqrt(lam[S]))])
        target = np.append(np.sqrt(w) * t, np.zeros(len(S)))
        b = np.linalg.lstsq(A, target, rcond=None)[0]
        best = min(best, float(((target - A @ b) ** 2).sum()) / 2)
    return best


@pytest.mark.parametrize("kind", ["groups", "bounds", "targets", "categories"])
def test_every_shape_of_least_squares_is_proven_with_weights_and_ridge(kind):
    X, y, weight = data(3)
    more, target = {}, y
    if kind == "groups":
        more["groups"] = np.arange(14) // 3
    elif kind == "bounds":
        more |= {"lower": -0.5, "upper": 0.9}
    elif kind == "targets":
        target = np.column_stack([y, X[:, 7] + 0.3 * y])
    elif kind == "categories":
        pd = pytest.importorskip("pandas")
        city = pd.Categorical(np.array(["a", "b", "c"])[np.arange(60) % 3])
        table = pd.DataFrame(X[:, :6], columns=list("uvwxyz")).assign(city=city)
    fit_on = table if kind == "categories" else X
    model = L0Regressor(2, solver="exact", ridge=0.05, **more)
    model.fit(fit_on, target, sample_weight=weight)
    certificate = model.certificate_
    assert certificate.claim is Claim.OPTIMAL
    assert RECHECKED in certificate.assumptions
    if kind == "groups":
        best = least_of_groups(X, y, more["groups"], 2, 0.05, weight)
        assert model.result_.value == pytest.approx(best, rel=1e-9)
        assert model.lower_bound_ == pytest.approx(best, rel=1e-6)
    # The evidence alone gives the same again.
    again, _ = model.certify_model(
        fit_on, target, model.coef_, model.intercept_, weight, proof=model.result_.proof
    )
    assert (again.claim, again.lower_bound) == (Claim.OPTIMAL, model.lower_bound_)
    # Without being asked, a small table is proven as well.
    quick = L0Regressor(2, ridge=0.05, **more).fit(fit_on, target, sample_weight=weight)
    assert quick.certificate_.claim is Claim.OPTIMAL


def test_given_evidence_is_checked_in_place_of_a_search():
    X, y, _ = data()
    model = L0Regressor(4, solver="exact").fit(X, y)
    proof, low = model.result_.proof, model.lower_bound_
    again, _ = model.certify_model(X, y, model.coef_, model.intercept_, proof=proof)
    assert (again.claim, again.lower_bound) == (Claim.OPTIMAL, low)
    # Half of the tree proves less; nonsense proves nothing.
    few = dataclasses.replace(proof, values=0.5 * proof.values)
    weak, _ = model.certify_model(X, y, model.coef_, model.intercept_, proof=few)
    assert weak.lower_bound < low
    assert not weak.supports(Claim.OPTIMAL)
    wrong = dataclasses.replace(proof, weights=proof.weights[1:])
    refused, _ = model.certify_model(X, y, model.coef_, model.intercept_, proof=wrong)
    assert "The proof is refused. The parts of the proof do not fit together." in (
        refused.assumptions
    )
    assert not refused.supports(Claim.GAP)


def test_evidence_that_outgrew_its_limit_is_said(monkeypatch):
    from ellzero.subset import exact

    monkeypatch.setattr(exact.Evidence, "proof", lambda self: None)
    X, y, _ = data()
    certificate = L0Regressor(4).fit(X, y).certificate_
    assert certificate.supports(Claim.GAP)
    assert (
        "The lower bound is that of branch and bound, whose evidence outgrew its limit: it is not "
        "rechecked." in certificate.assumptions
    )


def test_a_model_file_keeps_the_evidence(tmp_path):
    X, y, _ = data()
    proof = L0Regressor(4).fit(X, y).result_.proof
    coef = {"coef": torch.zeros(14)}
    names = tuple(f"x{j}" for j in range(14))
    path = tmp_path / "model.safetensors"
    save_model(path, SavedModel("least-squares", coef, "regression", names, proof=proof))
    stored = load_model(path).proof
    for field in dataclasses.fields(TreeProof):
        np.testing.assert_array_equal(getattr(stored, field.name), getattr(proof, field.name))
    broken = dataclasses.replace(proof, values=proof.values.astype(np.float32))
    with pytest.raises(ModelFileError) as caught:
        save_model(path, SavedModel("least-squares", coef, "regression", names, proof=broken))
    assert "its proof of optimality cannot be read" in str(caught.value)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_exact_subset_proves_the_best_of_all_supports(ridge):
    X, y, _ = data(1)
    best = enumerate_all(Whole(X, y, fit_intercept=False), 4, ridge)
    problem = ellzero.Problem(
        ellzero.LeastSquares(torch.tensor(X), torch.tensor(y), ridge=ridge), ellzero.L0Ball(4)
    )
    result = ellzero.solve(problem, ExactSubset())
    assert result.value == pytest.approx(best, rel=1e-9)
    assert result.certificate.claim is Claim.OPTIMAL
    assert result.lower_bound <= best * (1 + 1e-12)
    # The same function up to a constant, where nothing is known of its least value.
    H, c = torch.tensor(X.T @ X / 60), torch.tensor(X.T @ y / 60)
    if ridge:
        other = ellzero.Quadratic(H, c, constant=-7.0, ridge=ridge)
        shifted = ellzero.solve(ellzero.Problem(other, ellzero.L0Ball(4)), ExactSubset())
        assert shifted.support == result.support
        assert shifted.certificate.claim is Claim.OPTIMAL
    stopped = ellzero.solve(problem, ExactSubset(), time_limit=0.0)
    assert stopped.status.name == "TIME_LIMIT"
    assert stopped.lower_bound <= best


@pytest.mark.parametrize("kind", ["groups", "bounds", "both tensors"])
def test_exact_subset_proves_groups_and_bounds(kind):
    X, y, _ = data(2)
    options = {"ridge": 0.05}
    if kind == "both tensors":
        options = {"fit_intercept": True, "ridge": {"coef": 0.05, "intercept": 0.0}}
    objective = ellzero.LeastSquares(torch.tensor(X), torch.tensor(y), **options)
    labels = np.arange(14) // 3
    if kind == "bounds":
        ball = ellzero.L0Ball(3, lower=-0.4, upper=0.6)
    elif kind == "groups":
        ball = ellzero.GroupL0Ball(2, torch.tensor(labels))
    else:
        ball = ellzero.GroupL0Ball(2, torch.tensor(labels), names=("coef",))
    problem = ellzero.Problem(objective, ball)
    result = ellzero.solve(problem, ExactSubset())
    assert result.certificate.claim is Claim.OPTIMAL
    best = np.inf
    C, t = X, y
    if kind == "both tensors":
        C, t = X - X.mean(0), y - y.mean()
    for chosen in itertools.combinations(
        range(14 if kind == "bounds" else 5), ball.n_nonzero if kind == "bounds" else 2
    ):
        S = list(chosen) if kind == "bounds" else np.flatnonzero(np.isin(labels, chosen))
        A = np.vstack([C[:, S], np.sqrt(0.05 * 60) * np.eye(len(S))])
        target = np.append(t, np.zeros(len(S)))
        span = (-0.4, 0.6) if kind == "bounds" else (-np.inf, np.inf)
        best = min(best, lsq_linear(A, target, span, method="bvls").cost / 60)
    assert result.value == pytest.approx(best, rel=1e-8)
    assert result.lower_bound <= best * (1 + 1e-12)


def test_exact_subset_refuses_what_has_no_least_value():
    H = torch.diag(torch.tensor([1.0, 0.0]).double())
    problem = ellzero.Problem(ellzero.Quadratic(H, torch.ones(2).double()), ellzero.L0Ball(1))
    with pytest.raises(IncompatibleError) as caught:
        ellzero.solve(problem, ExactSubset())
    assert str(caught.value).startswith(
        "`ExactSubset` cannot treat this problem: it needs a strongly convex objective; give some "
        "`ridge`."
    )


def test_huber_cross_validation_scores_are_huber_losses():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 6))
    y = 2 * X[:, 3] - X[:, 1] + 0.3 * rng.standard_normal(90)
    y[::15] += 20
    model = L0HuberRegressorCV([1, 2, 3], ridge=0.0, cv=3, effort="fast").fit(X, y)
    assert model.support_.tolist() == [1, 3]
    assert 0.2 < model.scale_ < 0.6
    delta = 1.35 * model.scale_
    test = np.arange(30)
    rest = np.arange(30, 90)
    # The first fold again, by a general minimizer.
    from scipy.optimize import minimize

    def loss(rows):
        def value(b):
            r = np.abs(y[rows] - X[rows][:, [1, 3]] @ b[:2] - b[2])
            return np.where(r <= delta, r**2 / 2, delta * (r - delta / 2)).mean()

        return value

    b = minimize(loss(rest), np.array([-1.0, 2.0, 0.0]), method="BFGS", options={"gtol": 1e-9}).x
    score = model.cv_results_["split0_test_score"][1]
    assert score == pytest.approx(-loss(test)(b), rel=1e-5)
