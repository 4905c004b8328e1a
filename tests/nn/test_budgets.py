import copy
import itertools
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, make_balls, prunable, schedules
from ellzero.nn.budgets import allocate
from ellzero.nn.units import scores as unit_scores
from ellzero.sets import BlockL0Ball, GroupL0Ball, L0Ball, NMPattern, SliceL0Ball
from tests.ranks import run_ranks


def lenet():
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.Linear(100, 10))


def test_batch_norm_and_bias_are_free_by_default():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 4))
    assert list(prunable(model)) == ["0.weight", "3.weight"]
    assert make_balls(model, 5)[0].names == ("0.weight", "3.weight")


def test_frozen_parameters_are_not_counted():
    model = lenet()
    model[0].weight.requires_grad_(False)
    assert make_balls(model, 5)[0].names == ("2.weight", "3.weight")
    with pytest.raises(IncompatibleError) as caught:
        make_balls(model, 5, names=["0.weight"])
    assert caught.value.message == (
        "'0.weight' is counted by the budget but frozen (`requires_grad` is False)."
    )


def test_tied_weights_are_counted_once():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 4), "head": nn.Linear(4, 20, bias=False)})
    model["head"].weight = model["embed"].weight
    (ball,) = make_balls(model, 1.0)
    assert (ball.names, ball.n_nonzero) == (("embed.weight",), 80)


@pytest.mark.parametrize(("density", "count"), [(0.1, 26620), (0.01, 2662), (0.29, 77198)])
def test_asked_for_sparsity_is_reached_exactly(density, count):
    # 0.29 * 266200 is 77197.99999999999 in float64 and worse in float32.
    assert make_balls(lenet(), density)[0].n_nonzero == count


def test_integers_are_entries():
    assert make_balls(lenet(), 1)[0].n_nonzero == 1
    assert make_balls(lenet(), 1.0)[0].n_nonzero == 266200


def test_mapping_gives_one_budget_for_each_tensor():
    balls = make_balls(lenet(), {"3.weight": 0.5, "0.weight": 7})
    assert [(b.names, b.n_nonzero) for b in balls] == [(("0.weight",), 7), (("3.weight",), 500)]


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@given(st.integers(3, 266200))
@settings(max_examples=50, deadline=None)
def test_allocations_add_up(allocation, budget):
    balls = make_balls(lenet(), budget, allocation=allocation)
    sizes = {"0.weight": 235200, "2.weight": 30000, "3.weight": 1000}
    assert sum(b.n_nonzero for b in balls) == budget
    for ball in balls:
        assert 0 <= ball.n_nonzero <= sizes[ball.names[0]]


def test_erk_matches_its_formula():
    counts = [b.n_nonzero for b in make_balls(lenet(), 3000, allocation="erk")]
    # 784 + 300, 300 + 100 and 100 + 10 share 3000.
    expected = [3000 * w / 1594 for w in (1084, 400, 110)]
    assert all(abs(c - e) < 1 for c, e in zip(counts, expected, strict=True))


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(1, 50)), min_size=1, max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_allocate_adds_up_within_sizes(places, share):
    weights, sizes = [w for w, _ in places], [s for _, s in places]
    budget = round(share * sum(sizes))
    counts = allocate(budget, weights, sizes)
    assert sum(counts) == budget
    assert all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            0,
            "`n_nonzero` must be an integer between 1 and 266200, the number of entries it "
            "counts, got 0.",
        ),
        (
            266201,
            "`n_nonzero` must be an integer between 1 and 266200, the number of entries it "
            "counts, got 266201.",
        ),
        (1.5, "`n_nonzero` must be a number between 0 and 1, got 1.5."),
        (
            True,
            "`n_nonzero` must be an integer between 1 and 266200, the number of entries it "
            "counts, got True.",
        ),
    ],
)
def test_budgets_out_of_range_are_refused(budget, message):
    with pytest.raises(InvalidParameterError) as caught:
        make_balls(lenet(), budget)
    assert caught.value.message == message


def test_nothing_to_prune_is_refused():
    with pytest.raises(InvalidParameterError, match="must have a weight to prune"):
        make_balls(nn.BatchNorm1d(3), 1)
    with pytest.raises(InvalidParameterError, match="Unknown tensor"):
        make_balls(lenet(), 3, names=["0.wieght"])
    assert torch.is_tensor(next(iter(prunable(lenet()).values())))


# Patterns -------------------------------------------------------------------------------------


def encoder():
    parts = {"encoder": lenet(), "head": nn.Linear(10, 4)}
    return nn.ModuleDict(parts)


