"""Search for the best subset of each size."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from ellzero.core.result import Status
from ellzero.errors import InvalidParameterError
from ellzero.kernels import subset_exchange as kernels
from ellzero.subset.columns import ScaledColumns
from ellzero.subset.effort import Effort
from ellzero.subset.gram import AbstractGram
from ellzero.subset.kicks import Arenas
from ellzero.subset.path import Frontier, pursue, sweep, visit
from ellzero.subset.results import Floats, Integers, Subset, SubsetPath
from ellzero.subset.shaped import search_shaped
from ellzero.subset.stopping import Callback, Stopper, StopSearchError
from ellzero.subset.tables import SparseGram
from ellzero.subset.walker import Walker
from ellzero.subset.wide import WIDE, search_wide


def refit(gram: AbstractGram, support: Integers, ridge: Floats) -> Subset:
    """Return the minimizer on a support.

    Parameters
    ----------
    gram : AbstractGram
        Inner products.
    support : ndarray of int64
        Features, none of them dependent on the others.
    ridge : ndarray of shape (n_features,)
        Ridge of every feature.

    Returns
    -------
    Subset
        Features with a row of zeros are left out.
    """
    support = np.sort(np.asarray(support, np.int64))
    n = gram.n_samples
    matrix = gram.block(support) + np.diag(n * ridge[support])
    cross = gram.cross[support]
    scale = 1.0 / np.sqrt(np.diagonal(matrix))
    scaled = matrix * scale * scale[:, None]
    coef = np.linalg.solve(scaled, cross * scale[:, None]) * scale[:, None]
    rest = max(float(gram.energy.sum()) - float(np.vdot(coef, cross)), 0.0)
    kept = np.any(coef != 0, axis=1)
    support, coef = support[kept], coef[kept]
    return Subset(support, coef, gram.intercept(support, coef), rest / (2 * n))


def _check_indices(name: str, index: Iterable[int], n_features: int) -> Integers:
    found = np.unique(np.asarray(list(index), dtype=np.int64))
    if found.size and (found[0] < 0 or found[-1] >= n_features):
        wrong = int(found[0] if found[0] < 0 else found[-1])
        raise InvalidParameterError(
            f"`{name}` must hold features between 0 and {n_features - 1}, got {wrong}."
        )
    return found


def _check_ridge(ridge: float | ArrayLike, n_features: int) -> Floats:
    try:
        out = np.broadcast_to(np.asarray(ridge, np.float64), (n_features,))
    except ValueError:
        raise InvalidParameterError(
            f"`ridge` must be a number or one number for each of the {n_features} features, "
            f"got shape {np.shape(ridge)}."
        ) from None
    if not np.all(np.isfinite(out)) or np.any(out < 0):
        raise InvalidParameterError("`ridge` must be finite and not negative.")
    return out


def search(
    gram: AbstractGram,
    budgets: Iterable[int],
    *,
    ridge: float | ArrayLike = 0.0,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: ArrayLike | None = None,
    max_per_group: int | None = None,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    effort: Effort | None = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> SubsetPath:
    r"""Return the best subset found for each budget.

    Sweeps up and down over the sizes, with exchanges at exact prices at each; then supports are
    perturbed and descend again, for as long as that leads to new local optima.

    Parameters
    ----------
    gram : AbstractGram
        Inner products of features and targets.
    budgets : iterable of int
        Most features of each subset.
    ridge : float or array-like of shape (n_features,), default=0.0
        Weight of half the squares of the coefficients in the objective.
    always : iterable of int, default=()
        Features in every subset, counted within the budget.
    forbidden : iterable of int, default=()
        Features in none.
    groups : array-like of shape (n_features,) or None, default=None
        Label of the group of every feature; see `ellzero.subset.shaped.search_shaped`.
    max_per_group : int or None, default=None
        Most features of one group, where groups need not enter as a whole.
    lower, upper : float or array-like of shape (n_features,) or None, default=None
        Bounds on the coefficients, with 0 between them.
    effort : Effort or None, default=None
        How hard to try; None is ``Effort()``.
    time_limit : float or None, default=None
        Seconds after which the best so far is returned.
    callback : callable or None, default=None
        Called as ``callback(step, info)``; a true answer ends the search.

    Returns
    -------
    SubsetPath
        Each subset has the budget asked for, or less where no more features are of use: the
        others are constant, or depend on those chosen, or nothing is left to explain.

    Notes
    -----
    Nothing depends on the scale of the targets or of the features, nor on the order of the
    features except among exact ties, where the first feature is preferred up to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.subset.gram import gram_of
    >>> X = np.eye(5)[:, :4] + 0.1
    >>> path = search(gram_of(X, 3 * X[:, 1] - X[:, 2]), [1, 2])
    >>> path[2].support.tolist(), path[2].coef.round(6).ravel().tolist()
    ([1, 2], [3.0, -1.0])
    """
    if any(x is not None for x in (groups, max_per_group, lower, upper)):
        return search_shaped(
            gram,
            budgets,
            ridge=ridge,
            always=always,
            forbidden=forbidden,
            groups=groups,
            max_per_group=max_per_group,
            lower=lower,
            upper=upper,
            effort=effort,
            time_limit=time_limit,
            callback=callback,
        )
    effort = Effort() if effort is None else effort
    p = gram.n_features
    wanted = np.unique(np.asarray(list(budgets), dtype=np.int64))
    shrink = _check_ridge(ridge, p)
    fixed = _check_indices("always", always, p)
    closed = _check_indices("forbidden", forbidden, p)
    both = np.intersect1d(fixed, closed)
    if both.size:
        raise InvalidParameterError(
            f"Feature {int(both[0])} is in `always` and in `forbidden`; it can be in one of them."
        )
    if wanted.size and wanted[0] < 0:
        raise InvalidParameterError(f"`budgets` must not be negative, got {int(wanted[0])}.")
    if wanted.size and wanted[0] < fixed.size:
        raise InvalidParameterError(
            f"`budgets` must be at least {fixed.size}, the number of features in `always`, "
            f"got {int(wanted[0])}."
        )
    usable = np.ones(p, bool)
    usable[closed] = False
    if p > WIDE and isinstance(gram, SparseGram):
        return search_wide(
            search, gram, wanted, shrink, fixed, usable, effort, time_limit, callback
        )
    top = min(int(wanted.max(initial=0)), p)
    extra = min(max(2, top // 4), 10)
    columns = ScaledColumns(gram, shrink, usable, 2 * (top + extra))
    high = min(top + extra, columns.n_usable)
    places = columns.place[fixed]
    walker = Walker(columns, max(high, 1), places[places >= 0])
    low = walker.size
    frontier = Frontier(low, max(high, low))
    stopper = Stopper(time_limit, callback)
    status, n_kicks, arenas = Status.CONVERGED, 0, None
    try:
        frontier.offer(walker.members, walker.explained)
        sweep(frontier, walker, stopper)
        if effort.kicks and wanted.size > 1:
            # Sizes of a path get few kicks: give them another start.
            pursue(frontier, walker, stopper)
            sweep(frontier, walker, stopper)
        sizes = [int(k) for k in np.unique(np.minimum(wanted, frontier.high)) if k > low]
        # A path has no time for many kicks at every size; its sizes help each other instead.
        share = min(effort.kicks, effort.agree + effort.kicks // max(len(sizes), 1) ** 2)
        for k in sizes:
            if frontier.explained[k] < 0 or share == 0:
                continue
            if arenas is None:
                walker.move_to(frontier.best_within(frontier.high))
                arenas = Arenas(columns, frontier, walker.gains, low)
            kicked = arenas.kick(frontier.members[k], effort, share, stopper)
            n_kicks += kicked.n_kicks
            if set(kicked.members.tolist()) != set(frontier.members[k].tolist()):
                walker.move_to(kicked.members)
                visit(frontier, walker, stopper)
                sweep(frontier, walker, stopper)
    except StopSearchError as stop:
        status = stop.status
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    subsets = tuple(
        refit(gram, columns.order[frontier.best_within(int(k))], shrink) for k in wanted
    )
    measures = {
        "n_scans": int(walker.state[1][kernels.SCANS]),
        "n_swaps": walker.n_swaps,
        "n_kicks": n_kicks,
        "n_columns": columns.n_computed,
        "n_steps": stopper.steps,
    }
    return SubsetPath(wanted, subsets, status, measures)
