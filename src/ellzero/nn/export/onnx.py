"""Networks in the format of ONNX, checked with ONNX Runtime."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.export.compacting import (
    LayerChange,
    changes,
    compact,
    difference,
)
from ellzero.objectives.module import split_sample
from ellzero.storage import write_atomic

# One message of protobuf cannot be larger.
_LARGEST = 2**31 - 1
_SLACK = 1e3


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """What `to_onnx` wrote.

    Parameters
    ----------
    n_bytes : int
        Size of the file.
    inputs, outputs : tuple of str
        Names in the graph, in order.
    dynamic_batch : bool
        Whether the first axis of every input may have any length.
    difference : float
        Largest difference between ONNX Runtime and the model on the sample, over the largest
        output.
    changes : tuple of LayerChange
        What `compact` did before; empty where it was not asked to.
    """

    n_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    difference: float
    changes: tuple[LayerChange, ...]


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    sample: Any,
    *,
    smaller: bool = True,
    dynamic_batch: bool = True,
    opset: int | None = None,
) -> OnnxFile:
    """Write a network as an ONNX file, without its dead units, after checking it.

    Parameters
    ----------
    model : torch.nn.Module
        Any module on any device. It is not changed. Its function is that of evaluation mode.
    path : str or path
        Where; an existing file is replaced in one move.
    sample : Tensor, tuple of Tensor or mapping of str to Tensor
        What the model is called with: one input, a tuple of inputs, or a mapping of keywords.
    smaller : bool, default=True
        Whether dead units are taken out by `compact` first.
    dynamic_batch : bool, default=True
        Whether the first axis of every input may have any length in the file.
    opset : int or None, default=None
        Version of the operators; None means the default of torch.

    Returns
    -------
    OnnxFile
        Size, names, and how near ONNX Runtime comes to the model.

    Raises
    ------
    InvalidParameterError
        If `sample` is not made of tensors, `model` cannot be called with it, or the file cannot be
        written.
    IncompatibleError
        If the extra `onnx` is not installed, the model cannot be exported, it is larger than a
        file can be, or ONNX Runtime computes another function; nothing is written then.

    See Also
    --------
    compact : Takes dead units out.
    save : A small file of the weights alone.

    Notes
    -----
    Zeros that are scattered in a weight are stored as zeros and bring no speed: ONNX Runtime has
    no kernels for them. Dead units are gone, so they save both. The file is checked with the
    sample, and with a batch of another length where that may vary: ONNX Runtime has to agree with
    the model to rounding.

    Examples
    --------
    >>> from ellzero.nn import export
    >>> written = export.to_onnx(model, "model.onnx", torch.randn(2, 64))  # doctest: +SKIP
    >>> written.inputs, written.dynamic_batch  # doctest: +SKIP
    (('input',), True)
    """
    runtime = _runtime()
    args, kwargs = split_sample(sample)
    for value in (*args, *kwargs.values()):
        if not isinstance(value, Tensor) or (dynamic_batch and not value.ndim):
            got = "a number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InvalidParameterError(
                f"`sample` must hold tensors with a batch, got {got}.",
                "Give the inputs alone; fix other arguments in a module around the model.",
            )
    if smaller:
        ready = compact(model, sample)
        lost = changes(ready)
    else:
        ready, lost = copy.deepcopy(model).eval(), ()
    ready = ready.cpu()
    order = {name: i for i, name in enumerate(inspect.signature(ready.forward).parameters)}
    kwargs = dict(sorted(kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    given = _Inputs(args, kwargs).each(lambda t: t.detach().cpu())
    traced, other = given, None
    if dynamic_batch:
        # torch takes a batch of one for a constant.
        traced = given.each(lambda t: t if t.shape[0] != 1 else torch.cat([t, t]))
        other = traced.each(lambda t: torch.cat([t, t[:1]]))
        _call_with_another_batch(ready, other)
    blob = _export(ready, traced, dynamic_batch, opset)
    try:
        session = runtime.InferenceSession(blob, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise IncompatibleError(
            f"ONNX Runtime cannot run the exported model: {_line(error)}.",
            "Update onnxruntime, or export with a lower `opset`.",
        ) from error
    inputs = tuple(i.name for i in session.get_inputs())
    outputs = tuple(o.name for o in session.get_outputs())
    apart = _check(session, inputs, ready, given)
    if other is not None:
        _check(session, inputs, ready, other)
    write_atomic(path, blob)
    return OnnxFile(len(blob), inputs, outputs, dynamic_batch, apart, lost)


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise IncompatibleError(
            f"ONNX files need the package '{error.name}', which is not installed.",
            'Install it with `pip install "ellzero[onnx]"`.',
        ) from error
    return onnxruntime


def _line(error: Exception) -> str:
    text = next((t for t in str(error).splitlines() if t.strip()), type(error).__name__)
    return text.strip().rstrip(".")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a model is called with."""

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]

    def each(self, change: Callable[[Tensor], Tensor]) -> _Inputs:
        kwargs = {name: change(t) for name, t in self.kwargs.items()}
        return _Inputs(tuple(map(change, self.args)), kwargs)

    def call(self, model: nn.Module) -> Any:
        same = self.each(torch.clone)  # modules may write into what they get
        with torch.no_grad():
            return model(*same.args, **same.kwargs)

    @property
    def batch(self) -> int:
        first = next(iter((*self.args, *self.kwargs.values())))
        return len(first) if first.ndim else 1


