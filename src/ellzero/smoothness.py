"""Restricted smoothness and strong convexity constants, each labelled by what it proves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import (
    AbstractObjective,
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import IncompatibleError
from ellzero.tensors import named, selection
from ellzero.tensors.coverage import restrict
from ellzero.tensors.named import Batch
from ellzero.typing import Params
from ellzero.validation import check_choice, check_integer, check_real

Kind = Literal["lower estimate", "upper bound", "exact"]

# Supports up to which k-sparse eigenvalues are found by trying them all.
ENUMERATION_LIMIT = 200_000
# Rows of A up to which the bound over its rows is taken.
ROW_LIMIT = 20_000
# Pairs, or Hessian-vector products, evaluated at once.
CHUNK = 1000
POWER_ITERATIONS = 100


@dataclass(frozen=True, slots=True)
class SmoothnessEstimate:
    """A restricted constant and what is known of it.

    Parameters
    ----------
    value : float
        The number.
    kind : {"lower estimate", "upper bound", "exact"}
        How it relates to the constant.
    method : str
        How it was found.
    n_nonzero : int
        Most nonzeros of the differences that it holds for.
    details : mapping of str to float or str
        What else the method knows.
    """

    value: float
    kind: Kind
    method: str
    n_nonzero: int
    details: Mapping[str, Any] = field(default_factory=dict)


def restricted_smoothness(
    objective: AbstractObjective,
    n_nonzero: int,
    *,
    method: str = "auto",
    params: Params | None = None,
    n_samples: int = 5000,
    distribution: str = "normal",
    radius: float = 1.0,
    ratio: str = "both",
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
    names: tuple[str, ...] | None = None,
) -> SmoothnessEstimate:
    r"""Estimate or bound the restricted smoothness constant of an objective.

    The constant :math:`L_k` is the smallest number with

    .. math:: f(y) \le f(x) + \langle \nabla f(x), y - x \rangle + \tfrac{L_k}{2} \|y - x\|^2

    for all x, y whose difference has at most k = `n_nonzero` nonzeros; for steps between s-sparse
    points k is 2s.

    Parameters
    ----------
    objective : AbstractObjective
        The function f.
    n_nonzero : int
        Most nonzeros of a difference, at least 1; more than there are entries means all.
    method : {"auto", "monte-carlo", "power", "bound"}, default="auto"
        "bound" where the objective has a curvature bound, else "power", is the automatic choice.
    params : mapping of str to Tensor or None, default=None
        Where "power" takes the Hessian; None means zero, or the parameters that a `ModuleLoss`
        started with.
    n_samples : int, default=5000
        Pairs drawn by "monte-carlo".
    distribution : {"normal", "uniform"}, default="normal"
        Law of the entries of the pairs: N(0, radius^2) or U(-radius, radius).
    radius : float, default=1.0
        Scale of that law.
    ratio : {"both", "smoothness", "lipschitz"}, default="both"
        Which ratio "monte-carlo" maximizes: that of the inequality, that of the gradients, or the
        larger of the two.
    confidence : float, default=0.95
        Confidence of the quantile statement of "monte-carlo".
    generator : torch.Generator or None, default=None
        Source of randomness; None means one seeded with 0.
    names : tuple of str or None, default=None
        Tensors whose entries are drawn sparse by "monte-carlo"; None means all.

    Returns
    -------
    SmoothnessEstimate
        The number, labelled.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.
    IncompatibleError
        If the objective lacks what the method needs.

    Notes
    -----
    "monte-carlo" and "power" are *lower estimates*: a step size of one over them has no guarantee.
    Of T independent pairs, with confidence 1 - delta, at most a share 1 - delta^(1/T) of all pairs
    of the same law exceeds the Monte Carlo value; nothing is said about the supremum. "power" is
    the truncated power method [1]_ on Hessian-vector products, 100 of them for each of up to
    n starts. "bound" is the smallest of: largest eigenvalue; sum of the k largest diagonal
    entries; largest row sum of k entries; and, for at most 200,000 supports, enumeration of the
    k-sparse eigenvalues of the curvature bound. It is exact for quadratics and the logistic loss
    when enumerated, or when k is the number of entries.

    References
    ----------
    .. [1] X.-T. Yuan and T. Zhang, "Truncated power method for sparse eigenvalue problems",
       arXiv:1112.2679.
    .. [2] S. Damadi, S. Zolfaghari, M. Rezaie and J. Shen, "Learning a Sparse Neural Network
       using IHT", arXiv:2404.18414.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Quadratic(torch.diag(torch.tensor([1.0, 3.0, 2.0])), torch.zeros(3))
    >>> estimate = ellzero.restricted_smoothness(f, n_nonzero=2)
    >>> round(estimate.value, 6), estimate.kind
    (3.0, 'exact')
    """
    n = named.size(objective.init_params())
    k = min(check_integer("n_nonzero", n_nonzero, 1), n)
    check_choice("method", method, ("auto", "monte-carlo", "power", "bound"))
    if method == "auto":
        method = "bound" if isinstance(objective, AbstractSmoothObjective) else "power"
    if method == "bound":
        if not isinstance(objective, AbstractSmoothObjective):
            raise IncompatibleError(
                f"`{type(objective).__name__}` has no curvature bound.",
                'Use method="power" for a lower estimate at a point.',
            )
        return _bound(objective, k)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if method == "power":
        if not isinstance(objective, AbstractTwiceDifferentiable):
            raise IncompatibleError(
                f"`{type(objective).__name__}` has no second derivatives.",
                'Use method="monte-carlo".',
            )
        return _power(objective, k, params, generator)
    check_integer("n_samples", n_samples, 1)
    check_choice("distribution", distribution, ("normal", "uniform"))
    check_choice("ratio", ratio, ("both", "smoothness", "lipschitz"))
    check_real("radius", radius, 0.0, open_low=True)
    check_real("confidence", confidence, 0.0, 1.0)
    return _monte_carlo(
        objective, k, n_samples, distribution, radius, ratio, confidence, generator, names
    )


# Monte Carlo ---------------------------------------------------------------------------------


def _sparse_points(
    template: Params,
    s: int,
    count: int,
    distribution: str,
    radius: float,
    generator: torch.Generator,
    names: tuple[str, ...] | None,
) -> Params:
    values: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    for name, tensor in template.items():
        shape = (count, *tensor.shape)
        if distribution == "normal":
            drawn = radius * torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            drawn = radius * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)
        values[name] = drawn.to(tensor)
        scores[name] = torch.rand(shape, generator=generator, dtype=torch.float64).to(tensor)
    masks = selection.top_k_masks(Batch(scores), s, names=names)
    return named.mask(Batch(values), masks)


def _monte_carlo(
    objective: AbstractObjective,
    k: int,
    n_samples: int,
    distribution: str,
    radius: float,
    ratio: str,
    confidence: float,
    generator: torch.Generator,
    names: tuple[str, ...] | None,
) -> SmoothnessEstimate:
    template = objective.init_params()
    s = min(max(1, math.ceil(k / 2)), named.size(restrict(template, names)))
    first, second = 0.0, 0.0
    for start in range(0, n_samples, CHUNK):
        count = min(CHUNK, n_samples - start)
        x = _sparse_points(template, s, count, distribution, radius, generator, names)
        y = _sparse_points(template, s, count, distribution, radius, generator, names)
        fx, gx = objective.value_and_grad(x)
        fy, gy = objective.value_and_grad(y)
        d = named.sub(y, x)
        length = named.norm(d)
        usable = length > 0
        safe = torch.where(usable, length, torch.ones_like(length))
        r1 = 2 * (fy - fx - named.dot(gx, d)) / safe.square()
        r2 = named.norm(named.sub(gy, gx)) / safe
        first = max(first, named.to_float(torch.where(usable, r1, -torch.inf).max()))
        second = max(second, named.to_float(torch.where(usable, r2, -torch.inf).max()))
    value = {"smoothness": first, "lipschitz": second, "both": max(first, second)}[ratio]
    share = 1 - (1 - confidence) ** (1 / n_samples)
    return SmoothnessEstimate(
        value,
        "lower estimate",
        "monte-carlo",
        k,
        {
            "smoothness_ratio": first,
            "lipschitz_ratio": second,
            "n_samples": n_samples,
            "exceeding_share": share,
            "statement": (
                f"With confidence {confidence:g}, at most {share:.2%} of pairs drawn by the same "
                f"law ({distribution}, radius {radius:g}, {s} nonzeros each) exceed this value; "
                "this says nothing about the supremum."
            ),
        },
    )


# Truncated power method ------------------------------------------------------------------------


def _power(
    objective: AbstractTwiceDifferentiable,
    k: int,
    params: Params | None,
    generator: torch.Generator,
) -> SmoothnessEstimate:
    if params is None:
        current = getattr(objective, "current_params", objective.init_params)
        params = current()
    n = named.size(params)
    count = n if n <= 200 else 20
    starts = torch.zeros(count, n, dtype=torch.float64)
    if n <= 200:
        starts.fill_diagonal_(1.0)
    else:
        starts.copy_(torch.randn(count, n, generator=generator, dtype=torch.float64))
    like = next(iter(params.values()))
    direction = _sparse_unit(named.unflatten(starts.to(like), params), k)
    here = named.expand(params, count)
    shift = torch.zeros(count, dtype=torch.float64, device=like.device)
    best = torch.full_like(shift, -torch.inf)
    for _ in range(POWER_ITERATIONS):
        product = objective.hessian_vector(here, direction)
        curvature = named.dot(direction, product)
        settled = curvature <= best + 1e-12 * curvature.abs()
        best = torch.maximum(best, curvature)
        # Shifting makes the matrix positive semidefinite along the path, so that the quotient
        # cannot fall when the Hessian is indefinite.
        shift = torch.maximum(shift, -curvature)
        if named.all_true(settled):
            break
        direction = _sparse_unit(named.axpy(shift, direction, product), k)
    return SmoothnessEstimate(
        named.to_float(best.max()),
        "lower estimate",
        "power",
        k,
        {
            "n_starts": count,
            "statement": "Largest curvature found at one point along directions with at most "
            f"{k} nonzeros; other points may be steeper.",
        },
    )


def _sparse_unit(direction: Params, k: int) -> Params:
    """Return the k largest entries of every row, with length 1."""
    kept = named.mask(direction, selection.top_k_masks(direction, k, magnitude=True))
    return named.scale(kept, 1.0 / named.norm(kept).clamp_min(1e-300))


# Bounds --------------------------------------------------------------------------------------


def sparse_eigenvalues(bound: CurvatureBound, k: int, *, smallest: bool = False) -> float:
    """Return the extreme eigenvalue over all principal blocks of k rows, by enumeration.

    Parameters
    ----------
    bound : CurvatureBound
        The matrix.
    k : int
        Rows of a block.
    smallest : bool, default=False
        Whether the smallest eigenvalue is wanted.

    Returns
    -------
    float
        The k-sparse eigenvalue.

    Notes
    -----
    Costs C(n, k) eigenvalue problems of size k.
    """
    best = math.inf if smallest else -math.inf
    combinations = itertools.combinations(range(bound.size), k)
    while chunk := list(itertools.islice(combinations, 20_000)):
        index = torch.tensor(chunk, device=bound.positions.device)
        values = torch.linalg.eigvalsh(bound.submatrix(index))
        if smallest:
            best = min(best, named.to_float(values[:, 0].min()))
        else:
            best = max(best, named.to_float(values[:, -1].max()))
    return best


def _row_bound(bound: CurvatureBound, k: int) -> float:
    """Return max_i (A_ii + sum of the k - 1 largest |A_ij|, j != i)."""
    best = 0.0
    for i in range(bound.size):
        row = bound.row(i).abs()
        own = row[i].clone()
        row[i] = 0
        largest = selection.top_k_masks({"row": row}, k - 1)["row"]
        best = max(best, named.to_float(own + (row * largest).sum()))
    return best


def _bound(objective: AbstractSmoothObjective, k: int) -> SmoothnessEstimate:
    bound = objective.curvature_bound()
    n = bound.size
    largest = objective.smoothness()
    if k == n:
        kind: Kind = "exact" if bound.attained else "upper bound"
        return SmoothnessEstimate(largest, kind, "bound", k, {"by": "largest eigenvalue"})
    if math.comb(n, k) <= ENUMERATION_LIMIT:
        value = min(sparse_eigenvalues(bound, k), largest)
        kind = "exact" if bound.attained else "upper bound"
        return SmoothnessEstimate(value, kind, "bound", k, {"by": "enumeration"})
    diagonal = bound.diagonal()
    top = selection.top_k_masks({"diagonal": diagonal}, k)["diagonal"]
    candidates = {
        "largest eigenvalue": largest,
        "diagonal": named.to_float((diagonal * top).sum()),
    }
    if n <= ROW_LIMIT:
        candidates["rows"] = _row_bound(bound, k)
    by = min(candidates, key=lambda name: candidates[name])
    return SmoothnessEstimate(candidates[by], "upper bound", "bound", k, {"by": by, **candidates})


def restricted_strong_convexity(
    objective: AbstractObjective, n_nonzero: int
) -> SmoothnessEstimate:
    r"""Bound the restricted strong convexity constant of an objective from below.

    The constant :math:`m_k` is the largest number with :math:`f(y) \ge f(x) + \langle \nabla f(x),
    y - x \rangle + \tfrac{m_k}{2} \|y - x\|^2` for differences of at most k = `n_nonzero` nonzeros.

    Parameters
    ----------
    objective : AbstractObjective
        The function f.
    n_nonzero : int
        Most nonzeros of a difference, at least 1; more than there are entries means all.

    Returns
    -------
    SmoothnessEstimate
        Kind "exact" for quadratics with at most 200,000 supports; else the strong convexity
        constant on the whole space, of kind "lower estimate": it is a proven lower bound.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Quadratic(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.zeros(2))
    >>> round(ellzero.restricted_strong_convexity(f, 1).value, 6)
    2.0
    """
    n = named.size(objective.init_params())
    k = min(check_integer("n_nonzero", n_nonzero, 1), n)
    if isinstance(objective, AbstractQuadraticObjective):
        if math.comb(n, k) <= ENUMERATION_LIMIT:
            value = sparse_eigenvalues(objective.curvature_bound(), k, smallest=True)
            value = max(value, objective.strong_convexity())
            return SmoothnessEstimate(value, "exact", "bound", k, {"by": "enumeration"})
    if isinstance(objective, AbstractSmoothObjective):
        value = objective.strong_convexity()
        return SmoothnessEstimate(value, "lower estimate", "bound", k, {"by": "whole space"})
    return SmoothnessEstimate(0.0, "lower estimate", "bound", k, {"by": "nothing is known"})
