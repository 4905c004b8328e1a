"""Jacobian matrices that keep their structure and are written out on demand only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

# Entries of a matrix that is written out as a whole; 2**27 in float64 are 1 GiB.
DENSE_LIMIT = 2**27


class AbstractJacobian(ABC):
    """A matrix of partial derivatives, outputs by inputs, both flattened in row-major order."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""

    @property
    @abstractmethod
    def structure(self) -> str:
        """What the matrix looks like, in a few words."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Multiplications of one product with a row or a column."""

    @abstractmethod
    def vjp(self, rows: Tensor) -> Tensor:
        """Return ``rows @ J``: shape (k, outputs) gives (k, inputs)."""

    @abstractmethod
    def jvp(self, columns: Tensor) -> Tensor:
        """Return ``J @ columns``: shape (inputs, k) gives (outputs, k)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the matrix written out, shape (outputs, inputs)."""

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns: shape (s,) gives (outputs, s)."""
        units = torch.zeros(self.shape[1], len(index), dtype=self.dtype, device=index.device)
        units[index, torch.arange(len(index), device=index.device)] = 1.0
        return self.jvp(units)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the entries."""
        return torch.float64

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrix written out in float64."""
        return 8 * self.shape[0] * self.shape[1]

    def singular_values(self) -> Tensor:
        """Return the singular values, descending."""
        values: Tensor = torch.linalg.svdvals(self.dense())
        return values

    def __repr__(self) -> str:
        """Return shape and structure."""
        return f"{self.shape[0]} x {self.shape[1]}, {self.structure}"


@final
class DenseJacobian(AbstractJacobian):
    """A matrix without structure.

    Parameters
    ----------
    matrix : Tensor of shape (outputs, inputs)
        The entries.
    structure : str, default="dense"
        What it is.
    """

    def __init__(self, matrix: Tensor, structure: str = "dense") -> None:
        self._matrix = matrix
        self._structure = structure

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return int(self._matrix.shape[0]), int(self._matrix.shape[1])

    @property
    @override
    def structure(self) -> str:
        return self._structure

    @property
    @override
    def cost(self) -> int:
        return self._matrix.numel()

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        return rows @ self._matrix

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        return self._matrix @ columns

    @override
    def dense(self) -> Tensor:
        return self._matrix

    @override
    def columns(self, index: Tensor) -> Tensor:
        return self._matrix[:, index]


@final
class DiagonalJacobian(AbstractJacobian):
    """A diagonal matrix, such as the derivative of an activation.

    Parameters
    ----------
    values : Tensor of shape (n,)
        The diagonal.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return len(self._values), len(self._values)

    @property
    @override
    def structure(self) -> str:
        return "diagonal"

    @property
    @override
    def cost(self) -> int:
        return len(self._values)

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        return rows * self._values

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        return self._values.unsqueeze(1) * columns

    @override
    def dense(self) -> Tensor:
        return torch.diag(self._values)

    @override
    def singular_values(self) -> Tensor:
        return self._values.abs().sort(descending=True).values


