import math
import re
import xml.etree.ElementTree as ET

import pytest

from ellzero.report import figures, svg
from tests.report.samples import HOSTILE

NAN = math.nan

LINES = {
    "title": "Loss",
    "x_label": "nonzeros",
    "y_label": "loss",
    "series": [
        {"name": "a", "x": [1, 2, 3, 4], "y": [0.9, None, 0.5, 0.4]},
        {"name": "b", "x": [1, 2, 3, 4], "y": [NAN, 0.8, 0.7, math.inf]},
        {"name": "runs", "x": [1, 2, 3], "y": [0.1, 0.2, 0.3], "style": "thin"},
    ],
    "bands": [{"name": "gap", "x": [1, 2, 3], "low": [0.2, None, 0.1], "high": [0.9, 0.8, 0.5]}],
    "hlines": [{"name": "dense", "value": 0.3}, {"name": "unknown", "value": None}],
    "selected_x": 3,
}

CASES = {
    "lines": lambda: figures.line_chart(**LINES),
    "log": lambda: figures.line_chart(**{**LINES, "log_x": True, "log_y": True}),
    "log of negatives": lambda: figures.line_chart(
        title="t", x_label="x", y_label="y", log_y=True, series=[{"x": [1, 2], "y": [-1.0, 0.0]}]
    ),
    "percent": lambda: figures.line_chart(**{**LINES, "percent_y": True, "integer_x": True}),
    "one point": lambda: figures.line_chart(
        title="t", x_label="x", y_label="y", series=[{"name": "a", "x": [3], "y": [2.0]}]
    ),
    "equal values": lambda: figures.line_chart(
        title="t", x_label="x", y_label="y", series=[{"name": "a", "x": [1, 2], "y": [2.0, 2.0]}]
    ),
    "no values": lambda: figures.line_chart(
        title="t", x_label="x", y_label="y", series=[{"name": "a", "x": [1, 2], "y": [None, NAN]}]
    ),
    "no series": lambda: figures.line_chart(title="t", x_label="x", y_label="y", series=[]),
    "long": lambda: figures.line_chart(
        title="t", x_label="x", y_label="y", animate=True,
        series=[{"name": "a", "x": list(range(5000)), "y": [math.sin(k) for k in range(5000)]}],
    ),
    "scatter": lambda: figures.scatter(
        title="t", x_label="x", y_label="y", series=[{"name": "a", "x": [1, 2], "y": [3, 4]}]
    ),
    "bars": lambda: figures.bars(title="t", labels=["a", "b", "c"], values=[1.0, -2.0, None]),
    "signed bars": lambda: figures.bars(title="t", labels=["a"], values=[0.0], signed=True),
    "no bars": lambda: figures.bars(title="t", labels=[], values=[]),
    "histogram": lambda: figures.histogram(title="t", values=[1.0, 1.0, 2.0, NAN]),
    "binned": lambda: figures.histogram(title="t", values=[k * k for k in range(100)]),
    "heat map": lambda: figures.heat_map(
        title="t", values=[[1.0, -2.0], [0.0, None]], row_labels=["r"], column_labels=["c", "d"]
    ),
    "empty heat map": lambda: figures.heat_map(title="t", values=[]),
    "tall heat map": lambda: figures.heat_map(
        title="t", values=[[math.sin(i * j) for j in range(20)] for i in range(90)]
    ),
    "huge heat map": lambda: figures.heat_map(
        title="t", values=[[float((i * j) % 3 - 1) for j in range(200)] for i in range(300)]
    ),
    "density map": lambda: figures.density_map(
        title="t",
        counts=[[(i * j) % 5 for j in range(112)] for i in range(43)],
        most=49,
        block=(7, 7),
        shape=(300, 784),
    ),
    "tall density map": lambda: figures.density_map(
        title="t", counts=[[i % 2] for i in range(50)], most=4, block=(2, 2), shape=(99, 1)
    ),
    "empty density map": lambda: figures.density_map(
        title="t", counts=[[0, 0]], most=1, block=(1, 1), shape=(1, 2)
    ),
    "raster": lambda: figures.raster(
        title="t", iterations=[0, 5, 9], masks=[[1, 0], [1, 0], [0, 1]], labels=["a", "b"]
    ),
    "long raster": lambda: figures.raster(
        title="t",
        iterations=list(range(90)),
        masks=[[(i + j) % 7 == 0 for i in range(200)] for j in range(90)],
    ),
    "no raster": lambda: figures.raster(title="t", iterations=[], masks=[]),
    "dots": lambda: figures.dot_plot(
        title="t", x_label="L",
        rows=[
            {"label": "sample", "kind": "lower estimate", "value": 0.4, "group": "2"},
            {"label": "bound", "kind": "upper bound", "value": 1.4, "group": "2"},
            {"label": "all", "kind": "exact", "value": NAN, "group": "4"},
        ],
    ),
}  # fmt: skip


