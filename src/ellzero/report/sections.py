"""From a summary to a report: which sections, tables and figures it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from ellzero.errors import InvalidParameterError, did_you_mean
from ellzero.report import figures
from ellzero.report.schema import CLAIMS, check
from ellzero.report.view import (
    Block,
    Bullets,
    Code,
    Column,
    Facts,
    Figure,
    Ladder,
    Paragraph,
    Report,
    Section,
    Table,
)
from ellzero.report.words import (
    DASH,
    anything,
    clean,
    counted,
    exact,
    finite,
    number,
    percent,
    whole,
    yes_no,
)

Summary = Mapping[str, Any]

CRITERIA = ("ebic", "bic", "aic", "sic")
FEATURES = "Features"


def selected_row(summary: Summary) -> Mapping[str, Any]:
    """Return the chosen row of the path, its only row, or nothing."""
    rows = summary.get("path") or []
    for row in rows:
        if row.get("selected"):
            return dict(row)
    return dict(rows[0]) if len(rows) == 1 else {}


def score_name(summary: Summary) -> str:
    """Return what the scores of a summary are: a share of hits, or of the explained variance."""
    data = summary.get("data") or {}
    return "R2" if data.get("task") == "regression" else "Accuracy"


def headline(summary: Summary) -> str:
    """Return one line: what was found and how sure we are."""
    if summary.get("headline"):
        return clean(summary["headline"])
    row = selected_row(summary)
    dense = summary.get("dense") or {}
    certificate = summary.get("certificate") or {}
    parts = []
    if row.get("n_nonzero") is not None:
        of = f" of {number(dense['n_parameters'])}" if dense.get("n_parameters") else ""
        what = clean(summary.get("counted") or "parameters")
        parts.append(f"{number(row['n_nonzero'])}{of} {what}")
    if finite(row.get("value")) is not None:
        parts.append(f"train loss {number(row['value'])}")
    sentence = proven(certificate) if certificate else row.get("claim_sentence")
    gap = certificate.get("gap", row.get("gap"))
    if sentence:
        known = f" (gap {number(gap, 2)})" if finite(gap) is not None else ""
        parts.append(clean(sentence) + known)
    if not parts:
        return "No model was chosen."
    return ", ".join(parts)


def proven(certificate: Mapping[str, Any]) -> str:
    """Return the sentence of the claim; words alone never claim more than the claim."""
    claim = certificate.get("claim")
    if claim in CLAIMS:
        return CLAIMS[claim]
    sentence = clean(certificate.get("sentence") or "")
    return sentence if sentence and sentence not in CLAIMS.values() else "nothing is proven"


def support_entries(summary: Summary) -> list[tuple[str, float]]:
    """Return the nonzero weights with their names, as "coef[versicolor, petal length]".

    A summary that names its entries in `support` has them as they are.
    """
    out = [
        (clean(entry.get("name", "")), float(entry["value"]))
        for entry in summary.get("support") or []
        if finite(entry.get("value"))
    ]
    if out:
        return out
    for tensor in (summary.get("weights") or {}).get("tensors") or []:
        values, name = tensor.get("values"), clean(tensor.get("name", ""))
        rows, columns = _labels(tensor)
        if not isinstance(values, list | tuple):
            if finite(values):
                out.append((name, float(values)))
            continue
        for i, row in enumerate(values):
            if isinstance(row, list | tuple):
                for j, v in enumerate(row):
                    if finite(v):
                        out.append((f"{name}[{_at(rows, i)}, {_at(columns, j)}]", float(v)))
            elif finite(row):
                out.append((f"{name}[{_at(rows or columns, i)}]", float(row)))
    return out


def _labels(tensor: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return (
        [clean(v) for v in tensor.get("row_labels") or []],
        [clean(v) for v in tensor.get("column_labels") or []],
    )


def _at(labels: Sequence[str], i: int) -> str:
    return labels[i] if i < len(labels) else str(i)


def _columns(
    rows: Sequence[Mapping[str, Any]],
    wanted: Sequence[tuple[str, str, Callable[[Any], str], str]],
) -> tuple[tuple[Column, ...], tuple[tuple[str, ...], ...]]:
    """Return the columns of which any row knows something, and their cells."""
    kept = [w for w in wanted if any(r.get(w[0]) is not None for r in rows)]
    columns = tuple(
        Column(head, "text" if kind == "text" else "number") for _, head, _, kind in kept
    )
    return columns, tuple(tuple(show(r.get(key)) for key, _, show, _ in kept) for r in rows)


def _names(value: Any) -> str:
    return ", ".join(clean(name) for name in value or ()) or DASH


def _claim(value: Any) -> str:
    return {None: DASH, "gap": "within a gap"}.get(value, clean(value))


def path_table(rows: Sequence[Mapping[str, Any]], *, folded: bool = False) -> Table:
    """Return the table of budgets: loss, accuracy, what is proven."""
    columns, cells = _columns(
        rows,
        [
            ("n_nonzero", "Nonzeros", number, "number"),
            ("value", "Loss", number, "number"),
            ("epsilon", "Epsilon", number, "number"),
            *((key, key.upper(), number, "number") for key in CRITERIA),
            ("cv", "CV loss", number, "number"),
            ("cv_error", "CV error", lambda v: number(v, 2), "number"),
            ("accuracy_train", "Train", percent, "number"),
            ("accuracy_test", "Test", percent, "number"),
            ("hit_rate", "Hits", percent, "number"),
            ("largest_stable_step", "Stable to", number, "number"),
            ("lower_bound", "Bound", number, "number"),
            ("gap", "Gap", lambda v: number(v, 2), "number"),
            ("claim", "Proven", _claim, "text"),
            ("support", FEATURES, _names, "text"),
        ],
    )
    chosen = frozenset(i for i, r in enumerate(rows) if r.get("selected"))
    note = ""
    if any(r.get("epsilon") is not None for r in rows):
        note = (
            "Epsilon: loss minus dense loss. Hits: share of starts that end at the best loss. "
            "Stable to: largest step size at which hard thresholding keeps the point."
        )
    return Table("Every budget", columns, cells, note, chosen, folded)


def _run_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns, cells = _columns(
        rows,
        [
            ("n_nonzero", "Nonzeros", number, "number"),
            ("n_starts", "Starts", number, "number"),
            ("median_value", "Median loss", number, "number"),
            ("worst_value", "Worst loss", number, "number"),
            ("stable", "Stable", yes_no, "text"),
            ("swap_level", "No exchange helps", yes_no, "text"),
            ("status", "Status", clean, "text"),
            ("seconds", "Seconds", number, "number"),
        ],
    )
    chosen = frozenset(i for i, r in enumerate(rows) if r.get("selected"))
    note = "Stable: under hard thresholding at one over the smoothness constant."
    return Table("Starts and stability", columns, cells, note, chosen, folded=True)


def _path(summary: Summary) -> list[Block]:
    rows = [r for r in summary.get("path") or [] if isinstance(r, Mapping)]
    if not rows:
        return []
    dense = summary.get("dense") or {}
    budgets = [r.get("n_nonzero") for r in rows]
    chosen = selected_row(summary).get("n_nonzero") if len(rows) > 1 else None
    known = [b for b in budgets if b]
    wide_span = bool(known) and max(known) >= 50 * min(known) and all(budgets)
    common: dict[str, Any] = {
        "x_label": "nonzero parameters",
        "selected_x": chosen,
        "log_x": wide_span,
        "integer_x": True,
    }

    def column(key: str) -> list[Any]:
        return [r.get(key) for r in rows]

    def has(key: str) -> bool:
        return any(finite(v) is not None for v in column(key))

    blocks: list[Block] = []
    if has("value") and len(rows) > 1:
        series = [{"name": "best loss found", "x": budgets, "y": column("value")}]
        if has("median_value"):
            series.append({"name": "median of starts", "x": budgets, "y": column("median_value")})
        if has("worst_value"):
            series.append({"name": "worst of starts", "x": budgets, "y": column("worst_value")})
        bands = []
        if has("lower_bound"):
            bands.append(
                {
                    "name": "proven gap",
                    "x": budgets,
                    "low": column("lower_bound"),
                    "high": column("value"),
                }
            )
        lines = [{"name": "dense", "value": dense.get("value")}] if dense else []
        blocks.append(
            figures.line_chart(
                title="Loss by number of nonzero parameters",
                series=series,
                y_label="train loss",
                bands=bands,
                hlines=lines,
                note="No model of the budget lies below the shaded area." if bands else "",
                **common,
            )
        )
    accuracies = [k for k in ("train", "test") if has(f"accuracy_{k}")]
    score = score_name(summary)
    if accuracies and len(rows) > 1:
        blocks.append(
            figures.line_chart(
                title=f"{score} by number of nonzero parameters",
                series=[
                    {"name": k, "x": budgets, "y": column(f"accuracy_{k}")} for k in accuracies
                ],
                y_label=score if score == "R2" else score.lower(),
                percent_y=True,
                hlines=[
                    {"name": f"dense, {k}", "value": dense.get(f"accuracy_{k}")}
                    for k in accuracies
                ],
                **common,
            )
        )
    blocks.extend(
        figures.line_chart(
            title=f"{key.upper()} by number of nonzero parameters",
            series=[{"name": key.upper(), "x": budgets, "y": column(key)}],
            y_label=key.upper(),
            **common,
        )
        for key in CRITERIA
        if has(key) and len(rows) > 1
    )
    if has("cv") and len(rows) > 1:
        blocks.append(_cv_chart(rows, common))
    blocks.append(path_table(rows))
    runs = _run_table(rows)
    if len(runs.columns) > 1:
        blocks.append(runs)
    return blocks


def _cv_chart(rows: Sequence[Mapping[str, Any]], common: Mapping[str, Any]) -> Figure:
    """Draw the loss of the cross-validation, with a standard error on each side."""
    budgets = [r.get("n_nonzero") for r in rows]
    pairs = [(finite(r.get("cv")), finite(r.get("cv_error")) or 0.0) for r in rows]
    low, high = ([None if v is None else v + sign * e for v, e in pairs] for sign in (-1.0, 1.0))
    return figures.line_chart(
        title="Cross-validated loss by number of nonzero parameters",
        series=[{"name": "mean over the folds", "x": budgets, "y": [v for v, _ in pairs]}],
        y_label="loss on rows left out",
        bands=[{"name": "one standard error", "x": budgets, "low": low, "high": high}],
        **common,
    )


def _training(summary: Summary) -> list[Block]:
    """Draw loss, density and rate over the steps of a training by minibatches."""
    training = summary.get("training") or {}
    runs = [r for r in training.get("runs") or [] if r.get("steps") and r.get("loss")]
    if not runs:
        return []
    chosen, total = runs[0], finite(training.get("n_entries"))
    steps = chosen["steps"]
    values = [v for r in runs for v in r["loss"] if finite(v) is not None]
    log = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    known = {k: chosen[k] for k in ("n_nonzero", "lr") if len(chosen.get(k) or []) == len(steps)}
    share = [100.0 * c / total for c in known.get("n_nonzero", ())] if total else []
    common: dict[str, Any] = {"x_label": "step", "integer_x": True}
    charts = [
        figures.line_chart(
            title="Loss by step",
            series=[{"name": r.get("name", ""), "x": r["steps"], "y": r["loss"]} for r in runs],
            y_label="loss of the batches" + (" (log scale)" if log else ""),
            log_y=log,
            **common,
        )
    ]
    if share:
        charts.append(
            figures.line_chart(
                title="Density by step",
                series=[{"name": "density", "x": steps, "y": share}],
                y_label="nonzero, in percent (log scale)",
                log_y=True,
                **common,
            )
        )
    title = "Loss and density by step" if share else "Loss by step"
    blocks: list[Block] = [
        figures.stacked(title, charts, _training_table(title, runs, known, total))
    ]
    if "lr" in known:
        blocks.append(
            figures.line_chart(
                title="Learning rate by step",
                series=[{"name": "learning rate", "x": steps, "y": known["lr"]}],
                y_label="learning rate",
                **common,
            )
        )
    columns, cells = _columns(
        chosen.get("epochs") or [],
        [
            ("epoch", "Epoch", number, "number"),
            ("step", "Step", number, "number"),
            ("loss", "Mean loss", number, "number"),
            ("accuracy_test", "Test", percent, "number"),
            ("seconds", "Seconds", number, "number"),
        ],
    )
    if cells:
        blocks.append(Table("Every epoch", columns, cells, folded=len(cells) > 12))
    return blocks


def _training_table(
    title: str,
    runs: Sequence[Mapping[str, Any]],
    known: Mapping[str, Sequence[Any]],
    total: float | None,
) -> Table:
    """Return the numbers of all curves at some steps."""
    steps = runs[0]["steps"]
    losses = [dict(zip(r["steps"], r["loss"], strict=False)) for r in runs]
    kept = figures.thin(len(steps), figures.MAX_TABLE_ROWS)
    columns = [Column("step"), *(Column(f"loss, {clean(r.get('name', ''))}") for r in runs)]
    more: list[Callable[[int], str]] = []
    if "n_nonzero" in known:
        columns.append(Column("nonzeros"))
        more.append(lambda i: number(known["n_nonzero"][i]))
        if total:
            columns.append(Column("density"))
            more.append(lambda i: percent(known["n_nonzero"][i] / total))
    if "lr" in known:
        columns.append(Column("learning rate"))
        more.append(lambda i: number(known["lr"][i], 3))
    rows = tuple(
        (
            number(steps[i]),
            *(number(m.get(steps[i])) for m in losses),
            *(show(i) for show in more),
        )
        for i in kept
    )
    note = f"{len(kept)} of {len(steps)} rows, evenly spread." if len(kept) < len(steps) else ""
    return Table(title, tuple(columns), rows, note, folded=True)


def _layers(summary: Summary) -> list[Block]:
    """Draw where the nonzeros of a network are."""
    layers = [r for r in summary.get("layers") or [] if isinstance(r, Mapping)]
    if not layers:
        return []
    names = [clean(r.get("name", "")) for r in layers]
    shares = [finite(r.get("density")) for r in layers]
    blocks: list[Block] = [
        figures.bars(
            title="Density by layer",
            labels=names,
            values=[None if s is None else 100.0 * s for s in shares],
            value_label="nonzero, in percent",
            label_label="tensor",
        )
    ]

    blocks.append(layer_table(layers))
    for name, r in zip(names, layers, strict=True):
        inputs, picture = r.get("inputs_picture") or {}, r.get("picture") or {}
        if inputs.get("counts"):
            blocks.append(
                figures.density_map(
                    title=f"Inputs that {name} looks at",
                    unit="weight",
                    note="Each cell is one entry of a sample, such as a pixel.",
                    **inputs,
                )
            )
        if picture.get("counts"):
            blocks.append(figures.density_map(title=f"Nonzeros of {name}", **picture))
    return blocks


def layer_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of the tensors of a network: shape, nonzeros, what is dead."""

    def of(row: Mapping[str, Any], part: str, whole: str) -> str:
        known = row.get(part) is not None and row.get(whole) is not None
        return f"{number(row[part])} of {number(row[whole])}" if known else DASH

    rows = tuple(
        (
            clean(r.get("name", "")),
            " x ".join(number(n) for n in r.get("shape") or []) or DASH,
            number(r.get("n_nonzero")),
            percent(r.get("density")),
            of(r, "dead_outputs", "n_outputs"),
            of(r, "dead_inputs", "n_inputs"),
        )
        for r in layers
    )
    columns = (
        Column("Tensor", "text"),
        Column("Shape"),
        Column("Nonzeros"),
        Column("Density"),
        Column("Dead outputs"),
        Column("Dead inputs"),
    )
    note = "A dead output has no nonzero weight: it is constant. A dead input is not looked at."
    return Table("Every layer", columns, rows, note)


