"""Exact programs for sparse and smooth signals: time per sample, budgets, memory, first call.

Data are bumps of 20 samples, height 2, covering a fifth, with noise of deviation 0.5. Times are
those of the processor, medians of several runs after compilation, for the program and the final
solve; memory and first calls are measured in processes of their own.

    OMP_NUM_THREADS=1 python benchmarks/signals.py --out benchmarks/results/signals.json
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import ellzero
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized
from ellzero.signal.tree import Forest, solve_forest_budgeted

SIZES = (1000, 10_000, 100_000, 1_000_000)
PENALIZED = ((1.0, 1.0), (10.0, 0.1), (100.0, 0.1))
BUDGETED = (
    (100_000, 0.1, 20_003),
    (100_000, 1.0, 20_003),
    (100_000, 10.0, 2003),
    (100_000, 10.0, 20_003),
)
# Rules on the support: samples, rules, and the penalty or the budget.
RULED = (
    (100_000, {"length": 10, "distance": 5}, 0.5, None),
    (100_000, {"most_bumps": 500}, 0.5, None),
    (100_000, {"bump": 2.0}, None, 15_003),
    (10_000, {"length": 10}, None, 1003),
    (10_000, {"most_bumps": 50, "length": 10, "distance": 5}, None, 1503),
)
TREES = (("near", 1.0), ("near", 10.0), ("binary", 10.0), ("hubs", 10.0))

MEMORY = """
import re
from pathlib import Path
from benchmarks.signals import chain
from ellzero.signal.chain import solve_penalized

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

solve_penalized(chain(1000, 10.0), 0.1)
data = chain({n}, 10.0)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
solve_penalized(data, 0.1)
print(status("VmHWM") - before)
"""

FIRST = """
import time
import numpy as np
began = time.process_time()
from ellzero.signal import SparseSmooth
loaded = time.process_time()
SparseSmooth(1.0, {given}, certify=False).fit(np.arange(50.0) % 7)
print(loaded - began, time.process_time() - loaded)
"""


def chain(n: int, smoothness: float, seed: int = 0) -> Chain:
    """Return noisy bumps."""
    rng = np.random.default_rng(seed)
    high = np.repeat(rng.random(n // 20 + 1) < 0.2, 20)[:n]
    y = rng.standard_normal(n) * 0.5 + high * 2.0
    return Chain(y, np.ones(n), np.full(n - 1, smoothness))


def forest(kind: str, n: int, smoothness: float) -> Forest:
    """Return the noisy bumps on a tree: near parents, binary, or 20 hubs."""
    rng, line = np.random.default_rng(1), chain(n, smoothness)
    node = np.arange(n)
    if kind == "near":
        parent = np.minimum(node + 1 + rng.integers(0, 5, n), n - 1)
    elif kind == "binary":
        parent = n - 1 - (n - 2 - node) // 2
    else:
        parent = np.where(node < n - 20, n - 20 + rng.integers(0, 20, n), node + 1)
    parent[-1] = -1
    return Forest(line.y, line.weights, parent.astype(np.int64), np.full(n, smoothness))


def seconds(call, repeats: int) -> tuple[float, object]:  # type: ignore[no-untyped-def]
    """Return the median processor time of a call, and what it returned."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        found = call()
        times.append(time.process_time() - began)
    return statistics.median(times), found


def alone(code: str, cache: str | None = None) -> list[float]:
    """Return the numbers that code prints in a process of its own."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path.cwd()), *sys.path]))
    if cache is not None:
        env["NUMBA_CACHE_DIR"] = cache
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    return [float(word) for word in out.stdout.split()]


def measure() -> dict[str, object]:
    """Return all figures."""
    import numba

    load = os.getloadavg()
    solve_penalized(chain(1000, 1.0), 1.0)
    solve_budgeted(chain(1000, 10.0), 23)
    solve_penalized(dataclasses.replace(chain(1000, 1.0), length=3), 1.0)
    solve_forest_budgeted(forest("near", 1000, 10.0), 113)
    penalized, budgeted, first = [], [], []
    for n in SIZES:
        for smoothness, penalty in PENALIZED:
            data = chain(n, smoothness)
            took, found = seconds(lambda: solve_penalized(data, penalty), 3 if n > 1e5 else 5)  # noqa: B023
            penalized.append(
                {
                    "n": n,
                    "smoothness": smoothness,
                    "penalty": penalty,
                    "seconds": took,
                    "microseconds_per_sample": 1e6 * took / n,
                    "pieces_per_message": found.measures["n_pieces"] / n,
                    "most_pieces": found.measures["most_pieces"],
                    "n_nonzero": found.n_nonzero,
                    "gap": found.gap,
                }
            )
    for n, smoothness, budget in BUDGETED:
        data = chain(n, smoothness)
        took, found = seconds(lambda: solve_budgeted(data, budget), 1)  # noqa: B023
        budgeted.append(
            {
                "n": n,
                "smoothness": smoothness,
                "n_nonzero": budget,
                "seconds": took,
                "programs": found.measures["n_programs"],
                "states_per_sample": found.measures["n_states"] / n,
                "gap": found.gap,
                "status": found.status.name,
            }
        )
    ruled, trees = [], []
    for n, rules, penalty, budget in RULED:
        data = dataclasses.replace(chain(n, 10.0), **rules)  # type: ignore[arg-type]
        if budget is None:
            took, found = seconds(lambda: solve_penalized(data, penalty), 1)  # noqa: B023
        else:
            took, found = seconds(lambda: solve_budgeted(data, budget), 1)  # noqa: B023
        given = {"n": n, "rules": rules, "penalty": penalty, "n_nonzero": budget}
        ruled.append({**given, "seconds": took, "gap": found.gap, **found.measures})
    for kind, smoothness in TREES:
        tree = forest(kind, 100_000, smoothness)
        took, found = seconds(lambda: solve_forest_budgeted(tree, 11_114), 1)  # noqa: B023
        given = {"kind": kind, "n": tree.size, "smoothness": smoothness, "n_nonzero": 11_114}
        trees.append({**given, "seconds": took, "gap": found.gap, **found.measures})
    for what, given in (
        ("penalized", "penalty=1.0"),
        ("budgeted", "n_nonzero=7"),
        ("with rules", "penalty=1.0, min_length=3"),
        ("budgeted forest", "n_nonzero=7, graph=np.arange(49)[::-1, None] + [0, 1]"),
    ):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (
                alone(FIRST.format(given=given), cache),
                alone(FIRST.format(given=given), cache),
            )
        first.append(
            {
                "what": what,
                "import_seconds": cold[0],
                "compiled_seconds": cold[1],
                "from_disk_seconds": warm[1],
            }
        )
    peak = alone(MEMORY.format(n=SIZES[-1]))[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "threads_used": 1,
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "ellzero": ellzero.__version__,
        },
        "data": "bumps of 20 samples over a fifth, noise 0.5, seed 0; processor time",
        "load_at_start": load,
        "penalized": penalized,
        "budgeted": budgeted,
        "ruled": ruled,
        "budgeted_trees": trees,
        "first_call": first,
        "peak_memory": {"n": SIZES[-1], "bytes": peak, "bytes_per_sample": peak / SIZES[-1]},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    out = parser.parse_args().out
    text = json.dumps(measure(), indent=1)
    if out:
        Path(out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
