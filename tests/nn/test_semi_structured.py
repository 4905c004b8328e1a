"""2:4 weights: the check of the pattern, refusals, what is chosen; and the kernels on a GPU."""

import itertools

import pytest
import torch
from torch import nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import HardThresholding, export
from ellzero.nn.export import two_of_four
from ellzero.sets import NMPattern


def two_of_four_(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.Linear):
            scores = torch.rand(part.weight.numel() // 4, 4, generator=generator)
            keep = scores.argsort(1).argsort(1) < 2
            part.weight.data.mul_(keep.reshape(part.weight.shape).to(part.weight))
    return model


def test_the_pattern_against_every_mask_of_eight_entries():
    for bits in itertools.product((0.0, 1.0), repeat=8):
        weight = torch.tensor([bits])
        assert export.has_pattern(weight) == (sum(bits[:4]) <= 2 and sum(bits[4:]) <= 2)
        assert export.has_pattern(weight, 1, 2) == all(
            sum(bits[i : i + 2]) <= 1 for i in range(0, 8, 2)
        )
    assert not export.has_pattern(torch.tensor([[float("nan"), 0, 0, 0]]))


def test_trained_patterns_are_recognized():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=0.1), model, constraint=NMPattern(2, 4)
    )
    for _ in range(3):
        model(torch.randn(5, 16)).square().sum().backward()
        optimizer.step()
    optimizer.finalize()
    assert all(export.has_pattern(model[i].weight) for i in (0, 2))


# Choice, with kernels and a clock that are made up ----------------------------------------------


class Packed(torch.Tensor):
    """Stands for a packed weight: computes the same, in the dense way."""


def packer(weight):
    return weight.clone().as_subclass(Packed)


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(two_of_four, "_check_device", lambda model: None)

    def use(**packers):
        monkeypatch.setattr(two_of_four, "_packers", lambda: packers)

    use(cusparselt=packer)
    return use


def clock(**seconds):
    return lambda calls: {name: (call(), seconds[name])[1] for name, call in calls.items()}


def example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    two_of_four_(model)
    model[2].weight.data[3, :3] = 1.0
    return model


def test_a_layer_is_converted_where_that_is_faster(anywhere):
    model = example()
    anywhere(cusparselt=packer, cutlass=packer)
    timer = clock(dense=3e-6, cusparselt=2e-6, cutlass=1e-6)
    fast = export.semi_structured(model, sample=5, timer=timer)
    assert isinstance(fast[0].weight, Packed)
    assert not fast[0].weight.requires_grad
    assert not fast.training
    assert type(model[0].weight) is nn.Parameter
    first, second = export.report(fast)
    assert (first.backend, first.gain, first.batch, first.density) == ("cutlass", 3.0, 5, 0.5)
    assert (second.backend, second.gain) == ("dense", None)
    given = torch.randn(2, 16)
    torch.testing.assert_close(fast(given).as_subclass(torch.Tensor), model(given))
    assert export.table(fast).splitlines()[-1] == (
        "2: dense is kept; four consecutive entries of its weight hold more than two nonzeros."
    )


def test_dense_stays_where_nothing_is_won(anywhere):
    timer = clock(dense=1.04e-6, cusparselt=1e-6)
    fast = export.semi_structured(example(), timer=timer)
    assert not isinstance(fast[0].weight, Packed)
    assert export.report(fast)[0].reason == (
        "dense is kept; it is as fast or faster (cusparselt, the best sparse one, runs at 1.04 "
        "times its speed)."
    )


def test_kernels_that_fail_or_differ_are_not_used(anywhere):
    def refuse(weight):
        raise RuntimeError("Error shape is not supported!\nmore")

    def wrong(weight):
        return packer(weight * 1.5)

    anywhere(cusparselt=refuse, cutlass=wrong)
    reason = export.report(export.semi_structured(example()))[0].reason
    start = (
        "dense is kept; no kernel takes the layer (cusparselt: Error shape is not supported; "
        "cutlass: its outputs differ by "
    )
    assert reason.startswith(start)
    assert reason.endswith(" of the largest one).")


