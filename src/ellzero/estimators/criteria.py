"""Information criteria of a path."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from ellzero.estimators.inputs import Floats

CRITERIA = ("aic", "bic", "ebic", "sic")


def log_choose(n: int, k: Floats) -> Floats:
    """Return the logarithm of the binomial coefficient."""
    out: Floats = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return out


def information_criteria(
    deviance: Floats,
    n_parameters: Floats,
    n_chosen: Floats,
    *,
    n_samples: float,
    n_candidates: int,
    gamma: float = 1.0,
) -> dict[str, Floats]:
    r"""Return every criterion for every model of a path; the smallest is the best.

    With D the deviance (minus twice the log-likelihood), k the number of free coefficients, q of
    p candidates chosen and N samples,

    .. math::
        \mathrm{AIC} &= D + 2 k \\
        \mathrm{BIC} &= D + k \log N \\
        \mathrm{EBIC} &= D + k \log N + 2 \gamma \log \binom{p}{q} \\
        \mathrm{SIC} &= D + k \log p \, \log \log N

    Parameters
    ----------
    deviance : ndarray of shape (m,)
        Minus twice the log-likelihood, up to a constant.
    n_parameters : ndarray of shape (m,)
        Free coefficients; intercepts are in every model and do not count.
    n_chosen : ndarray of shape (m,)
        Chosen features (groups where groups are chosen).
    n_samples : float
        Number of samples, or the sum of their weights.
    n_candidates : int
        Features (groups) to choose from.
    gamma : float, default=1.0
        Weight of the number of models of equal size in EBIC; 0 gives BIC.

    Returns
    -------
    dict of str to ndarray of shape (m,)
        ``aic``, ``bic``, ``ebic`` and ``sic``.

    References
    ----------
    .. [1] J. Chen and Z. Chen, "Extended Bayesian information criteria for model selection with
       large model spaces", Biometrika, 2008.
    .. [2] J. Zhu, C. Wen, J. Zhu, H. Zhang and X. Wang, "A polynomial algorithm for best-subset
       selection problem", PNAS, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.estimators.criteria import information_criteria
    >>> table = information_criteria(
    ...     np.array([100.0, 80.0]), np.array([0.0, 1.0]), np.array([0.0, 1.0]),
    ...     n_samples=50, n_candidates=10)
    >>> {name: values.round(2).tolist() for name, values in table.items()}
    {'aic': [100.0, 82.0], 'bic': [100.0, 83.91], 'ebic': [100.0, 88.52], 'sic': [100.0, 83.14]}
    """
    log_n = math.log(max(n_samples, 1.0))
    log_p = math.log(max(n_candidates, 2))
    log_log_n = math.log(max(log_n, 1.0))
    bic = deviance + n_parameters * log_n
    return {
        "aic": deviance + 2 * n_parameters,
        "bic": bic,
        "ebic": bic + 2 * gamma * log_choose(n_candidates, n_chosen),
        "sic": deviance + n_parameters * log_p * log_log_n,
    }


def gaussian_deviance(residual: Floats, total: float, n_samples: float, n_outputs: int) -> Floats:
    """Return N m log(RSS / (N m)), the deviance with the noise variance estimated."""
    count = n_samples * n_outputs
    # Residuals below rounding are all one: an exact fit is not better than another exact fit.
    floor = max(total, np.finfo(np.float64).tiny) * 1e-20
    return np.asarray(count * np.log(np.maximum(residual, floor) / count))
