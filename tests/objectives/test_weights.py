"""Sample weights, and what is particular to the Poisson and Huber losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ellzero.certificates import box_bound, dual_bound, perspective_bound, point_bound
from ellzero.objectives import Huber, LeastSquares, Logistic, Poisson, Softmax
from ellzero.sets import L0Ball
from ellzero.tensors import named
from ellzero.tensors.named import Batch

KINDS = (LeastSquares, Logistic, Softmax, Poisson, Huber)
N, P = 25, 4


def data(kind, seed=0):
    rng = np.random.default_rng(seed)
    X = torch.as_tensor(rng.normal(size=(N, P)) * [1.0, 2.0, 0.5, 1.0])
    labels = torch.as_tensor(rng.integers(0, 3, N))
    y = torch.as_tensor(rng.normal(size=N))
    return X, {Logistic: labels > 0, Softmax: labels, Poisson: labels}.get(kind, y)


def points(objective, size=5, seed=1):
    zero = objective.init_params()
    flat = np.random.default_rng(seed).normal(size=(size, named.size(zero)))
    return Batch(named.unflatten(torch.as_tensor(flat), zero))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_repetitions(kind, scale):
    X, y = data(kind)
    count = torch.as_tensor(np.random.default_rng(2).integers(0, 4, N))
    options = {"ridge": {"coef": 0.1}, "fit_intercept": True}
    weighted = kind(X, y, sample_weight=scale * count.double(), **options)
    repeated = kind(X.repeat_interleave(count, 0), y.repeat_interleave(count, 0), **options)
    batch, direction = points(weighted), points(weighted, seed=3)
    for a, b in zip(weighted.value_and_grad(batch), repeated.value_and_grad(batch), strict=True):
        close(*(t if isinstance(t, torch.Tensor) else named.flatten(t) for t in (a, b)))
    close(
        named.flatten(weighted.hessian_vector(batch, direction)),
        named.flatten(repeated.hessian_vector(batch, direction)),
    )
    index = torch.tensor([[0, 2, 4]]).expand(5, 3)
    close(weighted.hessian_on(batch, index), repeated.hessian_on(batch, index))
    close(
        weighted.conjugate(weighted.dual_point(batch)),
        repeated.conjugate(repeated.dual_point(batch)),
    )
    close(
        named.flatten(weighted.adjoint(weighted.dual_point(batch))),
        named.flatten(repeated.adjoint(repeated.dual_point(batch))),
    )
    if kind is not Poisson:
        assert weighted.smoothness() == pytest.approx(repeated.smoothness(), rel=1e-10)
        close(weighted.curvature_bound().right, repeated.curvature_bound().right)


def test_weighted_refits_are_those_of_repeated_samples(monkeypatch):
    X, y = data(LeastSquares)
    X = torch.cat([X, X[:, :1]], 1)  # dependent columns take the other way
    count = torch.as_tensor(np.random.default_rng(2).integers(0, 4, N))
    masks = Batch({"coef": torch.as_tensor(np.random.default_rng(4).random((12, 5)) < 0.6)})
    repeated = LeastSquares(X.repeat_interleave(count, 0), y.repeat_interleave(count, 0))
    expected = repeated.minimize_on(masks)["coef"]
    for limit in (6000, 2):
        monkeypatch.setattr("ellzero.objectives.linear.DENSE_LIMIT", limit)
        found = LeastSquares(X, y, sample_weight=count).minimize_on(masks)["coef"]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 20), (20, 3)])
def test_smoothness_of_weighted_wide_and_tall_data(shape, monkeypatch):
    rng = np.random.default_rng(3)
    X, w = rng.normal(size=shape), rng.uniform(0.1, 5, shape[0])
    exact = np.linalg.eigvalsh(X.T @ np.diag(w / w.sum()) @ X)[-1]

    def objective():
        y = torch.ones(shape[0]).double()
        return Huber(torch.as_tensor(X), y, sample_weight=torch.as_tensor(w))

    assert objective().smoothness() == pytest.approx(exact, rel=1e-9)
    monkeypatch.setattr("ellzero.objectives.linear.DENSE_LIMIT", 2)
    assert exact <= objective().smoothness() <= 20 * exact


@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_with_weights(kind):
    X, y = data(kind, seed=5)
    w = torch.as_tensor(np.random.default_rng(6).uniform(0.0, 3.0, N))
    objective = kind(X, y, ridge=0.2, sample_weight=w)
    zero = objective.init_params()
    start = Batch({n: t.unsqueeze(0) for n, t in zero.items()})
    size = named.size(zero)
    flat = named.flatten(start)
    best = np.inf
    for chosen in (c for c in torch.combinations(torch.arange(size), 2)):
        theta = flat.clone()
        for _ in range(12):
            batch = Batch(named.unflatten(theta, zero))
            value, grad = objective.value_and_grad(batch)
            block = objective.hessian_on(batch, chosen.unsqueeze(0))[0]
            step = torch.linalg.solve(block, named.flatten(grad)[0, chosen])
            length = 1.0
            for _ in range(30):
                trial = theta.clone()
                trial[0, chosen] -= length * step
                if objective.value(Batch(named.unflatten(trial, zero)))[0] <= value[0]:
                    theta = trial
                    break
                length /= 2
        best = min(best, float(objective.value(Batch(named.unflatten(theta, zero)))[0]))
    ball = L0Ball(2)
    relaxed = perspective_bound(objective, ball).value
    assert relaxed <= best * (1 + 1e-9)
    assert relaxed >= 0.5 * best
    for point in (named.row(points(objective, 3), i) for i in range(3)):
        at = point_bound(objective, ball, point)
        assert float(at) <= best
        dual = dual_bound(objective, ball, point)
        if kind is LeastSquares:
            # The curvature of the data helps.
            assert dual <= at
        else:
            close(at, dual)
    every = box_bound(objective, named.flatten(points(objective, 3)), 2)
    assert (every <= best).all()


def test_poisson_is_zero_for_a_perfect_fit_and_exact_near_it():
    X = torch.eye(3).double()
    y = torch.tensor([1000.0, 2.0, 5.0]).double()
    f = Poisson(X, y)
    exact = {"coef": y.log()}
    assert f.value(exact).item() == 0
    # y (exp(d) - 1 - d) with d = 1e-6, without cancellation.
    moved = {"coef": y.log() + 1e-6}
    assert f.value(moved).item() == pytest.approx(1007 / 3 * 5e-13, rel=1e-3)


def test_curvature_of_poisson_on_a_level_set():
    X, y = data(Poisson)
    w = torch.as_tensor(np.random.default_rng(7).uniform(0.5, 2.0, N))
    f = Poisson(X, y, ridge=0.1, sample_weight=w)
    every = torch.arange(P).unsqueeze(0)
    for scale in (0.1, 1.0, 3.0):
        for i in range(4):
            point = named.scale(named.row(points(f, 4), i), scale)
            batch = Batch({n: t.unsqueeze(0) for n, t in point.items()})
            largest = float(torch.linalg.eigvalsh(f.hessian_on(batch, every))[0, -1])
            assert largest <= f.smoothness_below(float(f.value(point)))
    assert f.smoothness_below(-1.0) == 0.0
    # At the lowest level the rates are known: those of the counts.
    alone = Poisson(torch.eye(2).double(), torch.tensor([3.0, 1.0]))
    assert alone.smoothness_below(0.0) == pytest.approx(1.5, rel=1e-6)


def test_zero_counts_that_can_be_told_apart():
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 2.0]]).double()
    f = Poisson(X, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    on = {"coef": torch.tensor([True, False])}
    assert not f.has_minimizer_on(on)
    assert f.has_minimizer_on({"coef": torch.tensor([False, True])})
    assert Poisson(X, torch.tensor([1.0, 1.0, 2.0, 3.0])).has_minimizer_on(on)
    assert Poisson(X, torch.tensor([0.0, 1.0, 2.0, 3.0]), ridge=0.1).has_minimizer_on(on)


def test_huber_between_least_squares_and_absolute_values():
    X, y = data(Huber)
    wide = Huber(X, y, delta=1e6)
    batch = points(wide)
    close(wide.value(batch), LeastSquares(X, y).value(batch))
    narrow = Huber(X, y, delta=1e-9)
    residual = (X @ batch["coef"].T - y.unsqueeze(1)).abs().mean(0)
    torch.testing.assert_close(narrow.value(batch) / 1e-9, residual, rtol=1e-6, atol=0)
    assert wide.has_minimizer_on({"coef": torch.ones(P, dtype=torch.bool)})


def test_predictions():
    X, y = data(Poisson)
    point = {"coef": torch.tensor([0.5, 0.0, -1.0, 0.0]).double()}
    close(Poisson(X, y).predict(point, X), torch.exp(0.5 * X[:, 0] - X[:, 2]))
    close(Huber(X, y.double()).predict(point, X), 0.5 * X[:, 0] - X[:, 2])


def test_classes_without_weight_are_absent():
    X, y = data(Softmax)
    w = (y != 1).double()
    assert Softmax(X, y, sample_weight=w).classes.tolist() == [0, 2]
    assert Logistic(X, y, sample_weight=w).n_samples == int(w.sum())
