"""What a report consists of: sections made of a few kinds of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ellzero.report.words import clean

ColumnKind = Literal["text", "number", "mark"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; numbers are aligned to the right."""

    label: str
    kind: ColumnKind = "number"

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", clean(self.label))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of finished text; `folded` tables are closed at first."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    highlighted: frozenset[int] = frozenset()
    folded: bool = False
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        object.__setattr__(self, "caption", clean(self.caption))


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture in two widths, with its description and the table behind it.

    Parameters
    ----------
    title : str
        One line over the figure.
    description : str
        What the figure shows, for those who cannot see it.
    wide, narrow : str
        The same picture as SVG, for a page and for a telephone.
    table : Table
        The numbers that are drawn.
    note : str, default=""
        A sentence under the figure.
    """

    title: str
    description: str
    wide: str
    narrow: str
    table: Table
    note: str = ""
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A few sentences."""

    text: str
    kind: Literal["paragraph"] = "paragraph"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences under a small heading."""

    heading: str
    items: tuple[str, ...]
    kind: Literal["bullets"] = "bullets"


@dataclass(frozen=True, slots=True)
class Facts:
    """Terms and what they are."""

    items: tuple[tuple[str, str], ...]
    kind: Literal["facts"] = "facts"


@dataclass(frozen=True, slots=True)
class Code:
    """A line to type."""

    text: str
    kind: Literal["code"] = "code"


@dataclass(frozen=True, slots=True)
class Ladder:
    """Claims from weak to strong, and whether each is reached."""

    steps: tuple[tuple[str, str, bool], ...]
    kind: Literal["ladder"] = "ladder"


Block = Table | Figure | Paragraph | Bullets | Facts | Code | Ladder


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and its blocks."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report: the answer first, then key figures, then sections."""

    title: str
    headline: str
    sections: tuple[Section, ...]
    key_figures: tuple[tuple[str, str, str], ...] = field(default=())
