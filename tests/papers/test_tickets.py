"""The digits experiment: its network, its data, and its page."""

import itertools

import pytest
import torch
from torch import nn

from ellzero.nn import prunable, tickets
from ellzero.papers.tickets import (
    PILOT,
    POWERS,
    WIDTHS,
    _beside_pilot,
    digits,
    digits_task,
    perceptron,
    small_perceptron,
)
from ellzero.report import to_html


def count(model):
    return sum(p.numel() for p in prunable(model).values())


def test_network_of_the_pilot():
    assert count(perceptron(WIDTHS)) == 11_900
    torch.manual_seed(0)
    weight = perceptron((400, 600, 10))[0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / 1000) ** 0.5, rel=0.01)


@pytest.mark.parametrize("power", POWERS)
def test_small_network_is_the_largest_that_fits(power):
    most = int(0.8**power * 11_900)
    model = small_perceptron(most)
    assert count(model) <= most
    first = model[0].out_features + 1
    sides = (64, first, max(1, round(first / 2)), 10)
    assert sum(a * b for a, b in itertools.pairwise(sides)) > most


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    x, y = digits()
    bunch = load_digits()
    assert torch.equal(x, torch.from_numpy(bunch.data / 16).float())
    assert torch.equal(y, torch.from_numpy(bunch.target).long())


def test_page_of_a_short_run():
    found = tickets.run(
        digits_task(20, 0), [0.8**2], arms=["imp", "iht", "one-shot"], seeds=[0, 1]
    )
    assert found.counts == (7616,)
    assert found.search_steps("imp", 0.8**2) == 40
    page = to_html(tickets.summarize(found))
    assert "Is hard thresholding with a falling budget a ticket finder?" in page
    assert isinstance(perceptron((4, 2)), nn.Sequential)


def test_pilot_stands_beside_ours():
    powers = (8,)
    found = tickets.run(digits_task(5, 0), [0.8**8], arms=["imp"], seeds=[0, 1])
    table = _beside_pilot(found, powers, quick=False)
    assert [r[:2] for r in table["rows"]] == [["dense", 97.2], ["imp, 16.8 % kept", 97.1]]
    assert [r[3] for r in table["rows"]] == [False, False]  # five steps train nothing
    assert all(list(v) == list(POWERS) for v in PILOT.values())
