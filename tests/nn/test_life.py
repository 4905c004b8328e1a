"""What users of other tools complain about in the life of a model; one test for each."""

import copy
import io
import logging
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, checkpoints, freeze_support, kept_zeros, schedules

STEPS = 20


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 5))


def wrap(model, *, budget=40, base=None, **arguments):
    arguments.setdefault("schedule", schedules.ramp(0.0, 0.6, STEPS))
    base = base or torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return HardThresholding(base, model, n_nonzero=budget, **arguments)


def batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(16, 12, generator=generator), torch.randn(16, 5, generator=generator)


def loss_of(model, i):
    x, y = batch(i)
    return ((model(x) - y) ** 2).mean()


def train(model, optimizer, start, stop):
    for i in range(start, stop):
        loss_of(model, i).backward()
        optimizer.step()
        optimizer.zero_grad()


def count(model):
    return sum(int((p != 0).sum()) for p in model.parameters() if p.ndim >= 2)


def state(model, optimizer):
    latent = {f"latent {n}": t for n, t in optimizer.latent.items()}
    return {**model.state_dict(), **latent}


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


RESUME = """
import sys, torch
from tests.nn.test_life import *
folder = sys.argv[1]
for name, saved in torch.load(folder + "/saved.pt", weights_only=True).items():
    model = network(seed=3)
    optimizer = wrap(model, recipe=saved["recipe"])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, saved["at"], STEPS)
    torch.save([state(model, optimizer), optimizer.state_dict()], f"{folder}/{name}.pt")
"""


def test_resume_in_the_middle_of_a_schedule_is_bit_for_bit(tmp_path):
    # Step 10 is within the ramp; 13 lies between two choices of the support.
    cases = [(10, "lazy"), (13, "lazy"), (10, "iht")]
    saved = {}
    for at, recipe in cases:
        model = network()
        first = wrap(model, recipe=recipe)
        train(model, first, 0, at)
        saved[f"{at}{recipe}"] = {
            "model": model.state_dict(),
            "optimizer": first.state_dict(),
            "at": at,
            "recipe": recipe,
        }
    torch.save(saved, tmp_path / "saved.pt")
    subprocess.run(
        [sys.executable, "-c", RESUME, os.fspath(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])},
    )
    for at, recipe in cases:
        straight = network()
        optimizer = wrap(straight, recipe=recipe)
        train(straight, optimizer, 0, STEPS)
        got, theirs = torch.load(tmp_path / f"{at}{recipe}.pt", weights_only=True)
        same(got, state(straight, optimizer))
        mine = optimizer.state_dict()
        for key, values in mine["state"].items():
            budget, saved_budget = (
                v.pop("hard_thresholding") for v in (values, theirs["state"][key])
            )
            same(values, theirs["state"][key])
            same(budget, saved_budget)


def test_checkpoint_of_another_budget_is_refused_and_nothing_changes():
    model, other = network(), network()
    optimizer, saved = wrap(model), wrap(other, budget=41)
    train(model, optimizer, 0, 3)
    train(other, saved, 0, 5)
    before = copy.deepcopy(state(model, optimizer))
    with pytest.raises(InvalidParameterError, match=r"`state_dict` was saved with sets"):
        optimizer.load_state_dict(saved.state_dict())
    with pytest.raises(InvalidParameterError, match="must come from a `HardThresholding`"):
        optimizer.load_state_dict(torch.optim.AdamW(network().parameters()).state_dict())
    wide = nn.Sequential(nn.Linear(12, 21), nn.BatchNorm1d(21), nn.ReLU(), nn.Linear(21, 5))
    with pytest.raises(InvalidParameterError, match="does not fit the network"):
        optimizer.load_state_dict(wrap(wide).state_dict())
    same(before, state(model, optimizer))
    assert optimizer.n_steps == 3


def test_it_is_an_optimizer_for_learning_rate_schedulers():
    model = network()
    optimizer = wrap(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS)
    rates = []
    for i in range(STEPS):
        train(model, optimizer, i, i + 1)
        rates.append(optimizer.optimizer.param_groups[0]["lr"])
        cycle.step()
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < rates[0]
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    before = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        plateau.step(1.0)
    assert optimizer.optimizer.param_groups[0]["lr"] == before / 4


