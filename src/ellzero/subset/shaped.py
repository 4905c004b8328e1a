"""Best subsets of groups of features, and of features with bounds on their coefficients."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ellzero.core.result import Measure
from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.subset.bounded import BoundedHood
from ellzero.subset.effort import Effort
from ellzero.subset.gram import AbstractGram
from ellzero.subset.grouped import GroupHood, Whitened
from ellzero.subset.refits import refit_shortest
from ellzero.subset.results import Floats, Integers, SubsetPath
from ellzero.subset.walk import Callback, Walk
from ellzero.validation import check_integer, check_real


def search_shaped(
    gram: AbstractGram,
    budgets: Iterable[int],
    *,
    ridge: float | ArrayLike = 0.0,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: ArrayLike | None = None,
    max_per_group: int | None = None,
    lower: float | ArrayLike | None = None,
    upper: float | ArrayLike | None = None,
    effort: Effort | None = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> SubsetPath:
    """Search the best subsets of groups, or of features with bounds on their coefficients.

    Parameters
    ----------
    gram : AbstractGram
        Inner products of the columns.
    budgets : iterable of int
        Most features of every subset; most groups where `groups` is given without
        `max_per_group`.
    ridge : float or array_like of shape (n_features,), default=0.0
        Half of it times the squares of the coefficients is added to the mean loss.
    always, forbidden : iterable of int, default=()
        Features that are in every subset, or in none; with their whole groups.
    groups : array_like of shape (n_features,), int, or None, default=None
        Label of the group of every feature, in any order. A group enters or leaves as a whole.
    max_per_group : int or None, default=None
        Instead, most features to take from every group; the budgets count features then.
    lower, upper : float or array_like of shape (n_features,) or None, default=None
        Bounds on the coefficients, with ``lower <= 0 <= upper``; None means none.
    effort : Effort or None, default=None
        How hard to try; None means the default effort.
    time_limit : float or None, default=None
        Seconds after which to return the best so far.
    callback : callable or None, default=None
        Called as ``callback(improvement, {"budget": size, "value": value})`` after every
        improvement; a true return value ends the search.

    Returns
    -------
    SubsetPath
        A subset for every budget, ascending.

    Raises
    ------
    InvalidParameterError
        If a parameter is out of range or of a wrong shape.
    IncompatibleError
        If bounds come with whole groups or with several outputs.

    Notes
    -----
    Unless time ran out, no exchange of one group (or feature) for another improves a subset:
    all exchanges are priced with everything refitted, and within the bounds where there are
    some. Columns that others span add nothing; among several minimizers the shortest, in units
    of the lengths of the columns, is returned. Ties between equal columns go to the first.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.gram import gram_of
    >>> from ellzero.subset.shaped import search_shaped
    >>> X = np.eye(6)[:, :4]
    >>> y = np.array([3.0, 1.0, 3.0, 2.0, 0.0, 0.0])
    >>> gram = gram_of(X, y, fit_intercept=False)
    >>> search_shaped(gram, [1], groups=[0, 1, 0, 1])[1].support.tolist()
    [0, 2]
    >>> search_shaped(gram, [2], groups=[0, 1, 0, 1], max_per_group=1)[2].support.tolist()
    [0, 3]
    >>> search_shaped(gram, [1], upper=1.0)[1].coef.tolist()
    [[1.0]]
    """
    p = gram.n_features
    lambdas = check_ridge(ridge, p)
    must = _check_features("always", always, p)
    never = _check_features("forbidden", forbidden, p)
    limit = None if time_limit is None else check_real("time_limit", time_limit, 0.0)
    bounds = check_bounds(lower, upper, gram)
    if max_per_group is not None and groups is None:
        raise InvalidParameterError(
            "`max_per_group` needs `groups`.", "Pass the label of the group of every feature."
        )
    if bounds is not None and groups is not None and max_per_group is None:
        raise IncompatibleError(
            "Bounds on coefficients cannot be combined with whole `groups`.",
            "Drop one of them, or choose within groups with `max_per_group`.",
        )
    names, labels = check_groups(groups, p)
    n_groups = len(names)
    if max_per_group is not None:
        room = check_integer("max_per_group", max_per_group, 1)
        members = [np.array([j]) for j in range(p)]
        share: Integers | None = labels
        item_of = np.arange(p)
    else:
        room, share = 1, None
        order = np.argsort(labels, kind="stable")
        members = np.split(order, np.cumsum(np.bincount(labels, minlength=n_groups))[:-1])
        item_of = labels
    fixed = tuple(np.unique(item_of[must]).tolist())
    barred = np.unique(item_of[never])
    both = np.intersect1d(fixed, barred)
    if both.size:
        raise InvalidParameterError(
            "`always` and `forbidden` exclude each other, both name "
            f"{_name(both[0], names, share)}.",
            "A group enters or leaves as a whole: name it in one of them only.",
        )
    sizes = _check_budgets(budgets, len(fixed), len(members))
    if share is not None and np.bincount(share[must], minlength=1).max(initial=0) > room:
        raise InvalidParameterError(
            f"`always` names more than {room} features of one group, above `max_per_group`.",
            "Raise `max_per_group`.",
        )
    allowed = np.ones(len(members), bool)
    allowed[barred] = False
    effort = Effort() if effort is None else effort
    unit = float(gram.energy.sum()) / (2 * gram.n_samples)
    measures: dict[str, Measure] = {}
    if bounds is None:
        white = Whitened(gram, gram.n_samples * lambdas, members)
        group_hood = GroupHood(white, fixed, allowed, share, room)
        walk = Walk(group_hood, sizes, effort, limit, callback, unit)
        walk.run()
        found = [
            np.sort(np.concatenate([*(members[g] for g in node.items), []]))
            for node in walk.nodes()
        ]
        subsets = [refit_shortest(gram, s.astype(np.int64), lambdas) for s in found]
        measures.update(walk.counts)
        status = walk.status
    else:
        hood = BoundedHood(gram, lambdas, bounds, fixed, allowed, share, room)
        bounded = Walk(hood, sizes, effort, limit, callback, unit)
        bounded.run()
        subsets = [hood.subset(node) for node in bounded.nodes()]
        measures.update(bounded.counts)
        measures["refits"] = hood.n_refits
        status = bounded.status
    for i in range(1, len(subsets)):
        # Within rounding a larger budget may look worse.
        if subsets[i - 1].value < subsets[i].value:
            subsets[i] = subsets[i - 1]
    return SubsetPath(np.array(sizes, np.int64), tuple(subsets), status, measures)


def _name(item: int, names: NDArray[Any], share: Integers | None) -> str:
    return f"feature {item}" if share is not None else f"group {names[item]}"


def check_ridge(ridge: float | ArrayLike, p: int) -> Floats:
    """Return the ridge of every feature, checked."""
    out = np.asarray(ridge, np.float64)
    if out.ndim == 0:
        return np.full(p, check_real("ridge", float(out), 0.0))
    if out.shape != (p,) or not (np.isfinite(out).all() and (out >= 0).all()):
        raise InvalidParameterError(
            f"`ridge` must be a number or {p} nonnegative numbers, got shape {out.shape} with "
            f"least entry {out.min(initial=math.inf):g}.",
            "Pass one number for each feature.",
        )
    return out


def _check_features(name: str, features: Iterable[int], p: int) -> Integers:
    out = [check_integer(name, j, 0, p - 1, meaning="a feature") for j in features]
    return np.unique(np.array(out, np.int64))


def check_groups(groups: ArrayLike | None, p: int) -> tuple[NDArray[Any], Integers]:
    """Return the distinct labels and the place of every feature's label among them."""
    if groups is None:
        return np.arange(p), np.arange(p)
    labels = np.asarray(groups)
    if labels.shape != (p,):
        raise InvalidParameterError(
            f"`groups` must have shape ({p},), got {labels.shape}.",
            "Pass one label for each feature; features of a group share it.",
        )
    if labels.dtype.kind not in "iu":
        raise InvalidParameterError(
            f"`groups` must hold integers, got {labels.dtype}.",
            "Number the groups; the numbers themselves do not matter.",
        )
    names, places = np.unique(labels, return_inverse=True)
    return names, places.reshape(-1).astype(np.int64)


