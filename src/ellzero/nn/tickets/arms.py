"""The arms: where a mask comes from, and what the network starts with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn import schedules
from ellzero.nn.budgets import prunable
from ellzero.nn.optimizer import HardThresholding
from ellzero.nn.tickets import masks as marks
from ellzero.nn.tickets.results import Run
from ellzero.nn.tickets.storage import Part
from ellzero.nn.tickets.task import Seeds, Settings, Task
from ellzero.nn.tickets.training import Course, Wrap, build, checksum, train
from ellzero.typing import Masks, Params


@dataclass(slots=True)
class Bench:
    """One seed of an experiment: what all arms share, and the parts that are done.

    Parameters
    ----------
    task : Task
        Network, data, judges.
    settings : Settings
        How masks are searched for.
    densities : tuple of float
        Falling.
    counts : tuple of int
        What they mean.
    names : tuple of str
        Prunable tensors.
    seeds : Seeds
        The seed.
    parts : dict of str to Part
        Finished arms.
    trained : callable
        Called after every training.
    order, start : int or None
        Checksums of the batches and of the start, once known.
    """

    task: Task
    settings: Settings
    densities: tuple[float, ...]
    counts: tuple[int, ...]
    names: tuple[str, ...]
    seeds: Seeds
    parts: dict[str, Part]
    trained: Callable[[], object]
    order: int | None = None
    start: int | None = None

    def fresh(self) -> nn.Module:
        """Return the network at the start of this seed."""
        model = build(self.task.build, self.seeds.number("start"))
        found = checksum(model.state_dict())
        if self.start is None:
            self.start = found
        elif found != self.start:
            raise IncompatibleError(
                f"`build` gave another start when it was called again with seed "
                f"{self.seeds.seed}.",
                "Draw every random number in it from torch's own generator.",
            )
        return model

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return copies of the prunable tensors."""
        params = dict(model.named_parameters())
        return {n: params[n].detach().clone() for n in self.names}

    def put(self, model: nn.Module, values: Params) -> nn.Module:
        """Write prunable tensors into a network."""
        params = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in values.items():
                params[name].copy_(value)
        return model

    def train(
        self,
        model: nn.Module,
        masks: Masks | None = None,
        *,
        first: int = 0,
        n_steps: int | None = None,
        early: int | None = None,
        wrap: Wrap | None = None,
    ) -> tuple[Course, int]:
        """Train, check that the batches were those of the other arms, and return the start."""
        start = checksum(model.state_dict())
        course = train(
            model,
            self.task,
            self.seeds,
            masks=masks,
            first=first,
            n_steps=n_steps,
            early=early,
            wrap=wrap,
        )
        if self.order is None:
            self.order = course.order
        elif course.order != self.order:
            raise IncompatibleError(
                f"`loader` gave other batches when it was gone through again with seed "
                f"{self.seeds.seed}.",
                "Let its order depend on torch's generator or its own alone, as "
                "`tickets.Shuffled` does.",
            )
        self.trained()
        return course, start

    def record(
        self,
        arm: str,
        place: int,
        counts: Mapping[str, int],
        course: Course,
        start: int,
        *,
        search_steps: int,
        draw: int = 0,
        n_steps: int | None = None,
    ) -> Run:
        """Return a run of one density; -1 stands for the dense network."""
        return Run(
            arm=arm,
            seed=self.seeds.seed,
            draw=draw,
            density=self.densities[place] if place >= 0 else 1.0,
            n_nonzero=sum(counts.values()),
            counts=dict(counts),
            value=course.value,
            loss=course.loss,
            best_step=course.best_step,
            best_value=course.best_value,
            n_steps=self.task.n_steps if n_steps is None else n_steps,
            search_steps=search_steps,
            start=start,
            order=course.order,
        )

    def chain(self) -> list[int]:
        """Return the survivors after each round of iterative pruning."""
        n = sum(p.numel() for p in self.parts["dense"].group("final").values())
        return marks.levels(n, self.counts, self.settings.pruned)

    def masks(self, arm: str) -> list[dict[str, Tensor]]:
        """Return the masks that an arm found, one for each density."""
        part = self.parts[arm]
        return [part.group(f"mask{i}") for i in range(len(self.counts))]


