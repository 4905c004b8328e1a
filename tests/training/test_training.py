"""Settings, plans of budgets and labels of linear models."""

import json
from dataclasses import replace

import pytest
import torch

from ellzero.errors import InvalidParameterError
from ellzero.training import (
    TrainSettings,
    build_experiment,
    check_device,
    entry_labels,
    headline,
    train,
)


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(),
        TrainSettings("wine", n_nonzero=(3, 1), ridge=0.5, starts=2, seed=7),
        TrainSettings("digits", hidden=(30, 10), activation="tanh", search=True, epsilon=0.2),
        TrainSettings("x.csv", target="y", task="regression", test_size=0.0, time_limit=1.5),
    ],
)
def test_settings_survive_json(settings):
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden": (0,)}, "`hidden` must be an integer of at least 1, got 0."),
        ({"n_nonzero": (2, 0)}, "`n_nonzero` must be an integer of at least 1, got 0."),
        ({"ridge": -0.5}, "`ridge` must be a number of at least 0, got -0.5."),
        (
            {"activation": "rellu"},
            "`activation` must be one of 'gelu', 'tanh', 'softplus', 'sigmoid', 'relu', "
            "got 'rellu'. Did you mean 'relu'?",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(wrong, message):
    with pytest.raises(InvalidParameterError) as caught:
        TrainSettings(**wrong)
    assert caught.value.message == message


def test_a_device_that_is_not_there_is_refused():
    assert check_device("cpu") == torch.device("cpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(InvalidParameterError, match="must be a device of this machine"):
            check_device(device)


@pytest.mark.parametrize(
    ("data", "hidden", "starts", "limit"),
    [
        ("iris", (), 100, 20.0),
        ("wine", (), 100, 20.0),
        ("digits", (), 8, 6.0),
        ("iris", (5,), 0, 20.0),
    ],
)
def test_starts_and_time_are_scaled_to_the_model(data, hidden, starts, limit):
    done = build_experiment(TrainSettings(data, hidden=hidden)).settings
    assert (done.starts, done.time_limit) == (starts, limit)
    asked = TrainSettings(data, hidden=hidden, starts=3, time_limit=1.0)
    done = build_experiment(asked).settings
    assert (done.starts, done.time_limit) == (3, 1.0)


@pytest.fixture(scope="module")
def path():
    return train(TrainSettings(starts=5))


def test_a_small_model_gets_every_budget(path):
    assert [o.budget for o in path.outcomes] == list(range(1, 16))
    assert [o.row["selected"] for o in path.outcomes].count(True) == 1


@pytest.mark.parametrize("epsilon", [0.3, 0.1])
def test_the_search_finds_the_smallest_budget_of_the_full_path(path, epsilon):
    dense = path.dense["value"]
    smallest = min(o.budget for o in path.outcomes if o.row["value"] - dense <= epsilon)
    run = train(TrainSettings(search=True, epsilon=epsilon, starts=5))
    assert run.selected == smallest
    assert len(run.outcomes) < len(path.outcomes)


def test_without_a_good_budget_the_best_value_is_selected():
    run = train(TrainSettings(n_nonzero=(1, 2), epsilon=0.0, starts=5))
    assert run.selected == min(run.outcomes, key=lambda o: o.row["value"]).budget == 2


def test_seeds_decide_the_split_and_repeat():
    settings = TrainSettings(n_nonzero=(4,), starts=3, seed=3)
    one, two = train(settings), train(settings)
    for name, tensor in one.chosen.params.items():
        assert torch.equal(tensor, two.chosen.params[name])
    other = train(replace(settings, seed=4))
    rows, others = (r.experiment.parts.test_rows.tolist() for r in (one, other))
    assert rows != others
    assert len(rows) == len(others) == 30


def test_labels_name_class_and_feature():
    experiment = build_experiment(TrainSettings())
    labels = entry_labels(experiment)
    table = experiment.table
    assert labels[:4] == [f"setosa: {f}" for f in table.feature_names]
    assert labels[12:] == [f"{c}: bias" for c in table.class_names]
    two = entry_labels(build_experiment(TrainSettings("breast_cancer")))
    assert (len(two), two[0], two[-1]) == (31, "mean radius", "bias")
    network = entry_labels(build_experiment(TrainSettings(hidden=(2,))))
    assert network == [
        *(f"0.weight[{i}]" for i in range(8)),
        *(f"0.bias[{i}]" for i in range(2)),
        *(f"2.weight[{i}]" for i in range(6)),
        *(f"2.bias[{i}]" for i in range(3)),
    ]


def test_the_headline_answers_how_many_how_good_how_sure(path):
    row = path.chosen.row
    line = headline(path)
    assert line.startswith(f"{row['n_nonzero']} of 15 parameters, train loss {row['value']:.4f}")
    assert "proven globally optimal" in line
