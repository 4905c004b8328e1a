"""Tables and numbers as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*\[\]|~<>{}$])|(?<!\w)(_)|(_)(?!\w)")


def escape(text: object) -> str:
    """Return text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\g<0>", str(text)).replace("\n", " ")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[bool] | None = None,
    bold: Iterable[tuple[int, int]] = (),
) -> str:
    """Return a table; `bold` has the rows and columns of cells to stress."""
    rows = [list(row) for row in rows]
    bold = set(bold)
    if numbers is None:
        numbers = [i > 0 for i in range(len(columns))]
    lines = [
        "| " + " | ".join(escape(c) or " " for c in columns) + " |",
        "| " + " | ".join("---:" if number else ":---" for number in numbers) + " |",
    ]
    for i, row in enumerate(rows):
        cells = [escape(cell) or " " for cell in row]
        cells = [
            f"**{c.strip()}**" if (i, j) in bold and c.strip() else c for j, c in enumerate(cells)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seconds(value: float | None) -> str:
    """Return a time with two or three digits and its unit."""
    if value is None:
        return ""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{digits(value * 1e9)} ns"


def digits(value: float) -> str:
    """Return a number with three significant digits, without an exponent where it is short."""
    if value != value:
        return "not a number"
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1e5:
        text = f"{value:.3g}"
        return f"{float(text):,.0f}" if "e" in text or abs(value) >= 1000 else text
    return f"{value:.2e}"
