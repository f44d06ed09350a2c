"""A table of cells to be shown, whatever the format, and how its numbers are written."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from repr_ray.results.blocks import BLOCK
from repr_ray.results.words import in_percent

Row = dict[str, Any]

NONE = "\N{EN DASH}"


class Entry(NamedTuple):
    """A text and its sort key."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Column:
    """A column of a sheet. In a narrow terminal the largest `spare` go to a second table first, 0 never."""

    name: str
    spare: int = 0
    number: bool = True


Shown = tuple[Column, Callable[[Row], Entry]]
"""A column, and its cell in a row."""


def text(name: str) -> Callable[[Row], Entry]:
    """The text of a row under this name, as a cell."""
    return lambda row: Entry(row[name], row[name])


def number(name: str, say: Callable[[Any], str]) -> Callable[[Row], Entry]:
    """The number of a row under this name, as a cell; NaN is a dash."""
    return lambda row: Entry(NONE if pd.isna(row[name]) else say(row[name]), row[name])


@dataclass(frozen=True)
class Sheet:
    """A table to be shown; a new `heading` of a row starts a new block."""

    columns: list[Column]
    rows: list[list[Entry]]
    headings: list[str]
    footnotes: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, shown: Sequence[Shown], rows: Sequence[Row], headings: Iterable[str] = (), footnotes: Iterable[str] = ()
    ) -> "Sheet":
        """These columns of some rows; one block without `headings`."""
        cells = [[cell(row) for _, cell in shown] for row in rows]
        return cls([column for column, _ in shown], cells, [*headings] or [""] * len(rows), [*footnotes])


def blocks(sheet: Sheet) -> list[tuple[str, list[list[Entry]]]]:
    """The headings, each with its rows."""
    blocks: dict[str, list[list[Entry]]] = {}
    for heading, row in zip(sheet.headings, sheet.rows, strict=True):
        blocks.setdefault(heading, []).append(row)
    return list(blocks.items())


def heading(row: Row) -> str:
    """The data set, model and variant of a row."""
    return " · ".join(row[key] for key in BLOCK if row[key])


def percent(mean: float, sd: float) -> str:
    """`72.1 ± 0.4`, both from fractions."""
    if pd.isna(mean):
        return NONE
    return in_percent(mean) + (f" ± {in_percent(sd)}" if not pd.isna(sd) else "")


def bounded(mean: float, low: float, high: float, signed: bool = True) -> str:
    """`+1.2 [+0.4, +2.0]` in points, from fractions."""
    if pd.isna(mean):
        return NONE
    said = in_percent(mean, signed)
    return said if pd.isna(low) else f"{said} [{in_percent(low, signed)}, {in_percent(high, signed)}]"


def rounded_time(seconds: float) -> str:
    """Seconds, minutes or hours, three digits at most."""
    if pd.isna(seconds):
        return NONE
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
