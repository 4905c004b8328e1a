"""Linear layers on the 2:4 kernels of GPUs, where they were measured to be faster."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.export.compacting import difference
from ellzero.nn.export.measure import _MARGIN, _RECORD, LayerGain, Timer, _inputs, race
from ellzero.sets import NMPattern
from ellzero.validation import check_integer

_NEEDED = (8, 0)
# The kernels add products in another order; relative to the largest output.
_SLACK = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 5e-3}


def semi_structured(
    model: nn.Module,
    *,
    sample: int | Tensor | tuple[Any, ...] | None = None,
    timer: Timer | None = None,
) -> nn.Module:
    """Return a copy of a model whose 2:4 linear layers run on sparse kernels where that is faster.

    Parameters
    ----------
    model : torch.nn.Module
        Any module on a CUDA device of compute capability 8.0 or more. It is not changed. Layers
        of the class ``torch.nn.Linear`` are looked at; subclasses stay as they are.
    sample : int, Tensor, tuple or None, default=None
        What the model will be called with: the input, a tuple of inputs, or the number of samples
        that every layer gets. None means 1. With inputs, each layer is measured on what it gets
        from them, and layers that get nothing stay dense.
    timer : callable or None, default=None
        Returns the seconds of one call for each of a mapping of names to functions; None means
        the clock, with the device waited for.

    Returns
    -------
    torch.nn.Module
        The copy, in evaluation mode, without gradients. `report` and `table` tell what it gained.

    Raises
    ------
    InvalidParameterError
        If `sample` has a wrong value.
    IncompatibleError
        If no linear layer lies on a CUDA device, or the device has no 2:4 kernels.

    See Also
    --------
    sparse : The same on a CPU, for zeros anywhere.
    ellzero.sets.NMPattern : ``NMPattern(2, 4)`` as the `constraint` of `HardThresholding` trains
        such weights.

    Notes
    -----
    A layer is converted when every four entries in a row of its weight, from the first on, hold
    two nonzeros or fewer, the kernels take its type and shape (float16 and bfloat16, sides that
    are multiples of 16 to 64), the outputs agree, and it was measured here, at this batch, to be
    five percent faster or more. Often it is not: the kernels pay for large weights at large
    batches. Half the zeros save about 44 percent of the memory of a weight in any case that is
    converted. The tensors are the prototype ``torch.sparse.SparseSemiStructuredTensor``, on
    cuSPARSELt or CUTLASS, whichever is faster; they have no gradients and cannot be stored by
    `save`, so keep the dense model and convert after loading.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import export
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    >>> try:
    ...     export.semi_structured(model)
    ... except TypeError as error:
    ...     print(error.message)
    `semi_structured` needs linear layers on a CUDA device, got a model on cpu.
    """
    if isinstance(sample, bool) or not isinstance(sample, (int, Tensor, tuple, type(None))):
        raise InvalidParameterError(
            f"`sample` must be a number of samples, a tensor or a tuple of inputs, got "
            f"{type(sample).__name__}.",
            "Give what the model will be called with.",
        )
    if isinstance(sample, int):
        check_integer("sample", sample, 1)
    _check_device(model)
    if timer is None:
        timer = functools.partial(race, clock=_clock)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    layers = {name: part for name, part in fast.named_modules() if type(part) is nn.Linear}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        inputs = _inputs(fast, layers, sample)
        chosen = {
            name: _choose(name, layer, inputs.get(name), timer) for name, layer in layers.items()
        }
    for name, (weight, _) in chosen.items():
        if weight is not None:
            layers[name].weight = nn.Parameter(weight, requires_grad=False)
    setattr(fast, _RECORD, tuple(gain for _, gain in chosen.values()))
    return fast


def has_pattern(weight: Tensor, n: int = 2, m: int = 4) -> bool:
    """Return whether a weight has at most n nonzeros in every m consecutive entries of a row.

    Parameters
    ----------
    weight : Tensor
        Of one axis or more; rows lie along the last.
    n, m : int
        The pattern.

    Returns
    -------
    bool
        False also where an entry is NaN.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export import has_pattern
    >>> has_pattern(torch.tensor([[1.0, 0.0, 2.0, 0.0]])), has_pattern(torch.ones(1, 4))
    (True, False)
    """
    return NMPattern(n, m).violation({"weight": weight.detach()}).item() == 0


def _check_device(model: nn.Module) -> None:
    layers = [part for part in model.modules() if type(part) is nn.Linear]
    devices = {layer.weight.device for layer in layers}
    found = sorted(str(d) for d in devices if d.type == "cuda")
    if not found:
        where = ", ".join(sorted(map(str, devices))) or "no device, without linear layers"
        raise IncompatibleError(
            f"`semi_structured` needs linear layers on a CUDA device, got a model on {where}.",
            "Move it with `.cuda()`; on a CPU use `export.sparse`.",
        )
    for device in found:
        have = torch.cuda.get_device_capability(device)
        if have < _NEEDED:
            raise IncompatibleError(
                f"`semi_structured` needs a device of compute capability 8.0 or more, got "
                f"{have[0]}.{have[1]} ({torch.cuda.get_device_name(device)}).",
                "Older GPUs have no 2:4 kernels; run the dense model.",
            )


def _clock() -> float:
    """Return the time once the device has done what it was given."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _packers() -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Return what turns a dense weight into a sparse one, by backend."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    cusparselt = getattr(torch.backends, "cusparselt", None)
    if cusparselt is not None and cusparselt.is_available():
        found["cusparselt"] = torch.sparse.SparseSemiStructuredTensorCUSPARSELT.from_dense
    found["cutlass"] = torch.sparse.SparseSemiStructuredTensorCUTLASS.from_dense
    return found


