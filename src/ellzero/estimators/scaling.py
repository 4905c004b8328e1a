"""Inner products of columns in other units."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
from typing_extensions import override

from ellzero.estimators.inputs import Floats, Integers
from ellzero.subset.inner import AbstractGram
from ellzero.subset.results import Subset


@final
class ScaledGram(AbstractGram):
    """Inner products of columns divided by `scale`.

    Parameters
    ----------
    gram : AbstractGram
        Inner products of the columns as they are.
    scale : ndarray of shape (n_features,)
        What every column is divided by.
    """

    def __init__(self, gram: AbstractGram, scale: Floats) -> None:
        self._gram, self._scale = gram, scale
        self.n_samples = gram.n_samples
        self.diagonal = gram.diagonal / scale**2
        self.cross = gram.cross / scale[:, None]
        self.energy = gram.energy
        self.x_mean = gram.x_mean / scale
        self.y_mean = gram.y_mean

    @override
    def columns(self, index: Integers) -> Floats:
        rows = self._gram.columns(index) / self._scale
        return np.ascontiguousarray(rows / self._scale[index][:, None])

    def scaled(self, subset: Subset) -> Subset:
        """Return a model of the columns as they are as one of the scaled columns."""
        return replace(subset, coef=subset.coef * self._scale[subset.support][:, None])

    def original(self, subset: Subset) -> Subset:
        """Return a model of the scaled columns as one of the columns as they are."""
        return replace(subset, coef=subset.coef / self._scale[subset.support][:, None])
