"""Choosing how each layer runs, by measuring here and now."""

from __future__ import annotations

import copy
import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InvalidParameterError
from ellzero.nn.export.coded import BACKEND as CODES
from ellzero.nn.export.coded import QuantizedLinear, refusal
from ellzero.nn.export.files import check_quantized
from ellzero.nn.export.modules import DTYPES, SparseLinear
from ellzero.nn.export.quantized import QuantizedWeight
from ellzero.nn.tables import aligned
from ellzero.validation import check_integer

Timer = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]

# Fuller weights are never faster; blocks that are mostly zeros waste more than they save.
_MOST = 0.5
_LEAST_FILL = 0.5
# What a replacement has to win, so that noise alone replaces nothing.
_MARGIN = 1.05

_RECORD = "_ellzero_gains"


@dataclass(frozen=True, slots=True)
class LayerGain:
    """What packing one layer gains.

    Parameters
    ----------
    name : str
        Name of the layer in the model.
    shape : tuple of int
        Outputs and inputs.
    batch : int
        Number of samples it was measured with.
    density : float
        Share of nonzeros of the weight.
    dense_bytes, packed_bytes : int
        Memory of weight and bias, dense and in the layout of the fastest sparse backend; equal
        where none was measured.
    dense_seconds, packed_seconds : float or None
        Median time of one call, dense and with the fastest sparse backend; None where not
        measured.
    backend : str
        What runs now: "dense", a backend of `SparseLinear`, or "sliced-codes", which is
        `QuantizedLinear`.
    seconds : mapping of str to float, default={}
        Median time of every backend that was measured.
    reason : str
        Why, in a sentence.
    """

    name: str
    shape: tuple[int, int]
    batch: int
    density: float
    dense_bytes: int
    packed_bytes: int
    dense_seconds: float | None
    packed_seconds: float | None
    backend: str
    seconds: Mapping[str, float]
    reason: str

    @property
    def gain(self) -> float | None:
        """Dense time over time of the fastest sparse backend; below 1 dense is faster."""
        if self.dense_seconds is None or not self.packed_seconds:
            return None
        return self.dense_seconds / self.packed_seconds


def sparse(
    model: nn.Module,
    *,
    sample: int | Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None,
    threads: int | None = None,
    timer: Timer | None = None,
    quantized: Mapping[str, QuantizedWeight] | None = None,
) -> nn.Module:
    """Return a copy of a model whose linear layers run on packed weights where that is faster.

    Parameters
    ----------
    model : torch.nn.Module
        Any module on the CPU. It is not changed. Layers of the class ``torch.nn.Linear`` are
        looked at; subclasses stay as they are.
    sample : int, Tensor, tuple, mapping or None, default=None
        What the model will be called with: the input, a tuple of inputs, a mapping of inputs by
        keyword, or the number of samples that every layer gets. None means 1. With inputs, each
        layer is measured on what it gets from them, and layers that get nothing stay dense.
    threads : int or None, default=None
        Number of threads, for dense and packed layers alike while they are measured, and for
        packed ones after. None means ``torch.get_num_threads()``.
    timer : callable or None, default=None
        Returns the seconds of one call for each of a mapping of names to functions; None means
        `race`, by processor time for one thread, which other programs do not disturb, and by the
        clock for more.
    quantized : mapping of str to QuantizedWeight or None, default=None
        Weights that are on few levels, by their names in the state of the model, as `compress`
        returns them or `quantized_weights` reads them. Their layers may also run on their codes,
        by `QuantizedLinear`, where a row has one scale.

    Returns
    -------
    torch.nn.Module
        The copy, in evaluation mode, without gradients. `report` and `table` tell what it gained.

    Raises
    ------
    InvalidParameterError
        If `sample` or `threads` has a wrong value, or `quantized` is not what the model holds.

    See Also
    --------
    SparseLinear : The layer that replaces a linear one.
    table : Says what was gained.

    Notes
    -----
    Each layer is packed for every backend that may win, all are run on the spot, and the fastest
    stays; a layer is replaced only where that gains five percent or more. The choice is for this
    machine and this batch: measure where the model will run. Results differ by rounding alone, see
    `SparseLinear`.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import export
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> _ = model[0].weight.data.mul_(torch.arange(4096).reshape(64, 64) % 20 == 0)
    >>> fast = export.sparse(model, timer=lambda calls: {"dense": 2e-6} | {
    ...     name: 1e-6 for name in calls if name != "dense"})
    >>> type(fast[0]).__name__, export.report(fast)[0].gain
    ('SparseLinear', 2.0)
    """
    kinds = (int, Tensor, tuple, Mapping, type(None))
    if isinstance(sample, bool) or not isinstance(sample, kinds):
        raise InvalidParameterError(
            f"`sample` must be a number of samples, a tensor, a tuple or a mapping of inputs, got "
            f"{type(sample).__name__}.",
            "Give what the model will be called with.",
        )
    if isinstance(sample, int):
        check_integer("sample", sample, 1)
    codes = quantized or {}
    check_quantized(model.state_dict() if codes else {}, codes)
    before = torch.get_num_threads()
    threads = before if threads is None else check_integer("threads", threads, 1)
    if timer is None:
        clock = time.process_time if threads == 1 else time.perf_counter
        timer = functools.partial(race, clock=clock)
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    layers = {name: part for name, part in fast.named_modules() if type(part) is nn.Linear}
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            inputs = _inputs(fast, layers, sample)
            chosen = {
                name: _choose(
                    name,
                    layer,
                    inputs.get(name),
                    threads,
                    timer,
                    codes.get(f"{name}.weight" if name else "weight"),
                )
                for name, layer in layers.items()
            }
    finally:
        torch.set_num_threads(before)
    new = {id(layers[name]): part for name, (part, _) in chosen.items() if part is not None}
    if id(fast) in new:
        fast = new[id(fast)]
    for parent in list(fast.modules()):
        # Not `named_children`, which leaves out the second name of a layer.
        for key, child in list(parent._modules.items()):
            if id(child) in new:
                setattr(parent, key, new[id(child)])
        if isinstance(parent, nn.TransformerEncoderLayer) and any(
            isinstance(child, (SparseLinear, QuantizedLinear)) for child in parent.children()
        ):
            # Keeps torch from its fused path, which reads the weights and leaves the layers out.
            parent.activation_relu_or_gelu = 0
    setattr(fast, _RECORD, tuple(gain for _, gain in chosen.values()))
    return fast


