"""Networks: the budget holds, claims are true, runs repeat, files check out."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ellzero.datasets import load_table
from ellzero.models import load_model, predict, save_model
from ellzero.training import (
    TrainSettings,
    build_experiment,
    experiment,
    networks,
    recertify,
    saved_model,
    summarize,
    train,
)

WINE = TrainSettings("wine", hidden=(4,), n_nonzero=(20,))


def count(params):
    return sum(int(np.count_nonzero(t.numpy())) for t in params.values())


@pytest.fixture(scope="module")
def wine():
    return train(replace(WINE, epochs=20))


@pytest.fixture
def short(monkeypatch):
    """Train less: what is looked at does not need a good network."""
    monkeypatch.setattr(experiment, "NETWORK_EPOCHS", 3)
    monkeypatch.setattr(networks, "NETWORK_ROUNDS", 1)
    monkeypatch.setattr(networks, "NETWORK_STEPS", 20)
    monkeypatch.setattr(networks, "NETWORK_PIECES", 1)


def forward(params, X, activation):
    """Two layers in numpy."""
    p = {name: t.numpy() for name, t in params.items()}
    return activation(X @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def test_the_budget_holds_and_the_point_is_stationary(wine):
    outcome = wine.chosen
    assert wine.experiment.n_parameters == 13 * 4 + 4 + 4 * 3 + 3
    assert count(outcome.params) == outcome.row["n_nonzero"] <= 20
    assert outcome.row["claim"] in ("stationary", "coordinatewise", "gap", "optimal")
    assert outcome.row["accuracy_test"] > 0.8


def test_the_value_and_the_gradient_agree_with_numpy(wine):
    outcome, parts = wine.chosen, wine.experiment.parts
    X, y = parts.X_train.numpy(), parts.y_train.numpy()

    def value(params):
        scores = forward(params, X, gelu)
        log_sum = np.log(np.exp(scores).sum(1))
        ridge = sum(float((t.numpy() ** 2).sum()) for t in params.values())
        return (log_sum - scores[np.arange(len(y)), y]).mean() + 0.005 * ridge

    at = value(outcome.params)
    assert math.isclose(at, outcome.row["value"], rel_tol=1e-10)
    # No small move of an entry of the support lowers the value.
    for name, tensor in outcome.params.items():
        for i in tensor.flatten().nonzero().flatten().tolist():
            for step in (1e-3, -1e-3):
                moved = tensor.clone()
                moved.view(-1)[i] += step
                assert value({**outcome.params, name: moved}) > at


@pytest.mark.usefixtures("short")
def test_the_same_seed_gives_the_same_network():
    settings = replace(WINE, data="iris", n_nonzero=(10,))
    one, two, other = (train(replace(settings, seed=s)).chosen for s in (0, 0, 1))
    for name, tensor in one.params.items():
        assert torch.equal(tensor, two.params[name])
    assert other.row["value"] != one.row["value"]


def test_a_saved_network_is_certified_again_and_predicts(wine, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, saved_model(wine.experiment, wine.chosen))
    found = recertify(str(path), "wine")
    assert found.holds
    assert found.certificate.claim.name.lower() == wine.chosen.row["claim"]
    table = load_table("wine")
    parts = wine.experiment.parts
    X = (table.X.numpy() - parts.mean.numpy()) / parts.scale.numpy()
    guess = forward(wine.chosen.params, X, gelu).argmax(1)
    assert predict(load_model(path), table.X).tolist() == guess.tolist()


def test_a_changed_network_fails_its_claims(wine, tmp_path):
    model = saved_model(wine.experiment, wine.chosen)
    weight = model.params["2.weight"] * 1.01
    path = tmp_path / "model.safetensors"
    save_model(path, replace(model, params={**model.params, "2.weight": weight}))
    found = recertify(str(path), "wine")
    assert not found.holds
    assert {name for name, *_, holds in found.rows if not holds} >= {"value", "claim"}


@pytest.mark.usefixtures("short")
def test_relu_is_at_least_feasible():
    run = train(replace(WINE, activation="relu", n_nonzero=(15,)))
    assert run.chosen.row["claim"] is not None
    assert 0 < count(run.chosen.params) <= 15
    scores = forward(
        run.chosen.params, run.experiment.parts.X_train.numpy(), lambda x: np.maximum(x, 0)
    )
    y = run.experiment.parts.y_train.numpy()
    assert math.isclose((scores.argmax(1) == y).mean(), run.chosen.row["accuracy_train"])


@pytest.fixture
def curve(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.uniform(-2, 2, (80, 3))
    y = np.tanh(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2
    lines = [",".join(map(str, row)) for row in np.column_stack([X, y])]
    path = Path(tmp_path, "curve.csv")
    path.write_text("\n".join(["a,b,c,y", *lines]) + "\n")
    return str(path)


def test_a_regression_network_beats_a_line(curve, monkeypatch):
    # The curvature of this loss keeps the polish busy; the comparison needs little of it.
    monkeypatch.setattr(networks, "NETWORK_ROUNDS", 1)
    monkeypatch.setattr(networks, "NETWORK_PIECES", 2)
    settings = TrainSettings(curve, target="y", n_nonzero=(4,), ridge=1e-3, starts=5)
    line = train(settings).chosen.row["accuracy_test"]
    run = train(replace(settings, hidden=(6,), n_nonzero=(20,), starts=None))
    assert count(run.chosen.params) <= 20
    assert run.chosen.row["accuracy_test"] > line
    parts = run.experiment.parts
    guess = forward(run.chosen.params, parts.X_train.numpy(), gelu)[:, 0]
    ridge = sum(float((t.numpy() ** 2).sum()) for t in run.chosen.params.values())
    value = ((guess - parts.y_train.numpy()) ** 2).mean() / 2 + 0.5e-3 * ridge
    assert math.isclose(run.chosen.row["value"], value, rel_tol=1e-10)


@pytest.mark.usefixtures("short")
def test_by_default_some_densities_are_tried():
    run = train(replace(WINE, n_nonzero=None))
    densities = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    assert [o.budget for o in run.outcomes] == sorted({max(1, round(d * 71)) for d in densities})
    assert all(count(o.params) <= o.budget for o in run.outcomes)


@pytest.mark.slow
def test_the_search_returns_a_good_budget(monkeypatch):
    monkeypatch.setattr(networks, "NETWORK_ROUNDS", 1)
    monkeypatch.setattr(networks, "NETWORK_PIECES", 1)
    settings = replace(WINE, data="iris", hidden=(3,), n_nonzero=None, search=True, epsilon=0.1)
    run = train(replace(settings, epochs=10))
    by_budget = {o.budget: o.row["value"] - run.dense["value"] for o in run.outcomes}
    assert by_budget[run.selected] <= 0.1
    assert all(by_budget[b] > 0.1 for b in by_budget if b < run.selected)
    # The bracket is closed to a tenth.
    below = max((b for b in by_budget if b < run.selected), default=0)
    assert run.selected - below <= max(1, 0.1 * run.selected)


def test_a_summary_of_a_network_names_every_weight_that_is_kept(wine):
    summary = summarize(wine)
    kept = {
        f"{name}[{i}]": tensor.flatten()[i].item()
        for name, tensor in wine.chosen.params.items()
        for i in tensor.flatten().nonzero().flatten().tolist()
    }
    assert {e["name"]: e["value"] for e in summary["support"]} == kept
    assert summary["title"] == "Sparse network on wine"
    shapes = {t["name"]: t["shape"] for t in summary["weights"]["tensors"]}
    assert shapes == {"0.weight": [4, 13], "0.bias": [4], "2.weight": [3, 4], "2.bias": [3]}


def test_the_dense_weights_are_seeded():
    def weights(seed):
        return build_experiment(replace(WINE, seed=seed)).objective.current_params()["0.weight"]

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
