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


def best(latents, count, held):
    """Return masks of the `count` largest magnitudes, incumbents first, by a full sort."""
    sizes = torch.cat([t.abs().reshape(-1) for t in latents]).double().numpy()
    incumbent = torch.cat([m.reshape(-1) for m in held]).numpy()
    order = np.lexsort((np.arange(sizes.size), ~incumbent, -sizes))
    mask = np.zeros(sizes.size, np.bool_)
    mask[order[:count]] = True
    parts = np.split(mask, np.cumsum([t.numel() for t in latents])[:-1])
    return [torch.from_numpy(m).reshape(t.shape) for m, t in zip(parts, latents, strict=True)]


def check(latents, shown, masks, lists, level):
    kept = torch.cat([t[m].abs() for t, m in zip(latents, masks, strict=True)])
    assert level == float(kept.min())
    for latent, out, mask, index in zip(latents, shown, masks, lists, strict=True):
        assert torch.equal(thresholded.mark(index, latent), mask)
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
    for count in (700, 400, 399, 900, 3, 1):
        if ties:
            latents[0].copy_(make(count, ties)[0][0])
        chosen = table.choose(slice(0, 3), count, [0, 0, 0], near)
        assert chosen is not None
        held = best(latents, count, held)
        check(latents, shown, held, *chosen)
        table.show()
        check(latents, shown, held, *chosen)


def test_budgets_of_their_own_share_a_table():
    latents, shown = make()
    table = Table(latents, shown, None)
    empty = [torch.zeros(shape, dtype=torch.bool) for shape in SHAPES]
    for row, mask in zip(table.rows, empty, strict=True):
        row.place(None, mask, 0.0)
    for part, count in ((slice(0, 1), 99), (slice(1, 3), 50)):
        lists, level = table.choose(part, count, [0] * (part.stop - part.start))
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
    before = [i.clone() for i in table.choose(slice(0, 3), 300, [0, 0, 0])[0]]
    values = [t.clone() for t in shown]
    least = [0, 0, 0]
    if reason == "floor":
        least = [0, 7, 0]
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
    passes = []
    survey = kernels.survey

    def counted(*arguments):
        passes.append(1)
        return survey(*arguments)

    monkeypatch.setattr(kernels, "survey", counted)
    latents, shown = make()
    table = Table(latents, shown, 3.0)
    for row in table.rows:
        row.place(None, torch.zeros(row.latent.shape, dtype=torch.bool), 0.5)
    _, level = table.choose(slice(0, 3), 300, [0, 0, 0])
    assert len(passes) == 1
    table.choose(slice(0, 3), 300, [0, 0, 0], (0.99 * level, 1.01 * level))
    assert len(passes) == 2
    table.choose(slice(0, 3), 300, [0, 0, 0], (1.01 * level, 1.02 * level))
    assert len(passes) == 4
