"""The penalized problem of splines with few knots, by an interior point with 7 diagonals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

Floats = NDArray[np.float64]
MAX_ITER = 100
BAND = 3
# Its functions are made at import, where type checkers do not see them.
_LAPACK: Any = lapack


@dataclass(frozen=True, slots=True)
class HatProgram:
    """Problem min x'Gx / 2 - right'x + level R(x) over values x of a spline at its knots.

    Parameters
    ----------
    knots : ndarray of shape (m,)
        Increasing; m at least 2.
    diagonal : ndarray of shape (m,)
        Diagonal of G, positive.
    beside : ndarray of shape (m - 1,)
        Off-diagonal of G.
    right : ndarray of shape (m,)
        Right-hand side.
    level : float
        Penalty.

    Notes
    -----
    R(x) is the largest of phi_1 s_1 + sum_k phi_k (s_k - s_{k-1}), s the slopes, over
    |phi_k| <= 1 and |phi_k - phi_1| <= 1; below, phi is scaled by the penalty, `end` is phi_1 and
    `phi` has the other m - 2.
    """

    knots: Floats
    diagonal: Floats
    beside: Floats
    right: Floats
    level: float

    def gram(self, x: Floats) -> Floats:
        """Return Gx."""
        out = self.diagonal * x
        out[:-1] += self.beside * x[1:]
        out[1:] += self.beside * x[:-1]
        return np.asarray(out)

    def kinks(self, x: Floats) -> tuple[float, Floats]:
        """Return the first slope and the kinks."""
        slopes = np.diff(x) / np.diff(self.knots)
        return float(slopes[0]), np.diff(slopes)

    def pull(self, end: float, phi: Floats) -> Floats:
        """Return the transpose of `kinks` at a dual point."""
        rises = np.diff(np.concatenate([[end], phi, [0.0]])) / np.diff(self.knots)
        return np.diff(rises, prepend=0.0, append=0.0)

    def scales(self) -> Floats:
        """Return what makes rows and columns of the matrix of `bands` of one size."""
        inverse = 1.0 / np.diff(self.knots)
        out = np.ones(2 * len(self.knots))
        out[2:-2:2] = 1.0 / (inverse[:-1] + inverse[1:])
        out[1::2] = 1.0 / np.sqrt(self.diagonal)
        return out

    def bands(self, scale: Floats) -> Floats:
        """Return what never changes of the matrix in (phi_1, x_1, phi_2, x_2, ...), as bands.

        The first and the last phi are no unknowns of it: their rows are those of the identity.
        """
        m = len(self.knots)
        out = np.zeros((3 * BAND + 1, 2 * m))
        inverse = 1.0 / np.diff(self.knots)

        def put(rows: NDArray[np.int64], columns: NDArray[np.int64], entries: Floats) -> None:
            out[2 * BAND + rows - columns, columns] = entries * scale[rows] * scale[columns]

        at, inner = 2 * np.arange(m) + 1, 2 * np.arange(1, m - 1)
        put(at, at, self.diagonal)
        put(at[:-1], at[1:], self.beside)
        put(at[1:], at[:-1], self.beside)
        bends = (inverse[:-1], -(inverse[:-1] + inverse[1:]), inverse[1:])
        for offset, entries in zip((-1, 1, 3), bends, strict=True):
            put(inner, inner + offset, entries)
            put(inner + offset, inner, entries)
        out[2 * BAND, [0, 2 * m - 2]] = 1.0
        return out


@dataclass(frozen=True, slots=True)
class _Point:
    """Values, dual point and the multipliers of |c| <= level for c = (phi, phi - end, end)."""

    x: Floats
    end: float
    phi: Floats
    upper: Floats
    lower: Floats

    @property
    def rows(self) -> Floats:
        """The c."""
        return np.concatenate([self.phi, self.phi - self.end, [self.end]])


def _back(rows: Floats) -> tuple[float, Floats]:
    """Return the transpose of the map from (end, phi) to c."""
    n = (len(rows) - 1) // 2
    return float(rows[-1] - rows[n:-1].sum()), rows[:n] + rows[n:-1]


class _Newton:
    """One factored Newton system; `end`, which every inequality sees, is a border."""

    def __init__(
        self, program: HatProgram, point: _Point, base: Floats, scale: Floats, center: float
    ) -> None:
        self.point, self.scale, self.center = point, scale, center
        rows = point.rows
        self.above, self.below = program.level - rows, program.level + rows
        self.pull_x = program.right - program.gram(point.x) - program.pull(point.end, point.phi)
        net_end, net = _back(point.upper - point.lower)
        slope, bends = program.kinks(point.x)
        self.pull_end, self.pull_phi = net_end - slope, net - bends
        stiff = point.upper / self.above + point.lower / self.below
        n = len(point.phi)
        matrix = base.copy()
        matrix[2 * BAND, 2:-2:2] = -(stiff[:n] + stiff[n:-1]) * scale[2:-2:2] ** 2
        border = np.zeros(2 * (n + 2))
        border[2:-2:2] = stiff[n:-1]
        border[1], border[3] = np.array([-1.0, 1.0]) / (program.knots[1] - program.knots[0])
        self.border = border * scale
        self.factors, self.pivots, self.failed = _LAPACK.dgbtrf(matrix, BAND, BAND)
        if not self.failed:
            self.through = self._solve(self.border)
            self.complement = -float(stiff[n:].sum()) - float(self.border @ self.through)

    def _solve(self, right: Floats) -> Floats:
        return np.asarray(_LAPACK.dgbtrs(self.factors, BAND, BAND, right, self.pivots)[0])

    def step(self, toward_up: Floats, toward_down: Floats) -> _Point:
        """Return the step at which multipliers times slacks change by the given amounts."""
        push_end, push_phi = _back(toward_up / self.above - toward_down / self.below)
        right = np.zeros(len(self.border))
        right[2:-2:2] = self.pull_phi + push_phi
        right[1::2] = self.pull_x
        solved = self._solve(right * self.scale)
        end = (self.pull_end + push_end - float(self.border @ solved)) / self.complement
        solved = (solved - self.through * end) * self.scale
        phi = solved[2:-2:2]
        rows = np.concatenate([phi, phi - end, [end]])
        up = (toward_up + self.point.upper * rows) / self.above
        down = (toward_down - self.point.lower * rows) / self.below
        return _Point(solved[1::2], end, phi, up, down)

    def reach(self, step: _Point) -> tuple[float, float]:
        """Return how far slacks and multipliers stay positive along a step, at most about 1."""
        rows = step.rows
        return (
            min(_reach(self.above, -rows), _reach(self.below, rows)),
            min(_reach(self.point.upper, step.upper), _reach(self.point.lower, step.lower)),
        )

    def direction(self) -> _Point:
        """Return Mehrotra's corrected step."""
        upper, lower = self.point.upper, self.point.lower
        first = self.step(-upper * self.above, -lower * self.below)
        slack, dual = self.reach(first)
        rows = first.rows
        ahead = float(
            (upper + dual * first.upper) @ (self.above - slack * rows)
            + (lower + dual * first.lower) @ (self.below + slack * rows)
        )
        share = max(ahead, 0.0) / (2 * len(rows)) / self.center
        aim = self.center * share**3
        return self.step(
            aim - upper * self.above + first.upper * rows,
            aim - lower * self.below - first.lower * rows,
        )


