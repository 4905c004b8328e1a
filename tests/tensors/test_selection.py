import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ellzero.errors import IncompatibleError, InvalidParameterError, NonFiniteError
from ellzero.tensors import selection
from ellzero.tensors.named import Batch
from ellzero.tensors.selection import threshold, top_k_along_last, top_k_masks

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64]
TINY = 5e-324


def sorted_mask(values, count, incumbents=None, magnitude=False):
    """Return the mask by a full sort: number, then incumbents, then position."""
    values = np.asarray(values, dtype=np.float64).ravel()
    if magnitude:
        values = np.abs(values)
    held = np.zeros(values.size, bool) if incumbents is None else np.asarray(incumbents).ravel()
    order = np.lexsort((np.arange(values.size), ~held, -values))
    mask = np.zeros(values.size, bool)
    mask[order[:count]] = True
    return mask


def flat(masks):
    return torch.cat([m.reshape(-1) for m in masks.values()]).numpy()


def split(tensor, cuts):
    bounds = [0, *sorted(cuts), tensor.numel()]
    names = [f"part{i}" for i in range(len(bounds) - 1)]
    return {n: tensor[a:b] for n, a, b in zip(names, bounds[:-1], bounds[1:], strict=True)}


def every_path(scores, count, incumbents=None, magnitude=False):
    """Return masks and thresholds of each way a point can be treated."""
    held = incumbents or {}
    rows = {n: t.unsqueeze(0) for n, t in scores.items()}
    held_rows = {n: t.unsqueeze(0) for n, t in held.items()}
    out = [
        selection._select(scores, count, held, magnitude, kernels=True),
        selection._select(scores, count, held, magnitude, kernels=False),
    ]
    batch, target = selection._select(Batch(rows), count, held_rows, magnitude, kernels=False)
    out.append(({n: t[0] for n, t in batch.items()}, target[0]))
    tensors = list(scores.values())
    if count > 0 and sum(t.numel() for t in tensors):
        order = selection._order(tensors, magnitude)
        pieces = [
            selection._Piece(n, order.bits(t), selection._flat_incumbents(held.get(n)))
            for n, t in scores.items()
        ]
        k = min(count, sum(t.numel() for t in tensors))
        found = selection._by_bracket(pieces, k, order, True)
        found = found or selection._by_histograms(pieces, k, order, write=True, kernels=True)
        again = selection._by_histograms(pieces, k, order, write=True, kernels=True)
        for target, masks in (found, again):
            out.append((dict(zip(scores, masks, strict=True)), order.number(torch.tensor(target))))
    return out


numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, float("inf"), -float("inf"), TINY, -TINY]),
    st.floats(width=32, allow_nan=False),
)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_points_agree_with_a_full_sort(data):
    dtype = data.draw(st.sampled_from([*FLOATS, torch.int64, torch.int8]))
    values = data.draw(st.lists(numbers, min_size=1, max_size=40))
    if dtype.is_floating_point:
        tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    else:
        tensor = torch.tensor([int(max(min(v, 127), -128)) for v in values]).to(dtype)
    held = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=40)))
    held = held[: len(values)]
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    count = data.draw(st.integers(0, len(values) + 2))
    magnitude = data.draw(st.booleans())
    scores, incumbents = split(tensor, cuts), split(held, cuts)
    expected = sorted_mask(tensor.double().numpy(), count, held.numpy(), magnitude)
    shown = tensor.double().abs() if magnitude else tensor.double()
    kth = shown[torch.from_numpy(expected)].min() if count > 0 else None
    for masks, target in every_path(scores, count, incumbents, magnitude):
        np.testing.assert_array_equal(flat(masks), expected)
        assert {n: m.shape for n, m in masks.items()} == {n: t.shape for n, t in scores.items()}
        if kth is not None:
            assert target.double() == kth
    masks = top_k_masks(scores, count, incumbents=incumbents, magnitude=magnitude)
    np.testing.assert_array_equal(flat(masks), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_batches_agree_with_a_full_sort_of_every_row(data):
    size, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    length = {"min_size": size * n, "max_size": size * n}
    rows = torch.tensor(data.draw(st.lists(numbers, **length))).reshape(size, n)
    held = torch.tensor(data.draw(st.lists(st.booleans(), **length))).reshape(size, n)
    cut = data.draw(st.integers(0, n))
    dtype = data.draw(st.sampled_from(FLOATS))
    rows = rows.to(dtype)
    count = data.draw(st.integers(0, n + 1))
    scores = Batch({"a": rows[:, :cut], "b": rows[:, cut:]})
    incumbents = Batch({"a": held[:, :cut], "b": held[:, cut:]})
    expected = np.stack(
        [sorted_mask(r.double().numpy(), count, h) for r, h in zip(rows, held, strict=True)]
    )
    for kernels in (True, False):
        masks, target = selection._select(scores, count, incumbents, False, kernels=kernels)
        np.testing.assert_array_equal(torch.cat(list(masks.values()), 1).numpy(), expected)
        if count:
            chosen = torch.where(torch.from_numpy(expected), rows.double(), torch.inf)
            assert torch.equal(target.double(), chosen.amin(1))
            assert target.dtype == dtype
    masks = top_k_masks(scores, count, incumbents=incumbents)
    assert isinstance(masks, Batch)
    np.testing.assert_array_equal(torch.cat(list(masks.values()), 1).numpy(), expected)


def big(kind, n=selection.SMALL + 4097):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, generator=generator, dtype=torch.float64)
    if kind == "ties":
        x = (x * 3).round()
    elif kind == "zeros":
        x[torch.rand(n, generator=generator) < 0.95] = 0.0
    elif kind == "equal":
        x = torch.full_like(x, -1.5)
    elif kind == "subnormal":
        x = x * 2.0**-1060
    elif kind == "infinite":
        x[::3] = torch.inf
        x[1::7] = -torch.inf
    elif kind == "ramp":
        x = torch.arange(n, dtype=torch.float64)
    elif kind == "spikes":
        # One entry in a thousand is large: a sample of stretches sees only some of them.
        x[::1000] += 1e6
    return x


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "kind", ["normal", "ties", "zeros", "equal", "subnormal", "infinite", "ramp", "spikes"]
)
def test_large_points_agree_with_a_full_sort(kind, dtype):
    x = big(kind).to(dtype)
    n = x.numel()
    held = torch.rand(n, generator=torch.Generator().manual_seed(3)) < 0.3
    cuts = [0, 100, n // 2, n // 2]
    scores, incumbents = split(x, cuts), split(held, cuts)
    for count in (1, n // 100, n // 3, n - 1):
        for magnitude in (False, True):
            masks = top_k_masks(scores, count, incumbents=incumbents, magnitude=magnitude)
            expected = sorted_mask(x.double().numpy(), count, held.numpy(), magnitude)
            np.testing.assert_array_equal(flat(masks), expected)
            shown = x.abs() if magnitude else x
            kth = shown[torch.from_numpy(expected)].min()
            found = threshold(scores, count, magnitude=magnitude)
            assert found == kth
            assert found.dtype == dtype
            assert found.shape == ()


@pytest.mark.parametrize("kind", ["normal", "ties", "equal"])
def test_large_points_without_kernels_agree_with_a_full_sort(kind):
    x = big(kind).float()
    held = torch.rand(x.numel(), generator=torch.Generator().manual_seed(3)) < 0.3
    for count in (0, 1, 5000, x.numel()):
        masks, _ = selection._select({"a": x}, count, {"a": held}, False, kernels=False)
        np.testing.assert_array_equal(flat(masks), sorted_mask(x.numpy(), count, held.numpy()))


def test_a_bracket_that_misses_is_noticed():
    x = big("normal").float()
    order = selection._order([x], False)
    piece = selection._Piece("a", order.bits(x), None)
    wrong = (np.int32(0), np.int32(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_bracket", lambda *_: wrong)
        assert selection._by_bracket([piece], 100, order, True) is None
        masks = top_k_masks({"a": x}, 100)
    np.testing.assert_array_equal(flat(masks), sorted_mask(x.numpy(), 100))


def test_the_bracket_is_found_at_the_first_attempt_on_plain_data(monkeypatch):
    calls = []
    original = selection._by_histograms
    monkeypatch.setattr(
        selection, "_by_histograms", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    for share in (0.0001, 0.01, 0.1, 0.5, 0.99):
        top_k_masks({"a": x}, int(share * x.numel()), magnitude=True)
    assert not calls


@pytest.mark.parametrize("rows", [3, 40])
def test_long_rows_agree_with_single_points(rows):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(rows, selection.SMALL + 10, generator=generator) * 50).round()
    held = torch.rand(x.shape, generator=generator) < 0.5
    masks = top_k_masks(Batch({"a": x}), 1234, incumbents=Batch({"a": held}))["a"]
    for i in (0, rows - 1):
        expected = sorted_mask(x[i].numpy(), 1234, held[i].numpy())
        np.testing.assert_array_equal(masks[i].numpy(), expected)
    assert masks.sum(1).tolist() == [1234] * rows
    kth = threshold(Batch({"a": x[:2]}), 1234)
    assert kth.tolist() == [x[i][masks[i]].min().item() for i in range(2)]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("n", [200, selection.SMALL + 100])
def test_integers_are_ordered_exactly(dtype, n):
    generator = torch.Generator().manual_seed(2)
    low, high = (0, 2) if dtype == torch.bool else (-100 if dtype.is_signed else 0, 100)
    x = torch.randint(low, high, (n,), generator=generator).to(dtype)
    if dtype == torch.int64:
        # Neighbors that float64 cannot tell apart.
        x = x + 2**60
        reference = (x - 2**60).numpy()
    else:
        reference = x.to(torch.int64).numpy()
    for count in (0, 1, n // 3, n):
        masks = top_k_masks({"a": x}, count)
        np.testing.assert_array_equal(flat(masks), sorted_mask(reference, count))


def test_integer_magnitudes():
    x = torch.tensor([-3, 2, 3, torch.iinfo(torch.int64).min, 0])
    assert flat(top_k_masks({"a": x}, 3, magnitude=True)).tolist() == [
        True, False, True, True, False,
    ]  # fmt: skip
    assert threshold({"a": x}, 3, magnitude=True).item() == 3
    assert threshold({"a": x}, 0).item() == torch.iinfo(torch.int64).max


def test_two_types_are_compared_as_numbers():
    scores = {"half": torch.tensor([1.0, 3.0]).half(), "double": torch.tensor([2.0, 0.5]).double()}
    assert flat(top_k_masks(scores, 2)).tolist() == [False, True, True, False]
    assert threshold(scores, 2).dtype == torch.float64


@pytest.mark.parametrize("scale", [1, 300])
def test_views_of_any_layout(scale):
    base = torch.arange(4 * scale * 30.0).reshape(4, scale, 30) % 17
    before = base.clone()
    for x in (base.transpose(0, 2), base[:, ::2, 1::3], base[0, 0].expand(50, 30)):
        masks = top_k_masks({"a": x}, x.numel() // 3)["a"]
        expected = sorted_mask(x.numpy(), x.numel() // 3).reshape(x.shape)
        np.testing.assert_array_equal(masks.numpy(), expected)
    assert torch.equal(base, before)


def test_scalars_and_empty_tensors():
    scores = {"a": torch.tensor(2.0), "b": torch.empty(0, 3), "c": torch.tensor([1.0, 2.0])}
    masks = top_k_masks(scores, 2)
    assert [m.tolist() for m in masks.values()] == [True, [], [False, True]]
    masks = top_k_masks(scores, 1)
    assert [m.tolist() for m in masks.values()] == [True, [], [False, False]]
    empty = {"b": torch.empty(0, 3)}
    assert top_k_masks(empty, 4)["b"].shape == (0, 3)
    assert threshold(empty, 4).item() == float("inf")
    assert threshold(scores, 0).item() == float("inf")
    rows = Batch({"a": torch.tensor([2.0, 5.0]), "b": torch.tensor([[1.0, 3.0], [4.0, 6.0]])})
    masks = top_k_masks(rows, 1)
    assert masks["a"].tolist() == [False, False]
    assert masks["b"].tolist() == [[False, True], [False, True]]
    nothing = Batch({"a": torch.empty(3, 0)})
    assert top_k_masks(nothing, 1)["a"].shape == (3, 0)
    assert threshold(nothing, 1).tolist() == [float("inf")] * 3


def test_only_named_tensors_share_the_budget():
    scores = {"coef": torch.tensor([1.0, 2.0]), "intercept": torch.tensor(9.0)}
    masks = top_k_masks(scores, 1, names=("coef",))
    assert masks["coef"].tolist() == [False, True]
    assert masks["intercept"].item() is True
    # What is not named may be anything.
    scores["intercept"] = torch.tensor(float("nan"))
    assert top_k_masks(scores, 0, names=("coef",))["coef"].tolist() == [False, False]
    assert list(top_k_masks(scores, 0, names=())) == ["coef", "intercept"]
    assert top_k_masks(scores, 0, names=())["coef"].tolist() == [True, True]


def test_gradients_and_inputs_are_left_alone():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    mask = top_k_masks({"a": x}, 1, magnitude=True)["a"]
    assert mask.tolist() == [False, True]
    assert not mask.requires_grad
    assert x.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("n", [4, selection.SMALL + 64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_refused(n, sign, dtype):
    fine, broken = torch.ones(3, dtype=dtype), torch.ones(n, dtype=dtype)
    broken[n - 1] = sign * float("nan")
    scores = {"layer.bias": fine, "layer.weight": broken}
    message = (
        "Entries are selected by size, got NaN in 'layer.weight'.\n"
        "hint: Reduce the step size or look for missing values in the data."
    )
    rows = Batch({name: torch.stack([t, t]) for name, t in scores.items()})
    for count in (0, 2, n + 3):
        for magnitude in (False, True):
            for kernels in (False, True):
                for kind in (scores, rows):
                    with pytest.raises(NonFiniteError) as caught:
                        selection._select(kind, count, {}, magnitude, kernels=kernels)
                    assert str(caught.value) == message
    with pytest.raises(NonFiniteError, match=r"got NaN in 'layer\.weight'"):
        threshold(scores, 1)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (
            InvalidParameterError,
            {"n_nonzero": -1},
            "`n_nonzero` must be an integer of at least 0, got -1.",
        ),
        (
            InvalidParameterError,
            {"n_nonzero": 1.5},
            "`n_nonzero` must be an integer of at least 0, got 1.5.",
        ),
        (
            InvalidParameterError,
            {"n_nonzero": 1, "names": ("coeff",)},
            "`names` must name tensors of the point, 'coef', got 'coeff'. Did you mean 'coef'?",
        ),
        (
            IncompatibleError,
            {"n_nonzero": 1, "scores": {"coef": torch.ones(2, dtype=torch.complex64)}},
            "Only real numbers can be ordered, got torch.complex64.\nhint: Pass the magnitudes.",
        ),
    ],
)
def test_messages(error, arguments, message):
    with pytest.raises(error) as caught:
        top_k_masks(**{"scores": {"coef": torch.ones(2)}, **arguments})
    assert str(caught.value) == message


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_groups_agree_with_a_full_sort(data):
    m = data.draw(st.integers(1, selection.PAIRS + 4))
    groups = data.draw(st.integers(1, 4))
    length = {"min_size": groups * m, "max_size": groups * m}
    values = st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf")])
    x = torch.tensor(data.draw(st.lists(values, **length))).reshape(groups, 1, m)
    held = torch.tensor(data.draw(st.lists(st.booleans(), **length))).reshape(groups, 1, m)
    n = data.draw(st.integers(0, m + 1))
    for incumbents in (None, held):
        mask = top_k_along_last(x, n, incumbents)
        for i in range(groups):
            flags = None if incumbents is None else held[i].numpy()
            np.testing.assert_array_equal(mask[i, 0].numpy(), sorted_mask(x[i], n, flags))


def test_groups_refuse_nan_and_keep_shapes():
    with pytest.raises(NonFiniteError, match="got NaN in 'scores'"):
        top_k_along_last(torch.tensor([[1.0, float("nan")]]), 1)
    with pytest.raises(InvalidParameterError, match="`n` must be an integer of at least 0"):
        top_k_along_last(torch.ones(1, 2), -1)
    assert top_k_along_last(torch.empty(0, 4), 2).shape == (0, 4)
    assert (
        top_k_along_last(torch.ones(2, 3, 4), 2).tolist() == [[[True, True, False, False]] * 3] * 2
    )
