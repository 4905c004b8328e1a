r"""Best supports of nonnegative signals on small parts of a graph, by submodular minimization.

The least value on a support T,

.. math:: v(T) = \sum_{j \in T} \mu_j + \min_{x \ge 0,\; x_j = 0 \text{ off } T}
    x^T M x - 2 c^T x,

is submodular for M with nonpositive entries off the diagonal. Any vector b of its base polytope
proves :math:`v(T) \ge \sum_j \min(b_j, 0)`, and more: with best known value v and
:math:`\varepsilon = v - \sum_j \min(b_j, 0)`, nodes with :math:`b_j < -\varepsilon` are in every
minimizer, and those with :math:`b_j > \varepsilon` are in none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.kernels.closing import gains_along
from ellzero.signal.solution import Bools, Floats, Integers

# Relative precision of a base, and least share of an order in a combination.
ROUND, LEAST = 1e-13, 1e-12


@dataclass(frozen=True)
class Pairwise:
    """The function v of a part.

    Parameters
    ----------
    matrix : ndarray of shape (m, m)
        M, positive definite, entries off the diagonal at most 0.
    right : ndarray of shape (m,)
        c.
    cost : ndarray of shape (m,)
        Cost of every node, finite.
    """

    matrix: Floats
    right: Floats
    cost: Floats

    def base(self, order: Integers) -> Floats:
        """Return the differences of v along an order, by node.

        For c at or above 0 one Cholesky factor holds all of them: with L L' = M and L g = c, the
        node at place j gains its cost minus the square of entry j of g.
        """
        if not (self.right >= 0).all():
            return np.asarray(self.cost + gains_along(self.matrix, self.right, order))
        lapack = _lapack()

        factor, info = lapack.dpotrf(self.matrix[np.ix_(order, order)], lower=1, clean=0)
        if info != 0:
            return np.asarray(self.cost + gains_along(self.matrix, self.right, order))
        entries, _ = lapack.dtrtrs(factor, self.right[order], lower=1)
        out = np.empty(order.size)
        out[order] = self.cost[order] - entries**2
        return out


@dataclass(frozen=True)
class Proven:
    """What a combination of vertices of the base polytope proves.

    Parameters
    ----------
    chosen : ndarray of shape (m,), bool
        Best known set.
    value : float
        v there.
    base : ndarray of shape (m,)
        The combination.
    margin : float
        Value minus bound, plus what rounding may be.
    always, never : ndarray of shape (m,), bool
        Nodes of every minimizer, and of none, with room for others who add up anew.
    orders : ndarray of shape (k, m), int64
        Orders of the vertices.
    shares : ndarray of shape (k,)
        Their shares, which sum to 1.
    """

    chosen: Bools
    value: float
    base: Floats
    margin: float
    always: Bools
    never: Bools
    orders: Integers
    shares: Floats


def margin_of(pairwise: Pairwise, value: float, base: Floats) -> float:
    """Return the distance of a value to the bound of a base, with room for rounding."""
    bound = float(np.minimum(base, 0.0).sum())
    return max(value - bound, 0.0) + rounding_of(pairwise, base)


def rounding_of(pairwise: Pairwise, base: Floats) -> float:
    """Return what rounding may be: a base consists of costs, and of squares that they exceed."""
    costs = float(pairwise.cost.sum())
    return ROUND * (costs + abs(costs - float(base.sum())))


def minimize(
    pairwise: Pairwise,
    *,
    start: Integers | None = None,
    most: int = 2000,
    stop: Callable[[], bool] | None = None,
) -> Proven:
    """Return a minimizer of v, or the best set and base when stopped.

    Parameters
    ----------
    pairwise : Pairwise
        The function.
    start : ndarray of shape (m,), int64, or None, default=None
        First order; None means largest c first.
    most : int, default=2000
        Most orders.
    stop : callable or None, default=None
        Asked before every order; true stops.

    Returns
    -------
    Proven
        Always valid; a stopped run has a larger margin.

    Notes
    -----
    Wolfe's method for the point of least norm in the base polytope, with greedy vertices
    [1]_. Ends when no set can be better by more than rounding, or when rounding stops it.

    References
    ----------
    .. [1] S. Fujishige and S. Isotani, "A submodular function minimization algorithm based on the
       minimum-norm base", Pacific Journal of Optimization 7, 2011.
    """
    m = pairwise.right.size
    order = np.argsort(-pairwise.right, kind="stable") if start is None else start
    orders = [order]
    vertex = pairwise.base(order)
    corners = vertex[None].copy()
    shares = np.ones(1)
    x = vertex
    gram = corners @ corners.T
    value, chosen = 0.0, np.zeros(m, dtype=np.bool_)
    best_margin, best = np.inf, (x, list(orders), shares)
    for _ in range(most):
        totals = np.cumsum(vertex[order])
        place = int(np.argmin(totals))
        if totals[place] < value:
            value = float(totals[place])
            chosen = np.zeros(m, dtype=np.bool_)
            chosen[order[: place + 1]] = True
        margin = margin_of(pairwise, value, x)
        if margin < best_margin:
            best_margin, best = margin, (x, list(orders), shares)
        if margin <= 2.0 * rounding_of(pairwise, x) or (stop is not None and stop()):
            break
        order = np.argsort(x, kind="stable")
        vertex = pairwise.base(order)
        length = float(x @ x)
        if length - float(x @ vertex) <= 1e-14 * max(length, float(vertex @ vertex)):
            # No vertex is closer to the origin: the norm is least, up to rounding.
            totals = np.cumsum(vertex[order])
            place = int(np.argmin(totals))
            if totals[place] < value:
                value = float(totals[place])
                chosen = np.zeros(m, dtype=np.bool_)
                chosen[order[: place + 1]] = True
            break
        products = corners @ vertex
        grown = np.empty((gram.shape[0] + 1, gram.shape[0] + 1))
        grown[:-1, :-1], grown[-1, :-1], grown[:-1, -1] = gram, products, products
        grown[-1, -1] = vertex @ vertex
        gram = grown
        corners = np.vstack([corners, vertex])
        orders.append(order)
        shares = np.append(shares, 0.0)
        while True:
            affine = _least_affine(gram)
            if affine is None:
                keep = shares > LEAST
                corners, gram, orders, shares = _kept(corners, gram, orders, shares, keep)
                break
            if (affine > LEAST).all():
                shares = affine
                break
            falling = affine <= LEAST
            steps = shares[falling] / np.maximum(shares[falling] - affine[falling], 1e-300)
            step = min(1.0, float(steps.min()))
            shares = (1.0 - step) * shares + step * affine
            keep = shares > LEAST
            if keep.all():
                keep[np.argmin(np.where(falling, shares, np.inf))] = False
            corners, gram, orders, shares = _kept(corners, gram, orders, shares, keep)
        x = shares @ corners
    margin = margin_of(pairwise, value, x)
    if margin < best_margin:
        best = (x, orders, shares)
    x, orders, shares = best
    margin = margin_of(pairwise, value, x)
    sure = (1.0 + 1e-6) * margin + 10.0 * rounding_of(pairwise, x)
    return Proven(chosen, value, x, margin, x < -sure, x > sure, np.array(orders), shares)


def _lapack() -> Any:
    """Return scipy's LAPACK: its checks of shapes cost more than small factorizations."""
    return importlib.import_module("scipy.linalg.lapack")


def _kept(
    corners: Floats, gram: Floats, orders: list[Integers], shares: Floats, keep: Bools
) -> tuple[Floats, Floats, list[Integers], Floats]:
    left = shares[keep]
    return (
        corners[keep],
        gram[np.ix_(keep, keep)],
        [order for order, kept in zip(orders, keep.tolist(), strict=True) if kept],
        left / left.sum(),
    )


def _least_affine(gram: Floats) -> Floats | None:
    """Return the affine combination of least norm; None where corners depend on each other."""
    lapack = _lapack()

    size = float(np.trace(gram)) / gram.shape[0] or 1.0
    _, found, info = lapack.dposv(gram / size + 1.0, np.ones(gram.shape[0]))
    if info != 0 or not np.isfinite(found).all():
        return None
    total = float(found.sum())
    return found / total if total > 0 else None
