"""Dictionaries as linear maps, against matrices written down by hand."""

import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import toeplitz

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sensing import recover
from ellzero.sensing.maps import FILTERS, convolution, cosines, rows, side_by_side, wavelets


def cosine_matrix(n):
    """Column j is cos(pi j (2 i + 1) / (2 n)), of length one."""
    i, j = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * j * (2 * i + 1) / (2 * n)) * np.sqrt(2 / n)
    matrix[:, 0] /= np.sqrt(2)
    return matrix


def haar_matrix(n):
    """Columns: the constant, then differences from the coarsest to the finest."""
    columns = [np.full(n, n**-0.5)]
    length = n
    while length > 1:
        for start in range(0, n, length):
            atom = np.zeros(n)
            atom[start : start + length // 2] = 1
            atom[start + length // 2 : start + length] = -1
            columns.append(atom / length**0.5)
        length //= 2
    return np.stack(columns, axis=1)


def shifts(kernel, n):
    column = np.zeros(n)
    column[: min(len(kernel), n)] = kernel[:n]
    return toeplitz(column, np.zeros(n))


KERNEL = np.array([1.0, 0.7, -0.4, 0.1])
CASES = [
    ("cosines", cosines(12), cosine_matrix(12)),
    ("one cosine", cosines(1), np.ones((1, 1))),
    ("haar", wavelets(16), haar_matrix(16)),
    ("convolution", convolution(KERNEL, 9), shifts(KERNEL, 9)),
    ("long kernel", convolution(KERNEL, 3), shifts(KERNEL, 3)),
    ("rows", rows(cosines(12), [7, 2, 3]), cosine_matrix(12)[[7, 2, 3]]),
    (
        "side by side",
        side_by_side([cosines(8), haar_matrix(8), convolution(KERNEL, 8)]),
        np.hstack([cosine_matrix(8), haar_matrix(8), shifts(KERNEL, 8)]),
    ),
]


@pytest.mark.parametrize(("operator", "matrix"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_products_are_those_of_the_matrix(operator, matrix):
    rng = np.random.default_rng(0)
    assert operator.shape == matrix.shape
    x, y = rng.standard_normal((matrix.shape[1], 3)), rng.standard_normal((matrix.shape[0], 3))
    assert operator @ x == pytest.approx(matrix @ x, abs=1e-12)
    assert operator @ x[:, 0] == pytest.approx(matrix @ x[:, 0], abs=1e-12)
    assert operator.rmatmat(y) == pytest.approx(matrix.T @ y, abs=1e-12)
    assert operator.rmatvec(y[:, 1]) == pytest.approx(matrix.T @ y[:, 1], abs=1e-12)


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize(("n", "levels"), [(32, None), (24, 2), (4, 2), (2, 1), (5, 0)])
def test_wavelets_are_orthogonal(name, n, levels):
    matrix = wavelets(n, name, levels) @ np.eye(n)
    assert matrix.T @ matrix == pytest.approx(np.eye(n), abs=1e-12)


def test_two_vanishing_moments_see_no_straight_line():
    line = np.arange(32.0)
    fine = wavelets(32, "db2", 1).rmatvec(line)[16:]
    # Only the window that wraps around sees the jump from the end to the beginning.
    assert np.abs(fine[:-1]).max() < 1e-12
    assert abs(fine[-1]) > 1
    assert np.abs(wavelets(32, "haar", 1).rmatvec(line)[16:]).min() > 0.5


def test_other_wavelets_come_from_pywavelets(monkeypatch):
    if importlib.util.find_spec("pywt") is None:
        with pytest.raises(IncompatibleError) as error:
            wavelets(8, "sym4")
        assert str(error.value) == (
            "The wavelet 'sym4' needs the package PyWavelets, which is not installed."
            "\nhint: Install it with `pip install PyWavelets`, or use haar or db2."
        )

        def wavelet(name):
            if name == "no":
                raise ValueError(name)
            return SimpleNamespace(orthogonal=name != "bior2.2", rec_lo=FILTERS["db2"].tolist())

        monkeypatch.setitem(sys.modules, "pywt", SimpleNamespace(Wavelet=wavelet))
    matrix = wavelets(16, "sym4") @ np.eye(16)
    assert matrix.T @ matrix == pytest.approx(np.eye(16), abs=1e-10)
    with pytest.raises(InvalidParameterError) as error:
        wavelets(8, "bior2.2")
    assert error.value.message == "`name` must be an orthogonal wavelet, got 'bior2.2'."
    with pytest.raises(InvalidParameterError) as error:
        wavelets(8, "no")
    assert error.value.message == "Unknown wavelet 'no'."


def test_recovery_from_measured_rows_and_from_two_bases():
    rng = np.random.default_rng(1)
    n = 256
    measured = rows(cosines(n), np.sort(rng.choice(n, 100, replace=False)))
    x = np.zeros(n)
    x[rng.choice(n, 12, replace=False)] = rng.standard_normal(12) + 2
    assert recover(measured @ x, measured, 12).params["coef"].numpy() == pytest.approx(x, abs=1e-9)
    both = side_by_side([cosines(n), np.eye(n)])
    x = np.zeros(2 * n)
    x[[3, 40, n + 7, n + 99]] = 2.0, -1.0, 3.0, 1.5
    assert recover(both @ x, both, 4).params["coef"].numpy() == pytest.approx(x, abs=1e-9)
    blur = convolution(np.exp(-np.arange(20) / 5.0), n)
    x = np.zeros(n)
    x[[20, 90, 200]] = 1.0, -2.0, 0.5
    assert recover(blur @ x, blur, 3).params["coef"].numpy() == pytest.approx(x, abs=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosines(0), "`n` must be an integer of at least 1, got 0."),
        (
            lambda: wavelets(12, levels=3),
            "`n` must be a multiple of 2^3 for 3 levels, got 12.",
        ),
        (lambda: convolution([], 4), "`kernel` must be a row of finite numbers, got shape (0,)."),
        (
            lambda: convolution([np.nan], 4),
            "`kernel` must be a row of finite numbers, got shape (1,).",
        ),
        (lambda: rows(cosines(4), [4]), "`positions` must be rows from 0 to 3, one at least."),
        (lambda: rows(cosines(4), [1, 1]), "`positions` must be a list of different integers."),
        (
            lambda: side_by_side([cosines(4), cosines(5)]),
            "`dictionaries` must have one number of samples, got [4, 5].",
        ),
        (
            lambda: side_by_side([]),
            "`dictionaries` must have one number of samples, got [].",
        ),
    ],
)
def test_messages(call, message):
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert error.value.message == message
