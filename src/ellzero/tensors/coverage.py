"""Which tensors of a point a set or a penalty covers, and refusal of NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError, NonFiniteError, did_you_mean
from ellzero.tensors import named
from ellzero.typing import Params


def check_names(names: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return names of tensors as a tuple; a single name may be given as it is.

    Raises
    ------
    InvalidParameterError
        If `names` is empty, repeats a name or holds something else than strings.
    """
    if names is None:
        return None
    out = (names,) if isinstance(names, str) else tuple(names)
    if not out:
        raise InvalidParameterError(
            "`names` must name at least one tensor, got none.", "Pass None to cover every tensor."
        )
    for name in out:
        if not isinstance(name, str):
            raise InvalidParameterError(f"`names` must hold strings, got {name!r}.")
    for i, name in enumerate(out):
        if name in out[:i]:
            raise InvalidParameterError(f"`names` must not repeat a name, got {name!r} twice.")
    return out


def covered(params: Params, names: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the covered names in the order of `params`; None covers all.

    Raises
    ------
    InvalidParameterError
        If a name is not one of `params`.
    """
    if names is None:
        return tuple(params)
    for name in names:
        if name not in params:
            known = ", ".join(params)
            raise InvalidParameterError(
                f"Unknown tensor {name!r} in `names`.{did_you_mean(name, params)} "
                f"Known tensors: {known}."
            )
    return tuple(name for name in params if name in names)


def restrict(params: Params, names: tuple[str, ...] | None) -> Params:
    """Return the covered tensors alone, as the same kind (point or batch)."""
    return named.like(params, {name: params[name] for name in covered(params, names)})


def list_names(names: Sequence[str]) -> str:
    """Return names for a message: ``'a', 'b' and 'c'``."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def has_nan(params: Params) -> Tensor:
    """Return whether an entry is NaN, for each point; infinities do not count."""
    start = 1 if named.is_batch(params) else 0

    def hits(tensor: Tensor) -> Tensor:
        axes = tuple(range(start, tensor.ndim))
        # A NaN always reaches the sum, which is one read without a temporary; opposite infinities
        # make one too, so a NaN sum is looked at again.
        out = (tensor.sum(axes) if axes else tensor).isnan()
        if named.any_true(out):
            out = torch.isnan(tensor).sum(axes) > 0 if axes else torch.isnan(tensor)
        return out

    return torch.stack([hits(tensor) for tensor in params.values()]).sum(0) > 0


def refuse_nan(params: Params) -> None:
    """Raise when an entry is NaN.

    Raises
    ------
    NonFiniteError
        If a tensor contains NaN; infinities pass.
    """
    for name, tensor in params.items():
        if named.any_true(has_nan(named.like(params, {name: tensor}))):
            raise NonFiniteError(
                f"Tensor {name!r} contains NaN.", "Reduce `step_size`, or scale the data."
            )
