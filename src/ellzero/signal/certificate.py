"""What is proven of a signal, from the data and the signal alone."""

from __future__ import annotations

import numpy as np

from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.kernels.chain import domains, sweep
from ellzero.kernels.chain_check import best_by_counts, best_by_zeros, bound_of_messages
from ellzero.kernels.tree import solve_forest, tree_l0
from ellzero.kernels.tree_check import bound_of_forest
from ellzero.signal.chain import Chain
from ellzero.signal.solution import Floats, Integers, Solution
from ellzero.signal.tree import Forest

# Samples up to which every position of the last zero is tried, and operations for every count.
ALL_ZEROS, ALL_COUNTS = 3000, 2e8
TOL = 1e-9
INTERVAL = (
    "Every candidate lies between the solutions for the positive and the negative part of the "
    "data."
)
MULTIPLIER = (
    "The bound is that of one multiplier; what the count-indexed program has closed beyond it is "
    "not recomputed here."
)


def certify_chain(
    chain: Chain,
    found: Solution,
    *,
    budget: int | None,
    penalty: float | None,
    scale: float = 1.0,
) -> Certificate:
    """Return what is proven of a signal on a chain.

    Parameters
    ----------
    chain : Chain
        Data.
    found : Solution
        What the program returned; only its signal and its multiplier are used.
    budget : int or None
        Most nonzeros that count.
    penalty : float or None
        Cost of a nonzero that counts; exactly one of the two is given.
    scale : float, default=1.0
        Unit of the samples: what is shown is multiplied by it, or by its square.

    Returns
    -------
    Certificate
        With a lower bound that other code than the solver's has computed.

    Notes
    -----
    Short free-sign chains are solved again by every position of the last zero. Longer ones, and
    nonnegative ones, by message inequalities: any messages that satisfy them prove a bound; what
    they violate by rounding is taken off. Between zero and the solutions for the positive and the
    negative part of the data lies every candidate, by monotonicity.
    """
    n = chain.size
    price = found.penalty if penalty is None else penalty
    cost = chain.costs(price)
    signal = found.signal
    checks, assumptions = [], []
    chosen = signal != 0
    count = chain.count(chosen)
    measures: dict[str, Measure] = {"n_nonzero": int(np.count_nonzero(signal))}
    limit = n if budget is None else budget
    checks.append(Check("nonzeros", float(count), float(limit), Claim.FEASIBLE))
    if chain.kinds is not None:
        wrong = float(np.count_nonzero(chosen & (chain.kinds < 0)))
        checks.append(Check("nonzeros that are not allowed", wrong, 0.0, Claim.FEASIBLE))
    if chain.nonnegative:
        checks.append(Check("negative values", float((signal < 0).sum()), 0.0, Claim.FEASIBLE))
    value = _value(chain, signal) + (0.0 if penalty is None else penalty * count)
    slope = slope_of(chain, signal)
    on = signal != 0
    checks.append(steepest_check(slope[on], chain.weights * chain.y, scale))
    at_zero = float(chain.weights @ chain.y**2)
    plain = not chain.nonnegative and chain.kinds is None
    if budget is not None and plain and _operations(n, budget) <= ALL_COUNTS:
        bound = float(best_by_counts(chain.y, chain.weights, chain.edges, budget))
        measures["bound_method"] = "every last zero and count"
    elif budget is None and not chain.nonnegative and n <= ALL_ZEROS:
        bound = float(best_by_zeros(chain.y, chain.weights, chain.edges, cost, 0.0))
        measures["bound_method"] = "every last zero"
    else:
        bound, violation = chain_messages(
            chain.y, chain.weights, chain.edges, cost, chain.nonnegative
        )
        measures["bound_method"] = "message inequalities"
        measures["violation"] = violation * scale**2
        assumptions.append(INTERVAL)
        if budget is not None:
            bound -= found.penalty * budget
            if value - bound > TOL * max(value, 1e-12 * at_zero):
                assumptions.append(MULTIPLIER)
    return conclude(checks, assumptions, measures, value, bound, at_zero, scale)


def conclude(
    checks: list[Check],
    assumptions: list[str],
    measures: dict[str, Measure],
    value: float,
    bound: float,
    at_zero: float,
    scale: float,
) -> Certificate:
    """Return the certificate of a value and a lower bound, whatever has computed it.

    Parameters
    ----------
    checks : list of Check
        Checks of feasibility and slopes.
    assumptions : list of str
        What the bound rests on.
    measures : dict of str to number or str
        Numbers worth knowing.
    value, bound : float
        Objective and lower bound, in units of `scale` squared.
    at_zero : float
        Objective of the zero signal, without costs.
    scale : float
        Unit of the samples.

    Returns
    -------
    Certificate
        With the checks of the bound.
    """
    slack = TOL * abs(value) + 1e-14 * at_zero
    if value < bound <= value + slack:
        # A bound that little above the value is rounding.
        bound = value
    distance = value - bound
    gap = 0.0 if distance <= 1e-14 * at_zero else distance / max(abs(value), abs(bound))
    unit = scale**2
    bound, value, distance, slack = bound * unit, value * unit, distance * unit, slack * unit
    checks.append(Check("lower bound", bound, value + slack, Claim.GAP))
    checks.append(Check("distance to the lower bound", distance, slack, Claim.OPTIMAL))
    claim = strongest_claim(checks)
    return Certificate(claim, tuple(checks), tuple(assumptions), bound, gap, measures)


