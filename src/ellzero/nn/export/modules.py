"""Linear layers on packed weights, for inference on a CPU."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.errors import IncompatibleError
from ellzero.validation import check_choice, check_integer

BACKENDS = ("sliced", "blocks", "torch-csr", "scipy-csr")
DTYPES = (torch.float32, torch.float64)

# Products that a thread must have to do, about a tenth of a millisecond, to be worth waking.
_WORK = 1 << 18

# Up to this batch the samples go one after the other; more are worth a transposed copy.
_FEW = 2


class SparseLinear(nn.Module):
    r"""Linear layer on a packed weight, for inference on a CPU.

    .. math:: y = x W^T + b

    Parameters
    ----------
    linear : torch.nn.Linear
        Gives the weight and the bias, float32 or float64, on the CPU.
    backend : {"sliced", "blocks", "torch-csr", "scipy-csr"}, default="sliced"
        How the product is made: the kernels of `ellzero.kernels.sparse_product` for any zeros or
        for zeros in blocks of eight rows by one column, or the sparse matrices of torch or scipy.
        Any weight is right for any backend; what is fast depends on the weight, the batch and the
        machine, so let `ellzero.nn.export.sparse` choose.
    threads : int, default=1
        Largest number of threads of the product by "sliced" and "blocks", used where there is
        enough to do; torch and scipy follow their own settings.

    Raises
    ------
    IncompatibleError
        If the weight is not float32 or float64, or not on the CPU.

    See Also
    --------
    ellzero.nn.export.sparse : Replaces the layers of a model where that is faster.

    Notes
    -----
    The result differs from the dense one by rounding alone, since sums run in another order: by
    less than :math:`(n + 1) \epsilon (|W| |x| + |b|)` in each entry for n nonzeros in the row. The
    promise is for finite inputs: a dense layer turns a zero weight times infinity into NaN, a
    packed layer leaves it out. The packed weight is in buffers: it is copied, pickled and stored
    with the module, and follows ``.to(dtype)``. There are no gradients. `weight` is rebuilt
    whenever it is read, for code that looks at it; `to_linear` gives the dense layer back.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.export import SparseLinear
    >>> linear = torch.nn.Linear(4, 2)
    >>> _ = linear.weight.data.copy_(torch.tensor([[0.0, 2.0, 0, 0], [0, 0, 0, 3.0]]))
    >>> _ = linear.bias.data.zero_()
    >>> SparseLinear(linear)(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [4.0, 12.0]
    """

    values: Tensor
    cols: Tensor
    starts: Tensor
    order: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, backend: str = "sliced", threads: int = 1) -> None:
        super().__init__()
        self.backend = check_choice("backend", backend, BACKENDS)
        self.threads = check_integer("threads", threads, 1)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        _check(weight, "the weight")
        order = None
        if backend == "sliced":
            from ellzero.kernels.sparse_product import pack_sliced

            values, cols, starts, order = pack_sliced(weight.numpy())
        elif backend == "blocks":
            from ellzero.kernels.sparse_product import pack_blocks

            values, cols, starts = pack_blocks(weight.numpy())
        else:
            dense = weight.numpy()
            rows, columns = np.nonzero(dense)
            values, cols = dense[rows, columns], columns.astype(np.int32)
            counts = np.bincount(rows, minlength=self.out_features)
            starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.register_buffer("values", torch.from_numpy(values))
        # As signed integers of the same bits: torch cannot pickle the unsigned ones.
        signed = cols.view(cols.dtype.str.replace("u", "i"))
        self.register_buffer("cols", torch.from_numpy(signed))
        self.register_buffer("starts", torch.from_numpy(starts))
        self.register_buffer("order", None if order is None else torch.from_numpy(order))
        bias = linear.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.train(linear.training)
        self._ready: Callable[[Tensor], Tensor] | None = None
        self._quick: Callable[[Tensor], Tensor | None] | None = None
        self._dtype = weight.dtype

    @property
    def weight(self) -> Tensor:
        """Dense weight of shape (out_features, in_features), rebuilt."""
        shape = (self.out_features, self.in_features)
        out = torch.zeros(shape, dtype=self.values.dtype)
        wide = torch.from_numpy(_columns(self).astype(np.int64))
        steps = self.starts.to(torch.int64).diff()
        if self.backend == "sliced":
            assert self.order is not None
            rows = self.order.reshape(-1, 8).repeat_interleave(steps, dim=0)
            # Filling has the value zero, so that adding it changes nothing.
            inside = rows < self.out_features
            place = (rows[inside], wide[inside])
            return out.index_put_(place, self.values[inside], accumulate=True)
        if self.backend == "blocks":
            full = torch.zeros(8 * steps.numel(), self.in_features, dtype=self.values.dtype)
            at = 0
            for s, n in enumerate(steps.tolist()):
                block = self.values[8 * at : 8 * (at + n)].reshape(8, n)
                full[8 * s : 8 * s + 8, wide[at : at + n]] = block
                at += n
            return full[: self.out_features].clone()
        rows = torch.arange(self.out_features).repeat_interleave(steps)
        out[rows, wide] = self.values
        return out

    @property
    def n_bytes(self) -> int:
        """Size of the packed weight and the bias in memory."""
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def to_linear(self) -> nn.Linear:
        """Return the dense layer of the same weight and bias."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, dtype=self.values.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the product for inputs of shape (..., in_features)."""
        quick = self._quick
        if quick is not None:
            out = quick(x)
            if out is not None:
                return out
        shape = x.shape
        ready = self._ready
        if ready is None or x.dtype is not self._dtype or not x.is_cpu or x.requires_grad:
            ready = self._prepare(x)
            x = x.detach()
        if not shape or shape[-1] != self.in_features:
            raise IncompatibleError(
                f"`SparseLinear` needs inputs of shape (..., {self.in_features}), got "
                f"{tuple(shape)}.",
                "Give the features along the last axis.",
            )
        samples = x.reshape(-1, self.in_features).contiguous()
        if samples.shape[0] == 0:
            return x.new_zeros(*shape[:-1], self.out_features)
        return ready(samples).reshape(*shape[:-1], self.out_features)

    def _prepare(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product, after the checks that a good input in a ready layer passes."""
        if x.dtype != self.values.dtype or not x.is_cpu:
            raise IncompatibleError(
                f"`SparseLinear` needs {self.values.dtype} inputs on the CPU, got {x.dtype} on "
                f"{x.device}.",
                "Convert the input, or use the dense model.",
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise IncompatibleError(
                "`SparseLinear` has no gradients, got an input that requires them.",
                "Run the model under `torch.no_grad()`, and train the dense one.",
            )
        if self._ready is None:
            _check(self.values, "the packed weight")
            _check_layout(self)
            self._dtype = self.values.dtype
            self._ready = _PREPARE[self.backend](self)
            if self.backend in _QUICK:
                self._quick = _prepare_quick(self)
        return self._ready

    @override
    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, backend={self.backend!r}"
        )

    # What is prepared points into the buffers, so it goes when they may move.

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLinear:
        self._ready = self._quick = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._ready = self._quick = None
        # Another weight of the same shape has another number of entries.
        for name in ("values", "cols"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape != own.shape:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None, "_quick": None}


def _check(tensor: Tensor, what: str) -> None:
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu":
        raise IncompatibleError(
            f"`SparseLinear` needs {what} in float32 or float64 on the CPU, got {tensor.dtype} "
            f"on {tensor.device}.",
            "Convert the model, or use the dense one.",
        )


def _columns(layer: SparseLinear) -> np.ndarray[Any, Any]:
    """Return the column indices, unsigned, in the memory of the buffer."""
    cols = layer.cols.numpy()
    return cols.view(cols.dtype.str.replace("i", "u"))


def _check_layout(layer: SparseLinear) -> None:
    """Raise where the buffers do not describe a matrix: the kernels do not look twice."""
    starts, cols = layer.starts.numpy(), _columns(layer)
    n_lanes = {"sliced": 8 * cols.shape[0], "blocks": 8 * cols.size}.get(layer.backend, cols.size)
    n_parts = layer.out_features
    if layer.order is not None or layer.backend == "blocks":
        n_parts = -(-layer.out_features // 8)
    right = (
        starts.shape == (n_parts + 1,)
        and starts[0] == 0
        and starts[-1] == cols.shape[0]
        and bool((np.diff(starts) >= 0).all())
        and (not cols.size or 0 <= cols.min() <= cols.max() < layer.in_features)
        and layer.values.numel() == n_lanes
        and (layer.order is None or _permutes(layer.order.numpy(), 8 * n_parts))
        and (layer.bias is None or tuple(layer.bias.shape) == (layer.out_features,))
        and all(b.is_contiguous() for b in layer.buffers())
    )
    if not right:
        raise IncompatibleError(
            f"The buffers of `SparseLinear` do not describe a weight of shape "
            f"({layer.out_features}, {layer.in_features}).",
            "Load the state of a layer of the same shape and backend.",
        )


def _permutes(order: np.ndarray[Any, Any], n: int) -> bool:
    """Whether `order` is a permutation of 0 .. n - 1 that stays within windows of 128."""
    places = np.arange(n)
    return bool(
        order.shape == (n,)
        and (np.sort(order) == places).all()
        and (order // 128 == places // 128).all()
    )


def _prepare_kernels(layer: SparseLinear) -> Callable[[Tensor], Tensor]:
    from ellzero.kernels import sparse_product as kernels

    sliced = layer.backend == "sliced"
    weight = [layer.values.numpy(), _columns(layer), layer.starts.numpy()]
    if layer.order is not None:
        weight.append(layer.order.numpy())
    # With an entry for every lane; the bias itself where it has them, since it may be changed.
    n_lanes = 8 * (layer.starts.numel() - 1)
    bias = np.zeros(n_lanes, weight[0].dtype)
    given = None if layer.bias is None else layer.bias.numpy()
    if given is not None and given.size == n_lanes:
        bias, given = given, None
    weight.append(bias)
    vectors = kernels.sliced_vectors if sliced else kernels.block_vectors
    tiled = kernels.sliced_tiles if sliced else kernels.block_tiles
    step = kernels.WINDOW // kernels.LANES
    whole, shared = (_shares(layer.starts.numpy(), t, step) for t in (1, layer.threads))
    n_entries = layer.values.numel()
    n_rows, n_columns = layer.out_features, layer.in_features
    dtype = weight[0].dtype

    def product(samples: Tensor) -> Tensor:
        n_samples = samples.shape[0]
        parts = shared if n_entries * n_samples >= _WORK * len(shared) else whole
        out = torch.empty(n_samples, n_rows, dtype=samples.dtype)
        x, y = samples.numpy(), out.numpy()
        if given is not None:
            bias[: given.size] = given
        if n_samples <= _FEW:
            _in_threads(vectors, (*weight, x, y), parts)
            return out
        done = 0
        while done < n_samples:
            left = n_samples - done
            width = 8 if not sliced or left <= 8 else 16 if left <= 16 else 32
            n_tiles = max(left // width, 1) if sliced else -(-left // width)
            stop = min(done + n_tiles * width, n_samples)
            tiles = np.empty((n_tiles, n_columns, width), dtype)
            kernels.to_tiles(x[done:stop], tiles)
            _in_threads(tiled, (*weight, tiles, y[done:stop]), parts)
            done = stop
        return out

    return product


def _prepare_quick(layer: SparseLinear) -> Callable[[Tensor], Tensor | None]:
    """Return the product for the common case, where a small layer feels every call.

    It returns None for any other: a batch that is worth a transposed copy or several threads, an
    input of another kind.
    """
    from ellzero.kernels import sparse_product as kernels

    kernel = kernels.sliced_at if layer.backend == "sliced" else kernels.block_at
    values, cols, starts = layer.values.numpy(), _columns(layer), layer.starts.numpy()
    order = starts if layer.order is None else layer.order.numpy()
    n_rows, n_columns, dtype = layer.out_features, layer.in_features, layer.values.dtype
    n_lanes = 8 * (starts.size - 1)
    bias = np.zeros(n_lanes, values.dtype)
    given = None if layer.bias is None else layer.bias.numpy()
    if given is not None and given.size == n_lanes:
        bias, given = given, None
    held = starts, order, bias
    places = np.array([*(a.ctypes.data for a in held), n_rows, n_columns])
    most = _FEW if layer.threads == 1 else min(_FEW, 2 * _WORK // max(layer.values.numel(), 1))

    def product(x: Tensor) -> Tensor | None:
        shape = x.shape
        if (
            len(shape) != 2
            or shape[1] != n_columns
            or not 0 < shape[0] <= most
            or x.dtype is not dtype
            or x.requires_grad
            or not x.is_cpu
            or not x.is_contiguous()
        ):
            return None
        if given is not None:
            held[2][: given.size] = given  # it may have been changed
        out = torch.empty(shape[0], n_rows, dtype=dtype)
        kernel(values, cols, places, x.data_ptr(), out.data_ptr(), shape[0])
        return out

    return product


def _prepare_torch(layer: SparseLinear) -> Callable[[Tensor], Tensor]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        warnings.filterwarnings("ignore", message="Sparse invariant checks")
        matrix = torch.sparse_csr_tensor(
            layer.starts,
            layer.cols,
            layer.values,
            (layer.out_features, layer.in_features),
            check_invariants=False,
        )
    bias = layer.bias

    def product(samples: Tensor) -> Tensor:
        out = (matrix @ samples.T).T
        return (out if bias is None else out + bias).contiguous()

    return product


def _prepare_scipy(layer: SparseLinear) -> Callable[[Tensor], Tensor]:
    from scipy.sparse import csr_array

    parts = (layer.values.numpy(), layer.cols.numpy(), layer.starts.numpy())
    shape = (layer.out_features, layer.in_features)
    matrix = csr_array(parts, shape=shape)  # type: ignore[no-untyped-call]
    bias = None if layer.bias is None else layer.bias.numpy()

    def product(samples: Tensor) -> Tensor:
        x = samples.numpy()
        out = (matrix @ x[0])[None] if x.shape[0] == 1 else (matrix @ x.T).T
        return torch.from_numpy(np.ascontiguousarray(out if bias is None else out + bias))

    return product


_PREPARE: dict[str, Callable[[SparseLinear], Callable[[Tensor], Tensor]]] = {
    "sliced": _prepare_kernels,
    "blocks": _prepare_kernels,
    "torch-csr": _prepare_torch,
    "scipy-csr": _prepare_scipy,
}


_QUICK = ("sliced", "blocks")


# Threads ----------------------------------------------------------------------------------------
#
# The kernels release the interpreter lock, so plain threads do: nothing to start on import, safe
# when several threads of the caller use a model, no second compilation.

_pools: dict[int, ThreadPoolExecutor] = {}
if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pools.clear)


def _shares(starts: np.ndarray[Any, Any], threads: int, step: int) -> list[tuple[int, int]]:
    """Return ranges of windows with about the same number of entries, one for each thread."""
    ends = starts[np.minimum(np.arange(0, starts.size - 1 + step, step), starts.size - 1)]
    n_windows = ends.size - 1
    goals = np.linspace(0, ends[-1], min(threads, max(n_windows, 1)) + 1)[1:-1]
    cuts = [0, *np.abs(ends[:, None] - goals).argmin(axis=0).tolist(), n_windows]
    return [(a, b) for a, b in itertools.pairwise(cuts) if b > a]


def _in_threads(
    kernel: Callable[..., None], arguments: tuple[Any, ...], parts: list[tuple[int, int]]
) -> None:
    """Run a kernel over ranges of windows, the first in this thread."""
    if len(parts) == 1:
        kernel(*arguments, *parts[0])
    elif parts:
        pool = _pools.get(len(parts))
        if pool is None:
            pool = _pools[len(parts)] = ThreadPoolExecutor(len(parts) - 1, "ellzero")
        futures = [pool.submit(kernel, *arguments, *part) for part in parts[1:]]
        kernel(*arguments, *parts[0])
        wait(futures)
        for future in futures:
            future.result()
