"""Schemes over data sets and networks: mean ranks with Nemenyi's critical difference, and a map of differences."""

from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from repr_ray.results.across import Across
from repr_ray.results.compare import records
from repr_ray.results.plots.grid import heat_map
from repr_ray.results.plots.style import BLUE, Panels, inches, short, some
from repr_ray.results.words import in_percent

_MOST = 40  # columns of the map


def overview(found: Across) -> Iterator[tuple[str, Figure, str, str]]:
    """The pictures by the names of their files, each with its title and its description."""
    if not np.isnan(found.critical):
        said = some([f"{row['scheme']} {row['rank']:.2f}" for row in records(found.table)])
        alt = f"Mean rank over {len(found.accuracies)} data sets and networks, 1 is best: {said}."
        yield "critical-difference", _ranks(found), "Mean ranks with Nemenyi's critical difference", alt
    means = some([f"{name} {in_percent(value, True)}" for name, value in found.differences.mean().items()])
    alt = f"Difference to {found.baseline} in points on each data set and network; means: {means}."
    yield "differences-map", _map(found), f"Differences to {found.baseline} over data sets and networks", alt


def _ranks(found: Across) -> Figure:
    names = [short(name, 34) for name in found.table["scheme"]]
    panels = Panels.listing(names, "Mean rank, 1 is best; schemes whose bars do not overlap differ at 5% (Nemenyi)")
    ranks, places = found.table["rank"].to_numpy(dtype=float), np.arange(len(names))
    panels.axes[0].errorbar(ranks, places, xerr=found.critical / 2, fmt="o", color=BLUE, capsize=3)
    return panels.figure


def _map(found: Across) -> Figure:
    order = [name for name in found.table["scheme"] if name != found.baseline]
    shown = 100 * found.differences[order].iloc[:_MOST].T
    columns = [short(" ".join(str(part) for part in key), 18) for key in shown.columns]
    names = [short(name, 24) for name in order]
    values = shown.to_numpy()
    limit = float(np.abs(values).max()) or 1.0
    panels = Panels.make(
        1,
        1,
        (0.62 * len(columns) + 0.4, 0.42 * len(names) + 0.3),
        left=0.5 + inches(names),
        ticks=0.3 + inches(columns),
        x_label=f"Difference to {found.baseline}, points",
    )
    [axis] = panels.axes
    texts = [[in_percent(value / 100, True) for value in row] for row in values]
    heat_map(axis, values, texts, (Normalize(-limit, limit), mpl.colormaps["PuOr"]))
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(names)), names)
    return panels.figure
