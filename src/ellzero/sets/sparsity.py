"""The L0 ball: a budget on nonzero entries."""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.sets.base import (
    AbstractBudgetSet,
    check_budget,
    check_factor,
    free_size,
    set_bounds,
    set_budget,
    set_names,
)
from ellzero.tensors import named
from ellzero.tensors.coverage import covered, list_names, refuse_nan, restrict
from ellzero.tensors.selection import top_k_masks
from ellzero.typing import Masks, Params


@final
@dataclass(frozen=True, slots=True)
class L0Ball(AbstractBudgetSet):
    r"""Set of points with few nonzero entries.

    .. math:: C = \{\theta : \|\theta\|_0 \le s,\ l \le \theta_i \le u\}

    where :math:`s` is `n_nonzero`, counted over all tensors in `names` together, and :math:`l, u`
    are `lower` and `upper`.

    Parameters
    ----------
    n_nonzero : int
        Largest number of nonzero entries. Must be in [0, number of entries].
    names : tuple of str or None, default=None
        Tensors that share the budget; the others are free. None means all.
    lower, upper : float or None, default=None
        Bounds on every covered entry. Must have 0 between them; None means no bound.
    nonnegative : bool, default=False
        Whether to set `lower` to 0.

    Raises
    ------
    InvalidParameterError
        If `n_nonzero` is negative or not an integer, or if 0 violates a bound. A budget above the
        number of entries is reported by `check_params`, once the tensors are known.

    See Also
    --------
    GroupL0Ball : The same budget on groups of entries.
    NMPattern : A budget in every run of consecutive entries.

    Notes
    -----
    The projection keeps the `n_nonzero` largest magnitudes, in linear time; with bounds, the
    entries for which :math:`\theta_i^2 - \mathrm{dist}(\theta_i, [l, u])^2` is largest, moved into
    the bounds. Of equal entries, incumbents are kept first, then the lowest position: first tensor
    first, row by row. On sharded tensors nothing is gathered. `gains` are square roots of these
    differences, so that squares of small numbers cannot vanish and make false ties; they order
    entries and do not add up.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import L0Ball
    >>> point = {"coef": torch.tensor([3.0, -1.0, 2.0, -2.0])}
    >>> L0Ball(2).project(point)["coef"].tolist()
    [3.0, 0.0, 2.0, 0.0]
    >>> L0Ball(2, nonnegative=True).project({"coef": -point["coef"]})["coef"].tolist()
    [0.0, 1.0, 0.0, 2.0]
    """

    BUDGET: ClassVar[str] = "n_nonzero"
    n_nonzero: int
    names: tuple[str, ...] | None = None
    lower: float | None = None
    upper: float | None = None
    nonnegative: InitVar[bool] = False

    def __post_init__(self, nonnegative: bool) -> None:
        set_budget(self, "n_nonzero", self.n_nonzero, "entries")
        set_names(self, self.names)
        set_bounds(self, self.lower, self.upper, nonnegative)

    @override
    def check_params(self, params: Params) -> None:
        names = covered(params, self.names)
        count = named.size(restrict(params, self.names))
        meaning = f"the number of entries in {list_names(names)}"
        check_budget("n_nonzero", self.n_nonzero, count, meaning)

    @override
    def select(self, scores: Params, *, factor: int = 1, incumbents: Masks | None = None) -> Masks:
        budget = check_factor(factor) * self.n_nonzero
        names = covered(scores, self.names)
        return top_k_masks(scores, budget, incumbents=incumbents, names=names)

    @override
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        refuse_nan(params)
        names = covered(params, self.names)
        bounded = self.lower is not None or self.upper is not None
        scores = self.gains(params) if bounded else params
        masks = top_k_masks(
            scores, self.n_nonzero, incumbents=incumbents, names=names, magnitude=not bounded
        )
        return named.mask(self.clip(params), masks)

    @override
    def gains(self, params: Params) -> Params:
        if self.lower is None and self.upper is None:
            return named.map_tensors(torch.abs, params)

        def root(tensor: Tensor, kept: Tensor) -> Tensor:
            # sqrt(kept (2 theta - kept)); exact where the bounds do not bind.
            size = kept.abs()
            cut = (2**0.5 * size.sqrt()) * (tensor - kept / 2).abs().sqrt()
            exact = (kept == tensor) | (kept == 0)
            return torch.where(exact, size, torch.maximum(cut, size))

        return named.map_tensors(root, params, self.clip(params))

    @override
    def n_units(self, params: Params) -> int:
        return named.size(restrict(params, self.names))

    @override
    def excess(self, params: Params) -> Tensor:
        return named.count_nonzero(restrict(params, self.names)) - self.n_nonzero

    @override
    def max_nonzero(self, params: Params, *, factor: int = 1) -> int:
        size = named.size(restrict(params, self.names))
        return min(factor * self.n_nonzero, size) + free_size(params, self.names)
