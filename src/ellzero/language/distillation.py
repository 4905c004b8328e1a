"""Recovery training of a compressed model against its dense self, and losses for it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import DataError, IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.language.calibration import Batch, Call, is_conv1d, matrix, read_batches
from ellzero.nn.optimizer import HardThresholding
from ellzero.nn.state import flatten, unflatten
from ellzero.sets import L0Ball, NMPattern, ProductSet
from ellzero.storage import from_json, to_json, write_atomic
from ellzero.validation import check_choice, check_integer, check_real

SUPPORTS = ("fixed", "moving")
# Share of the steps over which the learning rate rises; it falls linearly after them.
WARM = 0.1
# Steps between two checkpoints.
EVERY = 25
# Scores at or below this belong to padding.
HIDDEN_SCORE = -100.0


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a loss may compare.

    Parameters
    ----------
    logits : Tensor or None
        Scores of classes or of the next token, (..., n_classes); None where the model has none.
    hidden : tuple of Tensor
        Hidden states, the first before the first block, each (n_texts, n_tokens, width); for a
        plain module its output alone.
    scores : tuple of Tensor
        Attention scores of each block before the softmax, (n_texts, n_heads, n_tokens, n_tokens),
        up to a constant for every query; empty where the model does not give them.
    tokens : Tensor or None
        Which tokens are real, (n_texts, n_tokens); None means all.
    """

    logits: Tensor | None
    hidden: tuple[Tensor, ...]
    scores: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None


Loss = Callable[[Outputs, Outputs], Tensor]


