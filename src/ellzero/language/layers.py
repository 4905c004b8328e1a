r"""One layer's pruning as what it is: least squares under a budget, from a Gram matrix.

The layer :math:`y = W x` with calibration inputs of second moment :math:`H` is replaced by
:math:`V` with

.. math:: \min_V\ \mathrm{tr}\,(W - V) H (W - V)^\top \quad\text{with}\quad V \in C,

:math:`C` a budget over the matrix, a budget for every row, or a pattern such as 2:4. Everything is
solved in the metric in which :math:`H` has a unit diagonal.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.language.bounds import lower_bound
from ellzero.sets import L0Ball, NMPattern
from ellzero.validation import check_integer, check_real

NAME = "weight"
# The coupling grows geometrically between these two: slower than ALPS, with smaller errors.
COUPLINGS = (0.03, 3.0)
# Numbers in one batch of factorizations: 64 MB in single precision.
BATCH = 1 << 24
# Exchanges tried at once in one row, as a share of its nonzeros.
SHARE = 0.1


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """A layer with an exact number of nonzeros, its error, and a bound on the error of any other.

    Parameters
    ----------
    weight : Tensor
        The new weight, (n_outputs, n_inputs), in the dtype of the old one.
    n_nonzero : int
        Nonzeros of `weight`, counted.
    value : float
        Damped squared error ``tr (W - V) H (W - V)'``, in double precision, at `weight`.
    scale : float
        The same of the layer with all weights zero, so ``value / scale`` is the relative error.
    lower_bound : float or None
        No weight in the set has a smaller `value`; None where it was not asked for.
    start_value : float
        Value at the refitted end of the splitting iterations, before any exchange.
    n_iter : int
        Iterations of the splitting method.
    n_swaps : int
        Exchanges of two entries that were accepted.
    n_dead : int
        Inputs that are always zero: their weights are zero, which costs nothing.
    seconds : float
        Processor time.
    """

    weight: Tensor
    n_nonzero: int
    value: float
    scale: float
    lower_bound: float | None
    start_value: float
    n_iter: int
    n_swaps: int
    n_dead: int
    seconds: float

    @property
    def relative_error(self) -> float:
        """Error relative to the energy of the layer's output, damping included."""
        return self.value / self.scale if self.scale > 0.0 else 0.0

    @property
    def gap(self) -> float | None:
        """Share of `value` that is not proven to be needed, in [0, 1]."""
        if self.lower_bound is None:
            return None
        return max(0.0, 1.0 - self.lower_bound / self.value) if self.value > 0.0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the weight."""
        return {
            "shape": list(self.weight.shape),
            "n_nonzero": self.n_nonzero,
            "density": self.n_nonzero / max(1, self.weight.numel()),
            "relative_error": self.relative_error,
            "start_relative_error": self.start_value / self.scale if self.scale > 0 else 0.0,
            "lower_bound": None
            if self.lower_bound is None
            else (self.lower_bound / self.scale if self.scale > 0 else 0.0),
            "gap": self.gap,
            "n_iter": self.n_iter,
            "n_swaps": self.n_swaps,
            "n_dead": self.n_dead,
            "seconds": self.seconds,
        }


def prune_layer(
    weight: Tensor,
    gram: Tensor,
    constraint: AbstractSparseSet,
    *,
    damping: float = 0.01,
    row_weights: Tensor | None = None,
    max_iter: int = 100,
    max_swaps: int = 6,
    with_bound: bool = True,
) -> PrunedLayer:
    r"""Return the sparse weight that keeps a layer's outputs, as near as this search finds.

    Parameters
    ----------
    weight : Tensor
        Dense weight, (n_outputs, n_inputs).
    gram : Tensor
        Sum of ``x x'`` over the calibration inputs, (n_inputs, n_inputs), of any scale.
    constraint : AbstractSparseSet
        `L0Ball` for a budget over the whole matrix; `NMPattern` for a pattern along the inputs,
        with ``m = n_inputs`` for a budget for every row.
    damping : float, default=0.01
        Added to the diagonal of `gram`, relative to its mean. Must be positive when `gram` is
        singular, as with fewer samples than inputs.
    row_weights : Tensor or None, default=None
        Nonnegative weights of the outputs' errors, (n_outputs,). They move the budget between
        rows; with one row at a time they have no effect.
    max_iter : int, default=100
        Iterations of the splitting method, over which the coupling grows a hundredfold.
    max_swaps : int, default=6
        Most passes of exchanges; 0 leaves the support of the splitting method.
    with_bound : bool, default=True
        Whether to compute a lower bound.

    Returns
    -------
    PrunedLayer
        A weight in the set; its value is never above `start_value`.

    Raises
    ------
    IncompatibleError
        If shapes do not fit or the constraint is of another kind.
    NonFiniteError
        If the weight or the Gram matrix has a NaN or an infinity.
    InvalidParameterError
        If a parameter is out of range or the damped Gram matrix is singular.

    See Also
    --------
    ellzero.language.bounds.lower_bound : The bound and its proof.

    Notes
    -----
    The start is the splitting method of ALPS (arXiv 2406.07831), whose coupling grows
    here by a constant factor, and more slowly: with one eigendecomposition, an
    iteration costs two products of the weight with a matrix of inputs by inputs. Then the weights
    are solved exactly on the support, and entries are exchanged by exact prices: removing entry j
    of a row costs :math:`v_j^2 / [H_{SS}^{-1}]_{jj}`, adding entry i gains
    :math:`g_i^2 / (H_{ii} - H_{iS} H_{SS}^{-1} H_{Si})`. Rows do not interact, so an exchange
    between two rows changes the value by exactly the sum of its two prices. Several exchanges of
    one row are made at once and kept only if the refitted row is better; so the value falls in
    every pass. A pass costs :math:`O(n_{out}\, s^2 n_{in})` for s nonzeros in a row.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language import prune_layer
    >>> from ellzero.sets import L0Ball
    >>> inputs = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    >>> layer = prune_layer(weight, inputs.T @ inputs, L0Ball(16))
    >>> layer.n_nonzero, layer.lower_bound <= layer.value
    (16, True)
    """
    start = time.process_time()
    _check(weight, gram, constraint)
    damping = check_real("damping", damping, low=0.0)
    max_iter = check_integer("max_iter", max_iter, 1)
    max_swaps = check_integer("max_swaps", max_swaps, 0)
    dense, metric, unit, dead = metric_form(weight, gram, damping)
    scales = _row_scales(row_weights, dense)[:, None]
    dense = dense * scales
    unit = unit * scales
    working = torch.float64 if weight.dtype == torch.float64 else torch.float32
    small = dense.to(working)
    mask, near, n_iter = _split(small, metric.to(working), constraint, max_iter)
    alive = ~dead
    mask &= alive
    point = _refit(dense, metric, mask, torch.where(mask, near, 0.0), working)
    first = _value(dense, metric, point)
    n_swaps = 0
    if max_swaps:
        better, moved = _exchange(small, metric.to(working), mask, alive, constraint, max_swaps)
        refined = _refit(dense, metric, better, torch.where(better, point, 0.0), working)
        # Prices are in the working precision; the judgment is not.
        if _value(dense, metric, refined) < first:
            mask, point, n_swaps = better, refined, moved
    new = torch.where(mask, point / unit, 0.0).to(weight.dtype)
    final = new.to(torch.float64) * unit
    bound = lower_bound(dense, metric, constraint, final) if with_bound else None
    return PrunedLayer(
        new,
        int(torch.count_nonzero(new)),
        _value(dense, metric, final),
        _value(dense, metric, torch.zeros_like(dense)),
        bound,
        first,
        n_iter,
        n_swaps,
        int(dead.sum()),
        time.process_time() - start,
    )


def keep_layer(
    weight: Tensor, gram: Tensor, support: Tensor, *, damping: float = 0.01
) -> PrunedLayer:
    """Return the best weight on a given support, in the form of a pruned layer.

    Parameters
    ----------
    weight, gram, damping : as in `prune_layer`
        The layer; `weight` may have nonzeros outside the support.
    support : Tensor of shape (n_outputs, n_inputs)
        Mask of the entries that are kept.

    Returns
    -------
    PrunedLayer
        `weight` itself where all is kept. The bound is that of weights on this support.
    """
    start = time.process_time()
    dense, metric, unit, dead = metric_form(weight, gram, damping)
    new = weight
    if not bool(support.all()):
        mask = support & ~dead
        point = solve_on(dense, metric, mask, torch.where(mask, dense, 0.0))
        kept = torch.where(mask, point / unit, torch.where(support, weight.double(), 0.0))
        new = kept.to(weight.dtype)
    value = damped_error(weight, new, gram, damping)
    return PrunedLayer(
        new,
        int(torch.count_nonzero(new)),
        value,
        _value(dense, metric, torch.zeros_like(dense)),
        value,
        value,
        0,
        0,
        int(dead.sum()),
        time.process_time() - start,
    )


def damped_error(dense: Tensor, new: Tensor, gram: Tensor, damping: float) -> float:
    """Return ``tr (W - V) H (W - V)'`` with the damped Gram matrix, in double precision.

    Parameters
    ----------
    dense, new : Tensor of shape (n_outputs, n_inputs)
        W and V.
    gram, damping : as in `prune_layer`
        The metric.

    Returns
    -------
    float
        The error.
    """
    wide, metric, unit, _ = metric_form(dense, gram, damping)
    error = wide - torch.where(gram.diagonal() > 0.0, new.to(torch.float64) * unit, 0.0)
    return _value(wide, metric, wide - error)


def metric_form(
    weight: Tensor, gram: Tensor, damping: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weight, Gram matrix, scales and dead inputs where the Gram has a unit diagonal.

    Parameters
    ----------
    weight, gram : Tensor
        As in `prune_layer`.
    damping : float
        Added to the diagonal, relative to its mean over the inputs that are not dead.

    Returns
    -------
    tuple of Tensor
        ``weight * scale`` with zeros at dead inputs, the damped Gram matrix with unit diagonal,
        the scale of each input, all in double precision, and the mask of dead inputs.

    Raises
    ------
    InvalidParameterError
        If the damped matrix is not positive definite.
    """
    gram = gram.to(torch.float64)
    gram = (gram + gram.T) / 2
    diagonal = gram.diagonal()
    dead = diagonal <= 0.0
    gram = gram.clone()
    gram[dead] = 0.0
    gram[:, dead] = 0.0
    alive = int((~dead).sum())
    mean = float(diagonal[~dead].mean()) if alive else 1.0
    gram.diagonal().add_(damping * mean)
    gram.diagonal()[dead] = mean
    unit = gram.diagonal().sqrt()
    metric = gram / (unit[:, None] * unit)
    metric.fill_diagonal_(1.0)
    _, info = torch.linalg.cholesky_ex(metric)
    if int(info):
        raise InvalidParameterError(
            f"The Gram matrix of {len(gram)} inputs is not positive definite with `damping` "
            f"{damping}.",
            "Give a larger `damping`, or more calibration samples.",
        )
    dense = torch.where(dead, 0.0, weight.to(torch.float64) * unit)
    return dense, metric, unit, dead


