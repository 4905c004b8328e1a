"""Prices of additions and exchanges of whole groups of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit  # noqa: TID253


@njit(cache=True)
def _gain(block: Any, slope: Any, size: int, floor: float) -> float:
    """Return tr(slope^T block^-1 slope) over the directions with pivots above `floor`.

    Both arrays are used up.
    """
    total = 0.0
    outputs = slope.shape[1]
    for r in range(size):
        pivot = block[r, r]
        if pivot <= floor:
            # The support spans this direction already.
            continue
        for o in range(outputs):
            total += slope[r, o] * slope[r, o] / pivot
        for t in range(r + 1, size):
            share = block[t, r] / pivot
            for o in range(outputs):
                slope[t, o] -= share * slope[r, o]
            for u in range(r + 1, t + 1):
                block[t, u] -= share * block[u, r]
    return total


@njit(cache=True)
def price_groups(
    spent: Any,
    freed: Any,
    slope: Any,
    lent: Any,
    offsets: Any,
    cuts: Any,
    locked: Any,
    inside: Any,
    outside: Any,
    label: Any,
    count: Any,
    room: int,
    unit: float,
    floor: float,
    add_gain: Any,
    swap_gain: Any,
    swap_leaver: Any,
) -> None:
    r"""Write what every addition and every exchange of one group takes off the residual.

    Columns are orthonormal inside of their group. With T = L^-1 H_{S:} and z = L^-1 c_S for the
    Cholesky factor L of the support, group j has the Schur complement
    :math:`M_j = I - T_j^T T_j`; with an orthonormal basis Q_i of the columns of L^-1 of group i,
    dropping i adds :math:`U U^T` to it, and :math:`U Q_i^T z` to the slope,
    :math:`U = T_j^T Q_i`. No inverse of a block is formed: dependent groups do no harm.

    Parameters
    ----------
    spent : array of shape (n_columns, k)
        T, transposed.
    freed : array of shape (n_columns, k)
        T^T Q for the bases Q of all groups of the support, side by side.
    slope : array of shape (n_columns, n_outputs)
        Products of the columns with the residuals.
    lent : array of shape (k, n_outputs)
        Q^T z: its rows of group i are what its departure adds to the residual.
    offsets : array of shape (n_groups + 1,), int64
        Where the columns of every group begin.
    cuts : array of shape (n_inside + 1,), int64
        Where the rows of every group of the support begin.
    locked : array of shape (n_inside,), bool
        Groups of the support that must stay.
    inside : array of shape (n_inside,), int64
        Groups of the support.
    outside : array of shape (n_outside,), int64
        Groups that may enter.
    label, count, room : array of shape (n_groups,), array of shape (n_labels,), int
        Groups of one label share `room` places, of which `count` are taken.
    unit, floor : float
        The square of a column, and the pivot up to which it counts as spanned.
    add_gain, swap_gain : array of shape (n_outside,)
        Receive the decrease by an addition, and by the best exchange; minus infinity where there
        is none.
    swap_leaver : array of shape (n_outside,), int64
        Receives the place in `inside` of the group that leaves for it.
    """
    widest = 1
    for a in range(outside.size):
        widest = max(widest, offsets[outside[a] + 1] - offsets[outside[a]])
    k = spent.shape[1]
    outputs = slope.shape[1]
    block = np.empty((widest, widest))
    work = np.empty((widest, widest))
    steep = np.empty((widest, outputs))
    loss = np.empty(inside.size)
    for i in range(inside.size):
        loss[i] = 0.0
        for t in range(cuts[i], cuts[i + 1]):
            for o in range(outputs):
                loss[i] += lent[t, o] * lent[t, o]
    for a in range(outside.size):
        j = outside[a]
        first = offsets[j]
        size = offsets[j + 1] - first
        for r in range(size):
            for u in range(r + 1):
                total = unit if r == u else 0.0
                for t in range(k):
                    total -= spent[first + r, t] * spent[first + u, t]
                block[r, u] = total
        taken = count[label[j]]
        add_gain[a] = -np.inf
        if taken < room:
            for r in range(size):
                for o in range(outputs):
                    steep[r, o] = slope[first + r, o]
                for u in range(r + 1):
                    work[r, u] = block[r, u]
            add_gain[a] = _gain(work, steep, size, floor)
        swap_gain[a] = -np.inf
        swap_leaver[a] = -1
        for i in range(inside.size):
            own = 1 if label[inside[i]] == label[j] else 0
            if locked[i] or taken - own >= room:
                continue
            for r in range(size):
                for o in range(outputs):
                    total = slope[first + r, o]
                    for t in range(cuts[i], cuts[i + 1]):
                        total += freed[first + r, t] * lent[t, o]
                    steep[r, o] = total
                for u in range(r + 1):
                    total = block[r, u]
                    for t in range(cuts[i], cuts[i + 1]):
                        total += freed[first + r, t] * freed[first + u, t]
                    work[r, u] = total
            gain = _gain(work, steep, size, floor) - loss[i]
            if gain > swap_gain[a]:
                swap_gain[a] = gain
                swap_leaver[a] = i
