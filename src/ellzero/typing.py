"""Type aliases shared by every layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Params: TypeAlias = "Mapping[str, Tensor]"
"""Named tensors, never mutated; insertion order is the order."""

Masks: TypeAlias = "Mapping[str, Tensor]"
"""Named tensors of bool with the names and shapes of a `Params`."""
