"""A model as segments that are run one after the other, on stored hidden states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import DataError, InvalidParameterError

Batch = Any
# Kinds that hold no matrix to prune; they are not listed as left dense.
SILENT = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is the transposed linear layer of transformers' GPT-2."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def matrix(layer: nn.Module) -> Tensor:
    """Return a layer's weight as (n_outputs, n_inputs), a view."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise InvalidParameterError(
            f"A {type(layer).__name__} has no weight matrix.", "Give a linear layer."
        )
    weight = weight.detach()
    return weight.T if is_conv1d(layer) else weight


def prunable_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the linear layers that can be pruned, and why other layers cannot.

    Parameters
    ----------
    model : nn.Module
        Any network.

    Returns
    -------
    layers : dict of str to nn.Module
        `nn.Linear` and transformers' ``Conv1D`` by name, in the order of the modules.
    skipped : dict of str to str
        Other modules with a weight of two or more axes, and the reason. Embeddings and norms are
        not listed, unless a linear layer shares their weight.

    Examples
    --------
    >>> from torch import nn
    >>> from ellzero.language.calibration import prunable_layers
    >>> layers, skipped = prunable_layers(nn.Sequential(nn.Linear(4, 3), nn.Conv1d(3, 3, 2)))
    >>> list(layers), skipped
    (['0'], {'1': 'Conv1d is not supported'})
    """
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    layers: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside += (f"{name}." if name else "",)
            skipped[name] = "MultiheadAttention does not call its linear layers"
            continue
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or isinstance(module, SILENT):
            continue
        shared = [owner for owner in owners.get(id(weight), ()) if owner != name]
        if not (isinstance(module, nn.Linear) or is_conv1d(module)):
            skipped[name] = f"{type(module).__name__} is not supported"
        elif shared:
            skipped[name] = f"its weight is tied to '{shared[0]}'"
        else:
            layers[name] = module
    return layers, skipped


@dataclass(slots=True)
class Segment:
    """A part of the model that is run on stored inputs: a block, or the whole model.

    Parameters
    ----------
    module : nn.Module
        What is called.
    layers : dict of str to nn.Module
        Its prunable layers, by their name in the model.
    repeated : set of str
        Layers that were seen to be called more than once, or not at all.
    """

    module: nn.Module
    layers: dict[str, nn.Module]
    repeated: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Call:
    """Arguments of one call of a segment, and which tokens of the batch are real."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tokens: Tensor | None = None

    def run(self, module: nn.Module) -> Any:
        """Call a module with these arguments."""
        return module(*self.args, **self.kwargs)

    def after(self, output: Any) -> Call:
        """Return the call of the next block."""
        hidden = output[0] if isinstance(output, (tuple, list)) else output
        if self.args:
            return Call((hidden, *self.args[1:]), self.kwargs, self.tokens)
        return Call((), {**self.kwargs, "hidden_states": hidden}, self.tokens)

    @property
    def hidden(self) -> Any:
        """The tensor that goes from block to block."""
        return self.args[0] if self.args else self.kwargs.get("hidden_states")


class Stop(Exception):
    """Ends a forward pass early."""


def call_of(batch: Batch) -> Call:
    """Return how a model is called with a batch: a mapping gives keywords, a tuple positions."""
    if isinstance(batch, Call):
        return batch
    if isinstance(batch, Mapping) or hasattr(batch, "keys"):
        kwargs = dict(batch)
        return Call((), kwargs, kwargs.get("attention_mask"))
    if isinstance(batch, (tuple, list)):
        return Call(tuple(batch), {})
    return Call((batch,), {})


def read_batches(calibration: Iterable[Batch]) -> list[Call]:
    """Return the calls of a calibration set.

    Raises
    ------
    DataError
        If there is no batch.
    """
    calls = [call_of(batch) for batch in calibration]
    if not calls:
        raise DataError("The calibration set is empty.", "Give at least one batch.")
    return calls


