r"""Approximate message passing with a prior that is learned from the signal.

The coefficients are taken to be independent: zero, or drawn from a mixture of Gaussians whose
means and variances are learned by expectation maximization. One zero-mean component is the
Bernoulli-Gaussian prior; two components at :math:`\pm a` suit amplitudes that keep away from zero,
signs above all. Several signals are columns of one matrix and share every product with the
dictionary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ellzero.sensing.dictionaries import Dictionary, Floats

Prior = Literal["gaussian", "pair", "signs"]

# Effective noise below this share of the mean square of the signal is rounding.
FLOOR = 1e-28
# Change of the estimate, relative, at which an iteration has settled,
SETTLED = 1e-5
# or relative to the error that remains by its own account, once that is small.
SHARE_OF_ERROR = 3e-3
# Expected relative squared error up to which an estimate is taken to have found the signal.
BELIEVED = 0.05


@dataclass(frozen=True)
class Estimate:
    """What message passing believes.

    Parameters
    ----------
    mean : ndarray of shape (n_atoms, m)
        Posterior means.
    inclusion : ndarray of shape (n_atoms, m)
        Posterior probabilities of being nonzero.
    noise : ndarray of shape (m,)
        Learned variance of the noise in one sample.
    error : ndarray of shape (m,)
        Expected squared error of the mean over its squared length.
    n_iter : ndarray of shape (m,), int64
        Iterations done.
    settled : ndarray of shape (m,), bool
        Whether the iteration came to rest.
    """

    mean: Floats
    inclusion: Floats
    noise: Floats
    error: Floats
    n_iter: NDArray[np.int64]
    settled: NDArray[np.bool_]


@dataclass(frozen=True)
class _Mixture:
    """Share of nonzeros, and components (c, m) of their amplitudes."""

    share: Floats
    means: Floats
    variances: Floats
    weights: Floats

    def take(self, keep: NDArray[np.bool_]) -> _Mixture:
        return _Mixture(
            self.share[keep],
            self.means[:, keep],
            self.variances[:, keep],
            self.weights[:, keep],
        )


def _begin(prior: Prior, share: Floats, power: Floats) -> _Mixture:
    """Return the first guess: amplitudes of the mean square that explains the signal."""
    if prior == "gaussian":
        one = np.ones((1, share.size))
        return _Mixture(share, 0 * one, power * one, one)
    a = np.sqrt(power)
    half = np.full((2, share.size), 0.5)
    # The narrow start is the better one for signs, and a trap for amplitudes that vary.
    spread = (0.001 if prior == "signs" else 0.05) * power
    return _Mixture(share, np.stack([a, -a]), np.stack([spread] * 2), half)


def _denoise(
    point: Floats, spread: Floats, prior: _Mixture, learn_share: bool
) -> tuple[Floats, Floats, Floats, _Mixture]:
    """Return posterior mean, variance, inclusion, and the prior after one step of learning.

    `point` is the signal plus Gaussian noise of variance `spread`, a number for each column.
    """
    share = np.clip(prior.share, 1e-12, 1 - 1e-12)
    square = point * point
    logs = [np.log1p(-share) - 0.5 * np.log(spread) - square / (2 * spread)]
    centers, widths = [], []
    for mean, variance, weight in zip(prior.means, prior.variances, prior.weights, strict=True):
        total = variance + spread
        away = point - mean
        logs.append(np.log(share * weight) - 0.5 * np.log(total) - away * away / (2 * total))
        centers.append((mean * spread + point * variance) / total)
        widths.append(variance * spread / total)
    top = logs[0]
    for other in logs[1:]:
        top = np.maximum(top, other)
    odds = [np.exp(log - top) for log in logs]
    norm = odds[0].copy()
    for part in odds[1:]:
        norm += part
    chances = [part / norm for part in odds[1:]]
    mean = sum((p * c for p, c in zip(chances, centers, strict=True)), np.zeros_like(point))
    second = np.zeros_like(point)
    for p, c, w in zip(chances, centers, widths, strict=True):
        second += p * (c * c + w)
    inclusion = chances[0] if len(chances) == 1 else chances[0] + chances[1]
    variance = np.maximum(second - mean * mean, 0)
    mass = np.maximum(inclusion.sum(0), 1e-300)
    if len(chances) == 1:
        learned = second.sum(0) / mass
        means, variances = prior.means, np.maximum(learned, 1e-300)[None]
    else:
        level = ((chances[0] * centers[0]).sum(0) - (chances[1] * centers[1]).sum(0)) / mass
        around = np.maximum(second.sum(0) / mass - level * level, 1e-8 * level * level)
        means = np.stack([level, -level])
        variances = np.stack([np.maximum(around, 1e-300)] * 2)
    if learn_share:
        share = np.clip(mass / point.shape[0], 1 / point.shape[0], 1.0)
    return mean, variance, inclusion, _Mixture(share, means, variances, prior.weights)


def first_share(n_samples: int, n_atoms: int) -> float:
    """Return the largest share of nonzeros that l1 minimization recovers from random samples.

    Notes
    -----
    The closed form of the phase transition, maximized over the threshold c.
    """
    delta = min(n_samples / n_atoms, 1.0)
    c = np.linspace(0.01, 5, 500)
    density = np.exp(-c * c / 2) / math.sqrt(2 * math.pi)
    tail = np.array([0.5 * math.erfc(v / math.sqrt(2)) for v in c])
    loss = 2 * ((1 + c * c) * tail - c * density)
    ratio = (1 - loss / delta) / (1 + c * c - loss)
    return float(np.clip(delta * ratio.max(), 1 / n_atoms, 0.95))


def _compress(dictionary: Dictionary, y: Floats) -> tuple[Dictionary, Floats]:
    """Return an equivalent problem with no more samples than atoms."""
    if dictionary.matrix is None or dictionary.n_samples <= dictionary.n_atoms:
        return dictionary, y
    q, r = np.linalg.qr(dictionary.matrix)
    return Dictionary(r), q.T @ y


def _empty(n_atoms: int, m: int) -> Estimate:
    return Estimate(
        np.zeros((n_atoms, m)),
        np.zeros((n_atoms, m)),
        np.zeros(m),
        np.full(m, np.inf),
        np.zeros(m, np.int64),
        np.zeros(m, bool),
    )


def _judge(new: Floats, old: Floats, variance: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the expected relative squared error, and where the estimate has settled."""
    square = np.maximum(np.einsum("ij,ij->j", new, new), 1e-300)
    move = new - old
    change = np.sqrt(np.einsum("ij,ij->j", move, move) / square)
    error = variance.sum(0) / square
    near = (error < BELIEVED) & (change < SHARE_OF_ERROR * np.sqrt(error))
    return error, near | (change < SETTLED)


