"""Penalties on the magnitude of entries or of groups, with closed-form proximal operators."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractPenalty
from ellzero.tensors import named
from ellzero.tensors.coverage import check_names, restrict
from ellzero.tensors.groups import Grouping, GroupsLike, check_groups, split_like
from ellzero.typing import Params
from ellzero.validation import check_real

__all__ = ["L0", "L1", "GroupL0", "GroupL1", "GroupTransformedL1", "TransformedL1"]


class _AbstractProfile(ABC):
    """Function p of a magnitude, p(0) = 0, increasing; all arguments are nonnegative tensors."""

    @abstractmethod
    def value(self, size: Tensor) -> Tensor:
        """Return p(size)."""

    @abstractmethod
    def prox(self, size: Tensor, level: float) -> Tensor:
        """Return argmin over u >= 0 of level p(u) + (u - size)^2 / 2; zero wins a tie."""

    @abstractmethod
    def threshold(self, level: float) -> float:
        """Return the largest size that the prox at `level` sets to zero."""

    @abstractmethod
    def slope(self, size: Tensor) -> Tensor:
        """Return p'(size) for positive sizes."""

    @property
    @abstractmethod
    def slope_at_zero(self) -> float:
        """Right derivative at 0; infinity for a jump."""


@final
@dataclass(frozen=True, slots=True)
class _Count(_AbstractProfile):
    """One for everything that is not zero."""

    @override
    def value(self, size: Tensor) -> Tensor:
        return torch.where(size.isnan(), size, (size != 0).to(size.dtype))

    @override
    def prox(self, size: Tensor, level: float) -> Tensor:
        return torch.where(size <= self.threshold(level), torch.zeros_like(size), size)

    @override
    def threshold(self, level: float) -> float:
        return math.sqrt(2 * level)

    @override
    def slope(self, size: Tensor) -> Tensor:
        return torch.zeros_like(size)

    @property
    @override
    def slope_at_zero(self) -> float:
        return math.inf


@final
@dataclass(frozen=True, slots=True)
class _Magnitude(_AbstractProfile):
    """The magnitude itself."""

    @override
    def value(self, size: Tensor) -> Tensor:
        return size

    @override
    def prox(self, size: Tensor, level: float) -> Tensor:
        return (size - level).clamp_min(0)

    @override
    def threshold(self, level: float) -> float:
        return level

    @override
    def slope(self, size: Tensor) -> Tensor:
        return torch.ones_like(size)

    @property
    @override
    def slope_at_zero(self) -> float:
        return 1.0


@final
@dataclass(frozen=True, slots=True)
class _Transformed(_AbstractProfile):
    """(a + 1) size / (a + size): between a count (small a) and the magnitude (large a)."""

    a: float

    @override
    def value(self, size: Tensor) -> Tensor:
        a = self.a
        value = (a + 1) * (size / (a + size))
        return torch.where(size.isinf(), torch.full_like(size, a + 1), value)

    @override
    def prox(self, size: Tensor, level: float) -> Tensor:
        a = self.a
        threshold = self.threshold(level)
        # Largest root of (a + u)^2 (u - size) + level a (a + 1) = 0, by Cardano's cosine.
        ratio = level * a * (a + 1) / (a + size) ** 3
        angle = torch.acos((1 - 13.5 * ratio).clamp(-1, 1))
        root = (2 / 3) * ((a + size) * torch.cos(angle / 3) - a) + size / 3
        for _ in range(2):  # Newton removes the cancellation of the cosine for large a
            slack = level * a * (a + 1) / (a + root) ** 2
            bend = 1 - 2 * slack / (a + root)
            step = (root - size + slack) / bend
            safe = (bend > 1e-3) & size.isfinite()
            root = torch.where(safe, torch.minimum((root - step).clamp_min(0), size), root)
        root = torch.minimum(root.clamp_min(0), size)
        return torch.where(size <= threshold, torch.zeros_like(size), root)

    @override
    def threshold(self, level: float) -> float:
        a = self.a
        if level <= a * a / (2 * (a + 1)):
            return level * (a + 1) / a
        return math.sqrt(2 * level * (a + 1)) - a / 2

    @override
    def slope(self, size: Tensor) -> Tensor:
        return self.a * (self.a + 1) / (self.a + size) ** 2

    @property
    @override
    def slope_at_zero(self) -> float:
        return (self.a + 1) / self.a


