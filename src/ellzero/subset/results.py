"""What a search over subsets gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.core.result import Measure, Status

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Subset:
    r"""Features chosen for one budget, and the minimizer on them.

    Parameters
    ----------
    support : ndarray of shape (k,), int64
        Chosen features, ascending.
    coef : ndarray of shape (k, n_outputs), float64
        Their coefficients, none of them a row of zeros.
    intercept : ndarray of shape (n_outputs,), float64
        Intercepts; zeros where none is fitted.
    value : float
        Objective, in the units of `ellzero.objectives`: mean loss (half the mean square for least
        squares) plus half the ridge times the squares of the coefficients.
    """

    support: Integers
    coef: Floats
    intercept: Floats
    value: float

    @property
    def n_nonzero(self) -> int:
        """Number of chosen features."""
        return int(self.support.shape[0])

    def dense(self, n_features: int) -> Floats:
        """Return the coefficients with their zeros, shape (n_outputs, n_features)."""
        out = np.zeros((self.coef.shape[1], n_features))
        out[:, self.support] = self.coef.T
        return out


@dataclass(frozen=True, slots=True)
class SubsetPath:
    """The best subset found for each of several budgets.

    Parameters
    ----------
    budgets : ndarray of shape (m,), int64
        Budgets, ascending; features or groups, whichever the search counts.
    subsets : tuple of Subset
        One for each budget; values never rise along the path.
    status : Status
        CONVERGED, or the limit that ended the search.
    measures : mapping of str to number or str
        Work done: scans, swaps, kicks, columns of the Gram matrix computed.
    """

    budgets: Integers
    subsets: tuple[Subset, ...]
    status: Status = Status.CONVERGED
    measures: Mapping[str, Measure] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of budgets."""
        return len(self.subsets)

    def __getitem__(self, budget: int) -> Subset:
        """Return the subset of a budget."""
        return self.subsets[int(np.flatnonzero(self.budgets == budget)[0])]

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, ready for JSON."""
        return {
            "budgets": self.budgets.tolist(),
            "values": [s.value for s in self.subsets],
            "supports": [s.support.tolist() for s in self.subsets],
            "status": self.status.name.lower(),
            "measures": dict(self.measures),
        }
