"""One case of the gated program by pyscnn or adelie; run by benchmarks/convex_relu.py.

Runs in an environment of its own (numpy < 2). Reads a file of arrays, writes weights and seconds.
"""

import sys
import time

import numpy as np


def by_pyscnn(A, y, vectors, penalty, dtype, tol):
    import torch
    from scnn.metrics import Metrics
    from scnn.models import ConvexGatedReLU
    from scnn.optimize import optimize_model
    from scnn.regularizers import NeuronGL1
    from scnn.solvers import RFISTA

    torch.set_num_threads(1)
    model = ConvexGatedReLU(np.ascontiguousarray(vectors.T))
    solver = RFISTA(model, max_iters=20000, tol=tol)
    began = time.process_time()
    found, _ = optimize_model(
        model,
        solver,
        Metrics(),
        A,
        y[:, None],
        regularizer=NeuronGL1(penalty),
        return_convex=True,
        unitize_data=False,
        dtype=dtype,
    )
    seconds = time.process_time() - began
    # It sorts the gates by their patterns, and drops duplicates.
    gates = np.asarray(found.G).T
    return np.asarray(found.parameters[0]).reshape(len(gates), A.shape[1]), seconds, gates


def by_adelie(A, y, patterns, vectors, penalty, largest, tol):
    import adelie as ad

    n_gates = patterns.shape[1]
    began = time.process_time()
    design = np.asfortranarray(np.hstack([A * patterns[:, [i]] for i in range(n_gates)]))
    state = ad.grpnet(
        design,
        ad.glm.gaussian(y),
        groups=np.arange(n_gates) * A.shape[1],
        penalty=np.ones(n_gates),
        lmda_path=np.geomspace(largest, penalty, 30),
        intercept=False,
        tol=tol,
        adev_tol=1.0,
        progress_bar=False,
        early_exit=False,
    )
    weights = np.asarray(state.betas[-1].todense()).reshape(n_gates, A.shape[1])
    return weights, time.process_time() - began, vectors


def main():
    source, target = sys.argv[1:]
    data = np.load(source)
    A, y, vectors, penalty = data["A"], data["y"], data["vectors"], float(data["penalty"])
    kind, tol = str(data["kind"]), float(data["tol"])
    # Thirty samples first, so that imports and first calls are outside of the time.
    for rows in (slice(0, 30), slice(None)):
        part = A[rows]
        if kind == "adelie":
            patterns = part @ vectors.T > 0
            out = by_adelie(part, y[rows], patterns, vectors, penalty, float(data["largest"]), tol)
        else:
            out = by_pyscnn(part, y[rows], vectors, penalty, kind.split()[1], tol)
    np.savez(target, weights=out[0], seconds=out[1], vectors=out[2])


if __name__ == "__main__":
    main()
