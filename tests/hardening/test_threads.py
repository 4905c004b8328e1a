"""The same answers from eight threads as from one."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ellzero
from ellzero.relu import SplineReLURegressor

N_THREADS = 8


def _table(seed, n=80, p=25):
    generator = np.random.default_rng(seed)
    X = generator.standard_normal((n, p))
    y = X[:, :3] @ [2.0, -1.0, 1.5] + 0.5 * generator.standard_normal(n)
    return X, y


def _linear(kind, seed, target=lambda y: y, **options):
    X, y = _table(seed)
    model = kind([1, 2, 4], **options).fit(X, target(y))
    return np.concatenate([np.ravel(model.coef_), np.ravel(model.predict(X)).astype(float)])


def _signal(seed):
    y, _, _ = ellzero.datasets.make_sparse_signal(seed=seed)
    return ellzero.SparseSmooth(1.0, n_nonzero=40).fit(y).signal_


def _solve(seed):
    X, y = (torch.from_numpy(part) for part in _table(seed))
    problem = ellzero.Problem(ellzero.LeastSquares(X, y), ellzero.L0Ball(3))
    return ellzero.solve(problem).params["coef"].numpy()


def _network(seed):
    X, y = _table(seed, 30, 3)
    model = ellzero.ConvexReLURegressor(0.1, max_iter=3, random_state=0).fit(X, y)
    return model.predict(X)


def _gated(seed):
    X, y = _table(seed, 30, 3)
    return ellzero.GatedReLURegressor(0.01, n_gates=20, random_state=0).fit(X, y).predict(X)


def _spline(seed):
    X, y = _table(seed, 30, 3)
    return SplineReLURegressor(0.1).fit(X[:, :1], y).predict(X[:, :1])


def _threshold(seed):
    generator = torch.Generator().manual_seed(seed)
    point = {
        "a": torch.randn(300, 70, generator=generator),
        "b": torch.randn(90, generator=generator),
    }
    return torch.cat([t.flatten() for t in ellzero.L0Ball(500).project(point).values()]).numpy()


WORK = {
    "L0Regressor": lambda s: _linear(ellzero.L0Regressor, s),
    "exact": lambda s: _linear(ellzero.L0Regressor, s, ridge=0.1, solver="exact"),
    "L0Classifier": lambda s: _linear(ellzero.L0Classifier, s, lambda y: y > 0),
    "L0PoissonRegressor": lambda s: _linear(
        ellzero.L0PoissonRegressor, s, lambda y: np.round(np.exp(0.3 * y))
    ),
    "L0HuberRegressor": lambda s: _linear(ellzero.L0HuberRegressor, s),
    "L0RegressorCV": lambda s: _linear(ellzero.L0RegressorCV, s, cv=3),
    "SparseSmooth": _signal,
    "solve": _solve,
    "ConvexReLURegressor": _network,
    "GatedReLURegressor": _gated,
    "SplineReLURegressor": _spline,
    "project": _threshold,
}


# The filters of warnings belong to the process: a block that mutes cvxpy in one thread may end
# while another is inside, whose warning is then let out. Answers are not touched.
muted = pytest.mark.filterwarnings("ignore:Solution may be inaccurate")


@muted
@pytest.mark.parametrize("name", WORK)
def test_threads_give_the_answers_of_one(name):
    work = WORK[name]
    seeds = [s % 4 for s in range(2 * N_THREADS)]
    serial = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(N_THREADS) as pool:
        found = list(pool.map(work, seeds))
    for seed, values in zip(seeds, found, strict=True):
        assert np.array_equal(values, serial[seed]), name


@muted
def test_different_estimators_at_once():
    """Warnings, seeds and compiled kernels of one do not disturb the others."""
    serial = {name: work(1) for name, work in WORK.items()}
    with ThreadPoolExecutor(N_THREADS) as pool:
        found = dict(zip(WORK, pool.map(lambda name: WORK[name](1), WORK), strict=True))
    for name, values in found.items():
        assert np.array_equal(values, serial[name]), name
