"""Exchanges of one support entry against enumeration."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import check_swaps
from ellzero.errors import IncompatibleError
from tests.certificates.reference import (
    all_supports,
    classes,
    classifier_minima,
    logistic_design,
    regression,
    softmax_design,
    tensor,
)


def _values(kind, seed, budget):
    """Return objective, supports, their minima and points."""
    ridge = (0.0, 0.02, 0.5)[seed % 3]
    if kind == "least squares":
        X, y = regression(seed, n=7)
        supports = all_supports(7, budget)
        values, points = [], np.zeros((len(supports), 7))
        for row, support in enumerate(supports):
            A = X[:, support]
            gram = A.T @ A / len(y) + ridge * np.eye(budget)
            w = np.linalg.solve(gram, A.T @ y / len(y))
            points[row, support] = w
            values.append(np.mean((A @ w - y) ** 2) / 2 + ridge * w @ w / 2)
        return ellzero.LeastSquares(tensor(X), tensor(y), ridge=ridge), supports, values, points
    ridge = max(ridge, 0.01)
    if kind == "logistic":
        X, y = classes(seed, n=6)
        Z, objective = logistic_design(X), ellzero.Logistic
    else:
        X, y = classes(seed, n=2, n_classes=3)
        Z, objective = softmax_design(X, 3), ellzero.Softmax
    supports = all_supports(6, budget)
    values, w = classifier_minima(Z, y, ridge, supports)
    points = np.zeros((len(supports), 6))
    points[np.arange(len(supports))[:, None], supports] = w
    return objective(tensor(X), torch.as_tensor(y), ridge=ridge), supports, values, points


@pytest.mark.parametrize("kind", ["least squares", "logistic", "softmax"])
def test_verdict_of_every_support(kind):
    verdicts = []
    for seed in range(4):
        budget = 2 + seed % 2
        objective, supports, values, points = _values(kind, seed, budget)
        sets = [frozenset(s) for s in supports.tolist()]
        shape = objective.init_params()["coef"].shape
        for row in range(0, len(supports), 2):
            near = [i for i, s in enumerate(sets) if len(s & sets[row]) == budget - 1]
            decrease = values[row] - min(values[i] for i in near)
            report = check_swaps(
                objective, ellzero.L0Ball(budget), {"coef": tensor(points[row]).reshape(shape)}
            )
            helps = report.best_decrease > 1e-6 * values[row]
            assert helps == (decrease > 1e-6 * values[row])
            assert report.n_checked == len(near)
            if helps:
                # What is reported can be had: by a move along one entry if not by its minimum.
                assert report.best_decrease <= decrease + 1e-9
            else:
                assert report.best_decrease >= decrease - 1e-9
            verdicts.append(helps)
    assert any(verdicts)
    assert not all(verdicts)


def test_short_support_is_offered_additions():
    X, y = regression(0, n=7)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    report = check_swaps(objective, ellzero.L0Ball(2), objective.init_params())
    gram, slope = (X**2).mean(0) + 0.1, X.T @ y / len(y)
    assert report.n_checked == 7
    np.testing.assert_allclose(report.best_decrease, (slope**2 / gram / 2).max())
    assert report.best_swap == (None, int((slope**2 / gram).argmax()))


def test_nothing_to_exchange():
    objective = ellzero.LeastSquares(torch.eye(2).double(), tensor([1.0, 2.0]))
    point = {"coef": tensor([1.0, 2.0])}
    assert check_swaps(objective, ellzero.L0Ball(2), point).n_checked == 0


def test_limit_is_said():
    X, y = classes(1, n=6)
    objective = ellzero.Logistic(tensor(X), torch.as_tensor(y), ridge=0.001)
    values, w = classifier_minima(logistic_design(X), y, 0.001, all_supports(6, 3))
    point = np.zeros(6)
    best = values.argmin()
    point[all_supports(6, 3)[best]] = w[best]
    full = check_swaps(objective, ellzero.L0Ball(3), {"coef": tensor(point)})
    assert full.is_complete
    assert full.n_solved > 0
    report = check_swaps(objective, ellzero.L0Ball(3), {"coef": tensor(point)}, limit=0)
    assert not report.is_complete
    assert report.reason.endswith("exchanges need a minimization, above the limit of 0")


def test_duplicated_columns():
    X, y = regression(4, n=4)
    X = np.hstack([X, X[:, :1]])
    objective = ellzero.LeastSquares(tensor(X), tensor(y))
    w = np.linalg.lstsq(X[:, :2], y, rcond=None)[0]
    point = {"coef": tensor([*w, 0.0, 0.0, 0.0])}
    # The copy of the first column can take its place without any change of the value.
    report = check_swaps(objective, ellzero.L0Ball(2), point)
    assert np.isfinite(report.best_decrease)
    assert report.best_decrease >= -1e-12


def test_refusals():
    objective = ellzero.LeastSquares(torch.eye(2).double(), tensor([1.0, 2.0]))
    with pytest.raises(IncompatibleError, match="`L0Ball` without bounds"):
        check_swaps(objective, ellzero.L0Ball(1, nonnegative=True), objective.init_params())
