"""Estimators with odd data and parameters: an answer, or one error that is meant to be read."""

import traceback
import warnings

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge

import ellzero
from ellzero.relu import SplineReLURegressor
from tests.hardening.fuzz import NASTY, attempt, fuzz

LINEAR = {
    "n_nonzero_coefs": [1, 2, 3, 0, [1, 2], "auto", 99, 0.5, [], [2, 1], [1, 1], -1],
    "criterion": ["ebic", "bic", "aic", "sic"],
    "ebic_gamma": [1.0, 0.0, 0.5],
    "ridge": [0.0, 0.1, 1e-8, 1e8, 1e300, -1.0],
    "standardize": [True, False],
    "fit_intercept": [True, False],
    "always": [None, [0], [0, 1], [9], [-1], ["a"], [True], [0, 0]],
    "forbidden": [None, [0], [1, 2, 3], [0.5]],
    "groups": [None, [0, 0, 1, 1], [0, 1], ["a", "b", "a", "b"], [0, 0, 0, 0]],
    "nonnegative": [False, True],
    "lower": [None, 0.0, -1.0, [-1.0] * 4, [1.0] * 4, np.nan, np.inf],
    "upper": [None, 1.0, [2.0] * 4, -1.0],
    "solver": ["auto", "search", "exact", "nope"],
    "effort": ["fast", "normal", "thorough"],
    "max_iter": [1000, 1, 0],
    "tol": [1e-6, 0.0, 1.0, -1.0],
    "time_limit": [0.3],
    "certify": [True, False, "path"],
}
FOLDS = {"cv": [2, 3, 1, 99, None], "rule": ["best", "one_se", "x"], "n_jobs": [None, 1]}
CONVEX = {
    "penalty": [None, 0.1, 1.0, 1e-6, 1e6, 0.0, -1.0],
    "fit_intercept": [True, False], "fit_bias": [True, False], "max_neurons": [None, 1, 5, 0],
    "max_iter": [3, 1, 0], "tol": [1e-8, 1.0], "time_limit": [0.3], "certify": [True, False],
    "random_state": [0, None, "x", -1],
}  # fmt: skip
GATED = {
    "penalty": [None, 0.1, 1.0, 1e-6, 1e6, 0.0, -1.0],
    "n_gates": [5, 1, 0, 50], "gates": [None, np.eye(4), "x", np.zeros((2, 4))],
    "fit_intercept": [True, False], "fit_bias": [True, False], "max_iter": [50, 1, 0],
    "solver": ["auto", "x"], "tol": [1e-7, 1.0], "memory_limit": [None, 1e9, 1.0, 0],
    "random_state": [0, None, "x"],
}  # fmt: skip
SIGNAL = {
    "smoothness": [1.0, 0.0, 1e-9, 1e9, -1.0, [1.0] * 11, "x"],
    "n_nonzero": [None, 0, 1, 4, 99, -1], "penalty": [None, 0.0, 0.5, 1e9, -1.0],
    "nonnegative": [False, True],
    "graph": [
        "chain", "chain", "grid", [[0, 1], [1, 2]], ("tree", [[0, 1]]), [[0, 0]], "x", [[0, 99]],
    ],
    "bump_penalty": [0.0, 0.5, -1.0], "n_bumps": [None, 1, 2, 0], "min_length": [1, 2, 99],
    "min_distance": [1, 3], "known_zeros": [None, [0], [99]], "known_ones": [None, [1], [0, 1]],
    "time_limit": [0.3], "certify": [True, False],
}  # fmt: skip


def _parameters(rng, known):
    given = {}
    for name, values in known.items():
        # The first value is plain; most parameters keep it.
        given[name] = values[0] if rng.random() < 0.75 else rng.choice(values)
    if rng.random() < 0.25:
        given[rng.choice([n for n in known if n != "time_limit"])] = rng.choice(NASTY)
    return given


