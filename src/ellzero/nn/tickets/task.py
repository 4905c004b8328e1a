"""What all arms of one seed share: network, batches, loss, optimizer, judges."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ellzero.errors import InvalidParameterError
from ellzero.nn.optimizer import RECIPES
from ellzero.validation import check_choice, check_integer, check_real

Judge = Callable[[nn.Module], float]


def adam(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam at the rate 1.2e-3 of the lottery ticket paper's perceptron."""
    return torch.optim.Adam(params, lr=1.2e-3)


@dataclass(frozen=True, slots=True)
class Task:
    """A network, its data and how it is judged.

    Parameters
    ----------
    build : callable
        Called without arguments; returns a fresh network. Its random start comes from torch's
        generator, which is seeded around the call and put back.
    loader : iterable or callable
        An iterable of pairs of inputs and targets that can be gone through again and again, such
        as a `DataLoader`; or a callable that takes a `torch.Generator` and returns the pairs of
        one epoch, such as `Shuffled`. The order is a function of seed and epoch alone.
    criterion : callable
        Called as ``criterion(model(x), y)``; returns the mean loss of a batch.
    test : callable
        Called with the network in evaluation mode at the end; returns the metric. See `Accuracy`.
    n_steps : int
        Optimizer steps of every training: the budget T.
    optimizer : callable
        Called with the parameters; returns a fresh optimizer. The default is Adam at 1.2e-3.
    scheduler : callable or None, default=None
        Called with the optimizer; returns a learning-rate scheduler, stepped after every step.
    validation : callable or None, default=None
        As `test`, at every `every` steps, to find the best step; never used to choose anything.
    every : int, default=50
        Steps between validations.
    maximize : bool, default=True
        Whether larger metrics are better.
    names : sequence of str or None, default=None
        Tensors that may be pruned, or patterns; None means `ellzero.nn.prunable`.
    small : callable or None, default=None
        Called with a number of weights; returns a dense network with at most as many prunable
        weights. The arm ``"small-dense"`` needs it.

    Raises
    ------
    InvalidParameterError
        If `n_steps` or `every` is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn import tickets
    >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    >>> y = (x[:, 0] > 0).long()
    >>> task = tickets.Task(
    ...     build=lambda: torch.nn.Linear(4, 2),
    ...     loader=tickets.Shuffled(x, y, 10),
    ...     criterion=torch.nn.functional.cross_entropy,
    ...     test=tickets.Accuracy(x, y),
    ...     n_steps=20,
    ... )
    >>> tickets.run(task, [0.5], arms=["random"], seeds=[0, 1]).counts
    (4,)
    """

    build: Callable[[], nn.Module]
    loader: Iterable[Any] | Callable[[torch.Generator], Iterable[Any]]
    criterion: Callable[[Any, Any], Tensor]
    test: Judge
    n_steps: int
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    validation: Judge | None = None
    every: int = 50
    maximize: bool = True
    names: Sequence[str] | None = None
    small: Callable[[int], nn.Module] | None = None

    def __post_init__(self) -> None:
        check_integer("n_steps", self.n_steps, 1)
        check_integer("every", self.every, 1)


