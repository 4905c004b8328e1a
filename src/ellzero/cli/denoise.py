"""`ellzero denoise`."""

from __future__ import annotations

from typing import Annotated, Any

import typer  # noqa: TID253

from ellzero.cli.console import (
    EXIT_CLAIM,
    command_line,
    finite,
    interruptible,
    print_json,
    say,
)
from ellzero.cli.images import read_image, summarize
from ellzero.cli.options import Force, Json
from ellzero.errors import InvalidParameterError

# Word for the series that comes with the package.
SYNTHETIC = "synthetic"
# Bumps that the report lists.
MOST_BUMPS = 50


def denoise(
    data: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV or Parquet file with a series, or an image; or bumps planted in noise."
        ),
    ] = SYNTHETIC,
    column: Annotated[
        str | None, typer.Option(help="Column of the series; not needed where there is one.")
    ] = None,
    smoothness: Annotated[
        float, typer.Option(help="Weight of the squared difference between neighbors.")
    ] = 1.0,
    n_nonzero: Annotated[
        int | None, typer.Option(help="Most nonzeros; without it and `--penalty`, EBIC chooses.")
    ] = None,
    penalty: Annotated[float | None, typer.Option(help="Cost of every nonzero.")] = None,
    bump_penalty: Annotated[
        float, typer.Option(help="Cost of every bump, a run of samples that are on.")
    ] = 0.0,
    n_bumps: Annotated[int | None, typer.Option(help="Most bumps.")] = None,
    min_length: Annotated[int, typer.Option(help="Fewest samples of a bump.")] = 1,
    min_distance: Annotated[int, typer.Option(help="Fewest zeros between two bumps.")] = 1,
    nonnegative: Annotated[
        bool, typer.Option("--nonnegative", help="Keep the signal at zero or above.")
    ] = False,
    grid: Annotated[
        bool, typer.Option("--grid", help="The file is an image; .npy files are without it.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which the best so far is returned.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder of the result; default ellzero-out/NAME.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Estimate the sparse and smooth signal behind a series, exactly; missing values are filled.

    Without a file it runs on a series that is made. The folder of the result gets result.csv with
    position, value, estimate and whether the signal is on, and report.html with a picture. An
    image, a .npy file or rows of numbers with `--grid`, gives estimate.npy, and a proven gap.
    """
    import json
    from pathlib import Path

    from ellzero.datasets import write_columns
    from ellzero.report import print_summary, to_html
    from ellzero.signal import SparseSmooth
    from ellzero.storage import OutputFolder, check_output

    folder = out or str(Path("ellzero-out") / Path(data).stem)
    # The output is looked at before any work, and the data before the output is touched.
    check_output(folder, force=force)
    grid = grid or data.lower().endswith(".npy")
    if grid:
        if column is not None:
            raise InvalidParameterError("`--column` is for series, got an image.", "Leave it out.")
        if n_nonzero is None and penalty is None:
            raise InvalidParameterError(
                "An image needs `--n-nonzero` or `--penalty`, got neither.", "Give one of them."
            )
        name = Path(data).stem
        values, messages = read_image(Path(data))
    elif data == SYNTHETIC and not Path(data).exists():
        name, values, messages = _planted(column)
    else:
        name, values, messages = _read(Path(data), column)
    estimator = SparseSmooth(
        smoothness,
        n_nonzero=n_nonzero,
        penalty=penalty,
        nonnegative=nonnegative,
        graph="grid" if grid else "chain",
        time_limit=time_limit,
        bump_penalty=bump_penalty,
        n_bumps=n_bumps,
        min_length=min_length,
        min_distance=min_distance,
    )
    with interruptible(), OutputFolder(folder, force=force) as output:
        if n_nonzero is None and penalty is None:
            estimator.select(values)
        else:
            estimator.fit(values)
        if grid:
            summary = summarize(name, values, estimator, messages)
        else:
            summary = _summary(name, values, estimator, messages)
        summary["settings"] = {"data": data, "column": name, **_settings(estimator)}
        summary["command"] = command_line()
        output.write("report.html", to_html(summary))
        output.write("summary.json", json.dumps(finite(summary), indent=2, allow_nan=False))
        if grid:
            output.write("estimate.npy", _bytes(estimator.signal_))
        else:
            write_columns(output.folder / "result.csv", _columns(values, estimator))
    if as_json:
        print_json(finite({**summary, "out": folder}))
    else:
        print_summary(summary)
        for line in messages:
            say(f"note: {line}")
    say(f"Result: {Path(folder) / ('estimate.npy' if grid else 'result.csv')}")
    say(f"Report: {Path(folder) / 'report.html'}")
    certificate = estimator.certificate_
    if certificate is None or not certificate.holds:
        say("The certificate of the signal does not hold.")
        raise typer.Exit(EXIT_CLAIM)


def _planted(column: str | None) -> tuple[str, Any, list[str]]:
    """Return the name and the values of the series that comes with the package."""
    from ellzero.datasets import make_sparse_signal

    if column not in (None, "value"):
        raise InvalidParameterError(
            f"The synthetic series has no column {column!r}.", "Its column is value."
        )
    y, _, support = make_sparse_signal()
    return (
        "value",
        y,
        [f"The series is synthetic: {support.size} samples in 10 bumps are planted."],
    )


def _read(path: Any, column: str | None) -> tuple[str, Any, list[str]]:
    """Return the name and the values of a column, NaN where missing, and what is worth knowing."""
    import numpy as np

    from ellzero.datasets.columns import check_types, read_columns
    from ellzero.datasets.files import check_file
    from ellzero.errors import DataError, did_you_mean

    check_file(str(path), path)
    columns, messages = read_columns(path)
    numbers = [n for n, c in columns if c.kind in ("integer", "real")]
    if column is None:
        if len(numbers) != 1:
            raise InvalidParameterError(
                f"`--column` is needed: '{path.name}' has {len(numbers)} columns of numbers.",
                f"Numbers are in {', '.join(numbers)}." if numbers else "Give another file.",
            )
        column = numbers[0]
    known = dict(columns)
    if column not in known:
        raise InvalidParameterError(
            f"'{path.name}' has no column {column!r}.{did_you_mean(column, known)}",
            f"Its columns are {', '.join(known)}.",
        )
    check_types(path.name, [(column, known[column])])
    if column not in numbers:
        raise DataError(
            f"Column {column!r} of '{path.name}' does not hold numbers.", "Give another column."
        )
    found = known[column]
    real = np.where(found.missing, 0.0, found.values.astype(np.float64))
    with np.errstate(invalid="ignore"):
        back = real.astype(found.values.dtype) if found.kind == "integer" else found.values
    if found.kind == "integer" and (back != found.values).any():
        raise DataError(
            f"Column {column!r} of '{path.name}' has integers beyond 2^53.",
            "Subtract an offset first.",
        )
    missing = int(found.missing.sum())
    if missing:
        messages.append(
            f"{missing} of {found.missing.size} values are missing and were filled in."
        )
    return column, np.where(found.missing, np.nan, found.values.astype(np.float64)), messages


def _bytes(values: Any) -> bytes:
    """Return an array as the content of a .npy file."""
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def _settings(estimator: Any) -> dict[str, Any]:
    """Return what was asked for; the chosen budget where none was."""
    settings = {
        "smoothness": estimator.smoothness,
        "n_nonzero": estimator.n_nonzero,
        "penalty": estimator.penalty,
        "nonnegative": estimator.nonnegative,
        "graph": estimator.graph,
    }
    for rule, default in (
        ("bump_penalty", 0.0), ("n_bumps", None), ("min_length", 1), ("min_distance", 1)
    ):  # fmt: skip
        if getattr(estimator, rule) != default:
            settings[rule] = getattr(estimator, rule)
    if hasattr(estimator, "budget_"):
        settings["n_nonzero"] = f"{estimator.budget_}, chosen by EBIC"
    return settings


def _columns(values: Any, estimator: Any) -> dict[str, list[Any]]:
    signal, on = estimator.signal_, _on(estimator)
    return {
        "position": list(range(len(values))),
        "value": _plain(values),
        "estimate": signal.tolist(),
        "on": on.tolist(),
    }


def _on(estimator: Any) -> Any:
    """Return whether every sample is in the support."""
    import numpy as np

    on = np.zeros(estimator.signal_.size, dtype=np.bool_)
    on[estimator.support_] = True
    return on


def _summary(name: str, values: Any, estimator: Any, messages: list[str]) -> dict[str, Any]:
    """Return what the report shows."""
    import math

    import numpy as np

    from ellzero._version import __version__
    from ellzero.report import SCHEMA_VERSION

    signal, n = estimator.signal_, len(values)
    on = estimator.support_
    starts = np.flatnonzero(np.diff(on, prepend=-2) > 1)
    ends = np.append(starts[1:], on.size)
    bumps = [(int(on[a]), int(on[b - 1]), int(b - a)) for a, b in zip(starts, ends, strict=True)]
    certificate = estimator.certificate_
    claim = "no claim holds" if certificate.claim is None else certificate.claim.sentence
    headline = (
        f"{on.size} of {n} samples are on, in {len(bumps)} bumps; value "
        f"{estimator.value_:.6g}, gap {estimator.gap_:.1g}; {claim}"
    )
    at = np.arange(n)
    shown = _shown(n, on)
    pictured = [
        {"name": name, "x": at[shown].tolist(), "y": _plain(values[shown]), "style": "points"},
        {"name": "estimate", "x": at[shown].tolist(), "y": signal[shown].tolist()},
        {
            "name": "support",
            "x": at[shown].tolist(),
            "y": [0.0 if k else math.nan for k in _on(estimator)[shown].tolist()],
        },
    ]
    note = "" if shown.size == n else f"{shown.size} of {n} samples are drawn."
    return {
        "schema_version": SCHEMA_VERSION,
        "title": f"Sparse and smooth signal of {name}",
        "headline": headline,
        "data": {"name": name, "n_samples": n, "messages": messages},
        "certificate": certificate.to_dict(),
        "figures": [
            {
                "kind": "line_chart",
                "options": {
                    "title": "Data, estimate and support",
                    "series": pictured,
                    "x_label": "position",
                    "y_label": name,
                    "note": note,
                },
            }
        ],
        "tables": [
            {
                "title": "Bumps" if len(bumps) <= MOST_BUMPS else f"First {MOST_BUMPS} bumps",
                "columns": ["first", "last", "samples", "mean", "largest magnitude"],
                "rows": [
                    [a, b, k, float(signal[a : b + 1].mean()), float(abs(signal[a : b + 1]).max())]
                    for a, b, k in bumps[:MOST_BUMPS]
                ],
            }
        ],
        "versions": {"ellzero": __version__, "numpy": np.__version__},
    }


def _plain(values: Any) -> list[float | None]:
    """Return numbers with None where they are missing."""
    import math

    return [None if math.isnan(v) else v for v in values.tolist()]


def _shown(n: int, on: Any) -> Any:
    """Return positions for a picture: evenly spread, with some of the support."""
    import numpy as np

    spread = np.linspace(0, n - 1, min(n, 300)).round().astype(np.int64)
    some = on[np.linspace(0, on.size - 1, min(on.size, 100)).round().astype(np.int64)]
    return np.unique(np.concatenate([spread, some]))
