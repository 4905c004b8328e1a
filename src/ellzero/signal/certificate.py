"""What is proven of a signal, from the data and the signal alone."""

from __future__ import annotations

import numpy as np

from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.kernels.chain import domains, sweep
from ellzero.kernels.chain_check import best_by_counts, best_by_zeros, bound_of_messages
from ellzero.signal.chain import Chain
from ellzero.signal.solution import Floats, Solution

# Samples up to which every position of the last zero is tried, and operations for every count.
ALL_ZEROS, ALL_COUNTS = 3000, 2e8
TOL = 1e-9


def certify_chain(
    chain: Chain, found: Solution, *, budget: int | None, penalty: float | None
) -> Certificate:
    """Return what is proven of a signal on a chain.

    Parameters
    ----------
    chain : Chain
        Data.
    found : Solution
        What the program returned; only its signal and its multiplier are used.
    budget : int or None
        Most nonzeros.
    penalty : float or None
        Cost of a nonzero; exactly one of the two is given.

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
    cost = np.full(n, found.penalty if penalty is None else penalty)
    signal = found.signal
    checks, assumptions = [], []
    count = int(np.count_nonzero(signal))
    measures: dict[str, Measure] = {"n_nonzero": count}
    limit = n if budget is None else budget
    checks.append(Check("nonzeros", float(count), float(limit), Claim.FEASIBLE))
    if chain.nonnegative:
        checks.append(Check("negative values", float((signal < 0).sum()), 0.0, Claim.FEASIBLE))
    value = _value(chain, signal) + (0.0 if penalty is None else penalty * count)
    slope = _slope(chain, signal)
    on = signal != 0
    scale = float(np.abs(chain.weights * chain.y).max()) or 1.0
    steepest = float(np.abs(slope[on]).max(initial=0.0))
    checks.append(Check("slope on the support", steepest, 1e-8 * scale, Claim.STATIONARY))
    at_zero = float(chain.weights @ chain.y**2)
    if budget is not None and not chain.nonnegative and _operations(n, budget) <= ALL_COUNTS:
        bound = float(best_by_counts(chain.y, chain.weights, chain.edges, budget))
        measures["bound_method"] = "every last zero and count"
    elif budget is None and not chain.nonnegative and n <= ALL_ZEROS:
        bound = float(best_by_zeros(chain.y, chain.weights, chain.edges, cost))
        measures["bound_method"] = "every last zero"
    else:
        bound, violation = _by_messages(chain, cost)
        measures["bound_method"] = "message inequalities"
        measures["violation"] = violation
        assumptions.append(
            "Every candidate lies between the solutions for the positive and the negative part "
            "of the data."
        )
        if budget is not None:
            bound -= found.penalty * budget
            if value - bound > TOL * max(value, 1e-12 * at_zero):
                assumptions.append(
                    "The bound is that of one multiplier; what the count-indexed program has "
                    "closed beyond it is not recomputed here."
                )
    # A bound above the value is rounding.
    bound = min(bound, value)
    distance = value - bound
    slack = TOL * abs(value) + 1e-14 * at_zero
    gap = 0.0 if distance <= 1e-14 * at_zero else distance / max(abs(value), abs(bound))
    checks.append(Check("lower bound", bound, value + slack, Claim.GAP))
    checks.append(Check("distance to the lower bound", distance, slack, Claim.OPTIMAL))
    claim = _claim(checks)
    return Certificate(claim, tuple(checks), tuple(assumptions), bound, gap, measures)


def _operations(n: int, budget: int) -> float:
    """Return about how many operations `best_by_counts` takes."""
    return float(n) * min(n, budget) * max(budget, 1) / 2


def _claim(checks: list[Check]) -> Claim | None:
    best = None
    for claim in (Claim.FEASIBLE, Claim.STATIONARY, Claim.GAP, Claim.OPTIMAL):
        if not all(check.passed for check in checks if check.claim is claim):
            break
        best = claim
    return best


def _value(chain: Chain, signal: Floats) -> float:
    fit = chain.weights @ (signal - chain.y) ** 2
    return float(fit + chain.edges @ np.diff(signal) ** 2)


def _slope(chain: Chain, signal: Floats) -> Floats:
    slope = chain.weights * (signal - chain.y)
    pull = chain.edges * np.diff(signal)
    slope[1:] += pull
    slope[:-1] -= pull
    return slope


def _by_messages(chain: Chain, cost: Floats) -> tuple[float, float]:
    swept = sweep(chain.y, chain.weights, chain.edges, cost, chain.nonnegative, True)
    low, high = domains(chain.y, chain.weights, chain.edges, chain.nonnegative)
    bound, violation = bound_of_messages(
        chain.y, chain.weights, chain.edges, cost, low, high, swept[4], swept[5], swept[6]
    )
    return float(bound), float(violation)
