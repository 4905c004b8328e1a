import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import make_balls, prunable
from ellzero.nn.budgets import allocate


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
