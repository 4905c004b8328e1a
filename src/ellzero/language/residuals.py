"""Where the output of a layer is added to a tensor that goes round it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.language.calibration import Call, Segment

# Sums are recomputed in the model's precision, of terms that may be large.
ACCURACY = 1e-4
ROUNDINGS = 4.0


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor inside a segment: an argument or the result of one of its modules.

    Parameters
    ----------
    module : str
        Name of the module in the segment; "" is the segment itself.
    argument : int or str or None
        Position or keyword of the argument; None means the result.
    """

    module: str
    argument: int | str | None


@torch.no_grad()
def find_residuals(segment: Segment, call: Call) -> dict[str, Place]:
    """Return for each layer the tensor that its output is added to, where there is one.

    Parameters
    ----------
    segment : Segment
        A part of the dense model.
    call : Call
        A call of it.

    Returns
    -------
    dict of str to Place
        By name of the layer. The sum is found by its values: a tensor that some module gets or
        returns after the layer, and that is the layer's output plus an earlier one.

    Notes
    -----
    The cost is one pass and a few hundred subtractions of one batch. An addition whose result no
    module sees is not found.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from ellzero.language.calibration import Call, Segment
    >>> from ellzero.language.residuals import find_residuals
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.Linear(3, 3)
    ...     def forward(self, x):
    ...         return x + self.layer(torch.relu(x))
    >>> block = Block()
    >>> find_residuals(Segment(block, {"layer": block.layer}), Call((torch.ones(2, 3),), {}))
    {'layer': Place(module='', argument=0)}
    """
    found: dict[str, Place] = {}
    events: list[tuple[Place, Tensor]] = []
    spans: dict[int, tuple[int, int]] = {}
    with _listening(segment.module, events, spans):
        call.run(segment.module)
    for name, layer in segment.layers.items():
        if id(layer) not in spans:
            continue
        before, after = spans[id(layer)]
        output = events[after][1]
        place = _search(output, events[:before], events[after + 1 :])
        if place is not None:
            found[name] = place
    return found


@contextlib.contextmanager
def _listening(
    module: nn.Module, events: list[tuple[Place, Tensor]], spans: dict[int, tuple[int, int]]
) -> Iterator[None]:
    """Note all tensors between modules, and where each layer was called first."""
    handles = []
    starts: dict[int, int] = {}

    def enter(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            starts.setdefault(id(part), len(events))
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            for key, value in named:
                if isinstance(value, Tensor) and value.is_floating_point():
                    events.append((Place(name, key), value))

        return hook

    def leave(name: str) -> Any:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(value, Tensor) and value.is_floating_point():
                spans.setdefault(id(part), (starts[id(part)], len(events)))
                events.append((Place(name, None), value))

        return hook

    for name, part in module.named_modules():
        handles.append(part.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(part.register_forward_hook(leave(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _search(
    output: Tensor, before: list[tuple[Place, Tensor]], after: list[tuple[Place, Tensor]]
) -> Place | None:
    earlier: dict[int, tuple[Place, Tensor]] = {}
    for place, tensor in before:
        if tensor.shape == output.shape:
            earlier.setdefault(id(tensor), (place, tensor))
    seen = {id(output)}
    accuracy = max(ACCURACY, ROUNDINGS * torch.finfo(output.dtype).eps)
    for _, total in after:
        if total.shape != output.shape or id(total) in seen:
            continue
        seen.add(id(total))
        rest = total.float() - output.float()
        size = rest.abs().max()
        if not bool(size > accuracy * output.abs().max()):
            continue
        for place, tensor in earlier.values():
            distance = (rest - tensor.float()).abs().max()
            if bool(distance <= accuracy * total.abs().max()):
                return place
    return None


class Watcher:
    """Keeps the tensors at some places of a module while it is run.

    Parameters
    ----------
    module : nn.Module
        A segment, or its dense twin.
    places : mapping of str to Place
        By any names.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, Place]) -> None:
        self.module = module
        self.places = dict(places)
        self.seen: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the last tensor at every place."""
        handles = [self._hook(name, place) for name, place in self.places.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str, place: Place) -> Any:
        part = self.module.get_submodule(place.module)
        if place.argument is None:

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                value = output[0] if isinstance(output, (tuple, list)) else output
                self.seen[name] = value.detach()

            return part.register_forward_hook(leave)
        key = place.argument

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.seen[name] = (args[key] if isinstance(key, int) else kwargs[key]).detach()

        return part.register_forward_pre_hook(enter, with_kwargs=True)
