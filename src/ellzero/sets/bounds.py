"""Convex sets: bounds on entries without a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractSet
from ellzero.errors import InvalidParameterError
from ellzero.sets.base import clip, set_names, total_violation
from ellzero.tensors import named
from ellzero.tensors.coverage import covered, refuse_nan
from ellzero.typing import Masks, Params
from ellzero.validation import check_real


@final
@dataclass(frozen=True, slots=True)
class Box(AbstractSet):
    r"""Set of points with every entry between two bounds.

    .. math:: C = \{\theta : l \le \theta_i \le u\}

    Parameters
    ----------
    lower, upper : float or None, default=None
        The bounds :math:`l \le u`; None means no bound.
    names : tuple of str or None, default=None
        Tensors that are bounded; the others are free. None means all.

    Raises
    ------
    InvalidParameterError
        If a bound is not a finite number, or `lower` exceeds `upper`.

    See Also
    --------
    L0Ball : The same bounds with a budget on nonzero entries.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import Box
    >>> Box(-1.0, 1.0).project({"coef": torch.tensor([3.0, 0.5])})["coef"].tolist()
    [1.0, 0.5]
    """

    lower: float | None = None
    upper: float | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            bound = getattr(self, name)
            if bound is not None:
                object.__setattr__(self, name, check_real(name, bound))
        if self.lower is not None and self.upper is not None and self.lower > self.upper:
            raise InvalidParameterError(
                f"`lower` must be at most `upper`, got {self.lower:g} and {self.upper:g}."
            )
        set_names(self, self.names)

    @override
    def check_params(self, params: Params) -> None:
        covered(params, self.names)

    @override
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        refuse_nan(params)
        return clip(params, self.names, self.lower, self.upper)

    @override
    def violation(self, params: Params) -> Tensor:
        none = named.count_nonzero(named.zeros_like(params))
        return total_violation(none, params, self.names, self.lower, self.upper)


@final
@dataclass(frozen=True, slots=True)
class Nonnegative(AbstractSet):
    r"""Set of points without negative entries.

    .. math:: C = \{\theta : \theta_i \ge 0\}

    Parameters
    ----------
    names : tuple of str or None, default=None
        Tensors that are bounded; the others are free. None means all.

    See Also
    --------
    Box : Other bounds.

    Examples
    --------
    >>> import torch
    >>> from ellzero.sets import Nonnegative
    >>> Nonnegative().project({"coef": torch.tensor([3.0, -0.5])})["coef"].tolist()
    [3.0, 0.0]
    """

    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        set_names(self, self.names)

    @override
    def check_params(self, params: Params) -> None:
        covered(params, self.names)

    @override
    def project(self, params: Params, *, incumbents: Masks | None = None) -> Params:
        return Box(0.0, None, self.names).project(params)

    @override
    def violation(self, params: Params) -> Tensor:
        return Box(0.0, None, self.names).violation(params)
