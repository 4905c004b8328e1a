"""Networks that are trained by minibatches alone: of any size, and of any user."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.core.result import Certificate, Claim
from ellzero.datasets import Arrays, Table, split
from ellzero.errors import InvalidParameterError
from ellzero.nn import certify, polish, prunable, units
from ellzero.nn.budgets import STRUCTURES, to_count
from ellzero.storage import Checkpoint
from ellzero.tensors import named, thresholded
from ellzero.training.minibatch import Fitted, Loss, Samples, evaluate, fit, seeded
from ellzero.training.modules import build_module
from ellzero.training.outcomes import Outcome
from ellzero.training.settings import (
    LARGE_WORK,
    NETWORK_BATCH_LARGE,
    NETWORK_DENSITY_LARGE,
    NETWORK_EPOCHS_LARGE,
    POLISH_WORK,
    RIDGE_LARGE,
    TrainSettings,
    Watch,
    make_layers,
    squeezed_mse,
    with_network_defaults,
)
from ellzero.typing import Params

# Most samples of a certificate; with the smoothness constant it takes some hundred gradients in
# double precision, and then samples times parameters are limited too.
CERTIFIED_WORK = 100_000_000
CERTIFIED_SAMPLES = 2000
# Of a polish that is cheap: rounds, and in each steps of hard thresholding and hundreds of L-BFGS
# iterations, at most some thousand passes in all; 50,000 parameters on digits took 3 seconds.
POLISH_EFFORT = 2, 60, 4
POLISH_EFFORT_COSTLY = 5, 300, 10
# Samples on which a network of a user is tried before anything is trained.
TRIED = 4


@dataclass(frozen=True, slots=True)
class LargeExperiment:
    """Samples, and a network at its start.

    Parameters
    ----------
    arrays : Arrays
        The data.
    samples : Samples
        The same on the device, as the network gets them.
    network : torch.nn.Module
        The network before training, on the device.
    settings : TrainSettings
        What was asked for, complete.
    sample_shape : tuple of int
        Shape of one sample as it was given; layers of `hidden` get it flattened.
    """

    arrays: Arrays
    samples: Samples
    network: nn.Module
    settings: TrainSettings
    sample_shape: tuple[int, ...]

    @property
    def data(self) -> Arrays:
        """The data."""
        return self.arrays

    @property
    def fingerprint(self) -> str:
        """Hash of the data."""
        return self.arrays.fingerprint

    @property
    def task(self) -> str:
        """What is predicted."""
        return self.arrays.task

    @property
    def n_parameters(self) -> int:
        """Number of entries that the budget counts: weights, without biases."""
        return sum(p.numel() for p in prunable(self.network).values())

    @property
    def largest_budget(self) -> int:
        """What a budget of everything is: entries, or rows or columns."""
        return sum(
            p.numel() if axis is None else p.shape[axis] for p, axis in self._counted(self.network)
        )

    @property
    def least_budget(self) -> int:
        """The smallest budget that can be asked for: one unit of each tensor, or one entry."""
        return len(self._counted(self.network)) if self.settings.counts_units else 1

    def count(self, model: nn.Module) -> int:
        """Return how much of the budget a network of this kind takes."""
        return sum(
            thresholded.count_true(p != 0 if axis is None else units.nonzero(p, axis))
            for p, axis in self._counted(model)
        )

    def _counted(self, model: nn.Module) -> list[tuple[Tensor, int | None]]:
        """Return the tensors that the budget counts, and the axis of their units."""
        structure = self.settings.structure or "entries"
        return [(p.detach(), STRUCTURES[structure]) for p in prunable(model, structure).values()]

    @property
    def n_all(self) -> int:
        """Number of all parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def is_cheap(self) -> bool:
        """Whether hundreds of passes over all training samples take some seconds."""
        work = self.n_all * self.samples.n_train
        return self.settings.model is None and work <= POLISH_WORK

    @property
    def loss_fn(self) -> Loss:
        """Loss of outputs and targets."""
        return loss_of(self.task)


def loss_of(task: str) -> Loss:
    """Return cross entropy for classes and half the mean squared error for numbers."""
    return squeezed_mse if task == "regression" else nn.functional.cross_entropy


