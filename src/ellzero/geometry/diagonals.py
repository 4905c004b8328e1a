"""Diagonal bounds of curvature: the refined smoothness vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ellzero.core.problem import (
    AbstractCoordinateSmoothObjective,
    AbstractObjective,
    AbstractSmoothObjective,
)
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.tensors import named

# Entries up to which a matrix is decomposed.
DENSE_ENTRIES = 512
# Steps of the ascent on the dual of the smallest diagonal.
ASCENT_STEPS = 300
# Columns of the factor where the matrix is given by few eigenpairs.
NARROW = 8
# What rounding can take away from a computed bound.
ROUND_UP = 1 + 1e-12


def density(vector: Tensor) -> Tensor:
    r"""Return how evenly magnitudes are spread.

    .. math:: \phi(v) = \|v\|_1^2 / (n \|v\|_2^2) \in [1 / n, 1]

    Parameters
    ----------
    vector : Tensor of shape (..., n)
        Vectors along the last axis.

    Returns
    -------
    Tensor of shape (...)
        The density, 1 for equal magnitudes, 1 / n for a single nonzero, NaN for zeros.

    Examples
    --------
    >>> import torch
    >>> from ellzero.geometry import density
    >>> density(torch.tensor([[1.0, -1.0], [3.0, 0.0]])).tolist()
    [1.0, 0.5]
    """
    wide = vector.double()
    return wide.abs().sum(-1).square() / (wide.shape[-1] * wide.square().sum(-1))


def smallest_diagonal(matrix: Tensor) -> Tensor:
    r"""Return a diagonal above a symmetric matrix and its negative, with a small sum.

    .. math:: \min \sum_i D_i \quad \text{subject to} \quad
        -\mathrm{diag}(D) \preceq H \preceq \mathrm{diag}(D)

    Parameters
    ----------
    matrix : Tensor of shape (n, n)
        The symmetric matrix H.

    Returns
    -------
    Tensor of shape (n,)
        D, float64. Always a valid bound up to rounding; the sum is at most that of the row sums
        of magnitudes and at most n times the spectral norm, and close to the smallest possible
        one where H is positive semidefinite.

    Raises
    ------
    InvalidParameterError
        If the matrix is not square and symmetric.

    Notes
    -----
    The dual of the positive semidefinite case is the maximum of <H, Y> over correlation matrices
    Y; ascent on a factor of Y gives candidates D, which eigenvalues of D - H lift until they are
    valid. Costs two eigendecompositions and some hundred products of the matrix with itself.

    Examples
    --------
    >>> import torch
    >>> from ellzero.geometry import smallest_diagonal
    >>> smallest_diagonal(torch.tensor([[2.0, -1.0], [-1.0, 2.0]])).round(decimals=6).tolist()
    [3.0, 3.0]
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidParameterError(f"`matrix` must be square, got shape {tuple(matrix.shape)}.")
    H = matrix.double()
    scale = H.abs().max() if H.numel() else H.sum()
    if named.any_true((H - H.T).abs() > 1e-6 * scale):
        raise InvalidParameterError(
            "`matrix` must be symmetric, got one that differs from its transpose.",
            "Pass `(H + H.T) / 2`.",
        )
    H = (H + H.T) / 2
    values, vectors = torch.linalg.eigh(H)
    norm = values.abs().max() if len(values) else scale
    candidates = [H.abs().sum(1), torch.full_like(values, 1.0) * norm]
    above = (vectors * values.abs()) @ vectors.T
    n = len(H)
    if n and named.to_float(norm) > 0:
        width = min(n, int((2 * n) ** 0.5) + 2)
        D = _ascend(lambda V: above @ V, H[:, :1], width, torch.Generator().manual_seed(0))
        lift = torch.linalg.eigvalsh(above - torch.diag(D))[-1].clamp_min(0)
        candidates.append(D + lift)
    best = min(candidates, key=lambda D: named.to_float(D.sum()))
    return best * ROUND_UP


def _ascend(
    product: Callable[[Tensor], Tensor], like: Tensor, width: int, generator: torch.Generator
) -> Tensor:
    """Return the diagonal that ascent on a factor of correlation matrices ends at."""
    V = torch.randn(len(like), width, generator=generator, dtype=torch.float64).to(like)
    V = V / V.norm(dim=1, keepdim=True)
    for _ in range(ASCENT_STEPS):
        image = product(V)
        length = image.norm(dim=1, keepdim=True)
        V = torch.where(length > 0, image / length.clamp_min(1e-300), V)
    bound: Tensor = product(V).norm(dim=1)
    return bound


