"""How the budget falls during training, and when the support is frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from typing_extensions import override

from ellzero.errors import InvalidParameterError
from ellzero.validation import check_choice, check_integer, check_real

SHAPES = ("cubic", "exponential")


class AbstractSchedule(ABC):
    """Budget in force at every step."""

    @abstractmethod
    def budget(self, step: int, n_nonzero: int, n_entries: int) -> int:
        """Return the budget after `step` optimizer steps.

        Parameters
        ----------
        step : int
            Optimizer steps done; 0 before the first.
        n_nonzero : int
            The final budget.
        n_entries : int
            Entries that the budget is about.

        Returns
        -------
        int
            Between `n_nonzero` and `n_entries`.
        """

    @abstractmethod
    def is_frozen(self, step: int) -> bool:
        """Return whether the support stays as it is from here on."""

    @abstractmethod
    def is_final(self, step: int) -> bool:
        """Return whether the final budget is in force."""


@dataclass(frozen=True, slots=True)
class Constant(AbstractSchedule):
    """The final budget from the first step on.

    Examples
    --------
    >>> from ellzero.nn import schedules
    >>> schedules.constant().budget(0, 10, 100)
    10
    """

    @override
    def budget(self, step: int, n_nonzero: int, n_entries: int) -> int:
        return n_nonzero

    @override
    def is_frozen(self, step: int) -> bool:
        return False

    @override
    def is_final(self, step: int) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Ramp(AbstractSchedule):
    r"""Fall of the budget from all entries to the final number.

    .. math:: s_t = s + (n - s) (1 - u)^3 \;\text{or}\; s_t = n^{1 - u} s^u, \quad
        u = \frac{t / T - \mathrm{start}}{\mathrm{end} - \mathrm{start}}

    by `shape`: the cubic fall is steep at first, the exponential one loses the same share of the
    entries in every step.

    Parameters
    ----------
    start, end : float
        Shares of the training between which the budget falls. Must satisfy 0 <= start < end <= 1.
    total_steps : int
        Optimizer steps T of the whole training.
    freeze : float, default=1.0
        Share of the training after which the support stays as it is. Must be at least `end`.
    shape : {"cubic", "exponential"}, default="cubic"
        How the budget falls.

    Raises
    ------
    InvalidParameterError
        If the shares are out of order, or the shape is unknown.

    Notes
    -----
    Measured on a perceptron, a small residual network and a small transformer
    (``benchmarks/sparse_training.py``): a fall over the first three quarters was at least as good
    as one over the first half; the exponential fall brought nothing.

    Examples
    --------
    >>> from ellzero.nn import schedules
    >>> ramp = schedules.ramp(start=0.0, end=0.5, total_steps=100)
    >>> [ramp.budget(t, 10, 110) for t in (0, 25, 50, 99)]
    [110, 22, 10, 10]
    >>> ramp = schedules.ramp(start=0.0, end=0.5, total_steps=100, shape="exponential")
    >>> [ramp.budget(t, 10, 1000) for t in (0, 25, 50, 99)]
    [1000, 100, 10, 10]
    """

    start: float
    end: float
    total_steps: int
    freeze: float = 1.0
    shape: str = "cubic"

    def __post_init__(self) -> None:
        check_real("start", self.start, 0.0, 1.0)
        check_real("end", self.end, 0.0, 1.0)
        check_real("freeze", self.freeze, 0.0, 1.0)
        check_integer("total_steps", self.total_steps, 1)
        check_choice("shape", self.shape, SHAPES)
        if not self.start < self.end:
            raise InvalidParameterError(
                f"`start` must be below `end`, got {self.start:g} and {self.end:g}.",
                "Both are shares of the training, such as 0.0 and 0.5.",
            )
        if self.freeze < self.end:
            raise InvalidParameterError(
                f"`freeze` must be at least `end`, got {self.freeze:g} and {self.end:g}.",
                "The support can be frozen once the final budget is in force.",
            )

    @override
    def budget(self, step: int, n_nonzero: int, n_entries: int) -> int:
        u = (step / self.total_steps - self.start) / (self.end - self.start)
        u = min(max(u, 0.0), 1.0)
        if self.shape == "exponential":
            left = n_entries * (n_nonzero / n_entries) ** u if u < 1 else 0
            return max(n_nonzero, round(left))
        left = (1 - u) ** 3
        return n_nonzero + round((n_entries - n_nonzero) * left)

    @override
    def is_frozen(self, step: int) -> bool:
        return self.freeze < 1.0 and step >= self.freeze * self.total_steps

    @override
    def is_final(self, step: int) -> bool:
        return step >= self.end * self.total_steps


@dataclass(frozen=True, slots=True)
class Phases(AbstractSchedule):
    """Alternating dense and sparse phases (AC/DC), dense first, sparse last.

    Parameters
    ----------
    dense_steps, sparse_steps : int
        Length of a dense and of a sparse phase, in optimizer steps.
    total_steps : int
        Optimizer steps of the whole training.
    last_sparse : float, default=0.15
        Share of the training that is sparse at the end, whatever the phase.

    References
    ----------
    .. [1] A. Peste, E. Iofinova, A. Vladu and D. Alistarh, "AC/DC: alternating
       compressed/decompressed training of deep neural networks", arXiv:2106.12379.

    Examples
    --------
    >>> from ellzero.nn import schedules
    >>> phases = schedules.phases(dense_steps=2, sparse_steps=1, total_steps=10)
    >>> [phases.budget(t, 3, 9) for t in range(10)]
    [9, 9, 3, 9, 9, 3, 9, 9, 3, 3]
    """

    dense_steps: int
    sparse_steps: int
    total_steps: int
    last_sparse: float = 0.15

    def __post_init__(self) -> None:
        check_integer("dense_steps", self.dense_steps, 1)
        check_integer("sparse_steps", self.sparse_steps, 1)
        check_integer("total_steps", self.total_steps, 1)
        check_real("last_sparse", self.last_sparse, 0.0, 1.0)

    @override
    def budget(self, step: int, n_nonzero: int, n_entries: int) -> int:
        place = step % (self.dense_steps + self.sparse_steps)
        sparse = place >= self.dense_steps or self.is_final(step)
        return n_nonzero if sparse else n_entries

    @override
    def is_frozen(self, step: int) -> bool:
        # Within a sparse phase the support is that of its first step.
        place = step % (self.dense_steps + self.sparse_steps)
        return place > self.dense_steps or self.is_final(step - 1)

    @override
    def is_final(self, step: int) -> bool:
        return step >= (1 - self.last_sparse) * self.total_steps


def constant() -> Constant:
    """Return the schedule that has the final budget from the first step on."""
    return Constant()


def ramp(
    start: float, end: float, total_steps: int, *, freeze: float = 1.0, shape: str = "cubic"
) -> Ramp:
    """Return a fall of the budget between two shares of the training; see `Ramp`."""
    return Ramp(start, end, total_steps, freeze, shape)


def phases(
    dense_steps: int, sparse_steps: int, total_steps: int, *, last_sparse: float = 0.15
) -> Phases:
    """Return alternating dense and sparse phases; see `Phases`."""
    return Phases(dense_steps, sparse_steps, total_steps, last_sparse)
