"""What is proven of a signal on a graph with cycles, from the data, the signal and a proof.

The proof names supports, orders and multipliers; every value and every bound is computed anew:
lines and forests by message inequalities, windows by fresh factorizations, levels by the signs of
residuals.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.signal.certificate import (
    chain_messages,
    conclude,
    forest_messages,
    steepest_check,
    strongest_claim,
)
from ellzero.signal.graph import Lines, Mesh
from ellzero.signal.proof import Fixing, Multipliers, Narrowing, Sweep, Window, split
from ellzero.signal.solution import Floats, Integers, Solution
from ellzero.signal.submodular import Pairwise, margin_of

# Nodes times steps of a proof up to which it is checked, and multiplications of its windows.
MOST_STEPS, MOST_PRODUCTS = 2e8, 2e11
# Residual of a level, relative to its terms, that is rounding.
RESIDUAL = 1e-12


def certify_mesh(
    mesh: Mesh,
    found: Solution,
    *,
    budget: int | None,
    penalty: float | None,
    scale: float = 1.0,
) -> Certificate:
    """Return what is proven of a signal on a graph with cycles.

    Parameters
    ----------
    mesh : Mesh
        Data.
    found : Solution
        What the method returned; its signal and its proof are used.
    budget : int or None
        Most nonzeros that count.
    penalty : float or None
        Cost of a nonzero that counts; exactly one of the two is given.
    scale : float, default=1.0
        Unit of the samples.

    Returns
    -------
    Certificate
        With a lower bound that has been computed anew; without one, and with the reason among
        the assumptions, where the proof is too long to check.
    """
    signal = found.signal
    on = signal != 0
    count = mesh.count(on)
    measures: dict[str, Measure] = {"n_nonzero": int(np.count_nonzero(on))}
    limit = mesh.size if budget is None else budget
    checks = [Check("nonzeros", float(count), float(limit), Claim.FEASIBLE)]
    if mesh.kinds is not None:
        wrong = float(np.count_nonzero(on & (mesh.kinds < 0)))
        checks.append(Check("nonzeros that are not allowed", wrong, 0.0, Claim.FEASIBLE))
    if mesh.nonnegative:
        checks.append(Check("negative values", float((signal < 0).sum()), 0.0, Claim.FEASIBLE))
    value, slope = _value_and_slope(mesh, signal)
    if penalty is not None:
        value += penalty * count
    checks.append(steepest_check(slope[on], mesh.pull, scale))
    at_zero = float(mesh.weights @ mesh.y**2)
    proven = _recheck(mesh, found, signal, value, budget)
    measures["bound_of_the_method"] = found.lower_bound * scale**2
    measures["bound_method"] = proven.method
    assumptions = list(proven.assumptions)
    if proven.bound is None:
        claim = strongest_claim(checks, Claim.STATIONARY)
        return Certificate(claim, tuple(checks), tuple(assumptions), None, None, measures)
    bound = max(float(proven.bound), 0.0)
    return conclude(checks, assumptions, measures, float(value), bound, at_zero, scale)


def _value_and_slope(mesh: Mesh, signal: Floats) -> tuple[float, Floats]:
    """Return the smooth part and half its gradient, edge by edge."""
    steps = mesh.edges * (signal[mesh.first] - signal[mesh.second])
    fit = mesh.weights * (signal - mesh.y)
    n = mesh.size
    slope = fit + np.bincount(mesh.first, steps, minlength=n)
    slope -= np.bincount(mesh.second, steps, minlength=n)
    smooth = float(steps @ (signal[mesh.first] - signal[mesh.second]))
    return float(fit @ (signal - mesh.y)) + smooth, slope


class _Proven(NamedTuple):
    """A bound, or why there is none."""

    bound: float | None
    method: str
    assumptions: tuple[str, ...]


def _recheck(
    mesh: Mesh, found: Solution, signal: Floats, value: float, budget: int | None
) -> _Proven:
    proof = found.proof
    if isinstance(proof, Multipliers):
        return _by_multipliers(mesh, proof, budget)
    if isinstance(proof, Narrowing):
        return _by_narrowing(mesh, proof, budget)
    if budget == 0 and mesh.kinds is None:
        return _Proven(value, "nothing else is within the budget", ())
    return _Proven(None, "none", ("The method has proven no lower bound.",))


def _line_bound(
    lines: Lines, y: Floats, weights: Floats, cost: Floats, nonnegative: bool
) -> float:
    """Return a bound on lines that holds whatever the messages are."""
    if lines.parent is None:
        return chain_messages(y, weights, lines.edges, cost, nonnegative)[0]
    return forest_messages(y, weights, lines.parent, lines.edges, cost, nonnegative)[0]


BETWEEN = (
    "On every line or forest each candidate lies between the solutions for the positive and the "
    "negative part of its data."
)


def _by_multipliers(mesh: Mesh, proof: Multipliers, budget: int | None) -> _Proven:
    """Evaluate the decomposition by message inequalities, from sums that are checked first."""
    method = "message inequalities at multipliers"
    n = mesh.size
    sums, slopes, costs = np.zeros(n), np.zeros(n), np.zeros(n)
    joined = []
    for lines, w, a, c in zip(proof.parts, proof.weights, proof.slopes, proof.costs, strict=True):
        np.add.at(sums, lines.nodes, w)
        np.add.at(slopes, lines.nodes, a)
        np.add.at(costs, lines.nodes, c)
        joined.append(_edges_of(lines, n))
    wanted = np.where(mesh.dead, np.inf, mesh.costs(proof.price))
    finite = np.isfinite(wanted)
    keys, weights = np.concatenate(joined, axis=1)
    order = np.argsort(keys)
    ends = np.minimum(mesh.first, mesh.second) * n + np.maximum(mesh.first, mesh.second)
    known = np.argsort(ends)
    fits = np.array_equal(keys[order], ends[known])
    fits = fits and np.allclose(weights[order], mesh.edges[known], rtol=1e-12, atol=0.0)
    fits &= bool((sums >= mesh.weights * (1 - 1e-12)).all())
    fits &= bool((np.isfinite(costs) == finite).all())
    if not fits:
        return _Proven(None, method, ("The parts of the proof do not make up the graph.",))
    most = float(np.abs(mesh.y[mesh.weights > 0]).max(initial=0.0))
    # Weights that parts have too much, and sums that rounding keeps from what they should be.
    bound = -float(np.maximum(sums - mesh.weights, 0.0).sum()) * most**2
    bound -= float(np.abs(slopes).sum()) * most
    bound -= float(np.maximum(costs[finite] - wanted[finite], 0.0).sum())
    for lines, w, a, c in zip(proof.parts, proof.weights, proof.slopes, proof.costs, strict=True):
        y = mesh.y[lines.nodes] - a / (2.0 * w)
        bound += _line_bound(lines, y, w, np.maximum(c, 0.0), mesh.nonnegative)
        bound += float(np.minimum(c[np.isfinite(c)], 0.0).sum())
        bound += float((a * mesh.y[lines.nodes]).sum() - (a**2 / (4.0 * w)).sum())
    if budget is not None:
        bound -= proof.price * budget
    return _Proven(bound, method, (BETWEEN,))


def _edges_of(lines: Lines, n: int) -> Floats:
    """Return a number for the ends of every edge inside, and its weight, in two rows."""
    here = np.flatnonzero(lines.edges > 0)
    above = here + 1 if lines.parent is None else lines.parent[here]
    one, two = lines.nodes[here], lines.nodes[above]
    return np.stack([np.minimum(one, two) * n + np.maximum(one, two), lines.edges[here]])


def _by_narrowing(mesh: Mesh, proof: Narrowing, budget: int | None) -> _Proven:
    """Follow the steps of a bracket; what each of them may lose is taken off."""
    method = "steps of a bracket"
    if proof.left:
        return _Proven(None, method, (f"{proof.left} nodes of the proof are undecided.",))
    if proof.price == 0 and not proof.fixings and not proof.closings:
        # Nothing costs anything: a convex problem, whose slopes are checked.
        return _Proven(mesh.value(mesh.refit(mesh.costs(1.0) < np.inf), 0.0), "least squares", ())
    n_steps, products = 0, 0.0
    for fixing in proof.fixings:
        for step in fixing.steps:
            if isinstance(step, Sweep):
                n_steps += 1
            else:
                products += step.orders.shape[0] * float(step.orders.shape[1]) ** 3 / 3
    products += sum(w.orders.shape[0] * float(w.orders.shape[1]) ** 3 / 3 for w in proof.closings)
    if n_steps * mesh.size > MOST_STEPS or products > MOST_PRODUCTS:
        return _Proven(None, method, ("The steps of the bracket are too many to repeat.",))
    follower = _Positive(mesh, proof.price) if mesh.is_positive else _Signed(mesh, proof.price)
    for fixing in proof.fixings:
        if not follower.follow(fixing):
            return _Proven(None, method, ("A step of the proof does not hold.",))
    bound = follower.bound(proof)
    if bound is None:
        return _Proven(None, method, ("Some nodes of the proof are undecided.",))
    if budget is not None:
        bound -= proof.price * budget
    return _Proven(bound, method, (BETWEEN,))


def _limit(mesh: Mesh, level: Floats) -> float:
    """Return how far rounding may take a residual."""
    terms = float(np.abs(mesh.pull).max()) + float((mesh.matrix.diagonal() * np.abs(level)).max())
    return RESIDUAL * terms


class _Positive:
    """A bracket of supports, followed step by step."""

    def __init__(self, mesh: Mesh, price: float) -> None:
        self.mesh = mesh
        self.given = mesh.costs(price)
        self.off = (self.given == np.inf) | mesh.dead
        self.on = (self.given <= 0) & ~self.off
        self.loss = 0.0
        self.price = price

    def _is_below(self, level: Floats) -> bool:
        """Return whether a level is at most the best signal on what is on."""
        slope = self.mesh.pull - self.mesh.matrix @ level
        inside = level > 0
        known = not (level < 0).any() and not (inside & ~self.on).any()
        return known and bool((slope[inside] >= -_limit(self.mesh, level)).all())

    def _is_above(self, level: Floats) -> bool:
        """Return whether a level is at least the best signal on what is not off."""
        slope = self.mesh.pull - self.mesh.matrix @ level
        free = ~self.off
        return not (level < 0).any() and bool((slope[free] <= _limit(self.mesh, level)).all())

    def _cost(self) -> Floats:
        return np.where(self.off, np.inf, np.where(self.on, 0.0, self.given))

    def follow(self, fixing: Fixing) -> bool:
        """Take the steps at one level; return whether they hold."""
        if not self._is_below(fixing.low):
            return False
        if fixing.is_low and fixing.level is not fixing.low:
            return False
        if not fixing.is_low and not self._is_above(fixing.level):
            return False
        for step in fixing.steps:
            cost = self._cost()
            if isinstance(step, Sweep):
                lines = step.lines
                y, weights = lines.given(self.mesh, fixing.level)
                best = np.maximum(lines.refit(y, weights, step.support), 0.0)
                if (best[step.support] == 0).any():
                    return False
                mine = cost[lines.nodes]
                bound = _line_bound(lines, y, weights, mine, self.mesh.nonnegative)
                self.loss += max(lines.value(best, y, weights, mine) - bound, 0.0)
                decided = lines.nodes[step.support if fixing.is_low else ~step.support]
            else:
                part = split(self.mesh, step.nodes, cost, fixing.low, fixing.level)
                if part.nodes.size != step.decided.size:
                    return False
                base, margin = _base(part.pairwise, step)
                sure = base < -margin if fixing.is_low else base > margin
                if not sure[step.decided].all():
                    return False
                decided = part.nodes[step.decided]
            if fixing.is_low:
                self.on[decided[~self.off[decided]]] = True
            else:
                self.off[decided[~self.on[decided]]] = True
        return True

    def _around(self, nodes: Integers) -> Integers:
        """Return the neighbors of some nodes."""
        near = np.unique(self.mesh.matrix[nodes].indices)
        return np.setdiff1d(near, nodes)

    def bound(self, proof: Narrowing) -> float | None:
        """Return the bound after the last components."""
        level = np.zeros(self.mesh.size)
        low = level if proof.low is None else proof.low
        if proof.closings and not self._is_below(low):
            return None
        for window in proof.closings:
            # Whole components: what surrounds them is off.
            if not self.off[self._around(window.nodes)].all():
                return None
            part = split(self.mesh, window.nodes, self._cost(), low, level)
            if part.nodes.size != window.chosen.size:
                return None
            self.loss += _base(part.pairwise, window)[1]
            self.on[part.nodes[window.chosen]] = True
            rest = part.nodes[~window.chosen]
            self.off[rest[~self.on[rest]]] = True
        if not (self.on | self.off).all():
            return None
        return self.mesh.value(self.mesh.refit(self.on), self.price) - self.loss


def _base(pairwise: Pairwise, window: Window) -> tuple[Floats, float]:
    """Return the combination of fresh vertices, and its margin to the chosen set."""
    shares = window.shares / window.shares.sum()
    base = np.zeros(window.orders.shape[1])
    for order, share in zip(window.orders, shares, strict=True):
        if share > 0:
            base += share * pairwise.base(order)
    # The value of the chosen set, as the first of an order.
    order = np.concatenate([np.flatnonzero(window.chosen), np.flatnonzero(~window.chosen)])
    value = float(pairwise.base(order)[window.chosen].sum())
    return base, margin_of(pairwise, value, base)


class _Signed:
    """A bracket of values, followed step by step."""

    def __init__(self, mesh: Mesh, price: float) -> None:
        self.mesh = mesh
        self.price = price
        self.cost = np.where(mesh.dead, np.inf, mesh.costs(price))
        self.low: Floats | None = None
        self.high: Floats | None = None
        self.loss = 0.0

    def follow(self, fixing: Fixing) -> bool:
        """Take the steps at one level, which must be the one reached so far."""
        reached = self.low if fixing.is_low else self.high
        side = 1.0 if fixing.is_low else -1.0
        level = fixing.level
        if reached is None:
            # The first level solves for one sign of the data on all nodes.
            pull = np.minimum(side * self.mesh.pull, 0.0)
            slope = pull - side * (self.mesh.matrix @ level)
            if (slope[~self.mesh.dead] < -_limit(self.mesh, level)).any():
                return False
        elif (side * (level - reached) > 0).any():
            return False
        current = level.copy()
        for step in fixing.steps:
            if not isinstance(step, Sweep):
                return False
            lines = step.lines
            y, weights = lines.given(self.mesh, level)
            best = lines.refit(y, weights, step.support)
            mine = self.cost[lines.nodes]
            bound = _line_bound(lines, y, weights, mine, False)
            self.loss += max(lines.value(best, y, weights, mine) - bound, 0.0)
            near = current[lines.nodes]
            current[lines.nodes] = side * np.maximum(side * near, side * best)
        if fixing.is_low:
            self.low = current
        else:
            self.high = current
        return True

    def bound(self, proof: Narrowing) -> float | None:
        """Return the value where the bounds meet, less what steps may lose."""
        if self.low is None or self.high is None:
            return None
        high = np.maximum(self.high, self.low)
        on = (self.low > 0) | (high < 0)
        if not (on | ((self.low == 0) & (high == 0))).all():
            return None
        return self.mesh.value(self.mesh.refit(on), self.price) - self.loss
