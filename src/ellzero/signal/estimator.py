"""Sparse and smooth signals behind scikit-learn's conventions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, clone  # noqa: TID253
from sklearn.utils.validation import check_is_fitted  # noqa: TID253

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.signal.budget import Callback, Line
from ellzero.signal.certificate import certify_chain, certify_forest
from ellzero.signal.certificate_graph import certify_mesh
from ellzero.signal.certificate_rules import certify_ruled
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from ellzero.signal.criteria import ebic
from ellzero.signal.graph import Mesh
from ellzero.signal.grid import solve_mesh
from ellzero.signal.inputs import (
    Graph,
    Samples,
    read_budgets,
    read_graph,
    read_positions,
    read_samples,
    read_smoothness,
    root_forest,
)
from ellzero.signal.rules import least_sizes
from ellzero.signal.solution import Floats, Integers
from ellzero.signal.tree import Forest, solve_forest_budgeted, solve_forest_penalized
from ellzero.validation import check_choice, check_integer, check_real

if TYPE_CHECKING:
    from ellzero.core.problem import Problem


class SparseSmooth(BaseEstimator):
    r"""Signal with few nonzeros that follows the data and varies little along a graph.

    .. math:: \min_x \sum_i w_i (y_i - x_i)^2 + \sum_{(i, j)} \lambda_{ij} (x_i - x_j)^2
        + \mu \|x\|_0 \quad \text{or} \quad \|x\|_0 \le k

    with :math:`\lambda` = `smoothness`, :math:`\mu` = `penalty` and :math:`k` = `n_nonzero`.

    Parameters
    ----------
    smoothness : float or ndarray of shape (n_edges,), default=1.0
        Weight of the squared difference along every edge. Must be at least 0. The edges of a
        grid are those along its rows, row by row, then those along its columns, row by row.
    n_nonzero : int or None, default=None
        Most nonzeros. Must be in [0, n_samples] once data are seen.
    penalty : float or None, default=None
        Cost of a nonzero, in units of the squares of `y`. Must be at least 0. Exactly one of
        `n_nonzero` and `penalty` is given.
    nonnegative : bool, default=False
        Whether the signal must not be negative.
    graph : {"chain", "grid"}, ndarray of shape (n_edges, 2) or ("tree", edges), default="chain"
        Which samples are neighbors: the next one, those beside, above and below, or pairs of
        positions of the flattened samples. Whether edges make a chain, trees or cycles is found
        out; ``("tree", edges)`` refuses cycles.
    bump_penalty : float, default=0.0
        Cost of every bump, a run of the support on a chain. Must be at least 0.
    n_bumps : int or None, default=None
        Most bumps on a chain; None means no limit.
    min_length : int, default=1
        Fewest samples of a bump on a chain. Must be at least 1.
    min_distance : int, default=1
        Fewest zeros between two bumps on a chain. Must be at least 1.
    known_zeros : array of int or None, default=None
        Positions where the signal is zero.
    known_ones : array of int or None, default=None
        Positions of the support: the signal may differ from zero there at no cost. In a budget
        they count, whether they differ from zero or not.
    time_limit : float or None, default=None
        Seconds after which no further program begins, and the best signal so far is returned
        with the bound so far; None means no limit.
    certify : bool, default=True
        Whether to compute the certificate.

    Attributes
    ----------
    signal_ : ndarray of the shape of `y`, or pandas.Series with its index
        The estimate.
    support_ : ndarray of shape (n_nonzero,), int64
        Positions of its nonzeros, in the order of the flattened samples. With rules on bumps,
        the whole bumps: a sample of a bump belongs to it and counts even where it is at zero.
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
        If a parameter is out of range, samples, weights and graph do not fit, or no support
        keeps to the rules.
    NonFiniteError
        If a sample is infinite, or none is a number.
    IncompatibleError
        If bumps have a cost and the graph is no chain, or they and a budget are given.

    Notes
    -----
    Exact on chains, penalized or with a budget, with all rules on the support and their
    combinations, and on forests, penalized or with a budget. The certificate recomputes the lower
    bound with other code; for budgets and limits on bumps on long chains, and for budgets on
    forests, that of the multipliers, and says so. Time is a few times n_samples,
    more where `smoothness` is far above the weights. NaN are missing samples: their weight is 0.

    On grids and other graphs with cycles, penalized signals that cannot be negative
    (`nonnegative`, or data at or above zero) are mostly proven optimal, by exact sweeps over
    lines and submodular minimization on windows [3]_; signs of both kinds and budgets come with
    a bound by Lagrangian decomposition into lines or forests. The certificate repeats the steps
    of the proof with other code.

    References
    ----------
    .. [1] A. Atamturk, A. Gomez and S. Han, "Sparse and smooth signal estimation:
       convexification of l0-formulations", JMLR 22(52), 2021, arXiv:1811.02655.
    .. [2] P. Liu, S. Fattahi, A. Gomez and S. Kucukyavuz, "A graph-based decomposition method for
       convex quadratic optimization with indicators", arXiv:2110.12547.
    .. [3] A. Gomez and S. Han, "Convex submodular minimization with indicator variables",
       arXiv:2209.13161.

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
        n_bumps: int | None = None,
        min_length: int = 1,
        min_distance: int = 1,
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
        self.n_bumps = n_bumps
        self.min_length = min_length
        self.min_distance = min_distance
        self.known_zeros = known_zeros
        self.known_ones = known_ones
        self.time_limit = time_limit
        self.certify = certify

    def fit(
        self, y: Any, sample_weight: Any = None, *, callback: Callback | None = None
    ) -> SparseSmooth:
        """Estimate the signal behind samples.

        Parameters
        ----------
        y : array of shape (n_samples,) or (n_rows, n_columns), or pandas.Series
            Samples; NaN are missing.
        sample_weight : array of the shape of `y`, or None, default=None
            Weight of every sample; 0 leaves it out.
        callback : callable or None, default=None
            Called as ``callback(n_calls, value, lower_bound)`` by methods that go in rounds, with
            `y` in units of its largest magnitude; a true return value stops, as an interrupt from
            the keyboard does on grids and graphs, and what there is becomes the fit.

        Returns
        -------
        SparseSmooth
            The fitted estimator.
        """
        self._check_form()
        return self._fit(self._read(y, sample_weight), self.n_nonzero, [], callback)

    def _check_form(self) -> None:
        """Raise unless there is a budget or a penalty."""
        if (self.n_nonzero is None) == (self.penalty is None):
            given = "neither" if self.n_nonzero is None else "both"
            raise InvalidParameterError(
                f"Exactly one of `n_nonzero` and `penalty` must be given, got {given}.",
                "Pass `n_nonzero=20` for a budget, or `penalty=0.1` for a cost of each nonzero.",
            )

    def _read_graph(self, y: Any, sample_weight: Any) -> tuple[Samples, Graph, Floats]:
        """Return samples, graph and weights of the edges, checked."""
        if self.penalty is not None:
            check_real("penalty", self.penalty, 0.0)
        samples = read_samples(y, sample_weight)
        graph = read_graph(self.graph, samples.shape)
        return samples, graph, read_smoothness(self.smoothness, graph.n_edges)

    def _read(self, y: Any, sample_weight: Any) -> _Posed:
        """Return everything that does not depend on the budget, checked."""
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0)
        bump = check_real("bump_penalty", self.bump_penalty, 0.0)
        if self.n_bumps is not None:
            check_integer("n_bumps", self.n_bumps, 0)
        check_integer("min_length", self.min_length, 1)
        check_integer("min_distance", self.min_distance, 1)
        samples, graph, edges = self._read_graph(y, sample_weight)
        n = samples.y.size
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
            chain = Chain(
                samples.y, samples.weights, edges, bool(self.nonnegative), kinds, scaled,
                self.n_bumps, self.min_length, self.min_distance,
            )  # fmt: skip
            return _Posed(samples, chain)
        for name in self._rules():
            raise IncompatibleError(f"`{name}` needs a chain, got a {graph.noun}.")
        if graph.kind != "forest":
            shape = samples.shape if graph.kind == "grid" else None
            held = edges > 0
            mesh = Mesh(
                samples.y, samples.weights, graph.first[held], graph.second[held], edges[held],
                bool(self.nonnegative), kinds, None if shape is None else (shape[0], shape[1]),
            )  # fmt: skip
            return _Posed(samples, mesh)
        rooted = root_forest(graph, n)
        order = rooted.order
        up = np.where(rooted.edge >= 0, edges[rooted.edge] if edges.size else 0.0, 0.0)
        forest = Forest(
            samples.y[order], samples.weights[order], rooted.parent, up, bool(self.nonnegative),
            None if kinds is None else kinds[order],
        )  # fmt: skip
        return _Posed(samples, forest, order)

    def _rules(self) -> list[str]:
        """Return the names of the rules on bumps that are given."""
        given = {
            "bump_penalty": self.bump_penalty > 0,
            "n_bumps": self.n_bumps is not None,
            "min_length": self.min_length > 1,
            "min_distance": self.min_distance > 1,
        }
        return [name for name, here in given.items() if here]

    def _fit(
        self,
        posed: _Posed,
        n_nonzero: int | None,
        lines: list[Line],
        callback: Callback | None = None,
    ) -> SparseSmooth:
        """Solve for one budget, or the penalized form, and keep the answer."""
        samples, data = posed.samples, posed.data
        unit = samples.scale**2
        price, budget = None, None
        if n_nonzero is None:
            price = float(self.penalty or 0.0) / unit
        else:
            budget = self._check_budget(n_nonzero, data)
        if isinstance(data, Chain) and data.has_rules:
            self._check_rules(data, budget)
        certificate = None
        if isinstance(data, Chain):
            if price is not None:
                found = solve_penalized(data, price, time_limit=self.time_limit, callback=callback)
            else:
                found = solve_budgeted(
                    data, budget or 0, time_limit=self.time_limit, callback=callback, lines=lines
                )
            if self.certify:
                certify = certify_ruled if data.has_rules else certify_chain
                certificate = certify(
                    data, found, budget=budget, penalty=price, scale=samples.scale
                )
        elif isinstance(data, Mesh):
            found = solve_mesh(
                data, price=price, budget=budget, time_limit=self.time_limit, callback=callback
            )
            if self.certify:
                certificate = certify_mesh(
                    data, found, budget=budget, penalty=price, scale=samples.scale
                )
        else:
            if price is not None:
                found = solve_forest_penalized(data, price)
            else:
                found = solve_forest_budgeted(
                    data,
                    budget or 0,
                    time_limit=self.time_limit,
                    callback=callback,
                    lines=lines,
                )
            if self.certify:
                certificate = certify_forest(
                    data, found, budget=budget, penalty=price, scale=samples.scale
                )
        if posed.order is not None:
            signal, support = np.empty_like(found.signal), np.empty_like(found.support)
            signal[posed.order], support[posed.order] = found.signal, found.support
            found = replace(found, signal=signal, support=support)
        chosen = found.signal != 0
        if isinstance(data, Chain) and data.has_rules:
            chosen = found.support
        self.solution_ = found
        self.signal_ = samples.restore(found.signal * samples.scale)
        self.support_ = np.flatnonzero(chosen).astype(np.int64)
        self.value_ = found.value * unit
        self.lower_bound_ = found.lower_bound * unit
        self.gap_ = found.gap
        self.penalty_ = found.penalty * unit if price is None else float(self.penalty or 0.0)
        self.certificate_ = certificate
        return self

    def _check_budget(self, n_nonzero: Any, data: Chain | Forest | Mesh) -> int:
        """Return how many nonzeros that count are allowed."""
        n = data.size
        check_budget(n_nonzero, n)
        if data.kinds is None:
            return int(n_nonzero)
        ones = int(np.count_nonzero(data.kinds == 0))
        if n_nonzero < ones:
            raise InvalidParameterError(
                f"`n_nonzero` must be at least {ones}, the number of `known_ones`, got "
                f"{n_nonzero}."
            )
        return int(n_nonzero) - ones

    def _check_rules(self, chain: Chain, budget: int | None) -> None:
        """Raise when no support keeps to the rules."""
        n_bumps, n_nonzero = least_sizes(chain)
        if math.isinf(n_bumps):
            raise InvalidParameterError(
                "No support has `known_zeros` and `known_ones` as given with bumps of at least "
                f"{chain.length} samples and at least {chain.distance} zeros between them.",
                "Reduce `min_length` or `min_distance`, or give fewer known positions.",
            )
        if chain.most_bumps is not None and n_bumps > chain.most_bumps:
            raise InvalidParameterError(
                f"`n_bumps` must be at least {n_bumps:.0f} to hold the `known_ones`, got "
                f"{chain.most_bumps}."
            )
        if budget is not None and n_nonzero > budget:
            ones = 0 if chain.kinds is None else int(np.count_nonzero(chain.kinds == 0))
            raise InvalidParameterError(
                f"`n_nonzero` must be at least {n_nonzero + ones:.0f} to hold the `known_ones` in "
                f"bumps that keep to the rules, got {budget + ones}."
            )

    def predict(self) -> Any:
        """Return the signal."""
        check_is_fitted(self)
        return self.signal_

    def as_problem(self, y: Any, sample_weight: Any = None) -> Problem:
        """Return the same problem for `ellzero.solve` and `ellzero.verify`.

        Parameters
        ----------
        y : array of shape (n_samples,) or (n_rows, n_columns), or pandas.Series
            Samples; NaN are missing.
        sample_weight : array of the shape of `y`, or None, default=None
            Weight of every sample; 0 leaves it out.

        Returns
        -------
        Problem
            A `GraphSmoothness` of the flattened samples, in their own units, with an `L0Ball` for
            `n_nonzero` or an `L0` for `penalty`, and `Nonnegative` or a ball with a lower bound
            for `nonnegative`.

        Raises
        ------
        IncompatibleError
            If there are rules on the support, which the sets do not know.

        Examples
        --------
        >>> import ellzero
        >>> from ellzero.signal import SparseSmooth
        >>> est = SparseSmooth(smoothness=0.5, n_nonzero=2)
        >>> problem = est.as_problem([0.0, 0.1, 3.0, 3.2, -0.1])
        >>> result = ellzero.solve(problem, ellzero.solvers.NIHT())
        >>> round(result.value, 6) == round(est.fit([0.0, 0.1, 3.0, 3.2, -0.1]).value_, 6)
        True
        """
        import torch

        from ellzero.core.problem import Problem
        from ellzero.objectives import GraphSmoothness
        from ellzero.penalties import L0
        from ellzero.sets import L0Ball, Nonnegative

        self._check_form()
        samples, graph, edges = self._read_graph(y, sample_weight)
        known = {
            "known_zeros": self.known_zeros is not None and np.size(self.known_zeros) > 0,
            "known_ones": self.known_ones is not None and np.size(self.known_ones) > 0,
        }
        for name in [*self._rules(), *(name for name, given in known.items() if given)]:
            raise IncompatibleError(
                f"`{name}` has no set in a `Problem`.", "Use `fit`, which keeps to it."
            )
        objective = GraphSmoothness(
            torch.from_numpy(samples.y * samples.scale),
            torch.from_numpy(np.stack([graph.first, graph.second], axis=1)),
            torch.from_numpy(edges),
            torch.from_numpy(samples.weights),
        )
        if self.n_nonzero is None:
            constraint = Nonnegative() if self.nonnegative else None
            return Problem(objective, constraint, L0(float(self.penalty or 0.0)))
        check_budget(self.n_nonzero, samples.y.size)
        return Problem(objective, L0Ball(self.n_nonzero, lower=0.0 if self.nonnegative else None))

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
        y : array of shape (n_samples,) or (n_rows, n_columns), or pandas.Series
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

        Raises
        ------
        IncompatibleError
            If the criterion is "ebic" and the graph has cycles.

        Notes
        -----
        "ebic" is :math:`n \log(R / n) + d \log n + 2 \log\binom{n + 1}{2 b}` for n samples, R the
        weighted squared error, d the degrees of freedom of the smooth fit on the support and b its
        bumps: the last term is the number of supports with as many bumps. On trees it is the
        binomial of the edges over those that join a nonzero and a zero. "cv" leaves out every
        n_folds-th sample, on images those of every n_folds-th diagonal, as missing, and scores the
        weighted squared error of its interpolation: the only criterion on graphs with cycles,
        where every fold solves the budgets anew; `time_limit` holds for each.
        """
        check_choice("criterion", criterion, ("ebic", "cv"))
        check_integer("n_folds", n_folds, 2)
        posed = self._read(y, sample_weight)
        data = posed.data
        if criterion == "ebic" and isinstance(data, Mesh):
            noun = "grid" if data.shape is not None else "graph with cycles"
            raise IncompatibleError(
                f"The criterion 'ebic' needs a chain or a tree, got a {noun}: it counts supports "
                "by their bumps.",
                "Pass `criterion='cv'`.",
            )
        budgets = _budgets(data) if n_nonzero is None else read_budgets(n_nonzero)
        for budget in budgets:
            self._check_budget(budget, data)
        plain = clone(self).set_params(certify=False)
        if criterion == "ebic" and not isinstance(data, Mesh):
            fits = plain._path(posed, budgets)
            scores = [ebic(data, _placed(posed, fit.solution_.signal)) for fit in fits]
        else:
            scores = [0.0] * len(budgets)
            folds = _folds(posed, n_folds)
            for fold in range(n_folds):
                out = folds == fold
                if not data.weights[out].any() or not data.weights[~out].any():
                    continue
                part = replace(data, weights=np.where(out, 0.0, data.weights))
                fits = plain._path(replace(posed, data=part), budgets)
                for k, fit in enumerate(fits):
                    signal = _placed(posed, fit.solution_.signal)
                    error = (data.y - signal)[out] ** 2
                    scores[k] += float(data.weights[out] @ error) * posed.samples.scale**2
        best = int(np.argmin(scores))
        self._fit(posed, budgets[best], [])
        self.budget_ = int(budgets[best])
        self.criterion_ = {"n_nonzero": [int(k) for k in budgets], criterion: scores}
        return self


def check_budget(n_nonzero: Any, n: int) -> None:
    """Raise unless a budget is an integer from 0 to the number of samples."""
    check_integer("n_nonzero", n_nonzero, 0)
    if n_nonzero > n:
        raise InvalidParameterError(
            f"`n_nonzero` must be at most {n}, the number of samples, got {n_nonzero}."
        )


@dataclass(frozen=True, slots=True)
class _Posed:
    """Samples with the data of the program that is solved for them."""

    samples: Samples
    data: Chain | Forest | Mesh
    order: Integers | None = None


def _placed(posed: _Posed, signal: Floats) -> Floats:
    """Return a signal in the order of the program."""
    return signal if posed.order is None else signal[posed.order]


def _folds(posed: _Posed, n_folds: int) -> Integers:
    """Return the fold of every sample, in the order of the program; neighbors differ."""
    shape, n = posed.samples.shape, posed.data.size
    number = np.arange(n)
    if len(shape) == 2:
        # Two steps from row to row: no column is left out as a whole.
        number = (1 if n_folds == 2 else 2) * (number // shape[1]) + number % shape[1]
    return (number if posed.order is None else number[posed.order]) % n_folds


def _budgets(data: Chain | Forest | Mesh) -> list[int]:
    """Return budgets from the known ones to half of the samples, evenly spread on a log scale."""
    least = 0 if data.kinds is None else int(np.count_nonzero(data.kinds == 0))
    if isinstance(data, Chain) and data.has_rules:
        smallest = least_sizes(data)[1]
        least += int(smallest) if math.isfinite(smallest) else 0
    most = max((data.size + 1) // 2, least)
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
    bump_penalty: float = 0.0,
    n_bumps: int | None = None,
    min_length: int = 1,
    min_distance: int = 1,
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
    graph : {"chain", "grid"}, ndarray of shape (n_edges, 2) or ("tree", edges), default="chain"
        Which samples are neighbors.
    bump_penalty : float, default=0.0
        Cost of every bump on a chain.
    n_bumps : int or None, default=None
        Most bumps on a chain.
    min_length, min_distance : int, default=1
        Fewest samples of a bump, and fewest zeros between two, on a chain.
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
        bump_penalty=bump_penalty,
        n_bumps=n_bumps,
        min_length=min_length,
        min_distance=min_distance,
        certify=False,
    )
    return estimator.fit(y, sample_weight).signal_
