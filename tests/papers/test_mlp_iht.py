import json

import pytest
import torch

from ellzero.papers import find_experiment
from ellzero.papers.mlp_iht import (
    iht_as_run,
    plant,
    plant_as_run,
    prune_by_magnitude,
    psnr,
    relative_error,
)
from ellzero.report import to_html


@pytest.mark.slow
def test_quick_summary():
    summary = find_experiment("mlp-iht").run(quick=True)
    recovered = summary["reference"]["rows"][0]
    assert recovered[2:] == ["6 of 6", True]
    cases, decibels = summary["tables"][:2]
    assert all(row[3] == "2/2" for row in cases["rows"])
    # The rule that gives convex functions only does not recover neurons of both signs.
    assert [row[4] for row in cases["rows"][1:]] == ["0/2", "0/2"]
    assert all(row[1] > 200 for row in decibels["rows"])
    assert summary["certificate"]["claim"] == "optimal"
    assert len(summary["figures"]) == 2
    json.dumps(summary, allow_nan=False)
    assert to_html(summary).count("<svg") >= 2


def test_decibels_and_errors_by_hand():
    y = torch.tensor([3.0, -4.0])
    assert psnr(y, y + 0.4) == pytest.approx(20.0, abs=1e-5)
    assert psnr(y, y) == 400.0
    assert relative_error(y, 2 * y) == pytest.approx(1.0)


def test_one_positive_neuron_is_recovered_by_the_steps_as_run():
    planted = plant(300, 12, 1, 3, seed=1)
    coef, outputs = iht_as_run(planted, 2, seed=1)
    assert int((coef != 0).sum()) <= 3
    assert relative_error(planted.truth, outputs) < 1e-6


def test_pruning_meets_its_budget_and_hardly_moves_as_run():
    planted = plant(200, 10, 2, 3, seed=0)
    for epochs, lr in ((15, 1e-3), (60, 1e-2)):
        pruned = prune_by_magnitude(planted, 3, 8, epochs=epochs, lr=lr, seed=0)
        assert pruned.n_nonzero == 8
        # From 33 weights by a tenth a round, rounded down:
        # 29, 26, 23, 20, 18, 16, 14, 12, 10, 9, 8.
        assert pruned.n_rounds == 12
    short = prune_by_magnitude(planted, 3, 8, epochs=15, lr=1e-3, seed=0)
    long = prune_by_magnitude(planted, 3, 8, epochs=60, lr=1e-2, seed=0)
    assert psnr(planted.y, long.fitted) > psnr(planted.y, short.fitted)


def test_recipe_of_the_code_plants_half_in_each_layer():
    hidden, outputs = plant_as_run(20, 50, 11, seed=0)
    assert int((hidden != 0).sum()) == 5
    assert int((outputs != 0).sum()) == 5
    hidden, outputs = plant_as_run(20, 4, 1, seed=0)
    assert not hidden.any()
    assert not outputs.any()
