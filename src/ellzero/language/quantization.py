r"""One layer on few levels: rounding, clipped ranges, and errors carried to other weights.

The weight W of a layer with calibration inputs of second moment H, perhaps pruned before, is
replaced by V on the grid :math:`V_{ij} = s_{ig} (q_{ij} - z_{ig})` with

.. math:: \min_q\ \mathrm{tr}\,(W - V) H (W - V)^\top \quad\text{with}\quad V = 0
    \text{ where } W = 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import (
    IncompatibleError,
    InvalidParameterError,
    NonFiniteError,
    did_you_mean,
)
from ellzero.language.layers import metric_form
from ellzero.nn.export.quantized import BITS, DTYPES, QuantizedWeight, round_near, round_up, spread
from ellzero.validation import check_choice, check_integer, check_real

SCHEMES = ("affine", "symmetric")
# Shares of the range that are tried: few weights lie at its ends.
RATIOS = tuple(1.0 - 0.025 * k for k in range(29))
# Columns whose changes are carried to the others in one product.
BLOCK = 64
# Numbers in one batch of factorizations: 64 MB in single precision.
BATCH = 1 << 24


@dataclass(frozen=True, slots=True)
class Quantizer:
    r"""How the weights of a layer are put on few levels.

    Parameters
    ----------
    n_bits : int, default=8
        Bits of a code, in [2, 8]: ``2 ** n_bits`` levels.
    scheme : {"affine", "symmetric"}, default="symmetric"
        Levels from the least to the largest weight of a row or group, zero always among them; or
        as many above zero as below, which leaves one of the ``2 ** n_bits`` unused.
    group_size : int or None, default=None
        Consecutive inputs of a row that share a scale, such as 32, 64 or 128. The last group of a
        row may be shorter. None means a scale for each row.
    clip_search : bool, default=True
        Whether ranges are shortened where that lowers the squared error, each input weighted by
        its second moment. Without it, no weight moves by more than half a step when rounded.
    feedback : bool, default=True
        Whether the error of each rounded weight is carried to the nonzero weights of its row that
        are not rounded yet (GPTQ), by the exact inverse on the support of the row.
    n_passes : int, default=2
        Rounds after that: the scales by least squares, then each code to its best level, given
        all others. They never raise the error.
    keep_count : bool, default=False
        Whether a nonzero weight may not be rounded to zero: it then takes the nearest level beside
        zero, and the number of nonzeros stays as it was.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.

    See Also
    --------
    quantize_layer : Quantizes one layer.
    compress : Quantizes a model, pruned or not.

    Examples
    --------
    >>> from ellzero.language import Quantizer
    >>> Quantizer(4, "affine", group_size=64).n_levels
    16
    """

    n_bits: int = 8
    scheme: str = "symmetric"
    group_size: int | None = None
    clip_search: bool = True
    feedback: bool = True
    n_passes: int = 2
    keep_count: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_integer("n_bits", self.n_bits, *BITS)
        check_choice("scheme", self.scheme, SCHEMES)
        if self.group_size is not None:
            check_integer("group_size", self.group_size, 1)
        check_integer("n_passes", self.n_passes, 0)

    @property
    def n_levels(self) -> int:
        """Levels of the grid."""
        return int(2**self.n_bits) - int(self.scheme == "symmetric")

    @property
    def lowest(self) -> int:
        """Smallest code."""
        return int(self.scheme == "symmetric")

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


KNOWN = {"int8": Quantizer(8), "int4": Quantizer(4, group_size=64)}


def read_quantizer(quantize: str | Quantizer | None) -> Quantizer | None:
    """Return the quantizer of a name.

    Parameters
    ----------
    quantize : {"int8", "int4"}, Quantizer or None
        "int8" means `Quantizer(8)`, "int4" means `Quantizer(4, group_size=64)`.

    Returns
    -------
    Quantizer or None
        None for None.

    Raises
    ------
    InvalidParameterError
        If it is anything else.
    """
    if quantize is None or isinstance(quantize, Quantizer):
        return quantize
    if isinstance(quantize, str) and quantize in KNOWN:
        return KNOWN[quantize]
    near = did_you_mean(quantize, KNOWN) if isinstance(quantize, str) else ""
    raise InvalidParameterError(
        f"`quantize` must be one of {', '.join(map(repr, KNOWN))} or a `Quantizer`, got "
        f"{quantize!r}.{near}",
        "For other bits, schemes or groups, give `Quantizer(n_bits, scheme, group_size)`.",
    )


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A layer on few levels, and what that cost.

    Parameters
    ----------
    weight : Tensor of shape (n_outputs, n_inputs)
        The weight on its levels, in the dtype of the old one.
    quantized : QuantizedWeight
        Its codes, scales and zero points.
    n_nonzero : int
        Nonzeros of `weight`, counted.
    n_rounded : int
        Nonzeros of the old weight that became zero.
    value : float
        Damped squared error ``tr (W - V) H (W - V)'`` against the old weight W, in double
        precision; the plain squared error where no Gram matrix is given.
    scale : float
        The same of the layer with all weights zero.
    start_value : float
        The value when every weight takes its nearest level. `value` is never above.
    seconds : float
        Processor time.
    """

    weight: Tensor
    quantized: QuantizedWeight
    n_nonzero: int
    n_rounded: int
    value: float
    scale: float
    start_value: float
    seconds: float

    @property
    def relative_error(self) -> float:
        """Error relative to the energy of the layer's output."""
        return self.value / self.scale if self.scale > 0.0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors."""
        return {
            "n_bits": self.quantized.n_bits,
            "group_size": self.quantized.group_size,
            "n_nonzero": self.n_nonzero,
            "n_rounded": self.n_rounded,
            "relative_error": self.relative_error,
            "start_relative_error": self.start_value / self.scale if self.scale > 0.0 else 0.0,
            "seconds": self.seconds,
        }


def quantize_layer(
    weight: Tensor,
    gram: Tensor | None = None,
    quantizer: str | Quantizer = "int8",
    *,
    damping: float = 0.01,
) -> QuantizedLayer:
    r"""Put the nonzero weights of a layer on few levels; zeros stay exactly zero.

    Parameters
    ----------
    weight : Tensor of shape (n_outputs, n_inputs)
        The weight, pruned or not, in any float dtype.
    gram : Tensor of shape (n_inputs, n_inputs) or None, default=None
        Sum of ``x x'`` over the calibration inputs, of any scale. None means that all inputs are
        alike and uncorrelated: then errors cannot be carried.
    quantizer : {"int8", "int4"} or Quantizer, default="int8"
        The levels, and how they are found.
    damping : float, default=0.01
        Added to the diagonal of `gram`, relative to its mean.

    Returns
    -------
    QuantizedLayer
        The weight, its codes and the error.

    Raises
    ------
    IncompatibleError
        If the weight is no matrix of floats, is quantized already, or does not go with `gram`.
    NonFiniteError
        If the weight or the Gram matrix has a NaN or an infinity.
    InvalidParameterError
        If a parameter is out of range, the damped Gram matrix is singular, or the weights are too
        large for a scale in float32.

    See Also
    --------
    Quantizer : The options.
    prune_layer : Makes the zeros.

    Notes
    -----
    Affine levels are those of [1]_: with lo and hi the least and largest weight of a group and 0,
    and Q + 1 levels, :math:`s = (hi - lo) / Q`, :math:`z = \mathrm{round}(-lo / s)`,
    :math:`q = \mathrm{clip}(\mathrm{round}(w / s) + z, 0, Q)`; symmetric ones have
    :math:`s = \max |w| / (2^{b-1} - 1)`. Scales are rounded up to 8 significant bits, so that they
    take 16 bits in a file; the step grows by less than one percent. Without clip search, feedback
    and passes, :math:`|w - v| \le s / 2` holds for every weight.

    A weight can become zero when it is rounded. The support never grows, so a budget of nonzeros
    holds after as before; `n_rounded` tells how many were lost, `Quantizer.keep_count` forbids it.

    If W has the exact least-squares values on its support, as `prune_layer` leaves it, then the
    error against the dense weight is the sum of both: pruning and quantization can be judged, and
    done, one after the other.

    Feedback is the recursion of GPTQ [2]_, which is nearest-plane rounding in the metric of H. On
    a pruned row it runs on the matrix of the row's own support, so that no error goes to a weight
    that stays zero. That costs :math:`O(s^3)` for a row with s nonzeros, :math:`O(n_{in}^3)` once
    for a dense layer; a pass costs :math:`O(n_{out} n_{in}^2)`.

    References
    ----------
    .. [1] Jacob et al., "Quantization and Training of Neural Networks for Efficient
       Integer-Arithmetic-Only Inference", 2018. arXiv 1712.05877.
    .. [2] Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for
       Generative Pre-trained Transformers", 2023. arXiv 2210.17323.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language import quantize_layer
    >>> layer = quantize_layer(torch.tensor([[127.0, 0.0, -63.6, 2.2]]), quantizer="int8")
    >>> layer.weight.tolist(), layer.n_nonzero
    ([[127.0, 0.0, -64.0, 2.0]], 3)
    """
    start = time.process_time()
    damping = check_real("damping", damping, low=0.0)
    found = read_quantizer(quantizer)
    if found is None:
        raise InvalidParameterError(
            "`quantizer` must be given, got None.", 'Give "int8", "int4" or a `Quantizer`.'
        )
    _check(weight, gram)
    metric = _metric(weight, gram, damping)
    wide = weight.detach().to(torch.float64)
    grid = _Grid.fit(wide, None if metric is None else metric.diagonal(), found)
    start_codes = grid.codes(wide)
    start_value = _value(wide, grid.stored(start_codes, weight.dtype), metric)
    best, best_value = (grid, start_codes), start_value
    if metric is not None:
        for candidate in _improved(wide, metric, grid, start_codes):
            value = _value(wide, candidate[0].stored(candidate[1], weight.dtype), metric)
            if value < best_value:
                best, best_value = candidate, value
    grid, codes = best
    quantized = QuantizedWeight(
        codes.to(torch.uint8),
        grid.scales,
        grid.zeros.to(torch.uint8),
        found.n_bits,
        grid.group_size,
        weight.dtype,
    )
    new = quantized.dequantize()
    n_nonzero = int(torch.count_nonzero(new))
    return QuantizedLayer(
        new,
        quantized,
        n_nonzero,
        int(torch.count_nonzero(wide)) - n_nonzero,
        _value(wide, new.to(torch.float64), metric),
        _value(wide, torch.zeros_like(wide), metric),
        start_value,
        time.process_time() - start,
    )


def few_levels(weight: Tensor) -> bool:
    """Return whether the rows of a weight repeat their values, as after quantization.

    Parameters
    ----------
    weight : Tensor of shape (n_outputs, n_inputs)
        The weight.

    Returns
    -------
    bool
        Whether over a tenth of the nonzeros equal another one of their row. Float32 weights of a
        trained layer almost never do.
    """
    ordered = weight.detach().to(torch.float64).sort(dim=1).values
    same = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != 0.0)
    return int(same.sum()) > 0.1 * int(torch.count_nonzero(ordered))


def _check(weight: Tensor, gram: Tensor | None) -> None:
    if isinstance(weight, QuantizedWeight) or getattr(weight, "is_quantized", False):
        raise IncompatibleError(
            "The weight is quantized already.",
            "Quantize the weight it came from; `dequantize()` gives floats, with its errors.",
        )
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.dtype not in DTYPES:
        what = (
            f"{weight.dtype} of shape {tuple(weight.shape)}"
            if isinstance(weight, Tensor)
            else type(weight).__name__
        )
        raise IncompatibleError(
            f"`weight` must be a matrix of floats, got {what}.",
            "Flatten all axes but the first.",
        )
    if gram is not None and gram.shape != (weight.shape[1], weight.shape[1]):
        raise IncompatibleError(
            f"A weight of shape {tuple(weight.shape)} does not go with a Gram matrix of shape "
            f"{tuple(gram.shape)}.",
            "The weight is (n_outputs, n_inputs), the Gram matrix (n_inputs, n_inputs).",
        )
    for name, tensor in (("weight", weight), ("Gram matrix", gram)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(
                f"The {name} of the layer has a NaN or an infinity, which has no level.",
                "Look for the layer that made it, or at the calibration data.",
            )


def _metric(weight: Tensor, gram: Tensor | None, damping: float) -> Tensor | None:
    """Return the damped Gram matrix, dead inputs apart from the others."""
    if gram is None or not weight.numel():
        return None
    _, metric, unit, _ = metric_form(weight, gram, damping)
    return metric * (unit[:, None] * unit)


def _value(weight: Tensor, new: Tensor, metric: Tensor | None) -> float:
    error = weight - new
    image = error if metric is None else error @ metric
    return float((image * error).sum())


@dataclass(frozen=True, slots=True)
class _Grid:
    """Levels of every row and group, for the support of one weight."""

    scales: Tensor
    zeros: Tensor
    support: Tensor
    group_size: int
    quantizer: Quantizer

    @staticmethod
    def fit(weight: Tensor, energy: Tensor | None, quantizer: Quantizer) -> _Grid:
        """Return levels that cover the weight, or a shorter range that serves it better."""
        n_inputs = weight.shape[1]
        size = min(quantizer.group_size or n_inputs, n_inputs) or 1
        n_groups = -(-n_inputs // size)
        support = weight != 0.0
        padded = torch.nn.functional.pad(weight, (0, n_groups * size - n_inputs))
        grouped = padded.reshape(weight.shape[0], n_groups, size)
        if quantizer.scheme == "affine":
            low, high = grouped.amin(2).clamp(max=0.0), grouped.amax(2).clamp(min=0.0)
        else:
            high = grouped.abs().amax(2)
            low = -high
        best: _Grid | None = None
        errors = torch.full_like(high, torch.inf)
        for ratio in RATIOS if quantizer.clip_search else RATIOS[:1]:
            grid = _Grid(*_levels(ratio * low, ratio * high, quantizer), support, size, quantizer)
            if best is None:
                best = grid
                if not quantizer.clip_search:
                    break
            square = (weight - grid.values(grid.codes(weight))).square()
            if energy is not None:
                square = square * energy
            square = torch.nn.functional.pad(square, (0, n_groups * size - n_inputs))
            error = square.reshape(grouped.shape).sum(2)
            better = error < errors
            errors = torch.where(better, error, errors)
            best = _Grid(
                torch.where(better, grid.scales, best.scales),
                torch.where(better, grid.zeros, best.zeros),
                support,
                size,
                quantizer,
            )
        assert best is not None
        return best

    def _wide(self, parts: Tensor) -> Tensor:
        return spread(parts, self.group_size, self.support.shape[1])

    def codes(self, weight: Tensor) -> Tensor:
        """Return the code of the nearest level of every entry, the zero point off the support."""
        return _nearest(
            weight,
            self._wide(self.scales).to(weight.dtype),
            self._wide(self.zeros),
            self.support,
            self.quantizer,
        )

    def values(self, codes: Tensor) -> Tensor:
        """Return the levels of codes, in double precision."""
        steps = (codes - self._wide(self.zeros)).to(torch.float64)
        return steps * self._wide(self.scales).to(torch.float64)

    def stored(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the levels as a weight of this dtype has them."""
        return self.values(codes).to(dtype).to(torch.float64)


