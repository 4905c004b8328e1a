"""Refined smoothness, noise and the verdict, against closed forms, convex programs and torch."""

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import ellzero
from ellzero import LeastSquares, Quadratic
from ellzero.core.problem import AbstractObjective
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.geometry import (
    density,
    measure_geometry,
    measure_module,
    smallest_diagonal,
    smoothness_vector,
)
from ellzero.geometry import measure as measure_file
from ellzero.geometry.diagonals import lanczos
from ellzero.objectives import CosineWells, NoisyGradient, StiffRamps, random_rotation


def symmetric(seed, n, kind):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n if kind != "thin" else 2))
    H = A @ A.T if kind != "indefinite" else A + A.T
    return torch.tensor(H)


@pytest.mark.parametrize("kind", ["definite", "thin", "indefinite"])
@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_the_diagonal_is_above_the_matrix_and_its_negative(kind, n):
    H = symmetric(n, n, kind)
    D = torch.diag(smallest_diagonal(H))
    scale = float(H.abs().max())
    for sign in (1, -1):
        assert float(torch.linalg.eigvalsh(D + sign * H)[0]) >= -1e-10 * scale
    total = float(D.trace())
    assert total <= float(H.abs().sum()) * (1 + 1e-9)
    assert total <= n * float(torch.linalg.eigvalsh(H).abs().max()) * (1 + 1e-9)


def largest_sign_product(H):
    """Return max v'Hv over signs: a lower bound on the sum of every diagonal above H."""
    return max(
        float(np.array(v) @ H.numpy() @ np.array(v))
        for v in itertools.product((-1, 1), repeat=len(H))
    )


@pytest.mark.parametrize("kind", ["definite", "thin"])
@pytest.mark.parametrize("seed", range(4))
def test_the_sum_is_nearly_the_smallest(kind, seed):
    H = symmetric(seed, 8, kind)
    lower, found = largest_sign_product(H), float(smallest_diagonal(H).sum())
    # Signs bound the smallest sum from below; the gap of this relaxation is at most pi / 2.
    assert lower <= found * (1 + 1e-9)
    assert found <= np.pi / 2 * lower
    # Of rank one the row sums are the smallest: equality with signs.
    v = H[:, :1]
    one = v @ v.T
    assert float(smallest_diagonal(one).sum()) == pytest.approx(float(v.abs().sum()) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_that_of_the_semidefinite_program(seed):
    cvxpy = pytest.importorskip("cvxpy")
    H = symmetric(seed, 8, "definite").numpy()
    d = cvxpy.Variable(8)
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum(d)), [cvxpy.diag(d) - H >> 0])
    program.solve()
    assert float(smallest_diagonal(torch.tensor(H)).sum()) == pytest.approx(
        program.value, rel=1e-4
    )


def test_vectors_of_objectives():
    f = StiffRamps(16, n_stiff=3)
    L = smoothness_vector(f)
    assert float(L.sum()) == pytest.approx(3 + 4 * 0.1**2 / 0.1, rel=1e-12)
    assert L[:3].tolist() == [1.0] * 3
    curvatures = torch.tensor([3.0, 2.0]).double()
    assert torch.equal(smoothness_vector(CosineWells(curvatures)), curvatures)
    for make in (
        lambda R: StiffRamps(6, rotation=R),
        lambda R: CosineWells(torch.arange(1.0, 7.0).double(), rotation=R),
    ):
        R = random_rotation(6, torch.Generator().manual_seed(0))
        g = make(R)
        D = torch.diag(smoothness_vector(g))
        for seed in range(5):
            rng = np.random.default_rng(seed)
            point = {"coef": torch.tensor(3 * rng.standard_normal((1, 6)))}
            H = g.hessian_on(ellzero.Batch(point), torch.arange(6).unsqueeze(0))[0]
            for sign in (1, -1):
                assert float(torch.linalg.eigvalsh(D + sign * H)[0]) >= -1e-12


def test_wide_objectives_use_row_sums():
    X = torch.tensor(np.random.default_rng(0).standard_normal((5, 600)))
    f = LeastSquares(X, X[:, 0], ridge=0.1)
    L = smoothness_vector(f)
    gram = (X.T @ X / 5).abs().sum(1) + 0.1
    assert torch.allclose(L, gram, rtol=1e-9)


def test_density():
    assert float(density(torch.tensor([2.0, -2.0, 2.0]))) == pytest.approx(1.0)
    assert float(density(torch.tensor([0.0, 5.0, 0.0, 0.0]))) == pytest.approx(0.25)
    assert bool(density(torch.zeros(3)).isnan())


