r"""Two-layer ReLU networks without biases whose optimum is a formula or a small cone program.

A matrix A is spike-free when every (Au)_+ with \|u\| <= 1 equals Az with \|z\| <= 1 (and Az >= 0).
Then two neurons suffice, and the supremum of v'(Au)_+ is a cone program (Ergen and Pilanci,
arXiv 2002.11219, section 3 and eq. 22). Whitened rows, AA' = I, are spike-free and have a formula.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog, nnls  # type: ignore[attr-defined]

from ellzero.core.result import Certificate, Measure
from ellzero.errors import DataError
from ellzero.relu.certificate import read_samples
from ellzero.relu.conclusion import bound_in, conclude, gap_in
from ellzero.relu.losses import SquaredLoss
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.outputs import VectorReLU
from ellzero.relu.relaxation import bound_of, conic, relax
from ellzero.relu.separation import plane_neuron, search_neurons
from ellzero.validation import check_integer, check_real

Floats = NDArray[np.float64]

WHITE = 1e-10
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """A network with its value and the bound that proves it.

    Parameters
    ----------
    network : TwoLayerReLU or VectorReLU
        At most two neurons, or one for each class, balanced.
    value : float
        Loss plus penalty times the norm.
    certificate : Certificate
        Of the value and the bound; `lower_bound` and `gap` are its own.
    """

    network: TwoLayerReLU | VectorReLU
    value: float
    certificate: Certificate

    @property
    def lower_bound(self) -> float:
        """Proven bound below which no network of any width is."""
        return bound_in(self.certificate)

    @property
    def gap(self) -> float:
        """Relative distance of value and bound."""
        return gap_in(self.certificate)


def fit_whitened(X: ArrayLike, y: ArrayLike, penalty: float) -> ClosedForm:
    r"""Return the optimal network for whitened rows, XX' = I.

    .. math:: \min \frac{1}{2n} \|f(X) - y\|^2 + \lambda \sum_j |w_j| \|u_j\|,
        \quad f(X) = \sum_j w_j (X u_j)_+

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows of length one, orthogonal to each other.
    y : array-like of shape (n_samples,)
        Targets.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    ClosedForm
        One neuron for the positive targets, one for the negative ones; either is absent when n
        lambda is at least the norm of its targets.

    Raises
    ------
    DataError
        If XX' differs from I by more than 1e-10, or X or y is malformed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    Theorem 9 of arXiv 2002.11219: u = X'y_+ / \|y_+\| with the weight \|y_+\| - n lambda, and the
    same for y_- with the other sign. The supremum over neurons is the larger of the norms of v_+
    and v_-, so the gap is zero to rounding. O(n d).

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_whitened
    >>> fit_whitened(np.eye(2, 3), [3.0, -4.0], penalty=0.5).network.predict(np.eye(2, 3))
    array([ 2., -3.])
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    rows, targets = read_samples(X, y, logistic=False)
    n = len(rows)
    check_whitened(rows)
    hidden, outputs = [], []
    for sign in (1.0, -1.0):
        part = np.maximum(sign * targets, 0.0)
        size = float(np.linalg.norm(part))
        if size > n * penalty:
            hidden.append(rows.T @ part / size)
            outputs.append(sign * (size - n * penalty))
    network = _network(hidden, outputs, rows.shape[1])
    residual = (targets - network.predict(rows)) / n
    supremum = max(np.linalg.norm(np.maximum(s * residual, 0.0)) for s in (1.0, -1.0))
    return _proven(network, rows, targets, penalty, residual, float(supremum))


def check_whitened(rows: Floats) -> None:
    """Raise when rows are not orthogonal to each other and of length one, to 1e-10.

    Parameters
    ----------
    rows : ndarray of shape (n_samples, n_features)
        The rows.

    Raises
    ------
    DataError
        If they are not.
    """
    distance = float(np.abs(rows @ rows.T - np.eye(len(rows))).max()) if len(rows) else 0.0
    if distance > WHITE:
        raise DataError(
            f"Rows of X must be orthogonal and of length one, got XX' that is {distance:.2g} "
            "away from the identity.",
            "Whiten the rows first, or use fit_spike_free.",
        )


