"""Print what was measured: excess over the best known, how often it was reached, time, losses.

``python -m benchmarks.best_subset.table [TABLE ...]``
"""

import json
import statistics
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"
REACHED = 1e-6  # relative
OURS = "ours"


def compact(report):
    """Return JSON with one line for each method."""
    instances = report["instances"]
    head = json.dumps({k: v for k, v in report.items() if k != "instances"}, indent=1)
    lines = []
    for name, entry in instances.items():
        rest = {k: v for k, v in entry.items() if k != "methods"}
        cells = ",\n   ".join(
            f"{json.dumps(m)}: {json.dumps(c)}" for m, c in entry["methods"].items()
        )
        start = json.dumps(rest)[:-1] + (", " if rest else "")
        lines.append(f'  {json.dumps(name)}: {start}"methods": {{\n   {cells}}}}}')
    return head[:-2] + ',\n "instances": {\n' + ",\n".join(lines) + "}}\n"


def best_known(entry):
    """Return the least value of every budget, over methods and what was proved or found before."""
    known = dict(entry.get("known", {}))
    for cell in entry["methods"].values():
        for budget, got in cell.get("budgets", {}).items():
            known[budget] = min(known.get(budget, float("inf")), got["value"])
    return known


def summary(report):
    """Return for every method its excesses, hits, seconds and failures."""
    out = {}
    for name, entry in report["instances"].items():
        known = best_known(entry)
        for method, cell in entry["methods"].items():
            one = out.setdefault(
                method,
                {"excess": {}, "seconds": {}, "failed": {}, "short": 0, "first": [], "peak": [],
                 "risk": [], "chosen": []},
            )  # fmt: skip
            if "error" in cell:
                one["failed"][name] = cell["error"]
                continue
            for budget, got in cell["budgets"].items():
                excess = (got["value"] - known[budget]) / abs(known[budget])
                one["excess"][f"{name}, k={budget}"] = excess
                one["short"] += got["used"] < int(budget)
                if "risk" in got:
                    one["risk"].append(got["risk"])
                    one["chosen"].append(got["used"])
            one["seconds"][name] = cell["median"]
            one["peak"].append(cell.get("peak_bytes", 0))
            if "first_call_seconds" in cell:
                one["first"].append(cell["first_call_seconds"])
    return out


