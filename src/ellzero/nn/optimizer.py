"""Training under an exact budget, around any torch optimizer."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.nn import units
from ellzero.nn.budgets import STRUCTURES, Budget, make_balls
from ellzero.nn.schedules import AbstractSchedule, constant
from ellzero.nn.state import plain_names, split, spread
from ellzero.nn.supports import SCORES, Supports, lowered, no_curvature
from ellzero.sets import ProductSet
from ellzero.sets.base import AbstractBudgetSet
from ellzero.tensors import named, thresholded
from ellzero.validation import check_choice, check_integer, check_real

log = logging.getLogger("ellzero")

RECIPES = ("lazy", "straight_through", "iht", "acdc")
# Recipes with latent values beside what the model holds.
LATENT = ("lazy", "straight_through")
# Where callbacks lay a copy of the state for hosts that load the inner optimizer alone.
CARRIED = "ellzero.carried"


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that `torch.compile` leaves as it is, and all that it calls."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        # Late, since it loads the compiler, which every torch optimizer loads when it is built.
        plain = getattr(function, "_uncompiled", None)
        if plain is None:
            plain = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            function._uncompiled = plain  # type: ignore[attr-defined]
        return plain(*args, **kwargs)

    return run


class HardThresholding(torch.optim.Optimizer):
    r"""Any torch optimizer, its parameters kept within an exact budget of nonzeros.

    With ``recipe="lazy"`` the optimizer works on dense *latent* values :math:`\theta`, while the
    model holds :math:`w = T_s(\theta)`, its s largest entries:

    .. math:: \theta \leftarrow \theta - \mathrm{optimizer}(\nabla f(w)), \quad
        w_i = \theta_i \, (1 - (\tau / |\theta_i|)^p)^{1/p} \;\text{on the support, else}\; 0

    where tau is the smallest magnitude in the support and p is `power`: an entry enters and leaves
    the support continuously. ``recipe="straight_through"`` is the same with plain hard
    thresholding, ``recipe="iht"`` thresholds the parameters themselves, and ``recipe="acdc"``
    trains masked or dense as the schedule says.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Built on the parameters of `model`. Its `param_groups` and `state` are shared, so that
        learning-rate schedulers and gradient scalers act on both.
    model : torch.nn.Module
        The network. Its parameters hold exact zeros outside the support after every step.
    n_nonzero : int, float or mapping of str to int or float, default=None
        Entries (int) or density (float) over all weights of two axes or more; a mapping gives one
        for each tensor it names, and one for each pattern, such as ``"encoder.*.weight"``, that
        its tensors share. Required unless `constraint` is given.
    schedule : AbstractSchedule or None, default=None
        How the budget falls and when the support is frozen; None means the final budget at once.
    recipe : {"lazy", "straight_through", "iht", "acdc"}, default="lazy"
        As above.
    power : float or None, default=3.0
        The exponent p of the lazy recipe; None means plain hard thresholding. Other recipes
        ignore it.
    every : int, default=5
        Steps between choices of the support. In between the support stays.
    names : sequence of str or None, default=None
        Tensors to count; None means weights of two axes or more.
    allocation : {"global", "uniform", "erk"}, default="global"
        How one budget is shared by tensors; see `make_balls`.
    floor : float, default=0.05
        Every tensor keeps at least this share of what it would have at uniform density. 0 allows
        a layer to lose all its entries, but never all its rows or columns.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set, such as `NMPattern(2, 4)`, instead of `n_nonzero`. The schedule lowers its
        budget, in the unit of the set.
    structure : {"entries", "rows", "columns"}, default="entries"
        What `n_nonzero` counts; see `make_balls`. Rows are output units and filters, columns are
        input features and channels. A unit counts once, whatever its size, and is kept or zeroed
        whole; a density is a share of the units.
    scores : {"magnitude", "relative", "curvature"}, default="magnitude"
        What the support is chosen by: :math:`|\theta_i|`; :math:`|\theta_i|` over the root mean
        square of its tensor; or :math:`|\theta_i| \, (v_i / \bar v + 10^{-6})^{1/4}`, with the
        squared gradients v that the optimizer averages and their mean over the tensor. At a
        density of 1 % curvature lost 16 points of accuracy to magnitude in our measurement.
    pruned_gradient : float, default=1.0
        Factor on the gradients of entries off the support. Must be in [0, 1]; 0 keeps pruned
        entries where they are, up to momentum and weight decay.
    average : bool, default=False
        Whether `finalize` takes, for all parameters, the mean over the steps since the support
        was frozen. Needs a schedule that freezes it.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range or a name unknown.
    IncompatibleError
        If the optimizer does not hold a counted parameter, needs closures, parameters lie on
        several devices, or columns of sharded parameters are counted.

    Notes
    -----
    Memory: one copy of the counted tensors and one byte an entry more than the optimizer alone.
    A step costs one pass over the counted entries for each choice of the support and work
    proportional to the support otherwise, and one pass over the gradients. On the CPU the step
    runs with subnormal numbers flushed to zero. A step with a gradient that is not finite is
    skipped, counted in `n_skipped` and logged. Ties keep the entries of the present support, then
    the first positions. Sharded parameters (FSDP2) are selected over all shards, without a gather.
    `torch.compile` leaves the step as it is, so that a compiled training step has a break there;
    the `step` of the wrapped optimizer may be compiled.
    Rows and columns are compared by their norm over the mean norm in their tensor, and are shown
    as they are, whatever `power`. Their biases stay; `export.compact` takes dead units out.
    Curvature scores cost another copy of the counted tensors and are taken anew at each choice of
    the support; `average` costs a copy of all parameters and one pass over them for each frozen
    step. Running statistics of normalization layers are not averaged: call
    `torch.optim.swa_utils.update_bn` after `finalize`. Options that are off cost nothing.

    References
    ----------
    .. [1] S. Damadi, S. Zolfaghari, M. Rezaie and J. Shen, "Learning a Sparse Neural Network
       using IHT", arXiv:2404.18414.
    .. [2] A. Peste et al., "AC/DC", arXiv:2106.12379.
    .. [3] "Feather: an elegant solution to effective DNN sparsification", arXiv:2310.02448 (the
       operator with power 3, scaled gradients).
    .. [4] Y. LeCun, J. Denker and S. Solla, "Optimal brain damage", NIPS, 1989 (curvature).

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import HardThresholding, schedules
    >>> model = torch.nn.Linear(10, 10)
    >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer = HardThresholding(base, model, n_nonzero=7)
    >>> model(torch.ones(1, 10)).sum().backward()
    >>> optimizer.step()
    >>> int((model.weight != 0).sum())
    7

    A rate that falls to zero took LeNet-300-100 with 99 % zeros from 97.0 to 97.6 % accuracy:

    >>> base = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.8, 0.99))
    >>> ramp = schedules.ramp(start=0.0, end=0.5, total_steps=8)
    >>> optimizer = HardThresholding(base, model, n_nonzero=5, schedule=ramp)
    >>> decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=8)
    >>> for _ in range(8):
    ...     model(torch.ones(1, 10)).sum().backward()
    ...     optimizer.step()
    ...     decay.step()
    >>> optimizer.finalize()
    >>> int((model.weight != 0).sum()), optimizer.param_groups[0]["lr"]
    (5, 0.0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        n_nonzero: Budget | None = None,
        *,
        schedule: AbstractSchedule | None = None,
        recipe: str = "lazy",
        power: float | None = 3.0,
        every: int = 5,
        names: Sequence[str] | None = None,
        allocation: str = "global",
        floor: float = 0.05,
        constraint: AbstractSparseSet | None = None,
        structure: str = "entries",
        scores: str = "magnitude",
        pruned_gradient: float = 1.0,
        average: bool = False,
    ) -> None:
        check_choice("recipe", recipe, RECIPES)
        check_choice("structure", structure, STRUCTURES)
        check_integer("every", every, 1)
        check_real("floor", floor, 0.0, 1.0)
        if power is not None:
            check_real("power", power, 1.0)
        check_choice("scores", scores, SCORES)
        check_real("pruned_gradient", pruned_gradient, 0.0, 1.0)
        check_optimizer(optimizer)
        _check_options(optimizer, schedule, recipe, scores, pruned_gradient, average)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise IncompatibleError(
                "`optimizer` must take one step for one gradient, got `LBFGS`.",
                "Use a first-order optimizer, such as `torch.optim.AdamW`.",
            )
        if (n_nonzero is None) == (constraint is None):
            given = "both" if constraint is not None else "neither"
            raise InvalidParameterError(
                f"Exactly one of `n_nonzero` and `constraint` must be given, got {given}."
            )
        if constraint is not None and structure != "entries":
            raise InvalidParameterError(
                f"`structure` says what `n_nonzero` counts, got {structure!r} and a `constraint`.",
                "Give `n_nonzero`, or a `SliceL0Ball` as the constraint.",
            )
        params = dict(model.named_parameters())
        self.sets: tuple[AbstractSparseSet, ...]
        if constraint is not None:
            if constraint.names is None:
                wanted = tuple(n for n, p in params.items() if p.ndim >= 2 and p.requires_grad)
                constraint = replace(constraint, names=wanted)  # type: ignore[type-var]
            constraint.check_params({n: p.detach() for n, p in params.items()})
            self.sets = constraint.sets if isinstance(constraint, ProductSet) else (constraint,)
        else:
            assert n_nonzero is not None
            self.sets = make_balls(
                model, n_nonzero, names=names, allocation=allocation, structure=structure
            )
        counted = [name for s in self.sets for name in s.names or ()]
        check_parameters(optimizer, params, counted)
        self.optimizer = optimizer
        self.schedule = constant() if schedule is None else schedule
        self.recipe, self.every, self.floor = recipe, every, floor
        self.power = power if recipe == "lazy" else None
        self.scores, self.pruned_gradient, self.average = scores, pruned_gradient, average
        self.n_averaged = 0
        self.n_steps = 0
        self.n_skipped = 0
        self.is_finalized = False
        self._in_force: tuple[int, ...] = ()
        # The final budgets; -1 for sets that have none.
        self._asked = tuple(
            s.budget if isinstance(s, AbstractBudgetSet) else -1 for s in self.sets
        )
        # The base class wants its own groups; afterwards both share the same objects.
        super().__init__([{"params": [params[counted[0]]]}], optimizer.defaults)
        self._share()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._held = {n: p for n, p in params.items() if id(p) in held} if average else {}
        # Laid out at once, so that a checkpoint finds their place in a fresh optimizer.
        self._means = {n: thresholded.zeros_wide(p) for n, p in self._held.items()}
        self._supports = Supports(
            params,
            self.sets,
            optimizer,
            has_latent=recipe in LATENT,
            power=self.power,
            floor=floor,
            scores=scores,
        )
        self._sizes = tuple(
            s.n_units(params) if isinstance(s, AbstractBudgetSet) else 0 for s in self.sets
        )
        self._choose()

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    # Budgets -----------------------------------------------------------------------------------

    @property
    def n_entries(self) -> int:
        """Entries that the budgets count."""
        return sum(slot.param.numel() for slot in self._supports.slots.values())

    @property
    def n_nonzero(self) -> int:
        """Nonzeros of the counted tensors, counted now; over all shards."""
        return sum(
            thresholded.count_true(s.param.detach() != 0) for s in self._supports.slots.values()
        )

    @property
    def budget(self) -> int:
        """Most nonzeros that the sets allow, by the budget in force since the last choice."""
        points = {n: s.param.detach() for n, s in self._supports.slots.items()}
        return sum(
            lowered(s, n).max_nonzero({k: points[k] for k in s.names or ()})
            for s, n in zip(self.sets, self._in_force, strict=True)
        )

    @property
    def n_units(self) -> int:
        """Nonzero rows or columns of the tensors that are counted by them, counted now."""
        return sum(
            thresholded.count_true(units.nonzero(s.param.detach(), s.axis))
            for s in self._supports.slots.values()
            if s.axis is not None
        )

    @property
    def target(self) -> int:
        """Most nonzeros that the sets allow by the final budget."""
        points = {n: s.param.detach() for n, s in self._supports.slots.items()}
        return sum(s.max_nonzero({k: points[k] for k in s.names or ()}) for s in self.sets)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Copies of the supports now, True on them; of sharded tensors the local part."""
        return {n: slot.mask.clone() for n, slot in self._supports.slots.items()}

    def _budgets(self) -> tuple[int, ...]:
        """Return what the schedule asks for now; -1 for sets that it does not touch."""
        return tuple(
            -1 if asked < 0 else self.schedule.budget(self.n_steps, asked, size)
            for asked, size in zip(self._asked, self._sizes, strict=True)
        )

    # Choice of the support and what the model sees -----------------------------------------------

    @torch.no_grad()
    def _choose(self) -> None:
        """Choose the supports anew from the latent values, and show them."""
        self._in_force = self._budgets()
        self.n_averaged = 0
        self._supports.choose(self._in_force, self.n_steps == 0)

    # The step --------------------------------------------------------------------------------

    @override
    @_uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step of the optimizer and threshold.

        Parameters
        ----------
        closure : callable or None, default=None
            Computes the loss and the gradients; called once, at the thresholded parameters.

        Returns
        -------
        Any
            What `closure` returned, or None.

        Raises
        ------
        IncompatibleError
            If a counted parameter was frozen after construction.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        supports, slots = self._supports, self._supports.all
        if not self.state and self._is_preparation():
            return loss
        for slot in slots:
            if not slot.param.requires_grad:
                raise IncompatibleError(
                    f"{slot.name!r} was frozen (`requires_grad` is False) after the budget was "
                    "fixed.",
                    "Set its learning rate to 0 instead, or call `finalize` and build anew.",
                )
        if not thresholded.all_finite(
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ):
            self.n_skipped += 1
            log.warning("Step %d skipped: a gradient is not finite.", self.n_steps + 1)
            return loss
        written = supports.follow()
        self._mask_gradients()
        if supports.has_latent:
            self._step_latent()
        else:
            with thresholded.flushed():
                self.optimizer.step()
        self.n_steps += 1
        if not self.is_finalized and (written or self._is_due()):
            self._choose()
        else:
            supports.show_all()
        for slot in slots:
            slot.version = slot.param._version
        if self.average and not self.is_finalized and self.schedule.is_frozen(self.n_steps):
            self._accumulate()
        return loss

    def _is_preparation(self) -> bool:
        """Let the optimizer build its state without a step, as `torch.distributed` asks for.

        It asks by a step at a learning rate of zero with gradients that are zero.
        """
        if any(group.get("lr", 1.0) != 0 for group in self.param_groups):
            return False
        held = [p for group in self.param_groups for p in group["params"]]
        if any(thresholded.count_true(p.grad != 0) for p in held if p.grad is not None):
            return False
        self.optimizer.step()
        for values in self.state.values():
            for name in values.keys() & {"step", "momentum_buffer"}:
                if isinstance(values[name], Tensor):
                    values[name].zero_()
        return True

    def _accumulate(self) -> None:
        """Take the present parameters into the mean over the frozen steps."""
        self.n_averaged += 1
        for name, param in self._held.items():
            part = thresholded.local(param)
            mean = self._means[name].to(part.device)
            self._means[name] = mean.lerp_(part.to(mean.dtype), 1 / self.n_averaged)

    def _take_means(self) -> None:
        """Let the parameters hold their means over the frozen steps."""
        for name, param in self._held.items():
            thresholded.local(param).copy_(self._means[name])
        for slot in self._supports.slots.values():
            self._supports.show(slot)  # a mean may be zero, a kept entry may not
            slot.version = slot.param._version

    def _step_latent(self) -> None:
        """Step with the latent values in the place of the shown ones."""
        slots = self._supports.all
        try:
            for slot in slots:
                if slot.is_sharded:
                    # Collectives hold on to the memory of a sharded parameter.
                    slot.shown.copy_(slot.latent)
                else:
                    slot.param.data = slot.latent
            with thresholded.flushed():
                self.optimizer.step()
        finally:
            for slot in slots:
                if slot.is_sharded:
                    slot.latent.copy_(slot.shown)
                    slot.shown.zero_()
                else:
                    slot.param.data = slot.shown

    def _is_due(self) -> bool:
        """Return whether the support is to be chosen: every few steps, and on jumps at once."""
        final = self.schedule.is_final(self.n_steps)
        now = self._asked if final and self._in_force == self._asked else self._budgets()
        if now != self._in_force:
            jumps = any(n > old for n, old in zip(now, self._in_force, strict=True))
            if jumps or final or now == self._asked:
                return True
        if self.n_steps % self.every or now == self._sizes == self._in_force:
            return False  # a budget of all entries leaves no choice
        return not self.schedule.is_frozen(self.n_steps)

    def _mask_gradients(self) -> None:
        """Shrink gradients off the support; in a sparse phase of AC/DC they are zero."""
        factor = 0.0 if self.recipe == "acdc" else self.pruned_gradient
        if factor == 1.0 or (self.is_finalized and self.recipe != "acdc"):
            return
        for slot in self._supports.slots.values():
            if slot.param.grad is not None:
                grad = thresholded.local(slot.param.grad)
                grad.copy_(torch.where(slot.mask, grad, grad * factor))

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def finalize(self, dtype: torch.dtype | None = None) -> None:
        """Fix the support at the final budget and drop the latent values.

        Afterwards the model holds exact zeros and the count asked for; further steps train the
        entries of the support alone. The wrapped model is a plain module with plain keys. What
        was written into the model since the last step, such as an average of weights, is kept but
        for the entries over the budget; so it is by every later call.

        Parameters
        ----------
        dtype : torch.dtype or None, default=None
            Type in which the model will be stored. Kept entries that it would round to zero become
            its smallest number, so that the count holds after the cast. None changes nothing.

        Raises
        ------
        InvalidParameterError
            If the schedule has not reached the final budget.
        """
        inner = getattr(self, "_optimizer", None)
        if isinstance(inner, HardThresholding):  # proxies of Lightning run methods on themselves
            inner.finalize(dtype)
            return
        if not self.is_finalized and not self.schedule.is_final(self.n_steps):
            raise InvalidParameterError(
                f"`finalize` must come after the schedule has reached the final budget, got "
                f"step {self.n_steps} with a budget of {self.budget}.",
                "Train on, or give a schedule with fewer `total_steps`.",
            )
        if not self.is_finalized and self.average and not self.schedule.is_frozen(self.n_steps):
            raise InvalidParameterError(
                f"`finalize` must come after the support was frozen, since `average` is True, "
                f"got step {self.n_steps}.",
                "Train on, or give a schedule with a smaller `freeze`.",
            )
        for slot in self._supports.slots.values():
            slot.version = -1  # what is written to `param.data` does not count as a version
        written = self._supports.follow() or self.is_finalized
        stale = self._budgets() != self._in_force or not self.schedule.is_frozen(self.n_steps)
        if stale and not written:
            self._choose()
        self._supports.drop_latent()
        if written:
            self._choose()
        elif self.n_averaged:
            self._take_means()
        self.is_finalized = True
        if dtype is not None:
            for slot in self._supports.slots.values():
                thresholded.fit_to(slot.shown, slot.mask, dtype)

    # State -----------------------------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint must have been saved with to be loaded, as plain values."""
        return {
            "sets": [plain_names(repr(s)) for s in self.sets],
            "recipe": self.recipe,
            "power": self.power,
            "every": self.every,
            "floor": self.floor,
            "scores": self.scores,
            "pruned_gradient": self.pruned_gradient,
            "average": self.average,
            "schedule": repr(self.schedule),
        }

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raise when the settings of a checkpoint are not those of this optimizer.

        Parameters
        ----------
        settings : mapping
            `settings` of the optimizer that was saved.

        Raises
        ------
        InvalidParameterError
            If the budget, the recipe or the schedule is another.
        """
        for key, value in self.settings.items():
            if settings.get(key) != value:
                raise InvalidParameterError(
                    f"`state_dict` was saved with {key} {settings.get(key)}, "
                    f"this optimizer has {value}.",
                    "Build the optimizer with the settings of the checkpoint.",
                )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and that of the budget.

        Returns
        -------
        dict
            Everything that a run needs to go on bit for bit, besides the model's own state. What
            belongs to a parameter lies beside the optimizer's state of it, the rest in the first
            group, both under ``"hard_thresholding"``.
        """
        ours = {
            "settings": self.settings,
            "n_steps": self.n_steps,
            "n_skipped": self.n_skipped,
            "is_finalized": self.is_finalized,
            "in_force": list(self._in_force),
            "latent": self.latent,
            "masks": {n: s.share(s.mask) for n, s in self._supports.slots.items()},
            "levels": {
                n: torch.tensor(s.level, dtype=torch.float64)
                for n, s in self._supports.slots.items()
            },
            "n_averaged": self.n_averaged,
            "means": {n: thresholded.share_like(t, self._held[n]) for n, t in self._means.items()},
        }
        if self.scores != "magnitude":
            ours["factors"] = self._factors()
        return spread(self.optimizer.state_dict(), ours, self._numbers())

    @property
    def latent(self) -> dict[str, Tensor]:
        """Dense values behind the counted parameters, by name; sharded like them."""
        return {n: s.share(s.latent) for n, s in self._supports.slots.items()}

    def _numbers(self) -> dict[str, int]:
        """Return the place in the optimizer of every parameter that has a state of ours."""
        held = [p for group in self.param_groups for p in group["params"]]
        places = {id(p): i for i, p in enumerate(held)}
        ours = self._held | {n: s.param for n, s in self._supports.slots.items()}
        return {n: places[id(p)] for n, p in ours.items()}

    @override
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; nothing is changed when it does not fit.

        Parameters
        ----------
        state_dict : dict
            State of a `HardThresholding` with the same budget, recipe and schedule, as it is or
            from ``torch.distributed.checkpoint.state_dict`` (not flattened).

        Raises
        ------
        InvalidParameterError
            If the state is of another optimizer, budget or network; with sharded parameters, on
            all processes that share one.
        """
        plain, ours = split(state_dict, self._numbers())
        wrong: InvalidParameterError | None = None
        try:
            ours = self._check_state(ours)
        except InvalidParameterError as error:
            wrong = error
        if thresholded.any_process(
            wrong is not None, (s.param for s in self._supports.slots.values())
        ):
            raise wrong or InvalidParameterError(
                "`state_dict` does not fit on another process.",
                "See the message of that process.",
            )
        assert ours is not None
        self.optimizer.load_state_dict(plain)
        self.optimizer.state.pop(CARRIED, None)  # type: ignore[call-overload]
        self._share()
        self.n_steps, self.n_skipped = ours["n_steps"], ours["n_skipped"]
        self.is_finalized = ours["is_finalized"]
        self._supports.has_latent = self.recipe in LATENT and not self.is_finalized
        self._in_force = tuple(ours["in_force"])
        for name, slot in self._supports.slots.items():
            latent = thresholded.local(ours["latent"][name])
            slot.shown = thresholded.local(slot.param)
            if not self._supports.has_latent:
                slot.latent = slot.shown
                slot.shown.copy_(latent)
            else:
                slot.latent = latent.to(slot.shown, copy=True)
            slot.mask = thresholded.local(ours["masks"][name]).to(slot.shown.device, copy=True)
            slot.level = named.to_float(ours["levels"][name])
            slot.trend = slot.drift = 0.0
            slot.index = None
            slot.factor = 1.0
            if "factors" in ours:
                factor = thresholded.local(ours["factors"][name])
                whole = factor.ndim > 0
                slot.factor = (
                    factor.to(slot.shown.device, copy=True) if whole else named.to_float(factor)
                )
            if slot.latent is not slot.shown:
                slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
                slot.shown.zero_()
            self._supports.show(slot)
            slot.version = slot.param._version
        self.n_averaged = ours["n_averaged"]
        for name, mean in ours.get("means", {}).items():
            self._means[name] = thresholded.local(mean).to(self._held[name].device, copy=True)

    def _factors(self) -> dict[str, Tensor]:
        """Return what scores multiply magnitudes by; numbers as 0-d tensors."""
        return {
            n: s.share(s.factor)
            if isinstance(s.factor, Tensor)
            else torch.tensor(s.factor, dtype=torch.float64)
            for n, s in self._supports.slots.items()
        }

    def _check_state(self, ours: dict[str, Any] | None) -> dict[str, Any]:
        """Return our part of a state when it fits."""
        if ours is None:
            raise InvalidParameterError(
                "`state_dict` must come from a `HardThresholding`, got one without supports.",
                "Resume with the optimizer state that was saved by the sparse run.",
            )
        self.check_settings(ours["settings"])
        for name, slot in self._supports.slots.items():
            given = ours.get("latent", {}).get(name)
            part = None if given is None else thresholded.local(given).shape
            if given is None or given.shape != slot.param.shape or part != slot.latent.shape:
                raise InvalidParameterError(
                    f"`state_dict` does not fit the network: tensor {name!r} of shape "
                    f"{tuple(slot.param.shape)} is missing, or of another shape or sharding."
                )
        return ours

    @override
    def __getstate__(self) -> dict[str, Any]:
        left = ("step", "zero_grad")  # wrapped by learning-rate schedulers, which wrap anew
        return {k: v for k, v in self.__dict__.items() if k not in left and "_hooks" not in k}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_supports" not in state:  # the base class loads groups by this method too
            return
        self._share()
        self._supports.attach()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse parameters after construction, once the budget is fixed."""
        if hasattr(self, "_supports"):
            raise IncompatibleError(
                "A parameter cannot be added after the budget was fixed.",
                "Build the optimizer and `HardThresholding` again with all parameters.",
            )
        super().add_param_group(param_group)


