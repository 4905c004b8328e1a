"""Numbers that the programs of networks can be made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.errors import DataError

# Products of four of them, and sums of many, are in the range of float64.
LEAST, LARGEST = 1e-60, 1e60


def check_magnitudes(**arrays: Any) -> None:
    """Raise DataError unless the largest magnitude of every array is 0 or can be squared twice."""
    for name, values in arrays.items():
        largest = float(np.abs(values).max(initial=0.0))
        if largest and not LEAST <= largest <= LARGEST:
            raise DataError(
                f"`{name}` must have its largest magnitude between {LEAST:g} and {LARGEST:g}, got "
                f"{largest:g}.",
                "Divide it by that: the objective is made of squares.",
            )
