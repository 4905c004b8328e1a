"""Rows and columns of weights as units: how large they are, and which are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ellzero.errors import IncompatibleError
from ellzero.tensors import thresholded


def scores(tensor: Tensor, axis: int) -> Tensor:
    """Return the norm of each unit over the mean norm of the units of the same tensor.

    Parameters
    ----------
    tensor : Tensor
        A weight; dense, or sharded by rows.
    axis : int
        Axis along which units lie.

    Returns
    -------
    Tensor of shape (tensor.shape[axis],)
        In float32, or float64 for a tensor of float64. Zeros where all units are zero.

    Raises
    ------
    IncompatibleError
        If the units of a sharded tensor lie on several processes.

    Notes
    -----
    Layers of other sizes and scales share a budget, so norms are not comparable as they are. Test
    accuracy in percent on the handwritten digits of scikit-learn, mean of three seeds, when 20 and
    10 % of the rows of a perceptron with 200 and 60 units are kept, and 40 % of the filters of a
    convolutional net with 16, 32 and 32: this score 94.9, 89.6, 92.5; plain norms 95.3, 91.7,
    88.9; the same share in each layer 94.9, 87.3, 92.4. Norms over the square root of the size
    leave a layer with one filter (two seeds, 93.4 and 85.8 for the first and the last net).
    """
    if thresholded.is_sharded(tensor) and axis != 0:
        raise IncompatibleError(
            "The columns of a sharded weight lie on several processes.",
            'Count its rows with `structure="rows"`, or do not shard the model.',
        )
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    least = torch.finfo(wide.dtype).tiny
    flat = wide.movedim(axis, 0).flatten(1)
    # Relative to the largest entry, so that squares neither vanish nor overflow.
    largest = flat.abs().amax(1, keepdim=True)
    norms = (flat / largest.clamp_min(least)).square().sum(1).sqrt() * largest.squeeze(1)
    return norms / norms.mean().clamp_min(least)


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
