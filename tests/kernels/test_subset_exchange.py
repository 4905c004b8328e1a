"""Prices of insertions, removals and exchanges against direct refits."""

import itertools

import numpy as np
import pytest

from ellzero.kernels import subset_exchange as kernels

FLOOR = 1e-10
KERNELS = ("insert", "remove", "cheapest", "dearest", "scan", "descend", "rebuild", "explained")


def instance(n=30, p=12, q=1, seed=0):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p)) + generator.standard_normal((n, 1))
    X /= np.linalg.norm(X, axis=0)
    Y = generator.standard_normal((n, q))
    return X, Y / np.linalg.norm(Y)


def state_of(X, Y, members, n_fixed=0, room=8):
    p, q = X.shape[1], Y.shape[1]
    start = np.ascontiguousarray((X.T @ Y).T)
    state = (
        np.zeros(room, np.int64),
        np.array([0, n_fixed, 0, 0]),
        np.empty((room, p)),
        np.empty((room, room)),
        np.empty((room, q)),
        start.copy(),
        np.ones(p),
    )
    A = X.T @ X
    np.fill_diagonal(A, 1.0)
    slots = np.arange(p)
    assert kernels.rebuild(A, slots, start, np.array(members, np.int64), state, FLOOR) == -1
    return A, slots, start, state


def rest(X, Y, members):
    """Return the energy that a least-squares fit leaves."""
    X = X[:, list(members)]
    return float(np.sum((Y - X @ np.linalg.lstsq(X, Y, rcond=None)[0]) ** 2))


def assert_state(X, Y, state):
    members, sizes, H, B, beta, c, d = state
    k = sizes[kernels.SIZE]
    S = members[:k]
    inverse = np.linalg.inv(X[:, S].T @ X[:, S])
    coef = inverse @ X[:, S].T @ Y
    np.testing.assert_allclose(B[:k, :k], inverse, atol=1e-11)
    np.testing.assert_allclose(H[:k], inverse @ X[:, S].T @ X, atol=1e-11)
    np.testing.assert_allclose(beta[:k], coef, atol=1e-11)
    np.testing.assert_allclose(c, (X.T @ (Y - X[:, S] @ coef)).T, atol=1e-11)
    out = np.setdiff1d(np.arange(X.shape[1]), S)
    left = [rest(X[:, S], X[:, [j]], range(k)) for j in out]
    np.testing.assert_allclose(d[out], left, atol=1e-11)
    assert (d[S] == kernels.CLOSED).all()


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("compiled", [True, False])
def test_insertions_and_removals_keep_the_state(q, compiled, monkeypatch):
    if not compiled:
        for name in KERNELS:
            monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    X, Y = instance(q=q)
    A, _, _, state = state_of(X, Y, [3, 5, 1, 8])
    assert_state(X, Y, state)
    kernels.remove(1, state)
    assert_state(X, Y, state)
    kernels.insert(A, 9, 9, state)
    kernels.remove(3, state)
    kernels.insert(A, 0, 0, state)
    assert_state(X, Y, state)
    assert sorted(state[0][:4]) == [0, 1, 3, 8]


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("compiled", [True, False])
def test_the_best_exchange_is_that_of_direct_refits(q, seed, compiled):
    # More features than a chunk, so that chunks meet.
    X, Y = instance(n=60, p=kernels.CHUNK + 30 if seed == 0 else 12, q=q, seed=seed)
    members = [2, 7, 4]
    _, _, _, state = state_of(X, Y, members)
    scan = kernels.scan if compiled else kernels.scan.py_func
    leaves, enters, gain = scan(state, FLOOR)
    before = rest(X, Y, members)
    gains = {
        (i, j): before - rest(X, Y, [*members[:i], *members[i + 1 :], j])
        for i, j in itertools.product(range(3), range(X.shape[1]))
        if j not in members
    }
    best = max(gains, key=gains.get)
    if gains[best] > 0:
        assert (leaves, enters) == best
        np.testing.assert_allclose(gain, gains[best], rtol=1e-9)
    else:
        assert leaves == -1


@pytest.mark.parametrize("q", [1, 3])
def test_additions_and_removals_are_those_of_direct_refits(q):
    X, Y = instance(q=q, seed=2)
    members = [6, 2, 9]
    _, _, start, state = state_of(X, Y, members)
    before = rest(X, Y, members)
    np.testing.assert_allclose(kernels.explained(start, state), 1 - before, rtol=1e-12)
    losses = [rest(X, Y, np.delete(members, i)) - before for i in range(3)]
    place, cost = kernels.cheapest(state)
    assert place == np.argmin(losses)
    np.testing.assert_allclose(cost, min(losses), rtol=1e-10)
    others = [j for j in range(12) if j not in members]
    gains = [before - rest(X, Y, [*members, j]) for j in others]
    j, gain = kernels.dearest(state, FLOOR, 0)
    assert j == others[int(np.argmax(gains))]
    np.testing.assert_allclose(gain, max(gains), rtol=1e-10)


def test_fixed_members_stay():
    X, Y = instance(seed=3)
    A, slots, _, state = state_of(X, Y, [6, 2, 9], n_fixed=2)
    kernels.descend(A, slots, state, FLOOR, 100)
    assert state[0][:2].tolist() == [6, 2]
    state[1][kernels.FIXED] = 3
    assert kernels.cheapest(state)[0] == -1
    assert kernels.scan(state, FLOOR)[0] == -1


