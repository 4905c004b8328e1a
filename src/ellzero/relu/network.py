"""Two-layer ReLU networks as numbers, and the modules that compute the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ellzero.errors import IncompatibleError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TwoLayerReLU:
    r"""Network f(x) = sum_j w_j max(u_j'x + b_j, 0) + c.

    Parameters
    ----------
    hidden : ndarray of shape (n_neurons, n_features)
        The u_j.
    biases : ndarray of shape (n_neurons,) or None
        The b_j, penalized like the u_j; None when neurons have none.
    outputs : ndarray of shape (n_neurons,)
        The w_j.
    intercept : float or None
        The c, never penalized; None when there is none.

    Notes
    -----
    Weight decay (penalty / 2) sum_j (\|(u_j, b_j)\|^2 + w_j^2) of a network whose neurons are
    balanced equals penalty sum_j |w_j| \|(u_j, b_j)\|, which no rescaling of a neuron changes
    (Ergen and Pilanci, arXiv 2002.11219, section 2).

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import TwoLayerReLU
    >>> network = TwoLayerReLU(np.array([[1.0], [-1.0]]), None, np.array([2.0, 2.0]), None)
    >>> network.predict(np.array([[-3.0], [1.0]]))
    array([6., 2.])
    >>> network.norm
    4.0
    """

    hidden: Floats
    biases: Floats | None
    outputs: Floats
    intercept: float | None

    @property
    def n_neurons(self) -> int:
        """Number of neurons."""
        return len(self.outputs)

    @property
    def directions(self) -> Floats:
        """Weights of the neurons with their biases as the last column, where there are biases."""
        if self.biases is None:
            return self.hidden
        return np.column_stack([self.hidden, self.biases])

    @property
    def norm(self) -> float:
        """Sum of |w_j| times the norm of (u_j, b_j)."""
        return float(np.abs(self.outputs) @ np.linalg.norm(self.directions, axis=1))

    def design(self, X: Floats) -> Floats:
        """Return the rows that `directions` multiply: X, with a column of ones for biases."""
        return X if self.biases is None else np.column_stack([X, np.ones(len(X))])

    def predict(self, X: Floats) -> Floats:
        """Return the outputs.

        Parameters
        ----------
        X : ndarray of shape (n_samples, n_features)
            Samples.

        Returns
        -------
        ndarray of shape (n_samples,)
            The outputs.
        """
        active = np.maximum(self.design(X) @ self.directions.T, 0.0)
        return np.asarray(active @ self.outputs + (self.intercept or 0.0))

    def balanced(self) -> TwoLayerReLU:
        """Return the same function with |w_j| equal to the norm of (u_j, b_j)."""
        sizes = np.linalg.norm(self.directions, axis=1)
        keep = (sizes > 0) & (self.outputs != 0)
        factors = np.sqrt(np.abs(self.outputs[keep]) / sizes[keep])
        return TwoLayerReLU(
            self.hidden[keep] * factors[:, None],
            None if self.biases is None else self.biases[keep] * factors,
            self.outputs[keep] / factors,
            self.intercept,
        )

    def to_module(self) -> torch.nn.Sequential:
        """Return the network as Linear, ReLU, Linear in float64; a zero network has one neuron."""
        n_neurons, n_features = self.hidden.shape
        width = max(n_neurons, 1)
        first = torch.nn.Linear(
            n_features, width, bias=self.biases is not None, dtype=torch.float64
        )
        last = torch.nn.Linear(width, 1, bias=self.intercept is not None, dtype=torch.float64)
        with torch.no_grad():
            for layer in (first, last):
                for parameter in layer.parameters():
                    parameter.zero_()
            if n_neurons:
                first.weight.copy_(torch.as_tensor(self.hidden))
                last.weight.copy_(torch.as_tensor(self.outputs)[None])
                if self.biases is not None:
                    first.bias.copy_(torch.as_tensor(self.biases))
            if self.intercept is not None:
                last.bias.fill_(self.intercept)
        return torch.nn.Sequential(first, torch.nn.ReLU(), last)

    @staticmethod
    def from_module(module: torch.nn.Module) -> TwoLayerReLU:
        """Return the numbers of a module made of Linear, ReLU, Linear with one output.

        Parameters
        ----------
        module : torch.nn.Module
            A Sequential of the three, or a module whose children are these three in order.

        Returns
        -------
        TwoLayerReLU
            The network in float64.

        Raises
        ------
        IncompatibleError
            If the module is anything else.
        """
        layers = [m for m in module.modules() if not list(m.children())]
        kinds = [type(layer).__name__ for layer in layers]
        if len(layers) != 3 or not (
            isinstance(layers[0], torch.nn.Linear)
            and isinstance(layers[1], torch.nn.ReLU)
            and isinstance(layers[2], torch.nn.Linear)
        ):
            raise IncompatibleError(
                f"Only networks of Linear, ReLU, Linear can be certified, got {', '.join(kinds)}.",
                "Pass the two-layer part, or fold other layers into it.",
            )
        first, last = layers[0], layers[2]
        if last.out_features != 1:
            raise IncompatibleError(
                f"Only networks with one output can be certified, got {last.out_features}.",
                "Certify one network for each output.",
            )
        hidden = _numbers(first.weight)
        return TwoLayerReLU(
            hidden,
            None if first.bias is None else _numbers(first.bias),
            _numbers(last.weight)[0],
            None if last.bias is None else float(_numbers(last.bias)[0]),
        )


def _numbers(parameter: torch.Tensor) -> Floats:
    """Return a parameter as float64 on the CPU."""
    return np.array(parameter.detach().cpu().double().numpy())
