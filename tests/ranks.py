"""Gloo processes for tests: every rank runs one check, then leaves at once."""

import os
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(check, size, folder, *arguments):
    """Run ``check(rank, *arguments)`` on `size` processes that meet in a file of `folder`."""
    store = f"file://{os.fspath(folder)}/store{size}"
    mp.spawn(_run, args=(check, size, store, *arguments), nprocs=size)


def _run(rank, check, size, store, *arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    check(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo that asks for Python while the interpreter ends aborts the process.
    os._exit(0)
