"""Small pictures of text for a terminal: a grid of weights, a curve, bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ellzero.report.words import number

if TYPE_CHECKING:
    from rich.table import Table as Grid
    from rich.text import Text

# Eighths of a cell, from below and from the left.
RISING = " ▁▂▃▄▅▆▇█"
GROWING = " ▏▎▍▌▋▊▉█"


def weight_grid(
    weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]
) -> Grid:
    """Return a matrix of weights as colored cells; a dot stands for an exact zero.

    Parameters
    ----------
    weights : sequence of sequence of float
        The matrix, row by row.
    rows, columns : sequence of str
        Names of its rows and columns.

    Returns
    -------
    rich.table.Table
        Positive weights in green, negative ones in magenta, bold where at least half the largest.
    """
    from rich.table import Table
    from rich.text import Text

    largest = max((abs(w) for row in weights for w in row), default=0.0)
    grid = Table(box=None, pad_edge=False)
    grid.add_column("")
    for name in columns:
        grid.add_column(name, justify="right")
    for name, row in zip(rows, weights, strict=True):
        cells = []
        for weight in row:
            if weight == 0.0:
                cells.append(Text("·", style="dim"))
                continue
            strong = "bold " if abs(weight) >= largest / 2 else ""
            cells.append(Text(f"{weight:.2f}", style=strong + ("green", "magenta")[weight < 0]))
        grid.add_row(name, *cells)
    return grid


def curve(values: Sequence[float], *, width: int = 60, height: int = 6) -> Text:
    """Return a curve of positive values, both axes logarithmic, as rising columns.

    Parameters
    ----------
    values : sequence of float
        Values at steps 0, 1, 2, ...; at least one. Every column shows one step.
    width, height : int
        Size in cells.

    Returns
    -------
    rich.text.Text
        The picture, `height` lines, with the largest and smallest value and the last step.
    """
    from rich.text import Text

    last = len(values) - 1
    width = min(width, len(values))
    steps = [round(math.expm1(math.log1p(last) * i / max(width - 1, 1))) for i in range(width)]
    shown = [math.log(values[step]) for step in steps]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    eighths = [1 + round((8 * height - 1) * (value - low) / span) for value in shown]
    lines = []
    for level in reversed(range(height)):
        cells = "".join(RISING[min(max(e - 8 * level, 0), 8)] for e in eighths)
        label = {height - 1: number(max(values)), 0: number(min(values))}.get(level, "")
        lines.append(f"{label:>8} {cells}")
    lines.append(f"{'step':>8} 0" + f" {last}".rjust(width - 1))
    return Text("\n".join(lines))


def bars(values: Mapping[str, float], *, low: float, width: int = 40) -> Grid:
    """Return a bar for each value, its name before and its number behind.

    Parameters
    ----------
    values : mapping of str to float
        Values of at least `low`.
    low : float
        Where the bars begin.
    width : int
        Cells of the longest bar.

    Returns
    -------
    rich.table.Table
        One line a value, in the order given.
    """
    from rich.table import Table
    from rich.text import Text

    largest = max(values.values())
    span = (largest - low) or 1.0
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column()
    grid.add_column()
    for name, value in values.items():
        eighths = round(8 * width * (value - low) / span)
        bar = "█" * (eighths // 8) + GROWING[eighths % 8].strip()
        grid.add_row(name, Text(f"{bar} {number(value)}"))
    return grid
