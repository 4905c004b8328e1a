"""`ellzero compress`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import EXIT_STOPPED, command_line, finite, print_json, say
from ellzero.cli.options import Force, Json

if TYPE_CHECKING:
    from ellzero.language import CompressedLayer


def compress(
    model: Annotated[str, typer.Argument(help="Folder of a model, as transformers saves it.")],
    calibration: Annotated[str, typer.Option(help="Text file, one text a line.")],
    out: Annotated[str, typer.Option(help="Folder of the compressed model and its report.")],
    density: Annotated[
        float | None, typer.Option(help="Share of the weights kept, such as 0.3.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Such as 2:4; in place of a density.")
    ] = None,
    allocation: Annotated[
        str, typer.Option(help="Density of each layer: uniform, rows or global.")
    ] = "uniform",
    max_texts: Annotated[int, typer.Option(help="Most lines that are read.")] = 768,
    max_swaps: Annotated[
        int, typer.Option(help="Passes of exchanges in a layer: a few percent for several times.")
    ] = 0,
    bounds: Annotated[
        bool, typer.Option("--bounds/--no-bounds", help="A lower bound for every layer.")
    ] = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Give the linear layers of a language model an exact number of nonzeros, with bounds.

    The folder of the result holds the model and its tokenizer, summary.json and report.html with a
    table of the layers. An interrupted run goes on after its last layer when it is started again.
    """
    import json
    import shutil

    from ellzero.language import compress as run
    from ellzero.language.folders import check_room, load_folder, save_folder, text_batches
    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output

    check_output(out, force=force)
    check_room(Path(model), Path(out))
    network, tokenizer = load_folder(Path(model))
    batches = text_batches(tokenizer, Path(calibration), max_texts)
    checkpoint = Path(f"{out}.layers")

    def tell(layer: CompressedLayer) -> None:
        record = layer.record
        gap = "" if record["gap"] is None else f", gap {record['gap']:.0%}"
        say(f"{layer.name}: error {record['relative_error']:.2e}{gap}")
        for note in layer.notes:
            say(f"note: {layer.name}: {note}")

    with _interruptible(checkpoint), OutputFolder(out, force=force) as output:
        result = run(
            network,
            batches,
            density=density,
            pattern=pattern,
            allocation=allocation,
            max_swaps=max_swaps,
            with_bounds=bounds,
            checkpoint=checkpoint,
            callback=tell,
        )
        table = result.to_dict()
        summary = _summary(Path(model).name, table)
        summary["command"] = command_line()
        save_folder(network, tokenizer, output.folder)
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(finite(table), indent=2, allow_nan=False))
    shutil.rmtree(checkpoint, ignore_errors=True)
    if as_json:
        print_json(finite({**table, "out": out}))
    else:
        print_summary(summary)
    for name, reason in result.left_dense.items():
        say(f"note: '{name}' was left dense: {reason}.")
    say(f"Model: {out}")
    say(f"Report: {Path(out) / 'report.html'}")


@contextlib.contextmanager
def _interruptible(checkpoint: Path) -> Iterator[None]:
    """Turn Ctrl-C into sentences and the exit code, where layers are kept."""
    try:
        yield
    except KeyboardInterrupt:
        done = len(list(checkpoint.glob("*.safetensors")))
        if not done:
            raise
        say(f"Interrupted: {done} layers that were done are kept in '{checkpoint}'.")
        say("hint: Start the same command again to go on after them.")
        raise typer.Exit(EXIT_STOPPED) from None


def _summary(name: str, table: dict[str, Any]) -> dict[str, Any]:
    columns = ("name", "n_nonzero", "density", "relative_error", "lower_bound", "gap", "seconds")
    return {
        "title": f"{name}: {table['n_nonzero']:,} of {table['n_weights']:,} weights",
        "messages": [
            *(f"'{key}' was left dense: {why}." for key, why in table["left_dense"].items()),
            *(f"{line['name']}: {note}." for line in table["layers"] for note in line["notes"]),
        ],
        "tables": [
            {
                "title": "Layers",
                "columns": [column.replace("_", " ") for column in columns],
                "rows": [[line[column] for column in columns] for line in table["layers"]],
                "note": "Errors and bounds are relative to the energy of the layer's output; the "
                "gap is the share of the error that is not proven to be needed.",
            }
        ],
        "settings": {
            key: str(value) for key, value in table["settings"].items() if value is not None
        },
        "seconds": table["seconds"],
    }
