import contextlib
import json
import math
import os
import re

import pytest
import torch

from ellzero import storage
from ellzero.errors import DataError, InvalidParameterError
from ellzero.storage import (
    MARKER,
    Checkpoint,
    OutputFolder,
    check_output,
    from_json,
    to_json,
    write_atomic,
)


def refuse(action, message, hint):
    with pytest.raises(InvalidParameterError) as caught:
        action()
    assert (caught.value.message, caught.value.hint) == (message, hint)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture
def earlier(tmp_path):
    """Return a folder that holds an earlier result."""
    with OutputFolder(tmp_path / "run") as output:
        output.write("model", b"old")
    return tmp_path / "run"


# JSON -----------------------------------------------------------------------------------------


def test_json_round_trip_keeps_every_number():
    value = {"b": [1, 2.5, True, None, "é\ud800"], "a": {"x": math.inf, "y": -math.inf}, "z": 0.1}
    text = to_json(value)
    assert from_json(text) == value
    assert text.isascii()
    assert math.isnan(from_json(to_json([math.nan]))[0])
    # Strict JSON: a reader that knows no NaN accepts it.
    json.loads(text, parse_constant=pytest.fail)
    assert to_json({"b": 1, "a": 2}) == '{"a":2,"b":1}'


def test_json_refuses_what_it_cannot_hold():
    refuse(
        lambda: to_json({"a": [1, torch.ones(2)]}, "settings"),
        "`settings.a[1]` must be a plain value that JSON can hold, got Tensor.",
        "Convert it to numbers, strings, lists or dictionaries.",
    )
    refuse(
        lambda: to_json({1: 2}, "data"),
        "`data` must have strings as keys, got 1.",
        "Name every entry.",
    )
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json("[" * 200_000)


