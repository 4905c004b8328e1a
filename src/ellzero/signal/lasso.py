"""Signals on any graph as arrays, and the estimate with the l1 norm for the count of nonzeros."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ellzero.errors import NotConvergedError
from ellzero.kernels.chain import solve_runs
from ellzero.signal.solution import Bools, Floats, Integers

# Exchanges of the active set before gradient steps find a better one, gradient steps, and rounds.
EXCHANGES, GRADIENT_STEPS, ROUNDS = 100, 2000, 20
# Slope that counts as none, relative to the largest pull of the data.
FLAT = 1e-11


@dataclass(frozen=True)
class Network:
    """Data on any graph.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Samples; finite everywhere, also where the weight is 0.
    weights : ndarray of shape (n,)
        Weights, at least 0; 0 for missing samples.
    first, second : ndarray of shape (n_edges,), int64
        Ends of the edges.
    edges : ndarray of shape (n_edges,)
        Smoothness weight of every edge, at least 0.
    nonnegative : bool, default=False
        Whether the signal must not be negative.
    """

    y: Floats
    weights: Floats
    first: Integers
    second: Integers
    edges: Floats
    nonnegative: bool = False

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.y.shape[0])

    @cached_property
    def is_chain(self) -> bool:
        """Whether edge i joins node i to the next one, for every i."""
        here = np.arange(self.size - 1)
        return (
            self.first.shape == here.shape
            and bool((self.first == here).all())
            and bool((self.second == here + 1).all())
        )

    @cached_property
    def matrix(self) -> Any:
        """Weights plus Laplacian, a sparse matrix of shape (n, n)."""
        from scipy.sparse import coo_matrix, diags

        i, j, here = self.first, self.second, np.arange(self.size)
        off = coo_matrix((self.edges, (i, j)), shape=(self.size, self.size)).tocsr()
        off = off + off.T
        degrees = np.zeros(self.size)
        np.add.at(degrees, i, self.edges)
        np.add.at(degrees, j, self.edges)
        return (diags(self.weights + degrees) - off).tocsc()[here]

    @cached_property
    def reached(self) -> Bools:
        """Nodes in a part of the graph that has a weight; all others are best at zero."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        kept = self.edges > 0
        graph = coo_matrix(
            (np.ones(int(kept.sum())), (self.first[kept], self.second[kept])),
            shape=(self.size, self.size),
        )
        n_parts, labels = connected_components(graph, directed=False)
        has = np.zeros(n_parts, dtype=np.bool_)
        has[labels[self.weights > 0]] = True
        return np.asarray(has[labels])

    def solve(self, right: Floats, on: Bools) -> Floats:
        """Return the solution of ``matrix @ x = right`` on a support, zero elsewhere."""
        if self.is_chain and (self.weights > 0).all():
            return np.asarray(solve_runs(right / self.weights, self.weights, self.edges, on))
        from scipy.sparse.linalg import spsolve

        out = np.zeros(self.size)
        at = np.flatnonzero(on & self.reached)
        # Parts of the support that hang on nothing are left at zero.
        if at.size:
            part = self.matrix[at][:, at].tocsc()
            held = np.asarray(part.sum(axis=0)).ravel() > 1e-14 * part.diagonal()
            if not held.all():
                at = at[_held(part, held)]
                part = self.matrix[at][:, at].tocsc()
            out[at] = spsolve(part, right[at])
        return out

    def domains(self) -> tuple[Floats, Floats]:
        """Return bounds between which the best signal on any support lies."""
        every = np.ones(self.size, dtype=np.bool_)
        high = self.solve(self.weights * np.maximum(self.y, 0.0), every)
        if self.nonnegative:
            return np.zeros(self.size), np.maximum(high, 0.0)
        low = -self.solve(self.weights * np.maximum(-self.y, 0.0), every)
        return np.minimum(low, 0.0), np.maximum(high, 0.0)

    def refit(self, support: Bools) -> Floats:
        """Return the best signal on a support."""
        if not self.nonnegative:
            return self.solve(self.weights * self.y, support)
        return solve_l1(self, 0.0, support=support)

    def value(self, signal: Floats) -> float:
        """Return fit plus smoothness."""
        steps = signal[self.first] - signal[self.second]
        return float(self.weights @ (signal - self.y) ** 2 + self.edges @ steps**2)


def _held(part: Any, held: Bools) -> Bools:
    """Return which nodes of a matrix are joined to one that is held."""
    from scipy.sparse.csgraph import connected_components

    n_parts, labels = connected_components(part, directed=False)
    has = np.zeros(n_parts, dtype=np.bool_)
    has[labels[held]] = True
    return np.asarray(has[labels])


