"""The command line, from the commands themselves."""

from __future__ import annotations

from pathlib import Path

import typer.main

from ellzero.cli import app

from markdown_tables import escape, table  # isort: skip


def commands():
    """Return the commands by name."""
    return typer.main.get_command(app).commands


def page() -> str:
    """Return a section for each command."""
    parts = []
    for name, command in commands().items():
        parts.append(f"## ellzero {name}\n\n{escape(' '.join((command.help or '').split()))}\n")
        rows = []
        for param in command.params:
            words = [*param.opts, *param.secondary_opts]
            label = " / ".join(words) if words[0].startswith("-") else words[0].upper()
            text = getattr(param, "help", None) or ""
            default = param.default
            if not isinstance(default, (str, int, float)) or default is False:
                default = ""
            rows.append([label, " ".join(text.split()), default])
        parts.append(table(["option", "meaning", "default"], rows, numbers=[False] * 3))
    return "\n".join(parts)


def write(out: Path) -> None:
    """Write the page."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "command_line.inc", page()
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, encoding="utf-8")
