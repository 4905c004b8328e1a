"""What can be asked for, and what is done when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from ellzero.errors import InvalidParameterError
from ellzero.nn.budgets import STRUCTURES
from ellzero.nn.optimizer import RECIPES
from ellzero.nn.supports import SCORES
from ellzero.solving import PROOF_ENTRIES
from ellzero.validation import check_choice, check_integer, check_real, check_seed

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
# Densities tried for networks when no budget is asked for; one, where a run takes long.
NETWORK_DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
NETWORK_DENSITY_LARGE = 0.05
# Networks with more parameters times training samples than this are trained by minibatches alone:
# a pass over all samples in double precision, of which the others take thousands, is too slow.
LARGE_WORK = 20_000_000
# Those up to which large ones are polished without being asked: some seconds.
POLISH_WORK = 100_000_000
# Training of networks: epochs and samples in a batch, for small and large ones; the rate of Adam.
NETWORK_EPOCHS, NETWORK_EPOCHS_LARGE = 60, 8
NETWORK_BATCH, NETWORK_BATCH_LARGE = 64, 128
NETWORK_LR = 4e-3
# Share of the training after which the final budget is in force.
NETWORK_RAMP_END = 0.5
# The lambda of (lambda/2)||theta||^2; large networks do without.
RIDGE, RIDGE_LARGE = 0.01, 0.0
# Relative width of the bracket at which the search for the smallest good budget ends.
NETWORK_BRACKET = 0.1

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
}

ALLOCATIONS = ("global", "uniform", "erk")
# What is said about the training of networks, and about nothing else.
NETWORK_OPTIONS = (
    "epochs",
    "batch_size",
    "lr",
    "recipe",
    "ramp_end",
    "freeze",
    "allocation",
    "structure",
    "scores",
)

Progress = Callable[[str, int, int | None], None]
# Called with a step number between steps; True ends the work.
Between = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the training of a network stands.

    Parameters
    ----------
    what : str
        What is trained: "dense" or the budget.
    epoch, n_epochs : int
        The epoch under way, from 1 on, and their number.
    step, n_steps : int
        Optimizer steps done, and of the whole training.
    loss : float
        Mean loss of the batches since the last moment.
    lr : float
        Learning rate.
    n_nonzero, n_entries : int
        Nonzeros of the tensors that the budget counts, and their entries.
    is_epoch : bool
        Whether an epoch has ended here.
    accuracy_test : float or None
        Accuracy (or R^2) on the test samples, at the end of an epoch.
    seconds, seconds_left : float
        Time since the training (or its resumption) began, and what the rest will take at this
        pace.
    """

    what: str
    epoch: int
    n_epochs: int
    step: int
    n_steps: int
    loss: float
    lr: float
    n_nonzero: int
    n_entries: int
    is_epoch: bool
    accuracy_test: float | None
    seconds: float
    seconds_left: float


