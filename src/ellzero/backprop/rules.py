"""Value, Jacobian and points without derivative of every supported layer and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.backprop.operators import (
    AbstractJacobian,
    BlockJacobian,
    DenseJacobian,
    DiagonalJacobian,
    IdentityJacobian,
    LowRankJacobian,
    SelectionJacobian,
    SparseJacobian,
)
from ellzero.errors import InvalidParameterError


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a rule says of one layer at one input.

    Parameters
    ----------
    output : Tensor
        The layer's output for the sample, without batch axis.
    input : AbstractJacobian
        Derivative of the flattened output with respect to the flattened input.
    params : mapping of str to AbstractJacobian
        Derivatives with respect to each flattened parameter, by its name in the layer.
    kinks : tuple of str
        Sentences about entries at which the layer has no derivative.
    """

    output: Tensor
    input: AbstractJacobian
    params: Mapping[str, AbstractJacobian] = field(default_factory=dict)
    kinks: tuple[str, ...] = ()


Rule = Callable[[nn.Module, Tensor], LayerParts]


class Residual(nn.Module):
    """A residual connection: the input plus what a body makes of it.

    Parameters
    ----------
    body : torch.nn.Module
        Layers whose output has the shape of their input.

    Examples
    --------
    >>> import torch
    >>> from ellzero.backprop import Residual
    >>> Residual(torch.nn.ReLU())(torch.tensor([1.0, -1.0])).tolist()
    [2.0, -1.0]
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ``x + body(x)``."""
        out: Tensor = self.body(x)
        return x + out