def _numbers(text):
    return [float(v) for v in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", text)]


def _path_points(data):
    """Return the corners of a path made of M, m, l, h, v, H, V and z."""
    x = y = 0.0
    out = []
    for command, rest in re.findall(r"([MmlhvHVz])([^MmlhvHVz]*)", data):
        v = _numbers(rest)
        if command == "M":
            x, y = v
        elif command in "ml":
            x, y = x + v[0], y + v[1]
        elif command == "h":
            x += v[0]
        elif command == "v":
            y += v[0]
        elif command == "H":
            x = v[0]
        elif command == "V":
            y = v[0]
        out.append((x, y))
    return out


def _points(root):
    for element in root.iter():
        get = lambda k, e=element: float(e.get(k, "0"))  # noqa: E731
        if element.tag == "circle" and "hit" not in element.get("class", ""):
            yield get("cx"), get("cy")
        elif element.tag == "rect":
            yield get("x"), get("y")
            yield get("x") + get("width"), get("y") + get("height")
        elif element.tag == "path" and not element.get("class", "").startswith("cell"):
            yield from _path_points(element.get("d"))
        elif element.tag == "text":
            yield get("x"), get("y")


@pytest.mark.parametrize("name", CASES)
def test_figures_are_well_formed_named_and_inside_their_box(name):
    figure = CASES[name]()
    assert figure.table.columns
    assert all(len(r) == len(figure.table.columns) for r in figure.table.rows)
    for text in (figure.wide, figure.narrow):
        assert "nan" not in text
        assert "inf" not in re.sub(r"<(title|desc)>.*?</\1>|aria-label=\"[^\"]*\"", "", text)
        root = ET.fromstring(text)
        assert root.find("title").text == figure.title
        assert root.find("desc").text == figure.description
        assert root.get("role") == "img"
        assert root.get("aria-label")
        _, _, width, height = _numbers(root.get("viewBox"))
        points = list(_points(root))
        # Markers reach 9 units around their center; labels of ticks a little above the frame.
        assert all(-10 <= x <= width + 10 for x, _ in points)
        assert all(-10 <= y <= height + 10 for _, y in points)


def test_the_two_widths():
    figure = CASES["lines"]()
    assert 'viewBox="0 0 720 ' in figure.wide
    assert 'viewBox="0 0 360 ' in figure.narrow


def test_nan_breaks_a_line():
    x = list(range(7))
    y = [1.0, 2.0, NAN, 3.0, 4.0, None, 5.0]
    figure = figures.line_chart(
        title="t", x_label="x", y_label="y", series=[{"name": "a", "x": x, "y": y}]
    )
    root = ET.fromstring(figure.wide)
    lines = [p for p in root.iter("path") if p.get("class") == "line c0 d0"]
    assert [len(_path_points(p.get("d"))) for p in lines] == [2, 2]
    assert len([c for c in root.iter("circle") if c.get("class") == "mark c0"]) == 5


def test_points_lie_where_the_axis_says():
    figure = figures.line_chart(
        title="t",
        x_label="x",
        y_label="y",
        series=[{"name": "a", "x": [0, 5, 10], "y": [0, 5, 10]}],
    )
    root = ET.fromstring(figure.wide)
    (line,) = [p for p in root.iter("path") if p.get("class") == "line c0 d0"]
    (x0, y0), (x1, y1), (x2, y2) = _path_points(line.get("d"))
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.11)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.11)
    ticks = {t.text: float(t.get("x")) for t in root.iter("text") if t.get("class") == "tick mid"}
    assert ticks["0"] == pytest.approx(x0, abs=0.06)
    assert ticks["10"] == pytest.approx(x2, abs=0.06)


@pytest.mark.parametrize("count", [100, 101])
def test_many_points_are_small_and_below_the_lines(count):
    at = list(range(count))
    figure = figures.line_chart(
        title="t", x_label="x", y_label="y",
        series=[
            {"name": "data", "x": at, "y": at, "style": "points"},
            {"name": "fit", "x": at, "y": at},
        ],
    )  # fmt: skip
    line = figure.wide.rindex('class="line c1 d1"')
    dots = [m.start() for m in re.finditer('class="mark c0"', figure.wide)]
    # The first is that of the legend.
    assert len(dots) == count + 1
    assert all((dot < line) == (count > 100) for dot in dots[1:])
    assert ('r="1.8"' in figure.wide) == (count > 100)


def test_series_differ_without_color():
    figure = figures.line_chart(
        title="t", x_label="x", y_label="y",
        series=[{"name": str(k), "x": [0, 1], "y": [k, k + 1]} for k in range(6)],
    )  # fmt: skip
    lines = re.findall(r'class="line c\d (d\d)"', figure.wide)
    assert set(lines) == {f"d{k}" for k in range(6)}
    marks = r'<(?:path d="M[^a-z]*([^"]*)"|circle[^>]*) class="mark'
    shapes = set(re.findall(marks, figure.wide))
    assert len(shapes) == 6