def test_parameter_groups_keep_their_own_settings():
    model = network()
    base = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.0},
            {"params": model[3].parameters(), "lr": 0.1, "weight_decay": 0.1},
            {"params": model[1].parameters()},
        ],
        lr=0.01,
    )
    optimizer = wrap(model, base=base, budget=1.0)
    frozen, free = model[0].weight.clone(), model[3].weight.clone()
    train(model, optimizer, 0, 3)
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[3].weight, free)


def test_closures_see_the_sparse_model():
    a, b = network(), network()
    first, second = wrap(a), wrap(b)
    counts = []
    for i in range(STEPS):

        def closure(i=i):
            counts.append(count(a) == first.budget)
            first.zero_grad()
            loss = loss_of(a, i)
            loss.backward()
            return loss

        assert first.step(closure).ndim == 0
    train(b, second, 0, STEPS)
    assert counts == [True] * STEPS
    same(state(a, first), state(b, second))


def test_steps_are_counted_once_with_grad_scaler_and_accumulation():
    model = network()
    optimizer = wrap(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for i in range(4):
        for k in range(3):
            loss = loss_of(model, 3 * i + k) * (float("inf") if i == 2 else 1.0)
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert (optimizer.n_steps, optimizer.n_skipped) == (3, 0)
    assert scaler.get_scale() == 8.0


def test_gradient_accumulation_and_clipping_equal_one_large_batch():
    a, b = network().eval(), network().eval()
    first, second = wrap(a), wrap(b)
    for i in range(6):
        for k in range(2):
            (loss_of(a, 2 * i + k) / 2).backward()
        torch.nn.utils.clip_grad_norm_(a.parameters(), 0.1)
        first.step()
        first.zero_grad()
        ((loss_of(b, 2 * i) + loss_of(b, 2 * i + 1)) / 2).backward()
        torch.nn.utils.clip_grad_norm_(b.parameters(), 0.1)
        second.step()
        second.zero_grad()
    assert first.n_steps == 6
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_autocast_trains_in_bfloat16_with_an_exact_count():
    model = network()
    optimizer = wrap(model)
    for i in range(STEPS):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, i)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert count(model) == optimizer.budget
    assert count(model) == 40


def test_pruned_weights_do_not_come_back_by_momentum_or_decay():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer = wrap(model, base=base)
    train(model, optimizer, 0, STEPS)
    optimizer.finalize()
    zeros = [p == 0 for p in model.parameters() if p.ndim >= 2]
    for i in range(5):
        train(model, optimizer, i, i + 1)
        for p, zero in zip((model[0].weight, model[3].weight), zeros, strict=True):
            assert torch.equal(p == 0, zero)


@pytest.mark.parametrize("wound", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_step_and_says_so(wound, caplog):
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 0, 2)
    before = copy.deepcopy(state(model, optimizer))
    moments = copy.deepcopy(optimizer.optimizer.state_dict())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model[3].weight.grad[1, 2] = wound
    with caplog.at_level(logging.WARNING, "ellzero"):
        optimizer.step()
    assert [r.getMessage() for r in caplog.records] == [
        "Step 3 skipped: a gradient is not finite."
    ]
    same(before, state(model, optimizer))
    assert str(moments) == str(optimizer.optimizer.state_dict())
    assert (optimizer.n_steps, optimizer.n_skipped) == (2, 1)


def test_large_finite_gradients_are_not_skipped():
    model = nn.Linear(4, 4).double()
    optimizer = wrap(model, base=torch.optim.Adam(model.parameters()), budget=3)
    model.weight.grad = torch.full_like(model.weight, 1e308)  # the sum overflows
    optimizer.step()
    assert (optimizer.n_steps, optimizer.n_skipped) == (1, 0)


def test_a_schedule_longer_than_the_training_is_told():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 0, 5)
    with pytest.raises(InvalidParameterError) as caught:
        optimizer.finalize()
    # Cubic fall after 5 of 12 steps: 40 + 300 * (7 / 12)**3 = 99.55.
    assert str(caught.value) == (
        "`finalize` must come after the schedule has reached the final budget, got step 5 with a "
        "budget of 100.\nhint: Train on, or give a schedule with fewer `total_steps`."
    )
    assert not optimizer.is_finalized