def report(fast: nn.Module) -> tuple[LayerGain, ...]:
    """Return what each linear layer gained, for a model that `sparse` returned.

    Parameters
    ----------
    fast : torch.nn.Module
        The model.

    Returns
    -------
    tuple of LayerGain
        One for each layer, in the order of the model.

    Raises
    ------
    InvalidParameterError
        If the model does not come from `sparse`.
    """
    gains = getattr(fast, _RECORD, None)
    if gains is None:
        raise InvalidParameterError(
            f"`fast` must be a model that `export.sparse` returned, got {type(fast).__name__}.",
            "Call `export.sparse(model)` first.",
        )
    return tuple(gains)


def table(fast: nn.Module) -> str:
    """Return a table of what each linear layer gained, for a model that `sparse` returned.

    Parameters
    ----------
    fast : torch.nn.Module
        The model.

    Returns
    -------
    str
        One line for each layer, then the reasons of those that stay dense.

    Raises
    ------
    InvalidParameterError
        If the model does not come from `sparse`.
    """
    gains = report(fast)
    head = ["layer", "shape", "batch", "nonzero", "KiB", "packed", "dense us", "sparse us"]
    rows = [[*head, "gain", "runs"], *map(_cells, gains)]
    lines = aligned(rows, left=(0, len(rows[0]) - 1))
    lines += [f"{g.name or '(model)'}: {g.reason}" for g in gains if g.backend == "dense"]
    return "\n".join(lines)


