"""Search for the best subset of each size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ellzero.core.result import Status
from ellzero.errors import IncompatibleError
from ellzero.subset.effort import Effort
from ellzero.subset.gram import AbstractGram
from ellzero.subset.results import Floats, Integers, Subset, SubsetPath

Callback = Callable[[int, Mapping[str, Any]], bool | None]


def refit(gram: AbstractGram, support: Integers, ridge: Floats) -> Subset:
    """Return the minimizer on a support; features that add nothing are left out."""
    support = np.sort(np.asarray(support, np.int64))
    n = gram.n_samples
    G = gram.block(support)
    cross = gram.cross[support]
    A = G + np.diag(n * ridge[support])
    scale = np.sqrt(np.diag(A))
    coef = np.linalg.solve(A / np.outer(scale, scale), cross / scale[:, None]) / scale[:, None]
    rss = float(np.sum(gram.energy) - np.sum(coef * cross))
    kept = np.any(coef != 0, axis=1)
    support, coef = support[kept], coef[kept]
    return Subset(support, coef, gram.intercept(support, coef), max(rss, 0.0) / (2 * n))


def search(
    gram: AbstractGram,
    budgets: Iterable[int],
    *,
    ridge: float | ArrayLike = 0.0,
    always: Iterable[int] = (),
    forbidden: Iterable[int] = (),
    groups: ArrayLike | None = None,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    effort: Effort | None = None,
    time_limit: float | None = None,
    callback: Callback | None = None,
) -> SubsetPath:
    """Return the best subset found for each budget."""
    if groups is not None or lower is not None or upper is not None:
        raise IncompatibleError("`search` treats no groups and no bounds yet.")
    wanted = np.unique(np.asarray(list(budgets), np.int64))
    p = gram.n_features
    shrink = np.broadcast_to(np.asarray(ridge, float), (p,))
    diag = gram.diagonal + gram.n_samples * shrink
    usable = (gram.diagonal > 0) & ~np.isin(np.arange(p), list(forbidden))
    fixed = list(always)
    scale = np.sqrt(np.where(diag > 0, diag, 1.0))
    A = gram.columns(np.arange(p)) / np.outer(scale, scale)
    A[np.arange(p), np.arange(p)] = 1.0
    c0 = gram.cross / scale[:, None]

    def state(S: list[int]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        B = np.linalg.inv(A[np.ix_(S, S)])
        H = A[:, S] @ B
        beta = B @ c0[S]
        c = c0 - A[:, S] @ beta
        return B, H, beta, c, 1 - np.einsum("jk,jk->j", H, A[:, S])

    def descend(S: list[int]) -> list[int]:
        while S:
            B, H, beta, c, d = state(S)
            g = np.diag(B)
            gain = np.zeros((p, len(S)))
            schur = d[:, None] + H**2 / g
            for o in range(beta.shape[1]):
                gain += (c[:, o, None] + H * (beta[:, o] / g)) ** 2
            ok = usable[:, None] & (schur > 1e-9)
            ok[S] = False
            gain = np.where(ok, gain / np.where(ok, schur, 1), -np.inf)
            gain -= np.sum(beta**2, axis=1) / g
            gain[:, [i for i, s in enumerate(S) if s in fixed]] = -np.inf
            j, i = divmod(int(np.argmax(gain)), len(S))
            if gain[j, i] <= 1e-10 * float(np.sum(gram.energy)) or gain[j, i] <= 0:
                break
            S[i] = j
        return S

    found: dict[int, list[int]] = {}
    S = list(fixed)
    for k in range(len(fixed), int(wanted.max(initial=0)) + 1):
        if k > len(S):
            if S:
                _, _, _, c, d = state(S)
            else:
                c, d = c0, np.ones(p)
            ok = usable & (d > 1e-9)
            ok[S] = False
            if not ok.any():
                found[k] = list(S)
                continue
            gain = np.where(ok, np.sum(c**2, axis=1) / np.where(ok, d, 1), -np.inf)
            S = [*S, int(np.argmax(gain))]
            S = descend(S)
        found[k] = list(S)
    subsets = tuple(
        refit(gram, np.asarray(found.get(int(k), S), np.int64), shrink) for k in wanted
    )
    return SubsetPath(wanted, subsets, Status.CONVERGED, {})