def find_blocks(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[str, list[nn.Module]]:
    """Return the name and the modules of the longest list of blocks; empty without one."""
    best: tuple[str, list[nn.Module]] = ("", [])
    most = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        count = sum(key.startswith(f"{name}.") for key in layers)
        if count > most:
            most, best = count, (name, list(module))
    return best


@torch.no_grad()
def split_model(
    model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call]
) -> tuple[list[Segment], list[Call]]:
    """Return the segments that are compressed one after the other, and the calls of the first.

    Blocks of a `nn.ModuleList` are segments when calling them one after the other gives what the
    model gives on the first batch; if not, the model is one segment.

    Parameters
    ----------
    model : nn.Module
        The network.
    layers : mapping of str to nn.Module
        Layers to prune.
    calls : sequence of Call
        Calls of the model.

    Returns
    -------
    segments : list of Segment
        In the order of the calls.
    calls : list of Call
        Calls of the first segment.
    """
    whole = [Segment(model, dict(layers))]
    name, blocks = find_blocks(model, layers)
    if not blocks or any(not key.startswith(f"{name}.") for key in layers):
        return whole, list(calls)
    seen = [_enter(model, block, calls[0]) for block in blocks]
    if any(call is None or not isinstance(call.hidden, Tensor) for call in seen):
        return whole, list(calls)
    chained = seen[0]
    for block, known in zip(blocks, seen, strict=True):
        if chained is None or known is None or not _same(chained, known):
            return whole, list(calls)
        chained = chained.after(chained.run(block))
    starts: list[Call] = []
    for call in calls:
        entered = _enter(model, blocks[0], call)
        if entered is None:
            return whole, list(calls)
        starts.append(entered)
    segments = []
    for index, block in enumerate(blocks):
        prefix = f"{name}.{index}."
        segments.append(
            Segment(block, {key: layer for key, layer in layers.items() if key.startswith(prefix)})
        )
    return segments, starts


def _enter(model: nn.Module, block: nn.Module, call: Call) -> Call | None:
    """Return the call of a block inside a call of the model."""
    found: list[Call] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(Call(args, kwargs, call.tokens))
        raise Stop

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with contextlib.suppress(Stop):
            call.run(model)
    finally:
        handle.remove()
    return found[0] if found else None


def _same(one: Call, other: Call) -> bool:
    if len(one.args) != len(other.args) or one.kwargs.keys() != other.kwargs.keys():
        return False
    pairs = list(zip(one.args, other.args, strict=True))
    pairs += [(one.kwargs[key], other.kwargs[key]) for key in one.kwargs]
    return all(_equal(a, b) for a, b in pairs)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(
            one.double(), other.double(), rtol=1e-4, atol=1e-5
        )
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one is other or (isinstance(one, (bool, int, float, str)) and bool(one == other))


@torch.no_grad()
def stages(segment: Segment, call: Call) -> tuple[list[list[str]], list[str]]:
    """Return groups of layers that are called with the same tensor, in order, and the unused."""
    order: list[tuple[str, Tensor]] = []
    handles = []
    for name, layer in segment.layers.items():

        def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            order.append((name, args[0]))

        handles.append(layer.register_forward_pre_hook(note))
    try:
        call.run(segment.module)
    finally:
        for handle in handles:
            handle.remove()
    groups: list[list[str]] = []
    last: Tensor | None = None
    placed: set[str] = set()
    segment.repeated = set(segment.layers)
    for name, tensor in order:
        if name in placed:
            segment.repeated.add(name)
            continue
        segment.repeated.discard(name)
        placed.add(name)
        if last is not None and tensor is last:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = tensor
    return groups, [name for name in segment.layers if name not in placed]


def rows_of(inputs: Tensor, tokens: Tensor | None) -> Tensor:
    """Return inputs as rows, without those of padded tokens."""
    if tokens is not None and inputs.dim() == 3 and inputs.shape[:2] == tokens.shape:
        return inputs[tokens.bool()]
    return inputs.reshape(-1, inputs.shape[-1])
