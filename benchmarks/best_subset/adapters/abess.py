"""abess: splicing. Its stopping threshold is absolute, so a target with large units helps it.

`default` gets the target as it is; the other settings get it with a standard deviation of 1000.
Of 1, 30, 1000 and 30000, tried on g1, g2, S5, S1, hard and colon, 1 was never better than the
target as it is, and the others gave the same answers, never worse ones. The path settings choose
by a criterion (the package keeps no path); with a criterion of weight 0 the largest model wins.
"""

import numpy as np

MODULES = ("abess",)
LOSSES = ("squares", "logistic", "poisson")
TASKS = ("fit", "path", "cv", "predict")
GROUPS = WEIGHTS = SPARSE = RIDGE = True
STRONG = {"important_search": 0, "splicing_type": 1, "max_iter": 100}
SETTINGS = {
    "default": {"units": False},
    "rescaled": {},
    "strongest": STRONG,
    "strongest, grown from 1": STRONG | {"grow": True},
}


def solve(instance, *, units=True, grow=False, **more):
    import abess

    classes = {
        "squares": abess.LinearRegression,
        "logistic": abess.LogisticRegression,
        "poisson": abess.PoissonRegression,
    }
    y, budgets = instance.y, list(instance.budgets)
    if units and instance.loss == "squares":
        y = y * (1000 / y.std())
    if more:
        more["exchange_num"] = max(budgets)
        if instance.loss != "squares":
            more["primary_model_fit_max_iter"] = 50
    group, X = instance.groups, instance.X
    order = np.arange(X.shape[1])
    if group is not None:  # wrong for groups that are not next to each other
        order = np.argsort(group, kind="stable")
        X, more["group"] = X[:, order], group[order]
    fold = None
    if instance.task in ("cv", "predict"):
        fold = np.arange(len(y)) % 5
        more["cv"] = 5
    elif len(budgets) == 1 and grow:
        budgets = range(1, budgets[0] + 1)
        more["ic_coef"] = 0.0
    model = classes[instance.loss](support_size=budgets, alpha=instance.ridge or None, **more)
    model.fit(X, y, sample_weight=instance.weight, cv_fold_id=fold)
    if instance.task == "predict":
        return {"coef": model.coef_ * (instance.y.std() / y.std())}
    support = order[np.flatnonzero(model.coef_)]
    used = len(support) if group is None else len(np.unique(group[support]))
    return {min(b for b in instance.budgets if b >= used): support}
