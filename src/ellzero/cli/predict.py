"""`ellzero predict`."""

from __future__ import annotations

from typing import Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import interruptible, print_json, say
from ellzero.cli.options import Force, Json

# Rows that are shown when no file is asked for.
SHOWN_ROWS = 20


def predict(
    model: Annotated[str, typer.Argument(help="Model file of `ellzero fit` or `ellzero train`.")],
    data: Annotated[
        str, typer.Argument(help="CSV, TSV or Parquet file with the columns of the model.")
    ],
    out: Annotated[
        str | None, typer.Option(help="File for the predictions, .csv or .parquet.")
    ] = None,
    proba: Annotated[
        bool, typer.Option("--proba", help="Add the probability of every class.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a saved model to the rows of a file; columns are found by their names."""
    from pathlib import Path

    from ellzero.datasets import check_format, write_columns
    from ellzero.errors import InvalidParameterError
    from ellzero.fitting import predict_file

    if out is not None:
        check_format(out)
        if Path(out).exists() and not force:
            raise InvalidParameterError(
                f"'{out}' is there already.", "Give another file, or replace it by `--force`."
            )
    with interruptible():
        found = predict_file(model, data, proba=proba)
        if out is not None:
            write_columns(out, found.columns)
    for line in found.messages:
        say(f"note: {line}")
    if as_json:
        print_json({"target": found.model.target_name, **found.columns})
    elif out is None:
        from ellzero.report import print_table

        rows = list(zip(*found.columns.values(), strict=True))
        print_table(
            f"Predictions of {found.model.target_name or 'the target'}",
            ["row", *found.columns],
            [[str(i + 1), *map(_cell, row)] for i, row in enumerate(rows[:SHOWN_ROWS])],
        )
        if len(rows) > SHOWN_ROWS:
            say(f"and {len(rows) - SHOWN_ROWS} more rows")
            say("hint: Write all of them by `--out predictions.csv`.")
    else:
        say(f"Predictions of {found.n_samples} rows: {out}")


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