def test_tensors_of_a_pattern_share_one_budget():
    balls = make_balls(encoder(), {"encoder.[23].*": 0.1, "head.weight": 7, "encoder.0*": 5})
    assert [(b.names, b.n_nonzero) for b in balls] == [
        (("encoder.0.weight",), 5),
        (("encoder.2.weight", "encoder.3.weight"), 3100),
        (("head.weight",), 7),
    ]
    (ball,) = make_balls(encoder(), 9, names=["encoder.*", "encoder.3.weight"])
    assert ball.names == ("encoder.0.weight", "encoder.2.weight", "encoder.3.weight")
    # A star also matches dots, and biases are matched by exact names alone.
    (ball,) = make_balls(encoder(), {"*": 1.0})
    assert ball.n_nonzero == 266200 + 40
    assert make_balls(encoder(), {"head.bias": 2})[0].names == ("head.bias",)


def test_shared_budgets_are_trained_exactly():
    model = encoder()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = HardThresholding(base, model, n_nonzero={"encoder.*": 500, "head.weight": 3})
    for _ in range(6):
        model["head"](model["encoder"](torch.randn(2, 784))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        counts = [int((p != 0).sum()) for p in prunable(model).values()]
        assert (sum(counts[:3]), counts[3]) == (500, 3)


LISTED = "encoder.0.weight, encoder.2.weight, encoder.3.weight, head.weight"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"decoder.*": 3},
            "The pattern 'decoder.*' in `n_nonzero` matches no tensor that can be counted; there "
            f"are: {LISTED}.\nhint: Change the pattern, or name a tensor exactly.",
        ),
        (
            {"encoder.*": 3, "*.3.weight": 4},
            "Tensor 'encoder.3.weight' is matched twice in `n_nonzero`, by 'encoder.*' and by "
            f"'*.3.weight'. The tensors are: {LISTED}.\nhint: Give each tensor one budget.",
        ),
        (
            {"head.*": 3, "head.weight": 4},
            "Tensor 'head.weight' is matched twice in `n_nonzero`, by 'head.*' and by "
            f"'head.weight'. The tensors are: {LISTED}.\nhint: Give each tensor one budget.",
        ),
        (
            {"encoder.*": 266201},
            "`n_nonzero['encoder.*']` must be an integer between 1 and 266200, the number of "
            "entries it counts, got 266201.\nhint: Pass a whole number up to 266200, or a density "
            "such as 0.01.",
        ),
    ],
)
def test_wrong_patterns_are_refused(budget, message):
    with pytest.raises(InvalidParameterError) as caught:
        make_balls(encoder(), budget)
    assert str(caught.value) == message


# Rows and columns -----------------------------------------------------------------------------


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 8, 1),
        nn.Flatten(), nn.Embedding(5, 2), nn.ConvTranspose2d(2, 2, 1), nn.Linear(8, 3),
    )  # fmt: skip