def _file(summary: Summary) -> list[Block]:
    """Say what the compressed model file takes."""
    file = summary.get("file") or {}
    if not finite(file.get("bytes")):
        return []
    packed, dense = finite(file["bytes"]) or 0.0, finite(file.get("dense_bytes"))
    facts = [("Compressed", _size(packed))]
    if dense:
        facts += [("Every entry stored", _size(dense)), ("Smaller by", f"{dense / packed:.1f} x")]
    return [
        Facts(tuple(facts)),
        Paragraph(
            "ellzero.nn.export.load reads the file back into the network, bit for bit; "
            "ellzero.nn.export.sparse runs its linear layers on packed weights where that is "
            "faster."
        ),
    ]


def _size(n_bytes: Any) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if unit != "bytes" else f"{int(value)} bytes"
        value /= 1000
    return f"{value:.3g} GB"


def _matrix(tensors: list[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], int | None]:
    """Join a matrix and the intercepts of its rows into one picture, as people write them."""
    by_name = {t.get("name"): t for t in tensors}
    coef, intercept = by_name.get("coef"), by_name.get("intercept")
    if not coef or not intercept:
        return tensors, None
    values, free = coef.get("values"), intercept.get("values")
    if not _is_matrix(values) or not isinstance(free, list | tuple) or len(free) != len(values):
        return tensors, None
    rows, columns = _labels(coef)
    width = len(values[0])
    joined = {
        "name": "coef and intercept",
        "values": [[*row, b] for row, b in zip(values, free, strict=True)],
        "row_labels": rows or _labels(intercept)[0],
        "column_labels": [*(_at(columns, j) for j in range(width)), "intercept"],
    }
    rest = [t for t in tensors if t not in (coef, intercept)]
    return [joined, *rest], width