Work = Callable[[Bench, str], Part]


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of the experiment.

    Parameters
    ----------
    title : str
        Where the mask comes from, and what the network starts with.
    needs : tuple of str
        Arms that it builds on.
    work : callable
        Makes the part of one seed.
    trainings : callable
        Number of trainings from the numbers of densities, rounds and draws.
    """

    title: str
    needs: tuple[str, ...]
    work: Work
    trainings: Callable[[int, int, int], int]


def _count(masks: Masks) -> dict[str, int]:
    return {n: int(m.sum()) for n, m in masks.items()}


def _named(place: int, masks: Masks) -> dict[str, Tensor]:
    return {f"mask{place}/{n}": m for n, m in masks.items()}


def _dense(bench: Bench, arm: str) -> Part:
    model = bench.fresh()
    sizes = {n: p.numel() for n, p in bench.weights(model).items()}
    early = int(bench.settings.rewind * bench.task.n_steps)
    course, start = bench.train(model, early=early)
    run = bench.record(arm, -1, sizes, course, start, search_steps=0)
    tensors = {f"final/{n}": t for n, t in bench.weights(model).items()}
    assert course.early is not None
    tensors |= {f"early/{n}": t for n, t in course.early.items()}
    return Part((run,), tensors)


def _iterative(bench: Bench, arm: str) -> Part:
    """Train, prune, rewind, round by round; every round at a density asked for is a ticket."""
    total = bench.task.n_steps
    first = int(bench.settings.rewind * total) if arm == "imp-late" else 0
    final: Params = bench.parts["dense"].group("final")
    early = bench.parts["dense"].group("early")
    masks: dict[str, Tensor] | None = None
    runs: list[Run] = []
    tensors: dict[str, Tensor] = {}
    search = total
    for count in bench.chain():
        masks = marks.largest(final, count, masks)
        model = bench.fresh()
        if first:
            model.load_state_dict(early)
        course, start = bench.train(model, masks, first=first)
        if count in bench.counts:
            place = bench.counts.index(count)
            runs.append(
                bench.record(arm, place, _count(masks), course, start, search_steps=search)
            )
            tensors |= _named(place, masks)
        search += total - first
        final = bench.weights(model)
    return Part(tuple(runs), tensors)


def _fixed(
    bench: Bench,
    arm: str,
    find: Callable[[int], Masks],
    search: Callable[[int], int],
    model: Callable[[Masks], nn.Module],
    *,
    keep: bool = True,
) -> Part:
    """Train one mask for each density from a start that may depend on it."""
    runs: list[Run] = []
    tensors: dict[str, Tensor] = {}
    for place in range(len(bench.counts)):
        masks = find(place)
        course, start = bench.train(model(masks), masks)
        runs.append(
            bench.record(arm, place, _count(masks), course, start, search_steps=search(place))
        )
        tensors |= _named(place, masks) if keep else {}
    return Part(tuple(runs), tensors)


def _one_shot(bench: Bench, arm: str) -> Part:
    final = bench.parts["dense"].group("final")
    return _fixed(
        bench,
        arm,
        lambda i: marks.largest(final, bench.counts[i]),
        lambda i: bench.task.n_steps,
        lambda m: bench.fresh(),
    )


def _magnitude(bench: Bench, arm: str) -> Part:
    start = bench.weights(bench.fresh())
    return _fixed(
        bench,
        arm,
        lambda i: marks.largest(start, bench.counts[i]),
        lambda i: 0,
        lambda m: bench.fresh(),
    )


def _random(bench: Bench, arm: str) -> Part:
    weights = bench.weights(bench.fresh())
    shapes = {n: w.shape for n, w in weights.items()}

    def draw(place: int) -> Masks:
        found = marks.random_masks(
            shapes, bench.counts[place], bench.seeds.generator("random", place)
        )
        return {n: m.to(weights[n].device) for n, m in found.items()}

    return _fixed(bench, arm, draw, lambda i: 0, lambda m: bench.fresh())


def _search_of(bench: Bench, arm: str) -> Callable[[int], int]:
    found = {r.density: r.search_steps for r in bench.parts[arm].runs if r.arm == arm}
    return lambda place: found[bench.densities[place]]


def _random_layers(bench: Bench, arm: str) -> Part:
    source = bench.masks("imp")
    return _fixed(
        bench,
        arm,
        lambda i: marks.shuffle_layers(source[i], bench.seeds.generator("layers", i)),
        _search_of(bench, "imp"),
        lambda m: bench.fresh(),
    )


def _shuffled(bench: Bench, arm: str) -> Part:
    source = bench.masks("imp")

    def start(masks: Masks) -> nn.Module:
        model = bench.fresh()
        generator = bench.seeds.generator("shuffled", sum(_count(masks).values()))
        return bench.put(model, marks.shuffle_values(bench.weights(model), masks, generator))

    search = _search_of(bench, "imp")
    return _fixed(bench, arm, lambda i: source[i], search, start, keep=False)


def _signs(bench: Bench, arm: str) -> Part:
    source = bench.masks("imp")

    def start(masks: Masks) -> nn.Module:
        model = bench.fresh()
        return bench.put(model, marks.signs(bench.weights(model), masks))

    search = _search_of(bench, "imp")
    return _fixed(bench, arm, lambda i: source[i], search, start, keep=False)


def _again(bench: Bench, arm: str) -> Part:
    """Train the masks of another arm from new starts of the same law."""
    source = arm.removesuffix("-reinit")
    search = _search_of(bench, source)
    runs = []
    for place, masks in enumerate(bench.masks(source)):
        for draw in range(bench.settings.draws):
            model = build(bench.task.build, bench.seeds.number("reinit", draw))
            course, start = bench.train(model, masks)
            runs.append(
                bench.record(
                    arm, place, _count(masks), course, start,
                    search_steps=search(place), draw=draw,
                )
            )  # fmt: skip
    return Part(tuple(runs))


def _thresholded(bench: Bench, arm: str) -> Part:
    """Take the support of a training under a budget, then train it from the start."""
    settings, task = bench.settings, bench.task
    chain = bench.chain()
    runs: list[Run] = []
    tensors: dict[str, Tensor] = {}
    for place, count in enumerate(bench.counts):
        rounds = chain.index(count) + 1 if arm == "iht-long" and count in chain else 1
        total = rounds * task.n_steps
        ramp = schedules.ramp(0.0, settings.ramp, total)

        def wrap(
            inner: torch.optim.Optimizer,
            model: nn.Module,
            count: int = count,
            ramp: schedules.Ramp = ramp,
        ) -> HardThresholding:
            return HardThresholding(
                inner,
                model,
                n_nonzero=count,
                schedule=None if arm == "iht-constant" else ramp,
                recipe="lazy" if arm == "lazy" else settings.recipe,
                every=settings.every,
                names=list(bench.names),
                floor=settings.floor,
            )

        found, start = bench.train(bench.fresh(), wrap=wrap, n_steps=total)
        assert found.masks is not None
        masks, counts = found.masks, _count(found.masks)
        if arm in FINAL:
            runs.append(bench.record(FINAL[arm], place, counts, found, start, search_steps=0))
        course, start = bench.train(bench.fresh(), masks)
        runs.append(bench.record(arm, place, counts, course, start, search_steps=total))
        tensors |= _named(place, masks)
    return Part(tuple(runs), tensors)


# The networks that a search under a budget ends with, reported as arms of their own.
FINAL = {"iht": "iht-final", "lazy": "lazy-final"}


def _final(bench: Bench, arm: str) -> Part:
    source = next(s for s, name in FINAL.items() if name == arm)
    return Part(tuple(r for r in bench.parts[source].runs if r.arm == arm))


def _small(bench: Bench, arm: str) -> Part:
    make = bench.task.small
    assert make is not None
    runs = []
    for place, most in enumerate(bench.counts):
        model = build(lambda most=most: make(most), bench.seeds.number("small"))  # type: ignore[misc]
        counts = {n: p.numel() for n, p in prunable(model).items()}
        if sum(counts.values()) > most:
            raise InvalidParameterError(
                f"`small` must return a network with at most {most} prunable weights, got one "
                f"with {sum(counts.values())}.",
                "Round its widths down.",
            )
        course, start = bench.train(model)
        runs.append(bench.record(arm, place, counts, course, start, search_steps=0))
    return Part(tuple(runs))


def _each(n_densities: int, n_rounds: int, n_draws: int) -> int:
    return n_densities


def _rounds(n_densities: int, n_rounds: int, n_draws: int) -> int:
    return n_rounds


def _drawn(n_densities: int, n_rounds: int, n_draws: int) -> int:
    return n_densities * n_draws


def _twice(n_densities: int, n_rounds: int, n_draws: int) -> int:
    return 2 * n_densities


ARMS: dict[str, Arm] = {
    "dense": Arm("the dense network", (), _dense, lambda d, r, k: 1),
    "imp": Arm(
        "iterative magnitude pruning, rewound to the start", ("dense",), _iterative, _rounds
    ),
    "imp-late": Arm(
        "iterative magnitude pruning, rewound to an early step", ("dense",), _iterative, _rounds
    ),
    "one-shot": Arm("largest weights of the trained dense network", ("dense",), _one_shot, _each),
    "iht": Arm(
        "support of hard thresholding with a falling budget", ("dense",), _thresholded, _twice
    ),
    "iht-constant": Arm(
        "support of hard thresholding with a constant budget", ("dense",), _thresholded, _twice
    ),
    "iht-long": Arm(
        "support of hard thresholding with as many steps as iterative pruning", ("dense",),
        _thresholded, _twice,
    ),
    "lazy": Arm(
        "support of the lazy recipe with a falling budget", ("dense",), _thresholded, _twice
    ),
    "iht-final": Arm(
        "hard thresholding with a falling budget, its own weights", ("iht",), _final,
        lambda d, r, k: 0,
    ),
    "lazy-final": Arm(
        "the lazy recipe with a falling budget, its own weights", ("lazy",), _final,
        lambda d, r, k: 0,
    ),
    "imp-reinit": Arm("mask of imp, new start", ("imp",), _again, _drawn),
    "iht-reinit": Arm("mask of iht, new start", ("iht",), _again, _drawn),
    "imp-shuffled": Arm(
        "mask of imp, start permuted among the survivors of each layer", ("imp",), _shuffled, _each
    ),
    "imp-signs": Arm(
        "mask of imp, signs of the start times one number for each layer", ("imp",), _signs, _each
    ),
    "random-layers": Arm(
        "random mask with the layer counts of imp", ("imp",), _random_layers, _each
    ),
    "random": Arm("random mask over all layers", ("dense",), _random, _each),
    "magnitude": Arm("largest weights of the start", ("dense",), _magnitude, _each),
    "small-dense": Arm(
        "a dense network with at most as many weights", ("dense",), _small, _each
    ),
}  # fmt: skip
"""All arms, in the order in which they are run."""

DEFAULT_ARMS = tuple(n for n in ARMS if n not in ("iht-long", "small-dense"))
"""All arms but the dearest one and the one that needs `Task.small`."""
