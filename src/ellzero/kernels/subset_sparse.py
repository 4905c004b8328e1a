"""Columns of sparse tables: their squares, and what they would gain beside a subset.

Columns come in compressed form: the entries of column j are ``values[ends[j]:ends[j + 1]]``, in
the rows ``rows[ends[j]:ends[j + 1]]``. One thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ellzero.kernels.subset_exchange import SLACK, TINY, compiled


@compiled
def center_squares(
    values: Any, rows: Any, ends: Any, weight: Any, total: float, mean: Any, out: Any
) -> None:
    """Write the weighted squares of all columns about their means."""
    for j in range(out.size):
        filled = 0.0
        square = 0.0
        shift = mean[j]
        for e in range(ends[j], ends[j + 1]):
            w = weight[rows[e]]
            off = values[e] - shift
            square += w * off * off
            filled += w
        out[j] = square + max(total - filled, 0.0) * shift * shift


@compiled
def price_exchanges(
    values: Any,
    rows: Any,
    ends: Any,
    held: Any,
    inverse: Any,
    beta: Any,
    cross: Any,
    diagonal: Any,
    open_: Any,
    n_fixed: int,
    floor: float,
    add_gain: Any,
    swap_gain: Any,
) -> None:
    """Write what every column would gain, all coefficients fitted anew.

    Parameters
    ----------
    values, rows, ends : array
        The table.
    held : array of shape (n, k)
        Centered and weighted columns of the subset.
    inverse : array of shape (k, k)
        Inverse of their inner products, the ridge included.
    beta : array of shape (k, q)
        Coefficients.
    cross, diagonal : array of shape (p, q), array of shape (p,)
        Inner products of all columns with the targets and with themselves, the ridge included.
    open_ : array of shape (p,), bool
        Columns that may enter.
    n_fixed : int
        The first columns of the subset, which stay.
    floor : float
        Share of the square of a column below which it depends on the subset.
    add_gain, swap_gain : array of shape (p,)
        Receive the gain by an insertion and by the best exchange; 0 where there is none.
    """
    k, q = beta.shape
    inner = np.empty(k)
    h = np.empty(k)
    c = np.empty(q)
    ratio = np.empty((k, q))
    loss = np.zeros(k)
    for i in range(k):
        for o in range(q):
            ratio[i, o] = beta[i, o] / inverse[i, i]
            loss[i] += ratio[i, o] * beta[i, o]
    for j in range(diagonal.size):
        add_gain[j] = 0.0
        swap_gain[j] = 0.0
        if not open_[j]:
            continue
        for a in range(k):
            inner[a] = 0.0
            h[a] = 0.0
        for e in range(ends[j], ends[j + 1]):
            x = values[e]
            row = held[rows[e]]
            for a in range(k):
                inner[a] += x * row[a]
        for b in range(k):
            x = inner[b]
            row = inverse[b]
            for a in range(k):
                h[a] += x * row[a]
        left = diagonal[j]
        for a in range(k):
            left -= inner[a] * h[a]
        if left <= floor * diagonal[j]:
            continue
        total = 0.0
        for o in range(q):
            c[o] = cross[j, o]
            for a in range(k):
                c[o] -= inner[a] * beta[a, o]
            total += c[o] * c[o]
        add_gain[j] = total / left
        best = 0.0
        for i in range(n_fixed, k):
            total = 0.0
            for o in range(q):
                x = c[o] + h[i] * ratio[i, o]
                total += x * x
            gain = total / (left + h[i] * h[i] / inverse[i, i]) - loss[i]
            if gain > best and gain > SLACK * loss[i] + TINY:
                best = gain
        swap_gain[j] = best
