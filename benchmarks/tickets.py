"""Tickets on digits, MNIST and text: iterative pruning, hard thresholding and their controls.

Run from the root of the repository, on one thread:

    OMP_NUM_THREADS=1 python -m benchmarks.tickets --data FOLDER --work RUNS \
        --out benchmarks/results/tickets.json [--problem digits lenet chars]

FOLDER (or the variable ELLZERO_DATA) holds ``mnist.npz`` and ``text/tinyshakespeare.txt``; the
problem `digits` needs neither. RUNS keeps every finished pair of arm and seed, so that an
interrupted benchmark goes on where it stopped. All arms of one seed share start, batches and
number of steps. The margin is the standard deviation of the dense network over the seeds, fixed
before the runs. Costs are counted in optimizer steps, not in seconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import ellzero
from benchmarks.sparse_training import CharTransformer
from ellzero.nn import tickets
from ellzero.papers.tickets import adam, digits_task, perceptron, small_perceptron

LENET = (784, 300, 100, 10)
LENGTH, WINDOWS, WIDTH, HEADS = 32, 16, 32, 2


def lenet_task(data: Path) -> tickets.Task:
    """Return LeNet-300-100 on MNIST; the last 5,000 training images find the best step."""
    with np.load(data / "mnist.npz") as file:
        arrays = [torch.from_numpy(file[k]) for k in ("x_train", "y_train", "x_test", "y_test")]
    x, x_test = ((a.view(-1, 784).float() / 255 - 0.1307) / 0.3081 for a in arrays[::2])
    y, y_test = (a.long() for a in arrays[1::2])
    return tickets.Task(
        build=lambda: perceptron(LENET),
        loader=tickets.Shuffled(x[:55000], y[:55000], 60),
        criterion=functional.cross_entropy,
        test=tickets.Accuracy(x_test, y_test),
        validation=tickets.Accuracy(x[55000:], y[55000:]),
        every=100,
        n_steps=300,
        optimizer=adam,
        small=lambda most: small_perceptron(most, LENET),
    )


def flat_loss(out: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy over all characters, in nats."""
    return functional.cross_entropy(out.flatten(0, -2), y.flatten())


def chars_task(data: Path) -> tickets.Task:
    """Return a character transformer of two blocks; embeddings and head are not pruned."""
    text = (data / "text" / "tinyshakespeare.txt").read_text()
    code = {c: i for i, c in enumerate(sorted(set(text)))}
    chars = torch.tensor([code[c] for c in text])
    end = 9 * len(chars) // 10
    train, judged = chars[:end], chars[end:]
    inside = torch.arange(LENGTH)

    def draw(generator: torch.Generator) -> Any:
        for _ in range(1000):
            starts = torch.randint(len(train) - LENGTH - 1, (WINDOWS, 1), generator=generator)
            yield train[starts + inside], train[starts + inside + 1]

    def windows(part: Tensor) -> tickets.MeanLoss:
        rows = (len(part) - 1) // LENGTH
        x, y = part[: rows * LENGTH], part[1 : rows * LENGTH + 1]
        return tickets.MeanLoss(flat_loss, x.view(rows, LENGTH), y.view(rows, LENGTH), 256)

    half = len(judged) // 2
    return tickets.Task(
        build=lambda: CharTransformer(len(code), LENGTH, WIDTH, HEADS),
        loader=draw,
        criterion=flat_loss,
        test=windows(judged[half:]),
        validation=windows(judged[:16000]),
        every=100,
        n_steps=200,
        optimizer=lambda params: torch.optim.Adam(params, lr=3e-3, fused=True),
        maximize=False,
        names=["blocks.*.weight"],
    )


@dataclass(frozen=True)
class Problem:
    """A task and how it is run."""

    title: str
    metric: str
    task: Callable[[Path], tickets.Task]
    powers: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...] | None = None
    draws: int = 1


FEW = ("imp", "one-shot", "iht", "iht-final", "imp-reinit", "random-layers")
PROBLEMS = {
    "digits": Problem(
        "perceptron 64-100-50-10 on digits", "test accuracy", lambda data: digits_task(500, 0),
        (8, 14), (0, 1, 2, 3, 4), FEW,
    ),
    "lenet": Problem(
        "LeNet-300-100 on MNIST", "test accuracy", lenet_task, (8,), (0, 1, 2, 3, 4), FEW,
    ),
    "chars": Problem(
        "character transformer on tiny Shakespeare", "cross-entropy, nats", chars_task, (5,),
        (0, 1, 2), FEW,
    ),
}  # fmt: skip


def run(name: str, data: Path, work: Path, n_seeds: int | None = None) -> dict[str, Any]:
    """Run one problem and return its summary."""
    problem = PROBLEMS[name]

    def tell(what: str, done: int, total: int | None) -> None:
        print(f"{name}: {what}, {done} of {total}", flush=True)

    began = time.process_time()
    found = tickets.run(
        problem.task(data),
        [0.8**k for k in problem.powers],
        arms=problem.arms,
        seeds=problem.seeds[:n_seeds],
        settings=tickets.Settings(draws=problem.draws),
        folder=work / name,
        progress=tell,
    )
    summary = tickets.summarize(
        found,
        title=f"Tickets: {problem.title}",
        metric=problem.metric,
        percent=problem.metric == "test accuracy",
    )
    summary["settings"]["seconds of this run"] = round(time.process_time() - began, 1)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("ELLZERO_DATA", "."))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--seeds", type=int, help="Only so many of the first seeds.")
    parser.add_argument("--problem", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in given.problem:
        summary = run(name, Path(given.data), given.work, given.seeds)
        results[name] = summary
        print(summary["headline"])
        if given.pages is not None:
            from ellzero.report import to_html

            given.pages.mkdir(parents=True, exist_ok=True)
            (given.pages / f"{name}.html").write_text(to_html(summary))
    if given.out is not None:
        old = json.loads(given.out.read_text())["problems"] if given.out.exists() else {}
        for summary in results.values():  # a line for each run, or the file grows long
            keys = ("arm", "seed", "draw", "density", "n_nonzero", "value", "best_step")
            runs = summary["tickets"].pop("runs")
            summary["tickets"]["runs"] = [[r[k] for k in keys] for r in runs]
        record = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
            "versions": {"ellzero": ellzero.__version__, "torch": torch.__version__},
            "problems": old | results,
        }
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
