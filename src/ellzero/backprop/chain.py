"""The derivative of a network as a product of Jacobian matrices, one for each layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from typing_extensions import override

from ellzero.backprop.operators import (
    DENSE_LIMIT,
    AbstractJacobian,
    DenseJacobian,
    ResidualJacobian,
    size_of,
)
from ellzero.backprop.rules import LOSSES, RULES, LayerParts, Residual, Rule
from ellzero.errors import InvalidParameterError
from ellzero.validation import check_choice, check_integer, check_real

Mode = Literal["shared", "naive"]

# A product of layers whose largest singular value moves by more than this factor is reported.
STEADY = 100.0


@dataclass(frozen=True, slots=True)
class LayerJacobian:
    """One layer: its shapes and its derivatives at the sample.

    Parameters
    ----------
    name : str
        Where it is in the model, as `named_modules` has it.
    kind : str
        Its class.
    input_shape : tuple of int
        Shape of its input for one sample.
    output : Tensor
        Its output for the sample, float64.
    input : AbstractJacobian
        Derivative of the flattened output with respect to the flattened input.
    params : mapping of str to AbstractJacobian
        Derivatives with respect to its parameters, by the names that `named_parameters` has;
        parameters are flattened in row-major order, rows of a matrix stacked, as torch does.
    inner : tuple of LayerJacobian
        The layers inside a residual connection, whose parameters are theirs.
    kinks : tuple of str
        Sentences about entries at which it has no derivative.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output: Tensor
    input: AbstractJacobian
    params: Mapping[str, AbstractJacobian] = field(default_factory=dict)
    inner: tuple[LayerJacobian, ...] = ()
    kinks: tuple[str, ...] = ()

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of its output for one sample."""
        return tuple(self.output.shape)


@dataclass(frozen=True, slots=True)
class Factor:
    """One matrix of a product, with what it is the derivative of.

    Parameters
    ----------
    name : str
        Such as "loss", "2" for a layer with respect to its input, "0; weight" for a parameter.
    jacobian : AbstractJacobian
        The matrix.
    """

    name: str
    jacobian: AbstractJacobian


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of all parameters, and what they took.

    Parameters
    ----------
    values : mapping of str to Tensor
        In the shapes of the parameters.
    multiplications : int
        Multiplications of numbers.
    products : int
        Products of a row with a Jacobian.
    """

    values: Mapping[str, Tensor]
    multiplications: int
    products: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two ways to the same derivatives differ, block by block.

    Parameters
    ----------
    reference : str
        What is compared with.
    absolute, relative : mapping of str to float
        Largest difference of each block, and the same over the largest entry of the reference.
    tol : float
        Relative difference that is allowed.
    """

    reference: str
    absolute: Mapping[str, float]
    relative: Mapping[str, float]
    tol: float

    @property
    def holds(self) -> bool:
        """Whether every block agrees."""
        return all(error <= self.tol for error in self.relative.values())

    def __str__(self) -> str:
        """Return the verdict and the blocks, one in a line."""
        worst = max(self.relative.values(), default=0.0)
        verdict = "agree" if self.holds else "DIFFER"
        lines = [
            f"Jacobian products and {self.reference} {verdict}: largest relative difference "
            f"{worst:.1e}, allowed {self.tol:.0e}"
        ]
        lines += [f"  {name:<20} {error:.1e}" for name, error in self.relative.items()]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of the layers and of their products from the output down.

    Parameters
    ----------
    names : tuple of str
        The layers, the last one first.
    factors : tuple of Tensor or None
        Singular values of each layer's Jacobian with respect to its input, descending; None for a
        matrix that is too large to write out.
    prefixes : tuple of Tensor
        Those of the product of all layers from the last one down to this one.
    """

    names: tuple[str, ...]
    factors: tuple[Tensor | None, ...]
    prefixes: tuple[Tensor, ...]

    @property
    def growth(self) -> float:
        """Factor a layer by which the largest singular value of the prefix changes."""
        first, last = float(self.prefixes[0][0]), float(self.prefixes[-1][0])
        if first <= 0 or last <= 0:
            return 0.0
        return float((last / first) ** (1 / max(len(self.names) - 1, 1)))

    @property
    def diagnosis(self) -> str:
        """Whether gradients vanish or explode on their way down, in words."""
        first, last = float(self.prefixes[0][0]), float(self.prefixes[-1][0])
        if last == 0:
            return "The product of all layers is zero: no gradient reaches the input."
        words = (
            f"the largest singular value of the product of all {len(self.names)} layers is "
            f"{last:.3g}"
        )
        rate = f"a factor of {self.growth:.3g} a layer"
        if last * STEADY < first:
            return f"Gradients vanish: {words}, {rate}."
        if last > STEADY * first:
            return f"Gradients explode: {words}, {rate}."
        return f"Gradients neither vanish nor explode: {words}, {rate}."


