"""Optima of the small tables, proved by branch and bound that shares no code with ellzero.

``python -m benchmarks.best_subset.certify g1 g2`` writes them into the results of the tables. A
node allows a set A of features and forces some of them. Its bound is the least squares on A, plus
what it costs to drop all but k: with inv(G_A) below the diagonal matrix t on the features that may
go, dropping D costs at least the sum over D of beta_j^2 / t_j, and at least the most of what
dropping one of them costs.

Where that takes too long, ``--explore SECONDS`` looks for a better support than any method found:
exchanges from the best ones found, a few features replaced at random in between.
"""

import argparse
import json
import time

import numba  # noqa: TID253 - no part of the library
import numpy as np

from benchmarks.best_subset import table
from benchmarks.best_subset.instances import SEEDS, instance


@numba.njit(cache=True)
def scaled_top(inverse, free, size):
    """Return the largest eigenvalue of the inverse on the free features, scaled to ones."""
    index = np.flatnonzero(free)[:size]
    block = np.empty((index.size, index.size))
    for a in range(index.size):
        for b in range(index.size):
            i, j = index[a], index[b]
            block[a, b] = inverse[i, j] / np.sqrt(inverse[i, i] * inverse[j, j])
    return np.linalg.eigvalsh(block)[-1] * (1 + 1e-9)


@numba.njit(cache=True)
def refit(G, c, energy, support):
    k = support.size
    A = np.empty((k, k))
    b = np.empty(k)
    for i in range(k):
        b[i] = c[support[i]]
        for j in range(k):
            A[i, j] = G[support[i], support[j]]
    return energy - b @ np.linalg.solve(A, b)


@numba.njit(cache=True)
def search(G, c, energy, k, start, max_nodes):
    """Return the least residual sum of squares with k features, its support, and nodes."""
    p = c.size
    best, support = start, np.full(k, -1)
    inverses = np.empty((p + 2, p, p))
    betas = np.empty((p + 2, p))
    depth_cap = 2 * p + 4
    # A node is a level of the stack; stage 0: new, 1: forced child done, 2: excluded child done.
    state = np.zeros((depth_cap, p), np.int8)  # 0 free, 1 forced, 2 excluded
    stage = np.zeros(depth_cap, np.int64)
    branch = np.zeros(depth_cap, np.int64)
    slot = np.zeros(depth_cap, np.int64)
    rss = np.zeros(depth_cap)
    tops = np.zeros(depth_cap)
    gone = np.zeros(depth_cap, np.int64)
    inverses[0] = np.linalg.inv(G)
    betas[0] = inverses[0] @ c
    rss[0] = energy - c @ betas[0]
    tops[0] = -1.0
    level, nodes = 0, 0
    while level >= 0:
        at = slot[level]
        inverse, beta = inverses[at], betas[at]
        if stage[level] == 0:
            nodes += 1
            if nodes > max_nodes:
                return best, support, -nodes
            free = state[level] == 0
            n_free = free.sum()
            n_forced = (state[level] == 1).sum()
            drop = n_free + n_forced - k
            if drop <= 0 or n_forced == k:
                chosen = np.flatnonzero(state[level] == 1 if n_forced == k else state[level] < 2)
                if chosen.size == k:
                    value = refit(G, c, energy, chosen)
                    if value < best:
                        best = value
                        support[:] = chosen
                level -= 1
                continue
            index = np.flatnonzero(free)
            costs = np.empty(index.size)
            for a in range(index.size):
                j = index[a]
                costs[a] = beta[j] * beta[j] / inverse[j, j]
            order = np.argsort(costs)
            bound = rss[level] + costs[order[drop - 1]]
            if bound < best:
                if tops[level] < 0 or gone[level] >= 2:
                    tops[level] = scaled_top(inverse, free, p)
                    gone[level] = 0
                total = 0.0
                for a in range(drop):
                    total += costs[order[a]]
                bound = max(bound, rss[level] + total / tops[level])
            if bound >= best * (1 - 1e-10):
                level -= 1
                continue
            branch[level] = index[order[-1]]
            stage[level] = 1
            child = level + 1
            state[child] = state[level]
            state[child, branch[level]] = 1
            slot[child], rss[child] = at, rss[level]
            tops[child], gone[child] = tops[level], gone[level] + 1
            stage[child] = 0
            level = child
        elif stage[level] == 1:
            stage[level] = 2
            j = branch[level]
            child = level + 1
            state[child] = state[level]
            state[child, j] = 2
            pivot = inverse[j, j]
            target, to = inverses[at + 1], betas[at + 1]
            for a in range(p):
                if state[child, a] == 2:
                    continue
                factor = inverse[a, j] / pivot
                to[a] = beta[a] - factor * beta[j]
                for b in range(p):
                    target[a, b] = inverse[a, b] - factor * inverse[j, b]
            slot[child] = at + 1
            rss[child] = rss[level] + beta[j] * beta[j] / pivot
            tops[child], gone[child] = tops[level], gone[level] + 1
            stage[child] = 0
            level = child
        else:
            level -= 1
    return best, support, nodes


