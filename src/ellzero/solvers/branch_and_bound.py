"""Branch and bound over supports: global optima with evidence that can be checked."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractSmoothObjective, Problem
from ellzero.core.result import Proof, Status
from ellzero.core.solver import AbstractSolver, SolverState, iterate
from ellzero.sets import L0Ball
from ellzero.solvers.refit import refit
from ellzero.solvers.swaps import LocalSearch
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.validation import check_integer, check_real

ENTRY_LIMIT = 400


@dataclass(slots=True)
class Tree:
    """Boxes of supports, open and closed; a box is a pair of entry sets.

    Parameters
    ----------
    queue : list of (float, int)
        Heap of open boxes: lower bound and number.
    decided : dict of int to Tensor of shape (n,), int8
        Of every box: 1 where an entry is included, -1 where excluded, 0 where open.
    points : dict of int to Tensor of shape (n,)
        Of every box: the point that gives its bound.
    bounds : dict of int to float
        Of every box: its lower bound.
    n_boxes : int
        Boxes made so far.
    """

    queue: list[tuple[float, int]] = field(default_factory=list)
    decided: dict[int, Tensor] = field(default_factory=dict)
    points: dict[int, Tensor] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)
    n_boxes: int = 0

    def add(self, decided: Tensor, point: Tensor, bound: float, *, is_open: bool) -> None:
        """Add a box."""
        self.decided[self.n_boxes] = decided
        self.points[self.n_boxes] = point
        self.bounds[self.n_boxes] = bound
        if is_open:
            heapq.heappush(self.queue, (bound, self.n_boxes))
        self.n_boxes += 1

    def first(self, count: int) -> list[int]:
        """Return the open boxes with the lowest bounds."""
        return [number for _, number in heapq.nsmallest(count, self.queue)]

    def remove(self, numbers: list[int]) -> None:
        """Remove boxes that others have replaced."""
        gone = set(numbers)
        self.queue = [(bound, number) for bound, number in self.queue if number not in gone]
        heapq.heapify(self.queue)
        for number in numbers:
            del self.bounds[number], self.decided[number], self.points[number]

    def close_above(self, level: float) -> None:
        """Close every open box whose bound is at least `level`."""
        self.queue = [(bound, number) for bound, number in self.queue if bound < level]
        heapq.heapify(self.queue)

    @property
    def lower_bound(self) -> float:
        """Smallest bound over all boxes."""
        return min(self.bounds.values(), default=float("-inf"))


@dataclass(frozen=True, slots=True)
class BranchState(SolverState):
    """State of `BranchAndBound`: the incumbent and the tree (one row only)."""

    tree: Tree


def _allotment(size: Tensor, open_entries: Tensor, room: Tensor) -> Tensor:
    """Return z in [0, 1] with sum `room` on the open entries, minimizing sum size^2 / z."""
    c = torch.where(open_entries, size, torch.zeros_like(size))
    ordered = c.sort(dim=1, descending=True).values
    n = c.shape[1]
    rest = ordered.sum(1, keepdim=True) - ordered.cumsum(1) + ordered
    capped = torch.arange(n, device=c.device)
    left = room.unsqueeze(1) - capped
    tau = rest / left.clamp_min(1e-300)
    # The smallest number of entries at 1 for which the next one stays below 1.
    fits = (ordered <= tau) & (left > 0)
    first = torch.where(fits.any(1), fits.to(torch.int8).argmax(1), 0)
    level = tau.gather(1, first.unsqueeze(1)).clamp_min(1e-300)
    z = (c / level).clamp(max=1.0)
    return torch.where(open_entries, z, torch.zeros_like(z))


@dataclass(frozen=True, slots=True)
class _Relaxation:
    """Bounds of boxes: the perspective relaxation, maximized through its primal."""

    objective: AbstractSmoothObjective
    counted: Tensor
    budget: int
    convexity: float
    template: dict[str, Tensor]

    def bound(
        self, value: Tensor, grad: Tensor, theta: Tensor, decided: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the lower bound that each point gives for its box, and the gains of entries."""
        m = self.convexity
        must = (decided > 0) | ~self.counted
        undecided = (decided == 0) & self.counted
        room = self.budget - ((decided > 0) & self.counted).sum(1)
        gain = (theta - grad / m).square() * (m / 2)
        base = value - (grad * theta).sum(1) + theta.square().sum(1) * (m / 2)
        base = base - torch.where(must, gain, torch.zeros_like(gain)).sum(1)
        ranked = torch.where(undecided, gain, torch.zeros_like(gain)).sort(1, descending=True)
        kept = torch.arange(gain.shape[1], device=gain.device) < room.unsqueeze(1)
        return base - (ranked.values * kept).sum(1), gain

    def solve(
        self, decided: Tensor, start: Tensor, rounds: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return bound, point, allotment z and gains of every box after some rounds."""
        m = self.convexity
        must = (decided > 0) | ~self.counted
        undecided = (decided == 0) & self.counted
        room = self.budget - ((decided > 0) & self.counted).sum(1)
        undecided = undecided & (room > 0).unsqueeze(1)
        whole = undecided.sum(1) <= room
        must = must | (undecided & whole.unsqueeze(1))
        undecided = undecided & ~must
        allowed = must | undecided
        room = room.to(start.dtype)
        everything = torch.arange(start.shape[1], device=start.device).expand_as(start)
        theta = torch.where(allowed, start, torch.zeros_like(start))
        spread = _allotment(torch.ones_like(theta), undecided, room)
        z = torch.where(must, 1.0, spread).to(theta.dtype)
        best = torch.full((theta.shape[0],), -torch.inf, dtype=theta.dtype, device=theta.device)
        best_theta, best_gain = theta, torch.zeros_like(theta)
        for turn in range(rounds):
            weight = torch.where(allowed, m / z.clamp_min(1e-7) - m, torch.zeros_like(z))
            theta = self._newton(theta, weight, allowed, everything)
            value, grad_named = self.objective.value_and_grad(
                named.unflatten(theta, self.template)
            )
            grad = named.flatten(grad_named)
            bound, gain = self.bound(value, grad, theta, decided)
            better = bound > best
            best = torch.where(better, bound, best)
            best_theta = torch.where(better.unsqueeze(1), theta, best_theta)
            best_gain = torch.where(better.unsqueeze(1), gain, best_gain)
            if turn + 1 < rounds:
                spread = _allotment(theta.abs(), undecided, room)
                z = torch.where(must, 1.0, spread).to(theta.dtype)
        return best, best_theta, z, best_gain

    def _newton(self, theta: Tensor, weight: Tensor, allowed: Tensor, index: Tensor) -> Tensor:
        """Take one guarded Newton step on f + sum weight * theta^2 / 2."""
        point = named.unflatten(theta, self.template)
        value, grad = self.objective.value_and_grad(point)
        g = torch.where(allowed, named.flatten(grad) + weight * theta, torch.zeros_like(theta))
        hessian = self.objective.hessian_on(Batch(point), index)
        both = allowed.unsqueeze(-1) & allowed.unsqueeze(-2)
        hessian = torch.where(both, hessian, torch.zeros_like(hessian))
        hessian = hessian + torch.diag_embed(torch.where(allowed, weight, torch.ones_like(weight)))
        factor, info = torch.linalg.cholesky_ex(hessian)
        direction = -torch.cholesky_solve(g.unsqueeze(-1), factor).squeeze(-1)
        failed = (info != 0) | ~torch.isfinite(direction).all(1)
        direction = torch.where(failed.unsqueeze(1), torch.zeros_like(direction), direction)
        before = value + (weight * theta.square()).sum(1) / 2
        length = torch.ones_like(value)
        for _ in range(12):
            trial = theta + length.unsqueeze(1) * direction
            after = self.objective.value(named.unflatten(trial, self.template))
            after = after + (weight * trial.square()).sum(1) / 2
            rises = after > before + 1e-12 * before.abs()
            if not named.any_true(rises):
                break
            length = torch.where(rises, length / 2, length)
        return theta + length.unsqueeze(1) * direction


@dataclass(frozen=True, slots=True)
class BranchAndBound(AbstractSolver[BranchState]):
    r"""Branch and bound over supports, with perspective bounds.

    Splits the supports into boxes (entries included, excluded, open). The lower bound of a box is

    .. math:: \min_{\theta} \; f(\theta_0) + \langle g, \theta - \theta_0 \rangle
        + \tfrac m2 \|\theta - \theta_0\|^2

    over the s-sparse points of the box, for the strong convexity constant m and a base point
    :math:`\theta_0` that is moved to make it large: the limit is the perspective relaxation, and
    with m the ridge it is the dual bound -F*(a) - top_s((X^T a)^2) / (2 m).

    Parameters
    ----------
    tol : float, default=1e-6
        Relative gap at which the search ends.
    width : int, default=128
        Boxes worked on at once.
    rounds : int, default=12
        Newton steps on the relaxation of each box.
    n_starts : int, default=20
        Random starts of `LocalSearch` that give the first incumbent; 0 refits the given point.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.

    See Also
    --------
    LocalSearch : Finds the incumbent, without the proof.

    Notes
    -----
    A round costs `width` Newton systems of n entries. Always ends; the number of boxes can grow
    like the number of supports when the ridge is small. When stopped, the boxes still prove the
    lower bound that is reported. Needs strong convexity: ridge, or least squares with full column
    rank. The evidence (`Result.proof`) is checked by `verify` without this code.

    References
    ----------
    .. [1] J. Liu, S. Rosen, C. Zhong and C. Rudin, "OKRidge: scalable optimal k-sparse ridge
       regression", arXiv:2304.06686.
    .. [2] H. Hazimeh, R. Mazumder and A. Saab, "Sparse regression at scale: branch-and-bound
       rooted in first-order optimization", arXiv:2004.06152.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.solvers import BranchAndBound
    >>> X = torch.tensor([[1.0, 0.9, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.5, 1.0, 0.2]])
    >>> objective = ellzero.LeastSquares(X.double(), torch.tensor([1.0, 2.0, 1.5, 1.0]).double())
    >>> result = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(1)), BranchAndBound())
    >>> result.support, result.certificate.claim.name
    ({'coef': [2]}, 'OPTIMAL')
    """

    tol: float = 1e-6
    width: int = 128
    rounds: int = 12
    n_starts: int = 20

    def __post_init__(self) -> None:
        check_real("tol", self.tol, 0.0, open_low=True)
        check_integer("width", self.width, 1)
        check_integer("rounds", self.rounds, 1)
        check_integer("n_starts", self.n_starts, 0)

    @override
    def refusal(self, problem: Problem) -> str | None:
        reason = LocalSearch().refusal(problem)
        if reason is not None:
            return reason
        assert isinstance(problem.objective, AbstractSmoothObjective)
        n = named.size(problem.objective.init_params())
        if n > ENTRY_LIMIT:
            return f"it solves dense systems of at most {ENTRY_LIMIT} entries, got {n}"
        if problem.objective.strong_convexity() <= 0:
            return "it needs strong convexity; pass `ridge` to the objective"
        return None

    def _relaxation(self, problem: Problem) -> _Relaxation:
        objective, ball = problem.objective, problem.constraint
        assert isinstance(objective, AbstractSmoothObjective)
        assert isinstance(ball, L0Ball)
        template = dict(objective.init_params())
        counted = supports.covered(ball.names, template)
        return _Relaxation(
            objective, counted, ball.n_nonzero, objective.strong_convexity(), template
        )

    @override
    def init(self, problem: Problem, params: Batch) -> BranchState:
        from ellzero.solvers.starts import make_starts

        search, passes = LocalSearch(), 1000
        if self.n_starts:
            starts = make_starts(problem, self.n_starts, generator=None)
            params = named.concatenate([params, starts])
        else:
            # Without random starts `params` counts as searched: it is only refitted.
            search, passes = LocalSearch(starter_iter=0), 0
        found = iterate(problem, search, params, max_iter=passes)
        row = found.best
        relaxation = self._relaxation(problem)
        n = named.size(relaxation.template)
        tree = Tree()
        point = named.take(found.params, slice(row, row + 1))
        decided = torch.zeros(1, n, dtype=torch.int8, device=found.value.device)
        bound, theta, _, _ = relaxation.solve(decided, named.flatten(point), 4 * self.rounds)
        tree.add(decided[0], theta[0], named.to_float(bound[0]), is_open=True)
        value = found.value[row : row + 1]
        tree.close_above(self._level(value))
        return BranchState(point, value, tree)

    def _level(self, value: Tensor) -> float:
        """Return the bound at which a box is settled; half of `tol` is left to the verifier."""
        best = named.to_float(value[0])
        return best - 0.5 * self.tol * abs(best)

    @override
    def step(self, problem: Problem, state: BranchState) -> BranchState:
        relaxation, tree = self._relaxation(problem), state.tree
        tree.close_above(self._level(state.value))
        if not tree.queue:
            return state
        # Boxes leave the tree after their halves have come in: an interrupt loses none.
        numbers = tree.first(self.width)
        decided = torch.stack([tree.decided[number] for number in numbers])
        points = torch.stack([tree.points[number] for number in numbers])
        children, starts = self._branch(relaxation, decided, points)
        bound, theta, _, gain = relaxation.solve(children, starts, self.rounds)
        params, value = self._improve(problem, relaxation, state, children, theta, gain, bound)
        level = self._level(value)
        for i, number in enumerate(named.to_list(bound)):
            tree.add(children[i], theta[i], number, is_open=number < level)
        tree.remove(numbers)
        return BranchState(params, value, tree)

    def _branch(
        self, relaxation: _Relaxation, decided: Tensor, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Split every box on the open entry that matters most and drop empty halves."""
        value, grad = relaxation.objective.value_and_grad(
            named.unflatten(points, relaxation.template)
        )
        _, gain = relaxation.bound(value, named.flatten(grad), points, decided)
        undecided = (decided == 0) & relaxation.counted
        used = ((decided > 0) & relaxation.counted).sum(1)
        room = relaxation.budget - used
        ranked = torch.where(undecided, gain, -torch.ones_like(gain)).sort(1, descending=True)
        # The entry at the edge of the kept ones decides most between the two halves.
        share = named.flatten(named.unflatten(points, relaxation.template)).abs()
        z = _allotment(share, undecided, room.to(share.dtype))
        score = torch.where(undecided, z.minimum(1 - z) * gain.sqrt(), -1.0)
        flat = score.amax(1) <= 0
        entry = torch.where(flat, ranked.indices[:, 0], score.argmax(1)).unsqueeze(1)
        # A box with nothing open holds one support; it only needs more Newton steps.
        splits = undecided.any(1)
        inside = decided[splits].scatter(1, entry[splits], 1)
        outside = decided[splits].scatter(1, entry[splits], -1)
        children = torch.cat([inside, outside, decided[~splits]])
        starts = torch.cat([points[splits], points[splits], points[~splits]])
        # A box whose budget is used up has all its open entries excluded.
        full = ((children > 0) & relaxation.counted).sum(1) >= relaxation.budget
        rest = full.unsqueeze(1) & (children == 0) & relaxation.counted
        return torch.where(rest, -1, children).to(torch.int8), starts

    def _improve(
        self,
        problem: Problem,
        relaxation: _Relaxation,
        state: BranchState,
        children: Tensor,
        theta: Tensor,
        gain: Tensor,
        bound: Tensor,
    ) -> tuple[Batch, Tensor]:
        """Round the most promising boxes to supports, refit, and keep the best point."""
        single = ~((children == 0) & relaxation.counted).any(1)
        promising = bound < self._level(state.value)
        first = torch.where(single & promising, -torch.inf, bound)
        few = first.argsort()[: max(32, named.to_int((single & promising).sum()))]
        must = ((children[few] > 0) | ~relaxation.counted).to(gain.dtype)
        undecided = (children[few] == 0) & relaxation.counted
        room = relaxation.budget - ((children[few] > 0) & relaxation.counted).sum(1)
        ranked = torch.where(undecided, gain[few], -1.0).argsort(1, descending=True)
        position = torch.arange(gain.shape[1], device=gain.device).expand_as(ranked)
        take = (position < room.unsqueeze(1)).to(gain.dtype)
        chosen = torch.zeros_like(must).scatter(1, ranked, take) * undecided
        masks = Batch(named.unflatten((must + chosen) > 0, relaxation.template))
        start = Batch(named.unflatten(theta[few], relaxation.template))
        points = refit(problem.objective, masks, start)
        values = problem.objective.value(points)
        best = values.argmin()
        better = values[best : best + 1] < state.value
        row = named.take(points, slice(named.to_int(best), named.to_int(best) + 1))
        params = Batch(named.where(better, row, state.params))
        return params, torch.minimum(values[best : best + 1], state.value)

    @override
    def terminate(self, problem: Problem, state: BranchState) -> Tensor:
        level = self._level(state.value)
        done = all(bound >= level for bound, _ in state.tree.queue)
        return torch.full_like(state.value, done, dtype=torch.int64) * Status.CONVERGED.code

    @override
    def proof(self, state: SolverState) -> Proof | None:
        assert isinstance(state, BranchState)
        tree = state.tree
        included, excluded, points = [], [], []
        for number, decided in tree.decided.items():
            included.append(tuple(named.to_list((decided > 0).nonzero().flatten())))
            excluded.append(tuple(named.to_list((decided < 0).nonzero().flatten())))
            points.append(named.to_list(tree.points[number]))
        return Proof(tuple(included), tuple(excluded), points)
