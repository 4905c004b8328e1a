"""Networks trained by minibatches alone: the rule, their inputs, what is proven, the search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.datasets import load_table, make_arrays, split
from ellzero.errors import InvalidParameterError
from ellzero.training import (
    LargeExperiment,
    TrainSettings,
    build_experiment,
    large,
    summarize,
    train,
)
from ellzero.training.layers import layer_rows

NET = """
from torch import nn
def build(n_inputs, n_outputs):
    layers = [nn.Flatten(), nn.Linear(n_inputs, 12), nn.Tanh(), nn.Linear(12, n_outputs)]
    return nn.Sequential(*layers)
def convolution(n_inputs, n_outputs):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, n_outputs))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)


def images(n_train=150, n_test=50, seed=0, side=5):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n_train + n_test, side, side)).astype(np.uint8)
    y = (x[:, :2].mean((1, 2)) > x[:, 3:].mean((1, 2))).astype(int)
    return {
        "x_train": x[:n_train],
        "y_train": y[:n_train],
        "x_test": x[n_train:],
        "y_test": y[n_train:],
    }


@pytest.fixture
def archive():
    np.savez("tiny.npz", **images())
    return "tiny.npz"


def test_networks_of_a_user_and_large_ones_are_large():
    assert large.is_large(TrainSettings(model="net.py:build"), load_table("iris"))
    digits = load_table("digits")
    assert (digits.n_features, round(0.8 * digits.n_samples)) == (61, 1438)
    # (62 * h + (h + 1) * 10) * 1438 is above twenty million from h = 194 on.
    assert not large.is_large(TrainSettings(hidden=(193,)), digits)
    assert large.is_large(TrainSettings(hidden=(194,)), digits)
    assert not large.is_large(TrainSettings(), digits)


def test_images_are_standardized_by_two_numbers(archive):
    experiment = build_experiment(TrainSettings(archive, model="net.py:build"))
    assert isinstance(experiment, LargeExperiment)
    x = images()["x_train"].astype(float)
    samples = experiment.samples
    assert samples.mean.item() == pytest.approx(x.mean(), rel=1e-6)
    assert samples.scale.item() == pytest.approx(x.std(), rel=1e-6)
    inputs, target = samples.batch(torch.tensor([7, 3]))
    assert inputs.shape == (2, 1, 5, 5)
    assert np.allclose(inputs[:, 0], (x[[7, 3]] - x.mean()) / x.std(), atol=1e-5)
    assert target.tolist() == images()["y_train"][[7, 3]].tolist()


def test_columns_are_standardized_one_by_one():
    given = images()
    x = given["x_train"].reshape(150, 25).astype(np.float64) * np.logspace(0, 3, 25)
    x[:, 4] = 7.0
    np.savez("flat.npz", **{**given, "x_train": x, "x_test": x[:50]})
    samples = build_experiment(TrainSettings("flat.npz", model="net.py:build")).samples
    scale = np.where(x.std(0) > 0, x.std(0), 1)
    assert np.allclose(samples.inputs(samples.X_train), (x - x.mean(0)) / scale, atol=1e-4)


def test_a_table_is_divided_and_standardized_as_ever():
    experiment = build_experiment(TrainSettings("iris", model="net.py:build", seed=3))
    parts = split(load_table("iris"), seed=3)
    samples = experiment.samples
    assert torch.equal(samples.inputs(samples.X_train), parts.X_train.float())
    assert torch.equal(samples.y_test, parts.y_test)


def test_layers_get_flat_samples(archive, monkeypatch):
    monkeypatch.setattr(large, "LARGE_WORK", 1)
    experiment = build_experiment(TrainSettings(archive, hidden=(4,), activation="relu"))
    assert [type(m) for m in experiment.network] == [nn.Linear, nn.ReLU, nn.Linear]
    assert experiment.samples.batch(torch.tensor([0]))[0].shape == (1, 25)
    assert experiment.sample_shape == (1, 5, 5)
    assert experiment.n_parameters == 25 * 4 + 4 * 2
    assert experiment.n_all == experiment.n_parameters + 6
    # A twentieth of the weights, when nothing was asked for.
    assert experiment.settings.n_nonzero == (5,)
    assert (experiment.settings.epochs, experiment.settings.batch_size) == (8, 128)
    assert experiment.settings.ridge == 0.0


