"""The benchmarks page: every table from the committed results, with what is slower or worse."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markdown_tables import digits, escape, seconds, table

from benchmarks.best_subset import table as subset_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

# The command that makes a table again.
COMMANDS = {
    "compressed_sensing": "python benchmarks/compressed_sensing.py",
    "convex_relu": "python benchmarks/convex_relu.py --peers PYTHON --mnist mnist.npz",
    "escape": "python benchmarks/escape.py --out benchmarks/results/escape.json",
    "exact_subset": "python benchmarks/exact_subset.py --peers PYTHON",
    "inference": "python benchmarks/inference.py",
    "language": "python -m benchmarks.language --model FOLDER --data FOLDER --out benchmarks/results/language.json",
    "selection": "python benchmarks/selection.py",
    "signal_grids": "python benchmarks/signals.py --grids --out benchmarks/results/signal_grids.json",
    "signals": "python benchmarks/signals.py --scip PYTHON --out benchmarks/results/signals.json",
    "sparse_training": "python -m benchmarks.sparse_training --data FOLDER --log runs.jsonl --out benchmarks/results/sparse_training.json",
    "splitting": "python -m benchmarks.splitting --data FOLDER --out benchmarks/results/splitting.json",
    "step_overhead": "python benchmarks/step_overhead.py",
    "tickets": "python -m benchmarks.tickets --data FOLDER --work RUNS --out benchmarks/results/tickets.json",
}  # fmt: skip
SUBSET_TITLES = {
    "S1": "S1: 500 x 2000, ten features, neighbors correlate by 0.5",
    "S2": "S2: 1000 x 10,000, twenty features",
    "S2path": "S2path: the same, budgets 1 to 50",
    "S2cv": "S2cv: the same, the budget by cross-validation",
    "S5": "S5: 300 x 1000, ten features that hide in pairs, correlation 0.9",
    "g1": "g1: 100 x 40, eight features, weak signal, optima known",
    "g2": "g2: 120 x 60, ten features in hidden pairs, optima known",
    "hard": "hard: 500 x 2000, 25 features, weak signal",
    "logistic": "logistic: 500 x 2000, ten features, two classes",
    "cancer": "cancer: breast cancer, two classes, four and five features",
    "colon": "colon: one gene from 1999 others, eight features",
    "poisson": "poisson: 500 x 1000 counts, eight features",
    "groups": "groups: 400 x 1200 in 300 groups, six groups",
    "weights": "weights: 400 x 1000, weighted samples",
    "tall": "tall: 1,000,000 x 200",
    "risk": "risk: error on new rows, everything chosen by cross-validation",
    "curve_p": "curve_p: 500 rows, growing columns",
    "curve_n": "curve_n: 200 columns, growing rows",
    "sparse": "sparse: 20,000 texts, growing vocabulary",
}


def load(name: str) -> dict[str, Any]:
    """Return a result that is committed."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return result


def loss_list(losses: list[str], of: str = "where a peer is better than ours") -> str:
    """Return the losses, in bold, folded where there are many."""
    if not losses:
        return "No loss in this table.\n"
    lines = "\n".join(f"- **loss**: {escape(line)}" for line in losses)
    if len(losses) <= 6:
        return lines + "\n"
    return f"::::{{dropdown}} **{len(losses)} losses**: {of}\n\n{lines}\n::::\n"


def provenance(name: str, report: dict[str, Any], command: str) -> str:
    """Return the machine, the versions, the date and the command of a table."""
    run = (
        report["runs"][-1]
        if isinstance(report.get("runs"), list) and "python" in report["runs"][-1]
        else report
    )
    machine = run.get("machine", {})
    facts = dict(machine) if isinstance(machine, dict) else {"processor": machine}
    for key in (
        "processor",
        "cores",
        "cpus",
        "threads_used",
        "python",
        "numpy",
        "numba",
        "torch",
        "scipy",
        "scikit-learn",
        "spgl1",
        "cvxpy",
        "clarabel",
        "ellzero",
        "load_at_start",
        "load",
    ):
        if key in run and key not in facts:
            facts[key] = run[key]
    for key in ("versions", "peers"):
        if isinstance(run.get(key), dict):
            inner = run[key]
            facts.update(
                inner.get("peers", inner) if isinstance(inner.get("peers", inner), dict) else {}
            )
    text = []
    for key, value in facts.items():
        if isinstance(value, list) and value and all(isinstance(v, float) for v in value):
            loads = " / ".join(digits(v) for v in value)
            text.append(f"load at start, 1 / 5 / 15 minutes {loads}")
        elif isinstance(value, (str, int, float)):
            text.append(f"{key.replace('_', ' ')} {value}")
    when = str(report.get("date") or run.get("date") or facts.get("date", "not noted"))[
        :16
    ].replace("T", " ")
    note = report.get("note") or report.get("data")
    parts = [
        f"`{command}` writes `benchmarks/results/{name}.json`. Measured {escape(when)}: {escape(', '.join(text))}."
    ]
    if isinstance(note, str):
        parts.append(escape(note if note.endswith(".") else note + "."))
    return "\n:::{div} sha\n" + " ".join(parts) + "\n:::\n"


