r"""Cutting planes over relaxed neurons, as printed, and the removal of needless neurons.

Algorithm 1 of Ergen and Pilanci (arXiv 2002.11219) looks for neurons among those that are active
on every sample, \{u : Au >= 0\}. A network of such neurons is linear on the samples, so the
algorithm finds the optimum for spike-free data only; for centered data 0 is the only candidate and
the answer is the zero network. `ConvexReLURegressor` generates activation patterns instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog, nnls  # type: ignore[attr-defined]

from ellzero.errors import DataError, IncompatibleError
from ellzero.relu.certificate import read_samples
from ellzero.relu.network import TwoLayerReLU
from ellzero.validation import check_integer, check_real

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CuttingPlanes:
    """What the algorithm as printed gives.

    Parameters
    ----------
    network : TwoLayerReLU
        The network, without biases.
    value : float
        Half the mean square plus penalty times the norm.
    history : tuple of float
        The value after each round, the zero network first.
    stopped : bool
        Whether no relaxed neuron violates the dual: the algorithm's own test of optimality.
    """

    network: TwoLayerReLU
    value: float
    history: tuple[float, ...]
    stopped: bool


def relaxed_cutting_planes(
    X: ArrayLike, y: ArrayLike, penalty: float, *, max_rounds: int = 100, tol: float = 1e-9
) -> CuttingPlanes:
    r"""Run Algorithm 1 of arXiv 2002.11219, for the penalized problem.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Samples. The result is optimal if they are spike-free, and only then.
    y : array-like of shape (n_samples,)
        Targets.
    penalty : float
        Weight of sum_j \|w_j\| \|u_j\|. Must be positive.
    max_rounds : int, default=100
        Most rounds; each adds at most two neurons.
    tol : float, default=1e-9
        How far a neuron may violate the dual, relative to `penalty`.

    Returns
    -------
    CuttingPlanes
        The network, and whether the algorithm believes it optimal.

    Raises
    ------
    DataError
        If X or y is malformed.
    InvalidParameterError
        If `penalty` is not positive, or another setting is out of range.

    See Also
    --------
    is_spike_free : Whether the result is optimal.

    Notes
    -----
    Each round takes u with the largest v'Xu and u with the smallest over Xu >= 0 and unit balls,
    for the residual v, and solves the problem over the neurons so far; those with weight 0 are
    dropped, and it stops when the value no longer falls. The listing prints the
    full dual in the second step, which would be the problem itself.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import relaxed_cutting_planes
    >>> centered = np.array([[1.0, 2.0], [-3.0, 1.0], [2.0, -3.0]])
    >>> found = relaxed_cutting_planes(centered, [1.0, 2.0, -1.0], 0.01)
    >>> found.network.n_neurons, found.stopped
    (0, True)
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    check_integer("max_rounds", max_rounds, low=1)
    check_real("tol", tol, low=0.0)
    rows, targets = read_samples(X, y, logistic=False)
    n, d = rows.shape
    neurons, active = np.zeros((0, d)), np.zeros((n, 0))
    weights = np.zeros(0)
    history = [0.5 * float(np.mean(targets**2))]
    stopped = False
    while len(history) <= max_rounds and not stopped:
        residual = (targets - active @ weights) / n
        fresh = []
        for sign in (1.0, -1.0):
            value, neuron = relaxed_neuron(rows, sign * residual)
            if value > penalty * (1 + tol):
                fresh.append(neuron)
        stopped = not fresh
        if stopped:
            break
        neurons = np.vstack([neurons, *[u[None] for u in fresh]])
        active = np.maximum(rows @ neurons.T, 0.0)
        weights = _lasso(active, targets, n * penalty)
        fit = 0.5 * float(np.mean((active @ weights - targets) ** 2))
        history.append(fit + penalty * float(np.abs(weights).sum()))
        kept = weights != 0
        neurons, active, weights = neurons[kept], active[:, kept], weights[kept]
        if history[-1] > history[-2] * (1 - 1e-13):
            break
    network = TwoLayerReLU(neurons, None, weights, None).balanced()
    return CuttingPlanes(network, history[-1], tuple(history), stopped)


def relaxed_neuron(A: Floats, point: Floats) -> tuple[float, Floats]:
    """Return the neuron with the largest v'Au among those active on every sample.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.

    Returns
    -------
    value : float
        The largest v'Au over Au >= 0 and the unit ball; 0 where only u = 0 is left.
    neuron : ndarray of shape (n_inputs,)
        A unit vector that attains it, or 0.
    """
    multipliers, _ = nnls(A.T, -A.T @ point, maxiter=50 * len(point) + 100)
    projection = A.T @ (point + multipliers)
    value = float(np.linalg.norm(projection))
    if value <= 1e-12 * float(np.abs(point) @ np.linalg.norm(A, axis=1)):
        return 0.0, np.zeros(A.shape[1])
    return value, projection / value


