"""Texts of options, as values."""

from __future__ import annotations

from typing import Annotated

import typer  # noqa: TID253

from ellzero.errors import InvalidParameterError

DataDir = Annotated[
    str | None,
    typer.Option(help="Where mnist.npz is or will be kept; default ELLZERO_DATA or a cache."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier result.")]


def parse_budgets(text: str | None) -> tuple[int | float, ...] | None:
    """Return the budgets of ``5``, ``1:15`` (both ends) or ``1,2,8``, and densities of ``1%``.

    Raises
    ------
    InvalidParameterError
        If the text is none of these.
    """
    if text is None:
        return None
    hint = (
        "Write one number (5), a range with both ends (1:15), a list (1,2,8), or a density (0.01 "
        "or 1%)."
    )
    budgets: list[int | float] = []
    for part in text.split(","):
        density = parse_density(part)
        if density is not None:
            if not 0.0 < density <= 1.0:
                raise InvalidParameterError(
                    f"`--n-nonzero` must be a density above 0 and up to 1, got {part!r}.", hint
                )
            budgets.append(density)
            continue
        ends = part.split(":")
        try:
            numbers = [int(end) for end in ends]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2) or len(numbers) != len(ends):
            raise InvalidParameterError(
                f"`--n-nonzero` must be whole numbers or densities, got {text!r}.", hint
            )
        if min(numbers) < 1:
            raise InvalidParameterError(
                f"`--n-nonzero` must be at least 1, got {min(numbers)}.", hint
            )
        if numbers[-1] < numbers[0]:
            raise InvalidParameterError(
                f"`--n-nonzero` must be a rising range, got {part!r}.", hint
            )
        budgets += range(numbers[0], numbers[-1] + 1)
    return tuple(dict.fromkeys(budgets))


def parse_density(text: str) -> float | None:
    """Return the density of ``0.01`` or ``1%``; None for other text."""
    text = text.strip()
    percent = text.endswith("%")
    if not percent and "." not in text and "e" not in text.lower():
        return None
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    return number / 100 if percent else number


def parse_hidden(text: str) -> tuple[int, ...]:
    """Return the sizes of ``0`` (none) or ``300,100``.

    Raises
    ------
    InvalidParameterError
        If the text is neither.
    """
    hint = "Write 0 for one linear layer, or sizes such as 300,100."
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidParameterError(
            f"`--hidden` must be whole numbers, got {text!r}.", hint
        ) from None
    if sizes == (0,):
        return ()
    if min(sizes) < 1:
        raise InvalidParameterError(f"`--hidden` must be positive, got {text!r}.", hint)
    return sizes


def parse_sizes(text: str | None) -> tuple[int, ...] | None:
    """Return the whole budgets of ``5``, ``1:20`` or ``1,2,8``.

    Raises
    ------
    InvalidParameterError
        If the text is none of these.
    """
    budgets = parse_budgets(text)
    if budgets is None:
        return None
    for budget in budgets:
        if isinstance(budget, float):
            raise InvalidParameterError(
                f"`--n-nonzero` must be whole numbers, got {text!r}.",
                "Write one number (5), a range with both ends (1:20), or a list (1,2,8).",
            )
    return tuple(int(budget) for budget in budgets)


def parse_numbers(option: str, text: str) -> tuple[float, ...]:
    """Return the numbers of ``0.1`` or ``0,0.01,0.1``.

    Raises
    ------
    InvalidParameterError
        If a part is not a number.
    """
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise InvalidParameterError(
            f"`{option}` must be numbers, got {text!r}.", "Write 0.1, or several as 0,0.01,0.1."
        ) from None


def parse_names(text: str | None) -> tuple[str, ...]:
    """Return the names of ``a,b``."""
    if text is None:
        return ()
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
