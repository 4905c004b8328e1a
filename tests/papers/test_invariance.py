"""Rescaled losses, permuted features and duplicated samples leave the support unchanged."""

import dataclasses

import pytest
import torch
from typing_extensions import override

from ellzero.core.problem import AbstractSmoothObjective, Problem
from ellzero.datasets import iris_reference, make_sparse_classification, make_sparse_regression
from ellzero.objectives import LeastSquares, Logistic, Softmax
from ellzero.sets import L0Ball
from ellzero.solvers import HTP, IHT, LocalSearch
from ellzero.solving import solve
from ellzero.tensors import named


class Scaled(AbstractSmoothObjective):
    """A positive multiple of an objective."""

    def __init__(self, objective, factor):
        self.objective, self.factor = objective, factor

    @override
    def init_params(self):
        return self.objective.init_params()

    @override
    def value(self, params):
        return self.factor * self.objective.value(params)

    @override
    def value_and_grad(self, params):
        value, grad = self.objective.value_and_grad(params)
        return self.factor * value, named.scale(grad, self.factor)

    @override
    def hessian_vector(self, params, direction):
        return named.scale(self.objective.hessian_vector(params, direction), self.factor)

    @override
    def hessian_on(self, params, index):
        return self.factor * self.objective.hessian_on(params, index)

    @override
    def smoothness(self):
        return self.factor * self.objective.smoothness()

    @override
    def strong_convexity(self):
        return self.factor * self.objective.strong_convexity()

    @override
    def curvature_bound(self):
        bound = self.objective.curvature_bound()
        return dataclasses.replace(
            bound, left=self.factor * bound.left, ridge=self.factor * bound.ridge
        )


def regression(n_features):
    return make_sparse_regression(
        n_samples=80, n_features=n_features, n_nonzero=5, noise=0.3, seed=3
    )


CASES = ["softmax", "logistic", "least squares", "least squares, no proof", "no ridge"]


def build(case, change=lambda X, y: (X, y)):
    if case in ("softmax", "no ridge"):
        X, y = iris_reference()[:2]
        objective = Softmax(*change(X, y), ridge=0.0 if case == "no ridge" else 0.01)
        return objective, L0Ball(2 if case == "no ridge" else 5)
    if case == "logistic":
        data = make_sparse_classification(n_samples=120, n_features=20, n_nonzero=4, seed=1)
        return Logistic(*change(data.X, data.y), ridge=0.01), L0Ball(4)
    data = regression(30 if case == "least squares" else 90)
    return LeastSquares(*change(data.X, data.y), ridge=0.01), L0Ball(5)


def support(objective, ball, solver=None):
    result = solve(Problem(objective, ball), solver)
    return {n: t != 0 for n, t in result.params.items()}["coef"], result


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("case", CASES)
def test_rescaled_loss(case, factor):
    objective, ball = build(case)
    expected, first = support(objective, ball)
    found, second = support(Scaled(objective, factor), ball)
    assert torch.equal(found, expected)
    assert second.value == pytest.approx(factor * first.value, rel=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("solver", [IHT(), HTP(), LocalSearch(), IHT(step_size="backtracking")])
def test_rescaled_loss_for_single_solvers(solver, factor):
    data = regression(30)
    ball = L0Ball(5)
    expected, _ = support(LeastSquares(data.X, data.y), ball, solver)
    root = factor**0.5
    found, _ = support(LeastSquares(root * data.X, root * data.y), ball, solver)
    assert int(expected.sum()) == 5
    assert torch.equal(found, expected)


@pytest.mark.parametrize("case", CASES)
def test_permuted_features(case):
    objective, ball = build(case)
    expected, first = support(objective, ball)
    order = torch.randperm(expected.shape[-1], generator=torch.Generator().manual_seed(5))
    permuted, _ = build(case, lambda X, y: (X[:, order], y))
    found, second = support(permuted, ball)
    assert torch.equal(found, expected[..., order])
    assert second.value == pytest.approx(first.value, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_duplicated_samples(case):
    objective, ball = build(case)
    expected, first = support(objective, ball)
    doubled, _ = build(case, lambda X, y: (torch.cat([X, X]), torch.cat([y, y])))
    found, second = support(doubled, ball)
    assert torch.equal(found, expected)
    assert second.value == pytest.approx(first.value, rel=1e-5)
