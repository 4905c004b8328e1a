"""The report as Markdown: the same sections, with the tables in place of the figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ellzero.report.sections import build
from ellzero.report.view import Block, Bullets, Code, Facts, Figure, Ladder, Paragraph, Table

_SPECIAL = re.compile(r"([\\`*\[\]|~])|(?<!\w)(_)|(_)(?!\w)")


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    text = _SPECIAL.sub(r"\\\g<0>", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _line(text: str) -> str:
    """Return text for the start of a line, where more characters have a meaning."""
    return re.sub(r"^(\s*)([#+\-=]|\d+[.)])", r"\1\\\2", _escape(text))


def _table(table: Table) -> str:
    heads = [_escape(c.label) or " " for c in table.columns]
    rules = ["---:" if c.kind == "number" else ":---" for c in table.columns]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join(rules)} |"]
    for i, row in enumerate(table.rows):
        cells = [_escape(cell) for cell in row]
        if i in table.highlighted and cells:
            cells[0] = f"**{cells[0]}**"
        lines.append(f"| {' | '.join(cells)} |")
    caption = f"**{_escape(table.caption)}**\n\n" if table.caption else ""
    note = f"\n\n{_line(table.note)}" if table.note else ""
    return caption + "\n".join(lines) + note


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Figure():
            note = f"\n\n{_line(block.note)}" if block.note else ""
            return _table(block.table) + note
        case Paragraph():
            return _line(block.text)
        case Bullets():
            items = "\n".join(f"- {_line(i)}" for i in block.items)
            return f"**{_escape(block.heading)}**\n\n{items}"
        case Facts():
            return "\n".join(f"- {_line(k)}: {_escape(v)}" for k, v in block.items)
        case Code():
            fence = "`" * max(
                3, 1 + max((len(m) for m in re.findall("`+", block.text)), default=0)
            )
            return f"{fence}\n{block.text}\n{fence}"
        case Ladder():
            return "\n".join(
                f"- [{'x' if reached else ' '}] {_escape(name)}: {_escape(sentence)}"
                for name, sentence, reached in block.steps
            )


def to_markdown(summary: Mapping[str, Any]) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    summary : mapping
        The summary, see `ellzero.report.schema.Summary`. All keys are optional.

    Returns
    -------
    str
        GitHub-flavored Markdown; figures appear as their tables.

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, its `schema_version` is not known, or it asks for a figure
        of an unknown kind.

    Examples
    --------
    >>> from ellzero.report import to_markdown
    >>> print(to_markdown({"title": "Iris", "headline": "5 of 15 parameters"}))
    # Iris
    <BLANKLINE>
    5 of 15 parameters
    <BLANKLINE>
    """
    report = build(summary)
    parts = [f"# {_escape(report.title)}", _line(report.headline)]
    for section in report.sections:
        parts.append(f"## {_escape(section.title)}")
        parts.extend(_block(b) for b in section.blocks)
    return "\n\n".join(parts) + "\n"
