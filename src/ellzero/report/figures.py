"""Charts as SVG: drawn twice, for a page and for a telephone, each with its table.

Series differ by color, by line style and by marker, so that a chart survives black-and-white
print. Colors come from the page's style sheet through the classes `c0` to `c5`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ellzero.report import svg
from ellzero.report.scales import Scale, extent, log_ticks, nice_ticks, tick_label
from ellzero.report.view import Column, Figure, Table
from ellzero.report.words import anything, clean, finite, number, percent, typeset

WIDE, NARROW = 720.0, 360.0
MAX_CELLS = 20_000
MAX_TABLE_ROWS = 60
# Points above which they are drawn small.
MANY = 100
MAX_POINTS = 400

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of a legend: its swatch, drawn in 26 x 12, and its words."""

    swatch: Callable[[float, float], str]
    text: str


def _legend(entries: Sequence[_Entry], width: float, size: float) -> tuple[str, float]:
    """Return the markup of a legend that wraps, and its height."""
    x, y, parts = 0.0, size, []
    for entry in entries:
        text = svg.shorten(entry.text, size, width - 40)
        room = 32 + svg.text_width(text, size) + 14
        if x and x + room > width:
            x, y = 0.0, y + size + 8
        parts.append(entry.swatch(x, y - 0.36 * size))
        parts.append(svg.label(x + 32, y, text, "legend"))
        x += room
    return "".join(parts), (y + 8 if entries else 0.0)


def _line_swatch(index: int, shape: str | None) -> Callable[[float, float], str]:
    def draw(x: float, y: float) -> str:
        line = svg.tag("path", d=f"M{x:.1f} {y:.1f}h26", class_=f"line c{index} d{index}")
        return line + (svg.marker(shape, x + 13, y, f"mark c{index}") if shape else "")

    return draw


def _dot_swatch(shape: str, color: int) -> Callable[[float, float], str]:
    return lambda x, y: svg.marker(shape, x + 13, y, f"mark c{color}", 4.5)


def _path_swatch(shift: float, moves: str, kind: str) -> Callable[[float, float], str]:
    return lambda x, y: svg.tag("path", d=f"M{x + shift:.1f} {y:.1f}{moves}", class_=kind)


def _band_swatch(x: float, y: float) -> str:
    return svg.tag("rect", x=x, y=y - 5, width=26, height=10, class_="band")


def _at(x: float) -> str:
    """Return a position on an axis, an integer where it is one."""
    return number(int(x) if x == int(x) else x)


