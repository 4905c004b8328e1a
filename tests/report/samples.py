"""Summaries to draw: one like a run on Iris, one with everything that can go wrong."""

import math
from typing import Any

FEATURES = ["sepal length", "sepal width", "petal length", "petal width"]
CLASSES = ["setosa", "versicolor", "virginica"]

# Losses between the published optima of budgets 3, 5, 8 and 15 at ridge 0.01 are made up.
LOSSES = [
    0.5731,
    0.4412,
    0.36682,
    0.3312,
    0.30824,
    0.2921,
    0.2805,
    0.27153,
    0.2688,
    0.2667,
    0.2652,
    0.2643,
    0.2636,
    0.26321,
    0.26313,
]
TRAIN = [0.658, 0.825, 0.933, 0.950, 0.958, 0.950, 0.958, 0.958] + [0.958] * 7
TEST = [0.633, 0.833, 0.967, 0.967, 0.967, 1.0, 0.967, 1.0] + [1.0] * 7


def _path() -> list[dict[str, Any]]:
    rows = []
    for i, (value, train, test) in enumerate(zip(LOSSES, TRAIN, TEST, strict=True)):
        s = i + 1
        gap = 8.1e-07 if s <= 12 else 0.0041
        rows.append(
            {
                "n_nonzero": s,
                "value": value,
                "epsilon": value / LOSSES[-1] - 1.0,
                "accuracy_train": train,
                "accuracy_test": test,
                "status": "converged",
                "claim": "optimal" if s <= 12 else "gap",
                "claim_sentence": "proven globally optimal",
                "gap": gap,
                "lower_bound": value * (1.0 - gap),
                "n_starts": 100,
                "hit_rate": max(0.04, 1.0 - 0.11 * abs(s - 15)) if s < 15 else 1.0,
                "stable": True,
                "largest_stable_step": 21.4 / s,
                "swap_level": 2,
                "seconds": 0.21 + 0.03 * s,
                "median_value": value * (1.3 if s < 10 else 1.01),
                "worst_value": min(1.08, value * (2.4 if s < 10 else 1.05)),
                "selected": s == 5,
            }
        )
    return rows


