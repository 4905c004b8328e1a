"""What can be proven of a trained sparse network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ellzero.certificates import verify
from ellzero.core.problem import AbstractSparseSet
from ellzero.core.result import Certificate
from ellzero.nn.budgets import Budget
from ellzero.nn.posing import pose, reference_point


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
    posed = pose(
        model,
        criterion,
        loader,
        n_nonzero=n_nonzero,
        constraint=constraint,
        names=names,
        allocation=allocation,
        structure=structure,
        ridge=ridge,
        max_samples=max_samples,
    )
    found = verify(
        posed.problem,
        posed.params,
        tol=tol,
        dense=None if dense is None else reference_point(dense, posed.params),
        step_size=step_size,
        swaps="none",
    )
    return replace(
        found,
        assumptions=(*posed.said, *found.assumptions),
        measures={**found.measures, "n_samples": posed.n_samples},
    )
