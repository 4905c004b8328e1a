import pytest
import torch

from ellzero.errors import InvalidParameterError
from ellzero.sets import BlockL0Ball, Box, GroupL0Ball, NMPattern, Nonnegative, SliceL0Ball
from ellzero.tensors.named import stack

COEF = {"coef": torch.tensor([3.0, -1.0, 2.0, -2.0])}
MATRIX = {"weight": torch.arange(15.0).reshape(5, 3), "bias": torch.ones(3)}


def test_tied_groups_go_to_incumbents_then_the_lowest_label():
    ones = {"coef": torch.ones(4)}
    ball = GroupL0Ball(1, torch.tensor([8, 2, 8, 2]))
    assert ball.project(ones)["coef"].tolist() == [0, 1, 0, 1]
    incumbents = {"coef": torch.tensor([False, False, True, False])}
    assert ball.project(ones, incumbents=incumbents)["coef"].tolist() == [1, 0, 1, 0]


def test_labels_follow_the_order_of_the_point_not_of_the_names():
    point = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    projected = GroupL0Ball(1, torch.tensor([0, 0, 1]), names=("b", "a")).project(point)
    assert [projected["a"].tolist(), projected["b"].tolist()] == [[0, 0], [3]]


def test_budgets_in_entries():
    assert GroupL0Ball(2, torch.tensor([0, 0, 1, 2, 2, 2])).n_nonzero == 5
    assert BlockL0Ball(3).n_nonzero == 24


def test_largest_number_of_nonzeros_in_ragged_blocks():
    # A (5, 3) matrix has two blocks of 4 entries, two (2, 1), one (1, 2), one of 1.
    sizes = [0, 4, 8, 10, 12, 14, 15, 15]
    for n_blocks, size in enumerate(sizes):
        ball = BlockL0Ball(n_blocks, (2, 2), ("weight",))
        assert ball.max_nonzero(MATRIX) == size + 3


def test_largest_number_of_nonzeros_in_slices():
    # Rows of three entries in the weight, of one in the bias.
    for n_slices, size in enumerate([0, 3, 6, 9, 12, 15, 16, 17, 18]):
        assert SliceL0Ball(n_slices).max_nonzero(MATRIX) == size
    assert SliceL0Ball(2, 1, ("weight",)).max_nonzero(MATRIX) == 10 + 3


def test_group_scores_of_float32_do_not_underflow():
    point = {"coef": torch.tensor([1e-30, 2e-30], dtype=torch.float32)}
    assert GroupL0Ball(1, torch.tensor([0, 1])).project(point)["coef"][1] != 0


def test_pattern_runs_along_an_axis():
    projected = NMPattern(1, 2, ("weight",), axis=0).project(MATRIX)["weight"]
    assert (projected != 0).sum(0).tolist() == [3, 3, 3]
    assert projected[:, 0].tolist() == [0, 3, 0, 9, 12]


def test_box_and_nonnegative():
    box = Box(-1.0, 2.0)
    assert box.project(COEF)["coef"].tolist() == [2, -1, 2, -1]
    assert box.violation(COEF).item() == pytest.approx(2**0.5, rel=1e-15)
    assert box.violation(box.project(COEF)).item() == 0
    assert Nonnegative().project(COEF)["coef"].tolist() == [3, 0, 2, 0]
    assert Nonnegative().violation(COEF).item() == pytest.approx(5**0.5, rel=1e-15)
    batch = stack([COEF, COEF])
    assert box.violation(batch).tolist() == pytest.approx([2**0.5] * 2, rel=1e-15)
    both = {"coef": torch.tensor([-1.0]), "intercept": torch.tensor(-1.0)}
    assert Nonnegative(("coef",)).project(both)["intercept"] == -1
    # 0.1 is no float32; a box of this one point still has a member.
    point = {"coef": torch.tensor([3.0])}
    assert Box(0.1, 0.1).violation(Box(0.1, 0.1).project(point)).item() == 0


