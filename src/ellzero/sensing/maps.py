"""Dictionaries as linear maps: cosines, wavelets, convolutions, rows of one, several together.

All are scipy's linear operators with products on several columns at once; `recover` takes them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy import signal as scipy_signal
from scipy.sparse import linalg as sparse_linalg

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.validation import check_integer

Floats = NDArray[np.float64]

# The annotations of scipy lack what is used here.
_sparse: Any = sparse_linalg
_signal: Any = scipy_signal

_ROOT = np.sqrt(3.0)
# Lowpass filters that need no package: Haar, and Daubechies with two vanishing moments.
FILTERS: dict[str, Floats] = {
    "haar": np.array([1.0, 1.0]) / np.sqrt(2.0),
    "db2": np.array([1 + _ROOT, 3 + _ROOT, 3 - _ROOT, 1 - _ROOT]) / (4 * np.sqrt(2.0)),
}


def _operator(
    shape: tuple[int, int], times: Callable[[Floats], Floats], adjoint: Callable[[Floats], Floats]
) -> Any:
    """Return an operator from products with columns, (n, m)."""

    def one(product: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        return lambda x: product(np.asarray(x, np.float64).reshape(-1, 1))[:, 0]

    return _sparse.LinearOperator(
        shape,
        matvec=one(times),
        rmatvec=one(adjoint),
        matmat=times,
        rmatmat=adjoint,
        dtype=np.float64,
    )


def cosines(n: int) -> Any:
    """Return the orthogonal dictionary of n cosines, the inverse of the cosine transform.

    Parameters
    ----------
    n : int
        Samples, and atoms.

    Returns
    -------
    LinearOperator of shape (n, n)
        Products cost n log n.

    Raises
    ------
    InvalidParameterError
        If `n` is not a positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.sensing.maps import cosines
    >>> (cosines(4) @ np.array([2.0, 0, 0, 0])).round(9).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    check_integer("n", n, 1)
    return _operator(
        (n, n),
        lambda x: fft.idct(x, norm="ortho", axis=0),
        lambda y: fft.dct(y, norm="ortho", axis=0),
    )


def wavelets(n: int, name: str = "haar", levels: int | None = None) -> Any:
    """Return the orthogonal dictionary of periodic wavelets.

    Parameters
    ----------
    n : int
        Samples, and atoms; a multiple of ``2 ** levels``.
    name : str, default="haar"
        "haar", "db2", or any orthogonal wavelet that PyWavelets knows, where it is installed.
    levels : int or None, default=None
        Halvings; None means as many as `n` allows.

    Returns
    -------
    LinearOperator of shape (n, n)
        Atoms from the coarsest to the finest. Products cost n times the length of the filter.

    Raises
    ------
    InvalidParameterError
        If `n` is no multiple of ``2 ** levels``, or the wavelet is unknown or not orthogonal.
    IncompatibleError
        If the wavelet needs PyWavelets, which is not installed.

    References
    ----------
    .. [1] S. Mallat, "A Wavelet Tour of Signal Processing", 3rd edition, 2009, section 7.3.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.sensing.maps import wavelets
    >>> (wavelets(4) @ np.array([0, 2.0, 0, 0])).round(9).tolist()
    [1.0, 1.0, -1.0, -1.0]
    """
    check_integer("n", n, 1)
    low = _lowpass(name)
    most = (n & -n).bit_length() - 1
    if levels is None:
        levels = most
    check_integer("levels", levels, 0)
    if levels > most:
        raise InvalidParameterError(
            f"`n` must be a multiple of 2^{levels} for {levels} levels, got {n}.",
            f"Pass `levels={most}` at most, or pad the signal.",
        )
    # Quadrature mirror: reversed, with alternating signs.
    high = low[::-1] * (-1.0) ** np.arange(low.size)

    def analyze(y: Floats) -> Floats:
        coarse, parts = np.asarray(y, np.float64), []
        for _ in range(levels):
            half = np.arange(0, coarse.shape[0], 2)
            size = coarse.shape[0]
            windows = [coarse[(half + k) % size] for k in range(low.size)]
            parts.append(sum(h * w for h, w in zip(high, windows, strict=True)))
            coarse = np.asarray(sum(h * w for h, w in zip(low, windows, strict=True)))
        return np.concatenate([coarse, *parts[::-1]])

    def synthesize(x: Floats) -> Floats:
        x = np.asarray(x, np.float64)
        coarse, at = x[: n >> levels], n >> levels
        for _ in range(levels):
            size = 2 * at
            fine, out = x[at:size], np.zeros((size, x.shape[1]))
            half = np.arange(0, size, 2)
            for k in range(low.size):
                # Places are distinct for each k, also where the filter wraps around.
                out[(half + k) % size] += low[k] * coarse + high[k] * fine
            coarse, at = out, size
        return coarse

    return _operator((n, n), synthesize, analyze)


