"""Why no lower bound can be had, in a sentence."""

from __future__ import annotations

from torch import Tensor

from ellzero.certificates.flat import FlatObjective
from ellzero.certificates.minimize import has_minimizer
from ellzero.core.problem import (
    AbstractConvexObjective,
    AbstractLinearObjective,
    AbstractQuadraticObjective,
)

# Above this many numbers the linear program that tells whether a minimizer exists is left out.
PROGRAM_SIZE = 4_000_000


def why_no_bound(flat: FlatObjective, support: Tensor) -> str:
    """Return the reason and what to do about it.

    Parameters
    ----------
    flat : FlatObjective
        Objective without a lower bound over sparse points.
    support : Tensor of shape (n,), bool
        Support of the point at hand.

    Returns
    -------
    str
        One sentence.
    """
    objective = flat.objective
    kind = type(objective).__name__
    if not isinstance(objective, AbstractConvexObjective):
        return f"No lower bound: `{kind}` is not known to be convex."
    if not isinstance(objective, AbstractLinearObjective):
        return "No lower bound: the objective is not strongly convex."
    if isinstance(objective, AbstractQuadraticObjective):
        return (
            "No lower bound on what other supports reach is possible: without ridge, and with "
            "dependent columns or more columns than samples, the loss is not strongly convex; "
            "pass ridge > 0."
        )
    if flat.width * flat.size > PROGRAM_SIZE:
        return "No lower bound: the objective is not strongly convex; pass ridge > 0."
    if has_minimizer(flat, support) is False:
        return (
            "No lower bound: without ridge the loss has no minimizer on this support "
            "(classes are separable); pass ridge > 0."
        )
    if has_minimizer(flat, None) is False:
        return (
            "No lower bound: without ridge the loss has a minimizer on this support but none over "
            "all entries (classes are separable); pass ridge > 0."
        )
    return (
        "No lower bound: without ridge the loss has a minimizer but is not strongly convex; "
        "pass ridge > 0."
    )
