"""Checks of what a search over subsets for generalized linear models is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ellzero.errors import InvalidParameterError
from ellzero.subset.glm_design import AbstractDesign, DenseDesign, DeviceDesign, SparseDesign
from ellzero.subset.reading import bad_counts, take_rows, to_numpy
from ellzero.subset.results import Floats, Integers
from ellzero.validation import check_choice, check_integer, check_real

LOSSES = ("logistic", "softmax", "poisson", "huber")


@dataclass(frozen=True, slots=True)
class Table:
    """What a search needs, checked.

    Parameters
    ----------
    design : AbstractDesign
        Columns of the samples whose weight is not zero.
    loss : str
        Name of the loss.
    y, weight : ndarray of shape (n_samples,)
        Target, and weights that add up to 1.
    codes : ndarray of shape (n_samples,), int64
        Classes of a softmax; empty otherwise.
    n_classes : int
        Number of classes; 1 for other losses.
    sizes : list of int
        Budgets, ascending.
    ridge, lower, upper : ndarray of shape (n_features,)
        Ridge and bounds of every feature.
    fit_intercept : bool
        Whether there is an intercept.
    members : list of ndarray of int64, or None
        Features of every group.
    always : frozenset of int
        Units in every subset.
    open : ndarray of shape (n_units,), bool
        Units that may be chosen.
    delta : float
        Where the Huber loss turns linear.
    """

    design: AbstractDesign
    loss: str
    y: Floats
    weight: Floats
    codes: Integers
    n_classes: int
    sizes: list[int]
    ridge: Floats
    lower: Floats
    upper: Floats
    fit_intercept: bool
    members: list[Integers] | None
    always: frozenset[int]
    open: NDArray[np.bool_]
    delta: float


def read(
    X: Any,
    y: Any,
    loss: str,
    budgets: Iterable[int],
    *,
    sample_weight: Any,
    ridge: Any,
    fit_intercept: bool,
    always: Iterable[int],
    forbidden: Iterable[int],
    groups: Any,
    lower: Any,
    upper: Any,
    time_limit: float | None,
    delta: float,
) -> Table:
    """Return the arguments of `search_glm`, checked.

    Raises
    ------
    InvalidParameterError
        If one of them has a wrong type, shape or value.
    """
    check_choice("loss", loss, LOSSES)
    delta = check_real("delta", delta, 0.0, open_low=True)
    if time_limit is not None:
        check_real("time_limit", time_limit, 0.0)
    X = _matrix(X)
    n, p = X.shape
    target = _vector("y", y, n)
    weight = np.ones(n)
    if sample_weight is not None:
        weight = _vector("sample_weight", sample_weight, n)
        if (weight < 0).any():
            raise InvalidParameterError(
                f"`sample_weight` must not be negative, got {weight.min():g}."
            )
        if not weight.any():
            raise InvalidParameterError(
                "`sample_weight` must have a positive sum, got zeros only."
            )
        inside = weight > 0
        if not inside.all():
            X, target, weight = take_rows(X, inside), target[inside], weight[inside]
            X = X.tocsc() if hasattr(X, "tocsc") else X
    weight = weight / weight.max()
    weight = weight / weight.sum()
    codes, n_classes = _check_target(loss, target)
    ridges = _numbers("ridge", ridge, p)
    if not (np.isfinite(ridges).all() and (ridges >= 0).all()):
        worst = ridges[~(ridges >= 0) | np.isinf(ridges)][0]
        raise InvalidParameterError(f"`ridge` must be a number of at least 0, got {worst:g}.")
    low, high = _bounds(lower, upper, p, loss)
    members, label = _groups(groups, p)
    kept, left = _features("always", always, p), _features("forbidden", forbidden, p)
    both = sorted(kept & left)
    if both:
        raise InvalidParameterError(
            f"`always` and `forbidden` must not share features, got {both[0]} in both."
        )
    units = frozenset(int(label[j]) for j in kept)
    n_units = p if members is None else len(members)
    is_open = np.ones(n_units, np.bool_)
    is_open[[int(label[j]) for j in left]] = False
    clash = sorted(j for j in left if int(label[j]) in units)
    if clash:
        raise InvalidParameterError(
            f"`forbidden` must not hold features of a group that is in `always`, got {clash[0]}."
        )
    sizes = _budgets(budgets, len(units))
    design: AbstractDesign
    if isinstance(X, torch.Tensor):
        design = DeviceDesign(X, weight, fit_intercept)
    elif isinstance(X, np.ndarray):
        design = DenseDesign(X, weight, fit_intercept)
    else:
        design = SparseDesign(X, weight, fit_intercept)
    return Table(
        design,
        loss,
        target,
        weight,
        codes,
        n_classes,
        sizes,
        ridges,
        low,
        high,
        bool(fit_intercept),
        members,
        units,
        is_open,
        delta,
    )


def _matrix(X: Any) -> Any:
    """Return a dense array, a CSC array or a tensor on a device, with finite floats."""
    if isinstance(X, torch.Tensor):
        X = X.detach()
        if X.device.type == "cpu":
            X = X.numpy()
    if hasattr(X, "tocsc"):
        from scipy import sparse

        X = sparse.csc_array(X)  # type: ignore[no-untyped-call]
        X.sum_duplicates()
    elif not isinstance(X, torch.Tensor):
        X = np.asarray(X)
    if X.ndim != 2:
        raise InvalidParameterError(
            f"`X` must have 2 axes, got shape {tuple(X.shape)}.",
            "Pass `X.reshape(-1, 1)` for a single column.",
        )
    if X.shape[0] == 0 or X.shape[1] == 0:
        raise InvalidParameterError(
            f"`X` must have at least one row and one column, got shape {tuple(X.shape)}."
        )
    if isinstance(X, torch.Tensor):
        X = X if X.is_floating_point() else X.double()
    else:
        if X.dtype.kind not in "biuf":
            raise InvalidParameterError(f"`X` must hold numbers, got dtype {X.dtype}.")
        if X.dtype not in (np.float32, np.float64):
            X = X.astype(np.float64)
    bad = bad_counts(X)
    if bad.any():
        columns = np.flatnonzero(bad)
        counts = ", ".join(f"column {j} ({bad[j]})" for j in columns[:10])
        more = f" and {columns.size - 10} more columns" if columns.size > 10 else ""
        raise InvalidParameterError(
            f"`X` must be finite, got NaN or infinity in {counts}{more}.",
            "Drop or fill these values first.",
        )
    return X


def _vector(name: str, value: Any, n: int) -> Floats:
    value = to_numpy(value)
    try:
        out = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidParameterError(f"`{name}` must hold numbers, got {value!r:.60}.") from None
    if out.shape != (n,):
        raise InvalidParameterError(
            f"`{name}` must have one number for each of {n} samples, got shape {out.shape}."
        )
    if not np.isfinite(out).all():
        raise InvalidParameterError(
            f"`{name}` must be finite, got NaN or infinity.", "Drop these samples first."
        )
    return np.ascontiguousarray(out)


def _check_target(loss: str, y: Floats) -> tuple[Integers, int]:
    """Return the codes of a softmax and the number of classes."""
    empty = np.zeros(0, np.int64)
    if loss == "huber":
        return empty, 1
    if loss == "poisson":
        if (y < 0).any():
            raise InvalidParameterError(f"`y` must hold counts, got {y.min():g}.")
        if not y.any():
            raise InvalidParameterError(
                "`y` must hold a positive count, got zeros only.",
                "Check the counts; a constant target needs no model.",
            )
        return empty, 1
    values = np.unique(y)
    if values.size < 2:
        raise InvalidParameterError(
            f"`y` must have at least two classes, got only {values[0]:g}.",
            "Check the labels; a constant target needs no model.",
        )
    if loss == "logistic":
        if values.size > 2:
            raise InvalidParameterError(
                f"`y` must have two classes, got {values.size}.", 'Use `loss="softmax"`.'
            )
        if values.tolist() != [0.0, 1.0]:
            raise InvalidParameterError(
                f"`y` must be coded as 0 and 1, got {values[0]:g} and {values[1]:g}."
            )
        return empty, 1
    if values.tolist() != list(range(values.size)):
        raise InvalidParameterError(
            f"`y` must hold the codes 0 to {values.size - 1} of {values.size} classes, "
            f"got {', '.join(f'{v:g}' for v in values[:10])}."
        )
    return y.astype(np.int64), values.size


def _numbers(name: str, value: Any, p: int) -> Floats:
    out = np.asarray(value, dtype=np.float64)
    if out.shape not in ((), (p,)):
        raise InvalidParameterError(
            f"`{name}` must be one number or one for each of {p} features, got shape {out.shape}."
        )
    return np.array(np.broadcast_to(out, (p,)))


def _bounds(lower: Any, upper: Any, p: int, loss: str) -> tuple[Floats, Floats]:
    low = _numbers("lower", -np.inf if lower is None else lower, p)
    high = _numbers("upper", np.inf if upper is None else upper, p)
    if not (low <= 0).all() or not (high >= 0).all():
        wrong = int(np.flatnonzero(~((low <= 0) & (high >= 0)))[0])
        raise InvalidParameterError(
            f"`lower` and `upper` must have 0 between them, got {low[wrong]:g} and "
            f"{high[wrong]:g} for feature {wrong}."
        )
    if loss == "softmax" and (np.isfinite(low).any() or np.isfinite(high).any()):
        raise InvalidParameterError(
            "`lower` and `upper` must be None for a softmax, where a feature has a coefficient "
            "for each class."
        )
    return low, high


def _groups(groups: Any, p: int) -> tuple[list[Integers] | None, Integers]:
    """Return the features of every group, and the group of every feature."""
    if groups is None:
        return None, np.arange(p)
    labels = np.asarray(to_numpy(groups))
    if labels.shape != (p,) or labels.dtype.kind not in "iu":
        raise InvalidParameterError(
            f"`groups` must hold one integer label for each of {p} features, "
            f"got shape {labels.shape} and dtype {labels.dtype}."
        )
    _, unit = np.unique(labels, return_inverse=True)
    order = np.argsort(unit, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(unit[order])) + 1), unit


def _features(name: str, values: Iterable[int], p: int) -> set[int]:
    return {
        check_integer(f"{name}[{i}]", j, 0, p - 1, meaning="the last feature")
        for i, j in enumerate(values)
    }


def _budgets(budgets: Iterable[int], least: int) -> list[int]:
    hint = f"`always` takes {least} of every budget." if least else None
    out = {
        check_integer(f"budgets[{i}]", b, least, hint=hint) for i, b in enumerate(list(budgets))
    }
    if not out:
        raise InvalidParameterError("`budgets` must hold at least one budget, got none.")
    return sorted(out)
