"""One module for each peer: `MODULES` to import, `SETTINGS`, and `solve(instance, **setting)`.

`solve` proposes supports: a dictionary from budget to features, of any of the budgets that were
asked for; for the task "predict" it returns ``{"coef": coefficients}``. `LOSSES` and `TASKS` say
what it can do, `ONLY` names the tasks of single settings, `GROUPS`, `WEIGHTS`, `SPARSE` and
`RIDGE` what else. An adapter sees only numpy, scipy and its peer, and is timed as a whole.
"""