@final
class IdentityJacobian(AbstractJacobian):
    """The identity, such as the derivative of a reshape or with respect to a bias.

    Parameters
    ----------
    size : int
        Number of rows.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self._size, self._size

    @property
    @override
    def structure(self) -> str:
        return "identity"

    @property
    @override
    def cost(self) -> int:
        return 0

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        return rows

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        return columns

    @override
    def dense(self) -> Tensor:
        return torch.eye(self._size, dtype=torch.float64)

    @override
    def singular_values(self) -> Tensor:
        return torch.ones(self._size, dtype=torch.float64)


@final
class SelectionJacobian(AbstractJacobian):
    """A matrix of zeros with a single one in every row, such as that of max pooling.

    Parameters
    ----------
    index : Tensor of shape (outputs,), int64
        The input that every output picks.
    n_inputs : int
        Number of inputs.
    """

    def __init__(self, index: Tensor, n_inputs: int) -> None:
        self._index, self._n = index, n_inputs

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return len(self._index), self._n

    @property
    @override
    def structure(self) -> str:
        return "selection"

    @property
    @override
    def cost(self) -> int:
        return 0

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        out = torch.zeros(rows.shape[0], self._n, dtype=rows.dtype, device=rows.device)
        return out.index_add(1, self._index, rows)

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        return columns[self._index]

    @override
    def dense(self) -> Tensor:
        out = torch.zeros(self.shape, dtype=torch.float64, device=self._index.device)
        out[torch.arange(len(self._index), device=out.device), self._index] = 1.0
        return out


@final
class SparseJacobian(AbstractJacobian):
    """A matrix given by its nonzero entries, such as the block Toeplitz one of a convolution.

    Parameters
    ----------
    rows, columns : Tensor of shape (nnz,), int64
        Where the entries are; repeated ones add up.
    values : Tensor of shape (nnz,)
        The entries.
    shape : tuple of int
        Numbers of outputs and inputs.
    structure : str
        What it is.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        values: Tensor,
        shape: tuple[int, int],
        structure: str,
    ) -> None:
        self._matrix = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), values, shape, check_invariants=True
        ).coalesce()
        self._shape = shape
        self._structure = structure

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    @override
    def structure(self) -> str:
        return self._structure

    @property
    @override
    def cost(self) -> int:
        return int(self._matrix.values().shape[0])

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.sparse.mm(self._matrix.t(), rows.T.contiguous()).T
        return out

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        out: Tensor = torch.sparse.mm(self._matrix, columns)
        return out

    @override
    def dense(self) -> Tensor:
        return self._matrix.to_dense()


