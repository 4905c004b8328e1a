"""Keeping the zeros of a model through training and through edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    sparse = {n: p for n, p in prunable(model).items() if _has_zeros(p)}
    _check_any(sparse)
    check_parameters(optimizer, sparse, tuple(sparse))
    masks = {n: thresholded.local(p) != 0 for n, p in sparse.items()}

    @torch.no_grad()
    def write_zeros(*_: Any) -> None:
        for name, param in sparse.items():
            part = thresholded.local(param)
            masks[name] = masks[name].to(part.device)
            thresholded.keep(part, masks[name])

    return optimizer.register_step_post_hook(write_zeros)


@contextmanager
def kept_zeros(model: nn.Module) -> Iterator[None]:
    """Write the zeros of a model again after an edit, such as the merge of an adapter.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights of two axes or more, trained or frozen, that hold zeros keep them. The edit may
        move a parameter within the model, or put another one in its place.

    Raises
    ------
    InvalidParameterError
        If no weight holds a zero.
    IncompatibleError
        If after the edit a weight is missing or has another shape. The others keep their zeros.

    See Also
    --------
    freeze_support : The same through training.

    Notes
    -----
    The zeros are written when the block is left, by an exception too. A kept entry that the edit
    made zero stays zero: the count never grows. What the edit adds off the support is lost:
    compare the loss before and after.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import kept_zeros
    >>> layer = torch.nn.Linear(4, 4)
    >>> _ = layer.weight.data.copy_(torch.eye(4))
    >>> left, right = torch.ones(4, 1), torch.ones(1, 4)
    >>> with kept_zeros(layer):
    ...     _ = layer.weight.data.add_(left @ right)
    >>> int((layer.weight != 0).sum())
    4
    """
    held = {
        name: (param, thresholded.local(param) != 0)
        for name, param in model.named_parameters()
        if param.ndim >= 2 and _has_zeros(param)
    }
    _check_any(held)
    try:
        yield
    finally:
        now = dict(model.named_parameters(remove_duplicate=False))
        present = {id(param) for param in now.values()}
        lost = []
        for name, (param, mask) in held.items():
            target = param if id(param) in present else now.get(name)
            part = None if target is None else thresholded.local(target)
            if part is None or part.shape != mask.shape:
                lost.append(name)
                continue
            with torch.no_grad():
                part.masked_fill_(~mask.to(part.device), 0.0)
    if lost:
        raise IncompatibleError(
            f"The edit must leave every weight that holds zeros in the model, got {lost[0]!r} "
            "missing or of another shape.",
            "Merge each adapter into the weight that it adapts.",
        )


def _has_zeros(param: nn.Parameter) -> bool:
    return thresholded.count_true(param.detach() != 0) < param.numel()


def _check_any(found: Mapping[str, Any]) -> None:
    if not found:
        raise InvalidParameterError(
            "`model` must hold zeros in its weights, got none.",
            "Load the sparse checkpoint first, or prune with `HardThresholding`.",
        )
