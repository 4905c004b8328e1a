"""Exchanges of one feature for losses of linear scores: bounds first, minima for the rest."""

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
WORK, SOLVES = 1e9, 500
# Newton steps of one minimization, and steps of many together with one Hessian.
STEPS, CHORDS = 50, 3
# Share of a column that must lie outside the span of the support.
COLLINEAR = 1e-9


class AbstractScoreLoss(ABC):
    """A convex loss of m free scores of every sample."""

    n_outputs: int
    """Free scores of a sample, m."""
    stretch: float
    """Bound on the square of what third derivatives see of a change of scores of length one."""
    margins: tuple[float, ...] = (0.0,)
    """Changes of scores within which curvature counts; 0 for losses that are curved all over."""

    @abstractmethod
    def values(self, scores: Floats) -> Floats:
        """Return the losses, (..., n_samples), of scores (..., n_samples, m)."""

    @abstractmethod
    def slopes(self, scores: Floats) -> Floats:
        """Return the gradients, (..., n_samples, m)."""

    @abstractmethod
    def curvatures(self, scores: Floats, margin: float) -> Floats:
        """Return the Hessians, (n_samples, m, m), of scores (n_samples, m)."""

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

    def drop_after(self, decrement: Floats, reach: Floats, moved: Floats, margin: float) -> Floats:
        """Return the same for a gradient elsewhere, where scores have `moved` from the Hessian."""
        # Curvature changes by at most the exponential of the change of a score.
        with np.errstate(over="ignore", invalid="ignore"):
            grown: Floats = np.exp(np.minimum(moved, 50.0))
            dropped: Floats = self.drop(grown * decrement, grown * reach, margin)
        return dropped


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
        u, y = scores[..., 0], self._y
        if self._name == "logistic":
            return np.logaddexp(0.0, np.where(y > 0, -u, u))
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(u) - y * u - y + special.xlogy(y, y))

    def _mean(self, scores: Floats) -> Floats:
        with np.errstate(over="ignore"):
            return np.asarray(
                special.expit(scores) if self._name == "logistic" else np.exp(scores)
            )

    @override
    def slopes(self, scores: Floats) -> Floats:
        return self._mean(scores) - self._y[:, None]

    @override
    def curvatures(self, scores: Floats, margin: float) -> Floats:
        mean = self._mean(scores)
        return (mean * (1 - mean) if self._name == "logistic" else mean)[:, :, None]


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
        r = np.abs(scores[..., 0] - self._y)
        return np.where(
            r <= self._delta, 0.5 * np.square(r), self._delta * (r - 0.5 * self._delta)
        )

    @override
    def slopes(self, scores: Floats) -> Floats:
        return np.clip(scores - self._y[:, None], -self._delta, self._delta)

    @override
    def curvatures(self, scores: Floats, margin: float) -> Floats:
        inside = np.abs(scores - self._y[:, None]) <= self._delta - margin
        return inside.astype(np.float64)[:, :, None]

    @override
    def drop(self, decrement: Floats, reach: Floats, margin: float) -> Floats:
        # Twice as far as the minimizer of the quadratic its value is back where it began; if the
        # quadratic holds that far, convexity keeps the minimizer within.
        return np.where(4 * decrement * reach <= margin**2, 0.5 * decrement, np.inf)

    @override
    def drop_after(self, decrement: Floats, reach: Floats, moved: Floats, margin: float) -> Floats:
        left = np.maximum(margin - moved, 0.0)
        near = (moved < margin) & (4 * decrement * reach <= np.square(left))
        return np.where(near, 0.5 * decrement, np.inf)


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
        logs = special.log_softmax(scores @ self.basis.T, axis=-1)
        return np.asarray(-logs[..., np.arange(self._codes.size), self._codes])

    @override
    def slopes(self, scores: Floats) -> Floats:
        p = special.softmax(scores @ self.basis.T, axis=-1)
        return np.asarray(p @ self.basis - self.basis[self._codes])

    @override
    def curvatures(self, scores: Floats, margin: float) -> Floats:
        p = special.softmax(scores @ self.basis.T, axis=1)
        seen = p @ self.basis
        second = np.einsum("nc,ci,cj->nij", p, self.basis, self.basis)
        return np.asarray(second - seen[:, :, None] * seen[:, None, :])


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
    What this does not exclude takes a few steps with the Hessian of its base, and the bound is
    looked at again; what is still left is minimized by Newton's method, at most 500 of them.
    Costs n p k^2 multiplications, for c classes c^2 times as many and for Huber 4 times; more than
    1e9, about three seconds, are left out.

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
    >>> bool(check_score_exchanges(model, np.log(2.0), 1e-6).best_decrease > 0.1)
    True
    """
    k, m, p = model.support.size, model.loss.n_outputs, model.outside.size
    leaving = [-1] if model.short else [int(i) for i in np.flatnonzero(~model.stays)]
    n_checked = len(leaving) * p
    if not n_checked:
        return ScoreExchanges(0, 0, 0, 0.0)
    n = model.weight.size
    margins = len(model.loss.margins)
    if float(n) * p * (k + 1) * m * m * margins * len(leaving) > WORK:
        reason = "they would take too long for this loss; `certify='full'` minimizes on each"
        return ScoreExchanges(n_checked, 0, n_checked, np.inf, reason)
    inside = model.columns(model.support)
    target = value - slack
    left = 0.0
    bases = []
    for row in leaving:
        rest = np.delete(np.arange(k), row) if row >= 0 else np.arange(k)
        base = _Base.of(model, inside[:, rest], model.support[rest], model.coef[rest])
        base.minimize(-np.inf)
        bases.append(base)
    found = min([value, *(base.value for base in bases)])
    open_pairs: list[tuple[float, _Base, int]] = []
    step = max(1, CHUNK // max(n * m * m, 1))
    for begin in range(0, p, step):
        at = np.arange(begin, min(begin + step, p))
        entering = _Entering.of(model.columns(model.outside[at]), model.ridge[model.outside[at]])
        for base in bases:
            if found < target:
                return ScoreExchanges(n_checked, 0, 0, value - found)
            lower, there = _screen(base, entering, target)
            found = min(found, float(there.min()))
            closed = lower >= target
            left = max(left, value - float(lower[closed].min(initial=np.inf)))
            still = np.flatnonzero(~closed)
            open_pairs += [(float(lower[i]), base, int(at[i])) for i in still]
    if found < target:
        return ScoreExchanges(n_checked, 0, 0, value - found)
    n_solved = n_open = 0
    # What promises most comes first: an improvement ends the search.
    open_pairs.sort(key=lambda open_pair: open_pair[0])
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
        bound = pair.minimize(target)
        found = min(found, pair.value)
        if bound >= target:
            left = max(left, value - bound)
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
        scores = self.Z @ self.beta
        first = self.weight[:, None] * self.loss.slopes(scores)
        second = self.weight[:, None, None] * self.loss.curvatures(scores, margin)
        gradient = self.Z.T @ first + self.ridge[:, None] * self.beta
        blocks = np.empty((m, K, m, K))
        for a in range(m):
            for b in range(a + 1):
                block = (self.Z * second[:, a, b, None]).T @ self.Z
                blocks[a, :, b], blocks[b, :, a] = block, block.T
        hessian: Floats = blocks.reshape(m * K, m * K)
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
            inverse, whole = _invert(hessian)
            if not whole:
                continue
            decrement = np.array(gradient @ inverse @ gradient)
            reach = np.array(self.loss.stretch * self.leverage(inverse, m).max())
            best = max(best, self.value - float(self.loss.drop(decrement, reach, margin)))
        return best

    def leverage(self, inverse: Floats, m: int) -> Floats:
        """Return for every sample the trace of its part of the inverse Hessian."""
        K = self.Z.shape[1]
        blocks = inverse.reshape(m, K, m, K)
        total: Floats = np.zeros(self.Z.shape[0])
        for a in range(m):
            total += ((self.Z @ blocks[a, :, a]) * self.Z).sum(axis=1)
        return total


def _inverse(hessian: Floats) -> Floats:
    """Return the inverse of a positive matrix, of its firm part where it is singular."""
    inverse, _ = _invert(hessian)
    return inverse


def _invert(hessian: Floats) -> tuple[Floats, bool]:
    """Return the inverse of the firm part of a positive matrix, and whether that is all of it."""
    if not hessian.size:
        return hessian, True
    size = np.sqrt(np.maximum(hessian.diagonal(), 0.0))
    whole = bool((size > 0).all())
    size = np.where(size > 0, size, 1.0)
    values, vectors = np.linalg.eigh(hessian / size / size[:, None])
    good = values > 1e-11 * max(float(values[-1]), 1e-300)
    inner = (vectors[:, good] / values[good]) @ vectors[:, good].T
    return np.asarray(inner / size / size[:, None]), whole and bool(good.all())


@dataclass(frozen=True, slots=True)
class _Entering:
    """Columns that may enter, (n_samples, q), their squares, largest entries and ridge."""

    X: Floats
    square: Floats
    largest: Floats
    ridge: Floats

    @classmethod
    def of(cls, X: Floats, ridge: Floats) -> _Entering:
        square = np.square(X)
        return cls(X, square, np.sqrt(square.max(axis=0)), ridge)


@dataclass(frozen=True, slots=True)
class _Geometry:
    """The Hessian at a base, and with one column more, for several columns.

    Parameters
    ----------
    inverse : ndarray of shape (m K, m K)
        Inverse of the Hessian at the base.
    lent : ndarray of shape (n_samples,)
        Trace of the part of every sample of it.
    cross, turned : ndarray of shape (q, m K, m)
        Products of the columns with those of the base, and with the inverse before them.
    root : ndarray of shape (q, m, m)
        R with R R^T the inverse of what the base leaves of the curvature of a column.
    along : ndarray of shape (q,)
        Square of the part of a column along the base, in units of what is left.
    firm : ndarray of shape (q,), bool
        Whether something is left.
    margin : float
        Change of scores within which the Hessian counts.
    """

    inverse: Floats
    lent: Floats
    cross: Floats
    turned: Floats
    root: Floats
    along: Floats
    firm: Bools
    margin: float

    @classmethod
    def of(cls, base: _Base, entering: _Entering, margin: float) -> _Geometry | None:
        """Return it for some columns; None where the base is singular."""
        X = entering.X
        (K, m), q = base.beta.shape, X.shape[1]
        _, hessian, _, second = base.model(margin)
        inverse, whole = _invert(hessian)
        if not whole:
            return None
        blocks, own = np.empty((q, m, K, m)), np.empty((q, m, m))
        for a in range(m):
            for b in range(a + 1):
                block = X.T @ (base.Z * second[:, a, b, None])
                blocks[:, a, :, b] = blocks[:, b, :, a] = block
                own[:, a, b] = own[:, b, a] = second[:, a, b] @ entering.square
        own[:, np.arange(m), np.arange(m)] += entering.ridge[:, None]
        cross: Floats = blocks.reshape(q, m * K, m)
        turned = inverse @ cross
        taken = np.swapaxes(cross, 1, 2) @ turned
        if m == 1:
            values, vectors = (own - taken)[:, :, 0], np.ones((q, 1, 1))
        else:
            values, vectors = np.linalg.eigh(own - taken)
        size = np.einsum("jaa->j", own)
        firm = values[:, 0] > COLLINEAR * np.maximum(size, 1e-300)
        root = vectors / np.sqrt(np.where(firm[:, None], values, 1.0))[:, None, :]
        along = np.maximum(np.einsum("jab,jac,jcb->j", root, taken, root), 0.0)
        lent = base.leverage(inverse, m)
        return cls(inverse, lent, cross, turned, root, along, firm, margin)

    def take(self, at: Integers) -> _Geometry:
        """Return it for some of the columns."""
        return _Geometry(
            self.inverse, self.lent, self.cross[at], self.turned[at], self.root[at],
            self.along[at], self.firm[at], self.margin,
        )  # fmt: skip

    def split(self, gradient: Floats, slope: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the decrement of gradients, (q, m K) and (q, m), and the Newton step."""
        pulled = gradient @ self.inverse
        rest = slope - np.einsum("qjm,qj->qm", self.cross, pulled)
        lean = np.einsum("qab,qa->qb", self.root, rest)
        step = -np.einsum("qab,qb->qa", self.root, lean)
        decrement = (gradient * pulled).sum(1) + np.square(lean).sum(1)
        return decrement, -(pulled + np.einsum("qjm,qm->qj", self.turned, step)), step

    def reach(self, base: _Base, X: Floats) -> Floats:
        """Return the square of the largest change of a score by a step of length one."""
        K, m = base.beta.shape
        if m == 1:
            rest = (X - base.Z @ self.turned[:, :, 0].T) * self.root[:, 0, 0]
            return np.asarray((self.lent[:, None] + np.square(rest)).max(axis=0))
        out = np.empty(X.shape[1])
        for j in range(X.shape[1]):
            spare = np.tensordot(base.Z, self.turned[j].reshape(m, K, m), axes=(1, 1))
            rest = X[:, j, None, None] * np.eye(m) - spare
            out[j] = (self.lent + np.square(rest @ self.root[j]).sum(axis=(1, 2))).max()
        return out


