"""Checks of parameters at the boundary, with one format of message."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from ellzero.errors import InvalidParameterError, did_you_mean


def check_integer(
    name: str,
    value: Any,
    low: int | None = None,
    high: int | None = None,
    *,
    meaning: str = "",
    hint: str | None = None,
) -> int:
    """Return `value` as an int, or raise when it is not an integer in [low, high].

    Parameters
    ----------
    name : str
        Name of the parameter, as the user wrote it.
    value : object
        What was given. Booleans and floats are refused.
    low, high : int or None, default=None
        Limits, both allowed; None means no limit.
    meaning : str, default=""
        What the upper limit is, such as ``"the number of entries in 'coef'"``.
    hint : str or None, default=None
        What to do.

    Returns
    -------
    int
        The value.

    Raises
    ------
    InvalidParameterError
        If `value` is not an integer or lies outside the limits.
    """
    tail = f", {meaning}" if meaning else ""
    if low is not None and high is not None:
        rule = f"an integer between {low} and {high}{tail}"
    elif low is not None:
        rule = f"an integer of at least {low}{tail}"
    else:
        rule = f"an integer{tail}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameterError(f"`{name}` must be {rule}, got {value!r}.", hint)
    number = int(value)
    if (low is not None and number < low) or (high is not None and number > high):
        raise InvalidParameterError(f"`{name}` must be {rule}, got {number}.", hint)
    return number


def check_seed(seed: Any) -> int:
    """Return a seed that every generator takes, or raise.

    Parameters
    ----------
    seed : object
        What was given.

    Returns
    -------
    int
        The seed.

    Raises
    ------
    InvalidParameterError
        If `seed` is not an integer in [0, 2^32).
    """
    number = check_integer("seed", seed, 0)
    if number >= 2**32:
        raise InvalidParameterError(
            f"`seed` must be an integer below 2^32, got {number}.", "Give a smaller one."
        )
    return number


def check_real(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    hint: str | None = None,
) -> float:
    """Return `value` as a float, or raise when it is not a finite number in the range.

    Parameters
    ----------
    name : str
        Name of the parameter, as the user wrote it.
    value : object
        What was given.
    low, high : float or None, default=None
        Limits; None means no limit.
    open_low : bool, default=False
        Whether `low` itself is refused.
    hint : str or None, default=None
        What to do.

    Returns
    -------
    float
        The value.

    Raises
    ------
    InvalidParameterError
        If `value` is not a finite real number or lies outside the limits.
    """
    if low is not None and high is not None:
        rule = f"a number between {low:g} and {high:g}"
    elif low == 0 and open_low:
        rule = "positive"
    elif low is not None:
        rule = f"a number {'above' if open_low else 'of at least'} {low:g}"
    else:
        rule = "a finite number"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameterError(f"`{name}` must be {rule}, got {value!r}.", hint)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    too_low = low is not None and (number < low or (open_low and number <= low))
    if not math.isfinite(number) or too_low or (high is not None and number > high):
        raise InvalidParameterError(f"`{name}` must be {rule}, got {number:g}.", hint)
    return number


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` when it is one of `choices`, or raise and name the nearest one.

    Parameters
    ----------
    name : str
        Name of the parameter, as the user wrote it.
    value : object
        What was given.
    choices : iterable of str
        What is allowed.

    Returns
    -------
    str
        The value.

    Raises
    ------
    InvalidParameterError
        If `value` is not one of `choices`.
    """
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        near = did_you_mean(str(value), known)
        listed = ", ".join(repr(choice) for choice in known)
        raise InvalidParameterError(f"`{name}` must be one of {listed}, got {value!r}.{near}")
    return value
