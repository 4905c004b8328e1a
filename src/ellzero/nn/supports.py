"""The supports of counted tensors: how they are chosen, and what the model sees of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.problem import AbstractSparseSet
from ellzero.errors import IncompatibleError
from ellzero.nn import units
from ellzero.sets import L0Ball, SliceL0Ball
from ellzero.sets.base import AbstractBudgetSet
from ellzero.tensors import thresholded
from ellzero.tensors.scores import (
    curvature_factors,
    root_mean_square,
    second_moment,
    show_scaled,
)

log = logging.getLogger("ellzero")

SCORES = ("magnitude", "relative", "curvature")
# Exponent of the curvature in the scores; 1 is the saliency of optimal brain damage.
CURVATURE = 0.5


class Slot:
    """One counted tensor; of a sharded one, the part that this process holds.

    `shown` shares the memory of the parameter. `latent` is the same tensor where the recipe has
    no latent values. The support is a mask, an index, or both; the mask is made when it is read.
    """

    __slots__ = (
        "_index", "_mask", "axis", "drift", "factor", "is_sharded", "latent", "level", "name",
        "param", "shown", "trend", "version",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        param: nn.Parameter,
        latent: Tensor,
        shown: Tensor,
        mask: Tensor,
        axis: int | None = None,
    ) -> None:
        self.name, self.param, self.latent, self.shown = name, param, latent, shown
        self._mask: Tensor | None = mask
        self._index: Tensor | None = None
        self.is_sharded = thresholded.is_sharded(param)
        self.axis = axis
        # What an entry's magnitude is multiplied by in its score: one number, or one each.
        self.factor: float | Tensor = 1.0
        self.level = 0.0
        # How the threshold moved last, and how far it was lately from where that would take it.
        self.trend = self.drift = 0.0
        self.version = 0

    @property
    def mask(self) -> Tensor:
        """The support, True on it; local."""
        if self._mask is None:
            assert self._index is not None
            self._mask = thresholded.mark(self._index, self.shown)
        return self._mask

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._mask = mask

    @property
    def index(self) -> Tensor | None:
        """Flat positions of the support; None where passes over all entries are made."""
        return self._index

    @index.setter
    def index(self, index: Tensor | None) -> None:
        if index is None and self._mask is None:
            self._mask = self.mask
        self._index = index

    def hold(self, support: Tensor, level: float) -> None:
        """Take another support, an index or a mask, whose values are written already."""
        is_mask = support.dtype == torch.bool
        self._index, self._mask = (None, support) if is_mask else (support, None)
        self.move(level)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the tensor is in the support."""
        if self._index is not None:
            return self._index.numel() == 0
        return thresholded.count_true(self.mask) == 0

    def move(self, level: float) -> None:
        """Take another threshold, and keep in mind how it moves."""
        trend = level - self.level if self.level > 0 else 0.0
        self.drift = max(abs(trend - self.trend), self.drift / 2)
        self.level, self.trend = level, trend

    def share(self, part: Tensor) -> Tensor:
        """Return a local tensor as one sharded like the parameter."""
        return thresholded.share_like(part, self.param)


