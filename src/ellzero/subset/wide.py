"""Searches among more features than there is memory for their inner products."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ellzero.core.result import Status
from ellzero.subset.effort import Effort
from ellzero.subset.results import Floats, Integers, Subset, SubsetPath
from ellzero.subset.stopping import Callback
from ellzero.subset.tables import SparseGram

# Features beyond which a search goes on among some of them, and how many it starts with.
WIDE, FIRST = 2**15, 2**13
# Features that join after a round, at most, and rounds.
MORE, ROUNDS = 2**11, 8


def search_wide(
    run: Callable[..., SubsetPath],
    gram: SparseGram,
    budgets: Integers,
    ridge: Floats,
    fixed: Integers,
    usable: np.ndarray,
    effort: Effort,
    time_limit: float | None,
    callback: Callback | None,
) -> SubsetPath:
    """Search among the most promising features, until no other one improves what was found.

    In the end no exchange of one feature, among all of them, improves a subset, as after a search
    among all. Memory is for the table, a few numbers for every feature, and the inner products of
    the promising ones.

    Parameters
    ----------
    run : callable
        `ellzero.subset.search.search`.
    gram : SparseGram
        Inner products.
    budgets : ndarray of int64
        Most features of each subset, ascending.
    ridge : ndarray of shape (n_features,)
        Ridge.
    fixed : ndarray of int64
        Features in every subset.
    usable : ndarray of shape (n_features,), bool
        Features that may be chosen.
    effort : Effort
        How hard to try.
    time_limit : float or None
        Seconds.
    callback : callable or None
        As in `search`.

    Returns
    -------
    SubsetPath
        Of all features; `measures` has the number of rounds and of the features searched.
    """
    end = None if time_limit is None else time.monotonic() + time_limit
    known = np.zeros(gram.n_features, bool)
    known[fixed] = True
    strength = np.einsum("jo,jo->j", gram.cross, gram.cross)
    strength /= np.where(gram.diagonal > 0, gram.diagonal + gram.n_samples * ridge, 1.0)
    _add(known, np.where(usable, strength, 0.0), FIRST)
    best: list[Subset] = []
    measures: dict[str, Any] = {}
    report = None if callback is None else _Counted(callback)
    for turn in range(1, ROUNDS + 1):
        features = np.flatnonzero(known)
        place = np.full(gram.n_features, -1)
        place[features] = np.arange(features.size)
        path = run(
            gram.pick(features),
            budgets,
            ridge=ridge[features],
            always=place[fixed],
            effort=effort,
            time_limit=None if end is None else max(end - time.monotonic(), 0.0),
            callback=report,
        )
        found = [replace(s, support=features[s.support]) for s in path.subsets]
        best = [
            min(pair, key=lambda s: s.value) for pair in zip(found, best or found, strict=True)
        ]
        for name, count in path.measures.items():
            measures[name] = measures.get(name, 0) + count
        measures |= {"n_rounds": turn, "n_searched": features.size}
        if path.status is not Status.CONVERGED:
            break
        # Every scan takes a while: the largest subset first, the others once it is done.
        gain = np.zeros(gram.n_features)
        for subset in reversed(best):
            if subset.n_nonzero == 0:
                continue
            gain = np.maximum(gain, gram.price(subset, ridge, usable & ~known, fixed)[1])
            if gain.any() or (end is not None and time.monotonic() > end):
                break
        if not gain.any():
            break
        _add(known, gain, MORE)
    return SubsetPath(budgets, tuple(best), path.status, measures)


def _add(known: np.ndarray, score: Floats, most: int) -> None:
    """Let the features with the largest positive scores join."""
    score = np.where(known, 0.0, score)
    order = np.argsort(-score, kind="stable")[:most]
    known[order[score[order] > 0]] = True


class _Counted:
    """A callback that counts the steps of several searches as one.

    Parameters
    ----------
    callback : callable
        Called as ``callback(step, info)``.
    """

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._steps = 0

    def __call__(self, step: int, info: Mapping[str, Any]) -> bool | None:
        self._steps += 1
        return self._callback(self._steps, info)
