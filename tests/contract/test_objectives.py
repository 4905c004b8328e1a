"""What every objective owes, over the registry."""

import numpy as np
import pytest
import torch

from ellzero import Batch, ModuleLoss
from ellzero.core.problem import (
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.tensors import named
from tests.registry import OBJECTIVE_CASES, random_points

every_objective = pytest.mark.parametrize("make", OBJECTIVE_CASES.values(), ids=OBJECTIVE_CASES)
TWICE = {n: m for n, m in OBJECTIVE_CASES.items() if not n.startswith("binary")}
SMOOTH = {
    n: m
    for n, m in TWICE.items()
    if "module" not in n and not n.startswith(("poisson", "cosines", "noisy", "finite", "patches"))
}
QUADRATIC = {n: m for n, m in SMOOTH.items() if n.startswith(("quadratic", "least", "graph"))}


def directions(objective):
    """Return the unit vectors of all entries, as a batch."""
    template = objective.init_params()
    return named.unflatten(torch.eye(named.size(template)).double(), template)


def finite_differences(function, point, objective, width=1e-5):
    """Return central differences of a function along every entry: shape (n, ...)."""
    units = directions(objective)
    ahead = named.axpy(width, units, named.expand(point, units.size))
    behind = named.axpy(-width, units, named.expand(point, units.size))
    return (function(ahead) - function(behind)) / (2 * width)


@every_objective
def test_gradient_equals_finite_differences_and_autograd(make):
    objective = make()
    for point in random_points(objective):
        value, grad = objective.value_and_grad(point)
        assert value.ndim == 0
        assert value == objective.value(point)
        flat = named.flatten(grad)
        # Central differences: error width^2 times third derivatives, and rounding / width.
        differences = finite_differences(objective.value, point, objective)
        np.testing.assert_allclose(differences, flat, rtol=1e-6, atol=1e-8)
        if isinstance(objective, ModuleLoss):
            continue  # its values are cut off the graph; its gradient is autograd itself
        leaves = {n: t.clone().requires_grad_() for n, t in point.items()}
        traced = torch.autograd.grad(objective.value(leaves), list(leaves.values()))
        for got, expected in zip(grad.values(), traced, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("make", TWICE.values(), ids=TWICE)
def test_hessian_equals_differences_of_the_gradient(make):
    objective = make()
    assert isinstance(objective, AbstractTwiceDifferentiable)
    point = random_points(objective, 1)[0]
    units = directions(objective)
    here = named.expand(point, units.size)
    product = named.flatten(objective.hessian_vector(here, units))

    def gradient(batch):
        return named.flatten(objective.value_and_grad(batch)[1])

    np.testing.assert_allclose(
        product, finite_differences(gradient, point, objective), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(product, product.T, rtol=1e-9, atol=1e-12)
    index = torch.tensor([[units.size - 1, 0, 2]])
    block = objective.hessian_on(named.to_batch(point), index)
    assert block.shape == (1, 3, 3)
    np.testing.assert_allclose(block[0], product[index[0]][:, index[0]], rtol=1e-9, atol=1e-12)


@every_objective
def test_batch_equals_points(make):
    objective = make()
    points = random_points(objective, 4)
    values, grads = objective.value_and_grad(named.stack(points))
    assert isinstance(grads, Batch)
    assert values.shape == (4,)
    for i, point in enumerate(points):
        value, grad = objective.value_and_grad(point)
        np.testing.assert_allclose(values[i], value, rtol=1e-12)
        for name, tensor in named.row(grads, i).items():
            assert tensor.shape == point[name].shape
            np.testing.assert_allclose(tensor, grad[name], rtol=1e-9, atol=1e-12)


@every_objective
def test_dtype_and_names_are_kept(make):
    objective = make(torch.float32)
    for batch in (random_points(objective, 1)[0], named.stack(random_points(objective, 2))):
        value, grad = objective.value_and_grad(batch)
        assert value.dtype == torch.float32
        assert list(grad) == list(objective.init_params())
        assert {t.dtype for t in grad.values()} == {torch.float32}
        assert {n: t.shape for n, t in grad.items()} == {n: t.shape for n, t in batch.items()}
    assert all((t == 0).all() for t in objective.init_params().values())


@pytest.mark.parametrize("make", SMOOTH.values(), ids=SMOOTH)
def test_curvature_lies_between_its_constants(make):
    objective = make()
    assert isinstance(objective, AbstractSmoothObjective)
    low, high = objective.strong_convexity(), objective.smoothness()
    bound = objective.curvature_bound()
    n = bound.size
    matrix = bound.submatrix(torch.arange(n))
    np.testing.assert_allclose(bound.diagonal(), matrix.diagonal(), rtol=1e-12)
    np.testing.assert_allclose(bound.rows(torch.arange(n)), matrix, rtol=1e-12, atol=1e-15)
    scales = (0.0, 0.1, 1.0, 5.0)
    for scale in scales:
        for point in random_points(objective, 3, seed=4):
            here = named.expand(named.scale(point, scale), n)
            hessian = named.flatten(objective.hessian_vector(here, directions(objective)))
            eigenvalues = np.linalg.eigvalsh(hessian.numpy())
            # Rounding of an eigensolver.
            assert low * (1 - 1e-9) - 1e-12 * high <= eigenvalues[0]
            assert eigenvalues[-1] <= high * (1 + 1e-9)
            assert np.linalg.eigvalsh((matrix - hessian).numpy())[0] >= -1e-10 * high


@pytest.mark.parametrize("make", QUADRATIC.values(), ids=QUADRATIC)
def test_minimizer_on_a_support_has_no_gradient_there(make):
    objective = make()
    assert isinstance(objective, AbstractQuadraticObjective)
    generator = np.random.default_rng(5)
    template = objective.init_params()
    flat = torch.tensor(generator.random((20, named.size(template))) < 0.5)
    masks = named.unflatten(flat, template)
    found = objective.minimize_on(masks)
    inside = named.flatten(found)
    assert ((inside != 0) <= flat).all()
    grad = named.flatten(objective.value_and_grad(found)[1])
    assert grad[flat].abs().max() <= 1e-12
    alone = objective.minimize_on(named.row(masks, 3))
    for name, tensor in alone.items():
        np.testing.assert_allclose(tensor, found[name][3], rtol=1e-10, atol=1e-14)
