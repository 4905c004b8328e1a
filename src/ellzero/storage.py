"""Files that are whole or absent: atomic writes, output folders, checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ellzero.errors import DataError, InvalidParameterError, ModelFileError

if TYPE_CHECKING:
    from torch import Tensor

MARKER = ".ellzero"
"""File that says a folder was written by `OutputFolder`."""

_UNFINISHED = ".unfinished"
_CHECKPOINT = "checkpoint"
_FLOAT = "__float__"
# Nothing that is written comes near; deeper values would end in the limit of recursion.
_DEEPEST = 100


def to_json(value: Any, where: str = "value") -> str:
    """Return canonical ASCII JSON: sorted keys, no spaces, non-finite numbers tagged.

    Parameters
    ----------
    value : object
        Dictionaries with string keys, lists, tuples, strings, numbers, booleans, None.
    where : str, default="value"
        What `value` is, for the message.

    Returns
    -------
    str
        Text that `from_json` turns back; tuples come back as lists.

    Raises
    ------
    InvalidParameterError
        If a part of `value` has no JSON form.
    """
    try:
        plain = _plain(value, where)
        return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError as error:
        raise InvalidParameterError(
            f"`{where}` must be a plain value that JSON can hold, got one nested too deeply.",
            "Keep lists and dictionaries a few levels deep.",
        ) from error


def from_json(text: str | bytes) -> Any:
    """Return what `to_json` wrote; raise ValueError for any other text."""
    try:
        value = json.loads(text, object_hook=_untag)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for whole in level
            if isinstance(whole, (dict, list))
            for part in (whole.values() if isinstance(whole, dict) else whole)
        ]
        if not level:
            return value
    raise ValueError("nested too deeply")


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidParameterError(
                    f"`{where}` must have strings as keys, got {key!r}.", "Name every entry."
                )
        return {key: _plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    raise InvalidParameterError(
        f"`{where}` must be a plain value that JSON can hold, got {type(value).__name__}.",
        "Convert it to numbers, strings, lists or dictionaries.",
    )


def _untag(value: dict[str, Any]) -> Any:
    if set(value) == {_FLOAT} and value[_FLOAT] in ("inf", "-inf", "nan"):
        return float(value[_FLOAT])
    return value


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Parameters
    ----------
    path : str or path
        Where. An existing file is replaced; a symbolic link is followed.
    data : bytes or str
        Content; text is encoded as UTF-8.

    Raises
    ------
    InvalidParameterError
        If the file cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from ellzero.storage import write_atomic
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(pathlib.Path(folder, "a.txt"), "text")
    ...     sorted(p.name for p in pathlib.Path(folder).iterdir())
    ['a.txt']
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        target = Path(os.path.realpath(path))
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except (OSError, ValueError) as error:
        raise InvalidParameterError(
            f"Cannot write '{path}': {_reason(error)}.", "Choose another path."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def read_model_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a model file.

    Parameters
    ----------
    path : str or path
        The file.

    Returns
    -------
    bytes
        Its content, unchecked.

    Raises
    ------
    ModelFileError
        If the file is missing, is not a file, or cannot be read.
    """
    try:
        if stat.S_ISCHR(os.stat(path).st_mode):  # such as /dev/zero, which has no end
            raise IsADirectoryError
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"No model file '{path}'.", "Check the path.") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise ModelFileError(
            f"'{path}' is not a file.", "Give the path of the model file itself."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelFileError(
            f"'{path}' cannot be read: {reason.lower()}.", "Check the path and its permissions."
        ) from error


def check_output(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Raise when a folder cannot become the output of a run, before the work starts.

    Parameters
    ----------
    path : str or path
        Folder that will hold the result. Nothing is created.
    force : bool, default=False
        Whether an earlier result may be replaced. A folder that was not written by ellzero, or
        that holds the working directory, is never replaced.

    Returns
    -------
    Path
        The absolute path, symbolic links resolved.

    Raises
    ------
    InvalidParameterError
        If `path` is a file, holds something that may not be replaced, or cannot be written.
    """
    try:
        folder = Path(os.path.realpath(path))
        if folder.exists() and not folder.is_dir():
            raise InvalidParameterError(
                f"The output folder '{path}' is a file.", "Choose the name of a folder."
            )
        if folder.is_dir() and any(folder.iterdir()):
            if not force:
                raise InvalidParameterError(
                    f"The output folder '{path}' exists and is not empty.",
                    "Choose another folder, or pass `--force` to replace it.",
                )
            if not (folder / MARKER).is_file():
                raise InvalidParameterError(
                    f"The output folder '{path}' holds files that ellzero did not write.",
                    "Choose another folder; `--force` replaces earlier results only.",
                )
        if Path.cwd().is_relative_to(folder):
            raise InvalidParameterError(
                f"The output folder '{path}' holds the working directory.",
                "Choose a new folder inside it.",
            )
        # Only an attempt tells: permission bits say nothing about root or read-only mounts.
        base = next(parent for parent in folder.parents if parent.exists())
        probe = base / f".{folder.name}.{secrets.token_hex(4)}.tmp"
        probe.mkdir()
        probe.rmdir()
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidParameterError):
            raise
        raise InvalidParameterError(
            f"Cannot write the output folder '{path}': {_reason(error)}.",
            "Choose a folder that you can write.",
        ) from error
    return folder


class OutputFolder:
    """Result folder that appears whole at the end, or not at all.

    The result is built in a sibling folder, ``NAME.partial``, and takes the place of ``NAME`` when
    the block ends. An earlier result stays as it was until then. When the block raises, the
    partial folder is removed, unless it holds a checkpoint.

    Parameters
    ----------
    path : str or path
        Folder of the result.
    force : bool, default=False
        Whether an earlier result, or the checkpoint of an unfinished run, may be replaced.
    resume : bool, default=False
        Whether to go on from the checkpoint of `path`: that of an unfinished run, or one kept in
        the result by `keep_checkpoint`. The result in `path` is then replaced without `force`.

    Raises
    ------
    InvalidParameterError
        On entry, if `path` cannot become the output (see `check_output`), if an unfinished run
        would be lost, if there is nothing to resume, or if another run writes there now.

    Notes
    -----
    On Linux an earlier result and the new one change places in one move, so that whoever looks,
    and whenever the run is killed, sees one of them whole. Elsewhere, and on file systems that
    cannot do that, the exchange is two renames; a crash between them leaves the earlier result as
    ``NAME.old``, which the next run puts back before it begins. A lock on the file ``.NAME.lock``
    keeps a second run out; the system drops it when a run is killed. Ctrl-C has no effect during
    the exchange.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from ellzero.storage import OutputFolder
    >>> place = tempfile.TemporaryDirectory()
    >>> with OutputFolder(pathlib.Path(place.name, "run")) as output:
    ...     output.write("report.txt", "text")
    >>> pathlib.Path(place.name, "run", "report.txt").read_text()
    'text'
    >>> place.cleanup()
    """

    def __init__(
        self, path: str | os.PathLike[str], *, force: bool = False, resume: bool = False
    ) -> None:
        self.path = path
        self.force = force
        self.resume = resume
        self._keep = False
        self._lock: int | None = None
        self._made: list[Path] = []
        self._target = Path()
        self._partial = Path()

    @property
    def folder(self) -> Path:
        """Folder in which the result is being built."""
        return self._partial

    def __enter__(self) -> OutputFolder:
        self._put_back()
        target = check_output(self.path, force=self.force or self.resume)
        self._target = target
        self._partial = target.with_name(target.name + ".partial")
        try:
            self._made = [p for p in target.parents if not p.exists()]
            target.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            # Another run may have ended since.
            check_output(self.path, force=self.force or self.resume)
            self._prepare(target)
        except OSError as error:
            self._give_up()
            raise InvalidParameterError(
                f"Cannot write the output folder '{self.path}': {_reason(error)}.",
                "Choose a folder that you can write.",
            ) from error
        except BaseException:
            self._give_up()
            raise
        return self

    def _give_up(self) -> None:
        """Leave nothing of a run that fails, but what it could go on with."""
        if self._lock is not None and not (self._partial / _CHECKPOINT).is_dir():
            shutil.rmtree(self._partial, ignore_errors=True)
        self._release_lock()

    def _put_back(self) -> None:
        """Put an earlier result back where a crash between two renames has left it aside."""
        target = Path(os.path.realpath(self.path))
        old = target.with_name(target.name + ".old")
        with contextlib.suppress(OSError, ValueError):
            if (old / MARKER).is_file() and not target.exists():
                os.rename(old, target)

    def _prepare(self, target: Path) -> None:
        """Empty the partial folder, or keep in it what the run goes on with."""
        # A folder without the mark is an earlier result that a crash has left there.
        marked = (self._partial / _UNFINISHED).is_file()
        unfinished = marked and (self._partial / _CHECKPOINT).is_dir()
        kept = (target / _CHECKPOINT).is_dir()
        if self.resume and not unfinished and not kept:
            raise InvalidParameterError(
                f"There is nothing to resume in '{self.path}'.",
                "Leave `--resume` out to start anew.",
            )
        if unfinished and not self.resume and not self.force:
            raise InvalidParameterError(
                f"An unfinished run of '{self.path}' is in '{self._partial.name}' beside it.",
                "Go on with it by `--resume`, or pass `--force` to drop it.",
            )
        self._partial.mkdir(exist_ok=True)
        self._clear(keep=_CHECKPOINT if self.resume and unfinished else None)
        (self._partial / _UNFINISHED).touch()
        if self.resume and not unfinished:
            shutil.copytree(target / _CHECKPOINT, self._partial / _CHECKPOINT)
        (self._partial / MARKER).write_text("Written by ellzero; replaced by --force.\n")

    def write(self, name: str, data: bytes | str) -> None:
        """Write one file of the result; `name` may hold subfolders."""
        write_atomic(self.place(name), data)

    def place(self, *names: str) -> Path:
        """Return where a file of the result belongs, its folder made."""
        target = self._partial.joinpath(*names)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidParameterError(
                f"Cannot write '{'/'.join(names)}': {_reason(error)}.", "Choose another name."
            ) from error
        return target

    def checkpoint(self, settings: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of this run; a finished run drops it."""
        return Checkpoint(self._partial / _CHECKPOINT, settings)

    def keep_checkpoint(self) -> None:
        """Keep the checkpoint in the result, so that a run cut short can go on."""
        self._keep = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with _undisturbed():
                    self._swap()
        finally:
            if kind is None:
                self._release_lock()
            else:
                self._give_up()

    def _swap(self) -> None:
        try:
            if not self._target.exists():
                os.rename(self._partial, self._target)
            else:
                # Something else may have been put there while the run went on.
                check_output(self._target, force=self.force or self.resume)
                if _exchange(self._partial, self._target):
                    left = self._partial
                else:
                    left = self._target.with_name(self._target.name + ".old")
                    shutil.rmtree(left, ignore_errors=True)
                    os.rename(self._target, left)
                    try:
                        os.rename(self._partial, self._target)
                    except OSError:
                        os.rename(left, self._target)
                        raise
                shutil.rmtree(left, ignore_errors=True)
            # Only now: a run killed before this line can go on.
            (self._target / _UNFINISHED).unlink(missing_ok=True)
            if not self._keep:
                shutil.rmtree(self._target / _CHECKPOINT, ignore_errors=True)
            _sync_folder(self._target.parent)
        except OSError as error:
            raise InvalidParameterError(
                f"Cannot put the result in place at '{self.path}': {_reason(error)}.",
                f"The result is complete in '{self._partial}'; move it by hand.",
            ) from error

    def _clear(self, keep: str | None) -> None:
        for entry in self._partial.iterdir():
            if entry.name == keep:
                # What a run was writing when it was killed.
                for part in entry.glob(".*.tmp"):
                    part.unlink()
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    @property
    def _lock_path(self) -> Path:
        return self._target.with_name(f".{self._target.name}.lock")

    def _take_lock(self) -> None:
        """Lock the file beside the folder; the run before may remove it meanwhile."""
        path = self._lock_path
        while True:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                import fcntl
            except ImportError:  # pragma: no cover (Windows: no advisory lock)
                return
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._lock)  # not removed: it is the lock of the other run
                self._lock = None
                raise InvalidParameterError(
                    f"Another run writes to '{self.path}' now.",
                    "Wait for it, or choose another folder.",
                ) from error
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(self._lock), os.stat(path)):
                    return
            os.close(self._lock)

    def _release_lock(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None
        # Folders above that were made for nothing: those with something in them stay.
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one move; return whether the system could."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return int(rename(here, os.fsencode(one), here, os.fsencode(other), exchange)) == 0


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave Ctrl-C without effect for a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step of a long run.

    Parameters
    ----------
    data : dict
        Plain values.
    tensors : mapping of str to Tensor
        Named tensors, on the CPU.
    """

    data: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Checkpoint:
    """Finished steps of a long run, kept on disk so that the run can go on.

    Parameters
    ----------
    folder : str or path
        Where the steps are kept; made by the first `save`.
    settings : mapping of str to plain values, default={}
        What the run was asked for. Steps of other settings are refused.

    Notes
    -----
    A step is one JSON file, which names its safetensors file and that file's hash. The JSON file
    is replaced in one move, so a step is the old one or the new one; a damaged step is left out.

    Examples
    --------
    >>> import tempfile
    >>> from ellzero.storage import Checkpoint
    >>> place = tempfile.TemporaryDirectory()
    >>> Checkpoint(place.name, {"seed": 0}).save("s=1", {"value": 0.5})
    >>> Checkpoint(place.name, {"seed": 0}).load()["s=1"].data
    {'value': 0.5}
    >>> place.cleanup()
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._text = to_json(settings or {}, "settings")
        self._settings: dict[str, Any] = from_json(self._text)
        self._checked = False
        self._next = 0

    def save(
        self,
        step_name: str,
        data: Mapping[str, Any],
        tensors: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Keep a finished step; a step of the same name is replaced.

        Parameters
        ----------
        step_name : str
            Name of the step.
        data : mapping of str to plain values
            What JSON can hold.
        tensors : mapping of str to Tensor or None, default=None
            Named tensors.

        Raises
        ------
        InvalidParameterError
            If the folder holds steps of other settings, or cannot be written.
        """
        if not self._checked:
            self.load()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidParameterError(
                f"Cannot write the checkpoint folder '{self.folder}': {_reason(error)}.",
                "Choose a folder that you can write.",
            ) from error
        if not (self.folder / "settings.json").exists():
            write_atomic(self.folder / "settings.json", self._text)
        stem = _stem(step_name)
        content: dict[str, Any] = {"step": step_name, "index": self._next, "data": dict(data)}
        if tensors:
            from safetensors.torch import save as pack

            blob = pack({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
            digest = hashlib.sha256(blob).hexdigest()
            content["tensors"] = {"file": f"{stem}.{digest[:16]}.safetensors", "sha256": digest}
            content["names"] = list(tensors)
        to_json(content["data"], "data")
        text = to_json(content)
        if tensors:
            write_atomic(self.folder / content["tensors"]["file"], blob)
        checksum = hashlib.sha256(text.encode()).hexdigest()
        write_atomic(self.folder / f"{stem}.json", f"{checksum}\n{text}\n")
        self._next += 1
        keep = content["tensors"]["file"] if tensors else None
        for old in self.folder.glob(f"{stem}.*.safetensors"):
            if old.name != keep:
                old.unlink(missing_ok=True)

    def load(self) -> dict[str, Step]:
        """Return the finished steps, in the order in which they were saved.

        Returns
        -------
        dict of str to Step
            Empty when nothing was saved. A damaged step is left out: it has to be done again.

        Raises
        ------
        InvalidParameterError
            If the steps were made with other settings.
        DataError
            If the settings of the steps cannot be read.
        """
        self._check_settings()
        self._checked = True
        found: list[tuple[int, str, Step]] = []
        for path in self.folder.glob("*.json"):
            if path.name == "settings.json":
                continue
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                found.append(self._read(path))
        found.sort(key=lambda entry: entry[0])
        self._next = max([self._next, *(index + 1 for index, _, _ in found)])
        return {name: step for _, name, step in found}

    def _read(self, path: Path) -> tuple[int, str, Step]:
        checksum, text = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            raise ValueError("damaged")
        content = from_json(text)
        tensors: dict[str, Tensor] = {}
        if "tensors" in content:
            from safetensors.torch import load as unpack

            blob = (self.folder / content["tensors"]["file"]).read_bytes()
            if hashlib.sha256(blob).hexdigest() != content["tensors"]["sha256"]:
                raise ValueError("damaged")
            read = unpack(blob)
            tensors = {name: read[name] for name in content["names"]}
        return content["index"], content["step"], Step(content["data"], tensors)

    def _check_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            return
        try:
            stored = from_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"The checkpoint in '{self.folder}' is damaged: its settings cannot be read.",
                "Start anew.",
            ) from error
        if not isinstance(stored, dict):
            stored = {}
        absent = object()
        for key in [*stored, *self._settings]:
            old, new = stored.get(key, absent), self._settings.get(key, absent)
            # Through text: a NaN differs from itself.
            if old is absent or new is absent or to_json(old) != to_json(new):
                made = f"without `{key}`" if old is absent else f"with `{key}={old!r}`"
                given = "nothing" if new is absent else f"`{key}={new!r}`"
                raise InvalidParameterError(
                    f"The checkpoint in '{self.folder}' was made {made}, got {given}.",
                    "Resume with the same settings, or start anew.",
                )


def _stem(step_name: str) -> str:
    """Return a file name that differs for different step names."""
    short = re.sub(r"[^A-Za-z0-9_=-]+", "_", step_name)[:60]
    digest = hashlib.sha256(step_name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"step-{short}-{digest}"


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, FileExistsError):  # of mkdir: a file is where a folder is needed
        return "not a directory"
    text = getattr(error, "strerror", None) or str(error)
    return text[:1].lower() + text[1:]
