"""What to fit, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ellzero.errors import InvalidParameterError
from ellzero.validation import check_choice, check_integer, check_real, check_seed

LOSSES = ("squared", "huber", "logistic", "poisson")
SELECTIONS = ("ebic", "bic", "aic", "sic", "cv", "largest")
EFFORTS = ("fast", "normal", "thorough")


@dataclass(frozen=True, slots=True)
class FitSettings:
    """What to fit, and how.

    Parameters
    ----------
    data : str
        Name of a bundled data set, or path of a file.
    target : str or None, default=None
        Column to predict, for files.
    task : {"classification", "regression"} or None, default=None
        What the target is; None means as the data and the loss say.
    loss : {"squared", "huber", "logistic", "poisson"} or None, default=None
        None means "squared" for numbers and "logistic" for classes; more than two classes have
        the softmax loss.
    n_nonzero : tuple of int or None, default=None
        Budgets; None means 1 to 20, or as many columns as there are.
    select : {"ebic", "bic", "aic", "sic", "cv", "largest"}, default="ebic"
        How the budget is chosen: by an information criterion, by cross-validation, or the largest.
    cv : int, default=5
        Folds of the cross-validation; 0 leaves it out.
    ridge : tuple of float, default=(0.0,)
        The lambda of (lambda/2)||coef||^2; of several the best is chosen with the budget.
    always, forbidden : tuple of str, default=()
        Columns that are always, or never, in the model.
    nonnegative : bool, default=False
        Whether coefficients must not be negative.
    weights : str or None, default=None
        Column with the weights of the samples; it is no feature.
    group_categories : bool, default=True
        Whether the features of a text column enter together and count once.
    effort : {"fast", "normal", "thorough"}, default="normal"
        How long the search goes on.
    exact : bool, default=False
        Whether to go on to a proof of optimality, for least squares with ridge.
    time_limit : float or None, default=None
        Seconds for the search of all budgets, and for each proof; None means no limit.
    test_size : float, default=0.0
        Share of the rows held out to score the models.
    seed : int, default=0
        Seed of the held-out rows and of the folds.

    Raises
    ------
    InvalidParameterError
        If a value is of a wrong type or out of range.
    """

    data: str
    target: str | None = None
    task: str | None = None
    loss: str | None = None
    n_nonzero: tuple[int, ...] | None = None
    select: str = "ebic"
    cv: int = 5
    ridge: tuple[float, ...] = (0.0,)
    always: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()
    nonnegative: bool = False
    weights: str | None = None
    group_categories: bool = True
    effort: str = "normal"
    exact: bool = False
    time_limit: float | None = None
    test_size: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("data", "target", "weights"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "data"):
                raise InvalidParameterError(
                    f"`{name}` must be text, got {type(value).__name__}.", "Pass a string."
                )
        if self.task is not None:
            check_choice("task", self.task, ("classification", "regression"))
        for option in ("always", "forbidden"):
            for name in getattr(self, option):
                if not isinstance(name, str):
                    raise InvalidParameterError(
                        f"`{option}` must hold names of columns, got {name!r}.", "Pass strings."
                    )
        if self.loss is not None:
            check_choice("loss", self.loss, LOSSES)
        for budget in self.n_nonzero or ():
            check_integer("n_nonzero", budget, 0)
        check_choice("select", self.select, SELECTIONS)
        check_choice("effort", self.effort, EFFORTS)
        check_integer("cv", self.cv, 0)
        if self.cv == 1:
            raise InvalidParameterError(
                "`cv` must be 0 or at least 2, got 1.", "0 leaves the cross-validation out."
            )
        if self.select == "cv" and self.cv == 0:
            raise InvalidParameterError(
                "`select` cannot be 'cv' without folds, got cv=0.", "Pass `--cv 5`."
            )
        if not self.ridge:
            raise InvalidParameterError("`ridge` must hold at least one number, got none.")
        for number in self.ridge:
            check_real("ridge", number, 0.0)
        if len(self.ridge) > 1 and self.cv == 0:
            raise InvalidParameterError(
                f"`ridge` has {len(self.ridge)} numbers, which are chosen by cross-validation, "
                "got cv=0.",
                "Pass `--cv 5`, or one number.",
            )
        if self.time_limit is not None:
            check_real("time_limit", self.time_limit, 0.0, open_low=True)
        check_real("test_size", self.test_size, 0.0, 0.99)
        check_seed(self.seed)
        both = sorted(set(self.always) & set(self.forbidden))
        if both:
            raise InvalidParameterError(
                f"Column {both[0]!r} cannot be both always and never in the model.",
                "Take it out of `--always` or `--forbidden`.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FitSettings:
        """Return the settings that `to_dict` wrote."""
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)
