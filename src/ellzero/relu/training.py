"""Training to a point that no neuron improves: insert, descend, polish by a convex program."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ellzero.errors import IncompatibleError
from ellzero.relu.losses import AbstractLoss, LogisticLoss
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.relaxation import conic
from ellzero.relu.separation import line_neuron, plane_neuron, search_neurons

Floats = NDArray[np.float64]
# Insertions after which descent gives way to the program on the patterns.
DESCENTS = 12


@dataclass(frozen=True, slots=True)
class Training:
    """Problem min loss(f(A), y) + penalty sum_j |w_j| |u_j| over networks of every width.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Rows that neurons multiply; with a column of ones last where neurons have biases.
    y : ndarray of shape (n_samples,)
        Targets; labels in {-1, 1} for the logistic loss.
    loss : AbstractLoss
        The loss.
    penalty : float
        Weight of the norm.
    fit_intercept : bool
        Whether a constant is added to the outputs, free of charge.
    """

    A: Floats
    y: Floats
    loss: AbstractLoss
    penalty: float
    fit_intercept: bool

    def outputs(self, neurons: Floats, weights: Floats, intercept: float) -> Floats:
        """Return the outputs of neurons (m, n_inputs) with output weights (m,)."""
        return np.asarray(np.maximum(self.A @ neurons.T, 0.0) @ weights + intercept)

    def value(self, neurons: Floats, weights: Floats, intercept: float) -> float:
        """Return the objective."""
        norm = float(np.abs(weights) @ np.linalg.norm(neurons, axis=1))
        fit = self.loss.value(self.outputs(neurons, weights, intercept), self.y)
        return fit + self.penalty * norm

    def best_neuron(
        self, point: Floats, generator: np.random.Generator, starts: Floats | None = None
    ) -> tuple[Floats, Floats, bool]:
        """Return values and neurons for a dual point, best first, and whether this is exact."""
        if self.A.shape[1] == 1:
            value, neuron = line_neuron(self.A, point)
        elif self.A.shape[1] == 2:
            value, neuron = plane_neuron(self.A, point)
            # A maximizer on the line of a sample has a pattern on either side of it.
            turned = 1e-8 * np.array([-neuron[1], neuron[0]])
            return np.full(2, value), np.stack([neuron + turned, neuron - turned]), True
        else:
            return (*search_neurons(self.A, point, generator, starts=starts), False)
        return np.array([value]), neuron[None], True


def largest_penalty(problem: Training, generator: np.random.Generator) -> float:
    """Return the least penalty found at which the zero network is stationary."""
    constant = problem.loss.constant(problem.y) if problem.fit_intercept else 0.0
    point = problem.loss.residual(np.full(len(problem.y), constant), problem.y)
    tops = [problem.best_neuron(sign * point, generator)[0][0] for sign in (1.0, -1.0)]
    return float(max(tops))


def descend(
    problem: Training, neurons: Floats, weights: Floats, intercept: float, *, max_iter: int = 3000
) -> tuple[Floats, Floats, float]:
    """Return a local minimum of the network with balanced neurons, by L-BFGS."""
    m, n_inputs = neurons.shape
    A, y, penalty = problem.A, problem.y, problem.penalty

    def evaluate(z: Floats) -> tuple[float, Floats]:
        hidden, out = z[: m * n_inputs].reshape(m, n_inputs), z[m * n_inputs : m * n_inputs + m]
        before = A @ hidden.T
        active = np.maximum(before, 0.0)
        outputs = active @ out + (z[-1] if problem.fit_intercept else 0.0)
        pull = -problem.loss.residual(outputs, y)
        value = problem.loss.value(outputs, y)
        value += 0.5 * penalty * float(hidden.ravel() @ hidden.ravel() + out @ out)
        slope_hidden = ((before > 0) * np.outer(pull, out)).T @ A + penalty * hidden
        slope_out = active.T @ pull + penalty * out
        parts = [slope_hidden.ravel(), slope_out]
        if problem.fit_intercept:
            parts.append(np.array([pull.sum()]))
        return value, np.concatenate(parts)

    start = [neurons.ravel(), weights]
    if problem.fit_intercept:
        start.append(np.array([intercept]))
    found = minimize(
        evaluate,
        np.concatenate(start),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 2 * max_iter, "ftol": 1e-15, "gtol": 1e-11,
                 "maxcor": 30},
    )  # fmt: skip
    z = found.x
    hidden, out = z[: m * n_inputs].reshape(m, n_inputs), z[m * n_inputs : m * n_inputs + m]
    return hidden, out, float(z[-1]) if problem.fit_intercept else 0.0


def polish(
    problem: Training, neurons: Floats, weights: Floats, intercept: float
) -> tuple[Floats, Floats, float]:
    """Return the best network with the activation patterns of the given neurons.

    Parameters
    ----------
    problem : Training
        The problem.
    neurons : ndarray of shape (m, n_inputs)
        Their patterns are kept, and the signs of their weights.
    weights : ndarray of shape (m,)
        Output weights.
    intercept : float
        Kept as it is where the network has none.

    Returns
    -------
    tuple of (neurons, weights, intercept)
        Balanced; never worse than what was given, to rounding.

    Notes
    -----
    The convex program min loss + penalty sum |p_j| with (2 D_j - I) A p_j >= 0 (Pilanci and
    Ergen, arXiv 2002.10553), solved by Clarabel through cvxpy; of its m n_samples inequalities
    only those near zero are written, and those that the answer breaks are added. Without cvxpy
    the network is returned as it is.
    """
    try:
        cp = conic()
    except IncompatibleError:
        return neurons, weights, intercept
    A, y = problem.A, problem.y
    n_samples, n_inputs = A.shape
    m = len(weights)
    if m == 0:
        return neurons, weights, intercept
    sizes = np.maximum(np.linalg.norm(A, axis=1), 1e-300)
    signs = np.where(weights >= 0, 1.0, -1.0)
    # Neurons of one pattern and sign are one part of the program.
    kinds = np.column_stack([(A @ neurons.T > 0).T, weights >= 0])
    _, first = np.unique(kinds, axis=0, return_index=True)
    chosen = np.sort(first)
    margins = (A @ neurons[chosen].T) / sizes[:, None]
    patterns, signs, m = margins > 0, signs[chosen], len(chosen)
    near = min(n_samples, 6 * n_inputs)
    watched = np.zeros((n_samples, m), dtype=bool)
    for j in range(m):
        watched[np.argsort(np.abs(margins[:, j]), kind="stable")[:near], j] = True
    best = (neurons, weights, intercept)
    least = problem.value(*best)
    unit = max(least, 1e-300)
    for _ in range(8):
        parts = [cp.Variable(n_inputs) for _ in range(m)]
        shift: Any = cp.Variable() if problem.fit_intercept else 0.0
        outputs = (
            sum(cp.multiply(signs[j] * patterns[:, j], A @ parts[j]) for j in range(m)) + shift
        )
        norm = sum(cp.norm(part, 2) for part in parts)
        if isinstance(problem.loss, LogisticLoss):
            fit = cp.sum(cp.logistic(cp.multiply(-y, outputs))) / n_samples
        else:
            fit = cp.sum_squares(outputs - y) / (2 * n_samples)
        flips = np.where(patterns, 1.0, -1.0) / sizes[:, None]
        conditions = [(A * flips[:, [j]])[watched[:, j]] @ parts[j] >= 0 for j in range(m)]
        program = cp.Problem(cp.Minimize((fit + problem.penalty * norm) / unit), conditions)
        try:
            with warnings.catch_warnings():
                # What is inaccurate is not taken: the value of the network decides.
                warnings.simplefilter("ignore")
                program.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-10,
                              tol_feas=1e-10)  # fmt: skip
        except cp.SolverError:
            break
        if any(part.value is None for part in parts):
            break
        found = np.array([part.value for part in parts])
        lengths = np.linalg.norm(found, axis=1)
        keep = lengths > 1e-9 * max(float(lengths.max()), 1e-300)
        roots = np.sqrt(lengths[keep])
        candidate = (
            found[keep] / roots[:, None],
            signs[keep] * roots,
            float(shift.value) if problem.fit_intercept else intercept,
        )
        value = problem.value(*candidate)
        # Equal to rounding, the program's answer has the better residual: it solves for it.
        if value <= least * (1 + 1e-11):
            best, least = candidate, min(value, least)
        broken = (flips * (A @ found.T) < -1e-9 * lengths) & ~watched
        if not broken.any():
            break
        watched |= broken
    return best


def train(
    problem: Training,
    generator: np.random.Generator,
    *,
    max_rounds: int = 60,
    max_neurons: int | None = None,
    tol: float = 1e-8,
    time_limit: float | None = None,
    callback: Callable[[int, float, int], bool | None] | None = None,
) -> tuple[Floats, Floats, float, int]:
    """Return a network that no single neuron, as far as the search sees, improves.

    Parameters
    ----------
    problem : Training
        The problem.
    generator : numpy.random.Generator
        Source of the starts.
    max_rounds : int, default=60
        Most insertions.
    max_neurons : int or None, default=None
        Most neurons at once; None means no limit.
    tol : float, default=1e-8
        Stop when no neuron's value exceeds the penalty by more than this, relatively.
    time_limit : float or None, default=None
        Seconds after which no further round begins.
    callback : callable or None, default=None
        Called after each round with its number, the value and the number of neurons; a true
        answer stops the training.

    Returns
    -------
    tuple of (neurons, weights, intercept, rounds)
        Balanced neurons.

    Notes
    -----
    Each round takes the best few neurons for the residual and for minus the residual, inserts
    those that violate the dual, descends from there and drops what has become zero. The value
    falls in every round.
    """
    n_inputs = problem.A.shape[1]
    current = (
        np.zeros((0, n_inputs)),
        np.zeros(0),
        problem.loss.constant(problem.y) if problem.fit_intercept else 0.0,
    )
    value = problem.value(*current)
    begun = time.monotonic()
    rounds, convex = 0, False
    while rounds < max_rounds:
        room = None if max_neurons is None else max_neurons - len(current[1])
        fresh, signs = _violators(problem, current, generator, tol=tol, room=room)
        if not len(fresh) and (convex or not len(current[1])):
            break
        size = 0.05 * (float(np.abs(current[1]).max()) if len(current[1]) else 1.0)
        wider = np.vstack([current[0], size * fresh])
        heavier = np.concatenate([current[1], size * signs])
        step = polish if convex else descend
        candidate = _without_zeros(*step(problem, wider, heavier, current[2]))
        rounds += 1
        now = problem.value(*candidate)
        fallen = value - now
        if fallen > 0:
            current, value = candidate, now
        if callback is not None and callback(rounds, value, len(current[1])):
            break
        if time_limit is not None and time.monotonic() - begun > time_limit:
            break
        if fallen <= (1e-15 if convex else 1e-5) * abs(value) or rounds == DESCENTS:
            # Descent has done its part; the program on the patterns is exact from here on.
            if convex and fallen <= 1e-15 * abs(value):
                break
            convex = True
    return (*_without_zeros(*polish(problem, *current)), rounds)


def _violators(
    problem: Training,
    current: tuple[Floats, Floats, float],
    generator: np.random.Generator,
    *,
    tol: float,
    room: int | None,
) -> tuple[Floats, Floats]:
    """Return up to three neurons of each sign that violate the dual, and their signs."""
    point = problem.loss.residual(problem.outputs(*current), problem.y)
    fresh: list[Floats] = []
    signs: list[float] = []
    for sign in (1.0, -1.0):
        values, found, exact = problem.best_neuron(sign * point, generator, current[0])
        taken = 0
        for top, unit in zip(values[:40], found[:40], strict=True):
            if top <= problem.penalty * (1 + tol) or taken == 3:
                break
            others = fresh[len(fresh) - taken :]
            if exact or all(float(unit @ other) < 0.98 for other in others):
                fresh.append(unit)
                signs.append(sign)
                taken += 1
    if room is not None:
        fresh, signs = fresh[: max(room, 0)], signs[: max(room, 0)]
    return np.array(fresh).reshape(len(fresh), problem.A.shape[1]), np.array(signs)


def _without_zeros(
    neurons: Floats, weights: Floats, intercept: float
) -> tuple[Floats, Floats, float]:
    """Return the neurons that are not zero."""
    sizes = np.abs(weights) * np.linalg.norm(neurons, axis=1)
    keep = sizes > 1e-10 * max(float(sizes.max(initial=0.0)), 1e-300)
    return neurons[keep], weights[keep], intercept


def to_network(
    neurons: Floats, weights: Floats, intercept: float, *, biased: bool, fit_intercept: bool
) -> TwoLayerReLU:
    """Return the numbers of a training as a network on the features alone."""
    return TwoLayerReLU(
        neurons[:, :-1] if biased else neurons,
        neurons[:, -1] if biased else None,
        weights,
        intercept if fit_intercept else None,
    )