def test_where_a_polish_is_cheap_it_is_the_default(archive, monkeypatch):
    monkeypatch.setattr(large, "LARGE_WORK", 1)

    def polished(**changes):
        return build_experiment(TrainSettings(archive, **changes)).settings.polish

    n_all = 25 * 4 + 4 + 4 * 2 + 2
    monkeypatch.setattr(large, "POLISH_WORK", 150 * n_all)
    assert polished(hidden=(4,)) is True
    assert polished(hidden=(4,), polish=False) is False
    # What a pass over the network of a user costs is not known.
    assert polished(model="net.py:build") is False
    monkeypatch.setattr(large, "POLISH_WORK", 150 * n_all - 1)
    assert polished(hidden=(4,)) is False
    assert polished(hidden=(4,), polish=True) is True


def test_the_dense_reference_is_polished_as_well(archive, monkeypatch):
    monkeypatch.setattr(large, "LARGE_WORK", 1)
    budgets = []
    polish = large.polish_large

    def counted(experiment, model, budget, stop):
        budgets.append(budget)
        polish(experiment, model, budget, stop)

    monkeypatch.setattr(large, "polish_large", counted)
    run = train(TrainSettings(archive, hidden=(4,), n_nonzero=(20,), ridge=0.01, epochs=2))
    assert budgets == [108, 20]
    assert run.chosen.row["claim"] == "stationary"
    assert run.dense["value"] < run.chosen.row["value"]


def test_the_start_is_seeded(archive):
    def weights(seed):
        settings = TrainSettings(archive, model="net.py:build", seed=seed)
        return build_experiment(settings).network[1].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    before = torch.get_rng_state()
    weights(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("allocation", ["global", "erk"])
def test_a_run_holds_its_budgets_and_says_what_is_proven(archive, allocation):
    settings = TrainSettings(
        archive,
        model="net.py:convolution",
        n_nonzero=(0.2, 40),
        epochs=4,
        batch_size=32,
        allocation=allocation,
        ridge=1e-3,
    )
    run = train(settings)
    n = 4 * 9 + 36 * 2
    assert [o.budget for o in run.outcomes] == [int(0.2 * n), 40]
    for outcome in run.outcomes:
        kept = [outcome.params[name] for name in ("0.weight", "3.weight")]
        assert sum(int((w != 0).sum()) for w in kept) == outcome.budget
        assert outcome.row["epsilon"] == outcome.row["value"] - run.dense["value"]
    # The loss, from the state alone.
    outcome = run.chosen
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    model.load_state_dict(outcome.state)
    x = images()["x_train"].astype(np.float64)
    X = torch.from_numpy((x - x.mean()) / x.std()).float()[:, None]
    with torch.no_grad():
        out = model(X)
        loss = nn.functional.cross_entropy(out, torch.from_numpy(images()["y_train"]))
    ridge = 0.5e-3 * sum(float(p.detach().square().sum()) for p in model.parameters())
    assert outcome.row["value"] == pytest.approx(float(loss) + ridge, rel=1e-5)
    # All samples are few enough: the certificate is about the same loss.
    measures = outcome.certificate["measures"]
    assert measures["value"] == pytest.approx(outcome.row["value"], rel=1e-5)
    assert measures["n_samples"] == 150
    assert outcome.certificate["claim"] in ("feasible", "stationary")


def test_the_certificate_is_about_drawn_samples_and_says_so(archive, monkeypatch):
    monkeypatch.setattr(large, "CERTIFIED_SAMPLES", 40)
    run = train(TrainSettings(archive, model="net.py:build", n_nonzero=(30,), epochs=2))
    certificate = run.chosen.certificate
    assert certificate["measures"]["n_samples"] == 40
    assert certificate["assumptions"][1] == (
        "The 40 samples were drawn from the 150 training samples: the certificate is about them."
    )
    rows = large.certified_rows(run.experiment)
    assert len(set(rows.tolist())) == 40
    assert rows.tolist() != list(range(40))
    # The value is the mean loss of these rows.
    model = large.restored(run.experiment, run.chosen.state)
    x, y = run.experiment.samples.batch(rows)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y)
    assert certificate["measures"]["value"] == pytest.approx(float(loss), rel=1e-5)


