r"""Two-layer ReLU networks as sparse linear models: hidden and output weights fused.

With the activation pattern D_j of every neuron given, the network is linear in the products
w_j = v_j u_j of its output and hidden weights, so that training it with few nonzeros is sparse
recovery (Fridovich-Keil and Pilanci, arXiv 2509.20323).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import (
    AbstractLinearObjective,
    AbstractQuadraticObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import lower_eigenvalue
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params

# Numbers that a temporary holds at most.
CHUNK = 2**23
NAME = "coef"


class _Columns:
    """The columns D_j X[:, i] of the fused design, entry j d + i, never formed all at once."""

    def __init__(self, X: Tensor, gates: Tensor) -> None:
        self.X = X
        self.gates = gates

    def gather(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return columns: index of shape (..., k) gives (..., n, k)."""
        d = self.X.shape[1]
        columns = self.X.T.to(dtype)[index % d] * self.gates.T[index // d]
        return columns.transpose(-1, -2)


def forward(X: Tensor, coef: Tensor, gates: Tensor) -> Tensor:
    """Return sum_j D_j X w_j, shape (..., n), in pieces of neurons that are not zero.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples.
    coef : Tensor of shape (..., n_neurons, n_features)
        Fused weights.
    gates : Tensor of shape (n_samples, n_neurons), bool
        Activation patterns.

    Returns
    -------
    Tensor of shape (..., n_samples)
        The outputs.
    """
    n, p = gates.shape
    used = (coef != 0).any(-1).reshape(-1, p).any(0).nonzero().flatten()
    lead = coef.shape[:-2]
    out = torch.zeros(*lead, n, dtype=coef.dtype, device=coef.device)
    rows = max(1, coef[..., 0, 0].numel())
    for piece in torch.split(used, max(1, CHUNK // (n * rows))):
        products = X.to(coef.dtype) @ coef[..., piece, :].transpose(-1, -2)
        out = out + torch.where(gates[:, piece], products, 0.0).sum(-1)
    return out


def backward(X: Tensor, residual: Tensor, gates: Tensor) -> Tensor:
    """Return the products (D_j X)' r, shape (..., n_neurons, n_features), in pieces of neurons.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples.
    residual : Tensor of shape (..., n_samples)
        The r.
    gates : Tensor of shape (n_samples, n_neurons), bool
        Activation patterns.

    Returns
    -------
    Tensor of shape (..., n_neurons, n_features)
        The products.
    """
    n, p = gates.shape
    rows = max(1, residual[..., 0].numel())
    pieces = torch.split(torch.arange(p, device=gates.device), max(1, CHUNK // (n * rows)))
    parts = [
        torch.where(gates[:, piece].T, residual.unsqueeze(-2), 0.0) @ X.to(residual.dtype)
        for piece in pieces
    ]
    return torch.cat(parts, -2)


def check_samples(X: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Return X and y as tensors of one dtype, or raise with what is wrong.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples.
    y : Tensor of shape (n_samples,)
        Targets.

    Returns
    -------
    tuple of Tensor
        Both, in the dtype of X.

    Raises
    ------
    InvalidParameterError
        If a shape does not fit or a number is not finite.
    """
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    if X.ndim != 2 or not X.numel():
        raise InvalidParameterError(
            f"`X` must have samples and features, got shape {tuple(X.shape)}.",
            "Use `X.reshape(-1, 1)` for a single feature.",
        )
    X = X if X.is_floating_point() else X.double()
    if tuple(y.shape) != (X.shape[0],):
        raise InvalidParameterError(
            f"`y` must have the shape ({X.shape[0]},), got {tuple(y.shape)}.",
            "Recover one network for each output.",
        )
    y = y.to(X)
    for name, tensor in (("X", X), ("y", y)):
        if not named.all_true(torch.isfinite(tensor)):
            raise InvalidParameterError(
                f"`{name}` must be finite, got NaN or infinity.", "Drop these samples first."
            )
    return X, y


@final
class FusedLeastSquares(AbstractQuadraticObjective, AbstractLinearObjective):
    r"""Least squares of a two-layer network whose activation patterns are given.

    .. math:: f(w) = \frac{1}{2n} \Big\| \sum_j D_j X w_j - y \Big\|^2

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples, taken as they are.
    gates : Tensor of shape (n_samples, n_neurons), bool
        The diagonals of the D_j: on which samples a neuron is active.
    y : Tensor of shape (n_samples,)
        Targets.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, gates are not bool, or a number is not finite.

    See Also
    --------
    RectifiedLeastSquares : The same with the patterns that the weights themselves have.
    recover_network : The search over both.

    Notes
    -----
    The parameter tensor is ``coef`` of shape (n_neurons, n_features), row j the fused
    :math:`w_j = v_j u_j` of arXiv 2509.20323. The design [D_1 X, ..., D_p X] is never formed: a
    value costs n d operations for every neuron that is not zero, a gradient n p d. Restricted to k
    entries, memory is n k numbers. `curvature_bound` forms the (p d)^2 matrix.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.relu import FusedLeastSquares
    >>> X = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [2.0, 1.0]])
    >>> objective = FusedLeastSquares(X, X[:, :1] > 0, torch.tensor([3.0, 0.0, 6.0]))
    >>> found = ellzero.solve(ellzero.Problem(objective, ellzero.L0Ball(1)))
    >>> [round(number, 6) for number in found.params["coef"].flatten().tolist()]
    [3.0, 0.0]
    """

    def __init__(self, X: Tensor, gates: Tensor, y: Tensor) -> None:
        self._X, self._y = check_samples(X, y)
        if (
            not isinstance(gates, Tensor)
            or gates.dtype != torch.bool
            or gates.ndim != 2
            or gates.shape[0] != self._X.shape[0]
            or not gates.shape[1]
        ):
            given = (
                f"{gates.dtype} of shape {tuple(gates.shape)}"
                if isinstance(gates, Tensor)
                else type(gates).__name__
            )
            raise InvalidParameterError(
                f"`gates` must be a bool tensor of shape ({self._X.shape[0]}, n_neurons), "
                f"got {given}.",
                "Pass `X @ generators.T > 0`.",
            )
        self._gates = gates

    @property
    def gates(self) -> Tensor:
        """The activation patterns, shape (n_samples, n_neurons)."""
        return self._gates

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return int(self._X.shape[0])

    @override
    def init_params(self) -> Params:
        shape = self._gates.shape[1], self._X.shape[1]
        return {NAME: torch.zeros(shape, dtype=self._X.dtype, device=self._X.device)}

    def predict(self, params: Params) -> Tensor:
        """Return the outputs, shape (..., n_samples)."""
        dtype = torch.promote_types(params[NAME].dtype, self._X.dtype)
        return forward(self._X, params[NAME].to(dtype), self._gates)

    @override
    def value(self, params: Params) -> Tensor:
        return (self.predict(params) - self._y).square().mean(-1) / 2

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        residual = self.predict(params) - self._y
        grad = backward(self._X, residual / self.n_samples, self._gates)
        return residual.square().mean(-1) / 2, named.like(params, {NAME: grad})

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        moved = self.predict(direction) / self.n_samples
        return named.like(direction, {NAME: backward(self._X, moved, self._gates)})

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        columns = self._gather(index)
        block = columns.transpose(-1, -2) @ columns / self.n_samples
        return block.to(torch.promote_types(params[NAME].dtype, self._X.dtype))

    def _gather(self, index: Tensor) -> Tensor:
        return _Columns(self._X, self._gates).gather(index, torch.float64)

    @override
    def minimize_on(self, masks: Masks) -> Params:
        batch = named.to_batch(masks)
        index, valid = supports.support_index(batch)
        out = []
        for i in range(index.shape[0]):
            # One at a time: n k numbers for each.
            columns = torch.where(valid[i], self._gather(index[i]), 0.0)
            out.append(_shortest(columns, self._y.double()))
        values = torch.stack(out).to(self._X.dtype)
        found = supports.scatter(values, index, valid, self.init_params())
        return found if named.is_batch(masks) else named.row(found, 0)

    @override
    def strong_convexity(self) -> float:
        n, size = self.n_samples, named.size(self.init_params())
        if size > min(n, 2000):
            return 0.0
        return lower_eigenvalue(torch.linalg.eigvalsh(self.curvature_bound().right))

    @override
    def smoothness(self) -> float:
        """Return the largest eigenvalue of the Hessian, or an upper bound where n is large.

        The matrix A A' is the entrywise product of X X' and D D', with D the gates; its largest
        eigenvalue is at most that of X X' times the most neurons that one sample activates.
        """
        n = self.n_samples
        X = self._X.double()
        if n <= 2000:
            D = self._gates.double()
            top = torch.linalg.eigvalsh((X @ X.T) * (D @ D.T))[-1]
        else:
            most = self._gates.sum(1).max().double()
            top = torch.linalg.eigvalsh(X.T @ X)[-1] * most
        return max(named.to_float(top), 0.0) / n * (1 + 1e-12)

    @override
    def curvature_diagonal(self) -> Tensor:
        squares = self._gates.T.double() @ self._X.double().square()
        return squares.flatten() / self.n_samples

    @override
    def curvature_rows(self, index: Tensor) -> Tensor:
        moved = self._gather(index).T / self.n_samples
        return backward(self._X, moved, self._gates).flatten(1)

    @override
    def curvature_bound(self) -> CurvatureBound:
        size = named.size(self.init_params())
        every = torch.arange(size, device=self._X.device)
        rows = max(1, CHUNK // max(self.n_samples, size))
        matrix = torch.cat([self.curvature_rows(part) for part in torch.split(every, rows)])
        return CurvatureBound(
            left=torch.ones(1, 1, dtype=torch.float64, device=matrix.device),
            right=(matrix + matrix.T) / 2,
            positions=every,
            ridge=torch.zeros(size, dtype=torch.float64, device=matrix.device),
            attained=True,
        )

    # Duality ---------------------------------------------------------------------------------

    @override
    def dual_point(self, params: Params) -> Tensor:
        return (self.predict(params) - self._y) / self.n_samples

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        return dual @ self._y.to(dual) + dual.square().sum(-1) * (self.n_samples / 2)

    @override
    def adjoint(self, dual: Tensor) -> Params:
        kind: Params = Batch() if dual.ndim == 2 else {}
        return named.like(kind, {NAME: backward(self._X, dual, self._gates)})

    @override
    def ridge_weights(self) -> Params:
        return self.init_params()

    @override
    def has_minimizer_on(self, masks: Masks) -> bool:
        return True


@final
class RectifiedLeastSquares(AbstractTwiceDifferentiable):
    r"""Least squares of a two-layer ReLU network in its fused weights; not convex.

    .. math:: f(w) = \frac{1}{2n} \Big\| \sum_j \sigma_j (\sigma_j X w_j)_+ - y \Big\|^2

    with signs :math:`\sigma_j` of the output weights: this is every network of as many neurons,
    scaled such that its output weights are 1 and -1. Its gradient is that of `FusedLeastSquares`
    with the patterns that w itself has, so that hard thresholding on it is the sequential variant
    of arXiv 2509.20323, in which patterns follow the weights after every step.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Samples, taken as they are.
    y : Tensor of shape (n_samples,)
        Targets.
    signs : Tensor of shape (n_neurons,) or (size, n_neurons)
        1 or -1 for every neuron; two axes give every row of a batch its own.
    generators : Tensor of shape (..., n_neurons, n_features)
        Directions whose patterns neurons have in the gradient while their weights are zero.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit or signs are not 1 and -1.

    Notes
    -----
    The parameter tensor is ``coef`` of shape (n_neurons, n_features). A neuron with zero weights
    does not change the value whatever its pattern; without a generator it would never return.
    The cost is that of `FusedLeastSquares`. Second derivatives are those inside of the cells.

    Examples
    --------
    >>> import torch
    >>> from ellzero.relu import RectifiedLeastSquares
    >>> X = torch.tensor([[1.0], [-2.0]])
    >>> objective = RectifiedLeastSquares(
    ...     X, torch.tensor([1.0, 2.0]), torch.ones(2), torch.tensor([[1.0], [-1.0]])
    ... )
    >>> objective.value({"coef": torch.tensor([[1.0], [-1.0]])}).item()
    0.0
    """

    def __init__(self, X: Tensor, y: Tensor, signs: Tensor, generators: Tensor) -> None:
        self._X, self._y = check_samples(X, y)
        self._signs, self._generators = signs.to(self._X), generators.to(self._X)
        if self._generators.shape != (*self._signs.shape, self._X.shape[1]):
            raise InvalidParameterError(
                f"`generators` must have the shape {(*self._signs.shape, self._X.shape[1])}, "
                f"got {tuple(generators.shape)}.",
                "Give one direction for every sign.",
            )
        if not named.all_true(self._signs.abs() == 1):
            raise InvalidParameterError("`signs` must be 1 and -1, got other numbers.")

    @override
    def init_params(self) -> Params:
        shape = self._signs.shape[-1], self._X.shape[1]
        return {NAME: torch.zeros(shape, dtype=self._X.dtype, device=self._X.device)}

    @override
    def take(self, index: Tensor) -> RectifiedLeastSquares:
        if self._signs.ndim == 1:
            return self
        signs, generators = self._signs[index], self._generators[index]
        return RectifiedLeastSquares(self._X, self._y, signs, generators)

    @property
    def signs(self) -> Tensor:
        """Signs of the output weights."""
        return self._signs

    def fused(self, params: Params) -> FusedLeastSquares:
        """Return the convex objective with the patterns of one point."""
        return FusedLeastSquares(self._X, self.gates(params), self._y)

    def gates(self, params: Params) -> Tensor:
        """Return the patterns, shape (..., n_samples, n_neurons), bool."""
        coef = params[NAME]
        signs = self._signs.to(coef).unsqueeze(-1)
        silent = (coef == 0).all(-1, keepdim=True)
        directions = torch.where(silent, self._generators.to(coef), signs * coef)
        return self._X.to(coef) @ directions.transpose(-1, -2) > 0

    def _point(self, params: Params) -> tuple[Tensor, Tensor]:
        """Return weights and patterns as a batch of rows, whatever was given."""
        coef = params[NAME]
        coef = coef.to(torch.promote_types(coef.dtype, self._X.dtype))
        gates = self.gates({NAME: coef})
        if coef.ndim == 2:
            coef, gates = coef.unsqueeze(0), gates.reshape(-1, *gates.shape[-2:])
        return coef, gates

    def predict(self, params: Params) -> Tensor:
        """Return the outputs, shape (..., n_samples)."""
        coef, gates = self._point(params)
        out = torch.stack([forward(self._X, w, g) for w, g in zip(coef, gates, strict=True)])
        return out if named.is_batch(params) else out[0]

    @override
    def value(self, params: Params) -> Tensor:
        return (self.predict(params) - self._y).square().mean(-1) / 2

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        coef, gates = self._point(params)
        values, grads = [], []
        for w, g in zip(coef, gates, strict=True):
            residual = forward(self._X, w, g) - self._y
            values.append(residual.square().mean() / 2)
            grads.append(backward(self._X, residual / len(residual), g))
        return self._rows(params, values, grads)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        coef, gates = self._point(params)
        moves = direction[NAME].reshape(coef.shape)
        grads = [
            backward(self._X, forward(self._X, v, g) / self._X.shape[0], g)
            for v, g in zip(moves, gates, strict=True)
        ]
        return self._rows(direction, [], grads)[1]

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        _, gates = self._point(params)
        blocks = []
        for i, g in zip(index, gates, strict=True):
            columns = _Columns(self._X, g).gather(i, torch.float64)
            blocks.append(columns.T @ columns / self._X.shape[0])
        return torch.stack(blocks).to(torch.promote_types(params[NAME].dtype, self._X.dtype))

    @staticmethod
    def _rows(params: Params, values: list[Tensor], grads: list[Tensor]) -> tuple[Tensor, Params]:
        batch = named.is_batch(params)
        value = torch.stack(values) if values else torch.zeros(())
        grad = torch.stack(grads) if batch else grads[0]
        return (value if batch or not values else value[0]), named.like(params, {NAME: grad})


def _shortest(columns: Tensor, y: Tensor) -> Tensor:
    """Return the shortest least-squares solution; zero at columns of zeros."""
    if not columns.shape[1]:
        return columns.new_zeros(0)
    sizes = columns.norm(dim=0)
    unit = columns / torch.where(sizes > 0, sizes, torch.ones_like(sizes))
    gram, moment = unit.T @ unit, unit.T @ y
    factor, info = torch.linalg.cholesky_ex(gram + torch.diag((sizes == 0).to(gram)))
    if named.to_int(info) == 0 and named.to_float(factor.diagonal().min()) > 1e-5:
        found = torch.cholesky_solve(moment.unsqueeze(1), factor).squeeze(1)
        # Refined once: the normal equations square the condition number.
        rest = unit.T @ (y - unit @ found)
        found = found + torch.cholesky_solve(rest.unsqueeze(1), factor).squeeze(1)
    else:
        found = torch.linalg.lstsq(unit, y.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return torch.where(sizes > 0, found / sizes.clamp_min(1e-300), torch.zeros_like(found))
