"""The command line: thin, and nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer  # noqa: TID253

from ellzero._version import __version__
from ellzero.errors import EllzeroError, InvalidParameterError

if TYPE_CHECKING:
    from ellzero.training import Progress

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_STOPPED = 3
EXIT_CLAIM = 4

app = typer.Typer(
    name="ellzero",
    help="Fit and train models with exactly as many nonzero parameters as asked for.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ellzero {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fit and train models with exactly as many nonzero parameters as asked for."""


def parse_budgets(text: str | None) -> tuple[int, ...] | None:
    """Return the budgets of ``5``, ``1:15`` (both ends) or ``1,2,8``.

    Raises
    ------
    InvalidParameterError
        If the text is none of these.
    """
    if text is None:
        return None
    hint = "Write one number (5), a range with both ends (1:15) or a list (1,2,8)."
    budgets: list[int] = []
    for part in text.split(","):
        ends = part.split(":")
        try:
            numbers = [int(end) for end in ends]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or len(numbers) != len(ends):
            raise InvalidParameterError(
                f"`--n-nonzero` must be whole numbers, got {text!r}.", hint
            )
        if min(numbers) < 1:
            raise InvalidParameterError(
                f"`--n-nonzero` must be at least 1, got {min(numbers)}.", hint
            )
        if numbers[-1] < numbers[0]:
            raise InvalidParameterError(
                f"`--n-nonzero` must be a rising range, got {part!r}.", hint
            )
        budgets += range(numbers[0], numbers[-1] + 1)
    return tuple(dict.fromkeys(budgets))


def parse_hidden(text: str) -> tuple[int, ...]:
    """Return the sizes of ``0`` (none) or ``300,100``.

    Raises
    ------
    InvalidParameterError
        If the text is neither.
    """
    hint = "Write 0 for one linear layer, or sizes such as 300,100."
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidParameterError(
            f"`--hidden` must be whole numbers, got {text!r}.", hint
        ) from None
    if sizes == (0,):
        return ()
    if min(sizes) < 1:
        raise InvalidParameterError(f"`--hidden` must be positive, got {text!r}.", hint)
    return sizes


def _say(text: str) -> None:
    """Print to stderr; stdout carries only what was asked for."""
    typer.echo(text, err=True)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """Show a bar on stderr for work of more than a second; nothing when it is not a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
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
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("start", total=None)

        def tell(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield tell


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into a sentence and the exit code of a run that was stopped."""
    try:
        yield
    except KeyboardInterrupt:
        _say("Interrupted before the first result; nothing was written.")
        raise typer.Exit(EXIT_STOPPED) from None


def _command_line() -> str:
    return shlex.join(["ellzero", *sys.argv[1:]])


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """Return plain values with NaN and infinities as None, which JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result.")]


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(help="iris, digits, breast_cancer, wine, or a CSV, TSV or Parquet file."),
    ] = "iris",
    target: Annotated[str | None, typer.Option(help="Column to predict, for files.")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or regression; else as the data says.")
    ] = None,
    hidden: Annotated[
        str, typer.Option(help="Sizes of hidden layers, such as 300,100; 0: one linear layer.")
    ] = "0",
    n_nonzero: Annotated[
        str | None, typer.Option(help="Budget: 5, a path 1:15, or a list 1,2,8.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Find the smallest budget with a loss this close to the dense one."),
    ] = None,
    ridge: Annotated[float, typer.Option(help="The lambda of (lambda/2)||theta||^2.")] = 0.01,
    starts: Annotated[int, typer.Option(help="Random starts for each budget.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of split, starts and initial weights.")] = 0,
    test_size: Annotated[float, typer.Option(help="Share of the rows held out.")] = 0.2,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for each budget; default 20 for a proof.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    out: Annotated[
        str | None, typer.Option(help="Folder of the result; default ellzero-out/NAME.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Folder of a run that was cut short; goes on with it.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train sparse models under a budget, certify them, write models and a report."""
    from pathlib import Path

    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, from_json
    from ellzero.training import TrainSettings, build_experiment, summarize
    from ellzero.training import train as run_training

    budgets = parse_budgets(n_nonzero)
    if budgets is not None and epsilon is not None:
        raise InvalidParameterError(
            "`--epsilon` and `--n-nonzero` cannot both be given.",
            "`--epsilon` searches for the budget that `--n-nonzero` fixes.",
        )
    settings = TrainSettings(
        data=data,
        target=target,
        task=task,
        hidden=parse_hidden(hidden),
        n_nonzero=budgets,
        epsilon=0.05 if epsilon is None else epsilon,
        search=epsilon is not None,
        ridge=ridge,
        starts=starts,
        seed=seed,
        test_size=test_size,
        device=device,
        time_limit=time_limit,
    )
    if resume is not None:
        stored = find_settings(Path(resume))
        settings = TrainSettings.from_dict(from_json(stored.read_text(encoding="utf-8")))
    folder = resume or out or str(Path("ellzero-out") / Path(settings.data).stem)
    # Everything that can be wrong with the input shows before the output folder is touched.
    table = build_experiment(settings).table
    with (
        _interruptible(),
        OutputFolder(folder, force=force, resume=resume is not None) as output,
    ):
        checkpoint = output.checkpoint(settings.to_dict())
        with _progress(as_json) as tell:
            run = run_training(settings, table=table, checkpoint=checkpoint, progress=tell)
        summary = summarize(run, command=_command_line())
        _write_models(output, run)
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(_finite(summary), indent=2, allow_nan=False))
        if run.interrupted:
            output.keep_checkpoint()
    if as_json:
        _print_json(_finite({**summary, "out": folder}))
    else:
        print_summary(summary)
    _say(f"Model:  {Path(folder) / 'model.safetensors'}")
    _say(f"Report: {Path(folder) / 'report.html'}")
    if run.interrupted:
        _say("Interrupted: the best found so far was kept.")
        _say(f"hint: Go on with `ellzero train --resume {shlex.quote(folder)}`.")
        raise typer.Exit(EXIT_STOPPED)


