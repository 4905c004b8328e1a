"""When a search ends early: a limit of time, a callback, the keyboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ellzero.core.result import Status

Callback = Callable[[int, Mapping[str, Any]], bool | None]


class StopSearchError(Exception):
    """Ends a search early; the best subsets so far are returned."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.value)
        self.status = status


class Stopper:
    """Count steps, report them, and end the search when asked.

    Parameters
    ----------
    time_limit : float or None
        Seconds.
    callback : callable or None
        Called as ``callback(step, info)``; a true answer ends the search.
    """

    def __init__(self, time_limit: float | None, callback: Callback | None) -> None:
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.callback = callback
        self.steps = 0

    def report(self, phase: str, size: int, explained: float) -> None:
        """Count one step; raise when the search has to end.

        Parameters
        ----------
        phase : {"path", "kicks"}
            What is done.
        size : int
            Number of features.
        explained : float
            Share of the energy of the targets that they explain.
        """
        self.steps += 1
        if self.callback is not None and self.callback(
            self.steps, {"phase": phase, "size": size, "explained": explained}
        ):
            raise StopSearchError(Status.INTERRUPTED)
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise StopSearchError(Status.TIME_LIMIT)
