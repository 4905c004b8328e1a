"""Local search by exchanging entries of the support."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import (
    AbstractQuadraticObjective,
    AbstractSmoothObjective,
    AbstractTwiceDifferentiable,
    Problem,
)
from ellzero.core.result import Status
from ellzero.core.solver import AbstractSolver, SolverState, iterate
from ellzero.sets import L0Ball
from ellzero.solvers.refit import refit
from ellzero.solvers.thresholding import IHT
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks
from ellzero.validation import check_integer, check_real

# Exchanges minimized at once for each row, in the order of their predicted value.
ROUND = 8
# Entries above which the dense Hessian that prices the exchanges is out of reach.
ENTRY_LIMIT = 4000
# Prices held at once.
PRICES_AT_ONCE = 2**24


@dataclass(frozen=True, slots=True)
class SearchState(SolverState):
    """State of `LocalSearch`.

    Parameters
    ----------
    masks : Batch of bool
        Supports that `params` are the minimizers on.
    offset : Tensor of shape (size,), int64
        Exchanges of this support that were tried without success.
    code : Tensor of shape (size,), int64
        Code of the status found; 0 while running.
    order : Tensor of shape (size, m), int64
        Exchanges of this support in the order of their price, as ``leaves * n + enters``; -1 past
        the last one. Unset while `offset` is 0.
    """

    masks: Batch
    offset: Tensor
    code: Tensor
    order: Tensor


def fill_support(problem: Problem, params: Batch) -> Masks:
    """Return supports of the full budget: the nonzeros, then the largest gradient entries."""
    assert isinstance(problem.constraint, L0Ball)
    _, grad = problem.objective.value_and_grad(params)

    def score(t: Tensor, g: Tensor) -> Tensor:
        return torch.where(t != 0, torch.full_like(t, torch.inf), g.square())

    return problem.constraint.select(named.map_tensors(score, params, grad))


def exchange_prices(
    objective: AbstractTwiceDifferentiable, params: Batch, masks: Masks, counted: Tensor
) -> Tensor:
    r"""Return the change of the quadratic model for every exchange of one support entry.

    With K the inverse of the Hessian block on the support, sigma_j the Schur complement of j and
    w_j = K H_Sj, replacing i by j and minimizing the model on the new support changes it by

    .. math:: -\frac{g_j^2}{2\sigma_j} + \frac{(\theta_i + w_{ij} g_j / \sigma_j)^2}
        {2 (K_{ii} + w_{ij}^2 / \sigma_j)}

    Parameters
    ----------
    objective : AbstractTwiceDifferentiable
        Convex.
    params : Batch
        Minimizers on `masks`, `size` of them.
    masks : Batch of bool
        Supports, all with the same number k of entries.
    counted : Tensor of shape (n,), bool
        Entries that may enter or leave.

    Returns
    -------
    Tensor of shape (size, n, n)
        Entry [., i, j] is the predicted change when i leaves and j enters; infinity where i is
        not a support entry that may leave or j not one that may enter. Exact on quadratics.

    Notes
    -----
    Costs one dense Hessian, k^3 + k^2 n operations a row, and memory n^2.
    """
    flat = named.flatten(params)
    rows, n = flat.shape
    inside = named.flatten(masks)
    everything = torch.arange(n, device=flat.device).expand(rows, n)
    hessian = objective.hessian_on(params, everything)
    _, gradient = objective.value_and_grad(params)
    g = named.flatten(gradient)
    index, valid = supports.support_index(masks)
    if index.shape[1] == 0:
        return torch.full((rows, n, n), torch.inf, dtype=flat.dtype, device=flat.device)
    pick = index.unsqueeze(-1).expand(-1, -1, n)
    to_all = hessian.gather(1, pick)
    block = to_all.gather(2, index.unsqueeze(1).expand(-1, index.shape[1], -1))
    scale = block.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(torch.finfo(flat.dtype).tiny)
    eye = torch.eye(index.shape[1], dtype=flat.dtype, device=flat.device)
    inverse = torch.linalg.inv(block + 1e-12 * scale.reshape(-1, 1, 1) * eye)
    w = inverse @ to_all
    schur = hessian.diagonal(dim1=-2, dim2=-1) - (to_all * w).sum(1)
    floor = 1e-12 * scale.unsqueeze(-1)
    schur = torch.maximum(schur, floor).unsqueeze(1)
    g_j = g.unsqueeze(1)
    theta = flat.gather(1, index).unsqueeze(-1)
    own = inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    price = -g_j.square() / (2 * schur) + (theta + w * g_j / schur).square() / (
        2 * (own + w.square() / schur)
    )
    may_enter = (~inside & counted).unsqueeze(1)
    may_leave = (valid & counted[index]).unsqueeze(-1)
    price = torch.where(may_enter & may_leave, price, torch.inf)
    out = torch.full((rows, n, n), torch.inf, dtype=flat.dtype, device=flat.device)
    return out.scatter(1, pick, price)


@dataclass(frozen=True, slots=True)
class LocalSearch(AbstractSolver[SearchState]):
    r"""Hard thresholding, refit, then exchanges of one support entry until none helps.

    Parameters
    ----------
    starter : AbstractSolver, default=IHT()
        Turns each start into a support.
    starter_iter : int, default=100
        Largest number of steps of the starter.
    tol : float, default=1e-9
        An exchange must lower the value by more than `tol` times its magnitude.
    tries : int or None, default=None
        Exchanges of one support that are minimized, in the order of their price, before its
        search is given up with status MAX_ITER; None means all.

    Raises
    ------
    InvalidParameterError
        If `starter_iter` or `tol` is negative, or `tries` is below 1.

    See Also
    --------
    BranchAndBound : Proves or improves what this finds.

    Notes
    -----
    A pass prices all s(n - s) exchanges with one dense Hessian in O(s^2 n), exactly on quadratics,
    and otherwise minimizes them in the order of their price, 8 at a time, until one helps. At the
    end (status CONVERGED) no exchange of one entry lowers the value by more than `tol`: a
    coordinatewise minimum in the sense of [1]_. Ends for every convex objective, as values fall
    and supports are finitely many. Rows with equal supports are worked on once.

    References
    ----------
    .. [1] A. Beck and Y. C. Eldar, "Sparsity constrained nonlinear optimization: optimality
       conditions and algorithms", arXiv:1203.4580.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import LocalSearch
    >>> objective = ellzero.LeastSquares(torch.eye(3), torch.tensor([3.0, 1.0, 2.0]))
    >>> problem = ellzero.Problem(objective, ellzero.L0Ball(2))
    >>> ellzero.solve(problem, LocalSearch()).support
    {'coef': [0, 2]}
    """

    starter: AbstractSolver = field(default_factory=IHT)  # type: ignore[type-arg]
    starter_iter: int = 100
    tol: float = 1e-9
    tries: int | None = None

    def __post_init__(self) -> None:
        check_integer("starter_iter", self.starter_iter, 0)
        check_real("tol", self.tol, 0.0)
        if self.tries is not None:
            check_integer("tries", self.tries, 1)

    @override
    def refusal(self, problem: Problem) -> str | None:
        if not isinstance(problem.objective, AbstractSmoothObjective):
            kind = type(problem.objective).__name__
            return f"it needs a smooth convex objective, got `{kind}`"
        ball = problem.constraint
        if not isinstance(ball, L0Ball):
            return "it needs an `L0Ball`: it exchanges one entry for one"
        if ball.lower is not None or ball.upper is not None:
            return "it refits without the side constraints of the set"
        n = named.size(problem.objective.init_params())
        if n > ENTRY_LIMIT:
            return (
                f"it prices exchanges with a dense Hessian of at most {ENTRY_LIMIT} rows, got {n}"
            )
        return self.starter.refusal(problem)

    @override
    def init(self, problem: Problem, params: Batch) -> SearchState:
        run = iterate(problem, self.starter, params, max_iter=self.starter_iter)
        found = run.params
        masks = Batch(fill_support(problem, found))
        point = refit(problem.objective, masks, found)
        value = problem.objective.value(point)
        zero = torch.zeros_like(run.codes)
        # An interrupt of the starter ends the search as well.
        interrupted = run.codes == Status.INTERRUPTED.code
        code = torch.where(interrupted, run.codes, zero)
        inside = named.flatten(masks)
        size = inside.sum(1)
        most = max(1, named.to_int((size * (inside.shape[1] - size)).max()))
        most = most if self.tries is None else min(most, self.tries)
        return SearchState(point, value, masks, zero, code, zero.unsqueeze(1).repeat(1, most))

    @override
    def step(self, problem: Problem, state: SearchState) -> SearchState:
        key = torch.cat([named.flatten(state.masks).to(torch.int64), state.offset[:, None]], 1)
        unique, inverse = torch.unique(key, dim=0, return_inverse=True)
        first = torch.zeros(unique.shape[0], dtype=torch.int64, device=key.device)
        order = torch.arange(key.shape[0] - 1, -1, -1, device=key.device)
        first = first.scatter(0, inverse[order], order)
        searched = self._exchange(problem, named.take_rows(state, first))
        return named.take_rows(searched, inverse)

    def _exchange(self, problem: Problem, state: SearchState) -> SearchState:
        objective, constraint = problem.objective, problem.constraint
        assert isinstance(objective, AbstractSmoothObjective)
        assert constraint is not None
        counted = supports.covered(constraint.names, state.params)
        rows, n = state.params.size, counted.shape[0]
        order = self._order(objective, state, counted)
        exact = isinstance(objective, AbstractQuadraticObjective)
        window = 1 if exact else ROUND
        place = state.offset.unsqueeze(1) + torch.arange(window, device=order.device)
        inside = place < order.shape[1]
        choice = order.gather(1, place.clamp_max(order.shape[1] - 1))
        possible = inside & (choice >= 0)
        choice = choice.clamp_min(0)
        leaves, enters = choice // n, choice % n
        flat = named.flatten(state.masks)
        trial = flat.unsqueeze(1).repeat(1, window, 1)
        trial = trial.scatter(2, leaves.unsqueeze(-1), False)
        trial = trial.scatter(2, enters.unsqueeze(-1), True)
        trial = torch.where(possible.unsqueeze(-1), trial, flat.unsqueeze(1))
        template = named.row(state.params, 0)
        masks = Batch(named.unflatten(trial.flatten(0, 1), template))
        start = named.unflatten(named.flatten(state.params).repeat_interleave(window, 0), template)
        points = refit(objective, masks, Batch(start))
        values = objective.value(points).reshape(rows, window)
        values = torch.where(possible & torch.isfinite(values), values, torch.inf)
        best, which = values.min(1)
        improved = best < state.value - self.tol * state.value.abs()
        chosen = which + window * torch.arange(rows, device=which.device)
        params = Batch(named.where(improved, named.take(points, chosen), state.params))
        new_masks = Batch(named.where(improved, named.take(masks, chosen), state.masks))
        value = torch.where(improved, best, state.value)
        offset = torch.where(improved, 0, state.offset + window)
        listed = (order >= 0).sum(1)
        done = ~improved & ((offset >= listed) | exact)
        size = (flat & counted).sum(1)
        cut = (size * (counted.sum() - size) > order.shape[1]) & (not exact)
        ended = torch.where(cut, Status.MAX_ITER.code, Status.CONVERGED.code)
        code = torch.where(done, ended, 0)
        return SearchState(params, value, new_masks, offset, code, order)

    def _order(
        self, objective: AbstractSmoothObjective, state: SearchState, counted: Tensor
    ) -> Tensor:
        """Return the exchanges of every row in the order of their price; priced once each."""
        fresh = (state.offset == 0).nonzero().squeeze(1)
        order, n = state.order, counted.shape[0]
        step = max(1, PRICES_AT_ONCE // n**2)
        for first in range(0, fresh.shape[0], step):
            rows = fresh[first : first + step]
            part = named.take_rows(state, rows)
            prices = exchange_prices(objective, part.params, part.masks, counted).flatten(1)
            ordered, places = prices.sort(dim=1)
            most = min(order.shape[1], places.shape[1])
            places = torch.where(torch.isfinite(ordered), places, -1)[:, :most]
            order = order.index_copy(
                0, rows, torch.nn.functional.pad(places, (0, order.shape[1] - most), value=-1)
            )
        return order

    @override
    def terminate(self, problem: Problem, state: SearchState) -> Tensor:
        return state.code
