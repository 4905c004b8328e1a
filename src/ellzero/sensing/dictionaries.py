"""Dictionaries: a matrix or a linear operator, with atoms of length one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.sparse import linalg as sparse_linalg

from ellzero.errors import InvalidParameterError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# The annotations of scipy do not know how operators are built.
_sparse: Any = sparse_linalg

# Numbers up to which an operator is written out as a matrix: 256 MiB in float64.
DENSE_LIMIT = 2**25
# Rows of which products are orthogonal to this accuracy are taken to be so.
ORTHOGONAL = 1e-10
# Relative distance of the mean square product of atoms from that of random ones, to pass for them.
LIKE_RANDOM = 0.1
# A pivot of QR below this share of the first is a dependent atom.
DEPENDENT = 1e-11


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of ``D @ D.T``, and eigenvectors unless all directions are alike.

    Parameters
    ----------
    values : ndarray of shape (n_samples,)
        Eigenvalues, not negative.
    vectors : ndarray of shape (n_samples, n_samples) or None
        Eigenvectors as columns; None when the rows are orthogonal and of one length.
    """

    values: Floats
    vectors: Floats | None

    def forward(self, residual: Floats) -> Floats:
        """Return coordinates in the eigenvectors."""
        return residual if self.vectors is None else self.vectors.T @ residual

    def backward(self, coordinates: Floats) -> Floats:
        """Return the vectors of given coordinates."""
        return coordinates if self.vectors is None else self.vectors @ coordinates


class Dictionary:
    """A dictionary whose atoms have been scaled to length one.

    Parameters
    ----------
    matrix : ndarray of shape (n_samples, n_atoms) or None
        The dictionary as given; None for a large operator.
    operator : LinearOperator or None
        The operator, when there is no matrix.

    Notes
    -----
    A large operator cannot be asked for the length of every atom without as many products as there
    are atoms; it is scaled by one number, so that the mean square length is one.
    """

    def __init__(self, matrix: Floats | None, operator: Any = None) -> None:
        self.lengths: Floats
        if matrix is not None:
            self.n_samples, self.n_atoms = matrix.shape
            self._operator = None
            largest = np.abs(matrix).max(0)
            zero = np.flatnonzero(largest == 0)
            if zero.size:
                listed = ", ".join(str(j) for j in zero[:10])
                more = f" and {zero.size - 10} more" if zero.size > 10 else ""
                raise InvalidParameterError(
                    f"`dictionary` must not have atoms of zeros, got column {listed}{more}.",
                    "Drop these columns.",
                )
            # Dividing first keeps squares of tiny and of huge entries in range.
            scaled = matrix / largest
            length = np.sqrt(np.einsum("ij,ij->j", scaled, scaled))
            self.lengths = largest * length
            self.matrix: Floats | None = scaled / length
        else:
            self.n_samples, self.n_atoms = (int(n) for n in operator.shape)
            self.matrix = None
            self._operator = operator
            probe = np.random.default_rng(0).standard_normal((self.n_samples, 8))
            mean = np.square(operator.rmatmat(probe)).sum() / 8 / self.n_atoms
            if not np.isfinite(mean) or mean <= 0:
                raise InvalidParameterError(
                    "`dictionary` must give finite products that are not all zero.",
                    "Check `rmatvec` of the operator.",
                )
            self.lengths = np.full(self.n_atoms, np.sqrt(mean))

    def times(self, coef: Floats) -> Floats:
        """Return D x of shape (n_samples, m), for x of shape (n_atoms, m)."""
        if self.matrix is not None:
            return self.matrix @ coef
        assert self._operator is not None
        return np.asarray(self._operator.matmat(coef / self.lengths[:, None]), np.float64)

    def adjoint(self, residual: Floats) -> Floats:
        """Return the correlations with every atom, (n_atoms, m), for (n_samples, m)."""
        if self.matrix is not None:
            return self.matrix.T @ residual
        assert self._operator is not None
        product = np.asarray(self._operator.rmatmat(residual), np.float64)
        return product / self.lengths[:, None]

    def columns(self, index: Integers) -> Floats:
        """Return atoms as columns, (n_samples, k)."""
        if self.matrix is not None:
            return self.matrix[:, index]
        unit = np.zeros((self.n_atoms, index.size))
        unit[index, np.arange(index.size)] = 1
        return self.times(unit)

    @cached_property
    def gram(self) -> Floats:
        """Products of all atoms, (n_atoms, n_atoms); a matrix is needed."""
        assert self.matrix is not None
        return self.matrix.T @ self.matrix

    @cached_property
    def has_orthogonal_rows(self) -> bool:
        """Whether ``D @ D.T`` is a multiple of the identity, as seen by two random vectors."""
        probe = np.random.default_rng(1).standard_normal((self.n_samples, 2))
        image = self.times(self.adjoint(probe))
        scale = (probe * image).sum() / (probe * probe).sum()
        away = float(np.abs(image - scale * probe).max())
        return bool(away <= ORTHOGONAL * float(scale * np.abs(probe).max()))

    @cached_property
    def looks_independent(self) -> bool:
        """Whether the products of atoms are as small as those of independent entries.

        Compares an estimate of the mean square of ``D.T @ D`` with that of random atoms.
        """
        probe = np.random.default_rng(2).standard_normal((self.n_atoms, 4))
        image = self.adjoint(self.times(probe))
        mean = float(np.square(image).sum() / np.square(probe).sum())
        random = 1 + (self.n_atoms - 1) / self.n_samples
        return bool(abs(mean / random - 1) < LIKE_RANDOM)

    @cached_property
    def spectrum(self) -> Spectrum | None:
        """Eigenvalues and eigenvectors of ``D @ D.T``; None where they are out of reach."""
        if self.has_orthogonal_rows:
            return Spectrum(np.full(self.n_samples, self.n_atoms / self.n_samples), None)
        if self.matrix is None:
            return None
        values, vectors = linalg.eigh(self.matrix @ self.matrix.T, driver="evd")
        return Spectrum(np.maximum(values, 0), vectors)

    def refit(self, y: Floats, support: Integers) -> Floats:
        """Return the least-squares coefficients on a support; dependent atoms get zero.

        Parameters
        ----------
        y : ndarray of shape (n_samples,)
            Signal.
        support : ndarray of shape (k,)
            Atoms.

        Returns
        -------
        ndarray of shape (k,)
            Coefficients.
        """
        k = support.size
        out: Floats = np.zeros(k)
        if k == 0:
            return out
        if self.matrix is not None:
            columns = self.matrix[:, support]
            q, r, order = linalg.qr(columns, mode="economic", pivoting=True, check_finite=False)
            pivots = np.abs(np.diag(r))
            rank = int((pivots > DEPENDENT * pivots[0]).sum())
            for _ in range(2):
                # The first pass solves, the second refines.
                short = q[:, :rank].T @ (y - columns @ out)
                step = linalg.solve_triangular(r[:rank, :rank], short, check_finite=False)
                out[order[:rank]] += step
            return out

        def restricted(coef: Floats) -> Floats:
            full = np.zeros((self.n_atoms, 1))
            full[support, 0] = coef
            return self.times(full)[:, 0]

        def correlate(residual: Floats) -> Floats:
            return np.asarray(self.adjoint(residual[:, None])[support, 0])

        part = _sparse.LinearOperator((self.n_samples, k), matvec=restricted, rmatvec=correlate)
        found = _sparse.lsmr(part, y, atol=1e-15, btol=1e-15, conlim=0, maxiter=10 * k + 100)[0]
        return np.asarray(found, np.float64)


