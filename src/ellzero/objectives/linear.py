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
from ellzero.objectives.quadratic import solve_on
from ellzero.tensors import named, supports
from ellzero.tensors.named import Batch
from ellzero.typing import Masks, Params

# Numbers that one temporary may hold; 2**25 in float64 are 256 MiB.
CHUNK = 2**25


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
        coef = params["coef"]
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
        if dual.ndim == 3 and dual.shape[0] > 1:
            size, n, outputs = dual.shape
            flat = dual.transpose(1, 2).reshape(size * outputs, n) @ self._X
            coef = flat.reshape(size, outputs, -1)
        else:
            coef = dual.transpose(-1, -2) @ self._X
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
        """Return w and q with Hessian diag(w_i) - q_i q_i^T in sample i; both of the shape of u."""

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

    @override
    def value(self, params: Params) -> Tensor:
        return self._loss(self._predictor(params)) + self._ridge_value(params)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        u = self._predictor(params)
        value = self._loss(u) + self._ridge_value(params)
        return value, self._add_ridge(self._transpose(self._loss_grad(u), params), params)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
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

    def _ridge_of(self, index: Tensor) -> Tensor:
        """Return the ridge of flattened entries."""
        flat = named.flatten(self.ridge_weights())
        return flat[index]

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        size, k = index.shape
        n = self.n_samples
        per_row = n * max(1, k) * 2
        step = max(1, CHUNK // per_row)
        X = self._columns()
        blocks = []
        for start in range(0, size, step):
            rows = named.take(params, slice(start, start + step))
            here = index[start : start + step]
            blocks.append(self._hessian_block(X, rows, here))
        return torch.cat(blocks)

    def _hessian_block(self, X: Tensor, params: Batch, index: Tensor) -> Tensor:
        output, column = self._entries(index)
        weights, factor = self._curvature(self._predictor(params))
        gathered = X.T[column]
        pick = output.unsqueeze(1).expand(-1, weights.shape[1], -1)
        weighted = gathered * weights.gather(2, pick).transpose(1, 2)
        block = weighted @ gathered.transpose(1, 2)
        if self._n_outputs > 1:
            block = block * (output.unsqueeze(2) == output.unsqueeze(1))
        if factor is not None:
            scaled = gathered * factor.gather(2, pick).transpose(1, 2)
            block = block - scaled @ scaled.transpose(1, 2)
        return block + torch.diag_embed(self._ridge_of(index))

    # Constants -------------------------------------------------------------------------------

    def _gram_matrix(self) -> Tensor:
        if self._gram is None:
            X = self._columns()
            self._gram = X.T @ X / self.n_samples
        return self._gram

    def _gram_spectrum(self) -> Tensor:
        if self._spectrum is None:
            self._spectrum = torch.linalg.eigvalsh(self._gram_matrix())
        return self._spectrum

    @override
    def smoothness(self) -> float:
        left = named.to_float(torch.linalg.eigvalsh(self._output_bound())[-1])
        largest = max(named.to_float(self._gram_spectrum()[-1]), 0.0)
        return left * largest * (1 + 1e-12) + max(self._ridge.values())

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
            ridge=named.flatten(self.ridge_weights()),
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
        return True


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
        return self.curvature_bound().submatrix(index)

    @override
    def _output_bound(self) -> Tensor:
        return torch.eye(self._n_outputs).to(self._X)

    @override
    def _bound_is_attained(self) -> bool:
        return True

    @override
    def strong_convexity(self) -> float:
        return lower_eigenvalue(self._gram_spectrum()) + min(self._ridge.values())

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        quadratic = dual.square().sum((-2, -1)) * self.n_samples / 2
        return quadratic + (dual * self._y).sum((-2, -1))

    @override
    def minimize_on(self, masks: Masks) -> Params:
        zero = self.init_params()
        batch = named.to_batch(masks)
        index, valid = supports.support_index(batch)
        _, grad = self.value_and_grad(zero)
        target = torch.where(valid, -named.flatten(grad)[index], torch.zeros_like(self._X[0, 0]))
        block = self.curvature_bound().submatrix(index)
        values = solve_on(block, target, index, valid)
        out = supports.scatter(values, index, valid, zero)
        return out if named.is_batch(masks) else named.row(out, 0)


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
    """Return whether some d has ``differences @ d >= 0`` with at least one strict inequality."""
    import numpy as np
    from scipy.optimize import linprog

    A = np.asarray(named.to_list(differences), dtype=float)
    if A.size == 0:
        return False
    A = A / max(float(np.abs(A).max()), 1e-300)
    m, n = A.shape
    # Maximize the sum of margins, each capped at 1: positive exactly when a direction exists.
    result = linprog(
        -np.concatenate([np.zeros(n), np.ones(m)]),
        A_ub=np.hstack([-A, np.eye(m)]),
        b_ub=np.zeros(m),
        bounds=[(None, None)] * n + [(0.0, 1.0)] * m,
        method="highs",
    )
    return bool(result.status == 0 and -result.fun > 1e-6) or result.status == 3


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
        return torch.full((1, 1), 0.25).to(self._X)

    @override
    def _bound_is_attained(self) -> bool:
        return True

    @override
    def conjugate(self, dual: Tensor) -> Tensor:
        q = -self._sign * dual * self.n_samples
        inside = ((q >= 0) & (q <= 1)).all(-1).all(-1)
        q = q.clamp(0, 1)
        entropy = torch.special.xlogy(q, q) + torch.special.xlogy(1 - q, 1 - q)
        value = entropy.mean((-2, -1))
        return torch.where(inside, value, torch.full_like(value, math.inf))

    def predict(self, params: Params, X: Tensor) -> Tensor:
        """Return the label of every sample, shape (n,)."""
        return self.classes[(self.predict_scores(params, X) > 0).to(torch.int64)]

    @override
    def has_minimizer_on(self, masks: Masks) -> bool:
        flat = named.flatten(masks)
        if named.all_true(self._ridge_of(flat.nonzero().flatten()) > 0):
            return True
        _, column = self._entries(flat.nonzero().flatten())
        return not _separates((self._sign * self._columns())[:, column])


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
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
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
        return ((torch.eye(c, dtype=torch.float64) - 1.0 / c) / 2).to(self._X)

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
    def has_minimizer_on(self, masks: Masks) -> bool:
        flat = named.flatten(masks)
        entries = flat.nonzero().flatten()
        if named.all_true(self._ridge_of(entries) > 0):
            return True
        output, column = self._entries(entries)
        X = self._columns()[:, column]
        rows = []
        for c in range(self._n_outputs):
            own = self._codes.unsqueeze(1) == output
            other = (output == c).unsqueeze(0)
            difference = X * (own.to(X.dtype) - other.to(X.dtype))
            rows.append(difference[self._codes != c])
        return not _separates(torch.cat(rows))
