"""Two-layer ReLU networks with several outputs, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VectorReLU:
    r"""Network f(x) = sum_j w_j max(u_j'x + b_j, 0) + c with vectors w_j and c.

    Parameters
    ----------
    hidden : ndarray of shape (n_neurons, n_features)
        The u_j.
    biases : ndarray of shape (n_neurons,) or None
        The b_j; None when neurons have none.
    outputs : ndarray of shape (n_neurons, n_outputs)
        The w_j.
    intercept : ndarray of shape (n_outputs,) or None
        The c; None when there is none.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import VectorReLU
    >>> network = VectorReLU(np.ones((1, 1)), None, np.array([[2.0, -1.0]]), None)
    >>> network.predict(np.array([[3.0], [1.0]])).tolist()
    [[6.0, -3.0], [2.0, -1.0]]
    """

    hidden: Floats
    biases: Floats | None
    outputs: Floats
    intercept: Floats | None

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return len(self.outputs)

    @property
    def norm(self) -> float:
        """Sum of the norm of w_j times the norm of u_j; biases are left out."""
        lengths = np.linalg.norm(self.hidden, axis=1)
        return float(np.linalg.norm(self.outputs, axis=1) @ lengths)

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
        heights = X @ self.hidden.T + (0.0 if self.biases is None else self.biases)
        out = np.maximum(heights, 0.0) @ self.outputs
        return np.asarray(out if self.intercept is None else out + self.intercept)

    def to_module(self) -> torch.nn.Sequential:
        """Return the network as Linear, ReLU, Linear in float64; a zero network has one neuron.

        Returns
        -------
        torch.nn.Sequential
            Computes what `predict` does, to rounding.
        """
        m, d = self.hidden.shape
        first = torch.nn.Linear(d, max(m, 1), bias=self.biases is not None, dtype=torch.float64)
        last = torch.nn.Linear(
            max(m, 1), self.outputs.shape[1], bias=self.intercept is not None, dtype=torch.float64
        )
        with torch.no_grad():
            for layer in (first, last):
                for parameter in layer.parameters():
                    parameter.zero_()
            if m:
                first.weight.copy_(torch.as_tensor(self.hidden))
                last.weight.copy_(torch.as_tensor(self.outputs.T))
                if self.biases is not None:
                    first.bias.copy_(torch.as_tensor(self.biases))
            if self.intercept is not None:
                last.bias.copy_(torch.as_tensor(self.intercept))
        return torch.nn.Sequential(first, torch.nn.ReLU(), last)
