"""The loss of a module against closed forms, autograd and the untouched module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ellzero.errors import InvalidParameterError
from ellzero.objectives import ModuleLoss
from ellzero.tensors import named
from ellzero.tensors.named import Batch


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    return torch.as_tensor(rng.normal(size=(12, 3))), torch.as_tensor(rng.integers(0, 2, 12))


def loss(model: nn.Module, ridge: Any = 0.0) -> ModuleLoss:
    return ModuleLoss(model, nn.functional.cross_entropy, *data(), ridge=ridge)


def points(objective: ModuleLoss, size: int, seed: int = 1) -> Batch:
    zero = objective.init_params()
    flat = np.random.default_rng(seed).normal(size=(size, named.size(zero)))
    return Batch(named.unflatten(torch.as_tensor(flat), zero))


def by_hand(point: dict[str, Tensor], ridge: float) -> Tensor:
    """Return the value of the network at a point, layer by layer."""
    X, y = data()
    hidden = torch.tanh(X @ point["0.weight"].T + point["0.bias"])
    scores = hidden @ point["2.weight"].T + point["2.bias"]
    value = (scores.logsumexp(1) - scores[torch.arange(12), y]).mean()
    return value + ridge / 2 * sum((t.square().sum() for t in point.values()), torch.zeros(()))


def test_values_gradients_and_second_derivatives() -> None:
    objective = loss(network(), ridge=0.3)
    batch, directions = points(objective, 4), points(objective, 4, seed=2)
    value, grad = objective.value_and_grad(batch)
    product = named.flatten(objective.hessian_vector(batch, directions))
    index = torch.tensor([[0, 7, 20]] * 3 + [[3, 4, 25]])
    blocks = objective.hessian_on(batch, index)
    zero = objective.init_params()
    torch.testing.assert_close(objective.value(batch), value)
    for i in range(4):
        point = named.flatten(named.row(batch, i))

        def function(flat: Tensor) -> Tensor:
            return by_hand(dict(named.unflatten(flat, zero)), 0.3)

        slope = torch.func.grad(function)(point)
        whole = torch.autograd.functional.hessian(function, point)
        torch.testing.assert_close(value[i], function(point))
        torch.testing.assert_close(named.flatten(named.row(grad, i)), slope)
        torch.testing.assert_close(product[i], whole @ named.flatten(directions)[i])
        torch.testing.assert_close(blocks[i], whole[index[i]][:, index[i]])


def test_the_module_is_never_changed() -> None:
    model = network()
    model[0].weight.grad = torch.ones_like(model[0].weight)  # type: ignore[union-attr]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    objective = loss(model)
    batch = points(objective, 3)
    objective.value_and_grad(batch)
    objective.value_and_grad(named.row(batch, 0))
    objective.hessian_vector(batch, batch)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert torch.equal(model[0].weight.grad, torch.ones(4, 3).double())  # type: ignore[union-attr]
    assert model[2].weight.grad is None  # type: ignore[union-attr]
    assert model.training
    current = objective.current_params()
    current["0.weight"].zero_()
    assert torch.equal(model[0].weight, before["0.weight"])  # type: ignore[union-attr]
    assert all((t == 0).all() for t in objective.init_params().values())


class Counter(nn.Module):
    """Writes to a buffer whenever it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2).double())
        self.register_buffer("calls", torch.zeros(1).double())

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1  # type: ignore[has-type]
        return X @ self.weight + 0.0 * self.calls


def test_buffers_that_the_module_writes_stay() -> None:
    model = Counter()
    objective = loss(model)
    objective.value_and_grad(points(objective, 3))
    objective.value(objective.current_params())
    assert model.calls.item() == 0


