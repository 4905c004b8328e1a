"""The relaxation of least squares on a few entries, against other ways to the same numbers."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import ellzero
from ellzero.certificates import (
    bounds,
    box_bound,
    check_swaps,
    lower_bound,
    perspective_bound,
    point_bound,
    relaxation,
    verify,
)
from ellzero.certificates.relaxation import shrink, squared_norm
from ellzero.core.result import Claim
from tests.certificates.reference import all_supports, tensor


def over_z(gain, slope, size, budget):
    """Minimize a smooth convex function of z over 0 <= z <= 1 with sum z <= budget."""
    start = np.full(size, budget / size)
    found = minimize(
        gain,
        start,
        jac=slope,
        bounds=[(1e-9, 1.0)] * size,
        constraints={
            "type": "ineq",
            "fun": lambda z: budget - z.sum(),
            "jac": lambda z: -z * 0 - 1,
        },
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return found.fun


@pytest.mark.parametrize("seed", range(8))
def test_squared_norm_is_the_least_over_z(seed):
    rng = np.random.default_rng(seed)
    t = rng.standard_normal(6) * 10.0 ** rng.integers(-1, 2, 6)
    for budget in (1, 2, 4):
        least = over_z(lambda z: (t**2 / z).sum() / 2, lambda z: -((t / z) ** 2) / 2, 6, budget)
        assert squared_norm(t, budget) == pytest.approx(least, rel=1e-5)
    assert squared_norm(t, 6) == pytest.approx(t @ t / 2)
    assert squared_norm(t * 0, 2) == 0


@pytest.mark.parametrize("seed", range(8))
def test_shrink_is_the_proximal_point(seed):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal(7)
    v[rng.integers(7)] = 0.0
    weight = 10.0 ** rng.uniform(-2, 1)
    for budget in (1, 3, 6, 7):
        t, ones, between = shrink(v, weight, budget)

        def value(t, budget=budget):
            return ((t - v) ** 2).sum() / 2 + weight * squared_norm(t, budget)

        best = value(t)
        for length in (1e-1, 1e-3, 1e-5):
            for _ in range(100):
                assert value(t + length * rng.standard_normal(7)) >= best - 1e-15
        assert not (ones & between).any()
        assert not t[~(ones | between)].any()
        assert np.count_nonzero(ones) <= budget


def regression_with_intercept(seed, n=25, p=9, outputs=None):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p))) + 2.0
    shape = (p,) if outputs is None else (p, outputs)
    y = X @ rng.standard_normal(shape)
    return X, y + np.std(y) * rng.standard_normal(y.shape) + 5.0, rng


def optimum(X, y, ridge, size, weight):
    """Return the least value over supports of one size, the intercept free."""
    w = np.ones(len(X)) if weight is None else weight
    share = w / w.sum()
    A, b = X - share @ X, y - share @ y
    best = np.inf
    for support in all_supports(X.shape[1], size):
        B = A[:, support] * np.sqrt(share)[:, None]
        G = B.T @ B + ridge * np.eye(size)
        c = B.T @ (b * np.sqrt(share))
        best = min(best, (share @ b**2 - c @ np.linalg.solve(G, c)) / 2)
    return best


def relaxed(X, y, ridge, size, weight):
    """Return the value of the perspective relaxation, as a function of z minimized by SLSQP."""
    w = np.ones(len(X)) if weight is None else weight
    share = w / w.sum()
    root = np.sqrt(share)
    A, b = (X - share @ X) * root[:, None], (y - share @ y) * root

    def solve(z):
        return np.linalg.solve(np.eye(len(X)) + (A * z) @ A.T / ridge, b)

    return over_z(
        lambda z: b @ solve(z) / 2,
        lambda z: -((A.T @ solve(z)) ** 2) / (2 * ridge),
        X.shape[1],
        size,
    )


@pytest.mark.parametrize("seed", range(8))
def test_bound_with_a_free_intercept(seed, monkeypatch):
    X, y, rng = regression_with_intercept(seed, n=(6 if seed % 2 else 25))
    ridge = (0.02, 0.3)[seed // 2 % 2]
    weight = rng.uniform(0.2, 2.0, len(X)) if seed % 3 == 0 else None
    objective = ellzero.LeastSquares(
        tensor(X),
        tensor(y),
        ridge={"coef": ridge, "intercept": 0.0},
        fit_intercept=True,
        sample_weight=None if weight is None else tensor(weight),
    )
    for size in (1, 2, 4):
        ball = ellzero.L0Ball(size, names=("coef",))
        best = optimum(X, y, ridge, size, weight)
        # Without the curvature of the loss this is the relaxation with the ridge alone.
        least = relaxed(X, y, ridge, size, weight)
        for first in (100, 3):
            monkeypatch.setattr(bounds, "FIRST_ENTRIES", first)
            found = perspective_bound(objective, ball)
            assert found.value <= best * (1 + 1e-9)
            assert found.value >= least * (1 - 1e-5)
            # The base point alone gives the bound again.
            counted = torch.ones(10, dtype=torch.bool)
            counted[9] = False
            again = box_bound(objective, found.point.unsqueeze(0), size, counted=counted)
            assert again.item() == pytest.approx(found.value, rel=1e-9)


def test_several_outputs_and_a_ridged_intercept(monkeypatch):
    monkeypatch.setattr(bounds, "FIRST_ENTRIES", 4)
    X, y, _ = regression_with_intercept(3, outputs=2, p=4)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.2, fit_intercept=True)
    found = perspective_bound(objective, ellzero.L0Ball(3, names=("coef",)))
    Z = np.zeros((2 * len(X), 10))
    Z[: len(X), :4], Z[: len(X), 8] = X, 1.0
    Z[len(X) :, 4:8], Z[len(X) :, 9] = X, 1.0
    best = np.inf
    for support in all_supports(8, 3):
        on = [*support, 8, 9]
        G = Z[:, on].T @ Z[:, on] / len(X) + 0.2 * np.eye(5)
        c = Z[:, on].T @ y.T.reshape(-1) / len(X)
        best = min(best, (y**2).sum() / len(X) / 2 - c @ np.linalg.solve(G, c) / 2)
    assert best * 0.5 < found.value <= best * (1 + 1e-9)


def test_far_targets_keep_the_bound_below():
    X, y, _ = regression_with_intercept(4)
    for shift in (0.0, 1e4, 1e7):
        objective = ellzero.LeastSquares(
            tensor(X), tensor(y + shift), ridge={"coef": 0.3, "intercept": 0.0}, fit_intercept=True
        )
        found = perspective_bound(objective, ellzero.L0Ball(2, names=("coef",)))
        best = optimum(X, y, 0.3, 2, None)
        assert best * 0.75 < found.value <= best * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_logistic_with_a_free_intercept(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((40, 5))
    y = X @ rng.standard_normal(5) + 1.0 + rng.standard_normal(40) > 0
    objective = ellzero.Logistic(
        tensor(X), torch.as_tensor(y), ridge={"coef": 0.05, "intercept": 0.0}, fit_intercept=True
    )
    sign = np.where(y, 1.0, -1.0)

    def value(b, support):
        margin = sign * (X[:, support] @ b[:-1] + b[-1])
        return np.logaddexp(0, -margin).mean() + 0.05 * b[:-1] @ b[:-1] / 2

    best = min(minimize(value, np.zeros(3), args=(s,), tol=1e-12).fun for s in all_supports(5, 2))
    ball = ellzero.L0Ball(2, names=("coef",))
    bound = perspective_bound(objective, ball)
    assert best * 0.8 < bound.value <= best * (1 + 1e-9)
    # A point with a wrong intercept still gives a valid bound.
    point = {"coef": tensor(rng.standard_normal(5)), "intercept": torch.tensor(3.0).double()}
    assert -np.inf < point_bound(objective, ball, point).item() <= best


def test_no_matrix_of_all_pairs_and_few_gradients(monkeypatch):
    def refuse(self):
        raise AssertionError("a matrix of p by p was formed")

    monkeypatch.setattr(ellzero.objectives.linear.AbstractLinearLoss, "_gram_matrix", refuse)
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 3000))
    y = X[:, :5] @ np.ones(5) + rng.standard_normal(100)
    objective = ellzero.LeastSquares(
        tensor(X), tensor(y), ridge={"coef": 0.5, "intercept": 0.0}, fit_intercept=True
    )
    A, b = X[:, :5] - X[:, :5].mean(0), y - y.mean()
    beta = np.linalg.solve(A.T @ A + 50 * np.eye(5), A.T @ b)
    coef = np.zeros(3000)
    coef[:5] = beta
    params = {"coef": tensor(coef), "intercept": tensor(y.mean() - X[:, :5].mean(0) @ beta)}
    problem = ellzero.Problem(objective, ellzero.L0Ball(5, names=("coef",)))
    count = 0
    original = ellzero.LeastSquares.value_and_grad

    def counted(self, params):
        nonlocal count
        count += 1
        return original(self, params)

    monkeypatch.setattr(ellzero.LeastSquares, "value_and_grad", counted)
    certificate = verify(problem, params)
    assert certificate.claim is Claim.GAP
    assert certificate.gap < 0.5
    assert count < 60
    # The smoothness is above that of every pair of supports that was tried.
    smoothness = certificate.measures["smoothness"]
    for _ in range(20):
        on = rng.permutation(3000)[:10]
        assert np.linalg.norm(X[:, on], 2) ** 2 / 100 <= smoothness
    assert certificate.measures["smoothness_kind"] == "upper bound"


def simple(ridge, n=60, p=120):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n, p))
    y = X[:, 0] + 0.3 * rng.standard_normal(n)
    A, b = X[:, 0] - X[:, 0].mean(), y - y.mean()
    beta = A @ b / (A @ A + n * ridge)
    coef = np.zeros(p)
    coef[0] = beta
    objective = ellzero.LeastSquares(
        tensor(X), tensor(y), ridge={"coef": ridge, "intercept": 0.0}, fit_intercept=True
    )
    problem = ellzero.Problem(objective, ellzero.L0Ball(1, names=("coef",)))
    return problem, {"coef": tensor(coef), "intercept": tensor(y.mean() - X[:, 0].mean() * beta)}


NO_SWAP = (
    "No single swap improves this model, which is exact: every one was priced with everything "
    "refitted."
)


def test_no_bound_is_said_plainly():
    certificate = verify(*simple(0.0))
    assert certificate.claim is Claim.COORDINATEWISE
    assert certificate.gap is None
    assert certificate.assumptions[:2] == (
        "No lower bound on what other supports reach is possible: without ridge, and with "
        "dependent columns or more columns than samples, the loss is not strongly convex; pass "
        "ridge > 0.",
        NO_SWAP,
    )


def test_a_vacuous_bound_is_said_plainly():
    certificate = verify(*simple(1e-3))
    assert certificate.gap > 0.5
    assert certificate.assumptions[1] == NO_SWAP
    share = "all" if certificate.gap >= 1 else f"{100 * certificate.gap:.0f} %"
    assert certificate.assumptions[0] == (
        f"The lower bound is vacuous, {share} of the value is unexplained: it says nothing about "
        "how good this point is. More ridge gives a better bound."
    )
    certificate = verify(*simple(3.0))
    assert certificate.gap < 0.5
    assert certificate.assumptions == ("Everything is computed in float64, up to rounding.",)


def test_a_vacuous_relaxation_is_given_up_early(monkeypatch):
    problem, params = simple(1e-3)
    sizes = []
    original = relaxation.solve_working

    def watched(problem, t, tol):
        sizes.append(t.size)
        return original(problem, t, tol)

    monkeypatch.setattr(bounds, "solve_working", watched)
    monkeypatch.setattr(bounds, "FIRST_ENTRIES", 10)
    value = problem.objective.value(params).item()
    full = perspective_bound(problem.objective, problem.constraint)
    n_full = len(sizes)
    monkeypatch.setattr(bounds, "VACUOUS_WORK", 0)
    early = lower_bound(
        problem.objective, problem.constraint, {"at the point": params}, target=value
    )
    assert len(sizes) - n_full <= 2 < n_full / 3
    assert early.value <= full.value < value / 2


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_of_a_logistic_model_with_a_free_intercept(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 7))
    y = X[:, :2] @ np.array([2.0, -1.5]) + 1.0 + rng.standard_normal(60) > 0
    objective = ellzero.Logistic(
        tensor(X), torch.as_tensor(y), ridge={"coef": 0.2, "intercept": 0.0}, fit_intercept=True
    )
    sign = np.where(y, 1.0, -1.0)

    def value(b, support):
        margin = sign * (X[:, support] @ b[:-1] + b[-1])
        return np.logaddexp(0, -margin).mean() + 0.1 * b[:-1] @ b[:-1]

    def fit(support):
        return minimize(value, np.zeros(3), args=(support,), tol=1e-12)

    for support in ([0, 1], [0, 5]):
        found = fit(support)
        coef = np.zeros(7)
        coef[support] = found.x[:2]
        params = {"coef": tensor(coef), "intercept": tensor(found.x[2])}
        near = [[i, j] for i in support for j in range(7) if j not in support]
        best = min(fit(s).fun for s in near)
        report = check_swaps(objective, ellzero.L0Ball(2, names=("coef",)), params)
        assert report.n_checked == 10
        if best < found.fun - 1e-6:
            assert report.best_decrease > 1e-6
        else:
            # Most are excluded by their bounds, which are never above the minima.
            assert report.n_solved < 10
            assert found.fun - best - 1e-8 <= report.best_decrease <= 1e-6
