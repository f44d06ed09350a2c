"""One sheet of cells, shown in the terminal, as Markdown and as LaTeX; CSV and Parquet hold the bare numbers."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

import repr_ray
from repr_ray.results.claims import MARGIN
from repr_ray.results.compare import BLOCK, FEWEST_FOR_INTERVAL, LEVEL, Comparison, points, records
from repr_ray.results.files import MARK, replacing, write_text
from repr_ray.results.store import SCHEMAS, Failure
from repr_ray.storage.text import cell, line

Row = dict[str, Any]
NONE = "\N{EN DASH}"
LEGEND = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline,"
    " paired by seed, with the 95% t-interval; of fewer than three pairs each seed's own. p: exact two-sided"
    f" sign-flip test; Holm p: corrected over all comparisons of this report; *: n too small to reach {LEVEL}. Val.:"
    " validation accuracy in the last epoch, to choose by. Test at best val. epoch: test accuracy in the epoch of"
    " best validation accuracy. Gap: training less test accuracy in the last epoch, points. Best on test: selected on"
    " the test set, not a fair estimate. Epochs and cycles count from 1 here, from 0 in the Parquet files."
)
LEGEND_BY_LOOKS = (
    "Test: accuracy in the last epoch, mean ± sd over n seeds. Difference: percentage points to the baseline, paired"
    " by seed, at the last look, with an interval that holds at all looks together with 95%. p: t-test, over all"
    " looks; Holm p: over all comparisons as well. Val.: validation accuracy in the last epoch, to choose by. Test"
    " at best val. epoch: test accuracy in the epoch of best validation accuracy. Gap: training less test accuracy"
    " in the last epoch, points. Best on test: selected on the test set, not a fair estimate. Epochs and cycles"
    " count from 1 here, from 0 in the Parquet files."
)

AVERAGE_LEGEND = "EMA: of the exponential moving average of the weights (train.ema), in the last epoch."


CLAIMS_LEGEND = (
    f"Reproduced: the whole 95% interval lies within {points(MARGIN)} point of the published value; not reproduced:"
    " all of it lies farther away. Gain: over standard training, paired by seed. Best on test: selected on"
    " the test set, as published. An approximate match differs as the note by its number says, and gets no verdict."
)


class Cell(NamedTuple):
    """A text and its sort key."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Column:
    """A column of a sheet. A narrow terminal leaves out the largest `spare` first, 0 never."""

    name: str
    spare: int = 0
    number: bool = True


@dataclass(frozen=True)
class Sheet:
    """A table to be shown; a new `heading` of a row starts a new block."""

    columns: list[Column]
    rows: list[list[Cell]]
    headings: list[str]
    footnotes: list[str] = field(default_factory=list)


def comparison_sheet(comparison: Comparison) -> Sheet:
    """The comparison, accuracies in percent."""
    cells: list[list[Cell]] = []
    headings: list[str] = []
    averaged = comparison.table["ema_test_accuracy_mean"].notna().any()
    unpaired = (comparison.table["missing_seeds"] != "").any()
    hidden = [*([] if averaged else _OF_AVERAGE), *([] if unpaired else [_UNPAIRED])]
    columns = [(column, cell) for column, cell in _COLUMNS if column not in hidden]
    for _, block in comparison.table.groupby(BLOCK, sort=False):
        rows = records(block)
        precision = ", ".join(dict.fromkeys(row["precision"] for row in rows if row["precision"]))
        epochs = "/".join(dict.fromkeys(row["epochs"] for row in rows))
        headings += [" · ".join(filter(None, [heading(rows[0]), f"{epochs} epochs", precision]))] * len(rows)
        cells += [[cell(row) for _, cell in columns] for row in rows]
        for row, texts in zip(rows, cells[-len(rows) :], strict=True):
            if not row["is_baseline"] and not pd.isna(row["pairs"]) and row["pairs"] < FEWEST_FOR_INTERVAL:
                seeds = "; ".join(points(value, True) for value in comparison.differences(row)) or NONE
                texts[_DIFFERENCE] = Cell(seeds, row["difference_mean"])
    legends = [LEGEND if comparison.design is None else LEGEND_BY_LOOKS, *([AVERAGE_LEGEND] if averaged else [])]
    return Sheet([column for column, _ in columns], cells, headings, legends)


