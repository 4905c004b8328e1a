"""Closed forms against sampling, differences and what the fact sheet measured."""

import math

import numpy as np
import pytest
import torch

from ellzero import BinaryPatchNetworkLoss, PatchNetworkLoss
from ellzero.core.problem import upper_curvature
from ellzero.nn import BinaryActivation
from ellzero.tensors import named
from ellzero.tensors.named import Batch

SAMPLES = 200_000


def filters(seed, size=None, d=6, scale=1.0):
    rng = np.random.default_rng(seed)
    shape = (d,) if size is None else (size, d)
    return torch.tensor(scale * rng.standard_normal(shape))


def inputs(k, d, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.standard_normal((SAMPLES, k, d)))


def mean_and_error(draws):
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


@pytest.mark.parametrize(("k", "d"), [(1, 3), (4, 6)])
def test_population_loss_and_gradient_are_expectations(k, d):
    x = inputs(k, d)
    w, teacher = filters(1, d=d), filters(2, d=d)
    error = (x @ w).clamp_min(0).mean(1) - (x @ teacher).clamp_min(0).mean(1)
    slope = torch.einsum("nk,nkd->nd", ((x @ w) > 0).double(), x) / k
    value, grad = PatchNetworkLoss(teacher, k).value_and_grad({"filter": w})
    for draws, exact in ((error.square(), value), (2 * error[:, None] * slope, grad["filter"])):
        mean, deviation = mean_and_error(draws)
        assert (mean - exact).abs().le(4 * deviation).all()


def test_sampled_loss_is_the_definition():
    objective = PatchNetworkLoss(filters(2), 4)
    sampled = objective.sample(50, torch.Generator().manual_seed(3), noise=0.1)
    w = filters(1)
    expected = (sampled.patches @ w).clamp_min(0).mean(1) - sampled.y
    assert sampled.value({"filter": w}) == pytest.approx(expected.square().mean().item())
    clean = objective.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(clean.patches, sampled.patches)
    assert clean.value({"filter": objective.teacher}).item() == 0
    # 50 labels with deviation 0.1: a mean square of 0.01 within 4 deviations 0.01 sqrt(2 / 50).
    noise = sampled.value({"filter": objective.teacher}).item()
    assert noise == pytest.approx(0.01, abs=4 * 0.01 * math.sqrt(2 / 50))


@pytest.mark.parametrize("k", [1, 2, 20])
@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
def test_gradient_against_central_differences(k, scale):
    teacher, w = filters(5, scale=2.0), filters(6, scale=scale)
    objective = PatchNetworkLoss(teacher, k)
    grad = objective.value_and_grad({"filter": w})[1]["filter"]
    h = 1e-5 * scale
    units = torch.eye(6).double()
    both = [objective.value(Batch({"filter": w + s * h * units})) for s in (1, -1)]
    differences = (both[0] - both[1]) / (2 * h)
    # Third derivatives times h^2, rounding over h.
    assert (differences - grad).norm() <= 1e-8 * grad.norm()


def test_printed_form_of_the_loss():
    # (1/k^2) [a (|w|^2 + |w*|^2) - 2 k g - 2 b |w| |w*|], computed with plain floats.
    k, w, v = 5, filters(1).tolist(), filters(2).tolist()
    nw, nv = math.hypot(*w), math.hypot(*v)
    theta = math.acos(sum(a * b for a, b in zip(w, v, strict=True)) / (nw * nv))
    g = nw * nv / (2 * math.pi) * (math.sin(theta) + (math.pi - theta) * math.cos(theta))
    b = (k * k - k) / (2 * math.pi)
    expected = ((b + k / 2) * (nw**2 + nv**2) - 2 * k * g - 2 * b * nw * nv) / k**2
    found = PatchNetworkLoss(filters(2), k).value({"filter": filters(1)})
    assert found.item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("angle", [1e-9, 1e-5, 0.3, 3.0])
