"""A plain table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; long cells are folded, nothing is cut.

    Parameters
    ----------
    title : str
        Line above the table.
    columns : sequence of str
        Column names.
    rows : sequence of sequence of str
        Cells, as text.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    # A title of the table itself would be folded to its width.
    console.print(Text(title), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
