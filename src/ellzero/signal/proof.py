"""What a method on a graph with cycles hands over so that others can check its lower bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ellzero.signal.graph import Lines, Mesh
from ellzero.signal.solution import Bools, Floats, Integers
from ellzero.signal.submodular import Pairwise


@dataclass(frozen=True)
class Sweep:
    """Lines solved exactly with everything else fixed at a level.

    Parameters
    ----------
    lines : Lines
        The lines.
    support : ndarray of shape (k,), bool
        An optimal support in the order of the lines.
    """

    lines: Lines
    support: Bools


@dataclass(frozen=True)
class Window:
    """A window whose base proves that some nodes are in every minimizer, or in none.

    Parameters
    ----------
    nodes : ndarray of shape (k,), int64
        Nodes of the window that are not off.
    orders : ndarray of shape (c, m), int64
        Orders of its undecided nodes.
    shares : ndarray of shape (c,)
        Shares of their vertices.
    chosen : ndarray of shape (m,), bool
        Best known set of them.
    decided : ndarray of shape (m,), bool
        Which of them the base decides.
    """

    nodes: Integers
    orders: Integers
    shares: Floats
    chosen: Bools
    decided: Bools


@dataclass(frozen=True)
class Fixing:
    """Steps in which the surroundings are fixed at one level.

    Parameters
    ----------
    is_low : bool
        Whether the level is below a minimizer, and nodes turn on; else it is above, and nodes
        turn off.
    level : ndarray of shape (n,)
        The level.
    low : ndarray of shape (n,)
        A level below a minimizer; windows eliminate the nodes that are above zero there.
    steps : list of Sweep or Window
        In order.
    """

    is_low: bool
    level: Floats
    low: Floats
    steps: list[Sweep | Window]


@dataclass(frozen=True)
class Narrowing:
    """All steps between nothing known and the lower bound.

    Parameters
    ----------
    price : float
        Cost of a nonzero that counts.
    fixings : list of Fixing
        In order.
    closings : list of Window
        Components of what was left, each with a base whose margin is the gap that it leaves.
    low : ndarray of shape (n,) or None
        Level below a minimizer for the closings.
    left : int
        Nodes that neither a step nor a closing covers; above 0 there is no bound.
    """

    price: float
    fixings: list[Fixing]
    closings: list[Window]
    low: Floats | None
    left: int


@dataclass(frozen=True)
class Multipliers:
    """Parts of a graph with multipliers that prove a lower bound.

    Parameters
    ----------
    price : float
        Cost of a nonzero that counts, or the multiplier of a budget.
    parts : list of Lines
        Lines that hold every edge once.
    weights : list of ndarray of shape (k,)
        Weight of every node in every part. They sum to the weights of the data, and a little
        more at missing samples.
    slopes, costs : list of ndarray of shape (k,)
        Linear term and cost of a nonzero of every node in every part; linear terms sum to zero,
        and costs to the price.
    """

    price: float
    parts: list[Lines]
    weights: list[Floats]
    slopes: list[Floats]
    costs: list[Floats]


def split(mesh: Mesh, nodes: Integers, cost: Floats, low: Floats, level: Floats) -> _Split:
    """Return the problem of a window with its surroundings fixed.

    Parameters
    ----------
    mesh : Mesh
        Data.
    nodes : ndarray of shape (k,), int64
        Nodes of the window.
    cost : ndarray of shape (n,)
        Cost of every node, 0 where it is on.
    low : ndarray of shape (n,)
        Level below a minimizer: nodes above 0 there are on, and are eliminated.
    level : ndarray of shape (n,)
        Level at which the surroundings are fixed.
    """
    matrix = mesh.matrix[nodes][:, nodes].toarray()
    # What the surroundings pull: all edges minus those within.
    right = mesh.pull[nodes] - mesh.matrix[nodes] @ level + matrix @ level[nodes]
    inner = low[nodes] > 0
    if not inner.any():
        return _Split(nodes, Pairwise(matrix, right, cost[nodes]))
    from scipy.linalg import cho_factor, cho_solve

    outer = ~inner
    cross = matrix[np.ix_(inner, outer)]
    factor = cho_factor(matrix[np.ix_(inner, inner)], lower=True)
    solved = cho_solve(factor, np.column_stack([cross, right[inner]]))
    reduced = matrix[np.ix_(outer, outer)] - cross.T @ solved[:, :-1]
    pull = right[outer] - cross.T @ solved[:, -1]
    free = nodes[outer]
    return _Split(free, Pairwise(0.5 * (reduced + reduced.T), pull, cost[free]))


@dataclass(frozen=True)
class _Split:
    """The nodes of a window that are not eliminated, and their function."""

    nodes: Integers
    pairwise: Pairwise
