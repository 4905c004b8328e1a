"""Newton's method for a loss of one linear predictor on a few columns, with bounds.

One thread. Plain Python: a kernel runs compiled, and interpreted (`kernel.py_func`) with the same
result up to rounding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit  # noqa: TID253

LOGISTIC, POISSON, HUBER = range(3)
CONVERGED, ABORTED, SEPARATED, FAR, LIMIT = range(5)

BLOCK = 512
# Change of a score by the last step beyond which a minimizer may lie at infinity: there a Newton
# step changes scores by about 1 for ever, while the value stays.
FAR_STEP = 1e-2
# Relative decrease by a Newton step after which the next one would be below rounding.
LAST = 1e-9
# How many times the predicted decrease may still come, near a minimizer and elsewhere.
NEAR, WIDE = 2.0, 10.0
# Share of a column that must lie outside the span of the others.
PIVOT = 1e-11
# Sums may be reordered; NaN and infinities keep their meaning.
FAST = {"reassoc", "contract", "nsz"}


@njit(inline="always")
def _loss(kind: int, u: float, y: float, delta: float) -> float:
    """Return the loss of one sample."""
    if kind == LOGISTIC:
        # log(1 + exp(u)) - y u without overflow
        margin = u if y > 0.5 else -u
        if margin > 0.0:
            return math.log1p(math.exp(-margin))
        return math.log1p(math.exp(margin)) - margin
    if kind == POISSON:
        if y == 0.0:
            return math.exp(u) if u < 709.0 else np.inf
        d = u - math.log(y)
        # Half the deviance: exp(u) - y u less its minimum over u.
        return y * (math.expm1(d) - d) if d < 709.0 else np.inf
    r = abs(u - y)
    return 0.5 * r * r if r <= delta else delta * (r - 0.5 * delta)


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _scores(Z: Any, beta: Any, u: Any) -> None:
    """Write Z^T beta."""
    u[:] = 0.0
    for a in range(Z.shape[0]):
        b = beta[a]
        if b != 0.0:
            row = Z[a]
            for i in range(u.size):
                u[i] += b * row[i]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _total(kind: int, u: Any, y: Any, weight: Any, delta: float) -> float:
    """Return the weighted sum of the losses."""
    total = 0.0
    for i in range(u.size):
        total += weight[i] * _loss(kind, u[i], y[i], delta)
    return total


@njit(cache=True, error_model="numpy")
def _value(
    kind: int, Z: Any, y: Any, weight: Any, ridge: Any, delta: float, beta: Any, u: Any
) -> float:
    """Write the scores and return the value there."""
    _scores(Z, beta, u)
    value = _total(kind, u, y, weight, delta)
    for a in range(beta.size):
        value += 0.5 * ridge[a] * beta[a] * beta[a]
    return float(value)


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _derivatives(
    kind: int, u: Any, y: Any, weight: Any, delta: float, smooth: bool, r: Any, h: Any
) -> None:
    """Write the negative gradient and the curvature of every sample, weighted.

    With `smooth`, the curvature of the Huber loss is that of the parabola above it.
    """
    for i in range(u.size):
        if kind == LOGISTIC:
            e = math.exp(-abs(u[i]))
            p = 1.0 / (1.0 + e) if u[i] > 0.0 else e / (1.0 + e)
            q = e / (1.0 + e) if u[i] > 0.0 else 1.0 / (1.0 + e)
            r[i] = weight[i] * (q if y[i] > 0.5 else -p)
            h[i] = weight[i] * p * q
        elif kind == POISSON:
            rate = math.exp(u[i])
            r[i] = weight[i] * (y[i] - rate)
            h[i] = weight[i] * rate
        else:
            d = y[i] - u[i]
            if abs(d) <= delta:
                r[i] = weight[i] * d
                h[i] = weight[i]
            else:
                r[i] = weight[i] * (delta if d > 0.0 else -delta)
                h[i] = weight[i] * delta / abs(d) if smooth else 0.0


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _products(Z: Any, r: Any, h: Any, gradient: Any, hessian: Any) -> None:
    """Write -Z r and Z diag(h) Z^T, a block of samples at a time."""
    k, n = Z.shape
    scratch = np.empty(BLOCK)
    gradient[:] = 0.0
    hessian[:, :] = 0.0
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        for a in range(k):
            row = Z[a, start : start + size]
            # A sum in a loop that writes has two compiled orders, and where arrays lie in memory
            # decides between them: the same data would not give the same bits.
            for i in range(size):
                scratch[i] = row[i] * h[start + i]
            total = 0.0
            for i in range(size):
                total += row[i] * r[start + i]
            gradient[a] -= total
            for b in range(a + 1):
                other = Z[b, start : start + size]
                total = 0.0
                for i in range(size):
                    total += scratch[i] * other[i]
                hessian[a, b] += total
    for a in range(k):
        for b in range(a):
            hessian[b, a] = hessian[a, b]


@njit(cache=True, error_model="numpy")
def _solve(hessian: Any, gradient: Any, free: Any, factor: Any, step: Any) -> bool:
    """Write the Newton step on the free entries; return whether all of them are independent.

    Entries that the others span get no step.
    """
    k = gradient.size
    whole = True
    for a in range(k):
        step[a] = 0.0
        if not free[a]:
            factor[a, a] = 0.0
            continue
        for b in range(a + 1):
            if factor[b, b] == 0.0 and b < a:
                factor[a, b] = 0.0
                continue
            total = hessian[a, b]
            for c in range(b):
                total -= factor[a, c] * factor[b, c]
            if b < a:
                factor[a, b] = total / factor[b, b]
            elif total > PIVOT * hessian[a, a]:
                factor[a, a] = math.sqrt(total)
            else:
                factor[a, a] = 0.0
                whole = False
    for a in range(k):
        if factor[a, a] > 0.0:
            total = -gradient[a]
            for b in range(a):
                total -= factor[a, b] * step[b]
            step[a] = total / factor[a, a]
    for a in range(k - 1, -1, -1):
        if factor[a, a] > 0.0:
            total = step[a]
            for b in range(a + 1, k):
                total -= factor[b, a] * step[b]
            step[a] = total / factor[a, a]
    return whole


@njit(cache=True, error_model="numpy")
def _invert(hessian: Any, factor: Any, inverse: Any) -> None:
    """Write the inverse of a positive matrix; dependent entries count as nearly so."""
    k = hessian.shape[0]
    for a in range(k):
        for b in range(a + 1):
            total = hessian[a, b]
            for c in range(b):
                total -= factor[a, c] * factor[b, c]
            if b < a:
                factor[a, b] = total / factor[b, b]
            else:
                least = PIVOT * hessian[a, a]
                factor[a, a] = math.sqrt(max(total, least)) if least > 0.0 else 1.0
    # The inverse of the factor, then its product with itself.
    for a in range(k):
        for b in range(a + 1):
            total = 1.0 if a == b else 0.0
            for c in range(b, a):
                total -= factor[a, c] * inverse[b, c]
            inverse[b, a] = total / factor[a, a]
    for a in range(k):
        for b in range(a, k):
            total = 0.0
            for c in range(b, k):
                total += inverse[a, c] * inverse[b, c]
            factor[a, b] = total
    for a in range(k):
        for b in range(a, k):
            inverse[a, b] = factor[a, b]
            inverse[b, a] = factor[a, b]


@njit(cache=True, error_model="numpy")
def _separates(u: Any, y: Any, weight: Any, beta: Any, ridge: Any, lower: Any, upper: Any) -> bool:
    """Return whether every sample is on its side, and may go there for ever."""
    for a in range(beta.size):
        end = upper[a] if beta[a] > 0.0 else lower[a]
        if beta[a] != 0.0 and (ridge[a] > 0.0 or not math.isinf(end)):
            return False
    for i in range(u.size):
        if weight[i] > 0.0 and not (u[i] > 0.0 if y[i] > 0.5 else u[i] < 0.0):
            return False
    return True


@njit(cache=True, error_model="numpy")
def minimize(
    kind: int,
    Z: Any,
    y: Any,
    weight: Any,
    ridge: Any,
    lower: Any,
    upper: Any,
    delta: float,
    stop: float,
    floor: float,
    max_iter: int,
    beta: Any,
    r: Any,
    h: Any,
    inverse: Any,
) -> Any:
    r"""Minimize a mean loss plus ridge over the coefficients of a few columns.

    .. math:: \min_\beta \; \sum_i w_i\, \ell(z_i^T \beta, y_i)
        + \tfrac12 \sum_a \rho_a \beta_a^2, \quad l \le \beta \le u

    Parameters
    ----------
    kind : int
        LOGISTIC (y in {0, 1}), POISSON (half the deviance, log link) or HUBER.
    Z : array of shape (k, n)
        Columns as rows, a constant one among them where there is an intercept.
    y, weight : array of shape (n,)
        Target and weights, which add up to 1.
    ridge, lower, upper : array of shape (k,)
        Ridge and bounds of every coefficient.
    delta : float
        Where the Huber loss turns linear.
    stop : float
        Give up once the minimum is sure to be above, by the quadratic model.
    floor : float
        Decrease that does not count.
    max_iter : int
        Largest number of steps.
    beta : array of shape (k,)
        The start; receives the minimizer.
    r, h : array of shape (n,)
        Receive the weighted negative gradient and curvature of every sample.
    inverse : array of shape (k, k)
        Receives the inverse of ``Z diag(h) Z^T + diag(ridge)`` at, or just before, the minimizer.

    Returns
    -------
    value : float
        The value at `beta`.
    status : int
        CONVERGED; ABORTED by `stop`; SEPARATED when scaling `beta` up lowers the value for ever;
        FAR when this cannot be excluded; LIMIT.
    n_iter : int
        Steps done.
    """
    k, n = Z.shape
    u = np.empty(n)
    trial_u = np.empty(n)
    trial = np.empty(k)
    gradient = np.empty(k)
    step = np.empty(k)
    factor = np.zeros((k, k))
    hessian = np.empty((k, k))
    free = np.ones(k, np.bool_)
    for a in range(k):
        beta[a] = min(max(beta[a], lower[a]), upper[a])
    value = _value(kind, Z, y, weight, ridge, delta, beta, u)
    while kind == POISSON:
        # From scores far too high Newton steps come down by 1 only, or overflow.
        for a in range(k):
            trial[a] = 0.5 * beta[a]
        value_there = _value(kind, Z, y, weight, ridge, delta, trial, trial_u)
        if value_there >= value and not math.isinf(value):
            break
        # In loops: assigning arrays compiles the text of an error message for seconds.
        for a in range(k):
            beta[a] = trial[a]
        for i in range(n):
            u[i] = trial_u[i]
        value = value_there
    status = LIMIT
    n_iter = 0
    before = 0.0
    smooth = False
    while True:
        _derivatives(kind, u, y, weight, delta, smooth, r, h)
        _products(Z, r, h, gradient, hessian)
        for a in range(k):
            gradient[a] += ridge[a] * beta[a]
            hessian[a, a] += ridge[a]
            free[a] = not (
                (beta[a] <= lower[a] and gradient[a] > 0.0)
                or (beta[a] >= upper[a] and gradient[a] < 0.0)
            )
        whole = _solve(hessian, gradient, free, factor, step)
        if kind == HUBER and not smooth and not whole:
            smooth = True
            continue
        decrement = 0.0
        for a in range(k):
            decrement -= 0.5 * gradient[a] * step[a]
        if kind == LOGISTIC and _separates(u, y, weight, beta, ridge, lower, upper):
            status = SEPARATED
            break
        if decrement <= floor + 1e-15 * abs(value):
            status = CONVERGED
            break
        if n_iter >= max_iter:
            break
        # Where steps shrink fast, the quadratic model tells what is still to come.
        trust = NEAR if decrement < 0.1 * before else WIDE
        if value - trust * decrement > stop:
            status = ABORTED
            break
        before = decrement
        length = 1.0
        accepted = False
        for attempt in range(60):
            moved = 0.0
            for a in range(k):
                trial[a] = min(max(beta[a] + length * step[a], lower[a]), upper[a])
                moved -= gradient[a] * (trial[a] - beta[a])
            value_there = _value(kind, Z, y, weight, ridge, delta, trial, trial_u)
            if value_there <= value - 1e-4 * moved:
                accepted = True
                break
            # The parabola above the Huber loss never overshoots.
            if kind == HUBER and not smooth and attempt == 1:
                break
            length *= 0.5 if attempt < 3 else 0.25
        if not accepted:
            if kind == HUBER and not smooth:
                smooth = True
                continue
            # Rounding: no step can be seen to help.
            status = CONVERGED
            break
        n_iter += 1
        last = length == 1.0 and not smooth and decrement <= LAST * abs(value_there)
        smooth = False
        value = value_there
        for a in range(k):
            beta[a] = trial[a]
        for i in range(n):
            u[i] = trial_u[i]
        if last and kind != HUBER:
            _derivatives(kind, u, y, weight, delta, smooth, r, h)
            status = CONVERGED
            break
    if kind == HUBER:
        smooth = True
        _derivatives(kind, u, y, weight, delta, smooth, r, h)
        _products(Z, r, h, gradient, hessian)
        for a in range(k):
            hessian[a, a] += ridge[a]
    elif status != ABORTED and status != SEPARATED:  # noqa: PLR1714 - compiles in less time
        _scores(Z, step, trial_u)
        for i in range(n):
            if weight[i] > 0.0 and abs(trial_u[i]) > FAR_STEP:
                status = FAR
                break
    if status != ABORTED:
        _invert(hessian, factor, inverse)
    return value, status, n_iter
