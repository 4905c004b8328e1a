r"""Whitened rows, XX' = I: optimal networks for the hinge loss and for classes, as formulas.

The neurons are those that point to the mean of a class; the penalty switches classes off one
after another (Ergen and Pilanci, arXiv 2002.11219, Theorems 12 and 15).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ellzero.core.result import Measure
from ellzero.errors import DataError
from ellzero.relu.certificate import read_samples
from ellzero.relu.closed_forms import ClosedForm, check_whitened
from ellzero.relu.conclusion import conclude
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.outputs import VectorReLU
from ellzero.validation import check_real

Floats = NDArray[np.float64]


def fit_whitened_hinge(X: ArrayLike, y: ArrayLike, penalty: float) -> ClosedForm:
    r"""Return an optimal network of the hinge loss for whitened rows.

    .. math:: \min \frac{1}{n} \sum_i \max(1 - y_i f(x_i), 0) + \lambda \sum_j |w_j| \|u_j\|

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of length one, orthogonal to each other.
    y : array-like of shape (n_samples,)
        Two classes; the larger one counts as 1, the other as -1.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    ClosedForm
        One neuron for each class whose root of the number of samples is above n lambda.

    Raises
    ------
    DataError
        If XX' differs from I by more than 1e-10, there are not two classes, or X or y is
        malformed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    Theorem 12 of arXiv 2002.11219: u = X'1_+ / \sqrt{n_+} with the weight \sqrt{n_+} if n lambda
    < \sqrt{n_+}, else none (at equality everything between is optimal); mirrored for the other
    class. The dual point is y_i min(1, n lambda / \sqrt{n_i}) / n with n_i the size of the class
    of i, and its supremum max(\|v_+\|, \|v_-\|) is exact. O(n^2 d) for the check of X.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_whitened_hinge
    >>> found = fit_whitened_hinge(np.eye(3), [1, 1, -1], penalty=0.4)
    >>> found.network.n_neurons, round(found.value, 6), found.gap < 1e-12
    (1, 0.899019, True)
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    rows, labels = read_samples(X, y, logistic=True)
    check_whitened(rows)
    n = len(rows)
    beta = n * penalty
    hidden, weights, point = [], [], np.zeros(n)
    for sign in (1.0, -1.0):
        part = (labels == sign).astype(np.float64)
        size = float(np.sqrt(part.sum()))
        point += sign * part * min(1.0, beta / size) / n
        if beta < size:
            hidden.append(rows.T @ part / size)
            weights.append(sign * size)
    network = TwoLayerReLU(
        np.array(hidden).reshape(len(hidden), rows.shape[1]), None, np.array(weights), None
    ).balanced()
    loss = float(np.mean(np.maximum(1.0 - labels * network.predict(rows), 0.0)))
    value = loss + penalty * network.norm
    supremum = max(float(np.linalg.norm(np.maximum(s * point, 0.0))) for s in (1.0, -1.0))
    # Both in their ranges already; the scale is rounding.
    bound = min(1.0, penalty / supremum) * float(point @ labels)
    measures: dict[str, Measure] = {
        "n_neurons": network.n_neurons,
        "norm": network.norm,
        "loss": loss,
        "supremum_over_penalty": supremum / penalty,
    }
    return ClosedForm(network, value, conclude(value, bound, measures, scale=1.0))


def fit_whitened_classes(X: ArrayLike, y: ArrayLike, penalty: float) -> ClosedForm:
    r"""Return the optimal network of squared loss on one-hot classes for whitened rows.

    .. math:: \min \frac{1}{2n} \|F - Y\|_F^2 + \lambda \sum_j \|w_j\| \|u_j\|, \quad
        F = \sum_j (X u_j)_+ w_j^\top

    with Y the indicators of the classes, one column for each.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of length one, orthogonal to each other.
    y : array-like of shape (n_samples,)
        Classes, one or more; outputs are in their sorted order.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    ClosedForm
        One neuron for each class whose root of the number of samples is above n lambda; its
        `network` is a `VectorReLU`.

    Raises
    ------
    DataError
        If XX' differs from I by more than 1e-10, or X or y is malformed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    Theorem 15 of arXiv 2002.11219: u_j = X'y_j / \|y_j\| with y_j the indicator of class j and
    w_j = (\sqrt{n_j} - n lambda) e_j. The supremum of \|V'(Xu)_+\| over the unit ball is the
    largest norm of a column of V, because every sample belongs to one class. The same weights are
    optimal when \|w_j\| is the l1 norm. O(n^2 d) for the check of X.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_whitened_classes
    >>> found = fit_whitened_classes(np.eye(6), [0, 0, 0, 0, 1, 2], penalty=0.2)
    >>> found.network.n_neurons, found.gap < 1e-12
    (1, True)
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise DataError(
            f"y must hold one class for each sample, got the shape {labels.shape}.",
            "Pass `Y.argmax(axis=1)` for one-hot rows.",
        )
    classes, codes = np.unique(labels, return_inverse=True)
    rows, _ = read_samples(X, codes.astype(np.float64), logistic=False)
    check_whitened(rows)
    n, k = len(rows), len(classes)
    Y = np.where(codes[:, None] == np.arange(k), 1.0, 0.0)
    sizes = np.sqrt(Y.sum(axis=0))
    kept = np.flatnonzero(sizes > n * penalty)
    lengths = sizes[kept] - n * penalty
    roots = np.sqrt(lengths)
    network = VectorReLU(
        (roots / sizes[kept])[:, None] * (Y[:, kept].T @ rows),
        None,
        roots[:, None] * np.eye(k)[kept],
        None,
    )
    residual = (Y - network.predict(rows)) / n
    loss = 0.5 * n * float((residual**2).sum())
    value = loss + penalty * network.norm
    supremum = float(np.linalg.norm(residual, axis=0).max())
    square = n * float((residual**2).sum())
    top = float((residual * Y).sum())
    scale = min(penalty / supremum, top / square)
    bound = scale * top - 0.5 * scale**2 * square
    measures: dict[str, Measure] = {
        "n_neurons": network.n_neurons,
        "norm": network.norm,
        "loss": loss,
        "supremum_over_penalty": supremum / penalty,
    }
    return ClosedForm(network, value, conclude(value, bound, measures, scale=0.5))