def test_small_heat_map_prints_numbers_and_leaves_zeros_empty():
    figure = figures.heat_map(title="t", values=[[1.5, -2.0, 0.0]])
    root = ET.fromstring(figure.wide)
    texts = [t.text for t in root.iter("text") if "value" in t.get("class", "")]
    assert texts == ["1.50", "−2.00"]
    kinds = [r.get("class") for r in root.iter("rect")]
    assert kinds == ["cell pos", "cell neg", "empty"]


def test_narrow_cells_show_signs():
    figure = figures.heat_map(title="t", values=[[1.5, -2.0, 0.0, *[-0.25] * 9]])
    for text, wanted in ((figure.wide, {"1.50", "−2.00", "−0.250"}), (figure.narrow, {"+", "−"})):
        root = ET.fromstring(text)
        assert {t.text for t in root.iter("text") if "value" in t.get("class", "")} == wanted


def test_large_heat_map_tells_signs_by_shape():
    values = [[0.0] * 40 for _ in range(40)]
    values[3][4], values[5][6] = 2.0, -2.0
    figure = figures.heat_map(title="t", values=values)
    root = ET.fromstring(figure.wide)
    cells = {p.get("class"): p.get("d") for p in root.iter("path") if "cell" in p.get("class", "")}
    assert cells == {"cell pos o3": "M4 3h1v1h-1z", "cell neg o3": "M6 5.3h1v.4h-1z"}
    assert figure.table.rows == (("3", "4", "2.000"), ("5", "6", "-2.000"))


def test_huge_heat_map_keeps_the_largest_of_each_block():
    values = [[0.0] * 400 for _ in range(100)]
    values[7][9] = -3.0
    figure = figures.heat_map(title="t", values=values)
    # 40,000 cells need blocks of 2 x 2; entry (7, 9) lies in block (3, 4).
    assert 'd="M4 3.3h1v.4h-1z"' in figure.wide
    assert "2 x 2 entries" in figure.note


def test_raster_joins_runs_of_iterations():
    figure = figures.raster(
        title="t",
        iterations=[0, 5, 9, 20],
        masks=[[1, 0], [1, 1], [0, 1], [1, 1]],
        labels=["a", "b"],
    )
    assert figure.table.rows == (("a", "0 to 5, 20"), ("b", "5 to 20"))
    assert figure.wide.count('class="span"') == 1
    assert figure.wide.count('class="span last"') == 2


def test_histogram_counts_every_value():
    values = [math.sin(k) for k in range(200)]
    figure = figures.histogram(title="t", values=values, bins=7)
    assert sum(int(count) for _, count in figure.table.rows) == 200
    counted = figures.histogram(title="t", values=[1.0, 2.0], counts=[3, 4])
    assert [c for _, c in counted.table.rows] == ["3", "4"]


def test_hostile_words_stay_words():
    figure = figures.line_chart(
        title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE,
        series=[{"name": HOSTILE, "x": [1, 2], "y": [1, 2]}, {"name": "b", "x": [1], "y": [1]}],
    )  # fmt: skip
    root = ET.fromstring(figure.wide)
    assert not list(root.iter("script"))
    assert any("<script>" in (t.text or "") for t in root.iter("text"))


def test_long_labels_keep_their_ends():
    short = svg.shorten("mean fractal dimension of region 17", 12, 150)
    assert short.startswith("mean")
    assert short.endswith("17")
    assert svg.text_width(short, 12) <= 150


def test_density_maps_are_darker_where_there_is_more():
    counts = [[0, 1, 2, 3], [4, 5, 6, 8]]
    figure = figures.density_map(
        title="t", counts=counts, most=9, block=(3, 3), shape=(6, 11), unit="weight"
    )
    assert figure.description == ("6 rows, 11 columns, 29 nonzeros; the fullest cell has 8 of 9")
    assert figure.note == "Each cell is a block of 3 x 3 entries."
    # Four shades of two counts each; zeros are not drawn.
    root = ET.fromstring(figure.wide)
    cells = {e.get("class"): e.get("d") for e in root.iter("path")}
    assert cells == {
        "cell shade o0": "M1 0h2v1h-2z",
        "cell shade o1": "M3 0h1v1h-1zM0 1h1v1h-1z",
        "cell shade o2": "M1 1h2v1h-2z",
        "cell shade o3": "M3 1h1v1h-1z",
    }
    legend = [e.text for e in root.iter("text") if e.get("class") == "legend"]
    assert legend == ["1 to 2 weights", "3 to 4", "5 to 6", "7 to 8"]
    # The table has the density of each cell; the last column of blocks is two entries wide.
    assert figure.table.columns[-1].label == "9 to 10"
    assert figure.table.rows[0] == ("0 to 2", "0.0%", "11.1%", "22.2%", "50.0%")
