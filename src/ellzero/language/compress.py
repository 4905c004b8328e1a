"""A whole model under a budget: layer after layer, each with its error, bound and gap."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import DataError, InvalidParameterError
from ellzero.language.calibration import (
    Batch,
    Call,
    Segment,
    find_blocks,
    is_conv1d,
    matrix,
    prunable_layers,
    read_batches,
    rows_of,
    split_model,
    stages,
)
from ellzero.language.distillation import DistillationResult
from ellzero.language.distillation import distill as train_towards
from ellzero.language.layers import PrunedLayer, damped_error, keep_layer, prune_layer
from ellzero.language.moments import Aim, Moments, Pair, aim_of, moments
from ellzero.language.quantization import Quantizer, few_levels, quantize_layer, read_quantizer
from ellzero.language.residuals import find_residuals
from ellzero.language.sensitivity import Output, final_output, output_sensitivity
from ellzero.nn.export import QuantizedWeight
from ellzero.sets import L0Ball, NMPattern
from ellzero.storage import from_json, to_json, write_atomic
from ellzero.tensors.selection import top_k_masks
from ellzero.validation import check_choice, check_integer, check_real

logger = logging.getLogger(__name__)

ALLOCATIONS = ("uniform", "rows", "global")
INPUTS = ("compressed", "dense")
# Batches with a backward pass for the sensitivities.
PROBES = 8
# A layer keeps at least this share of the density asked for.
LEAST = 0.2
# Inputs from which an iteration is dear.
WIDE = 1024


@dataclass(frozen=True, slots=True)
class CompressedLayer:
    """One line of the table: a layer, and what was found.

    Parameters
    ----------
    name : str
        Name of the layer in the model.
    record : dict
        Shape, counts, errors, bound, gap, seconds: see `PrunedLayer.to_dict`.
    notes : tuple of str
        What a reader should know, such as dead inputs or a short calibration.
    """

    name: str
    record: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompressionResult:
    """What `compress` did to a model.

    Parameters
    ----------
    layers : tuple of CompressedLayer
        In the order they were compressed.
    left_dense : dict of str to str
        Layers that were left as they were, and why.
    settings : dict
        Parameters of the run.
    seconds : float
        Processor time.
    distillation : DistillationResult or None, default=None
        The recovery training, where one was asked for. Errors and bounds of the layers are those
        before it, counts those after it.
    quantized : dict of str to QuantizedWeight, default={}
        Codes of the weights that are on few levels, by their name in the state of the model, as
        `ellzero.nn.export.save` takes them.
    """

    layers: tuple[CompressedLayer, ...]
    left_dense: dict[str, str]
    settings: dict[str, Any]
    seconds: float
    distillation: DistillationResult | None = None
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)

    @property
    def n_nonzero(self) -> int:
        """Nonzeros of all compressed layers."""
        return sum(layer.record["n_nonzero"] for layer in self.layers)

    @property
    def n_weights(self) -> int:
        """Entries of all compressed layers."""
        return sum(a * b for a, b in (layer.record["shape"] for layer in self.layers))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for reports and JSON."""
        return {
            "layers": [
                {"name": layer.name, **layer.record, "notes": list(layer.notes)}
                for layer in self.layers
            ],
            "left_dense": dict(self.left_dense),
            "settings": dict(self.settings),
            "n_weights": self.n_weights,
            "n_nonzero": self.n_nonzero,
            "density": self.n_nonzero / max(1, self.n_weights),
            "seconds": self.seconds,
            "distillation": None if self.distillation is None else self.distillation.to_dict(),
        }


