"""The loss of any torch module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
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
    X : Tensor, tuple or mapping of str to Tensor
        Inputs: one, a tuple of positional ones, or a mapping of named ones.
    y : Tensor
        Targets; anything that `loss_fn` takes.
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
    the module is in. Networks with kinks have no global curvature bound. Data that are too large
    for one call of the module come in pieces, see `from_batches`.

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
        self._set_up(model, loss_fn, [(_detached(X), _detached(y), 1.0)], ridge)

    @classmethod
    def from_batches(
        cls,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[tuple[Any, Any]],
        ridge: float | Mapping[str, float] = 0.0,
    ) -> ModuleLoss:
        """Return the loss over data in pieces, such as those of a loader.

        Parameters
        ----------
        model : torch.nn.Module
            As for the class.
        loss_fn : callable
            As for the class; the mean over the samples of one piece.
        batches : iterable of tuple
            Pairs of inputs and targets. They are kept, so that the objective does not change when
            the loader shuffles.
        ridge : float or mapping of str to float, default=0.0
            As for the class.

        Returns
        -------
        ModuleLoss
            The mean over all samples: pieces count by their numbers of samples, the length of the
            first axis of the first input. Memory of a gradient is that of the largest piece.

        Raises
        ------
        InvalidParameterError
            If there is no piece, one is not a pair or has no samples, and as for the class.

        Examples
        --------
        >>> import torch, ellzero
        >>> model = torch.nn.Linear(2, 1).double()
        >>> X, y = torch.eye(3, 2).double(), torch.ones(3, 1).double()
        >>> pieces = [(X[:2], y[:2]), (X[2:], y[2:])]
        >>> f = ellzero.ModuleLoss.from_batches(model, torch.nn.functional.mse_loss, pieces)
        >>> f.value(f.init_params()).item()
        1.0
        """
        pieces, sizes = [], []
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InvalidParameterError(
                    f"`batches` must give pairs of inputs and targets, got "
                    f"{type(batch).__name__}.",
                    "Give a loader of pairs, or a generator that makes them: "
                    "`((b['x'], b['y']) for b in loader)`.",
                )
            sizes.append(n_samples(batch[0]))
            pieces.append((_detached(batch[0]), _detached(batch[1])))
        if not pieces:
            raise InvalidParameterError("`batches` must give at least one batch, got none.")
        new = cls.__new__(cls)
        total = sum(sizes)
        data = [(X, y, n / total) for (X, y), n in zip(pieces, sizes, strict=True)]
        new._set_up(model, loss_fn, data, ridge)
        return new

    def _set_up(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: list[tuple[Any, Any, float]],
        ridge: float | Mapping[str, float],
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
        # Inputs, targets and the share of the samples, for each piece.
        self._data = data
        self._n_data = max(sum(t.numel() for t in _inputs(X).values()) for X, *_ in data)
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

    def _pieces(self) -> list[Callable[[dict[str, Tensor]], Tensor]]:
        """Return functions of a point that add up to the objective."""
        return [functools.partial(self._piece_value, piece) for piece in range(len(self._data))]

    def _piece_value(self, piece: int, params: dict[str, Tensor]) -> Tensor:
        dtype = next(iter(params.values())).dtype
        # Copies of buffers and frozen parameters: the module may write to what it is called with.
        fixed = {n: self._cast(t.detach().clone(), dtype) for n, t in self._fixed()}
        X, y, share = self._data[piece]
        X, y = self._cast(X, dtype), self._cast(y, dtype)
        output = torch.func.functional_call(self._model, {**fixed, **params}, *_arguments(X))
        value = share * self._loss_fn(output, y)
        for name, tensor in params.items():
            if self._ridge[name]:
                value = value + 0.5 * share * self._ridge[name] * tensor.square().sum()
        return value

    def _fixed(self) -> list[tuple[str, Tensor]]:
        frozen = [(n, p) for n, p in self._model.named_parameters() if n not in self._start]
        return [*self._model.named_buffers(), *frozen]

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        """Return data of the module's type in the type of the point, anything else as it is."""
        own = next(iter(self._start.values())).dtype
        if isinstance(value, tuple):
            return tuple(self._cast(part, dtype) for part in value)
        if isinstance(value, dict):
            return {key: self._cast(part, dtype) for key, part in value.items()}
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
            parts = (self._over_rows(piece, params) for piece in self._pieces())
            total: Tensor = _sum_of(parts)
        return total

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        def of_piece(piece: Callable[..., Tensor]) -> tuple[Tensor, Params]:
            grad, value = self._over_rows(torch.func.grad_and_value(piece), params)
            return value.detach(), {n: g.detach() for n, g in grad.items()}

        value, grad = _sum_of(map(of_piece, self._pieces()))
        return value, named.like(params, grad)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        def of_piece(piece: Callable[..., Tensor]) -> Params:
            def product(point: dict[str, Tensor], along: dict[str, Tensor]) -> Any:
                # Reverse over reverse: every module that can be trained has it.
                def slope(here: dict[str, Tensor]) -> Tensor:
                    grad = torch.func.grad(piece)(here)
                    return torch.stack([(grad[n] * along[n]).sum() for n in grad]).sum()

                return torch.func.grad(slope)(point)

            out = self._over_rows(product, params, direction)
            return {n: t.detach() for n, t in out.items()}

        return named.like(params, _sum_of(map(of_piece, self._pieces())))

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


def _sum_of(parts: Iterable[Any]) -> Any:
    """Return the sum of nested tensors of the same structure."""
    add = functools.partial(torch.utils._pytree.tree_map, torch.add)
    return functools.reduce(add, parts)


def _inputs(X: Any) -> dict[Any, Tensor]:
    """Return the tensors among the inputs of one call."""
    args, named_args = _arguments(X)
    given: list[tuple[Any, Any]] = [*enumerate(args), *named_args.items()]
    return {key: part for key, part in given if isinstance(part, Tensor)}


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (tuple, list)):
        return tuple(map(_detached, value))
    if isinstance(value, Mapping):
        return {key: _detached(part) for key, part in value.items()}
    return value


def _arguments(X: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that inputs of any kind mean."""
    if isinstance(X, Mapping):
        return (), dict(X)
    return (X if isinstance(X, tuple) else (X,)), {}


def split_sample(sample: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that a sample means.

    Parameters
    ----------
    sample : Tensor, tuple or mapping of str to object
        One input, a tuple of inputs, or a mapping of keywords.

    Returns
    -------
    tuple of (tuple, dict)
        The arguments; one of the two is empty.

    Raises
    ------
    InvalidParameterError
        If `sample` is something else, or empty.
    """
    empty = isinstance(sample, (tuple, Mapping))
    if isinstance(sample, Tensor) or (empty and len(sample)):
        return _arguments(sample)
    raise InvalidParameterError(
        f"`sample` must be a tensor, a tuple of inputs or a mapping of keywords, got "
        f"{'an empty one' if empty else type(sample).__name__}.",
        "Give what the model will be called with.",
    )


def n_samples(X: Any) -> int:
    """Return the number of samples of one batch of inputs: the length of the first one.

    Raises
    ------
    InvalidParameterError
        If the first input is no tensor, or has no sample.
    """
    first = next(iter(_inputs(_detached(X)).values()), None)
    if first is None or first.ndim == 0 or not first.shape[0]:
        raise InvalidParameterError(
            "The first input of every batch must be a tensor with at least one sample, got "
            f"{type(X).__name__ if first is None else f'shape {tuple(first.shape)}'}."
        )
    return first.shape[0]