def prune(network: TwoLayerReLU, X: ArrayLike) -> TwoLayerReLU:
    r"""Remove neurons that samples do not need: same outputs on X, norm not larger.

    Parameters
    ----------
    network : TwoLayerReLU
        Any network; `TwoLayerReLU.from_module` makes one of a module.
    X : array-like of shape (n_samples, n_features)
        Samples on which outputs are kept.

    Returns
    -------
    TwoLayerReLU
        At most as many neurons as samples, a subset of the given ones with other weights of the
        same signs, balanced.

    Raises
    ------
    IncompatibleError
        If X has another number of features.
    DataError
        If X has NaN, infinite values or not two dimensions.

    Notes
    -----
    A vertex of the linear program min sum_j a_j over a_j >= 0 with the same outputs has at most
    as many positive entries as samples (Caratheodory; arXiv 2002.11219, section 2, bounds the
    optimal width by n + 1 this way). For an optimal network the norm cannot fall, so the objective
    stays; for others it may. The dual simplex method of HiGHS finds the vertex.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import TwoLayerReLU, prune
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((5, 3))
    >>> wide = TwoLayerReLU(rng.standard_normal((40, 3)), None, rng.standard_normal(40), None)
    >>> small = prune(wide, X)
    >>> small.n_neurons <= 5, bool(np.allclose(small.predict(X), wide.predict(X)))
    (True, True)
    """
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"X must have two dimensions, got {rows.ndim}.", "Use X.reshape(-1, 1).")
    if not np.isfinite(rows).all():
        raise DataError("X contains NaN or infinite values.", "Impute or drop these rows.")
    if rows.shape[1] != network.hidden.shape[1]:
        raise IncompatibleError(
            f"The network has {network.hidden.shape[1]} inputs and X has {rows.shape[1]} columns.",
            "Pass samples as the network takes them.",
        )
    balanced = network.balanced()
    sizes = np.linalg.norm(balanced.directions, axis=1)
    active = np.maximum(balanced.design(rows) @ (balanced.directions / sizes[:, None]).T, 0.0)
    heard = active.max(axis=0, initial=0.0) > 0
    signs, start = np.sign(balanced.outputs), sizes * np.abs(balanced.outputs)
    design = active[:, heard] * signs[heard]
    weights = np.zeros(len(sizes))
    if heard.any():
        weights[heard] = _vertex(design, start[heard])
    return TwoLayerReLU(
        balanced.hidden / sizes[:, None],
        None if balanced.biases is None else balanced.biases / sizes,
        signs * weights,
        balanced.intercept,
    ).balanced()


def _vertex(design: Floats, start: Floats) -> Floats:
    """Return a vertex of min sum a over a >= 0 with the products of start."""
    unit = float(np.abs(design).max())
    outputs = design @ start
    size = float(np.abs(outputs).max()) or 1.0
    found = linprog(
        np.ones(len(start)),
        A_eq=design / unit,
        b_eq=outputs / size,
        bounds=(0, None),
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
        return start
    chosen = np.flatnonzero(found.x > 1e-12 * max(float(found.x.max()), 1e-300))
    weights = np.zeros(len(start))
    # The program's tolerance is absolute; on its own columns the fit is solved to rounding.
    solved = np.linalg.lstsq(design[:, chosen], outputs, rcond=None)[0]
    if (solved >= 0).all():
        weights[chosen] = solved
    else:
        weights[chosen] = found.x[chosen] * (size / unit)
    return weights


def _lasso(design: Floats, y: Floats, level: float) -> Floats:
    """Return the minimizer of half the squares plus level times the l1 norm.

    Its residual is the projection of y on the dual's polytope |q'v| <= level, a least-distance
    problem that nonnegative least squares solve in finitely many steps (Lawson and Hanson,
    Solving Least Squares Problems, chapter 23).
    """
    size = float(np.linalg.norm(y))
    if size == 0:
        return np.zeros(design.shape[1])
    unit = float(np.abs(design).max())
    scaled, bound = design / unit, level / (unit * size)
    products = scaled.T @ (y / size)
    stacked = np.vstack(
        [np.hstack([-scaled, scaled]), np.concatenate([products - bound, -products - bound])]
    )
    target = np.append(np.zeros(len(y)), 1.0)
    found, _ = nnls(stacked, target, maxiter=100 * stacked.shape[1] + 1000)
    share = 1.0 - float(stacked[-1] @ found)
    k = design.shape[1]
    return np.asarray((found[:k] - found[k:]) / share * (size / unit))
