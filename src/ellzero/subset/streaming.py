"""Inner products added up chunk by chunk, so that the rows need not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ellzero.errors import InvalidParameterError
from ellzero.subset.inner import FullGram
from ellzero.subset.results import Floats

# Rows that are centered and multiplied at once.
ROWS = 2048


class Moments:
    """Weight, means, and inner products about the means, of the rows seen so far.

    Two sets of rows are merged about their own means, so that nothing cancels however far the
    means are from zero or from each other.

    Parameters
    ----------
    n_features, n_outputs : int
        Columns of the features and of the targets.
    """

    def __init__(self, n_features: int, n_outputs: int) -> None:
        m = n_features + n_outputs
        self.n_features = n_features
        self.weight = 0.0
        self.mean = np.zeros(m)
        self.products = np.zeros((m, m))

    def add(self, X: Any, Y: Any, sample_weight: Floats | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        X : array of shape (n, n_features)
            Features, sparse or dense.
        Y : array of shape (n, n_outputs)
            Targets.
        sample_weight : ndarray of shape (n,) or None, default=None
            Weights.
        """
        p = self.n_features
        for start in range(0, X.shape[0], ROWS):
            stop = min(X.shape[0], start + ROWS)
            rows = X[start:stop]
            Z = np.empty((stop - start, self.mean.size))
            Z[:, :p] = rows.toarray() if hasattr(rows, "toarray") else rows
            Z[:, p:] = Y[start:stop]
            w = None if sample_weight is None else sample_weight[start:stop]
            weight = float(stop - start) if w is None else float(w.sum())
            if weight == 0:
                continue
            mean = Z.mean(axis=0) if w is None else w @ Z / weight
            Z -= mean
            if w is not None:
                Z *= np.sqrt(w)[:, None]
            self._merge(weight, mean, Z.T @ Z)

    def merge(self, other: Moments) -> None:
        """Add the rows that another one has seen."""
        if other.weight > 0:
            self._merge(other.weight, other.mean, other.products)

    def _merge(self, weight: float, mean: Floats, products: Floats) -> None:
        total = self.weight + weight
        shift = mean - self.mean
        self.products += products
        if self.weight > 0:
            scaled = shift * np.sqrt(self.weight * weight / total)
            self.products += scaled[:, None] * scaled
        self.mean += shift * (weight / total)
        self.weight = total

    def gram(self, fit_intercept: bool = True) -> FullGram:
        """Return the inner products.

        Parameters
        ----------
        fit_intercept : bool, default=True
            Whether means are taken out.

        Returns
        -------
        FullGram
            Of all rows seen.
        """
        if self.weight <= 0:
            raise InvalidParameterError("At least one sample must have a positive weight.")
        p, products, mean = self.n_features, self.products, self.mean
        if not fit_intercept:
            products = products + self.weight * mean[:, None] * mean
            mean = np.zeros_like(mean)
        return FullGram(
            np.ascontiguousarray(products[:p, :p]),
            np.ascontiguousarray(products[:p, p:]),
            np.diagonal(products)[p:].copy(),
            self.weight,
            mean[:p].copy(),
            mean[p:].copy(),
        )


def _as_columns(y: Any) -> Floats:
    Y = np.asarray(y, np.float64)
    return Y[:, None] if Y.ndim == 1 else Y


def moments_of_chunks(chunks: Iterable[tuple[Any, ...]]) -> Moments:
    """Return the moments of rows that come in chunks, each read once.

    Parameters
    ----------
    chunks : iterable of (X, y) or (X, y, sample_weight)
        Arrays with the same columns; views of a memory map are read as they come.

    Returns
    -------
    Moments
        They can be merged with those of other processes.
    """
    moments = None
    for chunk in chunks:
        X, Y = chunk[0], _as_columns(chunk[1])
        weight = None
        if len(chunk) > 2 and chunk[2] is not None:
            weight = np.asarray(chunk[2], np.float64)
        if X.shape[0] != Y.shape[0]:
            raise InvalidParameterError(
                "`X` and `y` must have the same number of samples, "
                f"got {X.shape[0]} and {Y.shape[0]}."
            )
        if moments is None:
            moments = Moments(X.shape[1], Y.shape[1])
        elif moments.n_features != X.shape[1]:
            raise InvalidParameterError(
                "All chunks must have the same number of features, "
                f"got {moments.n_features} and {X.shape[1]}."
            )
        moments.add(X, Y, weight)
    if moments is None:
        raise InvalidParameterError("`chunks` must hold at least one chunk, got none.")
    return moments


def gram_of_chunks(chunks: Iterable[tuple[Any, ...]], *, fit_intercept: bool = True) -> FullGram:
    """Return the inner products of rows that come in chunks, each read once.

    Parameters
    ----------
    chunks : iterable of (X, y) or (X, y, sample_weight)
        Arrays with the same columns.
    fit_intercept : bool, default=True
        Whether means are taken out.

    Returns
    -------
    FullGram
        Memory for the squares of the columns only.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(12.0).reshape(6, 2) ** 2
    >>> gram = gram_of_chunks((X[i : i + 2], X[i : i + 2, 0]) for i in (0, 2, 4))
    >>> bool(np.allclose(gram.matrix, np.cov(X.T, bias=True) * 6))
    True
    """
    return moments_of_chunks(chunks).gram(fit_intercept)


def reduce_moments(moments: Moments, group: Any = None) -> Moments:
    """Return the moments of the rows of all ranks of ``torch.distributed``.

    Parameters
    ----------
    moments : Moments
        Of the rows of this rank.
    group : torch.distributed.ProcessGroup or None, default=None
        The ranks; None is all of them.

    Returns
    -------
    Moments
        The same bits on every rank: merged in the order of the ranks.
    """
    import torch
    import torch.distributed as dist

    mine = torch.from_numpy(
        np.concatenate([[moments.weight], moments.mean, moments.products.ravel()])
    )
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    if dist.get_backend(group) == "nccl":
        parts = [part.cuda() for part in parts]
        mine = mine.cuda()
    dist.all_gather(parts, mine, group=group)
    m = moments.mean.size
    total = Moments(moments.n_features, m - moments.n_features)
    for part in parts:
        numbers = part.cpu().numpy()
        if numbers[0] > 0:
            total._merge(float(numbers[0]), numbers[1 : m + 1], numbers[m + 1 :].reshape(m, m))
    return total
