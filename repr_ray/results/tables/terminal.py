"""Sheets in the terminal, within its width."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from repr_ray.results.compare import Comparison
from repr_ray.results.tables.sheet import NONE, Column, Sheet, blocks
from repr_ray.storage.text import line

_SENTENCES = 6
_NOTES = 20
_WRAPS = 26  # the usual width of a column with longer texts
_FOLDS = 8  # words of this length are never broken
_GAP = 2  # between columns


class _Width(NamedTuple):
    """Widths of a column, in characters: its longest word, its usual width, its longest text."""

    least: int
    usual: int
    most: int


def _width(console: Console, column: Column, texts: Sequence[str]) -> _Width:
    said = [_say(console, text).plain for text in texts]
    least = max(map(len, " ".join([column.name, *said]).split()), default=1)
    most = max([least, *map(len, said)])
    return _Width(least, min(most, _WRAPS), most)


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Print a sheet in the console's width; columns that do not fit follow in a second table."""
    widths = [
        _width(console, column, [row[place].text for row in sheet.rows]) for place, column in enumerate(sheet.columns)
    ]
    left = [
        place
        for place in range(len(widths))
        if any(row[place].text not in ("", NONE) for row in sheet.rows) or not sheet.columns[place].spare
    ]
    while left:
        part = list(left)
        while sum(widths[place].usual + _GAP for place in part) - _GAP > console.width:
            spare = max(part[1:], key=lambda place: sheet.columns[place].spare, default=0)
            if not sheet.columns[spare].spare or len(part) == 2:
                break
            part.remove(spare)
        _print_columns(console, sheet, _fit(console, sheet, part, widths))
        left = [place for place in left if place not in part]
        left = left and [0, *left]
    for footnote in sheet.footnotes:
        print_text(console, footnote, "dim")


def _fit(console: Console, sheet: Sheet, places: Sequence[int], widths: Sequence[_Width]) -> dict[int, int]:
    """The width of each column: columns of words share the free space, or shrink if there is too little.

    Words are broken only if line breaks between them are not enough. Rich's own fitting shrinks the widest columns
    to one width, whatever their longest words, and cuts the lines that are too long then.
    """
    chosen = {place: widths[place].usual for place in places}
    words = [place for place in places if not sheet.columns[place].number]
    room = console.width - sum(chosen.values()) - _GAP * (len(places) - 1)
    for folded in (False, True):
        for place in sorted(words, key=lambda place: widths[place].most, reverse=room < 0):
            least = min(widths[place].least, _FOLDS) if folded else widths[place].least
            more = max(least - chosen[place], min(widths[place].most - chosen[place], room))
            chosen[place] += more
            room -= more
    return chosen


def _print_columns(console: Console, sheet: Sheet, widths: Mapping[int, int]) -> None:
    for heading, rows in blocks(sheet):
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for place, width in widths.items():
            column = sheet.columns[place]
            justify: Literal["right", "left"] = "right" if column.number else "left"
            table.add_column(_say(console, column.name), justify=justify, width=width, overflow="fold")
        for row in rows:
            table.add_row(*(_say(console, row[place].text) for place in widths))
        if heading:
            console.print(_say(console, heading, "bold"))
        console.print(table)
        console.print()


def print_comparison(
    console: Console, comparison: Comparison, schemes: Sheet, claims: Sheet, other_claims: int
) -> None:
    """Print the answer, the table, the claims with a verdict, the number of others, and the notes."""
    print_text(console, comparison.answer, "bold")
    if 1 < len(comparison.answers) <= _SENTENCES:
        for answer in comparison.answers:
            print_text(console, f"- {answer}")
    console.print()
    for sheet in (schemes, claims):
        if sheet.rows:
            print_sheet(console, sheet)
            console.print()
    if other_claims:
        others = f"{other_claims} published figures of other settings, without a verdict"
        print_text(console, f"note: {others}: see comparison.md")
    for note in comparison.notes[:_NOTES]:
        print_text(console, f"note: {note}")
    if len(comparison.notes) > _NOTES:
        print_text(console, f"and {len(comparison.notes) - _NOTES} more notes: see comparison.md")


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print text without markup or highlighting."""
    console.print(_say(console, text, style))


_ASCII = str.maketrans({"±": "+/-", "\N{MINUS SIGN}": "-", NONE: "-", "·": "/", "≈": "~"})


def _say(console: Console, text: str, style: str = "") -> Text:
    """Text that the console can encode."""
    text = line(text)
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(console.encoding, "backslashreplace").decode(console.encoding)
    return Text(text, style=style)
