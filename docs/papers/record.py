"""Run a paper's experiment and keep its summary for this site.

python docs/papers/record.py rvsm [--quick]
"""

import argparse
import json
from pathlib import Path

from ellzero.papers import find_experiment

RESULTS = Path(__file__).parent / "results"


def main():
    """Run one experiment and write its summary, without what belongs to one machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    keep(given.name, find_experiment(given.name).run(quick=given.quick), given.quick)


def keep(name, summary, quick):
    """Write a summary."""
    summary = dict(summary)
    summary["settings"] = {**summary["settings"], "quick": quick}
    summary["command"] = f"ellzero reproduce {name}{' --quick' if quick else ''}"
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(summary, default=float, separators=(",", ":"))
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