def spike_free_violation(A: ArrayLike) -> float:
    r"""Say how far a matrix is from being spike-free; 0 when it is.

    Parameters
    ----------
    A : array-like of shape (n_samples, n_features)
        The matrix.

    Returns
    -------
    float
        For matrices of full row rank the largest positive off-diagonal entry of the inverse of
        AA', relative to the geometric mean of its diagonal entries, or 0; the same for the
        representatives when rows are nonnegative multiples of them; inf for every other matrix
        of deficient rank.

    Raises
    ------
    DataError
        If A has NaN, infinite values or not two dimensions.

    Notes
    -----
    For full row rank, (s)_+'G(s)_+ <= s'Gs for all s, with G the inverse of AA', if and only if G
    has no positive off-diagonal entry. For deficient rank A must be C M with M of full row rank
    and spike-free, and C nonnegative with one positive entry in each row that is not zero.
    Theorem 5 of arXiv 2002.11219 calls wide Gaussian matrices spike-free; this holds only
    approximately: the signs of off-diagonal entries of G stay random, so that the probability is
    about 2^(-n (n - 1) / 2) at every width, while `spike_free_excess` tends to 1.
    O(n^2 (n + d)).

    Examples
    --------
    >>> from ellzero.relu import spike_free_violation
    >>> spike_free_violation([[1.0, 0.0], [0.5, 1.0]])
    0.0
    >>> spike_free_violation([[1.0], [-1.0]])
    inf
    """
    rows = _matrix(A)
    kept = _representatives(rows)
    m = len(kept)
    if m == 0:
        return 0.0
    sizes = np.linalg.svd(kept, compute_uv=False)
    if m > kept.shape[1] or sizes[-1] <= ROUNDING * sizes[0]:
        return float("inf")
    inverse = np.linalg.inv(kept @ kept.T)
    roots = np.sqrt(np.diag(inverse))
    shares = inverse / np.outer(roots, roots)
    np.fill_diagonal(shares, 0.0)
    worst = float(shares.max())
    return worst if worst > ROUNDING else 0.0


def is_spike_free(A: ArrayLike) -> bool:
    """Return whether a matrix is spike-free, to rounding.

    Parameters
    ----------
    A : array-like of shape (n_samples, n_features)
        The matrix.

    Returns
    -------
    bool
        Whether `spike_free_violation` is 0.

    Raises
    ------
    DataError
        If A has NaN, infinite values or not two dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import is_spike_free
    >>> is_spike_free(np.eye(3)), is_spike_free([[1.0], [-1.0]])
    (True, False)
    """
    return spike_free_violation(A) == 0.0


def spike_free_excess(
    A: ArrayLike, *, n_samples: int = 500, generator: np.random.Generator | None = None
) -> float:
    r"""Return the largest \|A^+(Au)_+\| / \|u\| found over u.

    Parameters
    ----------
    A : array-like of shape (n_samples, n_features)
        Matrix of full row rank.
    n_samples : int, default=500
        Random positive parts of Au; the best negative part for each is found exactly.
    generator : numpy.random.Generator or None, default=None
        Source of them; None uses seed 0.

    Returns
    -------
    float
        At least 1, and above it only if the matrix is not spike-free: a lower bound on the true
        excess.

    Raises
    ------
    DataError
        If A has not full row rank, NaN, infinite values or not two dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import spike_free_excess
    >>> bool(spike_free_excess(np.eye(3)) <= 1 + 1e-12)
    True
    """
    rows = _matrix(A)
    rng = np.random.default_rng(0) if generator is None else generator
    left, sizes, _ = np.linalg.svd(rows, full_matrices=False)
    if rows.shape[0] > rows.shape[1] or sizes[-1] <= ROUNDING * sizes[0]:
        raise DataError(
            f"A must have full row rank, got {rows.shape[0]} rows of rank "
            f"{int((sizes > ROUNDING * sizes[0]).sum())}.",
            "Use spike_free_violation, which takes any matrix.",
        )
    n = len(rows)
    # |A^+ s| = |white s|.
    white = left.T / sizes[:, None]
    worst = 1.0
    for k in range(max(n_samples, n)):
        # Every single sample, then random sets of samples that fire.
        fires = np.arange(n) == k if k < n else rng.random(n) < rng.random()
        if fires.all() or not fires.any():
            continue
        part = white[:, fires] @ np.abs(rng.standard_normal(int(fires.sum())))
        _, distance = nnls(white[:, ~fires], part)
        worst = max(worst, float(np.linalg.norm(part)) / max(float(distance), 1e-300))
    return worst


