"""Samples and graphs as users give them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ellzero.errors import InvalidParameterError, NonFiniteError
from ellzero.signal.solution import Floats, Integers

# Magnitudes of which squares, and sums of many, are in the range of float64.
LEAST, LARGEST = 1e-150, 1e150


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in one row, scaled.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Samples divided by `scale`; 0 where they are missing.
    weights : ndarray of shape (n,)
        Weights; 0 where samples are missing.
    scale : float
        Largest magnitude of a sample that counts; 1 where all are zero.
    shape : tuple of int
        Shape that the samples were given in.
    index : object or None
        Index of a pandas series.
    name : object or None
        Name of a pandas series.
    """

    y: Floats
    weights: Floats
    scale: float
    shape: tuple[int, ...]
    index: Any = None
    name: Any = None

    def restore(self, values: Floats) -> Any:
        """Return values in the form in which the samples were given."""
        out = values.reshape(self.shape)
        if self.index is None:
            return out
        pandas: Any = importlib.import_module("pandas")
        return pandas.Series(out, index=self.index, name=self.name)


def _to_floats(name: str, given: Any, hint: str) -> tuple[NDArray[Any], Floats]:
    """Return an array as given and as float64, or say that it does not hold real numbers."""
    try:
        array = np.asarray(given)
        if np.iscomplexobj(array):
            raise InvalidParameterError(f"`{name}` must be real, got complex numbers.")
        if array.size and array.dtype.kind not in "fiubO":
            raise TypeError(array.dtype)
        return array, np.array(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidParameterError):
            raise
        raise InvalidParameterError(
            f"`{name}` must hold numbers, got {type(given).__name__}.", hint
        ) from error


def _holds(values: Floats, given: NDArray[Any]) -> bool:
    """Return whether floats are the integers that they came from."""
    with np.errstate(invalid="ignore"):
        return bool((values.astype(given.dtype) == given).all())


def read_samples(y: Any, sample_weight: Any = None) -> Samples:
    """Return samples as float64; NaN are missing.

    Raises
    ------
    InvalidParameterError
        If there are no samples, they are not numbers, or weights do not fit.
    NonFiniteError
        If a sample is infinite or all are missing.
    """
    index, name = getattr(y, "index", None), getattr(y, "name", None)
    if callable(index):
        index = None
    if hasattr(y, "detach"):
        y = y.detach().cpu().numpy()
    if np.ma.isMaskedArray(y):
        y = np.ma.filled(y.astype(np.float64), np.nan)
    given, values = _to_floats("y", y, "Convert it to floats; NaN is missing.")
    if values.ndim == 0 or values.size == 0:
        raise InvalidParameterError(
            f"`y` must hold at least one sample, got shape {values.shape}.",
            "Pass a sequence of numbers.",
        )
    if np.issubdtype(given.dtype, np.integer) and not _holds(values, given):
        raise InvalidParameterError(
            "`y` must hold numbers that float64 can represent, got integers beyond 2^53.",
            "Subtract an offset first.",
        )
    missing = np.isnan(values)
    if np.isinf(values).any():
        where = int(np.flatnonzero(np.isinf(values.ravel()))[0])
        raise NonFiniteError(
            f"`y` must not be infinite, sample {where} is.",
            "Replace it by NaN: it is then missing.",
        )
    if missing.all():
        raise NonFiniteError(
            "`y` must hold at least one number, all samples are NaN.", "NaN stands for missing."
        )
    if sample_weight is None:
        weights: NDArray[np.float64] = np.ones(values.shape)
    else:
        weights = _to_floats("sample_weight", sample_weight, "Pass one number for each sample.")[1]
        if weights.ndim == 0:
            weights = np.full(values.shape, float(weights))
        if weights.shape != values.shape:
            raise InvalidParameterError(
                f"`sample_weight` must have the shape of `y`, {values.shape}, got {weights.shape}."
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise InvalidParameterError(
                "`sample_weight` must be finite and not negative, got "
                f"{weights[~(np.isfinite(weights) & (weights >= 0))][0]:g}.",
                "A weight of 0 leaves a sample out.",
            )
        if not (weights[~missing] > 0).any():
            raise InvalidParameterError("`sample_weight` must have a positive entry, got zeros.")
    weights = np.where(missing, 0.0, weights).ravel()
    flat = np.where(weights > 0, np.where(missing, 0.0, values).ravel(), 0.0)
    scale = float(np.abs(flat).max())
    scale = scale if scale > 0 else 1.0
    if not LEAST <= scale <= LARGEST:
        raise InvalidParameterError(
            f"`y` must have its largest magnitude between {LEAST:g} and {LARGEST:g}, got "
            f"{scale:g}.",
            "Divide it by that: the objective is made of squares.",
        )
    if values.ndim != 1:
        index = None
    return Samples(flat / scale, weights, scale, values.shape, index, name)


def read_budgets(n_nonzero: Any) -> list[Any]:
    """Return budgets as a list.

    Raises
    ------
    InvalidParameterError
        If there is not one after another, or none.
    """
    try:
        budgets = list(n_nonzero)
    except TypeError as error:
        raise InvalidParameterError(
            f"`n_nonzero` must hold one budget or more, got {n_nonzero!r}.",
            "Pass a list: `[50, 100, 200]`.",
        ) from error
    if not budgets:
        raise InvalidParameterError("`n_nonzero` must hold at least one budget, got none.")
    return budgets


def read_positions(name: str, positions: Any, n: int) -> Integers:
    """Return positions of samples, sorted, each once.

    Raises
    ------
    InvalidParameterError
        If they are not integers from 0 to n - 1.
    """
    if positions is None:
        return np.zeros(0, dtype=np.int64)
    values = np.asarray(positions)
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise InvalidParameterError(
            f"`{name}` must be a list of positions, got shape {values.shape} of {values.dtype}."
        )
    if values.min() < 0 or values.max() >= n:
        wrong = values[(values < 0) | (values >= n)][0]
        raise InvalidParameterError(f"`{name}` must name samples 0 to {n - 1}, got {wrong}.")
    return np.unique(values).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Graph:
    """Edges between samples, and what kind of graph they make.

    Parameters
    ----------
    kind : {"chain", "forest", "grid", "general"}
        What is known of it.
    first, second : ndarray of shape (m,), int64
        Ends of every edge.
    """

    kind: str
    first: Integers
    second: Integers

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.first.shape[0])

    @property
    def noun(self) -> str:
        """What it is called in a sentence."""
        return {"general": "graph with cycles"}.get(self.kind, self.kind)


