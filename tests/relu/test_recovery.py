"""Fused networks against the design written out, and recovery against planted networks."""

import itertools

import numpy as np
import pytest
import torch

import ellzero
from ellzero.core.result import Claim
from ellzero.errors import InvalidParameterError
from ellzero.relu import FusedLeastSquares, RectifiedLeastSquares, recover_network
from ellzero.relu.recovery import Start, next_width
from ellzero.solvers import HTP, IHT, NIHT
from ellzero.tensors.named import Batch


def problem(n=40, d=4, p=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    gates = X @ torch.randn(d, p, generator=generator, dtype=torch.float64) > 0
    y = torch.randn(n, generator=generator, dtype=torch.float64)
    design = torch.cat([gates[:, j : j + 1] * X for j in range(p)], 1)
    return FusedLeastSquares(X, gates, y), design, y, X, gates


def planted(n=300, d=15, k=2, c=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    U = torch.zeros(k, d, dtype=torch.float64)
    for row in U:
        places = torch.randperm(d, generator=generator)[:c]
        row[places] = torch.randn(c, generator=generator, dtype=torch.float64)
    signs = torch.where(torch.arange(k) % 2 == 0, 1.0, -1.0).double()
    return X, torch.relu(X @ U.T) @ signs, U, signs


def test_fused_numbers_are_those_of_the_design():
    objective, A, y, _, _ = problem()
    reference = ellzero.LeastSquares(A, y)
    generator = torch.Generator().manual_seed(1)
    coef = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    coef[2, 1] = 0
    flat = {"coef": coef.reshape(5, 12)}
    value, grad = objective.value_and_grad(Batch({"coef": coef}))
    expected, slope = reference.value_and_grad(Batch(flat))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(objective.value(Batch({"coef": coef})), expected)
    torch.testing.assert_close(grad["coef"].reshape(5, 12), slope["coef"])
    one = {"coef": coef[0]}
    torch.testing.assert_close(objective.value(one), expected[0])
    torch.testing.assert_close(objective.predict(one), A @ coef[0].flatten())
    gram = A.T @ A / len(y)
    moved = objective.hessian_vector(one, {"coef": coef[3]})["coef"].flatten()
    torch.testing.assert_close(moved, gram @ coef[3].flatten())
    index = torch.tensor([[0, 5, 11], [3, 3, 7]])
    blocks = objective.hessian_on(Batch({"coef": coef[:2]}), index)
    for rows, block in zip(index, blocks, strict=True):
        torch.testing.assert_close(block, gram[rows][:, rows])
    torch.testing.assert_close(objective.curvature_bound().right, gram)
    torch.testing.assert_close(objective.curvature_diagonal(), gram.diagonal())
    torch.testing.assert_close(objective.curvature_rows(index[0]), gram[index[0]])
    assert objective.smoothness() == pytest.approx(float(torch.linalg.eigvalsh(gram)[-1]))
    assert objective.strong_convexity() <= float(torch.linalg.eigvalsh(gram)[0]) * (1 + 1e-9)
    dual = objective.dual_point(one)
    torch.testing.assert_close(objective.adjoint(dual)["coef"].flatten(), A.T @ dual)
    # Fenchel: f(theta) + f*(v) = <v, A theta> at v = f'(A theta).
    total = objective.value(one) + objective.conjugate(dual)
    torch.testing.assert_close(total, dual @ (A @ coef[0].flatten()))


def test_smoothness_bounds_the_hessian_of_many_samples():
    objective, A, y, _, _ = problem(n=2500, d=6, p=5)
    top = float(torch.linalg.eigvalsh(A.T @ A / len(y))[-1])
    assert top <= objective.smoothness() <= 6 * top


def test_single_precision_stays():
    objective, _, y, X, gates = problem(n=60, d=3, p=2, seed=7)
    single = FusedLeastSquares(X.float(), gates, y.float())
    found = ellzero.solve(ellzero.Problem(single, ellzero.L0Ball(2)))
    double = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(2)))
    assert found.params["coef"].dtype == torch.float32
    torch.testing.assert_close(
        found.params["coef"].double(), double.params["coef"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("solver", [IHT(), NIHT(), HTP()])
def test_solvers_of_the_core_take_given_patterns(solver):
    objective, A, _, X, gates = problem(n=200, d=6, p=3, seed=3)
    truth = torch.zeros(3, 6, dtype=torch.float64)
    truth[0, 1], truth[0, 4], truth[2, 0] = 2.0, -1.5, 1.0
    y = A @ truth.flatten()
    objective = FusedLeastSquares(X, gates, y)
    found = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(3)), solver)
    torch.testing.assert_close(found.params["coef"], truth, atol=1e-6, rtol=0)


