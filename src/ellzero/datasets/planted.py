"""Seeded problems with a planted answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ellzero.errors import InvalidParameterError
from ellzero.validation import check_integer, check_real


class Planted(NamedTuple):
    """Problem with a known answer.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, float64.
    y : Tensor of shape (n_samples,)
        Target: float64, or int64 in {0, 1}.
    coef : Tensor of shape (n_features,)
        Coefficients that made the target.
    support : Tensor of shape (n_nonzero,)
        Positions of the nonzeros of `coef`, sorted, int64.
    """

    X: Tensor
    y: Tensor
    coef: Tensor
    support: Tensor


def make_sparse_regression(
    n_samples: int,
    n_features: int,
    n_nonzero: int,
    *,
    noise: float = 0.1,
    correlation: float = 0.0,
    seed: int = 0,
) -> Planted:
    r"""Return a regression whose target depends on few features.

    .. math:: y = X \theta + \sigma z

    where :math:`\theta` is `coef`, :math:`\sigma` is `noise` and :math:`z` is standard normal.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of `X`. Must be at least 1.
    n_nonzero : int
        Number of features that matter. Must be in [0, n_features].
    noise : float, default=0.1
        Standard deviation of the noise. Must be at least 0.
    correlation : float, default=0.0
        Columns i and j have correlation ``correlation ** |i - j|``. Must be in [-0.999, 0.999].
    seed : int, default=0
        Seed of ``numpy.random.default_rng``. Must be at least 0.

    Returns
    -------
    Planted
        The problem and its answer. Nonzero coefficients have magnitudes in [1, 2] and random
        signs, at random positions.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value.

    Examples
    --------
    >>> from ellzero.datasets import make_sparse_regression
    >>> problem = make_sparse_regression(50, 20, 3, noise=0.0)
    >>> bool((problem.X @ problem.coef - problem.y).abs().max() < 1e-12)
    True
    """
    X, coef, support, rng = _plant(
        n_samples, n_features, n_nonzero, noise=noise, correlation=correlation, seed=seed
    )
    y = X @ coef + noise * rng.standard_normal(n_samples)
    return Planted(*map(torch.from_numpy, (X, y, coef, support)))


def make_sparse_classification(
    n_samples: int,
    n_features: int,
    n_nonzero: int,
    *,
    noise: float = 1.0,
    correlation: float = 0.0,
    seed: int = 0,
) -> Planted:
    r"""Return a problem of two classes that depend on few features.

    .. math:: y = 1 \text{ if } X \theta + \sigma z > 0 \text{ else } 0

    where :math:`\theta` is `coef`, :math:`\sigma` is `noise` and :math:`z` is standard logistic.
    With ``noise=1`` this is the logistic model with coefficients `coef`.

    Parameters
    ----------
    n_samples, n_features : int
        Shape of `X`. Must be at least 1.
    n_nonzero : int
        Number of features that matter. Must be in [0, n_features].
    noise : float, default=1.0
        Scale of the noise. Must be at least 0; 0 gives linearly separable classes.
    correlation : float, default=0.0
        Columns i and j have correlation ``correlation ** |i - j|``. Must be in [-0.999, 0.999].
    seed : int, default=0
        Seed of ``numpy.random.default_rng``. Must be at least 0.

    Returns
    -------
    Planted
        The problem and its answer, drawn as in `make_sparse_regression`.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value.

    Examples
    --------
    >>> from ellzero.datasets import make_sparse_classification
    >>> problem = make_sparse_classification(50, 20, 3)
    >>> problem.y.unique().tolist(), len(problem.support)
    ([0, 1], 3)
    """
    X, coef, support, rng = _plant(
        n_samples, n_features, n_nonzero, noise=noise, correlation=correlation, seed=seed
    )
    y = (X @ coef + noise * rng.logistic(size=n_samples) > 0).astype(np.int64)
    return Planted(*map(torch.from_numpy, (X, y, coef, support)))


class PlantedSignal(NamedTuple):
    """Series with a known signal.

    Parameters
    ----------
    y : ndarray of shape (n_samples,)
        Samples, float64.
    signal : ndarray of shape (n_samples,)
        Signal behind them.
    support : ndarray of shape (n_nonzero,)
        Positions of its nonzeros, sorted, int64.
    """

    y: NDArray[np.float64]
    signal: NDArray[np.float64]
    support: NDArray[np.int64]


def make_sparse_signal(
    n_samples: int = 1000,
    n_bumps: int = 10,
    *,
    length: int = 20,
    noise: float = 0.5,
    nonnegative: bool = False,
    seed: int = 0,
) -> PlantedSignal:
    r"""Return a series of few smooth bumps in noise.

    .. math:: y_i = x_i + \sigma z_i

    where :math:`\sigma` is `noise` and :math:`z` is standard normal.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of samples. Must be at least 1.
    n_bumps : int, default=10
        Number of bumps, with at least one zero between them. Must be at least 0.
    length : int, default=20
        Samples of a bump. Must be at least 1.
    noise : float, default=0.5
        Standard deviation of the noise. Must be at least 0.
    nonnegative : bool, default=False
        Whether all bumps are positive; else their signs are random.
    seed : int, default=0
        Seed of ``numpy.random.default_rng``. Must be at least 0.

    Returns
    -------
    PlantedSignal
        The series and its signal. Bumps rise to a height in [1.5, 2.5] as half a sine above half
        of that height, at random positions.

    Raises
    ------
    InvalidParameterError
        If a parameter has a wrong value, or the bumps do not fit.

    Examples
    --------
    >>> from ellzero.datasets import make_sparse_signal
    >>> from ellzero.signal import SparseSmooth
    >>> y, signal, support = make_sparse_signal(300, 3, noise=0.3)
    >>> est = SparseSmooth(smoothness=2.0, n_nonzero=60, n_bumps=3).fit(y)
    >>> len(set(est.support_) & set(support)) >= 55, est.certificate_.claim.name
    (True, 'OPTIMAL')
    """
    check_integer("n_samples", n_samples, 1)
    check_integer("n_bumps", n_bumps, 0)
    check_integer("length", length, 1)
    check_real("noise", noise, 0.0)
    check_integer("seed", seed, 0)
    free = n_samples - n_bumps * length - max(n_bumps - 1, 0)
    if free < 0:
        raise InvalidParameterError(
            f"{n_bumps} bumps of {length} samples need {n_samples - free} samples, got "
            f"{n_samples}.",
            "Pass a larger `n_samples`, or a smaller `n_bumps` or `length`.",
        )
    rng = np.random.default_rng(seed)
    # Zeros that are left over go before, between and after bumps.
    starts = np.sort(rng.integers(0, free + 1, n_bumps)) + np.arange(n_bumps) * (length + 1)
    shape = 0.5 + 0.5 * np.sin(np.pi * (np.arange(length) + 0.5) / length)
    heights = rng.uniform(1.5, 2.5, n_bumps)
    if not nonnegative:
        heights *= rng.choice([-1.0, 1.0], n_bumps)
    signal = np.zeros(n_samples)
    for start, height in zip(starts, heights, strict=True):
        signal[start : start + length] = height * shape
    y = signal + noise * rng.standard_normal(n_samples)
    return PlantedSignal(y, signal, np.flatnonzero(signal).astype(np.int64))


def _plant(
    n_samples: int, n_features: int, n_nonzero: int, *, noise: float, correlation: float, seed: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], np.random.Generator]:
    check_integer("n_samples", n_samples, 1)
    check_integer("n_features", n_features, 1)
    check_integer("n_nonzero", n_nonzero, 0, n_features, meaning="the number of features")
    check_real("noise", noise, 0.0)
    check_real("correlation", correlation, -0.999, 0.999)
    check_integer("seed", seed, 0)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_features))
    for j in range(1, n_features if correlation else 0):
        X[:, j] = correlation * X[:, j - 1] + np.sqrt(1 - correlation**2) * X[:, j]
    support = np.sort(rng.choice(n_features, n_nonzero, replace=False)).astype(np.int64)
    coef = np.zeros(n_features)
    coef[support] = rng.choice([-1.0, 1.0], n_nonzero) * rng.uniform(1.0, 2.0, n_nonzero)
    return X, coef, support, rng
