"""Search over subsets for losses of linear predictors, by quadratic models and exact refits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.subset.glm_design import AbstractDesign
from ellzero.subset.glm_losses import AbstractLoss, Fit, Terms
from ellzero.subset.results import Floats, Integers

# Columns whose prices are computed again in float64.
SHORTLIST = 32
# Decrease that counts, relative to the value.
LEAST = 1e-9
# Share of the curvature of a column that must lie outside the span of the support.
PIVOT = 1e-9


class Separated(Exception):  # noqa: N818 - caught by the facade
    """A support on which the loss has no minimizer is the best one."""

    def __init__(self, columns: Integers) -> None:
        self.columns = columns
        super().__init__()


class OutOfTime(Exception):  # noqa: N818 - caught inside the search
    """The time limit has passed, or the callback asked to stop."""


@dataclass(frozen=True, slots=True)
class State:
    """A support, its columns as rows after the constant one, and the minimizer on them."""

    columns: tuple[int, ...]
    rows: Floats
    fit: Fit
    inverse: Floats

    @property
    def value(self) -> float:
        """Objective."""
        return self.fit.value


@dataclass(frozen=True, slots=True)
class Settings:
    """How hard to search."""

    trials: int = 6
    kicks: int = 40
    patience: int = 6
    population: int = 4
    sweeps: int = 3


class Search:
    """One search: data, loss, rules, and all that was seen so far."""

    def __init__(
        self,
        design: AbstractDesign,
        loss: AbstractLoss,
        *,
        ridge: float,
        fit_intercept: bool,
        always: Integers,
        forbidden: Integers,
        lower: Floats,
        upper: Floats,
        settings: Settings,
        exists: Callable[[Integers], bool],
        goes_on: Callable[[], bool] = lambda: True,
    ) -> None:
        p = design.n_features
        self.design = design
        self.loss = loss
        self.offset = int(fit_intercept)
        self.ridge = ridge / np.square(design.scale)
        self.lower = lower * design.scale
        self.upper = upper * design.scale
        self.always = frozenset(always.tolist())
        self.open = design.usable.copy()
        self.open[forbidden] = False
        self.settings = settings
        self.exists = exists
        self.goes_on = goes_on
        self.counts = {"scans": 0, "refits": 0, "swaps": 0, "kicks": 0}
        self._cache: dict[int, Floats] = {}
        self._known: dict[frozenset[int], State] = {}
        self.done: set[frozenset[int]] = set()
        self._p = p

    # States ------------------------------------------------------------------------------------

    def _row(self, column: int) -> Floats:
        found = self._cache.get(column)
        if found is None:
            if len(self._cache) * self.design.n_samples > 2**24:
                self._cache.clear()
            found = self.design.rows(np.array([column]))[0]
            self._cache[column] = found
        return found

    def _terms(self, columns: Iterable[int]) -> Terms:
        index = np.fromiter(columns, np.int64)
        pad = np.zeros(self.offset)
        return Terms(
            np.concatenate([pad, self.ridge[index]]),
            np.concatenate([pad - np.inf, self.lower[index]]),
            np.concatenate([pad + np.inf, self.upper[index]]),
        )

    def null(self) -> State:
        """Return the state of the columns that are always in."""
        columns = tuple(sorted(self.always))
        rows = np.ones((self.offset + len(columns), self.design.n_samples))
        for a, j in enumerate(columns):
            rows[self.offset + a] = self._row(j)
        start = np.zeros((rows.shape[0], self.loss.n_outputs))
        found = self._refit(columns, rows, start, np.inf)
        assert found is not None
        return found

    def _refit(
        self, columns: tuple[int, ...], rows: Floats, start: Floats, stop: float
    ) -> State | None:
        """Return the state on some columns, or None when its value is not below `stop`."""
        if not self.goes_on():
            raise OutOfTime
        key = frozenset(columns)
        known = self._known.get(key)
        if known is not None:
            return known if known.value < stop else None
        self.counts["refits"] += 1
        fit = self.loss.minimize(rows, self._terms(columns), start, stop)
        if not fit.value < stop or fit.status == 1:
            return None
        if fit.is_far and not self.exists(np.array(sorted(columns))):
            raise Separated(np.array(sorted(columns)))
        state = State(columns, rows, fit, _inverse(fit.hessian))
        if len(self._known) > 256:
            self._known.clear()
        self._known[key] = state
        return state

    # Prices ------------------------------------------------------------------------------------

    def _candidates(self, state: State, banned: frozenset[int]) -> NDArray[np.bool_]:
        allowed = self.open.copy()
        allowed[list(state.columns)] = False
        if banned:
            allowed[list(banned)] = False
        return allowed

    def _measure(self, state: State, columns: Integers) -> tuple[Floats, Floats, Floats, Floats]:
        """Return rows, products with the residual, and H and d of columns, in float64."""
        rows = np.stack([self._row(int(j)) for j in columns])
        weighted = rows * state.fit.curvature
        slope = rows @ state.fit.residual
        diagonal = np.einsum("jn,jn->j", weighted, rows) + self.ridge[columns]
        cross = weighted @ state.rows.T
        H = cross @ state.inverse
        d = diagonal - np.einsum("jk,jk->j", cross, H)
        d[d <= PIVOT * diagonal] = np.inf
        return rows, slope, H, d

    def grow(self, state: State, banned: frozenset[int] = frozenset()) -> State | None:
        """Return the state with one more column, or None when no column helps."""
        self.counts["scans"] += 1
        slope = self.design.products(state.fit.residual.T)
        score = np.square(slope).sum(1) / (self.design.squares(state.fit.curvature) + self.ridge)
        score[~self._candidates(state, banned)] = -1.0
        short = _largest(score, SHORTLIST)
        short = short[score[short] > 0]
        if short.size == 0:
            return None
        rows, exact, H, d = self._measure(state, short)
        gain = np.square(exact).sum(1) / d
        order = np.argsort(-gain, kind="stable")[:3]
        best: State | None = None
        for a in order:
            if gain[a] <= 0:
                break
            move = exact[a] / d[a]
            start = np.vstack([state.fit.beta - np.outer(H[a], move), move])
            stop = state.value if best is None else best.value
            found = self._refit(
                (*state.columns, int(short[a])), np.vstack([state.rows, rows[a]]), start, stop
            )
            if found is not None:
                best = found
        return best

    def _drop_costs(self, state: State) -> Floats:
        """Return the price of leaving each column out, by the quadratic model."""
        g = state.inverse.diagonal()[self.offset :]
        cost = 0.5 * np.square(state.fit.beta[self.offset :]).sum(1) / g
        for a, j in enumerate(state.columns):
            if j in self.always:
                cost[a] = np.inf
        return np.asarray(cost)

    def drop(self, state: State, position: int) -> State:
        """Return the state without the column at a position."""
        a = position + self.offset
        keep = np.arange(state.rows.shape[0]) != a
        start = state.fit.beta - np.outer(
            state.inverse[:, a] / state.inverse[a, a], state.fit.beta[a]
        )
        columns = state.columns[:position] + state.columns[position + 1 :]
        found = self._refit(columns, state.rows[keep], start[keep], np.inf)
        assert found is not None
        return found

    def shrink(self, state: State) -> State:
        """Return the best state with one column less, among the cheapest few."""
        cost = self._drop_costs(state)
        best: State | None = None
        for a in np.argsort(cost, kind="stable")[:3]:
            if not np.isfinite(cost[a]):
                break
            found = self.drop(state, int(a))
            if best is None or found.value < best.value:
                best = found
        assert best is not None
        return best

    def swap(self, state: State) -> State | None:
        """Return a better state that differs in one column, or None."""
        offset, k = self.offset, len(state.columns)
        self.counts["scans"] += 1
        beta = state.fit.beta[offset:]
        g = state.inverse.diagonal()[offset:]
        vectors = np.vstack([state.rows * state.fit.curvature, state.fit.residual.T])
        products = self.design.products(vectors)
        cross, slope = products[:, : offset + k], products[:, offset + k :]
        diagonal = self.design.squares(state.fit.curvature) + self.ridge
        H = cross @ state.inverse
        d = np.maximum(diagonal - np.einsum("jk,jk->j", cross, H), 1e-5 * diagonal)
        cost = 2 * self._drop_costs(state)
        gain = _swap_gains(slope, H[:, offset:], d, beta, g, cost)
        gain[~self._candidates(state, frozenset())] = -np.inf
        short = _largest(gain.max(axis=1), SHORTLIST)
        short = short[np.isfinite(gain[short].max(axis=1))]
        if short.size == 0:
            return None
        rows, exact, H, d = self._measure(state, short)
        gain = _swap_gains(exact, H[:, offset:], d, beta, g, cost)
        order = np.argsort(-gain, axis=None, kind="stable")[: self.settings.trials]
        best: State | None = None
        floor = state.value - LEAST * abs(state.value)
        for n, place in enumerate(order):
            a, i = divmod(int(place), k)
            if not np.isfinite(gain[a, i]):
                break
            found = self._exchange(state, i, int(short[a]), rows[a], exact[a], H[a], d[a], floor)
            if found is not None:
                best, floor = found, found.value
            if best is not None and n + 1 < order.size:
                ahead = gain.flat[order[n + 1]] / 2
                if state.value - best.value >= 0.5 * ahead:
                    break
        if best is not None:
            self.counts["swaps"] += 1
        return best

    def _exchange(
        self,
        state: State,
        position: int,
        column: int,
        row: Floats,
        slope: Floats,
        H: Floats,
        d: float,
        stop: float,
    ) -> State | None:
        a = position + self.offset
        lean = state.inverse[:, a] / state.inverse[a, a]
        out = state.fit.beta[a]
        move = (slope + H[a] * out / state.inverse[a, a]) / (
            d + H[a] ** 2 / state.inverse[a, a]
        )
        start = state.fit.beta - np.outer(lean, out) - np.outer(H - H[a] * lean, move)
        start[a] = move
        rows = state.rows.copy()
        rows[a] = row
        columns = list(state.columns)
        columns[position] = column
        return self._refit(tuple(columns), rows, start, stop)

    def descend(self, state: State) -> State:
        """Return the state that no priced exchange improves."""
        while True:
            key = frozenset(state.columns)
            if key in self.done or len(state.columns) == len(self.always):
                return state
            better = self.swap(state)
            if better is None:
                self.done.add(key)
                return state
            state = better

    def kick(self, state: State, size: int, generator: np.random.Generator) -> State:
        """Return the local optimum after some columns were replaced."""
        self.counts["kicks"] += 1
        target = len(state.columns)
        # Ranked by price, so that the order of the columns does not matter.
        ranked = np.argsort(self._drop_costs(state), kind="stable")
        ranked = ranked[: target - len(self.always)]
        weights = 1.0 / (1.0 + np.arange(ranked.size))
        chosen = generator.choice(ranked, size, replace=False, p=weights / weights.sum())
        leaving = frozenset(state.columns[a] for a in chosen)
        for j in leaving:
            state = self.drop(state, state.columns.index(j))
        while len(state.columns) < target:
            grown = self.grow(state, leaving)
            if grown is None:
                grown = self.grow(state)
                if grown is None:
                    return state
            state = grown
        return self.descend(state)


def _swap_gains(
    slope: NDArray[Any],
    H: NDArray[Any],
    d: NDArray[Any],
    beta: Floats,
    g: Floats,
    cost: Floats,
) -> NDArray[Any]:
    """Return twice the decrease by every exchange, (entering, leaving), in the quadratic model."""
    gain = np.zeros(H.shape)
    for m in range(beta.shape[1]):
        gain += np.square(slope[:, m, None] + H * (beta[:, m] / g))
    gain /= d[:, None] + np.square(H) / g
    gain -= cost
    return gain


def _largest(score: NDArray[Any], count: int) -> Integers:
    """Return where the largest scores are, the largest first, ties by position."""
    if score.size > 4 * count:
        level = np.partition(score, score.size - count)[score.size - count]
        places = np.flatnonzero(score >= level)
    else:
        places = np.arange(score.size)
    return places[np.argsort(-score[places], kind="stable")][:count]


def _inverse(hessian: Floats) -> Floats:
    """Return the inverse of a positive matrix; directions without curvature count for little."""
    size = np.sqrt(hessian.diagonal())
    size = np.where(size > 0, size, 1.0)
    unit = hessian / np.outer(size, size)
    try:
        out = np.linalg.inv(unit)
        if not (np.isfinite(out).all() and (out.diagonal() > 0).all()):
            raise np.linalg.LinAlgError
    except np.linalg.LinAlgError:
        out = np.linalg.pinv(unit + 1e-10 * np.eye(unit.shape[0]), hermitian=True)
    return np.asarray(out / np.outer(size, size))


def search_sizes(search: Search, sizes: list[int]) -> dict[int, State]:
    """Return the best state found for every size; fewer sizes when time runs out."""
    best: dict[int, State] = {}

    def record(state: State) -> bool:
        size = len(state.columns)
        better = size not in best or state.value < best[size].value * (1 - LEAST)
        if size not in best or state.value < best[size].value:
            best[size] = state
        return better

    wanted = set(sizes)
    largest = max(sizes)
    try:
        state = search.null()
        record(state)
        while len(state.columns) < largest:
            grown = search.grow(state)
            if grown is None:
                break
            state = grown
            if len(state.columns) in wanted:
                state = search.descend(state)
            record(state)
        for size in sorted(wanted & set(best)):
            _improve(search, best, size, record)
    except OutOfTime:
        pass
    return best


def _improve(
    search: Search, best: dict[int, State], size: int, record: Callable[[State], bool]
) -> None:
    """Kick the best state of a size until nothing new comes."""
    settings = search.settings
    free = size - len(search.always)
    if free <= 0:
        return
    generator = np.random.default_rng(size)
    idle = 0
    for n in range(settings.kicks):
        amount = min(free, 1 + n % max(1, min(4, free // 2)))
        found = search.kick(best[size], amount, generator)
        if len(found.columns) == size and record(found):
            idle = 0
        else:
            idle += 1
        if idle >= settings.patience:
            break


def clock(time_limit: float | None) -> Callable[[], bool]:
    """Return a function that tells whether there is time left."""
    if time_limit is None:
        return lambda: True
    end = time.perf_counter() + time_limit
    return lambda: time.perf_counter() < end
