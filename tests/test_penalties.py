import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ellzero.errors import InvalidParameterError
from ellzero.penalties import L0, L1, GroupL0, GroupL1, GroupTransformedL1, TransformedL1
from ellzero.tensors.named import Batch, row, stack

EXAMPLES = settings(max_examples=50, deadline=None, derandomize=True, database=None)
SHAPES = (0.01, 0.5, 1.0, 2.0, 10.0, 1e4)
STEPS = (0.01, 0.1, 0.25, 1.0, 3.0, 40.0)


def assert_close(got, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=rtol, atol=atol)


def transformed(a):
    return lambda size: (a + 1) * size / (a + size)


# Name, penalty of a weight, group penalty of a weight and labels, definition of the magnitude.
KINDS = [
    ("l0", L0, GroupL0, lambda size: (size != 0) * 1.0),
    ("l1", L1, GroupL1, lambda size: size),
    *(
        (
            f"tl1-{a:g}",
            lambda weight, a=a, **names: TransformedL1(weight, a, **names),
            lambda weight, groups, a=a, **names: GroupTransformedL1(weight, groups, a, **names),
            transformed(a),
        )
        for a in SHAPES
    ),
]
every_kind = pytest.mark.parametrize(
    ("make", "make_group", "definition"), [kind[1:] for kind in KINDS], ids=[k[0] for k in KINDS]
)


def coef(entries, dtype=torch.float64):
    return {"coef": torch.as_tensor(np.asarray(entries)).to(dtype)}


def interesting(weight, step):
    """Return points around every threshold and far from them."""
    generator = np.random.default_rng(0)
    level = weight * step
    edges = [math.sqrt(2 * level), level]
    for a in SHAPES:
        edges += [level * (a + 1) / a, abs(math.sqrt(2 * level * (a + 1)) - a / 2)]
    near = [edge * (1 + d) for edge in edges for d in (-1e-3, -1e-9, 0, 1e-9, 1e-3)]
    points = np.array([0.0, *near, *generator.normal(size=10) * 3, 1e-8, 1e6])
    return np.concatenate([points, -points])


@every_kind
@pytest.mark.parametrize("step", STEPS)
def test_prox_beats_a_grid_and_random_points(make, make_group, definition, step):
    generator = np.random.default_rng(1)
    weight = 0.7
    points = interesting(weight, step)
    found = make(weight).prox(coef(points), step)["coef"].numpy()

    def goal(u, x):
        return weight * definition(np.abs(u)) + (u - x) ** 2 / (2 * step)

    grid = np.linspace(0, 1, 4001)[None] * points[:, None]
    drawn = points[:, None] * generator.normal(size=(1, 1000))
    rivals = np.concatenate([grid, drawn], 1)
    best = goal(rivals, points[:, None]).min(1)
    value = goal(found, points)
    # Both sides are sums of two terms, each right to a few units in the last place.
    slack = 1e-14 * (weight * definition(np.abs(points)) + points**2 / (2 * step))
    assert (value <= best + slack).all()


@every_kind
@EXAMPLES
@given(data=st.data())
def test_prox_is_at_least_as_good_as_any_drawn_point(make, make_group, definition, data):
    number = st.floats(-10, 10)
    x, rival = data.draw(number), data.draw(number)
    weight, step = data.draw(st.floats(0, 5)), data.draw(st.floats(0.001, 5))
    found = make(weight).prox(coef([x]), step)["coef"].item()

    def goal(u):
        return step * weight * definition(np.abs(u)) + (u - x) ** 2 / 2

    slack = 1e-14 * (step * weight * definition(np.abs(x)) + x * x)
    for u in (rival, 0.0, x, -found):
        assert goal(found) <= goal(u) + slack


@every_kind
def test_twice_the_weight_is_twice_the_step(make, make_group, definition):
    points = coef(interesting(1.0, 0.5))
    assert torch.equal(make(1.0).prox(points, 0.5)["coef"], make(0.5).prox(points, 1.0)["coef"])