def test_the_search_finds_a_budget_within_epsilon(archive):
    settings = TrainSettings(
        archive, model="net.py:build", search=True, epsilon=0.1, epochs=3, lr=0.02, batch_size=16
    )
    run = train(settings)
    by_budget = {o.budget: o.row["value"] - run.dense["value"] for o in run.outcomes}
    assert by_budget[run.selected] <= 0.1
    assert all(by_budget[b] > 0.1 for b in by_budget if b < run.selected)


def test_a_time_limit_has_no_meaning(archive):
    with pytest.raises(InvalidParameterError) as caught:
        build_experiment(TrainSettings(archive, model="net.py:build", time_limit=3.0))
    assert caught.value.message == "`time_limit` has no meaning for a large network, got 3."


def test_the_headline_names_weights_and_the_dense_reference(archive):
    run = train(TrainSettings(archive, model="net.py:build", n_nonzero=(30,), epochs=2))
    found = summarize(run, sizes={"bytes": 10, "dense_bytes": 100})
    row, dense = run.chosen.row, run.dense
    assert found["headline"] == (
        f"30 of 324 weights, train loss {row['value']:.4f}, test accuracy "
        f"{row['accuracy_test']:.1%} (dense {dense['accuracy_test']:.1%}), {row['claim_sentence']}"
    )
    assert found["file"] == {"bytes": 10, "dense_bytes": 100}
    assert found["data"]["sample_shape"] == [1, 5, 5]
    assert (found["data"]["n_train"], found["data"]["n_test"]) == (150, 50)
    assert found["layers"][0]["inputs_picture"]["shape"] == [5, 5]


def test_rows_of_layers_count_what_numpy_counts():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(90, 200, generator=generator)
    matrix[matrix.abs() < 1.5] = 0
    matrix[3], matrix[:, 7] = 0, 0
    filters = torch.randn(5, 4, 3, 3, generator=generator)
    filters[2], filters[:, 1] = 0, 0
    rows = layer_rows({"a": matrix, "bias": torch.ones(5), "b": filters}, (1, 10, 20))
    assert [r["name"] for r in rows] == ["a", "b"]
    a, b = rows
    dense = (matrix != 0).numpy()
    assert a["n_nonzero"] == dense.sum()
    assert (a["dead_outputs"], a["dead_inputs"]) == ((~dense.any(1)).sum(), (~dense.any(0)).sum())
    assert a["inputs_picture"]["counts"] == dense.sum(0).reshape(10, 20).tolist()
    high, wide = a["picture"]["block"]
    assert 90 * 200 / (high * wide) <= 6000
    for i, line in enumerate(a["picture"]["counts"]):
        for j, count in enumerate(line):
            block = dense[i * high : (i + 1) * high, j * wide : (j + 1) * wide]
            assert count == block.sum()
    assert (b["dead_outputs"], b["n_outputs"]) == (1, 5)
    assert (b["dead_inputs"], b["n_inputs"]) == (1, 4)
    assert "inputs_picture" not in b


def test_given_arrays_are_used_as_they_are():
    Path("d.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    x = np.arange(40.0).reshape(20, 2) * 1000\n"
        "    return x, np.arange(20) % 2, x[:4], np.arange(4) % 2\n"
    )
    samples = build_experiment(TrainSettings("d.py:data", model="net.py:build")).samples
    assert (
        samples.inputs(samples.X_train).tolist()
        == (torch.arange(40.0).reshape(20, 2) * 1000).tolist()
    )
    assert make_arrays("a", images()).X_train.dtype == torch.uint8