def soft_targets(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the softened divergence :math:`T^2\,KL(p_T \,\|\, p_S)`, mean over rows.

    Parameters
    ----------
    student, teacher : Tensor
        Logits, (n_rows, n_classes).
    temperature : float, default=1.0
        T; logits are divided by it.

    Returns
    -------
    Tensor
        0-d, at least 0, and 0 where the two agree up to a constant in every row.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.distillation import soft_targets
    >>> round(float(soft_targets(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]))), 4)
    0.3278
    """
    known = torch.log_softmax(teacher / temperature, dim=-1)
    own = torch.log_softmax(student / temperature, dim=-1)
    rows = (known.exp() * (known - own)).sum(-1)
    return temperature * temperature * rows.mean()


def real_rows(tensor: Tensor, tokens: Tensor | None) -> Tensor:
    """Return the rows of real tokens, (n_rows, width)."""
    if tokens is not None and tensor.dim() == 3 and tensor.shape[:2] == tokens.shape:
        return tensor[tokens.bool()]
    return tensor.reshape(-1, tensor.shape[-1])


def _logits(outputs: Outputs) -> Tensor:
    if outputs.logits is None:
        raise IncompatibleError(
            "The loss compares logits, and the model has none.",
            "Use `HiddenLoss` or `TinyBERTLoss`, which compare hidden states.",
        )
    return real_rows(outputs.logits, outputs.tokens)


@dataclass(frozen=True, slots=True)
class HintonLoss:
    r"""Soft targets of the dense model, perhaps with the labels.

    .. math:: (1 - \alpha)\,CE(y, p_S) + \alpha\, T^2\, KL(p_T^{(T)} \,\|\, p_S^{(T)})

    (Hinton, Vinyals and Dean, arXiv 1503.02531).

    Parameters
    ----------
    temperature : float, default=2.0
        T.
    alpha : float, default=1.0
        Share of the soft targets, in [0, 1].

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.distillation import HintonLoss, Outputs
    >>> same = Outputs(torch.tensor([[1.0, 2.0]]), ())
    >>> round(float(HintonLoss(alpha=0.5)(same, same, torch.tensor([1]))), 4)
    0.1566
    """

    temperature: float = 2.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, 0.0, open_low=True)
        check_real("alpha", self.alpha, 0.0, 1.0)

    def __call__(self, student: Outputs, teacher: Outputs, labels: Tensor | None = None) -> Tensor:
        """Return the loss; `labels`, one for each row, are needed where `alpha` is below 1."""
        own = _logits(student)
        loss = self.alpha * soft_targets(own, _logits(teacher), self.temperature)
        if self.alpha < 1.0:
            if labels is None:
                raise InvalidParameterError(
                    f"`labels` must be given, since `alpha` is {self.alpha}, got None.",
                    "Give `alpha=1.0` to train on the soft targets alone.",
                )
            loss = loss + (1.0 - self.alpha) * nn.functional.cross_entropy(own, labels.flatten())
        return loss


@dataclass(frozen=True, slots=True)
class DistilBERTLoss:
    r"""Soft targets and the direction of the last hidden states.

    .. math:: a\,T^2\,KL(p_T \,\|\, p_S) + c\,(1 - \cos(h_S, h_T))

    over real tokens (arXiv 1910.01108, without its masked-language term, which needs labels). The
    first term is left out where the model has no logits.

    Parameters
    ----------
    temperature : float, default=2.0
        T.
    soft, cosine : float
        The weights a and c.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.distillation import DistilBERTLoss, Outputs
    >>> one = Outputs(None, (torch.tensor([[[1.0, 0.0]]]),))
    >>> other = Outputs(None, (torch.tensor([[[0.0, 3.0]]]),))
    >>> float(DistilBERTLoss()(one, other))
    1.0
    """

    temperature: float = 2.0
    soft: float = 5.0
    cosine: float = 1.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, 0.0, open_low=True)
        check_real("soft", self.soft, 0.0)
        check_real("cosine", self.cosine, 0.0)

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        own = real_rows(student.hidden[-1], student.tokens)
        known = real_rows(teacher.hidden[-1], teacher.tokens)
        loss = self.cosine * (1.0 - nn.functional.cosine_similarity(own, known, dim=-1)).mean()
        if student.logits is not None and self.soft:
            soft = soft_targets(_logits(student), _logits(teacher), self.temperature)
            loss = loss + self.soft * soft
        return loss


@dataclass(frozen=True, slots=True)
class TinyBERTLoss:
    r"""Attention scores and hidden states of every block.

    .. math:: a \sum_m MSE(A^S_m, A^T_m) + h \sum_m MSE(H^S_m, H^T_m)

    (arXiv 1909.10351, the intermediate losses for equal shapes). Scores of padding are 0 on both
    sides. Transformers gives scores after the softmax: their logarithms, centered for every
    query over the real tokens, are compared here, since the softmax does not see that constant.

    Parameters
    ----------
    attention, hidden : float
        The weights a and h.

    Raises
    ------
    InvalidParameterError
        If a weight is negative.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.distillation import Outputs, TinyBERTLoss
    >>> one = Outputs(None, (torch.zeros(1, 2, 3), torch.ones(1, 2, 3)))
    >>> other = Outputs(None, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)))
    >>> float(TinyBERTLoss()(one, other))
    1.0
    """

    attention: float = 1.0
    hidden: float = 1.0

    def __post_init__(self) -> None:
        check_real("attention", self.attention, 0.0)
        check_real("hidden", self.hidden, 0.0)

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        loss = student.hidden[-1].new_zeros(())
        for own, known in zip(student.hidden, teacher.hidden, strict=True):
            rows = real_rows(own, student.tokens), real_rows(known, teacher.tokens)
            loss = loss + self.hidden * nn.functional.mse_loss(*rows)
        for own, known in zip(student.scores, teacher.scores, strict=True):
            real = (own > HIDDEN_SCORE) & (known > HIDDEN_SCORE)
            pair = torch.where(real, own, 0.0), torch.where(real, known, 0.0)
            loss = loss + self.attention * nn.functional.mse_loss(*pair)
        return loss


@dataclass(frozen=True, slots=True)
class HiddenLoss:
    r"""Relative squared error of the last hidden states, and of logits where there are some.

    .. math:: \|h_S - h_T\|^2 / \|h_T\|^2 + KL(p_T \,\|\, p_S)

    over real tokens: the default, since it has no weights to choose and no unit.

    Examples
    --------
    >>> import torch
    >>> from ellzero.language.distillation import HiddenLoss, Outputs
    >>> one = Outputs(None, (torch.tensor([[1.0, 1.0]]),))
    >>> float(HiddenLoss()(one, Outputs(None, (torch.tensor([[2.0, 0.0]]),))))
    0.5
    """

    def __call__(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the loss."""
        own = real_rows(student.hidden[-1], student.tokens)
        known = real_rows(teacher.hidden[-1], teacher.tokens)
        loss = (own - known).square().sum() / known.square().sum().clamp(min=1e-30)
        if student.logits is not None:
            loss = loss + soft_targets(_logits(student), _logits(teacher))
        return loss


