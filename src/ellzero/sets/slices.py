"""Budgets on whole slices of tensors: the rows, columns, filters or channels of weights."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.sets.base import (
    AbstractBudgetSet,
    check_budget,
    check_factor,
    free_size,
    set_bounds,
    set_budget,
    set_names,
    widen,
)
from ellzero.tensors import named
from ellzero.tensors.coverage import covered, list_names, restrict
from ellzero.tensors.selection import top_k_masks
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer


@final
@dataclass(frozen=True, slots=True)
class SliceL0Ball(AbstractBudgetSet):
    r"""Set of points with few nonzero slices.

    .. math:: C = \{\theta : |\{j : \theta_j \ne 0\}| \le s,\ l \le \theta_i \le u\}

    where the slice :math:`\theta_j` holds the entries at one index along `axis` of one tensor,
    :math:`s` is `n_slices`, counted over all tensors together, and :math:`l, u` are `lower` and
    `upper`.

    Parameters
    ----------
    n_slices : int
        Largest number of slices with a nonzero. Must be in [0, number of slices].
    axis : int, default=0
        Axis of the slices, counted without the batch axis: of the weight of a linear or
        convolutional layer, 0 gives output units or filters, 1 input features or channels.
    names : tuple of str or None, default=None
        Tensors that share the budget; the others are free. None means all.
    lower, upper : float or None, default=None
        Bounds on every covered entry. Must have 0 between them; None means no bound.
    nonnegative : bool, default=False
        Whether to set `lower` to 0.

    Raises
    ------
    InvalidParameterError
        If `n_slices` is negative, `n_slices` or `axis` is not an integer, or 0 violates a bound.
        What depends on the tensors is reported by `check_params`.

    See Also
    --------
    BlockL0Ball : Blocks of matrices.
    GroupL0Ball : Groups given by labels.

    Notes
    -----
    The projection keeps the slices with the largest sum of squares, in linear time. Of equal
    slices, those with an incumbent entry are kept first, then the lowest position: first tensor
    first.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import SliceL0Ball
    >>> point = {"weight": torch.tensor([[3.0, 0.0], [2.0, 2.5], [1.0, 1.0]])}
    >>> SliceL0Ball(1).project(point)["weight"].tolist()
    [[0.0, 0.0], [2.0, 2.5], [0.0, 0.0]]
    >>> SliceL0Ball(1, axis=1).project(point)["weight"].tolist()
    [[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]
    """

    BUDGET: ClassVar[str] = "n_slices"
    n_slices: int
    axis: int = 0
    names: tuple[str, ...] | None = None
    lower: float | None = None
    upper: float | None = None
    nonnegative: InitVar[bool] = False

    def __post_init__(self, nonnegative: bool) -> None:
        set_budget(self, "n_slices", self.n_slices, "slices")
        object.__setattr__(self, "axis", check_integer("axis", self.axis))
        set_names(self, self.names)
        set_bounds(self, self.lower, self.upper, nonnegative)

    def _axis(self, params: Params) -> int:
        return self.axis + 1 if named.is_batch(params) and self.axis >= 0 else self.axis

    def _sums(self, params: Params) -> Params:
        """Return the sum of every slice of the covered tensors."""
        axis, start = self._axis(params), 1 if named.is_batch(params) else 0

        def sums(tensor: Tensor) -> Tensor:
            along = tensor.movedim(axis, start)
            return along.flatten(start + 1).sum(-1) if along.ndim > start + 1 else along

        return named.map_tensors(sums, restrict(params, self.names))

    @override
    def check_params(self, params: Params) -> None:
        skip = 1 if named.is_batch(params) else 0
        names = covered(params, self.names)
        count = 0
        for name in names:
            shape = tuple(params[name].shape[skip:])
            if not -len(shape) <= self.axis < len(shape):
                raise InvalidParameterError(
                    f"`axis` must be an axis of every covered tensor, got {self.axis} for "
                    f"{name!r} of shape {shape}.",
                    "Name the tensors to cover in `names`; the others are free.",
                )
            count += shape[self.axis]
        meaning = f"the number of slices in {list_names(names)}"
        check_budget("n_slices", self.n_slices, count, meaning)

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        budget = check_factor(factor) * self.n_slices
        axis, start = self._axis(scores), 1 if named.is_batch(scores) else 0
        sums = self._sums(named.map_tensors(widen, restrict(scores, self.names)))
        held = None
        if incumbents is not None:
            inside = {n: incumbents[n].to(torch.int64) for n in sums}
            held = named.map_tensors(lambda t: t > 0, self._sums(named.like(scores, inside)))
        chosen = top_k_masks(sums, budget, incumbents=held)

        def spread(name: str, tensor: Tensor) -> Tensor:
            if name not in chosen:
                return torch.ones_like(tensor, dtype=torch.bool)
            lead, side = tensor.shape[:start], tensor.movedim(axis, start)
            kept = chosen[name].reshape(*lead, -1, *[1] * (side.ndim - start - 1))
            return kept.expand(side.shape).movedim(start, axis).contiguous()

        return named.like(scores, {name: spread(name, t) for name, t in scores.items()})

    @override
    def n_units(self, params: Params) -> int:
        inside = restrict(params, self.names).values()
        return sum(t.shape[self.axis] for t in inside)

    @override
    def excess(self, params: Params) -> Tensor:
        inside = restrict(params, self.names)
        hits = self._sums(named.map_tensors(lambda t: (t != 0).to(torch.int64), inside))
        return named.count_nonzero(hits) - self.n_slices

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        axis, skip = self._axis(params), 1 if named.is_batch(params) else 0
        sizes = []
        for tensor in restrict(params, self.names).values():
            length = tensor.shape[axis]
            sizes += [tensor.shape[skip:].numel() // max(length, 1)] * length
        sizes.sort(reverse=True)
        return sum(sizes[: factor * self.n_slices]) + free_size(params, self.names)
