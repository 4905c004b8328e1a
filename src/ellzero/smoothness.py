"""Restricted smoothness constants: sampled, by a power method, and bounded."""

from __future__ import annotations

import array
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
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
from ellzero.errors import IncompatibleError, NonFiniteError
from ellzero.tensors import named, supports
from ellzero.tensors.coverage import covered, restrict
from ellzero.tensors.named import Batch
from ellzero.tensors.selection import top_k_masks
from ellzero.typing import Params
from ellzero.validation import check_choice, check_integer, check_real

Kind = Literal["lower estimate", "lower bound", "upper bound", "exact"]

# Supports that an enumeration may visit, and operations it may spend.
SUPPORTS = 200_000
OPERATIONS = 2 * 10**9
# Numbers that one temporary may hold.
CHUNK = 2**22
# Entries up to which every unit vector starts the power method.
ALL_STARTS = 64
# Entries up to which rows of the curvature bound are looked at one by one, and columns up to which
# it is formed at all.
ROWS_LIMIT = 8192
COLUMNS_LIMIT = 16384
# Entries up to which a matrix is decomposed as a whole.
DENSE_LIMIT = 2048
# What rounding can take away from a computed bound.
ROUND_UP = 1 + 1e-12


@dataclass(frozen=True, slots=True)
class SmoothnessEstimate:
    """A restricted constant, and what the number is.

    Parameters
    ----------
    value : float
        The number.
    kind : {"lower estimate", "lower bound", "upper bound", "exact"}
        How the number stands to the constant.
    method : str
        How it was found.
    n_nonzero : int
        Entries of a difference of two points.
    details : mapping of str to object
        Figures of the method.

    Examples
    --------
    >>> import torch, ellzero
    >>> objective = ellzero.LeastSquares(torch.eye(3).double(), torch.ones(3).double())
    >>> ellzero.restricted_smoothness(objective, 2).kind
    'exact'
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
    r"""Estimate or bound the restricted smoothness constant.

    .. math:: f(y) \le f(x) + \nabla f(x)^T (y - x) + \tfrac{L_k}{2} \|y - x\|^2
        \quad \text{whenever } \|y - x\|_0 \le k

    where :math:`k` is `n_nonzero`: twice the budget for differences of two sparse points.

    Parameters
    ----------
    objective : AbstractObjective
        The function f.
    n_nonzero : int
        Entries of a difference. Must be at least 1; a number above the number of entries means
        all of them.
    method : {"auto", "monte-carlo", "power", "bound"}, default="auto"
        "auto" is "bound" where the objective has a curvature bound, else "power".
    params : mapping of str to Tensor or None, default=None
        Point or batch at which "power" takes the Hessian. None means the module's own parameters
        for `ModuleLoss`, else zeros.
    n_samples : int, default=5000
        Pairs that "monte-carlo" draws.
    distribution : {"normal", "uniform"}, default="normal"
        Law of the nonzero entries: normal with standard deviation `radius`, or uniform in
        [-radius, radius].
    radius : float, default=1.0
        Scale of the entries. Must be positive.
    ratio : {"both", "smoothness", "lipschitz"}, default="both"
        What "monte-carlo" looks at: the curvature from values (r1), from gradients (r2), or both.
    confidence : float, default=0.95
        Confidence of the statement on quantiles. Must be in (0, 1).
    generator : torch.Generator or None, default=None
        Source of randomness, on the CPU. None means seed 0.
    names : tuple of str or None, default=None
        Tensors that `n_nonzero` counts; the others are free. None means all.

    Returns
    -------
    SmoothnessEstimate
        The number and what it is.

    Raises
    ------
    InvalidParameterError
        If an argument is out of its range.
    IncompatibleError
        If the objective does not have what the method needs.
    NonFiniteError
        If a sampled value is not finite.

    See Also
    --------
    restricted_strong_convexity : The lower counterpart.

    Notes
    -----
    "monte-carlo" draws pairs of sparse points, each with half of `n_nonzero` entries on a uniform
    support, and returns the largest ratio seen: r1, twice the gap of the linear model over the
    squared distance, or r2, the change of the gradient on the two supports over the distance. It
    is a lower estimate, and only says which share of such pairs exceeds it [1]_.

    "power" is the truncated power method [2]_ on Hessian-vector products, from every unit vector
    for up to 64 entries, else from the largest diagonal entries and random vectors; then the
    largest eigenvalue on the supports found. It is a lower estimate of the constant.

    "bound" works on the curvature bound A of the objective and is the smallest of (a) the largest
    eigenvalue of A, (b) the sum of the k largest diagonal entries, (c) the largest diagonal entry
    plus k - 1 largest magnitudes of its row, and the largest eigenvalue over all supports where
    there are at most 200,000. It is exact when A is the Hessian somewhere and all supports are
    enumerated, or k counts every entry; otherwise it is an upper bound.

    References
    ----------
    .. [1] S. Damadi et al., "Learning a Sparse Neural Network using IHT", arXiv 2404.18414.
    .. [2] X.-T. Yuan and T. Zhang, "Truncated Power Method for Sparse Eigenvalue Problems", JMLR,
       2013. arXiv 1112.2679.

    Examples
    --------
    >>> import torch, ellzero
    >>> X = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    >>> objective = ellzero.LeastSquares(X, torch.ones(2, dtype=torch.float64))
    >>> estimate = ellzero.restricted_smoothness(objective, 1)
    >>> round(estimate.value, 6), estimate.kind
    (2.0, 'exact')
    """
    if not isinstance(objective, AbstractObjective):
        raise IncompatibleError(
            f"`objective` must be an AbstractObjective, got {type(objective).__name__}."
        )
    template = named.to_double(objective.init_params())
    n_nonzero = check_integer("n_nonzero", n_nonzero, 1)
    check_choice("method", method, ("auto", "monte-carlo", "power", "bound"))
    check_choice("distribution", distribution, ("normal", "uniform"))
    check_choice("ratio", ratio, ("both", "smoothness", "lipschitz"))
    check_integer("n_samples", n_samples, 1)
    check_real("radius", radius, 0.0, open_low=True)
    check_real("confidence", confidence, 0.0, 1.0, open_low=True)
    covered(template, names)
    counted = named.size(restrict(template, names))
    n_nonzero = min(n_nonzero, counted)
    if method == "auto":
        method = "bound" if isinstance(objective, AbstractSmoothObjective) else "power"
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    if method == "monte-carlo":
        return _monte_carlo(
            objective,
            n_nonzero,
            template,
            names,
            n_samples,
            (distribution, radius),
            ratio,
            confidence,
            generator,
        )
    if method == "power":
        if not isinstance(objective, AbstractTwiceDifferentiable):
            raise IncompatibleError(
                'The method "power" needs an objective with second derivatives, '
                f"got `{type(objective).__name__}`.",
                'Use `method="monte-carlo"`.',
            )
        if params is None:
            params = getattr(objective, "current_params", objective.init_params)()
        return _power(objective, n_nonzero, params, names, generator)
    if not isinstance(objective, AbstractSmoothObjective):
        raise IncompatibleError(
            'The method "bound" needs a convex objective with bounded curvature, '
            f"got `{type(objective).__name__}`.",
            'Use `method="power"`; it is a lower estimate.',
        )
    return _bound(objective, n_nonzero, named.size(template) - counted)


def restricted_strong_convexity(
    objective: AbstractSmoothObjective, n_nonzero: int
) -> SmoothnessEstimate:
    r"""Bound the restricted strong convexity constant from below.

    .. math:: f(y) \ge f(x) + \nabla f(x)^T (y - x) + \tfrac{m_k}{2} \|y - x\|^2
        \quad \text{whenever } \|y - x\|_0 \le k

    where :math:`k` is `n_nonzero`.

    Parameters
    ----------
    objective : AbstractSmoothObjective
        The function f.
    n_nonzero : int
        Entries of a difference. Must be at least 1; a number above the number of entries means
        all of them.

    Returns
    -------
    SmoothnessEstimate
        The number: of kind "exact" when the objective is quadratic and all supports are
        enumerated, else "lower bound".

    Raises
    ------
    InvalidParameterError
        If `n_nonzero` is not a positive integer.
    IncompatibleError
        If the objective is not smooth and convex.

    See Also
    --------
    restricted_smoothness : The upper counterpart.

    Notes
    -----
    The smallest eigenvalue over all supports for a quadratic objective with at most 200,000 of
    them, else the strong convexity constant of the whole. Rounded down.

    Examples
    --------
    >>> import torch, ellzero
    >>> Q = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    >>> objective = ellzero.Quadratic(Q, torch.zeros(3, dtype=torch.float64))
    >>> round(ellzero.restricted_strong_convexity(objective, 2).value, 6)
    1.0
    """
    if not isinstance(objective, AbstractSmoothObjective):
        raise IncompatibleError(
            f"`objective` must be convex with bounded curvature, got `{type(objective).__name__}`."
        )
    n_nonzero = check_integer("n_nonzero", n_nonzero, 1)
    n = named.size(objective.init_params())
    k = min(n_nonzero, n)
    known = objective.strong_convexity()
    small = n <= DENSE_LIMIT and _is_enumerable(n, k)
    if not isinstance(objective, AbstractQuadraticObjective) or not small:
        return SmoothnessEstimate(known, "lower bound", "bound", k, {"smallest": "whole"})
    curvature = _in_double(objective.curvature_bound())
    lowest, highest = math.inf, 0.0
    for index in _all_supports(n, k, curvature.positions.device):
        values = torch.linalg.eigvalsh(curvature.submatrix(index))
        lowest = min(lowest, named.to_float(values[:, 0].min()))
        highest = max(highest, named.to_float(values[:, -1].max()))
    value = max(lowest - 8 * k * torch.finfo(torch.float64).eps * highest, known, 0.0)
    details = {"smallest": "enumeration", "n_supports": math.comb(n, k)}
    return SmoothnessEstimate(value, "exact", "bound", k, details)


# Monte Carlo ---------------------------------------------------------------------------------


def _monte_carlo(
    objective: AbstractObjective,
    k: int,
    template: Params,
    names: tuple[str, ...] | None,
    n_samples: int,
    law: tuple[str, float],
    ratio: str,
    confidence: float,
    generator: torch.Generator,
) -> SmoothnessEstimate:
    n = named.size(template)
    s = -(-k // 2)
    is_counted = _counted_entries(template, names)
    largest = {"r1": -math.inf, "r2": -math.inf, "r2_whole": -math.inf}
    rows = max(1, CHUNK // n)
    for start in range(0, n_samples, rows):
        size = min(rows, n_samples - start)
        x, on_x = _sparse_points(size, s, is_counted, law, generator)
        # Differences of two points have at most k entries: an odd k leaves one point less.
        y, on_y = _sparse_points(size, k - s if k > 1 else 1, is_counted, law, generator)
        if k == 1:
            y, on_y = torch.where(on_x, _entries_like(x, law, generator), 0.0), on_x
        value_x, grad_x = objective.value_and_grad(Batch(named.unflatten(x, template)))
        value_y, grad_y = objective.value_and_grad(Batch(named.unflatten(y, template)))
        change = (named.flatten(grad_y) - named.flatten(grad_x)).double()
        move = y - x
        squared = move.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        slope = (named.flatten(grad_x).double() * move).sum(1)
        on_both = torch.where(on_x | on_y, change, torch.zeros_like(change))
        ratios = {
            "r1": 2 * (value_y.double() - value_x.double() - slope) / squared,
            "r2": on_both.norm(dim=1) / squared.sqrt(),
            "r2_whole": change.norm(dim=1) / squared.sqrt(),
        }
        for name, numbers in ratios.items():
            if not named.all_true(torch.isfinite(numbers)):
                raise NonFiniteError(
                    "The objective or its gradient is not finite at a sampled point.",
                    f"Reduce `radius` (now {law[1]:g}).",
                )
            largest[name] = max(largest[name], named.to_float(numbers.max()))
    used = {"both": ("r1", "r2"), "smoothness": ("r1",), "lipschitz": ("r2",)}[ratio]
    exceed = 1 - (1 - confidence) ** (1 / n_samples)
    statement = (
        f"With confidence {confidence:g}, at most {100 * exceed:.2g} % of pairs drawn this way "
        "exceed the value; nothing is said about the largest."
    )
    return SmoothnessEstimate(
        value=max(largest[name] for name in used),
        kind="lower estimate",
        method="monte-carlo",
        n_nonzero=k,
        details={
            **largest,
            "ratio": ratio,
            "n_samples": n_samples,
            "distribution": law[0],
            "radius": law[1],
            "confidence": confidence,
            "exceeding_share": exceed,
            "statement": statement,
        },
    )


def _counted_entries(template: Params, names: tuple[str, ...] | None) -> Tensor:
    counted = covered(template, names)
    return torch.cat(
        [
            torch.full((t.numel(),), name in counted, device=t.device)
            for name, t in template.items()
        ]
    )


def _entries_like(points: Tensor, law: tuple[str, float], generator: torch.Generator) -> Tensor:
    """Return random entries of the shape of `points`."""
    distribution, radius = law
    if distribution == "normal":
        out = radius * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    else:
        out = torch.rand(points.shape, generator=generator, dtype=torch.float64)
        out = radius * (2 * out - 1)
    return out.to(points)


def _sparse_points(
    size: int,
    s: int,
    is_counted: Tensor,
    law: tuple[str, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return random points with `s` counted entries each, and where they may differ from zero."""
    n = is_counted.shape[0]
    order = torch.rand(size, n, generator=generator, dtype=torch.float64).to(is_counted.device)
    order = torch.where(is_counted, order, torch.full_like(order, -1.0))
    masks = Batch(top_k_masks(Batch({"all": order}), s))["all"] | ~is_counted
    points = _entries_like(torch.empty_like(order), law, generator)
    return torch.where(masks, points, torch.zeros_like(points)), masks


