"""Seeded problems with a planted answer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
