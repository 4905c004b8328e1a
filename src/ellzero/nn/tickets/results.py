"""What the experiment found, as plain values, and what follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ellzero.errors import InvalidParameterError
from ellzero.nn.tickets.intervals import holm, paired_interval
from ellzero.validation import check_choice, check_real


@dataclass(frozen=True, slots=True)
class Run:
    """One network at the end of its training.

    Parameters
    ----------
    arm : str
        A name in `ARMS`.
    seed : int
        Seed of start and batches.
    draw : int
        Which of several new starts; 0 where there is one.
    density : float
        Share of the prunable entries that was asked for; 1 for the dense network.
    n_nonzero : int
        Entries of the mask: the count asked for, to the unit, but for small dense networks, which
        have at most so many.
    counts : mapping of str to int
        Entries of the mask in each tensor.
    value : float
        Test metric.
    loss : float
        Mean training loss over the last steps.
    best_step : int or None
        Step of the best validation.
    best_value : float or None
        Validation metric there.
    n_steps : int
        Optimizer steps from the start to this network.
    search_steps : int
        Optimizer steps spent to find mask and start.
    start : int
        Checksum of the start of the network, before the mask.
    order : int
        Checksum of the batches.
    """

    arm: str
    seed: int
    draw: int
    density: float
    n_nonzero: int
    counts: Mapping[str, int]
    value: float
    loss: float
    best_step: int | None
    best_value: float | None
    n_steps: int
    search_steps: int
    start: int
    order: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Overlap:
    """How far the masks of iterative pruning and of hard thresholding agree.

    Parameters
    ----------
    seed : int
        The seed.
    density : float
        The density.
    jaccard : float
        Entries in both masks over entries in either.
    chance : float
        The same for random masks with these counts.
    chance_in_layers : float
        The same for random masks with these counts in every tensor.
    """

    seed: int
    density: float
    jaccard: float
    chance: float
    chance_in_layers: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One arm against another at one density, seed by seed; above zero the arm is better.

    Parameters
    ----------
    arm, baseline : str
        The arms.
    density : float
        The density.
    mean, low, high : float
        Mean difference of the metric, turned so that positive is better, and its interval.
    p_value : float
        Of the one-sided test that the arm is not better.
    p_corrected : float
        The same after Holm's correction over the densities.
    n_pairs : int
        Number of seeds.
    """

    arm: str
    baseline: str
    density: float
    mean: float
    low: float
    high: float
    p_value: float
    p_corrected: float
    n_pairs: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether one arm finds tickets where another does, and at what cost.

    Parameters
    ----------
    finder, reference : str
        The arms.
    margin : float
        Loss of the metric that is allowed.
    densities : tuple of float
        The densities.
    finds, reference_finds : tuple of bool
        Whether each arm found a ticket: the interval of its difference to the dense network lies
        above minus the margin.
    as_good : tuple of bool
        Whether the interval of the difference between the two lies above minus the margin.
    cost_ratio : tuple of float
        Steps of the reference's search over those of the finder's.
    """

    finder: str
    reference: str
    margin: float
    densities: tuple[float, ...]
    finds: tuple[bool, ...]
    reference_finds: tuple[bool, ...]
    as_good: tuple[bool, ...]
    cost_ratio: tuple[float, ...]

    @property
    def yes(self) -> bool:
        """Whether the reference found a ticket somewhere, and the finder wherever it did."""
        pairs = list(zip(self.finds, self.reference_finds, strict=True))
        return any(r for _, r in pairs) and all(f for f, r in pairs if r)

    @property
    def sentence(self) -> str:
        """The answer in words; undecided where the reference found no ticket either."""

        def listed(found: tuple[bool, ...]) -> str:
            at = [f"{100 * d:.3g} %" for d, f in zip(self.densities, found, strict=True) if f]
            return ", ".join(at) if at else "no density"

        word = "Yes" if self.yes else "No" if any(self.reference_finds) else "Undecided"
        ratio = max(self.cost_ratio)
        return (
            f"{word} by the margin of {self.margin:.4g}: {self.finder} finds tickets at "
            f"{listed(self.finds)}, {self.reference} at {listed(self.reference_finds)}; "
            f"{self.finder} is as good as {self.reference} at {listed(self.as_good)}, for down to "
            f"1/{ratio:.3g} of the steps"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the answer as plain values."""
        return asdict(self) | {"yes": self.yes, "sentence": self.sentence}


