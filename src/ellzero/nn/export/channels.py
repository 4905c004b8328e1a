"""Which channels of a network belong together, which are constant, and which nobody reads.

The graph that `torch.fx` traces is walked once. Every tensor has one axis whose channels are
followed. Producers (linear layers, convolutions) make new channels; activations, normalization by
channel, pooling, flattening, sums and concatenations hand them on; whatever is not understood pins
the channels that it reads, so that they stay. Beside it runs what is known of the values: a tensor
that holds the constants of the channels that are the same for every input, NaN elsewhere.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from typing_extensions import override

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (nn.Linear, *CONVOLUTIONS)
BY_CHANNEL = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.PReLU,
)
_ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU,
    nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus,
    nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample,
)  # fmt: skip
_ELEMENTWISE_FUNCTIONS = {
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.gelu,
    F.silu, F.mish, F.sigmoid, F.tanh, F.hardtanh, F.hardsigmoid, F.hardswish, F.softplus,
    F.softsign, F.logsigmoid, F.tanhshrink, F.softshrink, F.hardshrink, F.threshold, F.dropout,
    F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.exp, torch.square, torch.clamp,
    torch.neg, operator.neg,
}  # fmt: skip
_POOL_FUNCTIONS = {
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, F.interpolate,
}  # fmt: skip
_ELEMENTWISE_METHODS = {
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "abs", "exp", "square", "clamp",
    "clamp_", "neg", "contiguous", "clone", "detach",
}  # fmt: skip
_BINARY = {
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, operator.add,
    operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    operator.itruediv,
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
}  # fmt: skip
_CAT = {torch.cat, torch.concat, torch.concatenate}
_INPUT = "the input of the model"


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its channels and what is known of its entries.

    `axis` is None where no channels are followed. `known` holds constants and NaN.
    """

    shape: tuple[int, ...]
    axis: int | None
    atoms: np.ndarray[Any, Any]
    known: Tensor
    given: bool = False


@dataclass(frozen=True, slots=True)
class ShapeOf:
    """The shape of a tensor, as a value of the graph."""

    value: Value


@dataclass(slots=True)
class Use:
    """How one layer is used: the channels of its two sides, and its columns that can go.

    `removable` holds for inputs that the layer does not read, or whose constant it can take into
    its bias. `merges` holds for inputs whose constant does not pass the zero padding: several of
    them act as one. `constants` are those of both.
    """

    layer: nn.Module
    ins: np.ndarray[Any, Any]
    outs: np.ndarray[Any, Any]
    removable: np.ndarray[Any, Any] | None = None
    merges: np.ndarray[Any, Any] | None = None
    constants: Tensor | None = None
    from_input: bool = False

    def keeper(self) -> int:
        """Return the input that takes up the others of `merges`."""
        assert self.merges is not None
        assert self.constants is not None
        sizes = np.where(self.merges, self.constants.abs().cpu().double().numpy(), -1.0)
        return int(sizes.argmax())