def _features(rng, n, p):
    generator = np.random.default_rng(rng.randrange(2**32))
    X = generator.standard_normal((n, p))
    kind = rng.randrange(16)
    if X.size:
        if kind == 1:
            X[rng.randrange(n), rng.randrange(p)] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 2:
            X *= rng.choice([1e-300, 1e-160, 1e160, 1e300, 1e-20, 1e20])
        elif kind == 3:
            X[:, 0] = 1.0
        elif kind == 4:
            X[:, -1] = X[:, 0]
        elif kind == 5:
            X[:] = 0.0
        elif kind == 6:
            X = (X > 0).astype(rng.choice([bool, np.int8, np.uint64]))
        elif kind == 7:
            X[:, 0] += rng.choice([1e8, 1e15])
    form = rng.randrange(14)
    if form == 0:
        return X.tolist()
    if form == 1:
        return rng.choice([scipy.sparse.csr_matrix, scipy.sparse.coo_array])(X)
    if form == 2:
        return pd.DataFrame(X, columns=list("abcdefg")[:p] if p < 8 else None)
    if form == 3:
        with np.errstate(over="ignore"):
            return X.astype(rng.choice([np.float32, np.complex128, object, ">f8"]))
    if form == 4:
        return torch.from_numpy(np.ascontiguousarray(X.astype(float)))
    if form == 5:
        return rng.choice(
            [X[0] if n else X, X[None], None, "x", X.astype(str), np.asfortranarray(X)[::-1]]
        )
    return X


def _target(rng, n, kind):
    generator = np.random.default_rng(rng.randrange(2**32))
    if kind == "class":
        y = generator.integers(0, rng.choice([2, 2, 3]), n)
        odd = rng.randrange(12)
        if odd == 0:
            return np.array(["no", "yes", "é"])[y]
        if odd == 1:
            return np.zeros(n)
        if odd == 2:
            return y + 0.5
        if odd == 3:
            return y.astype(bool)
        if odd == 4:
            return np.where(y == 1, None, "a")
    elif kind == "count":
        y = generator.poisson(1.0, n).astype(float)
        if rng.random() < 0.1:
            y[:] = rng.choice([0.0, -1.0, 1e300, 0.5, np.inf])
    else:
        y = generator.standard_normal(n)
        odd = rng.randrange(10)
        if odd == 0 and n:
            y[rng.randrange(n)] = rng.choice([np.nan, np.inf, 1e308, 1e200])
        elif odd == 1:
            y *= rng.choice([0.0, 1e-300, 1e-160, 1e160, 1e300])
        elif odd == 2:
            y = np.column_stack([y, -y])
        elif odd == 3:
            return y.astype(str)
    if rng.random() < 0.05:
        return rng.choice([y[:-1], None, y[None], y.tolist()])
    return y


