"""A budget inside the training loop of the Hugging Face Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import InvalidParameterError
from ellzero.nn.budgets import Budget
from ellzero.nn.callbacks.plan import Plan, Schedule, check_end, finish, is_final, measure
from ellzero.nn.optimizer import CARRIED, HardThresholding


class TrainerSparsity(TrainerCallback):
    """Training under an exact budget in the Hugging Face Trainer.

    Wraps the optimizer of the `Trainer` in `HardThresholding`, lets the budget fall over the first
    half of the training, and fixes the support after the last step. Without a budget of its own
    it does the rest for a `HardThresholding` that was passed as ``Trainer(optimizers=...)``.

    Parameters
    ----------
    n_nonzero : int, float, mapping of str to int or float, or None, default=None
        Entries (int) or density (float) over all weights of two axes or more; a mapping gives one
        for each tensor it names.
    schedule : AbstractSchedule, callable or None, default=None
        How the budget falls, or what makes that of the number of optimizer steps, such as
        ``functools.partial(schedules.ramp, 0.0, 0.7)``. None means a ramp over the first half;
        with the option `average`, the support is then frozen in the last quarter.
    total_steps : int or None, default=None
        Optimizer steps of the training. None means what the `Trainer` counts.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set, such as `NMPattern(2, 4)`, instead of `n_nonzero`.
    dtype : torch.dtype or None, default=None
        Type in which the model will be stored; see `HardThresholding.finalize`.
    is_logged : bool, default=True
        Whether ``sparsity/n_nonzero`` and ``sparsity/density``, counted from the weights, are
        logged beside ``sparsity/budget``, which is in force, and ``sparsity/target``.
    **options : Any
        Further arguments of `HardThresholding`: recipe, power, every, names, and so on.

    Attributes
    ----------
    optimizer : HardThresholding or None
        The budget of the present or last training.

    Raises
    ------
    InvalidParameterError
        If an option is unknown or options contradict one another; when the training starts, also
        if a value is out of range, the training ends before the final budget, or a checkpoint
        holds no supports or was saved with another budget.
    IncompatibleError
        If the optimizer has a budget already, or does not hold a counted tensor.

    See Also
    --------
    HardThresholding : Works in the Trainer without any callback.

    Notes
    -----
    Steps are those of the optimizer: accumulation counts once, and a step that a gradient scaler
    skips does not count. The optimizer state that the `Trainer` saves holds the whole state of
    the budget, so that ``train(resume_from_checkpoint=...)`` goes on bit for bit on the CPU. A
    resumed training keeps the ramp of the checkpoint. Supports that were saved without this
    callback are read without it. This is for one device and for DDP: with FSDP and DeepSpeed the
    Trainer stores optimizers in other ways, which do not hold the budget.

    A model is not compared with one that had a larger budget: until the final budget is in force,
    the `Trainer` forgets the best model at every step. ``load_best_model_at_end`` then loads one
    within the budget, and `EarlyStoppingCallback` starts to wait when the budget is final.

    The numbers are added to ``state.log_history`` and to what the callbacks behind this one see.
    For them to reach a reporter, set ``report_to="none"`` and list it: ``callbacks=
    [TrainerSparsity(0.05), TensorBoardCallback()]``.

    Examples
    --------
    >>> from functools import partial
    >>> from ellzero.nn import schedules
    >>> from ellzero.nn.callbacks import TrainerSparsity
    >>> sparsity = TrainerSparsity(0.05, schedule=partial(schedules.ramp, 0.0, 0.7))
    >>> # trainer = transformers.Trainer(model, arguments, callbacks=[sparsity], ...)
    """

    def __init__(
        self,
        n_nonzero: Budget | None = None,
        *,
        schedule: Schedule | None = None,
        total_steps: int | None = None,
        constraint: AbstractSparseSet | None = None,
        dtype: torch.dtype | None = None,
        is_logged: bool = True,
        **options: Any,
    ) -> None:
        self.plan = Plan(n_nonzero, constraint, schedule, total_steps, dtype, options)
        self.is_logged = is_logged
        self.optimizer: HardThresholding | None = None
        self._handle: RemovableHandle | None = None
        self._was_final = False

    @override
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        if not self.plan.has_budget:
            if not isinstance(optimizer.optimizer, HardThresholding):
                raise InvalidParameterError(
                    "`n_nonzero` or `constraint` must be given where the optimizer of the Trainer "
                    "is no `HardThresholding`, got neither.",
                    "Give the callback a budget, such as `TrainerSparsity(0.05)`.",
                )
            self.optimizer = optimizer.optimizer
        elif self._handle is None or optimizer.optimizer is not self.optimizer:
            self._wrap(state, model, optimizer)
        elif state.global_step == 0:  # a training that was cut off starts again
            self._unwrap(optimizer)
            self._wrap(state, model, optimizer)
        assert self.optimizer is not None
        check_end([self.optimizer], state.max_steps - state.global_step)
        self._was_final = is_final([self.optimizer])

    def _wrap(self, state: TrainerState, model: nn.Module, prepared: Any) -> None:
        """Put the budget between the optimizer and what accelerate made of it."""
        base = prepared.optimizer
        # The Trainer has loaded the checkpoint by now, into the optimizer alone.
        carried = base.state.pop(CARRIED, None)
        if state.global_step > 0 and carried is None:
            raise InvalidParameterError(
                f"The checkpoint of step {state.global_step} must hold the supports of a sparse "
                "training, got one without.",
                "Resume a training that was saved with this callback, or load the weights alone "
                "and start anew.",
            )
        is_resumed = state.global_step > 0
        total = carried["total_steps"] if is_resumed else state.max_steps
        schedule = self.plan.make_schedule(total)
        (optimizer,) = self.plan.wrap([base], model, schedule)
        assert isinstance(optimizer, HardThresholding)
        if is_resumed:
            optimizer.load_state_dict(carried["state"])
        self.optimizer = optimizer
        if self._handle is not None:
            self._handle.remove()
        self._handle = base.register_state_dict_post_hook(_Carrier(optimizer, total))
        # What unpickling does: it also renews the methods that a gradient scaler goes through.
        prepared.__setstate__({"optimizer": optimizer})

    def _unwrap(self, prepared: Any) -> None:
        """Leave the optimizer as it was found."""
        prepared.__setstate__({"optimizer": prepared.optimizer.optimizer})

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.optimizer is not None
        if not self._was_final:
            _forget_best(state)
            self._was_final = is_final([self.optimizer])
        if state.global_step >= state.max_steps and self._was_final:
            # Now, so that the last checkpoint and the last evaluation are of the final model.
            finish([self.optimizer], self.plan.dtype)

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._was_final:
            _forget_best(state)

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self.is_logged or self.optimizer is None or not logs:
            return
        if "loss" in logs or "train_loss" in logs:
            values = measure([self.optimizer])
            logs.update(values)
            state.log_history[-1].update(values)

    @override
    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        assert self.optimizer is not None
        finish([self.optimizer], self.plan.dtype)
        if self.plan.has_budget:
            self._unwrap(optimizer)


class _Carrier:
    """Hook that lays the state of a budget where a plain optimizer keeps it when it loads."""

    def __init__(self, optimizer: HardThresholding, total_steps: int) -> None:
        self.optimizer, self.total_steps = optimizer, total_steps
        self._is_busy = False

    def __call__(self, base: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        if self._is_busy:  # the state of the budget contains that of the optimizer
            return
        self._is_busy = True
        try:
            whole = self.optimizer.state_dict()
        finally:
            self._is_busy = False
        carried = {"total_steps": self.total_steps, "state": whole}
        state_dict["state"] = {**state_dict["state"], CARRIED: carried}


def _forget_best(state: TrainerState) -> None:
    """Let the Trainer look for the best model anew."""
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
