"""Grids and general graphs: the best signal found, and a bound that says how good it is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np

from ellzero.core.result import Measure, Status
from ellzero.signal.bracket import Bracket, SignedBracket
from ellzero.signal.budget import SAME, Callback
from ellzero.signal.chain import Chain, solve_budgeted
from ellzero.signal.decomposition import Decomposition, Evaluated
from ellzero.signal.graph import Lines, Mesh, blocks_of, parts_of
from ellzero.signal.proof import Multipliers, Narrowing
from ellzero.signal.solution import Bools, Floats, Solution

# Relative gap at which the ascent of a bound stops.
CLOSED = 1e-12
# Nodes times rounds of the ascent without a time limit, and the fewest and most rounds.
WORK, LEAST_ROUNDS, MOST_ROUNDS = 4e7, 60, 400
# Nodes up to which budgets are divided exactly among lines, and single exchanges are tried.
EXACT_BUDGETS, EXCHANGES = 20_000, 5000
# Penalized programs that look for the multiplier of a budget.
MOST_PRICES = 40


@dataclass
class _Search:
    """The best signal so far, its bound, and when to stop."""

    mesh: Mesh
    price: float | None
    budget: int | None
    time_limit: float | None
    callback: Callback | None
    blocks: list[Lines] = field(default_factory=list)
    bound: float = -math.inf
    status: Status | None = None
    proof: Narrowing | Multipliers | None = None
    began: float = field(default_factory=time.perf_counter)
    n_reports: int = 0
    multiplier: float = 0.0

    def __post_init__(self) -> None:
        self.signal: Floats = np.zeros(self.mesh.size)
        self.value = self.mesh.value(self.signal, 0.0)
        self.measures: dict[str, Measure] = {}

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self.began

    def stop(self) -> bool:
        """Return whether time is up or a callback has asked to stop."""
        late = self.time_limit is not None and self.seconds > self.time_limit
        if late and self.status is None:
            self.status = Status.TIME_LIMIT
        return self.status is not None

    def report(self) -> bool:
        """Tell the callback, and return whether to stop."""
        self.n_reports += 1
        if self.status is not None or self.callback is None:
            return self.stop()
        if self.callback(self.n_reports, self.value, self.bound):
            self.status = Status.INTERRUPTED
        return self.stop()

    def prove(self, bound: float, proof: Narrowing | Multipliers | None) -> None:
        """Keep a better bound."""
        if bound > self.bound:
            self.bound, self.proof = bound, proof

    def offer(self, signal: Floats) -> bool:
        """Keep a better signal that is within the budget."""
        if self.budget is not None and self.mesh.count(signal != 0) > self.budget:
            return False
        value = self.mesh.value(signal, self.price or 0.0)
        if not value < self.value:
            return False
        self.signal, self.value = signal, value
        return True

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be better by more than rounding."""
        return self.value - self.bound <= CLOSED * abs(self.value)

    def solution(self) -> Solution:
        """Return what was found."""
        if self.status is None and not self.is_closed:
            self.status = Status.STALLED
        price = self.multiplier if self.price is None else self.price
        return Solution(
            self.signal,
            self.signal != 0,
            float(self.value),
            float(min(max(self.bound, 0.0), self.value)),
            float(price),
            Status.CONVERGED if self.is_closed else self.status or Status.STALLED,
            self.measures,
            self.proof,
        )


