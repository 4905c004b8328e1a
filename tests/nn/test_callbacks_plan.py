"""What the callbacks share, without their hosts."""

import importlib
import logging
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, callbacks, schedules
from ellzero.nn.callbacks.plan import Plan, check_end, finish, is_final, measure
from ellzero.sets import NMPattern

RAMP = schedules.ramp(0.0, 0.5, 10)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def nonzeros(model):
    return [int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2]


def step(model, optimizers, n=1):
    for i in range(n):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(i))
        model(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


# Options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"n_nonzero": 0.1, "options": {"recipie": "iht"}},
            "Unknown option 'recipie'. Did you mean 'recipe'?\nhint: Known options: ",
        ),
        (
            {"n_nonzero": 0.1, "constraint": NMPattern(2, 4)},
            "Exactly one of `n_nonzero` and `constraint` must be given, got both.",
        ),
        (
            {"options": {"recipe": "iht"}},
            "`recipe` must come with `n_nonzero` or `constraint`, got neither.\nhint: Give the "
            "budget, or nothing where the optimizer is a `HardThresholding` already.",
        ),
        (
            {"schedule": RAMP},
            "`schedule` must come with `n_nonzero` or `constraint`, got neither.\nhint: Give the "
            "budget, or nothing where the optimizer is a `HardThresholding` already.",
        ),
        (
            {"n_nonzero": 0.1, "total_steps": 10, "schedule": RAMP},
            f"`total_steps` must come without a finished `schedule`, got {RAMP}.\nhint: Give what "
            "makes a schedule of the number of steps, such as "
            "`functools.partial(schedules.ramp, 0.0, 0.6)`.",
        ),
        (
            {"n_nonzero": 0.1, "total_steps": 0},
            "`total_steps` must be an integer of at least 1, got 0.",
        ),
    ],
)
def test_contradictions_are_told(arguments, message):
    with pytest.raises(InvalidParameterError) as caught:
        Plan(**arguments)
    assert str(caught.value).startswith(message)


def test_the_schedule_has_the_length_of_the_training():
    assert Plan(0.1).make_schedule(100) == schedules.ramp(0.0, 0.5, 100)
    assert Plan(0.1, total_steps=7).make_schedule(100) == schedules.ramp(0.0, 0.5, 7)
    averaged = Plan(0.1, options={"average": True})
    assert averaged.make_schedule(100) == schedules.ramp(0.0, 0.5, 100, freeze=0.75)
    later = Plan(0.1, schedule=partial(schedules.ramp, 0.2, 0.9, freeze=0.95))
    assert later.make_schedule(40) == schedules.ramp(0.2, 0.9, 40, freeze=0.95)
    assert Plan(0.1, schedule=RAMP).make_schedule(None) is RAMP


# Several optimizers ------------------------------------------------------------------------------


def test_a_density_and_a_mapping_are_split_between_optimizers():
    model = network()
    pair = [sgd(model[0]), sgd(model[2])]
    wrapped = Plan(0.1).wrap(pair, model, schedules.constant())
    assert [type(o) for o in wrapped] == [HardThresholding, HardThresholding]
    assert nonzeros(model) == [24, 10]
    model = network()
    pair = [sgd(model[0]), sgd(model[2])]
    given = {"0.weight": 30, "2.weight": 7}
    Plan(given).wrap(pair, model, schedules.constant())
    assert nonzeros(model) == [30, 7]
    model = network()
    pair = [sgd(model[0]), sgd(model[2])]
    Plan(constraint=NMPattern(1, 4)).wrap(pair, model, schedules.constant())
    assert nonzeros(model) == [60, 25]


def test_an_optimizer_without_counted_tensors_stays_as_it_is():
    model = network()
    pair = [sgd(model[0]), sgd(model[2])]
    first, second = Plan(9, options={"names": ["2.weight"]}).wrap(pair, model, RAMP)
    assert first is pair[0]
    assert isinstance(second, HardThresholding)
    assert second.optimizer is pair[1]


def test_what_optimizers_cannot_share_is_told():
    model = network()
    with pytest.raises(InvalidParameterError) as caught:
        Plan(40).wrap([sgd(model[0]), sgd(model[2])], model, RAMP)
    assert str(caught.value) == (
        "`n_nonzero` must be a density or a mapping where 2 optimizers hold the weights, got 40.\n"
        "hint: One number cannot be shared by optimizers that step at different times."
    )
    with pytest.raises(IncompatibleError) as caught:
        Plan(0.1).wrap([sgd(model[0]), sgd(nn.Linear(2, 2))], model, RAMP)
    assert str(caught.value) == (
        "No optimizer holds the parameter '2.weight' that the budget counts.\n"
        "hint: Build one on it, or leave it out of `names`."
    )


# The end and the numbers -------------------------------------------------------------------------


