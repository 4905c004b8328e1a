r"""Lower bounds in closed form from the multipliers of a convexification.

Every convexification splits the objective into blocks of one or two nodes and shares the linear
term and the price of a nonzero among them. For *any* shares the sum over blocks of their least
value is below the optimum of the whole, so that a bound does not depend on the accuracy of the
solver that proposed the shares; only rounding is taken off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ellzero.signal.lasso import Network
from ellzero.signal.solution import Bools, Floats, Integers

# Rounding of one term, relative to its magnitude.
ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class Shares:
    """What the blocks of edges get of unary weights, linear terms and prices.

    Parameters
    ----------
    weights : ndarray of shape (2, n_edges)
        Unary weight of both ends; the nodes' own blocks have the rest.
    pulls : ndarray of shape (2, n_edges)
        Linear term of both ends: a block is charged ``- pull * x``.
    prices : ndarray of shape (2, n_edges)
        Price of a nonzero at both ends.
    """

    weights: Floats
    pulls: Floats
    prices: Floats


def bound_of_shares(
    network: Network,
    shares: Shares,
    price: float,
    budget: int | None,
    low: Floats,
    high: Floats,
    *,
    indicators: bool = True,
) -> float:
    """Return a lower bound on the objective that holds for any shares.

    Parameters
    ----------
    network : Network
        Data.
    shares : Shares
        What the blocks of edges get; shares of weights are at least 0 and, at a node, at most its
        weight. A linear term that an edge alone cannot hold is moved to the nodes.
    price : float
        Cost of a nonzero, at least 0: the penalty, or any multiplier of the budget.
    budget : int or None
        Most nonzeros; None in the penalized form.
    low, high : ndarray of shape (n,)
        Bounds of an optimal signal; used at nodes whose own blocks have no weight.
    indicators : bool, default=True
        Whether blocks of edges know what is on; otherwise they are plain quadratics.

    Returns
    -------
    float
        The bound; terms are summed without error, and a margin for rounding is taken off.
    """
    i, j, edges = network.first, network.second, network.edges
    n = network.size
    own = network.weights - _at_nodes(n, i, j, shares.weights)
    # What rounding has left of a weight that was given away.
    own = np.where(own < 1e-12 * network.weights, 0.0, own)
    definite: Bools = np.any(shares.weights > 0, axis=0)
    tied = (shares.pulls[0] - shares.pulls[1]) / 2
    pulls = np.where(definite, shares.pulls, np.stack([tied, -tied]))
    left = 2 * network.weights * network.y - _at_nodes(n, i, j, pulls)
    # Nodes without a block of their own hand what is left to the edges that can hold it.
    degree = _at_nodes(n, i, j, np.stack([definite, definite]).astype(np.float64))
    shared = (own == 0) & (network.weights > 0) & (degree > 0)
    given = np.where(shared, left / np.maximum(degree, 1), 0.0)
    pulls = pulls + np.where(definite, np.stack([given[i], given[j]]), 0.0)
    left = np.where(shared, 0.0, left)
    rest = price - _at_nodes(n, i, j, shares.prices)
    values = np.concatenate(
        [
            _of_nodes(own, left, rest, low, high, network.nonnegative),
            _of_edges(edges, shares, pulls, definite, network.nonnegative, indicators),
        ]
    )
    constant = float(network.weights @ network.y**2)
    spent = 0.0 if budget is None else price * budget
    scale = float(np.abs(values).sum()) + constant + spent
    return math.fsum([*values.tolist(), constant, -spent]) - ROUNDING * scale


def bound_of_boxes(
    network: Network, steps: Floats, price: float, budget: int | None, low: Floats, high: Floats
) -> float:
    """Return a lower bound on the objective with ``low * z <= x <= high * z`` and z relaxed.

    Parameters
    ----------
    network : Network
        Data.
    steps : ndarray of shape (n_edges,)
        Differences along the edges at a point that is nearly optimal; any are right.
    price : float
        Cost of a nonzero, at least 0.
    budget : int or None
        Most nonzeros; None in the penalized form.
    low, high : ndarray of shape (n,)
        Bounds of an optimal signal, at most and at least 0.

    Returns
    -------
    float
        The bound.
    """
    pull = 2 * network.edges * steps
    left = 2 * network.weights * network.y - _at_nodes(
        network.size, network.first, network.second, np.stack([pull, -pull])
    )
    weights = network.weights
    values = np.zeros(network.size)
    # One half-line after the other: x = t or x = -t with 0 <= t <= reach, and z = t / reach.
    for reach, toward in ((high, left), (-low, -left)):
        slope = toward - price / np.where(reach > 0, reach, 1.0)
        inside = slope / (2 * np.where(weights > 0, weights, 1.0))
        best = np.where(weights > 0, np.clip(inside, 0.0, reach), reach)
        value = np.where(slope > 0, weights * best**2 - slope * best, 0.0)
        values = np.minimum(values, np.where(reach > 0, value, 0.0))
    edge_values = -network.edges * steps**2
    constant = float(weights @ network.y**2)
    spent = 0.0 if budget is None else price * budget
    terms = np.concatenate([values, edge_values])
    scale = float(np.abs(terms).sum()) + constant + spent
    return math.fsum([*terms.tolist(), constant, -spent]) - ROUNDING * scale


def _at_nodes(n: int, i: Integers, j: Integers, ends: Floats) -> Floats:
    """Return the sum at every node of what its edges have at that end."""
    out = np.bincount(i, ends[0], n) + np.bincount(j, ends[1], n)
    return np.asarray(out, dtype=np.float64)


def _of_nodes(
    own: Floats, left: Floats, rest: Floats, low: Floats, high: Floats, nonnegative: bool
) -> Floats:
    """Return the least value of every node's own block."""
    reaching = np.maximum(left, 0.0) if nonnegative else left
    held = own > 0
    inside = -(reaching**2) / (4 * np.where(held, own, 1.0))
    on = np.where(held, inside, -np.maximum(left * high, left * low))
    return np.asarray(np.minimum(on + rest, 0.0))


def _of_edges(
    edges: Floats,
    shares: Shares,
    pulls: Floats,
    definite: Bools,
    nonnegative: bool,
    indicators: bool,
) -> Floats:
    """Return the least value of every edge's block."""
    a1, a2 = shares.weights
    p1, p2 = pulls
    d1, d2 = edges + a1, edges + a2
    # The determinant without cancellation.
    det = np.where(definite, a1 * a2 + edges * (a1 + a2), 1.0)
    both = -(d2 * p1**2 + d1 * p2**2 + 2 * edges * p1 * p2) / (4 * det)
    both = np.where(definite, both, -(p1**2) / (4 * edges))
    if not indicators:
        return np.asarray(both)
    r1, r2 = (np.maximum(p, 0.0) if nonnegative else p for p in (p1, p2))
    one, two = -(r1**2) / (4 * d1), -(r2**2) / (4 * d2)
    if nonnegative:
        inside = (d2 * p1 + edges * p2 >= 0) & (edges * p1 + d1 * p2 >= 0)
        both = np.where(inside | ~definite, both, np.minimum(one, two))
    q1, q2 = shares.prices
    return np.asarray(np.minimum.reduce([np.zeros_like(both), one + q1, two + q2, both + q1 + q2]))
