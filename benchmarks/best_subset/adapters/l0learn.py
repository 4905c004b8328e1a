"""L0Learn by its fork fastsparsegams: coordinate descent, with swaps (CDPSI), over a grid.

It cannot be asked for k: the answer for k is the best of the path with at most k features.
"""

import numpy as np
import scipy.sparse

MODULES = ("fastsparsegams",)
LOSSES = ("squares", "logistic")
TASKS = ("fit", "path", "cv", "predict")
GROUPS = WEIGHTS = RIDGE = False
SPARSE = True
SETTINGS = {
    "descent": {},
    "swaps": {"algorithm": "CDPSI"},
    "swaps, fine grid": {"algorithm": "CDPSI", "num_lambda": 300, "scale_down_factor": 0.97},
}


def solve(instance, **setting):
    import fastsparsegams as module

    loss = {"squares": "SquaredError", "logistic": "Logistic"}[instance.loss]
    y = instance.y if loss == "SquaredError" else 2 * instance.y - 1
    largest = max(instance.budgets)
    setting = {"num_lambda": 100, **setting, "loss": loss, "penalty": "L0"}
    X = instance.X  # the package refuses arrays that do not own writable memory
    X = X if scipy.sparse.issparse(X) else np.array(X, order="F")
    y = np.array(y)
    setting |= {"max_support_size": largest, "num_gamma": 1}
    if instance.task == "predict":  # count and ridge together
        setting |= {"num_gamma": 10, "gamma_min": 1e-3, "penalty": "L0L2"}
        model = module.cvfit(X, y, num_folds=5, seed=1, **setting)
        row = int(np.argmin([np.min(m) for m in model.cv_means]))
        beta = model.coeffs[row][:, int(np.argmin(model.cv_means[row]))]
        return {"coef": np.asarray(beta.todense()).ravel()[-X.shape[1] :]}
    if instance.task == "cv":
        model = module.cvfit(X, y, num_folds=5, seed=1, **setting)
        at = int(np.argmin(model.cv_means[0]))
        return best(model.coeffs[0].T[at : at + 1], instance)
    return best(module.fit(X, y, **setting).coeffs[0].T, instance)


def best(path, instance):
    """Return the largest support of the path within every budget; later ones are better."""
    out = {}
    for column in path:
        beta = np.asarray(column.todense()).ravel() if hasattr(column, "todense") else column
        support = np.flatnonzero(beta[-instance.X.shape[1] :])
        for budget in instance.budgets if len(support) else ():
            if len(out.get(budget, ())) <= len(support) <= budget:
                out[budget] = support
    return out
