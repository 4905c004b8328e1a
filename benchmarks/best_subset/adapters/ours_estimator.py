"""ellzero as users call it: the estimators, with and without the certificate."""

import numpy as np

MODULES = ("ellzero.estimators",)
LOSSES = ("squares", "logistic", "poisson")
TASKS = ("fit", "path", "cv", "predict")
GROUPS = WEIGHTS = SPARSE = RIDGE = True
SETTINGS = {
    "fit": {"certify": False},
    "fit and certify": {"certify": True},
    "fit with ridge": {"certify": False, "shrink": True},
}
ONLY = {"fit with ridge": ("predict",), "fit and certify": ("fit", "path")}
CLASSES = {"squares": "L0Regressor", "logistic": "L0Classifier", "poisson": "L0PoissonRegressor"}


def solve(instance, *, shrink=False, **more):
    from ellzero import estimators

    name = CLASSES[instance.loss]
    given = {"groups": instance.groups, "ridge": instance.ridge, **more}
    if instance.task in ("cv", "predict"):
        name += "CV"
        given["cv"] = 5
        if instance.task == "cv":
            rows = np.arange(len(instance.y))
            given["cv"] = [(rows[rows % 5 != f], rows[rows % 5 == f]) for f in range(5)]
    if shrink:
        given["ridge"] = "auto"  # from a grid
    budgets = list(instance.budgets)
    made = getattr(estimators, name)(budgets if len(budgets) > 1 else budgets[0], **given)
    made.fit(instance.X, instance.y, sample_weight=instance.weight)
    if instance.task == "predict":
        return {"coef": made.coef_.ravel()}
    if instance.task == "cv":
        return {len(made.support_): np.asarray(made.support_)}
    path = made.path_
    return {int(k): s for k, s in zip(path.budgets, path.supports, strict=True)}