def _screen(base: _Base, entering: _Entering, target: float) -> tuple[Floats, Floats]:
    """Return lower bounds on the minima with every column, and values that were found."""
    X, loss = entering.X, base.loss
    q = X.shape[1]
    lower, value = np.full(q, -np.inf), np.full(q, base.value)
    gradient, _, first, _ = base.model(0.0)
    slope = X.T @ first
    geometries = [_Geometry.of(base, entering, margin) for margin in loss.margins]
    for geometry in geometries:
        if geometry is None:
            continue
        decrement, _, _ = geometry.split(np.tile(gradient, (q, 1)), slope)
        # Every entry of a column at its largest, the part along the base at its longest.
        most = float(geometry.lent.max())
        top = entering.largest * np.sqrt(np.square(geometry.root).sum(axis=(1, 2)))
        reach = most + np.square(top + np.sqrt(most * geometry.along))
        drop = loss.drop(decrement, loss.stretch * reach, geometry.margin)
        # What the base spans adds nothing, where all samples are curved.
        start = np.array(gradient @ geometry.inverse @ gradient)
        alone = float(loss.drop(start, np.array(loss.stretch * most), geometry.margin))
        drop = np.where(geometry.firm, drop, np.inf if geometry.margin > 0 else alone)
        lower = np.maximum(lower, base.value - drop)
    inner = geometries[-1]
    for geometry in geometries:
        left = np.flatnonzero(lower < target)
        if inner is None or geometry is None or not left.size:
            continue
        left = left[geometry.firm[left] & inner.firm[left]]
        bound, there = _descend(
            base, X[:, left], entering.ridge[left], inner.take(left), geometry.take(left)
        )
        lower[left] = np.maximum(lower[left], bound)
        value[left] = np.minimum(value[left], there)
    return lower, value


