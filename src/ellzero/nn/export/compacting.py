"""Taking dead units out of a network, which leaves a smaller dense one of the same function."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.nn.export import channels
from ellzero.nn.export.channels import BY_CHANNEL, LAYERS
from ellzero.nn.tables import aligned
from ellzero.objectives.module import split_sample
from ellzero.sets.base import widen

_RECORD = "_ellzero_changes"
# Sums in another order differ by rounding, which layers carry on.
_SLACK = 1e3


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What `compact` did to one layer.

    Parameters
    ----------
    name : str
        Name of the layer in the model.
    kind : str
        Its class.
    before, after : tuple of int
        Shape of the weight.
    parameters_before, parameters_after : int
        Entries of its own parameters.
    macs_before, macs_after : int
        Products of one call of the model on the sample; counted for linear and convolutional
        layers.
    reason : str
        Why units that are zero stayed, or why the layer was not looked at; empty where nothing is
        to say.
    """

    name: str
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    reason: str


class InputSelection(nn.Module):
    """Takes the features or channels of the input that a layer reads.

    Parameters
    ----------
    index : Tensor of int64
        Which ones.
    axis : int
        Where they lie.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export import InputSelection
    >>> InputSelection(torch.tensor([0, 2]), -1)(torch.tensor([[5.0, 6.0, 7.0]])).tolist()
    [[5.0, 7.0]]
    """

    index: Tensor

    def __init__(self, index: Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.axis = axis

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the features that are read."""
        return x.index_select(self.axis, self.index)

    @override
    def extra_repr(self) -> str:
        return f"{self.index.numel()}, axis={self.axis}"


def compact(model: nn.Module, sample: Any, *, select_inputs: bool = True) -> nn.Module:
    r"""Return a smaller dense copy of a model, without the units that are dead.

    A unit (an output of a linear layer, a filter of a convolution) is taken out when every layer
    behind it can do without: it does not read the unit, or the unit is a constant :math:`c_j`
    that moves into the bias,

    .. math:: b \leftarrow b + W_{:, j} \, c_j .

    A row of zeros makes a constant: what the layers in between make of its bias.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. It is not changed. Its function is that of evaluation mode.
    sample : Tensor, tuple or dict
        What the model is called with: one input, a tuple of inputs, or a mapping of keywords.
    select_inputs : bool, default=True
        Whether a layer with columns of zeros that reads the input of the model gets an
        `InputSelection` before it. It is then a sequence of the two.

    Returns
    -------
    torch.nn.Module
        A copy of the same class, in evaluation mode, with smaller parameters. `changes` and
        `changes_table` say what each layer lost, and why what stays stays.

    Raises
    ------
    InvalidParameterError
        If `sample` is no input, or `model` cannot be called with it.

    See Also
    --------
    sparse : Runs layers with scattered zeros on packed weights.
    HardThresholding : With ``structure="rows"``, trains models with dead units.

    Notes
    -----
    Units are followed by `torch.fx` through elementwise activations, dropout, batch and instance
    normalization, pooling, flattening to (samples, -1), sums, products and concatenations, in
    linear layers and convolutions, also depthwise; in convolutions with larger groups whole groups
    go. With a sum, a unit goes when it can go on every branch. A constant other than zero does not
    pass the zero padding of a convolution into its bias; of all units with such constants one
    stays, which takes up the others. What is not followed (attention, layer normalization,
    recurrent layers, reshapes to fixed sizes) keeps the channels that it reads. Of a module that
    cannot be traced, the parts that can are made smaller.

    Nothing is taken on trust: after every round the copy is called with the sample, and with
    random numbers of the same mean and spread, and a round that changes an output by more than
    rounding is undone. Each layer keeps one unit at least. Rounds are repeated until nothing
    changes; a round costs a few calls of the model.

    Trained on, the copy learns like any dense model, but a constant that was moved into a bias no
    longer follows the layers that made it. Its shapes differ from those of the class, so keep
    the sparse model by `save` and call `compact` again after `load`, or store the module whole.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import export
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> _ = model[0].weight.data[3:].zero_()
    >>> small = export.compact(model, torch.randn(5, 4))
    >>> tuple(small[0].weight.shape), tuple(small[2].weight.shape)
    ((3, 4), (2, 3))
    """
    args, kwargs = split_sample(sample)
    original = _copy(model)
    expected = _call(original, args, kwargs)
    other = _noise(args), {k: _noise_like(v) for k, v in kwargs.items()}
    try:
        expected_other = _call_raw(original, *other)
    except Exception:  # random numbers need not be an input; then the sample alone decides
        expected_other = None
    macs, before = _macs(original, args, kwargs), _layers(original)
    small = _copy(model)

    def same() -> str | None:
        """Return how the copy differs, or None."""
        try:
            ok = _close(expected, _call_raw(small, args, kwargs))
            if ok and expected_other is not None:
                ok = _close(expected_other, _call_raw(small, *other))
        except Exception as error:
            return f"the smaller model failed ({_line(error)})"
        return None if ok else "the smaller model gave other outputs"

    plan = _Plan(small, args, kwargs)
    plan.descend("", small)
    notes = plan.notes
    for part in plan.out:
        _rounds(part, same, notes, select_inputs)
    notes.update(_not_understood(small))
    after_macs, after = _macs(small, args, kwargs), _layers(small)
    record = [
        _change(name, layer, after, macs, after_macs, notes) for name, layer in before.items()
    ]
    setattr(small, _RECORD, [asdict(change) for change in record])
    return small


def changes(model: nn.Module) -> tuple[LayerChange, ...]:
    """Return what each layer lost, for a model that `compact` returned.

    Parameters
    ----------
    model : torch.nn.Module
        The model.

    Returns
    -------
    tuple of LayerChange
        One for each layer with parameters, in the order of the model.

    Raises
    ------
    InvalidParameterError
        If the model does not come from `compact`.
    """
    record = getattr(model, _RECORD, None)
    if record is None:
        raise InvalidParameterError(
            f"`model` must be a model that `export.compact` returned, got {type(model).__name__}.",
            "Call `export.compact(model, sample)` first.",
        )
    return tuple(LayerChange(**change) for change in record)


def changes_table(model: nn.Module) -> str:
    """Return a table of what each layer lost, for a model that `compact` returned.

    Parameters
    ----------
    model : torch.nn.Module
        The model.

    Returns
    -------
    str
        One line for each layer, their sum, then why dead units stayed.

    Raises
    ------
    InvalidParameterError
        If the model does not come from `compact`.
    """
    rows = changes(model)
    head = ["layer", "weight", "now", "parameters", "now", "MACs", "now"]
    lines = [head]
    for c in rows:
        shapes = ["x".join(map(str, s)) or "-" for s in (c.before, c.after)]
        numbers = (c.parameters_before, c.parameters_after, c.macs_before, c.macs_after)
        lines.append([c.name or "(model)", *shapes, *(f"{n:,}" for n in numbers)])
    sums = [
        sum(getattr(c, f) for c in rows)
        for f in ("parameters_before", "parameters_after", "macs_before", "macs_after")
    ]
    lines.append(["all", "", "", *(f"{n:,}" for n in sums)])
    reasons = (f"{c.name or '(model)'}: {c.reason}" for c in rows if c.reason)
    return "\n".join([*aligned(lines), *reasons])


# Calls ------------------------------------------------------------------------------------------


def _copy(model: nn.Module) -> nn.Module:
    out = copy.deepcopy(model).eval()
    if hasattr(out, _RECORD):
        delattr(out, _RECORD)
    return out


def _call_raw(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch.no_grad():
        # Modules may write into what they get.
        return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return _call_raw(model, args, kwargs)
    except Exception as error:
        raise InvalidParameterError(
            f"`model` cannot be called with `sample`: {_line(error)}.",
            "Give a tensor, a tuple of inputs or a mapping of keywords that the model takes.",
        ) from error


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text.split(". ")[0].rstrip(".")


def _noise(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_noise_like(a) for a in args)


def _noise_like(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return value
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator).to(value)
    spread = value.std() if value.numel() > 1 else value.new_ones(())
    return value.mean() + spread * noise


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        for part in out.values():
            yield from _tensors(part)
    elif isinstance(out, (tuple, list)):
        for part in out:
            yield from _tensors(part)


def difference(expected: Any, got: Any) -> float:
    """Return the largest difference of outputs over the largest output; infinity for other shapes.

    Parameters
    ----------
    expected, got : object
        Tensors, or sequences and mappings of them.

    Returns
    -------
    float
        0 for equal outputs.
    """
    largest, apart = 0.0, 0.0
    ours, theirs = list(_tensors(expected)), list(_tensors(got))
    if len(ours) != len(theirs):
        return math.inf
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return math.inf
        if not a.numel():
            continue
        wide_a, wide_b = widen(a), widen(b)
        odd = ~torch.isfinite(wide_a) | ~torch.isfinite(wide_b)
        if not torch.equal(wide_a[odd].nan_to_num(7.0), wide_b[odd].nan_to_num(7.0)):
            return math.inf
        wide_a, wide_b = wide_a[~odd], wide_b[~odd]
        if wide_a.numel():
            largest = max(largest, wide_a.abs().max().item())
            apart = max(apart, (wide_a - wide_b).abs().max().item())
    return apart / largest if largest else apart


def _close(expected: Any, got: Any) -> bool:
    kinds = [t.dtype for t in _tensors(expected) if t.is_floating_point()]
    slack = max((torch.finfo(k).eps for k in kinds), default=0.0)
    return difference(expected, got) <= min(_SLACK * slack, 0.05)


def _macs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Return the products of every linear and convolutional layer in one call."""
    found: dict[str, int] = {}
    hooks = []
    for name, layer in model.named_modules():
        if type(layer) not in LAYERS:
            continue

        def count(part: nn.Module, _: Any, out: Tensor, name: str = name) -> None:
            each = _weight(part)[:1].numel()
            found[name] = found.get(name, 0) + out.numel() * each

        hooks.append(layer.register_forward_hook(count))
    try:
        _call_raw(model, args, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layers(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Return the class, the shape of the weight and the size of each layer with parameters."""
    out = {}
    for name, part in model.named_modules():
        own = [p for p in part._parameters.values() if p is not None]
        if own:
            weight = part._parameters.get("weight")
            shape = tuple(weight.shape) if weight is not None else ()
            out[name] = (type(part).__name__, shape, sum(p.numel() for p in own))
    return out


def _change(
    name: str,
    layer: tuple[str, tuple[int, ...], int],
    after: Mapping[str, tuple[str, tuple[int, ...], int]],
    macs: Mapping[str, int],
    after_macs: Mapping[str, int],
    notes: Mapping[str, str],
) -> LayerChange:
    kind, shape, size = layer
    # An input selection puts the layer one level deeper.
    now = name if name in after else f"{name}.1"
    _, new_shape, new_size = after[now]
    return LayerChange(
        name,
        kind,
        shape,
        new_shape,
        size,
        new_size,
        macs.get(name, 0),
        after_macs.get(now, 0),
        notes.get(name, ""),
    )


def _not_understood(model: nn.Module) -> dict[str, str]:
    """Return a note for each layer of another class that has dead rows or columns."""
    out = {}
    for name, part in model.named_modules():
        weight = part._parameters.get("weight")
        if type(part) in (*LAYERS, *BY_CHANNEL) or weight is None or weight.ndim < 2:
            continue
        live = weight.detach() != 0
        flat = live.flatten(2).any(2) if live.ndim > 2 else live
        if not bool(flat.any(0).all()) or not bool(flat.any(1).all()):
            out[name] = f"rows or columns of zeros stay: layers of class {type(part).__name__} do"
    return out


# Rounds ------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A part that can be traced, what it is called with, and what its graph calls whole."""

    path: str
    root: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: tuple[nn.Module, ...] = ()


class _FeedForward(nn.Module):
    """The two linear layers of a transformer layer of torch, which hides them in one call."""

    def __init__(self, layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> None:
        super().__init__()
        self.linear1, self.linear2, self.dropout = layer.linear1, layer.linear2, layer.dropout
        self.activation = layer.activation
        self.eval()

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.dropout(self.activation(self.linear1(x))))
        return out


_TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class _Plan:
    """Finds the largest parts of a model that can be traced."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.model = model
        parts = {n: m for n, m in model.named_modules() if not _is_simple(m)}
        self.seen = {"": (args, kwargs)} | _inputs(model, args, kwargs, parts)
        self.out: list[_Part] = []
        self.notes: dict[str, str] = {}
        self.why: dict[str, str] = {}
        self.known: dict[str, tuple[nn.Module, ...] | None] = {}

    def leaves(self, path: str, part: nn.Module) -> tuple[nn.Module, ...] | None:
        """Return what has to be called whole for a part to be traced; None where it cannot be."""
        if path not in self.known:
            self.known[path] = self._leaves(path, part)
        return self.known[path]

    def _leaves(self, path: str, part: nn.Module) -> tuple[nn.Module, ...] | None:
        if self.graph(path, part, ()) is not None:
            return ()
        found: list[nn.Module] = []
        for name, child in _called(path, part):
            if name in self.seen:
                inner = self.leaves(name, child)
                found += [child] if inner is None else inner
        leaves = tuple(found)
        return leaves if leaves and self.graph(path, part, leaves) is not None else None

    def graph(self, path: str, part: nn.Module, leaves: tuple[nn.Module, ...]) -> Any:
        args, kwargs = copy.deepcopy(self.seen[path])
        try:
            return channels.trace(part, args, kwargs, leaves)
        except Exception as error:
            self.why[path] = f"{type(part).__name__} cannot be traced ({_line(error)})"
            return None

    def note(self, path: str, part: nn.Module, words: str) -> None:
        self.notes.update({name: words for name, _ in _own_layers(path, part)})

    def descend(self, path: str, part: nn.Module) -> None:
        """Look for parts from here on."""
        if not any(True for _ in _own_layers(path, part)):
            return
        if type(part) in _TRANSFORMERS:
            self.feed_forward(path, part)
        elif type(part) in LAYERS:
            self.notes.setdefault(path, "between parts that are not traced")
        elif path not in self.seen:
            if not isinstance(part, (nn.ModuleList, nn.ModuleDict)):
                self.note(path, part, "`sample` does not reach it")
            self.inside(path, part)
        elif (leaves := self.leaves(path, part)) is None:
            self.note(path, part, self.why[path])
            self.inside(path, part)
        else:
            self.out.append(_Part(path, part, *self.seen[path], leaves))
            for node in self.graph(path, part, leaves).nodes:
                name = channels.name_of(node)
                if node.op == "call_module" and not _is_simple(part.get_submodule(name)):
                    child, here = part.get_submodule(name), _join(path, name)
                    self.note(here, child, f"{type(child).__name__} is not looked into")
                    if here in self.why:
                        self.note(here, child, self.why[here])
                    if type(child) in _TRANSFORMERS:
                        self.feed_forward(here, child)
                    else:
                        self.inside(here, child)

    def inside(self, path: str, part: nn.Module) -> None:
        for key, child in part.named_children():
            self.descend(_join(path, key), child)

    def feed_forward(self, path: str, layer: nn.Module) -> None:
        feed = _FeedForward(layer)  # type: ignore[arg-type]
        weight = feed.linear1.weight
        noise = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0))
        self.out.append(_Part(path, feed, (noise.to(weight),), {}))


def _is_simple(part: nn.Module) -> bool:
    """Return whether a part is one of torch without parts of its own."""
    return type(part).__module__.startswith("torch.nn") and not any(True for _ in part.children())


def _called(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a part, and those of lists of them, by name."""
    for key, child in part.named_children():
        name = _join(path, key)
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _called(name, child)
        else:
            yield name, child


def _join(*names: str) -> str:
    return ".".join(n for n in names if n)


def _own_layers(path: str, part: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, layer in part.named_modules():
        if type(layer) in LAYERS:
            yield _join(path, name), layer


def _inputs(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parts: Mapping[str, nn.Module],
) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what parts of a model are called with, at their first call."""
    seen: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    hooks = []
    for name, part in parts.items():

        def keep(
            module: nn.Module, given: tuple[Any, ...], more: dict[str, Any], name: str = name
        ) -> None:
            seen.setdefault(name, (given, more))

        hooks.append(part.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        _call_raw(model, args, kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _rounds(
    part: _Part, same: Callable[[], str | None], notes: dict[str, str], select_inputs: bool
) -> None:
    """Make one part of the model smaller, until nothing changes."""
    path, root = part.path, part.root
    while True:
        try:
            args, kwargs = copy.deepcopy((part.args, part.kwargs))
            graph = channels.trace(root, args, kwargs, part.leaves)
            found = channels.follow(root, graph, *copy.deepcopy((part.args, part.kwargs)))
        except Exception as error:
            words = f"{type(root).__name__} cannot be followed ({_line(error)})"
            notes.update({n: words for n, _ in _own_layers(path, root)})
            return
        gone = found.removed()
        if not gone.any():
            break
        undo = [_shrink(use, gone) for use in found.uses.values()]
        if (why := same()) is not None:
            for back in undo:
                back()
            layers = [n for n, u in found.uses.items() if type(u.layer) in LAYERS]
            notes.update({_join(path, n): f"{why}, so it stays as it was" for n in layers})
            return
    notes.update({_join(path, n): f"{words}, so it stays" for n, words in found.skipped.items()})
    for name, use in found.uses.items():
        layer = use.layer
        if type(layer) not in LAYERS:
            continue
        notes.pop(_join(path, name), None)
        dead = (_weight(layer) == 0).flatten(1).all(1).cpu().numpy()
        if dead.any():
            count = int(dead.sum())
            words = f"{count} rows of zeros stay" if count > 1 else "1 row of zeros stays"
            notes[_join(path, name)] = f"{words}: {found.reason(use.outs[dead])}"
        if select_inputs and use.from_input and path == "" and name:
            _select(root, layer, use, same)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _snapshot(layer: nn.Module) -> Callable[[], None]:
    """Return what puts a layer back to what it is now."""
    state = dict(layer.__dict__)
    for key in ("_parameters", "_buffers", "_modules"):
        state[key] = dict(state[key])
    return lambda: layer.__dict__.update(state)


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    """Give a layer another tensor in the place of one."""
    value = value.clone(memory_format=torch.contiguous_format)
    if name in layer._buffers:
        layer._buffers[name] = value
        return
    old = layer._parameters.get(name)
    grad = _requires_grad(layer) if old is None else old.requires_grad
    layer._parameters[name] = nn.Parameter(value, requires_grad=grad)


def _requires_grad(layer: nn.Module) -> bool:
    return any(p is not None and p.requires_grad for p in layer._parameters.values())


def _shrink(use: channels.Use, gone: np.ndarray[Any, Any]) -> Callable[[], None]:
    """Take the channels that go out of a layer; return what undoes it."""
    layer: Any = use.layer
    undo = _snapshot(layer)
    ins, outs = torch.from_numpy(~gone[use.ins]), torch.from_numpy(~gone[use.outs])
    if bool(ins.all()) and bool(outs.all()):
        return undo
    n_in, n_out = int(ins.sum()), int(outs.sum())
    if type(layer) in BY_CHANNEL:
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, name, None) is not None:
                _set(layer, name, getattr(layer, name).detach()[outs])
        if isinstance(layer, nn.PReLU):
            layer.num_parameters = n_out
        else:
            layer.num_features = n_out
        return undo
    weight = _weight(layer)
    bias = None if layer.bias is None else layer.bias.detach()
    if use.removable is not None:
        assert use.constants is not None
        assert use.merges is not None
        lost, merges = ~ins.to(weight.device), torch.from_numpy(use.merges).to(weight.device)
        wide, constants = widen(weight), widen(use.constants)
        moved = wide[:, lost & ~merges].flatten(2) if wide.ndim > 2 else wide[:, lost & ~merges]
        moved = (moved.sum(2) if moved.ndim > 2 else moved) @ constants[lost & ~merges]
        if bool((moved != 0).any()):
            bias = (moved if bias is None else widen(bias) + moved).to(weight.dtype)
        if bool((lost & merges).any()):
            keeper = use.keeper()
            shares = constants[lost & merges] / constants[keeper]
            wide[:, keeper] += torch.tensordot(wide[:, lost & merges], shares, dims=([1], [0]))
            weight = wide.to(weight.dtype)
        weight = weight[:, ins]
    else:
        layer.groups = n_in // (layer.in_channels // layer.groups)
    _set(layer, "weight", weight[outs])
    if bias is not None:
        _set(layer, "bias", bias[outs])
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = n_in, n_out
    else:
        layer.in_channels, layer.out_channels = n_in, n_out
    return undo


def _select(
    root: nn.Module, layer: nn.Module, use: channels.Use, same: Callable[[], str | None]
) -> None:
    """Let a layer get the part of the input that it reads, where that is a part."""
    if use.removable is None or not use.removable.any():
        return
    gone = use.removable.copy()
    gone[0] &= not gone.all()
    if not gone.any():
        return
    smaller = copy.copy(layer)
    _snapshot(smaller)()  # with dictionaries of its own
    places = np.arange(gone.size + int(use.outs.size))
    none = np.zeros_like(gone)
    cut = channels.Use(
        smaller, places[: gone.size], places[gone.size :], ~gone, none, use.constants
    )
    _shrink(cut, np.concatenate([gone, np.zeros(use.outs.size, dtype=bool)]))
    index = torch.from_numpy(np.flatnonzero(~gone)).to(_weight(layer).device)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    both = nn.Sequential(InputSelection(index, axis), smaller).train(layer.training)
    parents = [m for m in root.modules() if any(c is layer for c in m._modules.values())]
    undo = [_snapshot(parent) for parent in parents]
    for parent in parents:
        for key, child in parent._modules.items():
            if child is layer:
                parent._modules[key] = both
    if same() is not None:
        for back in undo:
            back()
