"""A result as a summary that `ellzero.report` draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ellzero.nn.tickets.arms import ARMS
from ellzero.nn.tickets.results import TicketResult

FINDERS = ("imp", "imp-late", "one-shot", "iht", "iht-constant", "lazy")
CONTROLS = ("imp", "imp-reinit", "imp-shuffled", "imp-signs", "random-layers", "random")
OTHERS = ("iht", "iht-final", "lazy-final", "iht-reinit", "magnitude", "small-dense")


def summarize(
    result: TicketResult,
    *,
    title: str = "Tickets: does a trainable sparse subnetwork exist?",
    metric: str = "test accuracy",
    percent: bool = True,
) -> dict[str, Any]:
    """Return the summary of an experiment, for `ellzero.report`.

    Parameters
    ----------
    result : TicketResult
        What `run` returned.
    title : str
        Title of the page.
    metric : str, default="test accuracy"
        What the metric is called.
    percent : bool, default=True
        Whether the metric is a share, shown in percent.

    Returns
    -------
    dict
        Figures of the metric against the density for each arm, tables of means, paired
        differences, costs, layers and overlaps, and the answer.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import tickets
    >>> from ellzero.report import to_html
    >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] > 0).long()
    >>> task = tickets.Task(
    ...     build=lambda: torch.nn.Linear(4, 2),
    ...     loader=tickets.Shuffled(x, y, 10),
    ...     criterion=torch.nn.functional.cross_entropy,
    ...     test=tickets.Accuracy(x, y),
    ...     n_steps=20,
    ... )
    >>> found = tickets.run(task, [0.5, 0.25], arms=["imp", "iht"], seeds=[0, 1])
    >>> "<svg" in to_html(tickets.summarize(found))
    True
    """
    several = len(result.seeds) > 1
    both = {"imp", "iht"} <= set(result.arms)
    show = (lambda v: round(100 * v, 2)) if percent else (lambda v: round(v, 4))
    unit = f"{metric}, %" if percent else metric
    summary: dict[str, Any] = {
        "title": title,
        "headline": result.answer().sentence if several and both else f"{len(result.runs)} runs",
        "settings": {
            "seeds": len(result.seeds),
            "steps of a training": result.n_steps,
            "prunable entries": result.n_entries,
            "other parameters": result.n_free,
            "confidence": result.confidence,
            "intervals": result.method,
        },
        "figures": _figures(result, metric, percent),
        "tables": [_means(result, unit, show)],
        "tickets": result.to_dict(),
    }
    if several:
        summary["settings"]["margin"] = result.allowed()
        summary["tables"] += [_differences(result, show, unit)]
        if both:
            summary["tables"] += [_answer_table(result)]
    summary["tables"] += [_costs(result), _layers(result)]
    if result.overlaps:
        summary["tables"].append(_overlaps(result))
    return summary


def _word(holds: bool) -> str:
    return "yes" if holds else "no"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _figures(result: TicketResult, metric: str, percent: bool) -> list[dict[str, Any]]:
    dense = result.values("dense")
    level = _mean(dense)
    bands = []
    if len(dense) > 1:
        allowed = result.allowed()
        ends = [min(result.densities), max(result.densities)]
        side = (level - allowed, level) if result.maximize else (level, level + allowed)
        bands = [
            {"name": "within the margin", "x": ends, "low": [side[0]] * 2, "high": [side[1]] * 2}
        ]
    out = []
    for name, arms in (
        ("what finds the mask", FINDERS),
        ("what matters in a ticket", CONTROLS),
        ("own weights, other starts and sizes", OTHERS),
    ):
        there = [a for a in arms if a in result.arms]
        if not there:
            continue
        out.append(
            {
                "kind": "line_chart",
                "options": {
                    "title": f"{metric[:1].upper()}{metric[1:]} by density: {name}",
                    "series": [
                        {
                            "name": arm,
                            "x": list(result.densities),
                            "y": [_mean(result.values(arm, d)) for d in result.densities],
                        }
                        for arm in there
                    ],
                    "x_label": "share of weights kept (log scale)",
                    "y_label": metric,
                    "log_x": True,
                    "percent_y": percent,
                    "hlines": [{"name": "dense", "value": level}],
                    "bands": bands,
                    "note": "Means over seeds. " + " ".join(
                        f"{arm}: {ARMS[arm].title}." for arm in there
                    ),
                },
            }
        )  # fmt: skip
    return out


def _means(result: TicketResult, unit: str, show: Any) -> dict[str, Any]:
    def cell(arm: str, density: float | None) -> str:
        values = result.values(arm, density)
        spread = f" ± {show(statistics.stdev(values)):g}" if len(values) > 1 else ""
        return f"{show(_mean(values)):g}{spread}"

    return {
        "title": f"Mean {unit} ± deviation over seeds, by share kept",
        "columns": ["arm", *(f"{100 * d:.3g} %" for d in result.densities)],
        "rows": [
            [arm, *(cell(arm, None if arm == "dense" else d) for d in result.densities)]
            for arm in result.arms
        ],
    }


def _differences(result: TicketResult, show: Any, unit: str) -> dict[str, Any]:
    rows: list[list[Any]] = []
    pairs = [(a, "dense") for a in result.arms if a != "dense"]
    controls = ("imp-reinit", "imp-shuffled", "random-layers", "random", "one-shot", "iht")
    pairs += [("imp", a) for a in controls if a in result.arms and "imp" in result.arms]
    pairs += [("iht", a) for a in ("one-shot", "random", "iht-reinit") if a in result.arms
              and "iht" in result.arms]  # fmt: skip
    for arm, baseline in pairs:
        rows += [
            [
                f"{arm} - {baseline}",
                f"{100 * c.density:.3g} %",
                show(c.mean),
                show(c.low),
                show(c.high),
                round(c.p_corrected, 4),
                _word(c.low >= 0),
                _word(c.low >= -result.allowed()),
            ]
            for c in result.compare(arm, baseline)
        ]
    return {
        "title": f"Paired differences of {unit}; positive is better",
        "columns": ["arms", "kept", "mean", "low", "high", "p", "within 0", "within the margin"],
        "rows": rows,
        "note": (
            f"Intervals at {100 * result.confidence:g} % over seeds; p for the first arm being "
            "better, corrected over the densities by Holm's method. A ticket: the interval lies "
            "above minus the margin."
        ),
    }


def _answer_table(result: TicketResult) -> dict[str, Any]:
    found, strict = result.answer(), result.answer(margin=0.0)
    return {
        "title": "Is hard thresholding with a falling budget a ticket finder?",
        "columns": [
            "kept", "imp finds", "iht finds", "iht as good as imp", "with no margin: imp", "iht",
            "times fewer steps",
        ],
        "rows": [
            [f"{100 * d:.3g} %", *map(_word, cells), round(ratio, 2)]
            for d, *cells, ratio in zip(
                found.densities, found.reference_finds, found.finds, found.as_good,
                strict.reference_finds, strict.finds, found.cost_ratio, strict=True,
            )
        ],
        "note": f"{found.sentence}. A mask that is not found proves nothing.",
    }  # fmt: skip


def _costs(result: TicketResult) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for arm in result.arms:
        for density in result.densities if arm != "dense" else (1.0,):
            runs = result.select(arm, density)
            steps = [r.best_step for r in runs if r.best_step is not None]
            rows.append(
                [
                    arm,
                    f"{100 * density:.3g} %",
                    runs[0].n_nonzero,
                    runs[0].search_steps,
                    round(_mean(steps)) if steps else None,
                    round(_mean([r.loss for r in runs]), 4),
                ]
            )
    return {
        "title": "Steps to find the mask, best validation step, training loss",
        "columns": ["arm", "kept", "weights", "search steps", "best step", "training loss"],
        "rows": rows,
        "note": "Steps of the optimizer before the training that is judged.",
    }


def _layers(result: TicketResult) -> dict[str, Any]:
    names = list(result.sizes)
    rows: list[list[Any]] = []
    for arm in result.arms:
        if arm in ("dense", "small-dense") or arm.endswith(("-reinit", "-shuffled", "-signs")):
            continue
        for density in result.densities:
            runs = result.select(arm, density)
            shares = [_mean([r.counts[n] for r in runs]) / result.sizes[n] for n in names]
            rows.append(
                [
                    arm,
                    f"{100 * density:.3g} %",
                    *(round(100 * s, 2) for s in shares),
                    min(min(r.counts.values()) for r in runs),
                ]
            )
    return {
        "title": "Share kept in each layer, %, and the smallest count of any layer",
        "columns": ["arm", "kept", *names, "smallest count"],
        "rows": rows,
    }


def _overlaps(result: TicketResult) -> dict[str, Any]:
    def mean(density: float, what: str) -> float:
        return _mean([getattr(o, what) for o in result.overlaps if o.density == density])

    return {
        "title": "Jaccard overlap of the masks of imp and iht",
        "columns": ["kept", "overlap", "by chance", "by chance in layers"],
        "rows": [
            [
                f"{100 * d:.3g} %",
                *(round(mean(d, w), 3) for w in ("jaccard", "chance", "chance_in_layers")),
            ]
            for d in result.densities
        ],
    }