def read_outputs(model: nn.Module, call: Call, *, with_scores: bool = False) -> Outputs:
    """Run a model and return what losses compare.

    Parameters
    ----------
    model : nn.Module
        One of transformers, or any module that returns a tensor.
    call : Call
        How it is called.
    with_scores : bool, default=False
        Whether to ask for attention scores, of models that are set to ``eager`` attention.

    Returns
    -------
    Outputs
        Logits, hidden states, scores.

    Raises
    ------
    IncompatibleError
        If the model returns neither a tensor, logits nor hidden states.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "num_hidden_layers"):
        output = call.run(model)
        output = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(output, Tensor):
            raise IncompatibleError(
                f"The model returns a {type(output).__name__}, which no loss can compare.",
                "Wrap it in a module that returns a tensor.",
            )
        return Outputs(None, (output,), (), call.tokens)
    extra = {"output_hidden_states": True, "return_dict": True}
    if with_scores:
        extra["output_attentions"] = True
    output = model(*call.args, **{**call.kwargs, **extra})
    hidden = tuple(output.hidden_states or ())
    if not hidden:
        raise IncompatibleError(
            f"{type(model).__name__} returns no hidden states.", "Use a model that gives them."
        )
    scores: tuple[Tensor, ...] = ()
    if with_scores:
        given = tuple(a for a in output.attentions or () if a is not None)
        scores = tuple(_before_softmax(attention) for attention in given)
    return Outputs(getattr(output, "logits", None), hidden, scores, call.tokens)


def _before_softmax(attention: Tensor) -> Tensor:
    logs = attention.clamp(min=1e-38).log()
    real = attention > math.exp(HIDDEN_SCORE / 2)
    center = torch.where(real, logs, 0.0).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    # Keys that no query may see keep a score that marks them.
    return torch.where(real, logs - center, 2.0 * HIDDEN_SCORE)


@dataclass(frozen=True, slots=True)
class DistillationResult:
    """What a recovery training did.

    Parameters
    ----------
    losses : tuple of float
        Loss of every step, before it.
    n_nonzero : int
        Nonzeros of the sparse weights at the end, counted.
    n_changed : int
        Nonzeros at the end that were zero at the start; 0 for a fixed support.
    support : str
        How the support was held.
    seconds : float
        Processor time of this process.
    """

    losses: tuple[float, ...]
    n_nonzero: int
    n_changed: int
    support: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "n_steps": len(self.losses),
            "losses": list(self.losses),
            "n_nonzero": self.n_nonzero,
            "n_changed": self.n_changed,
            "support": self.support,
            "seconds": self.seconds,
        }


def distill(
    model: nn.Module,
    teacher: nn.Module,
    calibration: Iterable[Batch],
    n_steps: int = 100,
    *,
    layers: Sequence[str] | None = None,
    loss: Loss | None = None,
    lr: float = 5e-4,
    support: str = "fixed",
    pattern: tuple[int, int] | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> DistillationResult:
    r"""Train a sparse model towards its dense self for a few steps, under its exact counts.

    Parameters
    ----------
    model : nn.Module
        The sparse model; trained in place. Its sparse weights, and the biases and norms of the
        modules beside them, are trained; everything else is left as it is.
    teacher : nn.Module
        The dense model, of the same architecture.
    calibration : iterable
        Batches, as for `compress`; they are gone through in a random order, again and again.
    n_steps : int, default=100
        Optimizer steps, one batch each.
    layers : sequence of str or None, default=None
        Names of the sparse layers; None means linear layers whose weight holds a zero.
    loss : callable or None, default=None
        Function of the outputs of both; None means `HiddenLoss`. A `TinyBERTLoss` needs models
        with ``eager`` attention for its scores.
    lr : float, default=5e-4
        Largest learning rate of AdamW; it rises over a tenth of the steps, then falls to zero.
    support : {"fixed", "moving"}, default="fixed"
        Whether zeros stay where they are, or every layer keeps its count while
        `nn.HardThresholding` exchanges entries.
    pattern : tuple of int or None, default=None
        n and m, for a moving support that must keep a pattern along the inputs.
    seed : int, default=0
        Decides the order of the batches.
    checkpoint : str, path or None, default=None
        File that is written every 25 steps. A run with the same arguments goes on from it and
        gives the same bits.
    callback : callable or None, default=None
        Called with the number of steps done and the loss before the last.

    Returns
    -------
    DistillationResult
        Losses and counts.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range, or no layer is sparse.
    IncompatibleError
        If the loss cannot be computed, or a moving pattern is asked of a transposed layer.
    DataError
        If there is no batch, or the checkpoint cannot be read or is of another run.
    NonFiniteError
        If the loss is a NaN or an infinity.

    Notes
    -----
    A step costs one pass of the dense model, and one pass and one backward pass of the sparse one;
    memory is both models, and two more numbers for every trained parameter. No labels are used.

    Examples
    --------
    >>> import copy, torch
    >>> from ellzero.language.distillation import distill
    >>> torch.manual_seed(0) and None
    >>> dense = torch.nn.Linear(8, 4)
    >>> sparse = copy.deepcopy(dense)
    >>> _ = sparse.weight.data[:, ::2].zero_()
    >>> data = [torch.randn(32, 8, generator=torch.Generator().manual_seed(1)) + 1.0]
    >>> result = distill(sparse, dense, data, 30, lr=0.05)
    >>> result.n_nonzero, result.losses[-1] < 0.8 * result.losses[0]
    (16, True)
    """
    start = time.process_time()
    n_steps = check_integer("n_steps", n_steps, 1)
    lr = check_real("lr", lr, 0.0, open_low=True)
    check_choice("support", support, SUPPORTS)
    chosen = _sparse_layers(model, layers)
    calls = read_batches(calibration)
    compare: Loss = HiddenLoss() if loss is None else loss
    with_scores = isinstance(compare, TinyBERTLoss) and compare.attention > 0.0
    before = {name: matrix(layer) != 0 for name, layer in chosen.items()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    mode = model.training, teacher.training
    model.eval()
    teacher.eval()
    try:
        trained = _trained(model, chosen)
        base = torch.optim.AdamW(trained.values(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        optimizer = _hold(base, model, chosen, support, pattern)
        run = _Run(checkpoint, model, trained, optimizer)
        identity = [n_steps, lr, support, seed, repr(compare), list(chosen), len(calls)]
        losses = run.resume(identity)
        while len(losses) < n_steps:
            step = len(losses)
            call = calls[_order(seed, step, len(calls))]
            for group in optimizer.param_groups:
                group["lr"] = lr * _rate(step, n_steps)
            with torch.no_grad():
                known = read_outputs(teacher, call, with_scores=with_scores)
            with torch.enable_grad():
                value = compare(read_outputs(model, call, with_scores=with_scores), known)
            number = float(value.detach())
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"The distillation loss became {number} at step {step + 1}.",
                    f"Reduce `lr` (now {lr}).",
                )
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            for name, layer in chosen.items() if support == "fixed" else ():
                grad = layer.weight.grad
                if isinstance(grad, Tensor):
                    off = ~before[name]
                    grad.masked_fill_(off.T if is_conv1d(layer) else off, 0.0)
            optimizer.step()
            losses.append(number)
            if len(losses) % EVERY == 0 or len(losses) == n_steps:
                run.save(identity, losses)
            if callback is not None:
                callback(len(losses), number)
        if isinstance(optimizer, HardThresholding):
            optimizer.finalize()
    finally:
        model.train(mode[0])
        teacher.train(mode[1])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(grads[name])
            parameter.grad = None
    after = {name: matrix(layer) != 0 for name, layer in chosen.items()}
    return DistillationResult(
        tuple(losses),
        sum(int(mask.sum()) for mask in after.values()),
        sum(int((after[name] & ~before[name]).sum()) for name in chosen),
        support,
        time.process_time() - start,
    )


def _sparse_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    known = dict(model.named_modules())
    if names is not None:
        for name in names:
            if name not in known:
                raise InvalidParameterError(
                    f"`layers` must be names of layers of the model, got {name!r}.",
                    "Take them from `CompressionResult.layers`.",
                )
            found[name] = known[name]
    else:
        found = {
            name: module
            for name, module in known.items()
            if (isinstance(module, nn.Linear) or is_conv1d(module))
            and bool((matrix(module) == 0).any())
        }
    if not found:
        raise InvalidParameterError(
            "No linear layer of the model holds a zero, so there is no support to keep.",
            "Compress the model first, with `compress`.",
        )
    return found


def _trained(model: nn.Module, chosen: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return sparse weights, their biases, and all vectors; and freeze the rest."""
    weights = {id(layer.weight) for layer in chosen.values()}
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in weights or parameter.dim() == 1)
        if parameter.requires_grad:
            trained[name] = parameter
    return trained


