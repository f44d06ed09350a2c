"""Pictures from the tables: for every block of the comparison its curves, filters, scores, overlaps, differences.

Colours are Okabe and Ito's, told apart by line style too; percent for accuracies, grey bands for the epochs that
train a sub-network.
"""

import itertools
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repr_ray.results.compare import BLOCK, LEVEL, Array, Comparison, points, records
from repr_ray.results.files import MARK, replacing
from repr_ray.results.store import Tables

_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 1)), "--", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_TOGETHER = len(_COLOURS)  # schemes that share axes; more get a panel each
_LAYERS = 6  # layers drawn as lines
_GREY = "#8a8a8a"
_DPI = 128
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": MARK,
}
_SUB = Patch(color="#ebebeb")
_PANEL = (2.35, 1.7)  # inches, where every scheme has a panel


@dataclass(frozen=True)
class Picture:
    """A picture on disk: its title, what it shows in words, its PNG and its SVG file."""

    title: str
    alt: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class _Block:
    """The trials of one data set, model and variant, and where their rows are."""

    name: str
    comparison: Comparison
    table: pd.DataFrame  # rows of the comparison
    trials: pd.DataFrame
    tables: Tables

    @property
    def schemes(self) -> list[str]:
        return list(self.table["scheme"])

    def rows(self, table: str, columns: Sequence[str]) -> pd.DataFrame:
        """Rows of a long table with the scheme and the seed of their trial."""
        found = self.tables.read(table, columns, self.trials["trial"])
        ids = self.trials.set_index("trial")
        scheme, seed = (found["trial"].map(ids[key]) for key in ("scheme", "seed"))
        return found.assign(scheme=scheme.astype("category"), seed=seed.astype("int64"))

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """What the curves are drawn from."""
        columns = ["epoch", "phase", "train_accuracy", "test_accuracy", "train_loss", "test_loss"]
        return self.rows("epochs", columns)

    def curves(self, measure: str) -> dict[str, pd.DataFrame]:
        """A row a trial, a column an epoch, by scheme."""
        wide = self.epochs.dropna(subset=measure).set_index(["scheme", "trial", "epoch"])[measure].unstack("epoch")
        return {str(scheme): rows for scheme, rows in wide.groupby("scheme", observed=True)}


