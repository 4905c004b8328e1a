"""A budget inside the training loop of Lightning."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import InvalidParameterError
from ellzero.nn.budgets import Budget
from ellzero.nn.callbacks.plan import Plan, Schedule, check_end, finish, is_final, measure
from ellzero.nn.optimizer import HardThresholding


class LightningSparsity(Callback):
    """Training under an exact budget in Lightning.

    Wraps the optimizers of ``configure_optimizers`` in `HardThresholding`, lets the budget fall
    over the first half of the training that the `Trainer` is set to, and fixes the support after
    the last step. Without a budget of its own it does the rest for a `HardThresholding` that
    ``configure_optimizers`` returned.

    Parameters
    ----------
    n_nonzero : int, float, mapping of str to int or float, or None, default=None
        Entries (int) or density (float) over all weights of two axes or more; a mapping gives one
        for each tensor it names, by its name in the `LightningModule`. Several optimizers take a
        density or a mapping.
    schedule : AbstractSchedule, callable or None, default=None
        How the budget falls, or what makes that of the number of optimizer steps, such as
        ``functools.partial(schedules.ramp, 0.0, 0.7)``. None means a ramp over the first half;
        with the option `average`, the support is then frozen in the last quarter.
    total_steps : int or None, default=None
        Optimizer steps of the training. None means what the `Trainer` counts, which it can with
        automatic optimization and a limit of steps or epochs.
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
    optimizers : list of HardThresholding
        The budgets of the present or last training.

    Raises
    ------
    InvalidParameterError
        If an option is unknown or options contradict one another; when the training starts, also
        if a value is out of range, or the training ends before the final budget.
    IncompatibleError
        If an optimizer has a budget already, or none holds a counted tensor.

    See Also
    --------
    HardThresholding : Works in Lightning without any callback.

    Notes
    -----
    Steps are those of the optimizer: accumulation counts once, and a step that a gradient scaler
    skips does not count. A checkpoint of the `Trainer` holds the whole state of the budget, so
    that ``fit(ckpt_path=...)`` goes on bit for bit on the CPU; one that holds no supports, or was
    saved with another budget, is refused. A resumed training keeps the ramp of the checkpoint.

    A model is not compared with one that had a larger budget: until the final budget is in force,
    `EarlyStopping` starts to wait anew at every step, and then `ModelCheckpoint` starts to look
    for the best anew; files that it saved before stay.

    Averages (`WeightAveraging`, `StochasticWeightAveraging`) of models with several supports have
    more nonzeros than each. When training ends, the average is thresholded to the budget. Average
    after the support is frozen (``freeze`` of `schedules.ramp`) to lose nothing by that.

    Examples
    --------
    >>> from functools import partial
    >>> from ellzero.nn import schedules
    >>> from ellzero.nn.callbacks import LightningSparsity
    >>> sparsity = LightningSparsity(0.05, schedule=partial(schedules.ramp, 0.0, 0.7))
    >>> # trainer = lightning.Trainer(callbacks=[sparsity], max_epochs=10)
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
        self.optimizers: list[HardThresholding] = []
        self._total_steps: int | None = None
        self._last_step: int | None = None
        self._max_epochs: int | None = None
        self._step = 0
        self._was_final = False
        self._is_finished = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._total_steps, self._is_finished = None, False
        # Before other callbacks add epochs without steps.
        self._max_epochs = trainer.max_epochs

    # The host loads the state of its callbacks between `setup` and `on_fit_start`, or, where it
    # shards the model, after that.
    @override
    def state_dict(self) -> dict[str, Any]:
        return {"total_steps": self._total_steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._total_steps = state_dict["total_steps"]
        if self._total_steps is not None and self.plan.counts_steps:
            for optimizer in self.optimizers:
                optimizer.schedule = self.plan.make_schedule(self._total_steps)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy = trainer.strategy
        if self.plan.has_budget:
            if self.plan.counts_steps and self._total_steps is None:
                self._total_steps = self.plan.total_steps or count_steps(trainer, self._max_epochs)
            schedule = self.plan.make_schedule(self._total_steps)
            strategy.optimizers = self.plan.wrap(strategy.optimizers, pl_module, schedule)
        self.optimizers = [o for o in strategy.optimizers if isinstance(o, HardThresholding)]
        if not self.optimizers:
            raise InvalidParameterError(
                "`n_nonzero` or `constraint` must be given where `configure_optimizers` returns "
                "no `HardThresholding`, got neither.",
                "Give the callback a budget, such as `LightningSparsity(0.05)`.",
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step, self._last_step = trainer.global_step, count_steps(trainer, self._max_epochs)
        if self._last_step is not None:
            check_end(self.optimizers, self._last_step - self._step)
        self._was_final = is_final(self.optimizers)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if not self._was_final:
            _wait(trainer)
            self._was_final = is_final(self.optimizers)
            if self._was_final:
                _compare_anew(trainer)
        is_last = self._step == self._last_step
        if is_last and self._was_final:
            # Now, so that the last checkpoints and the last validation are of the final model.
            finish(self.optimizers, self.plan.dtype)
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self.is_logged and (is_last or self._step % every == 0):
            kind = torch.float32 if pl_module.device.type == "mps" else torch.float64
            values = {k: torch.tensor(v, dtype=kind) for k, v in measure(self.optimizers).items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_finished = finish(self.optimizers, self.plan.dtype)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Callbacks behind this one may have written an average into the model.
        if self._is_finished:
            finish(self.optimizers, self.plan.dtype)


def count_steps(trainer: Trainer, max_epochs: int | None = None) -> int | None:
    """Return how many optimizer steps a training is set to have.

    Parameters
    ----------
    trainer : lightning.pytorch.Trainer
        Within ``fit``.
    max_epochs : int or None, default=None
        Epochs of the training; None means what the trainer says now.

    Returns
    -------
    int or None
        With accumulation counted once, over all epochs or up to ``max_steps``; None where that is
        not known, as with manual optimization.
    """
    if not trainer.lightning_module.automatic_optimization:
        return None
    total = trainer.estimated_stepping_batches  # loads the data
    batches, epochs = trainer.num_training_batches, max_epochs or trainer.max_epochs or -1
    if math.isfinite(batches) and epochs > 0:
        by_epoch = [c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)]  # type: ignore[attr-defined]
        total = sum(
            math.ceil(batches / by_epoch[0].get_accumulate_grad_batches(epoch))
            if by_epoch
            else math.ceil(batches / trainer.accumulate_grad_batches)
            for epoch in range(epochs)
        )
        total = total if trainer.max_steps == -1 else min(total, trainer.max_steps)
    return int(total) if math.isfinite(total) and total >= 0 else None


def _wait(trainer: Trainer) -> None:
    """Keep early stopping from comparing models with falling budgets."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping):
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op == torch.lt else -worst
            callback.wait_count = 0


def _compare_anew(trainer: Trainer) -> None:
    """Let checkpoints look for the best model anew."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
