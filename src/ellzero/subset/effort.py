"""How hard a search tries."""

from __future__ import annotations

from dataclasses import dataclass

from ellzero.validation import check_choice, check_integer


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a search over subsets tries.

    Parameters
    ----------
    kicks : int, default=8000
        Most perturbations of supports; easy problems stop after `agree`, and a path of m budgets
        spends about ``kicks / m**2`` on each.
    population : int, default=32
        Supports kept apart, so that one of them may be stuck.
    agree : int, default=12
        Perturbations that must lead back before a support is believed.

    Examples
    --------
    >>> Effort.of("fast").kicks
    0
    """

    kicks: int = 8000
    population: int = 32
    agree: int = 12

    def __post_init__(self) -> None:
        check_integer("kicks", self.kicks, 0)
        check_integer("population", self.population, 1)
        check_integer("agree", self.agree, 1)

    @classmethod
    def of(cls, name: str) -> Effort:
        """Return a named effort.

        Parameters
        ----------
        name : {"fast", "normal", "thorough"}
            "fast" descends by exchanges only; "thorough" tries ten times as much as "normal".

        Returns
        -------
        Effort
            The settings.
        """
        known = {"fast": cls(kicks=0), "normal": cls(), "thorough": cls(kicks=80000, agree=32)}
        return known[check_choice("effort", name, known)]
