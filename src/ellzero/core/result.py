"""What comes back: statuses, checks, certificates, results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.errors import NonFiniteError, NotConvergedError
from ellzero.tensors import named
from ellzero.typing import Params

Measure = float | int | bool | str | None


class Status(Enum):
    """Why a solver stopped; the value is the sentence shown to the user."""

    CONVERGED = "Converged."
    STALLED = "Stopped: no further progress is possible at this precision."
    MAX_ITER = "Stopped at `max_iter` iterations before convergence."
    TIME_LIMIT = "Stopped at `time_limit` before convergence."
    DIVERGED = "Stopped: the objective grew without bound."
    NON_FINITE = "Stopped: the objective became NaN or infinite."
    INTERRUPTED = "Interrupted; the best point so far is returned."

    @property
    def code(self) -> int:
        """Positive integer for tensors of statuses; 0 means still running."""
        return list(Status).index(self) + 1

    @classmethod
    def from_code(cls, code: int) -> Status:
        """Return the status of a positive code."""
        return list(cls)[code - 1]

    @property
    def is_success(self) -> bool:
        """Whether the solver finished by its own test."""
        return self in (Status.CONVERGED, Status.STALLED)


class Claim(IntEnum):
    """What is proven of a point; each level is stronger than the one before."""

    FEASIBLE = 1
    STATIONARY = 2
    COORDINATEWISE = 3
    GAP = 4
    OPTIMAL = 5

    @property
    def sentence(self) -> str:
        """One line for people."""
        return {
            Claim.FEASIBLE: "inside the budget, nothing more",
            Claim.STATIONARY: "stationary: stable under hard thresholding",
            Claim.COORDINATEWISE: "no exchange of one support entry improves it",
            Claim.GAP: "within a proven gap of the global optimum",
            Claim.OPTIMAL: "proven globally optimal",
        }[self]


@dataclass(frozen=True, slots=True)
class Check:
    """One inequality, evaluated: it passes when `value` <= `bound`.

    Parameters
    ----------
    name : str
        What is compared, in words.
    value, bound : float
        The two sides.
    claim : Claim
        The claim that needs it.
    """

    name: str
    value: float
    bound: float
    claim: Claim = Claim.FEASIBLE

    @property
    def passed(self) -> bool:
        """Whether the inequality holds; False for NaN."""
        return self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is proven of one point, from the problem and the point alone.

    Parameters
    ----------
    claim : Claim or None
        The strongest claim whose checks all pass; None when the point is not even feasible.
    checks : tuple of Check
        Every inequality that was evaluated, passed or not.
    assumptions : tuple of str
        What the checks take for granted, and why a claim is out of reach where it is.
    lower_bound : float or None
        Proven lower bound on the global optimum; None when none can be had.
    gap : float or None
        Relative distance (value - lower_bound) / max(|value|, |lower_bound|).
    measures : mapping of str to number or str
        Numbers that describe the point: counts, margins, step sizes, constants with their kind.
    """

    claim: Claim | None
    checks: tuple[Check, ...]
    assumptions: tuple[str, ...] = ()
    lower_bound: float | None = None
    gap: float | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether a claim is proven."""
        return self.claim is not None

    def supports(self, claim: Claim) -> bool:
        """Return whether the certificate proves at least `claim`."""
        return self.claim is not None and self.claim >= claim

    def __str__(self) -> str:
        """Return the claim, every check and every assumption, one in a line."""
        lines = ["not inside the budget" if self.claim is None else self.claim.sentence]
        if self.lower_bound is not None and self.gap is not None:
            lines.append(f"lower bound {self.lower_bound:.6g}, gap {self.gap:.1e}")
        for check in self.checks:
            verdict = "holds" if check.passed else "fails"
            sides = f"{check.value:.6g} <= {check.bound:.6g}"
            lines.append(f"{check.claim.name.lower():>14} {verdict}  {sides}  {check.name}")
        return "\n".join([*lines, *(f"       assumes   {line}" for line in self.assumptions)])

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "claim": None if self.claim is None else self.claim.name.lower(),
            "sentence": "not inside the budget" if self.claim is None else self.claim.sentence,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "checks": [
                {
                    "name": c.name,
                    "value": c.value,
                    "bound": c.bound,
                    "passed": c.passed,
                    "claim": c.claim.name.lower(),
                }
                for c in self.checks
            ],
            "assumptions": list(self.assumptions),
            "measures": dict(self.measures),
        }


@dataclass(frozen=True, slots=True)
class Proof:
    """Partition of all supports into boxes, with a point for each that gives its lower bound.

    A box holds the supports that contain `included` and avoid `excluded`. The bound of a box is
    recomputed from its point alone, so a proof can be checked without the solver that found it.

    Parameters
    ----------
    included, excluded : tuple of tuple of int
        Flattened entries fixed inside and outside the support, for each box.
    points : list of list of float
        A point for each box, flattened; any point gives a valid bound, a good one a tight bound.
    """

    included: tuple[tuple[int, ...], ...]
    excluded: tuple[tuple[int, ...], ...]
    points: list[list[float]]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.included)


@dataclass(frozen=True, slots=True)
class TreeProof:
    """A tree of boxes of supports, with what gives the lower bound of every box.

    The tree is a list of steps. A step takes a box from an earlier step, bounds it at a base point
    under a model of the curvature, and may decide features whose opposite its bound rules out;
    what remains is enumerated, split on a feature, or handed on. Boxes that nothing follows are
    the leaves. Everything is in units in which the curvature of every feature is one.

    Parameters
    ----------
    features : ndarray of shape (p,), int64
        The features to choose from, ascending; others are fixed at zero.
    steps : ndarray of shape (E, 4), int32
        For each step: the earlier step, -1 for the first; the side of its split that is taken (1
        inside, -1 outside, 0 all of it); 1 where the rest is enumerated; the feature to split on,
        -1 for none.
    point_ends : ndarray of shape (E,), int64
        Where the base point of every step ends in `places` and `values`.
    places, values : ndarray
        The base points: features and numbers.
    decision_ends : ndarray of shape (E,), int64
        Where the decisions of every step end in `decisions`.
    decisions : ndarray, int32
        Features decided, plus 1; negative for outside.
    model_starts : ndarray of shape (M,), int64
        First step of every model; features in its steps count from those that are free in the box
        of that step (after those inside, where these are not projected out).
    projected : ndarray of shape (M,), int8
        Whether the features inside are projected out.
    thresholds : ndarray of shape (M,)
        By how much entries beside the diagonal are reduced.
    weight_ends : ndarray of shape (M,), int64
        Where the weights of every model end in `weights`.
    weights : ndarray
        Curvature that is taken out of the matrix, for every feature of a model; none where the
        model gives no bound.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.exact import prove
    >>> from ellzero.subset.gram import gram_of
    >>> proof = prove(gram_of(np.eye(4), np.array([4.0, 1.0, 3.0, 0.0])), 1, ridge=0.1).proof
    >>> len(proof) > 0
    True
    """

    features: NDArray[np.int64]
    steps: NDArray[np.int32]
    point_ends: NDArray[np.int64]
    places: NDArray[np.int32]
    values: NDArray[np.float64]
    decision_ends: NDArray[np.int64]
    decisions: NDArray[np.int32]
    model_starts: NDArray[np.int64]
    projected: NDArray[np.int8]
    thresholds: NDArray[np.float64]
    weight_ends: NDArray[np.int64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of steps."""
        return int(self.steps.shape[0])


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of `solve`.

    Parameters
    ----------
    params : mapping of str to Tensor
        The best point found, feasible.
    value : float
        Objective plus penalty there.
    status : Status
        Why the solver stopped.
    n_iter : int
        Iterations done by the run that gave the point.
    certificate : Certificate or None
        What is proven of the point; None when `certify=False`.
    trace : tuple of float
        Value after each iteration of that run, the start first.
    seconds : float
        Wall time.
    solver : str
        The solver and its settings.
    proof : Proof, TreeProof or None
        Evidence of global optimality, when the solver made one.
    measures : mapping of str to number or str
        Numbers about the run: starts, hit rate, nodes, increases of the value.
    """

    params: Params
    value: float
    status: Status
    n_iter: int
    certificate: Certificate | None
    trace: tuple[float, ...]
    seconds: float
    solver: str
    proof: Proof | TreeProof | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def support(self) -> dict[str, list[Any]]:
        """Where every tensor differs from zero: indices, or tuples of indices."""
        out: dict[str, list[Any]] = {}
        for name, tensor in self.params.items():
            where = named.to_list((tensor != 0).nonzero())
            out[name] = [w[0] if len(w) == 1 else tuple(w) for w in where]
        return out

    @property
    def n_nonzero(self) -> int:
        """Number of entries that differ from zero."""
        return named.to_int(named.count_nonzero(self.params))

    @property
    def lower_bound(self) -> float | None:
        """Proven lower bound on the global optimum, or None."""
        return None if self.certificate is None else self.certificate.lower_bound

    @property
    def gap(self) -> float | None:
        """Relative gap to the lower bound, or None."""
        return None if self.certificate is None else self.certificate.gap

    def raise_for_status(self) -> None:
        """Raise when the solver did not finish by its own test.

        Raises
        ------
        NonFiniteError
            If the objective became NaN or infinite.
        NotConvergedError
            If the solver stopped at a limit.
        """
        if self.status is Status.NON_FINITE:
            raise NonFiniteError(
                f"The objective became NaN or infinite after {self.n_iter} iterations.",
                "Scale the data, or give a smaller `step_size`.",
            )
        if not self.status.is_success:
            raise NotConvergedError(
                f"{self.solver} stopped after {self.n_iter} iterations at value {self.value:.6g}.",
                f"{self.status.value} Raise the limit, or accept the point as it is.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "value": self.value if math.isfinite(self.value) else None,
            "status": self.status.name.lower(),
            "status_sentence": self.status.value,
            "n_iter": self.n_iter,
            "n_nonzero": self.n_nonzero,
            "params": {n: named.to_list(t) for n, t in self.params.items()},
            "support": {
                n: [list(i) if isinstance(i, tuple) else i for i in s]
                for n, s in self.support.items()
            },
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "trace": list(self.trace),
            "seconds": self.seconds,
            "solver": self.solver,
            "measures": dict(self.measures),
            "proof_boxes": None if self.proof is None else len(self.proof),
        }