def _hold(
    base: torch.optim.Optimizer,
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    support: str,
    pattern: tuple[int, int] | None,
) -> torch.optim.Optimizer:
    if support == "fixed":
        return base
    names = {id(p): name for name, p in model.named_parameters()}
    sets: list[L0Ball | NMPattern] = []
    for name, layer in chosen.items():
        key = names[id(layer.weight)]
        if pattern is None:
            sets.append(L0Ball(int((matrix(layer) != 0).sum()), (key,)))
        elif is_conv1d(layer):
            raise IncompatibleError(
                f"A moving support cannot keep a pattern along the inputs of '{name}', whose "
                "weight is stored transposed.",
                'Give `support="fixed"`.',
            )
        else:
            sets.append(NMPattern(*pattern, names=(key,)))
    return HardThresholding(
        base, model, constraint=ProductSet(tuple(sets)), recipe="straight_through", every=1
    )


def _order(seed: int, step: int, n_batches: int) -> int:
    """Return the batch of a step: every epoch is a permutation of its own."""
    epoch, place = divmod(step, n_batches)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return int(torch.randperm(n_batches, generator=generator)[place])


def _rate(step: int, n_steps: int) -> float:
    warm = max(1.0, WARM * n_steps)
    return min((step + 1) / warm, (n_steps - step) / max(1.0, n_steps - warm))


