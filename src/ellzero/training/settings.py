"""What can be asked for, and what is done when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ellzero.solving import PROOF_ENTRIES
from ellzero.validation import check_choice, check_integer, check_real

# Up to this many parameters every budget is tried when none is asked for.
EVERY_BUDGET = 20
# Growth of the budget while the smallest good one is searched for: fine for small models.
GROWTH, GROWTH_LARGE = 1.5, 2.0
# Random starts for each budget by default: (largest number of parameters, starts).
DEFAULT_STARTS = ((50, 100), (PROOF_ENTRIES, 20))
DEFAULT_STARTS_LARGE = 8
# Seconds for each budget by default, where no proof is searched for.
SEARCH_SECONDS = 6.0
NETWORK_SECONDS = 20.0
# Densities tried for networks when no budget is asked for.
NETWORK_DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Relative width of the bracket at which the search for the smallest good budget ends.
NETWORK_BRACKET = 0.1

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}

Progress = Callable[[str, int, int | None], None]
# Called with a step number between steps; True ends the work.
Between = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What to train, and how.

    Parameters
    ----------
    data : str, default="iris"
        Name of a bundled data set, or path of a file.
    target : str or None, default=None
        Column to predict, for files.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means as the data says.
    hidden : tuple of int, default=()
        Sizes of the hidden layers; empty means one linear layer.
    activation : {"gelu", "tanh", "softplus", "sigmoid", "relu"}, default="gelu"
        Between the layers. Smooth ones let a network be certified stationary; the kinks of "relu"
        mostly prevent that.
    n_nonzero : tuple of int or None, default=None
        Budgets; None means every budget for small models, else a search with `epsilon`.
    epsilon : float, default=0.05
        A budget is good when its loss is within `epsilon` of the dense loss.
    search : bool, default=False
        Whether to look for the smallest good budget instead of trying all of them.
    ridge : float, default=0.01
        The lambda of (lambda/2)||theta||^2.
    starts : int or None, default=None
        Random starts for each budget; None means 100 up to 50 parameters, 20 up to 64, 8 above,
        and none for networks.
    seed : int, default=0
        Seed of the split, the starts and the initial weights of networks.
    test_size : float, default=0.2
        Share of the rows held out.
    device : str, default="cpu"
        Device of the training.
    time_limit : float or None, default=None
        Seconds for each budget; None means 20 where a proof is searched for and for networks, 6
        for other models.

    Raises
    ------
    InvalidParameterError
        If a value is of a wrong type or out of range.
    """

    data: str = "iris"
    target: str | None = None
    task: str | None = None
    hidden: tuple[int, ...] = ()
    activation: str = "gelu"
    n_nonzero: tuple[int, ...] | None = None
    epsilon: float = 0.05
    search: bool = False
    ridge: float = 0.01
    starts: int | None = None
    seed: int = 0
    test_size: float = 0.2
    device: str = "cpu"
    time_limit: float | None = None

    def __post_init__(self) -> None:
        for size in self.hidden:
            check_integer("hidden", size, 1)
        check_choice("activation", self.activation, ACTIVATIONS)
        for budget in self.n_nonzero or ():
            check_integer("n_nonzero", budget, 1)
        check_real("epsilon", self.epsilon, 0.0)
        check_real("ridge", self.ridge, 0.0)
        if self.starts is not None:
            check_integer("starts", self.starts, 0)
        check_integer("seed", self.seed, 0)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0, open_low=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        out = asdict(self)
        out["hidden"] = list(self.hidden)
        out["n_nonzero"] = None if self.n_nonzero is None else list(self.n_nonzero)
        return out

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSettings:
        """Return the settings that `to_dict` wrote."""
        budgets = values.get("n_nonzero")
        return cls(
            **{
                **values,
                "hidden": tuple(values.get("hidden", ())),
                "n_nonzero": None if budgets is None else tuple(budgets),
            }
        )
