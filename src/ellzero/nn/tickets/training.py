"""One training of the protocol: fixed batches, masks applied to weights and gradients."""

from __future__ import annotations

import contextlib
import math
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.nn.optimizer import HardThresholding
from ellzero.nn.tickets.task import Seeds, Task
from ellzero.typing import Masks

Wrap = Callable[[torch.optim.Optimizer, nn.Module], HardThresholding]


@dataclass(frozen=True, slots=True)
class Course:
    """What is kept of one training.

    Parameters
    ----------
    value : float
        The test metric at the end.
    loss : float
        Mean training loss over the last steps, as many as lie between two validations.
    best_step : int or None
        Step of the best validation, the first of equal ones; None without validation.
    best_value : float or None
        The metric there.
    order : int
        Checksum of the batches of the first `n_steps` steps.
    early : mapping of str to Tensor or None
        State of the network after the step asked for.
    masks : mapping of str to Tensor of bool or None
        Supports at the end, of a training under a budget.
    """

    value: float
    loss: float
    best_step: int | None
    best_value: float | None
    order: int
    early: Mapping[str, Tensor] | None = None
    masks: Masks | None = None


def build(make: Callable[[], nn.Module], number: int) -> nn.Module:
    """Return a network whose random start is a function of a number alone."""
    with torch.random.fork_rng(devices=_devices()):
        torch.manual_seed(number)
        model = make()
    if not isinstance(model, nn.Module):
        raise InvalidParameterError(
            f"`build` must return a `torch.nn.Module`, got {type(model).__name__}."
        )
    return model


def batches(task: Task, seeds: Seeds, n_steps: int) -> Iterator[tuple[Any, Any]]:
    """Yield batches epoch by epoch, in the order that the seed alone decides."""
    done, epoch = 0, 0
    while done < n_steps:
        before = done
        number = seeds.number("batches", epoch)
        torch.manual_seed(number)
        with _seeded(task.loader, number):
            if callable(task.loader):
                pairs = task.loader(torch.Generator().manual_seed(number))
            else:
                pairs = task.loader
            for pair in pairs:
                if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                    raise InvalidParameterError(
                        f"`loader` must give pairs of inputs and targets, got "
                        f"{type(pair).__name__}.",
                        "Write a callable that makes them, as `tickets.Shuffled` does.",
                    )
                yield pair[0], pair[1]
                done += 1
                if done == n_steps:
                    break
        if done == before:
            raise InvalidParameterError(
                f"`loader` must give batches in every epoch, got none in epoch {epoch}.",
                "A generator can be gone through only once; give a `DataLoader`, a list of "
                "batches or a `tickets.Shuffled`.",
            )
        epoch += 1


def checksum(value: Any, start: int = 0) -> int:
    """Return the CRC-32 of all tensors in a nested value."""
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            start = zlib.crc32(flat.view(torch.uint8).numpy().data, start)
    return start


def train(
    model: nn.Module,
    task: Task,
    seeds: Seeds,
    *,
    masks: Masks | None = None,
    first: int = 0,
    n_steps: int | None = None,
    early: int | None = None,
    wrap: Wrap | None = None,
) -> Course:
    """Train a network in place and judge it.

    Parameters
    ----------
    model : torch.nn.Module
        At its start.
    task : Task
        Batches, loss, optimizer, judges.
    seeds : Seeds
        Decides the batches.
    masks : mapping of str to Tensor of bool or None, default=None
        Entries that train, of the tensors named; None means all.
    first : int, default=0
        Steps that count as done: their batches are passed over, the learning rate goes on from
        there, the rest of the optimizer starts afresh.
    n_steps : int or None, default=None
        Steps, those passed over included; None means those of the task.
    early : int or None, default=None
        Step after which a copy of the state is kept.
    wrap : callable or None, default=None
        Puts a budget around the optimizer.

    Returns
    -------
    Course
        The metric and how it came about.

    Raises
    ------
    NonFiniteError
        If the training loss becomes NaN or infinite.
    """
    total = task.n_steps if n_steps is None else n_steps
    params = dict(model.named_parameters())
    held = {} if masks is None else {params[n]: m.to(params[n].device) for n, m in masks.items()}
    _apply(held)
    inner = task.optimizer(model.parameters())
    optimizer = inner if wrap is None else wrap(inner, model)
    scheduler = None if task.scheduler is None else task.scheduler(optimizer)
    device = next(iter(params.values())).device
    order, losses = 0, []
    best_step, best_value, kept = None, None, None
    if early == 0:
        kept = _copy(model)
    with torch.random.fork_rng(devices=_devices()):
        for step, pair in enumerate(batches(task, seeds, total), 1):
            if step <= task.n_steps:
                order = checksum(pair, order)
            if step <= first:
                if scheduler is not None:
                    with warnings.catch_warnings():  # that no step of the optimizer came before
                        warnings.simplefilter("ignore", UserWarning)
                        scheduler.step()
                continue
            x, y = _move(pair, device)
            model.train()
            optimizer.zero_grad()
            loss = task.criterion(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            for param, mask in held.items():
                if param.grad is not None:
                    param.grad.mul_(mask)
            optimizer.step()
            _apply(held)
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.detach())
            if step == early:
                kept = _copy(model)
            if step % task.every == 0 or step == total:
                losses = losses[-task.every :]
                _check_loss(float(loss.detach()), step)
                if task.validation is not None:
                    value = _judge(task.validation, model)
                    ahead = value if task.maximize else -value
                    if best_value is None or ahead > (
                        best_value if task.maximize else -best_value
                    ):
                        best_step, best_value = step, value
        supports = None
        if isinstance(optimizer, HardThresholding):
            optimizer.finalize()
            supports = optimizer.masks
        value = _judge(task.test, model)
    mean = float(torch.stack(losses).mean()) if losses else math.nan
    return Course(value, mean, best_step, best_value, order, kept, supports)


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"The training loss is {loss} at step {step}.",
            "Lower the learning rate of `optimizer`, or look for NaN in the data.",
        )


def _judge(judge: Callable[[nn.Module], float], model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        return float(judge(model))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


@torch.no_grad()
def _apply(held: Mapping[nn.Parameter, Tensor]) -> None:
    for param, mask in held.items():
        # A product would leave minus zeros, and NaN where an entry overflowed.
        param.masked_fill_(~mask, 0.0)


def _move(value: Any, device: torch.device) -> Any:
    return torch.utils._pytree.tree_map(
        lambda t: t.to(device) if isinstance(t, Tensor) else t, value
    )


def _devices() -> list[int]:
    return list(range(torch.cuda.device_count()))


@contextlib.contextmanager
def _seeded(loader: Any, number: int) -> Iterator[None]:
    """Seed the generators that a loader holds itself, and put them back."""
    held: list[torch.Generator] = []
    for part in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator) and generator not in held:
            held.append(generator)
    states = [g.get_state() for g in held]
    for generator in held:
        generator.manual_seed(number)
    try:
        yield
    finally:
        for generator, state in zip(held, states, strict=True):
            generator.set_state(state)
