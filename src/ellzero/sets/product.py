"""Several sparse sets side by side, each on its own tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import InvalidParameterError
from ellzero.sets.base import AbstractBudgetSet, free_size
from ellzero.tensors import named
from ellzero.tensors.coverage import covered, has_nan, refuse_nan, restrict
from ellzero.typing import Masks, Params


@final
@dataclass(frozen=True, slots=True)
class ProductSet(AbstractSparseSet):
    r"""Cartesian product of sparse sets on disjoint tensors.

    .. math:: C = C_1 \times C_2 \times \dots

    such as one budget for each layer of a network.

    Parameters
    ----------
    sets : tuple of sparse sets
        The sets. Each must name its tensors, and no tensor may be named twice; tensors that none
        names are free.

    Attributes
    ----------
    names : tuple of str
        Tensors of all the sets.

    Raises
    ------
    InvalidParameterError
        If there is no set, one names no tensors, or two name the same one.

    See Also
    --------
    L0Ball : One budget for all tensors together.

    Notes
    -----
    Projection and selection are those of the sets, one after the other; the cost is their sum.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import L0Ball, ProductSet
    >>> point = {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([0.1, 0.2])}
    >>> both = ProductSet((L0Ball(1, ("a",)), L0Ball(1, ("b",))))
    >>> {name: tensor.count_nonzero().item() for name, tensor in both.project(point).items()}
    {'a': 1, 'b': 1}
    """

    sets: tuple[AbstractBudgetSet, ...]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        sets = tuple(self.sets)
        if not sets:
            raise InvalidParameterError("`sets` must hold at least one set, got none.")
        seen: dict[str, None] = {}
        for part in sets:
            if not isinstance(part, AbstractBudgetSet) or part.names is None:
                raise InvalidParameterError(
                    f"`sets` must hold sparse sets that name their tensors, got {part!r}.",
                    "Give each set its `names`.",
                )
            twice = [name for name in part.names if name in seen]
            if twice:
                raise InvalidParameterError(
                    f"`sets` must be on different tensors, got {twice[0]!r} in two of them."
                )
            seen |= dict.fromkeys(part.names)
        object.__setattr__(self, "sets", sets)
        object.__setattr__(self, "names", tuple(seen))

    def _parts(self, params: Params) -> Iterator[tuple[AbstractBudgetSet, Params]]:
        """Return every set with its tensors alone."""
        for part in self.sets:
            yield part, restrict(params, part.names)

    @override
    def check_params(self, params: Params) -> None:
        covered(params, self.names)
        for part, inside in self._parts(params):
            part.check_params(inside)

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        masks = {n: torch.ones_like(t, dtype=torch.bool) for n, t in scores.items()}
        for part, inside in self._parts(scores):
            held = None if incumbents is None else {n: incumbents[n] for n in inside}
            masks |= part.select(inside, factor=factor, incumbents=held)
        return named.like(scores, masks)

    @override
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        refuse_nan(params)
        out = dict(params)
        for part, inside in self._parts(params):
            held = None if incumbents is None else {n: incumbents[n] for n in inside}
            out |= part.project(inside, incumbents=held)
        return named.like(params, out)

    @override
    def gains(self, params: Params) -> Params:
        out = dict(named.map_tensors(torch.abs, params))
        for part, inside in self._parts(params):
            out |= part.gains(inside)
        return named.like(params, out)

    @override
    def clip(self, params: Params) -> Params:
        out = dict(params)
        for part, inside in self._parts(params):
            out |= part.clip(inside)
        return named.like(params, out)

    @override
    def violation(self, params: Params) -> Tensor:
        parts = [part.violation(inside) for part, inside in self._parts(params)]
        total = functools.reduce(torch.add, parts)
        return torch.where(has_nan(params), torch.full_like(total, torch.inf), total)

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        inside = sum(part.max_nonzero(p, factor=factor) for part, p in self._parts(params))
        return inside + free_size(params, self.names)