@dataclass(frozen=True, slots=True)
class RestrictedJacobian:
    """The columns of a Jacobian that belong to a support.

    Parameters
    ----------
    matrix : Tensor of shape (outputs, s)
        Derivatives of the output, or of the loss, with respect to the parameters of the support.
    columns : tuple of (str, int)
        Parameter and flattened position of every column.
    """

    matrix: Tensor
    columns: tuple[tuple[str, int], ...]

    @property
    def singular_values(self) -> Tensor:
        """Singular values, descending."""
        values: Tensor = torch.linalg.svdvals(self.matrix)
        return values

    @property
    def gauss_newton_smoothness(self) -> float:
        """Largest eigenvalue of J^T J: the curvature of half the squared error on the support.

        Exact where the outputs equal the targets, and everywhere for a network that is linear in
        these parameters; elsewhere the second derivatives of the outputs come on top.
        """
        return float(self.singular_values[0]) ** 2 if self.matrix.numel() else 0.0


class JacobianChain(Sequence[LayerJacobian]):
    """The layers of a network at one sample, and the products of their Jacobians.

    Made by `layer_jacobians`. It is the sequence of the layers, the first one first.

    Parameters
    ----------
    layers : tuple of LayerJacobian
        The layers.
    loss : DenseJacobian or None
        Row of derivatives of the loss with respect to the output.
    value : Tensor
        The loss, or the output.
    model : torch.nn.Module
        The network, in float64.
    loss_fn : torch.nn.Module or None
        The loss.
    x : Tensor
        The sample, in float64.
    y : Tensor or None
        The target.
    loss_kinks : tuple of str, default=()
        Sentences about entries at which the loss has no derivative.
    """

    def __init__(
        self,
        layers: tuple[LayerJacobian, ...],
        loss: DenseJacobian | None,
        value: Tensor,
        model: nn.Module,
        loss_fn: nn.Module | None,
        x: Tensor,
        y: Tensor | None,
        loss_kinks: tuple[str, ...] = (),
    ) -> None:
        self.layers = layers
        self.loss = loss
        self.value = value
        self._model, self._loss_fn, self._x, self._y = model, loss_fn, x, y
        self._loss_kinks = loss_kinks
        self._paths = dict(_paths(layers))
        self._shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}

    @overload
    def __getitem__(self, index: int) -> LayerJacobian: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerJacobian]: ...
    @override
    def __getitem__(self, index: int | slice) -> LayerJacobian | Sequence[LayerJacobian]:
        return self.layers[index]

    @override
    def __len__(self) -> int:
        return len(self.layers)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the layers."""
        return tuple(self._paths)

    @property
    def n_outputs(self) -> int:
        """Number of rows of a product: 1 with a loss, else that of the network."""
        if self.loss is not None:
            return 1
        return size_of(self.layers[-1].output_shape)

    @property
    def kinks(self) -> tuple[str, ...]:
        """Sentences about points without derivative; the value that torch takes is used there."""
        return (
            *(
                f"Layer {layer.name!r}: {said}."
                for layer in _all_layers(self.layers)
                for said in layer.kinks
            ),
            *(f"Loss: {said}." for said in self._loss_kinks),
        )

    def _top(self) -> list[Factor]:
        return [] if self.loss is None else [Factor("loss", self.loss)]

    def factors(self, block: str | None = None) -> tuple[Factor, ...]:
        """Return the matrices whose product is the derivative, from the loss to the parameter.

        Parameters
        ----------
        block : str or None, default=None
            A parameter, one of `blocks`; None means the input of the network.

        Returns
        -------
        tuple of Factor
            The matrices, in the order in which they are multiplied.

        Raises
        ------
        InvalidParameterError
            If there is no such parameter.
        """
        if block is None:
            return (*self._top(), *(Factor(y.name, y.input) for y in reversed(self.layers)))
        if block not in self._paths:
            raise InvalidParameterError(
                f"Unknown parameter {block!r}.", f"The parameters are {', '.join(self._paths)}."
            )
        return (*self._top(), *self._paths[block])

    def product(self, block: str | None = None) -> Tensor:
        """Return the derivative, multiplied out from the left.

        Parameters
        ----------
        block : str or None, default=None
            As for `factors`.

        Returns
        -------
        Tensor of shape (outputs, entries)
            Of the loss, or of the output where there is no loss.

        Raises
        ------
        InvalidParameterError
            If there is no such parameter, or the matrix is too large to be written out.
        """
        factors = self.factors(block)
        entries = self.n_outputs * factors[-1].jacobian.shape[1]
        if entries > DENSE_LIMIT:
            raise InvalidParameterError(
                f"The derivative with respect to {block!r} has {entries} entries, too many to be "
                "written out.",
                "Give a `loss`, or use `restricted` for some of its columns.",
            )
        rows = torch.eye(self.n_outputs, dtype=torch.float64)
        for factor in factors:
            rows = factor.jacobian.vjp(rows)
        return rows

    def _row(self) -> Tensor:
        """Return the row from which gradients start."""
        if self.loss is None and self.n_outputs != 1:
            raise InvalidParameterError(
                f"A gradient needs a number, got an output of shape "
                f"{self.layers[-1].output_shape}.",
                "Pass `loss` and `y` to `layer_jacobians`, or use `product`.",
            )
        return torch.ones(1, 1, dtype=torch.float64)

    def gradient(self, block: str, mode: Mode = "shared") -> Tensor:
        """Return the gradient of the loss with respect to one parameter, in its shape.

        Parameters
        ----------
        block : str
            One of `blocks`.
        mode : {"shared", "naive"}, default="shared"
            As for `gradients`; the numbers are the same.

        Returns
        -------
        Tensor
            The gradient.

        Raises
        ------
        InvalidParameterError
            If there is no such parameter or no loss.
        """
        self.factors(block)
        return self.gradients(mode).values[block]

    def gradients(self, mode: Mode = "shared") -> Gradients:
        """Return the gradients of the loss with respect to all parameters.

        Parameters
        ----------
        mode : {"shared", "naive"}, default="shared"
            "shared" is back-propagation: the product from the loss down to a layer is kept and
            used for all layers below. "naive" multiplies the whole chain afresh for every
            parameter.

        Returns
        -------
        Gradients
            The gradients, and the operations counted while they were made.

        Raises
        ------
        InvalidParameterError
            If there is no loss and more than one output, or `mode` is unknown.
        """
        check_choice("mode", mode, ["shared", "naive"])
        counter = _Counter()
        start = self._row()
        found: dict[str, Tensor] = {}
        if mode == "naive":
            for block in self.blocks:
                row = start
                for factor in self.factors(block):
                    row = counter.vjp(factor.jacobian, row)
                found[block] = row
        else:
            row = start if self.loss is None else counter.vjp(self.loss, start)
            _descend(self.layers, row, counter, found)
        values = {name: found[name].reshape(self._shapes[name]) for name in self.blocks}
        return Gradients(values, counter.multiplications, counter.products)

    def multiplications(
        self, block: str | None = None, *, order: Literal["loss", "input"] = "loss"
    ) -> int:
        """Return what one product costs, by the end from which it is multiplied.

        Parameters
        ----------
        block : str or None, default=None
            As for `factors`.
        order : {"loss", "input"}, default="loss"
            Whether a row goes down from the loss, or whole matrices go up from the input.

        Returns
        -------
        int
            Multiplications, with the structure of each matrix used.
        """
        check_choice("order", order, ["loss", "input"])
        factors = self.factors(block)
        if order == "loss":
            first = factors[0].jacobian
            return first.shape[0] * sum(f.jacobian.cost for f in factors[1:])
        return factors[-1].jacobian.shape[1] * sum(f.jacobian.cost for f in factors[:-1])

    def restricted(self, masks: Mapping[str, Tensor] | None = None) -> RestrictedJacobian:
        """Return the columns of the derivative that belong to a support.

        Parameters
        ----------
        masks : mapping of str to Tensor of bool or None, default=None
            Entries of the parameters, by name; parameters without a mask are left out. None means
            the entries that differ from zero.

        Returns
        -------
        RestrictedJacobian
            The s columns: what restricted smoothness on this support needs.

        Raises
        ------
        InvalidParameterError
            If a mask is unknown or has another shape.

        Notes
        -----
        Only s columns of each parameter's Jacobian are ever written out.
        """
        params = dict(self._model.named_parameters())
        if masks is None:
            masks = {name: params[name] != 0 for name in self.blocks}
        for name, mask in masks.items():
            shape = self._shapes.get(name)
            if shape is None:
                self.factors(name)
            if not isinstance(mask, Tensor) or tuple(mask.shape) != shape:
                given = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
                raise InvalidParameterError(
                    f"`masks[{name!r}]` must be a tensor of shape {shape}, got {given}."
                )
        pieces, columns = [], []
        for name in self.blocks:
            if name not in masks:
                continue
            index = masks[name].reshape(-1).nonzero()[:, 0]
            *above, last = self.factors(name)
            piece = last.jacobian.columns(index)
            for factor in reversed(above):
                piece = factor.jacobian.jvp(piece)
            pieces.append(piece)
            columns += [(name, int(i)) for i in index]
        empty = torch.zeros(self.n_outputs, 0, dtype=torch.float64)
        return RestrictedJacobian(torch.cat([empty, *pieces], 1), tuple(columns))

    def _evaluate(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return loss or flattened output by torch itself."""
        output: Tensor = torch.func.functional_call(self._model, dict(params), (x.unsqueeze(0),))
        if self._loss_fn is None:
            return output.reshape(-1)
        assert self._y is not None
        value: Tensor = self._loss_fn(output, self._y.unsqueeze(0))
        return value.reshape(1)

    def check_against_autograd(self, tol: float = 1e-12) -> Agreement:
        """Compare every derivative with that of torch's automatic differentiation.

        Parameters
        ----------
        tol : float, default=1e-12
            Relative difference that is allowed.

        Returns
        -------
        Agreement
            The differences with respect to the input and to every parameter.
        """
        check_real("tol", tol, 0.0)
        params = dict(self._model.named_parameters())
        x = self._x.clone().requires_grad_()
        out = self._evaluate(params, x)
        used = [x, *(params[name] for name in self.blocks)]
        ours = {"input": self.product()}
        if self.loss is not None or self.n_outputs == 1:
            ours |= {n: g.reshape(1, -1) for n, g in self.gradients().values.items()}
        else:
            ours |= {name: self.product(name) for name in self.blocks}
        rows = [torch.autograd.grad(o, used, retain_graph=True, allow_unused=True) for o in out]
        absolute, relative = {}, {}
        for i, (name, mine) in enumerate(ours.items()):
            theirs = torch.stack(
                [
                    torch.zeros_like(used[i]).reshape(-1) if g is None else g.reshape(-1)
                    for g in (row[i] for row in rows)
                ]
            )
            absolute[name], relative[name] = _difference(mine, theirs)
        return Agreement("automatic differentiation", absolute, relative, tol)

    def check_differences(
        self,
        tol: float = 1e-6,
        *,
        step: float = 1e-5,
        n_directions: int = 3,
        generator: torch.Generator | None = None,
    ) -> Agreement:
        """Compare products with central differences along random directions.

        Parameters
        ----------
        tol : float, default=1e-6
            Relative difference that is allowed.
        step : float, default=1e-5
            Length of the step along a direction of unit length.
        n_directions : int, default=3
            Directions for each parameter.
        generator : torch.Generator or None, default=None
            Source of the directions; None means one seeded with 0.

        Returns
        -------
        Agreement
            The differences with respect to the input and to every parameter. Near points without
            derivative they are large.
        """
        check_real("tol", tol, 0.0)
        check_real("step", step, 0.0, open_low=True)
        check_integer("n_directions", n_directions, 1)
        generator = generator or torch.Generator().manual_seed(0)
        params = {n: p.detach() for n, p in self._model.named_parameters()}
        absolute, relative = {}, {}
        with torch.no_grad():
            for name in ("input", *self.blocks):
                here = self._x if name == "input" else params[name]
                along = torch.randn(
                    n_directions, here.numel(), generator=generator, dtype=torch.float64
                )
                along = along / along.norm(dim=1, keepdim=True)
                theirs = []
                for direction in along:
                    ends = []
                    for sign in (1.0, -1.0):
                        there = here + sign * step * direction.reshape(here.shape)
                        if name == "input":
                            ends.append(self._evaluate(params, there))
                        else:
                            ends.append(self._evaluate({**params, name: there}, self._x))
                    theirs.append((ends[0] - ends[1]) / (2 * step))
                ours = along.T
                for factor in reversed(self.factors(None if name == "input" else name)):
                    ours = factor.jacobian.jvp(ours)
                absolute[name], relative[name] = _difference(ours.T, torch.stack(theirs))
        return Agreement("central differences", absolute, relative, tol)

    def spectrum(self) -> Spectrum:
        """Return singular values of every layer and of every product from the output down.

        Returns
        -------
        Spectrum
            The values and a diagnosis. The loss is left out.

        Notes
        -----
        A layer with an n by m Jacobian without structure costs n m min(n, m) operations.
        """
        names, factors, prefixes = [], [], []
        rows = torch.eye(size_of(self.layers[-1].output_shape), dtype=torch.float64)
        for layer in reversed(self.layers):
            rows = layer.input.vjp(rows)
            names.append(layer.name)
            prefixes.append(torch.linalg.svdvals(rows))
            small = layer.input.shape[0] * layer.input.shape[1] <= DENSE_LIMIT // 8
            factors.append(layer.input.singular_values() if small else None)
        return Spectrum(tuple(names), tuple(factors), tuple(prefixes))

    def render(self, block: str | None = None, width: int = 100) -> str:
        """Return one product in words, with the shapes and the structure of its matrices.

        Parameters
        ----------
        block : str or None, default=None
            As for `factors`.
        width : int, default=100
            Columns of the terminal; longer products go on below.

        Returns
        -------
        str
            Three lines for every stretch of the product: matrices, shapes, structures.
        """
        check_integer("width", width, 1)
        top = "loss" if self.loss is not None else "output"
        head = f"d {top} / d {'input' if block is None else block} ="
        cells = [
            (f"J({f.name})", _shape(f.jacobian.shape), f.jacobian.structure)
            for f in self.factors(block)
        ]
        stretches: list[list[tuple[str, str, str]]] = [[]]
        used = len(head)
        for cell in cells:
            room = max(map(len, cell)) + 2
            if stretches[-1] and used + room > width:
                stretches.append([])
                used = len(head)
            stretches[-1].append(cell)
            used += room
        lines = []
        for i, stretch in enumerate(stretches):
            widths = [max(map(len, cell)) for cell in stretch]
            for k in range(3):
                line = "  ".join(c[k].ljust(w) for c, w in zip(stretch, widths, strict=True))
                start = head if i == 0 and k == 0 else ""
                lines.append(f"{start:<{len(head)}} {line}".rstrip())
        return "\n".join(lines)

    def __str__(self) -> str:
        """Return the layers and every product, for a terminal."""
        value = (
            f"loss {float(self.value):.6g}"
            if self.loss is not None
            else f"output of shape {tuple(self.value.shape)}"
        )
        lines = [f"{len(self.layers)} layers, {len(self.blocks)} parameters, {value}", ""]
        for layer in _all_layers(self.layers):
            shapes = f"{_shape(layer.input_shape)} -> {_shape(layer.output_shape)}"
            lines.append(f"{layer.name:<12} {layer.kind:<14} {shapes:<24} {layer.input!r}")
        for block in self.blocks:
            lines += ["", self.render(block)]
        return "\n".join([*lines, *([""] if self.kinks else []), *self.kinks])

    def summary(self) -> dict[str, Any]:
        """Return a summary that `ellzero.report.to_html` and `print_summary` show.

        Returns
        -------
        dict
            Plain values: the layers, the products with their shapes, singular values, agreement
            with automatic differentiation, and points without derivative.
        """
        agreement = self.check_against_autograd()
        spectrum = self.spectrum()
        rows = [
            [
                layer.name,
                layer.kind,
                _shape(layer.input_shape),
                _shape(layer.output_shape),
                f"{layer.input.shape[0]} x {layer.input.shape[1]}",
                layer.input.structure,
            ]
            for layer in _all_layers(self.layers)
        ]
        products = [
            [
                block,
                " · ".join(f"J({f.name})" for f in self.factors(block)),
                " · ".join(f"({_shape(f.jacobian.shape)})" for f in self.factors(block)),
                self.factors(block)[-1].jacobian.structure,
                self.factors(block)[-1].jacobian.dense_bytes,
                agreement.relative[block],
            ]
            for block in self.blocks
        ]
        values = [
            [name, None if f is None else float(f[0]), float(p[0]), float(p[-1])]
            for name, f, p in zip(spectrum.names, spectrum.factors, spectrum.prefixes, strict=True)
        ]
        tables = [
            {
                "title": "Layers",
                "columns": ["layer", "kind", "input", "output", "Jacobian", "structure"],
                "rows": rows,
            },
            {
                "title": "The derivative with respect to every parameter",
                "columns": [
                    "parameter",
                    "product",
                    "shapes",
                    "last matrix",
                    "its bytes written out",
                    "off autograd",
                ],
                "rows": products,
            },
            {
                "title": "Singular values, from the output down",
                "columns": ["layer", "its largest", "product's largest", "product's smallest"],
                "rows": values,
                "note": spectrum.diagnosis,
            },
        ]
        if self.kinks:
            tables.append(
                {
                    "title": "Points without derivative",
                    "columns": ["where"],
                    "rows": [[said] for said in self.kinks],
                    "note": "The value that torch takes is used.",
                }
            )
        chart = {
            "kind": "line_chart",
            "options": {
                "title": "Largest singular value of the product from the output down",
                "series": [
                    {
                        "name": "product",
                        "x": list(range(1, len(values) + 1)),
                        "y": [v[2] for v in values],
                    }
                ],
                "x_label": "layers multiplied",
                "y_label": "largest singular value (log scale)",
                "log_y": True,
                "integer_x": True,
            },
        }
        return {
            "title": "Back-propagation as a product of Jacobians",
            "headline": (
                f"{len(self.layers)} layers, {len(self.blocks)} parameters; "
                f"{str(agreement).splitlines()[0]}"
            ),
            "tables": tables,
            "figures": [chart] if len(values) > 1 else [],
        }


