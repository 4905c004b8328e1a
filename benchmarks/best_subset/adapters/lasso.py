"""scikit-learn, celer, skglm: lasso, elastic net and MCP with cross-validated penalties."""

import numpy as np

MODULES = ("sklearn.linear_model", "celer", "skglm")
LOSSES = ("squares",)
TASKS = ("predict",)
GROUPS = WEIGHTS = SPARSE = RIDGE = False
SETTINGS = {
    "scikit-learn": {"kind": "lasso"},
    "celer": {"kind": "celer"},
    "elastic net": {"kind": "enet"},
    "lasso, then least squares": {"kind": "relaxed"},
    "skglm MCP": {"kind": "mcp"},
}


def solve(instance, *, kind):
    import celer
    import sklearn.linear_model as lm
    from skglm import MCPRegression

    X, y = instance.X, instance.y
    if kind == "mcp":
        return {"coef": best_mcp(X, y, MCPRegression)}
    if kind == "enet":
        model = lm.ElasticNetCV(cv=5, l1_ratio=[0.1, 0.5, 0.9, 1.0], tol=1e-3).fit(X, y)
    elif kind == "celer":
        model = celer.LassoCV(cv=5, tol=1e-3).fit(X, y)
    else:
        model = lm.LassoCV(cv=5, tol=1e-3).fit(X, y)
    coef = np.array(model.coef_)
    if kind == "relaxed":
        kept = np.flatnonzero(coef)
        coef[kept] = lm.LinearRegression().fit(X[:, kept], y).coef_ if len(kept) else 0.0
    return {"coef": coef}


def best_mcp(X, y, make):
    """Return the coefficients of the best of 20 penalties by 5-fold cross-validation."""
    top = np.max(np.abs((X - X.mean(0)).T @ (y - y.mean()))) / len(y)
    alphas = top * np.geomspace(1, 0.05, 20)
    folds, errors = np.arange(len(y)) % 5, np.zeros(20)
    for f in range(5):
        X0, y0 = X[folds != f], y[folds != f]
        for i, alpha in enumerate(alphas):
            model = make(alpha=alpha).fit(X0, y0)
            errors[i] += np.sum((y[folds == f] - model.predict(X[folds == f])) ** 2)
    return make(alpha=alphas[int(np.argmin(errors))]).fit(X, y).coef_
