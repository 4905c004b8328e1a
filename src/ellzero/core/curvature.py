"""A fixed matrix that bounds every Hessian of an objective, kept in factored form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CurvatureBound:
    r"""Positive semidefinite matrix A with Hessian(theta) <= A for every theta.

    .. math:: A = P (\mathrm{left} \otimes \mathrm{right}) P^T + \mathrm{diag}(\mathrm{ridge})

    where P picks the Kronecker position of every flattened entry.

    Parameters
    ----------
    left : Tensor of shape (a, a)
        First Kronecker factor; a one by one matrix for scalar outputs.
    right : Tensor of shape (b, b)
        Second Kronecker factor, such as ``X.T @ X / n_samples``.
    positions : Tensor of shape (n,), int64
        Position in the Kronecker product of every entry, in the order of `named.flatten`.
    ridge : Tensor of shape (n,)
        Added diagonal.
    attained : bool
        Whether A is the Hessian itself at some theta, so that its k-sparse eigenvalues are the
        restricted smoothness constants exactly and not only bounds of them.
    """

    left: Tensor
    right: Tensor
    positions: Tensor
    ridge: Tensor
    attained: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(self.positions.shape[0])

    def diagonal(self) -> Tensor:
        """Return the diagonal, shape (n,)."""
        b = self.right.shape[0]
        i, j = self.positions // b, self.positions % b
        return self.left.diagonal()[i] * self.right.diagonal()[j] + self.ridge

    def submatrix(self, index: Tensor) -> Tensor:
        """Return the rows and columns of `index`: shape (..., k) gives (..., k, k)."""
        b = self.right.shape[0]
        place = self.positions[index]
        i, j = place // b, place % b
        block = (
            self.left[i.unsqueeze(-1), i.unsqueeze(-2)]
            * self.right[j.unsqueeze(-1), j.unsqueeze(-2)]
        )
        return block + torch.diag_embed(self.ridge[index])

    def rows(self, index: Tensor) -> Tensor:
        """Return rows: shape (m,) gives (m, n)."""
        b = self.right.shape[0]
        i, j = self.positions // b, self.positions % b
        out = self.left[i[index]][:, i] * self.right[j[index]][:, j]
        return out.scatter_add(1, index.unsqueeze(1), self.ridge[index].unsqueeze(1))

    def row(self, index: int) -> Tensor:
        """Return one row, shape (n,)."""
        return self.rows(torch.tensor([index], device=self.positions.device))[0]
