import numpy as np
import pytest

from ellzero.kernels import sparse_product as kernels

SHAPES = [(8, 5), (1, 1), (13, 40), (150, 33), (300, 24), (0, 4), (16, 0)]
DTYPES = [np.float32, np.float64]


def make(shape, density=0.3, dtype=np.float32, seed=0, blocks=False):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal(shape).astype(dtype)
    keep = generator.random(shape) < density
    if blocks:
        keep = np.repeat(keep[::8], 8, axis=0)[: shape[0]]
    weight[~keep] = 0
    return weight


def pack(weight, blocks):
    """Return the arguments of a kernel, without those of the batch, and the number of windows."""
    packed = list((kernels.pack_blocks if blocks else kernels.pack_sliced)(weight))
    n_slices = packed[2].size - 1
    bias = np.zeros(8 * n_slices, weight.dtype)
    bias[: weight.shape[0]] = np.random.default_rng(1).standard_normal(weight.shape[0])
    return [*packed, bias], -(-n_slices // 16)


def tiles_of(x, width):
    n_tiles = -(-x.shape[0] // width)
    tiles = np.full((n_tiles, x.shape[1], width), np.nan, x.dtype)
    kernels.to_tiles(x, tiles)
    return tiles


def check(out, weight, bias, x):
    """Compare with the product in float64, within the documented bound."""
    wide = [a.astype(np.float64) for a in (weight, bias[: weight.shape[0]], x)]
    exact = wide[2] @ wide[0].T + wide[1]
    size = np.abs(wide[2]) @ np.abs(wide[0]).T + np.abs(wide[1])
    n = np.count_nonzero(weight, axis=1)
    bound = (n + 1) * np.finfo(weight.dtype).eps * size
    assert np.all(np.abs(out - exact) <= bound + 1e-30)


def test_sliced_layout_holds_every_entry_once():
    weight = make((150, 70), 0.1)
    values, cols, starts, order = kernels.pack_sliced(weight)
    rebuilt = np.zeros((152, 70), np.float32)
    for s in range(starts.size - 1):
        for k in range(starts[s], starts[s + 1]):
            for lane in range(8):
                rebuilt[order[8 * s + lane], cols[k, lane]] += values[k, lane]
    np.testing.assert_array_equal(rebuilt[:150], weight)
    assert np.count_nonzero(values) == np.count_nonzero(weight)
    assert sorted(order.tolist()) == list(range(152))
    # The rows of a window stay in it.
    np.testing.assert_array_equal(order // 128, np.arange(152) // 128)


def test_block_layout_holds_every_entry_once():
    weight = make((21, 30), 0.2, blocks=True)
    values, cols, starts = kernels.pack_blocks(weight)
    rebuilt = np.zeros((24, 30), np.float32)
    for s in range(starts.size - 1):
        n = starts[s + 1] - starts[s]
        block = values[8 * starts[s] : 8 * starts[s + 1]].reshape(8, n)
        for k in range(n):
            rebuilt[8 * s : 8 * s + 8, cols[starts[s] + k]] += block[:, k]
    np.testing.assert_array_equal(rebuilt[:21], weight)
    assert cols.size == np.count_nonzero(weight[::8])


@pytest.mark.parametrize(("n", "kind"), [(1, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_columns_are_as_narrow_as_they_can_be(n, kind):
    weight = np.zeros((1, n), np.float32)
    weight[0, -1] = 2.0
    values, cols, _, _ = kernels.pack_sliced(weight)
    assert cols.dtype == kind
    assert cols[values == 2.0] == n - 1
    _, cols, _ = kernels.pack_blocks(weight)
    assert cols.dtype == kind
    assert cols.tolist() == [n - 1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [False, True])
def test_products_of_single_samples(shape, dtype, blocks):
    weight = make(shape, dtype=dtype, blocks=blocks)
    arguments, n_windows = pack(weight, blocks)
    x = np.random.default_rng(2).standard_normal((3, shape[1])).astype(dtype)
    out = np.full((3, shape[0]), np.nan, dtype)
    kernel = kernels.block_vectors if blocks else kernels.sliced_vectors
    kernel(*arguments, x, out, 0, n_windows)
    check(out, weight, arguments[-1], x)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("blocks", "width"), [(True, 8), (False, 8), (False, 16), (False, 32)])
@pytest.mark.parametrize("batch", [1, 8, 35])
def test_products_of_tiles(shape, dtype, blocks, width, batch):
    weight = make(shape, dtype=dtype, blocks=blocks)
    arguments, n_windows = pack(weight, blocks)
    x = np.random.default_rng(2).standard_normal((batch, shape[1])).astype(dtype)
    out = np.full((batch, shape[0]), np.nan, dtype)
    kernel = kernels.block_tiles if blocks else kernels.sliced_tiles
    kernel(*arguments, tiles_of(x, width), out, 0, n_windows)
    check(out, weight, arguments[-1], x)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
def test_no_few_and_all_nonzeros(blocks, density):
    weight = make((140, 50), density, blocks=blocks)
    arguments, n_windows = pack(weight, blocks)
    x = np.random.default_rng(2).standard_normal((9, 50)).astype(np.float32)
    out = np.full((2, 9, 140), np.nan, np.float32)
    vectors = kernels.block_vectors if blocks else kernels.sliced_vectors
    tiled = kernels.block_tiles if blocks else kernels.sliced_tiles
    vectors(*arguments, x, out[0], 0, n_windows)
    tiled(*arguments, tiles_of(x, 8), out[1], 0, n_windows)
    check(out[0], weight, arguments[-1], x)
    check(out[1], weight, arguments[-1], x)


@pytest.mark.parametrize("blocks", [False, True])
def test_windows_are_written_by_those_who_own_them(blocks):
    weight = make((300, 20), blocks=blocks)
    arguments, n_windows = pack(weight, blocks)
    assert n_windows == 3
    x = np.ones((8, 20), np.float32)
    for kernel, given in (
        (kernels.block_vectors if blocks else kernels.sliced_vectors, x),
        (kernels.block_tiles if blocks else kernels.sliced_tiles, tiles_of(x, 8)),
    ):
        out = np.full((8, 300), np.nan, np.float32)
        kernel(*arguments, given, out, 1, 2)
        assert not np.isnan(out[:, 128:256]).any()
        assert np.isnan(out[:, :128]).all()
        assert np.isnan(out[:, 256:]).all()
        kernel(*arguments, given, out, 0, 1)
        kernel(*arguments, given, out, 2, 3)
        check(out, weight, arguments[-1], x)


@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (19, 37), (32, 16)])
def test_tiles_are_the_transpose_filled_with_zeros(width, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    full = np.zeros((-(-shape[0] // width) * width, shape[1]), np.float32)
    full[: shape[0]] = x
    expected = full.reshape(-1, width, shape[1]).transpose(0, 2, 1)
    for function in (kernels.to_tiles, kernels.to_tiles.py_func):
        tiles = np.full(expected.shape, np.nan, np.float32)
        function(x, tiles)
        np.testing.assert_array_equal(tiles, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [False, True])
def test_interpreted_kernels_agree_with_compiled_ones(monkeypatch, dtype, blocks):
    weight = make((21, 12), 0.4, dtype, blocks=blocks)
    arguments, n_windows = pack(weight, blocks)
    x = np.random.default_rng(2).standard_normal((9, 12)).astype(dtype)
    widths = [8] if blocks else [8, 16, 32]
    for name, given in [("vectors", x), *(("tiles", tiles_of(x, w)) for w in widths)]:
        kernel = getattr(kernels, f"{'block' if blocks else 'sliced'}_{name}")
        compiled, plain = np.zeros((9, 21), dtype), np.zeros((9, 21), dtype)
        kernel(*arguments, given, compiled, 0, n_windows)
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "_from_tile", kernels._from_tile.py_func)
            kernel.py_func(*arguments, given, plain, 0, n_windows)
        check(plain, weight, arguments[-1], x)
        np.testing.assert_allclose(compiled, plain, rtol=0, atol=50 * np.finfo(dtype).eps)
