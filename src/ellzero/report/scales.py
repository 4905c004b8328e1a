"""Ticks at round numbers, and maps from numbers to positions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


def nice_step(span: float, count: int) -> float:
    """Return the 1, 2 or 5 times a power of ten that cuts `span` into at most `count` steps."""
    raw = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    for factor in (1.0, 2.0, 5.0):
        if factor * power >= raw * (1.0 - 1e-9):
            return factor * power
    return 10.0 * power


def nice_ticks(low: float, high: float, count: int = 5, *, integer: bool = False) -> list[float]:
    """Return round numbers that cover [low, high] with at most about `count` steps.

    Examples
    --------
    >>> nice_ticks(0.03, 0.97)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> nice_ticks(1, 15, 5, integer=True)
    [0.0, 5.0, 10.0, 15.0]
    """
    if high <= low:
        half = 0.1 * abs(low) if low else 1.0
        low, high = low - half, high + half
        if integer:
            low, high = math.floor(low), math.ceil(high)
    step = nice_step(high - low, count)
    if integer:
        step = max(1.0, step)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    # Multiples of the step, rounded to its decimals: adding steps would print 0.30000000000000004.
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(i * step, decimals) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return powers of ten inside [low, high] > 0; 1, 2, 5 that cover a narrow span."""
    first = math.floor(math.log10(low) + 1e-9)
    last = math.ceil(math.log10(high) - 1e-9)
    if last - first <= 2:
        grid = [f * 10.0**e for e in range(first, last + 1) for f in (1.0, 2.0, 5.0)]
        below = max((t for t in grid if t <= low * (1 + 1e-9)), default=grid[0])
        above = min((t for t in grid if t >= high * (1 - 1e-9)), default=grid[-1])
        inside = [t for t in grid if below <= t <= above]
        if len(inside) > 1:
            return inside
        return [inside[0] / 10.0, inside[0], inside[0] * 10.0]
    # Wide spans keep the data's own ends: rounding them out could add decades of nothing.
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    step = math.ceil((last - first) / count)
    return sorted(10.0**e for e in range(last, first - 1, -step))


def tick_label(value: float, ticks: list[float], *, log: bool = False, pct: bool = False) -> str:
    """Return the label of one tick, with the decimals that the steps need."""
    if log:
        if 1e-3 <= value < 1e5:
            return f"{value:g}"
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    if pct:
        value, step = 100.0 * value, 100.0 * step
    largest = max(abs(ticks[0]), abs(ticks[-1])) * (100.0 if pct else 1.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return "0" if value == 0 else f"{value:.3g}".replace("-", "−")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}".replace("-", "−") + ("%" if pct else "")


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from [low, high] to positions [start, end], straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of `value`."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + share * (self.end - self.start)


def extent(values: Iterable[float | None], *, log: bool = False) -> tuple[float, float]:
    """Return the least and largest finite value; (0, 1) when there is none, (1, 10) for logs."""
    found = [v for v in values if v is not None and math.isfinite(v) and (not log or v > 0)]
    if not found:
        return (1.0, 10.0) if log else (0.0, 1.0)
    return min(found), max(found)
