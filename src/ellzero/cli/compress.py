"""`ellzero compress`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import EXIT_STOPPED, command_line, finite, print_json, say
from ellzero.cli.options import Force, Json
from ellzero.errors import EllzeroError, InvalidParameterError

if TYPE_CHECKING:
    from ellzero.language import CompressedLayer
    from ellzero.nn.export import StoredTensor


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
    quantize: Annotated[
        str | None, typer.Option(help="int8 or int4; alone or with a density or a pattern.")
    ] = None,
    allocation: Annotated[
        str, typer.Option(help="Density of each layer: uniform, rows or global.")
    ] = "uniform",
    max_texts: Annotated[int, typer.Option(help="Most lines that are read.")] = 768,
    max_swaps: Annotated[
        int, typer.Option(help="Passes of exchanges in a layer: a few percent for several times.")
    ] = 0,
    distill: Annotated[
        int, typer.Option(help="Steps of training towards the dense model afterwards.")
    ] = 0,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Folder of the finished layers until the end; OUT.layers if not given."),
    ] = None,
    bounds: Annotated[
        bool, typer.Option("--bounds/--no-bounds", help="A lower bound for every layer.")
    ] = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Give the linear layers of a language model an exact number of nonzeros, with bounds.

    The folder of the result holds the model and its tokenizer, summary.json and report.html with a
    table of the layers; with --quantize also compact.safetensors, the whole model with codes of a
    few bits, which `ellzero.language.load_compact` reads. Finished layers are kept in another
    folder until the result is whole: a run that was interrupted, or that a crash ended, goes on
    after the last of them when the same command is given again.
    """
    import json
    import shutil

    from ellzero.language import compress as run
    from ellzero.language.folders import (
        COMPACT,
        check_room,
        load_folder,
        save_folder,
        text_batches,
    )
    from ellzero.language.quantization import read_quantizer
    from ellzero.nn import export
    from ellzero.report import print_summary, to_html
    from ellzero.storage import OutputFolder, check_output

    kept = Path(f"{out}.layers" if checkpoint is None else checkpoint)
    check_output(out, force=force)
    read_quantizer(quantize)
    check_separate(Path(model), Path(out), kept)
    check_room(Path(model), Path(out), kept, distill=distill > 0, compact=quantize is not None)
    network, tokenizer = load_folder(Path(model))
    batches = text_batches(tokenizer, Path(calibration), max_texts)

    def tell(layer: CompressedLayer) -> None:
        record = layer.record
        gap = "" if record["gap"] is None else f", gap {record['gap']:.0%}"
        say(f"{layer.name}: error {record['relative_error']:.2e}{gap}")
        for note in layer.notes:
            say(f"note: {layer.name}: {note}")

    with _resumable(kept), OutputFolder(out, force=force) as output:
        result = run(
            network,
            batches,
            density=density,
            pattern=pattern,
            quantize=quantize,
            allocation=allocation,
            max_swaps=max_swaps,
            with_bounds=bounds,
            distill=distill,
            checkpoint=kept,
            callback=tell,
        )
        table = result.to_dict()
        summary = _summary(Path(model).name, table)
        summary["command"] = command_line()
        save_folder(network, tokenizer, output.folder)
        if quantize is not None:
            export.save(network, output.folder / COMPACT, quantized=result.quantized)
            stored = export.sizes(output.folder / COMPACT)
            table["compact_bytes"] = sum(line.n_bytes for line in stored)
            summary["tables"].append(_sizes(stored))
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(finite(table), indent=2, allow_nan=False))
    shutil.rmtree(kept, ignore_errors=True)
    if as_json:
        print_json(finite({**table, "out": out}))
    else:
        print_summary(summary)
    for name, reason in result.left_dense.items():
        say(f"note: '{name}' was left dense: {reason}.")
    if quantize is not None:
        say(f"Compact model: {Path(out) / COMPACT}, {table['compact_bytes'] / 1e6:.1f} MB")
    say(f"Model: {out}")
    say(f"Report: {Path(out) / 'report.html'}")


