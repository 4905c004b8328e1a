"""How much an error of each output of each layer moves the final output, to first order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import IncompatibleError
from ellzero.language.calibration import Call, matrix, rows_of

Output = Callable[[Any, Call], Tensor]


def final_output(output: Any, call: Call) -> Tensor:
    """Return the tensor that a model ends in: hidden states of real tokens, logits, or itself."""
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return rows_of(found, call.tokens) if found.dim() == 3 else found
    if isinstance(output, (tuple, list)):
        output = output[0]
    if not isinstance(output, Tensor):
        raise IncompatibleError(
            f"The model returns a {type(output).__name__} without logits or hidden states.",
            "Give `output`, a function of the model's output and the call.",
        )
    return output


def output_sensitivity(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    calls: Sequence[Call],
    *,
    output: Output = final_output,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Return the mean square of the derivative of the final output by each output of each layer.

    Parameters
    ----------
    model : nn.Module
        The dense network.
    layers : mapping of str to nn.Module
        Its linear layers.
    calls : sequence of Call
        Calls of the model; one backward pass for each.
    output : callable, default=final_output
        What is kept of the model's output: a function of it and of the call.
    seed : int, default=0
        Seed of the random directions.

    Returns
    -------
    dict of str to Tensor
        For each layer, (n_outputs,): the diagonal of the Gauss-Newton matrix
        :math:`E\,J^\top J` of its outputs, estimated with one random direction (signs) for every
        batch.

    Examples
    --------
    >>> from torch import nn
    >>> import torch
    >>> from ellzero.language.calibration import read_batches
    >>> from ellzero.language.sensitivity import output_sensitivity
    >>> model = nn.Linear(3, 2)
    >>> calls = read_batches([torch.ones(5, 3)])
    >>> output_sensitivity(model, {"": model}, calls)[""].tolist()
    [1.0, 1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(layers, 0)
    tokens: list[Tensor | None] = [None]
    handles = []

    def listen(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def keep(grad: Tensor) -> None:
            rows = rows_of(grad, tokens[0]).double()
            sums[name] = sums.get(name, torch.zeros_like(rows[0])) + (rows * rows).sum(0)
            counts[name] += len(rows)

        def hook(module: nn.Module, args: Any, result: Tensor) -> Tensor:
            if not result.requires_grad:
                result = result.detach().requires_grad_()
            result.register_hook(keep)  # type: ignore[no-untyped-call]
            return result

        return hook

    for name, layer in layers.items():
        handles.append(layer.register_forward_hook(listen(name)))
    try:
        for call in calls:
            tokens[0] = call.tokens
            with torch.enable_grad():
                final = output(call.run(model), call)
            signs = torch.randint(0, 2, final.shape, generator=generator).to(final) * 2.0 - 1.0
            inner = (final * signs).sum()
            parameters = [layer.weight for layer in layers.values()]
            # Gradients go to the hooks, none is left on the model.
            torch.autograd.grad(inner, parameters, allow_unused=True)  # type: ignore[arg-type]
    finally:
        for handle in handles:
            handle.remove()
    return {
        name: (sums[name] / counts[name]).cpu()
        if counts[name]
        else torch.ones(matrix(layers[name]).shape[0], dtype=torch.float64)
        for name in layers
    }