def _is_matrix(values: Any) -> TypeGuard[Sequence[Sequence[Any]]]:
    return (
        isinstance(values, list | tuple) and bool(values) and isinstance(values[0], list | tuple)
    )


def _weights(summary: Summary) -> list[Block]:
    tensors = list((summary.get("weights") or {}).get("tensors") or [])
    if not tensors:
        return []
    joined, gap = _matrix(tensors)
    blocks: list[Block] = []
    scalars = []
    for i, tensor in enumerate(joined):
        name, values = clean(tensor.get("name", "")), tensor.get("values")
        rows, columns = _labels(tensor)
        if _is_matrix(values):
            blocks.append(
                figures.heat_map(
                    title=f"Weights: {name}",
                    values=values,
                    row_labels=rows or None,
                    column_labels=columns or None,
                    gap_before=gap if i == 0 else None,
                )
            )
        elif isinstance(values, list | tuple):
            blocks.append(_vector(name, values, rows or columns))
        else:
            scalars.append((name, anything(values)))
    if scalars:
        blocks.append(Facts(tuple(scalars)))
    entries = support_entries(summary)
    if not entries:
        return [*blocks, Paragraph("No parameter is known to be nonzero.")]
    shown = entries[:100]
    note = f"The first 100 of {number(len(entries))}." if len(entries) > 100 else ""
    rows_of_table = tuple((n, number(v)) for n, v in shown)
    blocks.append(
        Table(
            f"Support: {counted(len(entries), 'nonzero parameter')}",
            (Column("Parameter", "text"), Column("Value")),
            rows_of_table,
            note,
            folded=len(entries) > 40,
        )
    )
    return blocks


