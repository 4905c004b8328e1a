"""How far a run is: a bar, a table with a row for each epoch, or lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ellzero.report.words import clean, number, percent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# Epochs that the table shows at once: the last ones of a long training.
SHOWN_EPOCHS = 12
_HEADS = ("epoch", "step", "loss", "rate", "nonzeros", "density", "test", "left")

Tell = Callable[[str, int, int | None], None]


def duration(seconds: float) -> str:
    """Return a time as people say it.

    Examples
    --------
    >>> [duration(s) for s in (0.2, 48.0, 200.0, 9000.0)]
    ['1 s', '48 s', '3 min 20 s', '2 h 30 min']
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def epoch_line(moment: Any) -> str | None:
    """Return a line at the end of an epoch, else None.

    Parameters
    ----------
    moment : Moment
        Where the training stands.

    Returns
    -------
    str or None
        One line without color.
    """
    if not moment.is_epoch:
        return None
    parts = [
        f"{clean(moment.what)}: epoch {moment.epoch}/{moment.n_epochs}",
        f"step {number(moment.step)}",
        f"loss {number(moment.loss)}",
        f"rate {moment.lr:.1e}",
        f"{number(moment.n_nonzero)} of {number(moment.n_entries)} nonzero",
    ]
    if moment.accuracy_test is not None:
        parts.append(f"test {percent(moment.accuracy_test)}")
    if moment.epoch < moment.n_epochs:
        parts.append(f"{duration(moment.seconds_left)} left")
    return ", ".join(parts)


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[Tell]:
    """Show a bar while the block runs; yields what to call."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=None)

        def tell(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell


class EpochTable:
    """A live table: a row for each epoch, and what is done now.

    Parameters
    ----------
    console : rich.console.Console
        Where to draw; the last state stays there.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._what = "reading the data"
        self._training = ""
        self._rows: list[tuple[str, ...]] = []
        self._now: tuple[str, ...] | None = None
        self._live = Live(console=console, auto_refresh=False, get_renderable=self.render)

    def __enter__(self) -> EpochTable:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._what = ""
        self._live.refresh()
        self._live.__exit__(kind, error, trace)

    def tell(self, what: str, done: int, total: int | None) -> None:
        """Say what is done now."""
        self._what = clean(what)
        self._live.refresh()

    def watch(self, moment: Any) -> None:
        """Show where the training of a network stands."""
        if clean(moment.what) != self._training:
            self._training = clean(moment.what)
            self._rows = []
        row = _cells(moment)
        if moment.is_epoch:
            self._rows.append(row)
            self._now = None
        else:
            self._now = row
        self._live.refresh()

    def render(self) -> RenderableType:
        """Return the table as it is now."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self._training:
            return Text(self._what)
        table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title=Text(self._training),
            title_justify="left",
            title_style="bold",
        )
        for head in _HEADS:
            table.add_column(head, justify="right", no_wrap=True)
        for row in self._rows[-SHOWN_EPOCHS:]:
            table.add_row(*row)
        if self._now is not None:
            table.add_row(*self._now, style="bold")
        return Group(table, Text(self._what, style="dim")) if self._what else table


def _cells(moment: Any) -> tuple[str, ...]:
    density = moment.n_nonzero / moment.n_entries if moment.n_entries else 0.0
    left = moment.seconds_left if moment.step < moment.n_steps else None
    return (
        f"{moment.epoch}/{moment.n_epochs}",
        number(moment.step),
        number(moment.loss),
        f"{moment.lr:.1e}",
        number(moment.n_nonzero),
        percent(density),
        "" if moment.accuracy_test is None else percent(moment.accuracy_test),
        "" if left is None else duration(left),
    )
