"""Exchanges of least squares from products with X alone, against refits of every pair."""

import numpy as np
import pytest
import torch

import ellzero
from ellzero.certificates import check_swaps, exchanges
from tests.certificates.reference import tensor


def design(seed, n=20, p=9, outputs=None, dependent=False):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p)) @ (np.eye(p) + 0.5 * rng.standard_normal((p, p)))
    if dependent:
        X[:, 1] = X[:, 0]
        X[:, 3] = X[:, 2] - X[:, 4]
    shape = (p,) if outputs is None else (p, outputs)
    y = X @ rng.standard_normal(shape) + rng.standard_normal(
        n if outputs is None else (n, outputs)
    )
    return X, y + 3.0, rng


def refit(X, y, support, ridge, weight, intercept):
    """Return the least value on a support of (output, column) pairs, by lstsq."""
    Y = y.reshape(len(y), -1)
    w = np.ones(len(X)) if weight is None else weight
    root = np.sqrt(w / w.sum())[:, None]
    total = 0.0
    for output in range(Y.shape[1]):
        columns = [c for o, c in support if o == output]
        A = np.column_stack([X[:, columns], np.ones(len(X))] if intercept else [X[:, columns]])
        below = np.sqrt(ridge) * np.eye(len(columns), A.shape[1])
        A = np.vstack([A * root, below])
        b = np.append(Y[:, output] * root[:, 0], np.zeros(len(columns)))
        if A.shape[1]:
            b = b - A @ np.linalg.lstsq(A, b, rcond=1e-12)[0]
        total += b @ b / 2
    return total


@pytest.mark.parametrize("case", range(24))
def test_the_best_exchange_of_every_pair_refitted(case):
    dependent, intercept = case % 3 == 2, case % 2 == 0
    outputs = 2 if case % 5 == 1 else None
    ridge = (0.0, 0.3)[case % 4 == 3]
    X, y, rng = design(case, outputs=outputs, dependent=dependent)
    weight = rng.uniform(0.2, 2.0, len(X)) if case % 7 < 3 else None
    objective = ellzero.LeastSquares(
        tensor(X),
        tensor(y),
        ridge={"coef": ridge, "intercept": 0.0} if intercept else ridge,
        fit_intercept=intercept,
        sample_weight=None if weight is None else tensor(weight),
    )
    params = objective.init_params()
    p, m = X.shape[1], outputs or 1
    # With dependent columns some supports hold both copies.
    inside = [0, 1, 4] if dependent else sorted(rng.permutation(p * m)[:3].tolist())
    coef = params["coef"].reshape(-1).clone()
    coef[inside] = tensor(rng.standard_normal(3))
    params = {**params, "coef": coef.reshape(params["coef"].shape)}
    for short in (False, True):
        ball = ellzero.L0Ball(4 if short else 3, names=("coef",))
        report = check_swaps(objective, ball, params)
        pairs = [divmod(e, p) for e in inside]
        outside = [divmod(e, p) for e in range(p * m) if e not in inside]
        sets = [[*pairs, j] for j in outside]
        if not short:
            sets = [[q for q in pairs if q != i] + [j] for i in pairs for j in outside]
        best = min(refit(X, y, s, ridge, weight, intercept) for s in sets)
        value = objective.value(params).item()
        assert report.n_checked == len(sets)
        assert report.is_complete
        assert report.best_decrease == pytest.approx(value - best, rel=1e-8, abs=1e-10)
        leaving, entering = report.best_swap
        chosen = [divmod(e, p) for e in inside if e != leaving] + [divmod(entering, p)]
        assert refit(X, y, chosen, ridge, weight, intercept) == pytest.approx(best, rel=1e-9)


def test_both_ways_agree(monkeypatch):
    X, y, rng = design(5, n=40, p=30)
    objective = ellzero.LeastSquares(tensor(X), tensor(y), fit_intercept=True)
    coef = torch.zeros(30).double()
    coef[:6] = tensor(rng.standard_normal(6))
    params = {"coef": coef, "intercept": torch.tensor(1.0).double()}
    ball = ellzero.L0Ball(6, names=("coef",))
    quick = check_swaps(objective, ball, params)
    monkeypatch.setattr(exchanges, "THIN", 2.0)
    slow = check_swaps(objective, ball, params)
    assert quick.best_swap == slow.best_swap
    assert quick.best_decrease == pytest.approx(slow.best_decrease, rel=1e-10)


