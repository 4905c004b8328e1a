"""From a point near a stationary one to a stationary one, for objectives that are not convex."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ellzero.core.problem import Problem
from ellzero.core.result import Status
from ellzero.core.solver import SolverState, iterate
from ellzero.solvers.refit import refit
from ellzero.solvers.thresholding import IHT
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params
from ellzero.validation import check_integer, check_real

# L-BFGS iterations between two looks at the clock of whoever waits.
PIECE = 100
SOLVER = IHT(step_size="backtracking", tol=1e-9)


def polish(
    problem: Problem,
    params: Params,
    *,
    rounds: int = 5,
    steps: int = 300,
    pieces: int = 10,
    tol: float = 1e-9,
    stop: Callable[[int], bool] | None = None,
) -> Params:
    """Alternate hard thresholding and minimization on the support until the support stays.

    Parameters
    ----------
    problem : Problem
        A smooth objective over a sparse set.
    params : mapping of str to Tensor
        A point, such as the end of stochastic training.
    rounds : int, default=5
        Largest number of alternations.
    steps : int, default=300
        Iterations of `IHT` in a round; 0 keeps the support.
    pieces : int, default=10
        Largest number of hundreds of L-BFGS iterations in a round.
    tol : float, default=1e-9
        A minimization ends when a unit gradient step moves no entry by more than this share of
        the largest.
    stop : callable or None, default=None
        Called with a step number between steps; True ends the work with the best point so far.

    Returns
    -------
    mapping of str to Tensor
        A point of the set whose value is not larger than that of the projected start.

    Raises
    ------
    InvalidParameterError
        If a number is out of range.

    See Also
    --------
    ellzero.verify : Says whether the point is stationary.

    Notes
    -----
    A step of `IHT` costs a few values and a gradient, an iteration of L-BFGS about one gradient.
    Nothing is promised of objectives with kinks.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import polish
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> polish(problem, objective.init_params())["coef"].round(decimals=6).tolist()
    [3.0, 0.0, 2.0]
    """
    check_integer("rounds", rounds, 1)
    check_integer("steps", steps, 0)
    check_integer("pieces", pieces, 1)
    check_real("tol", tol, 0.0)

    def asked(iteration: int, state: SolverState | None = None) -> bool:
        return stop is not None and stop(iteration)

    batch = named.to_batch(params)
    for _ in range(rounds):
        run = iterate(problem, SOLVER, batch, max_iter=steps, callback=asked)
        before, masks = named.nonzero_masks(batch), named.nonzero_masks(run.params)
        batch = _minimize(problem, masks, run.params, pieces, tol, asked)
        same = all(torch.equal(masks[n], m) for n, m in before.items())
        if same or run.status(0) is Status.INTERRUPTED:
            break
    return named.row(batch, 0)


def _minimize(
    problem: Problem,
    masks: Masks,
    batch: Batch,
    pieces: int,
    tol: float,
    asked: Callable[[int], bool],
) -> Batch:
    """Minimize on the support, piece by piece so that an interrupt is noticed."""
    for piece in range(pieces):
        batch = refit(problem.objective, masks, batch, max_iter=PIECE)
        grad = problem.objective.value_and_grad(batch)[1]
        left = named.to_float(named.flatten(named.mask(grad, masks)).abs().max())
        if asked(piece) or left <= tol * named.to_float(named.flatten(batch).abs().max()):
            break
    return batch
