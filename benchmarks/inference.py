"""Sparse linear layers for inference on a CPU, against the ways that torch and scipy have.

Run ``python benchmarks/inference.py``; it writes ``benchmarks/results/inference.json`` and prints
tables, with the losses. Everything runs in turns in one process, so that a busy moment of the
machine is shared, and by processor time for one thread: compare inside a row. ONNX Runtime runs
the dense graph, since it makes sparse weights dense when it loads them.
"""

import argparse
import datetime
import importlib.metadata
import io
import itertools
import json
import logging
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import nn

from ellzero.nn import export

OUT = Path(__file__).parent / "results" / "inference.json"
SIZES = [1024, 4096]
ZEROS = [0.90, 0.95, 0.98, 0.99]
BATCHES = [1, 32]
DENSE = "torch dense"
PEERS = ["torch CSR @ x.T", "F.linear(x, CSR)", "scipy CSR"]
INT8 = "int8 dynamic"
ONNX = "ONNX Runtime"
OURS = "ellzero"
PACKAGES = ("torch", "numpy", "scipy", "numba", "onnx", "onnxruntime")
TARGETS = {  # times faster than dense, one thread
    ("entries", 1024, 0.95, 1): 2.3,
    ("entries", 4096, 0.95, 1): 3.6,
    ("entries", 4096, 0.95, 32): 4.8,
    ("blocks", 1024, 0.95, 1): 5.0,
    ("blocks", 4096, 0.95, 1): 10.0,
}