def solve_l1(
    network: Network,
    penalty: float,
    *,
    support: Bools | None = None,
    start: Floats | None = None,
) -> Floats:
    r"""Return the signal with the l1 norm in place of the count of nonzeros.

    .. math:: \min_x \sum_i w_i (y_i - x_i)^2 + \sum_{(i, j)} \lambda_{ij} (x_i - x_j)^2
        + \mu \|x\|_1

    Parameters
    ----------
    network : Network
        Data.
    penalty : float
        Weight of the l1 norm, at least 0.
    support : ndarray of shape (n,), bool, or None, default=None
        Nodes that may differ from zero; None means all.
    start : ndarray of shape (n,) or None, default=None
        Signal whose signs are tried first.

    Returns
    -------
    ndarray of shape (n,)
        The minimizer: slopes are zero, to 1e-11 of the largest pull of the data.

    Raises
    ------
    NotConvergedError
        If neither exchanges nor gradient steps end.

    Notes
    -----
    A primal-dual active set: solve for the signs, and change those that the slopes refute. For
    nonnegative signals it ends, because the matrix is an M-matrix; a few systems suffice. For free
    signs a sign turns by way of zero; should that cycle, accelerated proximal gradient steps give
    a new start.

    References
    ----------
    .. [1] M. Hintermueller, K. Ito and K. Kunisch, "The primal-dual active set strategy as a
       semismooth Newton method", SIAM Journal on Optimization 13(3), 2003.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.signal.lasso import Network, solve_l1
    >>> y = np.array([0.1, 3.0, 3.2, -0.1])
    >>> here = np.arange(3)
    >>> network = Network(y, np.ones(4), here, here + 1, np.zeros(3))
    >>> solve_l1(network, 1.0).round(3).tolist()
    [0.0, 2.5, 2.7, 0.0]
    """
    pull = network.weights * network.y
    allowed = network.reached if support is None else support & network.reached
    if not allowed.any():
        return np.zeros(network.size)
    half = penalty / 2
    matrix, diagonal = network.matrix, np.maximum(network.matrix.diagonal(), 1e-300)
    flat = FLAT * max(float(np.abs(pull).max()), half)
    signal = network.solve(pull, allowed) if start is None else start
    signs = _signs(network, signal, pull - matrix @ signal, half, diagonal, allowed)
    for _ in range(ROUNDS):
        for _ in range(EXCHANGES):
            signal = network.solve(pull - half * signs, signs != 0)
            slope = pull - matrix @ signal
            fresh = _signs(network, signal, slope, half, diagonal, allowed)
            if _settled(signal, slope, half, allowed, network.nonnegative, flat):
                return np.where(signs * signal > 0, signal, 0.0)
            # A sign that turns stops at zero first: turning at once makes cycles.
            fresh[fresh * signs < 0] = 0.0
            if (fresh == signs).all():
                break
            signs = fresh
        signal = _descend(network, signal * (signs * signal > 0), pull, half, allowed)
        slope = pull - matrix @ signal
        signs = _signs(network, signal, slope, half, diagonal, allowed)
    raise NotConvergedError(
        f"The l1 estimate did not settle within {ROUNDS * EXCHANGES} systems.",
        "Use weights and smoothness that are closer together.",
    )


def _signs(
    network: Network, signal: Floats, slope: Floats, half: float, diagonal: Floats, allowed: Bools
) -> Floats:
    """Return the signs that a step along the slope would give."""
    moved = diagonal * signal + slope
    if not network.nonnegative:
        return np.where(allowed & (np.abs(moved) > half), np.sign(moved), 0.0)
    return np.where(allowed & (moved > half), 1.0, 0.0)


def _settled(
    signal: Floats, slope: Floats, half: float, allowed: Bools, nonnegative: bool, flat: float
) -> bool:
    """Return whether no slope points to a smaller value."""
    on = signal != 0
    wrong = np.where(on, np.abs(slope - half * np.sign(signal)), np.abs(slope) - half)
    if nonnegative:
        wrong = np.where(on, np.abs(slope - half), slope - half)
        if (signal < 0).any():
            return False
    return bool((wrong[allowed] <= flat).all())


def _descend(
    network: Network, signal: Floats, pull: Floats, half: float, allowed: Bools
) -> Floats:
    """Return the signal after accelerated proximal gradient steps."""
    matrix = network.matrix
    steepness = float(2 * matrix.diagonal().max())
    ahead, momentum = signal, 1.0
    for _ in range(GRADIENT_STEPS):
        moved = ahead + (pull - matrix @ ahead) / steepness
        size = moved if network.nonnegative else np.abs(moved)
        fresh = np.where(allowed, np.sign(moved) * np.maximum(size - half / steepness, 0.0), 0.0)
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        step = fresh - signal
        if float((ahead - fresh) @ step) > 0:
            grown = 1.0
        ahead, momentum, signal = fresh + (momentum - 1) / grown * step, grown, fresh
    return signal
