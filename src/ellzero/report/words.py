"""Numbers and names as people read them; the same in every form of a report."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

DASH = "–"
_NUMBER = re.compile(r"-?[\d.,]+(e[+-]?\d+)?")


def _number_or_none(value: Any) -> float | int | None:
    if isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, float | int):
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def finite(value: Any) -> float | None:
    """Return `value` as a finite float, or None."""
    number = _number_or_none(value)
    return None if number is None or not math.isfinite(number) else float(number)


def number(value: Any, digits: int = 4) -> str:
    """Return a number with `digits` significant digits; a dash for None and NaN.

    Examples
    --------
    >>> [number(v) for v in (0.308241, 5, 20.0, 8.1e-07, None, float("nan"))]
    ['0.3082', '5', '20.00', '8.1e-07', '–', '–']
    """
    x = _number_or_none(value)
    if x is None:
        return DASH
    if isinstance(x, int):
        return f"{x:,}" if abs(x) >= 10_000 else str(x)
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    if x == 0.0:
        return "0"
    if not 1e-4 <= abs(x) < 1e6:
        return f"{x:.1e}"
    return f"{x:#.{digits}g}".rstrip(".")


def whole(value: Any) -> Any:
    """Return a float without a fraction as an int, so that counts are shown as counts.

    Examples
    --------
    >>> [whole(v) for v in (5.0, 0.5, None)]
    [5, 0.5, None]
    """
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def exact(value: Any, digits: int = 12) -> str:
    """Return a number as it was given, for settings; a dash for None and NaN.

    Examples
    --------
    >>> [exact(v) for v in (0.01, 1e-06, 10000, 1.4573)]
    ['0.01', '1e-06', '10,000', '1.4573']
    """
    x = _number_or_none(value)
    if not isinstance(x, float) or not math.isfinite(x):
        return number(x)
    return f"{x:.{digits}g}"


def typeset(text: str) -> str:
    """Return text with a minus sign when all of it is a number."""
    return text.replace("-", "−") if _NUMBER.fullmatch(text) else text


def percent(value: Any) -> str:
    """Return a fraction as a percentage with one decimal; a dash for None and NaN."""
    x = finite(value)
    return DASH if x is None else f"{100.0 * x:.1f}%"


def yes_no(value: Any) -> str:
    """Return "yes", "no" or a dash."""
    return DASH if value is None else ("yes" if value else "no")


def clean(value: Any) -> str:
    """Return text on one line without control characters."""
    kept = (
        " " if c in "\n\t\r" else c
        for c in str(value)
        if c in "\n\t\r" or unicodedata.category(c) not in ("Cc", "Cf", "Cs")
    )
    return "".join(kept)


def anything(value: Any) -> str:
    """Return any JSON value in words."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return yes_no(value)
    if isinstance(value, int | float):
        return exact(value)
    if isinstance(value, list | tuple):
        return ", ".join(anything(v) for v in value) or DASH
    if isinstance(value, dict):
        return ", ".join(f"{clean(k)}: {anything(v)}" for k, v in value.items()) or DASH
    return clean(value)


def counted(count: int, noun: str) -> str:
    """Return "1 start" or "5 starts"."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"
