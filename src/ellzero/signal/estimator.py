"""Sparse and smooth signals behind scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator  # noqa: TID253
from sklearn.utils.validation import check_is_fitted  # noqa: TID253

from ellzero.core.result import Certificate
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.signal.certificate import certify_chain
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from ellzero.signal.inputs import (
    Graph,
    Samples,
    read_graph,
    read_samples,
    read_smoothness,
    root_forest,
)
from ellzero.signal.solution import Floats, Solution
from ellzero.signal.tree import Forest, solve_forest_budgeted, solve_forest_penalized
from ellzero.validation import check_integer, check_real


class SparseSmooth(BaseEstimator):  # type: ignore[misc]
    r"""Signal with few nonzeros that follows the data and varies little along a graph.

    .. math:: \min_x \sum_i w_i (y_i - x_i)^2 + \sum_{(i, j)} \lambda_{ij} (x_i - x_j)^2
        + \mu \|x\|_0 \quad \text{or} \quad \|x\|_0 \le k

    with :math:`\lambda` = `smoothness`, :math:`\mu` = `penalty` and :math:`k` = `n_nonzero`.

    Parameters
    ----------
    smoothness : float or ndarray of shape (n_edges,), default=1.0
        Weight of the squared difference along every edge. Must be at least 0.
    n_nonzero : int or None, default=None
        Most nonzeros. Must be in [0, n_samples] once data are seen.
    penalty : float or None, default=None
        Cost of a nonzero, in units of the squares of `y`. Must be at least 0. Exactly one of
        `n_nonzero` and `penalty` is given.
    nonnegative : bool, default=False
        Whether the signal must not be negative.
    graph : {"chain", "grid"} or ndarray of shape (n_edges, 2), default="chain"
        Which samples are neighbors: the next one, or pairs of positions that make a forest.
    time_limit : float or None, default=None
        Seconds after which no further program begins; None means no limit.
    certify : bool, default=True
        Whether to compute the certificate.

    Attributes
    ----------
    signal_ : ndarray of the shape of `y`, or pandas.Series with its index
        The estimate.
    support_ : ndarray of shape (n_nonzero,), int64
        Positions of its nonzeros, in the order of the flattened samples.
    value_ : float
        The objective, with `penalty` where it was given.
    lower_bound_ : float
        Proven bound below which no signal is.
    gap_ : float
        Relative distance of the two.
    penalty_ : float
        Cost of a nonzero: `penalty`, or the multiplier of the budget.
    certificate_ : Certificate or None
        What is proven by code that shares nothing with the program.
    solution_ : Solution
        Everything that the program returned, in units of the largest magnitude of `y`.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, or samples, weights and graph do not fit.
    NonFiniteError
        If a sample is infinite, or none is a number.
    IncompatibleError
        If the graph has cycles.

    Notes
    -----
    Exact on chains, penalized or with a budget, and on forests in the penalized form; budgets on
    forests come with the gap that multipliers leave. Time is a few times n_samples, more where
    `smoothness` is far above the weights. NaN are missing samples: their weight is 0.

    References
    ----------
    .. [1] A. Atamturk, A. Gomez and S. Han, "Sparse and smooth signal estimation:
       convexification of l0-formulations", JMLR 22(52), 2021, arXiv:1811.02655.
    .. [2] P. Liu, S. Fattahi, A. Gomez and S. Kucukyavuz, "A graph-based decomposition method for
       convex quadratic optimization with indicators", arXiv:2110.12547.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.signal import SparseSmooth
    >>> y = np.array([0.1, -0.2, 2.1, 1.9, 2.0, 0.1, 0.0, -0.1])
    >>> est = SparseSmooth(smoothness=0.5, n_nonzero=3).fit(y)
    >>> est.support_.tolist(), est.gap_
    ([2, 3, 4], 0.0)
    """

    def __init__(
        self,
        smoothness: Any = 1.0,
        *,
        n_nonzero: int | None = None,
        penalty: float | None = None,
        nonnegative: bool = False,
        graph: Any = "chain",
        time_limit: float | None = None,
        certify: bool = True,
    ) -> None:
        self.smoothness = smoothness
        self.n_nonzero = n_nonzero
        self.penalty = penalty
        self.nonnegative = nonnegative
        self.graph = graph
        self.time_limit = time_limit
        self.certify = certify

    def fit(self, y: Any, sample_weight: Any = None) -> SparseSmooth:
        """Estimate the signal behind samples.

        Parameters
        ----------
        y : array of shape (n_samples,) or (n_rows, n_columns), or pandas.Series
            Samples; NaN are missing.
        sample_weight : array of the shape of `y`, or None, default=None
            Weight of every sample; 0 leaves it out.

        Returns
        -------
        SparseSmooth
            The fitted estimator.
        """
        if (self.n_nonzero is None) == (self.penalty is None):
            given = "neither" if self.n_nonzero is None else "both"
            raise InvalidParameterError(
                f"Exactly one of `n_nonzero` and `penalty` must be given, got {given}.",
                "Pass `n_nonzero=20` for a budget, or `penalty=0.1` for a cost of each nonzero.",
            )
        if self.penalty is not None:
            check_real("penalty", self.penalty, 0.0)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0)
        samples = read_samples(y, sample_weight)
        n = samples.y.size
        if self.n_nonzero is not None:
            check_integer("n_nonzero", self.n_nonzero, 0)
            if self.n_nonzero > n:
                raise InvalidParameterError(
                    f"`n_nonzero` must be at most {n}, the number of samples, got "
                    f"{self.n_nonzero}."
                )
        graph = read_graph(self.graph, samples.shape)
        edges = read_smoothness(self.smoothness, graph.n_edges)
        found, certificate = self._solve(samples, graph, edges)
        unit = samples.scale**2
        self.solution_ = found
        self.signal_ = samples.restore(found.signal * samples.scale)
        self.support_ = np.flatnonzero(found.signal).astype(np.int64)
        self.value_ = found.value * unit
        self.lower_bound_ = found.lower_bound * unit
        self.gap_ = found.gap
        self.penalty_ = found.penalty * unit if self.penalty is None else float(self.penalty)
        self.certificate_ = certificate
        return self

    def _solve(
        self, samples: Samples, graph: Graph, edges: Floats
    ) -> tuple[Solution, Certificate | None]:
        """Return the solution in the units of the scaled samples, and what is proven of it."""
        penalty = None if self.penalty is None else float(self.penalty) / samples.scale**2
        if graph.kind == "chain":
            chain = Chain(samples.y, samples.weights, edges, bool(self.nonnegative))
            if penalty is None:
                found = solve_budgeted(chain, self.n_nonzero or 0, time_limit=self.time_limit)
            else:
                found = solve_penalized(chain, np.full(chain.size, penalty))
            certificate = None
            if self.certify:
                certificate = certify_chain(chain, found, budget=self.n_nonzero, penalty=penalty)
            return found, certificate
        if graph.kind == "forest":
            return self._solve_forest(samples, graph, edges, penalty), None
        raise IncompatibleError(
            f"`graph` must be a chain or a forest, got a graph with {graph.n_edges} edges between "
            f"{samples.y.size} samples, which has cycles.",
            "Leave edges out until no cycle is left.",
        )

    def _solve_forest(
        self, samples: Samples, graph: Graph, edges: Floats, penalty: float | None
    ) -> Solution:
        n = samples.y.size
        rooted = root_forest(graph, n)
        up = np.where(rooted.edge >= 0, edges[rooted.edge] if edges.size else 0.0, 0.0)
        order = rooted.order
        forest = Forest(
            samples.y[order], samples.weights[order], rooted.parent, up, bool(self.nonnegative)
        )
        if penalty is None:
            found = solve_forest_budgeted(forest, self.n_nonzero or 0, time_limit=self.time_limit)
        else:
            found = solve_forest_penalized(forest, np.full(n, penalty))
        signal, support = np.empty(n), np.empty(n, dtype=np.bool_)
        signal[order], support[order] = found.signal, found.support
        return replace(found, signal=signal, support=support)

    def predict(self) -> Any:
        """Return the signal."""
        check_is_fitted(self)
        return self.signal_

    def path(self, y: Any, n_nonzero: Iterable[int], sample_weight: Any = None) -> list[Any]:
        """Return a fitted copy for each of several budgets.

        Parameters
        ----------
        y : array of shape (n_samples,), or pandas.Series
            Samples; NaN are missing.
        n_nonzero : iterable of int
            Budgets.
        sample_weight : array of the shape of `y`, or None, default=None
            Weight of every sample.

        Returns
        -------
        list of SparseSmooth
            In the order of the budgets.
        """
        from sklearn.base import clone

        return [
            clone(self).set_params(n_nonzero=int(k), penalty=None).fit(y, sample_weight)
            for k in n_nonzero
        ]


def denoise(
    y: Any,
    *,
    smoothness: Any = 1.0,
    n_nonzero: int | None = None,
    penalty: float | None = None,
    nonnegative: bool = False,
    graph: Any = "chain",
    sample_weight: Any = None,
) -> Any:
    """Return the sparse and smooth signal behind samples, see `SparseSmooth`.

    Parameters
    ----------
    y : array of shape (n_samples,), or pandas.Series
        Samples; NaN are missing.
    smoothness, n_nonzero, penalty, nonnegative, graph, sample_weight
        As in `SparseSmooth`.

    Returns
    -------
    ndarray of the shape of `y`, or pandas.Series
        The estimate.

    Examples
    --------
    >>> from ellzero.signal import denoise
    >>> denoise([0.0, 0.1, 3.0, 3.2, -0.1], smoothness=0.5, penalty=1.0).round(2).tolist()
    [0.0, 0.0, 2.03, 2.11, 0.0]
    """
    estimator = SparseSmooth(
        smoothness,
        n_nonzero=n_nonzero,
        penalty=penalty,
        nonnegative=nonnegative,
        graph=graph,
        certify=False,
    )
    return estimator.fit(y, sample_weight).signal_
