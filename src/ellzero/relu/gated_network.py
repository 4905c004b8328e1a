"""Two-layer networks with fixed gates as numbers, and the module that computes the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class GatedReLUModule(torch.nn.Module):
    """Module of a network whose gates are fixed: sum_i 1(h_i'x > 0) U_i'x + c.

    Parameters
    ----------
    vectors : Tensor of shape (n_gates, n_inputs)
        The h_i, a buffer: training does not move gates.
    weights : Tensor of shape (n_gates, n_inputs, n_outputs)
        The U_i, trainable.
    intercept : Tensor of shape (n_outputs,) or None
        The c, trainable.
    biased : bool
        Whether the last of the inputs is a one that the module appends.

    Examples
    --------
    >>> import torch
    >>> from ellzero.relu import GatedReLUModule
    >>> module = GatedReLUModule(torch.ones(1, 1), 2 * torch.ones(1, 1, 1), None, biased=False)
    >>> module(torch.tensor([[3.0], [-1.0]])).flatten().tolist()
    [6.0, 0.0]
    """

    vectors: torch.Tensor

    def __init__(
        self,
        vectors: torch.Tensor,
        weights: torch.Tensor,
        intercept: torch.Tensor | None,
        *,
        biased: bool,
    ) -> None:
        super().__init__()
        self.biased = biased
        self.register_buffer("vectors", vectors.clone())
        self.weights = torch.nn.Parameter(weights.clone())
        self.intercept = None if intercept is None else torch.nn.Parameter(intercept.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        Tensor of shape (n_samples, n_outputs)
            The outputs.
        """
        if self.biased:
            x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        seen = (x @ self.vectors.T > 0).to(x.dtype)
        linear = torch.einsum("nd,gdk->ngk", x, self.weights)
        out = (seen[:, :, None] * linear).sum(dim=1)
        return out if self.intercept is None else out + self.intercept


@dataclass(frozen=True, slots=True)
class GatedReLU:
    r"""Network f(x) = sum_i 1(h_i'x > 0) U_i'x + c with fixed gates h_i.

    Parameters
    ----------
    vectors : ndarray of shape (n_neurons, n_inputs)
        The h_i of the gates that are used.
    weights : ndarray of shape (n_neurons, n_inputs, n_outputs)
        The U_i, penalized by their norms.
    intercept : ndarray of shape (n_outputs,) or None
        The c, never penalized; None when there is none.
    biased : bool
        Whether inputs are features and a one.

    Notes
    -----
    A gated unit is not a ReLU neuron: its gate and its weights point in different directions,
    and the output jumps where the gate opens. It equals a difference of ReLU neurons where U_i
    lies in the difference of the cone of its pattern with itself (Mishkin, Sahiner and Pilanci,
    arXiv 2202.01331).

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import GatedReLU
    >>> network = GatedReLU(np.ones((1, 1)), 2 * np.ones((1, 1, 1)), None, False)
    >>> network.predict(np.array([[3.0], [-1.0]])).ravel(), network.norm
    (array([6., 0.]), 2.0)
    """

    vectors: Floats
    weights: Floats
    intercept: Floats | None
    biased: bool

    @property
    def n_neurons(self) -> int:
        """Number of gates that are used."""
        return len(self.vectors)

    @property
    def norm(self) -> float:
        """Sum of the norms of the U_i."""
        return float(np.sqrt((self.weights**2).sum(axis=(1, 2))).sum())

    def predict(self, X: Floats) -> Floats:
        """Return the outputs.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs)
            The outputs.
        """
        A = np.column_stack([X, np.ones(len(X))]) if self.biased else X
        n_outputs = self.weights.shape[2]
        out = np.zeros((len(A), n_outputs))
        if self.n_neurons:
            seen = A @ self.vectors.T > 0
            for k in range(n_outputs):
                out[:, k] = np.einsum("ij,ij->i", A @ self.weights[:, :, k].T, seen)
        return out if self.intercept is None else out + self.intercept

    def to_module(self) -> GatedReLUModule:
        """Return the network as a module in float64 whose gates are buffers.

        Returns
        -------
        GatedReLUModule
            Computes what `predict` does, to rounding.
        """
        return GatedReLUModule(
            torch.as_tensor(self.vectors),
            torch.as_tensor(self.weights),
            None if self.intercept is None else torch.as_tensor(self.intercept),
            biased=self.biased,
        )
