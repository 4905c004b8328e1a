"""What the estimators of two-layer networks have in common: settings, seeds, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state  # noqa: TID253
from sklearn.utils.multiclass import check_classification_targets  # noqa: TID253

from ellzero.relu.gates import sample_gates
from ellzero.validation import check_integer, check_real

Floats = NDArray[np.float64]


def check_penalty(penalty: float | None) -> None:
    """Raise when a penalty is neither None nor positive.

    Raises
    ------
    InvalidParameterError
        If it is not.
    """
    if penalty is not None:
        check_real("penalty", penalty, low=0.0, open_low=True)


def check_effort(max_iter: int, tol: float, *, open_tol: bool) -> None:
    """Raise when the limits of an iteration are out of range.

    Parameters
    ----------
    max_iter : int
        Must be at least 1.
    tol : float
        Must not be negative; must be positive with `open_tol`.
    open_tol : bool
        Whether 0 is refused.

    Raises
    ------
    InvalidParameterError
        If one is out of range.
    """
    check_integer("max_iter", max_iter, low=1)
    check_real("tol", tol, low=0.0, open_low=open_tol)


def generator_of(random_state: Any) -> np.random.Generator:
    """Return the generator of scikit-learn's `random_state`.

    Parameters
    ----------
    random_state : int, RandomState or None
        The same int gives the same numbers.

    Returns
    -------
    numpy.random.Generator
        The source.
    """
    return np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))


def draw_gates(random_state: Any, n_gates: int, n_inputs: int) -> Floats:
    """Return the gates that an estimator with this seed samples.

    Parameters
    ----------
    random_state : int, RandomState or None
        The seed.
    n_gates, n_inputs : int
        How many, of how many entries.

    Returns
    -------
    ndarray of shape (n_gates, n_inputs)
        The vectors.
    """
    return sample_gates(n_gates, n_inputs, generator_of(random_state))


def with_bias(X: Floats, fit_bias: bool) -> Floats:
    """Return the rows that neurons multiply: X, with a column of ones last for biases."""
    return np.column_stack([X, np.ones(len(X))]) if fit_bias else X


def read_classes(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the classes and the code of every sample.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.

    Returns
    -------
    tuple of ndarray
        Sorted classes, and codes.

    Raises
    ------
    ValueError
        If y is not made of classes.
    """
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    return classes, codes