def fit_spike_free(X: ArrayLike, y: ArrayLike, penalty: float) -> ClosedForm:
    r"""Return the optimal network for spike-free data, by a cone program in two neurons.

    .. math:: \min \frac{1}{2n} \|X(p - q) - y\|^2 + \lambda (\|p\| + \|q\|),
        \quad Xp \ge 0, \; Xq \ge 0

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Spike-free data.
    y : array-like of shape (n_samples,)
        Targets.
    penalty : float
        The lambda. Must be positive.

    Returns
    -------
    ClosedForm
        At most two neurons, and the bound from the exact supremum, also a cone program.

    Raises
    ------
    DataError
        If X is not spike-free: there the program is above the optimum (by 0.6 to 22 % for
        Gaussian data in our measurements).
    IncompatibleError
        If Clarabel or cvxpy is not installed.
    InvalidParameterError
        If `penalty` is not positive.

    Notes
    -----
    Theorem 4 and eq. 22 of arXiv 2002.11219.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import fit_spike_free
    >>> found = fit_spike_free(np.diag([1.0, 2.0]), [3.0, -4.0], penalty=0.1)
    >>> found.network.n_neurons, found.gap < 1e-6
    (2, True)
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    rows, targets = read_samples(X, y, logistic=False)
    violation = spike_free_violation(rows)
    if violation > 0:
        raise DataError(
            f"X must be spike-free, got a violation of {violation:.2g}.",
            "Use ConvexReLURegressor, which needs nothing of the data.",
        )
    cp = conic()
    n, d = rows.shape
    size = float(np.linalg.norm(targets)) or 1.0
    width = float(np.linalg.norm(rows, 2)) or 1.0
    A, b = rows / width, targets / size
    one, two = cp.Variable(d), cp.Variable(d)
    # In units of targets and rows; the loss then is divided by size^2.
    level = n * penalty / (width * size)
    fit = 0.5 * cp.sum_squares(A @ (one - two) - b)
    program = cp.Problem(
        cp.Minimize(fit + level * (cp.norm(one, 2) + cp.norm(two, 2))),
        [A @ one >= 0, A @ two >= 0],
    )
    with warnings.catch_warnings():
        # The bound below says how accurate the answer is.
        warnings.filterwarnings("ignore", "Solution may be inaccurate")
        program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    parts = [np.asarray(part.value) * (size / width) for part in (one, two)]
    largest = max(float(np.linalg.norm(part)) for part in parts)
    hidden, outputs = [], []
    for sign, part in zip((1.0, -1.0), parts, strict=True):
        length = float(np.linalg.norm(part))
        if length > 1e-9 * max(largest, size / width * 1e-3):
            hidden.append(part / length)
            outputs.append(sign * length)
    network = _network(hidden, outputs, d)
    residual = (targets - network.predict(rows)) / n
    supremum = max(spike_free_supremum(rows, sign * residual) for sign in (1.0, -1.0))
    return _proven(network, rows, targets, penalty, residual, supremum)


def spike_free_supremum(A: Floats, point: Floats) -> float:
    """Return the supremum of v'Au over Au >= 0 and unit balls, from above.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Any matrix; for spike-free ones this is the supremum of v'(Au)_+.
    point : ndarray of shape (n_samples,)
        The dual point v.

    Returns
    -------
    float
        The norm of A'(v + z) for the best z >= 0: by duality never below the supremum, equal to it
        to rounding.
    """
    # Lawson and Hanson's method: min over z >= 0 of |A'v + A'z|.
    multipliers, _ = nnls(A.T, -A.T @ point, maxiter=50 * len(point) + 100)
    return float(np.linalg.norm(A.T @ (point + multipliers)))


def check_l0_l1(
    X: ArrayLike,
    y: ArrayLike,
    *,
    max_rounds: int = 40,
    generator: np.random.Generator | None = None,
) -> Certificate:
    r"""Test on given data whether the fewest neurons are also those of least norm.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Data of full row rank.
    y : array-like of shape (n_samples,)
        Targets of both signs.
    max_rounds : int, default=40
        Most linear programs.
    generator : numpy.random.Generator or None, default=None
        Source of the starts of the search for neurons; None uses seed 0.

    Returns
    -------
    Certificate
        OPTIMAL when it is proven to 1e-6 that the two neurons X^+y_+ and X^+y_- interpolate with
        the least norm of all networks, else GAP; `lower_bound` and `gap` say by how much the
        norm may be too large. `measures` has "norm", "n_neurons" and the least supremum of
        a dual point of the two, between "supremum_at_least" and "supremum_at_most": the two
        neurons are optimal if and only if it is 1.

    Raises
    ------
    DataError
        If X has not full row rank, or y not both signs.

    Notes
    -----
    For full row rank and targets of both signs no network with one neuron interpolates, and the
    two above do (arXiv 2002.11219, Lemmas 9 and 10). Their norm \|X^+y_+\| + \|X^+y_-\| is the
    least one if some v with v'y_+ = \|X^+y_+\| and v'y_- = -\|X^+y_-\| has
    sup \|v'(Xu)_+\| <= 1. Linear programs choose v against the neurons found so far; their value
    is a bound from below, so that a value above 1 refutes. The supremum at the last v is exact for
    spike-free data and in the plane, and bounded by `ellzero.relu.relaxation` otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import check_l0_l1
    >>> check_l0_l1(np.eye(3), [1.0, -2.0, 3.0]).claim.name
    'OPTIMAL'
    """
    check_integer("max_rounds", max_rounds, low=1)
    rows, targets = read_samples(X, y, logistic=False)
    sizes = np.linalg.svd(rows, compute_uv=False)
    if rows.shape[0] > rows.shape[1] or sizes[-1] <= ROUNDING * sizes[0]:
        rank = int((sizes > ROUNDING * sizes[0]).sum())
        raise DataError(
            f"X must have full row rank, got rank {rank} with {len(rows)} rows.",
            "There, two neurons do not interpolate every y.",
        )
    if targets.max() <= 0 or targets.min() >= 0:
        raise DataError(
            "y must have both signs, got one.", "Then one neuron, X^+y, is both answers."
        )
    rng = np.random.default_rng(0) if generator is None else generator
    # Only the part of u in the row space matters: n features do, in its coordinates.
    left, scales, _ = np.linalg.svd(rows, full_matrices=False)
    rows = left * scales
    inverse = np.linalg.inv(rows)
    parts = np.maximum(targets, 0.0), np.maximum(-targets, 0.0)
    neurons = [inverse @ part for part in parts]
    lengths = [float(np.linalg.norm(neuron)) for neuron in neurons]
    norm = sum(lengths)
    fixed = np.array([parts[0] / lengths[0], parts[1] / lengths[1]])
    exact = is_spike_free(rows)
    known = fixed.copy()
    least, best, point = 1.0, np.inf, np.zeros(len(rows))
    rounds = 0
    while rounds < max_rounds:
        rounds += 1
        least, trial = _least_supremum(known, fixed)
        top, fresh = _supremum(rows, trial, rng, exact=exact)
        if top < best:
            best, point = top, trial
        if best <= 1 + 1e-9 or least > 1 + 1e-6 or not len(fresh):
            break
        active = np.maximum(rows @ fresh.T, 0.0).T
        active = active[np.abs(active @ trial) > least * (1 + 1e-10)]
        if not len(active):
            break
        known = np.vstack([known, active])
    top = best if exact or rows.shape[1] == 2 else _relaxed(rows, point, rng)
    top = max(top, 1.0)
    measures: dict[str, Measure] = {
        "norm": norm,
        "n_neurons": 2,
        "supremum_at_least": max(least, 1.0),
        "supremum_at_most": top,
        "rounds": rounds,
    }
    return conclude(norm, float(point @ targets) / top, measures)


def _least_supremum(known: Floats, fixed: Floats) -> tuple[float, Floats]:
    """Return the least t with |v'q| <= t for known q, and v'q = 1 and -1 for the fixed two."""
    k, n = known.shape
    found = linprog(
        np.concatenate([np.zeros(n), [1.0]]),
        A_ub=np.vstack(
            [np.column_stack([known, -np.ones(k)]), np.column_stack([-known, -np.ones(k)])]
        ),
        b_ub=np.zeros(2 * k),
        A_eq=np.column_stack([fixed, np.zeros(2)]),
        b_eq=np.array([1.0, -1.0]),
        bounds=[(-1e4, 1e4)] * n + [(0, None)],
        method="highs",
    )
    return float(found.fun), np.asarray(found.x[:n])


def _supremum(
    rows: Floats, point: Floats, rng: np.random.Generator, *, exact: bool
) -> tuple[float, Floats]:
    """Return the supremum at a point as found, and neurons that are near it."""
    tops, neurons = [], []
    for sign in (1.0, -1.0):
        if rows.shape[1] == 2:
            value, neuron = plane_neuron(rows, sign * point)
            tops.append(value)
            neurons.append(neuron[None])
            continue
        values, found = search_neurons(rows, sign * point, rng, n_starts=60, n_iter=60)
        neurons.append(found[:5])
        tops.append(spike_free_supremum(rows, sign * point) if exact else float(values[0]))
    return max(tops), np.vstack(neurons)


def _relaxed(rows: Floats, point: Floats, rng: np.random.Generator) -> float:
    """Return an upper bound on the supremum at a point."""
    tops = []
    for sign in (1.0, -1.0):
        starts = search_neurons(rows, sign * point, rng, n_starts=60, n_iter=60)[1]
        tops.append(bound_of(rows, sign * point, relax(rows, sign * point, starts)[1]))
    return max(tops)


def _matrix(A: ArrayLike) -> Floats:
    """Return a matrix in float64, or raise with what is wrong."""
    rows = np.asarray(A, dtype=np.float64)
    if rows.ndim != 2:
        raise DataError(f"A must have two dimensions, got {rows.ndim}.")
    if not np.isfinite(rows).all():
        raise DataError("A contains NaN or infinite values.")
    return rows


def _representatives(rows: Floats) -> Floats:
    """Return one unit row for every ray that rows lie on."""
    lengths = np.linalg.norm(rows, axis=1)
    units = rows[lengths > 0] / lengths[lengths > 0, None]
    kept: list[Floats] = []
    for unit in units:
        if all(float(np.linalg.norm(unit - other)) > ROUNDING for other in kept):
            kept.append(unit)
    return np.array(kept).reshape(len(kept), rows.shape[1])


def _network(hidden: list[Floats], outputs: list[float], n_features: int) -> TwoLayerReLU:
    """Return unit neurons with their weights, balanced, without biases."""
    neurons = np.array(hidden).reshape(len(hidden), n_features)
    return TwoLayerReLU(neurons, None, np.array(outputs), None).balanced()


def _proven(
    network: TwoLayerReLU,
    rows: Floats,
    y: Floats,
    penalty: float,
    residual: Floats,
    supremum: float,
) -> ClosedForm:
    """Return a network with its value and the bound of its residual."""
    loss = SquaredLoss()
    fit = loss.value(network.predict(rows), y)
    value = fit + penalty * network.norm
    largest = penalty / supremum if supremum > 0 else 1e300
    scale = loss.best_scale(residual, y, min(largest, 1e300))
    measures: dict[str, Measure] = {
        "n_neurons": network.n_neurons,
        "norm": network.norm,
        "loss": fit,
        "supremum_over_penalty": supremum / penalty,
    }
    bound = max(loss.dual(scale * residual, y), 0.0)
    zero = loss.value(np.zeros_like(y), y)
    return ClosedForm(network, value, conclude(value, bound, measures, scale=zero))