def solve_on(
    dense: Tensor,
    metric: Tensor,
    mask: Tensor,
    point: Tensor,
    *,
    max_iter: int = 500,
    tol: float = 1e-10,
) -> Tensor:
    """Return the best weight on a support, by conjugate gradients for all rows at once.

    Parameters
    ----------
    dense, metric : Tensor
        From `metric_form`.
    mask : Tensor
        Support, (n_outputs, n_inputs).
    point : Tensor
        Start, zero outside the support.
    max_iter : int, default=500
        Most iterations; each is one product with the matrix.
    tol : float, default=1e-10
        Stop when the gradient on the support is this small relative to the right side.

    Returns
    -------
    Tensor
        Weight, zero outside the support.
    """
    target = torch.where(mask, dense @ metric, 0.0)
    limit = tol * tol * float((target * target).sum())
    residual = torch.where(mask, target - point @ metric, 0.0)
    direction = residual.clone()
    square = (residual * residual).sum(1)
    for _ in range(max_iter):
        if float(square.sum()) <= limit:
            break
        image = torch.where(mask, direction @ metric, 0.0)
        curvature = (direction * image).sum(1)
        length = torch.where(curvature > 0.0, square / curvature, 0.0)
        point = point + length[:, None] * direction
        residual = residual - length[:, None] * image
        new = (residual * residual).sum(1)
        direction = residual + torch.where(square > 0.0, new / square, 0.0)[:, None] * direction
        square = new
    return point


