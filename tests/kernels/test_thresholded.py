import itertools

import numpy as np
import pytest

from ellzero.kernels import thresholded as kernels

SIZES = (3, 64, 333, 0, 2 * kernels.SPAN + 77)


def tensors(seed=0):
    generator = np.random.default_rng(seed)
    out = [generator.standard_normal(n).astype(np.float32) for n in SIZES]
    out[2][:4] = 0.0, -0.0, np.inf, -np.inf
    return out


def table(latents, shown, lists=None, masks=None):
    rows = np.zeros((len(latents), 8), np.int64)
    for t, row in enumerate(rows):
        row[kernels.LATENT] = latents[t].ctypes.data
        row[kernels.SHOWN] = shown[t].ctypes.data
        row[kernels.SIZE] = latents[t].size
        row[kernels.COUNT] = -1
        if lists is not None:
            row[kernels.INDEX], row[kernels.COUNT] = lists[t].ctypes.data, lists[t].size
        if masks is not None:
            row[kernels.MASK] = masks[t].ctypes.data
    return rows


def both(kernel):
    """Return the compiled and the interpreted kernel; the last is for the small tensors only."""
    return (kernel, len(SIZES)), (kernel.py_func, len(SIZES) - 1)


def test_every_kernel_writes_the_same_bits():
    # Resuming depends on it: a support may be kept as a mask on one day, as a list on another.
    latents = tensors()
    masks = [np.abs(x) > 0.7 for x in latents]
    lists = [np.flatnonzero(m).astype(np.int32) for m in masks]
    level = np.float32(0.7)
    expected = [np.empty_like(x) for x in latents]
    for x, mask, out in zip(latents, masks, expected, strict=True):
        kernels.shrink(x, mask, level, out)
    levels = np.full(len(latents), level)
    for arguments in ({"lists": lists}, {"masks": masks}):
        out = [np.zeros_like(x) for x in latents]
        kernels.show_all(table(latents, out, **arguments), levels)
        for a, b in zip(out, expected, strict=True):
            np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))
    # Any stretch of a list, so that entries fall into whole blocks and into remainders alike.
    for a, b in ((0, 1), (5, 70), (1, 130), (63, 200)):
        out = np.zeros_like(latents[4])
        kernels.shrink_at(latents[4], lists[4][a:b], level, out)
        places = lists[4][a:b]
        np.testing.assert_array_equal(out[places], expected[4][places])


def test_new_supports_replace_old_ones():
    latents = tensors()
    old = [np.flatnonzero(np.abs(x) > 1.0).astype(np.int32) for x in latents]
    new = [np.flatnonzero(x > 0.3).astype(np.int32) for x in latents]
    levels = np.linspace(0.0, 0.3, len(latents)).astype(np.float32)
    rows = table(latents, latents, new)
    for whole in (False, True):
        for run, count in both(kernels.renew_all):
            out = [np.full_like(x, 7.0 if whole else 0.0) for x in latents]
            for places, values in zip(old, out, strict=True):
                values[places] = 7.0
            for t, row in enumerate(rows):
                row[kernels.SHOWN] = out[t].ctypes.data
                row[kernels.OLD] = old[t].ctypes.data
                row[kernels.OLD_COUNT] = -1 if whole else old[t].size
            with np.errstate(all="ignore"):
                run(rows[:count], levels)
            for t, x in enumerate(latents[:count]):
                size, tau = np.abs(x).astype(np.float64), np.float64(levels[t])
                with np.errstate(invalid="ignore", divide="ignore"):
                    share = np.cbrt(1 - np.fmin(tau / size, 1.0) ** 3).clip(2.0**-10)
                wide = np.where(x > 0.3, x * share, 0.0)
                np.testing.assert_allclose(out[t], wide, rtol=2e-4, atol=2e-4 * tau)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("room", [70000, 100])
