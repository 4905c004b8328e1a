"""`ellzero fit` as a user meets it."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets

from ellzero.models import load_model, save_model
from tests.cli.test_cli import _here, run, table  # noqa: F401


@pytest.fixture
def diabetes():
    """A file of ten features; the best subsets are found by trying all of them."""
    data = sklearn.datasets.load_diabetes(scaled=False)
    rows = np.column_stack([data.data, data.target])
    header = ",".join([*data.feature_names, "progress"])
    np.savetxt("diabetes.csv", rows, delimiter=",", header=header, comments="", fmt="%.17g")
    return "diabetes.csv", data


def best_subsets(X, y):
    """Return value and names of the best subset of every size, by trying all."""
    Z, t = X - X.mean(0), y - y.mean()
    out = {}
    for k in range(1, X.shape[1] + 1):
        found = []
        for columns in itertools.combinations(range(X.shape[1]), k):
            part = Z[:, list(columns)]
            rss = ((t - part @ np.linalg.lstsq(part, t, rcond=None)[0]) ** 2).sum()
            found.append((rss / (2 * len(t)), columns))
        out[k] = min(found)
    return out


def test_every_budget_has_its_best_subset_and_the_proof(run, diabetes):  # noqa: F811
    path, data = diabetes
    code, out, said = run("fit", path, "--target", "progress", "--n-nonzero", "1:10", "--json")
    assert code == 0, said
    found = json.loads(out)
    best = best_subsets(data.data, data.target)
    for row in found["path"]:
        value, columns = best[row["budget"]]
        assert row["value"] == pytest.approx(value, rel=1e-9)
        assert row["support"] == [data.feature_names[j] for j in columns]
        assert row["claim"] == "optimal"
        assert row["lower_bound"] <= row["value"] * (1 + 1e-9)
    # EBIC by its definition.
    n, p = data.data.shape
    ebic = [
        n * np.log(2 * best[k][0])
        + k * np.log(n)
        + 2 * np.log(float(np.prod(range(p - k + 1, p + 1))) / float(np.prod(range(1, k + 1))))
        for k in range(1, 11)
    ]
    given = [row["ebic"] for row in found["path"]]
    np.testing.assert_allclose(np.diff(given), np.diff(ebic), rtol=1e-6, atol=1e-6)
    chosen = [row["selected"] for row in found["path"]]
    assert chosen.index(True) == int(np.argmin(ebic))
    assert sum(chosen) == 1
    model = load_model("ellzero-out/diabetes-fit/model.safetensors")
    assert model.n_nonzero == chosen.index(True) + 2  # the intercept is stored beside
    assert len(list(Path("ellzero-out/diabetes-fit/path").iterdir())) == 10
    page = Path("ellzero-out/diabetes-fit/report.html").read_text()
    assert "Coefficients by number of features" in page
    assert "Cross-validated loss" in page


def test_the_path_is_one_table_and_claims_hold(run, diabetes, monkeypatch):  # noqa: F811
    path, _ = diabetes
    words = ("fit", path, "--target", "progress", "--n-nonzero", "1:6", "--cv", "0")
    code, out, said = run(*words)
    assert code == 0, said
    lines = out.splitlines()
    assert lines[0].startswith("5 of 10 features by EBIC, loss 1457, train R2 50.9%, proven glob")
    rows = [line for line in lines if "optimal" in line and "bmi" in line]
    assert len(rows) == 6
    assert rows[4].startswith(">")
    assert rows[2].split()[-3:] == ["bmi,", "bp,", "s5"]
    assert all(len(line) <= 100 for line in lines)
    code, out, said = run("certify", "ellzero-out/diabetes-fit/model.safetensors", path)
    assert code == 0, out + said
    assert out.rstrip().endswith("Every claim holds.")
    # A model that says more than is true.
    model = load_model("ellzero-out/diabetes-fit/model.safetensors")
    params = {**model.params, "coef": model.params["coef"] * 1.01}
    from dataclasses import replace

    save_model("worse.safetensors", replace(model, params=params))
    code, out, _ = run("certify", "worse.safetensors", path)
    assert code == 4
    assert "fails" in out
    code, out, _ = run("predict", "ellzero-out/diabetes-fit/model.safetensors", path, "--json")
    assert code == 0
    assert len(json.loads(out)["prediction"]) == 442


def test_text_columns_count_once_and_weights_are_no_feature(run, table):  # noqa: F811
    words = ("fit", table, "--target", "price", "--n-nonzero", "1:3", "--cv", "0", "--json")
    found = json.loads(run(*words, "--weights", "age2")[1] or "{}")
    assert found == {}  # there is no such column
    lines = Path(table).read_text().splitlines()
    heavy = [f"{line},{'w' if i == 0 else 1 + i % 3}" for i, line in enumerate(lines)]
    Path(table).write_text("\n".join(heavy) + "\n")
    code, out, said = run(*words, "--weights", "w", "--always", "flag", "--forbidden", "kind")
    assert code == 0, said
    found = json.loads(out)
    assert [row["support"] for row in found["path"][:2]] == [["flag"], ["size", "flag"]]
    assert set(found["path"][2]["support"]) == {"size", "color", "flag"}
    assert found["counted"] == "columns"
    assert found["data"]["messages"][-1] == "Samples are weighted by 'w'."
    model = load_model("ellzero-out/t-fit/path/3.safetensors")
    assert "w" not in model.feature_names
    code, out, said = run("certify", "ellzero-out/t-fit/path/3.safetensors", table)
    assert code == 0, out + said


@pytest.mark.parametrize(
    ("target", "loss", "kind", "classes"),
    [
        ("kind", None, "logistic", ["a", "b"]),
        ("color", None, "linear-softmax", ["blue", "green", "red"]),
    ],
)
def test_classes_are_fitted(run, table, target, loss, kind, classes):  # noqa: F811
    words = ("fit", table, "--target", target, "--n-nonzero", "1:2", "--ridge", "0.01")
    code, out, said = run(*words, "--cv", "2", "--select", "cv", "--json")
    assert code == 0, said
    found = json.loads(out)
    assert found["data"]["classes"] == classes
    assert all(row["cv"] > 0 for row in found["path"])
    model = load_model("ellzero-out/t-fit/model.safetensors")
    assert model.kind == kind
    code, out, said = run("predict", "ellzero-out/t-fit/model.safetensors", table, "--json")
    assert code == 0, said
    assert set(json.loads(out)["prediction"]) <= set(classes)


def test_counts_and_outliers_are_fitted(run):  # noqa: F811
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 5))
    counts = rng.poisson(np.exp(1 + 0.8 * X[:, 3]))
    numbers = 2 * X[:, 1] + 0.1 * rng.standard_normal(80)
    numbers[:8] += 50
    rows = np.column_stack([X, counts, numbers])
    np.savetxt("c.csv", rows, delimiter=",", header="a,b,c,d,e,n,y", comments="", fmt="%.17g")
    for target, loss, kind, name in (
        ("n", "poisson", "poisson", "d"),
        ("y", "huber", "huber", "b"),
    ):
        words = ("fit", "c.csv", "--target", target, "--loss", loss, "--n-nonzero", "1")
        more = ("--forbidden", "y" if target == "n" else "n", "--force", "--json")
        code, out, said = run(*words, *more)
        assert code == 0, said
        assert json.loads(out)["path"][0]["support"] == [name]
        assert load_model("ellzero-out/c-fit/model.safetensors").kind == kind


def test_outliers_are_cross_validated(run):  # noqa: F811
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 5))
    y = 2 * X[:, 1] - X[:, 4] + 0.1 * rng.standard_normal(80)
    y[:8] += 50
    rows = np.column_stack([X, y])
    np.savetxt("h.csv", rows, delimiter=",", header="a,b,c,d,e,y", comments="", fmt="%.17g")
    words = ("fit", "h.csv", "--target", "y", "--loss", "huber", "--n-nonzero", "1:3")
    code, out, said = run(*words, "--select", "cv", "--cv", "3", "--ridge", "0,10", "--json")
    assert code == 0, said
    path = json.loads(out)["path"]
    assert path[1]["support"] == ["b", "e"]
    # The scores of all folds: without the second feature or with a heavy ridge they are worse.
    assert path[1]["cv"] < path[0]["cv"]
    assert next(row["budget"] for row in path if row["selected"]) >= 2
    assert load_model("ellzero-out/h-fit/model.safetensors").kind == "huber"


WRONG = [
    (["--n-nonzero", "0.5"], "`--n-nonzero` must be whole numbers, got '0.5'.",
     "Write one number (5), a range with both ends (1:20), or a list (1,2,8)."),
    (["--n-nonzero", "9"], "`n_nonzero` must be at most 5, the number of columns, got 9.", None),
    (["--ridge", "a"], "`--ridge` must be numbers, got 'a'.",
     "Write 0.1, or several as 0,0.01,0.1."),
    (["--ridge", "0,1", "--cv", "0"],
     "`ridge` has 2 numbers, which are chosen by cross-validation, got cv=0.",
     "Pass `--cv 5`, or one number."),
    (["--select", "cv", "--cv", "0"], "`select` cannot be 'cv' without folds, got cv=0.",
     "Pass `--cv 5`."),
    (["--always", "sise"], "Unknown column 'sise' in `always`. Did you mean 'size'?",
     "Columns: size, color, flag, age, kind, color=green, color=red, kind=b."),
    (["--always", "age", "--forbidden", "age"],
     "Column 'age' cannot be both always and never in the model.",
     "Take it out of `--always` or `--forbidden`."),
    (["--weights", "color"], "`weights` must be a column of numbers, got 'color'.",
     "Columns: size, color=green, color=red, flag, age, kind=b."),
    (["--weights", "size"], "The weights in 'size' must not be negative, got ", None),
    (["--loss", "poisson"], "The target 'price' must hold counts, got ",
     "Pass `--loss squared` for numbers that can be negative."),
    (["--cv", "99"], "`cv` must be at most 40, the number of samples, got 99.",
     "Pass fewer folds, or `--cv 0`."),
    (["--loss", "hinge"],
     "`loss` must be one of 'squared', 'huber', 'logistic', 'poisson', got 'hinge'.", None),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message", "hint"), WRONG, ids=lambda v: str(v)[:40])
def test_wrong_options_are_refused(run, table, options, message, hint):  # noqa: F811
    words = ("fit", table, "--target", "price", *options)
    if message.endswith("."):
        before = sorted(Path().rglob("*"))
        code, out, said = run(*words)
        assert (code, out) == (2, "")
        first, *rest = said.splitlines()
        assert first.startswith(f"error: {message.rstrip('.')}")
        assert hint is None or rest == [f"hint: {hint}"]
        assert sorted(Path().rglob("*")) == before
    else:
        code, _, said = run(*words)
        assert code == 2
        assert said.startswith(f"error: {message}")