class Branching(nn.Module):
    """Looks at a number, which a vectorized call cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2).double())

    def forward(self, X: Tensor) -> Tensor:
        return X @ self.weight * (2.0 if self.weight.sum() > 0 else 1.0)


def test_modules_that_cannot_be_vectorized_go_row_by_row() -> None:
    objective = loss(Branching())
    batch = points(objective, 5)
    value, grad = objective.value_and_grad(batch)
    for i in range(5):
        alone, slope = objective.value_and_grad(named.row(batch, i))
        torch.testing.assert_close(value[i], alone)
        torch.testing.assert_close(grad["weight"][i], slope["weight"])
    assert named.is_batch(grad)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False).double()
        self.second = nn.Linear(3, 3, bias=False).double()
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.full((3,), 2.0).double(), requires_grad=False)

    def forward(self, X: Tensor) -> Tensor:
        return self.second(self.first(X)) * self.frozen


def test_tied_weights_are_one_variable_and_frozen_ones_none() -> None:
    X, y = data()
    objective = ModuleLoss(Tied(), nn.functional.cross_entropy, X, y)
    assert list(objective.init_params()) == ["first.weight"]
    W = torch.as_tensor(np.random.default_rng(3).normal(size=(3, 3)))
    expected = nn.functional.cross_entropy(2 * X @ W.T @ W.T, y)
    torch.testing.assert_close(objective.value({"first.weight": W}), expected)


def test_single_precision_module_at_double_points() -> None:
    X, y = data()
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    objective = ModuleLoss(model, nn.functional.cross_entropy, X.float(), y)
    assert objective.value(objective.init_params()).dtype == torch.float32
    double = named.to_double(objective.current_params())
    value = objective.value(double)
    assert value.dtype == torch.float64
    scale = 1 / np.sqrt(1 + model[1].eps)  # type: ignore[operator]
    scores = (X.float().double() @ double["0.weight"].T + double["0.bias"]) * scale
    expected = nn.functional.cross_entropy(scores * double["1.weight"] + double["1.bias"], y)
    # The running variance is 1 and `eps` is added in the module's own way.
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)


def test_ridge_by_name() -> None:
    objective = loss(network(), ridge={"0.weight": 2.0})
    plain = loss(network())
    point = named.row(points(objective, 1), 0)
    expected = plain.value(point) + point["0.weight"].square().sum()
    torch.testing.assert_close(objective.value(point), expected)


CE = nn.functional.cross_entropy
BAD: list[tuple[Any, str]] = [
    (
        lambda X, y: ModuleLoss(3, CE, X, y),  # type: ignore[arg-type]
        "`model` must be a torch.nn.Module, got int.",
    ),
    (
        lambda X, y: ModuleLoss(network(), "mse", X, y),  # type: ignore[arg-type]
        "`loss_fn` must be callable, got str.\n"
        "hint: Pass a function such as `torch.nn.functional.cross_entropy`.",
    ),
    (
        lambda X, y: ModuleLoss(nn.Sequential(network(), nn.Dropout(0.5)), CE, X, y),
        "`model` must give the same output every time, got '1' (Dropout) in training mode.\n"
        "hint: Call `model.eval()` first.",
    ),
    (
        lambda X, y: ModuleLoss(nn.Sequential(network(), nn.BatchNorm1d(2).double()), CE, X, y),
        "`model` must give the same output every time, got '1' (BatchNorm1d) in training mode.\n"
        "hint: Call `model.eval()` first.",
    ),
    (
        lambda X, y: ModuleLoss(nn.Tanh(), CE, X, y),
        "`model` must have at least one parameter that requires a gradient, got none.",
    ),
    (
        lambda X, y: ModuleLoss(network(), nn.CrossEntropyLoss(reduction="none"), X, y),
        "`loss_fn` must return a 0-d tensor, got shape (12,).\n"
        "hint: Return the mean over samples.",
    ),
    (
        lambda X, y: ModuleLoss(network(), CE, X, y, ridge={"0.wieght": 1.0}),
        "Unknown tensor '0.wieght' in `ridge`. Did you mean '0.weight'? "
        "Known tensors: 0.weight, 0.bias, 2.weight, 2.bias.",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(InvalidParameterError) as error:
        call(*data())
    assert str(error.value) == message
