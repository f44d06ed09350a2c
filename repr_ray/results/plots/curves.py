"""Accuracy and loss over epochs, training and test side by side: means with intervals over thin lines of seeds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from repr_ray.results.compare import records
from repr_ray.results.decide import FEWEST_FOR_INTERVAL, LEVEL
from repr_ray.results.plots.block import Block
from repr_ray.results.plots.style import (
    BLUE,
    COLOURS,
    DASHES,
    MARKERS,
    SHADE,
    VERMILION,
    Made,
    Maker,
    Panels,
    arrange,
    limits,
    short,
    some,
)
from repr_ray.results.sequential import Array
from repr_ray.results.words import in_percent

_TOGETHER = len(COLOURS)  # schemes that share axes; more get a panel each
_SUB = (Patch(color=SHADE), "sub-network (S2)")
_MARKS = 8  # markers on a line


def together(block: Block) -> Made:
    """Training and test, accuracy and loss, of schemes that share axes."""
    epochs, schemes = block.epochs, block.schemes
    if epochs.empty or len(schemes) > _TOGETHER:
        return None
    styles = [
        {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4}
        for colour, dashes, marker in zip(COLOURS, DASHES, MARKERS, strict=True)
    ]
    legend = [(Line2D([], [], **style), scheme) for style, scheme in zip(styles, schemes, strict=False)]
    panels = Panels.make(
        4, 2, (4.5, 2.5), left=0.75, gap=(0.75, 0.5), x_label="Epoch", legend=[*legend, *_sub(epochs)]
    )
    measures = ("train_accuracy", "test_accuracy", "train_loss", "test_loss")
    for axis, measure in zip(panels.axes, measures, strict=True):
        shade(axis, epochs)
        curves = _by_scheme(epochs, measure)
        for place, scheme in enumerate(schemes):
            _curve(axis, curves.get(scheme), styles[place], stagger=place / len(schemes))
        part, kind = measure.split("_")
        axis.set_title(f"{'Training' if part == 'train' else 'Test'} {kind}")
        _scale([axis], kind, epochs[measure].to_numpy(dtype=float))
        axis.set_ylabel(_LABELS[kind])
        axis.set_xlim(span(epochs))
    return panels.figure, "Accuracy and loss, mean with 95% interval and every seed", _in_words(block)


def apart(kind: str) -> Maker:
    """Training and test in one panel per scheme, for many schemes."""

    def make(block: Block) -> Made:
        epochs, schemes, baseline = block.epochs, block.schemes, block.comparison.baseline
        if epochs.empty or len(schemes) <= _TOGETHER:
            return None
        styles = {
            "test": {"color": VERMILION, "linestyle": "-"},
            "training": {"color": BLUE, "linestyle": DASHES[1]},
            f"{baseline}, test": {"color": "black", "linestyle": DASHES[2], "linewidth": 1.1},
        }
        legend: list[tuple[Any, str]] = [(Line2D([], [], **style), name) for name, style in styles.items()]
        columns, size = arrange(len(schemes))
        legend += _sub(epochs)
        panels = Panels.make(len(schemes), columns, size, x_label="Epoch", y_label=_LABELS[kind], legend=legend)
        train, test = _by_scheme(epochs, f"train_{kind}"), _by_scheme(epochs, f"test_{kind}")
        for axis, scheme in zip(panels.axes, schemes, strict=True):
            shade(axis, epochs[epochs["scheme"] == scheme])
            of_test, of_training, of_baseline = styles.values()
            _curve(axis, train.get(scheme), of_training)
            _curve(axis, test.get(scheme), of_test)
            if scheme != baseline:
                _curve(axis, test.get(baseline), of_baseline, seeds=False)
            axis.set_title(short(scheme))
        values = epochs[[f"train_{kind}", f"test_{kind}"]].to_numpy(dtype=float)
        panels.share(span(epochs), _scale(panels.axes, kind, values))
        return panels.figure, f"{kind.capitalize()}, mean with 95% interval and every seed", _in_words(block)

    return make


_LABELS = {"accuracy": "Accuracy", "loss": "Loss, nats per image"}


def _sub(epochs: pd.DataFrame) -> list[tuple[Patch, str]]:
    """The legend's entry of shaded epochs, where there are any."""
    return [_SUB] if (epochs["phase"] == "sub").any() else []


