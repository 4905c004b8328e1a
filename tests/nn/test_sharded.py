"""Several gloo processes choose the same support as one process, and read each other's runs."""

import copy
import os
import pathlib
import re
import runpy
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import (
    HardThresholding,
    check_same_support,
    checkpoints,
    export,
    schedules,
    support_hash,
)
from ellzero.tensors.thresholded import share_like
from tests.ranks import run_ranks

STEPS = 14
HALF = 7
BUDGET = 61

pytestmark = pytest.mark.sharded


def network(seed=0):
    torch.manual_seed(seed)
    # 33 and 7 rows do not split evenly, and the last weight has one row only.
    return nn.Sequential(nn.Linear(12, 33), nn.Tanh(), nn.Linear(33, 7), nn.Linear(7, 1))


def wrap(model, budget=BUDGET, optimizer=torch.optim.AdamW, **arguments):
    arguments.setdefault("schedule", schedules.ramp(0.0, 0.6, STEPS))
    base = optimizer(model.parameters(), lr=0.01)
    return HardThresholding(base, model, n_nonzero=budget, **arguments)


def shard(model, mesh):
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def batch(i):
    generator = torch.Generator().manual_seed(i)
    return torch.randn(24, 12, generator=generator), torch.randn(24, 1, generator=generator)


