"""What the losses of a linear predictor share: scores, derivatives, constants, duality."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import AbstractLinearObjective, AbstractSmoothObjective
from ellzero.objectives.inputs import check_ridge
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params

# Numbers that one temporary may hold; 2**25 in float64 are 256 MiB.
CHUNK = 2**25
# Rows and columns up to which a Gram matrix is decomposed.
DENSE_LIMIT = 6000


class AbstractLinearLoss(AbstractLinearObjective):
    """What the losses of a linear predictor share.

    Internally a point is a matrix of shape (size, n_outputs, n_columns), where the columns are the
    features and, with an intercept, a constant one at the end.
    """

    _X: Tensor
    _share: Tensor | None
    _n_outputs: int
    _flat_output: bool
    _fit_intercept: bool
    _ridge: dict[str, float]

    def _set_up(
        self,
        X: Tensor,
        share: Tensor | None,
        n_outputs: int,
        flat_output: bool,
        fit_intercept: bool,
        ridge: Any,
    ) -> None:
        self._X = X
        # Weights in float64 that add up to 1, shape (n_samples, 1); None: all the same.
        self._share = share
        self._n_outputs = n_outputs
        self._flat_output = flat_output
        self._fit_intercept = bool(fit_intercept)
        self._ridge = check_ridge(ridge, self.init_params())
        self._gram: Tensor | None = None
        self._spectrum: Tensor | None = None
        self._largest: float | None = None

    @property
    def n_samples(self) -> int:
        """Number of samples whose weight is not zero."""
        return int(self._X.shape[0])

    def _weighted(self, u: Tensor) -> Tensor:
        """Return numbers of samples, (..., n_samples, m), times the shares of the samples."""
        return u / self.n_samples if self._share is None else u * self._share.to(u.dtype)

    def _mean(self, losses: Tensor) -> Tensor:
        """Return the weighted mean over samples, summed over outputs."""
        if self._share is None:
            return losses.sum((-2, -1)) / self.n_samples
        return (losses * self._share.to(losses.dtype)).sum((-2, -1))

    def _over_shares(self, dual: Tensor) -> Tensor:
        """Return dual variables over the shares of the samples."""
        return dual * self.n_samples if self._share is None else dual / self._share.to(dual.dtype)

    @override
    def init_params(self) -> Params:
        p = self._X.shape[1]
        shape = (p,) if self._flat_output else (self._n_outputs, p)
        out = {"coef": self._X.new_zeros(shape)}
        if self._fit_intercept:
            out["intercept"] = self._X.new_zeros(() if self._flat_output else (self._n_outputs,))
        return out

    # The linear predictor and its transpose ------------------------------------------------

    def _predictor(self, params: Params, X: Tensor | None = None) -> Tensor:
        """Return X theta: (n_samples, n_outputs), with the batch axis first for a batch."""
        X = self._X if X is None else X
        # Points in a finer type than the data, such as those of certificates, decide the type.
        dtype = torch.promote_types(params["coef"].dtype, X.dtype)
        X, coef = X.to(dtype), params["coef"].to(dtype)
        if self._flat_output:
            coef = coef.unsqueeze(-2)
        if coef.ndim == 3 and coef.shape[0] > 1:
            size, outputs, p = coef.shape
            # One matrix product for all rows of the batch; samples last in memory.
            out = (coef.reshape(-1, p) @ X.T).reshape(size, outputs, -1).transpose(1, 2)
        else:
            out = (coef @ X.T).transpose(-1, -2)
        if self._fit_intercept:
            intercept = params["intercept"]
            if self._flat_output:
                intercept = intercept.unsqueeze(-1)
            out = out + intercept.unsqueeze(-2)
        return out

    def _transpose(self, dual: Tensor, params: Params) -> Params:
        """Return X^T dual as named tensors of the kind of `params`."""
        dtype = torch.promote_types(dual.dtype, self._X.dtype)
        X, dual = self._X.to(dtype), dual.to(dtype)
        if dual.ndim == 3 and dual.shape[0] > 1:
            size, n, outputs = dual.shape
            flat = dual.transpose(1, 2).reshape(size * outputs, n) @ X
            coef = flat.reshape(size, outputs, -1)
        else:
            coef = dual.transpose(-1, -2) @ X
        out = {"coef": coef.squeeze(-2) if self._flat_output else coef}
        if self._fit_intercept:
            total = dual.sum(-2)
            out["intercept"] = total.squeeze(-1) if self._flat_output else total
        return named.like(params, out)

    def predict_scores(self, params: Params, X: Tensor) -> Tensor:
        """Return the linear predictor of new samples.

        Parameters
        ----------
        params : mapping of str to Tensor
            A point.
        X : Tensor of shape (n, n_features)
            Samples.

        Returns
        -------
        Tensor of shape (n,) or (n, n_outputs)
            Scores.
        """
        scores = self._predictor(params, X)
        return scores.squeeze(-1) if self._flat_output else scores

    # Loss of the predictor, by the subclasses ------------------------------------------------

    @abstractmethod
    def _loss(self, u: Tensor) -> Tensor:
        """Return F(u), summed over samples and outputs, of u (..., n_samples, n_outputs)."""

    @abstractmethod
    def _loss_grad(self, u: Tensor) -> Tensor:
        """Return the gradient of F, of the shape of u."""

    @abstractmethod
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian of F at u times v, of the shape of u."""

    @abstractmethod
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return w and q, shaped as u, with Hessian diag(w_i) - q_i q_i^T in sample i."""

    # Value, gradient, Hessian ----------------------------------------------------------------

    def _ridge_value(self, params: Params) -> Tensor | float:
        out: Tensor | float = 0.0
        lead = 1 if named.is_batch(params) else 0
        for name, tensor in params.items():
            if self._ridge[name]:
                axes = tuple(range(lead, tensor.ndim))
                square = tensor.square()
                square = square.sum(axes) if axes else square
                out = out + 0.5 * self._ridge[name] * square
        return out

    def _add_ridge(self, grad: Params, params: Params) -> Params:
        if not any(self._ridge.values()):
            return grad
        return named.like(params, {n: g + self._ridge[n] * params[n] for n, g in grad.items()})

    def _pieces(self, *params: Params) -> list[tuple[Params, ...]]:
        """Return the batches in pieces whose predictors fit in `CHUNK` numbers."""
        rows = max(1, CHUNK // (self.n_samples * self._n_outputs))
        first = params[0]
        if not isinstance(first, Batch) or first.size <= rows:
            return [params]
        starts = range(0, first.size, rows)
        return [tuple(named.take(p, slice(i, i + rows)) for p in params) for i in starts]

    @override
    def value(self, params: Params) -> Tensor:
        parts = [
            self._loss(self._predictor(p)) + self._ridge_value(p) for (p,) in self._pieces(params)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        parts = [self._value_and_grad(p) for (p,) in self._pieces(params)]
        if len(parts) == 1:
            return parts[0]
        grads = named.concatenate([Batch(grad) for _, grad in parts])
        return torch.cat([value for value, _ in parts]), grads

    def _value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        u = self._predictor(params)
        value = self._loss(u) + self._ridge_value(params)
        return value, self._add_ridge(self._transpose(self._loss_grad(u), params), params)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        parts = [self._hessian_vector(p, d) for p, d in self._pieces(params, direction)]
        return parts[0] if len(parts) == 1 else named.concatenate([Batch(p) for p in parts])

    def _hessian_vector(self, params: Params, direction: Params) -> Params:
        u, v = self._predictor(params), self._predictor(direction)
        product = self._transpose(self._loss_curvature(u, v), params)
        return self._add_ridge(product, direction)

    def _entries(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and column of flattened entries; the intercept is the last column."""
        p = self._X.shape[1]
        count = self._n_outputs * p
        is_coef = index < count
        output = torch.where(is_coef, index // p, index - count)
        column = torch.where(is_coef, index % p, p)
        return output, column

    def _columns(self) -> Tensor:
        """Return X, with a constant column at the end where there is an intercept."""
        if not self._fit_intercept:
            return self._X
        return torch.cat([self._X, self._X.new_ones(self._X.shape[0], 1)], 1)

    def _gather_columns(self, column: Tensor, dtype: torch.dtype) -> Tensor:
        """Return columns of X, or constant ones, as rows: (..., n_samples)."""
        if not self._fit_intercept:
            return self._X.T[column].to(dtype)
        last = self._X.shape[1]
        gathered = self._X.T[column.clamp_max(last - 1)].to(dtype)
        return torch.where((column == last).unsqueeze(-1), torch.ones_like(gathered), gathered)

    def _ridge_of(self, index: Tensor) -> Tensor:
        """Return the ridge of flattened entries, in float64."""
        first, last = self._ridge["coef"], self._ridge.get("intercept", 0.0)
        is_coef = index < self._n_outputs * self._X.shape[1]
        flat = torch.full(index.shape, first, dtype=torch.float64, device=index.device)
        return torch.where(is_coef, flat, torch.full_like(flat, last))

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        size, k = index.shape
        n = self.n_samples
        per_row = n * max(1, k) * 2
        step = max(1, CHUNK // per_row)
        blocks = []
        for start in range(0, size, step):
            rows = named.take(params, slice(start, start + step))
            here = index[start : start + step]
            blocks.append(self._hessian_block(rows, here))
        return torch.cat(blocks)

    def _hessian_block(self, params: Batch, index: Tensor) -> Tensor:
        output, column = self._entries(index)
        weights, factor = self._curvature(self._predictor(params))
        gathered = self._gather_columns(column, weights.dtype)
        pick = output.unsqueeze(1).expand(-1, weights.shape[1], -1)
        weighted = gathered * weights.gather(2, pick).transpose(1, 2)
        block = weighted @ gathered.transpose(1, 2)
        if self._n_outputs > 1:
            block = block * (output.unsqueeze(2) == output.unsqueeze(1))
        if factor is not None:
            scaled = gathered * factor.gather(2, pick).transpose(1, 2)
            block = block - scaled @ scaled.transpose(1, 2)
        return block + torch.diag_embed(self._ridge_of(index).to(block.dtype))

    # Constants -------------------------------------------------------------------------------

    def _gram_matrix(self) -> Tensor:
        if self._gram is None:
            X = self._columns()
            gram = torch.zeros(X.shape[1], X.shape[1], dtype=torch.float64, device=X.device)
            # Constants are computed in float64, a few rows at a time.
            step = max(1, CHUNK // X.shape[1])
            for start in range(0, X.shape[0], step):
                piece = X[start : start + step].double()
                if self._share is None:
                    gram.addmm_(piece.T, piece)
                else:
                    gram.addmm_((piece * self._share[start : start + step]).T, piece)
            self._gram = gram / self.n_samples if self._share is None else gram
        return self._gram

    def _gram_spectrum(self) -> Tensor:
        if self._spectrum is None:
            self._spectrum = torch.linalg.eigvalsh(self._gram_matrix())
        return self._spectrum

    def _largest_eigenvalue(self) -> float:
        """Return the largest eigenvalue of X^T W X, or a number above it."""
        if self._largest is None:
            self._largest = self._bound_eigenvalue()
        return self._largest

    def _bound_eigenvalue(self) -> float:
        n, p = self._X.shape
        if self._spectrum is None and min(n, p) > DENSE_LIMIT:
            # ||X||_2^2 <= ||X||_1 ||X||_inf
            size = self._columns().abs()
            rows = size.sum(1, dtype=torch.float64)
            if self._share is None:
                return named.to_float(size.sum(0, dtype=torch.float64).max() * rows.max()) / n
            # With A = sqrt(W) X: (A^T A)_jl summed over l is sum_i w_i |x_ij| ||x_i||_1.
            return named.to_float((self._share.T @ (size * rows.unsqueeze(1)).double()).max())
        if self._spectrum is None and n < p:
            X = self._columns().double()
            A = X / math.sqrt(n) if self._share is None else X * self._share.sqrt()
            return max(named.to_float(torch.linalg.eigvalsh(A @ A.T)[-1]), 0.0)
        return max(named.to_float(self._gram_spectrum()[-1]), 0.0)

    @override
    def strong_convexity(self) -> float:
        return min(self._ridge.values())

    @override
    def ridge_weights(self) -> Params:
        return {n: torch.full_like(t, self._ridge[n]) for n, t in self.init_params().items()}

    # Duality ---------------------------------------------------------------------------------

    @override
    def dual_point(self, params: Params) -> Tensor:
        return self._loss_grad(self._predictor(params))

    @override
    def adjoint(self, dual: Tensor) -> Params:
        kind: Params = Batch() if dual.ndim == 3 else {}
        return self._transpose(dual, kind)

    @override
    def has_minimizer_on(self, masks: Masks) -> bool:
        rows = torch.unique(named.flatten(named.to_batch(masks)), dim=0)
        for i in range(rows.shape[0]):
            entries = rows[i].nonzero().flatten()
            # Along entries with ridge the objective grows: only the others can go to infinity.
            loose = entries[self._ridge_of(entries) == 0]
            if loose.shape[0] and self._recedes(loose):
                return False
        return True

    @abstractmethod
    def _recedes(self, entries: Tensor) -> bool:
        """Return whether F falls for ever in some direction of these entries."""


class AbstractBoundedLinearLoss(AbstractLinearLoss, AbstractSmoothObjective):
    """Losses of a linear predictor whose curvature is bounded everywhere."""

    @abstractmethod
    def _output_bound(self) -> Tensor:
        """Return a matrix above every block of the Hessian of F over the share of its sample."""

    @abstractmethod
    def _bound_is_attained(self) -> bool:
        """Return whether that matrix is the Hessian somewhere."""

    @override
    def smoothness(self) -> float:
        left = named.to_float(torch.linalg.eigvalsh(self._output_bound())[-1])
        return left * self._largest_eigenvalue() * (1 + 1e-12) + max(self._ridge.values())

    @override
    def curvature_bound(self) -> CurvatureBound:
        zero = self.init_params()
        every = torch.arange(named.size(zero), device=self._X.device)
        output, column = self._entries(every)
        right = self._gram_matrix()
        return CurvatureBound(
            left=self._output_bound(),
            right=right,
            positions=output * right.shape[0] + column,
            ridge=self._ridge_of(every),
            attained=self._bound_is_attained(),
        )

    @override
    def curvature_diagonal(self) -> Tensor:
        n, p = self._X.shape
        squares = torch.ones(p + 1, dtype=torch.float64, device=self._X.device)
        if self._share is None:
            norms = torch.linalg.vector_norm(self._X, dim=0, dtype=torch.float64)
            squares[:p] = norms.square() / n
        else:
            # A few rows at a time, so that a piece stays in a near cache.
            step = max(1, 2**18 // max(1, p))
            squares[:p] = 0.0
            for start in range(0, n, step):
                piece = self._X[start : start + step].double()
                squares[:p] += self._share[start : start + step, 0] @ piece.square()
        every = torch.arange(named.size(self.init_params()), device=self._X.device)
        output, column = self._entries(every)
        left = self._output_bound().diagonal()
        return left[output] * squares[column] + self._ridge_of(every)

    @override
    def curvature_rows(self, index: Tensor) -> Tensor:
        n, p = self._X.shape
        output, column = self._entries(index)
        taken = self._weighted(self._gather_columns(column, torch.float64).T).T
        products = taken.new_empty(index.shape[0], p + 1)
        products[:, p] = taken.sum(1)
        step = max(1, CHUNK // max(1, n))
        for start in range(0, p, step):
            stop = min(p, start + step)
            products[:, start:stop] = taken @ self._X[:, start:stop].double()
        every = torch.arange(named.size(self.init_params()), device=self._X.device)
        outputs, columns = self._entries(every)
        rows = products[:, columns]
        if self._n_outputs > 1:
            rows = rows * self._output_bound()[output][:, outputs]
        else:
            rows = rows * self._output_bound()[0, 0]
        ridge = self._ridge_of(index).unsqueeze(1)
        return rows.scatter_add(1, index.unsqueeze(1), ridge)
