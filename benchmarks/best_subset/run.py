"""Run a table of the benchmark: every peer on every instance, in turns, in processor time.

``python -m benchmarks.best_subset.run g1 S1 --environments DIRECTORY`` measures what the results
in ``benchmarks/results/best_subset_TABLE.json`` lack, and prints the table; ``--again ellzero``
measures that method anew. Results are written after every instance.

Peers that need other versions have environments of their own, ``DIRECTORY/.venv-NAME``; a peer
that is not installed is left out and named::

    peers      ellzero's own dependencies, abess skscope[JAX] fastsparsegams
    exact      okridge l0bnb "numpy<2" scikit-learn psutil requests
    fasterrisk fasterrisk
    l0learn    l0learn (Python 3.10)

Instances are written to a folder for temporary files and read by every worker. All methods take
turns over an instance, so that a busy moment of the machine is shared, and one thread is used. A
cell says when it was measured: cells of a table that were measured apart are not of the same run.
"""

import argparse
import datetime
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.best_subset import objective, table, worker
from benchmarks.best_subset.instances import SEEDS, instance

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
ENVIRONMENTS = {"okridge": "exact", "fasterrisk": "fasterrisk", "l0learn_old": "l0learn"}
ADAPTERS = (
    "ours",
    "ours_estimator",
    "abess",
    "l0learn",
    "l0learn_old",
    "greedy",
    "lasso",
    "sequential",
    "skscope",
    "okridge",
    "fasterrisk",
)
ALONE = ("tall", "sparse")  # large: one process at a time
FEW = {"skscope": 4, "fasterrisk": 6}  # slow peers: only so many instances of a table
ONE_THREAD = ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB")


