"""State as it is kept: beside a torch optimizer's own, or as plain values and tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError

KEY = "hard_thresholding"


def spread(
    state_dict: Mapping[str, Any], ours: Mapping[str, Any], ids: Mapping[str, int]
) -> dict[str, Any]:
    """Lay what belongs to a parameter beside the optimizer's own state of it.

    `torch.distributed.checkpoint` renames, reshards and stores what is in ``state`` and
    ``param_groups``, and drops the rest.

    Parameters
    ----------
    state_dict : mapping
        State of a torch optimizer.
    ours : mapping
        Mappings of names to tensors go to the parameters, anything else to the first group.
    ids : mapping of str to int
        Number in `state_dict` of each parameter that has a state of ours.

    Returns
    -------
    dict
        A new state; `split` is the inverse.
    """
    tensors = {k: v for k, v in ours.items() if _is_of_tensors(v)}
    state = dict(state_dict["state"])
    groups = [dict(group) for group in state_dict["param_groups"]]
    names = {number: name for name, number in ids.items()}
    for number in itertools.chain.from_iterable(group["params"] for group in groups):
        # Loaders miss a parameter without state where another one has some.
        mine: dict[str, Any] = {"has_state": torch.tensor(number in names)}
        if number in names:
            mine |= {k: v[names[number]] for k, v in tensors.items() if names[number] in v}
        state[number] = {**state.get(number, {}), KEY: mine}
    groups[0][KEY] = {k: v for k, v in ours.items() if k not in tensors}
    return {**state_dict, "state": state, "param_groups": groups}


def split(
    state_dict: Mapping[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what `spread` was given: the state of the optimizer, and ours if there is any.

    Parameters
    ----------
    state_dict : mapping
        What `spread` returned, keyed by numbers or, from `torch.distributed`, by names.
    ids : mapping of str to int
        Number in the optimizer that is to be loaded of each such parameter.

    Returns
    -------
    tuple of (dict, dict or None)
        Both new; the tensors are those given.
    """
    groups = state_dict.get("param_groups", [])
    plain = {
        **state_dict,
        "state": {
            key: rest
            for key, values in state_dict.get("state", {}).items()
            if (rest := {k: v for k, v in values.items() if k != KEY})
        },
        "param_groups": [{k: v for k, v in group.items() if k != KEY} for group in groups],
    }
    if not groups or KEY not in groups[0]:
        return plain, None
    ours = dict(groups[0][KEY])
    keys = list(itertools.chain.from_iterable(group["params"] for group in groups))
    for name, number in ids.items():
        key = keys[number] if number < len(keys) else None
        for kind, value in state_dict["state"].get(key, {}).get(KEY, {}).items():
            if kind != "has_state":
                ours.setdefault(kind, {})[name] = value
    return plain, ours


def _is_of_tensors(value: object) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(v, Tensor) for v in value.values())
    )


def plain_names(text: str) -> str:
    """Return a text with quoted names of parameters, without what wrappers put before them."""
    return text.replace("_orig_mod.", "").replace("'module.", "'")


def flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return plain values with marks in the place of tensors, which go to `tensors`.

    Raises
    ------
    InvalidParameterError
        If a part is neither plain nor a tensor.
    """
    if isinstance(value, Tensor):
        key = f"t{len(tensors)}"
        # A copy of its own: tied tensors share memory, which the file refuses.
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, dict):
        return {"map": [[flatten(k, tensors), flatten(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [flatten(v, tensors) for v in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidParameterError(
        f"The state of the training must hold tensors and plain values, got "
        f"{type(value).__name__}.",
        "Keep other state out of the network's `state_dict`.",
    )


def unflatten(value: Any, tensors: Any) -> Any:
    """Return what `flatten` was given."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {unflatten(k, tensors): unflatten(v, tensors) for k, v in content}
    parts = [unflatten(v, tensors) for v in content]
    return parts if kind == "list" else tuple(parts)
