"""The benchmark of sparse training: rivals against their published definitions, and the judge."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import rivals, sparse_training
from benchmarks.rivals import acdc, feather, gradual, iht, imp, one_shot, rigl, set_erk
from benchmarks.rivals.task import Task
from benchmarks.sparse_training import Bench, summarize, table

STEPS = 60
SIDES = (20, 24, 12, 4)
N_ENTRIES = sum(a * b for a, b in itertools.pairwise(SIDES))


class Spy(Task):
    """A task that keeps the weights at which each gradient was taken."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []
        inner = self._loss

        def loss(model, step):
            assert step == len(self.seen)
            self.seen.append({n: p.detach().clone() for n, p in self.weights.items()})
            return inner(model, step)

        self._loss = loss

    def flat(self, step):
        return torch.cat([t.reshape(-1) for t in self.seen[step].values()])


def make_task(n_nonzero, n_steps=STEPS, lr=5e-3, cls=Spy, seed=0):
    torch.manual_seed(seed)
    model = sparse_training.lenet(SIDES)
    x = torch.randn(n_steps, 16, SIDES[0])
    y = x[..., :4].argmax(-1)
    names = [n for n, p in model.named_parameters() if p.ndim == 2]
    return cls(
        model,
        names,
        n_nonzero,
        n_steps,
        lambda net, step: functional.cross_entropy(net(x[step]), y[step]),
        lr=lr,
        seed=seed,
    )


def flat_weights(task):
    return torch.cat([p.detach().reshape(-1) for p in task.weights.values()])


def top(values, count):
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[values.abs().topk(count).indices] = True
    return mask


