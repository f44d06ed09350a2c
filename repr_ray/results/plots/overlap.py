"""The overlap of a layer's filters over time."""

import matplotlib as mpl
import numpy as np
from matplotlib.lines import Line2D

from repr_ray.results.plots.block import Block
from repr_ray.results.plots.curves import shade, span
from repr_ray.results.plots.style import DASHES, Made, Panels, arrange, limits, short, spaced

_LAYERS = 6  # layers drawn


def overlap(block: Block) -> Made:
    """Mean off-diagonal |cos| of each layer, in one panel per scheme; dark lines are the first layers."""
    rows = block.rows("layers", ["epoch", "layer", "overlap"]).dropna(subset="overlap")
    rows = rows.assign(epoch=rows["epoch"] + 1)  # shown from 1
    if rows.empty:
        return None
    layers = [str(name) for name in rows["layer"].unique()]
    shown = [layers[k] for k in spaced(np.arange(len(layers)), _LAYERS)]
    colours = [mpl.colormaps["cividis"](x) for x in np.linspace(0, 0.7, len(shown))]
    styles = dict(zip(shown, zip(colours, DASHES, strict=False), strict=True))
    schemes = block.drawn(rows)
    panels = Panels.make(
        len(schemes),
        *arrange(len(schemes)),
        x_label="Epoch",
        y_label="Mean |cos| between filters",
        legend=[(Line2D([], [], color=c, ls=d, linewidth=1.3), layer) for layer, (c, d) in styles.items()],
    )
    means = rows[rows["layer"].isin(shown)].groupby(["scheme", "layer", "epoch"], observed=True)["overlap"].mean()
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        shade(axis, block.epochs[block.epochs["scheme"] == scheme])
        for layer, (colour, dashes) in styles.items():
            if (scheme, layer) in means.index:
                line = means[scheme, layer]
                axis.plot(line.index, line.to_numpy(), color=colour, linestyle=dashes, linewidth=1.3)
        axis.set_title(short(scheme))
    panels.share(span(rows), limits(means.min(), means.max()))
    some = f" Layers shown: {len(shown)} of {len(layers)}." if len(shown) < len(layers) else ""
    alt = f"Mean off-diagonal absolute cosine between the filters of a layer, per epoch, mean over seeds.{some}"
    return panels.figure, "Overlap of filters: mean off-diagonal |cos|, lower is more orthogonal", alt
