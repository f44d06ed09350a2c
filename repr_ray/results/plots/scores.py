"""The scores of kept and dropped filters, by layer and cycle."""

import numpy as np
from matplotlib.lines import Line2D

from repr_ray.results.plots.block import Block
from repr_ray.results.plots.style import BLUE, VERMILION, Made, Panels, arrange, every, limits, plain, short, spaced

_CYCLES = 4  # cycles shown
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PARTS = ((False, "kept", BLUE, "o", "white"), (True, "dropped", VERMILION, "s", VERMILION))
_LETTER = 0.055  # inches, of a tick label


def scores(block: Block) -> Made:
    """One panel per scheme: median, quartiles and the middle 90% over all seeds."""
    drops = block.drops.dropna(subset="score")
    schemes = block.drawn(drops)
    if not schemes:
        return None
    cycles: dict[str, list[int]] = {}
    for scheme in schemes:
        there = drops.loc[drops["scheme"] == scheme, "cycle"].unique()
        cycles[scheme] = spaced(np.sort(there), _CYCLES).tolist()
    kept = zip(drops["scheme"], drops["cycle"], strict=True)
    rows = drops[[cycle in cycles.get(scheme, ()) for scheme, cycle in kept]]
    numbers = [", ".join(str(cycle + 1) for cycle in some) for some in cycles.values()]
    shown = f"cycles {numbers[0]}" if len(set(numbers)) == 1 else f"{_CYCLES} cycles at most"
    groups = rows.groupby(["scheme", "dropped", "place", "cycle"], observed=True)["score"]
    spreads = groups.quantile(np.array(_QUANTILES)).unstack()
    level = spreads.index.get_level_values
    places = np.arange(rows["place"].max() + 1)
    layers = rows.drop_duplicates("place").set_index("place")["layer"]

    few, mark = len(places) < 20, 3 if len(places) < 6 else 2
    columns, size = arrange(len(schemes))
    named = every(places, 16)
    names = [plain(str(layers.get(place, ""))[-18:]) for place in named]
    longest = _LETTER * max(map(len, names))
    upright = longest * len(names) > size[0]
    panels = Panels.make(
        len(schemes),
        columns,
        size,
        ticks=0.2 + longest if upright else 0.3,
        y_label="Score",
        x_label=f"Layer; within it {shown} from left to right",
        legend=[
            (Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linewidth=2.4), name)
            for _, name, colour, marker, face in _PARTS
        ],
    )
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        for dropped, _, colour, marker, face in _PARTS:
            spread = spreads[(level("scheme") == scheme) & (level("dropped") == dropped)]
            if spread.empty:
                continue
            own = cycles[scheme]
            offset = spread.index.get_level_values("cycle").map(own.index).to_numpy(dtype=float)
            x = spread.index.get_level_values("place").to_numpy(dtype=float)
            x = x + (offset + 0.5 - len(own) / 2 + (0.15 if dropped else -0.15)) * 0.8 / len(own)
            q = spread.to_numpy(dtype=float)
            axis.vlines(x, q[:, 0], q[:, 4], color=colour, linewidth=0.7)
            axis.vlines(x, q[:, 1], q[:, 3], color=colour, linewidth=2.4 if few else 1.2)
            axis.plot(x, q[:, 2], marker, color=colour, markersize=mark, markerfacecolor=face)
        axis.set_xticks(named, names, fontsize=7, rotation=90 if upright else 0)
        axis.grid(False, axis="x")
        axis.set_title(short(scheme))
    ends = limits(spreads.to_numpy().min(), spreads.to_numpy().max())
    for axis in panels.axes if few else ():
        axis.vlines(places[:-1] + 0.5, *ends, color="#d0d0d0", linewidth=0.6)
    panels.share((-0.5, len(places) - 0.5), ends)
    alt = "Scores of the filters when they are ranked, kept and dropped ones apart, by layer and cycle: median,"
    alt += " quartiles and the middle 90% over all seeds."
    return panels.figure, "Filter scores: median, quartiles, 5% to 95%", alt