class _Counter:
    """Products that were made, and their multiplications."""

    def __init__(self) -> None:
        self.multiplications = 0
        self.products = 0

    def vjp(self, jacobian: AbstractJacobian, rows: Tensor) -> Tensor:
        self.multiplications += rows.shape[0] * jacobian.cost
        self.products += 1
        return jacobian.vjp(rows)


def _descend(
    layers: Sequence[LayerJacobian],
    row: Tensor,
    counter: _Counter,
    found: dict[str, Tensor],
    below: bool = False,
) -> Tensor:
    """Walk from the last layer to the first with one shared row; return it, `below` them all."""
    for i, layer in enumerate(reversed(layers)):
        for name, jacobian in layer.params.items():
            found[name] = counter.vjp(jacobian, row)
        needed = below or i < len(layers) - 1
        if layer.inner:
            lower = _descend(layer.inner, row, counter, found, needed)
            row = row + lower if needed else row
        elif needed:
            row = counter.vjp(layer.input, row)
    return row


def _paths(layers: Sequence[LayerJacobian]) -> Iterator[tuple[str, tuple[Factor, ...]]]:
    """Give every parameter with the matrices from the last layer down to it."""
    for i, layer in enumerate(layers):
        above = tuple(Factor(y.name, y.input) for y in reversed(layers[i + 1 :]))
        for name, jacobian in layer.params.items():
            short = name.rpartition(".")[2]
            yield name, (*above, Factor(f"{layer.name}; {short}", jacobian))
        for name, path in _paths(layer.inner):
            yield name, (*above, *path)


