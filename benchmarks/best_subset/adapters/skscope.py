"""skscope: splicing, hard thresholding pursuit and others on any loss, by JAX.

The functions that it compiles are made on every call, as by a user who has new data.
"""

import numpy as np

MODULES = ("skscope", "jax")
LOSSES = ("squares", "logistic", "poisson")
TASKS = ("fit",)
GROUPS = WEIGHTS = True
SPARSE = RIDGE = False
SETTINGS = {
    "splicing": {"method": "ScopeSolver"},
    "HTP": {"method": "HTPSolver"},
    "OMP": {"method": "OMPSolver"},
    "FoBa": {"method": "FobaSolver"},
}


def solve(instance, *, method):
    import jax.numpy as jnp
    import skscope

    (k,) = instance.budgets
    n, p = instance.X.shape
    order = np.arange(p)
    if instance.groups is not None:
        order = np.argsort(instance.groups, kind="stable")
    X = jnp.array(((instance.X - instance.X.mean(0)) / instance.X.std(0))[:, order])
    y = instance.y
    if instance.loss == "squares":
        y = (y - np.average(y, weights=instance.weight)) / y.std()
    y = jnp.array(y)
    w = jnp.array(
        np.ones(n) if instance.weight is None else instance.weight / instance.weight.mean()
    )

    def loss(beta):
        z = X @ beta[:p] + beta[p]
        if instance.loss == "squares":
            return jnp.mean(w * (y - z) ** 2) / 2
        if instance.loss == "logistic":
            return jnp.mean(w * (jnp.logaddexp(0.0, z) - y * z))
        return jnp.mean(w * (jnp.exp(z) - y * z))

    group = None
    if instance.groups is not None:  # groups have to be next to each other
        group = np.append(instance.groups[order], instance.groups.max() + 1)
    last = p if group is None else int(group[-1])
    solver = getattr(skscope, method)(p + 1, k + 1, preselect=[last], group=group)
    beta = np.asarray(solver.solve(loss, jit=True))
    return {k: order[np.flatnonzero(beta[:p])]}
