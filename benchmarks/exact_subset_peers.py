"""OKRidge or l0bnb on the instances of `exact_subset.py`, in an environment of their own.

Run by that script as ``python exact_subset_peers.py FOLDER SOLVER LIMIT``; prints one line of JSON
an instance. Clocks of the solvers count processor time, so that a busy machine changes nothing.
"""

import contextlib
import importlib.metadata
import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np


def okridge(case, limit):
    from okridge import tree

    tree.time = SimpleNamespace(time=time.process_time)
    solver = tree.BNBTree(case["X"], case["y"], lambda2=float(case["ridge"]))
    value, _, gap, bound, _ = solver.solve(int(case["k"]), gap_tol=1e-4, time_limit=limit)
    return {
        "value": float(value), "bound": float(bound), "gap": float(gap),
        "proven": bool(gap <= 1e-4), "nodes": int(solver.number_of_nodes),
    }  # fmt: skip


def l0bnb(case, limit):
    from l0bnb import tree

    tree.time = SimpleNamespace(time=time.process_time)
    solver = tree.BNBTree(case["X"], case["y"])
    out = solver.solve(
        float(case["price"]) / 2, float(case["ridge"]) / 2, 2 * float(case["largest"]),
        gap_tol=1e-4, time_limit=limit,
    )  # fmt: skip
    b = np.where(np.abs(out.beta) > 1e-8, out.beta, 0.0)
    value = np.square(case["y"] - case["X"] @ b).sum() + case["ridge"] * (b @ b)
    return {
        "value": float(value), "gap": float(out.gap), "proven": bool(out.gap <= 1e-4),
        "count": int((b != 0).sum()), "nodes": int(solver.number_of_nodes),
    }  # fmt: skip


def main():
    folder, name, limit = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    run = {"okridge": okridge, "l0bnb": l0bnb}[name]
    print(json.dumps({"versions": {n: importlib.metadata.version(n) for n in (name, "numpy")}}))
    if name == "l0bnb":
        # Compiles.
        X = np.random.default_rng(0).standard_normal((20, 5))
        tiny = {"X": X, "y": X[:, 0], "price": 0.1, "ridge": 0.1, "largest": 2.0}
        with contextlib.redirect_stdout(io.StringIO()):
            run(tiny, 1.0)
    for row, path in enumerate(sorted(folder.glob("*.npz"))):
        case = dict(np.load(path))
        if name == "l0bnb" and not np.isfinite(case["price"]):
            continue
        began = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                answer = run(case, limit)
        except Exception as error:  # what a peer raises is its answer
            answer = {"proven": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"row": row, "cpu": time.process_time() - began, **answer}), flush=True)


if __name__ == "__main__":
    main()
