"""Exceptions and warnings; each carries one sentence and a hint."""

import difflib
from collections.abc import Iterable


def _printable(text: str) -> str:
    """Return text on one line; names in files may hold breaks and codes that steer terminals."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class EllzeroError(Exception):
    """Base of every error raised on purpose by ellzero.

    Parameters
    ----------
    message : str
        One sentence: what was wrong and what was given.
    hint : str or None, default=None
        One sentence: what to do.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = message = _printable(message)
        self.hint = hint = None if hint is None else _printable(hint)
        super().__init__(message if hint is None else f"{message}\nhint: {hint}")


class InvalidParameterError(EllzeroError, ValueError):
    """A parameter has a wrong type or a wrong value."""


class IncompatibleError(EllzeroError, TypeError):
    """Two things that are right alone do not fit together."""


class NonFiniteError(EllzeroError, ArithmeticError):
    """A NaN or an infinity appeared where a finite number is required."""


class NotConvergedError(EllzeroError, RuntimeError):
    """A solver stopped before it converged."""


class DataError(EllzeroError, ValueError):
    """Data cannot be read or cannot be used."""


class SeparableError(EllzeroError, ValueError):
    """A loss has no minimizer, because it falls for ever along some features.

    Parameters
    ----------
    message, hint : str
        As for every error.
    features : list of int
        The features.
    """

    def __init__(
        self, message: str, hint: str | None = None, features: Iterable[int] = ()
    ) -> None:
        super().__init__(message, hint)
        self.features = list(features)


class ModelFileError(EllzeroError, ValueError):
    """A saved model is damaged, of another version, or not a model."""


class DeprecatedWarning(FutureWarning):
    """Something goes away; the message names its replacement."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
