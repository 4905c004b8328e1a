"""The ticket protocol: exact counts, equal starts and batches, resuming, intervals, complaints."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ellzero.errors import DataError, IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.nn import HardThresholding, tickets
from ellzero.nn.tickets import masks as marks
from ellzero.nn.tickets.protocol import DEFAULT_ARMS
from ellzero.nn.tickets.task import Seeds
from ellzero.nn.tickets.training import batches, train
from ellzero.report import to_html, to_markdown

DENSITIES = (0.8**2, 0.8**5)
N_STEPS = 12


def data():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def small(most):
    width = most // 8
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 2))


def make_task(**changes):
    x, y = data()
    settings = {
        "build": build,
        "loader": tickets.Shuffled(x, y, 20),
        "criterion": nn.functional.cross_entropy,
        "test": tickets.Accuracy(x, y),
        "validation": tickets.Accuracy(x, y),
        "every": 5,
        "n_steps": N_STEPS,
        "small": small,
    }
    return tickets.Task(**(settings | changes))


ALL = tuple(tickets.ARMS)
SETTINGS = tickets.Settings(every=2, draws=2, rewind=0.25)


@pytest.fixture(scope="module")
def everything():
    return tickets.run(make_task(), DENSITIES, arms=ALL, seeds=(3, 1), settings=SETTINGS)


def test_every_mask_has_the_count_asked_for(everything):
    n = 6 * 8 + 8 * 2
    assert everything.n_entries == n
    assert everything.counts == tuple(math.floor(d * n) for d in DENSITIES) == (40, 20)
    asked = dict(zip(everything.densities, everything.counts, strict=True))
    assert {r.arm for r in everything.runs} == set(ALL)
    for run in everything.runs:
        assert sum(run.counts.values()) == run.n_nonzero
        if run.arm == "dense":
            assert run.n_nonzero == n
        elif run.arm == "small-dense":
            assert run.n_nonzero == asked[run.density] // 8 * 8
        else:
            assert run.n_nonzero == asked[run.density], run.arm


def test_networks_are_zero_off_the_mask():
    task = make_task(optimizer=lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5))
    model = build()
    mask = {"0.weight": torch.rand(8, 6, generator=torch.Generator().manual_seed(1)) < 0.3}
    with torch.no_grad():
        model[0].weight[~mask["0.weight"]] = math.inf
    train(model, task, Seeds(0), masks=mask)
    assert torch.equal(model[0].weight != 0, mask["0.weight"])
    assert not bool(torch.signbit(model[0].weight[~mask["0.weight"]]).any())
    assert int((model[2].weight != 0).sum()) == 16


def test_start_and_batches_are_equal_across_arms(everything):
    for seed in everything.seeds:
        runs = [r for r in everything.runs if r.seed == seed]
        assert len({r.order for r in runs}) == 1
        same = {
            r.start
            for r in runs
            if r.arm not in ("imp-late", "imp-reinit", "iht-reinit", "imp-shuffled", "imp-signs")
            and r.arm != "small-dense"
        }
        assert len(same) == 1
    assert len({r.order for r in everything.runs}) == len(everything.seeds)
    assert {r.n_steps for r in everything.runs} == {N_STEPS}


def test_search_steps_are_counted(everything):
    # 64 -> 51 -> 40 -> 32 -> 25 -> 20: two rounds, then three.
    first = int(0.25 * N_STEPS)
    assert [everything.search_steps("imp", d) for d in DENSITIES] == [2 * N_STEPS, 5 * N_STEPS]
    assert [everything.search_steps("imp-late", d) for d in DENSITIES] == [
        N_STEPS + k * (N_STEPS - first) for k in (1, 4)
    ]
    for arm, steps in {
        "one-shot": (1, 1), "iht": (1, 1), "lazy": (1, 1), "iht-constant": (1, 1),
        "iht-long": (2, 5), "imp-reinit": (2, 5), "random-layers": (2, 5), "iht-reinit": (1, 1),
        "random": (0, 0), "magnitude": (0, 0), "small-dense": (0, 0),
    }.items():  # fmt: skip
        found = [everything.search_steps(arm, d) for d in DENSITIES]
        assert found == [k * N_STEPS for k in steps], arm
    assert everything.answer().cost_ratio == (2.0, 5.0)


def test_random_masks_have_the_layer_counts_of_pruning(everything):
    for density in DENSITIES:
        ours = {r.seed: r.counts for r in everything.select("imp", density)}
        theirs = {r.seed: r.counts for r in everything.select("random-layers", density)}
        assert ours == theirs
        for arm in ("imp-reinit", "imp-shuffled", "imp-signs"):
            for run in everything.select(arm, density):
                assert run.counts == ours[run.seed]


def test_new_starts_are_drawn_and_averaged(everything):
    runs = [r for r in everything.select("imp-reinit", DENSITIES[0]) if r.seed == 3]
    assert [r.draw for r in runs] == [0, 1]
    assert len({r.start for r in runs}) == 2
    assert everything.values("imp-reinit", DENSITIES[0])[0] == pytest.approx(
        (runs[0].value + runs[1].value) / 2
    )


def test_final_weights_belong_to_the_search(everything):
    for density in DENSITIES:
        for a, b in itertools.pairwise(("iht", "iht-final")):
            assert [r.counts for r in everything.select(a, density)] == [
                r.counts for r in everything.select(b, density)
            ]


def test_iterative_pruning_by_hand():
    """One round each way, written out with plain torch."""
    found = tickets.run(make_task(), [0.85, 0.75], arms=["imp", "one-shot"], seeds=[5])
    x, y = data()

    def trained(mask):
        torch.manual_seed(Seeds(5).number("start"))
        model = build()
        weights = (model[0].weight, model[2].weight)
        optimizer = torch.optim.Adam(model.parameters(), lr=1.2e-3)
        step = 0
        for epoch in itertools.count():
            order = torch.randperm(60, generator=Seeds(5).generator("batches", epoch))
            for rows in order.split(20):
                with torch.no_grad():
                    for w, m in zip(weights, mask, strict=True):
                        w.mul_(m)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                for w, m in zip(weights, mask, strict=True):
                    w.grad.mul_(m)
                optimizer.step()
                step += 1
                if step == N_STEPS:
                    return model

    dense = trained([torch.ones(8, 6), torch.ones(2, 8)])
    sizes = torch.cat([dense[0].weight.flatten(), dense[2].weight.flatten()]).detach().abs()
    # Three quarters in one round is more than a fifth: iterative pruning has another mask there.
    assert marks.levels(64, [48]) == [55, 48]
    for arm, density, count in (("imp", 0.85, 54), ("one-shot", 0.85, 54), ("one-shot", 0.75, 48)):
        keep = torch.zeros(64)
        keep[sizes.argsort(descending=True)[:count]] = 1
        ticket = trained([keep[:48].view(8, 6), keep[48:].view(2, 8)])
        (run,) = found.select(arm, density)
        assert run.counts == {"0.weight": int(keep[:48].sum()), "2.weight": int(keep[48:].sum())}
        assert run.value == tickets.Accuracy(x, y)(ticket)
    assert found.values("dense")[0] == tickets.Accuracy(x, y)(dense)


def test_supports_can_be_read_and_are_copies():
    model = nn.Linear(4, 3, bias=False)
    optimizer = HardThresholding(torch.optim.SGD(model.parameters()), model, 5, recipe="iht")
    assert int(optimizer.masks["weight"].sum()) == 5
    assert torch.equal(optimizer.masks["weight"], model.weight != 0)
    optimizer.masks["weight"].zero_()
    assert int(optimizer.masks["weight"].sum()) == 5


def test_levels_take_a_fifth_at_most():
    assert marks.levels(11900, [math.floor(0.8**k * 11900) for k in (1, 2, 3)]) == [
        9520, 7616, 6092,
    ]  # fmt: skip
    stops = marks.levels(266200, [math.floor(0.8**18 * 266200)])
    assert len(stops) == 18
    # The last count was rounded down, which the rounds share.
    share = 0.8 * (1 - 1 / stops[-1])
    assert all(b >= share * a - 0.5 for a, b in itertools.pairwise([266200, *stops]))
    assert marks.levels(100, [100, 1])[-1] == 1
    assert marks.levels(3, [1]) == [2, 1]


def test_signs_and_shuffles_keep_what_they_say():
    values = {"w": torch.tensor([[1.0, -2.0], [3.0, 4.0]])}
    mask = {"w": torch.tensor([[True, True], [False, True]])}
    found = marks.signs(values, mask)["w"]
    scale = (1 + 2 + 4) / 3
    assert torch.allclose(found, torch.tensor([[scale, -scale], [0.0, scale]]))
    moved = marks.shuffle_values(values, mask, torch.Generator().manual_seed(0))["w"]
    assert sorted(moved.flatten().tolist()) == [-2.0, 0.0, 1.0, 4.0]
    assert float(moved[1, 0]) == 0.0


def test_overlap_against_counting():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": torch.Size([3, 4]), "b": torch.Size([8])}
    first = marks.random_masks(shapes, 9, generator)
    second = marks.random_masks(shapes, 6, generator)
    one = {(n, i) for n, m in first.items() for i in m.flatten().nonzero().flatten().tolist()}
    two = {(n, i) for n, m in second.items() for i in m.flatten().nonzero().flatten().tolist()}
    found, chance, _ = marks.overlap(first, second)
    assert (len(one), len(two)) == (9, 6)
    assert found == pytest.approx(len(one & two) / len(one | two))
    assert chance == pytest.approx((54 / 20) / (15 - 54 / 20))


# Intervals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 30])
def test_students_interval_against_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(size=n)
    found = tickets.paired_interval(a, b, confidence=0.9)
    theirs = scipy.stats.ttest_rel(a, b, alternative="greater")
    limits = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), rel=1e-10)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-10)


@pytest.mark.parametrize("n", [4, 12])
def test_bootstrap_against_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(size=n)
    found = tickets.paired_interval(a, b, method="bootstrap", n_resamples=40_000)
    theirs = scipy.stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=40_000, rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(found.low - theirs.low) < 0.03 * width
    assert abs(found.high - theirs.high) < 0.03 * width
    assert found == tickets.paired_interval(a, b, method="bootstrap", n_resamples=40_000)


def test_equal_differences_give_a_point():
    found = tickets.paired_interval([0.3, 0.5, 0.7], [0.1, 0.3, 0.5])
    assert found.low == found.high == pytest.approx(0.2)
    assert found.p_value == 0.0
    assert tickets.paired_interval([1.0, 2.0], [1.0, 2.0]).p_value == 0.5


def test_holm_by_definition():
    p = [0.012, 0.2, 0.011, 0.5, 0.04]
    found = tickets.holm(p)
    ranked = sorted(p)
    for value, corrected in zip(p, found, strict=True):
        place = ranked.index(value)
        assert corrected == pytest.approx(
            min(1.0, max((len(p) - j) * ranked[j] for j in range(place + 1)))
        )


# Resuming ----------------------------------------------------------------------------------


class Stop(Exception):
    pass


ARMS = ["imp", "iht", "random-layers", "iht-final", "imp-late"]


def test_resumed_equals_straight(tmp_path):
    straight = tickets.run(make_task(), DENSITIES, arms=ARMS, seeds=(0, 1), settings=SETTINGS)
    seen = []

    def stop_at(place):
        def tell(what, done, total):
            seen.append((what, done, total))
            if done >= place:
                raise Stop

        return tell

    for place in (3, 8, 19):
        with pytest.raises(Stop):
            tickets.run(
                make_task(), DENSITIES, arms=ARMS, seeds=(0, 1), settings=SETTINGS,
                folder=tmp_path, progress=stop_at(place),
            )  # fmt: skip
    total = 2 * (1 + 5 + 5 + 4 + 2)
    assert {t for _, _, t in seen} == {total}
    done = []
    resumed = tickets.run(
        make_task(), DENSITIES, arms=ARMS, seeds=(0, 1), settings=SETTINGS, folder=tmp_path,
        progress=lambda what, k, n: done.append(k),
    )  # fmt: skip
    assert resumed == straight
    assert done == sorted(done)
    assert done[-1] == total
    again = []
    once_more = tickets.run(
        make_task(criterion=None), DENSITIES, arms=ARMS, seeds=(0, 1), settings=SETTINGS,
        folder=tmp_path, progress=lambda what, k, n: again.append(k),
    )  # fmt: skip
    assert once_more == straight  # nothing is trained: there is no loss to train with
    assert len(again) < len(done)


def test_folder_of_another_experiment_is_refused(tmp_path):
    tickets.run(make_task(), [0.5], arms=["random"], seeds=[0], folder=tmp_path)
    with pytest.raises(InvalidParameterError) as caught:
        tickets.run(make_task(), [0.25], arms=["random"], seeds=[0], folder=tmp_path)
    assert str(caught.value) == (
        "`folder` holds an experiment with densities [0.5], this one has [0.25].\n"
        "hint: Give the same settings to resume it, or another folder."
    )

    def other():
        model = build()
        nn.init.zeros_(model[0].bias)
        return model

    with pytest.raises(IncompatibleError) as caught:
        tickets.run(make_task(build=other), [0.5], arms=["random"], seeds=[0], folder=tmp_path)
    assert str(caught.value) == (
        "`folder` holds runs of arm 'dense' with another start.\n"
        "hint: Give the network and the loader that the folder was made with, or another folder."
    )
    (tmp_path / "random-0.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match=r"damaged.\nhint: Delete it"):
        tickets.run(make_task(), [0.5], arms=["random"], seeds=[0], folder=tmp_path)
    with pytest.raises(InvalidParameterError, match="`folder` cannot be made"):
        tickets.run(
            make_task(), [0.5], arms=["random"], seeds=[0], folder=tmp_path / "settings.json"
        )


# Loaders and networks of users -------------------------------------------------------------


@pytest.mark.parametrize("own", [False, True])
def test_data_loader_gives_equal_batches(own):
    generator = torch.Generator().manual_seed(7) if own else None
    state = None if generator is None else generator.get_state()
    loader = DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True, generator=generator)
    before = torch.get_rng_state()

    def with_dropout():
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    found = tickets.run(
        make_task(loader=loader, build=with_dropout), [0.5],
        arms=["imp", "iht", "imp-late", "small-dense"], seeds=[0, 1],
    )  # fmt: skip
    assert len({r.order for r in found.runs}) == 2
    assert torch.equal(torch.get_rng_state(), before)
    if generator is not None:
        assert torch.equal(generator.get_state(), state)


def test_batches_differ_between_epochs_and_seeds():
    task = make_task()
    firsts = [x for x, _ in batches(task, Seeds(0), 6)]
    assert not torch.equal(firsts[0], firsts[3])
    assert torch.equal(torch.cat(firsts[:3]).sort(0)[0], torch.cat(firsts[3:]).sort(0)[0])
    assert not torch.equal(firsts[0], next(batches(task, Seeds(1), 1))[0])


def test_batch_norm_scheduler_and_loss():
    x, y = data()
    task = make_task(
        build=lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)),
        scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, N_STEPS),
        test=tickets.MeanLoss(nn.functional.cross_entropy, x, y),
        validation=None,
        maximize=False,
        small=None,
    )
    found = tickets.run(task, [0.5], arms=["imp-late", "iht"], seeds=[0, 1], settings=SETTINGS)
    assert found.n_free == 8 + 8 + 8 + 2
    (worse,) = found.compare("iht")
    values = np.subtract(found.values("dense"), found.values("iht", 0.5))
    assert worse.mean == pytest.approx(values.mean())
    assert found.select("iht")[0].best_step is None


def test_answer_follows_the_margin(everything):
    generous, strict = everything.answer(margin=1.0), everything.answer(margin=0.0)
    assert generous.yes
    assert generous.sentence.startswith("Yes by the margin of 1: iht finds tickets at 64 %, 32.8")
    for answer in (generous, strict):
        for i, comparison in enumerate(everything.compare("iht")):
            assert answer.finds[i] == (comparison.low >= -answer.margin)
    spread = everything.allowed()
    assert spread == pytest.approx(np.std(everything.values("dense"), ddof=1))


def test_answer_needs_the_finder_wherever_the_reference_is():
    def answer(finds, reference):
        return tickets.Answer("iht", "imp", 0.0, (0.5, 0.1), finds, reference, finds, (2.0, 4.0))

    assert answer((True, False), (True, False)).yes
    assert not answer((True, False), (True, True)).yes
    assert not answer((True, True), (False, False)).yes
    assert answer((False, True), (True, False)).sentence == (
        "No by the margin of 0: iht finds tickets at 10 %, imp at 50 %; iht is as good as imp at "
        "10 %, for down to 1/4 of the steps"
    )
    undecided = answer((False, False), (False, False)).sentence
    assert undecided.startswith("Undecided by the margin of 0: iht finds tickets at no density")


def test_report_and_dict(everything):
    plain = everything.to_dict()
    assert json.loads(json.dumps(plain))["answer"]["yes"] == everything.answer().yes
    assert len(plain["comparisons"]) == (len(ALL) - 1) * len(DENSITIES)
    summary = tickets.summarize(everything)
    page = to_html(summary)
    assert page.count("Test accuracy by density") >= 3
    for arm in ALL:
        assert arm in page
    assert "Jaccard" in to_markdown(summary)
    one = tickets.run(make_task(), [0.5], arms=["imp", "iht"], seeds=[0])
    assert "1 seed" not in to_html(tickets.summarize(one))


# Complaints --------------------------------------------------------------------------------


def run_with(densities=(0.5,), task=None, **others):
    others = {"arms": ["random"], "seeds": [0, 1]} | others
    return tickets.run(make_task() if task is None else task, densities, **others)


HINT = "\nhint: Give shares of the weights to keep, such as [0.168, 0.044]."
COMPLAINTS = [
    (
        lambda: run_with([0.0]),
        "`densities` must be a number between 0 and 1, got 0." + HINT,
    ),
    (
        lambda: run_with([1.5]),
        "`densities` must be a number between 0 and 1, got 1.5." + HINT,
    ),
    (
        lambda: run_with([1.0]),
        "`densities` must lie between 0 and 1, both excluded, got 1." + HINT,
    ),
    (lambda: run_with([]), "`densities` must hold at least one density, got []." + HINT),
    (
        lambda: run_with([0.5, 0.501]),
        "`densities` must mean different counts of the 64 entries, got (32, 32).\n"
        "hint: Leave densities out that lie closer than one entry.",
    ),
    (
        lambda: run_with(arms=["imq"]),
        f"`arms` must be one of {', '.join(map(repr, tickets.ARMS))}, got 'imq'. "
        "Did you mean 'imp'?",
    ),
    (
        lambda: run_with(arms=[]),
        f"`arms` must be a list of names, got [].\nhint: Arms: {', '.join(tickets.ARMS)}.",
    ),
    (
        lambda: run_with(arms=["small-dense"], task=make_task(small=None)),
        "The arm 'small-dense' needs `Task.small`, got None.\n"
        "hint: Give a callable that makes a dense network with at most so many weights.",
    ),
    (
        lambda: run_with(seeds=[]),
        "`seeds` must hold at least one seed, got [].\nhint: Give a list such as [0, 1].",
    ),
    (
        lambda: run_with(seeds=[1, 1]),
        "`seeds` must be different, got [1, 1].\nhint: Equal seeds give equal runs.",
    ),
    (
        lambda: run_with(seeds=[0]).compare("random"),
        "An interval needs at least 2 pairs, got 1.\n"
        "hint: Run the experiment with more seeds; 5 or more are usual.",
    ),
    (
        lambda: run_with(seeds=[0]).allowed(),
        "The margin is the deviation of the dense network over seeds, got 1 seed.\n"
        "hint: Give `margin`, or run with more seeds.",
    ),
    (
        lambda: run_with().select("random", 0.3),
        "`density` must be one of 0.5, got 0.3.",
    ),
    (
        lambda: tickets.paired_interval([1.0, 2.0], [1.0]),
        "`a` and `b` must be paired, got 2 and 1 numbers.",
    ),
    (
        lambda: tickets.paired_interval([1.0, math.nan], [1.0, 2.0]),
        "`a` and `b` must be finite, got NaN or infinity.",
    ),
    (
        lambda: tickets.paired_interval([1.0, 2.0], [1.0, 2.0], confidence=1.0),
        "`confidence` must be below 1, got 1.\nhint: Use 0.95.",
    ),
    (lambda: tickets.Settings(pruned=1.0), "`pruned` must be below 1, got 1."),
    (lambda: tickets.Settings(rewind=1.0), "`rewind` must be below 1, got 1."),
    (
        lambda: tickets.Shuffled(torch.ones(3), torch.ones(2), 1),
        "`x` and `y` must hold as many samples, got 3 and 2.",
    ),
    (
        lambda: run_with(task=make_task(build=lambda: 3)),
        "`build` must return a `torch.nn.Module`, got int.",
    ),
    (
        lambda: run_with(task=make_task(loader=iter([]))),
        "`loader` must give batches in every epoch, got none in epoch 0.\n"
        "hint: A generator can be gone through only once; give a `DataLoader`, a list of batches "
        "or a `tickets.Shuffled`.",
    ),
    (
        lambda: run_with(task=make_task(loader=[torch.ones(2)])),
        "`loader` must give pairs of inputs and targets, got Tensor.\n"
        "hint: Write a callable that makes them, as `tickets.Shuffled` does.",
    ),
    (
        lambda: run_with(arms=["small-dense"], task=make_task(small=lambda most: build())),
        "`small` must return a network with at most 32 prunable weights, got one with 64.\n"
        "hint: Round its widths down.",
    ),
]


@pytest.mark.parametrize("number", range(len(COMPLAINTS)))
def test_complaints(number):
    work, message = COMPLAINTS[number]
    with pytest.raises(InvalidParameterError) as caught:
        work()
    assert str(caught.value) == message


def test_order_that_changes_is_refused():
    x, y = data()
    calls = itertools.count()

    def other_each_time(generator):
        start = next(calls)
        yield x[start : start + 10], y[start : start + 10]

    with pytest.raises(IncompatibleError) as caught:
        run_with(task=make_task(loader=other_each_time))
    assert str(caught.value) == (
        "`loader` gave other batches when it was gone through again with seed 0.\n"
        "hint: Let its order depend on torch's generator or its own alone, as "
        "`tickets.Shuffled` does."
    )
    own = torch.Generator()

    def other_start():
        model = build()
        nn.init.normal_(model[0].weight, generator=own)
        return model

    with pytest.raises(IncompatibleError) as caught:
        run_with(task=make_task(build=other_start))
    assert str(caught.value) == (
        "`build` gave another start when it was called again with seed 0.\n"
        "hint: Draw every random number in it from torch's own generator."
    )


def test_diverging_loss_is_said():
    task = make_task(criterion=lambda out, y: nn.functional.cross_entropy(out, y) * math.nan)
    with pytest.raises(NonFiniteError) as caught:
        run_with(task=task)
    assert str(caught.value) == (
        "The training loss is nan at step 5.\n"
        "hint: Lower the learning rate of `optimizer`, or look for NaN in the data."
    )


def test_default_arms_leave_out_the_dear_and_the_impossible():
    assert set(tickets.ARMS) - set(DEFAULT_ARMS) == {"iht-long", "small-dense"}
