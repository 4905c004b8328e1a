"""Draw the picture of the README and of the first page from the summary of ``ellzero train``.

ellzero train --json > iris.json
python docs/first_command.py iris.json

It writes ``docs/_static/first_command.svg`` and keeps the figures in ``docs/first_command.json``.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

BLUE, ORANGE, INK, MUTED = "#1f5fa8", "#c4561b", "#1b2026", "#59636f"


def draw(summary, path):
    """Draw loss and accuracy against the number of parameters, and mark what was chosen."""
    rows = summary["path"]
    sizes = [row["n_nonzero"] for row in rows]
    chosen = next(row for row in rows if row.get("selected"))
    plt.style.use(Path(__file__).with_name("style.mplstyle"))
    plt.rcParams.update({"svg.hashsalt": "ellzero", "svg.fonttype": "path"})
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    proven = [row for row in rows if row["claim"] == "optimal"]
    axes.plot(sizes, [row["value"] for row in rows], color=BLUE, lw=2, zorder=2)
    axes.plot(
        [row["n_nonzero"] for row in proven], [row["value"] for row in proven],
        "o", color=BLUE, label="training loss; dots are proven optimal", zorder=3,
    )  # fmt: skip
    axes.axhline(summary["dense"]["value"], color=MUTED, ls=":", lw=1.4)
    axes.annotate(
        "dense network", (sizes[-1], summary["dense"]["value"]), xytext=(0, -13),
        textcoords="offset points", ha="right", color=MUTED, fontsize=10,
    )  # fmt: skip
    axes.plot(chosen["n_nonzero"], chosen["value"], "o", ms=15, mfc="none", mec=ORANGE, mew=2.2)
    axes.annotate(
        f"{chosen['n_nonzero']} parameters, {100 * chosen['accuracy_test']:.1f} % right on new flowers",
        (chosen["n_nonzero"], chosen["value"]), xytext=(16, 22), textcoords="offset points",
        color=ORANGE, fontsize=12, fontweight="bold",
    )  # fmt: skip
    axes.set(xlabel="nonzero parameters", title="Iris: the best network of every size")
    axes.set_xticks(sizes)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main():
    """Keep the figures and draw them."""
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kept = ("n_nonzero", "value", "accuracy_test", "claim", "gap", "lower_bound", "selected")
    small = {
        "command": "ellzero train --json",
        "headline": found["headline"],
        "versions": found["versions"],
        "dense": {"value": found["dense"]["value"]},
        "path": [{key: row.get(key) for key in kept} for row in found["path"]],
    }
    here = Path(__file__).parent
    (here / "first_command.json").write_text(json.dumps(small, indent=1) + "\n", encoding="utf-8")
    draw(small, here / "_static" / "first_command.svg")


if __name__ == "__main__":
    main()
