"""Least squares on a chosen support, from inner products alone."""

from __future__ import annotations

import numpy as np

from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Floats, Integers, Subset

# Eigenvalue of columns of unit length up to which a direction counts as spanned by the others.
SPANNED = 1e-10


def refit_shortest(gram: AbstractGram, support: Integers, ridge: Floats) -> Subset:
    """Return the minimizer on a support; the shortest, in columns of unit length, of several.

    Parameters
    ----------
    gram : AbstractGram
        Inner products.
    support : ndarray of shape (k,), int64
        Features, ascending.
    ridge : ndarray of shape (n_features,)
        The ridge of every feature.

    Returns
    -------
    Subset
        Features whose coefficients are all zero are left out.
    """
    block = gram.block(support)
    penalty = gram.n_samples * ridge[support]
    block.flat[:: block.shape[0] + 1] += penalty
    cross = gram.cross[support]
    diagonal = block.diagonal()
    unit = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 0.0)
    scaled = block * unit[:, None] * unit
    spectrum, vectors = np.linalg.eigh(scaled)
    kept = spectrum > SPANNED
    inverse = (vectors[:, kept] / spectrum[kept]) @ vectors[:, kept].T
    moment = cross * unit[:, None]
    solution = inverse @ moment
    # Once more, for what rounding has left.
    solution += inverse @ (moment - scaled @ solution)
    return to_subset(gram, support, solution * unit[:, None], ridge)


def to_subset(gram: AbstractGram, support: Integers, coef: Floats, ridge: Floats) -> Subset:
    """Return the subset of given coefficients, with its value, without rows of zeros."""
    kept = (coef != 0).any(axis=1)
    support, coef = support[kept], np.ascontiguousarray(coef[kept])
    penalty = gram.n_samples * ridge[support]
    quadratic = float((coef * (gram.block(support) @ coef)).sum())
    quadratic += float((penalty[:, None] * np.square(coef)).sum())
    total = float(gram.energy.sum()) - 2 * float((coef * gram.cross[support]).sum()) + quadratic
    value = max(total, 0.0) / (2 * gram.n_samples)
    return Subset(support, coef, gram.intercept(support, coef), value)
