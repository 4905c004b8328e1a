"""Rows and columns of weights as units: how large they are, and what the model is shown of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.errors import IncompatibleError
from ellzero.tensors import thresholded


def scores(tensor: Tensor, axis: int) -> Tensor:
    """Return the root mean square of each unit.

    Parameters
    ----------
    tensor : Tensor
        A weight; dense, or sharded by rows.
    axis : int
        Axis along which units lie.

    Returns
    -------
    Tensor of shape (tensor.shape[axis],)
        In float32, or float64 for a tensor of float64.

    Raises
    ------
    IncompatibleError
        If the units of a sharded tensor lie on several processes.
    """
    if thresholded.is_sharded(tensor) and axis != 0:
        raise IncompatibleError(
            "The columns of a sharded weight lie on several processes.",
            'Count its rows with `structure="rows"`, or do not shard the model.',
        )
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    flat = wide.movedim(axis, 0).flatten(1)
    # Relative to the largest entry, so that squares neither vanish nor overflow.
    largest = flat.abs().amax(1, keepdim=True)
    shares = flat / largest.clamp_min(torch.finfo(wide.dtype).tiny)
    return shares.square().mean(1).sqrt() * largest.squeeze(1)


def nonzero(tensor: Tensor, axis: int) -> Tensor:
    """Return which units hold a nonzero."""
    return (tensor != 0).movedim(axis, 0).flatten(1).any(1)


def kept(mask: Tensor, axis: int) -> Tensor:
    """Return which units a mask of entries keeps; units are kept or dropped whole."""
    return mask.movedim(axis, 0).flatten(1).select(1, 0)


def spread(units: Tensor, like: Tensor, axis: int) -> Tensor:
    """Return the value of its unit at each entry."""
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return units.reshape(shape).expand(like.shape)


def show(
    latent: Tensor, mask: Tensor, axis: int, level: float, power: float | None, out: Tensor
) -> None:
    r"""Write the thresholded units of a local tensor.

    Parameters
    ----------
    latent : Tensor
        Dense values.
    mask : Tensor of bool
        The support.
    axis : int
        Axis along which units lie.
    level : float
        The score tau of the smallest unit that is kept.
    power : float or None
        The exponent p of :math:`\theta_u (1 - (\tau / r_u)^p)^{1/p}`, where :math:`r_u` is the
        score of the unit; None keeps the values.
    out : Tensor
        Receives the values; an entry of the support never becomes zero.
    """
    out.copy_(latent)
    if power is not None and level > 0:
        ratio = level / scores(latent, axis).clamp_min(level)
        shares = (1 - ratio**power) ** (1 / power)
        out.mul_(spread(shares.clamp_min(thresholded.LEAST_SHARE), out, axis).to(out.dtype))
    thresholded.keep(out, mask)
