r"""Back-propagation as a product of Jacobian matrices: a worked example and a digit network.

The worked example is small enough for paper and pencil; every number of it was derived by hand.
The network of 784, 300, 100 and 10 units shows sizes, structures and operation counts, and deep
ones show gradients that vanish and explode as singular values of the product.

References
----------
.. [1] S. Damadi, G. Moharrer, M. Cham, "The backpropagation algorithm for a math student",
   arXiv:2301.09977.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.backprop import HalfSquaredError, JacobianChain, layer_jacobians
from ellzero.papers import Progress

UNITS = (784, 300, 100, 10)
# Nonzero weights of the sparse network whose columns are looked at.
SUPPORT, QUICK_SUPPORT = 1000, 200
DEPTHS, QUICK_DEPTHS = (2, 4, 6, 8, 10, 14, 20), (2, 4, 10)
WIDTH = 64
GAINS = (0.5, 1.0, 2.0)
LAYERS, QUICK_LAYERS = 30, 12
# Probability of the second class in the worked example: 1 / (1 + exp(-1.5)).
P2 = 1 / (1 + math.exp(-1.5))
BY_HAND: dict[str, list[float]] = {
    "output of layer 0, z1": [-1.0, 1.5, -0.5],
    "output of layer 1, a1": [0.0, 1.5, 0.0],
    "output of layer 2, z2": [0.0, 1.5],
    "loss, ln(1 + exp(1.5))": [math.log(1 + math.exp(1.5))],
    "d loss / d z2 = p - y": [-P2, P2],
    "d loss / d W2": [0.0, -1.5 * P2, 0.0, 0.0, 1.5 * P2, 0.0],
    "d loss / d b2": [-P2, P2],
    "d loss / d W1": [0.0, 0.0, P2, 2 * P2, 0.0, 0.0],
    "d loss / d b1": [0.0, P2, 0.0],
}
# Rounding of a few operations in float64.
ROUNDING = 1e-12


def worked_example() -> JacobianChain:
    """Return the chain of the worked example: 2, 3 and 2 units with ReLU and softmax."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    values = {
        "0.weight": [[1.0, -1.0], [0.5, 0.5], [-1.0, 0.0]],
        "0.bias": [0.0, 0.0, 0.5],
        "2.weight": [[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]],
        "2.bias": [0.0, 0.0],
    }
    model.load_state_dict({n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()})
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    return layer_jacobians(model, x, nn.CrossEntropyLoss(), torch.tensor(0))


def example_values(chain: JacobianChain) -> dict[str, list[float]]:
    """Return what the chain says of the quantities that were derived by hand."""
    outputs = [layer.output.tolist() for layer in chain]
    gradients = chain.gradients().values
    assert chain.loss is not None
    return {
        "output of layer 0, z1": outputs[0],
        "output of layer 1, a1": outputs[1],
        "output of layer 2, z2": outputs[2],
        "loss, ln(1 + exp(1.5))": [float(chain.value)],
        "d loss / d z2 = p - y": chain.loss.dense().reshape(-1).tolist(),
        "d loss / d W2": gradients["2.weight"].reshape(-1).tolist(),
        "d loss / d b2": gradients["2.bias"].tolist(),
        "d loss / d W1": gradients["0.weight"].reshape(-1).tolist(),
        "d loss / d b1": gradients["0.bias"].tolist(),
    }


def _normal(model: nn.Module, generator: torch.Generator, gain: float = 1.0) -> nn.Module:
    """Give every weight independent normal entries of variance gain^2 / inputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(gain / math.sqrt(parameter.shape[1]) * draw)
            else:
                parameter.zero_()
    return model


def digit_network(seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a random 784-300-100-10 network with ReLU, an image of noise and its label."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(UNITS):
        parts += [nn.Linear(n_in, n_out, dtype=torch.float64), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    _normal(model, generator, math.sqrt(2))
    image = torch.rand(UNITS[0], generator=generator, dtype=torch.float64)
    return model, image, torch.tensor(3)


def keep_largest(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Return the masks of the largest weights of a model; biases are left out."""
    weights = {n: p.detach().abs() for n, p in model.named_parameters() if p.ndim > 1}
    flat = torch.cat([w.reshape(-1) for w in weights.values()])
    masks, start = torch.zeros(len(flat), dtype=torch.bool), 0
    masks[flat.argsort(descending=True, stable=True)[:count]] = True
    out = {}
    for name, weight in weights.items():
        out[name] = masks[start : start + weight.numel()].reshape(weight.shape)
        start += weight.numel()
    return out