def _size(weight: Tensor) -> int:
    """Return the bytes of a weight, dense or packed."""
    parts = [getattr(weight, name, None) for name in ("packed", "meta")]
    held = [p for p in parts if isinstance(p, Tensor)] or [weight]
    return sum(p.numel() * p.element_size() for p in held)


def _choose(
    name: str, layer: nn.Linear, x: Tensor | None, timer: Timer
) -> tuple[Tensor | None, LayerGain]:
    """Return the fastest sparse weight, or None, and what was measured."""
    weight = layer.weight.detach()
    bias_bytes = 0 if layer.bias is None else layer.bias.numel() * layer.bias.element_size()
    dense_bytes = _size(weight) + bias_bytes
    density = torch.count_nonzero(weight).item() / max(weight.numel(), 1)
    batch = 0 if x is None else x.numel() // max(layer.in_features, 1)

    def gain(
        backend: str, seconds: Mapping[str, float], packed: int, best: str | None, reason: str
    ) -> LayerGain:
        return LayerGain(
            name=name,
            shape=(layer.out_features, layer.in_features),
            batch=batch,
            density=density,
            dense_bytes=dense_bytes,
            packed_bytes=packed,
            dense_seconds=seconds.get("dense"),
            packed_seconds=None if best is None else seconds[best],
            backend=backend,
            seconds=seconds,
            reason=reason,
        )

    def stay(reason: str) -> tuple[None, LayerGain]:
        return None, gain("dense", {}, dense_bytes, None, f"dense is kept; {reason}.")

    if not weight.numel():
        return stay("the layer is empty")
    if not has_pattern(weight):
        return stay("four consecutive entries of its weight hold more than two nonzeros")
    if x is None or not x.numel():
        return stay("`sample` does not reach the layer")
    x = x.to(weight.device)
    expected = layer(x)
    packed: dict[str, Tensor] = {}
    calls: dict[str, Callable[[], object]] = {"dense": lambda: layer(x)}
    failed = []
    for backend, pack in _packers().items():
        try:
            # The kernels want rows that lie one after the other.
            sparse = pack(weight.contiguous())
            call = functools.partial(nn.functional.linear, x, sparse, layer.bias)
            apart = difference(expected, call())
        except (RuntimeError, NotImplementedError, AssertionError, KeyError, ValueError) as error:
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            failed.append(f"{backend}: {text.rstrip('.!')}")
            continue
        if apart > _SLACK.get(weight.dtype, 0.0):
            failed.append(f"{backend}: its outputs differ by {apart:.1e} of the largest one")
            continue
        packed[backend], calls[backend] = sparse, call
    if not packed:
        return stay(f"no kernel takes the layer ({'; '.join(failed)})")
    seconds = dict(timer(calls))
    best = min(packed, key=lambda backend: seconds[backend])
    size = _size(packed[best]) + bias_bytes
    ratio = seconds["dense"] / seconds[best] if seconds[best] else float("inf")
    if seconds["dense"] >= _MARGIN * seconds[best]:
        words = f"{best} is {ratio:.2f} times as fast as dense."
        return packed[best], gain(best, seconds, size, best, words)
    words = (
        f"dense is kept; it is as fast or faster ({best}, the best sparse one, runs at "
        f"{ratio:.2f} times its speed)."
    )
    return None, gain("dense", seconds, size, best, words)
