"""Pictures of text say what the numbers say."""

import io

import pytest
from rich.console import Console

from ellzero.report.pictures import bars, curve, weight_grid


def printed(picture):
    stream = io.StringIO()
    Console(file=stream, width=80, no_color=True).print(picture)
    return stream.getvalue().splitlines()


def test_zeros_are_dots_and_nonzeros_numbers():
    lines = printed(weight_grid([[0.0, -1.234], [2.0, 0.0]], ["a", "b"], ["x", "y"]))
    assert [line.split() for line in lines] == [
        ["x", "y"],
        ["a", "·", "-1.23"],
        ["b", "2.00", "·"],
    ]


def test_a_bar_is_as_long_as_its_value():
    long, half, none = (line.count("█") for line in printed(bars({"a": 4, "b": 3, "c": 2}, low=2)))
    assert (long, half, none) == (40, 20, 0)


@pytest.mark.parametrize("n", [1, 2, 30, 1000])
def test_a_curve_has_a_column_for_a_step_and_both_ends(n):
    values = [2.0 ** (-i / n) for i in range(n)]
    lines = printed(curve(values, width=40, height=4))
    assert len(lines) == 5
    assert all(len(line) == 9 + min(n, 40) for line in lines[:4])
    assert lines[-1].split() == ["step", "0", str(n - 1)]
    columns = list(zip(*(line[9:] for line in lines[:4]), strict=True))
    heights = [sum(" ▁▂▃▄▅▆▇█".index(cell) for cell in column) for column in columns]
    assert heights == sorted(heights, reverse=True)
    assert (heights[0], heights[-1]) == ((32, 1) if n > 1 else (1, 1))
