"""What every sparse set shares: a budget, covered tensors, separable side constraints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.tensors.coverage import check_names, covered, has_nan, refuse_nan, restrict
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer, check_real


class AbstractBudgetSet(AbstractSparseSet):
    """Sparse set with a budget and with bounds on the entries that it covers.

    Subclasses are frozen dataclasses with the fields `names`, `lower` and `upper`, and the one
    that `BUDGET` names.
    """

    BUDGET: ClassVar[str]
    lower: float | None
    upper: float | None

    @abstractmethod
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        """Return the largest number of nonzeros of a member.

        Parameters
        ----------
        params : mapping of str to Tensor
            A point or a batch; only shapes are read.
        factor : int, default=1
            Multiple of the budget: 2 gives the most nonzeros in a difference of two members.

        Returns
        -------
        int
            Nonzeros of one point; free tensors count in full.
        """

    @abstractmethod
    def excess(self, params: Params) -> Tensor:
        """Return how much of the budget's unit is used above the budget, as int64."""

    @abstractmethod
    def n_units(self, params: Params) -> int:
        """Return how many units `params` (a point) has, which is the largest useful budget."""

    @property
    def budget(self) -> int:
        """The budget, in the unit of the set."""
        return int(getattr(self, self.BUDGET))

    def with_budget(self, budget: int) -> Self:
        """Return the same set with another budget."""
        if budget == self.budget:
            return self
        return replace(self, **{self.BUDGET: budget})  # type: ignore[type-var]

    @override
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        refuse_nan(params)
        masks = self.select(self.gains(params), incumbents=incumbents)
        return named.mask(self.clip(params), masks)

    @override
    def violation(self, params: Params) -> Tensor:
        return total_violation(self.excess(params), params, self.names, self.lower, self.upper)

    @override
    def clip(self, params: Params) -> Params:
        return clip(params, self.names, self.lower, self.upper)

    @override
    def gains(self, params: Params) -> Params:
        def gain(tensor: Tensor, kept: Tensor) -> Tensor:
            # theta^2 - (theta - kept)^2, without cancellation; squares of float32 need float64.
            wide, kept = widen(tensor), widen(kept)
            exact = (kept == wide) | (kept == 0)
            return torch.where(exact, kept * kept, kept * (2 * wide - kept))

        return named.map_tensors(gain, params, self.clip(params))


def free_size(params: Params, names: tuple[str, ...] | None) -> int:
    """Return the number of entries of one point that are not covered."""
    return named.size(params) - named.size(restrict(params, names))


def widen(tensor: Tensor) -> Tensor:
    """Return the tensor in the finest dtype of its device."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def set_names(owner: object, names: str | Sequence[str] | None) -> None:
    """Check the names of a frozen set and store them as a tuple."""
    object.__setattr__(owner, "names", check_names(names))


def set_bounds(owner: object, lower: float | None, upper: float | None, nonnegative: bool) -> None:
    """Check the bounds of a frozen sparse set and store them as floats.

    Raises
    ------
    InvalidParameterError
        If a bound is not a finite number or leaves 0 outside.
    """
    if lower is not None:
        lower = check_real("lower", lower)
        if lower > 0:
            raise InvalidParameterError(
                f"`lower` must be at most 0, so that an entry can be zero, got {lower:g}.",
                "Shift the variables, or use `Box` alone.",
            )
    if upper is not None:
        upper = check_real("upper", upper)
        if upper < 0:
            raise InvalidParameterError(
                f"`upper` must be at least 0, so that an entry can be zero, got {upper:g}.",
                "Shift the variables, or use `Box` alone.",
            )
    object.__setattr__(owner, "lower", 0.0 if nonnegative else lower)
    object.__setattr__(owner, "upper", upper)


def set_budget(owner: object, name: str, value: int, meaning: str) -> None:
    """Check the budget of a frozen set and store it as an int."""
    hint = f"Pass the largest number of {meaning} that may differ from zero."
    object.__setattr__(owner, name, check_integer(name, value, 0, hint=hint))


def check_budget(name: str, value: int, available: int, meaning: str) -> None:
    """Raise when a budget exceeds what the tensors have.

    Raises
    ------
    InvalidParameterError
        If `value` exceeds `available`.
    """
    unit = name.removeprefix("n_").rstrip("s").replace("nonzero", "entry")
    hint = f"Pass `{name}={available}` to keep every {unit}."
    check_integer(name, value, 0, available, meaning=meaning, hint=hint)


def check_factor(factor: int) -> int:
    """Return the multiple of the budget, or raise when it is not a positive integer."""
    return check_integer("factor", factor, 1)


def _bound(bound: float | None, tensor: Tensor, toward: float) -> Tensor:
    """Return the bound in the tensor's dtype, rounded so that it never leaves the interval."""
    if bound is None:
        return torch.tensor(-toward, dtype=tensor.dtype)
    near = torch.tensor(bound, dtype=tensor.dtype)
    value = named.to_float(near)
    if value == bound or (value < bound) == (toward < bound):
        return near
    return torch.nextafter(near, torch.full_like(near, toward))


def clip(
    params: Params, names: tuple[str, ...] | None, lower: float | None, upper: float | None
) -> Params:
    """Return the covered entries moved into [lower, upper], exactly also after widening."""
    if lower is None and upper is None:
        return params
    out = dict(params)
    for name in covered(params, names):
        tensor = out[name]
        low, high = _bound(lower, tensor, torch.inf), _bound(upper, tensor, -torch.inf)
        if named.any_true(low > high):  # no number of this dtype lies between the bounds
            low = high = torch.tensor(lower, dtype=tensor.dtype)
        out[name] = tensor.clamp(low.to(tensor.device), high.to(tensor.device))
    return named.like(params, out)


def total_violation(
    excess: Tensor,
    params: Params,
    names: tuple[str, ...] | None,
    lower: float | None,
    upper: float | None,
) -> Tensor:
    """Return the excess plus the distance to the bounds; infinity where an entry is NaN."""
    out = widen(excess.clamp_min(0))
    if lower is not None or upper is not None:
        # Bounds are rounded to nearest here, so that a member stays one after narrowing.
        def outside(t: Tensor) -> Tensor:
            kept = t.clamp(
                None if lower is None else torch.tensor(lower, dtype=t.dtype, device=t.device),
                None if upper is None else torch.tensor(upper, dtype=t.dtype, device=t.device),
            )
            return torch.where(kept == t, torch.zeros_like(t), t - kept)

        out = out + named.norm(named.map_tensors(outside, restrict(params, names)))
    return torch.where(has_nan(params), torch.full_like(out, torch.inf), out)