class HalfSquaredError(nn.Module):
    """The loss of textbooks, half the sum of squared errors, averaged over samples.

    Examples
    --------
    >>> import torch
    >>> from ellzero.backprop import HalfSquaredError
    >>> HalfSquaredError()(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]])).item()
    2.0
    """

    @override
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, a 0-d tensor."""
        return (output - target).square().sum() / (2 * output.shape[0])


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = layer(x.unsqueeze(0)).squeeze(0)
    return out


def _refuse(layer: nn.Module, what: str, hint: str | None = None) -> InvalidParameterError:
    return InvalidParameterError(
        f"A layer {type(layer).__name__} {what}, and there is no rule for that.", hint
    )


def _weight(layer: nn.Module, name: str = "weight") -> Tensor:
    tensor: Tensor = getattr(layer, name)
    return tensor.detach()


def _has(layer: nn.Module, name: str) -> bool:
    return isinstance(getattr(layer, name, None), Tensor)


def _linear(layer: nn.Module, x: Tensor) -> LayerParts:
    W = _weight(layer)
    n_out, n_in = W.shape
    flat = x.reshape(-1, n_in)
    T = flat.shape[0]
    out = _apply(layer, x)
    params: dict[str, AbstractJacobian] = {}
    if T == 1:
        input_: AbstractJacobian = DenseJacobian(W)
        params["weight"] = BlockJacobian(flat.reshape(1, 1, n_in), n_out)
    else:
        input_ = BlockJacobian(W.unsqueeze(0), T)
        t, o, i = (g.reshape(-1) for g in _grid(T, n_out, n_in))
        params["weight"] = SparseJacobian(
            t * n_out + o, o * n_in + i, flat[t, i], (T * n_out, n_out * n_in), "repeated rows"
        )
    if _has(layer, "bias"):
        params["bias"] = _stacked_identity(n_out, T)
    return LayerParts(out, input_, params)


def _grid(*sizes: int) -> tuple[Tensor, ...]:
    return torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij")


def _stacked_identity(n: int, times: int) -> AbstractJacobian:
    if times == 1:
        return IdentityJacobian(n)
    return SelectionJacobian(torch.arange(n).repeat(times), n)


def _activation(
    slope: Callable[[nn.Module, Tensor], Tensor],
    kinks: Callable[[nn.Module], tuple[float, ...]] = lambda layer: (),
) -> Rule:
    def rule(layer: nn.Module, x: Tensor) -> LayerParts:
        said = []
        for level in kinks(layer):
            count = int((x == level).sum())
            if count:
                said.append(
                    f"{count} of {x.numel()} inputs are exactly {level:g}, where "
                    f"{type(layer).__name__} has no derivative"
                )
        values = slope(layer, x).reshape(-1)
        return LayerParts(_apply(layer, x), DiagonalJacobian(values), kinks=tuple(said))

    return rule


def _number(layer: nn.Module, name: str) -> float:
    return float(getattr(layer, name))


def _relu(layer: nn.Module, z: Tensor) -> Tensor:
    return (z > 0).to(z.dtype)


def _leaky(layer: nn.Module, z: Tensor) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), _number(layer, "negative_slope"))


def _elu(layer: nn.Module, z: Tensor) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), _number(layer, "alpha") * torch.exp(z))


def _clipped(layer: nn.Module, z: Tensor) -> Tensor:
    low, high = _number(layer, "min_val"), _number(layer, "max_val")
    return ((z > low) & (z < high)).to(z.dtype)


def _softplus(layer: nn.Module, z: Tensor) -> Tensor:
    scaled = _number(layer, "beta") * z
    # torch goes over to the identity beyond its threshold.
    linear = scaled > _number(layer, "threshold")
    return torch.where(linear, torch.ones_like(z), torch.sigmoid(scaled))


def _silu(layer: nn.Module, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu(layer: nn.Module, z: Tensor) -> Tensor:
    if getattr(layer, "approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (z + 0.044715 * z**3))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)
    below = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return below + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _identity(layer: nn.Module, x: Tensor) -> LayerParts:
    if isinstance(layer, nn.Flatten) and layer.start_dim != 1:
        raise _refuse(layer, f"starts at axis {layer.start_dim}, inside the batch", None)
    return LayerParts(_apply(layer, x), IdentityJacobian(x.numel()))


def _last_axis(layer: nn.Module, x: Tensor) -> None:
    dim = getattr(layer, "dim", None)
    if dim not in (-1, x.ndim):
        raise _refuse(
            layer, f"goes along `dim={dim}`", "Give `dim=-1`; only the last axis is supported."
        )


def _softmax(layer: nn.Module, x: Tensor) -> LayerParts:
    _last_axis(layer, x)
    p = _apply(layer, x)
    rows = p.reshape(-1, p.shape[-1])
    return LayerParts(p, LowRankJacobian(rows, -rows.unsqueeze(2), rows.unsqueeze(2)))


def _log_softmax(layer: nn.Module, x: Tensor) -> LayerParts:
    _last_axis(layer, x)
    out = _apply(layer, x)
    p = out.exp().reshape(-1, out.shape[-1])
    ones = torch.ones_like(p)
    return LayerParts(out, LowRankJacobian(ones, -ones.unsqueeze(2), p.unsqueeze(2)))


def _normalized(groups: Tensor, eps: float, gain: Tensor) -> tuple[Tensor, AbstractJacobian]:
    """Return h = (v - mean) / s of each row, and the Jacobian of gain * h."""
    n = groups.shape[1]
    s = (groups.var(1, unbiased=False, keepdim=True) + eps).sqrt()
    h = (groups - groups.mean(1, keepdim=True)) / s
    d = gain / s
    left = torch.stack([-d / n, -d * h / n], 2)
    right = torch.stack([torch.ones_like(h), h], 2)
    return h, LowRankJacobian(d.expand_as(h), left, right)


def _layer_norm(layer: nn.Module, x: Tensor) -> LayerParts:
    assert isinstance(layer, nn.LayerNorm)
    n = math.prod(layer.normalized_shape)
    groups = x.reshape(-1, n)
    gain = _weight(layer).reshape(1, n) if _has(layer, "weight") else torch.ones_like(groups[:1])
    h, input_ = _normalized(groups, layer.eps, gain)
    params: dict[str, AbstractJacobian] = {}
    G = groups.shape[0]
    if _has(layer, "weight"):
        g, i = (a.reshape(-1) for a in _grid(G, n))
        params["weight"] = (
            DiagonalJacobian(h[0])
            if G == 1
            else SparseJacobian(g * n + i, i, h.reshape(-1), (G * n, n), "stacked diagonals")
        )
    if _has(layer, "bias"):
        params["bias"] = _stacked_identity(n, G)
    return LayerParts(_apply(layer, x), input_, params)


def _channel_params(layer: nn.Module, h: Tensor, channels: int) -> dict[str, AbstractJacobian]:
    """Return the derivatives with respect to a gain and an offset for every channel."""
    params: dict[str, AbstractJacobian] = {}
    parts = h.reshape(channels, -1, 1)
    if _has(layer, "weight"):
        params["weight"] = BlockJacobian(parts, 1)
    if _has(layer, "bias"):
        params["bias"] = BlockJacobian(torch.ones_like(parts[:1]), channels)
    return params


def _group_norm(layer: nn.Module, x: Tensor) -> LayerParts:
    channels = x.shape[0]
    if _has(layer, "running_mean"):
        raise _refuse(layer, "has running statistics", "Use `track_running_stats=False`.")
    count = layer.num_groups if isinstance(layer, nn.GroupNorm) else channels
    groups = x.reshape(int(count), -1)
    gain = _weight(layer) if _has(layer, "weight") else torch.ones(channels, dtype=x.dtype)
    wide = gain.unsqueeze(1).expand(channels, x.numel() // channels).reshape(groups.shape)
    h, input_ = _normalized(groups, _number(layer, "eps"), wide)
    return LayerParts(_apply(layer, x), input_, _channel_params(layer, h, channels))


def _batch_norm(layer: nn.Module, x: Tensor) -> LayerParts:
    if not _has(layer, "running_mean"):
        raise _refuse(
            layer,
            "has no running statistics, so that its output depends on the batch",
            "Use `track_running_stats=True`, or a layer, group or instance norm.",
        )
    channels = x.shape[0]
    s = (_weight(layer, "running_var") + _number(layer, "eps")).sqrt().unsqueeze(1)
    h = (x.reshape(channels, -1) - _weight(layer, "running_mean").unsqueeze(1)) / s
    gain = _weight(layer).unsqueeze(1) if _has(layer, "weight") else torch.ones_like(s)
    slopes = (gain / s).expand_as(h).reshape(-1)
    params = _channel_params(layer, h, channels)
    return LayerParts(_apply(layer, x), DiagonalJacobian(slopes), params)


def _pair(value: Any, axes: int) -> tuple[int, int]:
    """Return an option for two axes; layers of one axis have a trivial first one."""
    numbers = tuple(value) if isinstance(value, tuple) else (value,) * axes
    sizes = [int(n) for n in numbers]
    return (0, sizes[0]) if axes == 1 else (sizes[0], sizes[1])


def _windows(
    shape: tuple[int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return the input position in each window, shape (channels, window, places); -1: padding."""
    count = shape[0] * shape[1] * shape[2]
    numbers = torch.arange(1, count + 1, dtype=torch.float64).reshape(1, *shape)
    found = torch.nn.functional.unfold(
        numbers, kernel, dilation=dilation, padding=padding, stride=stride
    )
    return found[0].round().to(torch.int64).reshape(shape[0], kernel[0] * kernel[1], -1) - 1


