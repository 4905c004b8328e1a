"""OKRidge: the beam search that starts its branch and bound, without the tree."""

import numpy as np

MODULES = ("okridge.solvers", "okridge.tree")
LOSSES = ("squares",)
TASKS = ("fit",)
GROUPS = WEIGHTS = SPARSE = False
RIDGE = True
SETTINGS = {"beam 10": {"width": 10}, "beam 50": {"width": 50}}


def solve(instance, *, width):
    from okridge.solvers import sparseLogRegModel_big_n

    (k,) = instance.budgets
    X, y = instance.X - instance.X.mean(0), instance.y - instance.y.mean()
    X /= X.std(0)
    data = Cross(X, y / y.std(), max(instance.ridge * len(y), 1e-6))
    beam = sparseLogRegModel_big_n(data, parent_size=width, child_size=width)
    beam.get_sparse_sol_via_OMP(k)
    return {k: np.flatnonzero(beam.get_betas())}


class Cross:
    """What the search reads of the data class of the package; its spectrum is for the tree."""

    def __init__(self, X, y, lambda2):
        self.n, self.p = X.shape
        self.X, self.y, self.lambda2 = X, y, lambda2
        self.X_norm_2 = np.einsum("ij,ij->j", X, X)
        self.XTX = X.T @ X
        self.XTX_lambda2 = self.XTX + lambda2 * np.eye(self.p)
        self.XTy = y @ X
        self.half_Lipschitz = self.XTX_lambda2.diagonal()
