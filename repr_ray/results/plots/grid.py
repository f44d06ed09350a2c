"""Accuracy over a grid of settings: a line over one field, a heat map over two, several maps for more."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from repr_ray.results.compare import Comparison
from repr_ray.results.grids import Grid, grids, sort_key
from repr_ray.results.plots.style import BLUE, Panels, every, inches, plain, short
from repr_ray.results.sequential import Array
from repr_ray.results.words import in_percent

_MAPS = 12  # heat maps in a picture
_LINE = (6.0, 2.6)  # inches of a line's axes
_NUMBERS = 10  # ticks on them


def ablations(comparison: Comparison) -> Iterator[tuple[Figure, str, str]]:
    """A figure, its title and its description for every scheme that was run over a grid."""
    for grid in grids(comparison):
        paired = all(not pd.isna(row["difference_mean"]) for _, row in grid.points)
        measure = "difference" if paired else "test_accuracy"
        what = f"difference to {comparison.baseline}, points" if paired else "test accuracy, %"
        fields = list(grid.levels)
        title = f"{grid.scheme} over {', '.join(fields)}: {grid.dataset} · {grid.model}"
        best = max(grid.points, key=lambda cell: cell[1][f"{measure}_mean"])
        at = ", ".join(f"{field} {best[0][field]}" for field in fields)
        signed = measure == "difference"
        alt = f"{what} of {grid.scheme}; the highest is {in_percent(best[1][f'{measure}_mean'], signed)} at {at}."
        draw_it = _line if len(fields) == 1 else _maps
        yield draw_it(grid, measure, what), title, alt[0].upper() + alt[1:]


def _line(grid: Grid, measure: str, what: str) -> Figure:
    [field], levels = grid.levels, grid.levels
    numbers = all(sort_key(level)[0] == 0 for level in levels[field])
    # A logarithmic axis where they spread over more than a decade; equal steps where they are no positive numbers
    wide = numbers and sort_key(levels[field][-1])[1] > 12 * abs(sort_key(levels[field][0])[1])
    logarithmic = wide and sort_key(levels[field][0])[1] > 0
    even = not numbers or (wide and not logarithmic)
    named = every(np.arange(len(levels[field])), _NUMBERS if numbers else len(levels[field])).tolist()
    names = [short(levels[field][place], 14) for place in named]
    longest = inches(names)
    upright = even and longest * len(names) > _LINE[0]
    ticks = 0.25 + longest if upright else 0.45 if even else 0.3
    cells = sorted(grid.points, key=lambda cell: sort_key(cell[0][field]))
    x = [levels[field].index(point[field]) if even else sort_key(point[field])[1] for point, _ in cells]
    shown = _shown([row for _, row in cells], measure, what)
    panels = Panels.make(len(shown), 2, _LINE, left=0.9, ticks=ticks, gap=(0.9, 0.42), x_label=field)
    for axis, (name, label) in zip(panels.axes, shown.items(), strict=True):
        mean, low, high = (
            np.array([100 * row[f"{name}_{part}"] for _, row in cells]) for part in ("mean", "low", "high")
        )
        joined = "-" if numbers else ""
        axis.errorbar(x, mean, [mean - low, high - mean], color=BLUE, marker="o", capsize=3, linestyle=joined)
        if name == "difference":
            axis.axhline(0, color="black", linewidth=0.9)
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xticks([sort_key(levels[field][place])[1] for place in named], names)
            axis.xaxis.set_minor_locator(NullLocator())
        if even:
            axis.set_xticks(named, names, rotation=90 if upright else 0)
        axis.set_ylabel(short(label, 34))
    return panels.figure


def _shown(rows: list[dict[str, Any]], measure: str, what: str) -> dict[str, str]:
    """Measures in the order of their panels, with their labels: validation, where there is any, and test."""
    shown = {"val_accuracy": "validation accuracy, %", measure: f"test: {what}"}
    if all(pd.isna(row["val_accuracy_mean"]) for row in rows):
        del shown["val_accuracy"]
    return shown


def _maps(grid: Grid, measure: str, what: str) -> Figure:
    fields, levels = list(grid.levels), grid.levels
    across, down, *rest = fields
    others = sorted(
        {tuple(point[f] for f in rest) for point, _ in grid.points}, key=lambda t: [sort_key(v) for v in t]
    )[:_MAPS]
    size = (0.75 + 0.62 * len(levels[across]), 0.5 + 0.42 * len(levels[down]))
    cells = {tuple(point[f] for f in fields): row for point, row in grid.points}
    shown = _shown(list(cells.values()), measure, what)
    scales = {each: _colours(each, list(cells.values())) for each in shown}
    panels = Panels.make(
        len(others) * len(shown),
        len(shown) * max(1, int(10 // (len(shown) * (size[0] + 1)))),
        size,
        left=1.1,
        ticks=0.6,
        gap=(0.9, 0.95),
        x_label=f"Left to right {', then '.join(shown.values())}; *: test better or worse, beyond chance",
    )
    for axis, (other, measure) in zip(panels.axes, itertools.product(others, shown), strict=True):
        image = np.full((len(levels[down]), len(levels[across])), np.nan)
        texts = [[""] * len(levels[across]) for _ in levels[down]]
        for (i, y), (j, x) in itertools.product(enumerate(levels[down]), enumerate(levels[across])):
            if (row := cells.get((x, y, *other))) and not pd.isna(row[f"{measure}_mean"]):
                image[i, j] = 100 * row[f"{measure}_mean"]
                sure = "*" if row["verdict"] in ("better", "worse") and measure != "val_accuracy" else ""
                texts[i][j] = in_percent(row[f"{measure}_mean"], measure == "difference") + sure
        heat_map(axis, image, texts, scales[measure])
        axis.set_xticks(range(len(levels[across])), [short(x, 8) for x in levels[across]])
        axis.set_yticks(range(len(levels[down])), [short(y, 12) for y in levels[down]])
        axis.set(xlabel=plain(grid.name(across)), ylabel=plain(grid.name(down)))
        which = "validation" if measure == "val_accuracy" else "test"
        axis.set_title(plain(", ".join([which, *(f"{grid.name(f)}={v}" for f, v in zip(rest, other, strict=True))])))
    return panels.figure


def _colours(measure: str, rows: list[dict[str, Any]]) -> tuple[Normalize, Colormap]:
    """The scale and the colours of a heat map: differences from zero to both sides."""
    means = 100 * np.array([row[f"{measure}_mean"] for row in rows], dtype=float)
    if measure == "difference":
        limit = np.nanmax(np.abs(means)) or 1.0
        return Normalize(-limit, limit), mpl.colormaps["PuOr"]
    return Normalize(np.nanmin(means), np.nanmax(means)), mpl.colormaps["cividis"]


def heat_map(axis: Axes, values: Array, texts: Sequence[Sequence[str]], colours: tuple[Normalize, Colormap]) -> None:
    """Values as colours with their texts on them, NaN left blank."""
    scale, palette = colours
    axis.imshow(values, aspect="auto", norm=scale, cmap=palette)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if luminance(palette(scale(value))) < 0.18 else "black"
            axis.text(column, row, texts[row][column], ha="center", va="center", fontsize=8, color=ink)
    axis.grid(False)


def luminance(colour: tuple[float, ...]) -> float:
    """WCAG 2 relative luminance; at 0.18 black and white stand out about equally well."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