def _geometry(layer: nn.Module, axes: int) -> tuple[tuple[int, int], ...]:
    """Return kernel, stride, padding and dilation for two axes."""
    kernel = _pair(layer.kernel_size, axes)
    stride = _pair(layer.stride, axes)
    padding = _pair(layer.padding, axes)
    dilation = _pair(getattr(layer, "dilation", 1), axes)
    if axes == 1:
        return (1, kernel[1]), (1, stride[1]), (0, padding[1]), (1, dilation[1])
    return kernel, stride, padding, dilation


def _image(x: Tensor) -> tuple[tuple[int, int, int], int]:
    """Return channels, height and width, and the number of spatial axes."""
    if x.ndim == 2:
        return (int(x.shape[0]), 1, int(x.shape[1])), 1
    return (int(x.shape[0]), int(x.shape[1]), int(x.shape[2])), 2


def _convolution(layer: nn.Module, x: Tensor) -> LayerParts:
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if layer.padding_mode != "zeros":
        raise _refuse(layer, f"pads with {layer.padding_mode!r}", "Use `padding_mode='zeros'`.")
    if isinstance(layer.padding, str):
        raise _refuse(layer, f"has `padding={layer.padding!r}`", "Give the padding as a number.")
    out = _apply(layer, x)
    shape, axes = _image(x)
    places = _windows(shape, *_geometry(layer, axes))
    channels, window, T = places.shape
    W = _weight(layer)
    n_out, groups = W.shape[0], layer.groups
    share, each = channels // groups, n_out // groups
    # Every group of inputs as rows of windows: (groups, share * window, T).
    by_group = places.reshape(groups, share * window, T)
    o, c, t = (g.reshape(-1) for g in _grid(n_out, share * window, T))
    at = by_group[o // each, c, t]
    kept = at >= 0
    input_ = SparseJacobian(
        (o * T + t)[kept],
        at[kept],
        W.reshape(n_out, -1)[o, c][kept],
        (n_out * T, x.numel()),
        "block Toeplitz",
    )
    padded = torch.cat([x.reshape(-1), x.new_zeros(1)])
    patches = padded[by_group].mT
    params: dict[str, AbstractJacobian] = {"weight": BlockJacobian(patches, each)}
    if _has(layer, "bias"):
        params["bias"] = BlockJacobian(torch.ones(1, T, 1, dtype=x.dtype), n_out)
    return LayerParts(out, input_, params)


def _no_ceil(layer: nn.Module) -> None:
    if getattr(layer, "ceil_mode", False):
        raise _refuse(layer, "has `ceil_mode=True`", "Use `ceil_mode=False`, with padding.")


def _max_pool(layer: nn.Module, x: Tensor) -> LayerParts:
    _no_ceil(layer)
    if getattr(layer, "return_indices", False):
        raise _refuse(layer, "returns indices", "Use `return_indices=False`.")
    shape, axes = _image(x)
    places = _windows(shape, *_geometry(layer, axes))
    padded = torch.cat([x.reshape(-1), x.new_full((1,), -torch.inf)])
    values = padded[places]
    best = values.amax(1, keepdim=True)
    tied = int(((values == best).sum(1) > 1).sum())
    # The first of equals, as torch takes it.
    window = torch.arange(values.shape[1]).reshape(1, -1, 1)
    first = torch.where(values == best, window, values.shape[1]).amin(1, keepdim=True)
    chosen = places.gather(1, first).reshape(-1)
    said: tuple[str, ...] = ()
    if tied:
        said = (
            f"{tied} of {best.numel()} windows have more than one largest entry, where "
            f"{type(layer).__name__} has no derivative",
        )
    return LayerParts(_apply(layer, x), SelectionJacobian(chosen, x.numel()), kinks=said)


def _average_pool(layer: nn.Module, x: Tensor) -> LayerParts:
    _no_ceil(layer)
    shape, axes = _image(x)
    places = _windows(shape, *_geometry(layer, axes))
    channels, window, T = places.shape
    inside = places >= 0
    divisor = getattr(layer, "divisor_override", None) or window
    share = torch.full((channels, 1, T), 1.0 / divisor, dtype=x.dtype)
    if not layer.count_include_pad and not getattr(layer, "divisor_override", None):
        share = 1.0 / inside.sum(1, keepdim=True).to(x.dtype)
    c, _, t = _grid(channels, window, T)
    return LayerParts(
        _apply(layer, x),
        SparseJacobian(
            (c * T + t)[inside],
            places[inside],
            share.expand_as(places)[inside],
            (channels * T, x.numel()),
            "averages",
        ),
    )


def _adaptive_average_pool(layer: nn.Module, x: Tensor) -> LayerParts:
    out = _apply(layer, x)
    (channels, height, width), _ = _image(x)
    (_, rows_out, columns_out), _ = _image(out)

    def spans(n: int, parts: int) -> Tensor:
        """Return the averages along one axis, shape (parts, n)."""
        table = torch.zeros(parts, n, dtype=x.dtype)
        for i in range(parts):
            start, stop = (i * n) // parts, -((-(i + 1) * n) // parts)
            table[i, start:stop] = 1.0 / (stop - start)
        return table

    block = torch.kron(spans(height, rows_out), spans(width, columns_out))
    return LayerParts(out, BlockJacobian(block.unsqueeze(0), channels))


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _group_norm,
    nn.InstanceNorm2d: _group_norm,
    nn.ReLU: _activation(_relu, lambda layer: (0.0,)),
    nn.ReLU6: _activation(_clipped, lambda layer: (0.0, 6.0)),
    nn.Hardtanh: _activation(
        _clipped, lambda layer: (_number(layer, "min_val"), _number(layer, "max_val"))
    ),
    nn.LeakyReLU: _activation(
        _leaky, lambda layer: () if _number(layer, "negative_slope") == 1 else (0.0,)
    ),
    nn.ELU: _activation(_elu, lambda layer: () if _number(layer, "alpha") == 1 else (0.0,)),
    nn.Tanh: _activation(lambda layer, z: 1 - torch.tanh(z) ** 2),
    nn.Sigmoid: _activation(lambda layer, z: torch.sigmoid(z) * torch.sigmoid(-z)),
    nn.LogSigmoid: _activation(lambda layer, z: torch.sigmoid(-z)),
    nn.Softplus: _activation(_softplus),
    nn.Softsign: _activation(lambda layer, z: 1 / (1 + z.abs()) ** 2),
    nn.SiLU: _activation(_silu),
    nn.GELU: _activation(_gelu),
    nn.Softmax: _softmax,
    nn.LogSoftmax: _log_softmax,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _adaptive_average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average_pool,
    nn.Flatten: _identity,
    nn.Unflatten: _identity,
    nn.Identity: _identity,
    nn.Dropout: _identity,
    nn.Dropout1d: _identity,
    nn.Dropout2d: _identity,
}
"""The rule of every supported layer; `Sequential` and `Residual` are walked through."""

