"""Exchanges of one feature for losses of linear scores: bounds for all, minima for what is left."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import special
from typing_extensions import override

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Numbers of X that are looked at together.
CHUNK = 2**21
# Multiplications beyond which the check is left out, and minimizations within it.
WORK, SOLVES = 4e9, 500
# Newton steps of one minimization.
STEPS = 50
# Share of a column that must lie outside the span of the support.
COLLINEAR = 1e-9


class AbstractScoreLoss(ABC):
    """A convex loss of m free scores of every sample."""

    n_outputs: int
    """Free scores of a sample, m."""
    stretch: float
    """Bound on the square of what third derivatives see of a change of scores of length one."""
    margins: tuple[float, ...] = (0.0,)
    """Changes of scores within which curvature is counted; 0 for losses that are curved all over."""

    @abstractmethod
    def values(self, scores: Floats) -> Floats:
        """Return the losses, (n_samples,), of scores (n_samples, m)."""

    @abstractmethod
    def derivatives(self, scores: Floats, margin: float) -> tuple[Floats, Floats]:
        """Return gradients (n_samples, m) and Hessians (n_samples, m, m)."""

    def drop(self, decrement: Floats, reach: Floats, margin: float) -> Floats:
        r"""Return the most that the function can fall below a point.

        Parameters
        ----------
        decrement : ndarray
            Square of the gradient in the norm of the inverse Hessian.
        reach : ndarray
            Square of the largest change of a score by a step of length one in that of the Hessian.
        margin : float
            Change of scores within which the Hessian counts.
        """
        x = np.sqrt(decrement * reach)
        inside = np.minimum(x, 1 - 1e-12)
        # Third derivatives are at most the change of a score times second ones: along a step of
        # length r the function is above its tangent by (exp(-k r) + k r - 1) / k^2.
        fall = inside + (1 - inside) * np.log1p(-inside)
        safe = np.where(x > 1e-4, x, 1.0)
        share = np.where(x > 1e-4, fall / np.square(safe), 0.5 + inside / 6 + np.square(inside))
        return np.where(x < 1, decrement * share, np.inf)


@final
class ScalarLoss(AbstractScoreLoss):
    """Logistic or Poisson loss.

    Parameters
    ----------
    name : {"logistic", "poisson"}
        The loss.
    y : ndarray of shape (n_samples,)
        Classes 0 and 1, or counts.
    """

    n_outputs = 1
    stretch = 1.0

    def __init__(self, name: str, y: Floats) -> None:
        self._name, self._y = name, y

    @override
    def values(self, scores: Floats) -> Floats:
        u, y = scores[:, 0], self._y
        if self._name == "logistic":
            return np.logaddexp(0.0, np.where(y > 0, -u, u))
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(u) - y * u - y + special.xlogy(y, y))

    @override
    def derivatives(self, scores: Floats, margin: float) -> tuple[Floats, Floats]:
        with np.errstate(over="ignore"):
            mean = special.expit(scores) if self._name == "logistic" else np.exp(scores)
        curvature = mean * (1 - mean) if self._name == "logistic" else mean
        return mean - self._y[:, None], curvature[:, :, None]


@final
class HuberLoss(AbstractScoreLoss):
    """Huber loss, whose samples count as curved where they stay in the middle.

    Parameters
    ----------
    y : ndarray of shape (n_samples,)
        Target.
    delta : float
        Residual beyond which the loss is linear.
    """

    n_outputs = 1
    stretch = 1.0

    def __init__(self, y: Floats, delta: float) -> None:
        self._y, self._delta = y, delta
        self.margins = (0.1 * delta, 0.3 * delta, 0.6 * delta, 1e-4 * delta)

    @override
    def values(self, scores: Floats) -> Floats:
        r = np.abs(scores[:, 0] - self._y)
        return np.where(
            r <= self._delta, 0.5 * np.square(r), self._delta * (r - 0.5 * self._delta)
        )

    @override
    def derivatives(self, scores: Floats, margin: float) -> tuple[Floats, Floats]:
        r = scores - self._y[:, None]
        curved = (np.abs(r) <= self._delta - margin).astype(np.float64)
        return np.clip(r, -self._delta, self._delta), curved[:, :, None]

    @override
    def drop(self, decrement: Floats, reach: Floats, margin: float) -> Floats:
        # Twice as far as the minimizer of the quadratic its value is back where it began; if the
        # quadratic holds that far, convexity keeps the minimizer within.
        return np.where(4 * decrement * reach <= margin**2, 0.5 * decrement, np.inf)


@final
class SoftmaxLoss(AbstractScoreLoss):
    """Cross-entropy of a softmax, in coordinates in which the scores of a sample add up to 0.

    Parameters
    ----------
    codes : ndarray of shape (n_samples,), int64
        Classes.
    n_classes : int
        Their number.
    """

    # A change of scores of length one changes two of them against each other by sqrt(2) at most.
    stretch = 2.0

    def __init__(self, codes: Integers, n_classes: int) -> None:
        self._codes = codes
        self.n_outputs = n_classes - 1
        centered = np.eye(n_classes) - 1.0 / n_classes
        self.basis: Floats = np.linalg.qr(centered[:, :-1])[0].astype(np.float64)

    @override
    def values(self, scores: Floats) -> Floats:
        logs = special.log_softmax(scores @ self.basis.T, axis=1)
        return np.asarray(-logs[np.arange(self._codes.size), self._codes])

    @override
    def derivatives(self, scores: Floats, margin: float) -> tuple[Floats, Floats]:
        p = special.softmax(scores @ self.basis.T, axis=1)
        seen = p @ self.basis
        second = np.einsum("nc,ci,cj->nij", p, self.basis, self.basis)
        return seen - self.basis[self._codes], second - seen[:, :, None] * seen[:, None, :]


@dataclass(frozen=True, slots=True)
class ScoreModel:
    """A sparse model of linear scores, and what it may be exchanged for.

    Parameters
    ----------
    loss : AbstractScoreLoss
        The loss.
    columns : callable
        Returns columns of X of given indices as a float64 array (n_samples, len(indices)).
    weight : ndarray of shape (n_samples,)
        Weights that add up to 1.
    support : ndarray of shape (k,), int64
        Chosen features.
    coef : ndarray of shape (k, m)
        Their coefficients in the free scores.
    shift : ndarray of shape (m,) or None
        Intercepts; None without.
    ridge : ndarray of shape (n_features,)
        The ridge of every feature.
    stays : ndarray of shape (k,), bool
        Features that may not leave.
    outside : ndarray of int64
        Features that may enter.
    short : bool
        Whether one more fits without another one leaving.
    """

    loss: AbstractScoreLoss
    columns: Callable[[Integers], Floats]
    weight: Floats
    support: Integers
    coef: Floats
    shift: Floats | None
    ridge: Floats
    stays: Bools
    outside: Integers
    short: bool


@dataclass(frozen=True, slots=True)
class ScoreExchanges:
    """What the exchanges of one feature show.

    Parameters
    ----------
    n_checked, n_solved : int
        Exchanges looked at, and those that a bound did not exclude and that were minimized.
    n_open : int
        Exchanges of which neither is known.
    best_decrease : float
        Largest decrease that was found, or that the bounds leave possible.
    reason : str or None
        Why the check was left out.
    """

    n_checked: int
    n_solved: int
    n_open: int
    best_decrease: float
    reason: str | None = None


def check_score_exchanges(model: ScoreModel, value: float, slack: float) -> ScoreExchanges:
    r"""Look for an exchange of one feature that lowers a smooth convex loss.

    Parameters
    ----------
    model : ScoreModel
        The model.
    value : float
        Its objective.
    slack : float
        Decrease that does not count.

    Returns
    -------
    ScoreExchanges
        What is known of all exchanges. A decrease that was found is one for sure; that there is
        none is proven up to rounding where `n_open` is 0.

    Notes
    -----
    For every feature that leaves, the loss is minimized over the others. From there, with H the
    Hessian on them and one column more, a step moves no score by more than :math:`\kappa` times
    its length in the norm of H, and third derivatives of the logistic, softmax and Poisson losses
    are at most that times second ones [1]_. So with :math:`\nu` the length of the gradient in the
    norm of the inverse, no point over these columns is lower by more than

    .. math:: \frac{\kappa\nu + (1 - \kappa\nu) \log(1 - \kappa\nu)}{\kappa^2}
        = \frac{\nu^2}{2} + \frac{\kappa \nu^3}{6} + \dots

    and :math:`\nu^2 / 2` for the Huber loss, as long as no sample that H counts leaves its middle.
    What this does not exclude is minimized by Newton's method until the bound at its iterates
    does, at most 500 of them. Costs n p k^2 multiplications; more than 4e9 are left out.

    References
    ----------
    .. [1] F. Bach, "Self-concordant analysis for logistic regression", arXiv:0910.4627, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.certificates.score_exchanges import (
    ...     ScalarLoss, ScoreModel, check_score_exchanges)
    >>> X = np.random.default_rng(0).standard_normal((60, 3))
    >>> y = (X[:, 0] > 0).astype(float)
    >>> model = ScoreModel(
    ...     ScalarLoss("logistic", y), lambda j: X[:, j], np.full(60, 1 / 60), np.array([1]),
    ...     np.zeros((1, 1)), None, np.full(3, 0.1), np.array([False]), np.array([0, 2]), False)
    >>> check_score_exchanges(model, np.log(2.0), 1e-6).best_decrease > 0.1
    True
    """
    k, m, p = model.support.size, model.loss.n_outputs, model.outside.size
    leaving = [-1] if model.short else np.flatnonzero(~model.stays).tolist()
    n_checked = len(leaving) * p
    if not n_checked:
        return ScoreExchanges(0, 0, 0, 0.0)
    n = model.weight.size
    if float(n) * p * (k + 1) * m * m * len(leaving) > WORK:
        reason = "they would take too long for this loss; `certify='full'` minimizes on each"
        return ScoreExchanges(n_checked, 0, n_checked, np.inf, reason)
    inside = model.columns(model.support)
    target = value - slack
    found, left, open_pairs = value, 0.0, []
    for row in leaving:
        rest = np.delete(np.arange(k), row) if row >= 0 else np.arange(k)
        base = _Base.of(model, inside[:, rest], model.support[rest], model.coef[rest])
        base.minimize(-np.inf)
        found = min(found, base.value)
        drop = _screen(model, base, base.value - target)
        for place in np.flatnonzero(drop > base.value - target).tolist():
            open_pairs.append((float(base.first[place]) - base.value, base, place))
        closed = drop[drop <= base.value - target]
        left = max(left, value - base.value + float(closed.max(initial=-np.inf)))
    n_solved = n_open = 0
    # What promises most comes first: an improvement ends the search.
    open_pairs.sort(key=lambda pair: -pair[0])
    for _, base, place in open_pairs:
        if found < target:
            break
        if n_solved == SOLVES:
            n_open = len(open_pairs) - n_solved
            break
        feature = int(model.outside[place])
        column = model.columns(np.array([feature]))
        pair, n_solved = base.with_column(column, float(model.ridge[feature])), n_solved + 1
        if model.ridge[feature] == 0 and _spans(base.Z, column[:, 0]):
            pair = base
        lower = pair.minimize(target)
        found = min(found, pair.value)
        if lower >= target:
            left = max(left, value - lower)
        elif pair.value >= target:
            n_open += 1
    if found < target:
        return ScoreExchanges(n_checked, n_solved, 0, value - found)
    return ScoreExchanges(n_checked, n_solved, n_open, max(left, 0.0))


def _spans(Z: Floats, column: Floats) -> bool:
    """Return whether columns span another one, up to rounding."""
    size = np.sqrt(np.square(Z).sum(axis=0))
    unit = Z / np.where(size > 0, size, 1.0)
    rest = column - unit @ np.linalg.lstsq(unit, column, rcond=1e-12)[0]
    return bool(rest @ rest <= COLLINEAR * (column @ column))


class _Base:
    """A minimizer on some columns."""

    def __init__(
        self, loss: AbstractScoreLoss, weight: Floats, Z: Floats, ridge: Floats, beta: Floats
    ) -> None:
        self.loss, self.weight, self.Z, self.ridge, self.beta = loss, weight, Z, ridge, beta
        self.value = self._value(beta)
        self.first: Floats = np.zeros(0)

    @classmethod
    def of(cls, model: ScoreModel, columns: Floats, features: Integers, coef: Floats) -> _Base:
        Z, ridge, beta = columns, model.ridge[features], coef
        if model.shift is not None:
            Z = np.column_stack([Z, np.ones(Z.shape[0])])
            ridge, beta = np.append(ridge, 0.0), np.vstack([beta, model.shift])
        return cls(model.loss, model.weight, np.ascontiguousarray(Z), ridge, beta)

    def with_column(self, column: Floats, ridge: float) -> _Base:
        """Return the start with a column more."""
        beta = np.vstack([self.beta, np.zeros((1, self.beta.shape[1]))])
        Z = np.column_stack([self.Z, column])
        return _Base(self.loss, self.weight, Z, np.append(self.ridge, ridge), beta)

    def _value(self, beta: Floats) -> float:
        losses = self.loss.values(self.Z @ beta)
        value = float(self.weight @ losses) + 0.5 * float((self.ridge[:, None] * beta**2).sum())
        return value if np.isfinite(value) else np.inf

    def model(self, margin: float) -> tuple[Floats, Floats, Floats, Floats]:
        """Return gradient, Hessian, and the weighted derivatives of the samples."""
        K, m = self.beta.shape
        first, second = self.loss.derivatives(self.Z @ self.beta, margin)
        first, second = self.weight[:, None] * first, self.weight[:, None, None] * second
        gradient = self.Z.T @ first + self.ridge[:, None] * self.beta
        hessian = np.empty((m, K, m, K))
        for a in range(m):
            for b in range(a + 1):
                block = (self.Z * second[:, a, b, None]).T @ self.Z
                hessian[a, :, b], hessian[b, :, a] = block, block.T
        hessian = hessian.reshape(m * K, m * K)
        hessian[np.diag_indices(m * K)] += np.tile(self.ridge, m)
        return gradient.T.ravel(), hessian, first, second

    def minimize(self, target: float) -> float:
        """Go to the minimizer, or until it is known on which side of a target; return a bound."""
        lower = -np.inf
        for _ in range(STEPS):
            gradient, hessian, _, _ = self.model(0.0)
            inverse = _inverse(hessian)
            step = -(inverse @ gradient)
            decrement = -float(gradient @ step)
            if target > -np.inf:
                lower = max(lower, self._lower())
                if lower >= target or self.value < target:
                    break
            if not decrement > 1e-15 * abs(self.value):
                break
            direction = step.reshape(self.beta.shape[::-1]).T
            length = 1.0
            for _ in range(40):
                there = self._value(self.beta + length * direction)
                if there <= self.value - 1e-4 * length * decrement:
                    break
                length /= 2
            else:
                break
            self.beta, self.value = self.beta + length * direction, there
        return lower

    def _lower(self) -> float:
        best = -np.inf
        m = self.beta.shape[1]
        for margin in self.loss.margins:
            gradient, hessian, _, _ = self.model(margin)
            inverse = _inverse(hessian, strict=True)
            if not inverse.size:
                continue
            decrement = np.array(gradient @ inverse @ gradient)
            reach = np.array(self.loss.stretch * self._leverage(inverse, m).max())
            best = max(best, self.value - float(self.loss.drop(decrement, reach, margin)))
        return best

    def _leverage(self, inverse: Floats, m: int) -> Floats:
        """Return for every sample the trace of its part of the inverse Hessian."""
        K = self.Z.shape[1]
        blocks = inverse.reshape(m, K, m, K)
        total = np.zeros(self.Z.shape[0])
        for a in range(m):
            total += ((self.Z @ blocks[a, :, a]) * self.Z).sum(axis=1)
        return total


def _inverse(hessian: Floats, *, strict: bool = False) -> Floats:
    """Return the inverse of a positive matrix; with `strict`, nothing where it is singular."""
    size = np.sqrt(np.maximum(hessian.diagonal(), 0.0))
    if strict and not (size > 0).all():
        return np.zeros((0, 0))
    size = np.where(size > 0, size, 1.0)
    values, vectors = np.linalg.eigh(hessian / size / size[:, None])
    good = values > 1e-11 * max(float(values[-1]), 1e-300)
    if strict and not good.all():
        return np.zeros((0, 0))
    inner = (vectors[:, good] / values[good]) @ vectors[:, good].T
    return np.asarray(inner / size / size[:, None])


def _screen(model: ScoreModel, base: _Base, room: float) -> Floats:
    """Return for every feature outside the most that it can take off the value at a base.

    `base.first` receives the decrease that the quadratic predicts.
    """
    best = np.full(model.outside.size, np.inf)
    base.first = np.zeros(model.outside.size)
    K, m = base.beta.shape
    step = max(1, CHUNK // max(base.Z.shape[0], 1))
    for number, margin in enumerate(base.loss.margins):
        gradient, hessian, first, second = base.model(margin)
        inverse = _inverse(hessian, strict=True)
        if not inverse.size:
            continue
        lent = base._leverage(inverse, m)
        most = float(lent.max())
        pulled = inverse @ gradient
        start = float(gradient @ pulled)
        for begin in range(0, best.size, step):
            at = np.arange(begin, min(begin + step, best.size))
            at = at[best[at] > room]
            if not at.size:
                continue
            X = model.columns(model.outside[at])
            cross = np.empty((at.size, m, K, m))
            own = np.empty((at.size, m, m))
            square = np.square(X)
            for a in range(m):
                for b in range(a + 1):
                    block = X.T @ (base.Z * second[:, a, b, None])
                    cross[:, a, :, b], cross[:, b, :, a] = block, block
                    own[:, a, b] = own[:, b, a] = second[:, a, b] @ square
            own[:, np.arange(m), np.arange(m)] += model.ridge[model.outside[at], None]
            cross = cross.reshape(at.size, m * K, m)
            turned = inverse @ cross
            taken = np.swapaxes(cross, 1, 2) @ turned
            left = own - taken
            slope = X.T @ first - np.swapaxes(cross, 1, 2) @ pulled
            values, vectors = np.linalg.eigh(left)
            scale = np.einsum("jaa->j", own)
            firm = values[:, 0] > COLLINEAR * np.maximum(scale, 1e-300)
            values = np.where(firm[:, None], values, 1.0)
            root = vectors / np.sqrt(values)[:, None, :]
            gain = np.square(np.einsum("ja,jab->jb", slope, root)).sum(axis=1)
            if number == 0:
                base.first[at] = np.where(firm, 0.5 * gain, 0.0)
            decrement = start + gain
            # Every entry of a column at its largest, the part along the support at its longest.
            along = np.einsum("jab,jac,jcb->j", root, taken, root)
            top = np.abs(X).max(axis=0) * np.sqrt(np.square(root).sum(axis=(1, 2)))
            reach = most + np.square(top + np.sqrt(most * np.maximum(along, 0.0)))
            drop = base.loss.drop(decrement, base.loss.stretch * reach, margin)
            # What the support spans adds nothing, where all samples are curved.
            idle = float(base.loss.drop(np.array(start), np.array(most), margin))
            drop = np.where(firm, drop, np.inf if margin > 0 else idle)
            for place in np.flatnonzero(firm & (drop > room) & (0.5 * decrement <= room)):
                spare = np.einsum(
                    "na,abo->nbo", base.Z, turned[place].reshape(m, K, m).transpose(1, 0, 2)
                )
                rest = X[:, place, None, None] * np.eye(m) - spare
                exact = lent + np.square(rest @ root[place]).sum(axis=(1, 2))
                reach_here = base.loss.stretch * exact.max()
                drop[place] = base.loss.drop(
                    decrement[place : place + 1], np.array([reach_here]), margin
                )[0]
            best[at] = np.minimum(best[at], drop)
    return best
