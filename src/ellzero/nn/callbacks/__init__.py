"""Budgets inside the training loops of others: Lightning and the Hugging Face Trainer.

`HardThresholding` is an optimizer and works in both hosts alone. The callbacks add what depends on
the host: its count of optimizer steps, its checkpoints, its log, and the end of its training.
Neither host is imported before its callback is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ellzero.errors import IncompatibleError

if TYPE_CHECKING:
    from ellzero.nn.callbacks.lightning import LightningSparsity
    from ellzero.nn.callbacks.trainer import TrainerSparsity

__all__ = ["LightningSparsity", "TrainerSparsity"]

_HOMES = {
    "LightningSparsity": ("lightning", "lightning"),
    "TrainerSparsity": ("trainer", "language"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home, extra = _HOMES[name]
    try:
        return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing == "ellzero":
            raise
        raise IncompatibleError(
            f"`{name}` needs the package `{missing}`, which is not installed.",
            f"pip install 'ellzero[{extra}]'",
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
