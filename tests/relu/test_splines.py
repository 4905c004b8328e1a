"""Networks on a line against linear programs, lassos and trained networks."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from ellzero.core.result import Claim
from ellzero.errors import DataError, IncompatibleError, InvalidParameterError
from ellzero.relu import SplineReLURegressor, TwoLayerReLU, certify_spline, fit_spline, splines

WORKED = ([-2.0, -1.0, 0.0, 1.0, 2.0], [1.0, -1.0, 1.0, 1.0, -1.0])


def columns(t):
    """Return every neuron with its kink at a sample, both sides."""
    return np.column_stack([np.maximum(t[:, None] - t, 0.0), np.maximum(t - t[:, None], 0.0)])


def supremum(t, v):
    return np.abs(columns(t).T @ v).max()


def linear_program(t, y):
    """Return the least norm of interpolation by HiGHS."""
    A = columns(t)
    found = linprog(
        np.concatenate([np.ones(2 * A.shape[1]), [0.0]]),
        A_eq=np.column_stack([A, -A, np.ones(len(t))]),
        b_eq=y,
        bounds=[(0, None)] * (2 * A.shape[1]) + [(None, None)],
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    return found.fun


def lasso(t, y, penalty):
    """Return the optimum over all neurons with kinks at samples by Clarabel."""
    A = columns(t)
    w, c = cp.Variable(A.shape[1]), cp.Variable()
    fit = cp.sum_squares(A @ w + c - y) / (2 * len(y))
    program = cp.Problem(cp.Minimize(fit + penalty * cp.norm1(w)))
    return program.solve(solver=cp.CLARABEL, tol_gap_rel=1e-11, tol_gap_abs=1e-12, tol_feas=1e-11)


def test_worked_example_of_the_paper():
    spline = fit_spline(*WORKED)
    assert (spline.norm, spline.value, spline.lower_bound, spline.gap) == (8.0, 8.0, 8.0, 0.0)
    assert spline.dual.tolist() == [1.0, -3.0, 2.0, 1.0, -1.0]
    np.testing.assert_allclose(spline.predict(np.array(WORKED[0])), WORKED[1], atol=1e-15)


def test_closed_form_equals_a_linear_program():
    rng = np.random.default_rng(0)
    worst = 0.0
    for k in range(200):
        n = int(rng.integers(2, 13))
        t = rng.uniform(-1, 1, n) if k % 2 else np.sort(rng.choice(40, n, replace=False)) / 10
        y = rng.standard_normal(n) + rng.choice([0.0, 5.0]) * t
        spline = fit_spline(t, y)
        worst = max(worst, abs(spline.norm / linear_program(t, y) - 1))
        assert spline.n_neurons <= n - 1
        assert spline.gap <= 1e-13
        np.testing.assert_allclose(spline.predict(t), y, atol=1e-11 * max(spline.norm, 1))
        assert abs(spline.dual.sum()) <= 1e-9 * np.abs(spline.dual).max()
        assert supremum(t, spline.dual) <= 1 + 1e-9
    assert worst <= 1e-10


def test_the_dual_point_proves_the_norm_by_itself():
    t, y = np.array([0.0, 1.0, 3.0, 4.0]), np.array([1.0, 5.0, 6.0, -2.0])
    spline = fit_spline(t, y)
    assert spline.dual @ y == pytest.approx(spline.norm, rel=1e-14)
    assert supremum(t, spline.dual) == pytest.approx(1.0, rel=1e-14)


def test_lines_cost_their_slope_and_constants_nothing():
    t = np.linspace(-1, 2, 7)
    for slope in (-3.0, 0.25):
        spline = fit_spline(t, slope * t + 4)
        assert spline.norm == pytest.approx(abs(slope), rel=1e-14)
        assert spline.n_neurons == 1
    flat = fit_spline(t, np.full(7, 2.5))
    assert (flat.norm, flat.n_neurons) == (0.0, 0)
    assert (flat.predict(t) == 2.5).all()


def test_a_slope_beyond_the_kinks_takes_the_neuron_at_the_boundary():
    t = np.linspace(-1, 1, 9)
    # Slopes 1 and 3: T = 2, |s_1 + s_last| = 4, so the norm is 3.
    spline = fit_spline(t, np.abs(t) + 2 * t)
    assert spline.norm == pytest.approx(3.0, rel=1e-14)
    assert sorted(spline.knots.tolist()) == [-1.0, 0.0]
    mirrored = fit_spline(t, np.abs(t) - 2 * t)
    assert mirrored.norm == pytest.approx(3.0, rel=1e-14)
    assert 1.0 in mirrored.knots


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 0.1])
def test_penalized_equals_the_lasso_over_all_neurons(penalty):
    rng = np.random.default_rng(1)
    for n in (2, 3, 15, 40):
        t = rng.uniform(-1, 1, n)
        y = np.sin(4 * t) + 0.2 * rng.standard_normal(n) + (3 * t if n == 40 else 0)
        spline = fit_spline(t, y, penalty)
        assert spline.value == pytest.approx(lasso(t, y, penalty), rel=1e-8)
        assert spline.gap <= 1e-10
        outputs = np.maximum(spline.sides * (t[:, None] - spline.knots), 0) @ spline.weights
        np.testing.assert_allclose(outputs + spline.intercept, spline.predict(t), atol=1e-12)
        direct = 0.5 * np.mean((outputs + spline.intercept - y) ** 2) + penalty * spline.norm
        assert spline.value == pytest.approx(direct, rel=1e-12)
        assert supremum(t, spline.dual) <= penalty * (1 + 1e-11)
        dual_value = spline.dual @ y - 0.5 * n * spline.dual @ spline.dual
        assert spline.lower_bound == pytest.approx(dual_value, rel=1e-11)


def test_equal_positions_are_weighted():
    rng = np.random.default_rng(2)
    t = rng.integers(0, 6, 40).astype(float)
    y = rng.standard_normal(40) + np.abs(t - 2)
    spline = fit_spline(t, y, 0.02)
    assert spline.value == pytest.approx(lasso(t, y, 0.02), rel=1e-8)
    assert spline.gap <= 1e-10


def test_penalties_from_the_largest_useful_one_on_give_the_mean():
    rng = np.random.default_rng(3)
    t, y = rng.uniform(0, 1, 30), rng.standard_normal(30)
    largest = supremum(t, (y - y.mean()) / 30)
    zero, some = fit_spline(t, y, largest * 1.0001), fit_spline(t, y, largest * 0.999)
    assert zero.n_neurons == 0
    assert zero.gap <= 1e-14
    np.testing.assert_allclose(zero.predict(t), y.mean(), rtol=1e-14)
    assert some.n_neurons > 0
    assert some.gap <= 1e-10


@pytest.mark.parametrize("kind", ["uniform", "grid", "cauchy", "clusters", "shifted"])
@pytest.mark.parametrize("level", [1e-2, 1e-5])
def test_any_spacing_is_solved_to_small_gaps(kind, level):
    rng = np.random.default_rng(4)
    n = 2000
    t = {
        "uniform": lambda: rng.uniform(-1, 1, n),
        "grid": lambda: np.linspace(0, 5, n),
        "cauchy": lambda: rng.standard_cauchy(n),
        "clusters": lambda: rng.integers(0, 5, n) + 1e-6 * rng.standard_normal(n),
        "shifted": lambda: 1e6 + rng.uniform(0, 1, n),
    }[kind]()
    y = np.sin(6 * t) + 0.3 * rng.standard_normal(n)
    spline = fit_spline(t, y, level * np.ptp(t) * y.std())
    assert spline.gap <= 1e-9
    assert supremum(t, spline.dual) <= spline.penalty * (1 + 1e-8)


def test_a_hundred_thousand_samples_take_few_small_programs(monkeypatch):
    sizes = []
    solve = splines.solve_restricted
    monkeypatch.setattr(
        splines, "solve_restricted", lambda p: (sizes.append(len(p.knots)), solve(p))[1]
    )
    rng = np.random.default_rng(5)
    t = rng.uniform(-1, 1, 100_000)
    y = np.sin(6 * t) + 0.3 * rng.standard_normal(100_000)
    spline = fit_spline(t, y, 1e-5)
    assert spline.gap <= 1e-10
    assert len(sizes) <= 15
    assert max(sizes) <= 1000
    assert spline.n_neurons <= 100
    interpolant = fit_spline(t, y)
    assert interpolant.gap <= 1e-12
    assert interpolant.n_neurons <= 99_999


def test_scales_of_inputs_and_targets_change_nothing_else():
    rng = np.random.default_rng(6)
    t, y = rng.uniform(-1, 1, 50), rng.standard_normal(50)
    one = fit_spline(t, y, 1e-2)
    two = fit_spline(1e4 * t, 1e-3 * y, 1e-2 * 1e4 * 1e-3)
    assert two.value == pytest.approx(1e-6 * one.value, rel=1e-9)


def test_data_of_rank_one_and_on_a_line_are_splines():
    rng = np.random.default_rng(7)
    a = np.array([3.0, -4.0, 12.0])
    c, y = rng.standard_normal(20), rng.standard_normal(20)
    flat = fit_spline(13 * c, y, 0.05)
    for X in (np.outer(c, a), np.outer(c, a) + np.array([1.0, 2.0, 3.0])):
        spline = fit_spline(X, y, 0.05)
        assert spline.value == pytest.approx(flat.value, rel=1e-10)
        module = spline.to_module()
        outputs = module(torch.as_tensor(X))[:, 0].detach().numpy()
        np.testing.assert_allclose(outputs, spline.predict(X), atol=1e-10)
        # The module's own numbers cost what the spline says: both layers, biases left out.
        cost = 0.5 * sum(
            float((p.detach() ** 2).sum()) for p in (module[0].weight, module[2].weight)
        )
        assert cost == pytest.approx(spline.norm, rel=1e-12)
        off = X + np.cross(a, [1.0, 0.0, 0.0])
        np.testing.assert_allclose(
            module(torch.as_tensor(off))[:, 0].detach(), spline.predict(off), atol=1e-10
        )


def descend(t, y, penalty, width, seed, steps=80):
    """Return a network trained by L-BFGS with weight decay on weights, biases free."""
    generator = torch.Generator().manual_seed(seed)
    module = torch.nn.Sequential(
        torch.nn.Linear(1, width), torch.nn.ReLU(), torch.nn.Linear(width, 1)
    ).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / width**0.5)
    x, target = torch.as_tensor(t)[:, None], torch.as_tensor(y)
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=steps, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        fit = 0.5 * ((module(x)[:, 0] - target) ** 2).mean()
        decay = (module[0].weight ** 2).sum() + (module[2].weight ** 2).sum()
        value = fit + 0.5 * penalty * decay
        value.backward()
        return value

    optimizer.step(closure)
    return module


def test_no_trained_network_is_below_and_its_certificate_is_valid():
    rng = np.random.default_rng(8)
    t = np.linspace(-1, 1, 15)
    y = np.sin(3 * t) + 0.2 * rng.standard_normal(15)
    best = fit_spline(t, y, 1e-2)
    gaps = []
    for seed in range(2):
        module = descend(t, y, 1e-2, 20, seed)
        certificate = certify_spline(module, t, y, 1e-2)
        numbers = TwoLayerReLU.from_module(module)
        norm = np.abs(numbers.outputs) @ np.abs(numbers.hidden[:, 0])
        value = 0.5 * np.mean((numbers.predict(t[:, None]) - y) ** 2) + 1e-2 * norm
        assert value >= best.value * (1 - 1e-10)
        assert certificate.lower_bound <= best.value * (1 + 1e-10)
        assert certificate.gap == pytest.approx(1 - certificate.lower_bound / value, rel=1e-6)
        gaps.append(certificate.gap)
    assert 0 < min(gaps) < 0.5
    exact = certify_spline(best, t, y, 1e-2)
    assert exact.claim is Claim.OPTIMAL
    assert exact.gap < 1e-9


def test_estimator_follows_the_conventions():
    rng = np.random.default_rng(9)
    t, y = rng.uniform(-1, 1, (30, 1)), rng.standard_normal(30)
    model = clone(SplineReLURegressor(penalty=0.01)).fit(t, y)
    assert model.value_ == fit_spline(t, y, 0.01).value
    assert model.gap_ <= 1e-10
    assert model.n_features_in_ == 1
    np.testing.assert_allclose(
        model.to_module()(torch.as_tensor(t))[:, 0].detach(), model.predict(t), atol=1e-12
    )
    exact = SplineReLURegressor(penalty=0.0).fit(t, y)
    assert exact.score(t, y) == pytest.approx(1.0)
    assert exact.n_iter_ == 0
    with pytest.raises(ValueError, match="is expecting 1 features"):
        model.predict(np.zeros((3, 2)))


def test_one_sample_is_a_constant():
    for penalty in (0.0, 0.1):
        spline = fit_spline([2.0], [3.0], penalty)
        assert spline.predict([5.0]).tolist() == [3.0]
        assert (spline.value, spline.gap) == (0.0, 0.0)


def test_messages():
    t, y = np.arange(3.0), np.ones(3)
    with pytest.raises(DataError, match=r"must lie on a line, got one that is 0\.87 of their"):
        fit_spline([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]], y)
    with pytest.raises(DataError, match=r"Equal rows of X have different targets, which no"):
        fit_spline([0.0, 0.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(
        DataError, match=r"X must have samples and features, got the shape \(0, 1\)"
    ):
        fit_spline(np.zeros((0, 1)), np.zeros(0))
    with pytest.raises(DataError, match="X contains NaN or infinite values"):
        fit_spline([0.0, np.nan, 1.0], y)
    with pytest.raises(DataError, match=r"y must have the shape \(3,\), got \(2,\)"):
        fit_spline(t, y[:2])
    with pytest.raises(InvalidParameterError, match="penalty"):
        fit_spline(t, y, -1.0)
    with pytest.raises(InvalidParameterError, match="penalty"):
        SplineReLURegressor(-1.0).fit(t[:, None], y)
    without = TwoLayerReLU(np.ones((1, 1)), None, np.ones(1), 0.0)
    with pytest.raises(IncompatibleError, match="need biases in both layers, got one without"):
        certify_spline(without, t, y, 1.0)
    wide = TwoLayerReLU(np.ones((1, 2)), np.ones(1), np.ones(1), 0.0)
    with pytest.raises(IncompatibleError, match="The network has 2 inputs and X has 1 columns"):
        certify_spline(wide, t, y, 1.0)


@parametrize_with_checks([SplineReLURegressor(project=True)])
def test_conventions(estimator, check):
    check(estimator)


def test_default_penalty_is_a_hundredth_of_the_largest():
    t = np.linspace(-1, 1, 60)
    y = np.abs(t) + 0.1 * np.sin(9 * t)
    model = SplineReLURegressor().fit(t[:, None], y)
    assert model.penalty_ == pytest.approx(0.01 * model.largest_penalty_)
    assert model.certificate_.claim is Claim.OPTIMAL
    # The largest one, by the definition of the supremum.
    v = (y - y.mean()) / len(y)
    neurons = np.maximum(np.vstack([t - t[:, None], t[:, None] - t]), 0.0)
    assert model.largest_penalty_ == pytest.approx(np.abs(neurons @ v).max(), rel=1e-12)
    above = fit_spline(t, y, 1.0001 * model.largest_penalty_)
    below = fit_spline(t, y, 0.999 * model.largest_penalty_)
    assert (above.n_neurons, below.n_neurons > 0) == (0, True)
    flat = SplineReLURegressor().fit(t[:, None], np.ones(60))
    assert flat.spline_.n_neurons == 0


def test_rows_off_a_line_are_projected_when_asked():
    rng = np.random.default_rng(0)
    X = np.outer(rng.standard_normal(40), [3.0, 4.0]) + 0.1 * rng.standard_normal((40, 2))
    y = np.abs(X[:, 0])
    model = SplineReLURegressor(penalty=1e-3, project=True).fit(X, y)
    center = X - X.mean(axis=0)
    direction = np.linalg.eigh(center.T @ center)[1][:, -1]
    again = fit_spline(center @ direction, y, 1e-3)
    assert model.value_ == pytest.approx(again.value, rel=1e-9)
    with torch.no_grad():
        outputs = model.to_module()(torch.as_tensor(X))[:, 0].numpy()
    np.testing.assert_allclose(outputs, model.predict(X), atol=1e-9)


def test_a_bound_above_the_value_is_not_hidden(monkeypatch):
    t, y = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 0.0, 2.0])
    assert fit_spline(t, y).certificate.claim is Claim.OPTIMAL
    right = splines.interpolation_dual
    monkeypatch.setattr(
        splines, "interpolation_dual", lambda *a: (right(*a)[0], 1.01 * right(*a)[1])
    )
    wrong = fit_spline(t, y)
    assert wrong.certificate.claim is None
    assert wrong.lower_bound > wrong.value
