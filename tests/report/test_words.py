import math

import pytest

from ellzero.report.words import clean, exact, number, percent, typeset


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.308241, "0.3082"),
        (1.0, "1.000"),
        (1234.5, "1234"),
        (99999.9, "1.000e+05"),
        (-0.00012345, "-0.0001234"),
        (8.1e-07, "8.1e-07"),
        (2.5e9, "2.5e+09"),
        (0.0, "0"),
        (7, "7"),
        (4000, "4000"),
        (266610, "266,610"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        ("-inf", "-∞"),
        (True, "–"),
        ("text", "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_percent_has_one_decimal():
    assert [percent(v) for v in (0.9667, 1, 0.0, None, math.nan)] == [
        "96.7%", "100.0%", "0.0%", "–", "–",
    ]  # fmt: skip


def test_settings_are_shown_as_given():
    assert [exact(v) for v in (0.01, 1e-06, 0.686200001)] == ["0.01", "1e-06", "0.686200001"]


def test_control_characters_are_removed():
    assert clean("a\x1b[31m\x00b\nc\u202ed") == "a[31mb cd"


def test_only_numbers_get_a_minus_sign():
    assert typeset("-8.1e-07") == "−8.1e−07"
    assert typeset("well-known") == "well-known"
    assert typeset("2026-11-21") == "2026-11-21"
