"""Every sparse set on at most eight entries, with its definition spelled out on supports."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from ellzero.sets import (
    BlockL0Ball,
    GroupL0Ball,
    L0Ball,
    NMPattern,
    ProductSet,
    SliceL0Ball,
)
from ellzero.sets.base import AbstractBudgetSet


@dataclass(frozen=True)
class Case:
    """A set, the shapes of a point and what supports it allows (bool of all flat entries)."""

    name: str
    make: Callable[..., AbstractBudgetSet]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    allows: Callable[[tuple[bool, ...], int], bool]
    covered: tuple[bool, ...]

    @property
    def size(self) -> int:
        return len(self.covered)

    def point(self, values, dtype=torch.float64):
        """Return the point with the given flat entries."""
        flat = torch.as_tensor(np.array(values, dtype=np.float64)).to(dtype)
        out, start = {}, 0
        for name, shape in self.shapes:
            count = int(np.prod(shape, dtype=int))
            out[name] = flat[start : start + count].reshape(shape)
            start += count
        return out

    def flat(self, point) -> np.ndarray:
        """Return flat entries of a point."""
        return np.concatenate([point[name].numpy().reshape(-1) for name, _ in self.shapes])

    @cache  # noqa: B019
    def supports(self, factor: int = 1) -> np.ndarray:
        """Return every allowed support, one in each row."""
        every = itertools.product((False, True), repeat=self.size)
        return np.array([mask for mask in every if self.allows(mask, factor)])


def _hits(mask, labels) -> int:
    return len({label for on, label in zip(mask, labels, strict=False) if on})


def _ball(budget: int, free: int = 0, size: int = 8):
    return lambda mask, factor: sum(mask[: size - free]) <= factor * budget


def _runs(runs, budget):
    return lambda mask, factor: all(sum(mask[i] for i in run) <= factor * budget for run in runs)


LABELS = (7, 3, 7, 3, 3, 9, 12)
# Position of each entry of a (3, 2) matrix cut in (2, 1) blocks, and of a (1, 2) matrix.
BLOCKS = ("00", "01", "00", "01", "10", "11", "b0", "b1")

CASES = [
    *(
        Case(
            f"l0-{s}",
            lambda s=s, **bounds: L0Ball(s, **bounds),
            (("coef", (7,)),),
            _ball(s, size=7),
            (True,) * 7,
        )
        for s in (0, 1, 3, 7)
    ),
    Case(
        "l0-two-tensors-and-free",
        lambda **bounds: L0Ball(2, ("coef", "scale"), **bounds),
        (("coef", (2, 2)), ("scale", ()), ("intercept", (2,))),
        _ball(2, free=2, size=7),
        (True,) * 5 + (False,) * 2,
    ),
    Case(
        "groups",
        lambda **bounds: GroupL0Ball(2, torch.tensor(LABELS), **bounds),
        (("coef", (7,)),),
        lambda mask, factor: _hits(mask, LABELS) <= 2 * factor,
        (True,) * 7,
    ),
    Case(
        "groups-by-name-and-free",
        lambda **bounds: GroupL0Ball(
            1, {"b": torch.tensor([5, 1]), "a": torch.tensor([[1, 1], [2, 5]])}, **bounds
        ),
        (("a", (2, 2)), ("b", (2,)), ("intercept", ())),
        lambda mask, factor: _hits(mask, (1, 1, 2, 5, 5, 1)) <= factor,
        (True,) * 6 + (False,),
    ),
    Case(
        "blocks",
        lambda **bounds: BlockL0Ball(2, (2, 1), **bounds),
        (("a", (3, 2)), ("b", (1, 2))),
        lambda mask, factor: _hits(mask, BLOCKS) <= 2 * factor,
        (True,) * 8,
    ),
    Case(
        "rows",
        lambda **bounds: SliceL0Ball(2, **bounds),
        (("a", (2, 1, 2)), ("b", (3,))),
        lambda mask, factor: _hits(mask, "aabb012") <= 2 * factor,
        (True,) * 7,
    ),
    Case(
        "columns-and-free",
        lambda **bounds: SliceL0Ball(1, 1, ("weight",), **bounds),
        (("weight", (2, 3)), ("bias", (1,))),
        lambda mask, factor: _hits(mask, "012012") <= factor,
        (True,) * 6 + (False,),
    ),
    Case(
        "nm-ragged",
        lambda **bounds: NMPattern(1, 3, **bounds),
        (("coef", (8,)),),
        _runs([(0, 1, 2), (3, 4, 5), (6, 7)], 1),
        (True,) * 8,
    ),
    Case(
        "nm-axis-and-free",
        lambda **bounds: NMPattern(1, 2, ("coef",), axis=0, **bounds),
        (("coef", (3, 2)), ("intercept", (1,))),
        _runs([(0, 2), (4,), (1, 3), (5,)], 1),
        (True,) * 6 + (False,),
    ),
    Case(
        "product-and-free",
        lambda **bounds: ProductSet(
            (NMPattern(1, 2, ("b",), **bounds), L0Ball(1, ("a",), **bounds))
        ),
        (("a", (3,)), ("free", (1,)), ("b", (4,))),
        lambda mask, factor: (
            sum(mask[:3]) <= factor
            and sum(mask[4:6]) <= min(factor, 2)
            and sum(mask[6:]) <= min(factor, 2)
        ),
        (True,) * 3 + (False,) + (True,) * 4,
    ),
]