def _vector(name: str, values: Sequence[Any], labels: Sequence[str]) -> Figure:
    """Draw a vector as bars; of a long one only its nonzero entries."""
    at = [i for i, v in enumerate(values) if len(values) <= 40 or finite(v)]
    note = "" if len(at) == len(values) else f"{len(at)} of {len(values)} entries are nonzero."
    if len(at) > 60:
        at = sorted(sorted(at, key=lambda i: -abs(finite(values[i]) or 0.0))[:60])
        note += " The 60 of largest magnitude are drawn."
    return figures.bars(
        title=f"Weights: {name}",
        labels=[_at(labels, i) for i in at],
        values=[values[i] for i in at],
        value_label="weight",
        signed=True,
        note=note.strip(),
    )


def _certificate(summary: Summary) -> list[Block]:
    certificate = summary.get("certificate")
    if not certificate:
        return []
    claim = certificate.get("claim")
    names = list(CLAIMS)
    reached = names.index(claim) if claim in names else -1
    blocks: list[Block] = [
        Paragraph(f"Claim: {proven(certificate)}."),
        Ladder(tuple((_claim(n), CLAIMS[n], i <= reached) for i, n in enumerate(names))),
    ]
    facts = [
        ("Proven lower bound", number(certificate.get("lower_bound"))),
        ("Relative gap", number(certificate.get("gap"), 2)),
    ]
    blocks.append(Facts(tuple(facts)))
    checks = certificate.get("checks") or []
    if checks:
        rows = tuple(
            (
                clean(c.get("name", "")),
                number(whole(c.get("value"))),
                "≤",
                number(whole(c.get("bound"))),
                passed(c.get("passed")),
                _claim(c.get("claim")),
            )
            for c in checks
        )
        columns = (
            Column("Check", "text"),
            Column("Value"),
            Column("", "text"),
            Column("Bound"),
            Column("Outcome", "mark"),
            Column("Needed for", "text"),
        )
        blocks.append(Table("Checks", columns, rows))
    else:
        blocks.append(Paragraph("No checks were recorded."))
    assumptions = tuple(clean(a) for a in certificate.get("assumptions") or [])
    if assumptions:
        blocks.append(Bullets("Assumptions", assumptions))
    measures = certificate.get("measures") or {}
    if measures:
        cells = tuple((clean(k).replace("_", " "), _measure(v)) for k, v in measures.items())
        blocks.append(Table("Measures", (Column("Measure", "text"), Column("Value")), cells))
    return blocks


