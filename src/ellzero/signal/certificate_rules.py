"""What is proven of a signal under rules on its support, from the data and the signal alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ellzero.core.result import Certificate, Check, Claim, Measure
from ellzero.kernels.chain import domains
from ellzero.kernels.chain_rules import EVERY
from ellzero.kernels.chain_rules_check import best_by_runs, bound_of_rules
from ellzero.signal.certificate import (
    ALL_COUNTS,
    INTERVAL,
    MULTIPLIER,
    TOL,
    conclude,
    slope_of,
    steepest_check,
)
from ellzero.signal.chain import Chain
from ellzero.signal.rules import ruled_value, run_program
from ellzero.signal.solution import Bools, Integers, Solution


def certify_ruled(
    chain: Chain,
    found: Solution,
    *,
    budget: int | None,
    penalty: float | None,
    scale: float = 1.0,
) -> Certificate:
    """Return what is proven of a signal under rules on its support.

    Parameters
    ----------
    chain : Chain
        Data and rules.
    found : Solution
        What the program returned; its signal, support and multipliers are used.
    budget : int or None
        Most nodes of the support that count.
    penalty : float or None
        Cost of a node of the support that counts; exactly one of the two is given.
    scale : float, default=1.0
        Unit of the samples.

    Returns
    -------
    Certificate
        With a lower bound that other code than the solver's has computed.

    Notes
    -----
    Every rule is checked on the support. Short chains are solved again by the first and last
    node of every run, with all limits. Longer ones by message inequalities of the rules at the
    multipliers of the limits: what counting has closed beyond them is not recomputed, and said.
    """
    signal, support = found.signal, found.support
    kinds = np.ones(chain.size, dtype=np.int8) if chain.kinds is None else chain.kinds
    value, count, runs = ruled_value(chain, signal, support, penalty or 0.0)
    lengths, gaps = _lengths(support)
    pairs: list[tuple[str, Any, Any]] = [
        ("nonzeros off the support", np.count_nonzero(signal[~support]), 0),
        ("nodes that count", count, chain.size if budget is None else budget),
        ("known zeros that are on", np.count_nonzero(support & (kinds < 0)), 0),
        ("known ones that are off", np.count_nonzero(~support & (kinds == 0)), 0),
        ("bumps", runs, chain.size if chain.most_bumps is None else chain.most_bumps),
        ("bumps that are too short", np.count_nonzero(lengths < chain.length), 0),
        ("bumps that are too close", np.count_nonzero(gaps < chain.distance), 0),
        ("negative values", np.count_nonzero(signal < 0) if chain.nonnegative else 0, 0),
    ]
    checks = [Check(name, float(a), float(b), Claim.FEASIBLE) for name, a, b in pairs]
    slope = slope_of(chain, signal)
    # Where a signal must not be negative a node of the support may be at zero and pull down.
    pulls = np.minimum(slope, 0.0) if chain.nonnegative else slope
    pulls = np.where(signal != 0, slope, pulls)[support]
    checks.append(steepest_check(pulls, chain.weights * chain.y, scale))
    at_zero = float(chain.weights @ chain.y**2)
    measures: dict[str, Measure] = {"n_nonzero": int(np.count_nonzero(signal)), "n_bumps": runs}
    assumptions: list[str] = []
    limits = (
        (-1 if budget is None else budget),
        (-1 if chain.most_bumps is None else chain.most_bumps),
    )
    pairs_of_counts = (max(limits[0], 0) + 1.0) * (max(limits[1], 0) + 1.0)
    each = pairs_of_counts + (3.0 * chain.size if chain.nonnegative else 0.0)
    if 0.5 * chain.size**2 * each <= ALL_COUNTS:
        bound = float(
            best_by_runs(
                chain.y, chain.weights, chain.edges, kinds, penalty or 0.0, chain.bump, *limits,
                chain.length, chain.distance, chain.nonnegative,
            )
        )  # fmt: skip
        measures["bound_method"] = "every run"
    else:
        count_price = found.penalty if budget is not None else 0.0
        run_price = float(found.measures.get("bump_multiplier") or 0.0)
        price, bump = (penalty or 0.0) + count_price, chain.bump + run_price
        messages = run_program(replace(chain, most_bumps=None), price, bump, keep=EVERY).messages
        low, high = domains(chain.y, chain.weights, chain.edges, chain.nonnegative)
        bound, violation = bound_of_rules(
            chain.y, chain.weights, chain.edges, kinds, price, bump, chain.length,
            chain.distance, low, high, messages.kept, messages.first, messages.bases,
        )  # fmt: skip
        bound -= count_price * max(limits[0], 0) + run_price * max(limits[1], 0)
        measures["bound_method"] = "message inequalities"
        measures["violation"] = float(violation) * scale**2
        assumptions.append(INTERVAL)
        if max(limits) >= 0 and value - bound > TOL * max(value, 1e-12 * at_zero):
            assumptions.append(MULTIPLIER)
    return conclude(checks, assumptions, measures, value, float(bound), at_zero, scale)


def _lengths(support: Bools) -> tuple[Integers, Integers]:
    """Return the length of every run, and the number of zeros between neighbors."""
    steps = np.diff(np.concatenate([[0], support.astype(np.int8), [0]]))
    starts, stops = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    return stops - starts, starts[1:] - stops[:-1]
