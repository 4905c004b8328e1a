"""One-hidden-layer networks of binary activations on patches of Gaussian input."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from ellzero.core.problem import AbstractCoarseObjective, AbstractObjective
from ellzero.objectives.patch_network import (
    NAME,
    AbstractPatchNetwork,
    Angle,
    check_teacher,
)
from ellzero.tensors import named
from ellzero.typing import Params
from ellzero.validation import check_choice, check_integer

ESTIMATORS = ("relu", "identity")


@final
class BinaryPatchNetworkLoss(AbstractPatchNetwork, AbstractCoarseObjective):
    r"""Population loss of a network of binary activations on disjoint patches, in closed form.

    The network :math:`y(x, w) = \sum_i 1\{\langle w, x_i \rangle > 0\}` applies one filter to k
    disjoint patches of d independent standard normal numbers each. Against a teacher
    :math:`w_*`, with the angle :math:`\theta` between the two,

    .. math:: f(w) = \tfrac12 E\,(y(x, w) - y(x, w_*))^2 = \frac{k \theta}{2 \pi}

    On samples the derivative of the activation is zero almost everywhere. A straight-through
    estimator puts another one in its place; the expectation of what results is the coarse gradient

    .. math:: g(w) = c \, (w / |w| - w_* / |w_*|), \quad c = \frac{k}{2 \sqrt{2 \pi}}
        \;\text{(ReLU)}, \quad \frac{k}{\sqrt{2 \pi}} \;\text{(identity)}

    Parameters
    ----------
    teacher : Tensor of shape (d,) or (n_teachers, d)
        The filter w*, or one for each row of a batch; only its direction counts.
    n_patches : int
        The number k.
    estimator : {"relu", "identity"}, default="relu"
        The activation whose derivative the straight-through estimator takes.

    Raises
    ------
    InvalidParameterError
        If a teacher is zero, not finite or of another shape, `n_patches` is below 1 or
        `estimator` is unknown; and, when evaluated, if there are several teachers and not as many
        points.

    See Also
    --------
    ellzero.solvers.RVSCGD : Learns a sparse teacher by the coarse gradient.
    ellzero.nn.BinaryActivation : The activation with its estimators, for networks.

    Notes
    -----
    The parameter tensor is ``filter`` of shape (d,). Value, gradient and coarse gradient cost O(d)
    for each row. `value_and_grad` gives the true gradient of f, which does not vanish towards the
    teacher, where f has a kink; at angles 0 and pi it is zero. The coarse gradient has a
    nonnegative inner product with it. A zero filter makes the network zero, with value
    ``k (k + 1) / 8`` and gradients NaN. On the unit sphere the coarse gradient is, up to its
    radial part, the gradient of the surrogate ``c (1 - cos theta)`` that
    `coarse_value_and_grad` returns.

    References
    ----------
    .. [1] P. Yin et al., "Understanding straight-through estimator in training activation
       quantized neural nets", arXiv:1903.05662 (the coarse gradients).
    .. [2] T. Dinh and J. Xin, "Convergence of a relaxed variable splitting coarse gradient descent
       method for learning sparse weight binarized activation neural networks", arXiv:1901.09731.

    Examples
    --------
    >>> import torch, ellzero
    >>> teacher = torch.tensor([1.0, 0.0], dtype=torch.float64)
    >>> f = ellzero.BinaryPatchNetworkLoss(teacher, n_patches=4)
    >>> across = {"filter": torch.tensor([0.0, 3.0], dtype=torch.float64)}
    >>> f.value(across).item()
    1.0
    >>> [round(g, 3) for g in f.coarse_value_and_grad(across)[1]["filter"].tolist()]
    [-0.798, 0.798]
    """

    def __init__(self, teacher: Tensor, n_patches: int, estimator: str = "relu") -> None:
        self.teacher = check_teacher(teacher)
        self.n_patches = check_integer("n_patches", n_patches, 1)
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)

    @override
    def take(self, index: Tensor) -> AbstractObjective:
        if self.teacher.ndim == 1:
            return self
        return BinaryPatchNetworkLoss(self.teacher[index], self.n_patches, self.estimator)

    @override
    def value(self, params: Params) -> Tensor:
        return self._value(self._angle(params))

    def _value(self, at: Angle) -> Tensor:
        k = self.n_patches
        value = k / (2 * math.pi) * at.theta
        return torch.where(at.length == 0, k * (k + 1) / 8, value).squeeze(-1)

    @override
    def value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        at = self._angle(params)
        tangent = at.across / torch.where(at.sine == 0, 1.0, at.sine)
        grad = -self.n_patches / (2 * math.pi * at.length) * tangent
        return self._value(at), named.like(params, {NAME: grad})

    @override
    def coarse_value_and_grad(self, params: Params) -> tuple[Tensor, Params]:
        at, c = self._angle(params), self.coarse_curvature()
        gap = at.unit - at.teacher_unit
        # 1 - cos theta is half the squared chord, without cancellation.
        value = c / 2 * gap.square().sum(-1)
        return value, named.like(params, {NAME: c * gap})

    @override
    def coarse_curvature(self) -> float:
        c = self.n_patches / math.sqrt(2 * math.pi)
        return c if self.estimator == "identity" else c / 2