def claims_sheet(claims: pd.DataFrame) -> Sheet:
    """Published and measured values in percent, gains in points; one block per source."""
    names = ("Scheme", "Quantity", "Claimed", "Measured [95%]", "n", "Verdict", "Match")
    numbers = ("Claimed", "Measured [95%]", "n")
    remarks = list(dict.fromkeys(filter(None, claims["remark"])))
    rows, headings = [], []
    for row in records(claims):
        gain = row["quantity"] == "gain"
        match = f"{row['match']} ({remarks.index(row['remark']) + 1})" if row["remark"] else row["match"]
        measured = bounded(row["measured"], row["measured_low"], row["measured_high"], signed=gain)
        rows.append(
            [
                *(Cell(row[key], row[key]) for key in ("scheme", "quantity")),
                Cell(points(row["claimed"], gain), row["claimed"]),
                Cell(measured, row["measured"]),
                Cell(str(row["n"]), row["n"]),
                *(Cell(text, text) for text in (row["verdict"], match)),
            ]
        )
        headings.append(f"{row['source']}: {heading(row)}")
    footnotes = [f"({place}) {remark}" for place, remark in enumerate(remarks, 1)] + [CLAIMS_LEGEND]
    return Sheet([Column(name, number=name in numbers) for name in names], rows, headings, footnotes)


def heading(row: Row) -> str:
    """The data set, model and variant of a row."""
    return " · ".join(row[key] for key in BLOCK if row[key])


def failures_sheet(failures: Iterable[Failure]) -> Sheet:
    """The failed trials with the first line of each error."""
    columns = [Column(name, number=False) for name in ("Failed trial", "Status", "Epoch", "Error")]
    rows = [[f.trial, f.status, NONE if f.epoch is None else str(f.epoch + 1), f.message] for f in failures]
    return Sheet(columns, [[Cell(text, text) for text in row] for row in rows], [""] * len(rows))


def percent(mean: float, sd: float) -> str:
    """`72.1 ± 0.4`, both from fractions."""
    if pd.isna(mean):
        return NONE
    return points(mean) + (f" ± {points(sd)}" if not pd.isna(sd) else "")


def bounded(mean: float, low: float, high: float, signed: bool = True) -> str:
    """`+1.2 [+0.4, +2.0]` in points, from fractions."""
    if pd.isna(mean):
        return NONE
    said = points(mean, signed)
    return said if pd.isna(low) else f"{said} [{points(low, signed)}, {points(high, signed)}]"


