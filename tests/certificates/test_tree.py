"""Trees of boxes: their bounds against enumeration, and what happens to altered ones."""

import dataclasses
import itertools

import numpy as np
import pytest

from ellzero.certificates import SquaresProblem, check_tree
from ellzero.kernels.branch_check import least_in_box
from ellzero.subset.exact import prove
from ellzero.subset.gram import gram_of


def table(n, p, rho, noise, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    for j in range(1, p):
        X[:, j] = rho * X[:, j - 1] + np.sqrt(1 - rho**2) * X[:, j]
    return X, X[:, : max(1, p // 3)].sum(1) + noise * rng.standard_normal(n)


def squares(X, y, k, ridge, always=(), forbidden=()):
    """Return the problem in the units of `prove` without an intercept."""
    matrix = X.T @ X + len(X) * ridge * np.eye(X.shape[1])
    return SquaresProblem(matrix, X.T @ y, float(y @ y), k, always, forbidden, least=0.0)


def best_of_all(problem):
    """Return the least value of the problem, by trying every support."""
    p, best = problem.linear.size, problem.energy
    rest = [j for j in range(p) if j not in problem.always and j not in problem.forbidden]
    for chosen in itertools.combinations(rest, problem.budget - len(problem.always)):
        S = [*problem.always, *chosen]
        b = np.linalg.lstsq(problem.matrix[np.ix_(S, S)], problem.linear[S], rcond=None)[0]
        best = min(best, problem.energy - float(problem.linear[S] @ b))
    return best


CASES = [
    (40, 12, 4, 0.5, 1.0, 0.01, (), ()),
    (40, 12, 4, 0.9, 3.0, 0.001, (2,), (5, 7)),
    (30, 14, 5, 0.8, 3.0, 0.0, (), ()),
    (10, 13, 3, 0.2, 2.0, 0.1, (), ()),
    (8, 12, 3, 0.0, 2.0, 0.0, (), ()),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [0, 2, None])
def test_bound_is_below_the_optimum_and_as_good_as_claimed(case, seed, limit) -> None:
    n, p, k, rho, noise, ridge, always, forbidden = case
    X, y = table(n, p, rho, noise, seed)
    problem = squares(X, y, k, ridge, always, forbidden)
    gram = gram_of(X, y, fit_intercept=False)
    result = prove(gram, k, ridge=ridge, always=always, forbidden=forbidden, max_nodes=limit)
    checked = check_tree(problem, result.proof)
    best, claimed = best_of_all(problem), result.lower_bound * 2 * n
    assert checked.reason is None
    assert checked.lower_bound <= best * (1 + 1e-11)
    assert checked.lower_bound >= claimed * (1 - 1e-9)
    if limit is None:
        assert checked.lower_bound >= best * (1 - 1e-6)


def alter(proof, rng):
    """Return a proof with something in it changed."""
    name = rng.choice(
        ["steps", "values", "places", "decisions", "weights", "thresholds", "projected", "cut",
         "point_ends", "model_starts", "features"]
    )  # fmt: skip
    if name == "cut":
        n = int(rng.integers(1, len(proof) + 1))
        points, decided = proof.point_ends[n - 1], proof.decision_ends[n - 1]
        models = np.minimum(proof.model_starts, n)
        return dataclasses.replace(
            proof, steps=proof.steps[:n], point_ends=proof.point_ends[:n],
            decision_ends=proof.decision_ends[:n], places=proof.places[:points],
            values=proof.values[:points], decisions=proof.decisions[:decided],
            model_starts=models,
        )  # fmt: skip
    part = getattr(proof, name).copy()
    if part.size == 0:
        return proof
    at = int(rng.integers(part.size))
    if part.dtype.kind == "f":
        part.flat[at] = part.flat[at] * rng.choice([-1.0, 0.5, 3.0]) + rng.choice([0.0, 0.3])
    else:
        part.flat[at] = int(part.flat[at]) + int(rng.integers(-3, 4))
    return dataclasses.replace(proof, **{name: part})


def test_no_altered_tree_proves_too_much() -> None:
    rng = np.random.default_rng(0)
    refused = weaker = 0
    for seed in range(8):
        n, p, k, rho, noise, ridge, always, forbidden = CASES[seed % len(CASES)]
        X, y = table(n, p, rho, noise, seed)
        problem = squares(X, y, k, ridge, always, forbidden)
        best = best_of_all(problem)
        proof = prove(
            gram_of(X, y, fit_intercept=False), k, ridge=ridge, always=always, forbidden=forbidden
        ).proof
        whole = check_tree(problem, proof).lower_bound
        for _ in range(100):
            changed = proof
            for _ in range(int(rng.integers(1, 4))):
                changed = alter(changed, rng)
            checked = check_tree(problem, changed)
            assert checked.lower_bound <= best * (1 + 1e-11)
            refused += checked.reason is not None
            weaker += checked.reason is None and checked.lower_bound < whole * (1 - 1e-6)
    assert refused > 100
    assert weaker > 100


def test_a_proof_of_other_data_proves_less() -> None:
    X, y = table(40, 12, 0.5, 1.0, 0)
    proof = prove(gram_of(X, y, fit_intercept=False), 4, ridge=0.01).proof
    for seed in range(1, 6):
        other = squares(*table(40, 12, 0.5, 1.0, seed), 4, 0.01)
        assert check_tree(other, proof).lower_bound <= best_of_all(other) * (1 + 1e-11)
    # A larger budget makes every box larger.
    wider = squares(X, y, 5, 0.01)
    assert check_tree(wider, proof).lower_bound <= best_of_all(wider) * (1 + 1e-11)


def test_refusals_say_what_is_wrong() -> None:
    X, y = table(40, 12, 0.5, 1.0, 0)
    problem = squares(X, y, 4, 0.01)
    proof = prove(gram_of(X, y, fit_intercept=False), 4, ridge=0.01).proof
    replace = dataclasses.replace
    cases = [
        (problem, replace(proof, features=proof.features[1:]),
         "The proof leaves out features: [0]."),
        (problem, replace(proof, features=proof.features + 1),
         "The proof names features that are not among the 12."),
        (problem, replace(proof, weights=proof.weights[1:]),
         "The parts of the proof do not fit together."),
        (replace(problem, always=(0, 1, 2, 3, 4)), proof,
         "More features are always in than the budget allows."),
        (problem, replace(proof, places=proof.places + 100),
         "The steps of the proof do not follow from one another."),
        (replace(problem, matrix=0 * problem.matrix), proof,
         "A feature of the proof has no curvature."),
    ]  # fmt: skip
    for asked, given, reason in cases:
        checked = check_tree(asked, given)
        assert (checked.reason, checked.lower_bound) == (reason, -np.inf)


def test_enumeration_of_a_box() -> None:
    rng = np.random.default_rng(1)
    for trial in range(20):
        X, y = table(20, 9, 0.7, 1.0, trial)
        X /= np.linalg.norm(X, axis=0)
        h, c, e = X.T @ X, X.T @ y, float(y @ y)
        state = rng.integers(-1, 2, 9).astype(np.int8)
        inside, free = np.flatnonzero(state > 0), np.flatnonzero(state == 0)
        for room in range(3):
            best = e
            for more in itertools.combinations(free, min(room, free.size)):
                S = [*inside, *more]
                best = min(
                    best, float(np.linalg.lstsq(X[:, S], y, rcond=None)[1].sum()) if S else e
                )
            found = least_in_box(h, c, e, state, room)
            assert found <= best
            assert found == pytest.approx(best, rel=1e-10)
        # More than two of many are not enumerated.
        if free.size > 3:
            assert least_in_box(h, c, e, state, 3) == -np.inf
        # A column twice: nothing is claimed where rounding decides.
        h[:, 1], h[1], c[1] = h[:, 0], h[0], c[0]
        h[0, 1] = h[1, 0] = 1 - 1e-10
        assert least_in_box(h, c, e, np.array([1, 1] + [-1] * 7, np.int8), 0) == -np.inf


def test_evidence_outgrows_its_limit() -> None:
    X, y = table(40, 12, 0.9, 3.0, 0)
    gram = gram_of(X, y)
    assert prove(gram, 4, evidence=0).proof is None
    assert prove(gram, 4, evidence=10).proof is None
    assert prove(gram, 4, evidence=10**6).proof is not None
