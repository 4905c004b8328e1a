"""What a method is given: a network, a count of nonzeros, a budget of gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.tensors import thresholded

WARM = 0.02
DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share: 1 - share,
}


BASES: dict[str, tuple[dict[str, Any], str]] = {
    "adam": ({"betas": (0.9, 0.999), "weight_decay": 0.0}, "cosine"),
    "quick": ({"betas": (0.8, 0.99), "weight_decay": 0.1}, "linear"),
}


class Task:
    """One training: every method gets the same start, batches and number of gradients.

    The optimizer is AdamW with the settings of `BASES`; the learning rate rises for the first 2 %
    of the steps and falls to zero.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        n_nonzero: int,
        n_steps: int,
        loss: Callable[[nn.Module, int], Tensor],
        *,
        lr: float,
        base: str = "adam",
        seed: int = 0,
    ) -> None:
        params = dict(model.named_parameters())
        self.model, self.n_nonzero, self.n_steps, self.lr = model, n_nonzero, n_steps, lr
        self.weights = {n: params[n] for n in names}
        self.n_entries = sum(p.numel() for p in self.weights.values())
        self.generator = torch.Generator().manual_seed(seed)
        self.n_gradients = 0
        self.adam_settings, decay = BASES[base]
        self._loss, self._decay = loss, DECAYS[decay]
        self._level = 0.0

    def adam(self) -> torch.optim.Optimizer:
        """Return the optimizer that all methods share."""
        return self.adam_of(self.model.parameters())

    def adam_of(self, params: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the same for other parameters or groups."""
        return torch.optim.AdamW(params, lr=self.lr, fused=True, **self.adam_settings)

    def steps(
        self, optimizer: torch.optim.Optimizer, count: int | None = None, *, restart: bool = False
    ) -> Iterator[int]:
        """Yield once for each gradient, after computing it at the present parameters.

        With `restart` the learning rate goes through its whole course within `count` steps.
        """
        count = self.n_steps - self.n_gradients if count is None else count
        for i in range(count):
            if self.n_gradients == self.n_steps:
                raise RuntimeError(f"All {self.n_steps} gradients are spent.")
            done, of = (i, count) if restart else (self.n_gradients, self.n_steps)
            rise = min(1.0, (done + 1) / (WARM * of))
            for group in optimizer.param_groups:
                group["lr"] = group.get("peak", self.lr) * rise * self._decay(done / of)
            self.model.zero_grad()
            self._loss(self.model, self.n_gradients).backward()
            self.n_gradients += 1
            yield self.n_gradients - 1

    def largest(self, count: int, of: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return masks of the `count` largest magnitudes over all counted weights together."""
        tensors = {n: p.detach() for n, p in (self.weights if of is None else of).items()}
        # A guess near the last threshold changes the time alone.
        near = (0.99 * self._level, 1.01 * self._level) if self._level else None
        masks, self._level = thresholded.top_k(tensors, count, {}, near)
        return masks

    @torch.no_grad()
    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Write zeros off the masks."""
        for name, mask in masks.items():
            self.weights[name].mul_(mask)

    @torch.no_grad()
    def apply_to_gradients(self, masks: Mapping[str, Tensor]) -> None:
        """Write zeros into the gradients off the masks."""
        for name, mask in masks.items():
            grad = self.weights[name].grad
            assert grad is not None
            grad.mul_(mask)

    def train_masked(
        self,
        optimizer: torch.optim.Optimizer,
        masks: Mapping[str, Tensor],
        count: int | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Train the weights on the masks, and what is not counted, alone."""
        self.apply(masks)
        for _ in self.steps(optimizer, count, restart=restart):
            self.apply_to_gradients(masks)
            optimizer.step()
            self.apply(masks)


def cubic(step: float, end: float, n_nonzero: int, n_entries: int) -> int:
    """Return the budget of the cubic ramp of Zhu and Gupta (arXiv:1710.01878)."""
    left = (1 - min(step / end, 1.0)) ** 3
    return n_nonzero + round((n_entries - n_nonzero) * left)