def greedy(G, c, energy, k):
    """Return a start: forward selection, then the best swaps while they help."""
    chosen = []
    for _ in range(k):
        rest = [j for j in range(len(c)) if j not in chosen]
        chosen.append(min(rest, key=lambda j: refit(G, c, energy, np.array([*chosen, j]))))
    value = refit(G, c, energy, np.array(chosen))
    while True:
        swaps = [
            [*chosen[:i], j, *chosen[i + 1 :]]
            for i in range(k)
            for j in range(len(c))
            if j not in chosen
        ]
        best = min(swaps, key=lambda s: refit(G, c, energy, np.array(s)))
        now = refit(G, c, energy, np.array(best))
        if now >= value * (1 - 1e-12):
            return value, np.array(chosen)
        chosen, value = best, now


@numba.njit(cache=True)
def exchange(G, c, energy, support):
    """Make the best exchange, refitted, until none helps; return the residual sum of squares."""
    p, k = c.size, support.size
    block, target = np.empty((k, k)), np.empty(k)
    value = np.inf
    while True:
        inside = np.zeros(p, np.bool_)
        for a in range(k):
            inside[support[a]] = True
            target[a] = c[support[a]]
            for b in range(k):
                block[a, b] = G[support[a], support[b]]
        inverse = np.linalg.inv(block)
        beta = inverse @ target
        now = energy - target @ beta
        if now >= value * (1 - 1e-12):
            return value
        value, best, out, into = now, 1e-10 * energy, -1, -1
        for j in range(p):
            if inside[j]:
                continue
            residual, alone = c[j], G[j, j]
            image = np.zeros(k)
            for a in range(k):
                g = G[j, support[a]]
                residual -= g * beta[a]
                for b in range(k):
                    image[b] += g * inverse[a, b]
            for a in range(k):
                alone -= image[a] * G[j, support[a]]
            for a in range(k):
                d = alone + image[a] ** 2 / inverse[a, a]
                if d > 1e-9 * G[j, j]:
                    gain = (residual + image[a] * beta[a] / inverse[a, a]) ** 2 / d
                    gain -= beta[a] ** 2 / inverse[a, a]
                    if gain > best:
                        best, out, into = gain, a, j
        if out < 0:
            return value
        support[out] = into


def explore(given, starts, seconds):
    """Return the least value found in some processor time, and its support."""
    X, y = given.X - given.X.mean(0), given.y - given.y.mean()
    X = X / np.sqrt(np.mean(X**2, 0))
    G, c, energy = X.T @ X, X.T @ y, float(y @ y)
    rng = np.random.default_rng(0)
    pool = [np.array(s) for s in starts]
    values = [exchange(G, c, energy, s) for s in pool]
    began = time.process_time()
    while time.process_time() - began < seconds:
        at = rng.integers(len(pool))
        trial = pool[at].copy()
        k = len(trial)
        count = rng.integers(1, max(2, k // 2) + 1)
        rest = np.setdiff1d(np.arange(len(c)), trial)
        trial[rng.choice(k, count, replace=False)] = rng.choice(rest, count, replace=False)
        value = exchange(G, c, energy, trial)
        worst = int(np.argmax(values))
        new = all(abs(value - v) > 1e-9 * v for v in values)
        if new and len(pool) < 12:
            pool.append(trial)
            values.append(value)
        elif new and value < values[worst]:
            pool[worst], values[worst] = trial, value
    best = int(np.argmin(values))
    return values[best], np.sort(pool[best])


def certify(given, max_nodes=2 * 10**8):
    """Return the optimum, its support and the number of nodes; negative where it is not proved."""
    X, y = given.X - given.X.mean(0), given.y - given.y.mean()
    scale = np.sqrt(np.mean(X**2, 0))
    X = X / scale
    G, c, energy = X.T @ X, X.T @ y, float(y @ y)
    start, support = greedy(G, c, energy, given.budgets[0])
    best, found, nodes = search(G, c, energy, given.budgets[0], start, max_nodes)
    return best, (found if found[0] >= 0 else np.sort(support)), nodes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--explore", type=float, help="seconds for an instance without proof")
    arguments = parser.parse_args()
    for name in arguments.tables:
        path = table.RESULTS / f"best_subset_{name}.json"
        for seed in SEEDS[name]:
            given = instance(name, seed)
            report = (
                json.loads(path.read_text()) if path.exists() else {"table": name, "instances": {}}
            )
            entry = report["instances"].setdefault(given.name, {"methods": {}})
            if "optimum" in entry:
                continue
            k, began = str(given.budgets[0]), time.process_time()
            if arguments.explore:
                found = {
                    tuple(c["budgets"][k]["support"])
                    for c in entry["methods"].values()
                    if len(c.get("budgets", {}).get(k, {}).get("support", ())) == given.budgets[0]
                }
                value, support = explore(given, sorted(found), arguments.explore)
                known = min(value, entry.get("known", {}).get(k, np.inf))
                entry["known"] = {k: known}
                said = f"least found {known:.6g}"
            else:
                value, support, nodes = certify(given)
                said = f"{value:.6g} {support} nodes {nodes}"
                if nodes > 0:
                    entry["optimum"] = {k: value, "support": support.tolist(), "nodes": nodes}
                    entry["known"] = {k: value}
            print(f"{given.name}: {said} {time.process_time() - began:.1f} s", flush=True)
            path.write_text(table.compact(report))


if __name__ == "__main__":
    main()
