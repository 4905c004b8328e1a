"""Proofs of best subsets: ours against OKRidge and l0bnb, on the same 54 ridge problems.

Run ``python benchmarks/exact_subset.py --peers PYTHON``, where PYTHON is the interpreter of an
environment with ``numpy<2 okridge l0bnb scikit-learn requests`` (OKRidge does not declare all that
it imports); without it only ours runs. Writes ``benchmarks/results/exact_subset.json`` and prints
a table. Every solver runs on one thread and stops at a limit of processor time for each instance.

All solve: minimize ||y - X b||^2 + lambda2 ||b||^2 with at most k nonzeros, X and y centered.
l0bnb prices nonzeros instead; it gets a price at which k is right, from our values for k - 1, k,
k + 1 (where there is one), and a bound on coefficients of twice the largest of our answer.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from ellzero.certificates import SquaresProblem, check_tree
from ellzero.subset.exact import prove
from ellzero.subset.gram import gram_of
from ellzero.subset.search import search

OUT = Path(__file__).parent / "results" / "exact_subset.json"
SHAPES = (
    (200, 100, 5),
    (200, 100, 10),
    (500, 100, 10),
    (300, 200, 5),
    (500, 200, 10),
    (500, 300, 10),
    (500, 400, 5),
    (500, 400, 10),
    (500, 1000, 3),
)
CORRELATIONS = (0.0, 0.5, 0.9)
SIGNALS = (1.0, 5.0)
RIDGES = (0.01, 0.1, 1.0)


def instances():
    """Yield names, data and settings."""
    cases = itertools.product(SHAPES, CORRELATIONS, SIGNALS)
    for number, ((n, p, k), rho, snr) in enumerate(cases):
        rng = np.random.default_rng(number)
        X = rng.standard_normal((n, p))
        for j in range(1, p):
            X[:, j] = rho * X[:, j - 1] + np.sqrt(1 - rho**2) * X[:, j]
        coef = np.zeros(p)
        coef[np.linspace(0, p - 1, k).astype(int)] = 1.0
        signal = X @ coef
        y = signal + rng.standard_normal(n) * np.sqrt(signal.var() / snr)
        ridge = RIDGES[number % len(RIDGES)]
        yield {
            "instance": number, "n": n, "p": p, "k": k, "rho": rho, "snr": snr, "ridge": ridge,
            "X": X - X.mean(0), "y": y - y.mean(),
        }  # fmt: skip


def ours(case, limit):
    """Prove one instance."""
    began, wall = time.process_time(), time.perf_counter()
    gram = gram_of(case["X"], case["y"])

    def look(progress):
        return time.process_time() - began > limit

    result = prove(gram, case["k"], ridge=case["ridge"] / gram.n_samples, callback=look)
    unit = 2 * gram.n_samples
    spent, wall = time.process_time() - began, time.perf_counter() - wall
    return {
        **recheck(case, result),
        "value": result.subset.value * unit,
        "bound": result.lower_bound * unit,
        "gap": result.gap,
        "proven": result.gap <= 1e-6,
        "nodes": result.n_nodes,
        "cpu": spent,
        "wall": wall,
        "root_gap": 1 - result.root_bound / result.subset.value,
        "support": result.subset.support.tolist(),
        "largest": float(np.abs(result.subset.coef).max()),
    }


def recheck(case, result):
    """Recompute the bound from the data and the evidence alone."""
    if result.proof is None:
        return {"rechecked": False}
    began = time.process_time()
    X, y = case["X"], case["y"]
    matrix = X.T @ X + case["ridge"] * np.eye(case["p"])
    problem = SquaresProblem(matrix, X.T @ y, float(y @ y), case["k"], least=0.0)
    checked = check_tree(problem, result.proof)
    return {
        "rechecked": checked.reason is None,
        "checked_bound": checked.lower_bound,
        "check_cpu": time.process_time() - began,
        "steps": len(result.proof),
    }


def default_search(case):
    """Search one instance by the default heuristic, which knows nothing of the proof."""
    began = time.process_time()
    gram = gram_of(case["X"], case["y"])
    subset = search(gram, [case["k"]], ridge=case["ridge"] / gram.n_samples)[case["k"]]
    return {"value": subset.value * 2 * gram.n_samples, "cpu": time.process_time() - began}


def price(case, value):
    """Return a price of a nonzero at which k of them is right, or None."""
    gram = gram_of(case["X"], case["y"])
    unit = 2 * gram.n_samples
    near = []
    for k in (case["k"] - 1, case["k"] + 1):
        result = prove(gram, k, ridge=case["ridge"] / gram.n_samples, max_nodes=20000)
        if result.gap > 1e-6:
            return None
        near.append(result.subset.value * unit)
    above, below = near[0] - value, value - near[1]
    return None if above <= below * 1.02 else (above * below) ** 0.5


def peers(python, cases, rows, limit, solvers):
    """Run the peers in their environment; yield versions, or None after an answer."""
    script = Path(__file__).with_name("exact_subset_peers.py")
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    with tempfile.TemporaryDirectory() as folder:
        for solver in solvers:
            left = [i for i, row in enumerate(rows) if solver not in row]
            for file in Path(folder).glob("*.npz"):
                file.unlink()
            for i in left:
                case, row = cases[i], rows[i]
                extra = {"price": row.get("price") or np.nan, "largest": row["ours"]["largest"]}
                np.savez(Path(folder) / f"{case['instance']:03d}.npz", **case, **extra)
            run = subprocess.Popen(
                [python, script, folder, solver, str(limit)],
                stdout=subprocess.PIPE, text=True, env={**os.environ, **threads},
            )  # fmt: skip
            for line in run.stdout:
                answer = json.loads(line)
                if "versions" in answer:
                    yield answer["versions"]
                    continue
                row = rows[left[answer.pop("row")]]
                if "value" in answer and solver == "okridge":
                    answer["value"] += row["energy"]
                    answer["bound"] += row["energy"]
                row[solver] = answer
                print(row["instance"], solver, answer, flush=True)
                yield None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default=None, help="interpreter with okridge and l0bnb")
    parser.add_argument("--solvers", nargs="*", default=["okridge", "l0bnb"])
    parser.add_argument("--limit", type=float, default=20.0, help="processor seconds an instance")
    parser.add_argument("--only", type=int, nargs="*", default=None)
    parser.add_argument("--resume", action="store_true", help="go on with the file of a run")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    before = {"results": [], "peers": {}}
    if arguments.resume and arguments.out.exists():
        before = json.loads(arguments.out.read_text())
    known = {row["instance"]: row for row in before["results"]}
    load = os.getloadavg()
    warm = gram_of(np.eye(9)[:, :5], np.arange(9.0))
    search(warm, [3])  # compiles
    ours(next(instances()), 1.0)
    cases = [c for c in instances() if arguments.only is None or c["instance"] in arguments.only]
    rows, versions = [], before["peers"]

    def save():
        arguments.out.parent.mkdir(exist_ok=True)
        facts = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load_at_start": load,
            **{n: importlib.metadata.version(n) for n in ("numpy", "numba")},
            "peers": versions,
            "limit": arguments.limit,
        }
        arguments.out.write_text(json.dumps({**facts, "results": rows}, indent=2) + "\n")

    for case in cases:
        row = known.get(case["instance"])
        if row is None:
            row = {name: v for name, v in case.items() if name not in ("X", "y")}
            row["energy"] = float(case["y"] @ case["y"])
            row["ours"] = ours(case, arguments.limit)
            row["search"] = default_search(case)
            small = case["p"] <= 300 and case["instance"] % 3 == 0
            asked = arguments.peers and "l0bnb" in arguments.solvers
            if asked and small and row["ours"]["proven"]:
                row["price"] = price(case, row["ours"]["value"])
            print(row, flush=True)
        rows.append(row)
        save()
    if arguments.peers:
        for found in peers(arguments.peers, cases, rows, arguments.limit, arguments.solvers):
            versions.update(found or {})
            save()
    sure = [r for r in rows if r["ours"]["proven"]]
    held = [r["ours"] for r in sure if r["ours"]["rechecked"]]
    shares = [a["check_cpu"] / a["cpu"] for a in held]
    print(f"  bounds rechecked: {len(held)} of {len(sure)}, median share of the time "
          f"{statistics.median(shares) if shares else float('nan'):.3f}")  # fmt: skip
    hits = sum(r["search"]["value"] <= r["ours"]["value"] * (1 + 1e-6) for r in sure)
    print(f"  search: optimal in {hits} of {len(sure)} with a proof")
    for name in ("ours", "okridge", "l0bnb"):
        tried = [r[name] for r in rows if name in r]
        if not tried:
            continue
        proven = [a for a in tried if a.get("proven")]
        times = [a["cpu"] for a in proven]
        middle = statistics.median(times) if times else float("nan")
        print(f"{name:>8}: proven {len(proven)} of {len(tried)}, median {middle:.3f} s")


if __name__ == "__main__":
    main()
