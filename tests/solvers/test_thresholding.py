"""Fixed points, step sizes and penalties of the thresholding methods."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from ellzero import (
    L1,
    Batch,
    L0Ball,
    LeastSquares,
    Problem,
    Quadratic,
    Status,
    iterate,
    solve,
)
from ellzero.solvers import IHT, GraHTP, ProximalGradient
from ellzero.tensors import named
from tests.problems import random_data, random_problem
from tests.registry import PROBLEMS


def is_stable(theta, grad, step, budget, slack=0.0):
    """Return whether a point is stable under hard thresholding, by the exact conditions."""
    theta = np.asarray(theta, dtype=float)
    on = theta != 0
    if np.abs(grad[on]).max(initial=0) > slack:
        return False
    off = step * np.abs(grad[~on]).max(initial=0)
    if on.sum() < budget:
        return off <= slack
    return off <= np.abs(theta[on]).min(initial=np.inf) + slack


def one_step(Q, c, theta, step, budget):
    problem = Problem(Quadratic(Q, c), L0Ball(budget))
    solver = IHT(step_size=step)
    state = solver.init(problem, Batch({"coef": theta.unsqueeze(0)}))
    return solver.step(problem, state).params["coef"][0]


def test_fixed_points_are_the_stable_points_with_ties():
    # Small integers: gradients, steps and ties are exact.
    generator = np.random.default_rng(0)
    counts = {True: 0, False: 0}
    for _ in range(800):
        theta = generator.integers(-2, 3, 5) * (generator.random(5) < 0.6)
        budget = int(max(1, (theta != 0).sum() + generator.integers(0, 2)))
        if budget > 5:
            continue
        grad = generator.integers(-2, 3, 5) * (theta == 0)
        if generator.random() < 0.1:
            grad = generator.integers(-2, 3, 5)
        Q = torch.eye(5).double()
        # The gradient of the quadratic at theta is theta - c.
        point = torch.tensor(theta).double()
        c = point - torch.tensor(grad).double()
        moved = one_step(Q, c, point, 1.0, budget)
        expected = is_stable(theta, grad, 1.0, budget)
        assert torch.equal(moved, point) == expected
        counts[bool(expected)] += 1
    assert min(counts.values()) > 50


def test_iht_never_rises_up_to_the_end_point():
    for seed in range(20):
        X, y = random_data(seed, 12, 20, "least squares", noise=2.0)
        Q = X.T @ X / 12
        objective = Quadratic(torch.tensor(Q), torch.tensor(X.T @ y / 12))
        largest = np.linalg.eigvalsh(Q)[-1]
        problem = Problem(objective, L0Ball(4))
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randn(16, 20, generator=generator, dtype=torch.float64)
        run = iterate(problem, IHT(1 / largest), Batch({"coef": starts}), max_iter=200)
        values = torch.stack(run.values)
        assert (values[1:] - values[:-1] <= 1e-12 * values[0].abs().max()).all()


def test_a_point_where_iht_converged_is_stable():
    for seed in range(10):
        problem, _, _ = random_problem(seed, "logistic", budget=3)
        result = solve(problem, IHT(), certify=False, max_iter=5000)
        assert result.status is Status.CONVERGED
        _, grad = problem.objective.value_and_grad(result.params)
        step = 1 / problem.objective.smoothness()
        theta = result.params["coef"].numpy()
        assert is_stable(theta, grad["coef"].numpy(), step, 3, slack=1e-8)


@pytest.mark.parametrize("weight", [0.01, 0.2, 1.0])
def test_l1_equals_lasso(weight):
    X, y = random_data(0, 40, 12, "least squares")
    problem = Problem(LeastSquares(torch.tensor(X), torch.tensor(y)), penalty=L1(weight))
    result = solve(problem, ProximalGradient(), max_iter=20_000, certify=False)
    assert result.status is Status.CONVERGED
    # Lasso minimizes ||y - X w||^2 / (2 n) + alpha ||w||_1: the same function.
    lasso = Lasso(alpha=weight, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(result.params["coef"], lasso.coef_, rtol=1e-6, atol=1e-7)


def test_l0_ends_at_a_fixed_point():
    problem = PROBLEMS["l0"]()
    result = solve(problem, ProximalGradient(), max_iter=20_000, certify=False)
    assert result.status is Status.CONVERGED
    _, grad = problem.objective.value_and_grad(result.params)
    step = 1 / problem.objective.smoothness()
    theta, g = result.params["coef"].numpy(), grad["coef"].numpy()
    level = np.sqrt(2 * step * 0.02)
    on = theta != 0
    assert 0 < on.sum() < 6
    assert np.abs(g[on]).max() <= 1e-8
    assert np.abs(theta[on]).min() >= level
    assert step * np.abs(g[~on]).max() <= level


def test_backtracking_converges_to_its_tolerance():
    for name in ("quadratic", "logistic", "softmax", "groups"):
        problem = PROBLEMS[name]()
        result = solve(problem, IHT("backtracking"), certify=False, max_iter=300)
        assert result.status is Status.CONVERGED


@pytest.mark.parametrize("solver", [IHT(), IHT("backtracking"), GraHTP()], ids=repr)
def test_module_falls_and_stays_inside(solver):
    problem = PROBLEMS["module"]()
    assert problem.objective.current_params()["0.weight"].abs().min() > 0
    result = solve(problem, solver, max_iter=40, certify=False)
    trace = np.array(result.trace)
    assert (np.diff(trace) <= 1e-12 * trace[0]).all()
    start = problem.constraint.project(problem.objective.current_params())
    assert result.value < 0.7 * problem.objective.value(start)
    assert result.n_nonzero <= 8
    assert named.to_float(problem.constraint.violation(result.params)) == 0