@dataclass(frozen=True, slots=True)
class Settings:
    """How masks are searched for.

    Parameters
    ----------
    pruned : float, default=0.2
        Share of the survivors that a round of iterative magnitude pruning takes away at most. Must
        be in (0, 1).
    rewind : float, default=0.1
        Share of the steps after which the start of the arm ``"imp-late"`` is taken. In [0, 1).
    ramp : float, default=0.75
        Share of the steps over which the budget of hard thresholding falls, as a cube.
    every : int, default=10
        Steps between choices of the support by hard thresholding.
    floor : float, default=0.0
        As in `HardThresholding`.
    recipe : {"iht", "lazy", "straight_through", "acdc"}, default="iht"
        Recipe of the arms ``"iht"``, ``"iht-constant"`` and ``"iht-long"``.
    draws : int, default=3
        New starts for each mask of the arms that draw new weights.

    Raises
    ------
    InvalidParameterError
        If one is out of range.
    """

    pruned: float = 0.2
    rewind: float = 0.1
    ramp: float = 0.75
    every: int = 10
    floor: float = 0.0
    recipe: str = "iht"
    draws: int = 3

    def __post_init__(self) -> None:
        check_real("pruned", self.pruned, 0.0, 1.0, open_low=True)
        if self.pruned == 1.0:
            raise InvalidParameterError("`pruned` must be below 1, got 1.")
        check_real("rewind", self.rewind, 0.0, 1.0)
        if self.rewind == 1.0:
            raise InvalidParameterError("`rewind` must be below 1, got 1.")
        check_real("ramp", self.ramp, 0.0, 1.0, open_low=True)
        check_integer("every", self.every, 1)
        check_real("floor", self.floor, 0.0, 1.0)
        check_choice("recipe", self.recipe, RECIPES)
        check_integer("draws", self.draws, 1)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Batches of tensors in a new order in each epoch; what is left over is dropped.

    Parameters
    ----------
    x, y : Tensor
        Inputs and targets, the same number along the first axis.
    batch_size : int
        Samples in a batch.

    Raises
    ------
    InvalidParameterError
        If the numbers of samples differ or are below `batch_size`.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.tickets import Shuffled
    >>> batches = Shuffled(torch.arange(7), torch.arange(7), 3)
    >>> [len(x) for x, _ in batches(torch.Generator().manual_seed(0))]
    [3, 3]
    """

    x: Tensor
    y: Tensor
    batch_size: int

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise InvalidParameterError(
                f"`x` and `y` must hold as many samples, got {len(self.x)} and {len(self.y)}."
            )
        check_integer(
            "batch_size", self.batch_size, 1, len(self.x), meaning="the number of samples"
        )

    def __call__(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of one epoch."""
        order = torch.randperm(len(self.x), generator=generator)
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            rows = order[start : start + self.batch_size]
            yield self.x[rows], self.y[rows]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of samples whose largest output is at the target.

    Parameters
    ----------
    x : Tensor
        Inputs.
    y : Tensor of int64
        Classes.
    batch_size : int, default=1000
        Samples at a time.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.tickets import Accuracy
    >>> Accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))(torch.nn.Identity())
    0.75
    """

    x: Tensor
    y: Tensor
    batch_size: int = 1000

    def __call__(self, model: nn.Module) -> float:
        """Return the accuracy of a network."""
        right = sum(
            int((model(x).argmax(-1) == y).sum())
            for x, y in zip(
                torch.split(self.x, self.batch_size),
                torch.split(self.y, self.batch_size),
                strict=True,
            )
        )
        return right / self.y.numel()


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """Mean of a criterion over samples; smaller is better.

    Parameters
    ----------
    criterion : callable
        Returns the mean loss of a batch.
    x, y : Tensor
        Inputs and targets.
    batch_size : int, default=1000
        Samples at a time.

    Examples
    --------
    >>> import torch
    >>> from ellzero.nn.tickets import MeanLoss
    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> MeanLoss(torch.nn.functional.mse_loss, x, 0 * x, 2)(torch.nn.Identity())
    1.6666666666666667
    """

    criterion: Callable[[Any, Any], Tensor]
    x: Tensor
    y: Tensor
    batch_size: int = 1000

    def __call__(self, model: nn.Module) -> float:
        """Return the mean loss of a network."""
        total = 0.0
        for x, y in zip(
            torch.split(self.x, self.batch_size),
            torch.split(self.y, self.batch_size),
            strict=True,
        ):
            total += float(self.criterion(model(x), y)) * len(x)
        return total / len(self.x)


@dataclass(frozen=True, slots=True)
class Seeds:
    """Numbers for generators, one for each purpose, all from one seed."""

    seed: int

    def number(self, purpose: str, index: int = 0) -> int:
        """Return a seed for `torch.manual_seed` that depends on all three."""
        return zlib.crc32(f"{purpose}/{self.seed}/{index}".encode())

    def generator(self, purpose: str, index: int = 0) -> torch.Generator:
        """Return a generator of its own."""
        return torch.Generator().manual_seed(self.number(purpose, index))
