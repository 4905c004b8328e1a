import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import InvalidParameterError
from ellzero.nn import schedules

STEPS = st.integers(1, 200)


@given(STEPS, st.integers(1, 500), st.integers(0, 500), st.floats(0, 0.9), st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_ramp_falls_from_all_to_the_budget(total, budget, more, start, length):
    end = min(start + length, 1.0)
    ramp = schedules.ramp(start, end, total)
    counts = [ramp.budget(t, budget, budget + more) for t in range(total + 3)]
    assert counts[0] == budget + more
    assert counts == sorted(counts, reverse=True)
    for t, count in enumerate(counts):
        assert type(count) is int
        if ramp.is_final(t):
            assert count == budget


def test_ramp_follows_the_cubic_formula():
    ramp = schedules.ramp(0.2, 0.6, 100)
    assert ramp.budget(20, 1000, 9000) == 9000
    assert ramp.budget(40, 1000, 9000) == 1000 + 8000 // 8
    assert ramp.budget(60, 1000, 9000) == 1000
    assert [ramp.is_final(t) for t in (59, 60)] == [False, True]


def test_large_budgets_stay_exact():
    # float32 would round 2**24 + 1.
    n = 2**24 + 1
    assert schedules.ramp(0.0, 0.5, 10).budget(0, 1, n) == n
    assert schedules.ramp(0.0, 0.5, 10).budget(5, n, 2 * n) == n


@given(STEPS, STEPS, STEPS, st.floats(0.01, 1))
@settings(max_examples=100, deadline=None)
def test_phases_alternate_and_end_sparse(dense, sparse, total, last):
    phases = schedules.phases(dense, sparse, total, last_sparse=last)
    counts = [phases.budget(t, 3, 9) for t in range(total)]
    assert set(counts) <= {3, 9}
    assert phases.budget(total, 3, 9) == 3
    assert phases.is_final(total)
    for t, count in enumerate(counts):
        if not phases.is_final(t):
            assert count == (9 if t % (dense + sparse) < dense else 3)


def test_freeze_comes_after_the_end():
    ramp = schedules.ramp(0.0, 0.5, 10, freeze=0.8)
    assert [ramp.is_frozen(t) for t in (7, 8, 20)] == [False, True, True]
    assert not schedules.ramp(0.0, 0.5, 10).is_frozen(20)
    with pytest.raises(InvalidParameterError, match="`freeze` must be at least `end`"):
        schedules.ramp(0.0, 0.5, 10, freeze=0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.5, 10), "`start` must be below `end`, got 0.5 and 0.5."),
        ((0.0, 1.5, 10), "`end` must be a number between 0 and 1, got 1.5."),
        ((0.0, 0.5, 0), "`total_steps` must be an integer of at least 1, got 0."),
        ((0.0, 0.5, 10.0), "`total_steps` must be an integer of at least 1, got 10.0."),
    ],
)
def test_ramp_refuses(arguments, message):
    with pytest.raises(InvalidParameterError) as caught:
        schedules.ramp(*arguments)
    assert caught.value.message == message
