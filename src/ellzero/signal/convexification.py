"""Convexifications of sparse and smooth signals on any graph, with bounds that hold."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ellzero.core.result import Measure, Status
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.signal.hull_bounds import Shares, bound_of_boxes, bound_of_shares
from ellzero.signal.inputs import read_graph, read_samples, read_smoothness
from ellzero.signal.lasso import Network
from ellzero.signal.solution import Bools, Floats
from ellzero.validation import check_choice, check_integer, check_real

METHODS = ("big-m", "perspective", "rank-one", "pair", "iterated", "joint")
# Thresholds that rounding tries in the penalized form.
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
# A split that gains less than this, relatively, ends the iteration.
GAIN = 1e-6
# Indicators below this are taken for zero where something is divided by them.
TINY = 1e-8
# Largest power of the moments by which a split moves; it doubles with every success.
MOST_POWER = 16.0


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A relaxed point, a bound that nothing can be below, and a sparse point beside it.

    Parameters
    ----------
    method : str
        Convexification.
    x, z : ndarray of the shape of the samples
        Relaxed signal and indicators.
    lower_bound : float
        Proven lower bound on the optimal value.
    signal : ndarray of the shape of the samples
        Signal within the budget: rounded indicators, fitted exactly.
    value : float
        Its objective, with the penalty where there is one.
    seconds : float
        Wall time.
    status : Status
        CONVERGED, TIME_LIMIT, or STALLED where the conic solver did not reach its accuracy.
    measures : mapping of str to number or str
        Value that the conic solver reports, iterations, rounds.
    """

    method: str
    x: Floats
    z: Floats
    lower_bound: float
    signal: Floats
    value: float
    seconds: float
    status: Status = Status.CONVERGED
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Relative distance of the value to the lower bound; 0 below rounding."""
        scale = max(abs(self.value), abs(self.lower_bound))
        distance = self.value - self.lower_bound
        return distance / scale if distance > 1e-13 * scale else 0.0

    @property
    def n_nonzero(self) -> int:
        """Number of entries of the rounded signal that differ from zero."""
        return int(np.count_nonzero(self.signal))


def relax(
    y: Any,
    smoothness: Any = 1.0,
    *,
    n_nonzero: int | None = None,
    penalty: float | None = None,
    nonnegative: bool = False,
    graph: Any = "chain",
    sample_weight: Any = None,
    method: str = "pair",
    max_rounds: int = 10,
    time_limit: float | None = None,
) -> Relaxation:
    r"""Return a convexification of the sparse and smooth signal, see `SparseSmooth`.

    Parameters
    ----------
    y : array of shape (n_samples,) or (n_rows, n_columns)
        Samples; NaN are missing.
    smoothness : float or ndarray of shape (n_edges,), default=1.0
        Weight of the squared difference along every edge.
    n_nonzero : int or None, default=None
        Most nonzeros.
    penalty : float or None, default=None
        Cost of a nonzero; exactly one of the two is given.
    nonnegative : bool, default=False
        Whether the signal must not be negative.
    graph : {"chain", "grid"} or ndarray of shape (n_edges, 2), default="chain"
        Which samples are neighbors; cycles are allowed.
    sample_weight : array of the shape of `y`, or None, default=None
        Weight of every sample; 0 leaves it out.
    method : str, default="pair"
        One of "big-m", "perspective", "rank-one", "pair", "iterated", "joint"; see Notes.
    max_rounds : int, default=10
        Most improvements of the split of "iterated". Must be at least 0.
    time_limit : float or None, default=None
        Seconds, in all; the bound of a run that is stopped holds.

    Returns
    -------
    Relaxation
        With the bound, the relaxed point and a rounded one.

    Raises
    ------
    IncompatibleError
        If cvxpy is not installed.
    InvalidParameterError
        If a parameter is out of range, or samples, weights and graph do not fit.
    NonFiniteError
        If a sample is infinite, or none is a number.

    Notes
    -----
    From the weakest to the strongest: "big-m" is :math:`l_i z_i \le x_i \le u_i z_i`, with the
    bounds that monotonicity proves. "perspective" has :math:`x_i^2 / z_i` in the fit [1]_.
    "rank-one" adds the hull of :math:`(x_i - x_j)^2` with its two indicators:
    :math:`(x_i - x_j)^2 / \min(1, z_i + z_j)`, or for nonnegative signals
    :math:`(x_i - x_j)_+^2 / z_i + (x_j - x_i)_+^2 / z_j`. "pair" has the hull of both fits and
    the smoothness of an edge, with the fit of a node split evenly among its edges. "iterated"
    moves the split toward the edges where the hull's second moment of the node is larger and
    solves again, with half the step where that does not help: its bound never falls. "joint" has
    the best of these splits in one program: the second moments of a node agree among its edges.
    Missing samples have no fit: there all methods use the bounds of "big-m".

    The lower bound is not the solver's value. Its multipliers share linear terms and prices among
    edges and nodes; the least value of each block is a closed form, and their sum is a bound for
    any shares, up to rounding, which is taken off. An inaccurate solver costs tightness only.

    Rounding keeps the largest indicators, or those above one of 19 thresholds, and fits exactly.
    Cost: a conic program with about ten variables for each edge; n = 2000 in seconds.

    References
    ----------
    .. [1] A. Atamturk, A. Gomez and S. Han, "Sparse and smooth signal estimation:
       convexification of l0-formulations", JMLR 22(52), 2021, arXiv:1811.02655.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.signal import SparseSmooth
    >>> from ellzero.signal.convexification import relax
    >>> y = np.array([0.1, -0.2, 2.1, 1.9, 2.0, 0.1, 0.0, -0.1])
    >>> exact = SparseSmooth(0.5, n_nonzero=3).fit(y).value_
    >>> found = relax(y, 0.5, n_nonzero=3)
    >>> bool(found.lower_bound <= exact <= found.value * (1 + 1e-12)), found.gap < 0.01
    (True, True)
    """
    began = time.perf_counter()
    if (n_nonzero is None) == (penalty is None):
        given = "neither" if n_nonzero is None else "both"
        raise InvalidParameterError(
            f"Exactly one of `n_nonzero` and `penalty` must be given, got {given}.",
            "Pass `n_nonzero=20` for a budget, or `penalty=0.1` for a cost of each nonzero.",
        )
    check_choice("method", method, METHODS)
    check_integer("max_rounds", max_rounds, 0)
    if time_limit is not None:
        check_real("time_limit", time_limit, 0.0)
    samples = read_samples(y, sample_weight)
    joined = read_graph(graph, samples.shape)
    weights = read_smoothness(smoothness, joined.n_edges)
    network = Network(
        samples.y, samples.weights, joined.first, joined.second, weights, bool(nonnegative)
    )
    unit = samples.scale**2
    budget, price = None, 0.0
    if n_nonzero is not None:
        budget = check_integer("n_nonzero", n_nonzero, 0)
        if budget > network.size:
            raise InvalidParameterError(
                f"`n_nonzero` must be at most {network.size}, the number of samples, got {budget}."
            )
    else:
        price = check_real("penalty", penalty, 0.0) / unit
    found = relax_network(
        network, method, budget=budget, price=price, max_rounds=max_rounds, time_limit=time_limit
    )
    shape, scale = samples.shape, samples.scale
    measures = dict(found.measures)
    for key in ("conic_value", "first_bound"):
        if key in measures:
            measures[key] = float(measures[key] or 0.0) * unit
    return replace(
        found,
        x=found.x.reshape(shape) * scale,
        z=found.z.reshape(shape),
        lower_bound=found.lower_bound * unit,
        signal=found.signal.reshape(shape) * scale,
        value=found.value * unit,
        seconds=time.perf_counter() - began,
        measures=measures,
    )


def relax_network(
    network: Network,
    method: str,
    *,
    budget: int | None = None,
    price: float = 0.0,
    max_rounds: int = 10,
    time_limit: float | None = None,
) -> Relaxation:
    """Return a convexification of a signal on a graph; see `relax`.

    Parameters
    ----------
    network : Network
        Data.
    method : str
        Convexification.
    budget : int or None, default=None
        Most nonzeros; None in the penalized form.
    price : float, default=0.0
        Cost of a nonzero in the penalized form.
    max_rounds : int, default=10
        Most improvements of the split of "iterated".
    time_limit : float or None, default=None
        Seconds.

    Returns
    -------
    Relaxation
        In the units of the data.
    """
    began = time.perf_counter()
    if budget == 0 or not network.weights.any():
        load_cvxpy()
        nothing = np.zeros(network.size)
        value = network.value(nothing)
        seconds = time.perf_counter() - began
        return Relaxation(method, nothing, nothing, value, nothing, value, seconds)
    # Edges without weight hold nothing, and parts without any weight are best at zero.
    kept = (network.edges > 0) & network.reached[network.first]
    core = replace(
        network, first=network.first[kept], second=network.second[kept], edges=network.edges[kept]
    )
    model = _Model(core, budget, price, time_limit, began)
    measures: dict[str, Measure] = {}
    if method == "iterated":
        point, measures = _iterate(model, max_rounds)
    else:
        point = model.solve(method)
    signal = round_indicators(core, point.z, point.x, budget=budget, price=price)
    value = core.value(signal) + (0.0 if budget is not None else price * np.count_nonzero(signal))
    # Fit and smoothness are not negative: 0 is always a bound.
    bound = min(max(point.bound, 0.0), value)
    measures |= {"conic_value": point.value, "n_iter": point.n_iter}
    seconds = time.perf_counter() - began
    return Relaxation(
        method, point.x, point.z, bound, signal, float(value), seconds, point.status, measures
    )


def round_indicators(
    network: Network, z: Floats, x: Floats, *, budget: int | None, price: float
) -> Floats:
    """Return the best signal on the largest indicators.

    Parameters
    ----------
    network : Network
        Data.
    z, x : ndarray of shape (n,)
        Indicators, and the relaxed signal, whose magnitude decides between equal indicators.
    budget : int or None
        How many are kept; None tries thresholds from 0.05 to 0.95.
    price : float
        Cost of a nonzero in the penalized form.

    Returns
    -------
    ndarray of shape (n,)
        The signal; zero off the support.
    """
    if budget is not None:
        order = np.lexsort((-np.abs(x), -z.round(7)))[:budget]
        on: Bools = np.zeros(network.size, dtype=np.bool_)
        on[order] = True
        return network.refit(on)
    best, least = np.zeros(network.size), network.value(np.zeros(network.size))
    seen = set()
    for threshold in THRESHOLDS:
        on = z > threshold
        count = int(on.sum())
        if count in seen:
            continue
        seen.add(count)
        signal = network.refit(on)
        value = network.value(signal) + price * int(np.count_nonzero(signal))
        if value < least:
            best, least = signal, value
    return best


@dataclass(frozen=True, slots=True)
class _Point:
    """A solved program: the point, the bound that its multipliers prove, moments by edge."""

    x: Floats
    z: Floats
    bound: float
    value: float
    n_iter: int
    status: Status
    moments: Floats | None = None


class _Model:
    """The conic programs of one problem."""

    def __init__(
        self,
        network: Network,
        budget: int | None,
        price: float,
        time_limit: float | None,
        began: float,
    ) -> None:
        self.cp = load_cvxpy()
        self.network = network
        self.budget, self.price = budget, price
        self.time_limit, self.began = time_limit, began
        self.low, self.high = network.domains()

    def even_split(self) -> Floats:
        """Return the split of every node's weight into equal parts for its edges."""
        i, j, n = self.network.first, self.network.second, self.network.size
        degree = np.bincount(i, minlength=n) + np.bincount(j, minlength=n)
        part = self.network.weights / np.maximum(degree, 1)
        return np.stack([part[i], part[j]])

    def solve(self, method: str, split: Floats | None = None) -> _Point:
        """Solve one program.

        Every block of an edge has copies of its variables, whose equalities with those of the
        nodes carry the multipliers from which the bound is made.
        """
        cp, net, budget = self.cp, self.network, self.budget
        n, m, w = net.size, net.edges.size, net.weights
        i, j, edges = net.first, net.second, net.edges
        x, z = cp.Variable(n), cp.Variable(n, nonneg=True)
        cons = [z <= 1]
        if net.nonnegative:
            cons.append(x >= 0)
        count = None
        if budget is not None:
            count = cp.sum(z) <= budget
            cons.append(count)
        cost = -2 * (w * net.y) @ x + float(w @ net.y**2)
        if budget is None:
            cost += self.price * cp.sum(z)
        if method in {"pair", "joint"}:
            alone = np.bincount(i, minlength=n) + np.bincount(j, minlength=n) == 0
            own = np.where(alone, w, 0.0)
        else:
            own = w
        at = np.flatnonzero(own > 0)
        pulls: Any = None
        prices: Any = None
        copies: Any = None
        bare = np.flatnonzero(w == 0)
        if bare.size and method != "big-m":
            # Nothing but the bounds ties a node without a sample to its indicator.
            cons += [
                cp.multiply(self.low[bare], z[bare]) <= x[bare],
                x[bare] <= cp.multiply(self.high[bare], z[bare]),
            ]
        split = self.even_split() if split is None else split
        if method == "big-m":
            cost += cp.sum(cp.multiply(w, x**2))
            cons += [cp.multiply(self.low, z) <= x, x <= cp.multiply(self.high, z)]
        elif at.size:
            fit = cp.Variable(at.size)
            cons.append(self._over(x[at], fit, z[at]))
            cost += own[at] @ fit
        if m and method in {"big-m", "perspective"}:
            cost += cp.sum_squares(cp.multiply(np.sqrt(edges), x[i] - x[j]))
        elif m and method == "rank-one":
            cost, pulls, prices = self._rank_one(cost, cons, x, z)
        elif m:
            cost, pulls, prices, copies = self._pair(cost, cons, x, z, split, method == "joint")
        problem = cp.Problem(cp.Minimize(cost), cons)
        status = self._run(problem)
        if x.value is None:
            nothing = np.zeros(n)
            return _Point(nothing, nothing, -math.inf, math.nan, 0, status)
        stats = problem.solver_stats
        point_x, point_z = np.asarray(x.value), np.clip(np.asarray(z.value), 0.0, 1.0)
        price = self.price if count is None else max(float(count.dual_value), 0.0)
        moments = None
        if method == "big-m":
            steps = point_x[i] - point_x[j]
            bound = bound_of_boxes(net, steps, price, budget, self.low, self.high)
        else:
            none = np.zeros((2, m))
            if method == "perspective" or not m:
                pull = 2 * edges * (point_x[i] - point_x[j])
                shares = Shares(none, np.stack([pull, -pull]), none)
            elif method == "rank-one":
                pull = -pulls.dual_value
                shares = Shares(none, np.stack([pull, -pull]), _ends(prices))
            else:
                moments = _moments(*copies["values"])
                if method == "joint":
                    given = np.zeros_like(split)
                    for end, (limit, held) in zip(given, copies["moments"], strict=True):
                        end[held] = limit.dual_value
                    split = self._read_split(given, split)
                shares = Shares(split, -_ends(pulls), _ends(prices))
            bound = bound_of_shares(
                net, shares, price, budget, self.low, self.high, indicators=method != "perspective"
            )
        return _Point(
            point_x, point_z, bound, float(problem.value), int(stats.num_iters or 0), status,
            moments,
        )  # fmt: skip

    def _rank_one(self, cost: Any, cons: list[Any], x: Any, z: Any) -> tuple[Any, ...]:
        """Add the hull of every squared difference with its indicators."""
        cp, net = self.cp, self.network
        i, j, edges = net.first, net.second, net.edges
        m = edges.size
        step, z1, z2 = cp.Variable(m), cp.Variable(m), cp.Variable(m)
        pull = step == x[i] - x[j]
        prices = (z1 == z[i], z2 == z[j])
        cons += [pull, *prices]
        if net.nonnegative:
            up, down = cp.Variable(m, nonneg=True), cp.Variable(m, nonneg=True)
            t1, t2 = cp.Variable(m), cp.Variable(m)
            cons += [up >= step, down >= -step, self._over(up, t1, z1), self._over(down, t2, z2)]
            return cost + edges @ (t1 + t2), pull, prices
        t, on = cp.Variable(m), cp.Variable(m)
        cons += [on <= 1, on <= z1 + z2, self._over(step, t, on)]
        return cost + edges @ t, pull, prices

    def _pair(
        self, cost: Any, cons: list[Any], x: Any, z: Any, split: Floats, joint: bool
    ) -> tuple[Any, ...]:
        """Add the hull of every edge with the fit at its ends.

        A pair is a mixture of its four states: u is the part of x where only that end is on, v the
        one where both are, and q the weight of both.
        """
        cp, net = self.cp, self.network
        i, j, edges = net.first, net.second, net.edges
        m = edges.size
        u1, u2, v1, v2 = (cp.Variable(m, nonneg=net.nonnegative) for _ in range(4))
        q, z1, z2 = cp.Variable(m, nonneg=True), cp.Variable(m), cp.Variable(m)
        t1, t2, both = cp.Variable(m), cp.Variable(m), cp.Variable(m)
        pulls = (u1 + v1 == x[i], u2 + v2 == x[j])
        prices = (z1 == z[i], z2 == z[j])
        cons += [*pulls, *prices, q >= z1 + z2 - 1]
        cons += [self._over(u1, t1, z1 - q), self._over(u2, t2, z2 - q)]
        copies: dict[str, Any] = {"values": (u1, u2, v1, v2, q, z1, z2)}
        if joint:
            r1, r2 = cp.Variable(m), cp.Variable(m)
            cons += [self._over(v1, r1, q), self._over(v2, r2, q), self._over(v1 - v2, both, q)]
            # A moment for every node that has a weight and an edge, above those of its edges.
            joined = np.zeros(net.size, dtype=np.bool_)
            joined[i] = joined[j] = True
            nodes = np.flatnonzero(joined & (net.weights > 0))
            place = np.zeros(net.size, dtype=np.int64)
            place[nodes] = np.arange(nodes.size)
            second = cp.Variable(nodes.size)
            ends = []
            for node, moment in ((i, t1 + r1), (j, t2 + r2)):
                at = np.flatnonzero(net.weights[node] > 0)
                limit = moment[at] <= second[place[node[at]]]
                cons.append(limit)
                ends.append((limit, at))
            copies["moments"] = ends
            cost += net.weights[nodes] @ second + edges @ (t1 + t2 + both)
            return cost, pulls, prices, copies
        d1, d2 = edges + split[0], edges + split[1]
        # The square root of the form of both ends, without cancellation in its last entry.
        root = np.sqrt(d1)
        last = np.sqrt((split[0] * split[1] + edges * (split[0] + split[1])) / d1)
        first = cp.multiply(root, v1) - cp.multiply(edges / root, v2)
        cons.append(
            cp.SOC(both + q, cp.vstack([2 * first, 2 * cp.multiply(last, v2), both - q]), axis=0)
        )
        return cost + d1 @ t1 + d2 @ t2 + cp.sum(both), pulls, prices, copies

    def _read_split(self, given: Floats, even: Floats) -> Floats:
        """Return the split proportional to what is given, of exactly the right sum."""
        net = self.network
        part = np.maximum(given, 0.0)
        total = np.bincount(net.first, part[0], net.size) + np.bincount(
            net.second, part[1], net.size
        )
        share = net.weights / np.where(total > 0, total, 1.0)
        ends = np.stack([net.first, net.second])
        return np.where(total[ends] > 0, part * share[ends], even)

    def _over(self, part: Any, square: Any, weight: Any) -> Any:
        """Return the cone ``part ** 2 <= square * weight``, entry by entry."""
        cp = self.cp
        return cp.SOC(square + weight, cp.vstack([2 * part, square - weight]), axis=0)

    def _run(self, problem: Any) -> Status:
        """Solve and translate the status."""
        options: dict[str, Any] = {}
        if self.time_limit is not None:
            left = self.time_limit - (time.perf_counter() - self.began)
            options["time_limit"] = max(left, 1e-3)
        cp = self.cp
        with warnings.catch_warnings():
            # The status says the same.
            warnings.simplefilter("ignore")
            try:
                problem.solve(solver=cp.CLARABEL, **options)
            except cp.error.SolverError:
                return Status.STALLED
        if problem.status == cp.OPTIMAL:
            return Status.CONVERGED
        return Status.TIME_LIMIT if problem.status == cp.USER_LIMIT else Status.STALLED


