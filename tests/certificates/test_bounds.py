"""Lower bounds against the optimum found by enumeration."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import (
    box_bound,
    dual_bound,
    lower_bound,
    perspective_bound,
    point_bound,
)
from ellzero.errors import InvalidParameterError
from ellzero.tensors.named import Batch
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

# What rounding of the enumeration may do, relative to the value.
SLACK = 1e-9


def _problems(kind, seed):
    rng = np.random.default_rng(1000 + seed)
    ridge = float(rng.choice([0.01, 0.1, 1.0]))
    if kind == "least squares":
        ridge = 0.0 if seed % 3 == 0 else ridge
        X, y = regression(seed, n=6)
        optimum = lambda s: least_squares_optimum(X, y, ridge, s)  # noqa: E731
        return ellzero.LeastSquares(tensor(X), tensor(y), ridge=ridge), optimum, rng
    if kind == "logistic":
        X, y = classes(seed, n=6)
        Z = logistic_design(X)
        objective = ellzero.Logistic(tensor(X), torch.as_tensor(y), ridge=ridge)
    else:
        X, y = classes(seed, n=2, n_classes=3)
        Z = softmax_design(X, 3)
        objective = ellzero.Softmax(tensor(X), torch.as_tensor(y), ridge=ridge)
    return objective, lambda s: classifier_optimum(Z, y, ridge, s), rng


def _batch(objective, points):
    shape = objective.init_params()["coef"].shape
    return Batch({"coef": tensor(points).reshape(-1, *shape)})


@pytest.mark.parametrize("kind", ["least squares", "logistic", "softmax"])
def test_never_above_the_optimum(kind):
    tightest = []
    for seed in range(4):
        objective, optimum, rng = _problems(kind, seed)
        for budget in (1, 3):
            best, point = optimum(budget)
            points = np.concatenate(
                [point[None], rng.standard_normal((60, 6)) * rng.choice([0.1, 1, 10], (60, 1))]
            )
            points[20:] *= rng.random((41, 6)) < 0.5
            ball, batch = ellzero.L0Ball(budget), _batch(objective, points)
            assert (point_bound(objective, ball, batch) <= best + SLACK * abs(best)).all()
            if objective.strong_convexity() and kind != "least squares":
                assert (dual_bound(objective, ball, batch) <= best + SLACK * abs(best)).all()
            relaxed = perspective_bound(objective, ball)
            assert relaxed.value <= best + SLACK * abs(best)
            assert relaxed.value >= point_bound(objective, ball, batch).max() - 1e-4 * abs(best)
            tightest.append((best - relaxed.value) / best)
    assert np.median(tightest) < 0.05


@pytest.mark.parametrize("kind", ["logistic", "softmax"])
def test_agrees_with_the_dual_bound(kind):
    # Two formulas for one number: the second goes through the conjugate of the loss.
    objective, _, rng = _problems(kind, 3)
    batch = _batch(objective, rng.standard_normal((50, 6)))
    for budget in (0, 1, 3, 6):
        ball = ellzero.L0Ball(budget)
        torch.testing.assert_close(
            point_bound(objective, ball, batch),
            dual_bound(objective, ball, batch),
            rtol=1e-8,
            atol=1e-8,
        )


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_boxes_never_above_the_optimum_inside(budget):
    X, y = classes(7, n=6)
    ridge = 0.05
    objective = ellzero.Logistic(tensor(X), torch.as_tensor(y), ridge=ridge)
    supports = all_supports(6, budget)
    values, _ = classifier_minima(logistic_design(X), y, ridge, supports)
    inside = np.zeros((len(supports), 6), dtype=bool)
    inside[np.arange(len(supports))[:, None], supports] = True
    rng = np.random.default_rng(budget)
    state = rng.integers(-1, 2, (600, 6))
    points = rng.standard_normal((600, 6))
    included, excluded = state == 1, state == -1
    bounds = box_bound(
        objective, tensor(points), budget, torch.as_tensor(included), torch.as_tensor(excluded)
    ).numpy()
    tested = 0
    for row in range(600):
        fits = (inside[:, included[row]].all(1)) & ~(inside[:, excluded[row]].any(1))
        if fits.any():
            assert bounds[row] <= values[fits].min() * (1 + SLACK)
            tested += 1
    assert tested > 100


def test_box_of_one_support_is_tight():
    X, y = regression(1, n=5)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    best, point = least_squares_optimum(X, y, 0.1, 2)
    included = torch.as_tensor(point != 0)[None]
    bound = box_bound(objective, tensor(point)[None], 2, included, ~included)
    np.testing.assert_allclose(bound.numpy(), best, rtol=1e-12)


def test_free_entries_are_always_inside():
    X, y = regression(2, n=5)
    y = y + 3.0
    design = np.hstack([X, np.ones((len(X), 1))])
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1, fit_intercept=True)
    for budget in (1, 2, 3):
        best, _ = least_squares_optimum(design, y, 0.1, budget, always=(5,))
        bound = perspective_bound(objective, ellzero.L0Ball(budget, names=("coef",)))
        assert best * 0.8 <= bound.value <= best * (1 + SLACK)


def test_ridge_that_varies_over_entries():
    X, y = classes(4, n=4)
    objective = ellzero.Logistic(tensor(X), torch.as_tensor(y), ridge=0.1)
    uneven = ellzero.Logistic(
        tensor(X),
        torch.as_tensor(y),
        ridge={"coef": 0.1, "intercept": 1e-9},
        fit_intercept=True,
    )
    point = {**objective.init_params(), "intercept": tensor(0.0)}
    for _ in range(60):
        slope = uneven.value_and_grad(point)[1]["intercept"]
        point["intercept"] = point["intercept"] - 4 * slope
    bound = point_bound(uneven, ellzero.L0Ball(2, names=("coef",)), point)
    values, _ = classifier_minima(
        logistic_design(np.hstack([X, np.ones((len(X), 1))])),
        y,
        0.1,
        all_supports(5, 2, always=(4,)),
    )
    # The reference ridges the intercept too, so it can only be higher.
    assert -1 < bound <= values.min()


def test_groups_and_patterns_use_their_own_oracle():
    X, y = regression(5, n=6)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.2)
    pattern = ellzero.NMPattern(1, 2)
    bound = point_bound(objective, pattern, {"coef": tensor(np.linalg.lstsq(X, y, rcond=None)[0])})
    best = np.inf
    for bits in range(8):
        support = np.array([2 * g + (bits >> g & 1) for g in range(3)])
        A = X[:, support]
        w = np.linalg.solve(A.T @ A / len(y) + 0.2 * np.eye(3), A.T @ y / len(y))
        best = min(best, np.mean((A @ w - y) ** 2) / 2 + 0.1 * w @ w)
    loose = point_bound(
        objective, ellzero.L0Ball(3), {"coef": tensor(np.linalg.lstsq(X, y, rcond=None)[0])}
    )
    assert loose <= bound <= best


def test_many_entries_use_gradient_steps(monkeypatch):
    X, y = regression(6, n_samples=60, n=12)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.5)
    exact = perspective_bound(objective, ellzero.L0Ball(3), max_iter=400)
    monkeypatch.setattr("ellzero.certificates.bounds.NEWTON_ENTRIES", 0)
    first_order = perspective_bound(objective, ellzero.L0Ball(3), max_iter=2000)
    assert abs(first_order.value - exact.value) <= 1e-5 * abs(exact.value)


def test_iris_softmax_bound():
    X, y = iris_recipe()
    objective = ellzero.Softmax(tensor(X), torch.as_tensor(y), ridge=0.01)
    for budget, least, most in ((3, 0.35097, 0.36682), (5, 0.3010, 0.30825), (8, 0.2715, 0.27154)):
        bound = perspective_bound(objective, ellzero.L0Ball(budget))
        assert least <= bound.value <= most


def test_no_strong_convexity_gives_no_bound():
    X, y = iris_recipe()
    objective = ellzero.Softmax(tensor(X), torch.as_tensor(y))
    point = objective.init_params()
    assert point_bound(objective, ellzero.L0Ball(5), point) == -torch.inf
    assert lower_bound(objective, ellzero.L0Ball(5), {"point": point}) is None


def test_wrong_shape_of_points():
    objective = ellzero.LeastSquares(torch.eye(3).double(), tensor([1.0, 2.0, 3.0]))
    with pytest.raises(InvalidParameterError, match=r"shape \(K, 3\), got \(2, 4\)"):
        box_bound(objective, torch.zeros(2, 4, dtype=torch.float64), 1)