def _all_layers(layers: Sequence[LayerJacobian]) -> Iterator[LayerJacobian]:
    for layer in layers:
        yield layer
        yield from _all_layers(layer.inner)


def _difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Return the largest difference, and the same over the largest entry."""
    error = float((ours - theirs.detach()).abs().max()) if ours.numel() else 0.0
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    return error, error / scale if scale > 0 else error


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape) or "1"


def _supported(rules: Mapping[type[nn.Module], Rule]) -> str:
    return ", ".join(sorted({kind.__name__ for kind in [*rules, nn.Sequential, Residual]}))


def _rule_of(name: str, module: nn.Module, rules: Mapping[type[nn.Module], Rule]) -> Rule:
    """Return the rule of a layer; subclasses count while they keep the forward."""
    for kind in type(module).__mro__:
        if kind in rules and type(module).forward is getattr(kind, "forward", None):
            return rules[kind]
    raise InvalidParameterError(
        f"Layer {name!r} ({type(module).__name__}) has no Jacobian rule.",
        "Write the model as a `torch.nn.Sequential` of supported layers, with "
        "`ellzero.backprop.Residual` for x + f(x), or give a rule in `rules`. Supported: "
        f"{_supported(rules)}.",
    )


def _check_layer(name: str, module: nn.Module) -> None:
    """Raise when the derivative of a layer is not that of a function of one sample."""
    batch = isinstance(module, nn.modules.batchnorm._BatchNorm)
    random = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    if module.training and (batch or random):
        why = "its output depends on the batch" if batch else "its output is random"
        raise InvalidParameterError(
            f"Layer {name!r} ({type(module).__name__}) is in training mode: {why}.",
            "Call `model.eval()` first.",
        )
    if parametrize.is_parametrized(module):
        raise InvalidParameterError(
            f"Layer {name!r} ({type(module).__name__}) computes its parameters from others.",
            "Call `torch.nn.utils.parametrize.remove_parametrizations` first.",
        )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _walk(
    module: nn.Module, name: str, x: Tensor, rules: Mapping[type[nn.Module], Rule]
) -> tuple[tuple[LayerJacobian, ...], Tensor]:
    """Return the layers of a module and its output for the sample."""
    if type(module).forward is nn.Sequential.forward and isinstance(module, nn.Sequential):
        layers: list[LayerJacobian] = []
        # Not `named_children`, which leaves a layer out that is used twice.
        for key, child in module._modules.items():
            assert child is not None
            found, x = _walk(child, _join(name, key), x, rules)
            layers += found
        return tuple(layers), x
    label = name or "model"
    _check_layer(label, module)
    if isinstance(module, Residual):
        inner, out = _walk(module.body, _join(name, "body"), x, rules)
        if out.shape != x.shape:
            raise InvalidParameterError(
                f"The body of layer {label!r} must keep the shape, got {tuple(x.shape)} and "
                f"{tuple(out.shape)}."
            )
        jacobian = ResidualJacobian([y.input for y in reversed(inner)], x.numel())
        shape = tuple(x.shape)
        return (LayerJacobian(label, "Residual", shape, x + out, jacobian, inner=inner),), x + out
    rule = _rule_of(label, module, rules)
    try:
        parts: LayerParts = rule(module, x)
    except (RuntimeError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidParameterError(
            f"Layer {label!r} ({type(module).__name__}) does not take a sample of shape "
            f"{tuple(x.shape)}: {reason}",
            "Give `x` as one sample, without the axis of the batch.",
        ) from None
    layer = LayerJacobian(
        label,
        type(module).__name__,
        tuple(x.shape),
        parts.output.detach(),
        parts.input,
        {_join(name, key): jacobian for key, jacobian in parts.params.items()},
        kinks=parts.kinks,
    )
    return (layer,), parts.output.detach()


def _check_tied(model: nn.Module) -> None:
    """Raise when one parameter is used in two layers: its gradient is a sum of products."""
    seen: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise InvalidParameterError(
                f"Parameters {seen[id(parameter)]!r} and {name!r} are the same tensor; its "
                "derivative is a sum of products, not one.",
                "Give each layer its own parameters; the gradient of the shared one is the sum.",
            )
        seen[id(parameter)] = name


def layer_jacobians(
    model: nn.Module,
    x: Tensor,
    loss: nn.Module | None = None,
    y: Tensor | None = None,
    *,
    rules: Mapping[type[nn.Module], Rule] | None = None,
) -> JacobianChain:
    r"""Return the Jacobian matrices of the layers of a network at one sample.

    .. math:: \frac{\partial \ell}{\partial \theta_l} =
        J_\ell \, [D_L W_L] \cdots [D_{l+1} W_{l+1}] \, D_l \, [I \otimes a_{l-1}^T \mid I]

    Parameters
    ----------
    model : torch.nn.Module
        A supported layer, a `Sequential` of them (nested ones are walked through) and `Residual`
        connections. It is copied to float64 and never changed.
    x : Tensor
        One sample, without the axis of the batch.
    loss : torch.nn.Module or None, default=None
        The loss, such as ``CrossEntropyLoss()`` or `HalfSquaredError`. None leaves the chain at
        the output.
    y : Tensor or None, default=None
        Its target for the sample, without the axis of the batch; needed with `loss`.
    rules : mapping of type to callable or None, default=None
        Rules for layers of your own: called as ``rule(layer, x)`` they return `LayerParts`.

    Returns
    -------
    JacobianChain
        The layers in order, their products, gradients, checks and a rendering.

    Raises
    ------
    InvalidParameterError
        If a layer or loss has no rule (the message names it and lists what is supported), depends
        on the batch or is random in its present mode, shares parameters with another one, or if
        the sample does not fit.

    Notes
    -----
    Matrices keep their structure: the Jacobian of a dense layer with respect to its weight is
    :math:`I \otimes a^T`, stored as the row a; of the first layer of a 784-300-100-10 network it
    would take 564 MB written out. Where a layer has no derivative (ReLU at 0, ties in a maximum)
    the value that torch takes is used and `JacobianChain.kinks` says so.

    References
    ----------
    .. [1] S. Damadi, G. Moharrer, M. Cham, "The backpropagation algorithm for a math student",
       arXiv:2301.09977.

    Examples
    --------
    >>> import torch
    >>> from ellzero.backprop import layer_jacobians
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Tanh())
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[0.0, 1.0]]))
    >>> chain = layer_jacobians(model, torch.tensor([3.0, 0.0]))
    >>> print(chain.render("0.weight"))
    d output / d 0.weight = J(1)      J(0; weight)
                            1 x 1     1 x 2
                            diagonal  I_1 (x) row of 2
    >>> chain.gradient("0.weight").tolist(), chain.check_against_autograd().holds
    ([[3.0, 0.0]], True)
    """
    if not isinstance(model, nn.Module):
        raise InvalidParameterError(
            f"`model` must be a torch.nn.Module, got {type(model).__name__}."
        )
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise InvalidParameterError(
            f"`x` must be a tensor of floating-point numbers, got {given}."
        )
    if not bool(torch.isfinite(x).all()):
        raise InvalidParameterError("`x` must be finite, got NaN or infinity.")
    if (loss is None) != (y is None):
        missing, given = ("y", "loss") if y is None else ("loss", "y")
        raise InvalidParameterError(f"`{missing}` must be given with `{given}`, got None.")
    _check_tied(model)
    twin = copy.deepcopy(model).double()
    for parameter in twin.parameters():
        parameter.requires_grad_(True)
    x = x.detach().double()
    with torch.no_grad():
        layers, output = _walk(twin, "", x, {**RULES, **(rules or {})})
    if not layers:
        raise InvalidParameterError("`model` must have at least one layer, got none.")
    if loss is None:
        return JacobianChain(layers, None, output, twin, None, x, None)
    assert y is not None
    row, value, kinks, target = _loss_row(loss, output, y)
    jacobian = DenseJacobian(row.reshape(1, -1), "row")
    return JacobianChain(layers, jacobian, value, twin, loss, x, target, kinks)


def _loss_row(
    loss: nn.Module, output: Tensor, y: Tensor
) -> tuple[Tensor, Tensor, tuple[str, ...], Tensor]:
    """Return the derivatives of the loss, its value, its kinks and the target in float64."""
    rule = LOSSES.get(type(loss))
    if rule is None:
        known = ", ".join(sorted(kind.__name__ for kind in LOSSES))
        raise InvalidParameterError(
            f"Loss {type(loss).__name__} has no Jacobian rule.", f"Supported: {known}."
        )
    if not isinstance(y, Tensor):
        raise InvalidParameterError(f"`y` must be a tensor, got {type(y).__name__}.")
    target = y.detach().double() if y.is_floating_point() else y.detach()
    labels = target.ndim == 0 and not target.is_floating_point()
    if not labels and target.shape != output.shape:
        raise InvalidParameterError(
            f"`y` must have the shape {tuple(output.shape)} of the output, got "
            f"{tuple(target.shape)}.",
            "For classes, give the label as a 0-d tensor of integers.",
        )
    with torch.no_grad():
        row, kinks = rule(loss, output, target)
        value = loss(output.unsqueeze(0), target.unsqueeze(0))
    return row, value, kinks, target


def batch_gradients(
    model: nn.Module,
    X: Tensor,
    loss: nn.Module,
    y: Tensor,
    *,
    mode: Mode = "shared",
    rules: Mapping[type[nn.Module], Rule] | None = None,
) -> Gradients:
    """Return the gradients of the mean loss over a batch: the mean of the samples' products.

    Parameters
    ----------
    model : torch.nn.Module
        As for `layer_jacobians`.
    X : Tensor of shape (n_samples, ...)
        Samples.
    loss : torch.nn.Module
        The loss.
    y : Tensor of shape (n_samples, ...)
        Targets.
    mode : {"shared", "naive"}, default="shared"
        As for `JacobianChain.gradients`.
    rules : mapping of type to callable or None, default=None
        As for `layer_jacobians`.

    Returns
    -------
    Gradients
        Means of the gradients; operations are summed over the samples.

    Raises
    ------
    InvalidParameterError
        If numbers of samples differ or are zero, and as for `layer_jacobians`.

    Examples
    --------
    >>> import torch
    >>> from ellzero.backprop import HalfSquaredError, batch_gradients
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = model.weight.fill_(1.0)
    >>> X = torch.tensor([[1.0], [3.0]])
    >>> found = batch_gradients(model, X, HalfSquaredError(), torch.zeros(2, 1))
    >>> found.values["weight"].item()
    5.0
    """
    if len(X) == 0 or len(X) != len(y):
        raise InvalidParameterError(
            f"`X` and `y` must have the same positive number of samples, got {len(X)} and "
            f"{len(y)}."
        )
    total: dict[str, Tensor] = {}
    multiplications = products = 0
    for sample, target in zip(X, y, strict=True):
        one = layer_jacobians(model, sample, loss, target, rules=rules).gradients(mode)
        multiplications += one.multiplications
        products += one.products
        for name, grad in one.values.items():
            total[name] = grad if name not in total else total[name] + grad
    return Gradients({n: g / len(X) for n, g in total.items()}, multiplications, products)
