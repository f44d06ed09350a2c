"""The common style of pictures: colours that differ in grey too, equal panels, one legend, PNG and SVG files."""

import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from repr_ray.results.files import MARK, replacing
from repr_ray.results.plots.block import Block
from repr_ray.storage.text import line

# Okabe and Ito's colours; in grey, dashes and markers tell the lines apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (10, 2.5)),
    (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5)),
    (0, (1.2, 3)),
)
MARKERS = ("", "s", "^", "D", "v", "P", "X")
BLUE, VERMILION, GREY, SHADE = "#0072B2", "#D55E00", "#8a8a8a", "#ebebeb"
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
_PANEL = (2.35, 1.7)  # inches, where every scheme has a panel
_COLUMNS = 5
LETTER = 0.075  # inches, of the font's usual letter
_LINE = 0.2


@dataclass(frozen=True)
class Picture:
    """A picture on disk: its title, what it shows in words, its PNG and its SVG file."""

    title: str
    alt: str
    png: Path
    svg: Path


Made = tuple[Figure, str, str] | None
"""A figure, its title and its description, or None where there is nothing to draw."""
Maker = Callable[[Block], Made]


@contextmanager
def styled() -> Iterator[None]:
    """Our settings of matplotlib."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def save(figure: Figure, path: Path, title: str, alt: str) -> Picture:
    """Write a figure to `path` with `.png` and `.svg` appended. Raises FileExistsError where one is not ours."""
    png, svg = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.svg")
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(_DPI)
    canvas.draw()
    colours = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    mark = PngInfo()
    mark.add_text("Software", MARK)
    # A palette takes a third of the space; the octree rounds white, which is set again.
    indexed = colours.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    palette, paper = indexed.getpalette() or [], 3 * int(np.asarray(indexed)[0, 0])
    indexed.putpalette([*palette[:paper], 255, 255, 255, *palette[paper + 3 :]])
    with replacing(png) as temporary:
        indexed.save(temporary, "PNG", pnginfo=mark, dpi=(_DPI, _DPI))
    figure.set_dpi(72)
    with replacing(svg) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Creator": MARK, "Date": None})
    return Picture(title, alt, png, svg)


@dataclass(frozen=True)
class Panels:
    """A figure of equal panels, `columns` a row, over a label of their x axes and a legend."""

    figure: Figure
    axes: list[Axes]
    columns: int

    @classmethod
    def make(
        cls,
        count: int,
        columns: int,
        size: tuple[float, float],
        *,
        left: float = 0.6,
        ticks: float = 0.3,
        gap: tuple[float, float] = (0.25, 0.42),
        x_label: str = "",
        y_label: str = "",
        legend: Sequence[tuple[Any, str]] = (),
    ) -> "Panels":
        """`count` panels of `size` inches; inches to the left, below for tick labels, and between; legend entries."""
        columns = min(columns, count)
        rows = -(-count // columns)
        left += _LINE if y_label else 0
        across = columns * size[0] + (columns - 1) * gap[0]
        width = left + across + 0.2
        names = [plain(textwrap.shorten(name, 90, placeholder="…")) for _, name in legend]
        fit = max(1, int(width / (0.65 + LETTER * max(map(len, names), default=1))))
        lines = -(-len(names) // fit)
        label = textwrap.wrap(x_label, int((left + across) / LETTER))
        below = 0.06 + (_LINE * (lines + 0.3) if lines else 0)
        bottom = below + _LINE * len(label) + ticks
        height = bottom + rows * size[1] + (rows - 1) * gap[1] + 0.35
        figure = Figure(figsize=(width, height))
        middle = (left + across / 2) / width
        figure.text(middle, (bottom - ticks) / height, plain("\n".join(label)), ha="center", va="top")
        if y_label:
            high = (bottom + (height - 0.35 - bottom) / 2) / height
            figure.text(0.06 / width, high, plain(y_label), rotation=90, ha="left", va="center")
        if lines:
            wide = lines * LETTER * max(map(len, names)) > across
            figure.legend(
                [handle for handle, _ in legend],
                names,
                loc="lower center",
                bbox_to_anchor=(0.5 if wide else middle, 0),
                ncols=-(-len(names) // lines),
                borderaxespad=0.3,
            )
        axes = []
        for place in range(count):
            row, column = divmod(place, columns)
            x, y = left + column * (size[0] + gap[0]), bottom + (rows - 1 - row) * (size[1] + gap[1])
            axes.append(figure.add_axes((x / width, y / height, size[0] / width, size[1] / height)))
        return cls(figure, axes, columns)

    @classmethod
    def listing(cls, names: Sequence[str], x_label: str, legend: Sequence[tuple[Any, str]] = ()) -> "Panels":
        """One panel with a row for each name, the first at the top."""
        left = 0.4 + inches(names)
        panels = cls.make(1, 1, (6.0, 0.5 + 0.32 * len(names)), left=left, x_label=x_label, legend=legend)
        [axis] = panels.axes
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(False, axis="y")
        return panels

    def share(self, x: tuple[float, float] | None, y: tuple[float, float] | None) -> None:
        """One scale for all panels, with ticks at the left and the bottom only: ticks take most of the time."""
        for place, axis in enumerate(self.axes):
            if x:
                axis.set_xlim(x)
            if y:
                axis.set_ylim(y)
            first, last = place % self.columns == 0, place + self.columns >= len(self.axes)
            if not first:
                levels = [level for level in self.axes[0].get_yticks() if y and y[0] <= level <= y[1]]
                axis.yaxis.set_major_locator(NullLocator())
                axis.hlines(levels, *axis.get_xlim(), color="#e4e4e4", linewidth=0.6, zorder=0.5)
            if not last:
                axis.xaxis.set_major_locator(NullLocator())


def arrange(count: int) -> tuple[int, tuple[float, float]]:
    """How many panels go side by side, and how large they are then."""
    if count <= 3:
        return count, (min(9.0 / count, 5.0), 2.6)
    rows = -(-count // _COLUMNS)
    return -(-count // rows), _PANEL


def inches(names: Sequence[str]) -> float:
    """The width of the longest line of some names."""
    return LETTER * max(len(line) for name in names for line in name.split("\n"))


def limits(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis for these values, with a margin."""
    room = 0.05 * (high - low) or 0.01
    return float(low - room), float(high + room)


def some(texts: Sequence[str]) -> str:
    """At most six of the texts, and how many more there are."""
    return "; ".join([*texts[:6], *([f"and {len(texts) - 6} more"] if len(texts) > 6 else [])])


def spaced(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]


def every(values: NDArray[Any], most: int) -> NDArray[Any]:
    """Every value, or every second, third, so that there are at most `most`."""
    return values[:: max(1, -(-len(values) // most))]


def plain(text: str) -> str:
    """Text that matplotlib neither sets as mathematics nor hides from a legend."""
    text = "\n".join(map(line, text.split("\n")))
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def short(text: str, width: int = 30) -> str:
    """Two lines of a panel's width at most."""
    lines = textwrap.wrap(text, width) or [""]
    return plain("\n".join(lines if len(lines) < 3 else [lines[0], lines[1][: width - 1] + "…"]))