def iris() -> dict[str, Any]:
    """Return a summary with every section."""
    labels = [f"coef[{c}, {f}]" for c in CLASSES for f in FEATURES]
    labels += [f"intercept[{c}]" for c in CLASSES]
    last = {0, 2, 6, 11, 13}
    masks = []
    for k in range(24):
        now = set(last)
        if k < 4:
            now = {0, 1, 4, 7, 9}
        elif k < 9:
            now = {0, 2, 4, 11, 9}
        elif k < 13:
            now = {0, 2, 6, 11, 9}
        masks.append([int(i in now) for i in range(15)])
    steps = list(range(0, 41))
    distance = [
        [10.0 ** (-12 + r * 0.2), *[min(1.9, 0.31 + 0.06 * k + 0.013 * r) for k in steps[1:]]]
        for r in range(40)
    ]
    values = [
        [-1.2 - 0.01 * r - 1.5 * (1 - math.exp(-k / (4 + r % 7))) for k in steps]
        for r in range(40)
    ]
    return {
        "schema_version": 1,
        "title": "Sparse softmax regression on Iris",
        "command": "ellzero train iris --n-nonzero 1:15 --ridge 0.01 --starts 100 --seed 0",
        "settings": {
            "n_nonzero": "1:15",
            "ridge": 0.01,
            "starts": 100,
            "seed": 0,
            "solver": "IHT, then swaps",
            "step_size": 0.6862,
            "tol": 1e-06,
            "hidden": 0,
            "resume": None,
        },
        "versions": {
            "ellzero": "0.1.0",
            "torch": "2.13.0+cpu",
            "numpy": "2.3.4",
            "python": "3.11.7",
        },
        "data": {
            "name": "iris",
            "n_samples": 150,
            "n_features": 4,
            "n_classes": 3,
            "features": FEATURES,
            "target": "species",
            "classes": CLASSES,
            "n_train": 120,
            "n_test": 30,
            "fingerprint": "sha256:4b9c0f0e8d3a51c6a7f1",
            "messages": [
                "The features were standardized with the mean and deviation of the training part."
            ],
        },
        "dense": {
            "value": 0.26313,
            "accuracy_train": 0.958,
            "accuracy_test": 1.0,
            "n_parameters": 15,
        },
        "path": _path(),
        "weights": {
            "tensors": [
                {
                    "name": "coef",
                    "shape": [3, 4],
                    "values": [
                        [-0.412, 0.0, -1.447, 0.0],
                        [0.0, 0.0, 0.3871, 0.0],
                        [0.0, 0.0, 0.0, 1.9034],
                    ],
                    "row_labels": CLASSES,
                    "column_labels": FEATURES,
                },
                {
                    "name": "intercept",
                    "shape": [3],
                    "values": [0.0, 1.0312, 0.0],
                    "row_labels": CLASSES,
                },
            ]
        },
        "certificate": {
            "claim": "optimal",
            "sentence": "proven globally optimal",
            "lower_bound": 0.30823975,
            "gap": 8.1e-07,
            "checks": [
                {
                    "name": "nonzero entries",
                    "value": 5,
                    "bound": 5,
                    "passed": True,
                    "claim": "feasible",
                },
                {
                    "name": "largest gradient entry on the support",
                    "value": 2.5e-13,
                    "bound": 1e-08,
                    "passed": True,
                    "claim": "stationary",
                },
                {
                    "name": "step times largest gradient entry off the support",
                    "value": 0.0412,
                    "bound": 0.3871,
                    "passed": True,
                    "claim": "stationary",
                },
                {
                    "name": "best exchange of one entry",
                    "value": 0.0,
                    "bound": 1e-09,
                    "passed": True,
                    "claim": "coordinatewise",
                },
                {
                    "name": "relative gap",
                    "value": 8.1e-07,
                    "bound": 1e-06,
                    "passed": True,
                    "claim": "optimal",
                },
                {
                    "name": "sufficient test at step 1/m",
                    "value": 3.2,
                    "bound": 0.3871,
                    "passed": False,
                    "claim": "optimal",
                },
            ],
            "assumptions": [
                "The ridge of 0.01 makes the objective strongly convex.",
                "Sums are exact to rounding in float64.",
            ],
            "measures": {
                "n_nonzero": 5,
                "largest_stable_step": 9.3912,
                "margin": 0.3459,
                "ties": False,
                "smoothness (upper bound)": 1.4573,
                "strong_convexity": 0.01,
                "boxes": 1841,
            },
        },
        "supports": {
            "iterations": [
                0,
                1,
                2,
                3,
                4,
                6,
                8,
                10,
                12,
                15,
                20,
                25,
                30,
                40,
                50,
                70,
                100,
                150,
                200,
                300,
                500,
                900,
                1500,
                3000,
            ],
            "masks": masks,
            "labels": labels,
        },
        "smoothness": [
            row
            for n, mc, power, bound, exact in [
                (2, 0.641, 0.4365, 0.6547, 0.6547),
                (4, 0.688, 0.6914, 1.1208, 1.0371),
                (6, 0.713, 0.9301, 1.3951, 1.3951),
                (8, 0.824, 0.9715, 1.4573, 1.4573),
            ]
            for row in [
                {
                    "method": "Monte Carlo, 5000 pairs",
                    "kind": "lower estimate",
                    "n_nonzero": n,
                    "value": mc,
                    "note": "95 % quantile",
                },
                {
                    "method": "power method at zero",
                    "kind": "lower estimate",
                    "n_nonzero": n,
                    "value": power,
                },
                {
                    "method": "closed-form bound",
                    "kind": "upper bound",
                    "n_nonzero": n,
                    "value": bound,
                },
                {
                    "method": "enumeration of the bound",
                    "kind": "upper bound",
                    "n_nonzero": n,
                    "value": exact,
                },
            ]
        ],
        "trace": {
            "iterations": list(range(200)),
            "values": [0.30824 + 0.79 * math.exp(-k / 18) for k in range(200)],
        },
        "escape": {
            "starts": 4000,
            "left": 4000,
            "returned": 0,
            "monotone": 4000,
            "step_size": 0.5886,
            "best_value": -2.77834,
            "iterations": steps,
            "distance": distance,
            "values": values,
            "final_values": [
                -2.77834,
                -2.7012,
                -2.6551,
                -2.6102,
                -2.55,
                -2.4891,
                -2.431,
                -2.39,
                -2.33,
                -2.29,
                -2.21,
                -2.15,
            ],
            "final_counts": [812, 655, 540, 433, 390, 301, 266, 201, 160, 122, 81, 39],
        },
        "reference": {
            "title": "Certified constants beside the reference",
            "columns": ["Budget", "Reference", "Ours", "Outcome"],
            "rows": [
                [1, 0.6547, 0.6547, True],
                [2, 1.0371, 1.0371, True],
                [3, 1.3951, 1.3951, True],
                [4, 1.4573, 1.4573, False],
            ],
            "note": "Equal to four decimals.",
        },
        "figures": [
            {
                "kind": "scatter",
                "options": {
                    "title": "Loss and accuracy",
                    "series": [{"name": "runs", "x": LOSSES, "y": TEST}],
                    "x_label": "loss",
                    "y_label": "test accuracy",
                    "percent_y": True,
                },
            },
        ],
        "tables": [
            {
                "title": "Times",
                "columns": ["Stage", "Seconds"],
                "rows": [["dense", 0.12], ["path", 21.7], ["proof", None]],
            }
        ],
    }