def read_graph(graph: Any, shape: tuple[int, ...]) -> Graph:
    """Return the graph that a word or a list of edges means.

    Raises
    ------
    InvalidParameterError
        If the word is unknown, an edge is wrong, or the samples have another shape.
    """
    n = int(np.prod(shape))
    if isinstance(graph, str):
        if graph == "chain":
            if len(shape) != 1:
                raise InvalidParameterError(
                    f"A chain needs samples in one row, got shape {shape}.",
                    "Pass `graph='grid'` for an image.",
                )
            here = np.arange(n - 1, dtype=np.int64)
            return Graph("chain", here, here + 1)
        if graph == "grid":
            if len(shape) != 2:
                raise InvalidParameterError(
                    f"A grid needs samples with two axes, got shape {shape}.",
                    "Pass `graph='chain'` for a series.",
                )
            number = np.arange(n, dtype=np.int64).reshape(shape)
            first = np.concatenate([number[:, :-1].ravel(), number[:-1].ravel()])
            second = np.concatenate([number[:, 1:].ravel(), number[1:].ravel()])
            kind = "chain" if 1 in shape else "grid"
            return Graph(kind, first, second)
        raise InvalidParameterError(
            f"`graph` must be 'chain', 'grid' or a list of edges, got {graph!r}.",
            "A tree, or any other graph, is given by its edges: an array of shape (n_edges, 2), "
            "or `('tree', edges)` to refuse cycles.",
        )
    if isinstance(graph, tuple) and len(graph) == 2 and isinstance(graph[0], str):
        if graph[0] != "tree" or isinstance(graph[1], str):
            raise InvalidParameterError(
                f"`graph` must be ('tree', edges) where it is a word and edges, got {graph!r}.",
                "Pass the edges alone for any other graph.",
            )
        found = read_graph(graph[1], shape)
        if found.kind == "general":
            raise InvalidParameterError(
                f"`graph` must be a tree, got {found.n_edges} edges between {n} samples that "
                "make a cycle.",
                "Pass the edges without 'tree' to allow cycles.",
            )
        return found
    try:
        edges = np.asarray(graph)
    except ValueError as error:
        raise InvalidParameterError(
            "`graph` must hold pairs of positions, got rows of different lengths.",
            "Pass an array of integers of shape (n_edges, 2).",
        ) from error
    if edges.shape == (0,):
        # An empty list: no edges.
        edges = np.zeros((0, 2), dtype=np.int64)
    if edges.ndim != 2 or edges.shape[1] != 2 or not np.issubdtype(edges.dtype, np.integer):
        raise InvalidParameterError(
            f"`graph` must hold pairs of positions, got shape {edges.shape} of {edges.dtype}.",
            "Pass an array of integers of shape (n_edges, 2).",
        )
    edges = edges.astype(np.int64)
    if edges.size and (edges.min() < 0 or edges.max() >= n):
        wrong = edges[((edges < 0) | (edges >= n)).any(axis=1)][0].tolist()
        raise InvalidParameterError(
            f"`graph` must name samples 0 to {n - 1}, got the edge {tuple(wrong)}."
        )
    if (edges[:, 0] == edges[:, 1]).any():
        node = int(edges[edges[:, 0] == edges[:, 1]][0, 0])
        raise InvalidParameterError(f"`graph` must not join a sample to itself, got {node}.")
    first, second = edges.min(axis=1), edges.max(axis=1)
    keys, counts = np.unique(first * n + second, return_counts=True)
    if (counts > 1).any():
        twice = divmod(int(keys[counts > 1][0]), n)
        raise InvalidParameterError(
            f"`graph` must hold every edge once, got {twice} {int(counts.max())} times.",
            "Add up their smoothness weights.",
        )
    if edges.shape[0] == n - 1 and (second == first + 1).all() and np.unique(first).size == n - 1:
        order = np.argsort(first)
        if (order == np.arange(n - 1)).all():
            return Graph("chain", first, second)
    return Graph("forest" if _is_forest(first, second, n) else "general", first, second)