def draw(tables: Tables, comparison: Comparison, folder: Path, schemes: int = 30, workers: int = 1) -> list[Picture]:
    """Draw ablations and differences, and what the trials did for blocks of `schemes` schemes in all, into `folder`.

    A note says what is left out. Up to `workers` processes draw. Raises FileExistsError
    where a file is not ours.
    """
    counts = comparison.table.groupby(BLOCK, sort=False).size().to_numpy()
    blocks = len(counts)
    detailed = int((counts.cumsum() <= max(schemes, counts[0] if schemes else 0)).sum())
    if detailed < blocks:
        comparison.notes.append(
            f"curves, filters, scores and overlaps are drawn for {detailed} of {blocks} blocks;"
            f" --pictures {counts.sum()} draws all"
        )
    draw_block = partial(_draw_block, tables, comparison, folder, detailed)
    processes = min(workers, detailed // 2)  # to start one costs about as much as to draw a block
    if processes > 1:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            made = list(pool.map(draw_block, range(blocks)))
    else:
        made = [draw_block(place) for place in range(blocks)]
    with _styled():
        for place, (figure, title, alt) in enumerate(_ablations(comparison), 1):
            made.insert(place - 1, [_save(figure, folder / f"ablation-{place:02d}", title, alt)])
    return [picture for pictures in made for picture in pictures]


def _draw_block(tables: Tables, comparison: Comparison, folder: Path, detailed: int, place: int) -> list[Picture]:
    key, rows = list(comparison.table.groupby(BLOCK, sort=False))[place]
    name = " · ".join(str(part) for part in key if part)
    chosen = (comparison.trials[BLOCK] == list(key)).all(axis=1)
    block = _Block(name, comparison, rows, comparison.trials[chosen], tables)
    prefix = "" if len(rows) == len(comparison.table) else f"{place + 1:02d}-{_slug(name)}-"
    pictures = []
    with _styled():
        for kind, make in _KINDS.items():
            if (kind == "differences" or place < detailed) and (made := make(block)):
                figure, title, alt = made
                pictures.append(_save(figure, folder / f"{prefix}{kind}", f"{title}: {name}", alt))
    return pictures


@contextmanager
def _styled() -> Iterator[None]:
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


_Made = tuple[Figure, str, str] | None


def _save(figure: Figure, path: Path, title: str, alt: str) -> Picture:
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    colours = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    mark = PngInfo()
    mark.add_text("Software", MARK)
    # In a palette it takes a third of the room; the octree rounds, so the paper is made white again.
    indexed = colours.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, paper = indexed.getpalette() or [], 3 * int(np.asarray(indexed)[0, 0])
    indexed.putpalette([*palette[:paper], 255, 255, 255, *palette[paper + 3 :]])
    with replacing(png) as temporary:
        indexed.save(temporary, "PNG", pnginfo=mark, dpi=(_DPI, _DPI))
    figure.set_dpi(72)
    with replacing(svg) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Creator": MARK, "Date": None})
    return Picture(title, alt, png, svg)


# Curves


def _curves(block: _Block) -> _Made:
    """Training and test, accuracy and loss, of schemes that share axes."""
    epochs = block.epochs
    if epochs.empty or len(block.schemes) > _TOGETHER:
        return None
    rows = -(-(len(block.schemes) + 1) // 3)
    panels = _Panels.make(4, 2, (4.5, 2.5), bottom=0.6 + 0.2 * rows, gap=(0.35, 0.5))
    for axis, measure in zip(
        panels.axes, ("train_accuracy", "test_accuracy", "train_loss", "test_loss"), strict=True
    ):
        _shade(axis, epochs)
        curves = block.curves(measure)
        for place, scheme in enumerate(block.schemes):
            _curve(axis, curves.get(scheme), _COLOURS[place], _DASHES[place])
        part, kind = measure.split("_")
        axis.set_title(f"{'Training' if part == 'train' else 'Test'} {kind}")
    for axis in panels.axes[2:]:
        axis.set_xlabel("Epoch")
    for row, kind in ((panels.axes[:2], "accuracy"), (panels.axes[2:], "loss")):
        panels.share(row, _span(epochs), _scale(row, kind, epochs))
    handles: list[Any] = [Line2D([], [], color=c, ls=d) for c, d in zip(_COLOURS, _DASHES, strict=True)]
    handles = [*handles[: len(block.schemes)], _SUB]
    panels.legend(handles, [*block.schemes, "sub-network (S2)"], 3)
    return panels.figure, "Accuracy and loss, mean with 95% interval and every seed", _said(block)


def _curves_apart(kind: str) -> Callable[[_Block], _Made]:
    """Training and test in a panel a scheme, where there are too many for one."""

    def make(block: _Block) -> _Made:
        epochs = block.epochs
        if epochs.empty or len(block.schemes) <= _TOGETHER:
            return None
        columns, size = _columns(len(block.schemes))
        panels = _Panels.make(len(block.schemes), columns, size)
        train, test = block.curves(f"train_{kind}"), block.curves(f"test_{kind}")
        for axis, scheme in zip(panels.axes, block.schemes, strict=True):
            _shade(axis, epochs[epochs["scheme"] == scheme])
            _curve(axis, test.get(block.comparison.baseline), _GREY, "-", seeds=False)
            _curve(axis, train.get(scheme), "#0072B2", _DASHES[1])
            _curve(axis, test.get(scheme), "#D55E00", "-")
            axis.set_title(_short(scheme))
        panels.share(panels.axes, _span(epochs), _scale(panels.axes, kind, epochs))
        handles: list[Any] = [Line2D([], [], color="#D55E00"), Line2D([], [], color="#0072B2", ls=_DASHES[1])]
        handles += [Line2D([], [], color=_GREY), _SUB]
        names = ["test", "training", f"{block.comparison.baseline}, test", "sub-network (S2)"]
        panels.legend(handles, names, 4, x_label="Epoch")
        return panels.figure, f"{kind.capitalize()}, mean with 95% interval and every seed", _said(block)

    return make


def _said(block: _Block) -> str:
    done = [row for row in records(block.table) if row["n"]]
    figures = [f"{row['scheme']} {points(row['test_accuracy_mean'])}%" for row in done]
    return (
        f"Per epoch, on training and test images, of {len(block.schemes)} schemes. Mean test accuracy in the last"
        f" epoch: {_some(figures) or 'none has finished'}."
    )


def _curve(axis: Axes, rows: pd.DataFrame | None, colour: str, dashes: Any, seeds: bool = True) -> None:
    """Mean and 95% interval over the trials of a scheme, and a thin line each."""
    if rows is None:
        return
    rows = rows.dropna(axis="columns", how="all")
    x, values = rows.columns.to_numpy(dtype=float), rows.to_numpy(dtype=float)
    if seeds and len(values) > 1:
        lines = [np.column_stack([x, trial]) for trial in values]
        axis.add_collection(LineCollection(lines, colors=colour, linewidths=0.5, alpha=0.3))
        if len(values) > 2:  # that of two is wider than any picture
            axis.fill_between(x, *_band(values), color=colour, alpha=0.18, linewidth=0)
    axis.plot(x, np.nanmean(values, axis=0), color=colour, linestyle=dashes)


def _band(values: Array) -> tuple[Array, Array]:
    """The 95% t-interval of the mean of each column; NaN where it has fewer than two values."""
    from scipy import stats

    count = (~np.isnan(values)).sum(axis=0)
    several = count > 1
    mean, error = np.nanmean(values, axis=0), np.full(values.shape[1], np.nan)
    error[several] = stats.sem(values[:, several], axis=0, nan_policy="omit")
    error[error == 0] = np.nan  # equal values: no band
    low, high = stats.t.interval(1 - LEVEL, np.maximum(count - 1, 1), loc=mean, scale=error)
    return np.asarray(low), np.asarray(high)


def _shade(axis: Axes, epochs: pd.DataFrame) -> None:
    """Grey where any of the trials trains a sub-network; epoch e is shaded from e - 1/2 to e + 1/2."""
    sub = np.unique(epochs.loc[epochs["phase"] == "sub", "epoch"])
    for run in np.split(sub, np.flatnonzero(np.diff(sub) > 1) + 1):
        if len(run):
            axis.axvspan(run[0] - 0.5, run[-1] + 0.5, color="#ebebeb", linewidth=0, zorder=0)


def _span(epochs: pd.DataFrame) -> tuple[float, float]:
    last = float(epochs["epoch"].max())
    return -0.5 - 0.02 * last, last + 0.5 + 0.02 * last


def _scale(axes: Sequence[Axes], kind: str, epochs: pd.DataFrame) -> tuple[float, float]:
    """The y scale that panels share; a few diverged epochs do not squeeze the rest."""
    values = epochs[[f"train_{kind}", f"test_{kind}"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.0, 1.0 if kind == "accuracy" else 0.99]) if len(values) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.01
    axes[0].set_ylim(low - room, high + room)
    if kind == "accuracy":
        for axis in axes:
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if high - low > 0.05 else 1))
    return float(low - room), float(high + room)


