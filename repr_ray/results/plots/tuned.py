"""Tuning curves: expected accuracy of each scheme by budget, with bands."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from repr_ray.results.plots.style import COLOURS, MARKERS, Panels, some
from repr_ray.results.tuned import accuracies, tuning_curve
from repr_ray.results.words import in_percent

_MOST = len(COLOURS)  # curves of a panel


def tuning_curves(points: pd.DataFrame) -> Iterator[tuple[str, Figure, str, str]]:
    """The picture by the name of its file, with its title and its description; none where nothing was tuned."""
    curves = {key: tuning_curve(values) for key, values in accuracies(points).items() if len(values) > 1}
    settings: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}
    for (experiment, variant, scheme), curve in curves.items():
        settings.setdefault((experiment, variant), {})[scheme] = curve
    for place, ((_, variant), schemes) in enumerate(settings.items(), 1):
        shown = dict(list(schemes.items())[:_MOST])
        panels = Panels.make(1, 1, (5.4, 3.2), x_label="Points tried (full-length trials per seed)")
        [axis] = panels.axes
        for (name, curve), colour, marker in zip(shown.items(), COLOURS, MARKERS, strict=False):
            axis.plot(curve["budget"], 100 * curve["mean"], color=colour, marker=marker, markersize=4, label=name)
            axis.fill_between(curve["budget"], 100 * curve["low"], 100 * curve["high"], color=colour, alpha=0.12)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("Expected best validation accuracy, %")
        axis.legend(loc="lower right", fontsize=8)
        said = some([f"{name} {in_percent(float(curve['mean'].iloc[-1]))}%" for name, curve in shown.items()])
        title = f"Expected best validation accuracy by budget{f': {variant}' if variant else ''}"
        alt = f"Tuning curves with simultaneous 95% bands; with the whole budget: {said}."
        yield f"tuning-{place:02d}" if len(settings) > 1 else "tuning", panels.figure, title, alt
