r"""Exact programs for sparse and smooth signals: time per sample, budgets, memory, first call.

Data are bumps of 20 samples, height 2, covering a fifth, with noise of deviation 0.5. Times are
those of the processor, medians of several runs after compilation, for the program and the final
solve; memory and first calls are measured in processes of their own.

Beside it, on the same series: the perspective and the pair hull by cvxpy and Clarabel (bounds
only, n <= 2000), and SCIP's branch and bound on the perspective model (n <= 100, 60 seconds), with
the ratio of its time to ours, median and range over three series. SCIP runs where ``--scip`` names
a Python that has pyscipopt, and is left out elsewhere.

    OMP_NUM_THREADS=1 python benchmarks/signals.py --scip PYTHON \
        --out benchmarks/results/signals.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import ellzero
from ellzero.signal.chain import Chain, solve_budgeted, solve_penalized

SIZES = (1000, 10_000, 100_000, 1_000_000)
PENALIZED = ((1.0, 1.0), (10.0, 0.1), (100.0, 0.1))
BUDGETED = (
    (100_000, 0.1, 20_003),
    (100_000, 1.0, 20_003),
    (100_000, 10.0, 2003),
    (100_000, 10.0, 20_003),
)

CONIC = ((100, 1.0), (500, 1.0), (500, 10.0), (2000, 1.0), (2000, 10.0))
SCIP = ((50, 0.1), (50, 1.0), (50, 10.0), (100, 0.1), (100, 1.0))
SEEDS, SCIP_SECONDS = (0, 1, 2), 60.0

# Reads a list of problems, writes value, bound and processor seconds of each.
BRANCH = """
import json, sys, time
from pyscipopt import Model, quicksum

for line in sys.stdin:
    y, smoothness, k, limit = json.loads(line)
    n = len(y)
    model = Model()
    model.hideOutput()
    model.setParam("limits/time", limit)
    model.setParam("timing/clocktype", 1)
    model.setParam("limits/gap", 1e-6)
    x = [model.addVar(lb=-10, ub=10) for _ in y]
    z = [model.addVar(vtype="B") for _ in y]
    s = [model.addVar(lb=0) for _ in y]
    t = [model.addVar(lb=0) for _ in y[1:]]
    for i in range(n):
        model.addCons(x[i] * x[i] <= s[i] * z[i])
        model.addCons(x[i] <= 10 * z[i])
        model.addCons(x[i] >= -10 * z[i])
    for i in range(n - 1):
        model.addCons((x[i] - x[i + 1]) * (x[i] - x[i + 1]) <= t[i])
    model.addCons(quicksum(z) <= k)
    fit = quicksum(v * v - 2 * v * a + b for v, a, b in zip(y, x, s))
    model.setObjective(fit + smoothness * quicksum(t))
    began = time.process_time()
    model.optimize()
    took = time.process_time() - began
    value = model.getObjVal() if model.getNSols() else None
    print(json.dumps([value, model.getDualbound(), took, model.getStatus()]), flush=True)
