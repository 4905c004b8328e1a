r"""Models of a quadratic whose curvature is partly taken out, feature by feature.

A model is Q, positive semidefinite, and d > 0 with

.. math:: b^T H b \ge b^T Q b + \sum_j d_j b_j^2 \quad\text{for all b with at most r nonzeros.}

Two ways to it. With Q = H - diag(d), the weights d are raised where the relaxation gains most: a
semidefinite program, whose barrier function is climbed weight by weight. Where the columns
outnumber the samples, H has no curvature to give, but sparse vectors still have: taking
:math:`|E_{ij}| \le t` off the entries beside the diagonal changes :math:`b^T H b` by at most
:math:`t \|b\|_1^2 - t \|b\|^2 \le (r - 1) t \|b\|^2`, so Q = H - E - l I and d = l - (r - 1) t
serve, with l the smallest eigenvalue of H - E. Soft thresholding the entries by t is the choice
of E that removes most.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ellzero.subset.results import Floats

# Share of the largest weights that is used, so that rounding cannot make the rest indefinite.
SHARE = 0.999
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True)
class Model:
    """A matrix and weights that bound a quadratic from below on sparse vectors.

    Parameters
    ----------
    matrix : ndarray of shape (p, p)
        Q, positive semidefinite.
    weights : ndarray of shape (p,)
        The weights d.
    threshold : float
        The t that entries beside the diagonal were reduced by; 0 changes nothing.
    """

    matrix: Floats
    weights: Floats
    threshold: float


def is_definite(matrix: Floats) -> bool:
    """Return whether a symmetric matrix is positive semidefinite for sure."""
    p = matrix.shape[0]
    shifted = matrix.copy()
    # What rounding can do in a factorization, relative to the diagonal.
    margin = 4.0 * p * EPS * max(float(np.trace(matrix)), 0.0)
    shifted[np.diag_indices(p)] -= margin
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True


def soften(h: Floats, threshold: float) -> Floats:
    """Return the matrix with the entries beside its diagonal reduced by a threshold."""
    out = np.sign(h) * np.maximum(np.abs(h) - threshold, 0.0)
    np.fill_diagonal(out, h.diagonal())
    return np.asarray(out)


def plain_model(h: Floats, weights: Floats) -> Model | None:
    """Return the model with given weights, made smaller where rounding asks for it."""
    for share in (1.0, 0.999, 0.99, 0.9, 0.5):
        d = share * weights
        q = h - np.diag(d)
        if is_definite(q):
            return Model(q, d, 0.0)
    return None


def thresholded_model(h: Floats, room: int, threshold: float) -> Model | None:
    """Return the model that thresholds the entries beside the diagonal, if it leaves curvature."""
    soft = soften(h, threshold)
    lowest = SHARE * float(np.linalg.eigvalsh(soft)[0])
    left = lowest - (room - 1) * threshold
    if left <= 0.0:
        return None
    soft[np.diag_indices_from(soft)] -= lowest
    if not is_definite(soft):
        return None
    return Model(soft, np.full(h.shape[0], left), threshold)


def own_weights(h: Floats) -> Floats | None:
    """Return weights in proportion to what each feature has that no others have."""
    values, vectors = np.linalg.eigh(h)
    p = h.shape[0]
    if values[0] <= 200.0 * p * EPS * values[-1]:
        return None
    half = vectors / np.sqrt(values)
    own = 1.0 / np.square(half).sum(1)
    half *= np.sqrt(own)[:, None]
    # Equal to the largest eigenvalue of the scaled inverse.
    largest = float(np.linalg.eigvalsh(half.T @ half)[-1])
    return np.asarray(SHARE / largest * own)