@every_kind
def test_value_is_the_definition(make, make_group, definition):
    generator = np.random.default_rng(2)
    entries = generator.integers(-2, 3, size=(4, 6)) * 0.3
    points = [coef(e) for e in entries]
    expected = 0.7 * definition(np.abs(entries)).sum(1)
    got = make(0.7).value(stack(points))
    assert got.shape == (4,)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-14)
    assert make(0.7).value(points[0]).shape == ()
    labels = [4, 1, 4, 2, 1, 4]
    norms = np.stack(
        [np.linalg.norm(entries[:, np.equal(labels, g)], axis=1) for g in (1, 2, 4)], 1
    )
    expected = 0.7 * definition(norms).sum(1)
    penalty = make_group(0.7, torch.tensor(labels))
    np.testing.assert_allclose(penalty.value(stack(points)).numpy(), expected, rtol=1e-14)


@every_kind
@pytest.mark.parametrize("step", STEPS)
def test_residual_vanishes_at_the_prox(make, make_group, definition, step):
    # u = prox(x) minimizes r(u) + |u - x|^2 / (2 t), so -(u - x) / t is a subgradient at u.
    weight = 0.7
    x = torch.as_tensor(interesting(weight, step)).unsqueeze(-1)
    u = make(weight).prox(Batch(coef=x), step)
    residual = make(weight).residual(u, Batch(coef=(u["coef"] - x) / step))
    assert (residual <= 1e-13 * (weight + x.abs().squeeze(-1) / step)).all()
    generator = np.random.default_rng(3)
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 3])
    penalty = make_group(weight, labels)
    for scale in (0.1, 1.0, 10.0):
        x = coef(generator.normal(size=7) * scale)
        u = penalty.prox(x, step)
        grad = {"coef": (u["coef"] - x["coef"]) / step}
        assert penalty.residual(u, grad).item() <= 1e-13 * (weight + 10 * scale / step)


@every_kind
def test_residual_is_the_distance_to_the_derivative(make, make_group, definition):
    # Away from zero the subdifferential is one number, seen by central differences.
    weight, h = 0.7, 1e-5
    generator = np.random.default_rng(4)
    x, grad = generator.normal(size=5) + 3, generator.normal(size=5)
    slope = weight * (definition(x + h) - definition(x - h)) / (2 * h)
    expected = np.linalg.norm(grad + slope)
    got = make(weight).residual(coef(-x), coef(-grad)).item()
    # Differences of values near 1 with step h are right to about 1e-16 / h.
    assert got == pytest.approx(expected, abs=1e-8)

    labels = np.array([0, 1, 1, 0, 1])
    norms = [np.linalg.norm(x[labels == g]) for g in (0, 1)]
    slope = np.zeros(5)
    for g, r in enumerate(norms):
        rate = weight * (definition(r + h) - definition(r - h)) / (2 * h)
        slope[labels == g] = rate * x[labels == g] / r
    expected = np.linalg.norm(grad + slope)
    got = make_group(weight, torch.tensor(labels)).residual(coef(x), coef(grad)).item()
    assert got == pytest.approx(expected, abs=1e-8)


def test_residual_at_zero():
    zero, grad = coef([0.0, 0.0]), coef([3.0, -4.0])
    labels = torch.tensor([0, 0])
    assert L0(0.1).residual(zero, grad).item() == 0
    assert L1(1.0).residual(zero, grad).item() == pytest.approx(math.hypot(2, 3), rel=1e-15)
    assert TransformedL1(1.0, 1.0).residual(zero, grad).item() == pytest.approx(
        math.hypot(1, 2), rel=1e-15
    )
    assert GroupL0(0.1, labels).residual(zero, grad).item() == 0
    assert GroupL1(1.0, labels).residual(zero, grad).item() == 4
    assert GroupTransformedL1(1.0, labels).residual(zero, grad).item() == 3
    # A weight of zero leaves nothing but the objective.
    assert L0(0.0).residual(zero, grad).item() == 5
    assert GroupL0(0.0, labels).residual(zero, grad).item() == 5


