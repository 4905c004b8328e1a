"""Binary activations with straight-through estimators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from ellzero.validation import check_choice

ESTIMATORS = ("relu", "clipped_relu", "identity")


class BinaryActivation(nn.Module):
    r"""The activation 1{x > 0}, trained through the derivative of another one.

    Its own derivative is zero almost everywhere. A straight-through estimator takes the derivative
    of a proxy in the backward pass; what results is the coarse gradient.

    Parameters
    ----------
    estimator : {"relu", "clipped_relu", "identity"}, default="relu"
        The proxy: max(x, 0) with derivative 1{x > 0}; min(max(x, 0), 1) with derivative
        1{0 < x < 1}; or x with derivative 1.

    Raises
    ------
    InvalidParameterError
        If `estimator` is unknown.

    See Also
    --------
    ellzero.BinaryPatchNetworkLoss : A network with it whose coarse gradient is known exactly.

    Notes
    -----
    Zero and NaN give 0. On the network of [1]_ the ReLU estimator makes the coarse gradient vanish
    at critical points of the loss alone; that of the identity need not vanish at spurious minima,
    and training leaves them for worse points. Costs two elementwise operations more than a ReLU in
    training, none under ``torch.no_grad()``. Infinite inputs have no estimator: they give NaN in
    training.

    References
    ----------
    .. [1] P. Yin et al., "Understanding straight-through estimator in training activation
       quantized neural nets", arXiv:1903.05662.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import BinaryActivation
    >>> x = torch.tensor([-1.0, 0.0, 0.5, 2.0], requires_grad=True)
    >>> y = BinaryActivation("clipped_relu")(x)
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0])
    """

    def __init__(self, estimator: str = "relu") -> None:
        super().__init__()
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return ones where the input is positive, zeros elsewhere."""
        hard = (x > 0).to(x.dtype)
        if not torch.is_grad_enabled():
            return hard
        if self.estimator == "relu":
            proxy = x.clamp_min(0)
        elif self.estimator == "clipped_relu":
            proxy = torch.nn.functional.hardtanh(x, 0.0, 1.0)
        else:
            proxy = x
        # The proxy less itself is exactly zero and carries the derivative; this form works under
        # `torch.func` and `torch.compile`, which custom functions do not always do.
        return hard.detach() + (proxy - proxy.detach())

    @override
    def extra_repr(self) -> str:
        return f"estimator={self.estimator!r}"
