"""Losses of two-layer networks, with their conjugates: what a residual proves."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, expit

from ellzero.validation import check_choice

Floats = NDArray[np.float64]


class AbstractLoss(ABC):
    """Mean loss of outputs f against targets y, and its conjugate."""

    @abstractmethod
    def value(self, outputs: Floats, y: Floats) -> float:
        """Return the mean loss."""

    @abstractmethod
    def residual(self, outputs: Floats, y: Floats) -> Floats:
        """Return minus the gradient, shape (n_samples,): the dual point of the outputs."""

    @abstractmethod
    def dual(self, point: Floats, y: Floats) -> float:
        """Return minus the conjugate of the loss at minus `point`; -inf where it is infinite."""

    @abstractmethod
    def best_scale(self, point: Floats, y: Floats, largest: float) -> float:
        """Return t in [0, largest] at which `dual(t * point)` is largest."""

    @abstractmethod
    def balance(self, point: Floats) -> Floats:
        """Return a point near `point` whose sum is zero, where the dual is still finite."""

    @abstractmethod
    def constant(self, y: Floats) -> float:
        """Return the constant output with the least loss."""


class SquaredLoss(AbstractLoss):
    """Half the mean of the squares of y - f."""

    def value(self, outputs: Floats, y: Floats) -> float:
        """Return the mean loss."""
        return float(0.5 * np.mean((outputs - y) ** 2))

    def residual(self, outputs: Floats, y: Floats) -> Floats:
        """Return (y - f) / n."""
        return np.asarray((y - outputs) / len(y))

    def dual(self, point: Floats, y: Floats) -> float:
        """Return v'y - n |v|^2 / 2."""
        return float(point @ y - 0.5 * len(y) * (point @ point))

    def best_scale(self, point: Floats, y: Floats, largest: float) -> float:
        """Return the clipped vertex of a parabola."""
        square = len(y) * float(point @ point)
        return float(np.clip(point @ y / square, 0.0, largest)) if square > 0 else 0.0

    def balance(self, point: Floats) -> Floats:
        """Return the centered point."""
        return np.asarray(point - point.mean())

    def constant(self, y: Floats) -> float:
        """Return the mean."""
        return float(y.mean())


class LogisticLoss(AbstractLoss):
    """Mean of log(1 + exp(-y f)) for labels y in {-1, 1}."""

    def value(self, outputs: Floats, y: Floats) -> float:
        """Return the mean loss."""
        return float(np.mean(np.logaddexp(0.0, -y * outputs)))

    def residual(self, outputs: Floats, y: Floats) -> Floats:
        """Return y sigma(-y f) / n."""
        return np.asarray(y * expit(-y * outputs) / len(y))

    def dual(self, point: Floats, y: Floats) -> float:
        """Return the mean entropy of n y v."""
        shares = len(y) * y * point
        if shares.min() < -1e-12 or shares.max() > 1 + 1e-12:
            return -np.inf
        shares = np.clip(shares, 0.0, 1.0)
        return float(np.mean(entr(shares) + entr(1.0 - shares)))

    def best_scale(self, point: Floats, y: Floats, largest: float) -> float:
        """Return where the derivative of the entropy along the ray changes sign."""
        shares = len(y) * y * point
        if shares.min() < 0 or shares.max() <= 0:
            return 0.0
        low, high = 0.0, min(largest, 1.0 / float(shares.max()))
        for _ in range(200):
            mid = 0.5 * (low + high)
            p = np.clip(mid * shares, 1e-300, 1 - 1e-16)
            if float(shares @ np.log((1 - p) / p)) > 0:
                low = mid
            else:
                high = mid
        return low

    def balance(self, point: Floats) -> Floats:
        """Return the point with the larger of its two signs scaled down."""
        up, down = float(point[point > 0].sum()), -float(point[point < 0].sum())
        if up == 0 or down == 0:
            return np.zeros_like(point)
        least = min(up, down)
        return np.where(point > 0, point * (least / up), point * (least / down))

    def constant(self, y: Floats) -> float:
        """Return the log-odds of the classes."""
        share = float(np.mean(y > 0))
        return float(np.log(share) - np.log1p(-share))


def loss_of(name: str) -> AbstractLoss:
    """Return the loss of a name, "squared" or "logistic".

    Parameters
    ----------
    name : {"squared", "logistic"}
        Which.

    Returns
    -------
    AbstractLoss
        The loss.

    Raises
    ------
    InvalidParameterError
        If the name is none of these.
    """
    check_choice("loss", name, ("squared", "logistic"))
    return SquaredLoss() if name == "squared" else LogisticLoss()
