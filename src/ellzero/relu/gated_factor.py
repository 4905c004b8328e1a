"""Newton systems of many samples, factored in single precision to precondition exact products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
# Columns of the system that are formed at once.
BLOCK = 1024
# Diagonal that single precision needs, relative to the trace over the number of samples.
JITTER = 3e-6


class Factor:
    """A Cholesky factor that outlives the system it was made of.

    Notes
    -----
    Systems of successive Newton steps differ little, so one factor serves several of them; a new
    one replaces it in the same memory, 4 n_samples^2 bytes. Single precision is enough: what it
    solves is only a preconditioner of products in double precision.
    """

    def __init__(self) -> None:
        self.lower: Singles | None = None
        self.n_factors = 0
        self.failed = False

    def build(
        self,
        A: Floats,
        seen: NDArray[np.generic],
        shares: Floats,
        columns: Floats,
        root: Floats,
        free: float,
    ) -> None:
        """Factor I + R ((A A') o (S diag(shares) S') + free 11' + C C') R with R = diag(root).

        Parameters
        ----------
        A : ndarray of shape (n_samples, n_inputs)
            Rows.
        seen : ndarray of shape (n_samples, n_active)
            S, the patterns of the active gates.
        shares : ndarray of shape (n_active,)
            Their nonnegative weights.
        columns : ndarray of shape (n_samples, n_columns)
            C.
        root : ndarray of shape (n_samples,)
            Diagonal of R.
        free : float
            Weight of the constant.
        """
        n = len(A)
        rows = (A * root[:, None]).astype(np.float32)
        masks = (seen * np.sqrt(shares)).astype(np.float32)
        thin = (columns * root[:, None]).astype(np.float32)
        scale = root.astype(np.float32)
        if self.lower is None:
            self.lower = np.empty((n, n), dtype=np.float32, order="F")
        system = self.lower
        for low in range(0, n, BLOCK):
            here, below = slice(low, min(low + BLOCK, n)), slice(low, n)
            part = rows[below] @ rows[here].T
            part *= masks[below] @ masks[here].T
            part += thin[below] @ thin[here].T
            if free > 0:
                part += np.float32(free) * np.outer(scale[below], scale[here])
            system[below, here] = part
        jitter = JITTER * float(np.trace(system, dtype=np.float64)) / n
        system[np.diag_indices(n)] += np.float32(1.0 + jitter)
        (potrf,) = get_lapack_funcs(("potrf",), (system,))
        self.lower, info = potrf(system, lower=True, overwrite_a=True, clean=False)
        self.n_factors += 1
        self.failed = info != 0

    @property
    def ready(self) -> bool:
        """Whether there is a factor."""
        return self.lower is not None and not self.failed

    def solve(self, v: Floats) -> Floats:
        """Return the solution for every column of v, in double precision arrays."""
        if not self.ready:
            return v
        size = float(np.abs(v).max()) or 1.0
        (potrs,) = get_lapack_funcs(("potrs",), (self.lower,))
        found: tuple[Any, int] = potrs(self.lower, (v / size).astype(np.float32), lower=True)
        return np.asarray(found[0], dtype=np.float64) * size
