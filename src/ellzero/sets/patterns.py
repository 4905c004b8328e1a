"""Budgets that repeat along an axis."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.sets.base import (
    AbstractBudgetSet,
    check_factor,
    free_size,
    set_bounds,
    set_names,
)
from ellzero.tensors import named
from ellzero.tensors.coverage import covered, restrict
from ellzero.tensors.selection import top_k_along_last
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer


@final
@dataclass(frozen=True, slots=True)
class NMPattern(AbstractBudgetSet):
    r"""Set of points with at most n nonzeros in every m consecutive entries.

    .. math:: C = \{\theta : \|\theta_r\|_0 \le n \text{ for every run } r,\ l \le \theta_i \le u\}

    where the runs :math:`r` cut `axis` of every covered tensor into `m` entries each, from the
    first entry on, and :math:`l, u` are `lower` and `upper`.

    Parameters
    ----------
    n : int
        Largest number of nonzeros in a run. Must be in [0, m].
    m : int
        Length of a run. Must be positive; the last run may be shorter and keeps up to `n` too.
    names : tuple of str or None, default=None
        Tensors that have the pattern; the others are free. None means all.
    axis : int, default=-1
        Axis along which runs lie, counted without the batch axis.
    lower, upper : float or None, default=None
        Bounds on every covered entry. Must have 0 between them; None means no bound.
    nonnegative : bool, default=False
        Whether to set `lower` to 0.

    Raises
    ------
    InvalidParameterError
        If `n` or `m` is not an integer in its range, or if 0 violates a bound. An axis that a
        tensor lacks is reported by `check_params`.

    See Also
    --------
    L0Ball : One budget for all entries together.

    Notes
    -----
    The projection keeps the `n` largest magnitudes of every run. Of equal entries, incumbents are
    kept first, then the lowest position in the run.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import NMPattern
    >>> point = {"coef": torch.tensor([3.0, -1.0, 2.0, -2.0, 5.0])}
    >>> NMPattern(1, 2).project(point)["coef"].tolist()
    [3.0, 0.0, 2.0, 0.0, 5.0]
    """

    BUDGET: ClassVar[str] = "n"
    n: int
    m: int
    names: tuple[str, ...] | None = None
    axis: int = -1
    lower: float | None = None
    upper: float | None = None
    nonnegative: InitVar[bool] = False

    def __post_init__(self, nonnegative: bool) -> None:
        object.__setattr__(self, "m", check_integer("m", self.m, 1))
        number = check_integer("n", self.n, 0, self.m, meaning="the length `m` of a run")
        object.__setattr__(self, "n", number)
        object.__setattr__(self, "axis", check_integer("axis", self.axis))
        set_names(self, self.names)
        set_bounds(self, self.lower, self.upper, nonnegative)

    def _axis(self, params: Params) -> int:
        return self.axis + 1 if named.is_batch(params) and self.axis >= 0 else self.axis

    def _runs(self, tensor: Tensor, axis: int) -> Tensor:
        """Return the runs as rows of length m, filled up with zeros at their end."""
        moved = tensor.movedim(axis, -1)
        length = moved.shape[-1]
        padded = torch.nn.functional.pad(moved, (0, -length % self.m))
        return padded.reshape(*moved.shape[:-1], -(-length // self.m), self.m)

    def _unroll(self, runs: Tensor, like: Tensor, axis: int) -> Tensor:
        """Return the inverse of `_runs`."""
        length = like.shape[axis]
        flat = runs.reshape(*runs.shape[:-2], -(-length // self.m) * self.m)
        return flat[..., :length].movedim(-1, axis)

    @override
    def check_params(self, params: Params) -> None:
        skip = 1 if named.is_batch(params) else 0
        for name in covered(params, self.names):
            shape = tuple(params[name].shape[skip:])
            if not -len(shape) <= self.axis < len(shape):
                raise InvalidParameterError(
                    f"`axis` must be an axis of every covered tensor, got {self.axis} for "
                    f"{name!r} of shape {shape}.",
                    "Name the tensors to cover in `names`; the others are free.",
                )

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        budget = min(check_factor(factor) * self.n, self.m)
        axis = self._axis(scores)
        names = covered(scores, self.names)

        def pick(name: str, tensor: Tensor) -> Tensor:
            if name not in names:
                return torch.ones_like(tensor, dtype=torch.bool)
            held = None if incumbents is None else self._runs(incumbents[name], axis)
            chosen = top_k_along_last(self._runs(tensor, axis), budget, held)
            return self._unroll(chosen, tensor, axis)

        return named.like(scores, {name: pick(name, t) for name, t in scores.items()})

    @override
    def gains(self, params: Params) -> Params:
        if self.lower is None and self.upper is None:
            return named.map_tensors(torch.abs, params)
        return AbstractBudgetSet.gains(self, params)

    @override
    def n_units(self, params: Params) -> int:
        return self.m

    @override
    def excess(self, params: Params) -> Tensor:
        axis = self._axis(params)

        def above(tensor: Tensor) -> Tensor:
            return ((self._runs(tensor, axis) != 0).sum(-1) - self.n).clamp_min(0)

        counts = named.map_tensors(above, restrict(params, self.names))
        start = 1 if named.is_batch(params) else 0
        return named.total([t.sum(tuple(range(start, t.ndim))) for t in counts.values()])

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        axis = self._axis(params)
        budget = factor * self.n
        total = 0
        for tensor in restrict(params, self.names).values():
            shape = tensor.shape[1:] if named.is_batch(params) else tensor.shape
            length = tensor.shape[axis]
            if length:
                line = length // self.m * min(budget, self.m) + min(budget, length % self.m)
                total += shape.numel() // length * line
        return total + free_size(params, self.names)
