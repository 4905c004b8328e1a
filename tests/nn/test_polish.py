"""Polished networks are stationary, keep their budget and never lose."""

import copy

import torch
from torch import nn

import ellzero
from ellzero.nn import HardThresholding, certify, polish, schedules

LOSS = nn.functional.cross_entropy
BUDGET = 60


def trained():
    """A network after stochastic training, and its data in two pieces."""
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    model = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 3))
    base = torch.optim.AdamW(model.parameters(), lr=0.02)
    schedule = schedules.ramp(0.0, 0.5, 150)
    optimizer = HardThresholding(base, model, BUDGET, schedule=schedule)
    for i in range(150):
        rows = slice(50 * (i % 4), 50 * (i % 4) + 50)
        LOSS(model(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.finalize()
    return model, [(x[:150], y[:150]), (x[150:], y[150:])]


def test_the_end_of_training_is_polished_to_a_stationary_point():
    model, data = trained()
    problem = {"n_nonzero": BUDGET, "ridge": 0.01}
    before = certify(model, LOSS, data, **problem)
    assert before.claim is ellzero.Claim.FEASIBLE
    value = polish(model, LOSS, data, **problem)
    after = certify(model, LOSS, data, tol=1e-5, **problem)
    assert after.claim is ellzero.Claim.STATIONARY
    assert after.measures["n_nonzero"] == BUDGET
    assert after.measures["value"] < before.measures["value"]
    # Rounding to float32 is all that lies between.
    torch.testing.assert_close(value, after.measures["value"], rtol=1e-6, atol=0)
    assert model.training
    assert model[0].weight.dtype == torch.float32


def test_without_steps_the_support_stays():
    model, data = trained()
    model[3].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    polish(model, LOSS, data, ridge=0.01, steps=0, pieces=2)
    after = model.state_dict()
    assert torch.equal(after["3.bias"], before["3.bias"])
    for name in ("0.weight", "3.weight"):
        assert torch.equal(after[name] != 0, before[name] != 0)
    measures = certify(model, LOSS, data, ridge=0.01).measures
    assert measures["grad_on_support"] < 1e-5


def test_it_stops_when_asked():
    model, data = trained()
    other = copy.deepcopy(model)
    asked = []

    def stop(step):
        asked.append(step)
        return len(asked) >= 3

    stopped = polish(model, LOSS, data, ridge=0.01, stop=stop)
    assert len(asked) <= 5
    assert stopped > polish(other, LOSS, data, ridge=0.01)
