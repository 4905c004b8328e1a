"""`ellzero train --convex`."""

from __future__ import annotations

import json
import warnings
from typing import Any

import typer  # noqa: TID253

from ellzero.cli.console import (
    EXIT_CLAIM,
    command_line,
    finite,
    interruptible,
    print_json,
    say,
    warnings_kept,
)
from ellzero.errors import InvalidParameterError

# Options of `ellzero train` that mean something here.
TAKEN = {
    "data", "target", "task", "activation", "convex", "penalty", "neurons", "seed", "test_size",
    "time_limit", "data_dir", "out", "force", "as_json",
}  # fmt: skip


def train_convex(context: typer.Context) -> None:
    """Train a two-layer network by convex programs, write model and report.

    Parameters
    ----------
    context : typer.Context
        Of `ellzero train`, with its options.

    Raises
    ------
    InvalidParameterError
        If an option of other models was given.
    """
    from pathlib import Path

    from ellzero.models import save_model
    from ellzero.relu.tables import (
        ConvexSettings,
        read_table,
        saved_model,
        summarize_convex,
        train_table,
    )
    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output

    options: dict[str, Any] = context.params
    given = {n for n in options if _is_given(context, n)}
    for name in sorted(given - TAKEN):
        raise InvalidParameterError(
            f"`--{name.replace('_', '-')}` cannot be given together with `--convex`.",
            "Convex networks take --activation relu or gated, --penalty, --neurons, --seed, "
            "--test-size and --time-limit.",
        )
    if "data" not in given:
        raise InvalidParameterError(
            "`--convex` needs data, got none.", "Give a name or a file, such as breast_cancer."
        )
    settings = ConvexSettings(
        data=options["data"],
        target=options["target"],
        task=options["task"],
        activation=options["activation"] if "activation" in given else "relu",
        penalty=options["penalty"],
        neurons=options["neurons"],
        seed=options["seed"],
        test_size=options["test_size"],
        time_limit=options["time_limit"],
    )
    folder = options["out"] or str(Path("ellzero-out") / f"{Path(settings.data).stem}-convex")
    check_output(folder, force=options["force"])
    table = read_table(settings, data_dir=options["data_dir"])
    as_json = options["as_json"]
    with interruptible(), warnings_kept() as warned, warnings.catch_warnings(record=True) as more:
        warnings.simplefilter("always")
        run = train_table(settings, table)
    warned += [str(one.message).replace("\nhint: ", " ") for one in more if _is_for_users(one)]
    summary = summarize_convex(run, command=command_line())
    with OutputFolder(folder, force=options["force"]) as output:
        save_model(output.folder / "model.safetensors", saved_model(run))
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(finite(summary), indent=2, allow_nan=False))
    if as_json:
        print_json(finite({**summary, "out": folder}))
    else:
        print_summary(summary)
        for line in [*summary["data"]["messages"], *warned]:
            say(f"note: {line}")
    say(f"Model:  {Path(folder) / 'model.safetensors'}")
    say(f"Report: {Path(folder) / 'report.html'}")
    if run.certificate.claim is None:
        say("The certificate of the network does not hold.")
        raise typer.Exit(EXIT_CLAIM)


def _is_for_users(one: warnings.WarningMessage) -> bool:
    """Return whether a warning tells the user something to do."""
    return issubclass(one.category, UserWarning) and "hint:" in str(one.message)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
