"""Methods that train a sparse network: one file each, all with the same `train`.

A file has `TITLE`, `SOURCE`, `CHOICES` (its own settings, the first value is the default, the
others are tried in the tuning) and ``train(task, **settings)``, which leaves `task.model` with the
number of nonzeros asked for. A method only trains: the problem judges.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

NAMES = (
    "dense",
    "one_shot",
    "gradual",
    "imp",
    "rigl",
    "set_erk",
    "acdc",
    "feather",
    "torchao_pat",
    "iht",
    "ours",
    "ours_long",
)


def load(name: str) -> ModuleType:
    """Return the method of a name."""
    if name not in NAMES:
        raise SystemExit(f"Unknown method {name!r}. Known methods: {', '.join(NAMES)}.")
    return import_module(f"{__name__}.{name}")
