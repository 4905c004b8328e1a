"""Sparse and smooth signals behind scikit-learn's conventions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone  # noqa: TID253
from sklearn.utils.validation import check_is_fitted  # noqa: TID253

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.signal.certificate import certify_chain, certify_forest
from ellzero.signal.chain import Chain, Line, solve_budgeted, solve_penalized
from ellzero.signal.criteria import ebic
from ellzero.signal.inputs import (
    Samples,
    read_budgets,
    read_graph,
    read_positions,
    read_samples,
    read_smoothness,
    root_forest,
)
from ellzero.signal.solution import Integers
from ellzero.signal.tree import Forest, solve_forest_budgeted, solve_forest_penalized
from ellzero.validation import check_choice, check_integer, check_real


class SparseSmooth(BaseEstimator):
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
    bump_penalty : float, default=0.0
        Cost of every bump, a run of nonzeros on a chain; with `penalty` only. Must be at least 0.
    known_zeros : array of int or None, default=None
        Positions where the signal is zero.
    known_ones : array of int or None, default=None
        Positions where the signal may differ from zero at no cost. In a budget they count,
        whether they differ from zero or not.
    time_limit : float or None, default=None
        Seconds after which no further program begins; None means no limit.
    certify : bool, default=True
        Whether to compute the certificate.

    Attributes
    ----------
    signal_ : ndarray of the shape of `y`, or pandas.Series with its index
        The estimate.
    support_ : ndarray of shape (n_nonzero,), int64
        Positions of its nonzeros, in the order of the flattened samples. With `nonnegative` and
        `bump_penalty`, a zero that holds two parts of a bump together belongs to it.
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
    forests come with the gap that multipliers leave. The certificate recomputes the lower bound
    on chains: for budgets on long or nonnegative chains, or with known zeros and ones, that of
    one multiplier; on forests it checks count and slopes only. Time is a few times n_samples,
    more where `smoothness` is far above the weights. NaN are missing samples: their weight is 0.

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
        bump_penalty: float = 0.0,
        known_zeros: Any = None,
        known_ones: Any = None,
        time_limit: float | None = None,
        certify: bool = True,
    ) -> None:
        self.smoothness = smoothness
        self.n_nonzero = n_nonzero
        self.penalty = penalty
        self.nonnegative = nonnegative
        self.graph = graph
        self.bump_penalty = bump_penalty
        self.known_zeros = known_zeros
        self.known_ones = known_ones
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
        return self._fit(self._read(y, sample_weight), self.n_nonzero, [])

    def _read(self, y: Any, sample_weight: Any) -> _Posed:
        """Return everything that does not depend on the budget, checked."""
        if self.penalty is not None:
            check_real("penalty", self.penalty, 0.0)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0)
        bump = check_real("bump_penalty", self.bump_penalty, 0.0)
        samples = read_samples(y, sample_weight)
        n = samples.y.size
        graph = read_graph(self.graph, samples.shape)
        edges = read_smoothness(self.smoothness, graph.n_edges)
        zeros = read_positions("known_zeros", self.known_zeros, n)
        ones = read_positions("known_ones", self.known_ones, n)
        both = np.intersect1d(zeros, ones)
        if both.size:
            raise InvalidParameterError(
                f"`known_zeros` and `known_ones` must not share a position, both hold {both[0]}."
            )
        kinds = None
        if zeros.size or ones.size:
            kinds = np.ones(n, dtype=np.int8)
            kinds[zeros], kinds[ones] = -1, 0
        if graph.kind == "chain":
            scaled = bump / samples.scale**2
            chain = Chain(samples.y, samples.weights, edges, bool(self.nonnegative), kinds, scaled)
            return _Posed(samples, chain)
        if graph.kind != "forest":
            raise IncompatibleError(
                f"`graph` must be a chain or a forest, got a graph with {graph.n_edges} edges "
                f"between {n} samples, which has cycles.",
                "Leave edges out until no cycle is left.",
            )
        if bump > 0:
            raise IncompatibleError("`bump_penalty` needs a chain, got a forest.")
        rooted = root_forest(graph, n)
        order = rooted.order
        up = np.where(rooted.edge >= 0, edges[rooted.edge] if edges.size else 0.0, 0.0)
        forest = Forest(
            samples.y[order], samples.weights[order], rooted.parent, up, bool(self.nonnegative),
            None if kinds is None else kinds[order],
        )  # fmt: skip
        return _Posed(samples, forest, order)

    def _fit(self, posed: _Posed, n_nonzero: int | None, lines: list[Line]) -> SparseSmooth:
        """Solve for one budget, or the penalized form, and keep the answer."""
        samples, data = posed.samples, posed.data
        unit = samples.scale**2
        price, budget = None, None
        if n_nonzero is None:
            price = float(self.penalty or 0.0) / unit
        else:
            budget = self._check_budget(n_nonzero, data)
        certificate = None
        if isinstance(data, Chain):
            if price is not None:
                found = solve_penalized(data, price)
            else:
                found = solve_budgeted(data, budget or 0, time_limit=self.time_limit, lines=lines)
            if self.certify:
                certificate = certify_chain(
                    data, found, budget=budget, penalty=price, scale=samples.scale
                )
        else:
            if price is not None:
                found = solve_forest_penalized(data, price)
            else:
                found = solve_forest_budgeted(data, budget or 0, time_limit=self.time_limit)
            if self.certify:
                certificate = certify_forest(data, found, budget=budget, scale=samples.scale)
        if posed.order is not None:
            signal, support = np.empty_like(found.signal), np.empty_like(found.support)
            signal[posed.order], support[posed.order] = found.signal, found.support
            found = replace(found, signal=signal, support=support)
        chosen = found.signal != 0
        if isinstance(data, Chain) and data.bump > 0:
            chosen |= found.support
        self.solution_ = found
        self.signal_ = samples.restore(found.signal * samples.scale)
        self.support_ = np.flatnonzero(chosen).astype(np.int64)
        self.value_ = found.value * unit
        self.lower_bound_ = found.lower_bound * unit
        self.gap_ = found.gap
        self.penalty_ = found.penalty * unit if price is None else float(self.penalty or 0.0)
        self.certificate_ = certificate
        return self

    def _check_budget(self, n_nonzero: Any, data: Chain | Forest) -> int:
        """Return how many nonzeros that count are allowed."""
        n = data.size
        check_integer("n_nonzero", n_nonzero, 0)
        if n_nonzero > n:
            raise InvalidParameterError(
                f"`n_nonzero` must be at most {n}, the number of samples, got {n_nonzero}."
            )
        if isinstance(data, Chain) and data.bump > 0:
            raise IncompatibleError(
                "`bump_penalty` needs `penalty`, got a budget.", "Pass `penalty=0.1`."
            )
        if data.kinds is None:
            return int(n_nonzero)
        if isinstance(data, Forest):
            raise IncompatibleError(
                "`known_zeros` and `known_ones` with a budget need a chain, got a forest.",
                "Pass `penalty=0.1`.",
            )
        ones = int(np.count_nonzero(data.kinds == 0))
        if n_nonzero < ones:
            raise InvalidParameterError(
                f"`n_nonzero` must be at least {ones}, the number of `known_ones`, got "
                f"{n_nonzero}."
            )
        return int(n_nonzero) - ones

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
        return self._path(self._read(y, sample_weight), n_nonzero)

    def _path(self, posed: _Posed, n_nonzero: Iterable[int]) -> list[SparseSmooth]:
        lines: list[Line] = []
        return [
            clone(self).set_params(n_nonzero=k, penalty=None)._fit(posed, k, lines)
            for k in read_budgets(n_nonzero)
        ]

    def select(
        self,
        y: Any,
        n_nonzero: Iterable[int] | None = None,
        *,
        criterion: str = "ebic",
        n_folds: int = 5,
        sample_weight: Any = None,
    ) -> SparseSmooth:
        r"""Fit with the budget that a criterion prefers.

        Parameters
        ----------
        y : array of shape (n_samples,), or pandas.Series
            Samples; NaN are missing.
        n_nonzero : iterable of int or None, default=None
            Budgets; None means 0 and about 20 more up to half of the samples.
        criterion : {"ebic", "cv"}, default="ebic"
            What is made small, see Notes.
        n_folds : int, default=5
            Distance of the samples that are left out together. Must be at least 2.
        sample_weight : array of the shape of `y`, or None, default=None
            Weight of every sample.

        Returns
        -------
        SparseSmooth
            The estimator, fitted with the chosen budget, `budget_`; `criterion_` holds all budgets
            and their scores.

        Notes
        -----
        "ebic" is :math:`n \log(R / n) + d \log n + 2 \log\binom{n + 1}{2 b}` for n samples, R the
        weighted squared error, d the degrees of freedom of the smooth fit on the support and b its
        bumps: the last term is the number of supports with as many bumps. "cv" leaves out every
        n_folds-th sample as missing, and scores the weighted squared error of its interpolation.
        """
        check_choice("criterion", criterion, ("ebic", "cv"))
        check_integer("n_folds", n_folds, 2)
        posed = self._read(y, sample_weight)
        data = posed.data
        if not isinstance(data, Chain):
            raise IncompatibleError("`select` needs a chain, got a forest.")
        budgets = _budgets(data) if n_nonzero is None else read_budgets(n_nonzero)
        for budget in budgets:
            self._check_budget(budget, data)
        plain = clone(self).set_params(certify=False)
        if criterion == "ebic":
            scores = [ebic(data, e.solution_) for e in plain._path(posed, budgets)]
        else:
            scores = [0.0] * len(budgets)
            for fold in range(n_folds):
                out = np.zeros(data.size, dtype=np.bool_)
                out[fold::n_folds] = True
                if not data.weights[out].any() or not data.weights[~out].any():
                    continue
                part = replace(data, weights=np.where(out, 0.0, data.weights))
                fits = plain._path(_Posed(posed.samples, part), budgets)
                for k, fit in enumerate(fits):
                    error = (data.y - fit.solution_.signal)[out] ** 2
                    scores[k] += float(data.weights[out] @ error) * posed.samples.scale**2
        best = int(np.argmin(scores))
        self._fit(posed, budgets[best], [])
        self.budget_ = int(budgets[best])
        self.criterion_ = {"n_nonzero": [int(k) for k in budgets], criterion: scores}
        return self


@dataclass(frozen=True, slots=True)
class _Posed:
    """Samples with the data of the program that is solved for them."""

    samples: Samples
    data: Chain | Forest
    order: Integers | None = None


def _budgets(chain: Chain) -> list[int]:
    """Return budgets from the known ones to half of the samples, evenly spread on a log scale."""
    least = 0 if chain.kinds is None else int(np.count_nonzero(chain.kinds == 0))
    most = max((chain.size + 1) // 2, least)
    spread = np.geomspace(1, max(most - least, 1), 20)
    return sorted({least, *(min(most, least + round(k)) for k in spread.tolist())})


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
    smoothness : float or ndarray of shape (n_edges,), default=1.0
        Weight of the squared difference along every edge.
    n_nonzero : int or None, default=None
        Most nonzeros.
    penalty : float or None, default=None
        Cost of a nonzero; exactly one of the two is given.
    nonnegative : bool, default=False
        Whether the signal must not be negative.
    graph : {"chain", "grid"} or ndarray of shape (n_edges, 2), default="chain"
        Which samples are neighbors.
    sample_weight : array of the shape of `y`, or None, default=None
        Weight of every sample; 0 leaves it out.

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