def race(
    calls: Mapping[str, Callable[[], object]],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of one call of each function, measured in turns.

    Parameters
    ----------
    calls : mapping of str to callable
        The functions. Each is called a few times before it is measured.
    clock : callable, default=time.perf_counter
        Returns the time in seconds.

    Returns
    -------
    dict of str to float
        Seconds.
    """
    repeats = {}
    for name, call in calls.items():
        call()  # compiles, allocates
        call()
        began = clock()
        call()
        repeats[name] = max(1, min(1000, int(1e-3 / max(clock() - began, 1e-9))))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    # In turns, so that a busy moment of the machine is shared.
    for _ in range(11):
        for name, call in calls.items():
            began = clock()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((clock() - began) / repeats[name])
    return {name: statistics.median(times) for name, times in seconds.items()}


def _cells(gain: LayerGain) -> list[str]:
    return [
        gain.name or "(model)",
        "x".join(map(str, gain.shape)),
        str(gain.batch),
        f"{100 * gain.density:.1f} %",
        f"{gain.dense_bytes / 1024:.0f}",
        f"{gain.packed_bytes / 1024:.0f}",
        _micro(gain.dense_seconds),
        _micro(gain.packed_seconds),
        "-" if gain.gain is None else f"{gain.gain:.2f}x",
        gain.backend,
    ]


def _micro(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def _inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    sample: int | Tensor | tuple[Any, ...] | Mapping[str, Any] | None,
) -> dict[str, Tensor]:
    """Return what each layer is called with."""
    if sample is None or isinstance(sample, int):
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(sample or 1, layer.in_features, generator=generator).to(
                layer.weight.dtype
            )
            for name, layer in layers.items()
        }
    found: dict[str, Tensor] = {}
    hooks = []
    for name, layer in layers.items():

        def keep(module: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
            found.setdefault(name, given[0].detach().clone())

        hooks.append(layer.register_forward_pre_hook(keep))
    try:
        if isinstance(sample, Mapping):
            model(**sample)
        else:
            model(*sample) if isinstance(sample, tuple) else model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _choose(
    name: str,
    layer: nn.Linear,
    x: Tensor | None,
    threads: int,
    timer: Timer,
    codes: QuantizedWeight | None = None,
) -> tuple[SparseLinear | QuantizedLinear | None, LayerGain]:
    """Return the fastest replacement, or None, and what was measured."""
    weight = layer.weight
    n_bytes = sum(p.numel() * p.element_size() for p in layer.parameters())
    density = torch.count_nonzero(weight).item() / max(weight.numel(), 1)

    def stay(reason: str) -> tuple[None, LayerGain]:
        batch = 0 if x is None else x.numel() // max(layer.in_features, 1)
        shape = (layer.out_features, layer.in_features)
        return None, LayerGain(
            name, shape, batch, density, n_bytes, n_bytes, None, None, "dense", {}, reason
        )

    if weight.dtype not in DTYPES or weight.device.type != "cpu":
        return stay(
            f"dense is kept; packed layers need float32 or float64 on the CPU, not {weight.dtype} "
            f"on {weight.device}."
        )
    if not weight.numel():
        return stay("dense is kept; the layer is empty.")
    if density > _MOST:
        return stay(
            f"dense is kept; {100 * density:.1f} % of the weight is nonzero, and nothing pays "
            f"above {100 * _MOST:.0f} %."
        )
    if x is None or not x.numel():
        return stay("dense is kept; `sample` does not reach the layer.")
    packed: dict[str, SparseLinear | QuantizedLinear] = {
        b: SparseLinear(layer, b, threads) for b in ("sliced", "torch-csr", "scipy-csr")
    }
    if codes is not None and refusal(codes) is None:
        packed[CODES] = QuantizedLinear(codes, layer.bias, threads)
    n_rows = layer.out_features
    padded = torch.zeros(-(-n_rows // 8) * 8, layer.in_features, dtype=torch.bool)
    padded[:n_rows] = weight != 0
    n_blocks = padded.reshape(-1, 8, layer.in_features).any(dim=1).sum().item()
    if density * weight.numel() >= _LEAST_FILL * 8 * n_blocks:
        packed["blocks"] = SparseLinear(layer, "blocks", threads)

    def call(module: nn.Module) -> Callable[[], object]:
        return lambda: module(x)

    seconds = dict(timer({"dense": call(layer), **{b: call(m) for b, m in packed.items()}}))
    best = min(packed, key=lambda backend: seconds[backend])
    wins = seconds["dense"] >= _MARGIN * seconds[best]
    gain = seconds["dense"] / seconds[best] if seconds[best] else float("inf")
    words = (
        f"{best} is {gain:.2f} times as fast as dense."
        if wins
        else f"dense is kept; it is as fast or faster ({best}, the best sparse one, runs at "
        f"{gain:.2f} times its speed)."
    )
    module = packed[best] if wins else None
    return module, LayerGain(
        name,
        (layer.out_features, layer.in_features),
        x.numel() // layer.in_features,
        density,
        n_bytes,
        packed[best].n_bytes,
        seconds["dense"],
        seconds[best],
        best if wins else "dense",
        seconds,
        words,
    )
