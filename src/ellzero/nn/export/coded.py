"""Linear layers on the codes of sparse weights, for inference on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.errors import IncompatibleError
from ellzero.nn.export.modules import _FEW, _WORK, _in_threads, _permutes, _shares
from ellzero.nn.export.quantized import QuantizedWeight
from ellzero.validation import check_integer

BACKEND = "sliced-codes"


def refusal(weight: QuantizedWeight) -> str | None:
    """Return why a weight cannot run on its codes, or None."""
    if weight.dtype != torch.float32:
        return f"the kernel of codes needs a float32 model, not {weight.dtype}"
    if weight.scales.shape[1] > 1:
        return (
            f"the kernel of codes needs one scale for each row, not groups of {weight.group_size}"
        )
    return None


class QuantizedLinear(nn.Module):
    r"""Linear layer on the codes of a sparse weight, for inference on a CPU.

    .. math:: y_i = s_i \sum_j (q_{ij} - z_i) x_j + b_i

    Inputs and outputs stay float32. The codes take one byte each (two where an affine layer has a
    difference beyond 127), the columns two: half of what `SparseLinear` reads.

    Parameters
    ----------
    weight : QuantizedWeight
        With one scale for each row; float32.
    bias : Tensor of shape (n_outputs,) or None, default=None
        Added to every output.
    threads : int, default=1
        Largest number of threads, used where there is enough to do.

    Raises
    ------
    IncompatibleError
        If the weight is not float32 or has groups.

    See Also
    --------
    ellzero.nn.export.sparse : Chooses it for the layers of a model where it is fastest.

    Notes
    -----
    The result is that of the dense layer with the dequantized weight up to rounding, each entry
    within :math:`(n + 3) \epsilon (|W| |x| + |b|)` for n nonzeros in the row. There are no
    gradients.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language import quantize_layer
    >>> from ellzero.nn.export import QuantizedLinear
    >>> found = quantize_layer(torch.tensor([[127.0, 0.0, 0.0, -64.0]]))
    >>> QuantizedLinear(found.quantized)(torch.ones(1, 4)).tolist()
    [[63.0]]
    """

    codes: Tensor
    cols: Tensor
    starts: Tensor
    order: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None = None, threads: int = 1
    ) -> None:
        super().__init__()
        if (why := refusal(weight)) is not None:
            raise IncompatibleError(
                f"`QuantizedLinear` cannot run this weight: {why}.",
                "Run the dequantized layer, or `SparseLinear` on it.",
            )
        from ellzero.kernels.sparse_product import pack_sliced

        self.threads = check_integer("threads", threads, 1)
        self.out_features, self.in_features = weight.codes.shape
        steps = weight.differences().cpu().numpy()
        if int(np.abs(steps).max(initial=0)) < 128:
            steps = steps.astype(np.int8)
        codes, cols, starts, order = pack_sliced(steps)
        self.register_buffer("codes", torch.from_numpy(codes))
        # As signed integers of the same bits: torch cannot pickle the unsigned ones.
        signed = cols.view(cols.dtype.str.replace("u", "i"))
        self.register_buffer("cols", torch.from_numpy(signed))
        self.register_buffer("starts", torch.from_numpy(starts))
        self.register_buffer("order", torch.from_numpy(order))
        self.register_buffer("scales", weight.scales[:, 0].clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self._ready: Callable[[Tensor], Tensor] | None = None

    @property
    def n_bytes(self) -> int:
        """Size of codes, columns, scales and bias in memory."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    @property
    def weight(self) -> Tensor:
        """Dense weight of shape (out_features, in_features), rebuilt."""
        out = torch.zeros(self.out_features, self.in_features)
        lanes = self.starts.diff()
        rows = self.order.reshape(-1, 8).repeat_interleave(lanes, dim=0)
        inside = rows < self.out_features
        cols = self.cols.numpy()
        wide = torch.from_numpy(cols.view(cols.dtype.str.replace("i", "u")).astype(np.int64))
        place = (rows[inside], wide[inside])
        out.index_put_(place, self.codes[inside].to(torch.float32), accumulate=True)
        return out * self.scales[:, None]

    def to_linear(self) -> nn.Linear:
        """Return the dense layer of the same weight and bias."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the product for inputs of shape (..., in_features)."""
        shape = x.shape
        if not shape or shape[-1] != self.in_features:
            raise IncompatibleError(
                f"`QuantizedLinear` needs inputs of shape (..., {self.in_features}), got "
                f"{tuple(shape)}.",
                "Give the features along the last axis.",
            )
        if x.dtype != torch.float32 or not x.is_cpu:
            raise IncompatibleError(
                f"`QuantizedLinear` needs float32 inputs on the CPU, got {x.dtype} on {x.device}.",
                "Convert the input, or use the dense model.",
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise IncompatibleError(
                "`QuantizedLinear` has no gradients, got an input that requires them.",
                "Run the model under `torch.no_grad()`, and train the dense one.",
            )
        if self._ready is None:
            _check_layout(self)
            self._ready = _prepare(self)
        samples = x.detach().reshape(-1, self.in_features).contiguous()
        if samples.shape[0] == 0:
            return x.new_zeros(*shape[:-1], self.out_features)
        return self._ready(samples).reshape(*shape[:-1], self.out_features)

    @override
    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, codes={self.codes.dtype}"
        )

    # What is prepared points into the buffers, so it goes when they may move.

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        self._ready = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._ready = None
        # Another weight of the same shape has another number of entries.
        for name in ("codes", "cols"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape != own.shape:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}


