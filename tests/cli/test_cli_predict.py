"""`ellzero predict` as a user meets it."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ellzero.models import load_model
from tests.cli.test_cli import _here, refuse, run, table  # noqa: F401


@pytest.fixture
def model(run, table):  # noqa: F811
    # Without the price, which gives the kind away.
    rows = [line.split(",") for line in Path(table).read_text().splitlines()]
    Path(table).write_text("\n".join(",".join([*row[:4], row[5]]) for row in rows) + "\n")
    code, _, said = run("train", table, "--target", "kind", "--n-nonzero", "4", "--starts", "2")
    assert code == 0, said
    return "ellzero-out/t/model.safetensors"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_rows_get_the_classes_of_the_model(run, table, model):  # noqa: F811
    code, out, said = run("predict", model, table, "--proba", "--out", "p.csv")
    assert (code, out, said) == (0, "", "Predictions of 40 rows: p.csv\n")
    rows, truth = read("p.csv"), read(table)
    assert list(rows[0]) == ["prediction", "probability of a", "probability of b"]
    assert np.mean([r["prediction"] == t["kind"] for r, t in zip(rows, truth, strict=True)]) > 0.8
    for row in rows:
        chances = [float(row[f"probability of {c}"]) for c in "ab"]
        assert sum(chances) == pytest.approx(1)
        assert row["prediction"] == "ab"[int(np.argmax(chances))]
    # The columns of the file in another order, and one that the model does not know.
    names = ["age", "color", "extra", "flag", "size"]
    lines = [",".join(names)] + [",".join({**t, "extra": "1"}[n] for n in names) for t in truth]
    Path("other.csv").write_text("\n".join(lines) + "\n")
    run("predict", model, "other.csv", "--proba", "--out", "q.parquet")
    assert pq.read_table("q.parquet").to_pylist() == [
        {k: v if k == "prediction" else pytest.approx(float(v)) for k, v in row.items()}
        for row in rows
    ]


def test_a_table_and_json_show_the_same(run, table, model):  # noqa: F811
    code, out, said = run("predict", model, table)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "Predictions of kind"
    assert lines[1].split() == ["row", "prediction"]
    assert len(lines) == 22
    assert said == "and 20 more rows\nhint: Write all of them by `--out predictions.csv`.\n"
    found = json.loads(run("predict", model, table, "--json")[1])
    assert found["target"] == "kind"
    assert [line.split()[1] for line in lines[2:]] == found["prediction"][:20]
    loaded = load_model(model)
    assert loaded.data["columns"][1]["levels"] == ["blue", "green", "red"]


def test_a_bundled_set_is_predicted_from_a_file_of_its_columns(run):  # noqa: F811
    run("train", "iris", "--n-nonzero", "5", "--starts", "2")
    Path("flower.csv").write_text(
        "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3.4,1.5,0.2\n"
    )
    code, out, _ = run("predict", "ellzero-out/iris/model.safetensors", "flower.csv", "--json")
    assert (code, json.loads(out)["prediction"]) == (0, ["setosa"])


def test_what_cannot_be_predicted_is_said(run, table, model):  # noqa: F811
    Path("few.csv").write_text("age\n1\n")
    Path("there.csv").write_text("")
    for words, message, hint in (
        (
            [model, "few.csv"],
            "'few.csv' lacks 2 columns: 'size', 'color', which the model uses.",
            "Its columns are 'age'.",
        ),
        (
            [model, table, "--out", "p.txt"],
            "'p.txt' has the extension '.txt'; rows are written as .csv or .parquet.",
            "Give the file one of these extensions.",
        ),
        (
            [model, table, "--out", "there.csv"],
            "'there.csv' is there already.",
            "Give another file, or replace it by `--force`.",
        ),
    ):
        refuse(run, message, hint, "predict", *words)
    code, _, said = run("predict", model, table, "--out", "there.csv", "--force")
    assert (code, said) == (0, "Predictions of 40 rows: there.csv\n")
