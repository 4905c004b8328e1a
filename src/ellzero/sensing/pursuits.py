"""Pursuits, exchanges and basis pursuit for one signal of length one and atoms of length one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import linalg

from ellzero.core.problem import Problem
from ellzero.core.solver import AbstractSolver
from ellzero.objectives import LeastSquares
from ellzero.sensing.dictionaries import Dictionary, Floats, Integers, Spectrum
from ellzero.sets import L0Ball
from ellzero.solving import solve
from ellzero.subset.effort import Effort
from ellzero.subset.gram import gram_of
from ellzero.subset.search import search

# The annotations of scipy do not list its compiled functions.
_lapack: Any = linalg.lapack


def largest(coef: Floats, n_nonzero: int) -> Integers:
    """Return the positions of the largest magnitudes, ascending; zeros never count."""
    order = np.argsort(-np.abs(coef), kind="stable")[:n_nonzero]
    return np.sort(order[coef[order] != 0]).astype(np.int64)


def by_solver(
    dictionary: Dictionary,
    y: Floats,
    n_nonzero: int,
    solver: AbstractSolver[Any],
    start: Floats | None = None,
) -> tuple[Floats, int]:
    """Return coefficients and iterations of a solver of `ellzero.solvers`.

    Parameters
    ----------
    dictionary : Dictionary
        One that has a matrix.
    y : ndarray of shape (n_samples,)
        Signal.
    n_nonzero : int
        Budget.
    solver : AbstractSolver
        How.
    start : ndarray of shape (n_atoms,) or None, default=None
        Where to start; None means zero.

    Returns
    -------
    coef : ndarray of shape (n_atoms,)
        Coefficients.
    n_iter : int
        Iterations done.
    """
    assert dictionary.matrix is not None
    objective = LeastSquares(torch.from_numpy(dictionary.matrix), torch.from_numpy(y.copy()))
    params = None if start is None else {"coef": torch.from_numpy(start.copy())}
    problem = Problem(objective, L0Ball(n_nonzero))
    result = solve(problem, solver, params, certify=False)
    return np.asarray(result.params["coef"], np.float64), result.n_iter


def by_search(dictionary: Dictionary, y: Floats, n_nonzero: int) -> tuple[Floats, int]:
    """Return coefficients that no exchange of two atoms improves, and exchanges made.

    Parameters
    ----------
    dictionary : Dictionary
        One that has a matrix.
    y : ndarray of shape (n_samples,)
        Signal.
    n_nonzero : int
        Budget.

    Returns
    -------
    coef : ndarray of shape (n_atoms,)
        Coefficients.
    n_iter : int
        Exchanges made.
    """
    out = np.zeros(dictionary.n_atoms)
    if n_nonzero == 0:
        return out, 0
    gram = gram_of(dictionary.matrix, y, fit_intercept=False)
    path = search(gram, [n_nonzero], effort=Effort.of("fast"))
    found = path[n_nonzero]
    out[found.support] = found.coef[:, 0]
    swaps = path.measures.get("n_swaps", 0)
    return out, swaps if isinstance(swaps, int) else 0


def _minimize(gram: Floats, cross: Floats, support: Integers) -> Floats:
    block = gram[np.ix_(support, support)]
    factor, info = _lapack.dpotrf(block, lower=1)
    if info == 0:
        return np.asarray(_lapack.dpotrs(factor, cross[support], lower=1)[0])
    return np.asarray(linalg.lstsq(block, cross[support], check_finite=False)[0])


def forward_backward(
    dictionary: Dictionary,
    y: Floats,
    n_nonzero: int | None,
    *,
    residual: float = 1e-9,
    share: float = 0.2,
    net: int = 1,
) -> tuple[Floats, int]:
    """Recover a signal by forward-backward pursuit.

    Adds many atoms by their correlation with the residual, fits, takes the smallest away again,
    fits, so that the support grows by a few atoms an iteration. It may grow past the budget; the
    fit then decides which atoms are kept.

    Parameters
    ----------
    dictionary : Dictionary
        One that has a matrix.
    y : ndarray of shape (n_samples,)
        Signal of length one.
    n_nonzero : int or None
        Budget; None stops at the residual alone.
    residual : float, default=1e-9
        Length of the residual at which to stop.
    share : float, default=0.2
        Atoms added in one iteration, as a share of the samples.
    net : int, default=1
        Atoms by which the support grows.

    Returns
    -------
    coef : ndarray of shape (n_atoms,)
        Coefficients.
    n_iter : int
        Iterations done.

    Notes
    -----
    Two least-squares solutions an iteration, from the products of all atoms, which are computed
    once [1]_.

    References
    ----------
    .. [1] N. B. Karahanoglu and H. Erdogan, "Compressed sensing signal recovery via
       forward-backward pursuit", arXiv:1210.4277.
    """
    gram, cross = dictionary.gram, dictionary.adjoint(y[:, None])[:, 0]
    n, n_atoms = dictionary.n_samples, dictionary.n_atoms
    forward = max(net + 1, round(share * n))
    # The support may pass the budget, as far as the samples can carry it.
    limit = int(min(n_atoms, 0.55 * n if n_nonzero is None else max(0.55 * n, n_nonzero)))
    energy = float(y @ y)
    support = np.zeros(0, np.int64)
    coef = np.zeros(0)
    best, best_energy = (support, coef), energy
    n_iter = 0
    while support.size < limit:
        n_iter += 1
        slope = cross - coef @ gram[support] if support.size else cross
        score = np.abs(slope)
        score[support] = -1
        room = min(forward, n_atoms - support.size, n - support.size)
        if room < 1:
            break
        added = np.argpartition(-score, room - 1)[:room] if room < n_atoms else np.arange(n_atoms)
        wide = np.concatenate([support, added])
        fitted = _minimize(gram, cross, wide)
        size = min(support.size + net, limit, wide.size)
        kept = np.argsort(-np.abs(fitted), kind="stable")[:size]
        support = np.sort(wide[kept])
        coef = _minimize(gram, cross, support)
        left = energy - float(coef @ cross[support])
        if (n_nonzero is None or support.size <= n_nonzero) and left < best_energy:
            best, best_energy = (support, coef), left
        # Near zero the difference of two squares is rounding: look at the residual itself.
        if left <= max(4 * residual**2, 1e-10 * energy):
            error = y - dictionary.columns(support) @ coef
            if float(error @ error) <= residual**2:
                best = (support, coef)
                break
    support, coef = best
    out = np.zeros(n_atoms)
    out[support] = coef
    return out, n_iter


def _nearest(
    point: Floats, dictionary: Dictionary, y: Floats, spectrum: Spectrum, radius: float
) -> Floats:
    """Return the nearest point of which the residual is no longer than `radius`."""
    away = spectrum.forward((y - dictionary.times(point[:, None])[:, 0])[:, None])[:, 0]
    values = spectrum.values
    squares = away * away
    if float(squares.sum()) <= radius * radius:
        return point
    reachable = values > 1e-13 * values.max()
    if radius**2 <= float(squares[~reachable].sum()):
        # No residual is that short: the least one.
        share = np.where(reachable, 1 / np.maximum(values, 1e-300), 0.0)
    else:
        # Newton on 1 / length of the residual, which is close to linear in the multiplier.
        multiplier = 0.0
        for _ in range(50):
            shrunk = 1 / (1 + multiplier * values)
            length = float(np.sqrt((squares * shrunk**2).sum()))
            if length <= radius * (1 + 1e-10):
                break
            slope = float((squares * values * shrunk**3).sum()) / length**3
            multiplier += (1 / radius - 1 / length) / slope
        share = multiplier / (1 + multiplier * values)
    lifted = spectrum.backward((away * share)[:, None])
    return np.asarray(point + dictionary.adjoint(lifted)[:, 0])


def basis_pursuit(
    dictionary: Dictionary, y: Floats, *, radius: float = 0.0, max_iter: int = 1000
) -> tuple[Floats, int]:
    r"""Recover a signal by the smallest sum of magnitudes.

    .. math:: \min_x \|x\|_1 \quad \text{subject to} \quad \|D x - y\| \le \text{radius}

    Parameters
    ----------
    dictionary : Dictionary
        One that has a `spectrum`.
    y : ndarray of shape (n_samples,)
        Signal of length one.
    radius : float, default=0.0
        Length of the residual that is allowed.
    max_iter : int, default=1000
        Largest number of iterations.

    Returns
    -------
    coef : ndarray of shape (n_atoms,)
        Coefficients; sparse, of any number of nonzeros.
    n_iter : int
        Iterations done.

    Notes
    -----
    Alternating direction method of multipliers with an exact projection on the constraint and a
    penalty that balances the two residuals: two products with the dictionary an iteration [1]_.

    References
    ----------
    .. [1] S. Boyd, N. Parikh, E. Chu, B. Peleato and J. Eckstein, "Distributed optimization and
       statistical learning via the alternating direction method of multipliers", 2011.
    """
    spectrum = dictionary.spectrum
    assert spectrum is not None
    x = _nearest(np.zeros(dictionary.n_atoms), dictionary, y, spectrum, radius)
    threshold = float(np.abs(x).mean()) + 1e-300
    z = np.zeros_like(x)
    dual = np.zeros_like(x)
    n_iter = 0
    for n_iter in range(1, max_iter + 1):
        x = _nearest(z - dual, dictionary, y, spectrum, radius)
        before = z
        moved = x + dual
        z = np.sign(moved) * np.maximum(np.abs(moved) - threshold, 0)
        dual = moved - z
        primal = float(np.linalg.norm(x - z))
        motion = float(np.linalg.norm(z - before))
        scale = max(float(np.linalg.norm(x)), float(np.linalg.norm(z)), 1e-300)
        if max(primal, motion) <= 1e-8 * scale:
            break
        if n_iter % 10 == 0 and n_iter < max_iter // 2:
            if primal > 5 * motion:
                threshold, dual = threshold / 2, dual / 2
            elif motion > 5 * primal:
                threshold, dual = threshold * 2, dual * 2
    return z, n_iter
