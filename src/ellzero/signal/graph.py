"""Graphs with cycles: their data, and the lines and forests that exact programs can solve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.kernels.chain import objective, solve_runs, sweep
from ellzero.kernels.tree import forest_objective, solve_forest, tree_l0
from ellzero.signal.inputs import Graph, root_forest
from ellzero.signal.solution import Bools, Floats, Integers

# Unknowns up to which a system is factorized; above, conjugate gradients come first.
DIRECT = 5000
MOST_ROUNDS = 3000
CLOSE = 1e-15


@dataclass(frozen=True)
class Mesh:
    r"""Data on a graph that may have cycles.

    .. math:: \sum_i w_i (y_i - x_i)^2 + \sum_{(i, j)} \lambda_{ij} (x_i - x_j)^2

    Parameters
    ----------
    y : ndarray of shape (n,)
        Samples; finite everywhere, also where the weight is 0.
    weights : ndarray of shape (n,)
        Weights, at least 0; 0 for missing samples.
    first, second : ndarray of shape (m,), int64
        Ends of every edge, each edge once.
    edges : ndarray of shape (m,)
        Smoothness weight of every edge, above 0.
    nonnegative : bool
        Whether the signal must not be negative.
    kinds : ndarray of shape (n,), int8, or None, default=None
        1 where a nonzero counts and costs, 0 where it is free, -1 where it is not allowed.
    shape : tuple of int or None, default=None
        Rows and columns of a grid.
    """

    y: Floats
    weights: Floats
    first: Integers
    second: Integers
    edges: Floats
    nonnegative: bool = False
    kinds: NDArray[np.int8] | None = None
    shape: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.y.shape[0])

    @property
    def is_positive(self) -> bool:
        """Whether every solution is at or above zero."""
        return self.nonnegative or bool((self.pull >= 0).all())

    @cached_property
    def pull(self) -> Floats:
        """Weights times data."""
        return np.asarray(self.weights * self.y)

    @cached_property
    def matrix(self) -> Any:
        """Weights on the diagonal plus the Laplacian of the edges."""
        from scipy.sparse import coo_matrix

        n = self.size
        diagonal = self.weights.copy()
        np.add.at(diagonal, self.first, self.edges)
        np.add.at(diagonal, self.second, self.edges)
        here = np.arange(n)
        rows = np.concatenate([here, self.first, self.second])
        columns = np.concatenate([here, self.second, self.first])
        entries = np.concatenate([diagonal, -self.edges, -self.edges])
        return coo_matrix((entries, (rows, columns)), shape=(n, n)).tocsr()

    @cached_property
    def dead(self) -> Bools:
        """Nodes of parts that hold no weight: zero there is as good as anything."""
        from scipy.sparse.csgraph import connected_components

        count, labels = connected_components(self.matrix, directed=False)
        alive = np.zeros(count, dtype=np.bool_)
        alive[labels[self.weights > 0]] = True
        return np.asarray(~alive[labels])

    def costs(self, price: float) -> Floats:
        """Return the cost of a nonzero at every node; infinity where it is not allowed."""
        if self.kinds is None:
            return np.full(self.size, price)
        return np.where(self.kinds < 0, np.inf, np.where(self.kinds > 0, price, 0.0))

    def count(self, support: Bools) -> int:
        """Return how many nodes of a support count."""
        return int(np.count_nonzero(support if self.kinds is None else support & (self.kinds > 0)))

    def value(self, signal: Floats, price: float) -> float:
        """Return the objective, with the price of every nonzero that counts."""
        fit = float(self.weights @ (signal - self.y) ** 2)
        steps = (signal[self.first] - signal[self.second]) ** 2
        cost = price * self.count(signal != 0) if price else 0.0
        return fit + float(self.edges @ steps) + cost

    def refit(self, support: Bools, guess: Floats | None = None) -> Floats:
        """Return the best signal on a support, with its sign where that is asked for.

        Where signs are constrained, the positive set is found by exchanging all wrong nodes at
        once, which ends for matrices with nonpositive entries off the diagonal.
        """
        support = support & ~self.dead
        if not self.nonnegative or (self.pull >= 0).all():
            signal = self._solve(support, guess)
            return np.maximum(signal, 0.0) if self.is_positive else signal
        active = support.copy()
        signal = np.zeros(self.size)
        for _ in range(100):
            signal = self._solve(active, signal)
            slope = self.pull - self.matrix @ signal
            limit = 1e-14 * max(float(np.abs(self.pull).max()), 1e-300)
            following = np.where(active, signal > 0, support & (slope > limit))
            if (following == active).all():
                break
            active = following
        return np.maximum(signal, 0.0)

    def _solve(self, support: Bools, guess: Floats | None) -> Floats:
        from scipy.sparse.linalg import splu

        signal = np.zeros(self.size)
        nodes = np.flatnonzero(support)
        if nodes.size == 0:
            return signal
        matrix = self.matrix
        if nodes.size < self.size:
            matrix = matrix[nodes][:, nodes]
        right = self.pull[nodes]
        if nodes.size > DIRECT:
            start = None if guess is None else guess[nodes]
            found = _conjugate_gradients(matrix, right, start)
            if found is not None:
                signal[nodes] = found
                return signal
        factor = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        found = factor.solve(right)
        # One refinement: what is left is rounding.
        signal[nodes] = found + factor.solve(right - matrix @ found)
        return signal


def _conjugate_gradients(matrix: Any, right: Floats, start: Floats | None) -> Floats | None:
    """Return the solution of a positive definite system; None where rounds do not suffice."""
    inverse = 1.0 / matrix.diagonal()
    x = inverse * right if start is None else start.copy()
    residual = right - matrix @ x
    scaled = inverse * residual
    direction = scaled.copy()
    size = float(residual @ scaled)
    goal = CLOSE**2 * max(float(right @ (inverse * right)), 1e-300)
    for _ in range(MOST_ROUNDS):
        if size <= goal:
            return x
        image = matrix @ direction
        step = size / float(direction @ image)
        x += step * direction
        residual -= step * image
        scaled = inverse * residual
        new = float(residual @ scaled)
        direction = scaled + (new / size) * direction
        size = new
    return None


@dataclass(frozen=True)
class Lines:
    """Nodes with some of the edges between them, which make no cycle.

    Parameters
    ----------
    nodes : ndarray of shape (k,), int64
        Nodes in the order of the program.
    parent : ndarray of shape (k,), int64, or None
        Place of the parent of every place, later in the order; None for a chain.
    edges : ndarray of shape (k - 1,) or (k,)
        Weight of the edge to the next place, or to the parent; 0 cuts.
    outside : sparse matrix of shape (k, n)
        Weights of all other edges at these nodes.
    """

    nodes: Integers
    parent: Integers | None
    edges: Floats
    outside: Any

    @cached_property
    def outer(self) -> Floats:
        """Sum of the weights of the other edges at every place."""
        return np.asarray(self.outside.sum(axis=1)).ravel()

    def given(self, mesh: Mesh, signal: Floats) -> tuple[Floats, Floats]:
        """Return data and weights of the program with all other ends fixed at a signal."""
        weights = mesh.weights[self.nodes] + self.outer
        pull = mesh.pull[self.nodes] + self.outside @ signal
        return np.divide(pull, weights, out=np.zeros_like(pull), where=weights > 0), weights

    def solve(
        self, y: Floats, weights: Floats, cost: Floats, nonnegative: bool
    ) -> tuple[float, Bools]:
        """Return the optimal value and an optimal support for data in the order of the places."""
        if self.parent is None:
            found = sweep(y, weights, self.edges, cost, 0.0, nonnegative, False)
        else:
            found = tree_l0(y, weights, self.parent, self.edges, cost, nonnegative)
        return float(found[0]), found[1]

    def refit(self, y: Floats, weights: Floats, support: Bools) -> Floats:
        """Return the best signal on a support."""
        if self.parent is None:
            return np.asarray(solve_runs(y, weights, self.edges, support))
        return np.asarray(solve_forest(y, weights, self.parent, self.edges, support))

    def value(self, signal: Floats, y: Floats, weights: Floats, cost: Floats) -> float:
        """Return the objective of these places."""
        if self.parent is None:
            return float(objective(signal, y, weights, self.edges, cost))
        return float(forest_objective(signal, y, weights, self.parent, self.edges, cost))

    def minimize(self, mesh: Mesh, signal: Floats, cost: Floats) -> Floats:
        """Return the best values of these nodes with all others fixed."""
        y, weights = self.given(mesh, signal)
        _, on = self.solve(y, weights, cost[self.nodes], mesh.nonnegative)
        found = self.refit(y, weights, on)
        return np.maximum(found, 0.0) if mesh.nonnegative else found


def _weights_between(mesh: Mesh, one: Integers, two: Integers) -> Floats:
    """Return the weight of the edge between two nodes; 0 where there is none."""
    keys = np.minimum(mesh.first, mesh.second) * mesh.size + np.maximum(mesh.first, mesh.second)
    order = np.argsort(keys)
    wanted = np.minimum(one, two) * mesh.size + np.maximum(one, two)
    if keys.size == 0:
        return np.zeros(wanted.size)
    place = np.minimum(np.searchsorted(keys[order], wanted), keys.size - 1)
    found = order[place]
    return np.where(keys[found] == wanted, mesh.edges[found], 0.0)


def _outside(mesh: Mesh, nodes: Integers, inside: Any) -> Any:
    """Return the edges at nodes without those that are inside."""
    from scipy.sparse import coo_matrix

    n = mesh.size
    both = coo_matrix((mesh.edges, (mesh.first, mesh.second)), shape=(n, n)).tocsr()
    rest = (both + both.T)[nodes]
    if inside is not None:
        rest = rest - inside
        rest.data[np.abs(rest.data) <= 1e-15 * float(mesh.edges.max(initial=0.0))] = 0.0
        rest.eliminate_zeros()
    return rest.tocsr()


def chain_of(mesh: Mesh, lines: list[Integers]) -> Lines:
    """Return paths of a graph, one after the other, as one chain with cuts."""
    from scipy.sparse import coo_matrix

    nodes = np.concatenate(lines)
    ends = np.cumsum([line.size for line in lines])[:-1]
    edges = _weights_between(mesh, nodes[:-1], nodes[1:])
    edges[ends - 1] = 0.0
    k, n = nodes.size, mesh.size
    here = np.arange(k - 1)
    inside = coo_matrix(
        (
            np.concatenate([edges, edges]),
            (np.concatenate([here, here + 1]), np.concatenate([nodes[1:], nodes[:-1]])),
        ),
        shape=(k, n),
    ).tocsr()
    return Lines(nodes, None, edges, _outside(mesh, nodes, inside))


def forest_of(mesh: Mesh, nodes: Integers, chosen: Integers) -> Lines:
    """Return nodes with some edges, which make a forest."""
    from scipy.sparse import coo_matrix

    place = np.full(mesh.size, -1, dtype=np.int64)
    place[nodes] = np.arange(nodes.size)
    one, two = place[mesh.first[chosen]], place[mesh.second[chosen]]
    graph = Graph("forest", np.minimum(one, two), np.maximum(one, two))
    rooted = root_forest(graph, nodes.size)
    has = rooted.edge >= 0
    weight = mesh.edges[chosen]
    edges = np.zeros(nodes.size)
    edges[has] = weight[rooted.edge[has]]
    ordered = nodes[rooted.order]
    back = np.empty(nodes.size, dtype=np.int64)
    back[rooted.order] = np.arange(nodes.size)
    inside = coo_matrix(
        (
            np.concatenate([weight, weight]),
            (
                np.concatenate([back[one], back[two]]),
                np.concatenate([mesh.second[chosen], mesh.first[chosen]]),
            ),
        ),
        shape=(nodes.size, mesh.size),
    ).tocsr()
    return Lines(ordered, rooted.parent, edges, _outside(mesh, ordered, inside))


def parts_of(mesh: Mesh) -> list[Lines]:
    """Return lines or forests that hold every edge once and every node at least once.

    Notes
    -----
    The rows and the columns of a grid; else spanning forests, taken off one after the other.
    """
    if mesh.shape is not None:
        number = np.arange(mesh.size, dtype=np.int64).reshape(mesh.shape)
        return [chain_of(mesh, list(number)), chain_of(mesh, list(number.T.copy()))]
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    n, left = mesh.size, np.arange(mesh.edges.size)
    parts, covered = [], np.zeros(n, dtype=np.bool_)
    while left.size:
        one, two = mesh.first[left], mesh.second[left]
        # Heavy edges first; positions stand in for weights, which scipy would round or drop.
        rank = np.empty(left.size)
        rank[np.argsort(-mesh.edges[left], kind="stable")] = np.arange(1, left.size + 1)
        lower, upper = np.minimum(one, two), np.maximum(one, two)
        tree = minimum_spanning_tree(coo_matrix((rank, (lower, upper)), shape=(n, n)).tocsr())
        chosen = np.zeros(left.size, dtype=np.bool_)
        chosen[np.argsort(rank)[tree.data.astype(np.int64) - 1]] = True
        nodes = np.unique(np.concatenate([one[chosen], two[chosen]]))
        covered[nodes] = True
        parts.append(forest_of(mesh, nodes, left[chosen]))
        left = left[~chosen]
    lonely = np.flatnonzero(~covered)
    if lonely.size:
        parts.append(chain_of(mesh, [lonely[k : k + 1] for k in range(lonely.size)]))
    return parts


def blocks_of(mesh: Mesh, *, paths: bool = False) -> list[Lines]:
    """Return sets of nodes that hold all edges between them, and no cycle.

    Parameters
    ----------
    mesh : Mesh
        Data.
    paths : bool, default=False
        Whether every set must consist of paths.

    Notes
    -----
    Every second row or column of a grid; else a greedy partition of the nodes.
    """
    if mesh.shape is not None:
        number = np.arange(mesh.size, dtype=np.int64).reshape(mesh.shape)
        sides = (number, number.T.copy())
        return [chain_of(mesh, list(s[k::2])) for s in sides for k in (0, 1) if s[k::2].size]
    near = _neighbors(mesh)
    label = [-1] * mesh.size
    # For every set, the node above each of its nodes in a union, and neighbors in the set.
    above: list[dict[int, int]] = []
    beside: list[dict[int, list[int]]] = []
    for v in range(mesh.size):
        for k in range(len(above) + 1):
            if k == len(above):
                above.append({})
                beside.append({})
            mine = [u for u in near[v] if label[u] == k]
            tops = [_top(above[k], u) for u in mine]
            fits = not paths or (len(mine) <= 2 and all(len(beside[k][u]) < 2 for u in mine))
            if fits and len(set(tops)) == len(tops):
                above[k][v], beside[k][v], label[v] = v, mine, k
                for top in tops:
                    above[k][top] = v
                for u in mine:
                    beside[k][u].append(v)
                break
    if paths:
        return [chain_of(mesh, _walks(links)) for links in beside]
    labels = np.array(label)
    blocks = []
    for k in range(len(above)):
        inside = np.flatnonzero((labels[mesh.first] == k) & (labels[mesh.second] == k))
        blocks.append(forest_of(mesh, np.flatnonzero(labels == k), inside))
    return blocks


def _neighbors(mesh: Mesh) -> list[list[int]]:
    matrix = mesh.matrix
    ends = matrix.indptr.tolist()
    columns = matrix.indices.tolist()
    return [[u for u in columns[ends[v] : ends[v + 1]] if u != v] for v in range(mesh.size)]


def _top(above: dict[int, int], v: int) -> int:
    """Return the node that stands for the tree of a node."""
    while above[v] != v:
        above[v] = above[above[v]]
        v = above[v]
    return v


def _walks(links: dict[int, list[int]]) -> list[Integers]:
    """Return the nodes of every path, from one end to the other."""
    seen: set[int] = set()
    walks = []
    for v, near in links.items():
        if len(near) > 1 or v in seen:
            continue
        walk, following = [], [v]
        while following:
            node = following[0]
            walk.append(node)
            seen.add(node)
            following = [u for u in links[node] if u not in seen]
        walks.append(np.array(walk, dtype=np.int64))
    return walks