Watch = Callable[[Moment], None]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What to train, and how.

    Parameters
    ----------
    data : str, default="iris"
        Name of a data set, path of a file, or ``FILE.py:NAME``, a function that returns x_train,
        y_train, x_test and y_test.
    target : str or None, default=None
        Column to predict, for files.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means as the data says.
    hidden : tuple of int, default=()
        Sizes of the hidden layers; empty means one linear layer.
    activation : {"gelu", "tanh", "softplus", "sigmoid", "relu"}, default="gelu"
        Between the layers. Smooth ones let a network be certified stationary; the kinks of "relu"
        mostly prevent that.
    n_nonzero : tuple of int or float or None, default=None
        Budgets: entries (int) or densities (float). None means every budget for small models, six
        densities for networks, 0.05 for large ones, else a search with `epsilon`.
    epsilon : float, default=0.05
        A budget is good when its loss is within `epsilon` of the dense loss.
    search : bool, default=False
        Whether to look for the smallest good budget instead of trying all of them.
    ridge : float or None, default=None
        The lambda of (lambda/2)||theta||^2; None means 0.01, and 0 for large networks.
    starts : int or None, default=None
        Random starts for each budget; None means 100 up to 50 parameters, 20 up to 64, 8 above,
        and none for networks.
    seed : int, default=0
        Seed of the split, the starts and the initial weights of networks.
    test_size : float, default=0.2
        Share of the rows held out; data with a test part of their own keep it.
    device : str, default="cpu"
        Device of the training.
    time_limit : float or None, default=None
        Seconds for each budget; None means 20 where a proof is searched for and for networks, 6
        for other models. Large networks have none.
    model : str or None, default=None
        ``FILE.py:NAME``, a function that takes (n_inputs, n_outputs) or nothing and returns the
        network, in the place of `hidden`.
    epochs : int or None, default=None
        Passes over the training samples; None means 60, and 8 for large networks.
    batch_size : int or None, default=None
        Samples in a batch; None means 64, and 128 for large networks.
    lr : float or None, default=None
        Learning rate of Adam at the start of a cosine that ends at 0; None means 0.004.
    recipe : {"lazy", "straight_through", "iht", "acdc"} or None, default=None
        How the network is trained, see `ellzero.nn.HardThresholding`; None means "lazy".
    ramp_end : float or None, default=None
        Share of the training over which the budget falls to the final one; None means 0.5. 0 has
        the final budget from the first step on.
    freeze : float or None, default=None
        Share of the training after which the support stays; None means that it may change to the
        end.
    allocation : {"global", "uniform", "erk"} or None, default=None
        How layers share the budget, see `ellzero.nn.make_balls`; None means "global".
    structure : {"entries", "rows", "columns"} or None, default=None
        What the budget counts, see `ellzero.nn.make_balls`; None means "entries". With rows or
        columns a network is trained as a large one, whatever its size.
    scores : {"magnitude", "relative", "curvature"} or None, default=None
        What the support is chosen by, see `ellzero.nn.HardThresholding`; None means "magnitude".
    average : bool, default=False
        Whether the network becomes the mean over the steps since the support was frozen.
    polish : bool or None, default=None
        Whether a large network, and its dense reference, are taken from the end of their training
        to a stationary point of the loss on all training samples, see `ellzero.nn.polish`, and
        certified on all of them. Small networks always are. None means where that is cheap: layers
        of `hidden` with at most `POLISH_WORK` parameters times training samples.
    dense : bool, default=True
        Whether a large network is also trained without a budget, for comparison.
    data_dir : str or None, default=None
        Where downloaded data are kept; see `ellzero.datasets.data_folder`.

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
    n_nonzero: tuple[int | float, ...] | None = None
    epsilon: float = 0.05
    search: bool = False
    ridge: float | None = None
    starts: int | None = None
    seed: int = 0
    test_size: float = 0.2
    device: str = "cpu"
    time_limit: float | None = None
    model: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    recipe: str | None = None
    ramp_end: float | None = None
    freeze: float | None = None
    allocation: str | None = None
    structure: str | None = None
    scores: str | None = None
    average: bool = False
    polish: bool | None = None
    dense: bool = True
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("data", "target", "model", "device", "data_dir"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name in ("data", "device")):
                raise InvalidParameterError(
                    f"`{name}` must be text, got {type(value).__name__}.", "Pass a string."
                )
        if self.task is not None:
            check_choice("task", self.task, ("classification", "regression"))
        for size in self.hidden:
            if check_integer("hidden", size, 1) >= 2**31:
                raise InvalidParameterError(
                    f"`hidden` must be below 2^31, got {size}.", "Give smaller layers."
                )
        check_choice("activation", self.activation, ACTIVATIONS)
        for budget in self.n_nonzero or ():
            if isinstance(budget, float):
                check_real("n_nonzero", budget, 0.0, 1.0, open_low=True)
            else:
                check_integer("n_nonzero", budget, 1)
        check_real("epsilon", self.epsilon, 0.0)
        if self.ridge is not None:
            check_real("ridge", self.ridge, 0.0)
        if self.starts is not None:
            check_integer("starts", self.starts, 0)
        check_seed(self.seed)
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0, open_low=True)
        self._check_training()

    def _check_training(self) -> None:
        """Raise where an option of the training of networks has a wrong value or no use."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.lr is not None:
            check_real("lr", self.lr, 0.0, open_low=True)
        if self.recipe is not None:
            check_choice("recipe", self.recipe, RECIPES)
        if self.allocation is not None:
            check_choice("allocation", self.allocation, ALLOCATIONS)
        if self.structure is not None:
            check_choice("structure", self.structure, STRUCTURES)
        if self.scores is not None:
            check_choice("scores", self.scores, SCORES)
        for name in ("ramp_end", "freeze"):
            if getattr(self, name) is not None:
                check_real(name, getattr(self, name), 0.0, 1.0)
        end = NETWORK_RAMP_END if self.ramp_end is None else self.ramp_end
        if self.freeze is not None and self.freeze < end:
            raise InvalidParameterError(
                f"`freeze` must be at least `ramp_end`, got {self.freeze:g} and {end:g}.",
                "The support can be frozen once the final budget is in force.",
            )
        if self.model is not None and self.hidden:
            raise InvalidParameterError(
                "`model` and `hidden` cannot both be given.",
                "The function of `model` makes the whole network.",
            )
        given = [name for name in NETWORK_OPTIONS if getattr(self, name) is not None]
        given += [name for name in ("average", "polish") if getattr(self, name)]
        if given and not self.is_network:
            raise InvalidParameterError(
                f"`{given[0]}` is about the training of networks, got a linear model.",
                "Add hidden layers by `--hidden 300,100`, or give a network by `--model`.",
            )
        if self.recipe == "acdc":
            for name in ("ramp_end", "freeze"):
                if getattr(self, name) is not None:
                    raise InvalidParameterError(
                        f"`{name}` has no meaning for the recipe 'acdc', got "
                        f"{getattr(self, name):g}.",
                        "Its phases are fixed; leave the option out.",
                    )
        elif self.average and self.freeze in (None, 1.0):
            raise InvalidParameterError(
                "`average` takes the mean over the steps since the support was frozen, which "
                "`freeze` has to say when.",
                "Add `--freeze 0.8`, or another share of the training below 1.",
            )
        if self.search and not self.dense:
            raise InvalidParameterError(
                "`epsilon` cannot be searched for without the dense reference.",
                "Leave out `--no-dense`, or give `--n-nonzero`.",
            )

    @property
    def is_network(self) -> bool:
        """Whether a network is trained, not a linear model."""
        return bool(self.hidden) or self.model is not None

    @property
    def counts_units(self) -> bool:
        """Whether the budget counts rows or columns, not entries."""
        return self.structure not in (None, "entries")

    @property
    def unit(self) -> str:
        """What the budget counts, in a word."""
        return str(self.structure) if self.counts_units else "nonzeros"

    @property
    def budgets(self) -> tuple[int, ...] | None:
        """Budgets as entries; those of settings that an experiment has completed."""
        if self.n_nonzero is None:
            return None
        return tuple(b for b in self.n_nonzero if isinstance(b, int))

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


def with_network_defaults(
    settings: TrainSettings, epochs: int, batch_size: int, ridge: float
) -> TrainSettings:
    """Return the settings with what was left open about the training of a network."""
    defaults: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": NETWORK_LR,
        "recipe": "lazy",
        "allocation": "global",
        "structure": "entries",
        "scores": "magnitude",
        "ridge": ridge,
    }
    if settings.recipe != "acdc":
        defaults["ramp_end"] = NETWORK_RAMP_END
    left = {n: v for n, v in defaults.items() if getattr(settings, n) is None}
    return replace(settings, **left)


def make_layers(settings: TrainSettings, n_inputs: int, n_outputs: int) -> nn.Module:
    """Return fully connected layers with random weights."""
    layers: list[nn.Module] = []
    for size in settings.hidden:
        layers += [nn.Linear(n_inputs, size), ACTIVATIONS[settings.activation]()]
        n_inputs = size
    layers.append(nn.Linear(n_inputs, n_outputs))
    return nn.Sequential(*layers)


def squeezed_mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Return half the mean squared error of an output of shape (n, 1)."""
    return (prediction.squeeze(-1) - y).square().mean() / 2
