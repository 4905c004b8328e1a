"""Curvature taken out of a quadratic, feature by feature, for perspective bounds."""

from __future__ import annotations

import numpy as np

from ellzero.subset.results import Floats

# Share of the largest weights that is used, so that rounding cannot make the rest indefinite.
SHARE = 0.999


def weights(h: Floats) -> Floats | None:
    r"""Return weights d > 0 for which H - diag(d) is positive semidefinite.

    Parameters
    ----------
    h : ndarray of shape (p, p)
        Positive semidefinite matrix with a unit diagonal.

    Returns
    -------
    ndarray of shape (p,) or None
        The weights, proportional to the inverse diagonal of the inverse: what a feature has for
        itself, given all others. None when the matrix is singular to working precision.
    """
    p = h.shape[0]
    values, vectors = np.linalg.eigh(h)
    margin = 8.0 * p * np.finfo(np.float64).eps * values[-1]
    if values[0] <= 100.0 * margin:
        return None
    half = vectors / np.sqrt(values)
    own = 1.0 / np.square(half).sum(1)
    largest = np.linalg.norm(half * np.sqrt(own)[:, None], 2) ** 2
    out = SHARE / largest * own
    # The eigenvalues of the rest are the judge, not the formula.
    lowest = np.linalg.eigvalsh(h - np.diag(out))[0]
    if lowest < margin:
        out = np.full(p, SHARE * (values[0] - margin))
    return out
