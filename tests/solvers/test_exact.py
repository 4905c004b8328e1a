"""Branch and bound, local search, pursuits and refits against other ways to the same numbers."""

import itertools
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import orthogonal_mp

from ellzero import Claim, L0Ball, LeastSquares, Problem, iterate, solve, verify
from ellzero.solvers import OMP, BranchAndBound, LocalSearch, Newton, refit
from ellzero.solvers import refit as refit_function
from ellzero.tensors import named
from tests.problems import (
    ENUMERATED,
    known_problems,
    loss_of,
    planted,
    random_data,
    random_problem,
)
from tests.registry import logistic, module, random_points


@pytest.mark.parametrize("known", known_problems(), ids=lambda known: known.name)
def test_known_optimum(known):
    result = solve(known.problem, BranchAndBound(), certify=False)
    flat = named.flatten(result.params)
    counted = len(flat) - result.params.get("intercept", torch.zeros(0)).numel()
    assert tuple(flat[:counted].nonzero().flatten().tolist()) == known.support
    assert result.value == pytest.approx(known.value, rel=ENUMERATED, abs=1e-12)


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, seed, marks=pytest.mark.slow if seed >= fast else ())
        for kind, fast in (("least squares", 6), ("logistic", 3), ("softmax", 1))
        for seed in range(6)
    ],
)
def test_branch_and_bound_equals_enumeration(kind, intercept, seed):
    budget = 2 + seed % 2
    problem, best, _ = random_problem(seed, kind, budget=budget, ridge=0.03, intercept=intercept)
    # No starts: the tree has to find the optimum by itself.
    result = solve(problem, BranchAndBound(), problem.objective.init_params())
    assert result.value == pytest.approx(best, rel=ENUMERATED)
    certificate = verify(problem, result.params, proof=result.proof)
    assert certificate.claim is Claim.OPTIMAL
    assert certificate.gap <= 1e-6
    assert certificate.lower_bound <= best * (1 + ENUMERATED)


@pytest.mark.parametrize("limits", [{"max_iter": 1}, {"max_iter": 0}, {"time_limit": 1e-4}])
@pytest.mark.parametrize("kind", ["least squares", "logistic", "softmax"])
def test_a_stopped_proof_reports_a_true_bound(kind, limits):
    problem, best, _ = random_problem(11, kind, budget=3, ridge=0.003)
    result = solve(problem, BranchAndBound(width=1, rounds=2), **limits)
    assert result.lower_bound <= best * (1 + ENUMERATED)
    assert result.value >= best * (1 - ENUMERATED)
    assert result.gap >= (result.value - best) / abs(result.value) - ENUMERATED


@pytest.mark.parametrize("kind", ["least squares", "logistic", "softmax"])
@pytest.mark.parametrize("seed", range(3))
def test_local_search_ends_where_no_exchange_helps(kind, seed):
    problem, _, _ = random_problem(seed, kind, n=16, p=8, budget=3, ridge=0.01)
    X, y = random_data(seed, 16, 3 if kind == "softmax" else 8, kind)
    function, size = loss_of(kind, X, y, 0.01)
    run = iterate(problem, LocalSearch(), problem.objective.init_params())
    support = set(named.flatten(run.params)[0].nonzero().flatten().tolist())
    value = float(run.value[0])
    for leaves, enters in itertools.product(support, set(range(size)) - support):
        index = np.array(sorted(support - {leaves} | {enters}))

        def inside(entries, index=index):
            flat = np.zeros(size)
            flat[index] = entries
            got, grad = function(flat)
            return got, grad[index]

        other = minimize(inside, np.zeros(len(index)), jac=True, options={"gtol": 1e-9}).fun
        assert other >= value * (1 - 2e-8)


@pytest.mark.parametrize("seed", range(10))
def test_omp_equals_sklearn(seed):
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(40, 60))
    X /= np.linalg.norm(X, axis=0)
    y = generator.normal(size=40)
    problem = Problem(LeastSquares(torch.tensor(X), torch.tensor(y)), L0Ball(7))
    result = solve(problem, OMP(), certify=False)
    expected = orthogonal_mp(X, y, n_nonzero_coefs=7)
    assert result.support["coef"] == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(result.params["coef"], expected, rtol=1e-8, atol=1e-10)
    assert result.n_iter == 7


@pytest.mark.parametrize("kind", ["least squares", "logistic", "softmax"])
def test_newton_polishes_to_the_last_digits(kind):
    for seed in range(5):
        problem, _, _ = random_problem(seed, kind, intercept=True)
        start = random_points(problem.objective, 1, seed)[0]
        result = solve(problem, Newton(), start, certify=False)
        assert result.status.is_success
        _, grad = problem.objective.value_and_grad(result.params)
        on = named.mask(grad, named.nonzero_masks(result.params))
        assert named.max_abs(on) <= 1e-10


def test_newton_ends_when_the_value_reaches_zero():
    problem, coef = planted(n=60, p=20)
    result = solve(Problem(problem.objective), Newton(), certify=False)
    assert result.status.is_success
    assert result.n_iter <= 20
    np.testing.assert_allclose(result.params["coef"], coef, atol=1e-12)


def test_newton_ends_in_float32():
    result = solve(Problem(logistic(torch.float32)), Newton(), certify=False)
    assert result.status.is_success
    assert result.n_iter <= 20


def test_refit_of_a_module_by_lbfgs():
    objective = module(ridge=0.05)
    start = named.to_batch(objective.current_params())
    generator = torch.Generator().manual_seed(0)
    masks = named.map_tensors(lambda t: torch.rand(t.shape, generator=generator) < 0.6, start)
    found = refit(objective, masks, start, max_iter=500)
    assert (named.flatten(named.nonzero_masks(found)) <= named.flatten(masks)).all()
    _, grad = objective.value_and_grad(found)
    _, before = objective.value_and_grad(named.mask(start, masks))
    # L-BFGS ends where the value stops changing: its gradient is about the root of rounding.
    assert named.max_abs(named.mask(grad, masks)) <= 1e-5 * named.max_abs(before)


def test_large_supports_are_refitted_by_lbfgs(monkeypatch):
    problem, _, _ = random_problem(0, "logistic")
    start = named.to_batch(problem.objective.init_params())
    masks = named.map_tensors(lambda t: torch.ones_like(t, dtype=torch.bool), start)
    exact = refit(problem.objective, masks, start)
    monkeypatch.setattr(sys.modules["ellzero.solvers.refit"], "NEWTON_LIMIT", 2)
    found = refit_function(problem.objective, masks, start)
    torch.testing.assert_close(found["coef"], exact["coef"], rtol=1e-6, atol=1e-7)