HOSTILE = "<script>alert(1)</script>\"'&|`*_[x](y)\x1b[31m\n# end"


def hostile() -> dict[str, Any]:
    """Return a summary in which every word is an attack."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, key) for v in value]
        if (
            isinstance(value, str)
            and key not in ("claim", "style")
            and value not in ("scatter", "line_chart")
        ):
            return HOSTILE
        return value

    return poison(iris())


def unknown() -> dict[str, Any]:
    """Return a summary in which every number is unknown."""

    def forget(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: forget(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [forget(v, key) for v in value]
        if isinstance(value, float):
            return math.nan
        return None if key in ("n_starts", "swap_level", "claim", "starts", "left") else value

    return {**forget(iris()), "schema_version": 1}


def wide() -> dict[str, Any]:
    """Return a summary with many features and larger matrices."""

    def entry(i: int, j: int) -> float:
        v = math.sin(0.7 * i + 1.3 * j) + math.cos(0.11 * i * j)
        return v if abs(v) > 1.5 else 0.0

    names = [f"mean fractal dimension of region {i} (standardized)" for i in range(30)]
    return {
        "title": "Larger models",
        "headline": "A network and a linear model",
        "weights": {
            "tensors": [
                {
                    "name": "linear.coef",
                    "values": [entry(i, 3) for i in range(30)],
                    "row_labels": names,
                },
                {
                    "name": "layer1.weight",
                    "values": [[entry(i, j) for j in range(64)] for i in range(300)],
                },
                {
                    "name": "layer0.weight",
                    "values": [[entry(i, j) for j in range(784)] for i in range(60)],
                },
                {
                    "name": "coef of wine",
                    "values": [[entry(i, j) for j in range(12)] for i in range(3)],
                    "column_labels": names[:12],
                    "row_labels": ["class_0", "class_1", "class_2"],
                },
            ]
        },
    }


def network() -> dict[str, Any]:
    """Return a summary like that of a network at 1 % of its weights."""
    steps = list(range(18, 3753, 18))
    counts = [2662 + round((266_200 - 2662) * max(0.0, 1 - t / 1876) ** 3) for t in steps]

    def run(name: str, floor: float, n_nonzero: list[int]) -> dict[str, Any]:
        loss = [floor + 2.2 * math.exp(-t / 90) + 0.02 * math.sin(t) ** 2 for t in steps]
        return {
            "name": name,
            "steps": steps,
            "loss": loss,
            "lr": [0.002 * (1 + math.cos(math.pi * t / 3752)) for t in steps],
            "n_nonzero": n_nonzero,
            "epochs": [
                {
                    "epoch": k + 1,
                    "step": 469 * (k + 1),
                    "loss": floor + 0.3 / (k + 1),
                    "accuracy_test": 0.98 - 0.02 / (k + 1),
                    "seconds": 6.1 * (k + 1),
                }
                for k in range(8)
            ],
        }

    def layer(name: str, rows: int, columns: int, block: int) -> dict[str, Any]:
        high, wide = -(-rows // block), -(-columns // block)
        cells = [
            [(i * 7 + j * j) % 11 // 8 * (1 + i % 3) for j in range(wide)] for i in range(high)
        ]
        total = sum(map(sum, cells))
        return {
            "name": name,
            "shape": [rows, columns],
            "n_entries": rows * columns,
            "n_nonzero": total,
            "density": total / (rows * columns),
            "n_outputs": rows,
            "dead_outputs": rows // 3,
            "n_inputs": columns,
            "dead_inputs": columns // 2,
            "picture": {
                "block": [block, block],
                "most": block * block,
                "shape": [rows, columns],
                "counts": cells,
            },
        }

    layers = [layer("0.weight", 300, 784, 7), layer("2.weight", 100, 300, 3)]
    layers.append(layer("4.weight", 10, 100, 1))
    layers[0]["inputs_picture"] = {
        "block": [1, 1],
        "most": 300,
        "shape": [28, 28],
        "counts": [[max(0, 12 - abs(i - 14) - abs(j - 14)) for j in range(28)] for i in range(28)],
    }
    return {
        "title": "Sparse network on mnist",
        "counted": "weights",
        "dense": {"value": 0.0021, "accuracy_test": 0.9835, "n_parameters": 266_200},
        "path": [
            {
                "n_nonzero": 2662,
                "value": 0.0612,
                "epsilon": 0.0591,
                "accuracy_train": 0.984,
                "accuracy_test": 0.979,
                "claim": "feasible",
                "selected": True,
            }
        ],
        "training": {
            "n_entries": 266_200,
            "runs": [run("sparse", 0.06, counts), run("dense", 0.002, [266_200] * len(steps))],
        },
        "layers": layers,
        "file": {"bytes": 15_000, "dense_bytes": 1_066_440},
    }