def test_layers_without_input_stay(anywhere):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = two_of_four_(nn.Linear(4, 4)), two_of_four_(nn.Linear(4, 4))

        def forward(self, given):
            return self.a(given)

    fast = export.semi_structured(
        Partly(), sample=torch.ones(3, 4), timer=clock(dense=2, cusparselt=1)
    )
    first, second = export.report(fast)
    assert (first.backend, first.batch) == ("cusparselt", 3)
    assert second.reason == "dense is kept; `sample` does not reach the layer."


# Refusals ---------------------------------------------------------------------------------------


def test_the_cpu_is_refused():
    with pytest.raises(IncompatibleError) as error:
        export.semi_structured(example())
    assert str(error.value) == (
        "`semi_structured` needs linear layers on a CUDA device, got a model on cpu.\n"
        "hint: Move it with `.cuda()`; on a CPU use `export.sparse`."
    )
    with pytest.raises(IncompatibleError, match="got a model on no device, without linear layers"):
        export.semi_structured(nn.ReLU())


def test_old_devices_are_refused(monkeypatch):
    class Old:
        weight = type("W", (), {"device": torch.device("cuda", 0)})()

    model = nn.Sequential(nn.Linear(4, 4))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    monkeypatch.setattr(two_of_four.nn, "Linear", Old)
    monkeypatch.setattr(type(model), "modules", lambda self: [Old()])
    with pytest.raises(IncompatibleError) as error:
        export.semi_structured(model)
    assert str(error.value) == (
        "`semi_structured` needs a device of compute capability 8.0 or more, got 7.5 (T4).\n"
        "hint: Older GPUs have no 2:4 kernels; run the dense model."
    )


@pytest.mark.parametrize("sample", ["1", True, 1.5])
def test_wrong_samples_are_refused(sample):
    with pytest.raises(
        InvalidParameterError, match="`sample` must be a number of samples, a tens"
    ):
        export.semi_structured(example(), sample=sample)


# The kernels ------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_compute_what_dense_layers_do(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 256, bias=False))
    model = two_of_four_(model).to("cuda", dtype)
    given = torch.randn(64, 512, device="cuda", dtype=dtype)
    fast = export.semi_structured(
        model, sample=given, timer=lambda calls: {n: 1.0 + (n == "dense") for n in calls}
    )
    gains = export.report(fast)
    assert all(g.backend in ("cusparselt", "cutlass") for g in gains), export.table(fast)
    assert all(g.packed_bytes < 0.6 * g.dense_bytes for g in gains)
    assert isinstance(fast[0].weight, torch.sparse.SparseSemiStructuredTensor)
    with torch.no_grad():
        expected, got = model(given).float(), fast(given).float()
        assert (got - expected).abs().max() <= 0.05 * expected.abs().max()
        one = fast(given[:1]).float()  # another batch than the one it was measured with
        assert (one - expected[:1]).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.gpu
def test_what_is_slower_on_this_device_stays_dense():
    model = two_of_four_(nn.Sequential(nn.Linear(4096, 4096), nn.Linear(4096, 64))).cuda().half()
    fast = export.semi_structured(model, sample=4096)
    for gain, layer in zip(export.report(fast), fast, strict=True):
        sparse = isinstance(layer.weight, torch.sparse.SparseSemiStructuredTensor)
        assert sparse == (gain.backend != "dense")
        assert sparse == (gain.gain is not None and gain.gain >= 1.05), export.table(fast)


@pytest.mark.gpu
def test_shapes_that_no_kernel_takes_stay_dense():
    model = two_of_four_(nn.Sequential(nn.Linear(20, 12))).cuda().half()
    (gain,) = export.report(export.semi_structured(model))
    assert gain.reason.startswith("dense is kept; no kernel takes the layer (")
