"""The inner products of a quadratic objective: its Hessian and its gradient at zero."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ellzero.core.problem import AbstractQuadraticObjective
from ellzero.subset.inner import FULL, AbstractGram, FullGram
from ellzero.subset.results import Floats, Integers
from ellzero.tensors import named


class ObjectiveGram(AbstractGram):
    """Hessian of a quadratic objective, entries flattened, one sample and one output.

    The ridge is part of the Hessian; the constant of the objective is unknown, so values are
    relative to it.

    Parameters
    ----------
    objective : AbstractQuadraticObjective
        Convex.
    """

    def __init__(self, objective: AbstractQuadraticObjective) -> None:
        zero = objective.init_params()
        _, grad = objective.value_and_grad(named.to_batch(zero))
        self._objective = objective
        self._device = named.flatten(zero).device
        self.n_samples = 1.0
        self.cross = -_to_numpy(named.flatten(grad)[0])[:, None]
        self.diagonal = _to_numpy(objective.curvature_diagonal())
        safe = np.where(self.diagonal > 0, self.diagonal, 1.0)
        # Any number of the size of the targets will do: it only sets the scale.
        self.energy = np.array([float(np.sum(self.cross[:, 0] ** 2 / safe))])
        self.x_mean = np.zeros(self.diagonal.size)
        self.y_mean = np.zeros(1)

    def columns(self, index: Integers) -> Floats:
        """Return columns of the Hessian as rows, C-contiguous."""
        at = torch.from_numpy(np.asarray(index, np.int64)).to(self._device)
        return np.ascontiguousarray(_to_numpy(self._objective.curvature_rows(at)))


def gram_of_objective(objective: AbstractQuadraticObjective) -> AbstractGram:
    """Return the Hessian of a quadratic objective: whole if it is small, else row by row.

    Parameters
    ----------
    objective : AbstractQuadraticObjective
        Convex.

    Returns
    -------
    AbstractGram
        With the ridge of the objective in it.
    """
    gram = ObjectiveGram(objective)
    if gram.n_features > FULL:
        return gram
    matrix = gram.columns(np.arange(gram.n_features))
    return FullGram(matrix, gram.cross, gram.energy, 1.0, gram.x_mean, gram.y_mean)


def _to_numpy(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu().double().numpy())
