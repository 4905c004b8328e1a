"""Plain text tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Return a line for each row, its columns as wide as their widest cell.

    Parameters
    ----------
    rows : sequence of sequence of str
        Cells, the same number in each row; the first row is usually the head.
    left : collection of int, default=(0,)
        Columns that are aligned on the left; the others are on the right.

    Returns
    -------
    list of str
        Without blanks at the ends of lines.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
