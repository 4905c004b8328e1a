"""The gated program: time to a gap, beside Clarabel, pyscnn and adelie on the same gates.

Breast cancer (426 samples, standardized, with a column of ones: 31 inputs) and digits 3 against 5
(273 x 55), standard normal gates, penalties .1, .01, .001 of the largest useful one; squared loss
over 2n. "gap" is the true relative duality gap of what a method returned, over all gates,
recomputed by `certify_gated` in float64. Methods are run at falling tolerances until that gap is
at most 1e-4; the time is that of the last of these runs alone. Beside it their defaults. adelie
solves a path of 30 penalties from the largest one. Rivals run up to 500 gates, where ``--peers``
names a Python that has pyscnn and adelie; Clarabel by cvxpy, its compilation included, at 100
gates and for the weakest penalty at 500. MNIST is digits 3 against 5 with 1000 gates. "certified"
are trained ReLU networks without intercept, at .3, .1 and .03 of the largest useful penalty, with
their gaps over every width: by the joint program, and by cutting the ball besides. Processor
seconds, one thread, after a first call.

    OMP_NUM_THREADS=1 python benchmarks/convex_relu.py --peers PYTHON --mnist mnist.npz
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits  # noqa: TID253
from sklearn.model_selection import train_test_split  # noqa: TID253
from sklearn.preprocessing import StandardScaler  # noqa: TID253

from ellzero.relu import (
    GatedProgram,
    certify_gated,
    memory_needed,
    read_gates,
    sample_gates,
    solve_gated,
)
from ellzero.relu.certificate import certify
from ellzero.relu.losses import loss_of
from ellzero.relu.training import Training, largest_penalty, to_network, train

# Gates and shares at which rivals run, the most telling first.
ORDER = ((500, 0.001), (100, 0.01), (500, 0.01), (100, 0.001), (500, 0.1), (100, 0.1))
OUT = Path(__file__).parent / "results" / "convex_relu.json"
SHARES = (0.1, 0.01, 0.001)
COUNTS = (100, 500, 5000)
# Falling tolerances of each rival, its default first.
RIVALS = {
    "pyscnn float32": (1e-6,),
    "pyscnn float64": (1e-9, 1e-12),
    "adelie": (1e-7, 1e-12, 1e-14),
}


def digits_3_and_5():
    X, y = load_digits(return_X_y=True)
    keep = np.isin(y, (3, 5))
    return X[keep], y[keep] == 3


def data(name):
    """Return design with a column of ones, and labels in {-1, 1}."""
    X, y = load_breast_cancer(return_X_y=True) if name == "breast cancer" else digits_3_and_5()
    rows, _, classes, _ = train_test_split(X, y, random_state=0, stratify=y)
    rows = rows[:, rows.std(axis=0) > 0]
    rows = StandardScaler().fit_transform(rows)
    return np.column_stack([rows, np.ones(len(rows))]), np.where(classes, 1.0, -1.0)


def ours(program, penalty, tol):
    began = time.process_time()
    found = solve_gated(program, penalty, tol=tol)
    seconds = time.process_time() - began
    return {
        "seconds": seconds, "gap": found.gap, "n_active": len(found.support),
        "value": found.value, "n_iter": found.n_iter, "n_rounds": found.n_rounds,
    }  # fmt: skip


def judge(program, penalty, weights, seconds):
    """Return what a rival's weights (n_gates, n_inputs) are worth."""
    used = np.flatnonzero((weights != 0).any(axis=1))
    found, value, _, _ = certify_gated(
        program, penalty, used, weights[used][:, :, None].astype(np.float64), np.zeros(1)
    )
    return {"seconds": seconds, "gap": found.gap, "n_active": len(used), "value": value}


def by_clarabel(program, penalty):
    import cvxpy as cp

    A, y, n = program.A, program.y[:, 0], len(program.y)
    began = time.process_time()
    U = cp.Variable((program.n_gates, A.shape[1]))
    design = np.hstack([A * program.patterns[:, [i]] for i in range(program.n_gates)])
    fit = cp.sum_squares(design @ cp.vec(U, order="C") - y) / (2 * n)
    model = cp.Problem(cp.Minimize(fit + penalty * cp.sum(cp.norm(U, 2, axis=1))))
    model.solve(solver=cp.CLARABEL)
    return judge(program, penalty, U.value, time.process_time() - began)


