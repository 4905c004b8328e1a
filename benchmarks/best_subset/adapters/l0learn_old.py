"""L0Learn itself, whose last files for Python are for 3.10: as its fork."""

from benchmarks.best_subset.adapters import l0learn

MODULES = ("l0learn",)
LOSSES, TASKS, SETTINGS = l0learn.LOSSES, ("fit",), {"swaps": {"algorithm": "CDPSI"}}
GROUPS = WEIGHTS = SPARSE = RIDGE = False


def solve(instance, **setting):
    import l0learn as module

    largest = max(instance.budgets)
    y = instance.y if instance.loss == "squares" else 2 * instance.y - 1
    loss = {"squares": "SquaredError", "logistic": "Logistic"}[instance.loss]
    model = module.fit(
        instance.X, y, loss=loss, penalty="L0", max_support_size=largest, num_lambda=100,
        num_gamma=1, **setting,
    )  # fmt: skip
    return l0learn.best(model.coeffs[0].T, instance)
