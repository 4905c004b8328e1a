"""The inner products of a table, in the form that suits it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import InvalidParameterError
from ellzero.subset.folds import Fold, fold_grams
from ellzero.subset.inner import FULL, AbstractGram, FullGram
from ellzero.subset.results import Floats
from ellzero.subset.streaming import Moments, gram_of_chunks
from ellzero.subset.tables import DenseGram, SparseGram, TensorGram

__all__ = [
    "AbstractGram",
    "DenseGram",
    "Fold",
    "FullGram",
    "SparseGram",
    "TensorGram",
    "fold_grams",
    "gram_of",
    "gram_of_chunks",
]


def gram_of(
    X: Any, y: Any, *, sample_weight: Any = None, fit_intercept: bool = True
) -> AbstractGram:
    """Return the inner products of a table and its targets.

    All of them at once for few features; otherwise columns are computed when a search asks for
    them.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        numpy, scipy.sparse, or a torch tensor on any device; never copied whole unless its means
        are far from zero, never densified.
    y : array of shape (n_samples,) or (n_samples, n_outputs)
        Targets.
    sample_weight : array of shape (n_samples,) or None, default=None
        Nonnegative weights; a weight of 2 is the same as the sample twice.
    fit_intercept : bool, default=True
        Whether means are taken out.

    Returns
    -------
    AbstractGram
        Inner products.

    Examples
    --------
    >>> import numpy as np
    >>> gram = gram_of(np.eye(3), np.array([1.0, 2.0, 3.0]), fit_intercept=False)
    >>> gram.cross.ravel().tolist(), gram.energy.tolist()
    ([1.0, 2.0, 3.0], [14.0])
    """
    shape = tuple(np.shape(X) if not hasattr(X, "shape") else X.shape)
    if len(shape) != 2:
        raise InvalidParameterError(f"`X` must have two dimensions, got shape {shape}.")
    if hasattr(X, "data_ptr"):
        return _gram_of_tensor(X, y, sample_weight, fit_intercept)
    Y = np.asarray(y, np.float64)
    Y = Y[:, None] if Y.ndim == 1 else Y
    weight = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    _check_sizes(shape[0], Y.shape[0], None if weight is None else weight.shape)
    if weight is not None:
        _check_weight(bool(np.all(weight >= 0)), float(weight.sum()))
    if hasattr(X, "tocsc"):
        if shape[1] <= FULL:
            return _full(X.tocsr(), Y, weight, fit_intercept)
        return SparseGram(X, Y, weight, fit_intercept)
    X = np.asarray(X)
    if X.dtype not in (np.float64, np.float32):
        X = X.astype(np.float64)
    if shape[1] <= FULL:
        return _full(X, Y, weight, fit_intercept)
    return DenseGram(X, Y, weight, fit_intercept)


def _full(X: Any, Y: Floats, weight: Floats | None, fit_intercept: bool) -> FullGram:
    moments = Moments(X.shape[1], Y.shape[1])
    moments.add(X, Y, weight)
    return moments.gram(fit_intercept)


def _gram_of_tensor(X: Any, y: Any, sample_weight: Any, fit_intercept: bool) -> TensorGram:
    import torch

    Y = torch.as_tensor(y).to(X.device, torch.float64)
    Y = Y[:, None] if Y.ndim == 1 else Y
    weight = None
    if sample_weight is not None:
        weight = torch.as_tensor(sample_weight).to(X.device, torch.float64)
    _check_sizes(X.shape[0], Y.shape[0], None if weight is None else tuple(weight.shape))
    if weight is not None:
        _check_weight(bool((weight >= 0).all()), float(weight.sum()))
    return TensorGram(X.detach(), Y.detach(), weight, fit_intercept)


def _check_sizes(n_x: int, n_y: int, weight: tuple[int, ...] | None) -> None:
    if n_x != n_y:
        raise InvalidParameterError(
            f"`X` and `y` must have the same number of samples, got {n_x} and {n_y}."
        )
    if weight is not None and weight != (n_x,):
        raise InvalidParameterError(f"`sample_weight` must have shape ({n_x},), got {weight}.")


def _check_weight(nonnegative: bool, total: float) -> None:
    if not nonnegative:
        raise InvalidParameterError("`sample_weight` must not be negative.")
    if total <= 0:
        raise InvalidParameterError("At least one sample must have a positive weight.")
