r"""Lagrangian decomposition: a lower bound for any graph, any sign, a price or a budget.

Every part of the graph, rows and columns of a grid or forests that share the edges, gets a copy of
the signal, a share of the weights and of the costs, and multipliers for the copies to agree:

.. math:: L(\alpha, \beta, \mu) = \sum_p \min_{x} \Bigl[ \sum_i w_i^p (x_i - y_i)^2
    + \sum_{(i, j) \in p} \lambda_{ij} (x_i - x_j)^2 + \alpha^{p\,T} x
    + \sum_i c_i^p 1[x_i \ne 0] \Bigr] - \mu k

with :math:`\sum_p \alpha^p = 0` and :math:`\sum_p c^p = \mu`. Exact programs evaluate it; whatever
the multipliers are, it is below every value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ellzero.signal.graph import Lines, Mesh
from ellzero.signal.proof import Multipliers
from ellzero.signal.solution import Bools, Floats

# Weight of missing samples in every part, in units of the mean edge: their linear terms need one.
MISSING = 1e-5
# Share of a step after rounds without progress, and how many of those.
SHRINK, PATIENCE = 0.6, 8
# Relative rounding of a sum of terms of both signs.
ROUND = 1e-15


class Evaluated(NamedTuple):
    """A bound with the copies that attain it."""

    bound: float
    signals: list[Floats]
    supports: list[Bools]


def part_bound(
    value: float, weights: Floats, slopes: Floats, costs: Floats
) -> tuple[float, float]:
    """Return what a part adds to the bound, and how large its terms are.

    Parameters
    ----------
    value : float
        Optimal value of the part for shifted data and costs without their negative parts.
    weights, slopes, costs : ndarray of shape (k,)
        Weights, linear terms and costs of the part.

    Notes
    -----
    With ``w (x - y)^2 + a x = w (x - y + a / (2 w))^2 + a y - a^2 / (4 w)``, where the terms
    ``a y`` of all parts cancel. Nodes whose cost is negative are on, if only at zero.
    """
    shifts = float((slopes**2 / (4.0 * weights)).sum())
    finite = costs[np.isfinite(costs)]
    paid = float(np.minimum(finite, 0.0).sum())
    return value - shifts + paid, abs(value) + shifts - paid


def shifted(y: Floats, weights: Floats, slopes: Floats) -> Floats:
    """Return the data whose distance holds the linear terms."""
    return np.asarray(y - slopes / (2.0 * weights))


def missing_margin(mesh: Mesh, parts: list[Lines], weights: list[Floats]) -> float:
    """Return how much the weights of missing samples may raise the objective of an optimum.

    No optimum leaves the range of the data and zero.
    """
    total = np.zeros(mesh.size)
    for lines, share in zip(parts, weights, strict=True):
        total[lines.nodes] += share
    counted = mesh.weights > 0
    most = float(np.abs(mesh.y[counted]).max(initial=0.0))
    return float(total[~counted].sum()) * most**2


class Decomposition:
    """Multipliers between the parts of a graph, and the ascent of their bound.

    Parameters
    ----------
    mesh : Mesh
        Data.
    parts : list of Lines
        Lines that hold every edge once and every node at least once.
    price : float
        Cost of a nonzero, or the first multiplier of the budget.
    budget : int or None
        Most nonzeros; None in the penalized form.
    """

    def __init__(self, mesh: Mesh, parts: list[Lines], price: float, budget: int | None) -> None:
        self.mesh, self.parts = mesh, parts
        self.budget = budget
        self.price = price
        self.where = np.concatenate([lines.nodes for lines in parts])
        self.ends = np.cumsum([lines.nodes.size for lines in parts])[:-1]
        self.share = 1.0 / np.bincount(self.where, minlength=mesh.size)[self.where]
        unit = float(mesh.edges.mean()) if mesh.edges.size else 1.0
        counted = mesh.weights[self.where] > 0
        self.weights = np.where(
            counted, mesh.weights[self.where] * self.share, MISSING * max(unit, 1e-300)
        )
        self.slopes: Floats = np.zeros(self.where.size)
        self.tilts: Floats = np.zeros(self.where.size)
        # Nodes that pay the price, and those that must stay off.
        costs = np.where(mesh.dead, np.inf, mesh.costs(1.0))[self.where]
        self.never = np.isinf(costs)
        self.paying = np.where(self.never, 0.0, costs)
        self.margin = missing_margin(mesh, parts, self._split(self.weights))
        self.bound = -np.inf
        self.best = (self.slopes, self.tilts, self.price)
        self.n_rounds = 0

    def _split(self, entries: Floats) -> list[Floats]:
        return list(np.split(entries, self.ends))

    def _mean(self, entries: Floats) -> Floats:
        """Return the mean of the copies of every node, for every copy."""
        sums = np.bincount(self.where, entries * self.share, minlength=self.mesh.size)
        return np.asarray(sums[self.where])

    def costs(self) -> Floats:
        """Return the cost of a nonzero of every copy."""
        return np.where(self.never, np.inf, self.paying * self.price * self.share + self.tilts)

    def start_at(self, signal: Floats) -> None:
        """Choose linear terms that make a signal stationary for every part."""
        y = self.mesh.y[self.where]
        slopes = 2.0 * self.weights * (signal[self.where] - y)
        along = [_slope_of(lines, signal[lines.nodes]) for lines in self.parts]
        slopes += np.concatenate(along)
        self.slopes = self._mean(slopes) - slopes
        self.tilts = np.zeros(self.where.size)

    def evaluate(self) -> Evaluated:
        """Return the bound at the present multipliers."""
        y = shifted(self.mesh.y[self.where], self.weights, self.slopes)
        costs = self.costs()
        bound = -self.margin
        if self.budget is not None:
            bound -= self.price * self.budget
        size, signals, supports = 0.0, [], []
        columns = (self._split(a) for a in (y, self.weights, self.slopes, costs))
        for lines, data, weights, slopes, cost in zip(self.parts, *columns, strict=True):
            positive = np.maximum(cost, 0.0)
            value, on = lines.solve(data, weights, positive, self.mesh.nonnegative)
            found = lines.refit(data, weights, on)
            signals.append(np.maximum(found, 0.0) if self.mesh.nonnegative else found)
            supports.append((on & (signals[-1] != 0)) | (cost < 0))
            # What the program has above the value of its own signal is rounding.
            value = min(value, lines.value(signals[-1], data, weights, positive))
            adds, terms = part_bound(value, weights, slopes, cost)
            bound += adds
            size += terms
        self.n_rounds += 1
        bound -= ROUND * size
        if bound > self.bound:
            self.bound = bound
            self.best = (self.slopes, self.tilts, self.price)
        return Evaluated(bound, signals, supports)

    def proof(self) -> Multipliers:
        """Return the best multipliers."""
        kept = self.slopes, self.tilts, self.price
        self.slopes, self.tilts, self.price = self.best
        slopes, costs = self._split(self.slopes), self._split(self.costs())
        found = Multipliers(self.price, self.parts, self._split(self.weights), slopes, costs)
        self.slopes, self.tilts, self.price = kept
        return found

    def ascend(
        self,
        target: Callable[[Evaluated], float],
        *,
        most: int,
        tol: float,
        stop: Callable[[], bool],
    ) -> None:
        """Raise the bound by Polyak steps.

        Parameters
        ----------
        target : callable
            Called with what was evaluated; returns the best known value.
        most : int
            Most rounds.
        tol : float
            Relative gap that is small enough.
        stop : callable
            Asked after every round; true stops.
        """
        # Tilts move as costs do, linear terms as slopes: their ratio is the size of a nonzero.
        paid = float(self.mesh.weights.mean()) or 1.0
        relaxed, failures = 1.0, 0
        direction: Floats | None = None
        for _ in range(most):
            before = self.bound
            found = self.evaluate()
            value = target(found)
            if value - self.bound <= tol * abs(value) or stop():
                return
            if found.bound > before:
                failures = 0
            else:
                failures += 1
            if failures >= PATIENCE:
                relaxed, failures = relaxed * SHRINK, 0
                self.slopes, self.tilts, self.price = self.best
                direction = None
                if relaxed < 1e-4:
                    return
                found = self.evaluate()
            ratio = min(max(self.price / paid, 1e-6), 1.0)
            signals = np.concatenate(found.signals)
            supports = np.concatenate(found.supports).astype(np.float64)
            turn = np.concatenate(
                [
                    signals - self._mean(signals),
                    np.sqrt(ratio) * (supports - self._mean(supports)) * ~self.never,
                    np.zeros(1),
                ]
            )
            count_scale = 0.0
            if self.budget is not None:
                count_scale = np.sqrt(ratio / max(self.budget, 1))
                over = float((supports * self.share * self.paying).sum()) - self.budget
                turn[-1] = count_scale * over
            if direction is not None:
                # Take out what would undo the last step.
                against = float(turn @ direction)
                if against < 0:
                    turn -= 1.5 * against / float(direction @ direction) * direction
            norm = float(turn @ turn)
            if norm <= 1e-30:
                return
            direction = turn
            step = relaxed * max(value - found.bound, 0.0) / norm
            k = self.where.size
            self.slopes = self.slopes + step * turn[:k]
            self.tilts = self.tilts + step * np.sqrt(ratio) * turn[k : 2 * k]
            if self.budget is not None:
                self.price = max(self.price + step * count_scale * float(turn[-1]), 0.0)


def _slope_of(lines: Lines, signal: Floats) -> Floats:
    """Return the gradient of the smoothness along lines."""
    out = np.zeros(signal.size)
    if lines.parent is None:
        pull = 2.0 * lines.edges * (signal[:-1] - signal[1:])
        out[:-1] += pull
        out[1:] -= pull
        return out
    inner = np.flatnonzero(lines.parent >= 0)
    pull = 2.0 * lines.edges[inner] * (signal[inner] - signal[lines.parent[inner]])
    out[inner] += pull
    np.subtract.at(out, lines.parent[inner], pull)
    return out
