"""The loop over minibatches: with a budget or without, resumable bit for bit."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import NonFiniteError
from ellzero.nn import HardThresholding, prunable, schedules
from ellzero.nn.schedules import AbstractSchedule
from ellzero.nn.state import flatten, unflatten
from ellzero.storage import Checkpoint
from ellzero.tensors import named
from ellzero.training.settings import Moment, TrainSettings, Watch

Loss = Callable[[Tensor, Tensor], Tensor]

# Points of the curves of a run, and samples that are looked at at once without gradients.
CURVE_POINTS = 200
EVALUATION_BATCH = 1000
# AC/DC: dense and sparse phases of this share of the training, and the sparse end.
PHASE_SHARE = 0.1
LAST_SPARSE = 0.25
# The state is kept at the end of an epoch, but not before this many seconds have passed.
KEEP_SECONDS = 1.0
# Name of the step of a checkpoint that holds a training under way.
UNDER_WAY = "training"


@dataclass(frozen=True, slots=True)
class Samples:
    """Training and test samples on a device, standardized where they are used.

    Parameters
    ----------
    X_train, y_train, X_test, y_test : Tensor
        As they were given; one sample for each first index.
    mean, scale : Tensor
        What is subtracted from a sample and what it is divided by.
    dtype : torch.dtype
        Type in which the network gets its inputs.
    """

    X_train: Tensor
    y_train: Tensor
    X_test: Tensor
    y_test: Tensor
    mean: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def n_train(self) -> int:
        """Number of training samples."""
        return int(self.X_train.shape[0])

    def inputs(self, X: Tensor) -> Tensor:
        """Return samples as the network gets them."""
        return (X.to(self.dtype) - self.mean) / self.scale

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of training samples."""
        return self.inputs(self.X_train[rows]), self.y_train[rows]

    def batches(self, part: str, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Return all samples of "train" or "test", or the first ones, in their order."""
        X, y = (self.X_train, self.y_train) if part == "train" else (self.X_test, self.y_test)
        for x_part, y_part in zip(
            torch.split(X[:limit], EVALUATION_BATCH),
            torch.split(y[:limit], EVALUATION_BATCH),
            strict=True,
        ):
            yield self.inputs(x_part), y_part


@dataclass(slots=True)
class Curves:
    """What is recorded of a run: series over steps, and one row for each epoch.

    Parameters
    ----------
    steps, loss, lr, n_nonzero : list
        The step, and there: mean loss of the batches since the last one, learning rate, nonzeros
        of the counted tensors.
    epochs : list of dict
        ``epoch``, ``step``, ``loss``, ``accuracy_test`` and ``seconds``.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    n_nonzero: list[int] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {name: list(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Fitted:
    """Outcome of `fit`.

    Parameters
    ----------
    curves : Curves
        How it went.
    is_done : bool
        Whether every epoch was done; False after an interrupt.
    """

    curves: Curves
    is_done: bool


def make_schedule(settings: TrainSettings, total_steps: int) -> AbstractSchedule:
    """Return how the budget falls over a training of `total_steps`, as the settings say."""
    if settings.recipe == "acdc":
        length = max(1, round(PHASE_SHARE * total_steps))
        return schedules.phases(length, length, total_steps, last_sparse=LAST_SPARSE)
    assert settings.ramp_end is not None
    freeze = 1.0 if settings.freeze is None else settings.freeze
    if settings.ramp_end == 0.0 and freeze == 1.0:
        return schedules.constant()
    end = max(settings.ramp_end, min(1.0, 1 / total_steps))
    return schedules.ramp(0.0, end, total_steps, freeze=max(freeze, end))


def fit(
    model: nn.Module,
    samples: Samples,
    loss_fn: Loss,
    settings: TrainSettings,
    budget: int | None,
    *,
    names: tuple[str, ...] | None = None,
    floor: float = 0.05,
    checkpoint: Checkpoint | None = None,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> Fitted:
    """Train a network in place, under a budget or without.

    Parameters
    ----------
    model : torch.nn.Module
        The network at its start, on the device of the samples.
    samples : Samples
        The data.
    loss_fn : callable
        Loss of outputs and targets.
    settings : TrainSettings
        Epochs, batch size, rate, recipe, schedule and seed, all given.
    budget : int or None
        Nonzeros of the counted tensors, or their rows or columns; None trains without a budget.
    names : tuple of str or None, default=None
        Tensors to count; None means weights of two axes or more.
    floor : float, default=0.05
        Share of a uniform density that every tensor keeps.
    checkpoint : Checkpoint or None, default=None
        Where the state is kept at an interrupt and at the ends of epochs, once a second at most. A
        training of the same budget that is found there goes on.
    watch : callable or None, default=None
        Called with a `Moment` now and then.
    stop : callable or None, default=None
        Asked after every step; True ends the training.

    Returns
    -------
    Fitted
        The curves, and whether the training was finished.

    Raises
    ------
    NonFiniteError
        If the loss becomes NaN or infinite.

    Notes
    -----
    The order of the samples comes from a generator of its own and dropout from torch's, which is
    put back afterwards; both are part of the state that is kept. A run that goes on does the same
    steps as one that was never cut short.
    """
    assert settings.epochs is not None
    assert settings.batch_size is not None
    assert settings.lr is not None
    n_batches = math.ceil(samples.n_train / settings.batch_size)
    total = settings.epochs * n_batches
    base = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=settings.lr)
    optimizer: torch.optim.Optimizer = base
    if budget is not None:
        optimizer = HardThresholding(
            base,
            model,
            budget,
            names=names,
            schedule=make_schedule(settings, total),
            floor=floor,
            recipe=settings.recipe or "lazy",
            allocation=settings.allocation or "global",
            structure=settings.structure or "entries",
            scores=settings.scores or "magnitude",
            average=settings.average,
        )
    loop = _Loop(model, samples, loss_fn, settings, optimizer, budget, n_batches, watch)
    with seeded(settings.seed, samples.X_train.device):
        loop.take_up(checkpoint)
        while loop.epoch < settings.epochs:
            cut = loop.run_epoch(stop)
            if cut or loop.epoch == settings.epochs or loop.is_due():
                loop.keep(checkpoint)
            if cut:
                return Fitted(loop.curves, False)
        if isinstance(optimizer, HardThresholding):
            optimizer.finalize()
            if settings.average:
                # Running statistics are those of the last network, not of the mean.
                torch.optim.swa_utils.update_bn((x for x, _ in samples.batches("train")), model)
    model.eval()
    return Fitted(loop.curves, True)


class _Loop:
    """The state of one training, and its epochs."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        loss_fn: Loss,
        settings: TrainSettings,
        optimizer: torch.optim.Optimizer,
        budget: int | None,
        n_batches: int,
        watch: Watch | None,
    ) -> None:
        self.model, self.samples, self.loss_fn = model, samples, loss_fn
        self.settings, self.optimizer, self.budget = settings, optimizer, budget
        self.n_batches, self.watch = n_batches, watch
        self.n_epochs = settings.epochs or 1
        self.total = self.n_epochs * n_batches
        self.every = max(1, self.total // CURVE_POINTS)
        self.decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.total)
        self.order = torch.Generator().manual_seed(settings.seed)
        self.order_before = self.order.get_state()
        self.epoch, self.at, self.step = 0, 0, 0
        self.curves = Curves()
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        # Sums of losses and counts of batches: since the last point, and in this epoch.
        self.window, self.window_count = zero, 0
        self.epoch_sum = zero
        self.began, self.began_at = time.perf_counter(), 0
        self.kept_at, self.seconds_before = self.began, 0.0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        counted = prunable(model).values()
        self.n_entries = sum(p.numel() for p in counted)
        if isinstance(optimizer, HardThresholding):
            self.n_entries = optimizer.n_entries

    def run_epoch(self, stop: Callable[[], bool] | None) -> bool:
        """Do what is left of an epoch; return whether it was cut short."""
        self.order_before = self.order.get_state()
        rows = torch.randperm(self.samples.n_train, generator=self.order)
        rows = rows.to(self.samples.X_train.device)
        self.model.train()
        size = self.settings.batch_size or 1
        for part in torch.split(rows, size)[self.at :]:
            self._step(part)
            if self.at == self.n_batches:
                break
            if stop is not None and stop():
                return True
        self._end_epoch()
        # A request that came with the last step: the next epoch is not begun.
        return self.epoch < self.n_epochs and stop is not None and stop()

    def _step(self, rows: Tensor) -> None:
        x, y = self.samples.batch(rows)
        loss = self.loss_fn(self.model(x), y)
        shown = loss.detach()
        if self.settings.ridge:
            for parameter in self.parameters:
                loss = loss + 0.5 * self.settings.ridge * parameter.square().sum()
            shown = loss.detach()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.decay.step()
        self.at += 1
        self.step += 1
        self.window = self.window.to(shown.device) + shown
        self.epoch_sum = self.epoch_sum.to(shown.device) + shown
        self.window_count += 1
        if self.step % self.every == 0 or self.at == self.n_batches:
            self._record()

    def _record(self) -> None:
        """Add a point to the curves."""
        loss = named.to_float(self.window) / self.window_count
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"The loss became NaN or infinite in epoch {self.epoch + 1}, step {self.step}.",
                f"Give a smaller rate by `--lr` (now {self.settings.lr:g}), or scale the data.",
            )
        self.window, self.window_count = torch.zeros_like(self.window), 0
        curves = self.curves
        curves.steps.append(self.step)
        curves.loss.append(loss)
        curves.lr.append(float(self.optimizer.param_groups[0]["lr"]))
        curves.n_nonzero.append(self._n_nonzero())
        if self.at < self.n_batches:
            self._tell(self.epoch + 1, loss)

    def _n_nonzero(self) -> int:
        if isinstance(self.optimizer, HardThresholding):
            return self.optimizer.n_nonzero
        return self.n_entries

    def _end_epoch(self) -> None:
        loss = named.to_float(self.epoch_sum) / self.n_batches
        self.epoch, self.at = self.epoch + 1, 0
        self.epoch_sum = torch.zeros_like(self.epoch_sum)
        accuracy = evaluate(self.model, self.samples, "test", self.loss_fn)[1]
        self.curves.epochs.append(
            {
                "epoch": self.epoch,
                "step": self.step,
                "loss": loss,
                "accuracy_test": accuracy,
                "seconds": self._seconds(),
            }
        )
        self._tell(self.epoch, loss, accuracy, is_epoch=True)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _tell(
        self,
        epoch: int,
        loss: float,
        accuracy: float | None = None,
        *,
        is_epoch: bool = False,
    ) -> None:
        if self.watch is None:
            return
        spent = time.perf_counter() - self.began
        pace = spent / max(1, self.step - self.began_at)
        self.watch(
            Moment(
                what="dense" if self.budget is None else f"{self.budget:,} {self.settings.unit}",
                epoch=epoch,
                n_epochs=self.n_epochs,
                step=self.step,
                n_steps=self.total,
                loss=loss,
                lr=self.curves.lr[-1],
                n_nonzero=self.curves.n_nonzero[-1],
                n_entries=self.n_entries,
                is_epoch=is_epoch,
                accuracy_test=accuracy,
                seconds=self._seconds(),
                seconds_left=pace * (self.total - self.step),
            )
        )

    # State -----------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Return whether what was done since the state was kept is worth another write."""
        return time.perf_counter() - self.kept_at >= KEEP_SECONDS

    def keep(self, checkpoint: Checkpoint | None) -> None:
        """Keep everything that the rest of the training depends on."""
        if checkpoint is None:
            return
        # In the middle of an epoch its order is drawn again, from where the generator was.
        order = self.order_before if self.at else self.order.get_state()
        state = {
            "budget": self.budget,
            "epoch": self.epoch,
            "at": self.at,
            "step": self.step,
            "order": order,
            "random": torch.get_rng_state(),
            "random_cuda": _cuda_state(self.samples.X_train.device),
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "decay": self.decay.state_dict(),
            "curves": self.curves.to_dict(),
            "window": self.window,
            "window_count": self.window_count,
            "epoch_sum": self.epoch_sum,
            "seconds": self._seconds(),
        }
        tensors: dict[str, Tensor] = {}
        checkpoint.save(UNDER_WAY, {"state": flatten(state, tensors)}, tensors)
        self.kept_at = time.perf_counter()

    def take_up(self, checkpoint: Checkpoint | None) -> None:
        """Go on from what `keep` kept, where it is a training of this budget."""
        found = None if checkpoint is None else checkpoint.load().get(UNDER_WAY)
        if found is None:
            return
        state = unflatten(found.data["state"], found.tensors)
        if state["budget"] != self.budget:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.decay.load_state_dict(state["decay"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["random"])
        device = self.samples.X_train.device
        if state["random_cuda"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], device)
        self.epoch, self.at, self.step = state["epoch"], state["at"], state["step"]
        self.curves = Curves(**state["curves"])
        self.window, self.window_count = state["window"], state["window_count"]
        self.epoch_sum = state["epoch_sum"]
        self.seconds_before, self.began_at = state["seconds"], self.step


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed inside the block, and leave the caller's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _cuda_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@torch.no_grad()
def evaluate(
    model: nn.Module, samples: Samples, part: str, loss_fn: Loss
) -> tuple[float | None, float | None]:
    """Return mean loss and accuracy (or R^2) in evaluation mode; None without samples.

    Parameters
    ----------
    model : torch.nn.Module
        The network; its mode is put back.
    samples : Samples
        The data.
    part : {"train", "test"}
        Which samples.
    loss_fn : callable
        Mean loss of outputs and targets.

    Returns
    -------
    tuple of float or None
        Loss and score.
    """
    y = samples.y_train if part == "train" else samples.y_test
    n = int(y.shape[0])
    if n == 0:
        return None, None
    was_training = model.training
    model.eval()
    zero = torch.zeros((), dtype=torch.float64, device=y.device)
    loss, score = zero, zero
    for x, target in samples.batches(part):
        out = model(x)
        loss = loss + loss_fn(out, target).double() * len(target)
        if target.is_floating_point():
            score = score + (out.squeeze(-1).double() - target).square().sum()
        else:
            score = score + (out.argmax(1) == target).sum()
    model.train(was_training)
    if y.is_floating_point():
        spread = (y - y.mean()).square().sum().double()
        r2 = 1 - named.to_float(score / spread)
        return named.to_float(loss) / n, r2 if math.isfinite(r2) else None
    return named.to_float(loss) / n, named.to_float(score) / n
