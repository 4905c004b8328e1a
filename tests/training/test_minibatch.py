"""The loop over minibatches: what it computes, and that it goes on bit for bit."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.nn.state import flatten, unflatten
from ellzero.storage import Checkpoint
from ellzero.training import TrainSettings, minibatch
from ellzero.training.minibatch import (
    Samples,
    evaluate,
    fit,
    make_schedule,
    seeded,
)
from ellzero.training.settings import with_network_defaults

SETTINGS = with_network_defaults(TrainSettings(model="net.py:build", epochs=3), 3, 16, 0.0)


def samples(n=70, n_test=30, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n + n_test, 8, generator=generator)
    y = (X[:, 0] + 0.3 * X[:, 1]).mul(2).round().long().clamp(-1, 1) + 1
    if classes == 0:
        y = X[:, 0] - X[:, 1]
    zero, one = torch.zeros(()), torch.ones(())
    return Samples(X[:n], y[:n], X[n:], y[n:], zero, one, torch.float32)


class Tied(nn.Module):
    """Two layers that share a weight, with dropout and batch statistics between them."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.norm, self.drop, self.last = nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.drop(torch.relu(self.two(self.norm(torch.relu(self.one(x)))))))


def build(kind=Tied):
    with seeded(1, torch.device("cpu")):
        return kind()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_without_a_budget_it_is_a_plain_loop():
    data, settings = samples(), SETTINGS
    model = nn.Linear(8, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    fitted = fit(model, data, nn.functional.cross_entropy, settings, None)
    plain = nn.Linear(8, 3)
    plain.load_state_dict({"weight": weight, "bias": bias})
    adam = torch.optim.Adam(plain.parameters(), lr=settings.lr)
    order, losses, total = torch.Generator().manual_seed(0), [], 15
    for epoch in range(3):
        rows = torch.randperm(70, generator=order)
        for k in range(5):
            # The rate falls as half a cosine over all steps.
            adam.param_groups[0]["lr"] = (
                settings.lr * (1 + math.cos(math.pi * (5 * epoch + k) / total)) / 2
            )
            part = rows[16 * k : 16 * k + 16]
            loss = nn.functional.cross_entropy(plain(data.X_train[part]), data.y_train[part])
            losses.append(loss.item())
            adam.zero_grad()
            loss.backward()
            adam.step()
    assert torch.allclose(model.weight, plain.weight, rtol=1e-5, atol=1e-7)
    assert np.allclose(fitted.curves.loss, losses, rtol=1e-6)
    assert fitted.curves.steps == list(range(1, 16))
    assert [e["loss"] for e in fitted.curves.epochs] == pytest.approx(
        [np.mean(losses[5 * k : 5 * k + 5]) for k in range(3)]
    )
    assert fitted.is_done


def test_the_budget_falls_as_the_schedule_says_and_holds_at_the_end():
    data, settings = (
        samples(n=320),
        with_network_defaults(
            TrainSettings(model="net.py:build", ramp_end=0.8, epochs=2), 2, 16, 0.0
        ),
    )
    model = build()
    fitted = fit(model, data, nn.functional.cross_entropy, settings, 9)
    n = 64 + 24
    # Nonzeros after step t, every fifth step anew: 9 + (n - 9) (1 - t / (0.8 * 40)) ** 3.
    for step, count in zip(fitted.curves.steps, fitted.curves.n_nonzero, strict=True):
        if step % 5 == 0:
            assert count == 9 + round((n - 9) * max(0.0, 1 - step / 32) ** 3)
    kept = sum(int((w != 0).sum()) for w in (model.one.weight, model.last.weight))
    assert kept == fitted.curves.n_nonzero[-1] == 9
    assert not model.training


def test_ridge_enters_the_loss():
    data = samples()
    plain, heavy = (with_network_defaults(TrainSettings(hidden=(3,), epochs=1), 1, 70, r)
                    for r in (0.0, 0.5))  # fmt: skip
    losses = []
    for settings in (plain, heavy):
        model = build()
        squares = sum(float(p.detach().square().sum()) for p in model.parameters())
        losses.append(fit(model, data, nn.functional.cross_entropy, settings, None).curves.loss[0])
    assert losses[1] - losses[0] == pytest.approx(0.25 * squares, rel=1e-5)


RECIPES = [
    {},
    {"recipe": "iht", "ramp_end": 0.0},
    {"recipe": "acdc"},
    {"recipe": "straight_through"},
    {"freeze": 0.7, "allocation": "erk"},
    {"freeze": 0.6, "average": True, "scores": "curvature"},
    {"structure": "columns"},
]


@pytest.mark.parametrize("changes", RECIPES)
def test_a_training_goes_on_bit_for_bit(changes, tmp_path):
    data, given = (
        samples(),
        TrainSettings(model="net.py:build", epochs=3, batch_size=16, **changes),
    )
    settings = with_network_defaults(given, 3, 16, 0.01)
    loss = nn.functional.cross_entropy
    whole = build()
    before = torch.get_rng_state()
    curves = fit(whole, data, loss, settings, 9).curves
    assert torch.equal(torch.get_rng_state(), before)
    # Cut in the middle of an epoch, at its end, and twice.
    for k, cuts in enumerate([(1,), (5,), (7, 11), (14,)]):
        checkpoint = Checkpoint(tmp_path / f"{k}", {})
        for cut in (*cuts, None):
            asked = iter(range(1, 100))
            done = 0 if cut is None else cut - (0 if cut == cuts[0] else cuts[0])
            model = build()
            torch.manual_seed(99)  # the state of the process has no say
            fitted = fit(
                model,
                data,
                loss,
                settings,
                9,
                checkpoint=checkpoint,
                stop=None if cut is None else lambda asked=asked, done=done: next(asked) >= done,
            )
            assert fitted.is_done == (cut is None)
        assert same(model.state_dict(), whole.state_dict())
        assert fitted.curves.loss == curves.loss
        assert fitted.curves.n_nonzero == curves.n_nonzero


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, [1, 2, 3]), (1e9, [3])])
def test_the_state_is_kept_at_the_ends_of_epochs(seconds, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(minibatch, "KEEP_SECONDS", seconds)
    checkpoint, seen = Checkpoint(tmp_path / "c", {}), []
    save = checkpoint.save

    def note(name, data, tensors):
        seen.append(unflatten(data["state"], tensors)["epoch"])
        save(name, data, tensors)

    monkeypatch.setattr(checkpoint, "save", note)
    fit(build(), samples(), nn.functional.cross_entropy, SETTINGS, 9, checkpoint=checkpoint)
    assert seen == kept


def test_a_checkpoint_of_another_budget_is_not_taken_up(tmp_path):
    data, loss = samples(), nn.functional.cross_entropy
    checkpoint = Checkpoint(tmp_path / "c", {})
    fit(build(), data, loss, SETTINGS, 20, checkpoint=checkpoint)
    model, alone = build(), build()
    fit(model, data, loss, SETTINGS, 9, checkpoint=checkpoint)
    fit(alone, data, loss, SETTINGS, 9)
    assert same(model.state_dict(), alone.state_dict())


def test_moments_tell_where_it_stands():
    seen = []
    fit(build(), samples(), nn.functional.cross_entropy, SETTINGS, 9, watch=seen.append)
    ends = [m for m in seen if m.is_epoch]
    assert [(m.epoch, m.step) for m in ends] == [(1, 5), (2, 10), (3, 15)]
    assert all(m.accuracy_test is not None for m in ends)
    assert ends[-1].seconds_left == 0.0
    assert {m.what for m in seen} == {"9 nonzeros"}
    assert {m.n_entries for m in seen} == {88}
    inside = [m for m in seen if not m.is_epoch]
    assert inside[0].epoch == 1
    assert inside[0].seconds_left > 0
    assert all(m.accuracy_test is None for m in inside)


def test_a_loss_that_is_not_finite_ends_the_run():
    data = samples()
    data.X_train[3, 2] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        fit(nn.Linear(8, 3), data, nn.functional.cross_entropy, SETTINGS, None)
    assert caught.value.message.startswith("The loss became NaN or infinite in epoch 1, step ")
    assert caught.value.hint == "Give a smaller rate by `--lr` (now 0.004), or scale the data."


def test_scores_agree_with_numpy():
    model, data = build(), samples(n_test=1700)
    value, accuracy = evaluate(model.train(), data, "test", nn.functional.cross_entropy)
    assert model.training
    with torch.no_grad():
        out = model.eval()(data.X_test).double().numpy()
    y = data.y_test.numpy()
    log_sum = np.log(np.exp(out).sum(1))
    assert value == pytest.approx((log_sum - out[np.arange(1700), y]).mean(), rel=1e-5)
    assert accuracy == (out.argmax(1) == y).mean()
    line, numbers = nn.Linear(8, 1), samples(classes=0)

    def half(prediction, target):
        return (prediction.squeeze(-1) - target).square().mean() / 2

    value, r2 = evaluate(line, numbers, "train", half)
    guess, y = line(numbers.X_train).detach().numpy()[:, 0], numbers.y_train.numpy()
    assert value == pytest.approx(((guess - y) ** 2).mean() / 2, rel=1e-5)
    assert r2 == pytest.approx(
        1 - ((guess - y) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-4
    )
    assert evaluate(model, samples(n_test=0), "test", half) == (None, None)


def test_samples_are_standardized_where_they_are_used():
    X = torch.arange(12, dtype=torch.uint8).reshape(4, 3)
    y = torch.arange(4)
    data = Samples(X, y, X[:0], y[:0], torch.tensor(5.0), torch.tensor(2.0), torch.float32)
    x, target = data.batch(torch.tensor([3, 0]))
    assert x.tolist() == [[2.0, 2.5, 3.0], [-2.5, -2.0, -1.5]]
    assert target.tolist() == [3, 0]
    assert [len(b[1]) for b in data.batches("train", 3)] == [3]
    assert sum(len(b[1]) for b in data.batches("test")) == 0


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, [100, 51, 22, 10, 10, 10]),
        ({"ramp_end": 0.0}, [10] * 6),
        ({"ramp_end": 0.0, "freeze": 0.5}, [100, 10, 10, 10, 10, 10]),
    ],
)
def test_schedules_follow_the_settings(changes, counts):
    settings = with_network_defaults(TrainSettings(hidden=(3,), **changes), 1, 1, 0.0)
    schedule = make_schedule(settings, 10)
    if not changes:
        counts = [10 + round(90 * (1 - t / 5) ** 3) if t < 5 else 10 for t in range(6)]
    assert [schedule.budget(t, 10, 100) for t in range(6)] == counts
    assert schedule.is_frozen(6) == ("freeze" in changes)
    assert schedule.is_final(10)