def vector_amp(
    dictionary: Dictionary,
    y: Floats,
    n_nonzero: int | None,
    *,
    prior: Prior = "pair",
    noise: float | None = None,
    damping: float = 0.9,
    max_iter: int = 200,
) -> Estimate:
    """Estimate sparse signals by vector approximate message passing.

    Alternates between the least-squares estimate under a Gaussian prior and the posterior mean
    under the mixture, each told what the other knows beyond itself.

    Parameters
    ----------
    dictionary : Dictionary
        One that has a `spectrum`.
    y : ndarray of shape (n_samples, m)
        Signals, each of length about one.
    n_nonzero : int or None
        Budget; it fixes the share of nonzeros of the prior. None learns the share.
    prior : {"gaussian", "pair", "signs"}, default="pair"
        One zero-mean component, or two that are mirror images; narrow at first for "signs".
    noise : float or None, default=None
        Standard deviation of the noise; None learns it.
    damping : float, default=0.9
        Share of the new message in every update; 1 is undamped.
    max_iter : int, default=200
        Largest number of iterations.

    Returns
    -------
    Estimate
        Posterior means and what is known of their error.

    Notes
    -----
    Two products with the dictionary and two with the eigenvectors of ``D @ D.T`` an iteration;
    the eigenvectors once. Exact in the limit of large dictionaries whose right singular vectors
    are uniformly random, of any spectrum [1]_; the noise and the prior are learned as in [2]_.

    References
    ----------
    .. [1] S. Rangan, P. Schniter and A. K. Fletcher, "Vector approximate message passing",
       arXiv:1610.03082.
    .. [2] J. P. Vila and P. Schniter, "Expectation-maximization Gaussian-mixture approximate
       message passing", arXiv:1207.3107.
    """
    dictionary, y = _compress(dictionary, y)
    spectrum = dictionary.spectrum
    assert spectrum is not None
    n, n_atoms = dictionary.n_samples, dictionary.n_atoms
    m = y.shape[1]
    values = spectrum.values[:, None]
    out = _empty(n_atoms, m)
    share = (n_nonzero / n_atoms) if n_nonzero is not None else first_share(n, n_atoms)
    energy = np.maximum(np.einsum("ij,ij->j", y, y), 1e-300)
    power = energy / (share * n_atoms)
    belief = _begin(prior, np.full(m, share), power)
    hiss = energy / n * 1e-2 if noise is None else np.full(m, max(noise**2, 1e-300))
    floor = FLOOR * energy / n
    hiss = np.maximum(hiss, floor)
    active = np.arange(m)
    second = np.zeros((n_atoms, m))
    sure2 = 1 / (share * power)
    message = np.zeros((n_atoms, m))
    sure1 = np.zeros(m)
    mean = np.zeros((n_atoms, m))
    for it in range(max_iter):
        shortfall = spectrum.forward(y - dictionary.times(second))
        gain = 1 / (values + sure2 * hiss)
        kept = (values * gain).sum(0) / n_atoms
        scaled = gain * shortfall
        linear = second + dictionary.adjoint(spectrum.backward(scaled))
        if noise is None:
            left = sure2 * hiss * scaled
            hiss = np.maximum(((left * left).sum(0) + hiss * kept * n_atoms) / n, floor)
        total = sure2 / np.clip(1 - kept, 1e-12, 1)
        fresh = np.clip(total - sure2, 1e-12 / power, 1e20 / power)
        update = (total * linear - sure2 * second) / fresh
        if it == 0:
            message, sure1 = update, fresh
        else:
            message = damping * update + (1 - damping) * message
            spread = damping / np.sqrt(fresh) + (1 - damping) / np.sqrt(sure1)
            sure1 = 1 / spread**2
        old = mean
        mean, variance, inclusion, belief = _denoise(message, 1 / sure1, belief, n_nonzero is None)
        mass = np.clip(variance.mean(0) * sure1, 1e-12, 1 - 1e-9)
        total = sure1 / mass
        sure2 = np.clip(total - sure1, 1e-12 / power, 1e22 / power)
        second = (total * mean - sure1 * message) / sure2
        error, settled = _judge(mean, old, variance)
        broken = ~np.isfinite(mean).all(0)
        ended = settled | broken | (it + 1 == max_iter)
        if ended.any():
            where = active[ended]
            out.mean[:, where] = np.where(broken, 0.0, mean)[:, ended]
            out.inclusion[:, where] = np.where(broken, 0.0, inclusion)[:, ended]
            out.noise[where] = hiss[ended]
            out.error[where] = np.where(broken, np.inf, error)[ended]
            out.n_iter[where] = it + 1
            out.settled[where] = (settled & ~broken)[ended]
            if ended.all():
                break
            go = ~ended
            active, y, power, floor = active[go], y[:, go], power[go], floor[go]
            second, message, mean = second[:, go], message[:, go], mean[:, go]
            sure1, sure2, hiss, belief = sure1[go], sure2[go], hiss[go], belief.take(go)
    return out


