"""Gates: which samples a neuron sees, fixed before training; sampled, given, or of a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ellzero.errors import DataError, IncompatibleError
from ellzero.relu.network import TwoLayerReLU
from ellzero.validation import check_integer

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]
GIBIBYTE = float(2**30)


@dataclass(frozen=True, slots=True)
class Gates:
    """Different nonempty activation patterns, with the vectors that made them.

    Parameters
    ----------
    vectors : ndarray of shape (n_gates, n_inputs)
        The h_i; an input x is seen where h_i'x > 0.
    patterns : ndarray of bool of shape (n_samples, n_gates)
        Who is seen; no column is empty and no two are alike.
    message : str
        One sentence on what was dropped and why; empty when nothing was.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import read_gates
    >>> gates = read_gates(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0], [-1.0]]))
    >>> len(gates), gates.patterns.shape
    (1, (2, 1))
    >>> gates.message
    'Kept 1 of 3 gates: dropped 1 duplicate and 1 empty; 1 sees every sample (a linear neuron).'
    """

    vectors: Floats
    patterns: Masks
    message: str

    def __len__(self) -> int:
        """Return the number of gates."""
        return len(self.vectors)


def sample_gates(n_gates: int, n_inputs: int, generator: np.random.Generator) -> Floats:
    """Draw gate vectors from the standard normal law.

    Parameters
    ----------
    n_gates : int
        How many. Must be at least 1.
    n_inputs : int
        Columns of the design of the neurons, with the column of ones where there are biases.
    generator : numpy.random.Generator
        Source of the numbers.

    Returns
    -------
    ndarray of shape (n_gates, n_inputs)
        The vectors.

    Raises
    ------
    InvalidParameterError
        If `n_gates` is not a positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import sample_gates
    >>> sample_gates(5, 3, np.random.default_rng(0)).shape
    (5, 3)
    """
    check_integer("n_gates", n_gates, low=1)
    return generator.standard_normal((n_gates, n_inputs))


def vectors_of(source: Any, n_inputs: int, *, biased: bool) -> Floats:
    """Return the gate vectors of an array, a network or a module."""
    if isinstance(source, torch.nn.Module):
        source = TwoLayerReLU.from_module(source)
    if isinstance(source, TwoLayerReLU):
        vectors = source.directions
        if source.biases is None and biased:
            vectors = np.column_stack([vectors, np.zeros(len(vectors))])
        elif source.biases is not None and not biased:
            raise IncompatibleError(
                "The network has biases, and `fit_bias=False` leaves no room for them in gates.",
                "Use `fit_bias=True`.",
            )
        what = "the network has"
    else:
        try:
            vectors = np.asarray(source, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"`gates` must hold numbers, got {type(source).__name__}.",
                "Pass one gate vector in a row.",
            ) from error
        what = "`gates` has"
    if vectors.ndim != 2 or vectors.shape[1] != n_inputs:
        ones = ", the last one for the bias" if biased else ""
        raise DataError(
            f"Gates must have {n_inputs} columns{ones}; {what} the shape {vectors.shape}.",
            "Pass one gate vector in a row.",
        )
    if not np.isfinite(vectors).all():
        raise DataError("`gates` contains NaN or infinite values.", "Drop these gates.")
    return np.array(vectors, dtype=np.float64)


def read_gates(A: Floats, vectors: Floats) -> Gates:
    """Return the gates that differ and see something.

    Parameters
    ----------
    A : ndarray of shape (n_samples, n_inputs)
        Rows that neurons multiply.
    vectors : ndarray of shape (n_gates, n_inputs)
        Gate vectors.

    Returns
    -------
    Gates
        The first of each pattern, in order; `message` says what was dropped.

    Raises
    ------
    DataError
        If no gate sees a row that is not zero.

    Notes
    -----
    Dropping duplicates and empty gates changes no optimal value. A gate that sees every row is
    the pattern of a linear neuron: one is kept. Costs one product of A with the vectors, and
    n_samples n_gates bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from ellzero.relu import read_gates
    >>> read_gates(np.eye(2), np.array([[1.0, -1.0], [-1.0, 1.0]])).message
    ''
    """
    n_gates = len(vectors)
    patterns = np.empty((len(A), n_gates), dtype=bool)
    width = max(1, int(2**25 / max(len(A), 1)))
    for low in range(0, n_gates, width):
        patterns[:, low : low + width] = A @ vectors[low : low + width].T > 0
    seen: dict[bytes, int] = {}
    n_empty = n_duplicate = 0
    for j, column in enumerate(np.packbits(patterns, axis=0).T):
        if not column.any():
            n_empty += 1
        elif column.tobytes() in seen:
            n_duplicate += 1
        else:
            seen[column.tobytes()] = j
    kept = np.array(list(seen.values()), dtype=np.int64)
    if not len(kept):
        raise DataError(
            f"None of the {n_gates} gates sees a sample; the program has no variables.",
            "Pass other `gates`, or more of them.",
        )
    some = (A != 0).any(axis=1)
    kept_patterns = patterns if len(kept) == n_gates else patterns[:, kept]
    full = int(kept_patterns[some].all(axis=0).sum())
    parts = []
    dropped = [
        f"{count} {name}"
        for count, name in ((n_duplicate, "duplicate"), (n_empty, "empty"))
        if count
    ]
    if dropped:
        parts.append(f"Kept {len(kept)} of {n_gates} gates: dropped {' and '.join(dropped)}")
    if full:
        parts.append(f"{full} sees every sample (a linear neuron)")
    message = "; ".join(parts) + "." if parts else ""
    return Gates(vectors[kept], kept_patterns, message)