def measure(calls, rounds, threads):
    """Return median, least, largest time and quartiles of every call, measured in turns.

    One thread is timed by the time of the processor, which other programs disturb less.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    repeats = {}
    for name, call in calls.items():
        call()
        call()
        began = clock()
        call()
        repeats[name] = max(1, min(2000, int(4e-3 / max(clock() - began, 1e-9))))
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = clock()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((clock() - began) / repeats[name])
    out = {}
    for name, times in seconds.items():
        low, _, high = statistics.quantiles(times, n=4)
        out[name] = {
            "median": statistics.median(times),
            "quartiles": [low, high],
            "min": min(times),
            "max": max(times),
            "rounds": rounds,
        }
    return out


def make_layer(size, zeros, pattern):
    """Return a linear layer with zeros spread over entries or over 8x1 blocks."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    if pattern == "blocks":
        keep = (torch.rand(size // 8, 1, size) >= zeros).expand(-1, 8, -1).reshape(size, size)
    else:
        keep = torch.rand(size, size) >= zeros
    layer.weight.data *= keep
    return layer.requires_grad_(False)


def int8(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    for part in quantized.modules():
        if isinstance(part, nn.TransformerEncoderLayer):
            part.activation_relu_or_gelu = 0  # the fused path reads float weights
    return quantized


def to_onnx(model, x):
    """Return the dense graph of a model for inputs like `x`, serialized."""
    if type(model) is nn.Linear:  # at once, where the exporter takes seconds
        kind, shape = onnx.TensorProto.FLOAT, [x.shape[0], model.out_features]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
            "linear",
            [onnx.helper.make_tensor_value_info("x", kind, list(x.shape))],
            [onnx.helper.make_tensor_value_info("y", kind, shape)],
            [onnx.numpy_helper.from_array(p.numpy(), n) for n, p in model.named_parameters()],
        )
        opset = [onnx.helper.make_opsetid("", 18)]
        return onnx.helper.make_model(graph, opset_imports=opset).SerializeToString()
    buffer = io.BytesIO()
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, dynamo=True, verbose=False)
    logging.disable(logging.NOTSET)
    return buffer.getvalue()


def session(graph, threads):
    """Return a function that runs a graph by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    ready = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = ready.get_inputs()[0].name
    return lambda array: ready.run(None, {name: array})[0]


def run_layer(size, zeros, pattern, batch, threads, rounds):
    layer = make_layer(size, zeros, pattern)
    x = torch.randn(batch, size)
    weight, bias = layer.weight.data, layer.bias.data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        csr = weight.to_sparse_csr()
    other = scipy.sparse.csr_array(weight.numpy())
    array, extra = x.numpy(), bias.numpy()

    def scipy_product():
        if batch == 1:
            return other @ array[0] + extra
        return np.ascontiguousarray((other @ array.T).T) + extra

    # Chosen as a user would have it, by measuring; a layer that stays dense is reported so.
    backends = ("sliced", "blocks") if pattern == "blocks" else ("sliced",)
    chosen = export.sparse(layer, sample=x, threads=threads)
    quantized = int8(nn.Sequential(layer))
    onnx_run = session(to_onnx(layer, x), threads)
    calls = {
        DENSE: lambda: layer(x),
        PEERS[0]: lambda: (csr @ x.T).T + bias,
        PEERS[1]: lambda: F.linear(x, csr) + bias,
        PEERS[2]: scipy_product,
        INT8: lambda: quantized(x),
        ONNX: lambda: onnx_run(array),
        OURS: lambda: chosen(x),
    }
    for backend in backends:
        packed = export.SparseLinear(layer, backend, threads)
        calls[f"ellzero {backend}"] = lambda packed=packed: packed(x)
    exact = layer(x)
    error = (chosen(x) - exact).abs().max() / exact.abs().max()
    assert error < 1e-5
    seconds = measure(calls, rounds, threads)
    kept = export.report(chosen)[0]
    return {
        "size": size,
        "zeros": zeros,
        "pattern": pattern,
        "batch": batch,
        "threads": threads,
        "chosen": kept.backend,
        "dense_bytes": kept.dense_bytes,
        "packed_bytes": kept.packed_bytes,
        "largest_relative_difference": float(error),
        "seconds": seconds,
        "times_faster_than_dense": {
            name: seconds[DENSE]["median"] / one["median"] for name, one in seconds.items()
        },
        "target": TARGETS.get((pattern, size, zeros, batch)) if threads == 1 else None,
    }


def lenet():
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def transformer():
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)


MODELS = {"LeNet-300-100": (lenet, (784,)), "transformer 256x4": (transformer, (64, 256))}


def run_model(name, zeros, batch, threads, rounds):
    """Return the latency of a whole model, zeros spread evenly over its matrices."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim >= 2:
            p.mul_(torch.rand_like(p) >= zeros)
    x = torch.randn(batch, *shape)
    fast = export.sparse(model, sample=x, threads=threads)
    quantized = int8(model)
    array = x.numpy()
    onnx_run = session(to_onnx(model, x), threads)
    exact = model(x)
    error = float((fast(x) - exact).abs().max() / exact.abs().max())
    assert error < 1e-4
    calls = {
        DENSE: lambda: model(x),
        INT8: lambda: quantized(x),
        ONNX: lambda: onnx_run(array),
        OURS: lambda: fast(x),
    }
    seconds = measure(calls, rounds, threads)
    return {
        "model": name,
        "zeros": zeros,
        "batch": batch,
        "threads": threads,
        "chosen": [gain.backend for gain in export.report(fast)],
        "largest_relative_difference": error,
        "seconds": seconds,
        "times_faster_than_dense": {
            name: seconds[DENSE]["median"] / one["median"] for name, one in seconds.items()
        },
    }


def verdicts(row):
    """Return what this row fell short of."""
    gain = row["times_faster_than_dense"]
    out = []
    if row.get("target") and gain[OURS] < row["target"]:
        out.append(f"{gain[OURS]:.2f}x is below the target of {row['target']}x")
    out += [
        f"{peer} is {gain[peer] / gain[OURS]:.2f} times as fast"
        for peer in (DENSE, *PEERS, INT8, ONNX)
        if peer in gain and gain[OURS] < 0.97 * gain[peer]
    ]
    return out


def name_of(row):
    where = row.get("model") or f"{row['size']}x{row['size']} {row['pattern']}"
    return f"{where}, {row['zeros']:.0%} zeros, batch {row['batch']}, threads {row['threads']}"


def show(row):
    gain = row["times_faster_than_dense"]
    base = row["seconds"][DENSE]
    gain = {n: g for n, g in gain.items() if not n.startswith("ellzero ")}
    cells = "  ".join(f"{n} {g:.2f}x" for n, g in gain.items() if n != DENSE)
    low, high = (1e6 * s for s in base["quartiles"])
    dense = f"dense {1e6 * base['median']:.0f} us [{low:.0f}-{high:.0f}]"
    print(f"{name_of(row)}: {dense}  {cells}  (runs {row['chosen']})", flush=True)


def processor():
    """Return the name of the processor, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((s.split(":")[1].strip() for s in text.splitlines() if "model name" in s), "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of the layers")
    parser.add_argument("--model-threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    report = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "load_at_start": os.getloadavg(),
            "python": platform.python_version(),
            **{n: importlib.metadata.version(n) for n in PACKAGES},
        },
        "data": "float32 standard initialization, zeros at random, seed 0; seconds of one call, "
        "processor time for one thread and wall time for more",
        "onnxruntime": "the dense graph; sparse weights are made dense when they are loaded",
        "layers": [],
        "models": [],
        "losses": [],
    }

    def write():
        # After every row: where threads outnumber free cores, the rest may take too long.
        rows = report["layers"] + report["models"]
        report["losses"] = [f"{name_of(row)}: {v}" for row in rows for v in verdicts(row)]
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")

    before = torch.get_num_threads()
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        grid = itertools.product(arguments.sizes, ("entries", "blocks"), BATCHES, ZEROS)
        for size, pattern, batch, zeros in grid:
            row = run_layer(size, zeros, pattern, batch, threads, arguments.rounds)
            report["layers"].append(row)
            show(row)
            write()
    for threads in arguments.model_threads:
        torch.set_num_threads(threads)
        for name, batch, zeros in itertools.product(MODELS, BATCHES, ZEROS):
            row = run_model(name, zeros, batch, threads, arguments.rounds)
            report["models"].append(row)
            show(row)
            write()
    torch.set_num_threads(before)
    print("\nlosses" if report["losses"] else "\nno losses")
    for line in report["losses"]:
        print(line)


if __name__ == "__main__":
    main()