def test_least_squares_on_supports_and_the_best_of_all():
    objective, A, y, _, _ = problem(n=25, d=3, p=2, seed=5)
    values = {}
    for support in itertools.combinations(range(6), 2):
        mask = torch.zeros(6, dtype=torch.bool)
        mask[list(support)] = True
        found = objective.minimize_on({"coef": mask.reshape(2, 3)})["coef"].flatten()
        expected = np.linalg.lstsq(A[:, list(support)].numpy(), y.numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[list(support)].numpy(), expected, atol=1e-10)
        assert (found[~mask] == 0).all()
        values[support] = float(objective.value({"coef": found.reshape(2, 3)}))
    result = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(2)))
    assert float(result.value) == pytest.approx(min(values.values()), rel=1e-9)
    # A neuron that is active nowhere: its columns are zero, the shortest solution is too.
    X = torch.eye(3, dtype=torch.float64)
    gates = torch.tensor([[True, False]] * 3)
    dead = FusedLeastSquares(X, gates, torch.ones(3, dtype=torch.float64))
    every = {"coef": torch.ones(2, 3, dtype=torch.bool)}
    assert dead.minimize_on(every)["coef"].tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_rectified_loss_is_that_of_the_network_with_its_gradient():
    X, y, _, _ = planted(n=30, d=5)
    generator = torch.Generator().manual_seed(2)
    signs = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    generators = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    coef = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    coef[0, 1] = 0
    objective = RectifiedLeastSquares(X, y, signs, generators)
    value, grad = objective.value_and_grad(Batch({"coef": coef}))
    for b in range(2):
        w = coef[b].clone().requires_grad_()
        outputs = torch.relu((signs[b, :, None] * w) @ X.T).T @ signs[b]
        loss = (outputs - y).square().mean() / 2
        (slope,) = torch.autograd.grad(loss, w)
        assert float(value[b]) == pytest.approx(float(loss.detach()), rel=1e-12)
        used = (coef[b] != 0).any(1)
        torch.testing.assert_close(grad["coef"][b][used], slope[used])
    # The zero neuron has the pattern of its generator.
    residual = objective.predict(Batch({"coef": coef}))[0] - y
    open_ = (X @ generators[0, 1] > 0).double()
    torch.testing.assert_close(grad["coef"][0, 1], X.T @ (open_ * residual) / len(y))
    row = objective.take(torch.tensor([1]))
    torch.testing.assert_close(row.value(Batch({"coef": coef[1:]})), value[1:])
    index = torch.tensor([[0, 7], [4, 12]])
    blocks = objective.hessian_on(Batch({"coef": coef}), index)
    for b in range(2):
        fused = RectifiedLeastSquares(X, y, signs[b], generators[b]).fused({"coef": coef[b]})
        expected = fused.hessian_on(Batch({"coef": coef[b : b + 1]}), index[b : b + 1])[0]
        torch.testing.assert_close(blocks[b], expected)


@pytest.mark.parametrize("seed", range(4))
def test_planted_networks_are_recovered_with_the_exact_count(seed):
    X, y, U, signs = planted(seed=seed)
    found = recover_network(X, y, n_nonzero=6, n_neurons=4)
    assert found.n_nonzero == 6
    assert found.n_neurons == 2
    assert found.interpolates
    order = [0, 1] if found.network.outputs[0] == signs[0] else [1, 0]
    np.testing.assert_allclose(found.network.hidden[order], U.numpy(), atol=1e-9)
    assert found.certificate.claim is Claim.OPTIMAL
    assert found.certificate.lower_bound == 0
    # The module computes the same, on samples not seen as well.
    fresh = torch.randn(50, 15, generator=torch.Generator().manual_seed(9)).double()
    with torch.no_grad():
        outputs = found.to_module()(fresh)[:, 0]
    torch.testing.assert_close(outputs, torch.relu(fresh @ U.T) @ signs, atol=1e-8, rtol=0)


def test_arrays_and_single_precision_are_taken():
    X, y, _, _ = planted(seed=1)
    exact = recover_network(X.float().double(), y.float().double(), 6, 2, n_starts=2)
    found = recover_network(X.float().numpy(), y.float().numpy(), 6, 2, n_starts=2)
    assert torch.equal(found.coef, exact.coef)
    # Targets are rounded to seven digits, so that is what is left.
    assert 1e-18 < found.relative_loss < 1e-12