def _lowpass(name: str) -> Floats:
    """Return the lowpass filter of an orthogonal wavelet."""
    if name in FILTERS:
        return FILTERS[name]
    try:
        pywt: Any = importlib.import_module("pywt")
    except ImportError as error:
        raise IncompatibleError(
            f"The wavelet {name!r} needs the package PyWavelets, which is not installed.",
            f"Install it with `pip install PyWavelets`, or use {' or '.join(FILTERS)}.",
        ) from error
    try:
        wavelet = pywt.Wavelet(name)
    except ValueError as error:
        raise InvalidParameterError(
            f"Unknown wavelet {name!r}.", "`pywt.wavelist(kind='discrete')` lists them."
        ) from error
    if not wavelet.orthogonal:
        raise InvalidParameterError(f"`name` must be an orthogonal wavelet, got {name!r}.")
    return np.asarray(wavelet.rec_lo, np.float64)


def convolution(kernel: Any, n: int) -> Any:
    """Return the dictionary of all shifts of a kernel, cut to the length of the signal.

    Parameters
    ----------
    kernel : array of shape (length,)
        Atom; its first entry is at the position of the coefficient.
    n : int
        Samples, and atoms.

    Returns
    -------
    LinearOperator of shape (n, n)
        ``(D x)[i] = sum_k kernel[k] x[i - k]``. Products cost n log n.

    Raises
    ------
    InvalidParameterError
        If the kernel has no entries, or one that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.sensing.maps import convolution
    >>> ((convolution([1.0, 0.5], 4) @ np.array([0, 2.0, 0, 0])).round(9) + 0.0).tolist()
    [0.0, 2.0, 1.0, 0.0]
    """
    check_integer("n", n, 1)
    atom = np.asarray(kernel, np.float64)
    if atom.ndim != 1 or atom.size == 0 or not np.isfinite(atom).all():
        raise InvalidParameterError(
            f"`kernel` must be a row of finite numbers, got shape {atom.shape}."
        )
    atom = atom[:n, None]
    return _operator(
        (n, n),
        lambda x: _signal.fftconvolve(x, atom, axes=0)[:n],
        lambda y: _signal.fftconvolve(y[::-1], atom, axes=0)[:n][::-1],
    )


def rows(dictionary: Any, positions: Any) -> Any:
    """Return some rows of a dictionary: what is measured of each atom.

    Parameters
    ----------
    dictionary : LinearOperator or matrix of shape (n_samples, n_atoms)
        Dictionary.
    positions : array of int of shape (m,)
        Rows, each once.

    Returns
    -------
    LinearOperator of shape (m, n_atoms)
        A product costs that of the dictionary.

    Raises
    ------
    InvalidParameterError
        If a position is out of range or twice there.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.sensing.maps import cosines, rows
    >>> rows(cosines(8), [0, 3]).shape
    (2, 8)
    """
    whole = _sparse.aslinearoperator(dictionary)
    n, n_atoms = whole.shape
    at = np.asarray(positions)
    if at.ndim != 1 or at.dtype.kind not in "iu" or np.unique(at).size != at.size:
        raise InvalidParameterError("`positions` must be a list of different integers.")
    if at.size == 0 or at.min() < 0 or at.max() >= n:
        raise InvalidParameterError(f"`positions` must be rows from 0 to {n - 1}, one at least.")

    def adjoint(y: Floats) -> Floats:
        full = np.zeros((n, y.shape[1]))
        full[at] = y
        return np.asarray(whole.rmatmat(full))

    return _operator((at.size, n_atoms), lambda x: np.asarray(whole.matmat(x))[at], adjoint)


def side_by_side(dictionaries: Sequence[Any]) -> Any:
    """Return the dictionary with the atoms of several.

    Parameters
    ----------
    dictionaries : sequence of LinearOperator or matrix, each of shape (n_samples, n_atoms)
        Dictionaries, in the order of their atoms.

    Returns
    -------
    LinearOperator of shape (n_samples, sum of n_atoms)
        A product costs those of all.

    Raises
    ------
    InvalidParameterError
        If there is none, or their numbers of samples differ.

    Examples
    --------
    >>> from ellzero.sensing.maps import cosines, side_by_side, wavelets
    >>> side_by_side([cosines(8), wavelets(8)]).shape
    (8, 16)
    """
    parts = [_sparse.aslinearoperator(d) for d in dictionaries]
    heights = {int(p.shape[0]) for p in parts}
    if len(heights) != 1:
        raise InvalidParameterError(
            f"`dictionaries` must have one number of samples, got {sorted(heights)}."
        )
    ends = np.cumsum([0, *(int(p.shape[1]) for p in parts)])

    def times(x: Floats) -> Floats:
        pieces = zip(parts, ends[:-1], ends[1:], strict=True)
        return np.asarray(sum(p.matmat(x[a:b]) for p, a, b in pieces))

    return _operator(
        (heights.pop(), int(ends[-1])),
        times,
        lambda y: np.concatenate([np.asarray(p.rmatmat(y)) for p in parts]),
    )
