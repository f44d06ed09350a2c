"""Schemes over a grid of settings, by the values of the fields that vary."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from repr_ray.results.compare import Comparison, records
from repr_ray.results.tables import NONE, Column, Entry, Row, Sheet
from repr_ray.results.words import in_percent

LEGEND = (
    "Test accuracy in the last epoch, mean over seeds, %; in brackets the difference to the baseline, points, paired"
    " by seed; *: better or worse, as the table of schemes says."
)


@dataclass(frozen=True)
class Grid:
    """A scheme over a grid of settings: `points` has the values of a setting and its row of the comparison.

    `levels` has the values of each field that varies, in their order; the field with most of them comes first.
    """

    dataset: str
    model: str
    scheme: str
    points: list[tuple[dict[str, str], Row]]
    levels: dict[str, list[str]]

    def name(self, field: str) -> str:
        """The end of a dotted field that tells it from the others, or all of it where another one ends with it."""
        parts = field.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = [other for other in self.levels if other != field]
        return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), field)


def grids(comparison: Comparison, with_baseline: bool = False) -> Iterator[Grid]:
    """Every scheme that was run over a grid; settings that name different fields are different grids."""
    table = comparison.table[comparison.table["n"] > 0]
    found: dict[tuple[str, str, str, frozenset[str]], list[tuple[dict[str, str], Row]]] = {}
    for row in records(table if with_baseline else table[~table["is_baseline"]]):
        scheme, inside = _grid_values(row["scheme"])
        _, around = _grid_values(f"- {row['variant']}")
        point = around | inside
        found.setdefault((row["dataset"], row["model"], scheme, frozenset(point)), []).append((point, row))
    for (dataset, model, scheme, _), cells in found.items():
        values: dict[str, set[str]] = {}
        for point, _ in cells:
            for field, value in point.items():
                values.setdefault(field, set()).add(value)
        varying = sorted((f for f, v in values.items() if len(v) > 1), key=lambda f: -len(values[f]))
        if varying:
            yield Grid(
                dataset, model, scheme, cells, {field: sorted(values[field], key=sort_key) for field in varying}
            )


def grid_sheets(comparison: Comparison) -> dict[str, Sheet]:
    """Tables of the schemes over two fields or more, by their titles: one column per value of the field with most."""
    sheets: dict[str, Sheet] = {}
    for grid in grids(comparison, with_baseline=True):
        if len(grid.levels) < 2:
            continue
        across, *down = grid.levels
        title = f"Grid of {', '.join(map(grid.name, down))} and {grid.name(across)}"
        names = [f"{grid.name(across)}={value}" for value in grid.levels[across]]
        first = Column(", ".join(map(grid.name, down)), number=False)
        columns = [first, *(Column(name, min(place, 5)) for place, name in enumerate(names, 1))]
        while title in sheets and sheets[title].columns != columns:
            title += ", other values"
        sheet = sheets.setdefault(title, Sheet(columns, [], [], [LEGEND]))
        cells = {tuple(point[field] for field in grid.levels): row for point, row in grid.points}
        for values in sorted({point[1:] for point in cells}, key=lambda values: [*map(sort_key, values)]):
            texts = [_cell(cells.get((value, *values))) for value in grid.levels[across]]
            if any(cell.text != NONE for cell in texts):
                label = ", ".join(values)
                sheet.rows.append([Entry(label, label), *texts])
                sheet.headings.append(" · ".join([grid.scheme, grid.dataset, grid.model]))
    return sheets


def _cell(row: Row | None) -> Entry:
    if row is None or pd.isna(row["test_accuracy_mean"]):
        return Entry(NONE, float("nan"))
    text = in_percent(row["test_accuracy_mean"])
    if not pd.isna(row["difference_mean"]):
        sure = "*" if row["verdict"] in ("better", "worse") else ""
        text += f" ({in_percent(row['difference_mean'], True)}{sure})"
    return Entry(text, row["test_accuracy_mean"])


def _grid_values(scheme: str) -> tuple[str, dict[str, str]]:
    """`repr prune_ratio=0.5` as `repr` and its grid values; a value may hold spaces."""
    name, *fields = re.split(r" (?=[\w.+-]+=)", scheme)
    return name, dict(field.split("=", 1) for field in fields)


def sort_key(value: str) -> tuple[int, float, str]:
    """A sort key for the values of a field: numbers by size, before words."""
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value
