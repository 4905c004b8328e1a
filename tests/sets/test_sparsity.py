import dataclasses

import pytest
import torch

from ellzero.errors import InvalidParameterError
from ellzero.sets import L0Ball


def coef(*entries, dtype=torch.float32):
    return {"coef": torch.tensor(entries, dtype=dtype)}


def test_squares_that_underflow_do_not_make_ties():
    point = coef(1e-30, 2e-30, -3e-30)
    assert L0Ball(1).project(point)["coef"].nonzero().item() == 2
    for bounds in ({"nonnegative": True}, {"lower": -1.0, "upper": 1.0}):
        kept = L0Ball(1, **bounds).project(coef(1e-30, 2e-30))["coef"].nonzero().item()
        assert kept == 1


def test_bounds_do_not_overflow_at_the_largest_number():
    huge = torch.finfo(torch.float32).max
    projected = L0Ball(1, nonnegative=True).project(coef(-huge, 1.0, float("-inf")))
    assert projected["coef"].tolist() == [0.0, 1.0, 0.0]


def test_a_clipped_large_entry_wins_over_a_smaller_one_that_fits():
    # Kept at 1, the entry 5 saves 25 - 16 = 9, more than the 1 that the entry 1 saves.
    assert L0Ball(1, upper=1.0).project(coef(1.0, 5.0))["coef"].tolist() == [0.0, 1.0]
    # The negative entry saves nothing.
    assert L0Ball(1, lower=0.0).project(coef(-9.0, 0.5))["coef"].tolist() == [0.0, 0.5]


def test_gains_are_magnitudes_and_with_bounds_roots_of_savings():
    point = coef(3.0, -1.0, 0.0, dtype=torch.float64)
    assert L0Ball(1).gains(point)["coef"].tolist() == [3.0, 1.0, 0.0]
    gains = L0Ball(1, lower=-0.5, upper=2.0).gains(point)["coef"]
    assert gains.square().tolist() == pytest.approx([9 - 1, 1 - 0.25, 0.0], rel=1e-15)


def test_violation_counts_entries_and_adds_the_distance_to_the_bounds():
    ball = L0Ball(1, upper=1.0)
    assert ball.violation(coef(4.0, 5.0, 0.0)).item() == 1 + 5.0
    assert ball.violation(coef(4.0, 5.0, 0.0)).dtype == torch.float64


def test_one_name_may_be_given_without_a_tuple():
    assert L0Ball(1, "coef") == L0Ball(1, ("coef",))


def test_replace_keeps_the_bounds():
    ball = dataclasses.replace(L0Ball(3, nonnegative=True), n_nonzero=2)
    assert (ball.n_nonzero, ball.lower, ball.upper) == (2, 0.0, None)


BUDGET_HINT = "\nhint: Pass the largest number of entries that may differ from zero."
MESSAGES = [
    (
        lambda: L0Ball(-1),
        "`n_nonzero` must be an integer of at least 0, got -1." + BUDGET_HINT,
    ),
    (
        lambda: L0Ball(1.5),
        "`n_nonzero` must be an integer of at least 0, got 1.5." + BUDGET_HINT,
    ),
    (
        lambda: L0Ball(True),
        "`n_nonzero` must be an integer of at least 0, got True." + BUDGET_HINT,
    ),
    (
        lambda: L0Ball(3).check_params(coef(1.0, 2.0)),
        "`n_nonzero` must be an integer between 0 and 2, the number of entries in 'coef', got 3."
        "\nhint: Pass `n_nonzero=2` to keep every entry.",
    ),
    (
        lambda: L0Ball(4).check_params({**coef(1.0, 2.0), "intercept": torch.tensor(1.0)}),
        "`n_nonzero` must be an integer between 0 and 3, the number of entries in 'coef' and "
        "'intercept', got 4.\nhint: Pass `n_nonzero=3` to keep every entry.",
    ),
    (
        lambda: L0Ball(1, ("ceof",)).check_params(coef(1.0)),
        "Unknown tensor 'ceof' in `names`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: L0Ball(1, ("ceof",)).project(coef(1.0)),
        "Unknown tensor 'ceof' in `names`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: L0Ball(1, ()),
        "`names` must name at least one tensor, got none.\nhint: Pass None to cover every tensor.",
    ),
    (lambda: L0Ball(1, (3,)), "`names` must hold strings, got 3."),
    (
        lambda: L0Ball(1, ("coef", "coef")),
        "`names` must not repeat a name, got 'coef' twice.",
    ),
    (
        lambda: L0Ball(1, lower=0.5),
        "`lower` must be at most 0, so that an entry can be zero, got 0.5."
        "\nhint: Shift the variables, or use `Box` alone.",
    ),
    (
        lambda: L0Ball(1, upper=-2.0),
        "`upper` must be at least 0, so that an entry can be zero, got -2."
        "\nhint: Shift the variables, or use `Box` alone.",
    ),
    (
        lambda: L0Ball(1, upper=float("inf")),
        "`upper` must be a finite number, got inf.",
    ),
    (
        lambda: L0Ball(1).select(coef(1.0), factor=0),
        "`factor` must be an integer of at least 1, got 0.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MESSAGES)
def test_messages(call, message):
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert str(error.value) == message