def _refit(
    dense: Tensor, metric: Tensor, mask: Tensor, point: Tensor, working: torch.dtype
) -> Tensor:
    """Return the best weight on a support: most of the way in the working precision."""
    if working == torch.float64:
        return solve_on(dense, metric, mask, point)
    near = solve_on(
        dense.to(working), metric.to(working), mask, point.to(working), max_iter=150, tol=1e-5
    )
    # The value is off by the square of this.
    return solve_on(dense, metric, mask, near.double(), max_iter=20, tol=1e-6)


def _check(weight: Tensor, gram: Tensor, constraint: AbstractSparseSet) -> None:
    if weight.dim() != 2 or gram.shape != (weight.shape[1], weight.shape[1]):
        raise IncompatibleError(
            f"A weight of shape {tuple(weight.shape)} does not go with a Gram matrix of shape "
            f"{tuple(gram.shape)}.",
            "The weight is (n_outputs, n_inputs), the Gram matrix (n_inputs, n_inputs).",
        )
    if not isinstance(constraint, (L0Ball, NMPattern)):
        raise IncompatibleError(
            "A layer is pruned to an `L0Ball` or an `NMPattern`, got "
            f"{type(constraint).__name__}.",
            "For a budget for every row, give `NMPattern(n, n_inputs)`.",
        )
    for what, tensor in (("weight", weight), ("Gram matrix", gram)):
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"The {what} of the layer has a NaN or an infinity.",
                "Look at the model and the calibration data.",
            )
    constraint.check_params({NAME: weight})


