"""Best subsets for logistic, softmax, Poisson and Huber losses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ellzero.core.result import Status
from ellzero.errors import SeparableError
from ellzero.kernels import glm_newton
from ellzero.subset.glm_inputs import Table, read
from ellzero.subset.glm_losses import AbstractLoss, ScalarLoss, SoftmaxLoss
from ellzero.subset.glm_path import Path, Plan
from ellzero.subset.glm_prices import Units
from ellzero.subset.glm_search import Rules, Search, Separated, State, Stopped
from ellzero.subset.results import Subset, SubsetPath

Callback = Callable[[int, Mapping[str, Any]], "bool | None"]

# Exchanges with the best prices that are solved before a support counts as a local optimum.
TRIALS = 6
# Perturbations without progress after which a search ends, for the default number of them.
PATIENCE = 48
KICKS, POPULATION = 1000, 4


def search_glm(
    X: Any,
    y: Any,
    loss: str,
    budgets: Iterable[int],
    *,
    sample_weight: Any = None,
    ridge: Any = 0.0,
    fit_intercept: bool = True,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: Any = None,
    lower: Any = None,
    upper: Any = None,
    effort: Any = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
    delta: float = 1.35,
) -> SubsetPath:
    r"""Search for the features that minimize a loss, for every budget.

    .. math:: \min_{\theta, b} \; \frac1N \sum_i w_i\, \ell(x_i^T \theta + b, y_i)
        + \tfrac{\lambda}{2} \|\theta\|^2 \quad \text{with at most } s \text{ nonzero features}

    Parameters
    ----------
    X : ndarray, scipy.sparse matrix or Tensor, of shape (n_samples, n_features)
        Features, taken as they are; a sparse matrix is never made dense.
    y : ndarray of shape (n_samples,)
        Target: 0 and 1 for ``"logistic"``, codes from 0 for ``"softmax"``, counts for
        ``"poisson"``, numbers for ``"huber"``.
    loss : {"logistic", "softmax", "poisson", "huber"}
        The loss l, as `Logistic`, `Softmax`, `Poisson` and `Huber` define it.
    budgets : iterable of int
        Largest numbers of features; of groups where `groups` is given.
    sample_weight : ndarray of shape (n_samples,) or None, default=None
        Weights w, as if each sample appeared so often; N is their sum.
    ridge : float or ndarray of shape (n_features,), default=0.0
        The lambda, perhaps one for each feature.
    fit_intercept : bool, default=True
        Whether there is an intercept, which is neither penalized nor counted.
    always : iterable of int, default=()
        Features that every subset contains; they count.
    forbidden : iterable of int, default=()
        Features that no subset contains.
    groups : ndarray of shape (n_features,) or None, default=None
        Integer labels: features with the same label are chosen together.
    lower, upper : float, ndarray of shape (n_features,) or None, default=None
        Bounds on the coefficients, with 0 inside; None means that there are none.
    effort : Effort or None, default=None
        Most perturbations (`kicks`) and local optima kept (`population`); None means the default.
    time_limit : float or None, default=None
        Seconds after which the best so far is returned.
    callback : callable or None, default=None
        Called as ``callback(budget, {"value": ..., "support": ...})`` when a better subset is
        found; a true return value ends the search.
    delta : float, default=1.35
        Residual beyond which the Huber loss is linear.

    Returns
    -------
    SubsetPath
        The best subset found for every budget; `coef` has a column for each class of a softmax
        and one column otherwise.

    Raises
    ------
    InvalidParameterError
        If an argument has a wrong type, shape or value.
    SeparableError
        If the loss has no minimizer on a subset within a budget, and falls lower there than on
        all others.

    Notes
    -----
    At the minimizer on a subset all exchanges of one feature are priced on the quadratic model,
    n p k operations for all of them; the best few are solved exactly by Newton's method and only
    true improvements are taken. Starts come from growth by gradients, from sweeps over the
    budgets and from perturbations of the best subsets. The result does not depend on the units of
    the columns or on chance, and permutes with the columns. It is a local optimum without proof.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.glm import search_glm
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 30))
    >>> y = (X[:, 3] - X[:, 7] + rng.logistic(size=200) > 0).astype(float)
    >>> search_glm(X, y, "logistic", [2])[2].support.tolist()
    [3, 7]
    """
    table = read(
        X,
        y,
        loss,
        budgets,
        sample_weight=sample_weight,
        ridge=ridge,
        fit_intercept=fit_intercept,
        always=always,
        forbidden=forbidden,
        groups=groups,
        lower=lower,
        upper=upper,
        time_limit=time_limit,
        delta=delta,
    )
    return _run(table, effort, time_limit, callback)


def _run(
    table: Table, effort: Any, time_limit: float | None, callback: Callback | None
) -> SubsetPath:
    model: AbstractLoss
    if table.loss == "softmax":
        model = SoftmaxLoss(table.codes, table.weight, table.n_classes)
    else:
        kind = {
            "logistic": glm_newton.LOGISTIC,
            "poisson": glm_newton.POISSON,
            "huber": glm_newton.HUBER,
        }
        model = ScalarLoss(kind[table.loss], table.y, table.weight, table.delta)
    design = table.design
    units = Units(table.members, design)
    rules = Rules(
        table.ridge,
        table.lower,
        table.upper,
        table.fit_intercept,
        table.always,
        units.any(design.usable) & table.open,
    )
    end = None if time_limit is None else time.perf_counter() + time_limit
    status = Status.CONVERGED

    def goes_on() -> None:
        nonlocal status
        if end is not None and time.perf_counter() >= end:
            status = Status.TIME_LIMIT
            raise Stopped

    def report(size: int, state: State) -> None:
        nonlocal status
        if callback is not None:
            index = np.sort(units.join(state.units))
            if callback(size, {"value": state.value, "support": index}):
                status = Status.INTERRUPTED
                raise Stopped

    search = Search(design, model, units, rules, trials=TRIALS, goes_on=goes_on)
    # A kick costs about as much as eight of the compiled ones that an effort counts.
    kicks = KICKS if effort is None else int(effort.kicks) // 8
    population = POPULATION if effort is None else max(1, int(effort.population) // 8)
    plan = Plan(kicks, max(1, PATIENCE * kicks // KICKS), population)
    path = Path(search, table.sizes, plan, report)
    try:
        path.run()
    except Stopped:
        pass
    except Separated as found:
        raise _separable(table, units, found.units) from None
    subsets = [_subset(table, search, path.at(size)) for size in table.sizes]
    return SubsetPath(
        np.array(table.sizes, dtype=np.int64), tuple(subsets), status, dict(search.counts)
    )


def _subset(table: Table, search: Search, state: State) -> Subset:
    """Return a state in the units of the user."""
    design, loss = table.design, search.loss
    index = search.units.join(state.units)
    coef = loss.expand(state.fit.beta[search.offset :] / design.scale[index, None])
    intercept = np.zeros(coef.shape[1])
    if search.offset:
        intercept = loss.expand(state.fit.beta[:1])[0] - design.mean[index] @ coef
    used = (coef != 0).any(axis=1)
    index, coef = index[used], coef[used]
    order = np.argsort(index)
    return Subset(index[order], coef[order], intercept, state.value)


def _separable(table: Table, units: Units, found: tuple[int, ...]) -> SeparableError:
    columns = np.sort(units.join(found)).tolist()
    what = "Zero counts are" if table.loss == "poisson" else "The classes are"
    where = f"features {columns}" if len(columns) != 1 else f"feature {columns[0]}"
    few = f", or budgets below {len(found)}" if len(found) > 1 else ""
    return SeparableError(
        f"{what} separated by {where}, so that the {table.loss} loss has no minimizer there.",
        f"Pass a positive `ridge`, such as `ridge=1e-3`{few}.",
        columns,
    )