@every_kind
@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_group_prox_against_numeric_minimization(make, make_group, definition, step):
    generator = np.random.default_rng(5)
    weight = 0.7
    labels = np.array([0, 1, 0, 2, 1])
    for scale in (0.3, 1.0, 3.0):
        x = generator.normal(size=5) * scale
        found = make_group(weight, torch.tensor(labels)).prox(coef(x), step)["coef"].numpy()
        for g in range(3):
            target, u = x[labels == g], found[labels == g]

            def goal(v, target=target):
                norm = np.sqrt((v**2).sum(-1))
                return weight * definition(norm) + ((v - target) ** 2).sum(-1) / (2 * step)

            rivals = target + generator.normal(size=(1000, target.size)) * scale
            slack = 1e-14 * (1 + goal(target))
            assert goal(u) <= goal(rivals).min() + slack
            assert goal(u) <= goal(np.zeros_like(target)) + slack
            for start in (target, 0.5 * target):
                rival = minimize(goal, start, method="Nelder-Mead").fun
                assert goal(u) <= rival + slack


@every_kind
def test_groups_of_one_entry_are_entries(make, make_group, definition):
    points = coef(interesting(0.7, 1.0))
    alone = torch.arange(points["coef"].numel())
    got = make_group(0.7, alone).prox(points, 1.0)["coef"]
    # The norm of one entry is the root of its square, right to one unit in the last place, so an
    # entry on a threshold may fall on the other side: at most the two signs of one edge.
    expected = make(0.7).prox(points, 1.0)["coef"]
    assert (~torch.isclose(got, expected, rtol=1e-9, atol=1e-12)).sum() <= 2


@every_kind
@pytest.mark.parametrize("grouped", [False, True])
def test_batch_equals_rows_and_free_tensors_stay(make, make_group, definition, grouped):
    generator = torch.Generator().manual_seed(6)
    if grouped:
        labels = {"b": torch.tensor([3, 1]), "a": torch.tensor([[1, 1], [2, 3]])}
        penalty = make_group(0.3, labels)
    else:
        penalty = make(0.3, names=("a", "b"))

    def draw():
        return {
            "a": torch.randn(2, 2, generator=generator),
            "free": torch.randn((), generator=generator),
            "b": torch.randn(2, generator=generator),
        }

    points, grads = [draw() for _ in range(5)], [draw() for _ in range(5)]
    batch = stack(points)
    proximal = penalty.prox(batch, 0.5)
    residual = penalty.residual(batch, stack(grads))
    assert isinstance(proximal, Batch)
    assert torch.equal(proximal["free"], batch["free"])
    for i, point in enumerate(points):
        alone = penalty.prox(point, 0.5)
        assert list(alone) == ["a", "free", "b"]
        for name, tensor in row(proximal, i).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, alone[name])
        assert_close(residual[i], penalty.residual(point, grads[i]))
        # The free tensor has no penalty: its gradient counts in full.
        still = {**grads[i], "free": torch.zeros(())}
        rest = residual[i].square() - penalty.residual(point, still).square()
        assert_close(rest, grads[i]["free"].double().square())


def test_l0_prox_takes_zero_at_the_threshold():
    # 2 = sqrt(2 * 1 * 2): keeping costs the weight 2, dropping costs 2^2 / 2.
    assert L0(2.0).prox(coef([2.0, -2.0]), 1.0)["coef"].tolist() == [0, 0]
    above = math.nextafter(2.0, 3.0)
    assert L0(2.0).prox(coef([above]), 1.0)["coef"].item() == above
    # Half of 3^2 + 4^2 is 12.5.
    labels = torch.tensor([0, 0])
    assert GroupL0(12.5, labels).prox(coef([3.0, 4.0]), 1.0)["coef"].tolist() == [0, 0]
    assert GroupL0(12.4, labels).prox(coef([3.0, 4.0]), 1.0)["coef"].tolist() == [3, 4]


