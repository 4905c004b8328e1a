"""Words of the messages about data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def is_number(text: str) -> bool:
    """Return whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def plural(count: int, one: str, many: str) -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else many}"


def short(value: Any) -> str:
    """Return a value in quotes, cut when it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


def quoted(names: Sequence[str], limit: int = 10) -> str:
    """Return names in quotes, the first of them when there are many."""
    shown = ", ".join(short(n) for n in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def listed(names: Sequence[str], one: str, many: str) -> str:
    """Return the number of names with its noun, and the names."""
    return f"{plural(len(names), one, many)}: {quoted(names)}"


def counted(counts: dict[str, int], limit: int = 10) -> str:
    """Return names with their counts."""
    shown = ", ".join(f"{short(c)} ({k})" for c, k in list(counts.items())[:limit])
    rest = len(counts) - limit
    return shown if rest <= 0 else f"{shown} and {plural(rest, 'more column', 'more columns')}"


def first_line(error: Exception) -> str:
    """Return the first line of what an exception says."""
    text = (str(error).splitlines() or ["unknown reason"])[0].rstrip(". ")
    return text if len(text) <= 120 else text[:117] + "..."
