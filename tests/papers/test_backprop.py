"""The worked example by hand, and the digit network."""

import itertools

import pytest

from ellzero.papers import find_experiment
from ellzero.papers.backprop import BY_HAND, example_values, worked_example
from ellzero.report import to_html
from ellzero.report.schema import to_json


@pytest.fixture(scope="module")
def summary():
    return find_experiment("backprop").run(quick=True)


def test_every_row_agrees(summary):
    rows = summary["reference"]["rows"]
    assert [row for row in rows if not row[-1]] == []
    assert len(rows) == len(BY_HAND) + 8
    assert '"naive"' in to_json(summary)


def test_derivation_by_hand_has_the_printed_digits():
    # As written down with six decimals; the last one of dW2 was cut off, not rounded.
    assert BY_HAND["loss, ln(1 + exp(1.5))"] == pytest.approx([1.701413], abs=5e-7)
    assert BY_HAND["d loss / d b2"] == pytest.approx([-0.817574, 0.817574], abs=5e-7)
    assert BY_HAND["d loss / d W2"][4] == pytest.approx(1.226361, abs=1e-6)
    assert BY_HAND["d loss / d W1"][3] == pytest.approx(1.635149, abs=5e-7)
    ours = example_values(worked_example())
    assert ours.keys() == BY_HAND.keys()
    for name, values in BY_HAND.items():
        assert ours[name] == pytest.approx(values, rel=1e-12, abs=1e-14)


def test_counts_of_the_digit_network(summary):
    n = (784, 300, 100, 10)
    weights = sum(a * b for a, b in itertools.pairwise(n))
    # One row of the loss; rows through W3, W2 and both ReLU; a product for every weight.
    down = 10 + 10 * 100 + 100 + 100 * 300 + 300
    assert weights == 266_200
    assert summary["backprop"]["shared"] == down + weights
    naive = 2 * (10) + 2 * (10 + 1000 + 100) + 2 * (10 + 1000 + 100 + 30_000 + 300) + weights
    assert summary["backprop"]["naive"] == naive


def test_report_shows_products_and_pictures(summary):
    page = to_html(summary)
    for text in ("I_300 (x) row of 784", "300 x 235200", "Worked example: J(0; weight)"):
        assert text in page
    assert "Gradients vanish" in page
    assert page.count("<svg") == 12
    assert "d loss / d 0.weight = J(loss)" in summary["backprop"]["rendering"]
