"""The step over all tensors in one kernel call, against the step tensor by tensor."""

import pickle

import pytest
import torch
from torch import nn

from ellzero.nn import HardThresholding, schedules
from ellzero.tensors import thresholded

STEPS = 40


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 30), nn.Linear(30, 3))


def wrap(model, budget, **arguments):
    base = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    return HardThresholding(base, model, n_nonzero=budget, **arguments)


def step(model, optimizer, i):
    generator = torch.Generator().manual_seed(i)
    x, y = (torch.randn(8, n, generator=generator) for n in (40, 3))
    ((model(x) - y) ** 2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


CASES = {
    "ramp": (0.2, {"schedule": schedules.ramp(0.0, 0.6, STEPS)}),
    "every step": (0.1, {"every": 1}),
    "hard": (0.2, {"power": None}),
    "frozen": (0.2, {"schedule": schedules.ramp(0.0, 0.4, STEPS, freeze=0.6)}),
    "dense and sparse phases": (0.1, {"schedule": schedules.phases(7, 8, STEPS)}),
    "a budget for each": ({"0.weight": 99, "2.weight": 0.2}, {}),
    "shared by size": (0.1, {"allocation": "erk"}),
    "a high floor": (0.05, {"floor": 0.9}),
    "one entry": (1, {"floor": 0.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_both_ways_to_step_leave_the_same_bits(case, monkeypatch):
    budget, arguments = CASES[case]
    fast, slow = network(), network()
    first, second = wrap(fast, budget, **arguments), wrap(slow, budget, **arguments)
    fits = thresholded.Table.fits
    choose = thresholded.Table.choose
    chosen = []

    def counted(*given):
        chosen.append(choose(*given))
        return chosen[-1]

    monkeypatch.setattr(thresholded.Table, "choose", counted)
    for i in range(STEPS):
        monkeypatch.setattr(thresholded.Table, "fits", fits)
        step(fast, first, i)
        monkeypatch.setattr(thresholded.Table, "fits", staticmethod(lambda *_: False))
        step(slow, second, i)
        assert first.n_nonzero == first.budget == second.budget
        for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
            assert torch.equal(a, b)
    states = zip(*(o.state_dict()["state"].values() for o in (first, second)), strict=True)
    for one, two in (tuple(v["hard_thresholding"] for v in pair) for pair in states):
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[kind]) for kind, tensor in one.items())
    if case not in ("a high floor", "one entry", "dense and sparse phases"):
        assert sum(c is not None for c in chosen) >= 4


def test_the_addresses_follow_the_tensors():
    model = network()
    optimizer = wrap(model, 0.05, every=3)
    for i in range(7):
        step(model, optimizer, i)
    twin, theirs = pickle.loads(pickle.dumps((model, optimizer)))
    other = network()
    loaded = wrap(other, 0.05, every=3)
    other.load_state_dict(model.state_dict())
    loaded.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for p in model.parameters():
        p.data = p.data.clone()  # moved by the user
    for i in range(7, 20):
        for m, o in ((model, optimizer), (twin, theirs), (other, loaded)):
            step(m, o, i)
        for a, b, c in zip(model.parameters(), twin.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_a_budget_of_all_entries_leaves_no_choice(monkeypatch):
    model = network()
    optimizer = wrap(model, 0.1, schedule=schedules.ramp(0.5, 0.9, 20), every=1)
    choices = []
    choose = type(optimizer._supports).choose

    def counted(supports, counts, is_first):
        choices.append(counts)
        return choose(supports, counts, is_first)

    monkeypatch.setattr(type(optimizer._supports), "choose", counted)
    for i in range(20):
        step(model, optimizer, i)
        if i < 9:
            assert optimizer.n_nonzero == optimizer.budget == optimizer.n_entries
            assert all(
                torch.equal(p, optimizer.latent[n])
                for n, p in model.named_parameters()
                if n in optimizer.latent
            )
    assert [c for c in choices if c[0] == optimizer.n_entries] == []
    assert len(choices) == 10
    assert optimizer.n_nonzero == optimizer.target


def test_choices_stay_with_the_kernels_where_a_layer_is_at_its_floor(monkeypatch, caplog):
    model = network()
    with torch.no_grad():
        model[0].weight *= 0.01
    optimizer = wrap(model, 0.2, every=1)
    optimizer.param_groups[0]["lr"] = 1e-5
    selections = []
    monkeypatch.setattr(thresholded, "top_k", lambda *given: selections.append(given))
    for i in range(5):
        step(model, optimizer, i)
    size, total = model[0].weight.numel(), optimizer.n_entries
    assert int((model[0].weight != 0).sum()) == int(0.05 * optimizer.budget * size / total)
    assert optimizer.n_nonzero == optimizer.budget
    assert selections == []
    assert len([r for r in caplog.records if "floor" in r.getMessage()]) == 1
