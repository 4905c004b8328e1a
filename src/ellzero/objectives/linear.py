"""Losses of a linear predictor: least squares, logistic, softmax."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.curvature import CurvatureBound
from ellzero.core.problem import AbstractLinearObjective, AbstractQuadraticObjective
from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_length, check_ridge, lower_eigenvalue, to_matrix
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params

# Numbers that one temporary may hold; 2**25 in float64 are 256 MiB.
CHUNK = 2**25
# Rows and columns up to which a Gram matrix is decomposed.
DENSE_LIMIT = 6000


class _LinearLoss(AbstractLinearObjective):
    """What the losses of a linear predictor share.

    Internally a point is a matrix of shape (size, n_outputs, n_columns), where the columns are the
    features and, with an intercept, a constant one at the end.
    """

    _X: Tensor
    _n_outputs: int
    _flat_output: bool
    _fit_intercept: bool
    _ridge: dict[str, float]

    def _set_up(
        self, X: Tensor, n_outputs: int, flat_output: bool, fit_intercept: bool, ridge: Any
    ) -> None:
        self._X = X
        self._n_outputs = n_outputs
        self._flat_output = flat_output
        self._fit_intercept = bool(fit_intercept)
        self._ridge = check_ridge(ridge, self.init_params())
        self._gram: Tensor | None = None
        self._spectrum: Tensor | None = None

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return int(self._X.shape[0])

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

    @abstractmethod
    def _output_bound(self) -> Tensor:
        """Return a matrix above n_samples times every block of the Hessian of F."""

    @abstractmethod
    def _bound_is_attained(self) -> bool:
        """Return whether that matrix is the Hessian somewhere."""

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
            for piece in torch.split(X, max(1, CHUNK // X.shape[1])):
                gram.addmm_(piece.double().T, piece.double())
            self._gram = gram / self.n_samples
        return self._gram

    def _gram_spectrum(self) -> Tensor:
        if self._spectrum is None:
            self._spectrum = torch.linalg.eigvalsh(self._gram_matrix())
        return self._spectrum

    @override
    def smoothness(self) -> float:
        left = named.to_float(torch.linalg.eigvalsh(self._output_bound())[-1])
        return left * self._largest_eigenvalue() * (1 + 1e-12) + max(self._ridge.values())

    def _largest_eigenvalue(self) -> float:
        """Return the largest eigenvalue of X^T X / n_samples, or a number above it."""
        n, p = self._X.shape
        if self._spectrum is None and min(n, p) > DENSE_LIMIT:
            # ||X||_2^2 <= ||X||_1 ||X||_inf
            size = self._columns().abs()
            columns = size.sum(0, dtype=torch.float64).max()
            rows = size.sum(1, dtype=torch.float64).max()
            return named.to_float(columns * rows) / n
        if self._spectrum is None and n < p:
            X = self._columns().double()
            return max(named.to_float(torch.linalg.eigvalsh(X @ X.T / n)[-1]), 0.0)
        return max(named.to_float(self._gram_spectrum()[-1]), 0.0)

    @override
    def strong_convexity(self) -> float:
        return min(self._ridge.values())

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


@final
class LeastSquares(_LinearLoss, AbstractQuadraticObjective):
    r"""Least squares, with one output or several.

    .. math:: f(\theta) = \frac{1}{2N} \|X \theta - y\|^2 + \tfrac{\lambda}{2} \|\theta\|^2

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

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, or the ridge is negative.

    Notes
    -----
    The parameter tensors are ``coef``, (n_features,) or (n_outputs, n_features), and perhaps
    ``intercept``. A value or gradient costs n_samples * n_features operations. The strong
    convexity constant is the ridge plus the smallest eigenvalue of ``X.T @ X / n_samples``.

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
    ) -> None:
        X = to_matrix("X", X)
        y = check_length(y, X.shape[0]).to(X)
        if y.ndim > 2:
            raise InvalidParameterError(f"`y` must have 1 or 2 axes, got shape {tuple(y.shape)}.")
        if not named.all_true(torch.isfinite(y)):
            raise InvalidParameterError(
                "`y` must be finite, got NaN or infinity.", "Drop these samples first."
            )
        flat = y.ndim == 1
        self._y = y.unsqueeze(-1) if flat else y
        self._moment: Tensor | None = None
        self._set_up(X, self._y.shape[1], flat, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        return (u - self._y).square().sum((-2, -1)) / (2 * self.n_samples)

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return (u - self._y) / self.n_samples

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return v / self.n_samples

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return torch.full_like(u, 1 / self.n_samples), None

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        if self._gram is None and self._X.shape[1] > DENSE_LIMIT:
            return super().hessian_on(params, index)
        dtype = torch.promote_types(params["coef"].dtype, self._X.dtype)
        return self.curvature_bound().submatrix(index).to(dtype)

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
        if n < p + int(self._fit_intercept) or p > DENSE_LIMIT:
            return least
        return lower_eigenvalue(self._gram_spectrum()) + least

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        quadratic = dual.square().sum((-2, -1)) * self.n_samples / 2
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
            step = max(1, CHUNK // (2 * width * max(width, self.n_samples)))
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
        if p <= DENSE_LIMIT:
            hessian = self._gram_matrix()[column.unsqueeze(2), column.unsqueeze(1)]
            moment = self._moments()[output.unsqueeze(1), column]
        else:
            A = self._gather_columns(column, torch.float64)
            hessian = A @ A.transpose(1, 2) / n
            moment = (A @ self._y.T[output].double().unsqueeze(-1)).squeeze(-1) / n
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
            target = torch.cat([self._y[:, output[row]].double(), torch.zeros_like(below[0])])
            out[row, on] = _minimum_norm(torch.cat([A, below]), target)
        return torch.where(valid, out, torch.zeros_like(out))

    def _moments(self) -> Tensor:
        """Return y^T X / n_samples, (n_outputs, n_columns), in float64."""
        if self._moment is None:
            X = self._columns().double()
            self._moment = self._y.double().T @ X / self.n_samples
        return self._moment


def _minimum_norm(A: Tensor, b: Tensor) -> Tensor:
    """Return the shortest minimizer of ||A x - b||."""
    left, sizes, right = torch.linalg.svd(A, full_matrices=False)
    cutoff = max(A.shape) * torch.finfo(A.dtype).eps * sizes.amax()
    inverse = torch.where(sizes > cutoff, 1 / sizes.clamp_min(1e-300), torch.zeros_like(sizes))
    out: Tensor = right.T @ (inverse * (left.T @ b))
    return out


def _classes(y: Any, n_samples: int) -> tuple[Tensor, Tensor]:
    """Return the sorted labels and the code of every sample."""
    y = check_length(y, n_samples)
    if y.ndim != 1:
        raise InvalidParameterError(
            f"`y` must have one label for each sample, got shape {tuple(y.shape)}."
        )
    if y.is_floating_point() and not named.all_true(torch.isfinite(y)):
        raise InvalidParameterError("`y` must hold labels, got NaN or infinity.")
    classes, codes = torch.unique(y, return_inverse=True)
    if classes.shape[0] < 2:
        raise InvalidParameterError(
            f"`y` must have at least two classes, got only {named.to_list(classes)[0]!r}.",
            "Check the labels; a constant target needs no model.",
        )
    return classes, codes


def _separates(differences: Tensor) -> bool:
    """Return whether some d has ``differences @ d >= 0`` with at least one strict inequality.

    Also True when rounding leaves it open, so that False is safe to build on.
    """
    import numpy as np
    from scipy import optimize

    linprog: Any = optimize.linprog  # type: ignore[attr-defined]

    A = np.asarray(differences.detach().to("cpu", torch.float64))
    A = np.unique(A[np.abs(A).max(axis=1, initial=0.0) > 0], axis=0)
    if A.size == 0:
        return False
    # Neither the length of a row nor that of a column matters.
    A = A / np.abs(A).max(axis=1, keepdims=True)
    A = A / np.where(np.abs(A).max(axis=0) > 0, np.abs(A).max(axis=0), 1.0)
    m, n = A.shape
    # Scale d so that the largest margin is 1: then the sum of margins is at least 1 when such a
    # direction exists, and 0 when there is none.
    result = linprog(
        -A.sum(0),
        A_ub=np.vstack([-A, A]),
        b_ub=np.concatenate([np.zeros(m), np.ones(m)]),
        bounds=[(None, None)] * n,
        method="highs",
    )
    return not (result.status == 0 and -result.fun < 0.5)


@final
class Logistic(_LinearLoss):
    r"""Logistic loss for two classes.

    .. math:: f(\theta) = \frac1N \sum_i \log(1 + e^{-y_i x_i^T \theta})
        + \tfrac{\lambda}{2} \|\theta\|^2

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Labels with exactly two values; the larger is the positive class, y_i = +1.
    ridge : float or mapping of str to float, default=0.0
        The lambda of every entry; a mapping gives one for ``coef`` and one for ``intercept``.
    fit_intercept : bool, default=False
        Whether there is an ``intercept`` tensor; it counts and is ridged like any entry.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, or there are not exactly two classes.

    Notes
    -----
    The parameter tensors are ``coef`` of shape (n_features,) and perhaps ``intercept`` of shape
    (). Without ridge there is no minimizer when the classes are separable (`has_minimizer_on`).

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Logistic(torch.eye(2), torch.tensor([0, 1]))
    >>> round(f.value(f.init_params()).item(), 4)
    0.6931
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        ridge: float | Mapping[str, float] = 0.0,
        fit_intercept: bool = False,
    ) -> None:
        X = to_matrix("X", X)
        self.classes, codes = _classes(y, X.shape[0])
        if self.classes.shape[0] != 2:
            raise InvalidParameterError(
                f"`y` must have exactly two classes, got {self.classes.shape[0]}.",
                "Use `Softmax` for more classes.",
            )
        self._sign = (2 * codes - 1).to(X).unsqueeze(-1)
        self._set_up(X, 1, True, fit_intercept, ridge)

    @override
    def _loss(self, u: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-self._sign * u, threshold=60.0).mean((-2, -1))

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        return -self._sign * torch.sigmoid(-self._sign * u) / self.n_samples

    def _variance(self, u: Tensor) -> Tensor:
        return torch.sigmoid(u) * torch.sigmoid(-u) / self.n_samples

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        return self._variance(u) * v

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._variance(u), None

    @override
    def _output_bound(self) -> Tensor:
        return torch.full((1, 1), 0.25, dtype=torch.float64, device=self._X.device)

    @override
    def _bound_is_attained(self) -> bool:
        return True

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        q = -self._sign * dual * self.n_samples
        # The product of a quotient may miss the ends by an ulp.
        slack = 8 * torch.finfo(q.dtype).eps
        inside = ((q >= -slack) & (q <= 1 + slack)).all(-1).all(-1)
        q = q.clamp(0, 1)
        entropy = torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)
        value = entropy.mean((-2, -1))
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the label of every sample, shape (n,)."""
        return self.classes[(self.predict_scores(params, X) > 0).to(torch.int64)]

    @override
    def _recedes(self, entries: Tensor) -> bool:
        _, column = self._entries(entries)
        return _separates(self._gather_columns(column, torch.float64).T * self._sign)


@final
class Softmax(_LinearLoss):
    r"""Mean cross-entropy of a linear softmax model.

    .. math:: f(\theta) = -\frac1N \sum_i \log p_{i, y_i} + \tfrac{\lambda}{2} \|\theta\|^2,
        \quad p_i = \mathrm{softmax}(\theta x_i)

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features, taken as they are.
    y : Tensor of shape (n_samples,)
        Labels; their sorted values are the classes.
    ridge : float or mapping of str to float, default=0.0
        The lambda of every entry; a mapping gives one for ``coef`` and one for ``intercept``.
    fit_intercept : bool, default=False
        Whether there is an ``intercept`` tensor; it counts and is ridged like any entry.

    Raises
    ------
    InvalidParameterError
        If shapes do not fit, a number is not finite, or there is only one class.

    Notes
    -----
    The parameter tensors are ``coef`` of shape (n_classes, n_features) and perhaps ``intercept``
    of shape (n_classes,). The curvature is bounded by (1/2)(I - 11^T/C) (x) X^T X/N [1]_. Without
    ridge there is no minimizer when the classes are separable (`has_minimizer_on`).

    References
    ----------
    .. [1] D. Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math., 1992.

    Examples
    --------
    >>> import torch, ellzero
    >>> f = ellzero.Softmax(torch.eye(3), torch.tensor([0, 1, 2]))
    >>> round(f.value(f.init_params()).item(), 4)
    1.0986
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        ridge: float | Mapping[str, float] = 0.0,
        fit_intercept: bool = False,
    ) -> None:
        X = to_matrix("X", X)
        self.classes, self._codes = _classes(y, X.shape[0])
        n_classes = int(self.classes.shape[0])
        hot = torch.nn.functional.one_hot(self._codes, n_classes).to(X)
        self._hot = hot.T.contiguous().T
        self._set_up(X, n_classes, False, fit_intercept, ridge)

    # The few classes are reduced along the first of the two axes in memory: a softmax along a
    # last axis of length 3 is seven times slower.

    @override
    def _loss(self, u: Tensor) -> Tensor:
        logs = torch.log_softmax(u.transpose(-1, -2), -2)
        return -(logs * self._hot.T).sum((-2, -1)) / self.n_samples

    @override
    def _loss_grad(self, u: Tensor) -> Tensor:
        p = torch.softmax(u.transpose(-1, -2), -2).transpose(-1, -2)
        return (p - self._hot) / self.n_samples

    @override
    def _value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        # One pass over the logits for both, instead of one for each.
        u = self._predictor(params)
        logs = torch.log_softmax(u.transpose(-1, -2), -2)
        value = -(logs * self._hot.T).sum((-2, -1)) / self.n_samples + self._ridge_value(params)
        dual = logs.exp_().sub_(self._hot.T).div_(self.n_samples).transpose(-1, -2)
        return value, self._add_ridge(self._transpose(dual, params), params)

    @override
    def _loss_curvature(self, u: Tensor, v: Tensor) -> Tensor:
        p = torch.softmax(u.transpose(-1, -2), -2).transpose(-1, -2)
        return p * (v - (p * v).sum(-1, keepdim=True)) / self.n_samples

    @override
    def _curvature(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        p = torch.softmax(u, -1)
        return p / self.n_samples, p / math.sqrt(self.n_samples)

    @override
    def _output_bound(self) -> Tensor:
        c = self._n_outputs
        return (torch.eye(c, dtype=torch.float64, device=self._X.device) - 1.0 / c) / 2

    @override
    def _bound_is_attained(self) -> bool:
        return False

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        p = dual * self.n_samples + self._hot
        slack = 1e3 * torch.finfo(p.dtype).eps
        inside = (p >= -slack).all(-1).all(-1) & ((p.sum(-1) - 1).abs() <= slack).all(-1)
        p = p.clamp_min(0)
        value = torch.special.xlogy(p, p).sum((-2, -1)) / self.n_samples
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the label of every sample, shape (n,)."""
        return self.classes[self.predict_scores(params, X).argmax(-1)]

    @override
    def _recedes(self, entries: Tensor) -> bool:
        output, column = self._entries(entries)
        X = self._gather_columns(column, torch.float64).T
        own = (self._codes.unsqueeze(1) == output).to(X.dtype)
        rows = []
        for c in range(self._n_outputs):
            margin = X * (own - (output == c).to(X.dtype))
            rows.append(margin[self._codes != c])
        return _separates(torch.cat(rows))