def _measure(value: Any) -> str:
    return exact(value, 4) if isinstance(value, float) else anything(value)


def passed(value: Any) -> str:
    """Return the mark and the word of a check."""
    return DASH if value is None else ("✓ pass" if value else "✗ fail")


def _trace(summary: Summary) -> list[Block]:
    trace = summary.get("trace")
    if not trace:
        return []
    series = list(trace.get("series") or [])
    if trace.get("values"):
        values = trace["values"]
        steps = trace.get("iterations") or list(range(len(values)))
        series.insert(0, {"name": "loss", "x": steps, "y": values})
    if not series:
        return []
    values = [v for s in series for v in s.get("y", []) if finite(v) is not None]
    log = bool(values) and min(values) > 0 and max(values) > 10 * min(values)
    return [
        figures.line_chart(
            title="Loss by iteration",
            series=series,
            x_label="iteration",
            y_label=clean(trace.get("y_label", "loss")) + (" (log scale)" if log else ""),
            log_y=log,
            integer_x=True,
            note=clean(trace.get("note", "")),
        )
    ]


def _supports(summary: Summary) -> list[Block]:
    supports = summary.get("supports")
    if not supports or not supports.get("masks"):
        return []
    masks = supports["masks"]
    return [
        figures.raster(
            title="Support over iterations",
            iterations=supports.get("iterations") or list(range(len(masks))),
            masks=masks,
            labels=supports.get("labels"),
            note=" ".join(
                part
                for part in (
                    clean(supports.get("note", "")),
                    "Bars that last to the end are the final support.",
                )
                if part
            ),
        )
    ]