class Worker:
    """A peer in its process."""

    def __init__(self, name, environments):
        self.name = name
        self.python = sys.executable
        if environments:
            own = environments / f".venv-{ENVIRONMENTS.get(name, 'peers')}" / "bin" / "python"
            if own.exists():
                self.python = str(own)
        self.process = None
        self.first = {}

    def start(self):
        """Start the process where there is none; return what the adapter can do."""
        if self.process is None:
            env = os.environ | {f"{n}_NUM_THREADS": "1" for n in ONE_THREAD}
            env |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "JAX_PLATFORMS": "cpu"}
            env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            self.process = subprocess.Popen(
                [self.python, "-m", "benchmarks.best_subset.worker", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=env,
                cwd=ROOT,
            )
            self.about = self.read(120)
        return self.about

    def read(self, limit):
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        code = self.process.poll()
        self.stop()
        return {"error": f"ended with code {code}" if ready else f"longer than {limit} s"}

    def ask(self, request, limit):
        """Return the answer to a request."""
        self.start()
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return self.read(limit)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def able(about, given):
    """Return whether an adapter takes such an instance."""
    return (
        not about.get("missing")
        and "error" not in about
        and given.loss in about["losses"]
        and given.task in about["tasks"]
        and (given.groups is None or about["groups"])
        and (given.weight is None or about["weights"])
        and (given.ridge == 0 or about["ridge"])
        and (isinstance(given.X, np.ndarray) or about["sparse"])
    )


def judge(given, answer):
    """Return the refitted value of every budget that was answered."""
    if given.task == "predict":
        coef = np.array(answer["coef"])
        used = int(np.count_nonzero(coef))
        risk = objective.excess_risk(given, coef)
        return {"chosen": {"value": risk, "risk": risk, "used": used}}
    if given.task == "cv":  # one model
        smallest = min(answer, key=int)
        answer = {smallest: answer[smallest]}
    out = {}
    for budget, support in answer.items():
        out[budget] = {"value": objective.value(given, support, int(budget)), "used": len(support)}
        if given.task == "cv":
            out[budget]["risk"] = objective.risk(given, support)
        if len(answer) == 1:
            out[budget]["support"] = sorted(support)
    return out


def run_instance(given, workers, cells, arguments, alone, order):
    """Fill the cells of one instance, the `order`-th of its table."""
    limit, seconds = arguments.limit, {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        path = str(Path(folder) / "instance.npz")
        worker.save(given, path)
        plan = []
        for one in workers:
            about = one.start()
            if able(about, given) and order < FEW.get(one.name, order + 1):
                for setting in about["settings"]:
                    if given.task not in about["only"].get(setting, (given.task,)):
                        continue
                    name = f"{one.name}: {setting}"
                    if arguments.only and not name.startswith(tuple(arguments.only)):
                        continue
                    if name not in cells or name.startswith(tuple(arguments.again)):
                        plan.append((name, one, setting))
            if alone:
                one.stop()
        for turn in range(arguments.repeats):
            for name, one, setting in plan:
                times = seconds.setdefault(name, [])
                if turn and (not times or turn * times[0] > arguments.enough):
                    continue
                got = one.ask({"path": path, "setting": setting}, limit)
                if alone:
                    one.stop()
                if "error" in got:
                    cells[name] = got
                    times.clear()
                    continue
                times.append(got["seconds"])
                if turn == 0:
                    try:
                        budgets = judge(given, got["answer"])
                    except objective.Rejected as error:
                        cells[name] = {"error": str(error)}
                        times.clear()
                        continue
                    cells[name] = {"budgets": budgets, "peak_bytes": got["peak_bytes"]}
                if "first_call_seconds" in got:
                    one.first[setting, given.loss, given.task] = got["first_call_seconds"]
                cells[name]["first_call_seconds"] = one.first[setting, given.loss, given.task]
                cells[name]["import_seconds"] = one.about["import_seconds"]
                cells[name]["date"] = datetime.datetime.now(datetime.UTC).isoformat("T", "minutes")
    for name, times in seconds.items():
        if times:
            cells[name] |= {
                "median": statistics.median(times),
                "min": min(times),
                "max": max(times),
                "repeats": len(times),
            }


def machine():
    """Return what the figures depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [s.split(":")[1].strip() for s in text.splitlines() if "model name" in s]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "load_at_start": os.getloadavg(),
    }


def versions(workers):
    """Return the version of every peer, asked of its environment."""
    names = "abess skscope fastsparsegams l0learn okridge fasterrisk scikit-learn jax numpy numba"
    code = (
        "import importlib.metadata as m, json, sys\nout = {}\n"
        "for n in sys.argv[1:]:\n"
        "    try: out[n] = m.version(n)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(out))"
    )
    return {
        python.split(os.sep)[-3].removeprefix(".venv-")
        if os.sep in python
        else python: json.loads(
            subprocess.run(
                [python, "-c", code, *names.split()], capture_output=True, text=True, check=True
            ).stdout
        )
        for python in sorted({w.python for w in workers})
    }


def run(name, workers, arguments):
    """Measure one table."""
    out = arguments.results / f"best_subset_{name}.json"
    report = json.loads(out.read_text()) if out.exists() else {"table": name, "instances": {}}
    report["machine"] = machine()
    report["versions"] = versions(workers)
    report["unit"] = "processor seconds of one thread; objectives summed over samples, refitted"
    began = time.perf_counter()
    for order, seed in enumerate(arguments.seeds or SEEDS[name]):
        given = instance(name, seed)
        entry = report["instances"].setdefault(given.name, {"methods": {}})
        run_instance(given, workers, entry["methods"], arguments, name in ALONE, order)
        report["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        report["absent"] = {
            w.name: w.about.get("missing") or w.about.get("error")
            for w in workers
            if w.about.get("missing") or w.about.get("error")
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table.compact(report))
        print(f"{given.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    table.show(report)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=SEEDS)
    parser.add_argument(
        "--environments", type=Path, help="folder that holds .venv-peers and others"
    )
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--again", nargs="+", default=["-"], help="methods to measure anew")
    parser.add_argument("--only", nargs="+", help="methods to measure")
    parser.add_argument("--skip", nargs="+", default=[], help="adapters to leave out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--enough", type=float, default=3.0, help="seconds for all repeats")
    parser.add_argument("--limit", type=float, default=300.0, help="wall seconds of one call")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", default=None, help="folder for instances")
    arguments = parser.parse_args()
    names = [n for n in ADAPTERS if n not in arguments.skip]
    if arguments.only:
        names = [n for n in names if any(o.split(":")[0] == n for o in arguments.only)]
    workers = [Worker(n, arguments.environments) for n in names]
    try:
        for name in arguments.tables:
            run(name, workers, arguments)
    finally:
        for one in workers:
            one.stop()


if __name__ == "__main__":
    main()