def compress(
    model: nn.Module,
    calibration: Iterable[Batch],
    *,
    density: float | None = None,
    pattern: str | None = None,
    quantize: str | Quantizer | None = None,
    allocation: str = "uniform",
    inputs: str = "compressed",
    damping: float = 0.01,
    correction: float = 1.0,
    refit_biases: bool = True,
    max_swaps: int = 0,
    max_iter: int = 100,
    with_bounds: bool = True,
    layers: Sequence[str] | None = None,
    output: Output = final_output,
    distill: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[CompressedLayer], None] | None = None,
) -> CompressionResult:
    r"""Give the linear layers of a model an exact number of nonzeros, in place.

    Parameters
    ----------
    model : nn.Module
        The network, such as one of transformers. Its linear layers are changed; the rest is
        not. It is run in evaluation mode.
    calibration : iterable
        Batches: mappings are given to the model as keywords (with ``attention_mask``, padding
        does not count), tuples as positions, anything else as the only argument.
    density : float or None, default=None
        Share of weights kept, in (0, 1], over all layers.
    pattern : str or None, default=None
        Such as ``"2:4"``: at most 2 nonzeros in 4 consecutive inputs. Exactly one of `density`
        and `pattern` is given, or none with `quantize`: then all weights are kept, and zeros of
        a model that was pruned before stay zeros.
    quantize : {"int8", "int4"}, Quantizer or None, default=None
        Puts the kept weights of every layer on few levels, zeros staying zero. "int8" has a scale
        for each row, "int4" one for 64 inputs of a row. A weight may become zero then, which is
        counted for each layer; ``Quantizer(keep_count=True)`` forbids it.
    allocation : {"uniform", "rows", "global"}, default="uniform"
        How `density` is shared: the same in every layer, in every row, or by sensitivity of the
        final output, half-way to uniform.
    inputs : {"compressed", "dense"}, default="compressed"
        Whether a layer is fitted to the inputs that it gets from the layers compressed before it,
        or to those of the dense model.
    damping : float, default=0.01
        Added to the diagonal of the Gram matrices, relative to its mean.
    correction : float, default=1.0
        With compressed inputs: how far a layer aims at the outputs of the dense model, which
        corrects errors made before it, 0 to 1. Where its output is added to another tensor, the
        error of that tensor is corrected too. At 0 a layer keeps its own map; above, the dense
        model is run beside, and errors and bounds are those of the corrected layer.
    refit_biases : bool, default=True
        Whether layers that have a bias get the one that keeps the mean of what they aim at;
        errors are then those of the centered inputs.
    max_swaps : int, default=0
        Passes of exchanges in every layer. They lower its error by a few percent and take several
        times as long.
    max_iter : int, default=100
        Iterations of the splitting method in every layer; wide layers get 60 % of them.
    with_bounds : bool, default=True
        Whether to compute a lower bound for every layer.
    layers : sequence of str or None, default=None
        Parts of names; only layers with one of them are compressed. By default those inside the
        repeated blocks of the model, or all where it has none.
    output : callable, default=final_output
        For ``allocation="global"``: what is kept of the model's output.
    distill : int, default=0
        Steps of training towards the dense model afterwards, on the calibration batches and with
        the supports fixed; a copy of the dense model is kept for it. `distillation.distill` has
        other losses and moving supports.
    checkpoint : str, path or None, default=None
        Folder that keeps every layer when it is done, and the state of the training. A run with
        the same model, calibration and parameters goes on after the last one and gives the same
        bits.
    callback : callable or None, default=None
        Called with every layer.

    Returns
    -------
    CompressionResult
        A table of the layers, and what was left dense.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, nothing can be compressed, or the checkpoint is of another
        run.
    DataError
        If the calibration set is empty.
    NonFiniteError
        If the input of a layer has a NaN or an infinity; the layer is named. Layers before it
        have been changed.

    See Also
    --------
    prune_layer : What is done for one layer.

    Notes
    -----
    Blocks are run one after the other on stored hidden states, so memory is the model, the hidden
    states and a Gram matrix, and with `correction` also the dense hidden states and a copy of a
    block; a model without blocks is run as a whole. In a trial on MiniLM with 80 % zeros and 400
    development sentences, the correction took the mean cosine of the embeddings to the dense ones
    from .77 to .85, and ``allocation="global"`` from there to .87.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language import compress
    >>> generator = torch.Generator().manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> batches = [torch.randn(64, 8, generator=generator)]
    >>> result = compress(model, batches, density=0.25)
    >>> result.n_nonzero, [layer.name for layer in result.layers]
    (20, ['0', '2'])
    """
    start = time.process_time()
    quantizer = read_quantizer(quantize)
    settings = _settings(
        density, pattern, allocation, inputs, damping, correction, refit_biases,
        max_swaps, max_iter, with_bounds, quantizer, distill,
    )  # fmt: skip
    chosen, left_dense = _choose(model, layers)
    calls = read_batches(calibration)
    if settings["pattern"] is not None:
        for name in list(chosen):
            size = matrix(chosen[name]).shape[1]
            if size % settings["pattern"][1]:
                left_dense[name] = f"its {size} inputs are no multiple of the pattern"
                del chosen[name]
    mode = model.training
    model.eval()
    teacher = copy.deepcopy(model) if distill else None
    trained: DistillationResult | None = None
    try:
        budgets = _budgets(model, chosen, calls, settings, output)
        store = None
        if checkpoint is not None:
            store = _Store(Path(checkpoint), _fingerprint(model, chosen, calls, settings))
        table: list[CompressedLayer] = []
        quantized: dict[str, QuantizedWeight] = {}
        for name, layer, aim, notes in _walk(model, chosen, calls, settings, store, left_dense):
            done = store.load(name) if store is not None else None
            if done is None:
                if aim is None:
                    raise AssertionError(name)
                if settings["density"] == 1.0:
                    support = matrix(layer) != 0.0
                    pruned = keep_layer(aim.weight, aim.gram, support, damping=damping)
                else:
                    pruned = prune_layer(
                        aim.weight,
                        aim.gram,
                        budgets[name],
                        damping=damping,
                        max_iter=max_iter if len(aim.gram) < WIDE else max(1, int(0.6 * max_iter)),
                        max_swaps=max_swaps,
                        with_bound=with_bounds,
                    )
                done = _finish(name, layer, pruned, aim, notes, quantizer, damping)
                if store is not None:
                    store.save(*done)
            _write(layer, done[1], done[2])
            table.append(done[0])
            if done[3] is not None:
                quantized[f"{name}.weight" if name else "weight"] = done[3]
            for note in done[0].notes:
                logger.info("%s: %s", name, note)
            if callback is not None:
                callback(done[0])
        if teacher is not None:
            trained = train_towards(
                model,
                teacher,
                calls,
                distill,
                layers=[layer.name for layer in table],
                checkpoint=None if store is None else store.folder / "distillation.pt",
            )
            table = [_recounted(layer, chosen[layer.name]) for layer in table]
    finally:
        model.train(mode)
    seconds = time.process_time() - start
    return CompressionResult(tuple(table), left_dense, settings, seconds, trained, quantized)


