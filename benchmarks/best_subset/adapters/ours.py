"""ellzero: the search alone, with nothing to set, and with other efforts."""

MODULES = ("ellzero.subset.search",)
LOSSES = ("squares", "logistic", "poisson")
TASKS = ("fit", "path")
GROUPS = WEIGHTS = SPARSE = RIDGE = True
SETTINGS = {"default": {}, "fast": {"effort": "fast"}, "thorough": {"effort": "thorough"}}


def solve(instance, *, effort="normal"):
    from ellzero.subset.effort import Effort
    from ellzero.subset.gram import gram_of
    from ellzero.subset.search import search

    more = {"ridge": instance.ridge, "groups": instance.groups, "effort": Effort.of(effort)}
    if instance.loss == "squares":
        gram = gram_of(instance.X, instance.y, sample_weight=instance.weight)
        path = search(gram, instance.budgets, **more)
    else:
        from ellzero.subset.glm import search_glm

        path = search_glm(
            instance.X, instance.y, instance.loss, instance.budgets,
            sample_weight=instance.weight, **more,
        )  # fmt: skip
    return {int(k): s.support for k, s in zip(path.budgets, path.subsets, strict=True)}