class Supports:
    """Supports of the tensors of a network that sparse sets count.

    Parameters
    ----------
    params : mapping of str to torch.nn.Parameter
        All parameters of the network.
    sets : tuple of AbstractSparseSet
        Each names its tensors.
    optimizer : torch.optim.Optimizer
        Where the curvature is read.
    has_latent : bool
        Whether dense values are kept beside what the model holds.
    power : float or None
        Exponent of the thresholding operator.
    floor : float
        Share of a uniform budget that every tensor keeps.
    scores : {"magnitude", "relative", "curvature"}
        What the supports are chosen by.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        sets: tuple[AbstractSparseSet, ...],
        optimizer: torch.optim.Optimizer,
        *,
        has_latent: bool,
        power: float | None,
        floor: float,
        scores: str,
    ) -> None:
        self.sets, self.optimizer = sets, optimizer
        self.has_latent, self.power, self.floor, self.scores = has_latent, power, floor, scores
        self.said: set[str] = set()
        self.slots: dict[str, Slot] = {}
        self._table: thresholded.Table | None = None
        self._is_sharded = any(
            thresholded.is_sharded(params[n]) for s in sets for n in s.names or ()
        )
        axes = {n: s.axis for s in sets if isinstance(s, SliceL0Ball) for n in s.names or ()}
        for name in (name for s in sets for name in s.names or ()):
            shown = thresholded.local(params[name])
            latent = shown.clone() if has_latent else shown
            mask = torch.zeros_like(shown, dtype=torch.bool)
            self.slots[name] = Slot(name, params[name], latent, shown, mask, axes.get(name))
        self.all = tuple(self.slots.values())
        # For each budget the tensors that were raised to their floor, where to look first.
        self._poor: dict[int, frozenset[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # it holds addresses

    def attach(self) -> None:
        """Share the memory of the parameters again, after a copy."""
        for slot in self.slots.values():
            same = slot.latent is slot.shown
            slot.shown = thresholded.local(slot.param)
            slot.latent = slot.shown if same else slot.latent
            slot.version = slot.param._version

    def drop_latent(self) -> None:
        """Let what the model holds be all there is."""
        self.has_latent = False
        for slot in self.slots.values():
            slot.latent, slot.index, slot.factor = slot.shown, None, 1.0

    def choose(self, counts: Sequence[int], is_first: bool) -> None:
        """Choose the supports anew from the latent values, and show them.

        Parameters
        ----------
        counts : sequence of int
            Budget in force of each set; -1 for those that have none.
        is_first : bool
            Whether the optimizer has made no step yet, so that it knows no curvature.
        """
        place = 0
        for s, count in zip(self.sets, counts, strict=True):
            names = s.names or ()
            part = slice(place, place + len(names))
            place = part.stop
            if isinstance(s, L0Ball) and self._choose_by_table(part, count):
                continue
            scores = {n: self.slots[n].share(self._score(self.slots[n], is_first)) for n in names}
            held = {n: self.slots[n].share(self.slots[n].mask) for n in names}
            if isinstance(s, L0Ball):
                masks, levels = self._select(count, scores, held)
            elif isinstance(s, SliceL0Ball):
                scores = {n: units.scores(t, s.axis) for n, t in scores.items()}
                held = {n: units.kept(t, s.axis) for n, t in held.items()}
                # Shrinking units by `power` cost accuracy in most trials.
                unit = {0: "rows", 1: "columns"}.get(s.axis, "slices")
                masks, levels = self._select(count, scores, held, unit)[0], {}
            else:
                now = lowered(s, count)
                masks, levels = dict(now.select(now.gains(scores), incumbents=held)), {}
            for name in names:
                self._change(self.slots[name], masks[name], levels.get(name, 0.0))

    def _score(self, slot: Slot, is_first: bool) -> Tensor:
        """Return local values whose magnitudes are the scores."""
        if self.scores == "magnitude":
            return slot.latent
        if self.scores == "relative":
            slot.factor = 1 / root_mean_square(slot.share(slot.latent))
        else:
            # Before the first step nothing is known of the curvature.
            moment = second_moment(self.optimizer.state.get(slot.param, {}))
            if moment is not None:
                slot.factor = curvature_factors(moment, CURVATURE).to(slot.latent.device)
            elif not is_first:
                raise IncompatibleError(*no_curvature(self.optimizer))
            else:
                slot.factor = torch.ones_like(slot.latent)
        return (slot.latent * slot.factor).to(slot.latent.dtype)

    def _tabulate(self) -> thresholded.Table | None:
        """Return the slots as a table for the kernels, or None where those cannot take them."""
        slots = self.slots.values()
        if not self.has_latent or self.scores != "magnitude" or self._is_sharded:
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
        """Choose the supports that share a budget by kernels; return whether that worked."""
        slots = self.all[part]
        sizes = [slot.latent.numel() for slot in slots]
        if not 0 < count < sum(sizes):
            return False
        table = self._tabulate()
        if table is None:
            return False
        least = self._least(count, sizes) if len(sizes) > 1 else [1]
        near = [_near(slot) for slot in slots]
        chosen = table.choose(part, count, least, near, self._poor.get(part.start, frozenset()))
        if chosen is None:
            return False
        for slot, support, level in zip(slots, chosen.supports, chosen.levels, strict=True):
            slot.hold(support, level)
        self._poor[part.start] = chosen.poor
        raised = {slots[i].name: least[i] for i in sorted(chosen.poor)}
        lost = [] if 0 not in least else [s.name for s in slots if s.is_empty]
        if raised or lost:
            self._say_collapse(lost, raised)
        return True

    def _least(self, count: int, sizes: Sequence[int], unit: str = "entries") -> list[int]:
        """Return what every tensor that shares a budget has to keep."""
        if self.floor == 0 and unit == "entries":
            return [0] * len(sizes)
        one, total = int(count >= len(sizes)), sum(sizes)
        return [max(one, int(self.floor * count * n / total)) for n in sizes]

    def _change(self, slot: Slot, mask: Tensor, level: float) -> None:
        """Give a tensor another support, clearing the entries that left."""
        slot.mask = thresholded.local(mask)
        if slot.axis is not None:
            slot.mask = units.spread(slot.mask, slot.latent, slot.axis).clone()
        slot.move(level)
        old, slot.index = slot.index, None
        if slot.latent is slot.shown:
            self.show(slot)
            return
        slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
        if slot.index is not None and old is None:
            slot.shown.zero_()
        elif slot.index is not None and old is not None:
            thresholded.clear(slot.shown, old)
        self.show(slot)

    def _select(
        self,
        count: int,
        scores: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        unit: str = "entries",
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return supports and thresholds of tensors that share a budget, none below its floor."""
        near = _near(self.slots[next(iter(scores))])
        masks, level = thresholded.top_k(scores, count, held, near)
        levels = dict.fromkeys(scores, level)
        total = sum(t.numel() for t in scores.values())
        if len(scores) == 1 or count == total:
            return masks, levels
        sizes = [t.numel() for t in scores.values()]
        least = dict(zip(scores, self._least(count, sizes, unit), strict=True))
        poor: dict[str, int] = {}
        while True:
            counts = {n: thresholded.count_true(m) for n, m in masks.items() if n not in poor}
            below = {n: least[n] for n, c in counts.items() if c < least[n]}
            self._say_collapse(
                [n for n, c in counts.items() if c == 0 and n not in below], below, unit
            )
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

    def _say_collapse(
        self, lost: Sequence[str], raised: Mapping[str, int], unit: str = "entries"
    ) -> None:
        """Warn, once a tensor, that the budget alone would empty it."""
        for name in [*lost, *raised]:
            if name in self.said:
                continue
            self.said.add(name)
            if name in raised and unit != "entries":
                words = "The budget left %r with fewer than %d of its %s; the largest are kept."
                log.warning(words, name, raised[name], unit)
            elif name in raised:
                log.warning(
                    "The budget left %r with less than %g %% of a uniform share; `floor` keeps "
                    "its %d largest entries.",
                    name,
                    100 * self.floor,
                    raised[name],
                )
            else:
                log.warning("The budget left %r without a nonzero entry.", name)

    def show(self, slot: Slot) -> None:
        """Let the parameter hold the thresholded values; exact zeros elsewhere."""
        if slot.latent is slot.shown:
            thresholded.keep(slot.shown, slot.mask)
        else:
            self._write(slot, slot.shown)

    def _write(self, slot: Slot, out: Tensor) -> None:
        """Write the thresholded latent values of one tensor."""
        if isinstance(slot.factor, Tensor):
            show_scaled(
                slot.latent, slot.mask, slot.index, slot.factor, slot.level, self.power, out
            )
            return
        level = slot.level / slot.factor
        thresholded.show(slot.latent, slot.mask, slot.index, level, self.power, out)

    def show_all(self) -> None:
        """Let all parameters hold the thresholded values."""
        table = self._tabulate()
        if table is not None:
            table.show()
            return
        for slot in self.slots.values():
            self.show(slot)

    def follow(self) -> bool:
        """Follow parameters that were moved, cast or written; return whether any was written."""
        written = False
        for slot in self.all:
            param, shown = slot.param, slot.shown
            if slot.is_sharded:
                if thresholded.local(param).data_ptr() != shown.data_ptr():
                    self._follow_move(slot)
            elif param.data_ptr() != shown.data_ptr() or param.dtype != shown.dtype:
                self._follow_move(slot)
            if param._version != slot.version and slot.latent is not slot.shown:
                written |= self._follow_write(slot)
        if not self._is_sharded:
            return written
        return thresholded.any_process(written, (slot.param for slot in self.all))

    def _follow_move(self, slot: Slot) -> None:
        shown = thresholded.local(slot.param)
        same = slot.latent is slot.shown
        slot.latent = shown if same else slot.latent.to(shown)
        slot.mask = slot.mask.to(shown.device)
        if slot.index is not None:
            slot.index = thresholded.positions(slot.mask, slot.latent, self.power)
        if isinstance(slot.factor, Tensor):
            slot.factor = slot.factor.to(shown.device)
        slot.shown = shown
        self.show(slot)

    def _follow_write(self, slot: Slot) -> bool:
        expected = torch.zeros_like(slot.shown)
        self._write(slot, expected)
        if torch.equal(expected, slot.shown):
            return False
        slot.latent.copy_(slot.shown)
        slot.index = None  # the next pass clears what was written off the support
        if "written" not in self.said:
            self.said.add("written")
            log.warning(
                "%r was written outside the optimizer; its latent values start again from what "
                "was written.",
                slot.name,
            )
        return True


def lowered(constraint: AbstractSparseSet, budget: int) -> AbstractSparseSet:
    """Return a set with another budget; -1 leaves one that has none of its own as it is."""
    if isinstance(constraint, AbstractBudgetSet):
        return constraint.with_budget(budget)
    return constraint


def _near(slot: Slot) -> tuple[float, float] | None:
    """Return where the threshold is looked for first; a wrong guess costs time only."""
    if slot.level <= 0:
        return None
    # It moves little between two choices, and much as it did before.
    level = slot.level + slot.trend
    width = max(2 * slot.drift, 2e-3 * slot.level)
    return level - width, level + width


def no_curvature(optimizer: torch.optim.Optimizer) -> tuple[str, str]:
    """Return what is said of an optimizer that keeps no squared gradients, and the hint."""
    return (
        "`scores='curvature'` needs an optimizer that averages squared gradients, got "
        f"`{type(optimizer).__name__}`.",
        "Use `torch.optim.AdamW`, or another score.",
    )
