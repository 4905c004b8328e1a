"""How hard a search tries."""

from __future__ import annotations

from dataclasses import dataclass

from ellzero.validation import check_choice


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard a search over subsets tries.

    Parameters
    ----------
    kicks : int, default=1000
        Most perturbations tried for one budget; easy problems stop long before.
    population : int, default=8
        Supports kept apart, so that one of them may be stuck.

    Examples
    --------
    >>> Effort.of("fast").kicks
    0
    """

    kicks: int = 1000
    population: int = 8

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
        known = {"fast": cls(kicks=0), "normal": cls(), "thorough": cls(kicks=10000)}
        return known[check_choice("effort", name, known)]
