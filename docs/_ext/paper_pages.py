"""What stands on the page of a paper: our numbers, from the committed summary of one run."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import ellzero.report as report_package
from ellzero.papers import EXPERIMENTS, Experiment
from ellzero.report.sections import build
from ellzero.report.view import Bullets, Code, Facts, Figure, Paragraph, Table

from markdown_tables import escape, table  # isort: skip

DOCS = Path(__file__).parents[1]
RESULTS = DOCS / "papers" / "results"


def figure_style() -> str:
    """Return the rules of the report for its pictures, for use inside of another page."""
    css = (Path(report_package.__file__).parent / "templates" / "report.css").read_text("utf-8")
    rules = re.findall(r"((?:\.\w+ )?svg[^{}@]*)\{([^{}]*)\}", css)
    out = []
    for selectors, body in rules:
        if "display:block" in body:
            continue
        inside = ",".join(f".paper-figure {s.strip()}" for s in selectors.split(","))
        out.append(f"{inside}{{{body}}}")
    return "<style>" + "".join(out) + "</style>"


def _table(block: Table) -> str:
    body = table(
        [column.label for column in block.columns],
        block.rows,
        numbers=[column.kind == "number" for column in block.columns],
        bold=[(i, j) for i in block.highlighted for j in range(len(block.columns))],
    )
    note = f"\n{escape(block.note)}\n" if block.note else ""
    return body + note


def _block(block: object, open_tables: bool = False) -> str:
    match block:
        case Table():
            if not open_tables and (len(block.rows) > 14 or block.folded):
                title = escape(block.caption) or "Table"
                return (
                    f"::::{{dropdown}} {title} ({len(block.rows)} rows)\n\n{_table(block)}\n::::\n"
                )
            caption = f"**{escape(block.caption)}**\n\n" if block.caption else ""
            return caption + _table(block)
        case Figure():
            picture = re.sub(r"\n\s*\n", "\n", block.wide)
            note = f"\n{escape(block.note)}\n" if block.note else ""
            return (
                f"**{escape(block.title)}**\n\n```{{raw}} html\n"
                f'<div class="paper-figure" role="group">{picture}</div>\n```\n{note}'
            )
        case Paragraph():
            return escape(block.text) + "\n"
        case Bullets():
            items = "\n".join(f"- {escape(item)}" for item in block.items)
            return f"**{escape(block.heading)}**\n\n{items}\n"
        case Facts():
            return "\n".join(f"- {escape(k)}: {escape(v)}" for k, v in block.items) + "\n"
        case Code():
            return f"```text\n{block.text}\n```\n"
    return ""


def fragment(summary: dict) -> str:
    """Return our numbers as Markdown: the headline, the comparison, figures, tables."""
    shown = {k: v for k, v in summary.items() if k not in ("command", "settings")}
    parts = [f"> {escape(summary['headline'])}\n", "```{raw} html\n" + figure_style() + "\n```\n"]
    for section in build(shown).sections:
        blocks = [
            text
            for block in section.blocks
            if (text := _block(block, section.key == "reference")).strip()
        ]
        if blocks and section.key not in ("reproduce", "about"):
            parts += [f"### {escape(section.title)}\n", *blocks]
    settings = ", ".join(
        f"{escape(k)} {escape(v)}"
        for k, v in summary["settings"].items()
        if k not in ("paper", "papers") and not k.startswith("seconds")
    )
    parts.append(f"\nSettings: {settings}.\n")
    return "\n".join(parts)


def numbers(name: str) -> str:
    """Return our numbers of an experiment, or what makes them."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"No run is kept here yet; `ellzero reproduce {name}` shows the numbers.\n"
    summary = json.loads(path.read_text("utf-8"))
    return (
        f"These numbers come from one run of `{summary['command']}`, kept in "
        f"`docs/papers/results/{name}.json`.\n\n{fragment(summary)}"
    )


def plain_page(experiment: Experiment) -> str:
    """Return a page for an experiment that nobody wrote one for, from its module."""
    doc = inspect.getdoc(importlib.import_module(experiment.module)) or ""
    words = escape(doc.split("References")[0]).replace("``", "`")
    return (
        f"# {escape(experiment.title)}\n\n{escape(experiment.paper)}\n\n{words}\n\n"
        f"```sh\nellzero reproduce {experiment.name} --out {experiment.name}\n```\n\n"
        f"## Our numbers\n\n{numbers(experiment.name)}"
    )


def write(out: Path) -> None:
    """Write the numbers of every experiment, the pages that are missing, and the list of pages."""
    folder = out / "papers"
    folder.mkdir(parents=True, exist_ok=True)
    wanted, names = {}, []
    for experiment in EXPERIMENTS:
        wanted[folder / f"{experiment.name}.inc"] = numbers(experiment.name)
        if (DOCS / "papers" / f"{experiment.name}.md").exists():
            names.append(experiment.name)
        else:
            wanted[folder / f"{experiment.name}.md"] = plain_page(experiment)
            names.append(f"/generated/papers/{experiment.name}")
    wanted[out / "papers.inc"] = "```{toctree}\n" + "\n".join(names) + "\n```\n"
    for path, text in wanted.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.iterdir():
        if path not in wanted:
            path.unlink()
