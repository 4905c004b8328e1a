"""Every support of a small problem, by dense linear algebra that no kernel shares."""

from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    y: np.ndarray
    w: np.ndarray
    edges: np.ndarray
    nonnegative: bool


def laplacian(n, first, second, weights):
    matrix = np.zeros((n, n))
    for i, j, weight in zip(first, second, weights, strict=True):
        matrix[i, i] += weight
        matrix[j, j] += weight
        matrix[i, j] -= weight
        matrix[j, i] -= weight
    return matrix


def masks(n):
    """Return all supports, one in a row; row number = sum of 2^i over nodes that are on."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1


def smooth_values(y, w, matrix, nonnegative):
    """Return the least smooth part on every support, in the order of `masks`."""
    n = y.size
    on = masks(n)
    full = np.diag(w) + matrix
    scale = max(np.abs(full).max(), 1e-300)
    systems = np.where(on[:, :, None] & on[:, None, :], full, 0.0)
    # Nodes that are off get a row of their own; parts without any weight stay at zero.
    systems += np.eye(n) * np.where(on, 1e-15 * scale, scale)[:, None, :]
    x = np.linalg.solve(systems, (on * (w * y))[:, :, None])[:, :, 0]
    values = (w * (x - y) ** 2).sum(1) + np.einsum("si,ij,sj->s", x, matrix, x)
    if nonnegative:
        # A constrained minimizer is the free one on the nodes where it is positive.
        values[(x < -1e-13 * max(np.abs(y).max(), 1e-300)).any(axis=1)] = np.inf
        for i in range(n):
            with_i = np.flatnonzero(on[:, i])
            values[with_i] = np.minimum(values[with_i], values[with_i - 2**i])
    return values


def chain_values(case):
    n = case.y.size
    here = np.arange(n - 1)
    return smooth_values(
        case.y, case.w, laplacian(n, here, here + 1, case.edges), case.nonnegative
    )


def costs_of(cost, bump=0.0):
    """Return what every support costs; infinite where a node must be off."""
    on = masks(cost.size)
    total = np.where(on, cost, 0.0).sum(axis=1)
    return total + bump * ((on[:, 1:] & ~on[:, :-1]).sum(axis=1) + on[:, 0])


def by_budget(values):
    """Return the least value with at most 0, 1, ..., n nonzeros."""
    n = int(np.log2(values.size))
    count = masks(n).sum(axis=1)
    return np.minimum.accumulate([values[count == k].min() for k in range(n + 1)])


def random_case(rng, n_edges=None, most=9):
    n = int(rng.integers(1, most + 1))
    y = rng.standard_normal(n) * rng.choice([0.1, 1.0, 3.0])
    if rng.random() < 0.3:
        y = np.abs(y)
    if rng.random() < 0.2:
        y = np.round(y)
    w = rng.uniform(0.2, 2.0, n) if rng.random() < 0.5 else np.ones(n)
    if rng.random() < 0.3:
        w[rng.random(n) < 0.3] = 0.0
    m = n - 1 if n_edges is None else n_edges(n)
    edges = rng.uniform(0.0, 1.0, m) * rng.choice([0.1, 1.0, 30.0])
    if rng.random() < 0.3:
        edges[rng.random(m) < 0.3] = 0.0
    return Case(y, w, edges, bool(rng.random() < 0.5))


def random_cost(rng, n, *, negative=True):
    if rng.random() < 0.6:
        cost = np.full(n, rng.choice([0.0, 0.1, 0.5, 1.0]))
    else:
        cost = rng.uniform(-0.3 if negative else 0.0, 1.0, n)
    if rng.random() < 0.2:
        cost[rng.integers(n)] = np.inf
    return cost


class Rules(NamedTuple):
    """Rules on the support, as `Chain` takes them."""

    kinds: np.ndarray
    bump: float
    most_bumps: int | None
    length: int
    distance: int


def random_rules(rng, n):
    kinds = np.ones(n, dtype=np.int8)
    if rng.random() < 0.3:
        kinds = rng.choice([-1, 0, 1, 1, 1, 1, 1], n).astype(np.int8)
    return Rules(
        kinds,
        float(rng.choice([0.0, 0.3, 1.0])),
        int(rng.integers(0, 4)) if rng.random() < 0.5 else None,
        int(rng.integers(1, 5)) if rng.random() < 0.7 else 1,
        int(rng.integers(1, 5)) if rng.random() < 0.7 else 1,
    )


def runs_of(support):
    """Return the lengths of the runs of a support, and of the zeros between them."""
    words = "".join("1" if s else "0" for s in support)
    return [len(r) for r in words.split("0") if r], [
        len(z) for z in words.strip("0").split("1") if z
    ]


def keeps_to(rules, n):
    """Return which supports keep to rules without limits, and their nodes and runs."""
    on = masks(n)
    good = np.array(
        [
            min(lengths, default=rules.length) >= rules.length
            and min(gaps, default=rules.distance) >= rules.distance
            for lengths, gaps in map(runs_of, on)
        ]
    )
    good &= ~(on & (rules.kinds < 0)).any(axis=1) & ~(~on & (rules.kinds == 0)).any(axis=1)
    return good, (on & (rules.kinds == 1)).sum(axis=1), costs_of(np.zeros(n), 1.0).astype(int)
