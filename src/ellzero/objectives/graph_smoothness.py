"""Squared distance to data plus squared differences along the edges of a graph."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.errors import InvalidParameterError
from ellzero.objectives.quadratic import solve_on
from ellzero.tensors import named, supports
from ellzero.typing import Masks, Params

# Nonzeros up to which systems are factorized; above, conjugate gradients come first.
DENSE = 512
CLOSE = 1e-15


@final
class GraphSmoothness(AbstractQuadraticObjective):
    r"""Distance to data plus differences between neighbors.

    .. math:: f(x) = \sum_i w_i (y_i - x_i)^2 + \sum_{(i, j)} \lambda_{ij} (x_i - x_j)^2

    Parameters
    ----------
    y : Tensor of shape (n,)
        Data.
    edges : Tensor of shape (m, 2), int64
        Ends of every edge, each edge once.
    smoothness : float or Tensor of shape (m,), default=1.0
        Weight of every edge, the lambda. Must not be negative.
    sample_weight : Tensor of shape (n,) or None, default=None
        Weights w of the data. Must not be negative; None means that all are 1.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, a weight is negative, or an edge is wrong.

    Notes
    -----
    The parameter tensor is ``coef`` of shape (n,). The Hessian is twice the weights plus the
    Laplacian of the graph: a value, a gradient or a product with it costs n + m operations and
    nothing of size n^2 is kept, except by `curvature_bound`. `smoothness` is the largest row sum
    of magnitudes of the Hessian. A minimizer on a support comes from a factorization up to 512
    nonzeros, and above from conjugate gradients to a residual of 1e-15.

    With `L0Ball` this is the problem of [1]_; on chains, trees and grids
    `ellzero.signal.SparseSmooth` solves it exactly or with a proven gap.

    References
    ----------
    .. [1] A. Atamturk, A. Gomez and S. Han, "Sparse and smooth signal estimation:
       convexification of l0-formulations", JMLR 22(52), 2021, arXiv:1811.02655.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.GraphSmoothness(torch.tensor([2.0, 0.0]), torch.tensor([[0, 1]]), 0.5)
    >>> f.value({"coef": torch.tensor([1.0, 0.0])}).item()  # (2 - 1)^2 + 0.5 (1 - 0)^2
    1.5
    """

    def __init__(
        self,
        y: Tensor,
        edges: Tensor,
        smoothness: float | Tensor = 1.0,
        sample_weight: Tensor | None = None,
    ) -> None:
        if not isinstance(y, Tensor) or y.ndim != 1 or not y.is_floating_point():
            given = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise InvalidParameterError(
                f"`y` must be a floating-point tensor with 1 axis, got {given}."
            )
        n = y.shape[0]
        if n == 0 or not named.all_true(torch.isfinite(y)):
            got = "NaN or infinity" if n else "no entries"
            raise InvalidParameterError(
                f"`y` must hold finite numbers, got {got}.",
                "A sample that is missing has any value and weight 0.",
            )
        self._first, self._second = _read_edges(edges, n, y.device)
        m = self._first.shape[0]
        self._y = y
        self._edges = _read_weights("smoothness", smoothness, m, y)
        ones = 1.0 if sample_weight is None else sample_weight
        self._weights = _read_weights("sample_weight", ones, n, y)
        degree = torch.zeros(n, dtype=torch.float64, device=y.device)
        degree = degree.index_add(0, self._first, self._edges)
        self._degree = degree.index_add(0, self._second, self._edges)
        keys = self._first * n + self._second
        self._keys, order = keys.sort()
        self._sorted = self._edges[order]

    @override
    def init_params(self) -> Params:
        return {"coef": torch.zeros_like(self._y)}

    def _typed(self, params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the point, data, weights and weights of edges in the finer type."""
        coef = params["coef"]
        dtype = torch.promote_types(coef.dtype, self._y.dtype)
        return (
            coef.to(dtype), self._y.to(dtype), self._weights.to(dtype), self._edges.to(dtype)
        )  # fmt: skip

    def _gather(self, along: Tensor, out: Tensor) -> Tensor:
        """Return `out` plus what flows along every edge into its first end, out of its second."""
        return out.index_add(-1, self._first, along).index_add(-1, self._second, -along)

    @override
    def value(self, params: Params) -> Tensor:
        coef, y, weights, edges = self._typed(params)
        fit, steps = coef - y, coef[..., self._first] - coef[..., self._second]
        return (weights * fit * fit).sum(-1) + (edges * steps * steps).sum(-1)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        coef, y, weights, edges = self._typed(params)
        fit, steps = coef - y, coef[..., self._first] - coef[..., self._second]
        slope, pull = weights * fit, edges * steps
        value = (slope * fit).sum(-1) + (pull * steps).sum(-1)
        return value, named.like(params, {"coef": self._gather(2 * pull, 2 * slope)})

    def _product(self, coef: Tensor) -> Tensor:
        """Return half the Hessian times points in float64."""
        pull = self._edges * (coef[..., self._first] - coef[..., self._second])
        return self._gather(pull, self._weights * coef)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        coef = direction["coef"]
        dtype = torch.promote_types(coef.dtype, self._y.dtype)
        product = 2 * self._product(coef.double())
        return named.like(direction, {"coef": product.to(dtype)})

    def _blocks(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return entries of the Hessian at rows and columns that broadcast, in float64."""
        n, m = self._y.shape[0], self._keys.shape[0]
        same = rows == columns
        diagonal = torch.where(same, (self._weights + self._degree)[rows], 0.0)
        if m == 0:
            return 2 * diagonal
        keys = torch.minimum(rows, columns) * n + torch.maximum(rows, columns)
        place = torch.searchsorted(self._keys, keys).clamp_max(m - 1)
        joined = (self._keys[place] == keys) & ~same
        return 2 * (diagonal - torch.where(joined, self._sorted[place], 0.0))

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        dtype = torch.promote_types(params["coef"].dtype, self._y.dtype)
        return self._blocks(index.unsqueeze(-1), index.unsqueeze(-2)).to(dtype)

    @override
    def smoothness(self) -> float:
        return 2 * named.to_float((self._weights + 2 * self._degree).max()) * (1 + 1e-12)

    @override
    def strong_convexity(self) -> float:
        return 2 * named.to_float(self._weights.min())

    @override
    def curvature_bound(self) -> CurvatureBound:
        here = torch.arange(self._y.shape[0], device=self._y.device)
        return CurvatureBound(
            left=torch.ones(1, 1, dtype=torch.float64, device=self._y.device),
            right=self.curvature_rows(here),
            positions=here,
            ridge=torch.zeros_like(self._weights),
            attained=True,
        )

    @override
    def curvature_diagonal(self) -> Tensor:
        return 2 * (self._weights + self._degree)

    @override
    def curvature_rows(self, index: Tensor) -> Tensor:
        here = torch.arange(self._y.shape[0], device=self._y.device)
        return self._blocks(index.unsqueeze(1), here.unsqueeze(0))

    @override
    def minimize_on(self, masks: Masks) -> Params:
        """Return the shortest minimizers."""
        batch = named.to_batch(masks)
        inside = batch["coef"]
        most = named.to_int(inside.sum(-1).max()) if inside.shape[0] else 0
        found = self._conjugate_gradients(inside) if most > DENSE else None
        if found is not None:
            out: Params = named.like(batch, {"coef": found.to(self._y.dtype)})
        else:
            index, valid = supports.support_index(batch)
            target = torch.where(valid, (2 * self._weights * self._y)[index], 0.0)
            block = self._blocks(index.unsqueeze(-1), index.unsqueeze(-2))
            values = solve_on(block, target, index, valid).to(self._y.dtype)
            out = supports.scatter(values, index, valid, self.init_params())
        return out if named.is_batch(masks) else named.row(out, 0)

    def _conjugate_gradients(self, inside: Tensor) -> Tensor | None:
        """Return minimizers on supports; None where as many rounds as nonzeros do not suffice."""
        diagonal = self._weights + self._degree
        inverse = torch.where(inside & (diagonal > 0), 1.0 / diagonal, 0.0)
        right = torch.where(inside, self._weights * self._y, 0.0)
        x = inverse * right
        residual = torch.where(inside, right - self._product(x), 0.0)
        scaled = inverse * residual
        direction = scaled
        size = (residual * scaled).sum(-1, keepdim=True)
        goal = CLOSE**2 * (right * inverse * right).sum(-1, keepdim=True)
        for _ in range(inside.shape[-1]):
            live = size > goal
            if not named.any_true(live):
                return x
            image = torch.where(inside, self._product(direction), 0.0)
            bend = (direction * image).sum(-1, keepdim=True)
            step = torch.where(live, size / bend, 0.0)
            x = x + step * direction
            residual = residual - step * image
            scaled = inverse * residual
            new = (residual * scaled).sum(-1, keepdim=True)
            direction = scaled + torch.where(live, new / size, 0.0) * direction
            size = torch.where(live, new, size)
        return None


def _read_edges(edges: Any, n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the smaller and the larger end of every edge, or raise."""
    if (
        not isinstance(edges, Tensor)
        or edges.ndim != 2
        or edges.shape[1] != 2
        or edges.is_floating_point()
        or edges.is_complex()
    ):
        given = (
            f"{tuple(edges.shape)} of {edges.dtype}"
            if isinstance(edges, Tensor)
            else type(edges).__name__
        )
        raise InvalidParameterError(
            f"`edges` must be a tensor of integers of shape (m, 2), got {given}.",
            "A chain is `torch.stack([torch.arange(n - 1), torch.arange(1, n)], 1)`.",
        )
    edges = edges.to(device=device, dtype=torch.int64)
    first, second = edges.amin(1), edges.amax(1)
    if named.any_true((first < 0) | (second >= n)):
        wrong = named.to_list(edges[(first < 0) | (second >= n)][0])
        raise InvalidParameterError(
            f"`edges` must join entries 0 to {n - 1} of `y`, got {tuple(wrong)}."
        )
    if named.any_true(first == second):
        node = named.to_int(first[first == second][0])
        raise InvalidParameterError(f"`edges` must not join an entry to itself, got {node}.")
    if torch.unique(first * n + second).shape[0] < first.shape[0]:
        raise InvalidParameterError(
            "`edges` must hold every edge once, got one twice.", "Add up their `smoothness`."
        )
    return first, second


def _read_weights(name: str, weights: Any, count: int, like: Tensor) -> Tensor:
    """Return weights in float64, one for each of `count`, or raise."""
    out = torch.as_tensor(weights, dtype=torch.float64, device=like.device)
    if out.ndim == 0:
        out = out.expand(count).clone()
    if tuple(out.shape) != (count,):
        raise InvalidParameterError(
            f"`{name}` must be one number or of shape ({count},), got shape {tuple(out.shape)}."
        )
    if not named.all_true(torch.isfinite(out) & (out >= 0)):
        raise InvalidParameterError(
            f"`{name}` must be finite and not negative, got an entry that is not."
        )
    return out