def is_large(settings: TrainSettings, data: Table | Arrays) -> bool:
    """Return whether a network is trained by minibatches alone.

    That is so for the networks of a user, where rows or columns are counted, and for networks with
    more than `LARGE_WORK` parameters times training samples.
    """
    if settings.model is not None or (settings.hidden and settings.counts_units):
        return True
    if not settings.hidden:
        return False
    n_train = data.n_train
    if n_train is None:
        n_train = round((1 - settings.test_size) * data.n_samples)  # type: ignore[union-attr]
    sides = [data.n_features, *settings.hidden, max(1, len(data.class_names or ()))]
    n_parameters = sum((a + 1) * b for a, b in itertools.pairwise(sides))
    return n_parameters * n_train > LARGE_WORK


def build_large(
    settings: TrainSettings, data: Table | Arrays, device: torch.device
) -> LargeExperiment:
    """Return the samples on the device and the network at its start.

    Raises
    ------
    InvalidParameterError
        If a setting has no meaning here, or the network cannot be built or cannot take the data.
    """
    if settings.time_limit is not None:
        raise InvalidParameterError(
            f"`time_limit` has no meaning for a large network, got {settings.time_limit:g}.",
            "Give fewer `--epochs`.",
        )
    settings = with_network_defaults(
        settings, NETWORK_EPOCHS_LARGE, NETWORK_BATCH_LARGE, RIDGE_LARGE
    )
    settings = replace(settings, starts=0)
    arrays, mean, scale = _standardized(settings, data)
    sample_shape = arrays.sample_shape
    if settings.hidden:
        arrays = replace(
            arrays, X_train=arrays.X_train.flatten(1), X_test=arrays.X_test.flatten(1)
        )
        mean, scale = (t.flatten() if t.ndim else t for t in (mean, scale))
    n_outputs = max(1, len(arrays.class_names or ()))
    with seeded(settings.seed, device):
        if settings.model is not None:
            network = build_module(settings.model, arrays.n_features, n_outputs)
        else:
            network = make_layers(settings, arrays.n_features, n_outputs)
    network = network.to(device)
    floating = [p.dtype for p in network.parameters() if p.is_floating_point()]
    dtype = floating[0] if floating else torch.float32
    y_dtype = dtype if arrays.task == "regression" else torch.int64
    samples = Samples(
        X_train=arrays.X_train.to(device),
        y_train=arrays.y_train.to(device, y_dtype),
        X_test=arrays.X_test.to(device),
        y_test=arrays.y_test.to(device, y_dtype),
        mean=mean.to(device, dtype),
        scale=scale.to(device, dtype),
        dtype=dtype,
    )
    experiment = LargeExperiment(arrays, samples, network, settings, sample_shape)
    _try(experiment, n_outputs)
    if experiment.n_parameters == 0:
        raise InvalidParameterError(
            "The network has no weight that the budget could count, only vectors.",
            "Weights of two axes or more are counted, such as those of `torch.nn.Linear`.",
        )
    if settings.polish is None:
        settings = replace(settings, polish=experiment.is_cheap)
        experiment = replace(experiment, settings=settings)
    n = experiment.largest_budget
    if n == 0:
        raise InvalidParameterError(
            f"The network has no {settings.unit} that the budget could count.",
            "Those of linear and convolutional layers are counted; the rows of the last one are "
            "outputs and stay.",
        )
    budgets = settings.n_nonzero
    if budgets is None and not settings.search:
        budgets = (NETWORK_DENSITY_LARGE,)
    if budgets is not None:
        unit = settings.structure or "entries"
        budgets = tuple(
            dict.fromkeys(
                to_count("n_nonzero", b, n, unit=unit, least=experiment.least_budget)
                for b in budgets
            )
        )
    return replace(experiment, settings=replace(settings, n_nonzero=budgets))