def _in_words(block: Block) -> str:
    done = [row for row in records(block.table) if row["n"]]
    figures = [f"{row['scheme']} {in_percent(row['test_accuracy_mean'])}%" for row in done]
    return (
        f"Per epoch, on training and test images, of {len(block.schemes)} schemes. Mean test accuracy in the last"
        f" epoch: {some(figures) or 'none has finished'}."
    )


def _by_scheme(epochs: pd.DataFrame, measure: str) -> dict[str, pd.DataFrame]:
    """One row per trial, one column per epoch, by scheme."""
    wide = epochs.dropna(subset=measure).set_index(["scheme", "trial", "epoch"])[measure].unstack("epoch")
    return {str(scheme): rows for scheme, rows in wide.groupby("scheme", observed=True)}


def _curve(
    axis: Axes, rows: pd.DataFrame | None, style: dict[str, Any], seeds: bool = True, stagger: float = 0.0
) -> None:
    """Mean and 95% interval over the trials of a scheme, and a thin line each."""
    if rows is None:
        return
    rows = rows.dropna(axis="columns", how="all")
    x, values, colour = rows.columns.to_numpy(dtype=float), rows.to_numpy(dtype=float), style["color"]
    if seeds and len(values) > 1:
        lines = [np.column_stack([x, trial]) for trial in values]
        axis.add_collection(LineCollection(lines, colors=colour, linewidths=0.5, alpha=0.3))
        if len(values) >= FEWEST_FOR_INTERVAL:
            axis.fill_between(x, *_band(values), color=colour, alpha=0.18, linewidth=0)
    step = -(-len(x) // _MARKS)
    axis.plot(x, np.nanmean(values, axis=0), markevery=(int(stagger * step), step), **style)


def _band(values: Array) -> tuple[Array, Array]:
    """The 95% t-interval of the mean of each column; NaN where it has fewer than three values."""
    from scipy import stats

    count = (~np.isnan(values)).sum(axis=0)
    several = count >= FEWEST_FOR_INTERVAL
    mean, error = np.nanmean(values, axis=0), np.full(values.shape[1], np.nan)
    error[several] = stats.sem(values[:, several], axis=0, nan_policy="omit")
    error[error == 0] = np.nan  # equal values: no band
    low, high = stats.t.interval(1 - LEVEL, np.maximum(count - 1, 1), loc=mean, scale=error)
    return np.asarray(low), np.asarray(high)


def shade(axis: Axes, epochs: pd.DataFrame) -> None:
    """Grey where any of the trials trains a sub-network; epoch e is shaded from e - 1/2 to e + 1/2."""
    sub = np.unique(epochs.loc[epochs["phase"] == "sub", "epoch"])
    for run in np.split(sub, np.flatnonzero(np.diff(sub) > 1) + 1):
        if len(run):
            axis.axvspan(run[0] - 0.5, run[-1] + 0.5, color=SHADE, linewidth=0, zorder=0)


def span(epochs: pd.DataFrame) -> tuple[float, float]:
    """The x scale."""
    last = float(epochs["epoch"].max())
    return 0.5 - 0.02 * last, last + 0.5 + 0.02 * last


def _scale(axes: Sequence[Axes], kind: str, values: Array) -> tuple[float, float]:
    """The y scale of panels that show `values`; a few diverged epochs do not change it."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.0, 1.0 if kind == "accuracy" else 0.99]) if len(values) else (0.0, 1.0)
    axes[0].set_ylim(limits(low, high))
    if kind == "accuracy":
        for axis in axes:
            axis.yaxis.set_major_formatter(PercentFormatter(1))
    return limits(low, high)
