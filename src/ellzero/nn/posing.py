"""A network and the data of a loader as a problem that solvers and certificates take."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.problem import AbstractSparseSet, Problem
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.budgets import Budget, make_balls, prunable
from ellzero.objectives import ModuleLoss
from ellzero.objectives.module import n_samples
from ellzero.sets import L0Ball, ProductSet
from ellzero.tensors import thresholded
from ellzero.typing import Params
from ellzero.validation import check_integer


@dataclass(frozen=True, slots=True)
class Posed:
    """A network as a point of a problem.

    Parameters
    ----------
    problem : Problem
        Mean loss over the samples, over the budget.
    params : mapping of str to Tensor
        Copies of the parameters that train.
    n_samples : int
        Number of samples.
    said : tuple of str
        What was taken for granted, in sentences.
    """

    problem: Problem
    params: Params
    n_samples: int
    said: tuple[str, ...]


def plain(model: nn.Module) -> nn.Module:
    """Return the module inside `DistributedDataParallel`, or the module itself."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if any(thresholded.is_sharded(p) for p in inner.parameters()):
        raise IncompatibleError(
            "`model` must hold whole parameters, got sharded ones.",
            "Gather them first: `get_model_state_dict` of torch.distributed.checkpoint with "
            "`full_state_dict=True` gives a state for a plain model.",
        )
    return inner


def pose(
    model: nn.Module,
    criterion: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    *,
    n_nonzero: Budget | None,
    constraint: AbstractSparseSet | None,
    names: Sequence[str] | None,
    allocation: str,
    structure: str,
    ridge: float,
    max_samples: int | None,
    dtype: torch.dtype | None = None,
) -> Posed:
    """Return the problem that a network is a point of; the parameters are those of `certify`.

    The network is copied, so that neither its mode nor a hook of it is touched; with `dtype`, copy
    and data are of that type.
    """
    model = plain(model)
    if n_nonzero is not None and constraint is not None:
        raise InvalidParameterError(
            "At most one of `n_nonzero` and `constraint` must be given, got both."
        )
    if constraint is None:
        constraint = _budget(model, n_nonzero, names, allocation, structure)
    elif constraint.names is None:
        constraint = replace(constraint, names=tuple(prunable(model)))  # type: ignore[type-var]
    if max_samples is not None:
        check_integer("max_samples", max_samples, 1)
    frozen = copy.deepcopy(model).eval()
    taken = list(_take(loader, max_samples, next(model.parameters()).device))
    if dtype is not None:
        frozen, taken = frozen.to(dtype), [_cast(batch, dtype) for batch in taken]
    objective = ModuleLoss.from_batches(frozen, criterion, taken, ridge)
    total = sum(n_samples(x) for x, _ in taken)
    said = [f"The loss is the mean over {total} samples, in evaluation mode."]
    if max_samples is not None and total == max_samples:
        said[0] += " They are the first that the loader gave."
    if n_nonzero is None and isinstance(constraint, L0Ball):
        said.append("The budget is the number of nonzeros that the model has.")
    problem = Problem(objective, constraint)
    return Posed(problem, objective.current_params(), total, tuple(said))


def _budget(
    model: nn.Module,
    n_nonzero: Budget | None,
    names: Sequence[str] | None,
    allocation: str,
    structure: str,
) -> AbstractSparseSet:
    if n_nonzero is None:
        (ball,) = make_balls(model, 1.0, names=names)
        params = dict(model.named_parameters())
        counted = ball.names or ()
        return L0Ball(
            sum(thresholded.count_true(params[n].detach() != 0) for n in counted), counted
        )
    balls = make_balls(model, n_nonzero, names=names, allocation=allocation, structure=structure)
    return balls[0] if len(balls) == 1 else ProductSet(balls)


def reference_point(dense: nn.Module | Mapping[str, Tensor], params: Params) -> Params:
    """Return the dense point, by the names of the parameters that train."""
    state = dense.state_dict() if isinstance(dense, nn.Module) else dense
    out = {}
    for name, param in params.items():
        if name not in state or state[name].shape != param.shape:
            given = "none" if name not in state else f"shape {tuple(state[name].shape)}"
            raise InvalidParameterError(
                f"`dense` must hold {name!r} of shape {tuple(param.shape)}, got {given}.",
                "Give the dense network of the same class, or its `state_dict()`.",
            )
        out[name] = state[name].detach().to(param.device)
    return out


def _take(
    loader: Iterable[Any], max_samples: int | None, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Return batches on the device, the last one cut where enough samples were taken."""
    left = max_samples
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InvalidParameterError(
                f"`loader` must give pairs of inputs and targets, got {type(batch).__name__}.",
                "Make them on the way: `((b['x'], b['y']) for b in loader)`.",
            )
        moved = _move(tuple(batch), device)
        size = n_samples(moved[0])
        if left is not None and size > left:
            moved, size = _cut(moved, left, size), left
        yield moved
        if left is not None:
            left -= size
            if left == 0:
                return


def _move(value: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(
        lambda t: t.to(device) if isinstance(t, Tensor) else t, value
    )


def _cut(value: Any, n: int, size: int) -> Any:
    """Return the first samples of everything that has one for each."""
    return torch.utils._pytree.tree_map(
        lambda t: t[:n] if isinstance(t, Tensor) and t.ndim and len(t) == size else t, value
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return torch.utils._pytree.tree_map(
        lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, value
    )