def _subset_rows(report: dict[str, Any]) -> tuple[list[list[str]], list[tuple[int, int]]]:
    found = {m: one for m, one in subset_table.summary(report).items() if one["seconds"]}
    base = next(
        (
            statistics.median(one["seconds"].values())
            for m, one in found.items()
            if m.startswith("ours")
        ),
        None,
    )
    order = sorted(
        found,
        key=lambda m: (
            subset_table.mean(found[m]["excess"].values()),
            statistics.median(found[m]["seconds"].values()),
        ),
    )
    rows, bold = [], []
    for method in order:
        one = found[method]
        excess = list(one["excess"].values())
        middle = statistics.median(one["seconds"].values())
        rows.append([
            method,
            f"{sum(e <= subset_table.REACHED for e in excess)} of {len(excess)}",
            f"{100 * subset_table.mean(excess):.2f} %",
            f"{100 * max(excess):.2f} %",
            seconds(middle),
            f"{digits(middle / base)}" if base else "",
        ])  # fmt: skip
        if method.startswith("ours"):
            bold += [(len(rows) - 1, j) for j in range(6)]
    return rows, bold


def _curve(report: dict[str, Any]) -> str:
    sizes = [name.split("-")[1] for name in report["instances"]]
    methods = dict.fromkeys(m for e in report["instances"].values() for m in e["methods"])
    rows, bold = [], []
    for method in methods:
        row = [method]
        for entry in report["instances"].values():
            cell = entry["methods"].get(method, {})
            row.append(
                f"{seconds(cell['median'])}, {cell['peak_bytes'] / 1e6:.0f} MB"
                if "budgets" in cell
                else ("failed" if "error" in cell else "")
            )
        if method.startswith("ours"):
            bold += [(len(rows), j) for j in range(len(row))]
        rows.append(row)
    return "Processor time and additional memory, by size.\n\n" + table(
        ["method", *(f"{int(s):,}" for s in sizes)], rows, bold=bold
    )


