"""Small gradients in the l1-norm, and the bound that a run of AdaGrad carries with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.certificates.flat import FlatObjective
from ellzero.core.problem import (
    AbstractCoordinateSmoothObjective,
    AbstractObjective,
    AbstractSmoothObjective,
)
from ellzero.core.result import Check, Claim
from ellzero.errors import InvalidParameterError
from ellzero.geometry import density, smoothness_vector
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_real

# Rounding of sums of squares of many gradients, relative.
ROUNDING = 1e-10


@dataclass(frozen=True, slots=True)
class L1Stationarity:
    """How small the gradient is at points; 0-d tensors for one point, (size,) for a batch.

    Parameters
    ----------
    stationary : Tensor of bool
        Whether the l1-norm is at most `accuracy`.
    grad_l1, grad_l2, grad_max : Tensor
        The l1-norm, the Euclidean norm and the largest magnitude of the gradient.
    density : Tensor
        l1-norm squared over n times the Euclidean norm squared; NaN for a zero gradient.
    accuracy : float
        The accuracy asked for.
    """

    stationary: Tensor
    grad_l1: Tensor
    grad_l2: Tensor
    grad_max: Tensor
    density: Tensor
    accuracy: float


def l1_stationarity(
    objective: AbstractObjective, params: Params, accuracy: float
) -> L1Stationarity:
    r"""Test whether the l1-norm of the gradient is small.

    .. math:: \|\nabla f(x)\|_1 = \max_{\|d\|_\infty \le 1} \langle \nabla f(x), d \rangle
        \le \epsilon

    Parameters
    ----------
    objective : AbstractObjective
        What is minimized.
    params : mapping of str to Tensor
        A point, or a `Batch` of them.
    accuracy : float
        The number epsilon. Must not be negative.

    Returns
    -------
    L1Stationarity
        The verdict and its numbers, computed in float64.

    Raises
    ------
    InvalidParameterError
        If `accuracy` is negative or `params` does not fit the objective.

    Notes
    -----
    Costs one gradient. For convex f the value is then within
    :math:`\epsilon \|x - x^*\|_\infty` of the minimum.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import l1_stationarity
    >>> f = ellzero.Quadratic(torch.eye(2).double(), torch.tensor([3.0, -1.0]))
    >>> found = l1_stationarity(f, f.init_params(), 1.0)
    >>> found.grad_l1.item(), found.stationary.item(), found.density.item()
    (4.0, False, 0.8)
    """
    check_real("accuracy", accuracy, 0.0)
    flat = FlatObjective.of(objective)
    _, grad = flat.value_and_grad(flat.flatten(params))
    l1 = grad.abs().sum(1)
    out = {
        "stationary": l1 <= accuracy,
        "grad_l1": l1,
        "grad_l2": grad.norm(dim=1),
        "grad_max": grad.abs().amax(1),
        "density": density(grad),
    }
    if not named.is_batch(params):
        out = {name: tensor[0] for name, tensor in out.items()}
    return L1Stationarity(**out, accuracy=float(accuracy))


@dataclass(frozen=True, slots=True)
class AdaGradBound:
    """What a run of AdaGrad proves of its gradients.

    Parameters
    ----------
    n_points : int
        Points T, all of whose gradients count.
    mean_l1, smallest_l1 : float
        Mean and smallest l1-norm of the gradient over the points.
    a_posteriori : float
        Bound on the mean from the gradients alone.
    a_priori : float or None
        Bound on it from the decrease and the refined smoothness; None when no L is known.
    checks : tuple of Check
        The recursion and the inequalities.
    """

    n_points: int
    mean_l1: float
    smallest_l1: float
    a_posteriori: float
    a_priori: float | None
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """Whether all checks pass: this is a run of AdaGrad, and the bounds hold for it."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Return the bounds and every check, one in a line."""
        prior = "unknown" if self.a_priori is None else f"{self.a_priori:.6g}"
        lines = [
            f"mean l1-norm {self.mean_l1:.6g} <= {self.a_posteriori:.6g} (a posteriori), "
            f"{prior} (a priori)"
        ]
        for check in self.checks:
            verdict = "holds" if check.passed else "fails"
            lines.append(f"{verdict}  {check.value:.6g} <= {check.bound:.6g}  {check.name}")
        return "\n".join(lines)


