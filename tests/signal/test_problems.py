"""The same problems as `Problem`: iterative solvers and certificates against the exact program."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero import solvers
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.objectives import GraphSmoothness
from ellzero.signal import SparseSmooth


def bumps(n, seed=0):
    rng = np.random.default_rng(seed)
    high = np.repeat(rng.random(n // 5 + 1) < 0.3, 5)[:n]
    return 0.3 * rng.standard_normal(n) + 2.0 * high


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("graph", ["chain", "grid", [[0, 1], [1, 2], [0, 2], [2, 9]]])
def test_values_agree_and_nothing_is_below_the_bound(graph, nonnegative):
    y = bumps(40).reshape((5, 8) if graph == "grid" else -1)
    y[tuple(k // 2 for k in y.shape)] = np.nan
    weights = np.linspace(0.5, 2.0, 40).reshape(y.shape)
    est = SparseSmooth(0.8, n_nonzero=8, graph=graph, nonnegative=nonnegative).fit(y, weights)
    problem = est.as_problem(y, weights)
    at = {"coef": torch.from_numpy(est.signal_.ravel())}
    missing = float((weights * np.nan_to_num(y) ** 2)[np.isnan(y)].sum())
    assert problem.value(at).item() == pytest.approx(est.value_ + missing, rel=1e-12)
    assert problem.constraint.violation(at).item() == 0.0
    found = ellzero.solve(problem, solvers.IHT())
    assert est.lower_bound_ <= found.value * (1 + 1e-12)
    assert est.value_ <= found.value * (1 + 1e-12)
    assert found.certificate.holds


def test_an_exact_solver_finds_the_value_of_the_program():
    y = bumps(16, seed=3)
    for k in (0, 3, 6, 16):
        est = SparseSmooth(0.5, n_nonzero=k).fit(y)
        found = ellzero.solve(est.as_problem(y), solvers.ExactSubset())
        assert found.value == pytest.approx(est.value_, rel=1e-9)
    assert ellzero.verify(est.as_problem(y), found.params).holds


def test_penalties_become_penalties():
    y = bumps(50, seed=1)
    est = SparseSmooth(1.0, penalty=0.7).fit(y)
    problem = est.as_problem(y)
    at = {"coef": torch.from_numpy(est.signal_)}
    assert problem.value(at).item() == pytest.approx(est.value_, rel=1e-12)
    found = ellzero.solve(problem, solvers.ProximalGradient())
    assert found.value >= est.lower_bound_ * (1 - 1e-12)


def test_long_chains_are_solved_on_a_support():
    n = 1000
    y = torch.from_numpy(bumps(n))
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)], 1)
    objective = GraphSmoothness(y, edges, 20.0)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, ::3] = False
    found = objective.minimize_on(ellzero.Batch({"coef": mask}))
    system = np.eye(n) * 41.0 - 20.0 * (np.eye(n, k=1) + np.eye(n, k=-1))
    system[0, 0] = system[-1, -1] = 21.0
    for row in range(2):
        on = np.flatnonzero(mask[row])
        x = np.linalg.solve(system[np.ix_(on, on)], y.numpy()[on])
        np.testing.assert_allclose(found["coef"][row, on], x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({}, InvalidParameterError, "Exactly one of `n_nonzero` and `penalty` must be given, "
         "got neither."),
        ({"n_nonzero": 1, "min_length": 2}, IncompatibleError,
         "`min_length` has no set in a `Problem`."),
        ({"n_nonzero": 1, "known_zeros": [0]}, IncompatibleError,
         "`known_zeros` has no set in a `Problem`."),
        ({"n_nonzero": 4}, InvalidParameterError,
         "`n_nonzero` must be at most 3, the number of samples, got 4."),
    ],
)  # fmt: skip
def test_what_has_no_problem_is_one_sentence(given, kind, message):
    with pytest.raises(kind) as error:
        SparseSmooth(**given).as_problem([1.0, 2.0, 3.0])
    assert error.value.message == message
