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
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer  # noqa: TID253

from ellzero._version import __version__
from ellzero.errors import EllzeroError, InvalidParameterError

if TYPE_CHECKING:
    from ellzero.training import Moment, Progress, Watch

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


def parse_budgets(text: str | None) -> tuple[int | float, ...] | None:
    """Return the budgets of ``5``, ``1:15`` (both ends) or ``1,2,8``, and densities of ``1%``.

    Raises
    ------
    InvalidParameterError
        If the text is none of these.
    """
    if text is None:
        return None
    hint = (
        "Write one number (5), a range with both ends (1:15), a list (1,2,8), or a density (0.01 "
        "or 1%)."
    )
    budgets: list[int | float] = []
    for part in text.split(","):
        density = _parse_density(part)
        if density is not None:
            if not 0.0 < density <= 1.0:
                raise InvalidParameterError(
                    f"`--n-nonzero` must be a density above 0 and up to 1, got {part!r}.", hint
                )
            budgets.append(density)
            continue
        ends = part.split(":")
        try:
            numbers = [int(end) for end in ends]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or len(numbers) != len(ends):
            raise InvalidParameterError(
                f"`--n-nonzero` must be whole numbers or densities, got {text!r}.", hint
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


def _parse_density(text: str) -> float | None:
    """Return the density of ``0.01`` or ``1%``; None for other text."""
    text = text.strip()
    percent = text.endswith("%")
    if not percent and "." not in text and "e" not in text.lower():
        return None
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    return number / 100 if percent else number


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


class Shown(NamedTuple):
    """Where a run tells how far it is; None where nothing is shown."""

    tell: Progress | None = None
    watch: Watch | None = None


@contextlib.contextmanager
def _progress(quiet: bool, *, epochs: bool = False) -> Iterator[Shown]:
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
                _say(line)

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
            _say("Interrupted: what was done is kept.")
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


DataDir = Annotated[
    str | None,
    typer.Option(help="Where mnist.npz is or will be kept; default ELLZERO_DATA or a cache."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result.")]


@app.command()
def train(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="iris, digits, breast_cancer, wine, mnist; a CSV, TSV, Parquet or .npz file; or "
            "FILE.py:FUNCTION."
        ),
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
    model: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:FUNCTION, which takes (n_inputs, n_outputs) or nothing and returns a "
            "torch.nn.Module."
        ),
    ] = None,
    n_nonzero: Annotated[
        str | None,
        typer.Option(help="Budget: 5, a path 1:15, a list 1,2,8, or a density 0.01 or 1%."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(help="Find the smallest budget with a loss this close to the dense one."),
    ] = None,
    ridge: Annotated[
        float | None,
        typer.Option(help="The lambda of (lambda/2)||theta||^2; default 0.01, large networks 0."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Networks: lazy, straight_through, iht or acdc; default lazy."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Networks: passes over the data; default 60, large 8.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Networks: samples in a batch; default 64, large 128.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Networks: learning rate of Adam; default 0.004.")
    ] = None,
    ramp_end: Annotated[
        float | None,
        typer.Option(
            help="Networks: share of the training in which the budget falls; default 0.5."
        ),
    ] = None,
    freeze: Annotated[
        float | None,
        typer.Option(help="Networks: share of the training after which the support stays."),
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option(help="Networks: global, uniform or erk; how layers share the budget."),
    ] = None,
    structure: Annotated[
        str | None,
        typer.Option(help="Networks: entries, rows (units, filters) or columns; what is counted."),
    ] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="Networks: magnitude, relative or curvature; what chooses the support."),
    ] = None,
    average: Annotated[
        bool,
        typer.Option("--average", help="Networks: the mean over the steps after --freeze."),
    ] = False,
    polish: Annotated[
        bool,
        typer.Option(
            "--polish/--no-polish",
            help="Large networks: go on to a stationary point of the loss on all training "
            "samples, which takes hundreds of passes over them.",
        ),
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense/--no-dense", help="Large networks: train a dense one as well.")
    ] = True,
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
    data_dir: DataDir = None,
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
    from ellzero.training import LargeExperiment, TrainSettings, build_experiment, summarize
    from ellzero.training import train as run_training

    budgets = parse_budgets(n_nonzero)
    if budgets is not None and epsilon is not None:
        raise InvalidParameterError(
            "`--epsilon` and `--n-nonzero` cannot both be given.",
            "`--epsilon` searches for the budget that `--n-nonzero` fixes.",
        )
    source = context.get_parameter_source("data")
    if model is not None and (source is None or source.name != "COMMANDLINE"):
        data = f"{model.rpartition(':')[0]}:data"
    options: dict[str, Any] = {
        "data": data,
        "target": target,
        "task": task,
        "hidden": parse_hidden(hidden),
        "activation": activation,
        "n_nonzero": budgets,
        "epsilon": 0.05 if epsilon is None else epsilon,
        "search": epsilon is not None,
        "ridge": ridge,
        "starts": starts,
        "seed": seed,
        "test_size": test_size,
        "device": device,
        "time_limit": time_limit,
        "model": model,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "recipe": recipe,
        "ramp_end": ramp_end,
        "freeze": freeze,
        "allocation": allocation,
        "structure": structure,
        "scores": scores,
        "average": average,
        "polish": polish,
        "dense": dense,
        "data_dir": data_dir,
    }
    if resume is None:
        settings = TrainSettings(**options)
    else:
        settings = _resumed(options, context, resume, out)
    folder = resume or out or str(Path("ellzero-out") / Path(settings.data).stem)
    # The output is looked at before any work, and the data before the output is touched.
    check_output(folder, force=force or resume is not None)
    experiment = build_experiment(settings)
    large = isinstance(experiment, LargeExperiment)
    with (
        _interruptible(folder) as interrupts,
        OutputFolder(folder, force=force, resume=resume is not None) as output,
    ):
        checkpoint = output.checkpoint(
            {**settings.to_dict(), **_inputs(settings, experiment.fingerprint)}
        )
        with _warnings_kept() as warned, _progress(as_json, epochs=large) as shown:
            run = run_training(
                settings,
                experiment=experiment,
                checkpoint=checkpoint,
                progress=shown.tell,
                watch=shown.watch,
                stop=interrupts.asked,
            )
        sizes = _write_models(output, run)
        summary = summarize(run, command=_command_line(), sizes=sizes)
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