"""

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


def ours(data: Chain, budget: int) -> tuple[float, float]:
    """Return the processor seconds of one exact solution, and its value."""
    count = max(3, 20_000 // data.size)
    began = time.process_time()
    for _ in range(count):
        found = solve_budgeted(data, budget)
    return (time.process_time() - began) / count, found.value


def spread(numbers: list[float]) -> dict[str, float]:
    """Return median, least and largest."""
    return {"median": statistics.median(numbers), "least": min(numbers), "largest": max(numbers)}


def conic_rivals() -> list[dict[str, object]]:
    """Return the cost and the gap of conic relaxations beside the exact program."""
    from ellzero.signal.convexification import relax_network
    from ellzero.signal.lasso import Network

    out: list[dict[str, object]] = []
    for n, smoothness in CONIC:
        budget, here = n // 10, np.arange(n - 1)
        for method in ("perspective", "pair"):
            taken, exact_taken, gaps, above = [], [], [], []
            for seed in SEEDS:
                data = chain(n, smoothness, seed)
                network = Network(data.y, data.weights, here, here + 1, data.edges)
                relax_network(network, method, budget=budget)
                began = time.process_time()
                found = relax_network(network, method, budget=budget)
                taken.append(time.process_time() - began)
                seconds_exact, exact = ours(data, budget)
                exact_taken.append(seconds_exact)
                gaps.append((exact - found.lower_bound) / exact)
                above.append((found.value - exact) / exact)
            ratios = [a / b for a, b in zip(taken, exact_taken, strict=True)]
            out.append(
                {
                    "rival": f"cvxpy and Clarabel, {method}",
                    "n": n,
                    "smoothness": smoothness,
                    "n_nonzero": budget,
                    "seconds": spread(taken),
                    "seconds_exact": spread(exact_taken),
                    "ratio": spread(ratios),
                    "gap_of_bound": spread(gaps),
                    "rounded_above_exact": spread(above),
                }
            )
    return out


def scip_rivals(python: str) -> list[dict[str, object]]:
    """Return the time and the gap of SCIP beside the exact program."""
    problems = [
        (chain(n, smoothness, seed), smoothness, n // 10)
        for n, smoothness in SCIP
        for seed in SEEDS
    ]
    lines = "".join(json.dumps([d.y.tolist(), s, k, SCIP_SECONDS]) + "\n" for d, s, k in problems)
    done = subprocess.run(
        [python, "-c", BRANCH], input=lines, capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    out: list[dict[str, object]] = []
    for case, (n, smoothness) in enumerate(SCIP):
        here = slice(case * len(SEEDS), (case + 1) * len(SEEDS))
        exact = [ours(data, budget) for data, _, budget in problems[here]]
        found = answers[here]
        out.append(
            {
                "rival": "SCIP, perspective model",
                "n": n,
                "smoothness": smoothness,
                "n_nonzero": n // 10,
                "seconds": spread([a[2] for a in found]),
                "seconds_exact": spread([e[0] for e in exact]),
                "ratio": spread([a[2] / e[0] for a, e in zip(found, exact, strict=True)]),
                "solved": sum(a[3] in ("optimal", "gaplimit") for a in found),
                "of": len(found),
                "gap_left": spread([(a[0] - a[1]) / a[0] for a in found]),
                "difference_of_values": spread(
                    [(a[0] - e[1]) / e[1] for a, e in zip(found, exact, strict=True)]
                ),
            }
        )
    return out


def scip_version(python: str) -> str:
    """Return the versions of pyscipopt and SCIP."""
    code = (
        "import pyscipopt; m = pyscipopt.Model(); "
        "print('pyscipopt', pyscipopt.__version__, 'with SCIP', m.version())"
    )
    return subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def measure(scip: str | None) -> dict[str, object]:
    """Return all figures."""
    import numba

    load = os.getloadavg()
    solve_penalized(chain(1000, 1.0), 1.0)
    solve_budgeted(chain(1000, 10.0), 23)
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
    for what, given in (("penalized", "penalty=1.0"), ("budgeted", "n_nonzero=7")):
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
            "cvxpy": version("cvxpy"),
            "clarabel": version("clarabel"),
            "scip": None if scip is None else scip_version(scip),
            "ellzero": ellzero.__version__,
        },
        "data": "bumps of 20 samples over a fifth, noise 0.5, seed 0; processor time",
        "load_at_start": load,
        "penalized": penalized,
        "budgeted": budgeted,
        "first_call": first,
        "conic_rivals": conic_rivals(),
        "scip": "left out: no Python with pyscipopt was given"
        if scip is None
        else scip_rivals(scip),
        "peak_memory": {"n": SIZES[-1], "bytes": peak, "bytes_per_sample": peak / SIZES[-1]},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--scip", help="Python that has pyscipopt")
    args = parser.parse_args()
    out = args.out
    text = json.dumps(measure(args.scip), indent=1)
    if out:
        Path(out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
