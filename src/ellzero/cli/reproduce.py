"""`ellzero reproduce`."""

from __future__ import annotations

import contextlib
import json
from typing import Annotated

import typer  # noqa: TID253

from ellzero.cli.console import (
    command_line,
    finite,
    interruptible,
    print_json,
    progress,
    say,
)
from ellzero.cli.options import Force, Json


def reproduce(
    name: Annotated[str | None, typer.Argument(help="Experiment; none lists them.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A smaller run: fewer starts and budgets.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    out: Annotated[str | None, typer.Option(help="Folder for the report and the JSON.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Run a paper's experiment and print its figures beside ours."""
    from ellzero.papers import EXPERIMENTS, find_experiment

    if name is None:
        rows = [{"name": e.name, "title": e.title, "paper": e.paper} for e in EXPERIMENTS]
        if as_json:
            print_json(rows)
            return
        from ellzero.report import print_table

        print_table("Experiments", ["name", "title", "paper"], [list(r.values()) for r in rows])
        typer.echo("Run one with `ellzero reproduce NAME`.")
        return
    from pathlib import Path

    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output
    from ellzero.validation import check_seed

    experiment = find_experiment(name)
    check_seed(seed)
    if out is not None:
        check_output(out, force=force)
    with interruptible(), contextlib.ExitStack() as stack:
        output = None if out is None else stack.enter_context(OutputFolder(out, force=force))
        with progress(as_json) as shown:
            summary = experiment.run(quick=quick, seed=seed, progress=shown.tell)
        summary["command"] = command_line()
        if output is not None:
            output.write("report.html", to_html(summary))
            output.write("summary.json", json.dumps(finite(summary), indent=2, allow_nan=False))
    if out is not None:
        say(f"Report: {Path(out) / 'report.html'}")
    if as_json:
        print_json(finite(summary))
    else:
        print_summary(summary)