def _resumed(options: dict[str, Any], context: typer.Context, folder: str, out: str | None) -> Any:
    """Return the settings of a run cut short; options that are given again have to be the same."""
    from dataclasses import replace
    from pathlib import Path

    from ellzero.storage import from_json
    from ellzero.training import TrainSettings, file_digest

    if out is not None and Path(out).resolve() != Path(folder).resolve():
        raise InvalidParameterError(
            f"`--out` must be the folder of `--resume`, '{folder}', got '{out}'.",
            "Leave `--out` out: the run goes on in its own folder.",
        )
    path = find_settings(Path(folder))
    try:
        stored = from_json(path.read_text(encoding="utf-8"))
        fields = {k: v for k, v in stored.items() if k not in ("fingerprint", "model_sha256")}
        before = TrainSettings.from_dict(fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidParameterError(
            f"The settings of the run in '{folder}' cannot be read.", "Start anew with `--force`."
        ) from error
    if before.model is not None and stored.get("model_sha256") != file_digest(before.model):
        raise InvalidParameterError(
            f"The file of '{before.model}' has changed since the run in '{folder}' began.",
            "Give it back as it was, or start anew in another folder.",
        )
    names = {"n_nonzero", "epsilon", *fields}
    given = {
        name: options[name]
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


def _inputs(settings: Any, fingerprint: str) -> dict[str, str]:
    """Return what identifies the data and the network: a run goes on with the same only."""
    from ellzero.training import file_digest

    if settings.model is None:
        return {"fingerprint": fingerprint}
    return {"fingerprint": fingerprint, "model_sha256": file_digest(settings.model)}


def _write_models(output: Any, run: Any) -> dict[str, int]:
    """Write the chosen model, and one file for each budget; return sizes of the chosen one."""
    from ellzero.models import save_model
    from ellzero.training import LargeExperiment, save_large, saved_model

    sizes: dict[str, int] = {}
    for outcome in run.outcomes:
        places = [output.folder / "path" / f"{outcome.budget}.safetensors"]
        if outcome.budget == run.selected:
            places.append(output.folder / "model.safetensors")
        for place in places:
            place.parent.mkdir(exist_ok=True)
            if isinstance(run.experiment, LargeExperiment):
                found = save_large(place, run.experiment, outcome)
                sizes = found if outcome.budget == run.selected else sizes
            else:
                save_model(place, saved_model(run.experiment, outcome))
    return sizes


@app.command()
def certify(
    model: Annotated[str, typer.Argument(help="Model file that `ellzero train` wrote.")],
    data: Annotated[str, typer.Argument(help="The data it was trained on: a name or a file.")],
    target: Annotated[str | None, typer.Option(help="Column to predict, for files.")] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Recompute every claim of a saved model; exit with 4 when one fails."""
    from ellzero.report import print_table
    from ellzero.training import recertify

    with _interruptible():
        found = recertify(model, data, target=target, data_dir=data_dir)
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
    with _interruptible(), _progress(as_json) as shown:
        summary = experiment.run(quick=quick, seed=seed, progress=shown.tell)
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
