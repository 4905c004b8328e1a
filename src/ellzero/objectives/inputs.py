"""Checks of data and ridge that the objectives share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ellzero.errors import InvalidParameterError, did_you_mean
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_real


def to_matrix(name: str, value: Any) -> Tensor:
    """Return a finite floating-point matrix, or raise; the tensor itself is not copied."""
    if not isinstance(value, Tensor):
        raise InvalidParameterError(
            f"`{name}` must be a tensor with 2 axes, got {type(value).__name__}.",
            f"Pass `torch.as_tensor({name})`.",
        )
    if value.ndim != 2:
        raise InvalidParameterError(
            f"`{name}` must have 2 axes, got shape {tuple(value.shape)}.",
            f"Pass `{name}.reshape(-1, 1)` for a single column.",
        )
    if not value.is_floating_point():
        raise InvalidParameterError(
            f"`{name}` must hold floating-point numbers, got {value.dtype}.",
            f"Pass `{name}.double()`.",
        )
    if value.shape[0] == 0:
        raise InvalidParameterError(f"`{name}` must have at least one row, got none.")
    if value.shape[1] == 0:
        raise InvalidParameterError(f"`{name}` must have at least one column, got none.")
    # One read tells whether anything is wrong; only then look for where.
    if not named.all_true(torch.isfinite(value.sum())):
        bad = (~torch.isfinite(value)).sum(0)
        columns = named.to_list(bad.nonzero().flatten())
        if columns:
            counts = ", ".join(f"column {j} ({named.to_int(bad[j])})" for j in columns[:10])
            more = f" and {len(columns) - 10} more columns" if len(columns) > 10 else ""
            raise InvalidParameterError(
                f"`{name}` must be finite, got NaN or infinity in {counts}{more}.",
                "Drop or fill these values first.",
            )
    return value


def check_length(y: Any, n_samples: int) -> Tensor:
    """Return a target with one entry or row for each sample, or raise."""
    if not isinstance(y, Tensor):
        raise InvalidParameterError(
            f"`y` must be a tensor, got {type(y).__name__}.", "Pass `torch.as_tensor(y)`."
        )
    if y.ndim == 0 or y.shape[0] != n_samples:
        got = 1 if y.ndim == 0 else y.shape[0]
        raise InvalidParameterError(
            f"`X` and `y` must have the same number of samples, got {n_samples} and {got}."
        )
    return y


def check_ridge(ridge: Any, template: Params) -> dict[str, float]:
    """Return the ridge of every tensor; one number holds for all, a mapping for those it names.

    Raises
    ------
    InvalidParameterError
        If a number is negative or not finite, or a name is unknown.
    """
    if not isinstance(ridge, Mapping):
        value = check_real("ridge", ridge, 0.0)
        return dict.fromkeys(template, value)
    for name in ridge:
        if name not in template:
            known = ", ".join(template)
            raise InvalidParameterError(
                f"Unknown tensor {name!r} in `ridge`.{did_you_mean(str(name), template)} "
                f"Known tensors: {known}."
            )
    return {name: check_real("ridge", ridge.get(name, 0.0), 0.0) for name in template}


def lower_eigenvalue(values: Tensor) -> float:
    """Return a number surely not above the smallest of computed eigenvalues, at least 0."""
    # Symmetric eigensolvers err by a few ulps of the largest eigenvalue.
    error = (
        8 * values.shape[0] * torch.finfo(values.dtype).eps * named.to_float(values.abs().max())
    )
    return max(named.to_float(values[0]) - error, 0.0)


def keep_weighted(
    X: Tensor, y: Tensor, sample_weight: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the samples whose weight is not zero, and their weights over the sum of weights.

    Parameters
    ----------
    X : Tensor of shape (n_samples, n_features)
        Features.
    y : Tensor of shape (n_samples, ...)
        Target.
    sample_weight : Tensor of shape (n_samples,) or None
        Weights; None means that all are the same.

    Returns
    -------
    X, y : Tensor
        The tensors themselves where no weight is zero.
    share : Tensor of shape (n_samples, 1), float64, or None
        Weights that add up to 1; None where none were given.

    Raises
    ------
    InvalidParameterError
        If weights do not fit the samples, are negative or not finite, or are all zero.
    """
    if sample_weight is None:
        return X, y, None
    if not isinstance(sample_weight, Tensor):
        raise InvalidParameterError(
            f"`sample_weight` must be a tensor, got {type(sample_weight).__name__}.",
            "Pass `torch.as_tensor(sample_weight)`.",
        )
    if tuple(sample_weight.shape) != (X.shape[0],):
        raise InvalidParameterError(
            f"`sample_weight` must have one number for each of {X.shape[0]} samples, "
            f"got shape {tuple(sample_weight.shape)}."
        )
    weight = sample_weight.to(X.device, torch.float64)
    if not named.all_true(torch.isfinite(weight) & (weight >= 0)):
        raise InvalidParameterError(
            "`sample_weight` must be finite and not negative, got a sample that is not."
        )
    # Weights that are powers of two apart from others neither overflow nor vanish in the sum.
    largest = weight.max()
    if not named.all_true(largest > 0):
        raise InvalidParameterError("`sample_weight` must have a positive sum, got zeros only.")
    weight = weight / largest
    inside = weight > 0
    if not named.all_true(inside):
        X, y, weight = X[inside], y[inside], weight[inside]
    return X, y, (weight / weight.sum()).unsqueeze(1)
