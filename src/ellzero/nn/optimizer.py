"""Training under an exact budget, around any torch optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.nn.budgets import Budget, make_balls, prunable
from ellzero.nn.schedules import AbstractSchedule, constant
from ellzero.sets import L0Ball
from ellzero.tensors import named, thresholded
from ellzero.validation import check_choice, check_integer, check_real

log = logging.getLogger("ellzero")

RECIPES = ("lazy", "iht", "acdc")


class _Slot:
    """One counted tensor; of a sharded one, the part that this process holds.

    `shown` shares the memory of the parameter. `latent` is the same tensor where the recipe has
    no latent values. The support is a mask, an index, or both; the mask is made when it is read.
    """

    __slots__ = (
        "_index", "_mask", "drift", "is_sharded", "latent", "level", "name", "param", "shown",
        "version",
    )  # fmt: skip

    def __init__(
        self, name: str, param: nn.Parameter, latent: Tensor, shown: Tensor, mask: Tensor
    ) -> None:
        self.name, self.param, self.latent, self.shown = name, param, latent, shown
        self._mask: Tensor | None = mask
        self._index: Tensor | None = None
        self.is_sharded = thresholded.is_sharded(param)
        self.level = 0.0
        self.drift = 0.0
        self.version = 0

    @property
    def mask(self) -> Tensor:
        if self._mask is None:
            assert self._index is not None
            self._mask = thresholded.mark(self._index, self.shown)
        return self._mask

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._mask = mask

    @property
    def index(self) -> Tensor | None:
        return self._index

    @index.setter
    def index(self, index: Tensor | None) -> None:
        if index is None and self._mask is None:
            self._mask = self.mask
        self._index = index

    def hold(self, index: Tensor, level: float) -> None:
        """Take another support, whose values are written already."""
        self._index, self._mask = index, None
        self.move(level)

    def move(self, level: float) -> None:
        """Take another threshold, and keep in mind how far it was from the old one."""
        self.drift, self.level = max(abs(level - self.level), self.drift / 2), level

    def share(self, part: Tensor) -> Tensor:
        """Return a local tensor as one sharded like the parameter."""
        return thresholded.share_like(part, self.param)


class HardThresholding(torch.optim.Optimizer):
    r"""Any torch optimizer, its parameters kept within an exact budget of nonzeros.

    With ``recipe="lazy"`` the optimizer works on dense *latent* values :math:`\theta`, while the
    model holds :math:`w = T_s(\theta)`, its s largest entries:

    .. math:: \theta \leftarrow \theta - \mathrm{optimizer}(\nabla f(w)), \quad
        w_i = \theta_i \, (1 - (\tau / |\theta_i|)^p)^{1/p} \;\text{on the support, else}\; 0

    where tau is the smallest magnitude in the support and p is `power`: an entry enters and leaves
    the support continuously. ``recipe="iht"`` thresholds the parameters themselves, and
    ``recipe="acdc"`` trains masked or dense as the schedule says.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Built on the parameters of `model`. Its `param_groups` and `state` are shared, so that
        learning-rate schedulers and gradient scalers act on both.
    model : torch.nn.Module
        The network. Its parameters hold exact zeros outside the support after every step.
    n_nonzero : int, float or mapping of str to int or float, default=None
        Entries (int) or density (float) over all weights of two axes or more; a mapping gives one
        for each tensor it names. Required unless `constraint` is given.
    schedule : AbstractSchedule or None, default=None
        How the budget falls and when the support is frozen; None means the final budget at once.
    recipe : {"lazy", "iht", "acdc"}, default="lazy"
        As above.
    power : float or None, default=3.0
        The exponent p of the lazy recipe; None means plain hard thresholding.
    every : int, default=5
        Steps between choices of the support. In between the support stays.
    names : sequence of str or None, default=None
        Tensors to count; None means weights of two axes or more.
    allocation : {"global", "uniform", "erk"}, default="global"
        How one budget is shared by tensors; see `make_balls`.
    floor : float, default=0.05
        Every tensor keeps at least this share of what it would have at uniform density. 0 allows
        a layer to lose all its entries.
    constraint : AbstractSparseSet or None, default=None
        Any sparse set, such as `NMPattern(2, 4)`, instead of `n_nonzero`; in force at once.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range or a name unknown.
    IncompatibleError
        If the optimizer does not hold a counted parameter, needs closures, or parameters lie on
        several devices.

    Notes
    -----
    Memory: one copy of the counted tensors and one byte an entry more than the optimizer alone.
    A step costs one pass over the counted entries for each choice of the support and work
    proportional to the support otherwise, and one pass over the gradients. On the CPU the step
    runs with subnormal numbers flushed to zero. A step with a gradient that is not finite is
    skipped, counted in `n_skipped` and logged. Ties keep the entries of the present support, then
    the first positions. Sharded parameters (FSDP2) are selected over all shards, without a gather.

    References
    ----------
    .. [1] S. Damadi, S. Zolfaghari, M. Rezaie and J. Shen, "Learning a Sparse Neural Network
       using IHT", arXiv:2404.18414.
    .. [2] A. Peste et al., "AC/DC", arXiv:2106.12379.
    .. [3] A. Glandorf and others, "Feather", arXiv:2310.02448 (the operator with power 3).

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import HardThresholding
    >>> model = torch.nn.Linear(10, 10)
    >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> optimizer = HardThresholding(base, model, n_nonzero=7)
    >>> model(torch.ones(1, 10)).sum().backward()
    >>> optimizer.step()
    >>> int((model.weight != 0).sum())
    7
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
    ) -> None:
        check_choice("recipe", recipe, RECIPES)
        check_integer("every", every, 1)
        check_real("floor", floor, 0.0, 1.0)
        if power is not None:
            check_real("power", power, 1.0)
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
        params = dict(model.named_parameters())
        self.sets: tuple[AbstractSparseSet, ...]
        if constraint is not None:
            if constraint.names is None:
                wanted = tuple(n for n, p in params.items() if p.ndim >= 2 and p.requires_grad)
                constraint = replace(constraint, names=wanted)  # type: ignore[type-var]
            constraint.check_params({n: p.detach() for n, p in params.items()})
            self.sets = (constraint,)
        else:
            assert n_nonzero is not None
            self.sets = make_balls(model, n_nonzero, names=names, allocation=allocation)
        counted = [name for s in self.sets for name in s.names or ()]
        _check_parameters(optimizer, params, counted)
        self.optimizer = optimizer
        self.schedule = constant() if schedule is None else schedule
        self.recipe, self.power, self.every, self.floor = recipe, power, every, floor
        self.n_steps = 0
        self.n_skipped = 0
        self.is_finalized = False
        self._said: set[str] = set()
        self._in_force: tuple[int, ...] = ()
        self._asked = tuple(s.n_nonzero if isinstance(s, L0Ball) else -1 for s in self.sets)
        # The base class wants its own groups; afterwards both share the same objects.
        super().__init__([{"params": [params[counted[0]]]}], optimizer.defaults)
        self._share()
        self._slots: dict[str, _Slot] = {}
        self._table: thresholded.Table | None = None
        for name in counted:
            shown = thresholded.local(params[name])
            latent = shown.clone() if recipe == "lazy" else shown
            mask = torch.zeros_like(shown, dtype=torch.bool)
            self._slots[name] = _Slot(name, params[name], latent, shown, mask)
        self._sizes = tuple(sum(params[n].numel() for n in s.names or ()) for s in self.sets)
        self._choose()

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    # Budgets -----------------------------------------------------------------------------------

    @property
    def n_entries(self) -> int:
        """Entries that the budgets count."""
        return sum(slot.param.numel() for slot in self._slots.values())

    @property
    def n_nonzero(self) -> int:
        """Nonzeros of the counted tensors, counted now; over all shards."""
        return sum(thresholded.count_true(s.param.detach() != 0) for s in self._slots.values())

    @property
    def budget(self) -> int:
        """Most nonzeros that the sets allow, by the budget in force since the last choice."""
        points = {n: s.param.detach() for n, s in self._slots.items()}
        return sum(
            n if isinstance(s, L0Ball) else s.max_nonzero({k: points[k] for k in s.names or ()})
            for s, n in zip(self.sets, self._in_force, strict=True)
        )

    def _budgets(self) -> tuple[int, ...]:
        """Return what the schedule asks for now; -1 for sets that it does not touch."""
        return tuple(
            self.schedule.budget(self.n_steps, s.n_nonzero, n) if isinstance(s, L0Ball) else -1
            for s, n in zip(self.sets, self._sizes, strict=True)
        )

    # Choice of the support and what the model sees -----------------------------------------------

    @torch.no_grad()
    def _choose(self) -> None:
        """Choose the supports anew from the latent values, and show them."""
        self._in_force = self._budgets()
        place = 0
        for s, count in zip(self.sets, self._in_force, strict=True):
            names = s.names or ()
            part = slice(place, place + len(names))
            place = part.stop
            if isinstance(s, L0Ball) and self._choose_by_table(part, count):
                continue
            scores = {n: self._slots[n].share(self._slots[n].latent) for n in names}
            held = {n: self._slots[n].share(self._slots[n].mask) for n in names}
            if isinstance(s, L0Ball):
                masks, levels = self._select(count, scores, held)
            else:
                masks, levels = dict(s.select(s.gains(scores), incumbents=held)), {}
            for name in names:
                self._change(self._slots[name], masks[name], levels.get(name, 0.0))

    def _tabulate(self) -> thresholded.Table | None:
        """Return the slots as a table for the kernels, or None where those cannot take them."""
        slots = self._slots.values()
        if self.recipe != "lazy" or self.is_finalized or any(s.is_sharded for s in slots):
            return None
        table = self._table
        if table is not None:
            for slot, row in zip(slots, table.rows, strict=True):
                if slot.latent is not row.latent or slot.shown is not row.shown:
                    table = None
                    break
                index = slot.index
                if index is not row.index or (index is None and slot.mask is not row.mask):
                    row.place(index, None if index is not None else slot.mask, slot.level)
        if table is None:
            latents, shown = [s.latent for s in slots], [s.shown for s in slots]
            if not thresholded.Table.fits(latents, shown, self.power):
                return None
            table = self._table = thresholded.Table(latents, shown, self.power)
            for slot, row in zip(slots, table.rows, strict=True):
                index = slot.index
                row.place(index, None if index is not None else slot.mask, slot.level)
        return table

    def _choose_by_table(self, part: slice, count: int) -> bool:
        """Choose the supports that share a budget in two passes; return whether that worked."""
        slots = list(self._slots.values())[part]
        sizes = [slot.latent.numel() for slot in slots]
        if not 0 < count <= thresholded.FULL * sum(sizes) or slots[0].level <= 0:
            return False
        table = self._tabulate()
        if table is None:
            return False
        least = self._least(count, sizes) if len(sizes) > 1 else [1]
        # A tensor without entries is told of, by the other way.
        chosen = table.choose(part, count, [max(n, 1) for n in least], _near(slots[0]))
        if chosen is None:
            return False
        for slot, index in zip(slots, chosen[0], strict=True):
            slot.hold(index, chosen[1])
        return True

    def _least(self, count: int, sizes: Sequence[int]) -> list[int]:
        """Return what every tensor that shares a budget has to keep."""
        if self.floor == 0:
            return [0] * len(sizes)
        one, total = int(count >= len(sizes)), sum(sizes)
        return [max(one, int(self.floor * count * n / total)) for n in sizes]

    def _change(self, slot: _Slot, mask: Tensor, level: float) -> None:
        """Give a tensor another support, clearing the entries that left."""
        slot.mask = thresholded.local(mask)
        slot.move(level)
        old, slot.index = slot.index, None
        if self.recipe != "lazy":
            self._show(slot)
            return
        slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
        if slot.index is not None and old is None:
            slot.shown.zero_()
        elif slot.index is not None and old is not None:
            thresholded.clear(slot.shown, old)
        self._show(slot)

    def _select(
        self, count: int, scores: Mapping[str, Tensor], held: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return supports and thresholds of tensors that share a budget, none below its floor."""
        near = _near(self._slots[next(iter(scores))])
        masks, level = thresholded.top_k(scores, count, held, near)
        levels = dict.fromkeys(scores, level)
        total = sum(t.numel() for t in scores.values())
        if len(scores) == 1 or count == total:
            return masks, levels
        sizes = [t.numel() for t in scores.values()]
        least = dict(zip(scores, self._least(count, sizes), strict=True))
        poor: dict[str, int] = {}
        while True:
            counts = {n: thresholded.count_true(m) for n, m in masks.items() if n not in poor}
            below = {n: least[n] for n, c in counts.items() if c < least[n]}
            self._say_collapse([n for n, c in counts.items() if c == 0 and n not in below], below)
            if not below:
                return masks, levels
            poor |= below
            for name, few in below.items():
                kept, levels[name] = thresholded.top_k(
                    {name: scores[name]}, few, {name: held[name]}
                )
                masks |= kept
            rest = {n: t for n, t in scores.items() if n not in poor}
            kept, level = thresholded.top_k(
                rest, count - sum(poor.values()), {n: held[n] for n in rest}
            )
            masks |= kept
            levels |= dict.fromkeys(rest, level)

    def _say_collapse(self, lost: Sequence[str], raised: Mapping[str, int]) -> None:
        """Warn, once a tensor, that the budget alone would empty it."""
        for name in [*lost, *raised]:
            if name in self._said:
                continue
            self._said.add(name)
            if name in raised:
                log.warning(
                    "The budget left %r with less than %g %% of a uniform share; `floor` keeps "
                    "its %d largest entries.",
                    name,
                    100 * self.floor,
                    raised[name],
                )
            else:
                log.warning("The budget left %r without a nonzero entry.", name)

    def _show(self, slot: _Slot) -> None:
        """Let the parameter hold the thresholded values; exact zeros elsewhere."""
        if slot.latent is slot.shown:
            thresholded.keep(slot.shown, slot.mask)
        else:
            thresholded.show(
                slot.latent, slot.mask, slot.index, slot.level, self.power, slot.shown
            )

    def _show_all(self) -> None:
        table = self._tabulate()
        if table is not None:
            table.show()
            return
        for slot in self._slots.values():
            self._show(slot)

    # The step --------------------------------------------------------------------------------

    @override
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
        for slot in self._slots.values():
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
        written = self._follow()
        if self.recipe == "lazy" and not self.is_finalized:
            self._step_latent()
        else:
            self._mask_gradients()
            with thresholded.flushed():
                self.optimizer.step()
        self.n_steps += 1
        if not self.is_finalized and (written or self._is_due()):
            self._choose()
        else:
            self._show_all()
        for slot in self._slots.values():
            slot.version = slot.param._version
        return loss

    def _step_latent(self) -> None:
        """Step with the latent values in the place of the shown ones."""
        slots = self._slots.values()
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
        if not (final and self._in_force == self._asked) and self._budgets() != self._in_force:
            now = self._budgets()
            jumps = any(n > old for n, old in zip(now, self._in_force, strict=True))
            if jumps or final or now == self._asked:
                return True
        return self.n_steps % self.every == 0 and not self.schedule.is_frozen(self.n_steps)

    def _follow(self) -> bool:
        """Follow parameters that were moved, cast or written; return whether any was written."""
        written = False
        for slot in self._slots.values():
            if slot.is_sharded:
                continue
            param, shown = slot.param, slot.shown
            if param.data_ptr() != shown.data_ptr() or param.dtype != shown.dtype:
                self._follow_move(slot)
            if slot.param._version != slot.version and slot.latent is not slot.shown:
                written |= self._follow_write(slot)
        return written

    def _follow_move(self, slot: _Slot) -> None:
        shown = slot.param.detach()
        same = slot.latent is slot.shown
        slot.latent = shown if same else slot.latent.to(shown)
        slot.mask = slot.mask.to(shown.device)
        if slot.index is not None:
            slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
        slot.shown = shown
        self._show(slot)

    def _follow_write(self, slot: _Slot) -> bool:
        expected = torch.zeros_like(slot.shown)
        thresholded.show(slot.latent, slot.mask, slot.index, slot.level, self.power, expected)
        if torch.equal(expected, slot.shown):
            return False
        slot.latent.copy_(slot.shown)
        slot.index = None  # the next pass clears what was written off the support
        if "written" not in self._said:
            self._said.add("written")
            log.warning(
                "%r was written outside the optimizer; its latent values start again from what "
                "was written.",
                slot.name,
            )
        return True

    def _mask_gradients(self) -> None:
        """In a sparse phase of AC/DC, entries off the support do not move."""
        if self.recipe != "acdc":
            return
        for slot in self._slots.values():
            if slot.param.grad is not None:
                thresholded.local(slot.param.grad).mul_(slot.mask)

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def finalize(self, dtype: torch.dtype | None = None) -> None:
        """Fix the support at the final budget and drop the latent values.

        Afterwards the model holds exact zeros and the count asked for; further steps train the
        entries of the support alone. The wrapped model is a plain module with plain keys.

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
        if not self.is_finalized:
            if not self.schedule.is_final(self.n_steps):
                raise InvalidParameterError(
                    f"`finalize` must come after the schedule has reached the final budget, got "
                    f"step {self.n_steps} with a budget of {self.budget}.",
                    "Train on, or give a schedule with fewer `total_steps`.",
                )
            written = self._follow()
            stale = written or self._budgets() != self._in_force
            if stale or not self.schedule.is_frozen(self.n_steps):
                self._choose()
            for slot in self._slots.values():
                slot.latent, slot.index = slot.shown, None
            self.is_finalized = True
        if dtype is not None:
            for slot in self._slots.values():
                thresholded.fit_to(slot.shown, slot.mask, dtype)

    # State -----------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "sets": [repr(s) for s in self.sets],
            "recipe": self.recipe,
            "power": self.power,
            "every": self.every,
            "floor": self.floor,
            "schedule": repr(self.schedule),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, and under ``"hard_thresholding"`` that of the budget.

        Returns
        -------
        dict
            Everything that a run needs to go on bit for bit, besides the model's own state.
        """
        out: dict[str, Any] = self.optimizer.state_dict()
        out["hard_thresholding"] = {
            "settings": self._settings(),
            "n_steps": self.n_steps,
            "n_skipped": self.n_skipped,
            "is_finalized": self.is_finalized,
            "in_force": list(self._in_force),
            "latent": {n: s.share(s.latent) for n, s in self._slots.items()},
            "masks": {n: s.share(s.mask) for n, s in self._slots.items()},
            "levels": {n: s.level for n, s in self._slots.items()},
        }
        return out

    @override
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; nothing is changed when it does not fit.

        Parameters
        ----------
        state_dict : dict
            State of a `HardThresholding` with the same budget, recipe and schedule.

        Raises
        ------
        InvalidParameterError
            If the state is of another optimizer, budget or network.
        """
        ours = state_dict.get("hard_thresholding")
        if ours is None:
            raise InvalidParameterError(
                "`state_dict` must come from a `HardThresholding`, got one without supports.",
                "Resume with the optimizer state that was saved by the sparse run.",
            )
        for key, value in self._settings().items():
            if ours["settings"].get(key) != value:
                raise InvalidParameterError(
                    f"`state_dict` was saved with {key} {ours['settings'].get(key)}, "
                    f"this optimizer has {value}.",
                    "Build the optimizer with the settings of the checkpoint.",
                )
        for name, slot in self._slots.items():
            given = ours["latent"].get(name)
            part = None if given is None else thresholded.local(given).shape
            if given is None or given.shape != slot.param.shape or part != slot.latent.shape:
                raise InvalidParameterError(
                    f"`state_dict` does not fit the network: tensor {name!r} of shape "
                    f"{tuple(slot.param.shape)} is missing, or of another shape or sharding."
                )
        plain = {k: v for k, v in state_dict.items() if k != "hard_thresholding"}
        self.optimizer.load_state_dict(plain)
        self._share()
        self.n_steps, self.n_skipped = ours["n_steps"], ours["n_skipped"]
        self.is_finalized = ours["is_finalized"]
        self._in_force = tuple(ours["in_force"])
        for name, slot in self._slots.items():
            latent = thresholded.local(ours["latent"][name])
            slot.shown = thresholded.local(slot.param)
            if self.recipe != "lazy" or self.is_finalized:
                slot.latent = slot.shown
                slot.shown.copy_(latent)
            else:
                slot.latent = latent.to(slot.shown, copy=True)
            slot.mask = thresholded.local(ours["masks"][name]).to(slot.shown.device, copy=True)
            slot.level, slot.drift, slot.index = ours["levels"][name], 0.0, None
            if slot.latent is not slot.shown:
                slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
                slot.shown.zero_()
            self._show(slot)
            slot.version = slot.param._version

    @override
    def __getstate__(self) -> dict[str, Any]:
        left = ("step", "zero_grad")  # wrapped by learning-rate schedulers, which wrap anew
        kept = {k: v for k, v in self.__dict__.items() if k not in left and "_hooks" not in k}
        return {**kept, "_table": None}  # it holds addresses

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_slots" not in state:  # the base class loads groups by this method too
            return
        self._share()
        for slot in self._slots.values():
            same = slot.latent is slot.shown
            slot.shown = thresholded.local(slot.param)
            slot.latent = slot.shown if same else slot.latent
            slot.version = slot.param._version

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse parameters after construction, once the budget is fixed."""
        if hasattr(self, "_slots"):
            raise IncompatibleError(
                "A parameter cannot be added after the budget was fixed.",
                "Build the optimizer and `HardThresholding` again with all parameters.",
            )
        super().add_param_group(param_group)


def _near(slot: _Slot) -> tuple[float, float] | None:
    """Return where the threshold is looked for first; a wrong guess costs time only."""
    if slot.level <= 0:
        return None
    # It moves little between two choices.
    width = max(2 * slot.drift, 2e-3 * slot.level)
    return slot.level - width, slot.level + width


def _check_parameters(
    optimizer: torch.optim.Optimizer, params: Mapping[str, nn.Parameter], counted: Sequence[str]
) -> None:
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


def freeze_support(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Keep the zeros of an already sparse model through further training.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights of two axes or more that hold zeros keep them.
    optimizer : torch.optim.Optimizer
        The optimizer that trains the model. After each of its steps the zeros are written again,
        whatever momentum and weight decay did.

    Returns
    -------
    RemovableHandle
        ``handle.remove()`` lets the zeros go.

    Raises
    ------
    InvalidParameterError
        If no weight of the model holds a zero.
    IncompatibleError
        If the optimizer does not hold a weight with zeros, or is a `HardThresholding`.

    See Also
    --------
    HardThresholding : Choose the support during training.

    Notes
    -----
    One pass over the weights for each step, and one byte an entry. The support is read from the
    zeros, so there is nothing to save: call it again after loading a checkpoint.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import freeze_support
    >>> model = torch.nn.Linear(4, 2)
    >>> _ = model.weight.data[:, :3].zero_()
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> handle = freeze_support(model, optimizer)
    >>> model(torch.ones(1, 4)).sum().backward()
    >>> optimizer.step()
    >>> int((model.weight != 0).sum())
    2
    """
    if isinstance(optimizer, HardThresholding):
        raise IncompatibleError(
            "`optimizer` must be a plain optimizer, got a `HardThresholding`.",
            "Call its `finalize`, which freezes the support.",
        )
    sparse = {
        n: p
        for n, p in prunable(model).items()
        if thresholded.count_true(p.detach() != 0) < p.numel()
    }
    if not sparse:
        raise InvalidParameterError(
            "`model` must hold zeros in its weights, got none.",
            "Load the sparse checkpoint first, or prune with `HardThresholding`.",
        )
    _check_parameters(optimizer, sparse, tuple(sparse))
    masks = {n: thresholded.local(p) != 0 for n, p in sparse.items()}

    @torch.no_grad()
    def write_zeros(*_: Any) -> None:
        for name, param in sparse.items():
            part = thresholded.local(param)
            masks[name] = masks[name].to(part.device)
            thresholded.keep(part, masks[name])

    return optimizer.register_step_post_hook(write_zeros)
