"""An objective seen as a function of flattened points in float64, evaluated in pieces."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.problem import (
    AbstractConvexObjective,
    AbstractLinearObjective,
    AbstractObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.tensors.coverage import list_names
from ellzero.tensors.named import Batch
from ellzero.typing import Params

# Numbers that one evaluation may hold at a time; 2**24 in float64 are 128 MiB.
CHUNK = 2**24
# What rounding can do to a value, relative to the value at zero.
ROUNDING = 1e-14


@dataclass(frozen=True, slots=True)
class FlatObjective:
    """Objective on points of shape (K, n), entries in the order of `named.flatten`.

    Parameters
    ----------
    objective : AbstractObjective
        The objective.
    template : mapping of str to Tensor
        A point of zeros in float64.
    width : int
        Numbers that an evaluation holds for each point.
    precision : float
        Rounding of the dtype that the objective was given in; its constants are known to that.
    """

    objective: AbstractObjective
    template: Params
    width: int
    precision: float

    @classmethod
    def of(cls, objective: AbstractObjective) -> FlatObjective:
        """Return the flat view of an objective."""
        stored = objective.init_params()
        template = named.to_double(stored)
        precision = max(torch.finfo(t.dtype).eps for t in stored.values())
        objective = in_double(objective, stored, template)
        width = named.size(template)
        if isinstance(objective, AbstractLinearObjective):
            width = max(width, objective.dual_point(template).numel())
        return cls(objective, template, width, precision)

    @property
    def size(self) -> int:
        """Number of entries n."""
        return named.size(self.template)

    @property
    def device(self) -> torch.device:
        """Device of the points."""
        return next(iter(self.template.values())).device

    def flatten(self, params: Params) -> Tensor:
        """Return a point or a batch as float64 of shape (K, n), after checking names and shapes.

        Raises
        ------
        InvalidParameterError
            If names or shapes are not those of the objective.
        """
        check_point(params, self.template)
        ordered = named.like(params, {name: params[name] for name in self.template})
        return named.flatten(named.to_batch(named.to_double(ordered)))

    def unflatten(self, points: Tensor) -> Batch:
        """Return the batch of named tensors."""
        return Batch(named.unflatten(points, self.template))

    def value(self, points: Tensor) -> Tensor:
        """Return the values, shape (K,)."""
        if points.shape[0] == 0:
            return points.new_zeros(0)
        pieces = torch.split(points, self._rows(self.width))
        return torch.cat([self.objective.value(self.unflatten(p)).double() for p in pieces])

    def value_and_grad(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values, shape (K,), and the gradients, shape (K, n)."""
        if points.shape[0] == 0:
            return points.new_zeros(0), torch.zeros_like(points)
        values, grads = [], []
        for piece in torch.split(points, self._rows(self.width)):
            value, grad = self.objective.value_and_grad(self.unflatten(piece))
            values.append(value.detach().double())
            grads.append(named.flatten(Batch({n: grad[n] for n in self.template})))
        return torch.cat(values), torch.cat(grads).detach().double()

    def hessian_on(self, points: Tensor, index: Tensor) -> Tensor:
        """Return the Hessian blocks on `index` of shape (K, k): shape (K, k, k)."""
        assert isinstance(self.objective, AbstractTwiceDifferentiable)
        k = index.shape[1]
        if points.shape[0] == 0 or k == 0:
            return points.new_zeros(points.shape[0], k, k)
        rows = self._rows(self.width * (k + 1) + k * k)
        blocks = [
            self.objective.hessian_on(self.unflatten(p), i)
            for p, i in zip(torch.split(points, rows), torch.split(index, rows), strict=True)
        ]
        return torch.cat(blocks).double()

    def value_at_zero(self) -> float:
        """Return the value at zero: the scale of the objective."""
        return named.to_float(self.objective.value(self.template))

    @staticmethod
    def _rows(width: int) -> int:
        return max(1, CHUNK // max(width, 1))


def in_double(objective: AbstractObjective, stored: Params, wanted: Params) -> AbstractObjective:
    """Return an objective whose data have the dtype of `wanted`: itself, or a copy.

    Without this the certificate would only be as good as float32 is.
    """
    if all(stored[name].dtype == wanted[name].dtype for name in wanted):
        return objective
    dtype = next(iter(wanted.values())).dtype

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().to(dtype) if value.is_floating_point() else value
        if isinstance(value, nn.Module):
            return copy.deepcopy(value).to(dtype)
        if type(value) is dict:
            return {key: cast(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(cast(item) for item in value)
        return value

    twin = copy.copy(objective)
    for name, value in vars(objective).items():
        object.__setattr__(twin, name, cast(value))
    return twin


def check_point(params: Params, template: Params) -> None:
    """Raise when a point or batch has other names or shapes than `template`.

    Raises
    ------
    InvalidParameterError
        If a tensor is missing, unknown or of another shape.
    """
    if set(params) != set(template):
        raise InvalidParameterError(
            f"`params` must hold the tensors {list_names(list(template))}, "
            f"got {list_names(list(params)) if params else 'none'}.",
            "Start from `objective.init_params()`.",
        )
    lead = 1 if named.is_batch(params) else 0
    for name, tensor in template.items():
        given = tuple(params[name].shape[lead:])
        if given != tuple(tensor.shape):
            raise InvalidParameterError(
                f"Tensor {name!r} must have shape {tuple(tensor.shape)}, got {given}.",
                "Start from `objective.init_params()`.",
            )


def moduli(flat: FlatObjective) -> list[Tensor]:
    """Return vectors m, shape (n,), such that f - sum_j m_j theta_j^2 / 2 is convex.

    The constant one comes first; a second one appears when the ridge varies over entries. Numbers
    from eigenvalues are lowered by what rounding can do to them.
    """
    objective = flat.objective
    zeros = named.flatten(named.zeros_like(flat.template))
    if not isinstance(objective, AbstractConvexObjective):
        return [zeros]
    known = objective.strong_convexity()
    ridge = zeros
    if isinstance(objective, AbstractLinearObjective):
        ridge = named.flatten(named.to_double(objective.ridge_weights()))
    # What comes from the ridge alone is exact, and the smoothness is not needed.
    if isinstance(objective, AbstractSmoothObjective) and known > named.to_float(ridge.min()):
        known -= 500 * flat.precision * objective.smoothness()
    if not isinstance(objective, AbstractLinearObjective):
        return [zeros + max(known, 0.0)]
    smallest, largest = named.to_float(ridge.min()), named.to_float(ridge.max())
    if largest > smallest >= known:
        # Nowhere above the ridge.
        return [ridge]
    out = [zeros + max(known, smallest, 0.0)]
    if largest > smallest:
        out.append(ridge + max(known - largest, 0.0))
    return out