def _descend(
    base: _Base, X: Floats, ridge: Floats, steps: _Geometry, bounds: _Geometry
) -> tuple[Floats, Floats]:
    """Take a few Newton steps with the Hessian of the base; return lower bounds and values."""
    loss, Z, w = base.loss, base.Z, base.weight
    (K, m), q = base.beta.shape, X.shape[1]
    lower, best = np.full(q, -np.inf), np.full(q, np.inf)
    if not q:
        return lower, best
    reach = loss.stretch * bounds.reach(base, X)
    start = Z @ base.beta
    beta, extra = np.tile(base.beta, (q, 1, 1)), np.zeros((q, m))
    scores = np.tile(start, (q, 1, 1))
    for turn in range(CHORDS + 1):
        first = w[:, None] * loss.slopes(scores)
        gradient = Z.T @ first + base.ridge[:, None] * beta
        flat = np.swapaxes(gradient, 1, 2).reshape(q, m * K)
        slope = np.einsum("nq,qnm->qm", X, first) + ridge[:, None] * extra
        if turn:
            value = loss.values(scores) @ w
            value += 0.5 * np.einsum("a,qam->q", base.ridge, np.square(beta))
            value += 0.5 * ridge * np.square(extra).sum(1)
            decrement, _, _ = bounds.split(flat, slope)
            moved = np.sqrt(loss.stretch * np.square(scores - start).sum(2).max(1))
            drop = loss.drop_after(decrement, reach, moved, bounds.margin)
            best = np.minimum(best, np.where(np.isfinite(value), value, np.inf))
            with np.errstate(invalid="ignore"):
                lower = np.fmax(lower, value - drop)
        if turn == CHORDS:
            break
        _, inner, step = steps.split(flat, slope)
        move = np.swapaxes(inner.reshape(q, m, K), 1, 2)
        beta, extra = beta + move, extra + step
        scores = scores + Z @ move + X.T[:, :, None] * step[:, None, :]
    return lower, best