LossRule = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, tuple[str, ...]]]


def _mean_or_sum(loss: nn.Module, n: int) -> float:
    reduction = getattr(loss, "reduction", "mean")
    if reduction not in ("mean", "sum"):
        raise InvalidParameterError(
            f"`loss` must be a number, got `reduction={reduction!r}`.",
            "Use `reduction='mean'` or `'sum'`.",
        )
    return 1.0 / n if reduction == "mean" else 1.0


def _plain_weights(loss: nn.Module) -> None:
    for name in ("weight", "pos_weight"):
        if _has(loss, name):
            raise _refuse(loss, f"has a `{name}`", "Leave it out.")


def _cross_entropy(loss: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    _plain_weights(loss)
    if z.ndim != 1:
        raise _refuse(loss, f"is given an output of shape {tuple(z.shape)}")
    target = y.to(z.dtype) if y.ndim else _one_hot(loss, z, y)
    smoothing = _number(loss, "label_smoothing")
    target = (1 - smoothing) * target + smoothing / len(z)
    return torch.softmax(z, 0) * target.sum() - target, ()


def _one_hot(loss: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    label = int(y)
    if not 0 <= label < len(z):
        raise InvalidParameterError(
            f"`y` must be a class between 0 and {len(z) - 1}, got {label}."
        )
    out = torch.zeros_like(z)
    out[label] = 1.0
    return out


def _nll(loss: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    _plain_weights(loss)
    return -_one_hot(loss, z, y), ()


def _mse(loss: nn.Module, a: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    return 2 * _mean_or_sum(loss, a.numel()) * (a - y), ()


def _half_squared(loss: nn.Module, a: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    return a - y, ()


def _l1(loss: nn.Module, a: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    count = int((a == y).sum())
    said = (
        (f"{count} of {a.numel()} errors are exactly 0, where L1Loss has no derivative",)
        if count
        else ()
    )
    return _mean_or_sum(loss, a.numel()) * torch.sign(a - y), said


def _bce_logits(loss: nn.Module, z: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    _plain_weights(loss)
    return _mean_or_sum(loss, z.numel()) * (torch.sigmoid(z) - y), ()


def _bce(loss: nn.Module, p: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    _plain_weights(loss)
    return _mean_or_sum(loss, p.numel()) * (p - y) / (p * (1 - p)), ()


LOSSES: dict[type[nn.Module], LossRule] = {
    nn.CrossEntropyLoss: _cross_entropy,
    nn.NLLLoss: _nll,
    nn.MSELoss: _mse,
    HalfSquaredError: _half_squared,
    nn.L1Loss: _l1,
    nn.BCEWithLogitsLoss: _bce_logits,
    nn.BCELoss: _bce,
}
"""The rule of every supported loss: its row of derivatives at one output and target."""