def solve_restricted(program: HatProgram) -> Floats:
    """Return the minimizer of a program.

    Parameters
    ----------
    program : HatProgram
        The program, with m knots.

    Returns
    -------
    ndarray of shape (m,)
        Values at the knots: to about 1e-13 of the right-hand side where rounding allows.

    Notes
    -----
    Newton's method on the optimality conditions in values and dual point, interleaved: 7
    diagonals and a border, O(m) a step, 10 to 20 steps.
    """
    m, level = len(program.knots), program.level
    size = max(float(np.abs(program.right).max()), 1e-300)
    n_rows = 2 * (m - 2) + 1
    start = np.full(n_rows, max(size, 1e-3))
    point = _Point(np.zeros(m), 0.0, np.zeros(m - 2), start, start)
    scale = program.scales()
    base = program.bands(scale)
    for _ in range(MAX_ITER):
        rows = point.rows
        if float(np.abs(rows).max()) >= level:
            break
        products = float(point.upper @ (level - rows) + point.lower @ (level + rows))
        newton = _Newton(program, point, base, scale, products / (2 * n_rows))
        slope, bends = program.kinks(point.x)
        value = level * (abs(slope) + float(np.abs(bends).sum()))
        value = max(0.5 * float(point.x @ program.right), value, 1e-300)
        distance = float(np.abs(newton.pull_x).max()) / size
        broken = max(abs(newton.pull_end), float(np.abs(newton.pull_phi).max(initial=0.0)))
        exact = distance <= 1e-13 and broken * level <= 1e-13 * value
        if newton.failed or products <= 1e-20 * value or (exact and products <= 1e-14 * value):
            break
        step = newton.direction()
        reach = min(0.995 * min(newton.reach(step)), 1.0)
        if not reach > 1e-9 or not np.isfinite(step.x).all():
            break
        point = _Point(
            point.x + reach * step.x,
            point.end + reach * step.end,
            point.phi + reach * step.phi,
            point.upper + reach * step.upper,
            point.lower + reach * step.lower,
        )
    return point.x


def _reach(values: Floats, steps: Floats) -> float:
    """Return the largest step in [0, 1 / 0.995] that keeps values from becoming negative."""
    falling = steps < 0
    ratio = float((values[falling] / -steps[falling]).min(initial=np.inf))
    return min(ratio, 1.0 / 0.995)
