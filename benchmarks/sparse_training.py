"""Sparse training against its rivals: the same start, batches and number of gradients for all.

Run from the root of the repository, on one thread:

    OMP_NUM_THREADS=1 python -m benchmarks.sparse_training --data FOLDER \
        --log runs.jsonl --out benchmarks/results/sparse_training.json

FOLDER (or the variable ELLZERO_DATA) holds ``mnist.npz`` and ``text/tinyshakespeare.txt``; the
problem `digits` needs neither. Every method is one file of ``benchmarks/rivals``. Its learning
rate is doubled or halved until the score on a validation part of the training data falls, then its
other settings and those of AdamW are tried, with a seed that is not reported; the test scores are
of seeds 0, 1, 2.
Every finished run is a line of the log, and a run that the log or the results file has is not made
again: an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import ellzero
from benchmarks import rivals
from benchmarks.rivals.task import BASES, Task
from ellzero.errors import NonFiniteError
from ellzero.tensors import thresholded

TUNING_SEED = 100
LR = 2e-3
LRS = tuple(LR * 2.0**k for k in range(-3, 7))

# Networks ----------------------------------------------------------------------------------------


def lenet(sides: Sequence[int] = (784, 300, 100, 10)) -> nn.Module:
    """Return a multilayer perceptron; LeNet-300-100 has 266,200 weights."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sides):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalization around a shortcut."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(a, b, 3, stride=b // a, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(b)
        self.conv2 = nn.Conv2d(b, b, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(b)
        self.short = nn.Conv2d(a, b, 1, stride=b // a, bias=False) if b != a else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        out: Tensor = functional.relu(inner + self.short(x))
        return out


class ResNet8(nn.Module):
    """Eight layers, 19,464 weights, for 28 x 28 images."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Residual(width, width), Residual(width, 2 * width), Residual(2 * width, 4 * width)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x.view(-1, 1, 28, 28))))
        out: Tensor = self.head(self.blocks(x).mean((2, 3)))
        return out


class Block(nn.Module):
    """Attention and a perceptron, each after a normalization."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = (
            self.attend(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        seen = functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.narrow(functional.gelu(self.widen(self.norm2(x))))
        return out


class CharTransformer(nn.Module):
    """Two blocks with 98,304 weights; embeddings and the head are not counted."""

    def __init__(self, n_chars: int, length: int, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_chars, width)
        self.place = nn.Embedding(length, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.1)
        self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_chars)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(
            self.norm(self.blocks(self.embed(x) + self.place.weight[: x.shape[1]]))
        )
        return out


# Problems ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Data to train on and data to judge by."""

    n_steps: int
    epochs: float
    batch: Callable[[int, int], tuple[Tensor, Tensor]]  # of a seed and a step
    judged: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how it is judged."""

    title: str
    metric: str  # "accuracy" (%, larger is better) or "loss" (smaller is better)
    densities: tuple[float, ...]
    tuned: float  # density at which the settings are chosen
    build: Callable[[], nn.Module]
    part: Callable[[Path | None, bool], Part]  # of the data folder and whether to tune
    counted: Callable[[str], bool] = lambda name: True

    def score(self, model: nn.Module, part: Part) -> float:
        """Return the accuracy or the mean loss on the judged data."""
        model.eval()
        right, loss, count = 0, 0.0, 0
        with torch.no_grad():
            for x, y in part.judged:
                out = model(x)
                right += int((out.argmax(-1) == y).sum())
                loss += float(
                    functional.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="sum")
                )
                count += y.numel()
        return 100 * right / count if self.metric == "accuracy" else loss / count

    def is_better(self, a: float | None, b: float | None) -> bool:
        """Return whether score a is better than score b; None, a diverged run, is worst."""
        if a is None or b is None:
            return b is None and a is not None
        return a > b if self.metric == "accuracy" else a < b


def images(
    x: Tensor, y: Tensor, x_judged: Tensor, y_judged: Tensor, *, batch: int, epochs: int
) -> Part:
    """Return images in batches, in a new order in each epoch."""
    per_epoch = len(x) // batch
    orders: dict[tuple[int, int], Tensor] = {}

    def draw(seed: int, step: int) -> tuple[Tensor, Tensor]:
        epoch, i = divmod(step, per_epoch)
        if (seed, epoch) not in orders:
            orders.clear()
            generator = torch.Generator().manual_seed(1000 * seed + epoch)
            orders[seed, epoch] = torch.randperm(len(x), generator=generator)
        rows = orders[seed, epoch][i * batch : (i + 1) * batch]
        return x[rows], y[rows]

    judged = list(zip(x_judged.split(1000), y_judged.split(1000), strict=True))
    return Part(per_epoch * epochs, epochs, draw, judged)


def mnist(data: Path | None, tune: bool, *, epochs: int, limit: int = 60000) -> Part:
    """Return MNIST; the last 10,000 training images judge the tuning, and it sees the others."""
    if data is None:
        raise SystemExit("Give the folder of mnist.npz by --data or ELLZERO_DATA.")
    with np.load(data / "mnist.npz") as file:
        arrays = [torch.from_numpy(file[k]) for k in ("x_train", "y_train", "x_test", "y_test")]
    x, x_test = ((a.view(-1, 784).float() / 255 - 0.1307) / 0.3081 for a in arrays[::2])
    y, y_test = (a.long() for a in arrays[1::2])
    if tune:
        x_test, y_test = x[50000:], y[50000:]
        x, y = x[:50000], y[:50000]
    return images(x[:limit], y[:limit], x_test, y_test, batch=128, epochs=epochs)


def digits(data: Path | None, tune: bool) -> Part:
    """Return the 8 x 8 digits that come with scikit-learn."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.data).float() / 8 - 1
    y = torch.from_numpy(found.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    end = 1000 if tune else 1200
    stop = 1200 if tune else len(x)
    return images(x[:end], y[:end], x[end:stop], y[end:stop], batch=32, epochs=10)


LENGTH, WINDOWS, TEXT_STEPS = 64, 16, 500


def shakespeare(data: Path | None, tune: bool) -> Part:
    """Return windows of text: nine tenths to train on, the last tenth to judge.

    The tuning trains on the first eight tenths and is judged by the ninth.
    """
    if data is None:
        raise SystemExit("Give the folder of text/tinyshakespeare.txt by --data or ELLZERO_DATA.")
    text = (data / "text" / "tinyshakespeare.txt").read_text()
    code = {c: i for i, c in enumerate(sorted(set(text)))}
    all_chars = torch.tensor([code[c] for c in text])
    a, b = (8 * len(text) // 10, 9 * len(text) // 10) if tune else (9 * len(text) // 10, len(text))
    train, judged = all_chars[:a], all_chars[a:b]
    inside = torch.arange(LENGTH)

    def draw(seed: int, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100000 * seed + step)
        starts = torch.randint(len(train) - LENGTH - 1, (WINDOWS, 1), generator=generator)
        return train[starts + inside], train[starts + inside + 1]

    rows = (len(judged) - 1) // LENGTH
    x = judged[: rows * LENGTH].view(rows, LENGTH)
    y = judged[1 : rows * LENGTH + 1].view(rows, LENGTH)
    epochs = TEXT_STEPS * WINDOWS * LENGTH / len(train)
    return Part(TEXT_STEPS, epochs, draw, list(zip(x.split(128), y.split(128), strict=True)))


PROBLEMS = {
    "digits": Problem(
        "perceptron 64-64-10 on digits",
        "accuracy",
        (0.1, 0.05),
        0.05,
        lambda: lenet((64, 64, 10)),
        digits,
    ),
    "lenet": Problem(
        "LeNet-300-100 on MNIST",
        "accuracy",
        (0.1, 0.05, 0.02, 0.01, 0.005),
        0.02,
        lenet,
        lambda data, tune: mnist(data, tune, epochs=8),
    ),
    "resnet": Problem(
        "ResNet-8 on 10,000 images of MNIST",
        "accuracy",
        (0.1, 0.05),
        0.05,
        ResNet8,
        lambda data, tune: mnist(data, tune, epochs=3, limit=10000),
    ),
    "chars": Problem(
        "character transformer on tiny Shakespeare",
        "loss",
        (0.1, 0.05),
        0.05,
        lambda: CharTransformer(65, LENGTH),
        shakespeare,
        lambda name: name.startswith("blocks"),
    ),
}

# Runs ------------------------------------------------------------------------------------------

Run = dict[str, Any]
KEYS = ("problem", "method", "density", "seed", "tune", "settings")


class Bench:
    """Runs that are made once: the log is read first and appended to."""

    def __init__(self, data: Path | None, log: Path | None) -> None:
        self.data, self.log = data, log
        self.runs: dict[str, Run] = {}
        self._parts: dict[tuple[str, bool], Part] = {}
        if log is not None and log.exists():
            self.add(json.loads(line) for line in log.read_text().splitlines())

    def add(self, runs: Iterable[Run]) -> None:
        """Take runs as made."""
        self.runs |= {self._key(run): run for run in runs}

    @staticmethod
    def _key(run: Run) -> str:
        return json.dumps([run[k] for k in KEYS], sort_keys=True)

    def run(
        self, problem: str, method: str, density: float, seed: int, tune: bool, settings: Run
    ) -> Run:
        """Train and judge, unless the log has it."""
        run: Run = dict(
            zip(KEYS, (problem, method, density, seed, tune, dict(settings)), strict=True)
        )
        key = self._key(run)
        if key not in self.runs:
            run |= self._train(PROBLEMS[problem], run)
            self.runs[key] = run
            if self.log is not None:
                with self.log.open("a") as file:
                    file.write(json.dumps(run) + "\n")
            shown = "diverged" if run["score"] is None else f"{run['score']:.4f}"
            print(
                f"{problem} {method} {density:g} seed {seed}{' tune' * tune} {settings}: "
                f"{shown}, {run['n_nonzero']} nonzeros, {run['seconds']:.1f} s",
                flush=True,
            )
        return self.runs[key]

    def _train(self, problem: Problem, run: Run) -> Run:
        which = (run["problem"], run["tune"])
        if which not in self._parts:
            self._parts = {which: problem.part(self.data, run["tune"])}
        part = self._parts[which]
        torch.manual_seed(run["seed"])
        model = problem.build()
        names = [n for n, p in model.named_parameters() if p.ndim >= 2 and problem.counted(n)]
        total = sum(p.numel() for n, p in model.named_parameters() if n in names)

        def loss(net: nn.Module, step: int) -> Tensor:
            x, y = part.batch(run["seed"], step)
            return functional.cross_entropy(net(x).flatten(0, -2), y.flatten())

        settings = dict(run["settings"])
        task = Task(
            model,
            names,
            max(1, round(run["density"] * total)),
            part.n_steps,
            loss,
            lr=settings.pop("lr"),
            base=settings.pop("base", "adam"),
            seed=run["seed"],
        )
        method = rivals.load(run["method"])
        model.train()
        began = time.process_time()
        # Moments of pruned weights decay to subnormal numbers, slow for every method alike.
        try:
            with thresholded.flushed():
                method.train(task, **settings)
            score = problem.score(model, part)
        except NonFiniteError:  # selection refuses NaN
            score = math.nan
        seconds = time.process_time() - began
        found = {n: int((p != 0).sum()) for n, p in model.named_parameters() if n in names}
        return {
            "score": score if math.isfinite(score) else None,
            "n_nonzero": sum(found.values()),
            "n_asked": task.n_nonzero,
            "n_entries": total,
            "empty_tensors": [n for n, c in found.items() if c == 0],
            "n_gradients": task.n_gradients,
            "epochs": part.epochs,
            "seconds": seconds,
        }

    def tune(self, problem: str, method: str, density: float) -> Run:
        """Return the settings that the validation part prefers.

        The learning rate climbs on a grid of powers of two; then each other setting is tried, and
        last the other settings of AdamW, whose learning rate climbs again.
        """
        judge = PROBLEMS[problem]
        choices = rivals.load(method).CHOICES

        def score(trial: Run) -> float | None:
            value: float | None = self.run(problem, method, density, TUNING_SEED, True, trial)[
                "score"
            ]
            return value

        def climb(settings: Run, best: float | None) -> tuple[Run, float | None]:
            for way in (1, -1):
                start = at = LRS.index(settings["lr"])
                while 0 <= at + way < len(LRS):
                    trial = settings | {"lr": LRS[at + way]}
                    value = score(trial)
                    if not judge.is_better(value, best):
                        break
                    settings, best, at = trial, value, at + way
                if at != start:
                    break
            return settings, best

        settings: Run = {"lr": LR} | {k: v[0] for k, v in choices.items()}
        settings, best = climb(settings, score(settings))
        for name, values in choices.items():
            for value in values[1:]:
                trial = settings | {name: value}
                if judge.is_better(score(trial), best):
                    settings, best = trial, score(trial)
        trial = settings | {"base": "quick"}
        other, value = climb(trial, score(trial))
        return other if judge.is_better(value, best) else settings

    def compare(
        self,
        problem: str,
        methods: Sequence[str],
        seeds: Sequence[int],
        densities: Sequence[float] | None = None,
    ) -> None:
        """Tune all methods, then make the reported runs, seed by seed."""
        judge = PROBLEMS[problem]
        cells = [
            (method, density)
            for method in methods
            for density in ((1.0,) if method == "dense" else densities or judge.densities)
        ]
        settings = {
            method: self.tune(problem, method, 1.0 if method == "dense" else judge.tuned)
            for method in methods
        }
        for seed in seeds:
            for method, density in cells:
                self.run(problem, method, density, seed, False, settings[method])


# Tables ------------------------------------------------------------------------------------------


def machine() -> dict[str, str | int]:
    """Return what the figures depend on."""
    cpu = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    try:
        from importlib.metadata import version

        torchao = version("torchao")
    except ImportError:
        torchao = "absent"
    return {
        "cpu": cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchao": torchao,
        "ellzero": ellzero.__version__,
        "threads": torch.get_num_threads(),
    }


def cells(runs: Sequence[Run], problem: str) -> Iterator[tuple[str, float, list[Run]]]:
    """Yield method, density and the reported runs, those with the last settings."""
    found: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        if run["problem"] == problem and not run["tune"]:
            found.setdefault((run["method"], run["density"]), []).append(run)
    for (method, density), group in found.items():
        last = group[-1]["settings"]
        yield method, density, [run for run in group if run["settings"] == last]


def summarize(runs: Sequence[Run], problem: str) -> dict[str, Any]:
    """Return mean and spread of every method at every density, and where ours loses."""
    judge = PROBLEMS[problem]
    rows: dict[str, dict[str, Run]] = {}
    for method, density, group in cells(runs, problem):
        scores = [run["score"] for run in group]
        diverged = None in scores
        rows.setdefault(method, {})[f"{density:g}"] = {
            "mean": None if diverged else statistics.mean(scores),
            "deviation": None if diverged or len(scores) < 2 else statistics.stdev(scores),
            "scores": scores,
            "seeds": [run["seed"] for run in group],
            "exact": all(run["n_nonzero"] == run["n_asked"] for run in group),
            "n_nonzero": [run["n_nonzero"] for run in group],
            "seconds": statistics.mean(run["seconds"] for run in group),
            "settings": group[0]["settings"],
        }
    best, losses = {}, []
    for density in judge.densities:
        at = f"{density:g}"
        column = {
            m: row[at]["mean"]
            for m, row in rows.items()
            if m != "dense" and at in row and row[at]["mean"] is not None
        }
        if not column:
            continue
        order = sorted(column, key=column.__getitem__, reverse=judge.metric == "accuracy")
        best[at] = order[0]
        losses += [
            {"density": at, "to": other, "by": abs(column["ours"] - column[other])}
            for other in order
            if "ours" in column
            and not other.startswith("ours")
            and judge.is_better(column[other], column["ours"])
        ]
        dense = rows.get("dense", {}).get("1", {}).get("mean")
        if dense is not None and "ours" in column and judge.is_better(dense, column["ours"]):
            losses.append({"density": at, "to": "dense", "by": abs(column["ours"] - dense)})
    return {
        "title": judge.title,
        "metric": judge.metric,
        "tuned_at_density": judge.tuned,
        "rows": rows,
        "best": best,
        "losses_of_ours": losses,
    }


def table(summary: dict[str, Any], densities: Sequence[float]) -> str:
    """Return the summary as a Markdown table; * marks the best sparse method."""
    shown_digits = 2 if summary["metric"] == "accuracy" else 3
    heads = [f"{100 * (1 - d):g} % zeros" for d in densities]
    counts = sorted({len(c["seeds"]) for row in summary["rows"].values() for c in row.values()})
    seeds = f"{counts[0]}" + f" to {counts[-1]}" * (len(counts) > 1)
    lines = [
        f"{summary['title']}: {summary['metric']}, mean ± deviation over {seeds} seeds",
        "",
        "| method | " + " | ".join(heads) + " | seconds |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for method in rivals.NAMES:
        row = summary["rows"].get(method)
        if row is None:
            continue
        shown = []
        for density in densities:
            cell = row.get("1" if method == "dense" else f"{density:g}")
            if cell is None:
                shown.append("")
                continue
            if cell["mean"] is None:
                shown.append("diverged")
                continue
            text = f"{cell['mean']:.{shown_digits}f}"
            if cell["deviation"] is not None:
                text += f" ± {cell['deviation']:.{shown_digits}f}"
            text += "*" * (summary["best"].get(f"{density:g}") == method)
            text += "" if cell["exact"] else " (count not exact)"
            shown.append(text)
        seconds = statistics.mean(cell["seconds"] for cell in row.values())
        title = rivals.load(method).TITLE
        lines.append(f"| {title} | " + " | ".join(shown) + f" | {seconds:.1f} |")
    lines.append("")
    lost = [
        f"{100 * (1 - float(x['density'])):g} % to {x['to']} by {x['by']:.{shown_digits}f}"
        for x in summary["losses_of_ours"]
    ]
    if "ours" in summary["rows"]:
        lines.append("ours loses: " + ("; ".join(lost) if lost else "nowhere"))
    return "\n".join(lines)


def report(runs: Sequence[Run]) -> dict[str, Any]:
    """Return everything that the results file holds."""
    problems = [p for p in PROBLEMS if any(r["problem"] == p and not r["tune"] for r in runs)]
    return {
        "what": "sparse training under an equal number of gradients, batches, start and decay",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "bases": BASES,
        "tuning_seed": TUNING_SEED,
        "sources": {name: rivals.load(name).SOURCE for name in rivals.NAMES},
        "problems": {problem: summarize(runs, problem) for problem in problems},
        "runs": list(runs),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Tune, run, print, and write when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    folder = os.environ.get("ELLZERO_DATA")
    parser.add_argument("--data", type=Path, default=Path(folder) if folder else None)
    parser.add_argument("--problems", nargs="+", default=["lenet", "chars", "resnet"])
    parser.add_argument("--methods", nargs="+", default=list(rivals.NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--densities", nargs="+", type=float, help="default: the problem's")
    parser.add_argument(
        "--log", type=Path, help="finished runs, a line each; read and appended to"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only-table", action="store_true", help="make no runs")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    bench = Bench(given.data, given.log)
    if given.out and given.out.exists():
        bench.add(json.loads(given.out.read_text())["runs"])
    for name in given.problems if not given.only_table else []:
        bench.compare(name, given.methods, given.seeds, given.densities)
    figures = report(list(bench.runs.values()))
    for name, summary in figures["problems"].items():
        print("\n" + table(summary, PROBLEMS[name].densities))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