def _row_scales(row_weights: Tensor | None, dense: Tensor) -> Tensor:
    if row_weights is None:
        return torch.ones(len(dense), dtype=dense.dtype)
    wide = row_weights.to(dense.dtype)
    if wide.shape != (len(dense),) or not bool((torch.isfinite(wide) & (wide >= 0.0)).all()):
        raise InvalidParameterError(
            f"`row_weights` must be {len(dense)} nonnegative numbers, got a tensor of shape "
            f"{tuple(wide.shape)}.",
            "Give one weight for every output.",
        )
    largest = float(wide.max()) if len(wide) else 1.0
    if largest == 0.0:
        return torch.ones_like(wide)
    # A weight of zero would leave a row without a scale to undo.
    return (wide / largest).clamp(min=1e-6).sqrt()


def _value(dense: Tensor, metric: Tensor, point: Tensor) -> float:
    error = dense - point
    return max(0.0, float(((error @ metric) * error).sum()))


def select(constraint: AbstractSparseSet, scores: Tensor) -> Tensor:
    """Return the best support in the set for additive nonnegative scores."""
    return constraint.select({NAME: scores})[NAME]


def _split(
    dense: Tensor, metric: Tensor, constraint: AbstractSparseSet, max_iter: int
) -> tuple[Tensor, Tensor, int]:
    """Return support and values by splitting with growing coupling, and the iterations."""
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp(min=0.0)
    target = ((dense @ vectors) * values) @ vectors.T
    mask = select(constraint, dense * dense)
    sparse = torch.where(mask, dense, 0.0)
    dual = torch.zeros_like(dense)
    coupling = COUPLINGS[0]
    factor = (COUPLINGS[1] / COUPLINGS[0]) ** (1.0 / max_iter)
    for _ in range(max_iter):
        right = target - dual + coupling * sparse
        free = ((right @ vectors) / (values + coupling)) @ vectors.T
        shifted = free + dual / coupling
        mask = select(constraint, shifted * shifted)
        sparse = torch.where(mask, shifted, 0.0)
        dual = dual + coupling * (free - sparse)
        coupling *= factor
    return mask, sparse, max_iter