def make_dictionary(given: Any) -> Dictionary:
    """Return the dictionary of a tensor, an array, a sparse matrix or an operator, or raise.

    Parameters
    ----------
    given : object
        What the user passed.

    Returns
    -------
    Dictionary
        Ready to use.

    Raises
    ------
    InvalidParameterError
        If it has no two axes, no entries, entries that are not finite, or an atom of zeros.
    """
    if _is_operator(given):
        return _from_operator(given)
    if hasattr(given, "toarray"):
        given = given.toarray()
    matrix = to_array(given)
    if matrix.ndim != 2:
        raise InvalidParameterError(
            f"`dictionary` must have 2 axes, (n_samples, n_atoms), got shape {matrix.shape}."
        )
    check_numbers("dictionary", matrix)
    if matrix.size == 0:
        raise InvalidParameterError(
            f"`dictionary` must have at least one row and one column, got shape {matrix.shape}."
        )
    matrix = matrix.astype(np.float64, copy=False)
    bad = np.flatnonzero(~np.isfinite(matrix).all(0))
    if bad.size:
        listed = ", ".join(str(j) for j in bad[:10])
        more = f" and {bad.size - 10} more" if bad.size > 10 else ""
        raise InvalidParameterError(
            f"`dictionary` must be finite, got NaN or infinity in column {listed}{more}.",
            "Drop or fill these values first.",
        )
    return Dictionary(matrix)


def _is_operator(given: Any) -> bool:
    return all(hasattr(given, name) for name in ("shape", "matvec", "rmatvec"))


def _from_operator(given: Any) -> Dictionary:
    shape = tuple(int(n) for n in given.shape)
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidParameterError(
            f"`dictionary` must have 2 axes, (n_samples, n_atoms), got shape {shape}."
        )
    if isinstance(given, _sparse.LinearOperator):
        operator: Any = given
    else:
        # scipy passes columns of shape (n, 1) for one vector of several.
        operator = _sparse.LinearOperator(
            shape,
            matvec=lambda x: given.matvec(np.ravel(x)),
            rmatvec=lambda r: given.rmatvec(np.ravel(r)),
            dtype=np.float64,
        )
    if np.dtype(operator.dtype or np.float64).kind == "c":
        raise InvalidParameterError(
            f"`dictionary` must be real, got {operator.dtype}.",
            "Stack the real and the imaginary parts.",
        )
    if shape[0] * shape[1] <= DENSE_LIMIT:
        return make_dictionary(np.asarray(operator.matmat(np.eye(shape[1]))))
    return Dictionary(None, operator)


def to_array(given: Any) -> NDArray[Any]:
    """Return an array that shares memory where it can."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        # numpy has no bfloat16.
        if str(given.dtype) == "torch.bfloat16":
            given = given.double()
        return np.asarray(given.numpy())
    return np.asarray(given)


def check_numbers(name: str, array: NDArray[Any]) -> None:
    """Raise when an array does not hold real numbers."""
    if array.dtype.kind == "c":
        raise InvalidParameterError(
            f"`{name}` must be real, got {array.dtype}.",
            "Stack the real and the imaginary parts.",
        )
    if array.dtype.kind not in "fiub":
        raise InvalidParameterError(f"`{name}` must hold numbers, got {array.dtype}.")
