"""Proofs by enumeration are accepted, tampered ones refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import check_proof
from tests.certificates.reference import (
    all_supports,
    classes,
    classifier_minima,
    least_squares_optimum,
    logistic_design,
    regression,
    tensor,
)

N, BUDGET, RIDGE = 6, 3, 0.05


def _enumeration():
    """Return a problem, its optimum and a proof with one box for each support."""
    X, y = classes(7, n=N)
    supports = all_supports(N, BUDGET)
    values, w = classifier_minima(logistic_design(X), y, RIDGE, supports)
    points = np.zeros((len(supports), N))
    points[np.arange(len(supports))[:, None], supports] = w
    proof = ellzero.Proof(
        included=tuple(tuple(int(i) for i in s) for s in supports),
        excluded=tuple(tuple(i for i in range(N) if i not in s) for s in supports),
        points=points.tolist(),
    )
    objective = ellzero.Logistic(tensor(X), torch.as_tensor(y), ridge=RIDGE)
    return objective, proof, values


def _without(proof, index):
    keep = [i for i in range(len(proof)) if i != index]
    return ellzero.Proof(
        tuple(proof.included[i] for i in keep),
        tuple(proof.excluded[i] for i in keep),
        [proof.points[i] for i in keep],
    )


def test_enumeration_is_a_proof():
    objective, proof, values = _enumeration()
    report = check_proof(objective, ellzero.L0Ball(BUDGET), proof, values.min())
    assert report.valid
    assert report.reason is None
    np.testing.assert_allclose(report.lower_bound, values.min(), rtol=1e-9)


def test_every_missing_box_is_noticed():
    objective, proof, values = _enumeration()
    for index in range(len(proof)):
        report = check_proof(
            objective, ellzero.L0Ball(BUDGET), _without(proof, index), values.min()
        )
        assert not report.valid
        assert report.lower_bound == -np.inf
        assert "leave out supports" in report.reason


def test_every_weak_point_is_noticed():
    objective, proof, values = _enumeration()
    for index in range(len(proof)):
        points = [list(p) for p in proof.points]
        points[index] = [10.0] * N
        report = check_proof(
            objective, ellzero.L0Ball(BUDGET), replace(proof, points=points), values.min()
        )
        assert not report.valid
        assert "weakest box" in report.reason


def test_value_of_another_support_is_refused():
    objective, proof, values = _enumeration()
    second = np.sort(values)[1]
    assert not check_proof(objective, ellzero.L0Ball(BUDGET), proof, second).valid


def test_larger_budget_is_refused():
    objective, proof, values = _enumeration()
    assert not check_proof(objective, ellzero.L0Ball(BUDGET + 1), proof, values.min()).valid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": [[0.0] * N]}, "different numbers"),
        ({"included": ((0, 9),), "excluded": ((),), "points": [[0.0] * N]}, "does not count"),
        ({"included": ((0,),), "excluded": ((0,),), "points": [[0.0] * N]}, "same entry"),
        ({"included": ((),), "excluded": ((),), "points": [[0.0] * 2]}, "6 finite entries"),
        ({"included": ((),), "excluded": ((),), "points": [[np.nan] * N]}, "6 finite entries"),
        ({"included": (), "excluded": (), "points": []}, "leave out supports"),
    ],
)
def test_malformed(change, words):
    objective, proof, values = _enumeration()
    report = check_proof(objective, ellzero.L0Ball(BUDGET), replace(proof, **change), values.min())
    assert not report.valid
    assert words in report.reason


def test_overlapping_boxes_that_no_split_shows_are_refused():
    objective, _, values = _enumeration()
    proof = ellzero.Proof(
        included=((0,), (1,), ()), excluded=((1,), (2,), (0, 1)), points=[[0.0] * N] * 3
    )
    report = check_proof(objective, ellzero.L0Ball(BUDGET), proof, values.min())
    assert not report.valid
    assert "leave out supports" in report.reason


def _tree(objective, budget, n, value, minimize):
    """Return the leaves of a plain depth-first branch and bound."""
    from ellzero.certificates import box_bound

    leaves = ([], [], [])
    stack = [((), ())]
    while stack:
        inc, exc = stack.pop()
        rest = [i for i in range(n) if i not in inc and i not in exc]
        if len(inc) + len(rest) < budget:
            continue
        point = minimize([i for i in range(n) if i not in exc])
        masks = [torch.tensor([[i in box for i in range(n)]]) for box in (inc, exc)]
        bound = box_bound(objective, tensor(point)[None], budget, *masks)
        if bound >= value * (1 - 1e-9) or len(inc) == budget or not rest:
            if len(inc) == budget:
                point = minimize(list(inc))
            for side, item in zip(leaves, (inc, exc, point.tolist()), strict=True):
                side.append(item)
            continue
        stack += [((*inc, rest[0]), exc), (inc, (*exc, rest[0]))]
    return ellzero.Proof(tuple(leaves[0]), tuple(leaves[1]), leaves[2])


def test_tree_of_branch_and_bound():
    X, y = regression(3, n=9)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), ridge=0.1)
    best, point = least_squares_optimum(X, y, 0.1, 3)

    def minimize(support):
        A = X[:, support]
        out = np.zeros(9)
        gram = A.T @ A / len(y) + 0.1 * np.eye(len(support))
        out[support] = np.linalg.solve(gram, A.T @ y / len(y))
        return out

    proof = _tree(objective, 3, 9, best, minimize)
    assert 5 < len(proof) < 130
    ball = ellzero.L0Ball(3)
    assert check_proof(objective, ball, proof, best).valid
    refused = [
        not check_proof(objective, ball, _without(proof, i), best).valid for i in range(len(proof))
    ]
    assert all(refused)
    certificate = ellzero.verify(
        ellzero.Problem(objective, ball), {"coef": tensor(point)}, proof=proof
    )
    assert certificate.claim is ellzero.Claim.OPTIMAL
    broken = ellzero.verify(
        ellzero.Problem(objective, ball), {"coef": tensor(point)}, proof=_without(proof, 0)
    )
    assert broken.claim is not ellzero.Claim.OPTIMAL
    assert any(not c.passed for c in broken.checks)


def test_smaller_supports_need_no_box():
    # Excluding all but two entries leaves no support of three, so no box is needed there.
    objective, proof, values = _enumeration()
    assert all(len(i) == BUDGET for i in proof.included)
    assert check_proof(objective, ellzero.L0Ball(BUDGET), proof, values.min()).valid
