"""Improve a network that somebody trained, on its own activation patterns."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from ellzero.relu.certificate import read_network
from ellzero.relu.losses import loss_of
from ellzero.relu.network import TwoLayerReLU
from ellzero.relu.training import Training, descend, to_network
from ellzero.relu.training import polish as polish_patterns
from ellzero.validation import check_real


def polish(
    network: torch.nn.Module | TwoLayerReLU,
    X: ArrayLike,
    y: ArrayLike,
    penalty: float,
    *,
    loss: str = "squared",
) -> TwoLayerReLU:
    r"""Return the network improved on its own activation patterns, never made worse.

    Parameters
    ----------
    network : torch.nn.Module or TwoLayerReLU
        Linear, ReLU, Linear with one output.
    X : array-like of shape (n_samples, n_features)
        Samples.
    y : array-like of shape (n_samples,)
        Targets; two classes for the logistic loss.
    penalty : float
        Weight of sum_j \|w_j\| \|(u_j, b_j)\|. Must be positive.
    loss : {"squared", "logistic"}, default="squared"
        The loss.

    Returns
    -------
    TwoLayerReLU
        Balanced, zero neurons removed; `to_module()` makes a module of it.

    Raises
    ------
    IncompatibleError
        If the network is not of this kind or does not fit X, or if cvxpy is not installed.

    Notes
    -----
    A stationary network solves the convex program restricted to its own patterns (Pilanci and
    Ergen, arXiv 2002.10553), so a network that this improves was not stationary. L-BFGS goes
    first; the program sees at most 60 distinct patterns, those of the heaviest neurons.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from ellzero.relu import certify_network, polish
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> y = np.abs(X[:, 0])
    >>> _ = torch.manual_seed(0)
    >>> module = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    >>> better = polish(module, X, y, 0.01)
    >>> before, after = (certify_network(n, X, y, 0.01).gap for n in (module, better))
    >>> after < 0.1 * before
    True
    """
    check_real("penalty", penalty, low=0.0, open_low=True)
    numbers, rows, targets = read_network(network, X, y, logistic=loss == "logistic")
    balanced = numbers.balanced()
    fit_intercept = numbers.intercept is not None
    problem = Training(balanced.design(rows), targets, loss_of(loss), penalty, fit_intercept)
    start = (balanced.directions, balanced.outputs, balanced.intercept or 0.0)
    found = descend(problem, *start)
    if problem.value(*found) > problem.value(*start):
        found = start
    neurons, weights, intercept = found
    sizes = np.abs(weights) * np.linalg.norm(neurons, axis=1)
    order = np.argsort(-sizes, kind="stable")
    chosen: list[int] = []
    seen = set()
    for j in order[sizes[order] > 1e-9 * max(float(sizes.max(initial=0.0)), 1e-300)]:
        pattern = ((problem.A @ neurons[j] > 0).tobytes(), bool(weights[j] >= 0))
        if pattern not in seen and len(chosen) < 60:
            seen.add(pattern)
            chosen.append(int(j))
    candidate = polish_patterns(problem, neurons[chosen], weights[chosen], intercept)
    best = min((candidate, found), key=lambda point: problem.value(*point))
    return to_network(*best, biased=numbers.biases is not None, fit_intercept=fit_intercept)
