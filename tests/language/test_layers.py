"""One layer: against enumeration, refits by linear solves, and the closed form of the bound."""

import itertools

import pytest
import torch

from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.language import prune_layer
from ellzero.language.bounds import lower_bound, separable_part
from ellzero.language.layers import metric_form, prices, solve_on
from ellzero.sets import GroupL0Ball, L0Ball, NMPattern

DAMPING = 0.01


def layer(n_rows: int, n_inputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n_inputs, n_inputs, generator=generator, dtype=torch.float64)
    inputs = torch.randn(40, n_inputs, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(n_rows, n_inputs, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs


def damp(gram: torch.Tensor) -> torch.Tensor:
    return gram + torch.diag(torch.full_like(gram[0], DAMPING * float(gram.diagonal().mean())))


def error_on(row: torch.Tensor, gram: torch.Tensor, support: tuple[int, ...]) -> float:
    """Return the damped error of the best row on a support, by a linear solve."""
    error = row.clone()
    if support:
        index = list(support)
        error[index] -= torch.linalg.solve(gram[index][:, index], gram[index] @ row)
    return float(error @ gram @ error)


def best_rows(row: torch.Tensor, gram: torch.Tensor, most: int) -> list[float]:
    """Return the optimum for 0, 1, ..., `most` nonzeros in a row."""
    size = len(row)
    return [
        min(error_on(row, gram, s) for s in itertools.combinations(range(size), k))
        for k in range(most + 1)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_the_value_lies_between_bound_and_near_the_optimum(seed: int) -> None:
    weight, gram = layer(2, 7, seed)
    table = [best_rows(row, damp(gram), 5) for row in weight]
    optimum = min(table[0][k] + table[1][5 - k] for k in range(6))
    found = prune_layer(weight, gram, L0Ball(5))
    assert found.n_nonzero == 5
    assert found.lower_bound is not None
    assert 0.0 < found.lower_bound <= optimum * (1 + 1e-9)
    # The search is no proof, but is never below the optimum.
    assert optimum * (1 - 1e-9) <= found.value <= found.start_value * (1 + 1e-9)


def test_exchanges_find_most_optima_that_splitting_misses() -> None:
    hits = {0: 0, 6: 0}
    for seed in range(20):
        weight, gram = layer(1, 8, 100 + seed)
        optimum = best_rows(weight[0], damp(gram), 3)[3]
        for passes in hits:
            value = prune_layer(weight, gram, L0Ball(3), max_swaps=passes).value
            assert value >= optimum * (1 - 1e-9)
            hits[passes] += value <= optimum * (1 + 1e-6)
    assert hits[6] >= 14
    assert hits[6] > hits[0]


@pytest.mark.parametrize("seed", range(4))
def test_a_pattern_is_bounded_by_enumeration(seed: int) -> None:
    weight, gram = layer(1, 8, seed)
    pairs = list(itertools.combinations(range(4), 2))
    optimum = min(
        error_on(weight[0], damp(gram), (*a, *(4 + j for j in b)))
        for a, b in itertools.product(pairs, pairs)
    )
    found = prune_layer(weight, gram, NMPattern(2, 4))
    assert (found.weight.reshape(-1, 4) != 0).sum(1).max() <= 2
    assert found.lower_bound is not None
    assert 0.0 < found.lower_bound <= optimum * (1 + 1e-9)
    assert found.value >= optimum * (1 - 1e-9)


def test_prices_are_differences_of_refitted_values() -> None:
    weight, gram = layer(3, 7, 5)
    dense, metric, _, dead = metric_form(weight, gram, DAMPING)
    supports = [(0, 2, 5), (1, 3), (0, 1, 2, 6)]
    mask = torch.zeros(3, 7, dtype=torch.bool)
    for row, support in enumerate(supports):
        mask[row, list(support)] = True
    found = prices(dense, metric, mask, ~dead)
    for row, support in enumerate(supports):
        now = error_on(dense[row], metric, support)
        whole = float(dense[row] @ metric @ dense[row])
        assert whole - float(found.saved[row]) == pytest.approx(now, rel=1e-9)
        others = [i for i in range(7) if i not in support]
        for j in support:
            without = tuple(s for s in support if s != j)
            change = error_on(dense[row], metric, without) - now
            assert float(found.cost[row, j]) == pytest.approx(change, rel=1e-7)
            swaps = {i: error_on(dense[row], metric, (*without, i)) - now for i in others}
            best = min(swaps, key=lambda i: swaps[i])
            assert float(found.swap[row, j]) == pytest.approx(swaps[best], rel=1e-7, abs=1e-9)
            assert int(found.into[row, j]) == best
        for i in others:
            change = now - error_on(dense[row], metric, (*support, i))
            assert float(found.gain[row, i]) == pytest.approx(change, rel=1e-7)


def test_conjugate_gradients_solve_every_row() -> None:
    weight, gram = layer(3, 6, 2)
    dense, metric, _, _ = metric_form(weight, gram, DAMPING)
    mask = torch.tensor([[1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]).bool()
    point = solve_on(dense, metric, mask, torch.zeros_like(dense))
    index = [0, 2, 4]
    expected = torch.linalg.solve(metric[index][:, index], (metric @ dense[0])[index])
    torch.testing.assert_close(point[0, index], expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(point[1], dense[1], rtol=1e-7, atol=1e-7)
    assert not point[2].any()


def test_the_bound_is_the_optimum_where_inputs_are_uncorrelated() -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, 1.5]])
    found = prune_layer(weight, torch.eye(3), L0Ball(3), damping=0.0)
    # Left out: 0.25 + 1 + 2.25.
    assert found.value == pytest.approx(3.5, rel=1e-6)
    assert found.lower_bound == pytest.approx(3.5, rel=1e-6)


def test_what_is_taken_off_leaves_a_semidefinite_matrix() -> None:
    _, gram = layer(1, 9, 3)
    diagonal = separable_part(damp(gram))
    assert diagonal.min() > 0
    assert torch.linalg.eigvalsh(damp(gram) - torch.diag(diagonal))[0] > -1e-9 * gram.trace()


def test_the_bound_falls_with_the_budget_and_holds_without_a_point() -> None:
    weight, gram = layer(2, 6, 1)
    dense, metric, _, _ = metric_form(weight, gram, DAMPING)
    bounds = [lower_bound(dense, metric, L0Ball(k)) for k in (2, 6, 12)]
    assert bounds[0] > bounds[1] > bounds[2] >= 0.0
    assert bounds[2] == pytest.approx(0.0, abs=1e-9)


def test_row_weights_move_the_budget() -> None:
    weight, gram = layer(2, 6, 4)
    counts = [
        (prune_layer(weight, gram, L0Ball(6), row_weights=torch.tensor(w)).weight[0] != 0).sum()
        for w in ([1.0, 100.0], [100.0, 1.0])
    ]
    assert counts[0] < counts[1]


def test_dead_inputs_lose_their_weights() -> None:
    weight, gram = layer(2, 6, 4)
    gram[2] = 0.0
    gram[:, 2] = 0.0
    found = prune_layer(weight, gram, L0Ball(12))
    assert found.n_dead == 1
    assert not found.weight[:, 2].any()
    assert found.relative_error < 1e-12


def test_scale_of_the_inputs_changes_nothing() -> None:
    weight, gram = layer(3, 6, 7)
    one, other = (prune_layer(weight, g, L0Ball(7)) for g in (gram, 1e6 * gram))
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("budget", [0, 18])
def test_empty_and_full_budgets(budget: int) -> None:
    weight, gram = layer(3, 6, 7)
    found = prune_layer(weight, gram, L0Ball(budget))
    assert found.n_nonzero == budget
    assert found.relative_error == pytest.approx(0.0 if budget else 1.0, abs=1e-12)


def test_refusals() -> None:
    weight, gram = layer(2, 4, 0)
    with pytest.raises(IncompatibleError, match=r"shape \(2, 4\) does not go with .* \(3, 3\)"):
        prune_layer(weight, gram[:3, :3], L0Ball(2))
    with pytest.raises(IncompatibleError, match="`L0Ball` or an `NMPattern`, got GroupL0Ball"):
        prune_layer(weight, gram, GroupL0Ball(1, {"weight": torch.zeros(2, 4).long()}))
    with pytest.raises(NonFiniteError, match="Gram matrix of the layer has a NaN"):
        prune_layer(weight, gram * float("nan"), L0Ball(2))
    with pytest.raises(InvalidParameterError, match="`row_weights` must be 2 nonnegative"):
        prune_layer(weight, gram, L0Ball(2), row_weights=torch.ones(3))
    with pytest.raises(InvalidParameterError, match="4 inputs is not positive definite"):
        prune_layer(weight, torch.ones(4, 4), L0Ball(2), damping=0.0)


def perspective(weight: torch.Tensor, metric: torch.Tensor, most: int) -> float:
    """Return the perspective relaxation of one row, by general convex optimization."""
    cvxpy = pytest.importorskip("cvxpy")
    diagonal = separable_part(metric)
    rest = (metric - torch.diag(diagonal)).numpy()
    values, vectors = torch.linalg.eigh(torch.from_numpy(rest))
    root = (values.clamp(min=0.0).sqrt()[:, None] * vectors.T).numpy()
    w, d = weight.numpy(), diagonal.numpy()
    v, z = cvxpy.Variable(len(w)), cvxpy.Variable(len(w))
    parts = [d[j] * cvxpy.quad_over_lin(v[j], z[j]) for j in range(len(w))]
    objective = cvxpy.sum_squares(root @ (w - v)) + sum(parts) - 2.0 * (d * w) @ v
    problem = cvxpy.Problem(cvxpy.Minimize(objective), [z >= 0.0, z <= 1.0, cvxpy.sum(z) <= most])
    problem.solve(solver="CLARABEL")
    return float(problem.value + (d * w * w).sum())


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_nears_the_perspective_relaxation(seed: int) -> None:
    weight, gram = layer(1, 10, 40 + seed)
    dense, metric, _, _ = metric_form(weight, gram, DAMPING)
    limit = perspective(dense[0], metric, 4)
    optimum = best_rows(dense[0], metric, 4)[4]
    bound = lower_bound(dense, metric, L0Ball(4), max_iter=400)
    assert limit <= optimum * (1 + 1e-6)
    assert 0.99 * limit <= bound <= limit * (1 + 1e-5)
    # What one selection gives without the search for U.
    assert lower_bound(dense, metric, L0Ball(4), max_iter=0) < 0.9 * bound
    rows = lower_bound(dense.repeat(3, 1), metric, NMPattern(4, 10), max_iter=400)
    assert rows == pytest.approx(3 * bound, rel=2e-3)


def test_the_bound_holds_for_a_run_that_is_cut_short() -> None:
    weight, gram = layer(1, 7, 9)
    dense, metric, _, _ = metric_form(weight, gram, DAMPING)
    optimum = min(
        error_on(dense[0], metric, (*a, *b))
        for a in itertools.combinations(range(4), 2)
        for b in itertools.combinations((4, 5, 6), 2)
    )
    bound = lower_bound(dense, metric, NMPattern(2, 4))
    assert 0.0 < bound <= optimum * (1 + 1e-9)
