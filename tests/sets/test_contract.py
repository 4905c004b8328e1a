"""Every sparse set against its definition, by enumeration of all supports."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import NonFiniteError
from ellzero.tensors.named import Batch, row, stack
from tests.sets.cases import CASES

BOUNDS = [
    {},
    {"nonnegative": True},
    {"lower": -0.5},
    {"lower": -2.0, "upper": 0.75},
    {"upper": 0.0},
    {"lower": 0.0, "upper": 0.0},
]
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 2.0, -2.0]), st.floats(-100, 100, width=32)
)
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True, database=None)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def values(case, elements=NUMBERS):
    return st.lists(elements, min_size=case.size, max_size=case.size)


def interval(bounds):
    lower = 0.0 if bounds.get("nonnegative") else bounds.get("lower", -np.inf)
    return lower, bounds.get("upper", np.inf)


@every_case
@EXAMPLES
@given(data=st.data())
def test_projection_is_a_nearest_member(case, data):
    flat = np.array(data.draw(values(case)))
    bounds = data.draw(st.sampled_from(BOUNDS))
    ball = case.make(**bounds)
    point = case.point(flat)
    ball.check_params(point)
    projected = ball.project(point)
    found = case.flat(projected)

    free = ~np.array(case.covered)
    clipped = np.where(free, flat, np.clip(flat, *interval(bounds)))
    candidates = np.where(case.supports(), clipped, 0.0)
    distances = ((candidates - flat) ** 2).sum(1)
    # The candidates are exact, so only the order of summation differs.
    assert ((found - flat) ** 2).sum() <= distances.min() * (1 + 1e-13)
    assert (found == candidates).all(1).any()
    assert np.array_equal(found[free], flat[free])

    assert ball.violation(projected).item() == 0
    again = ball.project(projected)
    assert all(torch.equal(again[name], projected[name]) for name in point)
    assert list(projected) == list(point)


@every_case
@pytest.mark.parametrize("factor", [1, 2])
@EXAMPLES
@given(data=st.data())
def test_select_maximizes_the_sum_of_scores(case, factor, data):
    scores = np.array(data.draw(values(case, st.integers(0, 4))), dtype=float)
    masks = case.make().select(case.point(scores), factor=factor)
    assert all(mask.dtype == torch.bool for mask in masks.values())
    chosen = case.flat(masks)
    supports = case.supports(factor)
    assert (chosen == supports).all(1).any()
    # Small integers add up exactly.
    assert scores[chosen].sum() == (supports * scores).sum(1).max()
    assert chosen[~np.array(case.covered)].all()


@every_case
@EXAMPLES
@given(data=st.data())
def test_projection_commutes_with_sign_flips_and_scaling(case, data):
    flat = np.array(data.draw(values(case)))
    signs = np.array(data.draw(values(case, st.sampled_from([-1.0, 1.0]))))
    scale = 2.0 ** data.draw(st.integers(-60, 60))
    ball = case.make()
    projected = case.flat(ball.project(case.point(flat)))
    moved = case.flat(ball.project(case.point(scale * signs * flat)))
    assert np.array_equal(moved, scale * signs * projected)


@every_case
def test_incumbents_win_ties_then_the_first_position(case):
    ball = case.make()
    ones = case.point(np.ones(case.size))
    # Entries of equal groups must tie, so compare only supports that are largest among allowed.
    supports = case.supports()
    largest = supports[supports.sum(1) == supports.sum(1).max()]
    for support in largest:
        incumbents = {name: mask > 0 for name, mask in case.point(support).items()}
        kept = case.flat(ball.project(ones, incumbents=incumbents)) != 0
        assert np.array_equal(kept, support)
    first = max(largest.tolist())
    kept = case.flat(ball.project(ones)) != 0
    if case.name != "groups":  # there, ties go to the lowest label
        assert kept.tolist() == first


@every_case
@pytest.mark.parametrize("bounds", BOUNDS[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_equals_rows(case, bounds, dtype):
    generator = np.random.default_rng(0)
    ball = case.make(**bounds)
    flats = generator.integers(-4, 5, size=(6, case.size)) / 4
    points = [case.point(flat, dtype) for flat in flats]
    held = [
        {n: m > 0 for n, m in case.point(generator.integers(0, 2, case.size)).items()}
        for _ in points
    ]
    batch = stack(points)
    ball.check_params(batch)
    projected = ball.project(batch, incumbents=stack(held))
    violation = ball.violation(batch)
    assert isinstance(projected, Batch)
    assert violation.shape == (6,)
    for i, point in enumerate(points):
        alone = ball.project(point, incumbents=held[i])
        for name, tensor in row(projected, i).items():
            assert tensor.dtype == dtype
            assert torch.equal(tensor, alone[name])
        assert violation[i] == ball.violation(point)
    assert ball.max_nonzero(batch) == ball.max_nonzero(points[0])
    assert isinstance(ball.select(ball.gains(batch), factor=2), Batch)


@every_case
def test_largest_number_of_nonzeros(case):
    ball = case.make()
    point = case.point(np.ones(case.size))
    supports = case.supports()
    assert ball.max_nonzero(point) == supports.sum(1).max()
    # A difference of two members has the union of two supports.
    unions = supports[:, None] | supports[None]
    assert ball.max_nonzero(point, factor=2) == unions.sum(2).max()


@every_case
def test_violation_is_zero_exactly_on_allowed_supports(case):
    allowed = {tuple(support) for support in case.supports().tolist()}
    ball = case.make()
    for code in range(2**case.size):
        support = tuple(bool(code >> i & 1) for i in range(case.size))
        violation = ball.violation(case.point(np.array(support) * 1e-300)).item()
        assert (violation == 0) == (support in allowed)
        assert violation == int(violation)


@every_case
def test_nan_is_refused_and_is_not_zero(case):
    ball = case.make()
    for i in range(case.size):
        flat = np.zeros(case.size)
        flat[i] = np.nan
        point = case.point(flat)
        name = next(n for n, t in point.items() if t.isnan().any())
        with pytest.raises(NonFiniteError) as error:
            ball.project(point)
        assert str(error.value) == (
            f"Tensor {name!r} contains NaN.\nhint: Reduce `step_size`, or scale the data."
        )
        assert ball.violation(point).item() == float("inf")


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bounds", [{"lower": -0.1, "upper": 0.3}, {"upper": 0.7}], ids=str)
def test_membership_survives_casts(case, dtype, bounds):
    generator = np.random.default_rng(1)
    ball = case.make(**bounds)
    point = case.point(generator.normal(size=case.size))
    narrow = {name: tensor.to(dtype) for name, tensor in point.items()}
    # Projected in the narrow type, a point is a member as float64; projected as float64, it is a
    # member in the narrow type.
    widened = {name: tensor.double() for name, tensor in ball.project(narrow).items()}
    assert ball.violation(widened).item() == 0
    narrowed = {name: tensor.to(dtype) for name, tensor in ball.project(point).items()}
    assert ball.violation(narrowed).item() == 0


@every_case
def test_opposite_infinities_are_not_nan(case):
    flat = np.zeros(case.size)
    flat[0], flat[-1] = np.inf, -np.inf
    projected = case.make().project(case.point(flat))
    assert not np.isnan(case.flat(projected)).any()
