"""What a training step costs with an exact budget, over the same step without, on one thread.

Run ``python benchmarks/step_overhead.py``; it writes ``benchmarks/results/step_overhead.json`` and
prints a table. Blocks of five steps, a whole cycle of choices, alternate between the plain and the
sparse training, in process time. A share of the training counts by the median of its blocks, and
the whole ramp by the mean of its shares.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from ellzero.nn import HardThresholding, schedules

OUT = Path(__file__).parent / "results" / "step_overhead.json"
MODELS = {"lenet-300-100": (784, 300, 100, 10), "mlp-1e7": (784, 3000, 2500, 10)}
BLOCK = 5
BATCH = 128
SHARES = 10


def mlp(sizes):
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def block(model, optimizer, batches):
    began = time.process_time()
    for x, y in batches:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - began) / len(batches)


def run(sizes, density, steps):
    torch.manual_seed(0)
    plain, sparse = mlp(sizes), mlp(sizes)
    sparse.load_state_dict(plain.state_dict())
    base = torch.optim.Adam(plain.parameters(), lr=1e-3)
    ours = HardThresholding(
        torch.optim.Adam(sparse.parameters(), lr=1e-3),
        sparse,
        n_nonzero=density,
        schedule=schedules.ramp(start=0.0, end=0.5, total_steps=steps),
    )
    x = torch.rand(64 * BATCH, sizes[0])
    y = (x[:, :100] @ torch.randn(100, 10)).argmax(1)
    pairs = []
    for i in range(0, steps, BLOCK):
        at = [(((i + k) * BATCH) % len(x)) for k in range(BLOCK)]
        batches = [(x[a : a + BATCH], y[a : a + BATCH]) for a in at]
        if i % (2 * BLOCK):
            d = block(plain, base, batches)
            s = block(sparse, ours, batches)
        else:
            s = block(sparse, ours, batches)
            d = block(plain, base, batches)
        pairs.append((d, s))
    assert ours.n_nonzero == ours.budget == int(density * ours.n_entries + 1e-9)
    pairs = pairs[1:]  # the first compiles
    cut = [round(len(pairs) * i / SHARES) for i in range(SHARES + 1)]
    dense, extra = [], []
    for a, b in itertools.pairwise(cut):
        dense.append(statistics.median(d for d, _ in pairs[a:b]))
        extra.append(statistics.median(s - d for d, s in pairs[a:b]))
    half = SHARES // 2
    final = pairs[cut[half] :]
    return {
        "density": density,
        "steps": steps,
        "dense_ms": 1e3 * statistics.median(d for d, _ in pairs),
        "overhead_whole": statistics.mean(extra) / statistics.mean(dense),
        "overhead_final": statistics.median(s - d for d, s in final)
        / statistics.median(d for d, _ in final),
        "overhead_by_share": [e / d for d, e in zip(dense, extra, strict=True)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MODELS, default=None)
    parser.add_argument("--steps", type=int, nargs=2, default=[2000, 200])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    load = os.getloadavg()
    torch.set_num_threads(1)
    # The sparse step flushes subnormal numbers itself; without this the dense one would be slower.
    torch.set_flush_denormal(True)
    results = []
    for (name, sizes), steps in zip(MODELS.items(), arguments.steps, strict=True):
        if arguments.only not in (None, name):
            continue
        for density in (0.1, 0.01):
            row = {"model": name} | run(sizes, density, steps)
            results.append(row)
            print(
                f"{name:>14} density {density:<5} dense {row['dense_ms']:8.2f} ms  "
                f"whole {100 * row['overhead_whole']:5.1f} %  "
                f"final {100 * row['overhead_final']:5.1f} %  "
                + " ".join(f"{100 * v:.1f}" for v in row["overhead_by_share"]),
                flush=True,
            )
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(
        json.dumps(
            {
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "machine": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "load_at_start": load,
                **{n: importlib.metadata.version(n) for n in ("torch", "numpy", "numba")},
                "batch": BATCH,
                "results": results,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