def rounded_time(seconds: float) -> str:
    """Seconds, minutes or hours, three digits at most."""
    if pd.isna(seconds):
        return NONE
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _accuracy(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(percent(row[f"{name}_mean"], row[f"{name}_sd"]), row[f"{name}_mean"])


def _difference(row: Row) -> Cell:
    mean, low, high = (row[f"difference_{part}"] for part in ("mean", "low", "high"))
    return Cell("baseline" if row["is_baseline"] else bounded(mean, low, high), mean)


def _p(name: str) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        if pd.isna(row[name]):
            return Cell(NONE, row[name])
        mark = "*" if row[f"{name}_smallest"] > LEVEL else ""
        return Cell(f"{'' if row['p_exact'] else '≈'}{row[name]:.2g}{mark}", row[name])

    return cell


def _number(name: str, say: Callable[[float], str]) -> Callable[[Row], Cell]:
    return lambda row: Cell(NONE if pd.isna(row[name]) else say(row[name]), row[name])


def _text(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(row[name], row[name])


_UNPAIRED = Column("Seeds without a pair", 6, number=False)
_OF_AVERAGE = (Column("EMA test, %", 3), Column("EMA val., %", 6))
_COLUMNS: list[tuple[Column, Callable[[Row], Cell]]] = [
    (Column("Scheme", number=False), _text("scheme")),
    (Column("n"), _number("n", "{:.0f}".format)),
    (Column("Test, %"), _accuracy("test_accuracy")),
    (Column("Difference [95%]"), _difference),
    (Column("p", 1), _p("p")),
    (Column("Holm p"), _p("p_holm")),
    (Column("Val., %", 2), _accuracy("val_accuracy")),
    (Column("Test at best val. epoch, %", 5), _accuracy("best_val_test_accuracy")),
    *zip(_OF_AVERAGE, map(_accuracy, ("ema_test_accuracy", "ema_val_accuracy")), strict=True),
    (Column("Gap", 4), _number("generalisation_gap", points)),
    (Column("Wall time", 3), _number("wall_seconds", rounded_time)),
    (Column("Images/s", 7), _number("images_per_second", "{:,.0f}".format)),
    (Column("Best on test (selection on test set), %", 9), _accuracy("selected_on_test_accuracy")),
    (Column("Status", number=False), _text("status")),
    (_UNPAIRED, _text("missing_seeds")),
]
_DIFFERENCE = [column.name for column, _ in _COLUMNS].index("Difference [95%]")


# The terminal


_SENTENCES = 6
_NOTES = 20
_WRAPS = 26  # the width at which a column of words is wrapped
_FOLDS = 8  # below which no word is folded
_GAP = 2  # between columns


class _Width(NamedTuple):
    """Letters of a column: its longest word, what it gets as a rule, its longest text."""

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

    Words are broken only if line breaks between them are not enough.
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
    for heading, rows in _blocks(sheet):
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


def print_comparison(console: Console, comparison: Comparison, schemes: Sheet, claims: Sheet) -> None:
    """Print the answer, the table, the claims, and the notes."""
    print_text(console, comparison.answer, "bold")
    if 1 < len(comparison.answers) <= _SENTENCES:
        for answer in comparison.answers:
            print_text(console, f"- {answer}")
    console.print()
    shown, more = _judged(claims)
    for sheet in (schemes, shown):
        if sheet.rows:
            print_sheet(console, sheet)
            console.print()
    for note in [*more, *comparison.notes[:_NOTES]]:
        print_text(console, f"note: {note}")
    if len(comparison.notes) > _NOTES:
        print_text(console, f"and {len(comparison.notes) - _NOTES} more notes: see comparison.md")


def _judged(claims: Sheet) -> tuple[Sheet, list[str]]:
    """The claims with a verdict, and a note on the others."""
    exact = [place for place, row in enumerate(claims.rows) if row[-1].text == "exact"]
    if len(exact) == len(claims.rows):
        return claims, []
    rows, headings = [claims.rows[place] for place in exact], [claims.headings[place] for place in exact]
    sheet = Sheet(claims.columns, rows, headings, claims.footnotes[-1:])
    more = len(claims.rows) - len(exact)
    return sheet, [f"{more} published figures of other settings, without a verdict: see comparison.md"]


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


def _blocks(sheet: Sheet) -> list[tuple[str, list[list[Cell]]]]:
    blocks: dict[str, list[list[Cell]]] = {}
    for heading, row in zip(sheet.headings, sheet.rows, strict=True):
        blocks.setdefault(heading, []).append(row)
    return list(blocks.items())


# Markdown


def markdown(text: str) -> str:
    """Escape GitHub's Markdown."""
    text = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#$])", r"\\\1", text)


def markdown_sheet(sheet: Sheet) -> str:
    """One GitHub table per block."""
    lines: list[str] = []
    for heading, rows in _blocks(sheet):
        lines += ["", f"**{markdown(heading)}**"] if heading else []
        lines += [
            "",
            "| " + " | ".join(markdown(column.name) for column in sheet.columns) + " |",
            "|" + "|".join("---:" if column.number else ":---" for column in sheet.columns) + "|",
            *("| " + " | ".join(markdown(cell.text) for cell in row) + " |" for row in rows),
        ]
    lines += [f"\n{markdown(footnote)}" for footnote in sheet.footnotes]
    return "\n".join(lines) + "\n"


# LaTeX


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "\N{MINUS SIGN}": "$-$",
    NONE: "--",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(text: str) -> str:
    """Escape LaTeX's special characters; those its usual fonts lack become their code points."""
    return "".join(_TEX.get(c, c if c <= "\u017f" else f"[U+{ord(c):04X}]") for c in line(text))


SHORT = ("Scheme", "n", "Test, %", "Difference [95%]", "Holm p")
"""The columns of a table for a paper."""


def latex_sheet(sheet: Sheet, names: Sequence[str] = ()) -> str:
    """A booktabs table of these columns, by default those that fit on a page; a longtable if the rows do not."""
    kept = [k for k, column in enumerate(sheet.columns) if (column.name in names if names else column.spare <= 5)]
    environment = "longtable" if len(sheet.rows) > 40 else "tabular"
    words = r">{\raggedright\arraybackslash}p{5.5em}"
    layout = "".join("r" if sheet.columns[place].number else words for place in kept[1:])
    lines = [r"{\footnotesize\setlength{\tabcolsep}{2.5pt}", rf"\begin{{{environment}}}{{l{layout}}}", r"\toprule"]
    lines.append(" & ".join(latex(sheet.columns[place].name) for place in kept) + r" \\")
    for heading, rows in _blocks(sheet):
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{len(kept)}}}{{l}}{{\emph{{{latex(heading)}}}}} \\")
        # Braces keep a leading [ from being read as an option of the line break before it.
        lines += ["{}" + " & ".join(latex(row[place].text) for place in kept) + r" \\" for row in rows]
    lines += [r"\bottomrule", rf"\end{{{environment}}}"]
    lines += [rf"\par\smallskip {latex(footnote)}" for footnote in sheet.footnotes]
    return "\n".join([*lines, r"\par}"]) + "\n"