def by_rival(python, program, vectors, penalty, largest, kind, tol, limit):
    """Return what pyscnn or adelie finds in an environment of its own, None past the limit."""
    script = Path(__file__).parent / "rivals" / "gated.py"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(
            source, A=program.A, y=program.y[:, 0], vectors=vectors, penalty=penalty,
            largest=largest, kind=kind, tol=tol,
        )  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        try:
            done = subprocess.run(
                [python, str(script), str(source), str(target)], env=environment,
                capture_output=True, timeout=limit, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
        if done.returncode:
            print(done.stderr.decode()[-500:], file=sys.stderr)
            return None
        out = np.load(target)
        gates = read_gates(program.A, out["vectors"].astype(np.float64))
        same = GatedProgram(program.A, gates.patterns, program.y, program.loss)
        return judge(same, penalty, out["weights"], float(out["seconds"]))


def show(case, name, found):
    text = "beyond the limit" if found is None else (
        f"{found['seconds']:8.2f} s   gap {found['gap']:.1e}   active {found['n_active']}"
    )  # fmt: skip
    print(f"{case['data']:14}{case['n_gates']:6}{case['share']:7}  {name:24}{text}", flush=True)


def cases(arguments, record):
    for name in ("breast cancer", "digits"):
        A, y = data(name)
        for n_gates in COUNTS:
            vectors = sample_gates(n_gates, A.shape[1], np.random.default_rng(1))
            gates = read_gates(A, vectors)
            for loss in ("squared", "logistic"):
                program = GatedProgram(A, gates.patterns, y[:, None], loss_of(loss))
                largest = program.largest_penalty()
                solve_gated(program, 0.5 * largest)
                for share in SHARES:
                    penalty = share * largest
                    case = {
                        "data": name, "shape": list(A.shape), "n_gates": len(gates),
                        "loss": loss, "share": share, "methods": {},
                    }  # fmt: skip
                    methods = case["methods"]
                    for tol in (1e-4, 1e-6, 1e-8):
                        methods[f"ellzero to {tol:g}"] = ours(program, penalty, tol)
                    record["cases"].append(case)
                    for key, found in methods.items():
                        show(case, f"{loss[:3]} {key}", found)
                    write(arguments, record)


def rivals(arguments, record):
    """Run rivals on the cases in order of their worth, until the time is spent."""
    began = time.monotonic()
    cases = [
        c
        for c in record["cases"]
        if c["loss"] == "squared" and c["n_gates"] in arguments.rival_gates
    ]
    cases.sort(key=lambda c: ORDER.index((c["n_gates"], c["share"])))
    for case in cases:
        if time.monotonic() - began > arguments.rival_seconds:
            break
        A, y = data(case["data"])
        vectors = sample_gates(case["n_gates"], A.shape[1], np.random.default_rng(1))
        gates = read_gates(A, vectors)
        program = GatedProgram(A, gates.patterns, y[:, None], loss_of("squared"))
        largest = program.largest_penalty()
        penalty, methods = case["share"] * largest, case["methods"]
        # Again, next to the rivals: the machine may be busier by now.
        methods["ellzero to 0.0001"] = ours(program, penalty, 1e-4)
        if case["n_gates"] <= 100 or case["share"] == min(SHARES):
            methods["clarabel"] = by_clarabel(program, penalty)
        write(arguments, record)
        for kind, tolerances in RIVALS.items() if arguments.peers is not None else ():
            for tol in tolerances:
                found = by_rival(
                    arguments.peers, program, vectors, penalty, largest, kind, tol, arguments.limit
                )
                methods[f"{kind} tol {tol:g}"] = found
                write(arguments, record)
                if found is None or found["gap"] <= 1e-4:
                    break
        for key, found in methods.items():
            show(case, f"squ {key}", found)
        write(arguments, record)


def mnist(arguments, record):
    if arguments.mnist is None or not arguments.mnist.exists():
        return
    arrays = np.load(arguments.mnist)
    keep = np.isin(arrays["y_train"], (3, 5))
    X = arrays["x_train"][keep].reshape(-1, 784) / 255.0
    y = np.where(arrays["y_train"][keep] == 3, 1.0, -1.0)
    held = np.isin(arrays["y_test"], (3, 5))
    X_test = arrays["x_test"][held].reshape(-1, 784) / 255.0
    y_test = np.where(arrays["y_test"][held] == 3, 1.0, -1.0)
    inked, center = X.any(axis=0), X.mean(axis=0)
    A, B = (
        np.column_stack([(part - center)[:, inked], np.ones(len(part))]) for part in (X, X_test)
    )
    gates = read_gates(A, sample_gates(1000, A.shape[1], np.random.default_rng(1)))
    program = GatedProgram(A, gates.patterns, y[:, None], loss_of("squared"))
    largest = program.largest_penalty()
    for share in arguments.mnist_shares:
        began = time.process_time()
        found = solve_gated(
            program, share * largest, tol=1e-6, max_iter=arguments.mnist_steps, solver="newton"
        )
        seconds = time.process_time() - began
        seen = B @ gates.vectors[found.support].T > 0
        outputs = ((B @ found.weights[:, :, 0].T) * seen).sum(axis=1)
        row = {
            "data": "MNIST 3 or 5", "shape": list(A.shape), "n_gates": len(gates), "share": share,
            "seconds": seconds, "gap": found.gap, "n_active": len(found.support),
            "n_iter": found.n_iter, "status": found.status.name, "value": found.value,
            "test_accuracy": float(np.mean((outputs > 0) == (y_test > 0))),
            "memory_told_gib": memory_needed(*A.shape, len(gates), solver="newton") / 2**30,
            "memory_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }  # fmt: skip
        record["mnist"] = [r for r in record["mnist"] if r["share"] != share] + [row]
        print(row, flush=True)
        write(arguments, record)


def certified(arguments, record):
    """Certify trained ReLU networks over every width, by the joint program and by pieces."""
    record["certified"] = record.get("certified", [])
    for share in arguments.certified_shares:
        for name in ("breast cancer", "digits"):
            A, y = data(name)
            A = A / np.sqrt(np.mean(np.sum(A * A, axis=1)))
            loss = loss_of("squared")
            largest = largest_penalty(Training(A, y, loss, 1.0, False), np.random.default_rng(0))
            problem = Training(A, y, loss, share * largest, False)
            values, seconds, best = [], [], None
            for seed in range(arguments.certified_seeds):
                began = time.process_time()
                found = train(problem, np.random.default_rng(seed))[:3]
                seconds.append(time.process_time() - began)
                values.append(problem.value(*found))
                best = found if values[-1] == min(values) else best
            network = to_network(*best, biased=False, fit_intercept=False)
            row = {
                "data": name, "shape": list(A.shape), "share": share, "values": values,
                "train_seconds": seconds, "n_neurons": network.n_neurons, "bounds": {},
            }  # fmt: skip
            for method in ("joint", "branch"):
                began = time.process_time()
                found, _ = certify(
                    network, A, y, loss, problem.penalty, method=method,
                    max_pieces=arguments.max_pieces,
                )  # fmt: skip
                row["bounds"][method] = {
                    "gap": found.gap, "seconds": time.process_time() - began,
                    "how": found.measures["bound_method"],
                }  # fmt: skip
                print(name, share, method, row["bounds"][method], flush=True)
            same = (name, share)
            kept = [r for r in record["certified"] if (r["data"], r["share"]) != same]
            record["certified"] = [*kept, row]
            write(arguments, record)


def machine(arguments):
    """Return what the times depend on."""
    names = ("ellzero", "numpy", "scipy", "torch", "cvxpy", "clarabel", "scikit-learn")
    out = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg(), "cores": os.cpu_count(), "threads_used": 1,
        "processor": platform.machine(), "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip
    if arguments.peers is not None:
        code = (
            "import importlib.metadata as m, json; print(json.dumps({k: m.version(k) for k in "
            "('pyscnn', 'adelie', 'numpy', 'torch')}))"
        )
        done = subprocess.run(
            [arguments.peers, "-c", code], capture_output=True, text=True, check=True
        )
        out["peers"] = json.loads(done.stdout)
    return out


def write(arguments, record):
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="Python that has pyscnn and adelie")
    parser.add_argument("--limit", type=float, default=60.0, help="wall seconds of one rival")
    parser.add_argument("--rival-seconds", type=float, default=3600.0, help="for all of them")
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--mnist-shares", type=float, nargs="+", default=[0.1, 0.03])
    parser.add_argument("--mnist-steps", type=int, default=20000)
    parser.add_argument(
        "--parts", nargs="+", default=["cases", "rivals", "certified", "mnist"],
        help="what to measure anew; the rest of the file is kept",
    )  # fmt: skip
    parser.add_argument("--certified-shares", type=float, nargs="+", default=[0.3, 0.1, 0.03])
    parser.add_argument("--certified-seeds", type=int, default=3)
    parser.add_argument("--max-pieces", type=int, default=4, help="of the ball, for each sign")
    parser.add_argument("--rival-gates", type=int, nargs="+", default=[100, 500])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    record = {"cases": [], "mnist": [], "runs": []}
    if "cases" not in arguments.parts and arguments.out.exists():
        record = json.loads(arguments.out.read_text())
    record["runs"].append({"parts": arguments.parts, **machine(arguments)})
    if "cases" in arguments.parts:
        cases(arguments, record)
    if "rivals" in arguments.parts:
        rivals(arguments, record)
    if "certified" in arguments.parts:
        certified(arguments, record)
    if "mnist" in arguments.parts:
        mnist(arguments, record)
    write(arguments, record)


if __name__ == "__main__":
    main()
