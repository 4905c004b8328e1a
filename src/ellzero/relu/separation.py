"""The neuron that a residual wants most: sup of v'(Au)_+ over the unit ball, from below."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def search_neurons(
    A: Floats,
    point: Floats,
    generator: np.random.Generator,
    *,
    n_starts: int = 300,
    n_iter: int = 150,
    starts: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Return good neurons for a dual point, by ascent from many starts at once.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Design of the neurons, with its column of ones where they have biases.
    point : ndarray of shape (n_samples,)
        The dual point v.
    generator : numpy.random.Generator
        Source of the starts.
    n_starts : int, default=300
        Random starts, half of them rows of A with noise.
    n_iter : int, default=150
        Steps of each.
    starts : ndarray of shape (n, n_inputs) or None, default=None
        Further starts.

    Returns
    -------
    values : ndarray of shape (n,)
        The v'(Au)_+ that were reached, largest first: lower bounds on the supremum only.
    neurons : ndarray of shape (n, n_inputs)
        Unit vectors.

    Notes
    -----
    Each step moves along the gradient A'(1(Au > 0) v), normalized, by a step that shrinks like
    1/k, and projects on the sphere; cost 2 n_samples n_inputs n_starts operations a step.
    """
    n_inputs = A.shape[1]
    directions = generator.standard_normal((n_inputs, n_starts))
    half = n_starts // 2
    rows = A[generator.integers(len(A), size=half)].T
    signs = np.where(generator.random(half) < 0.5, -1.0, 1.0)
    scale = np.linalg.norm(rows, axis=0) / np.sqrt(n_inputs)
    directions[:, :half] = directions[:, :half] * scale + rows * signs
    if starts is not None and len(starts):
        directions = np.column_stack([directions, starts.T])
    directions = _unit(directions)
    best = point @ np.maximum(A @ directions, 0.0)
    kept = directions.copy()
    for step in range(n_iter):
        gradient = A.T @ ((A @ directions > 0) * point[:, None])
        directions = _unit(directions + _unit(gradient) * (1.0 / (1.0 + 0.1 * step)))
        values = point @ np.maximum(A @ directions, 0.0)
        better = values > best
        best = np.where(better, values, best)
        kept[:, better] = directions[:, better]
    order = np.argsort(-best, kind="stable")
    return best[order], np.ascontiguousarray(kept[:, order].T)


def plane_neuron(A: Floats, point: Floats) -> tuple[float, Floats]:
    """Return the best neuron in the plane, exactly.

    Parameters
    ----------
    A : ndarray of shape (n_samples, 2)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.

    Returns
    -------
    value : float
        The supremum of v'(Au)_+ over unit vectors, to rounding; it may be negative.
    neuron : ndarray of shape (2,)
        A unit vector that attains it.

    Notes
    -----
    Samples switch on and off at 2 n angles; between two of them the objective is linear in u
    with a gradient that prefix sums give, and its maximum is at the angle of the gradient when
    that is inside, else at an end. O(n log n).
    """
    angles = np.arctan2(A[:, 1], A[:, 0])
    used = np.hypot(A[:, 0], A[:, 1]) > 0
    pulls = (A * point[:, None])[used]
    angles = angles[used]
    if not len(angles):
        return 0.0, np.array([1.0, 0.0])
    on, off = _wrap(angles - np.pi / 2), _wrap(angles + np.pi / 2)
    events = np.concatenate([on, off])
    order = np.argsort(events, kind="stable")
    # Active on the arc that ends at the first event: those whose arc contains the angle pi.
    start = pulls[on > off].sum(axis=0)
    jumps = np.concatenate([pulls, -pulls])[order]
    gradients = start + np.vstack([np.zeros(2), np.cumsum(jumps, axis=0)])
    edges = events[order]
    lows = np.concatenate([[edges[-1] - 2 * np.pi], edges])
    highs = np.concatenate([edges, [edges[0] + 2 * np.pi]])
    inside = np.arctan2(gradients[:, 1], gradients[:, 0])
    middle = 0.5 * (lows + highs)
    inside = middle + _wrap(inside - middle)
    candidates = np.concatenate([np.clip(inside, lows, highs), lows])
    units = np.column_stack([np.cos(candidates), np.sin(candidates)])
    slopes = np.concatenate([gradients, gradients])
    best = int(np.argmax(np.einsum("ij,ij->i", slopes, units)))
    neuron = units[best]
    return float(point @ np.maximum(A @ neuron, 0.0)), neuron


def line_neuron(A: Floats, point: Floats) -> tuple[float, Floats]:
    """Return the best neuron for one input without bias: the better of the two signs.

    Parameters
    ----------
    A : ndarray of shape (n_samples, 1)
        Design of the neurons.
    point : ndarray of shape (n_samples,)
        The dual point v.

    Returns
    -------
    value : float
        The supremum.
    neuron : ndarray of shape (1,)
        1 or -1.
    """
    right = float(point @ np.maximum(A[:, 0], 0.0))
    left = float(point @ np.maximum(-A[:, 0], 0.0))
    return (right, np.array([1.0])) if right >= left else (left, np.array([-1.0]))


def _unit(columns: Floats) -> Floats:
    """Return the columns divided by their norms."""
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300))


def _wrap(angles: Floats) -> Floats:
    """Return angles in (-pi, pi]."""
    return np.asarray(-((-angles + np.pi) % (2 * np.pi) - np.pi))