def test_requires_grad_changed_midway_is_told():
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 0, 2)
    before = copy.deepcopy(state(model, optimizer))
    model[3].weight.requires_grad_(False)
    with pytest.raises(IncompatibleError, match=r"'3\.weight' was frozen"):
        optimizer.step()
    same(before, state(model, optimizer))
    model[3].weight.requires_grad_(True)
    train(model, optimizer, 2, 4)


def test_a_parameter_added_afterwards_is_told():
    model = network()
    optimizer = wrap(model)
    with pytest.raises(IncompatibleError, match="cannot be added after the budget was fixed"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))]})
    assert len(optimizer.param_groups) == 1


def test_deepcopy_and_pickle_go_on_alike():
    model = network()
    optimizer = wrap(model)
    lr_scheduler.StepLR(optimizer, 5)  # wraps the methods of the optimizer
    train(model, optimizer, 0, 7)
    copied = copy.deepcopy((model, optimizer))
    pickled = pickle.loads(pickle.dumps((model, optimizer)))
    buffer = io.BytesIO()
    torch.save((model, optimizer), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=False)
    train(model, optimizer, 7, STEPS)
    for twin, theirs in (copied, pickled, saved):
        train(twin, theirs, 7, STEPS)
        same(state(twin, theirs), state(model, optimizer))
        assert count(twin) == 40


def test_tied_weights_stay_tied_and_are_counted_once():
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "head": nn.Linear(8, 20, bias=False)})
    model["head"].weight = model["embed"].weight
    optimizer = wrap(model, base=torch.optim.Adam(model.parameters()), budget=30)
    for _ in range(STEPS):
        model["head"](model["embed"](torch.arange(20))).logsumexp(1).sum().backward()
        optimizer.step()
        assert model["head"].weight is model["embed"].weight
    assert int((model["head"].weight != 0).sum()) == 30