def _ends(constraints: tuple[Any, Any]) -> Floats:
    """Return the multipliers at both ends."""
    return np.stack([np.asarray(c.dual_value, dtype=np.float64) for c in constraints])


def _moments(*parts: Any) -> Floats:
    """Return the second moment of both ends in the mixture of every edge."""
    u1, u2, v1, v2, q, z1, z2 = (np.asarray(p.value) for p in parts)

    def over(part: Floats, weight: Floats) -> Floats:
        return np.where(weight > TINY, part**2 / np.maximum(weight, TINY), 0.0)

    return np.stack([over(u1, z1 - q) + over(v1, q), over(u2, z2 - q) + over(v2, q)])


def _iterate(model: _Model, max_rounds: int) -> tuple[_Point, dict[str, Measure]]:
    """Improve the split of the fit among edges and solve again.

    The bound is concave in the split, and second moments are its slopes: weight goes to the edges
    where the moment is larger. A split that gains nothing is dropped and half the step is tried.
    """
    net = model.network
    split = model.even_split()
    best = model.solve("pair", split)
    first_bound, rounds, power = best.bound, 0, 1.0
    while rounds < max_rounds and best.status is Status.CONVERGED:
        moments = best.moments
        if moments is None:
            break
        limit = model.time_limit
        if limit is not None and time.perf_counter() - model.began > limit:
            best = replace(best, status=Status.TIME_LIMIT)
            break
        rounds += 1
        moved = split * (moments + TINY) ** power
        fresh = model._read_split(moved, split)
        found = model.solve("pair", fresh)
        gain = found.bound - best.bound
        if gain <= 0:
            if power < 0.1:
                break
            power /= 2
            continue
        best, split, power = found, fresh, min(2 * power, MOST_POWER)
        if gain <= GAIN * abs(found.bound):
            break
    return best, {"rounds": rounds, "first_bound": first_bound, "n_edges": net.edges.size}


def load_cvxpy() -> Any:
    """Return the package cvxpy, or say what to install."""
    try:
        import cvxpy
    except ImportError as error:
        raise IncompatibleError(
            "Convexifications need the packages cvxpy and clarabel, which are not installed.",
            "Install them with `pip install 'ellzero[convex]'`.",
        ) from error
    return cvxpy
