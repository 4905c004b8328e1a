"""Quadratic objectives given by their matrix."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.objectives.inputs import check_ridge, lower_eigenvalue, to_matrix
from ellzero.tensors import named, supports
from ellzero.typing import Masks, Params
from ellzero.validation import check_real


def solve_on(block: Tensor, target: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Return the shortest solutions of ``block x = target``, one for each row.

    Parameters
    ----------
    block : Tensor of shape (size, k, k)
        Positive semidefinite matrices.
    target : Tensor of shape (size, k)
        Right sides.
    index, valid : Tensor of shape (size, k)
        Supports, as `supports.support_index` gives them.

    Returns
    -------
    Tensor of shape (size, k)
        Solutions, zero at padding.

    Raises
    ------
    NonFiniteError
        If a system has no solution.
    """
    if index.shape[1] == 0:
        return torch.zeros_like(target)
    both = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    block = torch.where(both, block, torch.zeros_like(block))
    target = torch.where(valid, target, torch.zeros_like(target))
    scale = block.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    unit = block / (scale.unsqueeze(1) * scale.unsqueeze(2))
    factor, info = torch.linalg.cholesky_ex(unit + torch.diag_embed((~valid).to(block.dtype)))
    # A pivot this small makes the triangular solve worthless: take the pseudo-inverse instead.
    bad = (info != 0) | (factor.diagonal(dim1=1, dim2=2).amin(1) < 1e-5)
    factor = torch.where(bad.reshape(-1, 1, 1), torch.eye(index.shape[1]).to(factor), factor)
    out = torch.zeros_like(target)
    for _ in range(2):
        # The first pass solves, the second refines.
        slope = (target - (block @ out.unsqueeze(-1)).squeeze(-1)) / scale
        out = out + torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1) / scale
    if named.any_true(bad):
        inverse = torch.linalg.pinv(block[bad], rtol=1e-12, hermitian=True)
        out[bad] = (inverse @ target[bad].unsqueeze(-1)).squeeze(-1)
        residual = (block[bad] @ out[bad].unsqueeze(-1)).squeeze(-1) - target[bad]
        size = target[bad].abs().amax(1)
        if named.any_true(residual.abs().amax(1) > 1e-6 * size):
            raise NonFiniteError(
                "The quadratic is unbounded below on a support: it has a flat direction along "
                "which the linear term falls.",
                "Pass a positive `ridge`.",
            )
    return torch.where(valid, out, torch.zeros_like(out))


@final
class Quadratic(AbstractQuadraticObjective):
    r"""Convex quadratic function.

    .. math:: f(\theta) = \tfrac12 \theta^T Q \theta - c^T \theta + d
        + \tfrac{\lambda}{2} \|\theta\|^2

    Parameters
    ----------
    Q : Tensor of shape (n, n)
        Symmetric positive semidefinite matrix.
    c : Tensor of shape (n,)
        Linear term.
    constant : float, default=0.0
        The number d.
    ridge : float, default=0.0
        The number lambda. Must not be negative.

    Raises
    ------
    InvalidParameterError
        If Q is not square, symmetric and positive semidefinite, if shapes differ, or if a number
        is not finite.

    Notes
    -----
    The parameter tensor is ``coef`` of shape (n,). A value or gradient costs n^2 operations.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Quadratic(torch.eye(2), torch.tensor([1.0, 2.0]))
    >>> f.value({"coef": torch.tensor([1.0, 2.0])}).item()
    -2.5
    """

    def __init__(self, Q: Tensor, c: Tensor, constant: float = 0.0, ridge: float = 0.0) -> None:
        Q = to_matrix("Q", Q)
        if Q.shape[0] != Q.shape[1]:
            raise InvalidParameterError(f"`Q` must be square, got shape {tuple(Q.shape)}.")
        if not isinstance(c, Tensor) or tuple(c.shape) != (Q.shape[0],):
            given = tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__
            raise InvalidParameterError(
                f"`c` must be a tensor of shape ({Q.shape[0]},), got {given}."
            )
        if not named.all_true(torch.isfinite(c)):
            raise InvalidParameterError("`c` must be finite, got NaN or infinity.")
        scale = named.to_float(Q.abs().max())
        slack = 1e3 * torch.finfo(Q.dtype).eps * scale
        if named.any_true((Q - Q.T).abs() > slack):
            raise InvalidParameterError(
                "`Q` must be symmetric, got a matrix that differs from its transpose.",
                "Pass `(Q + Q.T) / 2`.",
            )
        self._Q = Q
        self._c = c.to(Q)
        self._constant = check_real("constant", constant)
        self._ridge = check_ridge(ridge, {"coef": c})["coef"]
        values = torch.linalg.eigvalsh(Q.double())
        low = named.to_float(values[0])
        if low < -slack * max(1, Q.shape[0]):
            raise InvalidParameterError(
                f"`Q` must be positive semidefinite, got a smallest eigenvalue of {low:.3g}.",
                "Only convex quadratics have the guarantees; add a multiple of the identity.",
            )
        self._largest = max(named.to_float(values[-1]), 0.0)
        self._smallest = lower_eigenvalue(values)

    @override
    def init_params(self) -> Params:
        return {"coef": torch.zeros_like(self._c)}

    def _products(self, params: Params) -> tuple[Tensor, Tensor]:
        # Points in a finer type than the matrix, such as those of certificates, decide the type.
        dtype = torch.promote_types(params["coef"].dtype, self._Q.dtype)
        coef = params["coef"].to(dtype)
        return coef, coef @ self._Q.to(dtype) + self._ridge * coef

    @override
    def value(self, params: Params) -> Tensor:
        coef, product = self._products(params)
        return (coef * (0.5 * product - self._c)).sum(-1) + self._constant

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        coef, product = self._products(params)
        value = (coef * (0.5 * product - self._c)).sum(-1) + self._constant
        return value, named.like(params, {"coef": product - self._c})

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        _, product = self._products(direction)
        return named.like(direction, {"coef": product})

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        dtype = torch.promote_types(params["coef"].dtype, self._Q.dtype)
        block = self._Q[index.unsqueeze(-1), index.unsqueeze(-2)].to(dtype)
        eye = torch.eye(index.shape[1], dtype=block.dtype, device=block.device)
        return block + self._ridge * eye

    @override
    def smoothness(self) -> float:
        return self._largest * (1 + 1e-12) + self._ridge

    @override
    def strong_convexity(self) -> float:
        return self._smallest + self._ridge

    @override
    def curvature_bound(self) -> CurvatureBound:
        n = self._Q.shape[0]
        return CurvatureBound(
            left=torch.ones(1, 1, dtype=torch.float64, device=self._Q.device),
            right=self._Q.double(),
            positions=torch.arange(n, device=self._Q.device),
            ridge=torch.full((n,), self._ridge, dtype=torch.float64, device=self._Q.device),
            attained=True,
        )

    @override
    def minimize_on(self, masks: Masks) -> Params:
        """Return the shortest minimizers; raise where the function is unbounded below."""
        batch = named.to_batch(masks)
        index, valid = supports.support_index(batch)
        target = torch.where(valid, self._c.double()[index], 0.0).double()
        block = self._Q.double()[index.unsqueeze(2), index.unsqueeze(1)]
        block = block + torch.diag_embed(torch.full_like(target, self._ridge))
        values = solve_on(block, target, index, valid).to(self._Q.dtype)
        out = supports.scatter(values, index, valid, self.init_params())
        return out if named.is_batch(masks) else named.row(out, 0)
