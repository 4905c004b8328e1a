"""Where the nonzeros of a network are, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from ellzero.nn.export import packing
from ellzero.nn.tables import aligned
from ellzero.objectives.module import split_sample
from ellzero.tensors import thresholded

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """What one weight holds.

    Parameters
    ----------
    name : str
        Name of the parameter; of tied ones, the first.
    kind : str
        Class of the layer that holds it.
    shape : tuple of int
        Shape of the weight.
    n_nonzero : int
        Entries that are not zero.
    n_dead_rows, n_dead_columns : int
        Indices of the first and of the second axis at which all entries are zero: outputs and
        inputs, of transposed convolutions inputs and outputs.
    dense_macs, sparse_macs : int or None
        Multiplications with entries and with nonzero entries of the weight, for the sample; None
        without one. 0 where the weight is looked up or not reached.
    dense_bytes, compressed_bytes : int
        Size as it is, and in a file of `export.save`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    n_nonzero: int
    n_dead_rows: int
    n_dead_columns: int
    dense_macs: int | None
    sparse_macs: int | None
    dense_bytes: int
    compressed_bytes: int

    @property
    def n_entries(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Share of nonzeros."""
        return self.n_nonzero / max(self.n_entries, 1)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a network holds; printed, a table.

    Parameters
    ----------
    layers : tuple of LayerSummary
        One for each weight of two axes or more, tied ones once.
    n_other : int
        Entries of the other parameters, such as biases, which no budget counts by default.
    other_macs : int or None
        Multiplications without a weight, such as those of attention scores; None without a sample.
    """

    layers: tuple[LayerSummary, ...]
    n_other: int
    other_macs: int | None

    @property
    def total(self) -> LayerSummary:
        """Sums over the weights."""
        n = sum(row.n_entries for row in self.layers)
        has_macs = self.other_macs is not None
        return LayerSummary(
            "total",
            "",
            (n,),
            sum(row.n_nonzero for row in self.layers),
            sum(row.n_dead_rows for row in self.layers),
            sum(row.n_dead_columns for row in self.layers),
            sum(row.dense_macs or 0 for row in self.layers) if has_macs else None,
            sum(row.sparse_macs or 0 for row in self.layers) if has_macs else None,
            sum(row.dense_bytes for row in self.layers),
            sum(row.compressed_bytes for row in self.layers),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""

        def plain(row: LayerSummary) -> dict[str, Any]:
            values = asdict(row)
            values["shape"] = list(row.shape)
            return values | {"n_entries": row.n_entries, "density": row.density}

        return {
            "layers": [plain(row) for row in self.layers],
            "total": plain(self.total),
            "n_other": self.n_other,
            "other_macs": self.other_macs,
        }

    @override
    def __str__(self) -> str:
        head = ["weight", "layer", "shape", "nonzero", "density", "dead rows", "columns"]
        if self.other_macs is not None:
            head += ["MACs", "sparse"]
        lines = [[*head, "KiB", "file"], *map(_cells, (*self.layers, self.total))]
        notes = f"{self.n_other:,} entries of other parameters are not counted"
        if self.other_macs:
            notes += f", nor {self.other_macs:,} MACs without a weight"
        return "\n".join([*aligned(lines, left=(0, 1)), notes + "."])


def summary(
    model: nn.Module, sample: Tensor | tuple[Any, ...] | Mapping[str, Any] | None = None
) -> Summary:
    """Count nonzeros, dead rows and columns, multiplications and bytes of every weight.

    Parameters
    ----------
    model : torch.nn.Module
        Any module. It is not changed.
    sample : Tensor, tuple, mapping or None, default=None
        What the model is called with: the input, a tuple of inputs, or named inputs. The
        multiplications are counted while it runs, in evaluation mode. None leaves them out.

    Returns
    -------
    Summary
        Printed, a table; `to_dict` gives plain values.

    Raises
    ------
    InvalidParameterError
        If `sample` is of another type.

    See Also
    --------
    ellzero.nn.export.table : What packing each layer gains in time, measured.

    Notes
    -----
    Everything is counted from the weights as they are. A multiplication is one of a matrix product
    or a convolution, wherever it is called; padding counts as input. Whether fewer of them take
    less time is for `export.sparse` to measure. Weights are compressed one after another to tell
    their size. Of a sharded model, every process must call this function, and each weight is
    gathered in its turn; the sample must then be None.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import summary
    >>> model = torch.nn.Sequential(torch.nn.Linear(40, 30, bias=False))
    >>> _ = model[0].weight.data[3:].zero_()
    >>> rows = summary(model, torch.ones(2, 40))
    >>> rows.total.n_nonzero, rows.total.n_dead_rows, rows.total.sparse_macs
    (120, 27, 240)
    >>> print(rows)
    weight    layer   shape  nonzero  density  dead rows  columns   MACs  sparse  KiB  file
    0.weight  Linear  30x40      120   10.0 %         27        0  2,400     240  4.7   0.5
    total             1,200      120   10.0 %         27        0  2,400     240  4.7   0.5
    0 entries of other parameters are not counted.
    """
    params = dict(model.named_parameters())
    macs: dict[int, list[int]] = {}
    if sample is not None:
        macs = _macs(model, *split_sample(sample))
    rows = []
    for name, param in params.items():
        if param.ndim < 2:
            continue
        weight = param.detach()
        if thresholded.is_sharded(weight):
            weight = weight.full_tensor()  # type: ignore[attr-defined]
        alive = weight != 0
        packed = packing.pack(name, weight)
        size = weight.numel() * weight.element_size()
        dense, sparse = macs.get(param.untyped_storage().data_ptr(), (0, 0))
        owner = model.get_submodule(name.rpartition(".")[0])
        rows.append(
            LayerSummary(
                name,
                type(owner).__name__,
                tuple(weight.shape),
                thresholded.count_true(alive),
                _dead(alive, 0),
                _dead(alive, 1),
                None if sample is None else dense,
                None if sample is None else sparse,
                size,
                size if packed is None else packed.n_bytes,
            )
        )
    n_other = sum(p.numel() for p in params.values() if p.ndim < 2)
    return Summary(tuple(rows), n_other, None if sample is None else macs.get(0, (0, 0))[0])


def _dead(alive: Tensor, axis: int) -> int:
    others = [a for a in range(alive.ndim) if a != axis]
    return int((~alive.any(dim=others) if alive.numel() else alive.new_zeros(0)).sum())


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiplications by the memory of the weight; those without one, under 0."""

    def __init__(self, memories: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memories = memories
        self.macs: dict[int, list[int]] = {0: [0, 0]}

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet in _PRODUCTS:
            left, right = args[_PRODUCTS[packet] :][:2]
            if left.numel() and right.numel():
                self._count(left.numel() * right.numel() // _shared(left, right), left, right)
        elif packet is _aten.convolution:
            x, weight, transposed = args[0], args[1], args[6]
            places = x if transposed else out
            self._count(places.numel() // max(places.shape[1], 1) * weight.numel(), weight)
        elif str(packet).startswith("aten._scaled_dot_product"):
            query, key, value = args[:3]
            places = query.numel() // query.shape[-1] * key.shape[-2]
            self._count(places * (query.shape[-1] + value.shape[-1]))
        return out

    def _count(self, macs: int, *operands: Tensor) -> None:
        for operand in operands:
            memory = operand.untyped_storage().data_ptr()
            if memory in self.memories:
                nonzero = int(torch.count_nonzero(operand))
                found = self.macs.setdefault(memory, [0, 0])
                found[0] += macs
                found[1] += macs // max(operand.numel(), 1) * nonzero
                return
        self.macs[0][0] += macs


def _shared(left: Tensor, right: Tensor) -> int:
    """Return how often a pair of entries would be counted: over the batch and the inner axis."""
    return left.shape[-1] * (left.shape[0] if left.ndim == 3 else 1)


_PRODUCTS = {
    _aten.mm: 0,
    _aten.mv: 0,
    _aten.dot: 0,
    _aten.bmm: 0,
    _aten.addmm: 1,
    _aten.addmv: 1,
    _aten.baddbmm: 1,
}
"""Products of matrices, with the place of the first factor."""


@torch.no_grad()
def _macs(
    model: nn.Module, args: tuple[Any, ...], named_args: Mapping[str, Any]
) -> dict[int, list[int]]:
    memories = {p.untyped_storage().data_ptr() for p in model.parameters() if p.ndim >= 2}
    counter = _Counter(memories - {0})
    with _evaluating(model), _plain_paths(), counter:
        model(*args, **named_args)
    return counter.macs


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {part: part.training for part in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for part, flag in training.items():
            part.training = flag


@contextmanager
def _plain_paths() -> Iterator[None]:
    """Keep recurrent and transformer layers from single calls that hide their products."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for library, flag in zip(libraries, before, strict=True):
            library.enabled = flag


def _cells(row: LayerSummary) -> list[str]:
    cells = [
        row.name,
        row.kind,
        f"{row.shape[0]:,}" if row.name == "total" else "x".join(map(str, row.shape)),
        f"{row.n_nonzero:,}",
        f"{100 * row.density:.1f} %",
        f"{row.n_dead_rows:,}",
        f"{row.n_dead_columns:,}",
    ]
    if row.dense_macs is not None:
        cells += [f"{row.dense_macs:,}", f"{row.sparse_macs:,}"]
    return [*cells, f"{row.dense_bytes / 1024:.1f}", f"{row.compressed_bytes / 1024:.1f}"]