def _recounted(line: CompressedLayer, layer: nn.Module) -> CompressedLayer:
    weight = matrix(layer)
    count = int(torch.count_nonzero(weight))
    counts = {"n_nonzero": count, "density": count / max(1, weight.numel())}
    return replace(line, record={**line.record, **counts})


def _settings(
    density: float | None,
    pattern: str | None,
    allocation: str,
    inputs: str,
    damping: float,
    correction: float,
    refit_biases: bool,
    max_swaps: int,
    max_iter: int,
    with_bounds: bool,
    quantizer: Quantizer | None,
    distill: int,
) -> dict[str, Any]:
    if quantizer is not None and density is None and pattern is None:
        density = 1.0
    if quantizer is not None and distill:
        raise InvalidParameterError(
            "`distill` cannot go with `quantize`: training moves weights off their levels.",
            "Compress with `distill` first, then the result with `quantize` alone; zeros stay.",
        )
    if (density is None) == (pattern is None):
        raise InvalidParameterError(
            f"Exactly one of `density` and `pattern` must be given, got {density!r} and "
            f"{pattern!r}.",
            'Give `density=0.5`, or `pattern="2:4"`; none is needed with `quantize`.',
        )
    if density is not None:
        density = check_real("density", density, low=0.0, high=1.0)
        if density == 0.0:
            raise InvalidParameterError(
                "`density` must be above 0, got 0.", "Give the share of weights to keep."
            )
    check_choice("allocation", allocation, ALLOCATIONS)
    check_choice("inputs", inputs, INPUTS)
    return {
        "density": density,
        "pattern": None if pattern is None else parse_pattern(pattern),
        "allocation": allocation,
        "inputs": inputs,
        "damping": check_real("damping", damping, low=0.0),
        "correction": check_real("correction", correction, low=0.0, high=1.0),
        "refit_biases": bool(refit_biases),
        "max_swaps": check_integer("max_swaps", max_swaps, 0),
        "max_iter": check_integer("max_iter", max_iter, 1),
        "with_bounds": with_bounds,
        "quantize": None if quantizer is None else quantizer.to_dict(),
        "distill": check_integer("distill", distill, 0),
    }


