"""A lower bound on the error of every weight in the set, whatever method found ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.core.problem import AbstractSparseSet

NAME = "weight"
STEPS = 25


def lower_bound(
    dense: Tensor,
    metric: Tensor,
    constraint: AbstractSparseSet,
    point: Tensor | None = None,
    *,
    max_iter: int = STEPS,
) -> float:
    r"""Return a number that no weight in the set gets below.

    With a diagonal D for which :math:`Q = H - D` is positive semidefinite, and any matrix U,

    .. math:: \mathrm{tr}(W-V)H(W-V)^\top \ge \ell_U(V) =
        \|W-U\|_Q^2 + 2\langle (U-W) Q, V-U\rangle + \sum_{ij} D_j (W_{ij}-V_{ij})^2,

    because the first part is convex in V. The right side is separable, so its smallest value over
    the set is found exactly by one selection. U is moved towards those minimizers; every U gives a
    valid bound and the largest is returned.

    Parameters
    ----------
    dense : Tensor
        Dense weight, (n_outputs, n_inputs).
    metric : Tensor
        Positive definite matrix H, (n_inputs, n_inputs).
    constraint : AbstractSparseSet
        The set.
    point : Tensor or None, default=None
        A good weight in the set; it gives further matrices U to try.
    max_iter : int, default=25
        Matrices U tried, each at the cost of one product with the matrix.

    Returns
    -------
    float
        The bound, at least 0. It is small when inputs are strongly correlated.

    Notes
    -----
    D is a multiple of :math:`1/(H^{-1})_{jj}` or of the identity, whichever has the larger sum,
    as large as the smallest eigenvalue allows; it is reduced by the rounding error of the
    eigenvalues. The limit is the perspective bound of this D (the dual bound of k-support norms).

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.bounds import lower_bound
    >>> from ellzero.sets import L0Ball
    >>> round(lower_bound(torch.tensor([[3.0, 2.0, 1.0]]), torch.eye(3), L0Ball(1)), 6)
    5.0
    """
    dense, metric = dense.to(torch.float64), metric.to(torch.float64)
    diagonal = separable_part(metric)
    rest = metric - torch.diag(diagonal)
    best = 0.0
    # With E = U - W, Q E' is all that depends on U.
    error = torch.zeros_like(dense)
    starts = [] if point is None else [point.to(torch.float64) - dense]
    image = error @ rest
    for k in range(max_iter):
        value, minimizer = _bound_at(dense, diagonal, constraint, error, image)
        best = max(best, value)
        # The first step goes to the known weight, the others to the minimizers.
        goal = starts.pop() if starts and k == 0 else minimizer - dense
        goal_image = goal @ rest
        length = 0.5 if k == 0 else 2.0 / (k + 3.0)
        error = error + length * (goal - error)
        image = image + length * (goal_image - image)
    return best


def separable_part(metric: Tensor) -> Tensor:
    """Return a nonnegative diagonal that can be taken off a positive definite matrix.

    Parameters
    ----------
    metric : Tensor
        The matrix, in double precision.

    Returns
    -------
    Tensor
        The diagonal; what is left is positive semidefinite.
    """
    values, vectors = torch.linalg.eigh(metric)
    rounding = 4.0 * len(metric) * torch.finfo(torch.float64).eps * values[-1].abs()
    flat: Tensor = (values[0] - rounding).clamp(min=0.0) * torch.ones_like(values)
    if not bool(values[0] > rounding):
        return flat
    shape = 1.0 / ((vectors * vectors) / values).sum(1)
    root = shape.sqrt()
    smallest = torch.linalg.eigvalsh(metric / (root[:, None] * root))[0]
    scaled: Tensor = (smallest - rounding / shape.min()).clamp(min=0.0) * shape
    return scaled if float(scaled.sum()) > float(flat.sum()) else flat


def _bound_at(
    dense: Tensor,
    diagonal: Tensor,
    constraint: AbstractSparseSet,
    error: Tensor,
    image: Tensor,
) -> tuple[float, Tensor]:
    """Return the bound of one U = W + error, and the minimizer of its right side."""
    # l_U(V) = -<E, Q E> + 2 <E Q, V - W> + sum d (V - W)^2, smallest freely at `free`.
    positive = diagonal > 0.0
    free = torch.where(positive, dense - image / diagonal.clamp(min=1e-300), dense)
    saved = diagonal * free * free
    mask = constraint.select({NAME: saved})[NAME]
    minimizer = torch.where(mask, free, 0.0)
    away = minimizer - dense
    value = -(error * image).sum() + 2.0 * (image * away).sum() + (diagonal * away * away).sum()
    if not bool(positive.all()):
        return 0.0, minimizer
    return float(value), minimizer
