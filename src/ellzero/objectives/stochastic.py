"""Objectives whose gradients are sampled: known noise, or one of many terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.core.problem import (
    AbstractObjective,
    AbstractStochasticObjective,
    AbstractTwiceDifferentiable,
)
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.objectives.module import ModuleLoss, n_samples
from ellzero.tensors import named
from ellzero.tensors.named import Batch
from ellzero.typing import Params


def _twice(name: str, objective: Any) -> AbstractTwiceDifferentiable:
    if not isinstance(objective, AbstractTwiceDifferentiable):
        raise IncompatibleError(
            f"`{name}` must be an objective with second derivatives, got "
            f"{type(objective).__name__}."
        )
    return objective


@final
class NoisyGradient(AbstractTwiceDifferentiable, AbstractStochasticObjective):
    r"""An objective whose sampled gradients carry Gaussian noise of known size.

    Value, gradient and curvature stay exact; only `sampled_grad` is
    :math:`\nabla f(x) + \sigma \circ \xi` with standard normal :math:`\xi`.

    Parameters
    ----------
    objective : AbstractTwiceDifferentiable
        The objective f.
    noise : float or mapping of str to Tensor
        The standard deviation of every entry: one number, or tensors as those of a point.

    Raises
    ------
    InvalidParameterError
        If `noise` is negative, not finite, or does not fit the objective.
    IncompatibleError
        If `objective` has no second derivatives.

    Notes
    -----
    Every row of a batch draws its own noise.

    Examples
    --------
    >>> import torch
    >>> from ellzero.objectives import NoisyGradient, StiffRamps
    >>> noise = {"coef": torch.tensor([1.0, 0.0, 0.0]).double()}
    >>> f = NoisyGradient(StiffRamps(3), noise)
    >>> f.sampled_grad(f.init_params(), torch.Generator().manual_seed(0))["coef"][1:].tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        objective: AbstractTwiceDifferentiable,
        noise: float | Mapping[str, Tensor],
    ) -> None:
        self._objective = _twice("objective", objective)
        zero = objective.init_params()
        if isinstance(noise, Mapping):
            shapes = {n: tuple(t.shape) for n, t in noise.items()}
            wanted = {n: tuple(t.shape) for n, t in zero.items()}
            if shapes != wanted:
                raise InvalidParameterError(
                    f"`noise` must hold tensors of shapes {wanted}, got {shapes}.",
                    "Start from `objective.init_params()`.",
                )
            self._noise = {n: noise[n].to(t) for n, t in zero.items()}
        else:
            self._noise = {n: torch.full_like(t, float(noise)) for n, t in zero.items()}
        for name, tensor in self._noise.items():
            if not named.all_true((tensor >= 0) & torch.isfinite(tensor)):
                raise InvalidParameterError(
                    f"`noise` must be finite and not negative, got an entry of {name!r} that is "
                    "not."
                )

    @override
    def init_params(self) -> Params:
        return self._objective.init_params()

    @override
    def value(self, params: Params) -> Tensor:
        return self._objective.value(params)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        return self._objective.value_and_grad(params)

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        return self._objective.hessian_vector(params, direction)

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        return self._objective.hessian_on(params, index)

    @override
    def sampled_grad(self, params: Params, generator: torch.Generator) -> Params:
        _, grad = self._objective.value_and_grad(params)

        rows = params.size if isinstance(params, Batch) else 1

        def add(g: Tensor, name: str) -> Tensor:
            noise = self._noise[name].reshape(-1)
            # Entries without noise draw nothing: noise is often on few of them.
            index = (noise > 0).nonzero()[:, 0]
            draw = torch.randn(rows, len(index), generator=generator, dtype=torch.float64)
            wide = g.reshape(rows, -1).clone()
            wide[:, index] += (noise[index] * draw.to(noise)).to(g)
            return wide.reshape(g.shape)

        return named.like(params, {n: add(g, n) for n, g in grad.items()})

    @override
    def noise_vector(self, params: Params) -> Params:
        return named.map_tensors(lambda t, s: s.to(t).expand_as(t), params, self._noise)