def test_chunks_do_not_matter(monkeypatch):
    X, y, rng = design(6, n=40, p=30)
    objective = ellzero.LeastSquares(tensor(X), tensor(y))
    coef = torch.zeros(30).double()
    coef[:6] = tensor(rng.standard_normal(6))
    whole = check_swaps(objective, ellzero.L0Ball(6), {"coef": coef})
    monkeypatch.setattr(ellzero.objectives.linear, "CHUNK", 300)
    parts = check_swaps(objective, ellzero.L0Ball(6), {"coef": coef})
    assert whole.best_swap == parts.best_swap
    assert whole.best_decrease == pytest.approx(parts.best_decrease, rel=1e-12)


def test_no_matrix_of_all_pairs(monkeypatch):
    def refuse(self):
        raise AssertionError("a matrix of p by p was formed")

    monkeypatch.setattr(ellzero.objectives.linear.AbstractLinearLoss, "_gram_matrix", refuse)
    X, y, rng = design(7, n=40, p=3000)
    objective = ellzero.LeastSquares(tensor(X).float(), tensor(y).float(), fit_intercept=True)
    coef = torch.zeros(3000)
    coef[:5] = torch.as_tensor(rng.standard_normal(5)).float()
    params = {"coef": coef, "intercept": torch.tensor(1.0)}
    report = check_swaps(objective, ellzero.L0Ball(5, names=("coef",)), params)
    assert report.n_checked == 5 * 2995
    assert report.best_decrease > 0


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("kind", ["least squares", "softmax"])
def test_rows_and_diagonal_of_the_curvature(kind, outputs):
    X, y, rng = design(8, outputs=outputs)
    weight = tensor(rng.uniform(0.2, 2.0, len(X)))
    options = {"ridge": {"coef": 0.5, "intercept": 0.1}, "fit_intercept": True}
    if kind == "softmax":
        target = torch.as_tensor(rng.integers(0, 3, len(X)))
        objective = ellzero.Softmax(tensor(X), target, sample_weight=weight, **options)
    else:
        objective = ellzero.LeastSquares(tensor(X), tensor(y), sample_weight=weight, **options)
    bound = objective.curvature_bound()
    index = torch.tensor([3, 0, bound.size - 1])
    torch.testing.assert_close(objective.curvature_rows(index), bound.rows(index))
    torch.testing.assert_close(objective.curvature_diagonal(), bound.diagonal())


@pytest.mark.parametrize("seed", range(8))
def test_prices_of_groups_are_what_refits_say(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((30, 11)) @ (np.eye(11) + 0.4 * rng.standard_normal((11, 11)))
    Y = X @ rng.standard_normal((11, 2)) + rng.standard_normal((30, 2))
    if seed % 2:
        X[:, 8] = X[:, 7] - X[:, 9]
    ridge = (0.0, 0.5)[seed % 4 // 2]
    H, C = X.T @ X + ridge * np.eye(11), X.T @ Y

    def least(S):
        A = np.vstack([X[:, S], np.sqrt(ridge) * np.eye(len(S))])
        target = np.vstack([Y, np.zeros((len(S), 2))])
        rest = target - A @ np.linalg.lstsq(A, target, rcond=1e-12)[0]
        return float((rest**2).sum())

    S = [0, 1, 2, 5]
    beta = np.linalg.solve(H[np.ix_(S, S)], C[S])
    seen = exchanges.Products(
        H[np.ix_(S, S)], H[:, S], C - H[:, S] @ beta, beta, H.diagonal().copy(), spanned=1e-9
    )
    members = np.array([[3, 4, 6], [7, 8, 9]])
    blocks = np.array([H[np.ix_(g, g)] for g in members])
    value = least(S)
    more = [value - least([*S, *g]) for g in members]
    np.testing.assert_allclose(seen.group_additions(members, blocks), more, rtol=1e-7)
    for rows in ([3], [0, 1], [1, 2, 3]):
        stay = [S[i] for i in range(4) if i not in rows]
        wanted = [value - least([*stay, *g]) for g in members]
        np.testing.assert_allclose(
            seen.group_exchanges(rows, members, blocks), wanted, rtol=1e-7, atol=1e-9
        )
        single = seen.exchanges(rows, np.arange(11) == 10)
        assert single[10] == pytest.approx(value - least([*stay, 10]), rel=1e-8, abs=1e-9)
        assert np.isneginf(single[:10]).all()