def test_no_cancellation_near_the_teacher(angle):
    # Against 60 digits.
    from decimal import Decimal, getcontext

    getcontext().prec = 60
    k = 20
    c, s = math.cos(angle), math.sin(angle)
    teacher, w = torch.tensor([1.0, 0.0]).double(), torch.tensor([c, s]).double()
    C, S = Decimal(c), Decimal(s)
    length = (C * C + S * S).sqrt()
    pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")

    def arctan(t):
        # Halve the argument until the series is short.
        halvings = 0
        while abs(t) > Decimal("0.01"):
            t = t / (1 + (1 + t * t).sqrt())
            halvings += 1
        return 2**halvings * sum((-1) ** n * t ** (2 * n + 1) / (2 * n + 1) for n in range(20))

    theta = arctan(S / C) if C > 0 else pi + arctan(S / C)
    sine, cosine = S / length, C / length
    b = Decimal(k * k - k) / (2 * pi)
    apart = (C - 1) ** 2 + S * S
    bend = length * (sine - theta * cosine)
    exact = (b * (length - 1) ** 2 + Decimal(k) / 2 * apart - k / pi * bend) / k**2
    found = PatchNetworkLoss(teacher, k).value({"filter": w}).item()
    # 1 - cos is of the order 1e-18 at the smallest angle; the difference form would give rounding.
    assert found == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_eigenvalues_are_those_of_the_hessian(k):
    objective = PatchNetworkLoss(filters(2, d=5), k)
    for seed, scale in ((3, 0.2), (4, 1.0), (5, 10.0)):
        w = filters(seed, d=5, scale=scale)
        point = Batch({"filter": w.unsqueeze(0)})
        hessian = objective.hessian_on(point, torch.arange(5).unsqueeze(0))[0]
        along, plane, rest = objective.hessian_eigenvalues({"filter": w}).tolist()
        expected = sorted([along, plane, rest, rest, rest])
        assert np.allclose(np.linalg.eigvalsh(hessian), expected, rtol=1e-10, atol=1e-13)
    # At the teacher, the tangential curvature is 1 / k.
    at = objective.hessian_eigenvalues({"filter": objective.teacher})
    assert at.tolist() == pytest.approx([objective.smoothness(), 1 / k, 1 / k], rel=1e-12)


@pytest.mark.parametrize(("k", "printed"), [(2, 0.659), (5, 0.455), (20, 0.352)])
def test_lipschitz_constant(k, printed):
    objective = PatchNetworkLoss(filters(2) / filters(2).norm(), k)
    L = objective.smoothness()
    assert round(L, 3) == printed
    assert upper_curvature(objective) == L
    w = filters(7, 500)
    w = w / w.norm(dim=1, keepdim=True) * torch.linspace(1, 5, 500).unsqueeze(1)
    assert objective.hessian_eigenvalues(Batch({"filter": w})).abs().max() <= L * (1 + 1e-12)


@pytest.mark.parametrize("k", [1, 2, 20])
def test_upper_model_holds_across_zero(k):
    # f - (L/2)|w|^2 is concave on all of space, through the kink at zero too.
    objective = PatchNetworkLoss(filters(2), k)
    L = objective.upper_curvature()
    x, y = filters(8, 2000), filters(9, 2000)
    y[:1000] = -x[:1000] * torch.rand(1000, 1).double()
    y[0] = 0
    fx, grad = objective.value_and_grad(Batch({"filter": x}))
    fy = objective.value(Batch({"filter": y}))
    model = fx + (grad["filter"] * (y - x)).sum(1) + L / 2 * (y - x).square().sum(1)
    assert (fy <= model + 1e-12).all()
    # The constant is attained along the filter: a smaller one fails.
    longer = objective.value(Batch({"filter": 2 * x}))
    model = fx + (grad["filter"] * x).sum(1) + 0.99 * L / 2 * x.square().sum(1)
    assert (longer > model).all()


def test_many_teachers_are_one_program():
    teachers = filters(3, 7)
    for kind in (PatchNetworkLoss, BinaryPatchNetworkLoss):
        objective = kind(teachers, 3)
        batch = objective.random_params(torch.Generator().manual_seed(1))
        values, grads = objective.value_and_grad(batch)
        for i in range(7):
            alone = kind(teachers[i], 3)
            value, grad = alone.value_and_grad(named.row(batch, i))
            assert values[i] == pytest.approx(value.item(), rel=1e-13)
            assert torch.allclose(grads["filter"][i], grad["filter"], rtol=1e-12, atol=0)
        keep = torch.tensor([True, False, True, False, False, True, True])
        part = objective.take(keep)
        assert torch.equal(part.value(named.take(batch, keep)), values[keep])
        assert kind(teachers[0], 3).take(keep).teacher.ndim == 1


def test_random_filters_are_uniform_on_the_sphere():
    drawn = PatchNetworkLoss(filters(1, d=3), 2).random_params(size=20000)["filter"]
    assert torch.allclose(drawn.norm(dim=1), torch.ones(20000).double())
    # Each coordinate of a uniform point on the 2-sphere is uniform on [-1, 1].
    low, high = drawn.quantile(torch.tensor([0.25, 0.75]).double(), 0)
    assert torch.allclose(high, torch.full((3,), 0.5).double(), atol=0.02)
    assert torch.allclose(low, torch.full((3,), -0.5).double(), atol=0.02)


