"""Losses of linear predictors and quadratics against autograd, numpy and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ellzero.core.problem import AbstractLinearObjective
from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.objectives import (
    Huber,
    LeastSquares,
    Logistic,
    ModuleLoss,
    Poisson,
    Quadratic,
    Softmax,
    linear,
)
from ellzero.tensors import named
from ellzero.tensors.named import Batch

N, P = 25, 4


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    X = torch.as_tensor(rng.normal(size=(N, P)) * [1.0, 2.0, 0.5, 1.0])
    return X, torch.as_tensor(rng.normal(size=(N, 2))), torch.as_tensor(rng.integers(0, 3, N))


def make(name: str) -> Any:
    X, Y, labels = data()
    mixed = {"coef": 0.3}
    return {
        "quadratic": lambda: Quadratic(X.T @ X, X.T @ Y[:, 0], constant=1.5, ridge=0.2),
        "least-squares": lambda: LeastSquares(X, Y[:, 0]),
        "least-squares-outputs": lambda: LeastSquares(X, Y, mixed, fit_intercept=True),
        "logistic": lambda: Logistic(X, labels > 0, ridge=0.1),
        "logistic-intercept": lambda: Logistic(X, labels > 0, mixed, fit_intercept=True),
        "softmax": lambda: Softmax(X, labels),
        "softmax-intercept": lambda: Softmax(X, labels, mixed, fit_intercept=True),
        "poisson": lambda: Poisson(X, labels, ridge=0.1),
        "poisson-intercept": lambda: Poisson(X, labels, mixed, fit_intercept=True),
        "huber": lambda: Huber(X, Y[:, 0], delta=0.8, ridge=0.1),
        "huber-intercept": lambda: Huber(X, Y[:, 0], 0.8, mixed, fit_intercept=True),
    }[name]()


NAMES = (
    "quadratic",
    "least-squares",
    "least-squares-outputs",
    "logistic",
    "logistic-intercept",
    "softmax",
    "softmax-intercept",
    "poisson",
    "poisson-intercept",
    "huber",
    "huber-intercept",
)
LINEAR = NAMES[1:]
BOUNDED = tuple(n for n in NAMES if not n.startswith("poisson"))


def points(objective: Any, size: int = 5, seed: int = 1) -> Batch:
    zero = objective.init_params()
    flat = np.random.default_rng(seed).normal(size=(size, named.size(zero)))
    return Batch(named.unflatten(torch.as_tensor(flat), zero))


def flat_value(objective: Any) -> Any:
    zero = objective.init_params()
    return lambda flat: objective.value(named.unflatten(flat, zero))


def direct_value(name: str, point: dict[str, Tensor]) -> float:
    """Return the value by the definition, in numpy."""
    X, Y, labels = (t.numpy() for t in data())
    w = point["coef"].numpy()
    b = point["intercept"].numpy() if "intercept" in point else 0.0
    if name == "quadratic":
        return 0.5 * w @ X.T @ X @ w - (X.T @ Y[:, 0]) @ w + 1.5 + 0.1 * w @ w
    u = X @ w.T + b
    if name.startswith("least-squares"):
        target = Y if w.ndim == 2 else Y[:, 0]
        loss = ((u - target) ** 2).sum() / (2 * N)
        return float(loss + (0.15 * (w**2).sum() if w.ndim == 2 else 0.0))
    if name.startswith("logistic"):
        sign = np.where(labels > 0, 1, -1)
        ridge = 0.3 if "intercept" in name else 0.1
        return float(np.log1p(np.exp(-sign * u)).mean() + ridge / 2 * (w**2).sum())
    if name.startswith("poisson"):
        ridge = 0.3 if "intercept" in name else 0.1
        log = labels * np.log(np.maximum(labels, 1))
        return float((np.exp(u) - labels * u - labels + log).mean() + ridge / 2 * (w**2).sum())
    if name.startswith("huber"):
        ridge = 0.3 if "intercept" in name else 0.1
        r = abs(u - Y[:, 0])
        h = np.where(r <= 0.8, r**2 / 2, 0.8 * (r - 0.4))
        return float(h.mean() + ridge / 2 * (w**2).sum())
    p = np.exp(u) / np.exp(u).sum(1, keepdims=True)
    ridge = 0.3 if "intercept" in name else 0.0
    return float(-np.log(p[np.arange(N), labels]).mean() + ridge / 2 * (w**2).sum())


@pytest.mark.parametrize("name", NAMES)
def test_value_is_the_definition(name: str) -> None:
    objective = make(name)
    batch = points(objective)
    values = objective.value(batch)
    for i in range(batch.size):
        point = named.row(batch, i)
        assert values[i].item() == pytest.approx(direct_value(name, point), rel=1e-12)
        assert objective.value(point).ndim == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences_and_autograd(name: str) -> None:
    objective = make(name)
    batch = points(objective, 3)
    values, grads = objective.value_and_grad(batch)
    assert torch.equal(values, objective.value(batch)) or torch.allclose(
        values, objective.value(batch), rtol=1e-14
    )
    function = flat_value(objective)
    for i in range(3):
        flat = named.flatten(named.row(batch, i))
        exact = torch.func.grad(function)(flat)
        got = named.flatten(named.row(grads, i))
        torch.testing.assert_close(got, exact, rtol=1e-11, atol=1e-12)
        h = 1e-6 * torch.eye(flat.shape[0], dtype=torch.float64)
        differences = (function(flat + h) - function(flat - h)) / 2e-6
        # Central differences err by h^2 and by eps / h.
        torch.testing.assert_close(got, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_autograd(name: str) -> None:
    objective = make(name)
    batch = points(objective, 4)
    n = named.size(objective.init_params())
    directions = points(objective, 4, seed=2)
    product = named.flatten(objective.hessian_vector(batch, directions))
    index = torch.stack(
        [torch.randperm(n, generator=torch.Generator().manual_seed(i))[:3] for i in range(4)]
    )
    blocks = objective.hessian_on(batch, index)
    assert blocks.shape == (4, 3, 3)
    for i in range(4):
        point = named.flatten(named.row(batch, i))
        whole = torch.autograd.functional.hessian(flat_value(objective), point)
        expected = whole @ named.flatten(named.row(directions, i))
        torch.testing.assert_close(product[i], expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(blocks[i], whole[index[i]][:, index[i]], rtol=1e-10, atol=1e-12)
        single = objective.hessian_vector(named.row(batch, i), named.row(directions, i))
        assert not named.is_batch(single)
        torch.testing.assert_close(named.flatten(single), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", BOUNDED)
def test_curvature_lies_between_the_constants(name: str) -> None:
    objective = make(name)
    n = named.size(objective.init_params())
    A = objective.curvature_bound().submatrix(torch.arange(n))
    low, high = objective.strong_convexity(), objective.smoothness()
    largest = 0.0
    for scale in (0.0, 1.0, 10.0):
        batch = named.scale(points(objective, 3), scale)
        every = torch.arange(n).expand(3, n)
        H = objective.hessian_on(batch, every)
        values = torch.linalg.eigvalsh(H)
        assert values.min() >= low - 1e-12 * high
        assert values.max() <= high
        assert torch.linalg.eigvalsh(A - H).min() >= -1e-12 * high
        largest = max(largest, values.max().item())
    if objective.curvature_bound().attained:
        # At zero the Hessian is the bound; `smoothness` may add the largest ridge to it.
        H = objective.hessian_on(named.to_batch(objective.init_params()), torch.arange(n)[None])
        torch.testing.assert_close(A, H[0], rtol=1e-12, atol=1e-14)


def test_strong_convexity_of_data_is_the_smallest_eigenvalue() -> None:
    X, Y, _ = data()
    exact = np.linalg.eigvalsh(X.numpy().T @ X.numpy() / N)[0]
    got = LeastSquares(X, Y[:, 0], ridge=0.5).strong_convexity()
    assert exact + 0.5 - 1e-10 <= got <= exact + 0.5
    assert LeastSquares(X[:3], Y[:3, 0]).strong_convexity() == 0.0
    assert Quadratic(torch.diag(torch.tensor([0.0, 1.0])), torch.zeros(2)).strong_convexity() == 0


@pytest.mark.parametrize("shape", [(3, 20), (20, 3)])
def test_smoothness_of_wide_and_tall_data(shape: tuple[int, int], monkeypatch: Any) -> None:
    X = torch.as_tensor(np.random.default_rng(3).normal(size=shape))
    exact = np.linalg.norm(X.numpy(), 2) ** 2 / shape[0]
    objective = LeastSquares(X, torch.ones(shape[0]).double())
    assert objective.smoothness() == pytest.approx(exact, rel=1e-9)
    assert objective.smoothness() >= exact * (1 - 1e-13)
    monkeypatch.setattr(linear, "DENSE_LIMIT", 2)
    by_norms = LeastSquares(X, torch.ones(shape[0]).double()).smoothness()
    assert exact <= by_norms <= 20 * exact


def supports_of(objective: Any, size: int) -> Batch:
    zero = objective.init_params()
    draw = np.random.default_rng(4).random((size, named.size(zero))) < 0.5
    draw[0], draw[1] = False, True
    return Batch(named.unflatten(torch.as_tensor(draw), zero))


@pytest.mark.parametrize("limit", [6000, 2])
@pytest.mark.parametrize("duplicate", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_least_squares_refit_is_numpy_lstsq(
    limit: int, duplicate: bool, ridge: float, monkeypatch: Any
) -> None:
    monkeypatch.setattr(linear, "DENSE_LIMIT", limit)
    X, Y, _ = data()
    if duplicate:
        X = torch.cat([X, X[:, :1], torch.zeros(N, 1).double()], 1)
    objective = LeastSquares(X, Y, {"coef": ridge}, fit_intercept=True)
    masks = supports_of(objective, 12)
    found = objective.minimize_on(masks)
    p = X.shape[1]
    columns = np.c_[X.numpy(), np.ones(N)]
    weights = np.r_[np.full(p, ridge), 0.0]
    for i in range(12):
        for c in range(2):
            on = np.r_[masks["coef"][i, c].numpy(), masks["intercept"][i, c].numpy()]
            A = np.r_[columns[:, on], np.diag(np.sqrt(N * weights[on]))]
            b = np.r_[Y[:, c].numpy(), np.zeros(on.sum())]
            expected = np.zeros(p + 1)
            if on.any():
                expected[on] = np.linalg.lstsq(A, b)[0]
            got = np.r_[found["coef"][i, c].numpy(), found["intercept"][i, c].numpy()]
            np.testing.assert_allclose(got, expected, atol=1e-10)
            assert (got[~on] == 0).all()
    point = objective.minimize_on(named.row(masks, 1))
    assert not named.is_batch(point)
    torch.testing.assert_close(point["coef"], found["coef"][1])


def test_nearly_dependent_columns_are_refitted_from_the_data() -> None:
    X, Y, _ = data()
    X = torch.cat([X, X[:, :1] + 1e-6 * X[:, 1:2].cos()], 1)
    objective = LeastSquares(X, Y[:, 0])
    everything = {"coef": torch.ones(P + 1, dtype=torch.bool)}
    got = objective.minimize_on(everything)["coef"].numpy()
    expected = np.linalg.lstsq(X.numpy(), Y[:, 0].numpy())[0]
    # The condition number is about 1e6, entries about 1e5.
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_quadratic_refit() -> None:
    X, Y, _ = data()
    Q, c = X.T @ X, X.T @ Y[:, 0]
    objective = Quadratic(Q, c, ridge=0.5)
    masks = supports_of(objective, 10)
    found = objective.minimize_on(masks)["coef"].numpy()
    for i in range(10):
        on = masks["coef"][i].numpy()
        expected = np.zeros(P)
        block = Q.numpy()[np.ix_(on, on)] + 0.5 * np.eye(on.sum())
        expected[on] = np.linalg.solve(block, c.numpy()[on])
        np.testing.assert_allclose(found[i], expected, rtol=1e-11, atol=1e-14)
    twice = torch.ones(2, 2).double()
    everything = {"coef": torch.ones(2, dtype=torch.bool)}
    shortest = Quadratic(twice, torch.ones(2).double()).minimize_on(everything)["coef"]
    torch.testing.assert_close(shortest, torch.full((2,), 0.5).double())
    with pytest.raises(NonFiniteError) as error:
        Quadratic(twice, torch.tensor([1.0, 2.0]).double()).minimize_on(everything)
    assert str(error.value) == (
        "The quadratic is unbounded below on a support: it has a flat direction along which the "
        "linear term falls.\nhint: Pass a positive `ridge`."
    )


def loss_alone(objective: AbstractLinearObjective, point: dict[str, Tensor]) -> float:
    ridge = objective.ridge_weights()
    penalty = sum((ridge[n] * t.square()).sum() / 2 for n, t in point.items())
    return float(objective.value(point) - penalty)


@pytest.mark.parametrize("name", LINEAR)
def test_conjugate_satisfies_fenchel_young(name: str) -> None:
    objective = make(name)
    batch = points(objective, 6)
    duals = objective.dual_point(batch)
    conjugates = objective.conjugate(duals)
    adjoint = objective.adjoint(duals)
    assert conjugates.shape == (6,)
    for i in range(6):
        for j in range(6):
            point = named.row(batch, j)
            pairing = float(named.dot(named.row(adjoint, i), point))
            slack = loss_alone(objective, point) + float(conjugates[i]) - pairing
            # F(u) + F*(a) >= <a, u>, with equality at a = grad F(u).
            assert slack >= -1e-12
            assert (slack < 1e-12) == (i == j)
    alone = objective.dual_point(named.row(batch, 2))
    torch.testing.assert_close(alone, duals[2])
    assert float(objective.conjugate(alone)) == pytest.approx(float(conjugates[2]), rel=1e-12)
    assert not named.is_batch(objective.adjoint(alone))


@pytest.mark.parametrize("name", ["logistic", "softmax", "poisson", "huber"])
def test_conjugate_outside_its_domain_is_infinite(name: str) -> None:
    objective = make(name)
    dual = objective.dual_point(objective.init_params())
    assert torch.isfinite(objective.conjugate(dual))
    assert objective.conjugate(3 * dual) == torch.inf
    if name in ("poisson", "huber"):
        assert objective.conjugate(-30 * torch.ones_like(dual)) == torch.inf


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_conjugate_is_finite_at_saturated_points(name: str) -> None:
    objective = make(name)
    for scale in (1e2, 1e4):
        duals = objective.dual_point(named.scale(points(objective, 50), scale))
        assert torch.isfinite(objective.conjugate(duals)).all()


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_a_batch_change_nothing(name: str, monkeypatch: Any) -> None:
    objective = make(name)
    batch, directions = points(objective, 7), points(objective, 7, seed=5)
    index = torch.tensor([[0, 2, 3]]).expand(7, 3)
    before = objective.value_and_grad(batch)
    product = objective.hessian_vector(batch, directions)
    block = objective.hessian_on(batch, index)
    monkeypatch.setattr(linear, "CHUNK", 3 * N * 3)
    after = objective.value_and_grad(batch)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(after[0], before[0], **close)
    torch.testing.assert_close(named.flatten(after[1]), named.flatten(before[1]), **close)
    torch.testing.assert_close(objective.value(batch), before[0], **close)
    again = objective.hessian_vector(batch, directions)
    torch.testing.assert_close(named.flatten(again), named.flatten(product), **close)
    torch.testing.assert_close(objective.hessian_on(batch, index), block, **close)


@pytest.mark.parametrize("kind", [LeastSquares, Logistic, Softmax])
def test_duplicated_samples_change_nothing(kind: Any) -> None:
    X, Y, labels = data()
    y = Y[:, 0] if kind is LeastSquares else (labels > 0) if kind is Logistic else labels
    once = kind(X, y, ridge=0.1)
    thrice = kind(X.repeat(3, 1), y.repeat(3), ridge=0.1)
    batch = points(once)
    for a, b in zip(once.value_and_grad(batch), thrice.value_and_grad(batch), strict=True):
        first, second = (t if isinstance(t, Tensor) else named.flatten(t) for t in (a, b))
        torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-15)
    assert once.smoothness() == pytest.approx(thrice.smoothness(), rel=1e-11)


@pytest.mark.parametrize("kind", [LeastSquares, Logistic, Softmax])
def test_single_precision_data_stay_and_double_points_are_exact(kind: Any) -> None:
    X, Y, labels = data()
    y = Y[:, 0].float() if kind is LeastSquares else labels > 0
    single = kind(X.float(), y, ridge=0.1, fit_intercept=True)
    double = kind(X.float().double(), y.double(), ridge=0.1, fit_intercept=True)
    point = named.row(points(double), 0)
    low = {n: t.float() for n, t in point.items()}
    value, grad = single.value_and_grad(low)
    assert value.dtype == torch.float32
    assert grad["coef"].dtype == torch.float32
    value, grad = single.value_and_grad(point)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, double.value(point), rtol=1e-14, atol=0)
    torch.testing.assert_close(grad["coef"], double.value_and_grad(point)[1]["coef"])
    assert single.smoothness() == pytest.approx(double.smoothness(), rel=1e-12)
    assert single.curvature_bound().right.dtype == torch.float64


def test_huge_scores_are_stable() -> None:
    X, _, labels = data()
    binary = Logistic(X, labels > 0)
    several = Softmax(X, labels)
    for objective in (binary, several):
        value, grad = objective.value_and_grad(named.scale(points(objective), 1e6))
        assert torch.isfinite(value).all()
        assert all(torch.isfinite(g).all() for g in grad.values())
    tiny = Logistic(torch.ones(2, 1).double() * torch.tensor([[-1.0], [1.0]]), torch.arange(2))
    # log(1 + exp(-60)) in full relative precision.
    value = tiny.value({"coef": torch.tensor([50.0]).double()})
    assert value.item() == pytest.approx(np.log1p(np.exp(-50.0)), rel=1e-12)


def test_labels_and_predictions() -> None:
    X, _, _ = data()
    y = torch.where(X[:, 0] > 0, 7, -2)
    model = Logistic(X, y)
    assert model.classes.tolist() == [-2, 7]
    point = {"coef": torch.tensor([1.0, 0.0, 0.0, 0.0]).double()}
    assert torch.equal(model.predict(point, X), y)
    assert torch.equal(model.predict_scores(point, X), X[:, 0])
    three = Softmax(
        X, torch.bucketize(X[:, 0].contiguous(), torch.tensor([-0.5, 0.5]).double()) * 10
    )
    assert three.classes.tolist() == [0, 10, 20]
    coef = torch.eye(3, P).double()
    expected = np.array([0, 10, 20])[(X.numpy() @ coef.numpy().T).argmax(1)]
    assert three.predict({"coef": coef}, X).tolist() == expected.tolist()
    assert three.predict_scores({"coef": coef}, X).shape == (N, 3)


def iris() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_iris

    X, y = load_iris(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    return torch.as_tensor(X), torch.as_tensor(y)


def masks_like(objective: Any, value: bool = True) -> dict[str, Tensor]:
    zero = objective.init_params()
    return {n: torch.full_like(t, value, dtype=torch.bool) for n, t in zero.items()}


def test_separable_data_have_no_minimizer() -> None:
    X, y = iris()
    assert not Softmax(X, y, fit_intercept=True).has_minimizer_on(
        masks_like(Softmax(X, y, fit_intercept=True))
    )
    ridged = Softmax(X, y, ridge=0.01)
    assert ridged.has_minimizer_on(masks_like(ridged))
    # Setosa against the rest is separable by one feature and the intercept, not without it
    # where the classes overlap.
    setosa = Logistic(X, y == 0, fit_intercept=True)
    on = masks_like(setosa, False)
    on["coef"][2] = True
    on["intercept"] = torch.tensor(True)
    assert not setosa.has_minimizer_on(on)
    others = Logistic(X[50:], y[50:], fit_intercept=True)
    assert others.has_minimizer_on(masks_like(others))
    assert others.has_minimizer_on(masks_like(others, False))


def test_quasi_separation_and_batches_of_supports() -> None:
    # One class lies on both sides of zero, the other at zero: only the margin zero is shared.
    X = torch.tensor([[0.0], [0.0], [1.0], [2.0]]).double()
    quasi = Logistic(X, torch.tensor([0, 1, 1, 1]))
    assert not quasi.has_minimizer_on(masks_like(quasi))
    overlap = Logistic(torch.cat([X, -X]), torch.tensor([0, 1, 1, 1] * 2))
    assert overlap.has_minimizer_on(masks_like(overlap))
    both = torch.cat([torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]).double(), X - 0.5], 1)
    two = Logistic(both, torch.tensor([0, 0, 1, 1]))
    rows = torch.tensor([[True, False], [False, True]])
    assert two.has_minimizer_on({"coef": rows[0]})
    assert not two.has_minimizer_on({"coef": rows[1]})
    assert not two.has_minimizer_on(Batch({"coef": rows}))


def test_ridge_on_some_tensors_leaves_the_others_free() -> None:
    X, y = iris()
    ridged = Logistic(X, y == 0, ridge={"coef": 0.1}, fit_intercept=True)
    assert ridged.has_minimizer_on(masks_like(ridged))
    free = Logistic(X, y == 0, ridge={"intercept": 0.1}, fit_intercept=True)
    assert not free.has_minimizer_on(masks_like(free))
    X, Y, _ = data()
    plain = LeastSquares(X, Y)
    assert plain.has_minimizer_on(masks_like(plain))


def test_separation_of_many_badly_scaled_samples() -> None:
    rng = np.random.default_rng(6)
    X = torch.as_tensor(rng.normal(size=(1500, 3)) * [1e-6, 1.0, 1e5])
    noisy = torch.as_tensor(rng.random(1500) < 0.5)
    objective = Logistic(X, noisy, fit_intercept=True)
    assert objective.has_minimizer_on(masks_like(objective))
    clean = Logistic(X, X @ torch.tensor([1e6, 1.0, 1e-5]).double() > 0.2, fit_intercept=True)
    assert not clean.has_minimizer_on(masks_like(clean))


def test_a_linear_module_is_the_softmax_loss() -> None:
    X, _, labels = data()
    model = torch.nn.Linear(P, 3).double()
    module = ModuleLoss(model, torch.nn.functional.cross_entropy, X, labels, ridge=0.2)
    closed = Softmax(X, labels, ridge=0.2, fit_intercept=True)
    batch = points(closed)
    renamed = Batch({"weight": batch["coef"], "bias": batch["intercept"]})
    value, grad = module.value_and_grad(renamed)
    expected, slope = closed.value_and_grad(batch)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad["weight"], slope["coef"], rtol=1e-10, atol=1e-14)
    index = torch.tensor([[0, 5, 14]]).expand(5, 3)
    torch.testing.assert_close(
        module.hessian_on(renamed, index), closed.hessian_on(batch, index), rtol=1e-9, atol=1e-13
    )


X2 = torch.eye(3)
BAD: list[tuple[Any, str]] = [
    (
        lambda: LeastSquares([[1.0]], torch.ones(1)),
        "`X` must be a tensor with 2 axes, got list.\nhint: Pass `torch.as_tensor(X)`.",
    ),
    (
        lambda: LeastSquares(torch.ones(3), torch.ones(3)),
        "`X` must have 2 axes, got shape (3,).\n"
        "hint: Pass `X.reshape(-1, 1)` for a single column.",
    ),
    (
        lambda: LeastSquares(torch.ones(3, 2, dtype=torch.int64), torch.ones(3)),
        "`X` must hold floating-point numbers, got torch.int64.\nhint: Pass `X.double()`.",
    ),
    (
        lambda: LeastSquares(torch.ones(0, 2), torch.ones(0)),
        "`X` must have at least one row, got none.",
    ),
    (
        lambda: LeastSquares(torch.ones(2, 0), torch.ones(2)),
        "`X` must have at least one column, got none.",
    ),
    (
        lambda: LeastSquares(X2, torch.ones(2)),
        "`X` and `y` must have the same number of samples, got 3 and 2.",
    ),
    (
        lambda: LeastSquares(X2, torch.ones(3, 1, 1)),
        "`y` must have 1 or 2 axes, got shape (3, 1, 1).",
    ),
    (
        lambda: LeastSquares(X2, torch.tensor([1.0, torch.nan, 1.0])),
        "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
    ),
    (
        lambda: LeastSquares(
            torch.tensor([[1.0, torch.nan], [torch.inf, torch.nan]]), torch.ones(2)
        ),
        "`X` must be finite, got NaN or infinity in column 0 (1), column 1 (2).\n"
        "hint: Drop or fill these values first.",
    ),
    (
        lambda: LeastSquares(X2, torch.ones(3), ridge=-1.0),
        "`ridge` must be a number of at least 0, got -1.",
    ),
    (
        lambda: LeastSquares(X2, torch.ones(3), ridge={"coeff": 1.0}),
        "Unknown tensor 'coeff' in `ridge`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: Logistic(X2, torch.ones(3)),
        "`y` must have at least two classes, got only 1.0.\n"
        "hint: Check the labels; a constant target needs no model.",
    ),
    (
        lambda: Logistic(X2, torch.arange(3)),
        "`y` must have exactly two classes, got 3.\nhint: Use `Softmax` for more classes.",
    ),
    (
        lambda: Softmax(X2, torch.eye(3)),
        "`y` must have one label for each sample, got shape (3, 3).",
    ),
    (
        lambda: Softmax(X2, torch.tensor([0.0, 1.0, torch.nan])),
        "`y` must hold labels, got NaN or infinity.",
    ),
    (
        lambda: Softmax(X2, ["a", "b", "c"]),
        "`y` must be a tensor, got list.\nhint: Pass `torch.as_tensor(y)`.",
    ),
    (lambda: Quadratic(torch.ones(2, 3), torch.ones(2)), "`Q` must be square, got shape (2, 3)."),
    (lambda: Quadratic(X2, torch.ones(2)), "`c` must be a tensor of shape (3,), got (2,)."),
    (
        lambda: Quadratic(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.ones(2)),
        "`Q` must be symmetric, got a matrix that differs from its transpose.\n"
        "hint: Pass `(Q + Q.T) / 2`.",
    ),
    (
        lambda: Quadratic(torch.diag(torch.tensor([1.0, -1.0])), torch.ones(2)),
        "`Q` must be positive semidefinite, got a smallest eigenvalue of -1.\n"
        "hint: Only convex quadratics have the guarantees; add a multiple of the identity.",
    ),
    (
        lambda: Quadratic(X2, torch.ones(3), constant=float("nan")),
        "`constant` must be a finite number, got nan.",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert str(error.value) == message