@dataclass(slots=True)
class _Run:
    """The file that a training goes on from."""

    checkpoint: str | os.PathLike[str] | None
    model: nn.Module
    trained: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    known: list[float] = field(default_factory=list)

    def save(self, identity: list[Any], losses: list[float]) -> None:
        if self.checkpoint is None:
            return
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        state = flatten(
            {
                "identity": identity,
                "losses": losses,
                "parameters": dict(self.trained),
                "optimizer": self.optimizer.state_dict(),
            },
            tensors,
        )
        write_atomic(self.checkpoint, save(tensors, {"state": to_json(state)}))

    def resume(self, identity: list[Any]) -> list[float]:
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return []
        from safetensors import safe_open

        path = Path(self.checkpoint)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                saved = unflatten(from_json(file.metadata()["state"]), tensors)
            other = saved["identity"] != identity
        except Exception as error:
            raise DataError(
                f"The checkpoint file '{path.name}' cannot be read: {str(error).splitlines()[0]}.",
                "Remove it; the distillation then starts again.",
            ) from error
        if other:
            raise DataError(
                f"The checkpoint file '{path.name}' is of another distillation.",
                "Remove it, or give the arguments that it was written with.",
            )
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved["parameters"][name])
        self.optimizer.load_state_dict(saved["optimizer"])
        return list(saved["losses"])
