"""Best subsets for logistic, softmax, Poisson and Huber losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ellzero.core.result import Status
from ellzero.kernels import glm_newton
from ellzero.subset.glm_design import DenseDesign
from ellzero.subset.glm_losses import ScalarLoss
from ellzero.subset.glm_search import Search, Settings, State, clock, search_sizes
from ellzero.subset.results import Subset, SubsetPath

KINDS = {
    "logistic": glm_newton.LOGISTIC,
    "poisson": glm_newton.POISSON,
    "huber": glm_newton.HUBER,
}


def search_glm(
    X: Any,
    y: Any,
    loss: str,
    budgets: Iterable[int],
    *,
    sample_weight: Any = None,
    ridge: float = 0.0,
    fit_intercept: bool = True,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: Any = None,
    lower: Any = None,
    upper: Any = None,
    effort: Any = None,
    time_limit: float | None = None,
    callback: Callable[[Any], Any] | None = None,
    delta: float = 1.35,
) -> SubsetPath:
    """Search for the best subset of features of every size asked for.
    """
    X = np.asarray(X)
    n, p = X.shape
    y = np.asarray(y, dtype=np.float64)
    w = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    w = w / w.sum()
    design = DenseDesign(X, w, fit_intercept)
    def exists(columns):
        from ellzero.objectives import Logistic
        import torch
        f = Logistic(torch.as_tensor(X[:, columns]), torch.as_tensor(y), fit_intercept=fit_intercept)
        return f.has_minimizer_on({n: torch.ones_like(t, dtype=torch.bool) for n, t in f.init_params().items()})

    search = Search(
        design,
        ScalarLoss(KINDS[loss], y, w, delta),
        ridge=ridge,
        fit_intercept=fit_intercept,
        always=np.array(list(always), dtype=np.int64),
        forbidden=np.array(list(forbidden), dtype=np.int64),
        lower=np.full(p, -np.inf),
        upper=np.full(p, np.inf),
        settings=effort or Settings(),
        exists=exists,
        goes_on=clock(time_limit),
    )
    sizes = sorted({int(b) for b in budgets})
    best = search_sizes(search, sizes)

    def subset(state: State) -> Subset:
        index = np.array(state.columns, dtype=np.int64)
        order = np.argsort(index)
        beta = state.fit.beta[search.offset :] / design.scale[index, None]
        intercept = state.fit.beta[0] if fit_intercept else np.zeros(beta.shape[1])
        return Subset(
            index[order], beta[order], intercept - design.mean[index] @ beta, state.value
        )

    return SubsetPath(
        np.array(sizes, dtype=np.int64),
        tuple(subset(best[s]) for s in sizes),
        Status.CONVERGED,
        dict(search.counts),
    )
