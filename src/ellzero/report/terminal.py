"""The report on a terminal: one table, the chosen model, what is proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ellzero.report.schema import check
from ellzero.report.sections import (
    FEATURES,
    data_table,
    headline,
    layer_table,
    passed,
    path_table,
    proven,
    support_entries,
)
from ellzero.report.view import Table
from ellzero.report.words import clean, counted, number, percent, whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MAX_ENTRIES = 20


def summary_line(summary: Mapping[str, Any]) -> str:
    """Return one line: what was found and how sure we are.

    Parameters
    ----------
    summary : mapping
        The summary, see `ellzero.report.schema.Summary`. All keys are optional.

    Returns
    -------
    str
        The `headline` of the summary, or one made from the chosen row and the certificate.

    Examples
    --------
    >>> from ellzero.report import summary_line
    >>> summary_line({
    ...     "path": [{"n_nonzero": 5, "value": 0.30824}],
    ...     "dense": {"n_parameters": 15},
    ...     "certificate": {"claim": "optimal", "gap": 8.1e-07},
    ... })
    '5 of 15 parameters, train loss 0.3082, proven globally optimal (gap 8.1e-07)'
    """
    return headline(check(summary))


def _table(title: str = "") -> RichTable:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    return Grid(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the report on a terminal.

    The answer comes first; then the table of budgets, the weights of the chosen model, and the
    checks of its certificate.

    Parameters
    ----------
    summary : mapping
        The summary, see `ellzero.report.schema.Summary`. All keys are optional.
    console : rich.console.Console or None, default=None
        Where to print. None means standard output; the environment variable `NO_COLOR` is obeyed.

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, or its `schema_version` is not known.

    Notes
    -----
    From 80 columns on no line is broken except long names.

    Examples
    --------
    >>> from ellzero.report import print_summary
    >>> print_summary({"headline": "5 of 15 parameters"})
    5 of 15 parameters
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False)
    # Words of the user are never read as markup.
    console.print(Text(summary_line(summary), style="bold"))
    rows = [r for r in summary.get("path") or [] if isinstance(r, Mapping)]
    if rows:
        _print_path(summary, rows, console)
    entries = support_entries(summary)
    if entries:
        console.print()
        table = _table(f"Support, {counted(len(entries), 'nonzero parameter')}")
        table.add_column("parameter", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        for name, value in entries[:MAX_ENTRIES]:
            table.add_row(Text(name), number(value))
        console.print(table)
        if len(entries) > MAX_ENTRIES:
            console.print(f"and {len(entries) - MAX_ENTRIES} more", style="dim", highlight=False)
    layers = [r for r in summary.get("layers") or [] if isinstance(r, Mapping)]
    if layers:
        _print_table(layer_table(layers), console)
    for given in [summary.get("reference"), *(summary.get("tables") or [])]:
        if given:
            _print_data(given, console)
    if summary.get("certificate"):
        _print_certificate(summary["certificate"], console)


def _print_path(
    summary: Mapping[str, Any], rows: list[Mapping[str, Any]], console: Console
) -> None:
    from rich.text import Text

    view = path_table(rows)
    console.print()
    table = _table()
    if view.highlighted:
        table.add_column("", no_wrap=True)
    # On 80 columns these give way: the gap and the claim tell nearly the same.
    wide = {"Bound", "Stable to", "Hits", "CV error"} if console.width < 100 else set()
    if any(c.label == FEATURES for c in view.columns) and console.width < 140:
        wide |= {"Bound", "CV error"}
    kept = [j for j, c in enumerate(view.columns) if c.label not in wide]
    for j in kept:
        column = view.columns[j]
        table.add_column(
            Text(column.label.lower()),
            justify="right" if column.kind == "number" else "left",
            no_wrap=True,
        )
    # The list of features takes what the numbers leave.
    others = [j for j in kept if view.columns[j].label != FEATURES]
    room = console.width - sum(_widest(view, j) + 3 for j in others) - 4
    for i, row in enumerate(view.rows):
        cells = [Text(row[j] if j in others else _shortened(row[j], room)) for j in kept]
        mark = [Text(">" if i in view.highlighted else "")] if view.highlighted else []
        table.add_row(*mark, *cells, style="bold" if i in view.highlighted else "")
    console.print(table)
    dense = summary.get("dense") or {}
    if dense.get("value") is not None:
        parts = [f"loss {number(dense.get('value'))}"]
        parts.extend(
            f"{key} {percent(dense[f'accuracy_{key}'])}"
            for key in ("train", "test")
            if dense.get(f"accuracy_{key}") is not None
        )
        console.print(Text(f"dense: {', '.join(parts)}", style="dim"))
    estimates = [
        f"{number(e.get('value'))} ({clean(e.get('method', ''))}, {clean(e.get('kind', ''))})"
        for e in summary.get("smoothness") or []
    ]
    if estimates:
        console.print(Text(f"L_2s of the chosen model: {'; '.join(estimates)}", style="dim"))


def _widest(view: Table, j: int) -> int:
    """Return the width of the widest cell of a column."""
    return max(len(text) for text in (view.columns[j].label, *(row[j] for row in view.rows)))


def _shortened(names: str, room: int) -> str:
    """Return the first names of a list that fit, and how many more there are."""
    parts = names.split(", ")
    shown = len(parts)
    while shown > 1 and len(_some(parts, shown)) > room:
        shown -= 1
    text = _some(parts, shown)
    return text if len(text) <= max(room, 8) else text[: max(room, 8) - 1] + "…"


def _some(parts: list[str], shown: int) -> str:
    more = len(parts) - shown
    return ", ".join(parts[:shown]) + (f" +{more}" if more else "")


def _print_data(given: Mapping[str, Any], console: Console) -> None:
    """Print a table of figures, such as those of a paper beside ours."""
    _print_table(data_table(given), console)


def _print_table(view: Table, console: Console) -> None:
    from rich.text import Text

    console.print()
    table = _table(view.caption)
    for column in view.columns:
        right = column.kind == "number"
        table.add_column(Text(column.label), justify="right" if right else "left", overflow="fold")
    for row in view.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if view.note:
        console.print(Text(view.note, style="dim"))


def _print_certificate(certificate: Mapping[str, Any], console: Console) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(f"Certificate: {proven(certificate)}", style="bold"))
    checks = certificate.get("checks") or []
    if checks:
        table = _table()
        table.add_column("check", overflow="fold")
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        table.add_column("bound", justify="right", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        for c in checks:
            good = bool(c.get("passed"))
            table.add_row(
                Text(clean(c.get("name", ""))),
                number(whole(c.get("value"))),
                "<=",
                number(whole(c.get("bound"))),
                Text(passed(c.get("passed")), style="green" if good else "red"),
            )
        console.print(table)
    for sentence in certificate.get("assumptions") or []:
        console.print(Text(f"- {clean(sentence)}", style="dim"))
