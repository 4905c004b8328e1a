"""What the callbacks of all hosts share: the options of a budget, and what is done with them."""

from __future__ import annotations

import inspect
import logging
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError, did_you_mean
from ellzero.nn import schedules
from ellzero.nn.budgets import Budget, make_balls, prunable
from ellzero.nn.optimizer import HardThresholding
from ellzero.validation import check_integer

log = logging.getLogger("ellzero")

Schedule = schedules.AbstractSchedule | Callable[[int], schedules.AbstractSchedule]
OWN = {"self", "optimizer", "model", "n_nonzero", "constraint", "schedule"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Options of a budget, before the optimizer and the length of the training are known.

    Parameters
    ----------
    n_nonzero : int, float, mapping of str to int or float, or None, default=None
        As for `HardThresholding`.
    constraint : AbstractSparseSet or None, default=None
        As for `HardThresholding`.
    schedule : AbstractSchedule, callable or None, default=None
        The schedule, or what makes it of the number of optimizer steps.
    total_steps : int or None, default=None
        Optimizer steps of the training; None means those that the host counts.
    dtype : torch.dtype or None, default=None
        Type in which the model will be stored.
    options : mapping, default={}
        Further arguments of `HardThresholding`.

    Raises
    ------
    InvalidParameterError
        If options contradict one another or are unknown.
    """

    n_nonzero: Budget | None = None
    constraint: AbstractSparseSet | None = None
    schedule: Schedule | None = None
    total_steps: int | None = None
    dtype: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = sorted(set(inspect.signature(HardThresholding.__init__).parameters) - OWN)
        for name in self.options:
            if name not in known:
                raise InvalidParameterError(
                    f"Unknown option {name!r}.{did_you_mean(name, known)}",
                    f"Known options: {', '.join(known)}.",
                )
        if self.n_nonzero is not None and self.constraint is not None:
            raise InvalidParameterError(
                "Exactly one of `n_nonzero` and `constraint` must be given, got both."
            )
        idle = [n for n in ("schedule", "total_steps") if getattr(self, n) is not None]
        if not self.has_budget and (idle := [*idle, *self.options]):
            raise InvalidParameterError(
                f"`{idle[0]}` must come with `n_nonzero` or `constraint`, got neither.",
                "Give the budget, or nothing where the optimizer is a `HardThresholding` already.",
            )
        if self.total_steps is not None:
            check_integer("total_steps", self.total_steps, 1)
            if isinstance(self.schedule, schedules.AbstractSchedule):
                raise InvalidParameterError(
                    f"`total_steps` must come without a finished `schedule`, got {self.schedule}.",
                    "Give what makes a schedule of the number of steps, such as "
                    "`functools.partial(schedules.ramp, 0.0, 0.6)`.",
                )

    @property
    def has_budget(self) -> bool:
        """Whether there is something to wrap an optimizer with."""
        return self.n_nonzero is not None or self.constraint is not None

    @property
    def counts_steps(self) -> bool:
        """Whether the schedule is made of the number of steps."""
        fixed = isinstance(self.schedule, schedules.AbstractSchedule)
        return self.has_budget and not fixed

    def make_schedule(self, total_steps: int | None) -> schedules.AbstractSchedule:
        """Return the schedule for a training of a length.

        Parameters
        ----------
        total_steps : int or None
            Optimizer steps that the host counts; None where it cannot.

        Returns
        -------
        AbstractSchedule
            The one given, or what was given made for this length; by default a cubic ramp over
            the first half, and with the option `average` a frozen support in the last quarter.

        Raises
        ------
        InvalidParameterError
            If the length is needed and nobody knows it.
        """
        if isinstance(self.schedule, schedules.AbstractSchedule):
            return self.schedule
        total = total_steps if self.total_steps is None else self.total_steps
        if total is None:
            raise InvalidParameterError(
                "`total_steps` must be given where the host cannot count the optimizer steps of "
                "the training, got None.",
                "Limit the training by steps or epochs, or pass `total_steps` or a `schedule`.",
            )
        if self.schedule is None:
            # Weights are averaged over the steps of a frozen support.
            freeze = 0.75 if self.options.get("average") else 1.0
            return schedules.ramp(0.0, 0.5, total, freeze=freeze)
        return self.schedule(total)

    def wrap(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        model: nn.Module,
        schedule: schedules.AbstractSchedule,
    ) -> list[torch.optim.Optimizer]:
        """Return the optimizers, those that hold counted tensors within their budget.

        Parameters
        ----------
        optimizers : sequence of torch.optim.Optimizer
            All optimizers of the training.
        model : torch.nn.Module
            The network.
        schedule : AbstractSchedule
            How the budget falls.

        Returns
        -------
        list of torch.optim.Optimizer
            As many, in order.

        Raises
        ------
        IncompatibleError
            If an optimizer has a budget already, or none holds a counted tensor.
        InvalidParameterError
            If the budget is wrong, or one number that several optimizers would have to share.
        """
        if any(isinstance(o, HardThresholding) for o in optimizers):
            raise IncompatibleError(
                "The optimizer is a `HardThresholding` already, and the callback has a budget "
                "too.",
                "Give the callback no budget; it then follows that of the optimizer.",
            )
        if len(optimizers) == 1:
            return [self._wrap_one(optimizers[0], model, schedule)]
        params = dict(model.named_parameters())
        held = [{id(p) for g in o.param_groups for p in g["params"]} for o in optimizers]
        holders = {}
        for name in self._names(model):
            owner = next((i for i, ids in enumerate(held) if id(params[name]) in ids), None)
            if owner is None:
                raise IncompatibleError(
                    f"No optimizer holds the parameter {name!r} that the budget counts.",
                    "Build one on it, or leave it out of `names`.",
                )
            holders[name] = owner
        sharing = len(set(holders.values()))
        if sharing > 1 and isinstance(self.n_nonzero, numbers.Integral):
            raise InvalidParameterError(
                f"`n_nonzero` must be a density or a mapping where {sharing} optimizers hold the "
                f"weights, got {self.n_nonzero}.",
                "One number cannot be shared by optimizers that step at different times.",
            )
        wrapped = []
        for i, optimizer in enumerate(optimizers):
            mine = tuple(n for n, owner in holders.items() if owner == i)
            if mine:
                optimizer = self._restrict(mine, model)._wrap_one(optimizer, model, schedule)  # noqa: PLW2901
            wrapped.append(optimizer)
        return wrapped

    def _names(self, model: nn.Module) -> tuple[str, ...]:
        """Return the counted tensors of a network."""
        if self.constraint is not None:
            return tuple(prunable(model)) if (n := self.constraint.names) is None else n
        assert self.n_nonzero is not None
        balls = make_balls(model, self.n_nonzero, names=self.options.get("names"))
        return tuple(n for ball in balls for n in ball.names or ())

    def _restrict(self, names: tuple[str, ...], model: nn.Module) -> Plan:
        """Return the plan for some of the counted tensors."""
        if self.constraint is not None:
            return replace(self, constraint=replace(self.constraint, names=names))  # type: ignore[type-var]
        if isinstance(self.n_nonzero, Mapping):
            part = {
                key: n
                for key, n in self.n_nonzero.items()
                if Plan({key: n})._names(model)[0] in names
            }
            return replace(self, n_nonzero=part)
        return replace(self, options={**self.options, "names": names})

    def _wrap_one(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        schedule: schedules.AbstractSchedule,
    ) -> torch.optim.Optimizer:
        return HardThresholding(
            optimizer,
            model,
            self.n_nonzero,
            schedule=schedule,
            constraint=self.constraint,
            **self.options,
        )


def is_final(sparse: Sequence[HardThresholding]) -> bool:
    """Return whether the final budget is in force everywhere."""
    return all(o.is_finalized or o.schedule.is_final(o.n_steps) for o in sparse)


def _is_done(optimizer: HardThresholding, step: int) -> bool:
    """Return whether `finalize` can follow a step."""
    schedule = optimizer.schedule
    is_averaged = not optimizer.average or schedule.is_frozen(step)
    return optimizer.is_finalized or (schedule.is_final(step) and is_averaged)


def check_end(sparse: Sequence[HardThresholding], left: int) -> None:
    """Raise when a schedule ends after the training.

    Parameters
    ----------
    sparse : sequence of HardThresholding
        All budgets of the training.
    left : int
        Optimizer steps that are still to come.

    Raises
    ------
    InvalidParameterError
        If a final budget would not be in force by then, or a support not frozen whose weights
        are to be averaged.
    """
    for optimizer in sparse:
        total = optimizer.n_steps + left
        if not _is_done(optimizer, total):
            aim = "freeze the support" if optimizer.average else "reach the final budget"
            raise InvalidParameterError(
                f"`schedule` must {aim} within the {total} optimizer steps of "
                f"the training, got {optimizer.schedule}.",
                "Train longer, or give no schedule for one that fits.",
            )


def finish(sparse: Sequence[HardThresholding], dtype: torch.dtype | None) -> bool:
    """Fix the supports, or warn when the training stopped before the final budget.

    Parameters
    ----------
    sparse : sequence of HardThresholding
        All budgets of the training.
    dtype : torch.dtype or None
        Type in which the model will be stored.

    Returns
    -------
    bool
        Whether the supports are fixed.
    """
    n_steps = max(o.n_steps for o in sparse)
    if not is_final(sparse):
        log.warning(
            "Training stopped after %d steps, before the final budget: the model holds %d "
            "nonzeros instead of %d.",
            n_steps,
            sum(o.n_nonzero for o in sparse),
            sum(o.target for o in sparse),
        )
        return False
    if not all(_is_done(o, o.n_steps) for o in sparse):
        log.warning(
            "Training stopped after %d steps, before the support was frozen: the weights are not "
            "averaged.",
            n_steps,
        )
        return False
    for optimizer in sparse:
        optimizer.finalize(dtype)
    return True


def measure(sparse: Sequence[HardThresholding]) -> dict[str, int | float]:
    """Return what is logged, counted from the weights now.

    Parameters
    ----------
    sparse : sequence of HardThresholding
        All budgets of the training.

    Returns
    -------
    dict of str to int or float
        ``sparsity/n_nonzero`` and ``sparsity/density`` are counted; ``sparsity/budget`` is in
        force and ``sparsity/target`` is the final one.
    """
    count, entries = sum(o.n_nonzero for o in sparse), sum(o.n_entries for o in sparse)
    return {
        "sparsity/n_nonzero": count,
        "sparsity/budget": sum(o.budget for o in sparse),
        "sparsity/target": sum(o.target for o in sparse),
        "sparsity/density": count / entries,
    }