def _risk(report: dict[str, Any]) -> str:
    ratios = ("0.3", "1", "6")
    cells: dict[str, dict[str, list[float]]] = {}
    for name, entry in report["instances"].items():
        at = ratios[int(name.split("-")[1]) // 4]
        for method, cell in entry["methods"].items():
            if "budgets" in cell:
                cells.setdefault(method, {}).setdefault(at, []).append(
                    cell["budgets"]["chosen"]["risk"]
                )
    means = {m: {at: statistics.mean(v) for at, v in c.items()} for m, c in cells.items()}
    order = sorted(means, key=lambda m: sum(means[m].get(at, 9) for at in ratios))
    rows = [[m, *(digits(means[m][at]) if at in means[m] else "" for at in ratios)] for m in order]
    bold = [(i, j) for i, m in enumerate(order) if m.startswith("ours") for j in range(4)]
    losses = []
    for at in ratios:
        ours = min((means[m][at], m) for m in order if m.startswith("ours") and at in means[m])
        best = min((means[m][at], m) for m in order if at in means[m])
        if best[0] < ours[0]:
            losses.append(
                f"signal to noise {at}: {best[1]} has {digits(best[0])}, {ours[1]} {digits(ours[0])}"
            )
    return ("Squared error on new rows relative to the signal, by signal to noise; 1 is no better than the mean.\n\n"
            + table(["method", *(f"at {r}" for r in ratios)], rows, bold=bold) + "\n" + loss_list(losses))  # fmt: skip


def best_subset() -> str:
    """Return the tables of best subsets."""
    parts = [
        "## Best subsets\n",
        "Every method gets the same table and the same budgets. *Reached* counts how often a method has the "
        "best value that any method found or that was proved; *excess* is how far above that it is, on average and at worst; "
        "the last column is its time over that of ours. Objectives are summed over samples and refitted outside of the time. "
        "The first table needs `bench` packages in environments of their own; `benchmarks/best_subset/run.py` says which.\n",
    ]  # fmt: skip
    for name, title in SUBSET_TITLES.items():
        if not (RESULTS / f"best_subset_{name}.json").exists():
            continue
        report = load(f"best_subset_{name}")
        parts.append(f"### {title}\n")
        if name == "risk":
            parts.append(_risk(report))
        elif name.startswith("curve") or name == "sparse":
            parts.append(_curve(report))
        else:
            rows, bold = _subset_rows(report)
            parts.append(
                table(
                    ["method", "reached", "mean excess", "worst", "median time", "over ours"],
                    rows,
                    bold=bold,
                )
            )
        if name != "risk":
            method = (
                "ours: default"
                if any("ours: default" in e["methods"] for e in report["instances"].values())
                else "ours_estimator: fit"
            )
            parts.append(loss_list(subset_table.verdicts(report, method)[1]))
        parts.append(
            provenance(
                f"best_subset_{name}", report, f"python -m benchmarks.best_subset.run {name}"
            )
        )
    return "\n".join(parts)


def exact_subset() -> str:
    """Return the table of proofs."""
    report = load("exact_subset")
    results = report["results"]
    rows, losses = [], []
    names = ("ours", "okridge", "l0bnb")
    for name in names:
        got = [r[name] for r in results if name in r]
        if not got:
            continue
        times = [g["cpu"] for g in got]
        gaps = [g["gap"] for g in got if not g["proven"] and g.get("gap") is not None]
        rows.append([
            name, f"{sum(g['proven'] for g in got)} of {len(got)}", seconds(statistics.median(times)),
            seconds(max(times)), f"{100 * statistics.median(gaps):.2f} %" if gaps else "none left",
        ])  # fmt: skip
    for r in results:
        for peer in names[1:]:
            if (
                peer in r
                and r[peer]["proven"]
                and (not r["ours"]["proven"] or r[peer]["cpu"] < r["ours"]["cpu"])
            ):
                what = (
                    "proves it, ours does not"
                    if not r["ours"]["proven"]
                    else f"is {digits(r['ours']['cpu'] / r[peer]['cpu'])} times as fast"
                )
                losses.append(
                    f"{r['n']} x {r['p']}, k = {r['k']}, correlation {r['rho']}, signal to noise {r['snr']}, ridge {r['ridge']}: {peer} {what}"
                )
    return ("## Proofs of best subsets\n\nThe same ridge problems, one thread; a solver stops at its limit of processor time.\n\n"
            + table(["solver", "proved", "median time", "longest", "median gap of the rest"], rows, bold=[(0, j) for j in range(5)])
            + "\n" + loss_list(losses) + provenance("exact_subset", report, COMMANDS["exact_subset"]))  # fmt: skip


def compressed_sensing() -> str:
    """Return the tables of recovery."""
    report = load("compressed_sensing")
    rows_all = report["rows"]
    # Peers beside ours first, then our other solvers, without their prefix.
    names = [m for m in rows_all[0]["methods"] if m != "recover, certified"]
    methods = sorted(names, key=lambda m: (m != "recover", m.startswith("ellzero")))
    labels = [m.removeprefix("ellzero ") for m in methods]
    parts = [
        "## Compressed sensing\n",
        "500 measurements of 2000 coefficients, k of them nonzero. Rows name the dictionary, the law of the nonzeros, and k. `recover` is what a user calls; after it stand the peers, then single solvers of ours. Without noise: how many signals are recovered.\n",
    ]

    def block(
        rows: list[dict[str, Any]], show: Callable[[dict[str, Any], dict[str, Any]], str]
    ) -> str:
        lines, bold = [], []
        for i, row in enumerate(rows):
            level = "" if row["level"] == "noiseless" else f", {row['level']}"
            line = [f"{row['dictionary']}, {row['law']}{level}, {row['k']}"]
            line += [show(row, row["methods"][m]) if m in row["methods"] else "" for m in methods]
            lines.append(line)
            bold.append((i, 1))
        return table(["signals", *labels], lines, bold=bold)

    quiet = [r for r in rows_all if r["level"] == "noiseless"]
    noisy = [r for r in rows_all if r["level"] != "noiseless"]
    parts.append(block(quiet, lambda r, c: f"{c['recovered']} of {r['trials']}"))
    parts.append("\nMedian time of one signal, without noise.\n")
    parts.append(block(quiet, lambda r, c: seconds(c["seconds_median"])))
    parts.append(
        "\nIn noise: the error over that of least squares on the true support; 1 is as good as knowing it.\n"
    )
    parts.append(block(noisy, lambda r, c: digits(c["ratio_median"])))
    losses = []
    for r in rows_all:
        ours = r["methods"]["recover"]
        name = f"{r['dictionary']}, {r['law']}, {r['level']}, k = {r['k']}"
        for m in methods[1:]:
            c = r["methods"].get(m)
            if c is None:
                continue
            if r["level"] == "noiseless":
                if c["recovered"] > ours["recovered"]:
                    losses.append(
                        f"{name}: {m} recovers {c['recovered']}, `recover` {ours['recovered']} of {r['trials']}"
                    )
                elif (
                    c["recovered"] == ours["recovered"] > 0
                    and c["seconds_median"] < 0.95 * ours["seconds_median"]
                    and not m.startswith("ellzero")
                ):
                    losses.append(
                        f"{name}: {m} is as good and {digits(ours['seconds_median'] / c['seconds_median'])} times as fast"
                    )
            elif c["ratio_median"] < 0.99 * ours["ratio_median"]:
                losses.append(
                    f"{name}: {m} has {digits(c['ratio_median'])}, `recover` {digits(ours['ratio_median'])}"
                )
    parts += [
        loss_list(losses),
        provenance("compressed_sensing", report, COMMANDS["compressed_sensing"]),
    ]
    return "\n".join(parts)


def grid_price(row: dict[str, Any]) -> str:
    """Return what limits the nonzeros of an image."""
    return (
        f"penalty {row['penalty']}"
        if row.get("penalty") is not None
        else f"budget {row.get('n_nonzero')}"
    )


def signals() -> str:
    """Return the tables of sparse and smooth signals."""
    report, grids = load("signals"), load("signal_grids")
    parts = ["## Sparse and smooth signals\n", "Chains with a price of nonzeros, solved exactly.\n",
             table(["samples", "smoothness", "penalty", "time", "a sample", "gap"],
                   [[f"{r['n']:,}", r["smoothness"], r["penalty"], seconds(r["seconds"]), seconds(r["seconds"] / r["n"]), digits(r["gap"])] for r in report["penalized"]]),
             "\nChains with a budget.\n",
             table(["samples", "smoothness", "budget", "time", "gap"],
                   [[f"{r['n']:,}", r["smoothness"], r["n_nonzero"], seconds(r["seconds"]), digits(r["gap"])] for r in report["budgeted"]]),
             "\nBeside conic relaxations (a bound and a rounded signal) and branch and bound, on the same series; times are medians.\n",
             table(["peer", "samples", "smoothness", "its time", "ours, exact", "over ours", "gap that the peer leaves"],
                   [[r["rival"], r["n"], r["smoothness"], seconds(r["seconds"]["median"]), seconds(r["seconds_exact"]["median"]), digits(r["ratio"]["median"]),
                     f"{100 * (r['gap_of_bound'] if 'gap_of_bound' in r else r['gap_left'])['median']:.2f} %"] for r in [*report["conic_rivals"], *report["scip"]]]),
             provenance("signals", report, COMMANDS["signals"]),
             "\nImages, as grids.\n",
             table(["side", "smoothness", "price", "signs", "time", "gap", "claim"],
                   [[r["side"], r["smoothness"], grid_price(r), "both" if r["signed"] else "none below zero", seconds(r["seconds"]) or "stopped", f"{100 * r['gap']:.2g} %", r["claim"].lower()] for r in grids["grids"]]),
             loss_list([f"{r['side']} x {r['side']}, smoothness {r['smoothness']}, {grid_price(r)}: not proven optimal, a gap of {100 * r['gap']:.2g} % is left" for r in grids["grids"] if r["claim"] != "OPTIMAL"], "grids whose optimum is not proven"),
             provenance("signal_grids", grids, COMMANDS["signal_grids"])]  # fmt: skip
    return "\n".join(parts)


def convex_relu() -> str:
    """Return the table of gated networks."""
    report = load("convex_relu")
    rows, bold, losses = [], [], []
    for case in report["cases"]:
        methods = {m: c for m, c in case["methods"].items() if c}
        name = f"{case['data']}, {case['n_gates']} gates, {case['loss']}, share {case['share']}"
        ours = methods["ellzero to 0.0001"]
        row = [name, seconds(ours["seconds"])]
        for kind in ("clarabel", "pyscnn", "adelie"):
            good = [
                (c["seconds"], m)
                for m, c in methods.items()
                if m.startswith(kind) and c.get("gap") is not None and c["gap"] <= 1e-4
            ]
            near = [
                (c["gap"], c["seconds"])
                for m, c in methods.items()
                if m.startswith(kind) and c.get("gap") is not None
            ]
            if good:
                row.append(seconds(min(good)[0]))
                if min(good)[0] < ours["seconds"]:
                    losses.append(
                        f"{name}: {min(good)[1]} is {digits(ours['seconds'] / min(good)[0])} times as fast"
                    )
            elif near:
                row.append(f"gap {digits(min(near)[0])} in {seconds(min(near)[1])}")
            else:
                row.append("")
        bold.append((len(rows), 1))
        rows.append(row)
    return ("## Gated ReLU networks\n\nTime to a relative duality gap of 1e-4, recomputed in float64 over all gates. "
            "Where a peer does not get there, its smallest gap stands instead; an empty cell was not run.\n\n"
            + table(["problem", "ellzero", "Clarabel", "pyscnn", "adelie"], rows, bold=bold) + "\n" + loss_list(losses)
            + provenance("convex_relu", report, COMMANDS["convex_relu"]))  # fmt: skip


def sparse_training() -> str:
    """Return the tables of sparse training."""
    report = load("sparse_training")
    parts = [
        "## Sparse training\n",
        "The same start, batches and number of gradients for all; three seeds; every method tuned on another seed.\n",
    ]
    for problem in report["problems"].values():
        shares = sorted(
            {d for r in problem["rows"].values() for d in r if d != "1"}, key=float, reverse=True
        )
        higher = problem["metric"] == "accuracy"
        best = {}
        for d in shares:
            means = {m: r[d]["mean"] for m, r in problem["rows"].items() if d in r}
            best[d] = (max if higher else min)(means, key=means.get)
        rows, bold = [], []
        order = sorted(problem["rows"], key=lambda m: (m != "dense", not m.startswith("ours"), m))
        for method in order:
            cells = problem["rows"][method]
            if method == "dense":
                rows.append(["dense", *([digits4(cells["1"]["mean"])] * len(shares))])
                continue
            rows.append(
                [
                    method,
                    *(
                        f"{digits4(cells[d]['mean'])} ± {digits(cells[d]['deviation'])}"
                        if d in cells
                        else ""
                        for d in shares
                    ),
                ]
            )
            if method.startswith("ours"):
                bold.append((len(rows) - 1, 0))
            bold += [(len(rows) - 1, 1 + j) for j, d in enumerate(shares) if best[d] == method]
        parts += [f"### {problem['title']}\n", f"{problem['metric']}{', %' if higher else ''}; the best of each share of weights in bold.\n",
                  table(["method", *(f"{100 * float(d):g} %" for d in shares)], rows, bold=bold),
                  loss_list([f"{100 * float(x['density']):g} % of the weights: {x['to']} is better by {digits(x['by'])}" for x in problem["losses_of_ours"] if x["to"] != "dense"])]  # fmt: skip
    parts.append(
        provenance(
            "sparse_training",
            {k: v for k, v in report.items() if k != "runs"},
            COMMANDS["sparse_training"],
        )
    )
    return "\n".join(parts)


def digits4(value: float) -> str:
    """Return a score with four digits."""
    return f"{value:.4g}"


def splitting() -> str:
    """Return the tables of variable splitting."""
    report = load("splitting")
    parts = [
        "## Variable splitting against hard thresholding\n",
        escape(report["data"]) + f", density {report['density']}.\n",
    ]
    for network in report["networks"].values():
        rows = [
            [
                m,
                f"{c['accuracy']:.2f} ± {c['accuracy_deviation']:.2f}",
                f"{c['zeros']:.2f}",
                seconds(c["seconds"]),
            ]
            for m, c in network["methods"].items()
        ]
        sparse = {m: c["accuracy"] for m, c in network["methods"].items() if m != "dense"}
        best = max(sparse, key=sparse.get)
        parts += [
            f"### {escape(network['title'])}\n",
            table(
                ["method", "accuracy, %", "zeros, %", "time"],
                rows,
                bold=[(i, j) for i, r in enumerate(rows) if r[0] == best for j in range(4)],
            ),
        ]
    parts.append(provenance("splitting", report, COMMANDS["splitting"]))
    return "\n".join(parts)


def tickets() -> str:
    """Return what was found of tickets."""
    report = load("tickets")
    parts = ["## Sparse subnetworks that train\n"]
    for problem in report["problems"].values():
        first = problem["tables"][0]
        parts += [
            f"### {escape(problem['title'])}\n",
            escape(problem["headline"]) + ".\n",
            f"{escape(first['title'])}\n",
            table(first["columns"], first["rows"]),
        ]
    parts.append(provenance("tickets", report, COMMANDS["tickets"]))
    return "\n".join(parts)


def step_overhead() -> str:
    """Return what an exact budget costs in a step."""
    report = load("step_overhead")
    rows = [
        [
            r["model"],
            r["density"],
            f"{r['dense_ms']:.3g} ms",
            f"{100 * r['overhead_whole']:.1f} %",
            f"{100 * r['overhead_final']:.1f} %",
        ]
        for r in report["results"]
    ]
    return ("## The cost of a budget in a training step\n\nAgainst the same step without a budget.\n\n"
            + table(["network", "density", "dense step", "more, whole training", "more, after the ramp"], rows) + provenance("step_overhead", report, COMMANDS["step_overhead"]))  # fmt: skip


def inference() -> str:
    """Return the speed of sparse layers."""
    report = load("inference")
    parts = ["## Sparse layers on a CPU\n", "Times as fast as the dense layer of torch.\n"]
    for key, label in (("layers", "layer"), ("models", "model")):
        methods = list(
            dict.fromkeys(
                m for r in report[key] for m in r["times_faster_than_dense"] if m != "torch dense"
            )
        )
        rows, bold = [], []
        for r in report[key]:
            name = r.get("model") or f"{r['size']} x {r['size']}, {r['pattern']}"
            found = r["times_faster_than_dense"]
            rows.append(
                [
                    f"{name}, {100 * r['zeros']:g} % zeros, batch {r['batch']}",
                    *(f"{found[m]:.2f}" if m in found else "" for m in methods),
                ]
            )
            bold += [
                (len(rows) - 1, 1 + j)
                for j, m in enumerate(methods)
                if m in found and found[m] == max(found.values())
            ]
        body = table([label, *methods], rows, bold=bold)
        parts.append(
            f"::::{{dropdown}} {len(rows)} {key}, the fastest in bold\n\n{body}\n::::\n"
            if len(rows) > 20
            else body
        )
    parts += [loss_list(report["losses"]), provenance("inference", report, COMMANDS["inference"])]
    return "\n".join(parts)


def selection() -> str:
    """Return the speed of exact selection."""
    report = load("selection")
    methods = list(report["rows"][0]["seconds"])
    rows = [
        [
            f"{r['n']:,}, keep {100 * r['share']:g} %",
            *(seconds(r["seconds"][m]["median"]) if m in r["seconds"] else "" for m in methods),
        ]
        for r in report["rows"]
    ]
    losses = [
        f"{r['n']:,}, keep {100 * r['share']:g} %: {what} takes {digits(1 / ratio)} times as long"
        for r in report["rows"]
        for what, ratio in r["times_faster"].items()
        if ratio < 1
    ]
    return ("## Selecting the largest magnitudes\n\n*threshold* and *mask* are ours, from scratch (cold) or with the threshold of a moment ago (warm).\n\n"
            + table(["entries", *methods], rows) + "\n" + loss_list(losses) + provenance("selection", report, COMMANDS["selection"]))  # fmt: skip


def language() -> str:
    """Return the compression of a sentence encoder."""
    report = load("language")
    keys = [
        ("level", "kept or pattern"),
        ("method", "method"),
        ("cosine", "cosine to dense"),
        ("spearman", "Spearman"),
        ("mean_relative_error", "mean layer error"),
        ("seconds", "time, s"),
    ]
    rows, bold, losses = [], [], []
    levels: dict[str, list[dict[str, Any]]] = {}
    for r in report["rows"]:
        levels.setdefault(str(r.get("level", "")), []).append(r)
    for level, group in levels.items():
        best = max(group, key=lambda r: r["cosine"])
        for r in group:
            rows.append(
                [digits4(r[k]) if isinstance(r.get(k), float) else r.get(k, "") for k, _ in keys]
            )
            bold += [(len(rows) - 1, j) for j in range(len(keys)) if r is best and level]
        ours = [r for r in group if r["method"].startswith("ellzero")]
        if ours:
            mine = max(ours, key=lambda r: r["cosine"])
            losses += [
                f"{level}: {r['method']} has {k} {digits4(r[k])}, {mine['method']} {digits4(mine[k])}"
                for r in group
                if r not in ours
                for k in ("cosine", "spearman")
                if r[k] > mine[k]
            ]
            losses += [
                f"{level}: {r['method']} takes {r['seconds']:.0f} s, {mine['method']} {mine['seconds']:.0f} s"
                for r in group
                if r not in ours and r["seconds"] < mine["seconds"]
            ]
    return ("## A sentence encoder, pruned in one shot\n\nall-MiniLM-L6-v2, 36 layers; cosine of embeddings to those of the dense model, and Spearman correlation on 400 sentence pairs. The best cosine in bold.\n\n"
            + table([t for _, t in keys], rows, numbers=[False, False, True, True, True, True], bold=bold) + "\n" + loss_list(losses) + provenance("language", report, COMMANDS["language"]))  # fmt: skip


def escape_experiment() -> str:
    """Return the speed of a batch of starts."""
    report = load("escape")
    rows = [
        ["one batched call", seconds(report["batched_seconds"])],
        [f"a loop ({report['loop_note']})", seconds(report["loop_seconds_extrapolated"])],
    ]
    return (f"## {report['starts']:,} starts as one program\n\n{report['iterations']} iterations of hard thresholding from every start.\n\n"
            + table(["", "time"], rows) + provenance("escape", report, COMMANDS["escape"]))  # fmt: skip


SECTIONS: dict[str, tuple[str, ...]] = {
    "best_subset": tuple(f"best_subset_{name}" for name in SUBSET_TITLES),
    "exact_subset": ("exact_subset",),
    "compressed_sensing": ("compressed_sensing",),
    "signals": ("signals", "signal_grids"),
    "convex_relu": ("convex_relu",),
    "sparse_training": ("sparse_training",),
    "splitting": ("splitting",),
    "tickets": ("tickets",),
    "language": ("language",),
    "inference": ("inference",),
    "step_overhead": ("step_overhead",),
    "selection": ("selection",),
    "escape_experiment": ("escape",),
}
# Results that are a note on others.
NOTES = ("sparse_training_tried",)


def others() -> str:
    """Return what is committed and has no table of its own."""
    shown = {name for names in SECTIONS.values() for name in names}
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        if path.stem in shown:
            continue
        report = json.loads(path.read_text("utf-8"))
        what = report.get("what") or report.get("data") or report.get("note") or ""
        rows.append([f"benchmarks/results/{path.name}", str(report.get("date", ""))[:10], what])
    if not rows:
        return ""
    return "## Further results\n\n" + table(["file", "date", "what"], rows, numbers=[False] * 3)


def page() -> str:
    """Return all tables."""
    parts = []
    for name, files in SECTIONS.items():
        if all((RESULTS / f"{f}.json").exists() for f in files):
            parts.append(globals()[name]())
    return "\n".join([*parts, others()])


def write(out: Path) -> None:
    """Write the tables."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "benchmarks.inc", page()
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, encoding="utf-8")
