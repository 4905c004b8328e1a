"""Sweeps spread every improvement to the sizes above and below."""

import numpy as np
import pytest
from sklearn.linear_model import orthogonal_mp

from ellzero.subset.columns import ScaledColumns
from ellzero.subset.gram import gram_of
from ellzero.subset.path import Frontier, pursue, sweep
from ellzero.subset.search import search
from ellzero.subset.stopping import Stopper
from ellzero.subset.walker import Walker


def walk(X, y, high):
    gram = gram_of(X, y)
    p = gram.n_features
    columns = ScaledColumns(gram, np.zeros(p), np.ones(p, bool), high)
    walker = Walker(columns, high, np.zeros(0, np.int64))
    frontier = Frontier(0, high)
    frontier.offer(walker.members, walker.explained)
    sweep(frontier, walker, Stopper(None, None))
    return columns, walker, frontier


@pytest.mark.parametrize("seed", range(3))
def test_no_neighbor_of_any_size_improves(seed):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((40, 30)) + generator.standard_normal((40, 1))
    y = generator.standard_normal(40)
    _, walker, frontier = walk(X, y, 8)
    assert not frontier.rising
    assert not frontier.falling
    known = frontier.explained.copy()
    for k in range(9):
        walker.move_to(frontier.members[k])
        np.testing.assert_allclose(walker.explained, known[k], rtol=1e-10)
        for move in (walker.grow, walker.shrink):
            walker.move_to(frontier.members[k])
            if move():
                walker.descend()
                assert walker.explained <= known[walker.size] * (1 + 1e-10)


def test_an_offer_is_kept_only_if_it_is_better():
    frontier = Frontier(0, 3)
    assert frontier.offer(np.array([1, 2]), 0.5)
    assert not frontier.offer(np.array([3, 4]), 0.5)
    assert frontier.offer(np.array([5, 6]), 0.6)
    assert frontier.best_within(3).tolist() == [5, 6]
    assert frontier.best_within(1).size == 0


def test_moving_many_times_does_not_drift():
    generator = np.random.default_rng(0)
    X = generator.standard_normal((50, 40))
    columns, walker, _ = walk(X, generator.standard_normal(50), 10)
    for _ in range(300):
        walker.shrink()
        walker.grow()
        walker.descend()
    members = walker.members
    fresh = Walker(columns, 10, np.zeros(0, np.int64))
    fresh.move_to(members)
    np.testing.assert_allclose(walker.explained, fresh.explained, rtol=1e-12)
    np.testing.assert_allclose(walker.state[5], fresh.state[5], atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_no_size_of_a_path_loses_to_matching_pursuit(seed):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((80, 400))
    y = X[:, :5].sum(axis=1) + generator.standard_normal(80)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = y - y.mean()
    path = search(gram_of(X, y), range(1, 21))
    for subset in path.subsets:
        k = subset.n_nonzero
        coef = orthogonal_mp(X, y, n_nonzero_coefs=k)
        loss = 0.5 * np.mean((y - X @ coef) ** 2)
        assert subset.value <= loss * (1 + 1e-9)


def test_pursuit_offers_what_correlates_most():
    generator = np.random.default_rng(2)
    X = generator.standard_normal((50, 300))
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    y = X[:, :4].sum(axis=1) + 2 * generator.standard_normal(50)
    gram = gram_of(X, y)
    columns = ScaledColumns(gram, np.zeros(300), np.ones(300, bool), 20)
    walker = Walker(columns, 6, np.zeros(0, np.int64))
    frontier = Frontier(0, 6)
    frontier.offer(walker.members, walker.explained)
    first = []
    while walker.follow():
        first.append(set(columns.order[walker.members].tolist()))
    for k, chosen in enumerate(first, 1):
        coef = orthogonal_mp(X, y - y.mean(), n_nonzero_coefs=k)
        assert chosen == set(np.flatnonzero(coef).tolist())
    pursue(frontier, walker, Stopper(None, None))
    assert np.all(np.diff(frontier.explained) > 0)
