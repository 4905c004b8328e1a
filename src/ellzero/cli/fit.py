"""`ellzero fit`."""

from __future__ import annotations

import json
from typing import Annotated

import typer  # noqa: TID253

from ellzero.cli.console import (
    EXIT_CLAIM,
    command_line,
    finite,
    interruptible,
    print_json,
    progress,
    say,
    warnings_kept,
)
from ellzero.cli.options import Force, Json, parse_names, parse_numbers, parse_sizes


def fit(
    data: Annotated[
        str, typer.Argument(help="CSV, TSV or Parquet file, or iris, breast_cancer, wine, digits.")
    ],
    target: Annotated[str | None, typer.Option(help="Column to predict, for files.")] = None,
    n_nonzero: Annotated[
        str | None, typer.Option(help="Budget: 5, a path 1:20, or a list 1,2,8; default 1:20.")
    ] = None,
    select: Annotated[
        str,
        typer.Option(help="How to choose the budget: ebic, bic, aic, sic, cv or largest."),
    ] = "ebic",
    task: Annotated[
        str | None, typer.Option(help="classification or regression; else as the data says.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="squared, huber, logistic or poisson; else by the target.")
    ] = None,
    cv: Annotated[int, typer.Option(help="Folds of the cross-validation; 0 leaves it out.")] = 5,
    ridge: Annotated[
        str,
        typer.Option(help="The lambda of (lambda/2)||coef||^2, or several 0,0.01,0.1 to choose."),
    ] = "0",
    always: Annotated[
        str | None, typer.Option(help="Columns that are always in the model: a,b.")
    ] = None,
    forbidden: Annotated[
        str | None, typer.Option(help="Columns that are never in the model: a,b.")
    ] = None,
    nonnegative: Annotated[
        bool, typer.Option("--nonnegative", help="Coefficients must not be negative.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="Column with the weights of the samples.")
    ] = None,
    group_categories: Annotated[
        bool,
        typer.Option(
            "--group-categories/--separate-categories",
            help="The features of a text column enter together and count once, or each by itself.",
        ),
    ] = True,
    effort: Annotated[
        str, typer.Option(help="fast, normal or thorough: how long the search goes on.")
    ] = "normal",
    exact: Annotated[
        bool, typer.Option("--exact", help="Go on to a proof of optimality (least squares).")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for the search, and for each proof.")
    ] = None,
    test_size: Annotated[
        float, typer.Option(help="Share of the rows held out to score the models.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the folds and of the rows held out.")] = 0,
    out: Annotated[
        str | None, typer.Option(help="Folder of the result; default ellzero-out/NAME-fit.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit the best subset of every size, choose one, write model and report."""
    from pathlib import Path

    from ellzero.fitting import (
        FitSettings,
        fit_table,
        read_fit_data,
        saved_model,
        summarize_fit,
    )
    from ellzero.models import save_model
    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output

    settings = FitSettings(
        data=data,
        target=target,
        task=task,
        loss=loss,
        n_nonzero=parse_sizes(n_nonzero),
        select=select,
        cv=cv,
        ridge=parse_numbers("--ridge", ridge),
        always=parse_names(always),
        forbidden=parse_names(forbidden),
        nonnegative=nonnegative,
        weights=weights,
        group_categories=group_categories,
        effort=effort,
        exact=exact,
        time_limit=time_limit,
        test_size=test_size,
        seed=seed,
    )
    folder = out or str(Path("ellzero-out") / f"{Path(data).stem}-fit")
    check_output(folder, force=force)
    read = read_fit_data(settings)
    with interruptible(), OutputFolder(folder, force=force) as output:
        with warnings_kept() as warned, progress(as_json) as shown:
            run = fit_table(settings, data=read, progress=shown.tell)
        summary = summarize_fit(run, command=command_line())
        for fitted in run.fits:
            place = output.place("path", f"{fitted.budget}.safetensors")
            save_model(place, saved_model(run, fitted))
        save_model(output.folder / "model.safetensors", saved_model(run, run.chosen))
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
    if run.chosen.row["claim"] is None:
        say("The certificate of the chosen model does not hold.")
        raise typer.Exit(EXIT_CLAIM)