@pytest.mark.filterwarnings("ignore")  # torchao warns about its own compiled parts
@pytest.mark.parametrize("n_nonzero", [N_ENTRIES // 2, 40, 7])
@pytest.mark.parametrize("name", [n for n in rivals.NAMES if n != "dense"])
def test_every_method_returns_the_exact_count_for_the_same_gradients(name, n_nonzero):
    if name == "torchao_pat":
        pytest.importorskip("torchao.prototype.pat")
    task = make_task(n_nonzero)
    rivals.load(name).train(task)
    assert int((flat_weights(task) != 0).sum()) == n_nonzero
    assert task.n_gradients == task.n_steps == len(task.seen)


def test_a_method_cannot_take_more_gradients_than_the_others():
    task = make_task(40, n_steps=3)
    with pytest.raises(RuntimeError, match=r"All 3 gradients are spent\."):
        for _ in task.steps(task.adam(), 4):
            pass


def test_the_learning_rate_rises_and_falls_to_zero_once_or_in_each_round():
    def course(n_steps, restart):
        task = make_task(40, n_steps=n_steps, lr=1.0)
        optimizer = task.adam()
        rates = []
        for count in (n_steps // 2, n_steps // 2):
            rates += [
                optimizer.param_groups[0]["lr"]
                for _ in task.steps(optimizer, count, restart=restart)
            ]
        return torch.tensor(rates)

    def expected(n):
        t = torch.arange(n)
        rise = torch.clamp((t + 1) / (0.02 * n), max=1.0)
        return rise * (1 + torch.cos(math.pi * t / n)) / 2

    torch.testing.assert_close(course(200, False), expected(200), rtol=1e-5, atol=1e-6)
    both = torch.cat([expected(100), expected(100)])
    torch.testing.assert_close(course(200, True), both, rtol=1e-5, atol=1e-6)


def test_largest_is_the_global_choice_of_topk():
    task = make_task(40)
    for count in (1, 40, 300, N_ENTRIES):
        masks = torch.cat([m.reshape(-1) for m in task.largest(count).values()])
        assert torch.equal(masks, top(flat_weights(task), count))


def test_one_shot_keeps_the_largest_weights_of_a_dense_training():
    task = make_task(40)
    one_shot.train(task, dense_share=0.5)
    dense = make_task(40)
    optimizer = dense.adam()
    for _ in dense.steps(optimizer, STEPS // 2):
        optimizer.step()
    mask = top(flat_weights(dense), 40)
    assert torch.equal(task.flat(STEPS // 2), flat_weights(dense) * mask)
    assert torch.equal(flat_weights(task) != 0, mask)


def test_gradual_follows_the_cubic_and_never_revives_a_weight():
    task = make_task(40)
    gradual.train(task, end=0.5)
    final = 40 / N_ENTRIES
    supports = [task.flat(t) != 0 for t in range(STEPS)]
    for t in range(STEPS):
        # Sparsity s_t = s_f - s_f (1 - t / T)^3 of Zhu and Gupta, pruned every ten steps.
        pruned_at = min(10 * (t // 10), STEPS // 2)
        sparsity = (1 - final) * (1 - (1 - pruned_at / (STEPS / 2)) ** 3)
        assert int(supports[t].sum()) == pytest.approx((1 - sparsity) * N_ENTRIES, abs=0.51)
        assert t == 0 or not (supports[t] & ~supports[t - 1]).any()


def test_imp_rewinds_the_surviving_weights_and_prunes_geometrically():
    task = make_task(40, n_steps=185)
    imp.train(task)
    rounds, early = 50, 5  # 185 = 50 + 45 + 45 + 45
    start = task.flat(early)
    density = 40 / N_ENTRIES
    for k, first in enumerate((50, 95, 140), start=1):
        before, after = task.flat(first - 1), task.flat(first)
        count = round(density ** (k / 3) * N_ENTRIES)
        assert int((after != 0).sum()) == count
        assert torch.equal(after, start * (after != 0))
        # The support is that of the trained weights, which moved little in the last step.
        assert (top(before, count) & (after != 0)).sum() >= 0.95 * count
    assert rounds == 50


def test_erk_densities_have_the_ratio_of_the_paper():
    task = make_task(60)
    masks = rigl.erdos_renyi(task)
    counts = torch.tensor([float(m.sum()) for m in masks.values()])
    assert counts.sum() == 60
    shares = torch.tensor([float(a + b) for a, b in itertools.pairwise(SIDES)])
    torch.testing.assert_close(counts, 60 * shares / shares.sum(), rtol=0, atol=1.0)


def test_exchange_drops_the_smallest_weights_and_grows_the_largest_scores():
    param = torch.tensor([[5.0, -0.1, 3.0, 0.0], [0.2, 0.0, 0.0, -4.0]])
    mask = param != 0
    scores = torch.tensor([[9.0, 0.5, 9.0, 0.7], [0.1, 0.9, 0.3, 9.0]])
    new, grown = rigl.exchange(param, mask, scores, 0.4)
    # -0.1 and 0.2 go; the scores 0.9 and 0.7 come.
    assert new.tolist() == [[True, False, True, True], [False, True, False, True]]
    assert grown.tolist() == [[False, False, False, True], [False, True, False, False]]
    # With a larger score, a weight that was dropped comes back and counts as kept.
    scores[1, 0] = 2.0
    new, grown = rigl.exchange(param, mask, scores, 0.4)
    assert new.tolist() == [[True, False, True, False], [True, True, False, True]]
    assert grown.tolist() == [[False, False, False, False], [False, True, False, False]]
    # Only one weight can grow, so only one is dropped.
    none = torch.zeros(2, 4)
    none[1, 2] = 1.0
    new, grown = rigl.exchange(param, mask, none, 0.9)
    assert new.tolist() == [[True, False, True, False], [True, False, True, True]]
    assert int(grown.sum()) == 1


def test_drop_fraction_is_the_cosine_of_the_paper():
    assert rigl.drop_fraction(0, 75.0) == pytest.approx(0.3)
    assert rigl.drop_fraction(25, 75.0) == pytest.approx(0.225)
    assert rigl.drop_fraction(75, 75.0) == pytest.approx(0.0)


@pytest.mark.parametrize("method", [rigl, set_erk])
def test_sparse_to_sparse_methods_keep_the_count_of_each_layer(method):
    task = make_task(60, n_steps=300)
    first = {n: int(m.sum()) for n, m in rigl.erdos_renyi(make_task(60, n_steps=300)).items()}
    method.train(task)
    changes = []
    for t in range(1, 300):
        for name, now in task.seen[t].items():
            # A weight that RigL just grew is still zero.
            assert int((now != 0).sum()) <= first[name]
        if not torch.equal(task.flat(t) != 0, task.flat(t - 1) != 0):
            changes.append(t)
    every = round(rigl.EVERY * 300)
    assert changes
    assert {t % every for t in changes} <= {1, 2}
    assert max(changes) <= 0.75 * 300 + 2
    assert {n: int((p != 0).sum()) for n, p in task.weights.items()} == first


def test_rigl_grows_from_zero_and_takes_no_step_when_it_exchanges():
    task = make_task(60, n_steps=300)
    rigl.train(task)
    every = round(rigl.EVERY * 300)
    before, after = task.flat(every), task.flat(every + 1)
    assert int((after != 0).sum()) < 60
    assert torch.equal(after, before * (after != 0))


def test_set_grows_with_values_of_the_initialization():
    task = make_task(60, n_steps=300)
    start = flat_weights(task).clone()
    set_erk.train(task)
    every = round(rigl.EVERY * 300)
    before, after = task.flat(every), task.flat(every + 1)
    grown = (before == 0) & (after != 0)
    assert grown.any()
    assert torch.equal(after[grown], start[grown])


def test_acdc_has_the_phases_of_its_imagenet_runs():
    epochs = [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    assert acdc.boundaries(100, 0.15) == epochs
    task = make_task(40, n_steps=100)
    acdc.train(task, last_sparse=0.15)
    for start, end in itertools.pairwise([*epochs, 100]):
        sparse = epochs.index(start) % 2 == 0
        supports = [task.flat(t) != 0 for t in range(start, end)]
        if sparse:
            assert all(torch.equal(s, supports[0]) for s in supports)
            assert int(supports[0].sum()) == 40
        else:
            assert int(supports[-1].sum()) > 400  # some units are dead


def test_acdc_lengthens_the_last_sparse_phase():
    ends = acdc.boundaries(100, 0.3)
    assert ends[-2:] == [60, 70]
    assert ends == sorted(set(ends))


def test_feather_operator_is_the_cube_root_of_the_difference_of_cubes():
    values = torch.tensor([-3.0, -1.0001, -1.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    shown = feather.operator(values, 1.0)
    expected = [-((27 - 1) ** (1 / 3)), -((1.0001**3 - 1) ** (1 / 3)), 0, 0, 0, 7 ** (1 / 3)]
    assert shown.tolist() == pytest.approx(expected, rel=1e-9)
    nearby = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert feather.operator(nearby, 1.0) > 0


@pytest.mark.parametrize(("n_nonzero", "scale"), [(4, 0.5), (5, 1.0), (20, 1.0)])
def test_feather_passes_gradients_straight_through_and_scales_those_of_pruned(n_nonzero, scale):
    class Plain(Task):
        def adam(self):
            return torch.optim.SGD(self.model.parameters(), lr=self.lr)

    torch.manual_seed(0)
    model = nn.Linear(10, 10, bias=False)
    slope = torch.randn(10, 10)
    start = model.weight.detach().clone()
    task = Plain(model, ["weight"], n_nonzero, 4, lambda m, _: (m.weight * slope).sum(), lr=0.1)
    rates = [0.1 * (1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)]
    latent = start.clone()
    for t, rate in enumerate(rates):
        # Before a step the budget is that of the cubic ramp over the first half.
        count = n_nonzero + round((100 - n_nonzero) * (1 - min(t / 2, 1)) ** 3)
        mask = top(latent.reshape(-1), count).view(10, 10)
        latent = latent - rate * slope * torch.where(mask, 1.0, scale)
    feather.train(task)
    size = latent.abs()
    level = size.reshape(-1).sort().values[100 - n_nonzero - 1]
    expected = latent.sign() * (size**3 - level**3).clamp(min=0) ** (1 / 3)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_iht_is_a_step_of_adam_and_the_largest_weights():
    task = make_task(40)
    twin = make_task(40)
    iht.train(task)
    optimizer = twin.adam()

    def threshold():
        masks = top(flat_weights(twin), 40).split([p.numel() for p in twin.weights.values()])
        for param, mask in zip(twin.weights.values(), masks, strict=True):
            param.data.mul_(mask.view_as(param))

    threshold()
    for _ in twin.steps(optimizer):
        optimizer.step()
        threshold()
    assert torch.equal(flat_weights(task), flat_weights(twin))


@pytest.mark.filterwarnings("ignore")  # torchao warns about its own compiled parts
def test_torchao_takes_gradients_at_the_global_choice_and_then_fixes_it():
    pytest.importorskip("torchao.prototype.pat")
    task = make_task(40)
    rivals.load("torchao_pat").train(task, healing=0.5)
    counts = [int((task.flat(t) != 0).sum()) for t in range(STEPS)]
    assert counts[: STEPS // 2] == sorted(counts[: STEPS // 2], reverse=True)
    assert counts[STEPS // 2 :] == [40] * (STEPS // 2)
    supports = [task.flat(t) != 0 for t in range(STEPS // 2, STEPS)]
    assert all(torch.equal(s, supports[0]) for s in supports)


# The judge ---------------------------------------------------------------------------------------


def test_a_small_benchmark_runs_and_goes_on_where_it_stopped(tmp_path, capsys):
    log = tmp_path / "runs.jsonl"
    out = tmp_path / "out.json"
    words = ["--problems", "digits", "--densities", "0.1", "--log", str(log), "--out", str(out)]
    assert sparse_training.main([*words, "--methods", "dense", "ours", "--seeds", "0"]) == 0
    first = log.read_text().splitlines()
    assert sparse_training.main([*words, "--methods", "dense", "ours", "--seeds", "0", "1"]) == 0
    second = log.read_text().splitlines()
    assert second[: len(first)] == first
    assert len(second) == len(first) + 2
    figures = json.loads(out.read_text())
    cell = figures["problems"]["digits"]["rows"]["ours"]["0.1"]
    assert cell["n_nonzero"] == [474, 474]  # a tenth of 64 * 64 + 64 * 10 weights, 473.6
    assert cell["exact"]
    assert cell["mean"] > 90.0  # a linear model reaches 95
    runs = figures["runs"]
    assert {r["seed"] for r in runs if r["tune"]} == {sparse_training.TUNING_SEED}
    assert {r["seed"] for r in runs if not r["tune"]} == {0, 1}
    assert {r["n_gradients"] for r in runs if not r["tune"]} == {370}
    assert "| ellzero lazy |" in capsys.readouterr().out


def test_the_tuning_sees_no_judged_sample():
    def rows(part):
        per_seed = {tuple(r.tolist()) for s in range(part.n_steps) for r in part.batch(0, s)[0]}
        judged = {tuple(r.tolist()) for x, _ in part.judged for r in x}
        return per_seed, judged

    trained, judged = rows(sparse_training.digits(None, False))
    tune_trained, tune_judged = rows(sparse_training.digits(None, True))
    assert not (tune_trained | tune_judged) & judged
    assert not trained & judged
    assert not tune_trained & tune_judged


def test_batches_depend_on_the_seed_and_the_step_alone():
    part = sparse_training.digits(None, False)
    later = part.batch(1, 50)[0]
    part.batch(0, 3)
    assert torch.equal(part.batch(1, 50)[0], later)
    assert not torch.equal(part.batch(2, 50)[0], later)
    epoch = torch.cat([part.batch(0, s)[0] for s in range(37)])
    assert len({tuple(r.tolist()) for r in epoch}) == len(epoch)


@pytest.mark.parametrize(("peak", "gain"), [(5e-4, 0.5), (2e-3, -0.5), (2e-3, 0.5), (8e-3, -0.5)])
def test_tuning_climbs_to_the_peak_and_then_tries_the_other_settings(peak, gain, monkeypatch):
    bench = Bench(None, None)

    def run(problem, method, density, seed, tune, settings):
        assert tune
        assert seed == sparse_training.TUNING_SEED
        quick = "base" in settings
        away = abs(math.log2(settings["lr"] / (2 * peak if quick else peak)))
        score = quick * gain - away - (settings["end"] == 0.75)
        return {"score": None if settings["lr"] > 0.02 else score}

    monkeypatch.setattr(bench, "run", run)
    found = bench.tune("lenet", "gradual", 0.02)
    # The other optimizer is one step of the grid off at first, and climbs by itself.
    if gain > 0:
        assert found == {"lr": pytest.approx(2 * peak), "end": 0.5, "base": "quick"}
    else:
        assert found == {"lr": pytest.approx(peak), "end": 0.5}


def test_the_summary_shows_means_spread_and_our_losses():
    def run(method, density, seed, score, n_nonzero=10):
        return {
            "problem": "lenet",
            "method": method,
            "density": density,
            "seed": seed,
            "tune": False,
            "settings": {"lr": 1e-3},
            "score": score,
            "n_nonzero": n_nonzero,
            "n_asked": 10,
            "seconds": 2.0,
        }

    older = run("ours", 0.1, 0, 10.0) | {"settings": {"lr": 2e-3}}
    runs = [
        older,
        *(run("dense", 1.0, s, 98.0) for s in range(2)),
        *(run("ours", 0.1, s, 98.5 + s) for s in range(2)),
        *(run("ours", 0.05, s, 97.0 + s) for s in range(2)),
        *(run("iht", 0.1, s, 97.0 + s) for s in range(2)),
        *(run("iht", 0.05, s, 97.5 + s, n_nonzero=11 - s) for s in range(2)),
    ]
    tuned = [run("ours", 0.1, 100, 1.0) | {"problem": "chars", "tune": True}]
    assert list(sparse_training.report([*runs, *tuned])["problems"]) == ["lenet"]
    found = summarize(runs, "lenet")
    assert found["rows"]["ours"]["0.1"]["mean"] == 99.0
    assert found["rows"]["ours"]["0.1"]["deviation"] == pytest.approx(math.sqrt(0.5))
    assert found["best"] == {"0.1": "ours", "0.05": "iht"}
    assert found["losses_of_ours"] == [
        {"density": "0.05", "to": "iht", "by": 0.5},
        {"density": "0.05", "to": "dense", "by": 0.5},
    ]
    shown = table(found, (0.1, 0.05))
    assert "| dense | 98.00 ± 0.00 | 98.00 ± 0.00 | 2.0 |" in shown
    assert "| ellzero lazy | 99.00 ± 0.71* | 97.50 ± 0.71 | 2.0 |" in shown
    assert "| IHT every step | 97.50 ± 0.71 | 98.00 ± 0.71* (count not exact) | 2.0 |" in shown
    assert shown.endswith("ours loses: 95 % to iht by 0.50; 95 % to dense by 0.50")


def test_smaller_losses_are_better_and_diverged_is_worst():
    accuracy, loss = sparse_training.PROBLEMS["lenet"], sparse_training.PROBLEMS["chars"]
    assert accuracy.is_better(98.0, 97.0)
    assert loss.is_better(1.9, 2.0)
    assert accuracy.is_better(10.0, None)
    assert not loss.is_better(None, 9.0)
    assert not loss.is_better(None, None)


def test_a_diverged_run_is_recorded_and_shown(tmp_path):
    bench = Bench(None, tmp_path / "runs.jsonl")
    run = bench.run("digits", "iht", 0.1, 0, False, {"lr": 1e9, "sgd": True})
    assert run["score"] is None
    again = Bench(None, tmp_path / "runs.jsonl")
    assert list(again.runs.values()) == [run]
    found = summarize([run], "digits")
    assert found["best"] == {}
    assert "| IHT every step | diverged |  |" in table(found, (0.1, 0.05))


@pytest.mark.parametrize(
    ("name", "n_entries", "shape"),
    [("lenet", 266_200, (2, 784)), ("resnet", 19_464, (2, 784)), ("chars", 98_304, (2, 64))],
)
def test_networks_have_the_sizes_that_the_tables_name(name, n_entries, shape):
    problem = sparse_training.PROBLEMS[name]
    model = problem.build()
    counted = [
        p.numel() for n, p in model.named_parameters() if p.ndim >= 2 and problem.counted(n)
    ]
    assert sum(counted) == n_entries
    x = torch.zeros(shape, dtype=torch.long) if name == "chars" else torch.randn(shape)
    assert model(x).shape == ((2, 64, 65) if name == "chars" else (2, 10))


def test_the_transformer_sees_no_later_character():
    torch.manual_seed(0)
    model = sparse_training.PROBLEMS["chars"].build()
    x = torch.randint(65, (1, 64))
    y = x.clone()
    y[0, 40:] = (y[0, 40:] + 1) % 65
    a, b = model(x), model(y)
    torch.testing.assert_close(a[0, :40], b[0, :40])
    assert not torch.allclose(a[0, 40:], b[0, 40:])


def test_missing_data_and_unknown_methods_are_said():
    with pytest.raises(
        SystemExit, match=r"Give the folder of mnist\.npz by --data or ELLZERO_DATA\."
    ):
        sparse_training.mnist(None, False, epochs=1)
    with pytest.raises(
        SystemExit, match=r"Give the folder of text/tinyshakespeare\.txt by --data"
    ):
        sparse_training.shakespeare(None, False)
    with pytest.raises(
        SystemExit, match=r"Unknown method 'ith'\. Known methods: dense, one_shot,"
    ):
        rivals.load("ith")
