"""The loss of any torch module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.core.problem import AbstractTwiceDifferentiable
from ellzero.errors import InvalidParameterError
from ellzero.objectives.inputs import check_ridge
from ellzero.tensors import named
from ellzero.typing import Params

# Numbers that a vectorized call may hold, by a rough count.
CHUNK = 2**25


@final
class ModuleLoss(AbstractTwiceDifferentiable):
    r"""Loss of a torch module on fixed data, as a function of its parameters.

    .. math:: f(\theta) = \mathrm{loss}(\mathrm{model}_\theta(X), y)
        + \tfrac{\lambda}{2} \|\theta\|^2

    Parameters
    ----------
    model : torch.nn.Module
        Any module. Its parameters that require gradients are the variables, tied ones once, named
        as ``model.named_parameters()`` names them; buffers and frozen parameters stay as they are.
        The module itself is never changed.
    loss_fn : callable
        Called as ``loss_fn(model(X), y)``; returns the mean loss as a 0-d tensor.
    X : Tensor
        Inputs.
    y : Tensor
        Targets.
    ridge : float or mapping of str to float, default=0.0
        The lambda of every entry; a mapping gives one for the tensors it names.

    Raises
    ------
    InvalidParameterError
        If the module has no parameters, is random or changes its buffers in its present mode, or
        the loss is not a 0-d tensor.

    Notes
    -----
    A batch of points is one vectorized call (`torch.func.vmap`); modules that cannot be vectorized
    are called once for each point. The loss is evaluated in the mode (training or evaluation) that
    the module is in. Networks with kinks have no global curvature bound.

    Examples
    --------
    >>> import torch, ellzero
    >>> model = torch.nn.Linear(2, 1).double()
    >>> X, y = torch.eye(2).double(), torch.ones(2, 1).double()
    >>> f = ellzero.ModuleLoss(model, torch.nn.functional.mse_loss, X, y)
    >>> f.value(f.init_params()).item()
    1.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        X: Any,
        y: Any,
        ridge: float | Mapping[str, float] = 0.0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidParameterError(
                f"`model` must be a torch.nn.Module, got {type(model).__name__}."
            )
        if not callable(loss_fn):
            raise InvalidParameterError(
                f"`loss_fn` must be callable, got {type(loss_fn).__name__}.",
                "Pass a function such as `torch.nn.functional.cross_entropy`.",
            )
        for name, part in model.named_modules():
            changing = isinstance(part, nn.modules.batchnorm._BatchNorm)
            random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
            if part.training and (changing or random):
                raise InvalidParameterError(
                    f"`model` must give the same output every time, got {name!r} "
                    f"({type(part).__name__}) in training mode.",
                    "Call `model.eval()` first.",
                )
        self._model = model
        self._loss_fn = loss_fn
        self._X = X.detach() if isinstance(X, Tensor) else X
        self._y = y.detach() if isinstance(y, Tensor) else y
        self._n_data = X.numel() if isinstance(X, Tensor) else 0
        self._start = {
            n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
        }
        if not self._start:
            raise InvalidParameterError(
                "`model` must have at least one parameter that requires a gradient, got none."
            )
        self._ridge = check_ridge(ridge, self._start)
        self._vectorizes = True
        value = self.value(self._start)
        if value.ndim != 0:
            raise InvalidParameterError(
                f"`loss_fn` must return a 0-d tensor, got shape {tuple(value.shape)}.",
                "Return the mean over samples.",
            )

    def _point_value(self, params: dict[str, Tensor]) -> Tensor:
        dtype = next(iter(params.values())).dtype
        # Copies of buffers and frozen parameters: the module may write to what it is called with.
        fixed = {n: self._cast(t.detach().clone(), dtype) for n, t in self._fixed()}
        X, y = self._cast(self._X, dtype), self._cast(self._y, dtype)
        output = torch.func.functional_call(self._model, {**fixed, **params}, (X,))
        value = self._loss_fn(output, y)
        for name, tensor in params.items():
            if self._ridge[name]:
                value = value + 0.5 * self._ridge[name] * tensor.square().sum()
        return value

    def _fixed(self) -> list[tuple[str, Tensor]]:
        frozen = [(n, p) for n, p in self._model.named_parameters() if n not in self._start]
        return [*self._model.named_buffers(), *frozen]

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return data of the module's type in the type of the point, anything else as it is."""
        own = next(iter(self._start.values())).dtype
        if isinstance(value, Tensor) and value.is_floating_point() and dtype != own:
            return value.to(torch.promote_types(value.dtype, dtype))
        return value

    def _over_rows(self, function: Callable[..., Any], *points: Params) -> Any:
        """Apply a function of points to one point, or to every row of batches."""
        plain = [dict(p) for p in points]
        if not named.is_batch(points[0]):
            return function(*plain)
        size = next(iter(plain[0].values())).shape[0]
        if size > 1 and self._vectorizes:
            try:
                # Activations are unknown; a few times the data and the point is a fair guess.
                width = 8 * self._n_data + 4 * named.size(self._start)
                chunk = max(1, CHUNK // max(width, 1))
                return torch.func.vmap(function, chunk_size=chunk)(*plain)
            except (RuntimeError, NotImplementedError):
                # Some modules refuse vectorization; remember and go row by row.
                self._vectorizes = False
        rows = [function(*({n: t[i] for n, t in p.items()} for p in plain)) for i in range(size)]
        return torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *rows)

    @override
    def init_params(self) -> Params:
        return {n: torch.zeros_like(t) for n, t in self._start.items()}

    def current_params(self) -> Params:
        """Return copies of the parameters that the module had at construction."""
        return {n: t.clone() for n, t in self._start.items()}

    @override
    def value(self, params: Params) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._over_rows(self._point_value, params)
        return out

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        function = torch.func.grad_and_value(self._point_value)
        grad, value = self._over_rows(function, params)
        grad = {n: g.detach() for n, g in grad.items()}
        return value.detach(), named.like(params, grad)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        def product(point: dict[str, Tensor], along: dict[str, Tensor]) -> Any:
            # Reverse over reverse: every module that can be trained has it.
            def slope(here: dict[str, Tensor]) -> Tensor:
                grad = torch.func.grad(self._point_value)(here)
                return torch.stack([(grad[n] * along[n]).sum() for n in grad]).sum()

            return torch.func.grad(slope)(point)

        out = self._over_rows(product, params, direction)
        return named.like(params, {n: t.detach() for n, t in out.items()})

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        size, k = index.shape
        n = named.size(self._start)
        step = max(1, CHUNK // (4 * n))
        rows = []
        for i in range(size):
            parts = []
            for piece in torch.split(index[i], step):
                units = torch.zeros(piece.shape[0], n, device=index.device)
                units = units.scatter(1, piece.unsqueeze(1), 1.0).to(next(iter(params.values())))
                points = named.expand(named.row(params, i), piece.shape[0])
                product = self.hessian_vector(points, named.unflatten(units, self._start))
                parts.append(named.flatten(product)[:, index[i]])
            block = torch.cat(parts) if parts else named.flatten(params).new_zeros(k, k)
            rows.append((block + block.T) / 2)
        return torch.stack(rows)
