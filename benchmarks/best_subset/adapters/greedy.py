"""scikit-learn: orthogonal matching pursuit, and the active set of the lasso path at size k.

Columns are centered and scaled to the same length here, which the class leaves to the user.
"""

import numpy as np

MODULES = ("sklearn.linear_model", "sklearn.feature_selection")
LOSSES = ("squares",)
TASKS = ("fit", "path", "cv")
GROUPS = WEIGHTS = SPARSE = RIDGE = False
SETTINGS = {
    "OMP": {},
    "OMP, class": {"plain": True},
    "OMP, precomputed": {"precompute": True},
    "lasso path": {"lasso": True},
}
ONLY = {"OMP, class": ("fit",), "lasso path": ("fit", "path"), "OMP, precomputed": ("fit", "path")}


def solve(instance, *, lasso=False, plain=False, precompute=False):
    from sklearn.linear_model import (
        OrthogonalMatchingPursuit,
        OrthogonalMatchingPursuitCV,
        lars_path,
        orthogonal_mp,
    )

    X, y, largest = instance.X, instance.y, max(instance.budgets)
    if plain:
        coef = OrthogonalMatchingPursuit(n_nonzero_coefs=largest).fit(X, y).coef_
        return {largest: np.flatnonzero(coef)}
    if instance.task == "cv":
        folds = [
            (
                np.flatnonzero(f != np.arange(len(y)) % 5),
                np.flatnonzero(f == np.arange(len(y)) % 5),
            )
            for f in range(5)
        ]
        model = OrthogonalMatchingPursuitCV(cv=folds, max_iter=largest).fit(X, y)
        return {int(model.n_nonzero_coefs_): np.flatnonzero(model.coef_)}
    if precompute and X.shape[1] > 10_000:
        raise MemoryError("The Gram matrix of so many columns takes gigabytes.")
    X, y = X - X.mean(0), y - y.mean()
    norms = np.sqrt(np.einsum("ij,ij->j", X, X))
    X /= norms
    if lasso:
        _, _, path = lars_path(X, y, method="lasso", max_iter=4 * largest)
        sizes = np.count_nonzero(path, axis=0)
        return {
            k: np.flatnonzero(path[:, np.flatnonzero(sizes == k)[-1]])
            for k in instance.budgets
            if k in sizes
        }
    if len(instance.budgets) == 1:
        coef = orthogonal_mp(X, y, n_nonzero_coefs=largest, precompute=precompute)
        return {largest: np.flatnonzero(coef)}
    path = orthogonal_mp(X, y, n_nonzero_coefs=largest, precompute=precompute, return_path=True)
    return {k: np.flatnonzero(path[:, k - 1]) for k in instance.budgets if k <= path.shape[1]}
