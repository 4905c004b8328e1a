from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.tensors import named
from ellzero.tensors.named import Batch


@dataclass(frozen=True)
class State:
    params: Batch
    value: torch.Tensor
    label: str


def batch(size=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"coef": (2, 4), "intercept": (), "empty": (0, 3)}
    return Batch(
        {n: torch.randn(size, *s, generator=generator).to(dtype) for n, s in shapes.items()}
    )


def entries(point):
    return np.concatenate([t.double().numpy().ravel() for t in point.values()])


def test_dot_accumulates_in_float64():
    # In float32 the ones vanish beside 2**24; in float64 nothing is lost.
    x = {"coef": torch.tensor([4096.0, 1.0, 1.0, 1.0])}
    assert named.dot(x, x).item() == 2**24 + 3
    assert named.dot(x, x).dtype == torch.float64
    assert named.norm(x).item() == pytest.approx((2**24 + 3) ** 0.5, rel=1e-15)
    big = {"half": torch.full((70000,), 2.0, dtype=torch.float16)}
    assert named.norm_squared(big).item() == 280000.0


REDUCTIONS = {
    "norm_squared": (named.norm_squared, lambda v: np.dot(v, v)),
    "norm": (named.norm, np.linalg.norm),
    "max_abs": (named.max_abs, lambda v: np.abs(v).max()),
    "count_nonzero": (named.count_nonzero, np.count_nonzero),
    "is_finite": (named.is_finite, lambda v: np.isfinite(v).all()),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_points_and_batches_agree_with_numpy(name):
    function, reference = REDUCTIONS[name]
    points = batch()
    points["coef"][1, 0, 0] = 0.0
    points["coef"][2, 1, 3] = torch.inf
    together = function(points)
    assert together.shape == (3,)
    for i in range(3):
        point = named.row(points, i)
        expected = reference(entries(point))
        # Float64 sums of the same nine products: equal up to a few roundings.
        np.testing.assert_allclose(function(point).item(), expected, rtol=1e-14)
        assert together[i].item() == function(point).item()
        assert function(point).shape == ()


def test_dot_of_two_batches_is_by_row():
    a, b = batch(), named.scale(batch(), -2.0)
    expected = [np.dot(entries(named.row(a, i)), entries(named.row(b, i))) for i in range(3)]
    np.testing.assert_allclose(named.dot(a, b).numpy(), expected, rtol=1e-14)


def test_smallest_magnitude_on_a_mask():
    x = {"a": torch.tensor([-3.0, 0.5]), "b": torch.tensor(-2.0)}
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor(True)}
    assert named.min_abs_on(x, masks).item() == 2.0
    nowhere = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    assert named.min_abs_on(x, nowhere).item() == float("inf")
    assert named.max_abs({"a": torch.empty(0)}).item() == 0.0


def test_nan_counts_as_a_nonzero_and_is_not_finite():
    x = {"a": torch.tensor([float("nan"), 0.0, -0.0, 1.0])}
    assert named.count_nonzero(x).item() == 2
    assert not named.is_finite(x)
    masked = named.mask(x, {"a": torch.tensor([False, True, True, True])})
    assert masked["a"].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_arithmetic_keeps_the_kind_and_scales_by_row():
    points = batch()
    factors = torch.tensor([2.0, 0.0, -1.0])
    moved = named.axpy(factors, points, named.add(points, points))
    assert isinstance(moved, Batch)
    for i, factor in enumerate([2.0, 0.0, -1.0]):
        alone = named.axpy(factor, named.row(points, i), named.scale(named.row(points, i), 2.0))
        assert not isinstance(alone, Batch)
        for name, tensor in alone.items():
            assert torch.equal(named.row(moved, i)[name], tensor)
        np.testing.assert_allclose(
            entries(alone), (factor + 2) * entries(named.row(points, i)), rtol=1e-6
        )
    assert torch.equal(named.sub(points, points)["coef"], torch.zeros(3, 2, 4))


def test_choosing_rows():
    a, b = batch(), named.zeros_like(batch())
    chosen = named.where(torch.tensor([True, False, True]), a, b)
    assert torch.equal(chosen["coef"][0], a["coef"][0])
    assert torch.equal(chosen["intercept"], a["intercept"] * torch.tensor([1.0, 0.0, 1.0]))
    assert not chosen["coef"][1].any()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_flatten_and_unflatten_are_inverse(data):
    shapes = data.draw(
        st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4)
    )
    point = {f"t{i}": torch.randn(s) for i, s in enumerate(shapes)}
    flat = named.flatten(point)
    np.testing.assert_array_equal(flat.double().numpy(), entries(point))
    back = named.unflatten(flat, point)
    assert all(torch.equal(back[n], t) for n, t in point.items())
    assert list(back) == list(point)
    points = named.expand(point, 2)
    assert points.size == 2
    again = named.unflatten(named.flatten(points), point)
    assert isinstance(again, Batch)
    assert all(torch.equal(again[n], t) for n, t in points.items())
    assert named.size(point) == named.size(points) == flat.numel()


def test_stacking_and_taking_are_inverse():
    points = batch()
    again = named.stack([named.row(points, i) for i in range(3)])
    assert all(torch.equal(again[n], t) for n, t in points.items())
    halves = [named.take(points, slice(0, 1)), named.take(points, torch.tensor([1, 2]))]
    joined = named.concatenate(halves)
    assert all(torch.equal(joined[n], t) for n, t in points.items())
    one = named.to_batch(named.row(points, 0))
    assert one.size == 1
    assert named.to_batch(points) is points


def test_rows_of_a_state_go_out_and_come_back():
    state = State(batch(), torch.arange(3.0), "kept")
    before = {n: t.clone() for n, t in state.params.items()}
    index = torch.tensor([2, 0])
    some = named.take_rows(state, index)
    assert some.value.tolist() == [2.0, 0.0]
    assert some.label == "kept"
    assert some.params.size == 2
    same = named.put_rows(state, index, some)
    assert same.value.tolist() == [0.0, 1.0, 2.0]
    assert all(torch.equal(same.params[n], t) for n, t in before.items())
    changed = State(named.zeros_like(some.params), torch.tensor([20.0, 10.0]), "other")
    put = named.put_rows(state, index, changed)
    assert put.value.tolist() == [10.0, 1.0, 20.0]
    assert put.label == "kept"
    assert torch.equal(put.params["coef"][1], before["coef"][1])
    assert not put.params["coef"][[0, 2]].any()
    assert all(torch.equal(state.params[n], t) for n, t in before.items())


def test_python_numbers():
    assert named.to_float(torch.tensor(0.5)) == 0.5
    assert named.to_int(torch.tensor(3)) == 3
    assert named.to_list(torch.tensor([[1, 2]])) == [[1, 2]]
    assert named.any_true(torch.tensor([False, True]))
    assert not named.all_true(torch.tensor([False, True]))
    doubled = named.to_double({"a": torch.ones(1, dtype=torch.float16, requires_grad=True)})
    assert doubled["a"].dtype == torch.float64
    assert not doubled["a"].requires_grad
