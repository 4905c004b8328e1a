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
    OMP_NUM_THREADS=1 python benchmarks/signals.py --grids \
        --out benchmarks/results/signal_grids.json
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
from importlib.metadata import version
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
            "cvxpy": version("cvxpy"),
            "clarabel": version("clarabel"),
            "scip": None if scip is None else scip_version(scip),
            "ellzero": ellzero.__version__,
        },
        "data": "bumps of 20 samples over a fifth, noise 0.5, seed 0; processor time",
        "load_at_start": load,
        "penalized": penalized,
        "budgeted": budgeted,
        "ruled": ruled,
        "budgeted_trees": trees,
        "first_call": first,
        "conic_rivals": conic_rivals(),
        "scip": "left out: no Python with pyscipopt was given"
        if scip is None
        else scip_rivals(scip),
        "peak_memory": {"n": SIZES[-1], "bytes": peak, "bytes_per_sample": peak / SIZES[-1]},
    }


# Side, smoothness, cost or budget of nonzeros, and whether the data have both signs.
IMAGES = (
    (100, 0.1, {"penalty": 0.3}, False),
    (100, 1.0, {"penalty": 0.5}, False),
    (100, 5.0, {"penalty": 1.0}, False),
    (100, 5.0, {"penalty": 0.3}, False),
    (100, 5.0, {"penalty": 0.1}, False),
    (300, 1.0, {"penalty": 0.5}, False),
    (300, 5.0, {"penalty": 1.0}, False),
    (512, 1.0, {"penalty": 1.0}, False),
    (100, 5.0, {"n_nonzero": 500}, False),
    (100, 1.0, {"penalty": 0.5}, True),
    (100, 5.0, {"penalty": 1.0}, True),
    (100, 5.0, {"n_nonzero": 500}, True),
    (512, 1.0, {"penalty": 0.5}, True),
    (512, 1.0, {"n_nonzero": 17_000}, False),
    (512, 1.0, {"n_nonzero": 17_000}, True),
)


def image(side: int, *, signed: bool, seed: int = 0) -> np.ndarray:
    """Return noisy squares of height 2, of both signs or cut at zero."""
    rng = np.random.default_rng(seed)
    x = np.zeros((side, side))
    for _ in range(side * side // 500 + 1):
        size = rng.integers(3, 9)
        i, j = rng.integers(0, side, 2)
        x[i : i + size, j : j + size] = 2.0 * (rng.choice([-1, 1]) if signed else 1)
    y = x + 0.5 * rng.standard_normal((side, side))
    return y if signed else np.maximum(y, 0.0)


def measure_grids() -> dict[str, object]:
    """Return the figures of images: processor time to the answer, and to gaps on the way."""
    import numba
    from sklearn.base import clone

    from ellzero.signal import SparseSmooth

    load = os.getloadavg()
    for signed in (False, True):
        for given in ({"penalty": 0.5}, {"n_nonzero": 20}):
            SparseSmooth(1.0, graph="grid", **given).fit(image(20, signed=signed))
    rows = []
    for side, smoothness, given, signed in IMAGES:
        y = image(side, signed=signed)
        reached: dict[str, float] = {}
        began = time.process_time()

        def follow(n, value, bound, began=began, reached=reached):  # type: ignore[no-untyped-def]
            took = time.process_time() - began
            for gap in (1e-2, 1e-3, 3e-4):
                if value - bound <= gap * value:
                    reached.setdefault(f"{gap:g}", took)
            return took > 60.0

        est = SparseSmooth(smoothness, graph="grid", **given).fit(y, callback=follow)
        both = time.process_time() - began
        kept = dict(reached)
        began = time.process_time()
        if both < 20:
            clone(est).set_params(certify=False).fit(y)
        rows.append(
            {
                "side": side,
                "smoothness": smoothness,
                **given,
                "signed": signed,
                "seconds": time.process_time() - began if both < 20 else None,
                "seconds_with_certificate": both,
                "seconds_to_gap": kept,
                "gap": est.gap_,
                "status": est.solution_.status.name,
                "claim": est.certificate_.claim.name if est.certificate_ else None,
                "nonzeros": int(est.support_.size),
                **{k: v for k, v in est.solution_.measures.items() if k.startswith("n_")},
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
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
        "data": "squares of height 2 over about a sixteenth, noise 0.5, seed 0; processor time, "
        "runs stopped after 60 s",
        "load_at_start": load,
        "grids": rows,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out")
    parser.add_argument("--scip", help="Python that has pyscipopt")
    parser.add_argument("--grids", action="store_true", help="images instead of chains")
    given = parser.parse_args()
    out = given.out
    text = json.dumps(measure_grids() if given.grids else measure(given.scip), indent=1)
    if out:
        Path(out).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