def _standardized(settings: TrainSettings, data: Table | Arrays) -> tuple[Arrays, Tensor, Tensor]:
    """Return arrays, and what is subtracted from a sample and what it is divided by."""
    zero, one = torch.zeros(()), torch.ones(())
    if isinstance(data, Table):
        parts = split(data, test_size=settings.test_size, seed=settings.seed)
        arrays = Arrays(
            name=data.name,
            X_train=parts.X_train,
            y_train=parts.y_train,
            X_test=parts.X_test,
            y_test=parts.y_test,
            task=data.task,
            class_names=data.class_names,
            messages=(*data.messages, *parts.messages),
            fingerprint=data.fingerprint,
        )
        return arrays, zero, one
    if ".py:" in settings.data:
        return data, zero, one
    X = data.X_train
    # Of images one number each; of columns, which differ in unit, one for each.
    alike = X.ndim > 2 or X.dtype is torch.uint8
    count = X.numel() if alike else len(X)
    total = torch.zeros((), dtype=torch.float64)
    for part in torch.split(X, 4096):
        total = total + (part.double().sum() if alike else part.double().sum(0))
    mean, squares = total / count, torch.zeros((), dtype=torch.float64)
    for part in torch.split(X, 4096):
        distance = (part.double() - mean).square()
        squares = squares + (distance.sum() if alike else distance.sum(0))
    scale = (squares / count).sqrt()
    return data, mean, torch.where(scale > 0, scale, torch.ones_like(scale))


def _try(experiment: LargeExperiment, n_outputs: int) -> None:
    """Raise where the network cannot take the data, before anything is trained."""
    network, samples = experiment.network, experiment.samples
    x = samples.inputs(samples.X_train[:TRIED])
    shape = "(" + ", ".join(map(str, ("n", *x.shape[1:]))) + ")"
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), seeded(0, x.device):
            out = network(x)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        text = (str(error).splitlines() or [""])[0].rstrip(". ")
        flat = " Begin with `torch.nn.Flatten()` for layers that take vectors." * (x.ndim > 2)
        raise InvalidParameterError(
            f"The network cannot take inputs of shape {shape}: {type(error).__name__}: {text}.",
            f"It is called with one tensor.{flat}",
        ) from error
    finally:
        network.train(was_training)
    wanted = f"(n, {n_outputs})"
    if not isinstance(out, Tensor) or tuple(out.shape) != (len(x), n_outputs):
        given = (
            "shape (" + ", ".join(map(str, ("n", *out.shape[1:]))) + ")"
            if isinstance(out, Tensor) and out.ndim
            else type(out).__name__
        )
        what = "one output for each class" if n_outputs > 1 else "one output"
        raise InvalidParameterError(
            f"The network must return a tensor of shape {wanted}, {what}, got {given}.",
            "Let `build` take (n_inputs, n_outputs) and end in a layer of `n_outputs`.",
        )


def solve_large(
    experiment: LargeExperiment,
    budget: int | None,
    dense: Outcome | None,
    *,
    checkpoint: Checkpoint | None,
    watch: Watch | None,
    stop: Callable[[], bool] | None,
    say: Callable[[str], None],
) -> Outcome:
    """Train, and certify what was trained; `budget` None is the dense reference.

    Raises
    ------
    KeyboardInterrupt
        If `stop` ended the training; the checkpoint holds where it was.
    """
    began = time.perf_counter()
    model = copy.deepcopy(experiment.network)
    samples, loss_fn = experiment.samples, experiment.loss_fn
    fitted: Fitted = fit(
        model,
        samples,
        loss_fn,
        experiment.settings,
        budget,
        checkpoint=checkpoint,
        watch=watch,
        stop=stop,
    )
    if not fitted.is_done:
        raise KeyboardInterrupt
    if experiment.settings.polish:
        say("polish")
        polish_large(
            experiment, model, experiment.largest_budget if budget is None else budget, stop
        )
    say("scores")
    counted = {n: p.detach() for n, p in prunable(model).items()}
    row: dict[str, Any] = {
        "n_nonzero": named.to_int(named.count_nonzero(counted)),
        "budget": budget,
        **score(experiment, model),
        "status": "converged",
    }
    certificate: dict[str, Any] = {}
    if budget is not None:
        say("certificate")
        found = certify_large(experiment, model, budget, None if dense is None else dense.state)
        certificate = found.to_dict()
        claim = found.claim
        row |= {
            "epsilon": None if dense is None else row["value"] - dense.row["value"],
            "status": "trained",
            "claim": None if claim is None else claim.name.lower(),
            "claim_sentence": None if claim is None else claim.sentence,
            "gap": found.gap,
            "lower_bound": found.lower_bound,
            "stable": found.supports(Claim.STATIONARY),
            "largest_stable_step": found.measures.get("largest_stable_step"),
            "selected": False,
        }
    row["seconds"] = time.perf_counter() - began
    state = {n: t.detach().cpu().clone() for n, t in model.state_dict().items()}
    params = {n: p.detach().cpu().clone() for n, p in model.named_parameters()}
    return Outcome(
        0 if budget is None else budget,
        params,
        row,
        certificate,
        state=state,
        curves=fitted.curves.to_dict(),
    )