@dataclass(slots=True)
class Channels:
    """What the walk finds."""

    n_atoms: int = 0
    edges: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    pins: dict[int, str] = field(default_factory=dict)
    uses: dict[str, Use] = field(default_factory=dict)
    blocked: dict[int, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def fresh(self, count: int, pinned: str | None = None) -> np.ndarray[Any, Any]:
        """Return new channels."""
        atoms = np.arange(self.n_atoms, self.n_atoms + count)
        self.n_atoms += count
        if pinned is not None:
            self.pin(atoms, pinned)
        return atoms

    def pin(self, atoms: np.ndarray[Any, Any], reason: str) -> None:
        """Let channels stay."""
        for atom in atoms.tolist():
            self.pins.setdefault(atom, reason)

    def join(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
        """Let channels go together or not at all."""
        self.edges.append((a, b))

    def classes(self) -> np.ndarray[Any, Any]:
        """Return the class of every channel."""
        if not self.n_atoms:
            return np.zeros(0, dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        a = np.concatenate([none, *(e[0] for e in self.edges)])
        b = np.concatenate([none, *(e[1] for e in self.edges)])
        shape = (self.n_atoms, self.n_atoms)
        ones = np.ones(a.size, dtype=np.int8)
        graph = coo_array((ones, (a, b)), shape=shape)  # type: ignore[no-untyped-call]
        labels: np.ndarray[Any, Any] = connected_components(graph, directed=False)[1]
        return labels

    def removed(self) -> np.ndarray[Any, Any]:
        """Return which channels can go, leaving each layer one at least."""
        classes = self.classes()
        gone = np.ones(int(classes.max(initial=-1)) + 1, dtype=bool)
        gone[classes[np.fromiter(self.pins, dtype=np.int64)]] = False
        for use in self.uses.values():
            if use.removable is not None and use.merges is not None:
                gone[classes[use.ins[~(use.removable | use.merges)]]] = False
                if use.merges.any():  # the largest takes the others up
                    gone[classes[use.ins[use.keeper()]]] = False
        sides = [s for use in self.uses.values() for s in (use.ins, use.outs) if s.size]
        while True:
            empty = [side for side in sides if gone[classes[side]].all()]
            if not empty:
                return gone[classes] if gone.size else np.zeros(0, dtype=bool)
            for side in empty:
                gone[classes[side[0]]] = False

    def reason(self, atoms: np.ndarray[Any, Any]) -> str:
        """Return why channels that could go stay."""
        classes = self.classes()
        mine = set(classes[atoms].tolist())
        for atom, why in [*self.pins.items(), *self.blocked.items()]:
            if classes[atom] in mine:
                return why
        return "alive in another branch, or the last of its layer"


class _Call(nn.Module):
    """Calls a part with its arguments as two things, so that every signature can be traced."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.train(part.training)

    @override
    def forward(self, args: Any, kwargs: Any) -> Any:
        return self.part(*args, **kwargs)


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Sequence[nn.Module]) -> None:
        super().__init__()
        self.leaves = {id(part) for part in leaves}

    @override
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _marked(value: Any) -> Any:
    """Return arguments with marks for the tensors, the rest as it is."""
    if isinstance(value, Tensor):
        return fx.PH  # type: ignore[attr-defined]
    if type(value) in (tuple, list):
        return type(value)(_marked(v) for v in value)
    return {k: _marked(v) for k, v in value.items()} if type(value) is dict else value


def name_of(node: fx.Node) -> str:
    """Return the name of the module that a node calls, in the part that was traced."""
    return str(node.target).removeprefix("part").lstrip(".")


def trace(
    part: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Sequence[nn.Module] = (),
) -> fx.Graph:
    """Return the graph of a call.

    Parameters
    ----------
    part : torch.nn.Module
        In evaluation mode.
    args, kwargs : tuple and dict
        What it is called with. All but tensors is taken as it is.
    leaves : sequence of torch.nn.Module, default=()
        Modules that the graph calls whole, besides those of torch.

    Returns
    -------
    torch.fx.Graph
        Of a module that holds `part`, see `name_of`.
    """
    marked = {"args": _marked(args), "kwargs": _marked(kwargs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of inputs that are no tensors
        graph: fx.Graph = _Tracer(leaves).trace(_Call(part), concrete_args=marked)
    return graph


class _Shapes(fx.Interpreter):
    """Runs the graph and keeps the shape of each tensor."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.seen: dict[fx.Node, tuple[tuple[int, ...], torch.dtype, torch.device]] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if isinstance(out, Tensor):
            self.seen[n] = (tuple(out.shape), out.dtype, out.device)
        return out


@torch.no_grad()
def follow(
    part: nn.Module, graph: fx.Graph, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Channels:
    """Walk the graph.

    Parameters
    ----------
    part : torch.nn.Module
        In evaluation mode.
    graph : torch.fx.Graph
        What `trace` returned.
    args, kwargs : tuple and dict
        What it is called with.

    Returns
    -------
    Channels
        Classes of channels, pins, and the uses of every layer.
    """
    shapes = _Shapes(_Call(part), graph)
    shapes.run(args, kwargs)
    walk = _Walk(part, shapes.seen)
    env: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        env[node] = walk.visit(node, env)
    return walk.out


class _Walk:
    def __init__(self, root: nn.Module, seen: dict[fx.Node, Any]) -> None:
        self.root, self.seen = root, seen
        self.out = Channels()
        self.modules = dict(root.named_modules())
        owners: dict[int, set[int]] = {}
        for part in root.modules():
            for p in part._parameters.values():
                if p is not None:
                    owners.setdefault(id(p), set()).add(id(part))
        self.tied = {i for held in owners.values() if len(held) > 1 for i in held}

    # Values --------------------------------------------------------------------------------------

    def opaque(self, node: fx.Node, given: bool = False) -> Any:
        """Return the value of a node that is not followed."""
        if node not in self.seen:
            return None
        shape, dtype, device = self.seen[node]
        nan = math.nan if dtype.is_floating_point else 0
        known = torch.full(shape, nan, dtype=dtype, device=device)
        return Value(shape, None, np.zeros(0, dtype=np.int64), known, given)

    def stop(self, node: fx.Node, env: dict[fx.Node, Any], reason: str) -> Any:
        """Pin what a node reads, and follow no further."""
        for other in node.all_input_nodes:
            value = env[other]
            value = value.value if isinstance(value, ShapeOf) else value
            if isinstance(value, Value):
                self.out.pin(value.atoms, reason)
        return self.opaque(node)

    def along(self, value: Value, axis: int, reason: str = _INPUT) -> Value:
        """Return the value with channels along an axis, pinned where others were followed."""
        axis %= len(value.shape)
        if value.axis == axis:
            return value
        self.out.pin(value.atoms, "a layer reads another axis")
        atoms = self.out.fresh(value.shape[axis], reason)
        like = value.known
        dtype = like.dtype if like.dtype.is_floating_point else torch.float32
        known = torch.full_like(like, math.nan, dtype=dtype)
        return Value(value.shape, axis, atoms, known, value.given)

    def put(self, like: Value, known: Tensor, axis: int | None = None) -> Value:
        """Return what an operation by channel makes of a value; unknown channels stay unknown."""
        axis = like.axis if axis is None else axis
        assert axis is not None
        known = _imprint(known, axis, _unknown(like))
        return Value(tuple(known.shape), axis, like.atoms, known)

    # Nodes ---------------------------------------------------------------------------------------

    def visit(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        if node.op == "placeholder":
            return self.opaque(node, given=True)
        if node.op == "output":
            return self.stop(node, env, "an output of the model")
        if node.op == "get_attr":
            return self.opaque(node)
        read = [env[n] for n in node.all_input_nodes]
        if not any(isinstance(v, (Value, ShapeOf)) for v in read):
            return self.opaque(node)
        if node.op == "call_module":
            name = name_of(node)
            part = self.modules[name]
            if len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node):
                made = self.module(name, part, env[node.args[0]])
                if made is not None:
                    return made
            words = f"read by {type(part).__name__} '{name}'"
            return self.stop(node, env, words)
        made = self.function(node, env)
        if made is not None:
            return made
        name = node.target if isinstance(node.target, str) else str(node.target)
        name = getattr(node.target, "__name__", name)
        hint = " to other sizes than (samples, -1)" if name in ("view", "reshape") else ""
        return self.stop(node, env, f"read by '{name}'{hint}")

    def module(self, name: str, part: Any, x: Any) -> Value | None:
        if not isinstance(x, Value):
            return None
        if part._forward_hooks or part._forward_pre_hooks:
            self.out.skipped[name] = "it has hooks"
            return None
        if id(part) in self.tied:
            self.out.skipped[name] = "it shares a parameter with another layer"
            return None
        kind = type(part)
        if kind is nn.Linear:
            return self.linear(name, part, self.along(x, -1))
        if kind in CONVOLUTIONS:
            spatial = len(part.kernel_size)
            if len(x.shape) != spatial + 2:
                self.out.skipped[name] = "it is called without a batch"
                return None
            return self.convolution(name, part, self.along(x, 1))
        if kind in BY_CHANNEL:
            if len(x.shape) < 2 or x.axis != 1:
                return None
            if kind is nn.PReLU and part.num_parameters == 1:
                return self.put(x, part(x.known))
            self.use(name, part, x.atoms, x.atoms)
            return self.put(x, part(x.known))
        if x.axis is None:
            # Nothing is followed, and what is read may still be the input as it was given.
            flat = kind is nn.Flatten or kind in _ELEMENTWISE[:1] or "Dropout" in kind.__name__
            return self.unfollowed(x, part(x.known)) if flat else None
        if kind in _ELEMENTWISE:
            return self.put(x, part(x.known))
        if kind in _POOLS and x.axis == 1 and not getattr(part, "return_indices", False):
            return self.pool(x, part, part.padding if getattr(part, "count_include_pad", 0) else 0)
        if kind is nn.Flatten:
            return self.flatten(x, part.start_dim, part.end_dim)
        return None

    def unfollowed(self, x: Value, known: Tensor) -> Value:
        return Value(tuple(known.shape), None, x.atoms, known, x.given)

    def use(
        self, name: str, part: nn.Module, ins: np.ndarray[Any, Any], outs: np.ndarray[Any, Any]
    ) -> Use:
        """Note one call of a layer; several calls have the same channels."""
        name = next(n for n, m in self.modules.items() if m is part) or name
        if name not in self.out.uses:
            self.out.uses[name] = Use(part, ins, outs)
        else:
            first = self.out.uses[name]
            self.out.join(first.ins, ins)
            self.out.join(first.outs, outs)
        return self.out.uses[name]

    def read(
        self,
        name: str,
        part: nn.Module,
        x: Value,
        outs: np.ndarray[Any, Any],
        weight: Tensor,
        padded: bool,
    ) -> None:
        """Note which columns of a layer can go."""
        assert x.axis is not None
        unread = (weight == 0).transpose(0, 1).flatten(1).all(1)
        constants, uniform = _constants(x)
        fits = uniform & ((constants == 0) | (not padded))
        merges = uniform & ~fits & ~unread
        for i in torch.nonzero(merges).flatten().tolist():
            words = f"a constant does not pass the zero padding of '{name}'"
            self.out.blocked.setdefault(int(x.atoms[i]), words)
        constants = torch.where(fits | merges, constants, 0)
        again = name in self.out.uses
        use = self.use(name, part, x.atoms, outs)
        if again and use.constants is not None:
            same = constants == use.constants
            fits, merges = (
                fits & same,
                merges & same & torch.from_numpy(use.merges).to(same.device),
            )
            use.from_input = use.from_input and x.given
        else:
            use.from_input = x.given
        ok = (unread | fits).cpu().numpy()
        use.removable = ok if use.removable is None else use.removable & ok
        use.merges = merges.cpu().numpy()
        use.constants = constants

    def linear(self, name: str, part: nn.Linear, x: Value) -> Value:
        outs = self.out.fresh(part.out_features)
        self.read(name, part, x, outs, part.weight, padded=False)
        unknown = _unknown(x)
        made = part(torch.nan_to_num(x.known))
        fixed = (part.weight[:, unknown] == 0).all(1)
        axis = len(x.shape) - 1
        return Value(tuple(made.shape), axis, outs, _imprint(made, axis, ~fixed))

    def convolution(self, name: str, part: Any, x: Value) -> Value:
        groups, n_in, n_out = part.groups, part.in_channels, part.out_channels
        padded = part.padding_mode == "zeros" and part.padding not in (
            "valid",
            (0,) * (x.known.ndim - 2),
        )
        unknown = _unknown(x)
        if padded:  # what comes out at the border depends on the size of the input
            unknown = unknown | (_rows(x.known, 1) != 0).any(1)
        if groups == 1:
            outs = self.out.fresh(n_out)
            self.read(name, part, x, outs, part.weight, padded)
        elif groups == n_in:
            outs = np.repeat(x.atoms, n_out // n_in)
            self.use(name, part, x.atoms, outs)
        else:
            outs = self.out.fresh(n_out)
            inside, made = x.atoms.reshape(groups, -1), outs.reshape(groups, -1)
            for side in (inside, made):
                self.out.join(np.repeat(inside[:, 0], side.shape[1]), side.reshape(-1))
            self.use(name, part, x.atoms, outs)
        reads = (part.weight != 0).flatten(2).any(2).reshape(groups, n_out // groups, -1)
        fixed = ~(reads & unknown.reshape(groups, 1, -1)).any(2).reshape(-1)
        made = part(torch.nan_to_num(_imprint(x.known, 1, unknown)))
        return Value(tuple(made.shape), 1, outs, _imprint(made, 1, ~fixed))

    def pool(self, x: Value, run: Callable[[Tensor], Tensor], padding: Any) -> Value:
        """Follow a pool; with `padding` it takes means with zeros that it puts around."""
        if padding not in (0, (0,), (0, 0), (0, 0, 0)):
            known = torch.where(x.known == 0, x.known, math.nan)
            unknown = torch.isnan(_rows(known, 1)).any(1)
            x = Value(x.shape, x.axis, x.atoms, _imprint(known, 1, unknown))
        return self.put(x, run(x.known))

    def flatten(self, x: Value, start: int, end: int) -> Value | None:
        ndim = len(x.shape)
        start, end = start % ndim, end % ndim
        known = x.known.flatten(start, end)
        assert x.axis is not None
        if not start <= x.axis <= end:
            return self.put(x, known, x.axis if x.axis < start else x.axis - (end - start))
        if start == 0 and end > 0:
            return None
        outer = math.prod(x.shape[start : x.axis])
        inner = math.prod(x.shape[x.axis + 1 : end + 1])
        atoms = np.tile(np.repeat(x.atoms, inner), outer)
        return Value(tuple(known.shape), start, atoms, known)

    def function(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        target = node.target
        args = fx.node.map_arg(node.args, lambda n: env[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: env[n])
        x = args[0] if args else None
        if target is operator.getitem and isinstance(x, ShapeOf):
            if isinstance(args[1], int) and x.value.axis != args[1] % len(x.value.shape):
                return None if node in self.seen else _PLAIN
            return None
        if target is getattr and isinstance(x, Value) and args[1] == "shape":
            return ShapeOf(x)
        if target in _CAT:
            return self.cat(node, args, kwargs)
        if target in _BINARY:
            return self.binary(args, kwargs, target)
        if not isinstance(x, Value) or _values([*args[1:], *kwargs.values()]):
            return None
        if target == "size":
            if len(args) == 1 and not kwargs:
                return ShapeOf(x)
            return _PLAIN if len(args) == 2 and x.axis != args[1] % len(x.shape) else None
        if target in ("dim", "ndimension"):
            return _PLAIN
        if target in (torch.flatten, "flatten"):
            given = _bound(args[1:], kwargs, ("start_dim", "end_dim"), (0, -1))
            if x.axis is None:
                return self.unfollowed(x, x.known.flatten(*given))
            return self.flatten(x, *given)
        if target in ("view", "reshape", torch.reshape):
            return self.reshape(node, x, args[1:])
        if x.axis is None:
            return None
        if target in _ELEMENTWISE_FUNCTIONS or target in _ELEMENTWISE_METHODS:
            return self.put(x, _call(target, x.known, args[1:], kwargs))
        if target in _POOL_FUNCTIONS and x.axis == 1:
            if kwargs.get("return_indices") or len(args) > 4:
                return None
            means = getattr(target, "__name__", "").startswith("avg_pool")
            counted = means and kwargs.get("count_include_pad", True)
            padding = args[3] if len(args) > 3 else kwargs.get("padding", 0)
            return self.pool(
                x, lambda t: _call(target, t, args[1:], kwargs), padding if counted else 0
            )
        if target in ("mean", torch.mean):
            dim, keep = _bound(args[1:], kwargs, ("dim", "keepdim"), (None, False))
            return self.mean(x, dim, keep)
        if target in ("permute", torch.permute, "transpose", torch.transpose):
            known = _call(target, x.known, args[1:], kwargs)
            axis = _moved(target, len(x.shape), x.axis, args[1:], kwargs)
            return self.put(x, known, axis)
        return None

    def mean(self, x: Value, dim: Any, keep: bool) -> Value | None:
        if dim is None:
            return None
        assert x.axis is not None
        dims = sorted(d % len(x.shape) for d in ([dim] if isinstance(dim, int) else dim))
        if x.axis in dims:
            return None
        axis = x.axis if keep else x.axis - sum(d < x.axis for d in dims)
        return self.put(x, x.known.mean(dims, keep), axis)

    def reshape(self, node: fx.Node, x: Value, sizes: Sequence[Any]) -> Value | None:
        """Follow a reshape to (samples, -1) alone: other sizes are written for all channels."""
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = sizes[0]
        shape = self.seen[node][0]
        if len(sizes) != 2 or sizes[1] != -1 or shape[0] != x.shape[0]:
            return None
        known = x.known.reshape(shape)
        return self.unfollowed(x, known) if x.axis is None else self.flatten(x, 1, -1)

    def cat(self, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Value | None:
        if not args or not isinstance(args[0], (tuple, list)) or len(args) > 2:
            return None
        parts = list(args[0])
        dim = args[1] if len(args) == 2 else kwargs.get("dim", 0)
        if not all(isinstance(p, Value) for p in parts) or not isinstance(dim, int):
            return None
        axes = {p.axis for p in parts} - {None}
        if len(axes) != 1:
            return None
        (axis,) = axes
        dim %= len(parts[0].shape)
        words = "concatenated with channels that are not followed"
        parts = [self.along(p, axis, words) for p in parts]
        known = torch.cat([p.known for p in parts], dim)
        if dim == axis:
            atoms = np.concatenate([p.atoms for p in parts])
            return Value(tuple(known.shape), axis, atoms, known)
        for other in parts[1:]:
            self.out.join(parts[0].atoms, other.atoms)
        unknown = torch.stack([_unknown(p) for p in parts]).any(0)
        return Value(tuple(known.shape), axis, parts[0].atoms, _imprint(known, axis, unknown))

    def binary(self, args: Sequence[Any], kwargs: dict[str, Any], target: Any) -> Value | None:
        if len(args) != 2 or any(isinstance(v, Value) for v in kwargs.values()):
            return None
        values = [a for a in args if isinstance(a, Value)]
        if any(isinstance(a, ShapeOf) for a in args):
            return None
        known = [a.known if isinstance(a, Value) else a for a in args]
        if len(values) == 1:
            (x,) = values
            plain = [a for a in args if not isinstance(a, Value)]
            if x.axis is None or not isinstance(plain[0], (int, float)):
                return None
            return self.put(x, _call(target, known[0], known[1:], kwargs))
        a, b = values
        axes = {v.axis for v in values} - {None}
        if len(axes) != 1 or len(a.shape) != len(b.shape):
            return None
        (axis,) = axes
        assert axis is not None
        if a.shape[axis] != b.shape[axis]:
            return None
        words = "combined with channels that are not followed"
        a, b = self.along(a, axis, words), self.along(b, axis, words)
        self.out.join(a.atoms, b.atoms)
        made = _call(target, a.known, (b.known,), kwargs)
        known_both = _imprint(made, axis, _unknown(a) | _unknown(b))
        return Value(tuple(made.shape), axis, a.atoms, known_both)


_PLAIN = object()
"""Value of a node that is a number."""


def _values(things: Sequence[Any]) -> bool:
    """Return whether a value of the graph is among arguments."""
    flat = [p for t in things for p in (t if isinstance(t, (tuple, list)) else (t,))]
    return any(isinstance(t, (Value, ShapeOf)) for t in flat)


def _bound(args: Sequence[Any], kwargs: dict[str, Any], names: Any, defaults: Any) -> list[Any]:
    """Return arguments by position or name."""
    out = (
        list(args) + [kwargs.get(n, d) for n, d in zip(names, defaults, strict=True)][len(args) :]
    )
    return out


def _call(target: Any, x: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Run a function or a method."""
    run = getattr(x, target) if isinstance(target, str) else target
    out: Tensor = run(*args, **kwargs) if isinstance(target, str) else run(x, *args, **kwargs)
    return out


def _moved(target: Any, ndim: int, axis: int, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Return where an axis goes."""
    shape = [1] * ndim
    shape[axis] = 2
    return list(_call(target, torch.zeros(shape), args, kwargs).shape).index(2)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """Return the entries of every channel as a row."""
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def _unknown(x: Value) -> Tensor:
    """Return which channels are not known."""
    assert x.axis is not None
    return torch.isnan(_rows(x.known, x.axis)).any(1)


def _imprint(known: Tensor, axis: int, unknown: Tensor) -> Tensor:
    """Return a tensor with NaN in the channels that are not known."""
    shape = [1] * known.ndim
    shape[axis] = -1
    return torch.where(unknown.reshape(shape), math.nan, known)


def _constants(x: Value) -> tuple[Tensor, Tensor]:
    """Return the constants of channels, and which have one at every place."""
    assert x.axis is not None
    rows = _rows(x.known, x.axis)
    low, high = rows.amin(1), rows.amax(1)
    # Sums in another order differ by rounding from place to place.
    slack = 64 * torch.finfo(rows.dtype).eps * torch.maximum(low.abs(), high.abs())
    return (low + high) / 2, high - low <= slack
