"""Tables as users pass them: arrays, sparse matrices and tensors on any device, read alike."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ellzero.subset.results import Floats, Integers

# Numbers of X that are turned into float64 at a time.
CHUNK = 2**21


def is_tensor(value: Any) -> bool:
    """Return whether `value` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any) -> Any:
    """Return a tensor as an array on the CPU; anything else as it is."""
    return value.detach().cpu().numpy() if is_tensor(value) else value


def take_rows(X: Any, rows: Any) -> Any:
    """Return rows of an array, a sparse matrix or a tensor."""
    if is_tensor(X):
        torch = sys.modules["torch"]
        return X[torch.as_tensor(np.asarray(rows), device=X.device)]
    if hasattr(X, "tocsr"):
        return X.tocsr()[rows]
    return X[rows]


def take_columns(X: Any, columns: Integers) -> Any:
    """Return columns of an array, a sparse matrix or a tensor."""
    if is_tensor(X):
        torch = sys.modules["torch"]
        return X[:, torch.as_tensor(columns, device=X.device)]
    if hasattr(X, "tocsc"):
        return X.tocsc()[:, columns]
    return X[:, columns]


def bad_counts(X: Any) -> Integers:
    """Return how many numbers of each column are NaN or infinite."""
    # One pass tells whether anything is wrong; only then look for where.
    with np.errstate(all="ignore"):
        if hasattr(X, "tocsc"):
            total = X.data.sum(dtype=np.float64)
        else:
            total = float(X.sum()) if is_tensor(X) else X.sum(dtype=np.float64)
    if np.isfinite(total):
        return np.zeros(X.shape[1], np.int64)
    if hasattr(X, "tocsc"):
        csc = X.tocsc()
        bad = ~np.isfinite(csc.data)
        owner = np.repeat(np.arange(csc.shape[1]), np.diff(csc.indptr))
        return np.bincount(owner[bad], minlength=csc.shape[1]).astype(np.int64)
    if is_tensor(X):
        torch = sys.modules["torch"]
        return np.asarray((~torch.isfinite(X)).sum(0).cpu(), dtype=np.int64)
    return np.asarray((~np.isfinite(X)).sum(0), dtype=np.int64)


def column_moments(X: Any, weight: Floats, *, center: bool) -> tuple[Floats, Floats]:
    """Return the weighted mean (zero where not centered) and sum of squares of every column."""
    total = weight.sum()
    n, p = X.shape
    if hasattr(X, "tocsc"):
        mean = np.asarray(X.T @ weight).ravel() / total if center else np.zeros(p)
        square = np.asarray(X.multiply(X).T @ weight).ravel()
        return mean, np.maximum(square - total * mean**2, 0.0)
    mean, square = np.zeros(p), np.zeros(p)
    step = max(1, CHUNK // max(n, 1))
    for i in range(0, p, step):
        block = X[:, i : i + step]
        block = block.double() if is_tensor(X) else block.astype(np.float64)
        w: Any = weight
        if is_tensor(X):
            torch = sys.modules["torch"]
            w = torch.as_tensor(weight, device=X.device)
        shift = (w @ block) / total if center else 0.0 * block[0]
        left = w @ (block - shift) ** 2
        mean[i : i + step] = to_numpy(shift)
        square[i : i + step] = to_numpy(left)
    return mean, square


def transpose_product(X: Any, vectors: Floats, shift: Floats) -> Floats:
    """Return (X - 1 shift^T)^T V in float64, a block of columns at a time."""
    n, p = X.shape
    if hasattr(X, "tocsc"):
        return np.asarray(X.T @ vectors) - np.outer(shift, vectors.sum(axis=0))
    step = max(1, CHUNK // max(n, 1))
    if is_tensor(X):
        torch = sys.modules["torch"]
        V = torch.as_tensor(vectors, device=X.device)
        s = torch.as_tensor(shift, device=X.device)
        parts = [
            ((X[:, i : i + step].double() - s[i : i + step]).T @ V).cpu().numpy()
            for i in range(0, p, step)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, vectors.shape[1]))
    out = np.empty((p, vectors.shape[1]))
    for i in range(0, p, step):
        block = X[:, i : i + step].astype(np.float64) - shift[i : i + step]
        out[i : i + step] = block.T @ vectors
    return out
