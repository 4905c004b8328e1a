"""What can be proven of a trained sparse network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.certificates import verify
from ellzero.core.problem import AbstractSparseSet, Problem
from ellzero.core.result import Certificate
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.budgets import Budget, make_balls, prunable
from ellzero.objectives import ModuleLoss
from ellzero.sets import L0Ball, ProductSet
from ellzero.tensors import thresholded
from ellzero.typing import Params
from ellzero.validation import check_integer


def certify(
    model: nn.Module,
    criterion: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    *,
    n_nonzero: Budget | None = None,
    constraint: AbstractSparseSet | None = None,
    names: Sequence[str] | None = None,
    allocation: str = "global",
    structure: str = "entries",
    dense: nn.Module | Mapping[str, Tensor] | None = None,
    ridge: float = 0.0,
    tol: float = 1e-6,
    step_size: float | None = None,
    max_samples: int | None = None,
) -> Certificate:
    r"""Prove what can be proven of a sparse network on given data.

    The network is a point of

    .. math:: \min_{\theta \in C} \; \frac{1}{N} \sum_{i=1}^N
        \mathrm{criterion}(\mathrm{model}_\theta(x_i), y_i) + \tfrac{\lambda}{2} \|\theta\|^2

    with lambda the `ridge` and C the budget, and is judged as `ellzero.verify` judges any point.

    Parameters
    ----------
    model : torch.nn.Module
        The network; a plain module, or one inside `DistributedDataParallel`. It is evaluated in
        evaluation mode and not changed.
    criterion : callable
        Called as ``criterion(model(x), y)``; returns the mean loss of a batch.
    loader : iterable
        Gives pairs of inputs and targets. Inputs are a tensor, a tuple or list of positional
        ones, or a mapping of named ones. Batches are moved to the device of the model.
    n_nonzero : int, float, mapping or None, default=None
        The budget, as `HardThresholding` takes it. None means the nonzeros that the model has.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set, such as `NMPattern(2, 4)`, instead of `n_nonzero`.
    names : sequence of str or None, default=None
        Tensors that the budget counts; None means `prunable`. The others are free.
    allocation : {"global", "uniform", "erk"}, default="global"
        How one budget is shared by tensors; see `make_balls`.
    structure : {"entries", "rows", "columns"}, default="entries"
        What `n_nonzero` counts; see `make_balls`.
    dense : torch.nn.Module, mapping of str to Tensor or None, default=None
        The dense reference, as a module or its state: the certificate then tells what sparsity
        costs (`epsilon`).
    ridge : float, default=0.0
        The lambda that the loss has in addition.
    tol : float, default=1e-6
        Accuracy of stationarity, relative to the largest entry.
    step_size : float or None, default=None
        Step size of the test of stability. None means 1 / L with L estimated at the model along
        directions of twice the budget, which costs up to some hundred gradients.
    max_samples : int or None, default=None
        Samples to take from the front of the loader; None means all.

    Returns
    -------
    Certificate
        Its `measures` hold, among others, `n_nonzero` and `budget`, `value` (the loss),
        `grad_on_support` (largest gradient entry there), `margin` (smallest magnitude less
        `step_size` times the largest gradient off the support), `largest_stable_step`,
        `smoothness`, and with a reference `dense_value` and `epsilon`.

    Raises
    ------
    InvalidParameterError
        If both or a wrong budget is given, the loader gives no pairs, or `dense` does not fit.
    IncompatibleError
        If the parameters are sharded.

    See Also
    --------
    HardThresholding : Trains the network.
    ellzero.verify : What the claims mean.

    Notes
    -----
    Everything is computed in float64 on a copy of the data and of the parameters, so that a
    float32 model needs three times its memory. Without `step_size` the cost is that of some 100 to
    500 gradients over all samples: for large networks take some thousand samples.

    Stochastic training ends near a stationary point, not at one: then the claim is FEASIBLE, and
    the measures tell how far it is. Networks are not convex, so no lower bound is known and no
    claim above STATIONARY can be made. The gradient of a ReLU network jumps at its kinks, where a
    minimizer need not be stationary.

    References
    ----------
    .. [1] S. Damadi, S. Zolfaghari, M. Rezaie and J. Shen, "Learning a Sparse Neural Network
       using IHT", arXiv:2404.18414.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import certify
    >>> model = torch.nn.Linear(3, 1, bias=False).double()
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 0.0, 2.0]]))
    >>> data = [(torch.eye(3).double(), torch.tensor([[3.0], [1.0], [2.0]]).double())]
    >>> certificate = certify(model, torch.nn.functional.mse_loss, data, n_nonzero=2)
    >>> certificate.claim.name, certificate.measures["n_nonzero"], certificate.measures["budget"]
    ('STATIONARY', 2, 2)
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    params = dict(model.named_parameters())
    if any(thresholded.is_sharded(p) for p in params.values()):
        raise IncompatibleError(
            "`model` must hold whole parameters, got sharded ones.",
            "Gather them first: `get_model_state_dict` of torch.distributed.checkpoint with "
            "`full_state_dict=True` gives a state for a plain model.",
        )
    if n_nonzero is not None and constraint is not None:
        raise InvalidParameterError(
            "At most one of `n_nonzero` and `constraint` must be given, got both."
        )
    if constraint is None:
        constraint = _budget(model, n_nonzero, names, allocation, structure)
    elif constraint.names is None:
        constraint = replace(constraint, names=tuple(prunable(model)))  # type: ignore[type-var]
    reference = None if dense is None else _reference(dense, params)
    if max_samples is not None:
        check_integer("max_samples", max_samples, 1)
    # A copy, so that neither the mode nor a hook of the model is touched.
    frozen = copy.deepcopy(model).eval()
    taken = list(_take(loader, max_samples, next(iter(params.values())).device))
    objective = ModuleLoss.from_batches(frozen, criterion, taken, ridge)
    found = verify(
        Problem(objective, constraint),
        objective.current_params(),
        tol=tol,
        dense=reference,
        step_size=step_size,
        swaps="none",
    )
    n_samples = sum(_length(x) for x, _ in taken)
    said = [f"The loss is the mean over {n_samples} samples, in evaluation mode."]
    if max_samples is not None and n_samples == max_samples:
        said[0] += " They are the first that the loader gave."
    if n_nonzero is None and isinstance(constraint, L0Ball):
        said.append("The budget is the number of nonzeros that the model has.")
    return replace(
        found,
        assumptions=(*said, *found.assumptions),
        measures={**found.measures, "n_samples": n_samples},
    )


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


def _reference(
    dense: nn.Module | Mapping[str, Tensor], params: Mapping[str, nn.Parameter]
) -> Params:
    """Return the dense point, by the names of the parameters that train."""
    state = dense.state_dict() if isinstance(dense, nn.Module) else dense
    out = {}
    for name, param in params.items():
        if not param.requires_grad:
            continue
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
        size = _length(moved[0])
        if left is not None and size > left:
            moved, size = _cut(moved, left, size), left
        yield moved
        if left is not None:
            left -= size
            if left == 0:
                return


def _length(x: Any) -> int:
    """Return the number of samples of inputs; 0 where there is no tensor."""
    parts = x.values() if isinstance(x, Mapping) else x if isinstance(x, (tuple, list)) else (x,)
    return next((len(t) for t in parts if isinstance(t, Tensor) and t.ndim), 0)


def _move(value: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(
        lambda t: t.to(device) if isinstance(t, Tensor) else t, value
    )


def _cut(value: Any, n: int, size: int) -> Any:
    """Return the first samples of everything that has one for each."""
    return torch.utils._pytree.tree_map(
        lambda t: t[:n] if isinstance(t, Tensor) and t.ndim and len(t) == size else t, value
    )
