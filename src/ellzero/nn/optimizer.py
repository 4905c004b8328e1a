"""Training under an exact budget, around any torch optimizer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.nn.budgets import Budget, make_balls
from ellzero.nn.schedules import AbstractSchedule, constant
from ellzero.sets import L0Ball
from ellzero.tensors import named
from ellzero.validation import check_choice, check_integer, check_real

log = logging.getLogger("ellzero")

RECIPES = ("lazy", "iht", "acdc")
# A kept entry never becomes smaller than this share of its latent value, so that it is counted.
LEAST_SHARE = 2.0**-10


@dataclass(slots=True)
class _Slot:
    """One counted tensor: the parameter, its latent values, its support."""

    name: str
    param: nn.Parameter
    latent: Tensor
    mask: Tensor
    index: Tensor
    threshold: Tensor


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
    proportional to the support otherwise. A step with a gradient that is not finite is skipped,
    counted in `n_skipped` and logged. Ties keep the entries of the present support, then the
    first positions.

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
        self._warned_floor = False
        # The base class wants its own groups; afterwards both share the same objects.
        super().__init__([{"params": [params[counted[0]]]}], optimizer.defaults)
        self._share()
        self._slots = {
            name: _Slot(
                name,
                params[name],
                params[name].detach().clone(memory_format=torch.preserve_format),
                torch.zeros_like(params[name], dtype=torch.bool),
                torch.empty(0, dtype=torch.int64),
                torch.zeros(()),
            )
            for name in counted
        }
        self._choose()
        self._show()

    def _share(self) -> None:
        self.param_groups = self.optimizer.param_groups
        self.state = self.optimizer.state

    # Budgets -----------------------------------------------------------------------------------

    @property
    def n_entries(self) -> int:
        """Entries that the budgets count."""
        return sum(slot.latent.numel() for slot in self._slots.values())

    @property
    def n_nonzero(self) -> int:
        """Nonzeros of the counted tensors, counted now."""
        return sum(named.to_int((s.param != 0).sum()) for s in self._slots.values())

    @property
    def budget(self) -> int:
        """Most nonzeros that the sets in force allow."""
        shapes = {n: s.latent for n, s in self._slots.items()}
        return sum(
            s.max_nonzero({n: shapes[n] for n in s.names or ()}) for s in self._sets_in_force()
        )

    def _sets_in_force(self) -> tuple[AbstractSparseSet, ...]:
        out: list[AbstractSparseSet] = []
        for s in self.sets:
            if isinstance(s, L0Ball):
                size = sum(self._slots[n].latent.numel() for n in s.names or ())
                out.append(
                    replace(s, n_nonzero=self.schedule.budget(self.n_steps, s.n_nonzero, size))
                )
            else:
                out.append(s)
        return tuple(out)

    # Choice of the support and what the model sees -----------------------------------------------

    @torch.no_grad()
    def _choose(self) -> None:
        """Choose the supports anew from the latent values."""
        for s in self._sets_in_force():
            names = s.names or ()
            scores = {n: self._slots[n].latent for n in names}
            incumbents = {n: self._slots[n].mask for n in names}
            masks = dict(s.select(s.gains(scores), incumbents=incumbents))
            if isinstance(s, L0Ball) and len(names) > 1 and self.floor > 0:
                masks = self._keep_floor(s, scores, incumbents, masks)
            for name in names:
                slot = self._slots[name]
                slot.mask = masks[name]
                slot.index = masks[name].reshape(-1).nonzero().reshape(-1)
            kept = [self._slots[n] for n in names]
            values = [s.latent.reshape(-1)[s.index].abs().min() for s in kept if s.index.numel()]
            whole = all(s.index.numel() == s.latent.numel() for s in kept)
            level = torch.stack(values).min() if values and not whole else torch.zeros(())
            for slot in kept:
                slot.threshold = level.to(slot.latent)

    def _keep_floor(
        self,
        ball: L0Ball,
        scores: Mapping[str, Tensor],
        incumbents: Mapping[str, Tensor],
        masks: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Give tensors that fell below the floor their share, at the cost of the others."""
        total = sum(t.numel() for t in scores.values())
        least = {
            n: int(self.floor * ball.n_nonzero * t.numel() / total) for n, t in scores.items()
        }
        poor = [n for n, m in masks.items() if named.to_int(m.sum()) < least[n]]
        if not poor:
            return masks
        if not self._warned_floor:
            self._warned_floor = True
            log.warning(
                "The budget left %s with fewer than %.0f %% of a uniform share; the floor keeps "
                "its largest entries.",
                ", ".join(repr(n) for n in poor),
                100 * self.floor,
            )
        fixed = {n: L0Ball(least[n], (n,)) for n in poor}
        rest = tuple(n for n in scores if n not in fixed)
        out: dict[str, Tensor] = {}
        for name, small in fixed.items():
            out |= small.select({name: scores[name].abs()}, incumbents={name: incumbents[name]})
        left = L0Ball(ball.n_nonzero - sum(least[n] for n in poor), rest)
        out |= left.select(
            {n: scores[n].abs() for n in rest}, incumbents={n: incumbents[n] for n in rest}
        )
        return out

    @torch.no_grad()
    def _show(self) -> None:
        """Let the model hold the thresholded values; exact zeros elsewhere."""
        for slot in self._slots.values():
            shown = torch.zeros_like(slot.latent)
            values = slot.latent.reshape(-1)[slot.index]
            if self.recipe == "lazy" and self.power is not None:
                ratio = slot.threshold / values.abs().clamp_min(torch.finfo(values.dtype).tiny)
                share = (1 - ratio**self.power).clamp_min(0) ** (1 / self.power)
                values = values * share.clamp_min(LEAST_SHARE)
            shown.view(-1)[slot.index] = values
            slot.param.data = shown

    def _restore(self) -> None:
        """Let the parameters be the latent values again, for the optimizer to work on."""
        for slot in self._slots.values():
            slot.param.data = slot.latent

    # The step --------------------------------------------------------------------------------

    @override
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
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._gradients_are_finite():
            self.n_skipped += 1
            log.warning("Step %d skipped: a gradient is not finite.", self.n_steps + 1)
            return loss
        if self.is_finalized:
            self._step_on_support()
            return loss
        if self.recipe == "lazy":
            self._restore()
            self.optimizer.step()
        else:
            self._mask_gradients()
            self.optimizer.step()
            for slot in self._slots.values():
                slot.latent = slot.param.data
        self.n_steps += 1
        due = self.n_steps % self.every == 0 or self._budget_changed()
        if due and not self.schedule.is_frozen(self.n_steps):
            self._choose()
        self._show()
        return loss

    def _budget_changed(self) -> bool:
        return self.budget != sum(s.index.numel() for s in self._slots.values())

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        """In a sparse phase of AC/DC, entries off the support do not move."""
        if self.recipe != "acdc":
            return
        for slot in self._slots.values():
            if slot.param.grad is not None:
                slot.param.grad.mul_(slot.mask)

    @torch.no_grad()
    def _step_on_support(self) -> None:
        self.optimizer.step()
        self.n_steps += 1
        for slot in self._slots.values():
            # Momentum and weight decay move entries off the support too.
            slot.param.data.mul_(slot.mask)

    @torch.no_grad()
    def _gradients_are_finite(self) -> bool:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            return True
        sums = torch.stack([g.sum().float() for g in grads])
        if named.all_true(torch.isfinite(sums)):
            return True
        return all(named.all_true(torch.isfinite(g)) for g in grads)

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    @torch.no_grad()
    def finalize(self) -> None:
        """Fix the support at the final budget and drop the latent values.

        Afterwards the model holds exact zeros and the count asked for; further steps train the
        entries of the support alone. The wrapped model is a plain module with plain keys.

        Raises
        ------
        InvalidParameterError
            If the schedule has not reached the final budget.
        """
        if not self.schedule.is_final(self.n_steps):
            raise InvalidParameterError(
                f"`finalize` must come after the schedule has reached the final budget, got step "
                f"{self.n_steps} with a budget of {self.budget}.",
                "Train on, or give a schedule with fewer `total_steps`.",
            )
        if not self.schedule.is_frozen(self.n_steps):
            self._choose()
        self._show()
        for slot in self._slots.values():
            slot.latent = slot.param.data
        self.is_finalized = True

    # State -----------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "sets": [repr(s) for s in self.sets],
            "recipe": self.recipe,
            "power": self.power,
            "every": self.every,
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
            "latent": {n: s.latent for n, s in self._slots.items()},
            "masks": {n: s.mask for n, s in self._slots.items()},
            "thresholds": {n: s.threshold for n, s in self._slots.items()},
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
            if given is None or given.shape != slot.latent.shape:
                raise InvalidParameterError(
                    f"`state_dict` does not fit the network: tensor {name!r} of shape "
                    f"{tuple(slot.latent.shape)} is missing or of another shape."
                )
        plain = {k: v for k, v in state_dict.items() if k != "hard_thresholding"}
        self.optimizer.load_state_dict(plain)
        self._share()
        self.n_steps, self.n_skipped = ours["n_steps"], ours["n_skipped"]
        self.is_finalized = ours["is_finalized"]
        for name, slot in self._slots.items():
            slot.latent = ours["latent"][name].to(slot.latent).clone()
            slot.mask = ours["masks"][name].to(slot.mask).clone()
            slot.threshold = ours["thresholds"][name].to(slot.latent).clone()
            slot.index = slot.mask.reshape(-1).nonzero().reshape(-1)
        if self.is_finalized:
            for slot in self._slots.values():
                slot.param.data = slot.latent
        else:
            self._show()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse parameters after construction, once the budget is fixed."""
        if hasattr(self, "_slots"):
            raise IncompatibleError(
                "A parameter cannot be added after the budget was fixed.",
                "Build the optimizer and `HardThresholding` again with all parameters.",
            )
        super().add_param_group(param_group)


def _check_parameters(
    optimizer: torch.optim.Optimizer, params: Mapping[str, nn.Parameter], counted: Sequence[str]
) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name in counted:
        if id(params[name]) not in held:
            raise IncompatibleError(
                f"`optimizer` does not hold the parameter {name!r} that the budget counts.",
                "Build it on `model.parameters()`.",
            )
        if not named.all_true(torch.isfinite(params[name].detach().sum())):
            raise NonFiniteError(f"Tensor {name!r} contains NaN or infinity.")
    devices = sorted({str(params[n].device) for n in counted})
    if len(devices) > 1:
        raise IncompatibleError(
            f"The counted parameters lie on several devices: {', '.join(devices)}.",
            "Give a budget for each device: name its tensors by `names`.",
        )