def _levels(low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """Return scales and zero points of ranges that have zero inside."""
    top = 2**quantizer.n_bits - 1
    if quantizer.scheme == "affine":
        exact = (high - low) / top
    else:
        exact = high / (2 ** (quantizer.n_bits - 1) - 1)
    # Any step serves a group of zeros.
    exact = torch.where(exact > 0.0, exact, 1.0)
    scales = round_up(exact)
    if not bool(torch.isfinite(scales).all()):
        raise InvalidParameterError(
            "The weight has values too large for a scale in float32.", "Scale the weight down."
        )
    if quantizer.scheme == "affine":
        zeros = (-low / scales.to(torch.float64)).round().clamp(0, top).to(torch.int16)
    else:
        zeros = torch.full(scales.shape, 2 ** (quantizer.n_bits - 1), dtype=torch.int16)
        zeros = zeros.to(scales.device)
    return scales, zeros


def _nearest(
    weight: Tensor, scales: Tensor, zeros: Tensor, support: Tensor, quantizer: Quantizer
) -> Tensor:
    """Return the nearest codes, int16."""
    top, lowest = 2**quantizer.n_bits - 1, quantizer.lowest
    # Clipped as floats: a target far outside has no integer.
    steps = (weight / scales).round().clamp(-512, 512).to(torch.int16)
    codes = (steps + zeros).clamp(lowest, top)
    if quantizer.keep_count:
        below = (weight < 0.0) & (zeros > lowest) | (zeros >= top)
        beside = torch.where(below, zeros - 1, zeros + 1)
        codes = torch.where(codes == zeros, beside, codes)
    return torch.where(support, codes, zeros)


# Better codes than the nearest ------------------------------------------------------------------


def _improved(
    weight: Tensor, metric: Tensor, grid: _Grid, codes: Tensor
) -> Iterator[tuple[_Grid, Tensor]]:
    """Yield grids and codes, most of them better than those before."""
    quantizer = grid.quantizer
    if quantizer.feedback:
        codes = _feedback(weight, metric, grid)
        yield grid, codes
    for k in range(quantizer.n_passes):
        if k:
            grid = _refit_scales(weight, metric, grid, codes)
            yield grid, codes
        codes = _descend(weight, metric, grid, codes)
        yield grid, codes


def _feedback(weight: Tensor, metric: Tensor, grid: _Grid) -> Tensor:
    """Return codes found one input after the other, errors carried to what is not rounded yet.

    With the Cholesky factor U of the metric on the support, ``U'U``, the error is the sum over k
    of ``(U_kk d_k + sum_{m > k} U_km d_m) ** 2``, d the error of each weight: from the last k on,
    each term is as small as the levels allow.
    """
    # Strong inputs last, that is: first to be rounded, while many others can make up for it.
    order = metric.diagonal().argsort(stable=True)
    small = weight.to(torch.float32)
    working = metric.to(torch.float32)
    scales = spread(grid.scales, grid.group_size, weight.shape[1])
    zeros = spread(grid.zeros, grid.group_size, weight.shape[1])
    support = grid.support
    codes = zeros.clone()
    for rows, places, real in _batches(support, order):
        if bool(real.all()) and places.shape[0] == 1:
            square = working[places[0][:, None], places[0]]
            factor = _factor(square)[None]
            picked = places.expand(len(rows), -1)
        else:
            picked = places
            square = working[places[:, :, None], places[:, None, :]]
            both = real[:, :, None] & real[:, None, :]
            square = torch.where(both, square, 0.0)
            square.diagonal(dim1=1, dim2=2).copy_(
                torch.where(real, working.diagonal()[places], 1.0)
            )
            factor = _factor(square)
        target = torch.gather(small[rows], 1, picked)
        step = torch.gather(scales[rows], 1, picked)
        zero = torch.gather(zeros[rows], 1, picked)
        inside = torch.gather(support[rows], 1, picked)
        errors = torch.zeros_like(target)
        found = zero.clone()
        for k in range(target.shape[1] - 1, -1, -1):
            line = factor[:, k]
            moved = (line[:, k + 1 :] * errors[:, k + 1 :]).sum(1) if len(factor) > 1 else (
                errors[:, k + 1 :] @ line[0, k + 1 :]
            )  # fmt: skip
            wish = target[:, k] + moved / line[:, k]
            code = _nearest(wish, step[:, k], zero[:, k], inside[:, k], grid.quantizer)
            found[:, k] = code
            errors[:, k] = target[:, k] - (code - zero[:, k]) * step[:, k]
        lines = codes[rows]
        lines.scatter_(1, picked, torch.where(inside, found, zero))
        codes[rows] = lines
    return codes


def _batches(support: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield rows with the places of their nonzeros, weakest input first, and which are real.

    Full rows share one line of places.
    """
    counts = support.sum(1)
    n_inputs = support.shape[1]
    full = (counts == n_inputs).nonzero()[:, 0]
    if len(full) and n_inputs:
        yield full, order[None], torch.ones(1, n_inputs, dtype=torch.bool, device=order.device)
    rest = torch.argsort(counts, stable=True)
    rest = rest[(counts[rest] > 0) & (counts[rest] < n_inputs)]
    sizes = [int(n) for n in counts[rest]]
    first = 0
    while first < len(rest):
        last = first + 1
        while last < len(rest) and (last + 1 - first) * sizes[last] ** 2 <= BATCH:
            last += 1
        rows = rest[first:last]
        inside = support[rows][:, order]
        first_ones = torch.argsort(inside.to(torch.int8), dim=1, descending=True, stable=True)
        kept = first_ones[:, : sizes[last - 1]]
        yield rows, order[kept], torch.gather(inside, 1, kept)
        first = last


def _factor(square: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(square, upper=True)
    if bool(info.any()):
        # Rounding, since the damped matrix is positive definite in double precision.
        factor = torch.linalg.cholesky(square.to(torch.float64), upper=True).to(square.dtype)
    out: Tensor = factor
    return out


def _descend(weight: Tensor, metric: Tensor, grid: _Grid, codes: Tensor) -> Tensor:
    """Return codes after one pass of exact coordinate descent, each on its best level."""
    n_inputs = weight.shape[1]
    scales = spread(grid.scales, grid.group_size, n_inputs).to(torch.float64)
    zeros = spread(grid.zeros, grid.group_size, n_inputs)
    codes = codes.clone()
    values = grid.values(codes)
    image = (weight - values) @ metric
    for start in range(0, n_inputs, BLOCK):
        stop = min(start + BLOCK, n_inputs)
        local = image[:, start:stop].clone()
        square = metric[start:stop, start:stop]
        moves = torch.zeros_like(local)
        for j in range(stop - start):
            at = start + j
            wish = values[:, at] + local[:, j] / square[j, j]
            new = _nearest(wish, scales[:, at], zeros[:, at], grid.support[:, at], grid.quantizer)
            move = (new - codes[:, at]) * scales[:, at]
            codes[:, at] = new
            moves[:, j] = move
            local -= move[:, None] * square[j]
        image -= moves @ metric[start:stop]
    return codes


def _refit_scales(weight: Tensor, metric: Tensor, grid: _Grid, codes: Tensor) -> _Grid:
    """Return the grid with the scales that serve these codes best, where that lowers the error.

    For fixed codes the error of a row is a quadratic in the scales of its groups.
    """
    n_rows, n_inputs = weight.shape
    steps = (codes - spread(grid.zeros, grid.group_size, n_inputs)).to(torch.float64)
    wanted = steps * (weight @ metric)
    n_groups = grid.scales.shape[1]
    owner = torch.arange(n_inputs, device=weight.device) // grid.group_size
    right = torch.zeros(n_rows, n_groups, dtype=torch.float64, device=weight.device)
    right.index_add_(1, owner, wanted)
    system = torch.zeros(n_rows, n_groups, n_groups, dtype=torch.float64, device=weight.device)
    for g in range(n_groups):
        inside = owner == g
        products = (steps[:, inside] @ metric[inside]) * steps
        system[:, g].index_add_(1, owner, products)
    empty = system.diagonal(dim1=1, dim2=2) <= 0.0
    system.diagonal(dim1=1, dim2=2).add_(empty.to(torch.float64))
    old = grid.scales.to(torch.float64)
    # A trace of the old scales, for groups whose codes depend on each other.
    ridge = 1e-9 * system.diagonal(dim1=1, dim2=2)
    system.diagonal(dim1=1, dim2=2).add_(ridge)
    solved = torch.linalg.solve(system, right + ridge * old)
    usable = ~empty & (solved > 0.0) & torch.isfinite(solved)
    near = round_near(torch.where(usable, solved, old))
    fits = usable & torch.isfinite(near)
    fresh = _Grid(
        torch.where(fits, near, grid.scales),
        grid.zeros,
        grid.support,
        grid.group_size,
        grid.quantizer,
    )
    before, after = (weight - grid.values(codes), weight - fresh.values(codes))
    change = ((after @ metric) * after).sum(1) - ((before @ metric) * before).sum(1)
    return _Grid(
        torch.where((change < 0.0)[:, None], fresh.scales, grid.scales),
        grid.zeros,
        grid.support,
        grid.group_size,
        grid.quantizer,
    )