@every_kind
def test_zeros_are_positive_and_kept_signs_are_right(make, make_group, definition):
    point = coef([-1e-3, 1e-3, -50.0, 50.0])
    for penalty in (make(1.0), make_group(1.0, torch.arange(4))):
        out = penalty.prox(point, 0.1)["coef"]
        zeros = out[out == 0]
        assert not torch.signbit(zeros).any()
        assert out[2] < 0
        assert out[3] > 0


@every_kind
def test_weight_zero_changes_nothing(make, make_group, definition):
    point = coef([0.0, -1.5, 1e-12, 7.0])
    assert torch.equal(make(0.0).prox(point, 3.0)["coef"], point["coef"])
    grouped = make_group(0.0, torch.tensor([0, 1, 1, 2]))
    assert_close(grouped.prox(point, 3.0)["coef"], point["coef"], rtol=1e-15, atol=0)
    assert make(0.0).value(point).item() == 0


@every_kind
def test_nan_is_not_hidden(make, make_group, definition):
    point = coef([1.0, float("nan"), 0.0])
    labels = torch.tensor([0, 1, 2])
    for penalty in (make(1.0), make_group(1.0, labels)):
        out = penalty.prox(point, 1.0)["coef"]
        assert out.isnan().tolist() == [False, True, False]
        assert penalty.value(point).isnan()


def test_transformed_l1_tends_to_l0_and_l1():
    point = coef([0.3, -2.0, 5.0])
    near_l1 = TransformedL1(0.5, 1e9).prox(point, 1.0)["coef"]
    assert_close(near_l1, L1(0.5).prox(point, 1.0)["coef"], rtol=1e-7, atol=0)
    near_l0 = TransformedL1(0.5, 1e-9).prox(point, 1.0)["coef"]
    assert_close(near_l0, L0(0.5).prox(point, 1.0)["coef"], rtol=1e-7, atol=0)


def test_an_infinite_group_is_kept():
    point = coef([float("-inf"), 0.1])
    assert GroupL0(1.0, [0, 1]).prox(point, 1.0)["coef"].tolist() == [float("-inf"), 0]


def test_value_at_infinity():
    assert TransformedL1(2.0, 3.0).value(coef([float("inf")])).item() == 8