def test_verdicts_on_instances_with_known_answers():
    f = StiffRamps(64)
    stiff = measure_geometry(f, f.start())
    # n L / |L|_1 = 64 / 1.4.
    assert stiff.curvature_ratio == pytest.approx(64 / 1.4, rel=1e-9)
    g = np.array([0.5] + [0.2 / 63] * 63)
    phi = g.sum() ** 2 / (64 * (g**2).sum())
    assert stiff.density_grad == pytest.approx(phi, rel=1e-9)
    assert stiff.step_ratio == pytest.approx(phi * 64 / 1.4, rel=1e-9)
    assert stiff.favors == "coordinates"
    assert stiff.verdict == (
        "Coordinate-wise methods should win: curvature sits in few coordinates, the curvature "
        "ratio is 45.7 of at most 64. So many times lower is the bound of AdaGrad on the "
        "iterations to a small l1-norm of the gradient; a sign step is guaranteed 1.4 times the "
        "fall of the value of a gradient step (density of the gradient 0.031)."
    )
    sgd, adagrad = stiff.iterations(0.1)
    assert sgd / adagrad == pytest.approx(64 / 1.4, rel=1e-9)
    # The same curvature everywhere, and a gradient in one coordinate.
    flat = Quadratic(torch.eye(50).double(), torch.zeros(50).double())
    spike = {"coef": torch.zeros(50).double()}
    spike["coef"][3] = 1.0
    found = measure_geometry(flat, spike)
    assert found.curvature_ratio == pytest.approx(1.0)
    assert found.step_ratio == pytest.approx(1 / 50)
    assert found.favors == "one step size"
    even = measure_geometry(flat, {"coef": torch.ones(50).double()})
    assert even.favors == "neither"
    assert even.verdict.startswith("No clear winner: the curvature ratio is 1 of at most 50, ")


def test_noise_is_measured_and_weighed():
    f = StiffRamps(32)
    sigma = {"coef": torch.zeros(32).double()}
    sigma["coef"][0] = 2.0
    found = measure_geometry(NoisyGradient(f, sigma), f.start())
    assert found.density_noise == pytest.approx(1 / 32)
    # The measured curvature at the start: only the stiff coordinate bends.
    assert found.smoothness[0] == pytest.approx(1.0)
    assert float(found.smoothness.sum()) == pytest.approx(1.0, abs=1e-9)
    assert found.noise_ratio == pytest.approx(32**2, rel=1e-6)
    assert "The noise (density 0.031) speaks for coordinate-wise methods" in found.verdict
    assert measure_geometry(f, f.start()).noise_ratio is None


def network(dtype=torch.float64):
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=source))
    X = torch.randn(30, 4, generator=source).to(dtype)
    y = torch.randint(0, 3, (30,), generator=source)
    return model, [(X[i : i + 10], y[i : i + 10]) for i in range(0, 30, 10)]


def test_a_network_on_its_loader():
    model, batches = network()
    loss = nn.functional.cross_entropy
    found = measure_module(model, loss, batches)
    names = [n for n, _ in model.named_parameters()]

    def total(*values):
        params = dict(zip(names, values, strict=True))
        parts = [loss(torch.func.functional_call(model, params, (X,)), y) for X, y in batches]
        return sum(parts) / 3

    start = tuple(p.detach() for p in model.parameters())
    blocks = torch.autograd.functional.hessian(total, start)
    H = torch.cat(
        [
            torch.cat([b.reshape(p.numel(), -1) for b in row], 1)
            for p, row in zip(start, blocks, strict=True)
        ]
    )
    D = torch.diag(found.smoothness)
    for sign in (1, -1):
        assert float(torch.linalg.eigvalsh(D + sign * H)[0]) >= -1e-9
    assert found.spectral == pytest.approx(float(torch.linalg.eigvalsh(H).abs().max()), rel=1e-9)
    grads = []
    for X, y in batches:
        model.zero_grad()
        loss(model(X), y).backward()
        grads.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    each = torch.stack(grads)
    assert torch.allclose(found.grad[0], each.mean(0), rtol=1e-9, atol=1e-14)
    assert torch.allclose(found.noise[0], each.std(0, unbiased=False), rtol=1e-7, atol=1e-12)
    assert found.kind == "at the points"
    assert str(found).splitlines()[0] == found.verdict
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["smoothness_sum"] == pytest.approx(float(D.trace()))
    assert (plain["n_entries"], plain["n_points"]) == (51, 1)