def test_survey_lists_what_reaches_the_bracket(room, compiled):
    run, count = both(kernels.survey)[0 if compiled else 1]
    latents = tensors()[:count]
    lo, hi = (np.float32(v).view(np.int32) for v in (0.9, 1.0))
    sizes = [np.abs(x) for x in latents]
    reached = [np.flatnonzero(s >= np.float32(0.9)) for s in sizes]
    together = np.concatenate(sizes)[np.concatenate([s >= np.float32(0.9) for s in sizes])]
    inside = np.flatnonzero(together <= 1.0)
    rows = table(latents, latents)
    cuts, out = np.zeros(len(latents) + 1, np.int64), np.zeros(room, np.int32)
    keys, spots = np.zeros(9000, np.int32), np.zeros(9000, np.int64)
    n = run(rows, lo, hi, cuts, out, keys, spots)
    if room == 100:
        assert n == -1
        return
    assert n == inside.size
    np.testing.assert_array_equal(np.diff(cuts), [r.size for r in reached])
    np.testing.assert_array_equal(out[: cuts[-1]], np.concatenate(reached))
    np.testing.assert_array_equal(spots[:n], inside)
    np.testing.assert_array_equal(keys[:n].view(np.float32), together[inside])
    assert run(rows, lo, hi, cuts, out, keys[: n - 1], spots) == -1
    for t, place in ((0, 2), (2, 80)):
        latents = tensors()[:count]
        latents[t][place] = -np.nan
        assert run(table(latents, latents), lo, hi, cuts, out, keys, spots) == -1


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("wanted", [1, 2, 5, 9, 14, 18])
@pytest.mark.parametrize("lists", [True, False])
def test_settle_takes_the_largest_and_incumbents_among_equals(lists, wanted, compiled):
    run = kernels.settle if compiled else kernels.settle.py_func
    # Keys of three tensors of ten entries; the second has none inside the bracket.
    places = [np.arange(9), np.arange(0), np.array([0, 1, 3, 4, 5, 6, 7, 8, 9])]
    keys = np.array([7, 4, 9, 4, 4, 1, 4, 8, 2, 4, 4, 3, 4, 5, 4, 1, 0, 6], np.int32)
    held = [np.array([4, 6], np.int32), np.zeros(10, np.uint8), np.zeros(10, np.uint8)]
    held[2][[1, 5]] = 1
    rows = np.zeros((3, 8), np.int64)
    rows[:, kernels.SIZE] = 10
    rows[0, [kernels.INDEX, kernels.COUNT]] = held[0].ctypes.data, 2
    rows[1:, kernels.COUNT] = -1
    rows[2, kernels.MASK] = held[2].ctypes.data
    before = np.concatenate([p + 10 * t for t, p in enumerate(places)])
    if lists:
        cuts, out = np.array([0, 9, 9, 18]), np.concatenate(places).astype(np.int32)
        spots = np.arange(18)
    else:
        cuts, out, spots = np.array([0, 10, 20, 30]), np.empty(0, np.int32), before.copy()
    first = spots.copy()
    incumbent = np.isin(before, [4, 6, 21, 25])
    order = np.lexsort((before, ~incumbent, -keys))
    target, left, gone = run(rows, wanted, np.int32(0), np.int32(11), cuts, out, keys, spots)
    assert target == keys[order[wanted - 1]]
    assert left == (keys[order[wanted]] if wanted < 18 else -1)
    np.testing.assert_array_equal(spots[:gone], np.sort(first[order[wanted:]]))


@pytest.mark.parametrize("compiled", [True, False])
def test_tally_counts_what_reaches_the_bracket(compiled):
    run, count = both(kernels.tally)[0 if compiled else 1]
    latents = tensors()[:count]
    lo, hi = (np.float32(v).view(np.int32) for v in (0.9, 1.0))
    sizes = np.concatenate([np.abs(x) for x in latents])
    inside = np.flatnonzero((sizes >= np.float32(0.9)) & (sizes <= 1.0))
    counts = np.zeros(len(latents), np.int64)
    keys, spots = np.zeros(9000, np.int32), np.zeros(9000, np.int64)
    n = run(table(latents, latents), lo, hi, counts, keys, spots)
    assert n == inside.size
    assert counts.tolist() == [int((np.abs(x) >= np.float32(0.9)).sum()) for x in latents]
    np.testing.assert_array_equal(spots[:n], inside)
    np.testing.assert_array_equal(keys[:n].view(np.float32), sizes[inside])
    assert run(table(latents, latents), lo, hi, counts, keys[: n - 1], spots) == -1
    latents[2][80] = np.nan
    assert run(table(latents, latents), lo, hi, counts, keys, spots) == -1


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_masks_are_written_with_their_values(level):
    for run, count in both(kernels.renew_masks):
        latents = tensors()[:count]
        shown = [np.full_like(x, 7) for x in latents]
        masks = [np.full(x.size, 3, np.uint8) for x in latents]
        rows = table(latents, shown)
        rows[:, kernels.MASK] = [m.ctypes.data for m in masks]
        keep = [np.abs(x) >= np.float32(0.5) for x in latents]
        flat = np.concatenate(keep)
        left = np.flatnonzero(flat)[[0, 3, -1]]
        flat[left] = False
        levels = np.full(len(latents), level, np.float32)
        run(rows, levels, np.float32(0.5).view(np.int32), left)
        start = 0
        for latent, out, mask in zip(latents, shown, masks, strict=True):
            kept = flat[start : start + latent.size]
            start += latent.size
            np.testing.assert_array_equal(mask, kept)
            expected = np.empty_like(latent)
            kernels.shrink(latent, kept, np.float32(level), expected)
            np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_remove_closes_the_gaps():
    lists = [[3, 5, 9], [], [0, 4], [7]]
    for gone in ([], [0], [5], [1, 3], [0, 1, 2, 3, 4, 5]):
        kept = [
            [p for k, p in enumerate(part) if sum(map(len, lists[:t])) + k not in gone]
            for t, part in enumerate(lists)
        ]
        for run, _ in both(kernels.remove):
            out = np.array([p for part in lists for p in part], np.int32)
            cuts = np.array([0, 3, 3, 5, 6])
            run(out, np.array(gone, np.int64), cuts)
            assert [out[a:b].tolist() for a, b in itertools.pairwise(cuts)] == kept


def test_one_wrong_number_in_any_tensor_is_found():
    for wound in (np.nan, -np.inf):
        for t in range(-1, len(SIZES)):
            x = [np.nan_to_num(part) for part in tensors()]
            if t >= 0 and SIZES[t]:
                x[t][SIZES[t] // 2] = wound
            places = np.array([(part.ctypes.data, part.size) for part in x])
            expected = t < 0 or not SIZES[t]
            for run, count in both(kernels.are_finite):
                assert run(places[:count]) == (expected or t >= count)
