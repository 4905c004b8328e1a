"""Budgets on groups of entries: labelled groups, and blocks of matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass, field
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
from ellzero.tensors.groups import Grouping, GroupsLike, check_groups, split_like
from ellzero.tensors.selection import top_k_masks
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer


def _with_free(scores: Params, masks: Masks) -> Masks:
    """Return masks of every tensor, True where `masks` has none."""
    return named.like(
        scores,
        {n: masks[n] if n in masks else torch.ones_like(t, dtype=torch.bool)
         for n, t in scores.items()},
    )  # fmt: skip


@final
@dataclass(frozen=True, slots=True, eq=False)
class GroupL0Ball(AbstractBudgetSet):
    r"""Set of points with few nonzero groups of entries.

    .. math:: C = \{\theta : |\{g : \theta_g \ne 0\}| \le s,\ l \le \theta_i \le u\}

    where the groups :math:`g` are the entries of equal label in `groups`, :math:`s` is `n_groups`
    and :math:`l, u` are `lower` and `upper`.

    Parameters
    ----------
    n_groups : int
        Largest number of groups with a nonzero. Must be in [0, number of groups].
    groups : Tensor of shape (n,), int64, or mapping of str to Tensor of int64
        Label of every covered entry, flattened over the covered tensors in their order, or by
        name. Entries of equal label form a group, also across tensors; groups cannot overlap.
    names : tuple of str or None, default=None
        Tensors that the labels cover; the others are free. None means all, or the keys of
        `groups`.
    lower, upper : float or None, default=None
        Bounds on every covered entry. Must have 0 between them; None means no bound.
    nonnegative : bool, default=False
        Whether to set `lower` to 0.

    Raises
    ------
    InvalidParameterError
        If `n_groups` is negative or not an integer, a label is not an integer, `names` differs
        from the keys of `groups`, or 0 violates a bound. What depends on the tensors is reported
        by `check_params`.

    See Also
    --------
    L0Ball : The same budget on single entries.
    BlockL0Ball : Groups that are blocks of matrices.

    Notes
    -----
    The projection keeps the groups with the largest sum of squares (with bounds: of
    :math:`\theta_i^2 - \mathrm{dist}(\theta_i, [l, u])^2`), in linear time. Of equal groups, those
    with an incumbent entry are kept first, then the lowest label. Sums are float64; magnitudes
    below 1e-154 count as equal.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import GroupL0Ball
    >>> point = {"coef": torch.tensor([3.0, 0.0, 2.0, -2.5])}
    >>> GroupL0Ball(1, torch.tensor([0, 0, 1, 1])).project(point)["coef"].tolist()
    [0.0, 0.0, 2.0, -2.5]
    """

    BUDGET: ClassVar[str] = "n_groups"
    n_groups: int
    groups: GroupsLike = field(repr=False)
    names: tuple[str, ...] | None = None
    lower: float | None = None
    upper: float | None = None
    nonnegative: InitVar[bool] = False
    _grouping: Grouping = field(init=False, repr=False)

    def __post_init__(self, nonnegative: bool) -> None:
        set_budget(self, "n_groups", self.n_groups, "groups")
        set_names(self, self.names)
        set_bounds(self, self.lower, self.upper, nonnegative)
        grouping, names = check_groups(self.groups, self.names)
        object.__setattr__(self, "_grouping", grouping)
        object.__setattr__(self, "names", names)

    @property
    def n_nonzero(self) -> int:
        """Largest number of nonzeros that the budget allows in covered tensors."""
        return self._largest(self.n_groups)

    def _largest(self, n_groups: int) -> int:
        sizes = self._grouping.sizes.sort(descending=True).values[:n_groups]
        return named.to_int(sizes.sum())

    @override
    def check_params(self, params: Params) -> None:
        inside = restrict(params, self.names)
        self._grouping.check_fits(inside)
        meaning = f"the number of groups in {list_names(list(inside))}"
        check_budget("n_groups", self.n_groups, self._grouping.n_groups, meaning)

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        budget = check_factor(factor) * self.n_groups
        inside = restrict(scores, self.names)
        self._grouping.check_fits(inside)
        index = self._grouping.flat_index(inside)
        sums = self._grouping.sums(widen(named.flatten(inside)), index)
        held = None
        if incumbents is not None:
            inner = restrict(incumbents, tuple(inside))
            flat = named.flatten(named.like(scores, {n: inner[n] for n in inside}))
            held = named.like(
                scores, {"groups": self._grouping.sums(flat.to(torch.int64), index) > 0}
            )
        chosen = top_k_masks(named.like(scores, {"groups": sums}), budget, incumbents=held)
        return _with_free(scores, split_like(chosen["groups"][..., index], inside))

    def unit_labels(self, params: Params) -> Tensor:
        """Return the group of every entry, flattened over all tensors; -1 for free entries.

        Parameters
        ----------
        params : mapping of str to Tensor
            A point (not a batch).

        Returns
        -------
        Tensor of shape (n,), int64
            Groups, numbered from 0 in the order of their labels.
        """
        inside = restrict(params, self.names)
        self._grouping.check_fits(inside)
        parts = split_like(self._grouping.flat_index(inside), inside)
        labels = {
            n: parts[n] if n in parts else torch.full_like(t, -1, dtype=torch.int64)
            for n, t in params.items()
        }
        return named.flatten(named.like(params, labels))

    @override
    def n_units(self, params: Params) -> int:
        labels = self.groups
        parts = list(labels.values()) if isinstance(labels, Mapping) else [labels]
        flat = [torch.as_tensor(part).flatten() for part in parts]
        return len(set(named.to_list(torch.cat(flat))))

    @override
    def excess(self, params: Params) -> Tensor:
        inside = restrict(params, self.names)
        flat = (named.flatten(inside) != 0).to(torch.int64)
        counts = self._grouping.sums(flat, self._grouping.flat_index(inside))
        return (counts > 0).sum(-1) - self.n_groups

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        return self._largest(factor * self.n_groups) + free_size(params, self.names)


@final
@dataclass(frozen=True, slots=True)
class BlockL0Ball(AbstractBudgetSet):
    r"""Set of points whose matrices have few nonzero blocks.

    .. math:: C = \{\theta : |\{b : \theta_b \ne 0\}| \le s,\ l \le \theta_i \le u\}

    where the blocks :math:`b` tile every covered matrix from its first entry, :math:`s` is
    `n_blocks`, counted over all matrices together, and :math:`l, u` are `lower` and `upper`.

    Parameters
    ----------
    n_blocks : int
        Largest number of blocks with a nonzero. Must be in [0, number of blocks].
    block_shape : tuple of int, default=(8, 1)
        Rows and columns of a block. Must be positive; blocks at the last rows and columns may be
        smaller.
    names : tuple of str or None, default=None
        Matrices that share the budget; other tensors are free. None means all.
    lower, upper : float or None, default=None
        Bounds on every covered entry. Must have 0 between them; None means no bound.
    nonnegative : bool, default=False
        Whether to set `lower` to 0.

    Raises
    ------
    InvalidParameterError
        If `n_blocks` is negative or not an integer, `block_shape` is not two positive integers, or
        0 violates a bound. What depends on the tensors is reported by `check_params`.

    See Also
    --------
    GroupL0Ball : Groups given by labels.
    NMPattern : A budget in every run of consecutive entries.

    Notes
    -----
    The projection keeps the blocks with the largest sum of squares, in linear time. Of equal
    blocks, those with an incumbent entry are kept first, then the lowest position: first tensor
    first, row of blocks by row of blocks.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import BlockL0Ball
    >>> point = {"coef": torch.tensor([[3.0, 1.0], [0.0, 1.0], [0.0, 4.0]])}
    >>> BlockL0Ball(2, block_shape=(2, 1)).project(point)["coef"].tolist()
    [[3.0, 0.0], [0.0, 0.0], [0.0, 4.0]]
    """

    BUDGET: ClassVar[str] = "n_blocks"
    n_blocks: int
    block_shape: tuple[int, int] = (8, 1)
    names: tuple[str, ...] | None = None
    lower: float | None = None
    upper: float | None = None
    nonnegative: InitVar[bool] = False

    def __post_init__(self, nonnegative: bool) -> None:
        set_budget(self, "n_blocks", self.n_blocks, "blocks")
        set_names(self, self.names)
        set_bounds(self, self.lower, self.upper, nonnegative)
        shape = tuple(self.block_shape)
        if len(shape) != 2:
            raise InvalidParameterError(
                f"`block_shape` must be two positive integers, rows and columns, got {shape!r}."
            )
        sides = (
            check_integer("block_shape[0]", shape[0], 1),
            check_integer("block_shape[1]", shape[1], 1),
        )
        object.__setattr__(self, "block_shape", sides)

    @property
    def n_nonzero(self) -> int:
        """Largest number of nonzeros that the budget allows when every block is whole."""
        return self.n_blocks * self.block_shape[0] * self.block_shape[1]

    def _sums(self, matrix: Tensor) -> Tensor:
        """Return the sum over each block: (..., r, c) gives (..., block rows, block columns)."""
        h, w = self.block_shape
        r, c = matrix.shape[-2:]
        padded = torch.nn.functional.pad(matrix, (0, -c % w, 0, -r % h))
        shape = (*matrix.shape[:-2], -(-r // h), h, -(-c // w), w)
        return padded.reshape(shape).sum((-3, -1))

    def _spread(self, blocks: Tensor, like: Tensor) -> Tensor:
        """Return the block's value at each of its entries."""
        h, w = self.block_shape
        r, c = like.shape[-2:]
        return blocks.repeat_interleave(h, -2)[..., :r, :].repeat_interleave(w, -1)[..., :c]

    def _block_sizes(self, inside: Params) -> Iterator[tuple[int, int]]:
        """Yield pairs of block size and number of blocks of that size."""
        h, w = self.block_shape
        for matrix in inside.values():
            r, c = matrix.shape[-2:]
            for rows, n_rows in ((h, r // h), (r % h, 1)):
                for columns, n_columns in ((w, c // w), (c % w, 1)):
                    if rows * columns:
                        yield rows * columns, n_rows * n_columns

    @override
    def check_params(self, params: Params) -> None:
        names = covered(params, self.names)
        axes = 3 if named.is_batch(params) else 2
        for name in names:
            shape = tuple(params[name].shape)
            if len(shape) != axes:
                raise InvalidParameterError(
                    f"`BlockL0Ball` covers tensors of 2 axes, got {name!r} of shape {shape}.",
                    "Name the matrices in `names`; the other tensors are free.",
                )
        count = sum(n for _, n in self._block_sizes(restrict(params, self.names)))
        meaning = f"the number of blocks in {list_names(names)}"
        check_budget("n_blocks", self.n_blocks, count, meaning)

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        budget = check_factor(factor) * self.n_blocks
        inside = restrict(scores, self.names)
        sums = named.map_tensors(lambda t: self._sums(widen(t)), inside)
        held = None
        if incumbents is not None:
            held = named.like(
                scores, {n: self._sums(incumbents[n].to(torch.int64)) > 0 for n in inside}
            )
        chosen = top_k_masks(sums, budget, incumbents=held)
        return _with_free(scores, named.map_tensors(self._spread, chosen, inside))

    @override
    def n_units(self, params: Params) -> int:
        h, w = self.block_shape
        inside = restrict(params, self.names).values()
        return sum(-(-t.shape[0] // h) * -(-t.shape[1] // w) for t in inside)

    @override
    def excess(self, params: Params) -> Tensor:
        nonzero = named.map_tensors(
            lambda t: self._sums((t != 0).to(torch.int64)), restrict(params, self.names)
        )
        return named.count_nonzero(nonzero) - self.n_blocks

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        left, total = factor * self.n_blocks, 0
        for size, count in sorted(self._block_sizes(restrict(params, self.names)), reverse=True):
            taken = min(left, count)
            left, total = left - taken, total + taken * size
        return total + free_size(params, self.names)