GROUPS_HINT = "\nhint: Set `names` to the tensors that the labels belong to."
MESSAGES = [
    (
        lambda: GroupL0Ball(-1, torch.tensor([0])),
        "`n_groups` must be an integer of at least 0, got -1."
        "\nhint: Pass the largest number of groups that may differ from zero.",
    ),
    (
        lambda: GroupL0Ball(3, torch.tensor([0, 0, 1, 1])).check_params(COEF),
        "`n_groups` must be an integer between 0 and 2, the number of groups in 'coef', got 3."
        "\nhint: Pass `n_groups=2` to keep every group.",
    ),
    (
        lambda: GroupL0Ball(1, torch.tensor([0, 0, 1])).check_params(COEF),
        "`groups` must hold one label for each of the 4 entries in 'coef', got 3." + GROUPS_HINT,
    ),
    (
        lambda: GroupL0Ball(1, {"coef": torch.tensor([0, 0, 1])}).project(COEF),
        "`groups` must hold one label for each of the 4 entries in 'coef', got 3." + GROUPS_HINT,
    ),
    (
        lambda: GroupL0Ball(1, {"ceof": torch.tensor([0])}).check_params(COEF),
        "Unknown tensor 'ceof' in `names`. Did you mean 'coef'? Known tensors: coef.",
    ),
    (
        lambda: GroupL0Ball(1, torch.tensor([0.5])),
        "`groups` must hold integer labels, got dtype float32."
        "\nhint: Convert them with `.to(torch.int64)`.",
    ),
    (
        lambda: GroupL0Ball(1, {"coef": torch.tensor([True])}),
        "`groups` must hold integer labels, got dtype bool for 'coef'."
        "\nhint: Convert them with `.to(torch.int64)`.",
    ),
    (
        lambda: GroupL0Ball(1, {}),
        "`groups` must hold at least one label, got none.",
    ),
    (
        lambda: GroupL0Ball(1, {"a": torch.tensor([1])}, names=("b",)),
        "`names` must be the keys of `groups`, got 'b' and 'a'.\nhint: Leave `names` out.",
    ),
    (
        lambda: BlockL0Ball(1, (2, 2)).check_params(MATRIX),
        "`BlockL0Ball` covers tensors of 2 axes, got 'bias' of shape (3,)."
        "\nhint: Name the matrices in `names`; the other tensors are free.",
    ),
    (
        lambda: BlockL0Ball(7, (2, 2), ("weight",)).check_params(MATRIX),
        "`n_blocks` must be an integer between 0 and 6, the number of blocks in 'weight', got 7."
        "\nhint: Pass `n_blocks=6` to keep every block.",
    ),
    (
        lambda: BlockL0Ball(1, (2, 0)),
        "`block_shape[1]` must be an integer of at least 1, got 0.",
    ),
    (
        lambda: BlockL0Ball(1, (2,)),
        "`block_shape` must be two positive integers, rows and columns, got (2,).",
    ),
    (
        lambda: NMPattern(3, 2),
        "`n` must be an integer between 0 and 2, the length `m` of a run, got 3.",
    ),
    (lambda: NMPattern(0, 0), "`m` must be an integer of at least 1, got 0."),
    (
        lambda: NMPattern(1, 2, axis=1).check_params(MATRIX),
        "`axis` must be an axis of every covered tensor, got 1 for 'bias' of shape (3,)."
        "\nhint: Name the tensors to cover in `names`; the others are free.",
    ),
    (
        lambda: SliceL0Ball(9).check_params(MATRIX),
        "`n_slices` must be an integer between 0 and 8, the number of slices in 'weight' and "
        "'bias', got 9.\nhint: Pass `n_slices=8` to keep every slice.",
    ),
    (
        lambda: SliceL0Ball(1, axis=1).check_params(MATRIX),
        "`axis` must be an axis of every covered tensor, got 1 for 'bias' of shape (3,)."
        "\nhint: Name the tensors to cover in `names`; the others are free.",
    ),
    (lambda: Box(2.0, 1.0), "`lower` must be at most `upper`, got 2 and 1."),
    (lambda: Box(lower=float("nan")), "`lower` must be a finite number, got nan."),
]


@pytest.mark.parametrize(("call", "message"), MESSAGES)
def test_messages(call, message):
    with pytest.raises(InvalidParameterError) as error:
        call()
    assert str(error.value) == message
