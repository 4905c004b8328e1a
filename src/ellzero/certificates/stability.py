"""Stability under hard thresholding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.certificates.flat import FlatObjective
from ellzero.core.problem import AbstractObjective
from ellzero.sets import L0Ball
from ellzero.tensors import named, supports
from ellzero.typing import Params
from ellzero.validation import check_real

# Equality of the two sides of the magnitude condition, relative to the larger one.
TIE = 1e-12


@dataclass(frozen=True, slots=True)
class HTStability:
    r"""The numbers that decide whether a point is stable under hard thresholding.

    Every field is a 0-d tensor for a point and of shape (size,) for a batch. S is the set of
    nonzero entries that count; free entries always belong to the support.

    Parameters
    ----------
    stable : Tensor of bool
        Whether the point is among the nearest sparse points to itself less a gradient step.
    feasible : Tensor of bool
        Whether the budget is kept.
    n_nonzero : Tensor of int64
        Entries in S.
    short_support : Tensor of bool
        Whether S is smaller than the budget: then the whole gradient must vanish.
    grad_on_support, grad_off_support : Tensor
        Largest magnitude of the gradient on the support and off it.
    smallest_magnitude : Tensor
        Smallest magnitude on S; infinity when S is empty.
    largest_stable_step : Tensor
        Smallest magnitude over `grad_off_support`: the stability radius.
    margin : Tensor
        Smallest magnitude less the step size times `grad_off_support`.
    tied : Tensor of bool
        Whether the margin vanishes up to rounding: another point is an equally good projection.
    residual : Tensor
        Euclidean distance of the point to its projected gradient step.
    step_size : float
        The step size.
    """

    stable: Tensor
    feasible: Tensor
    n_nonzero: Tensor
    short_support: Tensor
    grad_on_support: Tensor
    grad_off_support: Tensor
    smallest_magnitude: Tensor
    largest_stable_step: Tensor
    margin: Tensor
    tied: Tensor
    residual: Tensor
    step_size: float


def ht_stability(
    objective: AbstractObjective,
    constraint: L0Ball,
    params: Params,
    step_size: float,
    *,
    tol: float = 1e-6,
) -> HTStability:
    r"""Test whether points are stable under hard thresholding.

    .. math:: \theta \in H_s(\theta - \gamma \nabla f(\theta))

    which holds exactly when :math:`g_S = 0` and
    :math:`\gamma \max_{j \notin S} |g_j| \le \min_{i \in S} |\theta_i|` for a full support, and
    when :math:`g = 0` for a short one.

    Parameters
    ----------
    objective : AbstractObjective
        What is minimized.
    constraint : L0Ball
        Budget; bounds on entries are not looked at.
    params : mapping of str to Tensor
        A point, or a `Batch` of them.
    step_size : float
        The step size. Must be positive.
    tol : float, default=1e-6
        The gradient counts as zero when a step along it moves no entry by more than `tol` times
        the largest magnitude of the point; 0 demands exact zeros and exact inequalities.

    Returns
    -------
    HTStability
        The verdict and its numbers.

    Raises
    ------
    InvalidParameterError
        If `step_size` is not positive or `params` does not fit the objective.

    Notes
    -----
    Costs one gradient and one projection, for all points of a batch together. Stability at 1 / L,
    with L the restricted smoothness constant for twice the budget, is necessary for a global
    minimizer.

    References
    ----------
    .. [1] S. Damadi and J. Shen, "Gradient properties of hard thresholding operator",
       arXiv:2209.08247.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import ht_stability
    >>> objective = ellzero.Quadratic(torch.eye(3).double(), torch.tensor([3.0, 1.0, 2.0]))
    >>> point = {"coef": torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)}
    >>> report = ht_stability(objective, ellzero.L0Ball(2), point, step_size=1.0)
    >>> bool(report.stable), float(report.largest_stable_step)
    (False, 0.5)
    """
    check_real("step_size", step_size, 0.0, open_low=True)
    check_real("tol", tol, 0.0)
    flat = FlatObjective.of(objective)
    theta = flat.flatten(params)
    _, grad = flat.value_and_grad(theta)
    counted = supports.covered(constraint.names, flat.template)
    inside = (theta != 0) & counted
    support = inside | ~counted
    zero = torch.zeros_like(theta)
    on = _largest(torch.where(support, grad.abs(), zero))
    off = _largest(torch.where(support, zero, grad.abs()))
    smallest = _smallest(torch.where(inside, theta.abs(), torch.inf))
    scale = _largest(theta.abs())
    count = inside.sum(1)
    short = count < constraint.n_nonzero
    feasible = count <= constraint.n_nonzero
    slack = tol * scale
    margin = torch.where(torch.isinf(smallest), smallest, smallest - step_size * off)
    near = torch.where(torch.isinf(smallest), 0.0, TIE * torch.maximum(smallest, step_size * off))
    still_on, still_off = step_size * on <= slack, step_size * off <= slack
    allowance = near if tol > 0 else torch.zeros_like(near)
    ordered = step_size * off <= smallest + allowance
    stable = feasible & still_on & torch.where(short, still_off, ordered)
    moved = flat.unflatten(theta - step_size * grad)
    target = L0Ball(constraint.n_nonzero, names=constraint.names).project(
        moved, incumbents=named.nonzero_masks(flat.unflatten(theta))
    )
    residual = (named.flatten(target) - theta).norm(dim=1)
    report = {
        "stable": stable,
        "feasible": feasible,
        "n_nonzero": count,
        "short_support": short,
        "grad_on_support": on,
        "grad_off_support": off,
        "smallest_magnitude": smallest,
        "largest_stable_step": torch.where(off > 0, smallest / off.clamp_min(1e-300), torch.inf),
        "margin": margin,
        "tied": (margin.abs() <= near) & ~short & (count > 0),
        "residual": residual,
    }
    if not named.is_batch(params):
        report = {name: tensor[0] for name, tensor in report.items()}
    return HTStability(**report, step_size=float(step_size))


def _largest(magnitudes: Tensor) -> Tensor:
    return magnitudes.amax(1) if magnitudes.shape[1] else magnitudes.sum(1)


def _smallest(magnitudes: Tensor) -> Tensor:
    return magnitudes.amin(1) if magnitudes.shape[1] else magnitudes.sum(1) + torch.inf
