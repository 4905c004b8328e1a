import numpy as np
import pytest
import torch

from ellzero.kernels import thresholded as kernels
from ellzero.tensors import thresholded
from ellzero.tensors.thresholded import Table

SHAPES = ((40, 30), (7,), (50, 20))


def make(seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    latents = [torch.randn(shape, generator=generator) for shape in SHAPES]
    if ties:
        latents = [(t * 2).round() / 2 for t in latents]
    return latents, [torch.zeros(shape) for shape in SHAPES]


def compile_kernels():
    """Compile before a test puts something else in the place of what a kernel calls."""
    latents, shown = make()
    Table(latents, shown, 3.0).choose(slice(0, 3), 9, [0] * 3, [(0.0, 9.0)] * 3)


def best(latents, count, held):
    """Return masks of the `count` largest magnitudes, incumbents first, by a full sort."""
    sizes = torch.cat([t.abs().reshape(-1) for t in latents]).double().numpy()
    incumbent = torch.cat([m.reshape(-1) for m in held]).numpy()
    order = np.lexsort((np.arange(sizes.size), ~incumbent, -sizes))
    mask = np.zeros(sizes.size, np.bool_)
    mask[order[:count]] = True
    parts = np.split(mask, np.cumsum([t.numel() for t in latents])[:-1])
    return [torch.from_numpy(m).reshape(t.shape) for m, t in zip(parts, latents, strict=True)]


def best_above_floor(latents, count, held, least):
    """Return masks and thresholds where no tensor has less than it has to, by full sorts."""
    poor = {}
    while True:
        rich = [i for i in range(len(latents)) if i not in poor]
        part = best(
            [latents[i] for i in rich], count - sum(poor.values()), [held[i] for i in rich]
        )
        level = min(
            float(latents[i][m].abs().min()) for i, m in zip(rich, part, strict=True) if m.any()
        )
        masks, levels = dict(zip(rich, part, strict=True)), dict.fromkeys(rich, level)
        for i, few in poor.items():
            masks[i] = best([latents[i]], few, [held[i]])[0]
            levels[i] = float(latents[i][masks[i]].abs().min())
        below = {i: least[i] for i in rich if int(masks[i].sum()) < least[i]}
        if not below:
            return [[d[i] for i in range(len(latents))] for d in (masks, levels)] + [set(poor)]
        poor |= below


def check(latents, shown, masks, chosen, levels=None):
    if levels is None:
        kept = torch.cat([t[m].abs() for t, m in zip(latents, masks, strict=True)])
        levels = [float(kept.min())] * len(latents)
    assert chosen.levels == levels
    for latent, out, mask, support, level in zip(
        latents, shown, masks, chosen.supports, levels, strict=True
    ):
        is_mask = support.dtype == torch.bool
        assert torch.equal(support if is_mask else thresholded.mark(support, latent), mask)
        expected = torch.empty_like(out)
        thresholded.show(latent, mask, None, level, 3.0, expected)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("near", [None, (0.0, 0.1), (1.2, 1.6), (7.0, 8.0), (1.0, 1.0)])
def test_a_table_chooses_what_a_sort_does(ties, near):
    latents, shown = make(ties=ties)
    table = Table(latents, shown, 3.0)
    generator = torch.Generator().manual_seed(1)
    held = [torch.rand(shape, generator=generator) < 0.3 for shape in SHAPES]
    for row, mask, out in zip(table.rows, held, shown, strict=True):
        row.place(None, mask, 0.5)
        out.copy_(mask)
    # Every choice has the support of the one before as incumbents.
    for count in (700, 400, 399, 900, 3, 2100, 1, 1800, 2206, 1799):
        if ties:
            latents[0].copy_(make(count, ties)[0][0])
        chosen = table.choose(slice(0, 3), count, [0, 0, 0], [near] * 3)
        assert chosen is not None
        held = best(latents, count, held)
        check(latents, shown, held, chosen)
        table.show()
        check(latents, shown, held, chosen)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("guess", [(), (1,), (0, 1), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("near", [None, (0.5, 3.0)])
def test_floors_are_kept_whatever_the_guess(ties, guess, near):
    generator = torch.Generator().manual_seed(2)
    for seed in range(40):
        latents, shown = make(seed, ties)
        # The first and the second tensor are weak to a varying degree.
        latents[0] *= 0.5 + 0.5 * (seed % 3)
        latents[1] *= 0.1 + 0.1 * (seed % 7)
        table = Table(latents, shown, 3.0)
        held = [torch.rand(shape, generator=generator) < 0.3 for shape in SHAPES]
        for row, mask, out in zip(table.rows, held, shown, strict=True):
            row.place(None, mask, 0.5)
            out.copy_(mask)
        for count, least in ((500, [120, 2, 80]), (60, [20, 1, 10]), (700, [300, 7, 300])):
            masks, levels, poor = best_above_floor(latents, count, held, least)
            chosen = table.choose(slice(0, 3), count, least, [near] * 3, frozenset(guess))
            assert chosen is not None
            held = masks
            check(latents, shown, masks, chosen, levels)
            assert chosen.poor == poor


def test_a_right_guess_of_floors_takes_one_pass_each(monkeypatch):
    passes = []
    survey = kernels.survey

    def counted(table, *arguments):
        passes.append(len(table))
        return survey(table, *arguments)

    monkeypatch.setattr(kernels, "survey", counted)
    latents, shown = make()
    latents[0] *= 0.1
    table = Table(latents, shown, 3.0)
    for row in table.rows:
        row.place(None, torch.zeros(row.latent.shape, dtype=torch.bool), 0.5)
    least = [30, 1, 10]
    first = table.choose(slice(0, 3), 200, least)
    assert (first.poor, passes) == ({0}, [3, 2, 1])
    near = [(0.9 * level, 1.1 * level) for level in first.levels]
    again = table.choose(slice(0, 3), 200, least, near, first.poor)
    assert (again.poor, passes) == ({0}, [3, 2, 1, 2, 1])


def test_budgets_of_their_own_share_a_table():
    latents, shown = make()
    table = Table(latents, shown, None)
    empty = [torch.zeros(shape, dtype=torch.bool) for shape in SHAPES]
    for row, mask in zip(table.rows, empty, strict=True):
        row.place(None, mask, 0.0)
    for part, count in ((slice(0, 1), 99), (slice(1, 3), 50)):
        chosen = table.choose(part, count, [0] * (part.stop - part.start))
        lists, level = chosen.supports, chosen.levels[0]
        masks = best(latents[part], count, empty[part])
        assert sum(i.numel() for i in lists) == count
        for latent, out, mask in zip(latents[part], shown[part], masks, strict=True):
            assert torch.equal(out, torch.where(mask, latent, 0.0))
            assert bool((latent[mask].abs() >= level).all())


@pytest.mark.parametrize("reason", ["floor", "nan", "equal"])
def test_nothing_changes_when_a_table_cannot_choose(reason):
    latents, shown = make()
    table = Table(latents, shown, 3.0)
    for row in table.rows:
        row.place(None, torch.zeros(row.latent.shape, dtype=torch.bool), 0.5)
    before = [i.clone() for i in table.choose(slice(0, 3), 300, [0, 0, 0]).supports]
    values = [t.clone() for t in shown]
    least = [0, 0, 0]
    if reason == "floor":
        least = [0, 7, 193]  # nothing is left for the first
    elif reason == "nan":
        latents[2][3, 4] = float("nan")
    else:
        # More equal entries than there is room to remember.
        latents, shown = [torch.ones(700, 100)], [torch.zeros(700, 100)]
        table = Table(latents, shown, 3.0)
        table.rows[0].place(None, torch.zeros(700, 100, dtype=torch.bool), 0.5)
        assert table.choose(slice(0, 1), 300, [0]) is None
        assert not shown[0].any()
        return
    assert table.choose(slice(0, 3), 200, least) is None
    assert all(torch.equal(a, b) for a, b in zip(shown, values, strict=True))
    assert all(torch.equal(r.index, i) for r, i in zip(table.rows, before, strict=True))


def test_a_good_guess_takes_one_pass(monkeypatch):
    compile_kernels()
    calls = []

    def count(name):
        run = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *a: calls.append(name) or run(*a))

    for name in ("choose_near", "survey", "renew_all"):
        count(name)
    latents, shown = make()
    table = Table(latents, shown, 3.0)
    for row in table.rows:
        row.place(None, torch.zeros(row.latent.shape, dtype=torch.bool), 0.5)

    def choose(least, *near):
        calls.clear()
        table.choose(slice(0, 3), 300, least, near or None)
        return calls

    assert choose([0, 0, 0]) == ["survey", "renew_all"]
    level = float(table.rows[0]._level[0])
    good, bad = (0.99 * level, 1.01 * level), (1.01 * level, 1.02 * level)
    # One kernel has a pass and writes what it finds.
    assert choose([0, 0, 0], *[good] * 3) == ["choose_near"]
    assert choose([0, 0, 0], *[bad] * 3) == ["choose_near", "survey", "renew_all"]
    # The guess is used again where a tensor needs more than its share.
    few = min(row.index.numel() for row in table.rows)
    least = [few + 1 if row.index.numel() == few else 0 for row in table.rows]
    assert choose(least, *[good] * 3)[:2] == ["choose_near", "survey"]


@pytest.mark.parametrize("power", [3.0, None])
def test_one_kernel_chooses_and_shows_what_the_single_ones_do(power):
    latents, shown = make()
    latents[2].view(-1)[:40] = 1.25  # equal magnitudes at the threshold, incumbents among them
    sizes = torch.cat([t.abs().view(-1) for t in latents])
    count = int((sizes > 1.25).sum()) + 17
    held = [torch.zeros(t.shape, dtype=torch.bool) for t in latents]
    held[2].view(-1)[20:30] = True
    masks = best(latents, count, held)
    table = Table(latents, shown, power)
    for row, mask in zip(table.rows, held, strict=True):
        row.place(mask.view(-1).nonzero().view(-1).int(), None, 0.5)
        row.shown.masked_fill_(mask, 9.0)
    least = [0] * len(latents)
    chosen = table.choose(slice(0, len(latents)), count, least, [(1.2, 1.3)] * len(latents))
    assert chosen.levels == [1.25] * len(latents)
    for i, mask in enumerate(masks):
        assert torch.equal(thresholded.mark(chosen.supports[i], latents[i]), mask)
        expected = torch.empty_like(latents[i])
        thresholded.show(latents[i], mask, None, 1.25, power, expected)
        assert torch.equal(shown[i], expected)
