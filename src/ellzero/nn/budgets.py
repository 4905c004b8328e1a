"""Which tensors of a network share a budget, and how large it is."""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sets import L0Ball, SliceL0Ball
from ellzero.tensors.coverage import covered
from ellzero.validation import check_choice, check_integer, check_real

Budget = int | float | Mapping[str, int | float]

STRUCTURES = {"entries": None, "rows": 0, "columns": 1}
"""What a budget may count, and the axis of a weight along which its units lie."""


def prunable(model: nn.Module, structure: str = "entries") -> dict[str, nn.Parameter]:
    """Return the parameters that a budget counts by default.

    For entries: weights of two axes or more that require gradients, tied ones once; biases and the
    weights of normalization layers have one axis and stay free. For rows and columns: of these,
    the weights of linear and convolutional layers. The rows of the last one are left out, since
    they are the outputs of the network, and so are the columns of convolutions in groups.

    Parameters
    ----------
    model : torch.nn.Module
        Any module.
    structure : {"entries", "rows", "columns"}, default="entries"
        What is counted.

    Returns
    -------
    dict of str to torch.nn.Parameter
        In the order of ``model.named_parameters()``.

    Raises
    ------
    InvalidParameterError
        If `structure` is none of these.

    Notes
    -----
    The last layer is the one that was registered last. Where that is not the one that gives the
    outputs, or where there are several outputs, name the tensors.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import prunable
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> list(prunable(model)), list(prunable(model, "rows"))
    (['0.weight', '2.weight'], ['0.weight'])
    """
    check_choice("structure", structure, STRUCTURES)
    weights = {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    if structure == "entries":
        return weights
    owners = _owners(model)
    layers = {
        n: p
        for n, p in weights.items()
        if n.rpartition(".")[2] == "weight"
        and isinstance(owners[n], (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    }
    if structure == "rows":
        return dict(list(layers.items())[:-1])
    return {n: p for n, p in layers.items() if getattr(owners[n], "groups", 1) == 1}


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Return the module that holds each parameter."""
    parts = dict(model.named_modules())
    return {n: parts[n.rpartition(".")[0]] for n, _ in model.named_parameters()}


def to_count(
    name: str, budget: int | float, n_entries: int, *, unit: str = "entries", least: int = 1
) -> int:
    """Return a number of entries or other units from a count (int) or a density (float).

    Raises
    ------
    InvalidParameterError
        If the count is not between `least` and `n_entries`, or the density not in (0, 1].
    """
    hint = f"Pass a whole number up to {n_entries}, or a density such as 0.01."
    if least > 1:
        hint = (
            f"Each of the {least} tensors keeps at least one; pass a whole number from {least} to "
            f"{n_entries}, or a density such as 0.5."
        )
    if isinstance(budget, numbers.Integral) or not isinstance(budget, numbers.Real):
        return check_integer(
            name, budget, least, n_entries, meaning=f"the number of {unit} it counts", hint=hint
        )
    density = check_real(name, budget, 0.0, 1.0, open_low=True, hint=hint)
    return max(least, math.floor(density * n_entries + 1e-9))


def make_balls(
    model: nn.Module,
    n_nonzero: Budget,
    *,
    names: Sequence[str] | None = None,
    allocation: str = "global",
    structure: str = "entries",
) -> tuple[L0Ball | SliceL0Ball, ...]:
    """Return the sets that a budget means: one for each group of tensors that share it.

    Parameters
    ----------
    model : torch.nn.Module
        Gives the tensors.
    n_nonzero : int, float or mapping of str to int or float
        A count (int) or a density (float) of what `structure` says, over all counted tensors. A
        mapping gives one for each tensor that it names, and for each pattern, such as
        ``"encoder.*.weight"``, one that the tensors it matches share.
    names : sequence of str or None, default=None
        Tensors to count, or patterns of them; None means `prunable`.
    allocation : {"global", "uniform", "erk"}, default="global"
        One budget over all tensors, the same density in each, or densities proportional to
        (sum of dimensions) / (product of dimensions).
    structure : {"entries", "rows", "columns"}, default="entries"
        What is counted: single entries; rows, which are the output units of linear layers and the
        filters of convolutions; or columns, their input features and channels. A row or column
        counts once, whatever its size.

    Returns
    -------
    tuple of L0Ball or SliceL0Ball
        Budgets that add up to `n_nonzero`.

    Raises
    ------
    InvalidParameterError
        If the budget is out of range, a name unknown, a pattern matches nothing, a tensor is
        matched twice, or nothing can be counted.
    IncompatibleError
        If a tensor is frozen, or has no rows or columns that are units.

    Notes
    -----
    Patterns are those of a shell (``*`` also matches dots) and match the tensors of `prunable`; an
    exact name may name any tensor. A budget of rows or columns leaves each tensor at least one.
    The density of such a budget is a share of the units: a unit that goes also takes its column in
    the next layer with it, so about the square of the density remains of the entries. ERK as in
    U. Evci et al., "Rigging the lottery", arXiv:1911.11134.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import make_balls
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    >>> make_balls(model, {"[01].weight": 0.5, "2.weight": 3})[0].n_nonzero
    64
    >>> make_balls(model, {"[01].weight": 0.5}, structure="rows")[0].n_slices
    8
    """
    check_choice("allocation", allocation, ("global", "uniform", "erk"))
    free = prunable(model, structure)
    known = dict(model.named_parameters())
    axis = STRUCTURES[structure]
    if isinstance(n_nonzero, Mapping):
        groups = _match("n_nonzero", n_nonzero, known, free)
    elif names is None:
        groups = {"": tuple(free)}
    else:
        found = _match("names", names, known, free, once=False).values()
        groups = {"": covered(known, tuple(dict.fromkeys(n for g in found for n in g)))}
    chosen = [n for group in groups.values() for n in group]
    if not chosen:
        if structure != "entries" and prunable(model):
            raise InvalidParameterError(
                f"`model` must have {structure} to prune, got none in linear or convolutional "
                f"layers that can be counted by default.",
                "The rows of the last layer are outputs; name the tensors to count by `names`.",
            )
        raise InvalidParameterError(
            "`model` must have a weight to prune, got none with two axes that requires gradients.",
            "Name the tensors to count by `names`.",
        )
    _check_chosen(model, chosen, structure)
    sizes = {n: known[n].numel() if axis is None else known[n].shape[axis] for n in chosen}

    def ball(count: int, group: tuple[str, ...]) -> L0Ball | SliceL0Ball:
        return L0Ball(count, group) if axis is None else SliceL0Ball(count, axis, group)

    def count_of(what: str, budget: int | float, group: tuple[str, ...]) -> int:
        least = 1 if axis is None else len(group)
        total = sum(sizes[n] for n in group)
        return to_count(what, budget, total, unit=structure, least=least)

    if isinstance(n_nonzero, Mapping):
        return tuple(
            ball(count_of(f"n_nonzero[{key!r}]", n_nonzero[key], group), group)
            for key, group in groups.items()
        )
    budget = count_of("n_nonzero", n_nonzero, tuple(chosen))
    if allocation == "global":
        return (ball(budget, tuple(chosen)),)
    shares = {n: _erk(known[n], sizes[n]) if allocation == "erk" else sizes[n] for n in chosen}
    weights = [float(shares[n]) for n in chosen]
    counts = allocate(budget, weights, list(sizes.values()))
    while axis is not None and 0 in counts:  # the largest gives one to a layer without a unit
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] = 1
    return tuple(ball(c, (n,)) for n, c in zip(chosen, counts, strict=True))


def _match(
    what: str,
    keys: Iterable[str],
    known: Mapping[str, Tensor],
    free: Mapping[str, Tensor],
    *,
    once: bool = True,
) -> dict[str, tuple[str, ...]]:
    """Return the tensors that each name or pattern means, in the order of the model."""
    exact = [k for k in keys if k in known or not any(c in k for c in "*?[")]
    covered(known, tuple(exact))
    found: dict[str, tuple[str, ...]] = {}
    by: dict[str, str] = {}
    for key in keys:
        group = (key,) if key in exact else tuple(n for n in free if fnmatch.fnmatchcase(n, key))
        if not group:
            raise InvalidParameterError(
                f"The pattern {key!r} in `{what}` matches no tensor that can be counted; there "
                f"are: {', '.join(free)}.",
                "Change the pattern, or name a tensor exactly.",
            )
        found[key] = group
        for name in group:
            if once and name in by:
                raise InvalidParameterError(
                    f"Tensor {name!r} is matched twice in `{what}`, by {by[name]!r} and by "
                    f"{key!r}. The tensors are: {', '.join(free)}.",
                    "Give each tensor one budget.",
                )
            by[name] = key
    place = {n: i for i, n in enumerate(known)}
    return dict(sorted(found.items(), key=lambda item: place[item[1][0]]))


def _check_chosen(model: nn.Module, chosen: Sequence[str], structure: str) -> None:
    known, owners = dict(model.named_parameters()), _owners(model)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for name in chosen:
        if not known[name].requires_grad:
            raise IncompatibleError(
                f"{name!r} is counted by the budget but frozen (`requires_grad` is False).",
                "Leave it out of `names`, or let it train.",
            )
        if structure == "entries":
            continue
        if known[name].ndim < 2:
            raise IncompatibleError(
                f"{name!r} of shape {tuple(known[name].shape)} has no {structure}; they need two "
                "axes or more.",
                'Leave it out, or count it with `structure="entries"`.',
            )
        grouped = structure == "columns" and getattr(owners[name], "groups", 1) > 1
        if isinstance(owners[name], transposed) or grouped:
            raise IncompatibleError(
                f"The {structure} of {name!r} are not the units of its layer, a "
                f"{type(owners[name]).__name__}{' in groups' if grouped else ''}.",
                'Leave it out, or count it with `structure="entries"`.',
            )


def _erk(tensor: Tensor, size: int) -> float:
    """Return the share of a tensor under ERK: its size times sum over product of its sides."""
    return size * sum(tensor.shape) / math.prod(tensor.shape)


def allocate(budget: int, weights: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Return whole numbers that add up to `budget`, proportional to `weights`, within `sizes`.

    Parameters
    ----------
    budget : int
        The sum wanted; at most the sum of `sizes`.
    weights : sequence of float
        Positive.
    sizes : sequence of int
        Largest number each place takes; what one cannot take goes to the others.

    Returns
    -------
    list of int
        Largest remainders are rounded up first; equal ones in order.
    """
    full: set[int] = set()
    shares = [0.0] * len(sizes)
    while True:
        left = budget - sum(sizes[i] for i in full)
        weight = sum(w for i, w in enumerate(weights) if i not in full)
        for i, w in enumerate(weights):
            shares[i] = float(sizes[i]) if i in full else left * w / weight
        over = {i for i, s in enumerate(shares) if i not in full and s > sizes[i]}
        if not over:
            break
        full |= over
    counts = [math.floor(s + 1e-9) for s in shares]
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - shares[i], i))
    for i in order:
        if sum(counts) < budget and counts[i] < sizes[i]:
            counts[i] += 1
    return counts