# Filters, scores, overlaps


def _filters(block: _Block) -> _Made:
    drops = _drops(block, ["dropped"])
    schemes = [scheme for scheme in block.schemes if (drops["scheme"] == scheme).any()]
    if not schemes:
        return None
    columns, size = _columns(len(schemes))
    panels = _Panels.make(len(schemes), columns, (size[0], 2.6), left=1.2)
    colours = ListedColormap(["#dce6ee", "#1b1b1b"])
    cells = drops.set_index(["scheme", "place", "filter", "seed", "cycle"])["dropped"].astype(float)
    images = cells[~cells.index.duplicated(keep="last")].unstack(["seed", "cycle"]).sort_index(axis=1)
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        image = images.loc[scheme]
        layers = image.index.get_level_values("place").to_numpy()
        seeds = image.columns.get_level_values("seed").to_numpy()
        axis.imshow(
            np.ma.masked_invalid(image.to_numpy(dtype=float)),
            cmap=colours,
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        columns_between = np.flatnonzero(np.diff(seeds)) + 0.5
        axis.vlines(columns_between, -0.5, len(layers) - 0.5, color="white", linewidth=1.5)
        rows_between = np.flatnonzero(np.diff(layers)) + 0.5
        width = min(1.2, 12 / (len(rows_between) + 1))
        axis.hlines(rows_between, -0.5, len(seeds) - 0.5, color="#D55E00", linewidth=width)
        axis.set(title=_short(scheme), ylim=(len(layers) - 0.5, -0.5), xlim=(-0.5, len(seeds) - 0.5))
        axis.grid(False)
        some = _spaced(np.unique(seeds), 10)
        axis.set_xticks([np.flatnonzero(seeds == seed).mean() for seed in some], [str(seed) for seed in some])
        shown = _spaced(np.unique(layers), 8)
        names = drops.drop_duplicates("place").set_index("place")["layer"]
        middles = [np.flatnonzero(layers == place).mean() for place in shown]
        axis.set_yticks(middles, [_plain(str(names[place])[-18:]) for place in shown], fontsize=7)
    panels.share(panels.axes, None, None)
    handles = [Patch(facecolor="#1b1b1b"), Patch(facecolor="#dce6ee")]
    panels.legend(handles, ["dropped", "kept"], 2, x_label="A column is a cycle, by seed")
    shares = drops.groupby("scheme", observed=True)["dropped"].mean()
    said = _some([f"{scheme} {shares[scheme]:.0%}" for scheme in schemes])
    alt = f"Filters on and off, a row a filter, a column a cycle. Share dropped a cycle: {said}."
    return panels.figure, "Which filters are dropped, by layer and cycle", alt


def _scores(block: _Block) -> _Made:
    drops = _drops(block, ["score", "dropped"]).dropna(subset="score")
    schemes = [scheme for scheme in block.schemes if (drops["scheme"] == scheme).any()]
    if not schemes:
        return None
    columns, size = _columns(len(schemes))
    panels = _Panels.make(len(schemes), columns, size)
    cycles = sorted(drops["cycle"].unique())
    shown = [cycles[k] for k in np.unique(np.linspace(0, len(cycles) - 1, min(len(cycles), 4)).round().astype(int))]
    parts = ((False, "#0072B2", "o"), (True, "#D55E00", "s"))
    rows = drops[drops["cycle"].isin(shown)]
    groups = rows.groupby(["scheme", "dropped", "place", "cycle"], observed=True)["score"]
    spreads = groups.quantile(np.array([0.05, 0.25, 0.5, 0.75, 0.95])).unstack()
    level = spreads.index.get_level_values
    places = np.arange(rows["place"].max() + 1)
    names = rows.drop_duplicates("place").set_index("place")["layer"]
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        for dropped, colour, marker in parts:
            spread = spreads[(level("scheme") == scheme) & (level("dropped") == dropped)]
            if spread.empty:
                continue
            offset = spread.index.get_level_values("cycle").map(shown.index).to_numpy(dtype=float)
            x = spread.index.get_level_values("place").to_numpy(dtype=float)
            x = x + (offset + 0.5 - len(shown) / 2 + (0.15 if dropped else -0.15)) * 0.8 / len(shown)
            q = spread.to_numpy(dtype=float)
            axis.vlines(x, q[:, 0], q[:, 4], color=colour, linewidth=0.7)
            axis.vlines(x, q[:, 1], q[:, 3], color=colour, linewidth=2.4 if len(places) < 20 else 1.2)
            axis.plot(x, q[:, 2], marker, color=colour, markersize=3, markerfacecolor="white", linestyle="")
        some = _spaced(places, 6)
        axis.set_xticks(some, [_plain(str(names[k])[-14:]) for k in some], fontsize=7)
        axis.grid(False, axis="x")
        axis.set_title(_short(scheme))
    low, high = spreads.to_numpy().min(), spreads.to_numpy().max()
    room = 0.05 * (high - low) or 0.01
    between = places[:-1] + 0.5 if len(places) < 20 else np.array([])
    for axis in panels.axes:
        axis.vlines(between, low - room, high + room, color="#d0d0d0", linewidth=0.6)
    panels.axes[0].set_ylim(low - room, high + room)
    panels.share(panels.axes, (-0.5, len(places) - 0.5), (low - room, high + room))
    handles = [Line2D([], [], color=c, marker=m, markerfacecolor="white", linewidth=2.4) for _, c, m in parts]
    said = ", ".join(str(int(cycle)) for cycle in shown)
    panels.legend(handles, ["kept", "dropped"], 2, x_label=f"Layer; within it cycles {said} from left to right")
    alt = "Scores of the filters when they are ranked, kept and dropped ones apart, by layer and cycle: median,"
    alt += " quartiles and the middle 90% over all seeds."
    return panels.figure, "Filter scores: median, quartiles, 5% to 95%", alt


def _overlaps(block: _Block) -> _Made:
    rows = block.rows("layers", ["epoch", "layer", "overlap"]).dropna(subset="overlap")
    if rows.empty:
        return None
    phases = block.epochs
    layers = [str(name) for name in rows["layer"].unique()]
    shown = [layers[k] for k in _spaced(np.arange(len(layers)), _LAYERS)]
    schemes = [scheme for scheme in block.schemes if (rows["scheme"] == scheme).any()]
    columns, size = _columns(len(schemes))
    panels = _Panels.make(len(schemes), columns, size)
    means = rows[rows["layer"].isin(shown)].groupby(["scheme", "layer", "epoch"], observed=True)["overlap"].mean()
    colours = [mpl.colormaps["cividis"](x) for x in np.linspace(0, 0.85, len(shown))]
    for axis, scheme in zip(panels.axes, schemes, strict=True):
        _shade(axis, phases[phases["scheme"] == scheme])
        for layer, colour, dashes in zip(shown, colours, _DASHES, strict=False):
            if (scheme, layer) in means.index:
                line = means[scheme, layer]
                axis.plot(line.index, line.to_numpy(), color=colour, linestyle=dashes, linewidth=1.3)
        axis.set_title(_short(scheme))
    room = 0.05 * float(means.max() - means.min()) or 0.01
    limits = float(means.min()) - room, float(means.max()) + room
    panels.axes[0].set_ylim(limits)
    panels.share(panels.axes, _span(rows), limits)
    handles = [Line2D([], [], color=c, ls=d) for c, d in zip(colours, _DASHES, strict=False)]
    panels.legend(handles, shown, 6, x_label="Epoch")
    some = f" Layers shown: {len(shown)} of {len(layers)}." if len(shown) < len(layers) else ""
    alt = f"Mean off-diagonal absolute cosine between the filters of a layer, per epoch, mean over seeds.{some}"
    return panels.figure, "Overlap of filters: mean off-diagonal |cos|, lower is more orthogonal", alt


def _drops(block: _Block, columns: Sequence[str]) -> pd.DataFrame:
    """The drop events, with the place of every layer in its network."""
    rows = block.rows("cycles", ["cycle", "event", "layer", "filter", *columns])
    rows = rows[rows["event"] == "drop"]
    layers = {str(name): place for place, name in enumerate(rows["layer"].unique())}
    return rows.assign(place=rows["layer"].map(layers).astype("int64"))


# Differences and ablations


def _differences(block: _Block) -> _Made:
    pairs = block.comparison.pairs
    pairs = pairs[(pairs[BLOCK] == block.table[BLOCK].iloc[0].tolist()).all(axis=1)]
    rows = [row for row in records(block.table) if (pairs["scheme"] == row["scheme"]).any()]
    if not rows:
        return None
    panels = _Panels.make(1, 1, (6.0, 0.5 + 0.32 * len(rows)), left=2.6)
    [axis] = panels.axes
    axis.axvline(0, color="black", linewidth=0.9)
    for place, row in enumerate(rows):
        seeds = 100 * pairs.loc[pairs["scheme"] == row["scheme"], "difference"].to_numpy(dtype=float)
        axis.plot(seeds, np.full(len(seeds), place + 0.17), "o", color=_GREY, markersize=3.5, alpha=0.8)
        mean, low, high = (100 * row[f"difference_{part}"] for part in ("mean", "low", "high"))
        colour = {"better": "#0072B2", "worse": "#D55E00"}.get(row["verdict"], "black")
        face = "white" if row["verdict"] == "cannot tell" else colour
        axis.plot([low, high], [place - 0.12] * 2, color=colour, linewidth=2)
        axis.plot(mean, place - 0.12, "D", color=colour, markerfacecolor=face, markersize=6)
    axis.set_yticks(range(len(rows)), [_short(row["scheme"], 34) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(False, axis="y")
    handles = [Line2D([], [], color=_GREY, marker="o", ls="", markersize=4)]
    for colour, face in (("#0072B2", "#0072B2"), ("#D55E00", "#D55E00"), ("black", "white")):
        handles.append(Line2D([], [], color=colour, marker="D", markerfacecolor=face, linewidth=2))
    base = block.comparison.baseline
    names = ["a seed", "better", "worse", "cannot tell"]
    panels.legend(handles, names, 4, x_label=f"Test accuracy less that of {base}, percentage points")
    said = _some([f"{row['scheme']} {points(row['difference_mean'], True)}" for row in rows])
    alt = f"Difference of last-epoch test accuracy to {base}, paired by seed, in points: {said}."
    return panels.figure, "Paired differences: every seed, mean, 95% interval", alt


def _ablations(comparison: Comparison) -> Iterator[tuple[Figure, str, str]]:
    """What a grid shows: a line over one field, a heat map over two, several of them for more."""
    studies: dict[tuple[str, str, str], list[tuple[dict[str, str], dict[str, Any]]]] = {}
    for row in records(comparison.table[~comparison.table["is_baseline"] & (comparison.table["n"] > 0)]):
        scheme, inside = _grid_values(row["scheme"])
        _, around = _grid_values(f"- {row['variant']}")
        studies.setdefault((row["dataset"], row["model"], scheme), []).append((around | inside, row))
    for (dataset, model, scheme), study in studies.items():
        values: dict[str, list[str]] = {}
        for point, _ in study:
            for field, value in point.items():
                values.setdefault(field, []).append(value)
        levels = {f: sorted(set(v), key=_level) for f, v in values.items() if len(set(v)) > 1}
        paired = all(not pd.isna(row["difference_mean"]) for _, row in study)
        measure = "difference" if paired else "test_accuracy"
        what = f"difference to {comparison.baseline}, points" if paired else "test accuracy, %"
        fields = sorted(levels, key=lambda f: -len(levels[f]))
        if not fields:
            continue
        title = f"{scheme} over {', '.join(fields)}: {dataset} · {model}"
        best = max(study, key=lambda cell: cell[1][f"{measure}_mean"])
        at = ", ".join(f"{field} {best[0].get(field)}" for field in fields)
        signed = measure == "difference"
        alt = f"{what} of {scheme}; the highest is {points(best[1][f'{measure}_mean'], signed)} at {at}."
        draw_it = _ablation_line if len(fields) == 1 else _ablation_map
        yield draw_it(study, fields, levels, measure, what), title, alt[0].upper() + alt[1:]


_Study = list[tuple[dict[str, str], dict[str, Any]]]
_Levels = dict[str, list[str]]


def _ablation_line(study: _Study, fields: list[str], levels: _Levels, measure: str, what: str) -> Figure:
    [field] = fields
    panels = _Panels.make(1, 1, (5.5, 2.6), left=0.9, bottom=0.6)
    [axis] = panels.axes
    numbers = all(_level(level)[0] == 0 for level in levels[field])
    # Equal steps where the levels are not numbers, or spread over more than a decade
    even = not numbers or _level(levels[field][-1])[1] > 12 * abs(_level(levels[field][0])[1])
    study = sorted(study, key=lambda cell: _level(cell[0].get(field, "")))
    x = [levels[field].index(point[field]) if even else _level(point[field])[1] for point, _ in study]
    mean, low, high = (
        np.array([100 * row[f"{measure}_{part}"] for _, row in study]) for part in ("mean", "low", "high")
    )
    axis.errorbar(x, mean, [mean - low, high - mean], color="#0072B2", marker="o", capsize=3)
    if measure == "difference":
        axis.axhline(0, color="black", linewidth=0.9)
    if even:
        axis.set_xticks(range(len(levels[field])), [_short(level, 14) for level in levels[field]])
    axis.set_ylabel(_short(what, 34))
    axis.set_xlabel(_plain(field))
    return panels.figure


def _ablation_map(study: _Study, fields: list[str], levels: _Levels, measure: str, what: str) -> Figure:
    across, down, *rest = fields
    others = sorted(
        {tuple(point.get(f, "") for f in rest) for point, _ in study}, key=lambda t: [_level(v) for v in t]
    )
    others = others[:12]
    size = (0.75 + 0.62 * len(levels[across]), 0.5 + 0.42 * len(levels[down]))
    columns = max(1, int(10 // (size[0] + 1)))
    panels = _Panels.make(len(others), columns, size, left=1.1, bottom=0.6, gap=(0.9, 0.75))
    cells = {tuple(point.get(f, "") for f in fields): row for point, row in study}
    means = 100 * np.array([row[f"{measure}_mean"] for row in cells.values()])
    limit = np.abs(means).max() or 1.0
    scale = {"vmin": -limit, "vmax": limit, "cmap": "PuOr"} if measure == "difference" else {"cmap": "cividis"}
    for axis, other in zip(panels.axes, others, strict=True):
        image = np.full((len(levels[down]), len(levels[across])), np.nan)
        for (i, y), (j, x) in itertools.product(enumerate(levels[down]), enumerate(levels[across])):
            if row := cells.get((x, y, *other)):
                image[i, j] = 100 * row[f"{measure}_mean"]
                sure = "" if row["verdict"] == "cannot tell" else "*"
                text = points(image[i, j] / 100, measure == "difference") + sure
                dark = abs(image[i, j]) > 0.6 * limit if measure == "difference" else image[i, j] < means.mean()
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
        axis.imshow(image, aspect="auto", **scale)
        axis.set_xticks(range(len(levels[across])), [_short(x, 8) for x in levels[across]])
        axis.set_yticks(range(len(levels[down])), [_short(y, 12) for y in levels[down]])
        axis.set(xlabel=_plain(across), ylabel=_plain(down))
        axis.grid(False)
        axis.set_title(_plain(", ".join(f"{f}={v}" for f, v in zip(rest, other, strict=True)) or what))
    return panels.figure


def _grid_values(scheme: str) -> tuple[str, dict[str, str]]:
    """`repr prune_ratio=0.5` as `repr` and its grid values; a value may hold spaces."""
    name, *fields = re.split(r" (?=[\w.]+=)", scheme)
    return name, dict(field.split("=", 1) for field in fields)


def _level(value: str) -> tuple[int, float, str]:
    try:
        return 0, float(value), ""
    except ValueError:
        return 1, 0.0, value


# Layout


@dataclass(frozen=True)
class _Panels:
    """A figure of equal panels, `columns` a row."""

    figure: Figure
    axes: list[Axes]
    columns: int

    @classmethod
    def make(
        cls,
        count: int,
        columns: int,
        size: tuple[float, float] = _PANEL,
        left: float = 0.6,
        bottom: float = 0.85,
        gap: tuple[float, float] = (0.25, 0.42),
    ) -> "_Panels":
        """`count` panels of `size` inches, with room in inches to the left, below, and between."""
        columns = min(columns, count)
        rows = -(-count // columns)
        width = left + columns * size[0] + (columns - 1) * gap[0] + 0.2
        height = bottom + rows * size[1] + (rows - 1) * gap[1] + 0.35
        figure = Figure(figsize=(width, height))
        axes = []
        for place in range(count):
            row, column = divmod(place, columns)
            x, y = left + column * (size[0] + gap[0]), bottom + (rows - 1 - row) * (size[1] + gap[1])
            axes.append(figure.add_axes((x / width, y / height, size[0] / width, size[1] / height)))
        return cls(figure, axes, columns)

    def share(self, axes: Sequence[Axes], x: tuple[float, float] | None, y: tuple[float, float] | None) -> None:
        """One scale for rows of panels, with ticks at the left and the bottom only: ticks take most of the time."""
        for place, axis in enumerate(axes):
            if x:
                axis.set_xlim(x)
            if y:
                axis.set_ylim(y)
            first, last = place % self.columns == 0, place + self.columns >= len(axes)
            if not first:
                levels = [level for level in axes[0].get_yticks() if y and y[0] <= level <= y[1]]
                axis.yaxis.set_major_locator(NullLocator())
                axis.hlines(levels, *axis.get_xlim(), color="#e4e4e4", linewidth=0.6, zorder=0.5)
            if not last:
                axis.xaxis.set_major_locator(NullLocator())

    def legend(self, handles: Sequence[Any], names: Sequence[str], columns: int, x_label: str = "") -> None:
        """Below the panels, under a label for their shared x axis."""
        inches = self.figure.get_figheight()
        if x_label:
            self.figure.text(0.5, 0.42 / inches, _plain(x_label), ha="center", va="center")
        names = [_plain(name) for name in names]
        self.figure.legend(handles, names, loc="lower center", ncols=columns)


def _columns(count: int) -> tuple[int, tuple[float, float]]:
    """How many panels go side by side, and how large they are then."""
    return (count, (min(9.0 / count, 5.0), 2.6)) if count <= 3 else (5 if count > 4 else 4, _PANEL)


def _some(texts: Sequence[str]) -> str:
    """At most six of the texts, and how many more there are."""
    return "; ".join([*texts[:6], *([f"and {len(texts) - 6} more"] if len(texts) > 6 else [])])


def _spaced(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]


def _plain(text: str) -> str:
    """Text that matplotlib neither sets as mathematics nor hides from a legend."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _short(text: str, width: int = 30) -> str:
    """Two lines of a panel's width at most."""
    lines = textwrap.wrap(text, width) or [""]
    return _plain("\n".join(lines if len(lines) < 3 else [lines[0], lines[1][: width - 1] + "…"]))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", name).strip("-")


_KINDS: dict[str, Callable[[_Block], _Made]] = {
    "differences": _differences,
    "curves": _curves,
    "accuracy": _curves_apart("accuracy"),
    "loss": _curves_apart("loss"),
    "filters": _filters,
    "scores": _scores,
    "overlap": _overlaps,
}