def test_noise_leaves_a_stable_point_with_the_count():
    X, y, _, _ = planted(seed=2)
    y = y + 0.05 * torch.randn(len(y), generator=torch.Generator().manual_seed(1)).double()
    found = recover_network(X, y, n_nonzero=6, n_neurons=2, n_starts=4, swaps="auto")
    assert found.n_nonzero == 6
    assert len(found.starts) == 4
    # The bound of its own patterns is none of the network's.
    assert found.certificate.claim is Claim.STATIONARY
    assert found.certificate.lower_bound is None
    assert found.pattern_certificate.claim >= Claim.COORDINATEWISE
    assert found.certificate.measures["kink_margin"] > 1e-9
    assert found.value == min(start.value for start in found.starts)
    # Recomputed without any of it.
    outputs = found.network.predict(X.numpy())
    assert found.value == pytest.approx(0.5 * np.mean((outputs - y.numpy()) ** 2), rel=1e-12)
    # Stationary on the support: least squares with these patterns cannot improve it.
    used = found.coef != 0
    d = X.shape[1]
    columns = [found.gates[:, j] * X[:, i] for j in range(2) for i in range(d) if used[j, i]]
    design = torch.stack(columns, 1)
    best = np.linalg.lstsq(design.numpy(), y.numpy(), rcond=None)[0]
    assert found.value <= 0.5 * np.mean((design.numpy() @ best - y.numpy()) ** 2) * (1 + 1e-9)


def test_positive_signs_give_convex_functions_only():
    X, y, _, _ = planted(seed=0)
    both = recover_network(X, y, 6, 4)
    positive = recover_network(X, y, 6, 4, signs="positive", n_starts=1, max_iter=20)
    assert both.relative_loss < 1e-20
    assert positive.relative_loss > 1e-3
    assert (positive.network.outputs == 1).all()


def test_widths_begin_wide_and_gather_around_the_best():
    tried = []
    for _ in range(7):
        width = next_width(8, tried)
        tried.append(Start(width, abs(width - 3) + 0.5, 1))
    assert [start.width for start in tried] == [8, 6, 4, 3, 2, 1, 3]
    assert abs(next_width(8, tried) - 3) <= 1
    assert next_width(1, []) == 1


def test_a_sample_on_a_kink_is_said():
    X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    found = recover_network(X, torch.tensor([1.0, 0.3, 2.0]).double(), 1, 1)
    assert found.coef.tolist() == [[1.0, 0.0]]
    assert found.certificate.claim is Claim.FEASIBLE
    kinks = found.certificate.checks[-1]
    assert (kinks.name, kinks.value) == ("samples on the kink of a neuron", 1)


def test_seeds_decide_and_budgets_hold():
    X, y, _, _ = planted(seed=1)
    one, two = (recover_network(X, y, 4, 3, n_starts=3) for _ in range(2))
    assert torch.equal(one.coef, two.coef)
    assert one.n_nonzero <= 4
    zero = recover_network(X, torch.zeros_like(y), 4, 3, n_starts=2)
    assert zero.n_nonzero == 0
    assert zero.relative_loss == 0
    assert zero.to_module()(X).abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": torch.zeros(3)}, "`X` must have samples and features, got shape (3,)."),
        ({"y": torch.zeros(3)}, "`y` must have the shape (300,), got (3,)."),
        ({"n_nonzero": 0}, "`n_nonzero` must be an integer of at least 1, got 0."),
        ({"n_neurons": 0}, "`n_neurons` must be an integer of at least 1, got 0."),
        ({"n_starts": 0}, "`n_starts` must be an integer of at least 1, got 0."),
        ({"max_iter": 0}, "`max_iter` must be an integer of at least 1, got 0."),
        ({"signs": "any"}, "`signs` must be one of 'both', 'positive', got 'any'."),
        ({"swaps": "few"}, "`swaps` must be one of 'none', 'auto', 'all', got 'few'."),
    ],
)
def test_bad_settings(change, message):
    X, y, _, _ = planted()
    arguments = {"X": X, "y": y, "n_nonzero": 3, "n_neurons": 2} | change
    with pytest.raises(InvalidParameterError) as caught:
        recover_network(**arguments)
    assert caught.value.message == message


def test_bad_data():
    X, y, _, _ = planted()
    broken = X.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(InvalidParameterError, match="`X` must be finite, got NaN or infinity"):
        recover_network(broken, y, 3, 2)
    with pytest.raises(InvalidParameterError) as caught:
        FusedLeastSquares(X, X[:, :2], y)
    assert caught.value.message == (
        "`gates` must be a bool tensor of shape (300, n_neurons), got torch.float64 of shape "
        "(300, 2)."
    )
    with pytest.raises(InvalidParameterError) as caught:
        FusedLeastSquares(X, [1], y)
    assert caught.value.message == (
        "`gates` must be a bool tensor of shape (300, n_neurons), got list."
    )
    with pytest.raises(InvalidParameterError) as caught:
        RectifiedLeastSquares(X, y, torch.ones(2), torch.ones(3, 15))
    assert caught.value.message == "`generators` must have the shape (2, 15), got (3, 15)."
    with pytest.raises(InvalidParameterError) as caught:
        RectifiedLeastSquares(X, y, torch.zeros(2), torch.ones(2, 15))
    assert caught.value.message == "`signs` must be 1 and -1, got other numbers."
