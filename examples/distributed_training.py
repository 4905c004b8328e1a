"""Train one sparse network with several processes, and go on later with any other number.

torchrun starts the processes; nothing else is needed:

    torchrun --nproc-per-node 2 examples/distributed_training.py --fsdp --stop 30
    torchrun --nproc-per-node 4 examples/distributed_training.py --ddp --resume runs/sparse

`--fsdp` shards the parameters (FSDP2), `--ddp` copies them. On several machines give torchrun
`--nnodes`, `--rdzv-backend c10d` and `--rdzv-endpoint host:port`, and let `--out` be on storage
that all of them reach. Processes use CUDA and nccl where there is a GPU for each, else the CPU and
gloo. Without torchrun the script trains in one process.

The budget is one number over all weights of all shards. Every process prints how many weights are
nonzero and a hash of where they are; the hashes are the same for any number of processes, if the
batch divides evenly. All processes write a checkpoint where the run stops (`OUT/checkpoint`), and
in the end one writes the network, compressed (`OUT/model.safetensors`).
"""

import argparse
import os
import pathlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ellzero.nn import HardThresholding, check_same_support, checkpoints, export, schedules


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--fsdp", action="store_true", help="shard the parameters (FSDP2)")
    how.add_argument("--ddp", action="store_true", help="copy the parameters (the default)")
    parser.add_argument("--n-nonzero", type=int, default=500, help="weights to keep")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the training")
    parser.add_argument("--stop", type=int, help="leave after this step")
    parser.add_argument("--batch", type=int, default=96, help="samples of a step, all processes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/sparse"))
    parser.add_argument("--resume", type=pathlib.Path, help="the --out of a run to go on with")
    return parser.parse_args()


def make_model():
    torch.manual_seed(0)  # the same weights everywhere
    return nn.Sequential(
        nn.Linear(32, 129), nn.GELU(), nn.Linear(129, 65), nn.GELU(), nn.Linear(65, 10)
    )


def make_batch(step, size, teacher):
    """Return one batch for all processes; each takes its part, so that their number is free."""
    x = torch.randn(size, 32, generator=torch.Generator().manual_seed(step))
    return x, (x @ teacher).argmax(dim=1)


def main():
    options = parse()
    launched = "RANK" in os.environ
    n_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    on_gpu = torch.cuda.device_count() >= n_local
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if launched:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    train(options, device, launched)
    if launched:
        dist.barrier()  # nobody leaves while another still talks
        dist.destroy_process_group()


def train(options, device, launched):
    rank = dist.get_rank() if launched else 0
    n_ranks = dist.get_world_size() if launched else 1
    model = make_model().to(device)
    if launched and options.fsdp:
        mesh = init_device_mesh(device.type, (n_ranks,))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif launched:
        model = DistributedDataParallel(model)
    # The model is wrapped first; the optimizer of its parameters, and the budget, come after.
    optimizer = HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        model,
        n_nonzero=options.n_nonzero,
        schedule=schedules.ramp(0.0, 0.5, options.steps),
    )
    if options.resume:
        checkpoints.load(options.resume / "checkpoint", model, optimizer)

    teacher = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
    stop = options.steps if options.stop is None else options.stop
    while optimizer.n_steps < stop:
        x, y = make_batch(optimizer.n_steps, options.batch, teacher)
        x, y = x[rank::n_ranks].to(device), y[rank::n_ranks].to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.n_steps % 20 == 0:
            check_same_support(model)  # raises on every process if one has another support
    checkpoints.save(options.out / "checkpoint", model, optimizer)
    if optimizer.n_steps >= options.steps:
        optimizer.finalize()

    count, digits = optimizer.n_nonzero, check_same_support(model)
    print(f"rank {rank} of {n_ranks}: {count} nonzero, support {digits}", flush=True)
    if optimizer.is_finalized:
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=whole)  # complete on the first process only
        if rank == 0:
            options.out.mkdir(parents=True, exist_ok=True)
            size = export.save(state, options.out / "model.safetensors")
            dense = sum(t.numel() * t.element_size() for t in state.values())
            print(f"model.safetensors: {size} bytes, dense {dense}", flush=True)


if __name__ == "__main__":
    main()