def parse_pattern(pattern: str) -> list[int]:
    """Return n and m of ``"n:m"``; raise InvalidParameterError for any other text."""
    parts = pattern.split(":")
    if len(parts) == 2 and all(part.isascii() and part.isdigit() for part in parts):
        n, m = int(parts[0]), int(parts[1])
        if 0 < n <= m:
            return [n, m]
    raise InvalidParameterError(
        f'`pattern` must be like "2:4", got {pattern!r}.', "Write n:m with n up to m."
    )


def _choose(
    model: nn.Module, names: Sequence[str] | None
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    found, left_dense = prunable_layers(model)
    if names is not None:
        reason = "not asked for"
        chosen = {key: v for key, v in found.items() if any(name in key for name in names)}
    else:
        reason = "outside the repeated blocks"
        inside, _ = find_blocks(model, found)
        chosen = {key: v for key, v in found.items() if key.startswith(f"{inside}.")}
        chosen = chosen if inside else dict(found)
    left_dense.update({key: reason for key in found if key not in chosen})
    if not chosen:
        raise InvalidParameterError(
            "No layer can be compressed: "
            + ("; ".join(f"'{k}': {v}" for k, v in left_dense.items()) or "the model has none")
            + ".",
            "Linear layers are compressed; choose them with `layers`.",
        )
    return chosen, left_dense


def _budgets(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    calls: Sequence[Call],
    settings: Mapping[str, Any],
    output: Output,
) -> dict[str, AbstractSparseSet]:
    shapes = {name: tuple(matrix(layer).shape) for name, layer in chosen.items()}
    if settings["pattern"] is not None:
        n, m = settings["pattern"]
        return {name: NMPattern(n, m) for name in chosen}
    density = float(settings["density"])
    if settings["allocation"] == "rows":
        return {
            name: NMPattern(max(1, int(density * width)), width)
            for name, (_, width) in shapes.items()
        }
    sizes = {name: a * b for name, (a, b) in shapes.items()}
    counts = {name: int(density * size) for name, size in sizes.items()}
    if settings["allocation"] == "global" and len(chosen) > 1 and density < 1.0:
        counts = _global_counts(model, chosen, calls, sizes, density, output)
    return {name: L0Ball(max(1, count)) for name, count in counts.items()}


def _global_counts(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    calls: Sequence[Call],
    sizes: Mapping[str, int],
    density: float,
    output: Output,
) -> dict[str, int]:
    """Return counts half-way between uniform and the largest Gauss-Newton scores of all layers."""
    probes = list(calls)[:: max(1, len(calls) // PROBES)][:PROBES]
    sensitivity = output_sensitivity(model, chosen, probes, output=output)
    energy = _input_energy(model, chosen, probes)
    scores = {
        name: matrix(layer).double().square()
        * energy[name]
        * sensitivity[name].to(energy[name])[:, None]
        for name, layer in chosen.items()
    }
    total = int(density * sum(sizes.values()))
    masks = top_k_masks(scores, total)
    counts = {}
    for name, size in sizes.items():
        share = 0.5 * int(masks[name].sum()) + 0.5 * density * size
        counts[name] = min(size, max(1, int(share), int(LEAST * density * size)))
    # What rounding left goes to the first layers that have room.
    spare = total - sum(counts.values())
    for name, size in sizes.items():
        step = max(min(spare, size - counts[name]), 1 - counts[name])
        counts[name] += step
        spare -= step
    return counts


@torch.no_grad()
def _input_energy(
    model: nn.Module, chosen: Mapping[str, nn.Module], calls: Sequence[Call]
) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    tokens: list[Tensor | None] = [None]
    handles = []
    for name, layer in chosen.items():

        def note(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            rows = rows_of(args[0], tokens[0]).double()
            sums[name] = sums.get(name, torch.zeros_like(rows[0])) + (rows * rows).sum(0)

        handles.append(layer.register_forward_pre_hook(note))
    try:
        for call in calls:
            tokens[0] = call.tokens
            call.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: sums.get(name, torch.ones(matrix(layer).shape[1], dtype=torch.float64))
        for name, layer in chosen.items()
    }


def _walk(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    calls: Sequence[Call],
    settings: Mapping[str, Any],
    store: _Store | None,
    left_dense: dict[str, str],
) -> Any:
    """Yield every layer with its target, Gram matrix and notes; nothing of layers in the store."""
    segments, calls = split_model(model, chosen, calls)
    compressed = settings["inputs"] == "compressed"
    correct = compressed and settings["correction"] > 0.0
    dense_calls = list(calls)
    for segment in segments:
        last = segment is segments[-1]
        groups, unused = stages(segment, calls[0])
        for name in unused:
            left_dense[name] = "not reached by the calibration"
        pair: Pair | None = None
        if correct:
            pair = Pair(_twin(segment), dense_calls, find_residuals(segment, dense_calls[0]))
        pending: list[tuple[str, nn.Module, Moments | None]] = []
        for group in groups:
            found: Moments | None = None
            if store is None or not all(map(store.has, group)):
                found = moments(segment, group, calls, pair)
            pending += [(name, segment.layers[name], found) for name in group]
            if compressed:
                yield from (_job(*item, settings) for item in pending)
                pending = []
        # Inputs of the dense model: nothing is changed before the block is left.
        if not compressed and not last:
            calls = _advance(segment.module, calls)
        if pair is not None and not last:
            dense_calls = _advance(pair.segment.module, dense_calls)
        yield from (_job(*item, settings) for item in pending)
        if compressed and not last:
            calls = _advance(segment.module, calls)


def _twin(segment: Segment) -> Segment:
    """Return a copy of a segment that stays dense."""
    original = copy.deepcopy(segment.module)
    places = {id(module): name for name, module in segment.module.named_modules()}
    layers = {
        name: original.get_submodule(places[id(layer)]) for name, layer in segment.layers.items()
    }
    return Segment(original, layers, set(segment.repeated))


@torch.no_grad()
def _advance(module: nn.Module, calls: Sequence[Call]) -> list[Call]:
    return [call.after(call.run(module)) for call in calls]


def _job(
    name: str, layer: nn.Module, found: Moments | None, settings: Mapping[str, Any]
) -> tuple[str, nn.Module, Aim | None, tuple[str, ...]]:
    if found is None:
        return name, layer, None, ()
    weight = matrix(layer)
    notes = []
    width = weight.shape[1]
    if found.n_samples < width:
        notes.append(
            f"{found.n_samples} calibration tokens for {width} inputs; damping decides the rest"
        )
    dead = int((found.gram.diagonal() <= 0.0).sum())
    if dead:
        what = "stay as they are" if settings["density"] == 1.0 else "are zero"
        notes.append(f"{dead} inputs are always zero; their weights {what}")
    aim = aim_of(
        name,
        weight if weight.dtype == torch.float64 else weight.float(),
        found,
        has_bias=settings["refit_biases"] and isinstance(layer.bias, Tensor),
        correction=settings["correction"],
        damping=settings["damping"],
    )
    if aim.n_constant:
        notes.append(f"{aim.n_constant} inputs are constant; the bias takes their place")
    return name, layer, aim, tuple(notes)


# Line of the table, weight, bias, codes.
_Done = tuple[CompressedLayer, Tensor, Tensor | None, QuantizedWeight | None]


def _finish(
    name: str,
    layer: nn.Module,
    pruned: PrunedLayer,
    aim: Aim,
    notes: tuple[str, ...],
    quantizer: Quantizer | None,
    damping: float,
) -> _Done:
    weight = pruned.weight.to(matrix(layer).dtype)
    record = pruned.to_dict()
    codes = None
    if quantizer is not None:
        if few_levels(matrix(layer)):
            notes += ("it had few levels before, as if quantized; errors add up",)
        found = quantize_layer(weight, aim.gram, quantizer, damping=damping)
        weight, codes = found.weight, replace(found.quantized, transposed=is_conv1d(layer))
        record |= _judged(found.to_dict(), pruned, aim, weight, damping)
        if found.n_rounded:
            notes += (f"{found.n_rounded} nonzero weights became zero when rounded",)
    record["n_nonzero"] = int(torch.count_nonzero(weight))
    bias = aim.bias(layer.bias.detach(), weight) if isinstance(layer.bias, Tensor) else None
    return CompressedLayer(name, record, notes), weight, bias, codes


def _judged(
    found: dict[str, Any], pruned: PrunedLayer, aim: Aim, weight: Tensor, damping: float
) -> dict[str, Any]:
    """Return the record of a quantized layer, whose error counts from the dense weight."""
    value = damped_error(aim.weight, weight, aim.gram, damping)
    gap = None
    if pruned.lower_bound is not None:
        gap = max(0.0, 1.0 - pruned.lower_bound / value) if value > 0.0 else 0.0
    return {
        "relative_error": value / pruned.scale if pruned.scale > 0.0 else 0.0,
        "pruning_error": pruned.relative_error,
        "quantization_error": found["relative_error"],
        "gap": gap,
        "density": int(torch.count_nonzero(weight)) / max(1, weight.numel()),
        "n_bits": found["n_bits"],
        "group_size": found["group_size"],
        "n_rounded": found["n_rounded"],
        "seconds": pruned.seconds + found["seconds"],
    }


@torch.no_grad()
def _write(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    new = weight.T if is_conv1d(layer) else weight
    layer.weight.copy_(new)  # type: ignore[operator]
    if bias is not None:
        layer.bias.copy_(bias)  # type: ignore[operator]


def _fingerprint(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    calls: Sequence[Call],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    data = hashlib.sha256()
    for call in calls:
        for value in (*call.args, *call.kwargs.values()):
            if isinstance(value, Tensor):
                data.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return {
        "model": digest.hexdigest(),
        "calibration": data.hexdigest(),
        "layers": list(chosen),
        # The training has its own file, which says what it is of.
        "settings": {key: value for key, value in settings.items() if key != "distill"},
    }


_CODES = ("codes", "scales", "zero_points")


class _Store:
    """A folder with one file for each layer that is done."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = folder
        known = folder / "run.json"
        text = to_json(dict(fingerprint))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = known.read_bytes() if known.exists() else None
        except OSError as error:
            raise InvalidParameterError(
                f"The checkpoint in '{folder}' cannot be read or made: "
                f"{(error.strerror or str(error)).lower()}.",
                "Remove the folder, or name another one.",
            ) from error
        if before is not None:
            if before != text.encode():
                raise InvalidParameterError(
                    f"The checkpoint in '{folder}' is of another model, calibration or setting.",
                    "Remove the folder, or name another one.",
                )
        else:
            write_atomic(known, text)

    def path(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"

    def has(self, name: str) -> bool:
        return self.path(name).exists()

    def save(
        self,
        layer: CompressedLayer,
        weight: Tensor,
        bias: Tensor | None,
        codes: QuantizedWeight | None,
    ) -> None:
        from safetensors.torch import save

        content: dict[str, Any] = {
            "name": layer.name,
            "record": layer.record,
            "notes": list(layer.notes),
        }
        tensors = {"weight": weight.contiguous()}
        if bias is not None:
            tensors["bias"] = bias.contiguous()
        if codes is not None:
            tensors |= {part: getattr(codes, part).contiguous() for part in _CODES}
            content["codes"] = [codes.n_bits, codes.group_size, codes.transposed]
        write_atomic(self.path(layer.name), save(tensors, {"record": to_json(content)}))

    def load(self, name: str) -> _Done | None:
        from safetensors import safe_open

        path = self.path(name)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                record = from_json(file.metadata()["record"])
                weight = file.get_tensor("weight")
                if list(weight.shape) != list(record["record"]["shape"]):
                    raise ValueError("the shape of the weight")
                bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118
                codes = None
                if "codes" in record:
                    n_bits, group_size, transposed = record["codes"]
                    parts = {part: file.get_tensor(part) for part in _CODES}
                    codes = QuantizedWeight(
                        **parts,
                        n_bits=n_bits,
                        group_size=group_size,
                        dtype=weight.dtype,
                        transposed=transposed,
                    )
        except Exception as error:
            raise DataError(
                f"The checkpoint file '{path.name}' cannot be read: {error}.",
                "Remove it; the layer is then compressed again.",
            ) from error
        return CompressedLayer(name, record["record"], tuple(record["notes"])), weight, bias, codes
