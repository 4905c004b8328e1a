"""Memory that large data may take: a child with a ceiling on its address space must get by."""

import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

MB = 1 << 20


def _within(megabytes, action):
    """Run an action in a child that may grow by so much; return its peak growth in MB."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + megabytes * MB
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            action()
            code = 0
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}"[:2000].encode())
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="address spaces as Linux has them")


def test_the_ceiling_is_felt():
    with pytest.raises(AssertionError, match="Unable to allocate"):
        _within(50, lambda: np.empty(2048 * MB // 8))


def _streamed(folder, n, p):
    """Write a table of n x p floats to disk, a piece at a time."""
    path = folder / "X.npy"
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, p))
    generator = np.random.default_rng(0)
    y = np.empty(n)
    for start in range(0, n, 10_000):
        rows = generator.standard_normal((min(10_000, n - start), p), dtype=np.float32)
        X[start : start + len(rows)] = rows
        y[start : start + len(rows)] = rows[:, 0] - 2 * rows[:, 1]
    X.flush()
    return path, y


def _moments(n, p, pieces, folder):
    from ellzero.subset.streaming import Moments

    path, y = _streamed(folder, n, p)

    def run():
        X = np.load(path, mmap_mode="r")
        found = Moments(p, 1)
        for start in range(0, n, pieces):
            found.add(X[start : start + pieces], y[start : start + pieces, None])
        gram = found.gram()
        assert gram is not None
        assert found.weight == n

    # The mapped file counts as address space, though not as memory; beside it p x p and pieces.
    table = 4 * n * p // MB
    work = 8 * (p + 1) ** 2 // MB + 8 * 2048 * (p + 1) // MB
    _within(table + 4 * work + 60, run)
    return table, work


def test_streams_of_rows_take_squares_of_features_only(tmp_path):
    table, _ = _moments(60_000, 200, 10_000, tmp_path)
    assert table > 40


@pytest.mark.slow
def test_long_streams_of_rows_take_squares_of_features_only(tmp_path):
    _moments(1_500_000, 300, 50_000, tmp_path)


@pytest.mark.parametrize(
    ("p", "megabytes"), [(50_000, 800), pytest.param(1_000_000, 1500, marks=pytest.mark.slow)]
)
def test_wide_sparse_tables_take_their_nonzeros(p, megabytes):
    import scipy.sparse

    from ellzero import L0Regressor

    X = scipy.sparse.random(300, p, density=20 / p, random_state=0, format="csc")
    hot = scipy.sparse.random(300, 3, density=0.5, random_state=1, format="csc")
    X = scipy.sparse.hstack([hot, X], format="csc")
    y = np.asarray(hot @ [3.0, -2.0, 1.0])
    L0Regressor(2).fit(hot, y)  # everything is imported and compiled before the ceiling

    def run():
        model = L0Regressor([1, 2, 3], certify=False).fit(X, y)
        assert set(np.flatnonzero(model.coef_)) <= {0, 1, 2}

    _within(megabytes, run)


@pytest.mark.parametrize(
    ("n", "megabytes"), [(50_000, 150), pytest.param(1_000_000, 1500, marks=pytest.mark.slow)]
)
def test_long_signals_take_a_few_hundred_bytes_a_sample(n, megabytes):
    from ellzero import SparseSmooth

    y = np.zeros(n)
    y[n // 3 : n // 3 + 500] = 2.0
    y += 0.3 * np.random.default_rng(0).standard_normal(n)
    SparseSmooth(1.0, penalty=1.0).fit(y[:1000])
    _within(megabytes, lambda: SparseSmooth(1.0, penalty=1.0).fit(y))
