"""One peer in a process of its own: reads requests, a line of JSON each, and answers likewise.

Started by `run` with the Python of the environment that has the peer. A call is timed by the
processor time of this process; imports and first calls are reported apart from it.
"""

import importlib
import json
import os
import sys
import time
import warnings

import numpy as np
import scipy.sparse

from benchmarks.best_subset.instances import Instance, tiny


def save(instance, path):
    """Write an instance to a file."""
    arrays = {"y": instance.y, "budgets": np.array(instance.budgets)}
    for name in ("weight", "groups", "truth"):
        if getattr(instance, name) is not None:
            arrays[name] = getattr(instance, name)
    for name in ("name", "loss", "ridge", "task"):
        arrays[name] = np.array(getattr(instance, name))
    if scipy.sparse.issparse(instance.X):
        X = instance.X.tocsc()
        arrays |= {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape}
    else:
        arrays["X"] = instance.X
    np.savez(path, **arrays)


def load(path):
    """Read an instance from a file."""
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if "X" not in found:
        parts = (found.pop("data"), found.pop("indices"), found.pop("indptr"))
        found["X"] = scipy.sparse.csc_matrix(parts, shape=found.pop("shape"))
    for name in ("name", "loss", "ridge", "task"):
        found[name] = found[name].item()
    return Instance(**found | {"budgets": tuple(found["budgets"].tolist())})


def peak_bytes():
    """Return the most memory since it was last reset, where the system tells."""
    try:
        with open("/proc/self/status") as status:
            line = next(s for s in status if s.startswith("VmHWM"))
    except OSError:
        return 0
    return 1024 * int(line.split()[1])


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def plain(answer):
    """Return an answer as lists."""
    return {str(k): np.asarray(v).tolist() for k, v in answer.items()}


def timed(call):
    """Return an answer and the processor time that it took, by this process and its children."""
    before = os.times()
    began = time.process_time()
    answer = call()
    seconds = time.process_time() - began
    after = os.times()
    children = after.children_user + after.children_system
    return answer, seconds + children - before.children_user - before.children_system


def serve(name, requests, answers):
    """Answer requests until there are no more."""
    began = time.process_time()
    adapter = importlib.import_module(f"benchmarks.best_subset.adapters.{name}")
    missing = None
    for module in adapter.MODULES:
        try:
            importlib.import_module(module)
        except Exception as error:  # a peer may fail in any way
            missing = f"{type(error).__name__}: {error}"
    hello = {"import_seconds": time.process_time() - began, "missing": missing}
    hello |= {
        key: getattr(adapter, key.upper())
        for key in ("settings", "losses", "tasks", "groups", "weights", "sparse", "ridge")
    }
    hello["only"] = getattr(adapter, "ONLY", {})
    answers.write(json.dumps(hello) + "\n")
    answers.flush()
    held, warm = (None, None), set()
    for line in requests:
        request = json.loads(line)
        setting = adapter.SETTINGS[request["setting"]]
        try:
            if held[0] != request["path"]:
                held = (request["path"], load(request["path"]))
            out = {}
            kind = (request["setting"], held[1].loss, held[1].task)
            if kind not in warm:
                warm.add(kind)
                small = tiny(held[1].loss, held[1].task)
                out["first_call_seconds"] = timed(lambda: adapter.solve(small, **setting))[1]  # noqa: B023
            reset_peak()
            before = peak_bytes()
            answer, seconds = timed(lambda: adapter.solve(held[1], **setting))  # noqa: B023
            out |= {"seconds": seconds, "peak_bytes": peak_bytes() - before}
            out["answer"] = plain(answer)
        except Exception as error:  # said in the results
            out = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(out) + "\n")
        answers.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    channel = os.fdopen(os.dup(1), "w")  # peers may print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(sys.argv[1], sys.stdin, channel)
