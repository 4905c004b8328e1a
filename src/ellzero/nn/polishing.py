"""From the end of stochastic training to a stationary sparse network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero import solvers
from ellzero.core.problem import AbstractSparseSet
from ellzero.nn.budgets import Budget
from ellzero.nn.posing import plain, pose
from ellzero.tensors import named


def polish(
    model: nn.Module,
    criterion: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    *,
    n_nonzero: Budget | None = None,
    constraint: AbstractSparseSet | None = None,
    names: Sequence[str] | None = None,
    allocation: str = "global",
    structure: str = "entries",
    ridge: float = 0.0,
    max_samples: int | None = None,
    rounds: int = 5,
    steps: int = 300,
    pieces: int = 10,
    stop: Callable[[int], bool] | None = None,
) -> float:
    r"""Take a trained sparse network to a stationary point of its loss on given data.

    Hard thresholding with a line search and minimization on the support by L-BFGS take turns until
    the support stays, in float64 over all the data at once. Then `certify` can claim what it
    seldom can after stochastic steps: that the network is STATIONARY.

    Parameters
    ----------
    model : torch.nn.Module
        The network, changed in place, in evaluation mode; tensors that the budget does not count
        are trained as well, frozen ones are not.
    criterion : callable
        Called as ``criterion(model(x), y)``; returns the mean loss of a batch.
    loader : iterable
        Pairs of inputs and targets, as `certify` takes them.
    n_nonzero : int, float, mapping or None, default=None
        The budget; None means the nonzeros that the model has.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set instead of `n_nonzero`.
    names : sequence of str or None, default=None
        Tensors that the budget counts; None means `prunable`.
    allocation : {"global", "uniform", "erk"}, default="global"
        How one budget is shared by tensors; see `make_balls`.
    structure : {"entries", "rows", "columns"}, default="entries"
        What `n_nonzero` counts; see `make_balls`.
    ridge : float, default=0.0
        The lambda of a ridge on all parameters that train.
    max_samples : int or None, default=None
        Samples to take from the front of the loader; None means all.
    rounds : int, default=5
        Largest number of turns.
    steps : int, default=300
        Steps of hard thresholding in a turn; 0 keeps the support.
    pieces : int, default=10
        Largest number of hundreds of L-BFGS iterations in a turn.
    stop : callable or None, default=None
        Called with a step number between steps; True ends the work with the best point so far.

    Returns
    -------
    float
        The loss of the polished network, ridge included, before its parameters are rounded to
        their type.

    Raises
    ------
    InvalidParameterError, IncompatibleError
        As for `certify`.

    See Also
    --------
    certify : Says whether the point is stationary.
    HardThresholding : Trains the network; call its `finalize` first.

    Notes
    -----
    A step costs some gradients over all samples: for networks and data of moderate size. A small
    loss on the data given is not a small loss on others: use a `ridge`, or few steps. Activations
    with kinks, such as ReLU, often leave no stationary point to be found; smooth ones, such as
    GELU, do. Entries that rounding would turn to zero lower the count, never raise it.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import certify, polish
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    >>> x = torch.randn(50, 4)
    >>> data = [(x, torch.tanh(x[:, :1]))]
    >>> loss = torch.nn.functional.mse_loss
    >>> _ = polish(model, loss, data, n_nonzero=6, ridge=0.01)
    >>> certify(model, loss, data, n_nonzero=6, ridge=0.01, tol=1e-5).claim.name
    'STATIONARY'
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
        dtype=torch.float64,
    )
    best = solvers.polish(
        posed.problem, posed.params, rounds=rounds, steps=steps, pieces=pieces, stop=stop
    )
    params = dict(plain(model).named_parameters())
    with torch.no_grad():
        for name, tensor in best.items():
            params[name].copy_(tensor)
    return named.to_float(posed.problem.value(best))
