"""FasterRisk: beam search for logistic models, then a pool of swaps; before any rounding."""

import numpy as np

MODULES = ("fasterrisk.fasterrisk",)
LOSSES = ("logistic",)
TASKS = ("fit",)
GROUPS = WEIGHTS = SPARSE = RIDGE = False
SETTINGS = {"beam": {"pool": False}, "beam and pool": {"pool": True}}


def solve(instance, *, pool):
    from fasterrisk.fasterrisk import RiskScoreOptimizer

    (k,) = instance.budgets
    y = 2.0 * instance.y - 1
    X = (instance.X - instance.X.mean(0)) / instance.X.std(0)
    made = RiskScoreOptimizer(X, y, k, lb=-1e6, ub=1e6)
    made.sparseLogRegModel_object.get_sparse_sol_via_OMP(
        k=k, parent_size=made.parent_size, child_size=made.child_size
    )
    beta0, beta, ExpyXB = made.sparseLogRegModel_object.get_beta0_betas_ExpyXB()
    if not pool:
        return {k: np.flatnonzero(beta)}
    diverse = made.sparseDiversePoolLogRegModel_object
    diverse.warm_start_from_beta0_betas_ExpyXB(beta0=beta0, betas=beta, ExpyXB=ExpyXB)
    offsets, betas = diverse.get_sparseDiversePool(
        gap_tolerance=made.sparseDiverseSet_gap_tolerance,
        select_top_m=made.sparseDiverseSet_select_top_m,
        maxAttempts=made.sparseDiverseSet_maxAttempts,
    )
    z = (betas @ X.T + np.asarray(offsets)[:, None]) * y
    return {k: np.flatnonzero(betas[int(np.argmin(np.logaddexp(0, -z).sum(1)))])}
