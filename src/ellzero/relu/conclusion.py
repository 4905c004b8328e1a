"""The certificate of a value and a lower bound, whatever has proven the bound."""

from __future__ import annotations

from collections.abc import Mapping

from ellzero.core.result import Certificate, Check, Claim, Measure

# Relative gap below which a network is called optimal, and what counts as rounding of a bound.
OPTIMAL, ROUNDING = 1e-6, 1e-9


def conclude(
    value: float,
    bound: float,
    measures: Mapping[str, Measure],
    *,
    scale: float = 0.0,
    assumptions: tuple[str, ...] = (),
    gap_name: str = "relative gap",
) -> Certificate:
    """Return the certificate of a value and a lower bound.

    Parameters
    ----------
    value : float
        Objective of the network.
    bound : float
        Proven lower bound. One that is above the value by more than rounding proves that
        something is wrong: nothing is claimed then.
    measures : mapping of str to number or str
        Numbers worth knowing.
    scale : float, default=0.0
        Objective of the zero network, the unit of rounding.
    assumptions : tuple of str, default=()
        What the bound rests on.
    gap_name : str, default="relative gap"
        Name of the check of the gap.

    Returns
    -------
    Certificate
        OPTIMAL below a relative gap of 1e-6, GAP above.
    """
    if value < bound <= value + ROUNDING * abs(value) + 1e-14 * scale:
        bound = value
    # A value that is zero to rounding is as far below as it can be.
    gap = (value - bound) / abs(value) if abs(value) > 1e-28 * scale else 0.0
    checks = (
        Check("lower bound", bound, value, Claim.GAP),
        Check(gap_name, gap, OPTIMAL, Claim.OPTIMAL),
    )
    claim = None
    if checks[0].passed:
        claim = Claim.OPTIMAL if checks[1].passed else Claim.GAP
    return Certificate(claim, checks, assumptions, bound, gap, measures)


def bound_in(certificate: Certificate) -> float:
    """Return the lower bound of a certificate that has one."""
    assert certificate.lower_bound is not None
    return certificate.lower_bound


def gap_in(certificate: Certificate) -> float:
    """Return the relative gap of a certificate that has one."""
    assert certificate.gap is not None
    return certificate.gap