def test_state_dict_keys_stay_plain():
    model = network()
    keys = list(model.state_dict())
    optimizer = wrap(model)
    train(model, optimizer, 0, STEPS)
    optimizer.finalize()
    assert list(model.state_dict()) == keys
    plain = network(seed=9)
    plain.load_state_dict(model.state_dict())
    assert count(plain) == 40
    assert all(p.is_leaf and type(p) is nn.Parameter for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_count_holds_after_a_cast_to_storage(dtype):
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(1e-7)
        model[3].weight.mul_(1e-7)
    optimizer = wrap(
        model,
        base=torch.optim.SGD(model.parameters(), lr=0.0),
        schedule=schedules.constant(),
        budget=300,
    )
    optimizer.finalize(dtype=dtype)
    assert count(model) == 300
    assert count(model.to(dtype)) == 300


def test_moving_or_casting_the_model_midway_goes_on():
    model = network()
    optimizer = wrap(model, base=torch.optim.SGD(model.parameters(), lr=0.01))
    train(model, optimizer, 0, 12)
    model.double()
    for i in range(12, STEPS):
        x, y = batch(i)
        ((model(x.double()) - y.double()) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert count(model) == 40
    assert model[0].weight.dtype == torch.float64


def test_weights_loaded_into_the_model_are_used(caplog):
    model, other = network(), network(seed=5)
    optimizer = wrap(
        model,
        base=torch.optim.SGD(model.parameters(), lr=0.0),
        schedule=schedules.constant(),
        floor=0.0,
    )
    train(model, optimizer, 0, 3)
    assert "written" not in caplog.text
    model.load_state_dict(other.state_dict())
    with caplog.at_level(logging.WARNING, "ellzero"):
        train(model, optimizer, 3, 5)
    assert "was written outside the optimizer" in caplog.text
    largest = torch.cat([other[i].weight.abs().reshape(-1) for i in (0, 3)]).sort().values[-40]
    assert torch.equal(model[0].weight != 0, other[0].weight.abs() >= largest)


def test_average_of_weights_and_swa():
    model = network()
    optimizer = wrap(model)
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
    train(model, optimizer, 0, STEPS)
    optimizer.finalize()
    average = swa_utils.AveragedModel(model)
    for i in range(5):
        train(model, optimizer, i, i + 1)
        average.update_parameters(model)
    assert count(average.module) == 40
    swa_utils.update_bn([batch(0)[0]], average)
    assert not torch.equal(average.module[0].weight, model[0].weight)


def test_swapping_averages_in_and_out_changes_nothing():
    a, b = network(), network()
    first, second = wrap(a), wrap(b)
    for i in range(STEPS):
        train(a, first, i, i + 1)
        train(b, second, i, i + 1)
        kept = copy.deepcopy(b.state_dict())
        b.load_state_dict({n: t * 0 for n, t in kept.items()})
        b.load_state_dict(kept)
    same(state(a, first), state(b, second))


def test_fine_tuning_keeps_the_zeros_of_a_sparse_model():
    model = network()
    with torch.no_grad():
        for i in (0, 3):
            model[i].weight.mul_(torch.rand(model[i].weight.shape) < 0.2)
    before = count(model)
    zeros = [model[i].weight == 0 for i in (0, 3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    handle = freeze_support(model, optimizer)
    train(model, optimizer, 0, 6)
    assert count(model) == before
    assert all(torch.equal(model[i].weight == 0, z) for i, z in zip((0, 3), zeros, strict=True))
    handle.remove()
    train(model, optimizer, 6, 7)
    assert count(model) > before
    with pytest.raises(InvalidParameterError, match="must hold zeros in its weights"):
        freeze_support(network(), optimizer)
    with pytest.raises(IncompatibleError, match="got a `HardThresholding`"):
        freeze_support(model, wrap(model))


def test_an_edit_that_loses_a_weight_is_told_and_the_others_keep_their_zeros():
    model = network()
    with torch.no_grad():
        for i in (0, 3):
            model[i].weight[0] = 0

    def edit():
        with kept_zeros(model):
            model[0] = nn.Linear(12, 21)
            model[3].weight.data += 1

    with pytest.raises(IncompatibleError) as caught:
        edit()
    assert str(caught.value) == (
        "The edit must leave every weight that holds zeros in the model, got '0.weight' missing "
        "or of another shape.\nhint: Merge each adapter into the weight that it adapts."
    )
    assert not model[3].weight[0].any()
    words = "must hold zeros in its weights"
    with pytest.raises(InvalidParameterError, match=words), kept_zeros(network()):
        pass


def test_checkpoints_that_do_not_fit_change_nothing(tmp_path):
    model, dense = network(), network()
    optimizer, base = wrap(model), torch.optim.AdamW(dense.parameters())
    train(model, optimizer, 0, 3)
    checkpoints.save(tmp_path / "dense", dense, base)
    checkpoints.save(tmp_path / "other", dense, wrap(dense, budget=41))
    before = copy.deepcopy(state(model, optimizer))
    hint = "Give a folder that `checkpoints.save` wrote, and build the model and the optimizer "
    with pytest.raises(InvalidParameterError) as caught:
        checkpoints.load(tmp_path / "none", model, optimizer)
    assert str(caught.value) == (
        f"'{tmp_path / 'none'}' must hold a checkpoint of this run, got: there is none.\n"
        f"hint: {hint}as they were then."
    )
    with pytest.raises(InvalidParameterError, match="Missing key in checkpoint"):
        checkpoints.load(tmp_path / "dense", model, optimizer)
    with pytest.raises(InvalidParameterError, match="was saved with sets"):
        checkpoints.load(tmp_path / "other", model, optimizer)
    same(before, state(model, optimizer))
    assert optimizer.n_steps == 3


def test_building_the_state_for_a_checkpoint_is_no_step(tmp_path):
    for make in (torch.optim.AdamW, torch.optim.SGD):
        runs = []
        for saves in (False, True):
            model = network()
            optimizer = wrap(model, base=make(model.parameters(), lr=0.01))
            for i in range(8):
                if saves:
                    checkpoints.save(tmp_path / f"{make.__name__}{i}", model, optimizer)
                    assert optimizer.n_steps == i
                train(model, optimizer, i, i + 1)
            runs.append(state(model, optimizer))
        same(*runs)