def test_missing_columns_are_asked_for():
    X, Y = instance(seed=4)
    A, slots, start, state = state_of(X, Y, [6, 2])
    leaves, enters, _ = kernels.scan(state, FLOOR)
    assert leaves >= 0
    slots[enters] = -1
    assert kernels.descend(A, slots, state, FLOOR, 100) == enters
    assert kernels.rebuild(A, slots, start, np.array([enters]), state, FLOOR) == enters


def test_dependent_features_never_enter():
    X, Y = instance(seed=5)
    X[:, 4] = X[:, 3]
    X[:, 5] = X[:, 2] + X[:, 3]
    X[:, 5] /= np.linalg.norm(X[:, 5])
    A, slots, _, state = state_of(X, Y, [3, 2, 4, 5])
    assert state[0][: state[1][0]].tolist() == [3, 2]
    for _ in range(6):
        j, _ = kernels.dearest(state, FLOOR, 0)
        assert j not in {4, 5}
        kernels.insert(A, slots[j], j, state)
        assert_state(X, Y, state)


def test_a_seed_leaves_out_about_half():
    X, Y = instance(n=300, p=200, seed=6)
    _, _, _, state = state_of(X, Y, [])
    plain = kernels.dearest(state, FLOOR, 0)[0]
    same = sum(kernels.dearest(state, FLOOR, seed)[0] == plain for seed in range(1, 401))
    # 400 fair coins: four deviations.
    assert abs(same - 200) < 40


@pytest.mark.parametrize("compiled", [True, False])
def test_neighbors_are_the_most_correlated(compiled):
    X, _ = instance(n=9, p=12, seed=3)
    near = np.zeros((12, 3), np.int64)
    kernel = kernels.neighbors if compiled else kernels.neighbors.py_func
    kernel(X.T @ X, near)
    others = np.abs(X.T @ X) - 2 * np.eye(12)
    assert near.tolist() == np.argsort(-others, axis=1)[:, :3].tolist()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("q", [1, 3])
def test_dearest_pair_is_that_of_refits(compiled, q):
    X, Y = instance(q=q, seed=4)
    X[:, 9] = X[:, 10]
    A, slots, _, state = state_of(X, Y, [3, 5])
    near = np.array([[j for j in range(12) if j != i] for i in range(12)])
    kernel = kernels.dearest_pair if compiled else kernels.dearest_pair.py_func
    i, j, gain = kernel(A, slots, near, state, FLOOR)
    pairs = itertools.combinations(np.setdiff1d(np.arange(12), [3, 5]), 2)
    best = min(pairs, key=lambda pair: rest(X, Y, [3, 5, *pair]))
    assert {i, j} == set(best)
    np.testing.assert_allclose(gain, rest(X, Y, [3, 5]) - rest(X, Y, [3, 5, i, j]), rtol=1e-9)
    assert kernel(A, slots, np.zeros((12, 0), np.int64), state, FLOOR)[0] == -1


@pytest.mark.parametrize("compiled", [True, False])
def test_pairs_that_hide_each_other_are_exchanged(compiled):
    X, _ = instance(n=60, p=12, seed=8)
    X[:, 7] = X[:, 2] + 0.2 * X[:, 7]
    X /= np.linalg.norm(X, axis=0)
    Y = X[:, [7]] - X[:, [2]] + 0.02 * X[:, [4]] + 0.02 * X[:, [5]]
    Y /= np.linalg.norm(Y)
    A, slots, start, state = state_of(X, Y, [4, 5])
    near = np.zeros((12, 1), np.int64)
    kernels.neighbors(A, near)
    support = np.array([0, 1])
    kernel = kernels.exchange_pairs if compiled else kernels.exchange_pairs.py_func
    value = kernel(A, slots, start, near, support, state, FLOOR)
    assert sorted(support.tolist()) == [2, 7]
    np.testing.assert_allclose(value, 1 - rest(X, Y, [2, 7]), rtol=1e-9)


@pytest.mark.parametrize("n_near", [0, 2])
@pytest.mark.parametrize("compiled", [True, False])
def test_kicks_find_the_best_subset(compiled, n_near):
    X, Y = instance(n=25, p=10, seed=7)
    A, slots, start, state = state_of(X, Y, [], room=8)
    pool = np.zeros((4, 3), np.int64)
    pool[0] = [7, 8, 9]
    values = np.zeros(4)
    values[0] = 1 - rest(X, Y, pool[0])
    seen = np.zeros(16)
    seen[0] = values[0]
    tally = np.array([1, 1, 0, 0])
    seeds = np.array([2**60 + 1], np.uint64)
    near = np.zeros((10, n_near), np.int64)
    kernels.neighbors(A, near)
    kick = kernels.kick if compiled else kernels.kick.py_func
    with np.errstate(over="ignore"):
        kick(A, slots, start, near, state, FLOOR, pool, values, seen, seeds, tally, False, 30)
    best = min(itertools.combinations(range(10), 3), key=lambda S: rest(X, Y, S))
    assert sorted(pool[np.argmax(values[: tally[0]])]) == list(best)
    for members, value in zip(pool[: tally[0]], values[: tally[0]], strict=True):
        np.testing.assert_allclose(value, 1 - rest(X, Y, members), rtol=1e-10)
    assert tally[2] == 30
    assert tally[1] >= 2