@dataclass(frozen=True, slots=True)
class TicketResult:
    """All runs of an experiment, and the questions that it answers.

    Parameters
    ----------
    densities : tuple of float
        Densities asked for, falling.
    counts : tuple of int
        The entries that they mean.
    seeds : tuple of int
        The seeds.
    arms : tuple of str
        The arms, those added because others build on them included.
    sizes : mapping of str to int
        Entries of each prunable tensor.
    n_free : int
        Parameters that are not pruned.
    n_steps : int
        Steps of a training.
    maximize : bool
        Whether larger metrics are better.
    margin : float or None
        Loss of the metric that was allowed beforehand; None means the standard deviation of the
        dense network over the seeds.
    confidence : float
        Of all intervals.
    method : {"t", "bootstrap"}
        Of all intervals.
    runs : tuple of Run
        The networks.
    overlaps : tuple of Overlap
        Of the masks of ``"imp"`` and ``"iht"`` where both were run.
    """

    densities: tuple[float, ...]
    counts: tuple[int, ...]
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    sizes: Mapping[str, int]
    n_free: int
    n_steps: int
    maximize: bool
    margin: float | None
    confidence: float
    method: str
    runs: tuple[Run, ...]
    overlaps: tuple[Overlap, ...]

    @property
    def n_entries(self) -> int:
        """Entries that may be pruned."""
        return sum(self.sizes.values())

    def select(self, arm: str, density: float | None = None) -> list[Run]:
        """Return the runs of an arm, at one density or at all.

        Raises
        ------
        InvalidParameterError
            If the arm or the density was not run.
        """
        check_choice("arm", arm, self.arms)
        if density is None or arm == "dense":
            return [r for r in self.runs if r.arm == arm]
        if density not in self.densities:
            known = ", ".join(f"{d:g}" for d in self.densities)
            raise InvalidParameterError(f"`density` must be one of {known}, got {density!r}.")
        return [r for r in self.runs if r.arm == arm and r.density == density]

    def values(self, arm: str, density: float | None = None) -> list[float]:
        """Return the test metric of an arm for each seed; several draws are averaged."""
        found = self.select(arm, density)
        return [statistics.fmean(r.value for r in found if r.seed == s) for s in self.seeds]

    def allowed(self, margin: float | None = None) -> float:
        """Return the margin: the one given, that of the experiment, or the dense deviation."""
        if margin is not None:
            return check_real("margin", margin, 0.0)
        if self.margin is not None:
            return self.margin
        values = self.values("dense")
        if len(values) < 2:
            raise InvalidParameterError(
                "The margin is the deviation of the dense network over seeds, got 1 seed.",
                "Give `margin`, or run with more seeds.",
            )
        return statistics.stdev(values)

    def compare(self, arm: str, baseline: str = "dense") -> list[Comparison]:
        """Compare two arms at every density, seed by seed.

        Parameters
        ----------
        arm, baseline : str
            Arms that were run.

        Returns
        -------
        list of Comparison
            One for each density; p-values are corrected over them.

        Raises
        ------
        InvalidParameterError
            If there is one seed only, or an arm was not run.
        """
        sign = 1.0 if self.maximize else -1.0
        found = [
            paired_interval(
                [sign * v for v in self.values(arm, d)],
                [sign * v for v in self.values(baseline, d)],
                confidence=self.confidence,
                method=self.method,
            )
            for d in self.densities
        ]
        corrected = holm([f.p_value for f in found])
        return [
            Comparison(arm, baseline, d, f.mean, f.low, f.high, f.p_value, p, f.n_pairs)
            for d, f, p in zip(self.densities, found, corrected, strict=True)
        ]

    def finds(self, arm: str, margin: float | None = None) -> tuple[bool, ...]:
        """Return, for each density, whether an arm found a ticket by the margin."""
        allowed = self.allowed(margin)
        return tuple(c.low >= -allowed for c in self.compare(arm))

    def search_steps(self, arm: str, density: float) -> int:
        """Return the steps that an arm spent for the mask of one density."""
        return self.select(arm, density)[0].search_steps

    def answer(
        self, finder: str = "iht", reference: str = "imp", margin: float | None = None
    ) -> Answer:
        """Say whether one arm finds tickets where another does, by a margin.

        Parameters
        ----------
        finder, reference : str
            Arms that were run; by default hard thresholding with a falling budget, and iterative
            magnitude pruning.
        margin : float or None, default=None
            Loss of the metric that is allowed; None means `allowed`.

        Returns
        -------
        Answer
            Density by density, and as a whole.

        Notes
        -----
        A ticket that is found proves that one exists at this density, margin and number of steps;
        one that is not found proves nothing. An interval that is wide for lack of seeds says no.
        """
        allowed = self.allowed(margin)
        pairs = [
            (self.search_steps(reference, d), self.search_steps(finder, d)) for d in self.densities
        ]
        return Answer(
            finder,
            reference,
            allowed,
            self.densities,
            self.finds(finder, allowed),
            self.finds(reference, allowed),
            tuple(c.low >= -allowed for c in self.compare(finder, reference)),
            tuple(a / b if b else math.inf for a, b in pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, answers included where there are several seeds."""
        out: dict[str, Any] = asdict(self)
        if len(self.seeds) > 1:
            out["comparisons"] = [
                c.to_dict() for arm in self.arms if arm != "dense" for c in self.compare(arm)
            ]
            if {"iht", "imp"} <= set(self.arms):
                out["answer"] = self.answer().to_dict()
        return out
