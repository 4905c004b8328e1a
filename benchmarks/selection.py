"""Exact selection of the largest magnitudes against torch and numpy, on one thread.

Run ``python benchmarks/selection.py``; it writes ``benchmarks/results/selection.json`` and prints
a table. The largest size needs about 3 GB of memory for a moment.
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
OUT = Path(__file__).parent / "results" / "selection.json"


def measure(function, repeats):
    """Return median, least and largest wall time in seconds."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - began)
        del result
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "repeats": repeats,
    }


def methods(x, count):
    """Return what is timed; every peer is given |x| to make, as a caller would have to."""
    scores, array = {"x": x}, x.numpy()
    n = x.numel()

    def partition():
        return np.partition(np.abs(array), n - count)[n - count]

    return {
        "mask": lambda: top_k_masks(scores, count, magnitude=True),
        "threshold": lambda: threshold(scores, count, magnitude=True),
        "torch.topk": lambda: torch.topk(x.abs(), count, sorted=False),
        "torch.kthvalue": lambda: torch.kthvalue(x.abs(), n - count + 1),
        "numpy.partition": partition,
        "read": x.sum,
    }


def run(n, share, repeats):
    """Return the timings of one size and share, after checking that the answer is right."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    count = round(share * n)
    timed = methods(x, count)
    mask = timed["mask"]()["x"]
    kth = timed["numpy.partition"]()
    # Every entry above the threshold, none below it, and as many as asked for.
    assert not (mask < (x.abs() > float(kth))).any()
    assert not (mask > (x.abs() >= float(kth))).any()
    assert int(mask.sum()) == count
    assert float(timed["threshold"]()) == float(kth)
    del mask
    out = {}
    for name, function in timed.items():
        times = max(repeats // 3, 3) if "." in name else repeats
        out[name] = measure(function, times)
    return {
        "n": n,
        "share": share,
        "seconds": out,
        "times_faster": {
            f"{ours} over {peer}": out[peer]["median"] / out[ours]["median"]
            for ours in ("mask", "threshold")
            for peer in ("torch.topk", "torch.kthvalue", "numpy.partition")
        },
        "reads": {
            ours: out[ours]["median"] / out["read"]["median"] for ours in ("mask", "threshold")
        },
    }


def compile_seconds():
    """Return the time of the first call, which compiles the kernel or loads it from its cache."""
    x = torch.randn(10**5)
    return measure(lambda: top_k_masks({"x": x}, 100, magnitude=True), 1)["median"]


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
        "data": "float32 standard normal, seed 0, keep the largest magnitudes",
        "rows": [],
    }
    names = ["mask", "threshold", "torch.topk", "torch.kthvalue", "numpy.partition", "read"]
    print("median ms [min-max]")
    print(f"{'n':>10} {'share':>5} " + " ".join(f"{name:>24}" for name in names))
    for n in arguments.sizes:
        for share in SHARES:
            row = run(n, share, arguments.repeats)
            report["rows"].append(row)
            cells = [
                f"{1e3 * s['median']:.1f} [{1e3 * s['min']:.1f}-{1e3 * s['max']:.1f}]"
                for s in (row["seconds"][name] for name in names)
            ]
            print(f"{n:>10} {share:>5} " + " ".join(f"{cell:>24}" for cell in cells), flush=True)
    print("\ntimes faster")
    for row in report["rows"]:
        ratios = ", ".join(f"{k} {v:.1f}" for k, v in row["times_faster"].items())
        reads = ", ".join(f"{k} {v:.1f} reads" for k, v in row["reads"].items())
        print(f"{row['n']:>10} {row['share']:>5} {ratios}; {reads}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