# Atomic files ---------------------------------------------------------------------------------


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    write_atomic(path, b"\0\1")
    assert path.read_bytes() == b"\0\1"
    assert tree(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o444 == 0o444 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_write_atomic_follows_links(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "x"


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuse(
        lambda: write_atomic(path, "new"),
        f"Cannot write '{path}': no space left on device.",
        "Choose another path.",
    )
    assert path.read_text() == "old"
    assert tree(tmp_path) == ["a.txt"]


def test_write_atomic_says_why_not(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "file" / "below", "not a directory"),
        (tmp_path / "gone" / "a", "no such file or directory"),
        (tmp_path, "is a directory"),
        ("a\0b", "embedded null byte"),
    ):
        refuse(
            lambda path=path: write_atomic(path, "x"),
            f"Cannot write '{path}': {reason}.".replace("\0", "\\x00"),
            "Choose another path.",
        )
    assert tree(tmp_path) == ["file"]


# Output folders -------------------------------------------------------------------------------


def test_check_output_accepts_new_and_empty_folders(tmp_path):
    new = tmp_path / "a" / "b" / "run"
    assert check_output(new) == new
    assert tree(tmp_path) == []
    (tmp_path / "empty").mkdir()
    assert check_output(tmp_path / "empty") == tmp_path / "empty"


def test_check_output_protects_what_is_there(tmp_path, earlier, monkeypatch):
    refuse(
        lambda: check_output(earlier),
        f"The output folder '{earlier}' exists and is not empty.",
        "Choose another folder, or pass `--force` to replace it.",
    )
    assert check_output(earlier, force=True) == earlier
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    refuse(
        lambda: check_output(tmp_path / "photos", force=True),
        f"The output folder '{tmp_path}/photos' holds files that ellzero did not write.",
        "Choose another folder; `--force` replaces earlier results only.",
    )
    monkeypatch.chdir(earlier)
    refuse(
        lambda: check_output(".", force=True),
        "The output folder '.' holds the working directory.",
        "Choose a new folder inside it.",
    )


def test_check_output_refuses_files_and_unwritable_places(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    refuse(
        lambda: check_output(file, force=True),
        f"The output folder '{file}' is a file.",
        "Choose the name of a folder.",
    )
    for path, reason in (
        (file / "run", "not a directory"),
        (file / "deep" / "run", "not a directory"),
        ("/proc/run", "no such file or directory"),
        (tmp_path / ("x" * 300), "file name too long"),
        ("a\0b", "embedded null byte"),
    ):
        refuse(
            lambda path=path: check_output(path),
            f"Cannot write the output folder '{path}': {reason}.".replace("\0", "\\x00"),
            "Choose a folder that you can write.",
        )
    assert file.read_text() == "kept"


def test_output_appears_at_the_end_only(tmp_path):
    with OutputFolder(tmp_path / "new" / "run") as output:
        output.write("report.html", "<p>")
        output.write("deep/er/model", b"\1")
        assert not (tmp_path / "new" / "run").exists()
    assert tree(tmp_path / "new") == [
        "run",
        f"run/{MARKER}",
        "run/deep",
        "run/deep/er",
        "run/deep/er/model",
        "run/report.html",
    ]


def test_old_result_stays_until_the_new_one_is_whole(tmp_path, earlier):
    with OutputFolder(earlier, force=True) as output:
        output.write("report", "new")
        assert (earlier / "model").read_bytes() == b"old"
    assert tree(tmp_path) == ["run", f"run/{MARKER}", "run/report"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_result_and_nothing_else(tmp_path, earlier, error):
    before = tree(tmp_path)

    def run():
        with OutputFolder(earlier, force=True) as output:
            output.write("report", "half")
            raise error

    with pytest.raises(error):
        run()
    assert tree(tmp_path) == before
    assert (earlier / "model").read_bytes() == b"old"


def test_failed_exchange_puts_the_old_result_back(tmp_path, earlier, monkeypatch):
    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    rename = os.rename

    def fail(source, target):
        if str(source).endswith(".partial"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)

    def run():
        with OutputFolder(earlier, force=True) as output:
            output.write("report", "new")

    refuse(
        run,
        f"Cannot put the result in place at '{earlier}': input/output error.",
        f"The result is complete in '{earlier}.partial'; move it by hand.",
    )
    assert (earlier / "model").read_bytes() == b"old"
    assert (tmp_path / "run.partial" / "report").read_text() == "new"


def test_result_that_appeared_meanwhile_is_not_replaced(tmp_path):
    def run():
        with OutputFolder(tmp_path / "run"):
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "mine").write_text("")

    refuse(
        run,
        f"The output folder '{tmp_path}/run' exists and is not empty.",
        "Choose another folder, or pass `--force` to replace it.",
    )
    assert tree(tmp_path / "run") == ["mine"]


def test_two_runs_do_not_mix(tmp_path):
    with OutputFolder(tmp_path / "run") as first:
        first.write("a", "1")
        refuse(
            lambda: OutputFolder(tmp_path / "run", force=True).__enter__(),
            f"Another run writes to '{tmp_path}/run' now.",
            "Wait for it, or choose another folder.",
        )
    assert (tmp_path / "run" / "a").read_text() == "1"
    assert tree(tmp_path) == ["run", f"run/{MARKER}", "run/a"]


def test_leftovers_of_a_killed_run_are_dropped(tmp_path):
    (tmp_path / "run.partial" / "deep").mkdir(parents=True)
    (tmp_path / "run.partial" / "half").write_text("")
    with OutputFolder(tmp_path / "run") as output:
        output.write("a", "1")
    assert tree(tmp_path) == ["run", f"run/{MARKER}", "run/a"]


def stop_after(path, name, **kwargs):
    with contextlib.suppress(KeyboardInterrupt), OutputFolder(path, **kwargs) as output:
        output.checkpoint({"seed": 0}).save(name, {"value": 1.5})
        raise KeyboardInterrupt


def test_checkpoint_of_an_unfinished_run_is_kept_and_resumed(tmp_path):
    path = tmp_path / "run"
    stop_after(path, "s=1")
    refuse(
        lambda: OutputFolder(path).__enter__(),
        f"An unfinished run of '{path}' is in 'run.partial' beside it.",
        "Go on with it by `--resume`, or pass `--force` to drop it.",
    )
    with OutputFolder(path, resume=True) as output:
        steps = output.checkpoint({"seed": 0}).load()
        assert {name: step.data for name, step in steps.items()} == {"s=1": {"value": 1.5}}
        output.write("report", "whole")
    assert tree(tmp_path) == ["run", f"run/{MARKER}", "run/report"]


def test_force_drops_an_unfinished_run(tmp_path):
    stop_after(tmp_path / "run", "s=1")
    with OutputFolder(tmp_path / "run", force=True) as output:
        assert output.checkpoint({"seed": 1}).load() == {}


def test_kept_checkpoint_is_resumed_from_the_result(tmp_path):
    path = tmp_path / "run"
    with OutputFolder(path) as output:
        output.checkpoint({"seed": 0}).save("s=1", {"value": 1.5})
        output.write("report", "cut short")
        output.keep_checkpoint()
    with OutputFolder(path, resume=True) as output:
        assert list(output.checkpoint({"seed": 0}).load()) == ["s=1"]
        output.write("report", "whole")
    assert tree(path) == [MARKER, "report"]
    refuse(
        lambda: OutputFolder(path, resume=True).__enter__(),
        f"There is nothing to resume in '{path}'.",
        "Leave `--resume` out to start anew.",
    )


# Checkpoints ----------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    settings = {"seed": 0, "ridge": 0.1, "budgets": (1, 2), "limit": math.nan}
    saved = Checkpoint(tmp_path / "c", settings)
    assert saved.load() == {}
    tensors = {
        "z": torch.arange(6.0).reshape(2, 3).T,
        "a": torch.tensor([True, False]),
        "e": torch.zeros(0, 2, dtype=torch.int64),
    }
    saved.save("s=2", {"value": math.inf, "status": "converged"}, tensors)
    saved.save("s=10", {"value": 0.5})
    saved.save("s/1 ü", {"value": 0.25})
    steps = Checkpoint(tmp_path / "c", settings).load()
    assert list(steps) == ["s=2", "s=10", "s/1 ü"]
    assert steps["s=2"].data == {"value": math.inf, "status": "converged"}
    assert list(steps["s=2"].tensors) == ["z", "a", "e"]
    for name, tensor in tensors.items():
        assert torch.equal(steps["s=2"].tensors[name], tensor)
        assert steps["s=2"].tensors[name].dtype == tensor.dtype
    assert dict(steps["s=10"].tensors) == {}


def test_step_is_replaced_and_the_order_goes_on(tmp_path):
    first = Checkpoint(tmp_path)
    first.save("a", {"n": 1}, {"t": torch.ones(1)})
    first.save("b", {"n": 2})
    second = Checkpoint(tmp_path)
    second.save("a", {"n": 3}, {"t": torch.zeros(1)})
    steps = Checkpoint(tmp_path).load()
    assert [(name, step.data["n"]) for name, step in steps.items()] == [("b", 2), ("a", 3)]
    assert steps["a"].tensors["t"].item() == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_torn_step_is_left_out_wherever_it_is_cut(tmp_path, suffix):
    saved = Checkpoint(tmp_path)
    saved.save("a", {"n": 1})
    saved.save("b", {"n": 2}, {"t": torch.ones(3)})
    (path,) = tmp_path.glob(f"step-b*.{suffix}")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        assert list(Checkpoint(tmp_path).load()) == ["a"]
    path.write_bytes(whole[:-5] + b"\xff" + whole[-4:])
    assert list(Checkpoint(tmp_path).load()) == ["a"]
    path.unlink()
    again = Checkpoint(tmp_path)
    again.save("b", {"n": 3})
    assert {k: v.data["n"] for k, v in again.load().items()} == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1, "ridge": 0.1}, "with `seed=0`, got `seed=1`"),
        ({"seed": 0}, "with `ridge=0.1`, got nothing"),
        ({"seed": 0, "ridge": 0.1, "starts": 5}, "without `starts`, got `starts=5`"),
    ],
)
def test_checkpoint_of_other_settings_is_refused(tmp_path, other, message):
    Checkpoint(tmp_path, {"seed": 0, "ridge": 0.1}).save("a", {"n": 1})
    for action in (lambda c: c.load(), lambda c: c.save("a", {"n": 2})):
        refuse(
            lambda action=action: action(Checkpoint(tmp_path, other)),
            f"The checkpoint in '{tmp_path}' was made {message}.",
            "Resume with the same settings, or start anew.",
        )
    assert Checkpoint(tmp_path, {"ridge": 0.1, "seed": 0}).load()["a"].data == {"n": 1}


