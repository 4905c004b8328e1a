"""The l1-stationarity of points, and the bound that runs of AdaGrad carry."""

import pytest
import torch

from ellzero import Problem, Quadratic
from ellzero.certificates import adagrad_bound, l1_stationarity
from ellzero.errors import InvalidParameterError
from ellzero.objectives import CosineWells, StiffRamps, random_rotation
from ellzero.solvers import AdaGrad
from ellzero.tensors import named


def trajectory(objective, start, step, length, floor=1e-8):
    problem, solver = Problem(objective), AdaGrad(step, floor=floor)
    state = solver.init(problem, named.to_batch(start))
    points = [named.row(state.params, 0)]
    for _ in range(length - 1):
        state = solver.step(problem, state)
        points.append(named.row(state.params, 0))
    return points


@pytest.mark.parametrize("seed", range(40))
def test_bounds_hold_on_random_problems_that_are_not_convex(seed):
    source = torch.Generator().manual_seed(seed)
    n = 2 + seed % 6
    curvatures = 10 ** (3 * torch.rand(n, generator=source, dtype=torch.float64) - 2)
    rotation = random_rotation(n, source) if seed % 2 else None
    f = CosineWells(curvatures, 0.5 + seed % 3, rotation=rotation)
    start = {"coef": 3 * torch.randn(n, generator=source, dtype=torch.float64)}
    step = float(10 ** (2 * torch.rand(1, generator=source) - 1))
    points = trajectory(f, start, step, 3 + 5 * seed)
    found = adagrad_bound(f, points, step)
    assert found.holds
    assert found.smallest_l1 <= found.mean_l1 <= found.a_posteriori <= found.a_priori
    # From the definition, with autograd and nothing of ours.
    norms, squares = [], torch.zeros(n, dtype=torch.float64)
    R = torch.eye(n).double() if rotation is None else rotation
    w = 0.5 + seed % 3
    for point in points:
        x = point["coef"].clone().requires_grad_()
        (curvatures / w**2 * (1 - torch.cos(w * (R @ x)))).sum().backward()
        norms.append(float(x.grad.abs().sum()))
        squares += x.grad.square()
    assert found.mean_l1 == pytest.approx(sum(norms) / len(norms), rel=1e-9)
    assert found.a_posteriori == pytest.approx(
        float(squares.sqrt().sum()) / len(points) ** 0.5, rel=1e-6
    )


def test_wrong_runs_are_refused():
    f = StiffRamps(8)
    points = trajectory(f, f.start(), 0.9, 15)
    assert adagrad_bound(f, points, 0.9).holds
    moved = [dict(p) for p in points]
    moved[7] = {"coef": moved[7]["coef"] + 1e-6}
    left_out = points[:4] + points[5:]
    for wrong, step in ((moved, 0.9), (left_out, 0.9), (points, 0.8), (points[::-1], 0.9)):
        found = adagrad_bound(f, wrong, step)
        assert not found.holds
        assert not found.checks[0].passed


def test_wrong_constants_are_refused():
    f = CosineWells(torch.tensor([5.0, 1.0]).double())
    start = {"coef": torch.tensor([1.0, 2.0]).double()}
    points = trajectory(f, start, 4.0, 200)
    assert adagrad_bound(f, points, 4.0).holds
    small = adagrad_bound(f, points, 4.0, smoothness=torch.tensor([1e-3, 1e-3]))
    assert [c.passed for c in small.checks] == [True, True, True, False]
    above = adagrad_bound(f, points, 4.0, lower_bound=11.0)
    assert not above.checks[2].passed
    assert adagrad_bound(f, points, 4.0, lower_bound=None).a_priori is None


def test_text_names_every_check():
    f = StiffRamps(8)
    lines = str(adagrad_bound(f, trajectory(f, f.start(), 0.9, 5), 0.9)).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("mean l1-norm 0.4")
    assert all(line.startswith("holds  ") for line in lines[1:])


def test_stationarity_of_points():
    f = Quadratic(torch.eye(3).double(), torch.tensor([2.0, -1.0, 0.0]).double())
    batch = named.stack(
        [{"coef": torch.zeros(3).double()}, {"coef": torch.tensor([2.0, -0.5, 0.0]).double()}]
    )
    found = l1_stationarity(f, batch, 0.5)
    assert found.grad_l1.tolist() == [3.0, 0.5]
    assert found.grad_max.tolist() == [2.0, 0.5]
    assert found.stationary.tolist() == [False, True]
    assert found.density.tolist() == pytest.approx([9 / 15, 1 / 3])


def test_messages():
    f = StiffRamps(3)
    with pytest.raises(InvalidParameterError) as error:
        l1_stationarity(f, f.start(), -1.0)
    assert str(error.value) == "`accuracy` must be a number of at least 0, got -1."
    hint = "\nhint: Collect `named.row(state.params, 0)` in a callback of `solve`."
    for points, given in (([], "none"), ([named.to_batch(f.start())], "a batch")):
        with pytest.raises(InvalidParameterError) as error:
            adagrad_bound(f, points, 1.0)
        assert str(error.value) == f"`points` must hold at least one point, got {given}.{hint}"
    with pytest.raises(InvalidParameterError) as error:
        adagrad_bound(f, [f.start()], 1.0, smoothness=torch.ones(2))
    assert str(error.value) == "`smoothness` must be a tensor of shape (3,), got (2,)."
    with pytest.raises(InvalidParameterError) as error:
        adagrad_bound(f, [f.start()], 0.0)
    assert str(error.value) == "`step_size` must be positive, got 0."
