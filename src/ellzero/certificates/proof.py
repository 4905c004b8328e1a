"""Checking of a proof of global optimality, box by box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import and_

import torch

from ellzero.certificates.bounds import box_bound
from ellzero.certificates.flat import ROUNDING, FlatObjective
from ellzero.core.problem import AbstractConvexObjective
from ellzero.core.result import Check, Claim, Proof
from ellzero.sets import L0Ball
from ellzero.tensors import named, supports

# Numbers in the box matrices held at a time.
CHUNK = 2**22


@dataclass(frozen=True, slots=True)
class ProofCheck:
    """What a proof shows.

    Parameters
    ----------
    checks : tuple of Check
        The inequalities that were evaluated.
    lower_bound : float
        Smallest bound of a box when the boxes cover every support; else minus infinity.
    reason : str or None
        What is wrong with the proof; None when nothing is.
    """

    checks: tuple[Check, ...]
    lower_bound: float
    reason: str | None

    @property
    def valid(self) -> bool:
        """Whether every check passes."""
        return all(check.passed for check in self.checks)


def check_proof(
    objective: AbstractConvexObjective,
    constraint: L0Ball,
    proof: Proof,
    value: float,
    tol: float = 1e-6,
) -> ProofCheck:
    """Check that boxes cover every support and that none holds a better point.

    Parameters
    ----------
    objective : AbstractConvexObjective
        Strongly convex objective.
    constraint : L0Ball
        Budget.
    proof : Proof
        Boxes and their points.
    value : float
        The value that is claimed to be optimal.
    tol : float, default=1e-6
        Relative amount by which a bound may lie below `value`.

    Returns
    -------
    ProofCheck
        The verdict, the checks and the lower bound that the boxes prove.

    Notes
    -----
    Costs one gradient and one sort for each box. Coverage is shown by descending: a node of
    supports is covered by a box that fixes nothing more, or else split on an entry that every box
    in it fixes. Supports smaller than the budget lie inside full ones and need no box.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import check_proof
    >>> from ellzero.core.result import Proof
    >>> objective = ellzero.LeastSquares(torch.eye(2).double(), torch.tensor([3.0, 1.0]))
    >>> proof = Proof(included=((),), excluded=((),), points=[[3.0, 1.0]])
    >>> check_proof(objective, ellzero.L0Ball(1), proof, value=0.25).valid
    True
    >>> check_proof(objective, ellzero.L0Ball(1), proof, value=0.26).valid
    False
    """
    flat = FlatObjective.of(objective)
    counted = supports.covered(constraint.names, flat.template)
    entries = {i for i, c in enumerate(named.to_list(counted)) if c}
    reason = _malformed(proof, flat.size, entries)
    missing = None
    if reason is None:
        missing = _uncovered(proof, entries, constraint.n_nonzero)
        if missing is not None:
            reason = f"The boxes leave out supports: {missing}."
    uncovered = Check("boxes of the proof that are missing", float(reason is not None), 0.0,
                      Claim.OPTIMAL)  # fmt: skip
    if reason is not None:
        return ProofCheck((uncovered,), -math.inf, reason)
    lowest = _lowest_bound(flat, objective, constraint, proof)
    floor = ROUNDING * abs(flat.value_at_zero())
    depth = Check(
        "value above the weakest box of the proof",
        value - lowest,
        max(tol * abs(value), floor),
        Claim.OPTIMAL,
    )
    if not depth.passed:
        reason = f"The weakest box has the bound {lowest:.9g}, below the value {value:.9g}."
    return ProofCheck((uncovered, depth), lowest, reason)


def _malformed(proof: Proof, size: int, entries: set[int]) -> str | None:
    """Return what is wrong with the form of a proof."""
    if not len(proof.included) == len(proof.excluded) == len(proof.points):
        return "The proof has different numbers of boxes and points."
    for included, excluded, point in zip(
        proof.included, proof.excluded, proof.points, strict=True
    ):
        if not (entries.issuperset(included) and entries.issuperset(excluded)):
            return "A box of the proof names an entry that does not count."
        if set(included) & set(excluded):
            return "A box of the proof includes and excludes the same entry."
        if len(point) != size or not all(math.isfinite(x) for x in point):
            return f"A point of the proof does not have {size} finite entries."
    return None


def _bits(entries: tuple[int, ...]) -> int:
    out = 0
    for entry in entries:
        out |= 1 << entry
    return out


def _uncovered(proof: Proof, entries: set[int], budget: int) -> str | None:
    """Return a node of supports that no box is shown to cover, in words; None when all are.

    Sets of entries are bits of integers: a step over all boxes of a node is one pass of them.
    """
    boxes = [
        (_bits(inc), _bits(exc)) for inc, exc in zip(proof.included, proof.excluded, strict=True)
    ]
    everything = _bits(tuple(entries))
    budget = min(budget, len(entries))
    stack = [(0, 0, boxes)]
    while stack:
        inside, outside, rows = stack.pop()
        count = inside.bit_count()
        left = everything & ~inside & ~outside
        if count > budget or count + left.bit_count() < budget:
            continue
        if count == budget:
            outside, left = outside | left, 0
        elif count + left.bit_count() == budget:
            inside, left = inside | left, 0
        if any(not (inc & ~inside) and not (exc & ~outside) for inc, exc in rows):
            continue
        if not left or not rows:
            return _describe(inside, outside)
        decided = reduce(and_, (inc | exc for inc, exc in rows), left)
        if not decided:
            return _describe(inside, outside)
        split = decided & -decided
        stack.append((inside | split, outside, [row for row in rows if row[0] & split]))
        stack.append((inside, outside | split, [row for row in rows if row[1] & split]))
    return None


def _describe(inside: int, outside: int) -> str:
    def listed(bits: int) -> str:
        return str([i for i in range(bits.bit_length()) if bits >> i & 1])

    return f"those with {listed(inside)} inside and {listed(outside)} outside"


def _lowest_bound(
    flat: FlatObjective, objective: AbstractConvexObjective, constraint: L0Ball, proof: Proof
) -> float:
    counted = supports.covered(constraint.names, flat.template)
    rows = max(1, CHUNK // max(flat.size, 1))
    lowest = math.inf
    for first in range(0, len(proof), rows):
        part = slice(first, first + rows)
        points = torch.tensor(proof.points[part], dtype=torch.float64, device=flat.device)
        masks = torch.zeros(2, *points.shape, dtype=torch.bool)
        for side, sets in enumerate((proof.included[part], proof.excluded[part])):
            pairs = [(row, entry) for row, box in enumerate(sets) for entry in box]
            if pairs:
                row, entry = torch.tensor(pairs).T
                masks[side, row, entry] = True
        bounds = box_bound(
            objective,
            points,
            constraint.n_nonzero,
            masks[0].to(flat.device),
            masks[1].to(flat.device),
            counted=counted,
        )
        # A box that includes more than the budget holds no support.
        empty = (masks[0].sum(1) > constraint.n_nonzero).to(flat.device)
        lowest = min(lowest, named.to_float(torch.where(empty, torch.inf, bounds).min()))
    return lowest