def _call(action):
    """Run, and take for meant what scikit-learn itself raises about its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers at the edge of float64 may overflow on the way
        try:
            return attempt(action, hint=False)
        except NotFittedError:
            raise
        except (ValueError, TypeError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1].filename
            if "ellzero" in last:
                raise
            frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
            if not any("/sklearn/" in name for name in frames):
                raise
            return None


def _fit(rng, make, target, weighted=False):
    n, p = rng.choice(
        [
            (0, 4),
            (1, 4),
            (2, 4),
            (5, 4),
            (12, 4),
            (12, 4),
            (12, 4),
            (30, 4),
            (4, 12),
            (12, 0),
            (12, 1),
        ]
    )
    X, y = _features(rng, n, p), _target(rng, n, target)
    weights = rng.choice(
        [None] * 15 + [np.ones(n), np.zeros(n), -np.ones(n), np.full(n, np.nan), np.ones(n + 1)]
    )
    keys = {} if weights is None or not weighted else {"sample_weight": weights}

    def run():
        model = make()
        model.fit(X, y, **keys)
        return model

    model = _call(run)
    if model is None:
        return
    for name in ("predict", "predict_proba", "transform"):
        if hasattr(model, name):
            got = _call(lambda name=name: getattr(model, name)(X))
            if isinstance(got, np.ndarray) and got.dtype.kind == "f":
                assert np.isfinite(got).all(), (name, got)
    coef = getattr(model, "coef_", None)
    if coef is not None:
        assert np.isfinite(np.asarray(coef)).all()
    _call(lambda: model.score(X, y)) if hasattr(model, "score") else None


def _linear(name, target, more=None):
    def body(rng, folder):
        kind = getattr(ellzero, name)
        known = {**LINEAR, **(more or {})}
        if name.endswith("CV"):
            known |= FOLDS
            del known["criterion"], known["ebic_gamma"]
        given = _parameters(rng, known)
        _fit(rng, lambda: kind(**given), target, weighted=True)

    return body


@fuzz(40, 1500)
def test_regressors(rng, folder):
    name, target, more = rng.choice([
        ("L0Regressor", "real", {}), ("L0HuberRegressor", "real", {"epsilon": [1.35, 0.0, 1e9]}),
        ("L0PoissonRegressor", "count", {}),
    ])  # fmt: skip
    _linear(name, target, more)(rng, folder)


@fuzz(30, 1000)
def test_classifiers(rng, folder):
    more = {"class_weight": [None, "balanced", {0: 1.0}, "x"]}
    _linear("L0Classifier", "class", more)(rng, folder)


@fuzz(15, 600)
def test_cross_validated(rng, folder):
    name, target = rng.choice([
        ("L0RegressorCV", "real"), ("L0ClassifierCV", "class"), ("L0PoissonRegressorCV", "count"),
        ("L0HuberRegressorCV", "real"),
    ])  # fmt: skip
    _linear(name, target)(rng, folder)


@fuzz(15, 500)
def test_selector(rng, folder):
    _fit(
        rng,
        lambda: ellzero.L0Selector(rng.choice([Ridge(), ellzero.L0Regressor(2), None, "x"])),
        "real",
    )


@fuzz(10, 600)
def test_convex_networks(rng, folder):
    given = _parameters(rng, CONVEX)
    if rng.random() < 0.5:
        _fit(rng, lambda: ellzero.ConvexReLURegressor(**given), "real")
    else:
        _fit(rng, lambda: ellzero.ConvexReLUClassifier(**given), "class")


@fuzz(10, 600)
def test_gated_networks(rng, folder):
    given = _parameters(rng, GATED)
    if rng.random() < 0.5:
        _fit(rng, lambda: ellzero.GatedReLURegressor(**given), "real")
    else:
        _fit(rng, lambda: ellzero.GatedReLUClassifier(**given), "class")


@fuzz(15, 600)
def test_splines(rng, folder):
    penalty = rng.choice([0.0, 0.1, 1e9, -1.0, *NASTY])
    n = rng.choice([0, 1, 2, 12])
    X, y = _features(rng, n, rng.choice([1, 1, 1, 2])), _target(rng, n, "real")
    model = _call(lambda: SplineReLURegressor(penalty).fit(X, y))
    if model is not None:
        _call(lambda: model.predict(X))


def _signal(rng):
    n = rng.choice([1, 2, 3, 12, 12, 12, 40])
    generator = np.random.default_rng(rng.randrange(2**32))
    y = generator.standard_normal(n) * (generator.random(n) < 0.5)
    kind = rng.randrange(14)
    if kind == 0:
        return rng.choice(NASTY)
    if kind == 1:
        y[rng.randrange(n)] = rng.choice([np.nan, np.inf])
    elif kind == 2:
        y *= rng.choice([1e-200, 1e-100, 1e100, 1e200, 0.0])
    elif kind == 3:
        return y.reshape(1, -1, 1)
    elif kind == 4:
        return y.astype(str)
    elif kind == 5:
        return torch.from_numpy(y)
    elif kind == 6:
        return pd.Series(y, index=pd.RangeIndex(5, 5 + n))
    elif kind == 7:
        return np.ma.masked_array(y, y > 1)
    elif kind == 8 and n == 12:
        return y.reshape(3, 4)
    elif kind == 9:
        return (y > 0).astype(np.int64) * 2**62
    return y


@fuzz(60, 2000)
def test_signals(rng, folder):
    given = _parameters(rng, SIGNAL)
    if rng.random() < 0.7 and given["n_nonzero"] is None and given["penalty"] is None:
        given["n_nonzero"] = 3
    y = _signal(rng)
    weights = rng.choice([None] * 5 + [np.ones(12), 0.0, "x", np.nan, [1.0, 2.0]])
    _call(lambda: ellzero.SparseSmooth(**given).fit(y, sample_weight=weights))
    if rng.random() < 0.2:
        _call(lambda: ellzero.SparseSmooth(1.0).select(y))
    if rng.random() < 0.2:
        n_nonzero = rng.choice([2, 5, -1, "x", None])
        _call(lambda: ellzero.denoise(y, smoothness=1.0, n_nonzero=n_nonzero))
