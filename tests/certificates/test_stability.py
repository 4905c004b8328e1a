"""Stability under hard thresholding against its definition, and the descent inequality."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import ht_stability
from ellzero.errors import InvalidParameterError
from ellzero.tensors.named import Batch
from tests.certificates.reference import tensor


def _is_nearest(theta, moved, budget):
    """Return whether theta is one of the nearest points with at most `budget` nonzeros."""
    distance = ((moved - theta) ** 2).sum(1)
    least = np.sort(moved**2, axis=1)[:, : moved.shape[1] - budget].sum(1)
    return ((theta != 0).sum(1) <= budget) & (distance == least)


@pytest.mark.parametrize("budget", [0, 1, 2, 4, 5])
def test_predicate_is_the_definition(budget):
    # Small integers and a dyadic step: exact arithmetic, with many ties and short supports.
    rng = np.random.default_rng(budget)
    n, rows, seen = 5, 400, []
    for _ in range(12):
        c = rng.integers(-2, 3, n).astype(float)
        diagonal = rng.integers(1, 3, n).astype(float)
        theta = rng.integers(-2, 3, (rows, n)).astype(float)
        keep = rng.random((rows, n)) < 0.5
        theta[: rows // 2] = np.where(keep, c / diagonal, 0.0)[: rows // 2]
        objective = ellzero.Quadratic(torch.diag(tensor(diagonal)), tensor(c))
        for step in (0.25, 0.5, 1.0):
            grad = diagonal * theta - c
            expected = _is_nearest(theta, theta - step * grad, budget)
            report = ht_stability(
                objective,
                ellzero.L0Ball(budget),
                Batch({"coef": tensor(theta)}),
                step,
                tol=0.0,
            )
            np.testing.assert_array_equal(report.stable.numpy(), expected)
            inside = expected | (np.count_nonzero(theta, axis=1) <= budget)
            np.testing.assert_array_equal((report.residual.numpy() == 0)[inside], expected[inside])
            seen.append(expected)
    seen = np.concatenate(seen)
    assert seen.any()
    assert not seen.all()


def test_scalars_of_one_point():
    objective = ellzero.Quadratic(torch.eye(4).double(), tensor([3.0, -2.0, 1.0, 0.5]))
    point = {"coef": tensor([3.0, 0.0, 1.0, 0.0])}
    report = ht_stability(objective, ellzero.L0Ball(2), point, 0.25)
    assert (report.stable, report.tied, report.short_support) == (True, False, False)
    assert report.grad_off_support == 2.0
    assert report.smallest_magnitude == 1.0
    assert report.largest_stable_step == 0.5
    assert report.margin == 0.5
    tied = ht_stability(objective, ellzero.L0Ball(2), point, 0.5)
    assert tied.stable
    assert tied.tied
    beyond = ht_stability(objective, ellzero.L0Ball(2), point, 0.500001)
    assert not beyond.stable
    assert beyond.residual > 1
    short = ht_stability(objective, ellzero.L0Ball(3), point, 0.25)
    assert short.short_support
    assert not short.stable


def test_free_tensors_belong_to_the_support():
    X, y = tensor(np.eye(3)), tensor([1.0, 2.0, 6.0])
    objective = ellzero.LeastSquares(X, y, fit_intercept=True)
    ball = ellzero.L0Ball(1, names=("coef",))
    # Two samples meet their mean through the free intercept, the third its own coefficient.
    good = {"coef": tensor([0.0, 0.0, 4.5]), "intercept": tensor(1.5)}
    report = ht_stability(objective, ball, good, 1.0)
    assert report.stable
    assert report.n_nonzero == 1
    assert report.smallest_magnitude == 4.5
    off = {"coef": tensor([0.0, 0.0, 4.5]), "intercept": tensor(1.4)}
    assert not ht_stability(objective, ball, off, 1.0).stable


def test_wrong_step_size():
    objective = ellzero.Quadratic(torch.eye(2).double(), tensor([1.0, 1.0]))
    with pytest.raises(InvalidParameterError, match="`step_size` must be"):
        ht_stability(objective, ellzero.L0Ball(1), objective.init_params(), 0.0)


def test_descent_inequality():
    # f(y) <= f(x) - (g/2)(1 - g L)|grad_J|^2 - (g/2)|grad_I|^2 - (1/g - L)/2 |x_(I minus J)|^2,
    # for convex and indefinite quadratics and every step size.
    generator = torch.Generator().manual_seed(0)
    rows, n, budget = 20_000, 6, 3
    factor = torch.randn(rows, n, n, generator=generator, dtype=torch.float64)
    A = factor @ factor.transpose(1, 2) / n
    A[::2] -= 0.5 * torch.eye(n, dtype=torch.float64)
    c = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    L = torch.linalg.eigvalsh(A)[:, -1].clamp_min(1e-3)
    step = (2.5 * torch.rand(rows, generator=generator, dtype=torch.float64) + 1e-3) / L
    step[::5] = 1 / L[::5]
    ball = ellzero.L0Ball(budget)
    start = torch.randn(rows, n, generator=generator, dtype=torch.float64)
    x = ball.project(Batch({"coef": start}))["coef"]
    x[::3, 0] = 0.0

    def value(t):
        return ((A @ t.unsqueeze(-1)).squeeze(-1) * t).sum(1) / 2 - (c * t).sum(1)

    grad = (A @ x.unsqueeze(-1)).squeeze(-1) - c
    moved = Batch({"coef": x - step.unsqueeze(1) * grad})
    J = ball.select(Batch({"coef": moved["coef"].square()}))["coef"]
    y = ball.project(moved)["coef"]
    assert (y == torch.where(J, moved["coef"], 0.0)).all()
    on_J = (grad.square() * J).sum(1)
    on_I = (grad.square() * (x != 0)).sum(1)
    lost = (x.square() * ~J).sum(1)
    bound = (
        value(x) - step / 2 * (1 - step * L) * on_J - step / 2 * on_I - (1 / step - L) / 2 * lost
    )
    assert (value(y) <= bound + 1e-12 * (1 + bound.abs())).all()
