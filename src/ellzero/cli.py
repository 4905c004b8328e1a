"""The command line: thin, and nothing heavy is imported before a command needs it."""

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
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ellzero {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fit and train models with exactly as many nonzero parameters as asked for."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


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
        _say("Stopping after this step; Ctrl-C again stops at once.")


@contextlib.contextmanager
def _interruptible(folder: str | None = None) -> Iterator[Interrupts]:
    """Turn Ctrl-C into a sentence and the exit code; gently where `folder` can be resumed."""
    from pathlib import Path

    interrupts = Interrupts()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupts.handle) if folder and in_main else None
    try:
        yield interrupts
    except KeyboardInterrupt:
        if folder and Path(f"{folder}.partial", "checkpoint").is_dir():
            _say("Interrupted: the budgets that were done are kept.")
            _say(f"hint: Go on with `ellzero train --resume {shlex.quote(folder)}`.")
        else:
            _say("Interrupted before there was a result; no result was written.")
        raise typer.Exit(EXIT_STOPPED) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _warnings_kept() -> Iterator[list[str]]:
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


def _separable(summary: dict[str, Any]) -> bool:
    """Return whether the certificate found that the loss has no minimizer without ridge."""
    said = " ".join(summary["certificate"].get("assumptions", ()))
    return "without ridge" in said and "separable" in said


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
    context: typer.Context,
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
    activation: Annotated[
        str, typer.Option(help="gelu, tanh, softplus, sigmoid or relu, between hidden layers.")
    ] = "gelu",
    n_nonzero: Annotated[
        str | None, typer.Option(help="Budget: 5, a path 1:15, or a list 1,2,8.")
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Find the smallest budget with a loss this close to the dense one."),
    ] = None,
    ridge: Annotated[float, typer.Option(help="The lambda of (lambda/2)||theta||^2.")] = 0.01,
    starts: Annotated[
        int | None,
        typer.Option(help="Random starts for each budget; default 100, fewer for large models."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of split, starts and initial weights.")] = 0,
    test_size: Annotated[float, typer.Option(help="Share of the rows held out.")] = 0.2,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for each budget; default 6 to 20 by model.")
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
    from ellzero.storage import OutputFolder, check_output
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
        activation=activation,
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
        settings = _resumed(settings, context, resume, out)
    folder = resume or out or str(Path("ellzero-out") / Path(settings.data).stem)
    # The output is looked at before any work, and the data before the output is touched.
    check_output(folder, force=force or resume is not None)
    table = build_experiment(settings).table
    with (
        _interruptible(folder) as interrupts,
        OutputFolder(folder, force=force, resume=resume is not None) as output,
    ):
        checkpoint = output.checkpoint({**settings.to_dict(), "fingerprint": table.fingerprint})
        with _warnings_kept() as warned, _progress(as_json) as tell:
            run = run_training(
                settings, table=table, checkpoint=checkpoint, progress=tell, stop=interrupts.asked
            )
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
        for line in [*summary["data"]["messages"], *warned]:
            _say(f"note: {line}")
        if _separable(summary):
            _say(
                "note: Without ridge the loss has no minimizer over all parameters (classes are "
                "separable): the dense loss is only where its descent stopped."
            )
            _say("hint: Pass `--ridge 0.01`.")
    _say(f"Model:  {Path(folder) / 'model.safetensors'}")
    _say(f"Report: {Path(folder) / 'report.html'}")
    if run.interrupted:
        _say("Interrupted: the best found so far was kept.")
        _say(f"hint: Go on with `ellzero train --resume {shlex.quote(folder)}`.")
        raise typer.Exit(EXIT_STOPPED)
    if run.chosen.row["claim"] is None:
        _say("The certificate of the chosen model does not hold.")
        raise typer.Exit(EXIT_CLAIM)


def _resumed(settings: Any, context: typer.Context, folder: str, out: str | None) -> Any:
    """Return the settings of a run cut short; those that were given again have to be the same."""
    from dataclasses import replace
    from pathlib import Path

    from ellzero.storage import from_json
    from ellzero.training import TrainSettings

    if out is not None and Path(out).resolve() != Path(folder).resolve():
        raise InvalidParameterError(
            f"`--out` must be the folder of `--resume`, '{folder}', got '{out}'.",
            "Leave `--out` out: the run goes on in its own folder.",
        )
    path = find_settings(Path(folder))
    try:
        stored = from_json(path.read_text(encoding="utf-8"))
        fields = {k: v for k, v in stored.items() if k != "fingerprint"}
        before = TrainSettings.from_dict(fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidParameterError(
            f"The settings of the run in '{folder}' cannot be read.", "Start anew with `--force`."
        ) from error
    names = {"n_nonzero", "epsilon", *fields}
    given = {
        name: getattr(settings, name)
        for name in names & set(context.params)
        if (source := context.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    }
    for name in sorted(given):
        if given[name] != getattr(before, name):
            raise InvalidParameterError(
                f"The run in '{folder}' was made with `{name}={getattr(before, name)!r}`, "
                f"got `{given[name]!r}`.",
                "Leave the option out, or start anew in another folder.",
            )
    return replace(before, **given)


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
        code = app(prog_name="ellzero", standalone_mode=False)
    except EllzeroError as error:
        if debug:
            raise
        _say(f"error: {error.message}")
        if error.hint:
            _say(f"hint: {error.hint}")
        sys.exit(EXIT_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        _say("Interrupted before there was a result; no result was written.")
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BUG)
    except Exception as error:
        # Wrong usage, as the parser of the command line says it.
        message = getattr(error, "format_message", None)
        if message is None or debug:
            raise
        context = getattr(error, "ctx", None)
        command = "ellzero" if context is None else context.command_path
        _say(f"error: {message()}")
        _say(f"hint: `{command} --help` lists what there is.")
        sys.exit(EXIT_INPUT)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
