"""One layer, as in the anchor problem: relative errors of masks, weights and refits.

Run from the root of the repository, on one thread:

    OMP_NUM_THREADS=1 python -m benchmarks.layer_pruning --out layer_pruning.json

Inputs: 512 samples of 64 features with correlation .9 to the power of their distance and
log-normal scales; a Gaussian weight of 32 by 64. Errors are relative to the energy of the outputs,
without damping; means over 8 seeds. Magnitude, Wanda, SparseGPT and ALPS are those of
``benchmarks.language``; "refit" solves for the kept weights exactly.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ellzero
from benchmarks.language import alps, magnitude, sparsegpt, wanda
from ellzero.language import prune_layer
from ellzero.language.layers import solve_on
from ellzero.sets import L0Ball

LEVELS = ("0.5", "0.3", "0.1")
METHODS = ("magnitude", "wanda", "sparsegpt", "alps", "magnitude + refit", "wanda + refit",
           "sparsegpt + refit", "ellzero", "ellzero, exchanges")  # fmt: skip
# Damping of ellzero: the Gram matrix is regular, and the errors are counted without it.
DAMPING = 1e-6
# Standard deviation of the logarithms of the scales; the pilot's was not written down, and with
# this one magnitude and Wanda come near to its figures.
SPREAD = 0.6
# Errors printed by the pilot, of a draw of its own.
PILOT = {
    "0.5": {"magnitude": 0.0618, "wanda": 0.0366, "sparsegpt": 0.0108, "alps": 0.0035},
    "0.3": {"magnitude": 0.1475, "wanda": 0.0961, "sparsegpt": 0.0467, "alps": 0.0134},
    "0.1": {"magnitude": 0.4878, "wanda": 0.3205, "sparsegpt": 0.2256, "alps": 0.0788},
}


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Return the weight and the Gram matrix of a seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(512, 64, generator=generator, dtype=torch.float64)
    inputs = noise.clone()
    for j in range(1, 64):
        inputs[:, j] = 0.9 * inputs[:, j - 1] + (1 - 0.81) ** 0.5 * noise[:, j]
    inputs *= (SPREAD * torch.randn(64, generator=generator, dtype=torch.float64)).exp()
    weight = torch.randn(32, 64, generator=generator, dtype=torch.float64)
    return weight, inputs.T @ inputs


def error(weight: Tensor, gram: Tensor, new: Tensor) -> float:
    """Return the relative error of a new weight."""
    away = weight - new
    return float(((away @ gram) * away).sum() / ((weight @ gram) * weight).sum())


def refit(weight: Tensor, gram: Tensor, new: Tensor) -> Tensor:
    """Solve for the weights that are kept."""
    return solve_on(weight, gram, new != 0, new, max_iter=5000, tol=1e-12)


def measure(seed: int, level: str) -> dict[str, float]:
    """Return the error of every method, and the proven bound."""
    weight, gram = problem(seed)
    table = {}
    for name, rival in (
        ("magnitude", magnitude), ("wanda", wanda), ("sparsegpt", sparsegpt), ("alps", alps)
    ):  # fmt: skip
        new = rival(weight, gram, level)
        table[name] = error(weight, gram, new)
        if name != "alps":
            table[f"{name} + refit"] = error(weight, gram, refit(weight, gram, new))
    budget = L0Ball(int(float(level) * weight.numel()))
    for name, passes in (("ellzero", 0), ("ellzero, exchanges", 20)):
        found = prune_layer(weight, gram, budget, damping=DAMPING, max_swaps=passes, max_iter=300)
        table[name] = error(weight, gram, found.weight)
        assert found.lower_bound is not None
        table["bound"] = found.lower_bound / found.scale
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for level in LEVELS:
        tables = [measure(seed, level) for seed in range(given.seeds)]
        row: dict[str, Any] = {"level": level, "n_seeds": given.seeds}
        for name in (*METHODS, "bound"):
            row[name] = round(sum(t[name] for t in tables) / len(tables), 5)
        best = [min(t[m] for m in METHODS[:7]) for t in tables]
        row["best of all rivals in"] = sum(
            t["ellzero, exchanges"] <= b for t, b in zip(tables, best, strict=True)
        )
        row["pilot"] = PILOT[level]
        rows.append(row)
        print(row, flush=True)
    if given.out is not None:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(),
                   "python": platform.python_version(), "torch": torch.__version__,
                   "ellzero": ellzero.__version__,
                   "date": str(datetime.datetime.now(datetime.UTC).date())}  # fmt: skip
        given.out.write_text(json.dumps({"rows": rows, "machine": machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