def check_bounds(
    lower: float | ArrayLike | None, upper: float | ArrayLike | None, gram: AbstractGram
) -> tuple[Floats, Floats] | None:
    """Return bounds for every feature, checked; None without any."""
    if lower is None and upper is None:
        return None
    p = gram.n_features
    pair = []
    for name, given, default in (("lower", lower, -np.inf), ("upper", upper, np.inf)):
        out = np.asarray(default if given is None else given, np.float64)
        if out.ndim and out.shape != (p,):
            raise InvalidParameterError(
                f"`{name}` must be a number or have shape ({p},), got shape {out.shape}.",
                "Pass one bound for each feature.",
            )
        sign = 1.0 if name == "lower" else -1.0
        if not (sign * out <= 0).all():
            rule = "at most 0" if name == "lower" else "at least 0"
            worst = out[~(sign * out <= 0)].ravel()[0]
            raise InvalidParameterError(
                f"`{name}` must be {rule}, got {worst:g}.",
                "A coefficient off the support is 0, which must lie within the bounds.",
            )
        pair.append(np.broadcast_to(out, (p,)).copy())
    if gram.n_outputs > 1:
        raise IncompatibleError(
            f"Bounds on coefficients need one output, got {gram.n_outputs}.",
            "Fit the outputs one by one.",
        )
    return pair[0], pair[1]


def _check_budgets(budgets: Iterable[int], n_fixed: int, n_items: int) -> list[int]:
    out = [check_integer("budgets", b, 0, n_items) for b in budgets]
    if not out:
        raise InvalidParameterError("`budgets` must name at least one budget, got none.")
    if min(out) < n_fixed:
        raise InvalidParameterError(
            f"`budgets` must be at least {n_fixed}, the number that `always` keeps, "
            f"got {min(out)}.",
            "What is always kept counts.",
        )
    return sorted(set(out))