def steepest_check(slope: Floats, pull: Floats, scale: float) -> Check:
    """Return the check that nothing on the support pulls."""
    largest = float(np.abs(pull).max()) or 1.0
    steepest = float(np.abs(slope).max(initial=0.0))
    return Check(
        "slope on the support", steepest * scale, 1e-8 * largest * scale, Claim.STATIONARY
    )


def certify_forest(
    forest: Forest,
    found: Solution,
    *,
    budget: int | None,
    penalty: float | None,
    scale: float = 1.0,
) -> Certificate:
    """Return what is proven of a signal on a forest.

    Parameters
    ----------
    forest : Forest
        Data.
    found : Solution
        What the program returned; only its signal and its multiplier are used.
    budget : int or None
        Most nonzeros that count.
    penalty : float or None
        Cost of a nonzero that counts; exactly one of the two is given.
    scale : float, default=1.0
        Unit of the samples.

    Returns
    -------
    Certificate
        With a lower bound by message inequalities, see `ellzero.kernels.tree_check`.
    """
    signal = found.signal
    price = found.penalty if penalty is None else penalty
    count = forest.count(signal != 0)
    measures: dict[str, Measure] = {"n_nonzero": int(np.count_nonzero(signal))}
    limit = forest.size if budget is None else budget
    checks = [Check("nonzeros", float(count), float(limit), Claim.FEASIBLE)]
    if forest.kinds is not None:
        wrong = float(np.count_nonzero(signal[forest.kinds < 0]))
        checks.append(Check("nonzeros that are not allowed", wrong, 0.0, Claim.FEASIBLE))
    if forest.nonnegative:
        checks.append(Check("negative values", float((signal < 0).sum()), 0.0, Claim.FEASIBLE))
    y, w, parent, edges = forest.y, forest.weights, forest.parent, forest.edges
    slope = w * (signal - y)
    inner = parent >= 0
    steps = signal[inner] - signal[parent[inner]]
    pull = edges[inner] * steps
    value = float(w @ (signal - y) ** 2 + pull @ steps)
    value += 0.0 if penalty is None else penalty * count
    slope[inner] += pull
    np.subtract.at(slope, parent[inner], pull)
    checks.append(steepest_check(slope[signal != 0], w * y, scale))
    at_zero = float(w @ y**2)
    cost = forest.costs(price)
    bound, violation = forest_messages(y, w, parent, edges, cost, forest.nonnegative)
    bound -= 0.0 if budget is None else price * budget
    measures["bound_method"] = "message inequalities"
    measures["violation"] = violation * scale**2
    assumptions = [INTERVAL]
    if budget is not None and value - bound > TOL * max(value, 1e-12 * at_zero):
        assumptions.append(MULTIPLIER)
    return conclude(checks, assumptions, measures, value, bound, at_zero, scale)


def _operations(n: int, budget: int) -> float:
    """Return about how many operations `best_by_counts` takes."""
    return float(n) * min(n, budget) * max(budget, 1) / 2


def strongest_claim(checks: list[Check], most: Claim = Claim.OPTIMAL) -> Claim | None:
    """Return the strongest claim up to `most` whose checks, and those before it, all pass."""
    best = None
    for claim in (Claim.FEASIBLE, Claim.STATIONARY, Claim.GAP, Claim.OPTIMAL):
        if claim > most or not all(check.passed for check in checks if check.claim is claim):
            break
        best = claim
    return best


def _value(chain: Chain, signal: Floats) -> float:
    fit = chain.weights @ (signal - chain.y) ** 2
    return float(fit + chain.edges @ np.diff(signal) ** 2)


def slope_of(chain: Chain, signal: Floats) -> Floats:
    """Return half the gradient of the smooth part."""
    slope = chain.weights * (signal - chain.y)
    pull = chain.edges * np.diff(signal)
    slope[1:] += pull
    slope[:-1] -= pull
    return slope


def chain_messages(
    y: Floats, w: Floats, edges: Floats, cost: Floats, nonnegative: bool
) -> tuple[float, float]:
    """Return a bound on a chain that holds whatever its messages are, and what was taken off."""
    *_, kept, first, bases = sweep(y, w, edges, cost, 0.0, nonnegative, True)
    low, high = domains(y, w, edges, nonnegative)
    bound, violation = bound_of_messages(y, w, edges, cost, 0.0, low, high, kept, first, bases)
    return float(bound), float(violation)


def forest_messages(
    y: Floats, w: Floats, parent: Integers, edges: Floats, cost: Floats, nonnegative: bool
) -> tuple[float, float]:
    """Return a bound on a forest that holds whatever its messages are, and what was taken off."""
    *_, rows, first, bases = tree_l0(y, w, parent, edges, cost, nonnegative)
    every = np.ones(y.size, dtype=np.bool_)
    low, high = (
        solve_forest(part, w, parent, edges, every) for part in (y.clip(max=0), y.clip(0))
    )
    if nonnegative:
        low = np.zeros(y.size)
    bound, violation = bound_of_forest(y, w, parent, edges, cost, low, high, rows, first, bases)
    return float(bound), float(violation)