def train(model, optimizer, start, stop, part=slice(None)):
    for i in range(start, stop):
        x, y = batch(i)
        ((model(x[part]) - y[part]) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def full(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def whole(model):
    return {n.removeprefix("module."): full(p) for n, p in model.named_parameters()}


def everything(model, optimizer):
    """Return all that a run needs, gathered, by names that no wrapper changes."""
    out = {**whole(model), **{f"latent {n}": full(t) for n, t in optimizer.latent.items()}}
    for name, p in model.named_parameters():
        for kind, value in optimizer.state[p].items():
            out[f"{kind} {name}"] = full(value)
    return out


def same(a, b, where=""):
    assert a.keys() == b.keys(), where
    for name in a:
        assert torch.equal(a[name], b[name]), (where, name)


def compare(model, single):
    one, two = whole(single), whole(model)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(two[name] != 0, one[name] != 0), name
    assert sum(int((t != 0).sum()) for t in two.values() if t.ndim == 2) == BUDGET
    assert support_hash(model) == support_hash(single)


# Two processes -----------------------------------------------------------------------------------


def check_ddp(rank, folder):
    single = network()
    first = wrap(single)
    train(single, first, 0, STEPS)
    model = DistributedDataParallel(network())
    optimizer = wrap(model)
    train(model, optimizer, 0, STEPS, slice(rank, None, 2))
    compare(model, single)
    assert check_same_support(model) == support_hash(single)
    # A model that is not wrapped drifts apart, and every process learns so.
    alone = network()
    drifting = wrap(alone, schedule=schedules.constant(), every=1)
    train(alone, drifting, 0, STEPS, slice(rank, None, 2))
    with pytest.raises(IncompatibleError) as caught:
        check_same_support(alone)
    assert str(caught.value) == (
        "Every process must hold the same support, got another one than that of process 0 on 1 of "
        "2: 1.\nhint: Wrap the model (DDP, FSDP2) before it is given to `HardThresholding`, and "
        "train it through the wrapper."
    )
    # What DDP put before the names does not keep one process from reading the run.
    checkpoints.save(f"{folder}/ddp", model, optimizer)
    checkpoints.load(f"{folder}/ddp", single, first)
    compare(model, single)


def check_fsdp(rank, mesh):
    single = network()
    first = wrap(single)
    model = shard(network(), mesh)
    optimizer = wrap(model)
    for i in range(STEPS):
        train(single, first, i, i + 1)
        train(model, optimizer, i, i + 1, slice(rank, None, 2))
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
    same(whole(model), before)
    optimizer.zero_grad()
    saved = copy.deepcopy(optimizer.state_dict())
    again = shard(network(), mesh)
    theirs = wrap(again)
    again.load_state_dict(model.state_dict())
    theirs.load_state_dict(saved)
    for a, b in ((model, optimizer), (again, theirs)):
        b.finalize()
        train(a, b, 0, 2, slice(rank, None, 2))
    same(whole(model), whole(again))
    first.finalize()
    train(single, first, 0, 2)
    compare(model, single)


def check_replicated_and_sharded(rank, mesh):
    single = network()
    first = wrap(single)
    model = network()
    fully_shard(model[0], mesh=mesh)
    optimizer = wrap(model)
    for i in range(STEPS):
        train(single, first, i, i + 1)
        x, y = batch(i)
        ((model(x[rank::2]) - y[rank::2]) ** 2).mean().backward()
        for p in model.parameters():
            if not hasattr(p.grad, "placements"):
                dist.all_reduce(p.grad, op=dist.ReduceOp.SUM)
                p.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
    compare(model, single)


def check_written_shards(rank, mesh):
    other = network(seed=5)
    model = shard(network(), mesh)
    optimizer = wrap(model, optimizer=torch.optim.SGD, schedule=schedules.constant(), floor=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    weight = model[0].weight.detach()
    part = weight.to_local()
    if rank == 0:  # the other process has to choose anew with it
        part = 10 * whole(other)["0.weight"].chunk(2)[0]
    weight.copy_(share_like(part, weight))
    train(model, optimizer, 0, 1, slice(rank, None, 2))
    seen = whole(model)["0.weight"] != 0
    expected = whole(network())
    expected["0.weight"][:17] = 10 * whole(other)["0.weight"][:17]
    # What was written is all there is in its rows; elsewhere the latent values count.
    flat = torch.cat([t.abs().reshape(-1) for t in expected.values() if t.ndim == 2])
    assert torch.equal(seen, expected["0.weight"].abs() >= flat.sort().values[-BUDGET])


def check_checkpoints(rank, mesh, folder):
    part = slice(rank, None, 2)
    straight = shard(network(), mesh)
    optimizer = wrap(straight)
    train(straight, optimizer, 0, HALF, part)
    middle = everything(straight, optimizer)
    if rank == 0:
        torch.save(middle, f"{folder}/middle.pt")
    checkpoints.save(f"{folder}/two", straight, optimizer)
    plain = {"model": straight.state_dict(), "optimizer": optimizer.state_dict()}
    dcp.save(plain, checkpoint_id=f"{folder}/plain")
    whole_state = get_optimizer_state_dict(
        straight, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    whole_state = copy.deepcopy(whole_state)  # plain tensors in it are those in use
    train(straight, optimizer, HALF, STEPS, part)
    end = everything(straight, optimizer)

    def by_ellzero(model, theirs):
        checkpoints.load(f"{folder}/two", model, theirs)

    def by_torch(model, theirs):
        tensors, moments = get_state_dict(model, theirs)
        state = {"model": tensors, "optimizer": moments}
        dcp.load(state, checkpoint_id=f"{folder}/two")
        set_state_dict(
            model,
            theirs,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )

    def by_plain_states(model, theirs):
        train(model, theirs, 0, 1, part)  # gives the optimizer a state to read into
        state = {"model": model.state_dict(), "optimizer": theirs.state_dict()}
        dcp.load(state, checkpoint_id=f"{folder}/plain")
        model.load_state_dict(state["model"])
        theirs.load_state_dict(state["optimizer"])

    def by_whole_state(model, theirs):
        checkpoints.load(f"{folder}/two", model, wrap(model))
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        given = whole_state if rank == 0 else {}
        set_optimizer_state_dict(model, theirs, given, options=options)

    for how in (by_ellzero, by_torch, by_plain_states, by_whole_state):
        model = shard(network(seed=3), mesh)
        theirs = wrap(model)
        how(model, theirs)
        same(everything(model, theirs), middle, how.__name__)
        assert theirs.n_steps == HALF
        train(model, theirs, HALF, STEPS, part)
        same(everything(model, theirs), end)

    # What one process wrote.
    model = shard(network(seed=3), mesh)
    theirs = wrap(model)
    checkpoints.load(f"{folder}/one", model, theirs)
    same(everything(model, theirs), torch.load(f"{folder}/one.pt"))

    # Refused, on all processes, and nothing is touched.
    model = shard(network(seed=3), mesh)
    theirs = wrap(model, budget=BUDGET + 1)
    train(model, theirs, 0, 2, part)
    before = everything(model, theirs)
    with pytest.raises(InvalidParameterError, match="`state_dict` was saved with sets"):
        checkpoints.load(f"{folder}/two", model, theirs)
    states = theirs.state_dict()
    if rank == 1:
        states["param_groups"][0]["hard_thresholding"] = plain["optimizer"]["param_groups"][0][
            "hard_thresholding"
        ]
    words = "was saved with sets" if rank == 1 else "does not fit on another process"
    with pytest.raises(InvalidParameterError, match=words):
        theirs.load_state_dict(states)
    same(everything(model, theirs), before)
    assert theirs.n_steps == 2


def check_two(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    check_ddp(rank, folder)
    check_fsdp(rank, mesh)
    check_replicated_and_sharded(rank, mesh)
    check_written_shards(rank, mesh)
    check_checkpoints(rank, mesh, folder)


def test_two_processes_choose_the_support_of_one_and_share_checkpoints(tmp_path):
    folder = os.fspath(tmp_path)
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 0, HALF)
    checkpoints.save(f"{folder}/one", model, optimizer)
    torch.save(everything(model, optimizer), f"{folder}/one.pt")
    run_ranks(check_two, 2, folder, folder)
    # What two processes wrote, in one.
    model = network(seed=3)
    optimizer = wrap(model)
    checkpoints.load(f"{folder}/two", model, optimizer)
    same(everything(model, optimizer), torch.load(f"{folder}/middle.pt"))
    train(model, optimizer, HALF, STEPS)
    straight = network()
    train(straight, wrap(straight), 0, STEPS)
    compare(model, straight)


# Four processes ----------------------------------------------------------------------------------


def check_four(rank, folder):
    single = network()
    train(single, wrap(single), 0, STEPS)
    # Replicated along one axis of the mesh, split along the other.
    model = shard(network(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "part")))
    optimizer = wrap(model)
    train(model, optimizer, 0, HALF, slice(rank, None, 4))
    checkpoints.save(f"{folder}/four", model, optimizer)
    train(model, optimizer, HALF, STEPS, slice(rank, None, 4))
    compare(model, single)
    end = everything(model, optimizer)
    again = shard(network(seed=3), model[0].weight.device_mesh)
    theirs = wrap(again)
    checkpoints.load(f"{folder}/four", again, theirs)
    train(again, theirs, HALF, STEPS, slice(rank, None, 4))
    same(everything(again, theirs), end)
    # Three processes, of which some hold no row of the last weight.
    mesh = DeviceMesh("cpu", [0, 1, 2])
    if rank < 3:
        model = shard(network(), mesh)
        train(model, wrap(model), 0, STEPS, slice(rank, None, 3))
        compare(model, single)


@pytest.mark.slow
def test_four_processes_choose_the_support_of_one(tmp_path):
    run_ranks(check_four, 4, tmp_path, os.fspath(tmp_path))


# torchrun ----------------------------------------------------------------------------------------


EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "distributed_training.py"


def run_example(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *map(os.fspath, arguments)])
    runpy.run_path(os.fspath(EXAMPLE), run_name="__main__")


def test_torchrun_goes_on_with_the_run_of_one_process(tmp_path, monkeypatch, capsys):
    run_example(monkeypatch, "--out", tmp_path / "whole")
    said = capsys.readouterr().out
    digits = re.search("rank 0 of 1: 500 nonzero, support ([0-9a-f]{16})", said)[1]
    run_example(monkeypatch, "--out", tmp_path / "half", "--stop", "30")
    assert digits not in capsys.readouterr().out
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    options = ["--fsdp", "--resume", tmp_path / "half", "--out", tmp_path / "two"]
    done = subprocess.run(
        [*command, "2", EXAMPLE, *options],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            # On a busy machine ranks may else miss the store that the launcher shares.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        },
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ranks = re.findall("rank (.) of 2: 500 nonzero, support ([0-9a-f]{16})", done.stdout)
    assert sorted(ranks) == [("0", digits), ("1", digits)]
    one, two = (export.load(tmp_path / run / "model.safetensors") for run in ("whole", "two"))
    assert sum(int((t != 0).sum()) for t in two.values() if t.ndim == 2) == 500
    for name, tensor in one.items():
        assert torch.equal(tensor != 0, two[name] != 0)
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4)
