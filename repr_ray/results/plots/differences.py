"""Differences to the baseline, paired by seed."""

import numpy as np
from matplotlib.lines import Line2D

from repr_ray.results.blocks import BLOCK
from repr_ray.results.compare import records
from repr_ray.results.plots.block import Block
from repr_ray.results.plots.style import BLUE, GREY, VERMILION, Made, Panels, short, some
from repr_ray.results.words import in_percent

_VERDICTS = {  # colour, marker, and what fills it
    "better": (BLUE, ">", BLUE),
    "worse": (VERMILION, "<", VERMILION),
    "practically equal": ("black", "s", "black"),
    "cannot tell": ("black", "D", "white"),
}


def differences(block: Block) -> Made:
    """Every seed as a dot, mean and 95% interval above them, one row per scheme."""
    pairs = block.comparison.pairs
    pairs = pairs[(pairs[BLOCK] == block.table[BLOCK].iloc[0].tolist()).all(axis=1)]
    seeds = {scheme: 100 * found.to_numpy(dtype=float) for scheme, found in pairs.groupby("scheme")["difference"]}
    rows = [row for row in records(block.table) if row["scheme"] in seeds]
    if not rows:
        return None
    base = block.comparison.baseline
    names = [short(row["scheme"], 34) for row in rows]
    legend = [(Line2D([], [], color=GREY, marker="o", linestyle="", markersize=4), "a seed")]
    given = {row["verdict"] for row in rows}
    for verdict, (colour, marker, face) in _VERDICTS.items():
        if verdict in given:
            legend.append((Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linewidth=2), verdict))
    panels = Panels.listing(names, f"Test accuracy less that of {base}, percentage points", legend)
    [axis] = panels.axes
    axis.axvline(0, color="black", linewidth=0.9)
    dots = [(value, place + 0.17) for place, row in enumerate(rows) for value in seeds[row["scheme"]]]
    axis.plot(*np.transpose(dots), "o", color=GREY, markersize=3.5, alpha=0.8)
    for verdict, (colour, marker, face) in _VERDICTS.items():
        chosen = [(place - 0.12, row) for place, row in enumerate(rows) if row["verdict"] == verdict]
        if chosen:
            y = [height for height, _ in chosen]
            mean, low, high = (
                [100 * row[f"difference_{part}"] for _, row in chosen] for part in ("mean", "low", "high")
            )
            axis.hlines(y, low, high, color=colour, linewidth=2)
            axis.plot(mean, y, marker, color=colour, markerfacecolor=face, markersize=6)
    said = some([f"{row['scheme']} {in_percent(row['difference_mean'], True)}" for row in rows])
    alt = f"Difference of last-epoch test accuracy to {base}, paired by seed, in points: {said}."
    return panels.figure, "Paired differences: every seed, mean, 95% interval", alt
