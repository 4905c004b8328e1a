"""The anchor problem of layer-wise pruning: ours beside all rivals, in every cell."""

import pytest

from benchmarks.language import alps, sparsegpt
from benchmarks.layer_pruning import LEVELS, METHODS, error, measure, problem, refit
from ellzero.sets import L0Ball


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", [0, 5])
def test_no_rival_has_a_smaller_error(seed: int, level: str) -> None:
    table = measure(seed, level)
    best = min(table[name] for name in METHODS if not name.startswith("ellzero"))
    assert table["bound"] <= table["ellzero, exchanges"] <= table["ellzero"] * (1 + 1e-9)
    assert table["ellzero, exchanges"] <= best
    # As the pilot found: exact weights help every mask, and ALPS beats the other rivals.
    for name in ("magnitude", "wanda", "sparsegpt"):
        assert table[f"{name} + refit"] < table[name]
    assert table["alps"] == best


def test_rivals_keep_the_budget_and_their_error_is_measured_without_damping() -> None:
    weight, gram = problem(1)
    budget = int(0.3 * weight.numel())
    for rival in (alps, sparsegpt):
        new = rival(weight, gram, "0.3")
        assert int((new != 0).sum()) <= budget
        assert L0Ball(budget).violation({"weight": new}) == 0.0
        assert error(weight, gram, refit(weight, gram, new)) <= error(weight, gram, new)