WEIGHT_HINT = "\nhint: A weight of 0 switches the penalty off."
MESSAGES = [
    (lambda: L0(-1.0), "`weight` must be a number of at least 0, got -1." + WEIGHT_HINT),
    (lambda: L1("1"), "`weight` must be a number of at least 0, got '1'." + WEIGHT_HINT),
    (
        lambda: TransformedL1(1.0, 0.0),
        "`a` must be positive, got 0.\nhint: Small `a` is close to `L0`, large `a` to `L1`.",
    ),
    (
        lambda: L1(1.0).prox(coef([1.0]), -2.0),
        "`step_size` must be a number of at least 0, got -2.",
    ),
    (
        lambda: L1(1.0, ("coeff",)).value(coef([1.0])),
        "Unknown tensor 'coeff' in `names`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: GroupL1(1.0, [0, 1]).prox(coef([1.0]), 1.0),
        "`groups` must hold one label for each of the 1 entries in 'coef', got 2."
        "\nhint: Set `names` to the tensors that the labels belong to.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MESSAGES)
def test_messages(call, message):
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert str(error.value) == message


LEVELS = [0.01, 0.1, 0.24, 0.25, 0.26, 0.4, 1.0, 3.0]


def penalties_of(level):
    """Return penalties of one level with their definition, on both sides of each case of a."""
    out = [(L0(level), lambda u: (u != 0) * 1.0), (L1(level), np.abs)]
    return out + [
        (TransformedL1(level, a), lambda u, a=a: transformed(a)(np.abs(u)))
        for a in (0.5, 1.0, 2.0, 10.0)
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_threshold_is_the_tie_between_zero_and_the_rest(level):
    for penalty, definition in penalties_of(level):
        threshold = penalty.threshold(1.0)
        assert penalty.prox(coef([threshold, -threshold]), 1.0)["coef"].tolist() == [0, 0]
        above = threshold * (1 + 1e-9)
        assert penalty.prox(coef([above]), 1.0)["coef"].item() > 0
        assert penalty.threshold(0.5) == pytest.approx(
            type(penalty)(level / 2, *([penalty.a] if hasattr(penalty, "a") else [])).threshold(1)
        )
        # By brute force on a fine grid: at the threshold nothing beats zero, above something does.
        for x, zero_wins in ((threshold, True), (threshold * 1.01, False)):
            grid = np.linspace(0, x, 400_001)[1:]
            goal = level * definition(grid) + (grid - x) ** 2 / 2
            at_zero = x**2 / 2
            # Nearly flat objectives differ from the tie by rounding.
            assert (goal.min() >= at_zero * (1 - 1e-12)) == zero_wins


@pytest.mark.parametrize("a", [0.5, 1.0, 2.0, 10.0])
def test_transformed_l1_jumps_only_beyond_its_critical_level(a):
    critical = a * a / (2 * (a + 1))
    for share, jumps in ((0.3, False), (0.999, False), (1.001, True), (4.0, True)):
        penalty = TransformedL1(share * critical, a)
        just_above = penalty.threshold(1.0) * (1 + 1e-12)
        jump = penalty.prox(coef([just_above]), 1.0)["coef"].item()
        expected = max(penalty.threshold(1.0) - a / 2, 0.0) if jumps else 0.0
        # Near the critical level the prox grows like a square root.
        assert jump == pytest.approx(expected, abs=3e-5 * a)
        # At a jump both ends are minimizers, and zero is returned.
        if share == 4.0:
            x = penalty.threshold(1.0)
            value = share * critical * transformed(a)(jump) + (jump - x) ** 2 / 2
            assert value == pytest.approx(x * x / 2, rel=1e-9)


def test_limits_of_transformed_l1_by_their_order():
    # The distance to l1 is of order 1 / a, that to l0 of order a: ten times nearer each time.
    x = coef([0.3, -1.2, 2.0, 5.0, -8.0])
    for limit, scales in ((L1(0.5), (1e2, 1e3, 1e4)), (L0(0.5), (1e-2, 1e-3, 1e-4))):
        exact = limit.prox(x, 1.0)["coef"]
        apart = [(TransformedL1(0.5, a).prox(x, 1.0)["coef"] - exact).abs().max() for a in scales]
        assert apart[1] / apart[0] == pytest.approx(0.1, rel=0.1)
        assert apart[2] / apart[1] == pytest.approx(0.1, rel=0.1)
        thresholds = [TransformedL1(0.5, a).threshold(1.0) for a in scales]
        assert abs(thresholds[2] - limit.threshold(1.0)) < 1e-3


def test_threshold_of_groups_is_of_their_norm():
    labels = torch.tensor([0, 0])
    for penalty in (GroupL0(0.5, labels), GroupL1(0.5, labels), GroupTransformedL1(0.5, labels)):
        t = penalty.threshold(2.0)
        inside, outside = coef([0.6 * t, 0.8 * t * (1 - 1e-12)]), coef([0.6 * t, 0.81 * t])
        assert (penalty.prox(inside, 2.0)["coef"] == 0).all()
        assert (penalty.prox(outside, 2.0)["coef"] != 0).all()
    with pytest.raises(InvalidParameterError) as error:
        L1(1.0).threshold(-1.0)
    assert str(error.value) == "`step_size` must be a number of at least 0, got -1."