def _is_forest(first: Integers, second: Integers, n: int) -> bool:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    m = first.shape[0]
    matrix = coo_matrix((np.ones(m), (first, second)), shape=(n, n))
    pieces = connected_components(matrix, directed=False, return_labels=False)
    return bool(m == n - pieces)


def read_smoothness(smoothness: Any, n_edges: int) -> Floats:
    """Return the smoothness weight of every edge.

    Raises
    ------
    InvalidParameterError
        If a weight is negative or not finite, or their number is not that of the edges.
    """
    try:
        weights = np.asarray(smoothness, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(
            f"`smoothness` must be a number or one for each edge, got {smoothness!r}."
        ) from error
    if weights.ndim == 0:
        weights = np.full(n_edges, float(weights))
    if weights.shape != (n_edges,):
        raise InvalidParameterError(
            f"`smoothness` must be a number or one for each of {n_edges} edges, got shape "
            f"{weights.shape}."
        )
    if not np.isfinite(weights).all() or (weights < 0).any():
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))][0]
        raise InvalidParameterError(
            f"`smoothness` must be finite and not negative, got {wrong:g}."
        )
    return weights


@dataclass(frozen=True, slots=True)
class Rooted:
    """Numbering of a forest in which a parent comes after its children.

    Parameters
    ----------
    order : ndarray of shape (n,), int64
        Node of the graph at every place.
    parent : ndarray of shape (n,), int64
        Place of the parent of every place; -1 for roots.
    edge : ndarray of shape (n,), int64
        Edge to the parent; -1 for roots.
    """

    order: Integers
    parent: Integers
    edge: Integers


def root_forest(graph: Graph, n: int) -> Rooted:
    """Return a numbering of a forest from its leaves to its roots."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    m = graph.n_edges
    matrix = coo_matrix((np.ones(m), (graph.first, graph.second)), shape=(n, n)).tocsr()
    both = (matrix + matrix.T).tocsr()
    pieces, labels = connected_components(both, directed=False)
    before = np.full(n, -1, dtype=np.int64)
    visits = []
    _, roots = np.unique(labels, return_index=True)
    if pieces == 1:
        visit, seen = breadth_first_order(both, int(roots[0]), directed=False)
        visits.append(visit)
        before[:] = np.where(seen >= 0, seen, -1)
    else:
        # One more node joins all roots, so that one search visits every tree.
        joined = coo_matrix(
            (
                np.ones(2 * m + pieces),
                (
                    np.concatenate([graph.first, graph.second, np.full(pieces, n)]),
                    np.concatenate([graph.second, graph.first, roots]),
                ),
            ),
            shape=(n + 1, n + 1),
        ).tocsr()
        visit, seen = breadth_first_order(joined, n, directed=True)
        visits.append(visit[1:])
        before[:] = np.where((seen[:n] >= 0) & (seen[:n] < n), seen[:n], -1)
    order = np.concatenate(visits)[::-1].astype(np.int64)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    parent = np.where(before[order] >= 0, place[before[order]], -1)
    edge = np.full(n, -1, dtype=np.int64)
    has = parent >= 0
    ends = np.sort(np.stack([order[has], order[parent[has]]]), axis=0)
    keys = graph.first * n + graph.second
    sorted_keys = np.argsort(keys)
    edge[has] = sorted_keys[np.searchsorted(keys[sorted_keys], ends[0] * n + ends[1])]
    return Rooted(order, parent, edge)
