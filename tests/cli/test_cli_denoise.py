"""`ellzero denoise` as a user meets it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ellzero.datasets import make_sparse_signal
from ellzero.signal import SparseSmooth
from tests.cli.test_cli import _here, refuse, run  # noqa: F401


def values():
    rng = np.random.default_rng(0)
    y = 0.3 * rng.standard_normal(120)
    y[30:45] += 2.0
    y[80:86] -= 2.5
    return y


@pytest.fixture
def series():
    """A file with two columns of numbers and one of texts; one value is missing."""
    lines = ["day,load,place"]
    lines += [f"{i},{'' if i == 35 else repr(float(v))},here" for i, v in enumerate(values())]
    Path("s.csv").write_text("\n".join(lines) + "\n")
    return "s.csv"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def expected(**given):
    y = values()
    y[35] = np.nan
    return SparseSmooth(2.0, **given).fit(y)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--n-nonzero", "21"], {"n_nonzero": 21}),
        (["--penalty", "0.8"], {"penalty": 0.8}),
        (["--n-nonzero", "15", "--nonnegative"], {"n_nonzero": 15, "nonnegative": True}),
    ],
)
def test_the_result_is_that_of_the_estimator(run, series, words, given):  # noqa: F811
    code, out, said = run(
        "denoise", series, "--column", "load", "--smoothness", "2", *words, "--out", "o"
    )
    assert code == 0
    assert said == (
        "note: 1 of 120 values are missing and were filled in.\n"
        "Result: o/result.csv\nReport: o/report.html\n"
    )
    est = expected(**given)
    rows = read("o/result.csv")
    assert list(rows[0]) == ["position", "value", "estimate", "on"]
    assert [int(r["position"]) for r in rows] == list(range(120))
    assert [float(r["estimate"]) for r in rows] == est.signal_.tolist()
    assert [r["on"] == "true" for r in rows] == (est.signal_ != 0).tolist()
    assert rows[35]["value"] == ""
    assert float(rows[34]["value"]) == values()[34]
    assert f"{est.support_.size} of 120 samples are on, in" in out
    page = Path("o/report.html").read_text()
    assert "Data, estimate and support" in page
    assert "<svg" in page


def test_without_a_budget_one_is_chosen_and_json_says_which(run, series):  # noqa: F811
    code, out, _ = run("denoise", series, "--column", "load", "--smoothness", "2", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["out"] == "ellzero-out/s"
    chosen = SparseSmooth(2.0)
    y = values()
    y[35] = np.nan
    chosen.select(y)
    assert summary["settings"]["n_nonzero"] == f"{chosen.budget_}, chosen by EBIC"
    assert summary["certificate"]["lower_bound"] == pytest.approx(chosen.lower_bound_, rel=1e-9)
    # Both planted bumps, and at most a shoulder beside each edge.
    found = [row[:2] for row in summary["tables"][0]["rows"]]
    assert np.abs(np.array(found) - [[30, 44], [80, 85]]).max() <= 1
    assert json.loads(Path("ellzero-out/s/summary.json").read_text())["headline"] in out


def test_a_file_with_one_column_of_numbers_needs_no_name(run):  # noqa: F811
    Path("one.csv").write_text("place,load\n" + "".join(f"here,{v}\n" for v in (0, 0, 4, 5, 0)))
    code, _, _ = run("denoise", "one.csv", "--penalty", "1", "--smoothness", "0")
    assert code == 0
    assert [r["estimate"] for r in read("ellzero-out/one/result.csv")] == ["0", "0", "4", "5", "0"]


def test_without_a_file_a_series_is_made_and_rules_are_kept(run):  # noqa: F811
    words = ["--smoothness", "5", "--n-nonzero", "150", "--n-bumps", "6", "--min-length", "8"]
    code, out, said = run("denoise", *words, "--min-distance", "3", "--bump-penalty", "0.1")
    assert code == 0
    assert said.startswith(
        "note: The series is synthetic: 200 samples in 10 bumps are planted.\n"
        "Result: ellzero-out/synthetic/result.csv\n"
    )
    rows = read("ellzero-out/synthetic/result.csv")
    y = make_sparse_signal().y
    assert [float(r["value"]) for r in rows] == y.tolist()
    rules = {"n_bumps": 6, "min_length": 8, "min_distance": 3, "bump_penalty": 0.1}
    est = SparseSmooth(5.0, n_nonzero=150, **rules).fit(y)
    assert [i for i, r in enumerate(rows) if r["on"] == "true"] == est.support_.tolist()
    assert "in 6 bumps" in out
    settings = json.loads(Path("ellzero-out/synthetic/summary.json").read_text())["settings"]
    assert {key: settings[key] for key in rules} == rules


def test_the_series_that_is_made_has_one_column(run):  # noqa: F811
    message = "The synthetic series has no column 'load'."
    refuse(run, message, "Its column is value.", "denoise", "--column", "load")


def test_an_earlier_result_stays_unless_forced(run, series):  # noqa: F811
    words = ["denoise", series, "--column", "load", "--n-nonzero", "5", "--out", "o"]
    assert run(*words)[0] == 0
    before = Path("o/result.csv").read_text()
    assert run(*words[:-3], "6", "--out", "o")[0] == 2
    assert Path("o/result.csv").read_text() == before
    assert run(*words[:-3], "6", "--out", "o", "--force")[0] == 0
    assert Path("o/result.csv").read_text() != before


WRONG = [
    (
        [],
        "`--column` is needed: 's.csv' has 2 columns of numbers.",
        "Numbers are in day, load.",
    ),
    (
        ["--column", "laod"],
        "'s.csv' has no column 'laod'. Did you mean 'load'?",
        "Its columns are day, load, place.",
    ),
    (
        ["--column", "place"],
        "Column 'place' of 's.csv' does not hold numbers.",
        "Give another column.",
    ),
    (
        ["--column", "load", "--n-nonzero", "5", "--penalty", "1"],
        "Exactly one of `n_nonzero` and `penalty` must be given, got both.",
        "Pass `n_nonzero=20` for a budget, or `penalty=0.1` for a cost of each nonzero.",
    ),
]


@pytest.mark.parametrize(("words", "message", "hint"), WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing(run, series, words, message, hint):  # noqa: F811
    refuse(run, message, hint, "denoise", series, *words)


def test_integers_that_floats_cannot_hold_are_refused(run):  # noqa: F811
    Path("big.csv").write_text(f"n\n{2**53 + 1}\n3\n")
    message = "Column 'n' of 'big.csv' has integers beyond 2^53."
    refuse(run, message, "Subtract an offset first.", "denoise", "big.csv", "--n-nonzero", "1")


def test_a_file_that_is_not_there_is_one_sentence(run):  # noqa: F811
    message = "No file 'gone/s.csv': the folder 'gone' does not exist."
    refuse(run, message, "Check the path.", "denoise", "gone/s.csv", "--n-nonzero", "1")


def picture():
    rng = np.random.default_rng(0)
    y = 0.3 * rng.standard_normal((20, 25))
    y[5:10, 8:15] += 2.0
    y[2, 3] = np.nan
    return y


def test_an_image_gives_its_estimate_and_three_pictures(run):  # noqa: F811
    y = picture()
    np.save("image.npy", y)
    code, out, err = run(
        "denoise", "image.npy", "--smoothness", "1", "--penalty", "0.5", "--out", "o"
    )
    assert code == 0
    est = SparseSmooth(1.0, penalty=0.5, graph="grid").fit(y)
    assert (np.load("o/estimate.npy") == est.signal_).all()
    assert f"{est.support_.size} of 500 pixels are on" in out
    assert "1 of 500 pixels are missing and were filled in." in err
    page = Path("o/report.html").read_text()
    for word in ("Data", "Estimate", "Support"):
        assert word in page
    assert page.count("<svg") >= 3
    np.savetxt("rows.csv", np.nan_to_num(y), delimiter=",", fmt="%.17g")
    words = ["--grid", "--smoothness", "1", "--n-nonzero", "35"]
    assert run("denoise", "rows.csv", *words)[0] == 0
    est = SparseSmooth(1.0, n_nonzero=35, graph="grid").fit(np.nan_to_num(y))
    assert (np.load("ellzero-out/rows/estimate.npy") == est.signal_).all()


IMAGE = "An image is a .npy file with two axes, or a .csv file of rows of numbers."
WRONG_IMAGES = [
    ("1,2\n3\n", [], "Line 2 of 'x.csv' has 1 numbers, the first has 2.", IMAGE),
    ("a,b\n1,2\n", [], "Line 1 of 'x.csv' is not numbers.", IMAGE),
    ("", [], "'x.csv' is empty.", IMAGE),
]


@pytest.mark.parametrize(("text", "words", "message", "hint"), WRONG_IMAGES)
def test_wrong_images_are_one_sentence(run, text, words, message, hint):  # noqa: F811
    Path("x.csv").write_text(text)
    refuse(run, message, hint, "denoise", "x.csv", "--grid", "--penalty", "1", *words)


def test_images_that_are_none_are_refused(run):  # noqa: F811
    np.save("x.npy", np.zeros(3))
    message = "'x.npy' must hold numbers with two axes, got shape (3,) of float64."
    refuse(run, message, IMAGE, "denoise", "x.npy", "--penalty", "1")
    Path("y.npy").write_text("no")
    refuse(run, "'y.npy' is not a .npy file.", IMAGE, "denoise", "y.npy", "--penalty", "1")
    refuse(run, "No file 'z.npy'.", "Check the path.", "denoise", "z.npy", "--penalty", "1")
    message = "An image needs `--n-nonzero` or `--penalty`, got neither."
    refuse(run, message, "Give one of them.", "denoise", "x.npy")
    words = ["denoise", "x.npy", "--column", "a"]
    message = "`--column` is for series, got an image."
    refuse(run, message, "Leave it out.", *words)


def test_an_empty_line_of_a_single_column_is_a_missing_sample(run):  # noqa: F811
    text = "value\n0\n3\n\n3\n0\n\n0\n\n\n"
    Path("one.csv").write_text(text)
    code, _, said = run("denoise", "one.csv", "--n-nonzero", "3", "--out", "o")
    assert code == 0
    assert "2 of 7 values are missing and were filled in." in said
    rows = Path("o/result.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["0", "3", "", "3", "0", "", "0"]
    assert [row.split(",")[3] for row in rows][:5] == ["false", "true", "true", "true", "false"]
    # Before the header, and beside other columns, it is nothing.
    Path("two.csv").write_text("\nvalue\n0\n3\n")
    Path("three.csv").write_text("a,value\nx,0\n\ny,3\n")
    for name in ("two.csv", "three.csv"):
        assert run("denoise", name, "--n-nonzero", "1", "--out", name[:-4])[0] == 0
        assert len(Path(f"{name[:-4]}/result.csv").read_text().splitlines()) == 3
