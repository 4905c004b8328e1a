"""Groups of entries, given by one integer label for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError
from ellzero.tensors import named
from ellzero.tensors.coverage import list_names
from ellzero.typing import Params

GroupsLike = Tensor | Sequence[int] | Mapping[str, Tensor]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Grouping:
    """Group number of every covered entry; groups are numbered by increasing label.

    Parameters
    ----------
    index : Tensor of shape (n,), int64, or mapping of str to such tensors
        Group number of every flattened entry, of all tensors together or by name.
    sizes : Tensor of shape (n_groups,), int64
        Number of entries of each group.
    """

    index: Tensor | Mapping[str, Tensor]
    sizes: Tensor

    @property
    def n_groups(self) -> int:
        """Number of distinct labels."""
        return int(self.sizes.shape[0])

    def flat_index(self, covered: Params) -> Tensor:
        """Return the group number of every entry of a point, in the order of `named.flatten`."""
        if isinstance(self.index, Tensor):
            flat = self.index
        else:
            flat = torch.cat([self.index[name] for name in covered])
        return flat.to(next(iter(covered.values())).device)

    def sums(self, flat: Tensor, index: Tensor) -> Tensor:
        """Return the sum over each group: shape (..., n) gives (..., n_groups)."""
        out = flat.new_zeros((*flat.shape[:-1], self.n_groups))
        return out.index_add(-1, index, flat)

    def check_fits(self, covered: Params) -> None:
        """Raise when there is not one label for every entry.

        Raises
        ------
        InvalidParameterError
            If the number of labels differs from the number of entries.
        """
        parts = (
            [(list(covered), self.index, named.size(covered))]
            if isinstance(self.index, Tensor)
            else [
                ([name], self.index[name], named.size(named.like(covered, {name: tensor})))
                for name, tensor in covered.items()
            ]
        )
        for names, index, size in parts:
            if index.numel() != size:
                raise InvalidParameterError(
                    f"`groups` must hold one label for each of the {size} entries in "
                    f"{list_names(names)}, got {index.numel()}.",
                    "Set `names` to the tensors that the labels belong to.",
                )


def _labels(groups: Tensor | Sequence[int], where: str) -> Tensor:
    labels = torch.as_tensor(groups).detach()
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        given = str(labels.dtype).removeprefix("torch.")
        raise InvalidParameterError(
            f"`groups` must hold integer labels, got dtype {given}{where}.",
            "Convert them with `.to(torch.int64)`.",
        )
    return labels.reshape(-1).to(torch.int64)


def check_groups(
    groups: GroupsLike, names: tuple[str, ...] | None
) -> tuple[Grouping, tuple[str, ...] | None]:
    """Return the grouping of `groups` and the names that it covers.

    Parameters
    ----------
    groups : Tensor of int64, sequence of int, or mapping of str to Tensor of int64
        Label of every covered entry, flattened over all covered tensors or by name.
    names : tuple of str or None
        Names that were asked for.

    Returns
    -------
    grouping : Grouping
        Groups numbered from 0.
    names : tuple of str or None
        The keys of a mapping, else `names`.

    Raises
    ------
    InvalidParameterError
        If a label is not an integer, there is none, or `names` differs from the keys.
    """
    if isinstance(groups, Mapping):
        keys = tuple(groups)
        if names is not None and set(names) != set(keys):
            raise InvalidParameterError(
                f"`names` must be the keys of `groups`, got {list_names(names)} and "
                f"{list_names(keys) if keys else 'no key'}.",
                "Leave `names` out.",
            )
        parts = [_labels(labels, f" for {name!r}") for name, labels in groups.items()]
        flat = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
    else:
        flat = _labels(groups, "")
    if flat.numel() == 0:
        raise InvalidParameterError("`groups` must hold at least one label, got none.")
    index, sizes = torch.unique(flat, return_inverse=True, return_counts=True)[1:]
    if isinstance(groups, Mapping):
        pieces = index.split([part.numel() for part in parts])
        return Grouping(dict(zip(keys, pieces, strict=True)), sizes), keys
    return Grouping(index, sizes), names


def split_like(flat: Tensor, template: Params) -> dict[str, Tensor]:
    """Return flattened entries, shape (n,) or (size, n), as tensors of the template's shapes."""
    out: dict[str, Tensor] = {}
    start = 0
    for name, tensor in template.items():
        shape = tensor.shape[1:] if named.is_batch(template) else tensor.shape
        count = shape.numel()
        out[name] = flat[..., start : start + count].reshape(tensor.shape)
        start += count
    return out