def smallest_diagonal_of(values: Tensor, vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Return a diagonal nearly above a semidefinite matrix of few eigenpairs, not lifted.

    Parameters
    ----------
    values : Tensor of shape (k,)
        Eigenvalues, not negative.
    vectors : Tensor of shape (n, k)
        Orthonormal eigenvectors.
    generator : torch.Generator
        Source of the start.

    Returns
    -------
    Tensor of shape (n,)
        As `smallest_diagonal` before its lift. Some hundred products of ``16 n k`` operations.
    """
    scaled = vectors * values
    return _ascend(lambda V: scaled @ (vectors.T @ V), vectors, NARROW, generator)


def lanczos(
    product: Callable[[Tensor], Tensor], n: int, steps: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Return Ritz pairs of a symmetric map, by the Lanczos process with full orthogonalization.

    Parameters
    ----------
    product : callable
        Maps a vector of shape (n,), float64, to its image.
    n : int
        Length of the vectors.
    steps : int
        The most products.
    generator : torch.Generator
        Source of the first vector.

    Returns
    -------
    values : Tensor of shape (k,)
        Ritz values, from below; k is `steps` or less.
    vectors : Tensor of shape (n, k)
        Ritz vectors.
    miss : float
        Length of the residual of the value of the largest magnitude: the map has an eigenvalue
        that close to it.
    """
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    basis = torch.zeros(min(steps, n), n, dtype=torch.float64)
    diagonal, beside = [], []
    length = named.to_float(v.norm())
    largest = 0.0
    for k in range(len(basis)):
        basis[k] = v / length
        w = product(basis[k]).to(basis)
        diagonal.append(basis[k] @ w)
        # Twice, as rounding undoes the first.
        for _ in range(2):
            w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
        v, length = w, named.to_float(w.norm())
        largest = max(largest, length, abs(named.to_float(diagonal[-1])))
        if length <= 1e-12 * largest:
            break
        beside.append(length)
    size = len(diagonal)
    off = torch.tensor(beside[: size - 1], dtype=torch.float64)
    small = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, mixing = torch.linalg.eigh(small)
    top = values.abs().argmax()
    return values, basis[:size].T @ mixing, length * named.to_float(mixing[-1, top].abs())


def smoothness_vector(objective: AbstractObjective) -> Tensor:
    r"""Return the refined smoothness vector L of an objective, a bound that holds everywhere.

    .. math:: -\mathrm{diag}(L) \preceq \nabla^2 f(x) \preceq \mathrm{diag}(L)

    Parameters
    ----------
    objective : AbstractObjective
        An objective with a coordinate-wise or a global curvature bound.

    Returns
    -------
    Tensor of shape (n,)
        L, float64, in the order of `named.flatten`.

    Raises
    ------
    IncompatibleError
        If no curvature bound is known, as for networks; `measure_geometry` measures there.

    Notes
    -----
    Up to 512 entries the sum is nearly the smallest that the curvature bound allows; beyond, row
    sums of magnitudes of its two factors are used, at the cost of reading them.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.geometry import smoothness_vector
    >>> f = ellzero.Quadratic(torch.diag(torch.tensor([4.0, 1.0])), torch.zeros(2))
    >>> smoothness_vector(f).round(decimals=6).tolist()
    [4.0, 1.0]
    """
    if isinstance(objective, AbstractCoordinateSmoothObjective):
        return objective.coordinate_smoothness().double()
    if not isinstance(objective, AbstractSmoothObjective):
        raise IncompatibleError(
            f"`{type(objective).__name__}` has no curvature bound.",
            "Use `ellzero.geometry.measure_geometry`, which measures at points.",
        )
    bound = objective.curvature_bound()
    if bound.size <= DENSE_ENTRIES:
        index = torch.arange(bound.size, device=bound.positions.device)
        return smallest_diagonal(bound.submatrix(index))
    width = bound.right.shape[0]
    left, right = bound.left.abs().sum(1).double(), bound.right.abs().sum(1).double()
    rows = left[bound.positions // width] * right[bound.positions % width]
    return (rows + bound.ridge.double()) * ROUND_UP