def test_units_that_are_counted_by_default():
    rows, columns = prunable(convolutions(), "rows"), prunable(convolutions(), "columns")
    assert list(rows) == ["0.weight", "2.weight", "3.weight"]  # not the outputs of the network
    assert list(columns) == ["0.weight", "3.weight", "7.weight"]  # not those of groups
    (ball,) = make_balls(convolutions(), 0.5, structure="rows")
    assert (ball.n_slices, ball.axis, ball.names) == (10, 0, tuple(rows))
    (ball,) = make_balls(convolutions(), 5, structure="columns")
    assert (ball.n_slices, ball.axis) == (5, 1)
    balls = make_balls(lenet(), {"[02].weight": 50, "3.weight": 4}, structure="rows")
    assert [(b.names, b.n_slices) for b in balls] == [
        (("0.weight", "2.weight"), 50),
        (("3.weight",), 4),
    ]


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
@given(st.integers(2, 400))
@settings(max_examples=50, deadline=None)
def test_allocations_of_rows_add_up_and_leave_none_empty(allocation, budget):
    balls = make_balls(lenet(), budget, allocation=allocation, structure="rows")
    assert sum(b.n_slices for b in balls) == budget
    assert all(1 <= b.n_slices <= n for b, n in zip(balls, (300, 100), strict=True))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: make_balls(lenet(), 1, structure="rows"),
            InvalidParameterError,
            "`n_nonzero` must be an integer between 2 and 400, the number of rows it counts, got "
            "1.\nhint: Each of the 2 tensors keeps at least one; pass a whole number from 2 to "
            "400, or a density such as 0.5.",
        ),
        (
            lambda: make_balls(nn.Linear(3, 2), 1, structure="rows"),
            InvalidParameterError,
            "`model` must have rows to prune, got none in linear or convolutional layers that can "
            "be counted by default.\nhint: The rows of the last layer are outputs; name the "
            "tensors to count by `names`.",
        ),
        (
            lambda: make_balls(lenet(), {"0.bias": 2}, structure="rows"),
            IncompatibleError,
            "'0.bias' of shape (300,) has no rows; they need two axes or more.\nhint: Leave it "
            'out, or count it with `structure="entries"`.',
        ),
        (
            lambda: make_balls(convolutions(), {"2.weight": 1}, structure="columns"),
            IncompatibleError,
            "The columns of '2.weight' are not the units of its layer, a Conv2d in groups.\n"
            'hint: Leave it out, or count it with `structure="entries"`.',
        ),
        (
            lambda: make_balls(convolutions(), {"6.weight": 1}, structure="rows"),
            IncompatibleError,
            "The rows of '6.weight' are not the units of its layer, a ConvTranspose2d.\n"
            'hint: Leave it out, or count it with `structure="entries"`.',
        ),
        (
            lambda: make_balls(lenet(), 3, structure="row"),
            InvalidParameterError,
            "`structure` must be one of 'entries', 'rows', 'columns', got 'row'. Did you mean "
            "'rows'?",
        ),
        (
            lambda: HardThresholding(
                torch.optim.SGD(lenet().parameters(), lr=0.1),
                lenet(),
                constraint=NMPattern(2, 4),
                structure="rows",
            ),
            InvalidParameterError,
            "`structure` says what `n_nonzero` counts, got 'rows' and a `constraint`.\n"
            "hint: Give `n_nonzero`, or a `SliceL0Ball` as the constraint.",
        ),
    ],
)
def test_wrong_structures_are_refused(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


def units(weight, axis):
    return int((weight != 0).movedim(axis, 0).flatten(1).any(1).sum())


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 4),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", ["lazy", "iht", "acdc"])
@pytest.mark.parametrize("structure", ["rows", "columns"])
def test_units_are_whole_and_as_many_as_asked_for_at_every_step(recipe, structure):
    model = small_net()
    axis, total = (0, 11) if structure == "rows" else (1, 28)
    steps = 13
    schedule = (
        schedules.phases(2, 2, steps) if recipe == "acdc" else schedules.ramp(0.0, 0.6, steps)
    )
    optimizer = HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1),
        model,
        n_nonzero=6,
        structure=structure,
        recipe=recipe,
        schedule=schedule,
        every=2,
    )
    names = optimizer.sets[0].names
    seen = set()

    def check():
        weights = [model.get_parameter(n) for n in names]
        kept = sum(units(w, axis) for w in weights)
        assert kept == optimizer.n_units
        seen.add(kept)
        for w in weights:
            rows = (w != 0).movedim(axis, 0).flatten(1)
            assert (rows.all(1) | ~rows.any(1)).all()  # whole units
            assert rows.any()
        if schedule.is_final(optimizer.n_steps):
            assert kept == 6
        assert optimizer.n_nonzero <= optimizer.budget

    check()
    for step in range(steps):
        x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        check()
    assert max(seen) == total  # the budget starts at all units
    if recipe != "acdc":
        assert len(seen) >= 4
    optimizer.finalize()
    model(torch.randn(8, 2, 5, 5)).square().mean().backward()
    optimizer.step()
    check()


def test_rows_that_are_kept_are_those_of_the_largest_relative_norm():
    # All choices of four rows are compared; a layer's scale does not matter.
    for seed, scale in itertools.product(range(5), (1.0, 1e-25)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 2))
        model[1].weight.data.mul_(scale)
        scores = {}
        for i in (0, 1):
            norms = model[i].weight.detach().double().norm(dim=1)
            scores |= {(i, j): float(v) for j, v in enumerate(norms / norms.mean())}
        best = max(
            (c for c in itertools.combinations(scores, 4) if len({i for i, _ in c}) == 2),
            key=lambda c: sum(scores[u] for u in c),
        )
        HardThresholding(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            n_nonzero=4,
            structure="rows",
            floor=0.0,
        )
        kept = {(i, j) for i in (0, 1) for j in range(len(model[i].weight))
                if (model[i].weight[j] != 0).any()}  # fmt: skip
        assert kept == set(best)


