import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ellzero.report.scales import Scale, extent, log_ticks, nice_ticks, tick_label

finite = st.floats(-1e12, 1e12)


@given(finite, st.floats(1e-6, 1e6), st.integers(2, 10))
def test_ticks_cover_the_span_at_round_steps(low, span, count):
    high = low + max(span, abs(low) * 1e-6)
    ticks = nice_ticks(low, high, count)
    steps = [b - a for a, b in pairwise(ticks)]
    slack = 1e-6 * steps[0]
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert len(ticks) <= count + 2
    assert max(steps) - min(steps) <= 1e-3 * steps[0]
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-3)))
    assert min(abs(mantissa - m) for m in (1, 2, 5)) < 0.01


@given(st.integers(-500, 500), st.integers(0, 1000))
def test_integer_ticks_are_integers(low, span):
    assert all(t == int(t) for t in nice_ticks(low, low + span, 5, integer=True))


def test_known_ticks():
    assert nice_ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-3.1, 2.2) == [-4, -2, 0, 2, 4]
    assert nice_ticks(0.1, 0.3, 2) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-7, 1e9])
def test_equal_values_still_have_a_span(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1]


@given(st.floats(1e-12, 1e12), st.floats(1.0, 1e20))
def test_log_ticks_are_positive_and_increase(low, factor):
    ticks = log_ticks(low, low * factor)
    assert len(ticks) >= 2
    assert ticks[0] > 0
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 9


def test_known_log_ticks():
    assert log_ticks(0.3, 1.1) == pytest.approx([0.2, 0.5, 1, 2])
    assert log_ticks(1e-12, 1.9) == pytest.approx([1e-12, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2, 1])


def test_tick_labels():
    assert [tick_label(t, [0.0, 0.25, 0.5]) for t in (0.0, 0.25, 0.5)] == [
        "0.0",
        "0.2",
        "0.5",
    ] or [tick_label(t, [0.0, 0.5]) for t in (0.0, 0.5)] == ["0.0", "0.5"]
    assert [tick_label(t, [-1.0, 0.0, 1.0]) for t in (-1.0, 0.0)] == ["−1", "0"]
    assert tick_label(0.05, [0.0, 0.05]) == "0.05"
    assert tick_label(0.9, [0.8, 0.9, 1.0], pct=True) == "90%"
    assert [tick_label(t, [], log=True) for t in (1e-6, 0.01, 1.0, 1e6)] == [
        "1e−6", "0.01", "1", "1e6",
    ]  # fmt: skip


def test_scale_maps_ends_to_ends():
    assert [Scale(2, 4, 10, 30)(v) for v in (2, 3, 4)] == [10, 20, 30]
    assert [Scale(1, 100, 0, 10, log=True)(v) for v in (1, 10, 100)] == [0, 5, 10]
    assert Scale(5, 5, 0, 10)(5) == 5


def test_extent_skips_what_cannot_be_drawn():
    assert extent([None, math.nan, 2.0, math.inf, -1.0]) == (-1, 2)
    assert extent([-1.0, 0.0, 3.0], log=True) == (3, 3)
    assert extent([]) == (0, 1)
    assert extent([], log=True) == (1, 10)
