"""The escape experiment as one batched call against a Python loop over its starts.

Both sides run the same solver for the same number of iterations on one thread; the loop gives
`iterate` one start at a time. The loop is measured on a sample of the starts and its time per
start is multiplied by the number of starts; the sample's spread is reported.

    OMP_NUM_THREADS=1 python benchmarks/escape.py --out benchmarks/results/escape.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import ellzero
from ellzero.core.solver import iterate
from ellzero.papers.ht_escape import N_STARTS, Setting, build_setting, make_starts
from ellzero.solvers import IHT
from ellzero.tensors import named
from ellzero.tensors.named import Batch

ITERATIONS = 100
SAMPLE = 100
REPEATS = 5


def run_once(setting: Setting, starts: Batch) -> tuple[float, torch.Tensor]:
    """Return the seconds of one call of `iterate` and the final points."""
    solver = IHT(step_size=setting.step_size, tol=0.0)
    began = time.perf_counter()
    run = iterate(setting.problem, solver, starts, max_iter=ITERATIONS)
    return time.perf_counter() - began, named.flatten(run.params)


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ellzero": ellzero.__version__,
        "threads": torch.get_num_threads(),
    }


def measure() -> dict[str, object]:
    """Return all figures."""
    torch.set_num_threads(1)
    setting = build_setting()
    starts, _ = make_starts(setting, N_STARTS, seed=0)
    run_once(setting, named.take(starts, slice(0, 8)))
    batched = []
    for _ in range(REPEATS):
        seconds, together = run_once(setting, starts)
        batched.append(seconds)
    # Every 40th start, so that the sample has points from the whole range.
    rows = range(0, N_STARTS, N_STARTS // SAMPLE)
    alone, differences = [], []
    for row in rows:
        seconds, point = run_once(setting, named.take(starts, slice(row, row + 1)))
        alone.append(seconds)
        differences.append(float((point[0] - together[row]).abs().max()))
    per_start = statistics.mean(alone)
    call = statistics.median(batched)
    return {
        "what": "4000 runs of hard thresholding: one batched call against a loop over starts",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "starts": N_STARTS,
        "iterations": ITERATIONS,
        "batched_seconds": call,
        "batched_seconds_all": batched,
        "loop_sample": len(alone),
        "loop_seconds_per_start": per_start,
        "loop_seconds_per_start_deviation": statistics.stdev(alone),
        "loop_seconds_extrapolated": per_start * N_STARTS,
        "loop_note": f"measured on {len(alone)} starts, times {N_STARTS / len(alone):g}",
        "ratio": per_start * N_STARTS / call,
        "target_ratio": 50,
        "largest_difference_of_final_points": max(differences),
    }


def main() -> int:
    """Measure, print, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="JSON file to write")
    arguments = parser.parse_args()
    figures = measure()
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n")
    return 0 if figures["ratio"] >= figures["target_ratio"] else 1  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