def _check_options(
    optimizer: torch.optim.Optimizer,
    schedule: AbstractSchedule | None,
    recipe: str,
    scores: str,
    pruned_gradient: float,
    average: bool,
) -> None:
    """Refuse options that do not go together."""
    if scores == "curvature" and isinstance(optimizer, torch.optim.SGD):
        raise IncompatibleError(*no_curvature(optimizer))
    if pruned_gradient != 1.0 and recipe == "acdc":
        raise InvalidParameterError(
            f"`pruned_gradient` must be 1.0 with recipe 'acdc', got {pruned_gradient:g}.",
            "In its sparse phases gradients off the support are zero already.",
        )
    if average and not (constant() if schedule is None else schedule).is_frozen(sys.maxsize):
        raise InvalidParameterError(
            f"`average` must be False unless the schedule freezes the support, got {schedule!r}.",
            "Give `schedules.ramp` a `freeze` below 1, such as 0.8.",
        )


def check_optimizer(optimizer: object) -> None:
    """Raise unless this is a torch optimizer."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidParameterError(
            f"`optimizer` must be a torch optimizer, got {type(optimizer).__name__}.",
            "Pass `torch.optim.SGD(model.parameters(), lr=0.1)`, for example, then the model.",
        )


def check_parameters(
    optimizer: torch.optim.Optimizer, params: Mapping[str, nn.Parameter], counted: Sequence[str]
) -> None:
    """Raise unless an optimizer holds the counted parameters, finite and on one device."""
    devices = sorted({str(params[n].device) for n in counted})
    if len(devices) > 1:
        raise IncompatibleError(
            f"The counted parameters lie on several devices: {', '.join(devices)}.",
            "Give a budget for each device: name its tensors by `names`.",
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in counted:
        if id(params[name]) not in held:
            raise IncompatibleError(
                f"`optimizer` does not hold the parameter {name!r} that the budget counts.",
                "Build it on `model.parameters()`.",
            )
        if not named.all_true(torch.isfinite(params[name].detach()).all()):
            raise NonFiniteError(f"Tensor {name!r} contains NaN or infinity.")