def amp(
    dictionary: Dictionary,
    y: Floats,
    n_nonzero: int | None,
    *,
    prior: Prior = "pair",
    noise: float | None = None,
    damping: float = 0.9,
    max_iter: int = 400,
) -> Estimate:
    r"""Estimate sparse signals by approximate message passing.

    .. math:: r = x + D^T z, \quad x^+ = E[x \mid r], \quad
        z^+ = y - D x^+ + \tfrac{z}{n} \sum_j \eta'(r_j)

    Parameters
    ----------
    dictionary : Dictionary
        Only products are asked for.
    y : ndarray of shape (n_samples, m)
        Signals, each of length about one.
    n_nonzero : int or None
        Budget; it fixes the share of nonzeros of the prior. None learns the share.
    prior : {"gaussian", "pair", "signs"}, default="pair"
        One zero-mean component, or two that are mirror images; narrow at first for "signs".
    noise : float or None, default=None
        Standard deviation of the noise; the effective noise is never taken to be below it.
    damping : float, default=0.9
        Share of the new message in every update; 1 is undamped.
    max_iter : int, default=400
        Largest number of iterations.

    Returns
    -------
    Estimate
        Posterior means and what is known of their error.

    Notes
    -----
    Two products with the dictionary an iteration. Exact in the limit of large dictionaries with
    independent entries [1]_; on others it may diverge, which `Estimate.settled` tells.

    References
    ----------
    .. [1] D. L. Donoho, A. Maleki and A. Montanari, "Message passing algorithms for compressed
       sensing", arXiv:0907.3574.
    """
    n, n_atoms = dictionary.n_samples, dictionary.n_atoms
    m = y.shape[1]
    out = _empty(n_atoms, m)
    share = (n_nonzero / n_atoms) if n_nonzero is not None else first_share(n, n_atoms)
    energy = np.maximum(np.einsum("ij,ij->j", y, y), 1e-300)
    belief = _begin(prior, np.full(m, share), energy / (share * n_atoms))
    floor = np.maximum(FLOOR * energy / n, 0.0 if noise is None else noise**2)
    active = np.arange(m)
    point = np.zeros((n_atoms, m))
    residual = y.copy()
    for it in range(max_iter):
        spread = np.maximum(np.einsum("ij,ij->j", residual, residual) / n, floor)
        message = point + dictionary.adjoint(residual)
        mean, variance, inclusion, belief = _denoise(message, spread, belief, n_nonzero is None)
        reaction = variance.sum(0) / spread / n
        fresh = y - dictionary.times(mean) + reaction * residual
        error, settled = _judge(mean, point, variance)
        broken = ~(np.isfinite(mean).all(0) & np.isfinite(fresh).all(0))
        broken |= spread > 1e6 * energy
        ended = settled | broken | (it + 1 == max_iter)
        if ended.any():
            where = active[ended]
            out.mean[:, where] = np.where(broken, 0.0, mean)[:, ended]
            out.inclusion[:, where] = np.where(broken, 0.0, inclusion)[:, ended]
            out.noise[where] = np.maximum(spread - variance.sum(0) / n, floor)[ended]
            out.error[where] = np.where(broken, np.inf, error)[ended]
            out.n_iter[where] = it + 1
            out.settled[where] = (settled & ~broken)[ended]
            if ended.all():
                break
        go = ~ended
        active, y, floor, energy = active[go], y[:, go], floor[go], energy[go]
        point = damping * mean[:, go] + (1 - damping) * point[:, go]
        residual = damping * fresh[:, go] + (1 - damping) * residual[:, go]
        belief = belief.take(go)
    return out