def solve_mesh(
    mesh: Mesh,
    *,
    price: float | None = None,
    budget: int | None = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return a signal on a graph with cycles, and a lower bound.

    Parameters
    ----------
    mesh : Mesh
        Data.
    price : float or None, default=None
        Cost of a nonzero that counts.
    budget : int or None, default=None
        Most nonzeros that count; exactly one of the two is given.
    time_limit : float or None, default=None
        Seconds after which the best signal so far is returned with the bound so far.
    callback : callable or None, default=None
        Called as ``callback(n_calls, value, lower_bound)``; a true return value stops.

    Returns
    -------
    Solution
        Optimal, up to rounding, where its status is CONVERGED; else its gap says how good it is.

    Notes
    -----
    Signals that cannot be negative: sweeps over lines and submodular windows close the penalized
    problem, a budget gets the envelope of such problems. Any sign: sweeps from both sides, then
    Lagrangian decomposition [1]_ over rows and columns, or over forests. An interrupt from the
    keyboard ends the search and returns what there is.

    References
    ----------
    .. [1] A. Atamturk, A. Gomez and S. Han, "Sparse and smooth signal estimation:
       convexification of l0-formulations", JMLR 22(52), 2021, arXiv:1811.02655.
    """
    search = _Search(mesh, price, budget, time_limit, callback)
    try:
        search.blocks = blocks_of(mesh)
        if price is not None:
            _penalized(search, price)
        else:
            _budgeted(search, budget or 0)
    except KeyboardInterrupt:
        search.status = Status.INTERRUPTED
    return search.solution()


def _penalized(search: _Search, price: float) -> None:
    mesh = search.mesh
    search.offer(mesh.refit(mesh.costs(price) <= 0))
    if mesh.is_positive:
        bracket = Bracket(mesh, price, search.stop)
        search.offer(mesh.refit(bracket.on))
        bracket.narrow()
        _take_bracket(search, bracket, price)
    else:
        signed = SignedBracket(mesh, price, search.stop)
        signed.narrow(most=12 if mesh.size > 1000 else 100)
        proof = signed.proof
        search.measures["n_open"] = proof.left
        for support in (signed.on, ~signed.off):
            _descend(search, mesh.refit(support & (mesh.costs(price) < np.inf)), price)
        if proof.left == 0:
            search.offer(mesh.refit(signed.on))
            search.prove(search.value, proof)
    if not search.is_closed:
        _decompose(search, price)


def _take_bracket(search: _Search, bracket: Bracket, price: float) -> None:
    """Keep the signal and the bound of a bracket in the penalized form."""
    mesh = search.mesh
    n_open = int(np.count_nonzero(bracket.open))
    search.measures.update(n_open=n_open, n_windows=bracket.n_windows, n_sweeps=bracket.n_sweeps)
    search.offer(mesh.refit(bracket.on))
    if n_open == 0:
        search.prove(search.value - bracket.margin, bracket.proof)
        return
    for support in (bracket.on, ~bracket.off):
        _descend(search, mesh.refit(support), price)


def _descend(search: _Search, signal: Floats, price: float, most: int = 5) -> Floats:
    """Improve a signal by exact programs over blocks in turn, and offer it."""
    mesh = search.mesh
    cost = np.where(mesh.dead, np.inf, mesh.costs(price))
    value = mesh.value(signal, price)
    signal = signal.copy()
    for _ in range(most):
        for lines in search.blocks:
            if search.stop():
                break
            signal[lines.nodes] = lines.minimize(mesh, signal, cost)
        signal = mesh.refit(signal != 0, signal)
        new = mesh.value(signal, price)
        if search.stop() or value - new <= 1e-9 * abs(value):
            break
        value = new
    search.offer(signal)
    return signal


def _rounds(search: _Search) -> int:
    rounds = min(max(int(WORK / search.mesh.size), LEAST_ROUNDS), MOST_ROUNDS)
    return rounds if search.time_limit is None else 20 * rounds


def _decompose(search: _Search, price: float) -> None:
    """Raise the bound by multipliers, and look for signals where copies agree."""
    mesh, budget = search.mesh, search.budget
    parts = parts_of(mesh)
    problem = Decomposition(mesh, parts, price, budget)
    problem.start_at(search.signal)

    def target(found: Evaluated) -> float:
        search.bound = max(search.bound, problem.bound)
        if problem.n_rounds % 10 == 1 and not search.stop():
            _round_off(search, problem, found)
        search.report()
        return search.value

    already = search.bound, search.proof
    try:
        problem.ascend(target, most=_rounds(search), tol=CLOSED, stop=search.stop)
    finally:
        if problem.bound > already[0]:
            search.bound, search.proof = problem.bound, problem.proof()
            search.multiplier = search.proof.price
        search.measures["n_rounds"] = problem.n_rounds


def _round_off(search: _Search, problem: Decomposition, found: Evaluated) -> None:
    """Offer signals on the nodes where all copies, or most of them, are on."""
    mesh = search.mesh
    supports = np.concatenate(found.supports).astype(np.float64)
    votes = np.bincount(problem.where, supports * problem.share, minlength=mesh.size)
    signals = np.concatenate(found.signals)
    means = np.bincount(problem.where, signals * problem.share, minlength=mesh.size)
    for least in (1.0 - 1e-9, 0.5 - 1e-9):
        chosen = (votes >= least) & (means != 0)
        if search.budget is None:
            _descend(search, mesh.refit(chosen), problem.price, most=2)
        else:
            _fit_budget(search, mesh.refit(chosen))


def _budgeted(search: _Search, budget: int) -> None:
    mesh = search.mesh
    if budget == 0:
        search.offer(mesh.refit(mesh.costs(1.0) <= 0))
        if mesh.kinds is None:
            search.prove(search.value, None)
            return
    price = _multiplier(search, budget)
    search.multiplier = price
    if not search.is_closed and not (mesh.is_positive and search.bound > -math.inf):
        _decompose(search, price)


@dataclass
class _Point:
    """A penalized problem for a budget: its count and the value without the price."""

    count: int
    value: float


def _multiplier(search: _Search, budget: int) -> float:
    """Return a multiplier whose penalized problem has about as many nonzeros as allowed.

    Every signal on the way is cut or filled to the budget and offered. On small graphs signals
    that cannot be negative are solved to the end, and each gives a bound.
    """
    mesh = search.mesh
    dense = mesh.refit(mesh.costs(1.0) < np.inf)
    if mesh.count(dense != 0) <= budget:
        search.offer(dense)
        search.prove(search.value, Narrowing(0.0, [], [], None, 0))
        return 0.0
    low = _Point(0, mesh.value(mesh.refit(mesh.costs(1.0) <= 0), 0.0))
    high = _Point(mesh.count(dense != 0), mesh.value(dense, 0.0))
    best = 0.0
    is_rough = mesh.size > EXACT_BUDGETS
    # A first guess: what the least of as many nodes of the dense signal pays for itself.
    pays = np.sort(mesh.weights * dense**2)[::-1]
    guess = float(pays[budget - 1]) if budget and is_rough else 0.0
    for _ in range(MOST_PRICES):
        price = guess or (low.value - high.value) / (high.count - low.count)
        guess = 0.0
        if price <= 0:
            break
        if mesh.is_positive and is_rough:
            bracket = Bracket(mesh, price, search.stop)
            bracket.sweep_until_stable()
            signal = _descend_free(search, mesh.refit(bracket.on), price)
        elif mesh.is_positive:
            bracket = Bracket(mesh, price, search.stop)
            bracket.narrow()
            search.measures["n_windows"] = (
                int(search.measures.get("n_windows") or 0) + bracket.n_windows
            )
            signal = mesh.refit(bracket.on if not bracket.open.any() else ~bracket.off)
            tilted = mesh.value(signal, price) - bracket.margin
            if not bracket.open.any() and tilted - price * budget > search.bound:
                search.prove(tilted - price * budget, bracket.proof)
                best = price
        else:
            signed = SignedBracket(mesh, price, search.stop)
            signed.narrow(most=3)
            lower = _descend_free(search, mesh.refit(signed.on), price)
            upper = _descend_free(search, mesh.refit(~signed.off), price)
            signal = min(lower, upper, key=lambda x: mesh.value(x, price))
            best = price
        _fit_budget(search, signal)
        count = mesh.count(signal != 0)
        if search.report() or search.is_closed:
            break
        if is_rough and (
            abs(count - budget) <= 0.03 * budget or not low.count < count < high.count
        ):
            # Close enough: the ascent of the bound moves the multiplier too.
            break
        if count == budget or not low.count < count < high.count:
            break
        value = mesh.value(signal, 0.0)
        if count < budget:
            low = _Point(count, value)
        else:
            high = _Point(count, value)
    return best or max((low.value - high.value) / max(high.count - low.count, 1), 0.0)


def _descend_free(search: _Search, signal: Floats, price: float) -> Floats:
    """Improve a signal at a price without offering it."""
    kept = search.signal, search.value
    found = _descend(search, signal, price, most=3)
    search.signal, search.value = kept
    return found


def _fit_budget(search: _Search, signal: Floats) -> None:
    """Cut or fill a signal to the budget, improve it there, and offer it."""
    mesh, budget = search.mesh, search.budget or 0
    diagonal = mesh.matrix.diagonal()
    allowed = (mesh.costs(1.0) < np.inf) & ~mesh.dead
    counted = np.ones(mesh.size, dtype=np.bool_) if mesh.kinds is None else mesh.kinds > 0
    support = (signal != 0) | (allowed & ~counted)
    signal = mesh.refit(support, signal)
    for _ in range(200):
        on = signal != 0
        over = mesh.count(on) - budget
        if over <= 0 or search.status is Status.INTERRUPTED:
            break
        loss = np.where(on & counted, diagonal * signal**2, np.inf)
        number = max(over // 3, 1) if over > 8 else 1
        if over <= 0.02 * budget and mesh.size > EXCHANGES:
            number = over
        leaving = np.argpartition(loss, number - 1)[:number]
        on[leaving] = False
        signal = mesh.refit(on, signal)
    for _ in range(60):
        on = signal != 0
        short = budget - mesh.count(on)
        if short <= 0 or search.stop():
            break
        gain = _gains(mesh, signal, diagonal, allowed & counted & ~on)
        number = max(short // 3, 1) if mesh.size <= EXCHANGES else short
        number = min(number, int(np.count_nonzero(gain > 0)))
        if number == 0:
            break
        entering = np.argpartition(-gain, number - 1)[:number]
        signal = mesh.refit(on | _marked(mesh.size, entering), signal)
    if mesh.count(signal != 0) > budget:
        return
    search.offer(signal)
    if mesh.size <= EXACT_BUDGETS and mesh.kinds is None:
        signal = _divide(search, signal)
    if mesh.size <= EXCHANGES:
        _exchange(search, signal, diagonal, allowed, counted)


def _marked(n: int, nodes: np.ndarray) -> Bools:
    out = np.zeros(n, dtype=np.bool_)
    out[nodes] = True
    return out


def _gains(mesh: Mesh, signal: Floats, diagonal: Floats, able: Bools) -> Floats:
    """Return how much a single node would take off the value by turning on."""
    slope = mesh.pull - mesh.matrix @ signal
    if mesh.nonnegative:
        slope = np.maximum(slope, 0.0)
    gain = np.divide(slope**2, diagonal, out=np.zeros_like(slope), where=diagonal > 0)
    return np.where(able, gain, 0.0)


def _divide(search: _Search, signal: Floats) -> Floats:
    """Improve a signal over the blocks that are chains: the best with as many nonzeros as now."""
    mesh, budget = search.mesh, search.budget or 0
    value = mesh.value(signal, 0.0)
    for _ in range(4):
        for lines in search.blocks:
            if search.stop():
                return signal
            if lines.parent is not None:
                continue
            trial = signal.copy()
            trial[lines.nodes] = 0.0
            y, weights = lines.given(mesh, signal)
            chain = Chain(y, weights, lines.edges, mesh.nonnegative)
            found = solve_budgeted(chain, min(budget - mesh.count(trial != 0), chain.size))
            trial[lines.nodes] = found.signal
            trial = mesh.refit(trial != 0, trial)
            if mesh.value(trial, 0.0) < mesh.value(signal, 0.0):
                signal = trial
        new = mesh.value(signal, 0.0)
        if value - new <= 1e-9 * abs(value):
            break
        value = new
    search.offer(signal)
    return signal


def _exchange(
    search: _Search, signal: Floats, diagonal: Floats, allowed: Bools, counted: Bools
) -> None:
    """Exchange single nodes while that helps, and offer the signal."""
    mesh = search.mesh
    for _ in range(100):
        on, value = signal != 0, mesh.value(signal, 0.0)
        if search.stop() or not (on & counted).any():
            break
        loss = np.where(on & counted, diagonal * signal**2, np.inf)
        improved = False
        for out in np.argsort(loss)[: min(8, int((on & counted).sum()))].tolist():
            less = mesh.refit(on & ~_marked(mesh.size, np.array([out])), signal)
            gain = _gains(mesh, less, diagonal, allowed & counted & (less == 0))
            for enter in np.argsort(-gain)[:3].tolist():
                if gain[enter] <= 0:
                    continue
                support = (less != 0) | _marked(mesh.size, np.array([enter]))
                trial = mesh.refit(support, less)
                if mesh.value(trial, 0.0) < value * (1 - SAME):
                    signal, improved = trial, True
                    break
            if improved:
                break
        if not improved:
            break
    search.offer(signal)
