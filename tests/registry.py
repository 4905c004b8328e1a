"""One table of every solver, objective, set and penalty, for the contracts.

A new public class needs one entry here: small cases, wrong inputs with their messages, and, for
solvers, what it refuses and what it promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ellzero import penalties, sets, solvers
from ellzero.core.problem import Problem
from ellzero.objectives import (
    BinaryPatchNetworkLoss,
    CosineWells,
    FiniteSum,
    GraphSmoothness,
    Huber,
    LeastSquares,
    Logistic,
    ModuleLoss,
    NoisyGradient,
    PatchNetworkLoss,
    Poisson,
    Quadratic,
    SampledPatchNetworkLoss,
    Softmax,
    StiffRamps,
    random_rotation,
)
from ellzero.penalties import L0, L1
from ellzero.sets import Box, GroupL0Ball, L0Ball
from ellzero.tensors.named import Batch
from tests.problems import random_data


@dataclass(frozen=True)
class Wrong:
    """A call that must raise an error with exactly this text."""

    call: Callable[[], Any]
    text: str


@dataclass(frozen=True)
class Entry:
    """A public class: cases of it, and wrong inputs."""

    kind: type
    cases: dict[str, Callable[[], Any]]
    wrong: tuple[Wrong, ...]


@dataclass(frozen=True)
class SolverEntry(Entry):
    """A solver: which problems it takes, which it refuses and why, and what it promises."""

    takes: tuple[str, ...] = ()
    refuses: dict[str, str] = field(default_factory=dict)
    monotone: bool = True
    # Gradients and Hessian products of one step, for solvers whose work a step is fixed.
    gradients: int | None = None
    products: int = 0
    # Finds the support of tests.problems.planted.
    recovers: bool = False


def data(kind, seed=3, n=30, p=6, dtype=torch.float64, noise=0.5):
    X, y = random_data(seed, n, p, kind, noise)
    y = torch.tensor(y)
    return torch.tensor(X).to(dtype), y.to(dtype) if y.is_floating_point() else y


def quadratic(dtype=torch.float64):
    X, y = data("least squares")
    return Quadratic((X.T @ X / 30).to(dtype), (X.T @ y / 30).to(dtype), constant=1.0, ridge=0.1)


def module(dtype=torch.float64, ridge=0.0):
    X, y = data("least squares", dtype=dtype)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return ModuleLoss(
        model.to(dtype), torch.nn.functional.mse_loss, X, y.unsqueeze(1), ridge=ridge
    )


def least_squares(dtype=torch.float64, **options):
    return LeastSquares(*data("least squares", dtype=dtype), **{"ridge": 0.1, **options})


def logistic(dtype=torch.float64, **options):
    return Logistic(*data("logistic", dtype=dtype), **{"ridge": 0.1, **options})


def softmax(dtype=torch.float64, **options):
    return Softmax(*data("softmax", p=3, dtype=dtype), **{"ridge": 0.1, **options})


def _counts(dtype):
    X, y = data("least squares", dtype=dtype)
    return 0.5 * X, torch.floor(torch.exp(0.5 * y))


def poisson(dtype=torch.float64, **options):
    return Poisson(*_counts(dtype), **{"ridge": 0.1, **options})


def huber(dtype=torch.float64, **options):
    return Huber(*data("least squares", dtype=dtype), **{"ridge": 0.1, **options})


def _weights(seed=8, n=30):
    weights = torch.tensor(np.random.default_rng(seed).uniform(0.2, 3.0, n))
    weights[:2] = 0.0
    return weights


def _matrix_target(dtype=torch.float64):
    X, y = data("least squares", dtype=dtype)
    return LeastSquares(X, torch.stack([y, X[:, 1] - y], 1), ridge=0.1, fit_intercept=True)


def _teacher(dtype=torch.float64):
    return torch.tensor([0.9, 0.0, -1.1, 0.0, 0.7], dtype=dtype)


def patches(dtype=torch.float64):
    return PatchNetworkLoss(_teacher(dtype), 3)


def sampled_patches(dtype=torch.float64):
    return PatchNetworkLoss(_teacher(dtype), 3).sample(30, noise=0.1)


def binary_patches(dtype=torch.float64):
    return BinaryPatchNetworkLoss(_teacher(dtype), 3)


ROTATION = random_rotation(6, torch.Generator().manual_seed(4))
CURVATURES = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)
PARTIAL = {"coef": 0.1, "intercept": 0.01}

CYCLE = torch.tensor([[0, 1], [2, 1], [2, 3], [3, 4], [5, 4], [0, 3]])


def graph_smoothness(dtype=torch.float64, edges=CYCLE, missing=0.0):
    generator = np.random.default_rng(9)
    y, smoothness = generator.normal(size=6), generator.uniform(0.1, 3.0, len(edges))
    weights = torch.tensor([1.0, 0.5, missing, 2.0, 1.0, 1.0])
    return GraphSmoothness(torch.tensor(y).to(dtype), edges, torch.tensor(smoothness), weights)


# Objectives by name; each makes one in the dtype asked for.
OBJECTIVE_CASES: dict[str, Callable[..., Any]] = {
    "quadratic": quadratic,
    "least-squares": least_squares,
    "least-squares-plain": lambda dtype=torch.float64: least_squares(dtype, ridge=0.0),
    "least-squares-intercept": lambda dtype=torch.float64: least_squares(
        dtype, fit_intercept=True, ridge=PARTIAL
    ),
    "least-squares-outputs": _matrix_target,
    "logistic": logistic,
    "logistic-intercept": lambda dtype=torch.float64: logistic(
        dtype, fit_intercept=True, ridge=PARTIAL
    ),
    "softmax": softmax,
    "softmax-intercept": lambda dtype=torch.float64: softmax(
        dtype, fit_intercept=True, ridge=PARTIAL
    ),
    "poisson": poisson,
    "poisson-intercept": lambda dtype=torch.float64: poisson(
        dtype, fit_intercept=True, ridge=PARTIAL
    ),
    "huber": huber,
    "huber-intercept": lambda dtype=torch.float64: huber(
        dtype, fit_intercept=True, ridge=PARTIAL, delta=0.7
    ),
    "least-squares-weighted": lambda dtype=torch.float64: least_squares(
        dtype, fit_intercept=True, sample_weight=_weights()
    ),
    "logistic-weighted": lambda dtype=torch.float64: logistic(dtype, sample_weight=_weights()),
    "softmax-weighted": lambda dtype=torch.float64: softmax(
        dtype, fit_intercept=True, sample_weight=_weights()
    ),
    "poisson-weighted": lambda dtype=torch.float64: poisson(dtype, sample_weight=_weights()),
    "huber-weighted": lambda dtype=torch.float64: huber(dtype, sample_weight=_weights()),
    "patches": patches,
    "patches-sampled": sampled_patches,
    "binary-patches": binary_patches,
    "ramps": lambda dtype=torch.float64: StiffRamps(
        6, accuracy=2.0, decrease=4.0, roundness=1.0, n_stiff=2, dtype=dtype
    ),
    "ramps-rotated": lambda dtype=torch.float64: StiffRamps(
        6, accuracy=2.0, decrease=8.0, roundness=0.5, rotation=ROTATION.to(dtype), dtype=dtype
    ),
    "cosines": lambda dtype=torch.float64: CosineWells(CURVATURES.to(dtype), 1.3),
    "cosines-rotated": lambda dtype=torch.float64: CosineWells(
        CURVATURES.to(dtype), rotation=ROTATION.to(dtype)
    ),
    "noisy-gradient": lambda dtype=torch.float64: NoisyGradient(least_squares(dtype), 0.3),
    "finite-sum": lambda dtype=torch.float64: FiniteSum(
        [least_squares(dtype), quadratic(dtype)], [1.0, 3.0]
    ),
    "graph": graph_smoothness,
    "graph-plain": lambda dtype=torch.float64: GraphSmoothness(
        torch.arange(4.0).to(dtype), CYCLE[:3]
    ),
    "graph-empty": lambda dtype=torch.float64: graph_smoothness(dtype, CYCLE[:0]),
    "module": module,
    "module-ridge": lambda dtype=torch.float64: module(dtype, ridge=0.05),
}


def _ball(objective, budget=2, names=None, penalty=None):
    return Problem(objective, L0Ball(budget, names), penalty)


# Problems by name, for solvers to take or to refuse.
PROBLEMS: dict[str, Callable[..., Problem]] = {
    "quadratic": lambda dtype=torch.float64: _ball(quadratic(dtype)),
    "least-squares": lambda dtype=torch.float64: _ball(least_squares(dtype)),
    "graph": lambda dtype=torch.float64: _ball(graph_smoothness(dtype, missing=0.7)),
    "least-squares-free": lambda dtype=torch.float64: _ball(
        least_squares(dtype, fit_intercept=True, ridge=PARTIAL), names=("coef",)
    ),
    "logistic": lambda dtype=torch.float64: _ball(logistic(dtype)),
    "logistic-free": lambda dtype=torch.float64: _ball(
        logistic(dtype, fit_intercept=True, ridge=PARTIAL), names=("coef",)
    ),
    "softmax": lambda dtype=torch.float64: _ball(softmax(dtype), 3),
    "softmax-free": lambda dtype=torch.float64: _ball(
        softmax(dtype, fit_intercept=True, ridge=PARTIAL), 3, names=("coef",)
    ),
    "nothing-kept": lambda dtype=torch.float64: _ball(least_squares(dtype), 0),
    "all-kept": lambda dtype=torch.float64: _ball(least_squares(dtype), 6),
    "groups": lambda dtype=torch.float64: Problem(
        least_squares(dtype), GroupL0Ball(1, torch.tensor([0, 0, 1, 1, 2, 2]))
    ),
    "module": lambda dtype=torch.float64: _ball(module(dtype), 8),
    "module-free": lambda dtype=torch.float64: _ball(module(dtype), 6, names=("0.weight",)),
    "free": lambda dtype=torch.float64: Problem(logistic(dtype)),
    "free-ramps": lambda dtype=torch.float64: Problem(
        StiffRamps(6, accuracy=1.0, decrease=4.0, roundness=1.0, dtype=dtype)
    ),
    "free-cosines": lambda dtype=torch.float64: Problem(CosineWells(CURVATURES.to(dtype))),
    "free-module": lambda dtype=torch.float64: Problem(module(dtype)),
    "l1": lambda dtype=torch.float64: Problem(least_squares(dtype), penalty=L1(0.2)),
    "l0": lambda dtype=torch.float64: Problem(logistic(dtype), penalty=L0(0.02)),
    "ball-and-l1": lambda dtype=torch.float64: _ball(least_squares(dtype), penalty=L1(0.2)),
    "box": lambda dtype=torch.float64: Problem(least_squares(dtype), Box(-0.5, 0.5)),
    "bounded-ball": lambda dtype=torch.float64: Problem(
        least_squares(dtype), L0Ball(2, lower=-1.5)
    ),
    "no-ridge": lambda dtype=torch.float64: _ball(
        Logistic(*data("logistic", dtype=dtype, noise=4.0))  # not separable
    ),
    "module-l1": lambda dtype=torch.float64: Problem(module(dtype), penalty=L1(0.1)),
    "patches-l1": lambda dtype=torch.float64: Problem(patches(dtype), penalty=L1(0.01)),
    "patches-ball": lambda dtype=torch.float64: _ball(patches(dtype), 3),
    "patches-free": lambda dtype=torch.float64: Problem(patches(dtype)),
    "binary-l1": lambda dtype=torch.float64: Problem(binary_patches(dtype), penalty=L1(0.01)),
    "binary-ball": lambda dtype=torch.float64: _ball(binary_patches(dtype), 3),
    "binary-both": lambda dtype=torch.float64: _ball(binary_patches(dtype), penalty=L1(0.2)),
}
QUADRATIC = (
    "quadratic",
    "graph",
    "least-squares",
    "least-squares-free",
    "nothing-kept",
    "all-kept",
)
CONVEX = (*QUADRATIC, "logistic", "logistic-free", "softmax", "softmax-free")
NEEDS_SET = "it needs a constraint, such as `L0Ball`"
NEEDS_SPARSE = "it needs a sparse constraint, such as `L0Ball`"
NO_PENALTY = "it does not take penalties"
NO_SIDE = "it refits without the side constraints of the set"
EXCHANGES = "it needs an `L0Ball`: it exchanges one entry for one"
NO_SET = "it does not take constraints"
NEEDS_STEP = "it needs `step_size` where the objective has no curvature bound"


def _not(what, kind):
    return f"it needs {what}, got `{kind}`"


def _step_size(kind):
    return (
        Wrong(lambda: kind(step_size=0), "`step_size` must be positive, got 0."),
        Wrong(lambda: kind(step_size=-1.0), "`step_size` must be positive, got -1."),
        Wrong(lambda: kind(step_size=float("nan")), "`step_size` must be positive, got nan."),
    )


def _tol(kind):
    return (
        Wrong(lambda: kind(tol=-1.0), "`tol` must be a number of at least 0, got -1."),
        Wrong(lambda: kind(tol="small"), "`tol` must be a number of at least 0, got 'small'."),
    )


NEEDS_EITHER = "it needs a penalty, such as `L1`, or a constraint, such as `L0Ball`"
NOT_BOTH = "it takes a penalty or a constraint, not both"


def _splitting(kind):
    hint = "\nhint: It couples the dense and the sparse point."
    return (
        Wrong(lambda: kind(0.0), f"`beta` must be positive, got 0.{hint}"),
        Wrong(lambda: kind(beta=-1), f"`beta` must be positive, got -1.{hint}"),
        Wrong(
            lambda: kind(order="seidel"),
            "`order` must be one of 'gauss-seidel', 'jacobi', got 'seidel'. "
            "Did you mean 'gauss-seidel'?",
        ),
    )


def _one(kind):
    return {"default": kind}


PURSUIT = {"ball-and-l1": NO_PENALTY, "l1": NEEDS_SPARSE, "bounded-ball": NO_SIDE}
SOLVERS = [
    SolverEntry(
        solvers.IHT,
        {"default": solvers.IHT, "backtracking": lambda: solvers.IHT(step_size="backtracking")},
        (
            *_step_size(solvers.IHT),
            *_tol(solvers.IHT),
            Wrong(
                lambda: solvers.IHT(step_size="backtrack"),
                "`step_size` must be one of 'backtracking', got 'backtrack'. "
                "Did you mean 'backtracking'?",
            ),
        ),
        takes=(*CONVEX, "groups", "module", "module-free", "box", "bounded-ball", "no-ridge"),
        refuses={"free": NEEDS_SET, "l1": NEEDS_SET, "ball-and-l1": NO_PENALTY},
        gradients=1,
    ),
    SolverEntry(
        solvers.NIHT,
        _one(solvers.NIHT),
        _tol(solvers.NIHT),
        takes=(*CONVEX, "groups", "module", "bounded-ball"),
        refuses={"free": NEEDS_SPARSE, "box": NEEDS_SPARSE, "ball-and-l1": NO_PENALTY},
        gradients=1,
        products=1,
        recovers=True,
    ),
    SolverEntry(
        solvers.AcceleratedIHT,
        _one(solvers.AcceleratedIHT),
        (
            *_step_size(solvers.AcceleratedIHT),
            *_tol(solvers.AcceleratedIHT),
            Wrong(
                lambda: solvers.AcceleratedIHT(momentum=1.5),
                "`momentum` must be a number between 0 and 1, got 1.5.",
            ),
        ),
        takes=(*CONVEX, "groups", "box", "bounded-ball"),
        refuses={"module": NEEDS_STEP, "free": NEEDS_SET, "ball-and-l1": NO_PENALTY},
    ),
    SolverEntry(
        solvers.DORE,
        _one(solvers.DORE),
        _tol(solvers.DORE),
        takes=(*QUADRATIC, "groups", "box", "bounded-ball"),
        refuses={
            "logistic": _not("a quadratic objective", "Logistic"),
            "module": _not("a quadratic objective", "ModuleLoss"),
            "l1": NEEDS_SET,
        },
        gradients=4,
        products=2,
    ),
    SolverEntry(
        solvers.GradientDescent,
        {
            "default": solvers.GradientDescent,
            "falling": lambda: solvers.GradientDescent(0.1, schedule="sqrt"),
        },
        (
            *_step_size(solvers.GradientDescent),
            *_tol(solvers.GradientDescent),
            Wrong(
                lambda: solvers.GradientDescent(step_size=[1.0, -1.0]),
                "`step_size` must be positive, got -1.",
            ),
            Wrong(
                lambda: solvers.GradientDescent(step_size=()),
                "`step_size` must hold at least one number, got none.",
            ),
            Wrong(
                lambda: solvers.GradientDescent(schedule="linear"),
                "`schedule` must be one of 'constant', 'sqrt', got 'linear'.",
            ),
        ),
        takes=("free", "free-ramps"),
        refuses={
            "least-squares": NO_SET,
            "box": NO_SET,
            "l1": NO_PENALTY,
            "free-module": NEEDS_STEP,
            "free-cosines": NEEDS_STEP,
        },
        gradients=1,
    ),
    SolverEntry(
        solvers.AdaGrad,
        {"default": solvers.AdaGrad, "given": lambda: solvers.AdaGrad(0.3)},
        (
            *_step_size(solvers.AdaGrad),
            *_tol(solvers.AdaGrad),
            Wrong(lambda: solvers.AdaGrad(floor=0.0), "`floor` must be positive, got 0."),
            Wrong(
                lambda: solvers.AdaGrad(lower_bound=float("inf")),
                "`lower_bound` must be a finite number, got inf.",
            ),
        ),
        takes=("free", "free-ramps", "free-cosines"),
        refuses={
            "least-squares": NO_SET,
            "box": NO_SET,
            "l1": NO_PENALTY,
            "free-module": NEEDS_STEP,
        },
        monotone=False,
        gradients=1,
    ),
    SolverEntry(
        solvers.ProximalGradient,
        _one(solvers.ProximalGradient),
        (*_step_size(solvers.ProximalGradient), *_tol(solvers.ProximalGradient)),
        takes=("l1", "l0"),
        refuses={
            "least-squares": "it needs a penalty, such as `L1`",
            "ball-and-l1": "it does not take constraints",
            "module-l1": NEEDS_STEP,
        },
        gradients=1,
    ),
    SolverEntry(
        solvers.RVSM,
        {
            "default": solvers.RVSM,
            "jacobi": lambda: solvers.RVSM(order="jacobi"),
            "normalized": lambda: solvers.RVSM(normalize=True),
        },
        (*_step_size(solvers.RVSM), *_tol(solvers.RVSM), *_splitting(solvers.RVSM)),
        takes=("patches-l1", "patches-ball"),
        refuses={
            "patches-free": NEEDS_EITHER,
            "ball-and-l1": NOT_BOTH,
            "module-l1": NEEDS_STEP,
        },
        monotone=False,
        gradients=1,
    ),
    SolverEntry(
        solvers.RVSCGD,
        {"default": solvers.RVSCGD, "jacobi": lambda: solvers.RVSCGD(order="jacobi")},
        (*_step_size(solvers.RVSCGD), *_tol(solvers.RVSCGD), *_splitting(solvers.RVSCGD)),
        takes=("binary-l1", "binary-ball"),
        refuses={
            "patches-l1": "it needs a coarse gradient, got `PatchNetworkLoss`",
            "binary-both": NOT_BOTH,
        },
        monotone=False,
    ),
    SolverEntry(
        solvers.HTP,
        _one(solvers.HTP),
        _step_size(solvers.HTP),
        takes=(*QUADRATIC, "groups"),
        refuses={"softmax": _not("a quadratic objective", "Softmax"), **PURSUIT},
        gradients=1,
        recovers=True,
    ),
    SolverEntry(
        solvers.GraHTP,
        _one(solvers.GraHTP),
        _step_size(solvers.GraHTP),
        takes=(*CONVEX, "groups", "module"),
        refuses=PURSUIT,
        recovers=True,
    ),
    SolverEntry(
        solvers.CoSaMP,
        _one(solvers.CoSaMP),
        (),
        takes=(*CONVEX, "groups"),
        refuses={"module": _not("a smooth convex objective", "ModuleLoss"), **PURSUIT},
        recovers=True,
    ),
    SolverEntry(
        solvers.SubspacePursuit,
        _one(solvers.SubspacePursuit),
        (),
        takes=(*CONVEX, "groups"),
        refuses={"module": _not("a smooth convex objective", "ModuleLoss"), **PURSUIT},
        recovers=True,
    ),
    SolverEntry(
        solvers.OMP,
        _one(solvers.OMP),
        (),
        takes=CONVEX,
        refuses={
            "groups": "it needs an `L0Ball`: it adds one entry at a time",
            "module": _not("a smooth convex objective", "ModuleLoss"),
            "bounded-ball": NO_SIDE,
        },
        recovers=True,
    ),
    SolverEntry(
        solvers.Newton,
        _one(solvers.Newton),
        _tol(solvers.Newton),
        takes=(*CONVEX, "groups", "free"),
        refuses={
            "module": _not("a convex objective with bounded curvature", "ModuleLoss"),
            "l1": NO_PENALTY,
        },
    ),
    SolverEntry(
        solvers.LocalSearch,
        {"default": solvers.LocalSearch, "pursuit": lambda: solvers.LocalSearch(solvers.GraHTP())},
        (
            *_tol(solvers.LocalSearch),
            Wrong(
                lambda: solvers.LocalSearch(starter_iter=-1),
                "`starter_iter` must be an integer of at least 0, got -1.",
            ),
        ),
        takes=(*CONVEX, "no-ridge"),
        refuses={
            "module": _not("a smooth convex objective", "ModuleLoss"),
            "groups": EXCHANGES,
            "bounded-ball": NO_SIDE,
            "ball-and-l1": NO_PENALTY,
        },
        recovers=True,
    ),
    SolverEntry(
        solvers.SubsetSearch,
        {"default": solvers.SubsetSearch, "no-kicks": lambda: solvers.SubsetSearch(kicks=0)},
        (
            Wrong(
                lambda: solvers.SubsetSearch(kicks=-1),
                "`kicks` must be an integer of at least 0, got -1.",
            ),
        ),
        takes=QUADRATIC,
        refuses={
            "module": _not("a quadratic objective", "ModuleLoss"),
            "logistic": _not("a quadratic objective", "Logistic"),
            "groups": EXCHANGES,
            "bounded-ball": NO_SIDE,
            "ball-and-l1": NO_PENALTY,
        },
        recovers=True,
    ),
    SolverEntry(
        solvers.ExactSubset,
        {
            "default": solvers.ExactSubset,
            "stopped": lambda: solvers.ExactSubset(max_nodes=0, time_limit=60.0),
        },
        (
            Wrong(lambda: solvers.ExactSubset(tol=0), "`tol` must be positive, got 0."),
            Wrong(
                lambda: solvers.ExactSubset(time_limit=-1),
                "`time_limit` must be a number of at least 0, got -1.",
            ),
            Wrong(
                lambda: solvers.ExactSubset(max_nodes=-1),
                "`max_nodes` must be an integer of at least 0, got -1.",
            ),
        ),
        takes=QUADRATIC,
        refuses={
            "module": _not("a quadratic objective", "ModuleLoss"),
            "logistic": _not("a quadratic objective", "Logistic"),
            "ball-and-l1": NO_PENALTY,
        },
        recovers=True,
    ),
    SolverEntry(
        solvers.BranchAndBound,
        {"few-starts": lambda: solvers.BranchAndBound(n_starts=2)},
        (
            Wrong(lambda: solvers.BranchAndBound(tol=0), "`tol` must be positive, got 0."),
            *(
                Wrong(
                    lambda name=name, low=low: solvers.BranchAndBound(**{name: low - 1}),
                    f"`{name}` must be an integer of at least {low}, got {low - 1}.",
                )
                for name, low in (("width", 1), ("rounds", 1), ("n_starts", 0))
            ),
        ),
        takes=CONVEX,
        refuses={
            "module": _not("a smooth convex objective", "ModuleLoss"),
            "groups": EXCHANGES,
            "no-ridge": "it needs strong convexity; pass `ridge` to the objective",
        },
    ),
]

EYE = torch.eye(3)
ONES = torch.ones(3)
_X = "`X` must be a tensor with 2 axes, got list.\nhint: Pass `torch.as_tensor(X)`."


def _linear(kind, y):
    bad = torch.ones(3, 2)
    bad[1, 1] = torch.nan
    return (
        Wrong(lambda: kind([[1.0]], y), _X),
        Wrong(
            lambda: kind(ONES, y),
            "`X` must have 2 axes, got shape (3,).\n"
            "hint: Pass `X.reshape(-1, 1)` for a single column.",
        ),
        Wrong(
            lambda: kind(EYE.int(), y),
            "`X` must hold floating-point numbers, got torch.int32.\nhint: Pass `X.double()`.",
        ),
        Wrong(
            lambda: kind(torch.ones(2, 2), y),
            "`X` and `y` must have the same number of samples, got 2 and 3.",
        ),
        Wrong(
            lambda: kind(bad, y),
            "`X` must be finite, got NaN or infinity in column 1 (1).\n"
            "hint: Drop or fill these values first.",
        ),
        Wrong(lambda: kind(EYE, y, ridge=-1.0), "`ridge` must be a number of at least 0, got -1."),
        Wrong(
            lambda: kind(EYE, y, sample_weight=[1.0, 1.0, 1.0]),
            "`sample_weight` must be a tensor, got list.\n"
            "hint: Pass `torch.as_tensor(sample_weight)`.",
        ),
        Wrong(
            lambda: kind(EYE, y, sample_weight=torch.ones(2)),
            "`sample_weight` must have one number for each of 3 samples, got shape (2,).",
        ),
        Wrong(
            lambda: kind(EYE, y, sample_weight=torch.tensor([1.0, -1.0, 1.0])),
            "`sample_weight` must be finite and not negative, got a sample that is not.",
        ),
        Wrong(
            lambda: kind(EYE, y, sample_weight=torch.zeros(3)),
            "`sample_weight` must have a positive sum, got zeros only.",
        ),
        Wrong(
            lambda: kind(EYE, y, ridge={"coeff": 1.0}),
            "Unknown tensor 'coeff' in `ridge`. Did you mean 'coef'? Known tensors: coef.",
        ),
    )


def _wrong_teachers(kind):
    shape = "`teacher` must be a tensor of shape (d,) or (n_teachers, d), got "
    zero_hint = "hint: A network with a zero filter is constant: there is nothing to learn."
    return (
        Wrong(lambda: kind([1.0], 2), f"{shape}[1.0]."),
        Wrong(lambda: kind(torch.ones(2, 2, 2), 2), f"{shape}shape (2, 2, 2)."),
        Wrong(
            lambda: kind(torch.tensor([1, 0]), 2),
            "`teacher` must hold floating-point numbers, got torch.int64.\n"
            "hint: Pass `teacher.double()`.",
        ),
        Wrong(
            lambda: kind(torch.tensor([1.0, torch.nan]), 2),
            "`teacher` must be finite, got NaN or infinity.",
        ),
        Wrong(
            lambda: kind(torch.zeros(3), 2),
            f"`teacher` must not be a zero filter, got one.\n{zero_hint}",
        ),
        Wrong(
            lambda: kind(torch.eye(3) * torch.tensor([[1.0], [0.0], [1.0]]), 2),
            f"`teacher` must not be a zero filter, got one in row 1.\n{zero_hint}",
        ),
        Wrong(lambda: kind(ONES, 0), "`n_patches` must be an integer of at least 1, got 0."),
        Wrong(
            lambda: kind(EYE, 2).value({"filter": ONES}),
            "`params` must be a batch of 3 points, one for each teacher, got a single point.\n"
            "hint: Start from `objective.random_params(generator)`.",
        ),
        Wrong(
            lambda: kind(EYE, 2).value(Batch({"filter": EYE[:2]})),
            "`params` must be a batch of 3 points, one for each teacher, got a batch of 2.\n"
            "hint: Start from `objective.random_params(generator)`.",
        ),
    )


OBJECTIVES = [
    Entry(
        PatchNetworkLoss,
        {"patches": patches},
        (
            *_wrong_teachers(PatchNetworkLoss),
            Wrong(
                lambda: PatchNetworkLoss(EYE, 2).sample(5),
                "`sample` needs a single teacher, got 3.\n"
                "hint: Build a `PatchNetworkLoss` for one of them.",
            ),
        ),
    ),
    Entry(
        SampledPatchNetworkLoss,
        {"patches-sampled": sampled_patches},
        (
            Wrong(
                lambda: SampledPatchNetworkLoss(EYE, ONES),
                "`patches` must be a tensor of shape (n_samples, k, d), got shape (3, 3).",
            ),
            Wrong(
                lambda: SampledPatchNetworkLoss(torch.ones(2, 3, 4), ONES),
                "`y` must be a tensor of shape (2,), got shape (3,).",
            ),
            Wrong(
                lambda: SampledPatchNetworkLoss(torch.ones(3, 2, 2), ONES / 0),
                "`y` must hold finite floating-point numbers, got others.",
            ),
        ),
    ),
    Entry(
        BinaryPatchNetworkLoss,
        {
            "relu": binary_patches,
            "identity": lambda: BinaryPatchNetworkLoss(_teacher(), 3, "identity"),
        },
        (
            *_wrong_teachers(BinaryPatchNetworkLoss),
            Wrong(
                lambda: BinaryPatchNetworkLoss(ONES, 3, "relus"),
                "`estimator` must be one of 'relu', 'identity', got 'relus'. Did you mean 'relu'?",
            ),
        ),
    ),
    Entry(
        Quadratic,
        {n: OBJECTIVE_CASES[n] for n in ("quadratic",)},
        (
            Wrong(
                lambda: Quadratic(torch.ones(2, 3), ONES), "`Q` must be square, got shape (2, 3)."
            ),
            Wrong(
                lambda: Quadratic(EYE, torch.ones(2)),
                "`c` must be a tensor of shape (3,), got (2,).",
            ),
            Wrong(
                lambda: Quadratic(torch.triu(torch.ones(3, 3)), ONES),
                "`Q` must be symmetric, got a matrix that differs from its transpose.\n"
                "hint: Pass `(Q + Q.T) / 2`.",
            ),
            Wrong(
                lambda: Quadratic(-EYE, ONES),
                "`Q` must be positive semidefinite, got a smallest eigenvalue of -1.\n"
                "hint: Only convex quadratics have the guarantees; "
                "add a multiple of the identity.",
            ),
            Wrong(
                lambda: Quadratic(EYE, ONES, ridge=-1.0),
                "`ridge` must be a number of at least 0, got -1.",
            ),
        ),
    ),
    Entry(
        LeastSquares,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("least")},
        (
            *_linear(LeastSquares, ONES),
            Wrong(
                lambda: LeastSquares(EYE, torch.tensor([1.0, torch.inf, 0.0])),
                "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
            ),
        ),
    ),
    Entry(
        Logistic,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("logistic")},
        (
            *_linear(Logistic, torch.tensor([0, 1, 1])),
            Wrong(
                lambda: Logistic(EYE, torch.tensor([0, 1, 2])),
                "`y` must have exactly two classes, got 3.\nhint: Use `Softmax` for more classes.",
            ),
        ),
    ),
    Entry(
        Softmax,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("softmax")},
        (
            *_linear(Softmax, torch.tensor([0, 1, 2])),
            Wrong(
                lambda: Softmax(EYE, torch.zeros(3)),
                "`y` must have at least two classes, got only 0.0.\n"
                "hint: Check the labels; a constant target needs no model.",
            ),
        ),
    ),
    Entry(
        Poisson,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("poisson")},
        (
            *_linear(Poisson, ONES),
            Wrong(
                lambda: Poisson(EYE, torch.tensor([1.0, -2.0, 0.0])),
                "`y` must hold counts, got -2.\n"
                "hint: Use `LeastSquares` or `Huber` for numbers that can be negative.",
            ),
            Wrong(
                lambda: Poisson(EYE, torch.zeros(3)),
                "`y` must hold a positive count, got zeros only.\n"
                "hint: Check the counts; a constant target needs no model.",
            ),
            Wrong(
                lambda: Poisson(EYE, torch.ones(3, 1)),
                "`y` must have one count for each sample, got shape (3, 1).",
            ),
            Wrong(
                lambda: Poisson(EYE, torch.tensor([1.0, torch.inf, 0.0])),
                "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
            ),
        ),
    ),
    Entry(
        Huber,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("huber")},
        (
            *_linear(Huber, ONES),
            Wrong(lambda: Huber(EYE, ONES, delta=0.0), "`delta` must be positive, got 0."),
            Wrong(
                lambda: Huber(EYE, torch.ones(3, 1)),
                "`y` must have one number for each sample, got shape (3, 1).",
            ),
            Wrong(
                lambda: Huber(EYE, torch.tensor([1.0, torch.nan, 0.0])),
                "`y` must be finite, got NaN or infinity.\nhint: Drop these samples first.",
            ),
        ),
    ),
    Entry(
        GraphSmoothness,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("graph")},
        (
            Wrong(
                lambda: GraphSmoothness([1.0], CYCLE[:0]),
                "`y` must be a floating-point tensor with 1 axis, got list.",
            ),
            Wrong(
                lambda: GraphSmoothness(EYE, CYCLE[:0]),
                "`y` must be a floating-point tensor with 1 axis, got (3, 3) of torch.float32.",
            ),
            Wrong(
                lambda: GraphSmoothness(torch.tensor([torch.nan]), CYCLE[:0]),
                "`y` must hold finite numbers, got NaN or infinity.\n"
                "hint: A sample that is missing has any value and weight 0.",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, ONES),
                "`edges` must be a tensor of integers of shape (m, 2), got (3,) of torch.float32."
                "\nhint: A chain is `torch.stack([torch.arange(n - 1), torch.arange(1, n)], 1)`.",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, CYCLE),
                "`edges` must join entries 0 to 2 of `y`, got (2, 3).",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, torch.tensor([[1, 1]])),
                "`edges` must not join an entry to itself, got 1.",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, torch.tensor([[0, 1], [1, 0]])),
                "`edges` must hold every edge once, got one twice.\n"
                "hint: Add up their `smoothness`.",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, CYCLE[:2], ONES),
                "`smoothness` must be one number or of shape (2,), got shape (3,).",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, CYCLE[:2], -1.0),
                "`smoothness` must be finite and not negative, got an entry that is not.",
            ),
            Wrong(
                lambda: GraphSmoothness(ONES, CYCLE[:2], sample_weight=-ONES),
                "`sample_weight` must be finite and not negative, got an entry that is not.",
            ),
        ),
    ),
    Entry(
        StiffRamps,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("ramps")},
        (
            Wrong(lambda: StiffRamps(1), "`n_entries` must be an integer of at least 2, got 1."),
            Wrong(
                lambda: StiffRamps(4, n_stiff=4),
                "`n_stiff` must be an integer between 0 and 3, got 4.",
            ),
            Wrong(lambda: StiffRamps(4, roundness=1.5), "`roundness` must be at most 1, got 1.5."),
            Wrong(lambda: StiffRamps(4, accuracy=0.0), "`accuracy` must be positive, got 0."),
            Wrong(
                lambda: StiffRamps(3, rotation=torch.eye(2)),
                "`rotation` must be a tensor of shape (3, 3), got (2, 2).",
            ),
            Wrong(
                lambda: StiffRamps(3, rotation=2 * torch.eye(3)),
                "`rotation` must be orthogonal, got a matrix R with R R^T off by 3.\n"
                "hint: Take the first factor of `torch.linalg.qr`.",
            ),
        ),
    ),
    Entry(
        CosineWells,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("cosines")},
        (
            Wrong(
                lambda: CosineWells([1.0]),
                "`curvatures` must be a tensor with 1 axis and at least one entry, got list.",
            ),
            Wrong(
                lambda: CosineWells(torch.tensor([1.0, 0.0])),
                "`curvatures` must be positive and finite, got one that is not.",
            ),
            Wrong(lambda: CosineWells(ONES, 0.0), "`frequency` must be positive, got 0."),
        ),
    ),
    Entry(
        NoisyGradient,
        {"noisy-gradient": OBJECTIVE_CASES["noisy-gradient"]},
        (
            Wrong(
                lambda: NoisyGradient(CosineWells(ONES), -1.0),
                "`noise` must be finite and not negative, got an entry of 'coef' that is not.",
            ),
            Wrong(
                lambda: NoisyGradient(CosineWells(ONES), {"coef": torch.ones(2)}),
                "`noise` must hold tensors of shapes {'coef': (3,)}, got {'coef': (2,)}.\n"
                "hint: Start from `objective.init_params()`.",
            ),
            Wrong(
                lambda: NoisyGradient("f", 1.0),
                "`objective` must be an objective with second derivatives, got str.",
            ),
        ),
    ),
    Entry(
        FiniteSum,
        {"finite-sum": OBJECTIVE_CASES["finite-sum"]},
        (
            Wrong(lambda: FiniteSum([]), "`terms` must hold at least one objective, got none."),
            Wrong(
                lambda: FiniteSum([CosineWells(ONES), CosineWells(torch.ones(2))]),
                "`terms` must share their variables, got {'coef': (3,)} in term 0 and "
                "{'coef': (2,)} in term 1.",
            ),
            Wrong(
                lambda: FiniteSum([CosineWells(ONES)], [0.0]),
                "`weights` must hold a positive number for each of 1 terms, got [0.0].",
            ),
            Wrong(
                lambda: FiniteSum.from_batches(torch.nn.Linear(1, 1), len, []),
                "`batches` must give at least one batch, got none.",
            ),
            Wrong(
                lambda: FiniteSum.from_batches(torch.nn.Linear(1, 1), len, [ONES]),
                "`batches` must give pairs of inputs and targets, got Tensor.\n"
                "hint: Give a loader of pairs, or a generator that makes them: "
                "`((b['x'], b['y']) for b in loader)`.",
            ),
        ),
    ),
    Entry(
        ModuleLoss,
        {n: c for n, c in OBJECTIVE_CASES.items() if n.startswith("module")},
        (
            Wrong(
                lambda: ModuleLoss(len, len, EYE, ONES),
                "`model` must be a torch.nn.Module, got builtin_function_or_method.",
            ),
            Wrong(
                lambda: ModuleLoss(torch.nn.Linear(3, 1), "mse", EYE, ONES),
                "`loss_fn` must be callable, got str.\n"
                "hint: Pass a function such as `torch.nn.functional.cross_entropy`.",
            ),
            Wrong(
                lambda: ModuleLoss(torch.nn.Tanh(), torch.nn.functional.mse_loss, EYE, EYE),
                "`model` must have at least one parameter that requires a gradient, got none.",
            ),
            Wrong(
                lambda: ModuleLoss(
                    torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout()),
                    torch.nn.functional.mse_loss,
                    EYE,
                    ONES,
                ),
                "`model` must give the same output every time, got '1' (Dropout) in training mode."
                "\nhint: Call `model.eval()` first.",
            ),
            Wrong(
                lambda: ModuleLoss(torch.nn.Linear(3, 1), torch.sub, EYE, ONES.unsqueeze(1)),
                "`loss_fn` must return a 0-d tensor, got shape (3, 1).\n"
                "hint: Return the mean over samples.",
            ),
        ),
    ),
]


def _budget(name, unit, kind):
    hint = f"\nhint: Pass the largest number of {unit} that may differ from zero."
    return (
        Wrong(lambda: kind(-1), f"`{name}` must be an integer of at least 0, got -1.{hint}"),
        Wrong(lambda: kind(2.0), f"`{name}` must be an integer of at least 0, got 2.0.{hint}"),
    )


LABELS = torch.tensor([0, 0, 1])
SETS = [
    Entry(
        sets.L0Ball, {"two": lambda: sets.L0Ball(2)}, _budget("n_nonzero", "entries", sets.L0Ball)
    ),
    Entry(
        sets.GroupL0Ball,
        {"one": lambda: sets.GroupL0Ball(1, LABELS)},
        (
            *_budget("n_groups", "groups", lambda s: sets.GroupL0Ball(s, LABELS)),
            Wrong(
                lambda: sets.GroupL0Ball(1, torch.zeros(0)),
                "`groups` must hold integer labels, got dtype float32.\n"
                "hint: Convert them with `.to(torch.int64)`.",
            ),
        ),
    ),
    Entry(
        sets.BlockL0Ball,
        {"one": lambda: sets.BlockL0Ball(1, (2, 1), names="matrix")},
        (
            *_budget("n_blocks", "blocks", sets.BlockL0Ball),
            Wrong(
                lambda: sets.BlockL0Ball(1, (2, 0)),
                "`block_shape[1]` must be an integer of at least 1, got 0.",
            ),
        ),
    ),
    Entry(
        sets.SliceL0Ball,
        {"one": lambda: sets.SliceL0Ball(1, names="matrix")},
        (
            *_budget("n_slices", "slices", sets.SliceL0Ball),
            Wrong(lambda: sets.SliceL0Ball(1, axis=0.5), "`axis` must be an integer, got 0.5."),
        ),
    ),
    Entry(
        sets.NMPattern,
        {"two-of-four": lambda: sets.NMPattern(2, 4)},
        (
            Wrong(
                lambda: sets.NMPattern(5, 4),
                "`n` must be an integer between 0 and 4, the length `m` of a run, got 5.",
            ),
        ),
    ),
    Entry(
        sets.ProductSet,
        {"one-in-each": lambda: sets.ProductSet((sets.L0Ball(1, ("coef",)),))},
        (
            Wrong(lambda: sets.ProductSet(()), "`sets` must hold at least one set, got none."),
            Wrong(
                lambda: sets.ProductSet((sets.Box(-1.0, 1.0, ("a",)),)),
                "`sets` must hold sparse sets that name their tensors, got "
                "Box(lower=-1.0, upper=1.0, names=('a',)).\nhint: Give each set its `names`.",
            ),
            Wrong(
                lambda: sets.ProductSet((sets.L0Ball(1, ("a",)), sets.L0Ball(1, ("b", "a")))),
                "`sets` must be on different tensors, got 'a' in two of them.",
            ),
        ),
    ),
    Entry(
        sets.Box,
        {"unit": lambda: sets.Box(-1.0, 1.0)},
        (Wrong(lambda: sets.Box(1.0, -1.0), "`lower` must be at most `upper`, got 1 and -1."),),
    ),
    Entry(
        sets.Nonnegative,
        {"all": sets.Nonnegative},
        (
            Wrong(
                lambda: sets.Nonnegative(()),
                "`names` must name at least one tensor, got none.\n"
                "hint: Pass None to cover every tensor.",
            ),
        ),
    ),
]


def _weight(kind):
    return (
        Wrong(
            lambda: kind(-1.0),
            "`weight` must be a number of at least 0, got -1.\n"
            "hint: A weight of 0 switches the penalty off.",
        ),
    )


def _shape(kind):
    return Wrong(
        lambda: kind(a=0.0),
        "`a` must be positive, got 0.\nhint: Small `a` is close to `L0`, large `a` to `L1`.",
    )


PENALTIES = [
    *(
        Entry(kind, {"half": lambda kind=kind: kind(0.5)}, _weight(kind))
        for kind in (penalties.L0, penalties.L1)
    ),
    *(
        Entry(
            kind,
            {"half": lambda kind=kind: kind(0.5, LABELS)},
            _weight(lambda weight, kind=kind: kind(weight, LABELS)),
        )
        for kind in (penalties.GroupL0, penalties.GroupL1)
    ),
    Entry(
        penalties.TransformedL1,
        {"half": lambda: penalties.TransformedL1(0.5)},
        (*_weight(penalties.TransformedL1), _shape(lambda a: penalties.TransformedL1(0.5, a))),
    ),
    Entry(
        penalties.GroupTransformedL1,
        {"half": lambda: penalties.GroupTransformedL1(0.5, LABELS)},
        (
            *_weight(lambda weight: penalties.GroupTransformedL1(weight, LABELS)),
            _shape(lambda a: penalties.GroupTransformedL1(0.5, LABELS, a)),
        ),
    ),
]
REGISTRY: list[Entry] = [*SOLVERS, *OBJECTIVES, *SETS, *PENALTIES]


def random_points(objective, count=3, seed=0):
    """Return points of the objective with normal entries."""
    generator = np.random.default_rng(seed)
    return [
        {
            name: torch.tensor(generator.normal(size=tuple(t.shape))).to(t.dtype)
            for name, t in objective.init_params().items()
        }
        for _ in range(count)
    ]
