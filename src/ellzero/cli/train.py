"""`ellzero train`."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import (
    EXIT_CLAIM,
    EXIT_STOPPED,
    command_line,
    finite,
    interruptible,
    print_json,
    progress,
    say,
    warnings_kept,
)
from ellzero.cli.options import DataDir, Force, Json, parse_budgets, parse_hidden
from ellzero.errors import InvalidParameterError


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
        str,
        typer.Option(
            help="gelu, tanh, softplus, sigmoid or relu, between hidden layers; with --convex "
            "relu or gated."
        ),
    ] = "gelu",
    convex: Annotated[
        bool,
        typer.Option(
            "--convex",
            help="A two-layer ReLU network by convex programs, with its gap to the best one of "
            "any width.",
        ),
    ] = False,
    penalty: Annotated[
        float | None,
        typer.Option(
            help="Convex: weight of the norm; default a hundredth of the largest useful one."
        ),
    ] = None,
    neurons: Annotated[
        int | None,
        typer.Option(
            help="Convex: most neurons, default as many as help; of --activation gated the number "
            "of gates, default 500."
        ),
    ] = None,
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
        bool | None,
        typer.Option(
            "--polish/--no-polish",
            help="Large networks: go on to a stationary point of the loss on all training "
            "samples, which takes hundreds of passes over them; default: where that takes "
            "seconds.",
        ),
    ] = None,
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
    if convex:
        from ellzero.cli.convex import train_convex

        train_convex(context)
        return
    for name, value in (("penalty", penalty), ("neurons", neurons)):
        if value is not None:
            raise InvalidParameterError(
                f"`--{name}` is for networks by convex programs, got none.",
                "Add `--convex`, or leave the option out.",
            )
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
        interruptible(folder) as interrupts,
        OutputFolder(folder, force=force, resume=resume is not None) as output,
    ):
        checkpoint = output.checkpoint(
            {**settings.to_dict(), **_inputs(settings, experiment.fingerprint)}
        )
        with warnings_kept() as warned, progress(as_json, epochs=large) as shown:
            run = run_training(
                settings,
                experiment=experiment,
                checkpoint=checkpoint,
                progress=shown.tell,
                watch=shown.watch,
                stop=interrupts.asked,
            )
        sizes = _write_models(output, run)
        summary = summarize(run, command=command_line(), sizes=sizes)
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(finite(summary), indent=2, allow_nan=False))
        if run.interrupted:
            output.keep_checkpoint()
    if as_json:
        print_json(finite({**summary, "out": folder}))
    else:
        print_summary(summary)
        for line in [*summary["data"]["messages"], *warned]:
            say(f"note: {line}")
        if settings.polish is None and experiment.settings.polish:
            say(
                "note: After the training the network was taken to a stationary point of the loss "
                "on all training samples, which is cheap for one of this size."
            )
            say("hint: Pass `--no-polish` to keep it as it was trained.")
        if _separable(summary):
            say(
                "note: Without ridge the loss has no minimizer over all parameters (classes are "
                "separable): the dense loss is only where its descent stopped."
            )
            say("hint: Pass `--ridge 0.01`.")
    say(f"Model:  {Path(folder) / 'model.safetensors'}")
    say(f"Report: {Path(folder) / 'report.html'}")
    if run.interrupted:
        say("Interrupted: the best found so far was kept.")
        say(f"hint: Go on with `ellzero train --resume {shlex.quote(folder)}`.")
        raise typer.Exit(EXIT_STOPPED)
    if run.chosen.row["claim"] is None:
        say("The certificate of the chosen model does not hold.")
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
        places = [output.place("path", f"{outcome.budget}.safetensors")]
        if outcome.budget == run.selected:
            places.append(output.place("model.safetensors"))
        for place in places:
            if isinstance(run.experiment, LargeExperiment):
                found = save_large(place, run.experiment, outcome)
                sizes = found if outcome.budget == run.selected else sizes
            else:
                save_model(place, saved_model(run.experiment, outcome))
    return sizes


def _separable(summary: dict[str, Any]) -> bool:
    """Return whether the certificate found that the loss has no minimizer without ridge."""
    said = " ".join(summary["certificate"].get("assumptions", ()))
    return "without ridge" in said and "separable" in said
