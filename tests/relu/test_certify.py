"""Certified gaps against exact optima, and of networks that others trained."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero.core.result import Claim
from ellzero.errors import DataError, IncompatibleError, InvalidParameterError
from ellzero.relu import TwoLayerReLU, certify_network, polish
from ellzero.relu.certificate import certify, lower_bound
from ellzero.relu.losses import loss_of
from ellzero.relu.training import Training, largest_penalty, to_network, train
from tests.relu.exact import program


def problem(seed, n, d, name="squared", share=0.1, intercept=False):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d))
    y = np.maximum(X @ rng.standard_normal((d, 3)), 0) @ rng.standard_normal(3)
    y = y + 0.1 * rng.standard_normal(n)
    y = np.where(y > np.median(y), 1.0, -1.0) if name == "logistic" else y
    posed = Training(X, y, loss_of(name), 1.0, intercept)
    largest = largest_penalty(posed, np.random.default_rng(0))
    return Training(X, y, loss_of(name), share * largest, intercept)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.1, 0.01])
def test_gap_is_zero_in_the_plane(seed, share):
    posed = problem(seed, [20, 50, 100, 200][seed % 4], 2, share=share)
    found = train(posed, np.random.default_rng(0))
    network = to_network(*found[:3], biased=False, fit_intercept=False)
    certificate, _ = certify(network, posed.A, posed.y, posed.loss, posed.penalty)
    assert certificate.gap <= 1e-8
    assert certificate.claim is Claim.OPTIMAL


@pytest.mark.parametrize("name", ["squared", "logistic"])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_training_reaches_the_program_over_every_pattern(name, intercept, d):
    for seed in range(2):
        posed = problem(seed, 8, d, name, share=0.05, intercept=intercept)
        found = train(posed, np.random.default_rng(0))
        optimum = program(
            posed.A, posed.y, posed.penalty, logistic=name == "logistic", intercept=intercept
        )
        assert posed.value(*found[:3]) == pytest.approx(optimum, rel=1e-6)
        network = to_network(*found[:3], biased=False, fit_intercept=intercept)
        certificate, evidence = certify(network, posed.A, posed.y, posed.loss, posed.penalty)
        assert certificate.lower_bound <= optimum * (1 + 1e-7)
        if d == 2:
            # Exponential cones leave fewer digits.
            assert certificate.gap < (1e-5 if name == "logistic" else 1e-8)
        again, _ = lower_bound(posed.A, posed.y, posed.loss, posed.penalty, evidence)
        assert again == pytest.approx(certificate.lower_bound, rel=1e-9)


def test_no_network_is_below_the_bound():
    posed = problem(1, 40, 4)
    found = train(posed, np.random.default_rng(0))
    network = to_network(*found[:3], biased=False, fit_intercept=False)
    certificate, _ = certify(network, posed.A, posed.y, posed.loss, posed.penalty)
    assert 0 <= certificate.gap < 0.05
    rng = np.random.default_rng(5)
    for _ in range(100):
        width = rng.integers(1, 30)
        neurons, weights = rng.standard_normal((width, 4)), rng.standard_normal(width)
        other = (neurons * 0.1, weights * 0.1, 0.0)
        assert posed.value(*other) >= certificate.lower_bound


def sgd_network(X, y, penalty, steps=300):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(X.shape[1], 12), torch.nn.ReLU(), torch.nn.Linear(12, 1)
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    rows, targets = torch.as_tensor(X).float(), torch.as_tensor(y).float()
    for _ in range(steps):
        optimizer.zero_grad()
        decay = sum((p**2).sum() for p in [*module[0].parameters(), module[2].weight])
        loss = 0.5 * ((module(rows)[:, 0] - targets) ** 2).mean() + 0.5 * penalty * decay
        loss.backward()
        optimizer.step()
    return module


def test_networks_of_others_are_certified_and_polished():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 1))
    y = np.abs(X[:, 0]) + 0.05 * rng.standard_normal(60)
    module = sgd_network(X, y, 0.01)
    before = certify_network(module, X, y, 0.01)
    better = polish(module, X, y, 0.01)
    after = certify_network(better, X, y, 0.01)
    assert before.lower_bound <= after.lower_bound * (1 + 1e-3)
    assert 0 < after.gap < before.gap
    assert after.gap < 0.05
    outputs = better.to_module()(torch.as_tensor(X))[:, 0].detach().numpy()
    np.testing.assert_allclose(outputs, better.predict(X), atol=1e-12)


def test_module_and_numbers_agree():
    rng = np.random.default_rng(0)
    network = TwoLayerReLU(rng.standard_normal((5, 3)), rng.standard_normal(5),
                           rng.standard_normal(5), 0.5)  # fmt: skip
    X = rng.standard_normal((20, 3))
    module = network.to_module()
    np.testing.assert_allclose(module(torch.as_tensor(X))[:, 0].detach(), network.predict(X))
    back = TwoLayerReLU.from_module(module)
    np.testing.assert_allclose(back.predict(X), network.predict(X), rtol=1e-14)
    even = network.balanced()
    np.testing.assert_allclose(even.predict(X), network.predict(X), rtol=1e-10, atol=1e-12)
    decay = 0.5 * float((even.directions**2).sum() + (even.outputs**2).sum())
    assert decay == pytest.approx(network.norm) == pytest.approx(even.norm)
    nothing = TwoLayerReLU(np.zeros((0, 3)), None, np.zeros(0), None)
    assert (nothing.predict(X) == 0).all()
    assert (nothing.to_module()(torch.as_tensor(X)) == 0).all()


def test_bound_scales_with_targets_and_rows():
    posed = problem(4, 30, 3)
    found = train(posed, np.random.default_rng(0))
    network = to_network(*found[:3], biased=False, fit_intercept=False)
    bound = certify(network, posed.A, posed.y, posed.loss, posed.penalty)[0].lower_bound
    for size in (1e-6, 1e6):
        other = TwoLayerReLU(network.hidden, None, network.outputs * size, None)
        got = certify(other, posed.A, posed.y * size, posed.loss, posed.penalty * size)[0]
        assert got.lower_bound == pytest.approx(bound * size**2, rel=1e-3)
        wide = TwoLayerReLU(network.hidden / size, None, network.outputs, None)
        got = certify(wide, posed.A * size, posed.y, posed.loss, posed.penalty * size)[0]
        assert got.lower_bound == pytest.approx(bound, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"network": torch.nn.Linear(2, 1)}, IncompatibleError,
         "Only networks of Linear, ReLU, Linear can be certified, got Linear."),
        ({"network": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(),
                                         torch.nn.Linear(3, 2))}, IncompatibleError,
         "Only networks with one output can be certified, got 2."),
        ({"X": np.zeros((4, 3))}, IncompatibleError,
         "The network has 2 inputs and X has 3 columns."),
        ({"X": np.full((4, 2), np.nan)}, DataError, "X contains NaN or infinite values."),
        ({"X": np.zeros(4)}, DataError, "X must have two dimensions, got 1."),
        ({"y": np.zeros(3)}, DataError, "y must have the shape (4,), got (3,)."),
        ({"y": np.full(4, np.inf)}, DataError, "y contains NaN or infinite values."),
        ({"penalty": 0.0}, InvalidParameterError, "`penalty` must be positive, got 0."),
        ({"method": "branch", "max_pieces": 0}, InvalidParameterError,
         "`max_pieces` must be an integer of at least 1, got 0."),
        ({"loss": "hinge"}, InvalidParameterError, "`loss` must be one of"),
        ({"method": "sdp"}, InvalidParameterError, "`method` must be one of"),
        ({"loss": "logistic"}, DataError, "The logistic loss needs two classes, got 1."),
    ],
)  # fmt: skip
def test_bad_input_is_said(change, error, text):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    given = {"network": network, "X": np.zeros((4, 2)), "y": np.zeros(4), "penalty": 1.0} | change
    with pytest.raises(error) as raised:
        certify_network(**given)
    assert text in str(raised.value)


def test_names_are_public():
    assert ellzero.certify_network is certify_network
