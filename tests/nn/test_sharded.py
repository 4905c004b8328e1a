"""Two gloo processes choose the same support as one process."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ellzero.nn import HardThresholding, schedules

RANKS = 2
STEPS = 14


def network():
    torch.manual_seed(0)
    # 33 and 7 rows do not split evenly.
    return nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 7))


def wrap(model, power=3.0):
    return HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        model,
        n_nonzero=61,
        schedule=schedules.ramp(0.0, 0.6, STEPS),
        power=power,
    )


def batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(16, 12, generator=generator), torch.randn(16, 7, generator=generator)


def train(model, optimizer, start, stop, rank=None):
    for i in range(start, stop):
        x, y = batch(i)
        if rank is not None:
            x, y = x[rank::RANKS], y[rank::RANKS]
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def whole(model):
    out = {}
    for name, p in model.named_parameters():
        full = p.full_tensor() if hasattr(p, "full_tensor") else p
        out[name.removeprefix("module.")] = full.detach().clone()
    return out


def compare(model, single):
    one, two = whole(single), whole(model)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(two[name] != 0, one[name] != 0), name
    assert sum(int((t != 0).sum()) for t in two.values() if t.ndim == 2) == 61


def check_ddp(rank):
    single = network()
    first = wrap(single)
    train(single, first, 0, STEPS)
    model = DistributedDataParallel(network())
    optimizer = wrap(model)
    train(model, optimizer, 0, STEPS, rank)
    compare(model, single)
    masks = torch.cat([(p != 0).reshape(-1) for p in model.parameters()]).float()
    other = masks.clone()
    dist.all_reduce(other)
    assert torch.equal(other, RANKS * masks)


def check_fsdp(rank, mesh):
    single = network()
    first = wrap(single)
    model = network()
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = wrap(model)
    for i in range(STEPS):
        train(single, first, i, i + 1)
        train(model, optimizer, i, i + 1, rank)
        assert optimizer.budget == first.budget == optimizer.n_nonzero
    compare(model, single)
    # A gradient that is NaN on one process alone stops all of them.
    before = whole(model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    if rank == 1:
        model[2].weight.grad.to_local().fill_(float("nan"))
    optimizer.step()
    assert optimizer.n_skipped == 1
    assert all(torch.equal(t, before[n]) for n, t in whole(model).items())
    optimizer.zero_grad()
    saved = copy.deepcopy(optimizer.state_dict())
    again = network()
    fully_shard(again[0], mesh=mesh)
    fully_shard(again, mesh=mesh)
    theirs = wrap(again)
    again.load_state_dict(model.state_dict())
    theirs.load_state_dict(saved)
    for a, b in ((model, optimizer), (again, theirs)):
        b.finalize()
        train(a, b, 0, 2, rank)
    assert all(torch.equal(t, whole(again)[n]) for n, t in whole(model).items())
    first.finalize()
    train(single, first, 0, 2)
    compare(model, single)


def check_rank(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        check_ddp(rank)
        check_fsdp(rank, init_device_mesh("cpu", (RANKS,)))
    finally:
        dist.destroy_process_group()


@pytest.mark.sharded
def test_two_processes_choose_the_support_of_one(tmp_path):
    mp.spawn(check_rank, args=(os.fspath(tmp_path / "store"),), nprocs=RANKS)