# Truncated power method ----------------------------------------------------------------------


def _power(
    objective: AbstractTwiceDifferentiable,
    k: int,
    params: Params,
    names: tuple[str, ...] | None,
    generator: torch.Generator,
) -> SmoothnessEstimate:
    points = Batch(named.to_batch(named.to_double(params)))
    best = (-math.inf, 0, 0, 0)
    for i in range(points.size):
        value, n_iter, n_starts = _power_at(objective, k, named.row(points, i), names, generator)
        best = max(best, (value, i, n_iter, n_starts))
    return SmoothnessEstimate(
        value=max(best[0], 0.0),
        kind="lower estimate",
        method="power",
        n_nonzero=k,
        details={
            "n_iter": best[2],
            "n_starts": best[3],
            "row": best[1],
            "statement": "Largest curvature found at one point along directions with at most "
            f"{k} nonzeros; other points may be steeper.",
        },
    )


def _power_at(
    objective: AbstractTwiceDifferentiable,
    k: int,
    point: dict[str, Tensor],
    names: tuple[str, ...] | None,
    generator: torch.Generator,
    max_iter: int = 200,
) -> tuple[float, int, int]:
    """Return the largest curvature found at a point, the iterations and the number of starts."""

    def product(x: Tensor) -> Tensor:
        rows = max(1, CHUNK // x.shape[1])
        parts = []
        for piece in torch.split(x, rows):
            here = named.expand(point, piece.shape[0])
            along = named.unflatten(piece, point)
            parts.append(named.flatten(objective.hessian_vector(here, along)))
        return torch.cat(parts).double()

    def truncate(x: Tensor) -> Tensor:
        batch = named.unflatten(x, point)
        kept = named.mask(batch, top_k_masks(batch, k, names=names, magnitude=True))
        flat = named.flatten(kept)
        length: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        unit: Tensor = flat / length.clamp_min(1e-300)
        return unit

    convex = isinstance(objective, AbstractSmoothObjective)
    starts, size = _starts(objective, point, product, generator, convex)
    # The Rayleigh quotient cannot fall when the shifted Hessian is positive semidefinite.
    shift = 0.0 if convex else size
    x = truncate(starts)
    top = torch.full((x.shape[0],), -torch.inf, dtype=x.dtype, device=x.device)
    n_iter = 0
    # Digits beyond the third say nothing of a local estimate; only small problems afford them.
    settled = 1e-13 if convex or x.shape[1] <= ALL_STARTS else 1e-4
    while n_iter < max_iter:
        n_iter += 1
        moved = product(x)
        rayleigh = (x * moved).sum(1)
        still = named.all_true(rayleigh <= top + settled * rayleigh.abs().max())
        top = torch.maximum(top, rayleigh)
        if still:
            break
        x = truncate(moved + shift * x)
    value = named.to_float(top.max())
    width = named.to_int((x != 0).sum(1).max())
    # On the supports found the largest eigenvalue is exact and cannot be smaller.
    if 0 < width <= 256:
        keep = x if convex else x[top.argmax()].unsqueeze(0)
        on = torch.unique(keep != 0, dim=0)
        index, valid = supports.support_index(Batch(named.unflatten(on, point)))
        step = max(1, CHUNK // width**2)
        for rows, there in zip(torch.split(index, step), torch.split(valid, step), strict=True):
            here = named.expand(point, rows.shape[0])
            block = objective.hessian_on(here, rows).double()
            both = there.unsqueeze(-1) & there.unsqueeze(-2)
            eigenvalues = torch.linalg.eigvalsh(torch.where(both, block, torch.zeros_like(block)))
            value = max(value, named.to_float(eigenvalues[:, -1].max()))
    return value, n_iter, int(x.shape[0])


def _starts(
    objective: AbstractTwiceDifferentiable,
    point: dict[str, Tensor],
    product: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    convex: bool,
) -> tuple[Tensor, float]:
    """Return starting vectors, and an estimate of the norm of the Hessian from above."""
    n = named.size(point)
    zero = named.flatten(point).unsqueeze(0)
    # A product of a large network costs as much as three gradients: two starts have to do.
    n_random = (8 if convex else 2) if n > ALL_STARTS else 2
    random = torch.randn(n_random, n, generator=generator, dtype=torch.float64).to(zero)
    # A few plain power iterations: the dense leading vectors are good starts by themselves.
    dense, size = random, 0.0
    for _ in range(10):
        dense = product(dense / dense.norm(dim=1, keepdim=True).clamp_min(1e-300))
        size = max(size, named.to_float(dense.norm(dim=1).max()))
    starts = [random, dense]
    if n <= ALL_STARTS:
        starts.append(torch.eye(n, dtype=zero.dtype, device=zero.device))
    elif convex and n <= CHUNK // 64:
        every = torch.arange(n, device=zero.device).unsqueeze(1)
        parts = [
            objective.hessian_on(named.expand(point, piece.shape[0]), piece).double().reshape(-1)
            for piece in torch.split(every, 1024)
        ]
        chosen = torch.cat(parts).topk(ALL_STARTS // 2).indices
        units = torch.zeros(chosen.shape[0], n, dtype=zero.dtype, device=zero.device)
        starts.append(units.scatter(1, chosen.unsqueeze(1), 1.0))
    return torch.cat(starts), 1.1 * size


# Bounds --------------------------------------------------------------------------------------


def _in_double(curvature: CurvatureBound) -> CurvatureBound:
    return CurvatureBound(
        left=curvature.left.double(),
        right=curvature.right.double(),
        positions=curvature.positions,
        ridge=curvature.ridge.double(),
        attained=curvature.attained,
    )


def _bound(objective: AbstractSmoothObjective, counted: int, n_free: int) -> SmoothnessEstimate:
    template = objective.init_params()
    n = named.size(template)
    k = min(n, counted + n_free)
    bounds = {"largest eigenvalue": objective.smoothness()}
    columns = max(t.shape[-1] if t.ndim else 1 for t in template.values())
    kind: Kind = "upper bound"
    details: dict[str, Any] = {}
    if columns <= COLUMNS_LIMIT:
        curvature = _in_double(objective.curvature_bound())
        details["attained"] = curvature.attained
        if k == n and n <= DENSE_LIMIT:
            every = torch.arange(n, device=curvature.positions.device)
            whole = torch.linalg.eigvalsh(curvature.submatrix(every))[-1]
            bounds["largest eigenvalue"] = named.to_float(whole) * ROUND_UP
            kind = "exact" if curvature.attained else kind
        elif k < n:
            bounds |= _cheap_bounds(curvature, k)
            if _is_enumerable(n, k):
                bounds["enumeration"] = _enumerate(curvature, k) * ROUND_UP
                details["n_supports"] = math.comb(n, k)
                kind = "exact" if curvature.attained and n_free == 0 else kind
    smallest = min(bounds, key=lambda name: (bounds[name], name != "enumeration"))
    if kind == "exact" and "enumeration" in bounds:
        smallest = "enumeration"
    details |= {"bounds": bounds, "smallest": smallest, "n_free": n_free}
    details["statement"] = f"From the {smallest} of a matrix above every Hessian."
    return SmoothnessEstimate(max(bounds[smallest], 0.0), kind, "bound", counted, details)


def _cheap_bounds(curvature: CurvatureBound, k: int) -> dict[str, float]:
    """Return the bounds that need no eigenvalue."""
    diagonal = curvature.diagonal()
    n = curvature.size
    out = {"diagonal sum": named.to_float(diagonal.topk(k).values.sum()) * ROUND_UP}
    if n <= ROWS_LIMIT:
        largest = -math.inf
        every = torch.arange(n, device=diagonal.device)
        for index in torch.split(every, max(1, CHUNK // n)):
            rows = curvature.rows(index).abs().scatter(1, index.unsqueeze(1), 0.0)
            sums = diagonal[index] + rows.topk(k - 1, dim=1).values.sum(1)
            largest = max(largest, named.to_float(sums.max()))
        out["row sum"] = largest * ROUND_UP
    return out


def _is_enumerable(n: int, k: int) -> bool:
    count = math.comb(n, k)
    return count <= SUPPORTS and count * k**3 <= OPERATIONS


def _all_supports(n: int, k: int, device: torch.device) -> Iterator[Tensor]:
    """Yield every support of `k` of `n` entries, many at a time."""
    combinations = itertools.chain.from_iterable(itertools.combinations(range(n), k))
    size = max(1, CHUNK // (8 * k * k)) * k
    while chunk := array.array("q", itertools.islice(combinations, size)):
        yield torch.frombuffer(chunk, dtype=torch.int64).reshape(-1, k).to(device)


def _enumerate(curvature: CurvatureBound, k: int) -> float:
    """Return the largest eigenvalue over all supports of `k` entries."""
    scale = max(named.to_float(curvature.diagonal().max()), 1e-300)
    every = torch.arange(curvature.size, device=curvature.positions.device)
    whole = curvature.submatrix(every).reshape(-1) / scale
    best = 0.0
    for index in _all_supports(curvature.size, k, curvature.positions.device):
        block = whole[index.unsqueeze(2) * curvature.size + index.unsqueeze(1)]
        # Eigenvalues are needed only where a bound by (tr B^16)^(1/16) leaves room.
        power = block
        for _ in range(3):
            power = power @ power
        ceiling = power.square().sum((1, 2)) ** (1 / 16) * ROUND_UP
        order = torch.argsort(ceiling, descending=True)
        order = order[: named.to_int((ceiling > best).sum())]
        # The most promising ones first, so that the rest may need nothing.
        for piece in (order[:64], order[64:]):
            hopeful = block[piece[ceiling[piece] > best]]
            if hopeful.shape[0]:
                best = max(best, named.to_float(torch.linalg.eigvalsh(hopeful)[:, -1].max()))
    return best * scale
