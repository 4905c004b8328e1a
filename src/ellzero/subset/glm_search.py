"""Search over subsets for losses of linear predictors, by quadratic models and exact refits.

What is chosen is called a unit: one column of the table, or a group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.kernels import glm_newton
from ellzero.subset.glm_design import AbstractDesign, RowsDesign
from ellzero.subset.glm_losses import AbstractLoss, Fit, Terms, separates
from ellzero.subset.glm_prices import Leaving, Moves, Units, measure, rank
from ellzero.subset.results import Floats

# Decrease that counts, relative to the value.
LEAST = 1e-9
# Units up to which all of them are priced in float64.
FEW = 160
# Numbers that the states that are kept may hold.
MEMORY = 2**24


class Separated(Exception):
    """The loss has no minimizer on a support that is better than all others."""

    def __init__(self, units: tuple[int, ...]) -> None:
        self.units = units
        super().__init__()


class Stopped(Exception):
    """There is no time left, or the callback asked to stop."""


@dataclass(frozen=True, slots=True)
class State:
    """Chosen units, their columns as rows after the constant one, and the minimizer on them."""

    units: tuple[int, ...]
    rows: Floats
    fit: Fit
    inverse: Floats

    @property
    def value(self) -> float:
        """Objective."""
        return self.fit.value

    @property
    def key(self) -> frozenset[int]:
        """The units, whatever their order."""
        return frozenset(self.units)


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be chosen.

    Parameters
    ----------
    ridge, lower, upper : ndarray of shape (n_features,)
        Ridge and bounds of every column, as the user sees it.
    fit_intercept : bool
        Whether there is a constant column.
    always : frozenset of int
        Units that every support contains.
    open : ndarray of shape (n_units,), bool
        Units that may be chosen.
    """

    ridge: Floats
    lower: Floats
    upper: Floats
    fit_intercept: bool
    always: frozenset[int]
    open: NDArray[np.bool_]