def _smoothness(summary: Summary) -> list[Block]:
    rows = summary.get("smoothness") or []
    if not rows:
        return []
    grouped = sorted(
        (
            {
                "label": r.get("method", ""),
                "kind": r.get("kind", ""),
                "value": r.get("value"),
                "n": r.get("n_nonzero"),
                "note": r.get("note"),
                "group": None
                if r.get("n_nonzero") is None
                else f"{number(r['n_nonzero'])} nonzero entries",
            }
            for r in rows
        ),
        key=lambda r: -1 if r["n"] is None else r["n"],
    )
    columns, cells = _columns(
        grouped,
        [
            ("n", "Nonzeros", number, "number"),
            ("label", "Method", clean, "text"),
            ("kind", "Kind", clean, "text"),
            ("value", "Constant", number, "number"),
            ("note", "Note", anything, "text"),
        ],
    )
    return [
        figures.dot_plot(
            title="Restricted smoothness constant by method",
            rows=grouped,
            x_label="constant",
            note="Arrows point to where the constant lies; a diamond is exact.",
            table=Table("Estimates", columns, cells, folded=True),
        )
    ]


def _escape(summary: Summary) -> list[Block]:
    escape = summary.get("escape")
    if not escape:
        return []
    starts = escape.get("starts")

    def share(key: str) -> str:
        return f"{number(escape.get(key))} of {number(starts)}"

    facts = [
        ("Left in the first step", share("left")),
        ("Returned", share("returned")),
        ("Never increased the value", share("monotone")),
        ("Step size", number(escape.get("step_size"))),
        ("Best value", number(escape.get("best_value"), 6)),
    ]
    blocks: list[Block] = [Facts(tuple(f for f in facts if DASH not in f[1].split()))]
    if escape.get("note"):
        blocks.insert(0, Paragraph(clean(escape["note"])))
    for key, title, y_label, log in (
        ("distance", "Distance to the unstable point", "distance (log scale)", True),
        ("values", "Value of the runs", "value", False),
    ):
        runs = escape.get(key) or []
        if not runs:
            continue
        picked = (
            [runs[round(i * (len(runs) - 1) / 39)] for i in range(40)] if len(runs) > 40 else runs
        )
        steps = escape.get("iterations") or list(range(max(len(r) for r in runs)))
        thin = [
            {"name": f"run {i + 1}", "x": steps[:80], "y": list(r)[:80], "style": "thin"}
            for i, r in enumerate(picked)
        ]
        blocks.append(
            figures.line_chart(
                title=title,
                series=thin,
                x_label="iteration",
                y_label=y_label,
                log_y=log,
                integer_x=True,
                animate=True,
                table=_spread(title, steps[:80], runs),
                note=f"{len(picked)} of {number(starts or len(runs))} runs are drawn.",
            )
        )
    if escape.get("final_values"):
        blocks.append(
            figures.histogram(
                title="Where the runs end",
                values=escape["final_values"],
                counts=escape.get("final_counts"),
                x_label="final value",
            )
        )
    return blocks


