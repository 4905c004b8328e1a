"""`ellzero certify`."""

from __future__ import annotations

from typing import Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import (
    EXIT_CLAIM,
    finite,
    interruptible,
    print_json,
)
from ellzero.cli.options import DataDir, Json


def certify(
    model: Annotated[str, typer.Argument(help="Model file that `ellzero train` wrote.")],
    data: Annotated[str, typer.Argument(help="The data it was trained on: a name or a file.")],
    target: Annotated[str | None, typer.Option(help="Column to predict, for files.")] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--model", help="FILE.py:FUNCTION that builds the network, where one was trained so."
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Recompute every claim of a saved model; exit with 4 when one fails."""
    from ellzero.report import print_table
    from ellzero.training import recertify

    with interruptible():
        found: Any = _recertify_fit(model, data, target, data_dir)
        if found is None:
            found = recertify(model, data, target=target, data_dir=data_dir, network=network)
    rows = [
        {"claim": name, "file": said, "recomputed": now, "verdict": "holds" if ok else "fails"}
        for name, said, now, ok in found.rows
    ]
    if as_json:
        certificate = found.certificate.to_dict()
        print_json(finite({"holds": found.holds, "claims": rows, "certificate": certificate}))
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


def _recertify_fit(model: str, data: str, target: str | None, data_dir: str | None) -> Any:
    """Return the recomputed claims of `ellzero fit` or `train --convex`; None for other files."""
    from ellzero.fitting import is_fit, recertify_fit
    from ellzero.models import load_model
    from ellzero.training import is_exported

    if is_exported(model):
        return None
    saved = load_model(model)
    # Told apart here: importing the networks costs a second.
    if "convex" in saved.settings:
        from ellzero.relu.tables import recertify_convex

        return recertify_convex(saved, model, data, target=target, data_dir=data_dir)
    return recertify_fit(saved, model, data, target=target) if is_fit(saved) else None
