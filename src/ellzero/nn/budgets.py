"""Which tensors of a network share a budget, and how large it is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.sets import L0Ball
from ellzero.tensors.coverage import covered
from ellzero.validation import check_choice, check_integer, check_real

Budget = int | float | Mapping[str, int | float]


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a budget counts by default.

    Weights of two axes or more that require gradients, tied ones once; biases and the weights of
    normalization layers have one axis and stay free.

    Parameters
    ----------
    model : torch.nn.Module
        Any module.

    Returns
    -------
    dict of str to torch.nn.Parameter
        In the order of ``model.named_parameters()``.
    """
    return {n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}


def to_count(name: str, budget: int | float, n_entries: int) -> int:
    """Return a number of entries from a count (int) or a density (float).

    Raises
    ------
    InvalidParameterError
        If the count is not between 1 and `n_entries`, or the density not in (0, 1].
    """
    hint = f"Pass a whole number up to {n_entries}, or a density such as 0.01."
    if isinstance(budget, numbers.Integral) or not isinstance(budget, numbers.Real):
        return check_integer(
            name, budget, 1, n_entries, meaning="the number of entries it counts", hint=hint
        )
    density = check_real(name, budget, 0.0, 1.0, open_low=True, hint=hint)
    return max(1, math.floor(density * n_entries + 1e-9))


def make_balls(
    model: nn.Module,
    n_nonzero: Budget,
    *,
    names: Sequence[str] | None = None,
    allocation: str = "global",
) -> tuple[L0Ball, ...]:
    """Return the L0 balls that a budget means: one for each group of tensors that share it.

    Parameters
    ----------
    model : torch.nn.Module
        Gives the tensors.
    n_nonzero : int, float or mapping of str to int or float
        Entries (int) or density (float), over all counted tensors; a mapping gives one for each
        tensor that it names.
    names : sequence of str or None, default=None
        Tensors to count; None means `prunable`.
    allocation : {"global", "uniform", "erk"}, default="global"
        One budget over all tensors, the same density in each, or densities proportional to
        (sum of dimensions) / (product of dimensions).

    Returns
    -------
    tuple of L0Ball
        Budgets that add up to `n_nonzero`.

    Raises
    ------
    InvalidParameterError
        If the budget is out of range, a name unknown, or nothing can be counted.
    IncompatibleError
        If a tensor is frozen.

    Notes
    -----
    ERK as in U. Evci et al., "Rigging the lottery", arXiv:1911.11134.
    """
    check_choice("allocation", allocation, ("global", "uniform", "erk"))
    known = dict(model.named_parameters())
    if isinstance(n_nonzero, Mapping):
        wanted: tuple[str, ...] = tuple(n_nonzero)
    else:
        wanted = tuple(prunable(model)) if names is None else tuple(names)
    chosen = covered(known, wanted)
    if not chosen:
        raise InvalidParameterError(
            "`model` must have a weight to prune, got none with two axes that requires gradients.",
            "Name the tensors to count by `names`.",
        )
    for name in chosen:
        if not known[name].requires_grad:
            raise IncompatibleError(
                f"{name!r} is counted by the budget but frozen (`requires_grad` is False).",
                "Leave it out of `names`, or let it train.",
            )
    if isinstance(n_nonzero, Mapping):
        return tuple(
            L0Ball(to_count(f"n_nonzero[{n!r}]", n_nonzero[n], known[n].numel()), (n,))
            for n in chosen
        )
    total = sum(known[n].numel() for n in chosen)
    budget = to_count("n_nonzero", n_nonzero, total)
    if allocation == "global":
        return (L0Ball(budget, chosen),)
    weights = [_erk(known[n]) if allocation == "erk" else float(known[n].numel()) for n in chosen]
    counts = allocate(budget, weights, [known[n].numel() for n in chosen])
    return tuple(L0Ball(c, (n,)) for n, c in zip(chosen, counts, strict=True))


def _erk(tensor: Tensor) -> float:
    """Return the share of a tensor under ERK: numel times sum over product of its sides."""
    return tensor.numel() * sum(tensor.shape) / math.prod(tensor.shape)


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