@final
class FiniteSum(AbstractTwiceDifferentiable, AbstractStochasticObjective):
    r"""A weighted mean of objectives; a sampled gradient is that of one term.

    .. math:: f(x) = \sum_b p_b f_b(x), \quad \sum_b p_b = 1

    Parameters
    ----------
    terms : sequence of AbstractTwiceDifferentiable
        The f_b, on the same variables; for minibatches, the loss of each batch.
    weights : sequence of float or None, default=None
        The p_b up to a factor: the chance of each term, too. None means equal ones.

    Raises
    ------
    InvalidParameterError
        If there is no term, variables differ, or the weights are not positive numbers.
    IncompatibleError
        If a term has no second derivatives.

    Notes
    -----
    A value or gradient costs that of all terms; a sampled gradient costs one term for every row,
    rows that draw the same term together. `noise_vector` is exact and costs a gradient of every
    term.

    Examples
    --------
    >>> import torch, ellzero
    >>> from ellzero.objectives import FiniteSum
    >>> f = FiniteSum([ellzero.Quadratic(torch.eye(1), torch.tensor([c])) for c in (1.0, 3.0)])
    >>> f.noise_vector(f.init_params())["coef"].item()
    1.0
    """

    def __init__(
        self,
        terms: Sequence[AbstractTwiceDifferentiable],
        weights: Sequence[float] | None = None,
    ) -> None:
        self._terms = [_twice("terms", term) for term in terms]
        if not self._terms:
            raise InvalidParameterError("`terms` must hold at least one objective, got none.")
        shapes = [_shapes(term) for term in self._terms]
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise InvalidParameterError(
                    f"`terms` must share their variables, got {shapes[0]} in term 0 and {shape} "
                    f"in term {i}."
                )
        given = [1.0] * len(self._terms) if weights is None else [float(w) for w in weights]
        if len(given) != len(self._terms) or not all(0 < w < float("inf") for w in given):
            raise InvalidParameterError(
                f"`weights` must hold a positive number for each of {len(self._terms)} terms, "
                f"got {given}."
            )
        self._weights = [w / sum(given) for w in given]

    @classmethod
    def from_batches(
        cls,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[tuple[Any, Any]],
    ) -> FiniteSum:
        """Return the loss of a module over the batches of a loader, one term for each.

        Parameters
        ----------
        model : torch.nn.Module
            As for `ModuleLoss`; it is never changed.
        loss_fn : callable
            Called as ``loss_fn(model(X), y)``; the mean loss of one batch.
        batches : iterable of tuple
            Pairs of inputs and targets, kept; weighted by their numbers of samples.

        Returns
        -------
        FiniteSum
            The mean loss over all samples. `current_params` are those of the module.

        Raises
        ------
        InvalidParameterError
            If there is no batch, one is not a pair, or as for `ModuleLoss`.

        Examples
        --------
        >>> import torch
        >>> from ellzero.objectives import FiniteSum
        >>> model = torch.nn.Linear(2, 1).double()
        >>> X, y = torch.eye(3, 2).double(), torch.ones(3, 1).double()
        >>> f = FiniteSum.from_batches(
        ...     model, torch.nn.functional.mse_loss, [(X[:2], y[:2]), (X[2:], y[2:])])
        >>> f.value(f.init_params()).item()
        1.0
        """
        terms, sizes = [], []
        for batch in batches:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise InvalidParameterError(
                    f"`batches` must give pairs of inputs and targets, got "
                    f"{type(batch).__name__}.",
                    "Give a loader of pairs, or a generator that makes them: "
                    "`((b['x'], b['y']) for b in loader)`.",
                )
            sizes.append(float(n_samples(batch[0])))
            terms.append(ModuleLoss(model, loss_fn, batch[0], batch[1]))
        if not terms:
            raise InvalidParameterError("`batches` must give at least one batch, got none.")
        return cls(terms, sizes)

    @property
    def n_terms(self) -> int:
        """Number of terms."""
        return len(self._terms)

    @override
    def init_params(self) -> Params:
        return self._terms[0].init_params()

    def current_params(self) -> Params:
        """Return the present parameters of a module, or zeros."""
        first = self._terms[0]
        current: Callable[[], Params] = getattr(first, "current_params", first.init_params)
        return current()

    @override
    def value(self, params: Params) -> Tensor:
        return named.total([w * t.value(params) for w, t in self._pairs()])

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        values, total = [], None
        for weight, term in self._pairs():
            value, grad = term.value_and_grad(params)
            values.append(weight * value)
            scaled = named.scale(grad, weight)
            total = scaled if total is None else named.add(total, scaled)
        assert total is not None
        return named.total(values), total

    @override
    def hessian_vector(self, params: Params, direction: Params) -> Params:
        products = [named.scale(t.hessian_vector(params, direction), w) for w, t in self._pairs()]
        out = products[0]
        for product in products[1:]:
            out = named.add(out, product)
        return out

    @override
    def hessian_on(self, params: Params, index: Tensor) -> Tensor:
        return named.total([w * t.hessian_on(params, index) for w, t in self._pairs()])

    @override
    def sampled_grad(self, params: Params, generator: torch.Generator) -> Params:
        rows = named.to_batch(params)
        chances = torch.tensor(self._weights, dtype=torch.float64)
        chosen = torch.multinomial(chances, rows.size, replacement=True, generator=generator)
        out = Batch({n: torch.empty_like(t) for n, t in rows.items()})
        for b in sorted(set(named.to_list(chosen))):
            index = (chosen == b).nonzero()[:, 0]
            _, grad = self._terms[b].value_and_grad(named.take(rows, index))
            out = Batch({n: t.index_copy(0, index, grad[n]) for n, t in out.items()})
        return out if named.is_batch(params) else named.row(out, 0)

    @override
    def noise_vector(self, params: Params) -> Params:
        _, mean = self.value_and_grad(params)
        total = named.zeros_like(mean)
        for weight, term in self._pairs():
            _, grad = term.value_and_grad(params)
            total = named.map_tensors(
                lambda t, g, m, w=weight: t + w * (g - m).square(), total, grad, mean
            )
        return named.map_tensors(torch.sqrt, total)

    def _pairs(self) -> Iterable[tuple[float, AbstractTwiceDifferentiable]]:
        return zip(self._weights, self._terms, strict=True)


def _shapes(objective: AbstractObjective) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in objective.init_params().items()}