@dataclass(slots=True)
class _Prices:
    """For every row: decrease of the value, and exact changes of the value by single changes."""

    saved: Tensor
    cost: Tensor
    gain: Tensor
    swap: Tensor
    into: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        return self.saved, self.cost, self.gain, self.swap, self.into


def prices(dense: Tensor, metric: Tensor, mask: Tensor, alive: Tensor, run: int = 0) -> _Prices:
    """Return exact prices of single changes of refitted rows.

    Parameters
    ----------
    dense, metric : Tensor
        From `metric_form`.
    mask : Tensor
        Supports, (n_outputs, n_inputs).
    alive : Tensor
        Inputs that may be used, (n_inputs,).
    run : int, default=0
        Length of the runs inside which entries may be exchanged; 0 means the row.

    Returns
    -------
    _Prices
        ``saved`` is the value of the empty row less that of the refitted one, ``cost`` the rise
        without an entry (infinite off the support), ``gain`` the fall with one more (minus
        infinite on the support and at dead inputs), ``swap`` the change when an entry leaves for
        the best other one, whose place is ``into``.
    """
    n_rows, n_inputs = mask.shape
    counts = mask.sum(1)
    saved = torch.zeros(n_rows, dtype=dense.dtype)
    cost = torch.full_like(dense, math.inf)
    gain = torch.full_like(dense, -math.inf)
    swap = torch.full_like(dense, math.inf)
    into = torch.zeros(mask.shape, dtype=torch.int64)
    runs = torch.arange(n_inputs) // run if run else None
    product = dense @ metric
    order = torch.argsort(counts, stable=True)
    first = 0
    while first < n_rows:
        # Rows of like counts together, so that little is padded.
        last, size = first, 1
        while last < n_rows:
            largest = max(1, int(counts[order[last]]))
            if last > first and (last - first + 1) * largest * n_inputs > BATCH:
                break
            size, last = largest, last + 1
        rows = order[first:last]
        first = last
        inside = mask[rows]
        places = torch.argsort(inside.to(torch.int8), dim=1, descending=True, stable=True)[
            :, :size
        ]
        real = torch.gather(inside, 1, places)
        block = metric[places[:, :, None], places[:, None, :]]
        both = real[:, :, None] & real[:, None, :]
        block = torch.where(both, block, 0.0)
        block.diagonal(dim1=1, dim2=2).copy_(torch.ones_like(real, dtype=block.dtype))
        factor, info = torch.linalg.cholesky_ex(block)
        if bool(info.any()):
            block.diagonal(dim1=1, dim2=2).add_(1e-4)
            factor = torch.linalg.cholesky(block)
        eye = torch.eye(size, dtype=block.dtype).expand_as(block)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        right = torch.where(real, torch.gather(product[rows], 1, places), 0.0)
        half = (inverse @ right[:, :, None])[:, :, 0]
        saved[rows] = (half * half).sum(1)
        value = (inverse.mT @ half[:, :, None])[:, :, 0]
        variance = (inverse * inverse).sum(1)
        removal = value * value / variance
        cross = torch.where(real[:, :, None], metric[places], 0.0)
        image = inverse @ cross
        schur = (1.0 - (image * image).sum(1)).clamp(min=1e-6)
        gradient = product[rows] - (value[:, None, :] @ cross)[:, 0]
        addition = gradient * gradient / schur
        gain[rows] = torch.where(inside | ~alive, -math.inf, addition)
        full = torch.full_like(addition, math.inf)
        full.scatter_(1, places, torch.where(real, removal, math.inf))
        cost[rows] = full
        # Entry j leaves, entry i comes: both price and gradient of i change with j gone.
        coupling = inverse.mT @ image
        better = gradient[:, None, :] + (value / variance)[:, :, None] * coupling
        freed = schur[:, None, :] + coupling.square_() / variance[:, :, None]
        change = removal[:, :, None] - better.square_() / freed
        change.masked_fill_((inside | ~alive)[:, None, :], math.inf)
        if runs is not None:
            change.masked_fill_(runs[places][:, :, None] != runs, math.inf)
        lowest, partner = change.min(2)
        lowest = torch.where(real, lowest, math.inf)
        swap[rows] = full.fill_(math.inf).scatter(1, places, lowest)
        into[rows] = torch.zeros_like(into[rows]).scatter(1, places, partner)
    return _Prices(saved, cost, gain, swap, into)