def _fine(tensor: Tensor) -> Tensor:
    """Return the tensor in the finest dtype of its device."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def _squared_distance(
    weight: float, profile: _AbstractProfile, size: Tensor, steep: Tensor, inside: Tensor
) -> Tensor:
    """Return the squared distance of -grad to the subdifferential, for each magnitude.

    `steep` is the norm of the gradient, `inside` the squared distance where `size` is not zero.
    """
    reach = weight * profile.slope_at_zero if weight > 0 else 0.0
    return torch.where(size == 0, (steep - reach).clamp_min(0).square(), inside)


class _AbstractEntryPenalty(AbstractPenalty):
    """weight times the sum of p(|entry|) over the covered entries."""

    weight: float
    names: tuple[str, ...] | None

    @property
    @abstractmethod
    def _profile(self) -> _AbstractProfile: ...

    @override
    def value(self, params: Params) -> Tensor:
        inside = restrict(params, self.names)
        parts = named.map_tensors(lambda t: self._profile.value(_fine(t).abs()), inside)
        return self.weight * named.dot(parts, named.map_tensors(torch.ones_like, parts))

    @override
    def prox(self, params: Params, step_size: float) -> Params:
        level = _level(self.weight, step_size)
        inside = restrict(params, self.names)

        def shrink(tensor: Tensor) -> Tensor:
            size = self._profile.prox(_fine(tensor).abs(), level).to(tensor.dtype)
            return torch.where(size == 0, size, torch.copysign(size, tensor))

        return named.like(params, {n: shrink(t) if n in inside else t for n, t in params.items()})

    def threshold(self, step_size: float) -> float:
        """Return the largest magnitude that `prox` at `step_size` sets to zero.

        Parameters
        ----------
        step_size : float
            As in `prox`. Must be at least 0.

        Returns
        -------
        float
            The threshold; an entry of this very magnitude becomes zero.

        Raises
        ------
        InvalidParameterError
            If `step_size` is negative or not a finite number.
        """
        return self._profile.threshold(_level(self.weight, step_size))

    @override
    def residual(self, params: Params, grad: Params) -> Tensor:
        inside = restrict(params, self.names)

        def distance(name: str) -> Tensor:
            slope = _fine(grad[name])
            if name not in inside:
                return slope
            point = _fine(params[name])
            size = point.abs()
            gap = (slope + self.weight * self._profile.slope(size) * point.sign()).square()
            return _squared_distance(self.weight, self._profile, size, slope.abs(), gap).sqrt()

        return named.norm(named.like(params, {name: distance(name) for name in params}))


class _AbstractGroupPenalty(AbstractPenalty):
    """weight times the sum of p(norm of the group) over the groups."""

    weight: float
    names: tuple[str, ...] | None
    _grouping: Grouping

    @property
    @abstractmethod
    def _profile(self) -> _AbstractProfile: ...

    def _sizes(self, params: Params) -> tuple[Params, Tensor, Tensor, Tensor]:
        """Return covered tensors, their flat entries, group numbers and group norms."""
        inside = restrict(params, self.names)
        self._grouping.check_fits(inside)
        index = self._grouping.flat_index(inside)
        flat = _fine(named.flatten(inside))
        return inside, flat, index, self._grouping.sums(flat.square(), index).sqrt()

    @override
    def value(self, params: Params) -> Tensor:
        size = self._sizes(params)[-1]
        return self.weight * self._profile.value(size).sum(-1)

    @override
    def prox(self, params: Params, step_size: float) -> Params:
        inside, flat, index, size = self._sizes(params)
        level = _level(self.weight, step_size)
        shrunk = self._profile.prox(size, level)
        # Zero over zero: a zero group stays zero. Kept groups are multiplied by exactly 1.
        factor = torch.where(shrunk == 0, torch.zeros_like(size), shrunk / size)
        factor = torch.where(shrunk == size, torch.ones_like(size), factor)[..., index]
        parts = split_like(torch.where(factor == 0, torch.zeros_like(flat), factor * flat), inside)
        return named.like(
            params, {n: parts[n].to(t.dtype) if n in parts else t for n, t in params.items()}
        )

    def threshold(self, step_size: float) -> float:
        """Return the largest norm of a group that `prox` at `step_size` sets to zero.

        Parameters
        ----------
        step_size : float
            As in `prox`. Must be at least 0.

        Returns
        -------
        float
            The threshold; a group of this very norm becomes zero.

        Raises
        ------
        InvalidParameterError
            If `step_size` is negative or not a finite number.
        """
        return self._profile.threshold(_level(self.weight, step_size))

    @override
    def residual(self, params: Params, grad: Params) -> Tensor:
        inside, flat, index, size = self._sizes(params)
        order = named.like(params, {n: grad[n] for n in inside})
        slope = _fine(named.flatten(order))
        steep = self._grouping.sums(slope.square(), index).sqrt()
        pull = self.weight * self._profile.slope(size) / torch.where(size == 0, 1.0, size)
        inside_gaps = self._grouping.sums((slope + pull[..., index] * flat).square(), index)
        gaps = _squared_distance(self.weight, self._profile, size, steep, inside_gaps).sum(-1)
        free = [n for n in params if n not in inside]
        if free:
            gaps = gaps + named.norm_squared(named.like(params, {n: grad[n] for n in free}))
        return gaps.sqrt()


def _level(weight: float, step_size: float) -> float:
    return weight * check_real("step_size", step_size, 0)


def _set_weight(owner: object, weight: float) -> None:
    hint = "A weight of 0 switches the penalty off."
    object.__setattr__(owner, "weight", check_real("weight", weight, 0, hint=hint))


def _set_names(owner: object, names: str | Sequence[str] | None) -> None:
    object.__setattr__(owner, "names", check_names(names))


def _set_a(owner: object, a: float) -> None:
    hint = "Small `a` is close to `L0`, large `a` to `L1`."
    object.__setattr__(owner, "a", check_real("a", a, 0, open_low=True, hint=hint))


def _set_groups(owner: object, groups: GroupsLike, names: str | Sequence[str] | None) -> None:
    grouping, covered_names = check_groups(groups, check_names(names))
    object.__setattr__(owner, "_grouping", grouping)
    object.__setattr__(owner, "names", covered_names)


@final
@dataclass(frozen=True, slots=True)
class L0(_AbstractEntryPenalty):
    r"""Number of nonzero entries, weighted.

    .. math:: r(\theta) = \lambda \|\theta\|_0

    where :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a nonzero entry. Must be at least 0.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative or not a finite number.

    See Also
    --------
    L0Ball : The constraint, for problems with a budget.

    Notes
    -----
    ``prox(params, t)`` keeps an entry when its magnitude exceeds ``sqrt(2 * t * weight)`` and
    sets it to zero otherwise. At equality both are minimizers, and zero is returned. The limiting
    subdifferential is everything at 0 and {0} elsewhere, so `residual` is the norm of the gradient
    on the support. A NaN stays NaN.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import L0
    >>> point = {"coef": torch.tensor([3.0, -1.0, 2.0])}
    >>> L0(2.0).prox(point, 1.0)["coef"].tolist()
    [3.0, 0.0, 0.0]
    """

    weight: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_names(self, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Count()


@final
@dataclass(frozen=True, slots=True)
class L1(_AbstractEntryPenalty):
    r"""Sum of magnitudes, weighted.

    .. math:: r(\theta) = \lambda \|\theta\|_1

    where :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a unit of magnitude. Must be at least 0.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative or not a finite number.

    Notes
    -----
    ``prox(params, t)`` is soft thresholding: it shrinks every magnitude by ``t * weight``. Convex.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import L1
    >>> point = {"coef": torch.tensor([3.0, -1.0, 2.0])}
    >>> L1(0.5).prox(point, 2.0)["coef"].tolist()
    [2.0, 0.0, 1.0]
    """

    weight: float
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_names(self, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Magnitude()


@final
@dataclass(frozen=True, slots=True)
class TransformedL1(_AbstractEntryPenalty):
    r"""Transformed l1 penalty, between the number of nonzeros and the l1 norm.

    .. math:: r(\theta) = \lambda \sum_i \frac{(a + 1) |\theta_i|}{a + |\theta_i|}

    where :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a large entry is ``weight * (a + 1)``. Must be at least 0.
    a : float, default=1.0
        Shape. Must be positive; towards 0 the penalty is `L0`, towards infinity `L1`.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative, `a` is not positive, or one is not a finite number.

    Notes
    -----
    ``prox(params, t)`` is the closed form of [1]_, polished by two Newton steps. With
    ``mu = t * weight`` it is continuous if ``mu <= a**2 / (2 * (a + 1))``, else it jumps at
    ``sqrt(2 * mu * (a + 1)) - a / 2``, where zero is returned.

    References
    ----------
    .. [1] S. Zhang, J. Xin, "Minimization of Transformed L1 Penalty: Closed Form Representation
       and Iterative Thresholding Algorithms", Communications in Mathematical Sciences, 2017.
       arXiv 1412.5240.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import TransformedL1
    >>> point = {"coef": torch.tensor([3.0, -1.0, 2.0])}
    >>> [round(u, 3) for u in TransformedL1(1.0).prox(point, 1.0)["coef"].tolist()]
    [2.866, 0.0, 1.732]
    """

    weight: float
    a: float = 1.0
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_a(self, self.a)
        _set_names(self, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Transformed(self.a)


@final
@dataclass(frozen=True, slots=True, eq=False)
class GroupL0(_AbstractGroupPenalty):
    r"""Number of nonzero groups of entries, weighted.

    .. math:: r(\theta) = \lambda |\{g : \theta_g \ne 0\}|

    where the groups :math:`g` are the entries of equal label and :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a nonzero group. Must be at least 0.
    groups : Tensor of shape (n,), int64, or mapping of str to Tensor of int64
        Label of every covered entry, flattened over the covered tensors in their order, or by
        name.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all, or the keys of `groups`.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative, or labels are not integers or do not fit the tensors.

    See Also
    --------
    GroupL0Ball : The constraint, for problems with a budget.

    Notes
    -----
    ``prox(params, t)`` keeps a group when its norm exceeds ``sqrt(2 * t * weight)`` and sets it to
    zero otherwise; at equality both are minimizers, and zero is returned.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import GroupL0
    >>> point = {"coef": torch.tensor([3.0, 0.5, 1.0])}
    >>> GroupL0(2.0, [0, 0, 1]).prox(point, 1.0)["coef"].tolist()
    [3.0, 0.5, 0.0]
    """

    weight: float
    groups: GroupsLike = field(repr=False)
    names: tuple[str, ...] | None = None
    _grouping: Grouping = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_groups(self, self.groups, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Count()


@final
@dataclass(frozen=True, slots=True, eq=False)
class GroupL1(_AbstractGroupPenalty):
    r"""Group lasso: sum of the Euclidean norms of groups of entries, weighted.

    .. math:: r(\theta) = \lambda \sum_g \|\theta_g\|_2

    where the groups :math:`g` are the entries of equal label and :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a unit of norm, the same for every group. Must be at least 0.
    groups : Tensor of shape (n,), int64, or mapping of str to Tensor of int64
        Label of every covered entry, flattened over the covered tensors in their order, or by
        name.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all, or the keys of `groups`.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative, or labels are not integers or do not fit the tensors.

    Notes
    -----
    ``prox(params, t)`` shrinks the norm of every group by ``t * weight``. Convex.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import GroupL1
    >>> point = {"coef": torch.tensor([3.0, 4.0, 1.0])}
    >>> GroupL1(2.5, [0, 0, 1]).prox(point, 1.0)["coef"].tolist()
    [1.5, 2.0, 0.0]
    """

    weight: float
    groups: GroupsLike = field(repr=False)
    names: tuple[str, ...] | None = None
    _grouping: Grouping = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_groups(self, self.groups, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Magnitude()


@final
@dataclass(frozen=True, slots=True, eq=False)
class GroupTransformedL1(_AbstractGroupPenalty):
    r"""Transformed l1 penalty of the norms of groups of entries.

    .. math:: r(\theta) = \lambda \sum_g \frac{(a + 1) \|\theta_g\|_2}{a + \|\theta_g\|_2}

    where the groups :math:`g` are the entries of equal label and :math:`\lambda` is `weight`.

    Parameters
    ----------
    weight : float
        Price of a group of large norm is ``weight * (a + 1)``. Must be at least 0.
    groups : Tensor of shape (n,), int64, or mapping of str to Tensor of int64
        Label of every covered entry, flattened over the covered tensors in their order, or by
        name.
    a : float, default=1.0
        Shape. Must be positive; towards 0 the penalty is `GroupL0`, towards infinity `GroupL1`.
    names : tuple of str or None, default=None
        Tensors that are penalized; the others are free. None means all, or the keys of `groups`.

    Raises
    ------
    InvalidParameterError
        If `weight` is negative, `a` is not positive, or labels are not integers or do not fit the
        tensors.

    Notes
    -----
    ``prox(params, t)`` changes the norm of every group as `TransformedL1` changes a magnitude, and
    keeps its direction.

    Examples
    --------
    >>> import torch
    >>> from ellzero.penalties import GroupTransformedL1
    >>> point = {"coef": torch.tensor([3.0, 4.0, 1.0])}
    >>> penalty = GroupTransformedL1(1.0, [0, 0, 1])
    >>> [round(u, 3) for u in penalty.prox(point, 1.0)["coef"].tolist()]
    [2.966, 3.955, 0.0]
    """

    weight: float
    groups: GroupsLike = field(repr=False)
    a: float = 1.0
    names: tuple[str, ...] | None = None
    _grouping: Grouping = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _set_weight(self, self.weight)
        _set_a(self, self.a)
        _set_groups(self, self.groups, self.names)

    @property
    @override
    def _profile(self) -> _AbstractProfile:
        return _Transformed(self.a)
