"""The data of the benchmark: everything comes from a name and a seed.

======== ======================================================================================
table    instance (rows, columns, features asked for)
======== ======================================================================================
S1       500 x 2000, k = 10: neighbors correlate by .5, coefficients +-1, signal to noise 5
S2       1000 x 10000, k = 20: as S1; S2path asks for k = 1..50, S2cv validates that path
S5       300 x 1000, k = 10: neighbors correlate by .9, pairs of neighbors with coefficients +1 and
         -1, signal to noise 6
g1       100 x 40, k = 8: neighbors correlate by .7, coefficients +-1, signal to noise 1
g2       120 x 60, k = 10: as S5
hard     500 x 2000, k = 25: as S1 with signal to noise 1
logistic 500 x 2000, k = 10: as S1, coefficients +-1, labels drawn from the logistic model
cancer   breast cancer of scikit-learn, standardized, logistic, k = 4 and 5
colon    log2 of the colon cancer genes, standardized, the gene numbered by the seed predicted by
         the others, k = 8
tall     1000000 x 200, k = 10: as S1
poisson  500 x 1000, k = 8: as S1, coefficients +-.25, counts from the log-linear model
groups   400 x 1200 in 300 groups of 4, 6 groups, labels of groups interleaved
weights  400 x 1000, k = 10: as S1, weights drawn from an exponential distribution
risk     300 x 1000, 25 true features: as S1 with signal to noise .3 (seeds 0-3), 1 (4-7) and 6
         (8-11); a method chooses its sizes and penalties by 5-fold cross-validation
curve_p  500 x the seed, and curve_n the seed x 200, k = 10: as S1
sparse   20000 texts x the seed: words drawn by rank, counts as values, 50 of the frequent words
         matter
======== ======================================================================================

Signal to noise is a ratio of variances. An intercept is always fitted and never counted; columns
have the scale that they are drawn with, and the target has an offset of 3.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scipy.signal
import scipy.sparse

DATA = Path(__file__).parents[3] / "shared" / "data"
LIKE_ALL = 20261124  # mixed into every seed


@dataclass(frozen=True)
class Instance:
    """A table, its target, and what is asked for."""

    name: str
    X: object
    y: np.ndarray
    budgets: tuple
    loss: str = "squares"
    ridge: float = 0.0
    weight: np.ndarray | None = None
    groups: np.ndarray | None = None
    task: str = "fit"  # or "path", "cv", "predict"
    truth: np.ndarray | None = field(default=None, repr=False)  # coefficients that made the data


def correlated(rng, n, p, rho):
    """Return normal columns where neighbors at distance d correlate by rho^d."""
    noise = rng.standard_normal((n, p))
    if rho:
        noise[:, 1:] *= np.sqrt(1 - rho * rho)
        noise = scipy.signal.lfilter([1.0], [1.0, -rho], noise, axis=1)
    return noise


def signs(rng, p, k):
    """Return coefficients that are +-1 at k random places."""
    beta = np.zeros(p)
    beta[rng.choice(p, k, replace=False)] = rng.choice([-1.0, 1.0], k)
    return beta


def pairs(rng, p, k):
    """Return coefficients +1, -1 on k/2 pairs of neighbors, which hide each other."""
    beta = np.zeros(p)
    for start in 2 * rng.choice(p // 2, k // 2, replace=False):
        sign = rng.choice([-1.0, 1.0])
        beta[start], beta[start + 1] = sign, -sign
    return beta


def with_noise(rng, signal, ratio):
    return 3.0 + signal + rng.standard_normal(signal.shape[0]) * np.sqrt(signal.var() / ratio)


def linear(name, rng, n, p, k, rho, ratio, *, make=signs, asked=None, **more):
    X = correlated(rng, n, p, rho)
    beta = make(rng, p, k)
    y = with_noise(rng, X @ beta, ratio)
    return Instance(name, X, y, tuple(asked or (k,)), truth=beta, **more)


def logistic(name, rng):
    X = correlated(rng, 500, 2000, 0.5)
    beta = signs(rng, 2000, 10)
    y = (rng.random(500) < 1 / (1 + np.exp(-X @ beta))).astype(float)
    return Instance(name, X, y, (10,), loss="logistic", truth=beta)


def poisson(name, rng):
    X = correlated(rng, 500, 1000, 0.5)
    beta = 0.25 * signs(rng, 1000, 8)
    y = rng.poisson(np.exp(1.0 + X @ beta)).astype(float)
    return Instance(name, X, y, (8,), loss="poisson", truth=beta)


def groups(name, rng):
    X = correlated(rng, 400, 1200, 0.5)
    labels = np.tile(np.arange(300), 4)
    beta = np.zeros(1200)
    for g in rng.choice(300, 6, replace=False):
        beta[labels == g] = rng.standard_normal(4)
    return Instance(name, X, with_noise(rng, X @ beta, 3), (6,), groups=labels, truth=beta)


def weights(name, rng):
    made = linear(name, rng, 400, 1000, 10, 0.5, 3)
    w = rng.exponential(size=400)
    return Instance(name, made.X, made.y, made.budgets, weight=w, truth=made.truth)


def cancer(name, k):
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    return Instance(name, X, y.astype(float), (k,), loss="logistic")


def colon(name, gene):
    genes = np.log2(
        np.genfromtxt(
            DATA / "colon.csv", delimiter=",", skip_header=1, usecols=range(1, 2001), dtype=float
        )
    )
    genes = (genes - genes.mean(0)) / genes.std(0)
    return Instance(name, np.delete(genes, gene, axis=1), genes[:, gene].copy(), (8,))


def sparse(name, rng, n, p, k=50):
    """Return texts of about 60 words: rank r has a chance like 1/r, so few columns are long."""
    lengths = rng.poisson(60, n)
    ranks = np.minimum(p ** rng.random(lengths.sum()), p - 1).astype(np.int64)
    rows = np.repeat(np.arange(n), lengths)
    X = scipy.sparse.coo_array((np.ones(ranks.size), (rows, ranks)), shape=(n, p)).tocsc()
    X.sum_duplicates()
    beta = np.zeros(p)
    beta[20 + rng.choice(2000, k, replace=False)] = rng.choice([-1.0, 1.0], k)
    return Instance(name, X, with_noise(rng, X @ beta, 3), (k,), truth=beta)


def instance(table, seed, **size):
    """Return one instance of a table."""
    stem = table.removesuffix("path").removesuffix("cv")
    key = int.from_bytes(stem.encode(), "big")
    rng = np.random.default_rng([LIKE_ALL, key, seed])
    name = f"{table}-{seed}"
    match table:
        case "S1":
            return linear(name, rng, 500, 2000, 10, 0.5, 5)
        case "S2":
            return linear(name, rng, 1000, 10000, 20, 0.5, 5)
        case "S2path" | "S2cv":
            asked = range(1, 51)
            return linear(name, rng, 1000, 10000, 20, 0.5, 5, asked=asked, task=table[2:])
        case "S5":
            return linear(name, rng, 300, 1000, 10, 0.9, 6, make=pairs)
        case "g1":
            return linear(name, rng, 100, 40, 8, 0.7, 1)
        case "g2":
            return linear(name, rng, 120, 60, 10, 0.9, 6, make=pairs)
        case "risk":
            asked = range(1, 41)
            ratio = (0.3, 1.0, 6.0)[seed // 4]
            return linear(name, rng, 300, 1000, 25, 0.5, ratio, asked=asked, task="predict")
        case "hard":
            return linear(name, rng, 500, 2000, 25, 0.5, 1)
        case "tall":
            return linear(name, rng, 1_000_000, 200, 10, 0.5, 5)
        case "logistic":
            return logistic(name, rng)
        case "poisson":
            return poisson(name, rng)
        case "groups":
            return groups(name, rng)
        case "weights":
            return weights(name, rng)
        case "cancer":
            return cancer(name, seed)
        case "colon":
            return colon(name, seed)
        case "curve_p" | "curve_n":  # the size itself is the seed
            n, p = (500, seed) if table == "curve_p" else (seed, 200)
            return linear(name, rng, n, p, 10, 0.5, 5)
        case "sparse":
            return sparse(name, rng, 20_000, seed)
    raise ValueError(f"There is no table {table!r}.")


def tiny(loss, task="fit"):
    """Return a small problem that compiles what a method compiles on its first call."""
    rng = np.random.default_rng(LIKE_ALL)
    made = linear("tiny", rng, 60, 30, 3, 0.3, 5)
    y = {
        "squares": made.y,
        "logistic": (made.y + 3 * rng.standard_normal(60) > 3).astype(float),
        "poisson": rng.poisson(np.exp(0.2 * (made.y - 3))).astype(float),
    }[loss]
    asked = (3,) if task == "fit" else (1, 2, 3)
    return Instance("tiny", made.X, y, asked, loss=loss, task=task)


SEEDS = {
    "g1": range(20),
    "g2": range(20),
    "S5": range(10),
    "S1": range(10),
    "S2": range(4),
    "S2path": range(2),
    "S2cv": range(2),
    "hard": range(10),
    "logistic": range(10),
    "cancer": (4, 5),
    "colon": (0, 499, 999, 1499, 1999),
    "tall": (0,),
    "poisson": range(5),
    "groups": range(5),
    "weights": range(5),
    "risk": range(12),
    "curve_p": (1_000, 3_000, 10_000, 30_000),
    "curve_n": (1_000, 10_000, 100_000),
    "sparse": (10_000, 100_000, 1_000_000),
}