# Files


def write_markdown(
    path: Path,
    comparison: Comparison,
    sheets: Sequence[tuple[str, Sheet]],
    folded: Sequence[tuple[str, Sheet]] = (),
) -> None:
    """The answer, the sheets under their titles, the notes, and sheets that are closed at first."""
    parts = [f"<!-- {MARK} {repr_ray.__version__} -->\n# Comparison with {markdown(comparison.baseline)}\n"]
    parts += [f"**{markdown(comparison.answer)}**\n"]
    if len(comparison.answers) > 1:
        parts.append("".join(f"- {markdown(answer)}\n" for answer in comparison.answers))
    parts += [f"## {markdown(title)}\n{markdown_sheet(sheet)}" for title, sheet in sheets if sheet.rows]
    if comparison.notes:
        parts.append("## Notes\n\n" + "".join(f"- {markdown(note)}\n" for note in comparison.notes))
    for title, sheet in folded:
        if sheet.rows:
            parts.append(f"<details><summary>{title}</summary>\n{markdown_sheet(sheet)}\n</details>\n")
    write_text(path, "\n".join(parts))


def write_latex(path: Path, sheets: Sequence[tuple[str, Sheet]], names: Sequence[str] = ()) -> None:
    """The sheets, or these columns of them, to be included with `\\input`; as wide as a page with inch margins."""
    packages = r"\usepackage{array,booktabs,longtable} \usepackage[margin=1in]{geometry}"
    head = f"% {MARK} {repr_ray.__version__}: {packages}, then \\input this file\n"
    write_text(path, head + "\n\\bigskip\n\n".join(latex_sheet(sheet, names) for _, sheet in sheets if sheet.rows))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """The bare numbers, with the version of this package in the last column; no cell is a formula."""
    versioned = table.assign(**{f"{MARK}_version": repr_ray.__version__})
    for name in versioned.select_dtypes(exclude="number"):
        versioned[name] = versioned[name].map(cell, na_action="ignore")
    write_text(path, versioned.to_csv(index=False, lineterminator="\n"))


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """The bare numbers with the version of the tables as metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pa.Table.from_pandas(table, preserve_index=False)
    metadata = (arrow.schema.metadata or {}) | (SCHEMAS["trials"].metadata or {})
    with replacing(path) as temporary:
        pq.write_table(arrow.replace_schema_metadata(metadata), temporary)