class Search:
    """One search: data, loss, rules, and what was seen so far.

    Parameters
    ----------
    design : AbstractDesign
        Columns.
    loss : AbstractLoss
        Loss.
    units : Units
        What is chosen.
    rules : Rules
        What may be chosen.
    trials : int
        Exchanges with the best prices that are solved.
    goes_on : callable
        Raises `Stopped` when the search has to end.
    """

    def __init__(
        self,
        design: AbstractDesign,
        loss: AbstractLoss,
        units: Units,
        rules: Rules,
        *,
        trials: int,
        goes_on: Callable[[], None],
    ) -> None:
        self.design = design
        self.loss = loss
        self.units = units
        self.rules = rules
        self.trials = trials
        self.goes_on = goes_on
        self.offset = int(rules.fit_intercept)
        self.ridge = rules.ridge / np.square(design.scale)
        self.lower = rules.lower * design.scale
        self.upper = rules.upper * design.scale
        self.bounded = bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())
        self.counts = {"scans": 0, "refits": 0, "swaps": 0, "kicks": 0}
        self.optima: set[frozenset[int]] = set()
        self._rows: dict[int, Floats] = {}
        self._states: dict[frozenset[int], State] = {}
        self._above: dict[frozenset[int], float] = {}
        small = design.n_features <= FEW and design.n_features * design.n_samples <= MEMORY
        if small and not isinstance(design, RowsDesign):
            self.design = RowsDesign(design, np.arange(design.n_features))
        self._few = units.members is None and isinstance(self.design, RowsDesign)
        # Units on which the loss has no minimizer, with its infimum.
        self.receding: dict[frozenset[int], float] = {}
        # The best share of the largest score that every unit had in a scan.
        self.interest = np.zeros(units.count)

    # States ------------------------------------------------------------------------------------

    def unit_rows(self, unit: int) -> Floats:
        """Return the columns of a unit as rows."""
        found = self._rows.get(unit)
        if found is None:
            if len(self._rows) * self.design.n_samples > MEMORY:
                self._rows.clear()
            found = self.design.rows(self.units.columns(unit))
            self._rows[unit] = found
        return found

    def _terms(self, units: Sequence[int]) -> Terms:
        index = self.units.join(units)
        pad = np.zeros(self.offset)
        return Terms(
            np.concatenate([pad, self.ridge[index]]),
            np.concatenate([pad - np.inf, self.lower[index]]),
            np.concatenate([pad + np.inf, self.upper[index]]),
        )

    def null(self) -> State:
        """Return the state of the units that are always in."""
        start = np.zeros((self.offset, self.loss.n_outputs))
        if self.offset:
            start[0] = self.loss.constant()
        rows = np.ones((self.offset, self.design.n_samples))
        fit = self.loss.minimize(rows, self._terms(()), start)
        self.loss.floor = 1e-17 * abs(fit.value)
        units = tuple(sorted(self.rules.always))
        rows = np.concatenate([rows, *(self.unit_rows(u) for u in units)])
        start = np.zeros((rows.shape[0], self.loss.n_outputs))
        start[: self.offset] = fit.beta
        found = self._refit(units, rows, start, np.inf)
        assert found is not None
        return found

    def _refit(
        self, units: tuple[int, ...], rows: Floats, start: Floats, stop: float
    ) -> State | None:
        """Return the state on some units, or None when its value is not below `stop`."""
        key = frozenset(units)
        known = self._states.get(key)
        if known is not None:
            return known if known.value < stop else None
        if stop <= self._above.get(key, -np.inf):
            return None
        if units != tuple(sorted(self.rules.always)):
            # Without the first state there is nothing to return.
            self.goes_on()
        self.counts["refits"] += 1
        terms = self._terms(units)
        fit = self.loss.minimize(rows, terms, start, stop)
        ends = fit.status == glm_newton.SEPARATED or (fit.is_far and fit.value < stop)
        if ends and self._recedes(units, rows, terms):
            if fit.status == glm_newton.SEPARATED or not units or key <= self.rules.always:
                # Nothing can be lower.
                raise Separated(units)
            # What others have to be compared with in the end.
            self.receding[key] = fit.value
            return None
        if fit.status == glm_newton.ABORTED or not fit.value < stop:
            self._above[key] = stop
            return None
        if self.bounded:
            idle = self._idle(units, fit)
            if idle.any():
                # At a bound of zero a unit is not in use: its place is free.
                keep = np.concatenate([[True] * self.offset, ~self._per_row(units, idle)])
                rest = tuple(u for u, out in zip(units, idle, strict=True) if not out)
                found = self._refit(rest, rows[keep], fit.beta[keep], stop)
                if found is None:
                    self._above[key] = stop
                return found
        state = State(units, rows, fit, fit.inverse)
        if (1 + len(self._states)) * (rows.size + 3 * rows.shape[1]) > MEMORY:
            self._states.clear()
        self._states[key] = state
        return state

    def _recedes(self, units: tuple[int, ...], rows: Floats, terms: Terms) -> bool:
        """Return whether the loss falls for ever on some units."""
        loose = terms.ridge == 0
        if not loose[self.offset :].any():
            return False
        if not self.bounded and any(known <= set(units) for known in self.receding):
            return True
        return bool(separates(self.loss, rows, terms, loose))

    def _per_row(self, units: Sequence[int], values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, self.units.sizes[list(units)])

    def _idle(self, units: Sequence[int], fit: Fit) -> NDArray[np.bool_]:
        """Return the units that may leave because their coefficients are zero."""
        place = np.repeat(np.arange(len(units)), self.units.sizes[list(units)])
        used = np.zeros(len(units), np.bool_)
        used[place[(fit.beta[self.offset :] != 0).any(axis=1)]] = True
        return ~used & np.array([u not in self.rules.always for u in units], np.bool_)

    # Moves -------------------------------------------------------------------------------------

    def _allowed(self, state: State, banned: frozenset[int]) -> NDArray[np.bool_]:
        allowed = self.rules.open.copy()
        allowed[list(state.units)] = False
        if banned:
            allowed[list(banned)] = False
        return allowed

    def _note(self, score: NDArray[Any]) -> None:
        top = score.max(initial=0.0)
        if top > 0:
            np.maximum(self.interest, score / top, out=self.interest)

    def _leaving(self, state: State) -> Leaving:
        sizes = None if self.units.single else self.units.sizes[list(state.units)]
        return Leaving.of(state.inverse, state.fit.beta, sizes, self.offset)

    def _measure(self, state: State, short: NDArray[np.int64]) -> Moves:
        index = self.units.join(short)
        limits = (self.lower[index], self.upper[index]) if self.bounded else None
        if self._few:
            assert isinstance(self.design, RowsDesign)
            rows = self.design.all
        else:
            rows = np.concatenate([self.unit_rows(int(u)) for u in short])
        return measure(
            rows,
            None if self.units.single else self.units.sizes[short],
            self.ridge[index],
            limits,
            state.rows,
            state.fit,
            state.inverse,
        )

    def grow(
        self, state: State, banned: frozenset[int] = frozenset(), skip: int = 0
    ) -> State | None:
        """Return the state with one more unit, or None when none lowers the value.

        The first `skip` in the order of prices are left out where there are others.
        """
        self.counts["scans"] += 1
        allowed = self._allowed(state, banned)
        if self._few:
            short = np.arange(self.units.count)
        else:
            slope = self.design.products(state.fit.residual)
            curvature = self.design.squares(state.fit.curvature) + self.ridge
            score = np.where(allowed, self.units.gains(slope, curvature), 0.0)
            self._note(score)
            short = rank(score, allowed)
        if not allowed.any():
            return None
        moves = self._measure(state, short)
        gain = np.where(allowed[short], moves.additions(), -np.inf)
        best: State | None = None
        order = np.argsort(-gain, kind="stable")
        skip = min(skip, max(0, int((gain > 0).sum()) - 1))
        order = order[skip : skip + 10]
        for n, place in enumerate(order):
            if n >= 3 and (best is not None or not self.receding):
                break
            # Only those whose price is near the best.
            if not gain[place] > 0 or (best is not None and gain[place] < 0.8 * gain[order[0]]):
                break
            rows, move, H = moves.added(int(place))
            start = np.concatenate([state.fit.beta - H.T @ move, move])
            stop = state.value if best is None else best.value
            found = self._refit(
                (*state.units, int(short[place])), np.concatenate([state.rows, rows]), start, stop
            )
            best = best if found is None else found
        return best

    def drop(self, state: State, *positions: int) -> State:
        """Return the state without the units at some positions."""
        out = sorted(positions)
        units = tuple(u for a, u in enumerate(state.units) if a not in out)
        leaving = self._leaving(state)
        start, keep = leaving.without(out, state.fit.beta), leaving.kept(out)
        found = self._refit(units, state.rows[keep], start[keep], np.inf)
        assert found is not None
        return found

    def drop_costs(self, state: State) -> Floats:
        """Return the price of leaving out each unit; infinite for those that are always in."""
        cost = self._leaving(state).cost / 2
        cost[[u in self.rules.always for u in state.units]] = np.inf
        return cost

    def shrink(self, state: State) -> State | None:
        """Return the best state with one unit less, of the three cheapest; None without any."""
        cost = self.drop_costs(state)
        best: State | None = None
        for place in np.argsort(cost, kind="stable")[:3]:
            if np.isfinite(cost[place]):
                found = self.drop(state, int(place))
                if best is None or found.value < best.value:
                    best = found
        return best

    def swap(self, state: State, trials: int | None = None) -> State | None:
        """Return a better state that differs in one unit, or None when none was found."""
        self.counts["scans"] += 1
        leaving = self._leaving(state)
        cost = 2 * self.drop_costs(state)
        allowed = self._allowed(state, frozenset())
        if not allowed.any():
            return None
        if self._few:
            short = np.arange(self.units.count)
        else:
            short = self._shortlist(state, leaving, cost, allowed)
        moves = self._measure(state, short)
        table = moves.swaps(leaving) - cost
        table[~allowed[short]] = -np.inf
        best: State | None = None
        floor = state.value - LEAST * abs(state.value)
        order = np.argsort(-table, axis=None, kind="stable")[: trials or self.trials]
        for n, place in enumerate(order):
            a, i = divmod(int(place), table.shape[1])
            # Prices are not so far off.
            if not table[a, i] > -0.7 * cost[i]:
                break
            rows, move, H = moves.swapped(a, i, leaving)
            start = leaving.without([i], state.fit.beta) - H.T @ move
            keep = leaving.kept([i])
            found = self._refit(
                (*state.units[:i], *state.units[i + 1 :], int(short[a])),
                np.concatenate([state.rows[keep], rows]),
                np.concatenate([start[keep], move]),
                floor,
            )
            if found is not None:
                best, floor = found, found.value
            if best is not None and n + 1 < order.size:
                # What the next one promises is not much more than what is at hand.
                ahead = table.flat[order[n + 1]] / 2
                if state.value - best.value >= 0.5 * ahead:
                    break
        if best is not None:
            self.counts["swaps"] += 1
        return best

    def _shortlist(
        self, state: State, leaving: Leaving, cost: Floats, allowed: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Return the units with the best exchanges, by prices in float32."""
        k = state.rows.shape[0]
        products = self.design.products(
            np.concatenate([state.rows * state.fit.curvature, state.fit.residual])
        )
        curvature = self.design.squares(state.fit.curvature) + self.ridge
        gain = self.units.swap_gains(products[:k], products[k:], curvature, state.inverse, leaving)
        # Before the cost of leaving, nothing is negative.
        share = np.where(allowed, (gain / cost).max(axis=1), 0.0)
        self._note(share)
        return rank((gain - cost).max(axis=1), allowed)

    def descend(self, state: State, trials: int | None = None) -> State:
        """Return the state that no exchange among those solved improves."""
        while len(state.units) > len(self.rules.always):
            if trials is None and state.key in self.optima:
                break
            better = self.swap(state, trials)
            if better is None:
                self.optima.add(state.key)
                break
            state = better
        return state

    def fill(self, state: State, size: int) -> State:
        """Return the state after growing to a size, or as far as that helps."""
        while len(state.units) < size:
            grown = self.grow(state)
            if grown is None:
                break
            state = grown
        return state

    def restrict(self, units: NDArray[np.int64]) -> Search:
        """Return the search among some units, which get new numbers."""
        index = self.units.join(units)
        design = RowsDesign(self.design, index)
        rules = Rules(
            self.rules.ridge[index],
            self.rules.lower[index],
            self.rules.upper[index],
            self.rules.fit_intercept,
            frozenset(np.flatnonzero(np.isin(units, list(self.rules.always))).tolist()),
            self.rules.open[units],
        )
        inner = Search(
            design,
            self.loss,
            self.units.restrict(units, design),
            rules,
            trials=self.trials,
            goes_on=self.goes_on,
        )
        inner.counts = self.counts
        here = {int(u): a for a, u in enumerate(units)}
        inner.receding = {
            frozenset(here[u] for u in key): value
            for key, value in self.receding.items()
            if all(u in here for u in key)
        }
        return inner

    def learn(self, inner: Search, units: NDArray[np.int64]) -> None:
        """Take over where a search among some units found that there is no minimizer."""
        for key, value in inner.receding.items():
            self.receding[frozenset(int(units[u]) for u in key)] = value

    def adopt(self, state: State, units: NDArray[np.int64]) -> State:
        """Return a state of a search among some units as one of this search."""
        moved = State(
            tuple(int(units[u]) for u in state.units), state.rows, state.fit, state.inverse
        )
        return self._states.setdefault(moved.key, moved)

    def kick(self, state: State, amount: int, skip: int, generator: np.random.Generator) -> State:
        """Return the local optimum after some units were replaced.

        The first one that enters may be any of the best `skip` + 1.
        """
        self.counts["kicks"] += 1
        target = len(state.units)
        cost = self.drop_costs(state)
        # Ranked by price, so that the order of the columns does not matter.
        ranked = np.argsort(cost, kind="stable")[: int(np.isfinite(cost).sum())]
        chosen = generator.choice(ranked, amount, replace=False)
        leaving = [state.units[a] for a in chosen]
        state = self.drop(state, *chosen.tolist())
        for step in range(amount):
            other = int(generator.integers(skip + 1)) if step == 0 else 0
            grown = self.grow(state, frozenset(leaving), other)
            if grown is None:
                break
            state = grown
        return self.descend(self.fill(state, target))
