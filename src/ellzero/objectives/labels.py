"""Labels of classes, and whether a linear predictor separates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_length
from ellzero.tensors import named


def find_classes(y: Any, n_samples: int) -> tuple[Tensor, Tensor]:
    """Return the sorted labels and the code of every sample.

    Raises
    ------
    InvalidParameterError
        If labels are not finite, do not fit the samples, or are all the same.
    """
    y = check_length(y, n_samples)
    if y.ndim != 1:
        raise InvalidParameterError(
            f"`y` must have one label for each sample, got shape {tuple(y.shape)}."
        )
    if y.is_floating_point() and not named.all_true(torch.isfinite(y)):
        raise InvalidParameterError("`y` must hold labels, got NaN or infinity.")
    classes, codes = torch.unique(y, return_inverse=True)
    if classes.shape[0] < 2:
        raise InvalidParameterError(
            f"`y` must have at least two classes, got only {named.to_list(classes)[0]!r}.",
            "Check the labels; a constant target needs no model.",
        )
    return classes, codes


def separates(differences: Tensor | Any, lower: Any = None, upper: Any = None) -> bool:
    """Return whether some d has ``differences @ d >= 0`` with at least one strict inequality.

    Parameters
    ----------
    differences : Tensor or ndarray of shape (m, n)
        One row for each inequality.
    lower, upper : ndarray of shape (n,) or None, default=None
        Zero or infinite bounds on d; None means that there are none.

    Returns
    -------
    bool
        True also when rounding leaves it open, so that False is safe to build on.
    """
    import numpy as np
    from scipy import optimize

    linprog: Any = optimize.linprog  # type: ignore[attr-defined]

    if isinstance(differences, Tensor):
        differences = differences.detach().to("cpu", torch.float64)
    A = np.asarray(differences)
    A = np.unique(A[np.abs(A).max(axis=1, initial=0.0) > 0], axis=0)
    if A.size == 0:
        return False
    # Neither the length of a row nor that of a column matters.
    A = A / np.abs(A).max(axis=1, keepdims=True)
    A = A / np.where(np.abs(A).max(axis=0) > 0, np.abs(A).max(axis=0), 1.0)
    m, n = A.shape
    low = np.full(n, -np.inf) if lower is None else lower
    high = np.full(n, np.inf) if upper is None else upper
    # Scale d so that the largest margin is 1: then the sum of margins is at least 1 when such a
    # direction exists, and 0 when there is none.
    result = linprog(
        -A.sum(0),
        A_ub=np.vstack([-A, A]),
        b_ub=np.concatenate([np.zeros(m), np.ones(m)]),
        bounds=np.stack([low, high], axis=1),
        method="highs",
    )
    return not (result.status == 0 and -result.fun < 0.5)