def show(report):
    """Print one table."""
    name = report["table"]
    print(f"\n{name}: {len(report['instances'])} instances, {report.get('date', '')}")
    if name == "risk":
        show_risk(report)
        return
    if name in ("curve_p", "curve_n", "sparse"):
        show_curve(report)
    found = summary(report)
    base = None
    for method, one in found.items():
        if method.startswith(OURS) and one["seconds"] and base is None:
            base = statistics.median(one["seconds"].values())
    for method, one in sorted(found.items(), key=lambda item: mean(item[1]["excess"].values())):
        if not one["seconds"]:
            print(f"  {method:<34} failed: {next(iter(one['failed'].values()))}")
            continue
        excess = list(one["excess"].values())
        times = list(one["seconds"].values())
        middle = statistics.median(times)
        line = f"  {method:<34} {sum(e <= REACHED for e in excess):>3}/{len(excess):<3}"
        line += f" +{100 * mean(excess):7.2f} % (worst {100 * max(excess):7.2f})"
        line += f" {1e3 * middle:10.1f} ms [{1e3 * min(times):.1f}-{1e3 * max(times):.1f}]"
        if base is not None:
            line += f" {middle / base:8.2f}x"
        if one["first"]:
            line += f"  first {one['first'][0]:.1f} s"
        if max(one["peak"]) > 2**28:
            line += f"  {max(one['peak']) / 1e9:.2f} GB"
        if one["risk"]:
            line += f"  risk {mean(one['risk']):.4f} with {one['chosen']}"
        if one["short"]:
            line += f"  fewer than k: {one['short']}"
        if one["failed"]:
            line += f"  failed: {len(one['failed'])}"
        print(line)
    method = "ours: default" if "ours: default" in found else "ours_estimator: fit"
    counts, losses = verdicts(report, method)
    if counts["instances"]:
        print(f"  {method}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    for line in losses:
        print(f"  LOSS {line}")


def show_curve(report):
    """Print time and memory against size."""
    sizes = {n: int(n.split("-")[1]) for n in report["instances"]}
    methods = dict.fromkeys(m for e in report["instances"].values() for m in e["methods"])
    print("  seconds (extra MB) at " + ", ".join(f"{size:,}" for size in sizes.values()))
    for method in methods:
        texts = []
        for entry in report["instances"].values():
            cell = entry["methods"].get(method, {})
            if "budgets" in cell:
                texts.append(f"{cell['median']:9.3f} ({cell['peak_bytes'] / 1e6:6.0f})")
            else:
                texts.append(f"{'failed' if 'error' in cell else '-':>18}")
        print(f"  {method:<34} " + "  ".join(texts))


def show_risk(report):
    """Print the error on new rows relative to the signal, by signal to noise."""
    ratios = ("0.3", "1", "6")
    methods = {}
    for name, entry in report["instances"].items():
        at = ratios[int(name.split("-")[1]) // 4]
        for method, cell in entry["methods"].items():
            if "budgets" in cell:
                got = cell["budgets"]["chosen"]
                methods.setdefault(method, {}).setdefault(at, []).append(
                    (got["risk"], got["used"], cell["median"])
                )
    print(
        "  risk relative to the signal (features, seconds) at signal to noise " + ", ".join(ratios)
    )
    for method, cells in sorted(
        methods.items(), key=lambda m: sum(r for c in m[1].values() for r, _, _ in c)
    ):
        texts = []
        for at in filter(cells.get, ratios):
            risks, used, seconds = zip(*cells[at], strict=True)
            texts.append(
                f"{mean(risks):6.3f} ({statistics.median(used):4.0f},"
                f" {statistics.median(seconds):6.2f} s)"
            )
        print(f"  {method:<34} " + "   ".join(texts))


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("inf")


def verdicts(report, method="ours: default"):
    """Return how often a method of ours is as good as all, and as fast, and where it is not.

    It is as good where no budget is above the best known, and slower where a peer that is at least
    as good took less time.
    """
    counts, out = {"instances": 0, "as good": 0, "fastest": 0}, []
    for name, entry in report["instances"].items():
        cell = entry["methods"].get(method, {})
        if "budgets" not in cell:
            continue
        peers = {
            m: c for m, c in entry["methods"].items() if not m.startswith(OURS) and "budgets" in c
        }
        known = best_known(entry)
        counts["instances"] += 1
        worse = 0
        for budget, got in cell["budgets"].items():
            excess = got["value"] / known[budget] - 1
            if excess <= REACHED or "risk" in got:
                continue
            worse += 1
            rivals = {
                m: c["budgets"][budget]["value"]
                for m, c in peers.items()
                if budget in c["budgets"]
            }
            who = min(rivals, key=rivals.get, default=None)
            if who is None or rivals[who] >= got["value"] * (1 - REACHED):
                who = "the best known only"
            out.append(f"{name} k={budget}: {method} is {100 * excess:.4f} % above {who}")
        counts["as good"] += not worse
        good = {
            m: c["median"]
            for m, c in peers.items()
            if all(
                b in cell["budgets"] and g["value"] <= cell["budgets"][b]["value"] * (1 + REACHED)
                for b, g in c["budgets"].items()
            )
        }
        fastest = min(good, key=good.get, default=None)
        if fastest is None or cell["median"] <= good[fastest]:
            counts["fastest"] += 1
        else:
            ratio = cell["median"] / good[fastest]
            out.append(f"{name}: {fastest} is as good and {ratio:.2f} times as fast as {method}")
    return counts, out


def main():
    names = sys.argv[1:] or sorted(p.stem[12:] for p in RESULTS.glob("best_subset_*.json"))
    for name in names:
        show(json.loads((RESULTS / f"best_subset_{name}.json").read_text()))


if __name__ == "__main__":
    main()
