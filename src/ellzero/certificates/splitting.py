"""Relaxed variable splitting: descent, stationarity and the limit relation, recomputed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ellzero.core.problem import (
    AbstractCoarseObjective,
    AbstractObjective,
    Problem,
    upper_curvature,
)
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.objectives.binary_patch_network import BinaryPatchNetworkLoss
from ellzero.objectives.patch_network import NAME, PatchNetworkLoss, match_teacher, measure_angle
from ellzero.penalties import L0, L1, GroupL0, TransformedL1
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_real

# Rounding of the Lagrangian, relative to its value at the first point.
ROUNDING = 1e-13


@dataclass(frozen=True, slots=True)
class SplittingCheck:
    """The numbers that tell whether a pair of points has settled, and whether theory holds.

    Tensors are 0-d for a point and of shape (size,) for a batch.

    Parameters
    ----------
    lagrangian : Tensor
        Smooth part at the dense point, penalty at the sparse one, ``beta / 2 * gap ** 2``.
    grad_norm : Tensor
        Norm of its gradient in the dense point; on the sphere, of the tangential part.
    prox_residual : Tensor
        Distance of the sparse point to the prox (or projection) of the dense one.
    gap : Tensor
        Distance between the two points.
    n_nonzero : Tensor of int64
        Nonzeros of the sparse point.
    curvature : float or None
        The constant L of the upper model (c of a coarse gradient); None when there is none.
    step_limit : float or None
        Step size from which on descent is not proven: ``2 / (beta + L)``, for a coarse gradient
        ``1 / (beta + c)`` (itself allowed).
    rate : float or None
        The Lagrangian falls by at least `rate` times ``grad_norm ** 2`` in a step; None when
        nothing is proven.
    cautions : tuple of str
        Where `beta`, the threshold or the step size leave the range of the theory.
    """

    lagrangian: Tensor
    grad_norm: Tensor
    prox_residual: Tensor
    gap: Tensor
    n_nonzero: Tensor
    curvature: float | None
    step_limit: float | None
    rate: float | None
    cautions: tuple[str, ...]


def _smooth(problem: Problem, dense: Params) -> tuple[Tensor, Params]:
    objective = problem.objective
    if isinstance(objective, AbstractCoarseObjective):
        return objective.coarse_value_and_grad(dense)
    return objective.value_and_grad(dense)


def _sparsify(problem: Problem, dense: Params, beta: float) -> Params:
    if problem.constraint is not None:
        return problem.constraint.project(dense)
    assert problem.penalty is not None
    return problem.penalty.prox(dense, 1.0 / beta)


def _check_problem(problem: Problem) -> None:
    if (problem.penalty is None) == (problem.constraint is None):
        given = "neither" if problem.penalty is None else "both"
        raise IncompatibleError(
            f"`problem` must have a penalty or a constraint, got {given}.",
            "Pass `ellzero.Problem(objective, penalty=ellzero.L1(0.01))`.",
        )


def _lagrangian(
    problem: Problem, dense: Params, sparse: Params, beta: float
) -> tuple[Tensor, Params]:
    value, grad = _smooth(problem, dense)
    apart = named.sub(dense, sparse)
    value = value + beta / 2 * named.norm_squared(apart)
    if problem.penalty is not None:
        value = value + problem.penalty.value(sparse)
    return value, named.axpy(beta, apart, grad)


def check_splitting(
    problem: Problem,
    dense: Params,
    sparse: Params | None = None,
    *,
    beta: float,
    step_size: float | None = None,
    normalize: bool = False,
) -> SplittingCheck:
    r"""Check a dense point and its thresholded copy for stationarity of the Lagrangian.

    .. math:: L_\beta(w, u) = f(w) + r(u) + \tfrac\beta2 \|w - u\|^2

    is stationary when its gradient in w vanishes and u is the prox of w.

    Parameters
    ----------
    problem : Problem
        The objective with a penalty or a constraint. Of a coarse objective, its surrogate counts.
    dense : mapping of str to Tensor
        The point w, or a `Batch`.
    sparse : mapping of str to Tensor or None, default=None
        The point u; None means the prox (or the projection) of `dense`.
    beta : float
        The coupling. Must be positive.
    step_size : float or None, default=None
        The step size of the run, to be held against its limit; None means not to.
    normalize : bool, default=False
        Whether w is kept on the unit sphere.

    Returns
    -------
    SplittingCheck
        The numbers, and cautions.

    Raises
    ------
    InvalidParameterError
        If `beta` or `step_size` is not positive.
    IncompatibleError
        If the problem has neither penalty nor constraint, or both.

    Notes
    -----
    Costs one gradient and one prox. The descent with ``step_size < 2 / (beta + L)`` is a theorem
    for every objective with an upper curvature L; the cautions on `beta` and on the threshold are
    measured on the network of `PatchNetworkLoss`: there supports were found for
    ``beta <= 1 / k`` and thresholds below the typical entry ``|w| / sqrt(d)``.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import check_splitting
    >>> teacher = torch.tensor([0.6, 0.0, 0.0, -0.8], dtype=torch.float64)
    >>> objective = ellzero.PatchNetworkLoss(teacher, n_patches=4)
    >>> problem = ellzero.Problem(objective, penalty=ellzero.L0(1e-4))
    >>> check = check_splitting(problem, {"filter": teacher}, beta=0.02, step_size=2.0)
    >>> float(check.grad_norm), float(check.gap), round(check.step_limit, 2), check.cautions
    (0.0, 0.0, 3.93, ())
    """
    check_real("beta", beta, 0.0, open_low=True)
    if step_size is not None:
        check_real("step_size", step_size, 0.0, open_low=True)
    _check_problem(problem)
    found = _sparsify(problem, dense, beta)
    sparse = found if sparse is None else sparse
    value, grad = _lagrangian(problem, dense, sparse, beta)
    if normalize:
        along = named.dot(grad, dense) / named.norm_squared(dense)
        grad = named.axpy(-along, dense, grad)
    objective = problem.objective
    is_coarse = isinstance(objective, AbstractCoarseObjective)
    if isinstance(objective, AbstractCoarseObjective):
        curvature: float | None = objective.coarse_curvature()
    else:
        curvature = upper_curvature(objective)
    limit = None if curvature is None else (1 if is_coarse else 2) / (beta + curvature)
    rate = None
    if step_size is not None and curvature is not None and not is_coarse and not normalize:
        proven = step_size * (1 - step_size * (curvature + beta) / 2)
        rate = proven if proven > 0 else None
    count = named.count_nonzero(sparse)
    return SplittingCheck(
        value,
        named.norm(grad),
        named.norm(named.sub(sparse, found)),
        named.norm(named.sub(dense, sparse)),
        count,
        curvature,
        limit,
        rate,
        tuple(_cautions(problem, dense, count, beta, step_size, limit, normalize)),
    )


def _cautions(
    problem: Problem,
    dense: Params,
    count: Tensor,
    beta: float,
    step_size: float | None,
    limit: float | None,
    normalize: bool,
) -> list[str]:
    objective, penalty = problem.objective, problem.penalty
    is_coarse = isinstance(objective, AbstractCoarseObjective)
    out = []
    if step_size is not None and limit is not None:
        if is_coarse and step_size > limit * (1 + 1e-12):
            out.append(
                f"`step_size` {step_size:g} is above 1 / (beta + c) = {limit:.3g}: the surrogate "
                "may rise."
            )
        elif not is_coarse and step_size >= limit:
            out.append(
                f"`step_size` {step_size:g} is not below 2 / (beta + L) = {limit:.3g}: the "
                "Lagrangian may rise, and the iteration diverge."
            )
    if isinstance(objective, PatchNetworkLoss) and beta > 1 / objective.n_patches:
        out.append(
            f"`beta` {beta:g} is above 1 / k = {1 / objective.n_patches:.3g}: the sparse point "
            "may hold the dense one back, and the support be lost."
        )
    if isinstance(objective, AbstractCoarseObjective) and beta > objective.coarse_curvature():
        out.append(
            f"`beta` {beta:g} is above c = {objective.coarse_curvature():.3g}: the sparse point "
            "may hold the dense one back, and the support be lost."
        )
    if isinstance(penalty, L0 | L1 | TransformedL1):
        threshold = penalty.threshold(1.0 / beta)
        inside = dense if penalty.names is None else {n: dense[n] for n in penalty.names}
        inside = named.like(dense, inside)
        typical = named.norm(inside) / math.sqrt(max(named.size(inside), 1))
        least = named.to_float(typical.min())
        if threshold >= least:
            out.append(
                f"The threshold {threshold:.3g} is not below the typical entry, |w| / sqrt(d) = "
                f"{least:.3g}: entries that matter may be set to zero; lower the weight of the "
                "penalty, or raise `beta`."
            )
    if (
        is_coarse
        and not normalize
        and penalty is not None
        and not isinstance(penalty, L0 | GroupL0)
    ):
        out.append(
            "Without normalization the penalty shrinks the dense point until the sparse one is "
            "zero, since the loss does not see its length; set `normalize=True`."
        )
    empty = named.to_int((count == 0).sum())
    if empty:
        where = f" in {empty} of {count.numel()} rows" if count.ndim else ""
        out.append(f"The sparse point is zero{where}: the penalty outweighs the objective.")
    return out


@dataclass(frozen=True, slots=True)
class LagrangianDescent:
    r"""The descent of the Lagrangian along a run, step by step.

    Parameters
    ----------
    values : Tensor of shape (n_points,) or (n_points, size)
        The Lagrangian at each dense point and its thresholded copy.
    slack : Tensor
        Smallest difference of the two sides of the descent inequality over all steps.
    least_grad : Tensor
        Smallest squared gradient in the dense point before the last one.
    bound : Tensor
        Proven upper bound on it: fall of the value over steps times rate; infinity without one.
    rate : float
        ``step_size * (1 - step_size * (L + beta) / 2)``.
    holds : Tensor of bool
        Whether the rate is positive and every inequality holds up to rounding.
    """

    values: Tensor
    slack: Tensor
    least_grad: Tensor
    bound: Tensor
    rate: float
    holds: Tensor


def lagrangian_descent(
    problem: Problem, path: Sequence[Params], *, beta: float, step_size: float
) -> LagrangianDescent:
    r"""Check the rate of descent of relaxed variable splitting along consecutive dense points.

    .. math:: L^{t+1} \le L^t - \eta (1 - \tfrac\eta2 (L + \beta)) \|\nabla_w L^t\|^2

    and what follows from it: some gradient of the first T is at most
    :math:`(L^0 - L^T) / (T \eta (1 - \eta (L + \beta) / 2))` in squared norm.

    Parameters
    ----------
    problem : Problem
        An objective with an upper curvature, and a penalty or a constraint.
    path : sequence of mapping of str to Tensor
        The dense points of consecutive iterations, two or more; all points, or all batches.
    beta, step_size : float
        As of the run. Must be positive.

    Returns
    -------
    LagrangianDescent
        Both sides; every number is recomputed from the dense points.

    Raises
    ------
    InvalidParameterError
        If there are fewer than two points, batches differ in size, or a number is out of range.
    IncompatibleError
        If the objective has no upper curvature, or the problem neither penalty nor constraint.

    Notes
    -----
    Costs a gradient and a prox for each point. The inequality is proven for the order
    "gauss-seidel" without normalization; a path of another iteration is refused by its numbers.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import lagrangian_descent
    >>> from ellzero.solvers import RVSM
    >>> objective = ellzero.PatchNetworkLoss(torch.tensor([0.6, 0.0, 0.8]).double(), 4)
    >>> problem = ellzero.Problem(objective, penalty=ellzero.L1(1e-3))
    >>> path = []
    >>> run = ellzero.iterate(
    ...     problem, RVSM(0.02, step_size=1.0), objective.random_params(), max_iter=50,
    ...     callback=lambda i, state: path.append(state.dense),
    ... )
    >>> lagrangian_descent(problem, path, beta=0.02, step_size=1.0).holds.tolist()
    [True]
    """
    check_real("beta", beta, 0.0, open_low=True)
    check_real("step_size", step_size, 0.0, open_low=True)
    _check_problem(problem)
    if len(path) < 2:
        raise InvalidParameterError(
            f"`path` must hold two points or more, got {len(path)}.",
            "Record `state.dense` by a `callback` of `ellzero.iterate`.",
        )
    sizes = {tuple(t.shape[0] for t in w.values()) for w in path}
    if len(sizes) > 1:
        raise InvalidParameterError(
            "`path` must hold the same rows in every batch, got batches of several sizes.",
            "Rows that finish leave the loop: record one start, or call `solver.step` yourself.",
        )
    curvature = upper_curvature(problem.objective)
    if curvature is None:
        raise IncompatibleError(
            f"`{type(problem.objective).__name__}` has no upper curvature: no rate is proven.",
            "Look at `check_splitting` for stationarity instead.",
        )
    rate = step_size * (1 - step_size * (curvature + beta) / 2)
    found = [_lagrangian(problem, w, _sparsify(problem, w, beta), beta) for w in path]
    values = torch.stack([value for value, _ in found])
    squared = torch.stack([named.norm_squared(grad) for _, grad in found[:-1]])
    slack = (values[:-1] - rate * squared - values[1:]).amin(0)
    least = squared.amin(0)
    if rate > 0:
        bound = (values[0] - values[-1]) / (len(squared) * rate)
    else:
        bound = torch.full_like(least, torch.inf)
    rounding = ROUNDING * values[0].abs()
    holds = (slack >= -rounding) & (least <= bound + rounding / max(rate, 1e-300)) & (rate > 0)
    return LagrangianDescent(values, slack, least, bound, rate, holds)


@dataclass(frozen=True, slots=True)
class LimitRelation:
    """How a teacher is made of the dense and the sparse limit: w* = C w + kappa (w - u).

    Tensors are 0-d for a point and of shape (size,) for a batch.

    Parameters
    ----------
    constant : Tensor
        The number C.
    kappa : Tensor
        The factor of the gap.
    remainder : Tensor
        Length of what is left, orthogonal to w, over the length of the teacher: zero at a limit.
    predicted : Tensor
        C by its closed form, for limits without normalization; NaN where there is none.
    error, sparse_error : Tensor
        Distances of the dense and the sparse point to the teacher.
    angle, sparse_angle : Tensor
        Their angles to the teacher; NaN for a zero point.
    """

    constant: Tensor
    kappa: Tensor
    remainder: Tensor
    predicted: Tensor
    error: Tensor
    sparse_error: Tensor
    angle: Tensor
    sparse_angle: Tensor


def limit_relation(
    objective: AbstractObjective, dense: Params, sparse: Params, *, beta: float
) -> LimitRelation:
    r"""Check the relation between teacher, dense and sparse limit of a patch network.

    At a fixed point of `RVSM` with `PatchNetworkLoss`, theta being the angle of w to the teacher,

    .. math:: w_* = C w + \frac{k \pi \beta}{\pi - \theta} (w - u), \quad
        C = \frac{\pi + k - 1 - (\sin\theta + k - 1) |w_*| / |w|}{\pi - \theta}

    With normalization some other C takes its place. For `RVSCGD` with `BinaryPatchNetworkLoss`
    the factor of the gap is :math:`\beta / c`, and w* the direction of the teacher.

    Parameters
    ----------
    objective : PatchNetworkLoss or BinaryPatchNetworkLoss
        It has the teacher.
    dense, sparse : mapping of str to Tensor
        The points w and u, or batches.
    beta : float
        The coupling. Must be positive.

    Returns
    -------
    LimitRelation
        The constants and what is left.

    Raises
    ------
    IncompatibleError
        If the objective is another one.
    InvalidParameterError
        If `beta` is not positive.

    Notes
    -----
    Read by coordinates: with `L0` kept entries obey ``C w_i = w*_i`` without bias, with `L1`
    large ones are shrunk by ``kappa * threshold``; dropped ones obey ``(C + kappa) w_i = w*_i``.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.certificates import limit_relation
    >>> teacher = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    >>> point = {"filter": teacher}
    >>> relation = limit_relation(ellzero.PatchNetworkLoss(teacher, 4), point, point, beta=0.1)
    >>> float(relation.constant), float(relation.remainder)
    (1.0, 0.0)
    """
    check_real("beta", beta, 0.0, open_low=True)
    if not isinstance(objective, PatchNetworkLoss | BinaryPatchNetworkLoss):
        raise IncompatibleError(
            f"`objective` must be a patch network with a teacher, got "
            f"`{type(objective).__name__}`.",
            "Use `check_splitting` for other objectives.",
        )
    is_batch = named.is_batch(dense)
    w, u = (named.to_double(p)[NAME] for p in (dense, sparse))
    teacher = match_teacher(objective.teacher.double(), w, is_batch)
    at = measure_angle(w, teacher)
    k = objective.n_patches
    if isinstance(objective, PatchNetworkLoss):
        kappa = k * math.pi * beta / (math.pi - at.theta)
        ratio = at.teacher_length / at.length
        predicted = (math.pi + k - 1 - (at.sine + k - 1) * ratio) / (math.pi - at.theta)
    else:
        teacher = at.teacher_unit
        kappa = torch.full_like(at.theta, beta / objective.coarse_curvature())
        predicted = torch.full_like(at.theta, math.nan)
    rest = teacher - kappa * (w - u)
    constant = (rest * w).sum(-1, keepdim=True) / at.length.square()
    remainder = (rest - constant * w).norm(dim=-1) / teacher.norm(dim=-1)
    return LimitRelation(
        constant.squeeze(-1),
        kappa.squeeze(-1),
        remainder,
        predicted.squeeze(-1),
        (w - teacher).norm(dim=-1),
        (u - teacher).norm(dim=-1),
        at.theta.squeeze(-1),
        measure_angle(u, teacher).theta.squeeze(-1),
    )
