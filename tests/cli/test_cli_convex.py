"""`ellzero train --convex` as a user meets it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ellzero.models import SavedModel, load_model, predict, predict_proba, save_model
from ellzero.relu import ConvexReLURegressor
from tests.cli.test_cli import _here, run, table  # noqa: F401


@pytest.fixture
def kinked():
    """Write a file of one feature whose target has a kink; return its rows."""
    x = np.linspace(-1, 1, 40)
    y = np.abs(x - 0.2) + 0.05 * np.sin(17 * x)
    np.savetxt("kink.csv", np.column_stack([x, y]), delimiter=",", header="x,y", comments="",
               fmt="%.17g")  # fmt: skip
    return x, y


def test_regression_is_trained_certified_reread_and_applied(run, kinked):  # noqa: F811
    x, y = kinked
    options = ["--convex", "--penalty", "0.001", "--test-size", "0", "--out", "net"]
    code, out, said = run("train", "kink.csv", "--target", "y", *options, "--json")
    assert code == 0, said
    found = json.loads(out)
    # The same network by scikit-learn's conventions on standardized rows.
    rows = ((x - x.mean()) / x.std())[:, None]
    model = ConvexReLURegressor(penalty=0.001, random_state=0).fit(rows, y)
    numbers = dict(found["tables"][0]["rows"])
    assert numbers["objective"] == pytest.approx(model.value_, rel=1e-6)
    assert numbers["relative gap"] < 1e-6
    assert "proven best network of any width" in found["headline"]
    assert found["certificate"]["claim"] == "optimal"
    page = Path("net/report.html").read_text()
    assert "proven lower bound, every width" in page
    code, out, said = run("certify", "net/model.safetensors", "kink.csv")
    assert (code, "Every claim holds." in out) == (0, True), said
    code, out, said = run("predict", "net/model.safetensors", "kink.csv", "--out", "p.csv")
    assert code == 0, said
    with open("p.csv", newline="") as file:
        guess = [float(row["prediction"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(guess, model.predict(rows), atol=1e-5)


def test_altered_weights_are_refused(run, kinked):  # noqa: F811
    options = ["--convex", "--penalty", "0.01", "--test-size", "0", "--out", "net"]
    assert run("train", "kink.csv", "--target", "y", *options)[0] == 0
    saved = load_model("net/model.safetensors")
    params = dict(saved.params)
    params["0.weight"] = params["0.weight"] * 1.01
    save_model("other.safetensors", replace(saved, params=params))
    code, out, _ = run("certify", "other.safetensors", "kink.csv", "--json")
    assert code == 4
    found = json.loads(out)
    assert not found["holds"]
    assert found["claims"][0]["verdict"] == "fails"
    # A bound that is claimed too high is found out as well.
    claims = dict(saved.claims)
    claims["lower_bound"] = claims["lower_bound"] * 1.001
    save_model("other.safetensors", replace(saved, claims=claims))
    code, out, _ = run("certify", "other.safetensors", "kink.csv", "--json")
    assert code == 4
    verdicts = [row["verdict"] for row in json.loads(out)["claims"]]
    assert verdicts[:2] == ["holds", "fails"]
    Path("less.csv").write_text("\n".join(Path("kink.csv").read_text().split("\n")[:30]))
    code, _, said = run("certify", "net/model.safetensors", "less.csv")
    assert code == 2
    assert "The model was trained on other data than 'less.csv'" in said
    save_model("other.safetensors", replace(saved, settings={"convex": {"data": "kink.csv"}}))
    code, _, said = run("certify", "other.safetensors", "kink.csv")
    assert code == 2
    assert "'other.safetensors' is damaged: its settings cannot be read." in said
    params["2.weight"] = params["2.weight"][:, :1].repeat(1, 9)
    save_model("other.safetensors", replace(saved, params=params))
    code, _, said = run("certify", "other.safetensors", "kink.csv")
    assert code == 2
    assert "The parameters of 'other.safetensors' do not fit the model it describes." in said


def test_gates_take_many_classes(run):  # noqa: F811
    options = ["--convex", "--activation", "gated", "--neurons", "30", "--out", "net"]
    code, out, said = run("train", "iris", *options)
    assert code == 0, said
    assert "best network of these gates" in out
    code, out, said = run("certify", "net/model.safetensors", "iris", "--json")
    assert code == 0, said
    assert json.loads(out)["certificate"]["gap"] < 1e-3
    saved = load_model("net/model.safetensors")
    assert saved.kind == "gated-relu"
    code, _, said = run("certify", "net/model.safetensors", "wine")
    assert code == 2


def test_zero_network_is_saved_and_checked(run, kinked):  # noqa: F811
    options = ["--convex", "--penalty", "100", "--test-size", "0"]
    for activation in ("relu", "gated"):
        where = ["--activation", activation, "--out", activation]
        code, out, said = run("train", "kink.csv", "--target", "y", *options, *where)
        assert code == 0, said
        assert out.startswith("0 "), out
        if activation == "gated":
            assert "note: `penalty`, 100, is not below the largest useful one" in said
        code, _, said = run("certify", f"{activation}/model.safetensors", "kink.csv")
        assert code == 0, said


def test_scores_of_gates_by_hand():
    params = {
        "gates": torch.tensor([[1.0, 0.0], [-1.0, 1.0]]),
        "weights": torch.tensor([[[2.0], [1.0]], [[3.0], [0.0]]]),
        "intercept": torch.tensor([0.5]),
    }
    model = SavedModel("gated-relu", params, "regression", ("a",), architecture={"biased": True})
    # At 2: the first gate, 2 * 2 + 1. At -1: the second, 3 * -1. At 0.5: both.
    X = torch.tensor([[2.0], [-1.0], [0.5]])
    assert predict(model, X).tolist() == [5.5, -2.5, 4.0]
    three = replace(
        model,
        params={
            "gates": torch.ones(1, 2),
            "weights": torch.zeros(1, 2, 3),
            "intercept": torch.tensor([0.0, 0.0, np.log(3.0)]),
        },
        task="classification",
        class_names=("x", "y", "z"),
    )
    np.testing.assert_allclose(predict_proba(three, X[:1])[0], [2 / 7, 2 / 7, 3 / 7], rtol=1e-6)
    assert predict(three, X).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["iris", "--convex", "--recipe", "iht"],
            "`--recipe` cannot be given together with `--convex`.",
        ),
        (["iris", "--convex", "--n-nonzero", "5"], "`--n-nonzero` cannot be given together"),
        (["--convex"], "`--convex` needs data, got none."),
        (["iris", "--convex"], "ReLU networks are for two classes or numbers, got 3 classes."),
        (
            ["iris", "--convex", "--activation", "gelu"],
            "`activation` must be one of 'relu', 'gated', got 'gelu'.",
        ),
        (["iris", "--convex", "--penalty", "0"], "`penalty` must be positive, got 0."),
        (
            ["iris", "--convex", "--neurons", "0"],
            "`neurons` must be an integer of at least 1, got 0.",
        ),
        (["iris", "--penalty", "1"], "`--penalty` is for networks by convex programs, got none."),
        (["iris", "--neurons", "1"], "`--neurons` is for networks by convex programs, got none."),
    ],
)
def test_bad_options_get_one_sentence(run, options, message):  # noqa: F811
    code, _, said = run("train", *options)
    assert code == 2
    assert message in said
    assert said.count("error:") == 1
