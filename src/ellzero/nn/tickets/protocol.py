"""The experiment: every arm at every density for every seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict

from ellzero.errors import IncompatibleError, InvalidParameterError
from ellzero.nn.budgets import make_balls, to_count
from ellzero.nn.tickets import masks as marks
from ellzero.nn.tickets.arms import ARMS, DEFAULT_ARMS, Bench
from ellzero.nn.tickets.intervals import METHODS
from ellzero.nn.tickets.results import Overlap, Run, TicketResult
from ellzero.nn.tickets.storage import Folder, Part
from ellzero.nn.tickets.task import Seeds, Settings, Task
from ellzero.nn.tickets.training import build
from ellzero.validation import check_choice, check_integer, check_real

Progress = Callable[[str, int, int | None], object]


def run(
    task: Task,
    densities: Sequence[float],
    *,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    settings: Settings | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    method: str = "t",
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> TicketResult:
    """Ask whether sparse subnetworks train as well as the dense network, and what finds them.

    All arms of one seed share the start, the batches and their order, the optimizer with fresh
    state, and the number of steps; masks have exact counts and are applied to weights and
    gradients in every step. Nothing is stopped early or chosen by validation.

    Parameters
    ----------
    task : Task
        Network, data, loss, optimizer and judges.
    densities : sequence of float
        Shares of the prunable entries to keep, each in (0, 1). Those of the literature are powers
        of 0.8.
    arms : sequence of str or None, default=None
        Names in `ARMS`; None means `DEFAULT_ARMS`, and ``"small-dense"`` where the task can make
        it. Arms that others build on are added.
    seeds : sequence of int, default=(0, 1, 2, 3, 4)
        Different ones. Intervals need at least two.
    settings : Settings or None, default=None
        How masks are searched for.
    margin : float or None, default=None
        Loss of the metric that still counts as a ticket; None means the standard deviation of the
        dense network over the seeds.
    confidence : float, default=0.95
        Of all intervals.
    method : {"t", "bootstrap"}, default="t"
        Of all intervals; see `paired_interval`.
    folder : str, path or None, default=None
        Keeps every finished pair of arm and seed, so that an interrupted experiment goes on where
        it stopped when it is run again; more arms and seeds can be added later.
    progress : callable or None, default=None
        Called as ``progress(what, done, total)`` with the numbers of trainings. An exception that
        it raises stops the experiment.

    Returns
    -------
    TicketResult
        All runs, comparisons and the answer.

    Raises
    ------
    InvalidParameterError
        If a density, an arm or a seed is out of range, or the folder holds another experiment.
    IncompatibleError
        If `build` or `loader` give something else when they are called again with one seed.
    NonFiniteError
        If a training loss becomes NaN or infinite.

    Notes
    -----
    A search counts the optimizer steps spent before the network that is judged: T for each round
    of iterative pruning, T for one-shot pruning and for hard thresholding, whatever the density.
    Iterative pruning serves all densities by one chain of rounds, whose stops are those of
    `levels`. Biases and normalization are not pruned. The arm ``"imp-late"`` restarts with a fresh
    optimizer at the learning rate of the step that it is rewound to.

    References
    ----------
    .. [1] J. Frankle and M. Carbin, "The lottery ticket hypothesis", arXiv:1803.03635.
    .. [2] J. Frankle, G. K. Dziugaite, D. M. Roy and M. Carbin, "Stabilizing the lottery ticket
       hypothesis", arXiv:1903.01611 (late rewinding).
    .. [3] S. Damadi, "On the compression of natural language models", arXiv:2112.11480 (the
       question).

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import tickets
    >>> x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] * x[:, 1] > 0).long()
    >>> task = tickets.Task(
    ...     build=lambda: torch.nn.Sequential(
    ...         torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    ...     ),
    ...     loader=tickets.Shuffled(x, y, 20),
    ...     criterion=torch.nn.functional.cross_entropy,
    ...     test=tickets.Accuracy(x, y),
    ...     n_steps=30,
    ... )
    >>> found = tickets.run(task, [0.64, 0.512], arms=["imp", "iht"], seeds=[0, 1], margin=0.1)
    >>> found.n_entries, found.counts, found.search_steps("imp", 0.512)
    (64, (40, 32), 90)
    >>> {run.n_nonzero for run in found.select("iht", 0.512)}
    {32}
    """
    settings = Settings() if settings is None else settings
    falling = _check_densities(densities)
    wanted = _check_arms(arms, task)
    known = _check_seeds(seeds)
    check_choice("method", method, METHODS)
    check_real("confidence", confidence, 0.0, 1.0, open_low=True)
    if margin is not None:
        check_real("margin", margin, 0.0)
    sample = build(task.build, Seeds(known[0]).number("start"))
    (ball,) = make_balls(sample, 1.0, names=task.names)
    names = ball.names or ()
    params = dict(sample.named_parameters())
    sizes = {n: params[n].numel() for n in names}
    n_entries = sum(sizes.values())
    counts = _to_counts(falling, n_entries)
    store = Folder(
        folder,
        {
            "densities": list(falling),
            "sizes": sizes,
            "n_steps": task.n_steps,
            "every": task.every,
            "maximize": task.maximize,
            **{f"settings.{k}": v for k, v in asdict(settings).items()},
        },
    )
    n_rounds = len(marks.levels(n_entries, counts, settings.pruned))
    costs = {a: ARMS[a].trainings(len(counts), n_rounds, settings.draws) for a in wanted}
    total, done = len(known) * sum(costs.values()), 0
    tell = progress or (lambda what, done, total: None)
    runs: list[Run] = []
    overlaps: list[Overlap] = []
    for seed in known:
        bench = Bench(
            task, settings, falling, counts, names, Seeds(seed), {}, lambda: None
        )  # fmt: skip
        for arm in wanted:
            what, before = f"{arm}, seed {seed}", done
            tell(what, done, total)
            part = store.read(arm, seed)
            if part is None:
                spent = 0

                def trained(what: str = what, before: int = before) -> None:
                    nonlocal spent
                    spent += 1
                    tell(what, before + spent, total)

                bench.trained = trained
                part = ARMS[arm].work(bench, arm)
                store.write(arm, seed, part)
            else:
                _check_part(part, bench, arm)
            bench.parts[arm] = part
            done = before + costs[arm]
            runs += [r for r in part.runs if r.arm == arm]
        if {"imp", "iht"} <= set(wanted):
            pairs = zip(falling, bench.masks("imp"), bench.masks("iht"), strict=True)
            overlaps += [Overlap(seed, d, *marks.overlap(a, b)) for d, a, b in pairs]
    tell("done", total, total)
    n_free = sum(p.numel() for p in params.values()) - n_entries
    return TicketResult(
        falling, counts, known, wanted, sizes, n_free, task.n_steps, task.maximize,
        margin, confidence, method, tuple(runs), tuple(overlaps),
    )  # fmt: skip


def _check_part(part: Part, bench: Bench, arm: str) -> None:
    """Raise unless a part from the folder has the batches and the start of the others."""
    if arm == "dense":
        bench.fresh()
    for found in part.runs:
        if bench.order is None:
            bench.order = found.order
        wrong = "other batches" if found.order != bench.order else ""
        if arm == "dense" and found.start != bench.start:
            wrong = "another start"
        if wrong:
            raise IncompatibleError(
                f"`folder` holds runs of arm '{arm}' with {wrong}.",
                "Give the network and the loader that the folder was made with, or another "
                "folder.",
            )


def _check_densities(densities: Sequence[float]) -> tuple[float, ...]:
    hint = "Give shares of the weights to keep, such as [0.168, 0.044]."
    if isinstance(densities, (str, int, float)) or not len(densities):
        raise InvalidParameterError(
            f"`densities` must hold at least one density, got {densities!r}.", hint
        )
    for density in densities:
        check_real("densities", density, 0.0, 1.0, open_low=True, hint=hint)
        if not 0 < density < 1:
            raise InvalidParameterError(
                f"`densities` must lie between 0 and 1, both excluded, got {density:g}.", hint
            )
    return tuple(sorted({float(d) for d in densities}, reverse=True))


def _to_counts(densities: Sequence[float], n_entries: int) -> tuple[int, ...]:
    counts = tuple(to_count("densities", d, n_entries) for d in densities)
    if len(set(counts)) < len(counts):
        raise InvalidParameterError(
            f"`densities` must mean different counts of the {n_entries} entries, got {counts}.",
            "Leave densities out that lie closer than one entry.",
        )
    return counts


def _check_arms(arms: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    """Return the arms with those that they build on, in the order of `ARMS`."""
    if arms is None:
        arms = (*DEFAULT_ARMS, "small-dense") if task.small is not None else DEFAULT_ARMS
    if isinstance(arms, str) or not len(arms):
        raise InvalidParameterError(
            f"`arms` must be a list of names, got {arms!r}.", f"Arms: {', '.join(ARMS)}."
        )
    found = {"dense"}
    todo = [check_choice("arms", a, ARMS) for a in arms]
    while todo:
        arm = todo.pop()
        found.add(arm)
        todo += ARMS[arm].needs
    if "small-dense" in found and task.small is None:
        raise InvalidParameterError(
            "The arm 'small-dense' needs `Task.small`, got None.",
            "Give a callable that makes a dense network with at most so many weights.",
        )
    return tuple(a for a in ARMS if a in found)


def _check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) or not len(seeds):
        raise InvalidParameterError(
            f"`seeds` must hold at least one seed, got {seeds!r}.", "Give a list such as [0, 1]."
        )
    found = tuple(check_integer("seeds", s, 0) for s in seeds)
    if len(set(found)) < len(found):
        raise InvalidParameterError(
            f"`seeds` must be different, got {list(found)}.", "Equal seeds give equal runs."
        )
    return found
