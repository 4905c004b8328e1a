"""Networks and data that a user's Python file defines."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ellzero.datasets import Arrays, make_arrays
from ellzero.errors import InvalidParameterError, did_you_mean

_NAMES = ("x_train", "y_train", "x_test", "y_test")


def is_function(text: str) -> bool:
    """Return whether the text names a function of a Python file, as ``net.py:build``."""
    return ".py:" in text or text.endswith(".py")


def file_digest(text: str) -> str:
    """Return the SHA-256 of the file that ``FILE.py:NAME`` names."""
    return hashlib.sha256(_parts("model", text)[0].read_bytes()).hexdigest()


def load_function(option: str, text: str) -> Callable[..., Any]:
    """Return the function that ``FILE.py:NAME`` names; the file is run to find it.

    Parameters
    ----------
    option : str
        Name of the option, for messages.
    text : str
        A path, a colon and a name.

    Returns
    -------
    callable
        The function or class.

    Raises
    ------
    InvalidParameterError
        If there is no such file or name, or the file cannot be run.
    """
    path, name = _parts(option, text)
    module = _run(option, path)
    if not hasattr(module, name):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        hint = (
            f"Name a function of the file: `--model {path}:NAME`."
            if option == "model"
            else "Name the data before `--model`, or define `data()` in the file."
        )
        near = did_you_mean(name, known) if option == "model" else ""
        raise InvalidParameterError(f"'{path}' has no '{name}'.{near}", hint)
    found = getattr(module, name)
    if not callable(found):
        raise InvalidParameterError(
            f"'{name}' of '{path}' must be a function, got {type(found).__name__}.",
            "Define a function that returns it.",
        )
    return found  # type: ignore[no-any-return]


def build_module(text: str, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return the network that a user's function makes.

    Parameters
    ----------
    text : str
        ``FILE.py:NAME``. The function takes (n_inputs, n_outputs) or nothing.
    n_inputs : int
        Entries of one sample.
    n_outputs : int
        Number of classes; 1 for a regression.

    Returns
    -------
    torch.nn.Module
        The network.

    Raises
    ------
    InvalidParameterError
        If the function cannot be had, fails, or returns something else.
    """
    build = load_function("model", text)
    path, name = _parts("model", text)
    arguments = _arguments(build, path, name, n_inputs, n_outputs)
    made = _call(build, path, name, *arguments)
    hint = "Return a `torch.nn.Module` with weights to train."
    if not isinstance(made, nn.Module):
        what = made.__name__ if inspect.isclass(made) else type(made).__name__
        kind = "the class " if inspect.isclass(made) else ""
        raise InvalidParameterError(
            f"`{name}` of '{path}' must return a network, got {kind}{what}.", hint
        )
    if not any(p.requires_grad for p in made.parameters()):
        raise InvalidParameterError(
            f"The network of `{name}` in '{path}' has no parameter to train.", hint
        )
    return made


def load_data(text: str, task: str | None = None) -> Arrays:
    """Return the data that a user's function gives.

    Parameters
    ----------
    text : str
        ``FILE.py:NAME``. The function takes nothing and returns (x_train, y_train, x_test,
        y_test), or a mapping with these names.
    task : {"classification", "regression"} or None, default=None
        What the targets are; None means as their types say.

    Returns
    -------
    Arrays
        The samples, in the shape in which they were given.

    Raises
    ------
    InvalidParameterError
        If the function cannot be had, fails, or returns something else.
    DataError
        If the arrays do not fit together.
    """
    read = load_function("data", text)
    path, name = _parts("data", text)
    given = _call(read, path, name)
    if isinstance(given, tuple | list) and len(given) == len(_NAMES):
        given = dict(zip(_NAMES, given, strict=True))
    if not isinstance(given, dict) or any(n not in given for n in _NAMES):
        raise InvalidParameterError(
            f"`{name}` of '{path}' must return x_train, y_train, x_test and y_test, got "
            f"{type(given).__name__}.",
            "Return a tuple of these four arrays.",
        )
    return make_arrays(f"{path.name}:{name}", given, task=task)


def _parts(option: str, text: str) -> tuple[Path, str]:
    """Return the file and the name."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not name:
        raise InvalidParameterError(
            f"`--{option}` must be a Python file, a colon and a name, got {text!r}.",
            f"Write `--{option} net.py:build`." if option == "model" else "Write `net.py:data`.",
        )
    path = Path(file)
    if not path.is_file():
        raise InvalidParameterError(f"No Python file '{file}'.", "Check the path.")
    return path, name


def _run(option: str, path: Path) -> Any:
    """Run a Python file as a module of its own, beside which it may import others."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"_ellzero_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InvalidParameterError(
            f"'{path}' cannot be run: {_said(error, path)}.", "Correct the file."
        ) from error
    finally:
        sys.dont_write_bytecode = keep
        sys.path.remove(folder)
    return module


def _arguments(
    build: Callable[..., Any], path: Path, name: str, n_inputs: int, n_outputs: int
) -> tuple[int, ...]:
    """Return (n_inputs, n_outputs) for a function that can take them, else nothing."""
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):
        return ()
    for arguments in ((n_inputs, n_outputs), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    raise InvalidParameterError(
        f"`{name}` of '{path}' must take (n_inputs, n_outputs) or nothing, got {signature}.",
        "Give its other arguments defaults.",
    )


def _call(function: Callable[..., Any], path: Path, name: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise InvalidParameterError(
            f"`{name}` of '{path}' failed: {_said(error, path)}.", "Correct the function."
        ) from error


def _said(error: BaseException, path: Path) -> str:
    """Return the kind of an error, its first line and where in the file it arose."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    text = (str(error).splitlines() or [""])[0].rstrip(". ")
    text = text if len(text) <= 160 else text[:157] + "..."
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    mine = [f.lineno for f in traceback.extract_tb(error.__traceback__) if _same(f.filename, path)]
    return f"line {mine[-1]}: {said}" if mine else said


def _same(filename: str, path: Path) -> bool:
    return Path(filename).resolve() == path.resolve()
