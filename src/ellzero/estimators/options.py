"""From constructor parameters to what the search takes: budgets, groups, bounds, kept features."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ellzero.errors import InvalidParameterError, did_you_mean
from ellzero.estimators.inputs import Encoding, Floats, Integers
from ellzero.validation import check_integer, check_real

# Longest path that `n_nonzero_coefs="auto"` follows.
AUTO_LIMIT = 50


@dataclass(frozen=True, slots=True)
class Shape:
    """Which models are allowed, in columns of the matrix.

    Parameters
    ----------
    units : ndarray of shape (n_columns,), int64
        Label of the unit (feature or group) of every column, 0 to n_units - 1.
    n_units : int
        Number of units that a budget counts.
    grouped : bool
        Whether some unit has several columns or units were given as groups.
    always, forbidden : ndarray of int64
        Columns in every model, columns in none.
    lower, upper : ndarray of shape (n_columns,) or None
        Bounds on coefficients.
    """

    units: Integers
    n_units: int
    grouped: bool
    always: Integers
    forbidden: Integers
    lower: Floats | None
    upper: Floats | None

    @property
    def groups(self) -> Integers | None:
        """Labels for the search; None when every column is a unit of its own."""
        return self.units if self.grouped else None

    @property
    def bounded(self) -> bool:
        """Whether some coefficient has a bound."""
        return self.lower is not None or self.upper is not None

    @property
    def n_always(self) -> int:
        """Units in every model."""
        return int(np.unique(self.units[self.always]).size)

    @property
    def n_usable(self) -> int:
        """Units that a model may have."""
        return self.n_units - int(np.unique(self.units[self.forbidden]).size)

    def count_units(self, support: Integers) -> int:
        """Return how many units a support touches."""
        return int(np.unique(self.units[support]).size)


def find_columns(parameter: str, value: Any, encoding: Encoding) -> Integers:
    """Return columns of the table given by names or positions, ascending."""
    if value is None:
        return np.zeros(0, dtype=np.int64)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidParameterError(
            f"`{parameter}` must be a sequence of feature names or positions, got {value!r}.",
            f"Pass `{parameter}=[{value!r}]`.",
        )
    items = list(value)
    array = np.asarray(items) if items else np.zeros(0, dtype=np.int64)
    if array.dtype == np.bool_:
        if array.shape != (encoding.n_columns,):
            raise InvalidParameterError(
                f"`{parameter}` must have one boolean for each of {encoding.n_columns} features, "
                f"got {array.size}."
            )
        return np.flatnonzero(array).astype(np.int64)
    found = {find_column(parameter, item, encoding) for item in items}
    return np.array(sorted(found), dtype=np.int64)


def find_column(parameter: str, item: Any, encoding: Encoding) -> int:
    """Return the position of one feature."""
    if isinstance(item, str):
        if encoding.names is None:
            raise InvalidParameterError(
                f"`{parameter}` names the feature {item!r}, but `X` has no feature names.",
                "Pass positions, or a data frame.",
            )
        if item not in encoding.names:
            raise InvalidParameterError(
                f"Unknown feature {item!r} in `{parameter}`.{did_you_mean(item, encoding.names)}"
            )
        return encoding.names.index(item)
    if isinstance(item, bool) or not isinstance(item, numbers.Integral):
        raise InvalidParameterError(
            f"`{parameter}` must hold feature names or positions, got {item!r}."
        )
    high = encoding.n_columns - 1
    if not -encoding.n_columns <= int(item) <= high:
        raise InvalidParameterError(
            f"`{parameter}` must hold positions between 0 and {high}, got {int(item)}."
        )
    return int(item) % encoding.n_columns


def find_groups(value: Any, encoding: Encoding) -> tuple[Integers, int, bool]:
    """Return the unit of every column of the table, their number, and whether groups were given.

    Labels are numbered in the order of their first column, so that the answer depends on which
    columns are together and not on how groups are called.
    """
    p = encoding.n_columns
    if value is None:
        return np.arange(p, dtype=np.int64), p, False
    if isinstance(value, Mapping):
        labels: list[Any] = [("", j) for j in range(p)]
        owner: dict[int, Any] = {}
        for name, members in value.items():
            for j in find_columns("groups", members, encoding):
                if int(j) in owner:
                    raise InvalidParameterError(
                        f"`groups` must not overlap, got feature "
                        f"{encoding.names[j] if encoding.names else int(j)!r} in "
                        f"{owner[int(j)]!r} and {name!r}.",
                        "Put each feature into one group.",
                    )
                owner[int(j)] = name
                labels[int(j)] = ("group", name)
    else:
        try:
            labels = list(value)
        except TypeError:
            raise InvalidParameterError(
                f"`groups` must be a sequence of labels or a mapping of names to features, "
                f"got {value!r}."
            ) from None
        if len(labels) != p:
            raise InvalidParameterError(
                f"`groups` must have one label for each of {p} features, got {len(labels)}."
            )
    place: dict[Any, int] = {}
    out = np.array([place.setdefault(label, len(place)) for label in labels], dtype=np.int64)
    return out, len(place), True


def find_bound(parameter: str, value: Any, encoding: Encoding, default: float) -> Floats | None:
    """Return a bound for every column of the table; None without any."""
    if value is None:
        return None
    p = encoding.n_columns
    out = np.full(p, default)
    if isinstance(value, Mapping):
        for item, bound in value.items():
            out[find_column(parameter, item, encoding)] = _bound(parameter, bound)
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        out[:] = _bound(parameter, value)
    else:
        try:
            given = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            given = np.asarray(value, dtype=object)
        if given.dtype == object or given.shape != (p,):
            raise InvalidParameterError(
                f"`{parameter}` must be a number, {p} numbers or a mapping of features to "
                f"numbers, got {value!r}."
            )
        out[:] = [_bound(parameter, b) for b in given]
    wrong = out > 0 if parameter == "lower" else out < 0
    if wrong.any():
        side = "at most 0" if parameter == "lower" else "at least 0"
        raise InvalidParameterError(
            f"`{parameter}` must be {side}, because a coefficient left out is 0, "
            f"got {out[wrong][0]:g}."
        )
    return None if np.isinf(out).all() else out


def _bound(parameter: str, value: Any) -> float:
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # an integer beyond float64 bounds nothing
            number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(number):
        raise InvalidParameterError(f"`{parameter}` must be a number, got {value!r}.")
    return number


def make_shape(estimator: Any, encoding: Encoding) -> Shape:
    """Return which models the parameters of an estimator allow."""
    labels, n_units, given = find_groups(estimator.groups, encoding)
    always = find_columns("always", estimator.always, encoding)
    forbidden = find_columns("forbidden", estimator.forbidden, encoding)
    clash = np.intersect1d(labels[always], labels[forbidden])
    if clash.size:
        j = int(np.flatnonzero(labels == clash[0])[0])
        name = encoding.names[j] if encoding.names else j
        raise InvalidParameterError(
            f"`always` and `forbidden` must not share features, got {name!r} in both."
        )
    lower = find_bound("lower", estimator.lower, encoding, -np.inf)
    upper = find_bound("upper", estimator.upper, encoding, np.inf)
    if estimator.nonnegative:
        lower = np.zeros(encoding.n_columns)
    sources = encoding.sources
    units = labels[sources]
    return Shape(
        units=units,
        n_units=n_units,
        grouped=given or sources.size > encoding.n_columns or encoding.levels is not None,
        always=np.flatnonzero(np.isin(units, labels[always])).astype(np.int64),
        forbidden=np.flatnonzero(np.isin(units, labels[forbidden])).astype(np.int64),
        lower=None if lower is None else lower[sources],
        upper=None if upper is None else upper[sources],
    )


def find_budgets(value: Any, shape: Shape, n_samples: float) -> tuple[Integers, bool]:
    """Return the budgets of the path, ascending, and whether one of them is to be selected."""
    what = "groups" if shape.grouped else "features"
    high = shape.n_units
    low = shape.n_always
    if isinstance(value, str):
        if value != "auto":
            raise InvalidParameterError(
                f"`n_nonzero_coefs` must be an integer, a fraction, a sequence or 'auto', "
                f"got {value!r}."
            )
        return np.arange(low, _auto_limit(shape, n_samples) + 1, dtype=np.int64), True
    if isinstance(value, Iterable):
        items = list(value)
        if not items:
            raise InvalidParameterError(
                "`n_nonzero_coefs` must hold at least one budget, got none."
            )
        out = sorted({_budget(item, high, what) for item in items})
        several = True
    else:
        out = [_budget(value, high, what)]
        several = False
    if out[0] < low:
        raise InvalidParameterError(
            f"`n_nonzero_coefs` must be at least {low}, the number of {what} in `always`, "
            f"got {out[0]}."
        )
    return np.array(out, dtype=np.int64), several


def _auto_limit(shape: Shape, n_samples: float) -> int:
    # The largest model for which selection is consistent, Zhu et al. (PNAS 2020), section 3.
    log_p = math.log(max(shape.n_units, 3))
    log_log_n = math.log(max(math.log(max(n_samples, 3.0)), math.e))
    limit = max(1, int(n_samples / (log_p * log_log_n)))
    return max(shape.n_always, min(limit, shape.n_usable, AUTO_LIMIT))


def _budget(value: Any, high: int, what: str) -> int:
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral | bool):
        share = float(value)
        if not 0 < share < 1:
            raise InvalidParameterError(
                f"`n_nonzero_coefs` must be an integer, or a fraction between 0 and 1, "
                f"got {share:g}."
            )
        return max(1, math.floor(share * high + 1e-9))
    return check_integer(
        "n_nonzero_coefs",
        value,
        0,
        high,
        meaning=f"the number of {what}",
        hint=f"Pass `n_nonzero_coefs={high}` to keep all {what}.",
    )


def check_ridge(value: Any) -> float:
    """Return the ridge of an estimator without cross-validation."""
    if isinstance(value, str) or (
        isinstance(value, Iterable) and not isinstance(value, np.generic)
    ):
        raise InvalidParameterError(
            f"`ridge` must be one number, got {value!r}.",
            "The estimators whose names end in CV choose among several.",
        )
    return check_real("ridge", value, 0.0)
