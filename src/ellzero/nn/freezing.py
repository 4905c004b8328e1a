"""Keeping the zeros of a model through training and through edits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.budgets import prunable
from ellzero.nn.optimizer import HardThresholding, check_parameters
from ellzero.tensors import thresholded


def freeze_support(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Keep the zeros of an already sparse model through further training.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights of two axes or more that hold zeros keep them.
    optimizer : torch.optim.Optimizer
        The optimizer that trains the model. After each of its steps the zeros are written again,
        whatever momentum and weight decay did.

    Returns
    -------
    RemovableHandle
        ``handle.remove()`` lets the zeros go.

    Raises
    ------
    InvalidParameterError
        If no weight of the model holds a zero.
    IncompatibleError
        If the optimizer does not hold a weight with zeros, or is a `HardThresholding`.

    See Also
    --------
    HardThresholding : Choose the support during training.

    Notes
    -----
    One pass over the weights for each step, and one byte an entry. The support is read from the
    zeros, so there is nothing to save: call it again after loading a checkpoint.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import freeze_support
    >>> model = torch.nn.Linear(4, 2)
    >>> _ = model.weight.data[:, :3].zero_()
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> handle = freeze_support(model, optimizer)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> int((model.weight != 0).sum())
    2
    """
    if isinstance(optimizer, HardThresholding):
        raise IncompatibleError(
            "`optimizer` must be a plain optimizer, got a `HardThresholding`.",
            "Call its `finalize`, which freezes the support.",
        )
    sparse = {
        n: p
        for n, p in prunable(model).items()
        if thresholded.count_true(p.detach() != 0) < p.numel()
    }
    if not sparse:
        raise InvalidParameterError(
            "`model` must hold zeros in its weights, got none.",
            "Load the sparse checkpoint first, or prune with `HardThresholding`.",
        )
    check_parameters(optimizer, sparse, tuple(sparse))
    masks = {n: thresholded.local(p) != 0 for n, p in sparse.items()}

    @torch.no_grad()
    def write_zeros(*_: Any) -> None:
        for name, param in sparse.items():
            part = thresholded.local(param)
            masks[name] = masks[name].to(part.device)
            thresholded.keep(part, masks[name])

    return optimizer.register_step_post_hook(write_zeros)
