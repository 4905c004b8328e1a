"""FISTA with restarts, for the gates of a working set; needs no matrix of n_samples columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ellzero.relu.gated_program import GatedProgram
from ellzero.relu.losses import LogisticLoss

Floats = NDArray[np.float64]
CHECK_EVERY = 20


def smoothness(program: GatedProgram, *, n_steps: int = 60) -> float:
    """Return the largest eigenvalue of sum_i D_i A A' D_i , enlarged a little."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((len(program.A), 1))
    seen = program.patterns
    top = 0.0
    for _ in range(n_steps):
        v /= np.linalg.norm(v)
        image = np.einsum("ij,ij->i", program.A @ (program.A.T @ (seen * v)), seen)[:, None]
        if program.fit_intercept:
            image += program.row_square * v.sum()
        last, top = top, float((v * image).sum())
        v = image
        if top == 0 or abs(top - last) <= 1e-3 * top:
            break
    return 1.02 * top


def proximal(
    program: GatedProgram,
    penalty: float,
    working: NDArray[np.int64],
    weights: Floats,
    constant: Floats,
    point: Floats,
    *,
    tol: float,
    max_iter: int,
    sigma: float | None,
) -> tuple[Floats, Floats, Floats, float, int]:
    """Solve a gated program with the gates of a working set.

    Parameters
    ----------
    program : GatedProgram
        The program.
    penalty : float
        Weight of the norms.
    working : ndarray of int of shape (m,)
        Gates.
    weights : ndarray of shape (m, n_inputs, n_outputs)
        Start.
    constant : ndarray of shape (n_outputs,)
        Start of the intercepts.
    point : ndarray of shape (n_samples, n_outputs)
        Not used; the solvers share a signature.
    tol : float
        Relative gap of the restricted program at which to stop.
    max_iter : int
        Most steps.
    sigma : float or None
        Not used.

    Returns
    -------
    tuple of (weights, constant, point, sigma, n_iter)
        Weights are exactly zero where gates are not used.

    Notes
    -----
    Momentum restarts when it points uphill (O'Donoghue and Candes, 2015); the step length is
    the inverse of the largest eigenvalue, found by power steps, and halves where the value
    rises in spite of a restart. The gap is looked at every 20 steps.
    """
    sub = program.restricted(working)
    A, y, loss = program.A, program.y, program.loss
    n_outputs = y.shape[1]
    seen = sub.patterns
    scale = (0.25 if isinstance(loss, LogisticLoss) else 1.0) / y.size
    step = 1.0 / max(scale * smoothness(sub), 1e-300)
    free = program.row_square if program.fit_intercept else 0.0
    U, c = weights.copy(), constant.copy()
    Z, z, t = U, c, 1.0
    best = (np.inf, U, c, point)
    n_iter = 0
    everything = np.arange(len(working))
    last = np.inf
    while n_iter < max_iter:
        v = sub.residual(sub.outputs(everything, Z, z))
        pull = np.stack([(A.T @ (seen * v[:, [k]])).T for k in range(n_outputs)], axis=2)
        W = Z + step * pull
        norms = np.sqrt((W * W).sum(axis=(1, 2)))
        new = W * np.maximum(0.0, 1.0 - step * penalty / np.maximum(norms, 1e-300))[:, None, None]
        shift = z + free * step * v.sum(axis=0)
        n_iter += 1
        uphill = float(((Z - new) * (new - U)).sum())
        if free > 0:
            uphill += float((z - shift) @ (shift - c)) / free
        if uphill > 0:
            t = 1.0
            Z, z = new, shift
        else:
            after = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * t * t))
            Z = new + (t - 1.0) / after * (new - U)
            z = shift + (t - 1.0) / after * (shift - c)
            t = after
        U, c = new, shift
        if n_iter % CHECK_EVERY == 0 or n_iter >= max_iter:
            used = np.flatnonzero((U != 0).any(axis=(1, 2)))
            objective = sub.value(used, U[used], c, penalty)
            v = sub.residual(sub.outputs(used, U[used], c))
            gap = (objective - sub.bound(v, penalty)[0]) / max(objective, 1e-300)
            if gap < best[0]:
                best = (gap, U, c, v)
            if gap <= tol:
                break
            if objective > last * (1 + 1e-9):
                step *= 0.5
                Z, z, t = U, c, 1.0
            last = objective
    return best[1], best[2], best[3], sigma or 0.0, n_iter