def test_the_end_of_a_training(caplog):
    model = network()
    (optimizer,) = Plan(40).wrap([sgd(model)], model, RAMP)
    check_end([optimizer], 5)
    with pytest.raises(InvalidParameterError) as caught:
        check_end([optimizer], 4)
    assert str(caught.value) == (
        "`schedule` must reach the final budget within the 4 optimizer steps of the training, got "
        f"{RAMP}.\n"
        "hint: Train longer, or give no schedule for one that fits."
    )
    step(model, [optimizer], 4)
    assert not is_final([optimizer])
    with caplog.at_level(logging.WARNING, "ellzero"):
        assert not finish([optimizer], None)
    assert not optimizer.is_finalized
    assert "before the final budget" in caplog.text
    step(model, [optimizer])
    assert finish([optimizer], torch.bfloat16)
    assert sum(nonzeros(model)) == sum(nonzeros(model.bfloat16())) == 40
    check_end([optimizer], 0)


def test_averaging_ends_with_a_frozen_support(caplog):
    frozen = schedules.ramp(0.0, 0.5, 10, freeze=0.8)
    model = network()
    (optimizer,) = Plan(40, options={"average": True}).wrap([sgd(model)], model, frozen)
    check_end([optimizer], 8)
    with pytest.raises(InvalidParameterError, match="must freeze the support within the 7 "):
        check_end([optimizer], 7)
    step(model, [optimizer], 7)
    assert is_final([optimizer])
    with caplog.at_level(logging.WARNING, "ellzero"):
        assert not finish([optimizer], None)
    assert caplog.records[-1].getMessage() == (
        "Training stopped after 7 steps, before the support was frozen: the weights are not "
        "averaged."
    )
    step(model, [optimizer], 2)
    assert finish([optimizer], None)
    assert sum(nonzeros(model)) == 40


def test_the_numbers_are_counted_from_the_weights():
    model = network()
    optimizers = Plan(0.1).wrap([sgd(model[0]), sgd(model[2])], model, RAMP)
    step(model, optimizers, 5)
    with torch.no_grad():
        model[0].weight[0] = 1.0  # what somebody writes shows in the log
    counted = sum(nonzeros(model))
    assert counted > 34
    assert measure(optimizers) == {
        "sparsity/n_nonzero": counted,
        "sparsity/budget": 34,
        "sparsity/target": 34,
        "sparsity/density": counted / 340,
    }
    model = network()
    optimizers = Plan(constraint=NMPattern(1, 4)).wrap([sgd(model)], model, RAMP)
    assert measure(optimizers)["sparsity/target"] == 85


# What a host may do to the weights before or after `finalize` ------------------------------------


def write(model, values, kind):
    for p, value in zip(model.parameters(), values, strict=True):
        if kind == "data":  # not seen by the version of the tensor
            p.data.copy_(value)
        else:
            p.detach().copy_(value)


@pytest.mark.parametrize("kind", ["data", "detach"])
@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("recipe", ["lazy", "iht"])
def test_finalize_keeps_what_was_written_up_to_the_budget(kind, is_after, recipe):
    model, other = network(), network(seed=5)
    optimizer = HardThresholding(
        sgd(model), model, 40, schedule=RAMP, recipe=recipe, floor=0.0, every=1
    )
    step(model, [optimizer], 6)
    if is_after:
        optimizer.finalize()
    write(model, other.parameters(), kind)
    optimizer.finalize()
    flat = torch.cat([p.abs().reshape(-1) for p in other.parameters() if p.ndim >= 2])
    level = flat.sort(descending=True).values[39]
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q * (q.abs() >= level) if q.ndim >= 2 else q)
    # Nothing was written since: the same bits again, and then steps on this support alone.
    before = [p.clone() for p in model.parameters()]
    optimizer.finalize()
    assert all(map(torch.equal, model.parameters(), before))
    step(model, [optimizer], 3)
    for p, q in zip(model.parameters(), before, strict=True):
        assert torch.equal(p != 0, q != 0)
    assert not torch.equal(model[2].bias, before[3])


def test_finalize_of_another_model_within_the_budget_changes_nothing():
    model, best = network(), network(seed=5)
    optimizer = HardThresholding(sgd(model), model, 40, schedule=RAMP)
    HardThresholding(sgd(best), best, 40)
    step(model, [optimizer], 6)
    model.load_state_dict(best.state_dict())
    optimizer.finalize()
    assert all(map(torch.equal, model.parameters(), best.parameters()))


# Imports -----------------------------------------------------------------------------------------


def test_the_hosts_are_imported_when_their_callback_is_asked_for():
    code = (
        "import sys, ellzero.nn\n"
        "from ellzero.nn import callbacks\n"
        "hosts = 'lightning', 'pytorch_lightning', 'transformers', 'accelerate'\n"
        "print([m for m in hosts if m in sys.modules], dir(callbacks))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] ['LightningSparsity', 'TrainerSparsity']"
    with pytest.raises(AttributeError, match="has no attribute 'Callback'"):
        callbacks.Callback  # noqa: B018


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("LightningSparsity", "lightning", "lightning"),
        ("TrainerSparsity", "transformers", "language"),
    ],
)
def test_a_host_that_is_missing_is_told(monkeypatch, name, package, extra):
    def fail(module):
        raise ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.something")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(IncompatibleError) as caught:
        getattr(callbacks, name)
    assert str(caught.value) == (
        f"`{name}` needs the package `{package}`, which is not installed.\n"
        f"hint: pip install 'ellzero[{extra}]'"
    )