def _call_with_another_batch(model: nn.Module, inputs: _Inputs) -> None:
    try:
        inputs.call(model)
    except Exception as error:
        raise IncompatibleError(
            f"{type(model).__name__} cannot be called with a batch of {inputs.batch}: "
            f"{_line(error)}.",
            "Pass `dynamic_batch=False`, which fixes the shapes of `sample`.",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing what it does and which packages are not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _export(model: nn.Module, inputs: _Inputs, dynamic_batch: bool, opset: int | None) -> bytes:
    shapes: Any = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        shapes = {name: {0: batch} for name in inputs.kwargs}
        shapes = shapes or tuple({0: batch} for _ in inputs.args)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                inputs.args,
                kwargs=inputs.kwargs or None,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                verbose=False,
            )
        assert program is not None
        size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        if size > _LARGEST:
            raise IncompatibleError(
                f"The model has {size} bytes, more than the {_LARGEST} that one ONNX file can "
                "hold.",
                "Store the model by `save`, or make it smaller.",
            )
        blob: bytes = program.model_proto.SerializeToString()
    except IncompatibleError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        hint = "Replace what torch cannot export, or pass `dynamic_batch=False`."
        raise IncompatibleError(
            f"{type(model).__name__} cannot be exported: {_line(cause)}.", hint
        ) from error
    return blob


def _check(session: Any, names: tuple[str, ...], model: nn.Module, inputs: _Inputs) -> float:
    """Return how far ONNX Runtime is from the model, or raise."""
    expected = inputs.call(model)
    try:
        # By position: an input that is also an output gets another name in the graph.
        tensors = (*inputs.args, *inputs.kwargs.values())
        given = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
        got = [torch.from_numpy(t) for t in session.run(None, given)]
    except Exception as error:
        raise IncompatibleError(
            f"ONNX Runtime cannot run a batch of {inputs.batch}: {_line(error)}.",
            "Pass `dynamic_batch=False`, which fixes the shapes of `sample`.",
        ) from error
    apart = difference(expected, got)
    kinds = [t.dtype for t in got if t.is_floating_point()]
    slack = _SLACK * max((torch.finfo(k).eps for k in kinds), default=0.0)
    if apart > min(slack, 0.05):
        raise IncompatibleError(
            f"ONNX Runtime gives other outputs than the model: they differ by {apart:.1e} of the "
            f"largest one on a batch of {inputs.batch}.",
            "Export a part of the model to find the operator, or another `opset`.",
        )
    return apart