def _check_layout(layer: QuantizedLinear) -> None:
    """Raise where the buffers do not describe a matrix: the kernels do not look twice."""
    starts, cols = layer.starts.numpy(), layer.cols.numpy()
    cols = cols.view(cols.dtype.str.replace("i", "u"))
    n_slices = -(-layer.out_features // 8)
    right = (
        all(b.is_contiguous() and b.is_cpu for b in layer.buffers())
        and layer.codes.dtype in (torch.int8, torch.int16)
        and layer.scales.dtype == torch.float32
        and starts.shape == (n_slices + 1,)
        and starts[0] == 0
        and starts[-1] == cols.shape[0]
        and bool((np.diff(starts) >= 0).all())
        and (not cols.size or cols.max() < layer.in_features)
        and layer.codes.shape == cols.shape
        and _permutes(layer.order.numpy(), 8 * n_slices)
        and tuple(layer.scales.shape) == (layer.out_features,)
        and (
            layer.bias is None
            or (tuple(layer.bias.shape), layer.bias.dtype)
            == ((layer.out_features,), torch.float32)
        )
    )
    if not right:
        raise IncompatibleError(
            f"The buffers of `QuantizedLinear` do not describe a weight of shape "
            f"({layer.out_features}, {layer.in_features}).",
            "Load the state of a layer of the same shape, and keep it in float32.",
        )


def _prepare(layer: QuantizedLinear) -> Callable[[Tensor], Tensor]:
    from ellzero.kernels import coded_product as kernels
    from ellzero.kernels.sparse_product import LANES, WINDOW, to_tiles

    cols, starts = layer.cols.numpy(), layer.starts.numpy()
    cols = cols.view(cols.dtype.str.replace("i", "u"))
    weight = [layer.codes.numpy(), cols, starts, layer.order.numpy()]
    n_lanes = 8 * (starts.size - 1)
    scales, bias, none = (np.zeros(n_lanes, np.float32) for _ in range(3))
    own_scales = layer.scales.numpy()
    own_bias = None if layer.bias is None else layer.bias.numpy()
    whole, shared = (_shares(starts, t, WINDOW // LANES) for t in (1, layer.threads))
    n_rows, n_columns, n_entries = layer.out_features, layer.in_features, cols.size

    def product(samples: Tensor) -> Tensor:
        n_samples = samples.shape[0]
        parts = shared if n_entries * n_samples >= _WORK * len(shared) else whole
        out = torch.empty(n_samples, n_rows)
        x, y = samples.numpy(), out.numpy()
        scales[:n_rows] = own_scales
        if own_bias is not None:
            bias[:n_rows] = own_bias
        if n_samples <= _FEW:
            _in_threads(kernels.coded_vectors, (*weight, scales, bias, x, y), parts)
            return out
        done = 0
        while done < n_samples:
            left = n_samples - done
            width = 8 if left <= 8 else 16 if left <= 16 else 32
            n_tiles = max(left // width, 1)
            stop = min(done + n_tiles * width, n_samples)
            tiles = np.empty((n_tiles, n_columns, width), np.float32)
            to_tiles(x[done:stop], tiles)
            _in_threads(
                kernels.coded_tiles, (*weight, scales, bias, none, tiles, y[done:stop]), parts
            )
            done = stop
        return out

    return product