def adagrad_bound(
    objective: AbstractObjective,
    points: Sequence[Params],
    step_size: float,
    *,
    floor: float = 1e-8,
    lower_bound: float | None = 0.0,
    smoothness: Tensor | None = None,
) -> AdaGradBound:
    r"""Recompute the bounds that T exact steps of AdaGrad carry.

    .. math:: \frac1T \sum_t \|\nabla f(x_t)\|_1 \le \frac{1}{\sqrt T} \sum_i b_i, \quad
        \sum_i b_i \le n b_0 + \frac{\Delta}{\eta} + \eta \sum_i L_i \log \frac{b_i}{b_0}

    where :math:`b_i^2 = b_0^2 + \sum_t g_{t,i}^2` and :math:`\Delta = f(x_1) - \inf f`.

    Parameters
    ----------
    objective : AbstractObjective
        What is minimized; gradients are recomputed from it in float64.
    points : sequence of mapping of str to Tensor
        The iterates :math:`x_1, \ldots, x_T` (points, not batches).
    step_size : float
        The step size eta of the run.
    floor : float, default=1e-8
        As given to `AdaGrad`: b_0 is this times the largest entry of the first gradient.
    lower_bound : float or None, default=0.0
        A number below all values, for the a priori bound; 0 suits losses. None leaves the a
        priori bound out.
    smoothness : Tensor of shape (n,) or None, default=None
        The refined smoothness vector L; None means that of the objective, where it has one.

    Returns
    -------
    AdaGradBound
        Both bounds, and the checks: that the points follow the recursion, and each inequality.

    Raises
    ------
    InvalidParameterError
        If there is no point, a number is out of range, a point does not fit the objective, or
        `smoothness` has another shape.

    Notes
    -----
    Uses no state of any solver: T gradients. The a posteriori bound needs no constants and no
    recursion (Cauchy-Schwarz); the a priori one is the proof of convergence for this run, and is
    refused when the points are not those of AdaGrad.

    References
    ----------
    .. [1] R. Jiang, D. Maladkar, A. Mokhtari, "Provable complexity improvement of AdaGrad over
       SGD", arXiv:2406.04592. The explicit deterministic form is derived here.

    Examples
    --------
    >>> import ellzero
    >>> from ellzero.certificates import adagrad_bound
    >>> from ellzero.objectives import StiffRamps
    >>> from ellzero.solvers import AdaGrad
    >>> f, points = StiffRamps(16), []
    >>> _ = ellzero.iterate(ellzero.Problem(f), AdaGrad(0.9), f.start(), max_iter=20,
    ...     callback=lambda _, state: points.append({"coef": state.params["coef"][0]}))
    >>> found = adagrad_bound(f, points, 0.9)
    >>> found.holds, found.mean_l1 <= found.a_posteriori <= found.a_priori
    (True, True)
    """
    check_real("step_size", step_size, 0.0, open_low=True)
    check_real("floor", floor, 0.0, open_low=True)
    if lower_bound is not None:
        check_real("lower_bound", lower_bound)
    if len(points) == 0 or any(named.is_batch(point) for point in points):
        what = "none" if len(points) == 0 else "a batch"
        raise InvalidParameterError(
            f"`points` must hold at least one point, got {what}.",
            "Collect `named.row(state.params, 0)` in a callback of `solve`.",
        )
    flat = FlatObjective.of(objective)
    precision = max(torch.finfo(t.dtype).eps for t in points[0].values())
    x = torch.cat([flat.flatten(point) for point in points])
    values, grads = flat.value_and_grad(x)
    T, n = x.shape
    largest = grads[0].abs().max()
    b0 = floor * named.to_float(largest)
    squares = b0**2 + grads.square().cumsum(0)
    b = squares[-1].sqrt()
    mean_l1 = named.to_float(grads.abs().sum(1).mean())
    total = named.to_float(b.sum())
    posterior = total / math.sqrt(T)
    checks = [_recursion(x, grads, squares, step_size, precision)]
    checks.append(
        Check(
            "mean l1-norm of the gradient, against the sum of b over the root of T",
            mean_l1,
            posterior * (1 + ROUNDING),
            Claim.STATIONARY,
        )
    )
    L = _vector(objective, smoothness, n)
    prior = None
    if L is not None and lower_bound is not None:
        logs = torch.where(b > 0, b / max(b0, 1e-300), torch.ones_like(b)).log()
        decrease = named.to_float(values[0]) - lower_bound
        bound = n * b0 + decrease / step_size + step_size * named.to_float((L * logs).sum())
        prior = bound / math.sqrt(T)
        lowest = named.to_float(values.min())
        scale = max(abs(lower_bound), named.to_float(values.abs().max()))
        checks.append(
            Check(
                "lower bound, against the smallest value of the run",
                lower_bound,
                lowest + ROUNDING * scale,
                Claim.STATIONARY,
            )
        )
        checks.append(
            Check(
                "sum of b, against its bound from decrease and smoothness",
                total,
                bound * (1 + ROUNDING),
                Claim.STATIONARY,
            )
        )
    return AdaGradBound(
        n_points=T,
        mean_l1=mean_l1,
        smallest_l1=named.to_float(grads.abs().sum(1).min()),
        a_posteriori=posterior,
        a_priori=prior,
        checks=tuple(checks),
    )


def _recursion(
    x: Tensor, grads: Tensor, squares: Tensor, step_size: float, precision: float
) -> Check:
    """Check that the points follow the steps of AdaGrad, up to rounding."""
    name = "largest distance of a point from the step of AdaGrad, relative"
    if x.shape[0] == 1:
        return Check(name, 0.0, 0.0, Claim.STATIONARY)
    zero = torch.zeros_like(grads)
    move = torch.where(squares > 0, grads / squares.clamp_min(1e-300).sqrt(), zero)
    expected = x[:-1] - step_size * move[:-1]
    scale = max(named.to_float(x.abs().max()), step_size)
    error = named.to_float((x[1:] - expected).abs().max()) / scale
    return Check(name, error, max(1e-9, 1e2 * precision), Claim.STATIONARY)


def _vector(objective: AbstractObjective, smoothness: Tensor | None, n: int) -> Tensor | None:
    if smoothness is not None:
        if tuple(smoothness.shape) != (n,):
            raise InvalidParameterError(
                f"`smoothness` must be a tensor of shape ({n},), got {tuple(smoothness.shape)}."
            )
        return smoothness.double()
    if isinstance(objective, AbstractCoordinateSmoothObjective | AbstractSmoothObjective):
        return smoothness_vector(objective)
    return None
