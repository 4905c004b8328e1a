import numpy as np
import pytest

from ellzero.kernels import threshold as kernels

TYPES = [np.int16, np.int32, np.int64]
FLOATS = {np.int16: np.float16, np.int32: np.float32, np.int64: np.float64}


def sample(kind, n=2 * kernels.BLOCK + 37, seed=0):
    generator = np.random.default_rng(seed)
    x = (generator.standard_normal(n) * 4).round() / 4
    x[generator.random(n) < 0.1] = -0.0
    x[3], x[5] = np.inf, -np.inf
    return x.astype(FLOATS[kind])


def key(number, kind):
    """Return the key of one nonnegative number."""
    return FLOATS[kind](number).view(kind)


def both(kernel, *arguments):
    """Run a kernel compiled and interpreted on copies; return result and arguments of each."""
    out = []
    for function in (kernel, kernel.py_func):
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
        out.append((function(*copies), copies))
    return out


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("capacity", [1000, 3])
def test_scan_counts_marks_and_gathers(kind, signed, capacity):
    x = sample(kind)
    shown = x if signed else np.abs(x)
    lo, hi = key(0.5, kind), key(1.25, kind)
    low, sign = kind(np.iinfo(kind).max), kind(-signed)
    above = np.zeros(x.size, np.bool_)
    keys, places = np.zeros(capacity, kind), np.zeros(capacity, np.int64)
    inside = np.flatnonzero((shown >= 0.5) & (shown <= 1.25))
    for result, arguments in both(
        kernels.scan,
        x.view(kind),
        low,
        sign,
        key(np.inf, kind),
        lo,
        hi,
        above,
        True,
        100,
        keys,
        places,
        1,
    ):
        n_from, n_above, filled, wrong = result
        assert n_from == np.count_nonzero(shown >= 0.5)
        assert n_above == np.count_nonzero(shown > 1.25)
        assert not wrong
        np.testing.assert_array_equal(arguments[6], shown > 1.25)
        if capacity == 3:
            assert filled == -1
            continue
        assert filled == 1 + inside.size
        np.testing.assert_array_equal(arguments[10][1:filled], 100 + inside)
        np.testing.assert_array_equal(arguments[9][1:filled].view(FLOATS[kind]), shown[inside])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("signed", [False, True])
def test_histogram_digits_rebuild_the_keys(kind, signed):
    x = sample(kind)
    low, sign = kind(np.iinfo(kind).max), kind(-signed)
    wide = x.astype(np.float64) if signed else np.abs(x.astype(np.float64))
    bare = np.abs(x).view(kind).astype(np.int64)
    expected = np.where(wide < 0, -bare, bare)
    shift = np.iinfo(kind).bits - 16
    prefix = 0
    while shift >= 0:
        digits = (expected >> shift) + 32768
        if shift + 16 < np.iinfo(kind).bits:
            digits = ((expected >> shift) & 65535)[expected >> (shift + 16) == prefix]
        counts = np.zeros(65536, np.int64)
        for _, arguments in both(
            kernels.histogram, x.view(kind), low, sign, shift, prefix, counts
        ):
            np.testing.assert_array_equal(
                arguments[5], np.bincount(digits.astype(np.int64), minlength=65536)
            )
        prefix = int(expected[0] >> shift)
        shift -= 16


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("with_incumbents", [False, True])
def test_ties_are_counted_and_filled_in_order(kind, with_incumbents):
    x = sample(kind)
    held = np.random.default_rng(1).random(x.size) < 0.4
    given = held if with_incumbents else np.empty(0, np.bool_)
    held = held & with_incumbents
    low, sign, target = kind(np.iinfo(kind).max), kind(0), key(0.5, kind)
    tie = np.abs(x) == 0.5
    for (n_held, n_others), _ in both(kernels.count_ties, x.view(kind), low, sign, target, given):
        assert n_held == np.count_nonzero(tie & held)
        assert n_others == np.count_nonzero(tie & ~held)
    expected = np.abs(x) > 0.5
    expected[np.flatnonzero(tie & held)[:2]] = True
    expected[np.flatnonzero(tie & ~held)[:3]] = True
    out = np.zeros(x.size, np.bool_)
    for _, arguments in both(kernels.fill, x.view(kind), low, sign, target, given, 2, 3, out):
        np.testing.assert_array_equal(arguments[7], expected)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("with_incumbents", [False, True])
def test_rows_agree_with_a_full_sort(kind, signed, with_incumbents):
    rows = np.stack([sample(kind, 40, seed) for seed in range(4)])
    rows[3] = 0.25
    held = np.random.default_rng(1).random(rows.shape) < 0.4
    given = held if with_incumbents else np.empty((0, 0), np.bool_)
    low, sign = kind(np.iinfo(kind).max), kind(-signed)
    shown = (rows if signed else np.abs(rows)).astype(np.float64)
    for count in (1, 7, 39, 40):
        expected = np.zeros(rows.shape, np.bool_)
        for i, values in enumerate(shown):
            order = np.lexsort((np.arange(40), ~(held[i] & with_incumbents), -values))
            expected[i, order[:count]] = True
        out, targets = np.zeros(rows.shape, np.bool_), np.zeros(4, kind)
        for worst, arguments in both(
            kernels.select_rows, rows.view(kind), low, sign, count, given, out, targets
        ):
            assert worst == key(np.inf, kind)
            np.testing.assert_array_equal(arguments[5], expected)
            smallest = np.where(expected, shown, np.inf).min(1)
            bare = np.abs(smallest).astype(FLOATS[kind]).view(kind)
            np.testing.assert_array_equal(arguments[6], np.where(smallest < 0, -bare, bare))


@pytest.mark.parametrize("place", [70, 199])
def test_scan_tells_of_nan(place):
    x = np.ones(200, np.float32)
    low, one = np.int32(2**31 - 1), key(1.0, np.int32)
    infinity = key(np.inf, np.int32)
    empty = np.empty(0, np.bool_)
    for value, expected in ((-np.nan, True), (-np.inf, False)):
        x[place] = value
        buffers = np.empty(300, np.int32), np.empty(300, np.int64)
        arguments = (infinity, one, one, empty, False, 0, *buffers, 0)
        for result, _ in both(kernels.scan, x.view(np.int32), low, np.int32(-1), *arguments):
            assert bool(result[3]) is expected


@pytest.mark.parametrize("stretch", [1.0, 3.7])
def test_one_entry_of_every_stretch_is_drawn(stretch):
    x = np.arange(1, 1001, dtype=np.float32)
    low, sign = np.int32(2**31 - 1), np.int32(0)
    parts = [x[:10], x[10:11], x[11:]]
    for run in (kernels.sample, kernels.sample.py_func):
        out = np.zeros(1010, np.int32)
        filled = 0
        for part, start in zip(parts, (0, 10, 11), strict=True):
            filled += run(part.view(np.int32), low, sign, start, stretch, out[filled:])
        drawn = out[:filled].view(np.float32).astype(np.int64) - 1
        # Entry i of a stretch lies within the next two.
        assert abs(filled - 1000 / stretch) <= 1
        wanted = np.arange(filled)
        assert (np.abs(drawn - wanted * stretch) <= stretch + 1).all()
