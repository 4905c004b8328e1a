"""Recovery of sparse signals from 500 measurements of 2000 coefficients, all solvers.

Run ``python benchmarks/compressed_sensing.py``; it writes
``benchmarks/results/compressed_sensing.json`` and prints a table. Needs ``spgl1`` beside ellzero.
Every method is given the budget k, and in noise the true length of the noise where it can use it;
its k largest entries are fitted by least squares before they are judged, so only the support
counts. A noiseless recovery has a relative error of at most 1e-4 and the planted support; in noise
the error is divided by that of least squares on the planted support. Processor seconds, methods in
turns; the fit is outside of the time. Set ``OMP_NUM_THREADS=1`` for one thread.
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
import scipy.fft
import spgl1
from sklearn.linear_model import orthogonal_mp  # noqa: TID253

from ellzero.sensing import recover

N_SAMPLES, N_ATOMS = 500, 2000
BUDGETS = (80, 100, 120, 140, 160)
LAWS = ("gaussian", "sign")
LEVELS = {"noiseless": None, "40 dB": 40.0, "20 dB": 20.0}
# Other dictionaries, without noise: rows of a cosine transform, neighbors correlated by 0.9,
# singular values from 1 to 1e-3.
KINDS = ("cosine", "correlated", "ill-conditioned")
KIND_BUDGETS = (80,)
NAMED = ("vamp", "search", "fbp", "sp", "cosamp", "htp", "niht", "omp")
OUT = Path(__file__).parent / "results" / "compressed_sensing.json"


def atoms(generator, kind):
    """Return a dictionary."""
    out = generator.standard_normal((N_SAMPLES, N_ATOMS)) / np.sqrt(N_SAMPLES)
    if kind == "cosine":
        rows = generator.choice(N_ATOMS, N_SAMPLES, replace=False)
        out = scipy.fft.dct(np.eye(N_ATOMS), norm="ortho", axis=0)[rows] * 2
    elif kind == "correlated":
        for j in range(1, N_ATOMS):
            out[:, j] = 0.9 * out[:, j - 1] + np.sqrt(1 - 0.9**2) * out[:, j]
    elif kind == "ill-conditioned":
        u, _, v = np.linalg.svd(out, full_matrices=False)
        out = u * np.geomspace(1, 1e-3, N_SAMPLES) @ v
    return out


def instance(law, k, snr, trial, kind="independent"):
    """Return dictionary, signal, planted coefficients and the length of the noise."""
    generator = np.random.default_rng([LAWS.index(law), k, int(snr or 0), trial])
    dictionary = atoms(generator, kind)
    support = generator.choice(N_ATOMS, k, replace=False)
    planted = np.zeros(N_ATOMS)
    signs = generator.choice([-1.0, 1.0], k)
    planted[support] = generator.standard_normal(k) if law == "gaussian" else signs
    y = dictionary @ planted
    if snr is None:
        return dictionary, y, planted, 0.0
    noise = generator.standard_normal(N_SAMPLES)
    noise *= np.linalg.norm(y) / np.linalg.norm(noise) * 10 ** (-snr / 20)
    return dictionary, y + noise, planted, float(np.linalg.norm(noise))


def fit(dictionary, y, coef, k):
    """Return least squares on the k largest entries."""
    support = np.sort(np.argsort(-np.abs(coef), kind="stable")[:k])
    out = np.zeros(N_ATOMS)
    out[support] = np.linalg.lstsq(dictionary[:, support], y, rcond=None)[0]
    return out


def by_spgl1(dictionary, y, k, length):
    """Return basis pursuit, or basis pursuit denoising with the true length of the noise."""
    if length == 0:
        return spgl1.spg_bp(dictionary, y, verbosity=0)[0]
    return spgl1.spg_bpdn(dictionary, y, length, verbosity=0)[0]


def methods():
    """Return every method as a function of dictionary, signal, budget and length of the noise."""

    def ours(name):
        def call(dictionary, y, k, length):
            return recover(y, dictionary, k, solver=name, certify=False).params["coef"].numpy()

        return call

    def certified(dictionary, y, k, length):
        return recover(y, dictionary, k).params["coef"].numpy()

    out = {"recover": ours(None), "recover, certified": certified}
    out |= {f"ellzero {name}": ours(name) for name in NAMED}
    out["spgl1"] = by_spgl1
    out["scikit-learn omp"] = lambda d, y, k, length: orthogonal_mp(d, y, n_nonzero_coefs=k)
    return out


def judge(dictionary, y, planted, coef, k):
    """Return relative error, the ratio to least squares on the planted support, exactness."""
    size = np.linalg.norm(planted)
    error = np.linalg.norm(coef - planted) / size
    oracle = np.linalg.norm(fit(dictionary, y, planted, k) - planted) / size
    exact = bool(np.array_equal(coef != 0, planted != 0))
    return float(error), float(error / max(oracle, 1e-300)), exact


def row(calls, law, level, k, trials, kind="independent"):
    """Return one row of the table."""
    seconds = {name: [] for name in calls}
    errors, ratios, hits = ({name: [] for name in calls} for _ in range(3))
    for trial in range(trials):
        dictionary, y, planted, length = instance(law, k, LEVELS[level], trial, kind)
        for name, call in calls.items():
            began = time.process_time()
            coef = call(dictionary, y, k, length)
            seconds[name].append(time.process_time() - began)
            error, ratio, exact = judge(
                dictionary, y, planted, fit(dictionary, y, np.asarray(coef, float), k), k
            )
            errors[name].append(error)
            ratios[name].append(ratio)
            hits[name].append(exact and error <= 1e-4)
    out = {}
    for name in calls:
        out[name] = {
            "seconds_median": statistics.median(seconds[name]),
            "seconds_range": [min(seconds[name]), max(seconds[name])],
        }
        if level == "noiseless":
            out[name]["recovered"] = sum(hits[name])
            out[name]["error_median"] = statistics.median(errors[name])
        else:
            out[name]["ratio_median"] = statistics.median(ratios[name])
            out[name]["ratio_range"] = [min(ratios[name]), max(ratios[name])]
    return {
        "dictionary": kind,
        "law": law,
        "level": level,
        "k": k,
        "trials": trials,
        "methods": out,
    }


def show(rows):
    """Print recoveries or ratios, and processor seconds."""
    names = list(methods())
    for title, pick in (
        ("recovered of the trials; in noise: error over that of the planted support, median", 0),
        ("processor seconds: median (least to most)", 1),
    ):
        print(f"\n{title}")
        print(f"{'':33}" + "".join(f"{name:>22}" for name in names))
        for item in rows:
            cells = []
            for name in names:
                found = item["methods"].get(name)
                if found is None:
                    cells.append("")
                    continue
                low, high = found["seconds_range"]
                if pick:
                    cells.append(f"{found['seconds_median']:.2f} ({low:.2f} to {high:.2f})")
                elif "recovered" in found:
                    cells.append(f"{found['recovered']} of {item['trials']}")
                else:
                    cells.append(
                        "{:.2f} ({:.2f} to {:.2f})".format(
                            found["ratio_median"], *found["ratio_range"]
                        )
                    )
            what = item["level"] if item["dictionary"] == "independent" else item["dictionary"]
            head = f"{item['law']:9} {what:16} k={item['k']:<4}"
            print(f"{head:33}" + "".join(f"{cell:>22}" for cell in cells))


def machine():
    """Return what the times depend on."""
    names = ("ellzero", "numpy", "scipy", "torch", "spgl1", "scikit-learn")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_at_end": os.getloadavg(),
        "cores": os.cpu_count(),
        "threads_used": 1,
        "processor": platform.machine(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--noisy-trials", type=int, default=4)
    parser.add_argument("--other-trials", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=[*LEVELS, "other dictionaries"])
    parser.add_argument(
        "--only", help="measure anew what contains this, keep the rest of the file"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    calls = methods()
    if arguments.only:
        calls = {name: call for name, call in calls.items() if arguments.only in name}
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    record["data"] = f"{N_SAMPLES} x {N_ATOMS}; processor seconds"
    kept = {(r["dictionary"], r["law"], r["level"], r["k"]): r for r in record["rows"]}
    warm = instance("gaussian", 20, None, 0)
    for call in calls.values():
        call(*warm[:2], 20, 0.0)
    cases = [
        ("independent", law, level, k)
        for level in LEVELS
        if level in arguments.parts
        for law in LAWS
        for k in BUDGETS
    ]
    if "other dictionaries" in arguments.parts:
        cases += [
            (kind, law, "noiseless", k) for kind in KINDS for law in LAWS for k in KIND_BUDGETS
        ]
    for kind, law, level, k in cases:
        trials = arguments.trials if level == "noiseless" else arguments.noisy_trials
        trials = trials if kind == "independent" else arguments.other_trials
        found = row(calls, law, level, k, trials, kind)
        old = kept.get((kind, law, level, k))
        if arguments.only and old is not None and old["trials"] == trials:
            found["methods"] = {**old["methods"], **found["methods"]}
        kept[kind, law, level, k] = found
        show([found])
    record["rows"] = list(kept.values())
    runs = record.setdefault("runs", [])
    runs.append({"methods": list(calls), "parts": arguments.parts, **machine()})
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    show(record["rows"])


if __name__ == "__main__":
    main()
