"""What every method for sparse and smooth signals takes and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Measure, Status

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

# Relative distance that sums of squares in another order make.
ROUNDING = 1e-13


@dataclass(frozen=True, slots=True)
class Solution:
    r"""A signal with few nonzeros, its objective, and a bound that nothing can be below.

    Parameters
    ----------
    signal : ndarray of shape (n,)
        The estimate; zero off the support.
    support : ndarray of shape (n,), bool
        Where it may differ from zero.
    value : float
        Objective there, computed from the signal: fit plus smoothness, plus the penalty of the
        nonzeros in the penalized form.
    lower_bound : float
        Proven lower bound on the optimal value.
    penalty : float
        Cost of a nonzero: the one that was given, or the multiplier of a budget.
    status : Status
        Why the method stopped.
    measures : mapping of str to number or str
        Work done: programs, pieces, states, rounds.
    proof : object or None, default=None
        What a certificate needs to check the lower bound on a graph with cycles.
    """

    signal: Floats
    support: Bools
    value: float
    lower_bound: float
    penalty: float
    status: Status = Status.CONVERGED
    measures: Mapping[str, Measure] = field(default_factory=dict)
    proof: object | None = field(default=None, repr=False)

    @property
    def n_nonzero(self) -> int:
        """Number of entries that differ from zero."""
        return int(np.count_nonzero(self.signal))

    @property
    def gap(self) -> float:
        """Relative distance of the value to the lower bound; 0 below rounding."""
        scale = max(abs(self.value), abs(self.lower_bound))
        distance = self.value - self.lower_bound
        return distance / scale if distance > ROUNDING * scale else 0.0
