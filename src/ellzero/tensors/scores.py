"""Scores other than magnitude: a positive factor for each entry, and what is shown under it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ellzero.tensors import named
from ellzero.tensors.thresholded import LEAST_SHARE, local, tiny

# Where torch's optimizers keep their running mean, or sum, of squared gradients.
SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
# Share of the mean curvature of its tensor that an entry without gradients is taken to have.
DAMPING = 1e-6


def second_moment(state: Mapping[str, object]) -> Tensor | None:
    """Return the squared gradients that an optimizer keeps of one parameter, or None."""
    for key in SECOND_MOMENTS:
        value = state.get(key)
        if isinstance(value, Tensor):
            return value
    return None


def _mean(tensor: Tensor) -> Tensor:
    """Return the mean over all shards, accumulated in the finest type of the device."""
    return named.dot({"": tensor}, {"": torch.ones_like(tensor)}) / max(tensor.numel(), 1)


def curvature_factors(moment: Tensor, exponent: float) -> Tensor:
    r"""Return the local part of :math:`(v / \bar v + 10^{-6})^{a/2}`.

    Parameters
    ----------
    moment : Tensor
        Squared gradients v of one tensor, sharded or not; :math:`\bar v` is their mean.
    exponent : float
        The exponent a.

    Returns
    -------
    Tensor
        Ones where all squared gradients are zero.
    """
    mean = named.to_float(_mean(moment))
    part = local(moment)
    wide = part if part.dtype == torch.float64 else part.float()
    if not mean > 0:
        return torch.ones_like(wide)
    return (wide / mean + DAMPING) ** (exponent / 2)


def root_mean_square(tensor: Tensor) -> float:
    """Return the root mean square of a tensor, over all shards; 1 for zeros."""
    found = named.to_float(_mean(tensor.detach().square())) ** 0.5
    return found if found > 0 else 1.0


def show_scaled(
    latent: Tensor,
    mask: Tensor,
    index: Tensor | None,
    factors: Tensor,
    level: float,
    power: float | None,
    out: Tensor,
) -> None:
    r"""Write the thresholded values of a local tensor whose entries have thresholds of their own.

    An entry of the support holds :math:`\theta (1 - (\tau/(c |\theta|))^p)^{1/p}`, with its factor
    c from `factors`; the other parameters are those of `ellzero.tensors.thresholded.show`.
    """
    if index is not None:
        values = _thresholded(
            latent.view(-1)[index], factors.reshape(-1)[index], level, power, out.dtype
        )
        out.view(-1)[index] = values
        return
    values = _thresholded(latent, factors, level, power, out.dtype)
    out.copy_(torch.where(mask, values, 0.0))


def _thresholded(
    values: Tensor, factors: Tensor, level: float, power: float | None, dtype: torch.dtype
) -> Tensor:
    wide = values if values.dtype == torch.float64 else values.float()
    size = wide.abs()
    if power is not None and level > 0:
        ratio = level / (size * factors).clamp_min(level)
        size = size * ((1 - ratio**power) ** (1 / power)).clamp_min(LEAST_SHARE)
    return torch.copysign(size.clamp_min(tiny(dtype)), wide).to(dtype)
