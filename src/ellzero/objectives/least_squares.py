"""Least squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.errors import InvalidParameterError
from ellzero.objectives import linear
from ellzero.objectives.inputs import (
    check_length,
    keep_weighted,
    lower_eigenvalue,
    to_matrix,
)
from ellzero.objectives.linear import AbstractBoundedLinearLoss
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params


@final
class LeastSquares(AbstractBoundedLinearLoss, AbstractQuadraticObjective):
    r"""Least squares, with one output or several.

    .. math:: f(\theta) = \frac{1}{2N} \sum_i w_i \|x_i^T \theta - y_i\|^2
        + \tfrac{\lambda}{2} \|\theta\|^2

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,) or (n_samples, n_outputs)
        Target.
    ridge : float or mapping of str to float, default=0.0
        The lambda of every entry; a mapping gives one for ``coef`` and one for ``intercept``.
    fit_intercept : bool, default=False
        Whether there is an ``intercept`` tensor. It counts and is ridged like any entry, unless
        `ridge` or the constraint names only ``coef``.
    sample_weight : Tensor of shape (n_samples,) or None, default=None
        Weights of the samples, as if each sample appeared so often. Must not be negative; N is
        their sum.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, or the ridge is negative.

    Notes
    -----
    The parameter tensors are ``coef``, (n_features,) or (n_outputs, n_features), and perhaps
    ``intercept``. A value or gradient costs n_samples * n_features operations. The strong
    convexity constant is the ridge plus the smallest eigenvalue of the mean of ``x x.T``.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.LeastSquares(torch.eye(2), torch.tensor([1.0, 3.0]))
    >>> f.value(f.init_params()).item()
    2.5
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        ridge: float | Mapping[str, float] = 0.0,
        fit_intercept: bool = False,
        sample_weight: Tensor | None = None,
    ) -> None:
        X = to_matrix("X", X)
        y = check_length(y, X.shape[0]).to(X)
        X, y, share = keep_weighted(X, y, sample_weight)
        if y.ndim > 2:
            raise InvalidParameterError(f"`y` must have 1 or 2 axes, got shape {tuple(y.shape)}.")
        if not named.all_true(torch.isfinite(y)):
            raise InvalidParameterError(
                "`y` must be finite, got NaN or infinity.", "Drop these samples first."
            )
        flat = y.ndim == 1
        self._y = y.unsqueeze(-1) if flat else y
        self._moment: Tensor | None = None
        self._set_up(X, share, self._y.shape[1], flat, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        return self._mean((u - self._y).square()) / 2

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return self._weighted(u - self._y)

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return self._weighted(v)

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._weighted(torch.ones_like(u)), None

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        # Blocks that are smaller than the whole matrix come from the columns themselves.
        if self._gram is None and index.numel() * index.shape[-1] < self._X.shape[1] ** 2:
            return super().hessian_on(params, index)
        dtype = torch.promote_types(params["coef"].dtype, self._X.dtype)
        return self.curvature_bound().submatrix(index).to(dtype)

    @override
    def _hessian_block(self, params: Params, index: Tensor) -> Tensor:
        # The same at every point.
        output, column = self._entries(index)
        dtype = torch.promote_types(params["coef"].dtype, self._X.dtype)
        gathered = self._gather_columns(column, dtype)
        block = gathered @ self._weighted(gathered.transpose(1, 2))
        if self._n_outputs > 1:
            block = block * (output.unsqueeze(2) == output.unsqueeze(1))
        return block + torch.diag_embed(self._ridge_of(index).to(block.dtype))

    @override
    def _output_bound(self) -> Tensor:
        return torch.eye(self._n_outputs, dtype=torch.float64, device=self._X.device)

    @override
    def _bound_is_attained(self) -> bool:
        return True

    @override
    def _recedes(self, entries: Tensor) -> bool:
        return False

    @override
    def strong_convexity(self) -> float:
        least = min(self._ridge.values())
        n, p = self._X.shape
        # More columns than samples: some direction has no curvature.
        if n < p + int(self._fit_intercept) or p > linear.DENSE_LIMIT:
            return least
        return lower_eigenvalue(self._gram_spectrum()) + least

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        quadratic = (dual * self._over_shares(dual)).sum((-2, -1)) / 2
        return quadratic + (dual * self._y).sum((-2, -1))

    @override
    def minimize_on(self, masks: Masks) -> Params:
        zero = self.init_params()
        batch = named.to_batch(masks)
        p, m = self._X.shape[1], self._n_outputs
        # Outputs do not interact: every output of every row is a problem of its own.
        on = batch["coef"].reshape(-1, p)
        if self._fit_intercept:
            on = torch.cat([on, batch["intercept"].reshape(-1, 1)], 1)
        index, valid = supports.support_index(Batch({"columns": on}))
        values = torch.zeros(index.shape, dtype=torch.float64, device=index.device)
        width = index.shape[1]
        if width:
            step = max(1, linear.CHUNK // (2 * width * max(width, self.n_samples)))
            for start in range(0, index.shape[0], step):
                here = slice(start, start + step)
                output = torch.arange(index.shape[0], device=index.device)[here] % m
                values[here] = self._solve_columns(index[here], valid[here], output)
        flat = values.new_zeros(on.shape[0], p + 2)
        flat.scatter_(1, torch.where(valid, index, p + 1), values)
        flat = flat.to(self._X.dtype)
        out = {"coef": flat[:, :p].reshape(batch["coef"].shape)}
        if self._fit_intercept:
            out["intercept"] = flat[:, p].reshape(batch["intercept"].shape)
        found = Batch({name: out[name] for name in zero})
        return found if named.is_batch(masks) else named.row(found, 0)

    def _solve_columns(self, column: Tensor, valid: Tensor, output: Tensor) -> Tensor:
        """Return least-squares solutions on columns (rows, k), each for one output, in float64."""
        n, p = self._X.shape
        first, last = self._ridge["coef"], self._ridge.get("intercept", 0.0)
        ridge = (first * (column < p).double() + last * (column == p).double()) * valid
        if p <= linear.DENSE_LIMIT:
            hessian = self._gram_matrix()[column.unsqueeze(2), column.unsqueeze(1)]
            moment = self._moments()[output.unsqueeze(1), column]
        else:
            A = self._gather_columns(column, torch.float64)
            weighted = self._weighted(A.transpose(1, 2))
            hessian = A @ weighted
            moment = (self._y.T[output].double().unsqueeze(1) @ weighted).squeeze(1)
        both = valid.unsqueeze(2) & valid.unsqueeze(1)
        hessian = torch.where(both, hessian, torch.zeros_like(hessian)) + torch.diag_embed(ridge)
        moment = torch.where(valid, moment, torch.zeros_like(moment))
        scale = hessian.diagonal(dim1=1, dim2=2).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        unit = hessian / (scale.unsqueeze(1) * scale.unsqueeze(2))
        unit = unit + torch.diag_embed((~valid).double())
        factor, info = torch.linalg.cholesky_ex(unit)
        # A column this near to the span of the others needs the data and not their products.
        bad = (info != 0) | (factor.diagonal(dim1=1, dim2=2).amin(1) < 1e-3)
        factor = torch.where(bad.reshape(-1, 1, 1), torch.eye(column.shape[1]).to(factor), factor)
        out = torch.zeros_like(scale)
        for _ in range(2):
            # The first pass solves, the second refines.
            slope = (moment - (hessian @ out.unsqueeze(-1)).squeeze(-1)) / scale
            step = torch.cholesky_solve(slope.unsqueeze(-1), factor).squeeze(-1) / scale
            out = out + torch.where(bad.unsqueeze(1), torch.zeros_like(step), step)
        for row in named.to_list(bad.nonzero().flatten()):
            on = valid[row]
            A = self._gather_columns(column[row][on], torch.float64).T
            below = torch.diag((n * ridge[row][on]).sqrt())
            y = self._y[:, output[row]].double()
            if self._share is not None:
                root = (n * self._share.squeeze(1)).sqrt()
                A, y = A * root.unsqueeze(1), y * root
            target = torch.cat([y, torch.zeros_like(below[0])])
            out[row, on] = _minimum_norm(torch.cat([A, below]), target)
        return torch.where(valid, out, torch.zeros_like(out))

    def _moments(self) -> Tensor:
        """Return y^T W X, (n_outputs, n_columns), in float64."""
        if self._moment is None:
            self._moment = self._weighted(self._y.double()).T @ self._columns().double()
        return self._moment


def _minimum_norm(A: Tensor, b: Tensor) -> Tensor:
    """Return the shortest minimizer of ||A x - b||."""
    left, sizes, right = torch.linalg.svd(A, full_matrices=False)
    cutoff = max(A.shape) * torch.finfo(A.dtype).eps * sizes.amax()
    inverse = torch.where(sizes > cutoff, 1 / sizes.clamp_min(1e-300), torch.zeros_like(sizes))
    out: Tensor = right.T @ (inverse * (left.T @ b))
    return out