def deep(depth: int, gain: float, seed: int, activation: type[nn.Module] | None) -> JacobianChain:
    """Return the chain of a deep network of 64 units with a number at its end."""
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts.append(nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64))
        if activation is not None:
            parts.append(activation())
    model = nn.Sequential(*parts)
    generator = torch.Generator().manual_seed(seed)
    _normal(model, generator, gain)
    x = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return layer_jacobians(model, x, HalfSquaredError(), torch.zeros(WIDTH, dtype=torch.float64))


def _worst(values: dict[str, float]) -> float:
    return max(values.values())


def run(*, quick: bool = False, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Run the worked example and the networks and return their summary; see `Experiment.run`."""
    tell = progress or (lambda what, done, total: None)
    tell("worked example", 0, 4)
    example = worked_example()
    ours = example_values(example)
    rows: list[list[Any]] = []
    for name, by_hand in BY_HAND.items():
        error = max(abs(a - b) for a, b in zip(ours[name], by_hand, strict=True))
        shown = [", ".join(f"{v + 0.0:.6f}" for v in values) for values in (by_hand, ours[name])]
        rows.append([name, *shown, error <= ROUNDING])

    tell("784-300-100-10", 1, 4)
    model, image, label = digit_network(seed)
    chain = layer_jacobians(model, image, nn.CrossEntropyLoss(), label)
    shared, naive = chain.gradients("shared"), chain.gradients("naive")
    same = max(float((shared.values[b] - naive.values[b]).abs().max()) for b in chain.blocks)
    autograd, differences = chain.check_against_autograd(), chain.check_differences()
    for name, by_autograd in (("worked example", example), ("784-300-100-10", chain)):
        worst = _worst(dict(by_autograd.check_against_autograd().relative))
        rows.append([f"{name}: off autograd", "at most 1e-12", f"{worst:.1e}", worst <= 1e-12])
    worst = _worst(dict(differences.relative))
    rows.append(
        ["784-300-100-10: off central differences", "at most 1e-6", f"{worst:.1e}", worst <= 1e-6]
    )
    first = chain.factors("0.weight")[-1].jacobian
    entries = sum(math.prod(g.shape) for n, g in shared.values.items() if n.endswith("weight"))
    rows += [
        ["784-300-100-10: weights", "266200", str(entries), entries == 266_200],
        [
            "dz1 / dW1 written out, MB",
            "about 565",
            f"{first.dense_bytes / 1e6:.1f}",
            abs(first.dense_bytes / 1e6 - 565) <= 1,
        ],
        ["naive and shared products differ by", "0", f"{same:.1e}", same <= 1e-12],
    ]

    tell("depth", 2, 4)
    depths = QUICK_DEPTHS if quick else DEPTHS
    costs = []
    for depth in depths:
        plain = deep(depth, 1.0, seed, None)
        costs.append(
            [
                depth,
                plain.gradients("shared").multiplications,
                plain.gradients("naive").multiplications,
                plain.multiplications(order="loss"),
                plain.multiplications(order="input"),
            ]
        )
    ten = next(row for row in costs if row[0] == 10)
    rows += [
        ["64 units, depth 10: from the loss", "about 41 thousand", f"{ten[3]}", ten[3] == 40_960],
        [
            "64 units, depth 10: from the input",
            "about 2.4 million",
            f"{ten[4]}",
            abs(ten[4] / 2.4e6 - 1) <= 0.05,
        ],
    ]

    tell("singular values", 3, 4)
    layers = QUICK_LAYERS if quick else LAYERS
    spectra = {gain: deep(layers, gain, seed, nn.Tanh).spectrum() for gain in GAINS}
    tell("done", 4, 4)
    support = QUICK_SUPPORT if quick else SUPPORT
    restricted = layer_jacobians(model, image).restricted(keep_largest(model, support))
    saved = naive.multiplications / shared.multiplications
    return {
        "title": "Back-propagation as a product of Jacobians",
        "headline": (
            f"The worked example agrees with the derivation by hand; 784-300-100-10 agrees with "
            f"automatic differentiation to {_worst(dict(autograd.relative)):.0e}; the shared "
            f"prefix takes {shared.multiplications} multiplications, the naive product "
            f"{naive.multiplications} ({saved:.2f} times)"
        ),
        "settings": {
            "paper": "arXiv:2301.09977",
            "network": "-".join(map(str, UNITS)),
            "input": "an image of uniform noise",
            "seed": seed,
            "support": support,
        },
        "reference": {
            "title": "By hand beside ours",
            "columns": ["quantity", "by hand", "ours", "agrees"],
            "rows": rows,
            "note": (
                "The values by hand were derived for this example and are not printed in the "
                "paper. Counts use the structure of every matrix."
            ),
        },
        "figures": _figures(example, costs, spectra),
        "tables": [
            *(_product_table(example, f"Worked example: d loss / d {b}", b)
              for b in example.blocks),
            *(_product_table(chain, f"784-300-100-10: d loss / d {b}", b)
              for b in ("0.weight", "4.bias")),
            {
                "title": "Multiplications by depth, 64 linear units a layer",
                "columns": [
                    "layers",
                    "shared prefix",
                    "naive",
                    "one product from the loss",
                    "from the input",
                ],
                "rows": costs,
            },
            {
                "title": f"Gradients through {layers} layers of 64 tanh units",
                "columns": ["gain", "factor a layer", "diagnosis"],
                "rows": [[gain, s.growth, s.diagnosis] for gain, s in spectra.items()],
            },
            {
                "title": "The Jacobian on a support",
                "columns": ["quantity", "value"],
                "rows": [
                    ["weights kept, the largest", support],
                    ["outputs by columns", f"{restricted.matrix.shape[0]} x "
                     f"{restricted.matrix.shape[1]}"],
                    ["columns of the whole Jacobian", entries],
                    ["largest singular value", float(restricted.singular_values[0])],
                    ["curvature of half the squared error there",
                     restricted.gauss_newton_smoothness],
                ],
                "note": "The s columns are all that restricted smoothness needs; the curvature is "
                "that of Gauss and Newton, without second derivatives of the outputs.",
            },
        ],
        "backprop": {
            "shared": shared.multiplications,
            "naive": naive.multiplications,
            "autograd": dict(autograd.relative),
            "differences": dict(differences.relative),
            "rendering": str(example),
        },
    }  # fmt: skip


def _product_table(chain: JacobianChain, title: str, block: str) -> dict[str, Any]:
    """Return one product with the shapes and structures of its matrices."""
    factors = chain.factors(block)
    return {
        "title": title,
        "columns": ["", *(f"J({f.name})" for f in factors)],
        "rows": [
            ["shape", *(f"{f.jacobian.shape[0]} x {f.jacobian.shape[1]}" for f in factors)],
            ["structure", *(f.jacobian.structure for f in factors)],
        ],
    }


def _figures(
    example: JacobianChain, costs: list[list[int]], spectra: dict[float, Any]
) -> list[dict[str, Any]]:
    parts = [
        {
            "kind": "heat_map",
            "options": {
                "title": f"Worked example: J({f.name}), {f.jacobian.structure}",
                "values": f.jacobian.dense().tolist(),
            },
        }
        for f in example.factors("0.weight")
    ]
    names = ("shared prefix", "naive", "one product from the loss", "from the input")
    return [
        *parts,
        {
            "kind": "line_chart",
            "options": {
                "title": "Multiplications by depth",
                "series": [
                    {
                        "name": name,
                        "x": [row[0] for row in costs],
                        "y": [row[k + 1] for row in costs],
                    }
                    for k, name in enumerate(names)
                ],
                "x_label": "layers",
                "y_label": "multiplications (log scale)",
                "log_y": True,
                "integer_x": True,
                "note": "Back-propagation grows with the depth, the naive products with its "
                "square; a product multiplied from the input end carries whole matrices.",
            },
        },
        {
            "kind": "line_chart",
            "options": {
                "title": "Largest singular value of the product from the output down",
                "series": [
                    {
                        "name": f"gain {gain:g}",
                        "x": list(range(1, len(s.names) + 1)),
                        "y": [float(p[0]) for p in s.prefixes],
                    }
                    for gain, s in spectra.items()
                ],
                "x_label": "matrices multiplied",
                "y_label": "largest singular value (log scale)",
                "log_y": True,
                "integer_x": True,
            },
        },
    ]
