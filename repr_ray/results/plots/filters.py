"""Which filters are dropped: one row per filter, one column per cycle of a seed."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from repr_ray.results.plots.block import Block
from repr_ray.results.plots.style import Made, Panels, arrange, every, plain, short, some

_OFF, _ON = "#1b1b1b", "#c9d6e2"
_HEIGHT = (2.6, 6.5)  # inches of a panel, for a few filters and for many
_ROW = 0.02


def filters(block: Block) -> Made:
    """One panel per scheme; white lines between layers and between seeds."""
    drops = block.drops
    schemes = block.drawn(drops)
    if not schemes:
        return None
    cells = drops.set_index(["scheme", "place", "filter", "seed", "cycle"])["dropped"].astype(float)
    images = cells[~cells.index.duplicated(keep="last")].unstack(["seed", "cycle"]).sort_index(axis=1)
    rows = images.groupby("scheme", observed=True).size().max()
    columns, size = arrange(len(schemes))
    panels = Panels.make(
        len(schemes),
        columns,
        (size[0], float(np.clip(_ROW * rows, *_HEIGHT))),
        left=1.2,
        x_label="Seed; a column is a cycle",
        y_label="Filters of each layer",
        legend=[(Patch(color=_OFF), "dropped"), (Patch(color=_ON), "kept")],
    )
    names = drops.drop_duplicates("place").set_index("place")["layer"]
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        every_cycle = images.loc[[scheme]].droplevel("scheme")
        image = every_cycle.loc[:, every_cycle.notna().any()]  # not those of other schemes
        layers = image.index.get_level_values("place").to_numpy()
        seeds = image.columns.get_level_values("seed").to_numpy()
        shown = np.ma.masked_invalid(image.to_numpy(dtype=float))
        axis.imshow(shown, cmap=ListedColormap([_ON, _OFF]), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axis.grid(False)
        axis.vlines(np.flatnonzero(np.diff(seeds)) + 0.5, -0.5, len(layers) - 0.5, color="white", linewidth=1.5)
        between = np.flatnonzero(np.diff(layers)) + 0.5
        axis.hlines(between, -0.5, len(seeds) - 0.5, color="white", linewidth=1.5)
        axis.set(title=short(scheme), ylim=(len(layers) - 0.5, -0.5), xlim=(-0.5, len(seeds) - 0.5))
        numbered = every(np.unique(seeds), 10)
        axis.set_xticks([np.flatnonzero(seeds == seed).mean() for seed in numbered], [str(s) for s in numbered])
        named = every(np.unique(layers), 18)
        middles = [np.flatnonzero(layers == place).mean() for place in named]
        axis.set_yticks(middles, [plain(str(names[place])[-18:]) for place in named], fontsize=7)
    panels.share(None, None)
    shares = drops.groupby("scheme", observed=True)["dropped"].mean()
    said = some([f"{scheme} {shares[scheme]:.0%}" for scheme in schemes])
    alt = f"Filters on and off, one row per filter, one column per cycle. Share dropped a cycle: {said}."
    return panels.figure, "Which filters are dropped, by layer and cycle", alt
