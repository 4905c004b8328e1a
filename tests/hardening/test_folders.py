"""Output folders under fire: killed at every file operation, shared by several runs."""

import itertools
import os
import sys

import pytest

from ellzero import storage
from ellzero.errors import InvalidParameterError
from ellzero.storage import OutputFolder

FILES = {"a.txt", "deep/b.txt"}
# Audit events of file operations: before each of them a run is killed.
EVENTS = (
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "shutil.rmtree",
    "ctypes.dlsym",
)
_budget = None


def _kill_when_due(event, arguments):
    global _budget  # noqa: PLW0603
    if _budget is not None and event in EVENTS:
        _budget -= 1
        if _budget < 0:
            os._exit(9)


sys.addaudithook(_kill_when_due)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """A killed process loses nothing that it wrote, whether the disk has it or not."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def _write(path, text, **options):
    checkpoint = options.pop("checkpoint", False)
    with OutputFolder(path, **options) as output:
        if checkpoint:
            output.checkpoint({}).save("step", {"text": text})
        for name in sorted(FILES):
            output.write(name, text)
        if checkpoint == "kept":
            output.keep_checkpoint()


def _killed(n_operations, action):
    """Run an action in a process that is killed before so many operations; whether it was."""
    global _budget  # noqa: PLW0603
    child = os.fork()
    if child == 0:
        try:
            _budget = n_operations
            action()
            _budget = None
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def _names(folder):
    """Names in a folder; a run killed while it looks whether it can write leaves an empty one."""
    empty = [p for p in folder.glob(".run.*.tmp") if not any(p.iterdir())]
    return sorted(p.name for p in folder.iterdir() if p not in empty)


def _content(path):
    if not path.exists():
        return None
    found = {
        p.relative_to(path).as_posix(): p.read_text()
        for p in path.rglob("*.txt")
        if "checkpoint" not in p.parts
    }
    assert set(found) == FILES
    (text,) = set(found.values())
    return text


FAST = [("plain", True, True), ("kept", "kept", True), (None, False, True), ("kept", True, False)]
ALL = itertools.product((None, "plain", "kept"), (False, True, "kept"), (True, False))


@pytest.mark.parametrize(
    ("earlier", "checkpoint", "exchange"),
    [pytest.param(*way, marks=() if way in FAST else pytest.mark.slow) for way in ALL],
)
def test_a_run_killed_anywhere_leaves_the_old_or_the_new_result(
    tmp_path, monkeypatch, earlier, checkpoint, exchange
):
    if not exchange:
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    # Operations before the first file of the new result, and of a whole run, are counted.
    seen, gaps = [], 0
    for k in range(500):
        path = tmp_path / str(k) / "run"
        path.parent.mkdir()
        if earlier:
            _write(path, "old", checkpoint="kept" if earlier == "kept" else False)
        killed = _killed(k, lambda p=path: _write(p, "new", force=True, checkpoint=checkpoint))
        text = _content(path)
        assert text in ("old" if earlier else None, None, "new")
        if earlier and text is None:
            # Without an exchange in one move there is a moment in which the old result is aside.
            assert _content(path.with_name("run.old")) == "old"
            gaps += 1
        seen.append(text)
        if not killed:
            break
        if checkpoint and path.with_name("run.partial").exists():
            _go_on(path)
        else:
            _write(path, "next", force=True)
            assert _content(path) == "next"
        assert _names(path.parent) == ["run"]
        assert not [p for p in path.rglob("*") if p.name != storage.MARKER and p.name[0] == "."]
    else:
        pytest.fail("never done")
    assert seen[-1] == "new"
    assert gaps == (0 if exchange or not earlier else 1)


def _go_on(path):
    """Resume where that is offered, and see that nothing that was kept is lost."""
    try:
        with OutputFolder(path) as output:
            output.write("a.txt", "next")
            output.write("deep/b.txt", "next")
    except InvalidParameterError as error:
        said = error.message
    else:
        said = ""
    if "unfinished run" in said:
        _write(path, "next", resume=True)
        assert _content(path) == "next"
    elif said:
        assert "exists and is not empty" in said
        _write(path, "next", force=True)


def test_a_refused_run_leaves_the_lock_of_the_other(tmp_path):
    """A second run once removed the lock of the first, and let a third one in."""
    path = tmp_path / "run"
    with OutputFolder(path) as output:
        for _ in range(3):
            with pytest.raises(InvalidParameterError) as caught, OutputFolder(path, force=True):
                pass
            assert caught.value.message == f"Another run writes to '{path}' now."
            assert caught.value.hint == "Wait for it, or choose another folder."
        output.write("a.txt", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_the_lock_of_a_killed_run_is_no_obstacle(tmp_path):
    path = tmp_path / "run"
    (tmp_path / ".run.lock").touch()
    _write(path, "new")
    assert _content(path) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_refused_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(InvalidParameterError), OutputFolder(tmp_path / "run", resume=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_waits_for_the_exchange(tmp_path, monkeypatch):
    import signal

    path = tmp_path / "run"
    _write(path, "old")
    exchange = storage._exchange

    def interrupted(one, other):
        os.kill(os.getpid(), signal.SIGINT)
        return exchange(one, other)

    monkeypatch.setattr(storage, "_exchange", interrupted)
    _write(path, "new", force=True)
    assert _content(path) == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_runs_that_race_for_a_folder_leave_one_result_whole(tmp_path):
    """Eight processes write one folder at once, each as often as it is let."""
    path = tmp_path / "run"
    children = []
    for i in range(8):
        child = os.fork()
        if child == 0:
            done = 0
            for turn in range(30):
                try:
                    _write(path, f"{i}-{turn}", force=True)
                    done = 1
                except InvalidParameterError as error:
                    if "Another run writes" not in error.message:
                        os._exit(3)
                except BaseException:
                    os._exit(4)
            os._exit(0 if done else 2)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
    assert set(codes) <= {0, 2}
    assert 0 in codes
    assert _content(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]
