"""What a user writes; type checkers see every public type in it."""

from pathlib import Path

import numpy as np
import torch

import ellzero
from ellzero import L0Regressor, SparseSmooth
from ellzero.datasets import iris_reference
from ellzero.nn import HardThresholding, certify, export, schedules
from ellzero.solvers import IHT


def linear_model() -> float:
    """Fit five of fifteen parameters and read the certificate."""
    data = iris_reference()
    objective = ellzero.Softmax(data.X, data.y, ridge=0.01)
    problem = ellzero.Problem(objective, ellzero.L0Ball(5))
    result = ellzero.solve(problem, IHT(), max_iter=100)
    certificate = result.certificate
    assert certificate is not None
    claim: ellzero.Claim | None = certificate.claim
    assert claim is not None
    weights: torch.Tensor = result.params["coef"]
    path = ellzero.solve_path(problem, [1, 2, 3])
    smallest: int | None = path.smallest_within(0.5)
    return result.value + float(weights.sum()) + (smallest or 0) + int(claim)


def best_subset() -> list[int]:
    """Fit a best subset."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 8))
    model = L0Regressor([1, 2, 3]).fit(X, X[:, 0] - 2 * X[:, 3])
    predicted: np.ndarray = model.predict(X)
    assert predicted.shape == (50,)
    return [int(j) for j in model.support_]


def signal() -> int:
    """Estimate a sparse signal."""
    y = np.zeros(60)
    y[20:30] = 1.0
    return len(SparseSmooth(smoothness=1.0, n_nonzero=10).fit(y).support_)


def network(folder: Path) -> int:
    """Train, certify, save and load a sparse network."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    loader = [(torch.randn(16, 4), torch.randint(0, 2, (16,)))]
    criterion = torch.nn.functional.cross_entropy
    optimizer = HardThresholding(
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        model,
        n_nonzero=10,
        schedule=schedules.ramp(0.0, 0.5, total_steps=4),
    )
    for _ in range(4):
        for inputs, targets in loader:
            criterion(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    optimizer.finalize()
    n_bytes: int = export.save(model, folder / "model.safetensors")
    certificate = certify(model, criterion, loader, n_nonzero=10)
    assert certificate.holds
    return n_bytes