def check_separate(model: Path, out: Path, checkpoint: Path) -> None:
    """Raise when the folders of model, result and checkpoint lie in one another.

    Raises
    ------
    InvalidParameterError
        If two are the same, or the checkpoint lies in the result or holds it, or the result or
        the checkpoint holds the model.
    """
    source, result, kept = (path.resolve() for path in (model, out, checkpoint))
    pairs = (
        ("--out", result, "--checkpoint", kept),
        ("--out", result, "the model", source),
        ("--checkpoint", kept, "the model", source),
    )
    for one, first, other, second in pairs:
        inside = first.is_relative_to(second) and other == "--checkpoint"
        if inside or second.is_relative_to(first):
            raise InvalidParameterError(
                f"The folders of {one} and {other} must be apart, got '{first}' and '{second}'.",
                "Name a folder beside them.",
            )
    if kept.exists() and not kept.is_dir():
        raise InvalidParameterError(
            f"The checkpoint '{checkpoint}' is a file.", "Choose the name of a folder."
        )


@contextlib.contextmanager
def _resumable(kept: Path) -> Iterator[None]:
    """Say how to go on when a run ends before its result: by Ctrl-C, an error or a crash."""
    before = _finished(kept)
    if before:
        say(f"Going on after {before} finished layers in '{kept}'.")
    try:
        yield
    except BaseException as error:
        count = _finished(kept)
        stopped = isinstance(error, KeyboardInterrupt)
        # An error of ours brings a hint of its own.
        if not count or isinstance(error, EllzeroError):
            raise
        if stopped:
            say(f"Interrupted: {count} finished layers are kept in '{kept}'.")
        else:
            say(f"Stopped by an error: {count} finished layers are kept in '{kept}'.")
        say("hint: The same command goes on after the last of them.")
        if stopped:
            raise typer.Exit(EXIT_STOPPED) from None
        raise


def _finished(kept: Path) -> int:
    return len(list(kept.glob("*.safetensors"))) if kept.is_dir() else 0


def _summary(name: str, table: dict[str, Any]) -> dict[str, Any]:
    lines, trained = table["layers"], table["distillation"]
    columns = ["name", "n_nonzero", "density", "relative_error", "lower_bound", "gap", "seconds"]
    if table["settings"]["quantize"] is not None:
        columns[4:4] = ["pruning_error", "quantization_error", "n_rounded"]
    errors = [line["relative_error"] for line in lines]
    gaps = [line["gap"] for line in lines if line["gap"] is not None]
    headline = f"{table['n_nonzero']:,} of {table['n_weights']:,} weights in {len(lines)} layers"
    if lines:
        headline += f"; mean relative error of a layer {sum(errors) / len(errors):.3g}"
    if gaps:
        headline += f", of which {1.0 - sum(gaps) / len(gaps):.0%} is proven to be needed"
    notes = [f"'{key}' was left dense: {why}." for key, why in table["left_dense"].items()]
    notes += [f"{line['name']}: {note}." for line in lines for note in line["notes"]]
    if trained:
        first, last = trained["losses"][0], trained["losses"][-1]
        notes.insert(
            0,
            f"Trained towards the dense model for {trained['n_steps']} steps: the loss was "
            f"{first:.4g} at first and {last:.4g} at last. Errors of layers are those before.",
        )
    tables = [
        {
            "title": "Layers",
            "columns": [column.replace("_", " ") for column in columns],
            "rows": [[line[column] for column in columns] for line in lines],
            "note": "Errors and bounds are relative to the energy of the output that the layer "
            "aims at; the gap is the share of the error that is not proven to be needed.",
        }
    ]
    if notes:
        tables.append({"title": "Notes", "columns": ["note"], "rows": [[n] for n in notes]})
    return {
        "title": f"{name}: compressed",
        "headline": headline,
        "tables": tables,
        "settings": {
            key: str(value) for key, value in table["settings"].items() if value is not None
        },
        "seconds": table["seconds"],
    }


def _sizes(stored: tuple[StoredTensor, ...]) -> dict[str, Any]:
    return {
        "title": "Compact file",
        "columns": ["tensor", "form", "plain bytes", "bytes"],
        "rows": [[line.name, line.form, line.plain_bytes, line.n_bytes] for line in stored],
        "note": "What each tensor takes in compact.safetensors; embeddings, biases and norms are "
        "kept exactly.",
    }
