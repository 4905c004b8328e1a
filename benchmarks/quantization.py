"""A sentence encoder on few levels, dense and pruned: size on disk, agreement, latency.

Run from the root of the repository, on one thread; --only rows makes, --only latency times:

    OMP_NUM_THREADS=1 python -m benchmarks.quantization --model FOLDER --data FOLDER \
        --work FOLDER --out benchmarks/results/quantization.json

Model, data, calibration and judgment are those of ``benchmarks/language.py``: all-MiniLM-L6-v2,
768 training sentences, mean cosine to the dense embeddings and Spearman correlation on 400 test
pairs (--stride 3: every third batch of the sentences only). The 36 linear layers of the encoder
are pruned, then put on few levels ("at once": both, layer by layer); embeddings, norms and biases
stay in float32, or go to int8 ("with int8 embeddings"). --one-pass takes the Gram matrices of the
dense model and SparseGPT's pruning, which is far cheaper and further from the dense model. Every
row is written to a file, read back into a fresh model and judged there. Rivals are rounding to
nearest (the same levels, ranges from the largest weight, nothing carried) and the dynamic int8 of
torch and of ONNX Runtime, whose activations are int8 too. Latencies are processor seconds in
turns, one thread.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import importlib.metadata
import io
import json
import logging
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ellzero
from benchmarks.language import (
    N_CALIBRATION,
    N_PAIRS,
    Judge,
    pool,
    read_pairs,
    sparsegpt,
    tokenized,
)
from ellzero.language import Quantizer, compress, quantize_layer
from ellzero.language.calibration import matrix, prunable_layers
from ellzero.language.quantization import read_quantizer
from ellzero.nn import export

LEVELS = ("dense", "0.5", "0.2")
PACKAGES = ("torch", "numpy", "numba", "onnx", "onnxruntime", "transformers")
BATCHES = (1, 32)
ROUNDS = 5
NEAREST = {"clip_search": False, "feedback": False, "n_passes": 0}
FORMS: dict[str, Any] = {
    "float32": None,
    "int8": "int8",
    "int4": "int4",
    "int8, nearest": Quantizer(8, **NEAREST),
    "int4, nearest": Quantizer(4, group_size=64, **NEAREST),
    "int4, count kept": Quantizer(4, group_size=64, keep_count=True),
    "int4, at once": "int4",
}


def new_model(folder: Path) -> nn.Module:
    """Return the encoder as its config says, with the weights of the folder."""
    from transformers import AutoModel

    model: nn.Module = AutoModel.from_pretrained(folder).eval()
    return model


def round_model(model: nn.Module, quantizer: Quantizer) -> dict[str, Any]:
    """Round the weights of the encoder to the nearest level; return their codes."""
    codes = {}
    for name, layer in prunable_layers(model)[0].items():
        if name.startswith("encoder."):
            found = quantize_layer(matrix(layer), None, quantizer)
            matrix(layer).copy_(found.weight)
            codes[f"{name}.weight"] = found.quantized
    return codes


def kept_judge(tokenizer: Any, dense: nn.Module, pairs: list[Any], path: Path) -> Judge:
    """Return the judge, whose embeddings of the dense model are kept in a file."""
    if path.exists():
        judge = Judge.__new__(Judge)
        judge.scores = [score for _, _, score in pairs]
        judge.batches = tokenized(tokenizer, [a for a, _, _ in pairs] + [b for _, b, _ in pairs])
        judge.dense = torch.load(path)
        return judge
    judge = Judge(tokenizer, dense, pairs)
    torch.save(judge.dense, path)
    return judge


@torch.no_grad()
def dense_grams(model: nn.Module, batches: list[Any], path: Path) -> dict[str, Tensor]:
    """Return second moments of the inputs of the encoder's layers in the dense model; kept."""
    if path.exists():
        found: dict[str, Tensor] = torch.load(path)
        return found
    grams: dict[str, Tensor] = {}
    for batch in batches:
        handles = []
        for name, layer in prunable_layers(model)[0].items():
            if name.startswith("encoder.") and not name.endswith(("key", "value")):

                def add(
                    module: nn.Module, args: Any, name: str = name, batch: Any = batch
                ) -> None:
                    x = args[0][batch["attention_mask"].bool()]
                    grams[name] = grams.get(name, torch.zeros(())) + (x.T @ x).double()

                handles.append(layer.register_forward_pre_hook(add))
        model(**batch)
        for handle in handles:
            handle.remove()
    torch.save(grams, path)
    return grams