def test_zero_filter_has_a_value_and_no_gradient():
    objective = PatchNetworkLoss(filters(2), 4)
    value, grad = objective.value_and_grad(objective.init_params())
    x = inputs(4, 6)
    mean, error = mean_and_error((x @ objective.teacher).clamp_min(0).mean(1).square())
    assert abs(value - mean) <= 4 * error
    assert grad["filter"].isnan().all()
    binary = BinaryPatchNetworkLoss(filters(2), 4)
    value, grad = binary.value_and_grad(binary.init_params())
    mean, error = mean_and_error(((x @ binary.teacher) > 0).double().sum(1).square() / 2)
    assert abs(value - mean) <= 4 * error
    assert value.item() == 4 * 5 / 8
    assert grad["filter"].isnan().all()


# Binary activations ------------------------------------------------------------------------------


def test_binary_loss_is_an_expectation():
    x, w, teacher = inputs(4, 6), filters(1), filters(2)
    error = ((x @ w) > 0).double().sum(1) - ((x @ teacher) > 0).double().sum(1)
    mean, deviation = mean_and_error(error.square() / 2)
    found = BinaryPatchNetworkLoss(teacher, 4).value({"filter": w})
    assert abs(mean - found) <= 4 * deviation


@pytest.mark.parametrize("estimator", ["relu", "identity"])
def test_coarse_gradient_is_that_of_the_straight_through_estimator(estimator):
    x, w, teacher = inputs(4, 6), filters(1), filters(2)
    # Per sample: back-propagation through the module, one leaf for each sample.
    leaves = w.expand(SAMPLES, 6).clone().requires_grad_()
    outputs = BinaryActivation(estimator)(torch.einsum("nkd,nd->nk", x, leaves)).sum(1)
    target = ((x @ teacher) > 0).double().sum(1)
    ((outputs - target).square() / 2).sum().backward()
    mean, deviation = mean_and_error(leaves.grad)
    objective = BinaryPatchNetworkLoss(teacher, 4, estimator)
    _, found = objective.coarse_value_and_grad({"filter": w})
    assert ((mean - found["filter"]).abs() <= 4 * deviation).all()


@pytest.mark.parametrize(("estimator", "factor"), [("relu", 1.0), ("identity", 2.0)])
def test_coarse_gradient_correlates_with_the_true_one(estimator, factor):
    # sin(theta) (v v*)^2 / (2 (2 pi)^(3/2) |w|), twice that for the identity; v v* = k.
    k, w, teacher = 3, filters(1), filters(2)
    objective = BinaryPatchNetworkLoss(teacher, k, estimator)
    true = objective.value_and_grad({"filter": w})[1]["filter"]
    coarse = objective.coarse_value_and_grad({"filter": w})[1]["filter"]
    cosine = (w @ teacher / w.norm() / teacher.norm()).item()
    sine = math.sqrt(1 - cosine**2)
    expected = factor * sine * k**2 / (2 * (2 * math.pi) ** 1.5 * w.norm().item())
    assert (true @ coarse).item() == pytest.approx(expected, rel=1e-12)


def test_true_gradient_of_the_binary_loss():
    objective = BinaryPatchNetworkLoss(filters(2), 5)
    w = filters(1)
    grad = objective.value_and_grad({"filter": w})[1]["filter"]
    h, units = 1e-6, torch.eye(6).double()
    both = [objective.value(Batch({"filter": w + s * h * units})) for s in (1, -1)]
    assert ((both[0] - both[1]) / (2 * h) - grad).norm() <= 1e-8 * grad.norm()
    # It does not vanish towards the teacher: a kink. At the teacher it is zero.
    near = objective.teacher / objective.teacher.norm() + 1e-7 * units[0]
    steep = objective.value_and_grad({"filter": near})[1]["filter"].norm()
    assert steep.item() == pytest.approx(5 / (2 * math.pi), rel=1e-6)
    assert objective.value_and_grad({"filter": objective.teacher})[1]["filter"].norm() == 0


@pytest.mark.parametrize("estimator", ["relu", "identity"])
def test_surrogate_has_the_coarse_gradient_on_the_sphere(estimator):
    objective = BinaryPatchNetworkLoss(filters(2), 5, estimator)
    w = filters(1) / filters(1).norm()
    coarse = objective.coarse_value_and_grad({"filter": w})[1]["filter"]
    tangent = filters(4) - (filters(4) @ w) * w
    h = 1e-6
    ends = [w + s * h * tangent for s in (1, -1)]
    values = [objective.coarse_value_and_grad({"filter": e / e.norm()})[0] for e in ends]
    # The surrogate is a function on the sphere; its slope along a tangent is that of the gradient.
    slope = (values[0] - values[1]) / (2 * h)
    assert slope.item() == pytest.approx((coarse @ tangent).item(), rel=1e-8)
    c = 5 / math.sqrt(2 * math.pi) * (0.5 if estimator == "relu" else 1)
    assert objective.coarse_curvature() == pytest.approx(c, rel=1e-15)
