"""What every command prints, and how it is interrupted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import typer  # noqa: TID253

if TYPE_CHECKING:
    from ellzero.training import Moment, Progress, Watch

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_STOPPED = 130  # 128 and the number of SIGINT, as shells have it
EXIT_CLAIM = 4


def say(text: str) -> None:
    """Print to stderr; stdout carries only what was asked for."""
    typer.echo(text, err=True)


class Shown(NamedTuple):
    """Where a run tells how far it is; None where nothing is shown."""

    tell: Progress | None = None
    watch: Watch | None = None


@contextlib.contextmanager
def progress(quiet: bool, *, epochs: bool = False) -> Iterator[Shown]:
    """Show on stderr how far a run is; nothing when `quiet`.

    On a terminal this is a bar, or with `epochs` a table with a row for each epoch. Elsewhere, and
    where color is not wanted, it is a line for each epoch.
    """
    if quiet:
        yield Shown()
        return
    terminal = sys.stderr.isatty()
    if epochs and (not terminal or os.environ.get("NO_COLOR")):
        from ellzero.report.progress import epoch_line

        def watch(moment: Moment) -> None:
            line = epoch_line(moment)
            if line is not None:
                say(line)

        yield Shown(watch=watch)
        return
    if not terminal:
        yield Shown()
        return
    from rich.console import Console

    from ellzero.report.progress import EpochTable, progress_bar

    console = Console(stderr=True)
    if epochs:
        with EpochTable(console) as table:
            yield Shown(table.tell, table.watch)
        return
    with progress_bar(console) as tell:
        yield Shown(tell)


class Interrupts:
    """Ctrl-C: the first one is remembered, to end the run between two steps; the next raises."""

    def __init__(self) -> None:
        self._asked = False

    def asked(self) -> bool:
        """Return whether the run should end."""
        return self._asked

    def handle(self, number: int, frame: Any) -> None:
        """Handle SIGINT."""
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        say("Stopping after this step; Ctrl-C again stops at once.")


@contextlib.contextmanager
def interruptible(folder: str | None = None) -> Iterator[Interrupts]:
    """Turn Ctrl-C into a sentence and the exit code; gently where `folder` can be resumed."""
    from pathlib import Path

    interrupts = Interrupts()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupts.handle) if folder and in_main else None
    try:
        yield interrupts
    except KeyboardInterrupt:
        if folder and Path(f"{folder}.partial", "checkpoint").is_dir():
            say("Interrupted: what was done is kept.")
            say(f"hint: Go on with `ellzero train --resume {shlex.quote(folder)}`.")
        else:
            say("Interrupted before there was a result; no result was written.")
        raise typer.Exit(EXIT_STOPPED) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def warnings_kept() -> Iterator[list[str]]:
    """Collect what the library logs, each sentence once, so that it does not break the bar."""
    import logging

    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in kept:
                kept.append(record.getMessage())

    handler, log = Keep(logging.WARNING), logging.getLogger("ellzero")
    log.addHandler(handler)
    try:
        yield kept
    finally:
        log.removeHandler(handler)


def command_line() -> str:
    """Return the command as it was typed."""
    return shlex.join(["ellzero", *sys.argv[1:]])


def print_json(value: Any) -> None:
    """Print a value on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def finite(value: Any) -> Any:
    """Return plain values with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
