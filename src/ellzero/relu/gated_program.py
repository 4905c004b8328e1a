"""The gated program as data: outputs, dual norms, bounds; nothing here solves."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ellzero.relu.losses import AbstractLoss

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
CHUNK = 2**25


@dataclass(frozen=True)
class GatedProgram:
    r"""Group lasso of a two-layer network whose gates are fixed.

    .. math:: \min_{U, c} \; \ell(F, Y) + \lambda \sum_i \|U_i\|_F, \quad
        F = \sum_i D_i A U_i + 1 c^\top

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Rows that neurons multiply, with a column of ones last where neurons have biases.
    patterns : ndarray of bool of shape (n_samples, n_gates)
        Diagonals of the D_i.
    y : ndarray of shape (n_samples, n_outputs)
        Targets; labels in {-1, 1} for the logistic loss.
    loss : AbstractLoss
        The loss, a mean over samples and outputs.
    fit_intercept : bool, default=False
        Whether a constant c, free of charge, is added to each output.

    Notes
    -----
    The dual maximizes minus the conjugate of the loss at -V subject to \|A' D_i V\|_F <= penalty
    for every gate, and 1'V = 0 with an intercept: finitely many conditions, all of which are
    checked, so the gap is exact for these gates (Mishkin, Sahiner and Pilanci, arXiv 2202.01331).
    The matrix [D_1 A, ..., D_p A] is never formed.
    """

    A: Floats
    patterns: Masks
    y: Floats
    loss: AbstractLoss
    fit_intercept: bool = False
    gram: list[Floats] = field(default_factory=list, compare=False, repr=False)

    def restricted(self, gates: NDArray[np.int64]) -> GatedProgram:
        """Return the program with some of the gates."""
        return GatedProgram(
            self.A, self.patterns[:, gates], self.y, self.loss, self.fit_intercept, self.gram
        )

    @property
    def n_gates(self) -> int:
        """Number of gates."""
        return int(self.patterns.shape[1])

    @property
    def row_square(self) -> float:
        """Mean of the squared norms of the rows; one where all are zero."""
        return float(np.einsum("ij,ij->", self.A, self.A)) / len(self.A) or 1.0

    def kernel(self) -> Floats:
        """Return A A', formed once."""
        if not self.gram:
            self.gram.append(self.A @ self.A.T)
        return self.gram[0]

    def outputs(self, support: NDArray[np.int64], weights: Floats, constant: Floats) -> Floats:
        """Return F of weights (n_active, n_inputs, n_outputs) of the gates in `support`."""
        out = np.tile(constant, (len(self.A), 1))
        if len(support):
            seen = self.patterns[:, support]
            for k in range(out.shape[1]):
                out[:, k] += np.einsum("ij,ij->i", self.A @ weights[:, :, k].T, seen)
        return out

    def norms(self, point: Floats) -> Floats:
        r"""Return \|A' D_i V\|_F for every gate."""
        squares = np.zeros(self.n_gates)
        width = max(1, CHUNK // len(self.A))
        for low in range(0, self.n_gates, width):
            seen = self.patterns[:, low : low + width]
            for k in range(point.shape[1]):
                part = self.A.T @ (seen * point[:, [k]])
                squares[low : low + width] += np.einsum("ij,ij->j", part, part)
        return np.sqrt(squares)

    def residual(self, outputs: Floats) -> Floats:
        """Return minus the gradient of the loss, shape (n_samples, n_outputs)."""
        flat = self.loss.residual(outputs.ravel(), self.y.ravel())
        return flat.reshape(outputs.shape)

    def balance(self, point: Floats) -> Floats:
        """Return a point whose columns add up to zero, where there is an intercept."""
        if not self.fit_intercept:
            return point
        return np.column_stack([self.loss.balance(column) for column in point.T])

    def constant(self) -> Floats:
        """Return the best constant outputs, zeros without an intercept."""
        if not self.fit_intercept:
            return np.zeros(self.y.shape[1])
        return np.array([self.loss.constant(column) for column in self.y.T])

    def largest_penalty(self) -> float:
        """Return the least penalty at which the zero network is optimal, exactly."""
        outputs = np.tile(self.constant(), (len(self.A), 1))
        return float(self.norms(self.balance(self.residual(outputs))).max())

    def bound(self, point: Floats, penalty: float) -> tuple[float, Floats]:
        """Return the lower bound of any dual point, from scratch, and its norms at the gates."""
        balanced = self.balance(point)
        norms = self.norms(balanced)
        flat, targets = balanced.ravel(), self.y.ravel()
        top = float(norms.max(initial=0.0)) * (1 + 1e-14)
        largest = min(penalty / top, 1e300) if top > 0 else 1e300
        scale = self.loss.best_scale(flat, targets, largest)
        return max(self.loss.dual(scale * flat, targets), 0.0), norms

    def value(
        self, support: NDArray[np.int64], weights: Floats, constant: Floats, penalty: float
    ) -> float:
        """Return the objective."""
        outputs = self.outputs(support, weights, constant)
        fit = self.loss.value(outputs.ravel(), self.y.ravel())
        return fit + penalty * float(np.sqrt((weights**2).sum(axis=(1, 2))).sum())