def test_a_layer_never_loses_all_its_units(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 50), nn.Linear(50, 2), nn.Linear(2, 2))
    model[0].weight.data[:6].mul_(100)  # relative norms of the others are small
    model[1].weight.data[:] = 1.0
    with caplog.at_level(logging.WARNING, "ellzero"):
        HardThresholding(
            torch.optim.SGD(model.parameters(), lr=0.1),
            model,
            n_nonzero=4,
            structure="rows",
            floor=0.0,
        )
    assert [units(model[i].weight, 0) for i in (0, 1)] == [3, 1]
    assert [r.getMessage() for r in caplog.records] == [
        "The budget left '1.weight' with fewer than 1 of its rows; the largest are kept."
    ]


def test_state_of_a_structured_run_goes_on_bit_for_bit():
    def start():
        model = small_net()
        return model, HardThresholding(
            torch.optim.AdamW(model.parameters(), lr=0.02),
            model,
            n_nonzero=0.5,
            structure="rows",
            schedule=schedules.ramp(0.0, 0.6, 12),
        )

    def train(model, optimizer, first, last):
        for step in range(first, last):
            x = torch.randn(8, 2, 5, 5, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    model, optimizer = start()
    train(model, optimizer, 0, 6)
    other, resumed = start()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (other, resumed)):
        train(*pair, 6, 12)
        pair[1].finalize()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# Budgets of any set ---------------------------------------------------------------------------


LABELS = torch.arange(6 * 8).reshape(6, 8) // 4


@pytest.mark.parametrize(
    ("constraint", "size", "count"),
    [
        (NMPattern(2, 4), 4, lambda w: (w.reshape(-1, 4) != 0).sum(1).max()),
        (
            BlockL0Ball(3, (2, 4)),
            6,
            lambda w: (w.reshape(3, 2, 2, 4) != 0).sum((1, 3)).count_nonzero(),
        ),
        (
            GroupL0Ball(4, {"weight": LABELS}),
            12,
            lambda w: len(LABELS[w != 0].unique()),
        ),
        (SliceL0Ball(2, 1), 8, lambda w: (w != 0).any(0).sum()),
        (L0Ball(5), 48, lambda w: (w != 0).sum()),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "names") else "",
)
def test_the_schedule_lowers_the_budget_of_every_set(constraint, size, count):
    torch.manual_seed(0)
    model = nn.Linear(8, 6)
    schedule = schedules.ramp(0.0, 0.8, 10)
    optimizer = HardThresholding(
        torch.optim.SGD(model.parameters(), lr=0.01),
        model,
        constraint=constraint,
        schedule=schedule,
        every=1,
    )
    final = constraint.budget
    for step in range(10):
        assert int(count(model.weight.detach())) == schedule.budget(step, final, size)
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert constraint.n_units({"weight": model.weight}) == size
    larger = constraint.with_budget(final + 1)
    assert (type(larger), larger.budget) == (type(constraint), final + 1)
    assert larger.max_nonzero({"weight": model.weight}) > constraint.max_nonzero(
        {"weight": model.weight}
    )
    assert constraint.with_budget(final) is constraint
    assert optimizer.n_nonzero <= optimizer.budget


# Sharded ----------------------------------------------------------------------------------------


def sharded_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 7), nn.Linear(7, 2))


def check_rank(rank):
    mesh = init_device_mesh("cpu", (2,))
    single, model = sharded_net(), sharded_net()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    first, second = (
        HardThresholding(
            torch.optim.AdamW(m.parameters(), lr=0.01),
            m,
            n_nonzero=11,
            structure="rows",
            schedule=schedules.ramp(0.0, 0.6, 14),
        )
        for m in (single, model)
    )
    for step in range(14):
        x = torch.randn(16, 12, generator=torch.Generator().manual_seed(step))
        for m, optimizer, part in ((single, first, x), (model, second, x[rank::2])):
            m(part).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (second.budget, second.n_units) == (first.budget, first.n_units)
    for a, b in zip(single.parameters(), model.parameters(), strict=True):
        assert torch.equal(a != 0, b.full_tensor() != 0)
    assert second.n_units == 11


@pytest.mark.slow
@pytest.mark.sharded
def test_two_processes_keep_the_rows_of_one(tmp_path):
    run_ranks(check_rank, 2, tmp_path)


def test_columns_of_sharded_weights_are_refused():
    weight = torch.ones(2, 3)
    weight.placements = ()  # what tells a sharded tensor
    with pytest.raises(IncompatibleError) as caught:
        unit_scores(weight, 1)
    assert str(caught.value) == (
        "The columns of a sharded weight lie on several processes.\n"
        'hint: Count its rows with `structure="rows"`, or do not shard the model.'
    )
