"""What was found for one budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ellzero.typing import Params


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for one budget, in plain values and tensors.

    Parameters
    ----------
    budget : int
        Most nonzeros allowed.
    params : mapping of str to Tensor
        The point.
    row : dict
        The line of the path table.
    certificate : dict
        `Certificate.to_dict`.
    proof : Proof or None
        Evidence of global optimality.
    state : mapping of str to Tensor
        The whole state of a large network, buffers included.
    curves : dict
        How the training of a network went, see `Curves`.
    """

    budget: int
    params: Params
    row: dict[str, Any]
    certificate: dict[str, Any]
    proof: Any = None
    state: Params = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
