"""Right points pass, wrong points are refused, and the verdict does not depend on the scale."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero import Claim, Problem, verify
from ellzero.errors import InvalidParameterError
from tests.certificates.reference import (
    all_supports,
    classes,
    classifier_minima,
    classifier_optimum,
    iris_recipe,
    least_squares_optimum,
    logistic_design,
    regression,
    softmax_design,
    tensor,
)


@pytest.fixture(scope="module")
def iris():
    """Return the Iris objective with ridge, the optimum with five entries, its support values."""
    X, y = iris_recipe()
    supports = all_supports(15, 5)
    values, w = classifier_minima(softmax_design(X, 3), y, 0.01, supports)
    best = values.argmin()
    point = np.zeros(15)
    point[supports[best]] = w[best]
    return ellzero.Softmax(tensor(X), torch.as_tensor(y), ridge=0.01), point, values[best]


def _failed(certificate):
    return [c.name for c in certificate.checks if not c.passed and c.claim <= Claim.GAP]


def _point(values):
    return {"coef": tensor(values).reshape(3, 5)}


def test_iris_optimum(iris):
    objective, point, value = iris
    assert round(value, 5) == 0.30824
    certificate = verify(Problem(objective, ellzero.L0Ball(5)), _point(point))
    assert certificate.claim is Claim.GAP
    assert 0.3010 <= certificate.lower_bound <= value
    assert 0.02 < certificate.gap < 0.0235
    measures = certificate.measures
    np.testing.assert_allclose(measures["value"], value, rtol=1e-12)
    np.testing.assert_allclose(measures["dense_value"], 0.26313, atol=5e-6)
    np.testing.assert_allclose(measures["epsilon"], value - measures["dense_value"])
    assert measures["swaps_checked"] == 50
    assert measures["n_nonzero"] == measures["budget"] == 5
    assert measures["stability_proven"] is True
    assert measures["strong_convexity"] == pytest.approx(0.01, rel=1e-9)
    assert {"margin", "largest_stable_step", "tied", "short_support", "dtype"} <= set(measures)


def test_iris_wrong_points(iris):
    objective, point, _ = iris
    problem = Problem(objective, ellzero.L0Ball(5))
    inside, outside = np.flatnonzero(point), np.flatnonzero(point == 0)
    for i in inside:
        wrong = point.copy()
        wrong[i] *= 1.001
        certificate = verify(problem, _point(wrong), swaps="none")
        assert certificate.claim is Claim.FEASIBLE
        assert "largest move on the support by a gradient step" in _failed(certificate)
        for j in outside[:1]:
            wrong = point.copy()
            wrong[i], wrong[j] = 0.0, point[i]
            assert verify(problem, _point(wrong), swaps="none").claim is Claim.FEASIBLE
        short = point.copy()
        short[i] = 0.0
        assert verify(problem, _point(short), swaps="none").claim is Claim.FEASIBLE
    for j in outside:
        wrong = point.copy()
        wrong[j] = 1e-30
        certificate = verify(problem, _point(wrong))
        assert certificate.claim is None
        assert not certificate.holds
        assert "nonzero entries" in _failed(certificate)


def test_iris_previous_iterates_are_refused(iris):
    objective, point, _ = iris
    problem = Problem(objective, ellzero.L0Ball(5))
    rng = np.random.default_rng(0)
    here = _point(point + 0.05 * rng.standard_normal(15) * (point != 0))
    step = 1 / 1.4573
    claims = []
    for iteration in range(60):
        if iteration % 12 == 0:
            claims.append(verify(problem, here, swaps="none").claim)
        grad = objective.value_and_grad(here)[1]["coef"]
        here = problem.constraint.project({"coef": here["coef"] - step * grad})
    assert set(claims) == {Claim.FEASIBLE}


def test_stable_supports_that_an_exchange_improves_stop_at_stationary(iris):
    objective, _, best = iris
    X, y = iris_recipe()
    supports = all_supports(15, 5)[::400]
    values, w = classifier_minima(softmax_design(X, 3), y, 0.01, supports)
    claims = []
    for row, support in enumerate(supports):
        point = np.zeros(15)
        point[support] = w[row]
        certificate = verify(Problem(objective, ellzero.L0Ball(5)), _point(point))
        claims.append(certificate.claim)
        assert certificate.lower_bound <= best * (1 + 1e-9)
        if values[row] > best * 1.25:
            assert certificate.claim < Claim.GAP
    assert {Claim.FEASIBLE, Claim.STATIONARY} <= set(claims)
    assert Claim.OPTIMAL not in claims


def test_iris_without_ridge_says_that_no_bound_is_possible():
    X, y = iris_recipe()
    objective = ellzero.Softmax(tensor(X), torch.as_tensor(y))
    # Petal length for setosa, which it separates from the rest.
    point = np.zeros(15)
    point[2], point[4] = -5.0, -5.0
    certificate = verify(Problem(objective, ellzero.L0Ball(5)), _point(point), swaps="none")
    assert certificate.lower_bound is None
    assert certificate.gap is None
    assert (
        "No lower bound: without ridge the loss has no minimizer on this support "
        "(classes are separable); pass ridge > 0."
    ) in certificate.assumptions
    assert certificate.measures["strong_convexity"] == 0.0
    assert "dense_value" not in certificate.measures
    # Sepal width of versicolor alone separates nothing, all entries together do.
    point = np.zeros(15)
    point[6] = -0.6
    certificate = verify(Problem(objective, ellzero.L0Ball(1)), _point(point), swaps="none")
    assert (
        "No lower bound: without ridge the loss has a minimizer on this support but none over "
        "all entries (classes are separable); pass ridge > 0."
    ) in certificate.assumptions


@pytest.mark.parametrize("seed", range(3))
def test_claims_against_enumeration(seed):
    """Whatever is called optimal is, and whatever is optimal passes every local check."""
    X, y = regression(seed, n=7, correlation=0.2 * (seed % 3))
    ridge = (0.0, 0.1, 1.0)[seed % 3]
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=ridge)
    for budget in (1, 3, 7):
        best, point = least_squares_optimum(X, y, ridge, budget)
        problem = Problem(objective, ellzero.L0Ball(budget))
        certificate = verify(problem, {"coef": tensor(point)})
        assert certificate.claim >= Claim.GAP
        assert certificate.lower_bound <= best * (1 + 1e-9)
        assert certificate.gap < 0.5
        if budget == 7:
            assert certificate.claim is Claim.OPTIMAL
        for support in all_supports(7, budget)[::4]:
            A = X[:, support]
            w = np.zeros(7)
            gram = A.T @ A / len(y) + ridge * np.eye(budget)
            w[support] = np.linalg.solve(gram, A.T @ y / len(y))
            value = np.mean((X @ w - y) ** 2) / 2 + ridge * w @ w / 2
            report = verify(problem, {"coef": tensor(w)})
            if value > best * (1 + 1e-5):
                assert report.claim is not Claim.OPTIMAL
                assert not report.measures["sufficient_test"]


def test_sufficient_test_and_gap_agree():
    # Nearly orthogonal columns: the test of the magnitudes at 1 / m proves optimality.
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.standard_normal((40, 8)))[0] * np.sqrt(40)
    y = X @ np.array([3, 2, 1, 0.1, 0.1, 0, 0, 0]) + 0.1 * rng.standard_normal(40)
    best, point = least_squares_optimum(X, y, 0.0, 3)
    objective = ellzero.LeastSquares(tensor(X), tensor(y))
    certificate = verify(Problem(objective, ellzero.L0Ball(3)), {"coef": tensor(point)})
    assert certificate.claim is Claim.OPTIMAL
    assert certificate.measures["sufficient_test"] is True
    assert certificate.gap <= 1e-9
    np.testing.assert_allclose(certificate.lower_bound, best, rtol=1e-9)


class _Scaled:
    """Build least squares problems whose value is `factor` times that of another."""

    def __init__(self, X, y, ridge):
        self.X, self.y, self.ridge = X, y, ridge

    def __call__(self, factor):
        root = np.sqrt(factor)
        return ellzero.LeastSquares(
            tensor(root * self.X), tensor(root * self.y), ridge=factor * self.ridge
        )


@pytest.mark.parametrize("budget", [1, 3])
def test_scale_order_and_repetition_do_not_matter(budget):
    X, y = regression(11, n=7)
    best, point = least_squares_optimum(X, y, 0.05, budget)
    wrong = point.copy()
    wrong[np.flatnonzero(point)[0]] *= 1.01
    moved = np.zeros(7)
    other = all_supports(7, budget)[0]
    A = X[:, other]
    gram = A.T @ A / len(y) + 0.05 * np.eye(budget)
    moved[other] = np.linalg.solve(gram, A.T @ y / len(y))
    order = np.random.default_rng(0).permutation(7)
    make = _Scaled(X, y, 0.05)
    ball = ellzero.L0Ball(budget)
    for candidate in (point, wrong, moved):
        base = verify(Problem(make(1.0), ball), {"coef": tensor(candidate)})
        variants = {
            factor: verify(Problem(make(factor), ball), {"coef": tensor(candidate)})
            for factor in (1e-3, 1e3)
        }
        variants["order"] = verify(
            Problem(_Scaled(X[:, order], y, 0.05)(1.0), ball), {"coef": tensor(candidate[order])}
        )
        variants["twice"] = verify(
            Problem(_Scaled(np.vstack([X, X]), np.hstack([y, y]), 0.05)(1.0), ball),
            {"coef": tensor(candidate)},
        )
        for name, variant in variants.items():
            assert variant.claim is base.claim, name
            assert variant.gap == pytest.approx(base.gap, abs=1e-6)
    assert best > 0


def test_float32_data_are_certified_in_float64():
    X, y = classes(3, n=6)
    X = X.astype(np.float32)
    _, point = classifier_optimum(logistic_design(X.astype(float)), y, 0.1, 2)
    objective = ellzero.Logistic(torch.as_tensor(X), torch.as_tensor(y), ridge=0.1)
    problem = Problem(objective, ellzero.L0Ball(2))
    exact = verify(problem, {"coef": tensor(point)})
    assert exact.measures["grad_on_support"] < 1e-12
    assert exact.claim >= Claim.GAP
    stored = verify(problem, {"coef": torch.as_tensor(point, dtype=torch.float32)})
    assert stored.claim is exact.claim
    assert stored.measures["dtype"] == "float32"
    assert stored.measures["grad_on_support"] > 1e-10


def test_perfect_fit():
    rng = np.random.default_rng(2)
    X = rng.standard_normal((30, 8))
    point = np.array([0.0, 2.0, 0, 0, -1.5, 0, 0, 0])
    objective = ellzero.LeastSquares(tensor(X), tensor(X @ point))
    certificate = verify(Problem(objective, ellzero.L0Ball(2)), {"coef": tensor(point)})
    assert certificate.claim is Claim.OPTIMAL


def test_zero_point():
    X, y = regression(1, n=5)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    zero = objective.init_params()
    assert verify(Problem(objective, ellzero.L0Ball(0)), zero).claim is Claim.OPTIMAL
    assert verify(Problem(objective, ellzero.L0Ball(2)), zero).claim is Claim.FEASIBLE
    silent = ellzero.LeastSquares(tensor(X), tensor(0 * y), ridge=0.1)
    assert verify(Problem(silent, ellzero.L0Ball(2)), zero).claim is Claim.OPTIMAL


def test_without_constraint():
    X, y = regression(1, n=5)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    w = np.linalg.solve(X.T @ X / len(y) + 0.1 * np.eye(5), X.T @ y / len(y))
    assert verify(Problem(objective), {"coef": tensor(w)}).claim is Claim.OPTIMAL
    assert verify(Problem(objective), {"coef": tensor(1.01 * w)}).claim is Claim.FEASIBLE


def test_penalty_is_stationary_at_its_minimizer():
    target = np.array([3.0, 0.5, -2.0])
    objective = ellzero.Quadratic(torch.eye(3).double(), tensor(target))
    problem = Problem(objective, penalty=ellzero.L1(1.0))
    shrunk = np.sign(target) * np.maximum(abs(target) - 1, 0)
    certificate = verify(problem, {"coef": tensor(shrunk)})
    assert certificate.claim is Claim.STATIONARY
    assert certificate.measures["value"] == pytest.approx(
        objective.value({"coef": tensor(shrunk)}).item() + abs(shrunk).sum()
    )
    assert verify(problem, {"coef": tensor(target)}).claim is Claim.FEASIBLE


def test_bounds_groups_and_patterns_are_fixed_points():
    c = np.array([3.0, -4.0, 1.0, 2.0])
    objective = ellzero.Quadratic(torch.eye(4).double(), tensor(c))
    cases = [
        (ellzero.L0Ball(2, nonnegative=True), [3.0, 0, 0, 2.0], [3.0, 0, 1.0, 0]),
        (ellzero.L0Ball(1, upper=2.0), [0, -4.0, 0, 0], [2.0, 0, 0, 0]),
        (ellzero.NMPattern(1, 2), [0, -4.0, 0, 2.0], [3.0, 0, 0, 2.0]),
        (ellzero.Box(lower=-1.0, upper=1.0), [1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 0.0]),
    ]
    for constraint, right, wrong in cases:
        problem = Problem(objective, constraint)
        assert verify(problem, {"coef": tensor(right)}).claim >= Claim.STATIONARY
        assert verify(problem, {"coef": tensor(wrong)}).claim is Claim.FEASIBLE
        assert verify(problem, {"coef": tensor([9.0, 9, 9, 9])}).claim is None


def test_module_loss_is_stationary_at_most():
    X, y = regression(1, n=4)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1, bias=False).double()
    objective = ellzero.ModuleLoss(
        model, lambda out, t: (out[:, 0] - t).square().mean() / 2, tensor(X), tensor(y)
    )
    _, point = least_squares_optimum(X, y, 0.0, 2)
    problem = Problem(objective, ellzero.L0Ball(2))
    certificate = verify(problem, {"weight": tensor(point)[None]})
    assert certificate.claim is Claim.STATIONARY
    assert certificate.measures["smoothness_kind"] == "lower estimate"
    assert "No lower bound: `ModuleLoss` is not known to be convex." in certificate.assumptions
    assert any("local lower estimate" in a for a in certificate.assumptions)
    wrong = verify(problem, {"weight": tensor(1.01 * point)[None]}, step_size=0.1)
    assert wrong.claim is Claim.FEASIBLE
    assert wrong.measures["step_size"] == 0.1


def test_dense_reference_can_be_given():
    X, y = regression(1, n=5)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    _, point = least_squares_optimum(X, y, 0.1, 2)
    problem = Problem(objective, ellzero.L0Ball(2))
    given = verify(problem, {"coef": tensor(point)}, dense=objective.init_params())
    assert given.measures["epsilon"] < 0
    assert given.measures["dense_given"] is True
    assert given.measures["dense_residual"] > 0.01


def test_infinite_and_nan_entries():
    objective = ellzero.Quadratic(torch.eye(2).double(), tensor([1.0, 1.0]))
    problem = Problem(objective, ellzero.L0Ball(2))
    for bad in (np.nan, np.inf):
        certificate = verify(problem, {"coef": tensor([bad, 1.0])})
        assert certificate.claim is None
        assert "entries that are not finite" in _failed(certificate)


def test_wrong_input():
    objective = ellzero.Quadratic(torch.eye(2).double(), tensor([1.0, 1.0]))
    problem = Problem(objective)
    with pytest.raises(InvalidParameterError, match="must be one point, got a batch"):
        verify(problem, ellzero.Batch({"coef": torch.zeros(3, 2)}))
    with pytest.raises(InvalidParameterError, match=r"must have shape \(2,\), got \(3,\)"):
        verify(problem, {"coef": torch.zeros(3)})
    with pytest.raises(InvalidParameterError, match="must hold the tensors 'coef', got 'w'"):
        verify(problem, {"w": torch.zeros(2)})
    with pytest.raises(InvalidParameterError, match="`swaps` must be one of"):
        verify(problem, objective.init_params(), swaps="some")
