"""The command line as a user meets it: words, exit codes, files."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ellzero import cli
from ellzero.models import load_model, save_model
from ellzero.training import TrainSettings, train


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["ellzero", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


@pytest.fixture
def table():
    """A file with a category, a flag and a number to predict."""
    rng = np.random.default_rng(0)
    lines = ["size,color,flag,age,price,kind"]
    for i in range(40):
        size, age = rng.standard_normal(2)
        color = ("red", "green", "blue")[i % 3]
        price = 2 * size + (color == "red") + 0.1 * rng.standard_normal()
        lines.append(f"{size},{color},{i % 2 == 0},{age},{price},{'ab'[int(price > 0)]}")
    Path("t.csv").write_text("\n".join(lines) + "\n")
    return "t.csv"


def refuse(run, message, hint, *words):
    before = sorted(Path().rglob("*"))
    assert run(*words) == (2, "", f"error: {message}\nhint: {hint}\n")
    assert sorted(Path().rglob("*")) == before


BUDGET = (
    "Write one number (5), a range with both ends (1:15), a list (1,2,8), or a density (0.01 or "
    "1%)."
)
USAGE = "`ellzero train --help` lists what there is."
WRONG_OPTIONS = [
    (["--n-nonzero", "0"], "`--n-nonzero` must be at least 1, got 0.", BUDGET),
    (["--n-nonzero", "-3"], "`--n-nonzero` must be at least 1, got -3.", BUDGET),
    (
        ["--n-nonzero", "2.5"],
        "`--n-nonzero` must be a density above 0 and up to 1, got '2.5'.",
        BUDGET,
    ),
    (["--n-nonzero", "5:2"], "`--n-nonzero` must be a rising range, got '5:2'.", BUDGET),
    (
        ["--n-nonzero", "1:2:3"],
        "`--n-nonzero` must be whole numbers or densities, got '1:2:3'.",
        BUDGET,
    ),
    (
        ["--n-nonzero", "16"],
        "`n_nonzero` must be an integer between 1 and 15, the number of parameters, got 16.",
        "Pass `--n-nonzero 15` to keep every parameter.",
    ),
    (
        ["--n-nonzero", "5", "--epsilon", "0.1"],
        "`--epsilon` and `--n-nonzero` cannot both be given.",
        "`--epsilon` searches for the budget that `--n-nonzero` fixes.",
    ),
    (
        ["--hidden", "x"],
        "`--hidden` must be whole numbers, got 'x'.",
        "Write 0 for one linear layer, or sizes such as 300,100.",
    ),
    (
        ["--hidden", "8,-1"],
        "`--hidden` must be positive, got '8,-1'.",
        "Write 0 for one linear layer, or sizes such as 300,100.",
    ),
    (["--ridge", "-1"], "`ridge` must be a number of at least 0, got -1.", None),
    (["--ridge", "nan"], "`ridge` must be a number of at least 0, got nan.", None),
    (["--epsilon", "-1"], "`epsilon` must be a number of at least 0, got -1.", None),
    (["--starts", "-1"], "`starts` must be an integer of at least 0, got -1.", None),
    (["--seed", "-1"], "`seed` must be an integer of at least 0, got -1.", None),
    (["--time-limit", "0"], "`time_limit` must be positive, got 0.", None),
    (["--test-size", "2"], "`test_size` must be a number between 0 and 1, got 2.", None),
    (
        ["--task", "guess"],
        "`task` must be one of 'classification', 'regression', got 'guess'. "
        "Did you mean 'regression'?",
        None,
    ),
    (
        ["--device", "tpu"],
        "`device` must be a device of this machine, got 'tpu'.",
        "Pass `--device cpu`.",
    ),
    (
        ["--n-nonzer", "5"],
        "No such option: --n-nonzer (Possible options: --n-nonzero)",
        USAGE,
    ),
    (
        ["--resume", "nowhere"],
        "There is nothing to resume in 'nowhere'.",
        "Give the folder of a run that was cut short, or leave `--resume` out.",
    ),
    (
        ["--out", "a", "--resume", "b"],
        "`--out` must be the folder of `--resume`, 'b', got 'a'.",
        "Leave `--out` out: the run goes on in its own folder.",
    ),
]


@pytest.mark.parametrize(("words", "message", "hint"), WRONG_OPTIONS)
def test_wrong_options_are_one_sentence(run, words, message, hint):
    code, out, err = run("train", *words)
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n" + (f"hint: {hint}\n" if hint else "")
    assert not list(Path().iterdir())


WRONG_FILES = [
    ("", "'f.csv' is empty.", None),
    ("a,y\n", "'f.csv' has column names but no rows.", "Give a file with at least two rows."),
    ("a,y\n1,2\n", "'f.csv' has a single sample.", "Give at least two samples."),
    (
        "a,y\n1,p\n2,p\n3,p\n",
        "The target 'y' of 'f.csv' has a single class, 'p'.",
        "Give data in which the target varies.",
    ),
    (
        "a,y\n1,p\n1,q\n1,p\n1,q\n1,p\n",
        "Every feature of 'f.csv' is constant.",
        "Give features that vary over the samples.",
    ),
    (
        "a,b,y\n1,,p\n,2,q\n3,,p\n",
        "'f.csv' has 3 missing values: 'a' (1), 'b' (2).",
        "Drop these rows, or fill them first.",
    ),
    (
        "a,b\n1,p\n2,q\n3,p\n",
        "'f.csv' has no column 'y'.",
        "Its columns are 'a', 'b'.",
    ),
    (
        "a,yy\n1,p\n2,q\n3,p\n",
        "'f.csv' has no column 'y'. Did you mean 'yy'?",
        "Its columns are 'a', 'yy'.",
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), WRONG_FILES)
def test_wrong_files_are_one_sentence(run, text, message, hint):
    Path("f.csv").write_text(text)
    code, out, err = run("train", "f.csv", "--target", "y")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}\n")
    assert err.count("\n") == 2
    assert hint is None or err.endswith(f"\nhint: {hint}\n")
    assert [p.name for p in Path().iterdir()] == ["f.csv"]


def test_a_missing_file_names_the_nearest_data_set(run):
    code, out, err = run("train", "irsi")
    assert (code, out) == (2, "")
    assert "Did you mean 'iris'?" in err.splitlines()[0]


def test_a_file_needs_a_target(run, table):
    refuse(
        run,
        "`target` must name the column of 't.csv' to predict, got nothing.",
        "Pass `target`, on the command line `--target COLUMN`.",
        "train",
        table,
    )


def test_an_earlier_result_is_refused_before_the_data_are_read(run):
    Path("res").mkdir()
    Path("res/a.txt").write_text("mine")
    refuse(
        run,
        "The output folder 'res' exists and is not empty.",
        "Choose another folder, or pass `--force` to replace it.",
        *("train", "no-such-data", "--out", "res"),
    )
    refuse(
        run,
        "The output folder 'res' holds files that ellzero did not write.",
        "Choose another folder; `--force` replaces earlier results only.",
        *("train", "--out", "res", "--force"),
    )


def test_an_output_below_a_file_is_refused(run):
    Path("file").write_text("x")
    refuse(
        run,
        "Cannot write the output folder 'file/res': not a directory.",
        "Choose a folder that you can write.",
        *("train", "--out", "file/res"),
    )


def test_without_a_command_and_with_a_wrong_one(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "reproduce" in out
    assert run("trian") == (
        2,
        "",
        "error: No such command 'trian'. Did you mean 'train'?\n"
        "hint: `ellzero --help` lists what there is.\n",
    )
    assert run("--version")[:2] == (0, f"ellzero {cli.__version__}\n")


@pytest.mark.parametrize(
    ("text", "budgets"), [("5", (5,)), ("1:4", (1, 2, 3, 4)), ("7,1,1:2", (7, 1, 2))]
)
def test_budgets(text, budgets):
    assert cli.parse_budgets(text) == budgets


def test_json_is_all_that_stdout_carries(run):
    code, out, err = run("train", "--n-nonzero", "3,5", "--starts", "2", "--json")
    summary = json.loads(out)
    assert code == 0
    assert [row["budget"] for row in summary["path"]] == [3, 5]
    assert summary["settings"]["starts"] == 2
    assert summary["command"] == "ellzero train --n-nonzero 3,5 --starts 2 --json"
    folder = Path("ellzero-out/iris")
    assert err == f"Model:  {folder}/model.safetensors\nReport: {folder}/report.html\n"
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [".ellzero", "model.safetensors", "path", "report.html", "summary.json"]
    )
    assert json.loads((folder / "summary.json").read_text())["path"] == summary["path"]
    assert run("train")[0] == 2
    assert run("train", "--n-nonzero", "1", "--starts", "0", "--force")[0] == 0


def test_without_ridge_a_line_says_that_separable_classes_have_no_minimizer(run):
    words = ("train", "--n-nonzero", "3", "--starts", "0")
    code, _, err = run(*words, "--ridge", "0", "--out", "a")
    assert code == 0
    assert "note: Without ridge the loss has no minimizer" in err
    assert "hint: Pass `--ridge 0.01`.\n" in err
    assert "ridge" not in run(*words, "--ridge", "0.01", "--out", "b")[2]


@pytest.mark.parametrize(("target", "extra"), [("price", []), ("kind", ["--hidden", "3"])])
def test_a_file_is_trained_on_and_certified(run, table, target, extra):
    code, out, err = run("train", table, "--target", target, "--n-nonzero", "2", *extra)
    assert code == 0
    assert "test" in out
    assert "note: Encoded 'color' (3 categories) as 2 columns.\n" in err
    code, out, err = run("certify", "ellzero-out/t/model.safetensors", table)
    assert (code, err) == (0, "")
    assert "Every claim holds." in out


def test_parquet_gives_the_same_as_csv(run, table):
    from pyarrow import csv, parquet

    parquet.write_table(csv.read_csv(table), "t.parquet")
    values = []
    for name in (table, "t.parquet"):
        words = ("--target", "price", "--n-nonzero", "2", "--starts", "2", "--json")
        code, out, _ = run("train", name, *words, "--out", f"out-{name}")
        assert code == 0
        values.append(json.loads(out)["path"][0]["value"])
    assert values[0] == values[1]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    from ellzero.training import saved_model

    done = train(TrainSettings(n_nonzero=(5,), starts=2))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, saved_model(done.experiment, done.chosen))
    return str(path)


def test_certify_recomputes_every_claim(run, model_file):
    code, out, err = run("certify", model_file, "iris", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["holds"]
    assert {"value", "claim", "proven lower bound"} <= {row["claim"] for row in found["claims"]}


def test_certify_fails_when_a_parameter_or_a_claim_was_changed(run, model_file):
    model = load_model(model_file)
    coef = model.params["coef"].clone()
    coef[coef != 0] += 1e-3
    bad = [
        replace(model, params={**model.params, "coef": coef}),
        replace(model, params={**model.params, "coef": model.params["coef"] + 1e-3}),
        replace(model, proof=None, claims={**model.claims, "value": 0.1}),
        replace(model, claims={**model.claims, "lower_bound": 10.0}),
    ]
    for i, changed in enumerate(bad):
        save_model(f"{i}.safetensors", changed)
        code, out, _ = run("certify", f"{i}.safetensors", "iris")
        assert (i, code) == (i, 4)
        assert "At least one claim does not hold." in out


def test_certify_refuses_wrong_files_and_other_data(run, model_file):
    refuse(run, "No model file 'no.st'.", "Check the path.", "certify", "no.st", "iris")
    Path("cut.st").write_bytes(Path(model_file).read_bytes()[:500])
    code, out, err = run("certify", "cut.st", "iris")
    assert (code, out) == (2, "")
    assert err.startswith("error: 'cut.st' is cut short")
    refuse(
        run,
        "The model was trained on other data than 'wine': the fingerprints differ.",
        "It was trained on 'iris' (150 samples); give that data.",
        *("certify", model_file, "wine"),
    )


def test_reproduce_lists_and_names_the_nearest(run):
    code, out, err = run("reproduce")
    assert (code, err) == (0, "")
    assert "iht-iris" in out
    assert "ht-escape" in out
    refuse(
        run,
        "Unknown experiment 'iht-irs'. Did you mean 'iht-iris'?",
        "Known experiments: iht-iris, ht-escape, rvsm, rvscgd, sparse-smooth, adagrad, backprop, "
        "convex-geometry, mlp-iht, tickets.",
        "reproduce",
        "iht-irs",
    )
    assert [e["name"] for e in json.loads(run("reproduce", "--json")[1])] == [
        "iht-iris",
        "ht-escape",
        "rvsm",
        "rvscgd",
        "sparse-smooth",
        "adagrad",
        "backprop",
        "convex-geometry",
        "mlp-iht",
        "tickets",
    ]


def rows(path):
    path = json.loads(Path(path, "summary.json").read_text())["path"]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in path]


def test_an_interrupted_run_keeps_the_best_and_goes_on(run, monkeypatch):
    words = ("train", "--n-nonzero", "1:4", "--starts", "2")
    assert run(*words, "--out", "whole")[0] == 0
    from ellzero import training

    pressed = []

    def press(settings, *, progress=None, watch=None, stop=None, checkpoint=None, experiment=None):
        def tell(what, done, total):
            if done == 2 and not pressed:
                pressed.append(done)
                os.kill(os.getpid(), signal.SIGINT)

        return train(
            settings, experiment=experiment, checkpoint=checkpoint, progress=tell, stop=stop
        )

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", press)
        code, out, err = run(*words, "--out", "cut")
    assert code == 130
    assert "Interrupted: the best found so far was kept.\n" in err
    assert err.endswith("hint: Go on with `ellzero train --resume cut`.\n")
    assert "nonzeros" in out
    assert Path("cut/model.safetensors").is_file()
    assert Path("cut/report.html").is_file()
    assert (
        rows("cut")[:2]
        == [
            {**r, "selected": s["selected"]}
            for r, s in zip(rows("whole"), rows("cut"), strict=False)
        ][:2]
    )
    refuse(
        run,
        "The run in 'cut' was made with `seed=0`, got `3`.",
        "Leave the option out, or start anew in another folder.",
        *("train", "--resume", "cut", "--seed", "3"),
    )
    assert run("train", "--resume", "cut", "--starts", "2")[0] == 0
    assert rows("cut") == rows("whole")
    refuse(
        run,
        "There is nothing to resume in 'cut'.",
        "Give the folder of a run that was cut short, or leave `--resume` out.",
        *("train", "--resume", "cut"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_was_stopped_can_be_resumed(run, number):
    words = ("train", "wine", "--n-nonzero", "1:6", "--starts", "2")
    command = [sys.executable, "-m", "ellzero.cli", *words, "--out", "cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(list(Path().glob("cut.partial/checkpoint/step*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGINT:
        assert process.returncode == 130, err
        assert "Interrupted: the best found so far was kept." in err
        assert Path("cut/report.html").is_file()
    else:
        assert not Path("cut").exists()
    assert run("train", "--resume", "cut")[0] == 0
    assert run(*words, "--out", "whole")[0] == 0
    assert rows("cut") == rows("whole")


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal_only():
    import pty

    command = [sys.executable, "-m", "ellzero.cli", "train", "--n-nonzero", "1:3", "--starts", "2"]
    main, other = pty.openpty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=other, env={**os.environ, "TERM": "xterm"}
    )
    os.close(other)
    seen = b""
    try:
        while chunk := os.read(main, 4096):
            seen += chunk
    except OSError:
        pass
    out, _ = process.communicate()
    os.close(main)
    assert process.returncode == 0
    assert b"nonzeros" in seen
    assert b"\x1b" not in out
