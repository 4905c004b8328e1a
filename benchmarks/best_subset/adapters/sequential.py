"""scikit-learn: the logistic lasso with the most features up to k, its penalty by bisection."""

import numpy as np

MODULES = ("sklearn.linear_model", "sklearn.feature_selection")
LOSSES = ("logistic",)
TASKS = ("fit",)
GROUPS = WEIGHTS = SPARSE = RIDGE = False
SETTINGS = {"l1": {}}


def solve(instance):
    from sklearn.linear_model import LogisticRegression

    (k,) = instance.budgets
    low, high, best = 1e-4, 1e2, np.zeros(0, dtype=int)
    for _ in range(25):
        middle = float(np.sqrt(low * high))
        model = LogisticRegression(l1_ratio=1, C=middle, solver="liblinear", tol=1e-6)
        support = np.flatnonzero(model.fit(instance.X, instance.y).coef_)
        if len(support) > k:
            high = middle
            continue
        low = middle
        best = support if len(support) >= len(best) else best
        if len(best) == k:
            break
    return {k: best}
