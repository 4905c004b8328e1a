"""Exact selection of the largest magnitudes against torch and numpy, on one thread.

Run ``python benchmarks/selection.py``; it writes ``benchmarks/results/selection.json`` and prints
a table. *Cold* selects from scratch; *warm* is given the threshold of a moment ago, when every
entry was a tenth of a percent of a standard deviation elsewhere, as in training. All methods take
turns, in processor time, so that a busy moment of the machine is shared. The largest size needs
about 3 GB of memory for a moment.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from ellzero.tensors.selection import threshold, top_k_masks

SIZES = [10**6, 10**7, 10**8]
SHARES = [0.01, 0.1]
OURS = ("threshold cold", "threshold warm", "mask cold", "mask warm")
PEERS = ("torch.topk", "torch.kthvalue", "numpy.partition")
OUT = Path(__file__).parent / "results" / "selection.json"


def measure(calls, repeats):
    """Return median, quartiles and least processor time in seconds, of calls in turns."""
    seconds = {name: [] for name in calls}
    for i in range(repeats):
        for name, call in calls.items():
            if name in PEERS and i % 3:  # slow ones a third as often
                continue
            began = time.process_time()
            result = call()
            seconds[name].append(time.process_time() - began)
            del result
    out = {}
    for name, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        out[name] = {
            "median": statistics.median(times),
            "quartiles": [low, high],
            "min": min(times),
            "repeats": len(times),
        }
    return out


def methods(x, count, near):
    """Return what is timed; every peer is given |x| to make, as a caller would have to."""
    scores, array = {"x": x}, x.numpy()
    n = x.numel()

    def partition():
        return np.partition(np.abs(array), n - count)[n - count]

    return {
        "threshold cold": lambda: threshold(scores, count, magnitude=True),
        "threshold warm": lambda: threshold(scores, count, magnitude=True, near=near),
        "mask cold": lambda: top_k_masks(scores, count, magnitude=True),
        "mask warm": lambda: top_k_masks(scores, count, magnitude=True, near=near),
        "torch.topk": lambda: torch.topk(x.abs(), count, sorted=False),
        "torch.kthvalue": lambda: torch.kthvalue(x.abs(), n - count + 1),
        "numpy.partition": partition,
        "read": x.sum,
    }


def run(n, share, repeats):
    """Return the timings of one size and share, after checking that the answer is right."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, generator=generator)
    count = round(share * n)
    before = float(threshold({"x": x}, count, magnitude=True))
    x.add_(torch.randn(n, generator=generator), alpha=1e-3)
    calls = methods(x, count, (0.998 * before, 1.002 * before))
    kth = float(calls["numpy.partition"]())
    for warmth in ("cold", "warm"):
        mask = calls[f"mask {warmth}"]()["x"]
        # Every entry above the threshold, none below it, and as many as asked for.
        assert not (mask < (x.abs() > kth)).any()
        assert not (mask > (x.abs() >= kth)).any()
        assert int(mask.sum()) == count
        assert float(calls[f"threshold {warmth}"]()) == kth
        del mask
    seconds = measure(calls, repeats)
    return {
        "n": n,
        "share": share,
        "seconds": seconds,
        "times_faster": {
            f"{ours} over {peer}": seconds[peer]["median"] / seconds[ours]["median"]
            for ours in OURS
            for peer in PEERS
        },
        "reads": {o: seconds[o]["median"] / seconds["read"]["median"] for o in OURS},
    }


def compile_seconds():
    """Return the time of the first call, which compiles the kernel or loads it from its cache."""
    x = torch.randn(10**5)
    began = time.perf_counter()
    top_k_masks({"x": x}, 100, magnitude=True)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "threads_used": torch.get_num_threads(),
            "processor": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "numba": importlib.metadata.version("numba"),
        },
        "first_call_seconds": compile_seconds(),
        "data": "float32 standard normal, seed 0, keep the largest magnitudes; processor time",
        "load_at_start": os.getloadavg(),
        "rows": [],
    }
    print("median ms [quartiles]; times as fast as each peer; bare reads")
    for n in arguments.sizes:
        for share in SHARES:
            row = run(n, share, arguments.repeats)
            report["rows"].append(row)
            print(f"{n} entries, {share:.0%} kept", flush=True)
            for name, s in row["seconds"].items():
                low, high = (1e3 * q for q in s["quartiles"])
                cell = f"  {name:<16} {1e3 * s['median']:9.2f} [{low:.2f}-{high:.2f}]"
                if name in OURS:
                    gains = (f"{p} {row['times_faster'][f'{name} over {p}']:.1f}x" for p in PEERS)
                    cell += f"  {', '.join(gains)}; {row['reads'][name]:.1f} reads"
                print(cell, flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