def polish_large(
    experiment: LargeExperiment,
    model: nn.Module,
    budget: int,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Take a trained network to a stationary point of its loss on all training samples.

    Raises
    ------
    KeyboardInterrupt
        If `stop` ended it; a run that goes on begins it anew at the end of the training.
    """
    cut = False

    def asked(iteration: int) -> bool:
        nonlocal cut
        cut = cut or (stop is not None and stop())
        return cut

    settings = experiment.settings
    rounds, steps, pieces = POLISH_EFFORT if experiment.is_cheap else POLISH_EFFORT_COSTLY
    polish(
        model,
        experiment.loss_fn,
        experiment.samples.batches("train"),
        n_nonzero=budget,
        allocation=settings.allocation or "global",
        structure=settings.structure or "entries",
        ridge=settings.ridge or 0.0,
        stop=asked,
        rounds=rounds,
        steps=steps,
        pieces=pieces,
    )
    if cut:
        raise KeyboardInterrupt


def score(experiment: LargeExperiment, model: nn.Module) -> dict[str, float | None]:
    """Return the training loss with its ridge, and the accuracies."""
    value, train = evaluate(model, experiment.samples, "train", experiment.loss_fn)
    test = evaluate(model, experiment.samples, "test", experiment.loss_fn)[1]
    assert value is not None
    ridge = experiment.settings.ridge or 0.0
    if ridge:
        squares = named.norm_squared({n: p.detach() for n, p in model.named_parameters()})
        value += 0.5 * ridge * named.to_float(squares)
    return {"value": value, "accuracy_train": train, "accuracy_test": test}


def certified_rows(experiment: LargeExperiment) -> Tensor:
    """Return the training samples on which the certificate is computed, drawn by the seed."""
    n = experiment.samples.n_train
    if experiment.settings.polish:  # the point is one of the loss on all of them
        return torch.arange(n)
    wanted = min(n, CERTIFIED_SAMPLES)
    if experiment.settings.model is None:
        wanted = min(wanted, max(100, CERTIFIED_WORK // experiment.n_all))
    generator = torch.Generator().manual_seed(experiment.settings.seed)
    return torch.randperm(n, generator=generator)[:wanted].sort().values


def certify_large(
    experiment: LargeExperiment, model: nn.Module, budget: int, dense: Params | None
) -> Certificate:
    """Return what is proven of a network on a sample of its training data."""
    samples = experiment.samples
    rows = certified_rows(experiment).to(samples.X_train.device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.split(rows, 250):
            yield samples.batch(part)

    # The smoothness constant takes some hundred gradients: of the networks of a user, which may
    # cost more than their size says, and on all samples, stability is judged at the rate they were
    # trained with.
    costly = experiment.settings.model is not None or experiment.settings.polish
    step_size = experiment.settings.lr if costly else None
    found = certify(
        model,
        experiment.loss_fn,
        batches(),
        n_nonzero=budget,
        allocation=experiment.settings.allocation or "global",
        structure=experiment.settings.structure or "entries",
        dense=dense,
        ridge=experiment.settings.ridge or 0.0,
        step_size=step_size,
    )
    if len(rows) == samples.n_train:
        return found
    said = (
        f"The {len(rows):,} samples were drawn from the {samples.n_train:,} training samples: the "
        "certificate is about them."
    )
    return replace(found, assumptions=(*found.assumptions[:1], said, *found.assumptions[1:]))


def restored(experiment: LargeExperiment, state: Params) -> nn.Module:
    """Return the network with a state, in evaluation mode."""
    model = copy.deepcopy(experiment.network)
    model.load_state_dict(dict(state))
    return model.eval()


def close(a: float, b: float) -> bool:
    """Return whether two losses agree up to the rounding of another machine or thread count."""
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-7)