def _spread(title: str, steps: Sequence[Any], runs: Sequence[Sequence[Any]]) -> Table:
    """Return least, middle and largest value of all runs at each step."""
    rows = []
    for k, step in enumerate(steps[: figures.MAX_TABLE_ROWS]):
        at = sorted(v for r in runs if k < len(r) and (v := finite(r[k])) is not None)
        if at:
            rows.append((anything(step), number(at[0]), number(at[len(at) // 2]), number(at[-1])))
    heads = (Column("iteration"), Column("least"), Column("median"), Column("largest"))
    return Table(title, heads, tuple(rows), folded=True)


def data_table(table: Mapping[str, Any]) -> Table:
    """Return a table of the summary; booleans are marks, numbers go right."""
    decimals = table.get("decimals")
    heads = [clean(c) for c in table.get("columns") or []]
    raw = [list(r) for r in table.get("rows") or []]
    columns = []
    for j, head in enumerate(heads):
        column = [r[j] if j < len(r) else None for r in raw]
        if column and all(v is None or isinstance(v, bool) for v in column):
            columns.append(Column(head, "mark"))
        elif all(v is None or isinstance(v, int | float) for v in column):
            columns.append(Column(head))
        else:
            columns.append(Column(head, "text"))

    def show(value: Any, column: Column) -> str:
        if isinstance(value, bool):
            return ("✓ ok" if value else "✗ differs") if column.kind == "mark" else yes_no(value)
        if isinstance(value, float) and decimals is not None:
            return DASH if finite(value) is None else f"{value:.{decimals}f}"
        return exact(value, 6) if isinstance(value, int | float) else anything(value)

    rows = tuple(
        tuple(show(r[j], c) if j < len(r) else DASH for j, c in enumerate(columns)) for r in raw
    )
    return Table(clean(table.get("title", "")), tuple(columns), rows, clean(table.get("note", "")))


def _reference(summary: Summary) -> list[Block]:
    reference = summary.get("reference")
    return [data_table(reference)] if reference else []


def _more(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    for figure in summary.get("figures") or []:
        kind = figure.get("kind")
        if kind not in figures.KINDS:
            raise InvalidParameterError(
                f"Unknown figure {kind!r}.{did_you_mean(str(kind), figures.KINDS)}",
                f"Known figures: {', '.join(sorted(figures.KINDS))}.",
            )
        blocks.append(figures.KINDS[kind](**figure.get("options", {})))
    blocks.extend(data_table(t) for t in summary.get("tables") or [])
    return blocks


def _data(summary: Summary) -> list[Block]:
    data = summary.get("data")
    if not data:
        return []
    split = [
        f"{number(data[k])} {word}"
        for k, word in (("n_train", "for training"), ("n_test", "for testing"))
        if data.get(k) is not None
    ]
    features = data.get("features") or []
    listed = ", ".join(clean(f) for f in features[:30])
    more = f" and {number(len(features) - 30)} more" if len(features) > 30 else ""
    facts = [
        ("Name", anything(data.get("name"))),
        ("Samples", number(data.get("n_samples")) + (f" ({', '.join(split)})" if split else "")),
        ("Features", number(data.get("n_features")) + (f": {listed}{more}" if listed else "")),
        ("Shape of a sample", " x ".join(str(n) for n in data.get("sample_shape") or []) or DASH),
        ("Target", anything(data.get("target"))),
        ("Classes", _classes(data)),
        ("Fingerprint", anything(data.get("fingerprint"))),
    ]
    blocks: list[Block] = [Facts(tuple(f for f in facts if f[1] != DASH))]
    messages = tuple(clean(m) for m in data.get("messages") or [])
    if messages:
        blocks.append(Bullets("What was done to the data", messages))
    return blocks


def _classes(data: Mapping[str, Any]) -> str:
    classes = [clean(c) for c in data.get("classes") or []]
    count = data.get("n_classes") or len(classes) or None
    listed = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
    return number(count) + (f": {listed}" if listed else "")


def _settings(summary: Summary) -> list[Block]:
    blocks: list[Block] = []
    if summary.get("command"):
        blocks.append(Paragraph("To repeat this result:"))
        blocks.append(Code(clean(summary["command"])))
    settings = summary.get("settings") or {}
    if settings:
        facts = tuple((clean(k).replace("_", " "), anything(v)) for k, v in settings.items())
        blocks.append(Facts(facts))
    return blocks


def _versions(summary: Summary) -> list[Block]:
    versions = summary.get("versions") or {}
    return [Facts(tuple((clean(k), anything(v)) for k, v in versions.items()))] if versions else []


def _key_figures(summary: Summary) -> tuple[tuple[str, str, str], ...]:
    row, dense = selected_row(summary), summary.get("dense") or {}
    certificate = summary.get("certificate") or {}
    name = score_name(summary)
    score = name if name == "R2" else name.lower()
    out = []
    if row.get("n_nonzero") is not None:
        total = dense.get("n_parameters")
        what = clean(summary.get("counted") or "parameters")
        below = f"of {number(total)} {what}" if total else what
        out.append(("Nonzeros", number(row["n_nonzero"]), below))
    for key, name, show in (
        ("value", "Train loss", number),
        ("accuracy_train", f"Train {score}", percent),
        ("accuracy_test", f"Test {score}", percent),
    ):
        if finite(row.get(key)) is not None:
            known = finite(dense.get(key)) is not None
            below = f"dense {show(dense[key])}" if known else ""
            out.append((name, show(row[key]), below))
    gap = certificate.get("gap", row.get("gap"))
    if finite(gap) is not None:
        out.append(("Proven gap", number(gap, 2), "to the optimum"))
    return tuple(out)


SECTIONS: tuple[tuple[str, str, Callable[[Summary], list[Block]]], ...] = (
    ("data", "Data", _data),
    ("path", "Every budget", _path),
    ("weights", "The chosen model", _weights),
    ("layers", "Layers", _layers),
    ("certificate", "Certificate", _certificate),
    ("file", "Model file", _file),
    ("reference", "Reference", _reference),
    ("escape", "Escape from unstable points", _escape),
    ("more", "Further results", _more),
    ("training", "Training", _training),
    ("trace", "Convergence", _trace),
    ("supports", "Supports", _supports),
    ("smoothness", "Smoothness", _smoothness),
    ("settings", "Settings", _settings),
    ("versions", "Versions", _versions),
)


def build(summary: Summary) -> Report:
    """Return the report of a summary: a section for every key that is present.

    Raises
    ------
    InvalidParameterError
        If `summary` is not a mapping, its `schema_version` is not known, or it asks for a figure
        of an unknown kind.
    """
    check(summary)
    made = [(key, title, tuple(make(summary))) for key, title, make in SECTIONS]
    return Report(
        clean(summary.get("title") or "ellzero report"),
        headline(summary),
        tuple(Section(k, t, b) for k, t, b in made if b),
        _key_figures(summary),
    )