def _exchange(
    dense: Tensor,
    metric: Tensor,
    mask: Tensor,
    alive: Tensor,
    constraint: AbstractSparseSet,
    max_swaps: int,
) -> tuple[Tensor, int]:
    """Return a better support and the number of exchanges that were accepted."""
    run = constraint.m if isinstance(constraint, NMPattern) else 0
    free = isinstance(constraint, L0Ball)
    n_rows, n_inputs = mask.shape
    mask = mask.clone()
    now = prices(dense, metric, mask, alive, run)
    share = torch.full((n_rows,), SHARE, dtype=torch.float64)
    total = 0
    for _ in range(max_swaps):
        trial, moves = _within(now, mask, share)
        partner = torch.full((n_rows,), -1)
        if free:
            _between(now, mask, trial, moves, partner)
        touched = (moves > 0).nonzero()[:, 0]
        if not len(touched):
            break
        new = prices(dense[touched], metric, trial[touched], alive, run)
        change = torch.zeros(n_rows, dtype=dense.dtype)
        change[touched] = new.saved - now.saved[touched]
        paired = partner >= 0
        joint = torch.where(paired, change + change[partner.clamp(min=0)], change)
        good = (joint > 1e-6 * now.saved.clamp(min=0.0) / n_inputs) & (moves > 0)
        keep = good[touched]
        kept = touched[keep]
        mask[kept] = trial[kept]
        for old, fresh in zip(now.parts(), new.parts(), strict=True):
            old[kept] = fresh[keep]
        total += int(moves[kept].sum())
        share = torch.where(good | (moves == 0), share, share / 4)
    return mask, total


def _within(now: _Prices, mask: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return supports with the most promising exchanges inside rows, and their number."""
    n_rows, n_inputs = mask.shape
    change, out = now.swap.sort(dim=1, stable=True)
    into = torch.gather(now.into, 1, out)
    limit = (share * mask.sum(1)).ceil().clamp(min=1.0)
    limit = torch.where(share < SHARE / 300, 0.0, limit)
    rank = torch.arange(n_inputs).expand(n_rows, -1)
    promising = change < 0.0
    # An entry comes in once, in the exchange that promises most.
    first = torch.full((n_rows, n_inputs), n_inputs)
    first.scatter_reduce_(1, into, torch.where(promising, rank, n_inputs), "amin")
    chosen = promising & (torch.gather(first, 1, into) == rank)
    chosen &= chosen.cumsum(1) <= limit[:, None]
    trial = mask.clone()
    row = torch.arange(n_rows)[:, None].expand_as(chosen)
    trial[row[chosen], out[chosen]] = False
    trial[row[chosen], into[chosen]] = True
    return trial, chosen.sum(1)


def _between(now: _Prices, mask: Tensor, trial: Tensor, moves: Tensor, partner: Tensor) -> None:
    """Put exchanges between two rows in place of those inside them, where they promise more."""
    cheapest, best = now.cost.min(1), now.gain.max(1)
    donors = torch.argsort(cheapest.values, stable=True)
    takers = torch.argsort(best.values, descending=True, stable=True)
    used = torch.zeros(len(mask), dtype=torch.bool)
    i = j = 0
    limit = len(mask) // 4
    while limit and i < len(donors) and j < len(takers):
        a, b = int(donors[i]), int(takers[j])
        if used[a]:
            i += 1
            continue
        if used[b] or a == b:
            j += 1
            continue
        if not float(best.values[b]) > 2.0 * float(cheapest.values[a]):
            break
        used[a] = used[b] = True
        trial[a], trial[b] = mask[a], mask[b]
        trial[a, cheapest.indices[a]] = False
        trial[b, best.indices[b]] = True
        moves[a] = moves[b] = 1
        partner[a], partner[b] = b, a
        limit -= 1