def find_settings(folder: Any) -> Any:
    """Return the settings file of the checkpoint that a run cut short has left.

    Raises
    ------
    InvalidParameterError
        If there is none.
    """
    partial = folder.with_name(folder.name + ".partial")
    for place in (partial, folder):
        found = place / "checkpoint" / "settings.json"
        if found.is_file():
            return found
    raise InvalidParameterError(
        f"There is nothing to resume in '{folder}'.",
        "Give the folder of a run that was cut short, or leave `--resume` out.",
    )


def _write_models(output: Any, run: Any) -> None:
    """Write the chosen model, and one file for each budget."""
    from ellzero.models import save_model
    from ellzero.training import saved_model

    for outcome in run.outcomes:
        model = saved_model(run.experiment, outcome)
        places = [output.folder / "path" / f"{outcome.budget}.safetensors"]
        if outcome.budget == run.selected:
            places.append(output.folder / "model.safetensors")
        for place in places:
            place.parent.mkdir(exist_ok=True)
            save_model(place, model)


@app.command()
def certify(
    model: Annotated[str, typer.Argument(help="Model file that `ellzero train` wrote.")],
    data: Annotated[str, typer.Argument(help="The data it was trained on: a name or a file.")],
    target: Annotated[str | None, typer.Option(help="Column to predict, for files.")] = None,
    as_json: Json = False,
) -> None:
    """Recompute every claim of a saved model; exit with 4 when one fails."""
    from ellzero.report import print_table
    from ellzero.training import recertify

    with _interruptible():
        found = recertify(model, data, target=target)
    rows = [
        {"claim": name, "file": said, "recomputed": now, "verdict": "holds" if ok else "fails"}
        for name, said, now, ok in found.rows
    ]
    if as_json:
        certificate = found.certificate.to_dict()
        _print_json(_finite({"holds": found.holds, "claims": rows, "certificate": certificate}))
    else:
        print_table(
            f"Claims of {model}",
            ["claim", "file", "recomputed", "verdict"],
            [list(row.values()) for row in rows],
        )
        for line in found.certificate.assumptions:
            typer.echo(f"assumes: {line}")
        typer.echo("Every claim holds." if found.holds else "At least one claim does not hold.")
    if not found.holds:
        raise typer.Exit(EXIT_CLAIM)


@app.command()
def reproduce(
    name: Annotated[str | None, typer.Argument(help="Experiment; none lists them.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run, in seconds.")] = False,
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
            _print_json(rows)
            return
        from ellzero.report import print_table

        print_table("Experiments", ["name", "title", "paper"], [list(r.values()) for r in rows])
        typer.echo("Run one with `ellzero reproduce NAME`.")
        return
    from pathlib import Path

    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output

    experiment = find_experiment(name)
    if out is not None:
        check_output(out, force=force)
    with _interruptible(), _progress(as_json) as tell:
        summary = experiment.run(quick=quick, seed=seed, progress=tell)
    summary["command"] = _command_line()
    if out is not None:
        with OutputFolder(out, force=force) as output:
            output.write("report.html", to_html(summary))
            output.write("summary.json", json.dumps(_finite(summary), indent=2, allow_nan=False))
        _say(f"Report: {Path(out) / 'report.html'}")
    if as_json:
        _print_json(_finite(summary))
    else:
        print_summary(summary)


def main() -> None:
    """Run the command line; the entry point of the `ellzero` script."""
    debug = bool(os.environ.get("ELLZERO_DEBUG"))
    try:
        app()
    except EllzeroError as error:
        if debug:
            raise
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
        sys.exit(EXIT_INPUT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