def test_damaged_settings_are_said(tmp_path):
    Checkpoint(tmp_path, {"seed": 0}).save("a", {"n": 1})
    (tmp_path / "settings.json").write_bytes(b"\xff{")
    message = f"The checkpoint in '{tmp_path}' is damaged: its settings cannot be read."
    with pytest.raises(DataError, match=f"^{re.escape(message)}") as caught:
        Checkpoint(tmp_path, {"seed": 0}).load()
    assert caught.value.hint == "Start anew."


def test_checkpoint_says_what_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "c"
    refuse(
        lambda: Checkpoint(folder).save("a", {}),
        f"Cannot write the checkpoint folder '{folder}': not a directory.",
        "Choose a folder that you can write.",
    )
    refuse(
        lambda: Checkpoint(tmp_path / "c").save("a", {"t": torch.ones(1)}),
        "`data.t` must be a plain value that JSON can hold, got Tensor.",
        "Convert it to numbers, strings, lists or dictionaries.",
    )


def test_random_files_in_a_checkpoint_are_left_out(tmp_path):
    Checkpoint(tmp_path).save("a", {"n": 1})
    generator = torch.Generator().manual_seed(0)
    for i in range(100):
        size = int(torch.randint(0, 80, (), generator=generator))
        data = torch.randint(0, 256, (size,), generator=generator).tolist()
        (tmp_path / f"step-{i}.json").write_bytes(bytes(data))
    assert list(Checkpoint(tmp_path).load()) == ["a"]
