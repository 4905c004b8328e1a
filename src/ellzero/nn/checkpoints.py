"""Checkpoints that any number of processes can write and any other number can read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ellzero.errors import InvalidParameterError
from ellzero.nn.optimizer import HardThresholding
from ellzero.nn.state import KEY


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    **others: Any,
) -> None:
    """Write a run to a folder, each process its own part.

    Parameters
    ----------
    folder : str or path
        Where. Every process names the same one, on storage that all of them reach.
    model : torch.nn.Module
        Plain, replicated (DDP), sharded (FSDP2) or compiled.
    optimizer : torch.optim.Optimizer
        A `HardThresholding` around the optimizer of `model`, or any optimizer.
    **others : object
        What else the run needs, each with `state_dict` and `load_state_dict`, such as a
        learning-rate scheduler.

    See Also
    --------
    load : Reads the folder.

    Notes
    -----
    Every process must call this function. No tensor is gathered. The folder is one of
    `torch.distributed.checkpoint`, whose own functions read it too; those overwrite the model
    before a `HardThresholding` can tell that the budget is another.

    Examples
    --------
    >>> import tempfile, torch
    >>> from ellzero.nn import HardThresholding, checkpoints
    >>> def build():
    ...     model = torch.nn.Linear(10, 10)
    ...     base = torch.optim.AdamW(model.parameters())
    ...     return model, HardThresholding(base, model, n_nonzero=7)
    >>> (model, optimizer), (again, theirs) = build(), build()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints.save(folder, model, optimizer)
    ...     checkpoints.load(folder, again, theirs)
    >>> torch.equal(again.weight, model.weight)
    True
    """
    from torch.distributed.checkpoint import state_dict_saver
    from torch.distributed.checkpoint.state_dict import get_state_dict

    tensors, moments = get_state_dict(model, optimizer)
    with _quiet():
        state_dict_saver.save(
            {"model": tensors, "optimizer": moments, **others}, checkpoint_id=folder
        )


def load(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    **others: Any,
) -> None:
    """Read a run that `save` wrote, with as many processes as there are now.

    Parameters
    ----------
    folder : str or path
        The folder.
    model : torch.nn.Module
        Receives the parameters and buffers, sharded as it is now.
    optimizer : torch.optim.Optimizer
        Receives its state.
    **others : object
        As given to `save`.

    Raises
    ------
    InvalidParameterError
        If the folder is no checkpoint, or is of a dense run or of another budget, recipe,
        schedule or network. It is raised on all processes, and nothing is changed.

    See Also
    --------
    save : Writes the folder.

    Notes
    -----
    Every process must call this function. With as many processes as wrote the folder the run goes
    on bit for bit; with another number, to rounding. The folder is read as data: an index or a
    plain value that names anything to be run is refused.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    if isinstance(optimizer, HardThresholding):
        settings = dict(optimizer.settings)
        _read(folder, {"optimizer": {"param_groups": [{KEY: {"settings": settings}}]}})
        optimizer.check_settings(settings)
    tensors, moments = get_state_dict(model, optimizer)
    wanted = {"model": tensors, "optimizer": moments, **others}
    _read(folder, wanted)
    set_state_dict(
        model, optimizer, model_state_dict=tensors, optim_state_dict=wanted["optimizer"]
    )


def _read(folder: str | os.PathLike[str], wanted: dict[str, Any]) -> None:
    """Fill the tensors and replace the plain values; raise on every process or on none."""
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException

    from ellzero.nn.data_only import DataPlanner, DataReader

    try:
        with _quiet():
            state_dict_loader.load(
                wanted, storage_reader=DataReader(folder), planner=DataPlanner()
            )
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        what = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(". ")
        raise InvalidParameterError(
            f"'{os.fspath(folder)}' must hold a checkpoint of this run, got: {what}.",
            "Give a folder that `checkpoints.save` wrote, and build the model and the optimizer "
            "as they were then.",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warning that there is one process only, which is meant here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable")
        yield
