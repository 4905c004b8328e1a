"""Kicks: where exchanges stick, and how soon they stop where they do not."""

import itertools

import numpy as np
import pytest

from ellzero.errors import InvalidParameterError
from ellzero.subset.effort import Effort
from ellzero.subset.gram import gram_of
from ellzero.subset.search import search


def stuck(seed, n=30, p=18):
    """Return correlated features in opposite pairs, with a weak signal."""
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = 0.9 * X[:, j - 1] + np.sqrt(0.19) * X[:, j]
    coef = np.zeros(p)
    at = generator.choice(p // 2, 3, replace=False) * 2
    coef[at], coef[at + 1] = 1.0, -1.0
    return X, X @ coef + 0.5 * generator.standard_normal(n)


def optimum(X, y, k):
    X, y = X - X.mean(axis=0), y - y.mean()
    G, c = X.T @ X, X.T @ y
    sets = np.array(list(itertools.combinations(range(X.shape[1]), k)))
    blocks = G[sets[:, :, None], sets[:, None, :]]
    right = c[sets]
    explained = np.sum(np.linalg.solve(blocks, right[..., None])[..., 0] * right, axis=1)
    return (y @ y - explained.max()) / (2 * len(y))


def noise():
    """Return data without a signal, where many subsets are nearly the best."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((60, 200)), generator.standard_normal(60)


def test_kicks_find_optima_that_exchanges_miss():
    missed = {"fast": 0, "normal": 0}
    for seed in range(25):
        X, y = stuck(seed)
        best = optimum(X, y, 5)
        for name in missed:
            found = search(gram_of(X, y), [5], effort=Effort.of(name))[5].value
            assert found >= best * (1 - 1e-9)
            missed[name] += found > best * (1 + 1e-9)
    assert missed["fast"] > 0
    assert missed["normal"] == 0


def test_easy_problems_stop_at_once_and_hard_ones_go_on():
    X = np.random.default_rng(0).standard_normal((100, 50))
    easy = search(gram_of(X, X[:, :5].sum(axis=1) + 0.1 * X[:, 20]), [5])
    hard = search(gram_of(*noise()), [8])
    assert easy.measures["n_kicks"] == Effort().agree
    assert hard.measures["n_kicks"] > 10 * Effort().agree


def test_effort_bounds_the_kicks():
    X, y = noise()
    for most in (0, 5, 100):
        assert search(gram_of(X, y), [8], effort=Effort(kicks=most)).measures["n_kicks"] == most


def test_no_more_kicks_than_subsets():
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((30, 4)), generator.standard_normal(30)
    assert search(gram_of(X, y), [2]).measures["n_kicks"] <= 6


WRONG = [
    ({"kicks": -1}, "`kicks` must be an integer of at least 0, got -1."),
    ({"population": 0}, "`population` must be an integer of at least 1, got 0."),
    ({"agree": 0}, "`agree` must be an integer of at least 1, got 0."),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_input(settings, message):
    with pytest.raises(InvalidParameterError) as error:
        Effort(**settings)
    assert error.value.message == message


def test_unknown_names():
    with pytest.raises(InvalidParameterError) as error:
        Effort.of("thorogh")
    assert error.value.message == (
        "`effort` must be one of 'fast', 'normal', 'thorough', got 'thorogh'. "
        "Did you mean 'thorough'?"
    )