def thin(indices: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spread positions, first and last among them."""
    if indices <= limit:
        return list(range(indices))
    return sorted({round(i * (indices - 1) / (limit - 1)) for i in range(limit)})


def _pairs(series: Mapping[str, Any]) -> list[tuple[float | None, float | None]]:
    pairs = zip(series.get("x", []), series.get("y", []), strict=False)
    return [(finite(x), finite(y)) for x, y in pairs]


def _runs(
    pairs: Sequence[tuple[float | None, float | None]], log_x: bool, log_y: bool
) -> list[Points]:
    """Return the unbroken stretches of drawable points."""
    runs: list[Points] = [[]]
    for x, y in pairs:
        bad = x is None or y is None or (log_x and x <= 0) or (log_y and y <= 0)
        if bad:
            runs.append([])
        else:
            assert x is not None
            assert y is not None
            runs[-1].append((x, y))
    return [r for r in runs if r]


def _series_table(
    title: str, series: Sequence[Mapping[str, Any]], x_label: str, show: Callable[[Any], str]
) -> Table:
    xs = sorted({x for s in series for x, _ in _pairs(s) if x is not None})
    kept = [xs[i] for i in thin(len(xs), MAX_TABLE_ROWS)]
    maps = [dict(_pairs(s)) for s in series]
    rows = tuple((_at(x), *(show(m.get(x)) for m in maps)) for x in kept)
    note = f"{len(kept)} of {len(xs)} rows, evenly spread." if len(kept) < len(xs) else ""
    columns = (Column(x_label), *(Column(clean(s.get("name", ""))) for s in series))
    return Table(title, columns, rows, note, folded=True)


def _domain(
    values: Sequence[float | None],
    *,
    log: bool,
    count: int,
    integer: bool = False,
    zero: bool = False,
) -> tuple[float, float, list[float]]:
    low, high = extent(values, log=log)
    if log:
        ticks = log_ticks(low, high, count)
        room = (high / low) ** 0.03
        return min(low / room, ticks[0]), max(high * room, ticks[-1]), ticks
    if zero and 0.0 < low < 0.4 * high:
        low = 0.0
    ticks = nice_ticks(low, high, count, integer=integer)
    return ticks[0], ticks[-1], ticks


def line_chart(
    *,
    title: str,
    series: Sequence[Mapping[str, Any]],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    integer_x: bool = False,
    percent_y: bool = False,
    bands: Sequence[Mapping[str, Any]] = (),
    hlines: Sequence[Mapping[str, Any]] = (),
    selected_x: float | None = None,
    description: str = "",
    note: str = "",
    animate: bool = False,
    table: Table | None = None,
) -> Figure:
    """Draw series over a common axis.

    Parameters
    ----------
    title, x_label, y_label : str
        Words on the chart.
    series : sequence of mapping
        Each with `name`, `x`, `y` and `style`: "line" (default), "points", or "thin" for one of
        many runs without an entry in the legend. None and NaN break a line.
    log_x, log_y : bool, default=False
        Logarithmic axes; values that are not positive are left out.
    integer_x : bool, default=False
        Ticks at integers only.
    percent_y : bool, default=False
        The values are fractions, shown as percentages.
    bands : sequence of mapping, default=()
        Areas, each with `name`, `x`, `low` and `high`.
    hlines : sequence of mapping, default=()
        Levels, each with `name` and `value`.
    selected_x : float or None, default=None
        Where a vertical line marks the chosen model.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.
    animate : bool, default=False
        Draw the lines one after another when the page opens; at rest the picture is complete.
    table : Table or None, default=None
        The table behind the chart; None makes it from the series.

    Returns
    -------
    Figure
        The chart in two widths and its table.

    Examples
    --------
    >>> from ellzero.report import figures
    >>> chart = figures.line_chart(
    ...     title="Loss", x_label="step", y_label="loss",
    ...     series=[{"name": "run", "x": [0, 1, 2], "y": [1.0, 0.5, None]}],
    ... )
    >>> chart.table.rows
    (('0', '1.000'), ('1', '0.5000'), ('2', '–'))
    """
    show = percent if percent_y else number
    named = [s for s in series if s.get("style", "line") != "thin"]
    levels = [
        (clean(h["name"]), v)
        for h in hlines
        if (v := finite(h["value"])) is not None and not (log_y and v <= 0)
    ]
    if table is None:
        extra = [
            {"name": n, "x": xs, "y": [v] * len(xs)} for n, v in levels if (xs := _all_x(series))
        ]
        table = _series_table(title, [*series, *extra], x_label, show)

    def draw(width: float) -> str:
        compact = width < 500
        size = 11.0 if compact else 12.0
        height = 270.0 if compact else 340.0
        entries, colors, color = [], {}, 0
        for i, s in enumerate(series):
            if s.get("style", "line") == "thin":
                colors[i] = 0
                continue
            colors[i] = color % 6
            shape = svg.MARKERS[color % 6] if len(_pairs(s)) <= 40 else None
            if s.get("style") == "points":
                swatch = _dot_swatch(svg.MARKERS[color % 6], color % 6)
                entries.append(_Entry(swatch, clean(s.get("name", ""))))
            elif len(named) > 1 or levels or bands:
                entries.append(_Entry(_line_swatch(color % 6, shape), clean(s.get("name", ""))))
            color += 1
        entries.extend(_Entry(_band_swatch, clean(b["name"])) for b in bands)
        entries.extend(
            _Entry(_path_swatch(0, "h26", f"level l{k % 3}"), f"{name} {show(value)}")
            for k, (name, value) in enumerate(levels)
        )
        if selected_x is not None:
            entries.append(
                _Entry(_path_swatch(13, "m0-6v12", "chosen"), f"chosen: {_at(selected_x)}")
            )
        legend, legend_height = _legend(entries, width, size)
        all_pairs = [p for s in series for p in _pairs(s)]
        ys: list[float | None] = [y for _, y in all_pairs] + [v for _, v in levels]
        for b in bands:
            ys += [finite(v) for v in (*b["low"], *b["high"])]
        y0, y1, y_ticks = _domain(ys, log=log_y, count=6, zero=not percent_y)
        if percent_y and y1 > 1.0 >= max((y for y in ys if y is not None), default=0.0):
            y1 = 1.0
            y_ticks = [t for t in y_ticks if t <= 1.0]
        xs: list[float | None] = [x for x, _ in all_pairs]
        low, high = extent(xs, log=log_x)
        if log_x:
            x0, x1, x_ticks = _domain(xs, log=True, count=6)
        else:
            if high == low:
                low, high = low - 1, high + 1
            target = 5 if compact else 8
            if integer_x and high - low <= (9 if compact else 16):
                x_ticks = [float(v) for v in range(math.ceil(low), math.floor(high) + 1)]
            else:
                ticks = nice_ticks(low, high, target, integer=integer_x)
                x_ticks = [t for t in ticks if low <= t <= high]
            pad = 0.02 * (high - low)
            x0, x1 = low - pad, high + pad
        y_labels = [tick_label(t, y_ticks, log=log_y, pct=percent_y) for t in y_ticks]
        left = max(svg.text_width(t, size) for t in y_labels) + 12
        top = legend_height + size + 18
        bottom = height - 2.0 * size - 18
        sx = Scale(x0, x1, left, width - 12, log_x)
        sy = Scale(y0, y1, bottom, top, log_y)
        body = [legend, svg.label(0, top - 12, y_label, "axis")]
        for t, text in zip(y_ticks, y_labels, strict=True):
            body.append(svg.tag("path", d=f"M{left:.1f} {sy(t):.1f}H{width:.1f}", class_="grid"))
            body.append(svg.label(left - 8, sy(t) + 0.36 * size, text, "tick end"))
        body.append(svg.tag("path", d=f"M{left:.1f} {bottom:.1f}H{width:.1f}", class_="base"))
        for t in x_ticks:
            text = tick_label(t, x_ticks, log=log_x)
            body.append(svg.tag("path", d=f"M{sx(t):.1f} {bottom:.1f}v5", class_="base"))
            body.append(svg.label(sx(t), bottom + size + 8, text, "tick mid"))
        body.append(svg.label((left + width) / 2, height - 4, x_label, "axis mid"))
        if selected_x is not None and x0 <= selected_x <= x1:
            at = f"M{sx(selected_x):.1f} {top:.1f}V{bottom:.1f}"
            body.append(svg.tag("path", d=at, class_="chosen"))
        body.extend(_band(b, sx, sy, log_x, log_y) for b in bands)
        for k, (name, value) in enumerate(levels):
            line = svg.tag(
                "path", d=f"M{left:.1f} {sy(value):.1f}H{width:.1f}", class_=f"level l{k % 3}"
            )
            body.append(svg.titled(f"{name}: {show(value)}", line))
        marks: list[str] = []
        count = 0
        # Many points are small and lie below the lines, which they would hide.
        crowds = [s.get("style") == "points" and len(_pairs(s)) > MANY for s in series]
        for i in sorted(range(len(series)), key=lambda i: not crowds[i]):
            s = series[i]
            style, c = s.get("style", "line"), colors[i]
            pairs = _pairs(s)
            pairs = [pairs[k] for k in thin(len(pairs), MAX_POINTS)]
            for run in _runs(pairs, log_x, log_y):
                path = [(sx(x), sy(y)) for x, y in run]
                if style == "thin":
                    kind = f"thin c{count % 3}" + (f" draw a{count % 8}" if animate else "")
                    body.append(svg.tag("path", d=svg.polyline(path), class_=kind, pathLength="1"))
                    continue
                if style == "line" and len(path) > 1:
                    body.append(svg.tag("path", d=svg.polyline(path), class_=f"line c{c} d{c}"))
                shape = svg.MARKERS[c]
                visible = len(pairs) <= 40 or style == "points" or len(path) == 1
                for k in thin(len(run), 40 if style == "line" else MAX_POINTS):
                    x, y = run[k]
                    words = f"{s.get('name', '')}: {show(y)} at {x_label} {_at(x)}"
                    hit = svg.tag("circle", cx=path[k][0], cy=path[k][1], r=9, class_="hit")
                    radius = 1.8 if crowds[i] else 4.0
                    dot = svg.marker(shape, *path[k], f"mark c{c}", radius) if visible else ""
                    marks.append(svg.titled(words, hit + dot))
            if crowds[i]:
                body, marks = body + marks, []
            count += 1
        return svg.picture(
            width,
            height,
            title,
            description or _describe(series, x_label, y_label),
            "".join(body + marks),
        )

    words = description or _describe(series, x_label, y_label)
    return Figure(clean(title), words, draw(WIDE), draw(NARROW), table, note)


def _all_x(series: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({x for s in series for x, _ in _pairs(s) if x is not None})


def _describe(series: Sequence[Mapping[str, Any]], x_label: str, y_label: str) -> str:
    names = [clean(s.get("name", "")) for s in series][:6]
    more = "" if len(series) <= 6 else f" and {len(series) - 6} more"
    return clean(f"{y_label} against {x_label}: {', '.join(names)}{more}")


def _band(band: Mapping[str, Any], sx: Scale, sy: Scale, log_x: bool, log_y: bool) -> str:
    """Return an area with a dotted lower edge, so that it also shows in black and white."""
    triples = [
        (finite(x), finite(a), finite(b))
        for x, a, b in zip(band["x"], band["low"], band["high"], strict=False)
    ]
    lows = _runs([(x, a if b is not None else None) for x, a, b in triples], log_x, log_y)
    tops = {x: b for x, _, b in triples if x is not None and b is not None}
    parts = []
    for run in lows:
        edge = [(sx(x), sy(max(a, sy.low))) for x, a in run]
        upper = [(sx(x), sy(tops[x])) for x, _ in reversed(run)]
        if len(run) > 1:
            parts.append(svg.tag("path", d=svg.polyline(edge + upper) + "z", class_="band"))
            parts.append(svg.tag("path", d=svg.polyline(edge), class_="edge"))
        for (x, a), (px, py) in zip(run, edge, strict=True):
            tick = svg.tag("path", d=f"M{px - 5:.1f} {py:.1f}h10", class_="bound")
            parts.append(svg.titled(f"{band['name']}: {number(a)} at {_at(x)}", tick))
    return "".join(parts)


def scatter(
    *, title: str, series: Sequence[Mapping[str, Any]], x_label: str, y_label: str, **options: Any
) -> Figure:
    """Draw points; the arguments are those of `line_chart`."""
    points = [{**s, "style": "points"} for s in series]
    return line_chart(title=title, series=points, x_label=x_label, y_label=y_label, **options)


def bars(
    *,
    title: str,
    labels: Sequence[Any],
    values: Sequence[Any],
    value_label: str = "value",
    label_label: str = "entry",
    signed: bool = False,
    description: str = "",
    note: str = "",
) -> Figure:
    """Draw one horizontal bar per label, to the left for negative values.

    Parameters
    ----------
    title : str
        Words over the chart.
    labels, values : sequence
        Names and numbers of the bars; None and NaN leave a row empty.
    value_label, label_label : str
        What the numbers and the names are.
    signed : bool, default=False
        The two signs differ in color and zeros stay empty, as in a picture of weights.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.

    Returns
    -------
    Figure
        The chart in two widths and its table.
    """
    names = [anything(v) for v in labels]
    numbers = [finite(v) for v in values]
    shown = [anything(v) if isinstance(v, int) else number(v) for v in values]
    words = description or f"{len(names)} bars, {value_label} by {label_label}"

    def draw(width: float) -> str:
        compact = width < 500
        size = 11.0 if compact else 12.0
        row = size + 11.0
        room = width * (0.36 if compact else 0.4)
        texts = [svg.shorten(n, size, room) for n in names]
        heading = svg.shorten(label_label, size, room)
        left = max(svg.text_width(t, size) for t in (heading, *texts)) + 12
        pad = max((svg.text_width(t, size) for t in shown), default=0.0) + 10
        pad = max(pad, svg.text_width(value_label, size) + 10)
        low, high = extent([*numbers, 0.0])
        negative = low < 0
        start, end = left + (pad if negative else 0.0), width - pad
        sx = Scale(low, high if high > low else low + 1.0, start, end)
        zero = sx(0.0)
        top = size + 10
        height = top + row * len(names) + 8
        body = [
            svg.label(left - 12, size, heading, "axis end"),
            svg.label(zero + 1, size, value_label, "axis"),
        ]
        for i, (name, text, value, value_text) in enumerate(
            zip(names, texts, numbers, shown, strict=True)
        ):
            y = top + row * i
            middle = y + row / 2 + 0.36 * size - 1
            body.append(svg.label(left - 12, middle, text, "tick end"))
            if value is None:
                body.append(svg.label(zero + 6, middle, value_text, "tick"))
                continue
            if signed and value == 0.0:
                continue
            x = min(zero, sx(value))
            kind = "bar" + ((" neg" if value < 0 else " pos") if signed else "")
            bar = svg.tag(
                "rect",
                x=x,
                y=y + 3,
                width=max(abs(sx(value) - zero), 0.5),
                height=row - 8,
                class_=kind,
            )
            if value < 0:
                end_text = svg.label(x - 6, middle, value_text.replace("-", "−"), "tick end")
            else:
                end_text = svg.label(sx(value) + 6, middle, value_text, "tick")
            body.append(svg.titled(f"{name}: {value_text}", bar + end_text))
        body.append(
            svg.tag("path", d=f"M{zero:.1f} {top - 2:.1f}V{height - 8:.1f}", class_="base")
        )
        return svg.picture(width, height, title, words, "".join(body))

    table = Table(
        clean(title),
        (Column(label_label, "text"), Column(value_label)),
        tuple(zip(names, shown, strict=True)),
        folded=True,
    )
    return Figure(clean(title), words, draw(WIDE), draw(NARROW), table, note)


def histogram(
    *,
    title: str,
    values: Sequence[Any],
    counts: Sequence[int] | None = None,
    x_label: str = "value",
    bins: int | None = None,
    description: str = "",
    note: str = "",
) -> Figure:
    """Draw how often values occur: a bar per distinct value, or per bin when there are many.

    Parameters
    ----------
    title, x_label : str
        Words on the chart.
    values : sequence
        Numbers; None and NaN are left out.
    counts : sequence of int or None, default=None
        How often each value occurs. None means once.
    bins : int or None, default=None
        Number of bins of equal width. None takes distinct values up to 20, else the square root
        of the count, at most 30.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.

    Returns
    -------
    Figure
        The chart in two widths and its table.
    """
    weights = [1] * len(values) if counts is None else list(counts)
    pairs = [(x, w) for v, w in zip(values, weights, strict=True) if (x := finite(v)) is not None]
    tally: dict[float, int] = {}
    for x, w in pairs:
        tally[x] = tally.get(x, 0) + w
    ordered = sorted(tally)
    if bins is None and len(ordered) <= 20:
        labels = [typeset(number(x, 5)) for x in ordered]
        heights = [tally[x] for x in ordered]
    else:
        total = sum(tally.values())
        number_of_bins = bins or max(5, min(30, round(math.sqrt(total))))
        low, high = extent(ordered)
        step = (high - low) / number_of_bins or 1.0
        heights = [0] * number_of_bins
        for x in ordered:
            heights[min(int((x - low) / step), number_of_bins - 1)] += tally[x]
        labels = [
            f"{number(low + i * step)} to {number(low + (i + 1) * step)}"
            for i in range(number_of_bins)
        ]
    words = description or f"{sum(heights)} values in {len(heights)} bars"
    return bars(
        title=title,
        labels=labels,
        values=heights,
        value_label="count",
        label_label=x_label,
        description=words,
        note=note,
    )


def _names(labels: Sequence[Any] | None, count: int) -> list[str]:
    """Return one name per entry; the position where there is none."""
    given = list(labels or [])
    return [clean(given[i]) if i < len(given) else str(i) for i in range(count)]


def _block_rows(values: list[list[float | None]], block: int) -> list[list[float | None]]:
    """Return the entry of largest magnitude of every block."""
    n_rows, n_columns = len(values), len(values[0])
    out = []
    for i in range(0, n_rows, block):
        row: list[float | None] = []
        for j in range(0, n_columns, block):
            cells = [v for r in values[i : i + block] for v in r[j : j + block] if v is not None]
            row.append(max(cells, key=abs) if cells else None)
        out.append(row)
    return out


def heat_map(
    *,
    title: str,
    values: Sequence[Sequence[Any]],
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    description: str = "",
    note: str = "",
    gap_before: int | None = None,
) -> Figure:
    """Draw a matrix with its support: numbers in small ones, shapes in large ones.

    Positive and negative entries differ by sign or shape as well as by color; zeros are empty.

    Parameters
    ----------
    title : str
        Words over the picture.
    values : sequence of sequences
        The rows. None and NaN are shown as a dash.
    row_labels, column_labels : sequence of str or None, default=None
        Names; used when the matrix is small enough.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.
    gap_before : int or None, default=None
        Column that stands apart, such as an intercept.

    Returns
    -------
    Figure
        The picture in two widths and its table.

    Notes
    -----
    More than 20,000 cells are drawn in square blocks, each by its entry of largest magnitude.
    """
    rows = [[finite(v) for v in r] for r in values]
    n_rows, n_columns = len(rows), len(rows[0]) if rows else 0
    names, heads = _names(row_labels, n_rows), _names(column_labels, n_columns)
    nonzero = sum(1 for r in rows for v in r if v)
    shape = (
        f"{n_rows} rows, {n_columns} columns, {nonzero} of {n_rows * n_columns} entries nonzero"
    )
    words = description or shape
    largest = max((abs(v) for r in rows for v in r if v is not None), default=0.0) or 1.0
    if n_columns <= 12 and n_rows <= 24:
        wide, narrow = (
            _small_map(
                title,
                words=words,
                rows=rows,
                names=names,
                heads=heads,
                largest=largest,
                gap_before=gap_before,
                width=width,
            )
            for width in (WIDE, NARROW)
        )
        table = Table(
            clean(title),
            (Column("", "text"), *(Column(h) for h in heads)),
            tuple((n, *(number(v) for v in r)) for n, r in zip(names, rows, strict=True)),
            folded=True,
        )
        return Figure(clean(title), words, wide, narrow, table, note)
    notes = [note] if note else []
    cells = rows
    if n_rows * n_columns > MAX_CELLS:
        block = math.ceil(math.sqrt(n_rows * n_columns / MAX_CELLS))
        cells = _block_rows(rows, block)
        notes.append(f"Each cell is the largest magnitude of {block} x {block} entries.")
    turned = len(cells) > 1.5 * len(cells[0])
    if turned:
        cells = [list(column) for column in zip(*cells, strict=True)]
        notes.append("Drawn transposed: rows run from left to right.")
    notes.append("Full cells are positive, flat bars negative; zeros are empty.")
    axes = (n_rows, n_columns, turned)
    wide, narrow = (
        _large_map(title, words=words, cells=cells, axes=axes, largest=largest, width=width)
        for width in (WIDE, NARROW)
    )
    ranked = sorted(
        ((abs(v), -i, -j, v) for i, r in enumerate(rows) for j, v in enumerate(r) if v),
        reverse=True,
    )[:MAX_TABLE_ROWS]
    table = Table(
        clean(title),
        (Column("row", "text"), Column("column", "text"), Column("value")),
        tuple((names[-i], heads[-j], number(v)) for _, i, j, v in ranked),
        f"The {len(ranked)} largest of {number(nonzero)} nonzero entries."
        if nonzero > len(ranked)
        else "",
        folded=True,
    )
    return Figure(clean(title), words, wide, narrow, table, " ".join(notes))


def _small_map(
    title: str,
    *,
    words: str,
    rows: list[list[float | None]],
    names: list[str],
    heads: list[str],
    largest: float,
    gap_before: int | None,
    width: float,
) -> str:
    compact = width < 500
    size = 11.0 if compact else 12.0
    n_rows, n_columns = len(rows), max(1, len(heads))
    gap = 10.0 if gap_before else 0.0
    left = min(max((svg.text_width(n, size) for n in names), default=0.0), width * 0.28) + 10
    cell_w = min((width - left - gap) / n_columns, 110.0)
    cell_h = 34.0 if compact else 40.0
    # Long names of narrow columns are set at a slant, or cut when even that has no room.
    slanted = any(svg.text_width(h, size) > cell_w - 6 for h in heads)
    longest = max((svg.text_width(h, size) for h in heads), default=0.0)
    rise = min(longest, 110.0) * 0.71 + size if slanted else size + 8
    top = rise + 4
    right = min(longest, 110.0) * 0.71 if slanted else 0.0
    if slanted:
        cell_w = min(cell_w, (width - left - gap - max(0.0, right - cell_w / 2)) / n_columns)
    height = top + cell_h * n_rows + 6
    digits = 3 if cell_w >= 46 else 2
    # Numbers everywhere or nowhere: where they do not fit, every cell shows its sign.
    roomy = all(
        1.08 * svg.text_width(number(v, digits), size) <= cell_w - 4 for r in rows for v in r if v
    )
    body = []

    def x_of(j: int) -> float:
        return left + j * cell_w + (gap if gap_before is not None and j >= gap_before else 0.0)

    for j, head in enumerate(heads):
        x = x_of(j) + cell_w / 2
        if slanted:
            text = svg.shorten(head, size, 110.0)
            at = f"translate({x - 4:.1f} {top - 6:.1f}) rotate(-45)"
            body.append(svg.label(0, 0, text, "tick", transform=at))
        else:
            body.append(svg.label(x, top - 10, head, "tick mid"))
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        y = top + i * cell_h
        body.append(
            svg.label(
                left - 10,
                y + cell_h / 2 + 0.36 * size,
                svg.shorten(name, size, left - 8),
                "tick end",
            )
        )
        for j, value in enumerate(row):
            x = x_of(j)
            box = {"x": x + 1.5, "y": y + 1.5, "width": cell_w - 3, "height": cell_h - 3, "rx": 3}
            if not value:
                body.append(svg.tag("rect", class_="empty", **box))
                if value is None:
                    body.append(svg.label(x + cell_w / 2, y + cell_h / 2 + 4, "–", "tick mid"))
                continue
            kind = "cell neg" if value < 0 else "cell pos"
            opacity = f"{0.14 + 0.46 * abs(value) / largest:.2f}"
            rect = svg.tag("rect", class_=kind, fill_opacity=opacity, **box)
            text = number(value, digits).replace("-", "−")
            if not roomy:
                text = "−" if value < 0 else "+"
            inside = svg.label(x + cell_w / 2, y + cell_h / 2 + 0.36 * size, text, "value mid")
            body.append(svg.titled(f"{name}, {heads[j]}: {number(value)}", rect + inside))
    return svg.picture(width, height, title, words, "".join(body))


def _large_map(
    title: str,
    *,
    words: str,
    cells: list[list[float | None]],
    axes: tuple[int, int, bool],
    largest: float,
    width: float,
) -> str:
    size = 11.0 if width < 500 else 12.0
    n_rows, n_columns, turned = axes
    down, across = ("column", "row") if turned else ("row", "column")
    n_down, n_across = (n_columns, n_rows) if turned else (n_rows, n_columns)
    left = svg.text_width(str(n_down), size) + 14
    top, bottom = size + 12, size * 2 + 14
    cell_w = min((width - left) / len(cells[0]), 24.0)
    cell_h = min(cell_w, 520.0 / len(cells))
    right, base = left + cell_w * len(cells[0]), top + cell_h * len(cells)
    paths: dict[str, list[str]] = {}
    for i, row in enumerate(cells):
        j = 0
        while j < len(row):
            kind = _level(row[j], largest)
            end = j + 1
            while end < len(row) and _level(row[end], largest) == kind:
                end += 1
            if kind:
                # A flat bar reads as a minus sign: the sign survives without color.
                y, h = (f"{i}.3", ".4") if kind.startswith("neg") else (str(i), "1")
                paths.setdefault(kind, []).append(f"M{j} {y}h{end - j}v{h}h{j - end}z")
            j = end
    frame = svg.tag("rect", x=left, y=top, width=right - left, height=base - top, class_="frame")
    body = [frame]
    # Cells are drawn in units of cells: short numbers keep large matrices small.
    layers = []
    for kind, data in sorted(paths.items()):
        sign, level = kind.split("-")
        layers.append(svg.tag("path", d="".join(data), class_=f"cell {sign} o{level}"))
    grid = f"translate({left:.1f} {top:.1f}) scale({cell_w:.4f} {cell_h:.4f})"
    body.append(svg.tag("g", "".join(layers), transform=grid))
    body.append(svg.label(0, size, f"{down} 0 to {n_down - 1}", "axis"))
    for k in sorted({0, n_down - 1}):
        at = Scale(0, max(1, n_down - 1), top + 0.8 * size, base)(k)
        body.append(svg.label(left - 6, at, str(k), "tick end"))
    body.append(svg.label(left, base + size + 5, "0", "tick"))
    body.append(svg.label(right, base + size + 5, str(n_across - 1), "tick end"))
    body.append(svg.label((left + right) / 2, base + size + 5, across, "axis mid"))
    return svg.picture(width, base + bottom, title, words, "".join(body))


def _level(value: float | None, largest: float) -> str:
    """Return sign and one of four strengths, or nothing for zero and unknown."""
    if not value:
        return ""
    strength = min(3, int(4 * abs(value) / largest))
    return f"{'neg' if value < 0 else 'pos'}-{strength}"


def density_map(
    *,
    title: str,
    counts: Sequence[Sequence[int]],
    most: int,
    block: Sequence[int],
    shape: Sequence[int],
    unit: str = "entry",
    description: str = "",
    note: str = "",
) -> Figure:
    """Draw how many nonzeros the blocks of a matrix have: the more, the darker.

    Parameters
    ----------
    title : str
        Words over the picture.
    counts : sequence of sequences of int
        Nonzeros of every block.
    most : int
        Entries of a whole block.
    block, shape : sequence of two int
        Rows and columns of a block, and of the matrix.
    unit : str, default="entry"
        What is counted.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.

    Returns
    -------
    Figure
        The picture in two widths, and a table of coarse densities.

    Examples
    --------
    >>> from ellzero.report import figures
    >>> chart = figures.density_map(
    ...     title="Weights", counts=[[0, 1], [1, 1]], most=1, block=(1, 1), shape=(2, 2)
    ... )
    >>> chart.description
    '2 rows, 2 columns, 3 nonzeros; the fullest cell has 1 of 1'
    """
    n_rows, n_columns = shape
    cells = [list(row) for row in counts]
    total = sum(map(sum, cells))
    largest = max((c for row in cells for c in row), default=0)
    words = description or (
        f"{n_rows} rows, {n_columns} columns, {number(total)} nonzeros; the fullest cell has "
        f"{largest} of {most}"
    )
    notes = [note] if note else []
    if block[0] * block[1] > 1:
        notes.append(f"Each cell is a block of {block[0]} x {block[1]} entries.")
    turned = len(cells) > 1.5 * len(cells[0])
    drawn = [list(column) for column in zip(*cells, strict=True)] if turned else cells
    if turned:
        notes.append("Drawn transposed: rows run from left to right.")
    # At most four shades, each for a range of counts.
    shades = min(4, max(1, largest))
    ends = [round(largest * (k + 1) / shades) for k in range(shades)]

    def shade(count: int) -> int:
        return next(k for k, end in enumerate(ends) if count <= end)

    def draw(width: float) -> str:
        size = 11.0 if width < 500 else 12.0
        entries = []
        low = 1
        for k, end in enumerate(ends):
            text = str(end) if low >= end else f"{low} to {end}"
            swatch = _shade_swatch(_opacity(k, shades))
            many = "entries" if unit == "entry" else f"{unit}s"
            suffix = "" if k else f" {unit if end == 1 else many}"
            entries.append(_Entry(swatch, text + suffix))
            low = end + 1
        legend, rise = _legend(entries if largest else [], width, size)
        down, across = ("column", "row") if turned else ("row", "column")
        n_down, n_across = (n_columns, n_rows) if turned else (n_rows, n_columns)
        left = svg.text_width(str(n_down), size) + 14
        top, bottom = rise + size + 12, size * 2 + 14
        cell_w = min((width - left - 4) / len(drawn[0]), 16.0)
        cell_h = min(cell_w, 520.0 / len(drawn))
        right, base = left + cell_w * len(drawn[0]), top + cell_h * len(drawn)
        paths: dict[int, list[str]] = {}
        for i, row in enumerate(drawn):
            j = 0
            while j < len(row):
                end_of_run = j + 1
                if row[j]:
                    kind = shade(row[j])
                    while end_of_run < len(row) and row[end_of_run]:
                        if shade(row[end_of_run]) != kind:
                            break
                        end_of_run += 1
                    run = end_of_run - j
                    paths.setdefault(kind, []).append(f"M{j} {i}h{run}v1h{-run}z")
                j = end_of_run
        frame = svg.tag(
            "rect", x=left, y=top, width=right - left, height=base - top, class_="frame"
        )
        layers = [
            svg.tag("path", d="".join(data), class_=f"cell shade o{_opacity(kind, shades)}")
            for kind, data in sorted(paths.items())
        ]
        grid = f"translate({left:.1f} {top:.1f}) scale({cell_w:.4f} {cell_h:.4f})"
        body = [legend, frame, svg.tag("g", "".join(layers), transform=grid) if layers else ""]
        body.append(svg.label(0, rise + size, f"{down} 0 to {n_down - 1}", "axis"))
        for k in sorted({0, n_down - 1}):
            at = Scale(0, max(1, n_down - 1), top + 0.8 * size, base)(k)
            body.append(svg.label(left - 6, at, str(k), "tick end"))
        body.append(svg.label(left, base + size + 5, "0", "tick"))
        if right - left > 120:
            body.append(svg.label(right, base + size + 5, str(n_across - 1), "tick end"))
        body.append(svg.label((left + right) / 2, base + size + 5, across, "axis mid"))
        return svg.picture(width, base + bottom, title, words, "".join(body))

    table = _density_table(title, cells, block, shape)
    return Figure(clean(title), words, draw(WIDE), draw(NARROW), table, " ".join(notes))


def _opacity(shade: int, shades: int) -> int:
    """Return the class of a shade: the darkest is always the last."""
    return 3 if shades == 1 else round(3 * shade / (shades - 1))


def _shade_swatch(kind: int) -> Callable[[float, float], str]:
    return lambda x, y: svg.tag(
        "rect", x=x + 8, y=y - 5, width=12, height=10, class_=f"shade o{kind}"
    )


def _density_table(
    title: str, cells: Sequence[Sequence[int]], block: Sequence[int], shape: Sequence[int]
) -> Table:
    """Return the density of at most ten times six parts of a matrix."""
    bands = [
        (min(10, len(cells)), len(cells), block[0], shape[0]),
        (min(6, len(cells[0])), len(cells[0]), block[1], shape[1]),
    ]
    edges = [[round(k * n / parts) for k in range(parts + 1)] for parts, n, _, _ in bands]

    def span(axis: int, k: int) -> tuple[int, int]:
        side, n = bands[axis][2], bands[axis][3]
        return edges[axis][k] * side, min(n, edges[axis][k + 1] * side)

    def words(axis: int, k: int) -> str:
        first, end = span(axis, k)
        return str(first) if end == first + 1 else f"{first} to {end - 1}"

    rows = []
    for i in range(bands[0][0]):
        row = [words(0, i)]
        for j in range(bands[1][0]):
            (top, base), (left, right) = span(0, i), span(1, j)
            count = sum(
                sum(r[edges[1][j] : edges[1][j + 1]]) for r in cells[edges[0][i] : edges[0][i + 1]]
            )
            row.append(percent(count / ((base - top) * (right - left))))
        rows.append(tuple(row))
    heads = (Column("rows", "text"), *(Column(words(1, j)) for j in range(bands[1][0])))
    note = "Share of nonzeros; columns of the matrix from left to right."
    return Table(clean(title), heads, tuple(rows), note, folded=True)


def stacked(title: str, charts: Sequence[Figure], table: Table) -> Figure:
    """Put charts with a common axis under one another, with one table behind them."""
    return Figure(
        clean(title),
        " ".join(f"{c.description}." for c in charts),
        "".join(c.wide for c in charts),
        "".join(c.narrow for c in charts),
        table,
        " ".join(c.note for c in charts if c.note),
    )


def raster(
    *,
    title: str,
    iterations: Sequence[int],
    masks: Sequence[Sequence[Any]],
    labels: Sequence[Any] | None = None,
    x_label: str = "iteration",
    description: str = "",
    note: str = "",
) -> Figure:
    """Draw which entries are in the support at which iteration.

    Parameters
    ----------
    title, x_label : str
        Words on the picture.
    iterations : sequence of int
        When the support was recorded; the columns of the picture are evenly spaced.
    masks : sequence of sequences
        Zeros and ones, one row per iteration.
    labels : sequence of str or None, default=None
        Names of the entries.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.

    Returns
    -------
    Figure
        The picture in two widths, and a table of when each entry was in the support.
    """
    n_columns = len(masks)
    n_entries = len(masks[0]) if masks else 0
    names = _names(labels, n_entries)
    kept = list(range(n_entries))
    notes = [note] if note else []
    if n_entries > 40:
        counts = [sum(1 for m in masks if m[i]) for i in kept]
        used = [i for i in kept if counts[i]]
        kept = sorted(sorted(used, key=lambda i: -counts[i])[:60])
        notes.append(f"{len(kept)} of {n_entries} entries: those most often in the support.")
    spans: dict[int, list[tuple[int, int]]] = {i: [] for i in kept}
    for i in kept:
        start = None
        for k in range(n_columns + 1):
            on = k < n_columns and bool(masks[k][i])
            if on and start is None:
                start = k
            elif not on and start is not None:
                spans[i].append((start, k))
                start = None
    changes = sum(1 for a, b in itertools.pairwise(masks) if list(a) != list(b))
    words = (
        description
        or f"{n_entries} entries over {n_columns} recorded iterations, {changes} changes"
    )

    def when(i: int) -> str:
        parts = [
            number(iterations[a])
            if b - a == 1
            else f"{number(iterations[a])} to {number(iterations[b - 1])}"
            for a, b in spans[i]
        ]
        return (", ".join(parts[:8]) + (" ..." if len(parts) > 8 else "")) or "never"

    def draw(width: float) -> str:
        size = 11.0 if width < 500 else 12.0
        row = 18.0 if len(kept) <= 30 else 12.0
        font = min(size, row - 2)
        texts = [
            svg.shorten(names[i], font, width * (0.46 if width < 500 else 0.34)) for i in kept
        ]
        left = max((svg.text_width(t, font) for t in texts), default=0.0) + 10
        right = width - 8
        top, base = 4.0, 4.0 + row * len(kept)
        step = (right - left) / max(1, n_columns)
        kind = "tick end" if row > 12 else "tick end small"
        body = []
        for r, i in enumerate(kept):
            y = top + r * row
            body.append(
                svg.label(
                    left - 8,
                    y + row / 2 + 0.36 * font,
                    texts[r],
                    kind,
                )
            )
            body.append(
                svg.tag("path", d=f"M{left:.1f} {y + row / 2:.1f}H{right:.1f}", class_="grid")
            )
            for a, b in spans[i]:
                words = f"{names[i]}: iteration {iterations[a]} to {iterations[b - 1]}"
                box = svg.tag(
                    "rect",
                    x=left + a * step,
                    y=y + 3,
                    width=max((b - a) * step - 0.5, 0.8),
                    height=row - 6,
                    rx=1.5,
                    class_="span last" if b == n_columns else "span",
                )
                body.append(svg.titled(words, box))
        body.append(svg.tag("path", d=f"M{left:.1f} {base:.1f}H{right:.1f}", class_="base"))
        limit = max(2, int((right - left) / 60))
        for k in thin(n_columns, limit):
            x = left + (k + 0.5) * step
            body.append(svg.tag("path", d=f"M{x:.1f} {base:.1f}v5", class_="base"))
            body.append(svg.label(x, base + size + 8, str(iterations[k]), "tick mid"))
        height = base + 2 * size + 20
        body.append(svg.label((left + right) / 2, height - 4, x_label, "axis mid"))
        return svg.picture(width, height, title, description_text, "".join(body))

    description_text = words
    table = Table(
        clean(title),
        (Column("entry", "text"), Column(f"in the support at {x_label}", "text")),
        tuple((names[i], when(i)) for i in kept),
        folded=True,
    )
    return Figure(clean(title), words, draw(WIDE), draw(NARROW), table, " ".join(notes))


_KIND_MARKS = {"lower estimate": "right", "upper bound": "left", "exact": "diamond"}


def dot_plot(
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    x_label: str,
    description: str = "",
    note: str = "",
    table: Table | None = None,
) -> Figure:
    """Draw one mark per row; its shape tells the kind of the number.

    An arrow points to where the truth lies: right for a lower estimate, left for an upper bound;
    a diamond is exact.

    Parameters
    ----------
    title, x_label : str
        Words on the chart.
    rows : sequence of mapping
        Each with `label`, `value`, `kind` ("lower estimate", "upper bound", "exact") and,
        optionally, `group`: rows of one group stand under its heading.
    description, note : str, default=""
        For those who cannot see the figure; and a sentence under it.
    table : Table or None, default=None
        The table behind the chart; None makes it from the rows.

    Returns
    -------
    Figure
        The chart in two widths and its table.
    """
    kinds = [str(r.get("kind", "")) for r in rows]
    present = [k for k in _KIND_MARKS if k in kinds]
    words = description or f"{len(rows)} numbers by method: {', '.join(present)}"

    def draw(width: float) -> str:
        compact = width < 500
        size = 11.0 if compact else 12.0
        entries = [
            _Entry(_dot_swatch(_KIND_MARKS[k], list(_KIND_MARKS).index(k)), k) for k in present
        ]
        legend, legend_height = _legend(entries, width, size)
        texts = [svg.shorten(clean(r.get("label", "")), size, width * 0.42) for r in rows]
        left = max((svg.text_width(t, size) for t in texts), default=0.0) + 14
        low, high, ticks = _domain(
            [finite(r.get("value")) for r in rows], log=False, count=4 if compact else 6, zero=True
        )
        low, ticks = (0.0, nice_ticks(0.0, high, 4 if compact else 6)) if low > 0 else (low, ticks)
        high = max(high, ticks[-1])
        sx = Scale(low, high, left + 6, width - 22)
        y, body, group = legend_height + 10, [legend], None
        top = y
        for r, text in zip(rows, texts, strict=True):
            if r.get("group") is not None and r["group"] != group:
                group = r["group"]
                body.append(svg.label(0, y + size + 4, clean(group), "group"))
                y += size + 12
            middle = y + 11
            body.append(svg.label(left - 10, middle + 0.36 * size, text, "tick end"))
            body.append(svg.tag("path", d=f"M{left:.1f} {middle:.1f}H{width:.1f}", class_="grid"))
            value = finite(r.get("value"))
            if value is None:
                body.append(svg.label(sx(low), middle + 0.36 * size, "–", "tick"))
            else:
                kind = str(r.get("kind", ""))
                index = list(_KIND_MARKS).index(kind) if kind in _KIND_MARKS else 3
                dot = svg.marker(
                    _KIND_MARKS.get(kind, "circle"), sx(value), middle, f"mark c{index}", 5
                )
                hit = svg.tag("circle", cx=sx(value), cy=middle, r=10, class_="hit")
                body.append(
                    svg.titled(f"{r.get('label', '')}: {number(value)} ({kind})", hit + dot)
                )
            y += 22
        lines = []
        for t in ticks:
            lines.append(svg.tag("path", d=f"M{sx(t):.1f} {top:.1f}V{y:.1f}", class_="grid"))
            body.append(svg.label(sx(t), y + size + 4, tick_label(t, ticks), "tick mid"))
        height = y + 2 * size + 16
        body.append(svg.label((left + width) / 2, height - 4, x_label, "axis mid"))
        return svg.picture(width, height, title, words, "".join(lines + body))

    table = table or Table(
        clean(title),
        (
            Column("group", "text"),
            Column("method", "text"),
            Column("kind", "text"),
            Column(x_label),
        ),
        tuple(
            (
                anything(r.get("group")),
                clean(r.get("label", "")),
                clean(r.get("kind", "")),
                number(r.get("value")),
            )
            for r in rows
        ),
        folded=True,
    )
    return Figure(clean(title), words, draw(WIDE), draw(NARROW), table, note)


KINDS: dict[str, Callable[..., Figure]] = {
    "line_chart": line_chart,
    "scatter": scatter,
    "bars": bars,
    "histogram": histogram,
    "heat_map": heat_map,
    "density_map": density_map,
    "raster": raster,
    "dot_plot": dot_plot,
}
"""Figures that a summary may ask for by name."""
