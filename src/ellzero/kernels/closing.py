r"""Gains of a growing support: what each node in an order takes off a nonnegative least value.

.. math:: v(T) = \min_{x \ge 0,\; x_j = 0 \text{ off } T} x^T M x - 2 c^T x

for M positive definite with nonpositive entries off the diagonal. The differences of v along an
order are a vertex of the base polytope of v, which is submodular.
"""

from __future__ import annotations

import numpy as np
from numba import njit  # noqa: TID253


@njit(cache=True)
def gains_along(matrix, right, order):  # type: ignore[no-untyped-def]
    """Return v of the first nodes of an order minus v without the last of them, for every node.

    Parameters
    ----------
    matrix : array of shape (m, m)
        M, symmetric.
    right : array of shape (m,)
        c, of any sign.
    order : array of shape (m,), int64
        Every node once.

    Returns
    -------
    array of shape (m,)
        The gain of every node, at most 0, by node.

    Notes
    -----
    Costs m^3 / 3 multiplications. A node whose slope does not point up waits until others have
    raised it: with entries that are not positive off the diagonal, slopes at zero only grow and
    positive values stay positive, so that every node is taken out once at most.
    """
    m = right.shape[0]
    # The matrix after elimination, and the slopes at zero.
    left, slope = matrix.copy(), right.copy()
    gains = np.zeros(m)
    # 0: not yet in the order, 1: waiting, 2: eliminated.
    state = np.zeros(m, dtype=np.int8)
    todo = np.empty(m, dtype=np.int64)
    for k in range(m):
        j = order[k]
        state[j] = 1
        n_todo = 0
        if slope[j] > 0.0:
            todo[0] = j
            n_todo = 1
        gain = 0.0
        while n_todo > 0:
            n_todo -= 1
            p = todo[n_todo]
            if state[p] == 2:
                continue
            pivot = left[p, p]
            gain -= slope[p] * slope[p] / pivot
            state[p] = 2
            share = slope[p] / pivot
            for i in range(m):
                if state[i] == 2 or left[i, p] == 0.0:
                    continue
                factor = left[i, p] / pivot
                slope[i] -= left[i, p] * share
                for t in range(m):
                    left[i, t] -= factor * left[p, t]
                if state[i] == 1 and slope[i] > 0.0:
                    todo[n_todo] = i
                    n_todo += 1
        gains[j] = gain
    return gains
