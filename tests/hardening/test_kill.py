"""Commands killed at random moments, interrupted, on a full disk, and two at once."""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from ellzero.storage import MARKER

FAST, SLOW = 3, 50
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]


def _start(*words, before=None):
    """Run a command in a child that has everything imported already; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    try:
        out = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        from ellzero.cli import main

        sys.argv = ["ellzero", *words]
        main()
    except SystemExit as error:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def _wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(*words, before=None):
    code = _wait(_start(*words, before=before))
    return code, Path("said.txt").read_text()


def _train(hidden=False):
    import ellzero.training  # noqa: F401

    same = ["train", "iris", "--out", "run"]
    budget = [*same, "--time-limit", "5", "--starts", "2"]
    if hidden:
        budget = [*same, "--hidden", "4", "--epochs", "4", "--structure", "rows"]
    return [*budget, "--n-nonzero", "2"], [*budget, "--n-nonzero", "2,3"]


def _network():
    return _train(hidden=True)


def _fit():
    rows = "\n".join(f"{i % 7},{i * i % 5},{i % 11},{i % 7 + 0.1 * (i % 3)}" for i in range(60))
    Path("t.csv").write_text(f"a,b,c,y\n{rows}\n")
    same = ["fit", "t.csv", "--target", "y", "--out", "run", "--cv", "2"]
    return [*same, "--n-nonzero", "1"], [*same, "--n-nonzero", "1:3"]


def _denoise():
    same = ["denoise", "--out", "run", "--smoothness"]
    return [*same, "1", "--n-nonzero", "50"], [*same, "2", "--n-nonzero", "80"]


def _compress():
    transformers = pytest.importorskip("transformers")
    import torch

    Path("vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained("model")
    transformers.BertTokenizer("vocab.txt", model_max_length=16).save_pretrained("model")
    Path("text.txt").write_text("the cat sat on the mat\nthe mat\n" * 10)
    same = ["compress", "model", "--calibration", "text.txt", "--out", "run", "--density"]
    return [*same, "0.5"], [*same, "0.25"]


COMMANDS = {
    "train": _train, "train-network": _network, "fit": _fit, "denoise": _denoise,
    "compress": _compress,
}  # fmt: skip


def _state():
    """Return what tells results apart, of a folder that is whole: names, title and settings."""
    run = Path("run")
    if not run.exists():
        return None
    names = sorted(
        p.relative_to(run).as_posix()
        for p in run.rglob("*")
        if p.is_file() and "checkpoint" not in p.parts and p.name not in (MARKER, ".unfinished")
    )
    summary = json.loads((run / "summary.json").read_text())
    (run / "report.html").read_text().index("</html>")
    told = {k: summary.get(k) for k in ("headline", "settings", "n_nonzero")}
    return names, told


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _results(name):
    """Return both commands, the states of their results, and how long the second one takes."""
    from typer.testing import CliRunner

    from ellzero.cli import app

    old, new = COMMANDS[name]()
    # In this process, so that the children find everything imported and compiled.
    done = CliRunner().invoke(app, old)
    assert done.exit_code == 0, done.output
    first = _state()
    shutil.copytree("run", "old")
    began = time.monotonic()
    code, said = _run(*new, "--force")
    assert code == 0, said
    seconds = time.monotonic() - began
    second = _state()
    assert first != second
    return new, first, second, seconds


def _put_old():
    for left in Path().glob("*run*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for left in Path().glob(".run*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.copytree("old", "run")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("times", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_command_leaves_the_old_or_the_new_result(place, name, times):
    new, first, second, seconds = _results(name)
    rng = random.Random(0)
    seen = {"old": 0, "new": 0, "resumed": 0}
    for k in range(times):
        _put_old()
        child = _start(*new, "--force")
        # Most kills fall into the end, where files are written.
        time.sleep(seconds * rng.uniform(*[(0.0, 0.4), (0.5, 0.9), (0.8, 1.1)][k % 3]))
        os.kill(child, signal.SIGKILL)
        code = _wait(child)
        assert code in (0, -9), Path("said.txt").read_text()
        state = _state()
        assert state in (first, second), (k, state)
        seen["old" if state == first else "new"] += 1
        if Path("run.partial/checkpoint/settings.json").exists() and name.startswith("train"):
            code, said = _run("train", "--resume", "run")
            seen["resumed"] += 1
        else:
            code, said = _run(*new, "--force")
        assert code == 0, said
        assert _state() == second
    assert seen["old"] or times == FAST, seen


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_sentence_and_keeps_the_old_result(place, name):
    """A limit on the size of a file stands for the disk; it strikes in the middle of writing."""
    new, first, _second, _ = _results(name)
    for limit in (0, 700, 3000):
        _put_old()

        reading, writing = os.pipe()

        def to_nowhere(limit=limit, writing=writing):
            # The words go to a pipe, which has no size.
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        child = _start(*new, "--force", before=to_nowhere)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        code = _wait(child)
        assert code == 2, said
        last = [line for line in said.splitlines() if line.startswith(("error: ", "hint: "))]
        assert len(last) == 2, said
        assert "file too large" in last[0].lower(), said
        assert "Traceback" not in said
        assert _state() == first
        assert not Path("run.partial").exists() or Path("run.partial/checkpoint").exists()


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_ends_with_130(place, name):
    new, first, second, seconds = _results(name)
    codes = []
    for share in (0.0, 0.3, 0.6, 0.8):
        _put_old()
        child = _start(*new, "--force")
        time.sleep(0.02 + seconds * share)
        os.kill(child, signal.SIGINT)
        code = _wait(child)
        said = Path("said.txt").read_text()
        codes.append(code)
        assert "Traceback" not in said, said
        assert code in (0, 130), said
        if code == 130:
            # Before the command begins and after its last word nobody is there to speak.
            lines = [line for line in said.splitlines() if "nterrupted" in line]
            assert len(lines) <= 1, said
        # Of a run in training the best found so far is the result, which can be resumed.
        partial = Path("run/checkpoint").exists()
        assert _state() in (first, second) or partial
    assert 130 in codes


@pytest.mark.parametrize("name", COMMANDS)
def test_of_two_commands_one_wins_whole(place, name):
    new, _first, second, _ = _results(name)
    for _ in range(2):
        _put_old()
        one = _start(*new, "--force")
        two = _start(*new, "--force")
        codes = sorted([_wait(one), _wait(two)])
        assert codes in ([0, 0], [0, 2])
        assert _state() == second
        assert not list(Path().glob(".run.lock"))
