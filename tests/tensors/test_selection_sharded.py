import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from ellzero.errors import IncompatibleError, NonFiniteError
from ellzero.tensors.named import Batch
from ellzero.tensors.selection import threshold, top_k_masks
from tests.ranks import run_ranks

RANKS = 2


def sorted_masks(scores, count, incumbents, magnitude):
    """Return masks by a full sort in one process: number, then incumbents, then position."""
    values = np.concatenate([t.double().numpy().ravel() for t in scores.values()])
    values = np.abs(values) if magnitude else values
    held = np.concatenate([incumbents[n].numpy().ravel() for n in scores])
    order = np.lexsort((np.arange(values.size), ~held, -values))
    mask = np.zeros(values.size, bool)
    mask[order[:count]] = True
    out, start = {}, 0
    for name, tensor in scores.items():
        out[name] = mask[start : start + tensor.numel()].reshape(tensor.shape)
        start += tensor.numel()
    return out, values[order[count - 1]] if count else np.inf


def whole_scores(kind, dtype):
    generator = torch.Generator().manual_seed(5)
    shapes = {"odd": (7, 3), "single": (1, 5), "copy": (4, 4), "plain": (6,), "scalar": ()}
    scores = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    if kind == "ties":
        scores = {n: (t * 2).round() for n, t in scores.items()}
    elif kind == "zeros":
        scores = {n: torch.where(t > 1, t, torch.zeros_like(t)) for n, t in scores.items()}
    elif kind == "infinite":
        scores = {n: torch.where(t > 0, torch.inf, t) for n, t in scores.items()}
    return {n: t.to(dtype) for n, t in scores.items()}


def place(tensors, mesh):
    placements = {"odd": [Shard(0)], "single": [Shard(0)], "copy": [Replicate()]}
    placements["scalar"] = [Replicate()]
    return {
        n: distribute_tensor(t, mesh, placements[n]) if n in placements else t
        for n, t in tensors.items()
    }


def compare(mesh):
    generator = torch.Generator().manual_seed(9)
    for kind in ("normal", "ties", "zeros", "infinite"):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            if kind != "ties" and dtype != torch.float32:
                continue
            scores = whole_scores(kind, dtype)
            held = {n: torch.rand(t.shape, generator=generator) < 0.4 for n, t in scores.items()}
            for count, magnitude in ((0, True), (1, False), (13, True), (30, False), (60, True)):
                expected, kth = sorted_masks(scores, min(count, 49), held, magnitude)
                placed = place(scores, mesh)
                masks = top_k_masks(
                    placed, count, incumbents=place(held, mesh), magnitude=magnitude
                )
                for name, mask in masks.items():
                    if isinstance(placed[name], DTensor):
                        assert mask.placements == placed[name].placements
                        assert mask.to_local().shape == placed[name].to_local().shape
                    whole = mask.full_tensor() if isinstance(mask, DTensor) else mask
                    np.testing.assert_array_equal(whole.numpy(), expected[name])
                assert threshold(placed, count, magnitude=magnitude).item() == kth


def count_messages(mesh):
    sizes = []
    original = dist.all_reduce
    dist.all_reduce = lambda t, **k: sizes.append(t.numel()) or original(t, **k)
    try:
        x = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
        placed = {"a": distribute_tensor(x, mesh, [Shard(0)])}
        with CommDebugMode() as others:
            top_k_masks(placed, 1000, magnitude=True)
            # Two histograms, the first with a flag for NaN; no tie has to be broken.
            assert sizes == [65537, 65536]
            sizes.clear()
            top_k_masks({"a": placed["a"].round()}, 1000)
            # And then the numbers of ties: one tensor, two ranks, incumbents and others.
            assert sizes == [65537, 65536, 4]
        counts = {str(op): n for op, n in others.get_comm_counts().items() if n}
        assert set(counts) <= {"c10d.allreduce_", "c10d_functional.all_reduce"}, counts
    finally:
        dist.all_reduce = original


def refuse(mesh):
    ones = torch.ones(4, 4)
    split = distribute_tensor(ones, mesh, [Shard(1)])
    with pytest.raises(IncompatibleError) as caught:
        top_k_masks({"a": split}, 1)
    assert str(caught.value) == (
        "Sharded tensors must be replicated or split by rows along one axis of the mesh, got "
        "(Shard(dim=1),) for 'a'.\nhint: Redistribute the tensor to `Shard(0)` or `Replicate()`."
    )
    rows = distribute_tensor(ones, mesh, [Shard(0)])
    with pytest.raises(IncompatibleError) as caught:
        top_k_masks({"a": rows}, 1, incumbents={"a": ones > 0})
    assert str(caught.value) == (
        "Scores and incumbents must be placed alike, got another placement for 'a'.\n"
        "hint: Distribute the incumbents like the scores."
    )
    with pytest.raises(IncompatibleError) as caught:
        top_k_masks(Batch({"a": rows}), 1)
    assert str(caught.value) == (
        "A batch of points must not be sharded, got DTensors.\n"
        "hint: Select for one point at a time."
    )
    # Only the second rank holds the NaN; both must stop, or the first would wait for ever.
    ones[3, 3] = float("nan")
    broken = {"fine": rows, "b": distribute_tensor(ones, mesh, [Shard(0)])}
    for count in (0, 3):
        with pytest.raises(NonFiniteError, match="got NaN in 'b'"):
            top_k_masks(broken, count)


def check_rank(rank):
    mesh = init_device_mesh("cpu", (RANKS,))
    compare(mesh)
    count_messages(mesh)
    refuse(mesh)


@pytest.mark.sharded
def test_two_processes_agree_with_one(tmp_path):
    run_ranks(check_rank, RANKS, tmp_path)