def test_large_networks_are_probed(monkeypatch):
    model, batches = network()
    whole = measure_module(model, nn.functional.cross_entropy, batches)
    monkeypatch.setattr(measure_file, "DENSE_ENTRIES", 10)
    probed = measure_module(model, nn.functional.cross_entropy, batches, n_probes=100)
    assert probed.kind == "estimate at the points"
    # As many steps as parameters: nothing is left out.
    assert probed.spectral == pytest.approx(whole.spectral, rel=1e-9)
    assert probed.curvature_ratio == pytest.approx(whole.curvature_ratio, rel=2e-2)


@pytest.mark.parametrize("n_steps", [0, 40])
def test_the_estimate_is_near_the_exact_geometry(monkeypatch, n_steps):
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.25 * torch.randn(p.shape, generator=source))
    X = torch.randn(200, 16, generator=source).double() * torch.linspace(0.2, 2, 16).double()
    y = torch.randint(0, 8, (200,), generator=source)
    loss = nn.functional.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()
    estimate = measure_module(model, loss, [(X, y)])
    monkeypatch.setattr(measure_file, "DENSE_ENTRIES", 1000)
    exact = measure_module(model, loss, [(X, y)])
    assert (estimate.kind, exact.kind) == ("estimate at the points", "at the points")
    assert estimate.n_entries == 608
    assert estimate.spectral == pytest.approx(exact.spectral, rel=1e-6)
    # The diagonal alone, or norms of rows, would be 20 % off.
    assert estimate.curvature_ratio == pytest.approx(exact.curvature_ratio, rel=0.05)
    says = "The curvature is an estimate from products with random vectors"
    assert says in estimate.verdict
    assert says not in exact.verdict


def test_ritz_pairs_are_eigenpairs_of_a_small_matrix():
    H = symmetric(3, 20, "indefinite")
    values, vectors, miss = lanczos(lambda v: H @ v, 20, 99, torch.Generator().manual_seed(0))
    assert torch.allclose(values, torch.linalg.eigvalsh(H), atol=1e-10)
    assert torch.allclose(H @ vectors, vectors * values, atol=1e-9)
    assert miss < 1e-9
    # Cut short, the largest value is off by no more than the residual says.
    values, _, miss = lanczos(lambda v: H @ v, 20, 5, torch.Generator().manual_seed(0))
    nearest = (torch.linalg.eigvalsh(H) - values[values.abs().argmax()]).abs().min()
    assert 1e-6 < float(nearest) <= miss
    one = symmetric(0, 6, "thin")[:, :1]
    rank_one = one @ one.T
    values, _, _ = lanczos(lambda v: rank_one @ v, 6, 6, torch.Generator().manual_seed(0))
    assert float(values.abs().max()) == pytest.approx(float(one.square().sum()))
    none, _, miss = lanczos(torch.zeros_like, 6, 6, torch.Generator().manual_seed(0))
    assert none.tolist() == [0.0]
    assert miss == 0


def test_messages():
    class Odd(AbstractObjective):
        def init_params(self):
            return {"coef": torch.zeros(2)}

        def value(self, params):
            return params["coef"].abs().sum(-1)

        def value_and_grad(self, params):
            return self.value(params), params

    cases = {
        IncompatibleError: [
            (
                lambda: measure_geometry(Odd()),
                "`Odd` has neither second derivatives nor a curvature bound.\n"
                "hint: Wrap a module as `ellzero.ModuleLoss`, or measure a smooth objective.",
            ),
            (
                lambda: smoothness_vector(Odd()),
                "`Odd` has no curvature bound.\nhint: Use "
                "`ellzero.geometry.measure_geometry`, which measures at points.",
            ),
        ],
        InvalidParameterError: [
            (
                lambda: measure_geometry(StiffRamps(3), lower_bound=2.0),
                "`lower_bound` must be below the value, got 2 and a value of 0.\n"
                "hint: Give a number below all values.",
            ),
            (
                lambda: measure_geometry(StiffRamps(2), {"coef": torch.tensor([torch.nan, 0.0])}),
                "`params` must have a finite value and gradient, got NaN or infinity.",
            ),
            (
                lambda: smallest_diagonal(torch.ones(2, 3)),
                "`matrix` must be square, got shape (2, 3).",
            ),
            (
                lambda: smallest_diagonal(torch.triu(torch.ones(3, 3))),
                "`matrix` must be symmetric, got one that differs from its transpose.\n"
                "hint: Pass `(H + H.T) / 2`.",
            ),
            (
                lambda: measure_module(
                    nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)),
                    nn.functional.cross_entropy,
                    network(torch.float32)[1],
                ),
                "`model` must give the same output every time, got '1' (BatchNorm1d) in training "
                "mode.\nhint: Call `model.eval()` first.",
            ),
        ],
    }
    for kind, calls in cases.items():
        for call, text in calls:
            with pytest.raises(kind) as error:
                call()
            assert str(error.value) == text
