"""Tickets on digits: iterative pruning, hard thresholding and the controls, beside a pilot.

The review asks whether trainable sparse subnetworks exist; it holds no experiment. The protocol is
that of the lottery ticket hypothesis with every control that is needed to read it, on a network
that trains in a second. ``benchmarks/tickets.py`` runs the same on MNIST and on text.

References
----------
.. [1] S. Damadi, "On the compression of natural language models", arXiv:2112.11480.
.. [2] J. Frankle and M. Carbin, "The lottery ticket hypothesis", arXiv:1803.03635.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ellzero.datasets import load_table
from ellzero.nn import tickets
from ellzero.papers import Progress

WIDTHS = (64, 100, 50, 10)
N_TRAIN, N_VALIDATION = 1000, 200
BATCH, STEPS, LR = 60, 1000, 1.2e-3
POWERS, QUICK_POWERS = (8, 11, 14, 16, 18), (8, 14)
SEEDS, QUICK_SEEDS, QUICK_STEPS = 5, 2, 150
QUICK_ARMS = ("imp", "one-shot", "iht", "iht-final", "random-layers", "small-dense")

# Test accuracy, %, measured by independent code with three seeds and another split.
PILOT: dict[str, dict[int, float]] = {
    "imp": {8: 97.1, 11: 96.4, 14: 94.4, 16: 93.8, 18: 90.6},
    "imp-reinit": {8: 95.9, 11: 93.9, 14: 91.1, 16: 73.0, 18: 58.0},
    "random-layers": {8: 94.6, 11: 91.6, 14: 72.5, 16: 39.6, 18: 17.3},
    "magnitude": {8: 95.1, 11: 91.5, 14: 61.8, 16: 35.5, 18: 22.0},
    "one-shot": {8: 96.4, 11: 95.1, 14: 88.1, 16: 59.4, 18: 29.2},
    "iht": {8: 96.7, 11: 96.0, 14: 93.9, 16: 91.3, 18: 85.9},
}
PILOT_DENSE = 97.2
# Points of accuracy, where the pilot is above 90 %; below, starts and splits decide.
AGREES, SURE = 1.5, 90.0


def digits() -> tuple[Tensor, Tensor]:
    """Return the 1797 images of 8 x 8 pixels in [0, 1] and their classes."""
    table = load_table("digits")
    x = torch.zeros(len(table.X), 64)
    # The table leaves out pixels that are zero in every image.
    for column, name in enumerate(table.feature_names):
        row, place = name.removeprefix("pixel_").split("_")
        x[:, 8 * int(row) + int(place)] = table.X[:, column].float() / 16
    return x, torch.as_tensor(table.y).long()


def perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    """Return a perceptron with ReLU, weights by Glorot's normal law and zero biases."""
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layer = nn.Linear(n_in, n_out)
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def small_perceptron(most: int, widths: tuple[int, ...] = WIDTHS) -> nn.Sequential:
    """Return the perceptron of the same shape with the most weights that are at most so many."""
    n_in, *hidden, n_out = widths
    best = (n_in, *(1 for _ in hidden), n_out)
    for first in range(1, hidden[0] + 1):
        inner = (max(1, round(h * first / hidden[0])) for h in hidden)
        sides = (n_in, *inner, n_out)
        if sum(a * b for a, b in itertools.pairwise(sides)) > most:
            break
        best = sides
    return perceptron(best)


def adam(params: Any) -> torch.optim.Optimizer:
    """Return Adam at the rate of the lottery ticket paper's perceptron, in one pass a step."""
    return torch.optim.Adam(params, lr=LR, fused=True)


def digits_task(n_steps: int, seed: int) -> tickets.Task:
    """Return the perceptron on digits, split at random by a seed."""
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, validation, test = order.tensor_split((N_TRAIN, N_TRAIN + N_VALIDATION))
    return tickets.Task(
        build=lambda: perceptron(WIDTHS),
        loader=tickets.Shuffled(x[train], y[train], BATCH),
        criterion=functional.cross_entropy,
        test=tickets.Accuracy(x[test], y[test]),
        validation=tickets.Accuracy(x[validation], y[validation]),
        n_steps=n_steps,
        optimizer=adam,
        small=small_perceptron,
    )


def run(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the experiment on digits and return its summary; see `Experiment.run`."""
    powers = QUICK_POWERS if quick else POWERS
    seeds = [seed + k for k in range(QUICK_SEEDS if quick else SEEDS)]
    task = digits_task(QUICK_STEPS if quick else STEPS, seed)
    found = tickets.run(
        task,
        [0.8**k for k in powers],
        arms=QUICK_ARMS if quick else None,
        seeds=seeds,
        progress=progress,
    )
    summary = tickets.summarize(found, title="Tickets on digits: iterative pruning and IHT")
    summary["settings"] |= {
        "papers": "arXiv:2112.11480, arXiv:1803.03635",
        "network": "-".join(map(str, WIDTHS)),
        "seed": seed,
        "quick": quick,
    }
    x, _ = digits()
    summary["data"] = {
        "name": "digits",
        "n_samples": len(x),
        "n_features": x.shape[1],
        "n_classes": 10,
        "n_train": N_TRAIN,
        "n_test": len(x) - N_TRAIN - N_VALIDATION,
        "target": "digit",
        "messages": [f"{N_VALIDATION} more samples for the best step, which chooses nothing."],
    }
    summary["reference"] = _beside_pilot(found, powers, quick=quick)
    return summary


def _beside_pilot(
    found: tickets.TicketResult, powers: tuple[int, ...], *, quick: bool
) -> dict[str, Any]:
    rows: list[list[Any]] = []

    def row(what: str, theirs: float, ours: float) -> None:
        agrees = None if quick or theirs < SURE else abs(ours - theirs) <= AGREES
        rows.append([what, theirs, round(ours, 2), agrees])

    row("dense", PILOT_DENSE, 100 * statistics.fmean(found.values("dense")))
    for arm, values in PILOT.items():
        if arm in found.arms:
            for power in powers:
                ours = 100 * statistics.fmean(found.values(arm, 0.8**power))
                row(f"{arm}, {100 * 0.8**power:.1f} % kept", values[power], ours)
    shorter = " A quick run trains shorter, so that nothing can agree." if quick else ""
    return {
        "title": "Test accuracy, %: a pilot beside ours",
        "columns": ["arm", "pilot", "ours", "agrees"],
        "rows": rows,
        "note": (
            "The review has no figures. The pilot was measured by independent code with three "
            f"seeds and another split; agreement is {AGREES:g} points where the pilot is above "
            f"{SURE:g} %, and below that starts decide.{shorter}"
        ),
    }
