"""Sums over the calibration inputs of a layer, and what the layer aims at by them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ellzero.errors import DataError, NonFiniteError
from ellzero.language.calibration import Call, Segment, Stop, matrix, rows_of
from ellzero.language.residuals import Place, Watcher

# An input whose variance is this small relative to its square is constant to rounding.
CONSTANT = 1e-6
INPUT = "input"


@dataclass(frozen=True, slots=True)
class Pair:
    """A segment that is being compressed, beside the dense one.

    Parameters
    ----------
    segment : Segment
        The dense twin; its layers have the same names.
    calls : sequence of Call
        Calls of the dense twin, with the dense model's hidden states.
    residuals : mapping of str to Place
        By layer: the tensor that its output is added to.
    """

    segment: Segment
    calls: Sequence[Call]
    residuals: Mapping[str, Place] = field(default_factory=dict)


@dataclass(slots=True)
class Moments:
    """Sums over the calibration tokens at one stage.

    Parameters
    ----------
    gram : Tensor
        Sum of ``x x'``, (n_inputs, n_inputs), in double precision.
    total : Tensor
        Sum of ``x``, (n_inputs,).
    n_samples : int
        Tokens.
    cross, dense_total : Tensor or None
        Sums of ``d x'`` and of ``d``, d the input of the dense model at the same token.
    behind : dict of str to tuple of Tensor
        By layer whose output is added to a tensor r: the sums of ``(r_dense - r) x'`` and of
        ``r_dense - r``.
    """

    gram: Tensor
    total: Tensor
    n_samples: int = 0
    cross: Tensor | None = None
    dense_total: Tensor | None = None
    behind: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


@torch.no_grad()
def moments(
    segment: Segment, names: Sequence[str], calls: Sequence[Call], dense: Pair | None = None
) -> Moments:
    """Return sums over the common input of some layers.

    Parameters
    ----------
    segment : Segment
        What is run.
    names : sequence of str
        Layers of one stage of it.
    calls : sequence of Call
        Calls of the segment.
    dense : Pair or None, default=None
        The dense model beside it, for the sums across both.

    Returns
    -------
    Moments
        Sums over all tokens that are not padding.

    Raises
    ------
    DataError
        If there is no call.
    NonFiniteError
        If an input has a NaN or an infinity; the layer is named.

    Notes
    -----
    A pass ends at the stage. Products are taken in single precision and added up in double.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from ellzero.language.calibration import Segment, read_batches
    >>> from ellzero.language.moments import moments
    >>> layer = nn.Linear(2, 1)
    >>> found = moments(Segment(layer, {"": layer}), [""], read_batches([torch.ones(3, 2)]))
    >>> found.gram.tolist(), found.n_samples
    ([[3.0, 3.0], [3.0, 3.0]], 3)
    """
    if not calls:
        raise DataError("The calibration set is empty.", "Give at least one batch.")
    places = {} if dense is None else {n: p for n, p in dense.residuals.items() if n in names}
    found: Moments | None = None
    for index, call in enumerate(calls):
        here = _tensors(segment, names[0], call, places)
        rows = here[INPUT]
        if found is None:
            size = rows.shape[1]
            square = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
            found = Moments(square, torch.zeros_like(square[0]))
            if dense is not None:
                found.cross, found.dense_total = square.clone(), torch.zeros_like(square[0])
        found.gram += (rows.T @ rows).double()
        found.total += rows.double().sum(0)
        found.n_samples += len(rows)
        if dense is None or found.cross is None or found.dense_total is None:
            continue
        there = _tensors(dense.segment, names[0], dense.calls[index], places)
        found.cross += (there[INPUT].T @ rows).double()
        found.dense_total += there[INPUT].double().sum(0)
        for name in places:
            away = there[name] - here[name]
            old = found.behind.get(name)
            new = (away.T @ rows).double(), away.double().sum(0)
            found.behind[name] = new if old is None else (old[0] + new[0], old[1] + new[1])
    assert found is not None
    return found


def _tensors(
    segment: Segment, name: str, call: Call, places: Mapping[str, Place]
) -> dict[str, Tensor]:
    """Return the rows of the input of a layer, and of the tensors at some places."""
    layer = segment.layers[name]
    seen: list[Tensor] = []
    once = name not in segment.repeated

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if not bool(torch.isfinite(args[0]).all()):
            raise NonFiniteError(
                f"The input of layer '{name}' has a NaN or an infinity.",
                "Look at the calibration data, or run the model in float32.",
            )
        seen.append(args[0].detach())
        if once:
            raise Stop

    watcher = Watcher(segment.module, places)
    with watcher.listening():
        # After the watchers, which note what reaches the layer, and then the pass may end.
        handle = layer.register_forward_pre_hook(hook)
        try:
            with contextlib.suppress(Stop):
                call.run(segment.module)
        finally:
            handle.remove()
    rows = [rows_of(tensor, call.tokens).float() for tensor in seen]
    width = matrix(layer).shape[1]
    kept = {INPUT: torch.cat(rows) if rows else torch.zeros(0, width)}
    for key, tensor in watcher.seen.items():
        kept[key] = rows_of(tensor, call.tokens).float()
    return kept


@dataclass(frozen=True, slots=True)
class Aim:
    """The least-squares problem of one layer.

    Parameters
    ----------
    weight : Tensor
        What the sparse weight comes near to, (n_outputs, n_inputs).
    gram : Tensor
        In which metric, (n_inputs, n_inputs).
    mean : Tensor
        Mean of the inputs, (n_inputs,); zero where the layer has no bias.
    offset : Tensor
        Mean of the outputs aimed at, less the bias, (n_outputs,).
    n_constant : int
        Inputs that are the same for all tokens, which a bias replaces.
    """

    weight: Tensor
    gram: Tensor
    mean: Tensor
    offset: Tensor
    n_constant: int

    def bias(self, old: Tensor, weight: Tensor) -> Tensor:
        """Return the bias with which the mean of the outputs is the one aimed at."""
        new = old.double() + self.offset - weight.double() @ self.mean
        return new.to(old.dtype)


def aim_of(
    name: str,
    weight: Tensor,
    found: Moments,
    *,
    has_bias: bool,
    correction: float,
    damping: float,
) -> Aim:
    r"""Return the problem of a layer from the sums at its inputs.

    .. math:: \min_{V, b}\ E \| (1 - c)\, W x + c\, (W d + r_{dense} - r) - V x - b \|^2

    with the input x of the layer, the input d that it has in the dense model, and the tensors r
    that its output is added to in both. The best bias is taken out by centering, and the best
    dense V is the new target, since errors add up in the metric of the centered x.

    Parameters
    ----------
    name : str
        The layer.
    weight : Tensor
        W, (n_outputs, n_inputs).
    found : Moments
        Sums at its stage.
    has_bias : bool
        Whether the layer has a bias to change.
    correction : float
        c, 0 to 1; 0 keeps W.
    damping : float
        Ridge towards W, relative to the mean of the diagonal; at least 0.01 is used, since the
        map would chase noise of few tokens.

    Returns
    -------
    Aim
        Target, metric and means.
    """
    wide, gram = weight.double(), found.gram
    count = max(1, found.n_samples)
    mean = found.total / count if has_bias else torch.zeros_like(found.total)
    constant = torch.zeros_like(mean, dtype=torch.bool)
    if has_bias:
        square = gram.diagonal()
        gram = gram - count * torch.outer(mean, mean)
        constant = (gram.diagonal() <= CONSTANT * square) & (square > 0.0)
        gram[constant] = 0.0
        gram[:, constant] = 0.0
    offset = wide @ mean
    aim = wide
    if correction > 0.0 and found.cross is not None and found.dense_total is not None:
        right = wide @ found.cross
        dense_mean = wide @ (found.dense_total / count)
        if name in found.behind:
            right = right + found.behind[name][0]
            dense_mean = dense_mean + found.behind[name][1] / count
        if has_bias:
            right = right - count * torch.outer(dense_mean, mean)
            offset = offset + correction * (dense_mean - offset)
        alive = gram.diagonal() > 0.0
        level = float(gram.diagonal()[alive].mean()) if bool(alive.any()) else 1.0
        ridge = max(damping, 0.01) * level
        damped = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        best = torch.linalg.solve(damped, (right + ridge * wide).T).T
        aim = wide + correction * (best - wide)
    if not has_bias:
        offset = torch.zeros_like(offset)
    return Aim(aim.to(weight.dtype), gram, mean, offset, int(constant.sum()))