@final
class BlockJacobian(AbstractJacobian):
    r"""A block diagonal matrix in which every block is repeated.

    With blocks :math:`B_1, \ldots, B_G` and r repeats it is
    :math:`\mathrm{diag}(I_r \otimes B_1, \ldots, I_r \otimes B_G)`: for the weight of a dense
    layer one block, the row of the inputs, and as many repeats as outputs.

    Parameters
    ----------
    blocks : Tensor of shape (G, p, q)
        The blocks.
    repeats : int
        The number r.
    """

    def __init__(self, blocks: Tensor, repeats: int) -> None:
        self._blocks, self._repeats = blocks, repeats

    @property
    @override
    def shape(self) -> tuple[int, int]:
        G, p, q = self._blocks.shape
        return G * self._repeats * p, G * self._repeats * q

    @property
    @override
    def structure(self) -> str:
        G, p, q = self._blocks.shape
        if G == 1:
            what = f"row of {q}" if p == 1 else (f"column of {p}" if q == 1 else f"{p} x {q}")
            return f"I_{self._repeats} (x) {what}"
        times = f", each {self._repeats} times" if self._repeats > 1 else ""
        return f"{G} blocks of {p} x {q}{times}"

    @property
    @override
    def cost(self) -> int:
        return self._blocks.numel() * self._repeats

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        G, p, _ = self._blocks.shape
        parts = rows.reshape(-1, G, self._repeats, p)
        return torch.einsum("kgrp,gpq->kgrq", parts, self._blocks).reshape(-1, self.shape[1])

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        G, _, q = self._blocks.shape
        parts = columns.T.reshape(-1, G, self._repeats, q)
        out = torch.einsum("kgrq,gpq->kgrp", parts, self._blocks)
        return out.reshape(-1, self.shape[0]).T

    @override
    def dense(self) -> Tensor:
        return _block_diagonal(self._blocks.repeat_interleave(self._repeats, 0))

    @override
    def columns(self, index: Tensor) -> Tensor:
        p, q = self._blocks.shape[1:]
        copy, inside = index // q, index % q
        out = torch.zeros(self.shape[0], len(index), dtype=self._blocks.dtype, device=index.device)
        at = torch.arange(len(index), device=index.device)
        rows = copy.unsqueeze(1) * p + torch.arange(p, device=index.device)
        out[rows, at.unsqueeze(1)] = self._blocks[copy // self._repeats, :, inside]
        return out

    @override
    def singular_values(self) -> Tensor:
        values = torch.linalg.svdvals(self._blocks).reshape(-1)
        repeated = values.repeat(self._repeats)
        out: Tensor = repeated.sort(descending=True).values
        return out


@final
class LowRankJacobian(AbstractJacobian):
    r"""Diagonal blocks, each a diagonal plus a matrix of low rank: softmax, normalization.

    .. math:: J_g = \mathrm{diag}(d_g) + A_g B_g^T

    Parameters
    ----------
    diagonal : Tensor of shape (G, n)
        The d_g.
    left, right : Tensor of shape (G, n, k)
        The factors A_g and B_g.
    """

    def __init__(self, diagonal: Tensor, left: Tensor, right: Tensor) -> None:
        self._d, self._a, self._b = diagonal, left, right

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self._d.numel(), self._d.numel()

    @property
    @override
    def structure(self) -> str:
        G, k = self._d.shape[0], self._a.shape[2]
        head = "diagonal" if G == 1 else f"{G} blocks, diagonal"
        return f"{head} + rank {k}"

    @property
    @override
    def cost(self) -> int:
        return self._d.numel() + self._a.numel() + self._b.numel()

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        parts = rows.reshape(-1, *self._d.shape)
        inner = torch.einsum("kgn,gnr->kgr", parts, self._a)
        return (parts * self._d + torch.einsum("kgr,gnr->kgn", inner, self._b)).reshape(rows.shape)

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        parts = columns.T.reshape(-1, *self._d.shape)
        inner = torch.einsum("kgn,gnr->kgr", parts, self._b)
        out = parts * self._d + torch.einsum("kgr,gnr->kgn", inner, self._a)
        return out.reshape(columns.shape[1], columns.shape[0]).T

    @override
    def dense(self) -> Tensor:
        return _block_diagonal(torch.diag_embed(self._d) + self._a @ self._b.mT)


@final
class ResidualJacobian(AbstractJacobian):
    """The identity plus a product of Jacobians: a residual connection.

    Parameters
    ----------
    factors : sequence of AbstractJacobian
        Those of the inner layers, the last layer first.
    size : int
        Number of inputs and outputs.
    """

    def __init__(self, factors: Sequence[AbstractJacobian], size: int) -> None:
        self._factors, self._size = tuple(factors), size

    @property
    @override
    def shape(self) -> tuple[int, int]:
        return self._size, self._size

    @property
    @override
    def structure(self) -> str:
        return f"identity + product of {len(self._factors)}"

    @property
    @override
    def cost(self) -> int:
        return sum(factor.cost for factor in self._factors)

    @override
    def vjp(self, rows: Tensor) -> Tensor:
        inner = rows
        for factor in self._factors:
            inner = factor.vjp(inner)
        return rows + inner

    @override
    def jvp(self, columns: Tensor) -> Tensor:
        inner = columns
        for factor in reversed(self._factors):
            inner = factor.jvp(inner)
        return columns + inner

    @override
    def dense(self) -> Tensor:
        return self.vjp(torch.eye(self._size, dtype=torch.float64))


def _block_diagonal(blocks: Tensor) -> Tensor:
    """Return the matrix with the blocks of shape (G, p, q) on its diagonal."""
    G, p, q = blocks.shape
    out = torch.zeros(G, p, G, q, dtype=blocks.dtype, device=blocks.device)
    at = torch.arange(G, device=blocks.device)
    out[at, :, at] = blocks
    return out.reshape(G * p, G * q)


def size_of(shape: Sequence[int]) -> int:
    """Return the number of entries of a shape."""
    return math.prod(shape)