def one_shot(
    model: nn.Module, grams: dict[str, Tensor], level: str, quantizer: Quantizer | None
) -> dict[str, Any]:
    """Prune every layer by SparseGPT and quantize it, all with inputs of the dense model."""
    codes = {}
    for name, layer in prunable_layers(model)[0].items():
        if not name.startswith("encoder."):
            continue
        gram = grams[name.replace("key", "query").replace("value", "query")]
        weight = matrix(layer)
        if level != "dense":
            weight.copy_(sparsegpt(weight.clone(), gram, level))
        if quantizer is not None:
            plain = not quantizer.feedback and not quantizer.clip_search
            found = quantize_layer(weight, None if plain else gram, quantizer)
            weight.copy_(found.weight)
            codes[f"{name}.weight"] = found.quantized
    return codes


def rows(
    folder: Path, data: Path, work: Path, levels: list[str], forms: list[str],
    stride: int, max_iter: int, one_pass: bool, add: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Make, write, read back and judge every row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = new_model(folder)
    train = read_pairs(data / "sts" / "stsb-en-train.csv")
    sentences = random.Random(0).sample([row[0] for row in train], N_CALIBRATION)
    pairs = random.Random(0).sample(read_pairs(data / "sts" / "stsb-en-test.csv"), N_PAIRS)
    batches = tokenized(tokenizer, sentences)
    judge = kept_judge(tokenizer, dense, pairs, work / "judge.pt")
    for level in levels:
        for form in forms:
            model = copy.deepcopy(dense)
            codes: dict[str, Any] = {}
            row: dict[str, Any] = {"level": level, "form": form}
            began = time.process_time()
            quantizer = read_quantizer(FORMS[form])
            density = None if level == "dense" else float(level)
            first = quantizer is None or form.endswith("at once")
            if one_pass:
                row["protocol"] = "inputs of the dense model; pruned by SparseGPT"
                grams = dense_grams(dense, batches[::stride], work / "grams.pt")
                codes = one_shot(model, grams, level, quantizer)
            elif not first and density is not None:
                export.load(work / f"{level}-float32.safetensors", model)
            if one_pass:
                pass
            elif form.endswith("nearest"):
                codes = round_model(model, quantizer)
            elif density is not None or quantizer is not None:
                result = compress(
                    model,
                    batches[::stride],
                    density=density if first else None,
                    quantize=quantizer,
                    max_iter=max_iter,
                    with_bounds=False,
                    layers=["encoder."],
                )
                codes = result.quantized
                records = [line.record for line in result.layers]
                row["budget"] = sum(
                    int((density or 1.0) * a * b) for a, b in (r["shape"] for r in records)
                )
                row["n_rounded"] = sum(r.get("n_rounded", 0) for r in records)
                errors = [r["relative_error"] for r in records]
                row["mean_relative_error"] = statistics.fmean(errors)
            row["seconds"] = round(time.process_time() - began, 1)
            row["n_nonzero"] = sum(
                int(matrix(layer).count_nonzero())
                for name, layer in prunable_layers(model)[0].items()
                if name.startswith("encoder.")
            )
            path = work / f"{level}-{form.replace(', ', '-').replace(' ', '-')}.safetensors"
            row["bytes"] = export.save(model, path, quantized=codes)
            stored = export.sizes(path)
            inside = [line for line in stored if line.name in codes] or [
                line for line in stored
                if line.name.startswith("encoder.") and len(line.shape) == 2
            ]  # fmt: skip
            row["bytes_layers"] = sum(line.n_bytes for line in inside)
            row["bits_per_weight"] = round(
                8 * row["bytes_layers"] / (sum(line.plain_bytes for line in inside) / 4), 3
            )
            fresh = new_model(folder)
            export.load(path, fresh)
            row["loads_back_equal"] = all(
                torch.equal(a, b)
                for a, b in zip(model.state_dict().values(), fresh.state_dict().values(),
                                strict=True)
            )  # fmt: skip
            row |= judge(fresh)
            if form in ("int8", "int4"):
                small = path.with_suffix(".int8-embeddings.safetensors")
                row["bytes_with_int8_embeddings"] = export.save(
                    model, small, values="int8", quantized=codes
                )
                if not one_pass:
                    export.load(small, fresh)
                    row["with_int8_embeddings"] = judge(fresh)
            add(row)


# Latency ----------------------------------------------------------------------------------------


def dynamic_int8(model: nn.Module) -> nn.Module:
    """Return the model with torch's dynamic int8 layers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out: nn.Module = torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear}, torch.qint8
        )
    return out


class Hidden(nn.Module):
    """The encoder as a function of two tensors, for the exporter."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the last hidden state."""
        out: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return out


def onnx_sessions(model: nn.Module, batch: Mapping[str, Tensor], work: Path) -> dict[str, Any]:
    """Return sessions of ONNX Runtime, float32 and with its dynamic int8."""
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic

    given = (batch["input_ids"], batch["attention_mask"])
    names = ["input_ids", "attention_mask"]
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {n: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for n in names}
        program = torch.onnx.export(Hidden(model).eval(), given, input_names=names,
                                    dynamo=True, dynamic_shapes=shapes, verbose=False)  # fmt: skip
        plain, small = work / "dense.onnx", work / "dense-int8.onnx"
        assert program is not None
        program.save(str(plain))
        quantize_dynamic(str(plain), str(small))
    logging.disable(logging.NOTSET)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return {
        "ONNX Runtime": onnxruntime.InferenceSession(str(plain), options),
        "ONNX Runtime int8": onnxruntime.InferenceSession(str(small), options),
    }


def race(calls: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Return median and least processor seconds of each, in turns."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {n: {"median": statistics.median(t), "min": min(t)} for n, t in seconds.items()}


@torch.no_grad()
def latency(
    folder: Path,
    data: Path,
    work: Path,
    files: list[str],
    agree: bool,
    save: Callable[[Any], None],
) -> None:
    """Time whole calls, tokens to embeddings, for one sentence and for 32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = new_model(folder)
    pairs = random.Random(0).sample(read_pairs(data / "sts" / "stsb-en-test.csv"), N_PAIRS)
    texts = [a for a, _, _ in pairs]
    judge = kept_judge(tokenizer, dense, pairs, work / "judge.pt") if agree else None
    rivals = {"dense": dense, "torch dynamic int8": dynamic_int8(dense)}
    agreement = {}
    if judge is not None:
        agreement["torch dynamic int8"] = judge(rivals["torch dynamic int8"])
    sessions = onnx_sessions(dense, tokenized(tokenizer, texts[:2])[0], work)
    for name, session in sessions.items():
        runner = _Runner(session)
        if judge is not None:
            agreement[name] = judge(runner)
        rivals[name] = runner
    found: dict[str, Any] = {"agreement of rivals": agreement, "rows": []}
    found["rival bytes"] = {
        "torch dynamic int8": _torch_bytes(rivals["torch dynamic int8"]),
        **{n: (work / f).stat().st_size + _data_bytes(work / f)
           for n, f in (("ONNX Runtime", "dense.onnx"), ("ONNX Runtime int8", "dense-int8.onnx"))},
    }  # fmt: skip
    for size in BATCHES:
        batch = dict(tokenizer(texts[:size], padding=True, return_tensors="pt"))
        calls: dict[str, Callable[[], Any]] = {
            name: functools.partial(pool, model, batch) for name, model in rivals.items()
        }
        chosen: dict[str, Any] = {}
        for name in files:
            path = work / f"{name}.safetensors"
            model = new_model(folder)
            export.load(path, model)
            fast = export.sparse(model, sample=batch, threads=1,
                                 quantized=export.quantized_weights(path))  # fmt: skip
            gains = [g for g in export.report(fast) if g.name.startswith("encoder.")]
            kinds = [g.backend for g in gains]
            difference = float((pool(fast, batch) - pool(model, batch)).abs().max())
            chosen[name] = {
                "layers": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
                "largest difference to its dense form": difference,
                "packed bytes": sum(g.packed_bytes for g in gains),
                "gains": {g.name: None if g.gain is None else round(g.gain, 3) for g in gains},
            }
            calls[f"ellzero {name}"] = functools.partial(pool, fast, batch)
        times = race(calls)
        found["rows"].append(
            {
                "sentences": size,
                "tokens": int(batch["attention_mask"].sum()),
                "seconds": times,
                "times faster than dense": {
                    n: round(times["dense"]["median"] / t["median"], 3) for n, t in times.items()
                },
                "ours": chosen,
            }
        )
        print(json.dumps(found["rows"][-1]["times faster than dense"], indent=1), flush=True)
        save(found)


class _Runner(nn.Module):
    """A session of ONNX Runtime, called like the encoder."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.session = session

    def forward(self, **batch: Tensor) -> Any:
        """Return something with a last hidden state."""
        given = {n: batch[n].numpy() for n in ("input_ids", "attention_mask")}
        out = argparse.Namespace()
        out.last_hidden_state = torch.from_numpy(self.session.run(None, given)[0])
        return out


def _torch_bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.tell()


def _data_bytes(path: Path) -> int:
    beside = path.with_name(path.name + ".data")
    return beside.stat().st_size if beside.exists() else 0


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=os.environ.get("ELLZERO_DATA"))
    parser.add_argument("--work", type=Path, required=True, help="Folder of the files it makes.")
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--forms", default=";".join(FORMS))
    parser.add_argument("--files", default="0.5-int8,0.5-int4,0.2-float32,0.2-int8,0.2-int4")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--max-iter", type=int, default=100)
    parser.add_argument("--one-pass", action="store_true", help="SparseGPT, far cheaper.")
    parser.add_argument("--only", choices=("rows", "latency"))
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.data is None or not (given.model / "config.json").exists():
        print("Skipped: no model or no data.")
        return
    torch.set_num_threads(1)
    given.work.mkdir(parents=True, exist_ok=True)
    content = json.loads(given.out.read_text()) if given.out.exists() else {"rows": []}
    content["machine"] = {
        "processor": platform.machine(), "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(), "ellzero": ellzero.__version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "busy": "other programs ran; processor time",
    }  # fmt: skip
    if given.only != "latency":
        content |= {
            "n_calibration": N_CALIBRATION // given.stride,
            "n_pairs": N_PAIRS,
            "max_iter": given.max_iter,
        }

    def write() -> None:
        given.out.write_text(json.dumps(content, indent=1) + "\n")

    def add(row: dict[str, Any]) -> None:
        key = (row["level"], row["form"])
        content["rows"] = [r for r in content["rows"] if (r["level"], r["form"]) != key] + [row]
        print(row, flush=True)
        write()

    def save(found: Any) -> None:
        content["latency"] = found
        write()

    if given.only != "latency":
        rows(given.model, given.data, given.work, given.levels.split(","),
             given.forms.split(";"), given.stride, given.max_iter,
             given.one_pass, add)  # fmt: skip
    if given.only != "rows":
        latency(given.model, given.data, given.work, given.files.split(","),
                not given.one_pass, save)  # fmt: skip


if __name__ == "__main__":
    main()