def test_phases_of_acdc_end_sparse():
    settings = with_network_defaults(TrainSettings(hidden=(3,), recipe="acdc"), 1, 1, 0.0)
    schedule = make_schedule(settings, 100)
    counts = [schedule.budget(t, 1, 9) for t in range(100)]
    assert counts[:20] == [9] * 10 + [1] * 10
    assert counts[75:] == [1] * 25


def test_states_survive_plain_values():
    state = {
        "a": torch.tensor([1.5, float("nan")]),
        3: [True, None, "x", {"b": torch.tensor(2, dtype=torch.uint8)}],
        "betas": (0.9, 1e-300),
    }
    tensors = {}
    plain = flatten(state, tensors)
    back = unflatten(plain, tensors)
    assert torch.equal(back["a"], state["a"]) is False  # NaN
    assert back["a"].tolist()[0] == 1.5
    assert back[3][:3] == [True, None, "x"]
    assert back["betas"] == (0.9, 1e-300)
    assert back[3][3]["b"].dtype == torch.uint8
    with pytest.raises(InvalidParameterError) as caught:
        flatten({"a": object()}, {})
    assert caught.value.message == (
        "The state of the training must hold tensors and plain values, got object."
    )


@pytest.mark.gpu
def test_a_training_on_an_accelerator_goes_on(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    given, loss = samples(), nn.functional.cross_entropy
    data = Samples(
        *(t.cuda() for t in (given.X_train, given.y_train, given.X_test, given.y_test)),
        torch.zeros((), device="cuda"),
        torch.ones((), device="cuda"),
        torch.float32,
    )
    whole, cut = build().cuda(), build().cuda()
    fit(whole, data, loss, SETTINGS, 9)
    checkpoint, asked = Checkpoint(tmp_path / "c", {}), iter(range(1, 100))
    assert not fit(
        cut, data, loss, SETTINGS, 9, checkpoint=checkpoint, stop=lambda: next(asked) == 7
    ).is_done
    again = build().cuda()
    fit(again, data, loss, SETTINGS, 9, checkpoint=checkpoint)
    kept = [(m.one.weight != 0).cpu() for m in (whole, again)]
    assert torch.equal(*kept)
    assert torch.allclose(whole.last.weight, again.last.weight, rtol=1e-4, atol=1e-6)
